# SPDX-License-Identifier: Apache-2.0
"""Routes: managed plugins. Called by the router."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, empty, json_response, progress
from teu.engine.api.router import route
from teu.engine.core.errors import BadRequest
from teu.engine.plugins.config import ARGUMENTS, PRIVILEGES

if TYPE_CHECKING:
    from teu.engine.engine import Engine


def _auth(request: Request) -> str:
    return request.headers.get("x-registry-auth", "")


@route("GET", "/plugins")
def list_plugins(engine: Engine, request: Request) -> Response:
    return json_response(engine.plugins.listing(request.query.filters()))


@route("GET", "/plugins/privileges")
def privileges(engine: Engine, request: Request) -> Response:
    found = engine.plugins.privileges(request.query.get("remote"), _auth(request), request.departure)
    return json_response(found)


@route("POST", "/plugins/pull")
def pull(engine: Engine, request: Request) -> Response:
    """The body is what is granted."""
    granted, remote = request.items(PRIVILEGES), request.query.get("remote")
    name = engine.plugins.name_of(remote, request.query.get("name"))
    answer = progress(engine.plugins.pull(remote, name, _auth(request), granted, request.departure))
    answer.headers["Docker-Plugin-Name"] = name
    return answer


@route("POST", "/plugins/create")
def create(engine: Engine, request: Request) -> Response:
    engine.plugins.create(request.query.get("name"), request.body, request.departure)
    return empty()


@route("GET", "/plugins/{name:path}/json")
def inspect(engine: Engine, request: Request, name: str) -> Response:
    return json_response(engine.plugins.get(name).shown())


@route("DELETE", "/plugins/{name:path}")
def remove(engine: Engine, request: Request, name: str) -> Response:
    engine.plugins.remove(name, request.query.flag("force"))
    return empty(200)


@route("POST", "/plugins/{name:path}/enable")
def enable(engine: Engine, request: Request, name: str) -> Response:
    seconds = request.query.integer("timeout")
    if seconds is None:
        raise BadRequest('strconv.Atoi: parsing "": invalid syntax')
    engine.plugins.enable(name, seconds)
    return empty(200)


@route("POST", "/plugins/{name:path}/disable")
def disable(engine: Engine, request: Request, name: str) -> Response:
    engine.plugins.disable(name, request.query.flag("force"))
    return empty(200)


@route("POST", "/plugins/{name:path}/upgrade")
def upgrade(engine: Engine, request: Request, name: str) -> Response:
    granted, remote = request.items(PRIVILEGES), request.query.get("remote")
    answer = progress(engine.plugins.upgrade(name, remote, _auth(request), granted, request.departure))
    answer.headers["Docker-Plugin-Name"] = engine.plugins.name_of(remote, name)
    return answer


@route("POST", "/plugins/{name:path}/push")
def push(engine: Engine, request: Request, name: str) -> Response:
    return progress(engine.plugins.push(name, _auth(request), request.departure))


@route("POST", "/plugins/{name:path}/set")
def change(engine: Engine, request: Request, name: str) -> Response:
    engine.plugins.set(name, request.items(ARGUMENTS))
    return empty()
