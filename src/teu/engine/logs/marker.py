# SPDX-License-Identifier: Apache-2.0
"""What has been logged of a container's output and is not yet taken out of its FIFO, in a mapped file below /run, which
outlives a kill -9:

    /run/teu/engine/<id>/position    for stdout and stderr: a log position + 1, bytes logged, their CRC-32

So the next engine neither loses output nor writes it to the log twice. Log drivers write it with each piece that they
log; the hub reads it, and clears it once the piece is out of the FIFO.
"""

from __future__ import annotations

import mmap
import os
import struct

_MARK = struct.Struct("<QII")
_MARKS = 64  # bytes for each stream: two records, and at 32 the number of the one that holds


class Marker:
    """Without a path (execs, driver none) it remembers nothing.

    A kill -9 can come between any two bytes that are stored: a record is written beside the one that holds, and
    takes its place with one byte."""

    def __init__(self, path: str | None) -> None:
        self._map: mmap.mmap | None = None
        if path:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, 3 * _MARKS)
                self._map = mmap.mmap(descriptor, 3 * _MARKS)
            finally:
                os.close(descriptor)

    def get(self, kind: int) -> tuple[int, int, int]:
        """What was set last for a stream: position, bytes logged, checksum; zeros where nothing was."""
        if not self._map:
            return 0, 0, 0
        place = kind * _MARKS
        return _MARK.unpack_from(self._map, place + _MARK.size * (self._map[place + 2 * _MARK.size] & 1))

    def set(self, kind: int, position: int, logged: int, checksum: int) -> None:
        """Note where the next write of a stream begins. A death in the middle leaves what was set before."""
        if self._map:
            place = kind * _MARKS
            other = self._map[place + 2 * _MARK.size] & 1 ^ 1
            _MARK.pack_into(self._map, place + _MARK.size * other, position, logged, checksum)
            self._map[place + 2 * _MARK.size] = other

    def close(self) -> None:
        """Let go of the file. Twice is fine."""
        if self._map:
            self._map.close()
            self._map = None
