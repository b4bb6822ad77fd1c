# SPDX-License-Identifier: Apache-2.0
"""Managed plugins (docker's v2): each verb on teud and on Debian's dockerd, with the same plugin, and the answers
compared; volumes, logs, networks, addresses, authorization and metrics of such plugins; what they survive, and that
nothing stays."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import images
import peers
import pytest
import whole
from whole import eventually

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

PROGRAM = Path(__file__).resolve().parents[1] / "drivers/managedplugin.py"
PLUGINS = Path("/var/lib/teu/engine/plugins")
NAME = "house/shelf"
CONFIG: dict[str, Any] = {
    "Description": "a shelf",
    "Documentation": "in the test",
    "Entrypoint": ["/usr/bin/python3", "-B", "/opt/plugin.py", "/run/docker/plugins/shelf.sock"],
    "WorkDir": "/opt",
    "Interface": {"Types": ["docker.volumedriver/1.0", "docker.logdriver/1.0"], "Socket": "shelf.sock"},
    "Network": {"Type": "host"},
    "PropagatedMount": "/mnt/volumes",
    "Linux": {
        "Capabilities": ["CAP_SYS_ADMIN"],
        "Devices": [{"Name": "zero", "Path": "/dev/zero", "Settable": ["path"]}],
    },
    "Mounts": [
        {"Name": "usr", "Source": "/usr", "Destination": "/usr", "Type": "bind", "Options": ["rbind", "ro"]},
        {
            "Name": "more",
            "Source": "/var/empty-for-a-plugin",
            "Destination": "/opt/more",
            "Type": "bind",
            "Options": ["rbind"],
            "Settable": ["source"],
        },
    ],
    "Env": [
        {"Name": "COLOUR", "Value": "blue", "Settable": ["value"], "Description": "of the shelf"},
        {"Name": "FIXED", "Value": "1"},
        {"Name": "LATER", "Settable": ["value"]},
        {"Name": "TWICE", "Value": "", "Settable": ["value", "other"]},
    ],
    "Args": {"Name": "words", "Settable": ["value"], "Value": ["one", "two"]},
}


class House(NamedTuple):
    """An engine with its client. `socket`: of its API."""

    client: list[str]
    socket: str
    ours: bool

    def __call__(self, *argv: str, code: int = 0, stdin: str = "") -> str:
        environment = {**os.environ, "DOCKER_CLI_HINTS": "false"}
        done = subprocess.run(
            [*self.client, *argv],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            input=stdin,
            env=environment,
        )
        assert done.returncode == code, (argv, done.stdout, done.stderr)
        return (done.stdout + done.stderr).strip()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, answer); a stream of JSON lines is a list."""
        connection = http.client.HTTPConnection("engine")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(100)
        connection.sock.connect(self.socket)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, f"/v1.45{path}", json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        try:
            return answer.status, json.loads(text) if text.strip() else None
        except ValueError:
            return answer.status, [json.loads(line) for line in text.splitlines() if line.strip()]


def context(folder: Path, **changes: Any) -> Path:
    """The folder of a plugin: its program, and places for the host's programs."""
    shutil.rmtree(folder, ignore_errors=True)
    rootfs = folder / "rootfs"
    for name in ("usr", "proc", "dev", "sys", "etc", "state", "tmp", "opt/more", "mnt/volumes", "run/docker/plugins"):
        (rootfs / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (rootfs / name).symlink_to(f"usr/{name}")
    shutil.copy(PROGRAM, rootfs / "opt/plugin.py")
    (rootfs / "opt/link").hardlink_to(rootfs / "opt/plugin.py")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    Path("/var/empty-for-a-plugin").mkdir(exist_ok=True)
    return folder


TEUD = House(["docker", "--config", "/run/no-such", "-H", "unix:///run/teu/teud.sock"], "/run/teu/teud.sock", True)


def clear() -> None:
    whole.remove_everything()
    TEUD.ask("DELETE", "/volumes/books?force=1")
    for one in TEUD.ask("GET", "/plugins")[1]:
        TEUD.ask("DELETE", f"/plugins/{one['Name']}?force=1")


@pytest.fixture
def teud() -> Iterator[House]:
    images.need_busybox()
    clear()
    yield TEUD
    clear()
    eventually("nothing is left", nothing_left)


def nothing_left() -> bool:
    """Of plugins: files, mounts, processes, and what containerd has."""
    left = list(PLUGINS.iterdir()) if PLUGINS.exists() else []
    left += [path for name in ("plugins", "plugin-streams") for path in Path("/run/teu/engine", name).glob("*")]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/engine/plugins/" in line]
    listed = [
        line
        for what in (("containers", "ls", "-q"), ("snapshots", "ls"), ("content", "ls", "-q"), ("leases", "ls", "-q"))
        for line in whole.out("ctr", "-a", "/run/teu/containerd.sock", "-n", "plugins.teu", *what).splitlines()
        if not line.startswith("KEY")
    ]
    assert not (left or mounts or listed), (left, mounts, listed)
    return True


@contextlib.contextmanager
def dockerd(**more: Any) -> Iterator[House]:
    with peers.dockerd(**more) as daemon:
        daemon.load_busybox()
        yield House(daemon.client, str(daemon.socket), False)


def plain(value: Any) -> Any:
    """Without what is another one each time."""
    text = re.sub(r'"DockerVersion": "[^"]+", ', "", json.dumps(value, sort_keys=True))
    text = re.sub(r"sha256:[0-9a-f]{64}", "DIGEST", text)
    text = re.sub(r"\b[0-9a-f]{64}\b", "ID", text)
    text = re.sub(r'"dial unix [^"]*(connect:[^":]*)[^"]*"', r'"dial unix \1"', text)
    return json.loads(re.sub(r"\b[0-9a-f]{12}\b", "SHORT", text))


def walk(house: House, folder: Path, registry: str) -> list[tuple[str, Any]]:
    """Every verb, right and wrong, with what was answered."""
    told: list[tuple[str, Any]] = []

    def ask(method: str, path: str, body: Any = None) -> Any:
        status, answer = house.ask(method, path, body)
        told.append((f"{method} {path} {body if body is not None else ''}", plain([status, answer])))
        return answer

    def say(*argv: str, code: int = 0) -> None:
        told.append((" ".join(argv), plain(house(*argv, code=code)) if code == 0 else house(*argv, code=code)))

    remote = f"{registry}/shelf:1"
    ask("GET", "/plugins")
    ask("GET", '/plugins?filters={"colour":["blue"]}')
    ask("GET", "/plugins/nobody/json")
    say("plugin", "create", NAME, str(context(folder)))
    say("plugin", "create", NAME, str(folder), code=1)
    ask("GET", "/plugins")
    for name in (NAME, f"{NAME}:latest", f"docker.io/{NAME}", "house", f"{NAME}:2"):
        ask("GET", f"/plugins/{name}/json")
    for words in (
        ["COLOUR=red"],
        ["COLOUR.value=green", "LATER=tomorrow"],
        ["FIXED=2"],
        ["TWICE=x"],
        ["TWICE.value=x=y"],
        ["=x"],
        ["nobody=1"],
        ["words=three four"],
        ["more.source=/opt"],
        ["usr.source=/opt"],
        ["zero=/dev/full"],
        ["zero.mode=1"],
        ["more=/var/empty-for-a-plugin"],
        [],
    ):
        ask("POST", f"/plugins/{NAME}/set", words)
    ask("GET", f"/plugins/{NAME}/json")
    for query in ("", "?timeout=x", "?timeout=0"):
        ask("POST", f"/plugins/{NAME}/enable{query}")
    ask("POST", f"/plugins/{NAME}/enable?timeout=0")
    ask("POST", f"/plugins/{NAME}/set", ["COLOUR=red"])
    for filters in ('{"enabled":["true"]}', '{"enabled":["false"]}', '{"enabled":["x"]}', '{"capability":["authz"]}'):
        ask("GET", f"/plugins?filters={filters}")
    ask("GET", '/plugins?filters={"capability":["volumedriver","logdriver"]}')
    told.append(("info", house.ask("GET", "/info")[1]["Plugins"]["Volume"]))
    ask("DELETE", f"/plugins/{NAME}")
    ask("POST", f"/plugins/{NAME}/upgrade?remote={remote}", [])
    told.append(("environment", environment(house)))
    ask("POST", "/volumes/create", {"Name": "books", "Driver": NAME})
    ask("POST", f"/plugins/{NAME}/disable")
    ask("DELETE", f"/plugins/{NAME}")
    ask("DELETE", "/volumes/books")
    ask("POST", f"/plugins/{NAME}/disable")
    ask("POST", f"/plugins/{NAME}/disable?force=1")
    ask("POST", "/volumes/create", {"Name": "books", "Driver": NAME})
    ask("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"LogConfig": {"Type": NAME}}})
    ask("DELETE", f"/plugins/{NAME}")
    ask("DELETE", f"/plugins/{NAME}")
    # From a registry and to one.
    say("plugin", "create", remote, str(folder))
    pushed = house.ask("POST", f"/plugins/{remote}/push")
    told.append(("pushed", [pushed[0], plain(pushed[1][0]), sorted(pushed[1][-1])]))
    ask("DELETE", f"/plugins/{remote}")
    wanted = ask("GET", f"/plugins/privileges?remote={remote}")
    ask("GET", "/plugins/privileges?remote=UPPER")
    for granted in ([], wanted[:-1], [*wanted[:-1], {**wanted[-1], "Value": ["CAP_SYS_TIME"]}]):
        status, answer = house.ask("POST", f"/plugins/pull?remote={remote}&name=short", granted)
        told.append(("not granted", [status, refusal(answer)]))
    status, answer = house.ask("POST", f"/plugins/pull?remote={remote}&name=short", wanted)
    told.append(
        ("pulled", [status, plain([line for line in answer if "progressDetail" not in line and "id" not in line])])
    )
    ask("GET", "/plugins/short/json")
    status, answer = house.ask("POST", f"/plugins/pull?remote={remote}&name=short", wanted)
    told.append(("pulled again", [status, refusal(answer)]))
    ask("POST", "/plugins/short/set", ["COLOUR=red"])
    status, answer = house.ask("POST", f"/plugins/short/upgrade?remote={remote}", wanted)
    told.append(("upgraded", status))
    ask("GET", "/plugins/short/json")
    ask("DELETE", "/plugins/short")
    # One that does not come to listen, and one with a device that is not there.
    say("plugin", "create", "house/mute", str(context(folder, Entrypoint=["/usr/bin/false"])))
    ask("POST", "/plugins/house/mute/enable?timeout=0")
    ask("GET", "/plugins/house/mute/json")
    ask("DELETE", "/plugins/house/mute")
    ask("GET", "/plugins")
    return told


def refusal(answer: Any) -> Any:
    last = answer[-1] if isinstance(answer, list) else answer
    return last.get("message") or last.get("error")


def environment(house: House) -> Any:
    """What the program was started with."""
    (plugin,) = house.ask("GET", "/plugins")[1]
    return json.loads(inside(house, plugin["Id"], "state/environment").read_text())


def inside(house: House, identity: str, path: str) -> Path:
    """A file of a plugin's, where the host has it."""
    top = PLUGINS if house.ours else Path(house.ask("GET", "/info")[1]["DockerRootDir"], "plugins")
    return top / identity / "rootfs" / path


# What differs, and why.
OTHERWISE = {
    "POST /plugins/house/mute/enable?timeout=0 ": "we also say that it has ended",
    "POST /plugins/house/shelf/enable ": "400, as newer dockerds have it, and 500 of this one",
    "POST /plugins/house/shelf/enable?timeout=x ": "the same",
    "GET /plugins/privileges?remote=UPPER ": "the same",
    'GET /plugins?filters={"enabled":["x"]} ': "how a list is written",
    "POST /volumes/create {'Name': 'books', 'Driver': 'house/shelf'}": "when, where; and the name with its tag",
}


def test_every_verb_as_dockerd_has_it(teud: House, tmp_path: Path) -> None:
    with peers.registry() as registry:
        ours = walk(teud, tmp_path / "plugin", registry.address)
        with dockerd() as peer:
            theirs = walk(peer, tmp_path / "plugin", registry.address)
    for mine, other in zip(ours, theirs, strict=True):
        if mine != other:
            print(f"{mine[0]}\n  ours   {mine[1]}\n  theirs {other[1]}")
    different = [(mine, other) for mine, other in zip(ours, theirs, strict=True) if mine != other]
    assert [mine[0] for mine, _ in different if mine[0] not in OTHERWISE] == []


@pytest.fixture(params=["teud", "dockerd"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    """Each of the two, one after the other."""
    if request.param == "teud":
        yield request.getfixturevalue("teud")
        return
    with dockerd() as peer:
        yield peer


def make(house: House, folder: Path, name: str = NAME, **changes: Any) -> str:
    """The plugin, enabled; its id."""
    house("plugin", "create", name, str(context(folder, **changes)))
    house("plugin", "enable", name)
    found = house.ask("GET", f"/plugins/{name}/json")[1]
    return str(found["Id"])


def test_a_volume(house: House, tmp_path: Path) -> None:
    identity = make(house, tmp_path / "plugin")
    house("volume", "create", "-d", NAME, "books")
    run = ("run", "--rm", "--network", "none", "-v", "books:/books", "busybox", "sh", "-c")
    house(*run, "echo read >/books/file")
    assert inside(house, identity, "state/volumes/books/file").read_text() == "read\n"
    house("run", "-d", "--name", "reader", "--network", "none", "-v", "books:/books", "busybox", "sleep", "600")
    assert house("exec", "reader", "cat", "/books/file") == "read"
    shown = json.loads(house("volume", "inspect", "books"))[0]
    assert (shown["Driver"], shown["Status"]) == (f"{NAME}:latest", {"shelf": "oak"})
    top = inside(house, identity, "x").parents[1]
    mounted = top / "propagated-mount/books"
    assert shown["Mountpoint"] == (str(mounted) if house.ours else "/mnt/volumes/books"), (
        "dockerd: as the plugin has it"
    )
    assert (mounted / "file").read_text() == "read\n", "the host sees what the plugin has mounted"
    assert f"plugin {NAME}:latest is in use" in house("plugin", "disable", NAME, code=1)
    assert f"plugin {NAME}:latest is in use" in house("plugin", "rm", NAME, code=1)
    house("rm", "-f", "reader")
    house("volume", "rm", "books")
    house("plugin", "disable", NAME)
    house("plugin", "rm", NAME)


def test_a_log(house: House, tmp_path: Path) -> None:
    identity = make(house, tmp_path / "plugin")
    flags = ("--network", "none", "--log-driver", NAME, "--name", "speaker")
    house("run", "-d", *flags, "busybox", "sh", "-c", "echo spoken; exec sleep 600")
    container = house("inspect", "-f", "{{.Id}}", "speaker")
    log = inside(house, identity, f"state/logs/{container}")
    eventually("the plugin has the line", lambda: "spoken" in log.read_text())
    assert "is in use" in house("plugin", "disable", NAME, code=1)
    assert house("logs", "speaker") == "spoken"
    house("rm", "-f", "speaker")
    eventually("it is used no more", lambda: house("plugin", "disable", NAME))
    house("plugin", "rm", NAME)


def test_a_network(house: House, tmp_path: Path) -> None:
    interface = {"Types": ["docker.networkdriver/1.0"], "Socket": "shelf.sock"}
    identity = make(house, tmp_path / "plugin", Interface=interface)
    house("network", "create", "-d", f"{NAME}:latest", "wire")
    assert json.loads(house("network", "inspect", "wire"))[0]["Driver"] == f"{NAME}:latest"
    assert f"{NAME}:latest" in house("info", "-f", "{{.Plugins.Network}}")
    assert "is in use" in house("plugin", "disable", NAME, code=1)
    house("run", "--rm", "--network", "wire", "busybox", "true")
    lines = inside(house, identity, "state/asked").read_text().splitlines()
    asked = [json.loads(line)[0].removeprefix("NetworkDriver.") for line in lines]
    for method in ("GetCapabilities", "CreateNetwork", "CreateEndpoint", "Join", "Leave", "DeleteEndpoint"):
        assert method in asked, asked
    house("network", "rm", "wire")
    house("plugin", "disable", NAME)
    house("plugin", "rm", NAME)


def asked_of(house: House, identity: str, part: str) -> list[str]:
    """What a plugin was asked so far, of one of its parts."""
    lines = inside(house, identity, "state/asked").read_text().splitlines()
    methods = [json.loads(line)[0].partition(".") for line in lines]
    return [verb for kind, _, verb in methods if kind == part]


def test_addresses(house: House, tmp_path: Path) -> None:
    interface = {"Types": ["docker.ipamdriver/1.0"], "Socket": "shelf.sock"}
    identity = make(house, tmp_path / "plugin", Interface=interface)
    house("network", "create", "--ipam-driver", f"{NAME}:latest", "wire")
    ipam = json.loads(house("network", "inspect", "wire"))[0]["IPAM"]
    assert ipam["Driver"] == f"{NAME}:latest"
    assert [one["Subnet"] for one in ipam["Config"]] == ["10.233.7.0/24"]
    house("run", "-d", "--name", "reader", "--network", "wire", "busybox", "sleep", "600")
    shown = json.loads(house("inspect", "reader"))[0]["NetworkSettings"]["Networks"]["wire"]
    assert shown["IPAddress"].startswith("10.233.7.7"), "one of those that it gives"
    assert shown["IPAddress"] in house("exec", "reader", "ip", "-4", "address")
    if house.ours:  # dockerd counts those that have a pool of the plugin's as no users
        assert f"plugin {NAME}:latest is in use" in house("plugin", "disable", NAME, code=1)
    house("rm", "-f", "reader")
    house("network", "rm", "wire")
    told = asked_of(house, identity, "IpamDriver")
    for verb in ("GetDefaultAddressSpaces", "RequestPool", "RequestAddress", "ReleaseAddress", "ReleasePool"):
        assert verb in told, told
    assert told.count("RequestAddress") == told.count("ReleaseAddress") and told[-1] == "ReleasePool"
    house("plugin", "disable", NAME)
    house("plugin", "rm", NAME)


COLLECTOR = {"Types": ["docker.metricscollector/1.0"], "Socket": "shelf.sock"}


def test_one_that_collects_metrics(house: House, tmp_path: Path) -> None:
    identity = make(house, tmp_path / "plugin", Interface=COLLECTOR)
    head, _, figures = inside(house, identity, "state/figures").read_bytes().decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 ")
    assert "# TYPE engine_daemon_container_states_containers gauge" in figures
    assert asked_of(house, identity, "MetricsCollector") == ["StartMetrics"]
    house("plugin", "disable", NAME)
    assert house.ask("GET", f"/plugins/{NAME}/json")[1]["Enabled"] is False
    house("plugin", "rm", NAME)


def test_collectors_are_told_of_each_engine(teud: House, tmp_path: Path) -> None:
    """It outlives the engine, whose socket is another one then, at the same place."""
    identity = make(teud, tmp_path / "plugin", Interface=COLLECTOR)
    figures = inside(teud, identity, "state/figures")
    process = process_of_plugin()
    figures.unlink()
    kill("teud")
    assert teud.ask("GET", "/version")[0] == 200
    eventually("the next engine's figures are collected", figures.exists)
    figures.unlink()
    whole.call("systemctl", "restart", "teud")
    assert teud.ask("GET", "/version")[0] == 200
    eventually("and those of the next", figures.exists)
    told = asked_of(teud, identity, "MetricsCollector")
    assert told == ["StartMetrics", "StartMetrics", "StopMetrics", "StartMetrics"]
    assert process_of_plugin() == process
    teud("plugin", "rm", "-f", NAME)


def test_links_that_a_plugin_makes_later(teud: House, tmp_path: Path) -> None:
    """Where a volume was is a link by the time of the next container: it leads among the plugin's own files."""
    identity = make(teud, tmp_path / "plugin", PropagatedMount="")
    run = ("run", "--rm", "--network", "none", "-v", "books:/books", "busybox", "ls", "/books")
    teud("volume", "create", "-d", NAME, "books")
    teud("run", "-d", "--name", "reader", "--network", "none", "-v", "books:/b", "busybox", "sleep", "600")
    place = inside(teud, identity, "mnt/volumes/books")
    (place / "mine").touch()
    assert teud(*run) == "mine"
    place.rename(place.with_name("moved"))
    place.symlink_to("/etc")
    listed = teud(*run).split()
    assert Path("/etc/passwd").exists() and "passwd" not in listed, listed
    assert "resolv.conf" in listed, "it is the plugin's"
    teud("rm", "-f", "reader")
    place.unlink()
    place.with_name("moved").rename(place)
    teud("volume", "rm", "books")
    teud("plugin", "rm", "-f", NAME)


def test_one_that_does_not_do_what_is_asked(house: House, tmp_path: Path) -> None:
    make(house, tmp_path / "plugin", Interface={"Types": ["docker.authz/1.0"], "Socket": "shelf.sock"})
    said = house("volume", "create", "-d", NAME, "books", code=1)
    assert 'plugin does not provide "volumedriver" capability' in said
    house("plugin", "rm", "-f", NAME)


def test_one_that_ends_is_started_again(house: House, tmp_path: Path) -> None:
    identity = make(house, tmp_path / "plugin")
    place = "/run/teu/engine/plugins" if house.ours else "/run/docker/plugins"
    listening = str(Path(place, identity, "shelf.sock"))
    asked = inside(house, identity, "state/environment")
    asked.unlink()
    subprocess.run(["curl", "-s", "--unix-socket", listening, "http://x/Ends.Now", "-d", "{}"], check=False)
    eventually("it is started again", asked.exists)
    eventually("a volume can be made", lambda: house.ask("POST", "/volumes/create", BOOKS)[0] == 201)
    house("volume", "rm", "books")
    house("plugin", "rm", "-f", NAME)


BOOKS = {"Name": "books", "Driver": NAME}


def test_events(house: House, tmp_path: Path) -> None:
    begin = time.time()
    with peers.registry() as registry:
        remote = f"{registry.address}/shelf:1"
        make(house, tmp_path / "plugin", remote)
        house("plugin", "push", remote)
        house("plugin", "disable", remote)
        house("plugin", "rm", remote)
        house("plugin", "install", "--grant-all-permissions", "--alias", "short", remote, "COLOUR=red")
        house("plugin", "rm", "-f", "short")
        end = time.time() + 1
        told = house(
            "events", "--since", str(begin), "--until", str(end), "--filter", "type=plugin", "--format", "json"
        )
        events = [json.loads(line) for line in told.splitlines()]
        found = [(one["Action"], plain(one["Actor"]["ID"]), one["Actor"]["Attributes"]["name"]) for one in events]
        assert found == [
            ("create", "ID", remote),
            ("enable", "ID", remote),
            ("disable", "ID", remote),
            ("remove", "ID", remote),
            ("pull", remote, "short:latest"),
            ("enable", "ID", "short:latest"),
            ("remove", "ID", "short"),
        ]


def test_our_client_asks_before_it_installs(teud: House, tmp_path: Path) -> None:
    def teu(*argv: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(["teu", *argv], capture_output=True, text=True, input=stdin, timeout=100, check=False)
        assert done.returncode == code, (argv, done.stdout, done.stderr)
        return done.stdout + done.stderr

    with peers.registry() as registry:
        remote = f"{registry.address}/shelf:1"
        teu("plugin", "create", remote, str(context(tmp_path / "plugin")))
        teu("plugin", "push", remote)
        teu("plugin", "rm", remote)
        said = teu("plugin", "install", remote, stdin="n\n", code=1)
        assert " - network: [host]" in said and " - capabilities: [CAP_SYS_ADMIN]" in said
        assert "Do you grant the above permissions?" in said
        assert teu("plugin", "ls", "-q") == ""
        teu("plugin", "install", "--alias", "mine", "--disable", remote, "COLOUR=red", stdin="y\n")
        assert "false" in teu("plugin", "ls")
        teu("plugin", "enable", "mine")
        assert environment(teud)["env"]["COLOUR"] == "red"
        teu("plugin", "disable", "mine")
        teu("plugin", "upgrade", "--grant-all-permissions", "mine", remote)
        teu("plugin", "set", "mine", "COLOUR=green")
        teu("plugin", "enable", "mine")
        assert environment(teud)["env"]["COLOUR"] == "green"
        teu("plugin", "disable", "-f", "mine")
        teu("plugin", "rm", "mine")


def process_of_plugin() -> int:
    """The id of the one that there is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"/opt/plugin.py" in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    (process,) = found
    return process


def kill(service: str) -> None:
    whole.call("systemctl", "kill", "-s", "KILL", service)


def test_it_outlives_the_daemons(teud: House, tmp_path: Path) -> None:
    identity = make(teud, tmp_path / "plugin")
    teud(
        "run",
        "-d",
        "--name",
        "reader",
        "--network",
        "none",
        "-v",
        "books:/b",
        "--volume-driver",
        NAME,
        "busybox",
        "top",
    )
    process = process_of_plugin()
    for service in ("teud", "teu-containerd", "teud"):
        kill(service)
        teud("exec", "reader", "touch", "/b/file")
        assert json.loads(teud("plugin", "inspect", NAME))[0]["Enabled"] is True
        assert Path(f"/proc/{process}").exists(), "the plugin runs on"
        assert "is in use" in teud("plugin", "disable", NAME, code=1)
        assert teud.ask("GET", "/volumes/books")[1]["Status"] == {"shelf": "oak"}
    # Killed with both daemons, it is started again.
    kill("teud")
    kill("teu-containerd")
    os.kill(process, signal.SIGKILL)
    eventually("it answers", lambda: teud.ask("GET", "/volumes/books")[1].get("Status") == {"shelf": "oak"})
    teud("rm", "-f", "reader")
    teud("volume", "rm", "-f", "books")
    kill("teud")
    teud("plugin", "rm", "-f", NAME)
    assert not (PLUGINS / identity).exists()


def test_killed_while_plugins_come_and_go(teud: House, tmp_path: Path) -> None:
    """Whatever is interrupted, nothing of it stays, and what was acknowledged is there."""
    folder = context(tmp_path / "plugin")
    kept = 0
    for number in range(10):
        name = f"house/number{number}"
        create = subprocess.Popen([*teud.client, "plugin", "create", name, str(folder)], stderr=subprocess.PIPE)
        time.sleep(0.05 * number)
        kill(("teud", "teu-containerd")[number % 2])
        _, error = create.communicate(timeout=100)
        there = teud.ask("GET", f"/plugins/{name}/json")[0] == 200
        assert there or create.returncode, error
        if there and number % 3 == 0:
            enable = subprocess.Popen([*teud.client, "plugin", "enable", name], stderr=subprocess.PIPE)
            time.sleep(0.1)
            kill("teud")
            enable.communicate(timeout=100)
            assert teud.ask("GET", f"/plugins/{name}/json")[0] == 200
        kept += there
        if there:
            teud("plugin", "rm", "-f", name)
    print(f"{kept} of 10 were made")
    # The sweep looks for what was left half made soon after the start.
    eventually("nothing is left", quietly_nothing_left, timeout=90)


def quietly_nothing_left() -> bool:
    with contextlib.suppress(AssertionError):
        return nothing_left()
    return False


SETTINGS = Path("/etc/teu/teud.yaml.d/test-plugins.yaml")


def test_one_that_authorizes(teud: House, tmp_path: Path) -> None:
    make(teud, tmp_path / "plugin", Interface={"Types": ["docker.authz/1.0"], "Socket": "shelf.sock"})
    SETTINGS.parent.mkdir(exist_ok=True)
    SETTINGS.write_text(f"authorization-plugins: [{NAME}]\n")
    try:
        whole.call("systemctl", "restart", "teud")
        assert teud.ask("GET", "/volumes/forbidden") == (
            403,
            {"message": f"authorization denied by plugin {NAME}: not that one"},
        )
        assert teud.ask("GET", "/volumes/books")[0] == 404
        kill("teud")
        assert teud.ask("GET", "/volumes/forbidden")[0] == 403, "also by an engine that comes after"
        assert teud.ask("POST", f"/plugins/{NAME}/disable") == (200, None), "it has allowed that"
        assert teud.ask("GET", "/volumes/forbidden")[0] == 404
        assert teud.ask("POST", f"/plugins/{NAME}/enable?timeout=0") == (200, None)
        assert teud.ask("GET", "/volumes/forbidden")[0] == 403
    finally:
        SETTINGS.unlink()
        whole.call("systemctl", "restart", "teud")


def test_it_is_started_before_containers_that_run_again(teud: House, tmp_path: Path) -> None:
    """As after a boot: nothing runs, and the engine begins."""
    make(teud, tmp_path / "plugin")
    flags = (
        "--restart",
        "always",
        "--network",
        "none",
        "-v",
        "books:/b",
        "--volume-driver",
        NAME,
        "--log-driver",
        NAME,
    )
    teud("run", "-d", "--name", "reader", *flags, "busybox", "sh", "-c", "echo spoken; exec sleep 600")
    assert Path("/var/lib/teu/engine/starts-at-boot").exists()
    whole.call("systemctl", "stop", "teud.socket", "teud")
    whole.call("systemctl", "stop", "teu.slice")
    with pytest.raises(ValueError):
        process_of_plugin()
    whole.call("systemctl", "start", "teud.socket", "teud")
    eventually("the container runs again", lambda: teud("inspect", "-f", "{{.State.Running}}", "reader") == "true", 60)
    assert teud("exec", "reader", "ls", "/b") == ""
    teud("rm", "-f", "reader")
    teud("volume", "rm", "books")
