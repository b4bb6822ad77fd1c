# SPDX-License-Identifier: Apache-2.0
"""Layers as eStargz: everybody reads them as gzip, and each file is found by the table of contents alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
import zlib
from typing import Any

import pytest

from teu.buildkit.core import errors
from teu.buildkit.worker import stargz


def archive(*names: str, big: int = 0) -> bytes:
    """A layer with one of everything, or with empty files of these names."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mtime = kind, len(data), 1_700_000_000
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))

        for name in names:
            add(name)
        if not names:
            add("folder", tarfile.DIRTYPE, mode=0o755)
            add("folder/small", data=b"small\n", uid=5, gid=6, pax_headers={"SCHILY.xattr.user.a": "b"})
            add("folder/empty")
            add("folder/big", data=random.Random(1).randbytes(big))
            add("link", tarfile.SYMTYPE, linkname="folder/small")
            add("hard", tarfile.LNKTYPE, linkname="folder/small")
            add("null", tarfile.CHRTYPE, devmajor=1, devminor=3)
            add("fifo", tarfile.FIFOTYPE, mtime=0)
    return out.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def member(blob: bytes, at: int) -> bytes:
    """What one member of gzip gives."""
    return zlib.decompressobj(31).decompress(blob[at:])


def test_every_file_is_found_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stargz, "CHUNK", 4096)
    plain = archive(big=10_000)
    packed = stargz.Stargz(iter([plain[:777], b"", plain[777:]]))
    blob = b"".join(packed)
    assert blob == b"".join(stargz.Stargz(iter([plain])))
    # As gzip: the same entries, and the table is behind the end.
    whole = gzip.decompress(blob)
    assert packed.plain == sha256(whole)
    assert packed.annotations[stargz.PLAIN_SIZE] == str(len(whole))

    def entries(data: bytes) -> list[Any]:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return [
                (one.name, one.type, one.size, one.mode, one.uid, one.mtime, one.linkname, one.pax_headers)
                for one in tar
            ]

    assert entries(whole) == entries(plain)
    # The footer says where the table is.
    end = blob[-51:]
    assert end[12:16] == b"SG\x16\x00" and end[32:38] == b"STARGZ" and gzip.decompress(end) == b""
    offset = int(end[16:32], 16)
    with tarfile.open(fileobj=io.BytesIO(member(blob, offset))) as tar:
        (one,) = tar
        file = tar.extractfile(one)
        assert file is not None and one.name == "stargz.index.json"
        text = file.read()
    assert packed.annotations[stargz.TOC_DIGEST] == sha256(text)
    toc = json.loads(text)
    assert toc["version"] == 1
    assert [(one["name"], one["type"]) for one in toc["entries"]] == [
        ("folder/", "dir"),
        ("folder/small", "reg"),
        ("folder/empty", "reg"),
        ("folder/big", "reg"),
        ("folder/big", "chunk"),
        ("folder/big", "chunk"),
        ("link", "symlink"),
        ("hard", "hardlink"),
        ("null", "char"),
        ("fifo", "fifo"),
    ]
    folder, small, empty, big, second, third, link, hard, null, fifo = toc["entries"]
    assert folder["mode"] == 0o755 and folder["modtime"] == "2023-11-14T22:13:20Z" and "modtime" not in fifo
    assert (small["uid"], small["gid"], small["size"], small["xattrs"]) == (5, 6, 6, {"user.a": "Yg=="})
    assert member(blob, small["offset"]).startswith(b"small\n")
    assert small["digest"] == small["chunkDigest"] == sha256(b"small\n")
    assert "chunkSize" not in small and "offset" not in empty and empty["digest"].endswith("7852b855")
    data = b""
    for number, (chunk, size) in enumerate(((big, 4096), (second, 4096), (third, 10_000 - 8192))):
        found = member(blob, chunk["offset"])[:size]
        assert chunk["chunkDigest"] == sha256(found)
        assert (chunk.get("chunkOffset", 0), chunk.get("chunkSize")) == (number * 4096, 4096 if number < 2 else None)
        data += found
    assert big["size"] == 10_000 == len(data)
    assert big["digest"] == sha256(data)
    assert link["linkName"] == hard["linkName"] == "folder/small"
    assert (null["devMajor"], null["devMinor"]) == (1, 3)


def test_levels() -> None:
    plain = archive(big=1000) + bytes(100_000)
    none, best = (len(b"".join(stargz.Stargz(iter([plain]), level))) for level in (0, 9))
    assert best < none


@pytest.mark.parametrize("name", ["stargz.index.json", "./stargz.index.json"])
def test_what_cannot_be_packed_so(name: str) -> None:
    with pytest.raises(errors.Unimplemented, match="cannot be an eStargz"):
        b"".join(stargz.Stargz(iter([archive(name)])))
