# SPDX-License-Identifier: Apache-2.0
"""Network drivers besides the bridge, with real containers: macvlan and ipvlan on a card of the lab's own, plugins, and
configurations. What docker's users send is sent to Debian's dockerd too, and the answers are compared; so is what both
ask a plugin."""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docker_words
import images
import peers
import pytest
import whole
from drivers import networks
from netplugin import Plugin, mac_of
from whole import call, eventually, out, teu

SET_UP = "failed to set up container networking: "  # said since docker 28


@pytest.fixture(scope="module", autouse=True)
def card() -> Iterator[None]:
    """A network card up0 with a cable, whose other end is up1."""
    images.need_busybox()
    whole.remove_everything()
    call("ip", "link", "del", "up0", check=False)
    call("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for name in ("up0", "up1"):
        call("ip", "link", "set", name, "up")
    yield
    clear()
    call("ip", "link", "del", "up0")


def clear() -> None:
    whole.remove_everything()
    for name in out("teu", "network", "ls", "-q", "-f", "type=custom").split():
        teu("network", "rm", name, check=False)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    clear()
    assert sorted(out("teu", "network", "ls", "--format", "{{.Name}}").split()) == ["bridge", "host", "none"]


def setting(name: str, path: str) -> str:
    return out("teu", "inspect", "-f", "{{" + path + "}}", name)


def inside(name: str, command: str) -> str:
    return teu("exec", name, "sh", "-c", command, check=False).stdout


def pings(name: str, address: str) -> bool:
    return "1 packets received" in inside(name, f"ping -c1 -W2 {address}")


def sleeper(name: str, *flags: str) -> None:
    teu("run", "-d", "--name", name, *flags, "busybox", "sleep", "600")


def lan(*options: str, driver: str = "macvlan") -> None:
    flags = [flag for option in options for flag in ("-o", option)]
    teu("network", "create", "-d", driver, *flags, "--subnet", "192.0.2.0/24", "--gateway", "192.0.2.254", "lan")


# -- macvlan and ipvlan ----------------------------------------------------------------------------------


def test_macvlan_goes_on_without_the_daemon() -> None:
    lan("parent=up0")
    sleeper("one", "--network", "lan")
    sleeper("two", "--network", "lan", "--ip", "192.0.2.77", "--mac-address", "02:00:00:00:00:07", "-p", "80:80")
    assert setting("one", ".NetworkSettings.Networks.lan.IPAddress") == "192.0.2.1"
    assert setting("two", "json .NetworkSettings.Ports") == "{}"
    assert "02:00:00:00:00:07" in inside("two", "ip link show eth0")
    assert "default via 192.0.2.254" in inside("one", "ip route")
    assert pings("one", "two")  # by its name
    for death in ("restart", "kill"):
        if death == "restart":
            call("systemctl", "restart", "teud")
        else:
            call("systemctl", "kill", "-s", "KILL", "teud")
            eventually("teud is there again", lambda: teu("ps", check=False).returncode == 0)
        assert pings("one", "192.0.2.77")
        sleeper("three", "--network", "lan")
        assert setting("three", ".NetworkSettings.Networks.lan.IPAddress") == "192.0.2.2"
        teu("rm", "-f", "three")
    teu("network", "disconnect", "lan", "one")
    assert "eth0" not in inside("one", "ip link")
    teu("network", "connect", "lan", "one")
    assert pings("one", "two")
    teu("restart", "-t", "0", "one")
    assert pings("two", "one")
    assert "has active endpoints" in teu("network", "rm", "lan", check=False).stderr


def test_a_passthru_is_free_as_soon_as_its_container_has_ended() -> None:
    lan("parent=up0", "macvlan_mode=passthru")
    for _ in range(3):
        sleeper("one", "--network", "lan")
        refused = teu("run", "--name", "two", "--network", "lan", "busybox", "true", check=False)
        assert "failed to create the macvlan port: " in refused.stderr
        teu("rm", "-f", "two")
        teu("restart", "-t", "0", "one")
        teu("rm", "-f", "one")


def has(kind: str) -> bool:
    return call("modprobe", kind, check=False).returncode == 0


@pytest.mark.needs("vm")
@pytest.mark.timeout(300)
def test_vlans_dummies_and_ipvlan() -> None:
    """What the kernel of the namespace lab may not have."""
    for kind in ("macvlan", "ipvlan", "8021q", "dummy"):
        assert has(kind), kind
    lan("parent=up0.10")
    assert "up0.10@up0" in out("ip", "-br", "link")
    sleeper("one", "--network", "lan")
    assert "default via 192.0.2.254" in inside("one", "ip route")
    teu("rm", "-f", "one")
    teu("network", "rm", "lan")
    assert "up0.10" not in out("ip", "-br", "link")
    for driver, mark in (("macvlan", "dm-"), ("ipvlan", "di-")):
        lan(driver=driver)
        assert mark in out("ip", "-br", "link")
        sleeper("one", "--network", "lan")
        sleeper("two", "--network", "lan")
        assert pings("one", "two")
        assert "default" not in inside("one", "ip route")
        teu("rm", "-f", "one", "two")
        teu("network", "rm", "lan")
        assert mark not in out("ip", "-br", "link")
    for mode in ("l2", "l3", "l3s"):
        lan("parent=up0", f"ipvlan_mode={mode}", driver="ipvlan")
        sleeper("one", "--network", "lan")
        sleeper("two", "--network", "lan")
        call("systemctl", "kill", "-s", "KILL", "teud")
        eventually("teud is there again", lambda: teu("ps", check=False).returncode == 0)
        assert pings("one", "two")
        route = "default via 192.0.2.254" if mode == "l2" else "default dev eth0"
        assert route in inside("one", "ip route")
        teu("network", "disconnect", "lan", "one")
        assert "eth0" not in inside("one", "ip link")
        teu("rm", "-f", "one", "two")
        teu("network", "rm", "lan")
    lan("parent=up0", "ipvlan_flag=private", driver="ipvlan")
    sleeper("one", "--network", "lan")
    sleeper("two", "--network", "lan")
    assert not pings("one", "192.0.2.2")


@pytest.mark.needs("vm")
@pytest.mark.parametrize("check", networks.CONNECTING, ids=lambda check: check.__name__)
def test_what_every_driver_does(check: Any, tmp_path: Path) -> None:
    """Of ipvlan; of the others the namespace lab's kernel has what they need."""
    assert not networks.no_kind("ipvlan")
    with networks.own_namespace():
        bench = networks.Bench("ipvlan", tmp_path)
        try:
            check(bench)
        finally:
            bench.stopping.set()


# -- beside docker ---------------------------------------------------------------------------------------


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=90)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Side(NamedTuple):
    """An engine that is asked."""

    name: str
    socket: str

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = _Connection(self.socket)
        data = None if body is None else json.dumps(body)
        version = "1.48" if self.name == "teud" else "1.45"  # the first with GwPriority, and docker 26's
        connection.request(method, f"/v{version}{path}", data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        try:
            return answer.status, json.loads(text) if text.strip() else None
        except ValueError:
            return answer.status, text

    def good(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.ask(method, path, body)
        assert status < 300, (self.name, method, path, status, answer)
        return answer

    def run(self, name: str, network: str, endpoint: dict[str, Any] | None = None, **more: Any) -> tuple[int, Any]:
        """A container that sleeps, on a network."""
        host = {"NetworkMode": network, **more.pop("HostConfig", {})}
        networking = {"EndpointsConfig": {network: endpoint or {}}}
        body = {"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": host, "NetworkingConfig": networking}
        self.good("POST", f"/containers/create?name={name}", {**body, **more})
        return self.ask("POST", f"/containers/{name}/start")

    def drop(self, *names: str) -> None:
        for name in names:
            self.ask("DELETE", f"/containers/{name}?force=1")


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Side, Side]]:
    """docker and teud."""
    with peers.dockerd(network=True) as docker:
        docker.load_busybox()
        yield Side("docker", str(docker.socket)), Side("teud", "/run/teu/teud.sock")


def both(sides: tuple[Side, Side], body: dict[str, Any]) -> list[tuple[int, str]]:
    """The status and the message of each when it is to make a network."""
    result = []
    for side in sides:
        status, answer = side.ask("POST", "/networks/create", {"Name": "probe", **body})
        if status == 201:
            side.good("DELETE", f"/networks/{answer['Id']}")
        result.append((status, re.sub(r"[0-9a-f]{12,64}", "ID", str((answer or {}).get("message", "")))))
    return result


@pytest.mark.needs("fast", "docker", "trixie")
@pytest.mark.parametrize(
    "body",
    [
        {"Driver": "macvlan", "Options": {"macvlan_mode": "x", "parent": "up0"}},
        {"Driver": "macvlan", "Options": {"parent": "lo"}},
        {"Driver": "macvlan", "Options": {"parent": "nic9"}},
        {"Driver": "macvlan", "Options": {"parent": "nic9.5"}},
        {"Driver": "macvlan", "Options": {"parent": "up0.1.2"}},
        {"Driver": "macvlan", "Options": {"parent": "up0.x"}},
        {"Driver": "macvlan", "Options": {"parent": "up0.4095"}},
        {"Driver": "macvlan", "Options": {"parent": "up0", "macvlan_mode": "passthru"}},
        {
            "Driver": "macvlan",
            "Options": {"parent": "up0"},
            "IPAM": {"Config": [{"Subnet": "192.0.2.0/25"}, {"Subnet": "192.0.2.128/25"}]},
        },
        {"Driver": "ipvlan", "Options": {"ipvlan_mode": "l9", "parent": "up0"}},
        {"Driver": "ipvlan", "Options": {"ipvlan_flag": "x", "parent": "up0"}},
        {"Driver": "ipvlan", "Options": {"parent": "lo"}},
        {"Driver": "ipvlan", "Options": {"parent": "up0"}},
        {"Driver": "bridge", "IPAM": {"Driver": "null"}},
        {"ConfigOnly": True, "IPAM": {"Config": [{"Subnet": "192.0.2.0/24"}]}},
        {"ConfigOnly": True, "Internal": True},
        {"ConfigOnly": True, "Scope": "local"},
        {"ConfigOnly": True, "ConfigFrom": {"Network": "x"}},
        {"ConfigFrom": {"Network": "bridge"}},
        {"ConfigFrom": {"Network": "x"}, "Labels": {"a": "b"}},
        {"ConfigFrom": {"Network": "x"}, "Options": {"a": "b"}},
        {"ConfigFrom": {"Network": "x"}, "EnableIPv6": True},
    ],
    ids=lambda body: json.dumps(body).replace(" ", "")[:60],
)
def test_words_are_dockers(sides: tuple[Side, Side], body: dict[str, Any]) -> None:
    docker, ours = both(sides, body)
    assert ours == docker


@pytest.mark.needs("fast", "docker", "trixie")
def test_who_has_a_parent_already(sides: tuple[Side, Side]) -> None:
    found = []
    for side in sides:
        body = {"Name": "first", "Driver": "macvlan", "Options": {"parent": "up0"}}
        side.good("POST", "/networks/create", body)
        side.good("POST", "/networks/create", {**body, "Name": "second", "Driver": "ipvlan"})
        status, answer = side.ask("POST", "/networks/create", {**body, "Name": "probe", "Driver": "ipvlan"})
        found.append((status, re.sub(r"[0-9a-f]{12}", "ID", answer["message"])))
        for name in ("first", "second"):
            side.good("DELETE", f"/networks/{name}")
    assert found[0] == found[1]


def shape(asked: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """A dialogue, with one name for each id, and without what is nobody's business: the path of the namespace, and the
    MAC addresses that nobody asked for."""
    names: dict[str, str] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: "PATH" if key == "SandboxKey" else plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
            return names.setdefault(value, f"ID{len(names)}")
        return value

    # docker asks for what it shows of published ports, again and again: bridges alone have those here.
    return [(method, plain(body)) for method, body in asked if method != "NetworkDriver.EndpointOperInfo"]


def talk(side: Side) -> dict[str, Any]:
    """What a plugin is asked in a network's whole life, and what the engine then says."""
    result: dict[str, Any] = {}
    with Plugin().running() as plugin:

        def step(name: str) -> None:
            result[name] = shape(plugin.asked)
            plugin.asked.clear()

        config = [{"Subnet": "198.51.100.0/24", "Gateway": "198.51.100.1", "AuxiliaryAddresses": {"a": "198.51.100.9"}}]
        made = side.good(
            "POST",
            "/networks/create",
            {"Name": "plug", "Driver": "house", "Options": {"a": "b"}, "IPAM": {"Config": config}},
        )
        step("create")
        shown = side.good("GET", f"/networks/{made['Id']}")
        result["network"] = {key: shown[key] for key in ("Driver", "Scope", "Internal", "IPAM", "Options")}
        status, answer = side.run(
            "plugged",
            "plug",
            ExposedPorts={"80/tcp": {}},
            HostConfig={"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8099"}]}},
        )
        assert status == 204, answer
        step("run")
        settings = side.good("GET", "/containers/plugged/json")["NetworkSettings"]
        one = settings["Networks"]["plug"]
        assert one["MacAddress"] == mac_of(one["EndpointID"])
        result["endpoint"] = {key: one[key] for key in ("IPAddress", "IPPrefixLen", "Gateway")}
        result["ports"] = settings["Ports"]
        side.good("POST", "/networks/plug/disconnect", {"Container": "plugged"})
        step("disconnect")
        fixed = {"IPAMConfig": {"IPv4Address": "198.51.100.77"}}
        side.good("POST", "/networks/plug/connect", {"Container": "plugged", "EndpointConfig": fixed})
        step("connect")
        side.drop("plugged")
        step("remove")
        side.good("DELETE", "/networks/plug")
        step("delete")
        side.good(
            "POST",
            "/networks/create",
            {
                "Name": "plug",
                "IPAM": {"Driver": "house", "Options": {"x": "y"}, "Config": [{"Subnet": "10.211.0.0/24"}]},
            },
        )
        step("addresses")
        status, answer = side.run("plugged", "plug")
        assert status == 204, answer
        step("an address")
        side.drop("plugged")
        step("no address")
        side.good("DELETE", "/networks/plug")
        step("no addresses")
        side.good(
            "POST",
            "/networks/create",
            {"Name": "plug", "Driver": "house", "Internal": True, "IPAM": {"Driver": "null"}},
        )
        step("null")
        result["without addresses"] = side.good("GET", "/networks/plug")["IPAM"]["Config"][0]["Subnet"]
        side.good("DELETE", "/networks/plug")
        for method, answer in (
            ("NetworkDriver.CreateNetwork", {"Err": "no room"}),
            ("NetworkDriver.CreateNetwork", (500, '{"Err": "broken"}')),
            ("NetworkDriver.CreateNetwork", (418, "teapot")),
            ("IpamDriver.RequestPool", {"Error": "no pools"}),
            ("IpamDriver.RequestAddress", {"Error": "no addresses"}),
            ("IpamDriver.RequestAddress", {}),
        ):
            plugin.answers = {method: answer}
            body: dict[str, Any] = {"Name": "plug", "Driver": "house"}
            if method.startswith("Ipam"):
                body["IPAM"] = {"Driver": "house"}
            status, told = side.ask("POST", "/networks/create", body)
            result[f"{method} {answer}"] = (status, told["message"])
        plugin.answers.clear()
        side.good("POST", "/networks/create", {"Name": "plug", "Driver": "house"})
        for method, answer in (
            ("NetworkDriver.CreateEndpoint", {"Err": "no endpoint"}),
            ("NetworkDriver.Join", {"Err": "no joining"}),
            ("NetworkDriver.Join", {"InterfaceName": {"SrcName": "nothere", "DstPrefix": "eth"}}),
        ):
            plugin.answers = {method: answer}
            status, told = side.run("plugged", "plug")
            # docker makes the interface in a hook of its runtime, which has its own words around.
            message = re.sub(r".*(failed to add interface .*?)(: unknown)?$", r"\1", told["message"])
            result[f"{method} {answer}"] = (status, message.removeprefix(SET_UP) if docker_words.older() else message)
            side.drop("plugged")
        plugin.answers.clear()
        side.good("DELETE", "/networks/plug")
        assert not plugin.networks and not plugin.pools
    return result


# What docker 28 asks twice in a row for each network. Nothing happens in between, so that the answer is the same.
ASKED_TWICE = ("IpamDriver.GetDefaultAddressSpaces", None)
# What docker 28 tells its own bridge driver of its own proxy, and every plugin with it.
OF_ITS_BRIDGE = "com.docker.network.driver.private.no_proxy_6to4"


@pytest.mark.needs("fast", "docker", "trixie")
@pytest.mark.timeout(240)
def test_a_plugin_is_asked_as_docker_asks_it(sides: tuple[Side, Side]) -> None:
    docker, ours = (talk(side) for side in sides)
    for step, wanted in docker.items():
        for method, body in wanted if isinstance(wanted, list) else ():
            if method == "NetworkDriver.CreateNetwork" and docker_words.older():  # it knows no network without IPv4
                body["Options"] = {"com.docker.network.enable_ipv4": True, **body["Options"]}
            if method == "NetworkDriver.ProgramExternalConnectivity":
                body["Options"].pop(OF_ITS_BRIDGE, None)
        if isinstance(wanted, list) and ASKED_TWICE in wanted and not docker_words.older():
            assert wanted.count(ASKED_TWICE) == 2
            wanted.remove(ASKED_TWICE)
        assert ours[step] == wanted, step


BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.fixture
def unfiltered() -> Iterator[None]:
    """What the plugin's own bridge forwards, the host's rules do not see."""
    before = BRIDGE_NETFILTER.read_text() if BRIDGE_NETFILTER.exists() else ""
    if before:
        BRIDGE_NETFILTER.write_text("0")
    yield
    if before:
        BRIDGE_NETFILTER.write_text(before)


def test_a_plugins_containers_go_on_without_the_daemon(unfiltered: None) -> None:
    """They are known again, and the plugin is told of those that have ended meanwhile."""
    with Plugin().running() as plugin:
        teu("network", "create", "-d", "house", "--subnet", "198.51.100.0/24", "plug")
        sleeper("lives", "--network", "plug")
        sleeper("dies", "--network", "plug")
        assert pings("lives", "dies")
        pid = int(setting("dies", ".State.Pid"))
        call("systemctl", "stop", "teud.socket", "teud")
        call("kill", "-9", str(pid))
        eventually("it has ended", lambda: not Path(f"/proc/{pid}").exists())
        call("systemctl", "start", "teud.socket", "teud")
        eventually("the plugin is told", lambda: len(plugin.endpoints) == 1)
        assert pings("lives", setting("lives", ".NetworkSettings.Networks.plug.IPAddress"))
        for _ in range(3):
            call("systemctl", "kill", "-s", signal.SIGKILL.name, "teud")
            eventually("teud is there again", lambda: teu("ps", check=False).returncode == 0)
            teu("network", "disconnect", "plug", "lives")
            assert not plugin.endpoints
            teu("network", "connect", "plug", "lives")
            assert len(plugin.endpoints) == 1
        teu("rm", "-f", "lives", "dies")
        teu("network", "rm", "plug")
        assert not plugin.endpoints and not plugin.networks
    assert not Path("/run/docker/plugins/house.sock").exists()


@pytest.mark.needs("fast")
@pytest.mark.timeout(300)
def test_deaths_leave_nothing(unfiltered: None, rounds: Callable[[int], int]) -> None:
    """teud is killed at any moment of a start, an end, a connect and a disconnect: the plugin has no endpoint that
    nobody knows of, and the parent of a passthru is free."""
    dice = random.Random(11)
    lan("parent=up0", "macvlan_mode=passthru")
    with Plugin().running() as plugin:
        teu("network", "create", "-d", "house", "--subnet", "198.51.100.0/24", "plug")
        for number in range(rounds(20)):
            argv = [
                ["run", "-d", "--name", "one", "--network", "plug", "busybox", "sleep", "600"],
                ["run", "-d", "--name", "one", "--network", "lan", "busybox", "sleep", "600"],
                ["network", "connect", "plug", "two"],
                ["network", "disconnect", "plug", "two"],
                ["rm", "-f", "two"],
            ][number % 5]
            if "two" in argv:
                sleeper("two")
            if argv[0] == "rm" or argv[1] == "disconnect":
                teu("network", "connect", "plug", "two")
            client = subprocess.Popen(["teu", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(dice.uniform(0.0, 0.3))
            call("systemctl", "kill", "-s", "KILL", "teud")
            client.wait(60)
            eventually("teud is there again", lambda: teu("ps", check=False).returncode == 0)
            for name in ("one", "two"):
                teu("rm", "-f", name, check=False)
            eventually(f"the plugin has no endpoint after {argv}", lambda: not plugin.endpoints)
            sleeper("three", "--network", "lan")
            teu("network", "connect", "plug", "three")
            assert setting("three", ".NetworkSettings.Networks.plug.IPAddress") == "198.51.100.2"
            teu("rm", "-f", "three")
        teu("network", "rm", "plug")
        assert not plugin.networks
