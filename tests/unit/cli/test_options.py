# SPDX-License-Identifier: Apache-2.0
"""The option parser: the forms that docker's users type."""

from __future__ import annotations

import pytest

from teu.cli import commands
from teu.cli.command import find, load
from teu.cli.errors import CommandError
from teu.cli.main import check_operands
from teu.cli.options import Usage, filters, parse, parse_table, split_csv

TABLE = parse_table(
    """
-i --interactive  bool       Input
-t --tty          bool       Terminal
   --sig-proxy    bool=true  Signals
-n --tail         string=all Lines
-e --env          list       Variable
-c --count        int=-1     Number
-m --memory       bytes      Memory
   --cpus         decimal    CPUs
   --wait         duration   Time
!  --secret       string     Hidden
"""
)


def given(*argv: str, interspersed: bool = True) -> tuple[dict[str, object], list[str]]:
    options, operands = parse(TABLE, list(argv), interspersed)
    return {name: options[name] for name in options.changed}, operands


@pytest.mark.parametrize(
    ("argv", "options", "operands"),
    [
        (["-it", "x"], {"interactive": True, "tty": True}, ["x"]),
        (["-n5"], {"tail": "5"}, []),
        (["-n=5"], {"tail": "5"}, []),
        (["-n", "5", "x"], {"tail": "5"}, ["x"]),
        (["-itn5"], {"interactive": True, "tty": True, "tail": "5"}, []),
        (["--tail", "5"], {"tail": "5"}, []),
        (["--tail=a=b"], {"tail": "a=b"}, []),
        (["--tail="], {"tail": ""}, []),
        (["--sig-proxy=false"], {"sig-proxy": False}, []),
        (["-t=false"], {"tty": False}, []),
        (["-e", "A=1", "--env", "B", "-eC"], {"env": ["A=1", "B", "C"]}, []),
        (["a", "-i", "b"], {"interactive": True}, ["a", "b"]),
        (["-i", "--", "-t"], {"interactive": True}, ["-t"]),
        (["-"], {}, ["-"]),
        (["-c", "-5"], {"count": -5}, []),
        (["-c", "0x10"], {"count": 16}, []),
        (
            ["-m", "512m", "--cpus=1.5", "--wait", "1m30s"],
            {"memory": 512 << 20, "cpus": 1_500_000_000, "wait": 90_000_000_000},
            [],
        ),
    ],
)
def test_forms(argv: list[str], options: dict[str, object], operands: list[str]) -> None:
    assert given(*argv) == (options, operands)


def test_the_first_operand_ends_the_options_of_run() -> None:
    assert given("-i", "image", "-t", "--foo", interspersed=False) == ({"interactive": True}, ["image", "-t", "--foo"])


def test_defaults() -> None:
    options, _ = parse(TABLE, [])
    assert (options["sig-proxy"], options["tail"], options["env"], options["count"]) == (True, "all", [], -1)
    assert not options["tty"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--foo"], "unknown flag: --foo"),
        (["-z"], "unknown shorthand flag: 'z' in -z"),
        (["-iz"], "unknown shorthand flag: 'z' in -iz"),
        (["--tail"], "flag needs an argument: --tail"),
        (["-itn"], "flag needs an argument: 'n' in -itn"),
        (
            ["--tty=foo"],
            'invalid argument "foo" for "-t, --tty" flag: strconv.ParseBool: parsing "foo": invalid syntax',
        ),
        (["-c", "x"], 'invalid argument "x" for "-c, --count" flag: strconv.ParseInt: parsing "x": invalid syntax'),
        (["-m", "x"], 'invalid argument "x" for "-m, --memory" flag: invalid size: \'x\''),
        (["---x"], "bad flag syntax: ---x"),
    ],
)
def test_errors(argv: list[str], text: str) -> None:
    with pytest.raises(Usage) as caught:
        given(*argv)
    assert str(caught.value) == text


def test_help_is_known_everywhere() -> None:
    assert parse(TABLE, ["--help"])[0]["help"]
    assert parse(TABLE, ["-h"])[0]["help"]


def test_every_command_loads_and_its_table_is_sound() -> None:
    for full in commands.INDEX:
        command = load(full)
        flags = parse_table(command.table)
        names = [flag.name for flag in flags]
        shorts = [flag.short for flag in flags if flag.short]
        assert len(names) == len(set(names)), full
        assert len(shorts) == len(set(shorts)), full
        assert all(flag.text for flag in flags), full
        parse(flags, [])


def test_all_names_lead_to_commands() -> None:
    for name, full in {**commands.SHORT, **commands.ALIASES}.items():
        assert full in commands.INDEX
        assert find(name.split())[0] == full
    assert find(["container", "ls", "-a"]) == ("container ls", "container ls", 2)
    assert find(["image"]) == ("", "image", 1)
    with pytest.raises(CommandError, match="unknown command: teu foo"):
        find(["foo"])


def test_count_of_operands() -> None:
    with pytest.raises(CommandError) as caught:
        check_operands(load("container rm"), "rm", 0)
    assert caught.value.text.startswith("teu: 'teu rm' requires at least 1 argument\n\nUsage:  teu rm")
    with pytest.raises(CommandError, match="accepts no arguments"):
        check_operands(load("container ls"), "ps", 1)
    check_operands(load("image ls"), "images", 1)


def test_filters_and_fields() -> None:
    assert filters(["status=exited", "status=created", "label=a=b"]) == {
        "status": {"exited": True, "created": True},
        "label": {"a=b": True},
    }
    assert split_csv('type=bind,"source=/a,b",target=/c') == ["type=bind", "source=/a,b", "target=/c"]
