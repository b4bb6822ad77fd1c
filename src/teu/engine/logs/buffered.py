# SPDX-License-Identifier: Apache-2.0
"""--log-opt mode=non-blocking: output never waits for its log. What the log has no room for is dropped, and counted.

A driver to the hub, an output to the driver that it has: the hub writes into a buffer in memory, a thread hands on what
is in it. What is in the buffer when the engine is killed is lost.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from teu.engine.core.units import size
from teu.engine.logs.driver import Driver, Follower, LogSource, Piece, Selection, whole_lines
from teu.engine.logs.marker import Marker

if TYPE_CHECKING:
    from teu.engine.logs.driver import Output

log = logging.getLogger("teu.engine")

T = TypeVar("T")

DEFAULT_SIZE = 1_000_000  # bytes, docker's
RETRY_SECONDS = (0.004, 0.5)  # after which a log that was behind is asked again: at first, and at most
CLOSE_SECONDS = 5.0
TOLD_SECONDS = 60.0  # between two reports of what was dropped

_NO_MARKER = Marker(None)


class Dropped:
    """A count of lines of a container that are in no log, told to the engine's journal: the first at once, then every
    minute, and at the end of a run."""

    def __init__(self, source: LogSource) -> None:
        self._source = source
        self.lines = 0
        self._told = 0
        self._next = 0.0

    def add(self, lines: int, why: str) -> None:
        """Some more."""
        self.lines += lines
        if time.monotonic() >= self._next:
            self.tell(why)

    def tell(self, why: str) -> None:
        """Those that were not told yet."""
        if self.lines > self._told:
            self._next = time.monotonic() + TOLD_SECONDS
            log.warning(
                "container %s: %d lines of its output were dropped (%d in all): %s",
                self._source.name,
                self.lines - self._told,
                self.lines,
                why,
                extra={"TEU_CONTAINER": self._source.id, "TEU_CONTAINER_NAME": self._source.name},
            )
            self._told = self.lines


class NonBlocking:
    """A driver that takes all that it is given."""

    def __init__(
        self, source: LogSource, make: Callable[[LogSource], Driver | None], limit: int, in_lines: bool = False
    ) -> None:
        """`limit`: of what waits, in bytes or in lines."""
        self._outside: Callable[[], Output] = source.output
        self._going = source.going
        driver = make(source._replace(output=lambda: self, going=self._may_come))
        assert driver is not None, "what keeps nothing needs no buffer"
        self._driver: Driver = driver
        self.stalled = False
        self.dropped = Dropped(source)
        self._limit = limit
        self._in_lines = in_lines
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[tuple[int, bytes, bool]] = deque()
        self._size = 0
        self._busy = False
        self._ended = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._followers: list[Follower] = []
        self._pause = RETRY_SECONDS[0]

    def _may_come(self) -> bool:
        return self._going() or self._busy or bool(self._waiting)

    # -- the driver ----------------------------------------------------------------------------------

    def open(self) -> None:
        self._driver.open()

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        count = whole_lines(data, final)
        if not count:
            return 0
        data = data[:count]
        with self._changed:
            fits = self._fitting(data)
            if fits:
                self._waiting.append((kind, data[:fits], final and fits == count))
                self._size += self._weight(data[:fits])
                self._changed.notify_all()
                if self._thread is None:
                    self._stopping = False
                    self._thread = threading.Thread(target=self._run, name="log-buffer", daemon=True)
                    self._thread.start()
        if fits < count:
            rest = data[fits:]
            self.dropped.add(
                rest.count(b"\n") + (not rest.endswith(b"\n")), "its log is behind, and its buffer is full"
            )
        marker.set(kind, 1, count, zlib.crc32(data))
        return count

    def _weight(self, data: bytes) -> int:
        return data.count(b"\n") + (not data.endswith(b"\n")) if self._in_lines else len(data)

    def _fitting(self, data: bytes) -> int:
        """So many bytes of it, whole lines. One line at least goes into an empty buffer."""
        room = self._limit - self._size
        if self._weight(data) <= room:
            return len(data)
        end = 0
        for line in _lines(data):
            room -= self._weight(line)
            if room < 0 and (end or self._waiting):
                break
            end += len(line)
        return end

    def rewind(self, position: int) -> None:
        """What was in the buffer is gone with the engine that had it."""

    def flush(self) -> None:
        with self._changed:
            self._ended = True
            idle = self._thread is None
            self._changed.notify_all()
        self.dropped.tell("its log was behind, and its buffer full")
        if idle:
            self._driver.flush()

    def close(self) -> None:
        """What is in the buffer has some seconds to go."""
        deadline = time.monotonic() + CLOSE_SECONDS
        with self._changed:
            while self._waiting and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
        self._stop()
        self._driver.close()

    def _stop(self) -> None:
        with self._changed:
            thread, self._stopping = self._thread, True
            self._changed.notify_all()
        if thread is not None:
            thread.join(CLOSE_SECONDS)

    def read(self, selection: Selection) -> Iterator[Piece | None]:
        return self._driver.read(selection)

    def remove(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._size = 0
        self._stop()
        self._driver.remove()

    # -- the output ----------------------------------------------------------------------------------

    def follow(self, follower: Follower, begin: Callable[[], T]) -> T:
        """What is logged from now on goes to the follower as well."""
        with self._changed:
            while self._busy:
                self._changed.wait()
            self._followers.append(follower)
            return begin()

    def unfollow(self, follower: Follower) -> None:
        """The reverse."""
        with self._changed:
            self._followers.remove(follower)

    def resume(self) -> None:
        """The driver, or a follower, can take more."""
        with self._changed:
            self._changed.notify_all()

    # -- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended and not self._stopping:
                    self._changed.wait()
                if self._stopping or not self._waiting:
                    self._thread = None
                    ended, self._ended = self._ended, False
                    break
                kind, data, final = self._waiting[0]
                self._busy = True
            self._hand_on(kind, data, final)
        if ended:
            self._driver.flush()

    def _hand_on(self, kind: int, data: bytes, final: bool) -> None:
        """Of the first piece that waits, so much as the driver takes."""
        taken = 0
        try:
            taken = self._driver.write(kind, data, final, _NO_MARKER)
            if not taken and not self._driver.stalled:
                taken = len(data)
        except Exception:
            log.exception("container's log: its driver failed, and some output is dropped")
            taken = len(data)
        with self._changed:
            followers = tuple(self._followers)
        for follower in followers:
            if taken:
                follower(kind, data[:taken])
        with self._changed:
            self._busy = False
            if self._waiting:  # its removal may have come between
                self._size -= self._weight(data) - (self._weight(data[taken:]) if taken < len(data) else 0)
                if taken < len(data):
                    self._waiting[0] = (kind, data[taken:], final)
                else:
                    self._waiting.popleft()
            self._changed.notify_all()
            if taken:
                self._pause = RETRY_SECONDS[0]
            else:
                self._changed.wait(self._pause)
                self._pause = min(2 * self._pause, RETRY_SECONDS[1])


def _lines(data: bytes) -> Iterator[bytes]:
    """Ended by line feeds alone."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


def buffered(source: LogSource, make: Callable[[LogSource], Driver | None]) -> Driver:
    """The driver of a source whose mode is non-blocking."""
    text = source.options.get("max-buffer-size")
    return NonBlocking(source, make, size(text, "max-buffer-size") if text else DEFAULT_SIZE)
