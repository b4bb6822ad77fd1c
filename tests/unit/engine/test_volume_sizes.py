# SPDX-License-Identifier: Apache-2.0
"""Volumes with a size, and what is said where there can be none."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakequota import ProjectQuotas

from teu.engine.core.database import Database
from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.engine.volumes.drivers.local import Local
from teu.engine.volumes.store import Volumes

MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectQuotas:
    return ProjectQuotas(monkeypatch, str(tmp_path))


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    containers: Any = SimpleNamespace(all=list, lost=False, using_volume=lambda _: [])
    events: Any = SimpleNamespace(publish=lambda *_: None)
    made = Volumes(str(tmp_path / "volumes"), containers, Database(str(tmp_path / "engine.db")), events)
    made.start()
    return made


def test_a_volume_with_a_size_is_a_limited_folder(volumes: Volumes, disk: ProjectQuotas) -> None:
    path = volumes.ensure("data", options={"size": "1m"}).mountpoint
    assert disk.limit(path) == MEGABYTE and disk.limit(os.path.dirname(path)) == 0
    assert volumes.describe("data")["Options"] == {"size": "1m"}
    assert volumes.hold("data", "c1") == path and not os.path.ismount(path)
    Path(path, "file").write_text("x" * 5)
    volumes.let_go("data", "c1")
    (row,) = volumes.usage()
    assert row["UsageData"] == {"Size": 5, "RefCount": 0}
    assert volumes.ensure("data", options={"size": "1m"}).mountpoint == path
    with pytest.raises(Conflict, match="other options"):
        volumes.ensure("data", options={"size": "2m"})


def test_it_keeps_its_limit_under_another_name_and_loses_it_with_its_files(
    volumes: Volumes, disk: ProjectQuotas
) -> None:
    project = disk.project(volumes.ensure("data", options={"size": "1m"}).mountpoint)
    volumes.rename("data", "other")
    disk.joined = {volumes.mountpoint("other"): project}
    volumes.remove("other")
    assert (disk.limits, disk.used()) == ({}, set())


def test_a_limit_that_was_lost_is_set_again(volumes: Volumes, disk: ProjectQuotas) -> None:
    path = volumes.ensure("data", options={"size": "1m"}).mountpoint
    disk.limits.clear()
    volumes.hold("data", "c1")
    assert disk.limit(path) == MEGABYTE
    volumes.let_go("data", "c1")
    disk.state = 0
    with pytest.raises(EngineError, match="no quota support.*prjquota"):
        volumes.hold("data", "c1")
    volumes.remove("data")


def test_no_limit_where_none_is_asked_for(volumes: Volumes, disk: ProjectQuotas) -> None:
    for name, options in (("one", {}), ("two", {"size": "0"})):
        disk.joined[volumes.ensure(name, options=options).mountpoint] = 0
    assert disk.limits == {}
    # What a daemon has left that died before the record.
    os.makedirs(f"{volumes.root}/left/_data")
    volumes.ensure("limited", options={"size": "1m"})
    disk.joined[f"{volumes.root}/left/_data"] = project = next(iter(disk.limits))
    volumes.ensure("left")
    assert project not in disk.limits


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": "much"}, "invalid size: 'much'"),
        ({"size": ""}, "invalid size"),
        ({"size": "1m", "type": "tmpfs", "device": "tmpfs"}, "o=size="),
        ({"size": "1m", "o": "rw"}, "missing device"),
    ],
)
def test_sizes_that_cannot_be(volumes: Volumes, disk: ProjectQuotas, options: dict[str, str], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        volumes.ensure("data", options=options)
    assert volumes.names() == [] and disk.limits == {}


def test_without_quotas_there_is_no_volume(volumes: Volumes, disk: ProjectQuotas) -> None:
    disk.state = 0
    with pytest.raises(BadRequest, match="^create: quota size requested but no quota support: .*prjquota"):
        volumes.ensure("data", options={"size": "1m"})
    assert volumes.names() == [] and os.listdir(volumes.root) == []


def test_a_death_before_the_limit_leaves_a_folder_to_use_or_to_remove(volumes: Volumes, disk: ProjectQuotas) -> None:
    disk.dies_before_the_limit = True
    with pytest.raises(ZeroDivisionError):
        volumes.ensure("data", options={"size": "1m"})
    disk.dies_before_the_limit = False
    assert os.listdir(volumes.root) == ["data"] and volumes.names() == []
    volumes.ensure("data", options={"size": "1m"})
    volumes.remove("data")
    assert (disk.limits, disk.used()) == ({}, set())


def test_a_death_before_the_record_leaves_nothing(
    volumes: Volumes, disk: ProjectQuotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Volumes, "_write", lambda *_: 1 / 0)
        patched.setattr(Local, "remove", lambda *_: None)
        for name in (None, "data"):
            with pytest.raises(ZeroDivisionError):
                volumes.ensure(name, options={"size": "1m"})
    assert len(os.listdir(volumes.root)) == len(disk.limits) == 2
    os.makedirs(f"{volumes.root}/others/_data/files")
    os.makedirs(f"{volumes.root}/strange")
    (Path(volumes.root) / "file").touch()
    volumes.ensure("kept")
    volumes.start()
    assert sorted(os.listdir(volumes.root)) == ["file", "kept", "others", "strange"]
    assert (disk.limits, disk.used()) == ({}, set())
