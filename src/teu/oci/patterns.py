# SPDX-License-Identifier: Apache-2.0
"""Patterns of paths, as .dockerignore, COPY --exclude and the file protocol have them, and wildcards of path.Match.

    *    anything but "/"        **   anything        ?   one character but "/"        [a-z]   one of them
    !P   an exception: what P matches is out again; the last pattern that matches decides

A pattern that matches a folder matches what is in it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from functools import lru_cache

PATTERNS_MAX = 10_000
LENGTH_MAX = 4096  # characters of one pattern


class BadPattern(ValueError):
    """The text is no pattern."""


Parents = tuple[bool, ...]  # which patterns matched the folder above, by number; empty where nobody asked


class Patterns:
    """A list of patterns. Raises BadPattern."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for text in texts:
            text = text.strip()
            if not text:
                continue
            exception = text.startswith("!")
            if exception:
                text = text[1:]
                if not text:
                    raise BadPattern('illegal exclusion pattern: "!"')
            self._rules.append((exception, _compile(posixpath.normpath(text).replace("//", "/"))))
            if len(self._rules) > PATTERNS_MAX:
                raise BadPattern(f"more than {PATTERNS_MAX} patterns")

    def __bool__(self) -> bool:
        return bool(self._rules)

    @property
    def exceptions(self) -> bool:
        """Whether any pattern is one with "!": below what is matched something may be that is not."""
        return any(exception for exception, _ in self._rules)

    def matches(self, path: str, parents: Parents = ()) -> tuple[bool, Parents]:
        """Does the list match the path (relative, without "./")? And what to give as `parents` for what is in it.

        Without `parents` the folders that the path itself names are looked at."""
        matched = False
        own = [False] * len(self._rules)
        above = [] if parents else _above(path)
        for number, (exception, expression) in enumerate(self._rules):
            hit = bool(parents) and parents[number]
            if not hit:
                if exception != matched:
                    continue  # it would change nothing
                hit = expression.fullmatch(path) is not None or any(expression.fullmatch(one) for one in above)
            own[number] = hit
            if hit:
                matched = not exception
        return matched, tuple(own)


def _above(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(_expression(_tokens(pattern, True), pattern), re.DOTALL)


_STAR, _DEEP, _ALL = "*", "**/", "**"
_EXOTIC_MAX = 4  # "**" of one pattern that are not whole names: no expression goes back and forth over more


def _tokens(pattern: str, deep: bool) -> list[str]:
    """Wildcards as they are above, and expressions for one character each."""
    if len(pattern) > LENGTH_MAX:
        raise BadPattern(f"syntax error in pattern: longer than {LENGTH_MAX} characters")
    tokens: list[str] = []
    at = 0
    while at < len(pattern):
        if not pattern.startswith("*", at):
            piece, at = _piece(pattern, at)
            tokens.append(piece)
        elif deep and pattern.startswith("**", at):
            at += 2
            at += pattern.startswith("/", at)
            tokens.append(_ALL if at >= len(pattern) else _DEEP)
        else:
            at += 1
            if not tokens or tokens[-1] != _STAR:
                tokens.append(_STAR)
    return tokens


def _expression(tokens: list[str], pattern: str) -> str:
    """The regular expression. Where a wildcard comes again, the shortest match of what stands before it is as good as
    any, and is not tried again (atomic groups): the time is no power of the number of wildcards."""
    segments: list[tuple[str, list[str]]] = [("", [])]
    for token in tokens:
        if token in (_DEEP, _ALL):
            segments.append((token, []))
        else:
            segments[-1][1].append(token)
    exotic = 0
    text = ""
    for number, (wild, segment) in enumerate(segments):
        last = number + 1 == len(segments)
        body = _names(segment)
        if wild == _ALL:
            text += ".*" + body
        elif wild == _DEEP and not last and segment and segment[-1] == "/":
            text += f"(?>(?:.*?/)??{body})"
        elif wild == _DEEP:
            exotic += not last
            text += f"(?:.*/)?{body}"
        else:
            text += body
    if exotic > _EXOTIC_MAX:
        raise BadPattern(f"syntax error in pattern: too many **: {pattern}")
    return text


def _names(tokens: list[str]) -> str:
    text = ""
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token == _STAR:
            parts.append([])
        else:
            parts[-1].append(token)
    for number, part in enumerate(parts):
        body = "".join(part)
        if number == 0:
            text += body
        elif number + 1 < len(parts):
            text += f"(?>[^/]*?{body})"
        else:
            text += f"[^/]*{body}"
    return text


def _piece(pattern: str, at: int) -> tuple[str, int]:
    """The expression for the one character that is described at `at`, and where the next description begins."""
    letter = pattern[at]
    if letter == "?":
        return "[^/]", at + 1
    if letter == "\\":
        if at + 1 >= len(pattern):
            raise BadPattern(f"syntax error in pattern: {pattern}")
        return re.escape(pattern[at + 1]), at + 2
    if letter == "[":
        return _class(pattern, at)
    return re.escape(letter), at + 1


def _class(pattern: str, at: int) -> tuple[str, int]:
    """[...] of path.Match: ranges and escapes, "^" for what is not in it; never "/"."""
    bad = BadPattern(f"syntax error in pattern: {pattern}")
    at += 1
    negated = pattern.startswith("^", at)
    at += negated
    ranges = ""
    while True:
        if at >= len(pattern):
            raise bad
        if pattern[at] == "]" and ranges:
            return f"[^/{ranges}]" if negated else f"(?!/)[{ranges}]", at + 1
        low, at = _letter(pattern, at, bad)
        high = low
        if pattern.startswith("-", at):
            high, at = _letter(pattern, at + 1, bad)
        if low > high:
            low, high = high, low
            ranges += "" if ranges else "\0"  # an empty range matches nothing
            continue
        ranges += f"{re.escape(low)}-{re.escape(high)}"


def _letter(pattern: str, at: int, bad: BadPattern) -> tuple[str, int]:
    if at >= len(pattern) or pattern[at] in "-]":
        raise bad
    if pattern[at] == "\\":
        at += 1
        if at >= len(pattern):
            raise bad
    return pattern[at], at + 1


def has_wildcards(name: str) -> bool:
    """Whether path.Match would see more than letters in it."""
    at = 0
    while at < len(name):
        if name[at] in "*?[":
            return True
        at += 2 if name[at] == "\\" else 1
    return False


@lru_cache(maxsize=1024)
def wildcard(pattern: str) -> re.Pattern[str]:
    """The expression for a pattern of path.Match, where "**" is no more than "*". Raises BadPattern."""
    return re.compile(_expression(_tokens(pattern, False), pattern), re.DOTALL)
