# SPDX-License-Identifier: Apache-2.0
"""Every field and parameter that Docker's API has for networks, and what becomes of it.

    USED         it does what it says; `seen` is what then is so
    REFUSED      `status`, and `seen` is in the message
    MEANINGLESS  nothing, on a single Linux host: an answer's own words, a swarm's, or how things are in any case

`field` is the path of the field in the request, `value` one that a client might send, `kind` its type. NAME in a value
and in `seen` is the network of the test. test_networks_fields.py sends them all.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any, NamedTuple

USED, REFUSED, MEANINGLESS = "used", "refused", "without meaning on Linux"

TEXT, FLAG, NUMBER, LIST, MAP, OBJECT = "text", "flag", "number", "list of texts", "map of texts", "object"


class Row(NamedTuple):
    field: str
    kind: str
    value: Any
    standing: str
    seen: Callable[[Any], bool] | str | None = None
    status: int = 0
    more: dict[str, Any] = {}  # what else the request says


def _ipam(**config: Any) -> dict[str, Any]:
    return {"IPAM": {"Config": [{"Subnet": "10.93.0.0/24", **config}]}}


def _config(key: str, value: Any) -> Callable[[Any], bool]:
    return lambda network: network["IPAM"]["Config"][0][key] == value


SIX = {"EnableIPv6": True}


def _versions(network: Any) -> list[int]:
    """The families of its subnets, where it has IPv6."""
    assert network["EnableIPv6"] is True
    return sorted(ip_network(config["Subnet"]).version for config in network["IPAM"]["Config"])


def _option(name: str, value: str) -> Row:
    return Row("Options", MAP, {name: value}, USED, lambda network: network["Options"] == {name: value})


def _no_option(name: str, value: str) -> Row:
    return Row("Options", MAP, {name: value}, REFUSED, name, 400)


BRIDGE = "com.docker.network.bridge."

# POST /networks/create; `seen` gets what GET /networks/{id} says.
CREATE = [
    Row("Name", TEXT, "a name with blanks/é", USED, lambda network: network["Name"] == "a name with blanks/é"),
    Row("Name", TEXT, " ", REFUSED, "invalid name", 400),
    Row("Name", TEXT, "host", REFUSED, "predefined host network", 403),
    Row("CheckDuplicate", FLAG, False, MEANINGLESS),
    Row("Driver", TEXT, "bridge", USED, lambda network: network["Driver"] == "bridge"),
    Row("Driver", TEXT, "macvlan", REFUSED, "loopback interface", 500, {"Options": {"parent": "lo"}}),
    Row("Driver", TEXT, "nowhere", REFUSED, 'plugin "nowhere" not found', 404),
    Row("Driver", TEXT, "overlay", REFUSED, "swarm", 403),
    Row("Driver", TEXT, "host", REFUSED, 'only one instance of "host" network', 403),
    Row("Scope", TEXT, "local", USED, lambda network: network["Scope"] == "local"),
    Row("Scope", TEXT, "swarm", REFUSED, "swarm is not active", 403),
    Row("Scope", TEXT, "galaxy", REFUSED, "Scope", 400),
    Row("EnableIPv4", FLAG, True, USED, lambda network: bool(network["IPAM"]["Config"])),
    Row("EnableIPv4", FLAG, False, REFUSED, "IPv4 or IPv6 must be enabled", 400),
    Row("EnableIPv6", FLAG, False, USED, lambda network: network["EnableIPv6"] is False),
    Row("EnableIPv4", FLAG, False, USED, lambda network: network["EnableIPv4"] is False, 0, {"EnableIPv6": True}),
    Row("EnableIPv6", FLAG, True, USED, lambda network: _versions(network) == [4, 6]),
    Row("IPAM", OBJECT, {}, USED, lambda network: network["IPAM"]["Config"][0]["Subnet"]),
    Row("IPAM.Driver", TEXT, "default", USED, lambda network: network["IPAM"]["Driver"] == "default"),
    Row("IPAM.Driver", TEXT, "null", REFUSED, "ipv4 pool is empty", 400),
    Row("IPAM.Driver", TEXT, "dhcp", REFUSED, 'plugin "dhcp" not found', 404),
    Row("IPAM.Options", MAP, {"a": "b"}, MEANINGLESS, lambda network: network["IPAM"]["Options"] == {"a": "b"}),
    Row("IPAM.Config", OBJECT, [{"Subnet": "10.93.0.0/24"}], USED, _config("Subnet", "10.93.0.0/24")),
    Row(
        "IPAM.Config",
        OBJECT,
        [{"Subnet": "10.93.0.0/24"}, {"Subnet": "10.94.0.0/24"}],
        REFUSED,
        "multiple subnets",
        403,
    ),
    Row("IPAM.Config", OBJECT, [None], REFUSED, "invalid subnet", 400),
    Row("IPAM.Config[0].Subnet", TEXT, "10.93.0.0/24", USED, _config("Subnet", "10.93.0.0/24")),
    Row("IPAM.Config[0].Subnet", TEXT, "10.93.0.5/24", REFUSED, "it should be 10.93.0.0/24", 400),
    Row("IPAM.Config[0].Subnet", TEXT, "fd00:93::/64", USED, lambda network: _versions(network) == [4, 6], 0, SIX),
    Row("IPAM.Config[0].Subnet", TEXT, "fd00:93::/64", MEANINGLESS, lambda network: network["EnableIPv6"] is False),
    Row("IPAM.Config[0].Subnet", TEXT, "fd00:93::5/64", REFUSED, "it should be fd00:93::/64", 400, SIX),
    Row("IPAM.Config[0].IPRange", TEXT, "10.93.0.128/25", USED, _config("IPRange", "10.93.0.128/25"), 0, _ipam()),
    Row("IPAM.Config[0].IPRange", TEXT, "10.94.0.0/25", REFUSED, "invalid ip-range", 400, _ipam()),
    Row("IPAM.Config[0].Gateway", TEXT, "10.93.0.9", USED, _config("Gateway", "10.93.0.9"), 0, _ipam()),
    Row("IPAM.Config[0].Gateway", TEXT, "10.94.0.9", REFUSED, "invalid gateway 10.94.0.9", 400, _ipam()),
    Row(
        "IPAM.Config[0].AuxiliaryAddresses",
        MAP,
        {"a": "10.93.0.2"},
        USED,
        _config("AuxiliaryAddresses", {"a": "10.93.0.2"}),
        0,
        _ipam(),
    ),
    Row(
        "IPAM.Config[0].AuxiliaryAddresses",
        MAP,
        {"a": "10.94.0.2"},
        REFUSED,
        "invalid auxiliary address a",
        400,
        _ipam(),
    ),
    Row("IPAM.Config[0].AuxiliaryAddresses", MAP, {"a": "10.93.0.1"}, REFUSED, "Address already in use", 500, _ipam()),
    Row("Internal", FLAG, True, USED, lambda network: network["Internal"] is True),
    Row("Attachable", FLAG, True, MEANINGLESS, lambda network: network["Attachable"] is True),
    Row("Ingress", FLAG, False, USED, lambda network: network["Ingress"] is False),
    Row("Ingress", FLAG, True, REFUSED, "Ingress network", 403),
    Row("ConfigOnly", FLAG, False, USED, lambda network: network["ConfigOnly"] is False),
    Row("ConfigOnly", FLAG, True, USED, lambda network: network["ConfigOnly"] is True),
    Row("ConfigOnly", FLAG, True, REFUSED, "configuration network can only contain", 403, {"Internal": True}),
    Row("ConfigFrom", OBJECT, {}, USED, lambda network: network["ConfigFrom"] == {"Network": ""}),
    Row("ConfigFrom.Network", TEXT, "", USED, lambda network: network["ConfigFrom"] == {"Network": ""}),
    Row("ConfigFrom.Network", TEXT, "other", REFUSED, 'configuration network "other" does not exist', 404),
    Row("Labels", MAP, {"a": "b"}, USED, lambda network: network["Labels"] == {"a": "b"}),
    _option(BRIDGE + "name", "teutest0"),
    _no_option(BRIDGE + "name", "a/b"),
    _option(BRIDGE + "enable_icc", "False"),
    _no_option(BRIDGE + "enable_icc", "maybe"),
    _option(BRIDGE + "enable_ip_masquerade", "0"),
    _no_option(BRIDGE + "enable_ip_masquerade", ""),
    _option(BRIDGE + "host_binding_ipv4", "127.0.0.1"),
    _option(BRIDGE + "host_binding_ipv4", "::1"),
    _no_option(BRIDGE + "host_binding_ipv4", "x"),
    _option("com.docker.network.driver.mtu", "1400"),
    _no_option("com.docker.network.driver.mtu", "12"),
    Row("Options", MAP, {"com.docker.network.driver.mtu": "-1"}, REFUSED, "invalid MTU number: -1", 400),
    _option("com.docker.network.container_iface_prefix", "net"),
    _no_option("com.docker.network.container_iface_prefix", "a/"),
    _option(BRIDGE + "inhibit_ipv4", "false"),
    _option(BRIDGE + "inhibit_ipv4", "true"),
    _no_option(BRIDGE + "inhibit_ipv4", "x"),
    *(_option(BRIDGE + "gateway_mode_ipv4", mode) for mode in ("nat", "nat-unprotected", "routed")),
    Row("Options", MAP, {f"{BRIDGE}gateway_mode_ipv4": "isolated"}, REFUSED, "an internal network", 400),
    Row(
        "Options",
        MAP,
        {f"{BRIDGE}gateway_mode_ipv4": "isolated"},
        USED,
        lambda network: network["Options"] == {f"{BRIDGE}gateway_mode_ipv4": "isolated"},
        0,
        {"Internal": True},
    ),
    _option(BRIDGE + "gateway_mode_ipv6", "routed"),
    _no_option(BRIDGE + "gateway_mode_ipv6", "bridged"),
    _option(BRIDGE + "trusted_host_interfaces", "lo:eth0"),
    _no_option(BRIDGE + "trusted_host_interfaces", "a/b"),
    _option("com.docker.network.host_ipv4", "192.0.2.1"),
    _no_option("com.docker.network.host_ipv4", "2001:db8::1"),
    _option("com.docker.network.host_ipv6", "2001:db8::1"),
    _no_option("com.docker.network.host_ipv6", "192.0.2.1"),
    _option("com.docker.network.enable_ipv6", "true"),
    _no_option("com.docker.network.enable_ipv6", "x"),
    _option("com.docker.network.internal", "true"),
    _no_option("com.docker.network.internal", "x"),
    Row(
        "Options",
        MAP,
        {BRIDGE + "default_bridge": "true", "--icc": ""},
        MEANINGLESS,
        lambda network: network["Options"] == {BRIDGE + "default_bridge": "true", "--icc": ""},
    ),
]


def _shown(key: str, value: Any) -> Callable[[Any], bool]:
    return lambda endpoint: bool(endpoint[key] == value)


SYSCTLS = "com.docker.network.endpoint.sysctls"
INTERFACE = "com.docker.network.endpoint.ifname"

# An endpoint: NetworkingConfig.EndpointsConfig.NAME of POST /containers/create, EndpointConfig of POST
# /networks/{id}/connect. `seen` gets NetworkSettings.Networks.NAME of GET /containers/{id}/json.
ENDPOINT = [
    Row("IPAMConfig", OBJECT, {}, USED, lambda endpoint: endpoint["IPAMConfig"] in ({}, None)),
    Row("IPAMConfig.IPv4Address", TEXT, "10.93.0.9", USED, _shown("IPAMConfig", {"IPv4Address": "10.93.0.9"})),
    Row("IPAMConfig.IPv4Address", TEXT, "10.94.0.9", REFUSED, "no configured subnet", 400),
    Row("IPAMConfig.IPv6Address", TEXT, "fd00::9", REFUSED, "user configured subnets", 400),
    Row(
        "IPAMConfig.LinkLocalIPs", LIST, ["169.254.7.7"], USED, _shown("IPAMConfig", {"LinkLocalIPs": ["169.254.7.7"]})
    ),
    Row("IPAMConfig.LinkLocalIPs", LIST, ["x"], REFUSED, "invalid link-local IP address: x", 400),
    Row("Links", LIST, ["other:name"], USED, _shown("Links", ["other:name"])),
    Row("Links", LIST, ["a:b:c"], REFUSED, "bad format for links", 400),
    Row("Aliases", LIST, ["www"], USED, _shown("Aliases", ["www"])),
    Row("MacAddress", TEXT, "02:42:ac:00:00:77", USED, _shown("MacAddress", "02:42:ac:00:00:77")),
    Row("MacAddress", TEXT, "x", REFUSED, "invalid MAC address x", 400),
    Row(
        "DriverOpts",
        MAP,
        {SYSCTLS: "net.ipv4.conf.IFNAME.log_martians=1"},
        USED,
        _shown("DriverOpts", {SYSCTLS: "net.ipv4.conf.IFNAME.log_martians=1"}),
    ),
    Row("DriverOpts", MAP, {SYSCTLS: "kernel.panic=1"}, REFUSED, "unrecognised network interface sysctl", 400),
    Row("DriverOpts", MAP, {INTERFACE: "net7"}, USED, _shown("DriverOpts", {INTERFACE: "net7"})),
    Row("DriverOpts", MAP, {INTERFACE: "a/b"}, REFUSED, INTERFACE, 400),
    Row("DriverOpts", MAP, {"a": "b"}, REFUSED, "driver option a is not supported", 400),
    Row("GwPriority", NUMBER, 7, USED, _shown("GwPriority", 7)),
    *(
        Row(field, kind, value, MEANINGLESS, _shown(field, blank))
        for field, kind, value, blank in (
            ("EndpointID", TEXT, "x", ""),
            ("Gateway", TEXT, "1.2.3.4", ""),
            ("IPAddress", TEXT, "1.2.3.4", ""),
            ("IPPrefixLen", NUMBER, 8, 0),
            ("IPv6Gateway", TEXT, "::1", ""),
            ("GlobalIPv6Address", TEXT, "::1", ""),
            ("GlobalIPv6PrefixLen", NUMBER, 8, 0),
            ("DNSNames", LIST, ["x"], None),
        )
    ),
    Row("NetworkID", TEXT, "x", MEANINGLESS, lambda endpoint: endpoint["NetworkID"] != "x"),
]

# What else POST /containers/create says of networks; `seen` gets GET /containers/{id}/json.
CONTAINER = [
    Row("NetworkDisabled", FLAG, True, USED, lambda found: found["NetworkSettings"]["Networks"] == {}),
    Row(
        "MacAddress",
        TEXT,
        "02:42:ac:00:00:77",
        USED,
        lambda found: found["NetworkSettings"]["Networks"]["bridge"]["MacAddress"] == "02:42:ac:00:00:77",
    ),
    Row("MacAddress", TEXT, "x", REFUSED, "invalid MAC address x", 400),
    Row("HostConfig.NetworkMode", TEXT, "container:", REFUSED, "invalid container format", 400),
    Row(
        "HostConfig.ExtraHosts",
        LIST,
        ["a:1.2.3.4", "b:::1", "c:host-gateway"],
        USED,
        lambda found: len(found["HostConfig"]["ExtraHosts"]) == 3,
    ),
    Row("HostConfig.ExtraHosts", LIST, ["a=1.2.3.4"], REFUSED, "bad format for add-host", 400),
    Row("HostConfig.ExtraHosts", LIST, [":1.2.3.4"], REFUSED, "bad format for add-host", 400),
    Row("HostConfig.ExtraHosts", LIST, ["a:nonsense"], REFUSED, "invalid IP address in add-host", 400),
    Row("HostConfig.ExtraHosts", LIST, ["a\n1.2.3.4 b:1.2.3.4"], REFUSED, "bad format for add-host", 400),
    Row("HostConfig.Dns", LIST, ["192.0.2.1"], USED, lambda found: found["HostConfig"]["Dns"] == ["192.0.2.1"]),
    Row("HostConfig.Dns", LIST, ["x"], REFUSED, "bad nameserver address", 400),
    Row("HostConfig.DnsSearch", LIST, ["a.b"], USED, lambda found: found["HostConfig"]["DnsSearch"] == ["a.b"]),
    Row("HostConfig.DnsSearch", LIST, ["a\nnameserver 192.0.2.1"], REFUSED, "control characters", 400),
    Row(
        "HostConfig.DnsOptions", LIST, ["ndots:1"], USED, lambda found: found["HostConfig"]["DnsOptions"] == ["ndots:1"]
    ),
    Row("HostConfig.Links", LIST, ["nobody:name"], REFUSED, "No such container: nobody", 400),
    Row("HostConfig.Links", LIST, ["a:b:c"], REFUSED, "bad format for links", 400),
    Row(
        "HostConfig.PortBindings",
        OBJECT,
        {"80/tcp": [{"HostPort": "8099"}]},
        USED,
        lambda found: found["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"] == "8099",
    ),
    *(
        Row(
            "HostConfig.PortBindings",
            OBJECT,
            {port: [{"HostIp": address, "HostPort": "8099"}]},
            USED,
            lambda found: [*found["HostConfig"]["PortBindings"].values()][0][0]["HostPort"] == "8099",
        )
        for port, address in (("80/tcp", "::"), ("80/tcp", "[::1]"), ("80/sctp", ""))
    ),
    Row("HostConfig.PortBindings", OBJECT, {"80/tcp": [{"HostIp": "x"}]}, REFUSED, "invalid IP address: x", 400),
    Row("HostConfig.PortBindings", OBJECT, {"80/tcp": [{"HostPort": "99999"}]}, REFUSED, "invalid port", 400),
    Row("HostConfig.PublishAllPorts", FLAG, True, USED, lambda found: found["HostConfig"]["PublishAllPorts"] is True),
    *(
        Row("HostConfig.NetworkMode", TEXT, "container:x", REFUSED, says, 400, more)
        for says, more in (
            ("hostname and the network mode", {"Hostname": "h"}),
            ("dns and the network mode", {"HostConfig": {"Dns": ["192.0.2.1"]}}),
            ("custom host-to-IP mapping and the network mode", {"HostConfig": {"ExtraHosts": ["a:1.2.3.4"]}}),
            ("port publishing and the container type", {"HostConfig": {"PublishAllPorts": True}}),
            ("port publishing and the container type", {"HostConfig": {"PortBindings": {"80/tcp": [{}]}}}),
            ("port exposing and the container type", {"ExposedPorts": {"80/tcp": {}}}),
            ("mac-address and the network mode", {"MacAddress": "02:42:ac:00:00:77"}),
            ("can't be used with links", {"HostConfig": {"Links": ["a:b"]}}),
        )
    ),
]

# Parameters: (request, query, status, in the answer).
PARAMETERS = [
    ("GET /networks", {"filters": '{"name":["brid"]}'}, 200, '"bridge"'),
    ("GET /networks", {"filters": '{"labell":["x"]}'}, 400, "invalid filter 'labell'"),
    ("GET /networks", {"filters": '{"until":["1h"]}'}, 400, "invalid filter 'until'"),
    ("GET /networks", {"filters": '{"dangling":["perhaps"]}'}, 400, "invalid filter 'dangling"),
    ("GET /networks", {"filters": "x"}, 400, "invalid filter"),
    ("GET /networks/bridge", {"verbose": "true"}, 200, '"bridge"'),  # swarm's: there is nothing more to say
    ("GET /networks/bridge", {"verbose": "x"}, 400, "invalid value for verbose"),
    ("GET /networks/bridge", {"scope": "local"}, 200, '"bridge"'),
    ("GET /networks/bridge", {"scope": "swarm"}, 404, "network bridge not found"),
    ("POST /networks/prune", {"filters": '{"labell":["x"]}'}, 400, "invalid filter 'labell'"),
    ("POST /networks/prune", {"filters": '{"dangling":["true"]}'}, 400, "invalid filter 'dangling'"),
    ("POST /networks/prune", {"filters": '{"until":["x"]}'}, 400, "until"),
    ("POST /networks/prune", {"filters": '{"label":["nobody-has-this"]}'}, 200, "NetworksDeleted"),
    ("POST /networks/prune", {"filters": '{"label!":["a"],"until":["1h"]}'}, 200, "NetworksDeleted"),
]
