# SPDX-License-Identifier: Apache-2.0
"""The attachment of containers to networks: what every running container holds (its network namespace, endpoints,
published ports), from its start to its exit and over the death of the daemon.

A container's network namespace is made here before its task, and handed to the runtime as the path of a
descriptor of this process; from the start of the task on the container's processes hold it. So it can neither
outlive a container nor be left behind by a daemon that is killed. Who joins a namespace gets a descriptor of its own.
After a restart of the daemon a namespace is known by the interfaces in it, not by the number of a process.

Called by the containers' life cycle (check, attach, detach, recover) and by the routes (connect, disconnect). The
interfaces are the drivers' affair.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from teu.engine.containers.network_settings import Addresses, EndpointSettings
from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden, NotFound
from teu.engine.networks import files, requests, wishes
from teu.engine.networks.drivers.driver import Context, Driver, Plug, Wish
from teu.engine.networks.drivers.registry import Drivers
from teu.engine.networks.hostfirewall import HostFirewall
from teu.engine.networks.hostnames import HostNames
from teu.engine.networks.kernel import Kernel, once_free
from teu.engine.networks.links import Links, NotLinked, host_lines, openings
from teu.engine.networks.model import (
    OWN_IPAM,
    Active,
    Attachment,
    Endpoint,
    Network,
    automatic_mac,
    network_mode,
    random_mac,
)
from teu.engine.networks.names import Names
from teu.engine.networks.outward import Outward
from teu.engine.networks.ports import bindings, parse_port
from teu.linux import netns, resolver
from teu.linux.dns import ADDRESS as RESOLVER_ADDRESS

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.store import Containers
    from teu.engine.core.events import Events
    from teu.engine.core.fields import Config, EndpointAsked, HostConfig, Networking
    from teu.engine.networks.firewall import Opening
    from teu.engine.networks.ipam import Address
    from teu.engine.networks.store import Store
    from teu.linux.netlink import Link, Socket

log = logging.getLogger("teu.engine")

END_SECONDS = 2.0  # that the daemon's end waits for others
MOST_ENDPOINTS = 256  # two hexadecimal digits are what a veth's name has room for


class Endpoints:
    def __init__(
        self,
        store: Store,
        containers: Containers,
        events: Events,
        exec_root: str,
        stopping: threading.Event,
        host: HostFirewall | None = None,
    ) -> None:
        """`exec_root`: the folder for state that a reboot ends. `stopping`: the daemon goes. `host`: how the host's own
        firewall is respected; by default as `obey` has it."""
        self._store = store
        self._containers = containers
        self._events = events
        self._lock = store.lock
        self.kernel = Kernel()
        self._active: dict[str, Active] = {}
        self._names = Names(store, self._active, containers)
        self.links = Links(containers, self._active)
        self.host = host or HostFirewall()
        context = Context(store, self.kernel, self._active, exec_root, stopping, store.defaults, self.host)
        self.drivers = Drivers(context)
        self._outward = Outward(store, self.drivers)
        self._host_names = HostNames(self.follow_host, stopping)

    def start(self) -> None:
        self.drivers.start()

    def close(self) -> None:
        """The daemon goes: what it has open is closed, and its threads end; the containers' networks stay as they are.
        Their ports stay redirected, and are reserved no more. `stopping` is set. Twice is fine."""
        self._host_names.end()
        self._names.close()
        self.drivers.close()
        if not self._lock.acquire(timeout=END_SECONDS):  # somebody waits for a plugin
            return
        try:
            for active in self._active.values():
                if active.namespace >= 0:
                    os.close(active.namespace)
                    active.namespace = -1
            self._outward.ports.close()
            self.kernel.close()
        finally:
            self._lock.release()

    def driver(self, network: Network) -> Driver:
        """Of a damaged record, whose driver may not be known: bridges are what can be left, and has to be removed."""
        return self.drivers["bridge" if network.damage and network.driver not in self.drivers else network.driver]

    def on(self, network: Network) -> list[tuple[str, str]]:
        """The running containers there: the name of each and the id of its endpoint."""
        found = []
        for identity, active in self._active.items():
            for endpoint in active.endpoints:
                if endpoint.network == network.id:
                    container = self._containers.find(identity)
                    found.append((container.name if container else identity, endpoint.id))
        return found

    def serves(self, container: Container) -> bool:
        """Whether this process has a part in a running container's network: the resolver that it asks, the ports of the
        host that are kept for it, or a namespace that it shares with one of that kind."""
        mode = network_mode(container)
        if mode.startswith("container:"):
            other = self._containers.find(mode.removeprefix("container:"))
            return other is None or (other.running and self.serves(other))
        active = self._active.get(container.id)
        return active is not None and bool(active.named or active.published or active.openings)

    def has_rules(self) -> bool:
        """Whether there are rules for running containers in the kernel, made anew where somebody takes them away."""
        return any(driver.has_rules for driver in self.drivers.made())

    def _event(self, network: Network, action: str, container: Container) -> None:
        attributes = {"name": network.name, "type": network.driver, "container": container.id}
        self._events.publish("network", action, network.id, attributes)

    def check(
        self,
        container: Container,
        networking: Networking | None,
        version: tuple[int, int] = (1, 45),
        warnings: list[str] | None = None,
    ) -> None:
        """At a container's creation: what it asks for must make sense; its networks are filled in."""

        def connects(network: Network) -> bool:
            return self.driver(network).connects

        endpoints = requests.endpoints(networking)
        wishes.check(self._store, self._containers, container, endpoints, connects, version, warnings)
        self.links.settle(container)

    # -- start -------------------------------------------------------------------------------

    def attach(self, container: Container) -> Attachment:
        """Before a container's task exists. What fails leaves nothing behind."""
        mode = network_mode(container)
        if mode == "host" or mode.startswith("container:"):
            self.detach(container)
            if mode == "host":
                return Attachment(None, self._files(container, [], False))
            return self._join(container, mode.partition(":")[2])
        # Without the lock: the kernel makes several at once, and may take its time while others are being removed.
        descriptor, inner = netns.create(_open_quietly)
        with inner, self._lock:
            active = Active(descriptor)
            try:
                self.detach(container)
                self._active[container.id] = active
                for network in self._wanted(container):
                    with _endpoint_of(container, network):
                        self._connect(container, active, network, inner)
                self._outward.lead(container, active, inner)
                self._names.serve(container, active)
                path = f"/proc/{os.getpid()}/fd/{descriptor}"
                container.network_settings.sandbox_key = path
                container.network_settings.sandbox_id = container.id
                linked = self._follow_links(container, active)
                paths = self._files(
                    container, active.endpoints, True, self._outward.gateway(active), active.named, linked
                )
                # The daemon may die when the task runs and the record does not say so yet: what it has is known then.
                container.save(durable=False)
            except BaseException as error:
                if self._active.get(container.id) is active:
                    self.detach(container)
                else:
                    os.close(descriptor)
                if isinstance(error, EngineError) and not isinstance(error, NotLinked):
                    error.args = (f"failed to set up container networking: {error}",)
                raise
        return Attachment(path, paths)

    def _follow_links(self, container: Container, active: Active) -> list[tuple[str, str]]:
        """A container's links, and those to it: the rules, and what others have of it in their hosts files. What it is
        to have in its own is returned. Raises NotLinked where one that it is linked to does not run."""
        place = next((one for one in active.endpoints if one.name == "bridge"), None)
        entries = []
        if place is not None:
            for linked in self.links.of(container):
                active.openings += openings(place, linked)
                entries += host_lines(linked)
            self._open(place, active.openings)
            for other, linked in self.links.to(container):
                files.replace_hosts(f"{other.directory}/hosts", host_lines(linked))
                theirs = self._active[other.id]
                source = next((one for one in theirs.endpoints if one.name == "bridge"), None)
                if source is not None:
                    more = openings(source, linked)
                    theirs.openings += more
                    self._open(source, more)
        return entries

    def unlink(self, text: str) -> None:
        """OWNER/NAME, a link, goes: its owner knows the other container no more by that name, and has no way to it.
        Raises EngineError, NotFound."""
        container, name = self.links.named(text)
        with container.lock, self._lock:
            names = self.links.drop(container, name)
            container.save()
            active = self._active.get(container.id)
            place = next((one for one in active.endpoints if one.name == "bridge"), None) if active else None
            if active is None or place is None:
                return
            files.drop_hosts(f"{container.directory}/hosts", names)
            kept = [one for linked in self.links.running(container) for one in openings(place, linked)]
            gone = [one for one in active.openings if one not in kept]
            active.openings = [one for one in active.openings if one in kept]
            self.drivers[place.driver].close_to(gone)

    def _open(self, place: Endpoint, some: list[Opening]) -> None:
        if some:
            network = self._outward.network(place)
            self.driver(network).open_to(network, some)

    def _close(self, endpoints: list[Endpoint], active: Active) -> None:
        """What a container's links opened for it, and what others' opened to it."""
        addresses = {
            str(address) for endpoint in endpoints if endpoint.name == "bridge" for address in endpoint.addresses
        }
        for held in (active, *self._active.values()) if addresses else ():
            gone = [one for one in held.openings if addresses & {one.source, one.address}]
            held.openings = [one for one in held.openings if one not in gone]
            if gone:
                self.drivers["bridge"].close_to(gone)

    def _wanted(self, container: Container) -> list[Network]:
        """The container's networks that have endpoints, the one of its mode first. Raises NotFound."""
        known = container.network_settings.networks
        result = []
        for text in list(known):
            network = self._store.get(text)
            network.must_be_whole()
            network.must_be_real()
            if not self.driver(network).connects:
                continue
            if network.name != text:  # it did not exist yet when it was asked for, by its id
                known[network.name] = known.pop(text)
            known[network.name].network_id = network.id
            result.append(network)
        first = self._store.find(network_mode(container))
        return sorted(result, key=lambda network: network is not first)

    def _join(self, container: Container, reference: str) -> Attachment:
        """Another container's network, with its names and what it says of them."""
        try:
            other = owner = self._containers.get(reference)
        except NotFound as error:
            raise EngineError(f"joining network namespace of container: {error}") from None
        if other is container:
            raise EngineError("cannot join own network namespace")
        if not other.running or not other.pid:
            raise Conflict(
                f"cannot join network namespace of a non running container: container {other.name} is {other.status()}"
            )
        while network_mode(owner).startswith("container:") and owner is not container:
            owner = self._containers.get(network_mode(owner).partition(":")[2])
        container.config.hostname = other.config.hostname
        container.config.domainname = other.config.domainname
        paths = {}
        for name in ("hosts", "resolv.conf", "hostname"):
            source = f"{owner.directory}/{name}"
            if os.path.exists(source):
                paths[f"/etc/{name}"] = source
        if network_mode(owner) == "host":
            return Attachment(None, paths)
        with self._lock:
            held = self._active.get(other.id)
            if held is None or held.namespace < 0:
                raise Conflict(f"cannot join network of container {other.id}: its network namespace is not known")
            # A descriptor of our own: the other one may end, and its number be another's, before the runtime looks.
            active = self._active[container.id] = Active(os.dup(held.namespace))
        return Attachment(f"/proc/{os.getpid()}/fd/{active.namespace}", paths)

    def _connect(self, container: Container, active: Active, network: Network, inner: Socket) -> None:
        """An interface in a container's namespace, with its addresses. Who calls undoes what fails."""

        network.must_be_whole()
        if len(active.endpoints) >= MOST_ENDPOINTS:
            raise Forbidden(f"container {container.name} is on {MOST_ENDPOINTS} networks, more are not supported")
        driver = self.driver(network)
        on = driver.up(network)
        network.must_have_addresses()
        settings = container.network_settings.networks.setdefault(network.name, EndpointSettings(network.id))
        options = settings.driver_opts or {}
        position, interface = _free_name(container, active, network, settings)
        if any(endpoint.interface == interface for endpoint in active.endpoints):
            raise Conflict(f"container {container.name} has an interface {interface} already")
        own_mac = settings.wanted_mac or (random_mac() if network.wants_mac() else "")
        endpoint = self._addressed(network, settings, own_mac)._replace(
            veth=f"teu{container.id[:10]}{position:x}", interface=interface, id=uuid.uuid4().hex + uuid.uuid4().hex
        )
        active.endpoints.append(endpoint)
        if network.driver not in self.drivers:
            # Who dies in between has to know of whom to tell the plugin that it is gone.
            self._tell(container, network, endpoint, settings, own_mac)
            container.save()
        mac = own_mac or (automatic_mac(endpoint.addresses) if endpoint.addresses else "")
        wish = Wish(
            mac,
            container.name,
            bool(own_mac),
            options,
            tuple(map(parse_port, container.config.exposed)),
            tuple(bindings(container.host_config, container.config.exposed)),
        )
        plug = driver.attach(network, endpoint, on, active.namespace, wish, inner)
        endpoint = active.endpoints[-1] = _plugged(endpoint, plug)
        mac = mac if plug.mac is None else plug.mac
        if plug.inside:
            self._bring_up(active, network, endpoint, plug, settings, inner)
        given = {one.ip: one.network.prefixlen for one in plug.addresses}
        self._tell(container, network, endpoint, settings, mac, given)
        settings.source = plug.source
        self._names.join(container, endpoint)
        self._event(network, "connect", container)

    def _bring_up(
        self,
        active: Active,
        network: Network,
        endpoint: Endpoint,
        plug: Plug,
        settings: EndpointSettings,
        inner: Socket,
    ) -> None:
        """A new interface gets its addresses and routes."""
        from teu.linux import netlink

        asked = [ip_address(text) for text in settings.addresses.link_local] if settings.addresses else []
        ipv6 = endpoint.address6 is not None or any(address.version == 6 for address in asked)
        sysctls = requests.endpoint_sysctls(settings.driver_opts or {})
        _set_inside(active.namespace, endpoint.interface, ipv6, plug.advertised, sysctls)
        given = {one.ip: one.network.prefixlen for one in plug.addresses}
        messages = []
        for address in endpoint.addresses:
            length = _prefix(network, address, given)
            messages.append(netlink.add_address(plug.inside, address, length))
        messages += [netlink.add_address(plug.inside, one, 16 if one.version == 4 else 64) for one in asked]
        try:
            inner.send([*messages, netlink.set_up(plug.inside)])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Its MAC address is that of one whose container may be dead (macvlan).
            once_free(lambda: inner.send([netlink.set_up(plug.inside)]), errno.EADDRINUSE, self._store.aside)
        if plug.routes:
            inner.send([netlink.add_route(one.destination, one.router, plug.inside) for one in plug.routes])

    def _addressed(self, network: Network, settings: EndpointSettings, mac: str) -> Endpoint:
        """An endpoint with its addresses, taken; without names. Where one is not to be had, none is taken."""
        asked = settings.addresses or Addresses()
        address = network.take(4, asked.ipv4, mac)
        try:
            address6 = network.take(6, asked.ipv6, mac)
            if self._store.by_id(network.id) is not network:  # it went while a plugin was asked
                network.give_back([address6] if address6 else [])
                raise NotFound(f"network {network.name} not found")
        except BaseException:
            network.give_back([address] if address else [])
            raise
        assert not isinstance(address, IPv6Address)
        assert not isinstance(address6, IPv4Address)
        return Endpoint(network.id, network.name, network.driver, address, address6, "", 0, "")

    def _tell(
        self,
        container: Container,
        network: Network,
        endpoint: Endpoint,
        settings: EndpointSettings,
        mac: str,
        given: Mapping[Address, int] = MappingProxyType({}),
    ) -> None:
        """Into the container's record. `given`: the lengths of the prefixes of addresses that the network has not."""
        settings.network_id = network.id
        settings.endpoint_id = endpoint.id
        if endpoint.address is not None:
            settings.address, settings.prefix = str(endpoint.address), _prefix(network, endpoint.address, given)
            settings.gateway = self._shown_gateway(network, endpoint, endpoint.address)
        if endpoint.address6 is not None:
            settings.address6, settings.prefix6 = str(endpoint.address6), _prefix(network, endpoint.address6, given)
            settings.gateway6 = self._shown_gateway(network, endpoint, endpoint.address6)
        settings.mac = mac
        settings.veth, settings.interface = endpoint.veth, endpoint.interface
        if network.is_user_defined:
            names = [container.name, *(settings.aliases or []), container.id[:12], container.hostname]
            settings.dns_names = list(dict.fromkeys(name for name in names if name))

    def _shown_gateway(self, network: Network, endpoint: Endpoint, address: Address) -> str:
        """The gateway as it is told."""
        router = self.driver(network).router(network, endpoint, address.version)
        pool = network.pool_of(address)
        if router is None and pool is not None and network.has_own_address(address.version):
            router = pool.gateway
        return str(router) if router and not router.is_unspecified else ""

    def _files(
        self,
        container: Container,
        endpoints: list[Endpoint],
        own: bool,
        gateway: str = "",
        named: bool = False,
        more: Iterable[tuple[str, str]] = (),
    ) -> dict[str, str]:
        """Write hosts and resolv.conf into the container's directory."""
        entries = files.extra_hosts(container.host_config, self._host_gateways(container, gateway or "127.0.0.1"))
        entries += [*more, *(line for endpoint in endpoints for line in self._host_lines(container, endpoint))]
        base = resolver.HOSTS if own else resolver.host_hosts()
        directory = container.directory
        files.write(f"{directory}/hosts", resolver.hosts(entries, base))
        text = self._resolv_conf(container, own, RESOLVER_ADDRESS if named else "")
        files.write(f"{directory}/resolv.conf", text)
        container.network_settings.resolver_sum = files.digest(text)
        self._host_names.watch()
        return {"/etc/hosts": f"{directory}/hosts", "/etc/resolv.conf": f"{directory}/resolv.conf"}

    def _resolv_conf(self, container: Container, own: bool, server: str) -> str:
        active = self._active.get(container.id)
        naming = self._store.defaults.names(container.host_config)
        return files.resolv_conf(naming, own, server, active.versions if active else (4, 6))

    def _host_gateways(self, container: Container, own: str) -> list[str]:
        """What host-gateway stands for."""
        return self._store.defaults.names(container.host_config).gateways or [own]

    def _host_lines(self, container: Container, endpoint: Endpoint) -> list[tuple[str, str]]:
        names = files.host_names(container.hostname, container.config.domainname)
        return [(str(address), names) for address in endpoint.addresses] if names else []

    def follow_host(self) -> None:
        """The host's resolv.conf is another: so are those of running containers, unless somebody wrote there. Who has
        had servers that are no more, and cannot ask the new ones, gets the engine's resolver."""
        for container in self._containers.all():
            mode = network_mode(container)
            if not container.running or mode.startswith("container:"):
                continue
            with container.lock, self._lock:
                active = self._active.get(container.id)
                if container.running and (active is not None or mode == "host"):
                    if active is not None and active.namespace >= 0 and active.endpoints:
                        with _logged("the names of container %s cannot be served", container.name):
                            self._names.serve(container, active)
                    self._renew(container, mode != "host", active is not None and active.named)
                    container.save()

    def _use_resolver(self, container: Container) -> None:
        """A running container's resolv.conf names the engine's resolver from now on, unless somebody wrote there."""
        self._renew(container, True, True)

    def _renew(self, container: Container, own: bool, named: bool) -> None:
        """A running container's resolv.conf says what is so now, unless somebody wrote there."""
        path = f"{container.directory}/resolv.conf"
        text = files.read(path)
        if text is None or files.digest(text) != container.network_settings.resolver_sum:
            log.info(
                "resolv.conf of container %s is not ours any more, and stays", container.name, extra=container.fields
            )
            return
        text = self._resolv_conf(container, own, RESOLVER_ADDRESS if named else "")
        files.write(path, text)
        container.network_settings.resolver_sum = files.digest(text)

    def _know_resolver(self, container: Container) -> None:
        """What a daemon wrote into a running container's resolv.conf that died before it could say so is ours."""
        text = files.read(f"{container.directory}/resolv.conf")
        if text is None or files.digest(text) == container.network_settings.resolver_sum:
            return
        if text in [self._resolv_conf(container, True, server) for server in ("", RESOLVER_ADDRESS)]:
            container.network_settings.resolver_sum = files.digest(text)

    # -- stop --------------------------------------------------------------------------------

    def detach(self, container: Container) -> None:
        """After a container's exit, and after a start that failed. Doing it twice is fine."""
        with self._lock:
            self._names.forget(container)
            active = self._active.pop(container.id, None)
            if active is not None:
                self._release(active)
            else:
                self._tell_plugins(container)
        settings = container.network_settings
        settings.ports = {}
        settings.sandbox_key = settings.sandbox_id = ""
        settings.outward, settings.outward6, settings.named = None, None, False
        for name, endpoint in settings.networks.items():
            if endpoint.endpoint_id:
                network = self._store.find(endpoint.network_id or name)
                if network:
                    self._event(network, "disconnect", container)
            endpoint.clear()

    def _with_plugins(self, container: Container) -> list[tuple[Network, EndpointSettings]]:
        """The endpoints of a container's record of which a plugin has to be told when they go."""
        result = []
        for name, settings in container.network_settings.networks.items():
            network = self._store.find(settings.network_id or name) if settings.endpoint_id else None
            if network is None or network.damage:
                continue
            if self._asks_plugins(network):
                result.append((network, settings))
        return result

    def _asks_plugins(self, network: Network) -> bool:
        """Whether a plugin knows of its endpoints, or has given their addresses."""
        return network.driver not in self.drivers or network.record.ipam_driver not in OWN_IPAM

    def _tell_plugins(self, container: Container) -> None:
        """Of what a container had that ended when there was no daemon."""
        for network, settings in self._with_plugins(container):
            endpoint = _recorded(container, network, network.driver, settings, 0, {})
            network.mark(endpoint.addresses)
            self._leave(endpoint, -1)

    def _release(self, active: Active) -> None:
        self._outward.withdraw(active)
        self._close(active.endpoints, active)
        for endpoint in active.endpoints:
            self._leave(endpoint, active.namespace)
        if active.namespace >= 0:
            os.close(active.namespace)

    def _leave(self, endpoint: Endpoint, namespace: int) -> None:
        self._names.leave(endpoint)
        network = self._store.by_id(endpoint.network)
        self.drivers[endpoint.driver].detach(network, endpoint, namespace)
        if network is not None:
            network.give_back(endpoint.addresses)

    def renamed(self, container: Container, old: str) -> None:
        """Under the container's lock: what is known by its name follows."""
        self._names.renamed(container, old)
        container.save()

    # -- connect and disconnect --------------------------------------------------------------

    def connect(self, network: Network, container: Container, asked: EndpointAsked) -> None:
        """POST /networks/{id}/connect."""
        mode = network_mode(container)
        if not self.driver(network).own_namespace:
            raise BadRequest(
                "cannot connect container to host network - container must be created in host network mode"
            )
        if mode == "host" or mode.startswith("container:"):
            raise BadRequest(
                "container sharing network namespace with another container or host cannot be connected to any other"
                " network"
            )
        with container.lock, self._lock:
            network.must_be_real()
            networks = container.network_settings.networks
            if not self.driver(network).connects or "none" in networks:
                raise BadRequest(
                    "container cannot be connected to multiple networks with one of the networks in private (none) mode"
                )
            if container.config.network_disabled:
                raise BadRequest(f"container {container.name} was created without a network (NetworkDisabled)")
            wanted = wishes.asked_endpoint(network, asked)
            if network.name in networks:
                raise Forbidden(f"endpoint with name {container.name} already exists in network {network.name}")
            active = self._active.get(container.id)
            if container.running and container.pid and (active is None or active.namespace < 0):
                raise Conflict(
                    f"the network namespace of container {container.name} is not known any more: start it anew before"
                    " it is connected"
                )
            networks[network.name] = wanted
            if container.running and active is not None:
                try:
                    self._connect_now(container, active, network)
                except BaseException:
                    self._disconnect_now(container, active, network)
                    networks.pop(network.name, None)
                    raise
            container.save()

    def _connect_now(self, container: Container, active: Active, network: Network) -> None:
        from teu.linux import netlink

        with netns.run_in(active.namespace, netlink.Socket) as inner:
            with _endpoint_of(container, network):
                self._connect(container, active, network, inner)
            self._outward.lead(container, active, inner)
        endpoint = next(endpoint for endpoint in active.endpoints if endpoint.network == network.id)
        files.change_hosts(f"{container.directory}/hosts", add=self._host_lines(container, endpoint))
        if not active.named:
            self._names.serve(container, active)
            if active.named:
                self._use_resolver(container)

    def disconnect(self, network: Network, container: Container, force: bool = False) -> None:
        """POST /networks/{id}/disconnect."""
        with container.lock, self._lock:
            networks = container.network_settings.networks
            if network.name not in networks:
                which = "network" if container.running else "the network"
                raise Forbidden(f"container {container.id} is not connected to {which} {network.name}")
            if not self.driver(network).own_namespace:
                raise BadRequest(
                    "cannot disconnect container from host network - container was created in host network mode"
                )
            active = self._active.get(container.id)
            left = networks.pop(network.name)
            try:
                # A daemon may die in the middle of it: the next one takes the interface away. But what a plugin has to
                # be told, it knows from the record, which is written then when the plugin has been told.
                if active is None or not self._asks_plugins(network):
                    container.save()
            except BaseException:
                networks[network.name] = left
                raise
            if active is not None:
                self._disconnect_now(container, active, network)
                container.save()
        self._event(network, "disconnect", container)

    def _disconnect_now(self, container: Container, active: Active, network: Network) -> None:
        """Never fails: what cannot be done is logged."""
        for endpoint in [e for e in active.endpoints if e.network == network.id]:
            self._outward.lose(active, endpoint)
            active.endpoints.remove(endpoint)
            self._close([endpoint], active)
            self._take_out(active, endpoint)
            self._leave(endpoint, active.namespace)
            files.change_hosts(f"{container.directory}/hosts", drop=self._host_lines(container, endpoint))
        self._lead(container, active)

    def _take_out(self, active: Active, endpoint: Endpoint) -> None:
        """A container that runs on loses its interface before another one can have the addresses."""
        from teu.linux import netlink

        if active.namespace < 0 or not endpoint.number:
            return
        try:
            with netns.run_in(active.namespace, netlink.Socket) as inner:
                for link in inner.links():
                    if self.drivers[endpoint.driver].owns(endpoint, link):
                        inner.send([netlink.delete_index(link.number)])
        except OSError as error:
            log.warning("interface %s cannot be deleted: %s", endpoint.veth, error)

    def _lead(self, container: Container, active: Active, anew: bool = False) -> None:
        """The way out of a container that runs on, by the networks that it has now. Never fails: what cannot be done is
        logged."""
        from teu.linux import netlink

        try:
            with netns.run_in(active.namespace, netlink.Socket) as inner:
                self._outward.lead(container, active, inner, anew, strict=False)
        except Exception as error:
            log.warning(
                "the way out of container %s cannot be moved to its other networks: %s",
                container.name,
                error,
                extra=container.fields,
            )
            with _logged("the ports of container %s cannot be withdrawn", container.name):
                self._outward.unpublish(container, active)

    def publish_anew(self, container: Container, config: Config, host: HostConfig) -> None:
        """The ports of these in place of the container's own; at once, where it runs. Raises BadRequest, Conflict and
        EngineError; the old ones are published then."""
        from teu.linux import netlink

        with container.lock, self._lock:
            active = self._active.get(container.id)
            if active is None or not container.running:
                return
            if active.namespace < 0:
                raise Conflict(
                    f"the network namespace of container {container.name} is not known any more: start it anew"
                )
            before = container.config, container.host_config
            container.config, container.host_config = config, host
            try:
                with netns.run_in(active.namespace, netlink.Socket) as inner:
                    self._outward.lead(container, active, inner, anew=True)
                if host.published and not active.published:
                    raise Conflict(f"none of the networks of container {container.name} publishes ports")
            except BaseException:
                container.config, container.host_config = before
                self._lead(container, active, anew=True)
                raise

    # -- recovery ----------------------------------------------------------------------------

    def recover(self, running: list[Container]) -> None:
        """After a start of the daemon: know again what running containers hold, and sweep what the dead left. What
        cannot be known of one container, or not be done, is logged, and the rest goes on. `running`: those that live
        first, then those whose end is not handled yet: what their records say may be another's by now."""
        with self._lock:
            links = self.kernel.socket().links()
            ends = {link.name: link for link in links if link.kind == "veth"}
            unknown = set()
            for container in running:
                try:
                    self._recover(container, ends)
                    self._finish(container, ends)
                except Exception as error:
                    log.exception(
                        "the network of container %s cannot be recovered", container.name, extra=container.fields
                    )
                    unknown.add(container.id[:10])
                    if container.running:
                        container.state.error = f"its network could not be recovered: {error}"
            for container in self._containers.all():
                if container.id in self._active or container.running or container in running:
                    continue
                if self._with_plugins(container):  # which may take their time
                    threading.Thread(target=self._clear, args=(container,), name="plugins", daemon=True).start()
                    continue
                with _logged("the network of container %s cannot be cleared", container.name):
                    self.detach(container)
            for container in running:
                with _logged("the links of container %s cannot be recovered", container.name):
                    self._recover_links(container)
            for driver in self.drivers.made():
                driver.recover(links, unknown)
        if running:
            # What has changed while there was no daemon is followed as well.
            self._host_names.watch()
            with _logged("the host's resolv.conf cannot be followed"):
                self.follow_host()

    def _clear(self, container: Container) -> None:
        with _logged("the network of container %s cannot be cleared", container.name), container.lock:
            if container.id not in self._active and not container.running:
                self.detach(container)
                container.save()

    def _recover_links(self, container: Container) -> None:
        active = self._active.get(container.id)
        place = next((one for one in active.endpoints if one.name == "bridge"), None) if active else None
        if active is not None and place is not None and not self._outward.network(place).talk:
            active.openings = [one for linked in self.links.running(container) for one in openings(place, linked)]

    def _recover(self, container: Container, ends: dict[str, Link]) -> None:
        """`ends`: our ends of the pairs, by name."""
        mode = network_mode(container)
        if mode == "host":
            return
        active = Active()
        known = container.network_settings.networks
        first = self._store.find(mode)
        order = sorted(known, key=lambda name: first is None or name != first.name)
        for position, name in enumerate([] if mode.startswith("container:") else order):
            settings = known[name]
            network = self._store.find(settings.network_id or name)
            if network is None or not (settings.endpoint_id or settings.address or settings.address6):
                continue
            driver = "bridge" if network.damage and network.driver not in self.drivers else network.driver
            endpoint = _recorded(container, network, driver, settings, position, ends)
            if network.given(endpoint.addresses):
                self._lost(container, endpoint, "its address is another container's")
                continue
            active.endpoints.append(endpoint)
            network.mark(endpoint.addresses)
        active.namespace = self._namespace_of(container, active, ends)
        if active.namespace >= 0:
            self._drop_lost(container, active, ends)
        for endpoint in active.endpoints:
            self._names.join(container, endpoint)
        by_name = {endpoint.name: endpoint for endpoint in active.endpoints}
        outward = container.network_settings.outward
        if outward is None and active.endpoints and not self._outward.network(active.endpoints[0]).internal:
            outward = active.endpoints[0].name
        active.outward = by_name.get(outward or "")
        active.outward6 = by_name.get(container.network_settings.outward6 or "")
        self._outward.hold_again(container, active)
        self._active[container.id] = active
        if active.namespace >= 0:
            try:
                self._names.serve(container, active)
            except Exception as error:
                log.warning(
                    "the names of container %s cannot be served: %s", container.name, error, extra=container.fields
                )

    def _drop_lost(self, container: Container, active: Active, ends: dict[str, Link]) -> None:
        """Endpoints whose interfaces are not there any more, of a container that runs: it is on those networks again
        when it is started anew. One whose interface has another name by now is known by its peer."""
        from teu.linux import netlink

        if all(endpoint.number for endpoint in active.endpoints):
            return
        with netns.run_in(active.namespace, netlink.Socket) as inner:
            links = {link.name: link for link in inner.links()}
        here = {link.number for link in ends.values()}
        for position, endpoint in reversed(list(enumerate(active.endpoints))):
            if endpoint.number or endpoint.driver not in self.drivers:  # what a plugin does is not known
                continue
            driver = self.drivers[endpoint.driver]
            link = links.get(endpoint.interface) or next(
                (one for one in links.values() if driver.owns(endpoint, one)), None
            )
            if link is None:
                del active.endpoints[position]
                self._outward.network(endpoint).give_back(endpoint.addresses)
                self._lost(container, endpoint, "its interface is not there any more")
            elif link.kind == "veth" and link.peer in here:
                active.endpoints[position] = endpoint._replace(number=link.peer)

    def _lost(self, container: Container, endpoint: Endpoint, why: str) -> None:
        log.warning(
            "container %s is not on network %s any more: %s",
            container.name,
            endpoint.name,
            why,
            extra=container.fields,
        )
        container.network_settings.networks[endpoint.name].clear()

    def _finish(self, container: Container, ends: dict[str, Link]) -> None:
        """What a daemon began that died. The record tells what is so: where a container has interfaces that it does not
        know (the drivers take them away), or lacks some that it does, its way out is made anew, and its hosts and
        resolv.conf follow."""
        active = self._active.get(container.id)
        if active is None or active.namespace < 0:
            return
        self._clear_hosts(container, active)
        self._know_resolver(container)
        settings = container.network_settings
        here = {link.number for name, link in ends.items() if name.startswith(f"teu{container.id[:10]}")}
        swept = self._sweep(active)
        known = {name for name, one in settings.networks.items() if one.endpoint_id}
        ways = ((settings.outward, active.outward), (settings.outward6, active.outward6))
        if (
            not swept
            and here <= {one.number for one in active.endpoints}
            and known == {one.name for one in active.endpoints}
            and all(name is None or name == (place.name if place else "") for name, place in ways)
        ):
            return
        self._lead(container, active, anew=True)
        container.save()

    def _sweep(self, active: Active) -> bool:
        """Interfaces without a pair, on a parent of a network of ours, that a container's record does not know are
        taken out; whether there was one. They have names as we give them; who has renamed one keeps all."""
        from teu.linux import netlink

        with netns.run_in(active.namespace, netlink.Socket) as inner:
            links = {link.name: link for link in inner.links() if link.far and link.kind != "veth"}
            if any(not one.number and one.interface not in links for one in active.endpoints):
                return False
            known = {endpoint.interface for endpoint in active.endpoints}
            strays = [link for link in links.values() if link.name not in known and self._may_make(link)]
            if strays:
                inner.send([netlink.delete_index(link.number) for link in strays])
        return bool(strays)

    def _may_make(self, link: Link) -> bool:
        """Whether an interface may be a container's on one of the networks that have no pairs."""
        for network in self._store.all():
            if network.driver in self.drivers and link.name.removeprefix(network.prefix).isdecimal():
                endpoint = Endpoint(network.id, network.name, network.driver, None, None, "", 0, "")
                if self.drivers[network.driver].owns(endpoint, link):
                    return True
        return False

    def _clear_hosts(self, container: Container, active: Active) -> None:
        """Take out of a container's hosts the addresses that it had on networks that it has left."""
        path, names = f"{container.directory}/hosts", files.host_names(container.hostname, container.config.domainname)
        kept = {str(address) for endpoint in active.endpoints for address in endpoint.addresses}
        gateways = self._host_gateways(container, "")
        kept |= {address for address, _ in files.extra_hosts(container.host_config, gateways)}
        stale = [text for text in files.addresses(path, names) if text not in kept and self._may_give(text)]
        files.change_hosts(path, drop=[(text, names) for text in stale])

    def _may_give(self, text: str) -> bool:
        """Whether it is an address of a network of ours."""
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return any(network.pool_of(address) for network in self._store.all())

    def _namespace_of(self, container: Container, active: Active, ends: dict[str, Link]) -> int:
        """A descriptor of a running container's network namespace, known to be that: a process's number alone may
        belong to another by now. -1 where it is not."""
        from teu.linux import netlink

        descriptor = -1
        try:
            process = os.pidfd_open(container.pid)
            try:
                listed = self.has_process(container)
                descriptor = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                ended = select.poll()
                ended.register(process, select.POLLIN)
                listed = listed and not ended.poll(0)
            finally:
                os.close(process)
            numbers = {endpoint.number for endpoint in active.endpoints if endpoint.number}
            if numbers:
                # The other ends of our pairs are nowhere else. A number is an interface's in one namespace alone: each
                # end has to have that of the other.
                peers = {link.number: link.peer for link in ends.values() if link.number in numbers}
                with netns.run_in(descriptor, netlink.Socket) as inner:
                    listed = any(peers.get(link.peer) == link.number for link in inner.links() if link.kind == "veth")
            own = os.stat("/proc/thread-self/ns/net")
            if listed and not os.path.samestat(os.fstat(descriptor), own):
                return descriptor
        except OSError as error:
            log.debug("container %s: %s", container.name, error)
        if descriptor >= 0:
            os.close(descriptor)
        log.warning("the network namespace of container %s is not known", container.name, extra=container.fields)
        return -1

    def has_process(self, container: Container) -> bool:
        """Whether the process that the record has is in the container's cgroup. Raises OSError where there is none."""
        return container.id in Path(f"/proc/{container.pid}/cgroup").read_text()


def _recorded(
    container: Container,
    network: Network,
    driver: str,
    settings: EndpointSettings,
    position: int,
    ends: Mapping[str, Link],
) -> Endpoint:
    """An endpoint as a container's record has it. `position`: its place among them, of those from before they said
    theirs; `ends`: our ends of pairs, by name."""
    veth = settings.veth or f"teu{container.id[:10]}{position:x}"
    asked = (settings.driver_opts or {}).get(requests.OPTION_INTERFACE)
    return Endpoint(
        network.id,
        network.name,
        driver,
        IPv4Address(settings.address) if settings.address else None,
        IPv6Address(settings.address6) if settings.address6 else None,
        veth,
        ends[veth].number if veth in ends else 0,
        settings.interface or asked or f"{network.prefix}{int(veth[13:], 16)}",
        settings.endpoint_id,
        settings.source,
        tuple(ip_address(text) for text in (settings.gateway, settings.gateway6) if text),
    )


def _plugged(endpoint: Endpoint, plug: Plug) -> Endpoint:
    """An endpoint with what its driver has made of it."""
    given = {one.version: one.ip for one in plug.addresses}
    address, address6 = given.get(4, endpoint.address), given.get(6, endpoint.address6)
    assert not isinstance(address, IPv6Address)
    assert not isinstance(address6, IPv4Address)
    return endpoint._replace(
        number=plug.outside,
        interface=plug.name or endpoint.interface,
        address=address,
        address6=address6,
        source=plug.source,
        gateways=plug.gateways,
    )


def _prefix(network: Network, address: Address, given: Mapping[Address, int]) -> int:
    """How long an address's prefix is: that of its subnet, or what the driver gave with it."""
    pool = network.pool_of(address)
    return pool.subnet.prefixlen if pool is not None else given.get(address, address.max_prefixlen)


@contextmanager
def _endpoint_of(container: Container, network: Network) -> Iterator[None]:
    """What the kernel refuses of a container's place on a network, as a client is told it."""
    try:
        yield
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or str(error)
        reason = reason[:1].lower() + reason[1:]
        raise EngineError(
            f"failed to create endpoint {container.name} on network {network.name}: {reason}{what}"
        ) from error


@contextmanager
def _logged(what: str, *arguments: str) -> Iterator[None]:
    """What fails is logged and over."""
    try:
        yield
    except Exception:
        log.exception(what, *arguments)


def _free_name(container: Container, active: Active, network: Network, settings: EndpointSettings) -> tuple[int, str]:
    """The next endpoint's number, which no other one has, and its interface's name: what is asked for, or the first
    with the network's prefix that nobody has or asks for."""
    taken = {int(endpoint.veth[13:], 16) for endpoint in active.endpoints}
    position = next(number for number in range(MOST_ENDPOINTS) if number not in taken)
    asked = {
        (other.driver_opts or {}).get(requests.OPTION_INTERFACE)
        for other in container.network_settings.networks.values()
    }
    used = {endpoint.interface for endpoint in active.endpoints} | asked
    names = (f"{network.prefix}{number}" for number in range(2 * MOST_ENDPOINTS))
    own = (settings.driver_opts or {}).get(requests.OPTION_INTERFACE)
    return position, own or next(name for name in names if name not in used)


def _set_inside(namespace: int, interface: str, ipv6: bool, advertised: bool, values: list[tuple[str, str]]) -> None:
    """Settings of an interface, in the namespace: that it has IPv6, and listens to routers, and sysctls by paths with
    IFNAME in them."""

    def body() -> None:
        if ipv6:
            Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("0")
        if advertised:
            Path(f"/proc/sys/net/ipv6/conf/{interface}/accept_ra").write_text("1")
        for path, value in values:
            name = path.replace("IFNAME", interface)
            try:
                Path(f"/proc/sys/{name}").write_text(value)
            except OSError as error:
                raise BadRequest(
                    f"{requests.OPTION_SYSCTLS}: {name.replace('/', '.')} cannot be set: {error.strerror}"
                ) from None

    if values or ipv6:
        netns.run_in(namespace, body)


def _open_quietly() -> Socket:
    """In a new network namespace: a socket of it, its loopback up, and what its interfaces are to begin with. IPv6 is
    theirs alone that are given it; no other machine tells them its routes, and nobody is asked whether addresses that
    we know are unique, which would take a second. An interface that comes up tells its neighbours, who may know another
    MAC address for what it has."""
    from teu.linux import netlink

    for name, value in (
        ("ipv4/conf/default/arp_notify", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        # Where neighbours do not reach each other but by the host, for a link, it says that there is a shorter way.
        ("ipv6/conf/default/accept_redirects", "0"),
        ("ipv6/conf/default/ndisc_notify", "1"),
    ):
        with suppress(OSError):  # the host has no IPv6
            Path(f"/proc/sys/net/{name}").write_text(value)
    inner = netlink.Socket()
    try:
        inner.send([netlink.set_up(1)])
    except BaseException:
        inner.close()
        raise
    return inner
