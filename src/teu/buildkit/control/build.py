# SPDX-License-Identifier: Apache-2.0
"""One build: from what a client asks to what its exporters answer. Called by builds.

    build = Build(rooms, request)          refused here: what cannot be understood, or is not allowed
    values = build.run(bridge)             waits; raises core.errors.Error
    build.close()

A build ends at once when nobody waits for it (`cancel`); what it had begun and others want goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from teu.api.buildkit import errdefs_pb2
from teu.buildkit.control.requests import Entitlements, Solve
from teu.buildkit.control.verifier import Verifier
from teu.buildkit.core import errors, exports, snapshots
from teu.buildkit.core.identifiers import digest_of, new_id
from teu.buildkit.core.progress import Progress, Step
from teu.buildkit.frontends import builtin
from teu.buildkit.frontends.bridge import Bridge, CacheImport, Request, Result
from teu.buildkit.llb.devices import Devices
from teu.buildkit.llb.load import Graph, Policy, Vertex
from teu.buildkit.llb.platforms import Platform, host
from teu.buildkit.llb.policy import Policies, all_of
from teu.buildkit.solver.jobs import Build as Running
from teu.buildkit.solver.jobs import Job, Solver
from teu.buildkit.solver.jobs import Result as Solved
from teu.buildkit.solver.tasks import Cancellation

log = logging.getLogger("teu.buildkit")

TREES_MAX = 10_000  # of one build


class Meta(Protocol):
    """What the room of the sources tells of one."""

    def meta(self, request: Any, platform: Platform, asker: Any) -> Any: ...


class Import(Protocol):
    """A cache to be read. `id` tells caches apart, `name` is for people."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def read(self) -> Callable[[Any], Sequence[Any]]:
        """The cache.keys.Keys of what is there. Raises errors.Error where nothing can be read."""


class Export(Protocol):
    """A cache to be written. One that is `inline` is carried by an image."""

    @property
    def name(self) -> str: ...
    @property
    def inline(self) -> bool: ...

    def write(self, chains: Sequence[Any], asker: Any) -> Mapping[str, str]: ...


class Caches(Protocol):
    """Caches that travel. InvalidArgument for what cannot be understood."""

    def importing(self, kind: str, attributes: Mapping[str, str]) -> Import: ...

    def exporting(self, kind: str, attributes: Mapping[str, str]) -> Export: ...

    def inline(self, chains: Sequence[Any], image_layers: Sequence[str], compression: Any = None) -> bytes:
        """What the configuration of an image of these layers says; b"" where nothing fits."""


class Gateway(Protocol):
    """Frontends in containers."""

    def solve(self, bridge: Bridge, request: Request) -> Result: ...


class SessionExporters(Protocol):
    """Exporters that a client adds when it knows the result."""

    def find(self, session: str, metadata: Mapping[str, bytes]) -> Sequence[tuple[str, Mapping[str, str]]]:
        """(kind, attributes) of each."""

    def finish(self, session: str, values: Mapping[str, str]) -> None:
        """Tell the client what all exporters answered."""


@dataclass(frozen=True)
class Rooms:
    """All that a build stands on."""

    solver: Solver
    sources: Meta
    caches: Caches
    make_exporter: exports.Make
    gateway: Gateway
    platforms: Sequence[Platform]
    allowed: frozenset[str] = frozenset()  # entitlements that the configuration lets clients have
    policies: Sequence[Any] = ()  # of the configuration
    is_builtin: Callable[[str], bool] = builtin.is_own
    session_exporters: SessionExporters | None = None
    devices: Devices | None = None
    verify: Callable[[str, Any], Any] | None = None  # asks the client of a session about a source: session.policy.check


class Tree:
    """A definition that is built when somebody needs its files."""

    def __init__(self, build: Build, definition: Any, graph: Graph, caches: Sequence[Any]) -> None:
        self.definition = definition
        self.graph = graph
        self._build = build
        self._caches = caches
        self._lock = threading.Lock()
        self._running: Running | None = None
        self._solved: Solved | None = None

    def start(self) -> None:
        """Begin, and do not wait."""
        with self._lock:
            self._start()

    def _start(self) -> Running:
        if self._running is None:
            with self._placing():
                self._running = self._build.job.start(self.graph, self._caches)
        return self._running

    @contextmanager
    def _placing(self) -> Iterator[None]:
        try:
            yield
        except errors.Error as error:
            raise self._build.placed(error, self.graph) from error.__cause__

    def snapshot(self) -> snapshots.Snapshot | None:
        return snapshots.snapshot(self._result().ref)

    def _result(self) -> Solved:
        with self._lock:
            if self._solved is None:
                running = self._start()
                try:
                    with self._placing():
                        self._solved = running.wait()
                finally:
                    self._running = None
            return self._solved

    def chains(self) -> list[Any]:
        return self._result().chains()

    def release(self) -> None:
        with self._lock:
            solved, self._solved = self._solved, None
        if solved is not None:
            solved.release()


@dataclass
class Task:
    """core.exports.Task, and the sources' Asker: a step of a build at work."""

    build: Build
    step: Step

    @property
    def cancelled(self) -> bool:
        return self.build.cancellation.cancelled

    def check(self) -> None:
        self.build.cancellation.check()

    def on_cancel(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        return self.build.cancellation.calling(call)

    def sessions(self) -> list[str]:
        return [self.build.session] if self.build.session else []

    def log(self, stream: int, data: bytes) -> None:
        self.step.log(stream, data)

    def status(self, name: str, current: int, total: int, *, action: str = "", completed: bool = False) -> None:
        self.step.status(name, action or name, current, total, completed)

    def warn(self, short: str, **more: Any) -> None:
        self.step.warn(short, **more)


@dataclass
class Build:
    rooms: Rooms
    request: Solve
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        request = self.request
        self.ref = request.ref
        self.session = request.session
        self.frontend = request.frontend
        self.options: Mapping[str, str] = request.attributes
        self.entitlements = Entitlements(request.entitlements, self.rooms.allowed)
        self.policies = [*self.rooms.policies, *request.policies]
        Policies(self.policies)  # what cannot be understood is refused now
        if request.policy_session and self.rooms.verify is None:
            raise errors.Unimplemented("nobody here asks a session about sources")
        self._exporters = [
            self.rooms.make_exporter(kind, number, attributes)
            for number, (kind, attributes) in enumerate(request.exporters)
        ]
        self._cache_exporters = [
            (self.rooms.caches.exporting(one.kind, one.attributes), one) for one in request.cache_exports
        ]
        self.progress = Progress()
        self.cancellation = Cancellation()
        self.job: Job = self.rooms.solver.job(self.ref, self.session, self.progress)
        self.job.rules = self
        self.answers: list[exports.Answer] = []
        self.made: tuple[exports.Result, exports.Build] | None = None  # what the exporters were given
        self.definitions: list[Any] = []
        self._trees: list[Tree] = []
        self._imports: dict[tuple[Any, ...], Sequence[Any]] = {}
        self._lock = threading.Lock()
        self._returned = threading.Event()
        self._result: Result | None = None
        self._error: errors.Error | None = None
        self._closing = ExitStack()

    def note_frontend(self, name: str, options: Mapping[str, str]) -> None:
        """The frontend that the client asks for, for the provenance and the history; the first one counts."""
        with self._lock:
            if not self.frontend:
                self.frontend, self.options = name, {**options, **self.options}

    # Its sources

    def policy(self, more: Sequence[Any] = (), *, regexes: bool = True) -> Policy | None:
        """What is asked of each source: the configuration's rules, the client's, those of a request (`more`; regexes:
        see Policies), and the client itself where it wants to be; None where there is nothing to ask."""
        rules = Policies(self.policies, more, regexes=regexes)
        policies: list[Policy] = [rules] if rules else []
        verify, session = self.rooms.verify, self.request.policy_session
        if session and verify is not None:
            policies.append(Verifier(lambda asked: verify(session, asked), self.meta))
        return all_of(policies)

    def meta(self, asked: Any) -> Any:
        """What a source is now (ResolveSourceMeta), as a step of this build. No policy is asked."""
        name = asked.LogName or f"resolve image config for {asked.Source.identifier}"
        with self.step(name) as step:
            return self.rooms.sources.meta(asked, _platform(asked, self.rooms.platforms), Task(self, step))

    # Its end

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        for call in self.cancellation.set():
            try:
                call()
            except Exception:
                log.exception("cancelling %s", self.ref)
        self.job.cancel()
        self._returned.set()

    def close(self) -> None:
        """Let go of all that it holds; its progress ends."""
        self.cancel()
        self._closing.close()
        with self._lock:
            trees, self._trees = self._trees, []
        for one in trees:
            one.release()
        self.job.close()
        self.progress.close()

    def on_close(self, call: Callable[[], None]) -> None:
        self._closing.callback(call)

    # The frontend in the client

    @property
    def waits(self) -> bool:
        """The client itself is the frontend, and has not returned yet."""
        return not self.request.frontend and not self.request.definition and not self._returned.is_set()

    def give(self, result: Result | None, error: errors.Error | None = None) -> None:
        """The frontend's last word. InvalidArgument where it has said one."""
        with self._lock:
            if (result is None) == (error is None):
                raise errors.InvalidArgument("gateway return must be either result or err")
            if self._returned.is_set():
                raise errors.InvalidArgument("gateway result is already set")
            self._result, self._error = result, error
            self._returned.set()

    def _wait(self) -> Result:
        self._returned.wait()
        self.cancellation.check()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    # The whole

    def run(self, bridge: Bridge) -> dict[str, str]:
        """Do it; `bridge` is what the frontend sees of it. The exporters' answers, as the client reads them."""
        request = self.request
        if request.frontend or request.definition:
            asked = Request(
                request.definition, request.frontend, request.attributes, request.inputs, request.cache_imports
            )
            result = bridge.solve(asked)
        else:
            result = self._wait()
        return self._export(self._built(result))

    def _built(self, result: Result) -> exports.Result:
        """All trees of a result, at the same time."""
        attested = [one.tree for some in result.attestations.values() for one in some]
        for one in (*result.trees.values(), *attested):
            if isinstance(one, Tree):
                one.start()
        made = exports.Result(metadata=dict(result.metadata))
        for name, tree in result.trees.items():
            snapshot = tree.snapshot() if tree is not None else None
            made.parts[name] = exports.Part(snapshot, tree.chains if isinstance(tree, Tree) else list)
        for name, some in result.attestations.items():
            made.attestations[name] = [
                exports.Attestation(
                    one.tree.snapshot() if one.tree is not None else None,
                    one.path,
                    one.predicate_type,
                    one.bundle,
                    one.subjects,
                    one.metadata,
                )
                for one in some
            ]
        return made

    def _export(self, result: exports.Result) -> dict[str, str]:
        values = {
            key: value.decode("utf-8", "replace")
            for key, value in result.metadata.items()
            if key.startswith("frontend.")
        }
        self._inline(result)
        told = exports.Build(
            self.ref,
            self.session,
            self.frontend,
            self.options,
            self.started,
            self.materials,
            self.graphs,
            self.entitlements.given,
        )
        self.made = result, told
        for exporter in [*self._exporters, *self._found(result)]:
            with self.step(exporter.name) as step:
                answer = exporter.export(Task(self, step), result, told)
            self.answers.append(answer)
            values.update(answer.values)
        for cache, asked in self._cache_exporters:
            if not cache.inline:
                values.update(self._export_cache(cache, asked, result))
        if self.request.session_exporters and self.rooms.session_exporters is not None:
            self.rooms.session_exporters.finish(self.session, values)
        return values

    def _inline(self, result: exports.Result) -> None:
        """The cache that an image takes along, made of the layers that it will have."""
        if not any(cache.inline for cache, _ in self._cache_exporters):
            return
        made = (getattr(one, "compression", None) for one in self._exporters)
        compression = next((one for one in made if one is not None), snapshots.Compression())
        with self.step("preparing layers for inline cache"):
            for name, part in result.parts.items():
                if part.snapshot is None:
                    continue
                layers = part.snapshot.layers(compression) or []
                data = self.rooms.caches.inline(part.chains(), [one["digest"] for one in layers], compression)
                if data:
                    result.metadata[f"{exports.INLINE_CACHE}/{name}" if name else exports.INLINE_CACHE] = data

    def _export_cache(self, cache: Export, asked: CacheImport, result: exports.Result) -> Mapping[str, str]:
        # What several results have in common is told once; the last of all is the one that mode=min is about.
        chains = {chain.key: chain for part in result.parts.values() for chain in part.chains()}
        try:
            with self.step(cache.name) as step:
                return cache.write(list(chains.values()), Task(self, step))
        except errors.Error as error:
            self.cancellation.check()
            if asked.attributes.get("ignore-error", "").lower() not in ("1", "t", "true"):
                raise
            log.warning("the cache of %s was not exported: %s", self.ref, error)
            return {}

    def _found(self, result: exports.Result) -> list[exports.Exporter]:
        """Exporters that the client adds now that it knows the result."""
        more = self.rooms.session_exporters
        if not self.request.session_exporters or more is None:
            return []
        found: list[exports.Exporter] = []
        for kind, attributes in more.find(self.session, result.metadata):
            number = len(self._exporters) + len(found)
            found.append(self.rooms.make_exporter(kind, number, attributes))
        return found

    # What it is made of

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """A step that is none of the graph: shown to this client alone."""
        self.cancellation.check()
        with self.progress.vertex(digest_of(f"{self.ref} {name} {new_id()}".encode()), name) as step:
            yield step

    def tree(self, definition: Any, graph: Graph, caches: Sequence[Any]) -> Tree:
        tree = Tree(self, definition, graph, caches)
        with self._lock:
            if len(self._trees) >= TREES_MAX:
                raise errors.ResourceExhausted(f"a build of more than {TREES_MAX} definitions")
            self._trees.append(tree)
        return tree

    def graphs(self) -> list[Graph]:
        with self._lock:
            return [tree.graph for tree in self._trees]

    def materials(self) -> list[Any]:
        """The sources of what was built, as their room tells of them."""
        found = []
        for node in list(self.job.nodes):
            tell = getattr(node.op, "material", None)
            if tell is not None and node.map is not None:
                material = tell()
                if material is not None:
                    found.append(material)
        return found

    def caches(self, asked: Sequence[CacheImport]) -> list[Any]:
        """Caches elsewhere, each read once; one that cannot be read is told, and no reason to fail."""
        found: list[Any] = []
        for one in asked:
            with self._lock:
                known = one.key in self._imports
                caches = self._imports.get(one.key, ())
            if not known:
                caches = self._import(one)
                with self._lock:
                    caches = self._imports.setdefault(one.key, caches)
            found += caches
        return found

    def _import(self, one: CacheImport) -> Sequence[Any]:
        try:
            cache = self.rooms.caches.importing(one.kind, one.attributes)
            with self.step(f"importing cache manifest from {cache.name}") as step:
                return cache.read(Task(self, step))
        except errors.Error as error:
            self.cancellation.check()
            log.info("a cache (%s) is not to be had: %s", one.kind, error)
            return ()

    def placed(self, error: errors.Error, graph: Graph) -> errors.Error:
        """An error of a step, with its operation and the lines of the file that the step came from."""
        digest = next((one.digest for one in error.details if isinstance(one, errdefs_pb2.Vertex)), "")
        vertex = next((one for one in graph.vertexes.values() if one.origin == digest), None)
        if vertex is not None:
            _with_operation(error, vertex)
        if graph.source is None or any(isinstance(one, errdefs_pb2.Source) for one in error.details):
            return error
        if digest not in graph.source.locations:
            return error
        for location in graph.source.locations[digest].locations:
            if 0 <= location.sourceIndex < len(graph.source.infos):
                error.at_source(graph.source.infos[location.sourceIndex], location.ranges)
        return error


def _with_operation(error: errors.Error, vertex: Vertex) -> None:
    """What failed there, with what is known of how."""
    for detail in error.details:
        if isinstance(detail, errdefs_pb2.Solve):
            if not detail.HasField("op"):
                detail.op.CopyFrom(vertex.op)
                detail.description.update(vertex.metadata.description)
            return
    error.at_solve(vertex.op, description=vertex.metadata.description)


def _platform(asked: Any, platforms: Sequence[Platform]) -> Platform:
    if not asked.HasField("Platform"):
        return platforms[0] if platforms else host()
    given = asked.Platform
    return Platform(given.OS, given.Architecture, given.Variant, given.OSVersion, tuple(given.OSFeatures))
