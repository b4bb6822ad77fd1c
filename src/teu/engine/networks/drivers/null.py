# SPDX-License-Identifier: Apache-2.0
"""The driver null, of the network none: a container has a network namespace of its own with nothing but a loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.engine.core.errors import Forbidden
from teu.engine.networks.drivers.driver import Context, Plug, Wish

if TYPE_CHECKING:
    from teu.engine.networks.firewall import Opening, Published
    from teu.engine.networks.ipam import Address
    from teu.engine.networks.model import Endpoint, Network
    from teu.linux.netlink import Link, Socket


class Null:
    """The driver of the network none, which has no endpoints."""

    name = "null"
    own_namespace = True
    connects = False
    several_subnets = False
    own_gateway = False
    publishes = False
    has_rules = False

    def __init__(self, context: Context) -> None: ...

    def start(self) -> None: ...

    def close(self) -> None: ...

    def options(self, options: dict[str, str], internal: bool) -> list[str]:
        raise Forbidden(f'only one instance of "{self.name}" network is allowed')

    def check(self, options: dict[str, str]) -> None: ...

    def create(self, network: Network) -> None: ...

    def delete(self, network: Network) -> None: ...

    def up(self, network: Network) -> int:
        raise Forbidden(f"network {network.name} has no endpoints")

    def attach(self, network: Network, endpoint: Endpoint, on: int, namespace: int, wish: Wish, inner: Socket) -> Plug:
        raise Forbidden(f"network {network.name} has no endpoints")

    def detach(self, network: Network | None, endpoint: Endpoint, namespace: int) -> None: ...

    def owns(self, endpoint: Endpoint, link: Link) -> bool:
        return False

    def router(self, network: Network, endpoint: Endpoint, version: int) -> Address | None: ...

    def leads(self, network: Network, endpoint: Endpoint, way_out: bool) -> None: ...

    def publish(self, endpoint: Endpoint, entries: list[Published]) -> None:
        raise Forbidden(f"ports cannot be published on network {endpoint.name}")

    def unpublish(self, entries: list[Published]) -> None: ...

    def withdraw(self, entries: list[Published]) -> None: ...

    def open_to(self, network: Network, openings: list[Opening]) -> None: ...

    def close_to(self, openings: list[Opening]) -> None: ...

    def recover(self, links: list[Link], unknown: set[str]) -> None: ...
