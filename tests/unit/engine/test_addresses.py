# SPDX-License-Identifier: Apache-2.0
"""Subnets and addresses: which is chosen, which is refused, and that none is given twice."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden
from teu.engine.networks import ipam
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
