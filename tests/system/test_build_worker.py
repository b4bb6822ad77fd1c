# SPDX-License-Identifier: Apache-2.0
"""The builder's worker on real daemons, teu-containerd and Debian's containerd: overlays, layers, merges, kills."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from images import CONTAINERD

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.cache import policies
from teu.buildkit.cache.store import LOCAL_SOURCE, Store
from teu.buildkit.core import errors
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import Compression, Kind, Layer
from teu.buildkit.llb.load import Edge, Metadata, Vertex
from teu.buildkit.ops.file import FileOp
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.keeper import WorkerKeeper
from teu.buildkit.worker.worker import ContainerdWorker

pytestmark = [pytest.mark.needs("systemd", "containerd"), pytest.mark.timeout(300)]


class House:
    """A daemon, a namespace on it that nobody else has, and one builder after the other."""

    def __init__(self, address: str, root: Path, snapshotter: str) -> None:
        self.address = address
        self.root = root
        self.snapshotter = snapshotter
        self.namespace = f"build-{uuid.uuid4().hex[:12]}"
        self.worker = self.begin()

    def begin(self) -> ContainerdWorker:
        client = Client(self.address, self.namespace)
        store = Store(str(self.root / "cache.db"))
        self.worker = ContainerdWorker(client, store, str(self.root / "mounts"), snapshotter=self.snapshotter)
        self.worker.start()
        return self.worker

    def end(self) -> None:
        self.worker.close()
        self.worker.store.close()
        self.worker.client.close()

    def again(self) -> ContainerdWorker:
        self.end()
        return self.begin()

    def keeper(self) -> WorkerKeeper:
        return WorkerKeeper(self.worker, str(self.root))

    def save(self, ref: Any, key: str) -> Any:
        self.worker.store.save(key, "sha256:" + "0" * 64, 0, [], ref.id)
        return ref

    def step(self, parent: Any, change: Callable[[Path], None], name: str = "step") -> Any:
        active = self.worker.active(parent, Kind(description=name))
        with active.mounted() as place:
            change(Path(place))
        return active.commit()

    def clear(self) -> None:
        """All that the builder made goes; what is left then is a leak."""
        policies.prune(self.keeper(), [policies.Policy(all=True)])
        self.end()
        self.begin()
        policies.prune(self.keeper(), [policies.Policy(all=True)])
        self.keeper().collect()
        try:
            assert [info.name for info in self.worker.trees.snapshots.all()] == []
            assert self.worker.leases.listed() == []
            assert self.worker.store.records() == self.worker.store.records(dying=True) == []
            assert os.listdir(self.root / "mounts") == []
        finally:
            self.end()
            client = Client(self.address)
            from teu.api.services.namespaces.v1 import namespace_pb2

            with contextlib.suppress(errors.Error):
                client.namespaces.Delete(namespace_pb2.DeleteNamespaceRequest(name=self.namespace))
            client.close()


@pytest.fixture(scope="module")
def peer() -> Iterator[peers.Containerd]:
    """Debian's containerd."""
    with peers.containerd() as daemon:
        yield daemon


@pytest.fixture(params=["teu-overlayfs", "teu-native", "debian-overlayfs", "debian-native"])
def house(request: pytest.FixtureRequest, peer: peers.Containerd) -> Iterator[House]:
    daemon, _, snapshotter = request.param.partition("-")
    with tempfile.TemporaryDirectory(dir="/var/lib", prefix="teu-worker-") as root:
        house = House(CONTAINERD if daemon == "teu" else str(peer.address), Path(root), snapshotter)
        yield house
        house.clear()


def files(snapshot: Any) -> list[str]:
    with snapshot.mounted() as place:
        return sorted(str(path.relative_to(place)) for path in Path(place).rglob("*"))


def read(snapshot: Any, name: str) -> str:
    with snapshot.mounted() as place:
        return (Path(place) / name).read_text()


def write(**content: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name, data in content.items():
            path = root / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(data)

    return change


def remove(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in names:
            subprocess.run(["rm", "-rf", root / name], check=True)

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for one in changes:
            one(root)

    return change


def members(house: House, descriptor: dict[str, Any]) -> list[str]:
    data = house.worker.content.read_whole(descriptor["digest"])
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return sorted(member.name.rstrip("/") for member in archive)


def test_steps_and_their_layers(house: House) -> None:
    base = house.step(None, write(a="1", d__x="2", d__y="3"), "base")
    top = house.step(base, write(b="4", d__x="new"), "write")
    last = house.save(house.step(top, remove("a", "d/y"), "remove"), "last")
    assert files(last) == ["b", "d", "d/x"]
    assert read(last, "d/x") == "new"
    layers = last.layers(Compression())
    assert layers is not None
    assert [one["mediaType"] for one in layers] == ["application/vnd.oci.image.layer.v1.tar+gzip"] * 3
    assert [sorted({"a", "b", "d/x", "d/y", ".wh.a", "d/.wh.y"} & set(members(house, one))) for one in layers] == [
        ["a", "d/x", "d/y"],
        ["b", "d/x"],
        [".wh.a", "d/.wh.y"],
    ]
    assert [one.description for one in last.history()] == ["base", "write", "remove"]
    assert last.layers(None, make=False) == layers
    for kind in ("zstd", "uncompressed"):
        forced = last.layers(Compression(kind, force=True))
        assert forced is not None
        assert [one["annotations"] for one in forced] == [one["annotations"] for one in layers]
    early = last.layers(Compression(epoch=1_000_000_000))
    assert early is not None
    data = gzip.decompress(house.worker.content.read_whole(early[0]["digest"]))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {int(member.mtime) for member in archive} == {1_000_000_000}
    direct = house.step(last, write(z="9")).layers(Compression("zstd", 9))
    assert direct is not None
    assert direct[3]["mediaType"].endswith("+zstd")
    base.release()
    top.release()
    last.release()
    house.keeper().collect()
    house.again()
    found = house.worker.load(Record(last.id, 0.0))
    assert files(found) == ["b", "d", "d/x"]
    assert found.layers(None, make=False) == layers
    assert all(house.worker.content.has(one["digest"]) for one in layers)


def test_an_image_is_unpacked_of_its_layers(house: House) -> None:
    base = house.step(None, write(a="1", d__x="2", d__y="3"))
    top = house.step(base, remove("d"))
    last = house.step(top, write(d__z="4"))
    made = last.layers(Compression())
    assert made is not None
    blobs = {one["digest"]: house.worker.content.read_whole(one["digest"]) for one in made}
    for ref in (base, top, last):
        ref.release()
    house.keeper().collect()
    assert not any(house.worker.content.has(name) for name in blobs)
    asked: list[str] = []

    def fetch(descriptor: dict[str, Any], offset: int) -> Iterator[bytes]:
        asked.append(descriptor["digest"])
        yield blobs[descriptor["digest"]][offset:]

    layers = [Layer(one, one["annotations"]["containerd.io/uncompressed"], fetch) for one in made]
    image = house.worker.image(layers, Kind(description="pulled"))
    assert image is not None
    assert asked == []
    assert files(image) == ["a", "d", "d/z"]
    assert sorted(asked) == sorted(blobs)
    house.keeper().collect()
    house.save(image, "image")
    child = house.step(image, write(e="5"))
    assert files(child) == ["a", "d", "d/z", "e"]
    image.release()
    child.release()
    house.again()
    assert files(house.worker.load(Record(image.id, 0.0))) == ["a", "d", "d/z"]
    # Another builder's unpacked chain is this one's.
    with tempfile.TemporaryDirectory(dir="/var/lib", prefix="teu-worker-") as root:
        other = ContainerdWorker(
            house.worker.client, Store(root + "/cache.db"), root + "/mounts", snapshotter=house.snapshotter
        )
        other.trees.places.clear()
        asked.clear()
        second = other.image([Layer(one, layer.diff_id) for one, layer in zip(made, layers, strict=True)], Kind())
        assert second is not None
        assert files(second) == ["a", "d", "d/z"]
        assert asked == []
        second.release()
        other.close()
        other.store.close()


def test_merges_and_differences(house: House) -> None:
    base = house.step(None, write(keep="1", gone="2", d__old="3", f="file"))
    left = house.step(base, both(remove("gone", "d"), write(d__new="4", l="5")))
    right = house.step(None, both(write(r="6", f__inner="dir"), lambda root: os.symlink("r", root / "s")))
    delta = house.worker.diff(base, left, Kind())
    assert delta is not None
    assert files(delta) == ["d", "d/new", "l"]
    merged = house.worker.merge([left, right], Kind())
    assert merged is not None
    assert files(merged) == ["d", "d/new", "f", "f/inner", "keep", "l", "r", "s"]
    # The change without its base, upon another tree: what it removes goes there, too.
    other = house.step(None, write(gone="x", d__other="y", stays="z"))
    applied = house.worker.merge([other, delta], Kind())
    assert applied is not None
    # Of a folder that was made again some daemons say that it hides what was there, others what of it was removed.
    assert [name for name in files(applied) if name != "d/other"] == ["d", "d/new", "l", "stays"]
    layers = applied.layers(Compression())
    assert layers is not None
    assert {".wh.gone", "l"} <= set(members(house, layers[1]))
    # What the layers say when they are unpacked is what the merge is.
    image = house.worker.image([Layer(one, one["annotations"]["containerd.io/uncompressed"]) for one in layers], Kind())
    assert image is not None
    assert files(image) == files(applied)
    assert sorted({*files(applied), "n"}) == files(house.step(applied, write(n="1")))
    apart = house.worker.diff(other, base, Kind())
    assert apart is not None
    upon = house.worker.merge([other, apart], Kind())
    assert upon is not None
    assert files(upon) == files(base)
    nothing = house.worker.diff(base, None, Kind())
    empty = house.worker.merge([base, nothing], Kind())
    assert empty is not None
    assert files(empty) == []


def test_the_engines_snapshots_are_the_builds(house: House) -> None:
    """By a second key with our own containerd, by links with Debian's; they outlive what the builder has of them."""
    base = house.save(house.step(None, write(a="x" * 100_000, d__old="1", gone="2")), "base")
    top = house.save(house.step(base, both(remove("d", "gone"), write(d__new="3"))), "top")
    made = top.layers(Compression())
    assert made is not None
    for one in made:  # they would be needed to unpack them
        assert house.worker.content.has(one["digest"])
    image = house.worker.image([Layer(one, one["annotations"]["containerd.io/uncompressed"]) for one in made], Kind())
    assert image is not None
    assert files(image) == ["a", "d", "d/new"]
    with image.mounted() as place, top.mounted() as own:
        shared, linked = house.address == CONTAINERD, house.snapshotter == "overlayfs"  # else layers have all files
        status = (Path(place) / "a").stat()
        assert status.st_nlink == (2 if linked and not shared else 1)
        assert ((Path(own) / "a").stat().st_ino == status.st_ino) is (shared or linked)
        for name in ("a", "d", "d/new"):
            mine, its = (Path(own) / name).stat(), (Path(place) / name).stat()
            assert (mine.st_mode, mine.st_uid, mine.st_mtime_ns) == (its.st_mode, its.st_uid, its.st_mtime_ns), name
    top.release()
    base.release()
    gone = policies.prune(house.keeper(), [policies.Policy(all=True)])
    assert {one.record.id for one in gone} == {base.id, top.id}
    house.keeper().collect()
    assert files(image) == ["a", "d", "d/new"] and read(image, "d/new") == "3"


def test_a_retained_tree(house: House) -> None:
    active = house.worker.active(None, Kind(LOCAL_SOURCE, "context", retained=True, data={"k": "v"}))
    with active.mounted() as place:
        write(a="1", d__b="2")(Path(place))
    first = active.commit()
    before = first.checksum([Selection()])
    first.release()
    house.again()
    (name,) = house.worker.find(LOCAL_SOURCE, k="v")
    again = house.worker.reopen(name)
    assert again is not None
    with again.mounted() as place:
        write(a="other")(Path(place))
    again.tree.changed("a")
    second = again.commit()
    assert second.checksum([Selection()]) != before
    child = house.step(second, write(c="3"))
    assert files(child) == ["a", "c", "d", "d/b"]
    assert house.worker.find(LOCAL_SOURCE, k="v") == []
    layers = child.layers(Compression())
    assert layers is not None
    assert len(layers) == 2


def _copy(src: str, dest: str, **more: Any) -> pb.FileAction:
    message = pb.FileActionCopy(src=src, dest=dest, mode=-1, timestamp=-1, createDestPath=True, **more)
    return pb.FileAction(input=0, secondaryInput=1, output=0, copy=message)


class Context:
    def check(self) -> None:
        pass


def test_copies_into_a_tree_of_many_layers(house: House) -> None:
    if house.snapshotter == "native":
        pytest.skip("each layer there has all files")
    tree = house.step(None, write(etc__passwd="app:x:7:8::/:\n", f0="0"))
    for number in range(1, 75):  # more than the options of a mount have room for
        above = house.step(tree, write(**{f"f{number}": str(number)}))
        tree.release()
        tree = above
    assert len(files(tree)) == 77
    context = house.step(None, write(src__a="1", src__b__c="2", other="3"))
    owner = pb.ChownOpt(user=pb.UserOpt(byName=pb.NamedUserOpt(name="app", input=0)))
    op = pb.Op(file=pb.FileOp(actions=[_copy("/src", "/app/", owner=owner, dirCopyContents=True)]))
    edges = tuple(Edge(f"sha256:{number:064x}", 0) for number in range(2))
    vertex = Vertex("sha256:" + "0" * 64, op, edges, "COPY src /app/", Metadata(), "")
    operation = FileOp(vertex, house.worker)
    key = operation.cache_key(Context())  # type: ignore[arg-type]
    content = key.inputs[1].content
    assert content is not None
    assert content(Context(), context).startswith("sha256:")  # type: ignore[arg-type]
    (made,) = operation.execute(Context(), [tree, context])  # type: ignore[arg-type]
    with made.mounted() as place:  # type: ignore[attr-defined]
        status = (Path(place) / "app/b/c").stat()
        assert (status.st_uid, status.st_gid) == (7, 8)
    layers = made.layers(Compression())  # type: ignore[attr-defined]
    assert {"app/a", "app/b/c"} <= set(members(house, layers[-1]))
    assert "etc/passwd" not in members(house, layers[-1])
    for ref in (made, tree, context):
        ref.release()


def test_sizes_and_pruning(house: House) -> None:
    base = house.save(house.step(None, write(a="x" * 200_000)), "base")
    top = house.save(house.step(base, write(b="y" * 100_000)), "top")
    keeper = house.keeper()
    sizes = {one.record.id: one.size for one in (policies.measured(keeper, one) for one in keeper.usages())}
    assert 200_000 <= sizes[base.id] < 300_000
    assert 100_000 <= sizes[top.id] < 500_000
    assert policies.prune(keeper, [policies.Policy(all=True)]) == []
    base.release()
    top.release()
    gone = policies.prune(keeper, [policies.Policy(all=True)])
    assert [one.record.id for one in gone] == [top.id, base.id]
    with pytest.raises(Gone):
        house.worker.load(Record(base.id, 0.0))


def test_the_daemon_dies_under_it(house: House, peer: peers.Containerd, rounds: Callable[[int], int]) -> None:
    kept = house.save(house.step(None, write(a="1")), "kept")
    stop = threading.Event()
    odd: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            try:
                first = house.step(kept, write(b="2"))
                second = house.step(first, remove("a"))
                second.layers(Compression())
                second.release()
                first.release()
            except (errors.Error, OSError):
                pass  # the step has failed, as it should be: the next one may not
            except BaseException as error:
                odd.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(rounds(3)):
        time.sleep(0.7)
        if house.address == CONTAINERD:
            subprocess.run(["systemctl", "kill", "-s", "KILL", "teu-containerd.service"], check=True)
        else:
            peer.kill()
            peer.launch()
    stop.set()
    for thread in threads:
        thread.join()
    assert odd == []
    assert files(house.step(kept, write(c="3"))) == ["a", "c"]
    house.again()
    assert files(house.worker.load(Record(kept.id, 0.0))) == ["a"]


BUILDER = """
import os, sys, threading
sys.path[:0] = {path!r}
from pathlib import Path
from teu.buildkit.cache.store import Store
from teu.buildkit.core.snapshots import Compression, Kind
from teu.buildkit.worker.client import Client
from teu.buildkit.worker.worker import ContainerdWorker

def begin():
    client = Client({address!r}, {namespace!r})
    store = Store({root!r} + "/cache.db")
    worker = ContainerdWorker(client, store, {root!r} + "/mounts", snapshotter={snapshotter!r})
    worker.start()
    print("begun", os.getpid(), flush=True)
    for number in range(2):
        threading.Thread(target=work, args=(store, worker, number), daemon=True).start()
    threading.Event().wait()

def work(store, worker, number):
    turn = 0
    while True:
        turn += 1
        refs = []
        parent = None
        for depth in range(3):
            active = worker.active(parent, Kind(description="step", retained=depth == 2 and turn % 3 == 0))
            with active.mounted() as place:
                (Path(place) / f"f{{depth}}").write_text("x" * 1000)
            parent = active.commit()
            refs.append(parent)
        store.save(f"k{{number}}-{{turn}}", "sha256:" + "0" * 64, 0, [], parent.id)
        merged = worker.merge([refs[0], refs[2]], Kind())
        if turn % 2:
            merged.mounts()
        refs[1].layers(Compression())
        for ref in (*refs, merged):
            ref.release()

# Loaded once: to start Python for each would take longer than what is tested.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        begin()
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.timeout(600)
def test_kills_at_any_moment_leave_nothing(house: House, rounds: Callable[[int], int]) -> None:
    house.end()
    text = BUILDER.format(
        path=sys.path,
        address=house.address,
        namespace=house.namespace,
        root=str(house.root),
        snapshotter=house.snapshotter,
    )
    seed = random.Random(7)
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as builders:
        assert builders.stdin is not None and builders.stdout is not None
        for _ in range(rounds(8)):
            builders.stdin.write("one\n")
            word, _, builder = builders.stdout.readline().strip().partition(" ")
            assert word == "begun"
            time.sleep(seed.uniform(0.1, 1.5))
            os.kill(int(builder), signal.SIGKILL)
            assert builders.stdout.readline() == f"ended -{int(signal.SIGKILL)}\n"
    worker = house.begin()
    assert os.listdir(house.root / "mounts") == []
    known = {record.id for record in worker.store.records()}
    for info in worker.trees.snapshots.all():
        if info.name.startswith(worker.leases.names.prefix):
            assert info.name.rpartition("-")[2] in known
    found = 0
    for record in worker.store.records():
        if record.data["worker"].get("how", "layer") == "layer" and not record.mutable:
            ref = worker.load(Record(record.id, 0.0))
            assert "f0" in files(ref)
            ref.release()
            found += 1
    assert found
