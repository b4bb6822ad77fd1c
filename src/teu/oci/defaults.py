# SPDX-License-Identifier: Apache-2.0
"""What a container begins with where nobody says otherwise: the values that runc, containerd and Docker share, because
images rely on them. Called by teud, by teu-ctr and by `teu-runc spec`.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Docker's and containerd's; runc's own template has three.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

# What tells of the host, or changes it. containerd hides POWERCAP besides.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
POWERCAP = "/sys/devices/virtual/powercap"
# Docker's own, in the order in which its clients show them.
DOCKER_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    POWERCAP,
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# type c, major, minor of null, zero, full, random, urandom, tty, console
DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1))


def device_rules() -> list[dict[str, Any]]:
    """linux.resources.devices: these devices and no other."""
    allowed = [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"} for major, minor in DEVICES
    ]
    return [{"allow": False, "access": "rwm"}, *allowed]


def device_node(path: str, inside: str) -> dict[str, Any]:
    """An entry of linux.devices for a device of the host. OSError where there is none of that path."""
    info = os.stat(path)
    return {
        "path": inside,
        "type": "c" if stat.S_ISCHR(info.st_mode) else "b",
        "major": os.major(info.st_rdev),
        "minor": os.minor(info.st_rdev),
        "fileMode": stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
    }


def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    """An entry of `mounts` (runtime-spec, "Mounts")."""
    entry: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    if options:
        entry["options"] = list(options)
    return entry


def mounts() -> list[dict[str, Any]]:
    """/dev, what is in it, and /sys, in runc's and containerd's template; /proc is a line of each's own."""
    return [
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    ]


def rights(capabilities: Sequence[str]) -> dict[str, Any]:
    """The part of `process` that limits it (runtime-spec, "POSIX process")."""
    return {
        "capabilities": {name: list(capabilities) for name in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }
