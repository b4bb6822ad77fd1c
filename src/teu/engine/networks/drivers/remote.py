# SPDX-License-Identifier: Apache-2.0
"""The driver of networks whose driver is a plugin: docker's NetworkDriver protocol, in which a program of the host is
told of networks and endpoints, and names an interface of the host that becomes the container's (plugins.py has the
wire).

    GwAllocCheck                       which families need no gateway; where the capabilities say that it may be asked
    CreateNetwork, DeleteNetwork       with the options as they were given, and the subnets
    CreateEndpoint, DeleteEndpoint     the plugin may give the MAC address, and the addresses where nobody else does
    Join, Leave                        the interface, gateways and routes; SandboxKey is the namespace's path
    ProgramExternalConnectivity        the endpoint has the container's way out; Revoke...: it has it no more. Optional

DiscoverNew and DiscoverDelete tell of other machines of a swarm, and there are none. The networks' lock is not held
while the plugin is asked. What it was told is also in the containers' records, so that a new daemon tells it what has
ended.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

from teu.engine.core import plugins
from teu.engine.core.errors import EngineError, NotFound
from teu.engine.core.plugins import NETWORKS, PluginError, member, section, words
from teu.engine.networks.drivers.driver import Context, Plug, Route, Wish
from teu.engine.networks.options import OPTION_ENABLED, OPTION_INTERNAL
from teu.engine.networks.requests import OPTION_INTERFACE, mac_address
from teu.linux import netlink, netns

if TYPE_CHECKING:
    from teu.engine.networks.firewall import Opening, Published
    from teu.engine.networks.ipam import Address
    from teu.engine.networks.model import Endpoint, Network
    from teu.engine.networks.ports import Binding
    from teu.linux.netlink import Link, Socket
    from teu.oci.jsontext import Json

log = logging.getLogger("teu.engine")

GENERIC = "com.docker.network.generic"
PORTS = "com.docker.network.portmap"
EXPOSED = "com.docker.network.endpoint.exposedports"
MAC = "com.docker.network.endpoint.macaddress"
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_CONNECTED = 1  # RouteType of what is behind the interface itself


class Remote:
    """The driver of the networks of one plugin."""

    own_namespace = True
    connects = True
    several_subnets = True
    own_gateway = True
    publishes = False
    has_rules = False

    def __init__(self, context: Context, name: str) -> None:
        self.name = name
        self._store = context.store
        self._kernel = context.kernel
        self._active = context.active
        # By EndpointID, what the plugin has done of what this daemon asked.
        self._done: dict[str, set[str]] = {}
        self._ports: dict[str, dict[str, Json]] = {}
        self._moved: dict[str, tuple[str, str]] = {}

    def start(self) -> None: ...

    def close(self) -> None: ...

    def _call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises NotFound, PluginError."""
        with self._store.aside():
            return plugins.get(self.name, NETWORKS).call(f"{NETWORKS}.{method}", body)

    def _tell(self, method: str, body: dict[str, Any]) -> None:
        """Of something that is over: what fails is logged."""
        try:
            self._call(method, body)
        except EngineError as error:
            log.warning("plugin %s: %s", self.name, error)

    # -- networks ----------------------------------------------------------------------------

    def options(self, options: dict[str, str], internal: bool) -> list[str]:
        with self._store.aside():
            plugins.get(self.name, NETWORKS)
        return []

    def capability(self, name: str) -> Any:
        """What the plugin says that it can. Raises NotFound, PluginError."""
        with self._store.aside():
            return member(plugins.get(self.name, NETWORKS).capabilities[NETWORKS], name)

    def gateways(self, options: dict[str, str], ipv4: bool, ipv6: bool, internal: bool) -> tuple[int, ...]:
        """The families of a new network whose subnets need a gateway that nobody asked for. Raises EngineError."""
        if not self.capability("GwAllocChecker"):
            return (4, 6)
        answer = self._call("GwAllocCheck", {"Options": general(options, ipv4, ipv6, internal)})
        return tuple(version for version in (4, 6) if not member(answer, f"SkipIPv{version}"))

    def check(self, options: dict[str, str]) -> None: ...

    def create(self, network: Network) -> None:
        body = {
            "NetworkID": network.id,
            "Options": general(network.record.options, network.record.ipv4, network.record.ipv6, network.internal),
            "IPv4Data": self._data(network, 4),
            "IPv6Data": self._data(network, 6),
        }
        self._call("CreateNetwork", body)

    def _data(self, network: Network, version: int) -> list[Json]:
        result: list[Json] = []
        for subnet in network.record.subnets:
            if subnet.subnet and subnet.version == version:
                length = subnet.subnet.partition("/")[2]
                one: dict[str, Json] = {"AddressSpace": network.record.address_space, "Pool": subnet.subnet}
                if subnet.gateway:
                    one["Gateway"] = f"{subnet.gateway}/{length}"
                if subnet.others:
                    one["AuxAddresses"] = {name: f"{address}/{length}" for name, address in subnet.others.items()}
                result.append(one)
        return result

    def delete(self, network: Network) -> None:
        self._tell("DeleteNetwork", {"NetworkID": network.id})

    # -- endpoints ---------------------------------------------------------------------------

    def up(self, network: Network) -> int:
        return 0

    def attach(self, network: Network, endpoint: Endpoint, on: int, namespace: int, wish: Wish, inner: Socket) -> Plug:
        who = {"NetworkID": network.id, "EndpointID": endpoint.id}
        done = self._done[endpoint.id] = set()
        made = self._create_endpoint(network, endpoint, who, wish)
        done.add("CreateEndpoint")
        interface = section(made, "Interface")
        addresses = tuple(_addresses(endpoint, interface))
        mac = words(interface, "MacAddress")
        mac = mac_address(mac) if mac else wish.mac if wish.own_mac else ""
        path = f"/proc/{os.getpid()}/fd/{namespace}"
        self._ports[endpoint.id] = _ports(wish)
        joined = self._call("Join", {**who, "SandboxKey": path, "Options": _ports(wish)})
        done.add("Join")
        gateways = tuple(_gateways(joined))
        routes = tuple(_routes(joined))
        names = section(joined, "InterfaceName")
        source = words(names, "SrcName")
        if not source:  # the plugin sees to all of it itself
            return Plug(0, 0, mac, addresses=addresses, gateways=gateways)
        name = wish.options.get(OPTION_INTERFACE) or self._name(endpoint, words(names, "DstPrefix") or "eth")
        inside = self._move(source, name, namespace, inner)
        self._moved[endpoint.id] = (name, source)
        if mac:
            inner.send([netlink.set_mac(inside, mac)])
        with _told("EndpointOperInfo", self.name):
            self._call("EndpointOperInfo", who)
        return Plug(inside, 0, mac, False, name, source, addresses, gateways, routes)

    def _create_endpoint(self, network: Network, endpoint: Endpoint, who: dict[str, Any], wish: Wish) -> dict[str, Any]:
        def length(address: Address) -> str:
            pool = network.pool_of(address)
            return f"{address}/{pool.subnet.prefixlen}" if pool is not None else str(address)

        asked = {
            "Address": length(endpoint.address) if endpoint.address else "",
            "AddressIPv6": length(endpoint.address6) if endpoint.address6 else "",
            "MacAddress": wish.mac if wish.own_mac else "",
        }
        options: dict[str, Json] = {**wish.options}
        if wish.own_mac:
            options[MAC] = b64encode(netlink.mac_bytes(wish.mac)).decode()
        if not network.internal:
            options.update(_ports(wish))
        body = {**who, "Interface": asked, "Options": options}
        try:
            return self._call("CreateEndpoint", body)
        except NotFound as error:
            raise EngineError(f"failed to add endpoint: {error}") from error
        except PluginError as error:
            raise EngineError(f"failed to create endpoint {wish.name} on network {network.name}: {error}") from error

    def _name(self, endpoint: Endpoint, prefix: str) -> str:
        """The first of the plugin's names that the container has not."""
        own = next((active for active in self._active.values() if endpoint in active.endpoints), None)
        taken = {one.interface for one in own.endpoints if one != endpoint} if own else set()
        return next(name for number in range(len(taken) + 1) if (name := f"{prefix}{number}") not in taken)

    def _move(self, source: str, name: str, namespace: int, inner: Socket) -> int:
        """An interface of the host becomes the container's; its number there."""
        found = self._kernel.socket().link(source)
        if found is None:
            raise EngineError(
                f'failed to add interface {source} to sandbox: failed to get link by name "{source}": Link not found'
            )
        try:
            self._kernel.socket().send([netlink.move(found.number, namespace, name)])
        except OSError:
            self._back(source, source, namespace)  # the kernel moves first, and then gives the name
            raise
        return netlink.link_index(inner.link(name))

    def detach(self, network: Network | None, endpoint: Endpoint, namespace: int) -> None:
        # Of those that another daemon has begun it is not known how far they came.
        done = self._done.pop(endpoint.id, {"CreateEndpoint", "Join"})
        self._ports.pop(endpoint.id, None)
        who = {"NetworkID": endpoint.network, "EndpointID": endpoint.id}
        if "Join" in done:
            self._tell("Leave", who)
        name, source = self._moved.pop(endpoint.id, (endpoint.interface, endpoint.source))
        if source and namespace >= 0:
            self._back(name, source, namespace)
        if "CreateEndpoint" in done:
            self._tell("DeleteEndpoint", who)

    def _back(self, name: str, source: str, namespace: int) -> None:
        """The interface is the host's again, under the name that it had there."""
        host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        def body() -> None:
            with netlink.Socket() as inner:
                found = inner.link(name)
                if found is not None:
                    inner.send([netlink.move(found.number, host, source)])

        try:
            netns.run_in(namespace, body)
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.warning("interface %s cannot be given back to the plugin: %s", name, error)
        finally:
            os.close(host)

    def owns(self, endpoint: Endpoint, link: Link) -> bool:
        return link.name == endpoint.interface

    def router(self, network: Network, endpoint: Endpoint, version: int) -> Address | None:
        return next((one for one in endpoint.gateways if one.version == version), None)

    def leads(self, network: Network, endpoint: Endpoint, way_out: bool) -> None:
        who: dict[str, Any] = {"NetworkID": network.id, "EndpointID": endpoint.id}
        method = "ProgramExternalConnectivity" if way_out else "RevokeExternalConnectivity"
        try:
            if not way_out or not network.internal:
                self._call(method, {**who, "Options": self._ports.get(endpoint.id, {})} if way_out else who)
        except PluginError as error:
            if error.missing:
                return
            if way_out:
                raise EngineError(
                    f"driver failed programming external connectivity on endpoint {endpoint.name} ({endpoint.id}):"
                    f" {error}"
                ) from error
            log.warning("plugin %s: %s", self.name, error)
        except EngineError as error:
            log.warning("plugin %s: %s", self.name, error)

    # -- ports and links are of bridges --------------------------------------------------------

    def publish(self, endpoint: Endpoint, entries: list[Published]) -> None:
        raise EngineError(f"the driver {self.name} publishes no ports of ours")

    def unpublish(self, entries: list[Published]) -> None: ...

    def withdraw(self, entries: list[Published]) -> None: ...

    def open_to(self, network: Network, openings: list[Opening]) -> None: ...

    def close_to(self, openings: list[Opening]) -> None: ...

    def recover(self, links: list[Link], unknown: set[str]) -> None: ...


def general(options: dict[str, str], ipv4: bool, ipv6: bool, internal: bool) -> dict[str, Json]:
    """Options of CreateNetwork, as docker 28 has them."""
    result: dict[str, Json] = {OPTION_ENABLED[4]: ipv4, OPTION_ENABLED[6]: ipv6, GENERIC: dict(options)}
    if internal:
        result[OPTION_INTERNAL] = True
    return result


def _ports(wish: Wish) -> dict[str, Json]:
    """Options of CreateEndpoint and Join: what the container exposes and publishes."""
    first = {(one.port, one.protocol): one.first for one in reversed(wish.bindings)}

    def order(port: tuple[int, str]) -> tuple[int, int, str]:
        return -first.get(port, 0), *port

    exposed: list[Json] = [
        {"Proto": _PROTOCOLS[protocol], "Port": port} for port, protocol in sorted(wish.exposed, key=order)
    ]
    bindings = sorted(wish.bindings, key=lambda one: order((one.port, one.protocol)))
    return {EXPOSED: exposed, PORTS: [_published(one) for one in bindings]}


def _published(binding: Binding) -> Json:
    return {
        "Proto": _PROTOCOLS[binding.protocol],
        "IP": "",
        "Port": binding.port,
        "HostIP": binding.address,
        "HostPort": binding.first,
        "HostPortEnd": binding.last,
    }


def _addresses(endpoint: Endpoint, interface: dict[str, Any]) -> Iterator[IPv4Interface | IPv6Interface]:
    """Those that the plugin gives. Raises EngineError where it gives one of a family that there is one of already."""
    for name, version in (("Address", 4), ("AddressIPv6", 6)):
        text = words(interface, name)
        if not text:
            continue
        try:
            found = ip_interface(text)
        except ValueError as error:
            raise EngineError(f"invalid CIDR address: {text}") from error
        if endpoint.of(version) is not None and endpoint.of(version) != found.ip:
            raise EngineError(
                f"driver modified interface address: endpoint interface IP present ({endpoint.of(version)})."
                f" Cannot be modified with ({found})"
            )
        if endpoint.of(version) is None:
            yield found


def _gateways(joined: dict[str, Any]) -> Iterator[Address]:
    for name in ("Gateway", "GatewayIPv6"):
        text = words(joined, name)
        if text:
            try:
                yield ip_address(text)
            except ValueError as error:
                raise EngineError(f'unable to parse {name} "{text}"') from error


def _routes(joined: dict[str, Any]) -> Iterator[Route]:
    found = member(joined, "StaticRoutes") or []
    if not isinstance(found, list) or not all(isinstance(route, dict) for route in found):
        raise EngineError("StaticRoutes in a plugin's answer are no routes")
    for route in found:
        destination, router = words(route, "Destination"), words(route, "NextHop")
        try:
            by = ip_address(router) if router and member(route, "RouteType") != _CONNECTED else None
        except ValueError as error:
            raise EngineError(f"failed to parse nexthop IP {router}") from error
        try:
            yield Route(ip_network(destination, strict=False), by)
        except ValueError as error:
            raise EngineError(f"invalid CIDR address: {destination}") from error


@contextlib.contextmanager
def _told(method: str, name: str) -> Iterator[None]:
    """What fails is logged and over."""
    try:
        yield
    except EngineError as error:
        log.info("plugin %s: %s: %s", name, method, error)
