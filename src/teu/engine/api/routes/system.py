# SPDX-License-Identifier: Apache-2.0
"""Routes of the daemon itself: _ping, version, info, events, system/df, auth."""

from __future__ import annotations

import json
import platform
import queue
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu import __version__
from teu.engine.api.messages import Request, Response, empty, json_response, stream, text
from teu.engine.api.parameters import accepted
from teu.engine.api.router import route
from teu.engine.api.server import API_VERSION, oldest, version_text
from teu.engine.core import events as bus
from teu.engine.core import fields, times, versions
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.views import system as view

if TYPE_CHECKING:
    from teu.engine.engine import Engine

SEQUENCE = "application/json-seq"  # RFC 7464
EVENT_TYPES = ("application/jsonl", "application/x-ndjson", SEQUENCE)
RECORD_SEPARATOR = b"\x1e"
EVENT_FILTERS = {
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
}


@route("GET", "/_ping")
def ping(engine: Engine, request: Request) -> Response:
    answer = text("" if request.method == "HEAD" else "OK")
    answer.headers.update(
        {
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
            "Builder-Version": "2" if engine.builder.present else "1",
            "Swarm": "inactive",
        }
    )
    return answer


@route("GET", "/version")
def version(engine: Engine, request: Request) -> Response:
    details = {
        "ApiVersion": version_text(API_VERSION),
        "Arch": view.machine(),
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "KernelVersion": platform.release(),
        "MinAPIVersion": version_text(oldest(engine)),
        "Os": "linux",
    }
    components = [{"Name": "Engine", "Version": __version__, "Details": details}]
    try:
        from google.protobuf.empty_pb2 import Empty

        below = engine.containerd.version.Version(Empty(), timeout=5)
        components.append({"Name": "containerd", "Version": below.version, "Details": {"GitCommit": below.revision}})
    except EngineError:
        pass
    return json_response(
        {
            "Platform": {"Name": "Teu"},
            "Components": components,
            "Version": __version__,
            "ApiVersion": version_text(API_VERSION),
            "MinAPIVersion": version_text(oldest(engine)),
            "GitCommit": "",
            "GoVersion": "",
            "PythonVersion": platform.python_version(),
            "Os": "linux",
            "Arch": view.machine(),
            "KernelVersion": platform.release(),
            "BuildTime": "",
        }
    )


@route("GET", "/info")
def info(engine: Engine, request: Request) -> Response:
    return json_response(view.info(engine, request.version))


@route("GET", "/events")
def events(engine: Engine, request: Request) -> Response:
    filters = request.query.filters()
    for key in filters:
        if key not in EVENT_FILTERS:
            raise BadRequest(f"invalid filter '{key}'")
    since = times.parse(request.query.get("since"), "since")
    until = times.parse(request.query.get("until"), "until")
    if until and since > until:
        raise BadRequest(f"since ({request.query.get('since')}) is later than until ({request.query.get('until')})")
    kind = "application/json" if request.version < (1, 52) else accepted(request, EVENT_TYPES) or EVENT_TYPES[0]

    def line(event: bus.Event) -> bytes:
        shown = dict(event)
        versions.fit("event", shown, request.version)
        return (RECORD_SEPARATOR if kind == SEQUENCE else b"") + json.dumps(shown).encode() + b"\n"

    def known(event: bus.Event) -> bool:
        """Whether the client's version has it."""
        return request.version >= (1, 46) or (event["Type"], event["Action"]) != ("image", "create")

    kept, mine = engine.events.subscribe()
    found = _events(engine, kept, mine, filters, since, until)
    chunks = (line(event) if event and known(event) else b"" for event in found)
    return stream(chunks, kind, lambda: engine.events.unsubscribe(mine))


def _events(
    engine: Engine,
    kept: list[bus.Event],
    mine: bus.Backlog,
    filters: dict[str, list[str]],
    since: int,
    until: int,
) -> Iterator[bus.Event | None]:
    """Events, and None where there is nothing to say for a while."""
    yield None
    if since or until:
        for event in kept:
            inside = event["timeNano"] >= since and (not until or event["timeNano"] <= until)
            if inside and bus.matches(event, filters):
                yield event
    kept.clear()
    while not until or time.time_ns() < until:
        wait = 5.0 if not until else min(5.0, max(0.001, (until - time.time_ns()) / 1e9))
        try:
            following = mine.get(timeout=wait)
        except queue.Empty:
            if not engine.events.is_subscribed(mine):
                return
            yield None
            continue
        if following is None:
            return
        if until and following["timeNano"] > until:
            return
        if bus.matches(following, filters):
            yield following


@route("GET", "/system/df")
def disk_usage(engine: Engine, request: Request) -> Response:
    kinds = set(request.query.every("type")) or set(view.KINDS)
    for kind in kinds:
        if kind not in view.KINDS:
            raise BadRequest(f"unknown object type: {kind}")
    return json_response(view.usage(engine, kinds, request.version, request.query.flag("verbose")))


@route("POST", "/auth")
def auth(engine: Engine, request: Request) -> Response:
    """`docker login`: whether a registry takes these credentials. They are the client's to keep."""
    # HTTP and TLS: 15 ms of the daemon's start, which few clients have use for.
    from teu.engine.images import registries

    registries.login(engine.config, request.decode(fields.LOGIN))
    return json_response({"Status": "Login Succeeded", "IdentityToken": ""})


@route("OPTIONS", "/{anything:path}")
def options(engine: Engine, request: Request, anything: str) -> Response:
    """Nothing is said of what may be asked of an address; but whoever asks is answered, as by dockerd."""
    return empty(200)
