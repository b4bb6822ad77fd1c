# SPDX-License-Identifier: Apache-2.0
"""Paths inside a tree that a container, an image or a client can change. Called by all who open something there.

The tree is an open folder; a path in it is looked up by the kernel (openat2), which keeps links and ".." inside. What
was opened is a descriptor from then on: the path is not looked up a second time, for it may lead elsewhere by then.
"""

from __future__ import annotations

import errno
import os
from struct import pack

from teu.linux.syscalls import NR_openat2, buffer, syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

TRIES = 64  # so often a look-up that raced with a rename is tried again


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """A descriptor (close-on-exec) of a path below directory, resolved as `resolve` says.

    OSError: EXDEV where the path leads out or across a mount that `resolve` forbids; EAGAIN where the tree is being
    renamed all the while."""
    how = buffer(pack("QQQ", flags | os.O_CLOEXEC, mode, resolve))
    for _ in range(TRIES):
        try:
            return syscall(f"open {path}", NR_openat2, directory, os.fsencode(path), how, 24)
        except BlockingIOError:  # EAGAIN: a rename or a mount raced with a look-up of ".."
            continue
    raise OSError(errno.EAGAIN, f"open {path}: the path keeps changing")


def open_in_root(root: int, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
    """Open path as if root were "/": symbolic links and ".." cannot lead out, magic links are refused."""
    return openat2(root, path.lstrip("/") or ".", flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, mode)


def open_beneath(folder: int, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
    """Open path below folder; OSError EXDEV where a link or ".." leads out, in place of staying inside."""
    return openat2(folder, path or ".", flags, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS, mode)


def exists_in_root(root: int, path: str) -> bool:
    """Whether the path leads to something below the root, which is a descriptor. Links are followed, and do not lead
    out."""
    try:
        os.close(open_in_root(root, path))
    except OSError:
        return False
    return True


LINKS_MAX = 40  # in one path, as the kernel has it


def _reversed_parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


class _Way:
    """A walk through a path as if root were "/", a component at a time: `done` is behind, `todo` (the next one last)
    ahead."""

    def __init__(self, root: int, path: str) -> None:
        self.root = root
        self.path = path
        self.todo = _reversed_parts(path)
        self.done: list[str] = []
        self._links = 0

    def next(self) -> str:
        """The next component; "" at the end. Those that lead back are gone then."""
        while self.todo:
            part = self.todo.pop()
            if part != "..":
                return part
            if self.done:
                self.done.pop()
        return ""

    def enter(self, part: str) -> bool:
        """Go on through a component, which may be a link. False: one link too many, left where it is.

        OSError where there is no such file, or none that can be looked at."""
        way = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        fd = openat2(self.root, "/".join([*self.done, part]), os.O_PATH | os.O_NOFOLLOW, way)
        try:
            link = os.readlink("", dir_fd=fd) if os.stat(fd).st_mode & 0o170000 == 0o120000 else None
        finally:
            os.close(fd)
        self._links += link is not None
        if link is None or self._links > LINKS_MAX:
            self.done.append(part)
            return link is None
        if link.startswith("/"):
            self.done.clear()
        self.todo += _reversed_parts(link)
        return True


def real_path(root: int, path: str) -> str:
    """Where path leads if root were "/": absolute, without links and "..", as far as it exists; what does not exist, or
    leads in circles, stays as it is written. The tree may change: this is to be told, not to be opened."""
    way = _Way(root, path)
    while part := way.next():
        try:
            way.enter(part)
        except OSError:
            way.done.append(part)
    return "/" + "/".join(way.done)


def make_in_root(root: int, path: str, kind: str = "dir", mode: int = 0o755) -> int:
    """Open path in root (O_PATH), making what is missing: folders, and at its end a folder or an empty file.

    Links are followed inside the root, dangling ones too: what they name is made.
    """
    try:
        return open_in_root(root, path)
    except FileNotFoundError:
        pass
    way = _Way(root, path)
    while part := way.next():
        try:
            if not way.enter(part):
                raise OSError(errno.ELOOP, f"{path}: too many levels of symbolic links")
        except FileNotFoundError:
            last = not way.todo
            parent = open_in_root(root, "/".join(way.done))
            try:
                _make(parent, part, kind if last else "dir", mode if last else 0o755)
            finally:
                os.close(parent)
            way.done.append(part)
    return open_in_root(root, path)


def _make(parent: int, name: str, kind: str, mode: int) -> None:
    try:
        if kind == "dir":
            os.mkdir(name, mode, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent))
    except FileExistsError:
        pass  # another process made it meanwhile: the next open decides what it is


def open_file(root: int, path: str) -> int:
    """Open a regular file as if root were "/", to be read.

    What is none is not opened at all, for a device may act on that alone, and may be the host's: IsADirectoryError,
    OSError EINVAL."""
    place = open_in_root(root, path)
    try:
        kind = os.fstat(place).st_mode & 0o170000
        if kind == 0o040000:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if kind != 0o100000:
            raise OSError(errno.EINVAL, "not a regular file")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)


def read_file(root: int, path: str, limit: int = 16 << 20) -> bytes:
    """The first `limit` bytes of a regular file; b"" when there is none."""
    try:
        descriptor = open_file(root, path)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:
        return file.read(limit)
