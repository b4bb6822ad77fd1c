# SPDX-License-Identifier: Apache-2.0
"""Routes of containers: create, list, inspect and the verbs. Thin: decode, call, answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, empty, json_response, stream
from teu.engine.api.parameters import size
from teu.engine.api.router import route
from teu.engine.backend import tasks
from teu.engine.containers import native_log
from teu.engine.containers.model import Container
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, Conflict, NotFound
from teu.engine.lifecycle import change, create, limits, run
from teu.engine.views import containers as containers_view
from teu.engine.views import top

if TYPE_CHECKING:
    from teu.engine.engine import Engine


@route("POST", "/containers/create")
def create_container(engine: Engine, request: Request) -> Response:
    container, warnings = create.create(
        engine,
        request.decode(fields.CONTAINER, heed="create"),
        request.query.get("name"),
        request.query.get("platform") or None,
        request.version,
    )
    return json_response({"Id": container.id, "Warnings": warnings}, 201)


@route("GET", "/containers/json")
def list_containers(engine: Engine, request: Request) -> Response:
    return json_response(
        containers_view.summaries(
            engine,
            everything=request.query.flag("all"),
            limit=request.query.integer("limit", 0) or 0,
            with_size=request.query.flag("size"),
            filters=request.query.filters(),
            version=request.version,
        )
    )


@route("GET", "/containers/{name}/json")
def inspect(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    return json_response(containers_view.inspect(engine, container, request.query.flag("size"), request.version))


@route("POST", "/containers/{name}/start")
def start(engine: Engine, request: Request, name: str) -> Response:
    if request.length > len("{}\r\n\r\n") or "transfer-encoding" in request.headers:
        raise BadRequest("a container starts with the settings that it was created with: send no body")
    run.start(engine, engine.containers.get(name))
    return empty()


@route("POST", "/containers/{name}/stop")
def stop(engine: Engine, request: Request, name: str) -> Response:
    run.stop(engine, engine.containers.get(name), request.query.integer("t"), request.query.get("signal"))
    return empty()


@route("POST", "/containers/{name}/restart")
def restart(engine: Engine, request: Request, name: str) -> Response:
    run.restart(engine, engine.containers.get(name), request.query.integer("t"), request.query.get("signal"))
    return empty()


@route("POST", "/containers/{name}/kill")
def kill(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.find(name)
    if container is None:
        raise NotFound(f"cannot kill container: {name}: No such container: {name}")
    run.kill(engine, container, request.query.get("signal"))
    return empty()


@route("POST", "/containers/{name}/pause")
def pause(engine: Engine, request: Request, name: str) -> Response:
    run.pause(engine, engine.containers.get(name))
    return empty()


@route("POST", "/containers/{name}/unpause")
def unpause(engine: Engine, request: Request, name: str) -> Response:
    run.unpause(engine, engine.containers.get(name))
    return empty()


@route("POST", "/containers/{name}/rename")
def rename(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    new = request.query.get("name")
    if not new:
        raise BadRequest("Neither old nor new names may be empty")
    old = container.name
    with container.lock:
        try:
            engine.containers.rename(container, new)
        except Conflict as error:
            raise Conflict(f"Error when allocating new name: {error}") from None
        engine.endpoints.renamed(container, old)
        with contextlib.suppress(OSError):
            native_log.renamed(container)
    container.event("rename", oldName=f"/{old}")
    return empty()


@route("POST", "/containers/{name}/resize")
def resize(engine: Engine, request: Request, name: str) -> Response:
    height, width = size(request)
    container = engine.containers.get(name)
    if not container.running or not container.pid:
        raise Conflict(f"container {container.id} is not running")
    tasks.resize(engine.containerd, container.id, width, height)
    container.event("resize", height=str(height), width=str(width))
    return empty(200)


@route("POST", "/containers/{name}/update")
def update(engine: Engine, request: Request, name: str) -> Response:
    body = request.decode(fields.UPDATE, heed="update")
    container = engine.containers.get(name)
    return json_response({"Warnings": limits.update(engine, container, body) or None})


@route("POST", "/containers/{name}/change")
def change_container(engine: Engine, request: Request, name: str) -> Response:
    """Docker has no such route."""
    body = request.decode(fields.CHANGE)
    return json_response({"Warnings": change.change(engine, engine.containers.get(name), body)})


@route("POST", "/containers/{name}/ready")
def ready(engine: Engine, request: Request, name: str) -> Response:
    """Docker has no such route. Who hears READY=1 (sd_notify(3)) from the container says so, for the event."""
    container = engine.containers.get(name)
    if not container.running:
        raise Conflict(f"container {container.id} is not running")
    container.event("ready")
    return empty()


@route("POST", "/containers/{name}/wait")
def wait(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    condition = request.query.get("condition") or "not-running"
    if condition not in ("not-running", "next-exit", "removed", "ended"):
        raise BadRequest(f'invalid condition: "{condition}"')
    before = container.exits
    return stream(_wait(request, container, condition, before), "application/json")


def _wait(request: Request, container: Container, condition: str, before: int) -> Iterator[bytes]:
    def reached() -> bool:
        if container.removed:
            return True
        if condition == "removed":
            return False
        if condition == "ended":  # not docker's: and nobody is starting it again, as teu-unit has to know
            return not container.running and not container.comes_back
        # A container that a restart policy starts again has not been running in between.
        return container.exits != before or (condition == "not-running" and not container.running)

    # The head of the answer goes out now: clients take it for "the wait has begun".
    yield b""
    with request.hangup(container.notify) as gone:
        while True:
            with container.changed:
                container.changed.wait_for(lambda: gone.is_set() or reached(), 30)
            if reached():
                break
            yield b""
            if gone.is_set():
                return
    answer = {"StatusCode": container.state.exit_code}
    yield json.dumps(answer).encode() + b"\n"


@route("DELETE", "/containers/{name:path}")
def remove(engine: Engine, request: Request, name: str) -> Response:
    if request.query.flag("link"):  # OWNER/NAME
        engine.endpoints.unlink(name)
        return empty()
    container = engine.containers.get(name)
    run.remove(engine, container, request.query.flag("force"), request.query.flag("v"), name)
    return empty()


@route("POST", "/containers/prune")
def prune(engine: Engine, request: Request) -> Response:
    filters = request.query.filters()
    for key in filters:
        if key not in ("until", "label", "label!"):
            raise BadRequest(f"invalid filter '{key}'")
    deleted, freed = run.prune(engine, lambda container: containers_view.prune_matches(container, filters))
    return json_response({"ContainersDeleted": deleted or None, "SpaceReclaimed": freed})


@route("GET", "/containers/{name}/top")
def processes(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    if not container.running or not container.pid:
        raise Conflict(f"container {container.id} is not running")
    answer = top.processes(engine, container, request.query.get("ps_args") or "-ef")
    container.event("top")
    return json_response(answer)


@route("GET", "/containers/{name}/changes")
def changes(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine.files import changes as module  # 1 ms

    return json_response(module.changes(engine, engine.containers.get(name)) or None)


@route("GET", "/containers/{name}/stats")
def stats(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine.views import stats as module  # 1 ms

    container = engine.containers.get(name)
    follow = request.query.flag("stream", True)
    once = request.query.flag("one-shot")
    return stream(module.stream(engine, container, follow, once, request.version), "application/json")
