# SPDX-License-Identifier: Apache-2.0
"""Options of networks and of endpoints against the kernel: neighbours that may not talk, a bridge of somebody else's,
names and settings of interfaces, which network leads outside, and many networks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from drivers import networks as suite
from networkhouse import Engine, container, inside, pings, reach, silent, start

from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden
from teu.engine.networks.options import OPTION_BRIDGE, OPTION_INHIBIT, OPTION_MTU, OPTION_PREFIX, OPTION_TALK
from teu.engine.networks.requests import OPTION_INTERFACE, OPTION_SYSCTLS
from teu.linux import netlink, netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

BOTH = {"EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "10.77.0.0/24"}, {"Subnet": "fd00:77::/64"}]}}
FILTERED = Path("/proc/sys/net/bridge")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with suite.own_namespace():
        engine = Engine(tmp_path)
        yield engine
        engine.end()


def connect(engine: Engine, name: str, one: Any, **settings: Any) -> None:
    engine.endpoints.connect(engine.networks.get(name), one, fields.ENDPOINT.read(settings))


def let_filter(filtered: str) -> None:
    for name in ("iptables", "ip6tables"):
        if (path := FILTERED / f"bridge-nf-call-{name}").exists():
            path.write_text(filtered)


# -- neighbours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filtered", ["0", "1"])
def test_neighbours_that_may_not_talk(engine: Engine, tmp_path: Path, filtered: str) -> None:
    """The bridge itself keeps them apart, whether the host filters its frames (br_netfilter) or not."""
    let_filter(filtered)
    parts.network(engine.networks, "apart", **BOTH, Options={OPTION_TALK: "false"})
    one, two = container(engine, tmp_path, 1, "apart"), container(engine, tmp_path, 2, "apart")
    for each in (one, two):
        start(engine, each)
    for address in ("10.77.0.1", "fd00:77::1"):
        for each in (one, two):
            assert pings(engine, each, address)
    for address in ("10.77.0.3", "fd00:77::3"):
        assert silent(engine, one, address)
    # Not even one who knows the other's address by heart.
    mac = two.network_settings.networks["apart"].mac
    inside(engine, one, f"ip neigh replace 10.77.0.3 lladdr {mac} dev eth0")
    assert silent(engine, one, "10.77.0.3")
    # Who joins later is as isolated as the others, and so it is for the next daemon.
    three = container(engine, tmp_path, 3)
    start(engine, three)
    connect(engine, "apart", three)
    assert pings(engine, three, "10.77.0.1")
    assert silent(engine, three, "10.77.0.3")
    with engine.living(one), engine.living(two), engine.living(three):
        engine.begin()
        engine.endpoints.recover([one, two, three])
        assert pings(engine, one, "10.77.0.1")
        assert silent(engine, one, "10.77.0.3")


# -- bridges ---------------------------------------------------------------------------------------------


def bridge(name: str) -> Any:
    with netlink.Socket() as kernel:
        return kernel.link(name)


def test_a_bridge_that_was_there_stays(engine: Engine, tmp_path: Path) -> None:
    with netlink.Socket() as kernel:
        kernel.send([netlink.new_bridge("mine0", 0, "02:00:00:00:00:07")])
        kernel.send([netlink.add_address(netlink.link_index(kernel.link("mine0")), IPv4Address("192.0.2.1"), 24)])
    for name in ("mine0", "made0"):
        network = parts.network(engine.networks, name, Options={OPTION_BRIDGE: name})
        one = container(engine, tmp_path, 1, name)
        start(engine, one)
        assert pings(engine, one, one.network_settings.networks[name].gateway)
        with pytest.raises(Forbidden, match=f"networks have same bridge name; {name} has it"):
            parts.network(engine.networks, "other", Options={OPTION_BRIDGE: name})
        # The next daemon knows as well whose it is.
        engine.endpoints.detach(one)
        engine.known.clear()
        engine.begin()
        engine.endpoints.recover([])
        assert bridge(name) is not None
        engine.networks.remove(engine.networks.get(network.id))
    found = bridge("mine0")
    assert found is not None and found.mac == "02:00:00:00:00:07"
    with netlink.Socket() as kernel:
        assert IPv4Address("192.0.2.1") in {one for index, one, _ in kernel.addresses() if index == found.number}
    assert bridge("made0") is None


def test_an_interface_that_is_no_bridge(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front", Options={OPTION_BRIDGE: "veth7"})
    with netlink.Socket() as kernel:
        kernel.send([netlink.new_bridge("other0")])
        kernel.send(
            [
                netlink.new_veth(
                    "veth7",
                    netlink.link_index(kernel.link("other0")),
                    "veth8",
                    os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC),
                    "02:00:00:00:00:08",
                )
            ]
        )
    with pytest.raises(EngineError, match="interface veth7 is not a bridge"):
        start(engine, container(engine, tmp_path, 1, "front"))


def test_somebody_elses_router_by_its_name(engine: Engine, tmp_path: Path) -> None:
    others = [
        {"Subnet": "10.77.0.0/24", "AuxiliaryAddresses": {"DefaultGatewayIPv4": "10.77.0.2"}},
        {"Subnet": "fd00:77::/64", "AuxiliaryAddresses": {"DefaultGatewayIPv6": "fd00:77::2"}},
    ]
    parts.network(engine.networks, "front", EnableIPv6=True, IPAM={"Config": others})
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    shown = one.network_settings.networks["front"]
    assert (shown.address, shown.gateway, shown.gateway6) == ("10.77.0.3", "10.77.0.2", "fd00:77::2")
    assert "default via 10.77.0.2 dev eth0" in inside(engine, one, "ip route")
    assert "default via fd00:77::2 dev eth0" in inside(engine, one, "ip -6 route")
    assert pings(engine, one, "10.77.0.1")


def test_size_of_packets(engine: Engine, tmp_path: Path) -> None:
    for name, size in (("small", "1280"), ("large", "9000"), ("any", "0")):
        parts.network(engine.networks, name, Options={OPTION_MTU: size})
        one = container(engine, tmp_path, 1, name)
        start(engine, one)
        wanted = size if size != "0" else "1500"
        assert f"mtu {wanted} " in inside(engine, one, "ip link show eth0")
        engine.endpoints.detach(one)


# -- interfaces ------------------------------------------------------------------------------------------


def test_names_and_settings_of_interfaces(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "a", **BOTH, Options={OPTION_PREFIX: "lan"})
    parts.network(engine.networks, "b")
    parts.network(engine.networks, "c")
    sysctls = {OPTION_SYSCTLS: "net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.ifname.hop_limit=77"}
    one = container(engine, tmp_path, 1, "a", endpoints={"a": {"DriverOpts": sysctls}})
    start(engine, one)
    connect(engine, "b", one, DriverOpts={OPTION_INTERFACE: "out.7"}, MacAddress="02-00-00-00-00-AA")
    assert inside(engine, one, "cat /proc/sys/net/ipv4/conf/lan0/log_martians") == "1\n"
    assert inside(engine, one, "cat /proc/sys/net/ipv6/conf/lan0/hop_limit") == "77\n"
    assert "02:00:00:00:00:aa" in inside(engine, one, "ip link show out.7")
    with pytest.raises(Conflict, match="has an interface out.7 already"):
        connect(engine, "c", one, DriverOpts={OPTION_INTERFACE: "out.7"})
    with pytest.raises(BadRequest, match="net.ipv4.conf.eth0.nosuch cannot be set: No such file"):
        connect(engine, "c", one, DriverOpts={OPTION_SYSCTLS: "net.ipv4.conf.IFNAME.nosuch=1"})
    # What failed is not there, and takes no name from the next one.
    assert "c" not in one.network_settings.networks
    connect(engine, "c", one)
    assert "eth0" in inside(engine, one, "ip -o link")
    engine.endpoints.disconnect(engine.networks.get("b"), one)
    connect(engine, "b", one)
    assert "eth1" in inside(engine, one, "ip -o link")


def test_one_name_for_two_networks(engine: Engine, tmp_path: Path) -> None:
    """Names that are given go around those that are asked for, also by networks that come later."""
    for name in ("a", "b", "c", "d"):
        parts.network(engine.networks, name)
    asked = {"b": {"DriverOpts": {OPTION_INTERFACE: "eth0"}}, "c": {"DriverOpts": {OPTION_INTERFACE: "eth2"}}}
    one = container(engine, tmp_path, 1, "a", endpoints={"a": {}, **asked})
    start(engine, one)
    connect(engine, "d", one)
    shown = {endpoint.name: endpoint.interface for endpoint in engine.endpoints._active[one.id].endpoints}
    assert shown == {"a": "eth1", "b": "eth0", "c": "eth2", "d": "eth3"}
    # Each prefix has numbers of its own.
    parts.network(engine.networks, "e", Options={OPTION_PREFIX: "lan"})
    connect(engine, "e", one)
    shown["e"] = engine.endpoints._active[one.id].endpoints[-1].interface
    assert shown["e"] == "lan0"
    with engine.living(one):
        engine.begin()
        engine.endpoints.recover([one])
        assert shown == {endpoint.name: endpoint.interface for endpoint in engine.endpoints._active[one.id].endpoints}


def test_priority_of_the_way_out(engine: Engine, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        parts.network(engine.networks, name)
    one = container(engine, tmp_path, 1, "a", endpoints={"a": {"GwPriority": -1}})
    start(engine, one)
    for name, priority, leads in (("b", -2, "eth0"), ("c", 5, "eth2")):
        connect(engine, name, one, GwPriority=priority)
        assert f"dev {leads}" in inside(engine, one, "ip route | grep default")
    engine.endpoints.disconnect(engine.networks.get("c"), one)
    assert "dev eth0" in inside(engine, one, "ip route | grep default")
    assert inside(engine, one, "ip route | grep -c default") == "1\n"


def test_many_networks(engine: Engine, tmp_path: Path) -> None:
    for number in range(40):
        parts.network(engine.networks, f"n{number}", IPAM={"Config": [{"Subnet": f"10.94.{number}.0/29"}]})
    one = container(engine, tmp_path, 1, "n0")
    start(engine, one)
    for number in range(1, 40):
        connect(engine, f"n{number}", one)
    for number in (0, 17, 39):
        assert pings(engine, one, f"10.94.{number}.1")
    with engine.living(one):
        engine.begin()
        engine.endpoints.recover([one])
        for number in (3, 20, 38):
            engine.endpoints.disconnect(engine.networks.get(f"n{number}"), one)
        assert inside(engine, one, "ip -o -4 addr | grep -c 10.94") == "37\n"
        connect(engine, "n20", one)
        assert pings(engine, one, "10.94.20.1")


@pytest.mark.parametrize("filtered", ["0", "1"])
def test_a_bridge_without_the_hosts_address(engine: Engine, tmp_path: Path, filtered: str) -> None:
    """Another machine is the router: here a container that has taken its address. It is asked by the container's own
    address, also where the host sees a bridge's frames."""
    let_filter(filtered)
    options = {OPTION_INHIBIT: "true"}
    parts.network(engine.networks, "front", **BOTH, Options=options)
    router, one = container(engine, tmp_path, 1, "front"), container(engine, tmp_path, 2, "front")
    for each in (router, one):
        start(engine, each)
    assert pings(engine, one, router.network_settings.networks["front"].address)
    assert silent(engine, one, "10.77.0.1")
    inside(engine, router, "ip addr add 10.77.0.1/24 dev eth0; ip addr add 198.51.100.7/32 dev lo")
    assert pings(engine, one, "10.77.0.1")
    assert pings(engine, one, "198.51.100.7")
    code = "import socket; s = socket.create_server(('', 7)); print(flush=True); print(s.accept()[1][0])"
    with netns.run_in(
        engine.endpoints._active[router.id].namespace,
        lambda: subprocess.Popen(["/usr/bin/python3", "-c", code], stdout=subprocess.PIPE, text=True),
    ) as server:
        assert server.stdout and server.stdout.readline() == "\n"
        assert netns.run_in(engine.endpoints._active[one.id].namespace, lambda: reach("198.51.100.7", 7))
        assert server.stdout.readline() == "10.77.0.3\n"
