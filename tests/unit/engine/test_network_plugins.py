# SPDX-License-Identifier: Apache-2.0
"""Networks whose driver, or whose addresses, are a plugin's: what it is asked, and what becomes of its answers. The
plugin is the test's own; namespaces need root."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest
from drivers import networks as suite
from netplugin import Plugin, mac_of
from networkhouse import Engine, container, inside, pings, start

from teu.engine.api.routes.networks import _matches
from teu.engine.core import plugins
from teu.engine.core.errors import BadRequest, Conflict, EngineError, Forbidden, NotFound
from teu.engine.core.plugins import PluginError
from teu.engine.networks.remotepool import RemotePool

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where plugins are looked for."""
    monkeypatch.setattr(plugins, "SOCKETS", str(tmp_path / "run"))
    monkeypatch.setattr(plugins, "SPECIFICATIONS", (str(tmp_path / "etc"), str(tmp_path / "lib")))
    monkeypatch.setattr(plugins, "_known", {})
    for name in ("run", "etc", "lib"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with suite.own_namespace():
        engine = Engine(tmp_path)
        yield engine
        engine.end()


@pytest.fixture
def plugin(engine: Engine, folders: Path) -> Iterator[Plugin]:
    """It is in the engine's namespace."""
    with Plugin(folder=folders / "run").running() as plugin:
        yield plugin


def begun(plugin: Plugin) -> None:
    plugin.asked.clear()


SUBNETS = [{"Subnet": "192.0.2.0/24", "Gateway": "192.0.2.254"}]


def made(engine: Engine, **body: Any) -> Any:
    return parts.network(engine.networks, "lan", **{"Driver": "house", "IPAM": {"Config": SUBNETS}, **body})


# -- where plugins are, and how they are asked -----------------------------------------------------------


def test_places(folders: Path) -> None:
    def put(path: str, text: str) -> None:
        (folders / path).parent.mkdir(exist_ok=True)
        (folders / path).write_text(text)

    put("lib/line.spec", "unix:///srv/lib.sock\n")
    assert plugins.find("line") == ("unix", "/srv/lib.sock", None)
    put("etc/line/line.json", json.dumps({"Name": "line", "Addr": "https://127.0.0.1:9", "TLSConfig": {"CAFile": "x"}}))
    assert plugins.find("line") == ("https", "127.0.0.1:9", {"CAFile": "x"})
    put("etc/line.spec", "tcp://127.0.0.1:99")
    assert plugins.find("line") == ("tcp", "127.0.0.1:99", None)
    (folders / "run/line").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folders / "run/line/line.sock"))
        assert plugins.find("line") == ("unix", str(folders / "run/line/line.sock"), None)
    put("run/file.sock", "")
    for name in ("file", "nobody", "../etc/line", "", ".", "a/b"):
        assert plugins.find(name) is None
    for text, says in (("127.0.0.1", "Unknown protocol"), ("ftp://x", "protocol ftp is not known")):
        put("etc/bad.spec", text)
        with pytest.raises(EngineError, match=says):
            plugins.find("bad")
    (folders / "etc/bad.spec").unlink()
    put("etc/bad.json", "[]")
    with pytest.raises(EngineError, match=r"bad.json is no specification of a plugin"):
        plugins.find("bad")


def test_the_handshake(folders: Path) -> None:
    with Plugin(folder=folders / "run").running() as plugin:
        assert plugins.get("house", plugins.NETWORKS).implements == ("NetworkDriver", "IpamDriver")
        assert plugin.asked == [
            ("Plugin.Activate", None),
            ("NetworkDriver.GetCapabilities", None),
            ("IpamDriver.GetCapabilities", None),
        ]
        assert plugin.headers[0]["Accept"] == "application/vnd.docker.plugins.v1.2+json"
        assert plugin.headers[0]["Host"] == "plugin.moby.localhost"
        plugins.get("house", plugins.ADDRESSES)
        assert len(plugin.asked) == 3
    with pytest.raises(NotFound, match='plugin "house" not found'):
        plugins.get("house", plugins.NETWORKS)


def test_at_an_address(folders: Path) -> None:
    plugin = Plugin()
    with plugin.running(tls=False):
        for scheme in ("tcp", "http"):
            (folders / f"etc/{scheme}.spec").write_text(f"{scheme}://127.0.0.1:{plugin.port}")
            assert plugins.get(scheme, plugins.NETWORKS).implements == ("NetworkDriver", "IpamDriver")
        assert plugin.headers[0]["Host"] == f"127.0.0.1:{plugin.port}"
    with pytest.raises(PluginError, match=rf'Post "http://127.0.0.1:{plugin.port}/NetworkDriver.X": '):
        plugins.get("tcp", plugins.NETWORKS).call("NetworkDriver.X", {}, patient=False)


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl here, which makes the certificate")
def test_with_tls(folders: Path) -> None:
    """Whoever it says that it is, or whom an authority of its own knows."""
    key, certificate = str(folders / "key"), str(folders / "certificate")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-keyout", key, "-out", certificate]
    subprocess.run([*argv, "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    plugin = Plugin()

    def specify(name: str, **tls: str) -> None:
        found = {"Addr": f"https://127.0.0.1:{plugin.port}", "TLSConfig": tls}
        (folders / f"etc/{name}.json").write_text(json.dumps(found))

    with plugin.running(context):
        specify("any")
        specify("known", CAFile=certificate)
        specify("unknown", CAFile="/etc/ssl/certs/ca-certificates.crt")
        specify("none", CAFile="/nowhere")
        for name in ("any", "known"):
            assert plugins.get(name, plugins.NETWORKS).implements == ("NetworkDriver", "IpamDriver")
        for name, says in (("unknown", "CERTIFICATE_VERIFY_FAILED"), ("none", "No such file")):
            place = plugins.find(name)
            assert place
            with pytest.raises(PluginError, match=says):
                plugins.Plugin(name, place).call("Plugin.Activate", patient=False)


@pytest.mark.parametrize(
    ("method", "answer", "says"),
    [
        ("Plugin.Activate", {"Implements": ["VolumeDriver"]}, "Plugin does not implement the requested driver"),
        ("Plugin.Activate", (500, "broken"), "legacy plugin: Plugin.Activate: broken"),
        ("NetworkDriver.GetCapabilities", {"Scope": "x"}, "invalid capability: expecting 'local' or 'global', got x"),
        ("NetworkDriver.GetCapabilities", {"Err": "no"}, "remote: no"),
    ],
)
def test_a_plugin_that_is_none_of_a_network(folders: Path, method: str, answer: Any, says: str) -> None:
    with Plugin(folder=folders / "run").running() as plugin:
        plugin.answers[method] = answer
        with pytest.raises(EngineError) as caught:
            plugins.get("house", plugins.NETWORKS)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"Err": "no room"}, "remote: no room"),
        ({"err": "no room"}, "remote: no room"),
        ((500, '{"Err": "broken"}'), "NetworkDriver.X: broken"),
        ((418, "teapot"), "NetworkDriver.X: teapot"),
        ((200, "{"), "NetworkDriver.X: Expecting property name"),
        ((200, "[]"), "NetworkDriver.X: the answer is no object"),
    ],
)
def test_answers_that_are_errors(folders: Path, answer: Any, says: str) -> None:
    with Plugin(folder=folders / "run").running() as plugin:
        plugin.answers["NetworkDriver.X"] = answer
        with pytest.raises(PluginError) as caught:
            plugins.get("house", plugins.NETWORKS).call("NetworkDriver.X", {"a": 1})
        assert says in str(caught.value)
        assert plugin.asked[-1] == ("NetworkDriver.X", {"a": 1})


def test_one_that_does_not_listen_yet_is_waited_for(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(folders / "run/house.sock"))
    plugin = Plugin(folder=folders / "run")
    with plugin.running():
        known = plugins.get("house", plugins.NETWORKS)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(folders / "run/house.sock"))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        monkeypatch.setattr(plugins, "WAIT_SECONDS", 3.0)

    monkeypatch.setattr(plugins.time, "sleep", sleep)
    with pytest.raises(PluginError) as caught:
        known.call("NetworkDriver.X", {})
    path = folders / "run/house.sock"
    assert str(caught.value) == (
        f'Post "http://plugin.moby.localhost/NetworkDriver.X": dial unix {path}: connection refused'
    )
    assert slept == [1.0, 2.0]
    monkeypatch.setattr(plugins, "ANSWER_SECONDS", 0.1)
    held = threading.Event()

    def late(_: Any) -> dict[str, Any]:
        held.wait(10)
        return {}

    plugin.answers["NetworkDriver.X"] = late
    with plugin.running():
        with pytest.raises(PluginError, match="no answer within 0 s"):
            known.call("NetworkDriver.X", {})
        held.set()


# -- networks and endpoints ------------------------------------------------------------------------------


@root
def test_the_whole_dialogue(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    network = made(engine, Options={"a": "b"}, Internal=False)
    assert plugin.of("NetworkDriver.CreateNetwork") == [
        {
            "NetworkID": network.id,
            "Options": {
                "com.docker.network.enable_ipv4": True,
                "com.docker.network.enable_ipv6": False,
                "com.docker.network.generic": {"a": "b"},
            },
            "IPv4Data": [{"AddressSpace": "LocalDefault", "Gateway": "192.0.2.254/24", "Pool": "192.0.2.0/24"}],
            "IPv6Data": [],
        }
    ]
    begun(plugin)
    one = container(
        engine,
        tmp_path,
        1,
        "lan",
        endpoints={"lan": {"DriverOpts": {"house.rank": "7"}}},
        PortBindings={"80/tcp": [{"HostPort": "8080"}]},
        exposed={"80/tcp": {}},
    )
    two = container(engine, tmp_path, 2, "lan")
    start(engine, one)
    assert plugin.methods() == [
        "NetworkDriver.CreateEndpoint",
        "NetworkDriver.Join",
        "NetworkDriver.EndpointOperInfo",
        "NetworkDriver.ProgramExternalConnectivity",
    ]
    settings = one.network_settings.networks["lan"]
    who = {"NetworkID": network.id, "EndpointID": settings.endpoint_id}
    asked = plugin.of("NetworkDriver.CreateEndpoint")[0]
    assert asked["Interface"] == {"Address": "192.0.2.1/24", "AddressIPv6": "", "MacAddress": ""}
    assert asked["Options"]["house.rank"] == "7"
    assert asked["Options"]["com.docker.network.endpoint.exposedports"] == [{"Proto": 6, "Port": 80}]
    assert asked["Options"]["com.docker.network.portmap"][0]["HostPort"] == 8080
    assert plugin.of("NetworkDriver.Join")[0]["SandboxKey"] == one.network_settings.sandbox_key
    assert (settings.address, settings.prefix, settings.gateway) == ("192.0.2.1", 24, "192.0.2.254")
    assert settings.mac == mac_of(settings.endpoint_id)
    shown = inside(engine, one, "ip addr show plug0; ip route")
    assert settings.mac in shown and "192.0.2.1/24" in shown
    assert "default via 192.0.2.254" in shown and "203.0.113.0/24 dev plug0" in shown
    assert one.network_settings.ports == {}
    start(engine, two)
    assert pings(engine, two, "192.0.2.1")
    begun(plugin)
    engine.endpoints.detach(one)
    assert plugin.asked == [
        ("NetworkDriver.RevokeExternalConnectivity", who),
        ("NetworkDriver.Leave", who),
        ("NetworkDriver.DeleteEndpoint", who),
    ]
    engine.endpoints.detach(two)
    begun(plugin)
    engine.networks.remove(network)
    assert plugin.asked == [("NetworkDriver.DeleteNetwork", {"NetworkID": network.id})]
    assert suite.netlink.Socket().link("plugbr0") is not None
    assert not plugin.endpoints and not plugin.networks


@root
def test_connect_and_disconnect(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    network = made(engine)
    one = container(engine, tmp_path, 1, "default")
    start(engine, one)
    engine.endpoints.connect(network, one, parts.fields.EndpointAsked(mac="02:00:00:00:00:07"))
    assert plugin.of("NetworkDriver.CreateEndpoint")[0]["Interface"]["MacAddress"] == "02:00:00:00:00:07"
    assert "02:00:00:00:00:07" in inside(engine, one, "ip link show plug0")
    source = one.network_settings.networks["lan"].source
    assert source.startswith("plug")
    begun(plugin)
    # The interface is back in the host when the plugin is to delete the endpoint.
    seen: list[bool] = []

    def delete(asked: Any) -> Any:
        seen.append(suite.netlink.Socket().link(source) is not None)
        return None

    plugin.answers["NetworkDriver.DeleteEndpoint"] = delete
    engine.endpoints.disconnect(network, one)
    assert seen == [True]
    assert plugin.methods() == ["NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"]
    assert "plug0" not in inside(engine, one, "ip link")


@root
@pytest.mark.parametrize(
    ("method", "answer", "says", "then"),
    [
        ("CreateEndpoint", {"Err": "full"}, "failed to create endpoint c1 on network lan: remote: full", []),
        ("Join", {"Err": "no"}, "remote: no", ["DeleteEndpoint"]),
        (
            "Join",
            {"InterfaceName": {"SrcName": "nothere", "DstPrefix": "eth"}},
            "failed to add interface nothere to sandbox",
            ["Leave", "DeleteEndpoint"],
        ),
        ("Join", {"Gateway": "x"}, 'unable to parse Gateway "x"', ["Leave", "DeleteEndpoint"]),
        ("CreateEndpoint", {"Interface": {"Address": "192.0.2.9/24"}}, "driver modified interface", ["DeleteEndpoint"]),
        ("CreateEndpoint", {"Interface": {"AddressIPv6": "x"}}, "invalid CIDR address: x", ["DeleteEndpoint"]),
        (
            "ProgramExternalConnectivity",
            {"Err": "no way"},
            "driver failed programming external connectivity on endpoint lan",
            ["RevokeExternalConnectivity", "Leave", "DeleteEndpoint"],
        ),
    ],
)
def test_what_fails_is_undone(
    engine: Engine, plugin: Plugin, tmp_path: Path, method: str, answer: Any, says: str, then: list[str]
) -> None:
    made(engine)
    plugin.answers[f"NetworkDriver.{method}"] = answer
    one = container(engine, tmp_path, 1, "lan")
    with pytest.raises(EngineError) as caught:
        start(engine, one)
    assert says in str(caught.value)
    after = plugin.methods()[plugin.methods().index(f"NetworkDriver.{method}") + 1 :]
    assert [name for name in after if name != "NetworkDriver.EndpointOperInfo"] == [
        f"NetworkDriver.{name}" for name in then
    ]
    plugin.answers.clear()
    start(engine, one)
    assert one.network_settings.networks["lan"].address == "192.0.2.1"


@root
@pytest.mark.parametrize(
    ("method", "member"),
    [
        ("CreateEndpoint", {"Interface": "x"}),
        ("CreateEndpoint", {"Interface": {"MacAddress": "x"}}),
        ("CreateEndpoint", {"Interface": {"MacAddress": 5}}),
        ("CreateEndpoint", {"Interface": {"Address": ["x"]}}),
        ("Join", {"InterfaceName": ["x"]}),
        ("Join", {"InterfaceName": {"SrcName": 7}}),
        ("Join", {"InterfaceName": {"SrcName": "a" * 40}}),
        ("Join", {"InterfaceName": {"SrcName": "lo"}}),
        ("Join", {"InterfaceName": {"SrcName": "spare", "DstPrefix": "a/b"}}),
        ("Join", {"Gateway": 7}),
        ("Join", {"StaticRoutes": "x"}),
        ("Join", {"StaticRoutes": ["x"]}),
        ("Join", {"StaticRoutes": [{"Destination": "x"}]}),
        ("Join", {"StaticRoutes": [{"Destination": "203.0.113.0/24", "NextHop": "x"}]}),
    ],
)
def test_answers_that_make_no_sense(
    engine: Engine, plugin: Plugin, tmp_path: Path, method: str, member: dict[str, Any]
) -> None:
    """They are told as such, and undone; the interface is the host's again."""
    made(engine)
    with suite.netlink.Socket() as kernel:
        suite.make_pair(kernel, "spare", "other")
        plugin.answers[f"NetworkDriver.{method}"] = member
        one = container(engine, tmp_path, 1, "lan")
        with pytest.raises(EngineError):
            start(engine, one)
        assert kernel.link("spare") is not None
    assert not engine.endpoints._active
    assert engine.networks.get("lan").pools[0].taken == 0


@root
def test_an_interface_is_given_back_where_its_addresses_are_refused(
    engine: Engine, plugin: Plugin, tmp_path: Path
) -> None:
    network = made(engine)
    one = container(engine, tmp_path, 1, "default")
    start(engine, one)
    with suite.netlink.Socket() as kernel:
        suite.make_pair(kernel, "spare", "other")
        names = {"SrcName": "spare", "DstPrefix": "plug"}
        plugin.answers["NetworkDriver.Join"] = {"InterfaceName": names, "Gateway": "198.51.100.9"}
        with pytest.raises(EngineError, match="network is unreachable"):
            engine.endpoints.connect(network, one, parts.fields.EndpointAsked(gateway_priority=7))
        assert kernel.link("spare") is not None
    assert "plug0" not in inside(engine, one, "ip link")
    assert list(one.network_settings.networks) == ["bridge"]
    assert "dev eth0" in inside(engine, one, "ip route show default")


@root
def test_a_network_that_the_plugin_does_not_want(engine: Engine, plugin: Plugin) -> None:
    plugin.answers["NetworkDriver.CreateNetwork"] = {"Err": "no room"}
    with pytest.raises(PluginError, match="remote: no room"):
        made(engine)
    assert len(engine.networks.all()) == 3
    plugin.answers.clear()
    network = made(engine)
    plugin.answers["NetworkDriver.DeleteNetwork"] = {"Err": "no"}
    engine.networks.remove(network)  # as in docker: what the plugin says is logged
    assert len(engine.networks.all()) == 3
    with pytest.raises(NotFound, match='plugin "nobody" not found'):
        parts.network(engine.networks, "lan", Driver="nobody")
    assert len(engine.networks.all()) == 3


@root
def test_a_plugin_that_is_gone(engine: Engine, folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody starts on its networks; they and who is on them can go."""
    with Plugin(folder=folders / "run").running():
        made(engine)
        one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
        start(engine, one)
    with pytest.raises(EngineError, match='failed to add endpoint: plugin "house" not found'):
        start(engine, two)
    assert two.id not in engine.endpoints._active
    engine.endpoints.detach(one)
    engine.begin()
    engine.networks.remove(engine.networks.get("lan"))
    assert caplog.text.count('plugin house: plugin "house" not found') == 4
    assert len(engine.networks.all()) == 3


@root
def test_a_plugin_may_ask_us(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    """While it is asked, from other threads, under the lock."""
    found: list[str] = []

    def look(asked: Any) -> Any:
        with engine.endpoints._lock:
            found.append(engine.networks.get(asked["NetworkID"]).name)

    for method in ("CreateNetwork", "CreateEndpoint", "Join", "Leave", "DeleteEndpoint", "DeleteNetwork"):
        plugin.answers[f"NetworkDriver.{method}"] = look
    made(engine)
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    engine.endpoints.detach(one)
    engine.networks.remove(engine.networks.get("lan"))
    assert found == ["lan"] * 6


@root
def test_nobody_gets_on_what_is_being_removed(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    network = made(engine)
    one = container(engine, tmp_path, 1, "lan")
    met: list[str] = []

    def meanwhile(_: Any) -> None:
        for what in (lambda: start(engine, one), lambda: engine.networks.remove(engine.networks.get("lan"))):
            with pytest.raises(Conflict, match="network lan is being made or removed"):
                what()
            met.append("refused")

    plugin.answers["NetworkDriver.DeleteNetwork"] = meanwhile
    engine.networks.remove(network)
    plugin.answers["NetworkDriver.CreateNetwork"] = meanwhile
    network = made(engine)
    assert met == ["refused"] * 4
    start(engine, one)


@root
def test_a_global_driver(engine: Engine, plugin: Plugin) -> None:
    plugin.answers["NetworkDriver.GetCapabilities"] = {"Scope": "global", "GwAllocChecker": True}
    plugin.answers["NetworkDriver.GwAllocCheck"] = {"SkipIPv4": True}
    with pytest.raises(Forbidden, match="cannot downgrade network scope for house networks"):
        made(engine, Scope="local")
    network = made(engine, IPAM={"Config": [{"Subnet": "192.0.2.0/24"}]})
    assert network.record.shown()["Scope"] == "global"
    house: Any = engine
    assert _matches(house, network, {"scope": ["global"]}) and not _matches(house, network, {"scope": ["local"]})
    assert plugin.of("NetworkDriver.CreateNetwork")[0]["IPv4Data"] == [
        {"AddressSpace": "LocalDefault", "Pool": "192.0.2.0/24"}
    ]


@root
def test_the_next_daemon_goes_on(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    """It tells the plugin of those that have ended meanwhile, and of the others when they end."""
    network = made(engine)
    lives, died = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    start(engine, lives)
    start(engine, died)
    gone = died.network_settings.networks["lan"].endpoint_id
    with engine.living(lives):
        engine.begin()
        begun(plugin)
        engine.endpoints.has_process = lambda _: True  # type: ignore[method-assign]
        died.running = False
        engine.endpoints.recover([lives])
        for thread in threading.enumerate():
            if thread.name == "plugins":
                thread.join()
        assert plugin.asked == [
            (f"NetworkDriver.{method}", {"NetworkID": network.id, "EndpointID": gone})
            for method in ("Leave", "DeleteEndpoint")
        ]
        assert engine.endpoints._active[lives.id].namespace >= 0
        begun(plugin)
        third = container(engine, tmp_path, 3, "lan")
        start(engine, third)
        assert third.network_settings.networks["lan"].address == "192.0.2.2"
        begun(plugin)
        engine.endpoints.disconnect(engine.networks.get("lan"), lives)
        assert plugin.methods() == [
            f"NetworkDriver.{method}" for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint")
        ]
        assert "plug0" not in inside(engine, lives, "ip link")
        engine.endpoints.detach(lives)


# -- addresses -------------------------------------------------------------------------------------------


@root
def test_addresses_of_a_plugin(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    network = parts.network(engine.networks, "lan", IPAM={"Driver": "house", "Options": {"x": "y"}})
    shown = network.record.shown()["IPAM"]
    assert shown == {
        "Driver": "house",
        "Options": {"x": "y"},
        "Config": [{"Subnet": "10.201.0.0/24", "Gateway": "10.201.0.1"}],
    }
    assert isinstance(network.pools[0], RemotePool)
    assert plugin.asked[3:] == [
        ("IpamDriver.GetDefaultAddressSpaces", None),
        (
            "IpamDriver.RequestPool",
            {"AddressSpace": "houselocal", "Pool": "", "SubPool": "", "Options": {"x": "y"}, "V6": False},
        ),
        (
            "IpamDriver.RequestAddress",
            {
                "PoolID": "pool-10.201.0.0/24",
                "Address": "",
                "Options": {"RequestAddressType": "com.docker.network.gateway"},
            },
        ),
    ]
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    begun(plugin)
    start(engine, one)
    start(engine, two)
    assert two.network_settings.networks["lan"].address == "10.201.0.3"
    assert plugin.of("IpamDriver.RequestAddress")[0] == {
        "PoolID": "pool-10.201.0.0/24",
        "Address": "",
        "Options": None,
    }
    assert pings(engine, two, "10.201.0.2")
    engine.endpoints.detach(one)
    with engine.living(two):
        engine.begin()
        engine.endpoints.recover([two])
        engine.endpoints.detach(two)
    begun(plugin)
    engine.networks.remove(engine.networks.get("lan"))
    assert plugin.asked == [
        ("IpamDriver.ReleaseAddress", {"PoolID": "pool-10.201.0.0/24", "Address": "10.201.0.1"}),
        ("IpamDriver.ReleasePool", {"PoolID": "pool-10.201.0.0/24"}),
    ]
    assert not plugin.pools and not any(plugin.given.values())


@root
def test_addresses_that_are_asked_for(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    network = parts.network(
        engine.networks,
        "lan",
        EnableIPv6=True,
        IPAM={
            "Driver": "house",
            "Config": [
                {
                    "Subnet": "10.210.0.0/24",
                    "IPRange": "10.210.0.128/25",
                    "Gateway": "10.210.0.9",
                    "AuxiliaryAddresses": {"nas": "10.210.0.10"},
                }
            ],
        },
    )
    assert plugin.given == {
        "pool-10.210.0.0/24": {"10.210.0.9", "10.210.0.10"},
        "pool-fd00:201::/64": {"fd00:201::1"},
    }
    assert plugin.of("IpamDriver.RequestPool")[0]["SubPool"] == "10.210.0.128/25"
    one = container(engine, tmp_path, 1, "lan", endpoints={"lan": {"IPAMConfig": {"IPv4Address": "10.210.0.77"}}})
    start(engine, one)
    settings = one.network_settings.networks["lan"]
    assert (settings.address, settings.address6) == ("10.210.0.77", "fd00:201::2")
    engine.endpoints.detach(one)
    engine.networks.remove(network)
    assert not plugin.pools and not any(plugin.given.values())


@root
def test_several_subnets_of_a_plugin(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    """An address is asked for of the one that has it, and of the next where one has no more."""
    config = [{"Subnet": "10.212.0.0/30"}, {"Subnet": "10.213.0.0/24"}]
    network = made(engine, IPAM={"Driver": "house", "Config": config})
    plugin.networks[network.id] = ""  # it leads nowhere
    asked = {"lan": {"IPAMConfig": {"IPv4Address": "10.213.0.77"}}}
    every = [container(engine, tmp_path, 1, "lan", endpoints=asked)]
    every += [container(engine, tmp_path, number, "lan") for number in (2, 3)]
    begun(plugin)
    for one in every:
        start(engine, one)
    found = [one.network_settings.networks["lan"].address for one in every]
    assert found == ["10.213.0.77", "10.212.0.2", "10.213.0.2"]
    assert plugin.of("IpamDriver.RequestAddress")[0]["PoolID"] == "pool-10.213.0.0/24"


@root
@pytest.mark.parametrize(
    ("method", "answer", "says"),
    [
        ("RequestPool", {"Error": "no pools"}, "remote: no pools"),
        ("RequestPool", {"Pool": "x"}, "the IPAM driver house gave no subnet"),
        ("RequestPool", {"Pool": 7}, "Pool in a plugin's answer is no text"),
        ("RequestPool", {"Pool": "10.9.0.0/24", "Data": "x"}, "Data in a plugin's answer is no object"),
        ("GetDefaultAddressSpaces", {"LocalDefaultAddressSpace": []}, "is no text"),
        ("RequestAddress", {"Error": "no addresses"}, "failed to allocate gateway (): remote: no addresses"),
        ("RequestAddress", {}, "failed to allocate gateway (): no address returned"),
        ("RequestPool", {"Pool": "127.0.0.0/8", "PoolID": "x"}, "has no subnet that is not in use"),
    ],
)
def test_addresses_that_are_not_to_be_had(engine: Engine, plugin: Plugin, method: str, answer: Any, says: str) -> None:
    plugin.answers[f"IpamDriver.{method}"] = answer
    with pytest.raises(EngineError) as caught:
        parts.network(engine.networks, "lan", IPAM={"Driver": "house"})
    assert says in str(caught.value)
    assert not plugin.pools
    assert len(engine.networks.all()) == 3


@root
def test_a_name_that_others_take_meanwhile(engine: Engine, plugin: Plugin) -> None:
    def other(_: Any) -> Any:
        if not engine.networks.find("lan"):
            parts.network(engine.networks, "lan")
        return None

    plugin.answers["IpamDriver.RequestPool"] = other
    with pytest.raises(Conflict, match="already exists"):
        parts.network(engine.networks, "lan", IPAM={"Driver": "house"})
    assert not plugin.pools


@root
def test_a_plugin_that_forgets_is_told_again(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    plugin.replay = True
    parts.network(engine.networks, "lan", IPAM={"Driver": "house"})
    one, two = container(engine, tmp_path, 1, "lan"), container(engine, tmp_path, 2, "lan")
    start(engine, one)
    with engine.living(one):
        engine.begin()
        engine.endpoints.recover([one])
        plugin.pools.clear()
        plugin.given.clear()
        start(engine, two)
        assert two.network_settings.networks["lan"].address == "10.201.0.3"
        engine.endpoints.detach(one)


@root
def test_who_wants_to_know_the_mac_address(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    plugin.answers["IpamDriver.GetCapabilities"] = {"RequiresMACAddress": True}
    parts.network(engine.networks, "lan", IPAM={"Driver": "house"})
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    mac = one.network_settings.networks["lan"].mac
    assert plugin.of("IpamDriver.RequestAddress")[-1]["Options"] == {"com.docker.network.endpoint.macaddress": mac}
    assert mac in inside(engine, one, "ip link show eth0")


@root
def test_a_driver_that_gives_the_addresses_itself(engine: Engine, plugin: Plugin, tmp_path: Path) -> None:
    network = made(engine, IPAM={"Driver": "null"})
    assert network.record.shown()["IPAM"]["Config"] == [{"Subnet": "0.0.0.0/0"}]
    assert network.pools == []
    assert plugin.of("NetworkDriver.CreateNetwork")[0]["IPv4Data"] == [{"AddressSpace": "null", "Pool": "0.0.0.0/0"}]
    plugin.answers["NetworkDriver.CreateEndpoint"] = {"Interface": {"Address": "198.51.100.5/24"}}
    plugin.networks[engine.networks.get("lan").id] = "198.51.100.1"
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    settings = one.network_settings.networks["lan"]
    assert (settings.address, settings.prefix, settings.gateway) == ("198.51.100.5", 24, "198.51.100.1")
    assert "198.51.100.5/24" in inside(engine, one, "ip addr show plug0")
    assert "default via 198.51.100.1" in inside(engine, one, "ip route")
    for driver in ("bridge", "macvlan"):
        with pytest.raises(BadRequest, match="ipv4 pool is empty"):
            parts.network(engine.networks, "b", Driver=driver, IPAM={"Driver": "null"})
    with pytest.raises(BadRequest, match="null ipam driver does not handle specific address pool requests"):
        parts.network(engine.networks, "b", Driver="house", IPAM={"Driver": "null", "Config": SUBNETS})


def test_who_does_not_use_them_does_not_import_them() -> None:
    late = {"teu.engine.core.plugins", "teu.engine.networks.remotepool", "teu.engine.networks.drivers.remote"}
    script = f"import sys; import teu.engine.daemon; print(*({late!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


@root
def test_a_daemon_that_dies_in_a_disconnect_leaves_what_the_plugin_has_to_be_told(
    engine: Engine, tmp_path: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = made(engine)
    one = container(engine, tmp_path, 1, "lan")
    start(engine, one)
    written: list[bool] = []
    one.save = lambda durable=True: written.append("lan" in one.network_settings.networks)
    told = engine.endpoints._disconnect_now

    def before_it(*arguments: Any) -> None:
        assert False not in written
        told(*arguments)

    monkeypatch.setattr(engine.endpoints, "_disconnect_now", before_it)
    engine.endpoints.disconnect(network, one)
    assert written[-1] is False
