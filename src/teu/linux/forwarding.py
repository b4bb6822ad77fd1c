# SPDX-License-Identifier: Apache-2.0
"""Forwarding between a host's interfaces, where it was off until we turned it on, and beside others who filter what is
forwarded. Called by the networks of the engine and of the builder.

Docker drops all forwarded packets but its own where it had to turn forwarding on. Its chain for others' rules,
DOCKER-USER, gets two of ours for each interface. Where we had to turn forwarding on, we do the same, in the same chain.

ufw drops what none of its rules accepts. Its chain for what comes after those, ufw-after-forward, gets the same two at
its end: what `ufw route` says of them holds, and what nothing is said of is let through. That is the containers' way
out; what may come in is decided where ports are published.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from teu.linux import nftables

log = logging.getLogger("teu.linux")

DOCKER_USER = "ip filter DOCKER-USER"
FORWARD = "ip filter FORWARD"
DOCKER_USER6 = "ip6 filter DOCKER-USER"
FORWARD6 = "ip6 filter FORWARD"
UFW, UFW6 = "ip filter ufw-after-forward", "ip6 filter ufw6-after-forward"
_LEGACY = "/proc/net/ip_tables_names"
IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
IPV6_FORWARD = "/proc/sys/net/ipv6/conf/all/forwarding"
_IPV6_CONF = "/proc/sys/net/ipv6/conf"


def close_forwarding() -> None:
    """Forwarding is off, and we turn it on: what is not ours is still not forwarded, unless somebody accepts it.

    That is iptables' own chain with policy drop, as Docker sets it: the one place where an administrator, libvirt or
    a Docker that comes later can accept what is theirs, which a drop in a table of our own would not let them."""
    try:
        with open(_LEGACY) as file:
            legacy = "filter" in file.read().split()
    except OSError:
        legacy = False
    if legacy:
        log.warning(
            "IP forwarding was turned on, and this host's iptables is the legacy one: other machines' packets are"
            " forwarded too, unless you set a policy (iptables-legacy -P FORWARD DROP)"
        )
        return
    try:
        nftables.run(
            f"add table ip filter\nadd chain {FORWARD} {{ type filter hook forward priority filter; policy drop; }}\n"
        )
    except nftables.Error as error:
        log.warning("IP forwarding was turned on, and is not closed for other machines' packets: %s", error)


def close_forwarding6() -> None:
    """The same for IPv6, before it is turned on."""
    try:
        nftables.run(
            f"add table ip6 filter\nadd chain {FORWARD6} {{ type filter hook forward priority filter; policy drop; }}\n"
        )
    except nftables.Error as error:
        log.warning("IPv6 forwarding is turned on, and is not closed for other machines' packets: %s", error)


def forwards(version: int) -> bool:
    """Whether the host forwards a family's packets."""
    try:
        return Path(IP_FORWARD if version == 4 else IPV6_FORWARD).read_text().strip() == "1"
    except OSError:
        return False


def keep_routes_of_advertisements() -> None:
    """A host that forwards IPv6 does not listen to routers any more, unless its interfaces say they do all the same:
    those that listen now shall go on, else the host loses its own way out."""
    for path in Path(_IPV6_CONF).glob("*/accept_ra"):
        try:
            if path.parent.name != "all" and path.read_text().strip() == "1":
                path.write_text("2")
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)


def has_chain(chain: str = FORWARD) -> bool:
    """Whether there is a chain, by default iptables' FORWARD, as its variant upon nf_tables makes it."""
    table, _, name = chain.rpartition(" ")
    try:
        return name in nftables.chains(table)
    except OSError:
        return False


def _known_chains() -> set[str]:
    """Those of iptables' own tables, of both families."""
    try:
        return {f"{table} {chain}" for table in ("ip filter", "ip6 filter") for chain in nftables.chains(table)}
    except OSError:
        return set()


def beside_others(owner: str, interfaces: Iterable[str], chains: Iterable[str] = (DOCKER_USER,)) -> None:
    """In chains that drop what is not theirs: exactly these interfaces of the owner, a program of ours, are none of
    their business."""
    wanted = [f'{side} "{name}"' for name in interfaces for side in ("iifname", "oifname")]
    chains = tuple(chains)
    there = _known_chains()
    for chain in dict.fromkeys((*chains, DOCKER_USER, FORWARD, UFW, DOCKER_USER6, FORWARD6, UFW6)):
        if chain not in there:
            continue
        try:
            listed = nftables.run(f"list chain {chain}", handles=True)
        except nftables.Error:
            continue
        ours = re.findall(rf'^\s*(.*?) (?:counter .*)?accept comment "{owner}" # handle (\d+)', listed, re.MULTILINE)
        here = wanted if chain in chains or chain in (UFW, UFW6) else []
        verb = "add" if chain in (UFW, UFW6) else "insert"
        text = "".join(f"delete rule {chain} handle {handle}\n" for rule, handle in ours if rule not in here)
        missing = sorted(set(here) - {rule for rule, _ in ours})
        text += "".join(f'{verb} rule {chain} {rule} accept comment "{owner}"\n' for rule in missing)
        if text:
            try:
                nftables.run(text)
            except nftables.Error as error:
                log.warning("chain %s cannot be changed: %s", chain, error)


def concerns(change: nftables.Change) -> bool:
    """Whether somebody's change of the ruleset may be one of a chain in which we stand beside others."""
    if change.table not in ("ip filter", "ip6 filter"):
        return False
    here = f"{change.table} {change.chain}" in (DOCKER_USER, FORWARD, UFW, DOCKER_USER6, FORWARD6, UFW6)
    return change.kind == "new chain" or change.kind in ("delete rule", "delete chain") and here


class Marker:
    """A file that is there from when a program of ours turned forwarding on until the machine is started anew: all of
    them share it, since the chain that is closed then is one for all."""

    def __init__(self, folder: str) -> None:
        """`folder`: of all programs' state that a reboot ends."""
        self._path = Path(folder) / "turned-forwarding-on"
        self._path6 = Path(folder) / "turned-forwarding6-on"

    @property
    def there(self) -> bool:
        """Whether one of our programs has turned forwarding on since the machine was started."""
        return self._path.exists()

    def turn_on(self, version: int = 4) -> None:
        """Let the host forward a family, and others' packets no more than before. OSError."""
        if forwards(version):
            return
        if version == 6:
            self._path6.touch()
            close_forwarding6()
            keep_routes_of_advertisements()
            Path(IPV6_FORWARD).write_text("1")
            return
        # Who dies in between leaves no router to others behind.
        self._path.touch()
        close_forwarding()
        Path(IP_FORWARD).write_text("1")

    def keep_closed(self) -> None:
        """What others' packets were closed by may be gone since, with all rules of the host."""
        if self.there and not has_chain():
            close_forwarding()
        if self._path6.exists() and not has_chain(FORWARD6):
            close_forwarding6()

    def stand_beside_others(self, owner: str, interfaces: Iterable[str], everywhere: bool = False) -> None:
        """The owner's interfaces pass the chains of those who drop what is not theirs, and what we closed ourselves.
        Where ufw is there its own chain is the place, so that it has the first word: docker's and the closed one come
        before. `everywhere`: there all the same, and in iptables' FORWARD, whoever closed it, as with Docker."""
        self.keep_closed()
        chains = []
        for docker, forward, ours, ufw in (
            (DOCKER_USER, FORWARD, self._path, UFW),
            (DOCKER_USER6, FORWARD6, self._path6, UFW6),
        ):
            if everywhere or not has_chain(ufw):
                chains += [docker, forward] if everywhere or ours.exists() else [docker]
        beside_others(owner, interfaces, chains)
