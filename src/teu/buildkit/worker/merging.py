# SPDX-License-Identifier: Apache-2.0
"""What one tree has changed of another, into a third one: merges and differences, as BuildKit means them.

Files are linked, not copied, where both trees are on one file system: what is committed does not change any more, so a
second name for it costs nothing. (In an overlay a file that is written to is copied first.)

Where the changed tree is an overlay upon the other one, its own folder says what was changed: a device 0/0 is a removed
name, a folder with trusted.overlay.opaque hides what is below it. Else both trees are walked and compared. The target
is written into the same way: what is removed from below an overlay gets a device 0/0.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence

from teu.buildkit.core.snapshots import Mount
from teu.buildkit.worker import mounting
from teu.linux.copying import copy_attributes, make_node
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from teu.linux.trees import remove_tree, walk

OVERLAY = "trusted.overlay."
OPAQUE = OVERLAY + "opaque"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_WAY = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_PATH_MAX = 4000
_PIECE = 1 << 20


class _Strange(Exception):
    """The overlay's own folder says it in a way that is not read here."""


def apply(
    places: mounting.Places,
    target: Sequence[Mount],
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    opaque: Callable[[], bool],
) -> int:
    """Change the target, an active snapshot, as `upper` has changed `lower` (none: an empty tree). Bytes that had to be
    copied. Raises OSError.

    `opaque`: whether a folder that was removed and made again hides all that is where it goes; else it is what is in it
    that was removed and made. Layers say the one or the other, and a merge has to be what its layers unpack to."""
    into = mounting.overlay_folders(target)
    if into is None or not into[0]:
        with places.mounted(target) as place:
            return _apply(places, place, False, lower, upper, opaque)
    return _apply(places, into[0], bool(into[1]), lower, upper, opaque)


def _apply(
    places: mounting.Places,
    place: str,
    whiteouts: bool,
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    opaque: Callable[[], bool],
) -> int:
    own = _own_folder(lower, upper)
    if own is not None:
        try:
            with _opened(own) as top:
                _check(top)
        except _Strange:
            own = None
    with _Target(place, whiteouts) as into:
        if own is not None:
            with _opened(own) as top, places.mounted(lower) if lower else _Nothing() as below:
                _overlay(top, into, below, opaque)
            return into.copied
        with (
            places.mounted(lower) if lower else _Nothing() as below,
            places.mounted(upper) if upper else _Nothing() as above,
        ):
            _compare(below, above, into)
        return into.copied


class _Nothing:
    """In place of a mounted tree."""

    def __enter__(self) -> str:
        return ""

    def __exit__(self, *_: object) -> None:
        pass


class _opened:
    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _own_folder(lower: Sequence[Mount], upper: Sequence[Mount]) -> str | None:
    """The folder that has what upper changed, where upper is one layer of an overlay upon lower."""
    above = mounting.overlay_folders(upper) if upper else None
    if above is None:
        return None
    folders = [folder for folder in (above[0], *above[1]) if folder]
    if not lower:
        return folders[0] if len(folders) == 1 else None
    below = mounting.overlay_folders(lower)
    if below is None:
        return None
    return folders[0] if folders[1:] == [folder for folder in (below[0], *below[1]) if folder] else None


def _check(top: int) -> None:
    for _, folder, name, _ in walk(top):
        place = f"/proc/self/fd/{folder}/{os.fsdecode(name)}"
        for attribute in _attributes(place):
            if attribute in (OVERLAY + "redirect", OVERLAY + "metacopy"):
                raise _Strange


def _attributes(place: str) -> list[str]:
    try:
        return os.listxattr(place, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA):
            return []
        raise


def _overlay(top: int, into: _Target, below: str, opaque: Callable[[], bool]) -> None:
    into.root_like(top)
    for path, folder, name, status in walk(top):
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            into.remove(path)
        elif stat.S_ISDIR(status.st_mode):
            anew = _value(folder, name, OPAQUE) == b"y"
            hides = anew and opaque()
            into.folder(path, folder, name, hides)
            if anew and not hides and below:
                for gone in _gone(below, path, folder, name):
                    into.remove(gone)
        else:
            into.leaf(path, folder, name, status)
    into.finish()


def _gone(below: str, path: bytes, folder: int, name: bytes) -> Iterator[bytes]:
    """What was in a folder that was made again, and is not any more."""
    with _opened(below) as root:
        before = _Places(root)
        now = os.open(name, _FOLDER, dir_fd=folder)
        after = _Places(now)
        try:
            try:
                top = os.dup(before.at(path))
            except OSError:
                return
            try:
                gone = b""
                for inner, _, _, _ in walk(top):
                    if gone and inner.startswith(gone + b"/"):
                        continue
                    if after.status(inner) is None:
                        gone = inner
                        yield path + b"/" + inner
            finally:
                os.close(top)
        finally:
            before.close()
            after.close()
            os.close(now)


def _value(folder: int, name: bytes, attribute: str) -> bytes:
    try:
        return os.getxattr(f"/proc/self/fd/{folder}/{os.fsdecode(name)}", attribute, follow_symlinks=False)
    except OSError:
        return b""


def _compare(below: str, above: str, into: _Target) -> None:
    """Walk both trees: what is only in `below` is removed, what is new or another is made."""
    before = os.open(below, _FOLDER) if below else -1
    after = os.open(above, _FOLDER) if above else -1
    try:
        if after >= 0:
            into.root_like(after)
        if before >= 0:
            old, other = _Places(after), _Places(before)
            gone = b""
            for path, folder, name, status in walk(before):
                if gone and path.startswith(gone + b"/"):
                    continue
                now = old.status(path) if after >= 0 else None
                if now is None:
                    gone = path
                    into.remove(path)
                elif stat.S_ISDIR(status.st_mode) and stat.S_ISDIR(now.st_mode):
                    into.later(path, folder, name)
            old.close()
            into.forget_later()
        else:
            other = _Places(-1)
        if after >= 0:
            for path, folder, name, status in walk(after):
                was = other.status(path) if before >= 0 else None
                if stat.S_ISDIR(status.st_mode):
                    same = was is not None and stat.S_ISDIR(was.st_mode)
                    if same and was is not None and _alike(was, status):
                        into.later(path, folder, name)
                    else:
                        into.folder(path, folder, name, opaque=was is not None and not same)
                elif was is None or not _same(other, path, was, folder, name, status):
                    into.leaf(path, folder, name, status)
        other.close()
        into.finish()
    finally:
        for descriptor in (before, after):
            if descriptor >= 0:
                os.close(descriptor)


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns) == (
        other.st_mode,
        other.st_uid,
        other.st_gid,
        other.st_mtime_ns,
    )


def _same(before: _Places, path: bytes, was: os.stat_result, folder: int, name: bytes, status: os.stat_result) -> bool:
    """Whether a leaf is as it was. Equal times and sizes are taken for equal contents, unless the times are whole
    seconds, as what comes out of archives has."""
    if (was.st_dev, was.st_ino) == (status.st_dev, status.st_ino):
        return True
    if stat.S_IFMT(was.st_mode) != stat.S_IFMT(status.st_mode) or not _alike(was, status):
        return False
    if was.st_rdev != status.st_rdev or was.st_size != status.st_size:
        return False
    parent, own = before.parent(path), path.rpartition(b"/")[2]
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(own, dir_fd=parent) == os.readlink(name, dir_fd=folder)
    first = f"/proc/self/fd/{parent}/{os.fsdecode(own)}"
    second = f"/proc/self/fd/{folder}/{os.fsdecode(name)}"
    if {key: os.getxattr(first, key, follow_symlinks=False) for key in _attributes(first)} != {
        key: os.getxattr(second, key, follow_symlinks=False) for key in _attributes(second)
    }:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_mtime_ns % 1_000_000_000:
        return True
    return _same_bytes(parent, own, folder, name)


def _same_bytes(one_folder: int, one: bytes, other_folder: int, other: bytes) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    first = os.open(one, flags, dir_fd=one_folder)
    try:
        second = os.open(other, flags, dir_fd=other_folder)
        try:
            while True:
                piece = os.read(first, _PIECE)
                if piece != os.read(second, _PIECE):
                    return False
                if not piece:
                    return True
        finally:
            os.close(second)
    finally:
        os.close(first)


def _steps(path: bytes) -> Iterator[bytes]:
    """A path in pieces that are short enough for one system call."""
    while len(path) > _PATH_MAX:
        cut = path.rindex(b"/", 0, _PATH_MAX)
        yield path[:cut]
        path = path[cut + 1 :]
    yield path or b"."


class _Places:
    """Folders of a tree by their paths; the last one stays open, as what comes next is mostly in it."""

    def __init__(self, top: int) -> None:
        self.top = top
        self._path: bytes | None = None
        self._open = -1

    def close(self) -> None:
        if self._open >= 0:
            os.close(self._open)
            self._open, self._path = -1, None

    def at(self, path: bytes) -> int:
        """The folder of that path. Raises OSError where there is none; no link is followed."""
        if self._path == path:
            return self._open
        here = os.dup(self.top)
        for step in _steps(path):
            try:
                further = openat2(here, os.fsdecode(step), _FOLDER, _WAY)
            finally:
                os.close(here)
            here = further
        self.close()
        self._open, self._path = here, path
        return here

    def parent(self, path: bytes) -> int:
        return self.at(path.rpartition(b"/")[0])

    def status(self, path: bytes) -> os.stat_result | None:
        try:
            return os.stat(path.rpartition(b"/")[2], dir_fd=self.parent(path), follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise


class _Target:
    """What is written into. With `whiteouts` it is the upper folder of an overlay that has something below it."""

    def __init__(self, place: str, whiteouts: bool) -> None:
        self._top = os.open(place, _FOLDER)
        self._places = _Places(self._top)
        self._whiteouts = whiteouts
        self._times: list[tuple[bytes, int, int]] = []
        self._later: list[tuple[bytes, os.stat_result, list[tuple[str, bytes]]]] = []
        self.copied = 0

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        self._places.close()
        os.close(self._top)

    def root_like(self, source: int) -> None:
        """The root itself is as that one."""
        _like(source, self._top)
        status = os.fstat(source)
        self._times.append((b"", status.st_atime_ns, status.st_mtime_ns))

    def remove(self, path: bytes) -> None:
        if self._whiteouts:
            self._make_later(path)
        parent, name = self._parent(path), path.rpartition(b"/")[2]
        if parent < 0:
            return
        self._clear(parent, name)
        if self._whiteouts:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)

    def later(self, path: bytes, folder: int, name: bytes) -> None:
        """A folder that is as it was: made only where something in it has to be."""
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        place = f"/proc/self/fd/{folder}/{os.fsdecode(name)}"
        attributes = [
            (key, os.getxattr(place, key, follow_symlinks=False))
            for key in _attributes(place)
            if not key.startswith(OVERLAY)
        ]
        while self._later and not path.startswith(self._later[-1][0] + b"/"):
            self._later.pop()
        self._later.append((path, status, attributes))

    def forget_later(self) -> None:
        self._later.clear()

    def _make_later(self, path: bytes) -> None:
        while self._later and not path.startswith(self._later[-1][0] + b"/"):
            self._later.pop()
        for folder, status, attributes in self._later:
            parent, name = self._places.parent(folder), folder.rpartition(b"/")[2]
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                continue
            made = os.open(name, _FOLDER, dir_fd=parent)
            try:
                os.fchown(made, status.st_uid, status.st_gid)
                os.fchmod(made, stat.S_IMODE(status.st_mode))
                for key, value in attributes:
                    os.setxattr(made, key, value)
            finally:
                os.close(made)
            self._times.append((folder, status.st_atime_ns, status.st_mtime_ns))
        self._later.clear()

    def _parent(self, path: bytes) -> int:
        try:
            return self._places.parent(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return -1
            raise

    def folder(self, path: bytes, folder: int, name: bytes, opaque: bool) -> None:
        """A folder with the attributes of that one; one that is there is merged with it, unless `opaque`."""
        self._make_later(path)
        parent, own = self._places.parent(path), path.rpartition(b"/")[2]
        try:
            status = os.stat(own, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            hidden, there = False, False
        else:
            there = stat.S_ISDIR(status.st_mode)
            # What was removed below, or is no folder, must not show through.
            hidden = not there
            if opaque or not there:
                self._clear(parent, own)
                there = False
        if not there:
            os.mkdir(own, 0o700, dir_fd=parent)
        made = os.open(own, _FOLDER, dir_fd=parent)
        origin = os.open(name, _FOLDER, dir_fd=folder)
        try:
            _like(origin, made)
            if self._whiteouts and (opaque or hidden):
                os.setxattr(made, OPAQUE, b"y")
            status = os.fstat(origin)
            self._times.append((path, status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(origin)
            os.close(made)

    def leaf(self, path: bytes, folder: int, name: bytes, status: os.stat_result) -> None:
        """Anything but a folder, in place of whatever is there."""
        self._make_later(path)
        parent, own = self._places.parent(path), path.rpartition(b"/")[2]
        self._clear(parent, own)
        try:
            os.link(name, own, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                raise
        origin = os.open(name, _NODE, dir_fd=folder)
        try:
            made = make_node(origin, parent, own, status)
            try:
                _like(origin, made)
                self.copied += status.st_blocks * 512
            finally:
                os.close(made)
        finally:
            os.close(origin)

    def _clear(self, parent: int, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            remove_tree(f"/proc/self/fd/{parent}/{os.fsdecode(name)}")

    def finish(self) -> None:
        """The folders' times, which what was made in them has changed."""
        for path, access, change in reversed(self._times):
            try:
                place = self._places.at(path) if path else self._top
                os.utime(place, ns=(access, change))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise


def _like(origin: int, made: int) -> None:
    """Attributes without those of the overlay that it was in."""
    copy_attributes(origin, made)
    place = f"/proc/self/fd/{made}"
    try:
        names = os.listxattr(place)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return
    for key in names:
        if key.startswith(OVERLAY):
            os.removexattr(place, key)
