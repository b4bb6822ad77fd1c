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
    assert (asked.name, asked.driver, asked.ipv4, asked.labels) == ("n", "", True, {})
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
        with pytest.raises(BadRequest, match="bad format for links"):
            hostconfig.link(text)
    else:
        assert hostconfig.link(text) == meant
