# SPDX-License-Identifier: Apache-2.0
"""Socket activation for grpcio, which cannot be given a listening socket. Called by teu-containerd and teu-buildkitd.

grpcio binds a private socket; then the inherited one is put in its place, by dup2 over the listener's descriptor, and
each epoll registration of that descriptor is made again, since an epoll holds on to the file, not to the number.
Whether it worked is seen by a call over the inherited socket. Where it did not (another grpcio may do things
differently), connections are accepted here and relayed to the private socket: slower, but the same to clients.

At the end grpcio calls shutdown(2) on its listener, which would be the end of the socket for systemd as well. So before
the server is stopped, `release` takes the inherited socket out again and leaves a throw-away in its place.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import re
import socket
import stat
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

# From Python 3.13 on a server removes its socket's path when it closes, systemd's as well.
KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}

log = logging.getLogger("teu.systemd.grpc")

EPOLL_CTL_ADD, EPOLL_CTL_DEL = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_REGISTRATION = re.compile(r"tfd:\s*(\d+)\s+events:\s*([0-9a-f]+)\s+data:\s*([0-9a-f]+)")


class _EpollEvent(ctypes.Structure):
    _layout_ = "ms"  # which Python 3.14 wants to be told where there is a _pack_; without bit fields it is gcc's
    _pack_ = 1 if os.uname().machine == "x86_64" else 8  # the kernel packs it on x86-64 alone
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def _listener_bound_to(path: str) -> int:
    for fd in _descriptors():
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
        except OSError:
            continue
        borrowed = socket.socket(fileno=fd)
        try:
            listening = borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listening and borrowed.getsockname() == path:
                return fd
        except OSError:
            pass
        finally:
            borrowed.detach()
    raise LookupError(f"no listener is bound to {path}")


def _registrations(fd: int) -> list[tuple[int, int, int]]:
    """(epoll descriptor, events, data) of every registration of `fd`."""
    found = []
    for epoll in _descriptors():
        try:
            if os.readlink(f"/proc/self/fd/{epoll}") != "anon_inode:[eventpoll]":
                continue
            with open(f"/proc/self/fdinfo/{epoll}") as info:
                text = info.read()
        except OSError:
            continue
        for target, events, data in _REGISTRATION.findall(text):
            if int(target) == fd:
                found.append((epoll, int(events, 16), int(data, 16)))
    return found


def _put_in_place(private: str, inherited: socket.socket) -> int:
    """The descriptor by which grpcio now listens on the inherited socket."""
    fd = _listener_bound_to(private)
    registrations = _registrations(fd)
    if not registrations:
        raise LookupError("the listener is in no epoll")
    inherited.setblocking(False)
    os.dup2(inherited.fileno(), fd, inheritable=False)
    for epoll, events, data in registrations:
        event = _EpollEvent(events, data)
        if _libc.epoll_ctl(epoll, EPOLL_CTL_ADD, fd, ctypes.byref(event)) != 0:
            code = ctypes.get_errno()
            if code != errno.EEXIST:  # one epoll under two descriptors
                raise OSError(code, f"epoll_ctl: {os.strerror(code)}")
    return fd


def _take_out(fd: int) -> None:
    for epoll, _events, _data in _registrations(fd):
        _libc.epoll_ctl(epoll, EPOLL_CTL_DEL, fd, None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as throw_away:
        os.dup2(throw_away.fileno(), fd, inheritable=False)


async def _relay(listener: socket.socket, private: str) -> Callable[[], None]:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(private)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    listener.setblocking(False)
    return (await asyncio.start_unix_server(accepted, sock=listener, **KEEP_PATH)).close


async def serve(
    build: Callable[[], Any], inherited: socket.socket, private: str, answers: Callable[[str], Awaitable[bool]]
) -> tuple[Any, Callable[[], None]]:
    """(a started grpc.aio server behind the inherited socket, `release`: call it before the server's stop).

    `build` makes a server with its services and no port; `private` is a path that no other program uses;
    `answers(address)` tells whether a call to that gRPC address comes back.
    """
    server = build()
    with suppress(FileNotFoundError):
        os.unlink(private)
    server.add_insecure_port(f"unix:{private}")
    try:
        fd = _put_in_place(private, inherited)
    except (LookupError, OSError) as error:
        log.warning("socket activation of grpcio: %s: connections are relayed", error)
        await server.start()
        return server, await _relay(inherited, private)
    os.unlink(private)
    await server.start()
    if await answers(f"unix:{inherited.getsockname()}"):
        return server, lambda: _take_out(fd)
    log.warning("socket activation of grpcio does not work with this release: connections are relayed")
    _take_out(fd)
    await server.stop(0)
    server = build()
    server.add_insecure_port(f"unix:{private}")
    await server.start()
    return server, await _relay(inherited, private)


def serve_in_threads(
    build: Callable[[], Any], inherited: socket.socket, private: str, answers: Callable[[str], bool]
) -> tuple[Any, Callable[[], None]]:
    """The same for a server of grpc, whose calls have threads."""
    server = build()
    with suppress(FileNotFoundError):
        os.unlink(private)
    server.add_insecure_port(f"unix:{private}")
    try:
        fd = _put_in_place(private, inherited)
    except (LookupError, OSError) as error:
        log.warning("socket activation of grpcio: %s: connections are relayed", error)
        server.start()
        return server, _relay_in_threads(inherited, private)
    os.unlink(private)
    server.start()
    if answers(f"unix:{inherited.getsockname()}"):
        return server, lambda: _take_out(fd)
    log.warning("socket activation of grpcio does not work with this release: connections are relayed")
    _take_out(fd)
    server.stop(0).wait()
    server = build()
    server.add_insecure_port(f"unix:{private}")
    server.start()
    return server, _relay_in_threads(inherited, private)


def _relay_in_threads(listener: socket.socket, private: str) -> Callable[[], None]:
    closed = threading.Event()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def carry(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as inner:
            try:
                inner.connect(private)
            except OSError:
                return
            back = threading.Thread(target=pump, args=(inner, client), daemon=True)
            back.start()
            pump(client, inner)
            back.join()

    def accept() -> None:
        listener.settimeout(0.5)  # the socket is systemd's: nobody may shut it down to end this
        while not closed.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            client.settimeout(None)
            threading.Thread(target=carry, args=(client,), name="relay", daemon=True).start()

    thread = threading.Thread(target=accept, name="relay", daemon=True)
    thread.start()

    def close() -> None:
        closed.set()
        thread.join()  # who comes from now on waits for the next process

    return close
