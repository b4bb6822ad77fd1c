# SPDX-License-Identifier: Apache-2.0
"""By which names the containers of user-defined networks find each other, and whom they ask for others."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.containers.model import Container
from teu.engine.containers.network_settings import EndpointSettings
from teu.engine.engine import Engine
from teu.engine.networks.model import Active, Endpoint
from teu.engine.networks.names import Names


class House:
    """Containers on networks, without interfaces."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.active: dict[str, Active] = {}
        self.names = Names(engine.endpoints._store, self.active, engine.containers)
        self.count = 1

    def join(self, name: str, *networks: str, **settings: Any) -> Container:
        made = parts.container(self.engine, name)
        active = self.active[made.id] = Active()
        for network in map(self.engine.networks.get, networks):
            self.count += 1
            address = IPv4Address(f"10.0.0.{self.count}")
            endpoint = Endpoint(network.id, network.name, "bridge", address, None, "teu0", 0, "eth0")
            active.endpoints.append(endpoint)
            made.network_settings.networks[network.name] = EndpointSettings(**{"dns_names": [name], **settings})
        return made

    def found(self, asker: Container, name: str) -> list[str]:
        return [str(address) for address in self.names._addresses(asker.id, name) or ()]


@pytest.fixture
def house(tmp_path: Path) -> House:
    engine = parts.engine(tmp_path)
    engine.networks.start()
    for name in ("front", "back"):
        parts.network(engine.networks, name)
    return House(engine)


def test_neighbours_are_found_by_name_and_address(house: House) -> None:
    web, db = house.join("web", "front"), house.join("db", "front", dns_names=["db", "database"])
    assert house.found(web, "db") == house.found(web, "database") == house.found(web, "db.front") == ["10.0.0.3"]
    assert house.found(db, "web") == ["10.0.0.2"]
    assert house.found(web, "nobody") == []
    assert house.names._name(web.id, IPv4Address("10.0.0.3")) == "db.front"
    assert house.names._name(web.id, IPv4Address("10.0.0.9")) is None


def test_who_is_on_another_network_is_not_found(house: House) -> None:
    web, other, both = house.join("web", "front"), house.join("other", "back"), house.join("both", "front", "back")
    assert house.found(web, "other") == []
    assert house.found(both, "other") == ["10.0.0.3"]
    assert house.found(both, "both") == ["10.0.0.4", "10.0.0.5"]
    assert house.found(other, "both") == ["10.0.0.5"]


def test_the_default_network_has_no_names(house: House) -> None:
    web = house.join("web", "bridge")
    house.join("db", "bridge")
    assert house.found(web, "db") == []


def test_a_link_is_a_name_for_one_alone(house: House) -> None:
    web, other = house.join("web", "front", links=["db:store"]), house.join("other", "front")
    house.join("db", "front")
    assert house.found(web, "store") == ["10.0.0.4"]
    assert house.found(other, "store") == []


def test_who_has_no_way_out_asks_nobody(house: House) -> None:
    web = house.join("web", "front")
    web.host_config.dns = ["9.9.9.9"]
    active = house.active[web.id]
    assert house.names._servers(web, active) == []
    active.outward = active.endpoints[0]
    assert house.names._servers(web, active) == ["9.9.9.9"]
