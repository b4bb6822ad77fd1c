# SPDX-License-Identifier: Apache-2.0
"""teu-runc update: change the limits of a container that runs.

What is not mentioned stays. The merged limits are written to the container's state, so that the
next update, `events` and a later restore know them. If the kernel refuses the new limits, the old
ones are put back as far as it lets us.
"""

from __future__ import annotations

import os

from teu.oci import jsontext, runtime_spec
from teu.oci.units import parse_bytes
from teu.runc import cgroups, log, state
from teu.runc.errors import InvalidSpec, RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

    Resources = dict[str, Any]

SUMMARY = "update container resource constraints"
USAGE = "<container-id>"
FLAGS: dict[str, tuple[str, str, object, str]] = {
    "resources": (
        "r",
        "string",
        "",
        "file with linux.resources of the runtime-spec in JSON, or '-' "
        "for standard input; all other options are ignored then",
    ),
    "blkio-weight": ("", "int", 0, "weight of block IO, from 10 to 1000"),
    "cpu-period": ("", "string", "", "CPU CFS period to be used for hardcapping (in usecs). 0 to use system default"),
    "cpu-quota": ("", "string", "", "CPU CFS hardcap limit (in usecs). Allowed cpu time in a given period"),
    "cpu-burst": ("", "string", "", "CPU CFS burst limit (in usecs) on top of the quota"),
    "cpu-share": ("", "string", "", "CPU shares (relative weight vs. other containers)"),
    "cpu-rt-period": ("", "string", "", "realtime period (in usecs); cgroup v2 has none"),
    "cpu-rt-runtime": ("", "string", "", "realtime limit (in usecs); cgroup v2 has none"),
    "cpuset-cpus": ("", "string", "", "CPU(s) to use"),
    "cpuset-mems": ("", "string", "", "Memory node(s) to use"),
    "kernel-memory": ("", "string", "", "(obsolete; ignored)"),
    "kernel-memory-tcp": ("", "string", "", "(obsolete; ignored)"),
    "memory": ("", "string", "", "Memory limit (in bytes)"),
    "cpu-idle": ("", "string", "", "set cgroup SCHED_IDLE or not, 0: default behavior, 1: SCHED_IDLE"),
    "memory-reservation": ("", "string", "", "Memory reservation or soft_limit (in bytes)"),
    "memory-swap": ("", "string", "", "Total memory usage (memory + swap); set '-1' to enable unlimited swap"),
    "pids-limit": ("", "int", 0, "Maximum number of pids allowed in the container"),
    "l3-cache-schema": ("", "string", "", "The string of Intel RDT/CAT L3 cache schema"),
    "mem-bw-schema": ("", "string", "", "The string of Intel RDT/MBA memory bandwidth schema"),
}
ARGUMENTS = (1, 1)

# Flag, and where its number goes.
NUMBERS = (
    ("cpu-burst", "burst"),
    ("cpu-period", "period"),
    ("cpu-quota", "quota"),
    ("cpu-rt-period", "realtimePeriod"),
    ("cpu-rt-runtime", "realtimeRuntime"),
    ("cpu-share", "shares"),
    ("cpu-idle", "idle"),
)
SIGNED = ("quota", "realtimeRuntime", "idle")
SIZES = (("memory", "limit"), ("memory-swap", "swap"), ("memory-reservation", "reservation"))


def size(text: str, flag: str) -> int:
    """Bytes of `512m`, `1.5GB`, `1GiB`; -1 is no limit."""
    if text == "-1":
        return -1
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise RuncError(f"invalid value for {flag}: {error}") from None


def from_flags(arguments: Arguments) -> Resources:
    """The limits that the flags name, as `linux.resources`."""
    cpu: Resources = {}
    memory: Resources = {}
    for flag, field in NUMBERS:
        text = arguments[flag]
        if text:
            try:
                cpu[field] = int(text)
            except ValueError:
                cpu[field] = None
            if cpu[field] is None or (cpu[field] < 0 and field not in SIGNED):
                raise RuncError(f"invalid value for {flag}: {text!r} is not a number")
    for flag, field in (("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")):
        if arguments[flag]:
            cpu[field] = arguments[flag]
    for flag, field in SIZES:
        if arguments[flag]:
            memory[field] = size(arguments[flag], flag)
    if arguments["kernel-memory"] or arguments["kernel-memory-tcp"]:
        log.warning("Kernel memory settings are ignored and will be removed")
    resources: Resources = {"cpu": cpu, "memory": memory}
    if arguments["blkio-weight"]:
        resources["blockIO"] = {"weight": arguments["blkio-weight"]}
    if "pids-limit" in arguments.given:
        resources["pids"] = {"limit": arguments["pids-limit"]}
    return resources


def from_file(name: str) -> Resources:
    if name == "-":
        with open(0, "rb", closefd=False) as file:
            data = file.read()
    else:
        with open(name, "rb") as file:
            data = file.read()
    found = jsontext.loads(data)
    if not isinstance(found, dict):
        raise InvalidSpec(f"{name}: must be an object as linux.resources of the runtime-spec")
    return found


DEVICE_LISTS = (
    "weightDevice",
    "throttleReadBpsDevice",
    "throttleWriteBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteIOPSDevice",
)


def merge(old: Resources, change: Resources) -> Resources:
    """The limits afterwards: what `change` mentions, and else what was."""
    merged = {**old, **{key: value for key, value in change.items() if value is not None}}
    for name in ("memory", "cpu", "pids"):
        before, now = old.get(name) or {}, change.get(name) or {}
        merged[name] = {**before, **{key: value for key, value in now.items() if value is not None}}
    cpu_now = change.get("cpu") or {}
    for field in ("cpus", "mems", "idle", "burst"):
        # These are not repeated from earlier: another idle value, say, must not meet a new weight.
        if cpu_now.get(field) is None:
            merged["cpu"].pop(field, None)
    block_io = dict(old.get("blockIO") or {})
    for key, value in (change.get("blockIO") or {}).items():
        if key in DEVICE_LISTS:
            entries = {(entry["major"], entry["minor"]): dict(entry) for entry in block_io.get(key) or []}
            for entry in value or []:
                entries.setdefault((entry["major"], entry["minor"]), {}).update(entry)
            block_io[key] = list(entries.values())
        elif value is not None:
            block_io[key] = value
    merged["blockIO"] = block_io
    memory_now = change.get("memory") or {}
    if memory_now.get("limit") == -1 and memory_now.get("swap") is None:
        # Unlimited memory takes the limit of memory and swap with it.
        merged["memory"]["swap"] = 0
    if cpu_now.get("idle") is not None and cpu_now.get("shares") is None:
        merged["cpu"].pop("shares", None)
    if change.get("pids") is None:
        merged.pop("pids")
    if change.get("unified") is None:
        merged.pop("unified", None)
    return {key: value for key, value in merged.items() if value}


def main(arguments: Arguments, settings: Settings) -> int:
    container = state.load(settings.root, arguments.positional[0])
    change = from_file(arguments["resources"]) if arguments["resources"] else from_flags(arguments)
    schemata = {"l3CacheSchema": arguments["l3-cache-schema"], "memBwSchema": arguments["mem-bw-schema"]}
    if any(schemata.values()):
        from teu.runc import intel_rdt  # 0.05 ms

        intel_rdt.require()  # before anything is changed
    with state.Lock(container.folder):
        container = state.load(settings.root, container.id)
        if container.status() == state.STOPPED:
            raise RuncError("container not running")
        old = current(container)
        merged = merge(old, change)
        # Device rules are the creator's: an update does not take back what was granted since.
        merged.pop("devices", None)
        try:
            runtime_spec.check_resources({k: v for k, v in merged.items() if k != "devices"})
        except runtime_spec.SpecError as error:
            raise InvalidSpec(str(error)) from None
        cgroup = cgroups.load(container.record["cgroup"])
        rootless = bool(container.record.get("rootless"))
        try:
            cgroup.apply(merged, devices=False, rootless=rootless)
        except (OSError, ValueError):
            try:
                cgroup.apply({k: v for k, v in old.items() if k != "devices"}, devices=False, rootless=rootless)
            except (OSError, ValueError) as error:
                log.warning(f"the old limits could not be put back: {error}")
            raise
        if "devices" in old:
            merged["devices"] = old["devices"]
        # The check is for one update, not for the next.
        merged.get("memory", {}).pop("checkBeforeUpdate", None)
        for name in ("pids", "unified"):
            if name not in merged and old.get(name):
                merged[name] = old[name]
        if any(schemata.values()):
            config = (container.spec().get("linux") or {}).get("intelRdt") or {}
            container.record["intel_rdt"] = intel_rdt.update(
                config, schemata, container.id, container.pid, container.record.get("intel_rdt") or {}
            )
        container.record["resources"] = merged
        container.save()
    return 0


def current(container: state.Container) -> Resources:
    """The limits now: of the last update, or of config.json as it was at create."""
    if "resources" in container.record:
        return dict(container.record["resources"])
    if os.path.exists(f"{container.folder}/config.json"):
        return dict((container.spec().get("linux") or {}).get("resources") or {})
    return {}
