# SPDX-License-Identifier: Apache-2.0
"""The resolver's own answers, and messages that are none."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from teu.engine import dns


def query(name: str, kind: int = dns.A, flags: int = 0x0100) -> bytes:
    return struct.pack(">HHHHHH", 7, flags, 1, 0, 0, 0) + dns.encode_name(name) + struct.pack(">HH", kind, dns.IN)


def lookup(name: str) -> list[IPv4Address] | None:
    return [IPv4Address("10.0.0.2")] if name == "web" else None


def reverse(address: IPv4Address) -> str | None:
    return "web.front" if address == IPv4Address("10.0.0.2") else None


def reply(message: bytes) -> bytes | None:
    question = dns.parse(message)
    assert question is not None
    return dns.local(question, lookup, reverse)


def test_names_and_addresses() -> None:
    found = reply(query("WEB"))
    assert found is not None
    assert struct.unpack(">HHHHHH", found[:12]) == (7, 0x8180, 1, 1, 0, 0)
    assert found.endswith(struct.pack(">HHIH", dns.A, dns.IN, dns.TTL, 4) + bytes([10, 0, 0, 2]))
    # A known name has no IPv6 address, which is another answer than an unknown name.
    found = reply(query("web", dns.AAAA))
    assert found is not None
    assert struct.unpack(">HHHHHH", found[:12])[3] == 0
    found = reply(query("2.0.0.10.in-addr.arpa", dns.PTR))
    assert found is not None
    assert found.endswith(dns.encode_name("web.front"))


def test_the_rest_is_for_others() -> None:
    assert reply(query("example.org")) is None
    assert reply(query("web", 16)) is None
    assert reply(query("1.1.1.1.in-addr.arpa", dns.PTR)) is None
    assert reply(query("x.in-addr.arpa", dns.PTR)) is None


@pytest.mark.parametrize(
    "message",
    [b"", b"x" * 11, query("web")[:-1], query("web", flags=0x8000), query("web", flags=0x2800),
     struct.pack(">HHHHHH", 1, 0, 2, 0, 0, 0), query("web")[:12] + b"\xc0\x0c\x00\x01\x00\x01",
     query("web")[:12] + b"\x3fabc"],
)  # fmt: skip
def test_what_is_no_query(message: bytes) -> None:
    assert dns.parse(message) is None
