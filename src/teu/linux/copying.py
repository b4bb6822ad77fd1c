# SPDX-License-Identifier: Apache-2.0
"""What is in one folder into another one that others may change meanwhile. Called by teud to fill volumes; the
builder, which copies in other ways, has the single steps of it from here.

The source holds still, but is any image's: as deep and as strange as it likes. The target is a volume, and a container
that has it may move any folder away and put a link to anywhere in its place. So everything is made, opened and changed
by the descriptor of the folder that it is in, no link is followed, nothing is put upon what is there already, and all
that is left of a name once it is made is a descriptor. Nothing recurses; two folders on each side are open at once.
"""

from __future__ import annotations

import errno
import os
import stat

from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from teu.linux.trees import identity, up

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_NODE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_MAX = 4000
_CHUNK = 1 << 30


def copy_tree(source: int, target: int) -> None:
    """Everything below the open folder `source`, and its own attributes, to the open folder `target`: owners, modes,
    times, links, hard links, holes, devices and extended attributes.

    Where another process puts something of the same name there first, that stays. OSError, ESTALE where a folder is
    moved to another one while it is filled."""
    _Copy(target).run(source)


class _Copy:
    def __init__(self, target: int) -> None:
        self._target = target
        # Of files with several names: what they are in the source -> the first name's path, and what that made.
        self._linked: dict[tuple[int, int], tuple[bytes, tuple[int, int]]] = {}

    def run(self, source: int) -> None:
        here = os.open(".", _FOLDER | os.O_CLOEXEC, dir_fd=source)
        there = os.open(".", _FOLDER | os.O_CLOEXEC, dir_fd=self._target)
        way = [(b"", identity(here), identity(there), _names(here), True)]
        try:
            while True:
                _, _, _, todo, ours = way[-1]
                if todo:
                    name = todo.pop()
                    status = os.stat(name, dir_fd=here, follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode):
                        self._leaf(here, there, name, status, [level[0] for level in way[1:]])
                        continue
                    made = _make_folder(there, name)
                    below = _enter(there, name)
                    if below >= 0:
                        os.close(there)
                        there = below
                        below = os.open(name, _FOLDER | os.O_CLOEXEC, dir_fd=here)
                        os.close(here)
                        here = below
                        way.append((name, identity(here), identity(there), _names(here), made))
                    continue
                if ours:
                    copy_attributes(here, there)
                way.pop()
                if not way:
                    return
                here = up(here, way[-1][1])
                there = up(there, way[-1][2])
        finally:
            os.close(here)
            os.close(there)

    def _leaf(self, here: int, there: int, name: bytes, status: os.stat_result, folders: list[bytes]) -> None:
        origin = os.open(name, _NODE, dir_fd=here)
        try:
            key = status.st_dev, status.st_ino
            if key in self._linked and self._link(there, name, *self._linked[key]):
                return
            made = make_node(origin, there, name, status)
            if made < 0:
                return
            try:
                copy_attributes(origin, made)
                if status.st_nlink > 1:
                    path = b"/".join([*folders, name])
                    if len(path) <= _PATH_MAX:
                        self._linked.setdefault(key, (path, identity(made)))
            finally:
                os.close(made)
        except FileExistsError:
            pass
        finally:
            os.close(origin)

    def _link(self, there: int, name: bytes, path: bytes, expected: tuple[int, int]) -> bool:
        """One more name for what was made at path; False where that is no longer there."""
        try:
            first = openat2(self._target, os.fsdecode(path), _NODE, _INSIDE)
        except OSError:
            return False
        try:
            if identity(first) != expected:
                return False
            os.link(_by_descriptor(first), name, dst_dir_fd=there, follow_symlinks=True)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EMLINK):
                raise
            return False
        finally:
            os.close(first)
        return True


def _names(folder: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(folder)]


def _by_descriptor(descriptor: int) -> str:
    """A path for calls that take none: the kernel goes to what is open, be it a link, and looks up no name."""
    return f"/proc/self/fd/{descriptor}"


def _make_folder(parent: int, name: bytes) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def _enter(parent: int, name: bytes) -> int:
    """The folder of this name; -1 where another process has put something else there."""
    try:
        return openat2(parent, os.fsdecode(name), _FOLDER, _INSIDE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            return -1
        raise


def make_node(origin: int, parent: int, name: bytes, status: os.stat_result) -> int:
    """Anything but a folder; a descriptor of what was made, -1 where another process has taken it away already.
    FileExistsError where there is something."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            copy_contents(origin, made, status.st_size)
        except BaseException:
            os.close(made)
            raise
        return made
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(b"", dir_fd=origin), name, dir_fd=parent)
    else:
        os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=parent)
    try:
        made = os.open(name, _NODE, dir_fd=parent)
    except FileNotFoundError:
        return -1
    found = os.fstat(made)
    if (stat.S_IFMT(found.st_mode), found.st_rdev, found.st_nlink) != (kind, status.st_rdev, 1):
        os.close(made)
        return -1
    return made


def copy_contents(origin: int, target: int, size: int) -> None:
    """The bytes of a file; its holes stay holes."""
    source = os.open(_by_descriptor(origin), os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 0
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
                end = os.lseek(source, at, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # a hole up to the end
                    raise
                break
            os.lseek(source, at, os.SEEK_SET)
            os.lseek(target, at, os.SEEK_SET)
            while at < end:
                count = os.sendfile(target, source, None, min(end - at, _CHUNK))
                if not count:
                    break
                at += count
        os.ftruncate(target, size)
    finally:
        os.close(source)


def copy_attributes(source: int, target: int) -> None:
    """Owner, mode, extended attributes and times of what is open, in the order in which none undoes another."""
    before, after = _by_descriptor(source), _by_descriptor(target)
    status = os.stat(source)
    os.chown(after, status.st_uid, status.st_gid)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(after, stat.S_IMODE(status.st_mode))
    try:
        attributes = os.listxattr(before)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        attributes = []
    for attribute in attributes:
        try:
            os.setxattr(after, attribute, os.getxattr(before, attribute))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):  # this file system, or kind of file, has none such
                raise
    os.utime(after, ns=(status.st_atime_ns, status.st_mtime_ns))
