# SPDX-License-Identifier: Apache-2.0
"""gzip by several threads: one member, the same bytes however the data comes and on however many processors."""

from __future__ import annotations

import gzip
import os
import random
import zlib

import pytest

from teu.oci import gzips
from teu.oci.gzips import PIECE, Gzip


def packed(data: bytes, step: int, level: int = 6) -> bytes:
    engine = Gzip(level)
    parts = [engine.compress(data[at : at + step]) for at in range(0, len(data), step)]
    return b"".join(parts) + engine.flush()


@pytest.mark.parametrize("size", [0, 1, 1000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 77])
def test_it_is_gzip(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    some = random.Random(size).randbytes(1000) + b"much of the same " * 1000
    data = (some * (size // len(some) + 1))[:size]
    made = packed(data, max(size, 1))
    assert gzip.decompress(made) == data
    engine = zlib.decompressobj(31)
    assert engine.decompress(made) + engine.flush() == data
    assert engine.eof
    assert not engine.unused_data
    assert len(made) < len(zlib.compress(data, 6)) + 100 * (size // PIECE + 1)
    assert packed(data, 7919) == made
    monkeypatch.setattr(gzips, "THREADS_MAX", 1)
    assert packed(data, 100_000) == made


def test_levels() -> None:
    data = b"".join(b"%d " % number for number in range(300_000))
    sizes = [len(packed(data, 1 << 20, level)) for level in (1, 6, 9)]
    assert sizes == sorted(sizes, reverse=True)
    assert gzip.decompress(packed(data, 1 << 20, 9)) == data


def test_pieces_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ready is given away: what waits is bounded."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    engine = Gzip()
    for _ in range(20):
        engine.compress(bytes(PIECE))
        assert len(engine._waiting) <= 4
    engine.flush()
