# SPDX-License-Identifier: Apache-2.0
"""The engine's networks against the kernel, in a network namespace of the test's own (needs root)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from drivers import networks as suite
from networkhouse import Engine, container, inside, pings, reach, silent, start

from teu.engine.containers.network_settings import HostPort
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden, NotFound
from teu.engine.networks.drivers import bridge
from teu.linux import forwarding, netlink, netns, nftables, resolver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")


@pytest.fixture
def own_namespace() -> Iterator[None]:
    with suite.own_namespace():
        yield


@pytest.fixture
def engine(own_namespace: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(tmp_path, getattr(request, "param", None))
    yield engine
    engine.end()


def serve(engine: Engine, one: Any, port: int) -> socket.socket:
    descriptor = engine.endpoints._active[one.id].namespace
    return netns.run_in(descriptor, lambda: socket.create_server(("0.0.0.0", port)))


def ruleset() -> str:
    """All but the policy for forwarding, which stays, as forwarding does."""
    text = nftables.run("list ruleset")
    closed = "chain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n"
    return text.replace(f"table ip filter {{\n\t{closed}}}\n", "")


def teu_links() -> list[str]:
    with netlink.Socket() as kernel:
        return [link.name for link in kernel.links() if bridge.VETH.match(link.name)]


def wait_for_links(count: int) -> None:
    until = time.monotonic() + 10
    while len(teu_links()) != count and time.monotonic() < until:
        time.sleep(0.01)
    assert len(teu_links()) == count


def test_bridge_gives_addresses_and_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    first, second = container(engine, tmp_path, 1), container(engine, tmp_path, 2)
    for one in (first, second):
        start(engine, one)
    settings = first.network_settings.networks["bridge"]
    subnet = IPv4Network(f"{settings.gateway}/{settings.prefix}", strict=False)
    assert settings.address == str(subnet[2])
    assert second.network_settings.networks["bridge"].address == str(subnet[3])
    assert pings(engine, first, str(subnet[3]))
    assert f"default via {subnet[1]}" in inside(engine, first, "ip route")
    assert len(teu_links()) == 2
    engine.endpoints.detach(first)
    assert "table inet teu" in ruleset()
    engine.endpoints.detach(second)
    assert ruleset() == ""
    assert first.network_settings.networks["bridge"].address == ""
    wait_for_links(0)


def test_published_port_is_reached_from_loopback_host_address_and_outside(engine: Engine, tmp_path: Path) -> None:
    one = container(engine, tmp_path, 1, PortBindings={"80/tcp": [{"HostPort": "8080"}]})
    two = container(engine, tmp_path, 2)
    start(engine, one)
    start(engine, two)
    assert one.network_settings.ports == {"80/tcp": [HostPort("0.0.0.0", "8080")]}
    gateway = one.network_settings.networks["bridge"].gateway
    outside, peer = netns.create(netlink.Socket)
    with netlink.Socket() as kernel, peer, serve(engine, one, 80):
        from ipaddress import IPv4Address

        kernel.send([netlink.new_bridge("wan0")])
        bridge = kernel.link("wan0")
        assert bridge
        kernel.send([netlink.add_address(bridge.number, IPv4Address("203.0.113.1"), 24)])
        kernel.send([netlink.new_veth("wan1", bridge.number, "eth0", outside, "02:42:cb:00:71:02")])
        far = netlink.link_index(peer.link("eth0"))
        peer.send(
            [
                netlink.set_up(far),
                netlink.add_address(far, IPv4Address("203.0.113.2"), 24),
                netlink.default_route(IPv4Address("203.0.113.1")),
            ]
        )
        assert reach("127.0.0.1", 8080)
        assert reach(gateway, 8080)
        assert netns.run_in(outside, lambda: reach("203.0.113.1", 8080))
        assert netns.run_in(engine.endpoints._active[two.id].namespace, lambda: reach(gateway, 8080))
        # What is not published is not reached, though the address is routed.
        address = one.network_settings.networks["bridge"].address
        assert not netns.run_in(outside, lambda: reach(address, 80, 0.3))
    os.close(outside)
    engine.endpoints.detach(one)
    assert not reach("127.0.0.1", 8080)


def test_container_does_not_reach_the_loopback_of_the_host(engine: Engine, tmp_path: Path) -> None:
    one = container(engine, tmp_path, 1)
    start(engine, one)
    gateway = one.network_settings.networks["bridge"].gateway
    with socket.create_server(("127.0.0.1", 7777)) as server:
        server.settimeout(0.3)
        inside(
            engine,
            one,
            "ip addr del 127.0.0.1/8 dev lo; sysctl -w net.ipv4.conf.all.route_localnet=1 "
            f"net.ipv4.conf.eth0.route_localnet=1; ip route add 127.0.0.1/32 via {gateway}",
        )
        descriptor = engine.endpoints._active[one.id].namespace
        assert not netns.run_in(descriptor, lambda: reach("127.0.0.1", 7777, 0.3))
        with pytest.raises(TimeoutError):
            server.accept()


def test_port_in_use(engine: Engine, tmp_path: Path) -> None:
    ports = {"80/tcp": [{"HostPort": "8081"}]}
    first = container(engine, tmp_path, 1, PortBindings=ports)
    second = container(engine, tmp_path, 2, PortBindings=ports)
    start(engine, first)
    said = r"failed to set up container networking: driver failed programming external connectivity on endpoint c2 "
    with pytest.raises(EngineError, match=said + r".*Bind for 0.0.0.0:8081 failed: port is already allocated"):
        engine.endpoints.attach(second)
    assert second.id not in engine.endpoints._active
    wait_for_links(1)
    engine.endpoints.detach(first)
    with socket.create_server(("0.0.0.0", 8081)):
        with pytest.raises(EngineError, match="address already in use"):
            engine.endpoints.attach(second)
    assert ruleset() == ""
    start(engine, second)


def test_the_table_says_whose_ports_are_open_to_whom(engine: Engine, tmp_path: Path) -> None:
    limited = {"io.teu.port-sources/80/tcp": "10.0.0.0/8,192.0.2.7"}
    one = container(engine, tmp_path, 1, PortBindings={"80/tcp": [{"HostPort": "8088"}]}, Annotations=limited)
    start(engine, one)
    address = one.network_settings.networks["bridge"].address
    listed = nftables.run("list table inet teu")
    assert f'tcp . 8088 comment "c1" : {address} . 80' in listed
    assert f"elements = {{ {address} . tcp . 80 }}" in listed
    assert f"10.0.0.0/8 . {address} . tcp . 80" in listed
    assert f"192.0.2.7 . {address} . tcp . 80" in listed
    # Who is on the bridge and not among them is kept out; the host itself is not.
    two = container(engine, tmp_path, 2)
    start(engine, two)
    with serve(engine, one, 80):
        assert reach("127.0.0.1", 8088)
        gateway = one.network_settings.networks["bridge"].gateway
        assert "timed out" in inside(
            engine, two, f"timeout 1 busybox wget -T 1 -qO- http://{gateway}:8088/; echo timed out"
        )
    engine.endpoints.detach(one)
    assert address not in nftables.run("list table inet teu")


def test_rules_of_the_host_are_counted_and_followed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain `host` has what the host's firewall says, also after that has changed, and after a flush; what nft does
    not take closes no more than itself."""
    rules = ["meta l4proto tcp ct original proto-dst { 8088 } accept", "drop"]
    monkeypatch.setattr(engine.endpoints.host, "look", lambda interfaces: list(rules))
    one = container(engine, tmp_path, 1, PortBindings={"80/tcp": [{"HostPort": "8088"}]})
    start(engine, one)

    def listed() -> list[str]:
        text = nftables.run("list chain inet teu host")
        return [line.strip() for line in text.splitlines()[2:-2]]

    def until(expected: list[str]) -> None:
        end = time.monotonic() + 5
        while time.monotonic() < end and listed() != expected:
            time.sleep(0.02)
        assert listed() == expected

    before = ["meta l4proto tcp ct original proto-dst 8088 accept", "drop"]
    assert listed() == before
    nftables.run("flush chain inet teu host")
    rules[0] = "meta nonsense"
    # A change of ufw's or firewalld's tells that there is something new.
    nftables.run("add table inet firewalld\nadd chain inet firewalld x\nadd rule inet firewalld x accept\n")
    until(["drop", "drop"])
    rules[:] = ["accept"]
    nftables.run("delete table inet firewalld")
    until(["accept"])
    nftables.run("flush ruleset")
    end = time.monotonic() + 5
    while time.monotonic() < end and "chain host" not in nftables.run("list ruleset"):
        time.sleep(0.02)
    until(["accept"])


def test_a_bridge_that_somebody_takes_away(engine: Engine, tmp_path: Path) -> None:
    """It is there again with the next container, and with the next daemon; and who was on it is on it again."""
    parts.network(engine.networks, "front", Options={"com.docker.network.bridge.name": "front0"})
    ports = {"80/tcp": [{"HostPort": "8082"}]}
    boxes = [container(engine, tmp_path, 1, "front", PortBindings=ports), container(engine, tmp_path, 2, "front")]
    start(engine, boxes[0])
    with serve(engine, boxes[0], 80), engine.living(boxes[0]):
        assert reach("127.0.0.1", 8082)
        subprocess.run(["ip", "link", "delete", "front0"], check=True)
        assert not reach("127.0.0.1", 8082, 0.3)
        start(engine, boxes[1])
        assert reach("127.0.0.1", 8082)
        address = boxes[0].network_settings.networks["front"].address
        assert netns.run_in(engine.endpoints._active[boxes[1].id].namespace, lambda: reach(address, 80))
        subprocess.run(["ip", "link", "delete", "front0"], check=True)
        boxes[1].running = False
        engine.begin()
        engine.endpoints.recover([boxes[0]])
        assert reach("127.0.0.1", 8082)


def test_the_host_is_no_router_when_the_last_container_has_gone(engine: Engine, tmp_path: Path) -> None:
    """It forwards still; and somebody empties the ruleset, now and before the next daemon comes."""
    Path(forwarding.IP_FORWARD).write_text("0")
    one = container(engine, tmp_path, 1)
    start(engine, one)
    engine.endpoints.detach(one)

    def closed_again() -> bool:
        end = time.monotonic() + 5
        while time.monotonic() < end and not forwarding.has_chain():
            time.sleep(0.05)
        return forwarding.has_chain()

    nftables.run("flush ruleset")
    assert closed_again()
    engine.endpoints.close()
    nftables.run("flush ruleset")
    engine.begin()
    engine.endpoints.recover([])
    assert forwarding.has_chain()
    nftables.run("flush ruleset")
    assert closed_again()


@pytest.mark.parametrize("engine", [{"firewall": "none"}], indirect=True)
def test_no_rules_at_all(engine: Engine, tmp_path: Path) -> None:
    one = container(engine, tmp_path, 1)
    start(engine, one)
    with serve(engine, one, 80):
        assert reach(one.network_settings.networks["bridge"].address, 80)
    assert nftables.run("list ruleset") == ""
    two = container(engine, tmp_path, 2, PortBindings={"80/tcp": [{"HostPort": "8088"}]})
    with pytest.raises(BadRequest, match="firewall is none"):
        start(engine, two)
    assert len(teu_links()) <= 2
    wait_for_links(1)
    # Nor are there any where another network goes.
    parts.network(engine.networks, "front")
    three = container(engine, tmp_path, 3, "front")
    start(engine, three)
    nftables.run("add table ip filter\nadd chain ip filter DOCKER-USER\n")
    engine.endpoints.detach(three)
    assert "teu" not in nftables.run("list ruleset")


def test_the_hosts_resolv_conf_is_followed(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While containers run; but not where somebody has written to their own. One that is replaced is another file."""
    host = tmp_path / "host-resolv.conf"
    host.write_text("nameserver 192.0.2.1\nsearch a.example\n")
    monkeypatch.setattr(resolver, "RESOLV_CONF", str(host))
    monkeypatch.setattr(resolver, "RESOLVED_UPSTREAM", str(tmp_path / "nothing"))
    parts.network(engine.networks, "front")
    boxes = [container(engine, tmp_path, 1), container(engine, tmp_path, 2), container(engine, tmp_path, 3, "front")]
    for box in boxes:
        start(engine, box)
    plain, own, named = (Path(box.directory) / "resolv.conf" for box in boxes)
    own.write_text("nameserver 9.9.9.9\n")
    assert plain.read_text() == "nameserver 192.0.2.1\nsearch a.example\n"
    assert named.read_text() == "nameserver 127.0.0.11\nsearch a.example\noptions ndots:0\n"

    def until(path: Path, text: str) -> None:
        end = time.monotonic() + 5
        while time.monotonic() < end and path.read_text() != text:
            time.sleep(0.02)
        assert path.read_text() == text

    (tmp_path / "new").write_text("nameserver 192.0.2.2\nsearch b.example c.example\noptions timeout:1\n")
    (tmp_path / "new").rename(host)
    until(plain, "nameserver 192.0.2.2\nsearch b.example c.example\noptions timeout:1\n")
    until(named, "nameserver 127.0.0.11\nsearch b.example c.example\noptions timeout:1 ndots:0\n")
    # The host becomes its own server, which its containers can ask by the engine's resolver alone.
    host.write_text("nameserver 127.0.0.1\n")
    until(plain, "nameserver 127.0.0.11\noptions ndots:0\n")
    assert own.read_text() == "nameserver 9.9.9.9\n"


def test_servers_that_a_container_cannot_ask(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a family that it has not, or on a link of the host's: the host asks them, where there are no others."""
    host = tmp_path / "host-resolv.conf"
    monkeypatch.setattr(resolver, "RESOLV_CONF", str(host))
    for number, servers, ipv6, given in (
        (1, ["2001:db8::53", "192.0.2.1", "fe80::1%eth0"], False, ["192.0.2.1"]),
        (2, ["2001:db8::53", "192.0.2.1", "fe80::1%eth0"], True, ["2001:db8::53", "192.0.2.1"]),
        (3, ["2001:db8::53"], False, ["127.0.0.11"]),
        (4, ["fe80::1%eth0"], True, ["127.0.0.11"]),
    ):
        engine.settings = {"ipv6": True, "fixed-cidr-v6": "fd00:66::/64"} if ipv6 else {}
        engine.begin()
        host.write_text("".join(f"nameserver {server}\n" for server in servers))
        box = container(engine, tmp_path, number)
        start(engine, box)
        lines = (Path(box.directory) / "resolv.conf").read_text().splitlines()
        assert [line.split()[1] for line in lines if line.startswith("nameserver")] == given
        engine.endpoints.detach(box)


def test_ephemeral_ports_and_ranges(engine: Engine, tmp_path: Path) -> None:
    one = container(
        engine,
        tmp_path,
        1,
        PortBindings={"53/udp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        PublishAllPorts=True,
        exposed={"80/tcp": {}, "53/udp": {}},
    )
    two = container(engine, tmp_path, 2, PortBindings={"80/tcp": [{"HostPort": "9000-9001"}]})
    three = container(engine, tmp_path, 3, PortBindings={"80/tcp": [{"HostPort": "9000-9001"}]})
    for each in (one, two, three):
        start(engine, each)
    ports = one.network_settings.ports
    assert int(ports["80/tcp"][0].port) > 1023
    assert ports["53/udp"][0].address == "127.0.0.1"
    chosen = {each.network_settings.ports["80/tcp"][0].port for each in (two, three)}
    assert chosen == {"9000", "9001"}


def test_recovery_keeps_the_living_and_sweeps_the_dead(engine: Engine, tmp_path: Path) -> None:
    lives = container(engine, tmp_path, 1, PortBindings={"80/tcp": [{"HostPort": "8082"}]})
    died = container(engine, tmp_path, 2, PortBindings={"80/tcp": [{"HostPort": "8083"}]})
    start(engine, lives)
    start(engine, died)
    held = os.dup(engine.endpoints._active[lives.id].namespace)
    sleeper = netns.run_in(held, lambda: subprocess.Popen(["sleep", "60"]))
    try:
        with serve(engine, lives, 80):
            lives.pid, died.running = sleeper.pid, False
            engine.begin()
            again = engine.endpoints
            again.recover([lives])
            assert reach("127.0.0.1", 8082)
            assert not reach("127.0.0.1", 8083)
            assert died.network_settings.networks["bridge"].address == ""
            wait_for_links(1)
            third = container(engine, tmp_path, 3, PortBindings={"80/tcp": [{"HostPort": "8082"}]})
            with pytest.raises(EngineError, match="already allocated"):
                again.attach(third)
        again.detach(lives)
        assert ruleset() == ""
    finally:
        sleeper.kill()
        sleeper.wait()
        os.close(held)


def test_user_defined_networks_are_apart(engine: Engine, tmp_path: Path) -> None:
    parts.network(engine.networks, "front")
    parts.network(engine.networks, "back", Internal=True, IPAM={"Config": [{"Subnet": "10.77.0.0/24"}]})
    one = container(engine, tmp_path, 1, "front")
    two = container(engine, tmp_path, 2, "back", endpoints={"back": {"IPAMConfig": {"IPv4Address": "10.77.0.9"}}})
    start(engine, one)
    start(engine, two)
    assert two.network_settings.networks["back"].address == "10.77.0.9"
    assert pings(engine, one, one.network_settings.networks["front"].gateway)
    assert silent(engine, one, "10.77.0.9")
    back = engine.networks.get("back")
    engine.endpoints.connect(back, one, fields.EndpointAsked())
    assert pings(engine, one, "10.77.0.9")
    assert back.id[:11] in "".join(link.name for link in netlink.Socket().links())
    with pytest.raises(Forbidden, match=r'network back has active endpoints \(name:"c1" id:"\w{12}", name:"c2" id:"'):
        engine.networks.remove(back)
    engine.endpoints.disconnect(back, one)
    assert silent(engine, one, "10.77.0.9")
    engine.endpoints.detach(two)
    engine.networks.remove(back)
    with pytest.raises(NotFound, match="network back not found"):
        engine.networks.get("back")


def test_bad_input(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="network nowhere not found"):
        start(engine, container(engine, tmp_path, 1, "nowhere"))
    engine.known.clear()
    with pytest.raises(BadRequest, match="invalid port specification"):
        container(engine, tmp_path, 1, PortBindings={"80/tcp": [{"HostPort": "70000"}]})
    with pytest.raises(BadRequest, match="invalid IP address"):
        container(engine, tmp_path, 1, PortBindings={"80/tcp": [{"HostIp": "300.0.0.1"}]})
    with pytest.raises(BadRequest, match="invalid subnet"):
        parts.network(engine.networks, "x", IPAM={"Config": [{"Subnet": "x"}]})
    parts.network(engine.networks, "x", IPAM={"Config": [{"Subnet": "10.1.0.0/16"}]})
    with pytest.raises(Conflict, match="already exists"):
        parts.network(engine.networks, "x")
    with pytest.raises(Forbidden, match="overlaps"):
        parts.network(engine.networks, "y", IPAM={"Config": [{"Subnet": "10.1.2.0/24"}]})
    with pytest.raises(Forbidden):
        parts.network(engine.networks, "host")
    with pytest.raises(Forbidden):
        engine.networks.remove(engine.networks.get("bridge"))


def test_modes_without_a_bridge(engine: Engine, tmp_path: Path) -> None:
    host, none = container(engine, tmp_path, 1, "host"), container(engine, tmp_path, 2, "none")
    assert engine.endpoints.attach(host).namespace is None
    attachment = engine.endpoints.attach(none)
    assert inside(engine, none, "ip -o link").count("\n") == 1
    assert "localhost" in Path(attachment.files["/etc/hosts"]).read_text()
    other = container(engine, tmp_path, 3, f"container:{none.name}")
    assert other.host_config.network_mode == f"container:{none.id}"
    with pytest.raises(Conflict, match=f"namespace of a non running container: container {none.name} is created"):
        engine.endpoints.attach(other)


def test_attaching_is_quick(engine: Engine, tmp_path: Path) -> None:
    start(engine, container(engine, tmp_path, 1))
    times = []
    for number in range(2, 62):  # the least time is what it costs; a busy machine needs more of them
        one = container(engine, tmp_path, number, PortBindings={"80/tcp": [{"HostPort": ""}]})
        before = time.perf_counter()
        start(engine, one)
        times.append(time.perf_counter() - before)
        if number >= 12 and min(times) < 0.05:
            break
    assert min(times) < 0.05


def test_a_late_deletion_spares_the_next_pair(engine: Engine, tmp_path: Path) -> None:
    """The pair of a container that is started anew has the name of the one before."""
    one = container(engine, tmp_path, 1)
    start(engine, one)
    before = engine.endpoints._active[one.id].endpoints[0]
    engine.endpoints.detach(one)
    wait_for_links(0)
    start(engine, one)
    assert engine.endpoints._active[one.id].endpoints[0].veth == before.veth
    engine.endpoints.drivers["bridge"]._drop_veth(before)  # type: ignore[attr-defined]
    assert teu_links() == [before.veth]


def test_a_name_does_not_hit_who_has_it_by_now(engine: Engine, tmp_path: Path) -> None:
    one, two = container(engine, tmp_path, 1), container(engine, tmp_path, 2)
    two.id = one.id[:10] + two.id[10:]  # its pair would have the other's name
    start(engine, one)
    before = engine.endpoints._active[one.id].endpoints[0]
    with pytest.raises(EngineError, match="failed to create endpoint"):
        engine.endpoints.attach(two)
    with netlink.Socket() as kernel:
        found = kernel.link(before.veth)
        assert found
        assert found.number == before.number
        front = parts.network(engine.networks, "front", Options={"com.docker.network.bridge.name": "own0"})
        three = container(engine, tmp_path, 3, "front")
        start(engine, three)
        engine.endpoints.detach(three)
        mine = kernel.link("own0")
        assert mine
        kernel.send([netlink.delete_index(mine.number)])
        # Somebody else's, who has made it since.
        subprocess.run(["ip", "link", "add", "own0", "type", "veth", "peer", "own1"], check=True)
        three.network_settings.networks.clear()
        engine.networks.remove(front)
        assert kernel.link("own0") is not None


def test_the_namespace_of_another_process_is_not_taken(engine: Engine, tmp_path: Path) -> None:
    """After its process's number went to another one, which the record knows nothing of."""
    one, two = container(engine, tmp_path, 1), container(engine, tmp_path, 2, "none")
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        for each in (one, two):
            start(engine, each)
            each.pid = stranger.pid
        # The container lives on with its interface: without a descriptor the kernel takes both away in a while.
        held = os.dup(engine.endpoints._active[one.id].namespace)
        engine.begin()
        again = engine.endpoints
        again.recover([one, two])
        assert [again._active[each.id].namespace for each in (one, two)] == [-1, -1]
        # An interface there is the other end of one that has the number of ours, elsewhere.
        number = again._active[one.id].endpoints[0].number
        other, inner = netns.create(netlink.Socket)
        inner.close()
        netns.run_in(
            other,
            lambda: subprocess.run(
                f"ip link add x1 index {number} type veth peer name x0 netns {stranger.pid}".split(), check=True
            ),
        )
        with netlink.Socket() as kernel:
            link = kernel.link("x0")
            assert link
            assert link.peer == number
        engine.begin()
        engine.endpoints.recover([one, two])
        assert engine.endpoints._active[one.id].namespace == -1
        os.close(other)
        os.close(held)
    finally:
        stranger.kill()
        stranger.wait()


def test_the_bridge_stays_the_same_neighbour(engine: Engine, tmp_path: Path) -> None:
    """Whoever comes and goes: the others know it by its MAC address."""

    def address() -> str:
        with netlink.Socket() as kernel:
            found = kernel.link("teu0")
            assert found
            return found.mac

    with netlink.Socket() as kernel:  # as an older teud has made it
        kernel.send([netlink.new_bridge("teu0")])
    made = [container(engine, tmp_path, number) for number in range(1, 6)]
    start(engine, made[0])
    before = address()
    for one in made[1:]:
        start(engine, one)
        assert address() == before
    for one in made:
        engine.endpoints.detach(one)
    wait_for_links(0)
    assert address() == before
    front = parts.network(engine.networks, "front")
    one = container(engine, tmp_path, 6, "front")
    start(engine, one)
    with netlink.Socket() as kernel:
        found = kernel.link(front.interface)
        assert found
        assert found.mac == "02:42:" + bytes.fromhex(front.id[:8]).hex(":")


@pytest.mark.parametrize(("driver", "check"), suite.CHECKS, ids=lambda one: getattr(one, "__name__", one))
def test_what_every_driver_does(own_namespace: None, driver: str, check: Any, tmp_path: Path) -> None:
    bench = suite.Bench(driver, tmp_path)
    try:
        check(bench)
    finally:
        bench.stopping.set()


@pytest.mark.parametrize("driver", [7, None])
def test_a_network_whose_driver_is_not_here_is_left(engine: Engine, tmp_path: Path, driver: Any) -> None:
    """A container that runs on it goes on, and leaves when it ends; it can be removed with its bridge."""
    front = parts.network(engine.networks, "front")
    one = container(engine, tmp_path, 1, "front")
    start(engine, one)
    with engine.database.transaction() as cursor:
        broken = json.dumps({**front.record.encode(), "Driver": driver})
        cursor.execute("UPDATE networks SET data=? WHERE id=?", (broken, front.id))
    engine.begin()
    engine.endpoints.recover([one])
    assert [endpoint.network for endpoint in engine.endpoints._active[one.id].endpoints] == [front.id]
    engine.endpoints.detach(one)
    wait_for_links(0)
    with pytest.raises(Conflict, match="can only be inspected and removed"):
        engine.endpoints.attach(one)
    engine.networks.remove(engine.networks.get("front"))
    with netlink.Socket() as kernel:
        assert not any(bridge.BRIDGE.match(link.name) for link in kernel.links())
