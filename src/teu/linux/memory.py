# SPDX-License-Identifier: Apache-2.0
"""This process's own memory: how much there is, and giving back what a burst of work has left behind.

The C library keeps what was freed for later, in an arena per few threads; a daemon that has served a hundred clients at
once would hold their hundreds of megabytes for ever. Nothing happens here with a C library that has no such calls.
"""

from __future__ import annotations

import os

from teu.linux.calling import c_long, function

M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Give free memory of all arenas back to the kernel. Other threads may go on meanwhile."""
    try:
        function("malloc_trim")(c_long(0))
    except OSError:
        pass


def few_arenas(number: int) -> None:
    """From now on no more than so many arenas are made: between threads that live for a request each, what is free
    lies in pieces that cannot be given back. To be called before there are threads."""
    _mallopt(M_ARENA_MAX, number)


def mmap_threshold(size: int) -> None:
    """From now on what is asked for in pieces of so many bytes, or more, goes back when it is freed. Without it the C
    library takes the next such piece from its heap, and keeps it."""
    _mallopt(M_MMAP_THRESHOLD, size)


def _mallopt(parameter: int, value: int) -> None:
    try:
        function("mallopt")(c_long(parameter), c_long(value))
    except OSError:
        pass
