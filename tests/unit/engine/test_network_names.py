# SPDX-License-Identifier: Apache-2.0
"""By which names the containers of user-defined networks find each other, and whom they ask for others."""

from __future__ import annotations

import threading
from ipaddress import IPv4Address, IPv6Address, ip_address
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
            self.names.join(made, endpoint)
        return made

    def leave(self, container: Container, network: str) -> None:
        active = self.active[container.id]
        for endpoint in [endpoint for endpoint in active.endpoints if endpoint.name == network]:
            active.endpoints.remove(endpoint)
            self.names.leave(endpoint)

    def found(self, asker: Container, name: str) -> list[str]:
        return sorted(str(address) for address in self.names._addresses(asker.id, name, 4) or ())


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
    # That it has no address of the other family is known; of who is not there it is not.
    assert house.names._addresses(web.id, "db", 6) == []
    assert house.names._addresses(web.id, "nobody", 6) is None
    # And that no other server knows an address of the network's own.
    gateway = house.engine.networks.get("front").pools[0].gateway
    assert gateway is not None
    assert house.names._name(web.id, gateway) == ""


def test_both_families_are_found(house: House) -> None:
    web = house.join("web", "front")
    first, second = (ip_address(text) for text in ("10.0.0.9", "fd00::9"))
    assert isinstance(first, IPv4Address)
    assert isinstance(second, IPv6Address)
    place = house.active[web.id].endpoints[0]._replace(address=first, address6=second)
    both = parts.container(house.engine, "both")
    house.names.join(both, place)
    assert house.names._addresses(web.id, "both", 4) == [first]
    assert house.names._addresses(web.id, "both", 6) == [second]
    assert house.names._name(web.id, first) == house.names._name(web.id, second) == "both.front"
    house.names.leave(place)
    assert house.names._addresses(web.id, "both", 6) is None
    assert house.names._name(web.id, second) is None


def test_who_left_is_not_found(house: House) -> None:
    web, db = house.join("web", "front", "back"), house.join("db", "front", "back")
    house.leave(db, "front")
    assert house.found(web, "db") == ["10.0.0.5"]
    assert house.found(web, "db.front") == []
    house.leave(db, "back")
    assert house.found(web, "db") == house.found(db, "web") == []
    assert house.names._name(web.id, IPv4Address("10.0.0.5")) is None
    house.leave(web, "front")
    house.leave(web, "back")
    assert (house.names._zones, house.names._views) == ({}, {})


def test_each_of_several_has_its_turn(house: House) -> None:
    web = house.join("web", "front")
    for number in range(3):
        house.join(f"db{number}", "front", dns_names=[f"db{number}", "db"])
    firsts = []
    for _ in range(6):
        firsts.append(str((house.names._addresses(web.id, "db", 4) or [])[0]))
        house.names._addresses(web.id, "db", 6)  # most askers want both
    assert firsts == ["10.0.0.3", "10.0.0.4", "10.0.0.5"] * 2


def test_a_new_name_is_known_at_once(house: House) -> None:
    web, db = house.join("web", "front"), house.join("db", "front", aliases=["store"], dns_names=["db", "store"])
    db.name = "other"
    house.names.renamed(db, "db")
    assert house.found(web, "other") == house.found(web, "store") == ["10.0.0.3"]
    assert house.found(web, "db") == []
    assert house.names._name(web.id, IPv4Address("10.0.0.3")) == "other.front"
    assert web.name in house.names._zones[house.active[web.id].endpoints[0].network].names


def test_the_resolver_waits_for_no_lock(house: House) -> None:
    """While a container is attached, which may take long, all others ask on."""
    web = house.join("web", "front")
    house.join("db", "front")
    found: list[list[str]] = []
    with house.engine.endpoints._store.lock:
        asking = threading.Thread(target=lambda: found.append(house.found(web, "db")))
        asking.start()
        asking.join(10)
    assert found == [["10.0.0.3"]]


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
    parts.network(house.engine.networks, "inner", Internal=True)
    inner, web = house.join("inner", "inner"), house.join("web", "inner", "front")
    for one in (inner, web):
        one.host_config.dns = ["9.9.9.9"]
    assert house.names._servers(inner, house.active[inner.id])("example.org") == []
    active = house.active[web.id]
    servers = house.names._servers(web, active)
    assert servers("example.org") == servers("intranet") == ["9.9.9.9"]
    # Who searches its domains first asks nobody for a name without one.
    web.host_config.dns_options = ["timeout:1", "ndots:2"]
    servers = house.names._servers(web, active)
    assert servers("intranet") == []
    assert servers("example.org") == ["9.9.9.9"]
