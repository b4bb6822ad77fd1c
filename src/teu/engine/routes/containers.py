# SPDX-License-Identifier: Apache-2.0
"""Routes of containers: create, list, inspect and the verbs. Thin: decode, call, answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teu.engine import create, hostconfig, lifecycle, query, spec, tasks, top
from teu.engine.container import Container
from teu.engine.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.http import Request, Response, empty, json_response, stream
from teu.engine.router import route

if TYPE_CHECKING:
    from teu.engine.engine import Engine


@route("POST", "/containers/create")
def create_container(engine: Engine, request: Request) -> Response:
    container, warnings = create.create(
        engine, request.json(), request.query.get("name"), request.query.get("platform") or None, request.version
    )
    return json_response({"Id": container.id, "Warnings": warnings}, 201)


@route("GET", "/containers/json")
def list_containers(engine: Engine, request: Request) -> Response:
    return json_response(
        query.summaries(
            engine,
            everything=request.query.flag("all"),
            limit=request.query.integer("limit", 0) or 0,
            with_size=request.query.flag("size"),
            filters=request.query.filters(),
        )
    )


@route("GET", "/containers/{name}/json")
def inspect(engine: Engine, request: Request, name: str) -> Response:
    return json_response(query.inspect(engine, engine.containers.get(name), request.query.flag("size")))


@route("POST", "/containers/{name}/start")
def start(engine: Engine, request: Request, name: str) -> Response:
    lifecycle.start(engine, engine.containers.get(name))
    return empty()


@route("POST", "/containers/{name}/stop")
def stop(engine: Engine, request: Request, name: str) -> Response:
    lifecycle.stop(
        engine, engine.containers.get(name), request.query.integer("t"), request.query.get("signal")
    )
    return empty()


@route("POST", "/containers/{name}/restart")
def restart(engine: Engine, request: Request, name: str) -> Response:
    lifecycle.restart(
        engine, engine.containers.get(name), request.query.integer("t"), request.query.get("signal")
    )
    return empty()


@route("POST", "/containers/{name}/kill")
def kill(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.find(name)
    if container is None:
        raise NotFound(f"cannot kill container: {name}: No such container: {name}")
    lifecycle.kill(engine, container, request.query.get("signal"))
    return empty()


@route("POST", "/containers/{name}/pause")
def pause(engine: Engine, request: Request, name: str) -> Response:
    lifecycle.pause(engine, engine.containers.get(name))
    return empty()


@route("POST", "/containers/{name}/unpause")
def unpause(engine: Engine, request: Request, name: str) -> Response:
    lifecycle.unpause(engine, engine.containers.get(name))
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
    container.event("rename", oldName=f"/{old}")
    return empty()


@route("POST", "/containers/{name}/resize")
def resize(engine: Engine, request: Request, name: str) -> Response:
    height, width = size(request)
    container = engine.containers.get(name)
    if not container.running or not container.pid:
        raise Conflict(f"container {container.id} is not running")
    tasks.resize(engine, container.id, width, height)
    container.event("resize", height=str(height), width=str(width))
    return empty(200)


def size(request: Request) -> tuple[int, int]:
    height, width = request.query.integer("h"), request.query.integer("w")
    if height is None or width is None or not 0 <= height < 65536 or not 0 <= width < 65536:
        raise BadRequest("h and w (the terminal's height and width) are needed, 0 to 65535")
    return height, width


@route("POST", "/containers/{name}/update")
def update(engine: Engine, request: Request, name: str) -> Response:
    body = request.json()
    container = engine.containers.get(name)
    with container.lock:
        changed = dict(container.host_config)
        given = {key: body[key] for key in hostconfig.RESOURCES if body.get(key)}
        if given.get("NanoCpus"):
            changed["CpuPeriod"] = changed["CpuQuota"] = 0
        changed.update(given)
        policy = body.get("RestartPolicy") or {}
        if policy.get("Name"):
            changed["RestartPolicy"] = hostconfig.check_restart_policy(policy, container.auto_remove)
        log = changed["LogConfig"]
        if (
            "Memory" in given
            and "MemorySwap" not in given
            and 0 < container.host_config["MemorySwap"] < given["Memory"]
        ):
            raise Conflict(
                "Memory limit should be smaller than already set memoryswap limit,"
                " update the memoryswap at the same time"
            )
        changed = hostconfig.clean_host_config(changed, log["Type"], log["Config"])
        if container.running and container.pid and given:
            try:
                tasks.update(engine, container.id, spec.resources(changed))
            except EngineError as error:
                raise EngineError(f"Cannot update container {container.id}: {error}") from None
        container.host_config = changed
        container.save()
    container.event("update")
    return json_response({"Warnings": []})


@route("POST", "/containers/{name}/wait")
def wait(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    condition = request.query.get("condition") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise BadRequest(f'invalid condition: "{condition}"')
    before = container.exits
    return stream(_wait(container, condition, before), "application/json")


def _wait(container: Container, condition: str, before: int) -> Any:
    import json

    def reached() -> bool:
        if container.removed:
            return True
        if condition == "removed":
            return False
        # A container that a restart policy starts again has not been running in between.
        return container.exits != before or (condition == "not-running" and not container.running)

    # The head of the answer goes out now: clients take it for "the wait has begun".
    yield b""
    while True:
        with container.changed:
            if container.changed.wait_for(reached, 30):
                break
        yield b""
    answer: dict[str, Any] = {"StatusCode": container.state["ExitCode"]}
    yield json.dumps(answer).encode() + b"\n"


@route("DELETE", "/containers/{name}")
def remove(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    if request.query.flag("link"):
        raise BadRequest("links are not supported; there is none to remove")
    lifecycle.remove(engine, container, request.query.flag("force"), request.query.flag("v"))
    return empty()


@route("POST", "/containers/prune")
def prune(engine: Engine, request: Request) -> Response:
    filters = request.query.filters()
    for key in filters:
        if key not in ("until", "label", "label!"):
            raise BadRequest(f"invalid filter '{key}'")
    deleted = []
    freed = 0
    for container in engine.containers.all():
        if container.running or container.removing or not query.prune_matches(container, filters):
            continue
        size_of = query.snapshot_size(engine, container)
        try:
            lifecycle.remove(engine, container)
        except (Conflict, NotFound):
            continue
        deleted.append(container.id)
        freed += size_of
    engine.events.publish("container", "prune", "", {"reclaimed": str(freed)})
    return json_response({"ContainersDeleted": deleted or None, "SpaceReclaimed": freed})


@route("GET", "/containers/{name}/top")
def processes(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    if not container.running or not container.pid:
        raise Conflict(f"container {container.id} is not running")
    return json_response(top.processes(engine, container, request.query.get("ps_args") or "-ef"))


@route("GET", "/containers/{name}/changes")
def changes(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine import difference as module

    return json_response(module.changes(engine, engine.containers.get(name)) or None)


@route("GET", "/containers/{name}/stats")
def stats(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine import stats as module

    container = engine.containers.get(name)
    follow = request.query.flag("stream", True)
    once = request.query.flag("one-shot")
    return stream(module.stream(engine, container, follow, once), "application/json")
