# SPDX-License-Identifier: Apache-2.0
"""Which networks of a driver somebody is on: kept, so that who comes and goes need not look at all the others. Used by
the driver bridge, under the networks' lock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.engine.networks.model import Endpoint


class Occupancy:
    """By the ids of networks, the names of our ends of the pairs that are there."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._on: dict[str, set[str]] = {}
        for endpoint in endpoints:
            self.come(endpoint)

    def come(self, endpoint: Endpoint) -> None:
        """It is on its network. Twice is fine."""
        self._on.setdefault(endpoint.network, set()).add(endpoint.veth)

    def leave(self, endpoint: Endpoint) -> None:
        """It is not any more. Twice is fine."""
        there = self._on.get(endpoint.network, set())
        there.discard(endpoint.veth)
        if not there:
            self._on.pop(endpoint.network, None)

    def count(self, network: str) -> int:
        """How many are on a network."""
        return len(self._on.get(network, ()))

    def networks(self) -> list[str]:
        """The ids of those that somebody is on."""
        return list(self._on)

    def __bool__(self) -> bool:
        """Whether somebody is anywhere."""
        return bool(self._on)
