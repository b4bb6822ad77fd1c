# SPDX-License-Identifier: Apache-2.0
"""Streams of bytes on the event loop: what a client sends until it is read, and a process' FIFO until it is full."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

LIMIT = 256 << 10  # bytes that may be unread before the sender has to wait
_SIZES_MAX = 4096  # characters that are no size
_SIZES_AT_ONCE = 100  # before others have their turn
_BLANK = re.compile(r"\s*")


class Source(Protocol):
    """What a client sends."""

    async def read(self) -> bytes:
        """What there is, waited for; b"" at the end."""

    def drop(self) -> None:
        """Nobody reads any more: the rest is thrown away as it comes."""


class Sink(Protocol):
    """What a client is sent."""

    async def write(self, data: bytes) -> None:
        """Send it; waits while the client is slow. Nothing happens where the client has left."""

    async def end(self) -> None:
        """Tell the client that this was all."""


class Pipe:
    """A Source that a connection fills."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self.broken = False  # the sender has given up: it takes no answer, either
        self._filled = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Add to it; waits while too much is unread. What comes after the end is thrown away."""
        if self._ended or not data:
            return
        self._chunks.append(data)
        self._size += len(data)
        self._filled.set()
        while self._size > LIMIT and not self._ended:
            self._room.clear()
            await self._room.wait()

    def finish(self, *, broken: bool = False) -> None:
        """Nothing more comes; see `broken`."""
        self._ended = True
        self.broken = self.broken or broken
        self._filled.set()
        self._room.set()

    def drop(self) -> None:
        """As of a Source."""
        self._chunks.clear()
        self._size = 0
        self.finish()

    async def read(self) -> bytes:
        """As of a Source."""
        while not self._chunks:
            if self._ended:
                return b""
            self._filled.clear()
            await self._filled.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._room.set()
        return data


@dataclass(frozen=True, slots=True)
class Streams:
    """Those of a client; None for what it does not want."""

    stdin: Source | None
    stdout: Sink | None
    stderr: Sink | None
    resize: Source | None  # of its terminal, see `sizes`


async def sizes(source: Source) -> AsyncIterator[tuple[int, int]]:
    """(width, height) in characters, of a stream of JSON objects {"Width", "Height"}; it ends at what is none."""
    text = ""
    decoder = json.JSONDecoder()
    while data := await source.read():
        text += data.decode(errors="replace")
        at = 0  # not cut off one by one: a client may send millions of them
        for count in itertools.count(1):
            at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
            try:
                found, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                break  # the end, a part of one, or none
            if isinstance(found, dict):
                pair = found.get("Width"), found.get("Height")
                if all(isinstance(one, int) and 0 < one < 1 << 16 for one in pair):
                    yield pair[0], pair[1]  # type: ignore[misc]
            if not count % _SIZES_AT_ONCE:
                await asyncio.sleep(0)
        text = text[at:]
        if len(text) > _SIZES_MAX:
            source.drop()
            return


class Fifo:
    """The end of a process' input that is written to."""

    def __init__(self, path: str) -> None:
        """OSError where it is gone, or nobody holds the other end."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    async def write(self, data: bytes) -> None:
        """BrokenPipeError when nobody reads any more."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def room() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_writer(self._descriptor, room)
        try:
            await ready
        finally:
            loop.remove_writer(self._descriptor)

    def close(self) -> None:
        """Write no more."""
        os.close(self._descriptor)


async def fill(path: str, source: Source) -> None:
    """Write into a FIFO what a client sends, to its end; where nobody reads it, it is thrown away."""
    try:
        fifo = Fifo(path)
    except OSError:
        source.drop()
        return
    try:
        while data := await source.read():
            await fifo.write(data)
    except BrokenPipeError:
        source.drop()
    finally:
        fifo.close()
