# SPDX-License-Identifier: Apache-2.0
"""The daemon dies at any step of attaching, detaching, connecting and disconnecting: the next one leaks nothing, and
gives nothing twice. (Needs root.)"""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_parts as parts
import pytest
from drivers import networks as suite
from networkhouse import Engine, container, inside

from teu.engine.containers.network_settings import network_settings
from teu.engine.core import fields
from teu.engine.core.errors import EngineError
from teu.engine.networks import files, hostnames, store
from teu.engine.networks.drivers import bridge
from teu.linux import netlink, netns, nftables

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

ROUNDS = int(os.environ.get("TEU_TEST_ROUNDS", "40"))


class Death(BaseException):
    """The daemon is killed here: nothing that it does from now on reaches the kernel or the disk."""


class House:
    """An engine whose daemon can be killed at its n-th step, which is a word to the kernel, a record or a file that it
    writes; and containers that outlive it."""

    def __init__(self, engine: Engine, folder: Path, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.left = -1  # steps until the death; below 0 there is none
        self.dead = False
        self.own = _namespaces()
        self.saved: dict[str, Any] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

        def word(function: Any) -> Any:
            def said(*arguments: Any, **named: Any) -> Any:
                if self.left == 0:
                    self.dead = True
                self.left -= 1
                if self.dead:
                    raise Death
                return function(*arguments, **named)

            return said

        patch.setattr(netlink.Socket, "send", word(netlink.Socket.send))
        patch.setattr(nftables, "run", word(nftables.run))
        patch.setattr(files, "write", word(files.write))
        self.save = word(self._save)
        # At once, and not some time later: a dead daemon has no threads.
        patch.setattr(bridge, "threading", SimpleNamespace(Thread=_AtOnce))
        patch.setattr(bridge.Bridge, "_watch", lambda _: None)
        patch.setattr(hostnames.HostNames, "watch", lambda _: None)
        parts.network(engine.networks, "a", IPAM={"Config": [{"Subnet": "10.90.0.0/29"}]})
        parts.network(
            engine.networks,
            "b",
            EnableIPv6=True,
            IPAM={"Config": [{"Subnet": "10.91.0.0/29"}, {"Subnet": "fd00:91::/125"}]},
        )
        parts.network(engine.networks, "c", Internal=True)
        with netlink.Socket() as kernel:
            suite.make_pair(kernel, "up0", "up1")
        parts.network(
            engine.networks,
            "d",
            Driver="macvlan",
            Options={"parent": "up0"},
            IPAM={"Config": [{"Subnet": "10.92.0.0/29", "Gateway": "10.92.0.6"}]},
        )
        for number, mode in enumerate(("a", "b", "a", "b", "default", "c", "d"), 1):
            ports = {"80/tcp": [{"HostPort": str(8000 + number % 3)}]}
            one = container(engine, folder, number, mode, PortBindings=ports, Dns=["192.0.2.1"])
            one.save = lambda durable=True, one=one: self.save(one)
            one.save()

    def _save(self, one: Any) -> None:
        self.saved[one.id] = (one.network_settings.encode(), one.running)

    # -- what happens ------------------------------------------------------------------------

    def step(self) -> None:
        one = self.random.choice(self.engine.known)
        network = self.engine.networks.get(self.random.choice("abcd"))
        if not one.running:
            self.begin(one)
        elif self.random.random() < 0.3:
            self.end(one)
        elif network.name in one.network_settings.networks:
            self.engine.endpoints.disconnect(network, one)
        else:
            self.engine.endpoints.connect(network, one, fields.EndpointAsked())

    def begin(self, one: Any) -> None:
        self.engine.endpoints.attach(one)
        held = self.engine.endpoints._active[one.id].namespace
        process = netns.run_in(held, lambda: subprocess.Popen(["sleep", "300"]))
        one.running, one.pid, self.processes[one.id] = True, process.pid, process
        one.save()

    def end(self, one: Any) -> None:
        self.kill(one)
        self.engine.endpoints.detach(one)
        one.save()

    def kill(self, one: Any) -> None:
        process = self.processes.pop(one.id)
        process.kill()
        process.wait()
        one.running, one.pid = False, 0

    def until(self, steps: int, action: Callable[[], None]) -> bool:
        """The daemon dies after so many steps of it, and the next one comes; False where it was done before."""
        self.left = steps
        try:
            action()
        except EngineError:  # no address is left, or the port is taken
            pass
        except Death:
            pass
        died = self.dead
        if died:
            self.next_daemon()
        self.left = -1
        return died

    def round(self) -> None:
        self.until(self.random.randrange(24) if self.random.random() < 0.7 else -1, self.step)

    def next_daemon(self) -> None:
        engine = self.engine
        engine.endpoints._active.clear()
        engine.endpoints._names.close()  # it has namespaces of its own
        for place in _namespaces() - self.own:  # also of one that was beginning, or ending
            os.close(place)
        engine.endpoints._outward.ports.close()
        self.dead, self.left = False, -1
        ended = []
        for one in engine.known:
            written, was_running = self.saved[one.id]
            one.network_settings = network_settings(written, "", [])
            one.pid = self.processes[one.id].pid if one.id in self.processes else 0
            one.running = one.id in self.processes
            if was_running and not one.running:
                ended.append(one)
        engine.begin()
        engine.endpoints.has_process = lambda one: one.id in self.processes  # type: ignore[method-assign]
        engine.endpoints.recover([one for one in engine.known if one.running] + ended)
        for one in ended:
            engine.endpoints.detach(one)
        for one in engine.known:
            one.save()

    # -- what has to be so -------------------------------------------------------------------

    def check(self) -> None:
        endpoints = self.engine.endpoints
        running = [one for one in self.engine.known if one.running]
        assert set(endpoints._active) == {one.id for one in running}
        given: list[Any] = []
        pairs: set[str] = set()
        published = set()
        for one in running:
            active = endpoints._active[one.id]
            assert active.namespace >= 0
            known = one.network_settings.networks
            on = {name for name, settings in known.items() if settings.endpoint_id}
            assert on == set(known) == {endpoint.name for endpoint in active.endpoints}
            has, routes = netns.run_in(active.namespace, _inside)
            wanted = {(endpoint.interface, address) for endpoint in active.endpoints for address in endpoint.addresses}
            assert {entry for entry in has if entry[0] != "lo"} == wanted
            given += [address for _, address in wanted]
            pairs |= {endpoint.veth for endpoint in active.endpoints if endpoint.number}
            held = {(e.protocol, e.host_address, str(e.host_port)) for e in active.published}
            assert held == {
                (key.partition("/")[2], place.address, place.port)
                for key, places in one.network_settings.ports.items()
                for place in places or ()
            }
            published |= {(protocol, address, int(port)) for protocol, address, port in held}
            assert active.outward == endpoints._outward._best(one, active, 4)
            assert active.outward6 == endpoints._outward._best(one, active, 6)
            for endpoint, version in ((active.outward, 4), (active.outward6, 6)):
                address = endpoint.of(version) if endpoint else None
                if endpoint is not None and address is not None:
                    router = self.engine.networks.get(endpoint.name).router(address)
                    assert (endpoint.interface, router) in routes
            assert len(routes) == (active.outward is not None) + (active.outward6 is not None)
            hosts = files.addresses(f"{one.directory}/hosts", one.hostname)
            assert set(hosts) == {str(address) for _, address in wanted}
            if wanted:
                assert ("127.0.0.11" in (files.read(f"{one.directory}/resolv.conf") or "")) == active.named
        assert len(given) == len(set(given)), "an address was given twice"
        pools = [pool for network in self.engine.networks.all() for pool in network.pools]
        assert sum(pool.taken for pool in pools) == len(given), "an address was lost"
        with netlink.Socket() as kernel:
            assert {link.name for link in kernel.links() if bridge.VETH.match(link.name)} == pairs
        assert endpoints._outward.ports.held == published
        listed = nftables.run("list ruleset")
        for version in (4, 6):
            table = listed.partition(f"map published{version} {{")[2].partition("}\n\n")[0]
            assert table.count("tcp . 80") == sum((":" in host) == (version == 6) for _, host, _ in published)
        assert ("table inet teu" in listed) == bool(pairs)


def _inside() -> tuple[set[tuple[str, Any]], set[tuple[str, Any]]]:
    """In a container's namespace: the addresses, and the gateways of the default routes, with their interfaces."""
    with netlink.Socket() as inner:
        links = {link.number: link.name for link in inner.links()}
        has = {(links[index], address) for index, address, _ in inner.addresses() if not address.is_link_local}
    routes: set[tuple[str, Any]] = set()
    for fields4 in map(str.split, Path("/proc/thread-self/net/route").read_text().splitlines()[1:]):
        if fields4[1] == "00000000":
            routes.add((fields4[0], IPv4Address(bytes.fromhex(fields4[2])[::-1])))
    for fields6 in map(str.split, Path("/proc/thread-self/net/ipv6_route").read_text().splitlines()):
        if fields6[1] == "00" and fields6[9] != "lo":
            routes.add((fields6[9], IPv6Address(bytes.fromhex(fields6[4]))))
    return has, routes


def _namespaces() -> set[int]:
    """The descriptors of network namespaces that this process has."""
    result = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("net:"):
                result.add(int(name))
    return result


def _AtOnce(target: Any, args: tuple[Any, ...] = (), **_: Any) -> Any:
    return SimpleNamespace(start=lambda: target(*args))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with suite.own_namespace():
        engine = Engine(tmp_path)
        yield engine


@contextlib.contextmanager
def house_of(engine: Engine, folder: Path, seed: int, patch: pytest.MonkeyPatch) -> Iterator[House]:
    house = House(engine, folder, seed, patch)
    try:
        yield house
    finally:
        house.dead, house.left = False, -1
        for one in engine.known:
            if one.id in house.processes:
                house.kill(one)
        engine.end()


@pytest.mark.parametrize("seed", range(4))
def test_random_rounds(engine: Engine, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with house_of(engine, tmp_path, seed, monkeypatch) as house:
        for number in range(ROUNDS):
            house.round()
            try:
                house.check()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, round {number}: {error}") from error


@pytest.mark.parametrize("place", ["a", "bridge", "d"])
@pytest.mark.parametrize("action", ["attach", "detach", "connect", "disconnect"])
def test_each_step(engine: Engine, tmp_path: Path, action: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a container with a port on two networks, one of them with IPv6, beside another one that is there, too."""
    with house_of(engine, tmp_path, 0, monkeypatch) as house:
        one = next(one for one in engine.known if place in one.network_settings.networks)
        other = engine.known[5]

        def connect(name: str, which: Any = one) -> None:
            engine.endpoints.connect(engine.networks.get(name), which, fields.EndpointAsked())

        def disconnect(name: str) -> None:
            engine.endpoints.disconnect(engine.networks.get(name), one)

        def as_before() -> None:
            networks = one.network_settings.networks
            if one.running:
                house.end(one)
            if place not in networks:
                connect(place)
            if action == "connect" and "b" in networks:
                disconnect("b")
            elif action != "connect" and "b" not in networks:
                connect("b")
            if action != "attach":
                house.begin(one)
            house.check()

        actions: dict[str, Callable[[], None]] = {
            "attach": lambda: house.begin(one),
            "detach": lambda: house.end(one),
            "connect": lambda: connect("b"),
            "disconnect": lambda: disconnect(place),
        }
        for name in (place, "b"):
            connect(name, other)
        house.begin(other)
        for steps in range(60):
            as_before()
            died = house.until(steps, actions[action])
            try:
                house.check()
                if action in ("connect", "disconnect"):
                    chosen = {one.port for some in one.network_settings.ports.values() for one in some or ()}
                    silent = set(one.network_settings.networks) == {"d"}
                    assert chosen == (set() if silent else {str(8000 + int(one.name[1:]) % 3)})
            except AssertionError as error:
                raise AssertionError(f"after {steps} steps: {error}") from error
            if not died:
                break
        assert 3 <= steps < 59
        print(f"{action} of {place}: {steps} steps")


# -- what a daemon finds -----------------------------------------------------------------------------------


def test_an_old_record_takes_nothing_from_who_has_it_by_now(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has ended, and another was given its address and its port; the daemon died before the first one's record was
    written."""
    with house_of(engine, tmp_path, 0, monkeypatch) as house:
        old, new, third = engine.known[0], engine.known[2], engine.known[4]
        new.host_config.port_bindings = old.host_config.port_bindings
        house.begin(old)
        written = house.saved[old.id]
        house.end(old)
        house.begin(new)
        assert new.network_settings.networks["a"].address == written[0]["Networks"]["a"]["IPAddress"]
        house.saved[old.id] = written
        house.next_daemon()
        house.check()
        address = new.network_settings.networks["a"].address
        assert re.search(rf"tcp \. 8001 .*: {address} \. 80", nftables.run("list map inet teu published4"))
        engine.endpoints.connect(engine.networks.get("a"), third, fields.EndpointAsked())
        house.begin(third)
        assert third.network_settings.networks["a"].address != address
        house.check()
        with pytest.raises(EngineError, match="already allocated"):
            house.begin(old)


def test_an_address_is_free_when_nobody_has_it(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house_of(engine, tmp_path, 0, monkeypatch) as house:
        one = engine.known[0]
        house.begin(one)
        monkeypatch.setattr(bridge, "threading", SimpleNamespace(Thread=lambda **_: SimpleNamespace(start=bool)))
        engine.endpoints.disconnect(engine.networks.get("a"), one)
        assert "eth0" not in inside(engine, one, "ip -o link")


def test_interfaces_that_somebody_has_changed(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our end has another name: the container keeps what it has. It is gone: the container is not there any more, and
    is again when it is started anew."""
    with house_of(engine, tmp_path, 0, monkeypatch) as house:
        one, other = engine.known[0], engine.known[2]
        engine.endpoints.connect(engine.networks.get("b"), one, fields.EndpointAsked())
        for each in (one, other):
            house.begin(each)
        for each, commands in (
            (one, ("link set {0} down", "link set {0} name mine0", "link set mine0 up")),
            (other, ("link del {0}",)),
        ):
            veth = each.network_settings.networks["a"].veth
            for command in commands:
                subprocess.run(["ip", *command.format(veth).split()], check=True)
        house.next_daemon()
        place = next(place for place in engine.endpoints._active[one.id].endpoints if place.name == "a")
        assert str(place.address) == one.network_settings.networks["a"].address
        with netlink.Socket() as kernel:
            mine = kernel.link("mine0")
            assert mine
            assert mine.number == place.number
        assert other.network_settings.networks["a"].endpoint_id == ""
        assert not engine.endpoints._active[other.id].endpoints
        house.end(one)
        with netlink.Socket() as kernel:
            assert kernel.link("mine0") is None
        house.end(other)
        house.begin(other)
        house.check()


def test_a_bridge_that_was_begun_goes_with_its_network(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a name of the user's: the daemon dies before it has noted that it made it, and when it removes it."""

    def bridges() -> set[str]:
        with netlink.Socket() as kernel:
            return {link.name for link in kernel.links() if link.kind == "bridge"}

    def die(*_: Any) -> None:
        raise Death

    with house_of(engine, tmp_path, 0, monkeypatch) as house:
        front = parts.network(engine.networks, "front", Options={"com.docker.network.bridge.name": "own0"})
        one = container(engine, tmp_path, 9, "front")
        one.save = lambda durable=True: house.save(one)
        one.save()
        for method, action in (
            ("save", lambda: house.begin(one)),
            ("forget", lambda: engine.networks.remove(engine.networks.get("front"))),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(store.Store, method, die)
                with pytest.raises(Death):
                    action()
            house.next_daemon()
            house.begin(one)
            house.check()
            assert "own0" in bridges()
            house.end(one)
        one.network_settings.networks.clear()
        engine.networks.remove(engine.networks.get(front.name))
        assert "own0" not in bridges()
