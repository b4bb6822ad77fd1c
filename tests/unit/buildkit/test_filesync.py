# SPDX-License-Identifier: Apache-2.0
"""fsutil's protocol: folders to the builder and back, by a real gRPC server; senders that want to get outside."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from unit.buildkit.tunnel import client

from teu.api.buildkit.session import filesync_pb2
from teu.buildkit.core import errors
from teu.buildkit.session import filesync, fsutil
from teu.buildkit.session.fsutil import DATA, ERR, FIN, REQ, STAT, Packet, Stat
from teu.oci import fsutil as modes

OWNER = {"uid": os.getuid(), "gid": os.getgid()}
FILE, FOLDER, LINK = 0o644, modes.GO_DIR | 0o755, modes.GO_SYMLINK | 0o777
Script = Callable[[Any, Any], Iterator[Any]]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def copy(script: Script, target: Path, **options: Any) -> fsutil.Received:
    methods = {filesync.DIFF_COPY: (True, True, Packet, Packet, script)}
    with client(methods) as session, opened(target) as folder:
        return filesync.diff_copy(session, "context", folder, **options)


def sender_of(source: Path) -> Script:
    """A sender as fsutil's: the walk, then what is asked for."""

    def script(requests: Any, context: Any) -> Iterator[Any]:
        with opened(source) as folder:
            paths = []
            for entry, _, _ in fsutil.walk(folder):
                paths.append(entry.path)
                yield Packet(type=STAT, stat=entry)
            yield Packet(type=STAT)
            for request in requests:
                if request.type == REQ:
                    data = (source / os.fsdecode(paths[request.ID])).read_bytes()
                    for at in range(0, len(data), 1000):
                        yield Packet(type=DATA, ID=request.ID, data=data[at : at + 1000])
                    yield Packet(type=DATA, ID=request.ID)
                elif request.type == FIN:
                    yield Packet(type=FIN)
                    return
                else:
                    context.abort(grpc.StatusCode.INTERNAL, request.data.decode())

    return script


def listing(folder: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything that a copy has to have, by path."""
    found: dict[bytes, tuple[Any, ...]] = {}
    with opened(folder) as descriptor:
        for entry, _, _ in fsutil.walk(descriptor):
            data = b"" if entry.mode & modes.GO_TYPE else (folder / os.fsdecode(entry.path)).read_bytes()
            size = 0 if entry.mode & modes.GO_DIR else entry.size
            found[entry.path] = (entry.mode, entry.uid, entry.gid, entry.modTime, size, entry.linkname, data)
    return found


def make_tree(top: Path) -> None:
    for name in ("a", "a/b", "a/b/empty", "a-b", "z"):
        (top / name).mkdir()
    for number in range(300):
        (top / f"a/b/{number}").write_bytes(os.urandom(number * 7))
    (top / "a-b/file").write_text("between a and a/b, where / is the least of all signs\n")
    (top / "big").write_bytes(os.urandom(300_000))
    (top / "z/script").write_text("#!/bin/sh\n")
    (top / "z/script").chmod(0o4755)
    (top / "z").chmod(0o1777)
    (top / "link").symlink_to("/etc/passwd")
    (top / "z/out").symlink_to("../../..")
    os.link(top / "big", top / "z/hard")
    os.mkfifo(top / "fifo", 0o600)
    Path(os.fsdecode(bytes(top) + b"/no text \xff\xfe")).write_text("x")
    for name, time in (("big", 1_000_000_001), ("a/b", 5), ("link", 7)):
        os.utime(top / name, ns=(time, time), follow_symlinks=False)


def test_a_folder_comes_whole_and_then_only_its_changes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    make_tree(source)
    first = copy(sender_of(source), target)
    assert listing(target) == listing(source)
    assert first.files == 300 + 4 and first.deleted == 0

    changes: list[fsutil.Change] = []
    again = copy(sender_of(source), target, notify=changes.append)
    assert (again.files, again.size, again.deleted, changes) == (0, 0, 0, [])

    (source / "big").write_text("smaller")  # and with it the other name of it
    (source / "a/b/5").unlink()
    (source / "a/b/empty").rmdir()
    (source / "a/b/empty").write_text("a file now")
    (source / "a-b/file").unlink()
    (source / "a-b").rmdir()
    (source / "a-b").symlink_to("a")
    (source / "link").unlink()
    (source / "link").mkdir()
    (source / "link/inside").write_text("new")
    (source / "z/script").chmod(0o755)
    third = copy(sender_of(source), target, notify=changes.append)
    assert listing(target) == listing(source)
    assert third.files == 4
    told = {(change.kind, change.path) for change in changes}
    assert told == {
        ("modify", b"big"),
        ("delete", b"a/b/5"),
        ("modify", b"a/b/empty"),
        ("modify", b"a-b"),
        ("modify", b"link"),
        ("add", b"link/inside"),
        ("modify", b"z/script"),
        ("modify", b"z/hard"),
    }
    digests = {change.path: change.digest for change in changes}
    assert digests[b"link/inside"] == "sha256:11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"


def test_what_a_broken_transfer_left_is_sent_again(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(b"x" * 5000)
    (target / "file").write_bytes(b"y" * 5000)  # as long, but its time was never set
    (target / "leftover").write_text("x")
    assert copy(sender_of(source), target).files == 1
    assert listing(target) == listing(source)


def test_metadata_of_the_request(tmp_path: Path) -> None:
    seen: dict[str, list[str]] = {}

    def script(requests: Any, context: Any) -> Iterator[Any]:
        for key, value in context.invocation_metadata():
            seen.setdefault(key, []).append(value)
        yield Packet(type=STAT)
        next(requests)
        yield Packet(type=FIN)

    copy(script, tmp_path, include=["a", "b c"], exclude=["ä+", "x y"], follow=["\udcff"])
    assert seen["dir-name"] == ["context"] and seen["include-patterns"] == ["a", "b c"]
    assert seen["exclude-patterns"] == ["%C3%A4%2B", "x+y"] and seen["exclude-patterns-encoded"] == ["1"]
    assert seen["followpaths"] == ["%FF"] and "include-patterns-encoded" not in seen


def test_no_such_folder(tmp_path: Path) -> None:
    def script(requests: Any, context: Any) -> Iterator[Any]:
        context.abort(grpc.StatusCode.NOT_FOUND, 'no access allowed to dir "context"')
        yield

    with pytest.raises(errors.NotFound, match="no access allowed"):
        copy(script, tmp_path)
    with client({}) as session, opened(tmp_path) as folder:
        with pytest.raises(errors.Unimplemented, match="no local sources"):
            filesync.diff_copy(session, "context", folder)


def entry(path: bytes, mode: int = FILE, **fields: Any) -> Any:
    return Packet(type=STAT, stat=Stat(path=path, mode=mode, **OWNER, **fields))


HOSTILE = {
    "up": [entry(b"../x")],
    "up inside": [entry(b"a", FOLDER), entry(b"a/../../x")],
    "dot dot": [entry(b"..", FOLDER)],
    "absolute": [entry(b"/etc/x")],
    "empty": [entry(b"")],
    "dot": [entry(b".", FOLDER)],
    "double": [entry(b"a", FOLDER), entry(b"a//b")],
    "nul": [entry(b"a\0b")],
    "long": [entry(b"a" * 256)],
    "no parent": [entry(b"a/b")],
    "parent is a file": [entry(b"a"), entry(b"a/b")],
    "parent is a link": [entry(b"a", LINK, linkname=b"/etc"), entry(b"a/b")],
    "order": [entry(b"b"), entry(b"a")],
    "twice": [entry(b"a", LINK, linkname=b"/etc"), entry(b"a", FOLDER)],
    "back into a folder": [entry(b"a", FOLDER), entry(b"b"), entry(b"a/x")],
    "hard link out": [entry(b"a", linkname=b"../secret")],
    "hard link to a link": [entry(b"a", LINK, linkname=b"/etc/passwd"), entry(b"b", linkname=b"a")],
    "hard link to what is to come": [entry(b"a", linkname=b"b"), entry(b"b")],
    "hard link to what was here": [entry(b"b", linkname=b"before")],
    "link to nothing": [entry(b"a", LINK)],
    "link with nul": [entry(b"a", LINK, linkname=b"a\0")],
    "whiteout": [entry(b"a", modes.GO_DEVICE | modes.GO_CHARACTER)],
    "no device": [entry(b"a", modes.GO_DEVICE, devmajor=1 << 40)],
    "two kinds": [entry(b"a", FOLDER | modes.GO_SYMLINK)],
    "socket": [entry(b"a", modes.GO_SOCKET)],
    "negative": [entry(b"a", size=-1)],
    "xattrs": [entry(b"a", FOLDER, xattrs={f"user.{number}": b"" for number in range(65)})],
    "data unasked": [Packet(type=DATA, ID=0, data=b"x")],
    "data of a folder": [entry(b"a", FOLDER), Packet(type=DATA, ID=0, data=b"x")],
    "data twice": [entry(b"a"), Packet(type=DATA, ID=0), Packet(type=DATA, ID=0, data=b"x")],
    "fin": [Packet(type=FIN)],
    "end": [],
    "end after the walk": [entry(b"a"), Packet(type=STAT)],
    "more after the end": [entry(b"a"), Packet(type=STAT), entry(b"b")],
    "an error": [entry(b"a", FOLDER), Packet(type=ERR, data=b"disk is \xff broken")],
    "too many": [entry(b"%04d" % number, FOLDER) for number in range(101)],
    "too much": [entry(b"a"), *(Packet(type=DATA, ID=0, data=bytes(30_000)) for _ in range(40))],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_senders(name: str, tmp_path: Path) -> None:
    told: list[Any] = []

    def script(requests: Any, context: Any) -> Iterator[Any]:
        yield from HOSTILE[name]
        if not name.startswith("end"):
            told.extend(request for request in requests if request.type != REQ)

    target = tmp_path / "in" / "target"
    target.mkdir(parents=True)
    (target / "before").write_text("here")
    (tmp_path / "in/secret").write_text("secret")
    with pytest.raises(errors.Error):
        copy(script, target, limits=fsutil.Limits(100, 1_000_000))
    assert sorted(path.name for path in tmp_path.rglob("*") if target not in path.parents) == ["in", "secret", "target"]
    assert (tmp_path / "in/secret").read_text() == "secret" and (tmp_path / "in/secret").stat().st_nlink == 1


def test_links_in_the_folder_are_never_followed(tmp_path: Path) -> None:
    """What stands in the target (by whatever way it came there) is replaced, not written through."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target, source / "d"):
        folder.mkdir()
    (source / "d/file").write_text("new")
    (source / "f").write_text("new")
    (target / "d").symlink_to(outside)
    os.link(outside / "file", target / "f")
    copy(sender_of(source), target)
    assert listing(target) == listing(source)
    assert (outside / "file").read_text() == "outside"


def test_attributes_that_belong_to_the_host_stay_out(tmp_path: Path) -> None:
    xattrs = {
        "user.x": b"1",
        "user.\0": b"1",
        "user." + "x" * 300: b"1",
        "trusted.overlay.opaque": b"y",
        "security.selinux": b"z",
    }

    def script(requests: Any, context: Any) -> Iterator[Any]:
        yield entry(b"a", FOLDER, xattrs=xattrs)
        yield Packet(type=STAT)
        next(requests)
        yield Packet(type=FIN)

    copy(script, tmp_path)
    names = [name for name in os.listxattr(tmp_path / "a") if name != "security.selinux"]
    assert names in ([], ["user.x"])


def test_a_transfer_is_cancelled(tmp_path: Path) -> None:
    def script(requests: Any, context: Any) -> Iterator[Any]:
        yield entry(b"a")
        for _ in requests:
            pass

    def begun(cancel: Callable[[], None]) -> None:
        threading.Timer(0.2, cancel).start()

    with pytest.raises(errors.Cancelled):
        copy(script, tmp_path, begun=begun)


# Results to the client.


def take(script: Script, message: Any) -> Any:
    return client({filesync.SEND: (True, True, message, message, script)})


def test_a_file_to_the_client() -> None:
    got: list[Any] = []

    def script(requests: Any, context: Any) -> Iterator[Any]:
        got.append(dict(context.invocation_metadata()))
        got.append(b"".join(request.data for request in requests))
        yield from ()

    with take(script, filesync_pb2.BytesMessage) as session:
        sent = filesync.send_file(session, [b"abc", bytes(3 << 20)], 2, {"containerimage.digest": "sha256:ü"})
    assert sent == len(got[1]) == 3 + (3 << 20) and got[1][:4] == b"abc\0"
    assert got[0]["buildkit-attachable-exporter-id"] == "2"
    assert got[0]["exporter-md-containerimage.digest"] == "sha256%3A%C3%BC"


def test_a_file_that_the_client_does_not_take() -> None:
    def script(requests: Any, context: Any) -> Iterator[Any]:
        context.abort(grpc.StatusCode.ALREADY_EXISTS, "target already exists")
        yield

    def chunks() -> Iterator[bytes]:
        for _ in range(10_000):
            yield bytes(100_000)

    with take(script, filesync_pb2.BytesMessage) as session, pytest.raises(errors.AlreadyExists):
        filesync.send_file(session, chunks())


def test_a_folder_to_the_client(tmp_path: Path) -> None:
    make_tree(tmp_path)
    files: dict[bytes, bytes] = {}

    def script(requests: Any, context: Any) -> Iterator[Any]:
        entries = []
        for request in requests:
            if request.type == STAT and request.HasField("stat"):
                entries.append(request.stat)
                if not request.stat.mode & modes.GO_TYPE and not request.stat.linkname:
                    yield Packet(type=REQ, ID=len(entries) - 1)
            elif request.type == DATA and request.data:
                path = entries[request.ID].path
                files[path] = files.get(path, b"") + request.data
            elif request.type == DATA:
                files.setdefault(entries[request.ID].path, b"")
                if len(files) == 304:
                    yield Packet(type=FIN)
            elif request.type == FIN:
                return

    with take(script, Packet) as session, opened(tmp_path) as folder:
        filesync.send_tree(session, fsutil.Folder(folder), multi_platform=True)
    assert files == {
        path: data[6] for path, data in listing(tmp_path).items() if not data[0] & modes.GO_TYPE and not data[5]
    }


def test_a_receiver_that_asks_for_what_is_not(tmp_path: Path) -> None:
    def script(requests: Any, context: Any) -> Iterator[Any]:
        yield Packet(type=REQ, ID=77)
        for _ in requests:
            pass

    with take(script, Packet) as session, opened(tmp_path) as folder:
        with pytest.raises(errors.InvalidArgument, match="invalid file id 77"):
            filesync.send_tree(session, fsutil.Folder(folder))


class Scripted:
    """A call whose answers are a list, and which gives data to who asks."""

    def __init__(self, packets: list[Any]) -> None:
        self._packets = packets

    def receive(self) -> Any:
        return self._packets.pop(0) if self._packets else None

    def waiting(self) -> bool:
        return bool(self._packets)

    def send(self, packet: Any) -> None:
        if packet.type == FIN:
            self._packets.append(Packet(type=FIN))

    def send_many(self, packets: list[Any]) -> None:
        for packet in packets:
            self._packets.append(Packet(type=DATA, ID=packet.ID, data=b"from the client"))
            self._packets.append(Packet(type=DATA, ID=packet.ID))

    def end(self) -> None:
        pass


def test_nothing_that_is_sent_gets_outside(tmp_path: Path) -> None:
    """Folders of every kind of entry, again and again into one target, whose links lead out: what is outside stays, and
    errors are ours."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "file").write_text("outside")
    before = listing(outside)
    chance = random.Random(1)
    links = [b"../outside", b"../outside/file", b"..", b"/", b"a", b"a/b", b".", bytes(outside)]
    kinds = [FILE, FILE, FOLDER, FOLDER, FOLDER, LINK, LINK, modes.GO_FIFO | 0o600, 0o4777]
    whole = 0
    for _ in range(400):
        paths: set[bytes] = {b"a", b"a/b", b"b"}
        for _ in range(chance.randrange(8)):
            depth = chance.randrange(1, 4)
            paths.add(b"/".join(chance.choice([b"a", b"b", b"c"]) for _ in range(depth)))
        if chance.random() < 0.3:
            paths.add(chance.choice([b"../outside/new", b"a/../../outside/new", b"/tmp/x", b"a//b", b"c/./d"]))
        packets, folders = [], {b""}
        for path in sorted(paths, key=lambda path: path.split(b"/")):
            mode = chance.choice(kinds)
            if path.rpartition(b"/")[0] not in folders and chance.random() < 0.9:
                continue
            if mode & modes.GO_DIR:
                folders.add(path)
            link = b""
            if mode & modes.GO_SYMLINK or chance.random() < 0.1:
                link = chance.choice(links)
            packets.append(entry(path, mode, linkname=link, size=15, modTime=chance.randrange(3)))
        packets.append(Packet(type=STAT))
        with opened(target) as folder:
            try:
                fsutil.receive(Scripted(packets), folder)  # type: ignore[arg-type]
                whole += 1
            except errors.Error:
                pass
        assert listing(outside) == before
        assert {path.name for path in tmp_path.iterdir()} == {"outside", "target"}
    assert whole > 50
