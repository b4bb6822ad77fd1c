# SPDX-License-Identifier: Apache-2.0
"""Routes: networks. Called by the router."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, empty, json_response
from teu.engine.api.router import route
from teu.engine.core import fields, versions
from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.core.filters import filter_moment, flag_filter, labels_match, text_matches
from teu.engine.core.times import moment_of
from teu.engine.networks.model import Network

if TYPE_CHECKING:
    from teu.engine.engine import Engine

FILTERS = {"driver", "id", "label", "name", "scope", "type", "dangling"}
PRUNE_FILTERS = {"label", "label!", "until"}
CONNECTED_MAC = (1, 54)  # since when it is heeded: before, clients have sent back the one that they had read
BRIEF = (1, 28)  # since when the containers of a network are told of one network alone


@route("GET", "/networks")
def list_networks(engine: Engine, request: Request) -> Response:
    filters = _filters(request, FILTERS)
    rows = [
        engine.networks.describe(network, containers=request.version < BRIEF)
        for network in engine.networks.all()
        if _matches(engine, network, filters)
    ]
    for row in rows:
        versions.fit("network", row, request.version)
    return json_response(rows)


def _filters(request: Request, known: set[str]) -> dict[str, list[str]]:
    filters = request.query.filters()
    for name in filters:
        if name not in known:
            raise BadRequest(f"invalid filter '{name}'")
    return filters


def _matches(engine: Engine, network: Network, filters: dict[str, list[str]]) -> bool:
    for key, value in (("driver", network.driver), ("scope", network.record.scope)):
        if filters.get(key) and value not in filters[key]:
            return False
    for key, text in (("name", network.name), ("id", network.id)):
        if filters.get(key) and not text_matches(text, filters[key]):
            return False
    kind = "custom" if network.is_user_defined else "builtin"
    for wanted in filters.get("type", ()):
        if wanted not in ("custom", "builtin"):
            raise BadRequest(f"invalid filter: 'type'='{wanted}'")
    if filters.get("type") and kind not in filters["type"]:
        return False
    dangling = flag_filter(filters, "dangling")
    if dangling is not None:
        unused = network.is_user_defined and not engine.containers.using_network(network.name)
        if unused != dangling:
            return False
    return labels_match(network.record.labels, filters.get("label", []))


@route("POST", "/networks/create")
def create_network(engine: Engine, request: Request) -> Response:
    network, warning = engine.networks.create(request.decode(fields.NETWORK, heed="network"))
    return json_response({"Id": network.id, "Warning": warning}, 201)


@route("POST", "/networks/prune")
def prune_networks(engine: Engine, request: Request) -> Response:
    filters = _filters(request, PRUNE_FILTERS)
    keep = []
    until = [filter_moment(text) for text in filters.get("until", ())]
    for network in engine.networks.all():
        labels = network.record.labels
        if (
            not labels_match(labels, filters.get("label", []))
            or any(labels_match(labels, [text]) for text in filters.get("label!", ()))
            or any(moment_of(network.record.created) > limit for limit in until)
        ):
            keep.append(network)
    gone = engine.networks.prune(keep)
    engine.events.publish("network", "prune", "", {"reclaimed": "0"})
    return json_response({"NetworksDeleted": gone or None})


@route("GET", "/networks/{name}")
def inspect_network(engine: Engine, request: Request, name: str) -> Response:
    verbose = request.query.get("verbose")
    if verbose.lower() not in ("", "0", "1", "t", "f", "true", "false"):
        raise BadRequest(f"invalid value for verbose: {verbose}: it is neither true nor false")
    network = engine.networks.get(name)
    if request.query.get("scope") not in ("", network.record.scope):
        raise NotFound(f"network {name} not found: it is of scope {network.record.scope}")
    answer = engine.networks.describe(network)
    versions.fit("network", answer, request.version)
    return json_response(answer)


@route("DELETE", "/networks/{name}")
def remove_network(engine: Engine, request: Request, name: str) -> Response:
    engine.networks.remove(engine.networks.get(name))
    return empty()


@route("POST", "/networks/{name}/connect")
def connect_network(engine: Engine, request: Request, name: str) -> Response:
    body = request.decode(fields.CONNECT)
    if request.version < CONNECTED_MAC:
        body.endpoint.mac = ""
    network = engine.networks.get(name)
    container = engine.containers.get(body.container)
    engine.endpoints.connect(network, container, body.endpoint)
    return empty(200)


@route("POST", "/networks/{name}/disconnect")
def disconnect_network(engine: Engine, request: Request, name: str) -> Response:
    body = request.decode(fields.DISCONNECT)
    network = engine.networks.get(name)
    container = engine.containers.get(body.container)
    engine.endpoints.disconnect(network, container, body.force)
    return empty(200)
