# SPDX-License-Identifier: Apache-2.0
"""Mounts of snapshots, made by the builder itself to read and change files in them.

They are below one folder of the builder's, so that the next builder finds what a killed one left.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

from teu.buildkit.core.identifiers import new_id
from teu.buildkit.core.snapshots import Mount
from teu.linux import mountflags, trees
from teu.linux.mounts import MNT_DETACH, MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT, UMOUNT_NOFOLLOW, mount, umount2
from teu.linux.namespaces import CLONE_FS, unshare

PAGE = 4095  # bytes of options that mount(2) takes

_private = threading.local()


def overlay_folders(mounts: Sequence[Mount]) -> tuple[str, list[str]] | None:
    """(upper or "", lowers nearest first) where the mounts are one overlay, or one folder; else None."""
    if len(mounts) != 1:
        return None
    one = mounts[0]
    if one.type in ("bind", "rbind"):
        return ("", [one.source]) if "ro" in one.options else (one.source, [])
    if one.type != "overlay":
        return None
    upper, lowers = "", []
    for option in one.options:
        key, _, value = option.partition("=")
        if key == "upperdir":
            upper = value
        elif key == "lowerdir":
            lowers = value.split(":")
        elif key in ("lowerdir+", "datadir+"):
            return None
    return upper, lowers


def read_only(mounts: Sequence[Mount]) -> list[Mount]:
    """The same tree, which nobody writes to: it may be mounted while it is, or was, mounted elsewhere."""
    found: list[Mount] = []
    for one in mounts:
        if one.type == "overlay":
            folders = overlay_folders([one])
            if folders is not None and folders[0]:
                found.append(stacked([folders[0], *folders[1]], one.options))
                continue
        options = [option for option in one.options if option != "rw"]
        found.append(Mount(one.type, one.source, (*options, *(() if "ro" in options else ("ro",)))))
    return found


def stacked(folders: Sequence[str], options: Sequence[str] = ()) -> Mount:
    """Folders of overlays one upon the other, the nearest first, to be read. `options`: of a mount of some of them."""
    if len(folders) == 1:
        return Mount("bind", folders[0], ("ro", "rbind"))
    kept = [
        option
        for option in options
        if not option.startswith(("upperdir=", "lowerdir=", "workdir=")) and option not in ("rw", "ro")
    ]
    return Mount("overlay", "overlay", (*kept, f"lowerdir={':'.join(folders)}"))


class Places:
    """Where mounts are made: folders below `root`, which is the builder's alone."""

    def __init__(self, root: str) -> None:
        self._root = root

    def clear(self) -> None:
        """Before anything is mounted: what an earlier builder left."""
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        for place in sorted(trees.mounts_below(self._root), key=len, reverse=True):
            trees.unmount(place)
        for name in os.listdir(self._root):
            # Nothing but empty folders: what is mounted is not looked into.
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self._root, name))

    @contextlib.contextmanager
    def mounted(self, mounts: Sequence[Mount]) -> Iterator[str]:
        """The folder where they are mounted, for the block. One folder is not mounted but shown as it is."""
        if len(mounts) == 1 and mounts[0].type in ("bind", "rbind"):
            yield mounts[0].source
            return
        place = os.path.join(self._root, new_id())
        os.mkdir(place, 0o700)
        made = 0
        try:
            for one in mounts:
                mount_one(one, place)
                made += 1
            yield place
        finally:
            for _ in range(made):
                umount2(place, MNT_DETACH | UMOUNT_NOFOLLOW)
            os.rmdir(place)


def mount_one(one: Mount, place: str) -> None:
    """Of a snapshot's mounts, at a folder that nobody else can change. Raises OSError."""
    flags, propagation, data = mountflags.parse(one.options)
    text = ",".join(option for option in data if option != "loop")
    source, kind = one.source, one.type
    try:
        if len(os.fsencode(text)) > PAGE and kind == "overlay":
            _mount_shortened(data, place, flags)
        else:
            mount(source, place, kind, flags, text or None)
        if flags & MS_BIND and flags & ~(MS_BIND | MS_REC | MS_REMOUNT):
            # A bind takes no other flags at first.
            mount("", place, "", flags & ~MS_REC | MS_REMOUNT | (flags & MS_RDONLY), None)
        if propagation:
            mount("", place, "", propagation, None)
    except OSError as error:
        raise OSError(error.errno, f"mount {kind} {source}: {os.strerror(error.errno or 0)}") from None


def _mount_shortened(data: Sequence[str], place: str, flags: int) -> None:
    """An overlay of so many folders that their paths do not fit: they are told from the folder that they are all in."""
    folders = [
        path
        for option in data
        if option.startswith(("lowerdir=", "upperdir=", "workdir="))
        for path in option.partition("=")[2].split(":")
    ]
    common = os.path.commonpath(folders) if len(folders) > 1 else os.path.dirname(folders[0])
    short = []
    for option in data:
        key, _, value = option.partition("=")
        if key in ("lowerdir", "upperdir", "workdir"):
            value = ":".join(os.path.relpath(path, common) for path in value.split(":"))
            option = f"{key}={value}"
        short.append(option)
    with _current_folder(common):
        mount("overlay", place, "overlay", flags, ",".join(short))


@contextlib.contextmanager
def _current_folder(path: str) -> Iterator[None]:
    """This thread, and no other, is in that folder for the block."""
    if not getattr(_private, "done", False):
        unshare(CLONE_FS)  # a current folder of its own, from now on
        _private.done = True
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(path)
        yield
    finally:
        os.fchdir(before)
        os.close(before)
