# SPDX-License-Identifier: Apache-2.0
"""Options as ctr reads them: one or two dashes for any name, `-name value` or `-name=value`, and the first operand
ends them. Tables as everywhere here: `NAME[,SHORT]  KIND[=DEFAULT]  text`; a `$NAME` in the text is a variable that
gives the value."""

from __future__ import annotations

import os
import re
from typing import Any

TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


class Usage(Exception):
    """The command line does not fit the table."""


class Flag:
    def __init__(self, line: str) -> None:
        self.line = line
        parts = line.split(None, 2)
        self.name, _, self.short = parts[0].partition(",")
        self.kind, _, self.default = parts[1].partition("=")
        self.text = parts[2] if len(parts) > 2 else ""
        self.variable = ""
        if "$" in self.text:
            self.variable = self.text.partition("$")[2].split()[0].rstrip(")].,")

    @property
    def dashed(self) -> str:
        """As it is written: `--name`, or `-n` where it has only a letter."""
        return ("--" if len(self.name) > 1 else "-") + self.name

    def convert(self, text: str, given: str = "") -> Any:
        """`given` is how the user called it, for the error."""
        try:
            if self.kind == "bool":
                if text in TRUE or text in FALSE:
                    return text in TRUE
                raise ValueError
            if self.kind == "int":
                return int(text, 0)
            if self.kind == "float":
                return float(text)
            if self.kind == "duration":
                return duration(text)
        except ValueError:
            raise Usage(f'invalid value "{text}" for flag -{given or self.name}: parse error') from None
        return text

    def empty(self) -> Any:
        given = os.environ.get(self.variable, "") if self.variable else ""
        if given:
            return self.convert(given)
        if self.default:
            return self.convert(self.default)
        return {"bool": False, "int": 0, "float": 0.0, "duration": 0.0, "strings": []}.get(self.kind, "")


def duration(text: str) -> float:
    """Go's durations in seconds."""
    if text == "0":
        return 0.0
    parts = re.findall(r"([\d.]+)(h|ms|us|ns|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(text)
    return sum(float(number) * UNITS[unit] for number, unit in parts)


class Options(dict[str, Any]):
    def __init__(self) -> None:
        super().__init__()
        self.changed: set[str] = set()


def parse_table(table: str) -> list[Flag]:
    return [Flag(line) for line in table.split("\n") if line.strip()]


def parse(flags: list[Flag], argv: list[str]) -> tuple[Options, list[str]]:
    options = Options()
    known: dict[str, Flag] = {}
    for flag in flags:
        options[flag.name] = list(flag.empty()) if flag.kind == "strings" else flag.empty()
        known[flag.name] = flag
        if flag.short:
            known[flag.short] = flag
    options["help"] = False
    position = 0
    while position < len(argv):
        word = argv[position]
        if len(word) < 2 or word[0] != "-":
            break
        position += 1
        if word == "--":
            break
        name, equals, text = word.lstrip("-").partition("=")
        if name in ("help", "h") and name not in known:
            options["help"] = True
            continue
        if name not in known:
            raise Usage(f"flag provided but not defined: -{name}")
        flag = known[name]
        if not equals:
            if flag.kind == "bool":
                text = "true"
            elif position < len(argv):
                text = argv[position]
                position += 1
            else:
                raise Usage(f"flag needs an argument: -{name}")
        if flag.kind == "strings":
            if flag.name not in options.changed:
                options[flag.name] = []
            options[flag.name].append(text)
        else:
            options[flag.name] = flag.convert(text, name)
        options.changed.add(flag.name)
    return options, argv[position:]


def labels(words: list[str]) -> dict[str, str]:
    """KEY=VALUE words; a bare KEY means `true`, as ctr has it."""
    result = {}
    for word in words:
        key, equals, value = word.partition("=")
        result[key] = value if equals else "true"
    return result


# Of commands that speak to a registry, or that have ctr's options for one.
REGISTRY = """
skip-verify,k  bool    Do not check certificates
plain-http     bool    Speak plain HTTP
user,u         string  USER[:PASSWORD] for the registry
refresh        string  Refresh token for the registry
hosts-dir      string  Folder with hosts.toml or certificates of registries, as containerd has it
tlscacert      string  File of the authorities to trust, in place of the system's
tlscert        string  Certificate to show, a file
tlskey         string  Key of that certificate, a file
http-dump      bool    Show requests and answers on standard error
http-trace     bool    Show connections on standard error, with --debug
"""
