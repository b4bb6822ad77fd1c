# SPDX-License-Identifier: Apache-2.0
"""firewalld(1) over D-Bus: what its zones let into this host, and a zone for interfaces of ours. Called by the engine's
view of the host's firewall, and by the builder's network.

The zone `teu` is made once, in firewalld's permanent configuration, where its owner can change it: its target is
`default`, so that the host's own services stay closed for containers, and the policy `teu-egress` lets them out to
everywhere else. A zone that is there is never changed but for interfaces that it lacks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from teu.systemd.bus import SYSTEM_BUS, Bus, BusError

NAME = "org.fedoraproject.FirewallD1"
PATH = "/org/fedoraproject/FirewallD1"
CONFIG_PATH = PATH + "/config"
TABLE = "inet firewalld"  # that it makes

ZONE = "teu"
ALL = "teu+"  # a wildcard, in its way
EGRESS, PUBLISHED, HOST = "teu-egress", "teu-published", "teu-host"
_POLICIES = {
    EGRESS: ("Containers reach everything but this host", [ZONE], ["ANY"]),
    PUBLISHED: ("Everybody reaches published ports of containers (firewall: docker)", ["ANY"], [ZONE]),
    HOST: ("Containers reach this host (firewall: docker)", [ZONE], ["HOST"]),
}
_TIMEOUT = 10.0
_PROGRAMS = ("/usr/sbin/firewalld", "/usr/bin/firewalld")


def is_installed() -> bool:
    """Who has it not is spared a connection."""
    return any(map(os.path.exists, _PROGRAMS))


class Zone(NamedTuple):
    """What is said of packets that come by its interfaces, or from its sources. `target`: default, ACCEPT, DROP or
    %%REJECT%%. `ports`: (port or range with a dash, protocol), those of its services too. `rules`: rich rules, as texts
    (firewalld.richlanguage(5))."""

    name: str
    interfaces: list[str]
    sources: list[str]
    target: str
    ports: list[tuple[str, str]]
    protocols: list[str]
    rules: list[str]
    is_default: bool


class Firewalld:
    """A connection. Use it as a context manager; not by several threads. Its methods raise OSError, BusError among
    those."""

    def __init__(self, path: str = SYSTEM_BUS) -> None:
        """Raises OSError where there is no bus, FileNotFoundError where firewalld is not on it: it is not started."""
        if not os.path.exists(path):
            raise FileNotFoundError(path)
        self._bus = Bus(path, _TIMEOUT)
        try:
            there = self._bus.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner", "s", (NAME,)
            )
            if not there[0]:
                raise FileNotFoundError("firewalld does not run")
        except BaseException:
            self._bus.close()
            raise

    def __enter__(self) -> Firewalld:
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.close()

    def _call(self, interface: str, member: str, signature: str = "", *values: Any, path: str = PATH) -> Any:
        """While firewalld reloads, it answers when it has done so."""
        found = self._bus.call(NAME, path, NAME + interface, member, signature, values)
        return found[0] if found else None

    # -- ours --------------------------------------------------------------------------------

    def let_out(self, interfaces: Iterable[str], everything: bool | None = None) -> list[str]:
        """These interfaces are in the zone `teu`, and what is in there reaches the world; `everything`: and the world
        what is in there, and that this host (None: as it is). Returns what was done, for the journal."""
        done = []
        if ZONE not in self._call(".config", "getZoneNames", path=CONFIG_PATH):
            self._call(
                ".config",
                "addZone2",
                "sa{sv}",
                ZONE,
                {
                    "version": ("s", "1.0"),
                    "short": ("s", ZONE),
                    "description": ("s", "Networks of containers, made by teud(8); see teu-firewall(7)"),
                    "target": ("s", "default"),
                    "interfaces": ("as", [ALL]),
                    "forward": ("b", True),
                },
                path=CONFIG_PATH,
            )
            done.append(f"zone {ZONE}")
        wanted = {EGRESS, PUBLISHED, HOST} if everything else {EGRESS}
        there = set(self._call(".config", "getPolicyNames", path=CONFIG_PATH))
        done += [self._add_policy(name) for name in sorted(wanted - there)]
        if everything is False:
            done += [self._remove_policy(name) for name in sorted(there & {PUBLISHED, HOST})]
        active = self._call(".zone", "getActiveZones")
        if done or ZONE not in active or not wanted <= set(self._call(".policy", "getPolicies")):
            self._call("", "reload")
            done.append("reload")
            active = self._call(".zone", "getActiveZones")
        held = {name for zone in active.values() for name in zone.get("interfaces", ())}
        for interface in interfaces:
            if not interface.startswith("teu") and interface not in held:
                self._call(".zone", "addInterface", "ss", ZONE, interface)
                done.append(f"interface {interface}")
        return done

    def _add_policy(self, name: str) -> str:
        description, ingress, egress = _POLICIES[name]
        self._call(
            ".config",
            "addPolicy",
            "sa{sv}",
            name,
            {
                "version": ("s", "1.0"),
                "short": ("s", name),
                "description": ("s", description),
                "target": ("s", "ACCEPT"),
                "ingress_zones": ("as", ingress),
                "egress_zones": ("as", egress),
            },
            path=CONFIG_PATH,
        )
        return f"policy {name}"

    def _remove_policy(self, name: str) -> str:
        path = self._call(".config", "getPolicyByName", "s", name, path=CONFIG_PATH)
        self._call(".config.policy", "remove", path=path)
        return f"policy {name} removed"

    # -- the host's --------------------------------------------------------------------------

    def zones(self) -> list[Zone]:
        """Those that something comes by, but ours; those of sources first, the default one last, as a packet is
        looked at."""
        default = self._call("", "getDefaultZone")
        active = dict(self._call(".zone", "getActiveZones"))
        active.setdefault(default, {})
        result = [self._zone(name, bound, name == default) for name, bound in active.items() if name != ZONE]
        return sorted(result, key=lambda zone: (zone.is_default, not zone.sources))

    def _zone(self, name: str, bound: dict[str, Any], is_default: bool) -> Zone:
        given = {key: value for key, (_, value) in self._call(".zone", "getZoneSettings2", "s", name).items()}
        ports = [(str(port), str(protocol)) for port, protocol in given.get("ports", ())]
        for service in given.get("services", ()):
            ports += self.service(service)
        return Zone(
            name,
            list(bound.get("interfaces", ())),
            list(bound.get("sources", ())),
            given.get("target", "default"),
            ports,
            list(given.get("protocols", ())),
            list(given.get("rules_str", ())),
            is_default,
        )

    def service(self, name: str, depth: int = 0) -> list[tuple[str, str]]:
        """The ports of a service, and of those that it includes; none where it is not known."""
        try:
            found = self._call("", "getServiceSettings2", "s", name)
        except BusError:
            return []
        ports = [(str(port), str(protocol)) for port, protocol in found.get("ports", ("", ()))[1]]
        if depth < 4:
            for other in found.get("includes", ("", ()))[1]:
                ports += self.service(other, depth + 1)
        return ports

    def ipset(self, name: str) -> list[str]:
        """Its entries; none where it is not known."""
        try:
            return list(self._call(".ipset", "getEntries", "s", name))
        except BusError:
            return []
