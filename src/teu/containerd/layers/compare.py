# SPDX-License-Identifier: Apache-2.0
"""Makes a layer of what one tree has changed over another. Called by `worker`.

Where the two are an overlay snapshot and its own parent, the upper directory is the answer: whiteouts and opaque marks
of overlayfs become those of the layer format. Anything else is compared entry by entry: a file counts as unchanged when
type, mode, owner, size, exact time, link target and capabilities agree.

Entries come sorted by name, with the directories above them, so that the same change makes the same layer. Times are
exact: whole seconds stand in the header, fractions in a pax record.
"""

from __future__ import annotations

import os
import stat

from teu.containerd.layers import mounting, streams, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPAQUE_MARKS = ("trusted.overlay.opaque", "user.overlay.opaque")
_KEPT = ("security.capability", "user.", "system.posix_acl_")
HOLE_FROM = 1 << 20  # look for holes in files of this size


class _Writer:
    def __init__(self, sink: streams.Deflated) -> None:
        self._sink = sink
        self._links: dict[tuple[int, int], str] = {}
        self._directories: set[str] = set()

    def whiteout(self, parent: str, name: str, moment: int) -> None:
        entry = tar.Entry()
        entry.name = f"{parent}/.wh.{name}" if parent else f".wh.{name}"
        entry.mtime = moment
        self._sink.write(tar.pack(entry))

    def add(self, path: str, name: str, found: os.stat_result) -> None:
        """`path` on disk as `name` in the layer."""
        mode = found.st_mode
        if stat.S_ISSOCK(mode):
            return  # a socket is of use to its process only
        entry = tar.Entry()
        entry.name = name
        entry.mode = stat.S_IMODE(mode)
        entry.uid, entry.gid, entry.mtime = found.st_uid, found.st_gid, found.st_mtime_ns
        size = 0
        if stat.S_ISDIR(mode):
            entry.type, entry.name = tar.DIRECTORY, name + "/"
            if name in self._directories:
                return
            self._directories.add(name)
        else:
            identity = (found.st_dev, found.st_ino)
            if found.st_nlink > 1 and identity in self._links:
                entry.type, entry.link = tar.HARD_LINK, self._links[identity]
                self._sink.write(tar.pack(entry))
                return
            if found.st_nlink > 1:
                self._links[identity] = name
            if stat.S_ISREG(mode):
                size = entry.size = found.st_size
            elif stat.S_ISLNK(mode):
                entry.type, entry.link = tar.SYMLINK, os.readlink(path)
            elif stat.S_ISFIFO(mode):
                entry.type = tar.FIFO
            else:
                entry.type = tar.CHARACTER if stat.S_ISCHR(mode) else tar.BLOCK_DEVICE
                entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        entry.xattrs = xattrs(path)
        self._sink.write(tar.pack(entry))
        if size:
            self._data(path, size)

    def _data(self, path: str, size: int) -> None:
        left = size
        with open(path, "rb", buffering=0) as file:
            while left:
                data = file.read(min(left, streams.CHUNK))
                if not data:
                    data = bytes(min(left, streams.CHUNK))  # it shrank while we read: the header is written
                self._sink.write(data)
                left -= len(data)
        self._sink.write(bytes(-size % tar.BLOCK))


def xattrs(path: str) -> dict[str, bytes] | None:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return None
    kept = [name for name in names if name.startswith(_KEPT) and not name.startswith("user.overlay.")]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in kept} or None


def is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(path: str) -> bool:
    for mark in OPAQUE_MARKS:
        try:
            if os.getxattr(path, mark, follow_symlinks=False) == b"y":
                return True
        except OSError:
            pass
    return False


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


def _sorted(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _upper(writer: _Writer, folder: str, name: str, lowers: list[str]) -> None:
    """An upper directory of overlayfs: all that is in it is a change."""
    for entry in _sorted(folder):
        found = entry.stat(follow_symlinks=False)
        below = _join(name, entry.name)
        if is_whiteout(found):
            writer.whiteout(name, entry.name, found.st_mtime_ns)
            continue
        if name == "" and lowers and stat.S_ISDIR(found.st_mode) and _only_copied_up(entry.path, below, lowers, found):
            continue
        writer.add(entry.path, below, found)
        if stat.S_ISDIR(found.st_mode):
            if is_opaque(entry.path):
                writer.whiteout(below, ".wh..opq", found.st_mtime_ns)
            _upper(writer, entry.path, below, lowers)


def _only_copied_up(path: str, name: str, lowers: list[str], found: os.stat_result) -> bool:
    """An empty directory that is in the upper layer though nothing of it has changed."""
    with os.scandir(path) as inside:
        if next(inside, None) is not None:
            return False
    if is_opaque(path):
        return False
    for lower in lowers:
        try:
            before = os.lstat(os.path.join(lower, name))
        except OSError:
            continue
        return _same(path, found, os.path.join(lower, name), before)
    return False


def _same(path: str, found: os.stat_result, before_path: str, before: os.stat_result) -> bool:
    if (found.st_mode, found.st_uid, found.st_gid) != (before.st_mode, before.st_uid, before.st_gid):
        return False
    if stat.S_ISDIR(found.st_mode):
        return xattrs(path) == xattrs(before_path)
    if (found.st_dev, found.st_ino) == (before.st_dev, before.st_ino):
        return True
    if (found.st_mtime_ns, found.st_rdev) != (before.st_mtime_ns, before.st_rdev):
        return False
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path) == os.readlink(before_path)
    return found.st_size == before.st_size and xattrs(path) == xattrs(before_path)


def _both(writer: _Writer, left: str, right: str, name: str, pending: list[tuple[str, str, os.stat_result]]) -> None:
    """Two merged trees, side by side. `pending`: directories above that are told only if something below is."""
    before = {entry.name: entry for entry in _sorted(left)} if left else {}
    after = _sorted(right)
    present = {entry.name for entry in after}

    def told() -> None:
        for path, label, found in pending:
            writer.add(path, label, found)
        pending.clear()

    for gone in sorted(set(before) - present):
        told()
        writer.whiteout(name, gone, os.lstat(right).st_mtime_ns)
    for entry in after:
        found = entry.stat(follow_symlinks=False)
        below = _join(name, entry.name)
        old = before.get(entry.name)
        if stat.S_ISDIR(found.st_mode):
            was_directory = old is not None and old.is_dir(follow_symlinks=False)
            if was_directory and old is not None:
                same = _same(entry.path, found, old.path, old.stat(follow_symlinks=False))
                inner = [*pending, (entry.path, below, found)]
                if not same:
                    told()
                    writer.add(entry.path, below, found)
                    inner = []
                _both(writer, old.path, entry.path, below, inner)
                if not inner:
                    pending.clear()
            else:
                told()
                writer.add(entry.path, below, found)
                _both(writer, "", entry.path, below, [])
            continue
        if old is not None and _same(entry.path, found, old.path, old.stat(follow_symlinks=False)):
            continue
        told()
        writer.add(entry.path, below, found)


def run(job: dict[str, Any]) -> dict[str, Any]:
    out: int = job["out"]

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]

    sink = streams.Deflated(write, job["compression"])
    writer = _Writer(sink)
    left_upper, left_lowers = mounting.overlay_directories(job["left"])
    right_upper, right_lowers = mounting.overlay_directories(job["right"])
    below = [left_upper, *left_lowers] if left_upper else left_lowers
    overlay = job["right"][0]["type"] == "overlay" if job["right"] else False
    if overlay and right_upper and below == right_lowers:
        _upper(writer, right_upper, "", right_lowers)
    elif overlay and not right_upper and right_lowers[1:] == below and right_lowers:
        _upper(writer, right_lowers[0], "", below)  # a view of a committed snapshot against its parent
    else:
        mounting.private_namespace()
        target = job["target"]
        mounting.cover(target)
        left = mounting.mount_all(job["left"], os.path.join(target, "left")) if job["left"] else ""
        right = mounting.mount_all(job["right"], os.path.join(target, "right"))
        _both(writer, left, right, "", [])
    sink.write(tar.END)
    digest = sink.finish()
    os.close(out)
    return {"digest": digest, "size": sink.size}
