# SPDX-License-Identifier: Apache-2.0
"""ttrpc's framing: ten bytes of header, then at most 4 MiB of data.

    data length (u32, big endian) | stream id (u32, big endian) | type (u8) | flags (u8)

Clients use odd stream ids, each one once and in rising order.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">IIBB")
DATA_LENGTH_MAX = 4 << 20

REQUEST, RESPONSE, DATA = 1, 2, 3
REMOTE_CLOSED, REMOTE_OPEN, NO_DATA = 1, 2, 4


class FrameError(ValueError):
    """The peer does not speak ttrpc: the connection is of no further use."""


def pack(stream: int, kind: int, data: bytes, flags: int = 0) -> bytes:
    """One whole frame; FrameError if the data is over the limit."""
    if len(data) > DATA_LENGTH_MAX:
        raise FrameError(f"message of {len(data)} bytes is over ttrpc's limit of {DATA_LENGTH_MAX}")
    return HEADER.pack(len(data), stream, kind, flags) + data


class Reader:
    """Cuts a byte stream into frames: feed() what was received, then iterate."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """The frames completed by `data`, as (stream, kind, flags, payload)."""
        self._buffer += data
        complete = []
        while len(self._buffer) >= HEADER.size:
            length, stream, kind, flags = HEADER.unpack_from(self._buffer)
            if length > DATA_LENGTH_MAX:
                raise FrameError(f"frame of {length} bytes is over ttrpc's limit of {DATA_LENGTH_MAX}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            complete.append((stream, kind, flags, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return complete
