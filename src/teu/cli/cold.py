# SPDX-License-Identifier: Apache-2.0
"""The beginning of a quick start (teu.coldstart), in the place of bin/teu: the archive's program calls `main`.

Python's core alone has no sys.stdout and no signals. What is here does for commands that print and talk to the daemon:
4 ms less than Python's own start. The rest of that is made up for when something asks for it (boot.py), and
`_completed` then lets both agree."""

from __future__ import annotations

import gc
import posix
import sys

import _coldstart  # type: ignore[import-not-found]  # src/c/teu-coldstart.c

from teu.cli import main as program
from teu.cli.command import whole_python

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# As much is gathered before it is written.
GATHERED = 1 << 16


class Output:
    """sys.stdout or sys.stderr. What only Python's own have, that one is asked for."""

    encoding = "utf-8"

    def __init__(self, file: int) -> None:
        self.file = file
        self.at_once = file == 2 or posix.isatty(file)
        self.parts: list[str] = []
        self.size = 0
        self.rest = b""  # what could not be written
        self.real: Any = None  # Python's own, once it is there

    def write(self, text: str) -> int:
        if self.real is not None:
            return int(self.real.write(text))
        self.parts.append(text)
        self.size += len(text)
        if self.size > GATHERED or (self.at_once and "\n" in text):
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self.real is not None:
            self.real.flush()
        elif self.parts or self.rest:
            text = "".join(self.parts)
            self.parts = []
            self.size = 0
            self.rest += encoded(text)
            while self.rest:
                self.rest = self.rest[posix.write(self.file, self.rest) :]

    def isatty(self) -> bool:
        return posix.isatty(self.file)

    def fileno(self) -> int:
        return self.file

    def __getattr__(self, name: str) -> Any:
        whole_python()
        return getattr(self.real, name)


class Input:
    """sys.stdin, until something is read from it."""

    def __getattr__(self, name: str) -> Any:
        whole_python()
        return getattr(sys.stdin, name)


def encoded(text: str) -> bytes:
    """Text as it is printed, also what is no Unicode, see program.shown_byte."""
    data = text.encode("utf-8", "surrogatepass")
    if b"\xed" not in data:  # with which halves of surrogate pairs begin, and some letters
        return data
    return b"".join(
        program.shown_byte(letter) if 0xD800 <= ord(letter) <= 0xDFFF else letter.encode("utf-8", "replace")
        for letter in text
    )


def _completed() -> None:
    """Python has made its own streams: they write as ours have done, and ours write by them."""
    gc.enable()  # which the C program has switched off, as most commands live for milliseconds
    program.prepare_streams()
    for output, real in ((_stdout, sys.stdout), (_stderr, sys.stderr)):
        output.flush()
        output.real = real


_stdout, _stderr = Output(1), Output(2)


def main() -> NoReturn:
    """The command that the words of the command line say, to its end."""
    _coldstart.completed = _completed
    sys.stdin, sys.stdout, sys.stderr = Input(), _stdout, _stderr
    program.run(sys.argv[1:])
