# SPDX-License-Identifier: Apache-2.0
"""This process's own memory: how much there is, and giving back what a burst of work has left behind.

The C library keeps what was freed for later, in an arena per few threads; a daemon that has served a hundred clients at
once would hold their hundreds of megabytes for ever. Nothing happens here with a C library that has no such calls.
"""

from __future__ import annotations

import ctypes
import os

M_ARENA_MAX = -8


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Give free memory of all arenas back to the kernel. Other threads may go on meanwhile."""
    try:
        function = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return
    function.argtypes = (ctypes.c_size_t,)
    function.restype = ctypes.c_int
    function(0)


def few_arenas(number: int) -> None:
    """From now on no more than so many arenas are made: between threads that live for a request each, what is free
    lies in pieces that cannot be given back. To be called before there are threads."""
    try:
        function = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    function.argtypes = (ctypes.c_int, ctypes.c_int)
    function.restype = ctypes.c_int
    function(M_ARENA_MAX, number)
