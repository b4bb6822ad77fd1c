# SPDX-License-Identifier: Apache-2.0
"""Headers that are written are what others read."""

from __future__ import annotations

import io
import tarfile

from teu.oci import tar


def test_a_header_is_read_by_another() -> None:
    for name in ("short", "a" * 90 + "/" + "b" * 90, "c" * 300):
        entry = tar.Entry()
        entry.name, entry.mode, entry.uid, entry.gid, entry.mtime = name, 0o640, 5, 6, 1_700_000_000_500_000_000
        header = tar.pack(entry)
        assert header[-255:-247] == b"ustar\x0000"
        with tarfile.open(fileobj=io.BytesIO(header + bytes(1024))) as archive:
            member = archive.getmembers()[0]
        assert (member.name, member.mode, member.uid, member.gid) == (name, 0o640, 5, 6)
