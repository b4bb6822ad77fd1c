# SPDX-License-Identifier: Apache-2.0
"""WebSockets (RFC 6455), for who attaches to a container from a browser. Called by the route of attach/ws.

    client ⇄ frames ⇄ this module ⇄ a pair of sockets ⇄ what serves a plain stream

What a client sends is one stream of bytes, whichever frames it comes in; what it gets comes in frames of their own.
No extension is agreed upon.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import socket
import struct
import threading
from collections.abc import Callable

from teu.engine.core.errors import BadRequest

log = logging.getLogger("teu.engine")

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NORMAL, PROTOCOL_ERROR = 1000, 1002  # section 7.4.1
CONTROL_MAX = 125
PIECE = 64 << 10
CLOSE_SECONDS = 2.0  # for who does not answer that this is the end


class ProtocolError(Exception):
    """The client sent what is no frame of its side."""


def handshake(headers: dict[str, str]) -> dict[str, str]:
    """The headers of the answer with which the protocol begins (section 4.2). Raises BadRequest."""
    if headers.get("upgrade", "").lower() != "websocket":
        raise BadRequest("a WebSocket is needed here: send Upgrade: websocket")
    if headers.get("sec-websocket-version") != "13":
        raise BadRequest("this version of WebSocket is not spoken: send Sec-WebSocket-Version: 13")
    key = headers.get("sec-websocket-key", "")
    try:
        if len(base64.b64decode(key, validate=True)) != 16:
            raise ValueError
    except ValueError:
        raise BadRequest("Sec-WebSocket-Key must be 16 bytes in base64") from None
    answer = {
        "Upgrade": "websocket",
        "Sec-WebSocket-Accept": base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode(),
    }
    protocol = headers.get("sec-websocket-protocol", "").strip()
    if protocol and "," not in protocol:  # the client's only one; which of several is meant nobody can say
        answer["Sec-WebSocket-Protocol"] = protocol
    return answer


def frame(opcode: int, data: bytes) -> bytes:
    """A whole message as a server sends it."""
    head = bytes([0x80 | opcode])
    if len(data) < 126:
        return head + bytes([len(data)]) + data
    if len(data) < 1 << 16:
        return head + b"\x7e" + struct.pack(">H", len(data)) + data
    return head + b"\x7f" + struct.pack(">Q", len(data)) + data


def unmasked(data: bytes, key: bytes, at: int) -> bytes:
    """A piece of a frame's payload, which begins `at` bytes behind the payload's first."""
    turned = key[at % 4 :] + key[: at % 4]
    mask = (turned * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(data), "big")


class Bridge:
    """A client's WebSocket as a plain stream, while `serve` lasts."""

    def __init__(self, sock: socket.socket, early: bytes, opcode: int = BINARY) -> None:
        """`early`: what was read of the connection already. `opcode`: of what the client gets."""
        self._socket = sock
        self._early = early
        self._opcode = opcode
        self._sending = threading.Lock()
        self._closed = False

    def serve(self, function: Callable[[socket.socket, bytes], None]) -> None:
        """Call the function with a stream; the WebSocket is closed when it returns."""
        inner, outer = socket.socketpair()
        threads = [
            threading.Thread(target=work, args=(outer,), daemon=True) for work in (self._incoming, self._outgoing)
        ]
        for thread in threads:
            thread.start()
        try:
            function(inner, b"")
        finally:
            inner.close()
            threads[1].join()  # what was said last goes out first
            self._say_goodbye()
            threads[0].join(CLOSE_SECONDS)
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has gone before
            threads[0].join()
            outer.close()

    def _send(self, opcode: int, data: bytes) -> None:
        with self._sending:
            if not self._closed:
                self._closed = opcode == CLOSE
                self._socket.sendall(frame(opcode, data))

    def _say_goodbye(self, status: int = NORMAL) -> None:
        try:
            self._send(CLOSE, struct.pack(">H", status))
        except OSError:
            pass  # it has gone before

    def _outgoing(self, outer: socket.socket) -> None:
        try:
            while data := outer.recv(PIECE):
                self._send(self._opcode, data)
        except OSError:
            pass  # one of both has gone
        finally:
            _shut(outer, socket.SHUT_RD)

    def _incoming(self, outer: socket.socket) -> None:
        try:
            while self._one_frame(outer):
                pass
            self._say_goodbye()
        except ProtocolError as error:
            log.debug("WebSocket: %s", error)
            self._say_goodbye(PROTOCOL_ERROR)
        except OSError:
            pass  # one of both has gone
        finally:
            _shut(outer, socket.SHUT_RDWR)

    def _one_frame(self, outer: socket.socket) -> bool:
        """Section 5.2. False at the end."""
        first, second = self._exactly(2)
        opcode, size = first & 0x0F, second & 0x7F
        if first & 0x70:
            raise ProtocolError("a reserved bit is set, and no extension was agreed upon")
        if not second & 0x80:
            raise ProtocolError("a client's frame is masked")
        if opcode >= CLOSE and (size > CONTROL_MAX or not first & 0x80):
            raise ProtocolError("a control frame is whole, and no longer than 125 bytes")
        if size == 126:
            (size,) = struct.unpack(">H", self._exactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._exactly(8))
            if size >> 63:
                raise ProtocolError("a length is no larger than 63 bits")
        key = self._exactly(4)
        if opcode in (CONTINUATION, TEXT, BINARY):
            self._hand_on(outer, size, key)
            return True
        data = unmasked(self._exactly(size), key, 0)
        if opcode == PING:
            self._send(PONG, data)
        elif opcode not in (CLOSE, PONG):
            raise ProtocolError(f"there is no opcode {opcode}")
        return opcode != CLOSE

    def _hand_on(self, outer: socket.socket, size: int, key: bytes) -> None:
        at = 0
        while at < size:
            data = self._some(min(PIECE, size - at))
            outer.sendall(unmasked(data, key, at))
            at += len(data)

    def _some(self, most: int) -> bytes:
        if self._early:
            data, self._early = self._early[:most], self._early[most:]
            return data
        data = self._socket.recv(most)
        if not data:
            raise ConnectionError("the client has gone")
        return data

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._some(size - len(data))
        return data


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # it is shut
