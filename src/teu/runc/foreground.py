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
    poll = select.poll()
    poll.register(signals.read_end, select.POLLIN)
    terminal = _Terminal(master, poll) if master >= 0 else None
    try:
        while True:
            for fd, event in poll.poll():
                if fd == signals.read_end:
                    code = _take_signals(pid, signals.read_end, master)
                    if code is not None:
                        if master >= 0:
                            _drain(master)
                        return code
                elif terminal is not None and fd == master:
                    terminal.on_master(event)
                elif terminal is not None:
                    terminal.on_input()
    finally:
        if terminal is not None:
            terminal.restore()


class _Terminal:
    """Carries bytes between the master of the container's terminal and our standard streams."""

    def __init__(self, master: int, poll: select.poll) -> None:
        self.master = master
        self.poll = poll
        self.pending = b""  # input that the master has not taken yet; meanwhile no more is read
        self.reading = True  # until our input ends
        os.set_blocking(master, False)
        self.before = terminals.set_raw(0, keep_output=True) if os.isatty(0) else None
        poll.register(0, select.POLLIN)
        poll.register(master, select.POLLIN)

    def restore(self) -> None:
        if self.before is not None:
            terminals.set_attributes(0, self.before)

    def on_master(self, event: int) -> None:
        if event & select.POLLOUT and self.pending:
            self.pending = _feed(self.master, self.pending)
            if not self.pending:
                self.poll.modify(self.master, select.POLLIN)
                if self.reading:
                    self.poll.register(0, select.POLLIN)
        if event & ~select.POLLOUT and not _carry(self.master, 1):
            self.poll.unregister(self.master)

    def on_input(self) -> None:
        data = b""
        try:
            data = os.read(0, 65536)
        except OSError:
            pass
        if not data:
            self.reading = False
            self.poll.unregister(0)
            data = b"\x04"  # end of file on a terminal
        self.pending = _feed(self.master, data)
        if self.pending:
            self.poll.modify(self.master, select.POLLIN | select.POLLOUT)
            if self.reading:
                self.poll.unregister(0)


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
