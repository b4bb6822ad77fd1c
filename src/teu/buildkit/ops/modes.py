# SPDX-License-Identifier: Apache-2.0
"""Modes of files as chmod(1) takes them: "0755", "u=rwX,go=rX", "go-w", "g=u". Called for COPY --chmod."""

from __future__ import annotations

import stat
from collections.abc import Callable

LENGTH_MAX = 1000

_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o0007, "a": 0o6777}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111}
_SHIFT = {"u": 6, "g": 3, "o": 0}

Mode = Callable[[int, bool], int]  # (permissions of 07777, whether it is a folder) -> permissions


class BadMode(ValueError):
    """The text is no mode."""

    def __init__(self) -> None:
        super().__init__("invalid syntax")


def parse(text: str) -> Mode:
    """What the text makes of a mode, with no umask. Raises BadMode."""
    if not text or len(text) > LENGTH_MAX:
        raise BadMode
    if text[0].isdigit():
        if not text.isascii() or any(letter not in "01234567" for letter in text) or int(text, 8) > 0o7777:
            raise BadMode
        fixed = int(text, 8)
        return lambda mode, folder: fixed
    changes: list[tuple[int, str, str]] = []
    for clause in text.split(","):
        changes += _clause(clause)

    def apply(mode: int, folder: bool) -> int:
        # X looks at what the mode was, not at what an earlier clause made of it.
        searchable = folder or bool(mode & 0o111)
        for who, operator, what in changes:
            bits = _bits(who, what, mode, searchable)
            if operator == "=":
                mode = mode & ~who | bits
            elif operator == "+":
                mode |= bits
            else:
                mode &= ~bits
        return mode

    return apply


def _clause(clause: str) -> list[tuple[int, str, str]]:
    """[(who, operator, permissions)] of "ug+r-w"."""
    at = 0
    who = 0
    while at < len(clause) and clause[at] in _WHO:
        who |= _WHO[clause[at]]
        at += 1
    found = []
    while at < len(clause):
        operator = clause[at]
        if operator not in "+-=":
            raise BadMode
        at += 1
        begin = at
        while at < len(clause) and clause[at] in "rwxXstugo":
            at += 1
        found.append((who or _WHO["a"], operator, clause[begin:at]))
    if not found:
        raise BadMode
    return found


def _bits(who: int, what: str, mode: int, searchable: bool) -> int:
    found = 0
    for letter in what:
        if letter in _SHIFT:
            own = mode >> _SHIFT[letter] & 7
            found |= (own << 6 | own << 3 | own) & who
        elif letter == "X":
            found |= (0o111 if searchable else 0) & who
        elif letter == "s":
            found |= 0o6000 & who
        elif letter == "t":
            found |= stat.S_ISVTX if who & ~0o007 else 0
        else:
            found |= _BITS[letter] & who
    return found
