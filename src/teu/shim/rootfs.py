# SPDX-License-Identifier: Apache-2.0
"""Mounts the container's root file system, as listed in CreateTaskRequest.rootfs, and unmounts it.

The mounts come from a snapshotter: one overlay, or one bind; options are those of mount(8).
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC = 128, 1024, 2048, 4096, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME = 1 << 21, 1 << 24
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

# name: (flag, whether it sets or clears)
_FLAGS = {
    "ro": (MS_RDONLY, True),
    "rw": (MS_RDONLY, False),
    "nosuid": (MS_NOSUID, True),
    "suid": (MS_NOSUID, False),
    "nodev": (MS_NODEV, True),
    "dev": (MS_NODEV, False),
    "noexec": (MS_NOEXEC, True),
    "exec": (MS_NOEXEC, False),
    "sync": (MS_SYNCHRONOUS, True),
    "async": (MS_SYNCHRONOUS, False),
    "dirsync": (MS_DIRSYNC, True),
    "remount": (MS_REMOUNT, True),
    "noatime": (MS_NOATIME, True),
    "atime": (MS_NOATIME, False),
    "nodiratime": (MS_NODIRATIME, True),
    "diratime": (MS_NODIRATIME, False),
    "relatime": (MS_RELATIME, True),
    "norelatime": (MS_RELATIME, False),
    "strictatime": (MS_STRICTATIME, True),
    "nostrictatime": (MS_STRICTATIME, False),
    "bind": (MS_BIND, True),
    "rbind": (MS_BIND | MS_REC, True),
    "defaults": (0, True),
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}

# mount(2) takes one page of data, terminated.
DATA_MAX = 4095

_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    if _libc.mount(
        os.fsencode(source), os.fsencode(target), os.fsencode(kind), ctypes.c_ulong(flags), os.fsencode(data) or None
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} ({kind}, {data}): {os.strerror(number)}", target)


def parse_options(options: list[str]) -> tuple[int, int, str]:
    """mount(8) options as (flags, propagation flags, data)."""
    flags = propagation = 0
    data = []
    for option in options:
        if option in _FLAGS:
            flag, on = _FLAGS[option]
            flags = flags | flag if on else flags & ~flag
        elif option in _PROPAGATION:
            propagation |= _PROPAGATION[option]
        elif not option.startswith("X-"):
            data.append(option)
    return flags, propagation, ",".join(data)


def shorten_overlay(data: str) -> tuple[str, str]:
    """An overlay's data with its lower folders relative to their common parent: (parent, data)."""
    options = data.split(",")
    for n, option in enumerate(options):
        if option.startswith("lowerdir="):
            folders = option[len("lowerdir=") :].split(":")
            parent = os.path.commonpath(folders) if len(folders) > 1 else os.path.dirname(folders[0])
            options[n] = "lowerdir=" + ":".join(os.path.relpath(folder, parent) for folder in folders)
            return parent, ",".join(options)
    return "/", data


def mount_one(mount: dict[str, Any], target: str) -> None:
    """Mount one containerd.types.Mount at `target`, or at its own target below that."""
    if mount["target"]:
        target = os.path.join(target, mount["target"].lstrip("/"))
    if any(option.startswith(("uidmap=", "gidmap=")) for option in mount["options"]):
        from teu.shim import idmapped  # 3 ms

        if mount["type"] == "overlay":
            with idmapped.Lowers(mount["options"], target) as options:
                mount_one({**mount, "target": "", "options": options}, target)
            return
        idmapped.bind(mount["source"], target, mount["options"])
        return
    flags, propagation, data = parse_options(mount["options"])
    if len(data) > DATA_MAX and mount["type"] == "overlay":
        parent, data = shorten_overlay(data)
        before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(parent)
            _mount(mount["source"], target, mount["type"], flags, data)
        finally:
            os.fchdir(before)
            os.close(before)
    else:
        _mount(mount["source"], target, mount["type"], flags, data)
    if flags & MS_BIND and flags & ~(MS_BIND | MS_REC | MS_REMOUNT):
        # A bind takes no other flags at first.
        _mount(mount["source"], target, "", flags & ~MS_REC | MS_REMOUNT, "")
    if propagation:
        _mount("", target, "", propagation, "")


def mount_all(mounts: list[dict[str, Any]], target: str) -> None:
    """Mount them all, or none."""
    try:
        for mount in mounts:
            mount_one(mount, target)
    except OSError:
        unmount_all(target)
        raise


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    return field.encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")


def unmount_all(target: str) -> None:
    """Unmount everything at and below `target`; what cannot be unmounted now is detached."""
    if not os.path.isdir(target):
        return
    target = os.path.realpath(target)
    needle = os.path.basename(target)
    points = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if needle in line:
                point = _unescape(line.split(" ", 5)[4])
                if point == target or point.startswith(target + "/"):
                    points.append(point)
    for point in reversed(points):
        for flags in (UMOUNT_NOFOLLOW, UMOUNT_NOFOLLOW | MNT_DETACH):
            if not _libc.umount2(os.fsencode(point), flags):
                break
            number = ctypes.get_errno()
            if number == errno.EINVAL:
                break
            if flags & MNT_DETACH:
                raise OSError(number, f"umount: {os.strerror(number)}", point)
