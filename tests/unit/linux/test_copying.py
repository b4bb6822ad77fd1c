# SPDX-License-Identifier: Apache-2.0
"""Copying a tree into a folder that others change: what is kept, what is left alone, how deep it goes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from teu.linux import copying, trees


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def copy(source: Path, target: Path) -> None:
    descriptors = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in (source, target)]
    before = set(os.listdir("/proc/self/fd"))
    try:
        copying.copy_tree(*descriptors)
        assert not set(os.listdir("/proc/self/fd")) - before
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def listed(folder: Path) -> Iterator[tuple[object, ...]]:
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        link = os.readlink(path) if path.is_symlink() else ""
        owner = status.st_mode, status.st_uid, status.st_gid, status.st_rdev
        names = status.st_nlink if not path.is_dir() or path.is_symlink() else 0
        yield path.relative_to(folder), *owner, names, status.st_mtime_ns, status.st_size if names else 0, link


def test_all_kinds_with_all_that_they_have(source: Path, target: Path) -> None:
    (source / "a/b").mkdir(parents=True)
    (source / "a/file").write_bytes(b"text")
    (source / "a/file").chmod(0o4711)
    os.link(source / "a/file", source / "second name")
    os.symlink("/etc/nowhere", source / "a/link")
    os.link(source / "a/link", source / "a/link too", follow_symlinks=False)
    os.mkfifo(source / "fifo", 0o622)
    (source / os.fsdecode(b"no text \xff")).touch()
    with open(source / "holes", "wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 5000)
        file.truncate(64 << 20)
    if os.geteuid() == 0:
        os.mknod(source / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
        os.chown(source / "device", 3, 4)
        os.chown(source / "a/link", 1, 2, follow_symlinks=False)
        os.chown(source / "a/file", 5, 6)
        (source / "a/file").chmod(0o4711)
    (source / "a/b").chmod(0o2770)
    for path in [*source.rglob("*"), source]:
        os.utime(path, ns=(1, 987654321), follow_symlinks=False)
    source.chmod(0o1750)
    copy(source, target)
    assert list(listed(target)) == list(listed(source))
    assert (target / "holes").read_bytes() == (source / "holes").read_bytes()
    assert (target / "holes").stat().st_blocks * 512 < 4 << 20
    assert (target / "a/file").samefile(target / "second name")


def test_extended_attributes(source: Path, target: Path) -> None:
    (source / "file").touch()
    try:
        os.setxattr(source / "file", "user.of.mine", b"value")
    except OSError as error:
        pytest.skip(f"this file system has no attributes: {error}")
    capability = bytes.fromhex("0000000200040000000000000000000000000000")
    if os.geteuid() == 0:
        os.setxattr(source / "file", "security.capability", capability)
    copy(source, target)
    assert os.getxattr(target / "file", "user.of.mine") == b"value"
    if os.geteuid() == 0:
        assert os.getxattr(target / "file", "security.capability") == capability


def test_what_is_there_stays(source: Path, target: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "file").write_text("outside")
    for name in ("folder", "merged"):
        (source / name).mkdir(mode=0o755)
        (source / name / "file").write_text("new")
    for name in ("link", "file"):
        (source / name).write_text("new")
    (target / "folder").symlink_to(outside)
    (target / "link").symlink_to(outside / "file")
    (target / "file").write_text("theirs")
    (target / "merged").mkdir(mode=0o711)
    copy(source, target)
    assert (outside / "file").read_text() == "outside"
    assert os.listdir(outside) == ["file"]
    assert (target / "file").read_text() == "theirs"
    assert (target / "merged/file").read_text() == "new"
    assert stat.S_IMODE((target / "merged").stat().st_mode) == 0o711


def test_a_tree_as_deep_as_it_likes(source: Path, target: Path) -> None:
    deep = 3000
    here = os.open(source, os.O_RDONLY)
    for _ in range(deep):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.link("end", "end too", src_dir_fd=here, dst_dir_fd=here)
    os.close(here)
    copy(source, target)
    here = os.open(target, os.O_RDONLY)
    for _ in range(deep):
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    assert sorted(os.listdir(here)) == ["end", "end too"]
    os.close(here)
    for folder in (source, target):
        trees.remove_tree(str(folder))
