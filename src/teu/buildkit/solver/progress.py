# SPDX-License-Identifier: Apache-2.0
"""What is told of a vertex while it is built: to all builds that need it, from its begin to those that come later."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

LOG_KEPT = 1 << 20  # bytes of a vertex's output that are told to those who come later
WARNINGS_KEPT = 1000
STATUSES_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class VertexState:
    """moby.buildkit.v1.Vertex. Times are seconds since 1970, None where it has not come to that."""

    digest: str
    inputs: tuple[str, ...]
    name: str
    started: float | None = None
    completed: float | None = None
    cached: bool = False
    error: str = ""
    group: Any = None  # pb.ProgressGroup


@dataclass(frozen=True, slots=True)
class Status:
    """moby.buildkit.v1.VertexStatus: a part of the work of a vertex."""

    vertex: str
    id: str
    name: str
    current: int
    total: int
    timestamp: float
    started: float
    completed: float | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """moby.buildkit.v1.VertexLog."""

    vertex: str
    stream: int
    data: bytes
    timestamp: float


@dataclass(frozen=True, slots=True)
class Warning:
    """moby.buildkit.v1.VertexWarning; `more` has level, detail, url, info and ranges, where they were told."""

    vertex: str
    short: str
    more: Mapping[str, Any] = field(default_factory=dict)


class Listener(Protocol):
    """A build's stream of what happens. It is called by any thread and must not wait for anything."""

    def vertex(self, state: VertexState) -> None: ...

    def status(self, status: Status) -> None: ...

    def log(self, log: Log) -> None: ...

    def warn(self, warning: Warning) -> None: ...


class Progress:
    """One vertex. A listener knows it by a digest of its own: two builds may have different ones for the same work."""

    def __init__(self, state: VertexState) -> None:
        self._lock = threading.Lock()
        self._state = state
        self._logs: deque[Log] = deque()
        self._kept = 0
        self._statuses: dict[str, Status] = {}
        self._warnings: list[Warning] = []
        self._listeners: dict[Listener, VertexState] = {}

    @property
    def state(self) -> VertexState:
        return self._state

    def subscribe(self, listener: Listener, known_as: VertexState | None = None) -> None:
        """Tell all that was, then all that comes. `known_as`: digest, name and inputs for this listener."""
        with self._lock:
            if listener in self._listeners:
                return
            self._listeners[listener] = own = known_as or self._state
            listener.vertex(self._as(own))
            for status in self._statuses.values():
                listener.status(replace(status, vertex=own.digest))
            for log in self._logs:
                listener.log(replace(log, vertex=own.digest))
            for warning in self._warnings:
                listener.warn(replace(warning, vertex=own.digest))

    def unsubscribe(self, listener: Listener) -> None:
        with self._lock:
            self._listeners.pop(listener, None)

    def _as(self, own: VertexState) -> VertexState:
        return replace(self._state, digest=own.digest, inputs=own.inputs, name=own.name, group=own.group)

    def _changed(self) -> None:
        for listener, own in self._listeners.items():
            listener.vertex(self._as(own))

    def started(self, *, cached: bool = False) -> None:
        with self._lock:
            self._state = replace(self._state, started=time.time(), completed=None, cached=cached, error="")
            self._changed()

    def completed(self, error: str = "", *, cached: bool = False) -> None:
        with self._lock:
            now = time.time()
            started = self._state.started or now
            self._state = replace(self._state, started=started, completed=now, cached=cached, error=error)
            self._changed()

    def untouched(self) -> bool:
        return self._state.started is None

    def log(self, stream: int, data: bytes) -> None:
        log = Log(self._state.digest, stream, data, time.time())
        with self._lock:
            self._logs.append(log)
            self._kept += len(data)
            while self._kept > LOG_KEPT and len(self._logs) > 1:
                self._kept -= len(self._logs.popleft().data)
            for listener, own in self._listeners.items():
                listener.log(replace(log, vertex=own.digest))

    def status(self, id: str, name: str, current: int, total: int, completed: bool) -> None:
        now = time.time()
        with self._lock:
            before = self._statuses.get(id)
            status = Status(
                self._state.digest,
                id,
                name,
                current,
                total,
                now,
                before.started if before else now,
                now if completed else None,
            )
            if before or len(self._statuses) < STATUSES_KEPT:
                self._statuses[id] = status
            for listener, own in self._listeners.items():
                listener.status(replace(status, vertex=own.digest))

    def warn(self, short: str, more: Mapping[str, Any]) -> None:
        warning = Warning(self._state.digest, short, more)
        with self._lock:
            if len(self._warnings) < WARNINGS_KEPT:
                self._warnings.append(warning)
            for listener, own in self._listeners.items():
                listener.warn(replace(warning, vertex=own.digest))

    def tail(self, lines: int, size: int = 16 << 10) -> bytes:
        """The last lines of the output, no more than `size` bytes."""
        data = b""
        with self._lock:
            for log in reversed(self._logs):
                data = log.data + data
                if len(data) > size or data.count(b"\n") > lines:
                    break
        return b"".join(data[-size:].splitlines(keepends=True)[-lines:])
