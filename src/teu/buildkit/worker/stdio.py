# SPDX-License-Identifier: Apache-2.0
"""The standard streams of a process: FIFOs in a folder, which the shim opens at the other end. Called by the executor.

One thread reads what the process writes, and ends when nobody is left who could write. The callbacks may keep it
waiting; then the process waits, too.
"""

from __future__ import annotations

import fcntl
import math
import os
import select
import threading
import time
from collections.abc import Callable

PIECE = 64 << 10
POLL_SECONDS = 0.1
F_SETPIPE_SZ = 1031
PIPE_SIZE = 256 << 10

Output = Callable[[bytes], None]


def _ignore(data: bytes) -> None:
    pass


class Stdio:
    """`out` and `err` get what the process writes, by a thread of this object. With a terminal all of it is `out`."""

    def __init__(
        self, folder: str, out: Output | None, err: Output | None, *, terminal: bool = False, stdin: bool = False
    ) -> None:
        self._callbacks: dict[int, Output] = {}
        self._ended = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._heard = 0.0  # when it wrote last; infinite while that is handed on
        self._input = -1
        self._input_lock = threading.Lock()
        self._closed = False
        self.paths = (f"{folder}/stdin" if stdin else "", f"{folder}/stdout", "" if terminal else f"{folder}/stderr")
        try:
            for path, output in zip(self.paths[1:], (out, err)):
                if path:
                    self._callbacks[_reading_end(path)] = output or _ignore
            if stdin:
                os.mkfifo(self.paths[0], 0o600)
                # Both ends, so that the shim finds a writer; it is a mere writer from `begin` on.
                self._input = os.open(self.paths[0], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            self._close()
            raise

    def begin(self) -> None:
        """The shim has opened its ends."""
        if self._input >= 0:
            writer = os.open(self.paths[0], os.O_WRONLY | os.O_CLOEXEC)
            os.close(self._input)
            self._input = writer
        threading.Thread(target=self._run, name="stdio", daemon=True).start()

    def _run(self) -> None:
        poll = select.poll()
        for descriptor in self._callbacks:
            poll.register(descriptor, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        left = set(self._callbacks)
        try:
            while left:
                for descriptor, _ in poll.poll():
                    if descriptor == self._wake:
                        return
                    try:
                        data = os.read(descriptor, PIECE)
                    except BlockingIOError:
                        continue
                    if data:
                        self._heard = math.inf
                        self._callbacks[descriptor](data)
                        self._heard = time.monotonic()
                    else:
                        poll.unregister(descriptor)
                        left.discard(descriptor)
        finally:
            self._ended.set()

    def write(self, data: bytes) -> None:
        """To the process's standard input; waits until it is taken. BrokenPipeError where nobody reads it any more."""
        with self._input_lock:
            if self._input < 0:
                raise BrokenPipeError("standard input is closed")
            while data:
                data = data[os.write(self._input, data) :]

    def close_input(self) -> None:
        """The process's standard input ends. Twice is fine."""
        with self._input_lock:
            if self._input >= 0:
                os.close(self._input)
                self._input = -1

    def finish(self, seconds: float) -> bool:
        """The process is gone: wait for the rest of what it wrote, and close. False: others still hold its streams, and
        have not written for that time."""
        began = time.monotonic()
        while not (whole := self._ended.wait(POLL_SECONDS)):
            if time.monotonic() > max(began, self._heard) + seconds:
                break
        os.eventfd_write(self._wake, 1)
        self._ended.wait()
        self._close()
        return whole

    def discard(self) -> None:
        """After a start that failed, before `begin`."""
        self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.close_input()
        for descriptor in (*self._callbacks, self._wake):
            os.close(descriptor)
        for path in self.paths:
            if path:
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass


def _reading_end(path: str) -> int:
    os.mkfifo(path, 0o600)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(descriptor, F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass  # the user's share of pipe memory is used up: it works with less, too
    return descriptor
