# SPDX-License-Identifier: Apache-2.0
"""Snapshots as a namespace sees them, over the snapshotters, which know no namespaces.

A client's key is mapped to a name that is unique in the snapshotter: NAMESPACE/NUMBER/KEY. Labels are the
namespace's; only those that concern the snapshotter (containerd.io/snapshot...) are handed down. Removing takes the
snapshot out of the namespace at once; the snapshotter's own follows with the next garbage collection.

Two keys may be of one snapshot: who prepares what REFERENCE_LABEL names may say, in SAME_AS, which committed snapshot
of the namespace has the same files. Each key is held and removed for itself; the files go with the last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from teu.api.events import snapshot_pb2 as snapshot_events
from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.containerd.core.database import Database, dump_labels, now, set_timestamp
from teu.containerd.core.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound, Unknown
from teu.containerd.core.events import Exchange
from teu.containerd.core.filters import Adaptor, in_map, parse_all
from teu.containerd.core.messages import Mount
from teu.containerd.core.rows import Row, plain_labels
from teu.containerd.snapshotters.interface import (
    ACTIVE,
    COMMITTED,
    INHERITED_PREFIX,
    KIND_WORDS,
    REFERENCE_LABEL,
    Info,
    Snapshotter,
    Usage,
)
from teu.containerd.stores.lean import Lean
from teu.containerd.stores.leases import Leases
from teu.oci.labels import SAME_AS

log = logging.getLogger("teu.containerd.snapshots")


def inherited(labels: dict[str, str]) -> dict[str, str]:
    """Those of a namespace's labels that concern the snapshotter."""
    return {key: value for key, value in labels.items() if key.startswith(INHERITED_PREFIX) or key == REFERENCE_LABEL}


def to_wire(info: Info) -> snapshots_pb2.Info:
    """containerd.services.snapshots.v1.Info of a snapshot."""
    message = snapshots_pb2.Info(name=info.name, parent=info.parent, kind=info.kind, labels=info.labels)
    set_timestamp(message.created_at, info.created)
    set_timestamp(message.updated_at, info.updated)
    return message


def adaptor(info: Info) -> Adaptor:
    """What filters may ask of a snapshot: kind, name, parent, labels."""

    def adapt(path: Sequence[str]) -> str | None:
        match path[0]:
            case "kind":
                return KIND_WORDS.get(info.kind)
            case "name":
                return info.name
            case "parent":
                return info.parent
            case "labels":
                return in_map(path[1:], info.labels)
        return None

    return adapt


class Snapshots:
    """containerd.services.snapshots.v1, without its wire; `snapshotter` is always a name.

    A method raises NotFound for a snapshot that does not exist, InvalidArgument for a snapshotter that there is not or
    for a bad message, FailedPrecondition for a change to a damaged record, and the snapshotter's own errors."""

    def __init__(
        self,
        database: Database,
        events: Exchange,
        leases: Leases,
        snapshotters: dict[str, Snapshotter],
        lean: Lean,
    ) -> None:
        self._database = database
        self._events = events
        self._leases = leases
        self.snapshotters = snapshotters
        self._lean = lean
        lean.changes = lambda snapshotter, name: self.snapshotter(snapshotter).changes(name)

    def snapshotter(self, name: str) -> Snapshotter:
        """The snapshotter of that name."""
        if not name:
            raise InvalidArgument("snapshotter argument missing")
        try:
            return self.snapshotters[name]
        except KeyError:
            raise InvalidArgument(f"snapshotter not loaded: {name}") from None

    def _scope(self, snapshotter: Snapshotter) -> AbstractContextManager[Any]:
        """One transaction with the snapshotter's own, where it is in the same database."""
        return self._database.transaction() if snapshotter.local else nullcontext()

    def _row(self, namespace: str, snapshotter: str, key: str) -> Any:
        row = self._database.one(
            "SELECT backend, parent, labels, created, updated FROM snapshots "
            "WHERE namespace = ? AND snapshotter = ? AND key = ?",
            (namespace, snapshotter, key),
        )
        if row is None:
            raise NotFound(f"snapshot {key} does not exist")
        return row

    def _merge(self, key: str, row: Any, inner: Info) -> Info:
        read = Row(f"snapshot {key}")
        parent, labels = read.text(row[1], "parent"), read.labels(row[2])
        created, updated = read.number(row[3], "created"), read.number(row[4], "updated")
        return Info(key, parent, inner.kind, {**inner.labels, **read.told(labels)}, created, updated)

    def _behind(self, backend: Snapshotter, namespace: str, key: str, row: Any) -> Info:
        """What the snapshotter knows of it. A built-in one has it as long as there is the row, if all is well."""
        try:
            return backend.stat(row[0])
        except NotFound:
            if not backend.local or not self._database.one(
                "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
                (namespace, backend.name, key),
            ):
                raise
            read = Row(f"snapshot {key}")
            read.faults.append("backend leads nowhere")
            return Info(key, "", ACTIVE, read.told({}), 0, 0)

    def stat(self, namespace: str, snapshotter: str, key: str) -> Info:
        """The snapshot `key`, as the namespace sees it."""
        backend = self.snapshotter(snapshotter)
        row = self._row(namespace, snapshotter, key)
        return self._merge(key, row, self._behind(backend, namespace, key, row))

    def mounts(self, namespace: str, snapshotter: str, key: str) -> list[Mount]:
        """The mounts of an active or view snapshot."""
        backend = self.snapshotter(snapshotter)
        return backend.mounts(self._row(namespace, snapshotter, key)[0])

    def usage(self, namespace: str, snapshotter: str, key: str) -> Usage:
        """Bytes and inodes of the snapshot alone, without its parents."""
        backend = self.snapshotter(snapshotter)
        return backend.usage(self._row(namespace, snapshotter, key)[0])

    def find(self, namespace: str, snapshotter: str, filters: Sequence[str] = ()) -> Iterator[Info]:
        """The snapshots that one of the filters lets through, by key; all of them without filters."""
        backend = self.snapshotter(snapshotter)
        accept = parse_all(filters)
        rows = self._database.all(
            "SELECT backend, parent, labels, created, updated, key FROM snapshots "
            "WHERE namespace = ? AND snapshotter = ? ORDER BY key",
            (namespace, snapshotter),
        )
        for row in rows:
            try:
                info = self._merge(row[5], row, self._behind(backend, namespace, row[5], row))
            except NotFound:
                continue
            if accept(adaptor(info)):
                yield info

    def update(self, namespace: str, snapshotter: str, wanted: snapshots_pb2.Info, paths: Sequence[str]) -> Info:
        """Change the labels that `paths` name (labels, labels.KEY), all without any; the changed snapshot."""
        backend = self.snapshotter(snapshotter)
        if not wanted.name:
            raise InvalidArgument("snapshot name is required")
        with self._scope(backend), self._database.transaction() as execute:
            row = self._row(namespace, snapshotter, wanted.name)
            labels = plain_labels(row[2])
            if labels is None:
                raise FailedPrecondition(f"snapshot {wanted.name} is damaged and can only be removed: its labels")
            for path in paths or ("labels",):
                if path == "labels":
                    labels = dict(wanted.labels)
                elif path.startswith("labels."):
                    key = path[len("labels.") :]
                    labels[key] = wanted.labels.get(key, "")
                    if not labels[key]:
                        del labels[key]
                else:
                    raise InvalidArgument(f'cannot update "{path}" field on snapshot "{wanted.name}"')
            execute(
                "UPDATE snapshots SET labels = ?, updated = ? WHERE namespace = ? AND snapshotter = ? AND key = ?",
                (dump_labels(labels), now(), namespace, snapshotter, wanted.name),
            )
            backend.update(row[0], inherited(labels))
        return self.stat(namespace, snapshotter, wanted.name)

    def prepare(
        self, namespace: str, snapshotter: str, key: str, parent: str, labels: dict[str, str], lease: str = ""
    ) -> list[Mount]:
        """Make an active snapshot over a committed one; its mounts. It is held by the lease, if one is named.

        Raises AlreadyExists for a key in use, and for content that REFERENCE_LABEL asks for and that is there already;
        it is the namespace's then."""
        mounts = self._create(namespace, snapshotter, key, parent, labels, lease, readonly=False)
        event = snapshot_events.SnapshotPrepare(key=key, parent=parent, snapshotter=snapshotter)
        self._events.publish(namespace, "/snapshot/prepare", event)
        return mounts

    def view(
        self, namespace: str, snapshotter: str, key: str, parent: str, labels: dict[str, str], lease: str = ""
    ) -> list[Mount]:
        """Make a read-only snapshot of a committed one; as `prepare`."""
        return self._create(namespace, snapshotter, key, parent, labels, lease, readonly=True)

    def _create(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        labels: dict[str, str],
        lease: str,
        *,
        readonly: bool,
    ) -> list[Mount]:
        backend = self.snapshotter(snapshotter)
        if not key:
            raise InvalidArgument("snapshot key must not be empty")
        encoded = dump_labels(labels)
        target = labels.get(REFERENCE_LABEL, "")
        taken: Error | None = self._taken(namespace, snapshotter, target, key, lease)
        if taken:
            raise taken
        if target and not readonly and self._second_key(namespace, backend, target, parent, labels, lease):
            raise AlreadyExists(f'target snapshot "{target}" from "{labels[SAME_AS]}"')
        with self._scope(backend):
            above = self._row_of_parent(namespace, snapshotter, parent) if parent else ""
            name = f"{namespace}/{self._number()}/{key}"
            make = backend.view if readonly else backend.prepare
            try:
                mounts = make(name, above, inherited(labels))
            except AlreadyExists as error:
                if not target:
                    raise Unknown(f"unexpected error from snapshotter: {error.message}") from None
                mounts = []
            if not mounts and target:
                taken = self._adopt(namespace, backend, target, parent, above, labels, lease)
            else:
                try:
                    stamp = now()
                    self._insert(namespace, snapshotter, key, parent, name, encoded, stamp, stamp, lease)
                except BaseException:
                    if not backend.local:
                        backend.remove(name)
                    raise
        if taken:
            raise taken
        return mounts

    def _second_key(
        self, namespace: str, backend: Snapshotter, target: str, parent: str, labels: dict[str, str], lease: str
    ) -> bool:
        """Let `target` be one more key of the snapshot that SAME_AS names. False where nothing is named, and where that
        one is not committed or does not stand on the parent: then it is made as any other."""
        same = labels.get(SAME_AS)
        if not same:
            return False
        with self._scope(backend):
            try:
                row = self._row(namespace, backend.name, same)
                above = self._row_of_parent(namespace, backend.name, parent) if parent else ""
                inner = backend.stat(row[0])
            except NotFound:
                return False
            if inner.kind != COMMITTED or inner.parent != above:
                return False
            own = {key: value for key, value in labels.items() if key != SAME_AS}
            stamp = now()
            encoded = dump_labels(own)
            self._insert(namespace, backend.name, target, parent, row[0], encoded, stamp, stamp, lease)
        return True

    def _number(self) -> int:
        with self._database.transaction(durable=False) as execute:
            execute(
                "INSERT INTO meta VALUES ('snapshot', '1') "
                "ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
            )
            return int(execute("SELECT value FROM meta WHERE key = 'snapshot'").fetchone()[0])

    def _taken(self, namespace: str, snapshotter: str, target: str, key: str, lease: str) -> AlreadyExists | None:
        """The error for a name in use, after the lease has got hold of it."""
        for name, words in ((target, "target snapshot"), (key, "snapshot")):
            if name and self._database.one(
                "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
                (namespace, snapshotter, name),
            ):
                with self._database.transaction():
                    self._leases.hold(namespace, lease, f"snapshots/{snapshotter}", name)
                return AlreadyExists(f'{words} "{name}"')
        return None

    def _row_of_parent(self, namespace: str, snapshotter: str, parent: str) -> str:
        try:
            return str(self._row(namespace, snapshotter, parent)[0])
        except NotFound:
            raise NotFound(f"parent snapshot {parent} does not exist") from None

    def _insert(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        backend: str,
        labels: str,
        created: int,
        updated: int,
        lease: str,
    ) -> None:
        with self._database.transaction() as execute:
            self._database.ensure_namespace(namespace)
            if parent:
                self._row_of_parent(namespace, snapshotter, parent)  # it may have gone meanwhile
            self._leases.hold(namespace, lease, f"snapshots/{snapshotter}", key)
            if execute(
                "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
                (namespace, snapshotter, key),
            ).fetchone():
                raise AlreadyExists(f'snapshot "{key}"')
            execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (namespace, snapshotter, key, parent, backend, labels, created, updated),
            )

    def _adopt(
        self,
        namespace: str,
        backend: Snapshotter,
        target: str,
        parent: str,
        above: str,
        labels: dict[str, str],
        lease: str,
    ) -> Error:
        """A remote snapshotter has the wanted layer already, under a name of its own: the namespace takes it over."""
        for info in backend.walk():
            if info.kind == COMMITTED and info.labels.get(REFERENCE_LABEL) == target and info.parent == above:
                break
        else:
            return NotFound(f'target snapshot "{target}" in backend')
        merged = dump_labels({**info.labels, **labels})
        try:
            self._insert(namespace, backend.name, target, parent, info.name, merged, info.created, info.updated, lease)
        except AlreadyExists as error:
            return error
        return AlreadyExists(f'target snapshot "{target}" from snapshotter')

    def commit(
        self,
        namespace: str,
        snapshotter: str,
        name: str,
        key: str,
        labels: dict[str, str],
        parent: str = "",
        lease: str = "",
    ) -> None:
        """The active snapshot `key` becomes the committed `name`, durably, held by the lease. AlreadyExists for a name
        in use."""
        backend = self.snapshotter(snapshotter)
        if not name:
            raise InvalidArgument("snapshot name must not be empty")
        encoded = dump_labels(labels)
        taken = self._taken(namespace, snapshotter, "", name, lease)
        if taken:
            raise taken
        row = self._row(namespace, snapshotter, key)
        backend.settle(row[0])
        with self._database.transaction() as execute:
            row = self._row(namespace, snapshotter, key)
            over = row[1] or parent
            above = self._row_of_parent(namespace, snapshotter, over) if over else ""
            inner = f"{namespace}/{self._number()}/{name}"
            stamp = now()
            self._insert(namespace, snapshotter, name, over, inner, encoded, stamp, stamp, lease)
            execute(
                "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
                (namespace, snapshotter, key),
            )
            self._leases.release(namespace, f"snapshots/{snapshotter}", key)
            backend.commit(inner, row[0], inherited(labels), above if not row[1] else "")
        event = snapshot_events.SnapshotCommit(key=key, name=name, snapshotter=snapshotter)
        self._events.publish(namespace, "/snapshot/commit", event)

    def remove(self, namespace: str, snapshotter: str, key: str) -> None:
        """Take a snapshot from the namespace; FailedPrecondition while it is a parent. Its files go with `collect`."""
        self.snapshotter(snapshotter)
        with self._database.transaction() as execute:
            self._row(namespace, snapshotter, key)
            if execute(
                "SELECT 1 FROM snapshots "
                "WHERE namespace = ? AND snapshotter = ? AND parent = ? AND key != parent LIMIT 1",
                (namespace, snapshotter, key),
            ).fetchone():
                raise FailedPrecondition("cannot remove snapshot with child")
            execute(
                "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
                (namespace, snapshotter, key),
            )
            self._leases.release(namespace, f"snapshots/{snapshotter}", key)
        self._database.mutated(files=True)
        event = snapshot_events.SnapshotRemove(key=key, snapshotter=snapshotter)
        self._events.publish(namespace, "/snapshot/remove", event)

    def collect(self) -> None:
        """Remove from the snapshotters what no namespace has any more, children first, and their files."""
        for backend in self.snapshotters.values():
            try:
                self._prune(backend)
                backend.cleanup()
            except Exception as error:
                log.error("clean up snapshotter %s: %s", backend.name, error)

    def lender(self, folder: str) -> tuple[str, str]:
        """(Snapshotter, snapshot, by its name there) of the committed one whose own changes are in the folder; two
        times "" for another."""
        for backend in self.snapshotters.values():
            if name := backend.committed(folder):
                return backend.name, name
        return "", ""

    def _prune(self, backend: Snapshotter) -> None:
        if not backend.local:
            self._remove_unused(backend, set())
            return
        with self._lean.lock:
            self._remove_unused(backend, self._lean.needed(backend.name))

    def _remove_unused(self, backend: Snapshotter, lent: set[str]) -> None:
        """`lent`: what stays besides what namespaces have."""
        with self._database.frozen() if backend.local else nullcontext():
            infos = list(backend.walk())
            used = {
                row[0]
                for row in self._database.all("SELECT backend FROM snapshots WHERE snapshotter = ?", (backend.name,))
            }
        if backend.local and (lost := used - {info.name for info in infos}):
            # One that is being used may be the one that its record does not lead to any more.
            log.error(
                "no snapshot is removed from %s while a record in metadata.db leads nowhere: remove the snapshot whose "
                "backend is %s",
                backend.name,
                ", ".join(repr(name) for name in sorted(lost, key=str)),
            )
            return
        needed = used | lent
        parents = {info.name: info.parent for info in infos}
        for name in used | lent:  # whatever is above something in use stays
            while (name := parents.get(name, "")) and name not in needed:
                needed.add(name)
        doomed = [info for info in infos if info.name not in needed]
        if not doomed:
            return
        children: dict[str, int] = {}
        for info in infos:
            children[info.parent] = children.get(info.parent, 0) + 1
        # Leaves first. A snapshot being made right now has its backend before its row: leave what is younger than
        # the start of this collection to the next one.
        pending = {info.name: info for info in doomed}
        progress = True
        while pending and progress:
            progress = False
            for name in list(pending):
                if children.get(name):
                    continue
                info = pending.pop(name)
                if not backend.local and now() - info.created < 60_000_000_000:
                    continue
                try:
                    backend.remove(name)
                except NotFound:
                    pass
                children[info.parent] = children.get(info.parent, 1) - 1
                progress = True
