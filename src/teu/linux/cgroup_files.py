# SPDX-License-Identifier: Apache-2.0
"""Where control groups (version 2) are, and what their files say. Called by all that look at one; what changes one is
teu.linux.cgroups.

Files are of four forms (cgroup-v2.rst, "Interface File Formats"): one value, flat keyed, nested keyed, pressure.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

UNIFIED = "/sys/fs/cgroup"
HYBRID = "/sys/fs/cgroup/unified"

# What stands for no limit, in a file and in the messages that tell of it.
MAX = "max"
UINT64_MAX = 2**64 - 1


class CgroupError(OSError):
    """A cgroup operation failed. The message is a whole sentence for the user."""


# ---- where cgroups are -------------------------------------------------------------------------


def place() -> str:
    """Where the unified hierarchy is mounted: the root itself, or its place on a hybrid host; "" where it is not."""
    if os.path.exists(f"{UNIFIED}/cgroup.controllers") or os.path.exists(f"{UNIFIED}/cgroup.procs"):
        return UNIFIED
    return HYBRID if os.path.exists(f"{HYBRID}/cgroup.procs") else ""


def mountpoint() -> str:
    """As `place`; CgroupError where the hierarchy is not mounted."""
    found = place()
    if not found:
        raise CgroupError(f"cgroup v2 is not mounted on {UNIFIED}: containers need the unified hierarchy")
    return found


def in_listing(listing: str) -> str | None:
    """The path, from the root of the unified hierarchy, in what /proc/PID/cgroup says; None where it says none."""
    for line in listing.split("\n"):
        if line.startswith("0::"):
            return line[3:]
    return None


def own(pid: int | str = "self") -> str:
    """The cgroup of a process, from the root of the hierarchy: `/user.slice/session-1.scope`. CgroupError, OSError."""
    path = in_listing(_whole(f"/proc/{pid}", "cgroup"))
    if path is None:
        raise CgroupError(f"process {pid} has no place in the unified cgroup hierarchy")
    return path.removesuffix(" (deleted)")


# ---- single files ------------------------------------------------------------------------------


def read(path: str, name: str) -> str:
    """A file of a cgroup, whole and stripped. OSError."""
    return _whole(path, name).strip()


def _whole(path: str, name: str) -> str:
    descriptor = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while chunk := os.read(descriptor, 65536):
            data += chunk
    finally:
        os.close(descriptor)
    return os.fsdecode(data)


def text(path: str, name: str) -> str:
    """As `read`; "" where there is no such file, or none that can be read."""
    try:
        return read(path, name)
    except OSError:
        return ""


def read_pairs(path: str, name: str) -> dict[str, int]:
    """A flat keyed file ("key number" lines) such as cpu.stat. OSError."""
    return flat(read(path, name))


def flat(lines: str) -> dict[str, int]:
    """The numbers of a flat keyed file."""
    pairs = {}
    for line in lines.splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            pairs[key] = int(value)
    return pairs


def number(value: str) -> int | None:
    """One value; `max` is the largest that there is, None what is no number."""
    value = value.strip()
    return UINT64_MAX if value == MAX else int(value) if value.isdigit() else None


def pressure(lines: str) -> dict[str, dict[str, float]]:
    """Pressure stall information: `some` and `full`, each with its averages in percent and `total` in microseconds."""
    found = {}
    for line in lines.splitlines():
        kind, *words = line.split()
        values: dict[str, float] = {}
        for word in words:
            key, _, value = word.partition("=")
            values[key] = int(value) if key == "total" else float(value)
        found[kind] = values
    return found


def devices(lines: str) -> Iterator[tuple[int, int, dict[str, int]]]:
    """A nested keyed file by devices, such as io.stat: major, minor, and the numbers."""
    for line in lines.splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        if major.isdigit() and minor.isdigit():
            pairs = (word.partition("=") for word in words)
            yield int(major), int(minor), {key: int(value) for key, _, value in pairs if value.isdigit()}
