# SPDX-License-Identifier: Apache-2.0
"""Forwarding between a host's interfaces, where it was off until we turned it on, and beside others who filter what is
forwarded. Called by the networks of the engine and of the builder.

Docker drops all forwarded packets but its own where it had to turn forwarding on. Its chain for others' rules,
DOCKER-USER, gets two of ours for each interface. Where we had to turn forwarding on, we do the same, in the same chain.
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
_LEGACY = "/proc/net/ip_tables_names"
IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"


def close_forwarding() -> None:
    """Forwarding was off until we turned it on: what is not ours is still not forwarded, unless somebody accepts it.

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


def has_forward_chain() -> bool:
    """Whether there is iptables' chain FORWARD, as its variant upon nf_tables makes it."""
    try:
        nftables.run(f"list chain {FORWARD}")
    except nftables.Error:
        return False
    return True


def beside_others(owner: str, interfaces: Iterable[str], chains: Iterable[str] = (DOCKER_USER,)) -> None:
    """In chains that drop what is not theirs: exactly these interfaces of the owner, a program of ours, are none of
    their business."""
    wanted = {f'{side} "{name}"' for name in interfaces for side in ("iifname", "oifname")}
    for chain in dict.fromkeys((*chains, DOCKER_USER, FORWARD)):
        try:
            listed = nftables.run(f"list chain {chain}", handles=True)
        except nftables.Error:
            continue
        ours = re.findall(rf'^\s*(.*?) (?:counter .*)?accept comment "{owner}" # handle (\d+)', listed, re.MULTILINE)
        here = wanted if chain in chains else set()
        text = "".join(f"delete rule {chain} handle {handle}\n" for rule, handle in ours if rule not in here)
        there = {rule for rule, _ in ours}
        text += "".join(f'insert rule {chain} {rule} accept comment "{owner}"\n' for rule in sorted(here - there))
        if text:
            try:
                nftables.run(text)
            except nftables.Error as error:
                log.warning("chain %s cannot be changed: %s", chain, error)


class Marker:
    """A file that is there from when a program of ours turned forwarding on until the machine is started anew: all of
    them share it, since the chain that is closed then is one for all."""

    def __init__(self, folder: str) -> None:
        """`folder`: of all programs' state that a reboot ends."""
        self._path = Path(folder) / "turned-forwarding-on"

    @property
    def there(self) -> bool:
        """Whether one of our programs has turned forwarding on since the machine was started."""
        return self._path.exists()

    def turn_on(self) -> None:
        """Let the host forward IPv4, and others' packets no more than before. OSError."""
        with open(IP_FORWARD, "r+") as file:
            if file.read().strip() == "1":
                return
            file.seek(0)
            file.write("1")
        self._path.touch()
        close_forwarding()

    def stand_beside_others(self, owner: str, interfaces: Iterable[str]) -> None:
        """The owner's interfaces pass the chains of those who drop what is not theirs, and what we closed ourselves."""
        if self.there and not has_forward_chain():
            close_forwarding()
        beside_others(owner, interfaces, (DOCKER_USER, *([FORWARD] if self.there else [])))
