# SPDX-License-Identifier: Apache-2.0
"""The texts of --help, made from the option tables. Called by `main`, by the man pages and by nothing on
the way of
a command that does its work."""

from __future__ import annotations

import textwrap

from teu.cli import commands
from teu.cli.command import GLOBAL_FLAGS, PROGRAM, Cli, Command, load
from teu.cli.options import REPEATED, Flag, parse_table


def full_name(called: str) -> str:
    return commands.SHORT.get(called) or commands.ALIASES.get(called, called)


def summary(called: str) -> str:
    return commands.INDEX[full_name(called)][1]


def usage_line(called: str, command: Command) -> str:
    first, _, second = command.usage.partition(" | [OPTIONS] ")
    other = f"\n\t{PROGRAM} {called} [OPTIONS] {second}" if second else ""
    return f"Usage:  {PROGRAM} {called} {first}".rstrip() + other


def mistake(called: str, text: str) -> str:
    """An error of the command line: what is wrong, how the command is called, and where there is more of that."""
    usage = usage_line(called, load(full_name(called)))
    return f"{text}\n\n{usage}\n\nRun '{PROGRAM} {called} --help' for more information"


def value_name(flag: Flag) -> str:
    return "" if flag.kind == "bool" else "bytes" if flag.kind == "swap" else flag.kind


def shown_flags(table: str) -> list[Flag]:
    return sorted((flag for flag in parse_table(table) if not flag.hidden), key=lambda flag: flag.name)


def default_text(flag: Flag) -> str:
    if not flag.default or flag.default in ("false", "0") or flag.kind in REPEATED:
        return ""
    return f' (default "{flag.default}")' if flag.kind == "string" else f" (default {flag.default})"


def options_text(table: str) -> str:
    flags = shown_flags(table)
    if not flags:
        return ""
    left = [
        f"  {'-' + flag.short + ',' if flag.short else '   '} --{flag.name} {value_name(flag)}".rstrip()
        for flag in flags
    ]
    width = max(map(len, left)) + 3
    lines = []
    for start, flag in zip(left, flags):
        text = textwrap.wrap(flag.text + default_text(flag), max(76 - width, 30), break_on_hyphens=False)
        lines.append(start.ljust(width) + (("\n" + " " * width).join(text)))
    return "\n".join(lines)


def command(called: str, entry: Command) -> str:
    parts = ["", usage_line(called, entry), "", summary(called)]
    names = commands.names_of(full_name(called))
    if len(names) > 1:
        parts += ["", "Aliases:", "  " + ", ".join(f"{PROGRAM} {name}" for name in names)]
    options = options_text(entry.table)
    if options:
        parts += ["", "Options:", options]
    return "\n".join(parts)


def _list(names: dict[str, str]) -> str:
    width = max(map(len, names)) + 3
    return "\n".join(f"  {name.ljust(width)}{text}" for name, text in sorted(names.items()))


def group(name: str) -> str:
    members = {}
    for full, entry in commands.INDEX.items():
        if full.startswith(name + " "):
            word, _, rest = full.removeprefix(name + " ").partition(" ")
            members[word] = commands.GROUPS[f"{name} {word}"] if rest else entry[1]
    return "\n".join(
        [
            "",
            f"Usage:  {PROGRAM} {name} COMMAND",
            "",
            commands.GROUPS[name],
            "",
            "Commands:",
            _list(members),
            "",
            f"Run '{PROGRAM} {name} COMMAND --help' for more information on a command.",
        ]
    )


def top(cli: Cli) -> str:
    from teu.cli import plugins  # 1 ms, for who asks for all

    mine, broken = plugins.shown(cli)
    common = {name: summary(name) for name in commands.COMMON}
    others = {name: summary(name) for name in commands.SHORT if name not in common}
    others["inspect"] = summary("inspect")
    return "\n".join(
        [
            "",
            f"Usage:  {PROGRAM} [OPTIONS] COMMAND",
            "",
            "Containers as units of this host, in docker's words",
            "",
            "Common Commands:",
            _list(common),
            "",
            "Management Commands:",
            _list({name: text for name, text in commands.GROUPS.items() if " " not in name} | mine),
            "",
            "Commands:",
            _list(others),
            "",
            *(("Invalid Plugins:", _list(broken), "") if broken else ()),
            "Global Options:",
            options_text(GLOBAL_FLAGS),
            "",
            f"Run '{PROGRAM} COMMAND --help' for more information on a command.",
        ]
    )
