# SPDX-License-Identifier: Apache-2.0
"""What the packages' scripts take away, in a folder in place of a system."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parents[3] / "packaging/debian"
OURS = ("zones/teu.xml", "zones/teu.xml.old", "policies/teu-egress.xml", "policies/teu-host.xml.old")
OTHERS = ("zones/public.xml", "zones/teuton.xml", "policies/other.xml", "policies/teu-mine.xml")


def purge(package: str, root: Path, running: bool) -> list[str]:
    """Run what the package does on purge with firewalld's configuration; how firewall-cmd was called."""
    script = (PACKAGING / f"{package}.postrm").read_text()
    function = re.search(r"^forget_in_firewalld\(\) \{\n.*?^\}\n", script, re.DOTALL | re.MULTILINE)
    call = re.search(r"^    if \[ ! -e [^\n]*\n        forget_in_firewalld\n    fi\n", script, re.MULTILINE)
    assert function
    assert call
    tools = root / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "firewall-cmd").write_text(f'#!/bin/sh\necho "$@" >>{root}/called\nexit {0 if running else 252}\n')
    (tools / "firewall-cmd").chmod(0o755)
    subprocess.run(
        ["sh", "-ec", function[0] + call[0] + "true\n"],
        env={"PATH": f"{tools}:{os.environ['PATH']}", "DPKG_ROOT": str(root)},
        check=True,
    )
    called = root / "called"
    return called.read_text().splitlines() if called.exists() else []


def configure(root: Path) -> Path:
    folder = root / "etc/firewalld"
    for name in (*OURS, *OTHERS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("package", ["teu", "teu-buildkitd"])
def test_nothing_of_ours_stays_in_firewalld(package: str, running: bool, tmp_path: Path) -> None:
    folder = configure(tmp_path)
    assert purge(package, tmp_path, running) == ["--quiet --reload"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.xml*")) == sorted(OTHERS)


@pytest.mark.parametrize(("package", "other"), [("teu", "teu-buildkitd"), ("teu-buildkitd", "teud")])
def test_who_stays_keeps_its_zone(package: str, other: str, tmp_path: Path) -> None:
    folder = configure(tmp_path)
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "usr/sbin" / other).write_text("")
    assert purge(package, tmp_path, running=True) == []
    assert (folder / "zones/teu.xml").exists()


def test_a_host_without_firewalld_is_left_alone(tmp_path: Path) -> None:
    assert purge("teu", tmp_path, running=True) == []
    assert not (tmp_path / "etc").exists()
