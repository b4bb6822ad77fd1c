# SPDX-License-Identifier: Apache-2.0
"""What one more network and one more container cost does not depend on how many there are: counted is what the kernel
is asked and tells, in a network namespace of the test's own (needs root)."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import networks as suite
from networkhouse import Engine, container, start

from teu.engine.core import fields
from teu.engine.networks import firewall
from teu.linux import forwarding, netlink, netns, nftables

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

CROWD = 30
PORTS = 5  # of each container


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with suite.own_namespace():
        engine = Engine(tmp_path)
        yield engine
        engine.end()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often nft has run, and how many messages the kernel was sent and has listed. What threads do in the
    background is not counted: to follow the kernel's notices, to delete pairs."""
    done: Counter[str] = Counter()

    def counted(what: str, function: Callable[..., Any], size: Callable[[Any], int]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            result = function(*arguments, **more)
            if threading.current_thread().name not in ("ruleset", "veth"):
                done[what] += size(result)
            return result

        return call

    monkeypatch.setattr(nftables, "run", counted("runs of nft", nftables.run, lambda _: 1))
    monkeypatch.setattr(netlink.Socket, "_packed", counted("requests", netlink.Socket._packed, lambda _: 1))
    monkeypatch.setattr(netlink.Socket, "dump", counted("listed", netlink.Socket.dump, len))
    return done


@contextlib.contextmanager
def counted_calls(work: Counter[str]) -> Iterator[None]:
    """Of all functions of Python's and of ours, in this thread."""

    def called(_frame: Any, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            work["calls"] += 1

    sys.setprofile(called)
    try:
        yield
    finally:
        sys.setprofile(None)


def make(engine: Engine, name: str, subnet: str = "") -> Any:
    addresses = {"Config": [{"Subnet": subnet}]} if subnet else {}
    return engine.networks.create(fields.NETWORK.read({"Name": name, "IPAM": addresses}))[0]


def populate(engine: Engine, tmp_path: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        make(engine, f"n{number}", f"10.{number}.0.0/24")
        ports = {f"{80 + index}/tcp": [{"HostPort": str(20_000 + PORTS * number + index)}] for index in range(PORTS)}
        start(engine, container(engine, tmp_path, number, f"n{number}", PortBindings=ports))


def one_more(engine: Engine, tmp_path: Path, work: Counter[str]) -> dict[str, dict[str, int]]:
    """What each step of a life takes."""
    result = {}

    def step(name: str, function: Callable[[], Any]) -> Any:
        work.clear()
        with counted_calls(work):
            value = function()
        result[name] = {what: work[what] for what in ("runs of nft", "requests", "listed", "calls")}
        return value

    network = step("create", lambda: make(engine, "more", "10.200.0.0/24"))
    one = container(engine, tmp_path, 200, "more", PortBindings={"80/tcp": [{"HostPort": "19999"}]})
    step("start", lambda: start(engine, one))
    step("end", lambda: engine.endpoints.detach(one))
    engine.known.remove(one)
    step("remove", lambda: engine.networks.remove(network))
    return result


def test_one_more_takes_as_much_work_as_the_second(engine: Engine, tmp_path: Path, work: Counter[str]) -> None:
    populate(engine, tmp_path, 1, 1)  # it makes the table
    before = one_more(engine, tmp_path, work)
    assert before["start"]["requests"] and before["start"]["runs of nft"], before
    populate(engine, tmp_path, 2, CROWD)
    after = one_more(engine, tmp_path, work)
    for step, known in before.items():
        # A new subnet is compared with all others, and whether a network is in use is a look at all containers; else
        # nobody looks at the others, which would be some calls for each.
        more = after[step].pop("calls") - known.pop("calls")
        assert more < {"create": 15, "remove": 5}.get(step, 1) * CROWD, step
        assert after[step] == known


def test_a_look_at_the_rules_takes_no_elements(engine: Engine, tmp_path: Path, work: Counter[str]) -> None:
    """Whether the table is whole, and whether we stand beside others: asked after every change of somebody's rules."""
    nftables.run("add table ip filter\nadd chain ip filter DOCKER-USER\n")
    seen = []
    for first, count in ((1, 1), (2, CROWD)):
        populate(engine, tmp_path, first, count)
        work.clear()
        assert firewall.is_whole()
        assert work["runs of nft"] == 0
        forwarding.beside_others("teu", ["teu*"])
        seen.append(dict(work))
    assert seen[0] == seen[1]


def test_the_ports_of_a_container_are_one_transaction(engine: Engine, tmp_path: Path, work: Counter[str]) -> None:
    start(engine, container(engine, tmp_path, 9))
    taken = []
    for number, count in ((1, 2), (2, 40)):
        ports = {f"{80 + index}/tcp": [{"HostPort": str(20_000 + index)}] for index in range(count)}
        one = container(engine, tmp_path, number, PortBindings=ports)
        work.clear()
        start(engine, one)
        engine.endpoints.detach(one)
        taken.append(work["runs of nft"])
    assert taken[0] == taken[1]


def test_what_is_gone_already_keeps_no_other_port(engine: Engine, tmp_path: Path) -> None:
    ports = {f"{80 + index}/tcp": [{"HostPort": str(20_000 + index)}] for index in range(4)}
    one = container(engine, tmp_path, 1, PortBindings=ports)
    other = container(engine, tmp_path, 2)
    start(engine, one)
    start(engine, other)
    nftables.run(f"delete element {firewall.TABLE} published4 {{ tcp . 20001 }}\n")
    engine.endpoints.detach(one)
    assert "tcp . 2000" not in nftables.run(f"list map {firewall.TABLE} published4")


def test_a_subnet_is_chosen_by_the_routes_of_its_family(engine: Engine, work: Counter[str]) -> None:
    """Those alone; and what the kernel makes of each address besides does not count."""
    with netlink.Socket() as kernel:
        kernel.send([netlink.new_bridge("lan0")])
        found = kernel.link("lan0")
        assert found
        for number in range(CROWD):
            address = netlink.IPv6Address(f"fd00:{number + 1:x}::1")
            kernel.send([netlink.add_address(found.number, address, 64)])
        kernel.send([netlink.add_address(found.number, netlink.IPv4Address("172.30.0.1"), 24)])
        assert {str(route) for route in kernel.routes(4)} == {
            "127.0.0.0/8",
            "127.0.0.1/32",
            "172.30.0.0/24",
            "172.30.0.1/32",
        }
        until = time.monotonic() + 30
        while sum(route.prefixlen == 128 for route in kernel.routes(6)) < CROWD and time.monotonic() < until:
            time.sleep(0.02)  # the kernel's own routes to addresses come a little later than these
        assert len(kernel.routes(6)) > CROWD
        assert {*kernel.routes()} == {*kernel.routes(4), *kernel.routes(6)}
    work.clear()
    assert make(engine, "chosen").record.subnets[0].subnet == "172.31.0.0/16"
    assert work["listed"] < CROWD


def test_a_namespace_is_made_while_another_container_is_attached(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = threading.Event()
    create = netns.create

    def creating(*arguments: Any) -> Any:
        result = create(*arguments)
        made.set()
        return result

    monkeypatch.setattr(netns, "create", creating)
    one = container(engine, tmp_path, 1)
    attached = threading.Thread(target=start, args=(engine, one))
    with engine.endpoints._lock:  # as who attaches another one has it
        attached.start()
        assert made.wait(20)
        assert one.id not in engine.endpoints._active
    attached.join()
    assert one.network_settings.networks["bridge"].address
