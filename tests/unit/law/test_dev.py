# SPDX-License-Identifier: Apache-2.0
"""./dev: help is help; nothing is installed, generated, built or started for it. And what its quick commands run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import places
import pytest
from lab import quick, unitplugin

DEV = Path(__file__).resolve().parents[3] / "dev"
HELP = subprocess.run([DEV, "--help"], capture_output=True, text=True, check=True).stdout
VERBS = re.findall(r"^  ([a-z]+)  ", HELP, re.MULTILINE)


def test_help_names_every_verb() -> None:
    cases = re.findall(r"^    ([a-z]+)\)$", DEV.read_text(), re.MULTILINE)
    assert len(VERBS) > 10 and sorted(VERBS) == sorted(cases)


@pytest.mark.parametrize("command", VERBS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_does_nothing_else(tmp_path: Path, command: str, word: str) -> None:
    done = tmp_path / "done"
    for program in ("apt-get", "dpkg-query", "git", "make", "gcc", "protoc", "mmdebstrap"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@" >>{done}\nexit 1\n')
        (tmp_path / program).chmod(0o755)
    said = subprocess.run(
        [DEV, command, word],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TEU_LAB_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0 and "usage" in said.stdout, said.stderr
    assert not done.exists(), done.read_text()
    assert not (tmp_path / "cache").exists(), "a lab"


def test_no_two_files_of_unit_tests_have_one_name() -> None:
    """pytest would collect none of either."""
    names = [path.name for path in DEV.parent.glob("tests/unit/**/test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_unit_tests_are_shared_out_where_there_are_many() -> None:
    for arguments, shared in (
        ([], True),
        (["-k", "volume"], True),
        (["tests/unit/oci"], True),
        (["tests/unit/oci/test_archive.py"], False),
        (["tests/unit/law/test_dev.py::test_x", "-x"], False),
        (["tests/unit/oci", "--pdb"], False),
    ):
        command = quick.unit_command(arguments)
        assert ("-n" in command) == shared, arguments
        assert ("tests/unit" in command) == (not quick.paths(arguments)), arguments


def test_the_longest_begin_first_and_laws_stay_together() -> None:
    """So that nothing long is left for the end, and the source is parsed once."""
    tests = [
        f"tests/unit/{name}" for name in ("law/test_once.py::a", "law/test_dead.py::b", "oci/test_tar.py::c[x::y]")
    ]
    assert [unitplugin.scope_of(test) for test in tests] == ["tests/unit/law"] * 2 + ["tests/unit/oci/test_tar.py"]
    found = unitplugin.scopes(tests)
    assert set(found) == {"tests/unit/law", "tests/unit/oci/test_tar.py"} and all(long > 0 for long in found.values())


def test_each_process_begins_with_files_of_its_own() -> None:
    """So that none of them compiles what another does: all together they read all, and nothing twice."""
    files = sorted((DEV.parent / "tests/unit").rglob("test_*.py"))
    shares = [unitplugin.share(files, f"gw{number}", 4) for number in range(4)]
    assert sorted(path for share in shares for path in share) == files and all(shares)


def test_byte_code_is_kept_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    given = quick.environment()
    assert "PYTHONDONTWRITEBYTECODE" not in given
    assert given["PYTHONPYCACHEPREFIX"].startswith(str(DEV.parent / "build"))


def test_what_runs_that_have_ended_left_in_memory_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MEMORY", str(tmp_path))
    monkeypatch.setattr(places, "quickest", lambda: str(tmp_path))
    mine, dead = (tmp_path / f"{quick.instance('teu-unit')}-{pid}" for pid in (os.getpid(), 1 << 30))
    for folder in (mine, dead, tmp_path / "teu-unit-another-1073741824"):
        (folder / "x").mkdir(parents=True)
    assert quick.temporary() == [f"--basetemp={mine}"]
    assert {folder.name for folder in tmp_path.iterdir()} == {mine.name, "teu-unit-another-1073741824"}
    monkeypatch.setattr(places, "quickest", lambda: places.DISK)
    assert quick.temporary() == []


def test_tests_write_in_memory_where_it_does_all_that_a_disk_does(tmp_path: Path) -> None:
    assert places.quickest.__wrapped__(str(tmp_path / "nothing"), "disk") == "disk"
    assert places.quickest.__wrapped__("/proc", "disk") == "disk"


def test_a_mistyped_path_is_no_reason_to_run_everything() -> None:
    assert quick.mistyped(["-x", "tests/unit/oci", "tests/unit/nothing.py::test_x"]) == "tests/unit/nothing.py::test_x"
    assert quick.mistyped(["nothing.py"]) == "nothing.py"
    assert not quick.mistyped(["-k", "volume and not mount", "tests/unit/law/test_dev.py::test_x[a/b]", "--tb=short"])


def test_system_tests_are_named_as_the_lab_sees_them() -> None:
    command = quick.system_command(["tests/system/test_whole_picture.py::test_x", "-k", "y"])
    assert command[-3:] == ["/src/tests/system/test_whole_picture.py::test_x", "-k", "y"]
    assert quick.system_command(["-x"])[-2:] == ["-x", "/src/tests/system"]


def test_the_kept_lab_follows_the_tree(tmp_path: Path) -> None:
    """A changed unit boots it anew, changed Python restarts daemons, byte code and a second run do nothing."""
    for name in ("systemd/teud.service", "src/teu/engine/main.py", "bin/teud"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")

    def now() -> dict[str, str]:
        return {"machine": quick.print_of(["systemd"], tmp_path), "programs": quick.print_of(["src", "bin"], tmp_path)}

    known = now()
    assert quick.needed({}, known) == "boot"
    assert quick.needed(known, now()) == ""
    (tmp_path / "src/teu/engine/__pycache__").mkdir()
    (tmp_path / "src/teu/engine/__pycache__/main.cpython-313.pyc").write_text("")
    assert quick.needed(known, now()) == ""
    (tmp_path / "src/teu/engine/main.py").write_text("two, longer")
    assert quick.needed(known, now()) == "restart"
    (tmp_path / "systemd/teud.socket").write_text("")
    assert quick.needed(known, now()) == "boot"
