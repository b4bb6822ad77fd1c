# SPDX-License-Identifier: Apache-2.0
"""What ufw(8) lets into this host, as its own files say it. Called by the engine's view of the host's firewall.

    /etc/ufw/ufw.conf         ENABLED
    /etc/default/ufw          the policies; whether it has IPv6
    /etc/ufw/user.rules       the rules that `ufw` was given, as lines that begin with `### tuple ###`
    /etc/ufw/user6.rules      those for IPv6

A tuple has the words action, protocol, port, destination, source port, source, two more where it is of an application
profile, and last the direction with its interfaces: `in`, `in_eth0`, `in_eth0!out_eth1`. Actions are allow, deny,
reject and limit, with `route:` before them where they are of forwarded packets, and `_log` or `_log-all` behind them.
"""

from __future__ import annotations

import logging
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("teu.linux")

ROOT = "/"
_TUPLE = "### tuple ### "
ACTIONS = {"allow": "accept", "limit": "accept", "deny": "drop", "reject": "reject"}
POLICIES = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject"}


class Rule(NamedTuple):
    """`version`: 4 or 6. `forwarded`: of packets on their way, at their own destination's address and port; else of
    such as come to this host. Empty texts are for any; `ports` is as `80,443,6000:6007`."""

    version: int
    action: str
    forwarded: bool
    protocol: str
    ports: str
    destination: str
    source_ports: str
    source: str
    interface: str
    out: str


class Ufw(NamedTuple):
    """`policy` and `policy6`: accept, drop or reject, for what no rule is about."""

    rules: list[Rule]
    policy: str
    policy6: str


def read(root: str = ROOT) -> Ufw | None:
    """What applies now; None where ufw is not there or not enabled. A line that is not understood is left out, and
    logged."""
    if _settings(f"{root}/etc/ufw/ufw.conf").get("ENABLED", "no").lower() != "yes":
        return None
    defaults = _settings(f"{root}/etc/default/ufw")
    policy = POLICIES.get(defaults.get("DEFAULT_INPUT_POLICY", "").upper(), "drop")
    has_ipv6 = defaults.get("IPV6", "no").lower() == "yes"
    rules = _rules(f"{root}/etc/ufw/user.rules", 4)
    if has_ipv6:
        rules += _rules(f"{root}/etc/ufw/user6.rules", 6)
    return Ufw(rules, policy, policy if has_ipv6 else "accept")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _settings(path: str) -> dict[str, str]:
    result = {}
    for line in _lines(path):
        name, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#"):
            result[name.strip()] = value.strip().strip("\"'")
    return result


def _rules(path: str, version: int) -> list[Rule]:
    result = []
    for line in _lines(path):
        if line.startswith(_TUPLE):
            try:
                rule = parse(line[len(_TUPLE) :], version)
            except ValueError as error:
                log.warning("%s: a rule of ufw is not understood: %s (%s)", path, line[len(_TUPLE) :], error)
                continue
            if rule is not None:
                result.append(rule)
    return result


def parse(text: str, version: int) -> Rule | None:
    """Of one tuple; None for what is of outgoing packets. Raises ValueError."""
    words = [word for word in text.split() if not word.startswith("comment=")]
    if len(words) not in (7, 9):
        raise ValueError(f"{len(words)} words")
    action, protocol, ports, destination, source_ports, source = words[:6]
    forwarded = action.startswith("route:")
    verdict = ACTIONS[known] if (known := action.removeprefix("route:").partition("_")[0]) in ACTIONS else ""
    if not verdict:
        raise ValueError(f"action {action}")
    interfaces = {"in": "", "out": ""}
    for part in words[-1].split("!"):
        side, _, name = part.partition("_")
        if side not in interfaces:
            raise ValueError(f"direction {words[-1]}")
        interfaces[side] = name
    if not forwarded and words[-1].startswith("out"):
        return None
    return Rule(
        version,
        verdict,
        forwarded,
        "" if protocol == "any" else protocol,
        _ports(ports),
        _network(destination, version),
        _ports(source_ports),
        _network(source, version),
        interfaces["in"],
        interfaces["out"],
    )


def _ports(text: str) -> str:
    if text == "any":
        return ""
    for part in text.replace(":", ",").split(","):
        if not part.isascii() or not part.isdigit() or int(part) > 65535:
            raise ValueError(f"port {text}")
    return text


def _network(text: str, version: int) -> str:
    found = ip_network(text, strict=False)
    if found.version != version:
        raise ValueError(f"address {text}")
    return str(found) if found.prefixlen else ""
