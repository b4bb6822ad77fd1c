# SPDX-License-Identifier: Apache-2.0
"""Published ports and containers on a host with a firewall of its own, which is Debian's real ufw or firewalld: what it
lets in reaches a published port, nothing else does, and containers have their way out."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import images
import pytest
import whole
from whole import eventually, out, teu

pytestmark = pytest.mark.needs("fast")

FAR, NEAR = "203.0.113.2", "203.0.113.1"
FAR6, NEAR6 = "2001:db8::2", "2001:db8::1"
SETTINGS = Path("/etc/teu/teud.yaml.d/firewall.yaml")


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    images.need_busybox()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    whole.remove_everything()
    yield
    whole.remove_everything()
    eventually("no table is left", lambda: "table inet teu {" not in out("nft", "list", "ruleset"))


@pytest.fixture(autouse=True)
def far() -> Iterator[None]:
    """Another machine, beside the host, with a server of its own."""
    lines = (
        "netns add far",
        "link add near0 type veth peer name far0 netns far",
        f"addr add {NEAR}/24 dev near0",
        f"addr add {NEAR6}/64 dev near0 nodad",
        "link set near0 up",
        f"-n far addr add {FAR}/24 dev far0",
        f"-n far addr add {FAR6}/64 dev far0 nodad",
        "-n far link set far0 up",
        "-n far link set lo up",
        f"-n far route add default via {NEAR}",
        f"-n far route add default via {NEAR6}",
    )
    server = None
    try:
        for line in lines:
            whole.call("ip", *line.split())
        argv = ["ip", "netns", "exec", "far", "/usr/bin/python3", "-m", "http.server", "--bind", "::", "7000"]
        server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/usr/share/doc")
        yield
    finally:
        if server is not None:
            server.kill()
            server.wait()
        whole.call("ip", "netns", "del", "far", check=False)
        # The kernel takes the pair away in its own time.
        whole.call("ip", "link", "del", "near0", check=False)


def reached(port: int = 8088, address: str = NEAR) -> bool:
    """By the other machine."""
    url = f"http://{bracketed(address)}:{port}/"
    argv = ("ip", "netns", "exec", "far", "busybox", "timeout", "1", "wget", "-qO-", url)
    return whole.call(*argv, check=False).stdout == "served\n"


def reached_by() -> list[int]:
    """The families in which it is."""
    return [version for version, address in ((4, NEAR), (6, NEAR6)) if reached(address=address)]


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def gets_out(name: str = "web", address: str = FAR) -> bool:
    command = f"timeout 2 wget -qO- http://{bracketed(address)}:7000/; exit $?"
    return teu("exec", name, "sh", "-c", command, check=False).returncode == 0


def soon(what: str, condition: Callable[[], bool], seconds: float = 5.0) -> None:
    eventually(what, condition, timeout=seconds)


@pytest.fixture
def both() -> Iterator[None]:
    """A network with IPv6, and one where the world knows the containers' IPv6 addresses."""
    teu("network", "create", "--ipv6", "--subnet", "fd00:99::/64", "both")
    routed = "com.docker.network.bridge.gateway_mode_ipv6=routed"
    teu("network", "create", "--ipv6", "--subnet", "fd00:98::/64", "-o", routed, "routed")
    yield
    whole.remove_everything()
    teu("network", "rm", "both", "routed")


@pytest.fixture
def as_docker() -> Iterator[None]:
    SETTINGS.parent.mkdir(parents=True, exist_ok=True)
    SETTINGS.write_text("firewall: docker\n")
    whole.call("systemctl", "restart", "teud")
    yield
    SETTINGS.unlink()
    whole.call("systemctl", "restart", "teud")


@pytest.fixture
def ufw() -> Iterator[None]:
    whole.call("ufw", "--force", "enable")
    try:
        yield
    finally:
        whole.remove_everything()
        whole.call("ufw", "--force", "reset")
        for family in ("ip", "ip6"):
            whole.call("nft", "delete", "table", family, "filter", check=False)
        for backup in (*Path("/etc/ufw").glob("*.rules.20*"), *Path("/var/lib/ufw").glob("*.rules.20*")):
            backup.unlink()


@pytest.fixture
def firewalld() -> Iterator[None]:
    whole.call("systemctl", "start", "firewalld")
    try:
        yield
    finally:
        whole.remove_everything()
        whole.call("systemctl", "stop", "firewalld")
        for folder in ("zones", "policies"):
            for file in Path("/etc/firewalld", folder).glob("*.xml*"):
                file.unlink()


def test_ufw_governs_published_ports(ufw: None) -> None:
    whole.serve("web", ("-p", "8088:80"))
    soon("the way out is open", gets_out)
    assert not reached()
    assert "what ufw lets in reaches published ports" in out("teu", "info")
    assert "ufw allow 8088/tcp" in out("journalctl", "-u", "teud", "-o", "cat")
    whole.call("ufw", "allow", "8088/tcp")
    soon("ufw lets in", reached)
    assert "ct original proto-dst 8088 accept" in out("nft", "list", "chain", "inet", "teu", "host")
    # Others' programs still read the chains in which there are rules of ours.
    assert "teu+" in out("iptables", "-S", "ufw-after-forward")
    whole.call("ufw", "insert", "1", "deny", "from", "203.0.113.0/24", "to", "any", "port", "8088", "proto", "tcp")
    soon("and keeps out", lambda: not reached())
    whole.call("ufw", "--force", "delete", "1")
    soon("ufw lets in again", reached)
    whole.call("ufw", "reload")
    soon("after a reload as well", lambda: reached() and gets_out())
    whole.call("ufw", "route", "deny", "to", FAR)
    soon("what ufw says of the way out holds", lambda: not gets_out())
    whole.call("ufw", "route", "delete", "deny", "to", FAR)
    soon("the way out is open again", gets_out)
    whole.call("ufw", "delete", "allow", "8088/tcp")
    soon("what is deleted is closed", lambda: not reached())
    # By the container's own address and port, as for whatever is forwarded.
    address = out("teu", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
    whole.call("ufw", "route", "allow", "proto", "tcp", "to", address, "port", "80")
    soon("a rule for what is forwarded opens it, too", reached)
    whole.call("ufw", "route", "delete", "allow", "proto", "tcp", "to", address, "port", "80")
    soon("and closes it", lambda: not reached())
    whole.call("ufw", "disable")
    soon("without ufw it is open", reached)


def test_ufw_governs_both_families(both: None, ufw: None) -> None:
    whole.serve("web", ("--network", "both", "-p", "8088:80"))
    soon("the way out is open", lambda: gets_out() and gets_out(address=FAR6))
    assert reached_by() == []
    whole.call("ufw", "allow", "8088/tcp")
    soon("ufw lets in", lambda: reached_by() == [4, 6])
    rule = ("deny", "from", "2001:db8::/64", "to", "any", "port", "8088", "proto", "tcp")
    whole.call("ufw", "prepend", *rule)
    soon("and keeps out", lambda: reached_by() == [4])
    whole.call("ufw", "delete", *rule)
    soon("and lets in again", lambda: reached_by() == [4, 6])
    whole.call("ufw", "route", "deny", "to", FAR6)
    soon("what ufw says of the way out holds", lambda: gets_out() and not gets_out(address=FAR6))
    whole.call("ufw", "delete", "allow", "8088/tcp")
    soon("what is deleted is closed", lambda: reached_by() == [])
    whole.serve("plain", ("--network", "routed", "-p", "8089:80"))
    address = out("teu", "inspect", "-f", "{{.NetworkSettings.Networks.routed.GlobalIPv6Address}}", "plain")
    assert not reached(80, address)
    whole.call("ufw", "allow", "80/tcp")
    soon("ufw lets in to the container's own address", lambda: reached(80, address))


def test_as_docker_beside_ufw(as_docker: None, both: None, ufw: None) -> None:
    whole.serve("web", ("--network", "both", "-p", "8088:80"))
    soon("it is open", lambda: reached_by() == [4, 6] and gets_out() and gets_out(address=FAR6))
    whole.call("ufw", "deny", "8088/tcp")
    time.sleep(0.5)
    assert reached_by() == [4, 6]


def test_firewalld_governs_published_ports(firewalld: None) -> None:
    whole.serve("web", ("-p", "8088:80"))
    soon("the way out is open", gets_out)
    assert not reached()
    assert "what firewalld lets in reaches published ports" in out("teu", "info")
    assert "teu+" in out("firewall-cmd", "--zone=teu", "--list-interfaces")
    whole.call("firewall-cmd", "--add-port=8088/tcp")
    soon("firewalld lets in", reached)
    rule = "--add-rich-rule=rule family=ipv4 source address=203.0.113.0/24 port port=8088 protocol=tcp reject"
    whole.call("firewall-cmd", rule)
    soon("and keeps out", lambda: not reached())
    whole.call("firewall-cmd", "--reload")
    soon("what was not for good is gone, and the way out is there", lambda: gets_out() and not reached())
    whole.call("firewall-cmd", "--permanent", "--add-port=8088/tcp")
    whole.call("firewall-cmd", "--reload")
    soon("what is for good holds", lambda: reached() and gets_out())
    whole.call("firewall-cmd", "--zone=drop", "--change-interface=near0")
    soon("the zone of the interface decides", lambda: not reached())
    whole.call("firewall-cmd", "--zone=trusted", "--change-interface=near0")
    soon("as it says", reached)
    # A bridge with a name of its own is in the zone as well.
    teu("network", "create", "-o", "com.docker.network.bridge.name=own0", "own")
    try:
        whole.serve("other", ("--network", "own"))
        soon("its way out is open", lambda: gets_out("other"))
        whole.call("systemctl", "restart", "firewalld")
        soon("after a restart as well", lambda: gets_out("other") and gets_out())
    finally:
        whole.remove_everything()
        teu("network", "rm", "own")


def test_firewalld_governs_both_families(both: None, firewalld: None) -> None:
    whole.serve("web", ("--network", "both", "-p", "8088:80"))
    soon("the way out is open", lambda: gets_out() and gets_out(address=FAR6))
    assert reached_by() == []
    whole.call("firewall-cmd", "--add-port=8088/tcp")
    soon("firewalld lets in", lambda: reached_by() == [4, 6])
    rule = "--add-rich-rule=rule family=ipv6 source address=2001:db8::/64 port port=8088 protocol=tcp reject"
    whole.call("firewall-cmd", rule)
    soon("and keeps out", lambda: reached_by() == [4])
    whole.call("firewall-cmd", "--reload")
    soon("what was not for good is gone", lambda: reached_by() == [])
    assert gets_out(address=FAR6)


def test_as_docker_beside_firewalld(as_docker: None, both: None, firewalld: None) -> None:
    whole.serve("web", ("--network", "both", "-p", "8088:80"))
    soon("it is open", lambda: reached_by() == [4, 6] and gets_out() and gets_out(address=FAR6))
    assert "teu-published" in out("firewall-cmd", "--get-policies")


def test_a_forward_chain_of_the_hosts_decides() -> None:
    whole.serve("web", ("-p", "8088:80"))
    soon("it is open", reached)
    chain = "type filter hook forward priority filter; policy accept;"
    rule = f"ct status dnat ct original proto-dst 8088 ip saddr {FAR} drop"
    whole.call("nft", f"table inet mine {{ chain forward {{ {chain} {rule}; }}; }}")
    try:
        assert not reached()
        assert gets_out()
    finally:
        whole.call("nft", "delete", "table", "inet", "mine")
    assert reached()


def test_a_flush_is_mended_within_a_second() -> None:
    whole.serve("web", ("-p", "8088:80"))
    soon("it is open", reached)
    for _ in range(3):
        whole.call("nft", "flush", "ruleset")
        began = time.monotonic()
        while "chain outgoing" not in out("nft", "list", "ruleset"):
            assert time.monotonic() - began < 1
        assert reached()


def test_who_may_use_a_port() -> None:
    whole.serve("web", ("-p", "published=8088,target=80,source=198.51.100.0/24"))
    whole.serve("two", ("-p", f"published=8089,target=80,source=198.51.100.0/24,source={FAR}"))
    soon("who is named is let in", lambda: reached(8089))
    assert not reached(8088)
    listed = out("nft", "list", "table", "inet", "teu")
    assert 'tcp . 8088 comment "web"' in listed
    assert 'tcp . 8089 comment "two"' in listed
    # The host itself is served.
    assert out("busybox", "timeout", "3", "wget", "-qO-", "http://127.0.0.1:8088/") == "served"
    teu("rm", "-f", "two")
    assert FAR not in out("nft", "list", "table", "inet", "teu")
    done = teu("run", "-d", "--annotation", "io.teu.port-sources/80/tcp=home", "busybox", "true", check=False)
    assert "'home' does not appear to be an IPv4 or IPv6 network" in done.stderr


def test_without_rules() -> None:
    SETTINGS.parent.mkdir(parents=True, exist_ok=True)
    SETTINGS.write_text("firewall: none\n")
    whole.call("systemctl", "restart", "teud")
    try:
        whole.run_detached("plain", "sleep", "600")
        assert "table inet teu {" not in out("nft", "list", "ruleset")
        done = teu("run", "-d", "-p", "8088:80", "busybox", "true", check=False)
        assert "firewall is none in teud.yaml" in done.stderr
        assert "teud makes no rules" in out("teu", "info")
    finally:
        SETTINGS.unlink()
        whole.call("systemctl", "restart", "teud")
