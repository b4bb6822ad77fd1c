# SPDX-License-Identifier: Apache-2.0
"""Every file and every command of teu-containers(7), as the page has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from declared import PLACE, Declared, declare, state
from whole import call, teu

pytestmark = pytest.mark.needs("systemd", "teud")
__all__ = ["declare"]

PAGE = Path(__file__).resolve().parents[2] / "man/teu-containers.7"


def blocks() -> list[str]:
    """What stands between .EX and .EE, without troff's signs."""
    found = re.findall(r"^\.EX\n(.*?)^\.EE$", PAGE.read_text(), re.M | re.S)
    return [block.replace("\\-", "-").replace("\\e", "\\") for block in found]


def test_the_tutorial(declare: Declared) -> None:
    said: dict[str, str] = {}
    assert len(blocks()) > 6
    try:
        for block in blocks():
            if block.startswith("# /"):
                name, _, text = block.partition("\n")
                path = Path(name.removeprefix("# "))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                continue
            for line in block.splitlines():
                assert line.startswith("$ "), line
                said[line[2:]] = call("sh", "-c", line[2:]).stdout
                if line == "$ systemctl start web":
                    assert state("web.service") == "active"
        assert said["busybox wget -qO- http://127.0.0.1:8090"] == "hello\n"
        assert f"{PLACE}/web.container: web.service" in said["teu system validate"]
        assert "httpd" in said["systemctl status web"]
        assert "LANG=C.UTF-8" in said["teu exec systemd-web env"] and "COLOUR=blue" in said["teu exec byhand env"]
        assert "MemoryMax=100M" in said["systemctl cat web"]
        assert not list(PLACE.iterdir())
    finally:
        teu("rm", "-f", "byhand", check=False)
        teu("volume", "rm", "systemd-www", check=False)
        for path in sorted(PLACE.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        call("systemctl", "daemon-reload")
