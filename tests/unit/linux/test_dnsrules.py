# SPDX-License-Identifier: Apache-2.0
"""The rules for the resolver, as nft reads them."""

from __future__ import annotations

import os
from ipaddress import IPv4Address

import pytest
from drivers import networks as suite

from teu.linux import dnsrules, nftables

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

ADDRESS = IPv4Address("127.0.0.11")


def test_rules_are_what_they_say_and_replace_those_of_before() -> None:
    with suite.own_namespace():
        nftables.run("add table ip theirs")
        for udp, tcp in ((40001, 40002), (513, 65535)):
            dnsrules.lead(ADDRESS, udp, tcp)
            assert nftables.run("list table ip teu-dns") == (
                "table ip teu-dns {\n\tchain output {\n\t\ttype nat hook output priority -100; policy accept;\n"
                f"\t\tip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:{udp}\n"
                f"\t\tip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:{tcp}\n\t}}\n}}\n"
            )
        assert nftables.chains("ip theirs") == set()
        assert "table ip theirs" in nftables.run("list tables")


def test_a_process_with_many_descriptors_starts_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """libnftables takes no high descriptor: a container's start must not need it."""
    with suite.own_namespace():
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(nftables._HIGHEST)]
        try:
            monkeypatch.setattr(nftables, "_run_elsewhere", None)
            dnsrules.lead(ADDRESS, 1, 2)
            assert nftables.count_rules("ip teu-dns") == {"output": 2}
            assert nftables.chains("ip teu-dns") == {"output"}
        finally:
            for descriptor in held:
                os.close(descriptor)
