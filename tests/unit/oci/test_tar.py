# SPDX-License-Identifier: Apache-2.0
"""Headers that teu.oci.tar writes, read by Python's own tarfile."""

from __future__ import annotations

import io
import tarfile

import pytest

from teu.oci import tar


def entry(name: str, data: bytes = b"", **fields: object) -> bytes:
    one = tar.Entry()
    one.name, one.size, one.mode, one.mtime = name, len(data), 0o640, 1_700_000_000 * 10**9
    for key, value in fields.items():
        setattr(one, key, value)
    return tar.pack(one) + data + bytes(-len(data) % tar.BLOCK)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("plain", {}),
        ("folder/" * 20 + "name", {}),
        ("x" * 300, {}),
        ("ü\N{GRINNING FACE}", {"xattrs": {"user.a": b"1\0\n2"}}),
        ("fraction", {"mtime": 1_700_000_000 * 10**9 + 5}),
        ("owner", {"uid": 4_000_000_000, "gid": 3}),
    ],
)
def test_others_read_what_is_written(name: str, fields: dict[str, object]) -> None:
    packed = entry(name, b"data", **fields) + entry("second", b"more")
    assert len(packed) % tar.BLOCK == 0
    with tarfile.open(fileobj=io.BytesIO(packed + tar.END)) as archive:
        first, second = archive.getmembers()
        assert (first.name, first.mode, first.uid) == (name, 0o640, fields.get("uid", 0))
        content = archive.extractfile(first)
        assert content is not None and content.read() == b"data"
        assert second.name == "second"


def test_a_header_is_a_block_of_ustar() -> None:
    block = entry("plain")
    assert len(block) == tar.BLOCK
    assert block[257:265] == b"ustar\0" + b"00"
