# SPDX-License-Identifier: Apache-2.0
"""The room that is given up when the disk is about to be full."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from teu.linux import reserve
from teu.linux.reserve import AGAIN, SIZE, Reserve


def test_it_is_given_up_and_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db-reserve"
    kept = Reserve(str(path))

    def mind(free: int) -> int:
        there = SimpleNamespace(f_bavail=free // 512, f_frsize=512)
        monkeypatch.setattr(reserve.os, "statvfs", lambda folder: there)
        kept.mind()
        return path.stat().st_size if path.exists() else -1

    assert mind(AGAIN - 512) == -1, "it takes no room where there is little"
    assert mind(AGAIN + 512) == SIZE
    assert os.stat(path).st_blocks * 512 >= SIZE
    assert mind(SIZE) == SIZE
    assert mind(SIZE - 512) == 0
    assert mind(SIZE + 512) == 0, "what was just freed is not taken back from who needs it"
    assert mind(AGAIN + 512) == SIZE


def test_where_it_cannot_be_had_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reserve.os, "posix_fallocate", full)
    kept = Reserve(str(tmp_path / "db-reserve"))
    kept.mind()
    assert (tmp_path / "db-reserve").stat().st_size == 0
