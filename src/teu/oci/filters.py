# SPDX-License-Identifier: Apache-2.0
"""containerd's filter language, as its List and Subscribe calls carry it, and BuildKit's DiskUsage and Prune.

    filter    := selector ("," selector)*          all must hold
    selector  := fieldpath [operator value]        without operator: the field is present
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="                equal, not equal, matches the regular expression
    value     := quoted | any printable characters but blanks and commas
    quoted    := "..." | with "~=" also /.../ and |...|

A list of filters holds when any of them does; an empty list always. An adaptor is a function from the field path to
the value, or None where the object has no such field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence


class FilterError(ValueError):
    """The text is no filter: it shows where that begins."""


Adaptor = Callable[[Sequence[str]], "str | None"]
Filter = Callable[[Adaptor], bool]

_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,]+")
_BLANKS = re.compile(r"\s*")
_SIMPLE_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
    "/": "/",
    "|": "|",
}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, why: str) -> FilterError:
        before, after = self.text[: self.at], self.text[self.at :]
        where = f"{before} >|{after[0]}|< {after[1:]}" if after else before
        return FilterError(f"filters: parse error: [{where}]: {why}")

    def blanks(self) -> None:
        self.at = _BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]

    def peek(self) -> str:
        self.blanks()
        return self.text[self.at : self.at + 1]

    def take(self, pattern: re.Pattern[str], expected: str) -> str:
        self.blanks()
        found = pattern.match(self.text, self.at)
        if not found:
            raise self.fail(f"expected {expected}")
        self.at = found.end()
        return found.group()

    def quoted(self) -> str:
        quote = self.text[self.at]
        end = self.at + 1
        while end < len(self.text) and self.text[end] not in (quote, "\n"):
            end += 2 if self.text[end] == "\\" else 1
        if end >= len(self.text) or self.text[end] != quote:
            raise self.fail("quoted literal not terminated")
        inner = self.text[self.at + 1 : end]

        def unescape(found: re.Match[str]) -> str:
            for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
                if found.group(group):
                    return chr(int(found.group(group), base))
            letter = found.group(5)
            if quote != '"' and letter != quote:
                return "\\" + letter  # a regular expression between / or | keeps its own escapes
            if letter not in _SIMPLE_ESCAPES:
                raise self.fail("illegal escape sequence")
            return _SIMPLE_ESCAPES[letter]

        value = _ESCAPE.sub(unescape, inner)
        self.at = end + 1
        return value

    def field(self) -> str:
        return self.quoted() if self.peek() == '"' else self.take(_FIELD, "field or quoted")

    def selector(self) -> Filter:
        path = [self.field()]
        while self.text[self.at : self.at + 1] == ".":
            self.at += 1
            path.append(self.field())
        if self.text[self.at : self.at + 1] in ("", ","):
            return lambda adapt: adapt(path) is not None
        operator = self.take(_OPERATOR, 'an operator ("=="|"!="|"~=")')
        if operator not in ("==", "!=", "~="):
            raise self.fail(f'unsupported operator "{operator}"')
        quotes = '"/|' if operator == "~=" else '"'
        if self.peek() and self.peek() in quotes:
            value = self.quoted()
        elif self.peek() in ("/", "|"):
            raise self.fail("invalid quote encountered")
        else:
            value = self.take(_VALUE, "value or quoted")
        if operator == "==":
            return lambda adapt: adapt(path) == value
        if operator == "!=":
            return lambda adapt: adapt(path) != value
        try:
            expression = re.compile(value)
        except re.error:
            return lambda adapt: False  # containerd's answer: it matches nothing
        return lambda adapt: (found := adapt(path)) is not None and expression.search(found) is not None

    def parse(self) -> Filter:
        selectors = [self.selector()]
        while self.text[self.at : self.at + 1] == ",":  # directly: a blank after a value is an error to containerd
            self.at += 1
            selectors.append(self.selector())
        if self.at < len(self.text):
            raise self.fail(f"unexpected input: {self.text[self.at]}")
        if len(selectors) == 1:
            return selectors[0]
        return lambda adapt: all(selector(adapt) for selector in selectors)


def _always(_adapt: Adaptor) -> bool:
    return True


def parse(text: str) -> Filter:
    """One filter; FilterError shows where it went wrong."""
    return _Parser(text).parse() if text else _always


def parse_all(texts: Iterable[str]) -> Filter:
    """The filter that holds when any of `texts` does, or always without any."""
    parsed = [parse(text) for text in texts]
    if not parsed:
        return _always
    if len(parsed) == 1:
        return parsed[0]
    return lambda adapt: any(one(adapt) for one in parsed)


def in_map(path: Sequence[str], mapping: Mapping[str, str]) -> str | None:
    """The rest of a path names one key, dots and all: labels.containerd.io/x is the label containerd.io/x."""
    return mapping.get(".".join(path))


def present(value: str) -> str | None:
    """For fields that count as absent when empty."""
    return value or None
