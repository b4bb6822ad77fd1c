# SPDX-License-Identifier: Apache-2.0
"""Sandbox records: groups of containers that share a shim (pods)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from teu.api.types import sandbox_pb2
from teu.containerd.core.database import Database, dump_labels, now, set_mask_path, set_timestamp
from teu.containerd.core.errors import AlreadyExists, InvalidArgument, NotFound
from teu.containerd.core.filters import Adaptor, in_map, parse_all
from teu.containerd.core.identifiers import validate_identifier
from teu.containerd.core.rows import Row, must_be_whole

_COLUMNS = "id, labels, record, created, updated"


def _from_row(row: Any) -> sandbox_pb2.Sandbox:
    read = Row(f"sandbox {row[0]}")
    sandbox = read.message(sandbox_pb2.Sandbox, row[2], "record")
    sandbox.sandbox_id = read.text(row[0], "id")
    if not sandbox.runtime.name:
        read.faults.append("record has no runtime")
    labels = read.labels(row[1])
    set_timestamp(sandbox.created_at, read.number(row[3], "created"))
    set_timestamp(sandbox.updated_at, read.number(row[4], "updated"))
    sandbox.labels.update(read.told(labels))
    return sandbox


def _record(sandbox: sandbox_pb2.Sandbox) -> bytes:
    record = sandbox_pb2.Sandbox()
    record.CopyFrom(sandbox)
    for field in ("labels", "created_at", "updated_at"):
        record.ClearField(field)
    return bytes(record.SerializeToString(deterministic=True))


def _validate(sandbox: sandbox_pb2.Sandbox) -> None:
    validate_identifier(sandbox.sandbox_id)
    if not sandbox.runtime.name:
        raise InvalidArgument("sandbox.Runtime.Name must be set")


class Sandboxes:
    """containerd.services.sandbox.v1.Store, without its wire. A sandbox is containerd.types.Sandbox.

    A method raises NotFound for a sandbox that does not exist, InvalidArgument for a message that is none,
    FailedPrecondition for a change to a damaged record."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, id: str) -> sandbox_pb2.Sandbox:
        """The record of that id."""
        row = self._database.one(f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, id))
        if row is None:
            raise NotFound(f'sandbox "{id}"')
        return _from_row(row)

    def exists(self, namespace: str, id: str) -> bool:
        """Whether there is a record of that id."""
        query = "SELECT 1 FROM sandboxes WHERE namespace = ? AND id = ?"
        return self._database.one(query, (namespace, id)) is not None

    def find(self, namespace: str, filters: Sequence[str] = ()) -> list[sandbox_pb2.Sandbox]:
        """The records that one of the filters lets through, by id; all of them without filters."""
        accept = parse_all(filters)
        rows = self._database.all(f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? ORDER BY id", (namespace,))

        def adaptor(sandbox: sandbox_pb2.Sandbox) -> Adaptor:
            def adapt(path: Sequence[str]) -> str | None:
                if path[0] == "id":
                    return str(sandbox.sandbox_id)
                return in_map(path[1:], sandbox.labels) if path[0] == "labels" else None

            return adapt

        return [sandbox for sandbox in map(_from_row, rows) if accept(adaptor(sandbox))]

    def create(self, namespace: str, sandbox: sandbox_pb2.Sandbox, *, durable: bool = True) -> sandbox_pb2.Sandbox:
        """Store a record; it is returned with its times. AlreadyExists for an id in use. `durable`: before this
        returns, and not with the next change that is."""
        _validate(sandbox)
        stamp = now()
        with self._database.transaction(durable=durable) as execute:
            self._database.ensure_namespace(namespace)
            if execute(
                "SELECT 1 FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, sandbox.sandbox_id)
            ).fetchone():
                raise AlreadyExists(f'sandbox "{sandbox.sandbox_id}"')
            execute(
                f"INSERT INTO sandboxes (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    namespace,
                    sandbox.sandbox_id,
                    dump_labels(sandbox.labels, limited=False),
                    _record(sandbox),
                    stamp,
                    stamp,
                ),
            )
        return self.get(namespace, sandbox.sandbox_id)

    def update(self, namespace: str, wanted: sandbox_pb2.Sandbox, paths: Sequence[str]) -> sandbox_pb2.Sandbox:
        """Change the fields that `paths` name, those that can change without any; the changed record."""
        with self._database.transaction() as execute:
            updated = self.get(namespace, wanted.sandbox_id)
            must_be_whole(updated.labels, f'sandbox "{wanted.sandbox_id}"')
            if not paths and wanted.runtime.name != updated.runtime.name:
                raise InvalidArgument("sandbox.Runtime.Name field is immutable")
            for path in paths or ("labels", "extensions", "spec", "runtime"):
                _apply(updated, wanted, path)
            _validate(updated)
            execute(
                "UPDATE sandboxes SET labels = ?, record = ?, updated = ? WHERE namespace = ? AND id = ?",
                (dump_labels(updated.labels, limited=False), _record(updated), now(), namespace, wanted.sandbox_id),
            )
        return self.get(namespace, wanted.sandbox_id)

    def delete(self, namespace: str, id: str) -> None:
        """Remove a record, whatever becomes of the sandbox itself."""
        with self._database.transaction() as execute:
            if not execute("DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, id)).rowcount:
                raise NotFound(f'sandbox "{id}"')
        self._database.mutated()


def _apply(updated: sandbox_pb2.Sandbox, wanted: sandbox_pb2.Sandbox, path: str) -> None:
    if set_mask_path(updated, wanted, path):
        return
    if path not in ("spec", "runtime"):
        raise InvalidArgument(f'cannot update "{path}" field on sandbox "{updated.sandbox_id}"')
    updated.ClearField(path)
    if wanted.HasField(path):
        getattr(updated, path).CopyFrom(getattr(wanted, path))
