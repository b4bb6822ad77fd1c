# SPDX-License-Identifier: Apache-2.0
"""The rules that lead port 53 of 127.0.0.11 to the resolver's own ports, in a container's network namespace. Called by
the resolver (dns.py), in a thread that is there.

    table ip teu-dns {
        chain output {
            type nat hook output priority -100; policy accept;
            ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:UDP
            ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:TCP
        }
    }

They are given to the kernel in its own form. libnftables would need a handle for each namespace, with a socket that has
to have a low descriptor (nftables.py), of which a daemon with many containers has none left: then a process of its own
for every start of a container. And where something is deleted on the way, as nft's language has it for a table that may
be there, the closing of that socket waits for what else is going on in the kernel, some 10 ms.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address

from teu.linux import netlink
from teu.linux.nftables import (
    NETLINK_NETFILTER,
    NFNL_SUBSYS_NFTABLES,
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    NFTA_CHAIN_NAME,
    NFTA_RULE_CHAIN,
)
from teu.linux.rtnetlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL

TABLE, CHAIN = "teu-dns", "output"
PORT = 53
PRIORITY = -100

NFPROTO_IPV4 = 2
NF_INET_LOCAL_OUT = 3
NF_ACCEPT = 1
NFT_REG_1, NFT_REG_2 = 1, 2
NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER = 1, 2
NFT_META_L4PROTO = 16
NFT_CMP_EQ = 0
NFT_NAT_DNAT = 1
NFTA_LIST_ELEM = 1
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_DATA_VALUE = 1
NFTA_TABLE_NAME = 1
NFTA_CHAIN_TABLE, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_EXPRESSIONS = 1, 4
NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN = 1, 2, 3, 4
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA = 1, 2, 3
NFTA_META_DREG, NFTA_META_KEY = 1, 2
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA = 1, 2
NFTA_NAT_TYPE, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MIN = 1, 2, 3, 5
_NESTED = 0x8000
_PLACE_IN_IP, _PLACE_IN_TRANSPORT = 16, 2  # of the destination's address and port


def lead(address: IPv4Address, udp: int, tcp: int) -> None:
    """Make them, in the network namespace of the calling thread, with the resolver's ports at that address. Those of an
    earlier resolver go. Raises OSError."""
    made = [_table(), _chain(), _rule(address, socket.IPPROTO_UDP, udp), _rule(address, socket.IPPROTO_TCP, tcp)]
    with netlink.Socket(NETLINK_NETFILTER) as kernel:
        try:
            kernel.transact(NFNL_SUBSYS_NFTABLES, made)
        except FileExistsError:
            gone = _message(NFT_MSG_DELTABLE, 0, _text(NFTA_TABLE_NAME, TABLE), "table")
            kernel.transact(NFNL_SUBSYS_NFTABLES, [gone, *made])


def _message(kind: int, flags: int, body: bytes, what: str) -> netlink.Message:
    head = struct.pack("=BBH", NFPROTO_IPV4, 0, 0)
    return netlink.Message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, head + body, f"{what} for {TABLE}")


def _table() -> netlink.Message:
    return _message(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, _text(NFTA_TABLE_NAME, TABLE), "table")


def _chain() -> netlink.Message:
    body = _text(NFTA_CHAIN_TABLE, TABLE) + _text(NFTA_CHAIN_NAME, CHAIN) + _text(NFTA_CHAIN_TYPE, "nat")
    body += _nested(
        NFTA_CHAIN_HOOK,
        _number(NFTA_HOOK_HOOKNUM, NF_INET_LOCAL_OUT),
        netlink.attribute(NFTA_HOOK_PRIORITY, struct.pack(">i", PRIORITY)),
    )
    return _message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, body + _number(NFTA_CHAIN_POLICY, NF_ACCEPT), "chain")


def _rule(address: IPv4Address, protocol: int, port: int) -> netlink.Message:
    """What goes to port 53 at the address by a protocol goes to another port there."""
    expressions = (
        _payload(NFT_PAYLOAD_NETWORK_HEADER, _PLACE_IN_IP, 4),
        _equals(address.packed),
        _expression("meta", _number(NFTA_META_DREG, NFT_REG_1), _number(NFTA_META_KEY, NFT_META_L4PROTO)),
        _equals(bytes([protocol])),
        _payload(NFT_PAYLOAD_TRANSPORT_HEADER, _PLACE_IN_TRANSPORT, 2),
        _equals(struct.pack(">H", PORT)),
        _immediate(NFT_REG_1, address.packed),
        _immediate(NFT_REG_2, struct.pack(">H", port)),
        _expression(
            "nat",
            _number(NFTA_NAT_TYPE, NFT_NAT_DNAT),
            _number(NFTA_NAT_FAMILY, NFPROTO_IPV4),
            _number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1),
            _number(NFTA_NAT_REG_PROTO_MIN, NFT_REG_2),
        ),
    )
    body = _text(NFTA_RULE_TABLE, TABLE) + _text(NFTA_RULE_CHAIN, CHAIN)
    body += _nested(NFTA_RULE_EXPRESSIONS, *expressions)
    return _message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body, "rule")


# -- expressions, all by the first register ------------------------------------------------------


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload",
        _number(NFTA_PAYLOAD_DREG, NFT_REG_1),
        _number(NFTA_PAYLOAD_BASE, base),
        _number(NFTA_PAYLOAD_OFFSET, offset),
        _number(NFTA_PAYLOAD_LEN, length),
    )


def _equals(value: bytes) -> bytes:
    return _expression(
        "cmp", _number(NFTA_CMP_SREG, NFT_REG_1), _number(NFTA_CMP_OP, NFT_CMP_EQ), _value(NFTA_CMP_DATA, value)
    )


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", _number(NFTA_IMMEDIATE_DREG, register), _value(NFTA_IMMEDIATE_DATA, value))


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(NFTA_LIST_ELEM, _text(NFTA_EXPR_NAME, name), _nested(NFTA_EXPR_DATA, *attributes))


# -- attributes, whose numbers nf_tables has in the order of the network --------------------------


def _nested(kind: int, *attributes: bytes) -> bytes:
    return netlink.attribute(kind | _NESTED, b"".join(attributes))


def _text(kind: int, value: str) -> bytes:
    return netlink.attribute(kind, netlink.text(value))


def _number(kind: int, value: int) -> bytes:
    return netlink.attribute(kind, struct.pack(">I", value))


def _value(kind: int, value: bytes) -> bytes:
    return _nested(kind, netlink.attribute(NFTA_DATA_VALUE, value))
