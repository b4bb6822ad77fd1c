# SPDX-License-Identifier: Apache-2.0
"""Routes of exec: create, start (attached or not), inspect, resize."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, empty, hijack, json_response
from teu.engine.api.parameters import size
from teu.engine.api.router import route
from teu.engine.api.streaming import content_type, serve
from teu.engine.backend import tasks
from teu.engine.core import fields
from teu.engine.core.errors import Conflict, EngineError
from teu.engine.lifecycle import execs
from teu.engine.streams.detach import Filter
from teu.engine.streams.frames import STDOUT, frame

if TYPE_CHECKING:
    from teu.engine.engine import Engine


@route("POST", "/containers/{name}/exec")
def create(engine: Engine, request: Request, name: str) -> Response:
    options = request.decode(fields.EXEC, heed="exec")
    execution = execs.create(engine, engine.containers.get(name), options)
    return json_response({"Id": execution.id}, 201)


@route("POST", "/exec/{identity}/start")
def start(engine: Engine, request: Request, identity: str) -> Response:
    options = request.decode(fields.EXEC_START, optional=True, heed="exec")
    execution = execs.get(engine, identity)
    execution.container.must_run()
    execution.asked = True
    terminal = bool(options.tty)  # the client's: it may differ from the process's own, and says what it reads

    def claim() -> None:
        execution.claim()
        if options.console_size and terminal:
            execution.console_size = options.console_size

    if options.detach:
        claim()
        try:
            execution.start()
        except EngineError:
            execution.give_up()
            raise
        return empty(200)
    keys = Filter(execution.detach_keys, execution.tty)

    def take_over(sock: socket.socket, early: bytes) -> None:
        try:
            claim()
        except Conflict as error:
            # As with docker: Watchtower starts an exec a second time, and takes any status but 200 for its failure.
            words = f"{error}\r\n".encode()
            sock.sendall(words if terminal else frame(STDOUT, words))
            return
        hub = execution.hub
        client = hub.attach(sock, execution.stdout, execution.stderr, framed=not terminal)
        try:
            execution.start()
        except EngineError as error:
            # The head is out: the client reads the reason from the stream and the code from inspect.
            message = f"{error}\r\n".encode()
            hub.detach(client, message)
            execution.give_up()
            return

        def close_stdin() -> None:
            tasks.close_stdin(engine.containerd, execution.container.id, execution.id)
            hub.close_stdin()

        if serve(hub, client, sock, early, execution.stdin, keys, close_stdin):
            execution.container.event("exec_detach", execID=execution.id)

    return hijack(take_over, content_type(request, terminal, taken_over=True))


@route("GET", "/exec/{identity}/json")
def inspect(engine: Engine, request: Request, identity: str) -> Response:
    return json_response(execs.get(engine, identity).inspect())


@route("POST", "/exec/{identity}/resize")
def resize(engine: Engine, request: Request, identity: str) -> Response:
    height, width = size(request)
    execs.get(engine, identity).resize(width, height)
    return empty(200)
