# SPDX-License-Identifier: Apache-2.0
"""One gRPC call whose answers come for as long as the daemon lives: the subscription to containerd's events.

grpcio's threads look several times a second whether anything has come, for each such call; a daemon whose containers
do nothing has to cost nothing. So this one call is made by hand: HTTP/2 (RFC 9113) as far as a single request with
a stream of answers needs it. Called by the monitor.

    us      preface, SETTINGS, HEADERS (literals, no compression), DATA (the request)
    them    SETTINGS, PING -> acknowledged; HEADERS (unread); DATA -> messages, windows given back
            HEADERS with END_STREAM, RST_STREAM, the connection's end -> Unavailable
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from teu.engine.backend.containerd import Unavailable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8
STREAM = 1
# Windows are given back when this much of them is used; they begin with 65,535 octets.
CREDIT = 16 << 10
MESSAGE_LIMIT = 16 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream) + payload


def header(name: str, value: str) -> bytes:
    """A literal that is not to be remembered, name and value in plain octets (RFC 7541, 6.2.2)."""
    if len(name) > 126 or len(value) > 126:
        raise ValueError(f"header {name} is too long for this client")
    return b"\0%c%b%c%b" % (len(name), name.encode(), len(value), value.encode())


class Subscription:
    """Iterate it for the messages, whole and undecoded. Raises Unavailable when the stream has ended."""

    def __init__(self, path: str, method: str, namespace: str, request: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
            fields = (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method),
                (":authority", "localhost"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("containerd-namespace", namespace),
            )
            head = b"".join(header(name, value) for name, value in fields)
            self._socket.sendall(
                PREFACE
                + frame(SETTINGS, 0, 0, b"")
                + frame(HEADERS, END_HEADERS, STREAM, head)
                + frame(DATA, END_STREAM, STREAM, struct.pack(">BI", 0, len(request)) + request)
            )
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"{path}: {error.strerror}") from None
        self._incoming = self._socket.makefile("rb")

    def cancel(self) -> None:
        """From any thread: the iteration ends."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._incoming.close()
        self._socket.close()

    def __iter__(self) -> Iterator[bytes]:
        buffer = b""
        used = 0
        try:
            while True:
                kind, flags, stream, payload = self._frame()
                if kind == SETTINGS and not flags & ACK:
                    self._socket.sendall(frame(SETTINGS, ACK, 0, b""))
                elif kind == PING and not flags & ACK:
                    self._socket.sendall(frame(PING, ACK, 0, payload))
                elif stream == STREAM and kind == RST_STREAM:
                    raise Unavailable(f"the stream was reset (HTTP/2 error {int.from_bytes(payload, 'big')})")
                elif stream == STREAM and kind in (DATA, HEADERS):
                    if kind == DATA:
                        used += len(payload)
                        buffer += payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
                        if used >= CREDIT:
                            credit = struct.pack(">I", used)
                            frames = frame(WINDOW_UPDATE, 0, 0, credit) + frame(WINDOW_UPDATE, 0, STREAM, credit)
                            self._socket.sendall(frames)
                            used = 0
                        while len(buffer) >= 5:
                            compressed, size = struct.unpack_from(">BI", buffer)
                            if compressed or size > MESSAGE_LIMIT:
                                raise Unavailable(f"a message of {size} octets, compressed: {compressed}")
                            if len(buffer) < 5 + size:
                                break
                            yield buffer[5 : 5 + size]
                            buffer = buffer[5 + size :]
                    if flags & END_STREAM:
                        raise Unavailable("the stream has ended")
        except OSError as error:
            raise Unavailable(f"the connection broke: {error.strerror or error}") from None

    def _frame(self) -> tuple[int, int, int, bytes]:
        head = self._exactly(9)
        size = int.from_bytes(head[:3], "big")
        return head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = self._incoming.read(size) if size else b""
        if len(data) < size:
            raise Unavailable("the connection has ended")
        return data
