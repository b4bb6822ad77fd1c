# SPDX-License-Identifier: Apache-2.0
"""Stay with a process until it ends: forward signals, carry its terminal, reap. Called by run and exec.

Signals are blocked and read from a signalfd-like pipe (the interpreter's wake-up descriptor), so
that one poll waits for all: the terminal, our own standard input, signals.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select

from teu.linux import terminals

_SIGCHLD, _SIGURG, _SIGWINCH, _SIGPIPE = 17, 23, 28, 13
# Not forwarded: ours alone, or impossible to catch. SIGURG is not ours but Go's; runc forwards it neither.
_OWN = frozenset((_SIGCHLD, _SIGURG, _SIGPIPE, 9, 19, 32, 33, 11, 7, 8, 4))


class Signals:
    """Caught from construction on, so that none is lost while the process is being made."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in range(1, 65):
            if number in _OWN and number != _SIGCHLD:
                continue
            try:
                _signal.signal(number, _ignore)
            except (OSError, ValueError):
                continue
        _signal.set_wakeup_fd(self.write_end, warn_on_full_buffer=False)


def _ignore(number: int, frame: object) -> None:
    """The number is in the wake-up pipe already."""


def wait(pid: int, signals: Signals, master: int = -1) -> int:
    """Until pid ends; its exit code as a shell sees it. master: the terminal to carry to our own."""
    before = None
    poll = select.poll()
    poll.register(signals.read_end, select.POLLIN)
    pending_in = b""
    if master >= 0:
        os.set_blocking(master, False)
        if os.isatty(0):
            before = terminals.set_raw(0, keep_output=True)
        poll.register(0, select.POLLIN)
        poll.register(master, select.POLLIN)
    try:
        while True:
            for fd, _event in poll.poll():
                if fd == signals.read_end:
                    code = _take_signals(pid, signals.read_end, master)
                    if code is not None:
                        if master >= 0:
                            _drain(master)
                        return code
                elif fd == master:
                    if _event & select.POLLOUT and pending_in:
                        pending_in = _feed(master, pending_in)
                        if not pending_in:
                            poll.modify(master, select.POLLIN)
                            poll.register(0, select.POLLIN)
                    if _event & ~select.POLLOUT and not _carry(master, 1):
                        poll.unregister(master)
                elif fd == 0:
                    data = b""
                    try:
                        data = os.read(0, 65536)
                    except OSError:
                        pass
                    if not data:
                        poll.unregister(0)
                        data = b"\x04"  # end of file on a terminal
                    pending_in = _feed(master, data)
                    if pending_in:
                        poll.modify(master, select.POLLIN | select.POLLOUT)
                        poll.unregister(0)
    finally:
        if before is not None:
            terminals.set_attributes(0, before)


def _take_signals(pid: int, read_end: int, master: int) -> int | None:
    """Forward what came; the exit code once the process itself has ended. Others' children are reaped too."""
    code = None
    try:
        numbers = os.read(read_end, 512)
    except BlockingIOError:
        return None
    for number in numbers:
        if number == _SIGCHLD:
            while True:
                try:
                    ended, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not ended:
                    break
                if ended == pid:
                    result = os.waitstatus_to_exitcode(status)
                    code = result if result >= 0 else 128 - result
        elif number == _SIGWINCH and master >= 0:
            if os.isatty(0):
                terminals.copy_size(0, master)
        elif code is None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
    return code


def _feed(master: int, data: bytes) -> bytes:
    """Write what goes; what is left."""
    while data:
        try:
            data = data[os.write(master, data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""
    return b""


def _carry(source: int, to: int) -> bool:
    """False at the end (a master whose last slave was closed gives EIO)."""
    try:
        data = os.read(source, 65536)
    except BlockingIOError:
        return True
    except OSError:
        return False
    while data:
        try:
            data = data[os.write(to, data) :]
        except BlockingIOError:
            select.select([], [to], [])
        except OSError:
            return False
    return True


def _drain(master: int) -> None:
    poll = select.poll()
    poll.register(master, select.POLLIN)
    while poll.poll(0):
        if not _carry(master, 1):
            return
