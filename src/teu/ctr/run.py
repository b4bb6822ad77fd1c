# SPDX-License-Identifier: Apache-2.0
"""`run` and `containers create`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from teu.api.types.runc.options import oci_pb2
from teu.api.types.runtimeoptions.v1 import api_pb2 as runtimeoptions_pb2
from teu.ctr import blobs, cni, containers, remap
from teu.ctr import spec as specification
from teu.ctr.client import Client, containers_pb2, snapshots_pb2, tasks_pb2
from teu.ctr.commands import RUNTIME, SNAPSHOTTER, Command, Ctr
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.fifos import Conversation, Fifos
from teu.ctr.flags import Options, labels
from teu.ctr.images import mount_all, unmount_all
from teu.ctr.output import log
from teu.oci import image_spec, jsontext

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
OPTIONS_TYPE = "containerd.runc.v1.Options"


def packed(kind: str, data: bytes) -> Any:
    return AnyMessage(type_url=kind, value=data)


@contextlib.contextmanager
def looked_into(client: Client, snapshotter: str, key: str) -> Iterator[Path | None]:
    """The root file system of a snapshot, mounted for a moment; None where that cannot be."""
    with tempfile.TemporaryDirectory(prefix="teu-ctr-") as folder:
        try:
            mounts = client.snapshots.Mounts(snapshots_pb2.MountsRequest(snapshotter=snapshotter, key=key)).mounts
            mount_all(mounts, folder)
        except (CommandError, OSError):
            yield None
            return
        try:
            yield Path(folder)
        finally:
            unmount_all(folder)


def runtime_options(options: Options) -> Any:
    if not options["runtime"].startswith(("io.containerd.runc.", "io.containerd.teu.")):
        if options["runc-binary"] or options["runc-systemd-cgroup"]:
            raise CommandError(
                "specifying runc-binary and runc-systemd-cgroup is only supported for "
                f'"io.containerd.runc.v2" and "{RUNTIME}" runtime'
            )
        if options["runtime-config-path"]:
            found = runtimeoptions_pb2.Options(config_path=options["runtime-config-path"])
            return packed("runtimeoptions.v1.Options", found.SerializeToString())
        return None
    found = oci_pb2.Options(
        binary_name=options["runc-binary"], root=options["runc-root"], systemd_cgroup=options["runc-systemd-cgroup"]
    )
    return packed(OPTIONS_TYPE, found.SerializeToString())


def make(ctr: Ctr, options: Options, operands: list[str]) -> str:
    """Create the container and its snapshot; returns its ID."""
    container = containers_pb2.Container(
        labels=labels(options["label"]),
        runtime=containers_pb2.Container.Runtime(name=options["runtime"], options=runtime_options(options)),
        sandbox=options["sandbox"],
    )
    if options["config"]:
        if not operands:
            raise CommandError("container id must be provided")
        container.id = operands[0]
        store(ctr.client, container, read_specification(options["config"]))
        return str(container.id)
    if options.get("cni"):
        container.extensions[cni.EXTENSION].CopyFrom(packed(cni.EXTENSION_TYPE, b'{"EnableCni":true}'))
    if not operands:
        raise CommandError("image ref must be provided")
    if len(operands) < 2:
        raise CommandError("container id must be provided")
    name, container.id, *arguments = operands
    spec = specification.default(ctr.namespace, container.id)
    if options["rootfs"]:
        spec["root"]["path"] = os.path.abspath(name)
        specification.from_image(spec, {}, arguments)
        if options["user"]:
            specification.set_user(spec, options["user"], Path(name))
        specification.apply_options(spec, options)
        store(ctr.client, container, spec)
    else:
        image = blobs.get_image(ctr.client, name)
        with ctr.client.leased():
            make_from_image(ctr.client, options, container, spec, image, arguments)
    return str(container.id)


def read_specification(path: str) -> Any:
    try:
        return jsontext.loads(Path(path).read_text())
    except OSError as error:
        told = f"open {path}: {(error.strerror or '').lower()}"
        raise CommandError(f"cannot load spec config file: {told}") from None
    except ValueError as error:
        raise CommandError(f"cannot load spec config file: {error}") from None


def store(client: Client, container: Any, spec: Any) -> None:
    container.spec.CopyFrom(packed(SPEC_TYPE, json.dumps(spec).encode()))
    client.containers.Create(containers_pb2.CreateContainerRequest(container=container))


def make_from_image(
    client: Client, options: Options, container: Any, spec: blobs.Json, image: Any, arguments: list[str]
) -> None:
    """Unpack the image, and create a snapshot on it and the container; the snapshot goes if that fails."""
    snapshotter, key = options["snapshotter"], container.id
    _, manifest = blobs.manifests(client, blobs.as_json(image.target), options["platform"])[0]
    config = blobs.image_config(client, manifest).get("config") or {}
    parent = blobs.unpack(client, manifest, snapshotter, options.get("sync-fs", False))
    for label, value in (config.get("Labels") or {}).items():
        container.labels[label] = value
    container.labels["io.containerd.image.config.stop-signal"] = config.get("StopSignal") or "SIGTERM"
    container.image, container.snapshotter, container.snapshot_key = image.name, snapshotter, key
    marked = labels(options["snapshotter-label"])
    if options["uidmap"] and options["gidmap"]:
        parent, more = remap.prepared(client, snapshotter, parent, options)
        marked |= more
    client.snapshots.Prepare(
        snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=marked)
    )
    try:
        specification.from_image(spec, config, arguments)
        with looked_into(client, snapshotter, key) as root:
            specification.set_user(spec, options["user"] or config.get("User") or "", root)
        specification.apply_options(spec, options)
        if not spec["process"]["args"]:
            raise CommandError("no command: neither the image nor the command line names one")
        store(client, container, spec)
    except BaseException:
        with contextlib.suppress(CommandError):
            client.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key))
        raise


def create(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if not options["config"] and len(operands) < 2:
        raise CommandError(f"{'container id' if operands else 'image ref'} must be provided: invalid argument")
    make(ctr, options, operands)


def create_task(
    ctr: Ctr, options: Options, identity: str, memory: image_spec.Descriptor | None = None
) -> tuple[Conversation, int]:
    """Create the task of a container: its conversation (with FIFOs where wanted) and its process ID. With the `memory`
    of a checkpoint the task goes on from there when it is started."""
    client = ctr.client
    container = containers.get(client, identity)
    terminal = bool(jsontext.loads(container.spec.value).get("process", {}).get("terminal"))
    if terminal and options["null-io"]:
        raise CommandError("tty and null-io cannot be used together")
    request = tasks_pb2.CreateTaskRequest(container_id=identity, terminal=terminal)
    if memory is not None:
        request.checkpoint.CopyFrom(blobs.as_message(memory))
    if container.snapshot_key:
        request.rootfs.extend(
            client.snapshots.Mounts(
                snapshots_pb2.MountsRequest(snapshotter=container.snapshotter, key=container.snapshot_key)
            ).mounts
        )
    if options["no-pivot"]:
        found = oci_pb2.Options()
        found.ParseFromString(container.runtime.options.value)
        found.no_pivot_root = True
        request.options.CopyFrom(packed(OPTIONS_TYPE, found.SerializeToString()))
    if options["null-io"]:
        fifos = Fifos()
    elif options["log-uri"]:
        fifos = Fifos()
        request.stdout = request.stderr = options["log-uri"]
    else:
        fifos = Fifos.make(identity, terminal, options["fifo-dir"])
        request.stdin, request.stdout, request.stderr = fifos.stdin, fifos.stdout, fifos.stderr
    conversation = Conversation(client, identity, "", fifos, terminal)
    try:
        fifos.open()
        pid = client.tasks.Create(request).pid
    except BaseException:
        fifos.remove()
        raise
    if options["pid-file"]:
        Path(options["pid-file"]).write_text(str(pid))
    return conversation, pid


def delete_task(client: Client, identity: str) -> None:
    """Kill what is left and delete the task."""
    with contextlib.suppress(CommandError):
        client.tasks.Kill(tasks_pb2.KillRequest(container_id=identity, signal=9, all=True))
        client.tasks.Wait(tasks_pb2.WaitRequest(container_id=identity), timeout=10)
    try:
        client.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=identity))
    except NotFound:
        pass


def run(ctr: Ctr, options: Options, operands: list[str]) -> int:
    if options["rm"] and options["detach"]:
        raise CommandError("flags --detach and --rm cannot be specified together")
    identity = make(ctr, options, operands)
    client = ctr.client
    code = 0
    try:
        network = cni.network() if options["cni"] else None
        conversation, pid = create_task(ctr, options, identity)
        try:
            try:
                if not options["detach"]:
                    conversation.wait()
                if network:
                    network.add(full_name(ctr, identity), f"/proc/{pid}/ns/net")
                client.tasks.Start(tasks_pb2.StartRequest(container_id=identity))
            except CommandError:
                delete_task(client, identity)
                raise
            if options["detach"]:
                return 0
            code = conversation.run()
            client.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=identity))
        finally:
            if not options["detach"]:
                conversation.fifos.remove()
                if network:
                    try:
                        network.remove(full_name(ctr, identity))
                    except CommandError as error:
                        log("error", "network review", error=error.text)
    finally:
        if options["rm"]:
            try:
                containers.remove(client, identity)
            except CommandError as error:
                log("error", "failed to cleanup container", error=error.text)
    return code


def full_name(ctr: Ctr, identity: str) -> str:
    """A container's name beside those of other namespaces."""
    return f"{ctr.namespace}-{identity}"


IO_FLAGS = """
null-io   bool    No input and output
log-uri   string  Where the output goes, as file:///path or binary:///program
fifo-dir  string  Folder for the FIFOs of input and output
"""
TASK_FLAGS = """
pid-file  string  Write the process ID to this file
no-pivot  bool    Do not use pivot_root
"""
CREATE_FLAGS = (
    specification.FLAGS
    + f"""
snapshotter  string={SNAPSHOTTER}  Snapshotter [$CONTAINERD_SNAPSHOTTER]
snapshotter-label  strings  Label for the snapshot, KEY=VALUE
label        strings  Label for the container, KEY=VALUE
runtime      string={RUNTIME}  Runtime name, or path of a shim
runtime-config-path  string  Configuration of another runtime than runc's
runc-binary  string   The OCI runtime that the shim is to use
runc-root    string   The OCI runtime's folder of state
runc-systemd-cgroup  bool  Let the OCI runtime ask systemd for the cgroup
remap-labels bool     Tell the snapshotter of the mappings, by labels
sandbox      string   Create it in this sandbox
rootfs       bool     The first operand is a folder, not an image
blockio-config-file  string  File with classes of block I/O
blockio-class        string  Class of block I/O of that file
"""
    + TASK_FLAGS
)
RUN_FLAGS = (
    CREATE_FLAGS
    + IO_FLAGS
    + """
rm           bool     Remove the container when it has ended
detach,d     bool     Do not wait for it
cni          bool     Network by the CNI plugins and configuration of this host
sync-fs      bool     Each layer is on the disk before the next one is unpacked
"""
)
COMMANDS = {
    "run": Command(run, "[flags] Image|RootFS ID [COMMAND] [ARG...]", RUN_FLAGS),
    "containers create": Command(create, "[flags] Image|RootFS CONTAINER [COMMAND] [ARG...]", CREATE_FLAGS),
}
