# SPDX-License-Identifier: Apache-2.0
"""From a record to files: what an image has is fetched and unpacked, what is merged is put together, when it is needed.

Snapshots in containerd, by name:

    sha256:…                      a chain id: an image's layers up to there, shared with the engine and whoever else
    buildkit-X-ID                   what a build made: committed
    buildkit-X-active-ID            what is being made, and what is retained to be changed again
    buildkit-X-view-ID              a view of the record's, while somebody reads it
    buildkit-X-extract-Y sha256:…   a layer that is being unpacked

X is the builder's own word (names.py). Each is held by the lease of its record.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import new_id
from teu.buildkit.core.op import Gone
from teu.buildkit.core.snapshots import Descriptor, Mount
from teu.buildkit.worker import merging, mounting
from teu.buildkit.worker.content import ContentStore, Exclusive
from teu.buildkit.worker.leases import Leases
from teu.buildkit.worker.records import DIFF, LAYER, MERGE, SYNCED, Entry, Records, below, chain
from teu.buildkit.worker.snapshots import SNAPSHOT_REF, Snapshots
from teu.oci.labels import SAME_AS, UNCOMPRESSED

OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
log = logging.getLogger("teu.buildkit")

FETCHES = 4  # layers that are fetched at the same time
STABLE = ("overlayfs", "native")  # snapshotters whose folders are the same ones after a commit


class Trees:
    def __init__(
        self, records: Records, snapshots: Snapshots, content: ContentStore, leases: Leases, places: mounting.Places
    ) -> None:
        self.records = records
        self.snapshots = snapshots
        self.content = content
        self.leases = leases
        self.names = leases.names
        self.places = places
        self._unpacking = Exclusive()
        self.dropped: Callable[[Entry], object] = records.drop  # what is done with an entry that is held no longer
        self._linking = threading.local()
        self._probing = threading.Lock()
        self._hides: bool | None = None

    # Leases

    def lease(self, entry: Entry) -> str:
        """The record's lease, which is there when this returns."""
        with entry.leasing:
            if not entry.leased:
                self.leases.create(entry.id)
                entry.leased = True
            return self.leases.of(entry.id)

    # To read

    def mounts(self, entry: Entry) -> list[Mount]:
        """The tree as a root that is only read. The caller holds the entry."""
        with entry.lock:
            if entry.how == SYNCED and not entry.snapshot:
                twin = entry.twin
                if twin is None:
                    raise errors.NotFound(f"{entry.id} has lost its files")
                return mounting.read_only(self.changing(twin))
            if entry.mounts is None:
                name = self.realize(entry)
                if entry.mounts is None:
                    key, lease = self.names.view + entry.id, self.lease(entry)
                    try:
                        entry.mounts = self.snapshots.view(key, name, lease)
                    except errors.AlreadyExists:
                        entry.mounts = self.snapshots.mounts(key)
                    entry.view = key
                    entry.mounts = mounting.read_only(entry.mounts)
            return list(entry.mounts)

    def let_go(self, entry: Entry) -> None:
        """Nobody reads it any more; unless somebody holds it again."""
        with entry.lock:
            if entry.count:
                return
            key, entry.view = entry.view, ""
            if key:
                entry.mounts = None
                with suppress(errors.Error):  # the next start finds it
                    self.snapshots.remove(key)

    @contextmanager
    def mounted(self, entry: Entry) -> Iterator[str]:
        with self.places.mounted(self.mounts(entry)) as place:
            yield place

    def read_mounts(self, entry: Entry | None) -> list[Mount]:
        return [] if entry is None else self.mounts(entry)

    # To write

    def changing(self, entry: Entry) -> list[Mount]:
        """The mounts of an active snapshot."""
        with entry.lock:
            if entry.mounts is None:
                entry.mounts = self.snapshots.mounts(self.names.active + entry.id)
            return list(entry.mounts)

    def prepare(self, entry: Entry) -> None:
        """The active snapshot of a new mutable entry."""
        parent = entry.parent
        name = self.realize(parent) if parent is not None else ""
        entry.mounts = self.snapshots.prepare(self.names.active + entry.id, name, self.lease(entry))
        if parent is not None and parent.mounts is None and self.snapshots.name == "overlayfs":
            # What is under a new overlay is what the parent is: no view is needed to read that.
            folders = mounting.overlay_folders(entry.mounts)
            if folders is not None and folders[1]:
                with parent.lock:
                    if parent.mounts is None:
                        parent.mounts = [mounting.stacked(folders[1], entry.mounts[0].options)]

    def commit(self, entry: Entry) -> None:
        """It no longer changes."""
        with entry.lock:
            name = self.names.committed + entry.id
            self.snapshots.commit(name, self.names.active + entry.id, self.lease(entry))
            mounts, entry.mounts = entry.mounts, None
            if mounts is not None and self.snapshots.name in STABLE:
                entry.mounts = mounting.read_only(mounts)
            entry.details["snapshot"] = name
            self.records.change(entry, mutable=False)

    # To stand on

    def realize(self, entry: Entry) -> str:
        """The name of its committed snapshot, which is there when this returns."""
        with entry.lock:
            if entry.how == SYNCED:
                return self._settle(entry)
            if entry.how in (MERGE, DIFF):
                if not entry.snapshot:
                    self._merge(entry)
                return entry.snapshot
            if entry.details.get("chain") and (not entry.checked or not entry.snapshot):
                if not entry.snapshot.startswith(self.names.committed):
                    self._unpack(entry)
                entry.checked = True
            return entry.snapshot

    def _settle(self, entry: Entry) -> str:
        """What was synced becomes a tree of its own, and the retained one that it shares is gone."""
        if entry.snapshot:
            return entry.snapshot
        twin = entry.twin
        if twin is None:
            raise errors.NotFound(f"{entry.id} has lost its files")
        with twin.lock:
            if twin.count:
                raise errors.FailedPrecondition(f"{twin.id} is being changed")
            name, lease = self.names.committed + entry.id, self.lease(entry)
            mounts = self.changing(twin)
            self.snapshots.commit(name, self.names.active + twin.id, lease)
            entry.details["snapshot"] = name
            if self.snapshots.name in STABLE:
                entry.mounts = mounting.read_only(mounts)
            entry.details.pop("twin", None)
            entry.details["how"] = "layer"
            self.records.save(entry)
            self.records.bury(twin)
            self.records.store.give_up([twin.id], durable=False)
            self.leases.delete(self.leases.of(twin.id))
            self.records.store.remove(twin.id)
            entry.twin = None
        return name

    # Images

    def available(self, entry: Entry) -> bool:
        """Whether its files are here, or can be had."""
        todo = [entry]
        while todo:
            one = todo.pop()
            if one.how in (MERGE, DIFF) and not one.snapshot:
                todo += one.parents
            elif not self._at_hand(one):
                return False
        return True

    def _at_hand(self, entry: Entry) -> bool:
        with entry.lock:
            name = str(entry.details.get("chain") or "")
            if entry.checked or not name or entry.snapshot.startswith(self.names.committed):
                return True
            if self.snapshots.stat(name) is not None:
                entry.checked = bool(entry.snapshot)
                return True
            return all(
                one.blob is not None
                and (str(one.blob["digest"]) in one.fetches or self.content.has(one.blob["digest"]))
                for one in chain(entry)
            )

    def _unpack(self, entry: Entry) -> None:
        """Have the chain's snapshot: what is missing of it is fetched and unpacked."""
        missing: list[Entry] = []
        for one in reversed(chain(entry)):
            name = one.snapshot or str(one.details.get("chain") or "")
            if not name or self.snapshots.stat(name) is None:
                missing.append(one)
                continue
            self._found(one, name)
            break
        missing.reverse()
        for one in missing:
            if not one.details.get("chain") or one.blob is None:
                raise Gone(f"the files of {one.id} are gone")
        while missing and self._linked(missing[0]):
            del missing[0]
        with _Fetching(self.fetch, missing) as fetching:
            for number, one in enumerate(missing):
                name = str(one.details["chain"])
                with self._unpacking(name):
                    if self.snapshots.stat(name) is None:
                        fetching.wait(number)
                        self._extract(one, name)
                self._found(one, name)

    def _linked(self, entry: Entry) -> bool:
        """Have a layer's snapshot of files that a build has already: where the blob was made of a record, its snapshot
        gets a second key, or its files are linked, not unpacked. False where it was not, or cannot be done."""
        blob, name = entry.blob, str(entry.details["chain"])
        assert blob is not None
        if getattr(self._linking, "now", False):
            return False  # an empty layer may be of a tree that it is a part of
        source = self.records.made_as(str(blob["digest"]), str(entry.details.get("diff_id") or ""))
        if source is None:
            return False
        self._linking.now = True
        try:
            with self._unpacking(name):
                if self.snapshots.stat(name) is None:
                    self._link(entry, name, source)
        except (errors.Error, OSError) as error:
            log.info("layer %s is unpacked: its files could not be linked: %s", blob["digest"], error)
            return False
        finally:
            self._linking.now = False
            self.dropped(source)
        self._found(entry, name)
        return True

    def _link(self, entry: Entry, name: str, source: Entry) -> None:
        """teu-containerd lets one snapshot have two keys, where both stand on the same; another daemon does not know of
        it, and has the files linked into a snapshot of its own."""
        parent = str(entry.parent.details["chain"]) if entry.parent is not None else ""
        key, lease = f"{self.names.extract}{new_id()} {name}", self.lease(entry)
        same = {SAME_AS: source.snapshot} if source.how == LAYER and source.snapshot else {}
        try:
            mounts = self.snapshots.prepare(key, parent, lease, {SNAPSHOT_REF: name, **same})
        except errors.AlreadyExists:
            if self.snapshots.stat(name) is None:
                raise
            return
        with self._committed(name, key, lease):
            upper = source if source.how != DIFF else source.parents[1] if len(source.parents) > 1 else None
            before, after = self.read_mounts(below(source)), self.read_mounts(upper)
            merging.apply(self.places, mounts, before, after, self._opaque)

    @contextmanager
    def _committed(self, name: str, key: str, lease: str) -> Iterator[None]:
        """What is prepared under the key is the layer `name` at the end, perhaps another client's; where it fails, it
        goes."""
        try:
            yield
            try:
                self.snapshots.commit(name, key, lease, {SNAPSHOT_REF: name})
            except errors.AlreadyExists:
                self.snapshots.remove(key)  # another client was quicker
        except BaseException:
            with suppress(errors.Error):
                self.snapshots.remove(key)
            raise

    def _found(self, entry: Entry, name: str) -> None:
        """Its snapshot is there, and has to stay."""
        with entry.lock:
            if entry.snapshot != name or not entry.leased:
                self.leases.hold_snapshot(self.lease(entry), name)
            entry.checked = True
            if entry.snapshot != name:
                entry.details["snapshot"] = name
                self.records.change(entry)

    def fetch(self, entry: Entry) -> Descriptor:
        """Have an entry's blob in the content store, held by its lease."""
        blob = entry.blob
        if blob is None:
            raise errors.NotFound(f"{entry.id} has no blob")
        fetch = entry.fetches.get(str(blob["digest"]))

        def nowhere(descriptor: Descriptor, offset: int) -> Iterator[bytes]:
            raise Gone(f"blob {descriptor['digest']} is gone, and it is not known where it came from")

        with self.leases.joined(self.lease(entry)):
            self.content.fetch(blob, fetch or nowhere)
        return blob

    def _extract(self, entry: Entry, name: str) -> None:
        blob = entry.blob
        assert blob is not None
        status = f"extracting {blob['digest']}"
        tell = entry.tell or (lambda *_, **__: None)
        tell(status, 0, 0, action="extract")
        parent = str(entry.parent.details["chain"]) if entry.parent is not None else ""
        key, lease = f"{self.names.extract}{new_id()} {name}", self.lease(entry)
        try:
            mounts = self.snapshots.prepare(key, parent, lease, {SNAPSHOT_REF: name})
        except errors.AlreadyExists:
            if self.snapshots.stat(name) is not None:  # a remote snapshotter has it already
                return
            raise
        with self._committed(name, key, lease):
            try:
                found = self.snapshots.apply(blob, mounts, lease)
            except errors.Error as error:
                raise error.prefixed("failed to extract layer") from None
            if found != entry.details.get("diff_id"):
                raise errors.FailedPrecondition(
                    f"failed to extract layer: wrong diff id calculated on extraction {found!r}, expected"
                    f" {entry.details.get('diff_id')!r}"
                )
        self.content.label(blob["digest"], {UNCOMPRESSED: found})
        tell(status, 0, 0, action="extract", completed=True)

    # Merges and differences

    def _merge(self, entry: Entry) -> None:
        """Put its layers one upon the other. Those at the bottom that are so already are stood upon; of the rest, what
        each has changed is linked into one snapshot."""
        units = chain(entry)
        base: Entry | None = None
        count = 0
        for unit in units:
            if unit.how == DIFF or below(unit) is not base:
                break
            base = unit
            count += 1
        lower = self.realize(base) if base is not None else ""
        if count == len(units) and lower:
            self.leases.hold_snapshot(self.lease(entry), lower)
            entry.details["snapshot"] = lower
            entry.mounts = self.mounts(base) if base is not None and not base.view else None
            self.records.change(entry, size=0)
            return
        key, lease = self.names.active + entry.id, self.lease(entry)
        try:
            mounts = self.snapshots.prepare(key, lower, lease)
        except errors.AlreadyExists:  # an earlier try has left it
            self.snapshots.remove(key)
            mounts = self.snapshots.prepare(key, lower, lease)
        try:
            copied = 0
            for unit in units[count:]:
                upper = None if unit.how == DIFF and len(unit.parents) < 2 else unit
                if unit.how == DIFF and upper is not None:
                    upper = unit.parents[1]
                copied += merging.apply(
                    self.places, mounts, self.read_mounts(below(unit)), self.read_mounts(upper), self._opaque
                )
            self.snapshots.commit(self.names.committed + entry.id, key, lease)
        except BaseException:
            with suppress(errors.Error):
                self.snapshots.remove(key)
            raise
        if self.snapshots.name in STABLE:
            entry.mounts = mounting.read_only(mounts)
        entry.details["snapshot"] = self.names.committed + entry.id
        self.records.change(entry, size=copied)

    def _opaque(self) -> bool:
        """Whether the daemon's Diff says of a folder that was removed and made again that it hides what was there. It
        is asked for the layer of one, once: two folders and a blob, which are gone afterwards."""
        with self._probing:
            if self._hides is None:
                self._hides = self._probe()
            return self._hides

    def _probe(self) -> bool:
        name = new_id()
        lower, upper = self.names.active + name, self.names.active + name + "-upper"
        with self.leases.work() as lease:
            try:
                mounts = self.snapshots.prepare(lower, "", lease)
                with self.places.mounted(mounts) as place:
                    os.mkdir(os.path.join(place, "d"))
                    os.mkdir(os.path.join(place, "d", "f"))
                self.snapshots.commit(self.names.committed + name, lower, lease)
                before = self.snapshots.view(self.names.view + name, self.names.committed + name, lease)
                mounts = self.snapshots.prepare(upper, self.names.committed + name, lease)
                with self.places.mounted(mounts) as place:
                    os.rmdir(os.path.join(place, "d", "f"))
                    os.rmdir(os.path.join(place, "d"))
                    os.mkdir(os.path.join(place, "d"))
                made = self.snapshots.diff(before, mounts, OCI_TAR, self.names.diff + name, lease)
                return b".wh..wh..opq" in self.content.read_whole(str(made["digest"]))
            finally:
                for key in (upper, self.names.view + name, lower, self.names.committed + name):
                    with suppress(errors.Error):
                        self.snapshots.remove(key)


class _Fetching:
    """Blobs of layers that are fetched by a few threads, in order, while the first ones are unpacked."""

    def __init__(self, fetch: Callable[[Entry], Descriptor], entries: Sequence[Entry]) -> None:
        self._fetch = fetch
        self._entries = list(entries)
        self._next = 0
        self._lock = threading.Condition()
        self._done: dict[int, BaseException | None] = {}
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> _Fetching:
        for _ in range(min(FETCHES, len(self._entries))):
            thread = threading.Thread(target=self._run, name="fetch", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                number = self._next
                if self._stopped or number >= len(self._entries):
                    return
                self._next += 1
            failed: BaseException | None = None
            try:
                self._fetch(self._entries[number])
            except BaseException as error:
                failed = error
            with self._lock:
                self._done[number] = failed
                self._stopped = self._stopped or failed is not None
                self._lock.notify_all()

    def wait(self, number: int) -> None:
        """Until that one is here. Raises what went wrong with it, or with another that ended the fetching."""
        with self._lock:
            while number not in self._done:
                failed = next((error for error in self._done.values() if error is not None), None)
                if failed is not None and number >= self._next:
                    raise failed
                self._lock.wait()
            if (error := self._done[number]) is not None:
                raise error
