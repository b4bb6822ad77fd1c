# SPDX-License-Identifier: Apache-2.0
"""A container's part in networks, NetworkSettings: what it asked for, and what it has while it runs.

It is a part of the container's record, and is saved as the API shows it, with what is the engine's own (`shown` takes
that away):

    NetworkSettings
    ├── Outward, Outward6     names of the networks that have the default route and the published ports, of IPv4 and of
    │                         IPv6
    ├── Named                 its resolv.conf names the engine's resolver
    ├── ResolverSum           SHA-256 of the resolv.conf that we wrote: what somebody has changed is left alone
    └── Networks.NAME
        ├── WantedMac         the MAC address that was asked for
        ├── GwPriority        the highest has the default route
        ├── Veth              name of our end of the pair
        ├── Interface         that of the other one, or of what the container has else
        └── Source            how that one was called before it was the container's, where a plugin has made it

`network_settings` reads one from engine.db (core/records.py), `NetworkSettings.encode` is the reverse. Members that
this teud does not know are kept for the one that wrote them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.records import (
    TEXT_MAP,
    TEXTS,
    Faults,
    Members,
    address,
    address6,
    flag,
    items,
    mapping,
    maybe,
    number,
    text,
)

if TYPE_CHECKING:
    from teu.oci.jsontext import Json

_PORT = re.compile(r"[0-9]{1,5}/(?:tcp|udp|sctp)\Z")
_NUMBER = re.compile(r"[0-9]{0,5}\Z")

BUILT_IN = ("bridge", "host", "none")  # networks that nobody has made


class Addresses(NamedTuple):
    """IPAMConfig: the addresses that were asked for; empty ones were not."""

    ipv4: str = ""
    ipv6: str = ""
    link_local: tuple[str, ...] = ()

    def encode(self) -> dict[str, Json]:
        result: dict[str, Json] = {}
        if self.ipv4:
            result["IPv4Address"] = self.ipv4
        if self.ipv6:
            result["IPv6Address"] = self.ipv6
        if self.link_local:
            result["LinkLocalIPs"] = list(self.link_local)
        return result


class HostPort(NamedTuple):
    """Where a port of the container is published: an address of the host, and the port's number in digits; no digits
    where it is open at the container's own address alone."""

    address: str
    port: str


# This and the other records are no dataclasses: each of those costs every start of teud 0.6 ms.
class EndpointSettings:
    """A container's place on one network: what was asked for, and what it has there, which is empty unless it runs.

    `network_id` is empty as long as there is no network of this name."""

    def __init__(
        self,
        network_id: str = "",
        addresses: Addresses | None = None,
        links: list[str] | None = None,
        aliases: list[str] | None = None,
        driver_opts: dict[str, str] | None = None,
        wanted_mac: str = "",
        gateway_priority: int = 0,
        dns_names: list[str] | None = None,
    ) -> None:
        self.network_id = network_id
        self.addresses = addresses
        self.links = links
        self.aliases = aliases
        self.driver_opts = driver_opts
        self.wanted_mac = wanted_mac
        self.gateway_priority = gateway_priority
        self.dns_names = dns_names
        self.other: dict[str, Json] = {}
        self.clear()

    def clear(self) -> None:
        """The container has left the network, or has ended."""
        self.endpoint_id = ""
        self.gateway = ""
        self.address = ""
        self.prefix = 0
        self.gateway6 = ""
        self.address6 = ""
        self.prefix6 = 0
        self.mac = ""
        self.veth = ""
        self.interface = ""
        self.source = ""

    def encode(self) -> dict[str, Json]:
        """As it is saved."""
        result = self.shown()
        result["MacAddress"] = self.mac
        if not self.gateway_priority:  # as older ones know it
            del result["GwPriority"]
        if self.wanted_mac:
            result["WantedMac"] = self.wanted_mac
        if self.veth:
            result["Veth"] = self.veth
        if self.interface:
            result["Interface"] = self.interface
        if self.source:
            result["Source"] = self.source
        return result

    def listed(self) -> dict[str, Json]:
        """The same in a list of containers, where docker tells of what was asked for no more than addresses."""
        asked = None if self.addresses is None else self.addresses._replace(link_local=()).encode()
        return {**self.shown(), "IPAMConfig": asked, **dict.fromkeys(("Links", "Aliases", "DriverOpts", "DNSNames"))}

    def shown(self) -> dict[str, Json]:
        """The API's EndpointSettings."""
        return {
            "IPAMConfig": None if self.addresses is None else self.addresses.encode(),
            "Links": self.links,
            "Aliases": self.aliases,
            "MacAddress": self.mac or self.wanted_mac,
            "DriverOpts": self.driver_opts,
            "NetworkID": self.network_id,
            "EndpointID": self.endpoint_id,
            "Gateway": self.gateway,
            "IPAddress": self.address,
            "IPPrefixLen": self.prefix,
            "IPv6Gateway": self.gateway6,
            "GlobalIPv6Address": self.address6,
            "GlobalIPv6PrefixLen": self.prefix6,
            "DNSNames": self.dns_names,
            "GwPriority": self.gateway_priority,
            **self.other,
        }


class NetworkSettings:
    """`networks` by their names. What stands beside them in the API (EndpointID, Gateway, IPAddress, IPPrefixLen,
    MacAddress, and the same of IPv6) is that of the default bridge, from its endpoint."""

    def __init__(self) -> None:
        self.networks: dict[str, EndpointSettings] = {}
        # By "80/tcp": where it is published; None where it is only exposed.
        self.ports: dict[str, list[HostPort] | None] = {}
        self.sandbox_key = ""  # path of the network namespace
        self.sandbox_id = ""
        # Name of the network with the default route, "" where none has it; None until that is settled.
        self.outward: str | None = None
        self.outward6: str | None = None
        self.named = False
        self.resolver_sum = ""
        self.other: dict[str, Json] = {}

    def encode(self) -> dict[str, Json]:
        """As it is saved."""
        result = self._shown({name: endpoint.encode() for name, endpoint in self.networks.items()})
        if self.outward is not None:
            result["Outward"] = self.outward
        if self.outward6:
            result["Outward6"] = self.outward6
        if self.named:
            result["Named"] = True
        if self.resolver_sum:
            result["ResolverSum"] = self.resolver_sum
        return result

    def shown(self, more_aliases: tuple[str, ...] = ()) -> dict[str, Json]:
        """The API's NetworkSettings, with more aliases on the networks that users have made."""
        bridge = self.networks.get("bridge") or EndpointSettings()
        networks = {name: endpoint.shown() for name, endpoint in self.networks.items()}
        for name, endpoint in networks.items():
            if more_aliases and name not in BUILT_IN:
                endpoint["Aliases"] = [*dict.fromkeys([*(self.networks[name].aliases or ()), *more_aliases])]
        return {
            **self._shown(networks),
            "Bridge": "",
            "HairpinMode": False,
            "LinkLocalIPv6Address": "",
            "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": None,
            "SecondaryIPv6Addresses": None,
            "GlobalIPv6Address": bridge.address6,
            "GlobalIPv6PrefixLen": bridge.prefix6,
            "IPv6Gateway": bridge.gateway6,
        }

    def listed_networks(self) -> dict[str, dict[str, Json]]:
        """The API's NetworkSettings.Networks in a list of containers."""
        return {name: endpoint.listed() for name, endpoint in self.networks.items()}

    def _shown(self, networks: dict[str, dict[str, Json]]) -> dict[str, Json]:
        bridge = self.networks.get("bridge") or EndpointSettings()
        return {
            "Networks": networks,
            "Ports": {
                port: None
                if places is None
                else [{"HostIp": place.address, "HostPort": place.port} for place in places]
                for port, places in self.ports.items()
            },
            "SandboxKey": self.sandbox_key,
            "SandboxID": self.sandbox_id,
            "EndpointID": bridge.endpoint_id,
            "Gateway": bridge.gateway,
            "IPAddress": bridge.address,
            "IPPrefixLen": bridge.prefix,
            "MacAddress": bridge.mac,
            **self.other,
        }


# -- from engine.db --------------------------------------------------------------------------------------

_PREFIX = number(least=0, most=128)
_MAYBE_TEXTS, _MAYBE_TEXT_MAP, _TEXT = maybe(TEXTS), maybe(TEXT_MAP), text()
_MAYBE_TEXT = maybe(_TEXT, "")


def network_settings(value: object, where: str, faults: Faults) -> NetworkSettings:
    given = Members(value, where, faults)
    # Those of the default bridge's endpoint.
    given.check(_TEXT, "EndpointID", "Gateway", "IPAddress", "MacAddress")
    given.check(_PREFIX, "IPPrefixLen")
    result = NetworkSettings()
    result.networks = given.take("Networks", mapping(_endpoint), {})
    result.ports = given.take("Ports", maybe(mapping(maybe(items(_host_port)), _PORT), {}), {})
    result.sandbox_key = given.take("SandboxKey", _TEXT, "")
    result.sandbox_id = given.take("SandboxID", _TEXT, "")
    result.outward = given.take("Outward", maybe(_TEXT), None)
    result.outward6 = given.take("Outward6", maybe(_TEXT), None)
    result.named = given.take("Named", flag, False)
    result.resolver_sum = given.take("ResolverSum", _TEXT, "")
    result.other = given.rest()
    return result


def _endpoint(value: object, where: str, faults: Faults) -> EndpointSettings:
    given = Members(value, where, faults)
    result = EndpointSettings(
        given.take("NetworkID", _TEXT, ""),
        given.take("IPAMConfig", maybe(_addresses), None),
        given.take("Links", _MAYBE_TEXTS, None),
        given.take("Aliases", _MAYBE_TEXTS, None),
        given.take("DriverOpts", _MAYBE_TEXT_MAP, None),
        given.take("WantedMac", _TEXT, ""),
        given.take("GwPriority", number(), 0),
        given.take("DNSNames", _MAYBE_TEXTS, None),
    )
    result.endpoint_id = given.take("EndpointID", _TEXT, "")
    result.gateway = given.take("Gateway", _TEXT, "")
    result.address = given.take("IPAddress", address, "")
    result.prefix = given.take("IPPrefixLen", _PREFIX, 0)
    result.gateway6 = given.take("IPv6Gateway", _TEXT, "")
    result.address6 = given.take("GlobalIPv6Address", address6, "")
    result.prefix6 = given.take("GlobalIPv6PrefixLen", _PREFIX, 0)
    result.mac = given.take("MacAddress", _TEXT, "")
    result.veth = given.take("Veth", _TEXT, "")
    result.interface = given.take("Interface", _TEXT, "")
    result.source = given.take("Source", _TEXT, "")
    result.other = given.rest()
    return result


def _addresses(value: object, where: str, faults: Faults) -> Addresses:
    given = Members(value, where, faults)
    return Addresses(
        given.take("IPv4Address", _MAYBE_TEXT, ""),
        given.take("IPv6Address", _MAYBE_TEXT, ""),
        tuple(given.take("LinkLocalIPs", maybe(TEXTS, []), [])),
    )


def _host_port(value: object, where: str, faults: Faults) -> HostPort:
    given = Members(value, where, faults)
    return HostPort(given.needed("HostIp", _TEXT), given.needed("HostPort", text("0", _NUMBER)))
