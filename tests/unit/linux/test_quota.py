# SPDX-License-Identifier: Apache-2.0
"""Projects of folders: who gets which, who lets go of it, and what is said where there are none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from fakequota import ProjectQuotas

from teu.linux import quota, trees


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectQuotas:
    return ProjectQuotas(monkeypatch, str(tmp_path))


def folder(tmp_path: Path, name: str) -> str:
    path = tmp_path / name
    (path / "fs/etc").mkdir(parents=True)
    (path / "fs/etc/file").write_text("x")
    (path / "fs/link").symlink_to("/etc")
    return str(path)


def test_a_folder_and_what_is_in_it_are_one_project(tmp_path: Path, disk: ProjectQuotas) -> None:
    path = folder(tmp_path, "1")
    quota.limit(path, 1000)
    assert quota.FIRST <= disk.project(path) < quota.FIRST + quota.COUNT
    inside = {f"{path}{name}" for name in ("", "/fs", "/fs/etc", "/fs/etc/file")}
    assert disk.joined == dict.fromkeys(inside, disk.project(path))
    assert disk.limit(path) == 1024, "in blocks of 512 bytes, not less than was asked for"
    assert not os.path.exists("/etc/passwd") or "/etc/passwd" not in disk.joined


def test_another_limit_is_in_its_place(tmp_path: Path, disk: ProjectQuotas) -> None:
    path = folder(tmp_path, "1")
    quota.limit(path, 4096)
    project = disk.project(path)
    quota.limit(path, 8192)
    assert (disk.project(path), disk.limits) == (project, {project: 8192})


def test_no_number_is_given_twice(tmp_path: Path, disk: ProjectQuotas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of ours, not one that has files or a limit of others, not one that an administrator has a name for."""
    monkeypatch.setattr(quota, "COUNT", 5)
    names, folders = tmp_path / "projid", tmp_path / "projects"
    names.write_text(f"# name:number\nweb:{quota.FIRST}\nbroken\n")
    folders.write_text(f"{quota.FIRST + 1}:/srv\n:\n")
    monkeypatch.setattr(quota, "NAMES", str(names))
    monkeypatch.setattr(quota, "FOLDERS", str(folders))
    disk.limits[quota.FIRST + 2] = 512
    made = [folder(tmp_path, str(number)) for number in range(3)]
    for path in made[:2]:
        quota.limit(path, 512)
    assert {disk.project(path) for path in made[:2]} == {quota.FIRST + 3, quota.FIRST + 4}
    with pytest.raises(OSError, match="no free project"):
        quota.limit(made[2], 512)
    assert disk.project(made[2]) == 0
    quota.release(made[0])
    with pytest.raises(OSError, match="no free project"):
        quota.limit(made[2], 512)  # its files are still there
    project = disk.project(made[0])
    trees.remove_tree(made[0])
    quota.limit(made[2], 512)
    assert disk.project(made[2]) == project


def test_a_death_before_the_limit_leaves_a_folder_that_is_let_go_of(tmp_path: Path, disk: ProjectQuotas) -> None:
    path = folder(tmp_path, "1")
    disk.dies_before_the_limit = True
    with pytest.raises(ZeroDivisionError):
        quota.limit(path, 512)
    disk.dies_before_the_limit = False
    assert disk.project(path)
    quota.release(path)
    trees.remove_tree(path)
    assert (disk.limits, disk.used()) == ({}, set())


def test_a_death_halfway_is_begun_anew(tmp_path: Path, disk: ProjectQuotas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of the folder's content is in the project then."""
    path, join, joined = folder(tmp_path, "1"), quota._join, []

    def dies(file: int, project: int) -> None:
        joined.append(file)
        if len(joined) == 3:
            raise ZeroDivisionError
        join(file, project)

    with monkeypatch.context() as patched:
        patched.setattr(quota, "_join", dies)
        with pytest.raises(ZeroDivisionError):
            quota.limit(path, 512)
    assert len(disk.used()) == 1 and disk.limits == {}
    quota.limit(path, 512)
    assert set(disk.joined.values()) == set(disk.limits) == {disk.project(path)}
    assert len(disk.joined) == 4


def test_a_limit_further_up_is_not_the_folders_own(tmp_path: Path, disk: ProjectQuotas) -> None:
    """Teu in a container whose disk is limited by Teu."""
    outer = folder(tmp_path, "outer")
    quota.limit(outer, 1 << 20)
    inner = os.path.join(outer, "fs")
    disk.joined = {outer: disk.project(outer)}
    quota.release(inner)
    assert disk.limit(outer) == 1 << 20
    quota.limit(inner, 4096)
    assert disk.project(inner) != disk.project(outer)
    assert (disk.limit(inner), disk.limit(outer)) == (4096, 1 << 20)
    quota.release(inner)
    assert (disk.limit(inner), disk.limit(outer)) == (0, 1 << 20)


def test_projects_of_others_stay_theirs(tmp_path: Path, disk: ProjectQuotas) -> None:
    path = folder(tmp_path, "1")
    disk.joined[path], disk.limits[7] = 7, 512
    quota.release(path)
    assert disk.limits == {7: 512}


def test_nothing_to_let_go_of(tmp_path: Path, disk: ProjectQuotas) -> None:
    quota.release(str(tmp_path / "absent"))
    (tmp_path / "file").write_text("")
    quota.release(str(tmp_path / "file"))
    path = folder(tmp_path, "1")
    quota.limit(path, 512)
    disk.state = 0  # mounted without quotas now
    quota.release(path)


ROOT = ("/", "ext4", "/dev/sda1")
DATA = ("/data", "ext4", "/dev/sdb")


@pytest.mark.parametrize(
    ("state", "mount", "words"),
    [
        (
            0,
            DATA,
            r"the ext4 at /data \(/dev/sdb\) is without .*tune2fs -O project,quota -Q prjquota /dev/sdb.*mount it",
        ),
        (0, ROOT, "tune2fs -O project,quota.*rootflags=prjquota"),
        (quota.FS_QUOTA_PDQ_ACCT, DATA, "counts for projects, but limits none: mount it with the option prjquota"),
        (0, ("/data", "xfs", "/dev/sdb"), "the xfs at /data .* mount it with the option prjquota, .* remount"),
        (0, ("/data", "btrfs", "/dev/sdb"), "is on btrfs, which has no project quotas: put it on ext4 or xfs"),
        (0, ("", "", ""), "a file system of an unknown kind"),
    ],
)
def test_what_is_said_where_there_are_none(
    tmp_path: Path, disk: ProjectQuotas, monkeypatch: pytest.MonkeyPatch, state: int, mount: Any, words: str
) -> None:
    disk.state = state
    monkeypatch.setattr(quota, "_mount_of", lambda _: quota._Mount(*mount))
    monkeypatch.setattr(quota.os.path, "isdir", lambda _: True)
    with pytest.raises(quota.NoQuota, match=words):
        quota.check(str(tmp_path))
    with pytest.raises(quota.NoQuota, match=words):
        quota.limit(str(tmp_path), 512)
    assert disk.joined == {}


def test_whose_root_may_not(tmp_path: Path, disk: ProjectQuotas, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> int:
        raise PermissionError(errno.EPERM, "quotactl_fd")

    path = folder(tmp_path, "1")
    quota.limit(path, 512)
    monkeypatch.setattr(quota, "syscall", refuses)
    with pytest.raises(quota.NoQuota, match="root of the host"):
        quota.check(path)
    with pytest.raises(quota.NoQuota, match="root of the host"):
        quota.limit(path, 1024)
    quota.release(path)


def test_where_it_is_mounted_is_found(tmp_path: Path) -> None:
    with quota._opened(str(tmp_path)) as opened:
        found = quota._mount_of(opened)
    assert found.kind and os.stat(found.point).st_dev == os.stat(tmp_path).st_dev
