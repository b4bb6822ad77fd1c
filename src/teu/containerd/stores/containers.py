# SPDX-License-Identifier: Apache-2.0
"""Container records: from what a task is made. The runtime's own state is elsewhere (the shim, the bundle)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from teu.api.events import container_pb2 as container_events
from teu.api.services.containers.v1 import containers_pb2
from teu.containerd.core.database import Database, dump_labels, now, set_labels, set_mask_path, set_timestamp
from teu.containerd.core.errors import AlreadyExists, InvalidArgument, NotFound
from teu.containerd.core.events import Exchange
from teu.containerd.core.filters import Adaptor, in_map, parse_all, present
from teu.containerd.core.identifiers import validate_identifier
from teu.containerd.core.rows import Row, must_be_whole

_COLUMNS = "id, labels, image, snapshotter, snapshot_key, sandbox, record, created, updated"


def _from_row(row: Any) -> containers_pb2.Container:
    read = Row(f"container {row[0]}")
    container = read.message(containers_pb2.Container, row[6], "record")
    container.id = read.text(row[0], "id")
    container.image = read.text(row[2], "image")
    container.snapshotter = read.text(row[3], "snapshotter")
    container.snapshot_key = read.text(row[4], "snapshot_key")
    container.sandbox = read.text(row[5], "sandbox")
    if not container.runtime.name:
        read.faults.append("record has no runtime")
    labels = read.labels(row[1])
    set_timestamp(container.created_at, read.number(row[7], "created"))
    set_timestamp(container.updated_at, read.number(row[8], "updated"))
    container.labels.update(read.told(labels))
    return container


def _record(container: containers_pb2.Container) -> bytes:
    record = containers_pb2.Container()
    record.runtime.CopyFrom(container.runtime)
    if container.HasField("spec"):  # a client may give it later: the task needs it, not the record
        record.spec.CopyFrom(container.spec)
    for key, value in container.extensions.items():
        record.extensions[key].CopyFrom(value)
    return bytes(record.SerializeToString(deterministic=True))


def _validate(container: containers_pb2.Container) -> None:
    validate_identifier(container.id)
    if "" in container.extensions:
        raise InvalidArgument("container.Extension keys must not be zero-length")
    if not container.runtime.name:
        raise InvalidArgument("container.Runtime.Name must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")


def adaptor(container: containers_pb2.Container) -> Adaptor:
    """What filters may ask of a container: id, image, runtime.name, labels."""

    def adapt(path: Sequence[str]) -> str | None:
        match path[0]:
            case "id":
                return present(container.id)
            case "image":
                return present(container.image)
            case "runtime":
                return present(container.runtime.name) if list(path[1:2]) == ["name"] else None
            case "labels":
                return in_map(path[1:], container.labels)
        return None

    return adapt


class Containers:
    """containerd.services.containers.v1, without its wire. A container is containerd.services.containers.v1.Container.

    A method raises NotFound for a container that does not exist, InvalidArgument for a message that is none,
    FailedPrecondition for a change to a damaged record."""

    def __init__(self, database: Database, events: Exchange) -> None:
        self._database = database
        self._events = events
        self._listeners: list[Callable[[containers_pb2.Container], None]] = []

    def listen(self, callback: Callable[[containers_pb2.Container], None]) -> None:
        """For parts of this daemon: `callback(container)` after each creation, update and deletion (which leaves
        nothing of it but the id), before the answer; it must be quick."""
        self._listeners.append(callback)

    def get(self, namespace: str, id: str) -> containers_pb2.Container:
        """The record of that id."""
        row = self._database.one(f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? AND id = ?", (namespace, id))
        if row is None:
            raise NotFound(f'container "{id}" in namespace "{namespace}"')
        return _from_row(row)

    def require(self, namespace: str, id: str) -> None:
        """As `get`, for who needs nothing of the record: it is not taken to pieces."""
        if not self.exists(namespace, id):
            raise NotFound(f'container "{id}" in namespace "{namespace}"')

    def exists(self, namespace: str, id: str) -> bool:
        """Whether there is a record of that id."""
        query = "SELECT 1 FROM containers WHERE namespace = ? AND id = ?"
        return self._database.one(query, (namespace, id)) is not None

    def find(self, namespace: str, filters: Sequence[str] = ()) -> list[containers_pb2.Container]:
        """The records that one of the filters lets through, by id; all of them without filters."""
        accept = parse_all(filters)
        rows = self._database.all(f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? ORDER BY id", (namespace,))
        containers = map(_from_row, rows)
        return [one for one in containers if accept(adaptor(one))] if filters else list(containers)

    def labelled(self, label: str) -> list[tuple[str, containers_pb2.Container]]:
        """(namespace, container) of all that have a label, of every namespace."""
        rows = self._database.all(
            f"SELECT {_COLUMNS}, namespace FROM containers WHERE instr(labels, ?) ORDER BY namespace, id", (label,)
        )
        return [(row[9], container) for row in rows if label in (container := _from_row(row)).labels]

    def create(
        self, namespace: str, container: containers_pb2.Container, *, durable: bool = True
    ) -> containers_pb2.Container:
        """Store a record; it is returned with its times. AlreadyExists for an id in use. `durable`: before this
        returns, and not with the next change that is."""
        try:
            _validate(container)
        except InvalidArgument as error:
            raise InvalidArgument(f"create container failed validation: {error}") from None
        stamp = now()
        with self._database.transaction(durable=durable) as execute:
            self._database.ensure_namespace(namespace)
            if execute("SELECT 1 FROM containers WHERE namespace = ? AND id = ?", (namespace, container.id)).fetchone():
                raise AlreadyExists(f'container "{container.id}"')
            execute(
                f"INSERT INTO containers (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    namespace,
                    container.id,
                    dump_labels(container.labels),
                    container.image,
                    container.snapshotter,
                    container.snapshot_key,
                    container.sandbox,
                    _record(container),
                    stamp,
                    stamp,
                ),
            )
        set_labels(container.labels, dict(container.labels))
        set_timestamp(container.created_at, stamp)
        set_timestamp(container.updated_at, stamp)
        event = container_events.ContainerCreate(id=container.id, image=container.image)
        event.runtime.name = container.runtime.name
        if container.runtime.HasField("options"):
            event.runtime.options.CopyFrom(container.runtime.options)
        self._events.publish(namespace, "/containers/create", event)
        self._tell(container)
        return container

    def update(
        self, namespace: str, container: containers_pb2.Container, paths: Sequence[str]
    ) -> containers_pb2.Container:
        """Change the fields that `paths` name, those that can change without any; the changed record."""
        if not container.id:
            raise InvalidArgument("must specify a container id")
        with self._database.transaction() as execute:
            updated = self.get(namespace, container.id)
            must_be_whole(updated.labels, f'container "{container.id}"')
            if not paths:
                paths = ("labels", "spec", "extensions", "image", "snapshotkey")
                if updated.snapshotter != container.snapshotter:
                    raise InvalidArgument("container.Snapshotter field is immutable")
                if updated.runtime.name != container.runtime.name:
                    raise InvalidArgument("container.Runtime.Name field is immutable")
            for path in paths:
                _apply(updated, container, path)
            try:
                _validate(updated)
            except InvalidArgument as error:
                raise InvalidArgument(f"update failed validation: {error}") from None
            stamp = now()
            execute(
                "UPDATE containers SET labels = ?, image = ?, snapshot_key = ?, record = ?, updated = ? "
                "WHERE namespace = ? AND id = ?",
                (
                    dump_labels(updated.labels),
                    updated.image,
                    updated.snapshot_key,
                    _record(updated),
                    stamp,
                    namespace,
                    updated.id,
                ),
            )
        set_timestamp(updated.updated_at, stamp)
        self._events.publish(
            namespace,
            "/containers/update",
            container_events.ContainerUpdate(
                id=updated.id, image=updated.image, labels=updated.labels, snapshot_key=updated.snapshot_key
            ),
        )
        self._tell(updated)
        return updated

    def _tell(self, container: containers_pb2.Container) -> None:
        for listener in self._listeners:
            listener(container)

    def delete(self, namespace: str, id: str, *, durable: bool = True) -> None:
        """Remove a record, whatever becomes of its task and its snapshot. `durable`: before this returns, and not with
        the next change that is."""
        with self._database.transaction(durable=durable) as execute:
            if not execute("DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, id)).rowcount:
                raise NotFound(f'container "{id}" in namespace "{namespace}"')
        self._database.mutated()
        self._events.publish(namespace, "/containers/delete", container_events.ContainerDelete(id=id))
        self._tell(containers_pb2.Container(id=id))


def _apply(updated: containers_pb2.Container, wanted: containers_pb2.Container, path: str) -> None:
    """One path of a field mask, in containerd's spelling of it."""
    if set_mask_path(updated, wanted, path):
        return
    match path:
        case "spec":
            updated.ClearField("spec")
            if wanted.HasField("spec"):
                updated.spec.CopyFrom(wanted.spec)
        case "image":
            updated.image = wanted.image
        case "snapshotkey" | "snapshot_key":
            updated.snapshot_key = wanted.snapshot_key
        case _:
            raise InvalidArgument(f'cannot update "{path}" field on "{updated.id}"')
