# SPDX-License-Identifier: Apache-2.0
"""What a network driver is: it makes the interfaces of the containers on its networks, and what is between them.

A driver is one file and one line in the registry, and is made once, of a Context. Records, addresses, namespaces,
names, host ports and what containers ask for are not its affair (store.py, ipam.py, endpoints.py). It is called under
the networks' lock. tests/drivers/networks.py has the checks for every driver.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from teu.engine.networks.hostfirewall import HostFirewall
from teu.engine.networks.kernel import Kernel
from teu.engine.networks.model import Active, Endpoint, Network
from teu.engine.networks.options import Defaults
from teu.engine.networks.store import Store

if TYPE_CHECKING:
    from teu.engine.networks.firewall import Opening, Published
    from teu.engine.networks.ipam import Address, Range
    from teu.engine.networks.ports import Binding
    from teu.linux.netlink import Link, Socket


class Context(NamedTuple):
    """What drivers have in common."""

    store: Store
    kernel: Kernel
    active: dict[str, Active]
    """By the ids of running containers, what they hold."""
    exec_root: str
    """The folder for state that a reboot ends."""
    stopping: threading.Event
    defaults: Defaults = Defaults()
    """What teud.yaml says of networks."""
    host: HostFirewall = HostFirewall()
    """How published ports stand to the host's own firewall."""


class Wish(NamedTuple):
    """What a container asks for on a network."""

    mac: str
    """The MAC address of its interface."""
    name: str = ""
    """The container's."""
    own_mac: bool = False
    """Whether it was asked for; else it is what we give."""
    options: Mapping[str, str] = MappingProxyType({})
    """Its DriverOpts."""
    exposed: tuple[tuple[int, str], ...] = ()
    """Ports that it exposes, and their protocols."""
    bindings: tuple[Binding, ...] = ()
    """Ports that are to be published."""


class Route(NamedTuple):
    """What is by a router, or where there is none behind the interface itself."""

    destination: Range
    router: Address | None


class Plug(NamedTuple):
    """An interface of a container."""

    inside: int
    """Its number in the container's namespace; 0 where there is none that we know of."""
    outside: int
    """That of our end; 0 where there is none."""
    mac: str | None = None
    """Its MAC address where that is not the one that was asked for; "" where it has none of its own."""
    advertised: bool = False
    """Whether it is for the routers of the network outside to say what is where (IPv6 router advertisements)."""
    name: str = ""
    """Its name where that is not the endpoint's."""
    source: str = ""
    """The name of the host's interface that it was."""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    """Those that the driver gives where the network has none of the family."""
    gateways: tuple[Address, ...] = ()
    """Those that the driver names, of each family one."""
    routes: tuple[Route, ...] = ()
    """What there is behind the interface besides, once it is up."""


class Driver(Protocol):
    """A network driver, for all networks of its name. All is called under the networks' lock."""

    own_namespace: bool
    """Whether containers on its networks have a network namespace of their own; else they are in the host's."""
    connects: bool
    """Whether its networks have endpoints: interfaces and addresses. A container may be on several of those alone."""
    several_subnets: bool
    """Whether a network of it may have more than one subnet of a family."""
    own_gateway: bool
    """Whether a network of it has a gateway that is the host's: else it has one only where that is asked for."""
    publishes: bool
    """Whether the host's ports can lead to its endpoints: else those that are to be published are passed over."""

    @property
    def has_rules(self) -> bool:
        """Whether there are rules of the driver in the kernel, which it makes anew when somebody takes them away."""

    def __init__(self, context: Context) -> None: ...

    def start(self) -> None:
        """At the start of the daemon, before any other call."""

    def close(self) -> None:
        """The daemon goes: what the driver has open is closed, and its threads end; the networks stay."""

    def options(self, options: dict[str, str], internal: bool) -> list[str]:
        """Look at the options of a network that is to be made: the names of those that mean nothing to this driver,
        which are kept and shown all the same. Raises BadRequest, Forbidden."""

    def check(self, options: dict[str, str]) -> None:
        """A network with these options is about to be made. Raises Forbidden where it cannot be beside the
        others."""

    def create(self, network: Network) -> None:
        """A network is new, and its record is saved: what it is from its beginning on is made. What fails leaves
        nothing behind. Raises EngineError, OSError."""

    def delete(self, network: Network) -> None:
        """Of a network that nobody is on and that is about to be no more: what is left of it in the kernel goes."""

    def up(self, network: Network) -> int:
        """Before an endpoint is made: what the network is in the kernel is there, and it has its addresses. The number
        of the interface that its endpoints are on. Raises EngineError, OSError."""

    def attach(self, network: Network, endpoint: Endpoint, on: int, namespace: int, wish: Wish, inner: Socket) -> Plug:
        """Make the endpoint's interface, without addresses and not up, in the namespace, which is the descriptor and of
        which `inner` is a socket; `on` is what `up` told. The endpoint is among the active ones already: where this
        fails, `detach` undoes what there is of it."""

    def detach(self, network: Network | None, endpoint: Endpoint, namespace: int) -> None:
        """It has left, and is not among the active ones any more; its addresses are free when this is over, so that a
        container that runs on must not have them then. None: nothing is known of the network. `namespace`:
        the descriptor, where there may be still an interface; -1 where it is not known. Never fails."""

    def owns(self, endpoint: Endpoint, link: Link) -> bool:
        """Whether an interface in some container's namespace is the endpoint's."""

    def router(self, network: Network, endpoint: Endpoint, version: int) -> Address | None:
        """By whom an endpoint that has an address of the family goes out; None where that is by nobody. The unspecified
        address of the family: by the interface itself, whatever is far."""

    def leads(self, network: Network, endpoint: Endpoint, way_out: bool) -> None:
        """An endpoint has got its container's way out, or loses it. Raises EngineError where it has got it, else it
        never fails."""

    def publish(self, endpoint: Endpoint, entries: list[Published]) -> None:
        """Let the host's ports, which are reserved, lead there. Raises EngineError."""

    def unpublish(self, entries: list[Published]) -> None:
        """The reverse, of a container that runs on. Raises EngineError."""

    def withdraw(self, entries: list[Published]) -> None:
        """The reverse, of a container that has ended. Never fails: what cannot be done is logged."""

    def open_to(self, network: Network, openings: list[Opening]) -> None:
        """Let containers on the network reach ports of others there, where they do not reach each other; where they do,
        nothing. Raises EngineError."""

    def close_to(self, openings: list[Opening]) -> None:
        """The reverse. Never fails: what cannot be done is logged."""

    def recover(self, links: list[Link], unknown: set[str]) -> None:
        """After a start of the daemon, once the active endpoints are known again: all is made as they need it, and what
        the dead have left goes. `links`: all of the host's; `unknown`: the first ten digits of the ids of containers
        whose networks are not known, and whose interfaces stay."""
