# SPDX-License-Identifier: Apache-2.0
"""The journald log driver, the default: each line is an entry with the fields that docker gives it.

Written over the journal's native socket, without ever blocking: while journald is away or behind, the
output stays in the container's FIFO. Read back through journalctl's export format.

Each entry is about the container's scope (OBJECT_SYSTEMD_UNIT), so that `systemctl status` and `journalctl -u` of the
scope show it. A line that begins with <0> to <7> (sd-daemon(3)) has that priority, and loses the beginning; its field
CONTAINER_STREAM says from which stream it is, and that the beginning belongs to it when it is read back.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from teu.engine.core.times import timestamp
from teu.engine.logs.driver import (
    FIELD_CHARACTERS,
    LINE_LIMIT,
    LogSource,
    Piece,
    Registration,
    Selection,
    check_attributes,
    extra_attributes,
    tag,
    whole_lines,
)
from teu.engine.logs.options import ATTRIBUTES
from teu.systemd import journal

if TYPE_CHECKING:
    from teu.engine.logs.marker import Marker

SOCKET = "/run/systemd/journal/socket"
PRIORITIES = {1: b"6", 2: b"3"}
KINDS = {b"6": 1, b"3": 2}
STREAMS = {1: "stdout", 2: "stderr"}
LEVELS = {b"<%d>" % level: b"%d" % level for level in range(8)}
FOLLOW_LIMIT = 8 << 20


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


class Journald:
    """The log driver journald: entries in the host's journal, found by the container's id."""

    def __init__(self, source: LogSource) -> None:
        self.source = source
        label = tag(source)
        fields = {
            "CONTAINER_ID": source.id[:12],
            "CONTAINER_ID_FULL": source.id,
            "CONTAINER_NAME": source.name,
            "CONTAINER_TAG": label,
            "IMAGE_NAME": source.image,
            "SYSLOG_IDENTIFIER": label,
        }
        for name, value in extra_attributes(source).items():
            clean = "".join(c if c in FIELD_CHARACTERS else "_" for c in name.upper()).lstrip("_0123456789")
            if clean:
                fields.setdefault(clean, value)
        self.stalled = False
        self.epoch = secrets.token_hex(16)
        self.ordinal = 0
        constant = b"".join(_field(name, value) for name, value in fields.items())
        constant += _field("CONTAINER_LOG_EPOCH", self.epoch)
        # Beside the unit of a service that the container may be of, which comes as a label.
        constant += _field("OBJECT_SYSTEMD_UNIT", f"teu-{source.id}.scope")
        self._prefix = {kind: constant + b"PRIORITY=" + code + b"\n" for kind, code in PRIORITIES.items()}
        self._levelled = {
            kind: constant + _field("CONTAINER_STREAM", name) + b"PRIORITY=" for kind, name in STREAMS.items()
        }
        self._level: dict[int, bytes] = {}
        """Of lines that are logged in parts, the priority that their beginning said."""
        self._socket: socket.socket | None = None
        self._partial: dict[int, tuple[str, int]] = {}
        self.changed = threading.Condition()

    def open(self) -> None:
        """journald may come later: until then the output waits."""

    def _connected(self) -> socket.socket | None:
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
                sock.connect(SOCKET)
            except OSError:
                sock.close()
                return None
            sock.setblocking(False)
            self._socket = sock
        return self._socket

    def write(self, kind: int, data: bytes, final: bool, marker: Marker) -> int:
        count = whole_lines(data, final)
        sock = self._connected()
        self.stalled = sock is None
        if sock is None:
            return 0
        done = 0
        checksum = 0
        prefix = self._prefix[kind]
        start = 0
        ordinal = self.ordinal
        moment = b"SYSLOG_TIMESTAMP=" + timestamp().encode() + b"\n"
        while start < count:
            end = data.find(b"\n", start, count)
            whole = end >= 0
            if not whole:
                end = count
            if end - start > LINE_LIMIT:
                end = start + LINE_LIMIT
                whole = False
            line = data[start:end]
            head, message = prefix, line
            if line[:1] == b"<" or kind in self._level:
                head, message = self._with_level(kind, line)
            entry = b"%s%sCONTAINER_LOG_ORDINAL=%d\nMESSAGE=%s\n" % (head, moment, ordinal + 1, message)
            if not whole or kind in self._partial:
                if not line and whole:
                    # Only the newline of a line that was logged in parts was missing.
                    self._partial.pop(kind, None)
                    self._level.pop(kind, None)
                    start = end + 1
                    done = start
                    continue
                entry += self._partial_fields(kind, whole, final and end == count)
            try:
                journal.send(sock, entry)
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    sock.close()
                    self._socket = None
                self.stalled = True
                break
            ordinal += 1
            self._note_partial(kind, whole, line)
            following = end + 1 if whole else end
            checksum = zlib.crc32(data[start:following], checksum)
            start = done = following
            marker.set(kind, 1, done, checksum)
        self.ordinal = ordinal
        with self.changed:
            self.changed.notify_all()
        return done

    def _partial_fields(self, kind: int, last: bool, final: bool) -> bytes:
        identity, number = self._partial.get(kind, (secrets.token_hex(16), 0))
        if kind not in self._partial and final and not last:
            return b"CONTAINER_PARTIAL_MESSAGE=true\n"  # the output's end lacks its newline
        self._partial.setdefault(kind, (identity, number))
        text = f"CONTAINER_PARTIAL_ID={identity}\nCONTAINER_PARTIAL_ORDINAL={number + 1}\n"
        text += f"CONTAINER_PARTIAL_LAST={'true' if last else 'false'}\n"
        if not last:
            text += "CONTAINER_PARTIAL_MESSAGE=true\n"
        return text.encode()

    def _with_level(self, kind: int, line: bytes) -> tuple[bytes, bytes]:
        """The constant fields of a line, or part of one, and its message: by what its beginning says, or that of the
        line that it goes on with."""
        if kind in self._partial:
            level = self._level.get(kind)
            return (self._levelled[kind] + level + b"\n" if level else self._prefix[kind]), line
        level = LEVELS.get(line[:3])
        return (self._levelled[kind] + level + b"\n", line[3:]) if level else (self._prefix[kind], line)

    def _note_partial(self, kind: int, whole: bool, line: bytes) -> None:
        if kind in self._partial:
            if whole:
                del self._partial[kind]
                self._level.pop(kind, None)
            else:
                if not self._partial[kind][1] and line[:3] in LEVELS:
                    self._level[kind] = LEVELS[line[:3]]
                identity, number = self._partial[kind]
                self._partial[kind] = (identity, number + 1)

    def rewind(self, position: int) -> None:
        """Entries cannot be undone; the marker is kept line by line instead."""

    def flush(self) -> None:
        self._partial.clear()
        self._level.clear()
        with self.changed:
            self.changed.notify_all()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def remove(self) -> None:
        """The journal keeps what it has, for as long as its own rules say."""
        self.close()

    # -- reading -------------------------------------------------------------------------------------

    def read(self, selection: Selection) -> Iterator[Piece | None]:
        if not selection.follow:
            yield from self._stored(selection, self.ordinal)
            return
        queue: deque[tuple[int, int, bytes]] = deque()
        size = 0
        lock = threading.Condition()

        def follower(kind: int, data: bytes) -> bool:
            nonlocal size
            with lock:
                queue.append((time.time_ns(), kind, data))
                size += len(data)
                lock.notify()
                return size < FOLLOW_LIMIT

        output = self.source.output()
        ordinal = output.follow(follower, lambda: self.ordinal)
        try:
            if selection.tail != 0:
                yield from self._stored(selection, ordinal)
            yield None
            while True:
                going = self.source.going()
                with lock:
                    if not queue and going:
                        lock.wait(0.5)
                    items = list(queue)
                    queue.clear()
                    full = size >= FOLLOW_LIMIT
                    size = 0
                if full:
                    output.resume()
                for moment, kind, data in items:
                    if not (selection.stdout if kind == 1 else selection.stderr) or moment < selection.since:
                        continue
                    if selection.until and moment > selection.until:
                        return
                    if selection.timestamps or selection.details:
                        stamp = timestamp(moment).encode() + b" " if selection.timestamps else b""
                        stamp += selection.details
                        data = b"".join(stamp + line for line in data.splitlines(keepends=True))
                    yield Piece(kind, data)
                if not items and (not going or selection.until and time.time_ns() > selection.until):
                    return
                yield None
        finally:
            output.unfollow(follower)

    def _stored(self, selection: Selection, ordinal: int) -> Iterator[Piece]:
        """What is in the journal, up to our entry of that number."""
        seen = 0
        cursor = ""
        for attempt in range(2):
            entries = self._entries(selection, cursor)
            if selection.tail > 0:
                # The last lines are known only when journald has all of them.
                kept = list(entries)
                seen = max((entry.ordinal for entry in kept if entry.epoch == self.epoch), default=0)
                if seen < ordinal and not attempt and not selection.until:
                    _synchronize()
                    continue
                entries = iter(kept)
            for entry in entries:
                cursor = entry.cursor or cursor
                if entry.epoch == self.epoch:
                    if entry.ordinal > ordinal:
                        continue
                    seen = max(seen, entry.ordinal)
                piece = entry.piece(selection)
                if piece is not None:
                    yield piece
            if seen >= ordinal or selection.until or selection.tail > 0:
                return
            if not attempt:
                _synchronize()

    def _entries(self, selection: Selection, cursor: str) -> Iterator[_Entry]:
        command = ["journalctl", "-q", "-o", "export", "--all", f"--output-fields={_FIELDS}"]
        if cursor:
            command.append(f"--after-cursor={cursor}")
        elif selection.tail >= 0:
            command += ["-n", str(selection.tail)]
        if selection.since:
            command.append(f"--since=@{selection.since // 1_000_000_000}")
        if selection.until:
            command.append(f"--until=@{selection.until // 1_000_000_000 + 1}")
        command.append(f"CONTAINER_ID_FULL={self.source.id}")
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        try:
            assert process.stdout is not None
            yield from _parse(process.stdout)
        finally:
            process.kill()
            process.wait()


def _synchronize() -> None:
    """Until journald has written what it has received."""
    subprocess.run(["journalctl", "--sync"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


_FIELDS = "MESSAGE,PRIORITY,CONTAINER_PARTIAL_MESSAGE,CONTAINER_LOG_EPOCH,CONTAINER_LOG_ORDINAL,SYSLOG_TIMESTAMP"
_FIELDS += ",CONTAINER_STREAM,CONTAINER_PARTIAL_ORDINAL"
_BY_NAME = {name.encode(): kind for kind, name in STREAMS.items()}


class _Entry:
    __slots__ = ("cursor", "epoch", "fields", "ordinal")

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self.fields = fields
        self.cursor = fields.get(b"__CURSOR", b"").decode()
        self.epoch = fields.get(b"CONTAINER_LOG_EPOCH", b"").decode()
        number = fields.get(b"CONTAINER_LOG_ORDINAL", b"0")
        self.ordinal = int(number) if number.isdigit() else 0

    def piece(self, selection: Selection) -> Piece | None:
        priority, stream = self.fields.get(b"PRIORITY", b"6"), self.fields.get(b"CONTAINER_STREAM", b"")
        kind = _BY_NAME.get(stream) or KINDS.get(priority, 1)
        if not (selection.stdout if kind == 1 else selection.stderr):
            return None
        micro = int(self.fields.get(b"__REALTIME_TIMESTAMP", b"0"))
        moment = micro * 1000
        if moment < selection.since or selection.until and moment > selection.until:
            return None
        text = self.fields.get(b"MESSAGE", b"")
        if stream and self.fields.get(b"CONTAINER_PARTIAL_ORDINAL", b"1") == b"1":
            text = b"<%s>%s" % (priority, text)
        if b"CONTAINER_PARTIAL_MESSAGE" not in self.fields:
            text += b"\n"
        if selection.timestamps:
            stamp = self.fields.get(b"SYSLOG_TIMESTAMP") or timestamp(moment).encode()
            text = stamp + b" " + selection.details + text
        else:
            text = selection.details + text
        return Piece(kind, text)


def _parse(stream: IO[bytes]) -> Iterator[_Entry]:
    """Entries of journalctl's export format: KEY=value lines, or KEY, length, bytes; a blank line ends one."""
    buffer = b""
    fields: dict[bytes, bytes] = {}
    position = 0
    while True:
        end = buffer.find(b"\n", position)
        if end < 0:
            more = os.read(stream.fileno(), 1 << 20)
            if not more:
                return
            buffer = buffer[position:] + more
            position = 0
            continue
        if end == position:
            position = end + 1
            if fields:
                yield _Entry(fields)
                fields = {}
            continue
        key, equals, value = buffer[position:end].partition(b"=")
        if equals:
            fields[key] = value
            position = end + 1
            continue
        while len(buffer) < end + 9 or len(buffer) < end + 10 + struct.unpack_from("<Q", buffer, end + 1)[0]:
            more = os.read(stream.fileno(), 1 << 20)
            if not more:
                return
            buffer += more
        (size,) = struct.unpack_from("<Q", buffer, end + 1)
        fields[key] = buffer[end + 9 : end + 9 + size]
        position = end + 10 + size


JOURNALD = Registration(ATTRIBUTES, check_attributes, Journald)
