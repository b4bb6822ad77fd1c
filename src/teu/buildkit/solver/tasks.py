# SPDX-License-Identifier: Apache-2.0
"""Threads for what takes time: a bounded number of them, each for one call, none when there is nothing to do.

A task never waits for another task, except in a block in which it says so and gives up its place: so no bound can let
them wait for each other.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from teu.buildkit.core.errors import Cancelled

log = logging.getLogger("teu.buildkit")


class Cancellation:
    """Whether somebody still waits for something."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        if self._event.is_set():
            raise Cancelled("context canceled")

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)

    def set(self) -> list[Callable[[], None]]:
        """What is to be called now, by whoever may wait for it."""
        with self._lock:
            self._event.set()
            calls, self._calls = self._calls, []
        return calls

    @contextmanager
    def calling(self, call: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            late = self._event.is_set()
            if not late:
                self._calls.append(call)
        if late:
            call()
        try:
            yield
        finally:
            with self._lock:
                if call in self._calls:
                    self._calls.remove(call)


class Task:
    """One call of a Kind. `run` is called by a thread of its own; what it does afterwards is its own matter."""

    def __init__(self, kind: Kind, name: str, run: Callable[[Task], None], dropped: Callable[[], None]) -> None:
        self.kind = kind
        self.name = name
        self.run = run
        self.dropped = dropped
        self.cancellation = Cancellation()


class Kind:
    """Tasks of which no more than `limit` run at a time; the others wait in line. 0: as many as there are."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._line: deque[Task] = deque()
        self._working = 0
        self._returning = 0  # who gave up their places and want them again: before those in line
        self._threads: set[threading.Thread] = set()
        self._none_left = threading.Condition(self._lock)

    def start(self, task: Task) -> None:
        with self._lock:
            self._line.append(task)
            self._pump()

    def _pump(self) -> None:
        while self._line and (not self.limit or self._working + self._returning < self.limit):
            task = self._line.popleft()
            try:
                self._thread(self._run, task)
            except RuntimeError:  # the system has no thread for it now: the next that ends makes room
                self._line.appendleft(task)
                if not self._working:
                    raise
                return
            self._working += 1

    def _thread(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name=f"solver-{self.name}", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            raise

    def _run(self, task: Task) -> None:
        try:
            task.run(task)
        except BaseException:
            log.exception("%s of %s", self.name, task.name)
        finally:
            with self._lock:
                self._working -= 1
                self._free.notify()
                self._pump()
                self._gone()

    def _gone(self) -> None:
        self._threads.discard(threading.current_thread())
        if not self._threads:
            self._none_left.notify_all()

    def cancel(self, task: Task) -> None:
        """Nobody waits for it: it is told, or leaves the line, where `dropped` is called. Waits for nothing."""
        with self._lock:
            waiting = task in self._line
            if waiting:
                self._line.remove(task)
        calls = task.cancellation.set()
        if waiting:
            task.dropped()
        if calls:
            with self._lock:
                self._thread(self._call, calls)

    def _call(self, calls: list[Callable[[], None]]) -> None:
        try:
            for call in calls:
                try:
                    call()
                except Exception:
                    log.exception("cancelling")
        finally:
            with self._lock:
                self._gone()

    @contextmanager
    def place_given_up(self) -> Iterator[None]:
        with self._lock:
            self._working -= 1
            self._free.notify()
            self._pump()
        try:
            yield
        finally:
            with self._lock:
                self._returning += 1
                while self.limit and self._working >= self.limit:
                    self._free.wait()
                self._returning -= 1
                self._working += 1

    def join(self, timeout: float) -> bool:
        """Wait until no thread is left."""
        with self._lock:
            return self._none_left.wait_for(lambda: not self._threads and not self._line, timeout)
