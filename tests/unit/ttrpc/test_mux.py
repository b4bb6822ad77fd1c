# SPDX-License-Identifier: Apache-2.0
"""Several streams on one socket."""

from __future__ import annotations

import asyncio
import socket

import pytest

from teu.ttrpc import frames, mux


def test_a_frame_is_its_stream_and_its_length() -> None:
    assert mux.pack(2, b"abc") == bytes.fromhex("00000002 00000003") + b"abc"


@pytest.mark.parametrize(("size", "pieces"), [(4096, [4096]), (4097, [4096, 1]), (3 << 20, [4096, (3 << 20) - 4096])])
def test_only_the_first_frame_of_a_message_is_small(size: int, pieces: list[int]) -> None:
    found = mux.Reader().feed(mux.pack(1, bytes(size)))
    assert [len(data) for _, data in found] == pieces


def test_frames_in_any_pieces() -> None:
    data = mux.pack(1, b"first") + mux.pack(2, b"") + mux.pack(1, b"second")
    for size in (1, 3, 7, len(data)):
        reader = mux.Reader()
        found = [one for at in range(0, len(data), size) for one in reader.feed(data[at : at + size])]
        assert found == [(1, b"first"), (2, b""), (1, b"second")]


def test_a_frame_that_is_too_long_is_none() -> None:
    with pytest.raises(frames.FrameError):
        mux.Reader().feed(mux.HEADER.pack(1, mux.DATA_LENGTH_MAX + 1))


class End(asyncio.Protocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.data = b""
        self.lane: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.lane = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


def test_streams_are_apart() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        left, right = mux.Mux(), mux.Mux()
        ends = {(side, stream): End() for side in "lr" for stream in (1, 2)}
        for name, side in (("l", left), ("r", right)):

            def opened(name: str = name, side: mux.Mux = side) -> None:
                for stream in (1, 2):
                    side.open(stream, ends[name, stream])

            side.on_open = opened
        for one, peer in zip((left, right), socket.socketpair(), strict=True):
            peer.setblocking(False)
            await loop.create_connection(lambda one=one: one, sock=peer)  # type: ignore[misc]
        for stream in (1, 2):
            lane = ends["l", stream].lane
            assert lane is not None and not lane.is_closing()
            lane.write(b"to %d" % stream)
        left.send(mux.pack(7, b"to nobody"))
        left.close()
        for end in ends.values():
            await end.lost.wait()
        assert ends["r", 1].data == b"to 1" and ends["r", 2].data == b"to 2"
        left.close()
        left.send(b"nothing")
        assert left.closed and right.closed

    asyncio.run(scenario())


def test_no_frame_ends_the_connection() -> None:
    async def scenario() -> None:
        one, end = mux.Mux(), End()
        one.on_open = lambda: one.open(1, end)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: one, sock=ours)
        theirs.sendall(mux.HEADER.pack(1, 1 << 30))
        await end.lost.wait()
        assert theirs.recv(1) == b""
        theirs.close()

    asyncio.run(scenario())
