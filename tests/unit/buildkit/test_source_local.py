# SPDX-License-Identifier: Apache-2.0
"""A client's folder as a source: what travels, what is known of it afterwards, and clients that go."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakeworker import Asker, Worker
from tunnel import client

from teu.buildkit.core import errors
from teu.buildkit.core.selection import Selection
from teu.buildkit.llb.platforms import host
from teu.buildkit.session import filesync, fsutil
from teu.buildkit.session.fsutil import DATA, FIN, REQ, STAT, Packet, Stat
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources.local import Locals


class Folder:
    """A client that has one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[dict[str, list[str]]] = []
        self.sent: list[str] = []
        self.stop = threading.Event()
        self.silent = False

    def script(self, requests: Any, context: Any) -> Iterator[Any]:
        metadata: dict[str, list[str]] = {}
        for key, value in context.invocation_metadata():
            metadata.setdefault(key, []).append(value)
        self.asked.append(metadata)
        self.sent = []
        if metadata["dir-name"] != ["context"]:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no access allowed to dir {metadata['dir-name'][0]!r}")
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            paths = []
            for entry, _, _ in fsutil.walk(folder):
                paths.append(entry.path)
                yield Packet(type=STAT, stat=entry)
            yield Packet(type=STAT)
            if self.silent:
                self.stop.wait(10)
                return
            for request in requests:
                if request.type == REQ:
                    name = os.fsdecode(paths[request.ID])
                    self.sent.append(name)
                    data = (self.path / name).read_bytes() if (self.path / name).exists() else b""
                    for at in range(0, len(data), 1000):
                        yield Packet(type=DATA, ID=request.ID, data=data[at : at + 1000])
                    yield Packet(type=DATA, ID=request.ID)
                elif request.type == FIN:
                    yield Packet(type=FIN)
                    return
                else:
                    context.abort(grpc.StatusCode.INTERNAL, request.data.decode())
        finally:
            os.close(folder)

    @property
    def methods(self) -> Any:
        return {filesync.DIFF_COPY: (True, True, Packet, Packet, self.script)}


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    (tmp_path / "worker").mkdir()
    return Worker(tmp_path / "worker")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    top = tmp_path / "context"
    (top / "sub").mkdir(parents=True)
    for name in ("one", "two", "sub/three"):
        (top / name).write_text(name)
    return Folder(top)


def opened(worker: Worker, manager: Manager, name: str = "context", **attributes: str) -> Any:
    given = {f"local.{key}": value for key, value in attributes.items()}
    return Locals(worker, manager).open(name, given, host())  # type: ignore[arg-type]


def files(snapshot: Any) -> set[str]:
    return {str(path.relative_to(snapshot.path)) for path in snapshot.path.rglob("*") if path.is_file()}


def test_only_what_differs_travels(worker: Worker, folder: Folder) -> None:
    manager = Manager()
    with client(folder.methods, manager):
        asker = Asker("one")
        source = opened(worker, manager)
        key = source.key(asker)
        assert key.key.startswith("session:context:sha256:")
        first = source.snapshot(asker)
        assert files(first) == {"one", "two", "sub/three"}
        assert asker.told[-1] == ("transferring context:", 15, 0, "transferring", True)
        whole = first.checksum((Selection(),))
        part = first.checksum((Selection("/sub"),))
        first.release()
        (folder.path / "one").write_text("another")
        second = opened(worker, manager).snapshot(Asker("one"))
        assert second.id == first.id and folder.sent == ["one"]
        known = worker.trees[second.id].hashed
        assert second.checksum((Selection("/sub"),)) == part
        assert worker.trees[second.id].hashed == known  # what did not change is not read again
        assert second.checksum((Selection(),)) != whole
        # It is held still: another build gets a tree of its own.
        third = opened(worker, manager).snapshot(Asker("one"))
        assert third.id != second.id and len(folder.sent) == 3
        assert third.checksum((Selection(),)) == second.checksum((Selection(),))


def test_times_and_the_root_do_not_count(worker: Worker, folder: Folder, tmp_path: Path) -> None:
    manager = Manager()
    with client(folder.methods, manager):
        first = opened(worker, manager).snapshot(Asker("one"))
        whole = first.checksum((Selection(),))
        first.release()
        folder.path.chmod(0o700)
        for name in ("one", "sub"):
            os.utime(folder.path / name, (1, 1))
        assert opened(worker, manager).snapshot(Asker("one")).checksum((Selection(),)) == whole


def test_what_the_operation_says(worker: Worker, folder: Folder) -> None:
    manager = Manager()
    with client(folder.methods, manager):
        source = opened(
            worker,
            manager,
            includepattern='["*.go"]',
            excludepatterns='["x","ü"]',
            followpaths='["link"]',
            sharedkeyhint="hint",
            session="one",
        )
        snapshot = source.snapshot(Asker())
        (asked,) = folder.asked
        assert asked["include-patterns"] == ["*.go"] and asked["followpaths"] == ["link"]
        assert asked["exclude-patterns"] == ["x", "%C3%BC"] and asked["exclude-patterns-encoded"] == ["1"]
        assert worker.known[snapshot.id]["shared_key"] == "context:hint:"
        assert worker.kinds[snapshot.id].kind == "source.local" and worker.kinds[snapshot.id].retained
        prefixed = opened(worker, manager, session="a:one")
        with pytest.raises(errors.NotFound, match="a-context"):
            prefixed.snapshot(Asker())
    for key, value in (
        ("includepattern", "{}"),
        ("differ", "never"),
        ("metadatatransfer", "perhaps"),
        ("metadatatransferexclude", '["["]'),
    ):
        with pytest.raises(errors.InvalidArgument):
            opened(worker, manager, **{key: value})
    with pytest.raises(errors.FailedPrecondition, match="without session"):
        opened(worker, manager).key(Asker())


def test_every_file_travels(worker: Worker, folder: Folder) -> None:
    manager = Manager()
    with client(folder.methods, manager):
        opened(worker, manager).snapshot(Asker("one")).release()
        again = opened(worker, manager, differ="none").snapshot(Asker("one"))
        assert sorted(folder.sent) == ["one", "sub/three", "two"]
        assert files(again) == {"one", "two", "sub/three"} and len(worker.kinds) == 1


def listed(data: bytes) -> list[bytes]:
    names, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        names.append(Stat.FromString(data[at + 4 : at + 4 + size]).path)
        at += 4 + size
    return names


def test_names_alone(worker: Worker, folder: Folder) -> None:
    manager = Manager()
    (folder.path / "sub/deep").mkdir()
    (folder.path / "sub/deep/wanted").write_text("w")
    (folder.path / "sub/deep/other").write_text("o")
    (folder.path / ".fsutil-metadata").write_text("nothing of the client's")
    with client(folder.methods, manager):
        attributes = {"metadatatransfer": "true", "metadatatransferexclude": '["**/wanted","two"]'}
        for _ in range(2):
            snapshot = opened(worker, manager, **attributes).snapshot(Asker("one"))
            assert files(snapshot) == {"sub/deep/wanted", "two", ".fsutil-metadata"}
            names = listed((snapshot.path / ".fsutil-metadata").read_bytes())
            assert names == [
                b"one", b"sub", b"sub/deep", b"sub/deep/other", b"sub/deep/wanted", b"sub/three", b"two"
            ]  # fmt: skip
            assert worker.known[snapshot.id]["shared_key"].endswith(":metadata")
            snapshot.release()
        assert folder.sent == []
        (folder.path / "two").unlink()
        snapshot = opened(worker, manager, metadatatransfer="true").snapshot(Asker("one"))
        assert files(snapshot) == {".fsutil-metadata"} and snapshot.id in worker.kinds


def test_a_client_that_goes(worker: Worker, folder: Folder) -> None:
    manager = Manager()
    folder.silent = True
    with client(folder.methods, manager) as session:
        threading.Timer(0.3, session.close).start()
        begin = time.monotonic()
        with pytest.raises(errors.Error):
            opened(worker, manager).snapshot(Asker("one"))
        assert time.monotonic() - begin < 3
        folder.stop.set()
    assert not worker.kinds and not worker.active_now  # what came of it is found by nobody


def test_it_ends_with_the_build(worker: Worker, folder: Folder) -> None:
    manager = Manager()
    folder.silent = True
    with client(folder.methods, manager):
        asker = Asker("one")
        threading.Timer(0.3, asker.cancel).start()
        begin = time.monotonic()
        with pytest.raises(errors.Cancelled):
            opened(worker, manager).snapshot(asker)
        assert time.monotonic() - begin < 3
        folder.stop.set()
    assert not worker.kinds


def test_a_context_that_changes_while_it_is_read(worker: Worker, folder: Folder) -> None:
    """A file that goes, or grows, between its name and its bytes: what came is what is hashed."""
    manager = Manager()
    walk = fsutil.walk

    def changing(descriptor: int) -> Iterator[Any]:
        yield from walk(descriptor)
        if os.path.samestat(os.fstat(descriptor), folder.path.stat()):
            (folder.path / "one").write_text("one and more")
            (folder.path / "two").unlink(missing_ok=True)

    with pytest.MonkeyPatch.context() as patch, client(folder.methods, manager):
        patch.setattr(fsutil, "walk", changing)
        snapshot = opened(worker, manager).snapshot(Asker("one"))
        assert (snapshot.path / "one").read_text() == "one and more"
        assert (snapshot.path / "two").read_bytes() == b""
        first = snapshot.checksum((Selection(),))
        snapshot.release()
    with client(folder.methods, manager):
        again = opened(worker, manager).snapshot(Asker("one"))
        assert files(again) == {"one", "sub/three"}
        assert again.checksum((Selection(),)) != first


def test_another_session_of_the_build(worker: Worker, folder: Folder) -> None:
    manager = Manager()
    with client(folder.methods, manager, "other"), pytest.MonkeyPatch.context() as patch:
        get = manager.get
        patch.setattr(manager, "get", lambda identifier, timeout=0.0, *more: get(identifier, 0.0, *more))
        snapshot = opened(worker, manager, session="gone").snapshot(Asker("other"))
        assert "one" in files(snapshot)
        with pytest.raises(errors.NotFound, match="no active session for gone"):
            opened(worker, manager, session="gone").snapshot(Asker())
