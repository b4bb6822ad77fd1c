# SPDX-License-Identifier: Apache-2.0
"""`update`: other limits, or another restart policy, for a container that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teu.engine.backend import tasks
from teu.engine.containers import hostconfig
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.engine.spec import resources

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine


def update(engine: Engine, container: Container, body: dict[str, Any]) -> list[str]:
    """`body` is a fields.UPDATE. Warnings for the client. Raises BadRequest, Conflict, and EngineError where the
    runtime refuses; the container is as it was then."""
    warnings: list[str] = []
    with container.lock:
        changed = dict(container.host_config)
        # Numbers of 0 and empty texts are as good as absent; no limit of processes is one that can be asked for.
        given = {
            key: body[key] for key in fields.RESOURCES.fields if body.get(key) or key == "PidsLimit" and key in body
        }
        for key in hostconfig.BLOCK_LIMITS:
            if key in body and not body[key] and changed[key]:
                raise BadRequest(f"{key}: a limit can be changed, but not taken away; create the container anew")
        if given.get("NanoCpus"):
            changed["CpuPeriod"] = changed["CpuQuota"] = 0
        changed.update(given)
        policy = body.get("RestartPolicy") or {}
        if policy.get("Name"):
            changed["RestartPolicy"] = hostconfig.check_restart_policy(policy, container.auto_remove, "update")
        log = changed["LogConfig"]
        if (
            "Memory" in given
            and "MemorySwap" not in given
            and 0 < container.host_config["MemorySwap"] < given["Memory"]
        ):
            raise Conflict(
                "Memory limit should be smaller than already set memoryswap limit,"
                " update the memoryswap at the same time"
            )
        changed = hostconfig.clean_host_config(changed, log["Type"], log["Config"], warnings)
        hostconfig.discard(changed, hostconfig.controllers(), warnings)
        if container.running and container.pid and given:
            wanted = resources.resources(changed)
            if "PidsLimit" in given and not changed["PidsLimit"] and "pids" in hostconfig.controllers():
                wanted["pids"] = {"limit": -1}
            try:
                tasks.update(engine.containerd, container.id, wanted)
            except EngineError as error:
                raise EngineError(f"Cannot update container {container.id}: {error}") from None
        container.host_config = changed
        container.save()
    container.event("update")
    return warnings
