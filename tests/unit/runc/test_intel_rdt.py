# SPDX-License-Identifier: Apache-2.0
"""linux.intelRdt on a folder that looks like resctrl: no lab has a processor with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from teu.runc import intel_rdt
from teu.runc.errors import RuncError

L3, MB = "L3:0=7f0;1=1f", "MB:0=20;1=70"


@pytest.fixture
def resctrl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "schemata").write_text("    L3:0=7ff;1=7ff\n    MB:0=100;1=100\n")
    (tmp_path / "mon_groups").mkdir()
    (tmp_path / "class/mon_groups").mkdir(parents=True)
    (tmp_path / "class/schemata").write_text("    L3:0=7f0;1=01f\n    MB:0= 20;1= 70\n")
    monkeypatch.setattr(intel_rdt, "_ROOT", str(tmp_path))
    return tmp_path


def test_a_class_of_its_own_comes_and_goes(resctrl: Path) -> None:
    config = {"schemata": ["L2:0=f"], "memBwSchema": MB, "l3CacheSchema": L3}
    record = intel_rdt.apply(config, "box", 77)
    assert (resctrl / "box/schemata").read_text() == f"{L3}\n{MB}\nL2:0=f\n", "schemata last"
    assert (resctrl / "box/tasks").read_text() == "77"
    for file in (resctrl / "box").iterdir():
        file.unlink()  # the kernel's own need not be
    intel_rdt.remove(record)
    assert not (resctrl / "box").exists()


def test_a_folder_that_was_there_stays(resctrl: Path) -> None:
    (resctrl / "box").mkdir()
    assert intel_rdt.apply({}, "box", 77)["folder"] == ""
    assert not (resctrl / "box/schemata").exists(), "no schema given, none written"


def test_the_default_class(resctrl: Path) -> None:
    before = (resctrl / "schemata").read_text()
    record = intel_rdt.apply({"closID": "/", "enableMonitoring": True}, "box", 77)
    assert (resctrl / "tasks").read_text() == "77" and (resctrl / "schemata").read_text() == before
    assert (resctrl / "mon_groups/box/tasks").read_text() == "77"
    assert record == {"folder": "", "monitoring": str(resctrl / "mon_groups/box")}


def test_a_class_that_is_there_must_be_what_is_asked_for(resctrl: Path) -> None:
    assert intel_rdt.apply({"closID": "class"}, "box", 77) == {"folder": "", "monitoring": ""}
    intel_rdt.apply({"closID": "class", "l3CacheSchema": "L3:1=1f;0=7f0"}, "box", 78)
    (resctrl / "class/schemata").write_text(f"{L3}\n{MB}\n")
    with pytest.raises(RuncError, match="linux.intelRdt.closID: .* MB:1"):
        intel_rdt.apply({"closID": "class", "memBwSchema": "MB:0=20;1=60"}, "box", 79)
    assert (resctrl / "class/tasks").read_text() == "78"


def test_a_class_that_is_not_there_needs_a_schema(resctrl: Path) -> None:
    with pytest.raises(RuncError, match="linux.intelRdt.closID: .*'new'"):
        intel_rdt.apply({"closID": "new"}, "box", 77)
    assert not (resctrl / "new").exists()
    assert intel_rdt.apply({"closID": "new", "schemata": [MB]}, "box", 77)["folder"] == "", "others may be in it"
    assert (resctrl / "new/schemata").read_text() == f"{MB}\n"


def test_what_fails_leaves_nothing(resctrl: Path) -> None:
    with pytest.raises(RuncError, match="linux.intelRdt: mkdir .*/mon_groups/none/box"):
        intel_rdt.apply({"closID": "class", "enableMonitoring": True}, "none/box", 77)
    with pytest.raises(RuncError, match="linux.intelRdt: mkdir"):
        intel_rdt.apply({"enableMonitoring": True}, "box", 77)  # a plain folder has no mon_groups
    assert not list((resctrl / "class/mon_groups").iterdir())


def test_an_update_writes_to_the_class_of_the_container(resctrl: Path) -> None:
    config = {"closID": "class"}
    before = {"folder": "", "monitoring": ""}
    assert intel_rdt.update(config, {"l3CacheSchema": L3, "memBwSchema": ""}, "box", 77, before) == before
    assert (resctrl / "class/schemata").read_text() == f"{L3}\n"


def test_an_update_gives_a_class_to_a_container_without_one(resctrl: Path) -> None:
    record = intel_rdt.update({}, {"l3CacheSchema": L3, "memBwSchema": MB}, "box", 77, {})
    assert record["folder"] == str(resctrl / "box")
    assert (resctrl / "box/schemata").read_text() == f"{L3}\n{MB}\n"
    assert (resctrl / "box/tasks").read_text() == "77"
