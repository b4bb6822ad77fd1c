# SPDX-License-Identifier: Apache-2.0
"""One thread that moves the output of all containers and execs. Owned by the engine; hubs register.

Callbacks run in the pump's thread and must not block. Every thread may register, call or schedule.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

log = logging.getLogger("teu.engine")

T = TypeVar("T")
Given = ParamSpec("Given")

PIPE_SIZE = 256 << 10
F_SETPIPE_SZ = 1031
EVENTS_AT_ONCE = 256


class Pump:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._stopped = False
        self._closing = threading.Lock()  # who wakes the thread must not write to what has the number by then
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)
        # What tee() copies into; wide enough for a whole FIFO.
        self.scratch = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _widen(self.scratch[1], PIPE_SIZE * 2)
        self.null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The thread ends, and what the pump has open is closed: nothing is run any more. Twice is fine."""
        self._stopped = True
        self._rouse()
        if self._thread.is_alive() and not self.inside():
            self._thread.join(2)
        if self._thread.is_alive():  # in a callback; it has them until the process ends
            return
        with self._closing:
            if self._wake < 0:
                return
            self._epoll.close()
            for descriptor in (self._wake, *self.scratch, self.null):
                os.close(descriptor)
            self._wake = -1

    def _rouse(self) -> None:
        with self._closing:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def inside(self) -> bool:
        return threading.current_thread() is self._thread

    def register(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        self._callbacks[descriptor] = callback
        self._epoll.register(descriptor, events)

    def unregister(self, descriptor: int) -> None:
        if self._callbacks.pop(descriptor, None) is not None:
            try:
                self._epoll.unregister(descriptor)
            except (OSError, ValueError):
                pass

    def later(self, function: Callable[[], None], delay: float = 0.0) -> None:
        """Run the function in the pump's thread, soon or after a delay in seconds."""
        if delay:
            self._calls.append(
                lambda: heapq.heappush(self._timers, (time.monotonic() + delay, next(self._count), function))
            )
        else:
            self._calls.append(function)
        self._rouse()

    def call(self, function: Callable[[], T], timeout: float | None = None) -> T:
        """Run the function in the pump's thread and give its result."""
        if self.inside():
            return function()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self.later(run)
        return future.result(timeout)

    def _run(self) -> None:
        while not self._stopped:
            wait = -1.0
            if self._timers:
                wait = max(0.0, self._timers[0][0] - time.monotonic())
            try:
                events = self._epoll.poll(wait, EVENTS_AT_ONCE)
            except InterruptedError:
                continue
            for descriptor, mask in events:
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                    continue
                callback = self._callbacks.get(descriptor)
                if callback is not None:
                    self._guarded(callback, mask)
            while self._calls:
                self._guarded(self._calls.popleft())
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._guarded(heapq.heappop(self._timers)[2])

    @staticmethod
    def _guarded(function: Callable[Given, object], *arguments: Given.args, **named: Given.kwargs) -> None:
        try:
            function(*arguments, **named)
        except Exception:
            log.exception("the pump's callback failed")


def _widen(descriptor: int, size: int) -> None:
    try:
        fcntl.fcntl(descriptor, F_SETPIPE_SZ, size)
    except OSError:
        pass  # the user's share of pipe memory is used up: it works with less, too


def open_fifo(path: str) -> int:
    """Make the FIFO if need be and open its reading end. Never blocks."""
    try:
        os.mkfifo(path, 0o700)
    except FileExistsError:
        pass
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    _widen(descriptor, PIPE_SIZE)
    return descriptor
