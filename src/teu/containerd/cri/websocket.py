# SPDX-License-Identifier: Apache-2.0
"""WebSocket (RFC 6455), the server's side, without extensions; and Kubernetes' channels over it, of which each message
begins with the number. Called by `streaming`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import struct

from teu.containerd.cri.pipes import Pipe
from teu.containerd.cri.spdy import Wire

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MESSAGE_MAX = 16 << 20  # bytes
_NORMAL, _PROTOCOL, _TOO_BIG = 1000, 1002, 1009
CLOSE_CHANNEL = 255  # of v5.channel.k8s.io: the message names a channel that has ended


def accepted(key: str) -> str:
    """Sec-WebSocket-Accept of a Sec-WebSocket-Key (4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _MAGIC, usedforsecurity=False).digest()).decode()


def _unmasked(data: bytes, mask: bytes) -> bytes:
    if not data:
        return data
    pattern = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pattern, "little")).to_bytes(len(data), "little")


class _Closed(Exception):
    """With the code to say."""


class WebSocket:
    """An open connection."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._sending = asyncio.Lock()
        self._gone = False

    async def receive(self) -> bytes | None:
        """The next message, of text or bytes; None when there is none: the connection is closed then."""
        if self._gone:
            return None
        try:
            return await self._message()
        except _Closed as error:
            await self.close(error.args[0])
        except (EOFError, OSError):
            pass
        self._gone = True
        return None

    async def _message(self) -> bytes:
        message = bytearray()  # not a list: pieces may be many, and empty
        begun = False
        while True:
            final, kind, data = await self._frame(MESSAGE_MAX - len(message))
            if kind == CLOSE:
                raise _Closed(_NORMAL)
            if kind == PING:
                await self._send(PONG, data)
            if kind >= CLOSE:
                continue
            if (kind == CONTINUATION) != begun or kind > BINARY:
                raise _Closed(_PROTOCOL)
            begun = True
            message += data
            if final:
                return bytes(message)

    async def _frame(self, limit: int) -> tuple[bool, int, bytes]:
        first, second = await self._wire.readexactly(2)
        kind, length = first & 15, second & 127
        if first & 0x70 or not second & 128:
            raise _Closed(_PROTOCOL)  # an extension, or a client that does not mask
        if kind >= CLOSE and (length > 125 or not first & 128):
            raise _Closed(_PROTOCOL)
        if length == 126:
            (length,) = struct.unpack(">H", await self._wire.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self._wire.readexactly(8))
        if length > limit:
            raise _Closed(_TOO_BIG)
        mask = await self._wire.readexactly(4)
        return bool(first & 128), kind, _unmasked(await self._wire.readexactly(length), mask)

    async def send(self, data: bytes, kind: int = BINARY) -> None:
        """A message; nothing happens where the client has left."""
        await self._send(kind, data)

    async def _send(self, kind: int, data: bytes) -> None:
        length = len(data)
        if length < 126:
            head = bytes((128 | kind, length))
        elif length < 1 << 16:
            head = struct.pack(">BBH", 128 | kind, 126, length)
        else:
            head = struct.pack(">BBQ", 128 | kind, 127, length)
        if self._gone:
            return
        async with self._sending:
            try:
                await self._wire.send(head + data)
            except OSError:
                self._gone = True

    async def close(self, code: int = _NORMAL) -> None:
        """Say goodbye, once."""
        await self._send(CLOSE, struct.pack(">H", code))
        self._gone = True


class Channel:
    """One of a connection's: what the client sends is `incoming`; it is a Sink for what it gets."""

    def __init__(self, channels: Channels, number: int) -> None:
        self.incoming = Pipe()
        self._channels = channels
        self._number = number

    async def write(self, data: bytes) -> None:
        """As of a Sink. No bytes are a message, too."""
        await self._channels.send(self._number, data)

    async def end(self) -> None:
        """As of a Sink; only version 5 can say it, and its clients take the end of the connection for it as well."""


class Channels:
    """All channels of a connection, by their numbers."""

    def __init__(self, socket: WebSocket, count: int, *, text: bool = False, closing: bool = False) -> None:
        """`text`: messages are text, with the number as a digit and the rest in base64. `closing`: a client says when
        it has ended a channel (version 5)."""
        self._socket = socket
        self._text = text
        self._closing = closing
        self.all = [Channel(self, number) for number in range(count)]

    async def send(self, number: int, data: bytes) -> None:
        """A message of a channel."""
        if self._text:
            await self._socket.send(bytes((ord("0") + number,)) + base64.b64encode(data), TEXT)
        else:
            await self._socket.send(bytes((number,)) + data)

    async def run(self) -> None:
        """Take messages until the client leaves; then all channels end."""
        try:
            while (message := await self._socket.receive()) is not None:
                if message:
                    await self._take(message)
        finally:
            for channel in self.all:
                channel.incoming.finish()

    async def _take(self, message: bytes) -> None:
        number, data = message[0], message[1:]
        if self._text:
            number -= ord("0")
            try:
                data = base64.b64decode(data, validate=True)
            except binascii.Error:
                return
        if self._closing and number == CLOSE_CHANNEL:
            if data and data[0] < len(self.all):
                self.all[data[0]].incoming.finish()
        elif 0 <= number < len(self.all):
            await self.all[number].incoming.put(data)


class Tunnel:
    """A connection as a Wire: SPDY's bytes are in its messages."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._rest = bytearray()

    async def readexactly(self, count: int) -> bytes:
        """As of a Wire."""
        while len(self._rest) < count:
            message = await self._socket.receive()
            if message is None:
                raise EOFError
            self._rest += message
        data = bytes(self._rest[:count])
        del self._rest[:count]
        return data

    async def send(self, data: bytes) -> None:
        """As of a Wire."""
        await self._socket.send(data)
