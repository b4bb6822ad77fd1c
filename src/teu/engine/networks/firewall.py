# SPDX-License-Identifier: Apache-2.0
"""The engine's nftables table: `inet teu`. Called by the driver bridge.

    table inet teu
    ├── sets   bridges, internal      interfaces of ours; those without a way out
    │          within                 (in, out) bridges between which containers may talk
    │          subnets                (addresses, addresses) of one bridge each
    │          masqueraded            addresses that go out under the host's own
    ├── maps   published              protocol, port                  -> container's address, port
    │          published_at           host address, protocol, port    -> container's address, port
    ├── guard         prerouting, raw     the host's 127.0.0.0/8 is out of every container's reach
    ├── incoming      prerouting, dstnat  published ports, from outside and from containers
    ├── own           output, -100        published ports, from the host itself
    ├── between       forward, filter     replies and published ports in, containers out, the rest dropped
    └── outgoing      postrouting, srcnat masquerading

A container is an element of a map, whatever their number; rules never change. The table exists while a
container is attached to a bridge. Nothing here accepts on behalf of the host's own firewall: a packet that
another table's forward chain drops stays dropped, so a host's policy holds for published ports too
(`ct original proto-dst` tells there which port was published).

Docker on the same host drops all forwarded packets but its own where it had to turn forwarding on. Its chain for
others' rules, DOCKER-USER, gets two of ours while the table exists: our interfaces are none of its business. Where we
had to turn forwarding on, we do the same (teu.linux.forwarding), in the same chain.

Somebody may flush the whole ruleset (`systemctl reload nftables` does): the driver watches the kernel's notices and
builds the table again.

A bridge has route_localnet set so that 127.0.0.1:PORT of the host reaches a container; `guard` takes back
what that would open in the other direction (the exposure known as CVE-2020-8558).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from teu.linux import forwarding, nftables

TABLE = "inet teu"
OWNER = "teu"  # who we are in the comments of rules in others' chains

_TABLE_TEXT = """
table inet teu {
    set bridges { type ifname; }
    set internal { type ifname; }
    set within { type ifname . ifname; }
    set subnets { type ipv4_addr . ipv4_addr; flags interval; }
    set masqueraded { type ipv4_addr; flags interval; }
    map published { type inet_proto . inet_service : ipv4_addr . inet_service; }
    map published_at { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
    chain guard {
        type filter hook prerouting priority raw; policy accept;
        iifname @bridges ip daddr 127.0.0.0/8 drop
        iifname @bridges ip saddr 127.0.0.0/8 drop
    }
    chain incoming {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump ports
    }
    chain own {
        type nat hook output priority -100; policy accept;
        fib daddr type local jump ports
    }
    chain ports {
        meta l4proto { tcp, udp, sctp } dnat ip to ip daddr . meta l4proto . th dport map @published_at
        meta l4proto { tcp, udp, sctp } dnat ip to meta l4proto . th dport map @published
    }
    chain between {
        type filter hook forward priority filter; policy accept;
        iifname @internal oifname . iifname != @within drop
        oifname @internal oifname . iifname != @within drop
        oifname @bridges ct state established,related accept
        oifname @bridges ct status dnat accept
        iifname . oifname @within accept
        oifname @bridges drop
    }
    chain outgoing {
        type nat hook postrouting priority srcnat; policy accept;
        oifname @bridges ip saddr 127.0.0.0/8 masquerade
        ip saddr . ip daddr @subnets ct status dnat masquerade
        ip saddr @masqueraded ip saddr . ip daddr != @subnets masquerade
    }
}
"""


class Published(NamedTuple):
    """One published port. A host address of 0.0.0.0 means every one."""

    protocol: str
    host_address: str
    host_port: int
    address: str
    port: int


class Bridge(NamedTuple):
    name: str
    subnet: IPv4Network
    internal: bool
    masquerade: bool
    talk: bool


def _port(verb: str, entry: Published) -> str:
    value = f" : {entry.address} . {entry.port}" if verb == "add" else ""
    if IPv4Address(entry.host_address).is_unspecified:
        return f"{verb} element {TABLE} published {{ {entry.protocol} . {entry.host_port}{value} }}\n"
    key = f"{entry.host_address} . {entry.protocol} . {entry.host_port}"
    return f"{verb} element {TABLE} published_at {{ {key}{value} }}\n"


def _bridge(verb: str, bridge: Bridge) -> str:
    name = f'"{bridge.name}"'
    text = f"{verb} element {TABLE} bridges {{ {name} }}\n"
    text += f"{verb} element {TABLE} subnets {{ {bridge.subnet} . {bridge.subnet} }}\n"
    if bridge.talk:
        text += f"{verb} element {TABLE} within {{ {name} . {name} }}\n"
    if bridge.internal:
        text += f"{verb} element {TABLE} internal {{ {name} }}\n"
    elif bridge.masquerade:
        text += f"{verb} element {TABLE} masqueraded {{ {bridge.subnet} }}\n"
    return text


def rebuild(bridges: Iterable[Bridge], ports: Iterable[Published]) -> None:
    """Replace the whole table, in one transaction: what is found after a start, the first container, and whatever
    somebody else took out of it."""
    text = f"add table {TABLE}\ndelete table {TABLE}\n" + _TABLE_TEXT
    text += "".join(_bridge("add", bridge) for bridge in bridges)
    text += "".join(_port("add", entry) for entry in ports)
    nftables.run(text)


def remove() -> None:
    """Take the table away; none is fine too."""
    nftables.run(f"add table {TABLE}\ndelete table {TABLE}\n")
    forwarding.beside_others(OWNER, [])


_CHAINS = re.findall(r"chain (\w+) \{", _TABLE_TEXT)
_RULES = sum(
    line.strip() not in ("", "}") and not line.strip().startswith(("table", "set", "map", "chain", "type"))
    for line in _TABLE_TEXT.splitlines()
)


def is_whole() -> bool:
    """Whether the table is there with all its chains and rules."""
    try:  # one by one: the library caches for the first command alone
        listed = "".join(nftables.run(f"list chain {TABLE} {name}", handles=True) for name in _CHAINS)
    except nftables.Error:
        return False
    return len(re.findall(r"[^{] # handle \d+$", listed, re.MULTILINE)) == _RULES


def add_bridge(bridge: Bridge) -> None:
    nftables.run(_bridge("add", bridge))


def remove_bridge(bridge: Bridge) -> None:
    nftables.run(_bridge("delete", bridge))


def publish(ports: Iterable[Published]) -> None:
    nftables.run("".join(_port("add", entry) for entry in ports))


def unpublish(ports: Iterable[Published]) -> None:
    """Take ports away; those that are gone already are fine."""
    for entry in ports:
        try:
            nftables.run(_port("delete", entry))
        except nftables.Error as error:
            if "No such file" not in str(error):
                raise
