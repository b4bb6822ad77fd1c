# SPDX-License-Identifier: Apache-2.0
"""The driver bridge: a bridge of the host's for each network in use, and a pair of interfaces for each container on it.

kernel     teu0, teu-HEX             a bridge per network in use
           teuHEXn                   our end of a container's veth pair, n-th network (hexadecimal)
           table inet teu            firewall.py
run        ../turned-forwarding-on   it was off until we, or the builder, turned it on

A container reaches its own published port: its bridge port is in hairpin mode, for hosts where br_netfilter redirects
frames inside the bridge. enable_icc=false isolates the bridge's ports from each other, and a rule does the same for
what is routed. A link leads around that by way of the host: it answers for the neighbour (proxy_arp_pvlan; for IPv6
for the two addresses alone), and another rule lets through what the link is for.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest, EngineError, Forbidden
from teu.engine.networks import firewall, hostfirewall
from teu.engine.networks.drivers.driver import Context, Plug, Wish
from teu.engine.networks.drivers.occupancy import Occupancy
from teu.engine.networks.ipam import Address
from teu.engine.networks.model import Endpoint, Network
from teu.engine.networks.options import OPTION_BRIDGE, check_bridge
from teu.linux import forwarding, nftables
from teu.linux.forwarding import Marker, forwards
from teu.systemd import firewalld

if TYPE_CHECKING:
    from teu.linux.netlink import Link, Socket
    from teu.linux.nftables import Change

log = logging.getLogger("teu.engine")

SETTLE_SECONDS = 0.2  # in which a change of the host's firewall comes to an end
END_SECONDS = 2.0  # for the watcher, which may be in the middle of asking firewalld
VETH = re.compile(r"teu[0-9a-f]{10}[0-9a-f]{1,2}\Z")
BRIDGE = re.compile(r"teu-[0-9a-f]{11}\Z")

# The bridge's own address, by which its neighbours know it as a router (RFC 4861, 4.2).
LINK_LOCAL = IPv6Address("fe80::1")
LOOPBACK = IPv6Address("::1")
_CONF = "/proc/sys/net/ipv6/conf"
_FILTERED = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"


class Bridge:
    """The driver bridge: a Linux bridge for each network, and a pair of interfaces for each container on it."""

    own_namespace = True
    connects = True
    several_subnets = False
    own_gateway = True
    publishes = True

    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._active = context.active
        self._forwarding = Marker(os.path.dirname(context.exec_root))
        self._stopping = context.stopping
        self._defaults = context.defaults
        self._told: set[str] = set()
        self._occupied = Occupancy(self._endpoints())
        self._named: dict[str, str] = {}  # by the ids of networks in use, bridges whose names are not of our making
        self._host = context.host
        self._makes_rules = context.host.mode != hostfirewall.NONE
        self._host_rules: list[str] = []
        self._host_count = 0  # of those that are in the table
        self._table = False
        self._answered: dict[IPv6Address, int] = {}  # with the bridge that answers
        self._watcher: threading.Thread | None = None
        self._end = -1  # an eventfd by which the watcher is told to end

    @property
    def has_rules(self) -> bool:
        return self._table

    def start(self) -> None:
        nftables.reserve()

    def close(self) -> None:
        if self._watcher is not None and self._end >= 0:
            os.eventfd_write(self._end, 1)
            self._watcher.join(END_SECONDS)
            if not self._watcher.is_alive():
                os.close(self._end)
                self._end = -1

    def options(self, options: dict[str, str], internal: bool) -> list[str]:
        return check_bridge(options, internal)

    def check(self, options: dict[str, str]) -> None:
        wanted = options.get(OPTION_BRIDGE)
        for other in self._store.all() if wanted else ():
            if other.driver == "bridge" and other.interface == wanted:
                raise Forbidden(
                    f"cannot create network ({other.interface}): conflicts with network {other.id} ({other.interface}):"
                    f" networks have same bridge name; {other.name} has it"
                )

    def create(self, network: Network) -> None: ...

    def delete(self, network: Network) -> None:
        if BRIDGE.match(network.interface) or network.record.own_bridge:
            with contextlib.suppress(OSError):
                found = self._kernel.socket().link(network.interface)
                if found is not None and found.kind == "bridge":
                    self._kernel.delete_link(found.number)

    def _on_network(self, network: Network) -> int:
        """How many endpoints it has."""
        return self._occupied.count(network.id)

    def _endpoints(self) -> Iterator[Endpoint]:
        """Those of all networks of this driver."""
        for active in self._active.values():
            yield from (endpoint for endpoint in active.endpoints if endpoint.driver == "bridge")

    def up(self, network: Network) -> int:
        found = self._kernel.socket().link(network.interface) if self._on_network(network) else None
        return self._bring_up(network) if found is None else found.number

    def _bring_up(self, network: Network) -> int:
        """The network's bridge with its address, the forwarding and the table's entries; returns its index."""
        from teu.linux import netlink

        kernel = self._kernel.socket()
        self._choose_subnets(network)
        name = network.interface
        found = kernel.link(name)
        # Of its own: else it is that of one of its ports, and the containers' neighbour is gone when that one is.
        mac = f"02:42:{bytes.fromhex(network.id[:8]).hex(':')}"
        if found is None:
            kernel.send([netlink.new_bridge(name, network.mtu, mac)])
            found = kernel.link(name)
            self._put_back(network, netlink.link_index(found))
        elif found.kind != "bridge":
            raise EngineError(f"interface {name} is not a bridge; rename it, or remove network {network.name}")
        elif BRIDGE.match(name) or not network.is_user_defined:
            kernel.send([netlink.set_mac(found.number, found.mac)])  # an older teud has made it
        index = netlink.link_index(found)
        named = network.is_user_defined and not BRIDGE.match(name)
        if named and found is not None and found.mac == mac and not network.record.own_bridge:
            # We have made it, now or before we died: one that was there before is spared at the network's removal.
            network.record.own_bridge = True
            self._store.save(network)
        if not network.is_user_defined and not self._on_network(network):
            self._forget_addresses(network, index)
        for pool in network.pools:
            if pool.version == 4 and self._makes_rules:
                _set(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "1")
            if pool.gateway is not None and network.has_own_address(pool.version):
                if pool.version == 6:
                    self._ipv6_up(name, index)
                with contextlib.suppress(FileExistsError):
                    kernel.send([netlink.add_address(index, pool.gateway, pool.subnet.prefixlen)])
        if self._makes_rules and not network.internal:
            self._forward(network)
        # Who can send router advertisements in a container is not the host's router (CVE-2020-13401).
        if os.path.exists(f"{_CONF}/{name}/accept_ra"):
            _set(f"{_CONF}/{name}/accept_ra", "0")
        return index

    def _put_back(self, network: Network, index: int) -> None:
        """Somebody has taken the bridge away from those who are on it, if any: they are on the new one."""
        if not self._on_network(network):
            return
        from teu.linux import netlink

        published = {entry.address for active in self._active.values() for entry in active.published}
        for endpoint in self._endpoints():
            if endpoint.network != network.id or not endpoint.number:
                continue
            messages = [netlink.set_master(endpoint.number, index)]
            if not network.talk:
                messages.append(netlink.isolated(endpoint.veth))
            if published & {str(address) for address in endpoint.addresses}:
                messages.append(netlink.hairpin(endpoint.veth))
            with _logged("interface %s is not on network %s any more", endpoint.veth, network.name):
                self._kernel.socket().send(messages)
        self._recover_links(network)

    def _choose_subnets(self, network: Network) -> None:
        """Of the default bridge, which gets its subnets when it is used or looked at first; and none of a family that
        the host has not."""
        if not network.is_user_defined and not self._on_network(network):
            self._store.settle(network)
        without = network.record.ipv6 and not _has_ipv6()
        # Where a family was taken away below, somebody is on what is left.
        if not network.is_user_defined and not (without and network.pools):
            self._store.address(network, self._kernel.socket().routes)
        if without:
            network.pools = network.of(4)
            self._tell_once(
                f"this host has no IPv6 (/proc/sys/net/ipv6 is not there): network {network.name} is without it"
            )
            if not network.pools and network.record.subnets:
                raise EngineError(f"network {network.name} has IPv6 alone, and this host has none")

    def _forget_addresses(self, network: Network, index: int) -> None:
        """Of the default bridge: those that it had before teud.yaml gave it others."""
        from teu.linux import netlink

        kernel = self._kernel.socket()
        wanted = {pool.gateway for pool in network.pools if network.has_own_address(pool.version)}
        for number, address, length in kernel.addresses():
            if number == index and not address.is_link_local and address not in wanted:
                kernel.send([netlink.delete_address(index, address, length)])

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)

    def _ipv6_up(self, name: str, index: int) -> None:
        """A bridge that has IPv6, whatever the host's interfaces have by default."""
        from teu.linux import netlink

        for setting in ("disable_ipv6", "accept_dad"):
            _set(f"{_CONF}/{name}/{setting}", "0")
        with contextlib.suppress(FileExistsError):
            self._kernel.socket().send([netlink.add_address(index, LINK_LOCAL, 64)])
        if not self._makes_rules:  # and no ports published
            return
        # By this the replies come back to who has asked [::1]:PORT. The kernel itself drops what others send there.
        self._kernel.socket().send([netlink.local_route(LOOPBACK, index)])
        with contextlib.suppress(OSError), open(_FILTERED) as file:
            if file.read().strip() == "1":
                self._tell_once(
                    "net.bridge.bridge-nf-call-ip6tables is 1: ports that are published at [::1] are not reached there"
                )

    def _forward(self, network: Network) -> None:
        families = [pool.version for pool in network.pools]
        if not self._defaults.forwards:
            for version in families:
                if not forwards(version):
                    self._tell_once(
                        f"the host does not forward IPv{version}, and ip-forward is false: containers have no way out"
                    )
            return
        for version in families:
            self._forwarding.turn_on(version)

    def attach(self, network: Network, endpoint: Endpoint, on: int, namespace: int, wish: Wish, inner: Socket) -> Plug:
        from teu.linux import netlink

        self._occupied.come(endpoint)
        self._know(network)
        if self._makes_rules and not self._table:
            self._rebuild_table()
        elif self._makes_rules and self._on_network(network) == 1:
            self._in_table(lambda: firewall.add_bridge(network.bridge()))
            self._beside_others()
            if self._host.kind and network.interface in self._interfaces():
                self._host.look(self._interfaces())
        # Before the other end is up: who may not reach its neighbours never could.
        link = [netlink.new_veth(endpoint.veth, on, endpoint.interface, namespace, wish.mac, network.mtu)]
        if not network.talk:
            link.append(netlink.isolated(endpoint.veth))
        try:
            self._kernel.socket().send(link)
        except FileExistsError:
            self._delete_nobodys(endpoint.veth)
            self._kernel.socket().send(link)
        inside = inner.link(endpoint.interface)
        number = netlink.link_index(inside)
        assert inside is not None
        return Plug(number, inside.peer)

    def owns(self, endpoint: Endpoint, link: Link) -> bool:
        return link.kind == "veth" and link.peer == endpoint.number

    def router(self, network: Network, endpoint: Endpoint, version: int) -> Address | None:
        address = endpoint.of(version)
        return network.router(address) if address else None

    def leads(self, network: Network, endpoint: Endpoint, way_out: bool) -> None: ...

    def publish(self, endpoint: Endpoint, entries: list[firewall.Published]) -> None:
        from teu.linux import netlink

        if not self._makes_rules:
            raise BadRequest(
                "ports cannot be published: firewall is none in teud.yaml, and teud makes no rules; publish nothing,"
                " and lead ports to the container's address by rules of your own"
            )
        for protocol, port in dict.fromkeys((entry.protocol, entry.host_port or entry.port) for entry in entries):
            if how := self._host.how_to_open(protocol, port):
                log.info("port %s/%s is open to whom the host lets in: %s", port, protocol, how)
        # A container may use its own published port. Where br_netfilter redirects a frame while it is still
        # the bridge's, that leaves by the port it came from.
        self._kernel.socket().send([netlink.hairpin(endpoint.veth)])
        self._in_table(lambda: firewall.publish(entries))
        self._forget(entries, led=False)

    def unpublish(self, entries: list[firewall.Published]) -> None:
        self._in_table(lambda: firewall.unpublish(entries))
        self._forget(entries, led=True)

    def _forget(self, entries: list[firewall.Published], led: bool) -> None:
        """Flows without connections that lead, or led, elsewhere than the host's ports do now. Never fails."""
        ways = [one for one in entries if one.host_port and one.protocol != "tcp"]
        if not ways:
            return
        from teu.linux import conntrack  # and with it netlink

        try:
            local = [address for _, address, _ in self._kernel.socket().addresses()]
            conntrack.forget([conntrack.Way(*one[:5]) for one in ways], led, local)
        except OSError as error:
            self._tell_once(f"who sends datagrams already may not reach published ports: {error}")

    def withdraw(self, entries: list[firewall.Published]) -> None:
        try:
            firewall.unpublish(entries)
        except Exception as error:
            log.error("published ports cannot be taken out of the table: %s", error)
        self._forget(entries, led=True)

    def open_to(self, network: Network, openings: list[firewall.Opening]) -> None:
        if not network.talk and openings:
            self._lead_around(network.interface)
            self._answer_for(network, _far(openings))
            self._in_table(lambda: firewall.open_to(openings))

    def _lead_around(self, name: str) -> None:
        _set(f"/proc/sys/net/ipv4/neigh/{name}/proxy_delay", "0")
        _set(f"/proc/sys/net/ipv4/conf/{name}/proxy_arp_pvlan", "1")

    def _answer_for(self, network: Network, addresses: set[IPv6Address]) -> None:
        """The bridge does, for those that links lead to and from, and for nobody else. Raises OSError."""
        from teu.linux import neighbours, netlink  # 5 ms of the daemon's start

        if not addresses:
            return
        name, kernel = network.interface, self._kernel.socket()
        _set(f"/proc/sys/net/ipv6/neigh/{name}/proxy_delay", "0")
        _set(f"{_CONF}/{name}/proxy_ndp", "1")
        index = netlink.link_index(kernel.link(name))
        kernel.send([neighbours.answer_for(address, index) for address in sorted(addresses)])
        self._answered.update(dict.fromkeys(addresses, index))

    def _answer_no_more(self, addresses: set[IPv6Address]) -> None:
        """But for those that other links lead to. Raises OSError."""
        from teu.linux import neighbours  # and with it netlink

        left = _far(opening for active in self._active.values() for opening in active.openings)
        gone = [address for address in sorted(addresses - left) if address in self._answered]
        if gone:
            self._kernel.socket().send(
                [neighbours.answer_no_more(address, self._answered.pop(address)) for address in gone]
            )

    def _recover_links(self, network: Network) -> None:
        """The ways around its bridge, as a predecessor has left them, or a new bridge has none."""
        from teu.linux import neighbours, netlink  # 5 ms of the daemon's start

        openings = [opening for active in self._active.values() for opening in active.openings]
        if network.talk or network.is_user_defined:
            return
        with _logged("links do not lead to all addresses on network %s any more", network.name):
            if openings:
                self._lead_around(network.interface)
            if network.of(6):
                kernel, wanted = self._kernel.socket(), _far(openings)
                index = netlink.link_index(kernel.link(network.interface))
                stale = set(neighbours.answered_for(kernel, index)) - wanted
                if stale:
                    kernel.send([neighbours.answer_no_more(address, index) for address in sorted(stale)])
                self._answer_for(network, wanted)

    def close_to(self, openings: list[firewall.Opening]) -> None:
        try:
            if openings and self._table:
                firewall.close_to(openings)
        except Exception as error:
            log.error("links cannot be taken out of the table: %s", error)
        with _logged("the bridge answers for addresses that no link leads to"):
            self._answer_no_more(_far(openings))

    def _know(self, network: Network) -> None:
        """Somebody is on it."""
        if not network.interface.startswith("teu"):
            self._named[network.id] = network.interface

    def detach(self, network: Network | None, endpoint: Endpoint, namespace: int) -> None:
        self._occupied.leave(endpoint)
        if not self._occupied.count(endpoint.network):
            self._named.pop(endpoint.network, None)
        # The kernel takes some 10 ms to delete a pair; nobody waits for it. By its number: the next pair of the same
        # container has the same name, and may be there before this is done.
        if not endpoint.number:  # it was never seen
            with contextlib.suppress(OSError):
                self._delete_nobodys(endpoint.veth)
        else:
            threading.Thread(target=self._drop_veth, args=(endpoint,), name="veth", daemon=True).start()
        if network is None or network.damage:
            return
        if not self._table:
            return
        if not self._occupied:
            self._table = False
            firewall.remove()
        elif not self._on_network(network):
            self._in_table(lambda: firewall.remove_bridge(network.bridge()))
            self._beside_others()

    def _delete_nobodys(self, veth: str) -> None:
        """A pair of a container that has left: it has the name of one that is to be made, or was begun. One that a
        container has, by its number, is left."""
        found = self._kernel.socket().link(veth)
        if found is not None and all(endpoint.number != found.number for endpoint in self._endpoints()):
            self._kernel.delete_link(found.number)

    def _drop_veth(self, endpoint: Endpoint) -> None:
        from teu.linux import netlink

        try:
            with netlink.Socket() as kernel:
                kernel.send([netlink.delete_index(endpoint.number)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.warning("interface %s cannot be deleted: %s", endpoint.veth, error)

    def recover(self, links: list[Link], unknown: set[str]) -> None:
        self._occupied = Occupancy(self._endpoints())
        for network in self._used():
            self._know(network)
        expected = {endpoint.number for endpoint in self._endpoints()}
        bridges = {network.interface for network in self._store.all()}
        for link in links:
            stray = (
                VETH.match(link.name)
                and link.kind == "veth"
                and link.number not in expected
                and link.name[3:13] not in unknown
            )
            lost = BRIDGE.match(link.name) and link.kind == "bridge" and link.name not in bridges
            if stray or lost:
                with contextlib.suppress(OSError):
                    self._kernel.delete_link(link.number)
        there = {link.name for link in links}
        for network in self._used():
            if network.interface not in there:
                with _logged("the bridge of network %s cannot be made anew", network.name):
                    self._bring_up(network)
        for endpoint in self._endpoints():
            self._keep_apart(endpoint)
        for network in self._used():
            self._recover_links(network)
        with _logged("the table of rules cannot be made"):
            if expected and self._makes_rules:
                self._rebuild_in_parts()
            else:
                firewall.remove()
                self._keep_closed()

    def _keep_closed(self) -> None:
        """Also while nobody is on a bridge: the host forwards since somebody was."""
        if self._makes_rules and self._forwarding.there:
            self._forwarding.keep_closed()
            if self._watcher is None:
                self._watch()

    def _keep_apart(self, endpoint: Endpoint) -> None:
        """Or not, as the network's options are now: teud.yaml says other things of the default bridge than before, or
        an older teud has left it to the rules."""
        from teu.linux import netlink

        network = self._store.by_id(endpoint.network)
        if network is not None and endpoint.number and not (network.talk and network.is_user_defined):
            with _logged("neighbours on network %s are as they were", network.name):
                self._kernel.socket().send([netlink.isolated(endpoint.veth, not network.talk)])

    # -- the table ---------------------------------------------------------------------------

    def _rebuild_table(self) -> None:
        self._host_rules = self._host.look(self._interfaces())
        self._host_count = firewall.rebuild(*self._rules(), host=self._host_rules)
        self._table_is_there()

    def _rules(self) -> tuple[list[firewall.Bridge], list[firewall.Published], list[firewall.Opening]]:
        return (
            [network.bridge() for network in self._used() if network.pools],
            [entry for active in self._active.values() for entry in active.published],
            [entry for active in self._active.values() for entry in active.openings],
        )

    def _used(self) -> list[Network]:
        """The networks that somebody is on."""
        found = (self._store.by_id(identity) for identity in self._occupied.networks())
        return [network for network in found if network is not None]

    def _rebuild_in_parts(self) -> None:
        """The whole table at once, or where something in it does not fit the rest, all but that."""
        try:
            self._rebuild_table()
            return
        except nftables.Error as error:
            log.error("the table of rules cannot be made at once: %s", error)
        self._host_count = firewall.rebuild([], [], host=self._host_rules)
        bridges, ports, openings = self._rules()
        for bridge in bridges:
            with _logged("network interface %s has no rules", bridge.name):
                firewall.add_bridge(bridge)
        for entry in ports:
            with _logged("port %s is not published any more", str(entry.host_port)):
                firewall.publish([entry])
        with _logged("links do not lead to all ports any more"):
            firewall.open_to(openings)
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
            if firewall.is_whole(self._host_count):
                raise
            log.warning("the rules of the networks are gone (%s), and are made anew", error)
            self._rebuild_table()

    def _beside_others(self) -> None:
        """Our interfaces pass the chains of those who drop what is not theirs, and what we ourselves closed."""
        interfaces = ["teu*", *self._interfaces()]
        self._forwarding.stand_beside_others(firewall.OWNER, interfaces, self._host.mode == hostfirewall.DOCKER)

    def _interfaces(self) -> list[str]:
        """Bridges in use whose names do not say that they are ours."""
        return sorted(self._named.values())

    def _watch(self) -> None:
        """Build the table again when somebody else empties the ruleset, as reloading nftables' own service does, and
        follow the rules of the host's own firewall."""

        def body() -> None:
            while not self._stopping.is_set():
                if any(descriptor == self._end for descriptor, _ in poll.poll()):
                    break
                changed = changes.pending()
                if changed is not None and not any(_concerns(change) for change in changed):
                    continue
                try:
                    self._mend_table()
                    if changed is None or any(_is_of_host(change) for change in changed):
                        self._follow(changes)
                except Exception as error:
                    log.error("the rules of the networks cannot be made anew: %s", error)
            changes.close()

        try:
            changes = nftables.Changes()
            self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            log.warning("changes of the ruleset cannot be watched: %s", error)
            return
        poll = select.poll()
        poll.register(changes, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        self._watcher = threading.Thread(target=body, name="ruleset", daemon=True)
        self._watcher.start()

    def _mend_table(self) -> None:
        with self._store.lock:
            if self._stopping.is_set():
                return
            if not self._table:  # nobody is on a bridge, and the host forwards all the same
                self._forwarding.keep_closed()
                return
            if firewall.is_whole(self._host_count):
                self._beside_others()
                return
            log.warning("somebody has emptied the ruleset: the rules of the networks are made anew")
            self._rebuild_table()
            if not firewall.is_whole(self._host_count):
                raise EngineError("somebody takes them away at once; they are made with the next container")

    def _follow(self, changes: nftables.Changes) -> None:
        """The host's own firewall has other rules. Its programs change them in many steps: what comes within a moment
        is looked at once. The lock is not held while firewalld is asked, which may take long."""
        self._stopping.wait(SETTLE_SECONDS)
        changes.pending()
        if not self._table:
            return
        with self._store.lock:
            interfaces = self._interfaces()
        found = self._host.look(interfaces)
        with self._store.lock:
            if self._table and not self._stopping.is_set():
                if found != self._host_rules or not firewall.is_whole(self._host_count):
                    self._host_rules = found
                    self._host_count = firewall.set_host(found) if firewall.is_whole(self._host_count) else 0
                if not firewall.is_whole(self._host_count):
                    self._rebuild_table()
                self._beside_others()


@contextlib.contextmanager
def _logged(what: str, *arguments: str) -> Iterator[None]:
    """What fails is logged and over."""
    try:
        yield
    except Exception:
        log.exception(what, *arguments)


def _far(openings: Iterable[firewall.Opening]) -> set[IPv6Address]:
    """The IPv6 addresses that ways lead from and to."""
    found = (ip_address(text) for opening in openings for text in (opening.source, opening.address))
    return {address for address in found if isinstance(address, IPv6Address)}


def _concerns(change: Change) -> bool:
    """Whether somebody's change of the ruleset may be one of ours to mend."""
    if change.table == firewall.TABLE:
        return change.kind.startswith("delete")
    return forwarding.concerns(change) or _is_of_host(change)


def _is_of_host(change: Change) -> bool:
    """Whether it is of the rules of ufw or firewalld."""
    return change.table == firewalld.TABLE or change.table in ("ip filter", "ip6 filter") and "ufw" in change.chain


def _has_ipv6() -> bool:
    """Whether this host has it at all."""
    return os.path.exists(f"{_CONF}/all")


def _set(path: str, value: str) -> bool:
    """True where it was another value before."""
    with open(path, "r+") as file:
        if file.read().strip() == value:
            return False
        file.seek(0)
        file.write(value)
        return True
