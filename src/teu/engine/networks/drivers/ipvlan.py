# SPDX-License-Identifier: Apache-2.0
"""The driver ipvlan: containers share the MAC address of an interface of the host, and are told apart by their IP
addresses.

    -o parent=eth0            or eth0.10, a VLAN of it; without one, the containers have each other alone
    -o ipvlan_mode=l2         the parent's network is the containers', with its broadcasts, and a gateway that is named
                   l3         the host routes for them: no broadcasts, and all that is far goes by the interface itself
                   l3s        so too, and the host's rules of forwarding see it
    -o ipvlan_flag=bridge     containers of the parent reach each other
                   private    not at all
                   vepa       by way of the switch or router outside

A parent is one network's alone, and an interface with ipvlans has no macvlans.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from teu.engine.core.errors import EngineError
from teu.engine.networks.drivers.driver import Plug, Wish
from teu.engine.networks.drivers.parents import OPTION_PARENT, OnParent
from teu.linux import netlink

if TYPE_CHECKING:
    from teu.engine.networks.ipam import Address
    from teu.engine.networks.model import Endpoint, Network
    from teu.linux.netlink import Socket

OPTION_MODE = "ipvlan_mode"
OPTION_FLAG = "ipvlan_flag"

# IPVLAN_MODE_* and IPVLAN_F_* of the kernel.
_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}


class Ipvlan(OnParent):
    """The driver ipvlan."""

    name = "ipvlan"
    dummy = "di-"
    choices = {OPTION_MODE: tuple(_MODES), OPTION_FLAG: tuple(_FLAGS)}

    def check(self, options: dict[str, str]) -> None:
        parent = options.get(OPTION_PARENT)
        for other in self.beside(parent) if parent else ():
            raise EngineError(f"network {self.dummy}{other.id[:12]} is already using parent interface {parent}")

    def attach(self, network: Network, endpoint: Endpoint, on: int, namespace: int, wish: Wish, inner: Socket) -> Plug:
        if wish.own_mac:
            raise EngineError("ipvlan interfaces do not support custom mac address assignment")
        mode, flags = _MODES[self.choice(network, OPTION_MODE)], _FLAGS[self.choice(network, OPTION_FLAG)]
        message = netlink.new_ipvlan(endpoint.interface, on, namespace, mode, flags, network.mtu)
        return self.plug(network, endpoint, message, inner)._replace(mac="")

    def router(self, network: Network, endpoint: Endpoint, version: int) -> Address | None:
        if self.choice(network, OPTION_MODE) == "l2":
            return super().router(network, endpoint, version)
        if endpoint.of(version) is None or not self.outside(network):
            return None
        return IPv4Address(0) if version == 4 else IPv6Address(0)
