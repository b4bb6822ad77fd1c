# SPDX-License-Identifier: Apache-2.0
"""`update`: other limits, or another restart policy, for a container that is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from teu.engine.backend import tasks
from teu.engine.containers import hostconfig, proc, unit_limits
from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.engine.core.fields import HostConfig, LogConfig, Resources, RestartPolicy, ThrottleDevice
from teu.engine.spec import resources

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine


RATES = ("blkio_device_read_bps", "blkio_device_write_bps", "blkio_device_read_iops", "blkio_device_write_iops")
_ATTRIBUTES = {member.name: attribute for attribute, member in Resources.members.items()}


def update(engine: Engine, container: Container, body: Mapping[str, object]) -> list[str]:
    """`body` is a fields.UPDATE. Warnings for the client. Raises BadRequest, Conflict, and EngineError where the
    runtime refuses; the container is as it was then."""
    warnings: list[str] = []
    with container.lock:
        given = _given(container, body)
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
            wanted = resources.resources(_with_those_that_go(changed, container.host_config))
            if "pids_limit" in given and not changed.pids_limit and "pids" in hostconfig.controllers():
                wanted["pids"] = {"limit": -1}
            try:
                tasks.update(engine.containerd, container.id, wanted)
            except EngineError as error:
                raise EngineError(f"Cannot update container {container.id}: {error}") from None
        container.host_config = changed
        container.save()
        if given:
            with contextlib.suppress(ProcessLookupError), proc.held(container) as held:
                warnings += unit_limits.follow(changed, given, proc.cgroup(held))
    container.event("update")
    return warnings


def _given(container: Container, body: Mapping[str, object]) -> dict[str, object]:
    """The limits that are asked for, by their attributes. Raises BadRequest."""
    weights = body.get("BlkioWeightDevice")
    paths = {one.path for one in weights} if isinstance(weights, list) else None
    weighed = container.host_config.blkio_weight_device or ()
    gone = paths is not None and any(one.path not in paths for one in weighed)
    if gone and container.running:
        raise BadRequest("BlkioWeightDevice: a weight cannot be taken away while the container runs; stop it before")
    # Numbers of 0 and empty texts are as good as absent; no limit of processes is one that can be asked for, and so is
    # a list of no devices.
    return {
        attribute: body[name]
        for name, attribute in _ATTRIBUTES.items()
        if body.get(name)
        or attribute == "pids_limit"
        and name in body
        or attribute in hostconfig.BLOCK_LIMITS
        and body.get(name) == []
    }


def _with_those_that_go(changed: HostConfig, before: HostConfig) -> HostConfig:
    """For the runtime, which leaves a device alone that it is not told of: those that have no rate any more have the
    rate 0, which is none."""
    result = changed.copy()
    for attribute in RATES:
        kept: list[ThrottleDevice] = getattr(changed, attribute) or []
        paths = {one.path for one in kept}
        gone = [one.path for one in getattr(before, attribute) or () if one.path not in paths]
        none = [ThrottleDevice(path=path, rate=0) for path in gone if os.path.exists(path or "")]
        setattr(result, attribute, [*kept, *none])
    return result


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
