# SPDX-License-Identifier: Apache-2.0
"""`POST /containers/{name}/change`, which docker does not have: what else of a container is changed without making it
anew. Published ports and health checks at once, where it runs; the environment from its next start on.

What is given replaces the whole of what was: PortBindings, Healthcheck, Env. Called by the route.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from teu.engine.containers import health_rules, hostconfig
from teu.engine.core.errors import BadRequest, Conflict
from teu.engine.core.fields import Config, HealthCheck, HostConfig
from teu.engine.lifecycle import health, run
from teu.engine.networks import ports
from teu.engine.networks.model import network_mode

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine


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
        if "PortBindings" in body:
            _ports(container, config, host, body["PortBindings"])
            engine.endpoints.publish_anew(container, config, host)
        container.config, container.host_config = config, host
        container.save()
        if "Healthcheck" in body and container.running:
            health.stop(container)
            container.state.health = None
            run.look_after(engine, container)
            container.save(durable=False)
    container.event("update")
    return warnings


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
    if host.port_bindings and (mode in ("host", "none") or mode.startswith("container:")):
        raise BadRequest(
            f"PortBindings: container {container.name} has no network of its own to publish ports of ({mode})"
        )
    config.exposed_ports = {**(config.exposed_ports or {}), **dict.fromkeys(host.port_bindings, {})}
