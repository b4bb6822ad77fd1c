# SPDX-License-Identifier: Apache-2.0
"""The one graph that all builds share, as it is in memory: nodes (vertexes at work) and their edges (outputs).

An edge is asked for by others to a level, and comes there:

    FAST      its keys by definition are known, and what the cache has for them
    SLOW      the keys by content, too: for these some inputs may have had to be made
    COMPLETE  its result is there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from teu.buildkit.cache.keys import Keys, Link
from teu.buildkit.core.op import CacheMap, Op, Record, Ref
from teu.buildkit.core.progress import Progress
from teu.buildkit.llb.load import Vertex
from teu.buildkit.solver.progress import Mirror, Work
from teu.buildkit.solver.tasks import Task


class Holder(Protocol):
    """A build, as its nodes know it."""

    @property
    def session(self) -> str: ...
    @property
    def progress(self) -> Progress | None: ...


class Level(IntEnum):
    NONE = 0
    FAST = 1
    SLOW = 2
    COMPLETE = 3


@dataclass(slots=True, eq=False)
class Found:
    """A cached result that an edge may load."""

    cache: Keys
    key: str
    record: Record


@dataclass(slots=True, eq=False)
class Edge:
    """One output of a node."""

    node: Node
    index: int
    wants: dict[object, Level] = field(default_factory=dict)  # who asks, and how far
    asks: list[Level] = field(default_factory=list)  # how far this asks its inputs
    level: Level = Level.NONE
    keys: dict[str, set[str]] = field(default_factory=dict)  # by cache, as far as others may find something by them
    saved: set[str] = field(default_factory=set)  # in the main cache; what stands on this is saved by them
    matched: list[bool] = field(default_factory=list)  # whether any key of an input leads to something
    found: list[Found] = field(default_factory=list)
    shown: tuple[int, bool, int] = (0, False, 0)  # what those who stand on this were last told of
    probed: tuple[int, ...] = ()  # how much was known when the caches were last looked into
    tried: set[str] = field(default_factory=set)  # records that could not be loaded, or were
    loading: Task | None = None
    ref: Ref | None = None
    record: str = ""  # the cached result that `ref` is, in the main cache
    error: Exception | None = None

    @property
    def wanted(self) -> Level:
        return max(self.wants.values(), default=Level.NONE)

    @property
    def settled(self) -> bool:
        return self.ref is not None or self.error is not None

    def inputs(self) -> Sequence[Edge]:
        return [node.edge(index) for node, index in self.node.inputs]


@dataclass(slots=True, eq=False)
class Node:
    """A vertex that some build has. `holders`: the builds, and the nodes in whose work it is built."""

    vertex: Vertex
    op: Op
    inputs: tuple[tuple[Node, int], ...]
    progress: Work
    ignore_cache: bool
    number: int
    caches: list[Keys] = field(default_factory=list)
    holders: set[Holder | Node] = field(default_factory=set)
    held: set[Node] = field(default_factory=set)
    users: list[Edge] = field(default_factory=list)  # edges that have an edge of this as an input
    edges: dict[int, Edge] = field(default_factory=dict)
    map: CacheMap | None = None
    mapping: Task | None = None
    contents: dict[int, str] = field(default_factory=dict)  # digests of inputs' content
    hashing: dict[int, Task] = field(default_factory=dict)
    executing: Task | None = None
    leader: Node | None = None  # who does the same work, and gives its results
    mirror: Mirror | None = None  # by which its progress is that of the leader
    followers: list[Node] = field(default_factory=list)
    signature: tuple[frozenset[Link], ...] = ()
    results: list[Ref] | None = None
    error: Exception | None = None
    dropped: bool = False

    def edge(self, index: int) -> Edge:
        edge = self.edges.get(index)
        if edge is None:
            edge = self.edges[index] = Edge(self, index)
            edge.asks = [Level.NONE] * len(self.inputs)
            edge.matched = [False] * len(self.inputs)
        return edge

    def jobs(self) -> set[Holder]:
        """The builds that need this: directly, or because it is built for a node of theirs."""
        found: set[Any] = set()
        seen: set[Node] = set()
        todo: list[Node] = [self]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            for holder in node.holders:
                if isinstance(holder, Node):
                    todo.append(holder)
                else:
                    found.add(holder)
            todo += node.followers
        return found
