# SPDX-License-Identifier: Apache-2.0
"""What a build tells of itself while it runs: steps, parts of their work, output, warnings. Called by all rooms.

A Step is a vertex at work. It belongs to no build: where two builds wait for the same work, both are told of it, and
one that comes later is told what was (`attach`). A Progress is what one build tells, to any number of listeners; each
of them gets everything from the begin, whenever it comes, and an end.

    progress = Progress()
    with progress.vertex(digest, "[2/5] RUN make", inputs) as step:     starts; completes, with the error that is raised
        step.log(1, b"hello\n")
        step.status("sha256:…", "extracting", current=5, total=9)
    progress.close()
    for response in progress.listen(): …                                Control.Status

Nothing waits for a listener. A status that one has not yet read is replaced by its next state, output is kept up to a
limit per step, so a slow listener costs no more than a new one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from teu.api.buildkit import control_pb2, ops_pb2
from teu.buildkit.core import errors

LOG_SIZE_MAX = 2 << 20  # bytes of output of one step that are kept; what comes after is dropped, which is said
LOG_MESSAGES_MAX = 50_000
STATUSES_MAX = 10_000  # parts of one step's work
WARNINGS_MAX = 1000  # of one step
RESPONSE_SIZE = 1 << 20  # bytes of one StatusResponse, about; clients take 16 MiB
INTERVAL = 0.05  # seconds between two messages to a listener
POLL_SECONDS = 0.5
CLIPPED = b"[output clipped, log limit 2MiB reached]\n"
STDOUT, STDERR = 1, 2


def _now(nanoseconds: int | None = None) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns() if nanoseconds is None else nanoseconds)
    return stamp


def warning(
    vertex: str,
    short: str,
    detail: Iterable[str] = (),
    url: str = "",
    level: int = 1,
    info: ops_pb2.SourceInfo | None = None,
    ranges: Iterable[ops_pb2.Range] = (),
) -> control_pb2.VertexWarning:
    """A warning of a vertex, named by its digest. `ranges` are lines of `info`, which is the file that it is about."""
    return control_pb2.VertexWarning(
        vertex=vertex,
        level=level,
        short=short.encode(errors="replace"),
        detail=[line.encode(errors="replace") for line in detail],
        url=url,
        info=info,
        ranges=ranges,
    )


class Step:
    """A vertex at work, whoever waits for it. All methods may be called from any thread."""

    def __init__(
        self, digest: str, name: str, inputs: Sequence[str] = (), group: ops_pb2.ProgressGroup | None = None
    ) -> None:
        self.vertex = control_pb2.Vertex(digest=digest, name=name, inputs=inputs)
        if group is not None:
            self.vertex.progressGroup.CopyFrom(group)
        self._lock = threading.Lock()
        self._events: dict[Hashable, Message] = {}
        self._followers: list[Progress] = []
        self._statuses: dict[str, int] = {}  # when each began, nanoseconds since 1970
        self._count = self._log_size = self._log_messages = self._warnings = 0
        self._clipped = False
        self._emit(("vertex", digest, "known"), self._copy())

    def _copy(self) -> control_pb2.Vertex:
        vertex = control_pb2.Vertex()
        vertex.CopyFrom(self.vertex)
        return vertex

    def _emit(self, key: Hashable, event: Message) -> None:
        """The lock is held, except in the constructor."""
        self._events.pop(key, None)
        self._events[key] = event
        for follower in self._followers:
            follower.event(key, event)

    def _unique(self, kind: str) -> Hashable:
        self._count += 1
        return (kind, id(self), self._count)

    def follow(self, progress: Progress) -> None:
        """Tell a build all that was, and what will be until `leave`. One that is told already is not told twice."""
        with self._lock:
            if progress in self._followers:
                return
            for key, event in self._events.items():
                progress.event(key, event)
            self._followers.append(progress)

    def leave(self, progress: Progress) -> None:
        """Tell a build no more: it does not wait for this step any longer."""
        with self._lock:
            if progress in self._followers:
                self._followers.remove(progress)

    def start(self) -> None:
        """The work begins; again where it began before and is done once more."""
        with self._lock:
            self.vertex.started.CopyFrom(_now())
            self.vertex.ClearField("completed")
            self.vertex.error = ""
            self._emit(self._unique("vertex"), self._copy())

    def complete(self, error: str = "", cached: bool = False) -> None:
        """The work has ended. cached: there was nothing to do."""
        with self._lock:
            now = _now()
            if not self.vertex.HasField("started"):
                self.vertex.started.CopyFrom(now)
            self.vertex.completed.CopyFrom(now)
            self.vertex.error = errors.cut(error, 4096)
            self.vertex.cached = cached
            self._emit(self._unique("vertex"), self._copy())

    def status(self, identifier: str, name: str = "", current: int = 0, total: int = 0, done: bool = False) -> None:
        """One part of the work, such as a layer that is pulled: identifier is its own in this step, current and total
        count bytes or whatever there is to count."""
        with self._lock:
            now = time.time_ns()
            if identifier not in self._statuses and len(self._statuses) >= STATUSES_MAX:
                return
            began = self._statuses.setdefault(identifier, now)
            event = control_pb2.VertexStatus(
                ID=identifier, vertex=self.vertex.digest, name=name or identifier, current=current, total=total
            )
            event.timestamp.CopyFrom(_now(now))
            event.started.CopyFrom(_now(began))
            if done:
                event.completed.CopyFrom(_now(now))
            self._emit(("status", id(self), identifier), event)

    def log(self, stream: int, data: bytes) -> None:
        """What the step wrote to its standard output (1) or error (2); b"" is nothing."""
        with self._lock:
            if self._clipped or not data:
                return
            self._log_messages += 1
            room = LOG_SIZE_MAX - self._log_size
            if len(data) > room or self._log_messages > LOG_MESSAGES_MAX:
                data = data[:room] + CLIPPED
                self._clipped = True
            self._log_size += len(data)
            event = control_pb2.VertexLog(vertex=self.vertex.digest, stream=stream, msg=data, timestamp=_now())
            self._emit(self._unique("log"), event)

    def warn(
        self,
        short: str,
        detail: Iterable[str] = (),
        url: str = "",
        level: int = 1,
        info: ops_pb2.SourceInfo | None = None,
        ranges: Iterable[ops_pb2.Range] = (),
    ) -> None:
        """A warning, with the lines that it is about; level 1, or more where it is less severe."""
        event = warning(self.vertex.digest, short, detail, url, level, info, ranges)
        with self._lock:
            self._warnings += 1
            if self._warnings <= WARNINGS_MAX:
                self._emit(self._unique("warning"), event)

    def __enter__(self) -> Step:
        self.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            self.complete()
        elif isinstance(error, errors.Error):
            self.complete(error.message)
        else:
            self.complete(str(error) or type(error).__name__)


class Progress:
    """What one build tells."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: dict[Hashable, Message] = {}
        self._listeners: list[dict[Hashable, Message]] = []
        self._vertexes: dict[str, control_pb2.Vertex] = {}
        self._steps: list[Step] = []
        self._warnings = self._told = 0
        self._closed = False

    def vertex(
        self, digest: str, name: str, inputs: Sequence[str] = (), group: ops_pb2.ProgressGroup | None = None
    ) -> Step:
        """A step of this build alone; it is known from now on, and starts with `start` or as a context manager."""
        step = Step(digest, name, inputs, group)
        self.attach(step)
        return step

    def attach(self, step: Step) -> None:
        """Tell of a step from now on, and what was told of it before."""
        with self._changed:
            if self._closed:
                return
            self._steps.append(step)
        step.follow(self)
        with self._changed:
            late = self._closed
        if late:
            step.leave(self)

    def warn(self, event: control_pb2.VertexWarning) -> None:
        """A warning of a frontend, about a vertex that need not be one of this build's."""
        with self._changed:
            self._told += 1
            number = self._told
        if number <= WARNINGS_MAX:
            self.event(("warning", id(self), number), event)

    def event(self, key: Hashable, event: Message) -> None:
        """Called by steps: something has changed."""
        with self._changed:
            if self._closed:
                return
            self._events.pop(key, None)
            self._events[key] = event
            for pending in self._listeners:
                pending.pop(key, None)
                pending[key] = event
            if isinstance(event, control_pb2.Vertex):
                self._vertexes[event.digest] = event
            elif isinstance(event, control_pb2.VertexWarning):
                self._warnings += 1
            self._changed.notify_all()

    def close(self) -> None:
        """The build has ended: nothing more is told, listeners end when they have read what there is."""
        with self._changed:
            self._closed = True
            steps, self._steps = self._steps, []
            self._changed.notify_all()
        for step in steps:
            step.leave(self)

    def counts(self) -> dict[str, int]:
        """Steps and warnings as the history of builds counts them."""
        with self._changed:
            vertexes = list(self._vertexes.values())
            warnings = self._warnings
        return {
            "numTotalSteps": len(vertexes),
            "numCompletedSteps": sum(vertex.HasField("completed") for vertex in vertexes),
            "numCachedSteps": sum(vertex.cached for vertex in vertexes),
            "numWarnings": warnings,
        }

    def listen(self, gone: Callable[[], bool] = lambda: False) -> Iterator[control_pb2.StatusResponse]:
        """Everything from the begin, as it comes; ends with the build, or when `gone` says that nobody listens."""
        with self._changed:
            pending = dict(self._events)
            self._listeners.append(pending)
        try:
            while True:
                with self._changed:
                    while not pending:
                        if self._closed or gone():
                            return
                        self._changed.wait(POLL_SECONDS)
                    events, size = [], 0
                    for key in list(pending):
                        events.append(pending.pop(key))
                        size += events[-1].ByteSize()
                        if size >= RESPONSE_SIZE:
                            break
                yield _response(events)
                with self._changed:
                    if not pending and not self._closed:
                        self._changed.wait_for(lambda: self._closed, INTERVAL)
        finally:
            with self._changed:
                # By identity: two listeners that have read everything are equal.
                self._listeners = [other for other in self._listeners if other is not pending]


def _response(events: Iterable[Message]) -> control_pb2.StatusResponse:
    response = control_pb2.StatusResponse()
    for event in events:
        if isinstance(event, control_pb2.Vertex):
            response.vertexes.append(event)
        elif isinstance(event, control_pb2.VertexStatus):
            response.statuses.append(event)
        elif isinstance(event, control_pb2.VertexLog):
            response.logs.append(event)
        elif isinstance(event, control_pb2.VertexWarning):
            response.warnings.append(event)
    return response
