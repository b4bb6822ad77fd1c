# SPDX-License-Identifier: Apache-2.0
"""Requests about networks: how they are read, and that the list of the fields is complete."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from teu.engine.containers import hostconfig
from teu.engine.core import fields, kinds
from teu.engine.core.errors import BadRequest
from teu.engine.networks import requests
from teu.engine.networks.options import check_bridge


def leaves(kind: kinds.Kind[Any], path: str = "") -> set[str]:
    if isinstance(kind, kinds.ListOf) and isinstance(kind.kind, kinds.Shape):
        return {path} | leaves(kind.kind, f"{path}[0]")
    if isinstance(kind, kinds.Shape):
        found = {path} if path and "[0]" not in path else set()
        for name, member in kind.fields.items():
            found |= leaves(member.kind, f"{path}.{name}" if path else name)
        return found
    return {path}


def test_every_field_is_in_the_list() -> None:
    path = Path(__file__).parents[2] / "system/api_fields_networks.py"
    spec = importlib.util.spec_from_file_location("api_fields_networks", path)
    assert spec and spec.loader
    listed = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = listed
    spec.loader.exec_module(listed)
    for rows, kind in ((listed.CREATE, fields.NETWORK), (listed.ENDPOINT, fields.ENDPOINT)):
        assert {row.field for row in rows} == leaves(kind)


def test_what_is_not_said_is_empty() -> None:
    asked = fields.NETWORK.read({"NAME": "n", "labels": None, "ipam": {"config": [{"subnet": "x"}]}})
    assert (asked.name, asked.driver, asked.ipv4, asked.labels) == ("n", "", None, {})
    assert asked.ipam.subnets == [fields.SubnetAsked(subnet="x")]
    assert fields.NETWORK.read({}) == fields.NETWORK.read({"IPAM": {"Config": None}, "Options": None})


def test_an_endpoint_that_is_asked_for() -> None:
    found = fields.ENDPOINT.read({"ALIASES": ["a"], "gwpriority": None, "IPAMConfig": {}})
    assert found == fields.EndpointAsked(addresses=fields.EndpointAddresses(), aliases=["a"])
    assert requests.endpoints(None) == requests.endpoints(fields.NETWORKING.read({"EndpointsConfig": None})) == {}
    with pytest.raises(BadRequest, match="network n: EndpointsConfig is nil"):
        requests.endpoints(fields.NETWORKING.read({"EndpointsConfig": {"n": None}}))


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"IPAM": {"Config": [{"AuxiliaryAddresses": {"a": 5}}]}}, "IPAM.Config[0].AuxiliaryAddresses.a"),
        ({"Internal": 1}, "Internal"),
        ({"IPAM": [1]}, "IPAM"),
        ([], "an object"),
    ],
)
def test_what_does_not_fit(given: Any, path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        fields.NETWORK.read(given)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("db", ("db", "db")), ("/db:store", ("db", "store")), ("a:b:c", None), ("", None), (":x", None), ("a:", None)],
)
def test_links(text: str, meant: tuple[str, str] | None) -> None:
    if meant is None:
        with pytest.raises(
            BadRequest, match="bad format for links" if text.strip(":x") else "could not get container for : "
        ):
            hostconfig.link(text)
    else:
        assert hostconfig.link(text) == meant


ENABLED = {"com.docker.network.enable_ipv4": "true", "com.docker.network.enable_ipv6": "true"}


@pytest.mark.parametrize(
    ("given", "options", "families"),
    [
        ({}, {}, (True, False)),
        ({"EnableIPv4": None, "EnableIPv6": None}, ENABLED, (True, True)),
        ({"EnableIPv6": False}, ENABLED, (True, False)),
        ({"EnableIPv4": False, "EnableIPv6": True}, {}, (False, True)),
        ({"EnableIPv4": True}, {"com.docker.network.enable_ipv4": "0"}, (True, False)),
    ],
)
def test_families_of_a_network(given: Any, options: dict[str, str], families: tuple[bool, bool]) -> None:
    """What a request says goes before its options, and those that it overrules are not shown."""
    asked = fields.NETWORK.read(given)
    assert requests.shape(asked, options)[:2] == families
    for key, option in (("EnableIPv4", "enable_ipv4"), ("EnableIPv6", "enable_ipv6")):
        kept = f"com.docker.network.{option}" in requests.options(asked, options)
        assert kept == (given.get(key) is None and f"com.docker.network.{option}" in options)


BRIDGE = "com.docker.network.bridge."


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        (f"{BRIDGE}enable_icc", "maybe", 'value: maybe (strconv.ParseBool: parsing "maybe": invalid syntax)'),
        (f"{BRIDGE}inhibit_ipv4", "yes", 'value: yes (strconv.ParseBool: parsing "yes": invalid syntax)'),
        (f"{BRIDGE}host_binding_ipv4", "x", "host_binding_ipv4 value: x (nil ip)"),
        (f"{BRIDGE}gateway_mode_ipv4", "NAT", "gateway_mode_ipv4 value: NAT (unknown gateway mode NAT"),
        (f"{BRIDGE}gateway_mode_ipv6", "isolated", "mode 'isolated' can only be used for an internal network"),
        (f"{BRIDGE}trusted_host_interfaces", "eth0:a/b", "'a/b' is no name of an interface"),
        ("com.docker.network.host_ipv4", "x", "host_ipv4 value: x (nil ip)"),
        ("com.docker.network.host_ipv4", "::1", "host_ipv4 value: ::1 (it is not an IPv4 address)"),
        ("com.docker.network.host_ipv6", "192.0.2.1", "it is not an IPv6 address"),
        ("com.docker.network.driver.mtu", "x", 'driver.mtu value: x (strconv.Atoi: parsing "x": invalid syntax)'),
        ("com.docker.network.driver.mtu", "-1", "invalid MTU number: -1"),
        ("com.docker.network.driver.mtu", "65536", "invalid MTU number: 65536"),
        ("com.docker.network.enable_ipv6", "x", 'driver-opt "com.docker.network.enable_ipv6" is not a valid bool'),
        ("com.docker.network.container_iface_prefix", "a/", "is no beginning of an interface's name"),
        ("com.docker.network.nosuch", "x", "option com.docker.network.nosuch is not supported"),
    ],
)
def test_options_that_are_refused(option: str, value: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_bridge({option: value}, False)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (f"{BRIDGE}trusted_host_interfaces", ":eth0::wlan0:"),
        (f"{BRIDGE}host_binding_ipv4", "::"),
        (f"{BRIDGE}enable_icc", "F"),
        ("com.docker.network.driver.mtu", "0"),
        ("com.docker.network.driver.mtu", "9000"),
    ],
)
def test_options_that_are_taken(option: str, value: str) -> None:
    assert check_bridge({option: value}, False) == []


@pytest.mark.parametrize("word", ["IFNAME", "ifname"])
def test_settings_of_an_interface(word: str) -> None:
    text = f"net.ipv4.conf.{word}.log_martians=1,net.ipv6.conf.{word}.accept_ra=2"
    assert requests.endpoint_sysctls({requests.OPTION_SYSCTLS: text}) == [
        ("net/ipv4/conf/IFNAME/log_martians", "1"),
        ("net/ipv6/conf/IFNAME/accept_ra", "2"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "net.ipv4.conf.eth0.log_martians=1",
        "net.ipv4.conf.IFNAME.log_martians",
        "net.core.conf.IFNAME.x=1",
        "net.ipv4.conf.IFNAME.../../x=1",
        "kernel.panic=1",
    ],
)
def test_settings_that_are_none(text: str) -> None:
    asked = fields.ENDPOINT.read({"DriverOpts": {requests.OPTION_SYSCTLS: text}})
    with pytest.raises(BadRequest) as caught:
        requests.check_endpoint(asked, True, None)
    assert (
        f"invalid endpoint settings:\nunrecognised network interface sysctl '{text}'; represent 'net.X.Y.ethN.Z=V'"
        in str(caught.value)
    )
