# SPDX-License-Identifier: Apache-2.0
"""The engine's nftables table: `inet teu`. Called by networks.

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
others' rules, DOCKER-USER, gets two of ours while the table exists: our interfaces are none of its business.

A bridge has route_localnet set so that 127.0.0.1:PORT of the host reaches a container; `guard` takes back
what that would open in the other direction (the exposure known as CVE-2020-8558).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from teu.linux import nftables

log = logging.getLogger("teu.engine")

TABLE = "inet teu"

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
    """Replace the whole table, in one transaction: what is found after a start, and the first container."""
    text = f"add table {TABLE}\ndelete table {TABLE}\n" + _TABLE_TEXT
    text += "".join(_bridge("add", bridge) for bridge in bridges)
    text += "".join(_port("add", entry) for entry in ports)
    nftables.run(text)
    _beside_docker(True)


def remove() -> None:
    """Take the table away; none is fine too."""
    nftables.run(f"add table {TABLE}\ndelete table {TABLE}\n")
    _beside_docker(False)


def _beside_docker(present: bool) -> None:
    chain = "ip filter DOCKER-USER"
    try:
        listed = nftables.run(f"list chain {chain}", handles=True)
    except nftables.Error:
        return
    ours = re.findall(r'comment "teu" # handle (\d+)', listed)
    text = ""
    if not present:
        text = "".join(f"delete rule {chain} handle {handle}\n" for handle in ours)
    elif not ours:
        text = "".join(f'insert rule {chain} {side} "teu*" accept comment "teu"\n' for side in ("iifname", "oifname"))
    if text:
        try:
            nftables.run(text)
        except nftables.Error as error:
            log.warning("Docker's chain DOCKER-USER cannot be changed: %s", error)


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
