# SPDX-License-Identifier: Apache-2.0
"""Mounts the container's root file system, as listed in CreateTaskRequest.rootfs, and unmounts it.

The mounts come from a snapshotter: one overlay, or one bind; options are those of mount(8).
"""

from __future__ import annotations

import errno
import os

from teu.linux import mountflags, mounts
from teu.linux.mounts import MNT_DETACH, MS_BIND, MS_REC, MS_REMOUNT, UMOUNT_NOFOLLOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# mount(2) takes one page of data, terminated.
DATA_MAX = 4095


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    try:
        mounts.mount(source, target, kind, flags, data or None)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise OSError(error.errno, f"mount {source} ({kind}, {data}): {reason}", target) from None


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
            with idmapped.lowers(mount["options"], target) as options:
                mount_one({**mount, "target": "", "options": options}, target)
            return
        idmapped.bind(mount["source"], target, mount["options"])
        return
    flags, propagation, left = mountflags.parse(mount["options"])
    data = ",".join(left)
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


def mount_all(listed: list[dict[str, Any]], target: str) -> None:
    """Mount them all, or none."""
    try:
        for mount in listed:
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
            try:
                mounts.umount2(point, flags)
                break
            except OSError as error:
                if error.errno == errno.EINVAL:
                    break  # no mount any more
                if flags & MNT_DETACH:
                    raise OSError(error.errno, f"umount: {os.strerror(error.errno or 0)}", point) from None
