# SPDX-License-Identifier: Apache-2.0
"""gzip by several threads, for layers: most of the time that one takes to be made is deflate's. Called by
teu-containerd's Diff, and by the builder where it compresses a layer anew.
"""

from __future__ import annotations

import os
import zlib
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PIECE = 512 << 10  # bytes that one thread compresses at a time
WINDOW = 32 << 10  # how far back deflate looks
THREADS_MAX = 8


class Gzip:
    """gzip by as many threads as there are processors, into one member that everybody reads. `level`: 1 to 9.

    Each piece is deflated by itself, with the end of the one before it as its dictionary, so what comes out depends on
    what goes in alone: neither on how it comes nor on the number of threads."""

    def __init__(self, level: int = 6) -> None:
        self._level = level
        self._buffer = bytearray()
        self._before = b""
        self._sum = zlib.crc32(b"")
        self._size = 0
        self._pool: Any = None
        self._threads = min(len(os.sched_getaffinity(0)), THREADS_MAX)
        self._waiting: deque[Any] = deque()
        self._out = [b"\x1f\x8b\x08\0\0\0\0\0\0\xff"]

    def compress(self, data: bytes) -> bytes:
        """More of it; what is ready of the result."""
        self._buffer += data
        while len(self._buffer) > PIECE:
            piece = bytes(self._buffer[:PIECE])
            del self._buffer[:PIECE]
            self._hand_over(piece)
        return self._ready(2 * self._threads)

    def flush(self) -> bytes:
        """The rest of the result."""
        last = bytes(self._buffer)
        self._count(last)
        end = _deflate(last, self._before, self._level, True) + (self._sum.to_bytes(4, "little"))
        end += (self._size & 0xFFFFFFFF).to_bytes(4, "little")
        done = self._ready(0)
        if self._pool is not None:
            self._pool.shutdown()
        return done + end

    def _count(self, piece: bytes) -> None:
        self._sum = zlib.crc32(piece, self._sum)
        self._size += len(piece)

    def _hand_over(self, piece: bytes) -> None:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # 10 ms, and most layers have one piece

            self._pool = ThreadPoolExecutor(self._threads, "gzip")
        self._waiting.append(self._pool.submit(_deflate, piece, self._before, self._level, False))
        self._before = piece[-WINDOW:]
        self._count(piece)

    def _ready(self, most: int) -> bytes:
        """What is done, in order; no more than `most` pieces are left waiting."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            self._out.append(self._waiting.popleft().result())
        done = b"".join(self._out)
        self._out.clear()
        return done


def _deflate(piece: bytes, before: bytes, level: int, last: bool) -> bytes:
    if before:
        packer = zlib.compressobj(level, zlib.DEFLATED, -15, zdict=before)
    else:
        packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return packer.compress(piece) + packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
