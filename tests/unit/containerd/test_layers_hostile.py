# SPDX-License-Identifier: Apache-2.0
"""Layers that were made to hurt, or by sloppy programs: each comes to an end, with its content or with a reason."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import root_only
from layertools import Bind, apply, compare, names, tar

from teu.containerd.core import errors
from teu.containerd.core.errors import Cancelled, Error, Internal, InvalidArgument
from teu.containerd.layers import run, streams
from teu.containerd.snapshotters import local
from teu.containerd.state import Context
from teu.linux import trees
from teu.oci import tar as own_tar

pytestmark = [root_only]


@pytest.fixture
def folder(context: Context) -> Path:
    """On the disk file system of the stores."""
    made = Path(context.root, "tree")
    made.mkdir()
    return made


def header(name: str = "f", **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


PAX = b"x"


def extended(text: bytes, kind: bytes = PAX) -> bytes:
    return header("ext", type=kind, size=len(text)) + text + bytes(-len(text) % 512)


def record(key: str, value: bytes) -> bytes:
    body = b" %s=%s\n" % (key.encode(), value)
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return b"%d%s" % (length, body)


def test_after_the_end_there_is_nothing_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(gzip.compress(b"content"))
    with open(tmp_path / "blob", "rb") as blob:
        source = streams.Inflated(blob.fileno())
        assert [source.next_chunk() for _ in range(4)] == [b"content", b"", b"", b""]
    (tmp_path / "blob").write_bytes(gzip.compress(b"content")[:-9])
    with open(tmp_path / "blob", "rb") as blob:
        source = streams.Inflated(blob.fileno())
        for _ in range(3):
            with pytest.raises(streams.StreamError):
                while source.next_chunk():
                    pass


@pytest.mark.parametrize("packed", [False, True])
def test_cut_after_each_block(context: Context, folder: Path, packed: bool) -> None:
    """Without end marker, without data, within a header's data: unpacked, or refused with a word on the end."""
    data = tar(("a", b"x" * 700), ("d/", None), ("d/b", b"y"), ("e", b"", {"pax_headers": {"mtime": "1.5"}}))
    for length in range(0, len(data) if packed else 8 * 512, 512):
        cut = gzip.compress(data[:length]) if packed else data[:length]
        try:
            apply(context, cut, [Bind(folder)])
        except InvalidArgument as error:
            assert "unexpected end of the archive" in error.message, length


def test_numbers_that_the_kernel_does_not_know(context: Context, folder: Path) -> None:
    for key, value, words in (
        ("uid", 1 << 40, "has the owner"),
        ("gid", (1 << 32) - 1, "has the owner"),
        ("uid", -1, "has the owner"),
        ("devmajor", 1 << 40, "cannot be"),
    ):
        fields: dict[str, Any] = {key: value}
        if key == "devmajor":
            fields["type"] = tarfile.CHRTYPE
            block = bytearray(header(type=tarfile.CHRTYPE))
            block[329:337] = b"\x80" + value.to_bytes(7, "big")
            block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
            data = bytes(block)
        else:
            data = extended(record(key, b"%d" % value)) + header()
        with pytest.raises(InvalidArgument, match=words):
            apply(context, data, [Bind(folder)])
    apply(context, extended(record("mtime", b"9" * 30)) + header("late"), [Bind(folder)])
    assert os.stat(folder / "late").st_mtime == 0
    with pytest.raises(InvalidArgument, match="zero byte"):
        apply(context, extended(record("linkpath", b"a\0b")) + header("l", type=tarfile.SYMTYPE), [Bind(folder)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uid", b"1_0"),
        ("uid", b" 1"),
        ("size", "٣".encode()),
        ("gid", b"9" * 5000),
        ("size", b""),
        ("mtime", b"1_0"),
        ("mtime", b"0.-5"),
        ("GNU.sparse.map", b"0,x" + b"\0" * 5000),
        ("GNU.sparse.major", b"1"),
        ("SCHILY.xattr.user.a\0b", b"v"),
        ("\0", b"v"),
    ],
    ids=range(11),
)
def test_what_is_no_number_and_no_name_is_said_in_a_few_words(
    context: Context, folder: Path, key: str, value: bytes
) -> None:
    records = record(key, value) + (record("GNU.sparse.size", b"5") if "map" in key else b"")
    with pytest.raises(InvalidArgument) as refused:
        apply(context, extended(records) + header(size=1) + b"x".ljust(512, b"\0"), [Bind(folder)])
    said = refused.value.message
    assert "in a pax header" in said or "bad sparse map" in said
    assert len(said) < 400 and "literal" not in said and "embedded" not in said
    assert os.listdir(folder) == []


@pytest.mark.parametrize("number", [b"-1", b"0o17", b"1_0", b"+7", b"8"])
def test_octal_is_octal(context: Context, folder: Path, number: bytes) -> None:
    block = bytearray(header())
    block[136:148] = number.ljust(12, b"\0")
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    with pytest.raises(InvalidArgument, match="bad number"):
        apply(context, bytes(block), [Bind(folder)])


def test_headers_without_number(context: Context, folder: Path) -> None:
    """Thousands of them before one entry are read; what they hold is bounded, however much of it there is."""
    data = b"".join(extended(record("comment", b"c%d" % n)) for n in range(5000))
    data += b"".join(extended(b"n%d\0" % n, b"L") for n in range(500)) + header("real", size=1) + b"x".ljust(512, b"\0")
    apply(context, data, [Bind(folder)])
    assert (folder / "n499").read_bytes() == b"x"
    large = extended(record("comment", b"c" * (1 << 20)))
    with pytest.raises(InvalidArgument, match="extended headers too long"):
        apply(context, large * 9 + header(), [Bind(folder)])
    # containerd and docker pass over what is said for all entries
    apply(context, extended(record("path", b"everywhere"), b"g") + header("here"), [Bind(folder)])
    assert (folder / "here").exists() and not (folder / "everywhere").exists()


def test_sparse_maps_cost_what_they_are(context: Context, folder: Path) -> None:
    numbers = b"".join(b"%d\n0\n" % n for n in range(200_000))
    text = b"200000\n" + numbers
    map_ = text + bytes(-len(text) % 512)
    said = record("GNU.sparse.major", b"1") + record("GNU.sparse.minor", b"0") + record("GNU.sparse.name", b"holes")
    data = extended(said + record("GNU.sparse.realsize", b"200001")) + header(size=len(map_)) + map_
    apply(context, data, [Bind(folder)])
    assert os.stat(folder / "holes").st_size == 200_001
    with pytest.raises(InvalidArgument, match="unexpected end"):
        apply(context, data[: -len(map_) // 2], [Bind(folder)])


def test_deep_trees_are_packed_unpacked_and_removed(context: Context, folder: Path) -> None:
    depth = 1100  # more than Python would recurse
    path = "/".join(["d"] * depth)
    apply(context, tar((f"{path}/f", b"deep")), [Bind(folder)])
    packed = compare(context, [], [Bind(folder, "ro")])
    assert f"{path}/f" in names(packed)
    assert local.disk_usage(os.fspath(folder)).inodes == depth + 2
    empty = folder.parent / "empty"
    empty.mkdir()
    assert ".wh.d" in names(compare(context, [Bind(folder, "ro")], [Bind(empty, "ro")]))
    # the same tree and an entry more: all folders on the way are told, in order
    apply(context, tar((f"{path}/g", b"")), [Bind(empty)])
    both = list(names(compare(context, [Bind(folder, "ro")], [Bind(empty, "ro")])))
    assert both[-1] == f"{path}/g" and both[-2] == f"{path}/.wh.f" and both[0] == "d" and len(both) == depth + 2
    apply(context, tar(("d/.wh..wh..opq", b"")), [Bind(folder)])
    assert list(folder.iterdir()) == [folder / "d"] and not list((folder / "d").iterdir())
    apply(context, tar((f"{path}/f", b"deep")), [Bind(folder)])
    apply(context, tar((".wh.d", b"")), [Bind(folder)])
    assert not list(folder.iterdir())
    trees.remove_tree(os.fspath(empty))  # Python 3.11 could not


def test_a_path_that_no_system_takes(context: Context, folder: Path) -> None:
    """3,000 parts, 8,000 letters: the reason fits into an answer of gRPC, and names both ends."""
    for name in ("/".join(["p"] * 3000), "n" * 8000, "\u00fc" * 8000, "\udcff" * 8000):
        with pytest.raises(Error, match="File name too long") as caught:
            apply(context, extended(record("path", os.fsencode(name))) + header(), [Bind(folder)])
        assert len(caught.value.wire_message().encode()) < 2000
    text = errors.NotFound("begin" + "%" * 10_000 + "end").wire_message()
    assert text.startswith("begin") and text.endswith("end: not found") and 3 * len(text) < errors.WIRE_LIMIT + 200


def test_a_container_cannot_lead_the_packing_out(context: Context, folder: Path, tmp_path: Path) -> None:
    """While a folder of its tree is packed it puts a link to the host in the folder's place."""
    (tmp_path / "secret").write_text("of the host")
    (folder / "d").mkdir()
    (folder / "d/large").write_bytes(os.urandom(16 << 20))  # more than what is on its way to us
    (folder / "d/secret").write_text("mine")
    packed: list[bytes] = []
    reading, writing = os.pipe()

    def take() -> None:
        with open(reading, "rb", buffering=0) as stream:
            while data := stream.read(1 << 20):
                if not packed:
                    os.rename(folder / "d", folder / "e")
                    os.symlink(tmp_path, folder / "d")
                packed.append(data)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        context.layers.compare([], [Bind(folder, "ro")], "", writing)
    finally:
        os.close(writing)
        thread.join()
    assert b"of the host" not in b"".join(packed) and b"mine" in b"".join(packed)


def test_a_worker_that_does_nothing_is_ended(context: Context, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blob never comes: a pipe that nobody writes to. And so is one whose client has left."""
    reading, writing = os.pipe()
    try:
        with monkeypatch.context() as patch, pytest.raises(Internal, match="did nothing for 0.5 seconds"):
            patch.setattr(run, "STUCK_SECONDS", 0.5)
            patch.setattr(run, "LOOK_SECONDS", 0.1)
            context.layers.apply(reading, "sha256:" + "0" * 64, [Bind(folder)])
        with pytest.raises(Cancelled):
            context.layers.apply(reading, "sha256:" + "0" * 64, [Bind(folder)], cancelled=lambda: True)
    finally:
        os.close(reading)
        os.close(writing)
    apply(context, tar(("after", b"")), [Bind(folder)])  # its place is free again
    big = folder / "big"
    with open(big, "wb") as file:
        file.truncate(64 << 30)
    until = time.monotonic() + 0.5
    with open(os.devnull, "wb") as out, pytest.raises(Cancelled):
        leaves = lambda: time.monotonic() > until  # noqa: E731
        context.layers.compare([], [Bind(folder, "ro")], "", out.fileno(), cancelled=leaves)
    big.unlink()


def test_who_has_left_does_not_wait_for_a_place(context: Context, folder: Path) -> None:
    layers = run.Layers(os.fspath(folder.parent), 1)
    with layers._slot(lambda: False), pytest.raises(Cancelled):
        layers.compare([], [Bind(folder, "ro")], "", -1, cancelled=lambda: True)


def test_each_prefix_of_hostile_headers_ends(folder: Path) -> None:
    """The reader alone, with every kind of header, cut at every block and with bytes turned."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, kind in enumerate((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)):
            info = tarfile.TarInfo("n" * 120 + str(number))
            info.type, info.linkname = kind, "l" * 150
            info.size = 600 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(bytes(600)))
    whole = out.getvalue()
    for at in range(0, len(whole), 512):
        for turned in (None, 124, 156, 345, 100, 136):
            data = bytearray(whole[: at + 512])
            if turned is not None:
                data[at + turned] ^= 0xB5
                block = data[at : at + 512]
                data[at + 148 : at + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
            chunks = [bytes(data), b""]
            source = own_tar.Source(partial(chunks.pop, 0))  # who asks after the end gets an IndexError
            try:
                for entry, stored in own_tar.entries(source):
                    assert stat.S_IMODE(entry.mode) == entry.mode
                    source.skip(stored)
                source.drain()
            except own_tar.TarError:
                pass
