# SPDX-License-Identifier: Apache-2.0
"""Structured logs to the journal, levels and fields included; plain text on stderr without it.

Called by the daemons: setup("teud", "info") once, then the standard logging module. Fields go in by
`log.info("started", extra={"CONTAINER_ID": id, "CONTAINER_NAME": name})`: every extra attribute in
capitals is a journal field. send() is for those who encode entries of their own (the journald log driver).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import sys
import time
import traceback
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}

F_ADD_SEALS = 1033
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1, 2, 4, 8


def encode(fields: Mapping[str, str | bytes | int]) -> bytes:
    """The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one entry."""
    parts = []
    for name, value in fields.items():
        data = value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
        if b"\n" in data:
            parts.append(os.fsencode(name) + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(os.fsencode(name) + b"=" + data + b"\n")
    return b"".join(parts)


def send(sock: socket.socket, data: bytes, *address: str) -> None:
    """Send one encoded entry, of any length, on a datagram socket; to this address if it is not connected. OSError."""
    try:
        sock.sendmsg([data], [], 0, *address)
    except OSError as error:
        # Too large for a datagram: the protocol takes a sealed memfd in its place.
        if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
            raise
        memfd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(memfd), "wb") as file:
                file.write(data)
            fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
            sock.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", memfd))], 0, *address)
        finally:
            os.close(memfd)


class Journal:
    """A connection to journald that survives its restarts; safe to share between threads."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)

    def send(self, fields: Mapping[str, str | bytes | int]) -> None:
        """Write one entry; blocks while journald is behind. Raises OSError where there is no journal."""
        send(self._socket, encode(fields), self._path)


def connected(descriptor: int = 2) -> bool:
    """Whether this descriptor of ours leads to the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        stat = os.fstat(descriptor)
        return (int(device), int(inode)) == (stat.st_dev, stat.st_ino)
    except (OSError, ValueError):
        return False


class JournalHandler(logging.Handler):
    """logging records as journal entries."""

    def __init__(self, identifier: str) -> None:
        super().__init__()
        self._identifier = identifier
        self._journal = Journal()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; on stderr where the journal does not take it."""
        try:
            fields: dict[str, str | bytes | int] = {
                "MESSAGE": record.getMessage(),
                "PRIORITY": priority(record.levelno),
                "SYSLOG_IDENTIFIER": self._identifier,
                "LOGGER": record.name,
                "CODE_FILE": record.pathname,
                "CODE_LINE": record.lineno,
                "CODE_FUNC": record.funcName,
                "THREAD_NAME": str(record.threadName),
            }
            if record.exc_info and record.exc_info[0]:
                fields["EXCEPTION"] = "".join(traceback.format_exception(*record.exc_info))
            for name, value in record.__dict__.items():
                if name.isupper():
                    fields[name] = value if isinstance(value, bytes | int) else str(value)
            self._journal.send(fields)
        except OSError:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"<{priority(record.levelno)}>{record.getMessage()}\n")
        except Exception:
            self.handleError(record)


def priority(level: int) -> int:
    """syslog's number for a level of logging."""
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


class _Objects(logging.Formatter):
    """Each message as an object of JSON on a line: time, level, msg and, of a failure, error."""

    def format(self, record: logging.LogRecord) -> str:
        import json  # 1.5 ms, for those who ask for it

        level = next((name for name, number in reversed(LEVELS.items()) if record.levelno >= number), "debug")
        said = {
            "level": "warning" if level == "warn" else level,
            "msg": record.getMessage(),
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "module": record.name,
        }
        if record.exc_info and record.exc_info[0]:
            said["error"] = "".join(traceback.format_exception(*record.exc_info))
        said.update({name: str(value) for name, value in record.__dict__.items() if name.isupper()})
        return json.dumps(said)


def setup(identifier: str, level: str = "info", *, objects: bool = False) -> None:
    """Send the process's logs to the journal where stderr leads there, else to stderr; with `objects` to stderr in any
    case, an object of JSON on each line."""
    handler: logging.Handler
    if objects:
        handler = logging.StreamHandler()
        handler.setFormatter(_Objects())
    elif connected():
        handler = JournalHandler(identifier)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS.get(level, logging.INFO))


def set_level(level: str) -> None:
    """Change the least level logged, at a reload."""
    logging.getLogger().setLevel(LEVELS.get(level, logging.INFO))
