# SPDX-License-Identifier: Apache-2.0
"""The one worker of this host: core.snapshots.Worker over containerd and cache.db. Made by the daemon.

worker = ContainerdWorker(Client("/run/teu/containerd.sock"), store, "/run/teu/buildkitd")
worker.start()
...
worker.close()
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from teu.buildkit.cache.store import Store
from teu.buildkit.core import errors
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.snapshots import Descriptor, Kind, Layer, Snapshot
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.content import ContentStore
from teu.buildkit.worker.images import ImageStore
from teu.buildkit.worker.keeping import Keeping, boot_id
from teu.buildkit.worker.layers import Layers
from teu.buildkit.worker.leases import Leases
from teu.buildkit.worker.mounting import Places
from teu.buildkit.worker.names import Names
from teu.buildkit.worker.records import DIFF, LAYER, MERGE, Entry, Records, chain
from teu.buildkit.worker.refs import ActiveRef, Ref
from teu.buildkit.worker.snapshots import Snapshots
from teu.buildkit.worker.trees import Trees
from teu.oci.labels import UNCOMPRESSED

LABEL = "org.mobyproject.buildkit.worker."
DOCUMENTS_MAX = 30  # that are kept for one record: indexes, manifests and configurations of the same layers


class ContainerdWorker:
    """`root`: a folder of the builder's own, for mounts. `labels` are told to clients beside the worker's own;
    `platforms`: the host's first, then those that it can emulate; asked for each time, as emulators come and go.
    `boot`: which boot of the host this is."""

    def __init__(
        self,
        client: Client,
        store: Store,
        root: str,
        *,
        id: str = "",
        snapshotter: str = "overlayfs",
        labels: Mapping[str, str] | None = None,
        platforms: Callable[[], Sequence[str]] = tuple,
        clock: Callable[[], float] = time.time,
        boot: str | None = None,
    ) -> None:
        self.client = client
        self.store = store
        self.root = root
        self.snapshotter = snapshotter
        self._id = id or hashlib.sha256(f"{store.id} {client.address} {snapshotter}".encode()).hexdigest()[:25]
        self._labels = {
            LABEL + "executor": "containerd",
            LABEL + "snapshotter": snapshotter,
            LABEL + "containerd.namespace": client.namespace,
            **(labels or {}),
        }
        self._platforms = platforms
        self.leases = Leases(client, snapshotter, Names(store.path))
        self._content = ContentStore(client, self.leases)
        self._images = ImageStore(client)
        self.records = Records(store, clock)
        snapshots = Snapshots(client, snapshotter)
        self.trees = Trees(self.records, snapshots, self._content, self.leases, Places(root))
        self.layers = Layers(self.records, self.trees, self._content)
        self.keeping = Keeping(self.records, self.trees, self.layers, boot_id() if boot is None else boot)

    def start(self) -> None:
        """Bring records and containerd together after whatever ended the last builder. Before anything else is
        called."""
        self.client.ensure_namespace()
        self.trees.places.clear()
        self.keeping.start()

    def close(self) -> None:
        """Let go of what is held; nothing is called afterwards."""
        self.keeping.finish()
        for entry in self.records.all():
            self.trees.let_go(entry)
        self.leases.close()

    @property
    def id(self) -> str:
        return self._id

    @property
    def labels(self) -> Mapping[str, str]:
        return self._labels

    @property
    def platforms(self) -> Sequence[str]:
        return self._platforms()

    @property
    def content(self) -> ContentStore:
        return self._content

    @property
    def images(self) -> ImageStore:
        return self._images

    # Records

    def _ref(self, entry: Entry) -> Ref:
        """Of an entry that is held already."""
        return Ref(self.keeping, entry)

    def _held(self, entry: Entry) -> Ref:
        if not self.records.hold(entry):
            raise Gone(entry.id)
        return self._ref(entry)

    def load(self, record: Record) -> Ref:
        if record.remote is not None:
            return self._remote(record)
        entry = self.records.get(record.id)
        if entry is None:
            raise Gone(record.id)
        ref = self._ref(self.keeping.as_synced(entry)) if entry.record.mutable else self._held(entry)
        try:
            if not self.trees.available(entry):
                raise Gone(f"the files of {record.id} are gone")
        except errors.Error as error:
            ref.release()
            raise Gone(f"{record.id}: {error}") from None
        except BaseException:
            ref.release()
            raise
        self.records.use(entry)
        return ref

    def _remote(self, record: Record) -> Ref:
        layers = []
        for one in record.remote:
            if isinstance(one, Layer):
                layers.append(one)
                continue
            diff_id = str((one.get("annotations") or {}).get(UNCOMPRESSED) or "")
            layers.append(Layer(one, diff_id))
        for layer in layers:
            if not layer.diff_id:
                raise Gone(f"layer {layer.descriptor['digest']} of {record.id} does not say what is in it")
            if layer.fetch is None and not self._content.has(layer.descriptor["digest"]):
                raise Gone(f"layer {layer.descriptor['digest']} of {record.id} cannot be had")
        description = next((layer.history for layer in reversed(layers) if layer.history), "imported cache")
        found = self.image(layers, Kind(description=description))
        if found is None:
            raise Gone(f"{record.id} has no layers")
        return found

    def find(self, kind: str, **data: Any) -> list[str]:
        found = [
            entry.record
            for entry in self.records.all()
            if entry.record.kind == kind and all(entry.record.data.get(key) == value for key, value in data.items())
        ]
        found.sort(key=lambda record: record.used or record.created, reverse=True)
        return [record.id for record in found]

    def data(self, id: str) -> Mapping[str, Any] | None:
        entry = self.records.get(id)
        return None if entry is None else {key: value for key, value in entry.record.data.items() if key != "worker"}

    # Trees that are made

    def active(self, parent: Snapshot | None, kind: Kind) -> ActiveRef:
        parents = () if parent is None else (self._entry(parent),)
        entry = self.records.new(kind, parents, mutable=True)
        try:
            self.trees.prepare(entry)
            if kind.retained:
                self.records.use(entry)
                self.records.save(entry)
        except BaseException:
            self.keeping.drop_unmade(entry)
            raise
        return ActiveRef(self.keeping, entry)

    def reopen(self, id: str) -> ActiveRef | None:
        entry = self.records.get(id)
        if entry is None or not self.keeping.reopened(entry):
            return None
        self.records.use(entry)
        return ActiveRef(self.keeping, entry)

    def _entry(self, snapshot: Snapshot) -> Entry:
        if not isinstance(snapshot, Ref):
            raise errors.Internal(f"{snapshot.id} is not of this worker")
        return snapshot.entry

    # Trees that are there, or follow from others

    def image(self, layers: Sequence[Layer], kind: Kind, documents: Sequence[str] = ()) -> Ref | None:
        below: Ref | None = None
        name = stack = ""
        try:
            for layer in layers:
                if not layer.diff_id:
                    raise errors.InvalidArgument(f"layer {layer.descriptor.get('digest')} does not say what is in it")
                digest = str(layer.descriptor["digest"])
                name = _chained(name, layer.diff_id)
                stack = _chained(stack, digest)
                below = self._layer(below, layer, kind, name, stack)
            if below is not None:
                self._document(below.entry, documents)
        except BaseException:
            if below is not None:
                below.release()
            raise
        if below is not None:
            self.records.use(below.entry)
            self.records.save(below.entry)
        return below

    def _document(self, entry: Entry, documents: Sequence[str]) -> None:
        """What leads to an image stays with the image's record."""
        known = list(entry.details.get("documents") or ())
        new = [digest for digest in documents if digest not in known][: DOCUMENTS_MAX - len(known)]
        if new:
            lease = self.trees.lease(entry)
            for digest in new:
                self.leases.hold_blob(lease, digest)
            entry.details["documents"] = known + new

    def _layer(self, below: Ref | None, layer: Layer, kind: Kind, name: str, stack: str) -> Ref:
        """The record of a layer upon that one, which is released."""
        entry = self.records.by_stack(stack)
        if entry is None or not self.records.hold(entry):
            entry = self.records.new(
                replace(kind, retained=False),
                () if below is None else (below.entry,),
                details={
                    "how": LAYER,
                    "image": True,
                    "chain": name,
                    "stack": stack,
                    "diff_id": layer.diff_id,
                    "blob": dict(layer.descriptor)
                    | {"annotations": {**(layer.descriptor.get("annotations") or {}), UNCOMPRESSED: layer.diff_id}},
                    "history": layer.history,
                },
            )
        with self.records.lock:
            if layer.fetch is not None:
                entry.fetches[str(layer.descriptor["digest"])] = layer.fetch
            entry.tell = layer.tell or entry.tell
        if below is not None:
            self.keeping.records.drop(below.entry)
        return self._ref(entry)

    def merge(self, inputs: Sequence[Snapshot | None], kind: Kind) -> Ref | None:
        entries: list[Entry] = []
        for one in inputs:
            if one is not None:
                entry = self._entry(one)
                entries += entry.parents if entry.how == MERGE else (entry,)
        if not entries:
            return None
        if len(entries) == 1:
            return self._held(entries[0])
        return self._made(kind, entries, {"how": MERGE})

    def diff(self, lower: Snapshot | None, upper: Snapshot | None, kind: Kind) -> Ref | None:
        if lower is None:
            return None if upper is None else self._held(self._entry(upper))
        before = self._entry(lower)
        if upper is None:
            return self._made(kind, (before,), {"how": DIFF})
        after = self._entry(upper)
        if after is before:
            return None
        return self._made(kind, (before, after), {"how": DIFF})

    def _made(self, kind: Kind, parents: Sequence[Entry], details: dict[str, Any]) -> Ref:
        entry = self.records.new(replace(kind, retained=False), parents, details=details)
        self.records.use(entry)
        self.records.save(entry)
        return self._ref(entry)

    def open_blob(self, snapshot: Snapshot, descriptor: Descriptor) -> Iterator[bytes]:
        digest = str(descriptor["digest"])
        if self._content.has(digest):
            return self._content.read(digest)
        for unit in chain(self._entry(snapshot)):
            fetch = unit.fetches.get(digest)
            if fetch is not None:
                return fetch(descriptor, 0)
        raise errors.NotFound(f"blob {digest} is gone")

    @contextmanager
    def hold(self) -> Iterator[Collection[str]]:
        with self.leases.work() as lease:
            yield (lease,)


def _chained(below: str, own: str) -> str:
    """The name of a layer upon others: a chain id, of diff ids."""
    return own if not below else "sha256:" + hashlib.sha256(f"{below} {own}".encode()).hexdigest()
