# SPDX-License-Identifier: Apache-2.0
"""Signals that are read from a descriptor, in place of being delivered: signalfd(2). Called by teu, which has none of
Python's in a quick start (teu.coldstart)."""

from __future__ import annotations

import os

from teu.linux.syscalls import NR_rt_sigprocmask, NR_signalfd4, buffer, syscall

SIG_BLOCK = 0
SIG_SETMASK = 2
SFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
# struct signalfd_siginfo begins with the signal's number.
RECORD = 128


def mask_of(numbers: list[int]) -> bytes:
    """The kernel's sigset_t."""
    mask = 0
    for number in numbers:
        mask |= 1 << number - 1
    return mask.to_bytes(8, "little")


class SignalFile:
    """From its making on the signals are held back from this thread, and are read here; `close` lets them come again.
    A process that is started meanwhile would hold them back as well. Raises OSError."""

    def __init__(self, numbers: list[int]) -> None:
        mask = mask_of(numbers)
        before = buffer(bytes(8))
        self.file = syscall("signalfd", NR_signalfd4, -1, mask, 8, SFD_FLAGS)
        syscall("rt_sigprocmask", NR_rt_sigprocmask, SIG_BLOCK, mask, before, 8)
        self.before = bytes(before)

    def read(self) -> list[int]:
        """Those that have come."""
        try:
            data = os.read(self.file, 64 * RECORD)
        except BlockingIOError:
            return []
        return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), RECORD)]

    def close(self) -> None:
        """What came last and nobody has read is forgotten."""
        while self.read():
            pass
        os.close(self.file)
        syscall("rt_sigprocmask", NR_rt_sigprocmask, SIG_SETMASK, self.before, None, 8)
