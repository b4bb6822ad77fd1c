# SPDX-License-Identifier: Apache-2.0
"""Writing dirty pages out: what Python's os module lacks. Called by teu-containerd."""

from __future__ import annotations

import os

from teu.linux.syscalls import NR_sync_file_range, NR_syncfs, call, syscall

SYNC_FILE_RANGE_WRITE = 2


def syncfs(path: str) -> None:
    """Everything written to the file system of the folder `path` is on disk when this returns. OSError as of
    syncfs(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscall(f"syncfs {path}", NR_syncfs, fd)
    finally:
        os.close(fd)


def start(fd: int, offset: int = 0, length: int = 0) -> None:
    """Ask the kernel to begin writing a file's dirty pages, without waiting; a length of 0 is up to the file's end.
    Only advice: errors show at fsync(2)."""
    if NR_sync_file_range >= 0:
        call(NR_sync_file_range, fd, offset, length, SYNC_FILE_RANGE_WRITE)
