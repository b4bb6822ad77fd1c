# SPDX-License-Identifier: Apache-2.0
"""Mounts of a snapshot, made in the worker's own mount namespace: with the worker they are gone, however it ends."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS = 0x1, 0x2, 0x4, 0x8, 0x10
MS_REMOUNT, MS_MANDLOCK, MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME = 0x20, 0x40, 0x80, 0x400, 0x800
MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME, MS_STRICTATIME = 0x1000, 0x4000, 0x40000, 0x200000, 0x1000000

_FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": MS_SYNCHRONOUS,
    "mand": MS_MANDLOCK,
    "dirsync": MS_DIRSYNC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
    "relatime": MS_RELATIME,
    "strictatime": MS_STRICTATIME,
}
_CLEARED = ("rw", "defaults", "async", "suid", "dev", "exec", "atime", "diratime", "loop")
PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def private_namespace() -> None:
    _check(_libc.unshare(CLONE_NEWNS), "unshare mount namespace")
    _check(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "make mounts private")


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), os.fsencode(kind), ctypes.c_ulong(flags), os.fsencode(data) or None
    )
    _check(result, f"mount {kind} {source} on {target}")


def mount_all(mounts: list[dict[str, object]], target: str) -> str:
    """Mount them one over another on `target`; the folder to use, which for a lone writable bind is its source."""
    if not mounts:
        os.makedirs(target, exist_ok=True)
        return target
    if len(mounts) == 1 and mounts[0]["type"] == "bind" and not mounts[0].get("target"):
        return str(mounts[0]["source"])  # nothing to be mounted: the tree is there
    for one in mounts:
        place = os.path.join(target, str(one.get("target") or "").lstrip("/"))
        os.makedirs(place, exist_ok=True)
        _mount_one(one, place)
    return target


def _mount_one(one: dict[str, object], target: str) -> None:
    flags, data = 0, []
    for option in one.get("options") or ():  # type: ignore[attr-defined]
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option not in _CLEARED and not option.startswith(("uidmap=", "gidmap=")):
            data.append(option)
    kind, source = str(one["type"]), str(one["source"])
    if kind == "overlay" and sum(map(len, data)) + len(data) >= PAGE - 1:
        data = _relative(data)
    text = ",".join(data)
    if len(text) >= PAGE:
        raise OSError(7, f"mount options of {source} are longer than a page: the image has too many layers")
    _mount(source, target, kind, flags, text)
    if flags & MS_BIND and flags & MS_RDONLY:
        _mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")


def _relative(options: list[str]) -> list[str]:
    """Overlay's directories relative to their common folder, which becomes the working directory."""
    paths = []
    for option in options:
        key, _, value = option.partition("=")
        if key in ("lowerdir", "upperdir", "workdir"):
            paths += value.split(":")
    common = os.path.commonpath(paths)
    os.chdir(common)
    short = []
    for option in options:
        key, _, value = option.partition("=")
        if key in ("lowerdir", "upperdir", "workdir"):
            value = ":".join(os.path.relpath(path, common) for path in value.split(":"))
            option = f"{key}={value}"
        short.append(option)
    return short


def overlay_directories(mounts: list[dict[str, object]]) -> tuple[str, list[str]]:
    """(upper, lowers nearest first) of a snapshot's mounts; ("", []) when they are nothing of that kind."""
    if len(mounts) != 1:
        return "", []
    one = mounts[0]
    options: list[str] = list(one.get("options") or ())  # type: ignore[call-overload]
    if one["type"] == "bind":
        return ("", [str(one["source"])]) if "ro" in options else (str(one["source"]), [])
    upper, lowers = "", []
    for option in options:
        key, _, value = option.partition("=")
        if key == "upperdir":
            upper = value
        elif key == "lowerdir":
            lowers = value.split(":")
    return upper, lowers


def cover(folder: str) -> None:
    """A private tmpfs over `folder`, to make directories for mounts in: nothing of it is left behind."""
    _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700,size=64k")
