# SPDX-License-Identifier: Apache-2.0
"""Links of containers on the default bridge, --link: who has one knows the other by a name of its choice, in its
/etc/hosts and in its environment, and may reach it where neighbours may not (icc: false). Called by endpoints, and for
the environment by who starts processes.

HostConfig.Links has them as ID:NAME: a container keeps its links when the other one is renamed. On networks of users
links are names that the resolver knows (names.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.containers.hostconfig import HOST_AND_LINKS, link
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.networks import firewall
from teu.engine.networks.ports import parse_port

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.store import Containers
    from teu.engine.networks.model import Active, Endpoint

NETWORK = "bridge"
_NOT_TOLD = ("HOME", "PATH")


class NotLinked(Conflict):
    """A container cannot start, as another one that it is linked to is not there for it: with docker that is found
    before its networks are set up, and is not called a failure of theirs."""


class Linked(NamedTuple):
    """The other container, as the one that has the link calls it, and its place on the network."""

    container: Container
    name: str
    endpoint: Endpoint


class Links:
    """`active` is what running containers hold, by their ids."""

    def __init__(self, containers: Containers, active: dict[str, Active]) -> None:
        self._containers = containers
        self._active = active

    def settle(self, container: Container) -> None:
        """At a container's creation: its links are to containers that there are, by their ids; of two that have one
        name the first is meant. Raises BadRequest."""
        result: dict[str, str] = {}
        for text in container.host_config.links or ():
            reference, name = link(text)
            other = self._linkable(reference)
            result.setdefault(name, f"{other.id}:{name}")
        container.host_config.links = list(result.values()) or None

    def _linkable(self, reference: str) -> Container:
        """Who is meant: where that is a guest in another one's network, it is that other one."""
        seen = []
        while True:
            try:
                other = self._containers.get(reference)
            except NotFound:
                raise BadRequest(f"could not get container for {reference}: No such container: {reference}") from None
            mode = other.host_config.network_mode
            if mode == "host":
                raise BadRequest(HOST_AND_LINKS)
            seen.append(other)
            reference = mode.partition(":")[2]
            if not mode.startswith("container:") or any(one.id == reference for one in seen):
                return other

    def named(self, text: str) -> tuple[Container, str]:
        """Of a link's name, OWNER/NAME: who has it, and what it calls the other one. Raises EngineError, NotFound."""
        owner, slash, name = text.strip("/").partition("/")
        if not slash:
            self._containers.get(text)
            raise EngineError("Conflict, cannot remove the default link name of the container")
        container = self._containers.find(owner)
        known = [link(entry)[1] for entry in (container.host_config.links or ()) if container] if container else []
        if container is None or name not in known:
            raise NotFound(f"No such container: {text}")
        return container, name

    def drop(self, container: Container, name: str) -> list[str]:
        """A container's link of this name goes; what its hosts file calls the other one. Under its lock."""
        links = container.host_config.links or []
        gone = [entry for entry in links if link(entry)[1] == name]
        container.host_config.links = [entry for entry in links if entry not in gone] or None
        names = []
        for identity, _ in map(link, gone):
            with contextlib.suppress(NotFound):
                names.append(_names(name, self._containers.get(identity)))
        return names

    def other_names(self) -> dict[str, list[str]]:
        """By the ids of containers, how others call them: /OWNER/NAME."""
        result: dict[str, list[str]] = {}
        for owner in self._containers.all():
            for identity, name in map(link, owner.host_config.links or ()):
                result.setdefault(identity, []).append(f"/{owner.name}/{name}")
        return result

    def shown(self, container: Container) -> list[str] | None:
        """HostConfig.Links for the API: /OTHER:/OWN/NAME."""
        links = container.host_config.links
        if not links:
            return links
        result = []
        for identity, name in map(link, links):
            with contextlib.suppress(EngineError):
                result.append(f"/{self._containers.get(identity).name}:/{container.name}/{name}")
        return result

    def of(self, container: Container) -> list[Linked]:
        """Those of a container that is about to start. Raises NotLinked where another one does not run, or is not on
        that network; one that was removed is linked no more."""
        for identity, name in map(link, container.host_config.links or ()):
            with contextlib.suppress(NotFound):
                other = self._containers.get(identity)
                if NETWORK not in other.network_settings.networks:
                    raise NotLinked(f"Cannot link to /{other.name}, as it does not belong to the default network")
                if self._place(other) is None:
                    raise NotLinked(
                        f"Cannot link to a non running container: /{other.name} AS /{container.name}/{name}"
                    )
        return list(self.running(container))

    def running(self, container: Container) -> Iterator[Linked]:
        """Those that lead somewhere now."""
        for identity, name in map(link, container.host_config.links or ()):
            with contextlib.suppress(NotFound):
                other = self._containers.get(identity)
                place = self._place(other)
                if place is not None:
                    yield Linked(other, name, place)

    def _place(self, container: Container) -> Endpoint | None:
        active = self._active.get(container.id)
        return next((one for one in active.endpoints if one.name == NETWORK), None) if active else None

    def to(self, container: Container) -> Iterator[tuple[Container, Linked]]:
        """The running containers that have a link to this one, with it."""
        place = self._place(container)
        for other in self._containers.all() if place is not None else ():
            if other.id not in self._active or not other.host_config.links:
                continue
            for identity, name in map(link, other.host_config.links):
                if identity == container.id and place is not None:
                    yield other, Linked(container, name, place)

    def environment(self, container: Container) -> list[str]:
        """What a container's processes are told of those that it is linked to and that run."""
        return [entry for linked in self.running(container) for entry in _variables(container, linked)]


def host_lines(linked: Linked) -> list[tuple[str, str]]:
    """(address, names) for the hosts file of who has the link."""
    names = _names(linked.name, linked.container)
    return [(str(address), names) for address in linked.endpoint.addresses]


def _names(name: str, other: Container) -> str:
    return " ".join(one for one in dict.fromkeys((name, other.hostname, other.name)) if one)


def openings(own: Endpoint, linked: Linked) -> list[firewall.Opening]:
    """The ports of the other one that are open to who has the link, where neighbours do not reach each other."""
    result = []
    for port, protocol in _ports(linked.container):
        for version in (4, 6):
            source, target = own.of(version), linked.endpoint.of(version)
            if source is not None and target is not None:
                result.append(firewall.Opening(str(source), str(target), protocol, port))
    return result


def _ports(container: Container) -> list[tuple[int, str]]:
    """Those that it exposes or publishes: first those of TCP, then by protocol, and by number."""
    host = container.host_config
    known = {parse_port(key) for key in (*container.config.exposed, *host.published)}
    return sorted(known, key=lambda one: (one[1] != "tcp", one[1], one[0]))


def _variables(container: Container, linked: Linked) -> list[str]:
    address = linked.endpoint.addresses[0]
    shown = f"[{address}]" if address.version == 6 else str(address)
    name = linked.name.upper().replace("-", "_")
    ports = _ports(linked.container)
    result = []
    if ports:
        port, protocol = ports[0]
        result.append(f"{name}_PORT={protocol}://{shown}:{port}")
    for run in _runs(ports):
        key = f"{name}_PORT_{run[0][0]}_{run[0][1].upper()}"
        for what, (port, protocol) in (("START", run[0]), ("END", run[-1])):
            result += [f"{key}_{what}={protocol}://{shown}:{port}", f"{key}_PORT_{what}={port}"]
    for port, protocol in ports:
        key = f"{name}_PORT_{port}_{protocol.upper()}"
        result += [
            f"{key}={protocol}://{shown}:{port}",
            f"{key}_ADDR={address}",
            f"{key}_PORT={port}",
            f"{key}_PROTO={protocol}",
        ]
    result.append(f"{name}_NAME=/{container.name}/{linked.name}")
    for entry in linked.container.config.env or ():
        key, equals, value = entry.partition("=")
        if equals and key not in _NOT_TOLD:
            result.append(f"{name}_ENV_{key}={value}")
    return result


def _runs(ports: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    """Ports of a protocol in a row, which are told as a range, too, by the first one's name."""
    runs: list[list[tuple[int, str]]] = []
    for port, protocol in ports:
        if runs and runs[-1][-1] == (port - 1, protocol):
            runs[-1].append((port, protocol))
        else:
            runs.append([(port, protocol)])
    return [run for run in runs if len(run) > 1]
