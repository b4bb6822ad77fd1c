# SPDX-License-Identifier: Apache-2.0
"""Makes regular files in threads. Called by `unpack`, which hands over small files whose names are new.

Most of an unpack is the kernel's work on inodes, which threads do side by side: every call here releases the
interpreter's lock. Files travel in batches, for a handover costs as much as making a file. What waits is bounded by
the queue (some 5 MiB, `FILE_LIMIT` and the constants below it), whatever the layer's size.

Who calls `settle` sees all that was handed over before; who does not must not depend on it. See `Unpacker._one`.
"""

from __future__ import annotations

import errno
import os
import threading
from operator import itemgetter
from queue import Queue

from teu.oci import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NamedTuple

    from teu.oci.tar import Entry

    class NewFile(NamedTuple):
        entry: Entry
        parent: int  # descriptor of its directory, open until `settle`
        base: str
        inherits: bool  # the directory hands down its group
        data: bytes
else:
    from collections import namedtuple

    NewFile = namedtuple("NewFile", ("entry", "parent", "base", "inherits", "data"))

THREADS = 2
FILE_LIMIT = 256 << 10  # larger files are written by the caller: to copy them would gain nothing
BATCH_FILES, BATCH_BYTES = 32, 256 << 10
DEPTH = 6  # batches that wait
NAMES = 4096  # names remembered before they are waited for

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class UnpackError(OSError):
    """What went wrong with an entry; the message names it."""


def explained(error: OSError, entry: Entry) -> OSError:
    """The error with the entry's name; a full disk, and what is explained already, as they are."""
    if error.errno == errno.ENOSPC or isinstance(error, UnpackError):
        return error
    return UnpackError(error.errno, f"unpack {tar.short(entry.name)!r}: {error.strerror}")


def set_xattrs(target: int | str, xattrs: dict[str, bytes]) -> None:
    for name, value in xattrs.items():
        if name.startswith(("trusted.overlay.", "user.overlay.")):
            continue  # overlayfs' own marks: a layer must not forge them
        try:
            os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
            if error.errno == errno.EPERM and name.startswith("security."):
                raise


def write(fd: int, pieces: Iterable[memoryview]) -> None:
    for piece in pieces:
        while piece:
            piece = piece[os.write(fd, piece) :]


def finish(fd: int, entry: Entry, inherits: bool) -> None:
    """Owner, mode, extended attributes and time of a new regular file that has its content."""
    if inherits or entry.uid or entry.gid:
        os.fchown(fd, entry.uid, entry.gid)
        if entry.mode & 0o6000:
            os.fchmod(fd, entry.mode)  # chown has cleared set-user-id and set-group-id
    if entry.xattrs:
        set_xattrs(fd, entry.xattrs)
    os.utime(fd, ns=(entry.mtime, entry.mtime))


def _make(file: NewFile) -> None:
    fd = os.open(file.base, CREATE, file.entry.mode, dir_fd=file.parent)
    try:
        write(fd, (memoryview(file.data),))
        finish(fd, file.entry, file.inherits)
    finally:
        os.close(fd)


class Files:
    """The threads and what waits for them. For one caller's thread."""

    def __init__(self) -> None:
        self._queue: Queue[tuple[int, list[NewFile]]] = Queue(DEPTH)
        self._batches = 0  # so many were handed over
        self._batch: list[NewFile] = []
        self._bytes = 0
        self._names: set[tuple[tuple[int, int], str]] = set()  # handed over since `settle`
        self._failures: list[tuple[int, BaseException]] = []  # number of its batch, what went wrong
        self._started = False

    def add(self, file: NewFile, directory: tuple[int, int]) -> None:
        """Make it, some time until `settle`. The name must be new in `directory` (device and inode of `parent`).

        Raises what went wrong with a file that was handed over before.
        """
        self.check()
        if len(self._names) >= NAMES:
            self.settle()
        self._names.add((directory, file.base))
        self._batch.append(file)
        self._bytes += len(file.data)
        if len(self._batch) >= BATCH_FILES or self._bytes >= BATCH_BYTES:
            self._hand_over()

    def waits_for(self, directory: tuple[int, int], base: str) -> bool:
        return (directory, base) in self._names

    def settle(self) -> bool:
        """All that was handed over is made, or what went wrong first is raised; False when there was nothing."""
        if not self._names:
            return False
        if self._batch:
            self._hand_over()
        self._queue.join()
        self._names.clear()
        self.check()
        return True

    def check(self) -> None:
        """Raise what went wrong so far, if anything: of that, what comes first in the layer."""
        if self._failures:
            raise min(self._failures, key=itemgetter(0))[1]

    def _hand_over(self) -> None:
        if not self._started:
            self._started = True
            for _ in range(THREADS):
                threading.Thread(target=self._work, daemon=True).start()
        self._batches += 1
        self._queue.put((self._batches, self._batch))
        self._batch, self._bytes = [], 0

    def _work(self) -> None:
        while True:
            number, batch = self._queue.get()
            try:
                for file in batch:
                    _make(file)
            except OSError as error:
                self._failures.append((number, explained(error, file.entry)))
            except BaseException as error:
                self._failures.append((number, error))
            del batch, file  # or its content would stay until there is more to do
            self._queue.task_done()


def content(stored: int, source: tar.Source) -> bytes:
    """The `stored` bytes of an entry's data; TarError when the stream ends within."""
    data = source.read(stored)
    if len(data) < stored:
        raise tar.TarError("unexpected end of the archive")
    return data
