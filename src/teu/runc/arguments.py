# SPDX-License-Identifier: Apache-2.0
"""The command line, as runc reads it.

A command's module describes itself by two tables that teu.runc.main uses:

    FLAGS = {"pid-file": ("p", "string", "", "file to write the process id to"), ...}
             name        short  kind     default  help
    USAGE = "<container-id>"

Kinds: bool, string, int, strings (may be given again). `-name` is `--name`, `--name=value` is
`--name value`, a bool takes `=true` or `=false`. Flags and arguments may be mixed, except where a
module sets STOP_AT = n: then nothing after the n-th argument is a flag (exec, ps).
"""

from __future__ import annotations

from teu.runc.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Flags = "dict[str, tuple[str, str, Any, str]]"

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Arguments:
    """What was given: `options[name]` (always there, defaults included), `given` (names set), `positional`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.given: set[str] = set()
        self.positional: list[str] = []

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    def put(self, name: str, kind: str, value: str) -> None:
        """Take the value of one flag, which is of this kind."""
        self.given.add(name)
        if kind == "bool":
            if value not in _TRUE and value not in _FALSE:
                raise UsageError(f'invalid boolean value "{value}" for -{name}')
            self.options[name] = value in _TRUE
        elif kind == "strings":
            self.options[name].append(value)
        elif kind == "int":
            try:
                self.options[name] = int(value, 0)
            except ValueError:
                raise UsageError(f'invalid value "{value}" for flag -{name}: not a number') from None
        else:
            self.options[name] = value


def parse(
    words: list[str],
    flags: dict[str, tuple[str, str, Any, str]],
    stop_at: int | None = None,
) -> tuple[Arguments, list[str]]:
    """(the arguments, the words after the point where stop_at ended the flags)."""
    result = Arguments({name: ([] if flag[1] == "strings" else flag[2]) for name, flag in flags.items()})
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if word == "--":
            if stop_at is None:
                result.positional += words[i:]
                return result, []
            return result, words[i:]
        if len(word) < 2 or word[0] != "-":
            if stop_at is not None and len(result.positional) >= stop_at:
                return result, words[i - 1 :]
            result.positional.append(word)
            if stop_at is not None and len(result.positional) >= stop_at:
                return result, words[i:]
            continue
        given, equals, value = word.lstrip("-").partition("=")
        name = _long_name(given, flags)
        kind = flags[name][1]
        if kind == "bool":
            value = value if equals else "true"
        elif not equals:
            if i >= len(words):
                raise UsageError(f"flag needs an argument: -{name}")
            value = words[i]
            i += 1
        result.put(name, kind, value)
    return result, []


def _long_name(given: str, flags: dict[str, tuple[str, str, Any, str]]) -> str:
    if given in flags:
        return given
    for name, flag in flags.items():
        if flag[0] == given:
            return name
    raise UsageError(f"flag provided but not defined: -{given}")


def help_text(name: str, summary: str, usage: str, flags: dict[str, tuple[str, str, Any, str]]) -> str:
    lines = [f"NAME:\n   teu-runc {name} - {summary}", f"\nUSAGE:\n   teu-runc {name} [command options] {usage}"]
    if flags:
        lines.append("\nOPTIONS:")
        for flag, (short, kind, _default, text) in flags.items():
            names = f"--{flag}" + (f", -{short}" if short else "")
            lines.append(f"   {names}{'' if kind == 'bool' else ' value'}  {text}")
    return "\n".join(lines) + "\n"
