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

    def store(self, stream: archive.Stream, size: int, expected: str, name: str) -> str:
        data = b""
        while chunk := stream.read(7777):
            data += chunk
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if expected and digest != expected:
            raise ArchiveError(f"archive entry {name} has digest {digest}")
        assert len(data) == size
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
    return {"c.json": config, "l/VERSION": b"1.0", "l/json": b"{}", "l/layer.tar": layer,
            "manifest.json": json.dumps([row]).encode()}  # fmt: skip


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
    export = ExportImage(images[0].names, images[0].target, [manifest["config"], *manifest["layers"]],
                         manifest["config"]["digest"], [layer["digest"] for layer in manifest["layers"]])  # fmt: skip
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
        (climbing("a", tarfile.CHRTYPE), "neither file, folder nor link"),
        (tar(docker_archive(tar({"f": b"x" * 9000}), []))[:9000], "cut short|unexpected end|invalid tar|EOF"),
        (gzip.compress(tar(docker_archive(b"x" * 90000, [])))[:-50], "unexpected end"),
        (gzip.compress(b"x" * 90000)[:50] + b"\xff" * 500, "corrupt gzip|unexpected end|invalid tar"),
    ],
)
def test_archives_that_lie(data: bytes, message: str) -> None:
    with pytest.raises((ArchiveError, image_spec.SpecError), match=message):
        read(data)


def test_concatenated_gzip_members() -> None:
    data = tar(docker_archive(tar({"f": b"x"}), []))
    assert read(gzip.compress(data[:3000]) + gzip.compress(data[3000:]))[0]
