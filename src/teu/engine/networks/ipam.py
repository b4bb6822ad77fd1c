# SPDX-License-Identifier: Apache-2.0
"""Subnets for networks and addresses in them, of both families. Used under the networks' lock; nothing here is kept on
disk: addresses are known from the containers that run, subnets from the networks' records."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden
from teu.linux import subnets

Address = IPv4Address | IPv6Address
Range = IPv4Network | IPv6Network


class Source(NamedTuple):
    """Where subnets are taken from that nobody chose: `base`, in pieces with prefixes of `size` bits."""

    base: Range
    size: int


SOURCES = tuple(Source(pool, pool.prefixlen) for pool in subnets.POOLS)


def unique_local(seed: str) -> Source:
    """This host's own IPv6 subnets (RFC 4193): of a /48 that the seed tells, which is the same whenever it is."""
    return Source(IPv6Network((b"\xfd" + sha256(seed.encode()).digest()[:5] + bytes(10), 48)), 64)


def choose_subnet(taken: Iterable[Range], version: int = 4, sources: Iterable[Source] = SOURCES) -> Range:
    """The first of a family that overlaps nothing that the host routes or another network has."""
    used = sorted(_span(network) for network in taken if network.version == version)
    for source in sources:
        if source.base.version == version:
            found = _free(source, used)
            if found is not None:
                return found
    raise EngineError(
        f"could not find an available, non-overlapping IPv{version} address pool among the defaults to assign to the"
        " network; give one with --subnet"
    )


def _span(subnet: Range) -> tuple[int, int]:
    """Its first and its last address."""
    first = int(subnet.network_address)
    return first, first + (1 << subnet.max_prefixlen - subnet.prefixlen) - 1


def _free(source: Source, used: list[tuple[int, int]]) -> Range | None:
    """The first piece that overlaps nothing. `used`: spans in their order."""
    piece = 1 << source.base.max_prefixlen - source.size
    at, last = _span(source.base)
    for begin, end in used:
        if begin >= at + piece:
            break
        if end >= at:
            at = (end // piece + 1) * piece
    if at + piece - 1 > last:
        return None
    return type(source.base)((at, source.size))


def check_subnet(text: str, taken: Iterable[Range]) -> Range:
    """One that a user chose, and that is well formed."""
    subnet = ip_network(text, strict=False)
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise BadRequest(f"invalid subnet {text}: it has no room for a gateway and a container")
    if any(overlap(subnet, other) for other in taken):
        raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
    return subnet


def overlap(one: Range, other: Range) -> bool:
    """Whether there is an address in both."""
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def first_host(subnet: Range) -> Address:
    """A subnet's first address that an interface may have."""
    return subnet[1]


class Pool:
    """The addresses of one subnet of a network."""

    def __init__(
        self,
        subnet: Range,
        gateway: Address | None,
        range_: Range | None = None,
        reserved: Iterable[Address] = (),
    ) -> None:
        """`reserved` are auxiliary addresses: somebody else's, never given to a container. Raises ValueError where
        they are not all of one family."""
        self.subnet = subnet
        self.gateway = gateway
        self._range = range_ or subnet
        kept = [subnet.network_address, *reserved, *([gateway] if gateway else [])]
        if subnet.version == 4:
            kept.append(subnet.broadcast_address)
        if any(one.version != subnet.version for one in (*kept, self._range)):
            raise ValueError(f"not all of {', '.join(map(str, kept))} are IPv{subnet.version} addresses")
        self._reserved = frozenset(map(int, kept))
        self._used: set[int] = set()

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.subnet.version

    def _free(self, number: int) -> bool:
        return number not in self._used and number not in self._reserved

    def take(self, wanted: str = "", mac: str = "") -> Address:
        """An address, or exactly the wanted one. `mac`: of who gets it, which some plugins want to know. Raises
        BadRequest, Conflict, EngineError."""
        if wanted:
            address = self._wanted(wanted)
            if not self._free(int(address)):
                raise Conflict("Address already in use")
            self._used.add(int(address))
            return address
        # The lowest free one, as docker's users expect of small networks.
        for number in range(int(self._range.network_address), int(self._range.broadcast_address) + 1):
            if self._free(number):
                self._used.add(number)
                return type(self.subnet.network_address)(number)
        raise EngineError(f"no available IPv{self.version} addresses on this network's address pools: {self.subnet}")

    def _wanted(self, text: str) -> Address:
        try:
            address = ip_address(text)
            if address.version != self.version:
                raise ValueError
        except ValueError:
            raise BadRequest(f"invalid IPv{self.version} address: {text}") from None
        if address not in self.subnet:
            raise BadRequest(f"no configured subnet or ip-range contain the IP address {text}")
        return address

    def given(self, address: Address) -> bool:
        """Whether a container has it."""
        return address in self.subnet and int(address) in self._used

    def has(self, text: str) -> bool:
        """Whether a text is an address of the subnet."""
        try:
            return ip_address(text) in self.subnet
        except ValueError:
            return False

    def wants_mac(self) -> bool:
        """Whether it matters who gets an address."""
        return False

    def mark(self, address: Address) -> None:
        """Somebody has it already."""
        if address in self.subnet:
            self._used.add(int(address))

    def give_back(self, address: Address) -> None:
        """Of one that was taken; the other family's, and one that was not, are passed over."""
        if address in self.subnet:
            self._used.discard(int(address))

    def status(self) -> dict[str, int]:
        """The API's SubnetStatus: how many addresses are somebody's, and how many of the range can still be given."""
        first, last = int(self._range.network_address), int(self._range.broadcast_address)
        gone = self._used | self._reserved
        left = last - first + 1 - sum(first <= number <= last for number in gone)
        most = (1 << 64) - 1
        return {"IPsInUse": min(len(gone), most), "DynamicIPsAvailable": min(left, most)}

    @property
    def taken(self) -> int:
        """How many are in use by containers."""
        return len(self._used)
