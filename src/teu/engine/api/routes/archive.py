# SPDX-License-Identifier: Apache-2.0
"""Routes of a container's files: archive (docker cp) and export."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, empty, stream
from teu.engine.api.router import route
from teu.engine.core.errors import BadRequest
from teu.engine.files import cp
from teu.engine.spec import users

if TYPE_CHECKING:
    from teu.engine.engine import Engine

TAR = "application/x-tar"


@route("GET", "/containers/{name}/archive")
def get_archive(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    path = _path(request)
    description = cp.describe(engine, container, path, name)
    if request.method == "HEAD":
        response = Response(200)
    else:
        response = stream(cp.pack(engine, container, path, asked=name), TAR)
        container.event("archive-path")
    response.headers["X-Docker-Container-Path-Stat"] = base64.b64encode(json.dumps(description).encode()).decode()
    return response


def _path(request: Request) -> str:
    path = request.query.get("path")
    if not path:
        raise BadRequest("path cannot be empty: name a file or a folder in the container")
    if "\0" in path:
        raise BadRequest(f"path must not contain a NUL character: {path!r}")
    return path


@route("PUT", "/containers/{name}/archive")
def put_archive(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    path = _path(request)
    owner = None
    if request.query.flag("copyUIDGID") and container.config.user:
        with container.lock:  # a start may be mounting the root
            user = users.find(engine, container, container.config.user)
        owner = (user.uid, user.gid)
    replace = not request.query.flag("noOverwriteDirNonDir")
    cp.unpack(engine, container, path, request.body, replace, owner, name)
    container.event("extract-to-dir")
    return empty(200)


@route("GET", "/containers/{name}/export")
def export(engine: Engine, request: Request, name: str) -> Response:
    container = engine.containers.get(name)
    container.event("export")
    return stream(cp.pack(engine, container, "/", whole=True), TAR)
