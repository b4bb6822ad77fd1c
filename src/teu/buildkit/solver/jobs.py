# SPDX-License-Identifier: Apache-2.0
"""Builds: a Job is one client's, and has graphs built; the Solver is all of them on one graph.

    solver = Solver(store, resolve, parallelism=4)
    with solver.job("ref", session, progress) as job:
        result = job.build(load(definition))     # waits; raises the first failed step's error
        ...
        result.release()

The vertexes of a graph become nodes of the shared graph, or are there already: the same digest on the same inputs is
one node, whoever brought it. (One that is to ignore the cache is another; but who does not mind takes that, too.)
A job holds its nodes until it is closed; what nobody holds goes, and what it was doing is cancelled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from teu.api.buildkit import errdefs_pb2
from teu.buildkit.cache.keys import CONTENT, RANDOM, Keys, KeysKept, Link, root
from teu.buildkit.cache.remote import Chain
from teu.buildkit.core.errors import AlreadyExists, Cancelled, Error, NotFound, Unavailable
from teu.buildkit.core.op import Op, Ref
from teu.buildkit.core.progress import Progress
from teu.buildkit.llb.load import Graph, Vertex
from teu.buildkit.solver.graph import Edge, Level, Node
from teu.buildkit.solver.progress import Work
from teu.buildkit.solver.scheduler import Context, Scheduler, copied
from teu.buildkit.solver.tasks import Task

TAIL_LINES = 10


@dataclass(frozen=True, slots=True)
class Failure:
    """Which step a build failed at, and what it said last."""

    digest: str
    name: str
    log: bytes
    error: Error


@dataclass(slots=True, eq=False)
class Result:
    """What was built. The caller releases it; `chains` works as long as the job is open."""

    ref: Ref
    edge: Edge
    scheduler: Scheduler

    def release(self) -> None:
        self.ref.release()

    def chains(self) -> list[Chain]:
        """The cache of this result, what it stands on first: for cache.remote. Empty where nothing of it is kept."""
        with self.scheduler.lock:
            return _chains(self.edge, self.scheduler.cache)


class Build:
    """A graph that is being built for a job, or for a part of an operation. `wait` once."""

    def __init__(self, solver: Solver, edge: Edge, cancelled: Callable[[], bool], job: Job | None) -> None:
        self._solver = solver
        self.job = job
        self.edge = edge
        self._event = threading.Event()
        self._cancelled = cancelled

    def wake(self) -> None:
        self._event.set()

    def wait(self) -> Result:
        """The result, whose keys are on the disk then. Raises the error of the step that failed, or Cancelled."""
        result = self._wait()
        self._solver.scheduler.sync()
        return result

    def _wait(self) -> Result:
        scheduler = self._solver.scheduler
        try:
            while True:
                self._event.wait()
                with scheduler.lock:
                    self._event.clear()
                    if self.edge.ref is not None:
                        return Result(self.edge.ref.clone(), self.edge, scheduler)
                    if self._cancelled():
                        raise Cancelled("context canceled")
                    if self.edge.error is not None:
                        known = self.edge.error
                        error = copied(known) if isinstance(known, Error) else Error(str(known))
                        if self.job is not None and self.job.failure is None:
                            self.job.failure = self._solver._failure(error)
                        raise error
        finally:
            with scheduler.changing():
                scheduler.want(self.edge, self, Level.NONE)
                self._solver.builds.discard(self)


@dataclass(eq=False)
class Job:
    """One client's build. Threads of its own may build several graphs at the same time."""

    solver: Solver
    id: str
    session: str
    progress: Progress | None
    rules: Any = None  # its maker's: what it may, for those who build something in its name
    nodes: list[Node] = field(default_factory=list)
    failure: Failure | None = None
    cleanups: list[Callable[[], None]] = field(default_factory=list)
    cancelled: bool = False
    closed: bool = False

    def build(self, graph: Graph, caches: Sequence[Keys] = (), *, ignore_cache: bool = False) -> Result:
        """Build a graph and wait for it. `caches` are asked beside the main one; with `ignore_cache` none is asked for
        any vertex. Raises core.errors.Error; `failure` says more."""
        return self.start(graph, caches, ignore_cache=ignore_cache).wait()

    def start(self, graph: Graph, caches: Sequence[Keys] = (), *, ignore_cache: bool = False) -> Build:
        """Begin to build a graph."""
        return self.solver._start(self, graph, caches, ignore_cache, lambda: self.cancelled)

    def cancel(self) -> None:
        """The client does not wait any more: builds of this job end at once with Cancelled, and what nobody else wants
        is told so. Waits for nothing."""
        self.solver._cancel(self)

    def cleanup(self, call: Callable[[], None]) -> None:
        """`call` when the job is closed; at once where it is."""
        with self.solver.scheduler.lock:
            if not self.closed:
                self.cleanups.append(call)
                return
        call()

    def close(self) -> None:
        """The job holds nothing any more. Results that were given out stay with who has them."""
        self.solver._close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Solver:
    """All builds on one graph. `resolve` says which operation does a vertex; it is quick, and raises what is wrong with
    the vertex."""

    def __init__(self, cache: KeysKept, resolve: Callable[[Vertex], Op], parallelism: int = 0) -> None:
        self.scheduler = _Scheduler(self, cache, parallelism)
        self.builds: set[Build] = set()
        self._resolve = resolve
        self._jobs: dict[str, Job] = {}
        self._active: dict[str, list[Node]] = {}
        self._count = 0
        self._closing = False
        self.scheduler.on_settled = self._settled

    # Jobs

    def job(self, id: str, session: str = "", progress: Progress | None = None) -> Job:
        """A new one; `progress` is told of all its vertexes. Raises AlreadyExists, or Unavailable after `close`."""
        with self.scheduler.lock:
            if self._closing:
                raise Unavailable("the builder is shutting down")
            if id in self._jobs:
                raise AlreadyExists(f"job ID {id} exists")
            job = self._jobs[id] = Job(self, id, session, progress)
            return job

    def get(self, id: str) -> Job:
        """Raises NotFound."""
        with self.scheduler.lock:
            if id not in self._jobs:
                raise NotFound(f"no such job {id}")
            return self._jobs[id]

    @property
    def idle(self) -> bool:
        with self.scheduler.lock:
            return not self._jobs and not self._active

    def close(self, timeout: float = 10.0) -> bool:
        """Cancel all, and wait until no thread is left. False where an operation did not listen."""
        with self.scheduler.lock:
            self._closing = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
            job.close()
        end = time.monotonic() + timeout
        kinds = (self.scheduler.work, self.scheduler.ask)
        # One that ends may start one of the other kind, to save something: twice is enough.
        left = [kind for kind in (*kinds, *kinds) if not kind.join(max(0.0, end - time.monotonic()))]
        return not left

    # What they do

    def _start(
        self,
        holder: Job | Node,
        graph: Graph,
        caches: Sequence[Keys],
        ignore_cache: bool,
        cancelled: Callable[[], bool],
    ) -> Build:
        with self.scheduler.changing():
            if isinstance(holder, Job) and holder.closed:
                raise Cancelled("context canceled")
            nodes = self._load(holder, graph, caches, ignore_cache)
            edge = nodes[graph.root.vertex].edge(graph.root.index)
            build = Build(self, edge, cancelled, holder if isinstance(holder, Job) else None)
            self.builds.add(build)
            self.scheduler.want(edge, build, Level.COMPLETE)
            if edge.settled or cancelled():
                build.wake()
        return build

    def _load(self, holder: Job | Node, graph: Graph, caches: Sequence[Keys], ignore: bool) -> dict[str, Node]:
        """The nodes of a graph's vertexes, held by `holder`."""
        nodes: dict[str, Node] = {}
        made: list[Node] = []
        try:
            for digest, vertex in graph.vertexes.items():
                inputs = tuple((nodes[one.vertex], one.index) for one in vertex.inputs)
                ignoring = ignore or vertex.metadata.ignore_cache
                node = self._known(holder, digest, inputs, ignoring)
                if node is None:
                    node = self._made(vertex, inputs, ignoring)
                    made.append(node)
                nodes[digest] = node
        except BaseException:
            for node in made:
                self._active[node.vertex.digest].remove(node)
                if not self._active[node.vertex.digest]:
                    del self._active[node.vertex.digest]
            raise
        for node in nodes.values():
            known = {cache.id for cache in (self.scheduler.cache, *node.caches)}
            new = [cache for cache in caches if cache.id not in known]
            if new:
                node.caches += new
                for edge in node.edges.values():
                    self.scheduler.look(edge)
            self._hold(holder, node)
        return nodes

    def _known(
        self, holder: Job | Node, digest: str, inputs: tuple[tuple[Node, int], ...], ignoring: bool
    ) -> Node | None:
        # A step that failed for others is tried again.
        fitting = [
            node
            for node in self._active.get(digest, ())
            if node.inputs == inputs and (node.error is None or holder in node.holders)
        ]
        fitting.sort(key=lambda node: not node.ignore_cache)
        for node in fitting:
            if node.ignore_cache or not ignoring:
                return node
        return None

    def _made(self, vertex: Vertex, inputs: tuple[tuple[Node, int], ...], ignoring: bool) -> Node:
        try:
            op = self._resolve(vertex)
        except Error as error:
            raise error.at_vertex(vertex.origin) from error.__cause__
        work = Work(
            vertex.origin, vertex.name, [node.vertex.origin for node, _ in inputs], vertex.metadata.progress_group
        )
        self._count += 1
        node = Node(vertex, op, inputs, work, ignoring, self._count)
        for below, index in inputs:
            below.edge(index)
        self._active.setdefault(vertex.digest, []).append(node)
        return node

    def _hold(self, holder: Job | Node, node: Node) -> None:
        if holder in node.holders:
            return
        before = node.jobs()
        node.holders.add(holder)
        if isinstance(holder, Node):
            holder.held.add(node)
        else:
            holder.nodes.append(node)
        new = node.jobs() - before
        # It comes with all that is built for it already.
        todo, seen = [node], set()
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            for job in new:
                if job.progress is not None:
                    job.progress.attach(one.progress)
            todo += one.held

    def _let_go(self, holder: Job | Node, nodes: Iterable[Node]) -> None:
        todo: list[tuple[Job | Node, Node]] = [(holder, node) for node in nodes]
        dropped: list[Node] = []
        while todo:
            one, node = todo.pop()
            node.holders.discard(one)
            if isinstance(holder, Job) and holder.progress is not None:
                node.progress.leave(holder.progress)
            if node.holders or node.dropped:
                continue
            active = self._active.get(node.vertex.digest, [])
            if node in active:
                active.remove(node)
            if not active:
                self._active.pop(node.vertex.digest, None)
            dropped.append(node)
            todo += [(node, below) for below in node.held]
            node.held = set()
        # What stands on others first.
        for node in sorted(dropped, key=lambda node: node.number, reverse=True):
            self.scheduler.drop(node)

    def _cancel(self, job: Job) -> None:
        with self.scheduler.changing():
            job.cancelled = True
            for build in self.builds:
                build.wake()

    def _close(self, job: Job) -> None:
        with self.scheduler.changing():
            if job.closed:
                return
            job.closed = job.cancelled = True
            for build in list(self.builds):
                build.wake()
                if build.job is job:  # whether or not somebody waits for it
                    self.builds.discard(build)
                    self.scheduler.want(build.edge, build, Level.NONE)
            nodes, job.nodes = job.nodes, []
            self._let_go(job, nodes)
            self._jobs.pop(job.id, None)
            cleanups, job.cleanups = job.cleanups, []
        for call in reversed(cleanups):
            call()

    def _settled(self, edge: Edge) -> None:
        for who in edge.wants:
            if isinstance(who, Build):
                who.wake()

    def _failure(self, error: Error) -> Failure:
        """Under the lock."""
        digest = next((one.digest for one in error.details if isinstance(one, errdefs_pb2.Vertex)), "")
        for nodes in self._active.values():
            for node in nodes:
                if node.vertex.origin == digest and node.error is not None:
                    return Failure(digest, node.vertex.name, node.progress.tail(TAIL_LINES), error)
        return Failure(digest, "", b"", error)


class _Context(Context):
    def __init__(self, solver: Solver, scheduler: Scheduler, node: Node, task: Task) -> None:
        super().__init__(scheduler, node, task)
        self._solver = solver

    def solve(self, graph: Any, caches: Sequence[Keys] = ()) -> Ref:
        self.check()
        build = self._solver._start(self._node, graph, caches, False, lambda: self.cancelled)
        with self.on_cancel(build.wake), self.waiting():
            return build.wait().ref


class _Scheduler(Scheduler):
    def __init__(self, solver: Solver, cache: KeysKept, parallelism: int) -> None:
        super().__init__(cache, parallelism)
        self._solver = solver

    def context(self, node: Node, task: Task) -> _Context:
        return _Context(self._solver, self, node, task)


def _chains(top: Edge, cache: KeysKept) -> list[Chain]:
    chains: list[Chain] = []
    names: dict[Edge, str] = {}
    contents: set[str] = set()
    todo: list[tuple[Edge, bool]] = [(top, False)]
    while todo:
        edge, ready = todo.pop()
        node = edge.node
        if edge in names or node.map is None:
            continue
        if not ready:
            todo.append((edge, True))
            todo += [(below, False) for below in edge.inputs()]
            continue
        keys = edge.saved or edge.keys.get(cache.id, set())
        keys = {key for key in keys if not key.startswith(RANDOM)}
        selectors = [one.selector for one in node.map.inputs] + [""] * (len(node.inputs) - len(node.map.inputs))
        ways: list[tuple[Link, ...]] = []
        for number, below in enumerate(edge.inputs()):
            # What is never the same twice, as a client's folder, leads on by its content alone.
            way = [(names[below], selectors[number])] if below in names else []
            if number in node.contents:
                way.append((root(node.contents[number], CONTENT), ""))
            ways.append(tuple(way))
        if not keys or not all(ways):
            continue
        names[edge] = min(keys)
        for number, content in sorted(node.contents.items()):
            key = root(content, CONTENT)
            if number < len(ways) and key not in contents:
                contents.add(key)
                chains.append(Chain(key, content, CONTENT, (), "", 0.0))
        records = cache.results(names[edge])
        chosen = next((one for one in records if one.id == edge.record), records[0] if records else None)
        result, created = (chosen.id, chosen.created) if chosen else (edge.record, 0.0)
        export = node.vertex.metadata.export_cache
        if node.inputs:
            chains.append(Chain(names[edge], node.map.digest, edge.index, tuple(ways), result, created, export))
        else:
            digest = next(one for one in (node.map.digest, *node.map.also) if root(one, edge.index) == names[edge])
            chains.append(Chain(names[edge], digest, edge.index, (), result, created, export))
    return chains
