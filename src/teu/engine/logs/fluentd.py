# SPDX-License-Identifier: Apache-2.0
"""The log driver fluentd: each line is an event of the Forward protocol, version 1, in message mode:

    [tag, time, {container_id, container_name, source, log, …}, {chunk}]

in MessagePack. With fluentd-request-ack a line is sent when its chunk's id has come back: {"ack": chunk}.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.errors import BadRequest
from teu.engine.core.kinds import natural
from teu.engine.core.units import size
from teu.engine.logs.buffered import NonBlocking
from teu.engine.logs.driver import Driver, LogSource, Registration, check_attributes, extra_attributes, tag
from teu.engine.logs.options import ATTRIBUTES, CACHE, boolean, check_cache, seconds
from teu.engine.logs.remote import SOURCES, Message, Receiver, Remote, Stopped, address

if TYPE_CHECKING:
    import ssl

HOST, PORT = "127.0.0.1", 24224
RETRIES = (1 << 31) - 1
RETRY_SECONDS = 1.0
LONGEST_PAUSE = 60.0
EVENTS = 1 << 20  # that wait in memory, with fluentd-async
RECONNECTS = (0.1, 10.0)  # seconds that fluentd-async-reconnect-interval may be
AT_ONCE = 64  # events that wait for their acknowledgements together
LONGEST_ANSWER = 4096
OPTIONS = frozenset(
    {
        "fluentd-address",
        "fluentd-async",
        "fluentd-async-reconnect-interval",
        "fluentd-buffer-limit",
        "fluentd-max-retries",
        "fluentd-read-timeout",
        "fluentd-request-ack",
        "fluentd-retry-wait",
        "fluentd-sub-second-precision",
        "fluentd-write-timeout",
    }
)


class _Wishes(NamedTuple):
    """What the options say. Times in seconds; 0: none."""

    scheme: str
    host: str
    port: int
    path: str
    asynchronous: bool
    reconnect: float
    events: int
    retries: int
    retry_wait: float
    acknowledged: bool
    precise: bool
    read_timeout: float
    write_timeout: float


def _where(options: dict[str, str]) -> tuple[str, str, int, str]:
    text = options.get("fluentd-address", "")
    url = address(text if "://" in text else f"tcp://{text}", "fluentd-address")
    if url.scheme == "unix":
        if not url.path.strip("/"):
            raise BadRequest(f"invalid fluentd-address ({text}): path is empty")
        return "unix", "", 0, url.path
    if url.scheme not in ("tcp", "tls"):
        raise BadRequest(f"invalid fluentd-address ({text}): unsupported scheme: '{url.scheme}'")
    if url.path:
        raise BadRequest(f"invalid fluentd-address ({text}): should not contain a path element")
    return url.scheme, url.hostname or HOST, url.port or PORT, ""


def _wishes(options: dict[str, str]) -> _Wishes:
    """Raises BadRequest."""
    retries = options.get("fluentd-max-retries", "")
    number = natural(retries, 10) if retries else RETRIES
    if number is None or number > RETRIES:
        raise BadRequest(f"invalid fluentd-max-retries: {retries}: value out of range")
    reconnect = seconds(options, "fluentd-async-reconnect-interval", 0.0)
    if reconnect and not RECONNECTS[0] <= reconnect <= RECONNECTS[1]:
        raise BadRequest("invalid value for fluentd-async-reconnect-interval: value must be between 100ms and 10s")
    events = options.get("fluentd-buffer-limit", "")
    return _Wishes(
        *_where(options),
        boolean(options, "fluentd-async"),
        reconnect,
        size(events, "fluentd-buffer-limit") if events else EVENTS,
        number,
        seconds(options, "fluentd-retry-wait", RETRY_SECONDS),
        boolean(options, "fluentd-request-ack"),
        boolean(options, "fluentd-sub-second-precision"),
        seconds(options, "fluentd-read-timeout", 0.0),
        seconds(options, "fluentd-write-timeout", 0.0),
    )


def _check(options: dict[str, str]) -> None:
    _wishes(options)
    check_attributes(options)
    check_cache(options)


def _text(value: str | bytes) -> bytes:
    """A string of MessagePack."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if len(data) < 32:
        return bytes((0xA0 | len(data),)) + data
    if len(data) < 1 << 8:
        return b"\xd9" + struct.pack(">B", len(data)) + data
    if len(data) < 1 << 16:
        return b"\xda" + struct.pack(">H", len(data)) + data
    return b"\xdb" + struct.pack(">I", len(data)) + data


def _map(entries: list[bytes]) -> bytes:
    """A map of entries that are each a key and a value."""
    count = len(entries)
    head = bytes((0x80 | count,)) if count < 16 else b"\xde" + struct.pack(">H", count)
    return head + b"".join(entries)


def _trust() -> ssl.SSLContext:
    import ssl  # 6 ms, and most hosts have no such log

    made = ssl.create_default_context()
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as docker
    return made


class Fluentd:
    """The sink."""

    def __init__(self, source: LogSource, wishes: _Wishes) -> None:
        self._wishes = wishes
        self._receiver = Receiver(
            wishes.scheme,
            wishes.host,
            wishes.port,
            wishes.path,
            _trust if wishes.scheme == "tls" else None,
        )
        self._tag = _text(tag(source))
        entries = {"container_id": source.id, "container_name": "/" + source.name, **extra_attributes(source)}
        self._entries = [_text(key) + _text(value) for key, value in entries.items()]
        self._since = 0.0

    def connect(self) -> None:
        """As Sink has it."""
        self._receiver.connect()

    def _connection(self) -> socket.socket:
        if self._wishes.reconnect and time.monotonic() - self._since > self._wishes.reconnect:
            self._receiver.close()
        if self._receiver.gone():
            self._receiver.close()
        connection = self._receiver.connect()
        self._since = self._since or time.monotonic()
        return connection

    def send(self, messages: list[Message], stopping: threading.Event) -> int:
        """The pauses between two tries grow by half each time, as docker's do."""
        failed = 0
        while messages:
            part = messages[:AT_ONCE]
            try:
                part = part[self._sent(part) :]
                failed = 0
            except OSError:
                self._receiver.close()
                self._since = 0.0
                failed += 1
                if failed >= self._wishes.retries:
                    return len(messages)
                pause = min(self._wishes.retry_wait * 1.5 ** min(failed - 1, 50), LONGEST_PAUSE)
                if stopping.wait(pause):
                    raise Stopped from None
                continue
            messages = part + messages[AT_ONCE:]
        return 0

    def _sent(self, messages: list[Message]) -> int:
        """How many of them the receiver has, from the first on. Raises OSError where it is none."""
        connection = self._connection()
        connection.settimeout(self._wishes.write_timeout or None)
        if not self._wishes.acknowledged:
            connection.sendall(b"".join(self._event(message, []) for message in messages))
            return len(messages)
        chunks = [base64.b64encode(secrets.token_bytes(16)) for _ in messages]
        connection.sendall(
            b"".join(
                self._event(message, [_text("chunk") + _text(chunk)])
                for message, chunk in zip(messages, chunks, strict=True)
            )
        )
        connection.settimeout(self._wishes.read_timeout or None)
        done = 0
        with contextlib.closing(_answers(connection)) as answers:
            for chunk in chunks:
                try:
                    if next(answers) != chunk:
                        raise OSError("the receiver has acknowledged something else")
                except (OSError, StopIteration):
                    if not done:
                        raise OSError("there is no acknowledgement") from None
                    self._receiver.close()
                    return done
                done += 1
        return done

    def _event(self, message: Message, option: list[bytes]) -> bytes:
        whole, rest = divmod(message.moment, 10**9)
        if self._wishes.precise:
            moment = b"\xd7\x00" + struct.pack(">II", whole & 0xFFFFFFFF, rest)
        else:
            moment = b"\xd2" + struct.pack(">i", whole) if whole < 1 << 31 else b"\xd3" + struct.pack(">q", whole)
        entries = [
            *self._entries,
            _text("source") + _text(SOURCES[message.kind]),
            _text("log") + _text(message.line),
        ]
        if message.part is not None:
            entries += [
                _text("partial_message") + _text("true"),
                _text("partial_id") + _text(message.part.id),
                _text("partial_ordinal") + _text(str(message.part.number)),
                _text("partial_last") + _text("true" if message.part.last else "false"),
            ]
        return b"\x94" + self._tag + moment + _map(entries) + _map(option)

    def close(self) -> None:
        self._receiver.close()


def _answers(connection: socket.socket) -> Generator[bytes]:
    """The ids that a receiver acknowledges: maps of MessagePack with one entry. Raises OSError."""
    buffer = b""
    while True:
        more = connection.recv(LONGEST_ANSWER)
        if not more:
            return
        buffer += more
        while found := _answer(buffer):
            yield found[0]
            buffer = buffer[found[1] :]
        if len(buffer) > LONGEST_ANSWER:
            raise OSError("the receiver's acknowledgement is none")


def _answer(data: bytes) -> tuple[bytes, int] | None:
    """An id, and how many bytes it took; None while it is not whole. Raises OSError."""
    if data[:5] != b"\x81\xa3ack"[: len(data[:5])]:
        raise OSError("the receiver's acknowledgement is none")
    if len(data) < 6:
        return None
    mark = data[5]
    if 0xA0 <= mark < 0xC0:
        start, length = 6, mark & 0x1F
    elif mark in (0xD9, 0xC4):
        if len(data) < 7:
            return None
        start, length = 7, data[6]
    else:
        raise OSError("the receiver's acknowledgement is none")
    return (data[start : start + length], start + length) if len(data) >= start + length else None


def _create(source: LogSource) -> Driver:
    wishes = _wishes(source.options)
    if not wishes.asynchronous:
        return Remote(source, Fluentd(source, wishes))

    def make(inside: LogSource) -> Driver:
        return Remote(inside, Fluentd(inside, wishes), fails_early=False)

    return NonBlocking(source, make, wishes.events, in_lines=True)


FLUENTD = Registration(OPTIONS | ATTRIBUTES | CACHE, _check, _create, remote=True)
