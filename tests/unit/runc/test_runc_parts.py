# SPDX-License-Identifier: Apache-2.0
"""teu-runc's parts that need no kernel: command line, JSON, options, records, ids."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from teu.linux import capabilities, inside, mounts
from teu.oci import jsontext
from teu.runc import arguments, hooks, kill, memory_policy, mount_options, process, process_limits, rootfs, state
from teu.runc.errors import InvalidSpec, RuncError, UsageError, text_of

ROOT = Path(__file__).resolve().parents[3]
FLAGS: dict[str, tuple[str, str, Any, str]] = {
    "bundle": ("b", "string", "", ""),
    "force": ("f", "bool", False, ""),
    "env": ("e", "strings", None, ""),
    "preserve-fds": ("", "int", 0, ""),
}


# -- the command line ---------------------------------------------------------------------------------


def test_flags_in_every_spelling() -> None:
    for line in ("--bundle x id", "--bundle=x id", "-b x id", "-bundle x id", "id -b=x"):
        words = line.split()
        found, rest = arguments.parse(words, FLAGS)
        assert found["bundle"] == "x" and found.positional == ["id"] and not rest
        assert found.given == {"bundle"}


def test_booleans_lists_and_numbers() -> None:
    found, _ = arguments.parse(["--force=false", "-e", "a=b", "--env=c=d", "--preserve-fds", "3"], FLAGS)
    assert found["force"] is False and found["env"] == ["a=b", "c=d"] and found["preserve-fds"] == 3
    assert arguments.parse([], FLAGS)[0]["env"] == []
    assert arguments.parse(["-f"], FLAGS)[0]["force"] is True


@pytest.mark.parametrize("words", [["--nosuch"], ["--bundle"], ["--force=maybe"], ["--preserve-fds", "many"]])
def test_wrong_command_lines(words: list[str]) -> None:
    with pytest.raises(UsageError):
        arguments.parse(words, FLAGS)


def test_nothing_behind_the_last_own_argument_is_a_flag() -> None:
    found, rest = arguments.parse(["-f", "id", "ls", "-l", "--", "--force=x"], FLAGS, stop_at=1)
    assert found.positional == ["id"] and rest == ["ls", "-l", "--", "--force=x"]
    found, rest = arguments.parse(["--", "-id"], FLAGS)
    assert found.positional == ["-id"]


# -- JSON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [{}, [], None, True, 0, -1, 2**63, 1.5, 'ü\n"\\\u2028', {"a": [1, {"b": None}], "c": {}}, [[], [{}]]]
)
def test_json_is_that_of_the_json_package(value: object) -> None:
    assert json.loads(jsontext.dumps(value)) == value
    assert json.loads(jsontext.dumps(value, "  ")) == value
    assert jsontext.loads(json.dumps(value)) == value
    assert jsontext.loads(json.dumps(value, indent=3).encode()) == value
    if value:
        assert jsontext.dumps(value, "  ") == json.dumps(value, indent=2, ensure_ascii=False)


@pytest.mark.parametrize("text", ["", "{", "[1,]", '{"a" 1}', "{} x", "nul", '{"a": }'])
def test_bad_json_says_where(text: str) -> None:
    with pytest.raises(ValueError, match="line|column"):
        jsontext.loads(text)


# -- mount options ----------------------------------------------------------------------------------------


def test_later_options_win() -> None:
    found = mount_options.parse(["ro", "rw", "nosuid", "noatime", "strictatime", "mode=755", "bind", "rslave"])
    assert found.attr_set == mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_STRICTATIME
    assert found.attr_clr & mounts.MOUNT_ATTR_RDONLY
    assert found.attr_clr & mounts.MOUNT_ATTR__ATIME == mounts.MOUNT_ATTR__ATIME
    assert found.data == ["mode=755"] and found.bind and not found.recursive_bind
    assert found.propagation == [(mounts.MS_SLAVE, True)]


def test_recursive_options() -> None:
    found = mount_options.parse(["rbind", "rro", "rnosuid", "rrw"])
    assert found.recursive_bind and found.recursive_set == mounts.MOUNT_ATTR_NOSUID
    assert found.recursive_clr & mounts.MOUNT_ATTR_RDONLY and not found.attr_set


def test_every_option_is_known_to_the_parser() -> None:
    for option in mount_options.OPTIONS:
        assert option not in mount_options.parse([option]).data or option in ("sync", "dirsync", "mand", "lazytime")


# -- the records of teu-runc-init ---------------------------------------------------------------------------


def test_tags_and_flags_are_those_of_the_c_program() -> None:
    source = (ROOT / "src/c/teu-runc-init.c").read_text()
    tags = re.search(r"enum \{\s*(TAG_ARGV = 1,.*?)\};", source, re.S)
    assert tags is not None
    names = [name.split("=")[0].strip() for name in tags[1].split(",") if name.strip()]
    assert [getattr(process, name) for name in names] == list(range(1, len(names) + 1))
    for name, value in re.findall(r"(FLAG_[A-Z_]+) = (\d+)", source):
        if hasattr(process, name):
            assert getattr(process, name) == int(value), name


def test_records_are_aligned_and_complete() -> None:
    described = {"args": ["a", "b c"], "cwd": "/x", "user": {"uid": 1, "gid": 2, "additionalGids": [3, 4]}}
    data = process.LastStep(described, [1, 2, 3, 4, 5]).records(["A=1"], (3, -1, -1, 4, -1))
    found = {}
    at = 0
    while at < len(data):
        tag, size = struct.unpack_from("II", data, at)
        assert at % 8 == 0
        found[tag] = data[at + 8 : at + 8 + size]
        at += 8 + (size + 7) // 8 * 8
    assert found[process.TAG_ARGV] == b"a\0b c\0"
    assert found[process.TAG_IDENTITY] == struct.pack("III", 1, 2, 0o022)
    assert found[process.TAG_GROUPS] == struct.pack("II", 3, 4)
    assert found[process.TAG_CAPABILITIES] == struct.pack("5Q", 1, 2, 3, 4, 5)


def test_no_string_can_smuggle_another() -> None:
    with pytest.raises(InvalidSpec, match="NUL"):
        process.LastStep({"args": ["a\0b"], "cwd": "/"}, [0] * 5).records([], (3, -1, -1, 4, -1))


def test_environment() -> None:
    assert process.environment({"env": ["A=1", "B=", "A=2"]}, "/root") == ["B=", "A=2", "HOME=/root"]
    assert process.environment({"env": ["HOME=/x"]}, "/root") == ["HOME=/x"]
    for bad in ("novalue", "=x"):
        with pytest.raises(InvalidSpec):
            process.environment({"env": [bad]}, None)


def test_failures_from_the_c_program() -> None:
    assert process.failure_text(b"E" + struct.pack("I", 2) + b"exec: x") == "exec: x: no such file or directory"
    assert process.failure_text(b"E" + struct.pack("I", 0) + b"all said") == "all said"


# -- the rest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"), [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", 37), ("rtmax-1", 63), ("RTMIN", 34)]
)
def test_signals(text: str, number: int) -> None:
    assert kill.number_of(text) == number


def test_unknown_signal() -> None:
    for text in ("NOSUCH", "RTMIN+99", "", "--9", "\u00b2", "RTMIN+\u00b2"):
        with pytest.raises(RuncError, match="unknown signal"):
            kill.number_of(text)


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "é", "a\0"])
def test_ids_that_are_refused(id: str) -> None:
    with pytest.raises(RuncError):
        state.check_id(id)


@pytest.mark.parametrize("id", ["a", "A-b_c+d.e", "...", "-x"])
def test_ids_that_are_taken(id: str) -> None:
    state.check_id(id)


def test_capabilities_are_numbered_as_in_the_kernel() -> None:
    assert capabilities.mask(["CAP_CHOWN", "cap_sys_admin", "CAP_CHECKPOINT_RESTORE"])[0] == 1 | 1 << 21 | 1 << 40
    assert capabilities.mask(["CAP_X"]) == (0, ["CAP_X"])


def test_lists_of_cpus_and_nodes() -> None:
    assert process_limits.cpu_list("0-2, 7") == {0, 1, 2, 7}
    with pytest.raises(InvalidSpec):
        process_limits.cpu_list("a-b")
    assert memory_policy.encode({"mode": "MPOL_BIND", "nodes": "0,2"}) == struct.pack("IIQ", 2, 0, 5)
    with pytest.raises(InvalidSpec):
        memory_policy.encode({"mode": "MPOL_BIND", "nodes": "99999999"})


def test_errors_read_like_gos() -> None:
    assert text_of(FileNotFoundError(2, "No such file or directory", "/x")) == "/x: no such file or directory"
    assert text_of(OSError(1, "mount /x: Operation not permitted")) == "mount /x: operation not permitted"
    assert text_of(RuncError("as it is")) == "as it is"


def test_a_hook_without_a_program_and_one_with_output(tmp_path: Path) -> None:
    with pytest.raises(RuncError, match="fork/exec /nosuch"):
        hooks.run({"path": "/nosuch"}, {"id": "x"})
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\ncat > $OUT\n[ $1 = argument ]\n")
    script.chmod(0o755)
    hook = {"path": str(script), "args": ["hook", "argument"], "env": [f"OUT={tmp_path}/state", "PATH=/bin:/usr/bin"]}
    hooks.run(hook, {"id": "x"})
    assert json.loads((tmp_path / "state").read_text()) == {"id": "x"}
    with pytest.raises(RuncError, match="exit status 1"):
        hooks.run({**hook, "args": ["hook", "other"]}, {"id": "x"})


def test_made_paths_stay_in_the_root(tmp_path: Path) -> None:
    root_folder = tmp_path / "root"
    root_folder.mkdir()
    (tmp_path / "outside").mkdir()
    (root_folder / "out").symlink_to("/../outside")
    (root_folder / "up").symlink_to("../../outside/more")
    (root_folder / "loop").symlink_to("loop")
    root = os.open(root_folder, os.O_PATH)
    try:
        for path in ("out/x", "up/y", "/a/../../b", "a/./c"):
            os.close(inside.make_in_root(root, path))
        os.close(inside.make_in_root(root, "some/file", "file"))
        with pytest.raises(OSError, match="symbolic|loop|levels"):
            inside.make_in_root(root, "loop/x")
    finally:
        os.close(root)
    assert not any((tmp_path / "outside").iterdir())
    assert (root_folder / "some/file").is_file() and (root_folder / "b").is_dir() and (root_folder / "a/c").is_dir()


def test_what_is_taken_away_without_pivot_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/sysroot of an OSTree host is no part of /sys (V21 of the review)."""
    table = tmp_path / "mountinfo"
    rows = ["/ ext4", "/proc proc", "/proc/sys tmpfs", "/sys sysfs", "/sys/fs/cgroup cgroup2", "/sysroot ext4"]
    rows += ["/sysroot/x ext4", "/process ext4", "/srv/proc proc", "/srv/sys ext4"]
    table.write_text("".join("1 2 0:1 / {} rw - {} none rw\n".format(*row.split()) for row in rows))
    monkeypatch.setattr(rootfs, "open", lambda path, mode: table.open(mode), raising=False)
    points = rootfs._mount_points()
    assert sorted(points) == ["/proc", "/proc/sys", "/srv/proc", "/sys", "/sys/fs/cgroup"]
    assert points[-1] == "/sys/fs/cgroup", "what lies deep goes last"


def test_null_is_absent_to_all_that_read_the_configuration_later() -> None:
    """A hook at the start found the nulls that create had taken for nothing."""
    argument = {"index": 0, "value": 1, "valueTwo": None, "op": "SCMP_CMP_EQ"}
    spec = {"hooks": None, "linux": {"seccomp": {"syscalls": [{"args": [argument, None], "errnoRet": None}]}}, "x": []}
    state.drop_nulls(spec)
    argument = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}
    assert spec == {"linux": {"seccomp": {"syscalls": [{"args": [argument, None]}]}}, "x": []}
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"x": [deep]}
    state.drop_nulls(deep)
