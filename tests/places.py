# SPDX-License-Identifier: Apache-2.0
"""Where unit tests write. What they make is small, and most of their time on a disk would be the wait for fsync.

System tests show that what was acknowledged is on disk; here a process is killed at most, and never the machine.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile

MEMORY, DISK = "/dev/shm", "/var/tmp"
LEAST = 1 << 30  # bytes that have to be free in memory


@functools.cache
def quickest(memory: str = MEMORY, disk: str = DISK) -> str:
    """A folder in memory where that takes all that a disk does, else one on the disk.

    Users' extended attributes are in tmpfs since Linux 6.6. overlayfs sits on either, but not on the overlayfs that
    /tmp may be on.
    """
    try:
        if shutil.disk_usage(memory).free < LEAST:
            return disk
        with tempfile.TemporaryDirectory(dir=memory, prefix="teu-") as folder:
            os.setxattr(folder, "user.teu", b"")
    except OSError:
        return disk
    return memory
