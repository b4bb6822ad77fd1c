# SPDX-License-Identifier: Apache-2.0
"""One network as the engine knows it, and what a running container holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden
from teu.engine.networks import firewall
from teu.engine.networks.ipam import Address, Pool, Range
from teu.engine.networks.options import (
    DEFAULT_BRIDGE,
    OPTION_BINDING,
    OPTION_BRIDGE,
    OPTION_HOST,
    OPTION_INHIBIT,
    OPTION_MASQUERADE,
    OPTION_MODES,
    OPTION_MTU,
    OPTION_PREFIX,
    OPTION_TALK,
    OPTION_TRUSTED,
    ROUTER,
    is_true,
)
from teu.engine.networks.records import Subnet

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.networks.records import NetworkRecord

OWN_IPAM = ("default", "null")
"""IPAM drivers that are no plugins. The second one gives no addresses."""
PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}


class Attachment(NamedTuple):
    """`namespace`: path of the network namespace, None for the host's. `files`: paths in the container and the host's
    files to mount there."""

    namespace: str | None
    files: dict[str, str]


class Endpoint(NamedTuple):
    """A running container on a network. `number`: of our end of the pair, which may have changed its name since;
    `interface`: the name of the other one; `driver`: the network's; `address` and `address6`: of each family, None
    where the network has none of it. `id`: EndpointID; `source` and `gateways`: see drivers' Plug."""

    network: str
    name: str
    driver: str
    address: IPv4Address | None
    address6: IPv6Address | None
    veth: str
    number: int
    interface: str
    id: str = ""
    source: str = ""
    gateways: tuple[Address, ...] = ()

    @property
    def addresses(self) -> list[Address]:
        """Those that it has, IPv4 first."""
        return [address for address in (self.address, self.address6) if address is not None]

    def of(self, version: int) -> Address | None:
        """Its address of a family."""
        return self.address if version == 4 else self.address6


class Active:
    """What a running container holds. `outward` and `outward6`: the endpoints with the default route and the published
    ports of IPv4 and of IPv6."""

    def __init__(self, namespace: int = -1) -> None:
        self.namespace = namespace
        self.endpoints: list[Endpoint] = []
        self.outward: Endpoint | None = None
        self.outward6: Endpoint | None = None
        self.routed: list[Endpoint] = []  # others, at whose own addresses the published ports are open as well
        self.published: list[firewall.Published] = []
        self.openings: list[firewall.Opening] = []  # of others' ports, by its links
        self.named = False  # it has the engine's resolver

    @property
    def versions(self) -> tuple[int, ...]:
        """The families of its networks; both where it is on none."""
        found = {address.version for endpoint in self.endpoints for address in endpoint.addresses}
        return tuple(sorted(found)) or (4, 6)


class Network:
    """A network's record, and the pools of its addresses: of the families that it has, IPv4 first. One whose record is
    damaged can be listed, inspected and removed; what was on it when the daemon stopped stays there.

    `defaults`: options of the default bridge, which teud.yaml says and no record. `aside`: see Store.aside."""

    def __init__(
        self,
        record: NetworkRecord,
        damage: str = "",
        row: int = 0,
        defaults: dict[str, str] | None = None,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Raises ValueError where an address in the record is none."""
        self._aside = aside
        self.changing = False
        """A plugin makes or removes it just now: nobody gets on it, and nobody else removes it."""
        self.record = record
        self.damage = damage
        self.row = row  # where a damaged record is in engine.db
        self._defaults = defaults or {}
        self.pools: list[Pool] = []
        self.addressed()

    def addressed(self) -> None:
        """Make the pools anew, of the record's subnets; nobody is on it. Raises ValueError."""
        enabled = {4: self.record.ipv4, 6: self.record.ipv6}
        known = [] if self.record.config_only or self.record.ipam_driver == "null" else self.record.subnets
        used = [subnet for subnet in known if subnet.subnet and enabled[subnet.version]]
        make = Subnet.pool if self.record.ipam_driver in OWN_IPAM else self._remote_pool
        self.pools = sorted(map(make, used), key=lambda pool: pool.version)

    def _remote_pool(self, subnet: Subnet) -> Pool:
        from teu.engine.networks.remotepool import RemotePool  # 18 ms of the daemon's start

        return RemotePool(self.record, subnet, self._aside)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def driver(self) -> str:
        return self.record.driver

    @property
    def options(self) -> dict[str, str]:
        return {**self._defaults, **self.record.options}

    @property
    def internal(self) -> bool:
        return self.record.internal

    @property
    def is_user_defined(self) -> bool:
        return self.name not in PREDEFINED

    @property
    def interface(self) -> str:
        if self.name == "bridge":
            return DEFAULT_BRIDGE
        return self.options.get(OPTION_BRIDGE) or f"teu-{self.id[:11]}"

    @property
    def mtu(self) -> int:
        return int(self.options.get(OPTION_MTU) or 0)

    @property
    def binding(self) -> str:
        """The host's address at which ports are published that name none; "" is every one, of both families."""
        return self.options.get(OPTION_BINDING) or ""

    @property
    def prefix(self) -> str:
        """How the containers' interfaces are called, but for a number."""
        return self.options.get(OPTION_PREFIX) or "eth"

    @property
    def talk(self) -> bool:
        """Whether its containers may reach each other."""
        return is_true(self.options.get(OPTION_TALK, "true"))

    @property
    def trusted(self) -> tuple[str, ...]:
        """The host's interfaces whose neighbours reach published ports at the containers' own addresses."""
        return tuple(name for name in self.options.get(OPTION_TRUSTED, "").split(":") if name)

    def of(self, version: int) -> list[Pool]:
        """The pools of a family."""
        return [pool for pool in self.pools if pool.version == version]

    def pool(self, version: int) -> Pool | None:
        """The first of a family: of a bridge the only one."""
        return next(iter(self.of(version)), None)

    def missing(self) -> list[int]:
        """The families that it is to have, and has no subnet of. One that it cannot use on this host it has."""
        enabled = {4: self.record.ipv4, 6: self.record.ipv6}
        known = {subnet.version for subnet in self.record.subnets if subnet.subnet}
        return [version for version in (4, 6) if enabled[version] and version not in known]

    def chosen_subnets(self, version: int) -> list[Range]:
        """The subnets of a family that a user chose: their addresses may be asked for."""
        automatic = self.record.automatic_subnet if version == 4 else self.record.automatic_subnet6
        if not self.is_user_defined or automatic:
            return []
        return [pool.subnet for pool in self.of(version)]

    def mode(self, version: int) -> str:
        """How a bridge leads a family outside: nat, nat-unprotected, routed, or isolated, which is not at all."""
        return self.options.get(OPTION_MODES[version]) or "nat"

    def has_own_address(self, version: int) -> bool:
        """Whether the bridge has the gateway's address: it may be somebody else's, or nobody's."""
        if self.driver != "bridge" or self.mode(version) == "isolated":
            return False
        return version == 6 or not is_true(self.options.get(OPTION_INHIBIT, "false"))

    def router(self, address: Address) -> Address | None:
        """By whom a container with that address goes out; None: by nobody."""
        if self.internal or self.mode(address.version) == "isolated":
            return None
        for pool in self.of(address.version):
            if address in pool.subnet:
                named = next((one for one in self.record.subnets if one.subnet == str(pool.subnet)), None)
                other = named.others.get(ROUTER[address.version]) if named else None
                return ip_address(other) if other else pool.gateway
        return None

    def pool_of(self, address: Address) -> Pool | None:
        """The pool that an address is of."""
        return next((pool for pool in self.pools if address in pool.subnet), None)

    def take(self, version: int, wanted: str = "", mac: str = "") -> Address | None:
        """An address of a family, or exactly the wanted one; None where the network has none of it. `mac`: of who gets
        it. Raises BadRequest, Conflict, EngineError."""
        pools = self.of(version)
        if not pools:
            if wanted:
                raise BadRequest(f"network {self.name} has no IPv{version} addresses: {wanted} cannot be had")
            return None
        if wanted:
            pools = [pool for pool in pools if pool.has(wanted)] or pools[-1:]
        for pool in pools[:-1]:
            try:
                return pool.take(wanted, mac)
            except Conflict:
                raise
            except EngineError:
                continue
        return pools[-1].take(wanted, mac)

    def wants_mac(self) -> bool:
        """Whether who gives its addresses wants to know to which MAC address. Raises NotFound, EngineError."""
        return any(pool.wants_mac() for pool in self.pools)

    def given(self, addresses: Iterable[Address]) -> bool:
        """Whether somebody has one of them."""
        return any(pool.given(address) for address in addresses for pool in self.pools)

    def mark(self, addresses: Iterable[Address]) -> None:
        """Somebody has them already."""
        for address in addresses:
            for pool in self.pools:
                pool.mark(address)

    def give_back(self, addresses: Iterable[Address]) -> None:
        """Of who has left."""
        for address in addresses:
            for pool in self.pools:
                pool.give_back(address)

    def must_be_whole(self) -> None:
        if self.damage:
            raise Conflict(f"network {self.name} can only be inspected and removed: {self.damage}")
        self.must_be_settled()

    def must_be_real(self) -> None:
        if self.record.config_only:
            raise Forbidden("cannot create endpoint on configuration-only network")

    def must_be_settled(self) -> None:
        if self.changing:
            raise Conflict(f"network {self.name} is being made or removed")

    def must_have_addresses(self) -> None:
        if not self.pools and self.record.ipam_driver != "null":  # else its driver gives them
            raise BadRequest(f"network {self.name} has no addresses: its driver is {self.driver}")

    def bridge(self) -> firewall.Bridge:
        ways = []
        for pool in self.pools:
            version = pool.version
            mode = self.mode(version)
            masquerade = is_true(self.options.get(OPTION_MASQUERADE, "true")) and mode.startswith("nat")
            ways.append(firewall.Way(pool.subnet, masquerade, mode, self.options.get(OPTION_HOST[version]) or ""))
        return firewall.Bridge(self.interface, tuple(ways), self.internal, self.talk, self.trusted)


def network_mode(container: Container) -> str:
    """The name or id of the network that a container is on, or none, host, or container:ID."""
    if container.config.network_disabled:
        return "none"
    mode = container.host_config.network_mode or "default"
    return "bridge" if mode == "default" else mode


def automatic_mac(addresses: Iterable[Address]) -> str:
    """Of the first of a container's addresses, and of the end of an IPv6 one."""
    address = next(iter(addresses))
    return "02:42:" + address.packed[-4:].hex(":")


def random_mac() -> str:
    """One that is nobody's."""
    return "02:42:" + os.urandom(4).hex(":")


def link_local(mac: str) -> IPv6Address:
    """The address that an interface gives itself (RFC 4291, appendix A)."""
    parts = bytearray(bytes.fromhex(mac.replace(":", "")))
    parts[0] ^= 2
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes(parts[:3]) + b"\xff\xfe" + bytes(parts[3:]))
