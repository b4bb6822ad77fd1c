# SPDX-License-Identifier: Apache-2.0
"""`teu` against the whole of Debian's `docker`: each command, alias and flag of its help is in teu, or teu says what
to use instead."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import peers
import pytest

TREE = Path(__file__).resolve().parents[2]
TEU = "/usr/bin/teu"
sys.path.insert(0, str(TREE / "src"))

pytestmark = pytest.mark.needs("docker", "trixie")

# (command, flag): why teu's is another.
DELIBERATE = {
    ("container stop", "time"): "-t is --timeout's, as with docker 28",
    ("container restart", "time"): "-t is --timeout's, as with docker 28",
    ("stop", "time"): "-t is --timeout's, as with docker 28",
    ("restart", "time"): "-t is --timeout's, as with docker 28",
}


class Page(NamedTuple):
    commands: list[str]
    aliases: list[str]
    flags: dict[str, tuple[str, bool]]  # long name: (short name, whether it takes a value)


def read_help(text: str) -> Page:
    commands, aliases, flags = [], [], {}
    section = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        if section.endswith("Commands:") and (found := re.match(r"  ([a-z][\w-]*) +\S", line)):
            commands.append(found[1])  # a plugin has a star, and is no part of docker
        if section == "Aliases:" and line.startswith("  "):
            aliases += [name.split(" ", 1)[1] for name in line.strip().split(", ")]
        option = re.match(r" {2,6}(?:-(\w), )?\s*--([\w-]+)(?: ([\w-]+))?  ", line)
        if section.endswith("Options:") and option:
            flags[option[2]] = (option[1] or "", bool(option[3]))
    return Page(commands, aliases, flags)


def tree() -> Iterator[tuple[str, Page]]:
    wanted = [""]
    while wanted:
        name = wanted.pop()
        page = read_help(peers.run("docker", *name.split(), "--help").stdout)
        yield name, page
        if name in ("builder", "buildx"):  # Debian's docker hands it to the plugin buildx
            continue
        wanted += [f"{name} {word}".strip() for word in page.commands]


def differences(name: str, page: Page, find: Callable[..., tuple[str, str, int]]) -> Iterator[str]:
    """What docker's page has, and teu has not."""
    from teu.cli import command, elsewhere, errors, options

    words = name.split()
    try:
        full, _, used = find(words)
    except errors.CommandError:
        try:
            elsewhere.refuse(words)
        except errors.CommandError as error:
            if "Instead, " in error.text:
                return
        yield "no such command"
        return
    if used != len(words):
        yield f"only {used} of its words are understood"
    for alias in page.aliases:
        if find(alias.split())[0] != full:
            yield f"no alias {alias}"
    ours = {flag.name: flag for flag in options.parse_table(command.load(full).table)} if full else {}
    for flag, (short, value) in page.flags.items():
        if flag == "help" or not full:
            continue
        if flag not in ours:
            yield f"no flag --{flag}"
        elif ours[flag].short != short and (name, flag) not in DELIBERATE:
            yield f"--{flag} is -{ours[flag].short}, and -{short} for docker"
        elif value == (ours[flag].kind == "bool"):
            yield f"--{flag} {'takes no' if value else 'takes a'} value"


def test_every_command_alias_and_flag() -> None:
    from teu.cli import command, options

    found: dict[str, list[str]] = {}
    seen = 0
    for name, page in tree():
        seen += 1
        if not name:
            ours = {flag.name: flag.short for flag in options.parse_table(command.GLOBAL_FLAGS)}
            missing = [flag for flag, (short, _) in page.flags.items() if ours.get(flag) != short]
            wrong = [f"no global flag {flag}" for flag in missing]
        else:
            wrong = list(differences(name, page, command.find))
        if wrong:
            found[name] = wrong
    assert seen > 150, "the help of docker is not understood"
    assert not found


def test_the_help_of_all_is_complete() -> None:
    """Each command and group has its page, and the first page names every group."""
    from teu.cli import commands

    first = peers.run(TEU, "--help").stdout
    for group in commands.GROUPS:
        if " " not in group:
            assert re.search(rf"^  {group} ", first, re.M), group
    for name in ("system df", "context", "context create", "builder history ls", "plugin"):
        assert name in peers.run(TEU, *name.split(), "--help").stdout
