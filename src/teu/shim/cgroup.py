# SPDX-License-Identifier: Apache-2.0
"""What the shim reads from a container's cgroup (version 2): its processes, its use, its OOM kills."""

from __future__ import annotations

import contextlib
import os
import re

from teu.ttrpc.messages import TABLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UINT64_MAX = (1 << 64) - 1


def mount_point() -> str:
    """Where the version 2 hierarchy is mounted (a hybrid host has it aside)."""
    if os.path.exists("/sys/fs/cgroup/cgroup.procs"):
        return "/sys/fs/cgroup"
    return "/sys/fs/cgroup/unified"


def path_of(pid: int | str) -> str:
    """The folder of a process's cgroup; "" if the process is gone or there is no version 2 hierarchy."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            for line in file:
                if line.startswith("0::"):
                    path = line[3:].rstrip("\n")
                    return mount_point() + path if os.path.isdir(mount_point() + path) else ""
    except OSError:
        pass
    return ""


def read(folder: str, name: str) -> str:
    """A control file's text; "" where it is not there."""
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read()
    except OSError:
        return ""


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
                with contextlib.suppress(OSError), open(os.open(name, os.O_RDONLY, dir_fd=here)) as file:
                    pids += [int(line) for line in file if line != "0\n"]
    except OSError:
        pass  # the cgroup has just gone
    finally:
        os.close(top)
    return pids


def flat(text: str) -> dict[str, int]:
    """A flat keyed file ("anon 4096") as a dict."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(text: str) -> int:
    text = text.strip()
    return UINT64_MAX if text == "max" else int(text) if text.isdigit() else 0


def _pressure(text: str) -> dict[str, Any] | None:
    psi = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=") for pair in pairs)
        psi[kind] = {
            "avg10": float(values["avg10"]),
            "avg60": float(values["avg60"]),
            "avg300": float(values["avg300"]),
            "total": int(values["total"]),
        }
    return {kind: psi[kind] for kind in ("some", "full") if kind in psi} or None


def _io(text: str) -> list[dict[str, int]]:
    entries = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        if major.isdigit() and minor.isdigit():
            values = dict(pair.split("=") for pair in pairs if "=" in pair)
            entries.append(
                {"major": int(major), "minor": int(minor)}
                | {name: int(values.get(name, 0)) for name in ("rbytes", "wbytes", "rios", "wios")}
            )
    return entries


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
    cpu = flat(read(folder, "cpu.stat"))
    memory = flat(read(folder, "memory.stat"))
    events = flat(read(folder, "memory.events"))
    fields = {name for name, kind in TABLES["io.containerd.cgroups.v2.MemoryStat"].values() if kind == "uint64"}
    memory_stat: dict[str, Any] = {name: value for name, value in memory.items() if name in fields}
    memory_stat |= {
        "usage": _number(read(folder, "memory.current")),
        "usage_limit": _number(read(folder, "memory.max")),
        "max_usage": _number(read(folder, "memory.peak")),
        "swap_usage": _number(read(folder, "memory.swap.current")),
        "swap_limit": _number(read(folder, "memory.swap.max")),
        "swap_max_usage": _number(read(folder, "memory.swap.peak")),
        "psi": _pressure(read(folder, "memory.pressure")),
    }
    huge = []
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    for name in sorted(names):
        page = re.fullmatch(r"hugetlb\.(\w+)\.current", name)
        if page:
            prefix = f"hugetlb.{page[1]}"
            huge.append(
                {
                    "pagesize": page[1],
                    "current": _number(read(folder, name)),
                    "max": _number(read(folder, prefix + ".max")),
                    "failcnt": flat(read(folder, prefix + ".events")).get("max", 0),
                }
            )
    return {
        "pids": {"current": _number(read(folder, "pids.current")), "limit": _number(read(folder, "pids.max"))},
        "cpu": {
            "usage_usec": cpu.get("usage_usec", 0),
            "user_usec": cpu.get("user_usec", 0),
            "system_usec": cpu.get("system_usec", 0),
            "nr_periods": cpu.get("nr_periods", 0),
            "nr_throttled": cpu.get("nr_throttled", 0),
            "throttled_usec": cpu.get("throttled_usec", 0),
            "nr_bursts": cpu.get("nr_bursts", 0),
            "burst_usec": cpu.get("burst_usec", 0),
            "psi": _pressure(read(folder, "cpu.pressure")),
        },
        "memory": memory_stat,
        "rdma": {"current": _rdma(read(folder, "rdma.current")), "limit": _rdma(read(folder, "rdma.max"))},
        "io": {"usage": _io(read(folder, "io.stat")), "psi": _pressure(read(folder, "io.pressure"))},
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
