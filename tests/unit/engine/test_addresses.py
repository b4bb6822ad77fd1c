# SPDX-License-Identifier: Apache-2.0
"""Subnets and addresses: which is chosen, which is refused, and that none is given twice."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden
from teu.engine.networks import ipam, requests
from teu.linux.subnets import POOLS

NET = IPv4Network("10.0.0.0/29")
GATEWAY = IPv4Address("10.0.0.1")


def test_a_subnet_overlaps_nothing_that_is_known() -> None:
    first = ipam.choose_subnet([])
    assert first == POOLS[0]
    assert ipam.choose_subnet([IPv4Network("172.30.5.0/24"), IPv6Network("fd00::/8")]) == POOLS[1]
    rest = list(POOLS)
    assert [ipam.choose_subnet(POOLS[:number]) for number in range(len(rest))] == rest
    with pytest.raises(EngineError, match="give one with --subnet"):
        ipam.choose_subnet(POOLS)
    with pytest.raises(EngineError):
        ipam.choose_subnet([IPv4Network("0.0.0.0/0")])


def test_pools_do_not_overlap_each_other() -> None:
    assert not [(one, two) for one in POOLS for two in POOLS if one is not two and one.overlaps(two)]


def test_a_subnet_that_was_asked_for() -> None:
    assert ipam.check_subnet("10.1.0.0/16", [IPv4Network("10.2.0.0/16")]) == IPv4Network("10.1.0.0/16")
    with pytest.raises(Forbidden, match="Pool overlaps"):
        ipam.check_subnet("10.1.0.0/16", [IPv4Network("10.1.128.0/17")])
    with pytest.raises(BadRequest, match="no room for a gateway and a container"):
        ipam.check_subnet("10.1.0.0/31", [])


def test_the_lowest_free_address_is_taken() -> None:
    pool = ipam.Pool(NET, GATEWAY, reserved=[IPv4Address("10.0.0.3")])
    assert [str(pool.take()) for _ in range(4)] == ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    with pytest.raises(EngineError, match="no available IPv4 addresses"):
        pool.take()
    pool.give_back(IPv4Address("10.0.0.4"))
    pool.give_back(IPv4Address("10.0.0.4"))
    assert str(pool.take()) == "10.0.0.4"


@pytest.mark.parametrize("text", ["10.0.0.0", "10.0.0.7", "10.0.0.1", "10.0.0.3", "10.0.0.2"])
def test_addresses_that_are_not_to_be_had(text: str) -> None:
    """The network's own, its broadcast address, the gateway, an auxiliary one, one that is in use."""
    pool = ipam.Pool(NET, GATEWAY, reserved=[IPv4Address("10.0.0.3")])
    assert str(pool.take("10.0.0.2")) == "10.0.0.2"
    with pytest.raises(Conflict, match="Address already in use"):
        pool.take(text)


def test_addresses_that_are_none_of_the_network() -> None:
    pool = ipam.Pool(NET, GATEWAY)
    with pytest.raises(BadRequest, match="no configured subnet"):
        pool.take("10.0.0.8")
    for text in ("10.0.0", "fd00::1", "web"):
        with pytest.raises(BadRequest, match="invalid IPv4 address"):
            pool.take(text)


def test_a_range_bounds_the_choice_and_not_the_wish() -> None:
    pool = ipam.Pool(IPv4Network("10.0.0.0/24"), GATEWAY, IPv4Network("10.0.0.128/30"))
    assert [str(pool.take()) for _ in range(4)] == [f"10.0.0.{last}" for last in (128, 129, 130, 131)]
    assert str(pool.take("10.0.0.9")) == "10.0.0.9"
    with pytest.raises(EngineError, match="no available"):
        pool.take()


# -- IPv6 ------------------------------------------------------------------------------------------------

NET6 = IPv6Network("fd00:7::/64")


def test_a_pool_of_ipv6_addresses() -> None:
    pool = ipam.Pool(NET6, NET6[1], reserved=[NET6[3]])
    assert [str(pool.take()) for _ in range(3)] == ["fd00:7::2", "fd00:7::4", "fd00:7::5"]
    assert str(pool.take("fd00:7::ffff")) == "fd00:7::ffff"
    for text in ("fd00:7::", "fd00:7::1", "fd00:7::3", "FD00:7:0::5"):
        with pytest.raises(Conflict, match="Address already in use"):
            pool.take(text)
    with pytest.raises(BadRequest, match="invalid IPv6 address"):
        pool.take("10.0.0.2")
    with pytest.raises(BadRequest, match="no configured subnet"):
        pool.take("fd00:8::2")
    with pytest.raises(ValueError, match="not all"):
        ipam.Pool(NET6, GATEWAY)


def test_an_address_is_marked_and_given_back() -> None:
    pool = ipam.Pool(NET6, None)
    pool.mark(NET6[1])
    pool.mark(GATEWAY)
    assert (str(pool.take()), pool.taken) == ("fd00:7::2", 2)
    for address in (NET6[1], GATEWAY, NET6[9]):
        pool.give_back(address)
    assert (str(pool.take()), pool.taken) == ("fd00:7::1", 2)


def test_this_hosts_own_subnets() -> None:
    own = ipam.unique_local("this engine")
    assert own == ipam.unique_local("this engine") != ipam.unique_local("another")
    assert own.base.prefixlen == 48
    assert own.base.subnet_of(IPv6Network("fd00::/8"))  # type: ignore[arg-type]
    first = ipam.choose_subnet([], 6, [own])
    assert first.prefixlen == 64
    second = ipam.choose_subnet([first, IPv4Network("10.0.0.0/8")], 6, [own])
    assert second == IPv6Network((int(first[0]) + (1 << 64), 64))
    with pytest.raises(EngineError, match="IPv6 address pool"):
        ipam.choose_subnet([], 6, ipam.SOURCES)


def test_pieces_of_a_pool() -> None:
    """The first hole is found whatever the size of what is taken, in few steps also in a large pool."""
    source = ipam.Source(IPv4Network("10.0.0.0/8"), 24)

    def first(*taken: str) -> str:
        return str(ipam.choose_subnet([IPv4Network(text) for text in taken], 4, [source]))

    assert first() == "10.0.0.0/24"
    assert first("10.0.0.64/26") == "10.0.1.0/24"
    assert first("10.0.1.0/24") == "10.0.0.0/24"
    assert first("10.0.2.0/24", "10.0.0.0/24", "10.0.0.0/30") == "10.0.1.0/24"
    assert first("10.0.0.0/9", "10.128.0.0/16") == "10.129.0.0/24"
    assert first("9.0.0.0/8", "10.0.0.0/23", "10.0.1.128/25") == "10.0.2.0/24"
    with pytest.raises(EngineError, match="IPv4 address pool"):
        first("0.0.0.0/0")


def test_an_address_that_is_asked_for_has_all_its_faults_told() -> None:
    """As docker tells them; of a network that is not known yet, what is known without it."""

    def told(subnets: dict[int, list[ipam.Range]] | None, **asked: str) -> str:
        endpoint = fields.ENDPOINT.read({"IPAMConfig": asked})
        with pytest.raises(BadRequest) as caught:
            requests.check_endpoint(endpoint, True, subnets)
        return str(caught.value).partition("settings:\n")[2]

    inside = {4: [NET], 6: [NET6]}
    for key, family in (("IPv4Address", "IPv4"), ("IPv6Address", "IPv6")):
        wrong = f"invalid {family} address: nope"
        outside = "* no configured subnet or ip-range contain the IP address nope"
        assert told(inside, **{key: "nope"}) == f"* {wrong}\n{outside}"
        assert told(None, **{key: "nope"}) == wrong
    assert "user configured subnets" in told({4: [NET], 6: []}, IPv6Address="fd00:7::9")
    assert "fd00:8::9" in told(inside, IPv6Address="fd00:8::9")
