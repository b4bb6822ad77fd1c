# SPDX-License-Identifier: Apache-2.0
"""The engine's nftables table: `inet teu`. Called by the driver bridge.

    table inet teu
    ├── sets   bridges, internal      interfaces of ours; those without a way out
    │          within                 (in, out) bridges between which containers may talk
    │          trusted                (in, out) interfaces of the host whose neighbours reach a bridge's published ports
    │                                 at the containers' own addresses
    │   and for each family, with 4 or 6 at its name:
    │          subnets                (addresses, addresses) of one bridge each
    │          at_home                (bridge, addresses) of one bridge each: who leaves by another machine on it keeps
    │                                 the own address, where br_netfilter shows us that
    │          masqueraded            addresses that go out under the host's own
    │          routed, unprotected    bridges whose addresses the world knows; bridges that keep nobody out
    │          opened, direct         container's address, protocol, port: for everybody; for who comes by `trusted`
    │          linked                 container's address, another's, protocol, port: for the first one alone
    │          limited                ports that not everybody may use: container's address, protocol, port
    │          allowed                addresses of those who may, and the same
    ├── maps   published              protocol, port                  -> container's address, port
    │          published_at           host address, protocol, port    -> container's address, port
    │          translated             addresses                       -> the host's address under which they go out
    ├── guard         prerouting, raw     the host's 127.0.0.0/8 is out of every container's reach (::1 always is)
    ├── incoming      prerouting, dstnat  published ports, from outside and from containers; none of 127.0.0.0/8, which
    │                                     the kernel lets nobody outside use unless we lead it elsewhere first
    ├── own           output, -100        published ports, from the host itself
    ├── who           of between          who may use a published port
    ├── admit         of between          what comes in there, but for what `host` refuses
    ├── host          of between          what the host's own firewall lets in, of who comes from outside (hostrules.py)
    ├── between       forward, filter     replies and published ports in, containers out, the rest dropped
    └── outgoing      postrouting, srcnat masquerading

A container is an element of a map, whatever their number; rules never change. The table exists while a
container is attached to a bridge. Nothing here accepts on behalf of the host's own firewall: a packet that
another table's forward chain drops stays dropped, so a host's policy holds for published ports too
(`ct original proto-dst` tells there which port was published). What ufw and firewalld let into the host is said once
more in the chain `host`, for published ports (hostfirewall.py). A published port has the container's name as a comment.

Docker on the same host drops all forwarded packets but its own where it had to turn forwarding on. Its chain for
others' rules, DOCKER-USER, gets two of ours while the table exists: our interfaces are none of its business. Where we
had to turn forwarding on, we do the same (teu.linux.forwarding), in the same chain.

Somebody may flush the whole ruleset (`systemctl reload nftables` does): the driver watches the kernel's notices and
builds the table again.

A bridge has route_localnet set so that 127.0.0.1:PORT of the host reaches a container; `guard` takes back
what that would open in the other direction (the exposure known as CVE-2020-8558). For [::1]:PORT it has a route to
::1 for the replies, which the kernel itself lets nobody else use.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from teu.linux import forwarding, nftables

log = logging.getLogger("teu.engine")

TABLE = "inet teu"
COMMENT_MAX = 120  # characters; nft takes 128
_GONE = ("No such file", "element does not exist")
OWNER = "teu"  # who we are in the comments of rules in others' chains

# The same for each family.
_FAMILY_TEXT = """
    set subnets%(n)d { type %(ip)s_addr . %(ip)s_addr; flags interval; }
    set at_home%(n)d { type ifname . %(ip)s_addr; flags interval; }
    set masqueraded%(n)d { type %(ip)s_addr; flags interval; }
    set routed%(n)d { type ifname; }
    set unprotected%(n)d { type ifname; }
    set opened%(n)d { type %(ip)s_addr . inet_proto . inet_service; }
    set direct%(n)d { type %(ip)s_addr . inet_proto . inet_service; }
    set linked%(n)d { type %(ip)s_addr . %(ip)s_addr . inet_proto . inet_service; }
    set limited%(n)d { type %(ip)s_addr . inet_proto . inet_service; }
    set allowed%(n)d { type %(ip)s_addr . %(ip)s_addr . inet_proto . inet_service; flags interval; }
    map published%(n)d { type inet_proto . inet_service : %(ip)s_addr . inet_service; }
    map published_at%(n)d { type %(ip)s_addr . inet_proto . inet_service : %(ip)s_addr . inet_service; }
    map translated%(n)d { type %(ip)s_addr : %(ip)s_addr; flags interval; }
    chain ports%(n)d {
        meta l4proto { tcp, udp, sctp } dnat %(is)s to %(is)s daddr . meta l4proto . th dport map @published_at%(n)d
        meta l4proto { tcp, udp, sctp } dnat %(is)s to meta l4proto . th dport map @published%(n)d
    }
    chain between%(n)d {
        oifname @routed%(n)d meta l4proto %(icmp)s accept
        oifname @unprotected%(n)d meta l4proto { tcp, udp, sctp } jump admit
        oifname @unprotected%(n)d accept
        meta l4proto != { tcp, udp, sctp } return
        %(is)s daddr . meta l4proto . th dport @opened%(n)d jump admit
        %(is)s saddr . %(is)s daddr . meta l4proto . th dport @linked%(n)d accept
        iifname . oifname @trusted %(is)s daddr . meta l4proto . th dport @direct%(n)d jump admit
    }
    chain who%(n)d {
        %(is)s saddr . %(is)s daddr . meta l4proto . th dport != @allowed%(n)d drop
    }
    chain outgoing%(n)d {
        %(is)s saddr . %(is)s daddr @subnets%(n)d ct status dnat masquerade
        oifname . %(is)s saddr @at_home%(n)d return
        %(is)s saddr . %(is)s daddr != @subnets%(n)d snat %(is)s to %(is)s saddr map @translated%(n)d
        %(is)s saddr @masqueraded%(n)d %(is)s saddr . %(is)s daddr != @subnets%(n)d masquerade
    }
"""
_TABLE_TEXT = (
    """
table inet teu {
    set bridges { type ifname; }
    set internal { type ifname; }
    set within { type ifname . ifname; }
    set trusted { type ifname . ifname; }
"""
    + _FAMILY_TEXT % {"n": 4, "ip": "ipv4", "is": "ip", "icmp": "icmp"}
    + _FAMILY_TEXT % {"n": 6, "ip": "ipv6", "is": "ip6", "icmp": "icmpv6"}
    + """
    chain guard {
        type filter hook prerouting priority raw; policy accept;
        iifname @bridges ip daddr 127.0.0.0/8 drop
        iifname @bridges ip saddr 127.0.0.0/8 drop
    }
    chain incoming {
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr 127.0.0.0/8 return
        fib daddr type local jump ports
    }
    chain own {
        type nat hook output priority -100; policy accept;
        fib daddr type local jump ports
    }
    chain ports {
        meta nfproto ipv4 jump ports4
        meta nfproto ipv6 jump ports6
    }
    chain who {
        ip daddr . meta l4proto . th dport @limited4 jump who4
        ip6 daddr . meta l4proto . th dport @limited6 jump who6
    }
    chain host {
    }
    chain admit {
        iifname != @bridges jump host
        accept
    }
    chain between {
        type filter hook forward priority filter; policy accept;
        iifname @internal oifname . iifname != @within drop
        oifname @internal oifname . iifname != @within drop
        oifname @bridges ct state established,related accept
        oifname @bridges meta l4proto { tcp, udp, sctp } jump who
        oifname @bridges ct status dnat jump admit
        iifname . oifname @within accept
        oifname @bridges meta nfproto ipv4 jump between4
        oifname @bridges meta nfproto ipv6 jump between6
        oifname @bridges drop
    }
    chain outgoing {
        type nat hook postrouting priority srcnat; policy accept;
        oifname @bridges ip saddr 127.0.0.0/8 masquerade
        oifname @bridges ip6 saddr ::1 masquerade
        meta nfproto ipv4 jump outgoing4
        meta nfproto ipv6 jump outgoing6
    }
}
"""
)


class Published(NamedTuple):
    """One published port. A host address of 0.0.0.0 or :: means every one of that family, which is that of `address`,
    the container's. `host_port` 0: it is open at the container's own address alone. `direct`: it is reached there, too,
    by who comes through a trusted interface. `name`: the container's. `sources`: networks of those who may use it, of
    both families; none for everybody."""

    protocol: str
    host_address: str
    host_port: int
    address: str
    port: int
    direct: bool = False
    name: str = ""
    sources: tuple[str, ...] = ()


class Opening(NamedTuple):
    """A port of a container that is open to another one on the same bridge, by their addresses."""

    source: str
    address: str
    protocol: str
    port: int


class Way(NamedTuple):
    """How one subnet of a bridge is beside the world. `mode`: nat, nat-unprotected, routed, isolated; `host`: address
    of the host under which it goes out, "" for the one that the kernel chooses."""

    subnet: IPv4Network | IPv6Network
    masquerade: bool
    mode: str = "nat"
    host: str = ""


class Bridge(NamedTuple):
    """`talk`: its containers reach each other. `trusted`: interfaces of the host."""

    name: str
    ways: tuple[Way, ...]
    internal: bool
    talk: bool
    trusted: tuple[str, ...] = ()


def _port(verb: str, entry: Published) -> str:
    family = ip_address(entry.address).version
    place = f"{entry.address} . {entry.protocol} . {entry.port}"
    comment = f' comment "{entry.name[:COMMENT_MAX]}"' if entry.name and verb == "add" else ""
    text = f"{verb} element {TABLE} direct{family} {{ {place}{comment} }}\n" if entry.direct else ""
    if not entry.host_port:
        return f"{text}{verb} element {TABLE} opened{family} {{ {place}{comment} }}\n"
    value = f"{comment} : {entry.address} . {entry.port}" if verb == "add" else ""
    if ip_address(entry.host_address).is_unspecified:
        return f"{text}{verb} element {TABLE} published{family} {{ {entry.protocol} . {entry.host_port}{value} }}\n"
    key = f"{entry.host_address} . {entry.protocol} . {entry.host_port}"
    return f"{text}{verb} element {TABLE} published_at{family} {{ {key}{value} }}\n"


def _opening(verb: str, entry: Opening) -> str:
    family = ip_address(entry.address).version
    key = f"{entry.source} . {entry.address} . {entry.protocol} . {entry.port}"
    return f"{verb} element {TABLE} linked{family} {{ {key} }}\n"


def _limits(verb: str, entry: Published) -> str:
    """Who may use a published port, where that is not everybody."""
    if not entry.sources:
        return ""
    version = ip_address(entry.address).version
    place = f"{entry.address} . {entry.protocol} . {entry.port}"
    text = f"{verb} element {TABLE} limited{version} {{ {place} }}\n"
    for source in entry.sources:
        if ip_network(source).version == version:
            text += f"{verb} element {TABLE} allowed{version} {{ {source} . {place} }}\n"
    return text


def _bridge(verb: str, bridge: Bridge) -> str:
    elements = [("bridges", f'"{bridge.name}"')]
    if bridge.talk:
        elements.append(("within", f'"{bridge.name}" . "{bridge.name}"'))
    if bridge.internal:
        elements.append(("internal", f'"{bridge.name}"'))
    elements += [("trusted", f'"{name}" . "{bridge.name}"') for name in bridge.trusted]
    for way in bridge.ways:
        family = way.subnet.version
        elements.append((f"subnets{family}", f"{way.subnet} . {way.subnet}"))
        elements.append((f"at_home{family}", f'"{bridge.name}" . {way.subnet}'))
        if bridge.internal:
            continue
        if way.host and way.masquerade:
            value = f" : {way.host}" if verb == "add" else ""
            elements.append((f"translated{family}", f"{way.subnet}{value}"))
        elif way.masquerade:
            elements.append((f"masqueraded{family}", str(way.subnet)))
        if way.mode == "routed":
            elements.append((f"routed{family}", f'"{bridge.name}"'))
        elif way.mode == "nat-unprotected":
            elements.append((f"unprotected{family}", f'"{bridge.name}"'))
    return "".join(f"{verb} element {TABLE} {name} {{ {element} }}\n" for name, element in elements)


def rebuild(
    bridges: Iterable[Bridge], ports: Iterable[Published], openings: Iterable[Opening] = (), host: Iterable[str] = ()
) -> int:
    """Replace the whole table, in one transaction: what is found after a start, the first container, and whatever
    somebody else took out of it. `host`: as of set_host, which returns the same."""
    text = f"add table {TABLE}\ndelete table {TABLE}\n" + _TABLE_TEXT
    text += "".join(_bridge("add", bridge) for bridge in bridges)
    text += "".join(_limits("add", entry) + _port("add", entry) for entry in ports)
    text += "".join(_opening("add", entry) for entry in openings)
    lines = list(host)
    try:
        nftables.run(text + _host(lines))
        return len(lines)
    except nftables.Error:
        if not lines:
            raise
    nftables.run(text + _host(["drop"]))
    return set_host(lines)


def remove() -> None:
    """Take the table away; none is fine too."""
    nftables.run(f"add table {TABLE}\ndelete table {TABLE}\n")
    forwarding.beside_others(OWNER, [])


def set_host(rules: Iterable[str]) -> int:
    """What the host's own firewall lets in, as rules of the chain `host`. One that nft does not take is left out, and
    logged; where it takes none of them, nobody outside is let in. Returns how many there are then."""
    lines = list(rules)
    flush = f"flush chain {TABLE} host\n"
    try:
        nftables.run(flush + _host(lines))
        return len(lines)
    except nftables.Error as error:
        log.error("the host's rules for published ports are not all understood: %s", error)
    nftables.run(flush + _host(["drop"]))
    count = 1
    for line in reversed(lines):
        try:
            nftables.run(f"insert rule {TABLE} host {line}\n")
            count += 1
        except nftables.Error:
            log.error("a rule of the host's is left out for published ports: %s", line)
    return count


def _host(lines: Iterable[str]) -> str:
    return "".join(f"add rule {TABLE} host {line}\n" for line in lines)


_CHAINS = re.findall(r"chain (\w+) \{", _TABLE_TEXT)
_RULES = sum(
    line.strip() not in ("", "}") and not line.strip().startswith(("table", "set ", "map ", "chain", "type"))
    for line in _TABLE_TEXT.splitlines()
)


def is_whole(host: int = 0) -> bool:
    """Whether the table is there with all its chains and rules; `host`: as many as its chain `host` has."""
    try:
        rules = nftables.count_rules(TABLE)
        return nftables.chains(TABLE).issuperset(_CHAINS) and sum(rules[name] for name in _CHAINS) == _RULES + host
    except OSError:
        return False


def add_bridge(bridge: Bridge) -> None:
    nftables.run(_bridge("add", bridge))


def remove_bridge(bridge: Bridge) -> None:
    nftables.run(_bridge("delete", bridge))


def publish(ports: Iterable[Published]) -> None:
    nftables.run("".join(_limits("add", entry) + _port("add", entry) for entry in ports))


def unpublish(ports: Iterable[Published]) -> None:
    """Take ports away; those that are gone already are fine."""
    entries = list(ports)
    _take_away([*(_port("delete", entry) for entry in entries), *(_limits("delete", entry) for entry in entries)])


def open_to(openings: Iterable[Opening]) -> None:
    """Let some containers reach ports of others."""
    nftables.run("".join(_opening("add", entry) for entry in openings))


def close_to(openings: Iterable[Opening]) -> None:
    """The reverse; those that are gone already are fine."""
    _take_away(_opening("delete", entry) for entry in openings)


def _take_away(commands: Iterable[str]) -> None:
    """At once, or where something is gone already one by one, so that it keeps nothing else there."""
    text = "".join(commands)
    try:
        nftables.run(text)
        return
    except nftables.Error as error:
        if not any(word in str(error) for word in _GONE):
            raise
    for line in text.splitlines(keepends=True):
        try:
            nftables.run(line)
        except nftables.Error as error:
            if not any(word in str(error) for word in _GONE):
                raise
