# SPDX-License-Identifier: Apache-2.0
"""The shim's event loop: one thread, one epoll.

Everything that takes time (an OCI runtime's run, a timer, a drain) is a Future; a request is a
generator that yields Futures and gets their results back, run by `Loop.spawn`.  Every child's exit
is collected here and nowhere else, so that it is told exactly once.
"""

from __future__ import annotations

import heapq
import marshal
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections import deque
    from collections.abc import Callable, Generator
    from typing import Any

    Coroutine = Generator["Future", Any, Any]
else:
    import _signal as signal  # signal is 0.9 MiB more (see teu.linux.sockets)
    from _collections import deque

EPOLLIN, EPOLLOUT, EPOLLPRI = select.EPOLLIN, select.EPOLLOUT, select.EPOLLPRI
EPOLLHUP, EPOLLERR = select.EPOLLHUP, select.EPOLLERR
POLL_SECONDS = 1 << 20
# Timers that were forgotten and may stay in the heap: taking one out at a time costs as much as all of them.
SPARE_TIMERS = 64


class Future:
    """A result to come.  set() or fail() it once; later ones are ignored."""

    __slots__ = ("done", "value", "error", "_callbacks")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._callbacks: list[Callable[[Future], None]] = []

    def set(self, value: Any = None) -> None:
        if not self.done:
            self.done, self.value = True, value
            self._call()

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self.done, self.error = True, error
            self._call()

    def _call(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def then(self, callback: Callable[[Future], None]) -> None:
        """Call back when done, at once if it is."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)


class Running(Future):
    """A coroutine under way, and what comes of it.  See Loop.spawn."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine) -> None:
        super().__init__()
        self._coroutine = coroutine

    def cancel(self, error: BaseException) -> None:
        """Give it up where it waits (its `finally` clauses run), with that error as the result, unless it is done."""
        if not self.done:
            self._coroutine.close()
            self.fail(error)


class Lock:
    """Lets one coroutine in at a time, in order: `yield lock.acquire()` ... `lock.release()`."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Future] = deque()

    def acquire(self) -> Future:
        turn = Future()
        if self._held:
            self._waiting.append(turn)
        else:
            self._held = True
            turn.set()
        return turn

    def release(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._held = False


def tell_outcome(pipe: int, work: Callable[[], Any]) -> bool:
    """In a forked process: do the work, and tell whoever reads the pipe what came of it. Whether it was done."""
    try:
        result = (True, work())
    except OSError as error:
        result = (False, (error.errno, str(error.strerror or error), error.filename))
    except Exception as error:
        result = (False, str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}")
    with open(pipe, "wb") as file:
        file.write(marshal.dumps(result))
    return result[0]


def outcome(pipe: int) -> Any:
    """What the work's process has told before its end, at most a pipe's capacity: its result. An OSError of it is
    raised here again, another error as RuntimeError."""
    data = os.read(pipe, 65536)
    if not data:
        raise RuntimeError("the helper process died")
    done, value = marshal.loads(data)
    if done:
        return value
    if isinstance(value, tuple):
        raise OSError(*value)
    raise RuntimeError(value)


class Loop:
    """Descriptors, timers, signals and children of one process."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int]] = []  # when, and which of _due; of those forgotten, some
        self._due: dict[int, Callable[[], None]] = {}
        self._timer_count = 0
        self._children: dict[int, Callable[[int], None]] = {}
        self._signals: dict[int, Callable[[], None]] = {}
        # Exits of processes that no caller has claimed yet, kept while a runtime runs: what it starts can
        # be gone before the runtime itself is.
        self._unclaimed: dict[int, int] = {}
        self._expecting = 0
        self._stopping = False
        read_end, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_read = read_end
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self.watch(read_end, EPOLLIN, self._on_wakeup)
        self.on_signal(signal.SIGCHLD, self.reap)

    # descriptors

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the epoll events of `fd`; again for the same fd changes both."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; to be called before it is closed."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # timers

    def after(self, seconds: float, callback: Callable[[], None]) -> int:
        """Call back once, that much later, unless forget() is told of the number returned."""
        self._timer_count += 1
        self._due[self._timer_count] = callback
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_count))
        return self._timer_count

    def forget(self, timer: int) -> None:
        """Have no call back of after(); nothing of it is kept until it would have been due, which may be years away."""
        if self._due.pop(timer, None) is not None and len(self._timers) > 2 * len(self._due) + SPARE_TIMERS:
            self._timers = [each for each in self._timers if each[1] in self._due]
            heapq.heapify(self._timers)

    def sleep(self, seconds: float) -> Future:
        future = Future()
        self.after(seconds, future.set)
        return future

    # signals and children

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        self._signals[number] = callback
        signal.signal(number, lambda *_: None)

    def described(self) -> str:
        """What is waited for, for the log."""
        return f"waiting for {len(self._watched)} descriptors, {len(self._children)} children, {len(self._due)} timers"

    def _on_wakeup(self, _events: int) -> None:
        for number in set(os.read(self._wakeup_read, 4096)):
            if number in self._signals:
                self._signals[number]()

    def reap(self) -> None:
        """Collect every exited child, and tell the callers that asked for it."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            callback = self._children.pop(pid, None)
            if callback:
                callback(status)
            elif self._expecting:
                self._unclaimed[pid] = status

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> bool:
        """Call back with the wait status of `pid`, also when it was collected since expect().  Whether it is still
        uncollected, so that the pid cannot be another's until the callback comes."""
        if pid in self._unclaimed:
            status = self._unclaimed.pop(pid)
            self.after(0, lambda: callback(status))
            return False
        self._children[pid] = callback
        return True

    def wait_exit(self, pid: int) -> Future:
        """A Future with the wait status of a child."""
        future = Future()
        self.on_exit(pid, future.set)
        return future

    def expect(self) -> None:
        """Keep the exits of unknown children from now on, until as many unexpect()s."""
        self._expecting += 1

    def unexpect(self) -> None:
        self._expecting -= 1
        if not self._expecting:
            self._unclaimed.clear()

    def in_fork(self, work: Callable[[], Any]) -> Coroutine:
        """Run `work` in a forked process, and return what it returns (plain values, see marshal).

        For what blocks, and for what would leave this process with memory that it needs no more.  An
        OSError of it is raised here again, another error as RuntimeError."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if not child:
            try:
                signal.set_wakeup_fd(-1)
                tell_outcome(write_end, work)
            finally:
                os._exit(0)
        os.close(write_end)
        try:
            yield self.wait_exit(child)
            return outcome(read_end)
        finally:
            os.close(read_end)

    # coroutines

    def spawn(self, coroutine: Coroutine) -> Running:
        """Run a generator that yields Futures; the Future returned has its result or error."""
        result = Running(coroutine)
        self._step(coroutine, result, None)
        return result

    def _step(self, coroutine: Coroutine, result: Future, ready: Future | None) -> None:
        while True:
            try:
                if ready is None:
                    ready = next(coroutine)
                elif ready.error is not None:
                    ready = coroutine.throw(ready.error)
                else:
                    ready = coroutine.send(ready.value)
            except StopIteration as stop:
                result.set(stop.value)
                return
            except Exception as error:
                # The error is handed on to its waiters, without the frames: they would be garbage in cycles.
                result.fail(error.with_traceback(None))
                return
            if not ready.done:
                ready.then(lambda future: self._step(coroutine, result, future))
                return

    # running

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        """Give the loop's own descriptors back; those watched are their owners'."""
        signal.set_wakeup_fd(-1)
        self._epoll.close()
        os.close(self._wakeup_read)
        os.close(self._wakeup)

    def run(self) -> None:
        """Serve until stop()."""
        self._stopping = False
        while not self._stopping:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                callback_due = self._due.pop(heapq.heappop(self._timers)[1], None)
                if callback_due:
                    callback_due()
            if self._stopping:
                return
            # a client's deadline may be years away, and epoll waits only so long
            timeout = min(max(0.0, self._timers[0][0] - now), POLL_SECONDS) if self._timers else -1
            for fd, events in self._epoll.poll(timeout):
                callback = self._watched.get(fd)
                if callback:
                    callback(events)
