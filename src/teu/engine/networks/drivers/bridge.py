# SPDX-License-Identifier: Apache-2.0
"""The driver bridge: a bridge of the host's for each network in use, and a pair of interfaces for each container on it.

kernel     teu0, teu-HEX             a bridge per network in use
           teuHEXn                   our end of a container's veth pair, n-th network (hexadecimal)
           table inet teu            firewall.py
run        ../turned-forwarding-on   it was off until we, or the builder, turned it on

A container reaches its own published port: its bridge port is in hairpin mode, for hosts where br_netfilter redirects
frames inside the bridge. enable_icc=false isolates the bridge's ports from each other, and a rule does the same for
what is routed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest, Conflict, EngineError
from teu.engine.networks import firewall, ipam
from teu.engine.networks.drivers.driver import Context, Plug
from teu.engine.networks.model import Endpoint, Network
from teu.engine.networks.records import Subnet
from teu.engine.networks.requests import (
    FALSE,
    INTERFACE,
    OPTION_BINDING,
    OPTION_BRIDGE,
    OPTION_MASQUERADE,
    OPTION_MTU,
    OPTION_PREFIX,
    OPTION_TALK,
    TRUE,
)
from teu.linux import nftables
from teu.linux.forwarding import Marker

if TYPE_CHECKING:
    from teu.linux.netlink import Link, Socket
    from teu.linux.nftables import Change

log = logging.getLogger("teu.engine")

VETH = re.compile(r"teu[0-9a-f]{10}[0-9a-f]{1,2}\Z")
BRIDGE = re.compile(r"teu-[0-9a-f]{11}\Z")

OPTION_DEFAULT = "com.docker.network.bridge.default_bridge"  # what inspect says of docker0; people copy it
USED_OPTIONS = (OPTION_BRIDGE, OPTION_TALK, OPTION_MASQUERADE, OPTION_BINDING, OPTION_MTU, OPTION_PREFIX)
# Known to docker, and here only in the one value that says how things are anyway.
_FIXED_OPTIONS = {
    "com.docker.network.bridge.inhibit_ipv4": "false",
    "com.docker.network.bridge.gateway_mode_ipv4": "nat",
    "com.docker.network.enable_ipv4": "true",
    "com.docker.network.enable_ipv6": "false",
    "com.docker.network.internal": "false",
}


class Bridge:
    """The driver bridge: a Linux bridge for each network, and a pair of interfaces for each container on it."""

    own_namespace = True
    connects = True

    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._active = context.active
        self._forwarding = Marker(os.path.dirname(context.exec_root))
        self._stopping = context.stopping
        self._table = False
        self._watcher: threading.Thread | None = None

    def start(self) -> None:
        nftables.reserve()

    def options(self, options: dict[str, str]) -> list[str]:
        return _check_options(options)

    def check(self, options: dict[str, str]) -> None:
        for other in self._store.all():
            if other.driver == "bridge" and other.interface == options.get(OPTION_BRIDGE):
                raise Conflict(f"network {other.name} has the bridge {other.interface}")

    def delete(self, network: Network) -> None:
        if BRIDGE.match(network.interface) or network.record.own_bridge:
            with contextlib.suppress(OSError):
                self._kernel.delete_link(network.interface)

    def _on_network(self, network: Network) -> int:
        """How many endpoints it has."""
        return sum(endpoint.network == network.id for active in self._active.values() for endpoint in active.endpoints)

    def up(self, network: Network) -> int:
        found = self._kernel.socket().link(network.interface) if self._on_network(network) else None
        return self._bring_up(network) if found is None else found.number

    def _bring_up(self, network: Network) -> int:
        """The network's bridge with its address, the forwarding and the table's entries; returns its index."""
        from teu.linux import netlink

        kernel = self._kernel.socket()
        if network.pool is None and network.name == "bridge":
            subnet = ipam.choose_subnet([*self._store.subnets(), *kernel.routes()])
            network.record.subnets = [Subnet(str(subnet), str(next(subnet.hosts())))]
            network.pool = Network(network.record).pool
            self._store.save(network)
        name, pool = network.interface, network.addressing()
        found = kernel.link(name)
        if found is None:
            kernel.send([netlink.new_bridge(name, network.mtu)])
            found = kernel.link(name)
            if not BRIDGE.match(name) and network.is_user_defined and not network.record.own_bridge:
                network.record.own_bridge = True  # one that was there before is spared at the network's removal
                self._store.save(network)
        elif found.kind != "bridge":
            raise EngineError(f"interface {name} is not a bridge; rename it, or remove network {network.name}")
        index = netlink.link_index(found)
        with contextlib.suppress(FileExistsError):
            kernel.send([netlink.add_address(index, pool.gateway, pool.subnet.prefixlen)])
        self._forwarding.turn_on()
        _set(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "1")
        # Who can send router advertisements in a container is not the host's router (CVE-2020-13401).
        ipv6 = f"/proc/sys/net/ipv6/conf/{name}/accept_ra"
        if os.path.exists(ipv6):
            _set(ipv6, "0")
        return index

    def attach(self, network: Network, endpoint: Endpoint, on: int, namespace: int, mac: str, inner: Socket) -> Plug:
        from teu.linux import netlink

        if not self._table:
            self._rebuild_table()
        elif self._on_network(network) == 1:
            self._in_table(lambda: firewall.add_bridge(network.bridge()))
            self._beside_others()
        # Before the other end is up: who may not reach its neighbours never could.
        link = [netlink.new_veth(endpoint.veth, on, endpoint.interface, namespace, mac, network.mtu)]
        if not network.talk:
            link.append(netlink.isolated(endpoint.veth))
        try:
            self._kernel.socket().send(link)
        except FileExistsError:
            self._kernel.delete_link(endpoint.veth)
            self._kernel.socket().send(link)
        inside = inner.link(endpoint.interface)
        number = netlink.link_index(inside)
        assert inside is not None
        return Plug(number, inside.peer)

    def publish(self, endpoint: Endpoint, entries: list[firewall.Published]) -> None:
        from teu.linux import netlink

        # A container may use its own published port. Where br_netfilter redirects a frame while it is still
        # the bridge's, that leaves by the port it came from.
        self._kernel.socket().send([netlink.hairpin(endpoint.veth)])
        self._in_table(lambda: firewall.publish(entries))

    def unpublish(self, entries: list[firewall.Published]) -> None:
        self._in_table(lambda: firewall.unpublish(entries))

    def withdraw(self, entries: list[firewall.Published]) -> None:
        try:
            firewall.unpublish(entries)
        except Exception as error:
            log.error("published ports cannot be taken out of the table: %s", error)

    def detach(self, network: Network | None, endpoint: Endpoint) -> None:
        # The kernel takes some 10 ms to delete a pair; nobody waits for it. By its number: the next pair of the same
        # container has the same name, and may be there before this is done.
        if not endpoint.number:  # it was never seen
            with contextlib.suppress(OSError):
                self._kernel.delete_link(endpoint.veth)
        else:
            threading.Thread(target=self._drop_veth, args=(endpoint,), name="veth", daemon=True).start()
        if network is None or network.pool is None:  # its record is damaged
            return
        if not any(active.endpoints for active in self._active.values()):
            if self._table:
                self._table = False
                firewall.remove()
        elif not self._on_network(network):
            self._in_table(lambda: firewall.remove_bridge(network.bridge()))
            self._beside_others()

    def _drop_veth(self, endpoint: Endpoint) -> None:
        from teu.linux import netlink

        try:
            with netlink.Socket() as kernel:
                kernel.send([netlink.delete_index(endpoint.number)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.warning("interface %s cannot be deleted: %s", endpoint.veth, error)

    def recover(self, links: list[Link], unknown: set[str]) -> None:
        expected = {endpoint.veth for active in self._active.values() for endpoint in active.endpoints}
        bridges = {network.interface for network in self._store.all()}
        for link in links:
            stray = (
                VETH.match(link.name)
                and link.kind == "veth"
                and link.name not in expected
                and link.name[3:13] not in unknown
            )
            lost = BRIDGE.match(link.name) and link.kind == "bridge" and link.name not in bridges
            if stray or lost:
                with contextlib.suppress(OSError):
                    self._kernel.delete_link(link.name)
        with _logged("the table of rules cannot be made"):
            if expected:
                self._rebuild_in_parts()
            else:
                firewall.remove()

    # -- the table ---------------------------------------------------------------------------

    def _rebuild_table(self) -> None:
        firewall.rebuild(*self._rules())
        self._table_is_there()

    def _rules(self) -> tuple[list[firewall.Bridge], list[firewall.Published]]:
        return (
            [network.bridge() for network in self._used() if network.pool is not None],
            [entry for active in self._active.values() for entry in active.published],
        )

    def _used(self) -> list[Network]:
        """The networks that somebody is on."""
        used = {endpoint.network for active in self._active.values() for endpoint in active.endpoints}
        return [network for identity in used if (network := self._store.by_id(identity)) is not None]

    def _rebuild_in_parts(self) -> None:
        """The whole table at once, or where something in it does not fit the rest, all but that."""
        try:
            self._rebuild_table()
            return
        except nftables.Error as error:
            log.error("the table of rules cannot be made at once: %s", error)
        firewall.rebuild([], [])
        bridges, ports = self._rules()
        for bridge in bridges:
            with _logged("network interface %s has no rules", bridge.name):
                firewall.add_bridge(bridge)
        for entry in ports:
            with _logged("port %s is not published any more", str(entry.host_port)):
                firewall.publish([entry])
        self._table_is_there()

    def _table_is_there(self) -> None:
        self._table = True
        self._beside_others()
        if self._watcher is None:
            self._watch()

    def _in_table(self, change: Callable[[], None]) -> None:
        """A change of the table; where it is not as we left it, it is built anew, of what is so after the change."""
        if not self._table:
            return
        try:
            change()
        except nftables.Error as error:
            if firewall.is_whole():
                raise
            log.warning("the rules of the networks are gone (%s), and are made anew", error)
            self._rebuild_table()

    def _beside_others(self) -> None:
        """Our interfaces pass the chains of those who drop what is not theirs, and what we ourselves closed."""
        named = [network.interface for network in self._used()]
        interfaces = ["teu*", *sorted(name for name in named if not name.startswith("teu"))]
        self._forwarding.stand_beside_others(firewall.OWNER, interfaces)

    def _watch(self) -> None:
        """Build the table again when somebody else empties the ruleset, as reloading nftables' own service does."""

        def body() -> None:
            while not self._stopping.is_set():
                changed = changes.wait()
                if changed is not None and not any(_concerns(change) for change in changed):
                    continue
                try:
                    self._mend_table()
                except Exception as error:
                    log.error("the rules of the networks cannot be made anew: %s", error)

        try:
            changes = nftables.Changes()
        except OSError as error:
            log.warning("changes of the ruleset cannot be watched: %s", error)
            return
        self._watcher = threading.Thread(target=body, name="ruleset", daemon=True)
        self._watcher.start()

    def _mend_table(self) -> None:
        with self._store.lock:
            if not self._table or self._stopping.is_set():
                return
            if firewall.is_whole():
                self._beside_others()
                return
            log.warning("somebody has emptied the ruleset: the rules of the networks are made anew")
            self._rebuild_table()
            if not firewall.is_whole():
                raise EngineError("somebody takes them away at once; they are made with the next container")


@contextlib.contextmanager
def _logged(what: str, *arguments: str) -> Iterator[None]:
    """What fails is logged and over."""
    try:
        yield
    except Exception:
        log.exception(what, *arguments)


def _concerns(change: Change) -> bool:
    """Whether somebody's change of the ruleset may be one of ours to mend."""
    if change.table == firewall.TABLE:
        return change.kind.startswith("delete")
    return change.table == "ip filter" and change.kind == "new chain"


def _set(path: str, value: str) -> bool:
    """True where it was another value before."""
    with open(path, "r+") as file:
        if file.read().strip() == value:
            return False
        file.seek(0)
        file.write(value)
        return True


def _check_options(options: dict[str, str]) -> list[str]:
    """Options of a bridge; the names of those that mean nothing to it, which are kept and shown all the same."""
    without = []
    for option, value in options.items():
        if option in (OPTION_TALK, OPTION_MASQUERADE):
            if value not in TRUE + FALSE:
                raise BadRequest(f"failed to parse {option} value: {value!r} is neither true nor false")
        elif option == OPTION_BRIDGE:
            if not INTERFACE.match(value) or value in ("teu0", ".", ".."):
                raise BadRequest(f"{option}: invalid name of a bridge: {value!r}")
        elif option == OPTION_PREFIX:
            if not re.fullmatch(r"[a-zA-Z_.-][a-zA-Z0-9_.-]{0,11}", value) or value == "lo":
                raise BadRequest(f"failed to parse {option} value: {value!r} is no beginning of an interface's name")
        elif option == OPTION_MTU:
            if not (value.isascii() and value.isdigit() and 68 <= int(value[:9]) <= 65535):
                raise BadRequest(f"{option}: invalid MTU: {value!r}")
        elif option == OPTION_BINDING:
            try:
                IPv4Address(value)
            except ValueError:
                raise BadRequest(f"failed to parse {option} value: {value!r} is no IPv4 address") from None
        elif option in _FIXED_OPTIONS:
            fixed = _FIXED_OPTIONS[option]
            same = value == fixed or fixed in ("true", "false") and value in (TRUE if fixed == "true" else FALSE)
            if not same:
                raise BadRequest(f"option {option} is not supported: {value!r} was given, it is always {fixed!r} here")
        elif option.startswith("com.docker.network.") and option != OPTION_DEFAULT:
            raise BadRequest(f"option {option} is not supported; bridges know {', '.join(USED_OPTIONS)}")
        else:
            without.append(option)
    return without
