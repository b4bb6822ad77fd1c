# SPDX-License-Identifier: Apache-2.0
"""Headers that teu.oci.tar writes, read by the standard library's tarfile."""

from __future__ import annotations

import tarfile

from teu.oci import tar


def entry(name: str) -> tar.Entry:
    made = tar.Entry()
    made.name, made.mode, made.uid, made.gid, made.size = name, 0o640, 7, 8, 5
    made.mtime = 1_600_000_000_000_000_000
    return made


def test_a_header_is_one_block_that_tarfile_reads() -> None:
    block = tar.pack(entry("etc/motd"))
    assert len(block) == 512
    assert block[257:265] == b"ustar\x0000"  # magic and version, POSIX.1-1988
    found = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    assert (found.name, found.mode, found.uid, found.gid, found.size) == ("etc/motd", 0o640, 7, 8, 5)
    assert found.mtime == 1_600_000_000


def test_a_long_name_costs_whole_blocks() -> None:
    assert len(tar.pack(entry("a/" * 200 + "b"))) % 512 == 0
