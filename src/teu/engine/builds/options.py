# SPDX-License-Identifier: Apache-2.0
"""POST /build's parameters as a request to the builder: attributes of the Dockerfile frontend and an exporter.

Raises BadRequest in dockerd's words for what a build cannot have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from teu.engine.core.errors import BadRequest, Unsupported
from teu.engine.core.kinds import loads, natural
from teu.oci import image_spec, reference

CLIENT_SESSION = "client-session"
UPLOAD_REQUEST = "upload-request"
FRONTEND = "dockerfile.v0"
DANGLING = "dangling@"  # how the images' store names what has no name

Json = Any
Get = Callable[[str], str]


@dataclass
class Options:
    """What a client wants built. `remote`: where the context comes from, "" is the request's body."""

    version: int = 1
    build_id: str = ""
    remote: str = ""
    session: str = ""
    quiet: bool = False
    attributes: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    exporter: str = "image"
    exporter_attributes: dict[str, str] = field(default_factory=dict)
    entitlements: list[str] = field(default_factory=list)
    inline_cache: bool = False


def _json(text: str, what: str, kind: type) -> Json:
    if not text:
        return kind()
    try:
        value = loads(text.encode())
    except ValueError as error:
        raise BadRequest(f"error reading {what}: {error}") from None
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise BadRequest(f"error reading {what}: a JSON {'object' if kind is dict else 'list'} is expected")
    return value


def _flag(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "no", "false", "none")


def parse(get: Get, every: Callable[[str], list[str]]) -> Options:
    """get, every: a parameter's first value ("" for none), all of them."""
    options = Options(quiet=_flag(get("q")), build_id=get("buildid"), remote=get("remote"), session=get("session"))
    if get("version") not in ("", "1", "2"):
        raise BadRequest(f"invalid version {get('version')}")
    options.version = int(get("version") or "1")
    if _flag(get("squash")):
        raise BadRequest("squash is only supported with experimental mode")
    if get("isolation") not in ("", "default"):
        raise BadRequest(f'Unsupported isolation: "{get("isolation")}"')
    if _json(get("securityopt"), "security options", list):
        raise BadRequest("The daemon on this platform does not support setting security options on build")
    options.tags = [_name(tag) for tag in every("t") if tag]
    options.attributes = attributes = _attributes(get, every)
    if options.version == 1:
        # Of teu-buildkitd's frontend: a Dockerfile that .dockerignore leaves out is no file of the context.
        attributes["classic-context"] = ""
    arguments = _json(get("buildargs"), "build args", dict)
    options.inline_cache = str(arguments.get("BUILDKIT_INLINE_CACHE") or "") in ("1", "true")
    if options.remote not in ("", CLIENT_SESSION, UPLOAD_REQUEST):
        attributes["context"] = options.remote
    if attributes.get("force-network-mode") == "host":
        options.entitlements = ["network.host"]
    _output(options, get("outputs"))
    return options


def _name(tag: str) -> str:
    try:
        parsed = reference.parse(tag)
    except reference.ReferenceError_ as error:
        raise BadRequest(str(error)) from None
    if parsed.digest:
        raise BadRequest("build tag cannot contain a digest")
    return str(parsed)


def _attributes(get: Get, every: Callable[[str], list[str]]) -> dict[str, str]:
    found = {"image-resolve-mode": "pull" if _flag(get("pull")) else "default"}
    for name, attribute in (("dockerfile", "filename"), ("target", "target"), ("cgroupparent", "cgroup-parent")):
        if get(name):
            found[attribute] = get(name)
    if get("platform"):
        try:
            image_spec.parse_platform(get("platform"))
        except ValueError as error:
            raise BadRequest(str(error)) from None
        found["platform"] = get("platform")
    for name, value in _json(get("buildargs"), "build args", dict).items():
        if value is not None:
            found[f"build-arg:{name}"] = str(value)
    for name, value in _json(get("labels"), "labels", dict).items():
        found[f"label:{name}"] = str(value)
    if sources := _json(get("cachefrom"), "cache-from", list):
        found["cache-from"] = ",".join(map(str, sources))
    if _flag(get("nocache")):
        found["no-cache"] = ""
    found.update(_network(get("networkmode")))
    if hosts := [host for host in every("extrahosts") if host]:
        found["add-hosts"] = ",".join(_host(host) for host in hosts)
    found.update(_resources(get))
    return found


def _network(mode: str) -> dict[str, str]:
    if mode in ("", "default", "bridge"):
        return {}
    if mode not in ("host", "none"):
        raise BadRequest(f'network mode "{mode}" not supported by buildkit')
    return {"force-network-mode": mode}


def _host(text: str) -> str:
    """name:address, as the frontend has it: name=address."""
    name, colon, address = text.partition(":")
    if not name or not colon or not address:
        raise BadRequest(f"invalid host {text}")
    return f"{name}={address}"


# Parameters, and what the frontend calls them.
_NUMBERS = {
    **{name: name for name in ("memory", "memswap", "cpushares", "cpuperiod", "cpuquota")},
    "shmsize": "shm-size",
}


def _resources(get: Get) -> dict[str, str]:
    found = {}
    for name, attribute in _NUMBERS.items():
        text = get(name)
        if text in ("", "0"):
            continue
        unlimited = name == "memswap" and text == "-1"
        if not unlimited and natural(text, 19) is None:
            raise BadRequest(f"{name} expects a number, got {text}")
        found[attribute] = text
    for name in ("cpusetcpus", "cpusetmems"):
        if get(name):
            found[name] = get(name)
    limits = []
    for limit in _json(get("ulimits"), "ulimits", list):
        if not isinstance(limit, Mapping) or not isinstance(limit.get("Name"), str):
            raise BadRequest("error reading ulimits: a list of {Name, Soft, Hard} is expected")
        limits.append(f"{limit['Name']}={int(limit.get('Soft') or 0)}:{int(limit.get('Hard') or 0)}")
    if limits:
        found["ulimit"] = ",".join(limits)
    return found


def _output(options: Options, text: str) -> None:
    """The one exporter. What a client of BuildKit asks for (`outputs`) goes first."""
    outputs = _json(text, "outputs", list)
    if len(outputs) > 1:
        raise BadRequest("multiple outputs not supported")
    options.exporter_attributes = {"dangling-name-prefix": DANGLING, "unpack": "true"}
    if outputs:
        if options.version != 2 or not isinstance(outputs[0], Mapping):
            raise BadRequest("outputs are for builds of version 2: a list of {Type, Attrs} is expected")
        kind = str(outputs[0].get("Type") or "")
        given = outputs[0].get("Attrs") or {}
        if kind not in ("", "image", "moby"):
            options.exporter_attributes = {}
        if kind in ("local", "tar", "oci", "docker") and not options.session:
            raise Unsupported(f"the output {kind} goes to the client, which has no session")
        options.exporter = "" if kind == "cacheonly" else {"": "image", "moby": "image"}.get(kind, kind)
        options.exporter_attributes.update({str(name): str(value) for name, value in given.items()})
    if options.exporter == "image" and options.tags:
        options.exporter_attributes["name"] = ",".join(options.tags)
        options.exporter_attributes.pop("dangling-name-prefix", None)


_RUN_FAILED = re.compile(r'process "(.*)" did not complete successfully: exit code: (\d+)', re.DOTALL)


def failure(message: str) -> dict[str, Any]:
    """A build's error as a classic client reads it."""
    code = 0
    if found := _RUN_FAILED.search(message):
        code = int(found[2])
        message = f"The command '{found[1]}' returned a non-zero code: {code}"
    detail: dict[str, Any] = {"message": message}
    if code:
        detail = {"code": code, **detail}
    return {"errorDetail": detail, "error": message}
