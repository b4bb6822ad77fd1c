# SPDX-License-Identifier: Apache-2.0
"""`POST /containers/{name}/change`, which docker does not have: what else of a container is changed without making it
anew. Published ports, mounts and health checks at once, where it runs; the environment from its next start on.

What is given replaces the whole of what was: PortBindings, Mounts, Binds, Healthcheck, Env. Called by the route.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec

from teu.engine.containers import health_rules, hostconfig
from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.engine.core.fields import Config, HealthCheck, HostConfig
from teu.engine.files import live, rootfs
from teu.engine.lifecycle import health, run
from teu.engine.networks import ports
from teu.engine.networks.model import network_mode
from teu.engine.spec import mounts

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.state import MountPoint
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

Given = ParamSpec("Given")


def change(engine: Engine, container: Container, body: Mapping[str, object]) -> list[str]:
    """`body` is a fields.CHANGE. Warnings for the client. Raises BadRequest, Conflict, and EngineError where a port is
    taken; the container is as it was then."""
    warnings: list[str] = []
    with container.lock:
        container.must_be_alive()
        if container.removing or container.removed:
            raise Conflict("container is marked for removal and cannot be changed")
        config, host = container.config.copy(), container.host_config.copy()
        if "Env" in body:
            _environment(config, body["Env"])
            if container.running:
                warnings.append(f"container {container.name} runs: its environment is another from its next start on")
        if "Healthcheck" in body:
            _health(config, host, body["Healthcheck"])
        mounted = None
        with contextlib.ExitStack() as undo, engine.volumes.promised(container.id):
            if "Mounts" in body or "Binds" in body:
                host.mounts = _list(body["Mounts"]) if "Mounts" in body else host.mounts
                host.binds = _list(body["Binds"]) if "Binds" in body else host.binds
                mounted = _mounts(engine, container, host, undo)
            if "PortBindings" in body:
                _ports(container, config, host, body["PortBindings"])
                engine.endpoints.publish_anew(container, config, host)
            undo.pop_all()
            container.config, container.host_config = config, host
            if mounted is not None:
                container.mounts, gone = mounted
        container.save()
        if mounted is not None:
            engine.volumes.release_mounts(container.id, gone, False)
        if "Healthcheck" in body and container.running:
            health.stop(container)
            container.state.health = None
            run.look_after(engine, container)
            container.save(durable=False)
    container.event("update")
    return warnings


def _list(given: object) -> list[Any]:
    return given if isinstance(given, list) else []


def _mounts(
    engine: Engine, container: Container, host: HostConfig, undo: contextlib.ExitStack
) -> tuple[list[MountPoint], list[MountPoint]]:
    """Mount and unmount what is new and what is no more, at once where it runs: the container's mount points, and those
    that it has no more. Raises BadRequest, Conflict, EngineError; by `undo` the container is as it was."""
    before = [*(container.host_config.binds or ()), *(container.host_config.mounts or ())]
    after = [*(host.binds or ()), *(host.mounts or ())]
    fresh = [asked for asked in after if asked not in before]
    gone = {mounts.place(asked) for asked in before if asked not in after}
    left = [point for point in container.mounts if point.destination not in gone]
    removed = [point for point in container.mounts if point.destination in gone]
    for point in removed:
        if point.type == "image":
            raise BadRequest(f"{point.destination}: an image is mounted for as long as the container is there")
    taken = {point.destination for point in left} | {posixpath.normpath(path) for path in host.tmpfs or ()}
    for asked in fresh:
        place = mounts.place(asked)
        if place in taken:
            raise BadRequest(f"Duplicate mount point: {place}")
        if container.running and place in gone:
            raise BadRequest(f"{place} is mounted in a container that runs: unmount it first, and mount then")
        taken.add(place)
    for place in gone if container.running else ():
        below = sorted(other for other in taken if other.startswith(f"{place}/"))
        if below:
            raise BadRequest(f"{below[0]} is mounted below {place}, and would go with it: unmount that first")
    points: list[MountPoint] = []
    undo.callback(lambda: engine.volumes.release_mounts(container.id, _unused(points, left), True))
    for asked in fresh:
        points.append(mounts.one(engine, container, asked))
        if points[-1].type == "image":
            raise BadRequest(f"an image ({points[-1].destination}) is mounted when a container is made")
        if points[-1].type == "bind":
            rootfs.check_source(points[-1].source, points[-1].options.create, "bind")
        if container.running:
            _mount_now(engine, container, points[-1], taken)
            undo.callback(_try, live.detach, engine, container, points[-1])
    for point in removed if container.running else ():
        live.detach(engine, container, point)
        undo.callback(_try, live.attach, engine, container, point)
    return left + points, _unused(removed, left + points)


def _unused(gone: list[MountPoint], there: list[MountPoint]) -> list[MountPoint]:
    """Those whose volume is at no other place of the container."""
    names = {point.name for point in there if point.type == "volume"}
    return [point for point in gone if point.type != "volume" or point.name not in names]


def _try(function: Callable[Given, object], *arguments: Given.args, **named: Given.kwargs) -> None:
    """On the way back: what cannot be mended is told, and the first error is what the client gets."""
    try:
        function(*arguments, **named)
    except EngineError as error:
        log.warning("a change that failed could not be undone: %s", error)


def _mount_now(engine: Engine, container: Container, point: MountPoint, taken: set[str]) -> None:
    if point.type == "tmpfs":
        raise BadRequest(f"a tmpfs ({point.destination}) cannot be given to a container that runs: stop it first")
    if point.propagation not in ("", "private", "rprivate"):
        raise BadRequest(f"{point.source}: a container that runs gets mounts of the propagation rprivate alone")
    hidden = sorted(other for other in taken if other.startswith(f"{point.destination}/"))
    if hidden:
        raise BadRequest(f"{point.destination} would hide {hidden[0]}, which is mounted: stop the container first")
    if point.type == "volume":
        engine.volumes.mount(point.name or "", container.id, point.destination, point.rw, point.propagation)
    live.attach(engine, container, point)


def _environment(config: Config, given: object) -> None:
    entries = given if isinstance(given, list) else []
    for entry in entries:
        hostconfig.check_variable(entry)
        if "=" not in entry:
            raise BadRequest(f"Env: {entry!r} has no value; Env is the whole environment, NAME=VALUE each")
    config.env = entries


def _health(config: Config, host: HostConfig, given: object) -> None:
    """None: there is no check any more."""
    check = given if isinstance(given, HealthCheck) else None
    if check is not None and not check.test:
        raise BadRequest("Healthcheck: Test is missing; it has the command, or NONE")
    hostconfig.check_health(check)
    health_rules.check(host.annotations, check)
    config.healthcheck = check


def _ports(container: Container, config: Config, host: HostConfig, given: object) -> None:
    host.port_bindings = (
        {ports.canonical(key): entries for key, entries in given.items()} if isinstance(given, dict) else {}
    )
    ports.bindings(host, ())
    mode = network_mode(container)
    if host.published and (mode in ("host", "none") or mode.startswith("container:")):
        raise BadRequest(
            f"PortBindings: container {container.name} has no network of its own to publish ports of ({mode})"
        )
    config.exposed_ports = {**config.exposed, **dict.fromkeys(host.published, {})}
