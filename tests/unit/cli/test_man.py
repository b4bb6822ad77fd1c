# SPDX-License-Identifier: Apache-2.0
"""Every option of every command is in a manual page."""

from __future__ import annotations

import subprocess
from pathlib import Path

from teu.cli import commands
from teu.cli.command import GLOBAL_FLAGS, load
from teu.cli.options import parse_table

TREE = Path(__file__).resolve().parents[3]


def test_every_option_is_in_a_page(tmp_path: Path) -> None:
    subprocess.run([str(TREE / "man/generate"), str(tmp_path)], check=True)
    pages = {path.name: path.read_text().replace("\\-", "-") for path in tmp_path.iterdir()}
    assert len(pages) == len(commands.INDEX) + 1
    for flag in parse_table(GLOBAL_FLAGS):
        assert flag.hidden or f"--{flag.name}" in pages["teu.1"]
    for full in commands.INDEX:
        short = [name for name, target in commands.SHORT.items() if target == full]
        page = pages[f"teu-{short[0] if short else full.replace(' ', '-')}.1"]
        for flag in parse_table(load(full).table):
            assert flag.hidden or f"--{flag.name}" in page, (full, flag.name)
