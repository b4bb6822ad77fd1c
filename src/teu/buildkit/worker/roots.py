# SPDX-License-Identifier: Apache-2.0
"""A step's root before and after the step: its working directory, and the places of mounts that it has not itself.

The root is opened as a mount that is nowhere: no other process sees it, and it goes with its descriptor; or it is where
the executor has mounted it, in a folder of root's alone. What is in it was made by others, so a path is looked up
inside it by the kernel, and what was found is a descriptor from then on (CVE-2024-23652, CVE-2024-23653: a stub that
turned into a link leads nobody to a file of the host).

A mount needs a place. Where there is none it is made before the step and taken away after it, if nothing was put into
it: then the result has no trace of it, not even in the times of the folders around. BuildKit leaves the work to the
runtime and takes the same away.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Mount
from teu.linux import inside, mountflags, mounts, netns

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PLAIN = inside.RESOLVE_IN_ROOT | inside.RESOLVE_NO_SYMLINKS | inside.RESOLVE_NO_MAGICLINKS | inside.RESOLVE_NO_XDEV
_ATTRIBUTES = (
    (mounts.MS_RDONLY, mounts.MOUNT_ATTR_RDONLY),
    (mounts.MS_NOSUID, mounts.MOUNT_ATTR_NOSUID),
    (mounts.MS_NODEV, mounts.MOUNT_ATTR_NODEV),
    (mounts.MS_NOEXEC, mounts.MOUNT_ATTR_NOEXEC),
    (mounts.MS_NOATIME, mounts.MOUNT_ATTR_NOATIME),
)
# What the runtime mounts in every step: nothing is made below, where nobody would see it.
COVERED = ("/proc", "/dev", "/sys")


@contextmanager
def opened(tree: Sequence[Mount]) -> Iterator[int]:
    """The root of a snapshot's mounts, as a descriptor, for the block. Raises OSError."""
    if len(tree) != 1:
        raise OSError(errno.EINVAL, f"a root of {len(tree)} mounts")
    # In a thread of its own: what does not fit fsconfig(2) is mounted in another mount namespace.
    top = netns.in_thread(lambda: _mounted(tree[0]))
    try:
        root = os.open(".", _FOLDER | os.O_CLOEXEC, dir_fd=top)
        try:
            yield root
        finally:
            os.close(root)
    finally:
        os.close(top)


def _mounted(one: Mount) -> int:
    flags, _, data = mountflags.parse(one.options)
    attributes = sum(attribute for flag, attribute in _ATTRIBUTES if flags & flag)
    if flags & mounts.MS_BIND or one.type == "bind":
        top = mounts.open_tree(mounts.AT_FDCWD, one.source, recursive=bool(flags & mounts.MS_REC))
        try:
            if attributes:
                mounts.mount_setattr(top, attributes)
        except BaseException:
            os.close(top)
            raise
        return top
    return mounts.new_filesystem(one.type, one.source, data, attributes)


def _times(folder: int) -> tuple[int, int]:
    """Of access and change, nanoseconds since 1970."""
    status = os.fstat(folder)
    return status.st_atime_ns, status.st_mtime_ns


def missing(root: int, path: str) -> list[str]:
    """What does not exist of a path in a root, the first folder first; all of them absolute and without links. What is
    below something that is no folder is not missing: it cannot be."""
    real = inside.real_path(root, path)
    found: list[str] = []
    while real != "/":
        try:
            os.close(inside.openat2(root, real, os.O_PATH | os.O_NOFOLLOW, _PLAIN))
        except FileNotFoundError:
            found.append(real)
            real = posixpath.dirname(real)
            continue
        except NotADirectoryError:
            return []
        break
    return found[::-1]


def _at(root: int, path: str) -> tuple[int, str]:
    """(The open folder that a path without links is in, its name there). Raises OSError."""
    folder, name = posixpath.split(path)
    return inside.openat2(root, folder.lstrip("/") or ".", _FOLDER, _PLAIN), name


def make(root: int, path: str, kind: str, done: Callable[[int, str], None] | None = None) -> list[str]:
    """Make what is missing of a path: folders, and at its end a folder ("dir") or an empty file ("file"). What was
    made, the first first. The folder around the first keeps its times. `done` is called with each: its folder, its
    name."""
    made = []
    for part in (parts := missing(root, path)):
        folder, name = _at(root, part)
        try:
            before = _times(folder)
            if part != parts[-1] or kind == "dir":
                os.mkdir(name, 0o755, dir_fd=folder)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=folder))
            made.append(part)
            if done is not None:
                done(folder, name)
            if part == parts[0]:
                os.utime(folder, ns=before)
        finally:
            os.close(folder)
    return made


class Stubs:
    """The places of mounts that were made for a step in its root."""

    def __init__(self, recursive: bool) -> None:
        """`recursive`: the folders that lead to a place go with it."""
        self._recursive = recursive
        self._made: list[str] = []

    def make(self, root: int, places: Iterable[tuple[str, str]]) -> None:
        """`places`: (path, "dir" or "file"), of which those that lie below another are not made: they are covered.
        Raises errors.Error."""
        wanted = dict(places)
        tops = [*COVERED, *wanted]
        for path, kind in sorted(wanted.items()):
            if any(path != top and path.startswith(f"{top}/") for top in tops):
                continue
            try:
                made = make(root, path, kind)
            except OSError as error:
                raise errors.Error(f"failed to make a place for the mount {path}: {error.strerror}") from error
            self._made += made if self._recursive else made[-1:]

    def remove(self, root: int) -> None:
        """Take away what is still empty. Never fails: what somebody has made of it stays."""
        for path in reversed(self._made):
            try:
                folder, name = _at(root, path)
            except OSError:
                continue
            try:
                _remove(folder, name)
            except OSError:
                pass
            finally:
                os.close(folder)
        self._made.clear()


def _remove(folder: int, name: str) -> None:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    before = _times(folder)
    if stat.S_ISDIR(status.st_mode):
        os.rmdir(name, dir_fd=folder)
    elif stat.S_ISREG(status.st_mode) and not status.st_size:
        os.unlink(name, dir_fd=folder)
    else:
        return
    os.utime(folder, ns=before)


def make_directory(root: int, path: str, covers: Iterable[str], uid: int, gid: int) -> None:
    """A step's working directory: it is made where it is missing, and is the step's user's then. Below `covers`, the
    mounts of the step, it is the runtime's to make. Raises errors.Error.

    A process of /proc is no place to be: what it leads to may be the host's (CVE-2024-21626)."""
    where = posixpath.normpath("/" + path.lstrip("/"))
    try:
        real = inside.real_path(root, where)
        for one in (where, real):
            parts = one.split("/")[1:]
            if parts[0] == "proc" and len(parts) > 1 and (parts[1].isdigit() or parts[1] in ("self", "thread-self")):
                raise errors.InvalidArgument(f"working directory {path} leads into /proc")
        if any(real == top or real.startswith(f"{top.rstrip('/')}/") for top in (*COVERED, *covers)):
            return
        make(root, real, "dir", lambda folder, name: os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False))
        kind = inside.open_in_root(root, real, os.O_PATH | os.O_DIRECTORY)
        os.close(kind)
    except OSError as error:
        raise errors.Error(f"failed to create working directory {path}: {error.strerror}") from error
