# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 (RFC 9113), either end, over any way of bytes. Called by `calls`, by the builder's sessions and by
`teu build`.

A Connection does no I/O. `feed` takes what arrived, and never blocks; `take` gives what is to be sent, and blocks until
there is something. So a socket needs two threads, and a gRPC stream that carries the bytes needs one more
than it has anyway.

What the other end may cost: a stream's unread data is at most STREAM_WINDOW, because a window is opened again only as
data is read; answers to its frames (PING, SETTINGS) and their backlog are bounded, and so are header blocks. An end
that breaks the rules loses the connection; whether it is still there is asked with `ping`.

A Connection is a client; with `serve` it is a server, and calls that with each request when its headers are here.
Errors are the caller's own: `raising(code, text)` makes one of a status code of gRPC.
"""

from __future__ import annotations

import collections
import struct
import threading
import time

from teu.http2 import hpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class Raising(Protocol):
        def __call__(self, code: int, message: str, details: bytes = b"", /) -> Exception:
            """The error of a gRPC code; details: a google.rpc.Status, where the other end sent one."""

    Headers = Sequence[tuple[str, str]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST = range(
    1, 7
)
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 7, 8, 9, 11

STREAM_WINDOW = 1 << 20  # bytes of one stream that may lie here unread
CONNECTION_WINDOW = 16 << 20  # bytes on their way at a time, of all streams
FRAME_SIZE = 1 << 20  # the largest frame that is taken
HEADERS_SIZE = 1 << 20  # an error's details may hold a Dockerfile
FIRST_WINDOW = 65535  # of both ends, until they say otherwise
FIRST_FRAME_SIZE = 16384
WINDOW_MAX = (1 << 31) - 1
STREAMS_MAX = 1000  # open at a time, whatever the other end allows
BACKLOG = 1 << 20  # bytes to be sent, before who sends data waits
BACKLOG_MAX = 4 << 20  # with answers that do not wait; more is an end that asks and does not read
FRAME_HEADER = 9

# gRPC's status codes that a connection itself tells of.
CANCELLED, DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 4, 7, 8, 13, 14

# Of RST_STREAM and GOAWAY, as gRPC's statuses ("HTTP2 Transport Mapping").
_STATUS = {
    REFUSED_STREAM: UNAVAILABLE,
    CANCEL: CANCELLED,
    ENHANCE_YOUR_CALM: RESOURCE_EXHAUSTED,
    12: PERMISSION_DENIED,
}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame as it is sent (RFC 9113, 4.1). `stream` is 0 for what is of the whole connection; the payload has less
    than 16 MiB, and no more than the other end has said that it takes."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


class BrokenRule(Exception):
    """The other end broke a rule: (code of GOAWAY, why)."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class Stream:
    """One request and its answer. Everything is guarded by the connection's lock."""

    def __init__(self, connection: Connection, number: int, window: int) -> None:
        self._connection = connection
        self.number = number
        self.changed = threading.Condition(connection.lock)
        self.headers: list[tuple[str, str]] | None = None  # the other end's
        self.trailers: list[tuple[str, str]] | None = None
        self.buffer = bytearray()  # unread
        self.ended = False  # the other end sends nothing more
        self.closed = False  # nor do we
        self.error: Exception | None = None
        self.send_window = window
        self.credit = 0  # bytes read, for which the window was not yet opened again

    def send(self, data: bytes, end: bool = False, deadline: float | None = None) -> None:
        """Send data, waiting for the other end's windows. The stream's error where it has ended meanwhile; without one
        what is sent after the other end's last word is dropped, as gRPC wants it."""
        connection = self._connection
        view = memoryview(data)
        with connection.lock:
            while True:
                if self.error is not None:
                    raise self.error
                if self.closed or (self.ended and not connection.serves):
                    return
                room = min(self.send_window, connection.send_window)
                if not view and not end:
                    return
                if (room > 0 or not view) and connection.backlog < BACKLOG:
                    part = view[: min(room, connection.frame_size)]
                    view = view[len(part) :]
                    self.send_window -= len(part)
                    connection.send_window -= len(part)
                    last = end and not view
                    connection.queue(frame(DATA, END_STREAM if last else 0, self.number, bytes(part)))
                    if last:
                        self.closed = True
                        connection.settle(self)
                        return
                    continue
                self.wait(deadline, connection.writable)

    def answer(self, headers: Headers) -> None:
        """Begin the answer to a request (as its server)."""
        with self._connection.lock:
            if not self.closed:
                self._connection.queue_headers(self.number, headers)

    def finish(self, trailers: Headers) -> None:
        """End the answer to a request. What the client would still send is not wanted."""
        connection = self._connection
        with connection.lock:
            if self.closed:
                return
            connection.queue_headers(self.number, trailers, END_STREAM)
            if not self.ended:
                connection.queue(frame(RST_STREAM, 0, self.number, struct.pack(">I", NO_ERROR)))
            self.ended = self.closed = True
            connection.settle(self)
            self.changed.notify_all()
            connection.writable.notify_all()

    def wait(self, deadline: float | None, condition: threading.Condition | None = None) -> None:
        """Wait for a change (the lock is held); DeadlineExceeded, with the stream cancelled, at deadline."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            self.fail(self._connection.raising(DEADLINE_EXCEEDED, "context deadline exceeded"), CANCEL)
            assert self.error is not None
            raise self.error
        (condition or self.changed).wait(left)

    def receive(self, deadline: float | None = None) -> bytearray:
        """What has come, all of it; b"" at the end. The stream's error once what came before it is read."""
        connection = self._connection
        with connection.lock:
            while True:
                if self.buffer:
                    data, self.buffer = self.buffer, bytearray()
                    self.credit += len(data)
                    if not self.ended and self.credit >= STREAM_WINDOW // 2:
                        connection.queue(frame(WINDOW_UPDATE, 0, self.number, struct.pack(">I", self.credit)))
                        self.credit = 0
                    return data
                if self.error is not None:
                    raise self.error
                if self.ended:
                    return bytearray()
                self.wait(deadline)

    def fail(self, error: Exception, code: int | None) -> None:
        """End the stream here (the lock is held), with RST_STREAM where code is given. The first error stays."""
        if self.error is None and not (self.ended and self.closed):
            self.error = error
        if code is not None and not (self.ended and self.closed) and self._connection.error is None:
            self._connection.queue(frame(RST_STREAM, 0, self.number, struct.pack(">I", code)))
        self.ended = self.closed = True
        self._connection.settle(self)
        self.changed.notify_all()
        self._connection.writable.notify_all()

    def cancel(self, why: str = "context canceled") -> None:
        """End the call, from any thread: whoever waits gets Cancelled. Nothing where it has ended."""
        with self._connection.lock:
            if not (self.ended and self.closed):
                self.buffer.clear()
                self.fail(self._connection.raising(CANCELLED, why), CANCEL)


class Connection:
    """One end. `ended` is called once, with the reason, from whatever thread saw it; `serve` with each request, while
    the lock is held. Neither may block. `peer`: what the other end is called in errors."""

    def __init__(
        self,
        raising: Raising,
        ended: Callable[[Exception], None] = lambda error: None,
        serve: Callable[[Stream], None] | None = None,
        peer: str = "the client",
    ) -> None:
        self.raising = raising
        self.serves = serve is not None
        self._serve = serve
        self.peer = peer
        self._last = 0  # the newest stream that a client began
        self._preface = PREFACE if self.serves else b""  # what of it is still to come
        self.lock = threading.RLock()
        self.writable = threading.Condition(self.lock)  # a window was opened, backlog went, a stream ended
        self._to_send = threading.Condition(self.lock)
        self._ended = ended
        self.error: Exception | None = None
        self.streams: dict[int, Stream] = {}
        self._next = 1
        self._out: collections.deque[bytes] = collections.deque()
        self.backlog = 0
        self.send_window = FIRST_WINDOW
        self.frame_size = FIRST_FRAME_SIZE
        self._stream_window = FIRST_WINDOW
        self._streams_max = STREAMS_MAX
        self._credit = 0
        self._in = bytearray()
        self._decoder = hpack.Decoder(HEADERS_SIZE)
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, headers that are to be continued
        self._going_away = False
        self._settled = False  # the other end's first SETTINGS has come
        self._heard = time.monotonic()
        settings = (
            (MAX_CONCURRENT_STREAMS, STREAMS_MAX) if self.serves else (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (MAX_FRAME_SIZE, FRAME_SIZE),
            (MAX_HEADER_LIST, HEADERS_SIZE),
        )
        preface = b"" if self.serves else PREFACE
        self.queue(preface + frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in settings)))
        self.queue(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", CONNECTION_WINDOW - FIRST_WINDOW)))

    # What goes out.

    def queue(self, data: bytes) -> None:
        """Hand over bytes to be sent; the lock is held, except in the constructor."""
        with self.lock:
            self._out.append(data)
            self.backlog += len(data)
            self._to_send.notify_all()

    def take(self, limit: int = 256 << 10) -> bytes:
        """What is to be sent next, about `limit` bytes; waits for it. b"" when the connection has ended."""
        with self.lock:
            while not self._out:
                if self.error is not None:
                    return b""
                self._to_send.wait()
            parts, size = [], 0
            while self._out and size < limit:
                parts.append(self._out.popleft())
                size += len(parts[-1])
            self.backlog -= size
            self.writable.notify_all()
            return b"".join(parts)

    def queue_headers(self, number: int, headers: Headers, flags: int = 0) -> None:
        """Hand over headers or trailers; the lock is held."""
        block = hpack.encode(headers)
        parts = [block[at : at + self.frame_size] for at in range(0, len(block), self.frame_size)] or [b""]
        for index, part in enumerate(parts):
            last = END_HEADERS if index == len(parts) - 1 else 0
            self.queue(frame(CONTINUATION, last, number, part) if index else frame(HEADERS, flags | last, number, part))

    def request(self, headers: Headers, deadline: float | None = None) -> Stream:
        """Begin a request. Waits while the other end takes no more streams."""
        with self.lock:
            while True:
                if self.error is not None:
                    raise self.error
                if self._going_away:
                    raise self.raising(UNAVAILABLE, f"{self.peer} is going away")
                if len(self.streams) < self._streams_max and self.backlog < BACKLOG:
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise self.raising(DEADLINE_EXCEEDED, "context deadline exceeded")
                self.writable.wait(left)
            if self._next > WINDOW_MAX:
                raise self.raising(UNAVAILABLE, "the session has used up its streams")
            stream = Stream(self, self._next, self._stream_window)
            self._next += 2
            self.streams[stream.number] = stream
            self.queue_headers(stream.number, headers)
            return stream

    def settle(self, stream: Stream) -> None:
        """Forget a stream that both ends have ended."""
        if stream.ended and stream.closed and self.streams.pop(stream.number, None) is not None:
            self.writable.notify_all()

    def ping(self) -> None:
        """Ask the other end for a sign of life."""
        with self.lock:
            if self.error is None:
                self.queue(frame(PING, 0, 0, b"teualive"))

    def silent(self) -> float:
        """Seconds since anything came."""
        return time.monotonic() - self._heard

    def close(self, error: Exception, code: int = NO_ERROR) -> None:
        """End the connection and everything on it. What is queued may still be taken. Only the first call counts."""
        with self.lock:
            if self.error is not None:
                return
            self.queue(frame(GOAWAY, 0, 0, struct.pack(">II", self._last, code)))
            self.error = error
            for stream in list(self.streams.values()):
                stream.fail(error, None)
            self.streams.clear()
            self._in.clear()
            self.writable.notify_all()
            self._to_send.notify_all()
        self._ended(error)

    # What comes in.

    def feed(self, data: bytes) -> None:
        """Take what arrived; b"" is the end of the connection. Does not block, and raises nothing."""
        if not data:
            self.close(self.raising(UNAVAILABLE, f"{self.peer} has closed its session"))
            return
        broken: BrokenRule | None = None
        with self.lock:
            if self.error is not None:
                return
            self._heard = time.monotonic()
            self._in += data
            at, size = 0, len(self._in)
            try:
                if self._preface:
                    at = self._greeting()
                while size - at >= FRAME_HEADER and self.error is None:
                    word, flags, number = struct.unpack_from(">IBI", self._in, at)
                    length, kind = word >> 8, word & 0xFF
                    if length > FRAME_SIZE:
                        raise BrokenRule(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                    if size - at < FRAME_HEADER + length:
                        break
                    payload = bytes(memoryview(self._in)[at + FRAME_HEADER : at + FRAME_HEADER + length])
                    at += FRAME_HEADER + length
                    self._frame(kind, flags, number & WINDOW_MAX, payload)
                del self._in[:at]
                if self.backlog > BACKLOG_MAX:
                    raise BrokenRule(ENHANCE_YOUR_CALM, "it asks without reading the answers")
            except BrokenRule as error:
                broken = error
            except (hpack.HpackError, IndexError) as error:
                broken = BrokenRule(COMPRESSION_ERROR, f"headers that are none: {error}")
            except struct.error:
                broken = BrokenRule(FRAME_SIZE_ERROR, "a frame is too short")
        if broken is not None:
            self.close(self.raising(UNAVAILABLE, f"{self.peer} broke HTTP/2: {broken.why}"), broken.code)

    def _greeting(self) -> int:
        """A client's first words; how many bytes of them have come with this piece. The lock is held."""
        length = min(len(self._in), len(self._preface))
        if self._in[:length] != self._preface[:length]:
            raise BrokenRule(PROTOCOL_ERROR, "it does not speak HTTP/2")
        self._preface = self._preface[length:]
        return length

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        self._check(kind, number)
        if kind == DATA:
            self._data(number, flags, payload)
        elif kind == HEADERS:
            payload = self._unpadded(flags, payload)
            if flags & HAS_PRIORITY:
                payload = payload[5:]
            self._headers(number, flags, bytearray(payload))
        elif kind == CONTINUATION:
            self._continuation(number, flags, payload)
        elif kind == SETTINGS:
            self._settings(flags, number, payload)
        elif kind == PING:
            self._ping(flags, number, payload)
        elif kind == WINDOW_UPDATE:
            self._window_update(number, struct.unpack(">I", payload)[0] & WINDOW_MAX)
        elif kind == RST_STREAM:
            self._reset(number, struct.unpack(">I", payload)[0])
        elif kind == GOAWAY:
            self._goaway(*struct.unpack_from(">II", payload))

    def _check(self, kind: int, number: int) -> None:
        """May a frame of this kind, for this stream, come now?"""
        if self._block is not None and (kind != CONTINUATION or number != self._block[0]):
            raise BrokenRule(PROTOCOL_ERROR, "headers were not continued")
        if not self._settled and kind != SETTINGS:
            raise BrokenRule(PROTOCOL_ERROR, "its first frame is not SETTINGS")
        if kind in (DATA, HEADERS, RST_STREAM, PRIORITY, CONTINUATION) and not number:
            raise BrokenRule(PROTOCOL_ERROR, "a frame belongs to no stream")
        if kind == PUSH_PROMISE:
            raise BrokenRule(PROTOCOL_ERROR, "it pushes, which was refused")
        begun = number <= self._last or kind in (HEADERS, PRIORITY) if self.serves else number < self._next
        if number and (number % 2 == 0 or not begun):
            raise BrokenRule(PROTOCOL_ERROR, f"stream {number} was never begun")

    def _continuation(self, number: int, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise BrokenRule(PROTOCOL_ERROR, "headers that nothing began are continued")
        if not payload and not flags & END_HEADERS:
            raise BrokenRule(ENHANCE_YOUR_CALM, "headers are continued with nothing")
        self._block[2].extend(payload)
        self._headers(number, self._block[1] | flags & END_HEADERS, self._block[2])

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise BrokenRule(FRAME_SIZE_ERROR, "a PING that is none")
        if not flags & ACK:
            self.queue(frame(PING, ACK, 0, payload))

    @staticmethod
    def _unpadded(flags: int, payload: bytes) -> bytes:
        if not flags & PADDED:
            return payload
        if not payload or payload[0] >= len(payload):
            raise BrokenRule(PROTOCOL_ERROR, "more padding than frame")
        return payload[1 : len(payload) - payload[0]]

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        self._credit += len(payload)
        if self._credit >= CONNECTION_WINDOW // 2:
            self.queue(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._credit)))
            self._credit = 0
        stream = self.streams.get(number)
        if stream is None or stream.ended:
            return  # cancelled a moment ago
        padding = len(payload)
        payload = self._unpadded(flags, payload)
        stream.credit += padding - len(payload)
        if stream.headers is None:
            raise BrokenRule(PROTOCOL_ERROR, "data before headers")
        if len(stream.buffer) + len(payload) > STREAM_WINDOW:
            stream.fail(self.raising(INTERNAL, f"{self.peer} sent more than it was allowed to"), FLOW_CONTROL_ERROR)
            return
        stream.buffer += payload
        if flags & END_STREAM and self.serves:
            stream.ended = True
            self.settle(stream)
        elif flags & END_STREAM:
            stream.fail(self.raising(INTERNAL, f"{self.peer} ended its answer without a status"), CANCEL)
        stream.changed.notify_all()

    def _headers(self, number: int, flags: int, block: bytearray) -> None:
        if len(block) > HEADERS_SIZE:
            raise BrokenRule(ENHANCE_YOUR_CALM, "headers without an end")
        if not flags & END_HEADERS:
            self._block = (number, flags, block)
            return
        self._block = None
        headers = self._decoder.decode(bytes(block))
        end = bool(flags & END_STREAM)
        if self._serve is not None and number > self._last:
            self._begin(number, headers, end, self._serve)
            return
        stream = self.streams.get(number)
        if stream is None or stream.ended:
            return
        if stream.headers is None:
            status = next((value for name, value in headers if name == ":status"), "")
            if status.startswith("1") and not end:
                return  # an interim answer
            stream.headers = headers
            if end:
                stream.trailers = headers
        elif not end:
            stream.fail(self.raising(INTERNAL, f"{self.peer} sent headers in the middle of its answer"), PROTOCOL_ERROR)
        else:
            stream.trailers = headers
        if end:
            stream.ended = True
            if not stream.closed and not self.serves:
                # The answer is whole: whatever we had to say is of no use any more.
                self.queue(frame(RST_STREAM, 0, number, struct.pack(">I", NO_ERROR)))
                stream.closed = True
            self.settle(stream)
        stream.changed.notify_all()
        self.writable.notify_all()

    def _begin(self, number: int, headers: list[tuple[str, str]], end: bool, serve: Callable[[Stream], None]) -> None:
        """A client's request."""
        self._last = number
        if len(self.streams) >= STREAMS_MAX or self._going_away:
            self.queue(frame(RST_STREAM, 0, number, struct.pack(">I", REFUSED_STREAM)))
            return
        stream = self.streams[number] = Stream(self, number, self._stream_window)
        stream.headers, stream.ended = headers, end
        serve(stream)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise BrokenRule(FRAME_SIZE_ERROR, "SETTINGS that are none")
        if flags & ACK:
            return
        self._settled = True
        for name, value in struct.iter_unpack(">HI", payload):
            if name == MAX_CONCURRENT_STREAMS:
                self._streams_max = min(value, STREAMS_MAX)
            elif name == INITIAL_WINDOW_SIZE:
                if value > WINDOW_MAX:
                    raise BrokenRule(FLOW_CONTROL_ERROR, "a window beyond all windows")
                for stream in self.streams.values():
                    stream.send_window += value - self._stream_window
                self._stream_window = value
            elif name == MAX_FRAME_SIZE:
                if not FIRST_FRAME_SIZE <= value < 1 << 24:
                    raise BrokenRule(PROTOCOL_ERROR, f"frames of {value} bytes")
                self.frame_size = min(value, FRAME_SIZE)
        self.queue(frame(SETTINGS, ACK, 0))
        self.writable.notify_all()

    def _window_update(self, number: int, more: int) -> None:
        if not number:
            self.send_window += more
            if not more or self.send_window > WINDOW_MAX:
                raise BrokenRule(FLOW_CONTROL_ERROR, "the window was opened by nothing, or beyond all windows")
        elif (stream := self.streams.get(number)) is not None:
            stream.send_window += more
            if not more or stream.send_window > WINDOW_MAX:
                stream.fail(self.raising(INTERNAL, f"{self.peer} opened a window too far"), FLOW_CONTROL_ERROR)
        self.writable.notify_all()

    def _reset(self, number: int, code: int) -> None:
        stream = self.streams.get(number)
        if stream is not None:
            stream.fail(
                self.raising(_STATUS.get(code, INTERNAL), f"{self.peer} ended the call (HTTP/2 code {code})"), None
            )

    def _goaway(self, last: int, code: int) -> None:
        """What was begun up to `last` may still be answered; nothing new may begin."""
        self._going_away = True
        self.writable.notify_all()
        for number, stream in list(self.streams.items()):
            if number > last and not self.serves:
                stream.fail(self.raising(UNAVAILABLE, f"{self.peer} is going away (HTTP/2 code {code})"), None)
        if not self.streams:
            raise BrokenRule(NO_ERROR, "it has gone away")
