# SPDX-License-Identifier: Apache-2.0
"""The way out of a container: which of its networks has the default route and the published ports, and those ports.

It is the first network that is not internal, by priority and name. It moves when that changes, and hosts and
resolv.conf follow.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from teu.engine.containers.network_settings import HostPort
from teu.engine.core.errors import EngineError
from teu.engine.networks import firewall
from teu.engine.networks.drivers.driver import Driver
from teu.engine.networks.model import Active, Endpoint, Network
from teu.engine.networks.ports import Binding, Ports, bindings, canonical, parse_port

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.networks.store import Store
    from teu.linux.netlink import Socket

log = logging.getLogger("teu.engine")


class Outward:
    """Under the networks' lock. `drivers`: by their names."""

    def __init__(self, store: Store, drivers: dict[str, Driver]) -> None:
        self._store = store
        self._drivers = drivers
        self.ports = Ports()

    def network(self, endpoint: Endpoint) -> Network:
        """That of a running container's endpoint."""
        network = self._store.by_id(endpoint.network)
        assert network is not None, "no network goes while somebody is on it"
        return network

    def lead(self, container: Container, active: Active, inner: Socket) -> None:
        """The default route and the published ports go by the network that is first among those with a way out: by
        priority, then by name, as everywhere. Wherever a container's networks change, this follows."""
        from teu.linux import netlink

        networks = container.network_settings.networks
        best = min(
            (endpoint for endpoint in active.endpoints if not self.network(endpoint).internal),
            key=lambda endpoint: (-networks[endpoint.name].gateway_priority, endpoint.name),
            default=None,
        )
        before = active.outward
        if best == before and container.network_settings.outward is not None:
            return
        if before is not None and best is None and before in active.endpoints:
            with suppress(OSError):
                gateway = self.network(before).addressing().gateway
                inner.send([netlink.delete_default_route(gateway)])
        used = {(entry.port, entry.protocol): entry.host_port for entry in active.published}
        self.unpublish(container, active)
        active.outward = best
        container.network_settings.outward = best.name if best else ""
        if best is not None:
            network = self.network(best)
            inner.send([netlink.default_route(network.addressing().gateway)])
            self._publish(container, active, network, best, used)

    def gateway(self, active: Active) -> str:
        """An address of the host for the container; "" where it is on no network."""
        endpoint = active.outward or next(iter(active.endpoints), None)
        return str(self.network(endpoint).addressing().gateway) if endpoint else ""

    def unpublish(self, container: Container, active: Active) -> None:
        """Of a container that runs on. Raises EngineError."""
        container.network_settings.ports = {}
        if active.published:
            entries, active.published = active.published, []
            for entry in entries:
                self.ports.release(entry.protocol, entry.host_address, entry.host_port)
            assert active.outward is not None
            self._drivers[active.outward.driver].unpublish(entries)

    def _publish(
        self,
        container: Container,
        active: Active,
        network: Network,
        endpoint: Endpoint,
        used: dict[tuple[int, str], int],
    ) -> None:
        """`used`: host ports that were chosen before, and are kept where they are free."""
        exposed = {canonical(key): value for key, value in (container.config.exposed_ports or {}).items()}
        shown: dict[str, list[HostPort] | None] = dict.fromkeys(exposed)
        for wanted in bindings(container.host_config, exposed, network.binding):
            owner = f"{container.name} ({container.id})"
            port = self._reserve(wanted, used.get((wanted.port, wanted.protocol), 0), owner)
            active.published.append(
                firewall.Published(wanted.protocol, wanted.address, port, str(endpoint.address), wanted.port)
            )
            key = f"{wanted.port}/{wanted.protocol}"
            shown[key] = [*(shown.get(key) or []), HostPort(wanted.address, str(port))]
        if active.published:
            self._drivers[endpoint.driver].publish(endpoint, active.published)
        container.network_settings.ports = shown

    def _reserve(self, wanted: Binding, before: int, owner: str) -> int:
        if before and wanted.first <= before <= wanted.last or before and not wanted.first:
            with suppress(EngineError):
                return self.ports.reserve(wanted._replace(first=before, last=before), owner)
        return self.ports.reserve(wanted, owner)

    def withdraw(self, active: Active) -> None:
        """Of a container that has ended. Never fails."""
        if active.published:
            assert active.outward is not None
            self._drivers[active.outward.driver].withdraw(active.published)
        for entry in active.published:
            self.ports.release(entry.protocol, entry.host_address, entry.host_port)

    def hold_again(self, container: Container, active: Active) -> None:
        """After a start of the daemon: what its record says is published."""
        for key, entries in container.network_settings.ports.items():
            try:
                port, protocol = parse_port(key)
                for entry in (entries or []) if active.outward else []:
                    host_ip, host_port = str(IPv4Address(entry.address)), int(entry.port)
                    if not self.ports.hold_again(protocol, host_ip, host_port):
                        log.warning(
                            "port %s of container %s is bound by another process",
                            host_port,
                            container.name,
                            extra=container.fields,
                        )
                    assert active.outward
                    active.published.append(
                        firewall.Published(protocol, host_ip, host_port, str(active.outward.address), port)
                    )
            except (ValueError, OverflowError, EngineError) as error:
                log.error(
                    "port %s of container %s is not published any more: %s",
                    key,
                    container.name,
                    error,
                    extra=container.fields,
                )
