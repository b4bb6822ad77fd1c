# SPDX-License-Identifier: Apache-2.0
"""Attaching to a container, by a connection that is taken over and by WebSocket: the routes, over real FIFOs."""

from __future__ import annotations

import os
import socket
import struct
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.engine.api.messages import Request, Response
from teu.engine.api.routes import streams
from teu.engine.core.errors import BadRequest, Conflict
from teu.engine.logs.driver import Piece
from teu.engine.streams.hub import Hub
from teu.engine.streams.pump import Pump

UPGRADE = {
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
MASK = b"\1\2\3\4"


class Log:
    """What was said before, and all that is said."""

    stalled = False

    def write(self, kind: int, data: bytes, final: bool, marker: object) -> int:
        return len(data)

    def flush(self) -> None: ...

    def read(self, selection: Any) -> Iterator[Piece]:
        for kind, data in ((1, b"old out\n"), (2, b"old err\n")):
            if selection.stdout if kind == 1 else selection.stderr:
                yield Piece(kind, data)


class House:
    """A container that runs, whose process is this test."""

    def __init__(self, pump: Pump, folder: Path, tty: bool) -> None:
        self.hub = Hub(pump, tty, lambda: Log())  # type: ignore[arg-type,return-value]
        paths = (str(folder / "in"), str(folder / "out"), "" if tty else str(folder / "err"))
        self.hub.open(paths)
        self.hub.begin()
        self.input = os.open(paths[0], os.O_RDWR | os.O_NONBLOCK)
        self.outputs = {kind: os.open(path, os.O_RDWR) for kind, path in enumerate(paths) if path and kind}
        self.events: list[str] = []
        self.container: Any = types.SimpleNamespace(
            id="x" * 64,
            tty=tty,
            pid=1,
            running=True,
            hub=self.hub,
            state=types.SimpleNamespace(paused=False, restarting=False),
            config=types.SimpleNamespace(open_stdin=True, stdin_once=False),
            event=self.events.append,
        )
        self.engine: Any = types.SimpleNamespace(
            containers=types.SimpleNamespace(get=lambda name: self.container), containerd=None
        )

    def say(self, kind: int, data: bytes) -> None:
        os.write(self.outputs[kind], data)

    def heard(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                data += os.read(self.input, 100)
            except BlockingIOError:
                threading.Event().wait(0.005)
        return data

    def close(self) -> None:
        self.hub.discard()
        for descriptor in (self.input, *self.outputs.values()):
            os.close(descriptor)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[[bool], House]]:
    pump = Pump()
    pump.start()
    made: list[House] = []

    def make(tty: bool = False) -> House:
        made.append(House(pump, tmp_path, tty))
        return made[-1]

    yield make
    for one in made:
        one.close()
    pump.stop()


class Taken:
    """The client's end of a connection that the answer has taken over."""

    def __init__(self, answer: Response) -> None:
        assert answer.hijack is not None
        self.socket, self._theirs = socket.socketpair()
        self.socket.settimeout(10)
        self._thread = threading.Thread(target=answer.hijack, args=(self._theirs, b""), daemon=True)
        self._thread.start()

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            assert part, data
            data += part
        return data

    def message(self) -> tuple[int, bytes]:
        first, size = self.exactly(2)
        return first & 15, self.exactly(size)

    def send(self, opcode: int, data: bytes) -> None:
        masked = bytes(one ^ MASK[at % 4] for at, one in enumerate(data))
        self.socket.sendall(bytes([0x80 | opcode, 0x80 | len(data)]) + MASK + masked)

    def ended(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._theirs.close()
        self.socket.close()


def attached(house: House, query: str, minor: int = 55) -> Taken:
    request = Request("GET", "/containers/x/attach/ws", query, UPGRADE, version=(1, minor))
    answer = streams.attach_websocket(house.engine, request, "x")
    assert answer.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    return Taken(answer)


def test_a_websocket_carries_the_streams(house: Callable[[bool], House]) -> None:
    """Of which stream it is is not told, and what is not asked for does not come."""
    one = house(False)
    client = attached(one, "stream=1&logs=1&stdin=1&stdout=1&stderr=1")
    assert client.message() == (2, b"old out\nold err\n")
    client.send(1, b"words\n")
    assert one.heard(6) == b"words\n"
    one.say(1, b"out\n")
    assert client.message() == (2, b"out\n")
    one.say(2, b"err\n")
    assert client.message() == (2, b"err\n")
    deaf = attached(one, "stream=1&stderr=1")
    while one.events.count("attach") < 2:
        threading.Event().wait(0.005)
    deaf.send(2, b"nobody wants it")
    one.say(1, b"more\n")
    assert client.message() == (2, b"more\n")
    one.say(2, b"both\n")
    assert client.message() == deaf.message() == (2, b"both\n")
    client.send(8, b"")
    assert client.message() == (8, struct.pack(">H", 1000))
    client.ended()
    one.hub.end_clients()
    assert deaf.message() == (8, struct.pack(">H", 1000))
    deaf.socket.close()
    deaf.ended()
    with pytest.raises(BlockingIOError):
        os.read(one.input, 100)


@pytest.mark.parametrize(("minor", "opcode"), [(41, 2), (28, 2), (27, 1)])
def test_older_versions_have_every_stream(house: Callable[[bool], House], minor: int, opcode: int) -> None:
    one = house(True)
    client = attached(one, "stream=1", minor)
    client.send(2, b"in")
    assert one.heard(2) == b"in"
    one.say(1, b"out")
    assert client.message() == (opcode, b"out")
    client.send(2, b"\x10\x11")  # the detach keys
    assert client.message() == (8, struct.pack(">H", 1000))
    client.socket.close()
    client.ended()
    assert one.events == ["attach", "detach"]


def test_logs_alone(house: Callable[[bool], House]) -> None:
    one = house(False)
    client = attached(one, "logs=1&stdout=1")
    assert client.message() == (2, b"old out\n") and client.message()[0] == 8
    client.socket.close()
    client.ended()
    # By a connection that is taken over it is told which stream it is.
    request = Request("POST", "/containers/x/attach", "logs=1&stdout=1&stderr=1")
    plain = Taken(streams.attach(one.engine, request, "x"))
    assert plain.exactly(32) == b"\1\0\0\0\0\0\0\x08old out\n\2\0\0\0\0\0\0\x08old err\n"
    plain.ended()


def test_who_cannot_be_attached_to(house: Callable[[bool], House]) -> None:
    one = house(False)
    with pytest.raises(BadRequest, match="a WebSocket is needed"):
        streams.attach_websocket(one.engine, Request("GET", "/", "stream=1"), "x")
    with pytest.raises(BadRequest):
        streams.attach(one.engine, Request("POST", "/", "detachKeys=ctrl-bad"), "x")
    one.container.state.paused = True
    with pytest.raises(Conflict, match="paused"):
        streams.attach_websocket(one.engine, Request("GET", "/", "stream=1", UPGRADE), "x")
