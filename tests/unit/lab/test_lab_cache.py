# SPDX-License-Identifier: Apache-2.0
"""What the labs stand on is kept for the other trees on the machine, and not for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from lab import rootfs


def test_an_image_goes_when_no_tree_has_used_it_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "CACHE", tmp_path)
    names = ("root-trixie-lab-old", "root-trixie-lab-new", "root-trixie-lab-unknown", "root-trixie-host-old")
    for name in names:
        (tmp_path / name / "usr").mkdir(parents=True)
    assert not rootfs.used(tmp_path / "root-trixie-lab-none")
    for name in ("root-trixie-lab-old", "root-trixie-lab-new", "root-trixie-host-old"):
        assert rootfs.used(tmp_path / name)
    long_ago = time.time() - rootfs.KEEP - 1
    for name in ("root-trixie-lab-old", "root-trixie-host-old"):
        os.utime(tmp_path / f"used-{name}", (long_ago, long_ago))
    rootfs.forget("root-trixie-lab-*")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "root-trixie-host-old",
        "root-trixie-lab-new",
    ]
    assert not (tmp_path / "used-root-trixie-lab-old").exists()
