# SPDX-License-Identifier: Apache-2.0
"""Capabilities: the kernel's names in the kernel's order. Called by teu.runc (process, features), and by what writes
specifications (available)."""

from __future__ import annotations

from struct import pack, unpack

from teu.linux.syscalls import NR_capget, NR_capset, buffer, syscall

NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

_VERSION_3 = 0x20080522  # of the structures of capget(2) and capset(2)
_BITS = {name: 1 << bit for bit, name in enumerate(NAMES)}


def available() -> list[str]:
    """What the kernel knows and this machine allows: PID 1's bounding set, since ours may be sandboxed."""
    bounding = (1 << len(NAMES)) - 1
    try:
        with open("/proc/1/status", "rb") as file:
            for line in file:
                if line.startswith(b"CapBnd:"):
                    bounding = int(line[7:], 16)
    except OSError:
        pass
    return [name for number, name in enumerate(NAMES) if bounding >> number & 1]


def mask(names: list[str]) -> tuple[int, list[str]]:
    """(the set as a bit mask, the names that are not known)."""
    bits = 0
    unknown = []
    for name in names:
        bit = _BITS.get(name.upper())
        if bit is None:
            unknown.append(name)
        else:
            bits |= bit
    return bits, unknown


def known_mask() -> int:
    """All capabilities that the running kernel has."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb", 0) as file:
            last = int(file.read())
    except OSError:
        last = len(NAMES) - 1
    return (1 << (last + 1)) - 1


def permitted() -> int:
    """The capabilities that this process has: more it cannot give."""
    header, data = buffer(pack("Ii", _VERSION_3, 0)), buffer(bytes(24))
    syscall("capget", NR_capget, header, data)
    words = unpack("6I", bytes(data))
    return int(words[1] | words[4] << 32)


def limit(bits: int) -> None:
    """Have these capabilities from now on, and none for what is executed. OSError where one is not permitted."""
    low, high = bits & 0xFFFFFFFF, bits >> 32
    syscall("capset", NR_capset, buffer(pack("Ii", _VERSION_3, 0)), buffer(pack("6I", low, low, 0, high, high, 0)))
