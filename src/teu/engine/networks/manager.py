# SPDX-License-Identifier: Apache-2.0
"""Networks as the API sees them: they are made, described, removed. Called by the routes and by the daemon.

Their records are in store.py, what a network and a container's part in it are, in model.py, what requests may say, in
requests.py; the attachment of containers is in endpoints.py, and how it is made in drivers/.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden, NotFound
from teu.engine.core.fields import SubnetAsked
from teu.engine.core.managed import KNOWN
from teu.engine.networks import ipam, requests
from teu.engine.networks.model import OWN_IPAM, PREDEFINED, Network
from teu.engine.networks.options import SHOWN_OF_BRIDGE
from teu.engine.networks.records import NetworkRecord, Subnet

if TYPE_CHECKING:
    from teu.engine.containers.store import Containers
    from teu.engine.core.events import Events
    from teu.engine.core.fields import NetworkAsked
    from teu.engine.networks.drivers.driver import Driver
    from teu.engine.networks.drivers.remote import Remote
    from teu.engine.networks.endpoints import Endpoints
    from teu.engine.networks.store import Store
    from teu.oci.jsontext import Json

log = logging.getLogger("teu.engine")


class Networks:
    """The networks for the API: made, shown, removed; and containers connected to them."""

    def __init__(self, store: Store, endpoints: Endpoints, containers: Containers, events: Events) -> None:
        self._store = store
        self._endpoints = endpoints
        self._containers = containers
        self._events = events
        self.all = store.all
        self.find = store.find
        self.get = store.get

    def start(self) -> None:
        """At the start of the daemon: what the records say is there, the predefined networks too."""
        self._endpoints.start()
        self._store.start(self._held)

    def _held(self, network: Network) -> bool:
        """Whether containers of a daemon before this one may be on it: as they were left, and since the boot."""
        return self._endpoints.kernel.socket().link(network.interface) is not None and any(
            endpoint.network_id == network.id and (endpoint.address or endpoint.address6)
            for container in self._containers.all()
            for endpoint in container.network_settings.networks.values()
        )

    def describe(self, network: Network, containers: bool = True) -> dict[str, Json]:
        """The API's form of a network."""
        if network.name == "bridge" and not network.damage and not network.pools:
            self._address(network)
        result = network.record.shown()
        if isinstance(ipam := result["IPAM"], dict) and not ipam["Config"]:
            ipam["Config"] = None  # as with docker, of host and none
        if network.name == "bridge":
            result["Options"] = {**SHOWN_OF_BRIDGE, **network.options}
        members: dict[str, Json] = {}
        if containers:
            for container in self._containers.all():
                settings = container.network_settings.networks.get(network.name)
                if settings and settings.endpoint_id and container.running:
                    members[container.id] = {
                        "Name": container.name,
                        "EndpointID": settings.endpoint_id,
                        "MacAddress": settings.mac,
                        "IPv4Address": f"{settings.address}/{settings.prefix}" if settings.address else "",
                        "IPv6Address": f"{settings.address6}/{settings.prefix6}" if settings.address6 else "",
                    }
        result["Containers"] = members
        if containers:
            subnets: dict[str, Json] = {str(pool.subnet): {**pool.status()} for pool in network.pools}
            result["Status"] = {"IPAM": {"Subnets": subnets} if subnets else {}}
        if network.damage:
            result["Status"] = {"Error": network.damage}
        return result

    def _address(self, network: Network) -> None:
        """The default bridge is looked at before its first use: it says which addresses it is about to have, as
        docker's does."""
        try:
            with self._store.lock:
                if not network.pools:  # else somebody may be on it
                    self._store.address(network, self._endpoints.kernel.socket().routes)
        except (EngineError, OSError) as error:  # who uses it is told
            log.warning("network bridge has no subnets: %s", error)

    def create(self, asked: NetworkAsked) -> tuple[Network, str]:
        """POST /networks/create: the network, and a warning. Raises BadRequest, Forbidden, NotFound, Conflict."""
        requests.check_name(asked.name)
        if asked.name in PREDEFINED or asked.name == "default":
            raise Forbidden(f"operation is not permitted on predefined {asked.name} network")
        requests.check_network(asked)
        name = KNOWN.named(asked.driver or requests.DEFAULT_DRIVER)
        if asked.config_only:
            return self._configuration(asked, name), ""
        driver = self._endpoints.drivers[name]
        plugin = self._endpoints.drivers.plugin(name)
        scope = self._scope(plugin, asked) if plugin is not None else "local"
        if asked.config_from.network:
            asked = self._configured(asked)
            options = asked.options
        else:
            options = requests.options(asked, self._store.defaults.options(name, asked.options))
        shape = requests.shape(asked, options)
        without = driver.options(options, shape.internal)
        if asked.ipam.driver in ("", "default"):
            without += [*(asked.ipam.options or {})]
        chosen = requests.addressing(asked.ipam.subnets, shape, driver.several_subnets)
        with self._store.lock:
            self._must_be_new(asked.name)
            driver.check(options)
            gateways: tuple[int, ...] = (4, 6) if driver.own_gateway else ()
            if plugin is not None:
                gateways = plugin.gateways(options, *shape)
            space, subnets = self._subnets(asked, chosen, shape, gateways)
            try:
                self._must_be_new(asked.name)  # while a plugin was asked, others may have made one
                record = NetworkRecord(asked.name, name, subnets, asked.ipam.options, options, asked.labels)
                record.ipv4, record.ipv6, record.internal = shape
                record.attachable, record.scope = asked.attachable, scope
                record.ipam_driver = asked.ipam.driver or "default"
                record.address_space, record.config_from = space, asked.config_from.network
                # Those that nobody chose may not be relied on for fixed addresses.
                record.automatic_subnet, record.automatic_subnet6 = not chosen[4], shape.ipv6 and not chosen[6]
                network = Network(record, aside=self._store.aside)
                self._make(network, driver)
            except BaseException:
                self._release(asked.ipam.driver, subnets)
                raise
        self._event(network, "create")
        told = [f"options without an effect on a {name} network: {', '.join(without)}"] if without else []
        for version, enabled in ((4, shape.ipv4), (6, shape.ipv6)):
            if chosen[version] and not enabled:
                told.append(f"IPv{version} subnets have no effect: the network is without IPv{version}")
        return network, "; ".join(told)

    def _must_be_new(self, name: str) -> None:
        if self._store.named(name) is not None:
            raise Conflict(f"network with name {name} already exists")

    def _make(self, network: Network, driver: Driver) -> None:
        """Save it, and let its driver make what it is from its beginning on."""
        network.changing = True
        self._store.save(network)
        try:
            driver.create(network)
        except BaseException as error:
            self._store.forget(network)
            if isinstance(error, OSError):
                raise EngineError(f"network {network.name} cannot be made: {error}") from error
            raise
        finally:
            network.changing = False

    def _scope(self, plugin: Remote, asked: NetworkAsked) -> str:
        """That of a plugin's networks. Raises NotFound, Forbidden, EngineError."""
        scope = str(plugin.capability("Scope"))
        if asked.scope == "local" and scope == "global":
            raise Forbidden(f"cannot downgrade network scope for {asked.driver} networks")
        return scope

    def _configuration(self, asked: NetworkAsked, driver: str) -> Network:
        """A network that is only the configuration of others."""
        options = self._store.defaults.options(driver, asked.options)
        shape = requests.Shape(asked.ipv4 is not False, bool(asked.ipv6), False)
        chosen = requests.addressing(asked.ipam.subnets, shape, True)
        subnets = [
            Subnet(one.subnet, one.gateway, one.range, one.others) for version in (4, 6) for one in chosen[version]
        ]
        record = NetworkRecord(asked.name, "null", subnets, asked.ipam.options, options, asked.labels)
        record.ipv4, record.ipv6, record.config_only = shape.ipv4, shape.ipv6, True
        record.ipam_driver = asked.ipam.driver or "default"
        network = Network(record)
        with self._store.lock:
            self._must_be_new(asked.name)
            self._store.save(network)
        self._event(network, "create")
        return network

    def _configured(self, asked: NetworkAsked) -> NetworkAsked:
        """A request with the configuration of the network that it names. Raises NotFound."""
        name = asked.config_from.network
        found = next((one for one in self._store.all() if one.name == name and one.record.config_only), None)
        if found is None or found.damage:
            raise NotFound(f'configuration network "{name}" does not exist')
        record = found.record
        result = asked.copy()
        result.ipv4, result.ipv6 = record.ipv4, record.ipv6
        result.options, result.labels = record.options, record.labels
        result.ipam = asked.ipam.copy()
        result.ipam.driver, result.ipam.options = record.ipam_driver, record.ipam_options
        result.ipam.subnets = [
            SubnetAsked(subnet=one.subnet, range=one.range, gateway=one.gateway, others=dict(one.others))
            for one in record.subnets
        ]
        return result

    def _subnets(
        self,
        asked: NetworkAsked,
        chosen: dict[int, list[SubnetAsked]],
        shape: requests.Shape,
        gateways: Collection[int],
    ) -> tuple[str, list[Subnet]]:
        """The address space and the subnets of a new network, by its IPAM driver. `gateways`: the families that have
        a gateway also where none is asked for."""
        name = asked.ipam.driver or "default"
        if name == "default":
            return "LocalDefault", self._addressing(chosen, shape, gateways)
        if name == "null":
            if (asked.driver or requests.DEFAULT_DRIVER) in self._endpoints.drivers:
                raise BadRequest(f"ipv{4 if shape.ipv4 else 6} pool is empty")
            if asked.ipam.subnets:
                raise BadRequest("null ipam driver does not handle specific address pool requests")
            every = ((shape.ipv4, "0.0.0.0/0"), (shape.ipv6, "::/0"))
            return "null", [Subnet(one, "") for enabled, one in every if enabled]
        families = [version for version, enabled in ((4, shape.ipv4), (6, shape.ipv6)) if enabled]
        taken = [*self._store.subnets(), *self._endpoints.kernel.socket().routes()]
        from teu.engine.networks import remotepool  # 18 ms of the daemon's start

        with self._store.aside():
            return remotepool.request(name, asked.ipam.options, chosen, families, taken, gateways)

    def _release(self, ipam_driver: str, subnets: list[Subnet]) -> None:
        """Of a network that is no more. Never fails."""
        if (ipam_driver or "default") not in OWN_IPAM:
            from teu.engine.networks import remotepool  # as above

            with self._store.aside():
                remotepool.release(ipam_driver, subnets)

    def _addressing(
        self, asked: dict[int, list[SubnetAsked]], shape: requests.Shape, gateways: Collection[int]
    ) -> list[Subnet]:
        """The record's of what was asked for; the engine chooses where a family that there is to be has none."""
        result: list[Subnet] = []
        for version, enabled in ((4, shape.ipv4), (6, shape.ipv6)):
            taken = [*self._store.subnets(), *(ip_network(subnet.subnet) for subnet in result)]
            if enabled and not asked[version]:
                routes = self._endpoints.kernel.socket().routes(version)
                subnet = ipam.choose_subnet([*taken, *routes], version, self._store.sources)
                result.append(Subnet(str(subnet), str(ipam.first_host(subnet)) if version in gateways else ""))
            for one in asked[version]:
                result.append(self._subnet(one, taken if enabled else [], version in gateways))
                taken.append(ip_network(one.subnet, strict=False))
        return result

    def _subnet(self, asked: SubnetAsked, taken: list[ipam.Range], own_gateway: bool) -> Subnet:
        subnet = ipam.check_subnet(asked.subnet, taken)
        gateway = str(ip_address(asked.gateway)) if asked.gateway else ""
        if not gateway and own_gateway:
            gateway = str(ipam.first_host(subnet))
        others = {name: str(ip_address(address)) for name, address in asked.others.items()}
        for name, address in others.items():
            if list(others.values()).count(address) > 1 or address == gateway:
                raise EngineError(f"failed to allocate secondary ip address ({name}:{address}): Address already in use")
        range_ = str(ip_network(asked.range, strict=False)) if asked.range else ""
        return Subnet(str(subnet), gateway, range_, others)

    def remove(self, network: Network) -> None:
        """Remove a network that nobody is on. Raises Forbidden for a predefined one, and for one that is in use."""
        if network.name in PREDEFINED:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        with self._store.lock:
            if active := self._endpoints.on(network):
                names = ", ".join(f'name:"{name}" id:"{endpoint[:12]}"' for name, endpoint in active)
                raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({names})")
            record = network.record
            if record.config_only and any(one.record.config_from == network.name for one in self._store.all()):
                raise Forbidden(f'error while removing network: configuration network "{network.name}" is in use')
            network.must_be_settled()
            if self._store.by_id(network.id) is not network:  # somebody else was quicker
                raise NotFound(f"network {network.name} not found")
            network.changing = True
            try:
                # In this order nobody is left with something that no record is of, whenever the daemon dies.
                if not network.damage and not record.config_only:
                    self._release(record.ipam_driver, record.subnets)
                self._endpoints.driver(network).delete(network)
                self._store.forget(network)
            finally:
                network.changing = False
        self._event(network, "destroy")

    def prune(self, keep: list[Network]) -> list[str]:
        """Remove the user-defined networks that no container names and that are not in `keep`."""
        gone = []
        for network in self.all():
            if not network.is_user_defined or network in keep or self._containers.using_network(network.name):
                continue
            if network.record.config_only:
                continue
            with suppress(EngineError):
                self.remove(network)
                gone.append(network.name)
        return gone

    def _event(self, network: Network, action: str) -> None:
        self._events.publish("network", action, network.id, {"name": network.name, "type": network.driver})
