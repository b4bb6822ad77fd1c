# SPDX-License-Identifier: Apache-2.0
"""Mounts of a snapshot, made in the worker's own mount namespace: with the worker they are gone, however it ends."""

from __future__ import annotations

import os

from teu.linux import mountflags, mounts
from teu.linux.mounts import MS_BIND, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT
from teu.linux.namespaces import CLONE_NEWNS, unshare

PAGE = 4096


def private_namespace() -> None:
    unshare(CLONE_NEWNS)
    mounts.mount(None, "/", None, MS_REC | MS_PRIVATE)


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    try:
        mounts.mount(source, target, kind, flags, data or None)
    except OSError as error:
        what = f"mount {kind} {source} on {target}"
        raise OSError(error.errno, f"{what}: {os.strerror(error.errno or 0)}") from None


def mount_all(listed: list[dict[str, object]], target: str) -> str:
    """Mount them one over another on `target`; the folder to use, which for a lone writable bind is its source."""
    if not listed:
        os.makedirs(target, exist_ok=True)
        return target
    if len(listed) == 1 and listed[0]["type"] == "bind" and not listed[0].get("target"):
        return str(listed[0]["source"])  # nothing to be mounted: the tree is there
    for one in listed:
        place = os.path.join(target, str(one.get("target") or "").lstrip("/"))
        os.makedirs(place, exist_ok=True)
        _mount_one(one, place)
    return target


def _mount_one(one: dict[str, object], target: str) -> None:
    options: list[str] = list(one.get("options") or ())  # type: ignore[call-overload]
    flags, propagation, data = mountflags.parse(options)
    # Ids are mapped where a container is mounted, not where its layers are read or written; "loop" is mount(8)'s.
    data = [option for option in data if option != "loop" and not option.startswith(("uidmap=", "gidmap="))]
    kind, source = str(one["type"]), str(one["source"])
    if kind == "overlay" and sum(map(len, data)) + len(data) >= PAGE - 1:
        data = _relative(data)
    text = ",".join(data)
    if len(text) >= PAGE:
        raise OSError(7, f"mount options of {source} are longer than a page: the image has too many layers")
    _mount(source, target, kind, flags, text)
    if flags & MS_BIND and flags & MS_RDONLY:
        _mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")
    if propagation:
        _mount("", target, "", propagation, "")


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
