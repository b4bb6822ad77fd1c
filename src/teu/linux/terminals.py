# SPDX-License-Identifier: Apache-2.0
"""Terminals: size and raw mode. Called by teu.runc (and free for shim and command line)."""

from __future__ import annotations

import fcntl
import os
from struct import pack, unpack

TCGETS = 0x5401
TCSETS = 0x5402
TIOCGWINSZ = 0x5413
TIOCSWINSZ = 0x5414

_OPOST, _ONLCR = 0o1, 0o4
# struct termios: iflag, oflag, cflag, lflag, line, 19 control characters
_TERMIOS = "IIII20s"
_TERMIOS_SIZE = 36

_IGNBRK, _BRKINT, _PARMRK, _ISTRIP, _INLCR, _IGNCR, _ICRNL, _IXON = 1, 2, 8, 0o40, 0o100, 0o200, 0o400, 0o2000
_ECHO, _ECHONL, _ICANON, _ISIG, _IEXTEN = 0o10, 0o100, 2, 1, 0o100000
_CSIZE, _PARENB, _CS8 = 0o60, 0o400, 0o60
_VTIME, _VMIN = 5, 6


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set the size of a terminal in characters; who is in its foreground gets SIGWINCH. Raises OSError."""
    fcntl.ioctl(fd, TIOCSWINSZ, pack("HHHH", rows, columns, 0, 0))


def copy_size(source: int, to: int) -> None:
    """Give one terminal the size of another."""
    fcntl.ioctl(to, TIOCSWINSZ, fcntl.ioctl(source, TIOCGWINSZ, bytes(8)))


def get_attributes(fd: int) -> bytes:
    """The terminal's attributes (struct termios), for `set_attributes`. Raises OSError where it is none."""
    return fcntl.ioctl(fd, TCGETS, bytes(_TERMIOS_SIZE))


def set_attributes(fd: int, attributes: bytes) -> None:
    """Set the attributes at once, without a wait for output that is on its way. Raises OSError."""
    fcntl.ioctl(fd, TCSETS, attributes)


def clear_onlcr(fd: int) -> None:
    """Let a newline be a newline. For a terminal whose output another one, in our hands, will show."""
    iflag, oflag, cflag, lflag, rest = unpack(_TERMIOS, get_attributes(fd))
    set_attributes(fd, pack(_TERMIOS, iflag, oflag & ~_ONLCR, cflag, lflag, rest))


def mirror(master: int) -> None:
    """Make a new terminal one that our own (if standard input is one) will show. Before anything writes to it."""
    clear_onlcr(master)
    if os.isatty(0):
        copy_size(0, master)


def set_raw(fd: int, keep_output: bool = False) -> bytes:
    """Raw mode, as cfmakeraw(3), keep_output: but for what is shown. Returns what was, for set_attributes."""
    before = get_attributes(fd)
    iflag, oflag, cflag, lflag, rest = unpack(_TERMIOS, before)
    iflag &= ~(_IGNBRK | _BRKINT | _PARMRK | _ISTRIP | _INLCR | _IGNCR | _ICRNL | _IXON)
    if not keep_output:
        oflag &= ~_OPOST
    lflag &= ~(_ECHO | _ECHONL | _ICANON | _ISIG | _IEXTEN)
    cflag = cflag & ~(_CSIZE | _PARENB) | _CS8
    control = bytearray(rest)
    control[1 + _VTIME], control[1 + _VMIN] = 0, 1
    set_attributes(fd, pack(_TERMIOS, iflag, oflag, cflag, lflag, bytes(control)))
    return before
