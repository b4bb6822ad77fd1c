# SPDX-License-Identifier: Apache-2.0
"""The command line that ps shows of this process. Called by the shim, whose process is a fork of another program's."""

from __future__ import annotations

import os

from teu.linux.syscalls import (
    PR_SET_MM,
    PR_SET_MM_ARG_END,
    PR_SET_MM_ARG_START,
    PR_SET_NAME,
    address,
    buffer,
    prctl,
)

# The words as the kernel reads them: they must live as long as the process shows them.
_shown: object = None


def show(command: list[str]) -> None:
    """Show `command` as this process's command line, and its program's name (15 bytes of it) as the process's name.

    Without CAP_SYS_RESOURCE the new words are written over the old ones, as far as those reach."""
    global _shown
    name = buffer(os.fsencode(os.path.basename(command[0]))[:15] + b"\0")
    prctl(PR_SET_NAME, address(name))
    data = b"".join(os.fsencode(word) + b"\0" for word in command)
    words = buffer(data)
    start = address(words)
    end = start + len(data)
    try:
        try:
            prctl(PR_SET_MM, PR_SET_MM_ARG_END, end)
            prctl(PR_SET_MM, PR_SET_MM_ARG_START, start)
        except OSError:
            # The order matters: the end may never be below the start.
            prctl(PR_SET_MM, PR_SET_MM_ARG_START, start)
            prctl(PR_SET_MM, PR_SET_MM_ARG_END, end)
    except OSError:
        _overwrite(data)
    else:
        _shown = words


def _overwrite(data: bytes) -> None:
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, see proc(5)
    with open("/proc/self/mem", "r+b", 0) as memory:
        memory.seek(start)
        memory.write(data[: end - start - 1].ljust(end - start, b"\0"))
