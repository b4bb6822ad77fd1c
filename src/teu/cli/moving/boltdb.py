# SPDX-License-Identifier: Apache-2.0
"""Reads a bolt database file, as dockerd and containerd keep their records in. Called by `dockerstore`.

    page       id u64, flags u16 (1 branch, 2 leaf, 4 meta), count u16, overflow u32; then count elements
    meta       magic u32, version u32, page size u32, flags u32, root bucket (page u64, sequence u64), freelist u64,
               pages u64, transaction u64, checksum u64: FNV-1a of what is before it. There are two, pages 0 and 1; the
               valid one of the later transaction holds
    branch     an element: pos u32, key size u32, page u64
    leaf       an element: flags u32 (1: a bucket), pos u32, key size u32, value size u32
    bucket     page u64, sequence u64; page 0: the leaf page itself follows, within the value

`pos` counts from the element itself. Whoever writes a bolt file holds an exclusive flock(2) on it, so a shared one
keeps writers away."""

from __future__ import annotations

import fcntl
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

MAGIC, VERSION = 0xED0CDAED, 2
BRANCH, LEAF = 1, 2
BUCKET = 1
META = struct.Struct("<IIIIQQQQQQ")
PAGE = struct.Struct("<QHHI")
BRANCH_ELEMENT = struct.Struct("<IIQ")
LEAF_ELEMENT = struct.Struct("<IIII")
IN_BUCKET = struct.Struct("<QQ")
MOST_LEVELS = 64


class BoltError(Exception):
    """No bolt file, a damaged one, or (`held`) one that somebody has open for writing; the text names the file."""

    def __init__(self, text: str, held: bool = False) -> None:
        super().__init__(text)
        self.held = held


def checksum(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


class Bolt:
    """A file that is open and locked against writers until `close`. Raises BoltError, and OSError where it cannot be
    read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "rb")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BoltError(f"{path} is in use", held=True) from None
            self._size = 0
            self._root = self._newest()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _newest(self) -> int:
        """The root's page, by the newer of the metas that are whole."""
        head = self._read(0, 1 << 16)
        newest = (-1, 0)
        # The second meta is on page 1, wherever that is: at the size that the first one names, or at a power of two.
        for at in (0, *(1 << shift for shift in range(10, 16))):
            raw = head[at + PAGE.size : at + PAGE.size + META.size]
            if len(raw) < META.size:
                continue
            magic, version, size, _, root, _, _, _, transaction, check = META.unpack(raw)
            if magic != MAGIC or version != VERSION or check != checksum(raw[:-8]) or at not in (0, size):
                continue
            if transaction > newest[0]:
                newest = (transaction, root)
                self._size = size
        if newest[0] < 0:
            raise BoltError(f"{self.path} is not a bolt database, or is damaged")
        return newest[1]

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        return self._file.read(size)

    def _page(self, number: int) -> bytes:
        first = self._read(number * self._size, self._size)
        if len(first) < PAGE.size:
            raise BoltError(f"{self.path} is damaged: it has no page {number}")
        overflow = PAGE.unpack_from(first)[3]
        return first + self._read((number + 1) * self._size, overflow * self._size) if overflow else first

    def _elements(self, page: bytes, level: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """(flags, key, value) of a page and of all below it, in the keys' order."""
        if level > MOST_LEVELS:
            raise BoltError(f"{self.path} is damaged: its tree has no end")
        _, flags, count, _ = PAGE.unpack_from(page)
        try:
            for number in range(count):
                at = PAGE.size + number * 16
                if flags & BRANCH:
                    child = BRANCH_ELEMENT.unpack_from(page, at)[2]
                    yield from self._elements(self._page(child), level + 1)
                elif flags & LEAF:
                    kind, pos, key, value = LEAF_ELEMENT.unpack_from(page, at)
                    start = at + pos
                    if start + key + value > len(page):
                        raise BoltError(f"{self.path} is damaged: a page ends too early")
                    yield kind, page[start : start + key], page[start + key : start + key + value]
                else:
                    raise BoltError(f"{self.path} is damaged: a page is neither branch nor leaf")
        except struct.error:
            raise BoltError(f"{self.path} is damaged: a page ends too early") from None

    def _inside(self, value: bytes) -> bytes:
        """The first page of a bucket."""
        root = IN_BUCKET.unpack_from(value)[0]
        return self._page(root) if root else value[IN_BUCKET.size :]

    def _bucket(self, names: tuple[bytes, ...]) -> bytes | None:
        page = self._page(self._root)
        for name in names:
            for kind, key, value in self._elements(page):
                if kind & BUCKET and key == name:
                    page = self._inside(value)
                    break
            else:
                return None
        return page

    def items(self, *names: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The keys and values of a bucket in a bucket ...; nothing where it is not there."""
        page = self._bucket(names)
        if page is not None:
            yield from ((key, value) for kind, key, value in self._elements(page) if not kind & BUCKET)

    def buckets(self, *names: bytes) -> Iterator[bytes]:
        """The names of the buckets in a bucket."""
        page = self._bucket(names)
        if page is not None:
            yield from (key for kind, key, _ in self._elements(page) if kind & BUCKET)
