# SPDX-License-Identifier: Apache-2.0
"""What a container asks of networks, when it is created and when it is connected to one: it must make sense, and
becomes the EndpointSettings of its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

from teu.engine.core.errors import BadRequest, NotFound
from teu.engine.networks import requests
from teu.engine.networks.model import Network, blank_endpoint, network_mode
from teu.engine.networks.ports import bindings, parse_port

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.containers.store import Containers
    from teu.engine.networks.store import Store


def check(
    store: Store,
    containers: Containers,
    container: Container,
    networking: dict[str, Any] | None,
    connects: Callable[[Network], bool],
    version: tuple[int, int],
    warnings: list[str] | None,
) -> None:
    """At a container's creation: what it asks for must make sense; its Networks are filled in. A network that
    does not exist is one that may do so when the container starts. `connects`: whether a network has endpoints."""
    host_config = container.host_config
    mode = network_mode(container)
    endpoints = requests.read(networking, requests.NETWORKING, "NetworkingConfig")["EndpointsConfig"]
    for name, settings in endpoints.items():
        if settings is None:
            raise BadRequest(f"invalid config for network {name}: EndpointsConfig is nil")
    if len(endpoints) > 1 and version < (1, 44):
        raise BadRequest(f"Container cannot be created with multiple network endpoints: {', '.join(sorted(endpoints))}")
    exposed = container.config.exposed_ports or {}
    for key in exposed:
        parse_port(key)
    bindings(host_config, exposed, "0.0.0.0")
    container.network_settings["Networks"] = {}
    if mode.startswith("container:"):
        for name, settings in endpoints.items():
            requests.check_endpoint(settings, name, False, None)
        with contextlib.suppress(NotFound):
            host_config.network_mode = f"container:{containers.get(mode.partition(':')[2]).id}"
        return
    if mode == "host" and host_config.port_bindings and warnings is not None:
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
    if host_config.links:
        # Links between containers of one network are names of that network.
        first = next(iter(asked))
        links = list(dict.fromkeys([*asked[first]["Links"], *host_config.links]))
        asked[first] = {**asked[first], "Links": links}
        host_config.links = None
    _main_mac(container, asked, version, warnings)
    container.network_settings["Networks"] = {
        name: asked_endpoint(name, store.find(name), settings) for name, settings in asked.items()
    }


def _by_name(store: Store, endpoints: dict[str, Any], mode: str) -> dict[str, Any]:
    """What is asked for, by the networks' names: that of the mode first, which alone is meant where there is no
    more than a mode."""
    if not endpoints:
        endpoints = {mode: requests.read({}, requests.CONNECT.members["EndpointConfig"])}
    result: dict[str, Any] = {}
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
    asked: dict[str, Any],
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
        try:
            requests.mac_address(wide)
        except BadRequest as error:
            raise BadRequest(f"invalid config for network {main}: {error}") from None
        if asked[main]["MacAddress"] not in ("", wide):
            raise BadRequest(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network,"
                " or be left empty"
            )
        asked[main] = {**asked[main], "MacAddress": wide}
    elif asked[main]["MacAddress"]:
        container.config.mac_address = asked[main]["MacAddress"]


def asked_endpoint(name: str, network: Network | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of an endpoint that was asked for."""
    user_defined = network is None or network.is_user_defined
    # Of a network that does not exist yet it is not known which addresses it will have.
    subnet = network.chosen_subnet() if network else IPv4Network("0.0.0.0/0")
    requests.check_endpoint(settings, name, user_defined, subnet)
    result = blank_endpoint(network.id if network else "")
    if settings["IPAMConfig"] is not None:
        result["IPAMConfig"] = {key: value for key, value in settings["IPAMConfig"].items() if value}
    for key in ("Aliases", "DriverOpts", "Links"):
        result[key] = settings[key] or None
    if settings["MacAddress"]:
        result["WantedMac"] = requests.mac_address(settings["MacAddress"])
    if settings["GwPriority"]:
        result["GwPriority"] = settings["GwPriority"]
    return result
