# SPDX-License-Identifier: Apache-2.0
"""A worker whose snapshots are folders, for tests of operations, and what else those need."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teu.buildkit.cache.contenthash import Tree
from teu.buildkit.core.identifiers import new_id
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import Kind, Mount
from teu.buildkit.llb.load import Edge, Metadata, Vertex
from teu.linux.copying import copy_tree
from teu.linux.trees import remove_tree


def copied(source: Path, target: Path) -> None:
    descriptors = [os.open(place, os.O_RDONLY | os.O_DIRECTORY) for place in (source, target)]
    try:
        copy_tree(*descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class FolderSnapshot:
    def __init__(self, worker: FolderWorker, id: str) -> None:
        self.worker = worker
        self.id = id
        worker.held[id] = worker.held.get(id, 0) + 1

    @property
    def path(self) -> Path:
        return self.worker.root / self.id

    def clone(self) -> FolderSnapshot:
        return FolderSnapshot(self.worker, self.id)

    def release(self) -> None:
        self.worker.held[self.id] -= 1

    def describe(self) -> str:
        return self.id

    @contextmanager
    def mounted(self) -> Iterator[str]:
        yield str(self.path)

    def checksum(self, selections: Sequence[Selection]) -> str:
        root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return Tree().checksums(root, selections)
        finally:
            os.close(root)


class FolderActive:
    def __init__(self, worker: FolderWorker, parent: FolderSnapshot | None, kind: Kind) -> None:
        self.worker = worker
        self.id = new_id()
        self.kind = kind
        self.path = worker.root / self.id
        self.path.mkdir()
        self.path.chmod(0o755)
        if parent is not None:
            copied(parent.path, self.path)
        worker.live.add(self.id)

    @contextmanager
    def mounted(self) -> Iterator[str]:
        yield str(self.path)

    def mounts(self) -> list[Mount]:
        return [Mount("bind", str(self.path), ("rbind", "rw"))]

    def commit(self) -> FolderSnapshot:
        self.worker.live.remove(self.id)
        self.worker.commits += 1
        return FolderSnapshot(self.worker, self.id)

    def release(self) -> None:
        self.worker.live.remove(self.id)
        remove_tree(self.path)


class FolderWorker:
    id = "folders"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.live: set[str] = set()
        self.held: dict[str, int] = {}
        self.commits = 0
        self.merged: list[Any] = []

    def tree(self, **files: str | bytes) -> FolderSnapshot:
        """A snapshot of files; "_" of a name is "/" in its path."""
        path = self.root / new_id()
        path.mkdir()
        for name, data in files.items():
            file = path / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data if isinstance(data, bytes) else data.encode())
        return FolderSnapshot(self, path.name)

    def active(self, parent: Any, kind: Kind) -> FolderActive:
        return FolderActive(self, parent, kind)

    def load(self, record: Record) -> FolderSnapshot:
        if not (self.root / record.id).exists():
            raise Gone(record.id)
        return FolderSnapshot(self, record.id)

    def merge(self, inputs: Sequence[Any], kind: Kind) -> Any:
        self.merged.append(("merge", list(inputs)))
        return None

    def diff(self, lower: Any, upper: Any, kind: Kind) -> Any:
        self.merged.append(("diff", lower, upper))
        return None


class Asking:
    """core.op.Context, as far as operations on files ask it."""

    def __init__(self) -> None:
        self.cancelled = False
        self.graphs: list[Any] = []
        self.answer: Any = None

    def check(self) -> None:
        if self.cancelled:
            from teu.buildkit.core.errors import Cancelled

            raise Cancelled("context canceled")

    def solve(self, graph: Any, caches: Sequence[Any] = ()) -> Any:
        self.graphs.append(graph)
        return self.answer


def vertex(op: Any, inputs: int = 1) -> Vertex:
    edges = tuple(Edge(f"sha256:{number:064x}", 0) for number in range(inputs))
    return Vertex("sha256:" + "0" * 64, op, edges, "a step", Metadata(), "sha256:" + "0" * 64)
