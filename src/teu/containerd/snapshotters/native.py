# SPDX-License-Identifier: Apache-2.0
"""The snapshotter without a layering file system: each snapshot is a full copy of its parent, bind mounted.

    ID/fs    the whole tree

Slow and large, but it works on every file system, also where overlayfs cannot.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from fcntl import ioctl

from teu.containerd.core.messages import Mount
from teu.containerd.snapshotters.interface import ACTIVE
from teu.containerd.snapshotters.local import LocalSnapshotter, mount

FICLONE = 0x40049409


def _copy_file(source: str, target: str, size: int) -> None:
    """Data of a regular file: shared with the source where the file system can, holes kept."""
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with suppress(OSError):
                ioctl(writing, FICLONE, reading)
                return
            os.ftruncate(writing, size)
            at = 0
            while at < size:
                try:
                    start = os.lseek(reading, at, os.SEEK_DATA)
                    at = os.lseek(reading, start, os.SEEK_HOLE)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        break  # a hole to the end
                    raise
                os.lseek(reading, start, os.SEEK_SET)
                os.lseek(writing, start, os.SEEK_SET)
                left = at - start
                while left:
                    done = os.sendfile(writing, reading, None, left)
                    if not done:
                        break
                    left -= done
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def copy_attributes(source: str, target: str, found: os.stat_result) -> None:
    """Owner, mode, times and extended attributes of `source`, whose status is `found`, to `target`; neither is
    followed. Attributes that the file system of the target does not take are left out. Raises OSError."""
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        with suppress(OSError):
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    if (found.st_mode & 0o170000) != 0o120000:
        os.chmod(target, found.st_mode & 0o7777)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def copy_tree(source: str, target: str) -> None:
    """`target` exists. Keeps owners, modes, times, xattrs, hard links, holes and devices."""
    links: dict[tuple[int, int], str] = {}
    directories = [(source, target)]
    for here, there in directories:  # grows while it is walked
        with os.scandir(here) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                path = os.path.join(there, entry.name)
                identity = (found.st_dev, found.st_ino)
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(path, 0o700)
                    directories.append((entry.path, path))
                    continue
                if identity in links:
                    os.link(links[identity], path, follow_symlinks=False)
                    continue
                if found.st_nlink > 1:
                    links[identity] = path
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), path)
                elif entry.is_file(follow_symlinks=False):
                    _copy_file(entry.path, path, found.st_size)
                else:
                    os.mknod(path, found.st_mode, found.st_rdev)
                copy_attributes(entry.path, path, found)
    for here, there in reversed(directories):  # directories last: their times
        copy_attributes(here, there, os.lstat(here))


class Native(LocalSnapshotter):
    """The snapshotter of full copies, which works on every file system."""

    name = "native"

    def make(self, id: int, kind: int, parents: list[int], labels: dict[str, str]) -> None:
        os.makedirs(self.folder(id), mode=0o700, exist_ok=True)
        if parents and kind != ACTIVE:
            return  # a view shows the parent itself
        os.makedirs(self.content(id), mode=0o755, exist_ok=True)
        if parents:
            copy_tree(self.content(parents[0]), self.content(id))

    def tell(self, id: int, kind: int, parents: list[int], labels: dict[str, str]) -> list[Mount]:
        if kind == ACTIVE:
            return [mount("bind", self.content(id), "rbind", "rw")]
        source = self.content(parents[0]) if parents else self.content(id)
        return [mount("bind", source, "rbind", "ro")]
