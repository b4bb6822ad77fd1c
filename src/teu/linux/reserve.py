# SPDX-License-Identifier: Apache-2.0
"""Room on a full disk for the database that has to write down what is removed. Called by databases, before each
transaction.

    reserve = Reserve("/var/lib/…/metadata.db-reserve")
    reserve.mind()
"""

from __future__ import annotations

import os

SIZE = 1 << 20  # bytes
AGAIN = 16 << 20  # free bytes at which the room is taken again


class Reserve:
    """A file that takes room while there is enough, and gives it up when the disk is about to be full."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._taken = False

    def mind(self) -> None:
        """Take the room, or give it up to what is written next. Not by two threads at a time. OSError as of
        statvfs(2) and open(2)."""
        status = os.statvfs(os.path.dirname(self._path) or ".")
        free = status.f_bavail * status.f_frsize
        if self._taken and free < SIZE:
            os.truncate(self._path, 0)
            self._taken = False
        elif not self._taken and free > AGAIN:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, SIZE)
                self._taken = True
            except OSError:
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)
