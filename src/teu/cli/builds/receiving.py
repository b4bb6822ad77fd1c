# SPDX-License-Identifier: Apache-2.0
"""Results of a build, from the builder into a folder (`-o local`) or a file (tar, oci, docker). Called by session.

The builder is not trusted with the host. A path is checked for its form and its order, and opened by the kernel from
the folder's descriptor, through no link; what is there already under such a name is replaced, never written through;
what else is in the folder stays. Files appear whole: each is written beside its place and renamed.
"""

from __future__ import annotations

import collections
import os
import stat as modes

from teu.cli.builds.messages import decode, encode
from teu.cli.builds.places import Places
from teu.cli.builds.wire import INVALID_ARGUMENT, UNKNOWN, BuildError
from teu.cli.errors import CommandError
from teu.oci.fsutil import (
    DATA,
    ERR,
    FIN,
    GO_CHARACTER,
    GO_DEVICE,
    GO_DIR,
    GO_FIFO,
    GO_SYMLINK,
    GO_TYPE,
    REQ,
    STAT,
    Order,
    permissions,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from teu.http2.calls import Asked

PACKET = "teu.fsutil.Packet"
WANTED_AT_ONCE = 128  # files asked for and not yet here; each is open
ENTRIES_MAX = 10_000_000


class _File:
    """A file that was asked for."""

    __slots__ = ("descriptor", "stat", "temporary")

    def __init__(self, stat: Any) -> None:
        self.stat = stat
        self.descriptor = -1
        self.temporary = ""


class Receiver:
    """One transfer into an open folder: the builder's call FileSend.DiffCopy, which carries fsutil's packets."""

    def __init__(self, asked: Asked, folder: int) -> None:
        self._asked = asked
        self._order = Order()
        self._places = Places(folder)
        self._files: set[bytes] = set()  # that hard links may lead to
        self._wanted: collections.deque[tuple[int, _File]] = collections.deque()
        self._coming: dict[int, _File] = {}
        self._links: list[Any] = []
        self._folders: list[Any] = []
        self._count = 0
        self._told = False

    def run(self) -> None:
        """Take all of it. BuildError for what cannot be, and for what the host's file system refuses."""
        try:
            for message in self._asked:
                packet = decode(PACKET, message)
                if packet["type"] == STAT:
                    self._entry(packet["stat"])
                elif packet["type"] == DATA:
                    self._data(packet["ID"], packet["data"])
                elif packet["type"] == ERR:
                    raise BuildError(UNKNOWN, f"error from sender: {packet['data'].decode('utf-8', 'replace')}")
                elif packet["type"] == FIN:
                    return
                if self._told and not self._coming and not self._wanted:
                    self._finish()
        except OSError as error:
            raise BuildError(
                UNKNOWN, f"{os.fsdecode(error.filename or 'the output folder')}: {error.strerror}"
            ) from None
        finally:
            self._leave()

    def _leave(self) -> None:
        for file in self._coming.values():
            if file.descriptor >= 0:
                os.close(file.descriptor)
                try:
                    parent, _ = self._place(file.stat["path"])
                    os.unlink(file.temporary, dir_fd=parent)
                except OSError:
                    pass
        self._places.close()

    def _entry(self, stat: Any) -> None:
        if stat is None:
            self._told = True
            return
        number = self._count
        self._count += 1
        if self._told or number >= ENTRIES_MAX:
            raise BuildError(INVALID_ARGUMENT, "the result has entries without an end")
        mode, path = stat["mode"], stat["path"]
        try:
            self._order.check(path, bool(mode & GO_DIR))
        except ValueError as error:
            raise BuildError(INVALID_ARGUMENT, f"the builder sent a result that is none: {error}") from None
        kind = mode & GO_TYPE
        if not kind or kind & GO_DEVICE or kind == GO_FIFO:
            if stat["linkname"]:
                if stat["linkname"] not in self._files:
                    raise BuildError(INVALID_ARGUMENT, f"invalid link {os.fsdecode(path)}")
                self._links.append(stat)
                return
            self._files.add(path)
        if not kind:
            self._wanted.append((number, _File(stat)))
            self._ask()
        elif kind == GO_DIR:
            self._make_folder(stat)
        elif kind == GO_SYMLINK:
            self._replace(path, lambda name, parent: os.symlink(stat["linkname"], name, dir_fd=parent))
            self._set_time(stat)
        elif kind in (GO_FIFO, GO_DEVICE, GO_DEVICE | GO_CHARACTER):
            self._make_special(stat, kind)
        else:
            raise BuildError(INVALID_ARGUMENT, f"{os.fsdecode(path)}: a kind of file that cannot be ({mode:#x})")

    def _place(self, path: bytes) -> tuple[int, str]:
        """The open folder that path is in, good until the next call, and its name there."""
        return self._places.parent(os.fsdecode(path))

    def _make_folder(self, stat: Any) -> None:
        parent, name = self._place(stat["path"])
        try:
            there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=parent)
        else:
            if not modes.S_ISDIR(there.st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        self._folders.append(stat)

    def _replace(self, path: bytes, make: Callable[[str, int], None]) -> None:
        """Make something beside its place, and put it there."""
        parent, name = self._place(path)
        temporary = f".tmp-{os.urandom(8).hex()}"
        make(temporary, parent)
        self._put(temporary, name, parent)

    def _put(self, temporary: str, name: str, parent: int) -> None:
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError:
            from teu.linux.trees import remove_tree  # 11 ms, for a folder in the place of a file

            remove_tree(f"/proc/self/fd/{parent}/{name}")
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise

    def _make_special(self, stat: Any, kind: int) -> None:
        device, mode = 0, modes.S_IFIFO
        if kind != GO_FIFO:
            if not (0 <= stat["devmajor"] < 1 << 12 and 0 <= stat["devminor"] < 1 << 20):
                raise BuildError(INVALID_ARGUMENT, f"{os.fsdecode(stat['path'])}: no such device")
            mode = modes.S_IFCHR if kind & GO_CHARACTER else modes.S_IFBLK
            device = os.makedev(stat["devmajor"], stat["devminor"])

        def make(name: str, parent: int) -> None:
            try:
                os.mknod(name, mode | 0o600, device, dir_fd=parent)
            except PermissionError:
                place = os.fsdecode(stat["path"])
                raise BuildError(UNKNOWN, f"{place}: a device, which only root can make: use type=tar") from None
            os.chmod(f"/proc/self/fd/{parent}/{name}", permissions(stat["mode"]))

        self._replace(stat["path"], make)
        self._set_time(stat)

    def _set_time(self, stat: Any) -> None:
        parent, name = self._place(stat["path"])
        time = max(-(1 << 62), min(1 << 62, stat["modTime"]))
        os.utime(name, ns=(time, time), dir_fd=parent, follow_symlinks=False)

    # Files.

    def _ask(self) -> None:
        """Ask for files, many in one go once half of those that were asked for are here."""
        if len(self._coming) > WANTED_AT_ONCE // 2:
            return
        asks = []
        while self._wanted and len(self._coming) < WANTED_AT_ONCE:
            number, file = self._wanted.popleft()
            self._coming[number] = file
            asks.append(encode(PACKET, type=REQ, ID=number))
        if asks:
            self._asked.send(*asks)

    def _data(self, number: int, data: bytes) -> None:
        file = self._coming.get(number)
        if file is None:
            raise BuildError(INVALID_ARGUMENT, f"the builder sent a file that nobody asked for ({number})")
        if file.descriptor < 0:
            parent, _ = self._place(file.stat["path"])
            file.temporary = f".tmp-{os.urandom(8).hex()}"
            how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file.descriptor = os.open(file.temporary, how, 0o600, dir_fd=parent)
        if data:
            write(file.descriptor, data)
            return
        del self._coming[number]
        stat = file.stat
        parent, name = self._place(stat["path"])
        try:
            os.fchmod(file.descriptor, permissions(stat["mode"]))
            for pair in stat["xattrs"]:
                if pair["key"].startswith("user.") or pair["key"] == "security.capability":
                    try:
                        os.setxattr(file.descriptor, pair["key"], pair["value"])
                    except (OSError, ValueError):
                        pass  # the file system has none, or they are not ours to set
            time = max(-(1 << 62), min(1 << 62, stat["modTime"]))
            os.utime(file.descriptor, ns=(time, time))
        finally:
            os.close(file.descriptor)
        self._put(file.temporary, name, parent)
        self._ask()

    def _finish(self) -> None:
        """All is here: links, then modes and times of folders, which everything before has changed."""
        for stat in self._links:
            source, source_name = self._place(stat["linkname"])
            source = os.dup(source)
            try:
                self._replace(
                    stat["path"],
                    _linking(source, source_name),
                )
            finally:
                os.close(source)
        for stat in reversed(self._folders):
            parent, name = self._place(stat["path"])
            how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, how, dir_fd=parent)
            try:
                os.fchmod(descriptor, permissions(stat["mode"]))
            finally:
                os.close(descriptor)
            self._set_time(stat)
        self._links.clear()
        self._folders.clear()
        self._told = False
        self._asked.send(encode(PACKET, type=FIN))


def _linking(source: int, source_name: str) -> Callable[[str, int], None]:
    def make(name: str, parent: int) -> None:
        os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    return make


def write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Target:
    """A file that a result goes into: it appears when it is whole. "-" is the standard output."""

    def __init__(self, path: str) -> None:
        self.path = path

    def check(self) -> None:
        """CommandError where nothing can be written there."""
        if self.path == "-":
            if os.isatty(1):
                raise CommandError("dest file is required for this exporter. refusing to write to console")
            return
        if os.path.isdir(self.path):
            raise CommandError(f"destination file {self.path} is a directory")
        folder = os.path.dirname(self.path) or "."
        if not os.path.isdir(folder):
            raise CommandError(f"failed to open {self.path}: {folder} is no folder")

    def take(self, chunks: Any) -> None:
        """Write what comes; OSError where that fails, with nothing left."""
        if self.path == "-":
            for chunk in chunks:
                write(1, chunk)
            return
        try:
            plain = modes.S_ISREG(os.stat(self.path).st_mode)
        except FileNotFoundError:
            plain = True
        if not plain:  # a FIFO, /dev/null
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                for chunk in chunks:
                    write(descriptor, chunk)
            finally:
                os.close(descriptor)
            return
        with Replacing(self.path) as descriptor:
            for chunk in chunks:
                write(descriptor, chunk)


class Replacing:
    """A file that takes another's place when all that was to be written is written; a context manager that gives the
    descriptor. With an error in between, what was there stays."""

    def __init__(self, path: str, mode: int = 0o666) -> None:
        self._path = os.path.realpath(path)
        self._temporary = f"{self._path}.{os.urandom(4).hex()}.tmp"
        self._mode = mode
        self._descriptor = -1

    def __enter__(self) -> int:
        how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, how, self._mode)
        return self._descriptor

    def __exit__(self, kind: Any, *problem: Any) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
                os.rename(self._temporary, self._path)
                kind = self
        finally:
            os.close(self._descriptor)
            if kind is not self:
                os.unlink(self._temporary)


def replace(path: str, text: str) -> None:
    """Write a small file whole, as --iidfile and --metadata-file want it. CommandError where that fails."""
    try:
        with Replacing(path) as descriptor:
            write(descriptor, text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise CommandError(f"failed to write {path}: {error.strerror}") from None
