# SPDX-License-Identifier: Apache-2.0
"""gRPC's calls over a Connection ("gRPC over HTTP2"), messages as bytes. Called by the builder's sessions, which add
protobuf, and by `teu build`, as client and as server.

Messages are not compressed, and none is asked for. What is not OK is raised as the connection's `raising` has it.
"""

from __future__ import annotations

import binascii
import collections
import struct
import threading
import time

from teu.http2.connection import INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from teu.http2.connection import Connection, Headers, Raising, Stream

MESSAGE_MAX = 16 << 20  # bytes; BuildKit's own limit
UNKNOWN, INVALID_ARGUMENT, UNAUTHENTICATED, UNIMPLEMENTED = 2, 3, 16, 12
PERMISSION_DENIED = 7

_OF_HTTP = {
    "400": INTERNAL,
    "401": UNAUTHENTICATED,
    "403": PERMISSION_DENIED,
    "404": UNIMPLEMENTED,
    "429": UNAVAILABLE,
    "502": UNAVAILABLE,
    "503": UNAVAILABLE,
    "504": UNAVAILABLE,
}
_HEX = frozenset("0123456789abcdefABCDEF")
_ANSWER = ((":status", "200"), ("content-type", "application/grpc"))


def framed(messages: Iterable[bytes]) -> bytes:
    """Messages as they stand in a stream."""
    return b"".join(struct.pack(">BI", 0, len(data)) + data for data in messages)


def _request(method: str, metadata: Headers, timeout: float | None, agent: str, raising: Raising) -> Headers:
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("user-agent", agent),
        ("te", "trailers"),
    ]
    if timeout is not None:
        headers.append(("grpc-timeout", f"{max(1, min(99_999_999, int(timeout * 1000)))}m"))
    for name, value in metadata:
        if not value.isascii() or not all(" " <= letter <= "~" for letter in value):
            raise raising(INVALID_ARGUMENT, f"{name}: a header cannot hold {value!r}")
        headers.append((name, value))
    return headers


def status_error(headers: Headers, raising: Raising, peer: str = "the client") -> Exception | None:
    """What trailers say: None is OK."""
    fields = dict(headers)
    code = fields.get("grpc-status")
    if code is None:
        http = fields.get(":status", "")
        return raising(_OF_HTTP.get(http, UNKNOWN), f"{peer} answered no status of gRPC, but {http or 'nothing'}")
    if code == "0":
        return None
    number = int(code) if code.isdecimal() and len(code) < 4 else UNKNOWN
    packed = fields.get("grpc-status-details-bin", "")
    try:
        details = binascii.a2b_base64(packed + "=" * (-len(packed) % 4))
    except ValueError:
        details = b""  # the code and the message are enough
    return raising(number, unescaped(fields.get("grpc-message", "")), details)


class Messages:
    """The messages that come in a stream."""

    def __init__(self, stream: Stream, raising: Raising, peer: str, deadline: float | None = None) -> None:
        self._stream = stream
        self._raising = raising
        self._peer = peer
        self._deadline = deadline
        self._rest = bytearray()
        self.ready: collections.deque[bytes] = collections.deque()
        self._over = False

    def more(self) -> bool:
        """Read what has come; waits for it. False at the end."""
        data = self._stream.receive(self._deadline)
        if not data:
            self._over = True
            return False
        self._rest += data
        at, size = 0, len(self._rest)
        while size - at >= 5:
            compressed, length = struct.unpack_from(">BI", self._rest, at)
            if compressed:
                self.refuse(INTERNAL, f"{self._peer} compressed a message, which nobody asked for")
            if length > MESSAGE_MAX:
                self.refuse(RESOURCE_EXHAUSTED, f"a message of {length} bytes; {MESSAGE_MAX} is the most")
            if size - at < 5 + length:
                break
            self.ready.append(bytes(memoryview(self._rest)[at + 5 : at + 5 + length]))
            at += 5 + length
        del self._rest[:at]
        return True

    def refuse(self, code: int, why: str) -> None:
        """End the call, for what came is not what may come."""
        self._stream.cancel()
        raise self._raising(code, why)

    def receive(self) -> bytes | None:
        """The next message; None at the end."""
        while not self.ready:
            if self._over or not self.more():
                if self._rest:
                    raise self._raising(INTERNAL, f"{self._peer}'s last message is cut off")
                return None
        return self.ready.popleft()


class Call:
    """A call under way: requests go out with `send`, answers are iterated. Leave it by `close` or as a context manager:
    what has not ended then is cancelled."""

    def __init__(
        self,
        connection: Connection,
        method: str,
        metadata: Headers = (),
        timeout: float | None = None,
        agent: str = "teu",
    ) -> None:
        """timeout: seconds for the whole call."""
        self._raising, self._peer = connection.raising, connection.peer
        self._deadline = None if timeout is None else time.monotonic() + timeout
        headers = _request(method, metadata, timeout, agent, self._raising)
        self.stream = connection.request(headers, self._deadline)
        self.messages = Messages(self.stream, self._raising, self._peer, self._deadline)
        self._checked = self._told = False

    def send(self, *messages: bytes) -> None:
        """Send messages in one go; waits where the other end does not read. After its last word it does nothing: its
        status is what `receive` says."""
        self.stream.send(framed(messages), deadline=self._deadline)

    def end(self) -> None:
        """There will be no more requests."""
        self.stream.send(b"", end=True, deadline=self._deadline)

    def receive(self) -> bytes | None:
        """The next answer; None at the end of a call that went well, else its error."""
        if self._told:
            return None
        while not self.messages.ready:
            going = self.messages.more()
            if not self._checked and self.stream.headers is not None:
                self._check(self.stream.headers)
            if not going:
                self._told = True
                error = status_error(self.stream.trailers or (), self._raising, self._peer)
                if error is not None:
                    raise error
                return self.messages.receive()
        return self.messages.receive()

    def _check(self, headers: Headers) -> None:
        self._checked = True
        fields = dict(headers)
        if fields.get(":status") != "200" or not fields.get("content-type", "").startswith("application/grpc"):
            error = status_error([pair for pair in headers if pair[0] != "grpc-status"], self._raising, self._peer)
            self.stream.cancel()
            assert error is not None
            raise error

    def __iter__(self) -> Iterator[bytes]:
        while (answer := self.receive()) is not None:
            yield answer

    @property
    def answered(self) -> bool:
        """Has the other end said its last word? What is sent from now on is for nobody."""
        return self.stream.ended

    def waiting(self) -> bool:
        """Is there an answer that was read already?"""
        return bool(self.messages.ready)

    def close(self) -> None:
        """End the call, from any thread."""
        self.stream.cancel()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()


def unary(
    connection: Connection, method: str, request: bytes, metadata: Headers = (), timeout: float | None = None
) -> bytes:
    """One question, one answer."""
    with Call(connection, method, metadata, timeout) as call:
        call.send(request)
        call.end()
        first = call.receive()
        if first is None:
            raise connection.raising(INTERNAL, f"{connection.peer} answered without an answer")
        if call.receive() is not None:
            raise connection.raising(INTERNAL, f"{connection.peer} answered more than once")
        return first


class Asked:
    """A call of the other end, to be answered: `send` what there is to say, `finish` it once."""

    def __init__(self, stream: Stream, raising: Raising, peer: str) -> None:
        self._stream = stream
        self._messages = Messages(stream, raising, peer)
        self._begun = False
        self._lock = threading.Lock()  # two threads may send
        headers = stream.headers or []
        self.method = next((value for name, value in headers if name == ":path"), "")
        self.metadata: dict[str, list[str]] = {}
        for name, value in headers:
            self.metadata.setdefault(name, []).append(value)

    def receive(self) -> bytes | None:
        """The next request; None at their end. The connection's error where the call was cancelled."""
        return self._messages.receive()

    def __iter__(self) -> Iterator[bytes]:
        while (request := self.receive()) is not None:
            yield request

    def send(self, *messages: bytes) -> None:
        """Send messages in one go, from any thread; waits where the other end does not read."""
        with self._lock:
            self._begin()
            self._stream.send(framed(messages))

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._stream.answer(_ANSWER)

    def finish(self, code: int = 0, message: str = "") -> None:
        """The status of the call, which ends it: a code of gRPC and a text for a person. Does nothing a second time."""
        self._begin()
        trailers = [("grpc-status", str(code))]
        if message:
            trailers.append(("grpc-message", _escaped(message)))
        self._stream.finish(trailers)


def unescaped(text: str, errors: str = "replace") -> str:
    """Text with %XX for bytes. (urllib.parse has it, and 5 ms of other things.)"""
    first, *rest = text.split("%")
    data = bytearray(first.encode("utf-8", "surrogateescape"))
    for piece in rest:
        coded = len(piece) > 1 and _HEX.issuperset(piece[:2])
        data += bytes.fromhex(piece[:2]) if coded else b"%"
        data += piece[2 if coded else 0 :].encode("utf-8", "surrogateescape")
    return data.decode("utf-8", errors)


def _escaped(text: str) -> str:
    """A message as a header holds it: what is not printable ASCII, and "%", as %XX."""
    data = text.encode("utf-8", "replace")[:8192]
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in data)
