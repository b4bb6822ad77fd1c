# SPDX-License-Identifier: Apache-2.0
"""The texts of --help, made from the tables of `commands` and of the commands' own modules. Called by `main`, and by
commands that show their help where operands are missing."""

from __future__ import annotations

from teu.ctr.commands import COMMANDS, GLOBAL_FLAGS, GROUP_FLAGS, GROUPS, PROGRAM, last_word, load
from teu.ctr.flags import parse_table


def options_text(table: str) -> str:
    lines = []
    flags = parse_table(table)
    left = []
    for flag in flags:
        value = "" if flag.kind == "bool" else " value"
        left.append(flag.dashed + value + (f", -{flag.short}{value}" if flag.short else ""))
    width = max(map(len, [*left, "--help, -h"])) + 2
    for start, flag in zip(left, flags):
        default = f" (default: {flag.default})" if flag.default else ""
        lines.append(f"   {start.ljust(width)}{flag.text}{default}")
    lines.append(f"   {'--help, -h'.ljust(width)}Show help")
    return "\n".join(lines)


def help_text(name: str) -> str:
    if not name:
        rows = [(", ".join((group, *entry[0])), entry[1]) for group, entry in GROUPS.items() if " " not in group]
        rows += [(", ".join((full, *entry[1])), entry[2]) for full, entry in COMMANDS.items() if " " not in full]
        usage, table, summary = f"{PROGRAM} [global options] command [command options] [arguments...]", GLOBAL_FLAGS, ""
    elif name in GROUPS:
        rows = [
            (", ".join((last_word(full), *entry[1])), entry[2])
            for full, entry in COMMANDS.items()
            if full.rpartition(" ")[0] == name
        ]
        rows += [
            (", ".join((last_word(full), *entry[0])), entry[1])
            for full, entry in GROUPS.items()
            if full.rpartition(" ")[0] == name
        ]
        usage, table = f"{PROGRAM} {name} command [command options] [arguments...]", GROUP_FLAGS.get(name, "")
        summary = GROUPS[name][1]
    else:
        command = load(name)
        rows = []
        usage, table, summary = f"{PROGRAM} {name} {command.usage}", command.table, COMMANDS[name][2]
    title = f"{PROGRAM} {name}".rstrip()
    text = f"NAME:\n   {title}{' - ' + summary if summary else ''}\n\nUSAGE:\n   {usage}\n"
    if rows:
        width = max(len(row[0]) for row in rows) + 2
        text += "\nCOMMANDS:\n" + "".join(f"   {names.ljust(width)}{what}\n" for names, what in rows)
    return text + "\nOPTIONS:\n" + options_text(table)
