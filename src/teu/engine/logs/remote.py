# SPDX-License-Identifier: Apache-2.0
"""What log drivers have in common that send a container's output elsewhere: syslog, fluentd, gelf, plugins.

A driver of this kind is a Sink. Remote makes a log driver of it: a thread gives the sink some lines, and waits as long
as it does; meanwhile the output waits in the container's FIFO, so that after a death of the engine it is sent again.
Once it is sent, it goes into a copy here, which is what `logs` reads: a log of the driver local, unless
cache-disabled says no.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.logs.buffered import Dropped
from teu.engine.logs.driver import LINE_LIMIT, Driver, LogSource, Piece, Selection, whole_lines
from teu.engine.logs.local import copy_of
from teu.engine.logs.options import boolean, cache_options

if TYPE_CHECKING:
    import ssl

    from teu.engine.logs.marker import Marker

CONNECT_SECONDS = 10.0
SOURCES = {1: "stdout", 2: "stderr"}


class Part(NamedTuple):
    """Which part of a line longer than LINE_LIMIT a message is. `number` counts from 1."""

    id: str
    number: int
    last: bool


class Message(NamedTuple):
    """A line without its newline, or a part of one, and when it was read, in nanoseconds."""

    kind: int
    moment: int
    line: bytes
    part: Part | None


class Sink(Protocol):
    """Where messages go. Its methods are called by one thread at a time, and may wait."""

    def connect(self) -> None:
        """Be connected, if it is not yet. Raises OSError, EngineError."""

    def send(self, messages: list[Message], stopping: threading.Event) -> int:
        """All of them, in order, trying again as the driver's options have it, until `stopping` is set: how many could
        not be sent and are given up. Raises Stopped for what is to come again."""

    def close(self) -> None:
        """Let go of the connection. Twice is fine. Any thread may call it, and a `send` that waits ends then."""


class Stopped(Exception):
    """A sink was told to stop before the messages were sent."""


class _Job:
    """Lines of one stream that the thread sends: `count` bytes at the head of the output."""

    def __init__(self, kind: int, count: int, messages: list[Message]) -> None:
        self.kind = kind
        self.count = count
        self.messages = messages
        self.over = False


class Remote:
    """A log driver that sends what is logged to a sink."""

    def __init__(self, source: LogSource, sink: Sink, kept: bool = True, fails_early: bool = True) -> None:
        """`kept`: a copy may be kept. `fails_early`: a container is not started without its receiver."""
        self.source = source
        self.stalled = False
        self._sink = sink
        self._fails_early = fails_early
        self._copy: Driver | None = None
        if kept and not boolean(source.options, "cache-disabled"):
            self._copy = copy_of(source._replace(options=cache_options(source.options)))
        self._dropped = Dropped(source)
        self._parts: dict[int, tuple[str, int]] = {}
        self._changed = threading.Condition()
        self._job: _Job | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def open(self) -> None:
        if not self._fails_early:
            return
        try:
            self._sink.connect()
        except OSError as error:
            raise EngineError(
                f"failed to initialize logging driver {self.source.type}: {error.strerror or error}"
            ) from None

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        self.stalled = False
        with self._changed:
            job = self._job
            if job is None:
                count = whole_lines(data, final)
                if count:
                    self._job = _Job(kind, count, self._messages(kind, data[:count]))
                    self._ensure_thread()
                    self.stalled = True
                return 0
            if not job.over or job.kind != kind:
                self.stalled = True
                return 0
        data = data[: job.count]
        if self._copy is None:
            logged = len(data)
            marker.set(kind, 1, logged, zlib.crc32(data))
        else:
            logged = self._copy.write(kind, data, True, marker)
            if self._copy.stalled:
                self.stalled = True
        with self._changed:
            job.count -= logged
            if job.count <= 0:
                self._job = None
        return logged

    def _messages(self, kind: int, data: bytes) -> list[Message]:
        moment = time.time_ns()
        found = []
        start = 0
        while start < len(data):
            end = data.find(b"\n", start)
            whole = end >= 0
            if not whole:
                end = len(data)
            if end - start > LINE_LIMIT:
                end, whole = start + LINE_LIMIT, False
            # What ends without a newline is a part, and be it that nothing follows.
            part = None
            if not whole or kind in self._parts:
                identity, number = self._parts.pop(kind, (secrets.token_hex(32), 0))
                part = Part(identity, number + 1, whole)
                if not whole:
                    self._parts[kind] = (identity, number + 1)
            found.append(Message(kind, moment, data[start:end], part))
            start = end + 1 if whole else end
        return found

    def rewind(self, position: int) -> None:
        if self._copy is not None:
            self._copy.rewind(position)

    def flush(self) -> None:
        self._parts.clear()
        self._end()
        self._dropped.tell("they could not be sent")
        if self._copy is not None:
            self._copy.flush()

    def close(self) -> None:
        self._end()
        if self._copy is not None:
            self._copy.close()

    def _end(self) -> None:
        """Whatever is not sent now is not sent by this thread any more; a new one has a connection of its own."""
        with self._changed:
            self._stopping.set()
            self._thread = self._job = None
            self._changed.notify_all()
        self._sink.close()

    def remove(self) -> None:
        self._end()
        if self._copy is not None:
            self._copy.remove()

    def read(self, selection: Selection) -> Iterator[Piece | None]:
        if self._copy is None:
            raise BadRequest("configured logging driver does not support reading")
        return self._copy.read(selection)

    # -- the thread ----------------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._stopping = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="log-sender", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self, stopping: threading.Event) -> None:
        while True:
            with self._changed:
                while not stopping.is_set() and (self._job is None or self._job.over):
                    self._changed.wait()
                if stopping.is_set() or self._job is None:
                    return
                job = self._job
            lost, why = len(job.messages), "they could not be sent"
            try:
                lost = self._sink.send(job.messages, stopping)
            except Stopped:
                return
            except Exception as error:
                why = str(error) or type(error).__name__
            if lost:
                self._dropped.add(lost, why)
            job.over = True
            self.source.output().resume()


class Receiver:
    """A connection to a receiver, by a stream: tcp, tls or a unix socket."""

    def __init__(
        self, scheme: str, host: str, port: int, path: str = "", trust: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        self._scheme = scheme
        self._address = (host, port)
        self._path = path
        self._trust = trust
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def connect(self) -> socket.socket:
        """The connection. Raises OSError."""
        with self._lock:
            if self._socket is not None:
                return self._socket
        if self._path:
            made = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM if self._scheme == "unixgram" else socket.SOCK_STREAM
            )
            try:
                made.settimeout(CONNECT_SECONDS)
                made.connect(self._path)
            except OSError:
                made.close()
                raise
        elif self._scheme == "udp":
            family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
            made = socket.socket(family, kind, protocol)
            try:
                made.connect(address)
            except OSError:
                made.close()
                raise
        else:
            made = socket.create_connection(self._address, CONNECT_SECONDS)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._trust is not None:
                try:
                    made = self._trust().wrap_socket(made, server_hostname=self._address[0])
                except OSError:
                    made.close()
                    raise
        made.settimeout(None)
        with self._lock:
            self._socket = made
        return made

    def gone(self) -> bool:
        """Whether the receiver has closed a connection on which it says nothing."""
        with self._lock:
            made = self._socket
        if made is None or made.type != socket.SOCK_STREAM or self._trust is not None:
            return False
        try:
            return made.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """End it, also under a thread that waits for it. Twice is fine."""
        with self._lock:
            made, self._socket = self._socket, None
        if made is not None:
            try:
                made.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            made.close()


def address(text: str, option: str) -> SplitResult:
    """PROTOCOL://HOST:PORT or PROTOCOL:///PATH. Raises BadRequest, which names the option."""
    try:
        found = urlsplit(text)
        _ = found.port
    except ValueError as error:
        raise BadRequest(f"invalid value for log opt {option}: {error}") from None
    return found
