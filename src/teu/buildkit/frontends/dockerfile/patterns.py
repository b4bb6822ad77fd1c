# SPDX-License-Identifier: Apache-2.0
"""Patterns of .dockerignore files: which paths of a context they leave out.

    *      anything but /               **    anything, / too (also nothing)
    ?      one character but /          [a-z] one of a class
    !p     what p matches comes back    #     a comment, in the first column of a .dockerignore

A path is left out where a pattern matches it or one of its parents; the last pattern that matches decides.
"""

from __future__ import annotations

import re

from teu.buildkit.frontends.dockerfile.errors import DockerfileError

_BOM = b"\xef\xbb\xbf"


def clean(path: str) -> str:
    """The shortest equal path (Go's path.Clean): no empty or . parts, .. resolved where a name stands before it."""
    rooted = path.startswith("/")
    parts: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".." or not rooted:
            parts.append(part)
    return ("/" if rooted else "") + "/".join(parts) or "."


def join(*parts: str) -> str:
    """Go's path.Join: the parts that are not empty with / between them, cleaned."""
    present = [part for part in parts if part]
    return clean("/".join(present)) if present else ""


def read_ignore_file(data: bytes) -> list[str]:
    """The patterns of a .dockerignore file, relative to the context."""
    result = []
    for number, raw in enumerate(data.split(b"\n")):
        line = raw.removesuffix(b"\r")
        if number == 0:
            line = line.removeprefix(_BOM)
        text = line.decode("utf-8", "surrogateescape")
        if text.startswith("#"):
            continue
        text = text.strip()
        if not text:
            continue
        excepted = text.startswith("!")
        if excepted:
            text = text[1:].strip()
        if text:
            text = clean(text)
            if len(text) > 1:
                text = text.removeprefix("/")
        result.append("!" + text if excepted else text)
    return result


class Pattern:
    """One pattern: its cleaned text, and whether it brings back what it matches."""

    __slots__ = ("exclusion", "expression", "text")

    def __init__(self, text: str, exclusion: bool) -> None:
        self.text = text
        self.exclusion = exclusion
        self.expression = _compiled(text)

    def matches(self, path: str) -> bool:
        return self.expression.match(path) is not None


class Matcher:
    """Patterns in their order; raises DockerfileError for one that is none."""

    def __init__(self, patterns: list[str]) -> None:
        self.patterns: list[Pattern] = []
        for given in patterns:
            text = given.strip()
            if not text:
                continue
            text = clean(text)
            exclusion = text.startswith("!")
            if exclusion:
                if len(text) == 1:
                    raise DockerfileError('illegal exclusion pattern: "!"')
                text = text[1:]
            self.patterns.append(Pattern(text, exclusion))

    @property
    def has_exclusions(self) -> bool:
        return any(pattern.exclusion for pattern in self.patterns)

    def matches(self, path: str) -> bool:
        """Whether the patterns leave a path out: by itself or by a parent of it."""
        parts = path.split("/")
        parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
        left_out = False
        for pattern in self.patterns:
            if pattern.exclusion == left_out and (
                pattern.matches(path) or any(pattern.matches(parent) for parent in parents)
            ):
                left_out = not pattern.exclusion
        return left_out


def _compiled(text: str) -> re.Pattern[str]:
    _check(text)
    if text.startswith("**") and not text.startswith("**/") and not any(mark in text[2:] for mark in "*?[]\\"):
        return re.compile(".*" + re.escape(text[2:]) + r"\Z", re.DOTALL)  # **x is any path that ends in x
    result = []
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "*":
            if text[at : at + 1] != "*":
                result.append("[^/]*")
                continue
            at += 1
            if text[at : at + 1] == "/":
                at += 1
            # At the end anything, before something any number of folders.
            result.append(".*" if at == len(text) else "(?:.*/)?")
        elif character == "?":
            result.append("[^/]")
        elif character == "\\":
            result.append(re.escape(text[at : at + 1] or "\\"))
            at += 1
        elif character == "[":
            end = _class_end(text, at)
            result.append("[" + _class(text[at : end - 1]) + "]")
            at = end
        else:
            result.append(re.escape(character))
    return re.compile("".join(result) + r"\Z", re.DOTALL)


def _class(inner: str) -> str:
    negated = inner.startswith("^")
    body = inner[1:] if negated else inner
    return ("^" if negated else "") + re.sub(r"([\[\]&~|^])", r"\\\1", body.replace("\\", "\\\\"))


def _class_end(text: str, at: int) -> int:
    """The place after the ] of a class that begins at `at`."""
    start = at
    if text[at : at + 1] == "^":
        at += 1
        start += 1
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        if text[at] == "]" and at > start:
            return at + 1
        at += 1
    return -1


def _check(text: str) -> None:
    """Raise for what Go's filepath.Match calls a bad pattern."""
    at = 0
    while at < len(text):
        if text[at] == "[":
            at = _class_end(text, at + 1)
            if at < 0:
                raise DockerfileError("syntax error in pattern")
            continue
        if text[at] == "\\":
            at += 1
            if at >= len(text):
                raise DockerfileError("syntax error in pattern")
        at += 1
