# SPDX-License-Identifier: Apache-2.0
"""A resolver for those who cannot ask the host's servers: 127.0.0.11 in every container of a user-defined network, and
in those that the host's own servers, on its loopback, do not hear.

Its sockets are opened inside the container's network namespace, on ports of the kernel's choice; rules in there
(dnsrules.py) lead port 53 of 127.0.0.11 to them, so that port 53 stays free for the container's own
servers. The names of containers on the same networks are answered from memory, all else goes to the host's
servers, from the host, or to those of --dns, from the container: they may be its own, or behind a network that the
container alone is on. Called by the engine's names, and by the builder's network.

One thread serves all containers and never waits for any of them, nor for a server: every socket is asked when it has
something to say. What a container can keep open here is bounded (PENDING, CONNECTIONS, QUERY_SECONDS), and whoever is
at that bound is in nobody's way but its own: each gets its turn, with a few questions at a time, and where all together
have too many on their way, those are refused who have more than their share.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, ip_address

from teu.linux import netns
from teu.linux.dnswire import (
    HEADER,
    LARGE,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    Lookup,
    Question,
    Reverse,
    answer,
    fit,
    local,
    parse,
    repeats,
)
from teu.linux.namespaces import CLONE_NEWNET, setns

log = logging.getLogger("teu.linux")

ADDRESS = "127.0.0.11"
UPSTREAM_SECONDS = 3.0  # that a server has
QUERY_SECONDS = 10.0  # that all of them together have for a question
SLOW_SECONDS = 30.0  # for which a server that did not answer is asked last
TCP_SECONDS = 10.0
PENDING = 100  # questions of one container that wait for a server; further ones are refused
PENDING_ALL = 2048  # of all; then only those get more who have less than their share
SHARE_MIN = 4
TURN = 4  # datagrams of one container before it is the others' turn
STREAM_TURN = 2048  # bytes of one connection, likewise
CONNECTIONS = 32  # of one container; a further one ends the one that has been silent longest
UNSENT = 1 << 18  # bytes that a connection's client does not fetch
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# The servers to ask for a name, as they are then; none: nobody is asked.
Servers = Callable[[str], Sequence[str]]


class _Client:
    """One container's resolver."""

    def __init__(
        self,
        udp: socket.socket,
        tcp: socket.socket,
        lookup: Lookup,
        reverse: Reverse,
        servers: Servers,
        namespace: int,
    ) -> None:
        self.udp, self.tcp = udp, tcp
        self.lookup, self.reverse, self.servers = lookup, reverse, servers
        self.namespace = namespace  # from which servers are asked, a descriptor of our own; -1: the host's
        self.pending = 0
        self.connections: dict[int, _Connection] = {}  # the one that was heard last is last
        self.gone = False


class _Connection:
    """A container's TCP connection."""

    def __init__(self, client: _Client, sock: socket.socket) -> None:
        self.client, self.socket = client, sock
        self.received = b""
        self.unsent = b""
        self.heard = time.monotonic()
        self.waiting = 0  # questions that are not answered yet
        self.ended = False  # nothing more is to come from the client
        self.events = 0  # for which it is registered
        self.closed = False


class _Errand:
    """A question on its way through the servers, one after the other."""

    def __init__(
        self, client: _Client, message: bytes, question: Question, stream: bool, done: Callable[[bytes], None]
    ) -> None:
        self.client, self.message, self.question, self.stream, self.done = client, message, question, stream, done
        self.servers: deque[str] = deque()
        self.until = time.monotonic() + QUERY_SECONDS
        self.server = ""
        self.socket: socket.socket | None = None
        self.unsent = b""
        self.received = b""
        self.attempt = 0
        self.worst = b""  # what a server said that had no answer


class Resolver:
    """The server of all containers of a program, in one thread that begins with the first of them. Its methods may be
    called from any thread, and wait for no network."""

    def __init__(self) -> None:
        self._selector: selectors.BaseSelector  # from the first container on, as are the ends of the pipe
        self._lock = threading.Lock()
        self._clients: dict[str, _Client] = {}
        self._orders: deque[tuple[bool, _Client]] = deque()
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = -1, -1
        self._closing = self._over = False
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._pending = 0
        # Servers that did not answer, until when they are asked last; with whom asks where that is not the host.
        self._slow: dict[tuple[int, str], float] = {}
        self._number = itertools.count()

    def add(
        self,
        identity: str,
        namespace: int,
        lookup: Lookup,
        reverse: Reverse,
        servers: Servers,
        inside: bool = False,
    ) -> None:
        """Serve a container, in its network namespace, an open file. What is not ours is asked of `servers`, from there
        (`inside`) or from the host; where there are none, a name without a dot does not exist, and what others are is
        not known. Raises OSError."""
        from teu.linux import dnsrules  # 4 ms with netlink

        def opened() -> tuple[socket.socket, socket.socket]:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                udp.bind((ADDRESS, 0))
                tcp.bind((ADDRESS, 0))
                tcp.listen(16)
                dnsrules.lead(IPv4Address(ADDRESS), udp.getsockname()[1], tcp.getsockname()[1])
            except BaseException:
                udp.close()
                tcp.close()
                raise
            udp.setblocking(False)
            tcp.setblocking(False)
            return udp, tcp

        self._begin()
        udp, tcp = netns.run_in(namespace, opened)
        try:
            client = _Client(udp, tcp, lookup, reverse, servers, os.dup(namespace) if inside else -1)
        except BaseException:
            udp.close()
            tcp.close()
            raise
        with self._lock:
            self._clients[identity] = client
            self._orders.append((True, client))
        self._wake()

    def _begin(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._wake_read, selectors.EVENT_READ, self._ordered)
            self._thread = threading.Thread(target=self._serve, name="dns", daemon=True)
            self._thread.start()

    def remove(self, identity: str) -> None:
        """Serve a container no more; nothing where it was not served. Its sockets are closed soon after."""
        with self._lock:
            client = self._clients.pop(identity, None)
            if client is None:
                return
            self._orders.append((False, client))
        self._wake()

    def close(self) -> None:
        """Serve nobody from now on: the thread ends, and what is open is closed then. Nobody can be added after it."""
        with self._lock:
            if self._thread is None or self._closing:
                return
            self._orders += [(False, client) for client in self._clients.values()]
            self._clients.clear()
            self._closing = True
            self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake already
            os.write(self._wake_write, b"x")

    # -- all below is the thread's own ---------------------------------------------------------

    def _serve(self) -> None:
        while not self._over:
            timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, _ in self._selector.select(timeout):
                self._safely(key.data)
            while self._due and self._due[0][0] <= time.monotonic():
                self._safely(heapq.heappop(self._due)[2])
        with self._lock:  # who closes writes into the pipe
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _safely(self, function: Callable[[], None]) -> None:
        try:
            function()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            log.debug("resolver: %s", error)
        except Exception:
            log.exception("resolver: a query failed")

    def _later(self, seconds: float, function: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._number), function))

    def _ordered(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        closing = self._closing  # before the last orders are looked for
        while self._orders:
            self._safely(partial(self._order, *self._orders.popleft()))
        self._over = closing

    def _order(self, add: bool, client: _Client) -> None:
        if add:
            self._selector.register(client.udp, selectors.EVENT_READ, partial(self._datagrams, client))
            self._selector.register(client.tcp, selectors.EVENT_READ, partial(self._accept, client))
            return
        client.gone = True
        for sock in (client.udp, client.tcp):
            with contextlib.suppress(KeyError):  # it waits for descriptors
                self._selector.unregister(sock)
            sock.close()
        for connection in list(client.connections.values()):
            self._close(connection)
        if client.namespace >= 0:
            os.close(client.namespace)

    # -- what containers ask -------------------------------------------------------------------

    def _datagrams(self, client: _Client) -> None:
        for _ in range(TURN):
            if client.gone:
                return
            message, sender = client.udp.recvfrom(LARGE)
            question = parse(message)
            if question is not None:
                self._answer(client, message, question, False, self._to_sender(client, question, sender))

    def _to_sender(self, client: _Client, question: Question, sender: tuple[str, int]) -> Callable[[bytes], None]:
        def send(reply: bytes) -> None:
            if not client.gone:
                with contextlib.suppress(OSError):
                    client.udp.sendto(fit(reply, question), sender)

        return send

    def _answer(
        self, client: _Client, message: bytes, question: Question, stream: bool, done: Callable[[bytes], None]
    ) -> None:
        reply = local(question, client.lookup, client.reverse)
        if reply is not None:
            done(reply)
            return
        servers = self._usable(client, client.servers(question.name))
        if not servers:
            done(answer(question, [], SERVFAIL if "." in question.name else NXDOMAIN))
        elif client.pending >= PENDING or self._pending >= PENDING_ALL and client.pending >= self._share():
            done(answer(question, [], REFUSED))
        else:
            client.pending += 1
            self._pending += 1
            errand = _Errand(client, message, question, stream, done)
            errand.servers.extend(servers)
            self._next(errand)

    def _share(self) -> int:
        return max(SHARE_MIN, PENDING_ALL // max(1, len(self._clients)))

    def _usable(self, client: _Client, servers: Sequence[str]) -> list[str]:
        """Those that are addresses, as a name would be waited for, and not we; first those that have answered."""
        now = time.monotonic()
        for known in [known for known, until in self._slow.items() if until < now]:
            del self._slow[known]
        return sorted(filter(_is_server, servers), key=lambda server: (client.namespace, server) in self._slow)

    def _accept(self, client: _Client) -> None:
        try:
            sock, _ = client.tcp.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:  # it stays readable, and would be asked again at once
                self._selector.unregister(client.tcp)
                self._later(1.0, lambda: self._listen(client))
            raise
        sock.setblocking(False)
        if len(client.connections) >= CONNECTIONS:
            self._close(next(iter(client.connections.values())))
        connection = _Connection(client, sock)
        client.connections[id(connection)] = connection
        self._await(connection)
        self._later(TCP_SECONDS, lambda: self._silent(connection))

    def _listen(self, client: _Client) -> None:
        if not client.gone:
            self._selector.register(client.tcp, selectors.EVENT_READ, partial(self._accept, client))

    def _silent(self, connection: _Connection) -> None:
        left = connection.heard + TCP_SECONDS - time.monotonic()
        if connection.closed:
            return
        if left > 0:
            self._later(left, lambda: self._silent(connection))
        else:
            self._close(connection)

    def _await(self, connection: _Connection) -> None:
        """Wait for what the connection has still to do; one with nothing to do is closed."""
        if connection.closed:
            return
        if connection.ended and not connection.waiting and not connection.unsent:
            self._close(connection)
            return
        events = (0 if connection.ended else selectors.EVENT_READ) | (selectors.EVENT_WRITE if connection.unsent else 0)
        if events == connection.events:
            return
        if not events:
            self._selector.unregister(connection.socket)
        elif connection.events:
            self._selector.modify(connection.socket, events, lambda: self._connection(connection))
        else:
            self._selector.register(connection.socket, events, lambda: self._connection(connection))
        connection.events = events

    def _close(self, connection: _Connection) -> None:
        if not connection.closed:
            connection.closed = True
            connection.client.connections.pop(id(connection), None)
            if connection.events:
                self._selector.unregister(connection.socket)
            connection.socket.close()

    def _connection(self, connection: _Connection) -> None:
        try:
            self._flush(connection)
            data = b"" if connection.ended else connection.socket.recv(STREAM_TURN)
        except (BlockingIOError, InterruptedError):
            self._await(connection)
            return
        except OSError:
            self._close(connection)
            return
        if not data:  # what it has asked is still answered (RFC 7766, 6.2.4)
            connection.ended = True
            self._await(connection)
            return
        client = connection.client
        connection.heard = time.monotonic()
        client.connections[id(connection)] = client.connections.pop(id(connection))
        connection.received += data
        while not connection.closed:
            message, connection.received = _framed(connection.received)
            if message is None:
                return
            question = parse(message)
            if question is None:
                self._close(connection)
                return
            connection.waiting += 1
            self._answer(client, message, question, True, lambda reply: self._reply(connection, reply))

    def _reply(self, connection: _Connection, reply: bytes) -> None:
        connection.waiting -= 1
        if connection.closed:
            return
        connection.heard = time.monotonic()
        connection.unsent += struct.pack(">H", len(reply)) + reply
        try:
            self._flush(connection)
        except OSError:
            self._close(connection)
        self._await(connection)

    def _flush(self, connection: _Connection) -> None:
        if connection.unsent:
            with contextlib.suppress(BlockingIOError):
                connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
            if len(connection.unsent) > UNSENT:
                raise OSError(errno.ENOBUFS, "the client does not read")

    # -- what is asked of servers --------------------------------------------------------------

    def _next(self, errand: _Errand) -> None:
        """To the next server; without one, what is there is the answer."""
        self._leave(errand)
        while errand.servers and not errand.client.gone:
            seconds = min(UPSTREAM_SECONDS, errand.until - time.monotonic())
            if seconds <= 0:
                break
            errand.server = errand.servers.popleft()
            try:
                errand.socket = self._ask(errand, errand.server)
            except OSError:
                continue
            errand.received = b""
            errand.unsent = struct.pack(">H", len(errand.message)) + errand.message if errand.stream else b""
            errand.attempt += 1
            events = selectors.EVENT_WRITE if errand.stream else selectors.EVENT_READ
            self._selector.register(errand.socket, events, lambda: self._progress(errand))
            self._later(seconds, partial(self._late, errand, errand.attempt))
            return
        self._finish(errand, errand.worst or answer(errand.question, [], SERVFAIL))

    def _ask(self, errand: _Errand, server: str) -> socket.socket:
        kind = socket.SOCK_STREAM if errand.stream else socket.SOCK_DGRAM
        sock = self._open(errand.client.namespace, _family(server), kind | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(BlockingIOError):
                sock.connect((server, 53))
            if not errand.stream:
                sock.send(errand.message)
        except BaseException:
            sock.close()
            raise
        return sock

    def _open(self, namespace: int, family: int, kind: int) -> socket.socket:
        """A socket of a container's, or of the host's. This thread is in the other namespace for a moment: to have one
        of its own for each question would cost twenty times as much."""
        if namespace < 0:
            return socket.socket(family, kind)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(namespace, CLONE_NEWNET)
            try:
                return socket.socket(family, kind)
            finally:
                setns(home, CLONE_NEWNET)
        finally:
            os.close(home)

    def _leave(self, errand: _Errand) -> None:
        if errand.socket is not None:
            self._selector.unregister(errand.socket)
            errand.socket.close()
            errand.socket = None

    def _finish(self, errand: _Errand, reply: bytes) -> None:
        self._leave(errand)
        errand.client.pending -= 1
        self._pending -= 1
        errand.done(reply)

    def _late(self, errand: _Errand, attempt: int) -> None:
        if errand.socket is not None and errand.attempt == attempt:
            self._slow[errand.client.namespace, errand.server] = time.monotonic() + SLOW_SECONDS
            self._next(errand)

    def _progress(self, errand: _Errand) -> None:
        assert errand.socket is not None
        try:
            reply = self._heard(errand, errand.socket)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._next(errand)
            return
        if reply is None or len(reply) < HEADER.size or not repeats(reply, errand.question):
            return
        self._slow.pop((errand.client.namespace, errand.server), None)
        if reply[3] & 0x0F in (SERVFAIL, REFUSED) and errand.servers:
            errand.worst = reply
            self._next(errand)
        else:
            self._finish(errand, reply)

    def _heard(self, errand: _Errand, sock: socket.socket) -> bytes | None:
        if not errand.stream:
            return sock.recv(65535)
        if errand.unsent:
            errand.unsent = errand.unsent[sock.send(errand.unsent) :]
            if not errand.unsent:
                self._selector.modify(sock, selectors.EVENT_READ, lambda: self._progress(errand))
            return None
        data = sock.recv(65535)
        if not data:
            raise ConnectionResetError("the server closed the connection instead of answering")
        errand.received += data
        message, errand.received = _framed(errand.received)
        return message


def _is_server(server: str) -> bool:
    """Whether it can be asked: an address, and not our own."""
    try:
        ip_address(server.partition("%")[0])
    except ValueError:
        return False
    return server != ADDRESS


def _family(server: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server else socket.AF_INET


def _framed(data: bytes) -> tuple[bytes | None, bytes]:
    """The first message of a TCP stream, and the rest."""
    if len(data) < 2:
        return None, data
    end = 2 + struct.unpack_from(">H", data)[0]
    return (data[2:end], data[end:]) if len(data) >= end else (None, data)
