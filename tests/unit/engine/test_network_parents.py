# SPDX-License-Identifier: Apache-2.0
"""Networks of the drivers macvlan and ipvlan in a network namespace of the test's own (needs root): a veth pair is the
network card and its cable, and the machines outside are another namespace."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from drivers import networks as suite
from networkhouse import Engine, container, inside, pings, silent, start

from teu.engine.containers.network_settings import network_settings
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.networks.drivers.macvlan import Macvlan
from teu.linux import netlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")


def needs(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(suite.no_kind(kind)), reason=suite.no_kind(kind))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """On a host with the card up0; what comes by it, up1 has."""
    with suite.own_namespace():
        with netlink.Socket() as kernel:
            suite.make_pair(kernel, "up0", "up1")
        engine = Engine(tmp_path)
        yield engine
        engine.end()


SUBNETS = [{"Subnet": "192.0.2.0/24", "Gateway": "192.0.2.254"}]


def made(engine: Engine, name: str = "lan", driver: str = "macvlan", **options: str) -> Any:
    options = {"parent": "up0", **options}
    return parts.network(engine.networks, name, Driver=driver, Options=options, IPAM={"Config": SUBNETS})


def links() -> set[str]:
    with netlink.Socket() as kernel:
        return {link.name for link in kernel.links()}


def test_a_machine_of_the_parents_network(engine: Engine, tmp_path: Path) -> None:
    made(engine)
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    for each in (one, two):
        start(engine, each)
    settings = one.network_settings.networks["lan"]
    assert (settings.address, settings.prefix, settings.gateway) == ("192.0.2.1", 24, "192.0.2.254")
    assert settings.mac == "02:42:c0:00:02:01"
    assert "default via 192.0.2.254" in inside(engine, one, "ip route")
    assert pings(engine, one, "192.0.2.2")
    # The other end of the cable sees the containers; the host itself does not.
    assert silent(engine, one, "192.0.2.254")
    with netlink.Socket() as kernel:
        from ipaddress import IPv4Address

        kernel.send([netlink.add_address(netlink.link_index(kernel.link("up1")), IPv4Address("192.0.2.254"), 24)])
    subprocess.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.up1.rp_filter=0"], check=True)
    assert pings(engine, one, "192.0.2.254")
    assert links() == {"lo", "up0", "up1"}
    engine.endpoints.detach(one)
    engine.endpoints.detach(two)
    engine.networks.remove(engine.networks.get("lan"))
    assert links() == {"lo", "up0", "up1"}


def test_nobody_chooses_a_gateway(engine: Engine, tmp_path: Path) -> None:
    """It is another machine's address; without one, routers may tell IPv6 routes."""
    network = parts.network(
        engine.networks,
        "lan",
        Driver="macvlan",
        Options={"parent": "up0"},
        EnableIPv6=True,
        IPAM={"Config": [{"Subnet": "192.0.2.0/24"}, {"Subnet": "2001:db8::/64"}]},
    )
    assert [subnet["Subnet"] for subnet in network.record.shown()["IPAM"]["Config"]] == [
        "192.0.2.0/24",
        "2001:db8::/64",
    ]
    assert not any("Gateway" in subnet for subnet in network.record.shown()["IPAM"]["Config"])
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    settings = one.network_settings.networks["lan"]
    assert (settings.address, settings.address6) == ("192.0.2.1", "2001:db8::1")
    assert (settings.gateway, settings.gateway6) == ("", "")
    assert "default" not in inside(engine, one, "ip route; ip -6 route")
    assert "= 1" in inside(engine, one, "sysctl net.ipv6.conf.eth0.accept_ra")


def test_several_subnets_and_what_is_others(engine: Engine, tmp_path: Path) -> None:
    parts.network(
        engine.networks,
        "lan",
        Driver="macvlan",
        Options={"parent": "up0"},
        IPAM={
            "Config": [
                {"Subnet": "192.0.2.0/30", "Gateway": "192.0.2.1"},
                {"Subnet": "198.51.100.0/24", "Gateway": "198.51.100.1", "AuxiliaryAddresses": {"nas": "198.51.100.2"}},
            ]
        },
    )
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    three = container(engine, tmp_path, 3, "lan", endpoints={"lan": {"IPAMConfig": {"IPv4Address": "198.51.100.77"}}})
    for each in (one, two, three):
        start(engine, each)
    places = [each.network_settings.networks["lan"] for each in (one, two, three)]
    assert [place.address for place in places] == ["192.0.2.2", "198.51.100.3", "198.51.100.77"]
    assert [place.gateway for place in places] == ["192.0.2.1", "198.51.100.1", "198.51.100.1"]
    assert pings(engine, two, "198.51.100.77")


@pytest.mark.parametrize(
    ("driver", "options", "says"),
    [
        ("macvlan", {"macvlan_mode": "x"}, "requested macvlan mode 'x' is not valid, 'bridge' mode is the macvlan"),
        ("ipvlan", {"ipvlan_mode": "l4"}, "requested ipvlan mode 'l4' is not valid, 'l2' mode is the ipvlan driver"),
        ("ipvlan", {"ipvlan_flag": "x"}, "requested ipvlan flag 'x' is not valid, 'bridge' is the ipvlan driver"),
        ("macvlan", {"parent": "lo"}, "loopback interface is not a valid macvlan parent link"),
        ("macvlan", {"parent": "eth9"}, "invalid subinterface vlan name eth9, example formatting is eth0.10"),
        ("macvlan", {"parent": "eth9.5"}, "-o parent interface was not found on the host: eth9"),
        ("ipvlan", {"parent": "up0.1.2"}, "required interface name format is: name.vlan_id"),
        ("ipvlan", {"parent": "up0.x"}, "unable to parse a valid vlan id from: x"),
        ("ipvlan", {"parent": "up0.4095"}, "vlan id must be between 1-4094, received: 4095"),
    ],
)
def test_what_is_refused(engine: Engine, driver: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(EngineError) as caught:
        made(engine, driver=driver, **options)
    assert says in str(caught.value)
    assert [network.name for network in engine.networks.all()] == ["bridge", "host", "none"]
    engine.begin()
    assert len(engine.networks.all()) == 3


def test_who_has_a_parent_for_itself(engine: Engine) -> None:
    made(engine, macvlan_mode="passthru")
    with pytest.raises(EngineError, match="is already using parent interface up0 in mode passthru"):
        parts.network(engine.networks, "b", Driver="macvlan", Options={"parent": "up0"})
    engine.networks.remove(engine.networks.get("lan"))
    made(engine)
    with pytest.raises(EngineError, match="cannot use mode passthru, macvlan network"):
        parts.network(engine.networks, "b", Driver="macvlan", Options={"parent": "up0", "macvlan_mode": "passthru"})
    parts.network(engine.networks, "b", Driver="macvlan", Options={"parent": "up0"})
    parts.network(engine.networks, "c", Driver="ipvlan", Options={"parent": "up0"})
    with pytest.raises(EngineError, match="network di-[0-9a-f]{12} is already using parent interface up0"):
        parts.network(engine.networks, "d", Driver="ipvlan", Options={"parent": "up0"})


@pytest.mark.parametrize("mode", ["bridge", "passthru"])
def test_who_died_with_the_daemon_goes_in_its_own_time(engine: Engine, mode: str, tmp_path: Path) -> None:
    """The next one may have its MAC address, and its parent, all the same."""
    made(engine, macvlan_mode=mode)
    wanted = {} if mode == "passthru" else {"MacAddress": "02:00:00:00:00:07"}
    one, two = (container(engine, tmp_path, number, "lan", endpoints={"lan": wanted}) for number in (1, 2))
    start(engine, one)
    kept = os.dup(engine.endpoints._active[one.id].namespace)
    engine.begin()
    going = threading.Timer(0.3, os.close, (kept,))
    going.start()
    start(engine, two)
    assert not going.is_alive()
    assert "UP" in inside(engine, two, "ip -br link show eth0")
    going.join()


def test_a_mac_address_that_somebody_has(engine: Engine, tmp_path: Path) -> None:
    made(engine)
    wanted = {"MacAddress": "02:00:00:00:00:07"}
    one, two = (container(engine, tmp_path, number, "lan", endpoints={"lan": wanted}) for number in (1, 2))
    start(engine, one)
    with pytest.raises(EngineError, match="on network lan: address already in use"):
        start(engine, two)


def test_passthru_has_the_parents_address(engine: Engine, tmp_path: Path) -> None:
    """And one container alone; the next may start at once when it has ended."""
    made(engine, macvlan_mode="passthru")
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    with netlink.Socket() as kernel:
        parent = kernel.link("up0")
        assert parent
        start(engine, one)
        assert one.network_settings.networks["lan"].mac == parent.mac
        assert parent.mac in inside(engine, one, "ip -br link show eth0")
        with pytest.raises(EngineError, match="failed to create the macvlan port: "):
            start(engine, two)
        assert two.id not in engine.endpoints._active
        for _ in range(3):
            engine.endpoints.detach(one)
            start(engine, two)
            engine.endpoints.detach(two)
            start(engine, one)
        assert kernel.link("up0") == kernel.link("up0")
    three = container(engine, tmp_path, 3, "lan", endpoints={"lan": {"MacAddress": "02:00:00:00:00:07"}})
    engine.endpoints.detach(one)
    start(engine, three)
    assert "02:00:00:00:00:07" in inside(engine, three, "ip -br link show eth0")
    assert three.network_settings.networks["lan"].mac == "02:00:00:00:00:07"


def test_private_ones_do_not_reach_each_other(engine: Engine, tmp_path: Path) -> None:
    made(engine, macvlan_mode="private")
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    for each in (one, two):
        start(engine, each)
    assert silent(engine, one, two.network_settings.networks["lan"].address)


def test_the_host_is_at_the_default_bridge(engine: Engine, tmp_path: Path) -> None:
    """The gateway is not the host's."""
    start(engine, container(engine, tmp_path, 1))
    made(engine)
    one = container(engine, tmp_path, 2, "lan", ExtraHosts=["host:host-gateway"])
    start(engine, one)
    bridge = engine.networks.get("bridge").pools[0].gateway
    assert f"{bridge}\thost" in Path(f"{one.directory}/hosts").read_text()


def test_ports_are_passed_over(engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(engine)
    one = container(engine, tmp_path, 1, "lan", PortBindings={"80/tcp": [{"HostPort": "8080"}]}, exposed={"80/tcp": {}})
    start(engine, one)
    assert one.network_settings.ports == {}
    assert "the driver macvlan publishes no ports" in caplog.text


def test_internal_has_no_way_out(engine: Engine, tmp_path: Path) -> None:
    parts.network(
        engine.networks, "lan", Driver="macvlan", Internal=True, Options={"parent": "up0"}, IPAM={"Config": SUBNETS}
    )
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    for each in (one, two):
        start(engine, each)
    assert "default" not in inside(engine, one, "ip route")
    assert one.network_settings.networks["lan"].gateway == ""
    assert pings(engine, one, two.network_settings.networks["lan"].address)


def test_the_next_daemon_goes_on(engine: Engine, tmp_path: Path) -> None:
    """It knows the namespace by the interface in it; the container can leave the network, and come back."""
    made(engine)
    front = parts.network(engine.networks, "front")
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    engine.endpoints.connect(front, one, parts.fields.EndpointAsked())
    with engine.living(one):
        engine.begin()
        assert "macvlan" not in [driver.name for driver in engine.endpoints.drivers.made() if hasattr(driver, "name")]
        engine.endpoints.recover([one])
        assert [endpoint.name for endpoint in engine.endpoints._active[one.id].endpoints] == ["lan", "front"]
        assert engine.endpoints._active[one.id].namespace >= 0
        lan = engine.networks.get("lan")
        engine.endpoints.disconnect(lan, one)
        assert "eth0" not in inside(engine, one, "ip -br link")
        assert "dev eth1" in inside(engine, one, "ip route show default")
        engine.endpoints.connect(lan, one, parts.fields.EndpointAsked())
        assert "192.0.2.1/24" in inside(engine, one, "ip -br addr show eth0")
        # The first by name has the way out.
        assert "dev eth1" in inside(engine, one, "ip route show default")
        engine.endpoints.detach(one)
    assert not engine.endpoints.on(engine.networks.get("lan"))


def test_another_ones_interface_is_not_taken_for_it(engine: Engine, tmp_path: Path) -> None:
    made(engine)
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    with engine.living(one):
        inside(engine, one, "ip link del eth0")
        engine.begin()
        engine.endpoints.recover([one])
        assert engine.endpoints._active[one.id].namespace == -1
        engine.endpoints.detach(one)


def test_a_mac_address_of_ones_own(engine: Engine, tmp_path: Path) -> None:
    made(engine)
    one = container(engine, tmp_path, 1, "lan", endpoints={"lan": {"MacAddress": "02:00:00:00:00:07"}})
    start(engine, one)
    assert "02:00:00:00:00:07" in inside(engine, one, "ip -br link show eth0")
    parts.network(engine.networks, "shared", Driver="ipvlan", Options={"parent": "up1"})
    two = container(engine, tmp_path, 2, "shared", endpoints={"shared": {"MacAddress": "02:00:00:00:00:08"}})
    with pytest.raises(EngineError, match="ipvlan interfaces do not support custom mac address assignment"):
        start(engine, two)


def test_options_without_a_meaning_are_told(engine: Engine) -> None:
    _, warning = engine.networks.create(
        parts.fields.NETWORK.read(
            {"Name": "lan", "Driver": "macvlan", "Options": {"parent": "up0", "ipvlan_mode": "l2", "x": "y"}}
        )
    )
    assert warning == "options without an effect on a macvlan network: ipvlan_mode, x"
    with pytest.raises(BadRequest, match="failed to parse com.docker.network.driver.mtu"):
        made(engine, "b", **{"com.docker.network.driver.mtu": "x"})


@needs("vlan")
def test_a_vlan_comes_and_goes_with_the_network(engine: Engine, tmp_path: Path) -> None:
    made(engine, parent="up0.10")
    made_too = parts.network(engine.networks, "b", Driver="macvlan", Options={"parent": "up0.10"})
    assert "up0.10" in links()
    engine.networks.remove(engine.networks.get("lan"))
    assert "up0.10" in links()
    engine.begin()
    subprocess.run(["ip", "link", "del", "up0.10"], check=True)  # as a reboot does
    one = container(engine, tmp_path, 1, "b")
    start(engine, one)
    assert "up0.10" in links()
    engine.endpoints.detach(one)
    engine.networks.remove(engine.networks.get(made_too.name))
    assert "up0.10" not in links()
    subprocess.run(["ip", "link", "add", "link", "up0", "name", "up0.11", "type", "vlan", "id", "11"], check=True)
    made(engine, parent="up0.11")
    engine.networks.remove(engine.networks.get("lan"))
    assert "up0.11" in links()  # somebody else's


@needs("dummy")
@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_without_a_parent_they_have_each_other(engine: Engine, tmp_path: Path, driver: str) -> None:
    if reason := suite.no_kind(driver):
        pytest.skip(reason)
    network = parts.network(engine.networks, "lan", Driver=driver, IPAM={"Config": SUBNETS})
    assert f"{'dm' if driver == 'macvlan' else 'di'}-{network.id[:12]}" in links()
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    for each in (one, two):
        start(engine, each)
    assert pings(engine, one, "192.0.2.2")
    assert "default" not in inside(engine, one, "ip route")
    for each in (one, two):
        engine.endpoints.detach(each)
    engine.networks.remove(engine.networks.get("lan"))
    assert links() == {"lo", "up0", "up1"}


@pytest.mark.skipif(not suite.no_kind("dummy"), reason="this kernel has them")
def test_a_kernel_without_dummies_says_so(engine: Engine) -> None:
    with pytest.raises(EngineError, match="this kernel has no interfaces of the kind dummy"):
        parts.network(engine.networks, "lan", Driver="macvlan")
    assert [network.name for network in engine.networks.all()] == ["bridge", "host", "none"]


@needs("ipvlan")
@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_ipvlan(engine: Engine, tmp_path: Path, mode: str) -> None:
    made(engine, driver="ipvlan", ipvlan_mode=mode)
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    for each in (one, two):
        start(engine, each)
    settings = one.network_settings.networks["lan"]
    assert (settings.address, settings.mac) == ("192.0.2.1", "")
    assert settings.gateway == ("192.0.2.254" if mode == "l2" else "")
    route = inside(engine, one, "ip route show default")
    assert route.startswith("default via 192.0.2.254 dev eth0" if mode == "l2" else "default dev eth0")
    assert pings(engine, one, "192.0.2.2")
    with engine.living(one):
        engine.begin()
        engine.endpoints.has_process = lambda _: True  # type: ignore[method-assign]
        engine.endpoints.recover([one])
        assert engine.endpoints._active[one.id].namespace >= 0
        engine.endpoints.disconnect(engine.networks.get("lan"), one)
        assert "eth0" not in inside(engine, one, "ip -br link")
        engine.endpoints.detach(one)


@needs("ipvlan")
@pytest.mark.parametrize("flag", ["private", "vepa"])
def test_ipvlan_flags(engine: Engine, tmp_path: Path, flag: str) -> None:
    made(engine, driver="ipvlan", ipvlan_flag=flag)
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    for each in (one, two):
        start(engine, each)
    assert silent(engine, one, "192.0.2.2")


def test_who_does_not_use_them_does_not_import_them() -> None:
    late = {f"teu.engine.networks.drivers.{name}" for name in ("macvlan", "ipvlan", "parents")}
    script = f"import sys; import teu.engine.daemon; print(*({late!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert Macvlan.name == "macvlan"


@pytest.mark.parametrize("known", [True, False])
def test_a_namespace_without_pairs_is_that_of_the_containers_processes(
    engine: Engine, tmp_path: Path, known: bool
) -> None:
    """Others have macvlans of the parent too: it is not by them that a namespace is known."""
    made(engine)
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    with engine.living(one):
        engine.begin()
        engine.endpoints.has_process = lambda _: known  # type: ignore[method-assign]
        engine.endpoints.recover([one])
        assert (engine.endpoints._active[one.id].namespace >= 0) is known
        assert [endpoint.name for endpoint in engine.endpoints._active[one.id].endpoints] == ["lan"]
        engine.endpoints.detach(one)


def test_an_interface_that_is_gone_is_off_its_network(engine: Engine, tmp_path: Path) -> None:
    made(engine)
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    with engine.living(one):
        inside(engine, one, "ip link del eth0")
        engine.begin()
        engine.endpoints.has_process = lambda _: True  # type: ignore[method-assign]
        engine.endpoints.recover([one])
        assert engine.endpoints._active[one.id].endpoints == []
        assert one.network_settings.networks["lan"].address == ""
        engine.endpoints.detach(one)


def test_two_networks_of_one_parent(engine: Engine, tmp_path: Path) -> None:
    """Who leaves one of them stays on the other."""
    made(engine)
    other = [{"Subnet": "198.51.100.0/24", "Gateway": "198.51.100.254"}]
    side = parts.network(engine.networks, "side", Driver="macvlan", Options={"parent": "up0"}, IPAM={"Config": other})
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    engine.endpoints.connect(side, one, parts.fields.EndpointAsked())
    assert "198.51.100.1/24" in inside(engine, one, "ip -br addr show eth1")
    engine.endpoints.disconnect(engine.networks.get("lan"), one)
    assert "eth0" not in inside(engine, one, "ip -br link")
    assert "198.51.100.1/24" in inside(engine, one, "ip -br addr show eth1")
    assert "default via 198.51.100.254" in inside(engine, one, "ip route")


@pytest.mark.parametrize("action", ["connect", "disconnect"])
def test_a_daemon_that_dies_leaves_no_interface(engine: Engine, tmp_path: Path, action: str) -> None:
    """The record says that the container is not on the network: it is written before a disconnect, and after a
    connect. What a container has made itself is its own."""
    lan, front = made(engine), parts.network(engine.networks, "front")
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    inside(engine, one, "ip link add eth9 link eth0 type macvlan mode bridge")
    if action == "disconnect":
        engine.endpoints.connect(lan, one, parts.fields.EndpointAsked())
    written: list[Any] = []
    one.save = lambda durable=True: written.append(one.network_settings.encode())
    one.save()

    def dies(*_: Any, **__: Any) -> None:
        raise SystemExit

    engine.endpoints._outward.lead = dies  # type: ignore[method-assign]
    engine.endpoints._disconnect_now = dies  # type: ignore[method-assign]
    with engine.living(one):
        with pytest.raises(SystemExit):
            if action == "connect":
                engine.endpoints.connect(lan, one, parts.fields.EndpointAsked())
            else:
                engine.endpoints.disconnect(lan, one)
        assert "eth1" in inside(engine, one, "ip -br link")
        os.close(engine.endpoints._active[one.id].namespace)
        engine.endpoints._active.clear()
        engine.endpoints._outward.ports.close()
        one.network_settings = network_settings(written[-1], "", [])
        engine.begin()
        engine.endpoints.has_process = lambda _: True  # type: ignore[method-assign]
        engine.endpoints.recover([one])
        assert [endpoint.name for endpoint in engine.endpoints._active[one.id].endpoints] == ["front"]
        there = inside(engine, one, "ip -br link")
        assert "eth1" not in there
        assert "eth9" in there
        router = engine.networks.get(front.name).pools[0].gateway
        assert f"default via {router} dev eth0" in inside(engine, one, "ip route")
        engine.endpoints.detach(one)
