# SPDX-License-Identifier: Apache-2.0
"""Published ports: what may be asked for, which numbers are taken, and where they lead."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from drivers import networks as suite
from networkhouse import Engine, container, inside, reach, start

from teu.engine.containers.network_settings import HostPort
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.fields import HOST_CONFIG
from teu.engine.networks.options import OPTION_BINDING, OPTION_MODES
from teu.engine.networks.ports import Binding, Ports, bindings, host_addresses, together
from teu.linux import netns

BOTH = {"EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "10.77.0.0/24"}, {"Subnet": "fd00:77::/64"}]}}


# -- what may be asked for -------------------------------------------------------------------------------


def asked(key: str, entry: Any) -> list[Binding]:
    return bindings(HOST_CONFIG.read({"PortBindings": {key: entry}}), ())


@pytest.mark.parametrize(
    ("key", "entry", "meant"),
    [
        ("80/tcp", [{"HostPort": "8080"}], Binding(80, "tcp", "", 8080, 8080)),
        ("80", [{"HostPort": "8080-8090"}], Binding(80, "tcp", "", 8080, 8090)),
        ("80/UDP", [{}], Binding(80, "udp", "", 0, 0)),
        ("80/sctp", None, Binding(80, "sctp", "", 0, 0)),
        ("80/tcp", [], Binding(80, "tcp", "", 0, 0)),
        ("80/tcp", [{"HostPort": "0"}], Binding(80, "tcp", "", 0, 0)),
        ("80/tcp", [{"HostIp": "127.0.0.1", "HostPort": "1-65535"}], Binding(80, "tcp", "127.0.0.1", 1, 65535)),
        ("80/tcp", [{"HostIp": "[::1]"}], Binding(80, "tcp", "::1", 0, 0)),
        ("80/tcp", [{"HostIp": "2001:0db8:0::1"}], Binding(80, "tcp", "2001:db8::1", 0, 0)),
        ("80/tcp", [{"HostIp": "::ffff:192.0.2.1"}], Binding(80, "tcp", "192.0.2.1", 0, 0)),
    ],
)
def test_forms(key: str, entry: Any, meant: Binding) -> None:
    assert asked(key, entry) == [meant]


@pytest.mark.parametrize(
    ("key", "entry", "says"),
    [
        ("0/tcp", [{}], "invalid port specification: '0/tcp'"),
        ("65536/tcp", [{}], "invalid port specification"),
        ("80-81/tcp", [{}], "invalid port specification"),
        ("80/icmp", [{}], "none of tcp, udp, sctp"),
        ("80/", [{}], "none of tcp, udp, sctp"),
        ("80/tcp", [{"HostPort": "8090-8080"}], "invalid port specification: '8090-8080'"),
        ("80/tcp", [{"HostPort": "8080-"}], "invalid port specification"),
        ("80/tcp", [{"HostPort": "-8080"}], "invalid port specification"),
        ("80/tcp", [{"HostPort": "65536"}], "invalid port specification"),
        ("80/tcp", [{"HostPort": "8080/udp"}], "invalid port specification"),
        ("80/tcp", [{"HostPort": "٨٠"}], "invalid port specification"),
        ("80/tcp", [{"HostIp": "localhost"}], "invalid IP address: localhost"),
        ("80/tcp", [{"HostIp": "fe80::1%eth0"}], "invalid IP address: fe80::1%eth0"),
    ],
)
def test_what_is_refused(key: str, entry: Any, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        asked(key, entry)


@pytest.mark.parametrize(
    ("named", "usual", "places"),
    [
        ("", "", {4: "0.0.0.0", 6: "::"}),
        ("", "0.0.0.0", {4: "0.0.0.0", 6: "::"}),
        ("", "::", {6: "::"}),
        ("", "127.0.0.1", {4: "127.0.0.1"}),
        ("", "::1", {6: "::1"}),
        ("0.0.0.0", "", {4: "0.0.0.0"}),
        ("::", "127.0.0.1", {6: "::"}),
        ("192.0.2.1", "::1", {4: "192.0.2.1"}),
    ],
)
def test_addresses_of_the_host(named: str, usual: str, places: dict[int, str]) -> None:
    assert host_addresses(named, usual) == places


def test_which_get_one_number() -> None:
    def binding(address: str, first: int = 0, last: int = 0, port: int = 80) -> Binding:
        return Binding(port, "tcp", address, first, last)

    pair = [binding("127.0.0.1"), binding("::1")]
    assert together(pair) == [pair]
    assert together([binding("127.0.0.1"), binding("127.0.0.2"), binding("::")]) == [
        [binding("127.0.0.1"), binding("127.0.0.2"), binding("::")]
    ]
    for apart in (
        [binding(""), binding("")],
        [binding(""), binding("127.0.0.1")],
        [binding("0.0.0.0"), binding("127.0.0.1")],
        [binding("127.0.0.1"), binding("127.0.0.1")],
        [binding("127.0.0.1"), binding("::1", 80, 90)],
        [binding("127.0.0.1"), binding("::1", port=81)],
    ):
        assert together(apart) == [[one] for one in apart]


# -- which numbers are taken -----------------------------------------------------------------------------


@pytest.fixture
def ports() -> Iterator[Ports]:
    ports = Ports()
    yield ports
    ports.close()


def test_the_first_free_one_of_a_range(ports: Ports) -> None:
    wanted = Binding(80, "tcp", "", 18400, 18402)
    with socket.create_server(("127.0.0.1", 18400)):
        assert ports.reserve(wanted, ["127.0.0.1"], "c") == 18401
        assert ports.reserve(wanted, ["127.0.0.1"], "c") == 18402
        with pytest.raises(EngineError, match=r"endpoint c: all ports are allocated"):
            ports.reserve(wanted, ["127.0.0.1"], "c")
    ports.release("tcp", "127.0.0.1", 18401)
    assert ports.reserve(wanted, ["127.0.0.1"], "c") == 18400


def test_one_number_at_several_addresses(ports: Ports) -> None:
    with socket.create_server(("127.0.0.2", 18410)):
        wanted = Binding(80, "tcp", "", 18410, 18411)
        assert ports.reserve(wanted, ["127.0.0.1", "127.0.0.2"], "c") == 18411
    # What was taken for a try that failed is free again.
    with socket.create_server(("127.0.0.1", 18410)):
        pass
    chosen = ports.reserve(Binding(80, "udp", "", 0, 0), ["127.0.0.1", "::1"], "c")
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="in use"):
            sock.bind((address, chosen))


def test_an_address_that_the_host_does_not_have(ports: Ports) -> None:
    with pytest.raises(EngineError, match="failed to bind port 192.0.2.77:18420/tcp: .*cannot assign requested"):
        ports.reserve(Binding(80, "tcp", "", 18420, 18420), ["192.0.2.77"], "c")


def test_a_protocol_that_the_kernel_may_not_know(ports: Ports) -> None:
    """There is no socket of SCTP where its module is not; the number is ours all the same."""
    wanted = Binding(80, "sctp", "", 18430, 18430)
    assert ports.reserve(wanted, ["0.0.0.0", "::"], "c") == 18430
    with pytest.raises(EngineError, match="already allocated"):
        ports.reserve(wanted, ["127.0.0.1"], "c")
    assert ports.reserve(wanted._replace(protocol="tcp"), ["0.0.0.0"], "c") == 18430
    assert ports.reserve(Binding(80, "sctp", "", 0, 0), ["0.0.0.0"], "c") > 1023


# -- where they lead -------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with suite.own_namespace():
        engine = Engine(tmp_path)
        yield engine
        engine.end()


def serve(engine: Engine, one: Any, port: int) -> socket.socket:
    return netns.run_in(engine.endpoints._active[one.id].namespace, lambda: socket.create_server(("0.0.0.0", port)))


def test_a_range_of_the_host_for_one_port(engine: Engine, tmp_path: Path) -> None:
    """Three containers share it, and the fourth finds it full."""
    wanted = {"80/tcp": [{"HostPort": "8000-8002"}]}
    made = [container(engine, tmp_path, number, PortBindings=wanted) for number in (1, 2, 3, 4)]
    for each in made[:3]:
        start(engine, each)
    assert [each.network_settings.ports["80/tcp"][0].port for each in made[:3]] == ["8000", "8001", "8002"]
    with pytest.raises(EngineError, match="all ports are allocated"):
        engine.endpoints.attach(made[3])
    with serve(engine, made[1], 80):
        assert reach("127.0.0.1", 8001)
        assert not reach("127.0.0.1", 8002)
    engine.endpoints.detach(made[0])
    start(engine, made[3])
    assert made[3].network_settings.ports["80/tcp"][0].port == "8000"


def test_ranges_of_both(engine: Engine, tmp_path: Path) -> None:
    """-p 8000-8049:80-129, as the client writes it; and many of them at once."""
    wanted = {f"{80 + number}/tcp": [{"HostPort": str(8000 + number)}] for number in range(50)}
    one = container(engine, tmp_path, 1, PortBindings=wanted)
    start(engine, one)
    with serve(engine, one, 80), serve(engine, one, 129):
        assert reach("127.0.0.1", 8000)
        assert reach("127.0.0.1", 8049)
        assert not reach("127.0.0.1", 8020)
    assert one.network_settings.ports["129/tcp"][0].port == "8049"


def test_one_number_for_several_addresses_of_the_host(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH)
    wanted = [{"HostIp": "127.0.0.1"}, {"HostIp": "127.0.0.2"}, {"HostIp": "::1"}]
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": wanted})
    start(engine, one)
    shown = one.network_settings.ports["80/tcp"]
    assert [place.address for place in shown] == ["127.0.0.1", "127.0.0.2", "::1"]
    assert len({place.port for place in shown}) == 1


def test_every_ipv6_address_alone(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH, Options={OPTION_BINDING: "::"})
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    start(engine, one)
    assert one.network_settings.ports == {"80/tcp": [HostPort("::", "8080")]}


def test_what_is_routed_is_at_no_address_of_the_host(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", **BOTH, Options=dict.fromkeys(OPTION_MODES.values(), "routed"))
    wanted = [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostIp": "::1", "HostPort": "8080"}]
    one = container(engine, tmp_path, 1, "front", PortBindings={"80/tcp": wanted})
    start(engine, one)
    assert one.network_settings.ports == {"80/tcp": [HostPort("0.0.0.0", ""), HostPort("::", "")]}


def test_who_leaves_a_network_keeps_what_can_be_kept(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "both", **BOTH)
    parts.network(engine.networks, "four")
    wanted = {"80/tcp": [{"HostIp": "::1", "HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": "8081"}]}
    one = container(engine, tmp_path, 1, "both", PortBindings=wanted)
    start(engine, one)
    engine.endpoints.connect(engine.networks.get("four"), one, fields.EndpointAsked())
    engine.endpoints.disconnect(engine.networks.get("both"), one)
    assert one.network_settings.ports == {"80/tcp": [HostPort("127.0.0.1", "8081")]}
    with serve(engine, one, 80):
        assert reach("127.0.0.1", 8081)
    assert "default via" in inside(engine, one, "ip route")
    # A start tells it, and does not do half of it.
    engine.endpoints.detach(one)
    with pytest.raises(BadRequest, match="cannot be published at ::1: container c1 has no IPv6 address"):
        engine.endpoints.attach(one)


def crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_sctp_is_led_to_the_container(engine: Engine, tmp_path: Path) -> None:
    """The beginning of an association, by hand: the kernel of a test may have no sockets of SCTP."""
    one = container(engine, tmp_path, 1, PortBindings={"80/sctp": [{"HostPort": "8080"}]})
    start(engine, one)
    assert one.network_settings.ports["80/sctp"][0] == HostPort("0.0.0.0", "8080")
    address = one.network_settings.networks["bridge"].address
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 9)
    head = struct.pack(">HHI", 5000, 8080, 0)
    packet = head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk

    def raw() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)

    other = container(engine, tmp_path, 2)
    start(engine, other)
    gateway = one.network_settings.networks["bridge"].gateway
    with netns.run_in(engine.endpoints._active[one.id].namespace, raw) as far:
        far.settimeout(5)
        with netns.run_in(engine.endpoints._active[other.id].namespace, raw) as near:
            near.sendto(packet, (gateway, 0))
            found = far.recv(2000)
    ports = struct.unpack_from(">HH", found, (found[0] & 15) * 4)
    assert socket.inet_ntoa(found[16:20]) == address
    assert ports[1] == 80
