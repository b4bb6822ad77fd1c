# SPDX-License-Identifier: Apache-2.0
"""The resolver of user-defined networks: 127.0.0.11 in every container that is on one.

Its sockets are opened inside the container's network namespace, on ports of the kernel's choice; a rule in there
(table `ip teu-dns`) leads port 53 of 127.0.0.11 to them, so that port 53 stays free for the container's own
servers. The names of containers on the same networks are answered from memory, all else goes to the host's
servers, or to those of --dns, from the host. One thread waits for all queries; what goes out does so in a few
more. Called by networks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import NamedTuple

from teu.linux import netns, nftables

log = logging.getLogger("teu.engine")

ADDRESS = "127.0.0.11"
TTL = 600
UPSTREAM_SECONDS = 3.0
WORKERS = 8
TCP_SECONDS = 10.0

A, PTR, AAAA, IN = 1, 12, 28, 1
NOERROR, SERVFAIL = 0, 2
_HEADER = struct.Struct(">HHHHHH")

_RULES = """
add table ip teu-dns
delete table ip teu-dns
table ip teu-dns {{
    chain output {{
        type nat hook output priority -100; policy accept;
        ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:{udp}
        ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:{tcp}
    }}
}}
"""


class Question(NamedTuple):
    identity: int
    flags: int
    name: str
    kind: int
    klass: int
    wire: bytes


# What a container may know: addresses of a name, names of an address. None means: not ours, ask others.
Lookup = Callable[[str], "list[IPv4Address] | None"]
Reverse = Callable[[IPv4Address], "str | None"]


def parse(message: bytes) -> Question | None:
    """The first question of a query; None for what is none."""
    if len(message) < _HEADER.size:
        return None
    identity, flags, questions, _, _, _ = _HEADER.unpack_from(message)
    if flags & 0x8000 or flags & 0x7800 or questions != 1:
        return None
    labels = []
    position = _HEADER.size
    while True:
        if position >= len(message):
            return None
        length = message[position]
        if length == 0:
            break
        if length > 63 or position + 1 + length > len(message):
            return None
        labels.append(message[position + 1 : position + 1 + length].decode("ascii", "replace"))
        position += 1 + length
    end = position + 5
    if end > len(message):
        return None
    kind, klass = struct.unpack_from(">HH", message, position + 1)
    return Question(identity, flags, ".".join(labels).lower(), kind, klass, message[_HEADER.size : end])


def answer(question: Question, records: list[bytes], code: int = NOERROR) -> bytes:
    """A reply with these record data, all of the question's type."""
    flags = 0x8000 | 0x0080 | (question.flags & 0x0100) | code
    header = _HEADER.pack(question.identity, flags, 1, len(records), 0, 0)
    body = question.wire
    for data in records:
        body += b"\xc0\x0c" + struct.pack(">HHIH", question.kind, question.klass, TTL, len(data)) + data
    return header + body


def encode_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in name.encode().split(b".") if label) + b"\0"


def local(question: Question, lookup: Lookup, reverse: Reverse) -> bytes | None:
    """The reply to what the networks know; None: ask others."""
    if question.klass != IN:
        return None
    if question.kind in (A, AAAA):
        addresses = lookup(question.name)
        if addresses is None:
            return None
        random.shuffle(addresses)
        return answer(question, [a.packed for a in addresses] if question.kind == A else [])
    if question.kind == PTR and question.name.endswith(".in-addr.arpa"):
        parts = question.name.removesuffix(".in-addr.arpa").split(".")
        try:
            name = reverse(IPv4Address(".".join(reversed(parts))))
        except ValueError:
            return None
        return None if name is None else answer(question, [encode_name(name)])
    return None


class _Client:
    """One container's resolver."""

    def __init__(
        self, udp: socket.socket, tcp: socket.socket, lookup: Lookup, reverse: Reverse, servers: list[str]
    ) -> None:
        self.udp, self.tcp = udp, tcp
        self.lookup, self.reverse, self.servers = lookup, reverse, servers


class Resolver:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._clients: dict[str, _Client] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._wake_read, self._wake_write = os.pipe()

    def add(self, identity: str, namespace: int, lookup: Lookup, reverse: Reverse, servers: list[str]) -> None:
        """Serve a container. `servers` are asked for what is not ours; none: nothing else is answered."""

        def inside() -> tuple[socket.socket, socket.socket]:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                udp.bind((ADDRESS, 0))
                tcp.bind((ADDRESS, 0))
                tcp.listen(16)
                nftables.run_here(_RULES.format(udp=udp.getsockname()[1], tcp=tcp.getsockname()[1]))
            except BaseException:
                udp.close()
                tcp.close()
                raise
            udp.setblocking(False)
            tcp.setblocking(False)
            return udp, tcp

        udp, tcp = netns.run_in(namespace, inside)
        client = _Client(udp, tcp, lookup, reverse, servers)
        with self._lock:
            self._clients[identity] = client
            if self._pool is None:
                self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="dns")
                self._selector.register(self._wake_read, selectors.EVENT_READ, None)
                threading.Thread(target=self._serve, name="dns", daemon=True).start()
            self._selector.register(udp, selectors.EVENT_READ, client)
            self._selector.register(tcp, selectors.EVENT_READ, client)
        os.write(self._wake_write, b"x")

    def remove(self, identity: str) -> None:
        with self._lock:
            client = self._clients.pop(identity, None)
            if client is None:
                return
            for sock in (client.udp, client.tcp):
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(sock)
                sock.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                client = key.data
                if client is None:
                    os.read(self._wake_read, 64)
                    continue
                try:
                    if key.fileobj is client.udp:
                        self._datagram(client)
                    else:
                        connection, _ = client.tcp.accept()
                        assert self._pool
                        self._pool.submit(self._connection, client, connection)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    log.debug("resolver: %s", error)
                except Exception:
                    log.exception("resolver: a query failed")

    def _datagram(self, client: _Client) -> None:
        message, sender = client.udp.recvfrom(4096)
        question = parse(message)
        if question is None:
            return
        reply = local(question, client.lookup, client.reverse)
        if reply is not None:
            client.udp.sendto(reply, sender)
            return
        assert self._pool
        self._pool.submit(self._forward_datagram, client, message, question, sender)

    def _forward_datagram(self, client: _Client, message: bytes, question: Question, sender: tuple[str, int]) -> None:
        reply = ask(client.servers, message) or answer(question, [], SERVFAIL)
        with contextlib.suppress(OSError):
            client.udp.sendto(reply, sender)

    def _connection(self, client: _Client, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            connection.settimeout(TCP_SECONDS)
            while True:
                message = _read_tcp(connection)
                question = parse(message)
                if question is None:
                    return
                reply = local(question, client.lookup, client.reverse)
                if reply is None:
                    reply = ask_tcp(client.servers, message) or answer(question, [], SERVFAIL)
                connection.sendall(struct.pack(">H", len(reply)) + reply)


def _family(server: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server else socket.AF_INET


def ask(servers: list[str], message: bytes) -> bytes | None:
    """Ask one server after the other by UDP."""
    for server in servers:
        try:
            with socket.socket(_family(server), socket.SOCK_DGRAM) as sock:
                sock.settimeout(UPSTREAM_SECONDS)
                sock.connect((server, 53))
                sock.send(message)
                while True:
                    reply = sock.recv(65535)
                    if reply[:2] == message[:2]:
                        return reply
        except OSError:
            continue
    return None


def ask_tcp(servers: list[str], message: bytes) -> bytes | None:
    for server in servers:
        try:
            with socket.create_connection((server, 53), UPSTREAM_SECONDS) as sock:
                sock.sendall(struct.pack(">H", len(message)) + message)
                return _read_tcp(sock)
        except (OSError, EOFError):
            continue
    return None


def _read_tcp(sock: socket.socket) -> bytes:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = sock.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    return exactly(struct.unpack(">H", exactly(2))[0])
