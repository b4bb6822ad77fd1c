# SPDX-License-Identifier: Apache-2.0
"""Leases: what a client at work holds, so that garbage collection lets it be.

Whatever is created in a call with the header `containerd-lease` is held by that lease in the same transaction. A lease
ends by Delete, or by the time in its label containerd.io/gc.expire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from teu.api.services.leases.v1 import leases_pb2
from teu.containerd.core.database import Database, dump_labels, now, set_timestamp
from teu.containerd.core.digests import is_digest
from teu.containerd.core.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from teu.containerd.core.filters import Adaptor, in_map, parse_all, present
from teu.containerd.core.rows import Row


def _from_row(row: Any) -> leases_pb2.Lease:
    read = Row(f"lease {row[0]}")
    lease = leases_pb2.Lease(id=read.text(row[0], "id"))
    labels = read.labels(row[1])
    set_timestamp(lease.created_at, read.number(row[2], "created"))
    lease.labels.update(read.told(labels))
    return lease


def _resource_type(resource: leases_pb2.Resource) -> str:
    kind = str(resource.type)
    head, *rest = kind.split("/")
    if head in ("content", "ingests", "images"):
        if rest:
            raise InvalidArgument(f"invalid resource type {kind}")
        if head == "content" and not is_digest(resource.id):
            raise InvalidArgument(f"invalid content resource id {resource.id}: invalid checksum digest format")
    elif head == "snapshots":
        if len(rest) != 1 or not rest[0]:
            raise InvalidArgument(f"invalid snapshot resource type {kind}")
    else:
        raise Unimplemented(f"resource type {kind} not supported yet")
    if not resource.id:
        raise InvalidArgument(f"invalid resource id of type {kind}")
    return kind


class Leases:
    """containerd.services.leases.v1, without its wire. A method raises NotFound for a lease that does not exist."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, namespace: str, id: str, labels: dict[str, str]) -> leases_pb2.Lease:
        """Make a lease, whose `labels` may set its end; containerd.services.leases.v1.Lease.

        Raises AlreadyExists for an id in use, InvalidArgument for none or for bad labels."""
        if not id:
            raise InvalidArgument("lease id must be provided")
        stamp, encoded = now(), dump_labels(labels, limited=False)
        with self._database.transaction() as execute:
            self._database.ensure_namespace(namespace)
            if execute("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, id)).fetchone():
                raise AlreadyExists(f'lease "{id}"')
            execute("INSERT INTO leases VALUES (?, ?, ?, ?)", (namespace, id, encoded, stamp))
        return _from_row((id, encoded, stamp))

    def delete(self, namespace: str, id: str) -> None:
        """End a lease: what nothing else holds becomes garbage."""
        with self._database.transaction() as execute:
            self._require(namespace, id)
            execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, id))
            execute("DELETE FROM lease_resources WHERE namespace = ? AND lease = ?", (namespace, id))
        self._database.mutated()

    def find(self, namespace: str, filters: Sequence[str] = ()) -> list[leases_pb2.Lease]:
        """The leases that one of the filters lets through, by id; all of them without filters. InvalidArgument for a
        bad filter."""
        accept = parse_all(filters)
        rows = self._database.all(
            "SELECT id, labels, created FROM leases WHERE namespace = ? ORDER BY id", (namespace,)
        )

        def adaptor(lease: leases_pb2.Lease) -> Adaptor:
            def adapt(path: Sequence[str]) -> str | None:
                if path[0] == "id":
                    return present(lease.id)
                return in_map(path[1:], lease.labels) if path[0] == "labels" else None

            return adapt

        return [lease for lease in map(_from_row, rows) if accept(adaptor(lease))]

    def add(self, namespace: str, id: str, resource: leases_pb2.Resource) -> None:
        """Have a lease hold a containerd.services.leases.v1.Resource, whether it is there or not.

        Raises InvalidArgument for a bad type or id, Unimplemented for a type that no store has."""
        kind = _resource_type(resource)
        with self._database.transaction():
            self.hold(namespace, id, kind, resource.id)

    def remove(self, namespace: str, id: str, resource: leases_pb2.Resource) -> None:
        """Have a lease let go of a resource; nothing happens where it does not hold it. As `add`."""
        kind = _resource_type(resource)
        with self._database.transaction() as execute:
            self._require(namespace, id)
            execute(
                "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = ? AND resource = ?",
                (namespace, id, kind, resource.id),
            )
        self._database.mutated()

    def resources(self, namespace: str, id: str) -> Sequence[leases_pb2.Resource]:
        """What a lease holds, by type and id."""
        self._require(namespace, id)
        rows = self._database.all(
            "SELECT resource, type FROM lease_resources WHERE namespace = ? AND lease = ? ORDER BY type, resource",
            (namespace, id),
        )
        return [leases_pb2.Resource(id=str(resource), type=str(kind)) for resource, kind in rows]

    def _require(self, namespace: str, id: str) -> None:
        if not self._database.one("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, id)):
            raise NotFound(f'lease "{id}"')

    # Within the transaction of a store that creates or removes what is held:

    def hold(self, namespace: str, lease: str, kind: str, resource: str) -> bool:
        """Have a lease hold what is being made, `kind` as in lease_resources; False without a lease ("")."""
        if not lease:
            return False
        self._require(namespace, lease)
        with self._database.transaction() as execute:
            execute("INSERT OR IGNORE INTO lease_resources VALUES (?, ?, ?, ?)", (namespace, lease, kind, resource))
        return True

    def release(self, namespace: str, kind: str, resource: str) -> None:
        """Take a resource that is gone from every lease."""
        with self._database.transaction() as execute:
            execute(
                "DELETE FROM lease_resources WHERE namespace = ? AND type = ? AND resource = ?",
                (namespace, kind, resource),
            )
