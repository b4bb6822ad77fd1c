# SPDX-License-Identifier: Apache-2.0
"""What a step uses of the machine, by its cgroup: looked at now and then while it runs, for its provenance.

Called by the executor, and only where somebody asked: it takes a thread for each such step.

The names are those of BuildKit's samples, as its history and provenance have them.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from teu.linux import cgroup_files

FIRST_SECONDS = 0.5
SECONDS = 2.0  # between two samples; it doubles whenever there are too many
SAMPLES_MAX = 10
KILLED = 137  # the exit status of who got SIGKILL

Sample = dict[str, Any]

_MEMORY = {
    "anon": "anon",
    "file": "file",
    "kernel": "kernel",
    "kernel_stack": "kernelStack",
    "pagetables": "pageTables",
    "sock": "sock",
    "vmalloc": "vmalloc",
    "shmem": "shmem",
    "file_mapped": "fileMapped",
    "file_dirty": "fileDirty",
    "file_writeback": "fileWriteback",
    "slab": "slab",
    "pgscan": "pgscan",
    "pgsteal": "pgsteal",
    "pgfault": "pgfault",
    "pgmajfault": "pgmajfault",
}
_EVENTS = {
    "low": "lowEvents",
    "high": "highEvents",
    "max": "maxEvents",
    "oom": "oomEvents",
    "oom_kill": "oomKillEvents",
}
_CPU = {
    "usage_usec": ("usageNanos", 1000),
    "user_usec": ("userNanos", 1000),
    "system_usec": ("systemNanos", 1000),
    "nr_periods": ("nrPeriods", 1),
    "nr_throttled": ("nrThrottled", 1),
    "throttled_usec": ("throttledNanos", 1000),
}
_IO = {
    "rbytes": "readBytes",
    "wbytes": "writeBytes",
    "dbytes": "discardBytes",
    "rios": "readIOs",
    "wios": "writeIOs",
    "dios": "discardIOs",
}


def cgroup_of(pid: int) -> str:
    """The folder of a process's cgroup; "" where it is not known."""
    try:
        return cgroup_files.mountpoint() + cgroup_files.own(pid)
    except (OSError, cgroup_files.CgroupError):
        return ""


def oom_kills(folder: str) -> int | None:
    """How many processes of it, and of all below, the kernel killed for want of memory; None where nobody counts."""
    try:
        return int(cgroup_files.read_pairs(folder, "memory.events").get("oom_kill", 0))
    except (OSError, ValueError):
        return None


class MemoryWatch:
    """Whether a step runs out of memory. Its cgroup may be gone with its last process, so what is around it is watched,
    too: a count there goes on when what is below ends."""

    def __init__(self, folder: str) -> None:
        """`folder`: of the step's cgroup, before it begins."""
        self._before: list[tuple[str, int]] = []
        top = cgroup_files.place()
        while folder != top and folder.startswith(f"{top}/"):
            count = oom_kills(folder)
            if count is not None:
                self._before.append((folder, count))
            folder = folder.rpartition("/")[0]

    def ran_out(self, status: int) -> bool:
        """After its end with this exit status."""
        for number, (folder, before) in enumerate(self._before):
            now = oom_kills(folder)
            if now is not None:
                return now > before and (not number or status == KILLED)
        return False


def take(folder: str) -> Sample:
    """What there is to know now; what has no controller is left out. OSError where the cgroup has gone."""
    cgroup_files.read(folder, "cgroup.procs")
    found: Sample = {"timestamp": _now()}
    for key, part in (
        ("cpuStat", _cpu(folder)),
        ("memoryStat", _memory(folder)),
        ("ioStat", _io(folder)),
        ("pidsStat", _pids(folder)),
    ):
        if part:
            found[key] = part
    return found


def _now() -> str:
    moment = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // 10**9)) + f".{moment % 10**9:09d}Z"


def _pairs(folder: str, name: str) -> dict[str, int]:
    try:
        return cgroup_files.read_pairs(folder, name)
    except (OSError, ValueError):
        return {}


def _with_pressure(part: Sample, folder: str, name: str) -> Sample:
    try:
        pressure = cgroup_files.pressure(cgroup_files.read(folder, name))
    except (OSError, ValueError):
        pressure = None
    if pressure:
        part["pressure"] = pressure
    return part


def _number(folder: str, name: str) -> int | None:
    try:
        return int(cgroup_files.read(folder, name))
    except (OSError, ValueError):
        return None


def _cpu(folder: str) -> Sample:
    counts = _pairs(folder, "cpu.stat")
    part = {name: counts[key] * factor for key, (name, factor) in _CPU.items() if key in counts}
    return _with_pressure(part, folder, "cpu.pressure")


def _memory(folder: str) -> Sample:
    counts = _pairs(folder, "memory.stat")
    if not counts:
        return {}
    part = {name: counts[key] for key, name in _MEMORY.items() if key in counts}
    events = _pairs(folder, "memory.events")
    part |= {name: events[key] for key, name in _EVENTS.items() if events.get(key)}
    for name, file in (("swapBytes", "memory.swap.current"), ("peak", "memory.peak")):
        value = _number(folder, file)
        if value is not None:
            part[name] = value
    return _with_pressure(part, folder, "memory.pressure")


def _io(folder: str) -> Sample:
    try:
        text = cgroup_files.read(folder, "io.stat")
    except OSError:
        return {}
    part: Sample = {}
    for _, _, values in cgroup_files.devices(text):
        for key, value in values.items():
            if key in _IO:
                part[_IO[key]] = part.get(_IO[key], 0) + value
    return _with_pressure(part, folder, "io.pressure")


def _pids(folder: str) -> Sample:
    current = _number(folder, "pids.current")
    return {} if current is None else {"current": current}


class Sampler:
    """Samples of a cgroup until it is closed: no more than SAMPLES_MAX, over the whole time."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._samples: list[Sample] = []
        threading.Thread(target=self._run, name="samples", daemon=True).start()

    def _run(self) -> None:
        pause = SECONDS
        wait = FIRST_SECONDS
        while not self._done.wait(wait):
            if not self._add():
                return
            wait = pause
            with self._lock:
                if len(self._samples) >= SAMPLES_MAX:
                    self._samples = self._samples[1::2]
                    pause = wait = pause * 2

    def _add(self) -> bool:
        try:
            sample = take(self._folder)
        except OSError:
            return False
        with self._lock:
            self._samples.append(sample)
        return True

    def close(self) -> None:
        """The last sample is of now, where the cgroup is still there. Twice is fine."""
        if not self._done.is_set():
            self._done.set()
            self._add()

    def found(self) -> list[Sample]:
        """What BuildKit calls Samples."""
        with self._lock:
            return list(self._samples)
