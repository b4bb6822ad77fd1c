# SPDX-License-Identifier: Apache-2.0
"""Networks through the whole house: addresses, names, publishing, modes, user-defined networks, what is left."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import whole
from whole import out, teu


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
    whole.eventually("no table is left", lambda: "table inet teu {" not in ruleset())
    whole.eventually("no pair is left", lambda: not pairs())


def ruleset() -> str:
    return out("nft", "list", "ruleset")


def pairs() -> list[str]:
    return re.findall(r"\d+: (teu[0-9a-f]{11})@", out("ip", "-o", "link"))


def wget(address: str) -> tuple[str, ...]:
    """A command that gives up after 2 seconds (the option -T crashes in Debian 12's busybox); not as PID 1, which
    signals do not end."""
    return ("sh", "-c", f"timeout 2 wget -qO- {address}; exit $?")


def get(address: str) -> str:
    def attempt() -> str:
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    return str(whole.eventually(f"{address} answers", attempt, timeout=10))


def setting(name: str, path: str) -> str:
    return out("teu", "inspect", "-f", "{{" + path + "}}", name)


def test_default_bridge() -> None:
    lines = out(
        "teu",
        "run",
        "--rm",
        "--hostname",
        "box",
        "busybox",
        "sh",
        "-c",
        "ip -4 -o addr show eth0; ip route; cat /etc/hosts; hostname",
    ).splitlines()
    address = re.search(r"inet ([\d.]+)/16", lines[0])
    assert address
    assert any(line.startswith("default via ") for line in lines)
    assert f"{address[1]}\tbox" in lines
    assert lines[-1] == "box"
    assert "teu0" in out("ip", "-o", "link", "show", "type", "bridge")


@pytest.mark.needs("fast")
def test_two_containers_see_each_other_and_the_host() -> None:
    whole.serve("web")
    address = setting("web", ".NetworkSettings.IPAddress")
    assert out("teu", "run", "--rm", "busybox", "wget", "-qO-", f"http://{address}/") == "served"
    assert get(address) == "served\n"


@pytest.mark.needs("fast")
@pytest.mark.parametrize("flag", ["8088:80", "127.0.0.1:8088:80", "8088:80/tcp", "8088-8089:80"])
def test_published(flag: str) -> None:
    whole.serve("web", ("-p", flag))
    port = out("teu", "port", "web", "80/tcp").rpartition(":")[2]
    assert get(f"127.0.0.1:{port}") == "served\n"
    assert port in out("teu", "ps", "--format", "{{.Ports}}")
    teu("stop", "-t", "0", "web")
    assert "table inet teu {" not in ruleset()
    assert socket.socket().connect_ex(("127.0.0.1", int(port))) != 0
    teu("start", "web")
    assert get(f"127.0.0.1:{port}") == "served\n"


def test_published_is_reached_from_another_machine() -> None:
    """A network namespace stands for the other machine."""
    whole.serve("web", ("-p", "8088:80"))
    try:
        for line in (
            "netns add far",
            "link add near0 type veth peer name far0 netns far",
            "addr add 203.0.113.1/24 dev near0",
            "link set near0 up",
            "-n far addr add 203.0.113.2/24 dev far0",
            "-n far link set far0 up",
            "-n far route add default via 203.0.113.1",
        ):
            whole.call("ip", *line.split())
        far = ("ip", "netns", "exec", "far", "busybox", "timeout", "3", "wget", "-qO-")
        whole.eventually(
            "the far machine is served", lambda: whole.call(*far, "http://203.0.113.1:8088/", check=False).stdout
        )
        address = setting("web", ".NetworkSettings.IPAddress")
        assert whole.call(*far, f"http://{address}/", check=False).returncode != 0
        # And the container reaches out, under the host's address.
        code = "import socket; s = socket.create_server(('', 7000)); print(flush=True); print(s.accept()[1][0])"
        argv = ["ip", "netns", "exec", "far", "/usr/bin/python3", "-c", code]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert server.stdout
        server.stdout.readline()
        teu("exec", "web", "sh", "-c", "echo hello | nc -w 2 203.0.113.2 7000", check=False)
        assert server.stdout.readline() == b"203.0.113.1\n"
        server.wait()
    finally:
        whole.call("ip", "netns", "del", "far", check=False)


BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.mark.needs("fast")
@pytest.mark.parametrize("filtered", ["0", "1"])
@pytest.mark.parametrize("network", ["bridge", "front"])
def test_published_is_reached_from_containers(filtered: str, network: str) -> None:
    """From itself, a neighbour and another network, at the bridge's and at any other address of the host; whether the
    host filters frames between a bridge's ports (br_netfilter) or not."""
    before = BRIDGE_NETFILTER.read_text() if BRIDGE_NETFILTER.exists() else ""
    whole.call("ip", "addr", "add", "203.0.113.1/32", "dev", "lo")
    try:
        if before:
            BRIDGE_NETFILTER.write_text(filtered)
        teu("network", "create", "front")
        whole.serve("web", ("-p", "8088:80", "--network", network))
        gateway = setting("web", f".NetworkSettings.Networks.{network}.Gateway")
        get(f"{gateway}:8088")
        whole.run_detached("next", "sleep", "600", flags=("--network", network))
        whole.run_detached("other", "sleep", "600", flags=("--network", "front" if network == "bridge" else "bridge"))
        for name in ("web", "next", "other"):
            for address in (gateway, "203.0.113.1"):
                done = teu("exec", name, *wget(f"http://{address}:8088/"), check=False)
                assert done.stdout == "served\n", (name, address)
    finally:
        whole.call("ip", "addr", "del", "203.0.113.1/32", "dev", "lo")
        if before:
            BRIDGE_NETFILTER.write_text(before)


@pytest.mark.needs("fast")
def test_udp() -> None:
    whole.run_detached("echo", "sleep", "600", flags=("-p", "5000:5000/udp"))
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 5000)); "
        "print(flush=True); s.sendto(*s.recvfrom(10))"
    )
    pid = setting("echo", ".State.Pid")
    server = subprocess.Popen(["nsenter", "-n", "-t", pid, "/usr/bin/python3", "-c", code], stdout=subprocess.PIPE)
    assert server.stdout
    server.stdout.readline()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", 5000))
        sock.send(b"ping")
        assert sock.recv(10) == b"ping"
    server.wait()


def test_the_host_loopback_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.5)
        route = out("teu", "run", "--rm", "busybox", "ip", "route")
        gateway = route.split("default via ")[1].split()[0]
        teu(
            "run",
            "--rm",
            "--privileged",
            "busybox",
            "sh",
            "-c",
            f"ip addr del 127.0.0.1/8 dev lo; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; "
            f"ip route add 127.0.0.1/32 via {gateway}; echo x | nc -w 1 127.0.0.1 {port}",
            check=False,
        )
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.needs("fast")
def test_host_none_and_container_modes() -> None:
    own = os.readlink("/proc/self/ns/net")
    assert out("teu", "run", "--rm", "--network", "host", "busybox", "readlink", "/proc/self/ns/net") == own
    lines = out("teu", "run", "--rm", "--network", "none", "busybox", "ip", "-o", "link").splitlines()
    assert len(lines) == 1
    whole.serve("first")
    assert out("teu", "run", "--rm", "--network", "container:first", "busybox", "wget", "-qO-", "127.0.0.1") == "served"
    hosts = out("teu", "exec", "first", "cat", "/etc/hosts")
    assert out("teu", "run", "--rm", "--network", "container:first", "busybox", "cat", "/etc/hosts") == hosts


@pytest.mark.needs("fast")
def test_resolver_is_copied_from_the_host(tmp_path: Path) -> None:
    before = Path("/etc/resolv.conf").read_text()
    resolved = Path("/run/systemd/resolve/resolv.conf")
    try:
        Path("/etc/resolv.conf").write_text("nameserver 192.0.2.53\nsearch example.org\noptions timeout:1\n")
        shown = out("teu", "run", "--rm", "busybox", "cat", "/etc/resolv.conf")
        assert shown.splitlines() == ["nameserver 192.0.2.53", "search example.org", "options timeout:1"]
        shown = out(
            "teu", "run", "--rm", "--dns", "192.0.2.1", "--dns-search", "a.b", "busybox", "cat", "/etc/resolv.conf"
        )
        assert "nameserver 192.0.2.1" in shown
        assert "search a.b" in shown
        if not resolved.exists():
            resolved.parent.mkdir(parents=True, exist_ok=True)
            resolved.write_text("nameserver 192.0.2.54\n")
            for server, expected in (
                ("127.0.0.1", ["nameserver 192.0.2.54"]),
                # The stub of systemd-resolved knows more than the servers behind it.
                ("127.0.0.53", ["nameserver 127.0.0.11", "options ndots:0"]),
            ):
                Path("/etc/resolv.conf").write_text(f"nameserver {server}\noptions edns0 trust-ad\n")
                assert out("teu", "run", "--rm", "busybox", "cat", "/etc/resolv.conf").splitlines() == expected
            resolved.unlink()
    finally:
        Path("/etc/resolv.conf").write_text(before)


@pytest.mark.needs("fast")
def test_user_defined_network() -> None:
    teu("network", "create", "--subnet", "10.99.0.0/24", "--label", "a=b", "front")
    whole.serve("one", ("--network", "front", "--ip", "10.99.0.7"))
    assert setting("one", ".NetworkSettings.Networks.front.IPAddress") == "10.99.0.7"
    assert out("teu", "run", "--rm", "--network", "front", "busybox", "wget", "-qO-", "http://10.99.0.7/") == "served"
    done = teu("run", "--rm", "busybox", *wget("http://10.99.0.7/"), check=False)
    assert done.returncode != 0
    found = json.loads(out("teu", "network", "inspect", "front"))[0]
    assert [member["Name"] for member in found["Containers"].values()] == ["one"]
    assert found["Labels"] == {"a": "b"}
    assert "has active endpoints" in teu("network", "rm", "front", check=False).stderr
    whole.run_detached("two", "sleep", "600")
    teu("network", "connect", "front", "two")
    assert out("teu", "exec", "two", "wget", "-qO-", "http://10.99.0.7/") == "served"
    teu("network", "disconnect", "front", "two")
    assert teu("exec", "two", *wget("http://10.99.0.7/"), check=False).returncode != 0


def test_names_on_a_user_defined_network() -> None:
    teu("network", "create", "front")
    whole.serve("one", ("--network", "front", "--network-alias", "www"))
    for name in ("one", "www"):
        assert out("teu", "run", "--rm", "--network", "front", "busybox", "wget", "-qO-", f"http://{name}/") == "served"
    done = teu("run", "--rm", "--network", "front", "busybox", "nslookup", "nobody", check=False)
    assert done.returncode != 0


@pytest.mark.needs("fast")
def test_network_errors_and_prune() -> None:
    for argv, message in (
        (("run", "--network", "nowhere", "busybox"), "network nowhere not found"),
        (("network", "rm", "bridge"), "cannot be removed"),
        (("network", "create", "host"), "predefined"),
        (("network", "create", "--subnet", "10.0.0.0/33", "x"), "invalid"),
        (("run", "--network", "container:nobody", "busybox"), "no such container"),
    ):
        done = teu(*argv, check=False)
        assert done.returncode in (1, 125), argv
        assert message in done.stderr.lower(), done.stderr
    teu("network", "create", "unused")
    assert "unused" in teu("network", "prune", "-f").stdout
    assert out("teu", "network", "ls", "-q", "-f", "type=custom") == ""


def test_restarts_of_the_engine_keep_the_network() -> None:
    whole.serve("web", ("-p", "8088:80"))
    whole.run_detached("gone", "sleep", "600", flags=("-p", "8089:80"))
    get("127.0.0.1:8088")
    teud = whole.main_pid("teud.service")
    os.kill(teud, 9)
    assert get("127.0.0.1:8088") == "served\n"
    teu("rm", "-f", "gone")
    assert "8089" not in ruleset()
    assert "8088" in ruleset()
    done = teu("run", "--rm", "-p", "8088:80", "busybox", "true", check=False)
    assert "port is already allocated" in done.stderr
    teu("rm", "-f", "web")


@pytest.mark.needs("fast")
@pytest.mark.needs("docker", "iptables")
def test_beside_docker_that_drops_what_is_forwarded() -> None:
    """Docker's policy is not ours; its chain for others' rules is left as it was found."""
    created = whole.call("iptables", "-N", "DOCKER-USER", check=False).returncode == 0
    whole.call("iptables", "-A", "FORWARD", "-j", "DOCKER-USER")
    whole.call("iptables", "-P", "FORWARD", "DROP")
    before = out("iptables", "-S", "DOCKER-USER")
    try:
        teu("network", "create", "front")
        whole.serve("web", ("--network", "front", "-p", "8088:80"))
        assert "teu+" in out("iptables", "-S", "DOCKER-USER")
        gateway = setting("web", ".NetworkSettings.Networks.front.Gateway")
        # Over the bridge and back: forwarded.
        assert out("teu", "run", "--rm", "busybox", *wget(f"http://{gateway}:8088/")) == "served"
        whole.remove_everything()
        assert out("iptables", "-S", "DOCKER-USER") == before
    finally:
        whole.remove_everything()
        whole.call("iptables", "-P", "FORWARD", "ACCEPT")
        whole.call("iptables", "-D", "FORWARD", "-j", "DOCKER-USER")
        if created:
            whole.call("iptables", "-X", "DOCKER-USER")
