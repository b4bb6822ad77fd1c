# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error that a caller has closed. The first step of every program.

Without it the next file that is opened becomes one of them: what a program prints would go into a socket, a container
would get a folder of the host as its input. As in Go's programs, /dev/null takes the place.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def open_what_is_closed() -> None:
    """Let descriptors 0 to 2 be open, and sys.stdin, stdout and stderr be files."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name, False) is None:  # Python's own start has looked before
            stream: Any = open(number, "r" if number == 0 else "w", closefd=False)
            setattr(sys, name, stream)
