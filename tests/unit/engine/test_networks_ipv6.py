# SPDX-License-Identifier: Apache-2.0
"""Networks with IPv6 against the kernel, in a network namespace of the test's own (needs root)."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import echo
import engine_parts as parts
import pytest
from drivers import networks as suite
from networkhouse import Engine, container, inside, pings, reach, start

from teu.engine.containers.network_settings import HostPort
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.networks import outward
from teu.engine.networks.drivers import bridge
from teu.engine.networks.options import OPTION_HOST, OPTION_MODES, OPTION_TRUSTED
from teu.linux import netlink, netns, nftables

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

BOTH = {"EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "10.77.0.0/24"}, {"Subnet": "fd00:77::/64"}]}}
SIX = {"EnableIPv4": False, "EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "fd00:77::/64"}]}}
_FILTERED = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with suite.own_namespace():
        if _FILTERED.exists():
            _FILTERED.write_text("0")
        engine = Engine(tmp_path)
        yield engine
        engine.end()


def serve(engine: Engine, one: Any, port: int = 80, text: bytes = b"hello") -> socket.socket:
    """A server of both families that says whence it was called."""
    return netns.run_in(
        engine.endpoints._active[one.id].namespace,
        lambda: socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True),
    )


def caller(server: socket.socket) -> str:
    server.settimeout(1)
    connection, address = server.accept()
    connection.close()
    return str(address[0]).removeprefix("::ffff:")


def served(server: socket.socket, address: str, port: int) -> bool:
    """Whether it is the container that answers there, and not the socket by which the engine keeps the port."""
    if not reach(address, port):
        return False
    try:
        caller(server)
    except TimeoutError:
        return False
    return True


class Far:
    """Another machine, beside the host, which knows the way to the containers."""

    def __init__(self) -> None:
        self.namespace, peer = netns.create(netlink.Socket)
        with netlink.Socket() as kernel, peer:
            kernel.send([netlink.new_bridge("wan0")])
            wan = netlink.link_index(kernel.link("wan0"))
            for text, length in (("203.0.113.1", 24), ("2001:db8::1", 64)):
                kernel.send([netlink.add_address(wan, ip_address(text), length)])
            kernel.send([netlink.new_veth("wan1", wan, "eth0", self.namespace, "02:42:cb:00:71:02")])
            far = netlink.link_index(peer.link("eth0"))
            for text, length in (("203.0.113.2", 24), ("2001:db8::2", 64)):
                peer.send([netlink.add_address(far, ip_address(text), length)])
            peer.send([netlink.set_up(1), netlink.set_up(far)])
            for text in ("203.0.113.1", "2001:db8::1"):
                peer.send([netlink.default_route(ip_address(text))])

    def reach(self, address: str, port: int, timeout: float = 2.0) -> bool:
        return netns.run_in(self.namespace, lambda: reach(address, port, timeout))

    def server(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return netns.run_in(self.namespace, lambda: socket.create_server((address, 7000), family=family))


@pytest.fixture
def far(engine: Engine) -> Iterator[Far]:
    far = Far()
    yield far
    os.close(far.namespace)


# -- addresses -------------------------------------------------------------------------------------------


def test_both_families(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    one, two = container(engine, tmp_path, 1, "front"), container(engine, tmp_path, 2, "front")
    for each in (one, two):
        start(engine, each)
    settings = one.network_settings.networks["front"].shown()
    assert (settings["IPAddress"], settings["Gateway"], settings["IPPrefixLen"]) == ("10.77.0.2", "10.77.0.1", 24)
    assert (settings["GlobalIPv6Address"], settings["IPv6Gateway"], settings["GlobalIPv6PrefixLen"]) == (
        "fd00:77::2",
        "fd00:77::1",
        64,
    )
    shown = inside(engine, one, "ip -6 addr show eth0")
    assert "inet6 fd00:77::2/64 scope global" in shown
    assert "inet6 fe80::" in shown
    assert "tentative" not in shown
    assert "default via fd00:77::1 dev eth0" in inside(engine, one, "ip -6 route")
    assert "default via 10.77.0.1 dev eth0" in inside(engine, one, "ip route")
    for address in ("10.77.0.3", "fd00:77::3", "fd00:77::1"):
        assert pings(engine, one, address)
    hosts = Path(one.directory, "hosts").read_text()
    assert "10.77.0.2\th1\n" in hosts
    assert "fd00:77::2\th1\n" in hosts
    assert engine.names(one, "c2") == ["10.77.0.3", "fd00:77::3"]
    described = engine.networks.describe(engine.networks.get("front"))
    assert described["EnableIPv6"] is True
    assert described["Containers"][two.id]["IPv6Address"] == "fd00:77::3/64"  # type: ignore[index,call-overload]


def test_ipv6_alone(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **SIX)
    one, two = container(engine, tmp_path, 1, "front"), container(engine, tmp_path, 2, "front")
    for each in (one, two):
        start(engine, each)
    assert one.network_settings.networks["front"].address == ""
    assert "inet " not in inside(engine, one, "ip addr show eth0")
    assert pings(engine, one, "fd00:77::3")
    assert engine.names(one, "c2") == ["fd00:77::3"]
    assert engine.networks.describe(engine.networks.get("front"))["EnableIPv4"] is False
    with pytest.raises(BadRequest, match="IPv4 or IPv6 must be enabled"):
        parts.network(engine.networks, "none-of-both", EnableIPv4=False)


def test_ipv4_alone_has_no_ipv6(engine: Engine, tmp_path: Path) -> None:
    one = container(engine, tmp_path, 1)
    start(engine, one)
    assert inside(engine, one, "ip -6 addr show eth0") == ""
    assert inside(engine, one, "cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6") == "1\n"


def test_a_host_without_ipv6_says_so_once_and_works(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bridge, "_has_ipv6", lambda: False)
    monkeypatch.setattr(outward, "host_has_ipv6", lambda: False)
    parts.network(engine.networks, "front", **BOTH)
    alone = [{"Subnet": "fd00:78::/64"}]
    parts.network(engine.networks, "six", EnableIPv4=False, EnableIPv6=True, IPAM={"Config": alone})
    boxes = [
        container(engine, tmp_path, number, "front", PortBindings={"80/tcp": [{"HostPort": f"808{number}"}]})
        for number in (1, 2)
    ]
    for box in boxes:
        start(engine, box)
    assert sum("this host has no IPv6" in record.message for record in caplog.records) == 1
    assert boxes[0].network_settings.networks["front"].address6 == ""
    assert boxes[0].network_settings.ports == {"80/tcp": [HostPort("0.0.0.0", "8081")]}
    with serve(engine, boxes[0]) as server:
        assert served(server, "127.0.0.1", 8081)
    with pytest.raises(EngineError, match="network six has IPv6 alone, and this host has none"):
        start(engine, container(engine, tmp_path, 3, "six"))


def test_subnets_that_nobody_chose(engine: Engine, tmp_path: Path) -> None:
    networks = [parts.network(engine.networks, name, EnableIPv6=True) for name in ("a", "b")]
    chosen = [pool.subnet for network in networks for pool in network.of(6)]
    assert all(isinstance(subnet, IPv6Network) and subnet.is_private and subnet.prefixlen == 64 for subnet in chosen)
    assert len(set(chosen)) == 2
    assert str(chosen[0])[:12] == str(chosen[1])[:12]  # of this host's one prefix
    fixed = {"a": {"IPAMConfig": {"IPv6Address": str(chosen[0][9])}}}
    with pytest.raises(BadRequest, match="user configured subnets"):
        container(engine, tmp_path, 1, "a", endpoints=fixed)


def test_addresses_that_are_asked_for(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    fixed = {"IPAMConfig": {"IPv6Address": "fd00:77::99", "LinkLocalIPs": ["fe80::77", "169.254.7.7"]}}
    one = container(engine, tmp_path, 1, "front", endpoints={"front": fixed})
    start(engine, one)
    shown = inside(engine, one, "ip addr show eth0")
    for text in ("fd00:77::99/64", "fe80::77/64", "169.254.7.7/16", "10.77.0.2/24"):
        assert text in shown
    two = container(engine, tmp_path, 2, "front", endpoints={"front": fixed})
    with pytest.raises(EngineError, match="Address already in use"):
        engine.endpoints.attach(two)
    # The other family's, which was taken first, is free again.
    three = container(engine, tmp_path, 3, "front")
    start(engine, three)
    assert three.network_settings.networks["front"].address == "10.77.0.3"


def test_auxiliary_addresses(engine: Engine, tmp_path: Path) -> None:
    config = [{"Subnet": "fd00:77::/64", "Gateway": "fd00:77::ff", "AuxiliaryAddresses": {"router": "fd00:77::1"}}]
    parts.network(engine.networks, "front", **{**BOTH, "IPAM": {"Config": config}})
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    assert one.network_settings.networks["front"].address6 == "fd00:77::2"
    assert "default via fd00:77::ff" in inside(engine, one, "ip -6 route")


def test_it_is_quick(engine: Engine, tmp_path: Path) -> None:
    """IPv6 costs no more than some milliseconds: nobody waits for duplicates, and nobody asks for routers."""
    parts.network(engine.networks, "four")
    parts.network(engine.networks, "both", EnableIPv6=True)
    times: dict[str, list[float]] = {"four": [], "both": []}
    for number in range(1, 81):  # the least time of each is what it costs; a busy machine needs more of them
        name = ("four", "both")[number % 2]
        one = container(engine, tmp_path, number, name)
        before = time.perf_counter()
        start(engine, one)
        times[name].append(time.perf_counter() - before)
        if number >= 20 and min(times["both"]) - min(times["four"]) < 0.005:
            break
    assert min(times["both"]) - min(times["four"]) < 0.005
    one = engine.known[0]  # it may speak at once
    engine.endpoints.detach(one)
    start(engine, one)
    gateway = one.network_settings.networks["both"].gateway6
    assert pings(engine, one, gateway)
    assert inside(engine, one, "cat /proc/sys/net/ipv6/conf/eth0/accept_ra") == "0\n"


# -- the way out and in ----------------------------------------------------------------------------------


def test_who_comes_tells_the_neighbours(engine: Engine, tmp_path: Path) -> None:
    """They may know the MAC address of who had the same address before, and would believe it for half a minute."""
    parts.network(engine.networks, "front", **BOTH)
    one = container(engine, tmp_path, 1, "front", endpoints={"front": {"MacAddress": "02:00:00:00:00:07"}})
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as heard:
        heard.settimeout(5)
        start(engine, one)
        mac = bytes.fromhex("020000000007")
        wanted = {
            "a gratuitous ARP": lambda frame: frame[12:14] == b"\x08\x06" and frame[28:32] == bytes((10, 77, 0, 2)),
            "an advertisement": lambda frame: (
                frame[12:14] == b"\x86\xdd" and frame[54] == 136 and frame[62:78] == ip_address("fd00:77::2").packed
            ),
        }
        while wanted:
            frame = heard.recv(2000)
            if frame[6:12] == mac:
                wanted = {what: fits for what, fits in wanted.items() if not fits(frame)}


def test_out_under_the_hosts_address(engine: Engine, far: Far, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    for address, host in (("203.0.113.2", "203.0.113.1"), ("2001:db8::2", "2001:db8::1")):
        with far.server(address) as server:
            assert netns.run_in(engine.endpoints._active[one.id].namespace, lambda a=address: reach(a, 7000))
            assert caller(server) == host
    # What is not published is not reached, though the address is routed.
    with serve(engine, one):
        assert not far.reach("fd00:77::2", 80, 0.3)


def test_published_in_both_families(engine: Engine, far: Far, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": [{"HostPort": "8080"}], "81/tcp": [{}]})
    two = container(engine, tmp_path, 2, "front")
    for each in (one, two):
        start(engine, each)
    assert one.network_settings.ports["80/tcp"] == [HostPort("0.0.0.0", "8080"), HostPort("::", "8080")]
    chosen = one.network_settings.ports["81/tcp"]
    assert chosen[0].port == chosen[1].port
    with serve(engine, one) as server:
        for address in ("203.0.113.1", "2001:db8::1"):
            assert far.reach(address, 8080)
            assert caller(server) in ("203.0.113.2", "2001:db8::2")
        for address in ("127.0.0.1", "::1", "10.77.0.1", "fd00:77::1", "2001:db8::1"):
            assert reach(address, 8080), address
            caller(server)
        # Its neighbour and it itself, by the host.
        for each in (two, one):
            namespace = engine.endpoints._active[each.id].namespace
            assert netns.run_in(namespace, lambda: reach("2001:db8::1", 8080))
            caller(server)
    engine.endpoints.detach(one)
    assert not reach("::1", 8080)


@pytest.mark.parametrize("named", ["::1", "[::1]", "2001:db8::1"])
def test_published_at_one_ipv6_address(engine: Engine, far: Far, tmp_path: Path, named: str) -> None:
    parts.network(engine.networks, "front", **BOTH)
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": [{"HostIp": named, "HostPort": "8080"}]})
    start(engine, one)
    assert one.network_settings.ports == {"80/tcp": [HostPort(named.strip("[]"), "8080")]}
    with serve(engine, one) as server:
        assert served(server, named.strip("[]"), 8080)
        assert far.reach("2001:db8::1", 8080, 0.3) == (named == "2001:db8::1")
        assert not reach("127.0.0.1", 8080)


def test_datagrams_to_the_hosts_loopback(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    one = container(engine, tmp_path, 1, "front", PortBindings={"53/udp": [{"HostPort": "5353"}]})
    start(engine, one)
    namespace = engine.endpoints._active[one.id].namespace
    server = netns.run_in(namespace, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    with server, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        server.bind(("::", 53))
        client.settimeout(3)
        client.sendto(b"question", ("::1", 5353))
        text, sender = server.recvfrom(100)
        server.sendto(text + b" answered", sender)
        assert client.recv(100) == b"question answered"


@pytest.mark.parametrize(("host", "more"), [("203.0.113.1", 0), ("203.0.113.1", 9), ("2001:db8::1", 0)])
def test_who_sends_datagrams_already_reaches_who_comes(
    engine: Engine, far: Far, host: str, more: int, tmp_path: Path
) -> None:
    """Where a flow leads is decided by its first packet, and this one has begun before."""
    parts.network(engine.networks, "front", **BOTH)
    others = [container(engine, tmp_path, number, "front") for number in (1, 2)]
    ports = {f"{port}/udp": [{"HostPort": str(port)}] for port in range(9000, 9000 + more)}
    one = container(engine, tmp_path, 3, "front", PortBindings={"53/udp": [{"HostPort": "5353"}], **ports})
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def opened() -> socket.socket:
        sender = socket.socket(family, socket.SOCK_DGRAM)
        sender.settimeout(1)
        return sender

    def served(sender: socket.socket) -> bool:
        """By the container, which has a server."""
        own = engine.endpoints._active[one.id].namespace
        with netns.run_in(own, lambda: socket.socket(family, socket.SOCK_DGRAM)) as server:
            server.settimeout(1)
            server.bind(("::" if ":" in host else "0.0.0.0", 53))
            sender.sendto(b"anybody?", (host, 5353))
            try:
                text, caller = server.recvfrom(100)
                server.sendto(b"yes", caller)
                return text == b"anybody?" and sender.recv(100) == b"yes"
            except OSError:
                return False

    start(engine, others[0])
    with (
        netns.run_in(far.namespace, opened) as sender,
        netns.run_in(far.namespace, opened) as elsewhere,
        netns.run_in(engine.endpoints._active[others[0].id].namespace, opened) as client,
    ):
        for patient in (elsewhere, client):  # they are answered, however busy the machine is
            patient.settimeout(10)
        sender.sendto(b"nobody?", (host, 5353))
        # A container asks another machine, by a port of the same number: that is none of the host's.
        elsewhere.bind(("2001:db8::2" if ":" in host else "203.0.113.2", 5353))
        client.sendto(b"who?", elsewhere.getsockname())
        asking = elsewhere.recvfrom(100)[1]
        start(engine, one)
        elsewhere.sendto(b"me", asking)
        assert client.recv(100) == b"me"
        assert served(sender)
        # The container comes again, and another one has its address.
        before = one.network_settings.networks["front"].address
        engine.endpoints.detach(one)
        start(engine, others[1])
        assert others[1].network_settings.networks["front"].address == before
        own = engine.endpoints._active[others[1].id].namespace
        with netns.run_in(own, lambda: socket.socket(family, socket.SOCK_DGRAM)) as server:
            server.settimeout(0.3)
            server.bind(("::" if ":" in host else "0.0.0.0", 53))
            sender.sendto(b"still there?", (host, 5353))
            with pytest.raises(TimeoutError):
                server.recvfrom(100)
        start(engine, one)
        assert one.network_settings.networks["front"].address != before
        assert served(sender)


def test_a_port_of_the_hosts_loopback_is_no_neighbours(engine: Engine, far: Far, tmp_path: Path) -> None:
    """Who is on a network of the host's may send it packets for 127.0.0.1: the kernel drops them where nobody redirects
    them before it looks."""
    ports = {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
        "81/tcp": [{"HostIp": "203.0.113.1", "HostPort": "8080"}],
    }
    one = container(engine, tmp_path, 1, PortBindings=ports)
    start(engine, one)

    def look(port: int) -> bool:
        """As a machine that takes 127.0.0.1 for the host's."""
        for command in ("address flush dev lo", "route replace 127.0.0.1/32 via 203.0.113.1"):
            subprocess.run(["ip", *command.split()], check=True)
        Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1")
        return reach("127.0.0.1" if port == 80 else "203.0.113.1", 8080, 1)

    with serve(engine, one, 80), serve(engine, one, 81):
        assert reach("127.0.0.1", 8080)
        assert netns.run_in(far.namespace, lambda: look(81))
        assert not netns.run_in(far.namespace, lambda: look(80))


def test_the_hosts_own_loopback_stays_its_own(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    with socket.create_server(("::1", 7777), family=socket.AF_INET6) as server:
        assert reach("::1", 7777)
        server.settimeout(0.3)
        server.accept()
        inside(engine, one, "ip -6 addr del ::1/128 dev lo; ip -6 route add ::1/128 via fd00:77::1")
        assert not netns.run_in(engine.endpoints._active[one.id].namespace, lambda: reach("::1", 7777, 0.3))
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_container_without_ipv6_is_not_published_there(engine: Engine, tmp_path: Path) -> None:
    one = container(engine, tmp_path, 1, PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    start(engine, one)
    assert one.network_settings.ports == {"80/tcp": [HostPort("0.0.0.0", "8080")]}
    two = container(engine, tmp_path, 2, PortBindings={"80/tcp": [{"HostIp": "::", "HostPort": "8081"}]})
    with pytest.raises(BadRequest, match="has no IPv6 address"):
        engine.endpoints.attach(two)
    assert two.id not in engine.endpoints._active


def test_the_same_port_of_one_family_each(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    ports = [{"80/tcp": [{"HostIp": address, "HostPort": "8080"}]} for address in ("0.0.0.0", "::", "")]
    made = [container(engine, tmp_path, number, "front", PortBindings=one) for number, one in enumerate(ports, 1)]
    for one in made[:2]:
        start(engine, one)
    with pytest.raises(EngineError, match=r"Bind for 0.0.0.0:8080 failed: port is already allocated"):
        engine.endpoints.attach(made[2])
    engine.endpoints.detach(made[0])
    with pytest.raises(EngineError, match=r"Bind for \[::\]:8080 failed: port is already allocated"):
        engine.endpoints.attach(made[2])
    engine.endpoints.detach(made[1])
    start(engine, made[2])


# -- over the death of the daemon ------------------------------------------------------------------------


def test_the_next_daemon_knows_both_families(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    start(engine, one)
    with engine.living(one), serve(engine, one) as server:
        engine.begin()
        engine.endpoints.recover([one])
        assert served(server, "::1", 8080)
        assert served(server, "127.0.0.1", 8080)
        two = container(engine, tmp_path, 2, "front")
        start(engine, two)
        assert two.network_settings.networks["front"].address6 == "fd00:77::3"
        engine.endpoints.detach(one)
        assert not reach("::1", 8080)
        three = container(engine, tmp_path, 3, "front")
        start(engine, three)
        assert three.network_settings.networks["front"].address6 == "fd00:77::2"


def test_the_way_out_moves_by_family(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "a-four")
    parts.network(engine.networks, "b-both", **BOTH)
    one = container(engine, tmp_path, 1, "a-four", PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    start(engine, one)
    both = engine.networks.get("b-both")
    engine.endpoints.connect(both, one, fields.EndpointAsked())
    four = one.network_settings.networks["a-four"].gateway
    assert f"default via {four} dev eth0" in inside(engine, one, "ip route")
    assert "default via fd00:77::1 dev eth1" in inside(engine, one, "ip -6 route")
    assert one.network_settings.ports["80/tcp"] == [HostPort("0.0.0.0", "8080"), HostPort("::", "8080")]
    with serve(engine, one) as server:
        assert served(server, "127.0.0.1", 8080)
        assert served(server, "::1", 8080)
    engine.endpoints.disconnect(engine.networks.get("a-four"), one)
    assert "default via 10.77.0.1 dev eth1" in inside(engine, one, "ip route")
    with serve(engine, one) as server:
        assert served(server, "127.0.0.1", 8080)
        assert served(server, "::1", 8080)
    engine.endpoints.disconnect(both, one)
    assert "default" not in inside(engine, one, "ip route; ip -6 route")
    assert one.network_settings.ports == {}


# -- how a bridge leads outside --------------------------------------------------------------------------


def modes(four: str, six: str, **more: str) -> dict[str, Any]:
    return {**BOTH, "Options": {OPTION_MODES[4]: four, OPTION_MODES[6]: six, **more}}


def test_routed(engine: Engine, far: Far, tmp_path: Path) -> None:
    """The world knows the containers' addresses: published ports are open there, and there alone."""
    parts.network(engine.networks, "front", **modes("nat", "routed"))
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": [{"HostPort": "8080"}, {"HostPort": "8081"}]})
    start(engine, one)
    assert one.network_settings.ports["80/tcp"] == [
        HostPort("0.0.0.0", "8080"),
        HostPort("::", ""),
        HostPort("0.0.0.0", "8081"),
    ]
    with serve(engine, one), serve(engine, one, 82):
        assert far.reach("fd00:77::2", 80)
        assert not far.reach("fd00:77::2", 82, 0.3)
        assert not far.reach("2001:db8::1", 8080, 0.3)
        assert far.reach("203.0.113.1", 8080)
        assert not far.reach("10.77.0.2", 80, 0.3)
    with far.server("2001:db8::2") as server:
        assert netns.run_in(engine.endpoints._active[one.id].namespace, lambda: reach("2001:db8::2", 7000))
        assert caller(server) == "fd00:77::2"
    assert echo.pings(far.namespace, "fd00:77::2")
    with engine.living(one), serve(engine, one):
        engine.begin()
        engine.endpoints.recover([one])
        assert far.reach("fd00:77::2", 80)
        assert far.reach("203.0.113.1", 8080)
        engine.endpoints.detach(one)
        assert "fd00:77::2" not in nftables.run("list ruleset")


def test_ports_are_open_on_every_routed_network(engine: Engine, far: Far, tmp_path: Path) -> None:
    """Whichever is the way out: there is no port of the host's that there could be one of alone."""
    parts.network(engine.networks, "a", IPAM={"Config": [{"Subnet": "10.78.0.0/24"}]})
    parts.network(engine.networks, "b", **modes("routed", "routed"))
    front = engine.networks.get("b")
    one = container(engine, tmp_path, 1, "a", PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    start(engine, one)
    assert one.network_settings.ports == {"80/tcp": [HostPort("0.0.0.0", "8080")]}
    engine.endpoints.connect(front, one, fields.EndpointAsked())
    places = [HostPort("0.0.0.0", "8080"), HostPort("::", ""), HostPort("0.0.0.0", "")]
    assert one.network_settings.ports == {"80/tcp": places}
    with serve(engine, one), serve(engine, one, 82), engine.living(one):
        for address in ("10.77.0.2", "fd00:77::2"):
            assert far.reach(address, 80)
            assert not far.reach(address, 82, 0.3)
        assert far.reach("203.0.113.1", 8080)
        engine.begin()
        engine.endpoints.recover([one])
        assert far.reach("10.77.0.2", 80)
        assert far.reach("fd00:77::2", 80)
        assert far.reach("203.0.113.1", 8080)
        # It is the way out, and is no more.
        lan, front = engine.networks.get("a"), engine.networks.get("b")
        engine.endpoints.disconnect(lan, one)
        assert far.reach("10.77.0.2", 80)
        engine.endpoints.connect(lan, one, fields.EndpointAsked())
        assert far.reach("10.77.0.2", 80)
        assert far.reach("203.0.113.1", 8080)
        engine.endpoints.disconnect(front, one)
        assert far.reach("203.0.113.1", 8080)
    # Nothing is open any more where the next one has the address.
    assert "10.77.0.2" not in nftables.run("list set inet teu opened4")
    assert "fd00:77::2" not in nftables.run("list set inet teu opened6")
    assert one.network_settings.ports == {"80/tcp": [HostPort("0.0.0.0", "8080")]}


def test_unprotected(engine: Engine, far: Far, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **modes("nat-unprotected", "nat"))
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    with serve(engine, one, 82):
        assert far.reach("10.77.0.2", 82)
        assert not far.reach("fd00:77::2", 82, 0.3)


def test_isolated(engine: Engine, far: Far, tmp_path: Path) -> None:
    """Not even the host is there."""
    with pytest.raises(BadRequest, match="only be used for an internal network"):
        parts.network(engine.networks, "front", **modes("isolated", "nat"))
    network = parts.network(engine.networks, "front", **modes("isolated", "isolated"), Internal=True)
    one, two = container(engine, tmp_path, 1, "front"), container(engine, tmp_path, 2, "front")
    for each in (one, two):
        start(engine, each)
    with netlink.Socket() as kernel:
        bridge = netlink.link_index(kernel.link(network.interface))
        assert [a for i, a, _ in kernel.addresses() if i == bridge and not a.is_link_local] == []
    assert "default" not in inside(engine, one, "ip route; ip -6 route")
    assert one.network_settings.networks["front"].gateway == ""
    for address in ("10.77.0.3", "fd00:77::3"):
        assert pings(engine, one, address)
    # The gateway's address is nobody's, and is not given away.
    assert two.network_settings.networks["front"].address == "10.77.0.3"


def test_somebody_elses_router(engine: Engine, tmp_path: Path) -> None:
    option = {"com.docker.network.bridge.inhibit_ipv4": "true"}
    network = parts.network(engine.networks, "front", **{**BOTH, "Options": option})
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    with netlink.Socket() as kernel:
        bridge = netlink.link_index(kernel.link(network.interface))
        found = {str(address) for index, address, _ in kernel.addresses() if index == bridge}
    assert "10.77.0.1" not in found
    assert "fd00:77::1" in found
    assert "default via 10.77.0.1" in inside(engine, one, "ip route")


def test_who_is_trusted(engine: Engine, far: Far, tmp_path: Path) -> None:
    option = {OPTION_TRUSTED: "wan0:nothere0"}
    parts.network(engine.networks, "front", **{**BOTH, "Options": option})
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    start(engine, one)
    with serve(engine, one), serve(engine, one, 82):
        for address in ("10.77.0.2", "fd00:77::2"):
            assert far.reach(address, 80)
            assert not far.reach(address, 82, 0.3)
        assert far.reach("2001:db8::1", 8080)


def test_under_another_address_of_the_host(engine: Engine, far: Far, tmp_path: Path) -> None:
    with netlink.Socket() as kernel:
        wan = netlink.link_index(kernel.link("wan0"))
        kernel.send([netlink.add_address(wan, ip_address("203.0.113.7"), 24)])
        kernel.send([netlink.add_address(wan, IPv6Address("2001:db8::7"), 64)])
    option = {OPTION_HOST[4]: "203.0.113.7", OPTION_HOST[6]: "2001:db8::7"}
    parts.network(engine.networks, "front", **{**BOTH, "Options": option})
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    for address, host in (("203.0.113.2", "203.0.113.7"), ("2001:db8::2", "2001:db8::7")):
        with far.server(address) as server:
            assert netns.run_in(engine.endpoints._active[one.id].namespace, lambda a=address: reach(a, 7000))
            assert caller(server) == host


def test_an_internal_network(engine: Engine, far: Far, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH, Internal=True)
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    start(engine, one)
    assert "default" not in inside(engine, one, "ip route; ip -6 route")
    assert one.network_settings.ports == {}
    assert pings(engine, one, "fd00:77::1")


# -- the host's firewall, and who may use a port ---------------------------------------------------------


@pytest.mark.parametrize("mode", ["nat", "routed"])
def test_the_hosts_firewall_governs_both_families(
    engine: Engine, far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Also where a port is open at the container's own address; and what it lets in without a port being published
    stays closed."""
    opened, closed = (80, 82) if mode == "routed" else (8080, 8082)
    rules = [f"meta l4proto tcp ct original proto-dst {{ {opened}, 81 }} accept", "drop"]
    monkeypatch.setattr(engine.endpoints.host, "look", lambda interfaces: list(rules))
    parts.network(engine.networks, "front", **modes(mode, mode))
    bindings = {"80/tcp": [{"HostPort": "8080"}], "82/tcp": [{"HostPort": "8082"}]}
    one = container(engine, tmp_path, 1, "front", PortBindings=bindings)
    start(engine, one)
    with serve(engine, one, 80), serve(engine, one, 81), serve(engine, one, 82) as server:
        addresses = ("10.77.0.2", "fd00:77::2") if mode == "routed" else ("203.0.113.1", "2001:db8::1")
        for address in addresses:
            assert far.reach(address, opened), address
            assert not far.reach(address, closed, 0.3), address
        for address in ("10.77.0.2", "fd00:77::2"):
            assert not far.reach(address, 81, 0.3), address
            # The host itself is not kept out.
            assert served(server, address, 82)


def test_the_hosts_firewall_governs_who_is_trusted_or_unprotected(
    engine: Engine, far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = ["meta l4proto tcp ct original proto-dst { 80 } accept", "drop"]
    monkeypatch.setattr(engine.endpoints.host, "look", lambda interfaces: list(rules))
    parts.network(engine.networks, "front", **modes("nat-unprotected", "nat", **{OPTION_TRUSTED: "wan0"}))
    bindings = {"80/tcp": [{"HostPort": "8080"}], "82/tcp": [{"HostPort": "8082"}]}
    one = container(engine, tmp_path, 1, "front", PortBindings=bindings)
    start(engine, one)
    with serve(engine, one, 80), serve(engine, one, 82):
        for address in ("10.77.0.2", "fd00:77::2"):
            assert far.reach(address, 80), address
            assert not far.reach(address, 82, 0.3), address


def test_who_may_use_a_port_by_both_families(engine: Engine, far: Far, tmp_path: Path) -> None:
    """Who names networks of one family alone lets nobody of the other in."""
    parts.network(engine.networks, "front", **{**BOTH, "Options": {OPTION_TRUSTED: "wan0"}})
    limited = {"io.teu.port-sources/80/tcp": "2001:db8::/64", "io.teu.port-sources/82/tcp": "192.0.2.0/24,2001:db8::3"}
    bindings = {"80/tcp": [{"HostPort": "8080"}, {"HostPort": "8081"}], "82/tcp": [{"HostPort": "8082"}]}
    one = container(engine, tmp_path, 1, "front", PortBindings=bindings, Annotations=limited)
    two = container(engine, tmp_path, 2, "front")
    for each in (one, two):
        start(engine, each)
    listed = nftables.run("list table inet teu")
    assert 'tcp . 8080 comment "c1" : fd00:77::2 . 80' in listed
    assert "2001:db8::/64 . fd00:77::2 . tcp . 80" in listed
    with serve(engine, one, 80), serve(engine, one, 82):
        for port in (8080, 8081):
            assert far.reach("2001:db8::1", port)
            assert not far.reach("203.0.113.1", port, 0.3)
        assert far.reach("fd00:77::2", 80)
        for address in ("2001:db8::1", "203.0.113.1"):
            assert not far.reach(address, 8082, 0.3)
        assert reach("::1", 8082)
        namespace = engine.endpoints._active[two.id].namespace
        assert not netns.run_in(namespace, lambda: reach("fd00:77::1", 8080, 0.3))
    # Two host ports of one place in the container: what is gone with the first keeps not the second there.
    engine.endpoints.detach(one)
    listed = nftables.run("list table inet teu")
    assert "fd00:77::2" not in listed
    assert "10.77.0.2" not in listed
    assert "comment" not in listed
