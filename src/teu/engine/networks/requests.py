# SPDX-License-Identifier: Apache-2.0
"""What a client may say about networks: the shapes of the requests, read as deep as they go, and the checks of what is
in them. Called by the manager, by wishes and by the routes.

A name that is not in a shape is dropped, as dockerd does; names are compared without regard to case, as Go does. What
is in a shape either does what it says, or is refused with a text that says what to do, or has no meaning on a single
Linux host (`Attachable`, `CheckDuplicate`, what only answers say). tests/system/api_fields_networks.py is the list.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from typing import Any, NamedTuple

from teu.engine.containers.hostconfig import link
from teu.engine.core.errors import BadRequest, EngineError, Forbidden, NotFound

TEXT, FLAG, NUMBER = "a string", "true or false", "a whole number"


class List(NamedTuple):
    of: Any


class Map(NamedTuple):
    """An object whose names anybody may choose."""

    of: Any


class Object(NamedTuple):
    members: dict[str, Any]


class Maybe(NamedTuple):
    """None where nothing was said, and null."""

    of: Any


_ENDPOINT = Object(
    {
        "IPAMConfig": Maybe(Object({"IPv4Address": TEXT, "IPv6Address": TEXT, "LinkLocalIPs": List(TEXT)})),
        "Links": List(TEXT),
        "Aliases": List(TEXT),
        "MacAddress": TEXT,
        "DriverOpts": Map(TEXT),
        "GwPriority": NUMBER,
        # These are what inspect says, and clients send them back.
        **dict.fromkeys(("NetworkID", "EndpointID", "Gateway", "IPAddress", "IPv6Gateway", "GlobalIPv6Address"), TEXT),
        "IPPrefixLen": NUMBER,
        "GlobalIPv6PrefixLen": NUMBER,
        "DNSNames": List(TEXT),
    }
)
NETWORKING = Object({"EndpointsConfig": Map(Maybe(_ENDPOINT))})
CONNECT = Object({"Container": TEXT, "EndpointConfig": Maybe(_ENDPOINT)})
DISCONNECT = Object({"Container": TEXT, "Force": FLAG})
CREATE = Object(
    {
        "Name": TEXT,
        "CheckDuplicate": FLAG,
        "Driver": TEXT,
        "Scope": TEXT,
        "EnableIPv4": Maybe(FLAG),
        "EnableIPv6": FLAG,
        "IPAM": Object(
            {
                "Driver": TEXT,
                "Options": Maybe(Map(TEXT)),
                "Config": List(
                    Object({"Subnet": TEXT, "IPRange": TEXT, "Gateway": TEXT, "AuxiliaryAddresses": Map(TEXT)})
                ),
            }
        ),
        "Internal": FLAG,
        "Attachable": FLAG,
        "Ingress": FLAG,
        "ConfigOnly": FLAG,
        "ConfigFrom": Object({"Network": TEXT}),
        "Options": Map(TEXT),
        "Labels": Map(TEXT),
    }
)


def read(value: Any, shape: Any, path: str = "") -> Any:
    """The value with every member that the shape knows; raises BadRequest with the path of what does not fit."""
    if isinstance(shape, Maybe):
        return None if value is None else read(value, shape.of, path)
    if isinstance(shape, List):
        if not isinstance(value, list) and value is not None:
            raise _misfit(path, value, "a list")
        return [read(item, shape.of, f"{path}[{position}]") for position, item in enumerate(value or [])]
    if isinstance(shape, Map | Object):
        if not isinstance(value, dict) and value is not None:
            raise _misfit(path, value, "an object")
        prefix = f"{path}." if path else ""
        if isinstance(shape, Map):
            return {
                read(key, TEXT, f"{path}: a name"): read(item, shape.of, f"{prefix}{key}")
                for key, item in (value or {}).items()
            }
        folded = {key.lower(): item for key, item in (value or {}).items()}
        return {key: read(folded.get(key.lower()), of, f"{prefix}{key}") for key, of in shape.members.items()}
    if value is None:
        return {TEXT: "", FLAG: False, NUMBER: 0}[shape]
    kind = {TEXT: str, FLAG: bool, NUMBER: int}[shape]
    if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
        raise _misfit(path, value, shape)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"{path}: half of a character (a lone surrogate) is no text") from None
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise BadRequest(f"{path}: {str(value)[:40]} does not fit a 64-bit number")
    return value


def _misfit(path: str, value: Any, expected: str) -> BadRequest:
    kinds = {bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    given = "null" if value is None else kinds.get(type(value), "a number")
    return BadRequest(f"{path}: {given} was given, {expected} is expected")


# -- networks --------------------------------------------------------------------------------------------

OPTION_BRIDGE = "com.docker.network.bridge.name"
OPTION_TALK = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_MTU = "com.docker.network.driver.mtu"
OPTION_PREFIX = "com.docker.network.container_iface_prefix"

TRUE, FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
INTERFACE = re.compile(r"[a-zA-Z0-9_.-]{1,15}\Z")


def is_true(text: str) -> bool:
    return text in TRUE


def check_name(name: str) -> None:
    if not name.strip():
        raise BadRequest(f"invalid name: {name!r}: a network needs a name")
    if not name.isprintable():
        raise BadRequest(f"invalid name: {name!r}: it has control characters")


def check_network(request: dict[str, Any], drivers: Collection[str]) -> None:
    """All of POST /networks/create but its addresses and its driver's options. `drivers`: those that there are."""
    driver = request["Driver"] or "bridge"
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if request["Ingress"]:
        raise Forbidden("Ingress network can only be global scope network: there is no swarm here")
    if request["Scope"] == "swarm" or driver == "overlay":
        raise Forbidden("cannot create a swarm scoped network when swarm is not active: this engine has no swarm mode")
    if request["Scope"] not in ("", "local"):
        raise BadRequest(f"Scope: {request['Scope']!r} is not local; networks are of this host")
    if driver not in drivers:
        hint = ": networks are of the driver bridge here" if driver in ("macvlan", "ipvlan") else ""
        raise NotFound(f'plugin "{driver}" not found{hint}')
    if request["ConfigFrom"]["Network"]:
        raise NotFound(f'configuration network "{request["ConfigFrom"]["Network"]}" does not exist')
    if request["ConfigOnly"]:
        raise BadRequest(
            "ConfigOnly: configuration-only networks are not supported; give each network its configuration"
        )
    if request["EnableIPv6"]:
        raise BadRequest("IPv6 networks are not supported; create the network without --ipv6")
    if request["EnableIPv4"] is False:
        raise BadRequest("EnableIPv4: networks without IPv4 are not supported, as there is no IPv6")
    ipam = request["IPAM"]
    if ipam["Driver"] == "null":
        raise BadRequest("ipv4 pool is empty: a bridge network needs addresses, IPAM driver null has none")
    if ipam["Driver"] not in ("", "default"):
        raise NotFound(f'plugin "{ipam["Driver"]}" not found: addresses are given by the IPAM driver default here')


def addressing(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The one IPAM.Config of a request, checked; {} where the engine is to choose."""
    faults = []
    for config in configs:
        try:
            faults += _faults(config)
        except ValueError:
            faults.append(f"invalid subnet {config['Subnet']}: invalid CIDR block notation; write it as 10.1.0.0/16")
    if faults:
        raise BadRequest("invalid network config:\n" + "\n".join(faults))
    if any(ip_network(config["Subnet"]).version == 6 for config in configs):
        raise BadRequest("IPv6 networks are not supported; create the network with an IPv4 subnet alone")
    if len(configs) > 1:
        raise Forbidden("bridge driver doesn't support multiple subnets")
    return configs[0] if configs else {}


def _faults(config: dict[str, Any]) -> list[str]:
    if not isinstance(config["Subnet"], str) or "/" not in config["Subnet"]:
        raise ValueError
    subnet = ip_network(config["Subnet"], strict=False)
    result = []
    if str(subnet) != config["Subnet"].lower() and subnet.version == 4:
        result.append(f"invalid subnet {config['Subnet']}: it should be {subnet}")

    def inside(what: str, text: str) -> None:
        try:
            address = ip_address(text)
        except ValueError:
            result.append(f"invalid {what}: invalid address")
            return
        if address not in subnet:
            result.append(f"invalid {what}: parent subnet {subnet} doesn't contain this address")

    if config["IPRange"]:
        try:
            range_ = ip_network(config["IPRange"], strict=False)
            if range_.version != subnet.version or not range_.subnet_of(subnet):  # type: ignore[arg-type]
                result.append(f"invalid ip-range {range_}: parent subnet {subnet} doesn't contain ip-range")
        except ValueError:
            result.append(f"invalid ip-range {config['IPRange']}: invalid CIDR block notation")
    if config["Gateway"]:
        inside(f"gateway {config['Gateway']}", config["Gateway"])
    for name, text in config["AuxiliaryAddresses"].items():
        inside(f"auxiliary address {name}", text)
    return result


# -- endpoints -------------------------------------------------------------------------------------------

OPTION_SYSCTLS = "com.docker.network.endpoint.sysctls"
OPTION_INTERFACE = "com.docker.network.endpoint.ifname"
_SYSCTL = re.compile(r"(net\.[a-z0-9]+\.[a-z0-9_]+)\.IFNAME\.([a-z0-9_]+)=([^,\n]*)")


def mac_address(text: str) -> str:
    """In the kernel's spelling; raises BadRequest."""
    for form in (
        r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}",
        r"[0-9a-fA-F]{2}(-[0-9a-fA-F]{2}){5}",
        r"[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2}",
    ):
        if re.fullmatch(form, text):
            return bytes.fromhex(re.sub(r"[:.-]", "", text)).hex(":")
    raise BadRequest(f"invalid MAC address {text}: it is not of the form 02:42:ac:11:00:02")


def endpoint_sysctls(options: dict[str, str]) -> list[tuple[str, str]]:
    """(path below /proc/sys with IFNAME in it, value) of an endpoint's driver options."""
    result = []
    for entry in (options.get(OPTION_SYSCTLS) or "").split(","):
        if not entry:
            continue
        found = _SYSCTL.fullmatch(entry)
        if not found:
            raise BadRequest(f"{OPTION_SYSCTLS}: {entry!r} is not of the form net.ipv4.conf.IFNAME.log_martians=1")
        result.append((f"{found[1].replace('.', '/')}/IFNAME/{found[2]}", found[3]))
    return result


def _check_driver_options(options: dict[str, str]) -> None:
    for option, value in options.items():
        if option == OPTION_SYSCTLS:
            endpoint_sysctls(options)
        elif option == OPTION_INTERFACE:
            if not INTERFACE.match(value) or value in ("lo", ".", "..", "all", "default"):
                raise BadRequest(f"{option}: {value!r} is no name for an interface")
        else:
            raise BadRequest(
                f"driver option {option} is not supported; endpoints know {OPTION_SYSCTLS} and {OPTION_INTERFACE}"
            )


def check_endpoint(settings: dict[str, Any], name: str, user_defined: bool, subnet: IPv4Network | None) -> None:
    """What a container asks for on a network. `subnet`: the one that a user chose, if so."""
    reasons = []
    ipam = settings["IPAMConfig"] or {"IPv4Address": "", "IPv6Address": "", "LinkLocalIPs": []}
    fixed = False
    for family, text, kind in (("IPv4", ipam["IPv4Address"], IPv4Address), ("IPv6", ipam["IPv6Address"], IPv6Address)):
        if not text:
            continue
        fixed = True
        try:
            address = kind(text)
        except ValueError:
            reasons.append(f"invalid {family} address: {text}")
            address = None
        if family == "IPv6" or subnet is None:
            reasons.append(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
            )
        elif address is None or address not in subnet:
            reasons.append(f"no configured subnet or ip-range contain the IP address {text}")
    if fixed and not user_defined:
        reasons.insert(0, "user specified IP address is supported on user defined networks only")
    for text in ipam["LinkLocalIPs"]:
        try:
            good = ip_address(text).is_link_local and "%" not in text
        except ValueError:
            good = False
        if not good:
            reasons.append(f"invalid link-local IP address: {text}")
    if settings["Aliases"] and not user_defined:
        reasons.append("network-scoped alias is supported only for containers in user defined networks")
    if reasons:
        text = reasons[0] if len(reasons) == 1 else "\n".join(f"* {reason}" for reason in dict.fromkeys(reasons))
        raise BadRequest(f"invalid config for network {name}: invalid endpoint settings:\n{text}")
    try:
        if settings["MacAddress"]:
            mac_address(settings["MacAddress"])
        _check_driver_options(settings["DriverOpts"])
        for text in settings["Links"]:
            link(text)
    except EngineError as error:
        raise BadRequest(f"invalid config for network {name}: {error}") from None
    if settings["Links"] and not user_defined:
        raise BadRequest(
            f"invalid config for network {name}: links are only supported for user-defined networks; make a network of"
            " your own, whose members know each other by name"
        )
