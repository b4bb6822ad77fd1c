# SPDX-License-Identifier: Apache-2.0
"""The standard streams of a container's process or an exec: FIFOs, log driver, attached clients.

Reading begins after a successful start: until then what comes is the runtime's own complaint, never the container's
output. An unfinished line stays in the FIFO. A client or a log that is slow stops its own container and no other.

The shim keeps both ends of each FIFO open, so nothing is lost while the engine is away. The engine
looks at the data with tee(2), hands it on, logs it, and only then takes it out of the FIFO. What it has
logged but not yet taken out is noted in a marker (logs/marker.py), so that the next engine neither loses output nor
writes it to the log twice.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from teu.engine.logs.marker import Marker
from teu.engine.streams.frames import STDERR, STDOUT, frame
from teu.engine.streams.pump import PIPE_SIZE, Pump, open_fifo
from teu.linux.syscalls import NR_tee, syscall

if TYPE_CHECKING:
    from teu.engine.logs.driver import Driver, Follower

log = logging.getLogger("teu.engine")

T = TypeVar("T")

SPLICE_F_NONBLOCK = 2
CLIENT_LIMIT = 4 << 20  # bytes that wait for a slow client before its container has to wait, too
ROUNDS = 16  # chunks of one stream before others get their turn
# After which a log that takes no more is asked again: at first (journald's queue is 512 lines, and less than that takes
# it to work them off), and at most, each time twice as long, until it takes something.
STALL_SECONDS = (0.004, 0.256)
# How long the end of the output waits for a log that takes no more, and for processes that the container left behind.
FINISH_SECONDS = 10.0
WRITERS_SECONDS = 0.2


class Client:
    """An attached connection. Output goes to it from the pump; whoever owns it waits for `ended`."""

    def __init__(self, hub: Hub, sock: socket.socket, stdout: bool, stderr: bool, framed: bool | None = None) -> None:
        self.hub = hub
        self.framed = not hub.tty if framed is None else framed
        self.socket = sock
        self.kinds = {kind for kind, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted}
        self.pending: deque[memoryview] = deque()
        self.size = 0
        self.ended = threading.Event()
        self.closing = False
        self._registered = False

    def send(self, kind: int, data: bytes) -> None:
        if kind not in self.kinds or self.ended.is_set():
            return
        self.put(frame(kind, data) if self.framed else data)

    def tell(self, data: bytes) -> None:
        """What the daemon itself has to say: with docker it is on standard output, whatever was asked for."""
        self.put(frame(STDOUT, data) if self.framed else data)

    def put(self, data: bytes) -> None:
        self.pending.append(memoryview(data))
        self.size += len(data)
        if not self._registered:
            self.flush()

    def flush(self, _events: int = 0) -> None:
        try:
            while self.pending:
                sent = self.socket.send(self.pending[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self.size -= sent
                if sent == len(self.pending[0]):
                    self.pending.popleft()
                else:
                    self.pending[0] = self.pending[0][sent:]
        except BlockingIOError:
            if not self._registered:
                self._registered = True
                self.hub.pump.register(self.socket.fileno(), select.EPOLLOUT, self.flush)
            return
        except (OSError, ValueError):
            self.drop()
            return
        if self._registered:
            self._registered = False
            self.hub.pump.unregister(self.socket.fileno())
            self.hub.resume()
        if self.closing:
            self.drop()

    def drop(self) -> None:
        """The connection ends: no more output, and the owner's read returns."""
        if self.ended.is_set():
            return
        self.pending.clear()
        self.size = 0
        if self._registered:
            self._registered = False
            self.hub.pump.unregister(self.socket.fileno())
        self.hub.clients.discard(self)
        self.ended.set()
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.hub.resume()

    def end(self) -> None:
        """After what is pending."""
        self.closing = True
        if not self.pending:
            self.drop()


class _State(NamedTuple):
    """How far the end of the output has come."""

    done: bool
    stalled: bool


def _events(descriptor: int) -> int:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return next((mask for _, mask in poll.poll(0)), 0)


class _Stream:
    def __init__(self, kind: int, descriptor: int) -> None:
        self.kind = kind
        self.descriptor = descriptor
        self.sent = 0  # bytes at the FIFO's head that clients have already
        self.blocked = False


class Hub:
    """Where the output of one process goes. One hub serves all runs of a container."""

    def __init__(self, pump: Pump, tty: bool, driver: Callable[[], Driver | None] | None = None) -> None:
        self.pump = pump
        self.tty = tty
        self.clients: set[Client] = set()
        self.followers: list[Follower] = []
        self._make_driver = driver
        self.driver: Driver | None = None
        self._streams: list[_Stream] = []
        self._marker = Marker(None)
        self._stdin = -1
        self._stdin_lock = threading.Lock()
        self._stalled = False
        self._stall_seconds = STALL_SECONDS[0]
        self._last_output = 0.0

    # -- a run ---------------------------------------------------------------------------------------

    def open(self, paths: tuple[str, str, str], marker: str | None = None) -> None:
        """Make and open the FIFOs (stdin, stdout, stderr; "" for none) before the task exists, or again
        after a restart of the engine. Reading starts with begin()."""
        if paths[0]:
            try:
                os.mkfifo(paths[0], 0o700)
            except FileExistsError:
                pass
            self._stdin = os.open(paths[0], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if self._make_driver is not None and self.driver is None:
            self.driver = self._make_driver()
        self._marker = Marker(marker if self.driver is not None else None)
        for kind in (STDOUT, STDERR):
            if paths[kind]:
                stream = _Stream(kind, open_fifo(paths[kind]))
                self._streams.append(stream)

    def prepare(self) -> None:
        """After open(), where a run begins: is there what the log is written to? Raises EngineError."""
        if self.driver is not None:
            self.driver.open()

    def quiet(self, since: float) -> bool:
        """Whether nothing is here that only this process has or can hand on: since that moment of the monotonic clock
        no output came, all of it is logged, nothing of a line waits in a FIFO, and nobody listens."""

        def look() -> bool:
            waiting = any(stream.sent or stream.blocked for stream in self._streams)
            there = any(_events(stream.descriptor) & select.POLLIN for stream in self._streams)
            return not (waiting or there or self.clients or self.followers or self._last_output > since)

        return self.pump.call(look)

    def begin(self) -> None:
        """The process has been started. What is in the FIFOs before that is a runtime's complaint."""
        self.pump.call(self._begin)

    def discard(self) -> None:
        """The process could not be started: close everything, keep nothing, leave the clients."""
        self.pump.call(self._close_streams)

    def _begin(self) -> None:
        for stream in self._streams:
            self._recover(stream)
            self.pump.register(
                stream.descriptor,
                select.EPOLLIN | select.EPOLLET,
                self._reader(stream),
            )
            self._read(stream)

    def _reader(self, stream: _Stream) -> Callable[[int], None]:
        return lambda _mask: self._read(stream)

    def _recover(self, stream: _Stream) -> None:
        position, logged, checksum = self._marker.get(stream.kind)
        if position and self.driver is not None:
            if logged:
                data = self._peek(stream)
                if data and len(data) >= logged and zlib.crc32(data[:logged]) == checksum:
                    self._take(stream, logged)
            else:
                self.driver.rewind(position - 1)
        self._marker.set(stream.kind, 0, 0, 0)

    def _peek(self, stream: _Stream) -> bytes | None:
        """All that is in the FIFO, left there. None: nothing now. b"": nothing ever again."""
        try:
            count = syscall("tee", NR_tee, stream.descriptor, self.pump.scratch[1], PIPE_SIZE, SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return None
        if not count:
            return b""
        parts = []
        while count > 0:
            part = os.read(self.pump.scratch[0], count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def _take(self, stream: _Stream, size: int) -> None:
        while size > 0:
            size -= os.splice(stream.descriptor, self.pump.null, size)

    def _read(self, stream: _Stream, final: bool = False) -> None:
        """Move what there is. Ends with the FIFO empty (or only an unfinished line in it), or blocked."""
        rounds = 0
        while stream.descriptor >= 0:
            if any(client.size > CLIENT_LIMIT for client in self.clients) and not final:
                stream.blocked = True
                return
            data = self._peek(stream)
            if not data:
                return
            fresh = data[stream.sent :]
            if fresh:
                self._last_output = time.monotonic()
                for client in tuple(self.clients):
                    client.send(stream.kind, fresh)
            stream.sent = len(data)
            taken = len(data)
            if self.driver is not None:
                taken = self.driver.write(stream.kind, data, final, self._marker)
                if self.driver.stalled:  # try again soon
                    if not self._stalled:
                        self._stalled = True
                        self.pump.later(self._unstall, self._stall_seconds)
                        self._stall_seconds = min(2 * self._stall_seconds, STALL_SECONDS[1])
                    stream.blocked = True
            if taken:
                self._stall_seconds = STALL_SECONDS[0]
                if self.followers:
                    self._follow(stream, data[:taken])
                self._take(stream, taken)
                self._marker.set(stream.kind, 0, 0, 0)
                stream.sent -= taken
            if stream.blocked or not taken:
                return
            rounds += 1
            if rounds == ROUNDS and not final:
                self.pump.later(lambda: self._read(stream))
                return

    def _follow(self, stream: _Stream, data: bytes) -> None:
        for follower in tuple(self.followers):
            if not follower(stream.kind, data):
                stream.blocked = True

    def follow(self, follower: Follower, begin: Callable[[], T]) -> T:
        """What is logged from now on goes to the follower as well; the result of `begin`, which is called at this
        moment, in the pump's thread, between two pieces."""

        def join() -> T:
            self.followers.append(follower)
            return begin()

        return self.pump.call(join)

    def unfollow(self, follower: Follower) -> None:
        """The reverse of `follow`."""
        self.pump.call(lambda: self.followers.remove(follower))
        self.resume()

    def _unstall(self) -> None:
        self._stalled = False
        self.resume()

    def resume(self) -> None:
        if any(stream.blocked for stream in self._streams):
            self.pump.later(self._resume)

    def _resume(self) -> None:
        for stream in tuple(self._streams):
            if stream.blocked:
                stream.blocked = False
                self._read(stream)

    def drain(self, timeout: float = FINISH_SECONDS) -> bool:
        """The process is gone, and the shim keeps what it wrote until the task is deleted: log and send that now, for a
        death of this daemon after the deletion would lose it. False: the log took no more for `timeout` seconds."""
        began = time.monotonic()
        pause = threading.Event()
        while not (state := self.pump.call(self._ahead)).done:
            waited = time.monotonic() - began
            if waited >= timeout or not state.stalled and waited >= WRITERS_SECONDS:
                return not state.stalled
            pause.wait(0.005)
        return True

    def _ahead(self) -> _State:
        """Read what there is: to its end where no writer is left, and whole lines of where one may go on."""
        done, stalled = True, False
        for stream in self._streams:
            ended = bool(_events(stream.descriptor) & select.POLLHUP)  # before the reading: nothing comes after it
            stream.blocked = False
            self._read(stream, final=ended)
            stalled = stalled or stream.blocked and self.driver is not None and self.driver.stalled
            done = done and ended and not stream.blocked
        return _State(done, stalled)

    def finish(self, timeout: float = FINISH_SECONDS) -> None:
        """The process is gone and the shim has let go: log and send the rest, then end the clients."""
        deadline = threading.Event()
        attempts = max(1, int(timeout / 0.02))
        for _ in range(attempts):
            if self.pump.call(self._drain):
                break
            deadline.wait(0.02)
        else:
            log.warning("output could not be logged in %.0f seconds; the rest of it is dropped", FINISH_SECONDS)
        self.pump.call(self._close)

    def _drain(self) -> bool:
        """True when nothing is left."""
        for stream in self._streams:
            stream.blocked = False
            self._read(stream, final=True)
            if stream.blocked:
                return False
        return True

    def _close(self) -> None:
        self._close_streams()
        if self.driver is not None:
            self.driver.flush()
        self._end_clients()

    def _close_streams(self) -> None:
        for stream in self._streams:
            self.pump.unregister(stream.descriptor)
            os.close(stream.descriptor)
            stream.descriptor = -1
        self._streams.clear()
        self._marker.close()
        self.close_stdin()

    def end_clients(self) -> None:
        self.pump.call(self._end_clients)

    def _end_clients(self) -> None:
        for client in tuple(self.clients):
            client.end()

    # -- clients -------------------------------------------------------------------------------------

    def attach(
        self, sock: socket.socket, stdout: bool, stderr: bool, before: bytes = b"", framed: bool | None = None
    ) -> Client:
        """Output from now on goes to the connection, after `before`. framed: None is "without a terminal"."""
        client = Client(self, sock, stdout, stderr, framed)

        def add() -> None:
            self.clients.add(client)
            if before:
                client.put(before)
            # An unfinished line that waits in a FIFO: a prompt, most likely.
            for stream in self._streams:
                if stream.sent and (data := self._peek(stream)):
                    client.send(stream.kind, data[: stream.sent])

        self.pump.call(add)
        return client

    def detach(self, client: Client, last_words: bytes = b"") -> None:
        def leave() -> None:
            if last_words:
                client.tell(last_words)
            client.drop()

        self.pump.call(leave)

    def write_stdin(self, data: bytes) -> bool:
        """Waits while the process does not read. False: its input is closed."""
        view = memoryview(data)
        poll: select.poll | None = None
        while view:
            with self._stdin_lock:
                if self._stdin < 0:
                    return False
                try:
                    view = view[os.write(self._stdin, view) :]
                    continue
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._stdin, select.POLLOUT)
                except OSError:
                    return False
            poll.poll(100)
        return True

    @property
    def has_stdin(self) -> bool:
        return self._stdin >= 0

    def close_stdin(self) -> None:
        with self._stdin_lock:
            if self._stdin >= 0:
                os.close(self._stdin)
                self._stdin = -1
