# SPDX-License-Identifier: Apache-2.0
"""Files of a copy that get a second name in place of a copy. Called by `copying`, which finds them, and by `file`.

What is committed does not change any more: what goes on from it is an overlay, which copies a file before it is written
to, and a client's folder that is received again makes a changed file anew. So a file that shall be in the target just
as it is in the source is one file with two names, which costs neither its bytes nor its reading. The kernel makes no
link from one mount to another: the name is made in the folder that the overlay writes to, once the overlay is not
mounted any more, and the target is committed right after.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from teu.buildkit.ops.roots import Root
from teu.linux.trees import mount_number

NAMES_MAX = 1_000_000  # that wait; what is more is copied

Copy = Callable[[int, str, int, os.stat_result, str], None]
"""Copy a file: the folder it is in, its name, the folder it goes to, its status, where that is."""


class Later:
    """Names to be made in one target. `folder`: where what is made in the target lies."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._source: Root | None = None
        self._copy: Copy | None = None
        self._names: list[tuple[str, str, list[str]]] = []
        self._count = 0

    def serves(self, source: Root) -> bool:
        """Whether files of that root can have names here: they are on one mount, and so is no overlay between."""
        if self._source is not None and self._source is not source:
            return False
        with Root(self._folder) as own:
            return mount_number(own.descriptor) == mount_number(source.descriptor)

    def full(self) -> bool:
        return self._count >= NAMES_MAX

    def take(self, source: Root, found: str, place: str, names: list[str], copy: Copy) -> None:
        """The files of these names in the source's folder `found` are to be in the target's folder `place`, where
        nothing has those names. `copy`: for files that cannot have one more name."""
        self._source, self._copy = source, copy
        self._names.append((found, place, names))
        self._count += len(names)

    def make(self, check: Callable[[], None]) -> None:
        """Make all of them: the target is not mounted. Raises OSError, and what `check` raises."""
        if self._source is None or self._copy is None:
            return
        with Root(self._folder) as own:
            for found, place, names in self._names:
                check()
                here = self._source.open(found)
                try:
                    there = own.open(place)
                    try:
                        before = os.fstat(there)
                        for name in names:
                            self._one(here, there, name, f"{place}/{name}", self._copy)
                        os.utime(there, ns=(before.st_atime_ns, before.st_mtime_ns))
                    finally:
                        os.close(there)
                finally:
                    os.close(here)
        self._names.clear()

    def _one(self, here: int, there: int, name: str, place: str, copy: Copy) -> None:
        try:
            os.link(name, name, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
        except OSError as error:
            # It has as many names as it can have, may have no other, or belongs to another project's quota.
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV):
                raise
            copy(here, name, there, os.stat(name, dir_fd=here, follow_symlinks=False), place)
