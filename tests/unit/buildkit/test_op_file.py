# SPDX-License-Identifier: Apache-2.0
"""FileOp on folders: what BuildKit's copies, made files, links and removals do, and what hostile trees cannot."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from folders import Asking, FolderSnapshot, FolderWorker, vertex

from teu.api.buildkit import errdefs_pb2
from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Scratch
from teu.buildkit.ops.file import FileOp
from teu.linux.trees import remove_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


@pytest.fixture
def worker(tmp_path: Path) -> FolderWorker:
    return FolderWorker(tmp_path)


def one(action: pb.FileAction, input: int = 0, second: int = -1, output: int = 0) -> pb.FileAction:
    action.input, action.secondaryInput, action.output = input, second, output
    return action


def copy(src: str, dest: str, **more: Any) -> pb.FileAction:
    more = {"mode": -1, "timestamp": -1, "createDestPath": True, **more}
    return one(pb.FileAction(copy=pb.FileActionCopy(src=src, dest=dest, **more)), 0, 1)


def run(worker: FolderWorker, actions: list[pb.FileAction], *inputs: Any, context: Any = None) -> list[Any]:
    op = FileOp(vertex(pb.Op(file=pb.FileOp(actions=actions)), len(inputs)), worker)  # type: ignore[arg-type]
    return list(op.execute(context or Asking(), inputs))


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_copies(worker: FolderWorker) -> None:
    base, source = worker.tree(keep="1"), worker.tree(a="A", d__b="B", d__e__c="C")
    (done,) = run(worker, [copy("/a", "/x/y")], base, source)
    assert names(done.path) == ["keep", "x", "x/y"]
    (done,) = run(worker, [copy("/a", "/x/")], base, source)
    assert names(done.path) == ["keep", "x", "x/a"]
    (done,) = run(worker, [copy("/d", "/x")], base, source)
    assert names(done.path) == ["keep", "x", "x/b", "x/e", "x/e/c"]
    (done,) = run(worker, [copy("/d", "/", dirCopyContents=True)], base, source)
    assert names(done.path) == ["b", "e", "e/c", "keep"]
    (done,) = run(worker, [copy("/d", "/x/", dirCopyContents=True)], base, source)
    assert names(done.path) == ["keep", "x", "x/b", "x/e", "x/e/c"]
    (done,) = run(worker, [copy("/d", "/")], base, source)
    assert names(done.path) == ["d", "d/b", "d/e", "d/e/c", "keep"]
    assert not worker.live
    assert worker.held[base.id] == worker.held[source.id] == 1


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_files_that_stay_as_they_are_get_a_second_name(worker: FolderWorker) -> None:
    """What is copied into a folder where nothing was is not copied but for what the copy shall have otherwise."""
    base, source = worker.tree(keep="1"), worker.tree(a="A", d__b="B", d__e__c="C", d__own="O", d__empty="")
    os.link(source.path / "d/b", source.path / "d/e/b")
    os.chown(source.path / "d/own", 5, 6)
    os.utime(source.path / "d/e", ns=(7_000_000_001, 8_000_000_002))
    (source.path / "d/link").symlink_to("b")
    (base.path / "w").mkdir()
    for place in ("/x", "/w"):
        owner = pb.ChownOpt(user=pb.UserOpt(byID=0), group=pb.UserOpt(byID=0))
        (done,) = run(worker, [copy("/d*", place, allowWildcard=True, dirCopyContents=True, owner=owner)], base, source)
        top = done.path / place[1:]
        assert names(top) == ["b", "e", "e/b", "e/c", "empty", "link", "own"]
        for name in ("b", "e/b", "e/c", "empty"):
            assert inode(top / name) == inode(source.path / "d" / name)
        assert inode(top / "own") != inode(source.path / "d/own")
        assert (top / "own").stat().st_uid == 0 and (source.path / "d/own").stat().st_uid == 5
        assert (top / "own").read_text() == "O" and (top / "link").readlink() == Path("b")
        assert (top / "e").stat().st_mtime_ns == 8_000_000_002
    (done,) = run(worker, [copy("/d", "/x", mode=0o600)], base, source)
    assert inode(done.path / "x/b") != inode(source.path / "d/b")
    assert stat.S_IMODE((done.path / "x/b").stat().st_mode) == 0o600
    (done,) = run(worker, [copy("/d", "/x", timestamp=1_000_000_000)], base, source)
    assert inode(done.path / "x/b") != inode(source.path / "d/b")
    assert (done.path / "x/b").stat().st_mtime_ns == 1_000_000_000
    assert not worker.live


def test_what_a_later_action_may_change_is_a_copy(worker: FolderWorker) -> None:
    """A file that is written into once more in the same step would be changed where it came from, too."""
    base, source = worker.tree(), worker.tree(d__f="before")
    actions = [
        one(pb.FileAction(copy=pb.FileActionCopy(src="/d", dest="/x", mode=-1, timestamp=-1)), 0, 1, -1),
        one(pb.FileAction(mkfile=pb.FileActionMkFile(path="/x/f", mode=0o600, data=b"after!", timestamp=-1)), 2, -1, 0),
    ]
    (done,) = run(worker, actions, base, source)
    assert (done.path / "x/f").read_text() == "after!"
    assert (source.path / "d/f").read_text() == "before"
    # Of two sources the second one goes over what the first one has made.
    source = worker.tree(d1__f="1", d2__f="2")
    (done,) = run(worker, [copy("/d?", "/x", allowWildcard=True, dirCopyContents=True)], base, source)
    assert (done.path / "x/f").read_text() == "2" and (source.path / "d1/f").read_text() == "1"
    # And what is in the way of a name is not gone around.
    base.path.joinpath("x").mkdir()
    base.path.joinpath("x/f").write_text("old")
    source = worker.tree(d__f="new")
    (done,) = run(worker, [copy("/d", "/x", dirCopyContents=True)], base, source)
    assert (done.path / "x/f").read_text() == "new" and inode(done.path / "x/f") != inode(source.path / "d/f")


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EPERM, errno.EXDEV])
def test_what_can_have_no_second_name_is_copied(
    worker: FolderWorker, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    base, source = worker.tree(), worker.tree(d__f="F", d__g="G")
    os.utime(source.path / "d", ns=(7_000_000_001, 8_000_000_002))
    link = os.link

    def refused(name: str, *args: Any, **more: Any) -> None:
        if name == "f":
            raise OSError(number, os.strerror(number))
        link(name, *args, **more)

    monkeypatch.setattr(os, "link", refused)
    (done,) = run(worker, [copy("/d", "/x")], base, source)
    assert (done.path / "x/f").read_text() == "F" and inode(done.path / "x/f") != inode(source.path / "d/f")
    assert inode(done.path / "x/g") == inode(source.path / "d/g")
    assert (done.path / "x").stat().st_mtime_ns == 8_000_000_002


def test_wildcards(worker: FolderWorker) -> None:
    base, source = worker.tree(), worker.tree(a1="1", a2="2", b="3", d1__x="4", d2__x="5", d2__y="6")
    (done,) = run(worker, [copy("/a*", "/o/", allowWildcard=True)], base, source)
    assert names(done.path) == ["o", "o/a1", "o/a2"]
    (done,) = run(worker, [copy("/d?/x", "/o/", allowWildcard=True)], base, source)
    assert (done.path / "o/x").read_text() == "5"
    with pytest.raises(errors.Error, match="/z\\* not found"):
        run(worker, [copy("/z*", "/o/", allowWildcard=True)], base, source)
    (done,) = run(worker, [copy("/z*", "/o/", allowWildcard=True, allowEmptyWildcard=True)], base, source)
    assert names(done.path) == []


def test_patterns_make_only_folders_that_lead_to_something(worker: FolderWorker) -> None:
    source = worker.tree(a__b__c="1", a__b__d="2", a__x__d="3", e__d="4")
    (source.path / "a/b").chmod(0o701)
    (done,) = run(worker, [copy("/", "/o", dirCopyContents=True, include_patterns=["a/*/c"])], Scratch(), source)
    assert names(done.path) == ["o", "o/a", "o/a/b", "o/a/b/c"]
    assert stat.S_IMODE((done.path / "o/a/b").stat().st_mode) == 0o701
    (done,) = run(worker, [copy("/", "/o", dirCopyContents=True, exclude_patterns=["**/d"])], Scratch(), source)
    assert names(done.path) == ["o", "o/a", "o/a/b", "o/a/b/c", "o/a/x", "o/e"]
    chosen = copy("/", "/o", dirCopyContents=True, exclude_patterns=["a", "!a/b/c"])
    (done,) = run(worker, [chosen], Scratch(), source)
    assert names(done.path) == ["o", "o/a", "o/a/b", "o/a/b/c", "o/e", "o/e/d"]


@pytest.mark.parametrize(
    "action",
    [
        pb.FileAction(mkfile=pb.FileActionMkFile(path="/a\0b")),
        pb.FileAction(mkdir=pb.FileActionMkDir(path="/a\0b")),
        pb.FileAction(rm=pb.FileActionRm(path="/a\0b")),
        pb.FileAction(symlink=pb.FileActionSymlink(oldpath="/a\0b", newpath="/x")),
        pb.FileAction(symlink=pb.FileActionSymlink(oldpath="/x", newpath="/a\0b")),
        pb.FileAction(copy=pb.FileActionCopy(src="/a\0b", dest="/x")),
        pb.FileAction(copy=pb.FileActionCopy(src="/x", dest="/a\0b")),
    ],
)
def test_a_path_with_a_zero_byte(worker: FolderWorker, action: Any) -> None:
    with pytest.raises(errors.Error, match=r"^(mkfile|mkdir|rm|symlink|copy) /a\\x00b: invalid argument$"):
        keys_of(worker, [one(action)], 1)


def test_owner_mode_and_time(worker: FolderWorker) -> None:
    base = worker.tree(etc__passwd="x:x:12:34::/:\napp:x:1000:1001::/:\n", etc__group="staff:x:50:\n")
    source = worker.tree(d__f="1")
    by_name = pb.ChownOpt(
        user=pb.UserOpt(byName=pb.NamedUserOpt(name="app", input=0)),
        group=pb.UserOpt(byName=pb.NamedUserOpt(name="staff", input=0)),
    )
    (done,) = run(worker, [copy("/d", "/n/o", owner=by_name, mode=0o4711, timestamp=5_000_000_001)], base, source)
    for path in ("n", "n/o", "n/o/f"):
        status = (done.path / path).stat()
        assert (status.st_uid, status.st_gid) == (1000, 50)
        assert stat.S_IMODE(status.st_mode) == 0o4711
        assert status.st_mtime_ns == 5_000_000_001, path
    user = pb.ChownOpt(user=pb.UserOpt(byName=pb.NamedUserOpt(name="app", input=0)))
    (done,) = run(worker, [copy("/d/f", "/f", owner=user, modeStr="u=rwX,go=")], base, source)
    status = (done.path / "f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0o600)
    nobody = pb.ChownOpt(user=pb.UserOpt(byName=pb.NamedUserOpt(name="gone", input=0)))
    (done,) = run(worker, [copy("/d/f", "/f", owner=nobody)], base, source)
    assert (done.path / "f").stat().st_uid == 0
    with pytest.raises(errors.InvalidArgument, match="invalid mode"):
        run(worker, [copy("/d/f", "/f", modeStr="u?x")], base, source)


def test_kinds_of_files(worker: FolderWorker) -> None:
    source = worker.tree(f="data")
    root = source.path
    os.link(root / "f", root / "g")
    os.symlink("../../etc/shadow", root / "l")
    os.mkfifo(root / "p")
    os.mknod(root / "n", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(root / "f", "user.x", b"1")
    (root / "f").chmod(0o4755)
    (done,) = run(worker, [copy("/", "/", dirCopyContents=True)], Scratch(), source)
    assert (done.path / "f").stat().st_ino == (done.path / "g").stat().st_ino
    assert os.readlink(done.path / "l") == "../../etc/shadow"
    assert stat.S_ISFIFO((done.path / "p").lstat().st_mode)
    assert (done.path / "n").lstat().st_rdev == os.makedev(1, 3)
    assert os.getxattr(done.path / "f", "user.x") == b"1"
    assert stat.S_IMODE((done.path / "f").stat().st_mode) == 0o4755
    assert (done.path / "f").stat().st_mtime_ns == (root / "f").stat().st_mtime_ns


def test_what_is_in_the_way(worker: FolderWorker) -> None:
    base, source = worker.tree(a__x="1", b="2"), worker.tree(a="new", b__y="3")
    with pytest.raises(errors.Error, match="cannot replace to directory /o/a with file"):
        run(worker, [copy("/", "/o", dirCopyContents=True)], worker.tree(o__a__x="1"), source)
    with pytest.raises(errors.Error, match="cannot copy to non-directory: /b"):
        run(worker, [copy("/", "/", dirCopyContents=True, exclude_patterns=["a"])], base, source)
    chosen = copy("/", "/", dirCopyContents=True, alwaysReplaceExistingDestPaths=True)
    (done,) = run(worker, [chosen], base, source)
    assert (done.path / "a").read_text() == "new"
    assert (done.path / "b/y").read_text() == "3"
    assert not worker.live


def test_nothing_leads_out(worker: FolderWorker, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    base, source = worker.tree(etc__x="1"), worker.tree(f="data", d__g="2")
    os.symlink(outside, base.path / "out")
    os.symlink("../../../../../../.." + str(outside), base.path / "up")
    os.symlink(outside, source.path / "out")
    for target in ("/out/x", "/up/x"):
        (done,) = run(worker, [copy("/f", target)], base, source)
        assert (done.path / str(outside).lstrip("/") / "x").read_text() == "data"
    assert names(outside) == ["secret"]
    with pytest.raises(errors.Error, match="no such file or directory"):
        run(worker, [copy("/out/secret", "/s")], base, source)
    with pytest.raises(errors.Error, match="no such file or directory"):
        run(worker, [copy("/../../outside/secret", "/s")], base, source)
    # A link of the source where a folder of the target is, and the reverse.
    os.symlink("/", source.path / "d/etc")
    (done,) = run(worker, [copy("/d", "/n", dirCopyContents=True)], base, source)
    assert os.readlink(done.path / "n/etc") == "/"
    evil = worker.tree()
    os.symlink(outside, evil.path / "d")
    with pytest.raises(errors.Error, match="cannot copy to non-directory"):
        run(worker, [copy("/", "/", dirCopyContents=True, include_patterns=["d"])], evil, source)
    assert names(outside) == ["secret"]
    remove = one(pb.FileAction(rm=pb.FileActionRm(path="/out/secret")))
    with pytest.raises(errors.Error, match="stat /out/secret: no such file or directory"):
        run(worker, [remove], base)
    assert (outside / "secret").exists()


def test_a_device_of_the_image_is_not_written_to(worker: FolderWorker) -> None:
    base = worker.tree()
    os.mknod(base.path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(base.path / "pipe")
    for name in ("null", "pipe"):
        with pytest.raises(errors.Error, match=f"open /{name}: operation not permitted"):
            run(
                worker, [one(pb.FileAction(mkfile=pb.FileActionMkFile(path=f"/{name}", data=b"x", timestamp=-1)))], base
            )


def test_made_files(worker: FolderWorker) -> None:
    base = worker.tree(f="12345")
    (base.path / "f").chmod(0o640)
    actions = [
        one(pb.FileAction(mkfile=pb.FileActionMkFile(path="/f", mode=0o777, data=b"x", timestamp=7)), 0, -1, -1),
        one(pb.FileAction(mkdir=pb.FileActionMkDir(path="/a/b", mode=0o711, makeParents=True, timestamp=9)), 1, -1, -1),
        one(pb.FileAction(mkfile=pb.FileActionMkFile(path="/a/b/n", mode=0o604, timestamp=-1)), 2, -1, -1),
        one(pb.FileAction(symlink=pb.FileActionSymlink(oldpath="../f", newpath="/a/l", timestamp=8)), 3, -1, 0),
    ]
    (done,) = run(worker, actions, base)
    assert worker.commits == 1
    assert (done.path / "f").read_text() == "x"
    assert stat.S_IMODE((done.path / "f").stat().st_mode) == 0o640
    assert (done.path / "f").stat().st_mtime_ns == 7
    assert stat.S_IMODE((done.path / "a").stat().st_mode) == 0o711
    assert stat.S_IMODE((done.path / "a/b/n").stat().st_mode) == 0o604
    assert os.readlink(done.path / "a/l") == "../f"
    with pytest.raises(errors.Error, match="mkdir /q/r: no such file or directory"):
        run(worker, [one(pb.FileAction(mkdir=pb.FileActionMkDir(path="/q/r", mode=0o755)))], base)
    with pytest.raises(errors.Error, match="symlink x /f: file exists"):
        run(worker, [one(pb.FileAction(symlink=pb.FileActionSymlink(oldpath="x", newpath="/f")))], base)
    with pytest.raises(errors.Error, match="mkdir /f: not a directory"):
        run(worker, [one(pb.FileAction(mkdir=pb.FileActionMkDir(path="/f/g", makeParents=True)))], base)


def test_removals(worker: FolderWorker) -> None:
    base = worker.tree(a1__x="1", a2="2", b="3")
    (done,) = run(worker, [one(pb.FileAction(rm=pb.FileActionRm(path="/a*", allowWildcard=True)))], base)
    assert names(done.path) == ["b"]
    with pytest.raises(errors.Error, match="stat /z: no such file or directory"):
        run(worker, [one(pb.FileAction(rm=pb.FileActionRm(path="/z")))], base)
    (done,) = run(worker, [one(pb.FileAction(rm=pb.FileActionRm(path="/z", allowNotFound=True)))], base)
    with pytest.raises(errors.Error, match="invalid empty path"):
        run(worker, [one(pb.FileAction(rm=pb.FileActionRm(path="/..")))], base)


def _archive(path: Path, *entries: tuple[str, str, bytes | str], mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, kind, value in entries:
            info = tarfile.TarInfo(name)
            info.mtime, info.uid, info.gid, info.mode = 1_000_000, 5, 6, 0o750
            if kind == "file":
                data = value if isinstance(value, bytes) else value.encode()
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                continue
            info.type = {"dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}[kind]
            info.linkname = str(value)
            archive.addfile(info)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_are_unpacked(worker: FolderWorker, mode: str) -> None:
    source = worker.tree(plain="no archive", empty="")
    _archive(source.path / "a.tar", ("d", "dir", ""), ("d/f", "file", "1"), ("d/l", "hard", "d/f"), mode=mode)
    actions = [copy(f"/{name}", "/o/", attemptUnpackDockerCompatibility=True) for name in ("a.tar", "plain", "empty")]
    for number, action in enumerate(actions):
        action.input, action.output = (0, -1) if number == 0 else (number + 1, -1)
    actions[-1].output = 0
    (done,) = run(worker, actions, Scratch(), source)
    assert names(done.path) == ["o", "o/d", "o/d/f", "o/d/l", "o/empty", "o/plain"]
    status = (done.path / "o/d/f").stat()
    assert (status.st_uid, status.st_gid, status.st_nlink) == (5, 6, 2)
    assert (done.path / "o/d").stat().st_mtime == 1_000_000
    owner = pb.ChownOpt(user=pb.UserOpt(byID=7), group=pb.UserOpt(byID=8))
    (done,) = run(
        worker, [copy("/a.tar", "/o/", attemptUnpackDockerCompatibility=True, owner=owner)], Scratch(), source
    )
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in done.path.rglob("*")} == {(7, 8)}


def test_archives_lead_nowhere(worker: FolderWorker, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    source = worker.tree()
    _archive(source.path / "a", ("../../outside/x", "file", "1"))
    with pytest.raises(errors.Error, match="leads out"):
        run(worker, [copy("/a", "/o/", attemptUnpackDockerCompatibility=True)], Scratch(), source)
    _archive(source.path / "a", ("l", "link", str(outside)), ("l/x", "file", "1"))
    (done,) = run(worker, [copy("/a", "/o/", attemptUnpackDockerCompatibility=True)], Scratch(), source)
    assert (done.path / "o" / str(outside).lstrip("/") / "x").read_text() == "1"
    _archive(source.path / "a", ("h", "hard", "../../../etc/passwd"))
    with pytest.raises(errors.Error, match="leads out"):
        run(worker, [copy("/a", "/o/", attemptUnpackDockerCompatibility=True)], Scratch(), source)
    assert names(outside) == []
    _archive(source.path / "a", ("f", "file", "1" * 5000), mode="w")
    data = (source.path / "a").read_bytes()
    (source.path / "a").write_bytes(data[:2000])
    with pytest.raises(errors.Error, match="unexpected end"):
        run(worker, [copy("/a", "/o/", attemptUnpackDockerCompatibility=True)], Scratch(), source)
    assert not worker.live


def test_deep_trees_cost_no_stack(worker: FolderWorker) -> None:
    source = worker.tree()
    here = os.open(source.path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    (done,) = run(worker, [copy("/", "/o", dirCopyContents=True)], Scratch(), source)
    depth = 0
    here = os.open(done.path / "o", os.O_RDONLY)
    while "d" in os.listdir(here):
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, depth = below, depth + 1
    assert (depth, os.listdir(here)) == (1500, ["f"])
    os.close(here)
    try:
        with pytest.raises(errors.Error, match="file name too long"):
            run(worker, [copy("/", "/o", dirCopyContents=True, include_patterns=["**/f"])], Scratch(), source)
    finally:
        for tree in (done, source):  # pytest's own removal recurses
            remove_tree(tree.path)


def test_actions_upon_each_other(worker: FolderWorker) -> None:
    actions = [
        one(pb.FileAction(mkfile=pb.FileActionMkFile(path="/a", mode=0o644, timestamp=-1)), -1, -1, 1),
        one(pb.FileAction(mkfile=pb.FileActionMkFile(path="/b", mode=0o644, timestamp=-1)), 0, -1, 0),
        one(pb.FileAction(copy=pb.FileActionCopy(src="/b", dest="/c", mode=-1, timestamp=-1)), 0, 1, 2),
    ]
    outputs = run(worker, actions)
    assert [names(one.path) for one in outputs] == [["a", "b"], ["a"], ["a", "c"]]
    assert [worker.held[one.id] for one in outputs] == [1, 1, 1]
    for broken, words in (
        ([one(pb.FileAction(mkdir=pb.FileActionMkDir(path="/a")), -1, -1, -1)], "no outputs"),
        ([one(pb.FileAction(mkdir=pb.FileActionMkDir(path="/a")), -1, -1, 1)], "missing output index 0"),
        ([one(pb.FileAction(mkdir=pb.FileActionMkDir(path="/a")), 0, -1, 0)], "loop from index 0"),
        ([one(pb.FileAction(mkdir=pb.FileActionMkDir(path="/a")), 7, -1, 0)], "invalid input index 7"),
    ):
        with pytest.raises(errors.InvalidArgument, match=words):
            run(worker, broken)


def test_an_error_says_which_action(worker: FolderWorker) -> None:
    base, source = worker.tree(), worker.tree()
    actions = [copy("/", "/o"), copy("/missing", "/o")]
    actions[0].output, actions[1].input = -1, 2
    with pytest.raises(errors.Error, match="lstat /missing: no such file or directory") as caught:
        run(worker, actions, base, source)
    (detail,) = caught.value.details
    assert isinstance(detail, errdefs_pb2.Solve)
    assert detail.file.index == 1
    assert detail.op.file.actions[1].copy.src == "/missing"
    assert not worker.live
    context = Asking()
    context.cancelled = True
    with pytest.raises(errors.Cancelled):
        run(worker, actions, base, source, context=context)


def keys_of(worker: FolderWorker, actions: list[pb.FileAction], inputs: int) -> Any:
    op = FileOp(vertex(pb.Op(file=pb.FileOp(actions=actions)), inputs), worker)  # type: ignore[arg-type]
    return op.cache_key(Asking())  # type: ignore[arg-type]


def test_the_key_is_by_content(worker: FolderWorker) -> None:
    one_tree, same, other = worker.tree(d__f="1"), worker.tree(d__f="1", e="2"), worker.tree(d__f="2")
    key = keys_of(worker, [copy("/d/f", "/x")], 2)
    assert key.inputs[0].content is None
    content = key.inputs[1].content
    assert content is not None
    assert content(Asking(), one_tree) == content(Asking(), same) != content(Asking(), other)
    # Where it comes from counts by its last name.
    assert keys_of(worker, [copy("/e/f", "/x")], 2).digest == key.digest
    assert keys_of(worker, [copy("/e/f", "/x")], 2).inputs[1].selector != key.inputs[1].selector
    assert keys_of(worker, [copy("/d/g", "/x")], 2).digest != key.digest
    with pytest.raises(errors.Error, match='failed to calculate checksum of ref folders::.*: "/d/g": not found'):
        content_of_missing = keys_of(worker, [copy("/d/g", "/x")], 2).inputs[1].content
        content_of_missing(Asking(), one_tree)
    with pytest.raises(errors.Error, match='"/d/f": not found'):
        content(Asking(), Scratch())


def test_the_key_is_buildkits_own() -> None:
    """Bytes as Go's encoding/json has them: fields in order, empty ones left out, owners in a form of their own."""
    import base64
    import hashlib
    import json

    worker: Any = None
    owner = pb.ChownOpt(user=pb.UserOpt(byName=pb.NamedUserOpt(name="a<b", input=0)), group=pb.UserOpt(byID=0))
    action = copy("/d/f", "/x", owner=owner, include_patterns=["a", "b"])
    inner = (
        b'{"src":"f","dest":"/x","owner":{"user":{"User":{"byName":{"name":"a\\u003cb"}}},"group":{"User":{}}},'
        b'"mode":-1,"createDestPath":true,"timestamp":-1,"include_patterns":["a","b"]}'
    )
    whole = json.dumps(
        {"Type": "buildkit.file.v0", "Actions": [base64.b64encode(inner).decode()]}, separators=(",", ":")
    )
    assert keys_of(worker, [action], 2).digest == "sha256:" + hashlib.sha256(whole.encode()).hexdigest()
    action.output, action.input = 0, -1
    whole = whole[:-1] + ',"indexes":[[-1,1,0]]}'
    assert keys_of(worker, [action], 2).digest == "sha256:" + hashlib.sha256(whole.encode()).hexdigest()


def test_the_type_of_results(worker: FolderWorker) -> None:
    (done,) = run(worker, [copy("/", "/")], Scratch(), worker.tree(a="1"))
    assert isinstance(done, FolderSnapshot)
