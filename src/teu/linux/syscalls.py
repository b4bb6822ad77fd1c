# SPDX-License-Identifier: Apache-2.0
"""System calls that Python's os module lacks, at start-up speed.

Called by everything in teu.linux and teu.runc.

`syscall(NR, ...)` takes integers (passed as C longs), bytes (passed as pointers), buffers made by
`buffer()` and None (NULL); it returns the result, and raises OSError(errno, "name[: what]").
"""

from __future__ import annotations

import os
import sys
from posix import uname

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# -- numbers: those from 424 on are the same on every architecture -------------------------------

_MACHINE = uname().machine

_OLD_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "mount": 165,
        "umount2": 166,
        "pivot_root": 155,
        "setdomainname": 171,
        "prctl": 157,
        "capget": 125,
        "capset": 126,
        "unshare": 272,
        "setns": 308,
        "ioprio_set": 251,
        "sched_setattr": 314,
        "prlimit64": 302,
        "bpf": 321,
        "seccomp": 317,
        "fstatfs": 138,
        "statx": 332,
        "syncfs": 306,
        "sync_file_range": 277,
        "tee": 276,
        "rt_sigprocmask": 14,
        "signalfd4": 289,
    },
    "aarch64": {
        "mount": 40,
        "umount2": 39,
        "pivot_root": 41,
        "setdomainname": 162,
        "prctl": 167,
        "capget": 90,
        "capset": 91,
        "unshare": 97,
        "setns": 268,
        "ioprio_set": 30,
        "sched_setattr": 274,
        "prlimit64": 261,
        "bpf": 280,
        "seccomp": 277,
        "fstatfs": 44,
        "statx": 291,
        "syncfs": 267,
        "sync_file_range": 84,
        "tee": 77,
        "rt_sigprocmask": 135,
        "signalfd4": 74,
    },
}
_OLD_NUMBERS["riscv64"] = _OLD_NUMBERS["aarch64"]
_old = _OLD_NUMBERS.get(_MACHINE, {})

NR_mount = _old.get("mount", -1)
NR_umount2 = _old.get("umount2", -1)
NR_pivot_root = _old.get("pivot_root", -1)
NR_setdomainname = _old.get("setdomainname", -1)
NR_prctl = _old.get("prctl", -1)
NR_capget = _old.get("capget", -1)
NR_capset = _old.get("capset", -1)
NR_unshare = _old.get("unshare", -1)
NR_setns = _old.get("setns", -1)
NR_ioprio_set = _old.get("ioprio_set", -1)
NR_sched_setattr = _old.get("sched_setattr", -1)
NR_prlimit64 = _old.get("prlimit64", -1)
NR_bpf = _old.get("bpf", -1)
NR_seccomp = _old.get("seccomp", -1)
NR_fstatfs = _old.get("fstatfs", -1)
NR_statx = _old.get("statx", -1)
NR_syncfs = _old.get("syncfs", -1)
NR_sync_file_range = _old.get("sync_file_range", -1)
NR_tee = _old.get("tee", -1)
NR_rt_sigprocmask = _old.get("rt_sigprocmask", -1)
NR_signalfd4 = _old.get("signalfd4", -1)
NR_open_tree = 428
NR_move_mount = 429
NR_fsopen = 430
NR_fsconfig = 431
NR_fsmount = 432
NR_clone3 = 435
NR_openat2 = 437
NR_pidfd_getfd = 438
NR_mount_setattr = 442
NR_quotactl_fd = 443
NR_pidfd_send_signal = 424

# -- calling ---------------------------------------------------------------------------------------

# call(NR, ...) is the result, or the negative number of the error. call_keeping_gil does not let another thread run
# meanwhile: clone3's child returns holding the lock. buffer(data) is writable and is read back with bytes();
# address(buffer) is for a structure that points to it: keep the buffer alive.
_native: Any = sys.modules.get("_coldstart")
if _native is not None:  # see teu.coldstart
    call = call_keeping_gil = _native.syscall
    address = _native.address
    buffer: Any = bytearray
else:
    from teu.linux.calling import address as address
    from teu.linux.calling import buffer, call
    from teu.linux.calling import call_keeping_gil as call_keeping_gil


def syscall(what: str, number: int, *args: int | bytes | None | Any) -> int:
    """Call; raise OSError named `what` on failure."""
    if number < 0:
        raise OSError(38, f"{what}: not known on {_MACHINE}")
    return check(call(number, *args), what)


def check(result: int, what: str) -> int:
    """The result of call(); OSError named `what` where it is an error."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}" if what else os.strerror(-result))
    return result


# -- prctl -----------------------------------------------------------------------------------------

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_MM = 35
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SCHED_CORE = 62

PR_SET_MM_ARG_START = 8
PR_SET_MM_ARG_END = 9
PR_SCHED_CORE_CREATE = 1


def prctl(option: int, *args: int) -> int:
    """prctl(2), with zeros for the arguments that are not given: its result. Raises OSError."""
    values = (*args, 0, 0, 0, 0)[:4]
    return syscall(f"prctl({option})", NR_prctl, option, *values)


def fstatfs_type(fd: int) -> int:
    """The magic number of the file system that fd is on (PROC_SUPER_MAGIC and its like)."""
    result = buffer(bytes(120))
    syscall("fstatfs", NR_fstatfs, fd, result)
    return int.from_bytes(bytes(result)[:8], "little")


PROC_SUPER_MAGIC = 0x9FA0
