# SPDX-License-Identifier: Apache-2.0
"""Routes of what is not here: swarm's, which are answered as by a dockerd that is in no swarm, and those of
checkpoints, which dockerd has in its experimental mode alone. Called by the router.

A status counts here: for many clients 404 is "there is no such service", and "page not found" an engine that is broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response
from teu.engine.api.router import route
from teu.engine.core.errors import Unavailable, Unsupported

if TYPE_CHECKING:
    from teu.engine.engine import Engine


def _no_swarm(engine: Engine, request: Request, **names: str) -> Response:
    raise Unavailable("This node is not a swarm manager: teud serves this machine alone")


for _method, _patterns in {
    "GET": "/swarm /swarm/unlockkey /services/{name}/logs /tasks/{name}/logs",
    "POST": "/swarm/init /swarm/join /swarm/update /swarm/unlock",
}.items():
    for _pattern in _patterns.split():
        route(_method, _pattern)(_no_swarm)
for _kind in ("nodes", "services", "tasks", "secrets", "configs"):
    route("GET", f"/{_kind}")(_no_swarm)
    route("GET", f"/{_kind}/{{name}}")(_no_swarm)
    if _kind != "tasks":
        route("DELETE", f"/{_kind}/{{name}}")(_no_swarm)
        route("POST", f"/{_kind}/{{name}}/update")(_no_swarm)
    if _kind not in ("tasks", "nodes"):
        route("POST", f"/{_kind}/create")(_no_swarm)


@route("POST", "/swarm/leave")
def leave(engine: Engine, request: Request) -> Response:
    raise Unavailable("This node is not part of a swarm")


@route("PUT", "/volumes/{name}")
def update_volume(engine: Engine, request: Request, name: str) -> Response:
    raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")


def _no_checkpoints(engine: Engine, request: Request, name: str, checkpoint: str = "") -> Response:
    raise Unsupported("checkpoints are not supported by this engine; teu-ctr has them, for containers of its own")


route("GET", "/containers/{name}/checkpoints")(_no_checkpoints)
route("POST", "/containers/{name}/checkpoints")(_no_checkpoints)
route("DELETE", "/containers/{name}/checkpoints/{checkpoint}")(_no_checkpoints)
