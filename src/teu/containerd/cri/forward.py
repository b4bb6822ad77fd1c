# SPDX-License-Identifier: Apache-2.0
"""Connections to what listens on a pod's own localhost. Called by `service`."""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import Executor

from teu.linux import netns

CONNECT_SECONDS = 10.0


def _sockets(namespace: str, families: tuple[socket.AddressFamily, ...]) -> list[socket.socket]:
    """One for each family: a socket stays in the network namespace in which it was made. OSError."""

    def make() -> list[socket.socket]:
        made: list[socket.socket] = []
        for family in families:
            try:
                made.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
            except OSError:
                if not made:
                    raise  # IPv6 may be switched off
        return made

    if not namespace:
        return make()
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return netns.run_in(descriptor, make)
    finally:
        os.close(descriptor)


async def connect(pool: Executor, namespace: str, port: int) -> socket.socket:
    """Connected to a port of a network namespace, "" for the host's: by IPv4, else by IPv6. OSError with what is in the
    way of both."""
    loop = asyncio.get_running_loop()
    families = (socket.AF_INET, socket.AF_INET6)
    made = await loop.run_in_executor(pool, _sockets, namespace, families)
    wrong = []
    try:
        for one in made:
            version, host = ("IPv4", "127.0.0.1") if one.family == socket.AF_INET else ("IPv6", "::1")
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await loop.sock_connect(one, (host, port))
            except OSError as error:
                # not its own text: that is the event loop's, without the reason
                wrong.append(f"{version}: {os.strerror(error.errno) if error.errno else 'no answer'}")
                continue
            made.remove(one)
            return one
    finally:
        for one in made:
            one.close()
    raise OSError(f"failed to connect to localhost:{port} inside the pod: {', '.join(wrong)}")
