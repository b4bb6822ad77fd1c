# SPDX-License-Identifier: Apache-2.0
"""What a container asks of networks when it is created: by which name, which address, beside which others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.containers.model import Container
from teu.engine.containers.network_settings import Addresses
from teu.engine.core import fields
from teu.engine.core.errors import BadRequest
from teu.engine.engine import Engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = parts.engine(tmp_path)
    engine.networks.start()
    for name, more in (("front", {}), ("back", {"IPAM": {"Config": [{"Subnet": "10.99.7.0/24"}]}})):
        parts.network(engine.networks, name, **more)
    return engine


def asked(engine: Engine, mode: str, endpoints: dict[str, Any] | None = None, **host: Any) -> Container:
    made = parts.container(engine, NetworkMode=mode, **host)
    engine.endpoints.check(made, fields.NETWORKING.read({"EndpointsConfig": endpoints or {}}), (1, 45), [])
    return made


def networks(made: Container) -> list[str]:
    return list(made.network_settings.networks)


def test_the_network_of_the_mode_comes_first(engine: Engine) -> None:
    assert networks(asked(engine, "default")) == ["bridge"]
    assert networks(asked(engine, "front")) == ["front"]
    assert networks(asked(engine, "front", {"back": {}, "front": {}})) == ["front", "back"]


def test_an_id_is_as_good_as_a_name(engine: Engine) -> None:
    front = engine.networks.get("front")
    made = asked(engine, front.id[:12])
    assert networks(made) == ["front"]
    assert made.network_settings.networks["front"].network_id == front.id
    with pytest.raises(BadRequest, match="asked for twice"):
        asked(engine, "front", {front.id: {}, "front": {}})


def test_a_network_that_is_not_there_yet_may_come(engine: Engine) -> None:
    assert networks(asked(engine, "later")) == ["later"]


def test_addresses_are_of_subnets_that_somebody_chose(engine: Engine) -> None:
    fixed = {"IPAMConfig": {"IPv4Address": "10.99.7.9"}}
    made = asked(engine, "back", {"back": fixed})
    assert made.network_settings.networks["back"].addresses == Addresses("10.99.7.9")
    with pytest.raises(BadRequest, match="user configured subnets"):
        asked(engine, "front", {"front": fixed})
    with pytest.raises(BadRequest, match="user defined networks only"):
        asked(engine, "bridge", {"bridge": fixed})


@pytest.mark.parametrize("mode", ["host", "none"])
def test_who_is_on_no_network_is_on_no_other(engine: Engine, mode: str) -> None:
    assert networks(asked(engine, mode)) == [mode]
    with pytest.raises(BadRequest, match="cannot be attached to other networks"):
        asked(engine, mode, {"front": {}})


def test_a_network_without_endpoints_is_beside_none(engine: Engine) -> None:
    with pytest.raises(BadRequest, match="cannot be attached to other networks"):
        asked(engine, "front", {"front": {}, "none": {}})


def test_a_joined_container_is_named_by_its_id(engine: Engine) -> None:
    other = parts.container(engine, "other")
    made = asked(engine, "container:other")
    assert made.host_config.network_mode == f"container:{other.id}"
    assert networks(made) == []


def test_links_are_names_of_the_first_network(engine: Engine) -> None:
    made = asked(engine, "front", Links=["db:database"])
    assert made.network_settings.networks["front"].links == ["db:database"]


def test_the_mac_address_is_the_first_endpoints(engine: Engine) -> None:
    made = asked(engine, "front", {"front": {"MacAddress": "02-42-AC-11-00-02"}})
    assert made.network_settings.networks["front"].wanted_mac == "02:42:ac:11:00:02"
    assert made.config.mac_address == "02-42-AC-11-00-02"


def test_an_old_client_has_one_endpoint(engine: Engine) -> None:
    made = parts.container(engine, NetworkMode="front")
    with pytest.raises(BadRequest, match="multiple network endpoints: back, front"):
        engine.endpoints.check(
            made, fields.NETWORKING.read({"EndpointsConfig": {"front": {}, "back": {}}}), (1, 43), []
        )
