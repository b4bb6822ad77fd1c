# SPDX-License-Identifier: Apache-2.0
"""What the host's own firewall lets into the host, as rules for published ports. Called by hostfirewall.

A published port is no program of the host's: its packets are forwarded, and a firewall's rules for what comes in are
never asked. So they are said once more, for such packets alone, in the chain `host` of our table: in place of the port
that a packet has by then they look for the one that it was sent to (`ct original proto-dst`). What ufw's own rules are
for forwarded packets comes first, as it is.

Here are texts alone: rules of nft's language out of what ufw.py and firewalld.py have read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from teu.linux.ufw import Ufw
    from teu.systemd.firewalld import Zone

_VERDICTS = {"accept": "accept", "drop": "drop", "reject": "reject with icmpx admin-prohibited"}
_INTERFACE = re.compile(r"[^\s\"/{}]{1,15}\Z")
_PORTS = re.compile(r"\d{1,5}([-:]\d{1,5})?(,\d{1,5}([-:]\d{1,5})?)*\Z")
_WORD = re.compile(r"[a-z0-9-]{1,20}\Z")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}\Z")


class Match(NamedTuple):
    """Which packets a rule is about. Empty texts are for any; several addresses are of one family. `forwarded`: the
    destination and the port are those on the way; else those that the packet was sent to."""

    version: int = 0
    interface: str = ""
    out: str = ""
    sources: tuple[str, ...] = ()
    not_sources: bool = False
    destinations: tuple[str, ...] = ()
    not_destinations: bool = False
    protocol: str = ""
    ports: str = ""
    source_ports: str = ""
    forwarded: bool = False


def rule(match: Match, verdict: str) -> str:
    """Of nft's language. Raises ValueError where there is no such rule."""
    parts = []
    for what, name in (("iifname", match.interface), ("oifname", match.out)):
        if name:
            if not _INTERFACE.match(name):
                raise ValueError(f"interface {name!r}")
            parts.append(f'{what} "{name[:-1] + "*" if name.endswith("+") else name}"')
    if match.version:
        parts.append(f"meta nfproto ipv{match.version}")
    if match.sources:
        parts.append(_addresses("", "saddr", match.sources, match.not_sources))
    if match.destinations:
        before = "" if match.forwarded else "ct original "
        parts.append(_addresses(before, "daddr", match.destinations, match.not_destinations))
    if match.protocol:
        if not _WORD.match(match.protocol):
            raise ValueError(f"protocol {match.protocol!r}")
        parts.append(f"meta l4proto {match.protocol}")
    elif match.ports or match.source_ports:
        parts.append("meta l4proto { tcp, udp, sctp }")
    if match.source_ports:
        parts.append(f"th sport {_set_of_ports(match.source_ports)}")
    if match.ports:
        parts.append(f"{'th dport' if match.forwarded else 'ct original proto-dst'} {_set_of_ports(match.ports)}")
    return " ".join((*parts, _VERDICTS[verdict]))


def _addresses(before: str, side: str, texts: Iterable[str], inverted: bool) -> str:
    equals = "!= " if inverted else ""
    found = list(texts)
    if side == "saddr" and all(_MAC.match(text) for text in found):
        return f"ether saddr {equals}{{ {', '.join(found)} }}"
    networks = [ip_network(text, strict=False) for text in found]
    versions = {network.version for network in networks}
    if len(versions) != 1:
        raise ValueError("addresses of two families")
    family = "ip" if versions == {4} else "ip6"
    names = ", ".join(sorted({str(network) for network in networks}))
    return f"{before}{family} {side} {equals}{{ {names} }}"


def _set_of_ports(text: str) -> str:
    if not _PORTS.match(text):
        raise ValueError(f"port {text!r}")
    return "{ " + ", ".join(text.replace(":", "-").split(",")) + " }"


class Rules(list[str]):
    """The rules of a chain, and what could not be said in them."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: list[str] = []

    def say(self, match: Match, verdict: str, what: str) -> None:
        try:
            self.append(rule(match, verdict))
        except ValueError as error:
            self.left_out.append(f"{what} ({error})")


def of_ufw(found: Ufw) -> Rules:
    """Rules for forwarded packets are ufw's first, then those for what comes in, in their order; the first that fits
    decides."""
    result = Rules()
    for one in sorted(found.rules, key=lambda one: not one.forwarded):
        match = Match(
            version=one.version,
            interface=one.interface,
            out=one.out if one.forwarded else "",
            sources=(one.source,) if one.source else (),
            destinations=(one.destination,) if one.destination else (),
            protocol=one.protocol,
            ports=one.ports,
            source_ports=one.source_ports,
            forwarded=one.forwarded,
        )
        result.say(match, one.action, f"a rule for {one.ports or 'all ports'}")
    for version, policy in ((4, found.policy), (6, found.policy6)):
        result.say(Match(version=version), policy, "the policy")
    return result


# -- firewalld -------------------------------------------------------------------------------------------

_ELEMENTS = ("service", "port", "protocol", "source-port")
_OTHERS = ("icmp-block", "icmp-type", "forward-port", "masquerade", "tcp-mss-clamp", "mark")
_ACTIONS = ("accept", "reject", "drop")
_BESIDE = ("log", "nflog", "audit", "limit")


class Rich(NamedTuple):
    """A rich rule (firewalld.richlanguage(5)) that decides about packets. `element`: what they are of, with its
    attributes; "" for all."""

    priority: int
    version: int
    source: dict[str, str]
    destination: dict[str, str]
    element: str
    attributes: dict[str, str]
    action: str


def parse_rich(text: str) -> Rich | None:
    """None for one that decides nothing about a port. Raises ValueError for what is no rich rule."""
    words = shlex.split(text)
    if not words or words[0] != "rule":
        raise ValueError(text)
    parts: dict[str, dict[str, str]] = {"rule": {}}
    part = "rule"
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if equals:
            parts[part][name] = value
        elif word == "NOT":
            parts[part]["invert"] = "True"
        elif word in ("source", "destination", *_ELEMENTS, *_OTHERS, *_ACTIONS, *_BESIDE):
            part = word
            parts.setdefault(part, {})
        else:
            raise ValueError(word)
    action = next((one for one in _ACTIONS if one in parts), "")
    if not action or any(one in parts for one in _OTHERS):
        return None
    element = next((one for one in _ELEMENTS if one in parts), "")
    return Rich(
        int(parts["rule"].get("priority", "0")),
        {"ipv4": 4, "ipv6": 6}.get(parts["rule"].get("family", ""), 0),
        parts.get("source", {}),
        parts.get("destination", {}),
        element,
        parts.get(element, {}),
        action,
    )


# Of firewalld's: the ports of a service, the entries of an ipset.
Services = Callable[[str], "list[tuple[str, str]]"]
Sets = Callable[[str], "list[str]"]


def of_zones(zones: Iterable[Zone], services: Services, sets: Sets) -> Rules:
    """As firewalld looks at a packet: by its source, then by its interface, else in the default zone; there by the rich
    rules before priority 0, those that refuse, those that let in and the zone's ports, the rich rules after, and the
    target."""
    result = Rules()
    for zone in zones:
        for where in _places(zone, sets):
            _zone(result, zone, where, services, sets)
    return result


def _places(zone: Zone, sets: Sets) -> list[Match]:
    found = []
    for source in zone.sources:
        texts = tuple(sets(source.removeprefix("ipset:"))) if source.startswith("ipset:") else (source,)
        if texts:
            found.append(Match(sources=texts))
    found += [Match(interface=interface) for interface in zone.interfaces]
    return [*found, Match()] if zone.is_default else found


def _zone(result: Rules, zone: Zone, where: Match, services: Services, sets: Sets) -> None:
    rich = []
    for text in zone.rules:
        try:
            found = parse_rich(text)
        except ValueError as error:
            result.left_out.append(f"zone {zone.name}: {text} ({error})")
            continue
        if found is not None:
            rich.append((found, text))
    order = sorted(rich, key=lambda one: (one[0].priority, one[0].action == "accept"))
    for one, text in order:
        if one.priority <= 0:
            _rich(result, one, f"zone {zone.name}: {text}", where, services, sets)
    for port, protocol in zone.ports:
        result.say(where._replace(protocol=protocol, ports=port), "accept", f"zone {zone.name}: {port}/{protocol}")
    for protocol in zone.protocols:
        result.say(where._replace(protocol=protocol), "accept", f"zone {zone.name}: {protocol}")
    for one, text in order:
        if one.priority > 0:
            _rich(result, one, f"zone {zone.name}: {text}", where, services, sets)
    result.say(where, {"ACCEPT": "accept", "DROP": "drop"}.get(zone.target, "reject"), f"zone {zone.name}")


def _rich(result: Rules, one: Rich, what: str, where: Match, services: Services, sets: Sets) -> None:
    match = where._replace(version=one.version)
    if one.source:
        if where.sources:  # both have to fit, which one rule cannot say where they are of the same kind
            result.left_out.append(what)
            return
        texts = tuple(sets(one.source["ipset"])) if "ipset" in one.source else ()
        texts = texts or tuple(one.source[key] for key in ("address", "mac") if key in one.source)
        if not texts:
            return
        match = match._replace(sources=texts, not_sources=_is_true(one.source.get("invert")))
    if address := one.destination.get("address"):
        match = match._replace(destinations=(address,), not_destinations=_is_true(one.destination.get("invert")))
    if one.element == "service":
        for port, protocol in services(one.attributes.get("name", "")):
            result.say(match._replace(protocol=protocol, ports=port), one.action, what)
        return
    if one.element == "protocol":
        match = match._replace(protocol=one.attributes.get("value", ""))
    elif one.element:
        match = match._replace(protocol=one.attributes.get("protocol", ""))
        port = one.attributes.get("port", "")
        match = match._replace(ports=port) if one.element == "port" else match._replace(source_ports=port)
    result.say(match, one.action, what)


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in ("true", "yes", "1")
