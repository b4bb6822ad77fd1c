# SPDX-License-Identifier: Apache-2.0
"""SPDY/3.1 as Kubernetes' clients speak it: many streams, opened by the client, over one connection. Called by
`streaming`.

    control frame    1 version:15 type:16 | flags:8 length:24 | ...
    data frame       0 stream:31          | flags:8 length:24 | bytes

Headers are a count, and pairs of texts with their lengths, in one zlib stream for each way that begins with a
dictionary both sides know. The windows of the specification are not used: neither these clients nor their servers ever
speak of them. A stream that is not read holds its connection up instead.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable
from typing import Protocol

from teu.containerd.cri.pipes import Pipe

VERSION = 3
SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY, HEADERS = 1, 2, 3, 6, 7, 8
FLAG_FIN = 1
REFUSED_STREAM, CANCEL, OK, PROTOCOL_ERROR = 3, 5, 0, 1
CONTROL_MAX = HEADERS_MAX = 64 << 10  # bytes of a control frame, and of headers unpacked
STREAMS_MAX = 1024  # open at the same time
_READ = 64 << 10
_SIZE = struct.Struct(">I")
_HEAD = struct.Struct(">IB3s")

# What both sides' zlib has seen before the first header (draft 3.1, 2.6.10.1): words with their lengths, and a text.
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status|200 OK|version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    "Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    "00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset="
    "iso-8859-1,utf-,*,enq=0."
)


def _words() -> list[str]:
    before, status, after = _WORDS.split("|")
    return [*before.split(), status, *after.split()]


DICTIONARY = b"".join(_SIZE.pack(len(word)) + word.encode() for word in _words()) + _TEXT.encode()


class ProtocolError(Exception):
    """The other side does not speak SPDY/3.1."""


class Wire(Protocol):
    """What frames travel by."""

    async def readexactly(self, count: int) -> bytes:
        """So many bytes. EOFError or OSError when there are not as many."""

    async def send(self, data: bytes) -> None:
        """Send it; waits while the other side is slow. OSError when it is gone."""


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    """A control frame."""
    return _HEAD.pack(1 << 31 | VERSION << 16 | kind, flags, len(body).to_bytes(3, "big")) + body


def _headers(block: bytes) -> dict[str, str]:
    """By their names in small letters. Raises ProtocolError."""
    found: dict[str, str] = {}
    try:
        (count,) = _SIZE.unpack_from(block)
        at = _SIZE.size
        for _ in range(count):
            pair = []
            for _ in range(2):
                (length,) = _SIZE.unpack_from(block, at)
                at += _SIZE.size
                if at + length > len(block):
                    raise ProtocolError("a header is longer than its frame")
                pair.append(block[at : at + length].decode(errors="replace"))
                at += length
            found[pair[0].lower()] = pair[1]
    except struct.error:
        raise ProtocolError("headers are cut short") from None
    return found


class Stream:
    """One of the client's streams: what it sends is `incoming`; it is a Sink for what it gets."""

    def __init__(self, connection: Connection, id: int, headers: dict[str, str]) -> None:
        self.id = id
        self.headers = headers
        self.incoming = Pipe()
        self.ended_there = self.ended_here = False
        self._connection = connection

    async def write(self, data: bytes) -> None:
        """As of a Sink."""
        if data and not self.ended_here:
            await self._connection.send_data(self, data)

    async def end(self) -> None:
        """As of a Sink."""
        if not self.ended_here:
            self.ended_here = True
            await self._connection.send_data(self, b"", FLAG_FIN)

    async def reset(self) -> None:
        """End it both ways."""
        self.ended_here = True
        await self._connection.reset(self)

    def release(self) -> None:
        """What still comes is nobody's."""
        self._connection.release(self)


class Connection:
    """The server's side of one."""

    def __init__(self, wire: Wire, accept: Callable[[Stream], bool]) -> None:
        """`accept` is told of each new stream on the event loop, and says whether it may be."""
        self._wire = wire
        self._accept = accept
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._sending = asyncio.Lock()
        self._gone = False

    # sending

    async def _send(self, data: bytes) -> None:
        if self._gone:
            return
        async with self._sending:
            try:
                await self._wire.send(data)
            except OSError:
                self._gone = True  # `run` is told, too

    async def send_data(self, stream: Stream, data: bytes, flags: int = 0) -> None:
        """A data frame of a stream."""
        await self._send(_HEAD.pack(stream.id, flags, len(data).to_bytes(3, "big")) + data)
        self._forget(stream)

    async def reset(self, stream: Stream) -> None:
        """End a stream both ways."""
        stream.incoming.finish()
        self._streams.pop(stream.id, None)
        await self._refuse(stream.id, CANCEL)

    def release(self, stream: Stream) -> None:
        """Forget a stream."""
        self._streams.pop(stream.id, None)
        stream.incoming.drop()

    async def _refuse(self, id: int, reason: int) -> None:
        await self._send(control(RST_STREAM, struct.pack(">II", id, reason)))

    async def goodbye(self, reason: int = OK) -> None:
        """Say that no more streams are taken."""
        await self._send(control(GOAWAY, struct.pack(">II", self._last, reason)))

    # receiving

    async def run(self) -> None:
        """Take frames until the other side leaves; all that it has sent ends then. Raises ProtocolError."""
        try:
            while True:
                first, flags, size = _HEAD.unpack(await self._wire.readexactly(_HEAD.size))
                length = int.from_bytes(size, "big")
                if first >> 31:
                    if length > CONTROL_MAX:
                        raise ProtocolError(f"a control frame of {length} bytes")
                    if (first >> 16 & 0x7FFF) != VERSION:
                        raise ProtocolError(f"version {first >> 16 & 0x7FFF}")
                    await self._on_control(first & 0xFFFF, flags, await self._wire.readexactly(length))
                else:
                    await self._on_data(first, flags, length)
        except (EOFError, OSError):
            return
        except ProtocolError:
            await self.goodbye(PROTOCOL_ERROR)
            raise
        finally:
            self._gone = True
            for stream in self._streams.values():
                stream.incoming.finish()

    async def _on_data(self, id: int, flags: int, length: int) -> None:
        stream = self._streams.get(id)
        while length:
            data = await self._wire.readexactly(min(length, _READ))
            length -= len(data)
            if stream is not None:
                await stream.incoming.put(data)
        if stream is not None and flags & FLAG_FIN:
            self._ended(stream)

    async def _on_control(self, kind: int, flags: int, body: bytes) -> None:
        if kind == SYN_STREAM:
            await self._on_stream(flags, body)
        elif kind == RST_STREAM and len(body) == 8:
            stream = self._streams.pop(_SIZE.unpack_from(body)[0] & 0x7FFFFFFF, None)
            if stream is not None:
                stream.ended_here = True
                stream.incoming.finish(broken=True)
        elif kind == PING and len(body) == 4:
            await self._send(control(PING, body))
        elif kind == HEADERS and len(body) >= 4:
            self._unpack(body[4:])  # for the state of zlib
            stream = self._streams.get(_SIZE.unpack_from(body)[0] & 0x7FFFFFFF)
            if stream is not None and flags & FLAG_FIN:
                self._ended(stream)
        elif kind == GOAWAY:
            raise EOFError
        # SETTINGS and WINDOW_UPDATE have no meaning here

    async def _on_stream(self, flags: int, body: bytes) -> None:
        if len(body) < 10:
            raise ProtocolError("a new stream without a number")
        id = _SIZE.unpack_from(body)[0] & 0x7FFFFFFF
        headers = _headers(self._unpack(body[10:]))
        if not id % 2 or id <= self._last:
            raise ProtocolError(f"stream {id} is none of a client's next")
        self._last = id
        stream = Stream(self, id, headers)
        if len(self._streams) >= STREAMS_MAX or not self._accept(stream):
            await self._refuse(id, REFUSED_STREAM)
            return
        self._streams[id] = stream
        await self._send(control(SYN_REPLY, _SIZE.pack(id) + self._pack_none()))
        if flags & FLAG_FIN:
            self._ended(stream)

    def _unpack(self, data: bytes) -> bytes:
        try:
            found = self._inflate.decompress(data, HEADERS_MAX)
        except zlib.error as error:
            raise ProtocolError(f"headers: {error}") from None
        if self._inflate.unconsumed_tail:
            raise ProtocolError(f"headers of more than {HEADERS_MAX} bytes")
        return found

    def _pack_none(self) -> bytes:
        return self._deflate.compress(_SIZE.pack(0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def _ended(self, stream: Stream) -> None:
        stream.ended_there = True
        stream.incoming.finish()
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if stream.ended_here and stream.ended_there:
            self._streams.pop(stream.id, None)
