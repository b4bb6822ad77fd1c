# SPDX-License-Identifier: Apache-2.0
"""The shipped configuration files and their manual pages say what the daemons' tables say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from teu.config import load

TOP = Path(__file__).resolve().parents[3]


def table(name: str) -> tuple[object, ...]:
    if name == "teud":
        from teu.engine.config import KEYS
    else:
        from teu.containerd.config import KEYS
    return KEYS


def test_files_are_what_the_tables_say() -> None:
    done = subprocess.run(
        ["/usr/bin/python3", TOP / "packaging/config-docs", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["teud", "containerd"])
def test_every_commented_line_is_valid_when_set(name: str, tmp_path: Path) -> None:
    shipped = (TOP / "etc" / f"{name}.yaml").read_text()
    keys = table(name)
    load(TOP / "etc" / f"{name}.yaml", keys)  # type: ignore[arg-type]
    everything = tmp_path / "all.yaml"
    everything.write_text(re.sub(r"(?m)^( *)#(\w[\w-]*:)", r"\1\2", shipped))
    settings = load(everything, keys)  # type: ignore[arg-type]
    for key in keys:
        assert settings.where(key.name) != "default", f"{key.name} is not in the shipped file"  # type: ignore[attr-defined]
