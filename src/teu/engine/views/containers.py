# SPDX-License-Identifier: Apache-2.0
"""What clients see of containers: the list (`ps`) with its filters, and inspect."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

from teu.engine.backend import containerd
from teu.engine.containers.model import Container
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.core.filters import labels_match
from teu.engine.core.times import NEVER, nanoseconds
from teu.engine.files import snapshots
from teu.engine.images.store import parse_reference
from teu.engine.logs.jsonfile import log_path
from teu.engine.networks.model import shown
from teu.engine.networks.ports import canonical
from teu.engine.spec import build
from teu.oci.humantime import human_duration

if TYPE_CHECKING:
    from teu.engine.engine import Engine
    from teu.engine.images.store import Name

log = logging.getLogger("teu.engine")

NAMES_SECONDS = 5.0
STATES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
FILTERS = {
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
}


def status_text(container: Container) -> str:
    state = container.state

    def since(moment: str) -> str:
        return human_duration((time.time_ns() - nanoseconds(moment)) / 1e9)

    if container.running:
        if state["Paused"]:
            return f"Up {since(state['StartedAt'])} (Paused)"
        if state["Restarting"]:
            return f"Restarting ({state['ExitCode']}) {since(state['FinishedAt'])} ago"
        health = (state.get("Health") or {}).get("Status", "none")
        words = {"none": "", "starting": " (health: starting)"}.get(health, f" ({health})")
        return f"Up {since(state['StartedAt'])}{words}"
    if container.removing:
        return "Removal In Progress"
    if state["Dead"]:
        return "Dead"
    if not container.started_once:
        return "Created"
    if state["FinishedAt"] == NEVER:
        return ""
    return f"Exited ({state['ExitCode']}) {since(state['FinishedAt'])} ago"


def mount_points(container: Container) -> list[dict[str, Any]]:
    return [{key: value for key, value in point.items() if key != "Options"} for point in container.mounts]


def ports(container: Container) -> list[dict[str, Any]]:
    result = []
    for name, bindings in (container.network_settings.get("Ports") or {}).items():
        number, _, protocol = name.partition("/")
        if not number.isdigit():
            continue
        for binding in bindings or ():
            result.append(
                {
                    "IP": binding.get("HostIp", ""),
                    "PrivatePort": int(number),
                    "PublicPort": int(binding.get("HostPort") or 0),
                    "Type": protocol or "tcp",
                }
            )
        if not bindings:
            result.append({"PrivatePort": int(number), "Type": protocol or "tcp"})
    return result


class _ImageNames:
    """As what `ps` shows the images of containers: as they were named, unless that is another image by now, or none.

    A containerd that does not answer holds no `ps` up for long: then they are shown as they were named."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, str] = {}
        self._names: dict[str, Name] | None = None
        self._down = False

    def shown(self, container: Container) -> str:
        name, image_id = str(container.config["Image"]), container.image_id
        if name != image_id and name not in self._known:
            try:
                self._known[name] = self._image_of(name)
            except containerd.Unavailable:
                self._down = True
                self._known[name] = image_id
            except EngineError:
                self._known[name] = ""
        return name if self._known.get(name, image_id) == image_id else image_id

    def _image_of(self, text: str) -> str:
        images = self._engine.images
        if self._down:
            raise containerd.Unavailable("containerd did not answer")
        if self._names is None:
            self._names = {one.name: one for one in images.names(NAMES_SECONDS)}
        try:
            found = self._names.get(str(parse_reference(text).with_default_tag()))
        except BadRequest:
            found = None  # an id
        return images.of(found or images.lookup(text)[0]).id


def summary(container: Container, image: str) -> dict[str, Any]:
    command = " ".join([container.path, *(_quoted(word) for word in container.args)])
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": image,
        "ImageID": container.image_id,
        "Command": command,
        "Created": nanoseconds(container.created) // 1_000_000_000,
        "Ports": ports(container),
        "Labels": container.labels,
        "State": container.status(),
        "Status": status_text(container),
        "HostConfig": {"NetworkMode": container.host_config["NetworkMode"]},
        "NetworkSettings": {"Networks": shown(container.network_settings)["Networks"]},
        "Mounts": mount_points(container),
    }


def _listed(container: Container, image: str) -> dict[str, Any]:
    """Its row in a list, in any case: no container stands in the way of the others'."""
    try:
        return summary(container, image)
    except Exception as error:
        log.exception("container %s cannot be listed", container.id[:12], extra=container.fields)
        return {
            "Id": container.id,
            "Names": [f"/{container.name}"],
            "Image": "",
            "ImageID": "",
            "Command": "",
            "Created": 0,
            "Ports": [],
            "Labels": {},
            "State": "dead",
            "Status": f"Dead ({error})",
            "HostConfig": {"NetworkMode": "default"},
            "NetworkSettings": {"Networks": {}},
            "Mounts": [],
        }


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word


def summaries(
    engine: Engine, everything: bool, limit: int, with_size: bool, filters: dict[str, list[str]]
) -> list[dict[str, Any]]:
    for key in filters:
        if key not in FILTERS:
            raise BadRequest(f"invalid filter '{key}'")
    for state in filters.get("status", ()):
        if state not in STATES:
            raise BadRequest(f"invalid filter 'status={state}'")
    for code in filters.get("exited", ()):
        if fields.natural(code.removeprefix("-")) is None:
            raise BadRequest(f"invalid filter 'exited={code}'")
    for health in filters.get("health", ()):
        if health not in ("starting", "healthy", "unhealthy", "none"):
            raise BadRequest(f"unrecognized filter value for health: {health}")
    found = sorted(engine.containers.all(), key=lambda container: container.created, reverse=True)
    if not (everything or limit > 0 or filters.get("status") or filters.get("exited")):
        found = [container for container in found if container.running]
    for which in ("before", "since"):
        for name in filters.get(which, ()):
            other = engine.containers.find(name)
            if other is None:
                raise NotFound(f"No such container: {name}")
            found = [
                container
                for container in found
                if container is not other and (container.created < other.created) == (which == "before")
            ]
    ancestors = set()
    for name in filters.get("ancestor", ()):
        try:
            ancestors.add(engine.images.resolve(name).id)
        except NotFound:
            continue
    if filters:
        found = [container for container in found if matches(engine, container, filters, ancestors)]
    if limit > 0:
        found = found[:limit]
    images = _ImageNames(engine)
    result = [_listed(container, images.shown(container)) for container in found]
    if with_size:
        for entry, container in zip(result, found, strict=True):
            entry["SizeRw"] = snapshots.size(engine, container)
            entry["SizeRootFs"] = entry["SizeRw"] + _image_size(engine, container)
    return result


def matches(engine: Engine, container: Container, filters: dict[str, list[str]], ancestors: set[str]) -> bool:
    def one_of(key: str, test: Any) -> bool:
        return key not in filters or any(test(value) for value in filters[key])

    networks = container.network_settings.get("Networks") or {}
    network_names = set(networks) | {str(endpoint.get("NetworkID") or "") for endpoint in networks.values()}
    return (
        one_of("id", lambda value: container.id.startswith(value))
        and one_of("name", lambda value: _search(value, container.name))
        and one_of("status", lambda value: container.status() == value)
        and one_of(
            "exited",
            lambda value: (
                container.started_once and not container.running and container.state["ExitCode"] == int(value)
            ),
        )
        and labels_match(container.labels, filters.get("label", []))
        and one_of("network", lambda value: any(name.startswith(value) for name in network_names if name))
        and one_of(
            "volume",
            lambda value: any(
                value in (point.get("Name") or point["Source"], point["Destination"]) for point in container.mounts
            ),
        )
        and (
            "ancestor" not in filters
            or container.image_id in ancestors
            or container.config["Image"] in filters["ancestor"]
        )
        and one_of("health", lambda value: (container.state.get("Health") or {}).get("Status", "none") == value)
        and one_of("publish", lambda value: _port_matches(container, value, True))
        and one_of("expose", lambda value: _port_matches(container, value, False))
        and one_of("is-task", lambda value: value.lower() in ("0", "false"))
    )


def _search(pattern: str, name: str) -> bool:
    try:
        return bool(re.search(pattern, name) or re.search(pattern, f"/{name}"))
    except re.error:
        return pattern in name


def _port_matches(container: Container, text: str, published: bool) -> bool:
    numbers, _, protocol = text.partition("/")
    first, _, last = numbers.partition("-")
    low, high = fields.natural(first), fields.natural(last or first)
    if low is None or high is None:
        raise BadRequest(f"invalid port filter: {text[:100]!r}")
    known = container.network_settings.get("Ports") or {}
    if not published:
        known = {**dict.fromkeys(map(canonical, container.config.get("ExposedPorts") or ())), **known}
    for name, bindings in known.items():
        number, _, kind = name.partition("/")
        if protocol and kind != protocol or published and not bindings:
            continue
        values = [int(number)] if number.isascii() and number.isdigit() else []
        if published:
            values = [int(binding.get("HostPort") or 0) for binding in bindings or ()]
        if any(low <= value <= high for value in values):
            return True
    return False


def moment(text: str, name: str) -> int:
    """A time stamp or a duration before now ("10m") in nanoseconds."""
    from teu.engine.core.times import parse

    return parse(text, name)


def prune_matches(container: Container, filters: dict[str, list[str]]) -> bool:
    for text in filters.get("until", ()):
        if nanoseconds(container.created) >= moment(text, "until"):
            return False
    if not labels_match(container.labels, filters.get("label", [])):
        return False
    return not any(labels_match(container.labels, [entry]) for entry in filters.get("label!", ()))


def _image_size(engine: Engine, container: Container) -> int:
    try:
        return engine.images.resolve(container.image_id).size
    except (NotFound, BadRequest):
        return 0


def state(container: Container) -> dict[str, Any]:
    result = {key: value for key, value in container.state.items() if key != "Health"}
    result["Status"] = container.status()
    if container.state.get("Health"):
        result["Health"] = container.state["Health"]
    return result


_OMITTED = (
    "Annotations",
    "Init",
    "KernelMemory",
    "KernelMemoryTCP",
    "Mounts",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
)


def inspect(engine: Engine, container: Container, with_size: bool) -> dict[str, Any]:
    host = {key: value for key, value in container.host_config.items() if value is not None or key not in _OMITTED}
    for name in ("CpuCount", "CpuPercent", "IOMaximumIOps", "IOMaximumBandwidth"):
        host.setdefault(name, 0)  # of Windows, but in docker's answer everywhere
    runtime = host["Runtime"]
    if not host["Privileged"]:
        for key, paths in (("MaskedPaths", build.MASKED_PATHS), ("ReadonlyPaths", build.READONLY_PATHS)):
            host[key] = paths if host[key] is None else host[key]
    directory = container.directory
    network = shown(container.network_settings)
    for key, value in (
        ("Bridge", ""),
        ("SandboxID", ""),
        ("SandboxKey", ""),
        ("Ports", {}),
        ("HairpinMode", False),
        ("LinkLocalIPv6Address", ""),
        ("LinkLocalIPv6PrefixLen", 0),
        ("SecondaryIPAddresses", None),
        ("SecondaryIPv6Addresses", None),
        ("EndpointID", ""),
        ("Gateway", ""),
        ("GlobalIPv6Address", ""),
        ("GlobalIPv6PrefixLen", 0),
        ("IPAddress", ""),
        ("IPPrefixLen", 0),
        ("IPv6Gateway", ""),
        ("MacAddress", ""),
        ("Networks", {}),
    ):
        network.setdefault(key, value)

    def file(name: str) -> str:
        return f"{directory}/{name}" if os.path.exists(f"{directory}/{name}") else ""

    result: dict[str, Any] = {
        "Id": container.id,
        "Created": container.created,
        "Path": container.path,
        "Args": container.args,
        "State": state(container),
        "Image": container.image_id,
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": log_path(container.directory, container.id, "json-file")
        if container.log_type == "json-file"
        else "",
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Driver": engine.config["storage-driver"],
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": container.apparmor_profile,
        "ExecIDs": [identity for identity, execution in container.execs.items() if execution.running] or None,
        "HostConfig": {**host, "Runtime": runtime},
        "GraphDriver": {"Data": None, "Name": engine.config["storage-driver"]},
        "Mounts": mount_points(container),
        "Config": {key: value for key, value in container.config.items() if value is not None or key in _NULLS},
        "NetworkSettings": network,
    }
    if with_size:
        result["SizeRw"] = snapshots.size(engine, container)
        result["SizeRootFs"] = result["SizeRw"] + _image_size(engine, container)
    return result


_NULLS = ("Cmd", "Entrypoint", "Env", "Volumes", "OnBuild")
