# SPDX-License-Identifier: Apache-2.0
"""The options of networks, -o KEY=VALUE, which docker's users know, and what teud.yaml says of networks. Called by
requests, the store, and the drivers.

    Defaults           of teud.yaml: pools of subnets, the default bridge, options for every new network of a driver
    check_bridge       the options of a network of the driver bridge, which are kept and shown as they were given
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.networks import ipam
from teu.engine.networks.ipam import Range, Source
from teu.engine.networks.records import NetworkRecord, Subnet

if TYPE_CHECKING:
    from teu.config import Settings
    from teu.engine.core.fields import HostConfig

OPTION_BRIDGE = "com.docker.network.bridge.name"
OPTION_TALK = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_INHIBIT = "com.docker.network.bridge.inhibit_ipv4"
OPTION_TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"
OPTION_MODES = {
    4: "com.docker.network.bridge.gateway_mode_ipv4",
    6: "com.docker.network.bridge.gateway_mode_ipv6",
}
OPTION_HOST = {4: "com.docker.network.host_ipv4", 6: "com.docker.network.host_ipv6"}
OPTION_ENABLED = {4: "com.docker.network.enable_ipv4", 6: "com.docker.network.enable_ipv6"}
OPTION_INTERNAL = "com.docker.network.internal"
OPTION_MTU = "com.docker.network.driver.mtu"
OPTION_PREFIX = "com.docker.network.container_iface_prefix"
OPTION_DEFAULT = "com.docker.network.bridge.default_bridge"  # what inspect says of docker0; people copy it
SHOWN_OF_BRIDGE = {
    OPTION_DEFAULT: "true",
    OPTION_TALK: "true",
    OPTION_MASQUERADE: "true",
    OPTION_BINDING: "0.0.0.0",
    OPTION_BRIDGE: "",
    OPTION_MTU: "1500",
}
"""What inspect says of the default bridge where teud.yaml says nothing else, as docker does: clients read its MTU."""

MODES = ("nat", "nat-unprotected", "routed", "isolated")
TRUE, FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
INTERFACE = re.compile(r"[a-zA-Z0-9_.-]{1,15}\Z")
NO_INTERFACES = ("lo", ".", "..", "all", "default")
DEFAULT_BRIDGE = "teu0"

ROUTER = {4: "DefaultGatewayIPv4", 6: "DefaultGatewayIPv6"}
"""Names of the auxiliary addresses of a bridge that are another machine's, by which containers go out: of the default
bridge by default-gateway, of others by --aux-address DefaultGatewayIPv4=ADDRESS, as with docker."""


def is_true(text: str) -> bool:
    return text in TRUE


# -- of a network of the driver bridge -------------------------------------------------------------------


def _bad(option: str, value: str, reason: str) -> BadRequest:
    """In docker's words, as tools look for them."""
    return BadRequest(f"failed to parse {option} value: {value} ({reason})")


def _flag(option: str, value: str) -> None:
    if value not in TRUE + FALSE:
        raise _bad(option, value, f'strconv.ParseBool: parsing "{value}": invalid syntax')


def _enabled(option: str, value: str) -> None:
    if value not in TRUE + FALSE:
        raise BadRequest(f'driver-opt "{option}" is not a valid bool')


def _bridge_name(option: str, value: str) -> None:
    if not INTERFACE.match(value) or value in (DEFAULT_BRIDGE, *NO_INTERFACES):
        raise BadRequest(f"{option}: invalid name of a bridge: {value!r}")


def _prefix(option: str, value: str) -> None:
    if not re.fullmatch(r"[a-zA-Z_.-][a-zA-Z0-9_.-]{0,11}", value) or value == "lo":
        raise _bad(option, value, "it is no beginning of an interface's name")


def check_mtu(option: str, value: str) -> None:
    """Of any driver's; 0 is the kernel's choice."""
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", value):
        raise _bad(option, value, f'strconv.Atoi: parsing "{value}": invalid syntax')
    number = int(value)
    if number and not 68 <= number <= 65535:
        what = f"invalid MTU number: {number}"
        raise BadRequest(what if number < 0 else f"{what}: {option} is from 68 to 65535, or 0")


def _binding(option: str, value: str) -> None:
    try:
        ip_address(value)
    except ValueError:
        raise _bad(option, value, "nil ip") from None


def _mode(option: str, value: str) -> None:
    if value not in MODES:
        raise _bad(option, value, f"unknown gateway mode {value}: there are {', '.join(MODES)}")


def _own_address(option: str, value: str) -> None:
    kind = IPv4Address if option == OPTION_HOST[4] else IPv6Address
    _binding(option, value)
    try:
        kind(value)
    except ValueError:
        family = "an IPv4" if kind is IPv4Address else "an IPv6"
        raise _bad(option, value, f"it is not {family} address") from None


def _interfaces(option: str, value: str) -> None:
    for name in value.split(":"):
        if name and (not INTERFACE.match(name) or name in (".", "..")):
            raise _bad(option, value, f"{name!r} is no name of an interface; write eth0:eth1")


_BRIDGE: dict[str, Callable[[str, str], None]] = {
    OPTION_BRIDGE: _bridge_name,
    OPTION_TALK: _flag,
    OPTION_MASQUERADE: _flag,
    OPTION_BINDING: _binding,
    OPTION_INHIBIT: _flag,
    OPTION_TRUSTED: _interfaces,
    OPTION_MODES[4]: _mode,
    OPTION_MODES[6]: _mode,
    OPTION_HOST[4]: _own_address,
    OPTION_HOST[6]: _own_address,
    OPTION_ENABLED[4]: _enabled,
    OPTION_ENABLED[6]: _enabled,
    OPTION_INTERNAL: _flag,
    OPTION_MTU: check_mtu,
    OPTION_PREFIX: _prefix,
}


# Of any driver's networks.
_COMMON = (*OPTION_ENABLED.values(), OPTION_INTERNAL, OPTION_MTU, OPTION_PREFIX)


def check_common(options: Mapping[str, str]) -> list[str]:
    """The options that every driver's networks may have; the names of the others. Raises BadRequest."""
    for option in _COMMON:
        if option in options:
            _BRIDGE[option](option, options[option])
    return [option for option in options if option not in _COMMON]


def check_bridge(options: Mapping[str, str], internal: bool) -> list[str]:
    """Options of a bridge; the names of those that mean nothing to it, which are kept and shown all the same. Raises
    BadRequest."""
    without = []
    for option, value in options.items():
        if option in _BRIDGE:
            _BRIDGE[option](option, value)
        elif option.startswith("com.docker.network.") and option != OPTION_DEFAULT:
            raise BadRequest(f"option {option} is not supported; bridges know {', '.join(_BRIDGE)}")
        else:
            without.append(option)
    for option in OPTION_MODES.values():
        if options.get(option) == "isolated" and not internal:
            raise BadRequest("gateway mode 'isolated' can only be used for an internal network")
    return without


# -- of teud.yaml ----------------------------------------------------------------------------------------


class Naming(NamedTuple):
    """A container's servers, search domains and options for names, in resolv.conf's words; the host's own count where
    there are none. `gateways`: what host-gateway stands for in its hosts, where teud.yaml says so."""

    servers: list[str]
    search: list[str]
    options: list[str]
    gateways: list[str]


class Defaults:
    """What teud.yaml says of networks; without it, how things are where it says nothing."""

    def __init__(self, settings: Settings | Mapping[str, Any] | None = None) -> None:
        known: Mapping[str, Any] = settings or {}
        self._bip: dict[int, str] = {4: known.get("bip", ""), 6: known.get("bip6", "")}
        self._fixed: dict[int, str] = {4: known.get("fixed-cidr", ""), 6: known.get("fixed-cidr-v6", "")}
        self._routers: dict[int, str] = {
            4: known.get("default-gateway", ""),
            6: known.get("default-gateway-v6", ""),
        }
        self.ipv6: bool = known.get("ipv6", False)
        self.forwards: bool = known.get("ip-forward", True)
        self._known = known
        self._own_pools: list[Source] = list(known.get("default-address-pools", ()))
        self.by_driver: dict[str, dict[str, str]] = dict(known.get("default-network-opts", {}))
        self.bridge_options = {OPTION_BRIDGE: DEFAULT_BRIDGE}
        if not known.get("icc", True):
            self.bridge_options[OPTION_TALK] = "false"
        if not known.get("ip-masq", True):
            self.bridge_options[OPTION_MASQUERADE] = "false"
        if known.get("ip", ""):
            self.bridge_options[OPTION_BINDING] = known["ip"]
        if known.get("mtu", 0):
            self.bridge_options[OPTION_MTU] = str(known["mtu"])

    def names(self, host: HostConfig) -> Naming:
        """How a container asks for names: as it says, or as teud.yaml does, now."""
        known = self._known
        return Naming(
            list(host.dns or known.get("dns", ())),
            list(host.dns_search or known.get("dns-search", ())),
            list(host.dns_options or known.get("dns-opts", ())),
            list(known.get("host-gateway-ips", ())),
        )

    def sources(self, seed: str) -> list[Source]:
        """Where subnets are taken from that nobody chose; `seed` is this engine's alone."""
        result = list(self._own_pools)
        if not any(source.base.version == 4 for source in result):
            result += ipam.SOURCES
        if not any(source.base.version == 6 for source in result):
            result.append(ipam.unique_local(seed))
        return result

    def options(self, driver: str, given: Mapping[str, str]) -> dict[str, str]:
        """Of a new network: what was given, and what every network of the driver has that says nothing of it."""
        return {**self.by_driver.get(driver, {}), **given}

    def settle(self, record: NetworkRecord) -> None:
        """Make the record of the default bridge what teud.yaml says; subnets that it leaves open stay as they are."""
        record.ipv6 = self.ipv6
        kept = {subnet.version: subnet for subnet in reversed(record.subnets) if subnet.subnet}
        result = []
        for version in (4, 6):
            subnet = self._subnet(version, kept.get(version))
            if subnet is not None:
                result.append(subnet)
        record.subnets = result

    def _subnet(self, version: int, kept: Subnet | None) -> Subnet | None:
        bip, fixed = self._bip[version], self._fixed[version]
        others = {ROUTER[version]: self._routers[version]} if self._routers[version] else {}
        if bip:
            interface = ip_interface(bip)
            return Subnet(str(interface.network), str(interface.ip), fixed, others)
        if fixed:
            subnet = ip_network(fixed, strict=False)
            return Subnet(str(subnet), str(ipam.first_host(subnet)), "", others)
        return kept._replace(range="", others=others) if kept else None


def check(settings: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(key, what is wrong) of the keys of teud.yaml that are about networks, beyond what each takes alone."""
    for bip, fixed, router in (
        ("bip", "fixed-cidr", "default-gateway"),
        ("bip6", "fixed-cidr-v6", "default-gateway-v6"),
    ):
        inside: Range | None = None
        if settings[bip]:
            interface = ip_interface(settings[bip])
            inside = interface.network
            if inside.prefixlen > inside.max_prefixlen - 2:
                yield bip, f"{inside} has no room for a gateway and a container"
            elif interface.ip == inside.network_address:
                yield bip, f"give an address with the length of its network, such as {inside[1]}/{inside.prefixlen}"
        if settings[fixed]:
            subnet = ip_network(settings[fixed], strict=False)
            if inside is None:
                inside = subnet
            elif not _within(subnet, inside):
                yield fixed, f"{subnet} is not a part of {bip}'s {inside}"
        if settings[router] and inside is None:
            yield router, f"give {bip} as well: the subnet that the gateway is in"
        elif settings[router] and inside is not None and ip_address(settings[router]) not in inside:
            yield router, f"{settings[router]} is not in {inside}"
    for driver, options in settings["default-network-opts"].items():
        if driver != "bridge":
            continue
        try:
            without = check_bridge(options, True)
        except EngineError as error:
            yield "default-network-opts", str(error)
        else:
            for option in (*without, *(option for option in (OPTION_BRIDGE,) if option in options)):
                yield "default-network-opts", f"{option} is no option for every network of the driver {driver}"


def _within(inner: Range, outer: Range) -> bool:
    return inner.version == outer.version and inner[0] in outer and inner[-1] in outer
