# SPDX-License-Identifier: Apache-2.0
"""The errors of teu-runc. Raised anywhere below a command, reported once by teu.runc.main."""

from __future__ import annotations

import os


class RuncError(Exception):
    """A failure that the caller sees as one line in the log and on stderr, and as an exit code.

    The texts that containerd and dockerd look for in that line are facts and are kept:
    "container does not exist", "process already finished" / "container not running",
    "executable file not found in $PATH", "no such file or directory", "permission denied".
    """

    exit_code = 1

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(RuncError):
    """A wrong command line: the command's usage is printed too."""


class NotFound(RuncError):
    def __init__(self, id: str) -> None:
        super().__init__("container does not exist")
        self.id = id


class NotRunning(RuncError):
    def __init__(self) -> None:
        super().__init__("container not running")


class InvalidSpec(RuncError):
    """A config.json that is refused before anything is touched. The message names the field."""


def text_of(error: BaseException) -> str:
    """What a person reads: the call, the path and the reason, in Go's order and case."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
        # what syscalls.syscall() raised already ends with the reason
        head, colon, tail = reason.rpartition(": ")
        reason = head + colon + (tail[:1].lower() + tail[1:] if not tail[1:2].isupper() else tail)
        if error.filename is not None:
            return f"{os.fsdecode(error.filename)}: {reason}"
        return reason
    return str(error) or type(error).__name__
