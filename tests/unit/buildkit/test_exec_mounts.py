# SPDX-License-Identifier: Apache-2.0
"""From the mounts of a definition to trees, caches and secrets; and what of them is mounted on the host."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.cache.store import CACHE_MOUNT
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Kind, Mount
from teu.buildkit.ops.mounts import Caches, Prepared, Preparing, secret_variables
from teu.buildkit.session import secrets
from teu.buildkit.worker import mounts
from teu.buildkit.worker.mounts import Agent, Bind, Secret, Tmpfs

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


class FakeTree:
    """A Snapshot."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.held = 1

    def clone(self) -> FakeTree:
        self.held += 1
        return self

    def release(self) -> None:
        self.held -= 1

    def mounts(self) -> list[Mount]:
        return [Mount("overlay", "overlay", (f"lowerdir=/{self.id}", "ro"))]


class FakeActive:
    def __init__(self, worker: FakeWorker, name: str, parent: FakeTree | None, kind: Kind) -> None:
        self.id, self.parent, self.kind = name, parent, kind
        self.state = "open"
        self._worker = worker

    def mounts(self) -> list[Mount]:
        if self.parent is None:
            return [Mount("bind", f"/{self.id}", ("rbind", "rw"))]
        return [Mount("overlay", "overlay", (f"upperdir=/{self.id}",))]

    @contextmanager
    def mounted(self) -> Iterator[str]:
        yield f"/mnt/{self.id}"

    def commit(self) -> FakeTree:
        assert self.state == "open"
        self.state = "committed"
        return FakeTree(self.id)

    def release(self) -> None:
        if self.state == "open":
            self.state = "released"
        if self.kind.retained:
            self.state = "open"
            self._worker.used.discard(self.id)


class FakeWorker:
    def __init__(self) -> None:
        self.made: list[FakeActive] = []
        self.used: set[str] = set()

    def active(self, parent: Any, kind: Kind) -> Any:
        one = FakeActive(self, f"active{len(self.made)}", parent, kind)
        self.made.append(one)
        self.used.add(one.id)
        return one

    def find(self, kind: str, **data: Any) -> list[str]:
        return [one.id for one in self.made if one.kind.kind == kind and dict(one.kind.data) == data]

    def reopen(self, identity: str) -> Any:
        if identity in self.used:
            return None
        self.used.add(identity)
        return next(one for one in self.made if one.id == identity)


class FakeSessions:
    def any_of(self, identifiers: Any, function: Any, timeout: float = 1) -> Any:
        last: Exception = errors.NotFound("no active sessions")
        for one in identifiers:
            try:
                return function(one)
            except errors.Error as error:
                last = error
        raise last


class Waiting:
    def __init__(self, sessions: list[Any] | None = None) -> None:
        self.cancelled = threading.Event()
        self._sessions = sessions or []

    def check(self) -> None:
        if self.cancelled.is_set():
            raise errors.Cancelled("context canceled")

    def wait(self, seconds: float) -> bool:
        return self.cancelled.wait(seconds)

    def waiting(self) -> Any:
        return nullcontext()

    def sessions(self) -> Any:
        return self._sessions


ROOT = pb.Mount(dest="/", input=0, output=0)


class House:
    def __init__(self) -> None:
        self.worker: Any = FakeWorker()
        self.caches = Caches(self.worker)
        self.input: Any = FakeTree("input")

    def prepare(self, *given: pb.Mount, waiting: Any = None, cwd: str = "/work") -> Prepared:
        sessions: Any = FakeSessions()
        preparing = Preparing(self.worker, sessions, self.caches, waiting or Waiting(), "exec x", cwd)
        return preparing.prepare(given, [self.input, None])


@pytest.fixture
def house() -> House:
    return House()


def test_a_root_becomes_an_output(house: House) -> None:
    prepared = house.prepare(ROOT)
    assert prepared.root is house.worker.made[0]
    (result,) = prepared.commit()
    prepared.release()
    assert result.id == "active0"
    assert house.worker.made[0].state == "committed"
    assert house.input.held == 1


def test_what_is_not_committed_goes(house: House) -> None:
    prepared = house.prepare(
        ROOT, pb.Mount(dest="/w", input=0, output=-1), pb.Mount(dest="/r", input=0, output=1, readonly=True)
    )
    assert [one.state for one in house.worker.made] == ["open", "open"]
    assert house.input.held == 3
    prepared.release()
    prepared.release()
    assert [one.state for one in house.worker.made] == ["released", "released"]
    assert house.input.held == 1


def test_outputs_in_their_order(house: House) -> None:
    prepared = house.prepare(
        pb.Mount(dest="/r", input=0, output=0, readonly=True),
        pb.Mount(dest="/", input=1, output=1),
        pb.Mount(dest="/w", input=0, output=2, selector="/part"),
        pb.Mount(dest="/empty", input=1, output=3, readonly=True),
    )
    assert [one.id for one in prepared.commit()] == ["input", "active0", "active1", "scratch"]
    prepared.release()
    assert [type(one) for one in prepared.mounts] == [Bind, Bind, Bind]
    read, written, empty = prepared.mounts
    assert isinstance(read, Bind) and isinstance(written, Bind) and isinstance(empty, Bind)
    assert read.readonly and not written.readonly and empty.readonly
    assert written.selector == "/part"


def test_a_root_that_is_only_read_is_not_the_input(house: House) -> None:
    prepared = house.prepare(pb.Mount(dest="/", input=0, output=-1, readonly=True))
    assert prepared.readonly
    assert prepared.commit() == []
    prepared.release()
    assert house.worker.made[0].state == "released"


@pytest.mark.parametrize(
    "mounts_given",
    [
        [],
        [pb.Mount(dest="/", input=0, output=0, mountType=pb.TMPFS)],
        [ROOT, pb.Mount(dest="/x", input=9, output=-1)],
        [ROOT, pb.Mount(dest="/.", input=0, output=-1)],
        [ROOT, pb.Mount(dest="/x/..", input=0, output=-1)],
        [ROOT, pb.Mount(dest="/c", input=-1, output=-1, mountType=pb.CACHE)],
        [ROOT, pb.Mount(dest="/c", input=-1, output=-1, mountType=pb.SECRET)],
        [ROOT, pb.Mount(dest="/c", input=-1, output=-1, mountType=pb.SECRET, secretOpt=pb.SecretOpt())],
    ],
)
def test_what_is_refused_leaves_nothing(house: House, mounts_given: list[pb.Mount]) -> None:
    with pytest.raises(errors.InvalidArgument):
        house.prepare(*mounts_given)
    assert {one.state for one in house.worker.made} <= {"released"}


def test_places_are_relative_to_the_working_directory(house: House) -> None:
    prepared = house.prepare(
        ROOT,
        pb.Mount(dest="sub/../t", input=-1, output=-1, mountType=pb.TMPFS, TmpfsOpt=pb.TmpfsOpt(size=5)),
        pb.Mount(dest="/work/t", input=-1, output=-1, mountType=pb.TMPFS, readonly=True),
    )
    assert prepared.mounts == [Tmpfs("/work/t", 0, True)]  # the last one of a place


# Caches


def cache(identity: str = "c", sharing: int = pb.SHARED, dest: str = "/c", source: int = -1) -> pb.Mount:
    return pb.Mount(
        dest=dest,
        input=source,
        output=-1,
        mountType=pb.CACHE,
        cacheOpt=pb.CacheOpt(ID=identity, sharing=sharing),  # type: ignore[arg-type]
    )


def actives(prepared: Prepared) -> list[Any]:
    return [one.tree for one in prepared.mounts if isinstance(one, Bind)]


def test_a_cache_is_found_again(house: House) -> None:
    first = house.prepare(ROOT, cache())
    first.release()
    second = house.prepare(ROOT, cache())
    assert actives(first)[0] is actives(second)[0]
    assert actives(second)[0].kind.kind == CACHE_MOUNT
    assert actives(second)[0].kind.description == 'cached mount /c from exec x with id "c"'
    second.release()


def test_a_shared_cache_is_one_for_all(house: House) -> None:
    first, second = house.prepare(ROOT, cache()), house.prepare(ROOT, cache())
    assert actives(first)[0] is actives(second)[0]
    first.release()
    assert actives(second)[0].id in house.worker.used
    second.release()
    assert actives(second)[0].id not in house.worker.used


def test_a_private_cache_is_for_one(house: House) -> None:
    first, second = house.prepare(ROOT, cache(sharing=pb.PRIVATE)), house.prepare(ROOT, cache(sharing=pb.PRIVATE))
    assert actives(first)[0] is not actives(second)[0]
    first.release()
    third = house.prepare(ROOT, cache(sharing=pb.PRIVATE))
    assert actives(third)[0] is actives(first)[0]


def test_a_locked_cache_is_waited_for(house: House) -> None:
    first = house.prepare(ROOT, cache(sharing=pb.LOCKED))
    found: list[Prepared] = []
    thread = threading.Thread(target=lambda: found.append(house.prepare(ROOT, cache(sharing=pb.LOCKED))))
    thread.start()
    time.sleep(0.3)
    assert not found
    first.release()
    thread.join(10)
    assert actives(found[0])[0] is actives(first)[0]


def test_steps_with_several_locked_caches_do_not_wait_for_each_other(house: House) -> None:
    mounts_given = [cache("a", pb.LOCKED, "/a"), cache("b", pb.LOCKED, "/b")]
    taken: list[str] = []
    take = house.caches.take

    def slowly(key: str, *rest: Any) -> Any:
        taken.append(key)
        time.sleep(0.05)
        return take(key, *rest)

    house.caches.take = slowly  # type: ignore[method-assign]

    def work(given: list[pb.Mount]) -> None:
        for _ in range(5):
            house.prepare(ROOT, *given).release()

    both = [threading.Thread(target=work, args=(given,)) for given in (mounts_given, mounts_given[::-1])]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(20)
        assert not thread.is_alive()
    assert len(taken) == 20


def test_who_is_cancelled_waits_no_longer(house: House) -> None:
    house.prepare(ROOT, cache(sharing=pb.LOCKED))
    waiting = Waiting()
    waiting.cancelled.set()
    with pytest.raises(errors.Cancelled):
        house.prepare(ROOT, cache(sharing=pb.LOCKED), waiting=waiting)


def test_one_step_has_a_cache_twice(house: House) -> None:
    prepared = house.prepare(ROOT, cache(sharing=pb.LOCKED), cache(sharing=pb.LOCKED, dest="/d"))
    assert actives(prepared)[0] is actives(prepared)[1]
    prepared.release()
    assert house.worker.used == {"active1"}  # the root, which the fake does not forget


def test_caches_on_something_are_mounted_once_for_all(house: House) -> None:
    """An overlay that is mounted twice is two file systems."""
    first = house.prepare(ROOT, cache(source=0, dest="/x"))
    second = house.prepare(ROOT, cache(source=0, dest="/x"))
    (one,), (other,) = first.mounts, second.mounts
    assert isinstance(one, Bind) and isinstance(other, Bind)
    assert one.shared is not None and other.shared is not None
    assert one.shared() == other.shared() == "/mnt/active1"
    assert house.worker.made[1].kind.data == {"cache-dir": "c:input"}


# Secrets


class FakeSession:
    def __init__(self, words: dict[str, bytes]) -> None:
        self.words = words


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    def get(session: Any, identifier: str) -> bytes:
        if identifier not in session.words:
            raise errors.NotFound(f"secret {identifier}: not found")
        return bytes(session.words[identifier])

    monkeypatch.setattr(secrets, "get", get)
    return Waiting([FakeSession({}), FakeSession({"word": b"s3cret", "zero": b"a\0b"})])


def secret_mount(identifier: str, optional: bool = False) -> pb.Mount:
    option = pb.SecretOpt(ID=identifier, uid=1, gid=2, mode=0o400, optional=optional)
    return pb.Mount(dest="/run/secrets/word", input=-1, output=-1, mountType=pb.SECRET, secretOpt=option)


def test_any_session_may_know_a_secret(house: House, words: Waiting) -> None:
    prepared = house.prepare(ROOT, secret_mount("word"), waiting=words)
    assert prepared.mounts == [Secret("/run/secrets/word", b"s3cret", 1, 2, 0o400)]
    assert "s3cret" not in repr(prepared.mounts)


def test_a_secret_that_there_is_not(house: House, words: Waiting) -> None:
    assert house.prepare(ROOT, secret_mount("none", optional=True), waiting=words).mounts == []
    with pytest.raises(errors.Error, match="^secret none: not found$"):
        house.prepare(ROOT, secret_mount("none"), waiting=words)


def test_secrets_as_variables(words: Waiting) -> None:
    sessions: Any = FakeSessions()
    wanted = [pb.SecretEnv(ID="word", name="WORD"), pb.SecretEnv(ID="none", name="NONE", optional=True)]
    assert secret_variables(sessions, words.sessions(), wanted) == ["WORD=s3cret", "NONE="]
    for bad in (pb.SecretEnv(name="X"), pb.SecretEnv(ID="word", name="A=B"), pb.SecretEnv(ID="zero", name="Z")):
        with pytest.raises(errors.InvalidArgument) as caught:
            secret_variables(sessions, words.sessions(), [bad])
        assert "s3cret" not in str(caught.value)


def test_an_agent_that_there_is_not(house: House) -> None:
    mount = pb.Mount(dest="/agent", input=-1, output=-1, mountType=pb.SSH, SSHOpt=pb.SSHOpt(ID="k", optional=True))
    assert house.prepare(ROOT, mount).mounts == []
    mount.SSHOpt.optional = False
    with pytest.raises(errors.Error):
        house.prepare(ROOT, mount)
    assert Agent is not None


# On the host


class Folder:
    """A tree that is a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mounts(self) -> list[Mount]:
        return [Mount("bind", str(self.path), ("rbind", "rw"))]

    @contextmanager
    def mounted(self) -> Iterator[str]:
        yield str(self.path)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[mounts.Places]:
    (tmp_path / "step").mkdir()
    with ExitStack() as undo:
        yield mounts.Places(str(tmp_path / "step"), undo)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_whole_tree_is_the_runtimes_to_mount(places: mounts.Places, tmp_path: Path) -> None:
    entry, kind = places.entry(Bind("/x", Folder(tmp_path), "/", readonly=True))
    assert kind == "dir"
    assert entry == {"destination": "/x", "type": "bind", "source": str(tmp_path), "options": ["rbind", "ro"]}


def test_options_too_long_for_a_runtime_are_mounted_here(places: mounts.Places) -> None:
    tree: Any = FakeActive(FakeWorker(), "a", None, Kind())
    tree.mounts = lambda: [Mount("overlay", "overlay", ("lowerdir=" + "/x:" * 2000,))]
    entry, _ = places.entry(Bind("/x", tree))
    assert entry["source"] == "/mnt/a"


@AS_ROOT
def test_a_part_of_a_tree_is_what_it_was(places: mounts.Places, tmp_path: Path) -> None:
    """CVE-2024-23651: a link that comes later leads nobody elsewhere."""
    tree = tmp_path / "tree"
    (tree / "part").mkdir(parents=True)
    (tree / "part/file").write_text("inside")
    (tree / "link").symlink_to("/etc")
    outside = tmp_path / "outside"
    outside.mkdir()
    entry, kind = places.entry(Bind("/x", Folder(tree), "part"))
    (tree / "part").rename(tree / "old")
    (tree / "part").symlink_to(outside)
    assert kind == "dir"
    assert os.listdir(entry["source"]) == ["file"]
    entry, kind = places.entry(Bind("/y", Folder(tree), "/old/file"))
    assert kind == "file"
    assert Path(entry["source"]).read_text() == "inside"
    for selector in ("link/passwd", "../outside", "none"):
        with pytest.raises(errors.NotFound, match="no such file or directory"):
            places.entry(Bind("/z", Folder(tree), selector))


@AS_ROOT
def test_secrets_lie_in_memory(places: mounts.Places, tmp_path: Path) -> None:
    entry, kind = places.entry(Secret("/s", b"word", 5, 6, 0o440))
    assert kind == "file"
    assert "noexec" in entry["options"] and "ro" in entry["options"]
    status = os.stat(entry["source"])
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777, status.st_nlink) == (5, 6, 0o440, 1)
    assert Path(entry["source"]).read_bytes() == b"word"
    table = Path("/proc/self/mountinfo").read_text()
    assert any(f"{tmp_path}/step/secrets " in line and " tmpfs " in line for line in table.splitlines())
    entry, _ = places.entry(Secret("/t", b"", mode=0o555))
    assert "noexec" not in entry["options"]
