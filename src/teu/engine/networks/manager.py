# SPDX-License-Identifier: Apache-2.0
"""Networks as the API sees them: they are made, described, removed. Called by the routes and by the daemon.

Their records are in store.py, what a network and a container's part in it are, in model.py, what requests may say, in
requests.py; the attachment of containers is in endpoints.py, and how it is made in drivers/.
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

from teu.engine.core.errors import Conflict, EngineError, Forbidden
from teu.engine.networks import ipam, requests
from teu.engine.networks.model import DEFAULT_BRIDGE, PREDEFINED, Network
from teu.engine.networks.store import new_record

if TYPE_CHECKING:
    from teu.engine.containers.store import Containers
    from teu.engine.core.events import Events
    from teu.engine.networks.endpoints import Endpoints
    from teu.engine.networks.store import Store

# Of a network's record, what the API does not know: nobody chose its subnet; we made the bridge of that name.
OWN_KEYS = ("AutomaticSubnet", "OwnBridge")


class Networks:
    def __init__(self, store: Store, endpoints: Endpoints, containers: Containers, events: Events) -> None:
        self._store = store
        self._endpoints = endpoints
        self._containers = containers
        self._events = events
        self.all = store.all
        self.find = store.find
        self.get = store.get

    def start(self) -> None:
        self._endpoints.start()
        self._store.start()

    def describe(self, network: Network, containers: bool = True) -> dict[str, Any]:
        """The API's form of a network."""
        result = {key: value for key, value in network.record.items() if key not in OWN_KEYS}
        if network.name == "bridge":
            result["Options"] = {requests.OPTION_BRIDGE: DEFAULT_BRIDGE, **network.options}
        members: dict[str, Any] = {}
        if containers:
            for container in self._containers.all():
                settings = (container.network_settings.get("Networks") or {}).get(network.name)
                if settings and settings.get("EndpointID") and container.running:
                    address = settings.get("IPAddress") or ""
                    members[container.id] = {
                        "Name": container.name,
                        "EndpointID": settings["EndpointID"],
                        "MacAddress": settings.get("MacAddress", ""),
                        "IPv4Address": f"{address}/{settings['IPPrefixLen']}" if address else "",
                        "IPv6Address": "",
                    }
        result["Containers"] = members
        if network.damage:
            result["Status"] = {"Error": network.damage}
        return result

    def create(self, request: dict[str, Any]) -> tuple[Network, str]:
        """POST /networks/create: the network, and a warning. Raises BadRequest, Forbidden, NotFound, Conflict."""
        request = requests.read(request, requests.CREATE)
        name, driver, options = request["Name"], request["Driver"] or "bridge", request["Options"]
        requests.check_name(name)
        if name in PREDEFINED or name == "default":
            raise Forbidden(f"operation is not permitted on predefined {name} network")
        requests.check_network(request, self._endpoints.drivers)
        without = self._endpoints.drivers[driver].options(options) + [*(request["IPAM"]["Options"] or {})]
        config = requests.addressing(request["IPAM"]["Config"])
        with self._store.lock:
            if any(other.name == name for other in self._store.all()):
                raise Conflict(f"network with name {name} already exists")
            self._endpoints.drivers[driver].check(options)
            network = Network(
                new_record(
                    name,
                    driver,
                    {
                        "IPAM": {
                            "Driver": "default",
                            "Options": request["IPAM"]["Options"],
                            "Config": [self._addressing(config)],
                        },
                        "Internal": request["Internal"],
                        "Attachable": request["Attachable"],
                        "Options": options,
                        "Labels": request["Labels"],
                        # Ours alone: a subnet that nobody chose may not be relied on for fixed addresses.
                        "AutomaticSubnet": not config,
                    },
                )
            )
            self._store.save(network)
        self._event(network, "create")
        told = f"options without an effect on a {driver} network: {', '.join(without)}"
        return network, told if without else ""

    def _addressing(self, config: dict[str, Any]) -> dict[str, Any]:
        """The record's IPAM.Config of what was asked for; {} lets the engine choose."""
        if config:
            subnet = ipam.check_subnet(config["Subnet"], self._store.subnets())
        else:
            subnet = ipam.choose_subnet([*self._store.subnets(), *self._endpoints.kernel.socket().routes()])
        gateway = str(config.get("Gateway") or next(subnet.hosts()))
        result: dict[str, Any] = {"Subnet": str(subnet), "Gateway": gateway}
        if config.get("IPRange"):
            result["IPRange"] = str(IPv4Network(config["IPRange"], strict=False))
        others = config.get("AuxiliaryAddresses") or {}
        for name, address in others.items():
            if list(others.values()).count(address) > 1 or address == gateway:
                raise EngineError(f"failed to allocate secondary ip address ({name}:{address}): Address already in use")
        if others:
            result["AuxiliaryAddresses"] = others
        return result

    def remove(self, network: Network) -> None:
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
