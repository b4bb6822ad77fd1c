# SPDX-License-Identifier: Apache-2.0
"""Frames, and the two ends against each other over a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.shim.loop import Loop
from teu.ttrpc import client as ttrpc
from teu.ttrpc import frames
from teu.ttrpc import messages as m
from teu.ttrpc.server import Server
from teu.ttrpc.status import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    NOT_FOUND,
    OUT_OF_RANGE,
    UNAVAILABLE,
    UNIMPLEMENTED,
    StatusError,
)

V3 = "containerd.task.v3.Task"


def test_frames_arrive_whole_however_cut() -> None:
    sent = [
        frames.pack(1, frames.REQUEST, b"one"),
        frames.pack(3, frames.REQUEST, b""),
        frames.pack(5, frames.DATA, b"x" * 5000, frames.REMOTE_CLOSED),
    ]
    data = b"".join(sent)
    for size in (1, 7, 4096, len(data)):
        reader = frames.Reader()
        got = [frame for at in range(0, len(data), size) for frame in reader.feed(data[at : at + size])]
        assert got == [(1, 1, 0, b"one"), (3, 1, 0, b""), (5, 3, 1, b"x" * 5000)]


def test_frame_limits() -> None:
    with pytest.raises(frames.FrameError):
        frames.pack(1, frames.REQUEST, b"x" * (frames.DATA_LENGTH_MAX + 1))
    with pytest.raises(frames.FrameError):
        frames.Reader().feed(frames.HEADER.pack(frames.DATA_LENGTH_MAX + 1, 1, 1, 0))


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server that answers State, fails Kill, is silent on Wait, and is too long on Pids."""
    listener = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "s")
    listener.bind(path)
    listener.listen()
    ready = threading.Event()
    loops: list[Loop] = []

    def dispatch(service: str, method: str, payload: bytes, reply: Any) -> None:
        if method == "State":
            request = m.decode("task.StateRequest", payload)
            reply(m.encode("task.StateResponse", {"id": request["id"], "pid": 7}), None)
        elif method == "Kill":
            reply(b"", StatusError(NOT_FOUND, "process already finished"))
        elif method == "Pids":
            reply(b"x" * (frames.DATA_LENGTH_MAX + 1), None)
        elif method == "Shutdown":
            reply(b"", None)
            loops[0].after(0.05, loops[0].stop)  # the answer goes out first, as in the shim
        elif method != "Wait":
            reply(b"", StatusError(UNIMPLEMENTED, method))

    def serve() -> None:
        # signals cannot be set up here: only the main thread may
        loop = Loop.__new__(Loop)
        import select

        loop._epoll, loop._watched, loop._timers, loop._due, loop._timer_count = select.epoll(), {}, [], {}, 0
        loop._stopping = False
        loops.append(loop)
        server = Server(loop, listener, dispatch)
        ready.set()
        loop.run()
        server.close()
        loop._epoll.close()

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait()
    yield "unix://" + path
    loops[0].stop()
    with socket.socket(socket.AF_UNIX) as wake:
        try:
            wake.connect(path)
        except OSError:
            pass
    thread.join()


def test_calls(address: str) -> None:
    async def run() -> None:
        client = await ttrpc.connect(address)
        many = await asyncio.gather(*(client.task(V3, "State", {"id": f"c{n}"}) for n in range(100)))
        assert [answer["id"] for answer in many] == [f"c{n}" for n in range(100)]
        for method, request, code in [
            ("Kill", {"id": "x"}, NOT_FOUND),
            ("Pause", {"id": "x"}, UNIMPLEMENTED),
            ("Pids", {}, OUT_OF_RANGE),
        ]:
            with pytest.raises(StatusError) as error:
                await client.task(V3, method, request)
            assert error.value.code == code
        with pytest.raises(StatusError) as error:
            await client.task(V3, "Wait", {"id": "x"}, timeout=0.05)
        assert error.value.code == DEADLINE_EXCEEDED
        waiting = asyncio.ensure_future(client.task(V3, "Wait", {"id": "x"}))
        await client.task(V3, "Shutdown", {})
        with pytest.raises(StatusError) as error:
            await waiting
        assert error.value.code == UNAVAILABLE
        with pytest.raises(StatusError) as error:
            await client.task(V3, "State", {})
        assert error.value.code == UNAVAILABLE

    asyncio.run(run())


def _raw(address: str, *data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Send bytes, and read until the peer closes or is silent."""
    got = []
    reader = frames.Reader()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(address.removeprefix("unix://"))
        peer.settimeout(0.3)
        for part in data:
            peer.sendall(part)
        try:
            while chunk := peer.recv(65536):
                got += reader.feed(chunk)
        except TimeoutError:
            pass
    return got


def _request(method: str) -> bytes:
    return m.encode("ttrpc.Request", {"service": V3, "method": method, "payload": b""})


def test_bad_peers(address: str) -> None:
    def code(frame: tuple[int, int, int, bytes]) -> int:
        return int(m.decode("ttrpc.Response", frame[3])["status"]["code"])

    even = _raw(address, frames.pack(2, frames.REQUEST, _request("State")))
    assert [code(frame) for frame in even] == [INVALID_ARGUMENT]
    again = _raw(address, frames.pack(1, frames.REQUEST, _request("Kill")) * 2)
    assert [code(frame) for frame in again] == [NOT_FOUND, INVALID_ARGUMENT]
    assert [code(f) for f in _raw(address, frames.pack(1, frames.REQUEST, b"\xff"))] == [INVALID_ARGUMENT]
    stream = frames.pack(1, frames.REQUEST, _request("State"), frames.REMOTE_OPEN)
    assert [code(frame) for frame in _raw(address, stream)] == [UNIMPLEMENTED]
    assert _raw(address, b"GET / HTTP/1.1\r\n\r\n") == []  # a length over the limit: hung up
    assert code(_raw(address, frames.pack(1, frames.REQUEST, _request("Kill")))[0]) == NOT_FOUND
