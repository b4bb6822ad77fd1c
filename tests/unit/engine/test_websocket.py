# SPDX-License-Identifier: Apache-2.0
"""WebSockets: the handshake, frames of both sides, and how they end."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from teu.engine.api import websocket
from teu.engine.api.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Bridge
from teu.engine.core.errors import BadRequest

GIVEN = {
    "upgrade": "WebSocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",  # that of RFC 6455, section 1.3
}
KEY = b"\x37\xfa\x21\x3d"


def test_the_handshake() -> None:
    answer = websocket.handshake(GIVEN)
    assert answer == {"Upgrade": "websocket", "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}
    assert websocket.handshake({**GIVEN, "sec-websocket-protocol": "chat"})["Sec-WebSocket-Protocol"] == "chat"
    assert "Sec-WebSocket-Protocol" not in websocket.handshake({**GIVEN, "sec-websocket-protocol": "a, b"})
    for wrong in (
        {"upgrade": "tcp"},
        {"upgrade": ""},
        {"sec-websocket-version": "8"},
        {"sec-websocket-key": ""},
        {"sec-websocket-key": "short"},
        {"sec-websocket-key": "AAAA"},
    ):
        with pytest.raises(BadRequest):
            websocket.handshake({**GIVEN, **wrong})


def masked(opcode: int, data: bytes, final: bool = True, size: int = -1) -> bytes:
    """A frame as a client sends it, whose length takes `size` bytes more than one where that is not -1."""
    length = len(data)
    if size < 0:
        size = 0 if length < 126 else 2 if length < 1 << 16 else 8
    head = {0: bytes([0x80 | length & 0x7F]), 2: b"\xfe" + struct.pack(">H", length & 0xFFFF)}
    second = head.get(size, b"\xff" + struct.pack(">Q", length))
    mask = (KEY * (length // 4 + 1))[:length]
    return bytes([final << 7 | opcode]) + second + KEY + bytes(one ^ other for one, other in zip(data, mask))


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(10)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise ConnectionError
            data += part
        return data

    def frame(self) -> tuple[int, bytes]:
        first, size = self.exactly(2)
        assert first & 0xF0 == 0x80 and not size & 0x80  # whole, without extensions, and not masked
        if size == 126:
            (size,) = struct.unpack(">H", self.exactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.exactly(8))
        return first & 0x0F, self.exactly(size)

    def ended(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


@contextmanager
def bridge(function: Callable[[socket.socket], None], early: bytes = b"", opcode: int = BINARY) -> Iterator[Client]:
    ours, theirs = socket.socketpair()
    serving = Bridge(ours, early, opcode)
    thread = threading.Thread(target=serving.serve, args=(lambda sock, _early: function(sock),), daemon=True)
    thread.start()
    try:
        yield Client(theirs)
    finally:
        theirs.close()
        thread.join(10)
        assert not thread.is_alive()
        ours.close()


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data.upper())


@pytest.mark.parametrize("opcode", [BINARY, TEXT])
def test_what_is_said_is_answered(opcode: int) -> None:
    with bridge(echo, masked(TEXT, b"ear")[:5], opcode) as client:
        client.socket.sendall(masked(TEXT, b"ear")[5:])
        assert client.frame() == (opcode, b"EAR")
        # One message in frames, with a ping between them.
        client.socket.sendall(masked(BINARY, b"a", final=False) + masked(PING, b"there?") + masked(CONTINUATION, b"b"))
        got = [client.frame() for _ in range(2)]
        while sum(len(data) for kind, data in got if kind == opcode) < 2:
            got.append(client.frame())
        assert (PONG, b"there?") in got and b"".join(data for kind, data in got if kind == opcode) == b"AB"
        client.socket.sendall(masked(PONG, b"") + masked(BINARY, b"") + masked(CLOSE, struct.pack(">H", 1000)))
        assert client.frame() == (CLOSE, struct.pack(">H", 1000))
        assert client.ended()


@pytest.mark.parametrize(("length", "size"), [(125, 0), (126, 2), (5, 2), (5, 8), (65535, 2), (65536, 8), (300_001, 8)])
def test_lengths(length: int, size: int) -> None:
    data = bytes(number % 26 + 97 for number in range(length))
    with bridge(echo) as client:
        sender = threading.Thread(target=client.socket.sendall, args=(masked(BINARY, data, size=size),))
        sender.start()
        got = b""
        while len(got) < length:
            got += client.frame()[1]
        sender.join()
        assert got == data.upper()


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x01x",  # not masked
        b"\xc2\x80" + KEY,  # a reserved bit
        b"\x83\x80" + KEY,  # no such opcode
        b"\x8b\x80" + KEY,
        masked(PING, b"x" * 126),  # a control frame that is too long
        masked(PING, b"x", final=False),  # or not whole
        b"\x82\xff" + b"\xff" * 8 + KEY,
    ],
)
def test_what_is_no_frame_ends_it(data: bytes) -> None:
    with bridge(echo) as client:
        client.socket.sendall(data)
        assert client.frame() == (CLOSE, struct.pack(">H", 1002))
        assert client.ended()


def test_the_end_of_the_stream_ends_it() -> None:
    """All that was said before goes out first."""

    def speak(sock: socket.socket) -> None:
        sock.sendall(b"x" * 300_000)

    with bridge(speak) as client:
        got = 0
        while got < 300_000:
            got += len(client.frame()[1])
        assert client.frame() == (CLOSE, struct.pack(">H", 1000))
        client.socket.sendall(masked(CLOSE, b""))
        assert client.ended()


def test_a_client_that_vanishes_ends_it() -> None:
    ended = threading.Event()

    def listen(sock: socket.socket) -> None:
        assert sock.recv(1) == b""
        ended.set()

    with bridge(listen) as client:
        client.socket.sendall(b"\x82\x85")  # and in the middle of a frame
        client.socket.close()
        assert ended.wait(10)


def test_masks() -> None:
    data = bytes(range(256)) * 3
    whole = websocket.unmasked(data, KEY, 0)
    for at in (0, 1, 2, 3, 255):
        assert websocket.unmasked(data[at:], KEY, at) == whole[at:]
    assert websocket.unmasked(whole, KEY, 0) == data and websocket.unmasked(b"", KEY, 1) == b""
