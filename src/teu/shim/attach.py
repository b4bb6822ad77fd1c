# SPDX-License-Identifier: Apache-2.0
"""Those who look on while a container writes (`kubectl attach`): clients of a socket beside its log. Called by
`crilog`.

Each packet is a byte, 1 for standard output and 2 for standard error, and what was written there. A client gets
everything from its connection on. One that is slow holds the output up, as a terminal does, but only for so long: then
it is cut off, and the container goes on.
"""

from __future__ import annotations

import os

from teu.linux import sockets
from teu.shim.loop import EPOLLIN, EPOLLOUT, Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from teu.shim.loop import Loop

PATIENCE_SECONDS = 10.0  # for a client that takes nothing


class Audience:
    """The clients of one container."""

    def __init__(self, path: str, hold: Callable[[bool], None]) -> None:
        """`path` is the socket's. `hold` is told whether output has to wait for a client. OSError."""
        self._hold = hold
        self._loop: Loop | None = None
        self._clients: list[_Client] = []
        self._slow = 0
        self._finishing = False
        # done when all clients have got everything
        self.drained = Future()
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By the folder's descriptor: a socket's path is short.
            place = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
            try:
                os.unlink(place)  # of a start that failed
            except FileNotFoundError:
                pass
            self._listener = sockets.Socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET | sockets.SOCK_CLOEXEC)
            self._listener.bind(place)
        finally:
            os.close(folder)
        self._listener.listen(16)
        self._listener.setblocking(False)

    def start(self, loop: Loop) -> None:
        """From now on clients are let in."""
        self._loop = loop
        loop.watch(self._listener.fileno(), EPOLLIN, self._on_client)

    def _on_client(self, _events: int) -> None:
        assert self._loop is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has left again
        connection.setblocking(False)
        self._clients.append(_Client(self, self._loop, connection))

    def tell(self, stream: int, data: bytes) -> None:
        """Hand on what was written."""
        if self._clients:
            packet = bytes((stream,)) + data
            for client in tuple(self._clients):
                client.send(packet)

    def waits(self, slow: bool) -> None:
        """A client has fallen behind, or has caught up."""
        before = self._slow > 0
        self._slow += 1 if slow else -1
        if before != (self._slow > 0):
            self._hold(self._slow > 0)

    def gone(self, client: _Client) -> None:
        """A client has left, or was cut off."""
        if client in self._clients:
            self._clients.remove(client)
        if self._finishing and not self._clients:
            self.drained.set()

    def finish(self) -> None:
        """Nothing more is written: the clients are let go of as soon as they have got everything."""
        self._finishing = True
        self._close_listener()
        for client in tuple(self._clients):
            client.finish()
        if not self._clients:
            self.drained.set()

    def end(self) -> None:
        """Cut all of them off."""
        self._finishing = True
        self._close_listener()
        for client in tuple(self._clients):
            client.close()
        self.drained.set()

    def _close_listener(self) -> None:
        if self._listener.fileno() >= 0:
            if self._loop is not None:
                self._loop.unwatch(self._listener.fileno())
            self._listener.close()


class _Client:
    def __init__(self, audience: Audience, loop: Loop, connection: sockets.Socket) -> None:
        self._audience = audience
        self._loop = loop
        self._socket = connection
        self._pending: list[bytes] = []
        self._timer = 0
        self._finishing = False
        loop.watch(connection.fileno(), EPOLLIN, self._on_input)

    def send(self, packet: bytes) -> None:
        if self._pending:
            self._pending.append(packet)
            return
        try:
            self._socket.send(packet)
        except BlockingIOError:
            self._pending.append(packet)
            self._audience.waits(True)
            self._loop.watch(self._socket.fileno(), EPOLLOUT, self._on_room)
            self._timer = self._loop.after(PATIENCE_SECONDS, self.close)
        except OSError:
            self.close()

    def _on_room(self, _events: int) -> None:
        try:
            while self._pending:
                self._socket.send(self._pending[0])
                self._pending.pop(0)
                # it takes something, so it has time again
                self._loop.forget(self._timer)
                self._timer = self._loop.after(PATIENCE_SECONDS, self.close)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._caught_up()
        if self._finishing:
            self.close()
        else:
            self._loop.watch(self._socket.fileno(), EPOLLIN, self._on_input)

    def _caught_up(self) -> None:
        self._loop.forget(self._timer)
        self._pending = []
        self._audience.waits(False)

    def _on_input(self, _events: int) -> None:
        # Clients say nothing: this is the end of one.
        self.close()

    def finish(self) -> None:
        self._finishing = True
        if not self._pending:
            self.close()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        if self._pending:
            self._caught_up()
        self._audience.gone(self)
