# SPDX-License-Identifier: Apache-2.0
"""Reading in results: files, folders, what a path is. Called for the built-in frontend and for those of others.

What is in a result was made by a container: every path is looked up inside it alone, links included, and nothing that
is no plain file is read. Raises OSError, as the kernel has it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from teu.api.buildkit.fsutil.stat_pb2 import Stat
from teu.buildkit.core.snapshots import Snapshot
from teu.linux import inside
from teu.oci.fsutil import GO_SYMLINK, go_mode
from teu.oci.patterns import wildcard

ENTRIES_MAX = 100_000  # of one folder


@contextmanager
def _root(snapshot: Snapshot | None) -> Iterator[int]:
    if snapshot is None:
        raise FileNotFoundError(errno.ENOENT, "no such file or directory")
    with snapshot.mounted() as folder:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def read(snapshot: Snapshot | None, path: str, offset: int, length: int) -> bytes:
    """At most `length` bytes of a plain file, from `offset` on."""
    with _root(snapshot) as root:
        return read_at(root, path, offset, length)


def read_at(root: int, path: str, offset: int, length: int) -> bytes:
    """The same below an open folder."""
    with open(inside.open_file(root, path), "rb", buffering=0) as file:
        pieces = []
        while length > 0 and (data := os.pread(file.fileno(), min(length, 1 << 20), offset)):
            pieces.append(data)
            offset += len(data)
            length -= len(data)
    return b"".join(pieces)


def entries(snapshot: Snapshot | None, path: str, pattern: str = "") -> list[Stat]:
    """What is in a folder, by name; those that match a pattern of path.Match. Raises patterns.BadPattern, too."""
    if snapshot is None and path.strip("/") in ("", "."):
        return []
    with _root(snapshot) as root:
        return entries_at(root, path, pattern)


def entries_at(root: int, path: str, pattern: str = "") -> list[Stat]:
    chosen = wildcard(pattern) if pattern else None
    folder = inside.open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = sorted(os.listdir(folder))
        if len(names) > ENTRIES_MAX:
            raise OSError(errno.E2BIG, f"more than {ENTRIES_MAX} entries")
        found = []
        for name in names:
            if chosen is None or chosen.fullmatch(name):
                try:
                    found.append(_entry(folder, name))
                except FileNotFoundError:
                    continue
        return found
    finally:
        os.close(folder)


def status(snapshot: Snapshot | None, path: str) -> Stat:
    """What a path is, links followed."""
    if snapshot is None and path.strip("/") in ("", "."):
        return Stat(path="/", mode=go_mode(stat.S_IFDIR | 0o755))
    with _root(snapshot) as root:
        return status_at(root, path)


def status_at(root: int, path: str) -> Stat:
    descriptor = inside.open_in_root(root, path)
    try:
        return _filled(os.fstat(descriptor), path.rstrip("/").rpartition("/")[2] or "/")
    finally:
        os.close(descriptor)


def _entry(folder: int, name: str) -> Stat:
    found = _filled(os.stat(name, dir_fd=folder, follow_symlinks=False), name)
    if found.mode & GO_SYMLINK:
        found.linkname = _text(os.readlink(name, dir_fd=folder))
    return found


def _text(name: str) -> str:
    """A name as protobuf takes it: what is no UTF-8 of it is shown as such."""
    return os.fsencode(name).decode("utf-8", "replace")


def _filled(status: os.stat_result, name: str) -> Stat:
    found = Stat(
        path=_text(name),
        mode=go_mode(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        modTime=status.st_mtime_ns,
    )
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
        found.size = status.st_size
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        found.devmajor, found.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return found
