# SPDX-License-Identifier: Apache-2.0
"""Image archives: both formats, all compressions, and those that lie."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from teu.oci import archive, image_spec
from teu.oci.archive import ArchiveError, ExportImage

ROOT = Path(__file__).parents[3]


class Memory:
    """archive.Sink in memory."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.stored = 0

    def store(self, stream: archive.Stream, size: int, expected: str, name: str) -> str:
        data = b""
        while chunk := stream.read(7777):
            data += chunk
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if expected and digest != expected:
            raise ArchiveError(f"archive entry {name} has digest {digest}")
        assert len(data) == size
        self.stored += 1
        self.blobs[digest] = data
        return digest

    def read(self, digest: str) -> bytes:
        return self.blobs[digest]


def tar(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tarball:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tarball.addfile(info, io.BytesIO(data))
        for info in more:
            tarball.addfile(info)
    return output.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def docker_archive(layer: bytes, tags: list[str], **changes: Any) -> dict[str, bytes]:
    config = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}}).encode()
    row = {"Config": "c.json", "RepoTags": tags, "Layers": ["l/layer.tar"], **changes}
    return {
        "c.json": config,
        "l/VERSION": b"1.0",
        "l/json": b"{}",
        "l/layer.tar": layer,
        "manifest.json": json.dumps([row]).encode(),
    }


def read(data: bytes) -> tuple[list[archive.ArchiveImage], Memory]:
    sink = Memory()
    return archive.read(io.BytesIO(data), sink), sink


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd])
def test_docker_archive(pack: Any) -> None:
    layer = tar({"file": b"x" * 5000})
    images, sink = read(pack(tar(docker_archive(layer, ["busybox:1", "a.b/c:2"]))))
    assert [image.names for image in images] == [["docker.io/library/busybox:1", "a.b/c:2"]]
    manifest = json.loads(sink.blobs[images[0].target["digest"]])
    assert manifest["layers"][0]["digest"] == digest(layer)
    image_spec.manifest(manifest)


def test_layer_by_a_link() -> None:
    files = docker_archive(tar({"file": b"x"}), ["busybox:1"], Layers=["m/layer.tar"])
    link = tarfile.TarInfo("m/layer.tar")
    link.type, link.linkname = tarfile.SYMTYPE, "../l/layer.tar"
    assert len(read(tar(files, link))[0]) == 1


def test_layout_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "busybox.tar"
    subprocess.run([sys.executable, ROOT / "packaging/make-busybox-image", path], check=True)
    images, sink = read(path.read_bytes())
    assert images[0].names == ["docker.io/library/busybox:latest"]
    manifest = json.loads(sink.blobs[images[0].target["digest"]])
    export = ExportImage(
        images[0].names,
        images[0].target,
        [manifest["config"], *manifest["layers"]],
        manifest["config"]["digest"],
        [layer["digest"] for layer in manifest["layers"]],
    )
    data = b"".join(archive.write([export], lambda d: [sink.blobs[d]]))
    again, other = read(data)
    assert again == images
    assert other.blobs == sink.blobs
    with tarfile.open(fileobj=io.BytesIO(data)) as tarball:
        table = tarball.extractfile("manifest.json")
        assert table
        assert json.load(table)[0]["RepoTags"] == ["busybox:latest"]


def test_the_image_of_the_package_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("a", "b"):
        subprocess.run([sys.executable, ROOT / "packaging/make-busybox-image", tmp_path / name], check=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def climbing(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return tar(docker_archive(tar({"f": b""}), []), info)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image archive|invalid tar"),
        (b"no tar at all" * 100, "invalid tar"),
        (tar({"file": b"x"}), "not an image archive"),
        (tar({"manifest.json": b"{"}), "manifest.json is not JSON"),
        (tar({"manifest.json": b"{}"}), "not a list"),
        (tar({"manifest.json": b'[{"Config": 1}]'}), "without Config"),
        (tar({"manifest.json": b'[{"Config": "gone"}]'}), "not in the archive"),
        (tar(docker_archive(b"x", [], Layers=["gone"])), "not in the archive"),
        (tar({**docker_archive(b"x" * 10, []), "l/layer.tar": b"y" * 10}), "its configuration says"),
        (tar({"blobs/sha256/" + "a" * 64: b"x"}), "has digest"),
        (tar({"blobs/sha256/short": b"x"}), "not named by a digest"),
        (climbing("../../etc/passwd"), "leads out of the archive"),
        (climbing("/etc/passwd"), "leads out of the archive"),
        (climbing("a", tarfile.SYMTYPE, "../../etc/passwd"), "leads out of the archive"),
        (climbing("n" * 5000), "too long"),
        (climbing("a", tarfile.CHRTYPE), "neither file, folder nor link"),
        (tar(docker_archive(tar({"f": b"x" * 9000}), []))[:9000], "cut short|unexpected end|invalid tar|EOF"),
        (gzip.compress(tar(docker_archive(b"x" * 90000, [])))[:-50], "unexpected end"),
        (gzip.compress(b"x" * 90000)[:50] + b"\xff" * 500, "corrupt gzip|unexpected end|invalid tar"),
    ],
    # Not the bytes: gzip writes the time into them, and a test keeps its name.
    ids=lambda value: "data" if isinstance(value, bytes) else None,
)
def test_archives_that_lie(data: bytes, message: str) -> None:
    with pytest.raises((ArchiveError, image_spec.SpecError), match=message):
        read(data)


def test_concatenated_gzip_members() -> None:
    data = tar(docker_archive(tar({"f": b"x"}), []))
    assert read(gzip.compress(data[:3000]) + gzip.compress(data[3000:]))[0]


def test_layers_by_links_as_old_docker_wrote_them() -> None:
    """Absolute ones, "/" being the archive, and folders that are links; those that lead in circles are told."""
    for path, links in {
        "m/layer.tar": {"m/layer.tar": "/l/layer.tar"},
        "m/k/layer.tar": {"m/k": "../j", "j": "/l"},
    }.items():
        infos = []
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            infos.append(info)
        assert len(read(tar(docker_archive(tar({"file": b"x"}), ["busybox:1"], Layers=[path]), *infos))[0]) == 1
    circle = tarfile.TarInfo("m")
    circle.type, circle.linkname = tarfile.SYMTYPE, "m"
    with pytest.raises(ArchiveError, match="too many levels"):
        read(tar(docker_archive(tar({"file": b"x"}), [], Layers=["m"]), circle))


def test_what_is_no_image_costs_nothing() -> None:
    """`load < export.tar`: ten thousand small files, and nothing is stored of them."""
    sink = Memory()
    with pytest.raises(ArchiveError, match="not an image archive.*import"):
        archive.read(io.BytesIO(tar({f"usr/share/{n}": b"%d" % n for n in range(10_000)})), sink)
    assert sink.stored == 0
    # of an image only what belongs to it
    layer = tar({"file": b"x"})
    _, sink = read(tar({**{f"more/{n}": b"%d" % n for n in range(100)}, **docker_archive(layer, ["busybox:1"])}))
    assert sink.stored == 3


def test_no_entry_gives_more_than_it_brings() -> None:
    text = b""
    for key, value in (("size", b"%d" % (1 << 50)), ("map", b"0,1"), ("name", b"big")):
        body = b" GNU.sparse.%s=%s\n" % (key.encode(), value)
        text += b"%d%s" % (len(body) + 2, body)
    info = tarfile.TarInfo("ext")
    info.type, info.size = tarfile.XHDTYPE, len(text)
    data = info.tobuf() + text.ljust(512, b"\0")
    info = tarfile.TarInfo("big")
    info.size = 1
    data += info.tobuf() + b"x".ljust(512, b"\0") + bytes(1024)
    with pytest.raises(ArchiveError, match="sparse"):
        read(data)


@pytest.mark.parametrize(("kind", "count"), [(tarfile.GNUTYPE_LONGNAME, 500), (tarfile.XHDTYPE, 5000)])
def test_headers_without_number(kind: bytes, count: int) -> None:
    text = b"c.json\0" if kind == tarfile.GNUTYPE_LONGNAME else b"13 comment=c\n"
    info = tarfile.TarInfo("ext")
    info.type, info.size = kind, len(text)
    data = (info.tobuf() + text.ljust(512, b"\0")) * count
    assert len(read(data + tar(docker_archive(tar({"f": b""}), ["busybox:1"])))[0]) == 1


def test_cut_after_each_block() -> None:
    """Whole or refused, and no third thing; the end marker may be missing."""
    data = tar(docker_archive(tar({"file": b"x" * 1000}), ["busybox:1"]))
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    for length in range(0, len(data) + 1, 512):
        for packed in (data[:length], gzip.compress(data[:length])):
            if length >= end:
                assert len(read(packed)[0]) == 1
            else:
                with pytest.raises(ArchiveError):
                    read(packed)


def test_windows_that_no_decoder_takes() -> None:
    """zstd's frame header says 2 GiB: refused in a sentence, in an archive and in what is imported."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3]) + bytes(100)
    with pytest.raises(ArchiveError, match="corrupt zstd"):
        read(frame)
    with pytest.raises(ArchiveError, match="corrupt zstd"):
        archive.decompressed(io.BytesIO(frame)).read(100)


def older_archive(*layers: bytes, **changes: bytes) -> dict[str, bytes]:
    """As docker wrote them before 1.10: no manifest.json, each layer with its part of the configuration."""
    files: dict[str, bytes] = {}
    parent = ""
    for number, layer in enumerate(layers):
        identity = f"{number:064x}"
        part = {
            "id": identity,
            "created": f"2015-01-0{number + 1}T00:00:00Z",
            "os": "linux",
            "architecture": "amd64",
            "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) {number}"]},
            "config": {"Cmd": ["sh"]},
        }
        if parent:
            part["parent"] = parent
        files |= {
            f"{identity}/VERSION": b"1.0",
            f"{identity}/json": json.dumps(part).encode(),
            f"{identity}/layer.tar": layer,
        }
        parent = identity
    files["repositories"] = json.dumps({"old/name": {"1": parent, "2": parent}}).encode()
    return {**files, **changes}


def test_archives_from_before_the_table() -> None:
    lower, upper = tar({"a": b"1"}), b""
    images, sink = read(tar(older_archive(lower, upper)))
    assert [image.names for image in images] == [["docker.io/old/name:1", "docker.io/old/name:2"]]
    manifest = image_spec.manifest(json.loads(sink.blobs[images[0].target["digest"]]))
    config = image_spec.config(json.loads(sink.blobs[manifest["config"]["digest"]]), 2)
    assert config["rootfs"]["diff_ids"] == [digest(lower), digest(upper)]
    assert [entry["created_by"] for entry in config["history"]] == ["/bin/sh -c #(nop) 0", "/bin/sh -c #(nop) 1"]
    assert config["config"] == {"Cmd": ["sh"]} and "parent" not in config and "id" not in config
    top = f"{1:064x}"
    circle = json.dumps({"parent": top}).encode()
    for name, value, words in (
        (f"{top}/json", b"[]", "not a JSON object"),
        (f"{top}/json", circle, "parents"),
        (f"{top}/json", json.dumps({"parent": "gone"}).encode(), "needs gone/json"),
        (f"{top}/json", json.dumps({"parent": 5}).encode(), "no text"),
        ("repositories", b"[]", "not an object"),
        ("repositories", b'{"a": {"b": 1}}', "not an object"),
    ):
        with pytest.raises((ArchiveError, image_spec.SpecError), match=words):
            read(tar(older_archive(lower, upper, **{name: value})))


def test_layouts_with_less_and_with_more() -> None:
    """Manifests without schemaVersion, as docker loads them; indexes in indexes; blobs that nothing leads to."""
    layer = tar({"a": b"1"})
    config = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}}).encode()
    manifest = json.dumps(
        {
            "config": image_spec.descriptor(image_spec.OCI_CONFIG, config),
            "layers": [image_spec.descriptor(image_spec.OCI_LAYER, layer)],
        }
    ).encode()
    top = image_spec.descriptor(image_spec.OCI_MANIFEST, manifest)
    blobs = [layer, config, manifest]
    for _ in range(30):
        index = json.dumps({"manifests": [top]}).encode()
        blobs.append(index)
        top = image_spec.descriptor(image_spec.OCI_INDEX, index)
    files = {"blobs/" + digest(data).replace(":", "/"): data for data in [*blobs, b"of nobody"]}
    files |= {"oci-layout": archive.LAYOUT, "index.json": json.dumps({"manifests": [top]}).encode()}
    images, sink = read(tar(files))
    assert [image.target for image in images] == [top]
    assert set(sink.blobs) == {digest(data) for data in blobs}
