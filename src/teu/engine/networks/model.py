# SPDX-License-Identifier: Apache-2.0
"""One network as the engine knows it, and what a running container holds."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.errors import BadRequest, Conflict
from teu.engine.networks import firewall, ipam
from teu.engine.networks.requests import (
    OPTION_BINDING,
    OPTION_BRIDGE,
    OPTION_MASQUERADE,
    OPTION_MTU,
    OPTION_PREFIX,
    OPTION_TALK,
    is_true,
)

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.networks.records import NetworkRecord

DEFAULT_BRIDGE = "teu0"
PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}


class Attachment(NamedTuple):
    """`namespace`: path of the network namespace, None for the host's.
    `files`: paths in the container and the host's files to mount there."""

    namespace: str | None
    files: dict[str, str]


class Endpoint(NamedTuple):
    """A running container on a network. `number`: of our end of the pair, which may have changed its name since;
    `interface`: the name of the other one; `driver`: the network's."""

    network: str
    name: str
    driver: str
    address: IPv4Address
    veth: str
    number: int
    interface: str


class Active:
    """What a running container holds. `outward`: the endpoint with the default route and the published ports."""

    def __init__(self, namespace: int = -1) -> None:
        self.namespace = namespace
        self.endpoints: list[Endpoint] = []
        self.outward: Endpoint | None = None
        self.published: list[firewall.Published] = []
        self.named = False  # it has the engine's resolver


class Network:
    """A network's record, and of a bridge network its pool of addresses. One whose record is damaged can be listed,
    inspected and removed; what was on it when the daemon stopped stays there."""

    def __init__(self, record: NetworkRecord, damage: str = "", row: int = 0) -> None:
        """Raises ValueError where an address in the record is none."""
        self.record = record
        self.damage = damage
        self.row = row  # where a damaged record is in engine.db
        self.pool: ipam.Pool | None = None
        config = record.subnets[0] if record.subnets else None
        if record.driver == "bridge" and config and config.subnet:
            self.pool = ipam.Pool(
                IPv4Network(config.subnet),
                IPv4Address(config.gateway),
                IPv4Network(config.range) if config.range else None,
                [IPv4Address(address) for address in config.others.values()],
            )

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
        return self.record.options

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
        """The host's address at which ports are published that name none."""
        return self.options.get(OPTION_BINDING) or "0.0.0.0"

    @property
    def prefix(self) -> str:
        """How the containers' interfaces are called, but for a number."""
        return self.options.get(OPTION_PREFIX) or "eth"

    @property
    def talk(self) -> bool:
        """Whether its containers may reach each other."""
        return is_true(self.options.get(OPTION_TALK, "true"))

    def chosen_subnet(self) -> IPv4Network | None:
        """The subnet that a user chose: its addresses may be asked for."""
        if not self.is_user_defined or self.record.automatic_subnet or self.pool is None:
            return None
        return self.pool.subnet

    def must_be_whole(self) -> None:
        if self.damage:
            raise Conflict(f"network {self.name} can only be inspected and removed: {self.damage}")

    def addressing(self) -> ipam.Pool:
        if self.pool is None:
            raise BadRequest(f"network {self.name} has no addresses: its driver is {self.driver}")
        return self.pool

    def bridge(self) -> firewall.Bridge:
        return firewall.Bridge(
            self.interface,
            self.addressing().subnet,
            self.internal,
            is_true(self.options.get(OPTION_MASQUERADE, "true")),
            self.talk,
        )


def network_mode(container: Container) -> str:
    """The name or id of the network that a container is on, or none, host, or container:ID."""
    if container.config.network_disabled:
        return "none"
    mode = container.host_config.network_mode or "default"
    return "bridge" if mode == "default" else mode


def automatic_mac(address: IPv4Address) -> str:
    return "02:42:" + address.packed.hex(":")
