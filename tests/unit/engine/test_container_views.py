# SPDX-License-Identifier: Apache-2.0
"""What is told of containers and the daemon without a containerd: ps and its filters, info."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.backend.containerd import Unavailable
from teu.engine.containers.network_settings import Addresses, EndpointSettings, HostPort
from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.times import timestamp
from teu.engine.engine import Engine
from teu.engine.files import snapshots
from teu.engine.logs import registry
from teu.engine.networks.model import Network
from teu.engine.networks.records import NetworkRecord
from teu.engine.views import containers, system
from teu.systemd import host


def away(*_: Any) -> Any:
    raise Unavailable("containerd is away")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = parts.engine(tmp_path)
    monkeypatch.setattr(engine.images, "by_id", dict)
    monkeypatch.setattr(engine.images, "names", away)
    web = parts.container(engine, "web", {"Labels": {"tier": "front"}, "ExposedPorts": {"80/tcp": {}}})
    web.started_once = True
    web.state.runs(1, timestamp())
    web.network_settings.ports = {"80/tcp": None, "53/udp": [HostPort("0.0.0.0", "5353")]}
    done = parts.container(engine, "done", {"Labels": {"tier": "back"}})
    done.started_once = True
    done.state.ends(3, timestamp(), False)
    parts.container(engine, "fresh")
    return engine


def listed(engine: Engine, every: bool = True, limit: int = 0, **filters: list[str]) -> list[str]:
    return [row["Names"][0][1:] for row in containers.summaries(engine, every, limit, False, filters)]


def test_published_ports(engine: Engine) -> None:
    """One of a routed network is at no port of the host's: docker leaves that out."""
    web = engine.containers.get("web")
    web.network_settings.ports = {
        "80/tcp": [HostPort("0.0.0.0", "8080"), HostPort("::", "")],
        "53/udp": None,
    }
    assert containers.ports(web) == [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 80, "Type": "tcp"},
        {"PrivatePort": 53, "Type": "udp"},
    ]


def test_who_runs_and_who_does_not(engine: Engine) -> None:
    assert listed(engine, every=False) == ["web"]
    assert listed(engine) == ["fresh", "done", "web"]
    assert listed(engine, every=False, status=["exited"]) == ["done"]
    assert listed(engine, every=False, exited=["3"]) == [], (
        "docker takes those that run alone, unless all are asked for"
    )
    assert listed(engine, limit=2) == ["fresh", "done"]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"status": ["exited"]}, ["done"]),
        ({"status": ["created", "running"]}, ["fresh", "web"]),
        ({"exited": ["3"]}, ["done"]),
        ({"label": ["tier"]}, ["done", "web"]),
        ({"label": ["tier=front"]}, ["web"]),
        ({"name": ["^/we"]}, ["web"]),
        ({"name": ["e$", "esh"]}, ["fresh", "done"]),
        ({"expose": ["80"]}, ["web"]),
        ({"expose": ["53"]}, []),
        ({"expose": ["50-60/udp"]}, ["web"]),
        ({"publish": ["5353/udp"]}, ["web"]),
        ({"publish": ["5353"]}, []),
        ({"publish": ["1"], "expose": ["80"]}, ["web"]),
        ({"before": ["done"]}, ["web"]),
        ({"since": ["done"]}, ["fresh"]),
    ],
)
def test_filters(engine: Engine, filters: dict[str, list[str]], found: list[str]) -> None:
    assert listed(engine, **filters) == found


def test_an_ancestor_is_an_image_and_no_name(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has moved to another image is not that of the old one's containers."""
    for name, image in (("web", "sha256:new"), ("done", "sha256:old")):
        engine.containers.get(name).image_id = image
        engine.containers.get(name).config.image = "app:latest"
    monkeypatch.setattr(engine.images, "lookup", lambda name: (name, ""))
    monkeypatch.setattr(engine.images, "ids", lambda found: {"sha256:new"} if found == ["app:latest"] else set())
    assert listed(engine, ancestor=["app:latest"]) == ["web"]
    assert listed(engine, ancestor=["nosuch"]) == []


def test_networks_in_a_list(engine: Engine) -> None:
    """docker tells only there where a container is, not what was asked for it."""
    web = engine.containers.get("web")
    asked = EndpointSettings("a1" * 32, Addresses("10.0.0.9", "", ("169.254.1.1",)), ["x"], ["www"], {"o": "1"})
    asked.dns_names, asked.address = ["web", "www"], "10.0.0.9"
    web.network_settings.networks = {"front": asked}
    (row,) = containers.summaries(engine, False, 0, False, {})
    (listed_one,) = row["NetworkSettings"]["Networks"].values()  # type: ignore[index]
    assert [listed_one[key] for key in ("Links", "Aliases", "DriverOpts", "DNSNames")] == [None] * 4
    assert (listed_one["IPAMConfig"], listed_one["IPAddress"]) == ({"IPv4Address": "10.0.0.9"}, "10.0.0.9")
    told = web.network_settings.shown()["Networks"]["front"]  # type: ignore[index,call-overload]
    assert (told["Aliases"], told["DNSNames"]) == (["www"], ["web", "www"])


def test_who_is_on_a_network(engine: Engine) -> None:
    """By its whole name or the beginning of its id."""
    for name, network, identity in (("web", "front", "a1" * 32), ("done", "frontier", "b2" * 32)):
        one = engine.containers.get(name)
        one.network_settings.networks = {network: EndpointSettings(identity)}
    assert listed(engine, network=["front"]) == listed(engine, network=["a1a"]) == ["web"]
    assert listed(engine, network=["frontier", "a1"]) == ["done", "web"]
    assert listed(engine, network=["fro"]) == []


@pytest.mark.parametrize("filters", [{"colour": ["red"]}, {"status": ["asleep"]}, {"exited": ["x"]}])
def test_what_is_no_filter_is_refused(engine: Engine, filters: dict[str, Any]) -> None:
    with pytest.raises((BadRequest, EngineError)):
        listed(engine, **filters)


def test_info_counts_and_names_the_drivers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "snapshotter", lambda _: None)
    told = system.info(engine, (1, 45))
    assert [told[key] for key in ("Containers", "ContainersRunning", "ContainersStopped")] == [3, 1, 2]
    assert told["Plugins"] == {
        "Volume": ["local"],
        "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
        "Authorization": None,
        "Log": list(registry.DRIVERS),
    }
    engine.networks._store.save(Network(NetworkRecord("lan", "weave", [])))
    assert system.info(engine, (1, 45))["Plugins"]["Network"][-1] == "weave"
    old = system.info(engine, (1, 24))
    assert not any("name=" in entry for entry in old["SecurityOptions"])


def test_what_a_declared_container_says_is_shown(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def said(units: set[str]) -> dict[str, str]:
        asked.append(units)
        return {"db.service": "Serving 5", "mute.service": "Running"}

    monkeypatch.setattr(host, "said", said)
    assert all("StatusText" not in row for row in containers.summaries(engine, True, 0, False, {}))
    assert not asked, "systemd is asked of declared ones alone"
    for name in ("db", "mute", "ended"):
        made = parts.container(engine, name, {"Labels": {"io.teu.unit": f"{name}.service"}})
        made.started_once = True
        if name != "ended":
            made.state.runs(1, timestamp())
    rows = {row["Names"][0]: row.get("StatusText") for row in containers.summaries(engine, True, 0, False, {})}  # type: ignore[index]
    assert rows["/db"] == "Serving 5" and not rows["/mute"] and not rows["/ended"]
    assert asked == [{"db.service", "mute.service"}]
    shown = containers.inspect(engine, engine.containers.get("db"), False)
    assert shown["State"]["StatusText"] == "Serving 5"  # type: ignore[index]
    assert "StatusText" not in containers.inspect(engine, engine.containers.get("mute"), False)["State"]  # type: ignore[operator]
