# SPDX-License-Identifier: Apache-2.0
"""Routes of a container's streams: attach and logs."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, hijack, stream, switch
from teu.engine.api.router import route
from teu.engine.api.streaming import content_type, frames, gone, serve
from teu.engine.backend import tasks
from teu.engine.core import times
from teu.engine.core.errors import BadRequest, Conflict
from teu.engine.core.kinds import natural
from teu.engine.logs import registry
from teu.engine.logs.driver import Selection, details
from teu.engine.streams.detach import Filter

if TYPE_CHECKING:
    from teu.engine.engine import Engine


class Attachment:
    """What a client asks of a container that it attaches to."""

    def __init__(self, engine: Engine, request: Request, name: str, every_stream: bool, framed: bool) -> None:
        """`every_stream`: whatever is said of them. `framed`: of which stream an output is goes with it, where there is
        no terminal. Raises NotFound, Conflict, BadRequest."""
        query = request.query
        self._engine = engine
        self.container = container = engine.containers.get(name)
        self._keys = Filter(query.get("detachKeys"), container.tty)
        if container.state.paused:
            raise Conflict(f"Container {container.id} is paused, unpause the container before attach.")
        if container.state.restarting and not container.pid:
            raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        self._stdin = (every_stream or query.flag("stdin")) and container.config.open_stdin
        self._stdout = every_stream or query.flag("stdout")
        self._stderr = every_stream or query.flag("stderr")
        self._follows = query.flag("stream")
        self._framed = framed and not container.tty
        self._replay = b""
        if query.flag("logs"):
            selection = Selection(stdout=self._stdout, stderr=self._stderr)
            self._replay = b"".join(frames(container, selection, raw=not self._framed))

    def take_over(self, sock: socket.socket, early: bytes) -> None:
        """Carry the streams over this connection until one of both has ended."""
        if not self._follows:
            sock.sendall(self._replay)
            return
        container, hub = self.container, self.container.hub
        client = hub.attach(sock, self._stdout, self._stderr, self._replay, self._framed)
        container.event("attach")

        def close_stdin() -> None:
            if container.tty or not container.config.stdin_once:
                # Whoever closes a terminal's input (or shares it) has left; the process has not.
                hub.detach(client)
                return
            while not client.ended.is_set():
                if gone(sock):
                    return
                with container.changed:
                    if container.changed.wait_for(lambda: container.running and container.pid, 1.0):
                        break
            tasks.close_stdin(self._engine.containerd, container.id)
            hub.close_stdin()

        if serve(hub, client, sock, early, self._stdin, self._keys, close_stdin):
            container.event("detach")


@route("POST", "/containers/{name}/attach")
def attach(engine: Engine, request: Request, name: str) -> Response:
    attachment = Attachment(engine, request, name, every_stream=False, framed=True)
    return hijack(attachment.take_over, content_type(request, attachment.container.tty, taken_over=True))


@route("GET", "/containers/{name}/attach/ws")
def attach_websocket(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine.api import websocket  # 1 ms, for browsers

    attachment = Attachment(engine, request, name, every_stream=request.version < (1, 42), framed=False)
    headers = websocket.handshake(request.headers)
    opcode = websocket.BINARY if request.version >= (1, 28) else websocket.TEXT

    def take_over(sock: socket.socket, early: bytes) -> None:
        websocket.Bridge(sock, early, opcode).serve(attachment.take_over)

    return switch(take_over, "websocket", headers)


@route("GET", "/containers/{name}/logs")
def logs(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    query = request.query
    stdout, stderr = query.flag("stdout"), query.flag("stderr")
    if not stdout and not stderr:
        raise BadRequest("Bad parameters: you must choose at least one stream")
    tail = query.get("tail", "all")
    number = natural(tail)
    lines = -1 if number is None else number
    selection = Selection(
        stdout=stdout,
        stderr=stderr,
        tail=lines,
        since=times.parse(query.get("since"), "since"),
        until=times.parse(query.get("until"), "until"),
        timestamps=query.flag("timestamps"),
        follow=query.flag("follow"),
        details=details(container.log_source()) if query.flag("details") else b"",
    )
    if not registry.readable(container.log_source()):
        raise BadRequest("configured logging driver does not support reading")
    return stream(frames(container, selection), content_type(request, container.tty))
