# SPDX-License-Identifier: Apache-2.0
"""Filters that several kinds of objects have: labels, moments, flags; and which events a client asked for."""

from __future__ import annotations

import io
import json
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from teu.engine.api.messages import Request
from teu.engine.api.routes.networks import connect_network, list_networks
from teu.engine.core import filters, times, units
from teu.engine.core.errors import BadRequest
from teu.engine.core.events import Events, matches
from teu.engine.networks.model import Network
from teu.engine.networks.records import NetworkRecord


def test_labels() -> None:
    labels = {"a": "1", "b": ""}
    assert filters.labels_match(labels, [])
    assert filters.labels_match(labels, ["a", "a=1", "b", "b="])
    assert not filters.labels_match(labels, ["a=2"])
    assert not filters.labels_match(labels, ["a", "c"])


def test_texts() -> None:
    """docker's names are expressions; GitLab's and Ansible's are plain ones."""
    assert filters.text_matches("web", ["web"]) and filters.text_matches("web_1", ["eb"])
    assert filters.text_matches("web_1", ["no", "^web_"]) and not filters.text_matches("my_web", ["^web"])
    assert filters.text_matches("a(b", ["a(b"]) and not filters.text_matches("a(bc", ["a(b"])


def test_flags() -> None:
    assert filters.flag_filter({}, "dangling") is None
    assert filters.flag_filter({"dangling": ["1", "true"]}, "dangling") is True
    assert filters.flag_filter({"dangling": ["False"]}, "dangling") is False
    for bad in (["true", "false"], ["yes"]):
        with pytest.raises(BadRequest, match="invalid filter 'dangling="):
            filters.flag_filter({"dangling": bad}, "dangling")


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("12.5", 12_500_000_000),
        ("1970-01-01", 0),
        ("1970-01-02T00:01", 86_460 * 10**9),
        ("1970-01-01T00:00:01.25Z", 1_250_000_000),
        ("1970-01-01T02:00:00+02:00", 0),
    ],
)
def test_moments_of_until(text: str, nanoseconds: int) -> None:
    assert filters.filter_moment(text) == nanoseconds


def test_a_duration_is_back_from_now() -> None:
    assert abs(time.time_ns() - filters.filter_moment("1h30m") - 5400 * 10**9) < 60 * 10**9
    with pytest.raises(BadRequest, match="no moment and no duration"):
        filters.filter_moment("yesterday")


def test_a_timestamp_is_read_back() -> None:
    assert times.timestamp(1_500_000_000_123_456_789) == "2017-07-14T02:40:00.123456789Z"
    assert times.nanoseconds("2017-07-14T02:40:00.123456789Z") == 1_500_000_000_123_456_789
    assert times.nanoseconds(times.NEVER) == 0


def test_sizes() -> None:
    assert [units.size(text, "x") for text in ("1", "10k", "1.5MB", "2GiB")] == [1, 10 << 10, 3 << 19, 2 << 30]
    with pytest.raises(BadRequest, match="max-size: invalid size: 'much'"):
        units.size("much", "max-size")


def test_which_events_are_told() -> None:
    events = Events()
    events.publish("container", "die", "c" * 64, {"name": "web", "image": "busybox:1", "tier": "front"})
    events.publish("network", "connect", "n" * 64, {"name": "front"})
    (died, joined), _ = events.subscribe()
    for chosen, told in (
        ({}, (True, True)),
        ({"type": ["container"]}, (True, False)),
        ({"event": ["die", "connect"]}, (True, True)),
        ({"container": ["web"]}, (True, False)),
        ({"container": ["ccc"]}, (True, False)),
        ({"image": ["busybox"]}, (True, False)),
        ({"network": ["front"]}, (False, True)),
        ({"label": ["tier=front"]}, (True, False)),
        ({"scope": ["swarm"]}, (False, False)),
    ):
        assert (matches(died, chosen), matches(joined, chosen)) == told, chosen


def test_which_networks_are_told() -> None:
    """By expressions, as Docker's API has them: Compose asks for a name, and takes what is exactly so."""
    names = ("bridge", "web", "my_web")
    networks = [Network(NetworkRecord(name, "bridge", [], identity=name[0] * 64)) for name in names]
    engine: Any = SimpleNamespace(networks=SimpleNamespace(all=lambda: networks, describe=_described))

    def listed(**wanted: list[str]) -> list[str]:
        request = Request("GET", "/networks", query=f"filters={quote(json.dumps(wanted))}")
        return [row["Name"] for row in json.loads(list_networks(engine, request).body)]

    assert listed() == listed(type=["custom", "builtin"]) == ["bridge", "web", "my_web"]
    assert listed(name=["web"]) == listed(type=["custom"]) == ["web", "my_web"]
    assert listed(name=["^web$"]) == listed(id=["w" * 12]) == ["web"]
    assert listed(name=["^we$"]) == listed(id=["x"]) == []


@pytest.mark.parametrize(("version", "mac"), [((1, 53), ""), ((1, 54), "02:00:00:00:00:07")])
def test_an_address_that_is_sent_back(version: tuple[int, int], mac: str) -> None:
    """Watchtower and Portainer connect with all that they have read of an endpoint."""
    found: list[str] = []
    endpoints = SimpleNamespace(connect=lambda network, container, asked: found.append(asked.mac))
    known = SimpleNamespace(get=lambda name: None)
    engine: Any = SimpleNamespace(networks=known, containers=known, endpoints=endpoints)
    body = {"Container": "x", "EndpointConfig": {"MacAddress": "02:00:00:00:00:07", "EndpointID": "e"}}
    headers = {"content-type": "application/json"}
    text: Any = io.BytesIO(json.dumps(body).encode())
    connect_network(engine, Request("POST", "/networks/n/connect", headers=headers, body=text, version=version), "n")
    assert found == [mac]


def _described(network: Network, containers: bool) -> dict[str, object]:
    return {"Name": network.name}


def test_events_of_an_image_of_a_registry_with_a_port() -> None:
    events = Events()
    events.publish("container", "die", "c" * 64, {"name": "web", "image": "host:5000/a/web:1"})
    events.publish("image", "pull", "host:5000/a/web", {"name": "host:5000/a/web"})
    (died, pulled), _ = events.subscribe()
    for name, told in (
        ("host:5000/a/web", (True, True)),
        ("host:5000/a/web:1", (True, False)),
        ("host", (False, False)),
    ):
        assert (matches(died, {"image": [name]}), matches(pulled, {"image": [name]})) == told, name
