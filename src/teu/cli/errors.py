# SPDX-License-Identifier: Apache-2.0
"""What ends a command early: read once by `main`, which prints the text and exits with the code."""

from __future__ import annotations


class CommandError(Exception):
    """A command failed: `text` is for the user (may be empty), `code` is the exit status."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class APIError(Exception):
    """The daemon answered with an HTTP error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return "Error response from daemon: " + self.message


class ConnectError(Exception):
    """There is no conversation with the daemon: it does not listen, we may not connect, or it closed the connection."""
