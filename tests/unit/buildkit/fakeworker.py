# SPDX-License-Identifier: Apache-2.0
"""A worker for tests of what stands above it: trees are folders, blobs are in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from teu.buildkit.cache.contenthash import Tree
from teu.buildkit.cache.store import LOCAL_SOURCE
from teu.buildkit.core import errors
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import Descriptor, History, Kind, Layer
from teu.oci import digest as digests


class Asker:
    """Who a source works for: what it was told is kept."""

    def __init__(self, *sessions: str) -> None:
        self.ids = list(sessions)
        self.told: list[tuple[str, int, int, str, bool]] = []
        self.logged = bytearray()
        self._ended = threading.Event()
        self._calls: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        return self._ended.is_set()

    def check(self) -> None:
        if self.cancelled:
            raise errors.Cancelled("context canceled")

    def wait(self, seconds: float) -> bool:
        return self._ended.wait(seconds)

    @contextlib.contextmanager
    def on_cancel(self, call: Callable[[], None]) -> Iterator[None]:
        self._calls.append(call)
        if self.cancelled:
            call()
        try:
            yield
        finally:
            self._calls.remove(call)

    def cancel(self) -> None:
        self._ended.set()
        for call in list(self._calls):
            call()

    def sessions(self) -> list[str]:
        return self.ids

    def log(self, stream: int, data: bytes) -> None:
        self.logged += data

    def status(self, name: str, current: int, total: int, *, action: str = "", completed: bool = False) -> None:
        self.told.append((name, current, total, action, completed))


class Content:
    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.labels: dict[str, dict[str, str]] = {}

    def has(self, digest: str) -> bool:
        return digest in self.blobs

    def size(self, digest: str) -> int:
        return len(self._blob(digest))

    def _blob(self, digest: str) -> bytes:
        if digest not in self.blobs:
            raise errors.NotFound(f"content {digest}: not found")
        return self.blobs[digest]

    def read(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        yield self._blob(digest)[offset:]

    def read_whole(self, digest: str, limit: int = 32 << 20) -> bytes:
        return self._blob(digest)

    def write(
        self, chunks: Iterable[bytes], digest: str = "", size: int = 0, labels: Mapping[str, str] | None = None
    ) -> str:
        data = b"".join(chunks)
        assert not digest or digests.of(data) == digest
        self.blobs[digests.of(data)] = data
        self.label(digests.of(data), labels or {})
        return digests.of(data)

    def fetch(self, descriptor: Descriptor, fetch: Any, progress: Any = None) -> None:
        if not self.has(descriptor["digest"]):
            self.write(fetch(descriptor, 0), descriptor["digest"])

    def label(self, digest: str, labels: Mapping[str, str]) -> None:
        self.labels.setdefault(digest, {}).update(labels)


class Images:
    def __init__(self) -> None:
        self.targets: dict[str, Descriptor] = {}

    def get(self, name: str) -> Descriptor | None:
        return self.targets.get(name)

    def named(self, digest: str) -> list[str]:
        return [name for name, target in self.targets.items() if target["digest"] == digest]

    def put(self, name: str, target: Descriptor, labels: Mapping[str, str] | None = None) -> None:
        self.targets[name] = target


class Snapshot:
    def __init__(self, worker: Worker, name: str) -> None:
        self.worker, self.id = worker, name
        self.held = True
        self.chosen: Sequence[Layer] = ()
        self.made: list[History] = []
        self.compressions: list[Any] = []
        worker.holders[name] = worker.holders.get(name, 0) + 1

    def clone(self) -> Snapshot:
        return Snapshot(self.worker, self.id)

    def release(self) -> None:
        assert self.held
        self.held = False
        self.worker.holders[self.id] -= 1

    def describe(self) -> str:
        return self.worker.kinds[self.id].description

    @property
    def path(self) -> Path:
        return self.worker.folder / self.id

    @contextlib.contextmanager
    def mounted(self) -> Iterator[str]:
        yield str(self.path)

    def checksum(self, selections: Sequence[Selection] = ()) -> str:
        root = os.open(self.path, os.O_RDONLY)
        try:
            return self.worker.trees[self.id].checksums(root, selections)
        finally:
            os.close(root)

    def layers(self, compression: Any, *, make: bool = True) -> list[Descriptor] | None:
        self.compressions.append(compression)
        return [layer.descriptor for layer in self.chosen]

    def history(self) -> list[History]:
        return self.made

    def size(self) -> int:
        return 0

    def mounts(self) -> list[Any]:
        return []


class Active:
    def __init__(self, worker: Worker, name: str) -> None:
        self.worker, self.id = worker, name
        worker.active_now.add(name)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[str]:
        yield str(self.worker.folder / self.id)

    def mounts(self) -> list[Any]:
        return []

    @property
    def tree(self) -> Tree:
        return self.worker.trees[self.id]

    def note(self, **data: Any) -> None:
        self.worker.known[self.id].update(data)

    def commit(self) -> Snapshot:
        self.worker.active_now.discard(self.id)
        self.worker.committed.add(self.id)
        return Snapshot(self.worker, self.id)

    def release(self) -> None:
        self.worker.active_now.discard(self.id)
        if not self.worker.kinds[self.id].retained:
            self.worker.remove(self.id)

    def discard(self) -> None:
        self.worker.active_now.discard(self.id)
        self.worker.remove(self.id)


class Worker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = "fake"
        self.labels: dict[str, str] = {}
        self.platforms = ["linux/amd64"]
        self.content = Content()
        self.images = Images()
        self.kinds: dict[str, Kind] = {}
        self.known: dict[str, dict[str, Any]] = {}
        self.trees: dict[str, Tree] = {}
        self.holders: dict[str, int] = {}
        self.committed: set[str] = set()
        self.active_now: set[str] = set()
        self.made: dict[tuple[str, ...], str] = {}
        self.lazy: dict[str, Sequence[Layer]] = {}

    def remove(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        for table in (self.kinds, self.known, self.trees):
            table.pop(name, None)
        self.committed.discard(name)

    def load(self, record: Record) -> Snapshot:
        if record.id not in self.committed:
            raise Gone(record.id)
        return Snapshot(self, record.id)

    def find(self, kind: str, **data: Any) -> list[str]:
        return [
            name
            for name, one in self.kinds.items()
            if one.kind == kind and all(self.known[name].get(key) == value for key, value in data.items())
        ]

    def data(self, name: str) -> Mapping[str, Any] | None:
        return self.known.get(name)

    def active(self, parent: Any, kind: Kind) -> Active:
        name = f"tree-{len(self.kinds) + len(self.holders)}-{os.urandom(4).hex()}"
        (self.folder / name).mkdir(parents=True)
        self.kinds[name], self.known[name] = kind, dict(kind.data)
        self.trees[name] = Tree(bare=kind.kind == LOCAL_SOURCE)
        return Active(self, name)

    def reopen(self, name: str) -> Active | None:
        if name not in self.kinds or name in self.active_now or self.holders.get(name):
            return None
        self.committed.discard(name)
        return Active(self, name)

    def image(self, layers: Sequence[Layer], kind: Kind, documents: Sequence[str] = ()) -> Snapshot | None:
        self.documents = tuple(documents)
        key = tuple(layer.diff_id for layer in layers)
        if key not in self.made:
            self.made[key] = self.active(None, kind).commit().id
        snapshot = Snapshot(self, self.made[key])
        snapshot.chosen = layers
        return snapshot

    def merge(self, inputs: Any, kind: Kind) -> Any:
        raise NotImplementedError

    def diff(self, lower: Any, upper: Any, kind: Kind) -> Any:
        raise NotImplementedError

    def open_blob(self, snapshot: Any, descriptor: Descriptor) -> Iterator[bytes]:
        yield from self.content.read(descriptor["digest"])

    @contextlib.contextmanager
    def hold(self) -> Iterator[list[str]]:
        yield []
