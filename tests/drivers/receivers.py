# SPDX-License-Identifier: Apache-2.0
"""Receivers of logs on loopback: what a driver that sends them elsewhere is tried with. They keep all that comes."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

SECONDS = 20.0


class Receiver:
    """Listens on a free port (or a path), and keeps what each connection or datagram brought."""

    def __init__(self, kind: str = "tcp", path: Path | None = None, context: ssl.SSLContext | None = None) -> None:
        self.kind = kind
        self.path = path
        self.context = context
        self.came: list[bytearray] = []
        self.acknowledges = False
        self.reads = True
        self._sockets: list[socket.socket] = []
        self.port = 0
        self.listen()

    def listen(self) -> None:
        """Also again, on the port it had."""
        family = socket.AF_UNIX if self.path else socket.AF_INET
        datagrams = self.kind in ("udp", "unixgram")
        self._listener = socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.path:
            self.path.unlink(missing_ok=True)
            self._listener.bind(str(self.path))
        else:
            self._listener.bind(("127.0.0.1", self.port))
            self.port = self._listener.getsockname()[1]
        if not datagrams:
            self._listener.listen()
        target = self._datagrams if datagrams else self._accept
        threading.Thread(target=target, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()
        self._sockets.clear()

    def _datagrams(self, listener: socket.socket) -> None:
        while True:
            try:
                data = listener.recv(1 << 16)
            except OSError:
                return
            if not data:
                return
            self.came.append(bytearray(data))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                found, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(found,), daemon=True).start()

    def _serve(self, found: socket.socket) -> None:
        mine = bytearray()
        self.came.append(mine)
        answered = 0
        try:
            if self.context is not None:
                found = self.context.wrap_socket(found, server_side=True)
            self._sockets.append(found)
            while True:
                while not self.reads:
                    time.sleep(0.01)
                data = found.recv(1 << 16)
                if not data:
                    return
                mine += data
                if self.acknowledges:
                    events = unpacked(bytes(mine))
                    for event in events[answered:]:
                        chunk = event[3]["chunk"].encode()
                        found.sendall(b"\x81\xa3ack" + bytes((0xA0 | len(chunk),)) + chunk)
                    answered = len(events)
        except OSError:
            return

    def all(self) -> bytes:
        return b"".join(bytes(each) for each in tuple(self.came))

    def wait(self, what: bytes) -> bytes:
        """Until that has come: all that has."""
        deadline = time.monotonic() + SECONDS
        while what not in (found := self.all()):
            assert time.monotonic() < deadline, (what, found[-2000:])
            time.sleep(0.005)
        return found


def unpacked(data: bytes) -> list[Any]:
    """Whole values of MessagePack, as far as the Forward protocol has them; the time with a fraction is a tuple."""
    found = []
    position = 0
    while position < len(data):
        try:
            value, position = _value(data, position)
        except (IndexError, struct.error):
            break
        found.append(value)
    return found


def _value(data: bytes, at: int) -> tuple[Any, int]:
    mark = data[at]
    at += 1
    if mark < 0x80:
        return mark, at
    if mark & 0xF0 == 0x80 or mark == 0xDE:
        count, at = (mark & 15, at) if mark != 0xDE else (struct.unpack_from(">H", data, at)[0], at + 2)
        entries = {}
        for _ in range(count):
            key, at = _value(data, at)
            entries[key], at = _value(data, at)
        return entries, at
    if mark & 0xF0 == 0x90:
        items = []
        for _ in range(mark & 15):
            item, at = _value(data, at)
            items.append(item)
        return items, at
    if mark & 0xE0 == 0xA0 or mark in (0xD9, 0xDA, 0xDB):
        form = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}.get(mark)
        length = mark & 31
        if form:
            (length,) = struct.unpack_from(form, data, at)
            at += struct.calcsize(form)
        if at + length > len(data):
            raise IndexError
        return data[at : at + length].decode("utf-8", "surrogateescape"), at + length
    if mark == 0xC0:
        return None, at
    if mark == 0xD7:
        return struct.unpack_from(">II", data, at + 1), at + 9
    form = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}[mark]
    return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)


def gelf_messages(receiver: Receiver) -> list[dict[str, Any]]:
    """What has come, by TCP or by UDP, put together and unpacked."""
    if receiver.kind == "tcp":
        return [json.loads(text) for text in receiver.all().split(b"\0") if text]
    found = []
    chunks: dict[bytes, dict[int, bytes]] = {}
    for datagram in map(bytes, receiver.came):
        if datagram.startswith(b"\x1e\x0f"):
            parts = chunks.setdefault(datagram[2:10], {})
            parts[datagram[10]] = datagram[12:]
            if len(parts) < datagram[11]:
                continue
            datagram = b"".join(parts[number] for number in range(datagram[11]))
        if not datagram.startswith(b"{"):
            datagram = zlib.decompress(datagram, 47)
        found.append(json.loads(datagram))
    return found
