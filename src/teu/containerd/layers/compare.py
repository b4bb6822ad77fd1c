# SPDX-License-Identifier: Apache-2.0
"""Makes a layer of what one tree has changed over another. Called by `worker`.

Where the two are an overlay snapshot and its own parent, the upper directory is the answer: whiteouts and opaque marks
of overlayfs become those of the layer format. Anything else is compared entry by entry: a file counts as unchanged when
type, mode, owner, size, exact time, link target and capabilities agree.

Entries come sorted by name, with the directories above them, so that the same change makes the same layer. Times are
exact: whole seconds stand in the header, fractions in a pax record.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat

from teu.containerd.layers import mounting, streams
from teu.linux import trees, writeback
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from teu.oci import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

OPAQUE_MARKS = ("trusted.overlay.opaque", "user.overlay.opaque")
_KEPT = ("security.capability", "user.", "system.posix_acl_")
FEW_ENTRIES, FEW_BYTES = 200, 1 << 20  # what is packed in some milliseconds
LEAN_BYTES = 64 << 10  # from so many bytes on it pays to leave a file where it is
FLUSH_EVERY = 32 << 20  # bytes: begin writing back early, so that the commit's fsync is short
PATH_MAX = 4096  # with the zero byte: no layer with a longer name could be unpacked again


class _Writer:
    def __init__(self, sink: streams.Deflated, *, lean: bool = False) -> None:
        """`lean`: the content of large files is left out; `parts` tells where."""
        self._sink = sink
        self._lean = lean
        self.parts: list[tuple[int, int, str]] = []  # place in the layer, bytes, name
        self._links: dict[tuple[int, int], str] = {}

    def whiteout(self, parent: str, name: str, moment: int) -> None:
        entry = tar.Entry()
        entry.name = f"{parent}/.wh.{name}" if parent else f".wh.{name}"
        entry.mtime = moment
        self._sink.write(tar.pack(entry))

    def add(self, opened: int, name: str, found: os.stat_result) -> None:
        """What is `opened` (O_PATH), as `name` in the layer."""
        mode = found.st_mode
        if stat.S_ISSOCK(mode):
            return  # a socket is of use to its process only
        if len(os.fsencode(name)) >= PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, f"{os.strerror(errno.ENAMETOOLONG)}: {tar.short(name)}")
        entry = tar.Entry()
        entry.name = name
        entry.mode = stat.S_IMODE(mode)
        entry.uid, entry.gid, entry.mtime = found.st_uid, found.st_gid, found.st_mtime_ns
        size = 0
        if stat.S_ISDIR(mode):
            entry.type, entry.name = tar.DIRECTORY, name + "/"
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
                entry.type, entry.link = tar.SYMLINK, os.readlink("", dir_fd=opened)
            elif stat.S_ISFIFO(mode):
                entry.type = tar.FIFO
            else:
                entry.type = tar.CHARACTER if stat.S_ISCHR(mode) else tar.BLOCK_DEVICE
                entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        if not size:
            entry.xattrs = xattrs(_again(opened))
            self._sink.write(tar.pack(entry))
            return
        # What it is open for already need not be found again for its attributes: most of a layer are small files.
        file = os.open(_again(opened), os.O_RDONLY | os.O_CLOEXEC)
        try:
            entry.xattrs = xattrs(file)
            self._sink.write(tar.pack(entry))
            if self._lean and size >= LEAN_BYTES:
                self._leave_out(file, name, size)
            else:
                self._data(file, size)
        finally:
            os.close(file)

    def _leave_out(self, file: int, name: str, size: int) -> None:
        """Nobody writes to the file: the daemon says so where it asks for this."""
        with mmap.mmap(file, size, prot=mmap.PROT_READ) as data, memoryview(data) as view:
            self.parts.append((self._sink.leave_out(view), size, name))
        self._sink.write(bytes(-size % tar.BLOCK))

    def _data(self, file: int, size: int) -> None:
        left = size
        while left:
            data = os.read(file, min(left, streams.CHUNK))
            if not data:
                data = bytes(min(left, streams.CHUNK))  # it shrank while we read: the header is written
            left -= len(data)
            self._sink.write(data if left else data + bytes(-size % tar.BLOCK))


# What is compared may be in use by its container, which can put a link in the place of a file at any moment: each entry
# is opened once, without following, and all that is told of it is read from there.


def _again(opened: int) -> str:
    return f"/proc/self/fd/{opened}"


@contextlib.contextmanager
def _opened(folder: int, name: bytes | str) -> Iterator[tuple[int, os.stat_result]]:
    """The entry and its status. FileNotFoundError where it has gone."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield fd, os.fstat(fd)
    finally:
        os.close(fd)


def xattrs(file: int | str) -> dict[str, bytes] | None:
    """Those that a layer has, of what is open to be read, or of the path of what is not."""
    try:
        names = os.listxattr(file)
    except OSError:
        return None
    kept = [name for name in names if name.startswith(_KEPT) and not name.startswith("user.overlay.")]
    return {name: os.getxattr(file, name) for name in kept} or None


def is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(opened: int) -> bool:
    for mark in OPAQUE_MARKS:
        try:
            if os.getxattr(_again(opened), mark) == b"y":
                return True
        except OSError:
            pass
    return False


def _folder(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _upper(writer: _Writer, path: str, lowers: list[str]) -> None:
    """An upper directory of overlayfs: all that is in it is a change."""
    top = _folder(path)
    try:
        for inner, folder, base, _ in trees.walk(top):
            name = os.fsdecode(inner)
            parent = name.rpartition("/")[0]
            with contextlib.suppress(FileNotFoundError), _opened(folder, base) as (opened, found):
                if is_whiteout(found):
                    writer.whiteout(parent, os.fsdecode(base), found.st_mtime_ns)
                    continue
                directory = stat.S_ISDIR(found.st_mode)
                if directory and not parent and lowers and _only_copied_up(opened, name, lowers, found):
                    continue
                writer.add(opened, name, found)
                if directory and is_opaque(opened):
                    writer.whiteout(name, ".wh..opq", found.st_mtime_ns)
    finally:
        os.close(top)


def _only_copied_up(opened: int, name: str, lowers: list[str], found: os.stat_result) -> bool:
    """An empty directory that is in the upper layer though nothing of it has changed."""
    with os.scandir(_again(opened)) as inside:
        if next(inside, None) is not None:
            return False
    if is_opaque(opened):
        return False
    for lower in lowers:
        below = _folder(lower)
        try:
            with _opened(below, name) as (before, status):
                return _same(opened, found, before, status)
        except OSError:
            continue
        finally:
            os.close(below)
    return False


def _same(opened: int, found: os.stat_result, old: int, before: os.stat_result) -> bool:
    if (found.st_mode, found.st_uid, found.st_gid) != (before.st_mode, before.st_uid, before.st_gid):
        return False
    if stat.S_ISDIR(found.st_mode):
        return xattrs(_again(opened)) == xattrs(_again(old))
    if (found.st_dev, found.st_ino) == (before.st_dev, before.st_ino):
        return True
    if (found.st_mtime_ns, found.st_rdev) != (before.st_mtime_ns, before.st_rdev):
        return False
    if stat.S_ISLNK(found.st_mode):
        return os.readlink("", dir_fd=opened) == os.readlink("", dir_fd=old)
    return found.st_size == before.st_size and xattrs(_again(opened)) == xattrs(_again(old))


class _Both:
    """Two merged trees, side by side. A directory that has not changed is told only if something below it has."""

    def __init__(self, writer: _Writer, left: str, right: str) -> None:
        self._writer = writer
        self._left = _folder(left) if left else -1
        self._right = _folder(right)
        self._pending: list[str] = []  # directories above, from the top down, that were not told

    def run(self) -> None:
        self._gone("", self._right)
        for inner, folder, base, _ in trees.walk(self._right):
            name = os.fsdecode(inner)
            while self._pending and not name.startswith(self._pending[-1] + "/"):
                self._pending.pop()
            with contextlib.suppress(FileNotFoundError), _opened(folder, base) as (opened, found):
                self._one(name, opened, found)

    def _one(self, name: str, opened: int, found: os.stat_result) -> None:
        directory = stat.S_ISDIR(found.st_mode)
        try:
            old = self._before(name)
        except OSError:  # not there, or below what was no directory
            pass
        else:
            try:
                before = os.fstat(old)
                if _same(opened, found, old, before):
                    if directory:
                        self._pending.append(name)
                        self._gone(name, opened)
                    return
                if directory and stat.S_ISDIR(before.st_mode):
                    self._told()
                    self._writer.add(opened, name, found)
                    self._gone(name, opened)
                    return
            finally:
                os.close(old)
        self._told()
        self._writer.add(opened, name, found)

    def _before(self, name: str) -> int:
        if self._left < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return openat2(self._left, name or ".", os.O_PATH | os.O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)

    def _gone(self, name: str, opened: int) -> None:
        """What the directory had and has not any more."""
        try:
            old = self._before(name)
        except OSError:
            return
        try:
            gone = set(os.listdir(_again(old))) - set(os.listdir(_again(opened)))
        finally:
            os.close(old)
        if gone:
            self._told()
            moment = os.fstat(opened).st_mtime_ns
            for base in sorted(gone):
                self._writer.whiteout(name, base, moment)

    def _told(self) -> None:
        for name in self._pending:
            fd = openat2(self._right, name, os.O_PATH | os.O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
            try:
                self._writer.add(fd, name, os.fstat(fd))
            finally:
                os.close(fd)
        self._pending.clear()


def change(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> tuple[str, list[str]] | None:
    """(The folder of overlayfs that holds the change, the folders below it) where the two are an overlay snapshot and
    its own parent."""
    left_upper, left_lowers = mounting.overlay_directories(left)
    right_upper, right_lowers = mounting.overlay_directories(right)
    below = [left_upper, *left_lowers] if left_upper else left_lowers
    if not right or right[0]["type"] != "overlay":
        return None
    if right_upper and below == right_lowers:
        return right_upper, right_lowers
    if not right_upper and right_lowers[1:] == below and right_lowers:
        return right_lowers[0], below  # a view of a committed snapshot against its parent
    return None


def few(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    """Whether the change is a folder with so little in it that a worker would take longer to start than to pack it.
    OSError where it cannot be read."""
    found = change(left, right)
    if found is None:
        return False
    entries = size = 0
    folders = [found[0]]
    while folders:
        with os.scandir(folders.pop()) as inside:
            for entry in inside:
                status = entry.stat(follow_symlinks=False)
                entries += 1
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
                if entries > FEW_ENTRIES or size > FEW_BYTES:
                    return False
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.path)
    return True


def pack(
    left: list[dict[str, Any]],
    right: list[dict[str, Any]],
    compression: str,
    write: Callable[[bytes], None],
    target: str | None,
) -> dict[str, Any]:
    """Give the layer to `write`; what `run` answers. Trees that have to be mounted are so below `target`, in a mount
    namespace of this process, which may be changed then; None: there are none such (`few`)."""
    return _pack(left, right, streams.Deflated(write, compression), target, False)


def _pack(
    left: list[dict[str, Any]], right: list[dict[str, Any]], sink: streams.Deflated, target: str | None, lean: bool
) -> dict[str, Any]:
    writer = _Writer(sink, lean=lean)
    try:
        found = change(left, right)
        if found is not None:
            _upper(writer, *found)
        else:
            assert target is not None
            mounting.private_namespace()
            mounting.cover(target)
            before = mounting.mount_all(left, os.path.join(target, "left")) if left else ""
            _Both(writer, before, mounting.mount_all(right, os.path.join(target, "right"))).run()
        sink.write(tar.END)
    except BaseException:
        sink.give_up()
        raise
    digest, packed = sink.finish()
    return {"digest": digest, "size": sink.size, "blob": packed, "length": sink.written, "parts": writer.parts}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """`pack` as a job of the worker, which writes the layer itself."""
    out: int = job["out"]
    flushed = written = 0

    def write(data: bytes) -> None:
        nonlocal flushed, written
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]
        written += len(data)
        if written - flushed >= FLUSH_EVERY:
            writeback.start(out, flushed, written - flushed)
            flushed = written

    def skip(size: int) -> None:
        nonlocal written
        written += size
        os.lseek(out, size, os.SEEK_CUR)

    sink = streams.Deflated(write, job["compression"], skip)
    answer = _pack(job["left"], job["right"], sink, job["target"], bool(job.get("lean")))
    os.close(out)
    return answer
