# SPDX-License-Identifier: Apache-2.0
"""What runs, and when: one lock, a list of edges to look at, and a rule that says what an edge needs next.

1. All state is in nodes and edges (graph.py) and changes under one lock, in which nothing is waited for.
2. An edge is looked at (`_look`) when something that it stands on, or somebody who asks for it, has changed.
3. The rule compares how far it is asked for with how far it is: it asks its inputs, starts tasks, or is done.
4. What takes time is a task: the cache key, the content of an input, loading, executing. A task waits for no other.
5. A task's end changes its node under the lock; then the edges that stand on it are looked at, until there are none.
6. A vertex of two builds is one node; nodes whose work turns out to be the same (equal keys) follow one that does it.
7. An input is asked for its keys first; for its content only where that can still find something; for its result last.
8. A found record ends all asking: the inputs of a loaded result are never made.
9. Asking less, as when a build goes away, is a change like another: tasks that nobody asks for are cancelled then.
10. So nothing waits in a thread but builds for their results and operations for nested ones, which give up their place.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from teu.buildkit.cache.keys import CONTENT, RANDOM, Keys, KeysKept, Link, derived, intersection, root
from teu.buildkit.core.errors import Cancelled, Error
from teu.buildkit.core.op import CacheMap, Gone, Kept, Ref
from teu.buildkit.llb.load import Vertex
from teu.buildkit.solver.graph import Edge, Found, Holder, Level, Node
from teu.buildkit.solver.progress import Mirror
from teu.buildkit.solver.tasks import Kind, Task

log = logging.getLogger("teu.buildkit")

ASKING_MAX = 32  # keys, contents and loads at a time

Saves = list[tuple[str, str, int, list[set[Link]], str]]


class Scheduler:
    """`parallelism`: how many operations are executed at a time; 0 for as many as can be."""

    def __init__(self, cache: KeysKept, parallelism: int) -> None:
        self.cache = cache
        self.lock = threading.RLock()
        self.work = Kind("execute", parallelism)
        self.ask = Kind("ask", ASKING_MAX)
        self._todo: deque[Edge] = deque()
        self._queued: set[Edge] = set()
        self._depth = 0
        self._executing: dict[str, list[Node]] = {}  # by digest of the operation
        self.on_settled: Callable[[Edge], None] = lambda edge: None

    # Changes

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The lock; at its end everything that follows from the change has been done."""
        with self.lock:
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self._settle()
            finally:
                self._depth -= 1

    def look(self, edge: Edge) -> None:
        """The edge, or something that it stands on, has changed."""
        if edge not in self._queued:
            self._queued.add(edge)
            self._todo.append(edge)

    def want(self, edge: Edge, who: object, level: Level) -> None:
        before = edge.wants.get(who, Level.NONE)
        if level == before:
            return
        if level == Level.NONE:
            del edge.wants[who]
        else:
            edge.wants[who] = level
        self.look(edge)

    def _settle(self) -> None:
        while self._todo:
            edge = self._todo.popleft()
            self._queued.discard(edge)
            try:
                self._look(edge)
            except Exception as error:
                log.exception("vertex %s", edge.node.vertex.name)
                self._fail(edge, self._own(edge.node, error))
            shown = (edge.level, edge.settled, sum(len(keys) for keys in edge.keys.values()))
            if shown != edge.shown:
                edge.shown = shown
                for user in edge.node.users:
                    if (edge.node, edge.index) in user.node.inputs:
                        self.look(user)
            if edge.settled:
                self.on_settled(edge)

    # The rule

    def _look(self, edge: Edge) -> None:
        node = edge.node
        wanted = Level.NONE if edge.settled else edge.wanted
        asks = [Level.NONE] * len(node.inputs)
        if wanted:
            try:
                asks = self._next(edge, wanted)
            except _Failed as error:
                self._fail(edge, error.error)
                asks = [Level.NONE] * len(node.inputs)
            if edge.settled:
                asks = [Level.NONE] * len(node.inputs)
        for number, below in enumerate(edge.inputs()):
            if edge.asks[number] != asks[number]:
                edge.asks[number] = asks[number]
                if edge not in below.node.users:
                    below.node.users.append(edge)
                self.want(below, (edge, number), asks[number])
        self._cancel_unwanted(edge)

    def _next(self, edge: Edge, wanted: Level) -> list[Level]:
        """Bring the edge on, and say how far its inputs are to come. Raises _Failed."""
        node = edge.node
        inputs = edge.inputs()
        count = len(inputs)
        if node.map is None:
            if node.error is not None:
                raise _Failed(node.error)
            self._map(node)
            return [Level.NONE if node.ignore_cache else Level.FAST] * count
        if edge.loading is not None:
            return [Level.FAST] * count
        if not node.ignore_cache:
            if not self._all(inputs, Level.FAST):
                return [Level.FAST] * count
            self._probe(edge)
            edge.level = max(edge.level, Level.FAST)
            if edge.found:
                return self._found(edge, wanted)
            if wanted < Level.SLOW:
                return [Level.FAST] * count
            if edge.level < Level.SLOW:
                asks = self._by_content(edge, inputs)
                if edge.found:
                    return self._found(edge, wanted)
                if asks is not None:
                    return asks
        edge.level = max(edge.level, Level.SLOW)
        if wanted < Level.COMPLETE:
            return [Level.NONE if node.ignore_cache else Level.SLOW] * count
        return self._make(edge, inputs)

    def _make(self, edge: Edge, inputs: Sequence[Edge]) -> list[Level]:
        """No cache has it: all that stands below has to be there now. Raises _Failed."""
        node = edge.node
        count = len(inputs)
        if not self._all(inputs, Level.COMPLETE):
            return [Level.COMPLETE] * count
        missing = [number for number in range(count) if self._has_content(node, number) and number not in node.contents]
        for number in missing:
            self._hash(node, number)
        if missing:
            return [Level.COMPLETE] * count
        if node.results is not None:
            self._take(edge)
        elif node.error is not None:
            raise _Failed(node.error)
        elif node.executing is None and node.leader is None:
            if not node.ignore_cache:
                edge.probed = ()  # others may have saved something since
                self._probe(edge)
                if edge.found:
                    return self._found(edge, Level.COMPLETE)
            self._execute(node)
        return [Level.COMPLETE] * count

    def _found(self, edge: Edge, wanted: Level) -> list[Level]:
        edge.level = max(edge.level, Level.SLOW)
        if wanted == Level.COMPLETE:
            self._load(edge)
        return [Level.FAST] * len(edge.asks)

    def _by_content(self, edge: Edge, inputs: Sequence[Edge]) -> list[Level] | None:
        """The keys by content, as far as they can still find something. None: there is nothing more to be known."""
        node = edge.node
        count = len(inputs)
        if not self._all(inputs, Level.SLOW):
            return [Level.SLOW] * count
        self._probe(edge)
        if edge.found:
            return None
        open_ = [number for number in range(count) if self._has_content(node, number) and number not in node.contents]
        if any(not edge.matched[number] and number not in open_ for number in range(count)):
            return None  # an input leads nowhere: whatever the others are, nothing will be found
        # Those first that lead nowhere by definition: where their content is new, the others need not be made.
        todo = [number for number in open_ if not edge.matched[number]] or open_
        if not todo:
            return None
        asks = [Level.SLOW] * count
        self._all([inputs[number] for number in todo], Level.COMPLETE)
        for number in todo:
            asks[number] = Level.COMPLETE
            if inputs[number].ref is not None:
                self._hash(node, number)
        return asks

    def _all(self, inputs: Sequence[Edge], level: Level) -> bool:
        """Whether all inputs are that far. Raises _Failed where one will never be."""
        done = True
        for below in inputs:
            if below.error is not None and below.level < level:
                raise _Failed(below.error)
            if below.level < level:
                done = False
        return done

    @staticmethod
    def _has_content(node: Node, number: int) -> bool:
        assert node.map is not None
        return number < len(node.map.inputs) and node.map.inputs[number].content is not None

    # Keys

    def _links(self, node: Node, number: int, keys: Collection[str], *, strong: bool = False) -> set[Link]:
        """How an input leads to its user: by its keys, and by its content where that is known. With `strong` by its
        content alone, then: a step that runs again may make something else by the same definition."""
        assert node.map is not None
        selector = node.map.inputs[number].selector if number < len(node.map.inputs) else ""
        content = {(root(node.contents[number], CONTENT), "")} if number in node.contents else set()
        return content if content and strong else content | {(key, selector) for key in keys}

    def _probe(self, edge: Edge) -> None:
        """Look into the caches by all keys that are known now."""
        node = edge.node
        assert node.map is not None
        inputs = edge.inputs()
        now = (
            len(node.contents),
            len(edge.tried),
            len(node.caches),
            *(len(keys) for below in inputs for _, keys in sorted(below.keys.items())),
        )
        if edge.probed == now or node.executing is not None or node.leader is not None or node.results is not None:
            return  # nothing has come since, or it is being made
        edge.probed = now
        found: list[Found] = []
        edge.matched = [False] * len(node.inputs)
        for cache in (self.cache, *node.caches):
            try:
                if node.inputs:
                    ways = [
                        cache.linked(
                            self._links(node, number, below.keys.get(cache.id, ())), number, node.map.digest, edge.index
                        )
                        for number, below in enumerate(inputs)
                    ]
                    edge.matched = [old or bool(way) for old, way in zip(edge.matched, ways)]
                    keys = intersection(ways)
                else:
                    keys = {root(digest, edge.index) for digest in (node.map.digest, *node.map.also)}
                here = [
                    Found(cache, key, record)
                    for key in sorted(keys)
                    for record in cache.results(key)
                    if record.id not in edge.tried
                ]
                if node.inputs and len(keys) > 1 and here:
                    # One definition that gave several things: the last is what stands for it.
                    newest = max(here, key=lambda one: one.record.created)
                    here, keys = [one for one in here if one.key == newest.key], {newest.key}
                    edge.keys[cache.id] = set()
                edge.keys.setdefault(cache.id, set()).update(keys)
                found += here
            except Exception:
                log.exception("the cache %s", cache.id)  # it finds nothing, then
        edge.found = found

    def _plan(self, edge: Edge, result: str, loaded: str = "") -> Saves:
        """What is to be saved, so that the result is found by all keys that are known; what it stands on first.
        `loaded`: the key that it has in the main cache already."""
        plan: Saves = []
        todo: list[tuple[Edge, bool]] = [(edge, False)]
        seen: set[Edge] = set()
        while todo:
            one, ready = todo.pop()
            node = one.node
            if node.map is None or (one is not edge and one.saved):
                continue
            if not ready:
                if one in seen:
                    continue
                seen.add(one)
                todo.append((one, True))
                todo += [(below, False) for below in one.inputs()]
                continue
            kept = result if one is edge else ""
            if not node.inputs:
                one.saved = {root(digest, one.index) for digest in (node.map.digest, *node.map.also)}
                plan += [(key, node.map.digest, one.index, [], kept) for key in sorted(one.saved)]
                continue
            links = [self._links(node, number, below.saved) for number, below in enumerate(one.inputs())]
            if any(all(key.startswith(RANDOM) for key, _ in way) for way in links):
                one.saved = {f"{RANDOM}{id(one)}"}  # never found again, nor what stands on it
                continue
            found = one.keys.get(self.cache.id) if one is not edge else None
            if found:
                # As it is there; and what led to it by content leads to it by definition, too, from now on.
                one.saved = set(found)
                plan += [(key, node.map.digest, one.index, links, "") for key in sorted(found)]
                continue
            strong = [self._links(node, number, below.saved, strong=True) for number, below in enumerate(one.inputs())]
            known = {loaded} if loaded and one is edge else self._known(node, one.index, strong)
            key = min(known) if known else derived(node.map.digest, one.index, strong)
            one.saved = {key}
            plan.append((key, node.map.digest, one.index, links, kept))
        return plan

    def _known(self, node: Node, output: int, links: Sequence[Collection[Link]]) -> set[str]:
        assert node.map is not None
        try:
            return intersection(
                self.cache.linked(way, number, node.map.digest, output) for number, way in enumerate(links)
            )
        except Exception:
            log.exception("the cache %s", self.cache.id)
            return set()

    def _save(self, saves: Saves) -> None:
        """In a task, without the lock. A cache that cannot be written fails no build."""
        for key, digest, output, links, result in saves:
            try:
                self.cache.save(key, digest, output, links, result)
            except Exception:
                log.exception("saving a result in the cache")
                return

    def sync(self) -> None:
        """What was saved is on the disk, where that can be."""
        try:
            self.cache.sync()
        except Exception:
            log.exception("saving the cache")

    # Tasks

    def _start(
        self,
        kind: Kind,
        node: Node,
        run: Callable[[Task], Any],
        done: Callable[[Task, Any, Exception | None], None],
        held: Iterable[Ref] = (),
    ) -> Task:
        """`run` in a thread; `done` under the lock with what it returned or raised. `held` is released then."""
        clones = [ref.clone() for ref in held]

        def finish(task: Task, value: Any, error: Exception | None) -> None:
            for ref in clones:
                _release(ref)
            with self.changing():
                done(task, value, error)

        def call(task: Task) -> None:
            value: Any = None
            problem: Exception | None = None
            try:
                task.cancellation.check()
                value = run(task)
            except Exception as error:
                problem = error
            except BaseException as error:
                problem = Error(f"{type(error).__name__}: {error}")
            finish(task, value, problem)

        task = Task(kind, node.vertex.name, call, lambda: finish(task, None, Cancelled("context canceled")))
        kind.start(task)
        return task

    def context(self, node: Node, task: Task) -> Any:
        """The core.op.Context of a call: Solver gives another."""
        raise NotImplementedError  # jobs.py, which knows of builds

    def _map(self, node: Node) -> None:
        if node.mapping is not None:
            return
        telling = not node.inputs  # of sources: they may have to ask far away for what they are

        def run(task: Task) -> CacheMap:
            if telling:
                node.progress.start()
            found = node.op.cache_key(self.context(node, task))
            if len(found.inputs) > len(node.inputs):
                raise Error(f"invalid cache map: {len(found.inputs)} of {len(node.inputs)} inputs")
            return found

        def done(task: Task, value: CacheMap | None, error: Exception | None) -> None:
            node.mapping = None
            if error is None:
                node.map = value
            elif not task.cancellation.cancelled:
                node.error = self._own(node, _wrapped(error, "failed to load cache key"))
            if telling:
                told = "context canceled" if task.cancellation.cancelled else str(error)
                node.progress.complete("" if error is None else told)
            self._look_all(node)

        node.mapping = self._start(self.ask, node, run, done)

    def _hash(self, node: Node, number: int) -> None:
        if number in node.hashing:
            return
        below, index = node.inputs[number]
        ref = below.edge(index).ref
        assert node.map is not None and ref is not None
        content = node.map.inputs[number].content
        assert content is not None
        ref = ref.clone()

        def run(task: Task) -> str:
            return content(self.context(node, task), ref)

        def done(task: Task, value: str | None, error: Exception | None) -> None:
            del node.hashing[number]
            if error is not None and not task.cancellation.cancelled and not node.dropped and node.error is None:
                node.progress.complete(str(error))  # clients show the step that fails, begun or not
                wrapped = _wrapped(error, "failed to compute cache key").at_solve(None, content_cache=number)
                wrapped.kept = Kept([ref])
                node.error = self._own(node, wrapped)
                for edge in node.edges.values():
                    self._fail(edge, node.error)
            else:
                _release(ref)
                if error is None:
                    node.contents[number] = value or ""
            self._look_all(node)

        node.hashing[number] = self._start(self.ask, node, run, done)

    def _load(self, edge: Edge) -> None:
        if edge.loading is not None:
            return
        node = edge.node
        # The newest, and of those one that is here before one that is elsewhere.
        chosen = max(edge.found, key=lambda one: (one.cache is self.cache, one.record.created))

        def run(task: Task) -> tuple[Ref, str]:
            ref = node.op.load(self.context(node, task), chosen.record, edge.index)
            with self.lock:
                saves = self._plan(edge, ref.id, chosen.key if chosen.cache is self.cache else "")
            self._save(saves)
            return ref, ref.id

        def done(task: Task, value: tuple[Ref, str] | None, error: Exception | None) -> None:
            edge.loading = None
            if value is not None:
                ref, edge.record = value
                if node.dropped or edge.settled:
                    _release(ref)
                else:
                    edge.ref = ref
                    edge.level = Level.COMPLETE
                    if node.progress.untouched or not node.inputs:
                        node.progress.complete(cached=True)
                    self._inputs_cached(node)
            elif not task.cancellation.cancelled:
                log.info("the cached result %s of %s: %s", chosen.record.id, node.vertex.name, error)
                edge.tried.add(chosen.record.id)
                if isinstance(error, Gone) and chosen.cache is self.cache:
                    self._start(self.ask, node, lambda task: self.cache.forget(chosen.record.id), _nothing)
            self.look(edge)

        edge.loading = self._start(self.ask, node, run, done)

    def _execute(self, node: Node) -> None:
        if node.executing is not None or node.leader is not None:
            return
        assert node.map is not None
        inputs = [below.edge(index) for below, index in node.inputs]
        node.signature = tuple(self._sign(node, number, below) for number, below in enumerate(inputs))
        for other in self._executing.get(node.map.digest, ()):
            if self._same_work(node, other):
                node.leader = other
                other.followers.append(node)
                node.mirror = Mirror(node.progress)
                other.progress.follow(node.mirror)
                return
        refs = [below.ref for below in inputs]
        clones = [ref.clone() for ref in refs if ref is not None]
        self._executing.setdefault(node.map.digest, []).append(node)

        def run(task: Task) -> list[Ref]:
            node.progress.start()
            with self.lock:
                self._inputs_cached(node)
            results = list(node.op.execute(self.context(node, task), clones))
            try:
                with self.changing():
                    plans = [self._plan(node.edge(index), ref.id) for index, ref in enumerate(results)]
                for plan in plans:
                    self._save(plan)
            except BaseException:
                for ref in results:
                    _release(ref)
                raise
            return results

        def done(task: Task, value: list[Ref] | None, error: Exception | None) -> None:
            for ref in clones:
                _release(ref)
            self._executed(node, task, value, error)

        node.executing = self._start(self.work, node, run, done)

    def _executed(self, node: Node, task: Task, value: list[Ref] | None, error: Exception | None) -> None:
        """The end of an execution, for the node and for those that follow it: results, an error, or neither where it
        was cancelled."""
        node.executing = None
        self._stopped(node)
        followers, node.followers = node.followers, []
        told = "" if value is not None else "context canceled" if task.cancellation.cancelled else str(error)
        node.progress.complete(told)
        for follower in followers:
            self._unmirror(follower, node)
        if value is not None:
            node.results = value
            for follower in followers:
                self._led(follower, [ref.clone() for ref in value])
            if node.dropped:
                self._release_results(node)
        elif task.cancellation.cancelled:
            _let_go(error)
            for follower in followers:
                follower.leader = None
                self._look_all(follower)
        else:
            assert error is not None
            node.error = self._own(node, error)
            for follower in followers:
                follower.leader = None
                follower.error = self._own(follower, error)
                if follower.error.kept is not None:
                    follower.error.kept = follower.error.kept.clone()
                self._look_all(follower)
            if node.dropped:
                _let_go(node.error)
        self._look_all(node)

    def _sign(self, node: Node, number: int, below: Edge) -> frozenset[Link]:
        """What an input is for this work: its content, or its keys; the very result, where that stands for no key."""
        if number not in node.contents and not below.keys.get(self.cache.id):
            assert below.ref is not None
            return frozenset({(f"result:{below.ref.id}", "")})
        return frozenset(self._links(node, number, below.keys.get(self.cache.id, ()), strong=True))

    def _same_work(self, node: Node, other: Node) -> bool:
        assert node.map is not None
        if node.map.digest.startswith(RANDOM) or (node.ignore_cache and not other.ignore_cache):
            return False
        if other.executing is None or other.executing.cancellation.cancelled:
            return False
        return len(node.signature) == len(other.signature) and all(
            mine & theirs for mine, theirs in zip(node.signature, other.signature)
        )

    @staticmethod
    def _unmirror(node: Node, leader: Node) -> None:
        if node.mirror is not None:
            leader.progress.leave(node.mirror)
            node.mirror = None

    def _stopped(self, node: Node) -> None:
        assert node.map is not None
        doing = self._executing.get(node.map.digest, [])
        if node in doing:
            doing.remove(node)
        if not doing:
            self._executing.pop(node.map.digest, None)

    def _led(self, node: Node, results: list[Ref]) -> None:
        """A follower has what its leader made. That its own keys lead there, too, is saved on the side."""
        node.leader = None
        if node.dropped:
            for ref in results:
                _release(ref)
            return
        node.results = results
        plans = [self._plan(node.edge(index), ref.id) for index, ref in enumerate(results)]
        everything = [one for plan in plans for one in plan]
        self._start(self.ask, node, lambda task: self._save(everything), _nothing)
        self._look_all(node)

    def _take(self, edge: Edge) -> None:
        results = edge.node.results
        assert results is not None
        if edge.index >= len(results):
            raise _Failed(
                self._own(
                    edge.node,
                    Error(f"invalid response from exec need {edge.index} index but {len(results)} results received"),
                )
            )
        edge.ref = results[edge.index].clone()
        edge.record = edge.ref.id
        edge.level = Level.COMPLETE
        node = edge.node
        if not node.ignore_cache and all(
            number in node.contents or below.keys.get(self.cache.id) for number, below in enumerate(edge.inputs())
        ):
            # By a step that had to run again, or stands on one, nothing is found: only by what it made.
            edge.keys.setdefault(self.cache.id, set()).update(edge.saved)

    # Ends

    def _fail(self, edge: Edge, error: Exception) -> None:
        if not edge.settled:
            edge.error = error
            self.look(edge)

    def _own(self, node: Node, error: Exception) -> Error:
        """The error as this vertex's."""
        made = copied(error) if isinstance(error, Error) else Error(str(error) or type(error).__name__)
        if made.__cause__ is None and made is not error:
            made.__cause__ = error.__cause__ if isinstance(error, Error) else error
        return made.at_vertex(node.vertex.origin)

    def _look_all(self, node: Node) -> None:
        for edge in node.edges.values():
            self.look(edge)

    def _inputs_cached(self, node: Node) -> None:
        """What the work of a node stands on and was never touched is shown as cached."""
        todo = [below for below, _ in node.inputs]
        while todo:
            below = todo.pop()
            if below.progress.untouched:
                below.progress.complete(cached=True)
                todo += [one for one, _ in below.inputs]

    def _cancel_unwanted(self, edge: Edge) -> None:
        node = edge.node
        if edge.loading is not None and edge.wanted < Level.COMPLETE:
            self.ask.cancel(edge.loading)
        if node.mapping is not None and not self._anybody(node, Level.FAST):
            self.ask.cancel(node.mapping)
        if not self._anybody(node, Level.SLOW):
            for task in list(node.hashing.values()):
                self.ask.cancel(task)
        self._cancel_execution(node)

    def _cancel_execution(self, node: Node) -> None:
        if self._anybody(node, Level.COMPLETE):
            return
        if node.leader is not None:
            leader, node.leader = node.leader, None
            leader.followers.remove(node)
            self._unmirror(node, leader)
            self._cancel_execution(leader)
        elif node.executing is not None and not node.followers:
            self.work.cancel(node.executing)

    @staticmethod
    def _anybody(node: Node, level: Level) -> bool:
        return any(not edge.settled and edge.wanted >= level for edge in node.edges.values()) or bool(node.followers)

    def drop(self, node: Node) -> None:
        """No build has this node any more. Under the lock."""
        node.dropped = True
        for edge in node.edges.values():
            edge.wants.clear()
            for number, below in enumerate(edge.inputs()):
                if edge.asks[number]:
                    edge.asks[number] = Level.NONE
                    self.want(below, (edge, number), Level.NONE)
                if edge in below.node.users:
                    below.node.users.remove(edge)
            self._cancel_unwanted(edge)
            if edge.ref is not None:
                _release(edge.ref)
                edge.ref = None
        if node.executing is None:
            self._release_results(node)
        _let_go(node.error)
        close = getattr(node.op, "close", None)
        if close is not None:
            try:
                close()
            except Exception:
                log.exception("closing %s", node.vertex.name)

    def _release_results(self, node: Node) -> None:
        results, node.results = node.results or [], None
        for ref in results:
            _release(ref)


class _Failed(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _nothing(task: Task, value: Any, error: Exception | None) -> None:
    if error is not None and not isinstance(error, Cancelled):
        log.error("%s: %s", task.name, error)


def _let_go(error: Exception | None) -> None:
    """Of what a step that failed has left."""
    if isinstance(error, Error) and error.kept is not None:
        try:
            error.kept.release()
        except Exception:
            log.exception("what a failed step has left")


def _release(ref: Ref) -> None:
    try:
        ref.release()
    except Exception:
        log.exception("releasing %s", ref.id)


def _wrapped(error: Exception, text: str) -> Error:
    return copied(error).prefixed(text) if isinstance(error, Error) else Error(f"{text}: {error}")


def copied(error: Error) -> Error:
    """An error of its own for each who is told: they add details to it."""
    # Not copy.copy: it calls the class with the text alone, and some are made of more.
    made = type(error).__new__(type(error), *error.args)
    made.__dict__.update(error.__dict__)
    made.details = list(error.details)
    made.__traceback__ = None
    made.__cause__ = error.__cause__
    return made


class Context:
    """core.op.Context for one call."""

    def __init__(self, scheduler: Scheduler, node: Node, task: Task) -> None:
        self._scheduler = scheduler
        self._node = node
        self._task = task

    @property
    def vertex(self) -> Vertex:
        return self._node.vertex

    @property
    def cancelled(self) -> bool:
        return self._task.cancellation.cancelled

    def check(self) -> None:
        self._task.cancellation.check()

    def wait(self, seconds: float) -> bool:
        return self._task.cancellation.wait(seconds)

    def on_cancel(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        return self._task.cancellation.calling(call)

    def jobs(self) -> set[Holder]:
        with self._scheduler.lock:
            return self._node.jobs()

    def sessions(self) -> list[str]:
        return sorted({job.session for job in self.jobs() if job.session})

    def log(self, stream: int, data: bytes) -> None:
        if data:
            self._node.progress.log(stream, data)

    def status(self, name: str, current: int, total: int, *, action: str = "", completed: bool = False) -> None:
        self._node.progress.status(name, action or name, current, total, completed)

    def warn(self, short: str, **more: Any) -> None:
        self._node.progress.warn(short, **more)

    def waiting(self) -> AbstractContextManager[None]:
        return self._task.kind.place_given_up()

    def solve(self, graph: Any, caches: Sequence[Keys] = ()) -> Ref:
        raise NotImplementedError  # jobs.py, which knows of builds
