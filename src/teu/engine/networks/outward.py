# SPDX-License-Identifier: Apache-2.0
"""The way out of a container: which of its networks has the default route and the published ports, and those ports.

It is the first network that is not internal, by priority and name, and for IPv6 the first of those that have IPv6. It
moves when that changes, and hosts and resolv.conf follow. On the other networks whose addresses the world knows
(gateway mode routed) the ports are open, too, at the container's own addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

from teu.engine.containers.network_settings import HostPort
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.networks import firewall
from teu.engine.networks.drivers.driver import Driver
from teu.engine.networks.model import Active, Endpoint, Network
from teu.engine.networks.ports import (
    EVERY,
    Binding,
    Ports,
    bindings,
    canonical,
    host_addresses,
    host_has_ipv6,
    parse_port,
    sources,
    together,
)

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.networks.ipam import Address
    from teu.engine.networks.store import Store
    from teu.linux.netlink import Socket

log = logging.getLogger("teu.engine")

Used = dict[tuple[int, str, str], list[int]]
"""Host ports by the container's port, its protocol, and the host's address."""


class Outward:
    """Under the networks' lock. `drivers`: by their names."""

    def __init__(self, store: Store, drivers: Mapping[str, Driver]) -> None:
        self._store = store
        self._drivers = drivers
        self.ports = Ports()

    def network(self, endpoint: Endpoint) -> Network:
        """That of a running container's endpoint."""
        network = self._store.by_id(endpoint.network)
        assert network is not None, "no network goes while somebody is on it"
        return network

    def lead(
        self, container: Container, active: Active, inner: Socket, anew: bool = False, strict: bool = True
    ) -> None:
        """The default routes and the published ports go by the networks that are first among those with a way out: by
        priority, then by name, as everywhere; for each family by one that has it. Wherever a container's networks
        change, this follows. `anew`: also where they seem to be as they should. `strict`: what cannot be published is
        refused."""
        settled = container.network_settings.outward is not None
        before = (active.outward, active.outward6)
        after = (self._best(container, active, 4), self._best(container, active, 6))
        if settled and after == before and not anew and self._beside(active) == active.routed:
            return
        for old, new, version in zip(before, after, (4, 6), strict=True):
            if old is not None and new is None and old in active.endpoints:
                self._no_route(old, version, inner)
        used: Used = {}
        for port, places in container.network_settings.ports.items():
            for place in places or ():
                if place.port:
                    used.setdefault((*parse_port(port), place.address), []).append(int(place.port))
        self.unpublish(container, active)
        for endpoint in {*before} - {*after, None} & {*active.endpoints}:
            assert endpoint is not None
            self._drivers[endpoint.driver].leads(self.network(endpoint), endpoint, False)
        active.outward, active.outward6 = after
        container.network_settings.outward = after[0].name if after[0] else ""
        container.network_settings.outward6 = after[1].name if after[1] else ""
        for endpoint, version in ((after[0], 4), (after[1], 6)):
            if endpoint is not None:
                self._route(endpoint, version, inner)
        for endpoint in {*after} - {*before, None}:
            assert endpoint is not None
            self._drivers[endpoint.driver].leads(self.network(endpoint), endpoint, True)
        if any(after):
            self._publish(container, active, used, strict)

    def lose(self, active: Active, endpoint: Endpoint) -> None:
        """An endpoint is about to leave. Never fails."""
        if endpoint in (active.outward, active.outward6):
            network = self._store.by_id(endpoint.network)
            if network is not None and not network.damage:
                self._drivers[endpoint.driver].leads(network, endpoint, False)

    def _best(self, container: Container, active: Active, version: int) -> Endpoint | None:
        """The endpoint by which a family goes out."""
        networks = container.network_settings.networks
        ways = [endpoint for endpoint in active.endpoints if self._router(endpoint, version) is not None]
        return min(ways, key=lambda one: (-networks[one.name].gateway_priority, one.name), default=None)

    def _beside(self, active: Active) -> list[Endpoint]:
        """The endpoints that are on routed networks, and are not the way out of that family."""
        return [one for one in active.endpoints if any(self._is_beside(active, one, version) for version in (4, 6))]

    def _is_beside(self, active: Active, endpoint: Endpoint, version: int) -> bool:
        if endpoint == (active.outward if version == 4 else active.outward6) or endpoint.of(version) is None:
            return False
        network = self.network(endpoint)
        return self._drivers[endpoint.driver].publishes and not network.internal and network.mode(version) == "routed"

    def _router(self, endpoint: Endpoint, version: int) -> Address | None:
        if endpoint.of(version) is None:
            return None
        return self._drivers[endpoint.driver].router(self.network(endpoint), endpoint, version)

    def _route(self, endpoint: Endpoint, version: int, inner: Socket) -> None:
        from teu.linux import netlink

        router = self._router(endpoint, version)
        assert router is not None
        try:
            index = netlink.link_index(inner.link(endpoint.interface))
            inner.send([netlink.default_route(router, index)])
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise EngineError(f"failed to set IPv{version} gateway while updating gateway: {reason}") from error

    def _no_route(self, endpoint: Endpoint, version: int, inner: Socket) -> None:
        """Its network's router may be the other end of nothing by now; what fails was not there."""
        from teu.linux import netlink

        address = endpoint.of(version)
        pool = self.network(endpoint).pool_of(address) if address else None
        if pool is not None and pool.gateway is not None:
            with suppress(OSError):
                inner.send([netlink.delete_default_route(pool.gateway)])

    def gateway(self, active: Active) -> str:
        """An address of the host for the container: that of one of its bridges, else of the default one, as docker has
        it; "" where it is on no network."""
        for endpoint in (active.outward, active.outward6, *active.endpoints):
            for address in endpoint.addresses if endpoint else ():
                assert endpoint is not None
                network = self.network(endpoint)
                pool = network.pool_of(address)
                if pool is not None and pool.gateway is not None and network.has_own_address(address.version):
                    return str(pool.gateway)
        usual = self._store.find("bridge") if active.endpoints else None
        return next((str(pool.gateway) for pool in usual.pools if pool.gateway), "") if usual else ""

    def unpublish(self, container: Container, active: Active) -> None:
        """Of a container that runs on. Raises EngineError."""
        container.network_settings.ports = {}
        if active.published:
            entries, active.published = active.published, []
            self._release(entries)
            for endpoint, some in self._by_endpoint(active, entries):
                self._drivers[endpoint.driver].unpublish(some)

    def _release(self, entries: list[firewall.Published]) -> None:
        for entry in entries:
            if entry.host_port:
                self.ports.release(entry.protocol, entry.host_address, entry.host_port)

    def _by_endpoint(
        self, active: Active, entries: list[firewall.Published]
    ) -> Iterator[tuple[Endpoint, list[firewall.Published]]]:
        places = [one for one in (active.outward, active.outward6, *active.routed) if one is not None]
        for endpoint in dict.fromkeys(places):
            addresses = {str(address) for address in endpoint.addresses}
            some = [entry for entry in entries if entry.address in addresses]
            if some:
                yield endpoint, some

    def _publish(self, container: Container, active: Active, used: Used, strict: bool) -> None:
        """`used`: host ports that were chosen before, and are kept where they are free. `strict`: what cannot be
        published is refused; else it is logged, and the rest goes on."""
        ways = [one for one in (active.outward, active.outward6) if one is not None]
        silent = [one for one in ways if not self._drivers[one.driver].publishes]
        if silent and container.host_config.published:
            log.warning(
                "container %s: the driver %s publishes no ports; it is reached at its own address",
                container.name,
                silent[0].driver,
                extra=container.fields,
            )
        active.routed = self._beside(active)
        if len(silent) == len(ways) and not active.routed:
            return
        exposed = {canonical(key): value for key, value in container.config.exposed.items()}
        shown: dict[str, list[HostPort] | None] = dict.fromkeys(exposed)
        open_ = {*active.published}
        for group in together(bindings(container.host_config, exposed)):
            wanted = group[0]
            key = f"{wanted.port}/{wanted.protocol}"
            places = [place for one in group for place in self._places(container, active, one, strict)]
            natted = [entry.host_address for entry in places if entry.host_port]
            port = 0
            if natted:
                before = used.get((wanted.port, wanted.protocol, natted[0]))
                owner = f"{container.name} ({container.id})"
                port = self._reserve(wanted, natted, before.pop(0) if before else 0, owner)
            for place in places:
                entry = place._replace(host_port=port if place.host_port else 0)
                if entry in open_:  # already, for another host port
                    continue
                open_.add(entry)
                active.published.append(entry)
                told = HostPort(entry.host_address, str(entry.host_port) if entry.host_port else "")
                if told not in (shown.get(key) or ()):
                    shown[key] = [*(shown.get(key) or []), told]
            shown.setdefault(key, None)
        for endpoint, some in self._by_endpoint(active, active.published):
            self._drivers[endpoint.driver].publish(endpoint, some)
        container.network_settings.ports = shown

    def _places(self, container: Container, active: Active, wanted: Binding, strict: bool) -> list[firewall.Published]:
        """Where a binding is to be published; host port 0 where that is at the container's own address. Raises
        BadRequest where an address is named of a family that the container does not have."""
        result = []
        for version, endpoint in ((4, active.outward), (6, active.outward6)):
            other = endpoint or active.outward or active.outward6
            assert other is not None
            host = host_addresses(wanted.address, self.network(other).binding).get(version)
            if host is None or version == 6 and not wanted.address and not host_has_ipv6():
                continue
            if endpoint is not None and not self._drivers[endpoint.driver].publishes:
                continue
            if endpoint is None:
                if wanted.address:
                    text = (
                        f"port {wanted.port}/{wanted.protocol} cannot be published at {host}: container"
                        f" {container.name} has no IPv{version} address; put it on a network with IPv{version}"
                    )
                    if strict:
                        raise BadRequest(text)
                    log.warning("%s", text, extra=container.fields)
                continue
            result.append(self._place(container, endpoint, version, wanted, host))
        for endpoint in active.routed:
            for version in (4, 6):
                host = host_addresses(wanted.address, self.network(endpoint).binding).get(version)
                if host is not None and self._is_beside(active, endpoint, version):
                    result.append(self._place(container, endpoint, version, wanted, host))
        return result

    def _place(
        self, container: Container, endpoint: Endpoint, version: int, wanted: Binding, host: str
    ) -> firewall.Published:
        network = self.network(endpoint)
        routed = network.mode(version) == "routed"
        return firewall.Published(
            wanted.protocol,
            EVERY[version] if routed else host,  # of the host's own it is at none
            0 if routed else wanted.first or 1,  # reserved in a moment
            str(endpoint.of(version)),
            wanted.port,
            bool(network.trusted),
            container.name,
            sources(container.host_config, wanted.port, wanted.protocol),
        )

    def _reserve(self, wanted: Binding, addresses: list[str], before: int, owner: str) -> int:
        if before and wanted.first <= before <= wanted.last or before and not wanted.first:
            with suppress(EngineError):
                return self.ports.reserve(wanted._replace(first=before, last=before), addresses, owner)
        return self.ports.reserve(wanted, addresses, owner)

    def withdraw(self, active: Active) -> None:
        """Of a container that has ended. Never fails."""
        for endpoint in active.endpoints:
            self.lose(active, endpoint)
        for endpoint, some in self._by_endpoint(active, active.published):
            self._drivers[endpoint.driver].withdraw(some)
        self._release(active.published)

    def hold_again(self, container: Container, active: Active) -> None:
        """After a start of the daemon: what its record says is published."""
        for key, entries in container.network_settings.ports.items():
            try:
                port, protocol = parse_port(key)
                for place in entries or []:
                    self._hold(container, active, port, protocol, place)
            except (ValueError, OverflowError, EngineError) as error:
                log.error(
                    "port %s of container %s is not published any more: %s",
                    key,
                    container.name,
                    error,
                    extra=container.fields,
                )

    def _hold(self, container: Container, active: Active, port: int, protocol: str, place: HostPort) -> None:
        host = ip_address(place.address)
        number = int(place.port or 0)
        outward = active.outward if host.version == 4 else active.outward6
        beside = [one for one in self._beside(active) if self._is_beside(active, one, host.version)]
        if outward is not None and (number or self.network(outward).mode(host.version) == "routed"):
            self._hold_at(container, active, outward, port, protocol, place)
        for endpoint in beside if not number else ():
            self._hold_at(container, active, endpoint, port, protocol, place)
            active.routed += [endpoint] if endpoint not in active.routed else []

    def _hold_at(
        self, container: Container, active: Active, endpoint: Endpoint, port: int, protocol: str, place: HostPort
    ) -> None:
        host = ip_address(place.address)
        address = endpoint.of(host.version)
        if address is None:
            return
        number = int(place.port or 0)
        if number and not self.ports.hold_again(protocol, str(host), number):
            log.warning(
                "port %s of container %s is bound by another process", number, container.name, extra=container.fields
            )
        direct = bool(self.network(endpoint).trusted)
        allowed = sources(container.host_config, port, protocol)
        active.published.append(
            firewall.Published(protocol, str(host), number, str(address), port, direct, container.name, allowed)
        )
