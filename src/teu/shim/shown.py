# SPDX-License-Identifier: Apache-2.0
"""The name and the command line under which a process is shown. Set for a shim by the zygote and by `start`, and for a
runtime that is run by a fork (see `runtime`)."""

from __future__ import annotations

import ctypes
import os

PR_SET_NAME, PR_SET_MM = 15, 35
PR_SET_MM_ARG_START, PR_SET_MM_ARG_END = 8, 9

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, second: int, third: int = 0) -> None:
    if _libc.prctl(option, ctypes.c_ulong(second), ctypes.c_ulong(third), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def set_command_line(command: list[str]) -> None:
    """Show `command` as this process's command line, and its program's name as the process's name."""
    name = ctypes.create_string_buffer(os.fsencode(os.path.basename(command[0]))[:15])
    prctl(PR_SET_NAME, ctypes.addressof(name))
    data = b"".join(os.fsencode(word) + b"\0" for word in command)
    buffer = ctypes.create_string_buffer(data, len(data))
    start = ctypes.addressof(buffer)
    try:
        try:
            prctl(PR_SET_MM, PR_SET_MM_ARG_END, start + len(data))
            prctl(PR_SET_MM, PR_SET_MM_ARG_START, start)
        except OSError:
            # The order matters: the end may never be below the start.
            prctl(PR_SET_MM, PR_SET_MM_ARG_START, start)
            prctl(PR_SET_MM, PR_SET_MM_ARG_END, start + len(data))
    except OSError:
        # Without CAP_SYS_RESOURCE: write over the old words, as far as they reach.
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        old, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, see proc(5)
        ctypes.memset(old, 0, end - old)
        ctypes.memmove(old, data, min(len(data), end - old - 1))
        return
    globals()["_command_line"] = buffer  # the kernel reads it from now on
