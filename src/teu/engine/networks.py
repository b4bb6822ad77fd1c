# SPDX-License-Identifier: Apache-2.0
"""Networks as the engine sees them: their records, and the attachment of containers to them.

    engine.db  networks   id, name, data (the API's form of the network without its containers)
    kernel     teu0, teu-HEX             a bridge per network in use
               teuHEXn                   our end of a container's veth pair, n-th network (hexadecimal)
               table inet teu            firewall.py
    memory     _active                   what every running container holds: namespace, addresses, ports
    run        turned-forwarding-on      it was off until we turned it on

Who joins a namespace gets a descriptor of its own. After a restart of the daemon a namespace is known by the other
ends of its veth pairs, not by the number of a process.

A container's default route and published ports go by one of its networks: the first that is not internal, by priority
and name. They move when that changes (`_lead_out`), and hosts and resolv.conf follow. A container reaches its own
published port: its bridge port is in hairpin mode, for hosts where br_netfilter redirects frames inside the bridge.
enable_icc=false isolates the bridge's ports from each other, and a rule does the same for what is routed.

A container's network namespace is made here before its task, and handed to the runtime as the path of a
descriptor of this process; from the start of the task on the container's processes hold it. So it can neither
outlive a container nor be left behind by a daemon that is killed. Called by the containers' life cycle
(check, attach, detach, forget, recover) and by routes/networks. What requests may say is in netrequests, what a
network and a container's part in it are, in network.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import select
import threading
import uuid
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teu.engine import firewall, ipam, netfiles, netrequests, records
from teu.engine.container import timestamp
from teu.engine.dns import ADDRESS as RESOLVER_ADDRESS
from teu.engine.dns import Resolver
from teu.engine.errors import BadRequest, Conflict, EngineError, Forbidden, NotFound
from teu.engine.network import (
    DEFAULT_BRIDGE,
    PREDEFINED,
    Active,
    Attachment,
    Endpoint,
    Network,
    automatic_mac,
    blank_endpoint,
)
from teu.engine.ports import Binding, Ports, bindings, canonical, parse_port

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine
    from teu.linux.netlink import Socket
    from teu.linux.nftables import Change

log = logging.getLogger("teu.engine")

VETH = re.compile(r"teu[0-9a-f]{10}[0-9a-f]{1,2}\Z")
BRIDGE = re.compile(r"teu-[0-9a-f]{11}\Z")
# Of a network's record, what the API does not know: nobody chose its subnet; we made the bridge of that name.
OWN_KEYS = ("AutomaticSubnet", "OwnBridge")
MOST_ENDPOINTS = 256  # two hexadecimal digits are what a veth's name has room for

_RUNNING_KEYS = ("EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "MacAddress")


def network_mode(container: Container) -> str:
    if container.config.get("NetworkDisabled"):
        return "none"
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
        self._watcher: threading.Thread | None = None

    # -- records -----------------------------------------------------------------------------

    def start(self) -> None:
        from teu.linux import nftables

        nftables.reserve()
        for network in self._read():
            if network.id in self._networks:
                network.record["Id"] = f"{network.row:064x}"
            self._networks[network.id] = network
        for name, driver in PREDEFINED.items():
            known = next((network for network in self._networks.values() if network.name == name), None)
            if known is None:
                self._store(Network(self._record(name, driver, {})))
            elif known.damage:
                # Nobody can remove it and make it anew. It is what it always is, with the addresses it had.
                self._forget(known)
                self._store(Network(self._record(name, driver, {"Id": known.id, "IPAM": known.record["IPAM"]})))

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

    def _read(self) -> list[Network]:
        """All records, the good ones first: nobody else gets their ids."""
        found = []
        for row in self.engine.database.query(
            "SELECT rowid, CAST(id AS BLOB) AS id, CAST(name AS BLOB) AS name, CAST(data AS BLOB) AS data FROM networks"
        ):
            record, faults = records.network(row["id"], row["name"], row["data"])
            damage = ""
            if not faults:
                try:
                    probe = Network(record)
                    IPv4Address(probe.binding)
                    int(probe.mtu)
                except (EngineError, ValueError, TypeError, AttributeError, KeyError) as error:
                    faults = [str(error)]
            if faults:
                damage = f"its record in {self.engine.database.path} is damaged: {'; '.join(faults[:5])}"
                log.error("network %s (%s): %s", record["Id"][:12], record["Name"], damage)
            try:
                network = Network(record, damage, row["rowid"])
            except (ValueError, TypeError, AttributeError, KeyError):
                record["IPAM"] = {**record["IPAM"], "Config": []}
                network = Network(record, damage, row["rowid"])
            found.append(network)
        return sorted(found, key=lambda network: bool(network.damage))

    def _forget(self, network: Network) -> None:
        with self.engine.database.transaction() as cursor:
            if network.damage:
                cursor.execute("DELETE FROM networks WHERE rowid=?", (network.row,))
            else:
                cursor.execute("DELETE FROM networks WHERE id=?", (network.id,))
        self._networks.pop(network.id, None)

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
        result = {key: value for key, value in network.record.items() if key not in OWN_KEYS}
        if network.name == "bridge":
            result["Options"] = {netrequests.OPTION_BRIDGE: DEFAULT_BRIDGE, **network.options}
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
        if network.damage:
            result["Status"] = {"Error": network.damage}
        return result

    def create(self, request: dict[str, Any]) -> tuple[Network, str]:
        """POST /networks/create: the network, and a warning. Raises BadRequest, Forbidden, NotFound, Conflict."""
        request = netrequests.read(request, netrequests.CREATE)
        name = request["Name"]
        netrequests.check_name(name)
        if name in PREDEFINED or name == "default":
            raise Forbidden(f"operation is not permitted on predefined {name} network")
        warnings = netrequests.check_network(request)
        config = netrequests.addressing(request["IPAM"]["Config"])
        options = request["Options"]
        with self.lock:
            for other in self._networks.values():
                if other.name == name:
                    raise Conflict(f"network with name {name} already exists")
                if other.driver == "bridge" and other.interface == options.get(netrequests.OPTION_BRIDGE):
                    raise Conflict(f"network {other.name} has the bridge {other.interface}")
            network = Network(
                self._record(
                    name,
                    "bridge",
                    {
                        "IPAM": {
                            "Driver": "default",
                            "Options": request["IPAM"]["Options"],
                            "Config": [self._addressing(config)],
                        },
                        "Internal": request["Internal"],
                        "Attachable": request["Attachable"],
                        "Options": options,
                        "Labels": request["Labels"],
                        # Ours alone: a subnet that nobody chose may not be relied on for fixed addresses.
                        "AutomaticSubnet": not config,
                    },
                )
            )
            self._store(network)
        self._event(network, "create")
        return network, "; ".join(warnings)

    def _subnets(self) -> list[IPv4Network]:
        return [network.pool.subnet for network in self._networks.values() if network.pool]

    def _addressing(self, config: dict[str, Any]) -> dict[str, Any]:
        """The record's IPAM.Config of what was asked for; {} lets the engine choose."""
        if config:
            subnet = ipam.check_subnet(config["Subnet"], self._subnets())
        else:
            subnet = ipam.choose_subnet([*self._subnets(), *self._kernel().routes()])
        gateway = str(config.get("Gateway") or next(subnet.hosts()))
        result: dict[str, Any] = {"Subnet": str(subnet), "Gateway": gateway}
        if config.get("IPRange"):
            result["IPRange"] = str(IPv4Network(config["IPRange"], strict=False))
        others = config.get("AuxiliaryAddresses") or {}
        for name, address in others.items():
            if list(others.values()).count(address) > 1 or address == gateway:
                raise EngineError(f"failed to allocate secondary ip address ({name}:{address}): Address already in use")
        if others:
            result["AuxiliaryAddresses"] = others
        return result

    def remove(self, network: Network) -> None:
        if network.name in PREDEFINED:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        with self.lock:
            if self._on_network(network):
                raise Forbidden(
                    f"error while removing network: network {network.name} id {network.id} has active endpoints"
                )
            self._forget(network)
            if BRIDGE.match(network.interface) or network.record.get("OwnBridge"):
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

    def check(
        self,
        container: Container,
        networking: dict[str, Any] | None,
        version: tuple[int, int] = (1, 45),
        warnings: list[str] | None = None,
    ) -> None:
        """At a container's creation: what it asks for must make sense; its Networks are filled in. A network that
        does not exist is one that may do so when the container starts."""
        host_config = container.host_config
        mode = network_mode(container)
        endpoints = netrequests.read(networking, netrequests.NETWORKING, "NetworkingConfig")["EndpointsConfig"]
        for name, settings in endpoints.items():
            if settings is None:
                raise BadRequest(f"invalid config for network {name}: EndpointsConfig is nil")
        if len(endpoints) > 1 and version < (1, 44):
            raise BadRequest(
                f"Container cannot be created with multiple network endpoints: {', '.join(sorted(endpoints))}"
            )
        exposed = container.config.get("ExposedPorts") or {}
        for key in exposed:
            parse_port(key)
        bindings(host_config, exposed, "0.0.0.0")
        container.network_settings["Networks"] = {}
        if mode.startswith("container:"):
            for name, settings in endpoints.items():
                netrequests.check_endpoint(settings, name, False, None)
            with contextlib.suppress(NotFound):
                host_config["NetworkMode"] = f"container:{self.engine.containers.get(mode.partition(':')[2]).id}"
            return
        if mode == "host" and host_config.get("PortBindings") and warnings is not None:
            told = "Published ports are discarded when using host network mode"
            warnings += [told] if told not in warnings else []
        if container.config.get("NetworkDisabled"):
            return
        asked = self._by_name(endpoints, mode)
        if len(asked) > 1 or mode in ("host", "none"):
            for name in asked:
                network = self.find(name)
                if name != mode and (mode in ("host", "none") or network is not None and network.driver != "bridge"):
                    raise BadRequest(
                        f"conflicting options: a container with network mode {mode} cannot be attached to other"
                        " networks"
                    )
        if host_config.get("Links"):
            # Links between containers of one network are names of that network.
            first = next(iter(asked))
            links = list(dict.fromkeys([*asked[first]["Links"], *host_config["Links"]]))
            asked[first] = {**asked[first], "Links": links}
            host_config["Links"] = None
        self._main_mac(container, asked, version, warnings)
        container.network_settings["Networks"] = {
            name: self._asked(name, self.find(name), settings) for name, settings in asked.items()
        }

    def _by_name(self, endpoints: dict[str, Any], mode: str) -> dict[str, Any]:
        """What is asked for, by the networks' names: that of the mode first, which alone is meant where there is no
        more than a mode."""
        if not endpoints:
            endpoints = {mode: netrequests.read({}, netrequests.CONNECT.members["EndpointConfig"])}
        result: dict[str, Any] = {}
        first = self.find(mode)
        for text, settings in endpoints.items():
            network = self.find("bridge" if text == "default" else text)
            name = network.name if network else text
            if name in result:
                raise BadRequest(f"network {name} is asked for twice")
            if network is not None and network is first:
                result = {name: settings, **result}
            else:
                result[name] = settings
        return result

    def _main_mac(
        self,
        container: Container,
        asked: dict[str, Any],
        version: tuple[int, int],
        warnings: list[str] | None,
    ) -> None:
        """Config.MacAddress is that of the first network's endpoint."""
        wide = container.config.get("MacAddress")
        main = next(iter(asked))
        if wide:
            if warnings is not None and version >= (1, 44):
                warnings.append(
                    "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig"
                    " instead."
                )
            try:
                netrequests.mac_address(wide)
            except BadRequest as error:
                raise BadRequest(f"invalid config for network {main}: {error}") from None
            if asked[main]["MacAddress"] not in ("", wide):
                raise BadRequest(
                    "the container-wide MAC address must match the endpoint-specific MAC address for the main network,"
                    " or be left empty"
                )
            asked[main] = {**asked[main], "MacAddress": wide}
        elif asked[main]["MacAddress"]:
            container.config["MacAddress"] = asked[main]["MacAddress"]

    def _asked(self, name: str, network: Network | None, settings: dict[str, Any]) -> dict[str, Any]:
        """The record of an endpoint that was asked for."""
        user_defined = network is None or network.is_user_defined
        # Of a network that does not exist yet it is not known which addresses it will have.
        subnet = network.chosen_subnet() if network else IPv4Network("0.0.0.0/0")
        netrequests.check_endpoint(settings, name, user_defined, subnet)
        result = blank_endpoint(network.id if network else "")
        if settings["IPAMConfig"] is not None:
            result["IPAMConfig"] = {key: value for key, value in settings["IPAMConfig"].items() if value}
        for key in ("Aliases", "DriverOpts", "Links"):
            result[key] = settings[key] or None
        if settings["MacAddress"]:
            result["WantedMac"] = netrequests.mac_address(settings["MacAddress"])
        if settings["GwPriority"]:
            result["GwPriority"] = settings["GwPriority"]
        return result

    # -- start -------------------------------------------------------------------------------

    def attach(self, container: Container) -> Attachment:
        """Before a container's task exists. What fails leaves nothing behind."""
        mode = network_mode(container)
        self.detach(container)
        if mode.startswith("container:"):
            return self._join(container, mode.partition(":")[2])
        if mode == "host":
            return Attachment(None, self._files(container, [], False))
        from teu.linux import netlink, netns

        with self.lock:
            descriptor, inner = netns.create(netlink.Socket)
            active = self._active[container.id] = Active(descriptor)
            try:
                inner.send([netlink.set_up(1)])
                for network in self._wanted(container):
                    with _endpoint_of(container, network):
                        self._connect(container, active, network, inner)
                self._lead_out(container, active, inner)
                self._resolve_names(container, active)
                settings = container.network_settings
                path = f"/proc/{os.getpid()}/fd/{descriptor}"
                settings["SandboxKey"], settings["SandboxID"] = path, container.id
                files = self._files(container, active.endpoints, True, self._gateway(active), active.named)
            except BaseException:
                self.detach(container)
                raise
            finally:
                inner.close()
        return Attachment(path, files)

    def _wanted(self, container: Container) -> list[Network]:
        """The container's bridge networks, the one of its mode first. Raises NotFound."""
        known = container.network_settings.get("Networks") or {}
        result = []
        for text in list(known):
            network = self.get(text)
            network.must_be_whole()
            if network.driver != "bridge":
                continue
            if network.name != text:  # it did not exist yet when it was asked for, by its id
                known[network.name] = known.pop(text)
            known[network.name]["NetworkID"] = network.id
            result.append(network)
        first = self.find(network_mode(container))
        return sorted(result, key=lambda network: network is not first)

    def _join(self, container: Container, reference: str) -> Attachment:
        """Another container's network, with its names and what it says of them."""
        other = owner = self.engine.containers.get(reference)
        if other is container:
            raise BadRequest("cannot join own network")
        if not other.running or not other.pid:
            raise Conflict(f"cannot join network of a non running container: {other.id}")
        while network_mode(owner).startswith("container:") and owner is not container:
            owner = self.engine.containers.get(network_mode(owner).partition(":")[2])
        container.config["Hostname"] = other.config.get("Hostname") or ""
        container.config["Domainname"] = other.config.get("Domainname") or ""
        files = {}
        for name in ("hosts", "resolv.conf", "hostname"):
            source = f"{owner.directory}/{name}"
            if os.path.exists(source):
                files[f"/etc/{name}"] = source
        if network_mode(owner) == "host":
            return Attachment(None, files)
        with self.lock:
            held = self._active.get(other.id)
            if held is None or held.namespace < 0:
                raise Conflict(f"cannot join network of container {other.id}: its network namespace is not known")
            # A descriptor of our own: the other one may end, and its number be another's, before the runtime looks.
            active = self._active[container.id] = Active(os.dup(held.namespace))
        return Attachment(f"/proc/{os.getpid()}/fd/{active.namespace}", files)

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
            if not BRIDGE.match(name) and network.is_user_defined and not network.record.get("OwnBridge"):
                network.record["OwnBridge"] = True  # one that was there before is spared at the network's removal
                self._store(network)
        elif found.kind != "bridge":
            raise EngineError(f"interface {name} is not a bridge; rename it, or remove network {network.name}")
        index = netlink.link_index(found)
        with contextlib.suppress(FileExistsError):
            kernel.send([netlink.add_address(index, pool.gateway, pool.subnet.prefixlen)])
        if _set("/proc/sys/net/ipv4/ip_forward", "1"):
            Path(self._forwarding).touch()
            firewall.close_forwarding()
        _set(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "1")
        # Who can send router advertisements in a container is not the host's router (CVE-2020-13401).
        ipv6 = f"/proc/sys/net/ipv6/conf/{name}/accept_ra"
        if os.path.exists(ipv6):
            _set(ipv6, "0")
        return index

    @property
    def _forwarding(self) -> str:
        """A file that is there from when we turned forwarding on until the machine is started anew."""
        return f"{self.engine.exec_root}/turned-forwarding-on"

    def _connect(self, container: Container, active: Active, network: Network, inner: Socket) -> None:
        """A pair between a container's namespace and a bridge, with its addresses. Who calls undoes what fails."""
        from teu.linux import netlink

        network.must_be_whole()
        if len(active.endpoints) >= MOST_ENDPOINTS:
            raise Forbidden(f"container {container.name} is on {MOST_ENDPOINTS} networks, more are not supported")
        first = not self._on_network(network)
        found = None if first else self._kernel().link(network.interface)
        index = self._bring_up(network) if found is None else found.number
        pool = network.addressing()
        settings = container.network_settings["Networks"].setdefault(network.name, blank_endpoint(network.id))
        ipam_config = settings.get("IPAMConfig") or {}
        options = settings.get("DriverOpts") or {}
        taken = {int(endpoint.veth[13:], 16) for endpoint in active.endpoints}
        position = next(number for number in range(MOST_ENDPOINTS) if number not in taken)
        veth = f"teu{container.id[:10]}{position:x}"
        interface = options.get(netrequests.OPTION_INTERFACE) or f"{network.prefix}{position}"
        if any(endpoint.interface == interface for endpoint in active.endpoints):
            raise Conflict(f"container {container.name} has an interface {interface} already")
        address = pool.take(str(ipam_config.get("IPv4Address") or ""))
        active.endpoints.append(Endpoint(network.id, network.name, address, veth, 0, interface))
        if not self._table:
            self._rebuild_table()
        elif first:
            self._in_table(lambda: firewall.add_bridge(network.bridge()))
            self._beside_others()
        mac = str(settings.get("WantedMac") or automatic_mac(address))
        # Before the other end is up: who may not reach its neighbours never could.
        requests = [netlink.new_veth(veth, index, interface, active.namespace, mac, network.mtu)]
        if not network.talk:
            requests.append(netlink.isolated(veth))
        try:
            self._kernel().send(requests)
        except FileExistsError:
            self._delete_link(veth)
            self._kernel().send(requests)
        inside = inner.link(interface)
        number = netlink.link_index(inside)
        assert inside is not None
        active.endpoints[-1] = active.endpoints[-1]._replace(number=inside.peer)
        messages = [netlink.add_address(number, address, pool.subnet.prefixlen)]
        for text in ipam_config.get("LinkLocalIPs") or ():
            local = ip_address(text)
            messages.append(netlink.add_address(number, local, 16 if local.version == 4 else 64))
        inner.send([*messages, netlink.set_up(number)])
        _set_inside(active.namespace, interface, netrequests.endpoint_sysctls(options))
        settings.update(
            NetworkID=network.id,
            EndpointID=uuid.uuid4().hex + uuid.uuid4().hex,
            Gateway=str(pool.gateway),
            IPAddress=str(address),
            IPPrefixLen=pool.subnet.prefixlen,
            MacAddress=mac,
            Veth=veth,
        )
        if network.is_user_defined:
            names = [container.name, *(settings.get("Aliases") or []), container.id[:12], container.hostname]
            settings["DNSNames"] = list(dict.fromkeys(name for name in names if name))
        elif network.name == "bridge":
            container.network_settings.update({key: settings[key] for key in _RUNNING_KEYS})
        self._event(network, "connect", container=container.id)

    def _lead_out(self, container: Container, active: Active, inner: Socket) -> None:
        """The default route and the published ports go by the network that is first among those with a way out: by
        priority, then by name, as everywhere. Wherever a container's networks change, this follows."""
        from teu.linux import netlink

        settings = container.network_settings.get("Networks") or {}
        best = min(
            (endpoint for endpoint in active.endpoints if not self._networks[endpoint.network].internal),
            key=lambda endpoint: (-int(settings[endpoint.name].get("GwPriority") or 0), endpoint.name),
            default=None,
        )
        before = active.outward
        if best == before and "Outward" in container.network_settings:
            return
        if before is not None and best is None and before in active.endpoints:
            with contextlib.suppress(OSError):
                gateway = self._networks[before.network].addressing().gateway
                inner.send([netlink.delete_default_route(gateway)])
        used = {(entry.port, entry.protocol): entry.host_port for entry in active.published}
        self._unpublish(container, active)
        active.outward = best
        container.network_settings["Outward"] = best.name if best else ""
        if best is not None:
            network = self._networks[best.network]
            inner.send([netlink.default_route(network.addressing().gateway)])
            self._publish(container, active, network, best, used)

    def _gateway(self, active: Active) -> str:
        endpoint = active.outward or next(iter(active.endpoints), None)
        return str(self._networks[endpoint.network].addressing().gateway) if endpoint else ""

    def _unpublish(self, container: Container, active: Active) -> None:
        container.network_settings["Ports"] = {}
        if active.published:
            entries, active.published = active.published, []
            for entry in entries:
                self.ports.release(entry.protocol, entry.host_address, entry.host_port)
            self._in_table(lambda: firewall.unpublish(entries))

    def _publish(
        self,
        container: Container,
        active: Active,
        network: Network,
        endpoint: Endpoint,
        used: dict[tuple[int, str], int],
    ) -> None:
        """`used`: host ports that were chosen before, and are kept where they are free."""
        exposed = {canonical(key): value for key, value in (container.config.get("ExposedPorts") or {}).items()}
        shown: dict[str, Any] = dict.fromkeys(exposed)
        for wanted in bindings(container.host_config, exposed, network.binding):
            owner = f"{container.name} ({container.id})"
            port = self._reserve(wanted, used.get((wanted.port, wanted.protocol), 0), owner)
            active.published.append(
                firewall.Published(wanted.protocol, wanted.address, port, str(endpoint.address), wanted.port)
            )
            key = f"{wanted.port}/{wanted.protocol}"
            shown[key] = [*(shown.get(key) or []), {"HostIp": wanted.address, "HostPort": str(port)}]
        if active.published:
            from teu.linux import netlink

            # A container may use its own published port. Where br_netfilter redirects a frame while it is still
            # the bridge's, that leaves by the port it came from.
            self._kernel().send([netlink.hairpin(endpoint.veth)])
            self._in_table(lambda: firewall.publish(active.published))
        container.network_settings["Ports"] = shown

    def _reserve(self, wanted: Binding, before: int, owner: str) -> int:
        if before and wanted.first <= before <= wanted.last or before and not wanted.first:
            with contextlib.suppress(EngineError):
                return self.ports.reserve(wanted._replace(first=before, last=before), owner)
        return self.ports.reserve(wanted, owner)

    def _files(
        self,
        container: Container,
        endpoints: list[Endpoint],
        own: bool,
        gateway: str = "",
        named: bool = False,
    ) -> dict[str, str]:
        """Write hosts and resolv.conf into the container's directory."""
        entries = netfiles.extra_hosts(container.host_config, gateway or "127.0.0.1")
        entries += [line for endpoint in endpoints if (line := self._host_line(container, endpoint))]
        base = netfiles.HOSTS if own else netfiles.host_hosts()
        directory = container.directory
        netfiles.write(f"{directory}/hosts", netfiles.hosts(entries, base))
        text = netfiles.resolv_conf(container.host_config, own, RESOLVER_ADDRESS if named else "")
        netfiles.write(f"{directory}/resolv.conf", text)
        container.network_settings["ResolverSum"] = netfiles.digest(text)
        return {"/etc/hosts": f"{directory}/hosts", "/etc/resolv.conf": f"{directory}/resolv.conf"}

    def _host_line(self, container: Container, endpoint: Endpoint) -> tuple[str, str] | None:
        names = netfiles.host_names(container.hostname, str(container.config.get("Domainname") or ""))
        return (str(endpoint.address), names) if names else None

    def _use_resolver(self, container: Container) -> None:
        """A running container's resolv.conf names the engine's resolver from now on, unless somebody wrote there."""
        path = f"{container.directory}/resolv.conf"
        text = netfiles.read(path)
        if text is None or netfiles.digest(text) != container.network_settings.get("ResolverSum"):
            log.info(
                "resolv.conf of container %s is not ours any more, and stays", container.name, extra=container.fields
            )
            return
        text = netfiles.resolv_conf(container.host_config, True, RESOLVER_ADDRESS)
        netfiles.write(path, text)
        container.network_settings["ResolverSum"] = netfiles.digest(text)

    # -- names -------------------------------------------------------------------------------

    def _resolve_names(self, container: Container, active: Active) -> None:
        """Serve the container's names where it is on a user-defined network, and where the host's own servers are on
        its loopback, which a container cannot ask."""
        if active.named or not active.endpoints:
            return
        # Who has that resolver in its resolv.conf keeps it.
        alone = not container.network_settings.get("Named") and not any(
            self._networks[endpoint.network].is_user_defined for endpoint in active.endpoints
        )
        if alone and (container.host_config.get("Dns") or netfiles.host_resolver(True).servers):
            return
        self.resolver.add(
            container.id,
            active.namespace,
            lambda name: self._addresses(container.id, name),
            lambda address: self._name(container.id, address),
            lambda: self._servers(container, active),
        )
        active.named = container.network_settings["Named"] = True

    def _servers(self, container: Container, active: Active) -> list[str]:
        """Who is asked for other names: nobody where all networks are internal."""
        if active.outward is None:
            return []
        return list(container.host_config.get("Dns") or []) or netfiles.host_resolver(False).servers

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
        neighbours = self._neighbours(container_id)
        links = self._links(container_id)
        found = [
            endpoint.address
            for endpoint, names in neighbours
            if any(
                name in (known.lower(), f"{known}.{endpoint.name}".lower())
                for known in (*names, *(alias for target, alias in links.get(endpoint.name, ()) if target in names))
            )
        ]
        return found or None

    def _links(self, container_id: str) -> dict[str, list[tuple[str, str]]]:
        """By network: (container, what this one calls it)."""
        try:
            settings = self.engine.containers.get(container_id).network_settings.get("Networks") or {}
        except EngineError:
            return {}
        return {name: [netrequests.link(text) for text in one.get("Links") or ()] for name, one in settings.items()}

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
            self._blank(endpoint)
        for key in ("Outward", "Named"):
            settings.pop(key, None)

    def _blank(self, endpoint: dict[str, Any]) -> None:
        endpoint.update(EndpointID="", Gateway="", IPAddress="", IPPrefixLen=0, MacAddress="")
        endpoint.pop("Veth", None)

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
        # The kernel takes some 10 ms to delete a pair; nobody waits for it. By its number: the next pair of the same
        # container has the same name, and may be there before this is done.
        if not endpoint.number:  # it was never seen
            with contextlib.suppress(OSError):
                self._delete_link(endpoint.veth)
        else:
            threading.Thread(target=self._drop_veth, args=(endpoint,), name="veth", daemon=True).start()
        if network is None:
            return
        if network.pool is None:  # its record is damaged
            return
        network.pool.give_back(endpoint.address)
        if not any(active.endpoints for active in self._active.values()):
            if self._table:
                self._table = False
                firewall.remove()
        elif not self._on_network(network):
            self._in_table(lambda: firewall.remove_bridge(network.bridge()))
            self._beside_others()

    def _drop_veth(self, endpoint: Endpoint) -> None:
        from teu.linux import netlink

        try:
            with netlink.Socket() as kernel:
                kernel.send([netlink.delete_index(endpoint.number)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.warning("interface %s cannot be deleted: %s", endpoint.veth, error)

    def forget(self, container: Container) -> None:
        """At a container's removal."""
        self.detach(container)

    # -- connect and disconnect --------------------------------------------------------------

    def connect(self, network: Network, container: Container, settings: dict[str, Any] | None) -> None:
        """POST /networks/{id}/connect."""
        asked = netrequests.read(settings or {}, netrequests.CONNECT.members["EndpointConfig"], "EndpointConfig")
        mode = network_mode(container)
        if network.driver == "host":
            raise Forbidden("container cannot be disconnected from host network or connected to host network")
        if mode == "host" or mode.startswith("container:"):
            raise BadRequest(
                "container sharing network namespace with another container or host cannot be connected to any other"
                " network"
            )
        with container.lock, self.lock:
            networks = container.network_settings.setdefault("Networks", {})
            if network.driver == "null" or "none" in networks:
                raise BadRequest(
                    "container cannot be connected to multiple networks with one of the networks in private (none) mode"
                )
            if container.config.get("NetworkDisabled"):
                raise BadRequest(f"container {container.name} was created without a network (NetworkDisabled)")
            if network.name in networks:
                raise Forbidden(f"endpoint with name {container.name} already exists in network {network.name}")
            active = self._active.get(container.id)
            if container.running and container.pid and (active is None or active.namespace < 0):
                raise Conflict(
                    f"the network namespace of container {container.name} is not known any more: start it anew before"
                    " it is connected"
                )
            networks[network.name] = self._asked(network.name, network, asked)
            if container.running and active is not None:
                try:
                    self._connect_now(container, active, network)
                except BaseException:
                    self._disconnect_now(container, active, network)
                    networks.pop(network.name, None)
                    raise
            container.save()

    def _connect_now(self, container: Container, active: Active, network: Network) -> None:
        from teu.linux import netlink, netns

        with netns.run_in(active.namespace, netlink.Socket) as inner:
            with _endpoint_of(container, network):
                self._connect(container, active, network, inner)
            self._lead_out(container, active, inner)
        endpoint = next(endpoint for endpoint in active.endpoints if endpoint.network == network.id)
        netfiles.change_hosts(f"{container.directory}/hosts", add=self._host_line(container, endpoint))
        if not active.named:
            self._resolve_names(container, active)
            if active.named:
                self._use_resolver(container)

    def disconnect(self, network: Network, container: Container, force: bool = False) -> None:
        with container.lock, self.lock:
            networks = container.network_settings.get("Networks") or {}
            if network.driver == "host":
                raise Forbidden("container cannot be disconnected from host network or connected to host network")
            if network.name not in networks:
                which = "network" if container.running else "the network"
                raise Forbidden(f"container {container.id} is not connected to {which} {network.name}")
            active = self._active.get(container.id)
            if active is not None:
                self._disconnect_now(container, active, network)
            networks.pop(network.name)
            container.save()
        self._event(network, "disconnect", container=container.id)

    def _disconnect_now(self, container: Container, active: Active, network: Network) -> None:
        """Never fails: what cannot be done is logged."""
        from teu.linux import netlink, netns

        for endpoint in [e for e in active.endpoints if e.network == network.id]:
            active.endpoints.remove(endpoint)
            self._leave(endpoint)
            if line := self._host_line(container, endpoint):
                netfiles.change_hosts(f"{container.directory}/hosts", drop=line)
        if network.name == "bridge":
            container.network_settings.update(
                {key: 0 if key == "IPPrefixLen" else "" for key in _RUNNING_KEYS if key in container.network_settings}
            )
        try:
            with netns.run_in(active.namespace, netlink.Socket) as inner:
                self._lead_out(container, active, inner)
        except Exception as error:
            self._unpublish(container, active)
            log.warning(
                "the way out of container %s cannot be moved to its other networks: %s",
                container.name,
                error,
                extra=container.fields,
            )

    # -- recovery ----------------------------------------------------------------------------

    def recover(self, running: list[Container]) -> None:
        """After a start of the daemon: know again what running containers hold, and sweep what the dead left. What
        cannot be known of one container, or not be done, is logged, and the rest goes on."""
        with self.lock:
            links = self._kernel().links()
            numbers = {link.name: link.number for link in links if link.kind == "veth"}
            unknown = set()
            for container in running:
                try:
                    self._recover(container, numbers)
                except Exception as error:
                    log.exception(
                        "the network of container %s cannot be recovered", container.name, extra=container.fields
                    )
                    unknown.add(container.id[:10])
                    if container.running:
                        container.state["Error"] = f"its network could not be recovered: {error}"
            for container in self.engine.containers.all():
                if container.id not in self._active and not container.running and container not in running:
                    with _logged("the network of container %s cannot be cleared", container.name):
                        self.detach(container)
            expected = {endpoint.veth for active in self._active.values() for endpoint in active.endpoints}
            bridges = {network.interface for network in self._networks.values()}
            for link in links:
                stray = (
                    VETH.match(link.name)
                    and link.kind == "veth"
                    and link.name not in expected
                    and link.name[3:13] not in unknown
                )
                lost = BRIDGE.match(link.name) and link.kind == "bridge" and link.name not in bridges
                if stray or lost:
                    with contextlib.suppress(OSError):
                        self._delete_link(link.name)
            with _logged("the table of rules cannot be made"):
                if expected:
                    self._rebuild_in_parts()
                else:
                    firewall.remove()

    def _recover(self, container: Container, numbers: dict[str, int]) -> None:
        """`numbers`: of the interfaces, by name."""
        mode = network_mode(container)
        if mode == "host":
            return
        active = Active()
        known = container.network_settings.get("Networks") or {}
        first = self.find(mode)
        order = sorted(known, key=lambda name: first is None or name != first.name)
        for position, name in enumerate([] if mode.startswith("container:") else order):
            settings = known[name]
            network = self.find(settings.get("NetworkID") or name)
            if network is None or not settings.get("IPAddress"):
                continue
            address = IPv4Address(settings["IPAddress"])
            if network.pool is not None:  # else its record is damaged; nobody new gets an address there
                network.pool.used.add(address)
            veth = settings.get("Veth") or f"teu{container.id[:10]}{position:x}"
            options = settings.get("DriverOpts") or {}
            interface = options.get(netrequests.OPTION_INTERFACE) or f"{network.prefix}{int(veth[13:], 16)}"
            active.endpoints.append(Endpoint(network.id, network.name, address, veth, numbers.get(veth, 0), interface))
        outward = container.network_settings.get("Outward")
        if outward is None and active.endpoints and not self._networks[active.endpoints[0].network].internal:
            outward = active.endpoints[0].name
        active.outward = next((endpoint for endpoint in active.endpoints if endpoint.name == outward), None)
        active.namespace = self._namespace_of(container, active)
        for key, entries in (container.network_settings.get("Ports") or {}).items():
            try:
                port, protocol = parse_port(key)
                for entry in (entries or []) if active.outward else []:
                    host_ip, host_port = str(IPv4Address(entry["HostIp"])), int(entry["HostPort"])
                    if not self.ports.hold_again(protocol, host_ip, host_port):
                        log.warning(
                            "port %s of container %s is bound by another process",
                            host_port,
                            container.name,
                            extra=container.fields,
                        )
                    assert active.outward
                    active.published.append(
                        firewall.Published(protocol, host_ip, host_port, str(active.outward.address), port)
                    )
            except (ValueError, OverflowError, EngineError) as error:
                log.error(
                    "port %s of container %s is not published any more: %s",
                    key,
                    container.name,
                    error,
                    extra=container.fields,
                )
        self._active[container.id] = active
        if active.namespace >= 0:
            try:
                self._resolve_names(container, active)
            except Exception as error:
                log.warning(
                    "the names of container %s cannot be served: %s", container.name, error, extra=container.fields
                )

    def _namespace_of(self, container: Container, active: Active) -> int:
        """A descriptor of a running container's network namespace, known to be that: a process's number alone may
        belong to another by now. -1 where it is not."""
        from teu.linux import netlink, netns

        descriptor = -1
        try:
            process = os.pidfd_open(container.pid)
            try:
                listed = container.id in Path(f"/proc/{container.pid}/cgroup").read_text()
                descriptor = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                ended = select.poll()
                ended.register(process, select.POLLIN)
                listed = listed and not ended.poll(0)
            finally:
                os.close(process)
            if active.endpoints:
                # The other ends of our pairs are nowhere else.
                with netns.run_in(descriptor, netlink.Socket) as inner:
                    peers = {link.peer for link in inner.links() if link.kind == "veth"}
                listed = any(endpoint.number in peers for endpoint in active.endpoints)
            if listed:
                return descriptor
        except OSError as error:
            log.debug("container %s: %s", container.name, error)
        if descriptor >= 0:
            os.close(descriptor)
        log.warning("the network namespace of container %s is not known", container.name, extra=container.fields)
        return -1

    # -- the table ---------------------------------------------------------------------------

    def _rebuild_table(self) -> None:
        firewall.rebuild(*self._rules())
        self._table_is_there()

    def _rules(self) -> tuple[list[firewall.Bridge], list[firewall.Published]]:
        used = {endpoint.network for active in self._active.values() for endpoint in active.endpoints}
        return (
            [
                self._networks[network].bridge()
                for network in used
                if network in self._networks and self._networks[network].pool is not None
            ],
            [entry for active in self._active.values() for entry in active.published],
        )

    def _rebuild_in_parts(self) -> None:
        """The whole table at once, or where something in it does not fit the rest, all but that."""
        from teu.linux import nftables

        try:
            self._rebuild_table()
            return
        except nftables.Error as error:
            log.error("the table of rules cannot be made at once: %s", error)
        firewall.rebuild([], [])
        bridges, ports = self._rules()
        for bridge in bridges:
            with _logged("network interface %s has no rules", bridge.name):
                firewall.add_bridge(bridge)
        for entry in ports:
            with _logged("port %s is not published any more", str(entry.host_port)):
                firewall.publish([entry])
        self._table_is_there()

    def _table_is_there(self) -> None:
        self._table = True
        self._beside_others()
        if self._watcher is None:
            self._watch()

    def _in_table(self, change: Callable[[], None]) -> None:
        """A change of the table; where it is not as we left it, it is built anew, of what is so after the change."""
        from teu.linux import nftables

        if not self._table:
            return
        try:
            change()
        except nftables.Error as error:
            if firewall.is_whole():
                raise
            log.warning("the rules of the networks are gone (%s), and are made anew", error)
            self._rebuild_table()

    def _beside_others(self) -> None:
        """Our interfaces pass the chains of those who drop what is not theirs, and what we ourselves closed."""
        turned_on = os.path.exists(self._forwarding)
        if turned_on and not firewall.has_forward_chain():
            firewall.close_forwarding()
        used = {endpoint.network for active in self._active.values() for endpoint in active.endpoints}
        named = [self._networks[network].interface for network in used if network in self._networks]
        interfaces = ["teu*", *sorted(name for name in named if not name.startswith("teu"))]
        firewall.beside_others(interfaces, (firewall.DOCKER_USER, *([firewall.FORWARD] if turned_on else [])))

    def _watch(self) -> None:
        """Build the table again when somebody else empties the ruleset, as reloading nftables' own service does."""
        from teu.linux import nftables

        def body() -> None:
            while not self.engine.stopping.is_set():
                changed = changes.wait()
                if changed is not None and not any(_concerns(change) for change in changed):
                    continue
                try:
                    self._mend_table()
                except Exception as error:
                    log.error("the rules of the networks cannot be made anew: %s", error)

        try:
            changes = nftables.Changes()
        except OSError as error:
            log.warning("changes of the ruleset cannot be watched: %s", error)
            return
        self._watcher = threading.Thread(target=body, name="ruleset", daemon=True)
        self._watcher.start()

    def _mend_table(self) -> None:
        with self.lock:
            if not self._table:
                return
            if firewall.is_whole():
                self._beside_others()
                return
            log.warning("somebody has emptied the ruleset: the rules of the networks are made anew")
            self._rebuild_table()
            if not firewall.is_whole():
                raise EngineError("somebody takes them away at once; they are made with the next container")


@contextlib.contextmanager
def _endpoint_of(container: Container, network: Network) -> Iterator[None]:
    """What the kernel refuses of a container's place on a network, as a client is told it."""
    try:
        yield
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or str(error)
        reason = reason[:1].lower() + reason[1:]
        raise EngineError(
            f"failed to create endpoint {container.name} on network {network.name}: {reason}{what}"
        ) from error


@contextlib.contextmanager
def _logged(what: str, *arguments: str) -> Iterator[None]:
    """What fails is logged and over."""
    try:
        yield
    except Exception:
        log.exception(what, *arguments)


def _concerns(change: Change) -> bool:
    """Whether somebody's change of the ruleset may be one of ours to mend."""
    if change.table == firewall.TABLE:
        return change.kind.startswith("delete")
    return change.table == "ip filter" and change.kind == "new chain"


def _set(path: str, value: str) -> bool:
    """True where it was another value before."""
    with open(path, "r+") as file:
        if file.read().strip() == value:
            return False
        file.seek(0)
        file.write(value)
        return True


def _set_inside(namespace: int, interface: str, values: list[tuple[str, str]]) -> None:
    """Sysctls of an interface, by paths with IFNAME in them, in the namespace."""
    from teu.linux import netns

    def body() -> None:
        for path, value in values:
            name = path.replace("IFNAME", interface)
            try:
                Path(f"/proc/sys/{name}").write_text(value)
            except OSError as error:
                raise BadRequest(
                    f"{netrequests.OPTION_SYSCTLS}: {name.replace('/', '.')} cannot be set: {error.strerror}"
                ) from None

    if values:
        netns.run_in(namespace, body)
