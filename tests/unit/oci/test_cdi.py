# SPDX-License-Identifier: Apache-2.0
"""Devices of the Container Device Interface: files, names, and what a specification gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from teu.oci import cdi

FILE: dict[str, Any] = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.example/class",
    "annotations": {"a": "of the file"},
    "containerEdits": {"env": ["COMMON=1"], "additionalGids": [0, 44]},
    "devices": [
        {"name": "zero", "containerEdits": {"deviceNodes": [{"path": "/dev/inside", "hostPath": "/dev/zero"}]}},
        {
            "name": "1:all",
            "annotations": {cdi.CLASS: "some", cdi.ALLOWED: "true"},
            "containerEdits": {
                "env": ["OWN=a=b", "PATH=/own"],
                "deviceNodes": [
                    {
                        "path": "/dev/x",
                        "type": "b",
                        "major": 7,
                        "minor": 3,
                        "permissions": "r",
                        "fileMode": 384,
                        "gid": 6,
                    }
                ],
                "mounts": [{"hostPath": "/usr/lib/a", "containerPath": "/usr/lib/b", "options": ["ro", "nosuid"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true", "x"], "timeout": 3}],
            },
        },
    ],
}
ZERO, ALL = "vendor.example/class=zero", "vendor.example/class=1:all"


def folder(path: Path, **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    for name, document in files.items():
        (path / f"{name}.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def spec(**user: int) -> dict[str, Any]:
    return {"process": {"user": {"uid": 0, "gid": 0, **user}, "env": ["PATH=/bin", "A=b"]}, "linux": {}}


def test_what_a_device_gives(tmp_path: Path) -> None:
    devices = cdi.Devices([str(folder(tmp_path / "cdi", one=FILE))])
    assert list(devices.all()) == [ALL, ZERO]
    edits = devices.edits([ZERO, ALL])
    made = spec()
    cdi.edit(made, edits)
    assert made["process"]["env"] == ["A=b", "COMMON=1", "OWN=a=b", "PATH=/own"]  # the file's own once
    assert made["process"]["user"]["additionalGids"] == [44]
    zero = os.stat("/dev/zero")
    assert made["linux"]["devices"] == [
        {"path": "/dev/inside", "type": "c", "major": 1, "minor": 5, "fileMode": zero.st_mode & 0o7777},
        {"path": "/dev/x", "type": "b", "major": 7, "minor": 3, "fileMode": 0o600, "gid": 6},
    ]
    assert made["linux"]["resources"]["devices"] == [
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        {"allow": True, "type": "b", "major": 7, "minor": 3, "access": "r"},
    ]
    assert made["hooks"] == {"createContainer": [{"path": "/bin/true", "args": ["true", "x"], "timeout": 3}]}
    assert edits.mounts == (
        {"destination": "/usr/lib/b", "type": "bind", "source": "/usr/lib/a", "options": ["rbind", "ro", "nosuid"]},
    )
    made = spec(uid=5, gid=7)
    cdi.edit(made, edits)
    assert [(one["uid"], one["gid"]) for one in made["linux"]["devices"]] == [(5, 7), (5, 6)]


def test_names_of_devices(tmp_path: Path) -> None:
    devices = cdi.Devices([str(folder(tmp_path / "cdi", one=FILE))], ["other.example/x", ZERO])
    kind = "vendor.example/class"
    assert devices.find(kind) == [ALL] and devices.find(f"{kind}=*") == [ALL, ZERO]
    assert devices.find(ZERO) == [ZERO] and devices.find(f"{kind}=some") == [ALL]
    assert devices.find(f"{kind}=none") == [] == devices.find("other.example/x")
    for name in ("", "x", "/x", "a/", "a/b/c", "-a/b", "a/b-=c", "a b/c", "vendor.example/../x"):
        with pytest.raises(cdi.Broken, match="invalid device"):
            devices.find(name)
    assert devices.may(ALL) and devices.may(ZERO) and devices.may("other.example/x=y")
    assert not devices.may("vendor.example/class=none")
    with pytest.raises(cdi.Unknown, match="not registered"):
        devices.edits(["vendor.example/class=none"])


def test_folders_files_and_their_changes(tmp_path: Path) -> None:
    second = {**FILE, "devices": [{"name": "zero", "containerEdits": {"env": ["SECOND=1"]}}]}
    early, late = folder(tmp_path / "early", a=FILE), folder(tmp_path / "late")
    devices = cdi.Devices([str(early), str(late), str(tmp_path / "absent")])
    assert devices.edits([ZERO]).nodes
    folder(late, b=second)
    assert devices.edits([ZERO]).env == ("COMMON=1", "SECOND=1"), "of the later folder"
    folder(late, c=second)
    assert list(devices.all()) == [ALL], "two of one folder have the same"
    (late / "c.json").unlink()
    (late / "b.json").write_text(json.dumps({**second, "devices": []}))
    assert devices.edits([ZERO]).nodes
    (early / "a.json").unlink()
    (late / "d.yaml").write_text("cdiVersion: 0.5.0\nkind: a.b/c\ndevices: [{name: y}]\n")
    assert list(devices.all()) == ["a.b/c=y"]


@pytest.mark.parametrize(
    "document",
    [
        "{", "[]", "[" * 100_000, "null", {}, {"kind": "a.b/c"}, {"kind": "a", "cdiVersion": "1"},
        {"kind": "a.b/c", "cdiVersion": 1},
        *(
            {"kind": "a.b/c", "cdiVersion": "0.6.0", "devices": devices}
            for devices in ({}, ["x"], [{"name": ""}], [{"name": "a/b"}], [{"name": "x", "annotations": {"a": 1}}])
        ),
        *(
            {"kind": "a.b/c", "cdiVersion": "0.6.0", "containerEdits": edits}
            for edits in (
                [],
                {"env": ["A"]},
                {"env": ["A=\0"]},
                {"env": [1]},
                {"additionalGids": [-1]},
                {"additionalGids": [True]},
                {"hooks": [{"hookName": "never", "path": "/x"}]},
                {"hooks": [{"hookName": "poststop", "path": "x"}]},
                {"deviceNodes": [{"path": "dev/x"}]},
                {"deviceNodes": [{"path": "/dev/x", "type": "q"}]},
                {"deviceNodes": [{"path": "/dev/x", "permissions": "rwx"}]},
                {"deviceNodes": [{"path": "/dev/x", "major": "1"}]},
                {"mounts": [{"hostPath": "/x", "containerPath": "y"}]},
                {"mounts": [{"containerPath": "/y"}]},
                {"intelRdt": {"closID": "x"}},
                {"netDevices": [{"hostInterfaceName": "eth0"}]},
            )
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_none(tmp_path: Path, document: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out and named once; what the others have stays."""
    devices = cdi.Devices([str(folder(tmp_path / "cdi", bad=document, good=FILE))])
    assert list(devices.all()) == list(devices.all()) == [ALL, ZERO]
    assert len([one for one in caplog.messages if "bad.json are left out" in one]) == 1


def test_a_node_that_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, kind in ((str(tmp_path / "file"), ""), ("/dev/null", "b"), (str(tmp_path / "absent"), "")):
        node = cdi._device_node({"path": "/dev/x", "hostPath": path, "type": kind})
        with pytest.raises((cdi.Broken, OSError)):
            cdi.edit(spec(), cdi.Edits(nodes=(node,)))
