# SPDX-License-Identifier: Apache-2.0
"""`teu-ctr`: ctr's commands over containerd's gRPC API. bin/teu-ctr calls `main`, which finds the command, loads its
module, parses its options and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from teu import __version__
from teu.ctr.commands import (
    COMMANDS,
    GLOBAL_FLAGS,
    GROUP_FLAGS,
    GROUPS,
    PROGRAM,
    SNAPSHOTTER,
    Ctr,
    all_flags,
    find,
    last_word,
    load,
)
from teu.ctr.errors import CommandError
from teu.ctr.flags import Usage, parse, parse_table
from teu.ctr.helptext import help_text
from teu.linux.standard import open_what_is_closed


def complete(words: list[str]) -> int:
    """`__complete WORD…`: the names of commands and options that fit the last word."""
    *before, current = words or [""]
    try:
        _, rest = parse(parse_table(GLOBAL_FLAGS), before)
        if not rest:
            names = [name for name in [*GROUPS, *COMMANDS] if " " not in name]
            table = GLOBAL_FLAGS
        else:
            full, *_ = find(rest)
            names = [last_word(name) for name in [*COMMANDS, *GROUPS] if name.rpartition(" ")[0] == full]
            table = GROUP_FLAGS.get(full, "") if full in GROUPS else load(full).table
    except (CommandError, Usage):
        return 0
    if current.startswith("-"):
        names = [flag.dashed for flag in parse_table(table)]
    for name in sorted(names):
        if name.startswith(current):
            sys.stdout.write(name + "\n")
    return 0


def dispatch(argv: list[str]) -> int:
    name = ""
    try:
        options, words = parse(parse_table(GLOBAL_FLAGS), argv)
        if options["version"]:
            sys.stdout.write(f"{PROGRAM} Teu {__version__}\n")
            return 0
        if words and words[0] == "__complete":
            return complete(words[1:])
        if words and words[0] in ("help", "h"):
            words = [*words[1:], "--help"] if len(words) > 1 else []
        if not words or options["help"]:
            sys.stdout.write(help_text("") + "\n")
            return 0
        name, words, above = find(words)
        if name in GROUPS:
            sys.stdout.write(help_text(name) + "\n")
            return 0
        command = load(name)
        given, operands = parse(all_flags(name, command), words)
        if given["help"]:
            sys.stdout.write(help_text(name) + "\n")
            return 0
    except Usage as error:
        sys.stdout.write(f"Incorrect Usage: {error}\n\n{help_text(name)}\n\n")
        raise CommandError(str(error)) from None
    for option in above.changed - given.changed:
        given[option] = above[option]
    if given.get("snapshotter") == "":
        given["snapshotter"] = SNAPSHOTTER  # an empty name stands for the default one
    return command.function(Ctr(options), given, operands) or 0


def main() -> NoReturn:
    open_what_is_closed()
    code: Any = 1
    try:
        code = dispatch(sys.argv[1:])
    except CommandError as error:
        code = error.code
        sys.stdout.flush()
        if error.text:
            sys.stderr.write((error.text if code == 3 else f"{PROGRAM}: {error.text}") + "\n")
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 1
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.stderr.write(f"{PROGRAM}: {type(error).__name__}: {error}\n")
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    # grpc's threads and whatever hangs in a call do not keep us.
    os._exit(code)
