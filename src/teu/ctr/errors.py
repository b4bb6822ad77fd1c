# SPDX-License-Identifier: Apache-2.0
"""What ends a command early; `main` prints the text after the program's name and exits with the code."""

from __future__ import annotations


class CommandError(Exception):
    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class NotFound(CommandError):
    pass


class AlreadyExists(CommandError):
    pass


class Locked(CommandError):
    """Another client is writing the same ingest."""


class Unimplemented(CommandError):
    pass
