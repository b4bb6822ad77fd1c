# SPDX-License-Identifier: Apache-2.0
"""The worker over a containerd in memory: who holds what, lazy images, retained trees, layers, and crashes."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import LAYER, Broken, Containerd, digest

from teu.buildkit.cache import policies
from teu.buildkit.cache.store import CACHE_MOUNT, LOCAL_SOURCE, Store
from teu.buildkit.core import errors
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.selection import Selection
from teu.buildkit.core.snapshots import SCRATCH, Compression, Kind, Layer
from teu.buildkit.worker import stargz
from teu.buildkit.worker.keeper import WorkerKeeper
from teu.buildkit.worker.layers import compressed, rewritten
from teu.buildkit.worker.worker import ContainerdWorker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="snapshots need root")


class House:
    """A daemon, and one builder after the other on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "snapshots").mkdir()
        self.containerd = Containerd(root / "snapshots")
        self.worker = self.begin()

    def begin(self, boot: str = "first") -> ContainerdWorker:
        store = Store(str(self.root / "cache.db"))
        self.worker = ContainerdWorker(
            self.containerd,  # type: ignore[arg-type]
            store,
            str(self.root / "mounts"),
            snapshotter="native",
            boot=boot,
        )
        self.worker.start()
        return self.worker

    def crash(self, boot: str = "first") -> ContainerdWorker:
        """The builder is killed, and another one comes; on a host that was perhaps booted meanwhile."""
        self.worker.store.close()
        return self.begin(boot)

    def step(self, parent: Any, name: str, data: str = "x", **kind: Any) -> Any:
        """A result with one more file."""
        active = self.worker.active(parent, Kind(description=f"make {name}", **kind))
        with active.mounted() as place:
            (Path(place) / name).write_text(data)
        return active.commit()

    def saved(self, ref: Any, key: str) -> Any:
        self.worker.store.save(key, "sha256:" + "0" * 64, 0, [], ref.id)
        return ref

    def names(self) -> list[str]:
        return sorted(name.split("-")[2] if "-" in name else name for name in self.containerd.snaps)

    def lease(self, ref: Any) -> str:
        """Of a record; its snapshot is called the same."""
        return self.worker.leases.names.lease + ref.id


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.worker.store.close()


def files(snapshot: Any) -> list[str]:
    with snapshot.mounted() as place:
        return sorted(str(path.relative_to(place)) for path in Path(place).rglob("*"))


def layer(**content: str) -> tuple[bytes, Layer]:
    """A layer's blob, and what is said of it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 2_000_000_000
            archive.addfile(info, io.BytesIO(data.encode()))
    plain = out.getvalue()
    data = gzip.compress(plain, mtime=0)
    descriptor = {"mediaType": LAYER + "+gzip", "digest": digest(data), "size": len(data)}
    return data, Layer(descriptor, digest(plain), history="RUN " + ",".join(content))


def from_memory(*blobs: bytes, told: list[tuple[str, int]] | None = None) -> Callable[..., Iterator[bytes]]:
    by_digest = {digest(blob): blob for blob in blobs}

    def fetch(descriptor: dict[str, Any], offset: int) -> Iterator[bytes]:
        if told is not None:
            told.append((descriptor["digest"], offset))
        data = by_digest[descriptor["digest"]][offset:]
        for at in range(0, len(data), 100):
            yield data[at : at + 100]

    return fetch


# Holding


def test_what_nobody_holds_and_no_result_leads_to_goes(house: House) -> None:
    base = house.saved(house.step(None, "a"), "base")
    top = house.step(base, "b")
    assert files(top) == ["a", "b"]
    again = top.clone()
    top.release()
    top.release()
    assert files(again) == ["a", "b"]
    base.release()
    again.release()
    assert house.names() == [base.id]
    assert house.worker.records.get(top.id) is None
    assert set(house.containerd.leased) == {house.lease(base)}
    with pytest.raises(errors.Internal):
        again.clone()
    found = house.worker.load(Record(base.id, 0.0))
    assert files(found) == ["a"]
    with pytest.raises(Gone):
        house.worker.load(Record(top.id, 0.0))


def test_what_is_given_up_before_it_is_committed_leaves_nothing(house: House) -> None:
    active = house.worker.active(None, Kind())
    active.release()
    active.release()
    with pytest.raises(errors.Internal):
        active.commit()
    house.containerd.fail = "snapshots_Prepare"
    with pytest.raises(Broken):
        house.worker.active(None, Kind())
    assert (house.containerd.snaps, house.containerd.leased) == ({}, {})
    assert house.worker.records.all() == []


def test_one_who_stands_on_it_keeps_it(house: House) -> None:
    base = house.step(None, "a")
    top = house.saved(house.step(base, "b"), "top")
    base.release()
    assert len(house.names()) == 2
    keeper = WorkerKeeper(house.worker, str(house.root))
    assert not keeper.remove(base.id)
    top.release()
    assert keeper.remove(top.id)
    assert keeper.remove(base.id)
    assert house.containerd.snaps == {}
    assert house.worker.store.results("top") == []


# Retained trees


def test_a_cache_mount_is_had_by_one_at_a_time(house: House) -> None:
    kind = Kind(CACHE_MOUNT, "cache", retained=True, data={"cache": "go"})
    active = house.worker.active(None, kind)
    with active.mounted() as place:
        (Path(place) / "f").write_text("1")
    assert house.worker.find(CACHE_MOUNT, cache="go") == [active.id]
    assert house.worker.find(CACHE_MOUNT, cache="npm") == []
    assert house.worker.reopen(active.id) is None
    active.release()
    for crash in (False, True):
        worker = house.crash() if crash else house.worker
        again = worker.reopen(active.id)
        assert again is not None
        with again.mounted() as place:
            assert (Path(place) / "f").read_text() == "1"
        again.release()
    again = house.worker.reopen(active.id)
    assert again is not None
    again.discard()
    assert house.worker.find(CACHE_MOUNT, cache="go") == []
    assert house.containerd.snaps == {}


def test_a_context_is_written_again_and_known_again(house: House) -> None:
    kind = Kind(LOCAL_SOURCE, "context", retained=True, data={"shared": "k"})
    active = house.worker.active(None, kind)
    with active.mounted() as place:
        for name in ("a", "b"):
            (Path(place) / name).write_text(name)
    active.note(files=2)
    first = house.saved(active.commit(), "first")
    before = first.checksum([Selection()])
    assert house.worker.reopen(active.id) is None  # somebody reads it
    first.release()
    assert len(house.containerd.snaps) == 1
    assert house.worker.data(active.id) == {"shared": "k", "files": 2}
    for crash in (False, True):
        worker = house.crash() if crash else house.worker
        again = worker.reopen(active.id)
        assert again is not None
        known = again.tree.hashed  # type: ignore[attr-defined]
        with again.mounted() as place:
            (Path(place) / "a").write_text("changed" + str(time.time_ns()))
        again.tree.changed("a")
        second = again.commit()
        assert second.checksum([Selection()]) != before
        assert second.entry.tree is not None
        assert second.entry.tree.hashed - known == 1
        assert second.checksum([Selection("/b")]) == first_of(house, "b")
        second.release()
        assert len(house.containerd.snaps) == 1
    with pytest.raises(Gone):
        house.worker.load(Record(first.id, 0.0))


def test_a_context_is_hashed_again_after_a_power_cut(house: House) -> None:
    """Its files, and what is known of them, reach the disk at different times: a cut can leave a new file there beside
    the digest of the old one, and a client that has the new one sends nothing."""
    active = house.worker.active(None, Kind(LOCAL_SOURCE, "context", retained=True))
    with active.mounted() as place:
        (Path(place) / "a").write_text("old")
    context = house.saved(active.commit(), "context")
    old = context.checksum([Selection()])
    context.release()
    with house.worker.keeping.trees.places.mounted(active.mounts()) as place:
        (Path(place) / "a").write_text("new")
    found = []
    for boot in ("first", "second"):
        again = house.crash(boot).reopen(active.id)
        assert again is not None
        context = again.commit()
        found.append(context.checksum([Selection()]))
        context.release()
    # A builder that was killed alone has lost nothing, and hashes nothing again.
    assert found[0] == old != found[1]


def first_of(house: House, data: str) -> str:
    other = house.step(None, data, data)
    try:
        return str(other.checksum([Selection("/" + data)]))
    finally:
        other.release()


def test_what_stands_on_a_context_makes_it_a_tree_of_its_own(house: House) -> None:
    active = house.worker.active(None, Kind(LOCAL_SOURCE, "context", retained=True))
    with active.mounted() as place:
        (Path(place) / "a").write_text("1")
    context = active.commit()
    top = house.saved(house.step(context, "b"), "top")
    assert files(top) == ["a", "b"]
    assert files(context) == ["a"]
    assert house.worker.reopen(active.id) is None
    assert house.worker.records.get(active.id) is None
    context.release()
    top.release()
    house.crash()
    assert files(house.worker.load(Record(top.id, 0.0))) == ["a", "b"]


# Images


def test_an_image_is_fetched_when_its_files_are_needed(house: House) -> None:
    lower_data, lower = layer(a="1")
    upper_data, upper = layer(b="2")
    told: list[tuple[str, int]] = []
    fetch = from_memory(lower_data, upper_data, told=told)
    stack = [Layer(one.descriptor, one.diff_id, fetch, one.history) for one in (lower, upper)]
    image = house.worker.image(stack, Kind(description="pulled"))
    assert image is not None
    assert [one["digest"] for one in image.layers(None, make=False) or []] == [digest(lower_data), digest(upper_data)]
    assert [one.description for one in image.history()] == ["RUN a", "RUN b"]
    assert b"".join(house.worker.open_blob(image, upper.descriptor)) == upper_data
    assert house.containerd.blobs == {}
    told.clear()
    assert files(image) == ["a", "b"]
    assert sorted(told) == sorted([(digest(lower_data), 0), (digest(upper_data), 0)])
    house.containerd.collect()
    assert len(house.containerd.blobs) == 2
    house.saved(image, "image")
    image.release()
    # The next one has it already, and shares what it has with others.
    other = house.worker.image(stack[:1], Kind())
    assert other is not None
    assert files(other) == ["a"]
    assert house.containerd.applied == 2
    other.release()
    house.crash()
    found = house.worker.load(Record(image.id, 0.0))
    assert files(found) == ["a", "b"]
    assert house.containerd.applied == 2


def test_the_engines_image_costs_nothing(house: House) -> None:
    data, lower = layer(a="1")
    active = house.worker.trees.snapshots.prepare("engine", "", "")
    (Path(active[0].source) / "a").write_text("1")
    house.worker.trees.snapshots.commit(lower.diff_id, "engine", "")
    image = house.worker.image([lower], Kind())
    assert image is not None
    assert files(image) == ["a"]
    assert house.containerd.applied == 0
    house.containerd.collect()
    assert lower.diff_id in house.containerd.snaps  # ours, too, now
    image.release()
    house.containerd.collect()
    assert lower.diff_id not in house.containerd.snaps


def test_an_image_that_cannot_be_had_any_more(house: House) -> None:
    data, lower = layer(a="1")
    stack = [Layer(lower.descriptor, lower.diff_id, from_memory(data))]
    image = house.worker.image(stack, Kind())
    assert image is not None
    house.saved(image, "image")
    image.release()
    with pytest.raises(Gone):
        house.worker.load(Record(image.id, 0.0))
    again = house.worker.image(stack, Kind())
    assert again is not None
    assert again.id == image.id
    assert files(house.worker.load(Record(image.id, 0.0))) == ["a"]


def test_a_wrong_layer_is_no_snapshot(house: House) -> None:
    data, lower = layer(a="1")
    image = house.worker.image([Layer(lower.descriptor, "sha256:" + "1" * 64, from_memory(data))], Kind())
    assert image is not None
    with pytest.raises(errors.FailedPrecondition, match="wrong diff id"):
        files(image)
    assert house.containerd.snaps == {}
    other = house.worker.image([Layer(lower.descriptor, lower.diff_id, from_memory(b"x"))], Kind())
    assert other is not None


def test_a_cache_elsewhere_is_loaded_by_its_layers(house: House) -> None:
    data, lower = layer(a="1")
    remote = [Layer(lower.descriptor, lower.diff_id, from_memory(data))]
    found = house.worker.load(Record("elsewhere", 1.0, remote))
    assert files(found) == ["a"]
    with pytest.raises(Gone):
        house.worker.load(Record("elsewhere", 1.0, [layer(b="1")[1].descriptor]))


# Content


def test_a_fetch_goes_on_where_it_stopped(house: House) -> None:
    data = os.urandom(5000)
    descriptor = {"mediaType": "x", "digest": digest(data), "size": len(data)}
    offsets: list[int] = []

    def broken(descriptor: dict[str, Any], offset: int) -> Iterator[bytes]:
        offsets.append(offset)
        yield data[offset : offset + 2000]
        if offset + 2000 < len(data):
            raise ConnectionResetError("broken")

    house.worker.content.fetch(descriptor, broken)
    assert offsets == [0, 2000, 4000]
    assert house.worker.content.read_whole(digest(data)) == data
    assert b"".join(house.worker.content.read(digest(data), 4990)) == data[4990:]
    with pytest.raises(errors.ResourceExhausted):
        house.worker.content.read_whole(digest(data), 100)

    def nothing(descriptor: dict[str, Any], offset: int) -> Iterator[bytes]:
        offsets.append(offset)
        raise ConnectionRefusedError
        yield b""

    offsets.clear()
    other = {"mediaType": "x", "digest": digest(b"other"), "size": 5}
    with pytest.raises(ConnectionRefusedError):
        house.worker.content.fetch(other, nothing)
    assert len(offsets) == 4

    def wrong(descriptor: dict[str, Any], offset: int) -> Iterator[bytes]:
        yield b"wrong"

    with pytest.raises(errors.FailedPrecondition):
        house.worker.content.fetch(other, wrong)
    assert house.containerd.ingests == {}

    def endless(descriptor: dict[str, Any], offset: int) -> Iterator[bytes]:
        while True:
            yield b"more"

    with pytest.raises(errors.FailedPrecondition, match="more than the 5 bytes"):
        house.worker.content.fetch(other, endless)


def test_two_who_want_one_blob_fetch_it_once(house: House) -> None:
    data = os.urandom(5000)
    descriptor = {"mediaType": "x", "digest": digest(data), "size": len(data)}
    told: list[tuple[str, int]] = []
    fetch = from_memory(data, told=told)
    threads = [threading.Thread(target=house.worker.content.fetch, args=(descriptor, fetch)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1


def test_what_is_written_is_held(house: House) -> None:
    content = house.worker.content
    with house.worker.hold() as held:
        name = content.write([b"a", b"b"], labels={"x": "y"})
        assert name == digest(b"ab")
        assert content.write([b"ab"], name) == name
        (lease,) = held
        assert ("content", name) in house.containerd.leased[lease]
        house.containerd.collect()
        assert content.has(name)
    house.containerd.collect()
    assert not content.has(name)
    with pytest.raises(errors.FailedPrecondition, match="unexpected digest"):
        content.write([b"ab"], digest(b"c"))
    assert house.containerd.ingests == {}
    content.write([b"outside"])
    house.worker.close()
    house.containerd.collect()
    assert (house.containerd.blobs, house.containerd.leased) == ({}, {})


def test_images_are_named(house: House) -> None:
    images = house.worker.images
    assert images.get("a") is None
    for data in (b"1", b"2"):
        target = {"mediaType": "m", "digest": digest(data), "size": 1}
        images.put("a", target, {"l": "v"})
        assert images.get("a") == target


# Layers


def test_layers_are_made_once(house: House) -> None:
    data, lower = layer(a="1")
    image = house.worker.image([Layer(lower.descriptor, lower.diff_id, from_memory(data))], Kind())
    assert image is not None
    top = house.saved(house.step(image, "b"), "top")
    assert top.layers(None, make=False) is None
    made = top.layers(Compression())
    assert made is not None
    assert [one["mediaType"].rpartition("+")[2] for one in made] == ["gzip", "gzip"]
    assert made[0]["digest"] == digest(data)
    assert top.layers(None, make=False) == made
    assert house.containerd.calls.count("diff_Diff") == 1
    assert [one.description for one in top.history()] == ["", "make b"]
    docker = top.layers(Compression(oci=False))
    assert docker is not None
    assert docker[1]["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.gzip"
    for kind in ("zstd", "uncompressed"):
        forced = top.layers(Compression(kind, force=True))
        assert forced is not None
        assert [one["annotations"] for one in forced] == [one["annotations"] for one in made]
        assert forced == top.layers(Compression(kind, force=True))
        assert top.layers(Compression(kind)) == made  # what is there is good enough
    packed = top.layers(Compression("estargz"))
    assert packed is not None and packed[0] == made[0] and packed == top.layers(Compression("estargz"))
    assert packed[1]["mediaType"].endswith("+gzip") and stargz.TOC_DIGEST in packed[1]["annotations"]
    assert top.layers(None, make=False) == made
    forced = top.layers(Compression("estargz", force=True))
    assert forced is not None and stargz.TOC_DIGEST in forced[0]["annotations"] and forced[1] == packed[1]
    early = top.layers(Compression(epoch=1000))
    assert early is not None
    assert early[0] == made[0]  # what came with the image stays
    assert early[1]["digest"] != made[1]["digest"]
    with tarfile.open(fileobj=io.BytesIO(house.worker.content.read_whole(early[1]["digest"]))) as archive:
        assert [(member.name, member.mtime) for member in archive] == [("b", 1000)]
    image.release()
    top.release()
    house.containerd.collect()
    house.crash()
    found = house.worker.load(Record(top.id, 0.0))
    assert found.layers(None, make=False) == made
    assert house.worker.content.has(made[1]["digest"])


def test_what_is_made_for_the_engine_is_compressed_for_others(house: House) -> None:
    """Layers of the engine's images are plain tars; whoever wants them elsewhere gets them as they ask."""
    top = house.saved(house.step(None, "a"), "top")
    plain = top.layers(Compression("uncompressed"))
    assert plain is not None
    assert plain[0]["mediaType"] == LAYER
    assert plain[0]["digest"] == plain[0]["annotations"]["containerd.io/uncompressed"]
    for kind in ("gzip", "zstd"):
        made = top.layers(Compression(kind))
        assert made is not None and made == top.layers(Compression(kind))
        assert made[0]["mediaType"] == f"{LAYER}+{kind}"
        assert made[0]["annotations"] == plain[0]["annotations"]
    assert top.layers(Compression("uncompressed")) == plain == top.layers(None)
    # An image of the engine's that is built upon is no different; what a registry has stays.
    data, lower = layer(b="1")
    diff = gzip.decompress(data)
    own = house.worker.image([Layer(house.containerd.put(diff), lower.diff_id)], Kind())
    assert own is not None
    made = own.layers(Compression())
    assert made is not None and made[0]["mediaType"] == f"{LAYER}+gzip"
    data, lower = layer(c="1")
    diff = gzip.decompress(data)
    descriptor = {"mediaType": LAYER, "digest": digest(diff), "size": len(diff)}
    pulled = house.worker.image([Layer(descriptor, lower.diff_id, from_memory(diff))], Kind())
    assert pulled is not None
    made = pulled.layers(Compression())
    assert made is not None and made[0]["mediaType"] == LAYER


def test_layers_are_made_at_the_same_time(house: House) -> None:
    top = None
    for name in "abc":
        top = house.step(top, name)
    house.containerd.meeting = threading.Barrier(3)
    made = top.layers(Compression())
    assert made is not None
    house.containerd.meeting = None
    assert [one["digest"] for one in made] == [one["digest"] for one in top.layers(None, make=False) or ()]
    house.containerd.fail = "content_Info"
    with pytest.raises(Broken):
        house.step(house.step(top, "d"), "e").layers(Compression())


def test_compressions_are_reproducible_and_times_bounded() -> None:
    data, _ = layer(a="1" * 3000, b="")
    plain = gzip.decompress(data)
    for kind in ("gzip", "zstd"):
        assert b"".join(compressed([plain], kind, None)) == b"".join(compressed([plain], kind, None))
    assert gzip.decompress(b"".join(compressed([plain[:100], plain[100:]], "gzip", 9))) == plain
    out = b"".join(rewritten(iter([plain[:700], plain[700:]]), 1_500_000_000))
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert [(one.name, one.size, one.mtime) for one in archive] == [
            ("a", 3000, 1_500_000_000),
            ("b", 0, 1_500_000_000),
        ]


# Merges and differences


def test_merges_are_made_when_they_are_needed(house: House) -> None:
    one = house.step(house.step(None, "a"), "b")
    other = house.step(None, "c")
    merged = house.worker.merge([one, None, other], Kind(description="merge"))
    assert merged is not None
    count = len(house.containerd.snaps)
    assert len(merged.layers(Compression()) or ()) == 3
    assert [one.description for one in merged.history()] == ["make a", "make b", "make c"]
    assert len(house.containerd.snaps) == count
    assert files(merged) == ["a", "b", "c"]
    assert files(house.step(merged, "d")) == ["a", "b", "c", "d"]
    house.saved(merged, "merged")
    for ref in (one, other, merged):
        ref.release()
    house.crash()
    assert files(house.worker.load(Record(merged.id, 0.0))) == ["a", "b", "c"]
    assert house.worker.merge([None], Kind()) is None


def test_merges_of_merges_and_files_in_the_way(house: House) -> None:
    one = house.step(None, "x", "old")
    other = house.step(None, "x", "new")
    inner = house.worker.merge([one, other], Kind())
    outer = house.worker.merge([inner, one], Kind())
    assert inner is not None
    assert outer is not None
    with inner.mounted() as place:
        assert (Path(place) / "x").read_text() == "new"
    with outer.mounted() as place:
        assert (Path(place) / "x").read_text() == "old"
        assert (Path(place) / "x").stat().st_nlink > 1
    assert [len(one.layers(Compression()) or ()) for one in (inner, outer)] == [2, 3]
    single = house.worker.merge([one], Kind())
    assert single is not None
    assert single.id == one.id


def test_differences(house: House) -> None:
    base = house.step(None, "a")
    middle = house.step(base, "b")
    top = house.step(middle, "c")
    found = house.worker.diff(base, top, Kind())
    assert found is not None
    assert files(found) == ["b", "c"]
    assert [one["digest"] for one in found.layers(Compression()) or ()] == [
        one["digest"] for one in (top.layers(Compression()) or ())[1:]
    ]
    apart = house.worker.diff(house.step(None, "a"), top, Kind())
    assert apart is not None
    assert "c" in files(apart)
    assert len(apart.layers(Compression()) or ()) == 1
    assert house.worker.diff(base, base, Kind()) is None
    assert house.worker.diff(None, None, Kind()) is None
    same = house.worker.diff(None, base, Kind())
    assert same is not None
    assert same.id == base.id
    nothing = house.worker.diff(base, None, Kind())
    assert nothing is not None
    assert files(nothing) == []


# Keeping


def test_what_is_used_and_what_it_costs(house: House) -> None:
    data, lower = layer(a="12345")
    image = house.worker.image([Layer(lower.descriptor, lower.diff_id, from_memory(data))], Kind())
    assert image is not None
    assert files(image) == ["a"]
    top = house.saved(house.step(image, "b", "123"), "top")
    keeper = WorkerKeeper(house.worker, str(house.root))
    assert {one.record.id: one.in_use for one in keeper.usages()} == {image.id: True, top.id: True}
    image.release()
    top.release()
    assert not any(one.in_use for one in keeper.usages())
    sizes = {one.record.id: one.size for one in (policies.measured(keeper, one) for one in keeper.usages())}
    assert sizes == {image.id: 5 + len(data), top.id: 8}  # this daemon's snapshots have their parents' files, too
    assert keeper.free_space() <= keeper.total_space()
    gone = policies.prune(keeper, [policies.Policy(all=True)])
    assert [one.record.id for one in gone] == [top.id, image.id]
    assert (house.containerd.snaps, house.containerd.blobs, house.containerd.leased) == ({}, {}, {})
    assert house.worker.store.records() == []


@pytest.mark.parametrize("lean", [True, False])
def test_a_layer_that_is_in_its_snapshot_alone_costs_nothing(house: House, lean: bool) -> None:
    top = house.saved(house.step(None, "b", "123"), "top")
    made = top.layers(Compression("uncompressed"))
    assert made is not None
    if lean:
        house.containerd.labels[made[0]["digest"]]["io.teu.content.lean"] = "true"
    assert top.size() == 3 + (0 if lean else made[0]["size"])


def test_what_was_just_made_was_just_used(house: House) -> None:
    """A prune by age leaves it, as it leaves what was just found."""
    data, lower = layer(a="1")
    image = house.worker.image([Layer(lower.descriptor, lower.diff_id, from_memory(data))], Kind())
    assert image is not None
    step, other = house.saved(house.step(image, "b"), "b"), house.saved(house.step(None, "c"), "c")
    merged = house.saved(house.worker.merge([step, other], Kind()), "merged")
    kept = house.worker.active(None, Kind("source.local", "a folder", retained=True))
    names = {image.id, step.id, other.id, merged.id, kept.id}
    for one in (kept, merged, other, step, image):
        one.release()
    records = {record.id: record for record in house.worker.store.records()}
    assert all(records[name].used and records[name].uses == 1 for name in names)
    keeper = WorkerKeeper(house.worker, str(house.root))
    assert policies.prune(keeper, [policies.Policy(all=True, keep_duration=3600)]) == []


def test_a_removal_that_cannot_be_written_down_is_done_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = house.saved(house.step(None, "a"), "kept")
    kept.release()
    keeper = WorkerKeeper(house.worker, str(house.root))
    store = house.worker.store

    def full(names: Any, *, durable: bool = True) -> None:
        raise errors.ResourceExhausted("write cache.db: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "give_up", full)
        assert keeper.remove(kept.id)
        assert len(house.containerd.snaps) == 1
    keeper.collect()
    assert (house.containerd.snaps, store.records(), store.keys_of(kept.id)) == ({}, [], [])


def test_pruning_all_forgets_the_empty_root_too(house: House) -> None:
    """What was asked to keep nothing keeps no key, though the empty root is no record."""
    keeper = WorkerKeeper(house.worker, str(house.root))
    kept = house.saved(house.step(None, "a"), "kept")
    house.worker.store.save("empty", "op", 0, [[("kept", "")]], SCRATCH)
    assert policies.prune(keeper, [policies.Policy(all=True)]) == []
    assert house.worker.store.keys_of(SCRATCH) == ["empty"]
    kept.release()
    assert [one.record.id for one in policies.prune(keeper, [policies.Policy(all=True)])] == [kept.id]
    assert house.worker.store.keys_of(SCRATCH) == []
    assert house.worker.store.backlinks("empty") == []
    house.worker.store.save("empty", "op", 0, [], SCRATCH)
    assert policies.prune(keeper, [policies.Policy(all=True)]) == []
    assert house.worker.store.keys_of(SCRATCH) == []


def test_what_an_image_has_is_shared(house: House) -> None:
    import json

    data, lower = layer(a="1")
    image = house.worker.image([Layer(lower.descriptor, lower.diff_id, from_memory(data))], Kind())
    assert image is not None
    assert files(image) == ["a"]
    house.saved(image, "image").release()
    config = house.containerd.put(json.dumps({"rootfs": {"diff_ids": [lower.diff_id]}}).encode())
    manifest = house.containerd.put(json.dumps({"config": config, "layers": [lower.descriptor]}).encode())
    keeper = WorkerKeeper(house.worker, str(house.root))
    assert [one.shared for one in keeper.usages()] == [False]
    house.worker.images.put("docker.io/library/x:latest", manifest)
    assert [one.shared for one in keeper.usages()] == [True]
    house.containerd.put(b"not json")
    house.worker.images.put("broken", {"mediaType": "m", "digest": digest(b"not json"), "size": 8})
    house.worker.images.put("missing", {"mediaType": "m", "digest": digest(b"?"), "size": 1})
    assert [one.shared for one in keeper.usages()] == [True]


@pytest.mark.parametrize("shares", [True, False], ids=["teu-containerd", "containerd"])
def test_what_a_build_made_is_linked_not_unpacked(house: House, shares: bool) -> None:
    house.containerd.shares = shares
    base = house.saved(house.step(None, "a"), "base")
    top = house.saved(house.step(base, "b"), "top")
    made = top.layers(Compression())
    assert made is not None
    image = house.worker.image([Layer(one, one["annotations"]["containerd.io/uncompressed"]) for one in made], Kind())
    assert image is not None
    assert files(image) == ["a", "b"]
    assert house.containerd.applied == 0
    chain = image.entry.snapshot
    snaps = house.containerd.snaps
    assert (snaps[chain]["place"] is snaps[top.entry.snapshot]["place"]) is shares, "one snapshot, two keys"
    assert (snaps[chain]["place"] / "b").stat().st_nlink == 2 - shares
    image.release()
    keeper = WorkerKeeper(house.worker, str(house.root))
    assert [one.shared for one in keeper.usages()] == [False, False]
    import json

    config = house.containerd.put(
        json.dumps(
            {"rootfs": {"diff_ids": [one["annotations"]["containerd.io/uncompressed"] for one in made]}}
        ).encode()
    )
    house.worker.images.put("x", house.containerd.put(json.dumps({"config": config}).encode()))
    assert [one.shared for one in keeper.usages()] == [True, True]


# Crashes


@pytest.mark.parametrize(
    "call",
    ["leases_Create", "snapshots_Prepare", "snapshots_Commit", "snapshots_Remove", "leases_Delete"],
)
def test_a_kill_at_any_call_leaves_nothing(house: House, call: str) -> None:
    kept = house.saved(house.step(None, "kept"), "kept")
    try:
        house.containerd.fail = call
        ref = house.step(kept, "x")
        house.saved(ref, "x")
        ref.release()
        WorkerKeeper(house.worker, str(house.root)).remove(ref.id)
    except Broken:
        pass
    house.crash()
    house.containerd.collect()
    assert house.names() == [kept.id]
    assert [record.id for record in house.worker.store.records()] == [kept.id]
    assert house.worker.store.records(dying=True) == []
    assert set(house.containerd.leased) == {house.lease(kept)}
    assert house.worker.store.results("x") == []
    assert files(house.worker.load(Record(kept.id, 0.0))) == ["kept"]
    assert os.listdir(house.root / "mounts") == []


def test_steps_that_were_running_leave_nothing(house: House) -> None:
    kept = house.saved(house.step(None, "kept"), "kept")
    house.worker.active(kept, Kind())
    context = house.worker.active(None, Kind(LOCAL_SOURCE, retained=True, data={"k": 1}))
    house.worker.content.write([b"unsaved"])
    house.containerd.ingests[house.worker.leases.names.write + "x"] = b"half"
    house.containerd.ingests["other"] = b"half"
    with kept.mounted():
        house.crash()
    house.containerd.collect()
    assert house.names() == sorted([kept.id, "active"])
    assert house.worker.find(LOCAL_SOURCE, k=1) == [context.id]
    assert house.worker.reopen(context.id) is not None
    assert (house.containerd.blobs, list(house.containerd.ingests)) == ({}, ["other"])


def test_records_whose_snapshots_are_gone_are_given_up(house: House) -> None:
    base = house.saved(house.step(None, "a"), "base")
    top = house.saved(house.step(base, "b"), "top")
    other = house.saved(house.step(None, "c"), "other")
    for ref in (base, top, other):
        ref.release()
    for name in (house.lease(top), house.lease(base)):
        del house.containerd.snaps[name]
    house.crash()
    assert [record.id for record in house.worker.store.records()] == [other.id]
    assert house.worker.store.results("base") == house.worker.store.results("top") == []
    house.worker.store.save("scratch", "sha256:" + "0" * 64, 0, [], "scratch")
    house.crash()
    assert house.worker.store.results("scratch") == []


def test_a_cache_that_was_damaged_leaves_nothing(house: House) -> None:
    ref = house.saved(house.step(house.step(house.step(None, "a"), "b"), "c"), "top")
    assert len(ref.layers(Compression()) or ()) == 3
    house.worker.store.close()
    for name in os.listdir(house.root):
        if name.startswith("cache.db"):
            (house.root / name).write_bytes(b"no database" * 100)
    house.begin()
    assert house.worker.store.begun_anew
    assert house.containerd.snaps == house.containerd.leased == {}


def test_two_builders_on_one_daemon(house: House) -> None:
    ref = house.saved(house.step(None, "a"), "top")
    house.worker.content.write([b"held by its lease"])
    other = ContainerdWorker(
        house.containerd,  # type: ignore[arg-type]
        Store(str(house.root / "other/cache.db")),
        str(house.root / "other/mounts"),
        snapshotter="native",
    )
    other.start()
    assert other.records.all() == []
    other.close()
    other.store.close()
    assert files(ref) == ["a"]
    house.crash()
    assert files(house.worker.load(Record(ref.id, 0.0))) == ["a"]


def test_a_settling_that_was_killed(house: House) -> None:
    active = house.worker.active(None, Kind(LOCAL_SOURCE, "context", retained=True))
    with active.mounted() as place:
        (Path(place) / "a").write_text("1")
    context = house.saved(active.commit(), "context")
    house.containerd.fail = "leases_Delete"
    with pytest.raises(Broken):
        house.step(context, "b")
    house.crash()
    assert files(house.worker.load(Record(context.id, 0.0))) == ["a"]
    assert house.worker.records.get(active.id) is None
    assert set(house.containerd.leased) == {house.lease(context)}


def test_many_threads_leave_nothing(house: House) -> None:
    base = house.saved(house.step(None, "base"), "base")
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                ref = house.step(base, f"f{number}-{turn}")
                top = house.step(ref, "top")
                ref.release()
                assert len(files(top)) == 3
                top.release()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    keeper = WorkerKeeper(house.worker, str(house.root))
    policies.prune(keeper, [policies.Policy(all=True)])
    assert house.names() == [base.id]
