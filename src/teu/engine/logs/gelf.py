# SPDX-License-Identifier: Apache-2.0
"""The log driver gelf: each line is a message of the Graylog Extended Log Format 1.1, a JSON object.

Over UDP it is compressed, and cut into chunks where it is larger than a datagram (0x1e 0x0f, eight bytes that all
chunks of a message have, the chunk's number, how many there are); over TCP a zero byte ends it.
"""

from __future__ import annotations

import gzip
import json
import secrets
import socket
import threading
import zlib

from teu.engine.core.errors import BadRequest
from teu.engine.core.kinds import natural
from teu.engine.logs.driver import (
    Driver,
    LogSource,
    Registration,
    check_attributes,
    command,
    extra_attributes,
    tag,
)
from teu.engine.logs.options import ATTRIBUTES, CACHE, check_cache
from teu.engine.logs.remote import Message, Receiver, Remote, Stopped, address

DATAGRAM = 1420  # bytes at most, docker's
CHUNK = DATAGRAM - 12
CHUNKS = 128
LEVELS = {1: 6, 2: 3}  # syslog's
RECONNECTS, RECONNECT_SECONDS = 3, 1
OPTIONS = frozenset(
    {
        "gelf-address",
        "gelf-compression-level",
        "gelf-compression-type",
        "gelf-tcp-max-reconnect",
        "gelf-tcp-reconnect-delay",
    }
)


def _where(options: dict[str, str]) -> tuple[str, str, int]:
    text = options.get("gelf-address", "")
    if not text:
        raise BadRequest("gelf-address is a required parameter")
    url = address(text, "gelf-address")
    if url.scheme not in ("udp", "tcp"):
        raise BadRequest("gelf: endpoint needs to be TCP or UDP")
    if url.port is None or url.hostname is None:
        raise BadRequest("gelf: please provide gelf-address as proto://host:port")
    return url.scheme, url.hostname, url.port


def _check(options: dict[str, str]) -> None:
    scheme = _where(options)[0]
    for name in ("gelf-compression-level", "gelf-compression-type"):
        if name in options and scheme != "udp":
            raise BadRequest(f"{name}: compression is only supported on UDP")
    if options.get("gelf-compression-level", "1") not in ("-1", *"0123456789"):
        raise BadRequest(f"unknown value {options['gelf-compression-level']!r} for log opt gelf-compression-level")
    if options.get("gelf-compression-type", "gzip") not in ("gzip", "zlib", "none"):
        raise BadRequest(
            f"unknown value {options['gelf-compression-type']!r} for log opt gelf-compression-type:"
            " there are gzip, zlib and none"
        )
    for name in ("gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"):
        if name in options and scheme != "tcp":
            raise BadRequest(f"{name} is only valid for TCP")
        if natural(options.get(name, "0")) is None:
            raise BadRequest(f"{name} must be a positive integer")
    check_attributes(options)
    check_cache(options)


class Gelf:
    """The sink."""

    def __init__(self, source: LogSource) -> None:
        options = source.options
        self._scheme, host, port = _where(options)
        self._receiver = Receiver(self._scheme, host, port)
        self._compression = options.get("gelf-compression-type", "gzip")
        self._level = int(options.get("gelf-compression-level", "1"))
        self._reconnects = int(options.get("gelf-tcp-max-reconnect", RECONNECTS))
        self._delay = int(options.get("gelf-tcp-reconnect-delay", RECONNECT_SECONDS))
        more = {
            "_container_id": source.id,
            "_container_name": source.name,
            "_image_id": source.image_id,
            "_image_name": source.image,
            "_command": command(source),
            "_tag": tag(source),
            "_created": source.created,
        }
        for name, value in extra_attributes(source).items():
            more[name if name.startswith("_") else "_" + name] = value
        self._head = json.dumps({"version": "1.1", "host": socket.gethostname()})[:-1]
        self._tail = {kind: f', "level": {level}, {json.dumps(more)[1:]}'.encode() for kind, level in LEVELS.items()}

    def connect(self) -> None:
        """As Sink has it."""
        self._receiver.connect()

    def send(self, messages: list[Message], stopping: threading.Event) -> int:
        """As docker: a message that its datagrams did not bring is not missed; over TCP there are as many tries as the
        options have it."""
        wires = [self._written(message) for message in messages if message.line]
        if self._scheme == "udp":
            return self._send_datagrams(wires)
        data = b"".join(wire + b"\0" for wire in wires)
        for attempt in range(self._reconnects + 1):
            try:
                if not attempt and self._receiver.gone():
                    self._receiver.close()
                self._receiver.connect().sendall(data)
                return 0
            except OSError:
                self._receiver.close()
                if stopping.wait(self._delay if attempt < self._reconnects else 0):
                    raise Stopped from None
        return len(wires)

    def _send_datagrams(self, wires: list[bytes]) -> int:
        lost = 0
        for wire in wires:
            datagrams = self._datagrams(wire)
            lost += not datagrams
            for datagram in datagrams:
                try:
                    self._receiver.connect().send(datagram)
                except ConnectionRefusedError:  # what became of an earlier one
                    self._receiver.connect().send(datagram)
        return lost

    def _datagrams(self, wire: bytes) -> list[bytes]:
        """None where it is more than a message may be."""
        if self._compression == "gzip":
            wire = gzip.compress(wire, self._level, mtime=0)
        elif self._compression == "zlib":
            wire = zlib.compress(wire, self._level)
        if len(wire) <= DATAGRAM:
            return [wire]
        pieces = [wire[start : start + CHUNK] for start in range(0, len(wire), CHUNK)]
        if len(pieces) > CHUNKS:
            return []
        head = b"\x1e\x0f" + secrets.token_bytes(8)
        return [head + bytes((number, len(pieces))) + piece for number, piece in enumerate(pieces)]

    def _written(self, message: Message) -> bytes:
        text = json.dumps(message.line.decode("utf-8", "replace"))
        moment = message.moment // 1_000_000
        return (
            f'{self._head}, "short_message": {text}, "timestamp": {moment // 1000}.{moment % 1000:03d}'.encode()
            + self._tail[message.kind]
        )

    def close(self) -> None:
        self._receiver.close()


def _create(source: LogSource) -> Driver:
    return Remote(source, Gelf(source))


GELF = Registration(OPTIONS | ATTRIBUTES | CACHE, _check, _create, remote=True)
