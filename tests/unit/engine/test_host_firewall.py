# SPDX-License-Identifier: Apache-2.0
"""What the host's own firewall says, as rules for published ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from teu.engine.core.errors import BadRequest
from teu.engine.core.fields import HOST_CONFIG
from teu.engine.networks import hostfirewall, hostrules, ports
from teu.linux import ufw
from teu.systemd.firewalld import Zone

REJECT = "reject with icmpx admin-prohibited"


def host(folder: Path, rules: str = "", rules6: str = "", **settings: str) -> str:
    """A host with ufw, whose files have these tuples."""
    (folder / "etc/ufw").mkdir(parents=True)
    (folder / "etc/default").mkdir()
    given = {"enabled": "yes", "policy": "DROP", "ipv6": "yes", **settings}
    (folder / "etc/ufw/ufw.conf").write_text(f"# of ufw\nENABLED={given['enabled']}\nLOGLEVEL=low\n")
    text = f'IPV6={given["ipv6"]}\nDEFAULT_INPUT_POLICY="{given["policy"]}"\nDEFAULT_FORWARD_POLICY="DROP"\n'
    (folder / "etc/default/ufw").write_text(text)
    for name, tuples in (("user.rules", rules), ("user6.rules", rules6)):
        lines = "".join(f"\n### tuple ### {line}\n-A ufw-user-input -j ACCEPT\n" for line in tuples.splitlines())
        (folder / "etc/ufw" / name).write_text(f"*filter\n### RULES ###\n{lines}\n### END RULES ###\nCOMMIT\n")
    return str(folder)


def test_rules_of_ufw(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        "deny any any 0.0.0.0/0 any 198.51.100.0/24 in\n"
        "allow tcp 8088 0.0.0.0/0 any 0.0.0.0/0 in\n"
        "allow any 53 0.0.0.0/0 any 10.0.0.0/8 in\n"
        "deny_log udp 6000:6007 0.0.0.0/0 any 0.0.0.0/0 in\n"
        "reject tcp 80,443 203.0.113.1 any 0.0.0.0/0 in_eth0 comment=612062\n"
        "limit tcp 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - in\n"
        "route:allow tcp 80 172.17.0.2 any 0.0.0.0/0 in_eth0!out_teu0\n"
        "allow tcp 25 0.0.0.0/0 any 0.0.0.0/0 out",
        "allow tcp 8088 ::/0 any fd00::/8 in",
    )
    found = ufw.read(root)
    assert found is not None
    rules = hostrules.of_ufw(found)
    assert rules.left_out == []
    assert rules == [
        'iifname "eth0" oifname "teu0" meta nfproto ipv4 ip daddr { 172.17.0.2/32 } meta l4proto tcp'
        " th dport { 80 } accept",
        "meta nfproto ipv4 ip saddr { 198.51.100.0/24 } drop",
        "meta nfproto ipv4 meta l4proto tcp ct original proto-dst { 8088 } accept",
        "meta nfproto ipv4 ip saddr { 10.0.0.0/8 } meta l4proto { tcp, udp, sctp } ct original proto-dst { 53 } accept",
        "meta nfproto ipv4 meta l4proto udp ct original proto-dst { 6000-6007 } drop",
        'iifname "eth0" meta nfproto ipv4 ct original ip daddr { 203.0.113.1/32 } meta l4proto tcp'
        f" ct original proto-dst {{ 80, 443 }} {REJECT}",
        "meta nfproto ipv4 meta l4proto tcp ct original proto-dst { 22 } accept",
        "meta nfproto ipv6 ip6 saddr { fd00::/8 } meta l4proto tcp ct original proto-dst { 8088 } accept",
        "meta nfproto ipv4 drop",
        "meta nfproto ipv6 drop",
    ]


def test_policies_of_ufw(tmp_path: Path) -> None:
    assert ufw.read(str(tmp_path)) is None
    found = ufw.read(host(tmp_path, "allow tcp 1 0.0.0.0/0 any 0.0.0.0/0 in", policy="REJECT", ipv6="no"))
    assert found is not None
    # What ufw leaves alone is open.
    assert hostrules.of_ufw(found)[-2:] == [f"meta nfproto ipv4 {REJECT}", "meta nfproto ipv6 accept"]
    (tmp_path / "etc/ufw/ufw.conf").write_text("ENABLED=no\n")
    assert ufw.read(str(tmp_path)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "allow tcp 80",
        "permit tcp 80 0.0.0.0/0 any 0.0.0.0/0 in",
        "allow tcp http 0.0.0.0/0 any 0.0.0.0/0 in",
        "allow tcp 80 somewhere any 0.0.0.0/0 in",
        "allow tcp 80 ::/0 any ::/0 in",
        "allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 sideways",
    ],
)
def test_what_is_no_rule_of_ufw(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ufw.parse(text, 4)


def zone(name: str, **more: Any) -> Zone:
    given = {"interfaces": [], "sources": [], "target": "default", "ports": [], "protocols": [], "rules": []}
    return Zone(name=name, is_default=more.pop("is_default", False), **{**given, **more})


def of_zones(*zones: Zone) -> hostrules.Rules:
    services = {"http": [("80", "tcp")]}
    return hostrules.of_zones(
        zones, lambda name: services.get(name, []), lambda name: {"bad": ["192.0.2.1", "192.0.2.2"]}.get(name, [])
    )


def test_zones_of_firewalld() -> None:
    rules = of_zones(
        zone("drop", sources=["203.0.113.0/24", "ipset:bad"], target="DROP"),
        zone("lan", interfaces=["eth1", "vm+"], target="ACCEPT"),
        zone("public", is_default=True, ports=[("22", "tcp"), ("6000-6007", "udp")], protocols=["sctp"]),
    )
    assert rules.left_out == []
    assert rules == [
        "ip saddr { 203.0.113.0/24 } drop",
        "ip saddr { 192.0.2.1/32, 192.0.2.2/32 } drop",
        'iifname "eth1" accept',
        'iifname "vm*" accept',
        "meta l4proto tcp ct original proto-dst { 22 } accept",
        "meta l4proto udp ct original proto-dst { 6000-6007 } accept",
        "meta l4proto sctp accept",
        REJECT,
    ]


def test_rich_rules_come_in_their_order() -> None:
    rules = of_zones(
        zone(
            "public",
            is_default=True,
            ports=[("8088", "tcp")],
            rules=[
                'rule priority="5" protocol value="tcp" accept',
                'rule family="ipv4" source NOT address="10.0.0.0/8" port port="8089" protocol="tcp" accept',
                'rule family="ipv4" source address="198.51.100.0/24" log prefix="a b" level="info" drop',
                'rule priority="-3" service name="http" accept',
                'rule source ipset="bad" reject type="icmp-port-unreachable"',
                'rule family="ipv4" destination address="203.0.113.1" port port="1-9" protocol="udp" reject',
                'rule port port="1" protocol="tcp" mark set="0x1"',
                'rule icmp-block name="redirect"',
                'rule port port="1" protocol="tcp" log',
            ],
        )
    )
    assert rules.left_out == []
    assert rules == [
        "meta l4proto tcp ct original proto-dst { 80 } accept",
        "meta nfproto ipv4 ip saddr { 198.51.100.0/24 } drop",
        f"ip saddr {{ 192.0.2.1/32, 192.0.2.2/32 }} {REJECT}",
        "meta nfproto ipv4 ct original ip daddr { 203.0.113.1/32 } meta l4proto udp"
        f" ct original proto-dst {{ 1-9 }} {REJECT}",
        "meta nfproto ipv4 ip saddr != { 10.0.0.0/8 } meta l4proto tcp ct original proto-dst { 8089 } accept",
        "meta l4proto tcp ct original proto-dst { 8088 } accept",
        "meta l4proto tcp accept",
        REJECT,
    ]


def test_what_cannot_be_said_is_told() -> None:
    rules = of_zones(
        zone(
            "public",
            is_default=True,
            rules=["rule nonsense drop", 'rule source address="host" drop'],
            ports=[("x", "tcp")],
        )
    )
    assert rules == [REJECT]
    assert len(rules.left_out) == 3


def test_nothing_of_another_language_gets_in() -> None:
    for match in (
        hostrules.Match(interface='eth0" drop; add'),
        hostrules.Match(ports="80 } drop"),
        hostrules.Match(protocol="tcp; drop"),
        hostrules.Match(sources=("10.0.0.0/8", "fd00::/8")),
    ):
        with pytest.raises(ValueError, match=r"."):
            hostrules.rule(match, "accept")


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ufw.Rule(4, "accept", False, "tcp", "8088", "", "", "", "", "")
    monkeypatch.setattr(ufw, "read", lambda: ufw.Ufw([rule], "drop", "drop"))
    monkeypatch.setattr(hostfirewall, "is_installed", lambda: False)
    obeying = hostfirewall.HostFirewall("obey")
    assert len(obeying.look([])) == 3
    assert obeying.how_to_open("tcp", 8088) == "ufw allow 8088/tcp"
    assert obeying.describe()[1] == ["Host", "what ufw lets in reaches published ports"]
    for mode in ("docker", "none"):
        other = hostfirewall.HostFirewall(mode)
        assert other.look([]) == []
        assert other.how_to_open("tcp", 8088) == ""
        assert other.describe()[0] == ["Firewall", mode]
    # Somebody disables ufw: nothing is left of it.
    monkeypatch.setattr(ufw, "read", lambda: None)
    assert obeying.look([]) == []
    assert obeying.how_to_open("tcp", 8088) == ""


def test_sources_of_a_port() -> None:
    def asked(key: str, text: str) -> Any:
        return HOST_CONFIG.read({"Annotations": {f"io.teu.port-sources/{key}": text}})

    given = asked("80/tcp", "10.0.0.0/9, 10.128.0.0/9 fd00::/8,192.0.2.7")
    assert ports.sources(given, 80, "tcp") == ("10.0.0.0/8", "192.0.2.7/32", "fd00::/8")
    assert ports.sources(given, 80, "udp") == ports.sources(HOST_CONFIG.read({}), 80, "tcp") == ()
    ports.check_sources(given)
    for key, text in (("80/tcp", "10.0.0.1/8"), ("80/tcp", "home"), ("80/tcp", " "), ("80", "10.0.0.0/8"), ("x", "")):
        with pytest.raises(BadRequest):
            ports.check_sources(asked(key, text))
