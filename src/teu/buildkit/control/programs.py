# SPDX-License-Identifier: Apache-2.0
"""Frontends in containers at work: a process whose standard streams are a connection of LLBBridge. Made by the daemon
for frontends.gateway.

grpcio takes addresses, no streams: each frontend has a server of its own behind a socket in a folder of root's alone,
and what the process writes and reads is carried to and from one connection to it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

from teu.api.buildkit import gateway_pb2
from teu.api.grpc.health.v1 import health_pb2
from teu.buildkit.control import rpc
from teu.buildkit.control.bridge import Forwarder
from teu.buildkit.control.containers import Containers, Output
from teu.buildkit.control.control import Health
from teu.buildkit.control.view import BuildBridge
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import new_id
from teu.buildkit.core.snapshots import Snapshot
from teu.buildkit.frontends.bridge import Bridge, Request, Result
from teu.buildkit.frontends.gateway import Program

log = logging.getLogger("teu.buildkit")

THREADS = 64  # calls of one frontend at a time
LOG_MAX = 1 << 20  # bytes of a frontend's standard error that are shown
PIECE = 64 << 10
GRACE_SECONDS = 1.0  # for calls that are under way when the frontend has ended


class Process(Protocol):
    def wait(self) -> int: ...

    def write(self, data: bytes) -> None: ...

    def close_input(self) -> None: ...


class Box(Protocol):
    """The container of a frontend. `kill` may be called by any thread, at any time."""

    def run(self, out: Output, err: Output) -> Process: ...

    def kill(self) -> None: ...

    def release(self) -> None: ...


class Boxes(Protocol):
    def box(self, program: Program, root: Snapshot | None) -> Box:
        """A container for a frontend, upon its image: nothing runs yet."""


class Runner:
    """frontends.gateway.Runner. `folder`: for sockets, root's alone."""

    def __init__(
        self,
        boxes: Boxes,
        folder: str,
        workers: Callable[[], Any],
        containers: Callable[[BuildBridge], Containers],
    ) -> None:
        self._boxes = boxes
        self._folder = folder
        self._workers = workers
        self._containers = containers

    def run(self, bridge: Bridge, program: Program, request: Request) -> Result:
        assert isinstance(bridge, BuildBridge)
        said = _Word()
        cancellation = bridge.build.cancellation
        with ExitStack() as undo:
            step = undo.enter_context(bridge.step(f"[frontend] {program.name}"))
            forwarder = Forwarder(bridge, request.inputs, self._workers, self._containers(bridge), said.give)
            undo.callback(forwarder.close)
            connection = undo.enter_context(self._served(forwarder))
            box = self._boxes.box(program, program.root.snapshot())
            undo.callback(box.release)
            undo.enter_context(cancellation.calling(box.kill))
            shown = 0

            def show(data: bytes) -> None:
                nonlocal shown
                if shown < LOG_MAX:
                    step.log(2, data[: LOG_MAX - shown])
                shown += len(data)

            def hand_on(data: bytes) -> None:
                with suppress(OSError):
                    connection.sendall(data)

            process = box.run(hand_on, show)
            reader = threading.Thread(target=_carry, args=(connection, process), name="frontend", daemon=True)
            reader.start()
            undo.callback(_end, connection, reader)
            code = process.wait()
            cancellation.check()
            return said.result(code)

    @contextmanager
    def _served(self, forwarder: Forwarder) -> Iterator[socket.socket]:
        """A connection to a server of this frontend's LLBBridge alone."""
        os.makedirs(self._folder, 0o700, exist_ok=True)
        path = f"{self._folder}/{new_id()}.sock"
        server = rpc.server(THREADS, "frontend")
        rpc.register(server, gateway_pb2.DESCRIPTOR.services_by_name["LLBBridge"], forwarder)
        rpc.register(server, health_pb2.DESCRIPTOR.services_by_name["Health"], Health())
        with ExitStack() as undo:
            undo.callback(_remove, path)
            server.add_insecure_port(f"unix:{path}")
            server.start()
            undo.callback(lambda: server.stop(GRACE_SECONDS).wait())
            connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.connect(path)
            _remove(path)  # nobody else is to come
            yield connection


class _Word:
    """What a frontend returns, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._result: Result | None = None
        self._error: errors.Error | None = None

    def give(self, result: Result | None, error: errors.Error | None) -> None:
        with self._lock:
            if self._result is not None or self._error is not None:
                raise errors.InvalidArgument("gateway result is already set")
            self._result, self._error = result, error

    def result(self, code: int) -> Result:
        """An error that it returned counts more than that its process failed, and that more than a result."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if code:
                raise errors.Error(f"frontend process exited with code {code}")
            if self._result is None:
                raise errors.Error("no result for incomplete build")
            return self._result


def _carry(connection: socket.socket, process: Process) -> None:
    try:
        while data := connection.recv(PIECE):
            process.write(data)
    except OSError as error:
        log.debug("a frontend's connection: %s", error)
    with suppress(OSError, errors.Error):
        process.close_input()


def _end(connection: socket.socket, reader: threading.Thread) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    reader.join(5.0)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
