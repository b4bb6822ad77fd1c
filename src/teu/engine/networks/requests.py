# SPDX-License-Identifier: Apache-2.0
"""What a client may say about networks: the checks of what is in requests, beyond the types of their fields
(core/fields.py). Called by the manager and by wishes.

What is in a request either does what it says, or is refused with a text that says what to do, or has no meaning on a
single Linux host (`Attachable`, `CheckDuplicate`, what only answers say). tests/system/api_fields_networks.py is the
list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import NamedTuple

from teu.engine.containers.hostconfig import link
from teu.engine.core.errors import BadRequest, Forbidden
from teu.engine.core.fields import EndpointAddresses, EndpointAsked, NetworkAsked, Networking, SubnetAsked
from teu.engine.networks.ipam import Range
from teu.engine.networks.options import INTERFACE, NO_INTERFACES, OPTION_ENABLED, OPTION_INTERNAL, is_true


def endpoints(asked: Networking | None) -> dict[str, EndpointAsked]:
    """Those of a request, by the networks' names or ids. Raises BadRequest where a network has null."""
    result = {}
    for name, settings in (asked.endpoints if asked else {}).items():
        if settings is None:
            raise BadRequest(f"invalid config for network {name}: EndpointsConfig is nil")
        result[name] = settings
    return result


# -- networks --------------------------------------------------------------------------------------------

DEFAULT_DRIVER = "bridge"


def check_name(name: str) -> None:
    if not name.strip():
        raise BadRequest(f"invalid name: {name!r}: a network needs a name")
    if not name.isprintable():
        raise BadRequest(f"invalid name: {name!r}: it has control characters")


_NO_SWARM = (
    "there is no swarm here, nor will be: for networks of several machines run Kubernetes, whose pods teu-containerd"
    " runs (cri in teu-containerd.yaml) and whose CNI plugins join them"
)


def check_network(asked: NetworkAsked) -> None:
    """All of POST /networks/create but its addresses and its driver's options. Raises BadRequest, Forbidden."""
    driver = asked.driver or DEFAULT_DRIVER
    if driver == "overlay":
        raise Forbidden(f"This node is not a swarm manager: {_NO_SWARM}")
    if asked.config_only and (asked.ingress or asked.internal or asked.attachable or asked.scope):
        raise Forbidden(
            "configuration network can only contain network specific fields. Network operator fields like"
            " [ ingress | internal | attachable | scope ] are not supported."
        )
    if asked.config_from.network:
        _check_configured(asked)
    if asked.config_only:
        return
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if asked.ingress:
        raise Forbidden(f"Ingress network can only be global scope network: {_NO_SWARM}")
    if asked.scope == "swarm":
        raise Forbidden(f"cannot create a swarm scoped network when swarm is not active: {_NO_SWARM}")
    if asked.scope not in ("", "local", "global"):
        raise BadRequest(f"Scope: {asked.scope!r} is not local; networks are of this host")


def _check_configured(asked: NetworkAsked) -> None:
    """Of a network that another one is the configuration of. Raises Forbidden."""
    if asked.config_only:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    ipam = asked.ipam
    if ipam.driver not in ("", "default") or ipam.options or ipam.subnets or asked.labels or asked.ipv6:
        raise Forbidden(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    if asked.options:
        raise Forbidden("network driver options are not supported if the network depends on a configuration network")


class Shape(NamedTuple):
    """What a network is: of its request, and of its options where the request leaves it open."""

    ipv4: bool
    ipv6: bool
    internal: bool


def options(asked: NetworkAsked, options: dict[str, str]) -> dict[str, str]:
    """Those that the network gets: without what the request itself says of its families."""
    said = {OPTION_ENABLED[4]: asked.ipv4, OPTION_ENABLED[6]: asked.ipv6}
    return {name: value for name, value in options.items() if said.get(name) is None}


def shape(asked: NetworkAsked, options: Mapping[str, str]) -> Shape:
    """Raises BadRequest where it would have no addresses."""
    ipv4 = is_true(options.get(OPTION_ENABLED[4], "true")) if asked.ipv4 is None else asked.ipv4
    ipv6 = is_true(options.get(OPTION_ENABLED[6], "false")) if asked.ipv6 is None else asked.ipv6
    if not ipv4 and not ipv6:
        raise BadRequest("IPv4 or IPv6 must be enabled")
    return Shape(ipv4, ipv6, asked.internal or is_true(options.get(OPTION_INTERNAL, "false")))


def addressing(subnets: list[SubnetAsked], shape: Shape, several: bool) -> dict[int, list[SubnetAsked]]:
    """The IPAM.Configs of a request, checked, by family; none of a family where the engine is to choose. `several`:
    whether there may be more than one of a family. Raises BadRequest, Forbidden."""
    faults = []
    result: dict[int, list[SubnetAsked]] = {4: [], 6: []}
    for asked in subnets:
        try:
            faults += _faults(asked)
            result[ip_network(asked.subnet, strict=False).version].append(asked)
        except ValueError:
            faults.append(f"invalid subnet {asked.subnet}: invalid CIDR block notation; write it as 10.1.0.0/16")
    if faults:
        raise BadRequest("invalid network config:\n" + "\n".join(faults))
    for version, enabled in ((4, shape.ipv4), (6, shape.ipv6)):
        if enabled and len(result[version]) > 1 and not several:
            raise Forbidden("bridge driver doesn't support multiple subnets")
    return result


def _faults(asked: SubnetAsked) -> list[str]:
    """Raises ValueError where the subnet is none."""
    if "/" not in asked.subnet:
        raise ValueError
    subnet = ip_network(asked.subnet, strict=False)
    result = []
    if ip_interface(asked.subnet).ip != subnet.network_address or subnet.version == 4 and str(subnet) != asked.subnet:
        result.append(f"invalid subnet {asked.subnet}: it should be {subnet}")

    def inside(what: str, text: str) -> None:
        try:
            address = ip_address(text)
        except ValueError:
            result.append(f"invalid {what}: invalid address")
            return
        if address not in subnet:
            result.append(f"invalid {what}: parent subnet {subnet} doesn't contain this address")

    if asked.range:
        try:
            range_ = ip_network(asked.range, strict=False)
            if range_.version != subnet.version or not range_.subnet_of(subnet):  # type: ignore[arg-type]
                result.append(f"invalid ip-range {range_}: parent subnet {subnet} doesn't contain ip-range")
        except ValueError:
            result.append(f"invalid ip-range {asked.range}: invalid CIDR block notation")
    if asked.gateway:
        inside(f"gateway {asked.gateway}", asked.gateway)
    for name, text in asked.others.items():
        inside(f"auxiliary address {name}", text)
    return result


# -- endpoints -------------------------------------------------------------------------------------------

OPTION_SYSCTLS = "com.docker.network.endpoint.sysctls"
OPTION_INTERFACE = "com.docker.network.endpoint.ifname"
# Lower case as well: docker's client writes options so.
_SYSCTL = re.compile(r"(net\.(?:ipv4|ipv6|mpls)\.[a-z0-9_]+)\.(?:IFNAME|ifname)\.([a-z0-9_]+)=([^,\n]*)")


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
            raise BadRequest(
                f"unrecognised network interface sysctl '{entry}'; represent 'net.X.Y.ethN.Z=V' as"
                " 'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'"
            )
        result.append((f"{found[1].replace('.', '/')}/IFNAME/{found[2]}", found[3]))
    return result


def _check_driver_options(options: dict[str, str], own_driver: bool) -> None:
    for option, value in options.items():
        if option == OPTION_SYSCTLS:
            continue  # its faults are told among the others
        if option == OPTION_INTERFACE:
            if not INTERFACE.match(value) or value in NO_INTERFACES:
                raise BadRequest(f"{option}: {value!r} is no name for an interface")
        elif own_driver:
            raise BadRequest(
                f"driver option {option} is not supported; endpoints know {OPTION_SYSCTLS} and {OPTION_INTERFACE}"
            )


def check_endpoint(
    asked: EndpointAsked,
    user_defined: bool,
    subnets: Mapping[int, Sequence[Range]] | None,
    own_driver: bool = True,
) -> None:
    """What a container asks for on a network. `subnets`: those that a user chose, by family; None where they are not
    known. `own_driver`: it is no plugin, which may know any option. Raises BadRequest."""
    reasons = _address_faults(asked.addresses or EndpointAddresses(), user_defined, subnets)
    if asked.aliases and not user_defined:
        reasons.append("network-scoped alias is supported only for containers in user defined networks")
    try:
        endpoint_sysctls(asked.driver_opts)
    except BadRequest as error:
        reasons.append(str(error))
    if reasons:
        text = reasons[0] if len(reasons) == 1 else "\n".join(f"* {reason}" for reason in dict.fromkeys(reasons))
        raise BadRequest(f"invalid endpoint settings:\n{text}")
    if asked.mac:
        mac_address(asked.mac)
    _check_driver_options(asked.driver_opts, own_driver)
    for text in asked.links:
        link(text)
    if asked.links and not user_defined:
        raise BadRequest(
            "links are only supported for user-defined networks; make a network of your own, whose members know each"
            " other by name"
        )


def _address_faults(
    asked: EndpointAddresses, user_defined: bool, subnets: Mapping[int, Sequence[Range]] | None
) -> list[str]:
    """What is wrong with the addresses that are asked for."""
    reasons = []
    if (asked.ipv4 or asked.ipv6) and not user_defined:
        reasons.append("user specified IP address is supported on user defined networks only")
    if asked.ipv4:
        reasons += _fault(asked.ipv4, "IPv4", IPv4Address, None if subnets is None else subnets[4])
    if asked.ipv6:
        reasons += _fault(asked.ipv6, "IPv6", IPv6Address, None if subnets is None else subnets[6])
    for text in asked.link_local:
        try:
            good = ip_address(text).is_link_local and "%" not in text
        except ValueError:
            good = False
        if not good:
            reasons.append(f"invalid link-local IP address: {text}")
    return reasons


def _fault(
    text: str, family: str, kind: type[IPv4Address] | type[IPv6Address], subnets: Sequence[Range] | None
) -> list[str]:
    """Of one address. `subnets`: those of its family that a user chose; None where they are not known."""
    reasons = []
    address: IPv4Address | IPv6Address | None = None
    try:
        address = kind(text)
    except ValueError:
        reasons.append(f"invalid {family} address: {text}")
    if subnets is not None and not subnets:
        reasons.append(
            "user specified IP address is supported only when connecting to networks with user configured subnets"
        )
    elif subnets and (address is None or not any(address in subnet for subnet in subnets)):
        reasons.append(f"no configured subnet or ip-range contain the IP address {text}")
    return reasons
