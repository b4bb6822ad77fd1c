# SPDX-License-Identifier: Apache-2.0
"""The json-file log driver: docker's file format, written and read in bulk.

    containers/<id>/<id>-json.log        one JSON object per line

All lines of a chunk share a time stamp, so that a chunk is turned into records, and a run of records
back into lines, by a few replacements over the whole of it, not line by line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO

from teu.engine.core.times import nanoseconds, timestamp
from teu.engine.logs.driver import (
    LINE_LIMIT,
    LogSource,
    Piece,
    Registration,
    Selection,
    check_attributes,
    written_attributes,
)
from teu.engine.logs.files import BACKWARDS, Defaults, Files
from teu.engine.logs.options import ATTRIBUTES, ROTATION, check_rotation

RUN_WINDOW = 4 << 10  # bytes in which more records of a run are looked for, at first
RECORD_OVERHEAD = 75  # bytes of a record besides its line
NAMES = {1: b"stdout", 2: b"stderr"}
KINDS = {b"stdout": 1, b"stderr": 2}

LOCAL_DEFAULTS = Defaults(20 << 20, 5, True)

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


class JsonFile(Files):
    """Files of JSON lines in the container's folder."""

    def __init__(self, source: LogSource) -> None:
        defaults = LOCAL_DEFAULTS if source.type == "local" else Defaults(0, 1, False)
        super().__init__(source, log_path(source.directory, source.id, source.type), defaults)
        attributes = written_attributes(source)
        self._attributes = b'"attrs":%s,' % json.dumps(attributes).encode() if attributes else b""
        self.overhead = RECORD_OVERHEAD + len(self._attributes)

    def _records(self, kind: int, data: bytes, final: bool) -> bytes:
        if len(data) > LINE_LIMIT and max(map(len, data.split(b"\n"))) > LINE_LIMIT:
            return b"".join(
                self._encoded(kind, line[start : start + LINE_LIMIT])
                for line in data.splitlines(keepends=True)
                for start in range(0, len(line), LINE_LIMIT)
            )
        return self._encoded(kind, data)

    def _encoded(self, kind: int, data: bytes) -> bytes:
        end = b'","stream":"%s",%s"time":"%s"}\n' % (NAMES[kind], self._attributes, timestamp().encode())
        escaped = _escape(data)
        if escaped.endswith(b"\n"):
            body = escaped[:-1].replace(b"\n", b"\\n" + end + b'{"log":"') + b"\\n"
        else:
            body = escaped.replace(b"\n", b"\\n" + end + b'{"log":"')
        return b'{"log":"' + body + end

    def _whole(self, block: bytes) -> int:
        return block.rfind(b"\n") + 1

    def _pieces(self, block: bytes, selection: Selection) -> Iterator[Piece]:
        return _pieces(block, selection)

    def _last(self, file: IO[bytes], end: int, lines: int) -> tuple[int, int]:
        return _last_lines(file, end, lines)

    def _since(self, file: IO[bytes], end: int, since: int) -> int:
        width = BACKWARDS
        while end > 0:
            start = max(0, end - width)
            file.seek(start)
            block = file.read(end - start)
            first = block.find(b"\n") + 1 if start else 0
            if start and first in (0, len(block)):  # no whole line begins in it
                width *= 2
                continue
            if 0 < _moment(block[first : block.find(b"\n", first) + 1]) < since:
                return start + first
            width, end = BACKWARDS, start + first
        return 0


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


def _moment(line: bytes) -> int:
    """When a record was logged; 0 where that cannot be read."""
    found = re.search(rb'"time":"([0-9T:.Z-]+)"\}\n\Z', line)
    try:
        return nanoseconds(found[1].decode()) if found else 0
    except ValueError:
        return 0


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


def log_path(directory: str, identity: str, kind: str) -> str:
    """The newest file of a container with this folder and id, whose log's type is `kind`."""
    if kind == "local":  # of containers that were made before local had docker's format
        return f"{directory}/local-log"
    return f"{directory}/{identity}-json.log"


def check(options: dict[str, str]) -> None:
    """Of drivers that write files. Raises BadRequest."""
    check_rotation(options)
    check_attributes(options)


JSON_FILE = Registration(ROTATION | ATTRIBUTES, check, JsonFile)
