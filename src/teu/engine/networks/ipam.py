# SPDX-License-Identifier: Apache-2.0
"""Subnets for networks and addresses in them. Used under the networks' lock; nothing here is kept on disk:
addresses are known from the containers that run, subnets from the networks' records."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden
from teu.linux import subnets


def choose_subnet(taken: Iterable[IPv4Network | IPv6Network]) -> IPv4Network:
    """The first pool that overlaps nothing that the host routes or another network has."""
    subnet = subnets.choose(taken)
    if subnet is None:
        raise EngineError(
            "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the"
            " network; give one with --subnet"
        )
    return subnet


def check_subnet(text: str, taken: Iterable[IPv4Network]) -> IPv4Network:
    """One that a user chose, and that is well formed."""
    subnet = IPv4Network(text)
    if subnet.prefixlen > 30:
        raise BadRequest(f"invalid subnet {text}: it has no room for a gateway and a container")
    if any(subnet.overlaps(other) for other in taken):
        raise Forbidden("Pool overlaps with other one on this address space")
    return subnet


class Pool:
    """The addresses of one network."""

    def __init__(
        self,
        subnet: IPv4Network,
        gateway: IPv4Address,
        range_: IPv4Network | None = None,
        reserved: Iterable[IPv4Address] = (),
    ) -> None:
        """`reserved` are auxiliary addresses: somebody else's, never given to a container."""
        self.subnet = subnet
        self.gateway = gateway
        self._range = range_ or subnet
        self._reserved = frozenset((gateway, subnet.network_address, subnet.broadcast_address, *reserved))
        self.used: set[IPv4Address] = set()

    def _free(self, address: IPv4Address) -> bool:
        return address not in self.used and address not in self._reserved

    def take(self, wanted: str = "") -> IPv4Address:
        """An address, or exactly the wanted one. Raises BadRequest, Conflict, EngineError."""
        if wanted:
            try:
                address = IPv4Address(wanted)
            except ValueError:
                raise BadRequest(f"invalid IPv4 address: {wanted}") from None
            if address not in self.subnet:
                raise BadRequest(f"no configured subnet or ip-range contain the IP address {wanted}")
            if not self._free(address):
                raise Conflict("Address already in use")
            self.used.add(address)
            return address
        first, last = int(self._range.network_address), int(self._range.broadcast_address)
        # The lowest free one, as docker's users expect of small networks.
        for value in range(first, last + 1):
            address = IPv4Address(value)
            if self._free(address):
                self.used.add(address)
                return address
        raise EngineError(f"no available IPv4 addresses on this network's address pools: {self.subnet}")

    def give_back(self, address: IPv4Address) -> None:
        self.used.discard(address)
