# SPDX-License-Identifier: Apache-2.0
"""Who holds what: core.snapshots.Snapshot and Active over the worker's records."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from teu.buildkit.cache.contenthash import Tree
from teu.buildkit.cache.store import UNKNOWN
from teu.buildkit.core import errors
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import Compression, Descriptor, History, Mount
from teu.buildkit.worker.keeping import Keeping
from teu.buildkit.worker.records import Entry, chain


class Ref:
    """core.snapshots.Snapshot: one holder of a record. `release` it once; what else is released then does nothing."""

    def __init__(self, keeping: Keeping, entry: Entry) -> None:
        """The entry is held already; that is this one's from now on."""
        self._keeping = keeping
        self.entry = entry
        self._lock = threading.Lock()
        self._released = False

    @property
    def id(self) -> str:
        return self.entry.id

    def describe(self) -> str:
        return self.entry.record.description

    def clone(self) -> Ref:
        with self._lock:
            if self._released or not self._keeping.records.hold(self.entry):
                raise errors.Internal(f"{self.id} was released before it was cloned")
            return Ref(self._keeping, self.entry)

    def release(self) -> None:
        with self._lock:
            if self._released:
                return
            self._released = True
        self._keeping.drop(self.entry)

    # Files

    def mounts(self) -> list[Mount]:
        return self._keeping.trees.mounts(self.entry)

    @contextmanager
    def mounted(self) -> Iterator[str]:
        with self._keeping.trees.mounted(self.entry) as place:
            yield place

    def checksum(self, selections: Sequence[Selection]) -> str:
        entry, store = self.entry, self._keeping.records.store
        tree = self._keeping.records.tree(entry)
        with self.mounted() as place:
            root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                found = tree.checksums(root, selections)
            finally:
                os.close(root)
        if entry.stored:
            store.keep_tree(entry.id, tree)
        return found

    # Layers

    def layers(self, compression: Compression | None, *, make: bool = True) -> list[Descriptor] | None:
        return self._keeping.layers.all(chain(self.entry), compression, make)

    def history(self) -> list[History]:
        return [
            History(str(unit.details["history"]))
            if unit.details.get("history")
            else History(unit.record.description, unit.record.created)
            for unit in chain(self.entry)
        ]

    def size(self) -> int:
        return self._keeping.measure(self.entry)


class ActiveRef:
    """core.snapshots.Active."""

    def __init__(self, keeping: Keeping, entry: Entry) -> None:
        """The entry is held already; that is this one's from now on."""
        self._keeping = keeping
        self.entry = entry
        self._lock = threading.Lock()
        self._ended = False

    @property
    def id(self) -> str:
        return self.entry.id

    def mounts(self) -> list[Mount]:
        return self._keeping.trees.changing(self.entry)

    @contextmanager
    def mounted(self) -> Iterator[str]:
        with self._keeping.trees.places.mounted(self.mounts()) as place:
            yield place

    @property
    def tree(self) -> Tree:
        return self._keeping.records.tree(self.entry)

    def note(self, **data: Any) -> None:
        records, entry = self._keeping.records, self.entry
        with entry.lock:
            entry.record = replace(entry.record, data={**entry.record.data, **data})
            records.change(entry)

    def _end(self) -> None:
        with self._lock:
            if self._ended:
                raise errors.Internal(f"{self.id} was committed or released before")
            self._ended = True

    def commit(self) -> Ref:
        self._end()
        keeping, entry = self._keeping, self.entry
        try:
            if not entry.record.retained:
                keeping.trees.commit(entry)
                keeping.records.use(entry)
                keeping.records.save(entry)
                return Ref(keeping, entry)
            synced = keeping.synced(entry)
        except BaseException:
            keeping.drop(entry)
            raise
        synced.tree, entry.tree = entry.tree, None
        if synced.tree is not None:
            # It is this record's now, under whose name it has to be written.
            synced.tree.dirty = True
        try:
            keeping.records.change(entry, size=UNKNOWN)
        except BaseException:
            keeping.drop(synced)
            raise
        finally:
            keeping.drop(entry)
        return Ref(keeping, synced)

    def release(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        entry = self.entry
        try:
            if entry.record.retained:
                self._keeping.records.change(entry, size=UNKNOWN)
        finally:
            self._keeping.drop(entry)

    def discard(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._keeping.drop_unmade(self.entry)
