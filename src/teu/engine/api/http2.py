# SPDX-License-Identifier: Apache-2.0
"""The Engine API by HTTP/2 with prior knowledge (RFC 9113 section 3.3). Called by the server, with a connection that
began with HTTP/2.

Two kinds of clients begin so. gRPC's are the builder's, and their bytes are handed on unread: they wait for the other
end's settings before they ask anything. All others ask at once; each of their requests is one of HTTP/1.1 on a socket
pair to the server, which so has one way for all. A connection cannot be taken over in HTTP/2: attach is for
HTTP/1.1."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable

import h11

from teu.engine.core.errors import EngineError
from teu.http2 import hpack
from teu.http2.connection import HEADERS, PREFACE, Connection, Stream

log = logging.getLogger("teu.engine")

# How long a client may be silent after its settings before it is taken for one of gRPC.
PATIENCE_MS = 100
CHUNK = 64 << 10
FIRST_MAX = 64 << 10  # bytes before the first request
# Headers that belong to a connection, which HTTP/2 does not have (RFC 9113 section 8.2.2).
OF_CONNECTIONS = ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host", "expect")
GRPC = "application/grpc"

Handle = Callable[[socket.socket], None]


def asks_at_once(client: socket.socket, data: bytearray) -> bool:
    """Whether a client's first request is there, and is none of gRPC. What is read is added to `data`."""
    while True:
        found = _first(bytes(data))
        if found is not None:
            return not found.startswith(GRPC)
        poll = select.poll()
        poll.register(client, select.POLLIN)
        if len(data) > FIRST_MAX or not poll.poll(PATIENCE_MS):
            return False
        more = client.recv(CHUNK)
        if not more:
            return False
        data += more


def _first(data: bytes) -> str | None:
    """The content type of the first request in what a client has sent; None where it is not there as a whole."""
    at = len(PREFACE)
    while len(data) >= at + 9:
        size, kind, flags = int.from_bytes(data[at : at + 3], "big"), data[at + 3], data[at + 4]
        if kind == HEADERS:
            block = data[at + 9 : at + 9 + size]
            if len(block) < size:
                return None
            if flags & 0x8:  # padded
                block = block[1 : len(block) - block[0]]
            if flags & 0x20:  # with a priority
                block = block[5:]
            try:
                return dict(hpack.Decoder(FIRST_MAX).decode(block)).get("content-type", "")
            except Exception:  # which the connection tells the client
                return ""
        at += 9 + size
    return None


def serve(client: socket.socket, data: bytes, handle: Handle) -> None:
    """Serve a connection until its end; `data` is what was read of it. `handle` serves a connection of HTTP/1.1, and is
    called in a thread for each request."""

    def begun(stream: Stream) -> None:
        threading.Thread(target=_serve, args=(stream, handle), name="http2", daemon=True).start()

    connection = Connection(lambda code, message, details=b"": EngineError(message), serve=begun)

    def write() -> None:
        with contextlib.suppress(OSError):
            while out := connection.take():
                client.sendall(out)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    writer = threading.Thread(target=write, name="http2", daemon=True)
    writer.start()
    try:
        connection.feed(data)
        while connection.error is None:
            part = client.recv(CHUNK)
            connection.feed(part)
            if not part:
                break
    except OSError as error:
        connection.close(error)
    writer.join()


def _serve(stream: Stream, handle: Handle) -> None:
    """One request and its answer."""
    ours, theirs = socket.socketpair()
    threading.Thread(target=handle, args=(theirs,), daemon=True).start()
    try:
        with ours:
            _Exchange(stream, ours).run()
    except h11.LocalProtocolError as error:  # nothing was asked of the server yet
        log.debug("a request of HTTP/2 is none: %s", error)
        with contextlib.suppress(EngineError):
            stream.answer([(":status", "400")])
            stream.send(b"", end=True)
    except (OSError, EngineError, h11.RemoteProtocolError) as error:
        log.debug("a request of HTTP/2 ended: %s", error)
        stream.cancel()


class _Exchange:
    """A stream of HTTP/2 as a request of HTTP/1.1. h11 is not for two threads at once: the lock is for that."""

    def __init__(self, stream: Stream, sock: socket.socket) -> None:
        self._stream, self._socket = stream, sock
        self._http = h11.Connection(h11.CLIENT)
        self._lock = threading.Lock()

    def run(self) -> None:
        given = self._stream.headers or []
        pseudo = {name: value for name, value in given if name.startswith(":")}
        headers = [(name, value) for name, value in given if not name.startswith(":") and name not in OF_CONNECTIONS]
        headers.append(("Host", pseudo.get(":authority") or "localhost"))
        with self._stream.changed:
            body = not self._stream.ended or bool(self._stream.buffer)
        if body and not any(name == "content-length" for name, _ in headers):
            headers.append(("Transfer-Encoding", "chunked"))
        # It checks what comes: a line's end in a value would be another request.
        request = h11.Request(method=pseudo.get(":method", ""), target=pseudo.get(":path", ""), headers=_bytes(headers))
        self._send(request)
        threading.Thread(target=self._forward, name="http2", daemon=True).start()
        self._answer()

    def _send(self, event: h11.Event) -> None:
        with self._lock:
            data = self._http.send(event)
        if data:
            self._socket.sendall(data)

    def _forward(self) -> None:
        """The request's body; then watch whether the client gives its request up."""
        try:
            while data := self._stream.receive():
                self._send(h11.Data(data=bytes(data)))
            self._send(h11.EndOfMessage())
        except (OSError, EngineError, h11.ProtocolError):
            self._hang_up()
            return
        with self._stream.changed:
            while self._stream.error is None and not self._stream.closed:
                self._stream.changed.wait()
        if self._stream.error is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _answer(self) -> None:
        while True:
            with self._lock:
                event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = self._socket.recv(CHUNK)
                with self._lock:
                    self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
                kept = [(name, value) for name, value in headers if name not in OF_CONNECTIONS]
                self._stream.answer([(":status", str(event.status_code)), *kept])
            elif isinstance(event, h11.Data):
                self._stream.send(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._stream.send(b"", end=True)
                return
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise ConnectionError("the answer is not whole")


def _bytes(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    try:
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    except UnicodeEncodeError as error:
        raise h11.LocalProtocolError(f"a header is not of Latin-1: {error}") from None
