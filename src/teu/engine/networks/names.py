# SPDX-License-Identifier: Apache-2.0
"""The names by which the containers of user-defined networks know each other, for the resolver (linux/dns.py).

The resolver's thread must not wait for the networks' lock, which is held while a container is attached: what it asks is
an index, changed under the lock and read without it. Each of its values is replaced as a whole, never changed.

    network id ── name, name.network   -> who has it, with their addresses
               └─ address              -> who has it
    container id                       -> its networks, and what it calls others there (links)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.containers.hostconfig import link
from teu.linux.dns import Resolver
from teu.linux.resolver import host_resolver, is_split

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.store import Containers
    from teu.engine.networks.ipam import Address, Range
    from teu.engine.networks.model import Active, Endpoint
    from teu.engine.networks.store import Store


class _Member(NamedTuple):
    """A container on a network: its name, all its names there, and its addresses."""

    container: str
    name: str
    names: tuple[str, ...]
    addresses: tuple[Address, ...]


class _Shared(NamedTuple):
    """Who has a name. `turns`: for IPv4 and IPv6, how often it was asked for, so that each has its turn to be first."""

    members: tuple[_Member, ...]
    turns: tuple[Iterator[int], Iterator[int]]


class _Zone:
    """What is known of one network."""

    def __init__(self, name: str, subnets: tuple[Range, ...]) -> None:
        self.name = name
        self.subnets = subnets
        self.names: dict[str, _Shared] = {}
        self.addresses: dict[Address, _Member] = {}

    def add(self, member: _Member) -> None:
        for key in self._keys(member):
            known = self.names.get(key)
            if known is None:
                self.names[key] = _Shared((member,), (itertools.count(), itertools.count()))
            else:
                self.names[key] = known._replace(members=(*known.members, member))
        for address in member.addresses:
            self.addresses[address] = member

    def drop(self, member: _Member) -> None:
        for key in self._keys(member):
            known = self.names[key]
            left = tuple(one for one in known.members if one is not member)
            if left:
                self.names[key] = known._replace(members=left)
            else:
                del self.names[key]
        for address in member.addresses:
            if self.addresses.get(address) is member:
                del self.addresses[address]

    def _keys(self, member: _Member) -> list[str]:
        """Names in lower case, alone and before the network's."""
        both = (key for name in member.names for key in (name, f"{name}.{self.name}"))
        return list(dict.fromkeys(key.lower() for key in both))


class _View(NamedTuple):
    """What a container sees: its networks, and for each the names that it alone gives to others there."""

    networks: tuple[str, ...]
    links: dict[tuple[str, str], tuple[str, ...]]  # (network, alias) -> names


_NOTHING = _View((), {})


class Names:
    """Under the networks' lock, but for what the resolver asks. `active` is what running containers hold, by their
    ids."""

    def __init__(self, store: Store, active: dict[str, Active], containers: Containers) -> None:
        self._store = store
        self._active = active
        self._containers = containers
        self._resolver = Resolver()
        self._zones: dict[str, _Zone] = {}
        self._views: dict[str, _View] = {}

    def close(self) -> None:
        """Nobody is served any more."""
        self._resolver.close()

    # -- who is where ------------------------------------------------------------------------

    def join(self, container: Container, endpoint: Endpoint) -> None:
        """A container is on a network: the others there know it by its names, it knows theirs. On the default network
        nobody knows anybody."""
        network = self._store.by_id(endpoint.network)
        if network is None or not network.is_user_defined:
            return
        settings = container.network_settings.networks.get(endpoint.name)
        names = dict.fromkeys((container.name, *((settings.dns_names if settings else None) or ())))
        zone = self._zones.get(endpoint.network)
        if zone is None:
            subnets = tuple(pool.subnet for pool in network.pools)
            zone = self._zones[endpoint.network] = _Zone(endpoint.name, subnets)
        self._leave(zone, endpoint.addresses)
        zone.add(_Member(container.id, container.name, tuple(names), tuple(endpoint.addresses)))
        before = self._views.get(container.id, _NOTHING)
        links = dict(before.links)
        for text in (settings.links if settings else None) or ():
            target, alias = link(text)
            key = endpoint.network, alias.lower()
            links[key] = (*links.get(key, ()), target.lower())
        networks = dict.fromkeys((*before.networks, endpoint.network))
        self._views[container.id] = _View(tuple(networks), links)

    def leave(self, endpoint: Endpoint) -> None:
        """Whoever is there has left the network. Twice is fine."""
        zone = self._zones.get(endpoint.network)
        if zone is not None:
            for member in self._leave(zone, endpoint.addresses):
                view = self._views.get(member.container, _NOTHING)
                networks = tuple(one for one in view.networks if one != endpoint.network)
                links = {key: names for key, names in view.links.items() if key[0] != endpoint.network}
                if networks:
                    self._views[member.container] = _View(networks, links)
                else:
                    self._views.pop(member.container, None)
            if not zone.addresses:
                del self._zones[endpoint.network]

    def _leave(self, zone: _Zone, addresses: Sequence[Address]) -> list[_Member]:
        found = {id(member): member for address in addresses if (member := zone.addresses.get(address))}
        for member in found.values():
            zone.drop(member)
        return list(found.values())

    def renamed(self, container: Container, old: str) -> None:
        """Under the container's lock: it has another name, by which it is known from now on, and by the old one no
        more unless that is an alias."""
        with self._store.lock:
            for settings in container.network_settings.networks.values():
                if settings.dns_names and old not in (settings.aliases or ()):
                    settings.dns_names = [container.name if name == old else name for name in settings.dns_names]
            active = self._active.get(container.id)
            for endpoint in active.endpoints if active else ():
                self.join(container, endpoint)

    # -- the resolver ------------------------------------------------------------------------

    def serve(self, container: Container, active: Active) -> None:
        """Serve the container's names where it is on a user-defined network, and where it cannot ask the host's own
        servers: they are on the host's loopback (those of systemd-resolved also know which link's servers to ask), or
        on a link of the host's, or of a family that the container has not."""
        if active.named or not active.endpoints:
            return
        # Who has that resolver in its resolv.conf keeps it.
        alone = not container.network_settings.named and not any(
            (network := self._store.by_id(endpoint.network)) is not None and network.is_user_defined
            for endpoint in active.endpoints
        )
        reached = host_resolver(True, active.versions).servers
        own = self._store.defaults.names(container.host_config).servers
        if alone and (own or reached and not is_split()):
            return
        self._resolver.add(
            container.id,
            active.namespace,
            lambda name, version: self._addresses(container.id, name, version),
            lambda address: self._name(container.id, address),
            self._servers(container, active),
            inside=bool(own),
        )
        active.named = container.network_settings.named = True

    def forget(self, container: Container) -> None:
        """Serve it no more. Twice is fine."""
        self._resolver.remove(container.id)

    def _servers(self, container: Container, active: Active) -> Callable[[str], list[str]]:
        """Who is asked for other names: nobody where all networks are internal (mostly it is the host that asks: there
        need be no route out of the container); nor for a name without a dot where the container's own `ndots` says that
        its search domains come first, since no server has such names."""
        naming = self._store.defaults.names(container.host_config)
        given = naming.servers
        searched = any(
            option.startswith("ndots:") and option[6:].isdigit() and int(option[6:]) > 0 for option in naming.options
        )

        def servers(name: str) -> list[str]:
            networks = [self._store.by_id(endpoint.network) for endpoint in active.endpoints]
            closed = all(network is None or network.internal for network in networks)
            if closed or searched and "." not in name:
                return []
            return given or host_resolver(False).servers

        return servers

    # -- without the lock --------------------------------------------------------------------

    def _addresses(self, container_id: str, name: str, version: int) -> list[Address] | None:
        """Of one family, each time with another one first; None where nobody of ours has the name."""
        view = self._views.get(container_id, _NOTHING)
        found: list[_Shared] = []
        for identity in view.networks:
            zone = self._zones.get(identity)
            if zone is None:
                continue
            name_here = name.removesuffix(f".{zone.name.lower()}")
            for key in (name, *view.links.get((identity, name_here), ())):
                if (shared := zone.names.get(key)) is not None:
                    found.append(shared)
        if not found:
            return None
        members = {id(member): member for shared in found for member in shared.members}
        every = (address for member in members.values() for address in member.addresses)
        addresses = list(dict.fromkeys(address for address in every if address.version == version))
        if len(addresses) > 1:
            turn = next(found[0].turns[version == 6]) % len(addresses)
            addresses = addresses[turn:] + addresses[:turn]
        return addresses

    def _name(self, container_id: str, address: Address) -> str | None:
        for identity in self._views.get(container_id, _NOTHING).networks:
            zone = self._zones.get(identity)
            if zone is None:
                continue
            member = zone.addresses.get(address)
            if member is not None:
                return f"{member.name}.{zone.name}"
            if any(address in subnet for subnet in zone.subnets):
                return ""
        return None
