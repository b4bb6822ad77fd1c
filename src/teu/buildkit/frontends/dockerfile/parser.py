# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile's text to its instructions, each with its flags, arguments, heredocs and lines.

Nothing is judged here but the form: what an instruction may say is the business of `instructions`. Lines are read as
Docker reads them: a directive only at the top, continuation by the escape character at a line's end, comments and
empty lines inside a continued line left out, a heredoc's lines after the line that opens it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Location, Range, lines
from teu.buildkit.frontends.dockerfile.shell import Lexer, is_space, quoted
from teu.oci import jsontext

LINE_LIMIT = 65536  # bytes with the line's end, as BuildKit's reader takes them
_DIRECTIVES = ("syntax", "escape", "check")
_DIRECTIVE = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*\Z")
_BLANKS = re.compile(r"[\t\v\f\r ]+")
_HEREDOC = re.compile(r"(\d*)<<(-?)[\t\n\f\r ]*([^<]*)\Z", re.ASCII)
_TABS = re.compile(r"^\t+", re.MULTILINE)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Heredoc:
    """<<NAME: its content up to the line NAME, whether its variables are expanded, whether leading tabs go (<<-)."""

    name: str
    expand: bool = True
    chomp: bool = False
    descriptor: int = 0
    content: str = ""


@dataclass
class Node:
    """One instruction. `json` says that its arguments were a JSON list; `child` is what ONBUILD carries."""

    name: str
    flags: list[str] = field(default_factory=list)
    args: list[str] = field(default_factory=list)
    json: bool = False
    heredocs: list[Heredoc] = field(default_factory=list)
    original: str = ""
    start: int = 0
    end: int = 0
    comments: list[str] = field(default_factory=list)
    child: Node | None = None

    @property
    def location(self) -> Location:
        return lines(self.start, self.end)


@dataclass
class Parsed:
    """A Dockerfile: its instructions, its escape character, and the lines after empty continuation lines."""

    nodes: list[Node]
    escape: str
    empty_continuations: list[Location]


@dataclass(frozen=True)
class Directive:
    name: str
    value: str
    line: int


class DirectiveParser:
    """Reads `# name=value` lines; the first line that is none ends them."""

    def __init__(self, comment: str = "#", line: int = 0) -> None:
        self.comment = comment
        self.line = line
        self.done = False
        self.seen: set[str] = set()

    def read(self, line: str) -> Directive | None:
        """The directive of a line, if it is one. Raises DockerfileError for a second one of a name."""
        self.line += 1
        if self.done:
            return None
        match = None
        if line.startswith(self.comment):
            match = _DIRECTIVE.match(_left(line[len(self.comment) :]))
        if match is None or match[1].lower() not in _DIRECTIVES:
            self.done = True
            return None
        name = match[1].lower()
        if name in self.seen:
            raise DockerfileError(f"only one {name} parser directive can be used")
        self.seen.add(name)
        return Directive(name, match[2], self.line)


def find_directive(name: str, data: bytes, any_format: bool = False) -> Directive | None:
    """The directive `name` of a Dockerfile, after a byte order mark and a #! line.

    any_format also takes // in place of #, and a file that is a JSON object with the member `name`.
    """
    text = data.removeprefix(_BOM).decode("utf-8", "surrogateescape")
    line = 0
    if text.startswith("#!"):
        text = text.partition("\n")[2]
        line = 1
    for comment in ("#", "//") if any_format else ("#",):
        reader = DirectiveParser(comment, line)
        for part in text.split("\n"):
            try:
                found = reader.read(part.removesuffix("\r"))
            except DockerfileError:
                break
            if found and found.name == name:
                return found
            if reader.done:
                break
    if any_format and text.lstrip().startswith("{"):
        try:
            document = jsontext.loads(text)
        except (ValueError, RecursionError):
            return None
        value = document.get(name) if isinstance(document, dict) else None
        if isinstance(value, str):
            return Directive(name, value, line)
    return None


def syntax_of(data: bytes) -> tuple[str, str, Location] | None:
    """The frontend that a Dockerfile asks for: (reference, whole value, place)."""
    found = find_directive("syntax", data, any_format=True)
    if found is None:
        return None
    return found.value.partition(" ")[0], found.value, (Range(found.line, found.line),)


def _left(text: str) -> str:
    at = 0
    while at < len(text) and is_space(text[at]):
        at += 1
    return text[at:]


def _trim(text: str) -> str:
    end = len(text)
    while end and is_space(text[end - 1]):
        end -= 1
    return _left(text[:end])


def _is_comment(line: str) -> bool:
    return _left(line).startswith("#")


class _Lines:
    """The lines of a text with their ends, counted."""

    def __init__(self, data: bytes) -> None:
        self.parts = _split(data)
        self.count = 0

    def next(self) -> str | None:
        part = next(self.parts, None)
        if part is None:
            return None
        if len(part) > LINE_LIMIT:
            raise DockerfileError(
                f"dockerfile line greater than max allowed size of {LINE_LIMIT - 1}", lines(self.count, 0)
            )
        return part.decode("utf-8", "surrogateescape")


def _split(data: bytes) -> Iterator[bytes]:
    data = data.removeprefix(_BOM)
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end + 1
        yield data[start:end]
        start = end


class _Parser:
    """The state of one reading: the escape character, and the line reached."""

    def __init__(self) -> None:
        self.directives = DirectiveParser()
        self.set_escape("\\")

    def set_escape(self, escape: str) -> None:
        if escape not in ("\\", "`"):
            raise DockerfileError(f"invalid escape token '{escape}' does not match ` or \\")
        self.escape = escape
        mark = re.escape(escape)
        self.continuation = re.compile(rf"([^{mark}]){mark}[ \t]*\Z|\A{mark}[ \t]*\Z")

    def directive(self, line: str) -> bool:
        found = self.directives.read(line)
        if found is not None and found.name == "escape":
            self.set_escape(found.value)
        return found is not None

    def without_continuation(self, line: str) -> tuple[str, bool]:
        """The line without an escape character at its end, and whether it ends the instruction."""
        match = self.continuation.search(line)
        if match is None:
            return line, True
        return line[: match.start()] + (match[1] or ""), False

    def node(self, line: str, comments: list[str]) -> Node:
        """An instruction of one (joined) line."""
        parts = _BLANKS.split(_trim(line), maxsplit=1)
        flags: list[str] = []
        rest = ""
        if len(parts) == 2:
            rest, flags = self.flags(parts[1])
        node = Node(parts[0], flags, original=line, comments=comments)
        self.arguments(node, _trim(rest))
        return node

    def flags(self, line: str) -> tuple[str, list[str]]:
        """--flags at the beginning of a line, without their quotes: (what comes after them, flags)."""
        found: list[str] = []
        at = 0
        while True:
            while at < len(line) and is_space(line[at]):
                at += 1
            if not line.startswith("--", at):
                return line[at:], found
            word: list[str] = []
            quote = ""
            was_quoted = False
            while at < len(line):
                character = line[at]
                if character == self.escape:
                    if at + 1 == len(line):
                        at += 1
                        quote = ""
                        continue
                    at += 1
                    word.append(line[at])
                elif quote:
                    if character == quote:
                        quote = ""
                    else:
                        word.append(character)
                elif is_space(character):
                    break
                elif character in "'\"":
                    quote = character
                    was_quoted = True
                else:
                    word.append(character)
                at += 1
            text = "".join(word)
            if text == "--":
                return line[at:], found
            if text or was_quoted:
                found.append(text)
            if at >= len(line):
                return "", found

    def words(self, rest: str) -> list[str]:
        """Words between spaces; quotes and escapes stay in them."""
        result: list[str] = []
        word: list[str] = []
        quote = ""
        started = False
        at = 0
        while at < len(rest):
            character = rest[at]
            at += 1
            if not quote and is_space(character):
                if word or started:
                    result.append("".join(word))
                word, started = [], False
                continue
            if not quote and character in "'\"":
                quote = character
                started = True
            elif character == quote:
                quote = ""
            elif character == self.escape and quote != "'":
                if at == len(rest):
                    break
                word.append(character)
                character = rest[at]
                at += 1
            word.append(character)
        if word or started:
            result.append("".join(word))
        return result

    def arguments(self, node: Node, rest: str) -> None:
        kind = node.name.lower()
        if kind in ("add", "copy", "volume"):
            if not self.json(node, rest) and rest:
                node.args = _BLANKS.split(rest)
        elif kind in ("cmd", "entrypoint", "run", "shell"):
            if rest and not self.json(node, rest):
                node.args = [rest]
        elif kind == "arg":
            node.args = self.words(rest)
        elif kind in ("env", "label"):
            node.args = self.pairs(rest, kind.upper())
        elif kind in ("expose", "from"):
            node.args = _BLANKS.split(rest) if rest else []
        elif kind == "healthcheck":
            at = 0
            while at < len(rest) and not is_space(rest[at]):
                at += 1
            if at:
                command = _left(rest[at:])
                if command and not self.json(node, command):
                    node.args = [command]
                node.args = [rest[:at], *node.args]
        elif kind == "onbuild":
            if rest:
                node.child = self.node(rest, [])
                node.args = [node.child.name, *node.child.args]
        elif kind in ("maintainer", "stopsignal", "user", "workdir"):
            node.args = [rest] if rest else []

    def json(self, node: Node, rest: str) -> bool:
        """Whether the arguments are a JSON list, which is then taken."""
        text = _left(rest)
        if not text.startswith("["):
            return False
        try:
            value = jsontext.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(value, list):
            return False
        if not all(isinstance(item, str) for item in value):
            raise DockerfileError("when using JSON array syntax, arrays must be comprised of strings only")
        node.args = value
        node.json = True
        return True

    def pairs(self, rest: str, name: str) -> list[str]:
        """Names, values and separators in turn; the separator is empty in the old form `NAME value`."""
        words = self.words(rest)
        if not words:
            return []
        if "=" not in words[0]:
            parts = _BLANKS.split(rest, maxsplit=1)
            if len(parts) < 2:
                raise DockerfileError(f"{name} must have two arguments")
            return [parts[0], parts[1], ""]
        result: list[str] = []
        for word in words:
            key, separator, value = word.partition("=")
            if not separator:
                raise DockerfileError(f"Syntax error - can't find = in {quoted(word)}. Must be of the form: name=value")
            result += (key, value, "=")
        return result


def heredoc_of(word: str) -> Heredoc | None:
    """The heredoc that a word opens: [fd]<<[-]NAME, NAME in quotes where nothing is to be expanded."""
    match = _HEREDOC.match(word)
    if match is None or not match[3]:
        return None
    plain = Lexer(keep_unset=True).words(match[3])
    if len(plain) != 1:
        return None
    raw = Lexer(keep_unset=True, raw_quotes=True).words(match[3])
    if len(raw) != 1:
        return None
    marks = [sum(text.count(mark) for mark in "'\"") for text in (plain[0], raw[0])]
    return Heredoc(plain[0], marks[0] == marks[1], match[2] == "-", int(match[1] or 0))


def heredoc_in(word: str) -> Heredoc | None:
    """heredoc_of, with a word that is none for what is wrong."""
    try:
        return heredoc_of(word)
    except DockerfileError:
        return None


def _heredocs(line: str) -> list[Heredoc]:
    lexer = Lexer(raw_quotes=True, raw_escapes=True, keep_unset=True)
    try:
        words = lexer.words(line)
    except DockerfileError:
        return []
    return [found for found in map(heredoc_of, words) if found is not None]


def without_tabs(text: str) -> str:
    """What <<- makes of its content."""
    return _TABS.sub("", text)


def _takes_heredocs(node: Node) -> bool:
    if node.name.lower() == "onbuild" and node.child is not None:
        node = node.child
    return node.name.lower() in ("add", "copy", "run") and not node.json


def _line(state: _Parser, source: _Lines, first: str, complete: bool) -> tuple[str, bool]:
    """An instruction with the lines that go on with it, and whether empty ones stand between them."""
    parts = [first]
    gap = False
    while not complete:
        raw = source.next()
        if raw is None:
            break
        source.count += 1
        text = raw.rstrip("\r\n")
        if _is_comment(text):
            continue
        if not _left(text):
            gap = True
            continue
        text, complete = state.without_continuation(text)
        parts.append(text)
    return "".join(parts), gap


def parse(data: bytes) -> Parsed:
    """Parse a Dockerfile; raises DockerfileError with its lines."""
    state = _Parser()
    source = _Lines(data)
    nodes: list[Node] = []
    comments: list[str] = []
    empty: list[Location] = []
    while True:
        raw = source.next()
        if raw is None:
            break
        if _is_comment(raw):
            comment = _trim(raw[1:])
            comments = [*comments, comment] if comment else []
        text = _left(raw.rstrip("\r\n"))
        try:
            if state.directive(text):
                comments = comments[:-1]
        except DockerfileError as error:
            raise error.at(lines(source.count, 0)) from None
        source.count += 1
        start = source.count
        text, complete = state.without_continuation("" if _is_comment(text) else text)
        if complete and not text:
            continue
        line, gap = _line(state, source, text, complete)
        if gap:
            empty.append(lines(source.count, source.count))
        try:
            node = state.node(line, comments)
            if "<<" in line and _takes_heredocs(node):
                node.heredocs = [_filled(found, source) for found in _heredocs(line)]
        except DockerfileError as error:
            raise error if error.locations else error.at(lines(start, source.count)) from None
        node.start, node.end = start, source.count
        nodes.append(node)
        comments = []
    if not nodes:
        raise DockerfileError("file with no instructions", lines(source.count, 0))
    return Parsed(nodes, state.escape, empty)


def _filled(heredoc: Heredoc, source: _Lines) -> Heredoc:
    content: list[str] = []
    while True:
        raw = source.next()
        if raw is None:
            raise DockerfileError("unterminated heredoc")
        source.count += 1
        end = raw.rstrip("\r\n")
        if (end.lstrip("\t") if heredoc.chomp else end) == heredoc.name:
            return Heredoc(heredoc.name, heredoc.expand, heredoc.chomp, heredoc.descriptor, "".join(content))
        content.append(raw)
