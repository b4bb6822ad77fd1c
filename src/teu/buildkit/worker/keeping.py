# SPDX-License-Identifier: Apache-2.0
"""How records end: when the last holder goes, when they are pruned, and what a start finds after a crash.

A removal can stop anywhere and be gone through again:

    1. cache.db: the record is dying, no result leads to it     4. its lease goes, and with it what only that held
    2. its views go                                             5. cache.db: the record is gone
    3. its own snapshot goes
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from teu.buildkit.cache.store import UNKNOWN
from teu.buildkit.core import errors
from teu.buildkit.core.op import Gone
from teu.buildkit.core.snapshots import Kind
from teu.buildkit.worker.layers import Layers
from teu.buildkit.worker.names import Names
from teu.buildkit.worker.records import DIFF, MERGE, SYNCED, Entry, Records, chain
from teu.buildkit.worker.snapshots import Info
from teu.buildkit.worker.trees import Trees
from teu.oci.labels import LEAN

log = logging.getLogger("teu.buildkit")

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    """Which boot of the host this is."""
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


class Keeping:
    """`boot`: which boot of the host this is, by any name."""

    def __init__(self, records: Records, trees: Trees, layers: Layers, boot: str) -> None:
        self.records = records
        self.trees = trees
        self.names = trees.names
        trees.dropped = self.drop
        self.layers = layers
        self._boot = boot
        self._lock = threading.Lock()
        self._unfinished: set[str] = set()  # removals that containerd did not let be done

    # Retained trees

    def synced(self, twin: Entry) -> Entry:
        """The retained tree as it is now, as a record that no longer changes. The caller holds both."""
        kind = Kind(twin.record.kind, twin.record.description)
        entry = self.records.new(kind, twin.parents, details={"how": SYNCED, "twin": twin.id, "boot": self._boot})
        with self.records.lock:
            entry.twin, twin.twin = twin, entry
        self.records.save(entry)
        return entry

    def as_synced(self, entry: Entry) -> Entry:
        """A retained tree as one that does not change, for the caller to hold. Raises Gone while somebody changes
        it."""
        with self.records.lock:
            if entry.dead or entry.count or not entry.record.retained:
                raise Gone(f"{entry.id} is being changed")
            twin = entry.twin
            if twin is not None and self.records.hold(twin):
                return twin
            return self.synced(entry)

    def reopened(self, entry: Entry) -> bool:
        """Let the caller hold a retained tree that nobody has, to change it: what was synced of it is gone then."""
        with self.records.lock:
            if entry.dead or entry.count or not entry.record.retained or not entry.record.mutable:
                return False
            synced = entry.twin
            if synced is not None and (synced.count or synced.children):
                return False
            entry.count += 1
            if synced is not None:
                self.records.bury(synced)
        if synced is not None:
            entry.tree = self.records.tree(synced)
            entry.tree.dirty = True
            self.records.store.give_up([synced.id], durable=False)
            self.records.store.remove(synced.id)
            if synced.leased:
                self.trees.leases.delete(self.trees.leases.of(synced.id))
        entry.mounts = None
        return True

    # Ends

    def drop(self, entry: Entry) -> None:
        """One holder less. Nobody will ask for what no result leads to: that goes."""
        if self.records.drop(entry):
            return
        self._forget_sources(entry)
        todo = [entry]
        while todo:
            one = todo.pop()
            try:
                if self._wanted(one) or not self.remove(one):
                    if not one.record.mutable:
                        self.trees.let_go(one)
                    continue
            except errors.Error as error:
                log.warning("record %s: %s", one.id, error)
                continue
            # What only this one stood on goes with it.
            todo += [parent for parent in dict.fromkeys(one.parents) if not parent.count and not parent.children]

    def _wanted(self, entry: Entry) -> bool:
        """Whether somebody may ask for it by its name. What was synced lives as long as its tree."""
        return entry.record.retained or entry.how == SYNCED or self.records.store.leads_to(entry.id)

    def _forget_sources(self, entry: Entry) -> None:
        """Where layers can be fetched from is known by who wanted the image, and holds no longer than that: whoever
        wants it next says it again."""
        with self.records.lock:
            for unit in chain(entry):
                if not unit.count and (unit is entry or unit.children == 1):
                    unit.fetches.clear()
                    unit.tell = None

    def drop_unmade(self, entry: Entry) -> None:
        """An entry whose making failed: nothing of it stays."""
        self.records.drop(entry)
        self.remove(entry)

    def remove(self, entry: Entry) -> bool:
        """Remove a record that nobody holds and nothing stands on. False where somebody does."""
        with self.records.lock:
            twin = entry.twin
            # They share their files; the synced one alone is only a name for them.
            shares = twin is not None and entry.how != SYNCED
            if shares and twin is not None and (twin.count or twin.children):
                return False
            if not self.records.bury(entry):
                return False
            both = shares and twin is not None and self.records.bury(twin)
        if both and twin is not None:
            self.records.store.give_up([twin.id], durable=False)
            self.records.store.remove(twin.id)
        self._finish(entry)
        return True

    def _finish(self, entry: Entry) -> None:
        try:
            if entry.stored:
                self.records.store.give_up([entry.id], durable=False)
            self._clear(entry.id, entry)
            if entry.stored:
                self.records.store.remove(entry.id)
        except errors.Error as error:
            log.warning("record %s is not removed yet: %s", entry.id, error)
            with self._lock:
                self._unfinished.add(entry.id)

    def _clear(self, name: str, entry: Entry | None = None) -> None:
        """What containerd has of a record; again and again, if need be."""
        snapshots, leases = self.trees.snapshots, self.trees.leases
        if entry is None or entry.view:
            snapshots.remove(self.names.view + name)
        if entry is None or entry.record.mutable:
            snapshots.remove(self.names.active + name)
        if entry is None or entry.snapshot == self.names.committed + name:
            with suppress(errors.FailedPrecondition):  # somebody else stands on it: it is garbage after that one
                snapshots.remove(self.names.committed + name)
        if entry is None or entry.leased:
            leases.delete(leases.of(name))

    def finish(self) -> None:
        """Removals that could not be done before."""
        with self._lock:
            names, self._unfinished = self._unfinished, set()
        for name in names:
            try:
                self._clear(name)
                self.records.store.remove(name)
            except errors.Error:
                with self._lock:
                    self._unfinished.add(name)

    # Sizes

    def measure(self, entry: Entry) -> int:
        """Bytes of its own; counted where nobody has counted yet."""
        if entry.record.size != UNKNOWN:
            return entry.record.size
        with entry.lock:
            size = self._count(entry)
            if not (entry.record.mutable and entry.count):
                self.records.change(entry, size=size)
            return size

    def _count(self, entry: Entry) -> int:
        size = 0
        name = entry.snapshot
        if entry.record.mutable:
            name = self.names.active + entry.id
        elif entry.how == SYNCED and not name:
            return self._count(entry.twin) if entry.twin is not None else 0
        if name and not (entry.how in (MERGE, DIFF) and name != self.names.committed + entry.id):
            with suppress(errors.NotFound):
                size += self.trees.snapshots.usage(name)
        for blob in (entry.blob, *(entry.details.get("blobs") or {}).values()):
            if blob is not None:
                with suppress(errors.NotFound):
                    info = self.trees.content.info(str(blob["digest"]))
                    if LEAN not in info.labels:
                        size += int(info.size)
        return size

    # After a crash

    def start(self) -> None:
        """Bring cache.db and containerd together: removals that were begun are ended, records without files are given
        up, and what is nobody's any more goes. Nothing is built meanwhile."""
        store, snapshots = self.records.store, self.trees.snapshots
        broken = self.records.load()
        there = {info.name: info for info in snapshots.all()}
        leases = set(self.trees.leases.listed())
        for record in store.records(dying=True):
            self._again(record.id)
        for entry in sorted(self.records.all(), key=lambda entry: entry.record.created, reverse=True):
            entry.leased = self.trees.leases.of(entry.id) in leases
            if not self._whole(entry, there):
                self._give_up(entry)
            elif entry.how == SYNCED and entry.details.get("boot") != self._boot:
                # Nobody had the files of a retained tree written to the disk before what is known of them: after a
                # power cut either may be the older one. They are hashed again, which is less than to make them sure
                # in each build.
                store.forget_tree(entry.id)
        known = {entry.id: entry for entry in self.records.all()}
        self._remove_orphans(
            {
                name: info
                for name, info in there.items()
                if name.startswith(self.names.prefix) and not _known(name, known, self.names)
            }
        )
        for lease in leases:
            if lease.startswith(self.names.work) or lease.removeprefix(self.names.lease) not in known:
                with suppress(errors.Error):
                    self.trees.leases.delete(lease)
        gone = self.trees.content.sweep()
        lost = store.forget_lost()
        if broken or gone or lost:
            log.info("after the last end: %d records, %d results and %d blobs were not whole", len(broken), lost, gone)

    def _again(self, name: str) -> None:
        try:
            self._clear(name)
            self.records.store.remove(name)
        except errors.Error as error:
            log.warning("record %s is not removed yet: %s", name, error)
            with self._lock:
                self._unfinished.add(name)

    def _whole(self, entry: Entry, there: Mapping[str, object]) -> bool:
        """Whether a record has what it says."""
        if entry.record.mutable:
            return entry.record.retained and self.names.active + entry.id in there
        if entry.how == SYNCED:
            name = self.names.committed + entry.id
            if name in there:  # it was being settled
                entry.details |= {"snapshot": name, "how": "layer"}
                entry.details.pop("twin", None)
                entry.twin = None
                self.records.change(entry)
                return True
            return entry.twin is not None and self.names.active + entry.twin.id in there
        name = entry.snapshot
        if name.startswith(self.names.committed) and name not in there:
            if entry.how == "layer":
                return False
            name = ""
        if name and name not in there:
            name = ""
        if name != entry.snapshot:
            entry.details["snapshot"] = name
            entry.details.pop("checked", None)
            self.records.change(entry)
        return True

    def _give_up(self, entry: Entry) -> None:
        """With all that stands on it."""
        todo = [entry]
        while todo:
            one = todo[-1]
            above = [
                other
                for other in self.records.all()
                if one in other.parents or other.twin is one and other.how == SYNCED
            ]
            if above:
                todo += above
                continue
            todo.pop()
            if self.records.bury(one):
                self.records.store.give_up([one.id], durable=False)
                self._again(one.id)

    def _remove_orphans(self, orphans: dict[str, Info]) -> None:
        """Those that stand on others first."""
        children = Counter(info.parent for info in orphans.values())
        todo = [name for name in orphans if not children[name]]
        while todo:
            name = todo.pop()
            try:
                self.trees.snapshots.remove(name)
            except errors.FailedPrecondition:
                continue  # somebody else stands on it: it is garbage after that one
            except errors.Error as error:
                log.warning("snapshot %s: %s", name, error)
                continue
            parent = orphans[name].parent
            children[parent] -= 1
            if parent in orphans and not children[parent]:
                todo.append(parent)


def _known(name: str, known: dict[str, Entry], names: Names) -> bool:
    """Whether a snapshot of ours is a record's. Views and what is being unpacked are only a running builder's."""
    if name.startswith((names.view, names.extract)):
        return False
    if name.startswith(names.active):
        entry = known.get(name.removeprefix(names.active))
        return entry is not None and entry.record.mutable
    return name.removeprefix(names.committed) in known
