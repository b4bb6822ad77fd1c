# SPDX-License-Identifier: Apache-2.0
"""./dev: help is help; nothing is installed, generated or built for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[3] / "dev"


@pytest.mark.parametrize("command", ["test", "deb", "lab", "vm", "bench", "soak", "run"])
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_does_nothing_else(tmp_path: Path, command: str, word: str) -> None:
    done = tmp_path / "done"
    for program in ("apt-get", "dpkg-query", "make", "gcc", "protoc", "mmdebstrap"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@" >>{done}\nexit 1\n')
        (tmp_path / program).chmod(0o755)
    said = subprocess.run(
        [DEV, command, word],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0 and "usage" in said.stdout, said.stderr
    assert not done.exists(), done.read_text()


def test_no_two_files_of_unit_tests_have_one_name() -> None:
    """pytest would collect none of either."""
    names = [path.name for path in DEV.parent.glob("tests/unit/**/test_*.py")]
    assert sorted(names) == sorted(set(names))
