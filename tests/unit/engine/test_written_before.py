# SPDX-License-Identifier: Apache-2.0
"""An engine.db that a teud wrote before its records had types, with what that one answered of it. It has networks of
every driver, volumes, and containers that ran, had run and had not. (The folder of its engine is called FOLDER.)"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.containers.network_settings import Addresses, NetworkSettings, network_settings
from teu.engine.core.records import read
from teu.engine.engine import Engine
from teu.engine.networks import records as networks
from teu.engine.networks.options import SHOWN_OF_BRIDGE
from teu.engine.volumes import records as volumes


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = parts.engine_before(tmp_path, "engine.sql")
    engine.networks.start()
    yield engine
    engine.database.close()


@pytest.fixture
def answers(tmp_path: Path) -> Any:
    return json.loads((parts.BEFORE / "answers.json").read_text().replace("FOLDER", str(tmp_path)))


def rows(engine: Engine, table: str) -> dict[str, Any]:
    return {row["name"]: json.loads(row["data"]) for row in engine.database.query(f"SELECT name, data FROM {table}")}


def test_networks_are_what_they_were(engine: Engine, answers: Any) -> None:
    now = [engine.networks.describe(network, containers=False) for network in engine.networks.all()]
    assert all(network.pop("EnableIPv4") is True for network in now)  # they had that alone, and nobody said so
    for network in answers["networks"]:
        network["IPAM"]["Config"] = network["IPAM"]["Config"] or None  # as docker tells of host and none
        if network["Name"] == "bridge":  # it chose its subnet at its first use
            network["Options"] = {**SHOWN_OF_BRIDGE, **network["Options"]}
            (shown,) = (one for one in now if one["Name"] == "bridge")
            network["IPAM"]["Config"] = shown["IPAM"]["Config"]
    assert now == answers["networks"]
    assert not any(network.damage for network in engine.networks.all())
    front, back = engine.networks.get("front"), engine.networks.get("back")
    assert (front.record.automatic_subnet, front.record.own_bridge, front.mtu) == (True, True, 1400)
    assert (back.record.automatic_subnet, back.internal) == (False, True)
    assert str(back.take(4)) == "10.99.7.128"  # of its range


def test_networks_are_written_as_before(engine: Engine) -> None:
    """So a teud that is older can be installed again."""
    before = rows(engine, "networks")
    for network in engine.networks.all():
        engine.endpoints._store.save(network)
    # A flag that is not set may be left out.
    assert rows(engine, "networks") == {
        name: {key: value for key, value in record.items() if (key, value) != ("AutomaticSubnet", False)}
        for name, record in before.items()
    }


def test_volumes_are_what_they_were(engine: Engine, answers: Any) -> None:
    assert [engine.volumes.describe(name) for name in engine.volumes.names()] == answers["volumes"]
    engine.volumes.start()
    assert "going" not in rows(engine, "volumes")  # its removal had begun


def test_volumes_are_written_as_before(engine: Engine) -> None:
    for record in rows(engine, "volumes").values():
        read_again, faults = volumes.volume(json.dumps(record))
        assert not faults
        assert read_again.encode() == record


def test_network_settings_are_what_they_were(engine: Engine, answers: Any) -> None:
    for container in engine.containers.all():
        assert not container.damage
        shown: Any = container.network_settings.shown()
        for endpoint in shown["Networks"].values():
            endpoint.pop("GwPriority", None)  # it is told by now
        before = answers["containers"][container.name]
        assert {key: shown[key] for key in before} == before
        assert not any(shown[key] for key in shown.keys() - before.keys())
    db = engine.containers.get("db").network_settings
    assert (db.outward, db.named, db.networks["front"].gateway_priority) == ("front", True, 5)
    assert db.networks["back"].addresses == Addresses("10.99.7.9", "", ("169.254.9.9",))
    assert db.networks["back"].veth.startswith("teu")
    assert engine.containers.get("lone").network_settings.outward is None


def test_network_settings_are_written_as_before(engine: Engine) -> None:
    for name, record in rows(engine, "containers").items():
        before = record["network_settings"]
        after: Any = engine.containers.get(name).network_settings.encode()
        assert {key: after[key] for key in before} == before
        assert not any(after[key] for key in after.keys() - before.keys())


def test_what_a_newer_teud_wrote_is_kept() -> None:
    data = {
        "Networks": {"front": {"NetworkID": "1", "Colour": {"a": [1]}}},
        "Ports": {"80/tcp": None},
        "Weather": "fine",
    }
    settings, faults = read(network_settings, json.dumps(data))
    assert not faults
    written: Any = settings.encode()
    assert written["Weather"] == "fine"
    assert written["Networks"]["front"]["Colour"] == {"a": [1]}
    record, faults = networks.network(
        "0" * 64, "n", json.dumps({**networks.NetworkRecord("n", "bridge", []).encode(), "Z": 1})
    )
    assert record.encode()["Z"] == 1


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"Networks": {"n": {"Links": "db"}}}, "network_settings.Networks.n.Links is a string, not a list"),
        ({"Networks": {"n": {"IPAMConfig": {"IPv4Address": 7}}}}, "network_settings.Networks.n.IPAMConfig.IPv4Address"),
        ({"Ports": {"80": None}}, "'80' is not of the form"),
        ({"Ports": {"80/tcp": [{"HostPort": "80"}]}}, "network_settings.Ports.80/tcp[0].HostIp is missing"),
        ({"IPAddress": 7}, "network_settings.IPAddress is a number"),
        ([], "network_settings is a list"),
    ],
)
def test_what_is_damaged_is_told_by_its_path(settings: Any, fault: str) -> None:
    faults: list[str] = []
    found = network_settings(settings, "network_settings", faults)
    assert isinstance(found, NetworkSettings)
    assert fault in "; ".join(faults)
