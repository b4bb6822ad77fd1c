# SPDX-License-Identifier: Apache-2.0
"""Words and variables of a Dockerfile: what a shell would do with quotes, escapes and $NAME, as far as BuildKit does.

    $x ${x}            the value, or nothing
    ${x:-w} ${x-w}     w where x is empty or unset, or where it is unset
    ${x:+w} ${x+w}     w where x is set and not empty, or where it is set
    ${x:?w} ${x?w}     an error with w where the other two forms would take w
    ${x#p} ${x##p}     the value without its shortest or longest beginning that the pattern p matches
    ${x%p} ${x%%p}     the same of its end
    ${x/p/r} ${x//p/r} the value with r in place of the first, or of every, match of p

A pattern knows * and ? only. Single quotes keep everything, double quotes everything but $ and escapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from teu.buildkit.frontends.dockerfile.errors import DockerfileError

_SPECIAL = "@*#?-$!0"
WORD_LIMIT = 128 << 10  # characters of one expanded word: Linux takes no longer variable
PATTERN_LIMIT = 1024
_EMPTY: Mapping[str, str] = {}


def is_space(character: str) -> bool:
    """Whether Go calls the character a space, which four separators of ASCII are not."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


class Expansion:
    """A processed word: its text, its words, and the names that it asked for."""

    __slots__ = ("matched", "text", "unmatched", "words")

    def __init__(self, text: str, words: list[str], matched: set[str], unmatched: set[str]) -> None:
        self.text = text
        self.words = words
        self.matched = matched
        self.unmatched = unmatched


class Lexer:
    """Expands words. `escape` is the Dockerfile's escape character.

    raw_quotes and raw_escapes leave these in the result; process_quotes=False takes quotes for common characters;
    keep_unset leaves a variable that is not set as it was written. `limit` is how long a result may be, in characters.
    """

    def __init__(
        self,
        escape: str = "\\",
        *,
        raw_quotes: bool = False,
        raw_escapes: bool = False,
        process_quotes: bool = True,
        keep_unset: bool = False,
        limit: int = WORD_LIMIT,
    ) -> None:
        self.escape = escape
        self.limit = limit
        self.raw_quotes = raw_quotes
        self.raw_escapes = raw_escapes
        self.process_quotes = process_quotes
        self.keep_unset = keep_unset

    def expand(self, word: str, environment: Mapping[str, str] = _EMPTY) -> Expansion:
        """Raises DockerfileError with the word in its message."""
        scan = _Scan(self, word, environment)
        try:
            text, words = scan.until("", self.raw_escapes)
        except DockerfileError as error:
            raise error.prefixed(f"failed to process {quoted(word)}") from None
        return Expansion(text, words, scan.matched, scan.unmatched)

    def word(self, word: str, environment: Mapping[str, str] = _EMPTY) -> str:
        return self.expand(word, environment).text

    def words(self, word: str, environment: Mapping[str, str] = _EMPTY) -> list[str]:
        """The words after expansion, which quotes keep together."""
        return self.expand(word, environment).words


class _Words:
    """Collects words as characters come in."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.now: list[str] = []

    def add(self, text: str) -> None:
        for character in text:
            if not is_space(character):
                self.now.append(character)
            else:
                self.close()

    def add_raw(self, text: str) -> None:
        if text:
            self.now.append(text)

    def close(self) -> None:
        if self.now:
            self.done.append("".join(self.now))
            self.now = []


class _Scan:
    """One pass over one word."""

    def __init__(self, lexer: Lexer, text: str, environment: Mapping[str, str]) -> None:
        self.lexer = lexer
        self.text = text
        self.at = 0
        self.environment = environment
        self.raw = lexer.raw_escapes
        self.depth = 0
        self.matched: set[str] = set()
        self.unmatched: set[str] = set()

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def next(self) -> str:
        character = self.text[self.at : self.at + 1]
        self.at += len(character)
        return character

    def value(self, name: str) -> str | None:
        value = self.environment.get(name)
        (self.unmatched if value is None else self.matched).add(name)
        return value

    def until(self, stop: str, raw: bool) -> tuple[str, list[str]]:
        """What comes before `stop`, which is taken too, or before the end where `stop` is empty."""
        result: list[str] = []
        words = _Words()
        before, self.raw = self.raw, raw
        self.depth += 1
        if self.depth > 100:
            raise DockerfileError("syntax error: substitutions are nested too deeply")
        size = 0
        try:
            while character := self.peek():
                if size > self.lexer.limit:
                    raise DockerfileError(f"it expands to more than {self.lexer.limit} characters")
                if character == stop:
                    self.next()
                    words.close()
                    return "".join(result), words.done
                if character == "$":
                    part = self.dollar()
                    size += len(part)
                    words.add(part)
                    result.append(part)
                    continue
                if character == "<":
                    part = self.angle()
                elif character == "'" and self.lexer.process_quotes:
                    part = self.single()
                elif character == '"' and self.lexer.process_quotes:
                    part = self.double()
                else:
                    self.next()
                    if character != self.lexer.escape:
                        words.add(character)
                        result.append(character)
                        continue
                    following = self.next()
                    part = (character if self.raw else "") + following
                words.add_raw(part)
                result.append(part)
        finally:
            self.raw = before
            self.depth -= 1
        if stop:
            raise DockerfileError(f"unexpected end of statement while looking for matching {stop}")
        words.close()
        return "".join(result), words.done

    def angle(self) -> str:
        """< or <<, the latter with the spaces that may stand before a heredoc's name."""
        start = self.at
        self.next()
        if self.peek() == "<":
            self.next()
            while self.peek() and self.peek() in "\t\r ":
                self.next()
        return self.text[start : self.at]

    def single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            self.at = len(self.text)
            raise DockerfileError("unexpected end of statement while looking for matching single-quote")
        inner = self.text[self.at + 1 : end]
        self.at = end + 1
        return f"'{inner}'" if self.lexer.raw_quotes else inner

    def double(self) -> str:
        quote = '"' if self.lexer.raw_quotes else ""
        self.next()
        result = [quote]
        while character := self.peek():
            if character == '"':
                self.next()
                result.append(quote)
                return "".join(result)
            if character == "$":
                result.append(self.dollar())
                continue
            self.next()
            if character == self.lexer.escape:
                if self.raw:
                    result.append(character)
                following = self.peek()
                if not following:
                    continue
                if following in ('"', "$", self.lexer.escape):
                    character = self.next()
            result.append(character)
        raise DockerfileError("unexpected end of statement while looking for matching double-quote")

    def name(self) -> str:
        """A variable's name: digits, one special character, or letters, digits and underscores."""
        start = self.at
        first = self.peek()
        if first.isdigit():
            while self.peek().isdigit():
                self.next()
        elif first and first in _SPECIAL:
            self.next()
        else:
            while self.peek().isalpha() or self.peek().isdigit() or self.peek() == "_":
                self.next()
        return self.text[start : self.at]

    def dollar(self) -> str:
        self.next()
        if self.peek() != "{":
            name = self.name()
            if not name:
                return "$"
            value = self.value(name)
            if value is None:
                return f"${name}" if self.lexer.keep_unset else ""
            return value
        self.next()
        if not self.peek():
            raise DockerfileError("syntax error: missing '}'")
        if self.peek() in "{}:":
            raise DockerfileError("syntax error: bad substitution")
        name = self.name()
        modifier = self.next()
        if modifier == "}":
            value = self.value(name)
            if value is None:
                return f"${{{name}}}" if self.lexer.keep_unset else ""
            return value
        if modifier == "/":
            return self.replaced(name)
        if modifier == ":":
            modifier += self.next()
        if modifier.removeprefix(":") not in ("+", "-", "?", "#", "%") or modifier in (":#", ":%"):
            raise DockerfileError(f"unsupported modifier ({modifier or chr(0xFFFD)}) in substitution")
        return self.modified(name, modifier)

    def part(self, stop: str, raw: bool, missing: str) -> str:
        try:
            return self.until(stop, raw)[0]
        except DockerfileError:
            if not self.peek():
                raise DockerfileError(missing) from None
            raise

    def modified(self, name: str, modifier: str) -> str:
        kind = modifier[-1]
        word = self.part("}", kind in "#%", "syntax error: missing '}'")
        value = self.value(name)
        if value is None and self.lexer.keep_unset:
            return f"${{{name}{modifier}{word}}}"
        absent = value is None or (modifier.startswith(":") and not value)
        if kind == "-":
            return word if absent or value is None else value
        if kind == "+":
            return "" if absent else word
        if kind == "?":
            if absent or value is None:
                reason = "is not allowed to be unset" if value is None else "is not allowed to be empty"
                raise DockerfileError(f"{name}: {word or reason}")
            return value
        greedy = word.startswith(kind)
        pattern = word[1:] if greedy else word
        return _trimmed(pattern, value or "", greedy, at_end=kind == "%")

    def replaced(self, name: str) -> str:
        every = self.peek() == "/"
        if every:
            self.next()
        pattern = self.part("/", True, "syntax error: missing '/' in ${}")
        replacement = self.part("}", True, "syntax error: missing '}'")
        value = self.value(name)
        if value is None and self.lexer.keep_unset:
            return f"${{{name}/{pattern}/{replacement}}}"
        return _replaced(pattern, value or "", replacement, every)


class _Glob:
    """A pattern of * and ?, matched in a time that grows with the text's length alone.

    Between the stars are parts of a fixed length. The first place of each part leaves the most room for the others, so
    none is tried twice; only the last one stands where the shortest or the longest match wants it. A star crosses no
    end of a line, as with the regular expressions that BuildKit makes of such patterns.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > PATTERN_LIMIT:
            raise DockerfileError(f"invalid pattern in substitution: longer than {PATTERN_LIMIT} characters")
        parts = [""]
        at = 0
        while at < len(pattern):
            character = pattern[at]
            at += 1
            if character == "*":
                parts.append("")
            elif character == "?":
                parts[-1] += "."
            elif character != "\\":
                parts[-1] += re.escape(character)
            else:
                following = pattern[at : at + 1]
                if following and following in "}/":
                    continue
                if not following or following not in "*?\\":
                    raise DockerfileError(
                        f"invalid pattern ({pattern}) in substitution: invalid escape '\\{following or chr(0xFFFD)}'"
                    )
                parts[-1] += "\\" + following
                at += 1
        self.parts = [re.compile(part) for part in parts]

    def end(self, text: str, start: int, greedy: bool) -> int | None:
        """The end of the match that begins at `start`."""
        match = self.parts[0].match(text, start)
        if match is None or len(self.parts) == 1:
            return None if match is None else match.end()
        stop = text.find("\n", match.end())
        stop = len(text) if stop < 0 else stop
        for part in self.parts[1:-1]:
            match = part.search(text, match.end(), stop)
            if match is None:
                return None
        last = self.parts[-1]
        if not greedy:
            match = last.search(text, match.end(), stop)
            return None if match is None else match.end()
        for at in range(stop, match.end() - 1, -1):
            found = last.match(text, at, stop)
            if found is not None:
                return found.end()
        return None

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        """The first match from `start` on, as long as it can be."""
        while start <= len(text):
            first = self.parts[0].search(text, start)
            if first is None:
                return None
            end = self.end(text, first.start(), True)
            if end is not None:
                return first.start(), end
            if len(self.parts) == 1:
                return None
            # What does not fit behind the first place does not fit behind a later one of the line.
            line = text.find("\n", first.end())
            if line < 0:
                return None
            start = line + 1
        return None


def _trimmed(pattern: str, value: str, greedy: bool, at_end: bool) -> str:
    """`value` without the beginning, or the end, that the pattern matches."""
    if not at_end:
        end = _Glob(pattern).end(value, 0, greedy)
        return value if end is None else value[end:]
    # Of an end, neither the shortest nor the longest is what a search from the left finds: so turn both around.
    backwards = "".join(reversed(re.findall(r"\\.|.", pattern, re.DOTALL)))
    end = _Glob(backwards).end(value[::-1], 0, greedy)
    return value if end is None else value[: len(value) - end]


def _replaced(pattern: str, value: str, replacement: str, every: bool) -> str:
    """`value` with the replacement in the place of the first, or of every, match."""
    glob = _Glob(pattern)
    result: list[str] = []
    at = 0
    while True:
        found = glob.find(value, at)
        if found is None:
            break
        start, end = found
        if end == start and start and start == at and result:
            # An empty match right behind another one is none.
            found = glob.find(value, at + 1)
            if found is None:
                break
            start, end = found
        result += [value[at:start], replacement]
        at = end
        if not every or start == len(value):
            break
        if end == start:
            result.append(value[at : at + 1])
            at += 1
    return "".join(result) + value[at:]


_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def quoted(text: str) -> str:
    """Text in double quotes with Go's escapes (its %q)."""
    result = ['"']
    for character in text:
        code = ord(character)
        if character in '"\\':
            result.append("\\" + character)
        elif character in _ESCAPES:
            result.append(_ESCAPES[character])
        elif 0xDC80 <= code <= 0xDCFF:
            result.append(f"\\x{code - 0xDC00:02x}")
        elif character == " " or character.isprintable():
            result.append(character)
        elif code < 0x20 or code == 0x7F:
            result.append(f"\\x{code:02x}")
        elif code < 0x10000:
            result.append(f"\\u{code:04x}")
        else:
            result.append(f"\\U{code:08x}")
    result.append('"')
    return "".join(result)


def expanded(lexer: Lexer, text: str, environment: Mapping[str, str]) -> str:
    """A line for people: with its variables, or as it is where these make no sense."""
    try:
        return lexer.word(text, environment)
    except DockerfileError:
        return text


def upper_first(text: str) -> str:
    first, space, rest = text.partition(" ")
    return first.upper() + space + rest
