# SPDX-License-Identifier: Apache-2.0
"""What happens to the networks of running containers: they come and go, the daemon is started anew, somebody empties
the ruleset; and what a network keeps apart."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import pytest
import whole
from images import api
from whole import eventually, out, teu

SLEEP = ("sleep", "600")


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    images.need_busybox()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    whole.remove_everything()
    yield
    whole.remove_everything()
    for name in out("teu", "network", "ls", "-q", "-f", "type=custom").split():
        teu("network", "rm", name)
    eventually("no table is left", lambda: "table inet teu {" not in out("nft", "list", "ruleset"))
    eventually("no pair is left", lambda: not re.findall(r"teu[0-9a-f]{11,12}@", out("ip", "-o", "link")))


def networks(*names: str, **flags: tuple[str, ...]) -> None:
    for name in names:
        teu("network", "create", *flags.get(name, ()), name)


def inside(name: str, *command: str) -> str:
    return out("teu", "exec", name, *command)


def route(name: str) -> str:
    """Interface of the default route, "" without one."""
    found = re.search(r"default via \S+ dev (\S+)", inside(name, "ip", "route"))
    return found[1] if found else ""


def settings(name: str) -> dict[str, Any]:
    found: dict[str, Any] = api("GET", f"/containers/{name}/json")[1]["NetworkSettings"]
    return found


def served(port: int = 8088) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            data = b""
            while part := sock.recv(4096):
                data += part
            return b"served" in data
    except OSError:
        return False


def answers(port: int = 8088) -> None:
    eventually(f"port {port} is served", lambda: served(port), timeout=15)


# -- the way out and the published ports -----------------------------------------------------------------


def test_an_internal_network_has_neither_route_nor_ports() -> None:
    """As compose gives networks: the first by name is internal."""
    networks("back", "front", back=("--internal",))
    endpoints = {"back": {}, "front": {}}
    status, answer = api(
        "POST",
        "/containers/create?name=web",
        {
            "Image": "busybox",
            "Cmd": list(whole.SERVE),
            "ExposedPorts": {"80/tcp": {}},
            "HostConfig": {"NetworkMode": "back", "PortBindings": {"80/tcp": [{"HostPort": "8088"}]}},
            "NetworkingConfig": {"EndpointsConfig": endpoints},
        },
    )
    assert status == 201, answer
    teu("start", "web")
    answers()
    assert route("web") == "eth1"
    assert settings("web")["Ports"] == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8088"}]}


def test_the_way_out_follows_the_networks() -> None:
    networks("inn", "zeta", "alpha", inn=("--internal",))
    whole.serve("web", ("--network", "inn", "-p", "8088:80", "-p", "81"))
    assert (route("web"), settings("web")["Ports"]) == ("", {})
    teu("network", "connect", "zeta", "web")
    answers()
    assert route("web") == "eth1"
    # By name among those with a way out, as with docker.
    teu("network", "connect", "alpha", "web")
    answers()
    assert route("web") == "eth2"
    chosen = settings("web")["Ports"]["81/tcp"]
    whole.call("systemctl", "restart", "teud")
    answers()
    teu("network", "disconnect", "alpha", "web")
    answers()
    assert route("web") == "eth1"
    assert settings("web")["Ports"]["81/tcp"] == chosen
    teu("network", "disconnect", "zeta", "web")
    assert not served()
    assert (route("web"), settings("web")["Ports"]) == ("", {})
    teu("network", "connect", "alpha", "web")
    answers()
    # It starts again with what it has, not with what it was created with.
    teu("restart", "-t", "0", "web")
    answers()
    assert sorted(settings("web")["Networks"]) == ["alpha", "inn"]


def test_priority_of_the_way_out() -> None:
    networks("alpha", "zeta")
    whole.run_detached("one", *SLEEP, flags=("--network", "alpha"))
    assert api("POST", "/networks/zeta/connect", {"Container": "one", "EndpointConfig": {"GwPriority": 1}})[0] == 200
    assert route("one") == "eth1"
    teu("restart", "-t", "0", "one")
    assert route("one") == "eth1"


def test_a_disconnected_network_stays_so() -> None:
    networks("only")
    whole.run_detached("one", *SLEEP, flags=("--network", "only", "--restart", "always"))
    teu("network", "disconnect", "only", "one")
    assert inside("one", "ip", "-o", "link").count("\n") == 0
    os.kill(whole.main_pid("teud.service"), 9)
    eventually("the engine is back", lambda: teu("ps", check=False).returncode == 0)
    assert settings("one")["Networks"] == {}
    teu("restart", "-t", "0", "one")
    assert settings("one")["Networks"] == {}
    teu("network", "connect", "only", "one")
    assert route("one") == "eth0"
    teu("network", "disconnect", "only", "one")
    teu("network", "connect", "bridge", "one")
    assert settings("one")["IPAddress"]
    teu("network", "disconnect", "bridge", "one")
    assert settings("one")["IPAddress"] == ""


def test_many_networks() -> None:
    names = [f"n{number:02}" for number in range(18)]
    for number, name in enumerate(names):
        networks(name, **{name: ("--subnet", f"10.94.{number}.0/29")})
    whole.run_detached("one", *SLEEP, flags=("--network", names[0]))
    for name in names[1:]:
        teu("network", "connect", name, "one")
    assert len(re.findall(r"inet 10\.94\.\d+\.2/29", inside("one", "ip", "addr"))) == 18
    teu("network", "disconnect", names[0], "one")
    whole.call("systemctl", "restart", "teud")
    teu("network", "disconnect", names[17], "one")
    # What was not touched is still there, whatever came and went before it.
    assert len(re.findall(r"inet 10\.94\.\d+\.2/29", inside("one", "ip", "addr"))) == 16
    assert inside("one", "ping", "-c", "1", "-W", "2", "10.94.16.1")


# -- names -----------------------------------------------------------------------------------------------


def test_hosts_has_a_line_for_each_network() -> None:
    networks("n1", "n2")
    flags = ("--network", "n1", "--hostname", "foo.bar.com", "--add-host", "other:192.0.2.7")
    whole.run_detached("one", *SLEEP, flags=flags)
    teu("network", "connect", "n2", "one")
    teu("exec", "one", "sh", "-c", "printf '192.0.2.8\\tmine' >> /etc/hosts")
    addresses = {name: endpoint["IPAddress"] for name, endpoint in settings("one")["Networks"].items()}
    lines = inside("one", "cat", "/etc/hosts").splitlines()
    for name in ("n1", "n2"):
        assert f"{addresses[name]}\tfoo.bar.com foo" in lines
    teu("network", "disconnect", "n1", "one")
    lines = inside("one", "cat", "/etc/hosts").splitlines()
    assert not any(line.startswith(addresses["n1"]) for line in lines)
    assert f"{addresses['n2']}\tfoo.bar.com foo" in lines
    teu("network", "connect", "n1", "one")
    lines = inside("one", "cat", "/etc/hosts").splitlines()
    assert "192.0.2.8\tmine" in lines
    assert "192.0.2.7\tother" in lines


def test_names_of_a_network_that_came_later(dns_server: Server) -> None:
    networks("n1")
    Path("/etc/resolv.conf").write_text("nameserver 192.0.2.53\n")
    whole.run_detached("web", *SLEEP, flags=("--network", "n1"))
    for name in ("one", "own"):
        whole.run_detached(name, *SLEEP)
        assert "nameserver 192.0.2.53" in inside(name, "cat", "/etc/resolv.conf")
    teu("exec", "own", "sh", "-c", "echo '# mine' >> /etc/resolv.conf")
    for name in ("one", "own"):
        teu("network", "connect", "n1", name)
    assert "nameserver 127.0.0.11" in inside("one", "cat", "/etc/resolv.conf")
    assert "# mine" in inside("own", "cat", "/etc/resolv.conf")
    address = settings("web")["Networks"]["n1"]["IPAddress"]
    assert address in inside("one", "nslookup", "web")
    teu("network", "disconnect", "n1", "one")
    whole.call("systemctl", "restart", "teud")
    Path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    # The resolver is still in its resolv.conf, and asks the servers that the host has now.
    assert "192.0.2.99" in inside("one", "nslookup", "outside.example")


def test_links_are_names_for_one_container() -> None:
    networks("n1")
    whole.run_detached("db", *SLEEP, flags=("--network", "n1"))
    whole.run_detached("app", *SLEEP, flags=("--network", "n1", "--link", "db:store"))
    whole.run_detached("late", *SLEEP)
    teu("network", "connect", "--link", "db:late-store", "n1", "late")
    address = settings("db")["Networks"]["n1"]["IPAddress"]
    assert address in inside("app", "nslookup", "store")
    assert address in inside("late", "nslookup", "late-store")
    assert teu("exec", "db", "nslookup", "store", check=False).returncode
    done = teu("run", "--rm", "--link", "db:store", "busybox", "true", check=False)
    assert done.returncode == 125
    assert "Cannot link to /db, as it does not belong to the default network" in done.stderr


class Server(threading.Thread):
    """A server of names on the host's loopback. Everything is 192.0.2.99; `big` names have no room in a datagram;
    `slow` ones are not answered."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 53))
        self.tcp = socket.create_server(("127.0.0.1", 53))
        self.stopped = False
        for sock in (self.udp, self.tcp):
            sock.settimeout(0.1)
        self.other = threading.Thread(target=self.streams, daemon=True)
        self.asked: list[str] = []

    def reply(self, query: bytes, how: str) -> bytes | None:
        end = query.index(b"\0", 12) + 5
        question = query[12:end]
        kind = struct.unpack(">H", question[-4:-2])[0]
        self.asked.append(how)
        if b"slow" in question:
            return None
        count = 60 if b"big" in question else 1
        if kind != 1:
            count = 0
        elif count > 1 and how == "udp":
            return query[:2] + struct.pack(">HHHHH", 0x8380, 1, 0, 0, 0) + question
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([192, 0, 2, 99 + number]) for number in range(count)
        )
        return query[:2] + struct.pack(">HHHHH", 0x8180, 1, count, 0, 0) + question + records

    def run(self) -> None:
        self.other.start()
        while not self.stopped:
            with contextlib.suppress(TimeoutError):
                query, sender = self.udp.recvfrom(4096)
                if reply := self.reply(query, "udp"):
                    self.udp.sendto(reply, sender)

    def streams(self) -> None:
        while not self.stopped:
            with contextlib.suppress(TimeoutError):
                connection, _ = self.tcp.accept()
                with connection:
                    connection.settimeout(10)
                    size = struct.unpack(">H", connection.recv(2))[0]
                    if reply := self.reply(connection.recv(size), "tcp"):
                        connection.sendall(struct.pack(">H", len(reply)) + reply)

    def stop(self) -> None:
        self.stopped = True
        for thread in (self, self.other):
            thread.join()
        self.udp.close()
        self.tcp.close()


@pytest.fixture
def dns_server() -> Iterator[Server]:
    before = Path("/etc/resolv.conf").read_text()
    Path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    server = Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()
        Path("/etc/resolv.conf").write_text(before)


def nsenter(name: str, code: str) -> subprocess.Popen[str]:
    pid = str(api("GET", f"/containers/{name}/json")[1]["State"]["Pid"])
    argv = ["nsenter", "-n", "-t", pid, "/usr/bin/python3", "-c", code]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_a_container_cannot_take_the_resolver_from_others(dns_server: Server) -> None:
    networks("n1")
    for name in ("greedy", "other"):
        whole.run_detached(name, *SLEEP, flags=("--network", "n1"))
    # Silent connections, and questions that no server answers.
    code = """
import socket, struct
held = []
for _ in range(20):
    held.append(socket.create_connection(("127.0.0.11", 53)))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(300):
    query = struct.pack(">HHHHHH", number, 256, 1, 0, 0, 0) + b"\\4slow\\7example\\0\\0\\1\\0\\1"
    udp.sendto(query, ("127.0.0.11", 53))
print("held", flush=True)
input()
"""
    greedy = nsenter("greedy", code)
    try:
        assert greedy.stdout and greedy.stdin
        assert greedy.stdout.readline() == "held\n"
        for number in range(3):
            assert "192.0.2.99" in inside("other", "timeout", "20", "nslookup", f"outside{number}.example")
        assert "Name" in inside("other", "timeout", "20", "nslookup", "greedy")
    finally:
        greedy.kill()
        greedy.wait()


def test_long_answers_go_by_tcp(dns_server: Server) -> None:
    networks("n1")
    whole.run_detached("one", *SLEEP, flags=("--network", "n1"))
    code = """
import socket, struct
query = struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + b"\\3big\\7example\\0\\0\\1\\0\\1"
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(20)
udp.sendto(query, ("127.0.0.11", 53))
reply = udp.recv(65535)
tcp = socket.create_connection(("127.0.0.11", 53), 20)
tcp.sendall((struct.pack(">H", len(query)) + query) * 2)
data = b""
while len(data) < 2 * (2 + 29 + 60 * 16):
    data += tcp.recv(65535)
print(bool(reply[2] & 2), struct.unpack_from(">H", data, 2 + 6)[0])
"""
    asking = nsenter("one", code)
    assert asking.communicate(timeout=60)[0] == "True 60\n"
    assert "tcp" in dns_server.asked


def test_a_host_that_is_its_own_server_of_names(dns_server: Server) -> None:
    """The default bridge's containers cannot ask the host's loopback: the engine does it for them."""
    whole.run_detached("one", *SLEEP)
    assert "nameserver 127.0.0.11" in inside("one", "cat", "/etc/resolv.conf")
    assert "192.0.2.99" in inside("one", "nslookup", "outside.example")
    shown = out("teu", "run", "--rm", "--dns", "192.0.2.1", "busybox", "cat", "/etc/resolv.conf")
    assert shown == "nameserver 192.0.2.1"


# -- another container's network, and none ---------------------------------------------------------------


def test_another_containers_network_comes_with_its_name() -> None:
    networks("n1")
    whole.run_detached("first", *SLEEP, flags=("--network", "n1", "--hostname", "named"))
    script = "hostname; cat /etc/hostname; readlink /proc/self/ns/net"
    whole.run_detached("second", *SLEEP, flags=("--network", "container:first"))
    own = inside("first", "sh", "-c", script)
    assert own.startswith("named\nnamed\n")
    assert inside("second", "sh", "-c", script) == own
    # A third by the second, also after a new start of the engine.
    whole.call("systemctl", "restart", "teud")
    assert out("teu", "run", "--rm", "--network", "container:second", "busybox", "sh", "-c", script) == own
    none = whole.run_detached("none", *SLEEP, flags=("--network", "none"))
    assert none
    shared = inside("none", "readlink", "/proc/self/ns/net")
    assert shared != os.readlink("/proc/self/ns/net")
    argv = ("run", "--rm", "--network", "container:none", "busybox", "readlink", "/proc/self/ns/net")
    assert out("teu", *argv) == shared
    teu("network", "disconnect", "none", "none")
    teu("network", "connect", "n1", "none")
    assert route("none") == "eth0"


def test_a_network_that_is_disabled() -> None:
    body = {"Image": "busybox", "Cmd": list(SLEEP), "NetworkDisabled": True}
    assert api("POST", "/containers/create?name=alone", body)[0] == 201
    teu("start", "alone")
    assert [line.split(":")[1].strip() for line in inside("alone", "ip", "-o", "link").splitlines()] == ["lo"]
    assert "NetworkDisabled" in teu("network", "connect", "bridge", "alone", check=False).stderr


# -- addresses and interfaces ----------------------------------------------------------------------------


def test_addresses_of_others_are_not_given_out() -> None:
    networks("n1", n1=("--subnet", "10.93.0.0/24", "--aux-address", "a=10.93.0.2", "--aux-address", "b=10.93.0.4"))
    found = json.loads(out("teu", "network", "inspect", "n1"))[0]
    assert found["IPAM"]["Config"][0]["AuxiliaryAddresses"] == {"a": "10.93.0.2", "b": "10.93.0.4"}
    for name, address in (("one", "10.93.0.3"), ("two", "10.93.0.5")):
        whole.run_detached(name, *SLEEP, flags=("--network", "n1"))
        assert settings(name)["Networks"]["n1"]["IPAddress"] == address
    done = teu("run", "--rm", "--network", "n1", "--ip", "10.93.0.2", "busybox", "true", check=False)
    assert "Address already in use" in done.stderr
    whole.call("systemctl", "restart", "teud")
    done = teu("run", "--rm", "--network", "n1", "--ip", "10.93.0.4", "busybox", "true", check=False)
    assert "Address already in use" in done.stderr


def test_what_endpoints_may_ask_for() -> None:
    networks("n1", n1=("--subnet", "10.93.0.0/24", "-o", "com.docker.network.container_iface_prefix=net"))
    networks("n2")
    endpoint = {
        "MacAddress": "02-42-AC-00-00-77",
        "IPAMConfig": {"IPv4Address": "10.93.0.9", "LinkLocalIPs": ["169.254.7.7"]},
        "DriverOpts": {"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.log_martians=1"},
    }
    status, answer = api(
        "POST",
        "/containers/create?name=one",
        {
            "Image": "busybox",
            "Cmd": list(SLEEP),
            "HostConfig": {"NetworkMode": "n1"},
            "NetworkingConfig": {"EndpointsConfig": {"n1": endpoint}},
        },
    )
    assert status == 201, answer
    assert settings("one")["Networks"]["n1"]["MacAddress"] == "02:42:ac:00:00:77"
    teu("start", "one")
    shown = inside("one", "ip", "addr", "show", "net0")
    for text in ("02:42:ac:00:00:77", "inet 10.93.0.9/24", "inet 169.254.7.7/16"):
        assert text in shown
    assert inside("one", "cat", "/proc/sys/net/ipv4/conf/net0/log_martians") == "1"
    named = {"DriverOpts": {"com.docker.network.endpoint.ifname": "inner0"}}
    assert api("POST", "/networks/n2/connect", {"Container": "one", "EndpointConfig": named})[0] == 200
    assert "inet " in inside("one", "ip", "addr", "show", "inner0")
    hidden = {"WantedMac", "Veth", "Outward", "Outward6", "Named", "ResolverSum"}
    found = settings("one")
    assert not hidden & {*found, *found["Networks"]["n1"], *found["Networks"]["n2"]}


def test_a_bridge_of_somebody_else_is_spared() -> None:
    whole.call("ip", "link", "add", "mine0", "type", "bridge")
    try:
        for name in ("mine0", "made0"):
            networks(name, **{name: ("-o", f"com.docker.network.bridge.name={name}")})
            assert "eth0" in out("teu", "run", "--rm", "--network", name, "busybox", "ip", "-o", "link")
            assert "OwnBridge" not in out("teu", "network", "inspect", name)
            teu("network", "rm", name)
        links = out("ip", "-o", "link", "show", "type", "bridge")
        assert "mine0" in links
        assert "made0" not in links
    finally:
        whole.call("ip", "link", "del", "mine0")


BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def test_containers_that_may_not_talk() -> None:
    """enable_icc=false holds whether the host filters frames between a bridge's ports or not; the way out is open."""
    before = BRIDGE_NETFILTER.read_text() if BRIDGE_NETFILTER.exists() else ""
    networks("n1", "n2", n1=("-o", "com.docker.network.bridge.enable_icc=false"))

    def talks(network: str) -> bool:
        address = settings(f"web-{network}")["Networks"][network]["IPAddress"]
        wget = ("sh", "-c", f"timeout 2 wget -qO- http://{address}/; exit $?")
        return teu("exec", f"one-{network}", *wget, check=False).stdout == "served\n"

    for network in ("n1", "n2"):
        whole.serve(f"web-{network}", ("--network", network, "-p", "80"))
        whole.run_detached(f"one-{network}", *SLEEP, flags=("--network", network))
    try:
        for filtered in ("0", "1") if before else ("",):
            if filtered:
                BRIDGE_NETFILTER.write_text(filtered)
            eventually("neighbours talk", lambda: talks("n2"))
            assert not talks("n1")
            gateway = settings("one-n1")["Networks"]["n1"]["Gateway"]
            assert inside("one-n1", "ping", "-c", "1", "-W", "2", gateway)
            # What is published is for everybody.
            answers(int(settings("web-n1")["Ports"]["80/tcp"][0]["HostPort"]))
    finally:
        if before:
            BRIDGE_NETFILTER.write_text(before)


# -- the host's ruleset ----------------------------------------------------------------------------------


def test_an_emptied_ruleset_is_made_anew() -> None:
    whole.serve("web", ("-p", "8088:80"))
    answers()
    for argv in (("flush", "ruleset"), ("flush", "table", "inet", "teu"), ("delete", "table", "inet", "teu")):
        whole.call("nft", *argv)
        answers()
        eventually("the table is whole", lambda: "masquerade" in out("nft", "list", "ruleset"))
    # Beside operations of our own, too.
    for number in range(3):
        whole.call("nft", "flush", "ruleset")
        whole.serve(f"next{number}", ("-p", f"{8090 + number}:80"))
        answers(8090 + number)
        answers()
    whole.call("nft", "flush", "ruleset")
    teu("rm", "-f", "next0")
    answers()


@pytest.fixture
def not_forwarding() -> Iterator[None]:
    """A host that does not forward, between two others; as after a boot."""
    flag = Path("/proc/sys/net/ipv4/ip_forward")
    whole.call("nft", "delete", "table", "ip", "filter", check=False)
    before = flag.read_text()
    flag.write_text("0")
    try:
        for number, name in ((1, "left"), (2, "right")):
            for line in (
                f"netns add {name}",
                f"link add {name}0 type veth peer name far0 netns {name}",
                f"addr add 198.51.{number}.1/24 dev {name}0",
                f"link set {name}0 up",
                f"-n {name} addr add 198.51.{number}.2/24 dev far0",
                f"-n {name} link set far0 up",
                f"-n {name} route add default via 198.51.{number}.1",
            ):
                whole.call("ip", *line.split())
        yield
    finally:
        whole.remove_everything()
        for name in ("left", "right"):
            whole.call("ip", "netns", "del", name, check=False)
        whole.call("nft", "delete", "table", "ip", "filter", check=False)
        flag.write_text(before)


def test_forwarding_is_for_containers_alone(not_forwarding: None) -> None:
    """Where the engine turns it on, the host does not become everybody's router; as with docker."""

    def ping(address: str) -> bool:
        argv = ("ip", "netns", "exec", "left", "ping", "-c", "1", "-W", "1", address)
        return whole.call(*argv, check=False).returncode == 0

    whole.serve("web", ("-p", "8088:80"))
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    eventually("the host is reached", lambda: ping("198.51.1.1"))
    assert not ping("198.51.2.2")
    # The containers' own ways are open: in and out.
    argv = ("ip", "netns", "exec", "left", "busybox", "timeout", "3", "wget", "-qO-", "http://198.51.1.1:8088/")
    eventually("the far machine is served", lambda: whole.call(*argv, check=False).stdout == "served\n")
    assert inside("web", "ping", "-c", "1", "-W", "2", "198.51.2.2")
    # Somebody empties the ruleset: that is closed again, too.
    whole.call("nft", "flush", "ruleset")
    answers()
    eventually("it is closed again", lambda: "policy drop" in out("nft", "list", "ruleset"))
    assert not ping("198.51.2.2")
    # And who wants a router accepts what it is for, where every administrator would.
    whole.call("nft", "insert rule ip filter FORWARD ip saddr 198.51.0.0/16 ip daddr 198.51.0.0/16 accept")
    eventually("the other side is reached", lambda: ping("198.51.2.2"))
    whole.remove_everything()
    assert ping("198.51.2.2")
    assert 'comment "teu"' not in out("nft", "list", "ruleset")
