# SPDX-License-Identifier: Apache-2.0
"""Who is on which network, as it is counted."""

from __future__ import annotations

from teu.engine.networks.drivers.occupancy import Occupancy
from teu.engine.networks.model import Endpoint


def endpoint(network: str, veth: str) -> Endpoint:
    return Endpoint(network, network, "bridge", None, None, veth, 0, "eth0")


def test_each_is_counted_once_and_leaves_once() -> None:
    one, two, other = endpoint("a", "v1"), endpoint("a", "v2"), endpoint("b", "v1")
    there = Occupancy([one, other])
    assert there and there.networks() == ["a", "b"] and there.count("a") == 1
    for _ in range(2):
        there.come(two)
        there.come(two._replace(number=7))
    assert there.count("a") == 2 and there.count("b") == 1 and there.count("c") == 0
    for _ in range(2):
        there.leave(one)
        there.leave(endpoint("c", "v1"))
    assert there.count("a") == 1 and there.networks() == ["a", "b"]
    there.leave(two)
    there.leave(other)
    assert not there and there.networks() == []
