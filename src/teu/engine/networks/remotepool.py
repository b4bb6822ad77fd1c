# SPDX-License-Identifier: Apache-2.0
"""Addresses that a plugin gives: docker's IPAM drivers that are programs of the host. Called by the manager, for the
subnets of a network, and by model.Network for its pools; imported with the first network that has such a driver.

The plugin keeps what it has given. One that forgets that with its own end (RequiresRequestReplay) is told again, before
it is asked for more by a new daemon. The networks' lock is not held while it is asked.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

from teu.engine.core import plugins
from teu.engine.core.errors import BadRequest, EngineError, Forbidden
from teu.engine.core.plugins import ADDRESSES, member, section, words
from teu.engine.networks.ipam import Address, Pool, Range, overlap
from teu.engine.networks.records import NetworkRecord, Subnet

if TYPE_CHECKING:
    from teu.engine.core.fields import SubnetAsked

log = logging.getLogger("teu.engine")

Aside = Callable[[], AbstractContextManager[None]]

GATEWAY = "com.docker.network.gateway"
MAC = "com.docker.network.endpoint.macaddress"
_FOR_GATEWAY = {"RequestAddressType": GATEWAY}
MOST_TRIES = 256
"""How many subnets a plugin may offer that overlap with others, before it is given up."""


class RemotePool(Pool):
    """The addresses of one subnet of a network. `taken` counts those that this daemon knows of."""

    def __init__(self, record: NetworkRecord, subnet: Subnet, aside: Aside) -> None:
        """Raises ValueError where one of the texts of the subnet is none."""
        own = subnet.pool()
        super().__init__(own.subnet, own.gateway)
        self._driver = record.ipam_driver
        self._options = record.ipam_options
        self._asked = subnet
        self._aside = aside
        self._known = False
        self._marked: set[Address] = set()

    def _plugin(self) -> plugins.Plugin:
        plugin = plugins.get(self._driver, ADDRESSES)
        if not self._known and member(plugin.capabilities[ADDRESSES], "RequiresRequestReplay"):
            self._say_again(plugin)
        self._known = True
        return plugin

    def _say_again(self, plugin: plugins.Plugin) -> None:
        """What it has given before."""
        space = _space(plugin)
        asked = {"AddressSpace": space, "Pool": str(self.subnet), "SubPool": self._asked.range}
        with _logged("subnet %s is not known to the plugin %s", str(self.subnet), self._driver):
            plugin.call("IpamDriver.RequestPool", {**asked, "Options": self._options, "V6": self.version == 6})
            if self.gateway is not None:
                _request(plugin, self._asked.pool_id, str(self.gateway), _FOR_GATEWAY)
            for address in (*self._asked.others.values(), *map(str, self._marked)):
                with contextlib.suppress(EngineError):
                    _request(plugin, self._asked.pool_id, address, None)

    def wants_mac(self) -> bool:
        """Raises NotFound, EngineError."""
        with self._aside():
            return bool(member(self._plugin().capabilities[ADDRESSES], "RequiresMACAddress"))

    def take(self, wanted: str = "", mac: str = "") -> Address:
        with self._aside():
            plugin = self._plugin()
            options = {MAC: mac} if self.wants_mac() else None
            found = _request(plugin, self._asked.pool_id, wanted, options)
            if found not in self.subnet:
                with contextlib.suppress(EngineError):
                    _release(plugin, self._asked.pool_id, str(found))
                raise EngineError(f"the IPAM driver {self._driver} gave {found}, which is not in {self.subnet}")
        self._used.add(int(found))
        return found

    def mark(self, address: Address) -> None:
        super().mark(address)
        if address in self.subnet:
            self._marked.add(address)

    def give_back(self, address: Address) -> None:
        if address not in self.subnet or int(address) not in self._used:
            return
        super().give_back(address)
        self._marked.discard(address)
        with self._aside(), _logged("address %s is not given back to the plugin %s", str(address), self._driver):
            _release(self._plugin(), self._asked.pool_id, str(address))


def _request(plugin: plugins.Plugin, pool_id: str, wanted: str, options: dict[str, str] | None) -> Address:
    asked = {"PoolID": pool_id, "Address": wanted, "Options": options}
    found = words(plugin.call("IpamDriver.RequestAddress", asked), "Address")
    if not found:
        raise EngineError("no address returned")
    try:
        return ip_interface(found).ip
    except ValueError as error:
        raise EngineError(f"the IPAM driver {plugin.name} gave no address: {error}") from error


def _release(plugin: plugins.Plugin, pool_id: str, address: str) -> None:
    plugin.call("IpamDriver.ReleaseAddress", {"PoolID": pool_id, "Address": address})


def _space(plugin: plugins.Plugin) -> str:
    return words(plugin.call("IpamDriver.GetDefaultAddressSpaces"), "LocalDefaultAddressSpace")


def request(
    name: str,
    options: dict[str, str] | None,
    asked: dict[int, list[SubnetAsked]],
    families: list[int],
    taken: list[Range],
    gateways: Collection[int],
) -> tuple[str, list[Subnet]]:
    """The address space and the subnets of a new network; `taken`: what one that nobody chose may not overlap with;
    `gateways`: the families that have a gateway also where none is asked for. What fails leaves nothing taken. Raises
    NotFound, Forbidden, BadRequest, EngineError."""
    plugin = plugins.get(name, ADDRESSES)
    space = _space(plugin)
    result: list[Subnet] = []
    try:
        for version in families:
            wanted: list[SubnetAsked | None] = [*asked[version]]
            for one in wanted or [None]:
                made = _subnet(plugin, space, one, options, version, taken)
                result.append(_with_addresses(plugin, made, one, version in gateways))
    except BaseException:
        release(name, result)
        raise
    return space, result


def _subnet(
    plugin: plugins.Plugin,
    space: str,
    asked: SubnetAsked | None,
    options: dict[str, str] | None,
    version: int,
    taken: list[Range],
) -> Subnet:
    wanted, part = (asked.subnet, asked.range) if asked else ("", "")
    body = {"AddressSpace": space, "Pool": wanted, "SubPool": part, "Options": options, "V6": version == 6}
    overlapping: list[str] = []
    try:
        for _ in range(MOST_TRIES):
            answer = plugin.call("IpamDriver.RequestPool", body)
            identity = words(answer, "PoolID")
            try:
                subnet = ip_network(words(answer, "Pool"), strict=False)
            except ValueError as error:
                raise EngineError(f"the IPAM driver {plugin.name} gave no subnet: {error}") from error
            if wanted or not any(overlap(subnet, other) for other in taken):
                gateway = words(section(answer, "Data"), GATEWAY)
                return Subnet(str(subnet), _address(gateway) if gateway else "", part, {}, identity)
            overlapping.append(identity)
        raise Forbidden(f"the IPAM driver {plugin.name} has no subnet that is not in use")
    finally:
        for identity in overlapping:
            with _logged("the subnet %s is not given back to the plugin %s", identity, plugin.name):
                plugin.call("IpamDriver.ReleasePool", {"PoolID": identity})


def _address(text: str) -> str:
    try:
        return str(ip_interface(text).ip)
    except ValueError as error:
        raise BadRequest(f"failed to parse gateway address ({text}) returned by ipam driver: {error}") from error


def _with_addresses(plugin: plugins.Plugin, subnet: Subnet, asked: SubnetAsked | None, own_gateway: bool) -> Subnet:
    """A new subnet with its gateway, and with what is others'."""
    wanted = asked.gateway if asked else ""
    try:
        if wanted or not subnet.gateway and own_gateway:
            try:
                gateway = _request(plugin, subnet.pool_id, wanted, _FOR_GATEWAY)
            except EngineError as error:
                raise EngineError(f"failed to allocate gateway ({wanted}): {error}") from error
            subnet = subnet._replace(gateway=str(gateway))
        for name, text in (asked.others if asked else {}).items():
            try:
                _request(plugin, subnet.pool_id, str(ip_address(text)), None)
            except EngineError as error:
                raise EngineError(f"failed to allocate secondary ip address ({name}:{text}): {error}") from error
            subnet = subnet._replace(others={**subnet.others, name: str(ip_address(text))})
    except BaseException:
        release(plugin.name, [subnet])
        raise
    return subnet


def release(name: str, subnets: list[Subnet]) -> None:
    """The subnets of a network that is no more. Never fails: what cannot be done is logged."""
    with _logged("the subnets of a network are not given back to the plugin %s", name):
        plugin = plugins.get(name, ADDRESSES)
        for subnet in subnets:
            for address in (subnet.gateway, *subnet.others.values()):
                if address:
                    with _logged("address %s is not given back to the plugin %s", address, name):
                        _release(plugin, subnet.pool_id, address)
            with _logged("the subnet %s is not given back to the plugin %s", subnet.subnet, name):
                plugin.call("IpamDriver.ReleasePool", {"PoolID": subnet.pool_id})


@contextlib.contextmanager
def _logged(what: str, *arguments: str) -> Iterator[None]:
    """What fails is logged and over."""
    try:
        yield
    except EngineError as error:
        log.warning(f"{what}: %s", *arguments, error)
