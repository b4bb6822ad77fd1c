# SPDX-License-Identifier: Apache-2.0
"""The local log driver: docker's own format, a record's size at both of its ends.

    containers/<id>/local-logs/container.log
    containers/<id>/container-cached.log        the copy of drivers that send (remote.py)

A record is a LogEntry of protobuf, with its length as 32 bits, big endian, before and after it:

    source = 1, time_nano = 2, line = 3 (without its newline), partial = 4,
    partial_log_metadata = 5 {last = 1, id = 2, ordinal = 3}, attrs = 6 {key = 1, value = 2}, each of them

A part of a line is partial, and its newline comes after the last one. What ends without a newline is a part that has no
last one.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import time
from collections.abc import Iterator
from typing import IO, NamedTuple

from teu.engine.core.times import timestamp
from teu.engine.logs.driver import LINE_LIMIT, Driver, LogSource, Piece, Registration, Selection, written_attributes
from teu.engine.logs.files import BACKWARDS, Files
from teu.engine.logs.jsonfile import LOCAL_DEFAULTS, JsonFile, check, log_path
from teu.engine.logs.options import ATTRIBUTES, ROTATION

SOURCES = {1: b"\x0a\x06stdout", 2: b"\x0a\x06stderr"}
KINDS = {b"stdout": 1, b"stderr": 2}
LONGEST = 1 << 20  # bytes of a record: more is none of ours, nor of docker's
GATHERED = 64 << 10  # bytes of lines that make a piece
_SIZE = struct.Struct(">I")

# The head of a record: size, source, moment and the length of its line.
_HEAD = re.compile(
    rb"(....)\x0a\x06(stdout|stderr)\x10([\x80-\xff]*[\0-\x7f])(?:\x1a([\x80-\xff]*[\0-\x7f]))?", re.DOTALL
)


def varint(number: int) -> bytes:
    """As protobuf writes whole numbers."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number(data: bytes) -> int:
    """The reverse."""
    found = 0
    for byte in reversed(data):
        found = found << 7 | byte & 0x7F
    return found


def field(number: int, data: bytes) -> bytes:
    """A field of protobuf that has a length."""
    return bytes((number << 3 | 2,)) + varint(len(data)) + data


def partial(identity: str, number: int, last: bool) -> bytes:
    """The fields partial and partial_log_metadata of an entry."""
    about = (b"\x08\x01" if last else b"") + field(2, identity.encode()) + b"\x18" + varint(number)
    return b"\x20\x01" + field(5, about)


class _Entry(NamedTuple):
    kind: int
    moment: int
    line: bytes
    """With its newline, if it has one."""
    around: tuple[bytes, bytes] | None
    """What is before the line and behind it, in a record that is a whole line."""


class Local(Files):
    """Files of such records."""

    def __init__(self, source: LogSource, path: str) -> None:
        super().__init__(source, path, LOCAL_DEFAULTS)
        self._attributes = b"".join(
            field(
                6, field(1, key.encode("utf-8", "surrogateescape")) + field(2, value.encode("utf-8", "surrogateescape"))
            )
            for key, value in sorted(written_attributes(source).items())
        )
        self.overhead = 28 + len(self._attributes)
        self._parts: dict[int, tuple[str, int]] = {}

    def open(self) -> None:
        os.makedirs(os.path.dirname(self.path), 0o710, exist_ok=True)

    def _open(self) -> int:
        if self._file < 0:
            self.open()
        return super()._open()

    def remove(self) -> None:
        super().remove()
        directory = os.path.dirname(self.path)
        if directory != self.source.directory and os.path.isdir(directory):
            os.rmdir(directory)

    def flush(self) -> None:
        self._parts.clear()
        super().flush()

    # -- records -------------------------------------------------------------------------------------

    def _records(self, kind: int, data: bytes, final: bool) -> bytes:
        head = SOURCES[kind] + b"\x10" + varint(time.time_ns())
        *lines, rest = data.split(b"\n")
        written: list[bytes] = []
        around: dict[int, tuple[bytes, bytes]] = {}
        for line in lines:
            length = len(line)
            if length > LINE_LIMIT or kind in self._parts:
                written += self._in_parts(kind, head, line, True)
                continue
            found = around.get(length)
            if found is None:
                before = head + (b"\x1a" + varint(length) if length else b"")
                size = _SIZE.pack(len(before) + length + len(self._attributes))
                found = around[length] = size + before, self._attributes + size
            written += (found[0], line, found[1])
        if rest:
            written += self._in_parts(kind, head, rest, False)
        return b"".join(written)

    def _in_parts(self, kind: int, head: bytes, line: bytes, whole: bool) -> Iterator[bytes]:
        """A long line, or the beginning or the end of one."""
        identity, number = self._parts.pop(kind, (secrets.token_hex(32), 0))
        for start in range(0, len(line) or 1, LINE_LIMIT):
            number += 1
            last = whole and start + LINE_LIMIT >= len(line)
            part = line[start : start + LINE_LIMIT]
            entry = head + (field(3, part) if part else b"") + partial(identity, number, last) + self._attributes
            size = _SIZE.pack(len(entry))
            yield size + entry + size
        if not whole:
            self._parts[kind] = (identity, number)

    def _whole(self, block: bytes) -> int:
        position = 0
        while position + 4 <= len(block):
            (size,) = _SIZE.unpack_from(block, position)
            if not 0 < size <= LONGEST or position + size + 8 > len(block):
                break
            position += size + 8
        return position

    def _pieces(self, block: bytes, selection: Selection) -> Iterator[Piece]:
        kind, lines, gathered = 0, list[bytes](), 0
        stamp, shown = -1, b""
        plain = not selection.since and not selection.until
        prefixed = selection.timestamps or bool(selection.details)
        wanted = {number for number, there in ((1, selection.stdout), (2, selection.stderr)) if there}
        position = 0
        while position < len(block):
            (size,) = _SIZE.unpack_from(block, position)
            end = position + 4 + size
            entry = _read(block, position, end)
            position = end + 4
            if entry is None or entry.kind not in wanted:
                continue
            moment = entry.moment
            if not plain and (moment < selection.since or selection.until and moment > selection.until):
                continue
            if lines and (entry.kind != kind or gathered >= GATHERED):
                yield Piece(kind, b"".join(lines))
                lines, gathered = [], 0
            kind = entry.kind
            if prefixed:
                if moment != stamp:
                    stamp = moment
                    shown = (timestamp(moment).encode() + b" " if selection.timestamps else b"") + selection.details
                lines.append(shown)
            lines.append(entry.line)
            gathered += len(entry.line)
            if entry.around is not None:
                more, position = _alike(block, position, *entry.around)
                if more:
                    end_of_each = b"\n" + shown
                    lines.append(shown + end_of_each.join(more) + b"\n")
                    gathered += len(lines[-1])
        if lines:
            yield Piece(kind, b"".join(lines))

    # -- from the end --------------------------------------------------------------------------------

    def _last(self, file: IO[bytes], end: int, lines: int) -> tuple[int, int]:
        found = 0
        for start, _ in _backwards(file, end):
            found += 1
            end = start
            if found == lines:
                return found, start
        return found, 0

    def _since(self, file: IO[bytes], end: int, since: int) -> int:
        looked = end
        for start, head in _backwards(file, end):
            if looked - start >= BACKWARDS or start == 0:
                looked = start
                match = _HEAD.match(head)
                if match and _number(match[3]) < since:
                    return start
        return 0

    def _repaired(self, file: int, length: int) -> int:
        """After a machine's end some of what was written may be missing: records to the first that is not whole."""
        if length >= 8:
            (size,) = _SIZE.unpack(os.pread(file, 4, length - 4))
            if 0 < size <= min(LONGEST, length - 8) and os.pread(file, 4, length - 8 - size) == _SIZE.pack(size):
                return length
        position = 0
        while position + 8 <= length:
            (size,) = _SIZE.unpack(os.pread(file, 4, position))
            if not 0 < size <= LONGEST or os.pread(file, 4, position + 4 + size) != _SIZE.pack(size):
                break
            position += size + 8
        return position


def _backwards(file: IO[bytes], end: int) -> Iterator[tuple[int, bytes]]:
    """The records of a file that ends there, the last first: where each begins, and its first bytes."""
    window, base = b"", end
    while end >= 8:
        if end - 8 < base:
            base = max(0, end - BACKWARDS)
            file.seek(base)
            window = file.read(end - base)
        (size,) = _SIZE.unpack_from(window, end - base - 4)
        start = end - 8 - size
        if start < 0 or not size:
            return
        if start < base:
            base = max(0, min(start, end - BACKWARDS))
            file.seek(base)
            window = file.read(end - base)
        yield start, window[start - base : start - base + 64]
        end = start


def _read(block: bytes, start: int, end: int) -> _Entry | None:
    """The record between, as docker or we wrote it; None where it is none."""
    match = _HEAD.match(block, start, end)
    if match is None:
        return None
    length = _number(match[4]) if match[4] else 0
    stop = match.end() + length
    line = block[match.end() : stop]
    # partial, which is followed by whether it is the last part.
    if block.startswith(b"\x20\x01", stop) and stop < end:
        whole = re.match(rb"\x20\x01\x2a.[\x80-\xff]*\x08\x01", block[stop : stop + 16], re.DOTALL) is not None
    else:
        whole = True
    partial_too = block.startswith(b"\x20\x01", stop)
    around = None if partial_too else (block[start + 4 : match.end(3)], block[stop:end])
    return _Entry(KINDS[match[2]], _number(match[3]), line + b"\n" if whole else line, around)


def _alike(block: bytes, position: int, head: bytes, tail: bytes) -> tuple[list[bytes], int]:
    """The lines of the records from there on that are whole ones of the same stream and moment, which those of a chunk
    are, and where they end."""
    lines = []
    unpack, before, behind = _SIZE.unpack_from, 4 + len(head), len(tail)
    try:
        while position < len(block) and block.startswith(head, position + 4):
            end = position + 4 + unpack(block, position)[0]
            at = position + before
            length = 0
            if at + behind != end:
                if block[at] != 0x1A:
                    break
                length = block[at + 1]
                at += 2
                if length > 0x7F:
                    length = length & 0x7F | block[at] << 7
                    at += 1
                    if length > 0x3FFF:
                        length = length & 0x3FFF | block[at] << 14
                        at += 1
            if at + length + behind != end or (behind and not block.startswith(tail, end - behind)):
                break
            lines.append(block[at : at + length])
            position = end + 4
    except (IndexError, struct.error):  # damaged
        pass
    return lines, position


def _create(source: LogSource) -> Driver:
    if os.path.exists(log_path(source.directory, source.id, "local")):
        return JsonFile(source)
    return Local(source, f"{source.directory}/local-logs/container.log")


def copy_of(source: LogSource) -> Driver:
    """The copy of a log that goes elsewhere; the options are those of this driver."""
    return Local(source, f"{source.directory}/container-cached.log")


LOCAL = Registration(ROTATION | ATTRIBUTES, check, _create)
