# SPDX-License-Identifier: Apache-2.0
"""Containers saved as images and made again of them: containers checkpoint, containers restore, tasks checkpoint.

A saved container is an index of what was asked for: the manifest of the image, the memory (files of criu as a tar
archive) with the specification, the options of the runtime, the writable layer. Its annotations name the image, the
runtime and the snapshotter. Both ctr and teu-ctr read what the other one wrote."""

from __future__ import annotations

import time
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from teu.api.types.runc.options import oci_pb2
from teu.ctr import blobs, containers
from teu.ctr.blobs import Json
from teu.ctr.client import Client, containers_pb2, diff_pb2, images_pb2, snapshots_pb2
from teu.ctr.client import tasks_pb2 as pb
from teu.ctr.commands import Command, Ctr, need
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import REGISTRY, Options, parse, parse_table
from teu.ctr.output import STATUS
from teu.ctr.run import IO_FLAGS, TASK_FLAGS, create_task, packed
from teu.ctr.snapshots import compare
from teu.ctr.tasks import get_task
from teu.ctr.transfer import PLATFORMS, fetch_image
from teu.oci import image_spec, jsontext
from teu.oci.labels import CONTENT

IMAGE_NAME = "org.opencontainers.image.ref.name"
RUNTIME_NAME = "io.containerd.checkpoint.runtime"
SNAPSHOTTER_NAME = "io.containerd.checkpoint.snapshotter"
MEMORY = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"
OPTIONS = "application/vnd.containerd.container.checkpoint.options.v1+proto"
RUNTIME_OPTIONS = "application/vnd.containerd.container.checkpoint.runtime.options+proto"
OPTIONS_TYPE = "containerd.runc.v1.CheckpointOptions"


def here() -> image_spec.PlatformMembers:
    """This machine's platform as a descriptor has it."""
    found = image_spec.host_platform()
    return {"architecture": found.architecture, "os": found.os}


def part(client: Client, media_type: str, data: bytes) -> image_spec.Descriptor:
    """A blob of a saved container, stored."""
    return {"mediaType": media_type, "digest": blobs.store(client, data), "size": len(data), "platform": here()}


def writable_layer(client: Client, snapshotter: str, key: str) -> image_spec.Descriptor:
    found = compare(client, snapshotter, [key], diff_pb2.DiffRequest(ref=f"checkpoint-rw-{key}"))
    return {**blobs.as_json(found), "platform": here()}


def store_index(
    client: Client, parts: list[image_spec.Descriptor], annotations: dict[str, str]
) -> image_spec.Descriptor:
    """The index itself; its labels keep its parts from the garbage collector."""
    data = image_spec.encode({"schemaVersion": 2, "manifests": parts, "annotations": dict(sorted(annotations.items()))})
    kept = {f"{CONTENT}.{number}": each["digest"] for number, each in enumerate(parts)}
    return {"mediaType": image_spec.OCI_INDEX, "digest": blobs.store(client, data, kept), "size": len(data)}


def save_task(
    client: Client, identity: str, wanted: oci_pb2.CheckpointOptions
) -> tuple[list[image_spec.Descriptor], Any]:
    """The memory of a task, by the daemon: descriptors of the blobs, none where `wanted` names a folder for them; and
    the options as they were sent."""
    sent = packed(OPTIONS_TYPE, wanted.SerializeToString())
    answer = client.tasks.Checkpoint(pb.CheckpointTaskRequest(container_id=identity, options=sent))
    return [{**blobs.as_json(each), "platform": here()} for each in answer.descriptors], sent


def checkpoint_task(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity = need(operands, "container id")[0]
    client = ctr.client
    state = STATUS[get_task(client, identity).status]
    container = containers.get(client, identity)
    wanted = oci_pb2.CheckpointOptions(
        exit=options["exit"], image_path=options["image-path"], work_path=options["work-path"]
    )
    with client.leased():
        if state != "PAUSED":
            client.tasks.Pause(pb.PauseTaskRequest(container_id=identity))
        try:
            parts, _ = save_task(client, identity, wanted)
            if options["image-path"]:
                return
            annotations = {}
            if container.image:
                parts.append(blobs.as_json(blobs.get_image(client, container.image).target))
                annotations["image.name"] = container.image
            if container.snapshot_key:
                parts.append(writable_layer(client, container.snapshotter, container.snapshot_key))
            name = f"containerd.io/checkpoint/{identity}:{time.strftime('%m-%d-%Y-%H:%M:%S')}"
            target = blobs.as_message(store_index(client, parts, annotations))
            image = images_pb2.Image(name=name, target=target, labels={"containerd.io/checkpoint": "true"})
            client.images.Create(images_pb2.CreateImageRequest(image=image))
        finally:
            if state != "PAUSED":
                try:
                    client.tasks.Resume(pb.ResumeTaskRequest(container_id=identity))
                except CommandError:
                    pass  # with --exit nothing is left to go on
    ctr.print(name)


def checkpoint_container(ctr: Ctr, options: Options, operands: list[str]) -> None:
    identity, name = need(operands, "container id", "ref")[:2]
    client = ctr.client
    container = containers.get(client, identity)
    try:
        client.tasks.Get(pb.GetRequest(container_id=identity))
        client.tasks.Pause(pb.PauseTaskRequest(container_id=identity))
        paused = True
    except NotFound:
        paused = False
    try:
        with client.leased():
            save_container(client, container, name, options)
    finally:
        if paused:
            try:
                client.tasks.Resume(pb.ResumeTaskRequest(container_id=identity))
            except CommandError as error:
                ctr.print(f"error resuming task: {error.text}")


def save_container(client: Client, container: Any, name: str, options: Options) -> None:
    if not container.image:
        raise NotFound("container not created from an image: not found")
    image = blobs.get_image(client, container.image)
    annotations = {
        IMAGE_NAME: image.name,
        RUNTIME_NAME: container.runtime.name,
        SNAPSHOTTER_NAME: container.snapshotter,
    }
    parts: list[image_spec.Descriptor] = []
    if container.runtime.options.value:
        parts.append(part(client, RUNTIME_OPTIONS, container.runtime.options.SerializeToString()))
    if options["image"]:
        parts.append(blobs.as_json(image.target))
    if options["rw"]:
        parts.append(writable_layer(client, container.snapshotter, container.snapshot_key))
    if options["task"]:
        memory, sent = save_task(client, container.id, oci_pb2.CheckpointOptions(file_locks=True))
        parts += [*memory, part(client, OPTIONS, sent.SerializeToString())]
    target = blobs.as_message(store_index(client, parts, annotations))
    client.images.Create(images_pb2.CreateImageRequest(image=images_pb2.Image(name=name, target=target)))


# Back again ------------------------------------------------------------------------------------------------


def fetched(ctr: Ctr, name: str) -> image_spec.Descriptor:
    """The target of an image, from its registry where it is not at hand."""
    try:
        return blobs.as_json(blobs.get_image(ctr.client, name).target)
    except NotFound:
        pass
    unset, _ = parse(parse_table(REGISTRY + PLATFORMS), [])
    with ctr.client.leased():
        target = fetch_image(ctr, unset, name)
        blobs.put_image(ctr.client, name, target)
    return target


def unpacked_any(client: Client, descriptor: image_spec.Descriptor) -> Any:
    found = AnyMessage()
    found.ParseFromString(b"".join(blobs.read(client, descriptor["digest"])))
    return found


def restored(client: Client, identity: str, index: Json, with_layer: bool) -> None:
    """The container that an index describes, with a new snapshot of its image, and its writable layer if wanted."""
    annotations = index.get("annotations") or {}
    parts = index.get("manifests") or []

    def of_kind(media_type: str) -> image_spec.Descriptor | None:
        return next((each for each in parts if each["mediaType"] == media_type), None)

    for key, what in ((IMAGE_NAME, "image name"), (SNAPSHOTTER_NAME, "snapshotter")):
        if not annotations.get(key):
            raise CommandError(f"{what} not found in index")
    image = blobs.get_image(client, annotations[IMAGE_NAME])
    snapshotter = annotations[SNAPSHOTTER_NAME]
    _, manifest = blobs.manifests(client, blobs.as_json(image.target))[0]
    parent = blobs.chain_id(client, manifest)
    request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=identity, parent=parent)
    mounts = client.snapshots.Prepare(request).mounts
    try:
        config = of_kind(CONFIG)
        if config is None:
            raise CommandError("media type not found")
        if RUNTIME_NAME not in annotations:
            raise CommandError("runtime not found in index")
        container = containers_pb2.Container(
            id=identity,
            image=image.name,
            snapshotter=snapshotter,
            snapshot_key=identity,
            runtime=containers_pb2.Container.Runtime(name=annotations[RUNTIME_NAME]),
            spec=unpacked_any(client, config),
        )
        runtime_options = of_kind(RUNTIME_OPTIONS)
        if runtime_options is not None:
            container.runtime.options.CopyFrom(unpacked_any(client, runtime_options))
        if with_layer:
            layer = of_kind(image_spec.OCI_LAYER_GZIP)
            if layer is None:
                raise CommandError("media type not found")
            client.diff.Apply(diff_pb2.ApplyRequest(diff=blobs.as_message(layer), mounts=mounts))
        client.containers.Create(containers_pb2.CreateContainerRequest(container=container))
    except BaseException:
        client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=identity))
        raise


def restore(ctr: Ctr, options: Options, operands: list[str]) -> int:
    identity, name = need(operands, "container id", "ref")[:2]
    client = ctr.client
    target = fetched(ctr, name)
    index = blobs.document(client, target)
    with client.leased():
        restored(client, identity, index, options["rw"])
    memory = None
    if options["live"]:
        memory = next((each for each in index.get("manifests") or [] if each["mediaType"] == MEMORY), None)
        if memory is None:
            raise CommandError(f"checkpoint not found in index {target['digest']}")
    unset, _ = parse(parse_table(IO_FLAGS + TASK_FLAGS), [])
    conversation, _ = create_task(ctr, unset, identity, memory)
    terminal = bool(jsontext.loads(containers.get(client, identity).spec.value).get("process", {}).get("terminal"))
    try:
        if terminal:
            conversation.wait()
        client.tasks.Start(pb.StartRequest(container_id=identity))
        if not terminal:
            return 0
        code = conversation.run()
        client.tasks.Delete(pb.DeleteTaskRequest(container_id=identity))
        return code
    finally:
        if terminal:
            conversation.fifos.remove()


COMMANDS = {
    "containers checkpoint": Command(
        checkpoint_container,
        "[flags] CONTAINER REF",
        """
rw     bool  With the writable layer
image  bool  With the image
task   bool  With the memory of the running task
""",
    ),
    "containers restore": Command(
        restore,
        "[flags] CONTAINER REF",
        """
rw    bool  With the writable layer
live  bool  Go on where the saved task was
""",
    ),
    "tasks checkpoint": Command(
        checkpoint_task,
        "[flags] CONTAINER",
        """
exit        bool    Stop the container afterwards
image-path  string  Leave the memory in this folder and make no image
work-path   string  Folder for work files and logs
""",
    ),
}
