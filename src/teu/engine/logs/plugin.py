# SPDX-License-Identifier: Apache-2.0
"""Log drivers that are plugins of docker's: programs of the host that implement LogDriver (core/plugins.py).

    LogDriver.StartLogging {File, Info}     a FIFO to read from, and what Docker tells of a container
    LogDriver.StopLogging {File}
    LogDriver.Capabilities                  {Cap: {ReadLogs}}: whether it can be asked for what it has
    LogDriver.ReadLogs {Info, Config}       a stream of entries, as in the FIFO

An entry is a LogEntry of protobuf behind its length, 32 bits, big endian. Imported when a container has such a driver.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import os
import queue
import secrets
import select
import struct
import termios
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from teu.engine.core import plugins
from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.core.managed import KNOWN
from teu.engine.core.plugins import member, section
from teu.engine.core.times import NEVER, timestamp
from teu.engine.logs.driver import Driver, LogSource, Piece, Selection, check_attributes, described
from teu.engine.logs.local import KINDS, SOURCES, field, partial, varint
from teu.engine.logs.options import boolean, check_cache
from teu.engine.logs.remote import Message, Remote, Stopped

log = logging.getLogger("teu.engine")

FOLDER = "/run/docker/logging"
LOOK_SECONDS = 0.2  # between two looks whether the run has ended, while the plugin does not read
DRAIN_SECONDS = 5.0  # a plugin has for what is in the FIFO at the end
LONGEST = 1 << 20  # bytes of an entry
AHEAD = 256  # entries that are read before somebody wants them


def there(kind: str) -> bool:
    """Whether there is a plugin of that name, which may be one of something else."""
    return plugins.find(kind) is not None


def check(kind: str, options: dict[str, str]) -> None:
    """What options a plugin has is known to nobody else. Raises BadRequest."""
    try:
        plugins.get(kind, plugins.LOGS)
    except EngineError as error:
        raise BadRequest(f"error looking up logging plugin {kind}: {error}") from None
    check_attributes(options)
    check_cache(options)


def _reads(kind: str) -> bool:
    """Whether the plugin can be read from; one that is away cannot."""
    try:
        answer = plugins.get(kind, plugins.LOGS).call(f"{plugins.LOGS}.Capabilities", patient=False)
        return member(section(answer, "Cap"), "ReadLogs") is True
    except EngineError:
        return False


def readable(source: LogSource) -> bool:
    """Whether `logs` can be answered."""
    return not boolean(source.options, "cache-disabled") or _reads(source.type)


def _told(source: LogSource) -> dict[str, Any]:
    """What Docker calls Info."""
    return described(source) | {"LogPath": ""}


class _Fifo:
    """The sink."""

    def __init__(self, source: LogSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._descriptor = -1
        self._path = ""

    def connect(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                return
        managed = KNOWN.find(self._source.type)
        folder = managed.logging if managed is not None else FOLDER
        os.makedirs(folder, 0o700, exist_ok=True)
        prefix = f"{folder}/{self._source.id[:32]}"
        for stale in glob.glob(prefix + "*"):  # of an engine that was killed
            os.unlink(stale)
        path = prefix + secrets.token_hex(16)
        os.mkfifo(path, 0o700)
        # For reading as well: it can be opened before the plugin does that, and outlives the plugin's death.
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            plugin = plugins.get(self._source.type, plugins.LOGS)
            plugin.call(f"{plugins.LOGS}.StartLogging", {"File": _seen(path), "Info": _told(self._source)})
        except BaseException as error:
            os.close(descriptor)
            os.unlink(path)
            if isinstance(error, NotFound):
                raise EngineError(f"error looking up logging plugin {self._source.type}: {error}") from None
            raise
        with self._lock:
            self._descriptor, self._path = descriptor, path

    def send(self, messages: list[Message], stopping: threading.Event) -> int:
        """What is in the FIFO is sent."""
        self.connect()
        with self._lock:
            descriptor = os.dup(self._descriptor)
        try:
            view = memoryview(b"".join(map(_written, messages)))
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            while view:
                if stopping.is_set():
                    raise Stopped
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(descriptor, view) :]
                    continue
                poll.poll(LOOK_SECONDS * 1000)
        finally:
            os.close(descriptor)
        return 0

    def close(self) -> None:
        with self._lock:
            descriptor, path = self._descriptor, self._path
            self._descriptor = -1
        if descriptor >= 0:
            threading.Thread(target=self._stop, args=(descriptor, path), name="log-plugin", daemon=True).start()

    def _stop(self, descriptor: int, path: str) -> None:
        """Once it has read what there is, the plugin is told; in a thread, because a plugin may take its time."""
        try:
            deadline = time.monotonic() + DRAIN_SECONDS
            while time.monotonic() < deadline and _waiting(descriptor):
                time.sleep(0.01)
            plugins.get(self._source.type, plugins.LOGS).call(f"{plugins.LOGS}.StopLogging", {"File": _seen(path)})
        except EngineError as error:
            log.warning("container %s: its log plugin does not stop: %s", self._source.name, error)
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _seen(path: str) -> str:
    """A FIFO as the plugin sees it: a managed one has a folder of its own at the place of all others' FIFOs."""
    return f"{FOLDER}/{os.path.basename(path)}"


def _waiting(descriptor: int) -> int:
    """Bytes in a FIFO."""
    found: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]
    return found


def _written(message: Message) -> bytes:
    entry = SOURCES[message.kind] + b"\x10" + varint(message.moment)
    if message.line:
        entry += field(3, message.line)
    if message.part is not None:
        entry += partial(message.part.id, message.part.number, message.part.last)
    return struct.pack(">I", len(entry)) + entry


class LogPlugin(Remote):
    """A log driver that is a plugin. One that can be read from keeps the only copy."""

    def __init__(self, source: LogSource) -> None:
        self._reads = _reads(source.type)
        super().__init__(source, _Fifo(source), kept=not self._reads)

    def read(self, selection: Selection) -> Iterator[Piece | None]:
        return self._asked(selection) if self._reads else super().read(selection)

    def _asked(self, selection: Selection) -> Iterator[Piece | None]:
        config = {
            "Since": timestamp(selection.since) if selection.since else NEVER,
            "Until": timestamp(selection.until) if selection.until else NEVER,
            "Tail": selection.tail,
            "Follow": selection.follow,
        }
        plugin = plugins.get(self.source.type, plugins.LOGS)
        with plugin.stream(f"{plugins.LOGS}.ReadLogs", {"Info": _told(self.source), "Config": config}) as answer:
            for entry in _entries(answer):
                if entry is None:
                    yield None
                    continue
                kind, moment, line = entry
                if not (selection.stdout if kind == 1 else selection.stderr) or moment < selection.since:
                    continue
                if selection.until and moment > selection.until:
                    return
                stamp = timestamp(moment).encode() + b" " if selection.timestamps else b""
                yield Piece(kind, stamp + selection.details + line)


def _entries(answer: IO[bytes]) -> Iterator[tuple[int, int, bytes] | None]:
    """Those of a stream; None from time to time while nothing comes. Raises EngineError."""
    found: queue.Queue[tuple[int, int, bytes] | Exception | None] = queue.Queue(AHEAD)
    over = threading.Event()

    def give(what: tuple[int, int, bytes] | Exception | None) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                found.put(what, timeout=1.0)
                return

    def read() -> None:
        try:
            while len(head := answer.read(4)) == 4 and not over.is_set():
                (size,) = struct.unpack(">I", head)
                if size > LONGEST:
                    raise EngineError(f"a log plugin's entry is of {size} bytes")
                give(_entry(answer.read(size)))
            give(None)
        except Exception as error:  # it is the reader's
            give(error)

    threading.Thread(target=read, name="log-plugin-reader", daemon=True).start()
    try:
        while True:
            try:
                entry = found.get(timeout=1.0)
            except queue.Empty:
                yield None
                continue
            if entry is None:
                return
            if isinstance(entry, Exception):
                raise EngineError(f"a log plugin cannot be read from: {entry}") from entry
            yield entry
    finally:
        over.set()


def _entry(data: bytes) -> tuple[int, int, bytes]:
    """Stream, moment and line of an entry, whatever else is in it. Raises EngineError."""
    kind, moment, line, at = 1, 0, b"", 0

    def number() -> int:
        nonlocal at
        found = shift = 0
        while True:
            byte = data[at]
            at += 1
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return found

    try:
        while at < len(data):
            tag = number()
            if tag & 7 == 0:
                value = number()
                if tag >> 3 == 2:
                    moment = value
            elif tag & 7 == 2:
                length = number()
                text = data[at : at + length]
                at += length
                if tag >> 3 == 1:
                    kind = KINDS.get(text, 1)
                elif tag >> 3 == 3:
                    line = text
            else:
                raise IndexError
    except IndexError:
        raise EngineError("a log plugin's entry is none") from None
    return kind, moment, line


def create(source: LogSource) -> Driver:
    """The driver of a container whose log is a plugin's."""
    return LogPlugin(source)
