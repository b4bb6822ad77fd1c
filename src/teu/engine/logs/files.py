# SPDX-License-Identifier: Apache-2.0
"""What log drivers have in common that write files: these are rotated by size, compressed, followed, and read from the
end where the end is what is wanted.

    PATH                the newest
    PATH.1 …            rotated, .1 the youngest; .gz where compress is on, its header's extra field {"lastTime": …}

A file is records, each a line or a part of a long one. How a record is written is said by the drivers: jsonfile, local.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from teu.engine.core.times import nanoseconds, timestamp
from teu.engine.core.units import size
from teu.engine.logs.driver import LogSource, Piece, Selection, whole_lines
from teu.engine.logs.options import boolean

if TYPE_CHECKING:
    from teu.engine.logs.marker import Marker

BLOCK = 4 << 20
BACKWARDS = 64 << 10  # bytes that are read at once from the end
LEVEL = 5  # of compression
CLOCK_TICK = 10**9  # nanoseconds, ample: a file's time is of the kernel's coarse clock, and behind what is in it


class Defaults(NamedTuple):
    """What a driver does where its options say nothing."""

    maximum: int
    """Bytes of a file; 0: it is never rotated."""
    files: int
    compress: bool


class Files:
    """A log driver in all but its records' form."""

    overhead = 0
    """Bytes that a record has besides its line, about."""

    def __init__(self, source: LogSource, path: str, defaults: Defaults) -> None:
        self.source = source
        self.path = path
        options = source.options
        text = options.get("max-size")
        self.maximum = defaults.maximum if not text else 0 if text == "-1" else size(text, "max-size")
        self.files = int(options.get("max-file") or defaults.files)
        self.compress = boolean(options, "compress", defaults.compress)
        self.stalled = False
        self._file: int = -1
        self._size = 0
        self._compressor: threading.Thread | None = None
        self.changed = threading.Condition()

    # -- the records' form, which a driver has -------------------------------------------------------

    def _records(self, kind: int, data: bytes, final: bool) -> bytes:
        """Lines, and parts of longer ones, as records."""
        raise NotImplementedError

    def _whole(self, block: bytes) -> int:
        """Where the last whole record of a block ends that begins with one; 0 where there is none."""
        raise NotImplementedError

    def _pieces(self, block: bytes, selection: Selection) -> Iterator[Piece]:
        """Whole records as lines."""
        raise NotImplementedError

    def _last(self, file: IO[bytes], end: int, lines: int) -> tuple[int, int]:
        """How many of the wanted last records are in the file, which ends there, and where the first of them begins."""
        raise NotImplementedError

    def _since(self, file: IO[bytes], end: int, since: int) -> int:
        """Where to begin to read for what is not older: at a record, with a few older ones perhaps; 0: at the first.
        It is looked for from the end, so that it takes as long as there is to tell. Where the clock was set back, that
        is as far as it goes."""
        raise NotImplementedError

    def _repaired(self, file: int, length: int) -> int:
        """How much of a file that is to be written on is whole records."""
        return length

    # -- writing -------------------------------------------------------------------------------------

    def open(self) -> None:
        """The file is made with the first line."""

    def _open(self) -> int:
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            length = os.fstat(self._file).st_size
            self._size = self._repaired(self._file, length) if length else 0
            if self._size < length:
                os.ftruncate(self._file, self._size)
        return self._file

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        self.stalled = False
        count = whole_lines(data, final)
        if not count:
            return 0
        whole = count == len(data)
        if self.maximum:
            count = self._fitting(data, count)
        data = data[:count]
        records = self._records(kind, data, final and whole and count == len(data))
        file = self._open()
        if self.maximum and self._size and self._size + len(records) > self.maximum:
            self._rotate()
            file = self._open()
        marker.set(kind, self._size + 1, 0, 0)
        try:
            view = memoryview(records)
            while view:
                view = view[os.write(file, view) :]
        except OSError:
            os.ftruncate(file, self._size)  # a full disk: wait for room rather than log half a record
            marker.set(kind, 0, 0, 0)
            self.stalled = True
            return 0
        self._size += len(records)
        marker.set(kind, self._size + 1, count, zlib.crc32(data))
        with self.changed:
            self.changed.notify_all()
        return count

    def _fitting(self, data: bytes, count: int) -> int:
        """So much of it as makes half a file at most (but one line); the rest is given to us again."""
        expected = count + data.count(b"\n", 0, count) * self.overhead
        if expected <= self.maximum:
            return count
        part = count * self.maximum // (2 * expected)
        return data.rfind(b"\n", 0, part) + 1 or data.find(b"\n", 0, count) + 1 or count

    def rewind(self, position: int) -> None:
        file = self._open()
        if position < self._size:
            os.ftruncate(file, position)
            self._size = position

    def flush(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        self.close()
        if self._compressor is not None:
            self._compressor.join()
        directory, name = os.path.split(self.path)
        for found in os.listdir(directory) if os.path.isdir(directory) else ():
            if found == name or found.startswith(name + "."):
                Path(directory, found).unlink(missing_ok=True)

    def _rotate(self) -> None:
        self.close()
        if self._compressor is not None:
            self._compressor.join()  # who writes faster than gzip compresses waits for it here
        for number in range(self.files - 1, 0, -1):
            source = self.path if number == 1 else f"{self.path}.{number - 1}"
            for suffix in ("", ".gz"):
                if number == 1 and suffix:
                    continue
                if os.path.exists(source + suffix):
                    Path(f"{self.path}.{number}{'.gz' if not suffix else ''}").unlink(missing_ok=True)
                    os.replace(source + suffix, f"{self.path}.{number}{suffix}")
        if self.files == 1:
            # A reader may have it open: a new file, not a truncated one.
            Path(self.path).unlink(missing_ok=True)
        elif self.compress:
            self._compressor = threading.Thread(target=_compress, args=(f"{self.path}.1",), daemon=True)
            self._compressor.start()

    # -- reading -------------------------------------------------------------------------------------

    def _old_files(self) -> list[str]:
        """Rotated files, the oldest first."""
        found = []
        for number in range(1, self.files):
            for suffix in ("", ".gz"):
                if os.path.exists(path := f"{self.path}.{number}{suffix}"):
                    found.append(path)
                    break
        return found[::-1]

    def read(self, selection: Selection) -> Iterator[Piece | None]:
        old = self._old_files()
        try:
            current: IO[bytes] | None = open(self.path, "rb")
        except FileNotFoundError:
            current = None
        if selection.tail == 0 and not selection.follow:
            if current:
                current.close()
            return
        old, skip, offset = self._beginning(old, current, selection)
        for path in old:
            with _opened(path, bool(skip)) as file:
                file.seek(skip)
                skip = 0
                yield from self._blocks(file, selection)
        if current is None:
            if not selection.follow:
                return
            while current is None:
                yield None
                try:
                    current = open(self.path, "rb")
                except FileNotFoundError:
                    if not self._wait():
                        return
        try:
            current.seek(offset)
            while True:
                # Asked before reading: what comes between reading and asking is read once more.
                going = self.source.going()
                yield from self._blocks(current, selection)
                if not selection.follow:
                    return
                if self._moved(current):
                    yield from self._blocks(current, selection)
                    current.close()
                    current = open(self.path, "rb")
                    continue
                if not going or selection.until and selection.until < nanoseconds(timestamp()):
                    return
                yield None
                self._wait(current)
        finally:
            current.close()

    def _wait(self, file: IO[bytes] | None = None) -> bool:
        """Until there may be more; False: the container is not running and nothing will come."""
        with self.changed:
            if file is None or os.fstat(file.fileno()).st_size <= file.tell():
                if not self.source.going():
                    return False
                self.changed.wait(1.0)
        return True

    def _moved(self, file: IO[bytes]) -> bool:
        try:
            return os.stat(self.path).st_ino != os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def _beginning(self, old: list[str], current: IO[bytes] | None, selection: Selection) -> tuple[list[str], int, int]:
        """Rotated files to read, an offset in the first of them, and one in the newest."""
        end = os.fstat(current.fileno()).st_size if current else 0
        if selection.tail == 0:
            return [], 0, end
        if selection.tail > 0:
            return self._tail(old, current, end, selection.tail)
        if not selection.since:
            return old, 0, 0
        offset = self._since(current, end, selection.since) if current else 0
        kept: list[str] = []
        while not offset and old and os.stat(old[-1]).st_mtime_ns >= selection.since - CLOCK_TICK:
            kept.insert(0, old.pop())
        return kept, 0, offset

    def _tail(self, old: list[str], current: IO[bytes] | None, end: int, lines: int) -> tuple[list[str], int, int]:
        """Where the last lines begin."""
        offset = 0
        if current is not None:
            found, offset = self._last(current, end, lines)
            lines -= found
        kept: list[str] = []
        skip = 0
        while lines > 0 and old:
            path = old.pop()
            with _opened(path, True) as file:
                found, skip = self._last(file, file.seek(0, os.SEEK_END), lines)
            lines -= found
            kept.insert(0, path)
        return kept, skip, offset

    def _blocks(self, file: IO[bytes], selection: Selection) -> Iterator[Piece]:
        while True:
            start = file.tell()
            block = file.read(BLOCK)
            end = self._whole(block)
            if not end:
                file.seek(start)
                return
            if end < len(block):
                file.seek(start + end)
                block = block[:end]
            yield from self._pieces(block, selection)


def _opened(path: str, backwards: bool) -> IO[bytes]:
    """A rotated file. One that is compressed is unpacked for who reads it from the end."""
    if not path.endswith(".gz"):
        return open(path, "rb")
    if not backwards:
        return gzip.open(path, "rb")  # type: ignore[return-value]
    unpacked = tempfile.TemporaryFile(dir=os.path.dirname(path))
    with gzip.open(path, "rb") as file:
        shutil.copyfileobj(file, unpacked, 1 << 20)
    unpacked.seek(0)
    return unpacked


def _compress(path: str) -> None:
    """In docker's way: when the last line came is in the header, and it is the file's own time as well."""
    try:
        moment = os.stat(path).st_mtime_ns
        extra = json.dumps({"lastTime": timestamp(moment)}).encode()
        deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        checksum = length = 0
        with open(path, "rb") as source, open(path + ".gz.new", "wb") as target:
            target.write(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra)
            while data := source.read(1 << 20):
                checksum = zlib.crc32(data, checksum)
                length += len(data)
                target.write(deflate.compress(data))
            target.write(deflate.flush() + struct.pack("<II", checksum, length & 0xFFFFFFFF))
        os.utime(path + ".gz.new", ns=(moment, moment))
        os.replace(path + ".gz.new", path + ".gz")
        os.unlink(path)
    except OSError:
        Path(path + ".gz.new").unlink(missing_ok=True)
