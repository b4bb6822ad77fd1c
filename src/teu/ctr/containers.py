# SPDX-License-Identifier: Apache-2.0
"""Containers: list, info, label, delete. (create: `run`.)"""

from __future__ import annotations

import base64
import datetime
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from teu.ctr.client import Client, rfc3339, snapshots_pb2, tasks_pb2
from teu.ctr.client import containers_pb2 as pb
from teu.ctr.commands import Command, Ctr
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import Options
from teu.ctr.output import STATUS, Failures, label_text, show_json, table
from teu.oci import jsontext


def get(client: Client, identity: str) -> Any:
    return client.containers.Get(pb.GetContainerRequest(id=identity)).container


def list_containers(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = ctr.client.containers.List(pb.ListContainersRequest(filters=operands)).containers
    found = sorted(found, key=lambda container: str(container.id))
    if options["quiet"]:
        for container in found:
            ctr.print(container.id)
        return
    rows = [(container.id, container.image or "-", container.runtime.name) for container in found]
    table([("CONTAINER", "IMAGE", "RUNTIME"), *rows], 4, 4)


def info(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if not operands:
        raise CommandError("container id must be provided: invalid argument")
    container = get(ctr.client, operands[0])
    spec = jsontext.loads(container.spec.value) if container.spec.value else None
    if options["spec"]:
        show_json(spec)
        return
    runtime: dict[str, Any] = {"Name": container.runtime.name, "Options": None}
    if container.runtime.HasField("options"):
        runtime["Options"] = {"type_url": container.runtime.options.type_url}
        if container.runtime.options.value:
            runtime["Options"]["value"] = base64.b64encode(container.runtime.options.value).decode()
    show_json(
        {
            "ID": container.id,
            "Labels": dict(sorted(container.labels.items())),
            "Image": container.image,
            "Runtime": runtime,
            "SnapshotKey": container.snapshot_key,
            "Snapshotter": container.snapshotter,
            "CreatedAt": rfc3339(container.created_at),
            "UpdatedAt": rfc3339(container.updated_at),
            "Extensions": {key: {"type_url": value.type_url} for key, value in sorted(container.extensions.items())},
            "SandboxID": container.sandbox,
            "Spec": spec,
        }
    )


def label(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if not operands:
        raise CommandError("container id must be provided: invalid argument")
    identity = get(ctr.client, operands[0]).id
    wanted = {key: value for key, _, value in (word.partition("=") for word in operands[1:])}
    request = pb.UpdateContainerRequest(
        container=pb.Container(id=identity, labels=wanted),
        update_mask=FieldMask(paths=["labels." + key for key in wanted]),
    )
    ctr.print(label_text(ctr.client.containers.Update(request).container.labels))


def remove(client: Client, identity: str, keep_snapshot: bool = False) -> None:
    """Delete a container that has no running task, with its snapshot."""
    container = get(client, identity)
    try:
        process = client.tasks.Get(tasks_pb2.GetRequest(container_id=identity)).process
    except NotFound:
        pass
    else:
        state = STATUS[process.status]
        if state not in ("STOPPED", "CREATED"):
            exited = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=process.exited_at.seconds)
            told = f"{state.lower()} {process.exit_status} {exited.isoformat(' ')} +0000 UTC"
            raise CommandError(f"cannot delete a non stopped container: {{{told}}}")
        client.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=identity))
    client.containers.Delete(pb.DeleteContainerRequest(id=identity))
    if container.snapshot_key and not keep_snapshot:
        try:
            client.snapshots.Remove(
                snapshots_pb2.RemoveSnapshotRequest(snapshotter=container.snapshotter, key=container.snapshot_key)
            )
        except NotFound:
            pass


def delete(ctr: Ctr, options: Options, operands: list[str]) -> None:
    if not operands:
        raise CommandError("must specify at least one container to delete: invalid argument")
    failures = Failures()
    for identity in operands:
        try:
            remove(ctr.client, identity, options["keep-snapshot"])
        except CommandError as error:
            failures.add(error, f'failed to delete container "{identity}"')
    failures.end()


COMMANDS = {
    "containers list": Command(list_containers, "[flags] [<filter>, ...]", "quiet,q bool Print only the IDs"),
    "containers info": Command(info, "CONTAINER", "spec bool Print only the specification"),
    "containers label": Command(label, "[flags] CONTAINER [<key>=<value>, ...]"),
    "containers delete": Command(
        delete, "[flags] CONTAINER [CONTAINER, ...]", "keep-snapshot bool Keep the container's snapshot"
    ),
}
