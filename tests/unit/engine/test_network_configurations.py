# SPDX-License-Identifier: Apache-2.0
"""Networks that are only the configuration of others, networks of them, and kinds that there are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import engine_parts as parts
import networkhouse
import pytest
from drivers import networks as suite

from teu.engine.core import fields
from teu.engine.core.errors import Conflict, Forbidden, NotFound
from teu.engine.engine import Engine
from teu.engine.networks.drivers import registry
from teu.engine.networks.model import Network


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = parts.engine(tmp_path)
    engine.networks.start()
    return engine


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One with a configuration, for requests of which none is served."""
    engine = parts.engine(tmp_path_factory.mktemp("refusing"))
    engine.networks.start()
    made(engine, "cfg", **CONFIGURATION)
    return engine


CONFIGURATION: dict[str, Any] = {
    "ConfigOnly": True,
    "Labels": {"rank": "1"},
    "Options": {"com.docker.network.driver.mtu": "1400"},
    "IPAM": {"Options": {"x": "y"}, "Config": [{"Subnet": "10.3.3.0/24", "AuxiliaryAddresses": {"nas": "10.3.3.7"}}]},
}


def made(engine: Any, name: str, **body: Any) -> Network:
    return parts.network(engine.networks, name, **body)


def test_a_configuration_takes_nothing(engine: Engine) -> None:
    found = made(engine, "cfg", **CONFIGURATION)
    shown = found.record.shown()
    assert (shown["Driver"], shown["Scope"], shown["ConfigOnly"]) == ("null", "local", True)
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.3.3.0/24", "AuxiliaryAddresses": {"nas": "10.3.3.7"}}]
    assert found.pools == []
    made(engine, "other", IPAM={"Config": [{"Subnet": "10.3.3.0/24"}]})
    with pytest.raises(Conflict, match="already exists"):
        made(engine, "cfg", **CONFIGURATION)


def test_networks_of_a_configuration(engine: Engine) -> None:
    made(engine, "cfg", **CONFIGURATION)
    made(engine, "front", ConfigFrom={"Network": "cfg"}, Internal=True, Attachable=True)
    again = parts.another(engine.config)
    again.networks.start()
    shown = again.networks.get("front").record.shown()
    assert shown["ConfigFrom"] == {"Network": "cfg"}
    assert (shown["Driver"], shown["Internal"], shown["ConfigOnly"]) == ("bridge", True, False)
    assert shown["Labels"] == {"rank": "1"} and shown["Options"] == {"com.docker.network.driver.mtu": "1400"}
    assert shown["IPAM"] == {
        "Driver": "default",
        "Options": {"x": "y"},
        "Config": [{"Subnet": "10.3.3.0/24", "Gateway": "10.3.3.1", "AuxiliaryAddresses": {"nas": "10.3.3.7"}}],
    }
    with pytest.raises(Forbidden, match="Pool overlaps"):
        made(engine, "second", ConfigFrom={"Network": "cfg"})
    with pytest.raises(Forbidden, match='configuration network "cfg" is in use'):
        again.networks.remove(again.networks.get("cfg"))
    assert again.networks.prune([]) == ["front"]
    assert [one.name for one in again.networks.all()] == ["bridge", "cfg", "host", "none"]
    again.networks.remove(again.networks.get("cfg"))


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ({"ConfigOnly": True, "Internal": True}, Forbidden, "configuration network can only contain network specific"),
        ({"ConfigOnly": True, "Attachable": True}, Forbidden, "configuration network can only contain network"),
        ({"ConfigOnly": True, "Scope": "local"}, Forbidden, "configuration network can only contain network"),
        (
            {"ConfigOnly": True, "ConfigFrom": {"Network": "cfg"}},
            Forbidden,
            "a configuration network cannot depend on another configuration network",
        ),
        ({"ConfigFrom": {"Network": "x"}}, NotFound, 'configuration network "x" does not exist'),
        ({"ConfigFrom": {"Network": "bridge"}}, NotFound, 'configuration network "bridge" does not exist'),
        *(
            (
                {"ConfigFrom": {"Network": "cfg"}, **more},
                Forbidden,
                "user specified configurations are not supported if the network depends on a configuration network",
            )
            for more in (
                {"IPAM": {"Config": [{"Subnet": "10.4.4.0/24"}]}},
                {"IPAM": {"Driver": "house"}},
                {"IPAM": {"Options": {"a": "b"}}},
                {"Labels": {"a": "b"}},
                {"EnableIPv6": True},
            )
        ),
        (
            {"ConfigFrom": {"Network": "cfg"}, "Options": {"a": "b"}},
            Forbidden,
            "network driver options are not supported if the network depends on a configuration network",
        ),
        ({"Driver": "overlay"}, Forbidden, "This node is not a swarm manager: there is no swarm here"),
        ({"Driver": "overlay"}, Forbidden, "run Kubernetes, whose pods teu-containerd runs"),
        ({"Scope": "swarm"}, Forbidden, "cannot create a swarm scoped network when swarm is not active"),
        ({"Ingress": True}, Forbidden, "Ingress network can only be global scope network"),
        ({"Driver": "nobody"}, NotFound, 'plugin "nobody" not found'),
    ],
)
def test_what_is_refused(refusing: Engine, body: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as caught:
        made(refusing, "front", **body)
    assert says in str(caught.value)
    assert refusing.networks.find("front") is None


def test_options_of_every_network_are_not_a_configurations(tmp_path: Path) -> None:
    """What teud.yaml says is in the configuration, and is not added again."""
    options = {"bridge": {"com.docker.network.driver.mtu": "1300"}}
    engine = parts.engine(tmp_path, default_network_opts=options)
    engine.networks.start()
    made(engine, "cfg", ConfigOnly=True, Options={"com.docker.network.bridge.enable_icc": "false"})
    made(engine, "front", ConfigFrom={"Network": "cfg"})
    assert engine.networks.get("front").record.options == {
        "com.docker.network.driver.mtu": "1300",
        "com.docker.network.bridge.enable_icc": "false",
    }


def test_the_names_of_drivers_are_told() -> None:
    assert set(registry.NAMES) == {"bridge", "host", "ipvlan", "macvlan", "null"}
    assert fields.NETWORK.read({}).driver == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
def test_nobody_is_on_a_configuration(tmp_path: Path) -> None:
    with suite.own_namespace():
        house = networkhouse.Engine(tmp_path)
        made(house, "cfg", **CONFIGURATION)
        one = networkhouse.container(house, tmp_path, 1, "cfg")
        with pytest.raises(Forbidden, match="cannot create endpoint on configuration-only network"):
            networkhouse.start(house, one)
        two = networkhouse.container(house, tmp_path, 2)
        networkhouse.start(house, two)
        with pytest.raises(Forbidden, match="cannot create endpoint on configuration-only network"):
            house.endpoints.connect(house.networks.get("cfg"), two, fields.EndpointAsked())
        assert list(two.network_settings.networks) == ["bridge"]
        house.end()
