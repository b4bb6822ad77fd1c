# SPDX-License-Identifier: Apache-2.0
"""Routes of builds: grpc and session, which the builder answers, and its cache."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, empty, encoded, json_response, stream, switch
from teu.engine.api.router import route
from teu.engine.builds import options, relay
from teu.engine.builds.builder import Limits
from teu.engine.builds.options import UPLOAD_REQUEST
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.kinds import natural
from teu.oci.units import parse_duration

if TYPE_CHECKING:
    from teu.engine.builds.classic import Message
    from teu.engine.engine import Engine

# What a record of the cache can be chosen by; "id" by a part of it.
CACHE_FIELDS = ("description", "id", "inuse", "parent", "private", "shared", "type")


@route("POST", "/grpc")
def grpc(engine: Engine, request: Request) -> Response:
    """The builder's own API, for clients that reach this socket alone: buildx, compose."""
    relay.protocol(request.headers.get("upgrade", ""))
    builder = engine.builder.dial()

    def take_over(sock: socket.socket, early: bytes) -> None:
        relay.carry(sock, early, builder)

    return switch(take_over, "h2c")


@route("POST", "/session")
def session(engine: Engine, request: Request) -> Response:
    """A client that serves its build's files, secrets and credentials to the builder."""
    relay.protocol(request.headers.get("upgrade", ""))
    return switch(relay.Session(engine.builder, request.pairs).serve, "h2c")


@route("POST", "/build/prune")
def prune(engine: Engine, request: Request) -> Response:
    query = request.query
    limits = Limits(
        keep_seconds=_unused_for(request.query.filters()),
        reserved=_bytes(request, "reserved-space") or _bytes(request, "keep-storage"),
        max_used=_bytes(request, "max-used-space"),
        min_free=_bytes(request, "min-free-space"),
    )
    removed, freed = engine.builder.prune([_chosen(query.filters())], query.flag("all"), limits)
    engine.events.publish("builder", "prune", "", {"reclaimed": str(freed)})
    return json_response({"CachesDeleted": removed or None, "SpaceReclaimed": freed})


def _bytes(request: Request, name: str) -> int:
    text = request.query.get(name)
    if not text:
        return 0
    value = natural(text, 19)
    if value is None:
        raise BadRequest(f"{name} is in bytes and expects an integer, got {text}")
    return value


def _unused_for(filters: dict[str, list[str]]) -> float:
    """Seconds."""
    name = "unused-for" if "unused-for" in filters else "until"
    if "unused-for" in filters and "until" in filters:
        raise BadRequest('conflicting filters: "until" and "unused-for"')
    given = filters.get(name, [])
    if len(given) > 1:
        raise BadRequest("filters expect only one value")
    try:
        return parse_duration(given[0]) / 1e9 if given else 0.0
    except ValueError as error:
        raise BadRequest(f"\"{name}\" filter expects a duration (e.g., '24h'): {error}") from None


def _chosen(filters: dict[str, list[str]]) -> str:
    """As a filter of the builder's, which is containerd's language: all of it must hold."""
    parts = []
    for name, given in sorted(filters.items()):
        if name in ("until", "unused-for"):
            continue
        if name not in CACHE_FIELDS:
            raise BadRequest(f"invalid filter '{name}'")
        if len(given) > 1:
            raise BadRequest("filters expect only one value")
        parts.append(f"{name}{'~=' if name == 'id' else '=='}{_quoted(given[0])}" if given else name)
    return ",".join(parts)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@route("POST", "/build")
def build(engine: Engine, request: Request) -> Response:
    """Of old clients and of libraries: a tar of the context as the body, messages of JSON as the answer."""
    query = request.query
    upload, _, name = query.get("buildid").partition(":")
    if upload == UPLOAD_REQUEST and name:
        engine.builds.upload(name, request.body)
        return json_response({})
    wanted = options.parse(query.get, query.every)
    messages = engine.builds.run(wanted, request.body, request.headers.get("x-registry-config", ""))
    try:
        first = _first(messages, request)
    except BaseException:
        messages.close()
        raise
    return stream(_lines(engine, first, messages), "application/json", messages.close)


def _first(messages: Iterator[Message | None], request: Request) -> Message | None:
    """A Dockerfile with a mistake has no answer yet that could hold it: its error is the request's."""
    for message in messages:
        if message is not None:
            return message
        request.departure.check()
    return None


def _lines(engine: Engine, first: Message | None, messages: Iterator[Message | None]) -> Iterator[bytes]:
    """A line for each message. What fails after the answer has begun is the last of them. An image that is done is an
    event."""
    try:
        for message in itertools.chain([first], messages):
            made = message.get("aux") if message is not None else None
            if isinstance(made, dict) and (identity := str(made.get("ID") or "")):
                engine.events.publish("image", "create", identity, {"name": identity})
            yield encoded(message) + b"\r\n" if message is not None else b""
    except EngineError as error:
        yield encoded(options.failure(str(error))) + b"\r\n"


@route("POST", "/build/cancel")
def cancel(engine: Engine, request: Request) -> Response:
    if not request.query.get("id"):
        raise BadRequest("build ID not provided")
    engine.builds.cancel(request.query.get("id"))
    return empty(200)
