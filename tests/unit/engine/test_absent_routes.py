# SPDX-License-Identifier: Apache-2.0
"""Routes of swarm, OPTIONS, and routes that a version does not have yet."""

from __future__ import annotations

from typing import Any

import pytest

from teu.engine.api import router
from teu.engine.api.messages import Request, Response
from teu.engine.core import versions
from teu.engine.core.errors import BadRequest, EngineError, NotFound, Unavailable, Unsupported

SWARM = """
GET /swarm  GET /swarm/unlockkey  POST /swarm/init  POST /swarm/join  POST /swarm/leave  POST /swarm/update
POST /swarm/unlock  GET /nodes  GET /nodes/x  DELETE /nodes/x  POST /nodes/x/update  GET /services  GET /services/x
DELETE /services/x  POST /services/x/update  GET /services/x/logs  POST /services/create  GET /tasks  GET /tasks/x
GET /tasks/x/logs  GET /secrets  GET /secrets/x  DELETE /secrets/x  POST /secrets/x/update  POST /secrets/create
GET /configs  GET /configs/x  DELETE /configs/x  POST /configs/x/update  POST /configs/create  PUT /volumes/x
"""


def ask(method: str, target: str) -> Response:
    router.load()
    path, _, query = target.partition("?")
    handler, _, arguments = router.find(method, path)
    house: Any = None
    return handler(house, Request(method, path, query), **arguments)


def test_all_of_swarm_is_unavailable() -> None:
    words = SWARM.split()
    for method, path in zip(words[::2], words[1::2], strict=True):
        with pytest.raises(Unavailable, match="swarm"):
            ask(method, path)


@pytest.mark.parametrize(
    ("method", "target", "error"),
    [
        ("GET", "/containers/x/checkpoints?dir=/x", Unsupported),
        ("POST", "/containers/x/checkpoints", Unsupported),
        ("DELETE", "/containers/x/checkpoints/y", Unsupported),
        ("GET", "/nowhere", NotFound),
        ("PUT", "/containers/json", router.MethodNotAllowed),
    ],
)
def test_what_cannot_be_had_is_said(method: str, target: str, error: type[EngineError]) -> None:
    with pytest.raises(error) as raised:
        ask(method, target)
    assert type(raised.value) is error


def test_what_is_answered() -> None:
    for path in ("/", "/containers/json", "/any/thing"):
        answer = ask("OPTIONS", path) if path != "/" else Response(200)
        assert (answer.status, answer.body) == (200, b"")


def test_routes_have_their_versions() -> None:
    router.load()
    assert versions.ROUTES.keys() <= set(router.served())
    route = "/images/{name:path}/attestations"
    with pytest.raises(BadRequest, match=r"attestations requires minimum API version 1\.55"):
        versions.check_route("GET", route, (1, 54))
    versions.check_route("GET", route, (1, 55))
    versions.check_route("POST", "/containers/prune", (1, 24))
