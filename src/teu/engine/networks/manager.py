# SPDX-License-Identifier: Apache-2.0
"""Networks as the API sees them: they are made, described, removed. Called by the routes and by the daemon.

Their records are in store.py, what a network and a container's part in it are, in model.py, what requests may say, in
requests.py; the attachment of containers is in endpoints.py, and how it is made in drivers/.
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from teu.engine.core.errors import Conflict, EngineError, Forbidden
from teu.engine.networks import ipam, requests
from teu.engine.networks.model import DEFAULT_BRIDGE, PREDEFINED, Network
from teu.engine.networks.records import NetworkRecord, Subnet

if TYPE_CHECKING:
    from teu.engine.containers.store import Containers
    from teu.engine.core.events import Events
    from teu.engine.core.fields import NetworkAsked, SubnetAsked
    from teu.engine.networks.endpoints import Endpoints
    from teu.engine.networks.store import Store
    from teu.oci.jsontext import Json


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
        self._store.start()

    def describe(self, network: Network, containers: bool = True) -> dict[str, Json]:
        """The API's form of a network."""
        result = network.record.shown()
        if network.name == "bridge":
            result["Options"] = {requests.OPTION_BRIDGE: DEFAULT_BRIDGE, **network.options}
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
                        "IPv6Address": "",
                    }
        result["Containers"] = members
        if network.damage:
            result["Status"] = {"Error": network.damage}
        return result

    def create(self, asked: NetworkAsked) -> tuple[Network, str]:
        """POST /networks/create: the network, and a warning. Raises BadRequest, Forbidden, NotFound, Conflict."""
        requests.check_name(asked.name)
        if asked.name in PREDEFINED or asked.name == "default":
            raise Forbidden(f"operation is not permitted on predefined {asked.name} network")
        requests.check_network(asked, self._endpoints.drivers)
        name = asked.driver or requests.DEFAULT_DRIVER
        driver = self._endpoints.drivers[name]
        without = driver.options(asked.options) + [*(asked.ipam.options or {})]
        chosen = requests.addressing(asked.ipam.subnets)
        with self._store.lock:
            if any(other.name == asked.name for other in self._store.all()):
                raise Conflict(f"network with name {asked.name} already exists")
            driver.check(asked.options)
            subnets = [self._addressing(chosen)]
            record = NetworkRecord(asked.name, name, subnets, asked.ipam.options, asked.options, asked.labels)
            record.internal, record.attachable = asked.internal, asked.attachable
            # One that nobody chose may not be relied on for fixed addresses.
            record.automatic_subnet = chosen is None
            network = Network(record)
            self._store.save(network)
        self._event(network, "create")
        told = f"options without an effect on a {name} network: {', '.join(without)}"
        return network, told if without else ""

    def _addressing(self, asked: SubnetAsked | None) -> Subnet:
        """The record's of what was asked for; None lets the engine choose."""
        if asked is None:
            subnet = ipam.choose_subnet([*self._store.subnets(), *self._endpoints.kernel.socket().routes()])
            return Subnet(str(subnet), str(next(subnet.hosts())))
        subnet = ipam.check_subnet(asked.subnet, self._store.subnets())
        gateway = asked.gateway or str(next(subnet.hosts()))
        for name, address in asked.others.items():
            if list(asked.others.values()).count(address) > 1 or address == gateway:
                raise EngineError(f"failed to allocate secondary ip address ({name}:{address}): Address already in use")
        range_ = str(IPv4Network(asked.range, strict=False)) if asked.range else ""
        return Subnet(str(subnet), gateway, range_, asked.others)

    def remove(self, network: Network) -> None:
        """Remove a network that nobody is on. Raises Forbidden for a predefined one, and for one that is in use."""
        if network.name in PREDEFINED:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        with self._store.lock:
            if self._endpoints.on(network):
                raise Forbidden(
                    f"error while removing network: network {network.name} id {network.id} has active endpoints"
                )
            self._store.forget(network)
            self._endpoints.driver(network).delete(network)
        self._event(network, "destroy")

    def prune(self, keep: list[Network]) -> list[str]:
        """Remove the user-defined networks that no container names and that are not in `keep`."""
        gone = []
        for network in self.all():
            if not network.is_user_defined or network in keep or self._containers.using_network(network.name):
                continue
            with suppress(EngineError):
                self.remove(network)
                gone.append(network.name)
        return gone

    def _event(self, network: Network, action: str) -> None:
        self._events.publish("network", action, network.id, {"name": network.name, "type": network.driver})
