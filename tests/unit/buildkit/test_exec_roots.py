# SPDX-License-Identifier: Apache-2.0
"""What is made in a step's root before it and taken away after it, and that nothing of that reaches the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Mount
from teu.buildkit.worker import roots

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    top = tmp_path / "root"
    (top / "etc").mkdir(parents=True)
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "root"


def test_places_leave_no_trace(root: int, top: Path) -> None:
    os.utime(top / "etc", ns=(5, 7))
    os.utime(top, ns=(8, 9))
    stubs = roots.Stubs(recursive=True)
    stubs.make(root, [("/etc/hosts", "file"), ("/run/secrets/word", "file"), ("/cache", "dir")])
    assert (top / "etc/hosts").is_file()
    assert (top / "run/secrets/word").is_file()
    assert (top / "cache").is_dir()
    assert os.stat(top / "etc").st_mtime_ns == 7
    stubs.remove(root)
    assert sorted(os.listdir(top)) == ["etc"]
    assert os.listdir(top / "etc") == []
    assert os.stat(top / "etc").st_mtime_ns == 7
    assert os.stat(top).st_mtime_ns == 9


def test_what_the_step_made_of_a_place_stays(root: int, top: Path) -> None:
    stubs = roots.Stubs(recursive=True)
    stubs.make(root, [("/a/b", "dir"), ("/c/d", "file"), ("/e/f", "file")])
    (top / "a/beside").touch()
    (top / "c/d").write_text("something")
    (top / "e/f").unlink()
    (top / "e/f").symlink_to("/etc/passwd")
    stubs.remove(root)
    assert sorted(os.listdir(top / "a")) == ["beside"]
    assert (top / "c/d").read_text() == "something"
    assert (top / "e/f").is_symlink()


def test_only_the_place_itself_goes_where_that_is_asked(root: int, top: Path) -> None:
    stubs = roots.Stubs(recursive=False)
    stubs.make(root, [("/a/b", "dir")])
    stubs.remove(root)
    assert (top / "a").is_dir()
    assert not (top / "a/b").exists()


def test_what_was_there_is_nobodys_place(root: int, top: Path) -> None:
    (top / "empty").mkdir()
    (top / "file").touch()
    stubs = roots.Stubs(recursive=True)
    stubs.make(root, [("/empty", "dir"), ("/file", "file"), ("/proc/x", "dir"), ("/empty/below", "dir")])
    assert not (top / "empty/below").exists()  # it is covered by the mount above
    assert not (top / "proc").exists()
    stubs.remove(root)
    assert (top / "empty").is_dir()
    assert (top / "file").exists()


def test_links_of_the_root_stay_inside_it(root: int, top: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (top / "etc/resolv.conf").symlink_to("../run/stub.conf")
    (top / "away").symlink_to(str(outside))
    (top / "up").symlink_to("../../../../..")
    stubs = roots.Stubs(recursive=True)
    stubs.make(root, [("/etc/resolv.conf", "file"), ("/away/x", "dir"), ("/up/y", "file")])
    assert (top / "run/stub.conf").is_file()
    assert (top / f"{outside}/x".lstrip("/")).is_dir()
    assert (top / "y").is_file()
    assert os.listdir(outside) == []
    stubs.remove(root)
    assert sorted(os.listdir(top)) == ["away", "etc", "up"]


def test_a_place_that_became_a_link_leads_nowhere(root: int, top: Path, tmp_path: Path) -> None:
    """CVE-2024-23652: what is removed afterwards is never outside of the root."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "word").touch()
    (outside / "d").mkdir()
    stubs = roots.Stubs(recursive=True)
    stubs.make(root, [("/run/word", "file"), ("/dir/d", "dir")])
    for name in ("run", "dir"):
        (top / name / os.listdir(top / name)[0]).rename(top / f"moved-{name}")
        (top / name).rmdir()
        (top / name).symlink_to(outside)
    stubs.remove(root)
    assert sorted(os.listdir(outside)) == ["d", "word"]


def test_a_place_that_cannot_be(root: int, top: Path) -> None:
    (top / "file").touch()
    roots.Stubs(recursive=True).make(root, [("/file/x", "dir")])  # the runtime says what is wrong
    assert not (top / "file/x").exists()


def test_a_working_directory_is_the_users(root: int, top: Path) -> None:
    roots.make_directory(root, "work/below", (), os.geteuid(), os.getegid())
    assert (top / "work/below").is_dir()
    roots.make_directory(root, "/cache/work", ("/cache",), 0, 0)
    assert not (top / "cache").exists()
    (top / "file").touch()
    with pytest.raises(errors.Error, match="failed to create working directory /file"):
        roots.make_directory(root, "/file", (), os.geteuid(), os.getegid())


@pytest.mark.parametrize(
    "path", ["/proc/self/fd/7", "/proc/1/cwd", "/link/8", "proc/thread-self/fd/3", "/a/../proc/self"]
)
def test_a_working_directory_is_none_of_a_process(root: int, top: Path, path: str) -> None:
    """CVE-2024-21626."""
    (top / "link").symlink_to("/proc/self/fd")
    with pytest.raises(errors.InvalidArgument, match="leads into /proc"):
        roots.make_directory(root, path, (), 0, 0)
    assert not (top / "proc").exists()


@AS_ROOT
def test_a_root_is_opened_where_nobody_sees_it(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").write_text("x")
    options = (f"lowerdir={tmp_path}/lower", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    before = Path("/proc/self/mountinfo").read_text()
    try:
        with roots.opened([Mount("overlay", "overlay", options)]) as root:
            os.mkdir("made", dir_fd=root)
            assert sorted(os.listdir(root)) == ["file", "made"]
            assert Path("/proc/self/mountinfo").read_text() == before
    except OSError as error:
        pytest.skip(f"no overlay on this file system: {error}")
    assert os.listdir(tmp_path / "upper") == ["made"]
    with roots.opened([Mount("bind", str(tmp_path / "lower"), ("rbind", "ro"))]) as root:
        assert os.listdir(root) == ["file"]
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir("made", dir_fd=root)
