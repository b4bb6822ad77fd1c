# SPDX-License-Identifier: Apache-2.0
"""The resolver's own answers, and messages that are none."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from teu.linux import dns


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
    [
        b"",
        b"x" * 11,
        query("web")[:-1],
        query("web", flags=0x8000),
        query("web", flags=0x2800),
        struct.pack(">HHHHHH", 1, 0, 2, 0, 0, 0),
        query("web")[:12] + b"\xc0\x0c\x00\x01\x00\x01",
        query("web")[:12] + b"\x3fabc",
    ],
)
def test_what_is_no_query(message: bytes) -> None:
    assert dns.parse(message) is None


def test_edns_and_truncation() -> None:
    def many(name: str) -> list[IPv4Address]:
        return [IPv4Address(f"10.0.0.{number}") for number in range(1, 61)]

    plain = query("web")
    edns = plain[:11] + b"\1" + plain[12:] + b"\0" + struct.pack(">HHIH", dns.OPT, 1232, 0, 0)
    for message, size, fits in ((plain, 0, False), (edns, 1232, True)):
        question = dns.parse(message)
        assert question is not None
        assert question.size == size
        reply = dns.local(question, many, reverse)
        assert reply is not None
        # An answer has an OPT record where the query has one.
        assert struct.unpack(">HHHHHH", reply[:12])[3:] == (60, 0, 1 if size else 0)
        sent = dns.fit(reply, question)
        assert len(sent) <= max(512, size)
        assert (sent == reply) is fits
        assert bool(sent[2] & 0x02) is not fits
        assert struct.unpack(">HHHHHH", sent[:12])[1:4] == (0x8180 if fits else 0x8380, 1, 60 if fits else 0)
