# SPDX-License-Identifier: Apache-2.0
"""Routes: images. Called by the router."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.engine.api.messages import Request, Response, empty, json_response, progress, stream
from teu.engine.api.router import route
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.images import platforms, removal
from teu.engine.images.store import parse_reference
from teu.engine.lifecycle import run
from teu.engine.views import images as images_view

if TYPE_CHECKING:
    from teu.engine.engine import Engine
    from teu.engine.images.store import Image, Name
    from teu.oci import image_spec

REFERENCE = (1, 41)  # since when a name's pattern is a filter as others are, and no parameter of its own
TARGETS = (1, 48)  # since when images are told with their Descriptor; with `manifests` at any time


@route("GET", "/images/json")
def list_images(engine: Engine, request: Request) -> Response:
    identity = request.query.flag("identity")
    if identity and not request.query.flag("manifests"):
        raise BadRequest("conflicting options: identity requires manifests=1")
    filters = request.query.filters()
    if request.version < REFERENCE and (pattern := request.query.get("filter")):
        filters.setdefault("reference", []).append(pattern)
    rows = images_view.listing(
        engine,
        filters,
        every=request.query.flag("all"),
        shared=request.query.flag("shared-size"),
        targets=request.version >= TARGETS or request.query.flag("manifests"),
        manifests=request.query.flag("manifests"),
        identity=identity,
        version=request.version,
    )
    if request.version < (1, 43):
        for row in rows:
            if not row["RepoTags"] and not row["RepoDigests"]:
                row["RepoTags"], row["RepoDigests"] = ["<none>:<none>"], ["<none>@<none>"]
    return json_response(rows)


@route("POST", "/images/create")
def create_image(engine: Engine, request: Request) -> Response:
    """Pull (fromImage) or import (fromSrc)."""
    query = request.query
    source, from_source = query.get("fromImage"), query.get("fromSrc")
    if from_source:
        return _import(engine, request, from_source)
    if not source:
        raise BadRequest("invalid reference format: repository name must have at least one component")
    from teu.engine.images import pull  # 15 ms

    wanted = parse_reference(source.removesuffix(":"))  # so have older clients asked for all tags
    tag = query.get("tag")
    if tag:
        if ":" in tag:
            wanted = parse_reference(f"{wanted.name}@{tag}")
        else:
            wanted = parse_reference(f"{wanted.name}:{tag}")
    choice = platforms.choice(query.every("platform"))
    every = not wanted.tag and not wanted.digest
    auth = request.headers.get("x-registry-auth", "")
    return progress(pull.pull(engine.images, wanted, choice, auth, every, request.departure))


def _platform(text: str) -> image_spec.Platform | None:
    return platforms.parse(text) if text else None


def _import(engine: Engine, request: Request, source: str) -> Response:
    from teu.engine.images import load  # 7 ms

    address = ""
    if source != "-":
        from teu.engine.images import download  # 10 ms, for who does not send the archive itself

        address = download.checked(source)
    repository, tag = request.query.get("repo"), request.query.get("tag")
    name = ""
    if repository:
        parsed = parse_reference(repository + (f":{tag}" if tag else ""))
        if parsed.digest:
            raise BadRequest("cannot import digest reference")
        name = str(parsed.with_default_tag())
    platform = _platform(request.query.get("platform"))
    if platform is not None and platform.os != "linux":
        raise BadRequest(f"operating system is not supported: {platform.os}")
    message = request.query.get("message")
    changes, named = request.query.every("changes"), str(platform or "")
    if not address:
        return progress(load.import_(engine.images, request.body, name, message, changes, named, request.departure))
    stream_, answer = download.opened(address)
    message = message or f"Imported from {source}"
    messages = load.import_(engine.images, stream_, name, message, changes, named, request.departure)
    return progress(download.told(address, answer, messages))


@route("POST", "/commit")
def commit_container(engine: Engine, request: Request) -> Response:
    """A container's changes become an image; it is paused meanwhile unless pause=0."""
    from teu.engine.images import commit  # 8 ms

    query = request.query
    given = request.decode(fields.CONFIG, optional=True)
    container = engine.containers.get(query.get("container"))
    repository, tag = query.get("repo"), query.get("tag")
    name = ""
    if repository:
        parsed = parse_reference(repository + (f":{tag}" if tag else ""))
        if parsed.digest:
            raise BadRequest("cannot commit to a digest reference")
        name = str(parsed.with_default_tag())
    config = commit.image_config(container, given, query.every("changes"))
    pause = query.flag("pause", True) and container.running and not container.state.paused
    if pause:
        try:
            run.pause(engine, container)
        except EngineError:
            pause = False  # it has ended meanwhile: its files are at rest anyway
    try:
        image_id = commit.commit(
            engine.images, container, config, container.snapshot_key, name, query.get("author"), query.get("comment")
        )
    finally:
        if pause and container.state.paused:
            run.unpause(engine, container)
    shown = parse_reference(name).familiar() if name else ""
    container.event("commit", comment=query.get("comment"), imageID=image_id, imageRef=shown)
    return json_response({"Id": image_id}, 201)


@route("POST", "/images/load")
def load_images(engine: Engine, request: Request) -> Response:
    from teu.engine.images import load  # 7 ms

    quiet, choice = request.query.flag("quiet"), platforms.choice(request.query.every("platform"))
    wanted = () if choice.everything else choice.platforms
    return progress(load.load(engine.images, request.body, quiet, request.departure, wanted))


@route("GET", "/images/get")
def save_images(engine: Engine, request: Request) -> Response:
    from teu.engine.images import save  # 3 ms

    names, choice = request.query.every("names"), platforms.choice(request.query.every("platform"))
    return stream(save.save(engine.images, names, request.departure, choice), "application/x-tar")


@route("GET", "/images/{name:path}/get")
def save_image(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine.images import save  # 3 ms

    choice = platforms.choice(request.query.every("platform"))
    return stream(save.save(engine.images, [name], request.departure, choice), "application/x-tar")


@route("GET", "/images/search")
def search_images(engine: Engine, request: Request) -> Response:
    from teu.engine.images import search  # 13 ms, as all that asks registries

    query, auth = request.query, request.headers.get("x-registry-auth", "")
    found = search.search(engine.config, query.get("term"), query.get("limit"), query.filters(), auth)
    return json_response(found)


@route("POST", "/images/prune")
def prune_images(engine: Engine, request: Request) -> Response:
    return json_response(removal.prune(engine.images, engine.containers, request.query.filters()))


def _found(engine: Engine, text: str, platform: image_spec.Platform | None) -> tuple[Image, list[Name]]:
    """An image, and all its names: of another platform than the one that they mean, those that lead to it."""
    images = engine.images
    name, _ = images.lookup(text)
    image = images.image(name, platform, text)
    return image, images.of_id(image.id) or [one for one in images.names() if one.target == name.target]


@route("GET", "/images/{name:path}/json")
def inspect_image(engine: Engine, request: Request, name: str) -> Response:
    platform, manifests = _platform(request.query.get("platform")), request.query.flag("manifests")
    if platform and manifests:
        raise BadRequest("platform and manifests exclude each other: a manifest has one platform")
    image, names = _found(engine, name, platform)
    targets = manifests or request.version >= TARGETS
    answer = images_view.inspect(engine, image, names, targets, manifests, platform is not None, request.version)
    return json_response(answer)


@route("GET", "/images/{name:path}/history")
def image_history(engine: Engine, request: Request, name: str) -> Response:
    image, names = _found(engine, name, _platform(request.query.get("platform")))
    return json_response(images_view.history(engine, image, names))


@route("GET", "/images/{name:path}/attestations")
def image_attestations(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine.views import attestations  # 1 ms, and few images have any

    chosen = request.query.every("platform")
    if len(chosen) > 1:
        raise BadRequest("only one platform value is currently supported")
    platform = _platform(chosen[0] if chosen else "")
    kinds = [kind.strip() for kind in request.query.every("type") if kind.strip()]
    return json_response(attestations.statements(engine, name, platform, kinds, request.query.flag("statement")))


@route("POST", "/images/{name:path}/tag")
def tag_image(engine: Engine, request: Request, name: str) -> Response:
    repository, tag = request.query.get("repo"), request.query.get("tag")
    target = parse_reference(repository + (f":{tag}" if tag else ""))
    if target.digest:
        raise BadRequest("refusing to create a tag with a digest reference")
    if target.familiar().partition(":")[0] == "sha256":
        raise BadRequest("refusing to create an ambiguous tag using digest algorithm as name")
    found, _ = engine.images.lookup(name)
    details = engine.images.of(found)
    target = target.with_default_tag()
    engine.images.add(found.target, [str(target)], details)
    engine.events.publish("image", "tag", details.id, {"name": target.familiar()})
    return empty(201)


@route("POST", "/images/{name:path}/push")
def push_image(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine.images import push  # 12 ms

    wanted = parse_reference(name)
    tag = request.query.get("tag")
    if tag:
        wanted = parse_reference(f"{wanted.name}:{tag}")
    if wanted.digest:
        raise BadRequest("cannot push a digest reference")
    auth, platform = request.headers.get("x-registry-auth", ""), _platform(request.query.get("platform"))
    return progress(push.push(engine.images, wanted, auth, request.departure, platform))


@route("DELETE", "/images/{name:path}")
def remove_image(engine: Engine, request: Request, name: str) -> Response:
    query = request.query
    if chosen := [platforms.parse(text) for text in query.every("platforms") if text]:
        return json_response(
            removal.remove_platforms(engine.images, engine.containers, name, chosen, query.flag("force"))
        )
    return json_response(
        removal.remove(engine.images, engine.containers, name, query.flag("force"), not query.flag("noprune"))
    )


@route("GET", "/distribution/{name:path}/json")
def inspect_distribution(engine: Engine, request: Request, name: str) -> Response:
    from teu.engine.images import pull  # 15 ms

    auth = request.headers.get("x-registry-auth", "")
    return json_response(pull.distribution_info(engine.images, parse_reference(name), auth))
