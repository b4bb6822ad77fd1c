# SPDX-License-Identifier: Apache-2.0
"""Requests about networks: how they are read, and that the list of the fields is complete."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from teu.engine.containers import hostconfig
from teu.engine.core.errors import BadRequest
from teu.engine.networks import requests


def leaves(shape: Any, path: str = "") -> set[str]:
    if isinstance(shape, requests.Maybe):
        return leaves(shape.of, path)
    if isinstance(shape, requests.List) and isinstance(shape.of, requests.Object):
        return {path} | leaves(shape.of, f"{path}[0]")
    if isinstance(shape, requests.Object):
        found = {path} if path and "[0]" not in path else set()
        for name, member in shape.members.items():
            found |= leaves(member, f"{path}.{name}" if path else name)
        return found
    return {path}


def test_every_field_is_in_the_list() -> None:
    path = Path(__file__).parents[2] / "system/api_fields_networks.py"
    spec = importlib.util.spec_from_file_location("api_fields_networks", path)
    assert spec and spec.loader
    listed = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = listed
    spec.loader.exec_module(listed)
    for rows, shape in (
        (listed.CREATE, requests.CREATE),
        (listed.ENDPOINT, requests.CONNECT.members["EndpointConfig"]),
    ):
        assert {row.field for row in rows} == leaves(shape)


def test_names_are_read_in_any_case_and_null_as_nothing() -> None:
    found = requests.read(
        {"CONTAINER": "c", "endpointconfig": {"ALIASES": ["a"], "gwpriority": None}}, requests.CONNECT
    )
    assert found["Container"] == "c"
    assert found["EndpointConfig"]["Aliases"] == ["a"]
    assert found["EndpointConfig"]["GwPriority"] == 0
    nothing = {"EndpointsConfig": {"n": None}}
    assert requests.read(nothing, requests.NETWORKING) == nothing


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"IPAM": {"Config": [{"AuxiliaryAddresses": {"a": 5}}]}}, "IPAM.Config[0].AuxiliaryAddresses.a"),
        ({"Labels": {"a": "\ud800"}}, "Labels.a"),
        ({"Labels": {"\ud800": "a"}}, "Labels"),
        ({"Internal": 1}, "Internal"),
        ({"IPAM": [1]}, "IPAM"),
        ([], "an object"),
    ],
)
def test_what_does_not_fit(given: Any, path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        requests.read(given, requests.CREATE)
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
