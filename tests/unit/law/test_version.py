# SPDX-License-Identifier: Apache-2.0
"""The version stands in one place, teu.__version__; the two files that cannot read it there agree with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from teu import __version__

TOP = Path(__file__).resolve().parents[3]


def test_the_package_reads_it() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "teu.__version__"}


def test_debian_s_changelog_begins_with_it() -> None:
    first = (TOP / "packaging/debian/changelog").read_text().partition("\n")[0]
    assert re.fullmatch(rf"teu \({re.escape(__version__)}([-+~][^)]*)?\) .*", first), first


def test_committed_pages_name_it() -> None:
    for page in (TOP / "man").glob("*.[158]"):
        named = re.search(r'^\.TH .*"teu ([^"]+)"', page.read_text(), re.MULTILINE)
        assert named is None or named[1] == __version__, f"{page.name}: run man/generate --ctr"


def test_no_other_file_of_the_source_spells_it() -> None:
    spelt = f'"{__version__}"'
    found = [
        str(path.relative_to(TOP))
        for path in (TOP / "src").rglob("*.py")
        if spelt in path.read_text() and "api" not in path.parts and path.name != "__init__.py"
    ]
    # 0.1.0 is also CNI's first version, kubelet's of the CRI, and that of a question to the Dockerfile
    # frontend
    others = (
        "src/teu/cni/configuration.py",
        "src/teu/containerd/cri/service.py",
        "src/teu/buildkit/frontends/dockerfile/subrequests.py",
    )
    assert [one for one in found if one not in others] == []
