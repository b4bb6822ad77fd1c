# SPDX-License-Identifier: Apache-2.0
"""Reads declared files: the syntax of systemd.syntax(7), the folders, drop-ins, templates and their instances.

    /run/teu/containers  /etc/teu/containers  /usr/share/teu/containers      the first that has a name wins
        NAME.container (.volume .network .image .build .pod), also in folders below, and behind symbolic links
        NAME.container.d/*.conf      drop-ins, also A-.container.d for A-B.container, and container.d for all
        NAME@.container              a template; NAME@X.container, a link to it, is an instance

Called by the generator, so it is os and nothing else.
"""

from __future__ import annotations

import os

FOLDERS = ("/run/teu/containers", "/etc/teu/containers", "/usr/share/teu/containers")
KINDS = ("container", "volume", "network", "image", "build", "pod")
# Kinds of podman's that have no meaning here; a file is told of, not passed over.
FOREIGN = ("kube", "artifact", "quadlets")
# how deep folders may lie in one another, which ends circles of links
DEPTH = 16

ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "s": " ",
    "\\": "\\",
    '"': '"',
    "'": "'",
}
HEXADECIMAL = {"x": 2, "u": 4, "U": 8}
BLANK = " \t\n\r"
# No name of a unit has one of these.
NO_NAME = frozenset(" /\t\n")
# A word with one of these is quoted.
SPECIAL = frozenset(" \t\n\r\"'\\;")
# What stands for what is no UTF-8 where a text is decoded without fail, and how itself is written in UTF-8.
REPLACED, REPLACED_BYTES = "\ufffd", b"\xef\xbf\xbd"


class Problem(Exception):
    """What is wrong with a file: `path`, `line` (0 for the file as a whole) and a text with the remedy."""

    def __init__(self, path: str, line: int, text: str) -> None:
        super().__init__(text)
        self.path = path
        self.line = line
        self.text = text

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}" if self.line else f"{self.path}: {self.text}"


class Entry:
    """One assignment, and where it stands."""

    __slots__ = ("key", "line", "path", "value")

    def __init__(self, key: str, value: str, path: str, line: int) -> None:
        self.key = key
        self.value = value
        self.path = path
        self.line = line

    def problem(self, text: str) -> Problem:
        return Problem(self.path, self.line, text)

    def folder(self) -> str:
        """The folder of the file, which relative paths begin at."""
        return self.path.rpartition("/")[0]


class Declared:
    """One file with its drop-ins. `name` is with its kind, as web.container; `problems` is what is wrong with it."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.stem, _, self.kind = name.rpartition(".")
        self.sections: dict[str, list[Entry]] = {}
        self.keyed: dict[str, dict[str, list[Entry]]] = {}  # the same, by section and key
        self.problems: list[Problem] = []

    @property
    def template(self) -> bool:
        return self.stem.endswith("@")

    def section(self, name: str) -> list[Entry]:
        return self.sections.get(name, [])

    def last(self, section: str, key: str) -> Entry | None:
        """The assignment that counts where only one does; None where there is none, or the last one is empty."""
        keys = self.keyed.get(section)
        if keys is None or key not in keys:
            return None
        entry = keys[key][-1]
        return entry if entry.value else None

    def every(self, section: str, key: str) -> list[Entry]:
        """All assignments since the last empty one."""
        keys = self.keyed.get(section)
        return since_empty(keys[key]) if keys is not None and key in keys else []

    def read(self, path: str) -> None:
        """Add what a file says. What cannot be read becomes a problem."""
        try:
            data = _content(path)
        except OSError as error:
            self.problems.append(Problem(path, 0, f"cannot be read: {error.strerror}"))
            return
        # A strict decode would have a quick start completed at each letter that is no ASCII (teu.coldstart).
        text = data.decode("utf-8", "replace")
        if REPLACED in text and text.count(REPLACED) != data.count(REPLACED_BYTES):
            self.problems.append(Problem(path, 0, "is not UTF-8: save it as such"))
            return
        self.parse(text, path)

    def parse(self, text: str, path: str) -> None:
        section: list[Entry] | None = None
        keys: dict[str, list[Entry]] = {}
        pending, first = "", 0
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip(BLANK)
            if not pending:
                if not line or line[0] in "#;":
                    continue
                first = number
            elif line[:1] in ("#", ";"):
                continue
            else:
                line = pending + line
                pending = ""
            if line[-1] == "\\":
                pending = line[:-1] + " "
                continue
            if line[0] == "[":
                if line[-1] != "]" or len(line) < 3:
                    self.problems.append(Problem(path, first, f"{line} is no section: write [Name]"))
                    continue
                section = self.sections.setdefault(line[1:-1], [])
                keys = self.keyed.setdefault(line[1:-1], {})
                continue
            key, equals, value = line.partition("=")
            key = key.strip(BLANK)
            if not equals or not key:
                self.problems.append(Problem(path, first, f"{line} is no assignment: write Key=Value"))
            elif section is None:
                self.problems.append(Problem(path, first, f"{line} stands before the first section"))
            else:
                entry = Entry(key, value.strip(BLANK), path, first)
                section.append(entry)
                if key in keys:
                    keys[key].append(entry)
                else:
                    keys[key] = [entry]
        if pending:
            self.problems.append(Problem(path, first, "the file ends in the middle of this line, after a backslash"))


def since_empty(entries: list[Entry]) -> list[Entry]:
    """Assignments of one key, those since the last empty one."""
    for at in range(len(entries) - 1, -1, -1):
        if not entries[at].value:
            return entries[at + 1 :]
    return entries


def _content(path: str) -> bytes:
    """What is in a file. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while part := os.read(file, 1 << 16):
            data += part
        return data
    finally:
        os.close(file)


def words(entry: Entry) -> list[str]:
    """The words of a value, as systemd splits them: quotes and C's escapes. Problem for what is not closed."""
    text = entry.value
    if "\\" not in text and "'" not in text and '"' not in text:
        return text.split()
    found = []
    word, quote, started, at = "", "", False, 0
    while at < len(text):
        letter = text[at]
        at += 1
        if letter == "\\":
            piece, at = _escaped(entry, at)
            word, started = word + piece, True
        elif quote:
            if letter == quote:
                quote = ""
            else:
                word += letter
        elif letter in "'\"":
            quote, started = letter, True
        elif letter not in BLANK:
            word, started = word + letter, True
        elif started:
            found.append(word)
            word, started = "", False
    if quote:
        raise entry.problem(f"{entry.key}= has a {quote} that is not closed")
    return [*found, word] if started else found


def _escaped(entry: Entry, at: int) -> tuple[str, int]:
    """What stands behind a backslash, and where it ends. An escape that is none stays as it is, as in systemd."""
    text = entry.value
    letter = text[at : at + 1]
    if letter in ESCAPES and letter:
        return ESCAPES[letter], at + 1
    digits, base = ("", 16)
    if letter in HEXADECIMAL and letter:
        digits = text[at + 1 : at + 1 + HEXADECIMAL[letter]]
        end = at + 1 + HEXADECIMAL[letter]
    elif letter.isdigit():
        digits, base, end = text[at : at + 3], 8, at + 3
    else:
        return "\\" + letter, at + 1
    try:
        code = int(digits, base)
        if not 0xD800 <= code <= 0xDFFF:  # halves of surrogate pairs are no letters, for systemd neither
            return chr(code) if code else "", end
    except (ValueError, OverflowError):
        pass
    raise entry.problem(f"{entry.key}= has an escape that is none: \\{letter}{digits}")


def quoted(word: str) -> str:
    """A word as it is written in a command line of a unit. Specifiers (%i) and variables ($X) stay alive."""
    if word and SPECIAL.isdisjoint(word):
        return word
    for plain, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        word = word.replace(plain, written)
    return f'"{word}"'


def command_line(given: list[str]) -> str:
    """Words as a command line of a unit."""
    if "" not in given and SPECIAL.isdisjoint("".join(given)):
        return " ".join(given)
    return " ".join([quoted(word) for word in given])


def truth(entry: Entry) -> bool:
    """A value that is yes or no, as systemd reads it."""
    value = entry.value.lower()
    if value in ("1", "yes", "y", "true", "t", "on"):
        return True
    if value in ("0", "no", "n", "false", "f", "off"):
        return False
    raise entry.problem(f"{entry.key}={entry.value} is neither yes nor no")


class Places:
    """What is in the folders and below them, in the order of names, found in one walk; folders of drop-ins are not
    entered."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self.files: list[tuple[str, str, bool]] = []  # name, path, and whether it is a symbolic link
        self._drops: dict[str, list[str]] = {}  # the folders NAME.d
        for folder in folders:
            self._walk(folder, 0)

    def _walk(self, folder: str, depth: int) -> None:
        try:
            with os.scandir(folder) as entries:
                found = {entry.name: entry for entry in entries}
        except OSError:
            return
        for name in sorted(found):
            path = f"{folder}/{name}"
            kind = name.rpartition(".")[2]
            if kind in KINDS or kind in FOREIGN:
                self.files.append((name, path, found[name].is_symlink()))
            elif name[-2:] == ".d":
                if name[:-2].rpartition(".")[2] in KINDS:
                    self._drops.setdefault(name, []).append(path)
            elif depth < DEPTH and os.path.isdir(path):
                self._walk(path, depth + 1)

    def drops(self, declared: Declared) -> list[str]:
        """The paths of a file's drop-ins in the order of their names. Of two with one name, the more special one
        counts, then that of the earlier place."""
        if not self._drops:
            return []
        kind, stem = declared.kind, declared.stem
        wanted = [f"{declared.name}.d"]
        base, at, instance = stem.partition("@")
        if at and instance:
            wanted.append(f"{base}@.{kind}.d")
        parts = base.split("-")
        wanted += [f"{'-'.join(parts[:count])}-.{kind}.d" for count in range(len(parts) - 1, 0, -1)]
        wanted.append(f"{kind}.d")
        chosen: dict[str, str] = {}
        for name in wanted:
            for place in self._drops.get(name, ()):
                try:
                    found = os.listdir(place)
                except OSError:
                    continue
                for file in found:
                    if file.endswith(".conf"):
                        chosen.setdefault(file, f"{place}/{file}")
        return [chosen[file] for file in sorted(chosen)]


def load(folders: tuple[str, ...] = FOLDERS) -> tuple[dict[str, Declared], list[Problem]]:
    """All declared files by name, and what is wrong with files that are none of ours."""
    places = Places(folders)
    chosen: dict[str, tuple[str, bool]] = {}
    problems = []
    for name, path, is_link in places.files:
        if name.rpartition(".")[2] in FOREIGN:
            text = "files of this kind are podman's alone: declare its containers in .container and .pod files"
            problems.append(Problem(path, 0, text))
        else:
            chosen.setdefault(name, (path, is_link))
    found = {}
    for name, (path, is_link) in chosen.items():
        try:
            if is_link and os.readlink(path) == "/dev/null":
                continue  # masked, as units are
        except OSError:
            pass  # no longer
        declared = found[name] = Declared(name, path)
        if not declared.stem or not NO_NAME.isdisjoint(declared.stem):
            declared.problems.append(Problem(path, 0, "the name of the file is none of a unit"))
        declared.read(path)
        for drop in places.drops(declared):
            declared.read(drop)
    return found, problems
