# SPDX-License-Identifier: Apache-2.0
"""Forwarding for several programs of one host, in a network namespace of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivers import networks as suite

from teu.linux import forwarding, nftables

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

CHAIN = "add table ip filter\nadd chain ip filter DOCKER-USER\n"


@pytest.fixture(autouse=True)
def own_namespace() -> Iterator[None]:
    with suite.own_namespace():
        yield


def rules(chain: str) -> list[str]:
    text = nftables.run(f"list chain {chain}")
    return sorted(line.strip() for line in text.splitlines() if "comment" in line)


def test_each_program_has_its_own_rules() -> None:
    nftables.run(CHAIN)
    forwarding.beside_others("teu", ["teu*"])
    forwarding.beside_others("teu-build", ["teubuild0"])
    assert len(rules(forwarding.DOCKER_USER)) == 4
    forwarding.beside_others("teu", [])
    assert rules(forwarding.DOCKER_USER) == [
        'iifname "teubuild0" accept comment "teu-build"',
        'oifname "teubuild0" accept comment "teu-build"',
    ]
    forwarding.beside_others("teu-build", [])
    assert rules(forwarding.DOCKER_USER) == []


def test_ufw_has_its_say_first() -> None:
    """Ours is at the end of its chain for what comes after its own rules, and comes again when it was reloaded."""
    nftables.run(
        "add table ip filter\nadd chain ip filter ufw-after-forward\n"
        "add rule ip filter ufw-after-forward ip daddr 192.0.2.1 drop\n"
    )
    for _ in range(2):
        forwarding.beside_others("teu", ["teu*"])
        listed = nftables.run("list chain ip filter ufw-after-forward").splitlines()[2:-2]
        assert [line.strip() for line in listed] == [
            "ip daddr 192.0.2.1 drop",
            'iifname "teu*" accept comment "teu"',
            'oifname "teu*" accept comment "teu"',
        ]
    changes = nftables.Changes()
    nftables.run("flush chain ip filter ufw-after-forward")
    assert any(forwarding.concerns(change) for change in changes.wait() or ())
    changes.close()


def test_who_turned_it_on_is_known_to_all(tmp_path: Path) -> None:
    """The second finds forwarding on, and the chain that the first closed in its way all the same."""
    one, other = forwarding.Marker(str(tmp_path)), forwarding.Marker(str(tmp_path))
    assert not one.there
    one.turn_on()
    other.turn_on()
    assert other.there
    assert Path(forwarding.IP_FORWARD).read_text().strip() == "1"
    one.stand_beside_others("teu-build", ["teubuild0"])
    other.stand_beside_others("teu", ["teu0"])
    assert len(rules(forwarding.FORWARD)) == 4


@pytest.mark.parametrize("version", [4, 6])
def test_it_is_closed_before_it_is_turned_on(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again where somebody has emptied the ruleset since."""
    flag = Path(forwarding.IP_FORWARD if version == 4 else forwarding.IPV6_FORWARD)
    chain = forwarding.FORWARD if version == 4 else forwarding.FORWARD6
    name = "close_forwarding" if version == 4 else "close_forwarding6"
    close, seen = getattr(forwarding, name), []
    monkeypatch.setattr(forwarding, name, lambda: (seen.append(flag.read_text().strip()), close()))
    marker = forwarding.Marker(str(tmp_path))
    marker.turn_on(version)
    assert seen == ["0"]
    assert flag.read_text().strip() == "1"
    nftables.run("flush ruleset")
    marker.keep_closed()
    assert forwarding.has_chain(chain)


def test_where_ufw_is_it_has_the_first_word(tmp_path: Path) -> None:
    """In both families, and from when on it is there; with everything open as with Docker it has none."""
    marker = forwarding.Marker(str(tmp_path))
    both = ((forwarding.FORWARD, forwarding.UFW), (forwarding.FORWARD6, forwarding.UFW6))
    for version, docker in ((4, forwarding.DOCKER_USER), (6, forwarding.DOCKER_USER6)):
        marker.turn_on(version)
        nftables.run(f"add chain {docker}\n")
    marker.stand_beside_others("teu", ["teu*"])
    assert [len(rules(chain)) for chain, _ in both] == [2, 2]
    for _, ufw in both:
        nftables.run(f"add chain {ufw}\n")
    marker.stand_beside_others("teu", ["teu*"])
    assert [(len(rules(chain)), len(rules(ufw))) for chain, ufw in both] == [(0, 2), (0, 2)]
    assert rules(forwarding.DOCKER_USER) == rules(forwarding.DOCKER_USER6) == []
    marker.stand_beside_others("teu", ["teu*"], everywhere=True)
    assert [len(rules(chain)) for chain, _ in both] == [2, 2]
    for _, ufw in both:
        nftables.run(f"delete chain {ufw}\n")
    marker.stand_beside_others("teu", ["teu*"])
    assert [len(rules(chain)) for chain, _ in both] == [2, 2]


def test_what_was_on_before_is_nobodys(tmp_path: Path) -> None:
    Path(forwarding.IP_FORWARD).write_text("1")
    marker = forwarding.Marker(str(tmp_path))
    marker.turn_on()
    assert not marker.there
    marker.stand_beside_others("teu", ["teu0"])
    with pytest.raises(nftables.Error):
        nftables.run(f"list chain {forwarding.FORWARD}")
