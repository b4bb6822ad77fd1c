# SPDX-License-Identifier: Apache-2.0
"""What a container asks of networks, when it is created and when it is connected to one: it must make sense, and
becomes the EndpointSettings of its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from teu.engine.containers.network_settings import Addresses, EndpointSettings
from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.core.fields import EndpointAsked
from teu.engine.networks import requests
from teu.engine.networks.drivers.registry import NAMES
from teu.engine.networks.model import Network, network_mode
from teu.engine.networks.ports import bindings, check_sources, parse_port

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.store import Containers
    from teu.engine.networks.store import Store


def check(
    store: Store,
    containers: Containers,
    container: Container,
    endpoints: dict[str, EndpointAsked],
    connects: Callable[[Network], bool],
    version: tuple[int, int],
    warnings: list[str] | None,
) -> None:
    """At a container's creation: what it asks for must make sense; its Networks are filled in. A network that
    does not exist is one that may do so when the container starts. `connects`: whether a network has endpoints."""
    host_config = container.host_config
    mode = network_mode(container)
    if len(endpoints) > 1 and version < (1, 44):
        raise BadRequest(f"Container cannot be created with multiple network endpoints: {', '.join(sorted(endpoints))}")
    has_own = mode not in ("host", "none") and not mode.startswith("container:")
    if container.config.mac_address and version < (1, 44) and not has_own:
        raise BadRequest("conflicting options: mac-address and the network mode")  # later ones warn, and go on
    exposed = container.config.exposed
    for key in exposed:
        parse_port(key)
    bindings(host_config, exposed)
    check_sources(host_config)
    container.network_settings.networks = {}
    if mode.startswith("container:"):
        for name, settings in endpoints.items():
            with _of(name):
                requests.check_endpoint(settings, False, {4: [], 6: []})
        with contextlib.suppress(NotFound):
            host_config.network_mode = f"container:{containers.get(mode.partition(':')[2]).id}"
        return
    if mode == "host" and host_config.published and warnings is not None:
        told = "Published ports are discarded when using host network mode"
        warnings += [told] if told not in warnings else []
    if container.config.network_disabled:
        return
    asked = _by_name(store, endpoints, mode)
    if len(asked) > 1 or mode in ("host", "none"):
        for name in asked:
            network = store.find(name)
            if name != mode and (mode in ("host", "none") or network is not None and not connects(network)):
                raise BadRequest(
                    f"conflicting options: a container with network mode {mode} cannot be attached to other networks"
                )
    first = next(iter(asked))
    if host_config.links and first != "bridge":
        # Links between containers of a user's network are names of that network.
        links = list(dict.fromkeys([*asked[first].links, *host_config.links]))
        asked[first] = asked[first].copy()
        asked[first].links = links
        host_config.links = None
    _main_mac(container, asked, version, warnings)
    for name, settings in asked.items():
        with _of(name):
            container.network_settings.networks[name] = asked_endpoint(store.find(name), settings)


@contextlib.contextmanager
def _of(name: str) -> Iterator[None]:
    """A new container's fault is told with its network's name."""
    try:
        yield
    except BadRequest as error:
        raise BadRequest(f"invalid config for network {name}: {error}") from None


def _by_name(store: Store, endpoints: dict[str, EndpointAsked], mode: str) -> dict[str, EndpointAsked]:
    """What is asked for, by the networks' names: that of the mode first, which alone is meant where there is no
    more than a mode."""
    if not endpoints:
        endpoints = {mode: EndpointAsked()}
    result: dict[str, EndpointAsked] = {}
    first = store.find(mode)
    for text, settings in endpoints.items():
        network = store.find("bridge" if text == "default" else text)
        name = network.name if network else text
        if name in result:
            raise BadRequest(f"network {name} is asked for twice")
        if network is not None and network is first:
            result = {name: settings, **result}
        else:
            result[name] = settings
    return result


def _main_mac(
    container: Container,
    asked: dict[str, EndpointAsked],
    version: tuple[int, int],
    warnings: list[str] | None,
) -> None:
    """Config.MacAddress is that of the first network's endpoint."""
    wide = container.config.mac_address
    main = next(iter(asked))
    if wide:
        if warnings is not None and version >= (1, 44):
            warnings.append(
                "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig"
                " instead."
            )
        with _of(main):
            requests.mac_address(wide)
        if asked[main].mac not in ("", wide):
            raise BadRequest(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network,"
                " or be left empty"
            )
        asked[main] = asked[main].copy()
        asked[main].mac = wide
    elif asked[main].mac:
        container.config.mac_address = asked[main].mac


def asked_endpoint(network: Network | None, asked: EndpointAsked) -> EndpointSettings:
    """The record of an endpoint that was asked for. Raises BadRequest."""
    user_defined = network is None or network.is_user_defined
    # Of a network that does not exist yet it is not known which addresses it will have.
    subnets = {version: network.chosen_subnets(version) for version in (4, 6)} if network else None
    requests.check_endpoint(asked, user_defined, subnets, network is None or network.driver in NAMES)
    wanted = asked.addresses
    return EndpointSettings(
        network.id if network else "",
        Addresses(wanted.ipv4, wanted.ipv6, tuple(wanted.link_local)) if wanted else None,
        asked.links or None,
        asked.aliases or None,
        asked.driver_opts or None,
        requests.mac_address(asked.mac) if asked.mac else "",
        asked.gateway_priority,
    )
