# SPDX-License-Identifier: Apache-2.0
"""Files of containers: what a path names, what has changed, the places that each container has. In plain folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teu.engine.core.errors import EngineError
from teu.engine.files import changes, paths, places

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts are made by root")
OPEN = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, OPEN)
    yield descriptor
    os.close(descriptor)


# Paths ------------------------------------------------------------------------------------------------------


def located(root: int, path: str) -> tuple[str, str]:
    """Its own path, and its name."""
    found, place, name = paths.located(root, path)
    os.close(found)
    return place, name


def test_the_last_component_is_followed_only_where_a_slash_says_so(root: int, tmp_path: Path) -> None:
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "real/file").touch()
    (tmp_path / "link").symlink_to("/real")
    assert located(root, "/real/file") == ("/real/file", "file")
    assert located(root, "link/file") == ("/real/file", "file")
    assert located(root, "link") == ("/link", "link")
    assert located(root, "link/") == ("/real", "link")
    assert located(root, "real/sub/.") == ("/real/sub", ".")
    assert located(root, "/") == ("/", "/")
    assert located(root, "../../real/./sub/../file") == ("/real/file", "file")


def test_no_path_leads_out(root: int, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("../../../../../etc")
    with pytest.raises(paths.Missing):
        paths.located(root, "out/passwd")
    with pytest.raises(paths.Missing):
        paths.look_up(root, "/etc/passwd")


def test_paths_that_are_none(root: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        paths.located(root, "file/")
    assert caught.value.filename == "file/"
    with pytest.raises(OSError, match="Invalid argument"):
        paths.look_up(root, "a\0b")


def test_what_the_kernel_shows_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder where such a file system is mounted is there, what is below it is not."""
    top = os.open("/", OPEN)
    try:
        found, place, _ = paths.located(top, "/proc")
        os.close(found)
        assert place == "/proc"
        with pytest.raises(paths.Missing):
            paths.located(top, "/proc/version")
        with pytest.raises(paths.Missing):
            paths.located(top, "/proc/sys")
    finally:
        os.close(top)


# Changes ----------------------------------------------------------------------------------------------------


def told(monkeypatch: pytest.MonkeyPatch, upper: Path, *lowers: Path) -> list[tuple[int, str]]:
    options = [f"upperdir={upper}", "lowerdir=" + ":".join(map(str, lowers))] if lowers else []
    mount = SimpleNamespace(type="overlay" if lowers else "bind", source=str(upper), options=options)
    monkeypatch.setattr(changes.snapshots, "mounts", lambda engine, container: [mount])
    engine: Any = None
    return [(each["Kind"], each["Path"]) for each in changes.changes(engine, engine)]


def test_what_is_there_below_is_changed_and_else_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper, near, far = (tmp_path / name for name in ("upper", "near", "far"))
    for folder, files in {
        near: ["etc/a"],
        far: ["etc/b", "usr/c"],
        upper: ["etc/a", "etc/b", "etc/new", "d/e"],
    }.items():
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
    assert told(monkeypatch, upper, near, far) == [
        (changes.ADDED, "/d"),
        (changes.ADDED, "/d/e"),
        (changes.CHANGED, "/etc"),
        (changes.CHANGED, "/etc/a"),
        (changes.CHANGED, "/etc/b"),
        (changes.ADDED, "/etc/new"),
    ]
    assert {kind for kind, _ in told(monkeypatch, upper)} == {changes.ADDED}, "without an image all is new"


def test_the_runtime_s_places_are_nobody_s_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    (lower / "etc").mkdir(parents=True)
    (lower / "proc").mkdir()
    for place in ("proc", "dev/pts"):
        (upper / place).mkdir(parents=True)
    (upper / "etc").mkdir()
    (upper / "etc/hosts").touch()
    assert told(monkeypatch, upper, lower) == []
    (upper / "etc/motd").touch()
    assert told(monkeypatch, upper, lower) == [(changes.CHANGED, "/etc"), (changes.ADDED, "/etc/motd")]


@root_only
def test_whiteouts_and_opaque_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper, near, far = (tmp_path / name for name in ("upper", "near", "far"))
    for file in (near / "a/gone", far / "a/gone", far / "b/old", far / "hidden"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    os.mknod(near / "hidden", 0o020000)
    (upper / "a").mkdir(parents=True)
    os.mknod(upper / "a/gone", 0o020000)
    (upper / "hidden").touch()
    (upper / "b").mkdir()
    os.setxattr(upper / "b", "trusted.overlay.opaque", b"y")
    (upper / "b/old").touch()
    assert told(monkeypatch, upper, near, far) == [
        (changes.CHANGED, "/a"),
        (changes.DELETED, "/a/gone"),
        (changes.CHANGED, "/b"),
        (changes.ADDED, "/b/old"),
        (changes.ADDED, "/hidden"),
    ]


def test_a_snapshotter_that_keeps_no_changes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = SimpleNamespace(type="overlay", source="overlay", options=["lowerdir=/a"])
    monkeypatch.setattr(changes.snapshots, "mounts", lambda engine, container: [mount])
    nothing: Any = None
    with pytest.raises(EngineError, match="diff is not possible"):
        changes.changes(nothing, nothing)


# Places -----------------------------------------------------------------------------------------------------


def fill(root: int) -> None:
    for path, kind in places.PLACES.items():
        places._place(root, path.split("/"), kind)


def test_every_container_has_its_places(tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    old = os.umask(0o077)
    try:
        fill(top)
        fill(top)
    finally:
        os.umask(old)
        os.close(top)
    assert os.readlink(tmp_path / "etc/mtab") == "/proc/mounts"
    for path, kind in places.PLACES.items():
        place = tmp_path / path
        if kind == places.FOLDER:
            assert place.is_dir() and place.stat().st_mode & 0o777 == 0o755
        elif kind == places.FILE:
            assert place.read_bytes() == b"" and place.stat().st_mode & 0o777 == 0o755


def test_what_an_image_has_there_is_kept_or_covered(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o700)
    (tmp_path / "etc/hosts").write_text("the image's")
    (tmp_path / "etc/hostname").symlink_to("/outside")
    (tmp_path / "etc/resolv.conf").mkdir()
    (tmp_path / "proc").symlink_to("/proc")
    (tmp_path / "dev").write_text("no folder")
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fill(top)
    finally:
        os.close(top)
    assert (tmp_path / "etc").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "etc/hosts").read_text() == "" and not (tmp_path / "etc/hostname").is_symlink()
    assert (tmp_path / "etc/resolv.conf").is_dir(), "nothing but a folder can be mounted there"
    assert (tmp_path / "dev/pts").is_dir()
    assert not (tmp_path / "proc").is_symlink() and (tmp_path / "proc").is_dir()
