# SPDX-License-Identifier: Apache-2.0
"""What every network driver has to do (teu.engine.networks.drivers.driver). Each check takes a bench, which has
a driver, in a network namespace of its own. Needs root."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import echo
import pytest

from teu.engine.core.database import Database
from teu.engine.core.errors import Forbidden
from teu.engine.networks.drivers import registry
from teu.engine.networks.drivers.driver import Context, Wish
from teu.engine.networks.kernel import Kernel
from teu.engine.networks.model import Active, Endpoint, Network, automatic_mac
from teu.engine.networks.records import NetworkRecord, Subnet
from teu.engine.networks.store import Store
from teu.linux import netlink, netns, nftables
from teu.linux.namespaces import CLONE_NEWNET, unshare
from teu.linux.rtnetlink import IFLA_IFNAME, NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK, VETH_INFO_PEER


@contextlib.contextmanager
def own_namespace() -> Iterator[None]:
    """This thread is in a new network namespace with a loopback, and nftables with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert libc.unshare(netns.CLONE_NEWNET) == 0
    nftables.close()
    try:
        with netlink.Socket() as kernel:
            kernel.send([netlink.set_up(1)])
        yield
    finally:
        nftables.close()
        assert libc.setns(before, netns.CLONE_NEWNET) == 0
        os.close(before)


ON_PARENT = ("ipvlan", "macvlan")


def make_pair(kernel: netlink.Socket, *names: str) -> None:
    """A veth pair, both ends up: a network card with a cable, for those who need one."""
    here, peer = (bytes(16) + netlink.attribute(IFLA_IFNAME, netlink.text(name)) for name in names)
    info = netlink._kind("veth", netlink.attribute(VETH_INFO_PEER, peer))
    kernel.send([netlink.Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, here + info, f"pair {names[0]}")])
    kernel.send([netlink.set_up(netlink.link_index(kernel.link(name))) for name in names])


@functools.cache
def no_kind(kind: str) -> str:
    """Why there can be no interfaces of a kind here; "" where there can."""
    if kind not in (*ON_PARENT, "vlan", "dummy"):
        return ""
    if os.geteuid() != 0:
        return "needs root for network namespaces"

    def body() -> str:
        unshare(CLONE_NEWNET)
        here = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        with netlink.Socket() as kernel:
            make_pair(kernel, "up0", "up1")
            found = kernel.link("up0")
            assert found
            message = {
                "macvlan": netlink.new_macvlan("x", found.number, here, 4),
                "ipvlan": netlink.new_ipvlan("x", found.number, here, 0, 0),
                "vlan": netlink.new_vlan("x", found.number, 5),
                "dummy": netlink.new_dummy("x"),
            }[kind]
            try:
                kernel.send([message])
            except OSError as error:
                assert error.errno == errno.EOPNOTSUPP, error
                return f"this kernel has no interfaces of the kind {kind}: that of the VM lab has"
            finally:
                os.close(here)
        return ""

    return netns.in_thread(body)


class Bench:
    """A driver as the engine has it, with the networks and the containers of a check. `stopping` is set after it:
    threads that go on are in its namespace, and would make the nftables there that the next one uses."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.driver_options = {}
        if name in ON_PARENT:
            with netlink.Socket() as kernel:
                make_pair(kernel, "up0", "up1")
            self.driver_options = {"parent": "up0"}
        self.store = Store(Database(str(folder / "engine.db")))
        self.kernel = Kernel()
        self.active: dict[str, Active] = {}
        self.folder = str(folder)
        self.stopping = threading.Event()
        self.begin()

    def begin(self) -> None:
        """The driver as a new daemon has it; the old one is dead."""
        self.stopping.set()
        self.stopping = threading.Event()
        context = Context(self.store, self.kernel, self.active, self.folder, self.stopping)
        self.driver = registry.load(self.name)(context)
        self.driver.start()

    def network(self, name: str = "front", subnet: str = "10.77.0") -> Network:
        subnets = [Subnet(f"{subnet}.0/24", f"{subnet}.1")] if self.driver.connects else []
        network = Network(NetworkRecord(name, self.name, subnets, options=self.driver_options))
        with self.store.lock:
            self.store.save(network)
            self.driver.create(network)
        return network

    def join(self, network: Network) -> tuple[str, Endpoint]:
        """A new container on the network: its id, and what it has there."""
        identity = secrets.token_hex(32)
        namespace, inner = netns.create(netlink.Socket)
        with inner, self.store.lock:
            active = self.active[identity] = Active(namespace)
            on = self.driver.up(network)
            address, address6 = network.take(4), network.take(6)
            endpoint = Endpoint(
                network.id, network.name, self.name, address, address6, f"teu{identity[:10]}0", 0, "eth0"
            )
            active.endpoints.append(endpoint)
            plug = self.driver.attach(network, endpoint, on, namespace, Wish(automatic_mac(endpoint.addresses)), inner)
            endpoint = active.endpoints[0] = endpoint._replace(number=plug.outside)
            inner.send([netlink.add_address(plug.inside, address, 24), netlink.set_up(plug.inside)])
        return identity, endpoint

    def leave(self, network: Network, identity: str) -> None:
        with self.store.lock:
            active = self.active.pop(identity)
            for endpoint in active.endpoints:
                self.driver.detach(network, endpoint, active.namespace)
            os.close(active.namespace)

    def remove(self, network: Network) -> None:
        with self.store.lock:
            self.driver.delete(network)
            self.store.forget(network)

    def inside(self, identity: str, *command: str) -> str:
        done = netns.run_in(
            self.active[identity].namespace, lambda: subprocess.run(command, capture_output=True, text=True, timeout=20)
        )
        return done.stdout + done.stderr

    def links(self) -> set[str]:
        return {link.name for link in self.kernel.socket().links()}

    def settled(self, wanted: set[str]) -> None:
        """Interfaces may go in the background."""
        deadline = time.monotonic() + 10
        while self.links() != wanted:
            assert time.monotonic() < deadline, f"{self.links()} are there, {wanted} should be"
            time.sleep(0.01)


def containers_of_a_network_reach_each_other(bench: Bench) -> None:
    network = bench.network()
    (one, _), (two, there) = bench.join(network), bench.join(network)
    shown = bench.inside(one, "ip", "-br", "addr", "show", "eth0")
    assert str(bench.active[one].endpoints[0].address) in shown
    if bench.name != "ipvlan":  # whose interfaces have their parent's
        assert automatic_mac(bench.active[one].endpoints[0].addresses) in bench.inside(one, "ip", "-br", "link")
    assert echo.pings(bench.active[one].namespace, there.address)
    for identity in (one, two):
        bench.leave(network, identity)


def nothing_is_left_of_who_has_gone(bench: Bench) -> None:
    before = bench.links()
    network = bench.network()
    for _ in range(2):
        one, _ = bench.join(network)
        two, _ = bench.join(network)
        bench.leave(network, one)
        bench.leave(network, two)
    bench.remove(network)
    bench.settled(before)
    assert "inet teu" not in nftables.run("list tables")
    bench.remove(network)


def what_failed_half_way_is_undone(bench: Bench) -> None:
    """An endpoint that is known and has no interface."""
    before = bench.links()
    network = bench.network()
    endpoint = Endpoint(network.id, network.name, bench.name, network.take(4), None, "teu00000000000", 0, "eth0")
    with bench.store.lock:
        bench.driver.up(network)
        bench.driver.detach(network, endpoint, -1)
    bench.remove(network)
    bench.settled(before)


def the_next_daemon_goes_on(bench: Bench) -> None:
    """Who lives keeps its interface, and what the dead left goes."""
    before = bench.links()
    network = bench.network()
    lives, there = bench.join(network)
    died, _ = bench.join(network)
    os.close(bench.active.pop(died).namespace)
    bench.begin()
    with bench.store.lock:
        bench.driver.recover(bench.kernel.socket().links(), set())
    if bench.driver.own_gateway:
        gateway = network.pools[0].gateway
        assert echo.pings(bench.active[lives].namespace, gateway)
    inside = netns.run_in(bench.active[lives].namespace, netlink.Socket)
    with inside:
        owned = [link.name for link in inside.links() if bench.driver.owns(bench.active[lives].endpoints[0], link)]
    assert owned == ["eth0"]
    third, _ = bench.join(network)
    assert echo.pings(bench.active[third].namespace, there.address)
    for identity in (lives, third):
        bench.leave(network, identity)
    bench.remove(network)
    bench.settled(before)


def a_network_without_endpoints_has_none(bench: Bench) -> None:
    network = bench.network()
    with pytest.raises(Forbidden):
        bench.driver.options({}, False)
    with pytest.raises(Forbidden):
        bench.driver.up(network)
    bench.driver.withdraw([])
    bench.driver.recover(bench.kernel.socket().links(), set())
    bench.driver.create(network)
    bench.driver.delete(network)
    assert bench.links() == {"lo"}


CONNECTING = (
    containers_of_a_network_reach_each_other,
    nothing_is_left_of_who_has_gone,
    what_failed_half_way_is_undone,
    the_next_daemon_goes_on,
)
ALONE = (a_network_without_endpoints_has_none,)


# Each driver with the checks for its kind.
CHECKS = [
    pytest.param(name, check, marks=[pytest.mark.skipif(bool(no_kind(name)), reason=no_kind(name))])
    for name in registry.NAMES
    for check in (CONNECTING if registry.load(name).connects else ALONE)
]
