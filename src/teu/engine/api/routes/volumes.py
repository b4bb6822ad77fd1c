# SPDX-License-Identifier: Apache-2.0
"""Routes: volumes. Called by the router."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, empty, json_response, stream
from teu.engine.api.router import route
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.filters import flag_filter, labels_match, text_matches
from teu.engine.files import volumes
from teu.engine.volumes.drivers.registry import DEFAULT
from teu.engine.volumes.store import ANONYMOUS_LABEL, size

if TYPE_CHECKING:
    from teu.engine.engine import Engine
    from teu.oci.jsontext import Json

TAR = "application/x-tar"
FILTERS = {"dangling", "driver", "label", "label!", "name"}


@route("GET", "/volumes")
def list_volumes(engine: Engine, request: Request) -> Response:
    filters = request.query.filters()
    for name in filters:
        if name not in FILTERS:
            raise BadRequest(f"invalid filter '{name}'")
    dangling = flag_filter(filters, "dangling")
    rows = []
    for name in engine.volumes.names():
        if filters.get("driver") and engine.volumes.driver(name) not in filters["driver"]:
            continue
        if filters.get("name") and not text_matches(name, filters["name"]):
            continue
        if dangling is not None and dangling == bool(engine.volumes.users(name)):
            continue
        if _labelled(engine, name, filters):
            rows.append(engine.volumes.describe(name))
    others, warnings = engine.volumes.elsewhere() if dangling is not False else ([], [])
    rows += [row for row in others if _chosen(row, filters)]
    return json_response({"Volumes": rows, "Warnings": warnings or None})


def _chosen(row: dict[str, Json], filters: dict[str, list[str]]) -> bool:
    """Whether the filters take a volume of a plugin's that nobody has named here: it has no labels, and no users."""
    if filters.get("driver") and row["Driver"] not in filters["driver"]:
        return False
    if filters.get("name") and not text_matches(str(row["Name"]), filters["name"]):
        return False
    return labels_match({}, filters.get("label", []))


def _labelled(engine: Engine, name: str, filters: dict[str, list[str]]) -> bool:
    labels = engine.volumes.labels(name)
    return labels_match(labels, filters.get("label", [])) and not any(
        labels_match(labels, [text]) for text in filters.get("label!", ())
    )


@route("POST", "/volumes/create")
def create_volume(engine: Engine, request: Request) -> Response:
    body = request.decode(fields.VOLUME, optional=True)
    volume = engine.volumes.ensure(body.name or None, body.driver, body.options, body.labels)
    return json_response(engine.volumes.describe(volume.name), 201)


@route("POST", "/volumes/prune")
def prune_volumes(engine: Engine, request: Request) -> Response:
    """Before API 1.42 all unused volumes, since then the anonymous ones unless all=true is asked for. What others have,
    behind options or a plugin, is never pruned, as with docker."""
    filters = request.query.filters()
    for name in filters:
        if name not in ("all", "label", "label!"):
            raise BadRequest(f"invalid filter '{name}'")
    every = flag_filter(filters, "all") or request.version < (1, 42)
    gone, freed = [], 0
    for name in engine.volumes.names():
        if not every and ANONYMOUS_LABEL not in engine.volumes.labels(name):
            continue
        if engine.volumes.driver(name) != DEFAULT or engine.volumes.has_options(name):
            continue
        if not _labelled(engine, name, filters) or engine.volumes.users(name):
            continue
        bytes_ = size(engine.volumes.mountpoint(name))
        try:
            engine.volumes.remove(name)
        except EngineError:
            continue
        gone.append(name)
        freed += bytes_
    engine.events.publish("volume", "prune", "", {"reclaimed": str(freed)})
    return json_response({"VolumesDeleted": gone or None, "SpaceReclaimed": freed})


@route("GET", "/volumes/{name}")
def inspect_volume(engine: Engine, request: Request, name: str) -> Response:
    return json_response(engine.volumes.inspect(name))


@route("POST", "/volumes/{name}/rename")
def rename_volume(engine: Engine, request: Request, name: str) -> Response:
    """Ours, as are the archives: docker's API has no such routes."""
    engine.volumes.rename(name, request.query.get("name"))
    return empty()


@route("GET", "/volumes/{name}/archive")
def export_volume(engine: Engine, request: Request, name: str) -> Response:
    pieces = volumes.pack(engine, name)
    first = next(pieces)  # what is wrong is known with it, and then the status is, too
    return stream(itertools.chain([first], pieces), TAR, pieces.close)


@route("PUT", "/volumes/{name}/archive")
def import_volume(engine: Engine, request: Request, name: str) -> Response:
    volumes.unpack(engine, name, request.body)
    return empty(200)


@route("DELETE", "/volumes/{name}")
def remove_volume(engine: Engine, request: Request, name: str) -> Response:
    engine.volumes.remove(name, request.query.flag("force"))
    return empty()
