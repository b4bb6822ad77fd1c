# SPDX-License-Identifier: Apache-2.0
"""Sockets without Python's socket module, for the shim: it would be 1.3 MiB in the zygote (enum, re, selectors), of
which each process that comes of it gets the page tables. Called by teu.shim, teu.ttrpc and teu.systemd.bus."""

from __future__ import annotations

import _socket
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM
from sys import byteorder as _byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    AnySocket = "Socket | socket.socket"  # who serves in a test, or from another program, has Python's own

_FD_SIZE = 4


class Socket(_socket.socket):
    """A socket that its `with` closes, and that accepts."""

    __slots__ = ()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def accept(self) -> tuple[Socket, Any]:
        """A connection, as the standard library's socket gives it: blocking, and closed in programs that are
        executed; and who it is. OSError."""
        fd, address = self._accept()  # type: ignore[attr-defined]  # typeshed does not know it
        return Socket(self.family, self.type, self.proto, fileno=fd), address


def pair() -> tuple[Socket, Socket]:
    """Two connected stream sockets."""
    one, other = _socket.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    return Socket(fileno=one.detach()), Socket(fileno=other.detach())


def send_with(peer: Socket, data: bytes, descriptor: int) -> None:
    """Send data and a descriptor. OSError."""
    rights = descriptor.to_bytes(_FD_SIZE, _byteorder)
    peer.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def receive_with(peer: Socket, size: int) -> tuple[bytes, int]:
    """At most `size` bytes, and the descriptor that came with them, closed in programs that are executed; -1: none.
    OSError."""
    data, control, _, _ = peer.recvmsg(size, _socket.CMSG_LEN(_FD_SIZE), _socket.MSG_CMSG_CLOEXEC)
    for level, kind, rights in control:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS) and len(rights) >= _FD_SIZE:
            return data, int.from_bytes(rights[:_FD_SIZE], _byteorder)
    return data, -1


__all__ = [
    "AF_UNIX",
    "SOCK_CLOEXEC",
    "SOCK_NONBLOCK",
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "Socket",
    "pair",
    "receive_with",
    "send_with",
]
