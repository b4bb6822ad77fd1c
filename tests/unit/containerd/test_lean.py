# SPDX-License-Identifier: Apache-2.0
"""Layers that are made of committed snapshots: their large files are written when somebody reads the blob, and not
before; until then the snapshot stays, whoever lets go of it."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from containerd_parts import make_context, root_only
from layertools import digest

from teu.api.services.diff.v1 import diff_pb2
from teu.containerd.core.errors import AlreadyExists, DataLoss, NotFound, ResourceExhausted
from teu.containerd.services.diff import TAR, Diff
from teu.containerd.state import Context
from teu.containerd.stores import lean
from teu.linux import trees
from teu.oci.labels import LEAN

pytestmark = root_only

LARGE = os.urandom(3 << 20)


class House:
    """A daemon's stores, which may be made anew as after a kill."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.context = make_context(root)
        self.context.leases.create("n", "l", {})

    def again(self) -> Context:
        self.context.close()
        self.context = make_context(self.root)
        return self.context

    def snapshot(self, name: str, parent: str, **files: bytes) -> Path:
        """The folder of its changes."""
        store = self.context.snapshots
        (mount,) = store.prepare("n", "overlayfs", "active", parent, {}, "l")
        upper = next((o.partition("=")[2] for o in mount.options if o.startswith("upperdir=")), mount.source)
        for path, data in files.items():
            (Path(upper) / "d").mkdir(exist_ok=True)
            (Path(upper) / "d" / path).write_bytes(data)
            os.utime(Path(upper) / "d" / path, ns=(1, 1_600_000_000_000_000_000))
        store.commit("n", "overlayfs", name, "active", {}, lease="l")
        return Path(upper)

    def diff(self, compression: str = "", right: str = "top") -> Any:
        """The descriptor of the layer that is upon `base`."""
        store = self.context.snapshots
        request = diff_pb2.DiffRequest(media_type=TAR + compression)
        request.left.extend(store.view("n", "overlayfs", "left", "base", {}))
        request.right.extend(store.view("n", "overlayfs", "right", right, {}))
        for key in ("left", "right"):
            store.remove("n", "overlayfs", key)
        call: Any = SimpleNamespace(namespace="n", lease="l", cancelled=lambda: False)
        return Diff(self.context).Diff(request, call).diff

    def read(self, name: str, namespace: str = "n") -> bytes:
        with open(self.context.content.open(namespace, name), "rb") as file:
            return file.read()

    def taken(self) -> int:
        """Bytes on the disk below `content`."""
        return sum(path.stat().st_blocks * 512 for path in (self.root / "root/content").rglob("*") if path.is_file())

    @property
    def lean(self) -> list[str]:
        return os.listdir(self.root / "root/content/lean")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    made.snapshot("base", "", base=b"1")
    made.snapshot("top", "base", **{"large": LARGE, "small": b"2", "l\udcffrge": LARGE[::-1]})
    yield made
    made.context.close()


def test_a_large_file_is_written_when_it_is_read(house: House) -> None:
    plain = house.diff("+gzip")  # to have something to compare with: that is never lean
    assert not house.lean and plain.digest != ""
    before = house.taken()
    made = house.diff()
    assert house.taken() - before < 200_000 < len(LARGE) < made.size
    info = house.context.content.info("n", made.digest)
    assert (info.size, info.labels) == (made.size, {LEAN: "true"})
    assert house.diff() == made, "again, it is there"
    assert house.lean == [made.digest.partition(":")[2]] and not os.listdir(house.root / "root/content/ingest")
    data = house.read(made.digest)
    assert digest(data) == made.digest and len(data) == made.size
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        found = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        assert sorted(found) == ["d/large", "d/l\udcffrge", "d/small"]
        large = found["d/large"]
        assert large is not None and large.read() == LARGE
    import gzip

    assert gzip.decompress(house.read(plain.digest)) == data
    assert not house.lean, "it is a blob as any other now"
    assert not house.context.content.info("n", made.digest).labels
    assert house.read(made.digest) == data and house.diff() == made and not house.lean


def test_few_bytes_and_trees_that_change_are_written(house: House) -> None:
    house.snapshot("little", "base", little=b"3" * 1000)
    house.diff(right="little")
    assert not house.lean
    store = house.context.snapshots
    (mount,) = store.prepare("n", "overlayfs", "active", "base", {}, "l")
    upper = next(option.partition("=")[2] for option in mount.options if option.startswith("upperdir="))
    Path(upper, "large").write_bytes(LARGE)
    request = diff_pb2.DiffRequest(media_type=TAR, right=[mount])
    request.left.extend(store.view("n", "overlayfs", "left", "base", {}))
    call: Any = SimpleNamespace(namespace="n", lease="l", cancelled=lambda: False)
    made = Diff(house.context).Diff(request, call).diff
    assert not house.lean and digest(house.read(made.digest)) == made.digest


def test_the_snapshot_stays_as_long_as_it_is_needed(house: House) -> None:
    made = house.diff()
    context = house.context
    context.leases.create("n", "keeps", {})
    with context.database.transaction():
        context.leases.hold("n", "keeps", "content", made.digest)
    for key in ("top", "base"):
        context.snapshots.remove("n", "overlayfs", key)
    context.collector.collect()
    assert len(os.listdir(house.root / "root/snapshots/overlayfs")) == 2
    context = house.again()
    context.collector.collect()
    assert digest(house.read(made.digest)) == made.digest
    context.collector.collect()
    assert not os.listdir(house.root / "root/snapshots/overlayfs"), "the blob has its own files now"
    assert digest(house.read(made.digest)) == made.digest


def test_a_blob_that_nobody_wants_goes_with_what_it_needed(house: House) -> None:
    made = house.diff()
    for key in ("top", "base"):
        house.context.snapshots.remove("n", "overlayfs", key)
    house.context.content.delete("n", made.digest)
    house.context.collector.collect()
    assert not house.lean
    house.context.collector.collect()
    assert not os.listdir(house.root / "root/snapshots/overlayfs")
    with pytest.raises(NotFound):
        house.context.content.open("n", made.digest)


def test_another_namespace_gets_a_whole_one(house: House) -> None:
    made = house.diff()
    content = house.context.content
    with content.writer("other", "ref", expected=made.digest) as writer:
        assert writer.offset == made.size, "its file is there"
        writer.commit(0, made.digest, {})
    assert not house.lean and digest(house.read(made.digest, "other")) == made.digest


def test_the_same_written_in_whole_takes_its_place(house: House) -> None:
    made = house.diff()
    (folder,) = house.lean
    data = Path(house.root / "root/content/lean" / folder / "data").read_bytes()
    assert digest(data) != made.digest, "it has holes"
    copy = house.root / "copy"
    shutil.copytree(house.root / "root/content/lean", copy)
    whole = house.read(made.digest)
    house.context.content.delete("n", made.digest)
    house.context.collector.collect()
    assert house.diff() == made and house.lean
    content = house.context.content
    with content.writer("n", "ref") as writer, pytest.raises(AlreadyExists):
        writer.write(whole)
        writer.commit(0, "", {})
    assert not house.lean and house.read(made.digest) == whole
    assert not content.info("n", made.digest).labels


def test_files_that_are_not_the_same_any_more(house: House) -> None:
    """Somebody has written to a snapshot of ours: what is read is never something else than what was packed."""
    upper = house.snapshot("bad", "base", large=LARGE)
    made = house.diff(right="bad")
    with open(upper / "d/large", "r+b") as file:
        file.write(b"other")
    with pytest.raises(DataLoss, match="is damaged: with the files of snapshot"):
        house.read(made.digest)
    with open(upper / "d/large", "r+b") as file:
        file.write(LARGE[:5])
    os.rename(upper / "d", upper / "moved")
    os.symlink("moved", upper / "d")
    with pytest.raises(OSError, match="symbolic links"):
        house.read(made.digest)
    os.unlink(upper / "d")
    with pytest.raises(NotFound):
        house.read(made.digest)
    os.rename(upper / "moved", upper / "d")
    assert digest(house.read(made.digest)) == made.digest


@pytest.mark.parametrize("moment", ["copy", "digest", "rename", "forget"])
def test_a_kill_over_the_filling(house: House, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    made = house.diff()

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "rename":
            patch.setattr(os, "rename", killed)
        elif moment == "forget":
            patch.setattr(lean.Lean, "forget", killed)
        else:
            patch.setattr(lean, f"_{moment}", killed)
        with pytest.raises(KeyboardInterrupt):
            house.read(made.digest)
    house.again()
    assert digest(house.read(made.digest)) == made.digest
    assert not house.lean


def test_a_kill_over_the_removal(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = house.diff()
    house.context.content.delete("n", made.digest)
    with monkeypatch.context() as patch:
        patch.setattr(trees, "discard_tree", lambda path: None)
        house.context.collector.collect()
    assert house.lean
    house.again()
    assert not house.lean


def test_a_snapshot_that_goes_meanwhile(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the packing and the commit of the blob."""
    put = lean.Lean.put

    def late(self: Any, *arguments: Any) -> None:
        for key in ("top", "base"):
            house.context.snapshots.remove("n", "overlayfs", key)
        house.context.snapshots.collect()
        put(self, *arguments)

    monkeypatch.setattr(lean.Lean, "put", late)
    with pytest.raises(NotFound, match="does not exist"):
        house.diff()
    assert not house.lean


def test_a_full_disk_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = house.diff()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", full)
        with pytest.raises((OSError, ResourceExhausted), match="No space left"):
            house.read(made.digest)
    assert digest(house.read(made.digest)) == made.digest


def test_file_systems_that_do_not_copy(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = house.diff()

    def across(*_: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", across)
    assert hashlib.sha256(house.read(made.digest)).hexdigest() == made.digest.partition(":")[2]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"parts": 3}', '{"snapshotter": "", "snapshot": "", "parts": [[1]]}']
)
def test_a_damaged_record_of_parts(house: House, text: str) -> None:
    made = house.diff()
    (folder,) = house.lean
    (house.root / "root/content/lean" / folder / "parts").write_text(text)
    context = house.again()
    with pytest.raises(NotFound):
        context.content.open("n", made.digest)
    assert house.diff(right="base") is not None
    context.content.delete("n", made.digest)
    context.collector.collect()
    assert not house.lean
    assert house.diff() == made and digest(house.read(made.digest)) == made.digest
