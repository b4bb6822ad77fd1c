# SPDX-License-Identifier: Apache-2.0
"""What clients see of containers: the list (`ps`) with its filters, and inspect."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from teu.engine.backend import containerd
from teu.engine.containers import defaults, proc, unit_limits
from teu.engine.containers.model import Container
from teu.engine.containers.state import MANIFEST_DESCRIPTOR, MOUNT_POINT, STATE
from teu.engine.core import versions
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.core.fields import CONFIG, HOST_CONFIG
from teu.engine.core.filters import labels_match
from teu.engine.core.kinds import natural
from teu.engine.core.times import NEVER, nanoseconds, parse
from teu.engine.files import snapshots
from teu.engine.images.store import parse_reference
from teu.engine.logs.jsonfile import log_path
from teu.engine.spec import build
from teu.oci.humantime import human_duration
from teu.systemd import host

if TYPE_CHECKING:
    from teu.engine.engine import Engine
    from teu.engine.images.store import Name

log = logging.getLogger("teu.engine")

NAMES_SECONDS = 5.0
UNIT_LABEL = "io.teu.unit"  # teu-unit gives it: the unit of a declared container
UNIT_WORDS = ("Running", "Healthy", "Unhealthy")  # what teu-unit says itself, and the state tells already
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
        if state.paused:
            return f"Up {since(state.started_at)} (Paused)"
        if state.restarting:
            return f"Restarting ({state.exit_code}) {since(state.finished_at)} ago"
        health = _health(container)
        words = {"none": "", "starting": " (health: starting)"}.get(health, f" ({health})")
        return f"Up {since(state.started_at)}{words}"
    if container.removing:
        return "Removal In Progress"
    if state.dead:
        return "Dead"
    if not container.started_once:
        return "Created"
    if state.finished_at == NEVER:
        return ""
    return f"Exited ({state.exit_code}) {since(state.finished_at)} ago"


def _health(container: Container) -> str:
    return container.state.health.status if container.state.health else "none"


def mount_points(container: Container) -> list[dict[str, object]]:
    shown = [MOUNT_POINT.write(point) for point in container.mounts]
    for point in shown:
        del point["Options"]  # ours alone
    return shown


def ports(container: Container) -> list[dict[str, object]]:
    result: list[dict[str, object]] = []
    for name, bindings in container.network_settings.ports.items():
        number, _, protocol = name.partition("/")
        if not number.isdigit():
            continue
        for binding in bindings or ():
            shown: dict[str, object] = {"IP": binding.address, "PrivatePort": int(number)}
            if binding.port:  # else it is open at the container's own address, and docker leaves it out
                shown["PublicPort"] = int(binding.port)
            result.append({**shown, "Type": protocol or "tcp"})
        if not bindings:
            result.append({"PrivatePort": int(number), "Type": protocol or "tcp"})
    return result


class _ImageNames:
    """As what `ps` shows the images of containers: as they were named, unless that is another image by now, or none.

    A containerd that does not answer holds no `ps` up for long: then they are shown as they were named."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, str], bool] = {}
        self._names: dict[str, Name] | None = None
        self._down = False

    def shown(self, container: Container) -> str:
        name, image_id = container.config.image, container.image_id
        if name != image_id and (name, image_id) not in self._known:
            try:
                self._known[name, image_id] = self._is(name, image_id)
            except containerd.Unavailable:
                self._down = True
                self._known[name, image_id] = True
            except EngineError:
                self._known[name, image_id] = False
        return name if self._known.get((name, image_id), True) else image_id

    def _is(self, text: str, image_id: str) -> bool:
        images = self._engine.images
        if self._down:
            raise containerd.Unavailable("containerd did not answer")
        if self._names is None:
            self._names = {one.name: one for one in images.names(NAMES_SECONDS)}
        try:
            found = self._names.get(str(parse_reference(text).with_default_tag()))
        except BadRequest:
            found = None  # an id
        found = found or images.lookup(text)[0]
        return images.of(found).id == image_id or image_id in images.ids([found])


def summary(container: Container, image: str, names: Iterable[str] = ()) -> dict[str, object]:
    """Its row in a list. `names`: by which others call it."""
    command = " ".join([container.path, *(_quoted(word) for word in container.args)])
    health = container.state.health
    return {
        "Id": container.id,
        "Names": [f"/{container.name}", *names],
        "Image": image,
        "ImageID": container.image_id,
        "Command": command,
        "Created": nanoseconds(container.created) // 1_000_000_000,
        "Ports": ports(container),
        "Labels": container.labels,
        "State": container.status(),
        "Status": status_text(container),
        "HostConfig": {"NetworkMode": container.host_config.network_mode, **_annotations(container)},
        "NetworkSettings": {"Networks": container.network_settings.listed_networks()},
        "Mounts": mount_points(container),
        "Health": {"Status": _health(container), "FailingStreak": health.failing_streak if health else 0},
        **_manifest(container),
    }


def _annotations(container: Container) -> dict[str, object]:
    annotations = container.host_config.annotations
    return {"Annotations": annotations} if annotations else {}


def _manifest(container: Container) -> dict[str, object]:
    """The manifest of its image, as far as it is known."""
    known = container.image_manifest
    return {"ImageManifestDescriptor": MANIFEST_DESCRIPTOR.write(known)} if known else {}


def _listed(container: Container, image: str, names: Iterable[str]) -> dict[str, object]:
    """Its row in a list, in any case: no container stands in the way of the others'."""
    try:
        return summary(container, image, names)
    except Exception as error:
        log.exception("container %s cannot be listed", container.id[:12], extra=container.fields)
        return {
            "Id": container.id,
            "Names": [f"/{container.name}", *names],
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


def unit_texts(containers: Iterable[Container]) -> dict[str, str]:
    """By container's id what the units of declared ones say of themselves, STATUS= of sd_notify(3). Docker has no such
    field, and it is there where something was said."""
    units = {one.id: unit for one in containers if one.running and (unit := one.labels.get(UNIT_LABEL))}
    texts = host.said(set(units.values())) if units else {}
    return {one: texts[unit] for one, unit in units.items() if texts.get(unit, "") not in ("", *UNIT_WORDS)}


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word


def summaries(
    engine: Engine,
    everything: bool,
    limit: int,
    with_size: bool,
    filters: dict[str, list[str]],
    version: versions.Version = versions.LAST,
) -> list[dict[str, object]]:
    """GET /containers/json, the newest first, as this version of the API has it. Raises BadRequest, NotFound."""
    _check_filters(filters)
    found = sorted(engine.containers.all(), key=lambda container: container.created, reverse=True)
    if not (everything or limit > 0 or filters.get("status")):
        found = [container for container in found if container.running]
    found = _created_about(engine, found, filters)
    tests = _tests(engine, filters)
    found = [container for container in found if all(test(container) for test in tests)]
    if limit > 0:
        found = found[:limit]
    images = _ImageNames(engine)
    linked = engine.endpoints.links.other_names()
    result = [_listed(container, images.shown(container), linked.get(container.id, ())) for container in found]
    texts = unit_texts(found)
    for entry, container in zip(result, found, strict=True):
        if container.id in texts:
            entry["StatusText"] = texts[container.id]
    if with_size:
        for entry, container in zip(result, found, strict=True):
            entry.update(_sizes(engine, container))
    versions.fit("containers", result, version)
    return result


def _check_filters(filters: dict[str, list[str]]) -> None:
    for key in filters:
        if key not in FILTERS:
            raise BadRequest(f"invalid filter '{key}'")
    for state in filters.get("status", ()):
        if state not in STATES:
            known = "created, running, paused, restarting, removing, exited, dead"
            raise BadRequest(
                f"invalid filter 'status={state}': invalid value for state ({state}): must be one of {known}"
            )
    for code in filters.get("exited", ()):
        if natural(code.removeprefix("-")) is None:
            raise BadRequest(f"invalid filter 'exited={code}'")
    for health in filters.get("health", ()):
        if health not in ("starting", "healthy", "unhealthy", "none"):
            known = "none, starting, healthy, unhealthy"
            raise BadRequest(
                f"invalid filter 'health={health}': invalid value for health ({health}): must be one of {known}"
            )


def _created_about(engine: Engine, found: list[Container], filters: dict[str, list[str]]) -> list[Container]:
    """Those that were created before, or since, all of those that the filters name. Raises NotFound."""
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
    return found


Test = Callable[[Container], bool]
# What one value of a filter says of a container; a container fits when one of the values does.
_FITS: dict[str, Callable[[Container, str], bool]] = {
    "id": lambda container, value: container.id.startswith(value),
    "name": lambda container, value: _search(value, container.name),
    "status": lambda container, value: container.status() == value,
    "exited": lambda container, value: (
        container.started_once and not container.running and container.state.exit_code == int(value)
    ),
    "network": lambda container, value: _is_on(container, value),
    "volume": lambda container, value: any(
        value in (point.name or point.source, point.destination) for point in container.mounts
    ),
    "health": lambda container, value: _health(container) == value,
    "is-task": lambda _container, value: value.lower() in ("0", "false"),
}


def _tests(engine: Engine, filters: dict[str, list[str]]) -> list[Test]:
    """What a container must pass to be listed."""
    tests: list[Test] = []
    if "label" in filters:
        tests.append(lambda container: labels_match(container.labels, filters["label"]))
    if "ancestor" in filters:
        ancestors = _ancestors(engine, filters["ancestor"])
        tests.append(lambda container: container.image_id in ancestors)
    if ports := [(value, key == "publish") for key in ("publish", "expose") for value in filters.get(key, ())]:
        tests.append(lambda container: any(_port_matches(container, value, published) for value, published in ports))
    return tests + [_test(fits, filters[key]) for key, fits in _FITS.items() if key in filters]


def _test(fits: Callable[[Container, str], bool], values: list[str]) -> Test:
    return lambda container: any(fits(container, value) for value in values)


def _ancestors(engine: Engine, names: list[str]) -> set[str]:
    found = set()
    for name in names:
        try:
            found |= engine.images.ids([engine.images.lookup(name)[0]])
        except NotFound:
            continue
    return found


def _is_on(container: Container, network: str) -> bool:
    """Whether it is on a network of this name, or of an id that begins so."""
    networks = container.network_settings.networks
    return network in networks or any(endpoint.network_id.startswith(network) for endpoint in networks.values())


def _search(pattern: str, name: str) -> bool:
    try:
        return bool(re.search(pattern, name) or re.search(pattern, f"/{name}"))
    except re.error:
        return pattern in name


def _port_matches(container: Container, text: str, published: bool) -> bool:
    """Of those that it has while it runs. A number without a protocol is one of TCP's."""
    numbers, _, protocol = text.partition("/")
    first, _, last = numbers.partition("-")
    low, high = natural(first), natural(last or first)
    if low is None or high is None:
        raise BadRequest(f"invalid port filter: {text[:100]!r}")
    for name, bindings in container.network_settings.ports.items():
        number, _, kind = name.partition("/")
        if kind != (protocol or "tcp") or published and not bindings:
            continue
        values = [int(number)] if number.isascii() and number.isdigit() else []
        if published:
            values = [int(binding.port or 0) for binding in bindings or ()]
        if any(low <= value <= high for value in values):
            return True
    return False


def moment(text: str, name: str) -> int:
    """A time stamp or a duration before now ("10m") in nanoseconds."""
    return parse(text, name)


def prune_matches(container: Container, filters: dict[str, list[str]]) -> bool:
    for text in filters.get("until", ()):
        if nanoseconds(container.created) >= moment(text, "until"):
            return False
    if not labels_match(container.labels, filters.get("label", [])):
        return False
    return not any(labels_match(container.labels, [entry]) for entry in filters.get("label!", ()))


def _sizes(engine: Engine, container: Container) -> dict[str, int]:
    own = snapshots.size(engine, container)
    try:
        image = engine.images.of_container(container.image_id, container.chain_id).size
    except (NotFound, BadRequest):
        image = 0
    return {"SizeRw": own, "SizeRootFs": own + image}


def state(container: Container) -> dict[str, object]:
    return {**STATE.write(container.state), "Status": container.status()}


# What docker leaves out of an answer where it is not set; other members are null then.
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
_NULLS = ("Cmd", "Entrypoint", "Env", "Volumes", "OnBuild")


def _host_config(engine: Engine, container: Container) -> dict[str, object]:
    in_force = container.host_config.copy()
    with contextlib.suppress(ProcessLookupError), proc.held(container) as held:
        unit_limits.in_force(in_force, proc.cgroup(held))
    in_force.ulimits = defaults.ulimits(in_force, engine.config) or in_force.ulimits
    whole = HOST_CONFIG.write(in_force)
    host = {key: value for key, value in whole.items() if value is not None or key not in _OMITTED}
    if not container.host_config.privileged:
        for key, paths in (("MaskedPaths", build.MASKED_PATHS), ("ReadonlyPaths", build.READONLY_PATHS)):
            host[key] = paths if host[key] is None else host[key]
    return host


def _config(container: Container) -> dict[str, object]:
    whole = CONFIG.write(container.config)
    return {key: value for key, value in whole.items() if value is not None or key in _NULLS}


def inspect(
    engine: Engine, container: Container, with_size: bool, version: versions.Version = versions.LAST
) -> dict[str, object]:
    """GET /containers/{name}/json, as this version of the API has it."""
    directory, driver = container.directory, engine.config["storage-driver"]

    def file(name: str) -> str:
        return f"{directory}/{name}" if os.path.exists(f"{directory}/{name}") else ""

    said = unit_texts([container])
    log_file = log_path(directory, container.id, "json-file") if container.log_type == "json-file" else ""
    result: dict[str, object] = {
        "Id": container.id,
        "Created": container.created,
        "Path": container.path,
        "Args": container.args,
        "State": state(container) | ({"StatusText": said[container.id]} if said else {}),
        "Image": container.image_id,
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": log_file,
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Driver": driver,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": container.apparmor_profile,
        "ExecIDs": [identity for identity, execution in container.execs.items() if execution.running] or None,
        "HostConfig": {**_host_config(engine, container), "Links": engine.endpoints.links.shown(container)},
        "GraphDriver": {"Data": None, "Name": driver},
        "Storage": {"RootFS": {"Snapshot": {"Name": driver}}},
        "Mounts": mount_points(container),
        "Config": _config(container),
        "NetworkSettings": container.network_settings.shown(_older_aliases(container) if version < (1, 45) else ()),
        **(_sizes(engine, container) if with_size else {}),
        **_manifest(container),
    }
    versions.fit("container", result, version)
    return result


def _older_aliases(container: Container) -> tuple[str, ...]:
    """What stood among the aliases on networks of users before it had DNSNames."""
    return container.id[:12], container.config.hostname
