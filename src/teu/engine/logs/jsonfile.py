# SPDX-License-Identifier: Apache-2.0
"""The json-file (and local) log driver: docker's file format, written and read in bulk.

    containers/<id>/<id>-json.log        one JSON object per line, the newest
    containers/<id>/<id>-json.log.1 …    rotated, .1 the youngest; .gz where compress is on

All lines of a chunk share a time stamp, so that a chunk is turned into records, and a run of records
back into lines, by a few replacements over the whole of it, not line by line.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from teu.engine.core.times import nanoseconds, timestamp
from teu.engine.core.units import size
from teu.engine.logs.driver import (
    LINE_LIMIT,
    LogSource,
    Piece,
    Registration,
    Selection,
    check_attributes,
    whole_lines,
    written_attributes,
)
from teu.engine.logs.options import ATTRIBUTES, ROTATION, check_rotation

if TYPE_CHECKING:
    from teu.engine.logs.marker import Marker

RUN_WINDOW = 4 << 10  # bytes in which more records of a run are looked for, at first
BLOCK = 4 << 20
RECORD_OVERHEAD = 75  # bytes of a record besides its line
NAMES = {1: b"stdout", 2: b"stderr"}
KINDS = {b"stdout": 1, b"stderr": 2}

_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")
_RECORD = re.compile(
    rb'\{"log":"([^"\\]*(?:\\.[^"\\]*)*)","stream":"(stdout|stderr)",'
    rb'(?:"attrs":\{[^\n]*?\},)?"time":"([^"]*)"\}\n'
)


def _escape(data: bytes) -> bytes:
    """The inside of JSON strings; newlines are left."""
    try:
        data.decode()
    except UnicodeDecodeError:
        data = data.decode("utf-8", "replace").encode()
    data = data.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return _CONTROL.sub(lambda match: b"\\u%04x" % match[0][0], data)


def _unescape(text: bytes) -> bytes:
    if b"\\" not in text:
        return text
    return str(json.loads(b'"' + text + b'"')).encode("utf-8", "surrogatepass")


class JsonFile:
    """The log drivers json-file and local: files of JSON lines in the container's folder, which rotate by size."""

    def __init__(self, source: LogSource) -> None:
        self.source = source
        options = source.options
        local = source.type == "local"
        text = options.get("max-size") or ("20m" if local else "-1")
        self.maximum = 0 if text == "-1" else size(text, "max-size")
        self.files = int(options.get("max-file") or ("5" if local else "1"))
        self.compress = options.get("compress", "true" if local else "false") == "true"
        self.path = log_path(source.directory, source.id, source.type)
        self.stalled = False
        self._file: int = -1
        self._size = 0
        self._compressor: threading.Thread | None = None
        self.changed = threading.Condition()
        attributes = written_attributes(source)
        self._attributes = b'"attrs":%s,' % json.dumps(attributes).encode() if attributes else b""

    def open(self) -> None:
        """The file is made with the first line."""

    def _open(self) -> int:
        if self._file < 0:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._file).st_size
        return self._file

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        self.stalled = False
        count = whole_lines(data, final)
        if not count:
            return 0
        if self.maximum:
            count = self._fitting(data, count)
        data = data[:count]
        if count > LINE_LIMIT and max(map(len, data.split(b"\n"))) > LINE_LIMIT:
            records = b"".join(
                self._records(kind, line[start : start + LINE_LIMIT])
                for line in data.splitlines(keepends=True)
                for start in range(0, len(line), LINE_LIMIT)
            )
        else:
            records = self._records(kind, data)
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
        expected = count + data.count(b"\n", 0, count) * (RECORD_OVERHEAD + len(self._attributes))
        if expected <= self.maximum:
            return count
        part = count * self.maximum // (2 * expected)
        return data.rfind(b"\n", 0, part) + 1 or data.find(b"\n", 0, count) + 1 or count

    def _records(self, kind: int, data: bytes) -> bytes:
        end = b'","stream":"%s",%s"time":"%s"}\n' % (NAMES[kind], self._attributes, timestamp().encode())
        escaped = _escape(data)
        if escaped.endswith(b"\n"):
            body = escaped[:-1].replace(b"\n", b"\\n" + end + b'{"log":"') + b"\\n"
        else:
            body = escaped.replace(b"\n", b"\\n" + end + b'{"log":"')
        return b'{"log":"' + body + end

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
        for path in (self.path, *glob.glob(glob.escape(self.path) + ".*")):
            Path(path).unlink(missing_ok=True)

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
            return
        skip = 0
        if selection.tail > 0:
            old, skip, offset = self._tail(old, current, selection.tail)
        else:
            offset = os.fstat(current.fileno()).st_size if selection.tail == 0 and current else 0
            old = [] if selection.tail == 0 else old
        for path in old:
            with _opener(path) as file:
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

    def _tail(self, old: list[str], current: IO[bytes] | None, lines: int) -> tuple[list[str], int, int]:
        """Files and offsets where the last lines begin."""
        offset = 0
        if current is not None:
            found, offset = _last_lines(current, os.fstat(current.fileno()).st_size, lines)
            lines -= found
        kept: list[str] = []
        skip = 0
        while lines > 0 and old:
            path = old.pop()
            with _opener(path) as file:
                end = file.seek(0, os.SEEK_END)
                found, skip = _last_lines(file, end, lines)
            lines -= found
            kept.insert(0, path)
        return kept, skip, offset

    def _blocks(self, file: IO[bytes], selection: Selection) -> Iterator[Piece]:
        while True:
            start = file.tell()
            block = file.read(BLOCK)
            end = block.rfind(b"\n") + 1
            if not end:
                file.seek(start)
                return
            if end < len(block):
                file.seek(start + end)
                block = block[:end]
            yield from _pieces(block, selection)


def _pieces(block: bytes, selection: Selection) -> Iterator[Piece]:
    position = 0
    runs = True
    while position < len(block):
        match = _RECORD.match(block, position)
        if match is None:
            # Not ours or damaged: try it as JSON, else skip to the next line.
            end = block.index(b"\n", position) + 1
            yield from _odd(block[position:end], selection)
            position = end
            continue
        text, stream, moment = match.groups()
        end = match.end()
        kind = KINDS[stream]
        if runs and text.endswith(b"\\n"):
            ending = block[match.end(1) - 2 : end]
            last = _last_of_run(block, end, ending)
            if last:
                joined = block[match.start(1) : last - len(ending)].replace(ending + b'{"log":"', b"\\n")
                runs = b"\n" not in joined  # where others are in between, it is no file of ours
                if runs:
                    text = joined + b"\\n"
                    end = last
        position = end
        if not (selection.stdout if kind == 1 else selection.stderr):
            continue
        if selection.since or selection.until:
            now = nanoseconds(moment.decode())
            if now < selection.since or selection.until and now > selection.until:
                continue
        lines = _unescape(text)
        if selection.timestamps or selection.details:
            prefix = (moment + b" " if selection.timestamps else b"") + selection.details
            if lines.endswith(b"\n"):
                lines = prefix + lines[:-1].replace(b"\n", b"\n" + prefix) + b"\n"
            else:
                lines = prefix + lines
        yield Piece(kind, lines)


def _last_of_run(block: bytes, start: int, ending: bytes) -> int:
    """Where the records end that follow from `start` and have this same end: stream and moment; 0 where none has.

    It looks little farther than such records go, so a whole block is looked through a few times at most."""
    end = block.find(b"\n", start) + 1
    if not block.endswith(ending, start, end):
        return 0
    window = RUN_WINDOW
    while (found := block.rfind(ending, end, end + window)) >= 0:
        end = found + len(ending)
        window *= 2
    return end


def _odd(line: bytes, selection: Selection) -> Iterator[Piece]:
    try:
        record = json.loads(line)
        kind = KINDS[record["stream"].encode()]
        moment = str(record["time"])
        text = str(record["log"]).encode()
    except (ValueError, KeyError, AttributeError, TypeError):
        return
    if not (selection.stdout if kind == 1 else selection.stderr):
        return
    now = nanoseconds(moment)
    if now < selection.since or selection.until and now > selection.until:
        return
    prefix = moment.encode() + b" " if selection.timestamps else b""
    yield Piece(kind, prefix + selection.details + text)


def _last_lines(file: IO[bytes], end: int, lines: int) -> tuple[int, int]:
    """How many of the wanted last lines are in the file, and where the first of them begins."""
    found = 0
    position = end
    while position > 0:
        start = max(0, position - (1 << 16))
        file.seek(start)
        block = file.read(position - start)
        count = block.count(b"\n")
        # The newline that ends the last line is not the start of a wanted one.
        wanted = lines - found + (1 if position == end else 0)
        if count >= wanted and (position != end or count > lines):
            at = len(block)
            for _ in range(wanted):
                at = block.rindex(b"\n", 0, at)
            return lines, start + at + 1
        found += count - (1 if position == end and count else 0)
        position = start
    return (found + 1 if end else 0), 0


def _opener(path: str) -> IO[bytes]:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _compress(path: str) -> None:
    try:
        with open(path, "rb") as source, gzip.open(path + ".gz.new", "wb", 5) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(path + ".gz.new", path + ".gz")
        os.unlink(path)
    except OSError:
        Path(path + ".gz.new").unlink(missing_ok=True)


def log_path(directory: str, identity: str, kind: str) -> str:
    """The newest file of a container with this folder and id, whose log's type is `kind`."""
    if kind == "local":
        return f"{directory}/local-log"
    return f"{directory}/{identity}-json.log"


def _check(options: dict[str, str]) -> None:
    check_rotation(options)
    check_attributes(options)


JSON_FILE = Registration(ROTATION | ATTRIBUTES, _check, JsonFile)
LOCAL = Registration(ROTATION | ATTRIBUTES, _check, JsonFile)
