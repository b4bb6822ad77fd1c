# SPDX-License-Identifier: Apache-2.0
"""Limits that a container's unit has besides the container's own: those of `systemctl set-property`, or of [Service].

    teu.slice/teu-ID.scope/            MemoryMax=, TasksMax=, CPUQuota= of the unit hold for all that is in it
        container/                     the container's own: --memory, --pids-limit, --cpus

Of two limits the lower one holds. `in_force` tells it, for the views; `follow` has the unit's say the same after an
`update`, so that the two agree whoever spoke last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.linux import cgroup_files
from teu.linux.cgroup_files import UINT64_MAX
from teu.systemd.bus import Bus
from teu.systemd.scope import set_unit_properties

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from teu.engine.core.fields import HostConfig
    from teu.systemd.scope import Property

PERIOD = 100_000  # microseconds, where nothing is said
_UNITS = (".scope", ".service")


def levels(folder: str) -> Iterator[str]:
    """A container's cgroup, and those above it as far as its unit's; slices are shared with others."""
    top = cgroup_files.place()
    while folder != top and not folder.endswith(".slice") and folder.startswith(top + "/"):
        yield folder
        folder = folder.rpartition("/")[0]


def lowest(folder: str, name: str) -> int | None:
    """The limit that holds for a container, of memory.max or pids.max; None where nothing limits it."""
    found = [cgroup_files.number(cgroup_files.text(level, name)) for level in levels(folder)]
    return min((value for value in found if value is not None and value != UINT64_MAX), default=None)


def _cpus(level: str) -> float | None:
    """cpu.max, in processors; None for no limit."""
    quota, _, period = cgroup_files.text(level, "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def own_cpus(host: HostConfig) -> float:
    """The container's own limit, in processors; 0 for none."""
    if host.nano_cpus:
        return host.nano_cpus / 1e9
    return host.cpu_quota / (host.cpu_period or PERIOD) if host.cpu_quota > 0 else 0.0


def in_force(host: HostConfig, folder: str) -> None:
    """Have a copy of a running container's HostConfig tell lower limits of its unit in place of its own."""
    above = list(levels(folder))[1:]
    if not above:
        return
    memory = lowest(above[0], "memory.max")
    if memory is not None and not 0 < host.memory <= memory:
        host.memory = memory
    pids = lowest(above[0], "pids.max")
    if pids is not None and (host.pids_limit or 0) > pids:  # every unit has some; it is told where more was asked for
        host.pids_limit = pids
    cpus = min((found for level in above if (found := _cpus(level)) is not None), default=None)
    if cpus is not None and not 0 < own_cpus(host) <= cpus:
        if host.cpu_quota > 0:
            host.cpu_quota = int(cpus * (host.cpu_period or PERIOD))
        else:
            host.nano_cpus = round(cpus * 1e9)


def follow(host: HostConfig, given: Mapping[str, object], folder: str) -> list[str]:
    """After an update: a limit that the unit has, of what was given, becomes the new one. A scope is the container's
    alone; a service belongs to who declared it, and keeps its own, of which the warnings tell."""
    unit = next((level for level in levels(folder) if level.endswith(_UNITS)), "")
    wanted: list[tuple[str, int, int]] = []  # property, what the unit has, what it is to have
    memory = cgroup_files.number(cgroup_files.text(unit, "memory.max")) if unit and "memory" in given else None
    if memory is not None:
        wanted.append(("MemoryMax", memory, host.memory or UINT64_MAX))
    pids = cgroup_files.number(cgroup_files.text(unit, "pids.max")) if unit and "pids_limit" in given else None
    if pids is not None:
        limit = host.pids_limit or 0
        wanted.append(("TasksMax", pids, limit if limit > 0 else UINT64_MAX))
    cpus = _cpus(unit) if unit and {"nano_cpus", "cpu_quota"} & set(given) else None
    if cpus is not None:
        per_second = round(own_cpus(host) * 1_000_000) or UINT64_MAX
        wanted.append(("CPUQuotaPerSecUSec", round(cpus * 1_000_000), per_second))
    wanted = [one for one in wanted if one[1] not in (UINT64_MAX, one[2])]
    if not wanted:
        return []
    name = unit.rpartition("/")[2]
    if name.endswith(".service"):
        return [
            f"{name} has a limit of its own, {prop}={has}, which holds as well: systemctl set-property changes it"
            for prop, has, wants in wanted
            if has < wants
        ]
    properties: list[Property] = [(prop, "t", wants) for prop, _, wants in wanted]
    try:
        with Bus() as bus:
            set_unit_properties(bus, name, properties)
    except OSError as error:
        told = ", ".join(prop for prop, _, _ in wanted)
        return [f"the limits of {name} ({told}), which hold as well, could not be changed: {error}"]
    return []
