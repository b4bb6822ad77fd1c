# SPDX-License-Identifier: Apache-2.0
"""The network of steps, in a network namespace of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from drivers import networks as suite

from teu.buildkit.core import errors
from teu.buildkit.worker import network
from teu.buildkit.worker.network import Network, Sandbox, Settings
from teu.linux import netlink, netns, nftables, resolver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

SUBNET = "172.30.7.0/24"


@pytest.fixture
def own_namespace() -> Iterator[None]:
    with suite.own_namespace():
        yield


@pytest.fixture
def steps(own_namespace: None, tmp_path: Path) -> Iterator[Network]:
    made = Network(Settings(subnet=SUBNET), str(tmp_path))
    yield made
    made.close()


def links() -> list[netlink.Link]:
    with netlink.Socket() as kernel:
        return kernel.links()


def eventually(probe: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not probe():
        assert time.monotonic() < until
        time.sleep(0.01)


def address(sandbox: Sandbox) -> IPv4Address:
    def inside() -> IPv4Address:
        with netlink.Socket() as kernel:
            (found,) = [one for _, one, _ in kernel.addresses() if isinstance(one, IPv4Address) and not one.is_loopback]
            return found

    return netns.run_in(sandbox.namespace, inside)


def reach(sandbox: Sandbox, target: str, timeout: float = 5.0) -> bool:
    def inside() -> bool:
        try:
            socket.create_connection((target, 7777), timeout).close()
        except OSError:
            return False
        return True

    return netns.run_in(sandbox.namespace, inside)


def test_a_sandbox_has_an_address_and_reaches_the_host(steps: Network) -> None:
    sandbox = steps.take()
    assert address(sandbox) == sandbox.address
    assert str(sandbox.address).startswith("172.30.7.")
    assert steps.gateway == "172.30.7.1"
    with socket.create_server(("172.30.7.1", 7777)):
        assert reach(sandbox, "172.30.7.1")
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    steps.give_back(sandbox)


def test_sandboxes_do_not_reach_each_other(steps: Network) -> None:
    one, other = steps.take(), steps.take()
    listener = netns.run_in(other.namespace, lambda: socket.create_server(("", 7777)))
    with listener:
        assert reach(other, str(other.address))
        assert not reach(one, str(other.address), 0.3)
    steps.give_back(one)
    steps.give_back(other)


def test_one_that_was_left_clean_serves_the_next(steps: Network) -> None:
    sandbox = steps.take()
    steps.give_back(sandbox)
    eventually(lambda: sandbox in steps._spare)
    assert steps.take() is sandbox


def test_one_in_which_something_is_left_serves_nobody(steps: Network) -> None:
    sandbox = steps.take()
    left = netns.run_in(sandbox.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with left:
        steps.give_back(sandbox)
        assert steps.take().address != sandbox.address
        eventually(lambda: not any(link.number == sandbox.number for link in links()))


def test_one_that_could_be_changed_serves_nobody(steps: Network) -> None:
    sandbox = steps.take()
    steps.give_back(sandbox, dirty=True)
    assert steps.take().address != sandbox.address


def test_sandboxes_are_made_ahead(steps: Network) -> None:
    steps.warm()
    eventually(lambda: len(steps._spare) == 2)
    taken = [steps.take() for _ in range(5)]
    assert len({sandbox.address for sandbox in taken}) == 5
    for sandbox in taken:
        steps.give_back(sandbox)
    assert len(steps._spare) <= 5


def test_nothing_is_left(own_namespace: None, tmp_path: Path) -> None:
    before = {link.name for link in links()}
    descriptors = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    made = Network(Settings(subnet=SUBNET), str(tmp_path))
    sandbox = made.take()
    assert "teubuild0" in nftables.run("list table inet teu-build")
    made.give_back(sandbox)
    made.close()
    eventually(lambda: {link.name for link in links()} == before)
    with pytest.raises(nftables.Error):
        nftables.run("list table inet teu-build")
    eventually(lambda: threading.active_count() <= threads)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2  # libnftables keeps its own
    with pytest.raises(errors.Unavailable):
        made.take()


def test_what_a_dead_builder_left_is_cleared(own_namespace: None, tmp_path: Path) -> None:
    with netlink.Socket() as kernel:
        kernel.send([netlink.new_bridge(network.BRIDGE)])
        namespace, _ = netns.create(lambda: None)
        index = netlink.link_index(kernel.link(network.BRIDGE))
        kernel.send([netlink.new_veth("teub-2", index, "eth0", namespace, "02:42:00:00:00:01")])
    made = Network(Settings(subnet=SUBNET), str(tmp_path))
    try:
        sandbox = made.take()
        assert str(sandbox.address) == "172.30.7.2"
        made.give_back(sandbox)
    finally:
        made.close()
        os.close(namespace)


def test_a_successor_without_steps_clears_it_too(own_namespace: None, tmp_path: Path) -> None:
    dead = Network(Settings(subnet=SUBNET), str(tmp_path))
    sandbox = dead.take()
    eventually(lambda: not dead._filling)
    os.eventfd_write(dead._end, 1)  # its threads are dead with it
    assert dead._watcher is not None
    dead._watcher.join()
    assert dead._presence is not None
    dead._presence.close()
    Network(Settings(), str(tmp_path)).sweep()
    assert not [link for link in links() if link.name.startswith("teub")]
    with pytest.raises(nftables.Error):
        nftables.run("list table inet teu-build")
    dead.give_back(sandbox, dirty=True)
    dead.close()


@pytest.fixture
def both(own_namespace: None, tmp_path: Path) -> Iterator[tuple[Network, Network]]:
    """Two builders of one host."""
    made = Network(Settings(subnet=SUBNET), str(tmp_path)), Network(Settings(), str(tmp_path))
    yield made
    for one in made:
        one.close()


def served(sandbox: Sandbox, gateway: str) -> bool:
    with socket.create_server((gateway, 7777)):
        return reach(sandbox, gateway)


def test_two_builders_share_the_bridge(both: tuple[Network, Network]) -> None:
    one, other = both
    taken = [one.take()]
    other.sweep()
    taken += [other.take() for _ in range(3)] + [one.take() for _ in range(3)]
    assert len({sandbox.address for sandbox in taken}) == 7
    assert one.gateway == other.gateway == "172.30.7.1"
    assert all(served(sandbox, one.gateway) for sandbox in (taken[0], taken[1], taken[-1]))
    listener = netns.run_in(taken[1].namespace, lambda: socket.create_server(("", 7777)))
    with listener:
        assert not reach(taken[0], str(taken[1].address), 0.3)
    for sandbox in taken[1:4]:
        other.give_back(sandbox, dirty=True)
    other.close()
    assert "masquerade" in nftables.run("list table inet teu-build")
    assert served(taken[0], one.gateway)
    taken.append(one.take())
    assert served(taken[-1], one.gateway)
    for sandbox in (taken[0], *taken[4:]):
        one.give_back(sandbox)
    one.close()
    eventually(lambda: not [link for link in links() if link.name.startswith("teub")])


def test_addresses_that_another_builder_has_are_passed_over(both: tuple[Network, Network]) -> None:
    one, other = both
    taken = [one.take() for _ in range(3)]
    eventually(lambda: not one._filling)
    mine = other.take()
    eventually(lambda: not other._filling)
    other._first = 0
    more = [other.take() for _ in range(5)]
    assert len({sandbox.address for sandbox in (*taken, mine, *more)}) == 9
    assert all(served(sandbox, one.gateway) for sandbox in (*taken, *more))
    assert all(sandbox.address in other._taken for sandbox in more)
    eventually(lambda: not other._filling)  # what it tries meanwhile is in the list, too
    assert not any(sandbox.address in other._taken for sandbox in taken)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_bridge_that_is_gone_is_made_anew(steps: Network, replaced: bool) -> None:
    sandbox = steps.take()
    eventually(lambda: not steps._filling)
    subprocess.run(["ip", "link", "delete", "teubuild0"], check=True)
    if replaced:
        subprocess.run(["ip", "link", "add", "teubuild0", "type", "bridge"], check=True)
    following = steps.take()
    assert served(following, "172.30.7.1")
    assert served(sandbox, "172.30.7.1")
    listener = netns.run_in(following.namespace, lambda: socket.create_server(("", 7777)))
    with listener:
        assert not reach(sandbox, str(following.address), 0.3)
    assert steps._make().address.is_private
    steps.give_back(sandbox)
    steps.give_back(following)


def test_a_bridge_that_goes_while_a_sandbox_is_made(steps: Network) -> None:
    steps.give_back(steps.take())
    eventually(lambda: not steps._filling)
    subprocess.run(["ip", "link", "delete", "teubuild0"], check=True)
    with steps._lock:
        made = steps._make()
    assert served(made, "172.30.7.1")


def test_a_bridge_with_somebody_elses_interface_stays(steps: Network) -> None:
    steps.give_back(steps.take())
    for command in ("link add mine type veth peer name far", "link set mine master teubuild0"):
        subprocess.run(["ip", *command.split()], check=True)
    steps.close()
    left = {link.name: link for link in links()}
    assert left["mine"].master == left["teubuild0"].number
    with pytest.raises(nftables.Error):
        nftables.run("list table inet teu-build")


def test_rules_that_somebody_took_away_are_made_anew(steps: Network) -> None:
    steps.give_back(steps.take())
    nftables.run("flush ruleset\n")
    steps.give_back(steps.take())
    assert "masquerade" in nftables.run("list table inet teu-build")


def test_rules_are_mended_while_steps_run(steps: Network) -> None:
    sandbox = steps.take()
    eventually(lambda: not steps._filling)

    def there() -> bool:
        with steps._lock:  # the library is one for all threads
            try:
                return "masquerade" in nftables.run("list table inet teu-build")
            except nftables.Error:
                return False

    for command in ("flush ruleset\n", "delete table inet teu-build\n", "flush chain inet teu-build outgoing\n"):
        nftables.run(command)
        eventually(there)
    steps.give_back(sandbox)


def test_a_subnet_that_is_free_is_taken(own_namespace: None, tmp_path: Path) -> None:
    made = Network(Settings(), str(tmp_path))
    try:
        sandbox = made.take()
        assert sandbox.address.is_private
        made.give_back(sandbox)
    finally:
        made.close()


def test_addresses_have_an_end(own_namespace: None, tmp_path: Path) -> None:
    made = Network(Settings(subnet="172.30.7.0/30", spare=0), str(tmp_path))
    try:
        sandbox = made.take()
        with pytest.raises(errors.Error, match="all addresses of 172.30.7.0/30 are taken"):
            made.take()
        made.give_back(sandbox)
    finally:
        made.close()


def test_servers_on_the_hosts_loopback_are_asked_for_steps(steps: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        told = resolver.Resolver()
        told.servers = ["127.0.0.1"]
        empty = resolver.Resolver()
        monkeypatch.setattr(resolver, "host_resolver", lambda own, _=(4, 6): empty if own else told)
        sandbox = steps.take()
        assert sandbox.named
        empty = resolver.Resolver()
        assert network.resolv_conf(Settings(), True, sandbox.named) == "nameserver 127.0.0.11\n"
        question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01"

        def ask() -> socket.socket:
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.settimeout(10)
            client.sendto(question, ("127.0.0.11", 53))
            return client

        with netns.run_in(sandbox.namespace, ask) as client:
            asked, sender = server.recvfrom(4096)
            assert b"example" in asked
            server.sendto(asked[:2] + b"\x81\x80" + asked[4:], sender)
            answer, _ = client.recvfrom(4096)
            assert answer[:2] == b"\x12\x34"
        steps.give_back(sandbox)
        eventually(lambda: sandbox in steps._spare)
