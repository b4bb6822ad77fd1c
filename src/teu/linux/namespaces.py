# SPDX-License-Identifier: Apache-2.0
"""Namespaces: their names, clone3 into new ones, setns into others. Called by all that enter or leave one."""

from __future__ import annotations

import fcntl
import os
from struct import pack

from teu.linux.syscalls import (
    NR_clone3,
    NR_setns,
    NR_unshare,
    buffer,
    call_keeping_gil,
    check,
    syscall,
)

CLONE_NEWTIME = 0x00000080
CLONE_FS = 0x00000200
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

NS_GET_NSTYPE = 0xB703

# the specification's type -> (flag, name in /proc/PID/ns)
TYPES = {
    "user": (CLONE_NEWUSER, "user"),
    "pid": (CLONE_NEWPID, "pid"),
    "mount": (CLONE_NEWNS, "mnt"),
    "network": (CLONE_NEWNET, "net"),
    "ipc": (CLONE_NEWIPC, "ipc"),
    "uts": (CLONE_NEWUTS, "uts"),
    "cgroup": (CLONE_NEWCGROUP, "cgroup"),
    "time": (CLONE_NEWTIME, "time"),
}

_SIGCHLD = 17


def clone(flags: int, cgroup: int = -1) -> int:
    """fork(2) into new namespaces, and into the cgroup that a descriptor names: the pid, or 0 in the child.

    Being born in a cgroup takes microseconds; being moved into one waits for all processors, some
    milliseconds. The C library is not told of the child: right only for a process with one thread,
    whose child soon executes something else. Both hold for teu-runc. The child returns holding the
    interpreter's lock, as the call never let go of it.
    """
    exit_signal = 0 if flags & CLONE_PARENT else _SIGCHLD
    if cgroup >= 0:
        flags |= CLONE_INTO_CGROUP
    arguments = buffer(pack("11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup, 0)))
    return check(call_keeping_gil(NR_clone3, arguments, 88), "clone3")


def unshare(flags: int) -> None:
    """unshare(2): this thread is in new namespaces, by CLONE_NEW* flags; CLONE_FS gives it a root and a working folder
    of its own. Raises OSError."""
    syscall("unshare", NR_unshare, flags)


def setns(fd: int, flags: int) -> None:
    """setns(2): this thread joins the namespace that `fd` is, or those of the process that it is, by CLONE_NEW* flags.
    Raises OSError."""
    syscall("setns", NR_setns, fd, flags)


def open_namespace(path: str, flag: int) -> int:
    """A descriptor of a namespace file, after a look that it is one and of that kind. OSError, ValueError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError:
        os.close(fd)
        raise ValueError(f"{path} is not a namespace") from None
    if kind != flag:
        os.close(fd)
        raise ValueError(f"{path} is a namespace of another kind")
    return fd


def same_namespace(path: str, name: str) -> bool:
    """Whether path is the namespace that this process is in already."""
    try:
        one, other = os.stat(path), os.stat(f"/proc/self/ns/{name}")
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def in_user_namespace() -> bool:
    """Whether this process is in a user namespace other than the initial one; False without /proc."""
    try:
        with open("/proc/self/uid_map", "rb", 0) as file:
            return file.read().split() != [b"0", b"0", b"4294967295"]
    except OSError:
        return False
