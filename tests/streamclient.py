# SPDX-License-Identifier: Apache-2.0
"""Clients of Kubernetes' streaming protocols, as plain as they can be: they block, and know only what a test needs.

with Spdy(url, "v4.channel.k8s.io") as client:
    error, out = client.open(streamType="error"), client.open(streamType="stdout")
    assert client.read(out) == b"..." and client.status(error) == 0
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import socket
import ssl
import struct
import zlib
from typing import Any
from urllib.parse import urlsplit

from teu.containerd.cri.spdy import DICTIONARY

PATIENCE = 20.0


def exit_code(status: bytes) -> int:
    """Of a Status in JSON; -1 for one that is not of a command's end."""
    told = json.loads(status)
    if told["status"] == "Success":
        return 0
    causes = told.get("details", {}).get("causes", [])
    return next((int(one["message"]) for one in causes if one.get("reason") == "ExitCode"), -1)


class Refused(Exception):
    """(status, headers, body) of an answer that does not upgrade."""


class Http:
    """A connection that wants to be upgraded."""

    def __init__(self, url: str, headers: dict[str, str], method: str = "GET") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self.socket: socket.socket = socket.create_connection((parts.hostname, parts.port), PATIENCE)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = self.socket.recv(1)
            if not piece:
                break
            head += piece
        first, *rest = head.decode().split("\r\n")
        status = int(first.split(" ")[1]) if first else 0
        self.headers = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in rest if line}
        if status != 101:
            body = self._body()
            self.socket.close()
            raise Refused(status, self.headers, body.decode())

    def _body(self) -> bytes:
        """Of an answer; a server may keep the connection open behind it."""
        if "content-length" in self.headers:
            return self.exactly(int(self.headers["content-length"]))
        body = b""
        while piece := self.socket.recv(65536):
            body += piece
        return body

    def exactly(self, count: int) -> bytes:
        """So many bytes; EOFError."""
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


class Spdy:
    """SPDY/3.1."""

    def __init__(self, url: str, *protocols: str, tunnel: bool = False) -> None:
        self._web: WebSocket | None = None
        if tunnel:
            self._web = WebSocket(url, *protocols)
            self.protocol = self._web.protocol
        else:
            headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
            if protocols:
                headers["X-Stream-Protocol-Version"] = ", ".join(protocols)
            self._http = Http(url, headers, "POST")
            self.protocol = self._http.headers["x-stream-protocol-version"]
        self._rest = b""
        self._pack = zlib.compressobj(zdict=DICTIONARY)
        self._next = 1
        self._data: dict[int, bytes] = {}
        self._ended: set[int] = set()
        self.reset: set[int] = set()
        self.pings: list[bytes] = []
        self.left = False

    def __enter__(self) -> Spdy:
        return self

    def __exit__(self, *_: Any) -> None:
        (self._web.http if self._web else self._http).socket.close()

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        if self._web:
            self._web.send(data)
        else:
            self._http.socket.sendall(data)

    def control(self, kind: int, body: bytes, flags: int = 0) -> None:
        self.send(struct.pack(">HHB", 0x8003, kind, flags) + len(body).to_bytes(3, "big") + body)

    def open(self, **headers: str) -> int:
        """A new stream, which has been answered, where the server has not left."""
        id, self._next = self._next, self._next + 2
        block = struct.pack(">I", len(headers))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                block += struct.pack(">I", len(text)) + text
        packed = self._pack.compress(block) + self._pack.flush(zlib.Z_SYNC_FLUSH)
        self.control(1, struct.pack(">IIH", id, 0, 0) + packed)
        while id not in self._data and id not in self.reset and not self.left:
            self._take()
        return id

    def write(self, id: int, data: bytes, last: bool = False) -> None:
        for at in range(0, len(data) or 1, 30000):
            piece = data[at : at + 30000]
            final = last and at + 30000 >= len(data)
            self.send(struct.pack(">IB", id, int(final)) + len(piece).to_bytes(3, "big") + piece)

    def _exactly(self, count: int) -> bytes:
        if not self._web:
            return self._http.exactly(count)
        while len(self._rest) < count:
            message = self._web.receive()
            if message is None:
                raise EOFError
            self._rest += message
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def _take(self) -> None:
        try:
            head = self._exactly(8)
        except (EOFError, ConnectionError):
            self.left = True
            self._ended |= self._data.keys()
            return
        body = self._exactly(int.from_bytes(head[5:], "big"))
        if not head[0] & 128:
            id = int.from_bytes(head[:4], "big")
            self._data[id] = self._data.get(id, b"") + body
            if head[4] & 1:
                self._ended.add(id)
            return
        kind = int.from_bytes(head[2:4], "big")
        id = int.from_bytes(body[:4], "big")
        if kind == 2:
            self._data.setdefault(id, b"")
        elif kind == 3:
            self.reset.add(id)
            self._ended.add(id)
        elif kind == 6:
            self.pings.append(body)

    def until(self, id: int, text: bytes) -> bytes:
        """What a stream has brought, once the text is in it."""
        while text not in self._data.get(id, b"") and id not in self._ended and not self.left:
            self._take()
        return self._data.get(id, b"")

    def read(self, id: int) -> bytes:
        """All that a stream brings."""
        while id not in self._ended and not self.left:
            self._take()
        return self._data.get(id, b"")

    def ping(self) -> None:
        """Returns when it was answered."""
        count = len(self.pings)
        self.control(6, b"\0\0\0\1")
        while len(self.pings) == count and not self.left:
            self._take()

    def leaves(self) -> bool:
        """Whether the server goes."""
        while not self.left:
            self._take()
        return True


class WebSocket:
    """RFC 6455, and the channels."""

    def __init__(self, url: str, *protocols: str) -> None:
        headers = {
            "Connection": "keep-alive, Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        if protocols:
            headers["Sec-WebSocket-Protocol"] = ", ".join(protocols)
        self.http = Http(url, headers)
        self.protocol = self.http.headers.get("sec-websocket-protocol", "")
        self.pongs: list[bytes] = []
        self.code = 0  # with which the server has closed
        self.data: dict[int, bytes] = {}

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: Any) -> None:
        self.http.socket.close()

    def frame(self, data: bytes, first: int = 0x82) -> None:
        mask = os.urandom(4)
        if len(data) < 126:
            head = bytes((first, 128 | len(data)))
        elif len(data) < 1 << 16:
            head = struct.pack(">BBH", first, 254, len(data))
        else:
            head = struct.pack(">BBQ", first, 255, len(data))
        self.http.socket.sendall(head + mask + bytes(one ^ mask[at % 4] for at, one in enumerate(data)))

    def send(self, data: bytes) -> None:
        self.frame(data)

    def channel(self, number: int, data: bytes) -> None:
        """A message of a channel, as the protocol has it."""
        if "base64" in self.protocol:
            self.frame(str(number).encode() + base64.b64encode(data), 0x81)
        else:
            self.frame(bytes((number,)) + data)

    def receive(self) -> bytes | None:
        """A message, None at the end."""
        while True:
            try:
                first, length = self.http.exactly(2)
                if length == 126:
                    (length,) = struct.unpack(">H", self.http.exactly(2))
                elif length == 127:
                    (length,) = struct.unpack(">Q", self.http.exactly(8))
                data = self.http.exactly(length)
            except (EOFError, ConnectionError):
                return None
            if first & 15 == 8:
                self.code = int.from_bytes(data[:2], "big")
                return None
            if first & 15 == 10:
                self.pongs.append(data)
            elif first & 15 in (1, 2):
                return data

    def take(self) -> bool:
        """One message of a channel; whether there was one."""
        message = self.receive()
        if message is None:
            return False
        number, data = message[0], message[1:]
        if "base64" in self.protocol:
            number, data = number - 48, base64.b64decode(data)
        self.data[number] = self.data.get(number, b"") + data
        return True

    def until(self, number: int, text: bytes) -> bytes:
        """What a channel has brought, once the text is in it."""
        while text not in self.data.get(number, b"") and self.take():
            pass
        return self.data.get(number, b"")

    def finish(self) -> dict[int, bytes]:
        """All that the channels bring."""
        while self.take():
            pass
        return self.data


def closed(connection: socket.socket, seconds: float = PATIENCE) -> bool:
    """Whether the other side ends a connection on which it says nothing."""
    readable, _, _ = select.select([connection], [], [], seconds)
    with contextlib.suppress(ConnectionError):
        return bool(readable) and connection.recv(1) == b""
    return True
