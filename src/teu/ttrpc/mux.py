# SPDX-License-Identifier: Apache-2.0
"""Several streams of bytes on one socket, as the Node Resource Interface has them: used by teu-containerd for its
plugins, whose services and the runtime's share a connection.

    stream id (u32, big endian) | data length (u32, big endian) | data

Nothing says that a stream begins or ends: both ends know the numbers. A Lane is one of them, as a transport of asyncio.
"""

from __future__ import annotations

import asyncio
import struct

from teu.ttrpc import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = struct.Struct(">II")
DATA_LENGTH_MAX = frames.HEADER.size + frames.DATA_LENGTH_MAX

# Plugins in Go read a frame of this layer with one read into a buffer of this size, for as long as they know nothing of
# the message; and they keep a few hundred frames at most. So the first frame of a message is no larger, and the rest of
# it is one.
FIRST_FRAME_MAX = 4096


def pack(stream: int, data: bytes) -> bytes:
    """The frames of one whole message of ttrpc."""
    first, rest = data[:FIRST_FRAME_MAX], data[FIRST_FRAME_MAX:]
    parts = [HEADER.pack(stream, len(first)), first]
    if rest:
        parts += [HEADER.pack(stream, len(rest)), rest]
    return b"".join(parts)


class Reader:
    """Cuts a byte stream into frames: feed() what was received, then iterate."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(stream, data) of what has come; FrameError for what cannot be a frame. Data of a frame that is not whole
        waits for the rest."""
        self._buffer += data
        complete, at = [], 0
        while len(self._buffer) - at >= HEADER.size:
            stream, length = HEADER.unpack_from(self._buffer, at)
            if length > DATA_LENGTH_MAX:
                raise frames.FrameError(f"frame of {length} bytes is over the limit of {DATA_LENGTH_MAX}")
            end = at + HEADER.size + length
            if len(self._buffer) < end:
                break
            complete.append((stream, bytes(self._buffer[at + HEADER.size : end])))
            at = end
        del self._buffer[:at]
        return complete


class Lane(asyncio.Transport):
    """One of the streams. What is written is one whole message of ttrpc."""

    def __init__(self, mux: Mux, stream: int) -> None:
        super().__init__()
        self._mux = mux
        self._stream = stream

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it; nothing where the connection is gone."""
        self._mux.send(pack(self._stream, bytes(data)))

    def close(self) -> None:
        """Close the connection, with all of its streams."""
        self._mux.close()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._mux.closed


class Mux(asyncio.Protocol):
    """The connection: frames are handed to the protocols of their streams, and what no protocol is for is left out. All
    methods are for the event loop's thread."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = Reader()
        self._ends: dict[int, asyncio.Protocol] = {}
        # called once, when it can be used
        self.on_open: Callable[[], None] = lambda: None

    @property
    def closed(self) -> bool:
        """Whether there is no connection, or none any more."""
        return self._transport is None

    def open(self, stream: int, end: asyncio.Protocol) -> None:
        """Give a stream to a protocol, which is connected at once."""
        self._ends[stream] = end
        end.connection_made(Lane(self, stream))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """By asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.on_open()

    def data_received(self, data: bytes) -> None:
        """By asyncio. What is no frame closes the connection."""
        try:
            complete = self._reader.feed(data)
        except frames.FrameError:
            self.close()
            return
        for stream, piece in complete:
            if (end := self._ends.get(stream)) is not None and self._transport is not None:
                end.data_received(piece)

    def connection_lost(self, exc: Exception | None) -> None:
        """By asyncio: all streams are lost."""
        self._transport = None
        ends, self._ends = self._ends, {}
        for end in ends.values():
            end.connection_lost(exc)

    def send(self, data: bytes) -> None:
        """Write frames; nothing where the connection is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close it; doing it twice is fine. A peer that does not read is not waited for."""
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()
