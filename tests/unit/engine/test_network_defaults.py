# SPDX-License-Identifier: Apache-2.0
"""What teud.yaml says of networks: what is refused there, and what becomes of the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from drivers import networks as suite
from networkhouse import Engine, container, inside, pings, silent, start

from teu.config import ConfigError, load
from teu.engine import config
from teu.engine.containers.network_settings import HostPort
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.networks import outward
from teu.engine.networks.drivers import bridge
from teu.engine.networks.options import OPTION_ENABLED, OPTION_TALK
from teu.linux import forwarding, netlink, nftables

Begin = Callable[..., Engine]


def settings(folder: Path, text: str) -> Any:
    file = folder / "teud.yaml"
    file.write_text(text)
    found = load(file, config.KEYS)
    config.check(found)
    return found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bip: 10.9.0.1", "no room for a gateway"),
        ("bip: 10.9.0.0/24", "such as 10.9.0.1/24"),
        ("bip: fd00::1/64", "give an IPv4 address with the length"),
        ("bip6: 10.9.0.1/24", "give an IPv6 address with the length"),
        ("bip: 10.9.0.1/24\nfixed-cidr: 10.9.1.0/25", "not a part of bip's 10.9.0.0/24"),
        ("bip: 10.9.0.1/24\ndefault-gateway: 10.9.1.1", "not in 10.9.0.0/24"),
        ("default-gateway: 10.9.1.1", "give bip as well"),
        ("fixed-cidr-v6: fd00::/64\ndefault-gateway-v6: fd01::1", "not in fd00::/64"),
        ("mtu: 12", "68 to 65535"),
        ("ip: localhost", "give an IP address"),
        ("userland-proxy: true", "give false"),
        ("default-address-pools: [10.0.0.0/8]", "size: 24"),
        ("default-address-pools: [{base: 10.0.0.0/8, size: 4}]", "size is from 8 to 30"),
        ("default-address-pools: [{base: fd00::/48, size: 127}]", "size is from 48 to 126"),
        ("default-address-pools: [{base: 10.0.0.1/8, size: 24}]", "host bits"),
        (
            "default-network-opts: {bridge: {com.docker.network.bridge.enable_icc: perhaps}}",
            "value: perhaps .strconv.ParseBool",
        ),
        ("default-network-opts: {bridge: {com.docker.network.bridge.name: br0}}", "no option for every network"),
        ("default-network-opts: {bridge: {mtu: '1400'}}", "no option for every network"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises((ConfigError, EngineError), match=says) as caught:
        settings(tmp_path, text)
    assert f"teud.yaml:{text.count(chr(10)) + 1}: " in str(caught.value)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    made: list[Engine] = []

    def engine(text: str = "") -> Engine:
        if not made:
            made.append(Engine(tmp_path, settings(tmp_path, text)))
        else:  # the daemon is started anew, with another file
            made[0].settings = settings(tmp_path, text)
            made[0].begin()
        return made[0]

    with suite.own_namespace():
        yield engine
        for one in made:
            one.end()


def addresses(name: str) -> set[str]:
    with netlink.Socket() as kernel:
        index = netlink.link_index(kernel.link(name))
        return {f"{address}/{length}" for number, address, length in kernel.addresses() if number == index}


def test_the_default_bridge(begin: Begin, tmp_path: Path) -> None:
    engine = begin(
        """
bip: 10.9.0.5/24
fixed-cidr: 10.9.0.128/25
default-gateway: 10.9.0.254
ipv6: true
bip6: fd00:9::5/64
default-gateway-v6: fd00:9::fe
mtu: 1400
ip: 127.0.0.1
"""
    )
    one = container(engine, tmp_path, 1, PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    start(engine, one)
    assert {"10.9.0.5/24", "fd00:9::5/64", "fe80::1/64"} <= addresses("teu0")
    settings = one.network_settings.networks["bridge"]
    assert (settings.address, settings.gateway) == ("10.9.0.128", "10.9.0.254")
    assert (settings.address6, settings.gateway6) == ("fd00:9::1", "fd00:9::fe")
    assert "default via 10.9.0.254" in inside(engine, one, "ip route")
    assert "default via fd00:9::fe" in inside(engine, one, "ip -6 route")
    assert "mtu 1400" in inside(engine, one, "ip link show eth0")
    assert one.network_settings.ports == {"80/tcp": [HostPort("127.0.0.1", "8080")]}
    shown = engine.networks.describe(engine.networks.get("bridge"))
    assert shown["EnableIPv6"] is True
    assert shown["Options"]["com.docker.network.bridge.host_binding_ipv4"] == "127.0.0.1"  # type: ignore[index,call-overload]
    assert one.network_settings.shown()["GlobalIPv6Address"] == "fd00:9::1"


def test_the_default_bridge_is_looked_at_before_its_first_use(begin: Begin, tmp_path: Path) -> None:
    engine = begin("ipv6: true")
    network = engine.networks.get("bridge")
    assert not network.pools and not engine.endpoints.kernel.socket().link("teu0")
    shown: Any = engine.networks.describe(network)
    assert [sorted(one) for one in shown["IPAM"]["Config"]] == [["Gateway", "Subnet"]] * 2
    assert shown["Options"]["com.docker.network.driver.mtu"] == "1500"
    assert not engine.endpoints.kernel.socket().link("teu0")  # it is not made for that
    engine = begin("ipv6: true")
    assert engine.networks.describe(engine.networks.get("bridge"))["IPAM"] == shown["IPAM"]
    one = container(engine, tmp_path, 1)
    start(engine, one)
    assert one.network_settings.networks["bridge"].gateway == shown["IPAM"]["Config"][0]["Gateway"]


def test_a_look_changes_nothing_of_what_is_in_use(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the host has not all that it is to have."""
    monkeypatch.setattr(bridge, "_has_ipv6", lambda: False)
    monkeypatch.setattr(outward, "host_has_ipv6", lambda: False)
    engine = begin("bip: 10.9.0.1/24\nipv6: true")
    one, two = container(engine, tmp_path, 1), container(engine, tmp_path, 2)
    start(engine, one)
    network = engine.networks.get("bridge")
    subnets, pools = list(network.record.subnets), network.pools
    assert network.missing() == [6]
    for _ in range(3):
        engine.networks.describe(network)
    assert network.record.subnets == subnets and network.pools is pools
    start(engine, two)
    assert one.network_settings.networks["bridge"].address != two.network_settings.networks["bridge"].address


def test_a_first_use_where_the_host_has_no_ipv6(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has what it can have, and no address that could not be used; what it is to have stays chosen."""
    monkeypatch.setattr(bridge, "_has_ipv6", lambda: False)
    monkeypatch.setattr(outward, "host_has_ipv6", lambda: False)
    engine = begin("ipv6: true")
    one, two = container(engine, tmp_path, 1), container(engine, tmp_path, 2)
    start(engine, one)
    network = engine.networks.get("bridge")
    subnets = list(network.record.subnets)
    assert [subnet.version for subnet in subnets] == [4, 6]
    settings = one.network_settings.networks["bridge"]
    assert settings.address and not settings.address6
    start(engine, two)
    engine.networks.describe(network)
    assert network.record.subnets == subnets
    assert two.network_settings.networks["bridge"].address not in ("", settings.address)


def test_another_subnet_with_the_next_start(begin: Begin, tmp_path: Path) -> None:
    engine = begin()
    one = container(engine, tmp_path, 1)
    start(engine, one)
    first = one.network_settings.networks["bridge"].gateway
    engine.endpoints.detach(one)
    engine = begin("bip: 10.9.0.1/24\nipv6: true")
    start(engine, one)
    assert one.network_settings.networks["bridge"].address == "10.9.0.2"
    assert one.network_settings.networks["bridge"].address6
    assert not any(text.startswith(first) for text in addresses("teu0"))
    chosen = one.network_settings.networks["bridge"].gateway6
    engine.endpoints.detach(one)
    # What the file leaves open stays as it was.
    engine = begin("ipv6: true")
    start(engine, one)
    settings = one.network_settings.networks["bridge"]
    assert (settings.gateway, settings.gateway6) == ("10.9.0.1", chosen)


def test_the_bridge_of_a_fixed_part(begin: Begin, tmp_path: Path) -> None:
    engine = begin("fixed-cidr: 10.9.0.128/25\nipv6: true\nfixed-cidr-v6: fd00:9::/64")
    start(engine, one := container(engine, tmp_path, 1))
    settings = one.network_settings.networks["bridge"]
    assert (settings.address, settings.gateway) == ("10.9.0.130", "10.9.0.129")
    assert (settings.address6, settings.gateway6) == ("fd00:9::2", "fd00:9::1")


def test_pools_of_subnets(begin: Begin, tmp_path: Path) -> None:
    pools = "default-address-pools:\n- {base: 10.200.0.0/23, size: 24}\n- {base: fd00:5::/56, size: 64}\n"
    engine = begin(pools)
    made = [parts.network(engine.networks, name, EnableIPv6=True) for name in ("a", "b")]
    assert [str(pool.subnet) for network in made for pool in network.pools] == [
        "10.200.0.0/24",
        "fd00:5::/64",
        "10.200.1.0/24",
        "fd00:5:0:1::/64",
    ]
    with pytest.raises(EngineError, match="could not find an available"):
        parts.network(engine.networks, "c")


def test_options_of_every_network(begin: Begin, tmp_path: Path) -> None:
    engine = begin(f"default-network-opts: {{bridge: {{{OPTION_TALK}: 'false', {OPTION_ENABLED[6]}: 'true'}}}}")
    made = parts.network(engine.networks, "a")
    assert not made.talk
    assert made.record.ipv6
    assert parts.network(engine.networks, "b", Options={OPTION_TALK: "true"}).talk
    with pytest.raises(BadRequest, match="IPv4 or IPv6"):
        parts.network(engine.networks, "c", Options={OPTION_ENABLED[4]: "0", OPTION_ENABLED[6]: "0"})


def test_forwarding_that_is_left_alone(begin: Begin, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = [Path(forwarding.IP_FORWARD), Path(forwarding.IPV6_FORWARD)]
    engine = begin("ip-forward: false\nipv6: true")
    for flag in flags:
        flag.write_text("0")
    for number in (1, 2):
        start(engine, container(engine, tmp_path, number))
    assert [flag.read_text() for flag in flags] == ["0\n", "0\n"]
    assert caplog.text.count("does not forward IPv4") == caplog.text.count("does not forward IPv6") == 1
    engine = begin("ipv6: true")
    start(engine, container(engine, tmp_path, 3))
    assert [flag.read_text() for flag in flags] == ["1\n", "1\n"]


def test_masquerading_and_neighbours(begin: Begin, tmp_path: Path) -> None:
    engine = begin("ip-masq: false\nicc: false")
    one, two = container(engine, tmp_path, 1), container(engine, tmp_path, 2)
    for each in (one, two):
        start(engine, each)
    address = two.network_settings.networks["bridge"].address
    for each in (one, two):
        assert pings(engine, each, each.network_settings.networks["bridge"].gateway)
    assert silent(engine, one, address)
    bridge = engine.networks.get("bridge").bridge()
    assert (bridge.talk, bridge.ways[0].masquerade) == (False, False)


def test_who_runs_keeps_the_bridge_as_it_is(begin: Begin, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another address of the bridge is for those who come when the others have gone; icc is for all at once."""
    engine = begin()
    one, two = container(engine, tmp_path, 1), container(engine, tmp_path, 2)
    for each in (one, two):
        start(engine, each)
    before = one.network_settings.networks["bridge"].gateway
    address = two.network_settings.networks["bridge"].address
    with engine.living(one), engine.living(two):
        engine = begin("bip: 10.9.0.1/24\nicc: false")
        engine.endpoints.recover([one, two])
        assert "once the containers on it have ended" in caplog.text
        for each in (one, two):
            assert pings(engine, each, before)
        assert silent(engine, one, address)
        assert f"{before.rpartition('.')[0].rpartition('.')[0]}.0.0/16" in nftables.run(
            "list set inet teu masqueraded4"
        )
        engine.endpoints.detach(one)
        start(engine, three := container(engine, tmp_path, 3))
        assert three.network_settings.networks["bridge"].gateway == before
        with engine.living(three):
            engine = begin("bip: 10.9.0.1/24")
            engine.endpoints.recover([two, three])
            assert pings(engine, three, address)
        engine.endpoints.detach(two)
        engine.endpoints.detach(three)
    start(engine, one)
    assert one.network_settings.networks["bridge"].gateway == "10.9.0.1"
    assert addresses("teu0") & {"10.9.0.1/24", f"{before}/16"} == {"10.9.0.1/24"}
