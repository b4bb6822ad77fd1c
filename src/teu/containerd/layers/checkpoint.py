# SPDX-License-Identifier: Apache-2.0
"""Takes the archive of a checkpoint apart (KEP 2008). Called by `worker`, with the folder that gets its files:

    checkpoint/NAME     criu's images
    config.dump, spec.dump, deleted.files, rootfs-diff.tar, container.log

Nothing else of the archive is written, so there is no path in it that could lead anywhere. Who made it may have made it
to hurt: only regular files are taken, each once, under the names above, and no more of each than is told below.
"""

from __future__ import annotations

import hashlib
import os
import re

from teu.containerd.layers.files import CREATE, write
from teu.containerd.layers.unpack import LayerError, clean
from teu.oci import tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from teu.oci.tar import Entry, Source

IMAGES, DIFFERENCE, LOG = "checkpoint", "rootfs-diff.tar", "container.log"
# Documents, and the bytes that each may have.
DOCUMENTS = {"config.dump": 1 << 20, "spec.dump": 8 << 20, "deleted.files": 16 << 20}
LOG_MAX = 256 << 20  # a longer log is left out: the container is whole without it
ENTRIES_MAX = 1 << 16
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


class Archive:
    """One archive that is being taken apart."""

    def __init__(self, folder: str, memory: int) -> None:
        """`memory`: the bytes that criu's images may have together."""
        self._folder = folder
        self._memory = memory
        self._room = 0
        self.difference = ""  # digest of what has changed in the root file system; "" where the archive has none
        self.count = 0

    def run(self, source: Source) -> None:
        """Write its files. Raises ValueError for one that is none or asks for too much, OSError."""
        os.mkdir(os.path.join(self._folder, IMAGES), 0o700)
        free = os.statvfs(self._folder)
        self._room = free.f_bavail * free.f_frsize // 2  # the other half is for the root file system itself
        for entry, stored in tar.entries(source):
            self.count += 1
            if self.count > ENTRIES_MAX:
                raise LayerError(f"the archive has more than {ENTRIES_MAX} entries")
            path = clean(entry.name)
            limit = self._limit(path)
            if limit is None or (path == LOG and stored > limit):
                source.skip(stored)
                continue
            self._check(entry, stored, limit)
            if "/" in path:
                self._memory -= stored
            self._write(path, source.pieces(stored))

    def _limit(self, path: str) -> int | None:
        """The bytes that a file of that name may have; None for what is not taken."""
        folder, slash, name = path.partition("/")
        if slash and folder == IMAGES:
            if not _IMAGE.fullmatch(name):
                raise LayerError(f"entry {tar.short(path)!r} has no name of a file of criu's")
            return self._memory
        if path == DIFFERENCE:
            return self._room
        return LOG_MAX if path == LOG else DOCUMENTS.get(path)

    def _check(self, entry: Entry, stored: int, limit: int) -> None:
        name = tar.short(entry.name)
        if entry.type != tar.REGULAR or entry.sparse is not None:
            raise LayerError(f"entry {name!r} is no plain file")
        if stored > min(limit, self._room):
            raise LayerError(f"entry {name!r} has {stored} bytes, more than this host takes")
        self._room -= stored

    def _write(self, path: str, pieces: Iterator[memoryview]) -> None:
        try:
            fd = os.open(os.path.join(self._folder, path), CREATE, 0o600)
        except FileExistsError:
            raise LayerError(f"entry {tar.short(path)!r} is there twice") from None
        try:
            if path == DIFFERENCE:
                seen = hashlib.sha256()
                write(fd, _hashed(pieces, seen.update))
                self.difference = f"sha256:{seen.hexdigest()}"
            else:
                write(fd, pieces)
        finally:
            os.close(fd)


def _hashed(pieces: Iterator[memoryview], update: Callable[[memoryview], None]) -> Iterator[memoryview]:
    for piece in pieces:
        update(piece)
        yield piece
