# SPDX-License-Identifier: Apache-2.0
"""What the drivers macvlan and ipvlan have in common: a container's interface is on one of the host's, the network's
parent, and in its neighbours' eyes a machine of the parent's own network.

kernel     eth0.10           a VLAN of eth0, where it is named as the parent and was not there
           dm-ID, di-ID      a dummy, the parent of a network that names none: its containers reach each other alone

Those two kinds are made with the network, and removed with the last network of theirs; after a reboot they are made
with the first container. Nothing is on the host for a container: its interface lives in its network namespace.

Addresses and gateways are the outside network's. So nobody chooses a gateway, no port is published, and the host itself
is not reached: the kernel hands nothing from a parent to what is on it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from typing import TYPE_CHECKING

from teu.engine.core.errors import EngineError
from teu.engine.networks.drivers.driver import Context, Plug
from teu.engine.networks.kernel import once_free
from teu.engine.networks.options import INTERFACE, check_common
from teu.linux import netlink, netns

if TYPE_CHECKING:
    from teu.engine.networks.firewall import Opening, Published
    from teu.engine.networks.ipam import Address
    from teu.engine.networks.model import Endpoint, Network
    from teu.linux.netlink import Link, Message, Socket

log = logging.getLogger("teu.engine")

OPTION_PARENT = "parent"
LAST_VLAN = 4094


class OnParent:
    """A driver whose endpoints are on an interface of the host."""

    name: str
    dummy: str
    """How the names of dummies begin."""
    choices: dict[str, tuple[str, ...]]
    """Options with what each may be; the first is what it is by default."""

    own_namespace = True
    connects = True
    several_subnets = True
    own_gateway = False
    publishes = False
    has_rules = False

    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._active = context.active

    def start(self) -> None: ...

    def close(self) -> None: ...

    # -- networks ----------------------------------------------------------------------------

    def options(self, options: dict[str, str], internal: bool) -> list[str]:
        for option, allowed in self.choices.items():
            value = options.get(option) or allowed[0]
            if value not in allowed:
                what = option.rpartition("_")[2]
                default = f"'{allowed[0]}' mode is" if what == "mode" else f"'{allowed[0]}' is"
                raise EngineError(
                    f"requested {self.name} {what} '{value}' is not valid, {default} the {self.name} driver default"
                )
        if options.get(OPTION_PARENT) == "lo":
            raise EngineError(f"loopback interface is not a valid {self.name} parent link")
        without = check_common(options)
        return [option for option in without if option != OPTION_PARENT and option not in self.choices]

    def choice(self, network: Network, option: str) -> str:
        """What a network has of an option."""
        return network.options.get(option) or self.choices[option][0]

    def parent(self, network: Network) -> str:
        """The name of the interface of the host that the network is on."""
        return network.options.get(OPTION_PARENT) or f"{self.dummy}{network.id[:12]}"

    def beside(self, parent: str) -> list[Network]:
        """The networks of this driver that are on an interface."""
        return [other for other in self._store.all() if other.driver == self.name and self.parent(other) == parent]

    def check(self, options: dict[str, str]) -> None: ...

    def create(self, network: Network) -> None:
        parent = self.parent(network)
        message = self._missing(network) if self._link(parent) is None else None
        if message is not None or any(other.record.own_bridge for other in self.beside(parent)):
            network.record.own_bridge = True
            self._store.save(network)  # before it is there: who dies in between leaves nothing that nobody knows
        if message is not None:
            self._make(parent, message)

    def _missing(self, network: Network) -> Message:
        """What makes a parent that is not there. Raises EngineError where it can be none of ours."""
        name = self.parent(network)
        if not network.options.get(OPTION_PARENT):
            return netlink.new_dummy(name)
        if "." not in name:
            raise EngineError(f"invalid subinterface vlan name {name}, example formatting is eth0.10")
        under, _, tag = name.partition(".")
        if "." in tag:
            raise EngineError(
                f"required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received {name}"
            )
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", tag):
            raise EngineError(f"unable to parse a valid vlan id from: {tag} (ex. eth0.10 for vlan 10)")
        found = self._link(under)
        if found is None:
            raise EngineError(f"-o parent interface was not found on the host: {under}")
        if not 1 <= int(tag) <= LAST_VLAN:
            raise EngineError(f"vlan id must be between 1-{LAST_VLAN}, received: {int(tag)}")
        return netlink.new_vlan(name, found.number, int(tag))

    def _make(self, name: str, message: Message) -> None:
        try:
            self._kernel.socket().send([message])
        except FileExistsError:
            return
        except OSError as error:
            kind = message.what.partition(" ")[0]
            if error.errno == errno.EOPNOTSUPP:
                raise EngineError(
                    f"failed to create {name} {kind.lower()} link: operation not supported: this kernel has no"
                    f" interfaces of the kind {kind.lower()}"
                ) from error
            raise EngineError(f"failed to create {name} {kind.lower()} link: {_told(error)}") from error

    def delete(self, network: Network) -> None:
        name = self.parent(network)
        if not network.record.own_bridge or [one for one in self.beside(name) if one.id != network.id]:
            return
        kind = "vlan" if network.options.get(OPTION_PARENT) else "dummy"
        with contextlib.suppress(OSError):
            found = self._link(name)
            if found is not None and found.kind == kind:
                self._kernel.socket().send([netlink.delete_index(found.number)])

    def _link(self, name: str) -> Link | None:
        return self._kernel.socket().link(name) if INTERFACE.match(name) else None

    # -- endpoints ---------------------------------------------------------------------------

    def up(self, network: Network) -> int:
        name = self.parent(network)
        found = self._link(name)
        if found is None and network.record.own_bridge:  # the host was started anew, or somebody took it away
            self._make(name, self._missing(network))
            found = self._link(name)
        if found is None:
            raise EngineError(f"the requested parent interface {name} was not found on this host")
        return found.number

    def plug(self, network: Network, endpoint: Endpoint, message: Message, inner: Socket) -> Plug:
        """The endpoint's interface, which a message makes in the namespace of `inner`. Raises EngineError."""
        alone = sum(one.network == network.id for active in self._active.values() for one in active.endpoints) == 1
        try:
            # Where a parent is for one alone, the one before may be on its way out.
            once_free(lambda: self._kernel.socket().send([message]), errno.EINVAL if alone else 0, self._store.aside)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise EngineError(
                    f"failed to create the {self.name} port: operation not supported: this kernel has no {self.name}"
                ) from error
            raise EngineError(f"failed to create the {self.name} port: {_told(error)}") from error
        found = inner.link(endpoint.interface)
        # Of a network that leads outside, and has no router that somebody named, the routers there say where they are.
        advertised = self.outside(network) and bool(endpoint.address6) and self.router(network, endpoint, 6) is None
        return Plug(netlink.link_index(found), 0, found.mac if found else "", advertised)

    def detach(self, network: Network | None, endpoint: Endpoint, namespace: int) -> None:
        # A namespace that nobody holds takes its interfaces with it, in its own time; until then the parent is in use.
        if namespace < 0:
            return

        def body() -> None:
            with netlink.Socket() as inner:
                owned = [link for link in inner.links() if self.owns(endpoint, link)]
                # The container may be on another network of the parent as well, and may have given names.
                named = [link for link in owned if link.name == endpoint.interface]
                for link in named or (owned if len(owned) == 1 else []):
                    inner.send([netlink.delete_index(link.number)])

        try:
            netns.run_in(namespace, body)
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.warning("interface %s cannot be deleted: %s", endpoint.interface, error)

    def owns(self, endpoint: Endpoint, link: Link) -> bool:
        network = self._store.by_id(endpoint.network)
        found = self._link(self.parent(network)) if network is not None and link.kind == self.name else None
        return found is not None and link.peer == found.number

    def router(self, network: Network, endpoint: Endpoint, version: int) -> Address | None:
        address = endpoint.of(version)
        return network.router(address) if address is not None and self.outside(network) else None

    def outside(self, network: Network) -> bool:
        """Whether its containers can reach other machines: it has a parent, and is not internal."""
        return bool(network.options.get(OPTION_PARENT)) and not network.internal

    def leads(self, network: Network, endpoint: Endpoint, way_out: bool) -> None: ...

    # -- ports and links are of the default bridge ---------------------------------------------

    def publish(self, endpoint: Endpoint, entries: list[Published]) -> None:
        raise EngineError(f"the driver {self.name} publishes no ports")

    def unpublish(self, entries: list[Published]) -> None: ...

    def withdraw(self, entries: list[Published]) -> None: ...

    def open_to(self, network: Network, openings: list[Opening]) -> None: ...

    def close_to(self, openings: list[Opening]) -> None: ...

    def recover(self, links: list[Link], unknown: set[str]) -> None: ...


def _told(error: OSError) -> str:
    """The kernel's reason."""
    return (error.strerror or os.strerror(error.errno or 0)).lower()
