# SPDX-License-Identifier: Apache-2.0
"""Attach: a client at the streams of a container's first process. Called by `service`.

Its output comes from the shim, which writes it into the log, too: a packet for each piece, which begins with the
stream's number. Its input is the container's FIFO.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from teu.containerd.core.errors import Error, FailedPrecondition
from teu.containerd.cri.containers import ATTACH_SOCKET, STDIN_FIFO, Containers
from teu.containerd.cri.execs import follow_sizes
from teu.containerd.cri.pipes import Streams, fill
from teu.containerd.cri.records import NAMESPACE, RUNNING, Container
from teu.containerd.state import Context

_PACKET = 65 << 10  # bytes, more than the shim puts into one
_STDOUT = 1


class Attaches:
    """Clients at containers."""

    def __init__(self, context: Context, containers: Containers) -> None:
        self._context = context
        self._containers = containers

    async def attach(self, container: Container, streams: Streams) -> int:
        """Until the container's output ends, or the client has sent all of its input to a container that reads on: 0.

        A container with `stdin_once` gets the end of its input with its first client's."""
        if container.state != RUNNING:
            raise FailedPrecondition(f"container {container.id} is not running")
        folder = self._containers.state_of(container.id)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as outputs:
            outputs.setblocking(False)
            place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # by the folder's descriptor: a socket's path is short
                await loop.sock_connect(outputs, f"/proc/self/fd/{place}/{ATTACH_SOCKET}")
            except (FileNotFoundError, ConnectionRefusedError):
                raise FailedPrecondition(f"container {container.id} is not running") from None  # it has just ended
            finally:
                os.close(place)
            tasks = [asyncio.create_task(self._outputs(outputs, streams))]
            if streams.resize is not None:
                asked = follow_sizes(self._context, container, "", streams.resize)
                resizing = asyncio.create_task(asked)
            else:
                resizing = None
            if streams.stdin is not None:
                tasks.append(asyncio.create_task(self._input(container, folder, streams)))
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                every = [*tasks, resizing] if resizing is not None else tasks
                for task in every:
                    task.cancel()
                await asyncio.wait(every)
        return 0

    async def _outputs(self, outputs: socket.socket, streams: Streams) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while packet := await loop.sock_recv(outputs, _PACKET):
                sink = streams.stdout if packet[0] == _STDOUT else streams.stderr
                if sink is not None:
                    await sink.write(packet[1:])

    async def _input(self, container: Container, folder: str, streams: Streams) -> None:
        assert streams.stdin is not None
        path = os.path.join(folder, STDIN_FIFO)
        once = container.config.stdin_once and not container.config.tty
        try:
            await fill(path, streams.stdin)
        finally:
            if once:
                await asyncio.shield(asyncio.create_task(self._end_input(container, path)))
        if once or not container.config.stdin:
            await asyncio.Event().wait()  # its output goes on

    async def _end_input(self, container: Container, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # no other client gets in
        with contextlib.suppress(Error):
            await self._context.tasks.close_io(NAMESPACE, container.id)
