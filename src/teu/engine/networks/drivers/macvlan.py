# SPDX-License-Identifier: Apache-2.0
"""The driver macvlan: each container has an interface with a MAC address of its own on an interface of the host.

-o parent=eth0            or eth0.10, a VLAN of it; without one, the containers have each other alone
-o macvlan_mode=bridge    containers of the parent reach each other
                vepa      by way of the switch outside, which sends back what is for them
                private   not at all
                passthru  one container alone, which has the parent's own MAC address
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.engine.core.errors import EngineError
from teu.engine.networks.drivers.driver import Plug, Wish
from teu.engine.networks.drivers.parents import OPTION_PARENT, OnParent
from teu.linux import netlink

if TYPE_CHECKING:
    from teu.engine.networks.model import Endpoint, Network
    from teu.linux.netlink import Socket

OPTION_MODE = "macvlan_mode"

# MACVLAN_MODE_* of the kernel.
_NUMBERS = {"bridge": 4, "private": 1, "vepa": 2, "passthru": 8}


class Macvlan(OnParent):
    """The driver macvlan."""

    name = "macvlan"
    dummy = "dm-"
    choices = {OPTION_MODE: tuple(_NUMBERS)}

    def check(self, options: dict[str, str]) -> None:
        parent = options.get(OPTION_PARENT)
        for other in self.beside(parent) if parent else ():
            if options.get(OPTION_MODE) == "passthru":
                raise EngineError(
                    f"cannot use mode passthru, macvlan network {other.id} is already using parent interface {parent}"
                )
            if self.choice(other, OPTION_MODE) == "passthru":
                raise EngineError(
                    f"macvlan network {other.id} is already using parent interface {parent} in mode passthru"
                )

    def attach(self, network: Network, endpoint: Endpoint, on: int, namespace: int, wish: Wish, inner: Socket) -> Plug:
        mode = self.choice(network, OPTION_MODE)
        # The kernel gives a macvlan in this mode the MAC address of its parent, and would give the parent another one.
        alone = mode == "passthru" and not wish.own_mac
        message = netlink.new_macvlan(
            endpoint.interface, on, namespace, _NUMBERS[mode], "" if alone else wish.mac, network.mtu
        )
        plug = self.plug(network, endpoint, message, inner)
        if plug.mac != wish.mac and not alone:
            inner.send([netlink.set_mac(plug.inside, wish.mac)])
            return plug._replace(mac=wish.mac)
        return plug
