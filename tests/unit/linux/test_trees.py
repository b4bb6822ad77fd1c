# SPDX-License-Identifier: Apache-2.0
"""Walking and removing trees that were made to hurt, with real mounts in a mount namespace of the test's own."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from teu.linux import inside, trees

SRC = Path(__file__).resolve().parents[3] / "src"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def in_mount_namespace(script: str, *arguments: str | Path) -> str:
    """What the script prints; it runs where its mounts are nobody else's."""
    python = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SRC)!r})\n{script}", *map(str, arguments)]
    done = subprocess.run(["unshare", "--mount", *python], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def emptied(tmp_path: Path) -> Iterator[None]:
    """pytest's own removal recurses, and fails on what is deep."""
    yield
    for name in os.listdir(tmp_path):
        trees.remove_tree(tmp_path / name)


def deep(top: Path, levels: int) -> None:
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_a_tree_goes_whatever_is_in_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    top = tmp_path / "top"
    top.mkdir()
    deep(top, 5000)
    os.symlink(kept, top / "link")
    os.symlink(tmp_path, top / "to-folder")
    os.mkfifo(top / "fifo")
    with open(os.fsencode(top) + b"/\xff\xfe", "w"):
        pass
    for number in range(50):
        (top / f"many{number}").mkdir()
        (top / f"many{number}/x").write_text("x")
    trees.remove_tree(top.as_posix())
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    trees.remove_tree(top.as_posix())  # twice is fine
    os.symlink(kept, top)
    trees.remove_tree(top.as_posix())
    assert kept.read_text() == "kept" and not top.is_symlink()


@AS_ROOT
@pytest.mark.parametrize("where", ["top", "top/a/b", "top/a/file"])
def test_a_bind_mount_of_the_same_file_system_is_never_crossed(tmp_path: Path, where: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_text("host data")
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/a/file").touch()
    (tmp_path / "top/other").touch()
    bound = source / "data" if where.endswith("file") else source
    script = """
import errno, os, subprocess
from teu.linux import trees
top, target, bound = sys.argv[1:]
subprocess.run(["mount", "--bind", bound, target], check=True)
subprocess.run(["mount", "--bind", bound, target], check=True)
print(trees.is_mount_root(target), os.path.ismount(target))
try:
    trees.remove_tree(top)
except OSError as error:
    print(error.errno == errno.EBUSY)
trees.unmount(target)
print(trees.is_mount_root(target), os.path.exists(target))
trees.remove_tree(top)
"""
    told = in_mount_namespace(script, tmp_path / "top", tmp_path / where, bound).splitlines()
    assert told[0].startswith("True") and told[1:] == ["True", "False True"]
    assert (source / "data").read_text() == "host data"
    assert not (tmp_path / "top").exists()


@AS_ROOT
def test_what_is_mounted_is_seen_by_descriptor_and_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    os.symlink(tmp_path / "m", tmp_path / "link")
    script = """
import os, subprocess
from teu.linux import trees
m, link = sys.argv[1:]
subprocess.run(["mount", "--bind", m, m], check=True)
print(trees.is_mount_root(os.open(m, os.O_PATH)), trees.is_mount_root(link), trees.is_mount_root(m + "/none"))
"""
    assert in_mount_namespace(script, tmp_path / "m", tmp_path / "link") == "True False False"


def test_the_first_error_is_told_and_the_rest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "top/stays").mkdir(parents=True)
    (tmp_path / "top/stays/x").touch()
    (tmp_path / "top/goes").mkdir()
    unlink = os.unlink

    def refusing(name: bytes, *, dir_fd: int) -> None:
        if name == b"x":
            raise PermissionError(errno.EPERM, "immutable")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refusing)
    with pytest.raises(OSError) as raised:
        trees.remove_tree(str(tmp_path / "top"))
    assert raised.value.errno == errno.EPERM
    assert os.listdir(tmp_path / "top") == ["stays"]


def test_a_walk_sees_everything_once_and_does_not_recurse(tmp_path: Path) -> None:
    deep(tmp_path, 3000)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one").touch()
    os.symlink("/", tmp_path / "z")
    top = os.open(tmp_path, os.O_PATH)
    try:
        seen = [path for path, *_ in trees.walk(top)]
    finally:
        os.close(top)
    assert len(seen) == len(set(seen)) == 3000 + 1 + 3
    assert seen[:3] == [b"a", b"a/one", b"d"] and seen[-1] == b"z"
    assert seen[-2] == b"/".join([b"d"] * 3000) + b"/f"
    trees.remove_tree(str(tmp_path / "d"))  # pytest's own removal recurses


def test_a_walk_skips_what_is_not_wanted(tmp_path: Path) -> None:
    for path in ("a/x/1", "b/x/2", "c"):
        (tmp_path / path).mkdir(parents=True)
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        seen = [path for path, *_ in trees.walk(top, skip=lambda path: path in (b"a/x", b"b"))]
    finally:
        os.close(top)
    assert seen == [b"a", b"a/x", b"b", b"c"]


def test_a_walk_goes_on_where_folders_are_moved_away(tmp_path: Path) -> None:
    """What is beside them is not left out."""
    (tmp_path / "top/a/b/c/d").mkdir(parents=True)
    (tmp_path / "top/a/z").touch()
    (tmp_path / "top/z").touch()
    for moved in ("a/b/c/d", "a/b", "a"):
        top = os.open(tmp_path / "top", os.O_PATH)
        walk = trees.walk(top)
        seen = [next(walk)[0] for _ in range(4)]
        assert seen[-1] == b"a/b/c/d"
        (tmp_path / "top" / moved).rename(tmp_path / "moved")
        assert [path for path, *_ in walk] == [b"a/z", b"z"]
        (tmp_path / "moved").rename(tmp_path / "top" / moved)
        os.close(top)


@AS_ROOT
def test_a_walk_asks_before_it_enters_a_mount(tmp_path: Path) -> None:
    for name in ("top/m/x", "top/n/x", "other/in"):
        (tmp_path / name).mkdir(parents=True)
    script = """
import os, subprocess
from teu.linux import trees
top, other = sys.argv[1:]
for name in ("m", "n"):
    subprocess.run(["mount", "--bind", other, f"{top}/{name}"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "none", f"{top}/n"], check=True)
fd = os.open(top, os.O_PATH)
same = trees.identity(os.open(other, os.O_PATH))
print([path for path, *_ in trees.walk(fd, enter=lambda mount: trees.identity(mount) == same)])
print([path for path, *_ in trees.walk(fd, mounts=False)])
m, n = (os.open(f"{top}/{name}", os.O_PATH) for name in "mn")
print(len({trees.mount_number(one) for one in (fd, m, n)}))
"""
    assert in_mount_namespace(script, tmp_path / "top", tmp_path / "other").splitlines() == [
        "[b'm', b'm/in', b'n']",
        "[b'm', b'n']",
        "3",
    ]


def test_where_a_path_leads(tmp_path: Path) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    for link, target in (("root/l", "/a"), ("root/a/up", "../../../../x"), ("root/m", "l/b"), ("root/c", "c")):
        (tmp_path / link).symlink_to(target)
    root = os.open(tmp_path / "root", os.O_PATH)
    for path, real in (
        ("/", "/"),
        ("l/b/../nope/x", "/a/nope/x"),
        ("m", "/a/b"),
        ("l/up", "/x"),
        ("../..", "/"),
        ("c/d", "/c/d"),
    ):
        assert inside.real_path(root, path) == real
    os.close(root)


def test_a_walk_holds_no_descriptors(tmp_path: Path) -> None:
    deep(tmp_path, 200)
    top = os.open(tmp_path, os.O_PATH)
    before = set(os.listdir("/proc/self/fd"))
    walk = trees.walk(top)
    for _ in range(150):
        next(walk)
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 2
    walk.close()
    assert not set(os.listdir("/proc/self/fd")) - before
    os.close(top)


def test_a_look_up_that_races_with_renames_is_tried_again(tmp_path: Path) -> None:
    """ ".." beside a rename, anywhere on the machine, is EAGAIN for openat2."""
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/c").mkdir()
    child = os.fork()
    if child == 0:
        here, there = str(tmp_path / "root/c"), str(tmp_path / "root/e")
        with contextlib.suppress(OSError):
            while True:
                os.rename(here, there)
                os.rename(there, here)
        os._exit(1)
    root = os.open(tmp_path / "root", os.O_PATH)
    try:
        # So many of them take about as long as a rename.
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            os.close(inside.open_in_root(root, "a/../" * 8 + "a"))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(root)


@AS_ROOT
def test_mounts_below_a_folder_are_named_whatever_they_are_called(tmp_path: Path) -> None:
    script = """
import os, subprocess
from teu.linux import trees
top = sys.argv[1]
names = [r"a\\040b", "new\\nline", "tab\\tand blank", "#1", os.fsdecode(b"no text \\xff"), "plain"]
for name in names:
    os.mkdir(f"{top}/{name}")
    subprocess.run(["mount", "-t", "tmpfs", "x", f"{top}/{name}"], check=True)
assert sorted(trees.mounts_below(top)) == sorted(f"{top}/{name}" for name in names)
assert trees.mounts_below(f"{top}/pla") == []
assert trees.mounts_below(f"{top}/plain") == [f"{top}/plain"]
for name in names:
    trees.unmount(f"{top}/{name}")
assert trees.mounts_below(top) == []
trees.unmount(top)
trees.unmount(f"{top}/none")
"""
    in_mount_namespace(script, tmp_path)
