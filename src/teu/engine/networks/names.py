# SPDX-License-Identifier: Apache-2.0
"""The names by which the containers of user-defined networks know each other, for the resolver (dns.py)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from teu.engine.containers.hostconfig import link
from teu.engine.core.errors import EngineError
from teu.linux.dns import Resolver
from teu.linux.resolver import host_resolver

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.store import Containers
    from teu.engine.networks.ipam import Address
    from teu.engine.networks.model import Active, Endpoint
    from teu.engine.networks.store import Store


class Names:
    """`active` is what running containers hold, by their ids."""

    def __init__(self, store: Store, active: dict[str, Active], containers: Containers) -> None:
        self._store = store
        self._active = active
        self._containers = containers
        self._resolver = Resolver()

    def serve(self, container: Container, active: Active) -> None:
        """Serve the container's names where it is on a user-defined network, and where the host's own servers are on
        its loopback, which a container cannot ask."""
        if active.named or not active.endpoints:
            return
        # Who has that resolver in its resolv.conf keeps it.
        alone = not container.network_settings.named and not any(
            (network := self._store.by_id(endpoint.network)) is not None and network.is_user_defined
            for endpoint in active.endpoints
        )
        if alone and (container.host_config.dns or host_resolver(True).servers):
            return
        self._resolver.add(
            container.id,
            active.namespace,
            lambda name: self._addresses(container.id, name),
            lambda address: self._name(container.id, address),
            lambda: self._servers(container, active),
        )
        active.named = container.network_settings.named = True

    def forget(self, container: Container) -> None:
        """Twice is fine."""
        self._resolver.remove(container.id)

    def _servers(self, container: Container, active: Active) -> list[str]:
        """Who is asked for other names: nobody where all networks are internal."""
        if active.outward is None and active.outward6 is None:
            return []
        return list(container.host_config.dns) or host_resolver(False).servers

    def _neighbours(self, container_id: str) -> list[tuple[Endpoint, list[str]]]:
        """Endpoints on the user-defined networks of a container, with their names."""
        with self._store.lock:
            own = self._active.get(container_id)
            shared = {endpoint.network for endpoint in own.endpoints} if own else set()
            found = [
                (identity, endpoint)
                for identity, active in self._active.items()
                for endpoint in active.endpoints
                if endpoint.network in shared and endpoint.name != "bridge"
            ]
        result = []
        for identity, endpoint in found:
            with contextlib.suppress(EngineError):
                other = self._containers.get(identity)
                settings = other.network_settings.networks.get(endpoint.name)
                names = [other.name, *((settings.dns_names if settings else None) or [])]
                result.append((endpoint, list(dict.fromkeys(names))))
        return result

    def _addresses(self, container_id: str, name: str) -> list[Address] | None:
        """Of both families; None for a name that is none of theirs."""
        neighbours = self._neighbours(container_id)
        links = self._links(container_id)
        found = [
            address
            for endpoint, names in neighbours
            for address in endpoint.addresses
            if any(
                name in (known.lower(), f"{known}.{endpoint.name}".lower())
                for known in (*names, *(alias for target, alias in links.get(endpoint.name, ()) if target in names))
            )
        ]
        return found or None

    def _links(self, container_id: str) -> dict[str, list[tuple[str, str]]]:
        """By network: (container, what this one calls it)."""
        try:
            networks = self._containers.get(container_id).network_settings.networks
        except EngineError:
            return {}
        return {name: [link(text) for text in one.links or ()] for name, one in networks.items()}

    def _name(self, container_id: str, address: Address) -> str | None:
        for endpoint, names in self._neighbours(container_id):
            if address in endpoint.addresses:
                return f"{names[0]}.{endpoint.name}"
        return None
