# SPDX-License-Identifier: Apache-2.0
"""What a check of the host tells, and how it reads the host's files: below a root, which in tests is a folder."""

from __future__ import annotations

import os

OK, WARNING, ERROR = LEVELS = ("ok", "warning", "error")


class Finding:
    """`level`: ok; warning, where some containers will miss something; error, where none will run as it should.
    `text` is what was found, `remedy` what to do, empty where all is well."""

    __slots__ = ("level", "remedy", "subject", "text")

    def __init__(self, level: str, subject: str, text: str, remedy: str = "") -> None:
        self.level = level
        self.subject = subject
        self.text = text
        self.remedy = remedy


def read(root: str, path: str) -> str:
    """The text of a file; "" where it is not there or not to be read."""
    try:
        with open(root + path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def exists(root: str, path: str) -> bool:
    return os.path.lexists(root + path)
