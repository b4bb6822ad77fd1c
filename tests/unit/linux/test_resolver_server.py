# SPDX-License-Identifier: Apache-2.0
"""The resolver at 127.0.0.11 with containers that are namespaces, and a host that is one, too (needs root)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from drivers import networks as suite

from teu.linux import dns, dnswire, netlink, netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

HOST = "127.0.0.1"
FAR = IPv4Address("192.0.2.99").packed


def query(name: str, number: int = 7) -> bytes:
    return (
        struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0)
        + dnswire.encode_name(name)
        + struct.pack(">HH", dnswire.A, dnswire.IN)
    )


def code(reply: bytes) -> int:
    return reply[3] & 0x0F


class Server(threading.Thread):
    """One of the host's. It has an address for all names but `slow` ones, which it is silent on; it says first
    something else of `forged` ones, and knows no `refused`."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.asked: list[str] = []
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, 53))
        self.tcp = socket.create_server((address, 53))
        self.other = threading.Thread(target=self.streams, daemon=True)

    def start(self) -> None:
        super().start()
        self.other.start()

    def answers(self, message: bytes) -> list[bytes]:
        question = dnswire.parse(message)
        assert question is not None
        self.asked.append(question.name)
        good = dnswire.answer(question, [FAR])
        if question.name.startswith("forged"):
            other = question._replace(wire=question.wire.replace(b"forged", b"trusty"))
            return [dnswire.answer(other, [bytes(4)]), good]
        if question.name.startswith("refused"):
            return [dnswire.answer(question, [], dnswire.REFUSED)]
        return [] if question.name.startswith("slow") else [good]

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while (heard := self.udp.recvfrom(4096))[0]:
                for answer in self.answers(heard[0]):
                    self.udp.sendto(answer, heard[1])

    def streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.tcp.accept()
                with connection:
                    for answer in self.answers(connection.recv(4096)[2:]):
                        connection.sendall(stream(answer))

    def stop(self) -> None:
        for sock in (self.udp, self.tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class House:
    def __init__(self) -> None:
        self.resolver = dns.Resolver()
        self.servers = [HOST]
        self.namespaces: list[int] = []
        self.own: dict[str, list[dnswire.Address]] = {"web": [IPv4Address("10.0.0.2")]}

    def container(self, inside: bool = False) -> Container:
        def furnish() -> None:
            with netlink.Socket() as kernel:
                kernel.send([netlink.set_up(1)])

        namespace, _ = netns.create(furnish)
        self.namespaces.append(namespace)
        self.resolver.add(
            str(namespace),
            namespace,
            lambda name, version: self.own.get(name),
            lambda address: None,
            lambda name: self.servers,
            inside,
        )
        return Container(namespace)

    def close(self) -> None:
        for namespace in self.namespaces:
            self.resolver.remove(str(namespace))
            os.close(namespace)
        self.resolver.close()


class Container:
    def __init__(self, namespace: int) -> None:
        self.namespace = namespace
        self.udp: socket.socket = self.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.connect((dns.ADDRESS, 53))
        self.udp.settimeout(15)

    def inside(self, function: Callable[[], Any]) -> Any:
        return netns.run_in(self.namespace, function)

    def connect(self) -> socket.socket:
        made: socket.socket = self.inside(lambda: socket.create_connection((dns.ADDRESS, 53), 15))
        return made

    def ask(self, name: str) -> bytes:
        self.udp.send(query(name))
        return self.udp.recv(4096)


@pytest.fixture
def house() -> Iterator[House]:
    with suite.own_namespace():
        house = House()
        try:
            yield house
        finally:
            house.close()


@pytest.fixture
def server(house: House) -> Iterator[Server]:
    server = Server(HOST)
    server.start()
    yield server
    server.stop()


def stream(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def heard(connection: socket.socket) -> bytes:
    data = b""
    while chunk := connection.recv(4096):
        data += chunk
    return data


def test_the_host_is_asked_for_what_is_not_ours(house: House, server: Server) -> None:
    box = house.container()
    assert box.ask("web").endswith(IPv4Address("10.0.0.2").packed)
    assert server.asked == []
    for name in ("example.org", "forged.example"):
        reply = box.ask(name)
        assert reply.endswith(FAR)
        assert name.partition(".")[0].encode() in reply
    # What is no address is no server, and is not looked up by its name, for which all would wait.
    house.servers = ["nameserver.example", HOST]
    began = time.monotonic()
    assert code(box.ask("example.org")) == dnswire.NOERROR
    assert time.monotonic() - began < 1


def test_a_containers_own_servers_are_asked_from_there(house: House, server: Server) -> None:
    """The same address is another machine there: its own, or one that the host has no way to."""
    box, other = house.container(inside=True), house.container(inside=True)
    house.servers = [dns.ADDRESS, HOST]
    own = box.inside(lambda: Server(HOST))
    own.start()
    assert box.ask("example.org").endswith(FAR)
    assert (own.asked, server.asked) == (["example.org"], [])
    assert code(other.ask("example.org")) == dnswire.SERVFAIL
    assert house.container().ask("example.com").endswith(FAR)
    assert server.asked == ["example.com"]
    own.stop()


def test_without_servers(house: House) -> None:
    house.servers = []
    box = house.container()
    assert code(box.ask("nobody")) == dnswire.NXDOMAIN
    assert code(box.ask("example.org")) == dnswire.SERVFAIL


def test_one_that_does_not_answer_is_asked_last(house: House, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "UPSTREAM_SECONDS", 1.5)
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.3", 53))
    house.servers = ["127.0.0.3", HOST]
    box = house.container()
    assert code(box.ask("one.example")) == dnswire.NOERROR
    began = time.monotonic()
    assert code(box.ask("two.example")) == dnswire.NOERROR
    assert time.monotonic() - began < 1.2
    silent.close()


def test_a_question_has_its_time(house: House, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "UPSTREAM_SECONDS", 0.3)
    monkeypatch.setattr(dns, "QUERY_SECONDS", 0.5)
    house.servers = [HOST] * 20
    box = house.container()
    began = time.monotonic()
    assert code(box.ask("slow.example")) == dnswire.SERVFAIL
    assert time.monotonic() - began < 3
    assert len(server.asked) == 2
    # A server that refuses is one of several: the next one may know.
    house.servers = [HOST, HOST]
    assert code(box.ask("refused.example")) == dnswire.REFUSED
    assert server.asked.count("refused.example") == 2


def test_streams(house: House, server: Server) -> None:
    box = house.container()
    with box.connect() as connection:
        # Several questions at once, in pieces; and the end, which does not mean that no answers are wanted.
        data = stream(query("web", 1)) + stream(query("one.example", 2)) + stream(query("two.example", 3))
        for part in (data[:1], data[1:30], data[30:]):
            connection.sendall(part)
            time.sleep(0.02)
        connection.shutdown(socket.SHUT_WR)
        answers = heard(connection)
    assert answers.count(FAR) == 2
    assert IPv4Address("10.0.0.2").packed in answers
    with box.connect() as connection:
        connection.sendall(stream(b"what is no question"))
        assert heard(connection) == b""


def test_a_container_has_its_bounds(house: House, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "PENDING", 10)
    monkeypatch.setattr(dns, "CONNECTIONS", 4)
    greedy, other = house.container(), house.container()
    connections = [greedy.connect() for _ in range(6)]
    for connection in connections[:2]:  # the oldest have to go
        assert connection.recv(1) == b""
    for number in range(20):
        greedy.udp.send(query("slow.example", number))
    assert [code(greedy.udp.recv(4096)) for _ in range(10)] == [dnswire.REFUSED] * 10
    assert code(other.ask("example.org")) == dnswire.NOERROR
    assert greedy.ask("web").endswith(IPv4Address("10.0.0.2").packed)
    for connection in connections:
        connection.close()


def test_all_together_have_a_bound_and_each_its_share(
    house: House, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "PENDING_ALL", 20)
    greedy = [house.container() for _ in range(3)]
    for box in greedy:
        for number in range(10):
            box.udp.send(query("slow.example", number))
    other = house.container()
    assert code(other.ask("example.org")) == dnswire.NOERROR
    assert house.resolver._pending <= 20 + len(greedy) * 5


def test_a_hundred_that_ask_at_once_starve_nobody(house: House, server: Server) -> None:
    crowd, other = [house.container() for _ in range(100)], house.container()
    flooding = os.fork()
    if not flooding:
        for box in crowd:
            box.udp.setblocking(False)
        while True:
            for box in crowd:
                with contextlib.suppress(OSError):
                    for _ in range(20):
                        box.udp.send(query("web"))
    try:
        time.sleep(0.2)
        took = []
        for number in range(20):
            began = time.monotonic()
            assert code(other.ask("web" if number % 2 else "example.org")) == dnswire.NOERROR
            took.append(time.monotonic() - began)
    finally:
        os.kill(flooding, signal.SIGKILL)
        os.waitpid(flooding, 0)
    assert sorted(took)[10] < 1, took


def test_without_descriptors_it_goes_on(house: House, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed for want of descriptors counts no more."""
    box = house.container()
    monkeypatch.setattr(dns, "PENDING", 3)

    def none(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(dns.Resolver, "_ask", none)
        for _ in range(6):
            assert code(box.ask("example.org")) == dnswire.SERVFAIL
    assert code(box.ask("example.org")) == dnswire.NOERROR


def test_nothing_is_open_after_a_close(house: House) -> None:
    before = len(os.listdir("/proc/self/fd"))
    resolver = dns.Resolver()
    assert len(os.listdir("/proc/self/fd")) == before
    for number in (1, 2):
        namespace, _ = netns.create(_loopback)
        resolver.add(str(number), namespace, lambda name, version: None, lambda address: None, lambda name: [])
        os.close(namespace)
    resolver.close()
    resolver.close()
    assert len(os.listdir("/proc/self/fd")) == before


def _loopback() -> None:
    with netlink.Socket() as kernel:
        kernel.send([netlink.set_up(1)])
