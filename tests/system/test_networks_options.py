# SPDX-License-Identifier: Apache-2.0
"""Options of networks with real containers, beside Debian's dockerd: what a user says in the same words does the same.

What docker 26 does not know (gateway modes, names and settings of interfaces, priorities) is shown on teud alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import docker_words
import images
import peers
import pytest
import whole
from whole import eventually, out, teu

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

SLEEP = ("sleep", "600")
BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
QUIET = {**os.environ, "DOCKER_CLI_HINTS": "false"}
TEUD = ("--config", "/run/no-such-configuration", "-H", "unix:///run/teu/teud.sock")


class House:
    """A client and its daemon. `number` tells the subnets of the two apart."""

    def __init__(self, name: str, number: int, client: list[str]) -> None:
        self.name, self.number, self.client = name, number, client

    def __call__(self, *argv: str, check: bool = True, **more: Any) -> str:
        done = self.ask(*argv, **more)
        assert not check or done.returncode == 0, (self.name, argv, done.stdout, done.stderr)
        return (done.stdout if check else done.stdout + done.stderr).strip()

    def ask(self, *argv: str, cwd: str = "/tmp", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.client, *argv],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**QUIET, **(env or {})},
            cwd=cwd,
        )

    def run(self, name: str, *flags: str, command: tuple[str, ...] = SLEEP) -> str:
        return self("run", "-d", "--name", name, *flags, "busybox", *command)

    def inside(self, name: str, script: str) -> str:
        return self("exec", name, "sh", "-c", script, check=False)

    def shown(self, name: str, template: str) -> Any:
        return json.loads(self("inspect", "-f", "{{json " + template + "}}", name))

    def address(self, name: str, network: str) -> str:
        return str(self.shown(name, f'(index .NetworkSettings.Networks "{network}").IPAddress'))

    def clear(self) -> None:
        if names := self("ps", "-aq").split():
            self("rm", "-f", "-v", *names, check=False)
        for name in self("network", "ls", "-q", "-f", "type=custom").split():
            self("network", "rm", name)


@pytest.fixture(scope="module")
def dockerd() -> Iterator[House]:
    with peers.dockerd(network=True, options=("--userland-proxy=false",)) as daemon:
        daemon.load_busybox()
        yield House("dockerd", 2, daemon.client)


@pytest.fixture(scope="module")
def teud() -> House:
    images.need_busybox()
    return House("teud", 1, ["docker", *TEUD])


@pytest.fixture(params=["teud", "dockerd"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    found: House = request.getfixturevalue(request.param)
    found.clear()
    yield found
    found.clear()


@pytest.fixture
def both(teud: House, dockerd: House) -> Iterator[Callable[[Callable[[House], Any]], list[Any]]]:
    """The same done in each house, by turns."""
    for one in (teud, dockerd):
        one.clear()
    yield lambda what: [what(one) for one in (teud, dockerd)]
    for one in (teud, dockerd):
        one.clear()


# -- words: of good values and of bad ones ---------------------------------------------------------------

PORTS = """
80
80/udp
80/sctp
80/TCP
8080:80
8080:80/udp
8080-8082:80
8080-8082:80-82
8080-8082:80-82/udp
80-82
80-82/sctp
0:80
127.0.0.1:8080:80
127.0.0.1::80
127.0.0.1::80-81
127.0.0.1:8080-8082:80
[::1]:8080:80
[::]::80
::1:8080:80
8080:80-82
8080-8081:80-82
80-79
8082-8080:80
8080:
:80
8080:80/icmp
8080:80/
65536:80
8080:65536
x:80
8080:x
localhost:8080:80
1.2.3:8080:80
[1.2.3.4]:8080:80
127.0.0.1:8080:80:90
-80
80-
published=8080,target=80
published=8080-8081,target=80,protocol=udp
target=80
published=8080,target=80,protocol=icmp
published=8080,target
"""

EXPOSED = """
80
80/udp
80-82
80-82/sctp
82-80
x
80:80
80/x
"""

OPTIONS = """
network create -o com.docker.network.bridge.enable_icc=maybe front
network create -o com.docker.network.bridge.enable_ip_masquerade=2 front
network create -o com.docker.network.bridge.inhibit_ipv4=on front
network create -o com.docker.network.bridge.host_binding_ipv4=localhost front
network create -o com.docker.network.driver.mtu=x front
network create -o com.docker.network.driver.mtu=-1 front
network create -o com.docker.network.host_ipv4=x front
network create -o nokey front
network create --opt front
run --rm --link nobody busybox true
run --rm --link nobody:a:b:c busybox true
run --rm --link :a busybox true
run --rm --network host --link nobody busybox true
run --rm --network container:nobody --link nobody busybox true
run --rm --network-alias a busybox true
run --rm --network none -p 80:80 busybox true
run --rm --network host -p 80:80 busybox true
run --rm --mac-address 02:42:ac:11:00 busybox true
run --rm --link-local-ip 169.254.7.7.7 busybox true
run --rm --network name=bridge,gw-priority=x busybox true
run --rm --network name=bridge,driver-opt=x busybox true
run --rm --network name=bridge,nosuch=x busybox true
run --rm --network alias=x busybox true
create --name wanted busybox
network create front
network connect --ip 10.1.2.3 front wanted
network connect --ip nonsense front wanted
network connect --ip6 10.1.2.3 front wanted
network connect --link-local-ip x front wanted
network connect --link a:b:c front wanted
network connect --alias a bridge wanted
network connect front wanted
network connect front wanted
network connect front nobody
network connect nosuch wanted
network disconnect front wanted
network disconnect front wanted
network disconnect host wanted
network rm front
network rm front
rm wanted
rm --link nobody
rm --link nobody/x
"""


def words() -> list[str]:
    """Commands, each of which is given to both daemons, and to both clients."""
    lines = []
    for kind, forms in (("-p", PORTS), ("--expose", EXPOSED)):
        for form in forms.split():
            lines.append(f"create --name wanted {kind} {form} busybox true")
            lines.append(
                f"inspect -f '{{{{json .HostConfig.PortBindings}}}} {{{{json .Config.ExposedPorts}}}}' wanted # {form}"
            )
    return [*lines, *(line for line in OPTIONS.splitlines() if line)]


# Where two good answers differ, and why.
DIFFERENT = {
    "network create -o nokey front",  # teu shows the daemon's warning
    "network connect nosuch wanted",  # docker takes any name for a container that does not run
    # A protocol that there is not is refused.
    "create --name wanted --expose 80/x busybox true",
    "inspect -f '{{json .HostConfig.PortBindings}} {{json .Config.ExposedPorts}}' wanted # 80/x",
    # As with docker 29's client, which knows more than that of 26.
    "create --name wanted -p ::1:8080:80 busybox true",
    "inspect -f '{{json .HostConfig.PortBindings}} {{json .Config.ExposedPorts}}' wanted # ::1:8080:80",
    "run --rm --network host --link nobody busybox true",
    "run --rm --network container:nobody --link nobody busybox true",
    "run --rm --network name=bridge,gw-priority=x busybox true",
    "network create --opt front",
}


def answer(house: House, line: str) -> tuple[str, int]:
    done = house.ask(*shlex.split(line, comments=True))
    if line.startswith("inspect"):
        house.ask("rm", "-f", "wanted")
    text = re.sub(r"[0-9a-f]{64}", "ID", done.stdout + done.stderr)
    text = re.sub(r"\b(docker|teu)(?=[: ]|$)", "PROGRAM", text)
    if house.client[0] == "docker":
        text = docker_words.newest(text, shlex.split(line, comments=True))
    return text, done.returncode


@pytest.fixture(scope="module")
def said(teud: House, dockerd: House) -> dict[str, list[tuple[str, int]]]:
    own = House("teu", 1, ["teu"])
    for one in (teud, dockerd):
        one.clear()
    found: dict[str, list[tuple[str, int]]] = {line: [] for line in words()}
    for one in (dockerd, teud, own):
        for line, known in found.items():
            known.append(answer(one, line))
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("line", words())
def test_words(said: dict[str, list[tuple[str, int]]], line: str) -> None:
    theirs, docker, own = said[line]
    if line in DIFFERENT:
        return
    assert docker == theirs, "docker on teud"
    assert own == theirs, "teu on teud"


# -- published ports -------------------------------------------------------------------------------------


def served(port: int) -> bool:
    """At the host's own loopback."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return bool(answer.read() == b"served\n")
    except OSError:
        return False


def published(house: House, name: str) -> list[tuple[str, str]]:
    places = house.shown(name, '(index .NetworkSettings.Ports "80/tcp")') or []
    return sorted((place["HostIp"], place["HostPort"]) for place in places if ":" not in place["HostIp"])


def test_a_range_of_the_host(both: Callable[..., list[Any]]) -> None:
    """Each container gets the next one, and what is free again is taken first."""

    def play(house: House) -> Any:
        first = 18000 + 100 * house.number
        flags = ("-p", f"{first}-{first + 2}:80")
        for name in ("web1", "web2", "web3"):
            house.run(name, *flags, command=whole.SERVE)
        found = [published(house, name) for name in ("web1", "web2", "web3")]
        full = house.ask("run", "--rm", *flags, "busybox", "true")
        said = docker_words.newest(full.stderr.replace("docker", "PROGRAM"), ["run"])
        house("rm", "-f", "web2")
        house.run("web4", *flags, command=whole.SERVE)
        found.append(published(house, "web4"))
        eventually("it is served", lambda: served(first + 1))
        port = house("port", "web4")
        rows = house("ps", "--format", "{{.Names}} {{.Ports}}", "--filter", "name=web4")
        return [
            re.sub(r"18[12](0\d)", r"port\1", text)
            for text in (str(found), f"{full.returncode}", re.sub(r"endpoint .*?: ", "", said), port, rows)
        ]

    ours, theirs = both(play)
    assert ours == theirs
    assert "all ports are allocated" in ours[2]


def test_ranges_of_both(both: Callable[..., list[Any]]) -> None:
    def play(house: House) -> Any:
        first = 18000 + 100 * house.number
        house.run("one", "-p", f"127.0.0.1:{first}-{first + 9}:80-89", "-p", f"{first}-{first + 1}:53-54/udp", "-P")
        rows = house("ps", "--format", "{{.Ports}}")
        return re.sub(r"18[12](0\d)", r"port\1", rows)

    ours, theirs = both(play)
    assert ours == theirs
    assert "127.0.0.1:port09->89/tcp" in ours


def test_one_number_at_several_addresses() -> None:
    whole.run_detached("one", *SLEEP, flags=("-p", "127.0.0.1::80", "-p", "127.0.0.2::80", "-p", "127.0.0.3::80"))
    try:
        ports = json.loads(out("teu", "inspect", "-f", "{{json .NetworkSettings.Ports}}", "one"))["80/tcp"]
        assert len(ports) == 3 and len({place["HostPort"] for place in ports}) == 1
    finally:
        teu("rm", "-f", "one")


# -- neighbours, and bridges of others -------------------------------------------------------------------


@contextlib.contextmanager
def filtering(value: str) -> Iterator[None]:
    before = BRIDGE_NETFILTER.read_text() if BRIDGE_NETFILTER.exists() else ""
    if before:
        BRIDGE_NETFILTER.write_text(value)
    try:
        yield
    finally:
        if before:
            BRIDGE_NETFILTER.write_text(before)


@pytest.mark.parametrize("filtered", ["0", "1"])
def test_neighbours_that_may_not_talk(house: House, filtered: str) -> None:
    """Whether frames of bridges are filtered or not: docker turns that on where it needs it, teud does without."""
    with filtering(filtered):
        house("network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "apart")
        house.run("web", "--network", "apart", "-p", f"{18000 + house.number}:80", command=whole.SERVE)
        house.run("one", "--network", "apart")
        address = house.address("web", "apart")
        eventually("it listens", lambda: house.inside("web", "wget -qO- http://127.0.0.1/") == "served")
        assert "served" not in house.inside("one", f"timeout 2 wget -qO- http://{address}/")
        if house.name == "teud" and BRIDGE_NETFILTER.exists():
            assert BRIDGE_NETFILTER.read_text().strip() == filtered
        eventually("it is published", lambda: served(18000 + house.number))


def test_a_bridge_that_was_there_stays(house: House) -> None:
    name = f"mine{house.number}"
    whole.call("ip", "link", "add", name, "type", "bridge")
    try:
        for bridge, left in ((name, True), (f"made{house.number}", False)):
            house("network", "create", "-o", f"com.docker.network.bridge.name={bridge}", "front")
            house.run("one", "--network", "front")
            assert bridge in out("ip", "-o", "link", "show", "type", "bridge")
            house("rm", "-f", "one")
            house("network", "rm", "front")
            assert (bridge in out("ip", "-o", "link", "show", "type", "bridge")) is left
    finally:
        whole.call("ip", "link", "del", name)


def test_two_networks_of_one_bridge(both: Callable[..., list[Any]]) -> None:
    def play(house: House) -> int:
        option = f"com.docker.network.bridge.name=same{house.number}"
        house("network", "create", "-o", option, "one")
        return house.ask("network", "create", "-o", option, "two").returncode

    assert both(play) == [1, 1]


def test_interfaces_and_sizes(both: Callable[..., list[Any]]) -> None:
    def play(house: House) -> Any:
        house(
            *("network", "create", "-o", "com.docker.network.driver.mtu=1280"),
            *("-o", "com.docker.network.container_iface_prefix=lan", "front"),
        )
        house("network", "create", "back")
        house.run("one", "--network", "front", "--mac-address", "02:00:00:00:00:0a")
        house("network", "connect", "back", "one")
        shown = house.inside("one", "ip -o link | grep -v ' lo:'")
        return sorted(re.findall(r"\d+: (\w+)@.* mtu (\d+) .*ether (02:00\S*)?", shown))

    ours, theirs = both(play)
    assert ours == theirs == [("eth0", "1500", ""), ("lan0", "1280", "02:00:00:00:00:0a")]


# -- links -----------------------------------------------------------------------------------------------


def test_links_on_the_default_bridge(both: Callable[..., list[Any]]) -> None:
    """Names, environment, what is shown of them, and their end."""

    def play(house: House) -> Any:
        house.run(
            "db", "-e", "USER=me", "--expose", "80", "--expose", "5000-5002", "--expose", "53/udp", "-h", "host-db"
        )
        house.run("web", "--link", "db:my-store", "--link", "db", "-e", "MY_STORE_NAME=mine")
        address = house.address("db", "bridge")
        result = [
            sorted(house.inside("web", "env | grep -E '^(DB|MY_STORE)_'").split("\n")),
            sorted(line for line in house.inside("web", "cat /etc/hosts").split("\n") if "host-db" in line),
            sorted(house.shown("web", ".HostConfig.Links")),
            sorted(house("ps", "--no-trunc", "--format", "{{.Names}}", "--filter", "name=^/db$").split(",")),
            house("ps", "--format", "{{.Names}}", "--filter", "name=^/db$"),
            house.inside("web", "ping -c 1 -W 2 my-store | grep -c '1 packets received'"),
        ]
        # The other one comes again, with another address.
        house("stop", "-t", "0", "db")
        house.run("between")
        house("start", "db")
        again = house.address("db", "bridge")
        assert again != address
        hosts = house.inside("web", "cat /etc/hosts")
        result.append([again in hosts, address in hosts])
        result.append(house("rm", "--link", "/web/my-store"))
        result.append(house.shown("web", ".HostConfig.Links"))
        result.append(house.ask("rm", "--link", "web/my-store").stderr)
        house("stop", "-t", "0", "db", "web")
        result.append(house.ask("start", "web").stderr)
        result.append(house.ask("rm", "--link", "web").stderr)
        return json.loads(json.dumps(result).replace(again, "ADDRESS").replace(address, "ADDRESS"))

    ours, theirs = both(play)
    if docker_words.older():  # its first port is the lowest, and not the lowest of TCP
        theirs[0] = [re.sub(r"^(\w+_PORT)=udp://ADDRESS:53$", r"\1=tcp://ADDRESS:80", one) for one in theirs[0]]
    for one, other in zip(ours, theirs, strict=True):
        assert one == other


def test_links_where_neighbours_do_not_talk() -> None:
    """icc: false, on the default bridge: who has a link reaches what is exposed."""
    with settings("icc: false"):
        whole.serve("db", ("--expose", "80"))
        address = json.loads(out("teu", "inspect", "db"))[0]["NetworkSettings"]["IPAddress"]
        whole.run_detached("web", *SLEEP, flags=("--link", "db:store"))
        whole.run_detached("other", *SLEEP)
        asked = ("sh", "-c", f"timeout 3 wget -qO- http://{address}/; exit $?")
        eventually("the link leads there", lambda: teu("exec", "web", *asked, check=False).stdout == "served\n")
        assert teu("exec", "other", *asked, check=False).stdout == ""
        assert out("teu", "exec", "web", "wget", "-qO-", "http://store/") == "served"
        whole.call("systemctl", "restart", "teud")
        done = teu("exec", "web", *asked, check=False)
        assert done.stdout == "served\n", done
        teu("rm", "--link", "web/store")
        assert teu("exec", "web", *asked, check=False).stdout == ""


def test_links_on_a_network_of_users(both: Callable[..., list[Any]]) -> None:
    def play(house: House) -> Any:
        house("network", "create", "front")
        house("network", "create", "back")
        house.run("db", "--network", "front")
        house.run("web", "--network", "front", "--link", "db:store")
        house.run("other", "--network", "front")
        house("network", "connect", "back", "db")
        house("network", "connect", "--link", "db:rear", "back", "other")
        return [
            house.inside("web", "ping -c 1 -W 2 store | grep -c '1 packets received'"),
            "bad address" in house.inside("other", "ping -c 1 -W 2 store"),
            house.inside("other", "ping -c 1 -W 2 rear | grep -c '1 packets received'"),
            house.inside("web", "env | grep -c STORE"),
            house.shown("web", ".HostConfig.Links"),
            house.shown("web", ".NetworkSettings.Networks.front.Links"),
            house.shown("other", ".NetworkSettings.Networks.back.Links"),
        ]

    ours, theirs = both(play)
    assert ours == theirs
    assert ours[:4] == ["1", True, "1", "0"]


COMPOSE = """\
services:
  db:
    image: busybox
    command: sleep 600
  web:
    image: busybox
    command: sleep 600
    links: ["db:store", db]
    external_links: ["outside:far"]
    networks: [default, "{network}"]
    ports: ["{port}-{last}:80"]
    mac_address: 02:00:00:00:00:0b
    stop_grace_period: 0s
  old:
    image: busybox
    network_mode: bridge
    command: sleep 600
    external_links: ["outside:far"]
networks:
  "{network}": {{external: true}}
"""


@pytest.mark.needs("compose")
def test_links_of_compose(both: Callable[..., list[Any]], tmp_path: Path) -> None:
    def play(house: House) -> Any:
        folder = tmp_path / house.name
        folder.mkdir()
        port = 18000 + 100 * house.number
        house("network", "create", "shared")
        house.run("outside", "--network", "bridge")
        house("network", "connect", "shared", "outside")
        text = COMPOSE.format(network="shared", port=port, last=port + 3)
        (folder / "compose.yaml").write_text(text)
        compose = ("compose", "-p", "linked", "--progress=plain")
        done = house.ask(*compose, "up", "-d", cwd=str(folder))
        assert done.returncode == 0, (house.name, done.stderr)
        try:
            pings = [
                house.inside("linked-web-1", f"ping -c 1 -W 2 {name} | grep -c '1 packets received'")
                for name in ("db", "store", "far")
            ]
            pings.append(house.inside("linked-old-1", "ping -c 1 -W 2 far | grep -c '1 packets received'"))
            links = house.shown("linked-web-1", ".NetworkSettings.Networks.shared.Links")
            old = house.shown("linked-old-1", ".HostConfig.Links")
            (place,) = published(house, "linked-web-1")
            return pings, sorted(links or []), old, port <= int(place[1]) <= port + 3
        finally:
            house.ask(*compose, "down", "-t", "0", cwd=str(folder))

    ours, theirs = both(play)
    assert ours == theirs
    assert ours[0] == ["1", "1", "1", "1"]


def test_the_default_bridge_is_shown_as_dockers(both: Callable[[Callable[[House], Any]], list[Any]]) -> None:
    def shown(house: House) -> Any:
        (found,) = json.loads(house("network", "inspect", "bridge"))
        (config,) = found["IPAM"]["Config"]
        text = house("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
        assert text.strip() in [str(host) for host in ip_network(config["Subnet"]).hosts()][:5]
        found["IPAM"]["Config"] = sorted(config)
        found["Options"].pop("com.docker.network.bridge.name")
        del found["Id"], found["Created"]
        return found

    ours, theirs = both(shown)
    assert ours == theirs


# -- teud.yaml and daemon.json ---------------------------------------------------------------------------


@contextlib.contextmanager
def settings(text: str) -> Iterator[None]:
    """teud with these in a file of its own; nothing of them stays."""
    file = Path("/etc/teu/teud.yaml.d/networks-options.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    whole.remove_everything()
    teu("run", "--rm", "busybox", "true")  # the default bridge has a subnet from its first use on
    before = json.loads(out("teu", "network", "inspect", "-f", "{{json .IPAM.Config}}", "bridge"))[0]
    file.write_text(text)
    try:
        whole.call("systemctl", "restart", "teud")
        yield
    finally:
        whole.remove_everything()
        for name in out("teu", "network", "ls", "-q", "-f", "type=custom").split():
            teu("network", "rm", name)
        if "bip" in text:  # what no file says stays as it was last
            file.write_text(f"bip: {before['Gateway']}/{before['Subnet'].partition('/')[2]}\n")
            whole.call("systemctl", "restart", "teud")
        file.unlink()
        whole.call("systemctl", "restart", "teud")


DEFAULTS = {
    "bip": "10.9N.0.5/24",
    "fixed-cidr": "10.9N.0.128/25",
    "default-gateway": "10.9N.0.254",
    "mtu": 1400,
    "ip": "127.0.0.1",
    "icc": False,
    "ip-masq": False,
    "default-address-pools": [{"base": "10.20N.0.0/16", "size": 24}],
    "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1280"}},
}


@pytest.mark.timeout(300)
def test_settings_of_the_daemon(teud: House) -> None:
    """The same keys, given to each daemon in its file, make the same networks."""

    def play(house: House) -> Any:
        house.run("one", "-p", f"{18000 + house.number}:80")
        house("network", "create", "front")
        house("network", "create", "-o", "com.docker.network.driver.mtu=1300", "--subnet", "10.250.0.0/24", "own")
        house.run("two", "--network", "front")
        house.run("three", "--network", "own")
        result = [
            house.address("one", "bridge"),
            house.inside("one", "ip route | grep default"),
            house.shown("one", '(index .NetworkSettings.Ports "80/tcp")'),
            *(house.inside(name, "cat /sys/class/net/eth0/mtu") for name in ("one", "two", "three")),
            json.loads(house("network", "inspect", "-f", "{{json .IPAM.Config}}", "front")),
            json.loads(house("network", "inspect", "-f", "{{json .Options}}", "front")),
            json.loads(house("network", "inspect", "-f", "{{json .Options}}", "own")),
        ]
        shown = json.loads(house("network", "inspect", "bridge"))[0]
        options = {
            key: value for key, value in shown["Options"].items() if not key.endswith((".name", "default_bridge"))
        }
        text = json.dumps([*result, shown["IPAM"]["Config"], options], sort_keys=True)
        house.clear()
        return json.loads(
            text.replace(f"9{house.number}.", "9N.")
            .replace(f"20{house.number}.", "20N.")
            .replace(str(18000 + house.number), "PORT")
        )

    def numbered(house: House) -> str:
        return json.dumps(DEFAULTS).replace("N.", f"{house.number}.")

    with settings(numbered(teud)):
        ours = play(teud)
    config = json.loads(numbered(House("dockerd", 2, [])))
    with peers.dockerd(network=True, config=config, options=("--userland-proxy=false",)) as daemon:
        daemon.load_busybox()
        theirs = play(House("dockerd", 2, daemon.client))
    for one, other in zip(ours, theirs, strict=True):
        assert one == other


# -- what docker 26 does not know ------------------------------------------------------------------------


@pytest.fixture
def far() -> Iterator[Callable[[str], str]]:
    """Another machine, which knows the ways to the containers: what it gets from an address, "" for nothing."""
    whole.remove_everything()
    try:
        for line in (
            "netns add far",
            "link add near0 type veth peer name far0 netns far",
            "addr add 203.0.113.1/24 dev near0",
            "addr add 203.0.113.7/24 dev near0",
            "addr add 2001:db8:113::1/64 dev near0 nodad",
            "link set near0 up",
            "-n far addr add 203.0.113.2/24 dev far0",
            "-n far addr add 2001:db8:113::2/64 dev far0 nodad",
            "-n far link set far0 up",
            "-n far route add default via 203.0.113.1",
            "-n far -6 route add default via 2001:db8:113::1",
        ):
            whole.call("ip", *line.split())

        def get(address: str) -> str:
            argv = ("ip", "netns", "exec", "far", "busybox", "timeout", "2", "wget", "-qO-", f"http://{address}/")
            return whole.call(*argv, check=False).stdout.strip()

        yield get
    finally:
        whole.remove_everything()
        for name in out("teu", "network", "ls", "-q", "-f", "type=custom").split():
            teu("network", "rm", name)
        whole.call("ip", "link", "del", "near0", check=False)  # else it goes some time after the namespace
        whole.call("ip", "netns", "del", "far", check=False)


MODE = "com.docker.network.bridge.gateway_mode_ipv"
SUBNETS = ("--ipv6", "--subnet", "10.97.0.0/24", "--subnet", "fd00:97::/64")


def test_modes_of_a_gateway(far: Callable[[str], str]) -> None:
    teu("network", "create", *SUBNETS, "-o", f"{MODE}4=routed", "-o", f"{MODE}6=nat-unprotected", "front")
    whole.serve("web", ("--network", "front", "-p", "8088:80"))
    whole.serve("shut", ("--network", "front"))
    eventually("a routed port is open", lambda: far("10.97.0.2") == "served")
    assert far("10.97.0.3") == ""  # it is not published
    assert far("203.0.113.1:8088") == ""  # nor is it the host's
    assert eventually("an unprotected one is open", lambda: far("[fd00:97::3]") == "served")
    assert far("[2001:db8:113::1]:8088") == "served"
    ports = json.loads(out("teu", "inspect", "-f", "{{json .NetworkSettings.Ports}}", "web"))["80/tcp"]
    assert ports == [{"HostIp": "0.0.0.0", "HostPort": ""}, {"HostIp": "::", "HostPort": "8088"}]
    whole.call("systemctl", "restart", "teud")
    assert far("10.97.0.2") == "served"
    assert far("10.97.0.3") == ""


def test_an_isolated_network(far: Callable[[str], str]) -> None:
    done = teu("network", "create", "-o", f"{MODE}4=isolated", "front", check=False)
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "Error response from daemon: gateway mode 'isolated' can only be used for an internal network",
    )
    done = teu("network", "create", "-o", f"{MODE}4=closed", "front", check=False)
    assert f"failed to parse {MODE}4 value: closed (unknown gateway mode closed" in done.stderr
    teu("network", "create", *SUBNETS, "--internal", "-o", f"{MODE}4=isolated", "-o", f"{MODE}6=isolated", "front")
    whole.serve("web", ("--network", "front"))
    assert out("teu", "run", "--rm", "--network", "front", "busybox", "wget", "-qO-", "http://web/") == "served"
    assert "inet " not in out("ip", "addr", "show", "type", "bridge", "scope", "global", "to", "10.97.0.0/24")
    assert far("10.97.0.2") == ""


def test_who_is_trusted_and_by_which_address_they_go_out(far: Callable[[str], str]) -> None:
    options = (
        *("-o", "com.docker.network.bridge.trusted_host_interfaces=near0"),
        *("-o", "com.docker.network.host_ipv4=203.0.113.7"),
    )
    teu("network", "create", *SUBNETS, *options, "front")
    whole.serve("web", ("--network", "front", "-p", "8088:80"))
    whole.serve("shut", ("--network", "front"))
    for address in ("10.97.0.2", "[fd00:97::2]", "203.0.113.1:8088"):
        eventually(f"{address} is served", lambda address=address: far(address) == "served")
    assert far("10.97.0.3") == ""
    code = "import socket; s = socket.create_server(('', 7000)); print(flush=True); print(s.accept()[1][0])"
    argv = ["ip", "netns", "exec", "far", "/usr/bin/python3", "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout and server.stdout.readline() == "\n"
        teu("exec", "web", "sh", "-c", "echo hello | nc -w 2 203.0.113.2 7000", check=False)
        assert server.stdout.readline() == "203.0.113.7\n"


def test_names_settings_and_priorities_of_interfaces(far: Callable[[str], str]) -> None:
    """By each client: docker's writes options in lower case."""
    for name in ("a", "b", "c"):
        teu("network", "create", name)
    sysctls = (
        "com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1,net.ipv4.conf.IFNAME.forwarding=0"
    )
    name = "com.docker.network.endpoint.ifname"
    for client in (("teu",), ("docker", *TEUD)):
        flags = ("--network", "name=a", "--network", f"name=b,driver-opt={name}=eth0,mac-address=02:00:00:00:00:0c")
        whole.call(*client, "run", "-d", "--name", "one", *flags, "busybox", *SLEEP)
        options = ("--driver-opt", f"{name}=out7", "--driver-opt", f'"{sysctls}"')
        if client[0] == "teu":
            options += ("--gw-priority", "5")
        whole.call(*client, "network", "connect", *options, "c", "one")
        shown = out("teu", "exec", "one", "ip", "-o", "link")
        assert re.findall(r"\d+: (\w+)@", shown) == ["eth1", "eth0", "out7"]
        assert "02:00:00:00:00:0c" in re.search(r"eth0@.*", shown)[0]  # type: ignore[index]
        leads = re.search(r"default via \S+ dev (\S+)", out("teu", "exec", "one", "ip", "route"))
        assert leads and leads[1] == ("out7" if client[0] == "teu" else "eth1")
        assert out("teu", "exec", "one", "cat", "/proc/sys/net/ipv4/conf/out7/log_martians") == "1"
        teu("rm", "-f", "one")
    done = teu("network", "connect", "--driver-opt", f"{name}=a/b", "a", "one", check=False)
    assert done.returncode == 1


def test_families_that_are_asked_for() -> None:
    """--ipv4=false, and what default-network-opts says of those who say nothing."""
    done = teu("network", "create", "--ipv4=false", "front", check=False)
    assert (done.returncode, "IPv4 or IPv6 must be enabled" in done.stderr) == (1, True)
    with settings("default-network-opts: {bridge: {com.docker.network.enable_ipv6: 'true'}}"):
        for flags, families in (
            ((), [True, True]),
            (("--ipv6=false",), [True, False]),
            (("--ipv4=false",), [False, True]),
        ):
            teu("network", "create", *flags, "front")
            found = json.loads(out("teu", "network", "inspect", "front"))[0]
            assert [found["EnableIPv4"], found["EnableIPv6"]] == families
            teu("network", "rm", "front")
