# SPDX-License-Identifier: Apache-2.0
"""`system validate`: what declared files become, and what is wrong with them, by file and line.

Beside what the generator looks at, the values are read as teu-unit will read them, as far as no specifier or variable
of systemd stands in them."""

from __future__ import annotations

import os

from teu.cli import createspec
from teu.cli.command import Cli, Command, load
from teu.cli.declared import files, generator, translate, unit
from teu.cli.errors import CommandError
from teu.cli.options import Flag, Options, Usage, parse, parse_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def wrong_options(words: list[str]) -> tuple[str, str]:
    """What is wrong with the options of a unit's command, and which one of them it is; empty for nothing."""
    if not words:
        return "", ""
    own = os.path.basename(words[0]) == "teu-unit"
    table = unit.TABLES[words[1]] if own else load("image build").table
    runs = own and words[1] in ("container", "pod")
    words = words[2:]
    if "--" in words:
        words = words[: words.index("--")]
    flags = parse_table(table)
    known = {flag.name for flag in flags}
    for word in words:
        name = word.partition("=")[0]
        if name[:2] == "--" and name[2:] not in known:
            return f"unknown flag: {name}", word
    # What systemd has yet to complete is not judged, nor what another file says.
    words = [
        word for word in words if not ("%" in word or "$" in word or word.startswith(("--env-file", "--label-file")))
    ]
    text = _wrong(flags, words, runs)
    culprit = next((word for word in words if text and word[:2] == "--" and _wrong(flags, [word], runs)), "")
    return text, culprit


def _wrong(flags: list[Flag], words: list[str], runs: bool) -> str:
    """What is wrong with options of `teu run`, or others."""
    try:
        options, _ = parse(flags, words)
        if runs:
            createspec.build(unit.for_run(options), "image", [])
    except (Usage, ValueError, CommandError) as error:
        return str(error)
    return ""


def place_of(one: files.Declared, text: str, word: str) -> files.Problem:
    """A problem with an option, at the line that it comes from."""
    section = translate.Translation(translate.House({}), one).section
    name, _, value = word.partition("=")
    for entry in one.section(section):
        if (value and value in entry.value) or (name and name in entry.value):
            return entry.problem(f"{entry.key}=: {text}")
    return files.Problem(one.path, 0, text)


def chosen(operands: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The folders to read, and the paths to tell about; none means all."""
    folders = list(generator.folders())
    paths = []
    for operand in operands:
        path = os.path.abspath(operand)
        if not os.path.exists(path):
            raise CommandError(f"{operand}: no such file or folder")
        paths.append(path)
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        if not any(folder == known or folder.startswith(known + "/") for known in folders):
            folders.insert(0, folder)
    return tuple(folders), paths


def of_interest(path: str, paths: list[str]) -> bool:
    return not paths or any(path == one or path.startswith((one + "/", one + ".d/")) for one in paths)


def problems_of(one: files.Declared, made: translate.Unit) -> Iterable[files.Problem]:
    text, word = wrong_options(made.command) if not one.problems else ("", "")
    if text:
        one.problems.append(place_of(one, text, word))
    return one.problems


def validate(cli: Cli, options: Options, operands: list[str]) -> int:
    folders, paths = chosen(operands)
    declared, strangers = files.load(folders)
    house = translate.House(declared)
    wrong = [problem for problem in strangers if of_interest(problem.path, paths)]
    taken: dict[str, str] = {}
    for one in declared.values():
        made = translate.translate(house, one)
        other = taken.setdefault(made.name, one.path)
        if other != one.path:
            one.problems.append(files.Problem(one.path, 0, f"the unit {made.name} is already that of {other}"))
        problems = list(problems_of(one, made))
        if not (of_interest(one.path, paths) or any(of_interest(problem.path, paths) for problem in problems)):
            continue
        wrong += problems
        if not problems and options["show"]:
            cli.print(made.text)
        elif not problems and not options["quiet"]:
            cli.print(f"{one.path}: {made.name}")
    if wrong:
        cli.warn("\n".join(str(problem) for problem in wrong))
        return 1
    return 0


COMMANDS = {
    "system validate": Command(
        validate,
        "[OPTIONS] [FILE...]",
        0,
        None,
        """
-q --quiet  bool  Say only what is wrong
   --show   bool  Show the units
""",
    ),
}
