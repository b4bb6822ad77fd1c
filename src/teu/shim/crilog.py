# SPDX-License-Identifier: Apache-2.0
"""A container's output in the log format of the Container Runtime Interface, written by the shim itself: no daemon has
to be there, and none can lose a line or hold one up.

A line of the file is TIME STREAM TAG TEXT: the time in UTC with nanoseconds, stdout or stderr, F for a line and P for a
part of one, which has no end of its own in the output: it was too long, or the output ended.

kubelet rotates by renaming the file: what is written next goes to a new one of the old name. Those who look on while it
is written are at a socket, see `attach`.
"""

from __future__ import annotations

import os
import time

from teu.shim.attach import Audience
from teu.shim.loop import EPOLLIN, Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from teu.shim.loop import Loop

SCHEME = "cri"
LINE_LENGTH = 16 << 10  # bytes; containerd's own default
READ_LENGTH = 64 << 10


def timestamp(nanoseconds: int) -> bytes:
    """RFC 3339 with nine digits of the second, of nanoseconds since 1970."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), rest)


class LogFile:
    """The file of one container, and the pipes that end there."""

    def __init__(self, path: str, log: Callable[[str], None] = lambda _text: None, attach: str = "") -> None:
        """Without a path nothing is kept. `log` is told when a line cannot be written. `attach` is the path of the
        socket for those who look on, "" for none."""
        self._path = path
        self._log = log
        self._complained = False
        self._file = -1
        if path:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            self._open()
        self._streams: list[LogStream] = []
        # done when the last of the pipes has come to its end
        self.ended = Future()
        self._audience: Audience | None = None
        # done when those who look on have got everything
        self.drained = Future()
        if attach:
            try:
                self._audience = Audience(attach, self._hold)
            except BaseException:
                self.close()
                raise
            self.drained = self._audience.drained

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fresh = os.open(self._path, flags, 0o640)
        if self._file >= 0:
            os.close(self._file)
        self._file = fresh
        found = os.fstat(fresh)
        self._identity = found.st_dev, found.st_ino

    def stream(self, name: str) -> int:
        """The write end of a new pipe whose lines are of that stream."""
        source, sink = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(source, False)
        self.read_from(name, source)
        return sink

    def read_from(self, name: str, source: int) -> None:
        """Take lines of that stream out of a pipe, which does not block and is closed here."""
        self._streams.append(LogStream(self, len(self._streams) + 1, name.encode(), source))

    def start(self, loop: Loop) -> None:
        """From now on the output is written."""
        for stream in self._streams:
            stream.start(loop)
        if self._audience is not None:
            self._audience.start(loop)

    def _hold(self, held: bool) -> None:
        for stream in self._streams:
            stream.hold(held)

    def closed(self) -> None:
        """One of the pipes has come to its end."""
        if not any(stream.open for stream in self._streams):
            self.ended.set()

    def tell(self, stream: int, data: bytes) -> None:
        """Hand on what was read, to those who look on."""
        if self._audience is not None:
            self._audience.tell(stream, data)

    def write(self, data: bytes) -> None:
        """Append whole lines; those that the disk does not take are lost, which never stops the container."""
        if not self._path:
            return
        try:
            self._follow()
            while data:
                data = data[os.write(self._file, data) :]
            self._complained = False
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._log(f"output is lost: {self._path}: {error.strerror}")

    def _follow(self) -> None:
        """Go on in the file that has the name now."""
        try:
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                return
        except FileNotFoundError:
            pass
        self._open()

    def finish(self) -> None:
        """The process is gone: write what the pipes have left, see `drained`."""
        for stream in self._streams:
            stream.end()
        if self._audience is not None:
            self._audience.finish()
        else:
            self.drained.set()

    def end(self) -> None:
        """Wait for nobody who looks on."""
        if self._audience is not None:
            self._audience.end()

    def close(self) -> None:
        """Write what the pipes have left, and give up."""
        for stream in self._streams:
            stream.end()
        self._streams = []
        self.end()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class LogStream:
    """One pipe: takes lines out, and keeps what is not a line yet."""

    def __init__(self, file: LogFile, number: int, name: bytes, source: int) -> None:
        self._file = file
        self._number = number
        self._name = name
        self._source = source
        self._rest = b""
        self._loop: Loop | None = None

    def start(self, loop: Loop) -> None:
        if self._source >= 0:
            self._loop = loop
            loop.watch(self._source, EPOLLIN, self._on_output)

    def hold(self, held: bool) -> None:
        """Read no more for the time being, or go on."""
        if self._source < 0 or self._loop is None:
            return
        if held:
            self._loop.unwatch(self._source)
        else:
            self._loop.watch(self._source, EPOLLIN, self._on_output)

    def _on_output(self, _events: int) -> None:
        self._read()

    def _read(self) -> bool:
        """Take once from the pipe; whether there may be more."""
        try:
            data = os.read(self._source, READ_LENGTH)
        except BlockingIOError:
            return False
        if data:
            self._write(data)
            self._file.tell(self._number, data)
            return True
        self._close()
        return False

    def _write(self, data: bytes) -> None:
        head = b"%s %s " % (timestamp(time.time_ns()), self._name)
        *lines, self._rest = (self._rest + data).split(b"\n")
        told = []
        for line in lines:
            while len(line) > LINE_LENGTH:
                told.append(b"%sP %s\n" % (head, line[:LINE_LENGTH]))
                line = line[LINE_LENGTH:]
            told.append(b"%sF %s\n" % (head, line))
        while len(self._rest) > LINE_LENGTH:
            told.append(b"%sP %s\n" % (head, self._rest[:LINE_LENGTH]))
            self._rest = self._rest[LINE_LENGTH:]
        if told:
            self._file.write(b"".join(told))

    def _close(self) -> None:
        if self._loop is not None:
            self._loop.unwatch(self._source)
        os.close(self._source)
        self._source = -1
        if self._rest:
            head = b"%s %s " % (timestamp(time.time_ns()), self._name)
            self._file.write(b"%sP %s\n" % (head, self._rest))
            self._rest = b""
        self._file.closed()

    @property
    def open(self) -> bool:
        """Whether something may still come."""
        return self._source >= 0

    def end(self) -> None:
        """Write what is in the pipe, and no more; nothing of an output that was never started."""
        if self._source >= 0 and self._loop is not None:
            while self._read():
                pass
        if self._source >= 0:
            self._close()
