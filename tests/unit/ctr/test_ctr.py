# SPDX-License-Identifier: Apache-2.0
"""teu-ctr's own parts: options, tables, the specification it makes; and that every option is in its manual page."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("grpc")

from teu.ctr import fifos, flags, main, output, progress, spec
from teu.ctr.errors import CommandError
from teu.ctr.flags import Options, Usage, labels, parse, parse_table
from teu.ctr.tasks import signal_number

TREE = Path(__file__).resolve().parents[3]
TABLE = parse_table("quiet,q bool Quiet\nenv strings Variables\nlimit int=5 Number\nexpires duration=24h Time")


@pytest.mark.parametrize(
    ("argv", "expected", "rest"),
    [
        (["-q", "x", "-q"], {"quiet": True}, ["x", "-q"]),
        (["--quiet=false"], {"quiet": False}, []),
        (["-env", "A=1", "--env=B=2", "-limit", "7"], {"env": ["A=1", "B=2"], "limit": 7}, []),
        (["-expires", "1h30m", "--", "-q"], {"expires": 5400.0}, ["-q"]),
    ],
)
def test_options(argv: list[str], expected: dict[str, object], rest: list[str]) -> None:
    options, operands = parse(TABLE, argv)
    assert ({name: options[name] for name in options.changed}, operands) == (expected, rest)


def test_defaults_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    options, _ = parse(TABLE, [])
    assert (options["quiet"], options["env"], options["limit"], options["expires"]) == (False, [], 5, 86400.0)
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "moby")
    assert parse(parse_table(main.GLOBAL_FLAGS), [])[0]["namespace"] == "moby"
    for argv, text in (
        (["-x"], "not defined: -x"),
        (["-limit", "y"], "invalid value"),
        (["-limit"], "needs an argument"),
    ):
        with pytest.raises(Usage, match=text):
            parse(TABLE, argv)
    assert labels(["a=b", "c"]) == {"a": "b", "c": "true"}


def test_every_command_loads() -> None:
    for name in main.COMMANDS:
        command = main.load(name)
        flags = parse_table(command.table)
        assert len({flag.name for flag in flags}) == len(flags), name
        assert name in main.help_text(name)
    assert main.find(["i", "rm", "x"])[:2] == ("images delete", ["x"])
    assert main.find(["t", "ls"])[:2] == ("tasks list", [])
    assert main.find(["content", "prune", "references", "--dry"])[:2] == ("content prune references", ["--dry"])
    assert main.find(["content", "prune"])[:2] == ("content prune", [])
    name, words, above = main.find(["snapshots", "--snapshotter", "native", "ls", "-x"])
    assert (name, words, above["snapshotter"], above.changed) == ("snapshots list", ["-x"], "native", {"snapshotter"})
    with pytest.raises(CommandError, match="No help topic for 'x'"):
        main.find(["images", "x"])


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([("NAME", "LABELS"), ("foo", "a=b")])
    output.table([("PID", "INFO"), (1, "-")], 1, 4, last="bare")
    output.tabbed([("REF", "SIZE", "X"), ("a" * 9, "1", "y")])
    assert capsys.readouterr().out == (
        "NAME LABELS \nfoo  a=b    \nPID    INFO\n1      -\nREF\t\tSIZE\tX\naaaaaaaaa\t1\ty\n"
    )
    assert (output.binary(2_171_392), output.binary(0)) == ("2.1 MiB", "0.0 B")


def given(**values: object) -> Options:
    options, _ = parse(parse_table(main.load("run").table), [])
    for name, value in values.items():
        options[name.replace("_", "-")] = value
        options.changed.add(name.replace("_", "-"))
    return options


def test_specification(tmp_path: Path) -> None:
    found = spec.default("ns", "c1")
    config = {"Entrypoint": ["e"], "Cmd": ["c"], "Env": ["A=1"], "WorkingDir": "/w"}
    spec.from_image(found, config, ["x"])
    spec.apply_options(found, given(env=["A=2", "B=3"], read_only=True, memory_limit=5, cpus=0.5, net_host=True))
    process = found["process"]
    assert (process["args"], process["cwd"]) == (["e", "x"], "/w")
    assert process["env"][1:3] == ["A=2", "B=3"]
    assert found["root"]["readonly"]
    assert found["linux"]["resources"]["memory"] == {"limit": 5}
    assert found["linux"]["resources"]["cpu"] == {"quota": 50000, "period": 100000}
    assert "network" not in {entry["type"] for entry in found["linux"]["namespaces"]}
    assert found["linux"]["cgroupsPath"] == "/ns/c1"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nme:x:7:8::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nwheel:x:9:me\n")
    spec.set_user(found, "me", tmp_path)
    assert process is found["process"]
    assert found["process"]["user"] == {"uid": 7, "gid": 8, "additionalGids": [8, 9]}
    spec.set_user(found, "5:6", tmp_path)
    assert found["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [6]}
    with pytest.raises(CommandError, match="no user nobody"):
        spec.set_user(found, "nobody", tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cap_add": ["CHOWN"]}, "'CAP_' prefix"),
        ({"with_ns": ["x"]}, "nstype:path"),
        ({"with_ns": ["x:y"]}, "not valid: x"),
        ({"seccomp_profile": "/x"}, "seccomp must be set to true"),
        ({"cpus": 1.0, "cpu_period": 5}, "used separately"),
        ({"mount": ["nope=1"]}, "not supported"),
        ({"privileged_without_host_devices": True}, "without 'privileged'"),
    ],
)
def test_specification_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(CommandError, match=text):
        spec.apply_options(spec.default("n", "c"), given(**options))


def test_links_of_the_image_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to("/etc")
    assert spec.lines_of(tmp_path, "passwd") == []


def test_signals() -> None:
    assert [signal_number(text) for text in ("9", "KILL", "sigterm")] == [9, 9, 15]
    with pytest.raises(CommandError, match="invalid signal"):
        signal_number("NOPE")


def test_fifos(tmp_path: Path) -> None:
    made = fifos.Fifos.make("x", False, str(tmp_path))
    made.open()
    assert sorted(made.files) == ["stderr", "stdin", "stdout"]
    made.remove()
    assert not list(tmp_path.iterdir())


def test_every_option_is_in_the_manual_page() -> None:
    """After a change of the tables: man/generate --ctr."""
    page = (TREE / "man/teu-ctr.1").read_text().replace("\\-", "-")
    for name in main.COMMANDS:
        section = page.partition(f".SS teu-ctr {name} ")[2].partition(".SS ")[0]
        assert section, name
        for flag in main.all_flags(name, main.load(name)):
            assert f"\\fB{flag.dashed}\\fR" in section, (name, flag.name)


def test_durations_of_flags() -> None:
    """As ctr: below nothing is no limit."""
    flag = flags.Flag("timeout duration Give up after this time")
    assert (flag.convert("1m30s"), flag.convert("0"), flag.convert("-5s")) == (90.0, 0.0, 0.0)
    with pytest.raises(flags.Usage, match='invalid value "5" for flag -timeout: parse error'):
        flag.convert("5")


def test_the_first_of_many_failures_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    failures = output.Failures()
    failures.end()
    failures.add(CommandError("x is in use"), "unable to delete x", "unable to delete x: x is in use")
    failures.add(CommandError("y is not there"), "unable to delete y")
    failures.add(CommandError("z"), "")
    with pytest.raises(CommandError, match="unable to delete x: x is in use"):
        failures.end()
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("msg=")[2] for line in told] == [
        '"unable to delete x" error="x is in use"',
        '"unable to delete y" error="y is not there"',
    ]


def test_progress_is_drawn_as_ctr_draws_it() -> None:
    shown = progress.Progress()
    shown.set("example.org/x:1", "resolved")
    shown.set("layer-1", "downloading", 1024 * 1024, 4 * 1024 * 1024)
    shown.set("layer-2", "waiting")
    lines = shown.text().split("\n")
    full, quarter, none = (f"|\x1b[32m{'+' * n}\x1b[0m{'-' * (38 - n)}|" for n in (38, 9, 0))
    assert lines[0] == f"example.org/x:1: resolved       {full} "
    assert lines[1] == f"layer-1:         downloading    {quarter}  1.0 MiB/4.0 MiB "
    assert lines[2] == f"layer-2:         waiting        {none} "
    assert re.fullmatch(r"elapsed: \d+\.\d *s\s+total:  1\.0 Mi \([0-9.]+ [KMGT]iB/s\)\s+", lines[3])
    assert lines[4:] == [""]


def test_lines_that_a_drawing_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda file: os.terminal_size((10, 24)))
    assert progress.terminal_lines("12345\n") == 1
    assert progress.terminal_lines("\x1b[32m1234567890\x1b[0m\n1\n") == 2
    assert progress.terminal_lines("12345678901\n1\n") == 3
