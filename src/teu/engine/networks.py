# SPDX-License-Identifier: Apache-2.0
"""Networks as the engine sees them: their records, and the attachment of containers to them.

    engine.db  networks   id, name, data (the API's form of the network without its containers)
    kernel     teu0, teu-HEX             a bridge per network in use
               teuHEXn                   a container's end of a veth pair on the host, n-th network
               table inet teu            firewall.py
    memory     _active                   what every running container holds: namespace, addresses, ports

A container's network namespace is made here before its task, and handed to the runtime as the path of a
descriptor of this process; from the start of the task on the container's processes hold it. So it can neither
outlive a container nor be left behind by a daemon that is killed. Called by the containers' life cycle
(check, attach, detach, forget, recover) and by routes/networks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import threading
import uuid
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.engine import firewall, ipam, netfiles
from teu.engine.container import timestamp
from teu.engine.dns import ADDRESS as RESOLVER_ADDRESS
from teu.engine.dns import Resolver
from teu.engine.errors import BadRequest, Conflict, EngineError, Forbidden, NotFound
from teu.engine.ports import Ports, bindings, parse_port

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine
    from teu.linux.netlink import Socket

log = logging.getLogger("teu.engine")

DEFAULT_BRIDGE = "teu0"
PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}
VETH = re.compile(r"teu[0-9a-f]{10}[0-9a-f]\Z")
BRIDGE = re.compile(r"teu-[0-9a-f]{11}\Z")
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")

OPTION_BRIDGE = "com.docker.network.bridge.name"
OPTION_TALK = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_MTU = "com.docker.network.driver.mtu"


class Attachment(NamedTuple):
    """`namespace`: path of the network namespace, None for the host's, "" for a new one that nobody prepares.
    `files`: paths in the container and the host's files to mount there."""

    namespace: str | None
    files: dict[str, str]


class Endpoint(NamedTuple):
    """A running container on a network."""

    network: str
    name: str
    address: IPv4Address
    veth: str


class Active:
    """What a running container holds."""

    def __init__(self, namespace: int = -1) -> None:
        self.namespace = namespace
        self.endpoints: list[Endpoint] = []
        self.published: list[firewall.Published] = []


class Network:
    """A network's record, and of a bridge network its pool of addresses."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.pool: ipam.Pool | None = None
        config = (record["IPAM"].get("Config") or [{}])[0]
        if record["Driver"] == "bridge" and config.get("Subnet"):
            range_ = config.get("IPRange")
            self.pool = ipam.Pool(
                IPv4Network(config["Subnet"]),
                IPv4Address(config["Gateway"]),
                IPv4Network(range_) if range_ else None,
            )

    @property
    def id(self) -> str:
        return str(self.record["Id"])

    @property
    def name(self) -> str:
        return str(self.record["Name"])

    @property
    def driver(self) -> str:
        return str(self.record["Driver"])

    @property
    def options(self) -> dict[str, str]:
        return self.record.get("Options") or {}

    @property
    def is_user_defined(self) -> bool:
        return self.name not in PREDEFINED

    @property
    def interface(self) -> str:
        if self.name == "bridge":
            return DEFAULT_BRIDGE
        return self.options.get(OPTION_BRIDGE) or f"teu-{self.id[:11]}"

    @property
    def mtu(self) -> int:
        return int(self.options.get(OPTION_MTU) or 0)

    def addressing(self) -> ipam.Pool:
        if self.pool is None:
            raise BadRequest(f"network {self.name} has no addresses: its driver is {self.driver}")
        return self.pool

    def bridge(self) -> firewall.Bridge:
        def flag(option: str) -> bool:
            return self.options.get(option, "true").lower() not in ("false", "0")

        return firewall.Bridge(
            self.interface,
            self.addressing().subnet,
            bool(self.record.get("Internal")),
            flag(OPTION_MASQUERADE),
            flag(OPTION_TALK),
        )


def mac_address(address: IPv4Address) -> str:
    return "02:42:" + address.packed.hex(":")


def blank_endpoint(network_id: str = "") -> dict[str, Any]:
    """The API's EndpointSettings of a container that does not run."""
    return {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": None,
        "MacAddress": "",
        "DriverOpts": None,
        "NetworkID": network_id,
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": None,
    }


_RUNNING_KEYS = ("EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "MacAddress")


def _wrong_address(network: Network, address: str) -> list[str]:
    """Why a container cannot have this address there."""
    if not address:
        return []
    reasons = []
    if not network.is_user_defined:
        reasons.append("user specified IP address is supported on user defined networks only")
    if not network.is_user_defined or network.record.get("AutomaticSubnet"):
        reasons.append(
            "user specified IP address is supported only when connecting to networks with user configured subnets"
        )
        return reasons
    try:
        inside = IPv4Address(address) in network.addressing().subnet
    except ValueError:
        reasons.append(f"invalid IPv4 address: {address}")
        inside = False
    if not inside:
        reasons.append(f"no configured subnet or ip-range contain the IP address {address}")
    return reasons


def network_mode(container: Container) -> str:
    mode = str(container.host_config.get("NetworkMode") or "default")
    return "bridge" if mode == "default" else mode


class Networks:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.lock = threading.RLock()
        self.ports = Ports()
        self.resolver = Resolver()
        self._networks: dict[str, Network] = {}
        self._active: dict[str, Active] = {}
        self._netlink: Socket | None = None
        self._table = False

    # -- records -----------------------------------------------------------------------------

    def start(self) -> None:
        from teu.linux import nftables

        nftables.reserve()
        for row in self.engine.database.query("SELECT data FROM networks"):
            network = Network(json.loads(row[0]))
            self._networks[network.id] = network
        names = {network.name for network in self._networks.values()}
        for name, driver in PREDEFINED.items():
            if name not in names:
                self._store(Network(self._record(name, driver, {})))

    def stop(self) -> None:
        """The containers keep their network; ports stay redirected, and their reservation ends with the daemon."""

    def _record(self, name: str, driver: str, more: dict[str, Any]) -> dict[str, Any]:
        return {
            "Name": name,
            "Id": uuid.uuid4().hex + uuid.uuid4().hex,
            "Created": timestamp(),
            "Scope": "local",
            "Driver": driver,
            "EnableIPv6": False,
            "IPAM": {"Driver": "default", "Options": None, "Config": []},
            "Internal": False,
            "Attachable": False,
            "Ingress": False,
            "ConfigFrom": {"Network": ""},
            "ConfigOnly": False,
            "Options": {},
            "Labels": {},
            **more,
        }

    def _store(self, network: Network) -> None:
        with self.engine.database.transaction() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO networks VALUES (?, ?, ?)",
                (network.id, network.name, json.dumps(network.record)),
            )
        self._networks[network.id] = network

    def all(self) -> list[Network]:
        with self.lock:
            return sorted(self._networks.values(), key=lambda network: network.name)

    def find(self, text: str) -> Network | None:
        with self.lock:
            for network in self._networks.values():
                if text in (network.id, network.name):
                    return network
            matches = [n for n in self._networks.values() if text and n.id.startswith(text)]
            if len(matches) > 1:
                raise BadRequest(f"network {text} is ambiguous: {len(matches)} network ids start with it")
            return matches[0] if matches else None

    def get(self, text: str) -> Network:
        network = self.find(text)
        if network is None:
            raise NotFound(f"network {text} not found")
        return network

    def describe(self, network: Network, containers: bool = True) -> dict[str, Any]:
        """The API's form of a network."""
        result = {key: value for key, value in network.record.items() if key != "AutomaticSubnet"}
        if network.name == "bridge":
            result["Options"] = {OPTION_BRIDGE: DEFAULT_BRIDGE, **network.options}
        members: dict[str, Any] = {}
        if containers:
            for container in self.engine.containers.all():
                settings = (container.network_settings.get("Networks") or {}).get(network.name)
                if settings and settings.get("EndpointID") and container.running:
                    address = settings.get("IPAddress") or ""
                    members[container.id] = {
                        "Name": container.name,
                        "EndpointID": settings["EndpointID"],
                        "MacAddress": settings.get("MacAddress", ""),
                        "IPv4Address": f"{address}/{settings['IPPrefixLen']}" if address else "",
                        "IPv6Address": "",
                    }
        result["Containers"] = members
        return result

    def create(self, request: dict[str, Any]) -> Network:
        """POST /networks/create. Raises BadRequest, Conflict."""
        name = str(request.get("Name") or "")
        driver = str(request.get("Driver") or "bridge")
        if not name:
            raise BadRequest("invalid name: name is empty")
        if not NAME.match(name):
            raise BadRequest(f"invalid network name {name!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed")
        if name in PREDEFINED or name == "default":
            raise Forbidden(f"operation is not permitted on predefined {name} network")
        if driver in ("host", "null"):
            raise Forbidden(f"only one instance of \"{driver}\" network is allowed")
        if driver != "bridge":
            raise NotFound(f'plugin "{driver}" not found')
        if request.get("EnableIPv6"):
            raise BadRequest("IPv6 networks are not supported; create the network without --ipv6")
        options = {str(key): str(value) for key, value in (request.get("Options") or {}).items()}
        _check_options(options)
        configs = (request.get("IPAM") or {}).get("Config") or []
        if not isinstance(configs, list) or len(configs) > 1:
            raise BadRequest("one IPAM configuration per network is supported")
        with self.lock:
            for other in self._networks.values():
                if other.name == name:
                    raise Conflict(f"network with name {name} already exists")
                if other.driver == "bridge" and other.interface == options.get(OPTION_BRIDGE):
                    raise Conflict(f"network {other.name} has the bridge {other.interface}")
            config, automatic = self._addressing(configs[0] if configs else {})
            network = Network(
                self._record(
                    name,
                    driver,
                    {
                        "IPAM": {
                            "Driver": "default",
                            "Options": (request.get("IPAM") or {}).get("Options"),
                            "Config": [config],
                        },
                        "Internal": bool(request.get("Internal")),
                        "Attachable": bool(request.get("Attachable")),
                        "Options": options,
                        "Labels": {str(k): str(v) for k, v in (request.get("Labels") or {}).items()},
                        # Ours alone: a subnet that nobody chose may not be relied on for fixed addresses.
                        "AutomaticSubnet": automatic,
                    },
                )
            )
            self._store(network)
        self._event(network, "create")
        return network

    def _subnets(self) -> list[IPv4Network]:
        return [network.pool.subnet for network in self._networks.values() if network.pool]

    def _addressing(self, config: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        text = str(config.get("Subnet") or "")
        if text:
            subnet = ipam.check_subnet(text, self._subnets())
        else:
            if config.get("IPRange") or config.get("Gateway"):
                raise BadRequest("invalid IPAM configuration: --ip-range and --gateway need --subnet")
            subnet = ipam.choose_subnet([*self._subnets(), *self._kernel().routes()])
        result = {"Subnet": str(subnet), "Gateway": str(next(subnet.hosts()))}
        try:
            if config.get("Gateway"):
                gateway = IPv4Address(config["Gateway"])
                if gateway not in subnet:
                    raise BadRequest(f"no matching subnet for gateway {gateway}")
                result["Gateway"] = str(gateway)
            if config.get("IPRange"):
                range_ = IPv4Network(config["IPRange"], strict=False)
                if not range_.subnet_of(subnet):
                    raise BadRequest(f"no matching subnet for range {range_}")
                result["IPRange"] = str(range_)
        except ValueError as error:
            raise BadRequest(f"invalid IPAM configuration: {error}") from None
        return result, not text

    def remove(self, network: Network) -> None:
        if network.name in PREDEFINED:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        with self.lock:
            if self._on_network(network):
                raise Forbidden(
                    f"error while removing network: network {network.name} id {network.id} has active endpoints"
                )
            with self.engine.database.transaction() as cursor:
                cursor.execute("DELETE FROM networks WHERE id=?", (network.id,))
            self._networks.pop(network.id, None)
            with contextlib.suppress(OSError):
                self._delete_link(network.interface)
        self._event(network, "destroy")

    def _on_network(self, network: Network) -> bool:
        return any(endpoint.network == network.id for active in self._active.values() for endpoint in active.endpoints)

    def prune(self, keep: list[Network]) -> list[str]:
        """Remove the user-defined networks that no container names and that are not in `keep`."""
        gone = []
        for network in self.all():
            if not network.is_user_defined or network in keep or self.engine.containers.using_network(network.name):
                continue
            with contextlib.suppress(EngineError):
                self.remove(network)
                gone.append(network.name)
        return gone

    def _event(self, network: Network, action: str, **more: str) -> None:
        attributes = {"name": network.name, "type": network.driver, **more}
        self.engine.events.publish("network", action, network.id, attributes)

    # -- create ------------------------------------------------------------------------------

    def check(self, container: Container, networking: dict[str, Any] | None) -> None:
        """At a container's creation: what it asks for must make sense; its Networks are filled in."""
        host_config = container.host_config
        mode = network_mode(container)
        endpoints = dict((networking or {}).get("EndpointsConfig") or {})
        exposed = container.config.get("ExposedPorts") or {}
        for key in exposed:
            parse_port(key)
        wanted = bindings(host_config, exposed, "0.0.0.0")
        if mode.startswith("container:"):
            if wanted:
                raise BadRequest("conflicting options: port publishing and the container type network mode")
            target = self.engine.containers.get(mode.partition(":")[2])
            host_config["NetworkMode"] = f"container:{target.id}"
            container.network_settings["Networks"] = {}
            return
        if "default" in endpoints:
            endpoints["bridge"] = endpoints.pop("default")
        network = self.get(mode)
        names = {network.name: endpoints.pop(mode, None) or endpoints.pop(network.name, None) or {}}
        for name, settings in endpoints.items():
            names[self.get(name).name] = settings or {}
        if len(names) > 1 and not all(self.get(name).driver == "bridge" for name in names):
            raise BadRequest(
                f"conflicting options: a container with network mode {mode} cannot be attached to other networks"
            )
        container.network_settings["Networks"] = {
            name: self._asked(self.get(name), settings) for name, settings in names.items()
        }

    def _asked(self, network: Network, settings: dict[str, Any]) -> dict[str, Any]:
        result = blank_endpoint(network.id)
        for key in ("IPAMConfig", "Aliases", "DriverOpts", "Links"):
            if settings.get(key):
                result[key] = settings[key]
        if settings.get("MacAddress"):
            if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", str(settings["MacAddress"])):
                raise BadRequest(f"invalid MAC address: {settings['MacAddress']}")
            result["WantedMac"] = str(settings["MacAddress"]).lower()
        if wrong := _wrong_address(network, str((settings.get("IPAMConfig") or {}).get("IPv4Address") or "")):
            text = wrong[0] if len(wrong) == 1 else "\n".join(f"* {reason}" for reason in wrong)
            raise BadRequest(f"invalid config for network {network.name}: invalid endpoint settings:\n{text}")
        if result["Aliases"] and not network.is_user_defined:
            raise BadRequest("network-scoped alias is supported only for containers in user defined networks")
        return result

    # -- start -------------------------------------------------------------------------------

    def attach(self, container: Container) -> Attachment:
        """Before a container's task exists. What fails leaves nothing behind."""
        mode = network_mode(container)
        if mode.startswith("container:"):
            return self._join(container, mode.partition(":")[2])
        if mode == "host":
            return Attachment(None, self._files(container, "", False))
        if mode == "none":
            container.network_settings.update(Ports={})
            return Attachment("", self._files(container, "", True))
        self.detach(container)
        from teu.linux import netlink, netns

        with self.lock:
            descriptor, inner = netns.create(netlink.Socket)
            active = self._active[container.id] = Active(descriptor)
            try:
                names = self._ordered(container)
                for position, name in enumerate(names):
                    self._connect(container, active, self.get(name), position, inner, gateway=position == 0)
                inner.send([netlink.set_up(1)])
                self._publish(container, active, self.get(names[0]))
                named = self._resolve_names(container, active)
                settings = container.network_settings
                path = f"/proc/{os.getpid()}/fd/{descriptor}"
                settings["SandboxKey"], settings["SandboxID"] = path, container.id
                address = settings["Networks"][names[0]]["IPAddress"]
                gateway = settings["Networks"][names[0]]["Gateway"]
                files = self._files(container, address, True, gateway, RESOLVER_ADDRESS if named else "")
            except BaseException:
                self.detach(container)
                raise
            finally:
                inner.close()
        return Attachment(path, files)

    def _ordered(self, container: Container) -> list[str]:
        """The container's networks, the one of its mode first: it has the default route and the ports."""
        names = list(container.network_settings.get("Networks") or {})
        first = self.get(network_mode(container)).name
        if first in names:
            names.remove(first)
        return [first, *names]

    def _join(self, container: Container, reference: str) -> Attachment:
        other = self.engine.containers.get(reference)
        if not other.running or not other.pid:
            raise Conflict(f"cannot join network of a non running container: {other.id}")
        files = {}
        for path, name in (("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf")):
            source = f"{other.directory}/{name}"
            if os.path.exists(source):
                files[path] = source
        if os.path.realpath(f"/proc/{other.pid}/ns/net") == os.path.realpath("/proc/self/ns/net"):
            return Attachment(None, files)
        return Attachment(f"/proc/{other.pid}/ns/net", files)

    def _kernel(self) -> Socket:
        if self._netlink is None:
            from teu.linux import netlink

            self._netlink = netlink.Socket()
        return self._netlink

    def _delete_link(self, name: str) -> None:
        from teu.linux import netlink

        try:
            self._kernel().send([netlink.delete_link(name)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def _bring_up(self, network: Network) -> int:
        """The network's bridge with its address, the forwarding and the table's entries; returns its index."""
        from teu.linux import netlink

        kernel = self._kernel()
        if network.pool is None and network.name == "bridge":
            subnet = ipam.choose_subnet([*self._subnets(), *kernel.routes()])
            config = {"Subnet": str(subnet), "Gateway": str(next(subnet.hosts()))}
            network.record["IPAM"] = {"Driver": "default", "Options": None, "Config": [config]}
            network.pool = Network(network.record).pool
            self._store(network)
        name, pool = network.interface, network.addressing()
        found = kernel.link(name)
        if found is None:
            kernel.send([netlink.new_bridge(name, network.mtu)])
            found = kernel.link(name)
        elif found.kind != "bridge":
            raise EngineError(f"interface {name} is not a bridge; rename it, or remove network {network.name}")
        index = netlink.link_index(found)
        with contextlib.suppress(FileExistsError):
            kernel.send([netlink.add_address(index, pool.gateway, pool.subnet.prefixlen)])
        _set("/proc/sys/net/ipv4/ip_forward", "1")
        _set(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "1")
        # Who can send router advertisements in a container is not the host's router (CVE-2020-13401).
        ipv6 = f"/proc/sys/net/ipv6/conf/{name}/accept_ra"
        if os.path.exists(ipv6):
            _set(ipv6, "0")
        return index

    def _connect(
        self, container: Container, active: Active, network: Network, position: int, inner: Socket, gateway: bool
    ) -> None:
        from teu.linux import netlink

        first = not self._on_network(network)
        found = None if first else self._kernel().link(network.interface)
        index = self._bring_up(network) if found is None else found.number
        pool = network.addressing()
        settings = container.network_settings["Networks"].setdefault(network.name, blank_endpoint(network.id))
        wanted = str((settings.get("IPAMConfig") or {}).get("IPv4Address") or "")
        address = pool.take(wanted)
        veth = f"teu{container.id[:10]}{position:x}"
        endpoint = Endpoint(network.id, network.name, address, veth)
        active.endpoints.append(endpoint)
        if not self._table:
            self._rebuild_table()
        elif first:
            firewall.add_bridge(network.bridge())
        mac = str(settings.get("WantedMac") or container.config.get("MacAddress") or mac_address(address))
        interface = f"eth{position}"
        request = netlink.new_veth(veth, index, interface, active.namespace, mac, network.mtu)
        try:
            self._kernel().send([request])
        except FileExistsError:
            self._delete_link(veth)
            self._kernel().send([request])
        inside = netlink.link_index(inner.link(interface))
        messages = [netlink.add_address(inside, address, pool.subnet.prefixlen), netlink.set_up(inside)]
        if gateway and not network.record.get("Internal"):
            messages.append(netlink.add_default_route(pool.gateway))
        inner.send(messages)
        settings.update(
            NetworkID=network.id,
            EndpointID=uuid.uuid4().hex + uuid.uuid4().hex,
            Gateway=str(pool.gateway),
            IPAddress=str(address),
            IPPrefixLen=pool.subnet.prefixlen,
            MacAddress=mac,
        )
        if network.is_user_defined:
            names = [container.name, *(settings.get("Aliases") or []), container.id[:12], container.hostname]
            settings["DNSNames"] = list(dict.fromkeys(name for name in names if name))
        elif network.name == "bridge":
            container.network_settings.update({key: settings[key] for key in _RUNNING_KEYS})
        self._event(network, "connect", container=container.id)

    def _publish(self, container: Container, active: Active, network: Network) -> None:
        exposed = {**(container.config.get("ExposedPorts") or {})}
        default = network.options.get(OPTION_BINDING) or "0.0.0.0"
        shown: dict[str, Any] = dict.fromkeys(exposed)
        address = str(active.endpoints[0].address)
        if not network.record.get("Internal"):
            for wanted in bindings(container.host_config, exposed, default):
                owner = f"{container.name} ({container.id})"
                port = self.ports.reserve(wanted, owner)
                entry = firewall.Published(wanted.protocol, wanted.address, port, address, wanted.port)
                active.published.append(entry)
                key = f"{wanted.port}/{wanted.protocol}"
                shown[key] = [*(shown.get(key) or []), {"HostIp": wanted.address, "HostPort": str(port)}]
        if active.published:
            from teu.linux import netlink

            # A container may use its own published port. Where br_netfilter redirects a frame while it is still
            # the bridge's, that leaves by the port it came from.
            self._kernel().send([netlink.hairpin(active.endpoints[0].veth)])
            firewall.publish(active.published)
        container.network_settings["Ports"] = shown

    def _files(
        self, container: Container, address: str, own: bool, gateway: str = "", resolver: str = ""
    ) -> dict[str, str]:
        """Write hosts and resolv.conf into the container's directory."""
        names = container.hostname
        domain = str(container.config.get("Domainname") or "")
        if domain and names:
            names = f"{names}.{domain} {names}"
        entries = netfiles.extra_hosts(container.host_config, gateway or "127.0.0.1")
        if address and names:
            entries.append((address, names))
        base = netfiles.HOSTS if own else netfiles.host_hosts()
        directory = container.directory
        netfiles.write(f"{directory}/hosts", netfiles.hosts(entries, base))
        netfiles.write(f"{directory}/resolv.conf", netfiles.resolv_conf(container.host_config, own, resolver))
        return {"/etc/hosts": f"{directory}/hosts", "/etc/resolv.conf": f"{directory}/resolv.conf"}

    # -- names -------------------------------------------------------------------------------

    def _resolve_names(self, container: Container, active: Active) -> bool:
        """Serve the container's names where it is on a user-defined network."""
        networks = [self._networks[endpoint.network] for endpoint in active.endpoints]
        if not any(network.is_user_defined for network in networks):
            return False
        servers = list(container.host_config.get("Dns") or []) or netfiles.host_resolver(False).servers
        if all(network.record.get("Internal") for network in networks):
            servers = []
        self.resolver.add(
            container.id,
            active.namespace,
            lambda name: self._addresses(container.id, name),
            lambda address: self._name(container.id, address),
            servers,
        )
        return True

    def _neighbours(self, container_id: str) -> list[tuple[Endpoint, list[str]]]:
        """Endpoints on the user-defined networks of a container, with their names."""
        with self.lock:
            own = self._active.get(container_id)
            shared = {endpoint.network for endpoint in own.endpoints} if own else set()
            found = [
                (identity, endpoint)
                for identity, active in self._active.items()
                for endpoint in active.endpoints
                if endpoint.network in shared and endpoint.name != "bridge"
            ]
        result = []
        for identity, endpoint in found:
            with contextlib.suppress(EngineError):
                other = self.engine.containers.get(identity)
                settings = (other.network_settings.get("Networks") or {}).get(endpoint.name) or {}
                names = [other.name, *(settings.get("DNSNames") or [])]
                result.append((endpoint, list(dict.fromkeys(names))))
        return result

    def _addresses(self, container_id: str, name: str) -> list[IPv4Address] | None:
        found = [
            endpoint.address
            for endpoint, names in self._neighbours(container_id)
            if any(name in (known.lower(), f"{known}.{endpoint.name}".lower()) for known in names)
        ]
        return found or None

    def _name(self, container_id: str, address: IPv4Address) -> str | None:
        for endpoint, names in self._neighbours(container_id):
            if endpoint.address == address:
                return f"{names[0]}.{endpoint.name}"
        return None

    # -- stop --------------------------------------------------------------------------------

    def detach(self, container: Container) -> None:
        """After a container's exit, and after a start that failed. Doing it twice is fine."""
        with self.lock:
            self.resolver.remove(container.id)
            active = self._active.pop(container.id, None)
            if active is not None:
                self._release(active)
        settings = container.network_settings
        settings["Ports"] = {}
        for key in ("SandboxKey", "SandboxID", "EndpointID", "Gateway", "IPAddress", "MacAddress"):
            if settings.get(key):
                settings[key] = ""
        if settings.get("IPPrefixLen"):
            settings["IPPrefixLen"] = 0
        for name, endpoint in (settings.get("Networks") or {}).items():
            if endpoint.get("EndpointID"):
                network = self.find(endpoint.get("NetworkID") or name)
                if network:
                    self._event(network, "disconnect", container=container.id)
            endpoint.update(EndpointID="", Gateway="", IPAddress="", IPPrefixLen=0, MacAddress="")

    def _release(self, active: Active) -> None:
        if active.published:
            try:
                firewall.unpublish(active.published)
            except Exception as error:
                log.error("published ports cannot be taken out of the table: %s", error)
        for entry in active.published:
            self.ports.release(entry.protocol, entry.host_address, entry.host_port)
        if active.namespace >= 0:
            os.close(active.namespace)
        for endpoint in active.endpoints:
            self._leave(endpoint)

    def _leave(self, endpoint: Endpoint) -> None:
        network = self._networks.get(endpoint.network)
        # The kernel takes some 10 ms to delete a pair; nobody waits for it.
        threading.Thread(target=self._drop_veth, args=(endpoint.veth,), name="veth", daemon=True).start()
        if network is None:
            return
        network.addressing().give_back(endpoint.address)
        if not any(active.endpoints for active in self._active.values()):
            if self._table:
                self._table = False
                firewall.remove()
        elif not self._on_network(network):
            firewall.remove_bridge(network.bridge())

    def _drop_veth(self, name: str) -> None:
        from teu.linux import netlink

        try:
            with netlink.Socket() as kernel:
                kernel.send([netlink.delete_link(name)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.warning("interface %s cannot be deleted: %s", name, error)

    def forget(self, container: Container) -> None:
        """At a container's removal."""
        self.detach(container)

    # -- connect and disconnect --------------------------------------------------------------

    def connect(self, network: Network, container: Container, settings: dict[str, Any]) -> None:
        """POST /networks/{id}/connect."""
        mode = network_mode(container)
        if network.driver != "bridge":
            kind = f"{network.driver} network"
            raise Forbidden(f"container cannot be disconnected from {kind} or connected to {kind}")
        if mode in ("host", "none") or mode.startswith("container:"):
            what = {"host": "host network", "none": "none network"}.get(mode, "another container's network")
            raise BadRequest(
                f"container sharing network namespace with {what} cannot be connected to any other network"
            )
        with container.lock, self.lock:
            networks = container.network_settings.setdefault("Networks", {})
            if network.name in networks:
                raise Forbidden(
                    f"endpoint with name {container.name} already exists in network {network.name}"
                )
            networks[network.name] = self._asked(network, settings)
            active = self._active.get(container.id)
            if container.running and active is not None:
                from teu.linux import netlink, netns

                used = {int(endpoint.veth[-1], 16) for endpoint in active.endpoints}
                position = next(number for number in range(16) if number not in used)
                try:
                    inner = netns.run_in(active.namespace, netlink.Socket)
                    with inner:
                        self._connect(container, active, network, position, inner, gateway=not active.endpoints)
                except BaseException:
                    for endpoint in [e for e in active.endpoints if e.network == network.id]:
                        active.endpoints.remove(endpoint)
                        self._leave(endpoint)
                    networks.pop(network.name, None)
                    raise
            container.save()

    def disconnect(self, network: Network, container: Container, force: bool = False) -> None:
        with container.lock, self.lock:
            networks = container.network_settings.get("Networks") or {}
            if network.name not in networks:
                raise Forbidden(f"container {container.id} is not connected to the network {network.name}")
            if network.driver != "bridge":
                raise BadRequest("container cannot be disconnected from host network or none network")
            active = self._active.get(container.id)
            if active is not None:
                for endpoint in [e for e in active.endpoints if e.network == network.id]:
                    if endpoint is active.endpoints[0] and active.published:
                        firewall.unpublish(active.published)
                        for entry in active.published:
                            self.ports.release(entry.protocol, entry.host_address, entry.host_port)
                        active.published.clear()
                        container.network_settings["Ports"] = {}
                    active.endpoints.remove(endpoint)
                    self._leave(endpoint)
            networks.pop(network.name)
            container.save()
        self._event(network, "disconnect", container=container.id)

    # -- recovery ----------------------------------------------------------------------------

    def recover(self, running: list[Container]) -> None:
        """After a start of the daemon: know again what running containers hold, and sweep what the dead left."""
        with self.lock:
            for container in running:
                self._recover(container)
            for container in self.engine.containers.all():
                if container.id not in self._active and not container.running:
                    self.detach(container)
            expected = {endpoint.veth for active in self._active.values() for endpoint in active.endpoints}
            for link in self._kernel().links():
                stray = VETH.match(link.name) and link.kind == "veth" and link.name not in expected
                lost = BRIDGE.match(link.name) and link.kind == "bridge" and link.name not in {
                    network.interface for network in self._networks.values()
                }
                if stray or lost:
                    with contextlib.suppress(OSError):
                        self._delete_link(link.name)
            if expected:
                self._rebuild_table()
            else:
                firewall.remove()

    def _recover(self, container: Container) -> None:
        active = Active()
        for position, name in enumerate(self._ordered_or_none(container)):
            settings = container.network_settings["Networks"][name]
            network = self.find(settings.get("NetworkID") or name)
            if network is None or not settings.get("IPAddress"):
                continue
            address = IPv4Address(settings["IPAddress"])
            network.addressing().used.add(address)
            active.endpoints.append(
                Endpoint(network.id, network.name, address, f"teu{container.id[:10]}{position:x}")
            )
        if not active.endpoints:
            return
        with contextlib.suppress(OSError):
            active.namespace = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        for key, entries in (container.network_settings.get("Ports") or {}).items():
            port, protocol = parse_port(key)
            for entry in entries or []:
                host_port = int(entry["HostPort"])
                if not self.ports.hold_again(protocol, entry["HostIp"], host_port):
                    log.warning(
                        "port %s of container %s is bound by another process", host_port, container.name,
                        extra=container.fields,
                    )  # fmt: skip
                active.published.append(
                    firewall.Published(
                        protocol, entry["HostIp"], host_port, str(active.endpoints[0].address), port
                    )
                )
        self._active[container.id] = active
        if active.namespace >= 0:
            try:
                self._resolve_names(container, active)
            except Exception as error:
                log.warning(
                    "the names of container %s cannot be served: %s", container.name, error, extra=container.fields
                )

    def _ordered_or_none(self, container: Container) -> list[str]:
        mode = network_mode(container)
        if mode in ("host", "none") or mode.startswith("container:"):
            return []
        try:
            return self._ordered(container)
        except NotFound:
            return list(container.network_settings.get("Networks") or {})

    def _rebuild_table(self) -> None:
        used = {endpoint.network for active in self._active.values() for endpoint in active.endpoints}
        firewall.rebuild(
            [self._networks[network].bridge() for network in used if network in self._networks],
            [entry for active in self._active.values() for entry in active.published],
        )
        self._table = True


def _check_options(options: dict[str, str]) -> None:
    name = options.get(OPTION_BRIDGE)
    if name is not None and (not re.fullmatch(r"[a-zA-Z0-9_.-]{1,15}", name) or name == DEFAULT_BRIDGE):
        raise BadRequest(f"invalid name of a bridge: {name!r}")
    mtu = options.get(OPTION_MTU)
    if mtu is not None and not (mtu.isdigit() and 68 <= int(mtu) <= 65535):
        raise BadRequest(f"invalid MTU: {mtu!r}")
    for option in (OPTION_TALK, OPTION_MASQUERADE):
        if options.get(option, "true").lower() not in ("true", "false", "1", "0"):
            raise BadRequest(f"invalid value of {option}: {options[option]!r} is neither true nor false")
    binding = options.get(OPTION_BINDING)
    if binding is not None:
        try:
            IPv4Address(binding)
        except ValueError:
            raise BadRequest(f"invalid value of {OPTION_BINDING}: {binding!r} is no IPv4 address") from None


def _set(path: str, value: str) -> None:
    with open(path, "r+") as file:
        if file.read().strip() != value:
            file.seek(0)
            file.write(value)
