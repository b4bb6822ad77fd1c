# SPDX-License-Identifier: Apache-2.0
"""rlimits, I/O priority, scheduler and CPU affinity of a process, set from outside by its host pid.

Called by teu.runc.launch and teu.runc.exec once the process is teu-runc-init, and before it
executes: what is set here counts for the user's program, and never hinders our own set-up.
"""

from __future__ import annotations

import os
from struct import pack

from teu.linux.syscalls import NR_ioprio_set, NR_prlimit64, NR_sched_setattr, buffer, syscall
from teu.oci.runtime_spec import RLIMITS
from teu.runc.errors import InvalidSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}

POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}

SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}


def apply(pid: int, described: dict[str, Any]) -> None:
    """All that `process` asks for. OSError names the field."""
    for limit in described.get("rlimits") or ():
        _set_rlimit(pid, limit)
    if described.get("ioPriority"):
        _set_io_priority(pid, described["ioPriority"])
    if described.get("scheduler"):
        _set_scheduler(pid, described["scheduler"])


def _set_rlimit(pid: int, limit: dict[str, Any]) -> None:
    number = RLIMITS.get(limit["type"])
    if number is None:
        raise InvalidSpec(f"process.rlimits: {limit['type']!r} is not known")
    value = buffer(pack("QQ", limit["soft"] & (1 << 64) - 1, limit["hard"] & (1 << 64) - 1))
    syscall(f"error setting rlimit type {limit['type']}", NR_prlimit64, pid, number, value, None)


def _set_io_priority(pid: int, priority: dict[str, Any]) -> None:
    number = IO_CLASSES.get(priority.get("class", ""))
    if number is None:
        raise InvalidSpec(f"process.ioPriority.class: {priority.get('class')!r} is not known")
    level = priority.get("priority") or 0
    syscall("process.ioPriority: ioprio_set", NR_ioprio_set, 1, pid, number << 13 | level)


def _set_scheduler(pid: int, scheduler: dict[str, Any]) -> None:
    policy = POLICIES.get(scheduler["policy"])
    if policy is None:
        raise InvalidSpec(f"process.scheduler.policy: {scheduler['policy']!r} is not known")
    flags = 0
    for name in scheduler.get("flags") or ():
        if name not in SCHEDULER_FLAGS:
            raise InvalidSpec(f"process.scheduler.flags: {name!r} is not known")
        flags |= SCHEDULER_FLAGS[name]
    attributes = pack(
        "IIQiIQQQ",
        48,
        policy,
        flags,
        scheduler.get("nice") or 0,
        scheduler.get("priority") or 0,
        scheduler.get("runtime") or 0,
        scheduler.get("deadline") or 0,
        scheduler.get("period") or 0,
    )
    syscall("process.scheduler: sched_setattr", NR_sched_setattr, pid, buffer(attributes), 0)


def cpu_list(text: str) -> set[int]:
    """ "0-2,7" as a set."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        if not part.isascii() or not first.isdigit() or (dash and not last.isdigit()):
            raise InvalidSpec(f"process.execCPUAffinity: {text!r} is not a list of CPUs")
        if len(last or first) > 5:
            raise InvalidSpec(f"process.execCPUAffinity: {last or first} is more than any kernel's CPUs")
        found.update(range(int(first), int(last or first) + 1))
    return found


def set_affinity(pid: int, text: str) -> None:
    try:
        os.sched_setaffinity(pid, cpu_list(text))
    except OSError as error:
        raise OSError(error.errno, f"process.execCPUAffinity: {text}: {error.strerror}") from None
