# SPDX-License-Identifier: Apache-2.0
"""The option parser. Every command describes its options in a text table, one line each:

    -d --detach          bool          Run in the background and print the container's ID
       --memory-swappiness  int=-1     Preference for swapping, 0 to 100

that is: short name (or nothing), long name, type with an optional default after `=`, description. A line
that starts with `!` is hidden from help. The same tables make `--help`, the man pages and the completion.
Called by `main` for each command. The rules are the ones docker's users know: clusters of short options
(`-it`), `-n5`, `-n=5`, `--name value`, `--name=value`, `--flag=false`, `--` ends the options, and for
commands that carry another command (`run`, `exec`) the first operand ends them too.
"""

from __future__ import annotations

from teu.cli.errors import CommandError
from teu.oci import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Types whose option may be given many times; the values are collected in a list.
REPEATED = frozenset(("list", "map", "filter", "strings", "ulimit", "network", "mount", "gpu-request", "secret"))
TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


class Options(dict):  # type: ignore[type-arg]
    """Values by long option name; `changed` holds the names that were given on the command line."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: set[str] = set()


class Usage(Exception):
    """The command line does not fit the table; the text says how."""


class Flag:
    """One line of a table."""

    __slots__ = ("default", "hidden", "kind", "name", "short", "text")

    def __init__(self, line: str) -> None:
        line = line.strip()
        self.hidden = line.startswith("!")
        if self.hidden:
            line = line[1:].lstrip()
        self.short = ""
        if not line.startswith("--"):
            self.short, line = line[1], line[2:].lstrip()
        parts = line.split(None, 2)
        self.name = parts[0][2:]
        self.kind, _, default = parts[1].partition("=")
        self.text = parts[2] if len(parts) > 2 else ""
        self.default = default

    def label(self) -> str:
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


def parse_table(table: str) -> list[Flag]:
    return [Flag(line) for line in table.split("\n") if line and not line.isspace()]


def convert(flag: Flag, text: str) -> Any:
    """The value of one option from its text; raises Usage with docker's wording."""
    kind = flag.kind
    try:
        if kind in ("string", *REPEATED):
            if kind == "filter" and text and "=" not in text:
                raise ValueError("bad format of filter (expected name=value)")
            if flag.name == "link" and (not text or text.count(":") > 1):
                wrong = f"bad format for links: {text}" if text else "empty string specified for links"
                raise ValueError(wrong)
            return text
        if kind == "bool":
            if text in TRUE:
                return True
            if text in FALSE:
                return False
            raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
        if kind in ("int", "uint16"):
            return integer(text, kind)
        if kind == "bytes":
            return units.parse_bytes(text)
        if kind == "swap":
            return -1 if text == "-1" else units.parse_bytes(text)
        if kind == "decimal":
            return units.parse_nano(text)
        if kind == "duration":
            return units.parse_duration(text)
    except ValueError as error:
        raise Usage(f'invalid argument "{text}" for "{flag.label()}" flag: {error}') from None
    raise AssertionError(kind)


def integer(text: str, kind: str) -> int:
    try:
        digits = text.lstrip("+-")
        value = int(text, 8) if len(digits) > 1 and digits[0] == "0" and digits.isdigit() else int(text, 0)
    except ValueError:
        function = "ParseUint" if kind == "uint16" else "ParseInt"
        raise ValueError(f'strconv.{function}: parsing "{text}": invalid syntax') from None
    if kind == "uint16" and not 0 <= value <= 0xFFFF:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return value


EMPTY: dict[str, Any] = {
    "string": "",
    "bool": False,
    "int": 0,
    "uint16": 0,
    "bytes": 0,
    "swap": 0,
    "decimal": 0,
    "duration": 0,
}


def parse(flags: list[Flag], argv: list[str], interspersed: bool = True) -> tuple[Options, list[str]]:
    """Read `argv` by the table: (options, operands). Raises Usage.

    `--help` (and `-h` where the table has no `-h` of its own) sets options["help"]."""
    reader = Reader(flags, argv)
    operands = reader.read(interspersed)
    return reader.options, operands


class Reader:
    """Reads one command line, word by word."""

    def __init__(self, flags: list[Flag], argv: list[str]) -> None:
        self.argv = argv
        self.position = 0
        self.long_names = {flag.name: flag for flag in flags}
        self.short_names = {flag.short: flag for flag in flags if flag.short}
        self.options = Options()
        for flag in flags:
            if flag.kind in REPEATED:
                self.options[flag.name] = []
            else:
                self.options[flag.name] = convert(flag, flag.default) if flag.default else EMPTY[flag.kind]
        self.options["help"] = False

    def read(self, interspersed: bool) -> list[str]:
        """Put the options into `options`; give the operands."""
        operands: list[str] = []
        while self.position < len(self.argv):
            word = self.argv[self.position]
            self.position += 1
            if word == "--":
                break
            if word.startswith("--"):
                self.read_long(word)
            elif word.startswith("-") and word != "-":
                self.read_cluster(word)
            else:
                operands.append(word)
                if not interspersed:
                    break
        return operands + self.argv[self.position :]

    def read_long(self, word: str) -> None:
        """`--name`, `--name value` or `--name=value`."""
        name, equals, text = word[2:].partition("=")
        if not name or name[0] == "-":
            raise Usage(f"bad flag syntax: {word}")
        flag = self.long_names.get(name)
        if flag is None:
            if name != "help":
                raise Usage(f"unknown flag: --{name}")
            self.options["help"] = text not in FALSE
            return
        if not equals:
            text = "true" if flag.kind == "bool" else self.argument(f"--{name}")
        self.put(flag, text)

    def read_cluster(self, word: str) -> None:
        """`-i`, `-it`, `-n5`, `-n=5`, `-n 5`, `-itn5`."""
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = self.short_names.get(letter)
            if flag is None:
                if letter != "h":
                    raise Usage(f"unknown shorthand flag: '{letter}' in {word}")
                self.options["help"] = True
            elif len(letters) > 1 and letters[0] == "=":
                self.put(flag, letters[1:])
                return
            elif flag.kind == "bool":
                self.put(flag, "true")
            else:
                self.put(flag, letters or self.argument(f"'{letter}' in {word}"))
                return

    def argument(self, asked: str) -> str:
        """The next word, as the value of the option that asked for one."""
        if self.position >= len(self.argv):
            raise Usage(f"flag needs an argument: {asked}")
        self.position += 1
        return self.argv[self.position - 1]

    def put(self, flag: Flag, text: str) -> None:
        value = convert(flag, text)
        if flag.kind in REPEATED:
            self.options[flag.name].append(value)
        else:
            self.options[flag.name] = value
        self.options.changed.add(flag.name)


def split_csv(text: str) -> list[str]:
    """The fields of one comma-separated value in which `"…"` protects commas (as in --mount)."""
    if '"' not in text:
        return text.split(",")
    fields, current, quoted, position = [], "", False, 0
    while position < len(text):
        letter = text[position]
        if quoted:
            if letter == '"' and text[position + 1 : position + 2] == '"':
                current += '"'
                position += 1
            elif letter == '"':
                quoted = False
            else:
                current += letter
        elif letter == '"' and not current:
            quoted = True
        elif letter == ",":
            fields.append(current)
            current = ""
        elif letter == '"':
            raise CommandError(f'bare " in non-quoted field: {text}', 125)
        else:
            current += letter
        position += 1
    if quoted:
        raise CommandError(f'extraneous or missing " in quoted field: {text}', 125)
    fields.append(current)
    return fields


def filters(values: list[str]) -> dict[str, dict[str, bool]]:
    """--filter values as the API wants them: {"status": {"exited": true}}."""
    result: dict[str, dict[str, bool]] = {}
    for value in filter(None, values):
        key, _, text = value.partition("=")
        result.setdefault(key.strip().lower(), {})[text.strip()] = True
    return result


def key_values(values: list[str]) -> dict[str, str]:
    """KEY=VALUE words as a map; a bare KEY has the empty value."""
    result = {}
    for value in values:
        key, _, text = value.partition("=")
        result[key] = text
    return result
