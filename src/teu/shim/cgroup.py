# SPDX-License-Identifier: Apache-2.0
"""What the shim reads from a container's cgroup (version 2): its processes, its use, its OOM kills."""

from __future__ import annotations

import os

from teu.linux import cgroup_files
from teu.linux.cgroup_files import devices, flat, in_listing, number, pressure, text
from teu.ttrpc.messages import TABLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def mount_point() -> str:
    """Where the version 2 hierarchy is mounted (a hybrid host has it aside)."""
    return cgroup_files.place() or cgroup_files.HYBRID


def path_of(pid: int | str) -> str:
    """The folder of a process's cgroup; "" if the process is gone or there is no version 2 hierarchy."""
    path = in_listing(text(f"/proc/{pid}", "cgroup"))
    folder = "" if path is None else mount_point() + path
    return folder if os.path.isdir(folder) else ""


def processes(folder: str) -> list[int]:
    """All processes in a cgroup and those below it, however deep a container has made them."""
    from teu.linux import trees  # 4 ms, and only where the processes of a cgroup are counted

    pids: list[int] = []
    try:
        top = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return pids
    try:
        for _, here, name, _ in trees.walk(top):
            if name == b"cgroup.procs":
                pids += _listed(name, here)
    except OSError:
        pass  # the cgroup has just gone
    finally:
        os.close(top)
    return pids


def _listed(name: bytes, here: int) -> list[int]:
    """The processes in that file of the folder `here`; none where it has just gone."""
    try:
        with open(os.open(name, os.O_RDONLY, dir_fd=here)) as file:
            return [int(line) for line in file if line != "0\n"]
    except OSError:
        return []


def _number(folder: str, name: str) -> int:
    return number(text(folder, name)) or 0


def _pressure(folder: str, name: str) -> dict[str, Any] | None:
    found = pressure(text(folder, name))
    return {kind: found[kind] for kind in ("some", "full") if kind in found} or None


def _io(folder: str) -> list[dict[str, int]]:
    return [
        {"major": major, "minor": minor} | {name: values.get(name, 0) for name in ("rbytes", "wbytes", "rios", "wios")}
        for major, minor, values in devices(text(folder, "io.stat"))
    ]


def _rdma(text: str) -> list[dict[str, Any]]:
    entries = []
    for line in text.splitlines():
        device, *pairs = line.split()
        values = {
            name: 0xFFFFFFFF if value == "max" else int(value)
            for name, _, value in (pair.partition("=") for pair in pairs)
        }
        entries.append(
            {"device": device, "hca_handles": values.get("hca_handle", 0), "hca_objects": values.get("hca_object", 0)}
        )
    return entries


def metrics(folder: str) -> dict[str, Any]:
    """io.containerd.cgroups.v2.Metrics of a cgroup; a controller that is not there counts nothing."""
    cpu = flat(text(folder, "cpu.stat"))
    memory = flat(text(folder, "memory.stat"))
    events = flat(text(folder, "memory.events"))
    fields = {name for name, kind in TABLES["io.containerd.cgroups.v2.MemoryStat"].values() if kind == "uint64"}
    memory_stat: dict[str, Any] = {name: value for name, value in memory.items() if name in fields}
    memory_stat |= {
        "usage": _number(folder, "memory.current"),
        "usage_limit": _number(folder, "memory.max"),
        "max_usage": _number(folder, "memory.peak"),
        "swap_usage": _number(folder, "memory.swap.current"),
        "swap_limit": _number(folder, "memory.swap.max"),
        "swap_max_usage": _number(folder, "memory.swap.peak"),
        "psi": _pressure(folder, "memory.pressure"),
    }
    huge = []
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    for name in sorted(names):
        controller, _, rest = name.partition(".")
        page, _, kind = rest.partition(".")
        if controller == "hugetlb" and kind == "current":
            prefix = f"hugetlb.{page}"
            huge.append(
                {
                    "pagesize": page,
                    "current": _number(folder, name),
                    "max": _number(folder, prefix + ".max"),
                    "failcnt": flat(text(folder, prefix + ".events")).get("max", 0),
                }
            )
    return {
        "pids": {"current": _number(folder, "pids.current"), "limit": _number(folder, "pids.max")},
        "cpu": {
            "usage_usec": cpu.get("usage_usec", 0),
            "user_usec": cpu.get("user_usec", 0),
            "system_usec": cpu.get("system_usec", 0),
            "nr_periods": cpu.get("nr_periods", 0),
            "nr_throttled": cpu.get("nr_throttled", 0),
            "throttled_usec": cpu.get("throttled_usec", 0),
            "nr_bursts": cpu.get("nr_bursts", 0),
            "burst_usec": cpu.get("burst_usec", 0),
            "psi": _pressure(folder, "cpu.pressure"),
        },
        "memory": memory_stat,
        "rdma": {"current": _rdma(text(folder, "rdma.current")), "limit": _rdma(text(folder, "rdma.max"))},
        "io": {"usage": _io(folder), "psi": _pressure(folder, "io.pressure")},
        "hugetlb": huge,
        # None where there is no such controller: containerd tells no row of it then.
        "memory_events": {
            name: events.get(name, 0) for name in ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
        }
        if events
        else None,
    }


class OomWatch:
    """Counts the OOM kills of a cgroup.  Its descriptor is ready (EPOLLPRI) when memory.events changed."""

    def __init__(self, folder: str) -> None:
        """OSError where the memory controller is not there."""
        self.fd = os.open(os.path.join(folder, "memory.events"), os.O_RDONLY | os.O_CLOEXEC)
        self._kills = 0
        self.changed()

    def changed(self) -> bool:
        """Whether there were kills since the last call."""
        try:
            kills = flat(os.pread(self.fd, 4096, 0).decode()).get("oom_kill", 0)
        except OSError:  # the cgroup is gone
            return False
        before, self._kills = self._kills, kills
        return kills > before

    def close(self) -> None:
        os.close(self.fd)
