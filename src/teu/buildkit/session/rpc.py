# SPDX-License-Identifier: Apache-2.0
"""gRPC's calls over a session's HTTP/2 connection ("gRPC over HTTP2"). Called by manager.Session and its services.

Messages are not compressed, and none is asked for. A status that is not OK is raised as core.errors has it, with the
details that the client sent.
"""

from __future__ import annotations

import base64
import binascii
import collections
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from google.protobuf.message import DecodeError, Message

from teu.api.rpc import status_pb2
from teu.buildkit.core import errors
from teu.http2 import connection as http2

MESSAGE_MAX = 16 << 20  # bytes; BuildKit's own limit
ANSWER = TypeVar("ANSWER", bound=Message)
Metadata = Sequence[tuple[str, str]]

_OF_HTTP: dict[str, type[errors.Error]] = {
    "400": errors.Internal,
    "401": errors.Unauthenticated,
    "403": errors.PermissionDenied,
    "404": errors.Unimplemented,
    "429": errors.Unavailable,
    "502": errors.Unavailable,
    "503": errors.Unavailable,
    "504": errors.Unavailable,
}


def _headers(method: str, metadata: Metadata, timeout: float | None) -> list[tuple[str, str]]:
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("user-agent", "teu-buildkitd"),
        ("te", "trailers"),
    ]
    if timeout is not None:
        headers.append(("grpc-timeout", f"{max(1, min(99_999_999, int(timeout * 1000)))}m"))
    for name, value in metadata:
        if not value.isascii() or not all(" " <= letter <= "~" for letter in value):
            raise errors.InvalidArgument(f"{name}: a header cannot hold {value!r}")
        headers.append((name, value))
    return headers


def status_error(headers: Sequence[tuple[str, str]]) -> errors.Error | None:
    """What the trailers say: None is OK."""
    fields = dict(headers)
    code = fields.get("grpc-status")
    if code is None:
        http = fields.get(":status", "")
        return _OF_HTTP.get(http, errors.Error)(f"the client answered no status of gRPC, but {http or 'nothing'}")
    if code == "0":
        return None
    number = int(code) if code.isdecimal() and len(code) < 4 else errors.Error.code
    status = status_pb2.Status(code=number, message=unquote(fields.get("grpc-message", ""), errors="replace"))
    packed = fields.get("grpc-status-details-bin", "")
    if packed:
        try:
            whole = status_pb2.Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4)))
            status.details.extend(whole.details)
        except (binascii.Error, ValueError, DecodeError):
            pass  # the code and the message are enough
    return errors.from_status(status)


class Call(Generic[ANSWER]):
    """A call under way: requests go out with `send`, answers are iterated. Leave it by `close` or as a context manager:
    what has not ended then is cancelled."""

    def __init__(
        self,
        connection: http2.Connection,
        method: str,
        answer: type[ANSWER],
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> None:
        self._answer = answer
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._stream = connection.request(_headers(method, metadata, timeout), self._deadline)
        self._rest = bytearray()
        self._ready: collections.deque[ANSWER] = collections.deque()
        self._checked = False
        self._over = False

    def send(self, request: Message) -> None:
        """Send one message; waits where the client does not read. After the client's last word it does nothing: its
        status is what `receive` says."""
        data = request.SerializeToString()
        self._stream.send(struct.pack(">BI", 0, len(data)) + data, deadline=self._deadline)

    def send_many(self, requests: Iterable[Message]) -> None:
        """Small messages in one go."""
        out = bytearray()
        for request in requests:
            data = request.SerializeToString()
            out += struct.pack(">BI", 0, len(data)) + data
        if out:
            self._stream.send(bytes(out), deadline=self._deadline)

    def end(self) -> None:
        """There will be no more requests."""
        self._stream.send(b"", end=True, deadline=self._deadline)

    def receive(self) -> ANSWER | None:
        """The next answer; None at the end of a call that went well, else its error."""
        while not self._ready:
            if self._over:
                return None
            self._more()
        return self._ready.popleft()

    def __iter__(self) -> Iterator[ANSWER]:
        while (answer := self.receive()) is not None:
            yield answer

    @property
    def answered(self) -> bool:
        """Has the client said its last word? What is sent from now on is for nobody."""
        return self._stream.ended

    def waiting(self) -> bool:
        """Is there an answer that was read already?"""
        return bool(self._ready)

    def _more(self) -> None:
        data = self._stream.receive(self._deadline)
        if not self._checked and self._stream.headers is not None:
            self._checked = True
            fields = dict(self._stream.headers)
            if fields.get(":status") != "200" or not fields.get("content-type", "").startswith("application/grpc"):
                error = status_error([pair for pair in self._stream.headers if pair[0] != "grpc-status"])
                self._stream.cancel()
                assert error is not None
                raise error
        if not data:
            self._over = True
            error = status_error(self._stream.trailers or ())
            if error is not None:
                raise error
            if self._rest:
                raise errors.Internal("the client's last message is cut off")
            return
        self._rest += data
        at, size = 0, len(self._rest)
        while size - at >= 5:
            compressed, length = struct.unpack_from(">BI", self._rest, at)
            if compressed:
                self._refuse(errors.Internal("the client compressed a message, which nobody asked for"))
            if length > MESSAGE_MAX:
                self._refuse(errors.ResourceExhausted(f"a message of {length} bytes; {MESSAGE_MAX} is the most"))
            if size - at < 5 + length:
                break
            try:
                self._ready.append(self._answer.FromString(bytes(memoryview(self._rest)[at + 5 : at + 5 + length])))
            except DecodeError:
                self._refuse(
                    errors.Internal(f"the client sent something that is no {self._answer.DESCRIPTOR.full_name}")
                )
            at += 5 + length
        del self._rest[:at]

    def _refuse(self, error: errors.Error) -> None:
        self._stream.cancel()
        raise error

    def cancel(self) -> None:
        """End the call, from any thread."""
        self._stream.cancel()

    def close(self) -> None:
        self._stream.cancel()

    def __enter__(self) -> Call[ANSWER]:
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()


def unary(
    connection: http2.Connection,
    method: str,
    request: Message,
    answer: type[ANSWER],
    metadata: Metadata = (),
    timeout: float | None = None,
) -> ANSWER:
    """One question, one answer."""
    with Call(connection, method, answer, metadata, timeout) as call:
        call.send(request)
        call.end()
        first = call.receive()
        if first is None:
            raise errors.Internal("the client answered without an answer")
        if call.receive() is not None:
            raise errors.Internal("the client answered more than once")
        return first
