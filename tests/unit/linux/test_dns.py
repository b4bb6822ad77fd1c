# SPDX-License-Identifier: Apache-2.0
"""The resolver's own answers, and messages that are none."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from teu.linux import dnswire as dns


def query(name: str, kind: int = dns.A, flags: int = 0x0100) -> bytes:
    return struct.pack(">HHHHHH", 7, flags, 1, 0, 0, 0) + dns.encode_name(name) + struct.pack(">HH", kind, dns.IN)


HOUSE: dict[str, list[dns.Address]] = {
    "web": [IPv4Address("10.0.0.2")],
    "both": [IPv4Address("10.0.0.3"), IPv6Address("fd00::3")],
    "six": [IPv6Address("fd00::6")],
    "www.example.org": [IPv4Address("10.0.0.2")],
}


def lookup(name: str, version: int) -> list[dns.Address] | None:
    found = HOUSE.get(name)
    return None if found is None else [address for address in found if address.version == version]


def reverse(address: dns.Address) -> str | None:
    if address in (IPv4Address("10.0.0.1"), IPv6Address("fd00::1")):
        return ""  # of the networks, and nobody's
    return next((f"{name}.front" for name, addresses in HOUSE.items() if address in addresses), None)


def reply(message: bytes) -> bytes | None:
    question = dns.parse(message)
    assert question is not None
    return dns.local(question, lookup, reverse)


def told(message: bytes) -> tuple[int, int]:
    """The code and the number of records of an answer that there has to be."""
    found = reply(message)
    assert found is not None
    return found[3] & 0x0F, struct.unpack_from(">H", found, 6)[0]


def test_names_and_addresses() -> None:
    found = reply(query("WEB"))
    assert found is not None
    assert struct.unpack(">HHHHHH", found[:12]) == (7, 0x8180, 1, 1, 0, 0)
    assert found.endswith(struct.pack(">HHIH", dns.A, dns.IN, dns.TTL, 4) + bytes([10, 0, 0, 2]))
    found = reply(query("six", dns.AAAA))
    assert found is not None
    assert found.endswith(struct.pack(">HHIH", dns.AAAA, dns.IN, dns.TTL, 16) + IPv6Address("fd00::6").packed)
    for name in ("2.0.0.10.in-addr.arpa", dns_name(IPv4Address("10.0.0.2"))):
        found = reply(query(name, dns.PTR))
        assert found is not None
        assert found.endswith(dns.encode_name("web.front"))
    found = reply(query(dns_name(IPv6Address("fd00::6")), dns.PTR))
    assert found is not None
    assert found.endswith(dns.encode_name("six.front"))


def dns_name(address: dns.Address) -> str:
    return address.reverse_pointer


def test_a_name_has_what_it_has() -> None:
    """A known name without an address of a family is another answer than an unknown name."""
    assert told(query("web", dns.AAAA)) == (dns.NOERROR, 0)
    assert told(query("six", dns.A)) == (dns.NOERROR, 0)
    assert told(query("both", dns.A)) == told(query("both", dns.AAAA)) == (dns.NOERROR, 1)
    assert told(query("six", dns.ANY)) == told(query("both", dns.ANY)) == (dns.NOERROR, 1)
    for kind in (15, 16, 33, 65):  # MX, TXT, SRV, HTTPS
        assert told(query("web", kind)) == (dns.NOERROR, 0)
    # An address of ours that nobody has, has no name in the world either.
    for address in (IPv4Address("10.0.0.1"), IPv6Address("fd00::1")):
        assert told(query(dns_name(address), dns.PTR)) == (dns.NXDOMAIN, 0)


def test_the_rest_is_for_others() -> None:
    assert reply(query("example.org")) is None
    assert reply(query("nobody", dns.AAAA)) is None
    assert reply(query("www.example.org", 15)) is None  # its mail is not ours, though a container has the name
    assert reply(query("1.1.1.1.in-addr.arpa", dns.PTR)) is None
    assert reply(query("x.in-addr.arpa", dns.PTR)) is None
    assert reply(query("1.0.ip6.arpa", dns.PTR)) is None
    assert reply(query(dns_name(IPv6Address("2001:db8::1")), dns.PTR)) is None


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


def with_edns(message: bytes, size: int = 1232, version: int = 0, flags: int = 0, before: bytes = b"") -> bytes:
    record = b"\0" + struct.pack(">HHBBHH", dns.OPT, size, 0, version, flags, 0)
    return message[:11] + bytes([2 if before else 1]) + message[12:] + before + record


def test_edns_and_truncation() -> None:
    def many(name: str, version: int) -> list[dns.Address]:
        return [IPv4Address(f"10.0.0.{number}") for number in range(1, 61)]

    plain = query("web")
    for message, size, fits in ((plain, 0, False), (with_edns(plain), 1232, True)):
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


def test_edns_is_kept() -> None:
    """DO is repeated, a version that is not known is told so, and the record is found behind others."""
    found = reply(with_edns(query("web"), flags=0x8000))
    assert found is not None
    assert found.endswith(b"\0" + struct.pack(">HHBBHH", dns.OPT, dns.LARGE, 0, 0, 0x8000, 0))
    for name in ("web", "example.org"):
        found = reply(with_edns(query(name), version=1))
        assert found is not None
        assert found.endswith(b"\0" + struct.pack(">HHBBHH", dns.OPT, dns.LARGE, 1, 0, 0, 0))
        assert struct.unpack_from(">H", found, 6)[0] == 0
    other = b"\3key\0" + struct.pack(">HHIH", 25, dns.IN, 0, 3) + b"abc"
    question = dns.parse(with_edns(query("web"), 1400, before=other))
    assert question is not None
    assert question.size == 1400


def test_what_a_server_says_is_of_the_question() -> None:
    question = dns.parse(query("Example.org"))
    assert question is not None
    good = dns.answer(question, [bytes(4)])
    assert dns.repeats(good, question)
    assert dns.repeats(good.replace(b"Example", b"eXAMPLE"), question)
    for bad in (good.replace(b"Example", b"exbmple"), b"\0\1" + good[2:], query("Example.org"), b"", good[:11]):
        assert not dns.repeats(bad, question)
