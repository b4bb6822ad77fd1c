# SPDX-License-Identifier: Apache-2.0
"""Layers: what is unpacked, what is refused, what is packed; against layers made by the standard library."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import stat
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import root_only
from layertools import MOMENT, Bind, apply, compare, content, digest, names, tar

from teu.containerd.core.errors import DataLoss, Error, InvalidArgument, ResourceExhausted
from teu.containerd.layers import compare as layers_compare
from teu.containerd.layers import run
from teu.containerd.state import Context
from teu.oci import tar as own_tar

pytestmark = root_only


@pytest.fixture
def folder(context: Context) -> Path:
    """On the disk file system of the stores."""
    made = Path(context.root, "tree")
    made.mkdir()
    return made


def test_everything_a_layer_can_hold(context: Context, folder: Path) -> None:
    long = "d" * 90 + "/" + "e" * 90 + "/" + "f" * 90
    data = tar(
        ("./", None, {"mode": 0o751}),
        ("bin/", None, {"mode": 0o755, "mtime": 1_500_000_000}),
        ("bin/su", b"x" * 5000, {"mode": 0o4755, "uid": 5, "gid": 6}),
        ("bin/sh", None, {"type": tarfile.SYMTYPE, "linkname": "su", "uid": 7}),
        ("bin/hard", None, {"type": tarfile.LNKTYPE, "linkname": "./bin/su"}),
        ("dev/null", None, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666}),
        ("dev/sda", None, {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0}),
        ("pipe", None, {"type": tarfile.FIFOTYPE, "mode": 0o622}),
        (long, b"long"),
        ("ünï", b"utf-8"),
        ("big-ids", b"", {"uid": 3_000_000, "gid": 4_000_000}),
        ("exact", b"", {"pax_headers": {"mtime": "1600000000.123456789"}}),
        ("caps", b"", {"pax_headers": {"SCHILY.xattr.user.note": "value"}}),
        ("forged/", None, {"pax_headers": {"SCHILY.xattr.trusted.overlay.opaque": "y"}}),
        ("shared/", None, {"mode": 0o2775, "gid": 50}),
        ("shared/file", b"", {"gid": 0}),
        ("/absolute", b"in"),
        ("a/../b/./c", b"cleaned"),
    )
    answer = apply(context, data, [Bind(folder)])
    assert (answer["digest"], answer["size"], answer["entries"]) == (digest(data), len(data), 18)
    found = os.stat(folder / "bin/su")
    assert (found.st_mode, found.st_uid, found.st_gid, found.st_size) == (stat.S_IFREG | 0o4755, 5, 6, 5000)
    assert found.st_mtime == MOMENT and found.st_nlink == 2
    assert os.stat(folder / "bin").st_mtime == 1_500_000_000  # though files came after it
    assert os.stat(folder).st_mode & 0o7777 == 0o751
    assert os.readlink(folder / "bin/sh") == "su" and os.lstat(folder / "bin/sh").st_uid == 7
    assert os.stat(folder / "dev/null").st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(os.stat(folder / "dev/sda").st_mode)
    assert os.stat(folder / "pipe").st_mode == stat.S_IFIFO | 0o622
    assert (folder / long).read_bytes() == b"long" and (folder / "ünï").read_bytes() == b"utf-8"
    assert os.stat(folder / "big-ids").st_uid == 3_000_000
    assert os.stat(folder / "exact").st_mtime_ns == 1_600_000_000_123_456_789
    assert os.getxattr(folder / "caps", "user.note") == b"value"
    with pytest.raises(OSError):
        os.getxattr(folder / "forged", "trusted.overlay.opaque")
    assert os.stat(folder / "shared/file").st_gid == 0
    assert (folder / "absolute").read_bytes() == b"in"
    assert (folder / "b/c").read_bytes() == b"cleaned"


def test_replacing(context: Context, folder: Path) -> None:
    """A later entry of the same name wins, whatever kinds the two are."""
    apply(
        context,
        tar(("a/", None), ("a/x", b""), ("b", b"old"), ("c", None, {"type": tarfile.SYMTYPE, "linkname": "b"})),
        [Bind(folder)],
    )
    apply(context, tar(("a", b"file"), ("b/", None), ("c", b"no link"), ("b/y", b"")), [Bind(folder)])
    assert (folder / "a").read_bytes() == b"file" and (folder / "b/y").exists()
    assert not (folder / "c").is_symlink() and (folder / "c").read_bytes() == b"no link"


def test_entries_take_effect_in_their_order(context: Context, folder: Path) -> None:
    """Threads make the files; what depends on one that was just named sees it, again and again."""
    members: list[Any] = [("first", b"0"), ("same", None, {"type": tarfile.SYMTYPE, "linkname": "."})]
    for n in range(70):
        at, text = f"d{n % 7}/{n}", b"%d" % n
        members += [
            (f"{at}.linked", text),
            (f"{at}.link", None, {"type": tarfile.LNKTYPE, "linkname": f"{at}.linked"}),
            (f"{at}.again", b"old"),
            (f"same/{at}.again", text),  # by another path
            (f"{at}.turns", b"old"),
            (f"{at}.turns/", None),
            (f"{at}.turns/in", text),
            (f"{at}.falls/", None),
            (f"{at}.falls/in", b"old"),
            (f"{at}.falls", text),
            (f"{at}.points", b"old"),
            (f"{at}.points", None, {"type": tarfile.SYMTYPE, "linkname": f"{n}.linked"}),
            (f"{at}.points", text),
            (f"{at}.shared/before", text),
            (f"{at}.shared/", None, {"mode": 0o2755, "gid": 99}),
            (f"{at}.shared/after", text),
        ]
    answer = apply(context, tar(*members), [Bind(folder)])
    assert answer["entries"] == len(members)
    for n in range(70):
        at, text = f"d{n % 7}/{n}", b"%d" % n
        for name in ("linked", "link", "again", "turns/in", "falls", "points", "shared/before", "shared/after"):
            assert (folder / f"{at}.{name}").read_bytes() == text, (n, name)
        assert os.stat(folder / f"{at}.link").st_ino == os.stat(folder / f"{at}.linked").st_ino
        assert not (folder / f"{at}.points").is_symlink()
        for name in ("shared/before", "shared/after"):  # both have the owner that their entries say
            assert os.stat(folder / f"{at}.{name}").st_gid == 0
            assert os.stat(folder / f"{at}.{name}").st_mtime == MOMENT
    assert len(os.listdir(folder / "d0")) == 7 * 10


def test_more_directories_than_stay_open(context: Context, folder: Path) -> None:
    """Files find their directory, however many others come between."""
    members: list[Any] = [(f"d{n}/", None) for n in range(700)]
    members += [(f"d{n}/{name}", b"%d" % n) for n in range(700) for name in "abc"]
    apply(context, tar(*members), [Bind(folder)])
    for n in range(700):
        assert sorted(os.listdir(folder / f"d{n}")) == ["a", "b", "c"]
        assert (folder / f"d{n}/c").read_bytes() == b"%d" % n


def test_whiteouts_after_files_of_the_same_layer(context: Context, folder: Path) -> None:
    apply(context, tar(*((f"d/below{n}", b"") for n in range(50)), ("e/below", b"")), [Bind(folder)])
    members: list[Any] = []
    for n in range(50):
        members += [(f"d/own{n}", b"own"), (f"d/.wh.below{n}", b""), (f"d/gone{n}", b"own"), (f"d/.wh.gone{n}", b"")]
    members += [("e/own", b"own"), ("e/.wh..wh..opq", b""), ("e/late", b"own")]
    apply(context, tar(*members), [Bind(folder)])
    assert sorted(os.listdir(folder / "d")) == sorted(f"own{n}" for n in range(50))
    assert sorted(os.listdir(folder / "e")) == ["late", "own"]


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (("bad/" + "n" * 300, b"x"), "unpack 'bad/nnn.*: File name too long"),
        (("file99/x", b"x"), "'file99' is not a directory, but the layer has entries in it"),
        (("gone", None, {"type": tarfile.LNKTYPE, "linkname": "nowhere"}), "'gone' is a hard link to 'nowhere'"),
    ],
)
@pytest.mark.parametrize("after", [0, 500])
def test_the_first_failure_is_told(
    context: Context, folder: Path, member: tuple[str, bytes | None], said: str, after: int
) -> None:
    """What precedes the entry that fails is there, in whatever thread it failed, and whatever would follow."""
    before = [(f"file{n}", b"%d" % n) for n in range(100)]
    data = tar(*before, member, *((f"later{n}", b"") for n in range(after)), *[("../out", b"")] * bool(after))
    with pytest.raises(Error, match=said):
        apply(context, data, [Bind(folder)])
    for name, text in before:
        assert (folder / name).read_bytes() == text


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("dots", ("../escaped", b"x")),
        ("deep dots", ("a/../../escaped", b"x")),
        ("absolute dots", ("/../escaped", b"x")),
        ("hard link out", ("h", None, {"type": tarfile.LNKTYPE, "linkname": "../outside"})),
        ("device out", ("../dev", None, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})),
        ("whiteout of nothing", (".wh.", b"")),
        ("whiteout of the root", (".wh..", b"")),
        ("whiteout above", ("../.wh.outside", b"")),
        ("whiteout of dots", (".wh...", b"")),
        ("root as a file", ("./", None, {"type": tarfile.SYMTYPE, "linkname": "/etc"})),
        ("whiteout device", ("w", None, {"type": tarfile.CHRTYPE, "devmajor": 0, "devminor": 0})),
    ],
)
def test_what_climbs_out_is_refused(
    context: Context, folder: Path, name: str, member: tuple[str, bytes | None]
) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"safe")
    with pytest.raises(InvalidArgument, match="failed to extract layer sha256:.*entry"):
        apply(context, tar(("first", b""), member), [Bind(folder)])
    assert sorted(path.name for path in folder.iterdir()) == ["first"]
    assert outside.read_bytes() == b"safe" and not (folder.parent / "escaped").exists()


def test_links_lead_nowhere_but_into_the_tree(context: Context, folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"safe")
    data = tar(
        ("up", None, {"type": tarfile.SYMTYPE, "linkname": "../outside"}),
        ("abs", None, {"type": tarfile.SYMTYPE, "linkname": str(outside)}),
        ("outside/", None),
        ("up/one", b"1"),
        (".wh.kept", b""),
        ("abs2", None, {"type": tarfile.SYMTYPE, "linkname": "/outside"}),
        ("abs2/two", b"2"),
    )
    apply(context, data, [Bind(folder)])
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert sorted(path.name for path in (folder / "outside").iterdir()) == ["one", "two"]
    with pytest.raises(Error):  # through a link to what is not in the tree
        apply(context, tar(("abs/x", b"")), [Bind(folder)])
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_whiteouts_and_opaque_folders(context: Context, folder: Path) -> None:
    snapshotter = context.snapshots.snapshotters["overlayfs"]
    below = tar(("d/", None), ("d/a", b"1"), ("d/s/", None), ("d/s/x", b""), ("e/", None), ("e/f", b""), ("g", b""))
    apply(context, below, snapshotter.prepare("a", "", {}))
    snapshotter.commit("base", "a", {})
    upper = tar(
        ("d/", None),
        ("d/b", b"2"),
        ("d/s/", None),
        ("d/s/y", b""),
        ("d/.wh..wh..opq", b""),
        (".wh.g", b""),
        ("e/.wh.f", b""),
        ("e/.wh.never", b""),
        (".wh..wh.plnk", b""),
        ("nowhere/.wh.x", b""),
    )
    apply(context, upper, snapshotter.prepare("b", "base", {}))
    snapshotter.commit("top", "b", {})
    seen = names(compare(context, [], snapshotter.view("v", "top", {})))
    assert sorted(seen) == ["d", "d/b", "d/s", "d/s/y", "e"]


@pytest.mark.parametrize("compression", ["gzip", "members", "padded", "zstd"])
def test_compressions(context: Context, folder: Path, compression: str) -> None:
    data = tar(("a", os.urandom(3_000_000)), ("b", b"x" * 3_000_000))
    middle = len(data) // 2
    if compression == "zstd":
        zstandard = pytest.importorskip("zstandard")
        packed = zstandard.compress(data[:middle]) + zstandard.compress(data[middle:])
    elif compression == "members":
        packed = gzip.compress(data[:middle]) + gzip.compress(data[middle:])
    else:
        packed = gzip.compress(data) + (bytes(1000) if compression == "padded" else b"")
    answer = apply(context, packed, [Bind(folder)])
    assert (answer["digest"], answer["blob"]) == (digest(data), digest(packed))
    assert (folder / "b").read_bytes() == b"x" * 3_000_000


def test_damaged_layers(context: Context, folder: Path) -> None:
    data = tar(("a", os.urandom(2_000_000)), ("b", b"x"))
    packed = gzip.compress(data)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    for bad, words in (
        (packed[:-50_000], "unexpected end"),
        (bytes(flipped), "gzip"),
        (data[:-1_500_000], "unexpected end of the archive"),
        (b"not a tar at all" * 100, "checksum"),
        (bz2.compress(data), "checksum"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            apply(context, bad, [Bind(folder)])
    with pytest.raises(DataLoss, match="is damaged"):
        apply(context, packed, [Bind(folder)], expected=digest(b"something else"))
    assert not [one for one in Path("/proc/self/mounts").read_text().splitlines() if context.state in one]


def test_full_disk_says_so(context: Context) -> None:
    """On a small tmpfs that only the worker mounts."""

    class Small:
        type, source, target = "tmpfs", "tmpfs", ""
        options = ["size=1m"]

    with pytest.raises(ResourceExhausted, match="No space left on device"):
        apply(context, tar(("a", bytes(4 << 20))), [Small()])


def gnu_sparse() -> bytes:
    """Old GNU format, type S: 1 MiB with 512 bytes at 4096 and 512 at the end."""
    header = bytearray(512)
    header[0:6] = b"sparse"
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[124:136] = b"%011o\0" % 1024
    header[136:148] = b"%011o\0" % MOMENT
    header[156:157] = b"S"
    header[257:265] = b"ustar  \0"
    for index, (offset, length) in enumerate(((4096, 512), ((1 << 20) - 512, 512))):
        header[386 + 24 * index : 398 + 24 * index] = b"%011o\0" % offset
        header[398 + 24 * index : 410 + 24 * index] = b"%011o\0" % length
    header[483:495] = b"%011o\0" % (1 << 20)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"A" * 512 + b"B" * 512 + tar(("after", b"z"))


def test_sparse_files(context: Context, folder: Path) -> None:
    apply(context, gnu_sparse(), [Bind(folder)])
    found = os.stat(folder / "sparse")
    assert (found.st_size, found.st_blocks * 512 < 1 << 20) == (1 << 20, True)
    data = (folder / "sparse").read_bytes()
    assert data[4096:4608] == b"A" * 512 and data[-512:] == b"B" * 512 and data.count(b"\0") == (1 << 20) - 1024
    assert (folder / "after").read_bytes() == b"z"
    pax = tar(
        (
            "GNUSparseFile.0/p",
            b"2\n0\n3\n1000\n2\n".ljust(512, b"\0") + b"abcde",
            {
                "pax_headers": {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "p",
                    "GNU.sparse.realsize": "2000",
                }
            },
        ),
        ("next", b"n"),
    )
    apply(context, pax, [Bind(folder)])
    data = (folder / "p").read_bytes()
    assert (len(data), data[:3], data[1000:1002]) == (2000, b"abc", b"de")
    assert (folder / "next").read_bytes() == b"n"


def test_packing_is_undone_by_unpacking(context: Context, folder: Path) -> None:
    """Pack a tree, unpack it elsewhere, pack that: the same bytes."""
    apply(
        context,
        tar(
            ("d/", None, {"mode": 0o1777}),
            ("d/" + "n" * 200, b"long name"),
            ("s", None, {"type": tarfile.SYMTYPE, "linkname": "t" * 200}),
            ("exact", b"1", {"pax_headers": {"mtime": "1600000000.5"}}),
            ("old", b"", {"mtime": -5}),
            ("uid", b"", {"uid": 9_999_999}),
            ("x", b"", {"pax_headers": {"SCHILY.xattr.user.k": "v"}}),
            ("h", b"linked"),
            ("h2", None, {"type": tarfile.LNKTYPE, "linkname": "h"}),
            ("null", None, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ),
        [Bind(folder)],
    )
    first = compare(context, [], [Bind(folder, "ro")])
    again = folder.parent / "again"
    again.mkdir()
    apply(context, first, [Bind(again)])
    assert compare(context, [], [Bind(again, "ro")]) == first
    seen = names(first)
    assert seen["exact"].mtime == 1_600_000_000.5 and seen["h2"].linkname == "h" and seen["old"].mtime == -5
    assert "d/" + "n" * 200 in seen and seen["s"].linkname == "t" * 200 and seen["uid"].uid == 9_999_999


def test_changes_of_an_overlay_and_of_plain_trees_agree(context: Context, folder: Path) -> None:
    base = tar(("d/", None), ("d/same", b"1"), ("d/gone", b"1"), ("d/changed", b"1"), ("dir/", None), ("dir/f", b""))
    changes = tar(("d/changed", b"22"), ("d/.wh.gone", b""), (".wh.dir", b""), ("new/", None), ("new/f", b"n"))
    made = {}
    for name in ("overlayfs", "native"):
        snapshotter = context.snapshots.snapshotters[name]
        apply(context, base, snapshotter.prepare("a", "", {}))
        snapshotter.commit("base", "a", {})
        apply(context, changes, snapshotter.prepare("b", "base", {}))
        made[name] = compare(context, snapshotter.view("v", "base", {}), snapshotter.mounts("b"))
        snapshotter.commit("top", "b", {})
        top = compare(context, snapshotter.mounts("v"), snapshotter.view("w", "top", {}))
        assert set(names(top)) == set(names(made[name])), "a view of the committed snapshot tells the same"
    for data in made.values():
        seen = set(names(data))
        assert seen - {"d"} == {"d/changed", "d/.wh.gone", ".wh.dir", "new", "new/f"}, name
        assert content(data, "d/changed") == b"22"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_packed_layers_are_compressed(context: Context, folder: Path, compression: str) -> None:
    (folder / "f").write_bytes(b"x" * 1_000_000)
    data = compare(context, [], [Bind(folder, "ro")], compression)
    if compression == "gzip":
        plain = gzip.decompress(data)
    else:
        plain = pytest.importorskip("zstandard").ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    assert content(plain, "f") == b"x" * 1_000_000 and len(data) < 10_000


def test_reader_agrees_with_tarfile_on_gnu_archives() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("n" * 300)
        info.size, info.uid, info.mtime = 3, 5_000_000, 1 << 40
        archive.addfile(info, io.BytesIO(b"abc"))
        info = tarfile.TarInfo("l")
        info.type, info.linkname = tarfile.SYMTYPE, "t" * 300
        archive.addfile(info)
    chunks = iter([out.getvalue()[at : at + 100] for at in range(0, len(out.getvalue()), 100)])
    source = own_tar.Source(lambda: next(chunks, b""))
    found = []
    for entry, stored in own_tar.entries(source):
        found.append((entry.name, source.read(stored), entry.uid, entry.mtime, entry.link))
    assert found == [("n" * 300, b"abc", 5_000_000, (1 << 40) * 10**9, ""), ("l", b"", 0, 0, "t" * 300)]


def test_memory_is_bounded(context: Context, folder: Path) -> None:
    """200 MB of zeros through a process that may have 100 MB."""
    import subprocess
    import sys
    import zlib

    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    info = tarfile.TarInfo("zeros")
    info.size = 200 << 20
    pieces = [packer.compress(info.tobuf())]
    pieces += [packer.compress(bytes(1 << 20)) for _ in range(200)] + [packer.compress(bytes(1024)), packer.flush()]
    blob = folder.parent / "blob"
    blob.write_bytes(b"".join(pieces))
    program = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); from teu.containerd.layers import streams;"
        "s = streams.Inflated(os.open(sys.argv[2], os.O_RDONLY))\n"
        "while s.next_chunk(): pass\n"
        # not ru_maxrss: that counts the process that this one was forked from
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    source = str(Path(own_tar.__file__).parents[2])
    done = subprocess.run([sys.executable, "-IS", "-c", program, source, str(blob)], capture_output=True, check=True)
    assert int(done.stdout) < 100_000, f"{done.stdout!r} KiB"


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_few_files_are_packed_as_a_worker_packs_them(
    context: Context, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    """The same bytes and errors, without a process; many files, and files that grow meanwhile, have one."""
    snapshotter = context.snapshots.snapshotters["overlayfs"]
    apply(context, tar(("d/", None), ("d/gone", b"1"), ("e/", None)), snapshotter.prepare("a", "", {}))
    snapshotter.commit("base", "a", {})
    changes = tar(("d/.wh.gone", b""), ("new/", None), ("new/f", b"n" * 3000), ("e/.wh..wh..opq", b""))
    apply(context, changes, snapshotter.prepare("b", "base", {}))
    started: list[str] = []
    start = run._start

    def counted(job: dict[str, Any], descriptors: tuple[int, ...]) -> Any:
        started.append(job["do"])
        return start(job, descriptors)

    monkeypatch.setattr(run, "_start", counted)

    def packed() -> tuple[dict[str, Any], bytes]:
        left, right = snapshotter.view(f"v{len(started)}", "base", {}), snapshotter.mounts("b")
        snapshotter.remove(f"v{len(started)}")
        with tempfile.TemporaryFile() as out:
            answer = context.layers.compare(left, right, compression, out.fileno())
            out.seek(0)
            return answer, out.read()

    here = packed()
    assert not started
    with monkeypatch.context() as patch:
        patch.setattr(run, "PACKED_MAX", 10)
        assert packed() == here and started == ["compare"]
        patch.setattr(layers_compare, "FEW_ENTRIES", 3)
        assert packed() == here and started == ["compare"] * 2
    with monkeypatch.context() as patch:
        patch.setattr(layers_compare, "PATH_MAX", 4)
        with pytest.raises(Error, match="File name too long: new/f"):
            packed()
    assert len(started) == 2
