# SPDX-License-Identifier: Apache-2.0
"""The server's end of ttrpc, inside an event loop: used by the shim.

The loop is given as an object with watch(fd, events, callback) and unwatch(fd); nothing here blocks.
"""

from __future__ import annotations

import select

from teu.linux import sockets
from teu.ttrpc import frames, status
from teu.ttrpc.messages import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Watcher(Protocol):
        def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None: ...
        def unwatch(self, fd: int) -> None: ...

    Dispatch = Callable[[str, str, bytes, "Reply"], None]

EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLERR

# A client that sends requests but reads no answers is dropped when this much waits for it.
BACKLOG_MAX = 64 << 20


class Connection:
    """A connected socket with frames in and out; the base of both ends in an event loop."""

    def __init__(self, loop: Watcher, peer: sockets.Socket) -> None:
        peer.setblocking(False)
        self._loop = loop
        self._socket: sockets.Socket | None = peer
        self._reader = frames.Reader()
        self._out = bytearray()
        loop.watch(peer.fileno(), EPOLLIN, self._on_event)

    def on_frame(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        """A whole frame has come, with its stream, kind, flags and payload. For those that derive from this."""
        raise NotImplementedError

    def on_close(self) -> None:
        """The connection is gone (also called by close())."""

    @property
    def pending(self) -> int:
        """Bytes not yet taken by the kernel."""
        return len(self._out)

    def close(self) -> None:
        """Let go of the socket; `on_close` is called. Doing it twice is fine."""
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self.on_close()

    def send(self, frame: bytes) -> None:
        """Send a frame: what the socket does not take now, as soon as it does. Nothing where it is closed."""
        if self._socket is None:
            return
        self._out += frame
        self._flush()

    def _flush(self) -> None:
        if self._socket is None:
            return
        had_pending = True
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
            had_pending = False
        except BlockingIOError:
            if len(self._out) > BACKLOG_MAX:
                self.close()
                return
        except OSError:
            self.close()
            return
        self._loop.watch(self._socket.fileno(), EPOLLIN | (EPOLLOUT if had_pending else 0), self._on_event)

    def _on_event(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
        if self._socket is None or not events & (EPOLLIN | EPOLLHUP | EPOLLERR):
            return
        try:
            data = self._socket.recv(16384)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for frame in self._reader.feed(data):
                self.on_frame(*frame)
        except ValueError:
            self.close()


class Reply:
    """The answer to one request: to be called once, at once or later, with the response's bytes and no error, or an
    error.  Who waits for what may never come sets `on_gone`, which is called if the client leaves before that."""

    __slots__ = ("_connection", "_stream", "on_gone", "timeout")

    def __init__(self, connection: _ServerConnection, stream: int, timeout: float) -> None:
        self._connection = connection
        self._stream = stream
        self.timeout = timeout  # seconds that the client waits, 0 without a limit
        self.on_gone: Callable[[], None] | None = None

    def __call__(self, payload: bytes, error: status.StatusError | None = None) -> None:
        self.on_gone = None
        self._connection.answer(self._stream, payload, error)


class _ServerConnection(Connection):
    def __init__(self, loop: Watcher, peer: sockets.Socket, server: Server) -> None:
        super().__init__(loop, peer)
        self._server = server
        self._last_stream = 0
        self._waiting: dict[int, Reply] = {}  # by stream

    def on_close(self) -> None:
        self._server.connections.discard(self)
        waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            if reply.on_gone is not None:
                reply.on_gone()

    def on_frame(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        if kind != frames.REQUEST:
            # Data of a streaming call: we serve unary calls only, and have already refused it.
            return
        if not stream & 1 or stream <= self._last_stream:
            self.answer(
                stream, b"", status.StatusError(status.INVALID_ARGUMENT, f"stream id {stream} is not odd and new")
            )
            return
        self._last_stream = stream
        try:
            request = decode("ttrpc.Request", data)
        except ValueError as error:
            self.answer(stream, b"", status.StatusError(status.INVALID_ARGUMENT, f"malformed request: {error}"))
            return
        if flags & frames.REMOTE_OPEN:
            self.answer(stream, b"", status.StatusError(status.UNIMPLEMENTED, "streams are not served here"))
            return

        reply = self._waiting[stream] = Reply(self, stream, max(0, request["timeout_nano"]) / 1e9)
        self._server.dispatch(request["service"], request["method"], request["payload"], reply)

    def answer(self, stream: int, payload: bytes, error: status.StatusError | None) -> None:
        self._waiting.pop(stream, None)
        response: dict[str, Any] = {"payload": payload}
        if error is not None:
            response = {"status": {"code": error.code, "message": error.message}}
        try:
            frame = frames.pack(stream, frames.RESPONSE, encode("ttrpc.Response", response))
        except frames.FrameError as error:
            refusal = {"status": {"code": status.OUT_OF_RANGE, "message": str(error)}}
            frame = frames.pack(stream, frames.RESPONSE, encode("ttrpc.Response", refusal))
        self.send(frame)


class Server:
    """Accepts connections and hands each request to `dispatch(service, method, payload, reply)`; see Reply."""

    def __init__(self, loop: Watcher, listener: sockets.Socket, dispatch: Dispatch) -> None:
        listener.setblocking(False)
        self._loop = loop
        self._listener = listener
        self.dispatch = dispatch
        self.connections: set[Connection] = set()
        loop.watch(listener.fileno(), EPOLLIN, self._on_accept)

    def _on_accept(self, _events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        self.connections.add(_ServerConnection(self._loop, peer, self))

    @property
    def pending(self) -> int:
        """Bytes of answers that clients have not taken yet."""
        return sum(connection.pending for connection in self.connections)

    def close(self) -> None:
        """Nobody can connect any more, and whoever was is cut off."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in list(self.connections):
            connection.close()
