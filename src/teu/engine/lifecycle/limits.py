# SPDX-License-Identifier: Apache-2.0
"""`update`: other limits, or another restart policy, for a container that is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from teu.engine.backend import tasks
from teu.engine.containers import hostconfig
from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.engine.core.fields import HostConfig, LogConfig, Resources, RestartPolicy
from teu.engine.spec import resources

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine


_ATTRIBUTES = {member.name: attribute for attribute, member in Resources.members.items()}


def update(engine: Engine, container: Container, body: Mapping[str, object]) -> list[str]:
    """`body` is a fields.UPDATE. Warnings for the client. Raises BadRequest, Conflict, and EngineError where the
    runtime refuses; the container is as it was then."""
    warnings: list[str] = []
    with container.lock:
        given = _given(container.host_config, body)
        policy = body.get("RestartPolicy")
        changed = _changed(
            container.host_config,
            given,
            policy if isinstance(policy, RestartPolicy) else RestartPolicy(),
            container.auto_remove,
        )
        # Its log was checked when it was made: a plugin may be away now, or a receiver's socket.
        log, changed.log_config = changed.log_config, LogConfig(type="none")
        changed = hostconfig.clean_host_config(changed, "none", {}, warnings)
        changed.log_config = log
        hostconfig.discard(changed, hostconfig.controllers(), warnings)
        if container.running and container.pid and given:
            wanted = resources.resources(changed)
            if "pids_limit" in given and not changed.pids_limit and "pids" in hostconfig.controllers():
                wanted["pids"] = {"limit": -1}
            try:
                tasks.update(engine.containerd, container.id, wanted)
            except EngineError as error:
                raise EngineError(f"Cannot update container {container.id}: {error}") from None
        container.host_config = changed
        container.save()
    container.event("update")
    return warnings


def _given(host: HostConfig, body: Mapping[str, object]) -> dict[str, object]:
    """The limits that are asked for, by their attributes. Raises BadRequest."""
    for attribute, name in hostconfig.BLOCK_LIMITS.items():
        if name in body and not body[name] and getattr(host, attribute):
            raise BadRequest(f"{name}: a limit can be changed, but not taken away; create the container anew")
    # Numbers of 0 and empty texts are as good as absent; no limit of processes is one that can be asked for.
    return {
        attribute: body[name]
        for name, attribute in _ATTRIBUTES.items()
        if body.get(name) or attribute == "pids_limit" and name in body
    }


def _changed(host: HostConfig, given: Mapping[str, object], policy: RestartPolicy, auto_remove: bool) -> HostConfig:
    """`host` with what is given; not checked as a whole. Raises BadRequest, Conflict."""
    changed = host.copy()
    if given.get("nano_cpus"):
        changed.cpu_period = changed.cpu_quota = 0
    changed.at_once(**given)
    if policy.name:
        changed.restart_policy = hostconfig.check_restart_policy(policy, auto_remove, "update")
    if "memory" in given and "memory_swap" not in given and 0 < host.memory_swap < changed.memory:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    return changed
