# SPDX-License-Identifier: Apache-2.0
"""Routes of a container's streams: attach and logs."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, hijack, stream
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


@route("POST", "/containers/{name}/attach")
def attach(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    query = request.query
    filter_keys = Filter(query.get("detachKeys"), container.tty)
    if container.state.paused:
        raise Conflict(f"Container {container.id} is paused, unpause the container before attach.")
    if container.state.restarting and not container.pid:
        raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
    stdin = query.flag("stdin") and container.config.open_stdin
    stdout, stderr = query.flag("stdout"), query.flag("stderr")
    wants_stream = query.flag("stream")
    replay = b""
    if query.flag("logs"):
        replay = b"".join(frames(container, Selection(stdout=stdout, stderr=stderr)))

    def take_over(sock: socket.socket, early: bytes) -> None:
        if not wants_stream:
            sock.sendall(replay)
            return
        hub = container.hub
        client = hub.attach(sock, stdout, stderr, replay)
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
            tasks.close_stdin(engine.containerd, container.id)
            hub.close_stdin()

        if serve(hub, client, sock, early, stdin, filter_keys, close_stdin):
            container.event("detach")

    return hijack(take_over, content_type(request, container.tty))


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
