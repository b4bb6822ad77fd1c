# SPDX-License-Identifier: Apache-2.0
"""How much a snapshot may have of its own: the label of it, through the store to the snapshotter, and back."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from containerd_parts import make_context, root_only
from fakequota import ProjectQuotas

from teu.api.services.snapshots.v1 import snapshots_pb2
from teu.containerd.core.errors import FailedPrecondition, InvalidArgument
from teu.containerd.snapshotters.overlayfs import Overlayfs
from teu.containerd.state import Context
from teu.oci.labels import SIZE, SIZES

pytestmark = root_only

MEGABYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectQuotas:
    return ProjectQuotas(monkeypatch, str(tmp_path))


def overlayfs(context: Context) -> Overlayfs:
    found = context.snapshots.snapshotters["overlayfs"]
    assert isinstance(found, Overlayfs)
    return found


def folders(context: Context) -> list[str]:
    root = overlayfs(context).root
    return [os.path.join(root, name) for name in sorted(os.listdir(root), key=int)]


def committed(context: Context) -> str:
    context.snapshots.prepare("one", "overlayfs", "tmp", "", {})
    context.snapshots.commit("one", "overlayfs", "base", "tmp", {})
    return "base"


def test_a_size_limits_both_folders_of_a_snapshot(context: Context, disk: ProjectQuotas) -> None:
    assert SIZES in overlayfs(context).capabilities
    context.snapshots.prepare("one", "overlayfs", "a", committed(context), {SIZE: str(MEGABYTE)})
    base, limited = folders(context)
    assert disk.limit(limited) == MEGABYTE and disk.limit(base) == 0
    assert {disk.project(f"{limited}{name}") for name in ("", "/fs", "/work")} == {disk.project(limited)}
    assert context.snapshots.stat("one", "overlayfs", "a").labels[SIZE] == str(MEGABYTE)
    context.snapshots.prepare("one", "overlayfs", "b", "base", {SIZE: "0"})
    context.snapshots.view("one", "overlayfs", "c", "base", {SIZE: "5"})
    assert len(disk.limits) == 1


def test_it_goes_with_the_snapshot(context: Context, disk: ProjectQuotas) -> None:
    context.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: "5000"})
    context.snapshots.remove("one", "overlayfs", "a")
    context.snapshots.collect()
    assert (folders(context), disk.limits, disk.used()) == ([], {}, set())


def test_one_that_was_committed_goes_as_well(context: Context, disk: ProjectQuotas) -> None:
    context.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: "5000"})
    context.snapshots.commit("one", "overlayfs", "b", "a", {})
    context.snapshots.prepare("one", "overlayfs", "c", "b", {})
    assert disk.limit(folders(context)[1]) == 0, "what is above it is no part of it"
    for key in ("c", "b"):
        context.snapshots.remove("one", "overlayfs", key)
    context.snapshots.collect()
    assert (disk.limits, disk.used()) == ({}, set())


def update(context: Context, key: str, **labels: str) -> None:
    info = snapshots_pb2.Info(name=key, labels={name.replace("_", "."): value for name, value in labels.items()})
    info.labels.update({SIZE: labels["size"]} if "size" in labels else {})
    context.snapshots.update("one", "overlayfs", info, [])


def test_another_size(context: Context, disk: ProjectQuotas) -> None:
    context.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: "5120"})
    update(context, "a", size="10240")
    assert list(disk.limits.values()) == [10240]
    update(context, "a", size="10240", more="1")
    update(context, "a")
    assert disk.limits == {}
    update(context, "a", size="512")
    assert list(disk.limits.values()) == [512]
    with pytest.raises(InvalidArgument):
        update(context, "a", size="much")
    assert context.snapshots.stat("one", "overlayfs", "a").labels[SIZE] == "512"


@pytest.mark.parametrize("size", ["", "1m", "-1", "1.5", "٣", "9" * 30])
def test_no_number(context: Context, disk: ProjectQuotas, size: str) -> None:
    with pytest.raises(InvalidArgument, match="no number of bytes"):
        context.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: size})
    assert folders(context) == [] and list(context.snapshots.find("one", "overlayfs")) == []


def test_without_quotas_nothing_is_made(context: Context, disk: ProjectQuotas) -> None:
    disk.state = 0
    with pytest.raises(FailedPrecondition, match="project quotas"):
        context.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: "5000"})
    assert folders(context) == [] and list(context.snapshots.find("one", "overlayfs")) == []
    context.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: "0"})
    with pytest.raises(FailedPrecondition, match="project quotas"):
        update(context, "a", size="5000")
    assert context.snapshots.stat("one", "overlayfs", "a").labels == {SIZE: "0"}


def test_a_snapshotter_that_cannot_says_so(context: Context) -> None:
    with pytest.raises(FailedPrecondition, match="snapshotter native cannot limit"):
        context.snapshots.prepare("one", "native", "a", "", {SIZE: "5000"})
    context.snapshots.prepare("one", "native", "a", "", {SIZE: "0"})


def test_a_death_before_the_record_leaves_nothing(context: Context, disk: ProjectQuotas) -> None:
    """The folder is there, with a limit, and no record of it."""
    with pytest.raises(KeyboardInterrupt):
        with context.database.transaction():
            context.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: "5000"})
            raise KeyboardInterrupt
    assert len(disk.limits) == 1 and len(folders(context)) == 1
    context.snapshots.collect()
    assert (folders(context), disk.limits, disk.used()) == ([], {}, set())


def test_limits_are_set_again_at_the_start(
    tmp_path: Path, disk: ProjectQuotas, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy of the file system has lost projects and limits; one that is mounted without quotas has none in force."""
    first = make_context(tmp_path)
    first.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: "5120"})
    first.close()
    disk.joined.clear()
    disk.limits.clear()
    again = make_context(tmp_path)
    (folder,) = folders(again)
    assert disk.limit(folder) == 5120
    again.close()
    disk.state = 0
    with caplog.at_level(logging.ERROR, "teu.containerd.snapshots"):
        make_context(tmp_path).close()
    assert "snapshot one/1/a is not limited any more" in caplog.text and "project quotas" in caplog.text


def test_a_lost_folder_is_made_again_with_its_limit(tmp_path: Path, disk: ProjectQuotas) -> None:
    first = make_context(tmp_path)
    first.snapshots.prepare("one", "overlayfs", "a", "", {SIZE: "5120"})
    (folder,) = folders(first)
    first.close()
    os.rename(folder, tmp_path / "lost")
    again = make_context(tmp_path)
    assert disk.limit(folder) == 5120
    again.close()
