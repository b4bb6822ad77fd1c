# SPDX-License-Identifier: Apache-2.0
"""The messages of teu.linux.dnswire beside a library's, dnspython: it reads what we write, and we what it writes."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest

from teu.linux import dnswire

CROWD = [IPv4Address(f"10.0.1.{number}") for number in range(1, 101)]
HOUSE: dict[str, list[dnswire.Address]] = {
    "web": [IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3"), IPv6Address("fd00::2")],
    "six.front": [IPv6Address("fd00::6")],
    "a" * 63: [IPv4Address("10.0.0.4")],
    "crowd": [*CROWD],
}


def lookup(name: str, version: int) -> list[dnswire.Address] | None:
    found = HOUSE.get(name)
    return None if found is None else [address for address in found if address.version == version]


def reverse(address: dnswire.Address) -> str | None:
    return next((name for name, addresses in HOUSE.items() if address in addresses), None)


def asked(query: dns.message.Message) -> dns.message.Message:
    """Our answer to the library's query, cut to what fits, as the library reads it."""
    question = dnswire.parse(query.to_wire())
    assert question is not None
    wire = dnswire.local(question, lookup, reverse)
    assert wire is not None
    found = dns.message.from_wire(dnswire.fit(wire, question))
    assert query.is_response(found)
    assert found.flags & dns.flags.RD == query.flags & dns.flags.RD and found.flags & dns.flags.RA
    return found


def addresses(answer: dns.message.Message) -> set[dnswire.Address]:
    return {ip_address(record.address) for records in answer.answer for record in records}


@pytest.mark.parametrize("edns", [-1, 0])
@pytest.mark.parametrize("name", ["web", "six.front", "a" * 63])
def test_addresses(name: str, edns: int) -> None:
    for kind, version in (("A", 4), ("AAAA", 6)):
        answer = asked(dns.message.make_query(name, kind, use_edns=edns))
        assert answer.rcode() == dns.rcode.NOERROR
        assert addresses(answer) == {address for address in HOUSE[name] if address.version == version}
        assert answer.edns == edns
        assert all(str(records.name).lower() == f"{name}." for records in answer.answer)


def test_names_of_addresses() -> None:
    for name, address in (("web", "10.0.0.2"), ("six.front", "fd00::6"), ("web", "fd00::2")):
        answer = asked(dns.message.make_query(dns.reversename.from_address(address), "PTR"))
        assert [str(record.target) for records in answer.answer for record in records] == [f"{name}."]


@pytest.mark.parametrize(("payload", "whole"), [(None, False), (512, False), (1232, False), (4096, True)])
def test_what_does_not_fit_is_cut(payload: int | None, whole: bool) -> None:
    edns = {} if payload is None else {"use_edns": 0, "payload": payload}
    answer = asked(dns.message.make_query("crowd", "A", **edns))  # type: ignore[arg-type]
    assert bool(answer.flags & dns.flags.TC) != whole
    assert addresses(answer) == set(CROWD) if whole else addresses(answer) < set(CROWD)


def test_queries_of_any_name_are_read() -> None:
    generator = random.Random(1)
    for number in range(500):
        labels = [
            bytes(generator.choices(b"abcXYZ019-_", k=generator.randint(1, 20))) for _ in range(generator.randint(1, 9))
        ]
        name = dns.name.Name([*labels, b""])
        kind = generator.choice(["A", "AAAA", "PTR", "MX", "TXT", "SRV"])
        query = dns.message.make_query(name, kind, use_edns=generator.choice([-1, 0]), id=number)
        found = dnswire.parse(query.to_wire())
        assert found is not None
        assert (found.identity, found.name) == (number, name.to_text(omit_final_dot=True).lower())
        assert found.kind == dns.rdatatype.from_text(kind)
