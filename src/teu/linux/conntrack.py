# SPDX-License-Identifier: Apache-2.0
"""Forget flows that the kernel follows (nf_conntrack). Called by the engine's driver bridge.

Where a published port leads is decided by a flow's first packet. Of a protocol without connections a flow has no end as
long as somebody sends: who has sent before the container was there would never reach it, and who goes on sending after
it has ended would reach whoever has its address next.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from teu.linux.netlink import attribute, attributes
from teu.linux.rtnetlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR

NETLINK_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # of NFNL_SUBSYS_CTNETLINK
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE, CTA_FILTER = 1, 2, 12, 18, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
_BY_PROTOCOL, _BY_PORT = 1 << 3, 1 << 5
NLA_F_NESTED = 0x8000
NUMBERS = {"udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
"""The protocols whose flows may have to be forgotten, and how the kernel calls them."""
FEW = 8
"""Ports for each of which the kernel is asked alone; all flows of a protocol are looked at where there are more."""

_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct(">BBH")


class Way(NamedTuple):
    """A port of the host, at one of its addresses or with an unspecified one at each, that leads to a container's, or
    did so."""

    protocol: str
    host_address: str
    host_port: int
    address: str
    port: int


def forget(ways: Iterable[Way], led: bool, local: Collection[IPv4Address | IPv6Address]) -> int:
    """Forget the flows to these ports of the host, whose addresses are `local`: those that lead there, where they have
    `led` there until now, else those that lead elsewhere. Returns how many there were. Raises OSError."""
    wanted: dict[tuple[int, int], list[Way]] = {}
    for way in ways:
        if way.protocol in NUMBERS:
            wanted.setdefault((ip_address(way.address).version, NUMBERS[way.protocol]), []).append(way)
    if not wanted:
        return 0
    count, own = 0, {address.packed for address in local}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.bind((0, 0))
        for (version, protocol), some in wanted.items():
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            by_port: dict[int, list[Way]] = {}
            for way in some:
                by_port.setdefault(way.host_port, []).append(way)
            for port in by_port if len(by_port) <= FEW else (0,):
                gone = [
                    flow
                    for flow in _flows(kernel, family, protocol, port)
                    if any(flow.goes_to(way, own) and flow.leads(way) == led for way in by_port.get(flow.port, ()))
                ]
                count += sum(_delete(kernel, family, flow) for flow in gone)
    return count


class _Flow(NamedTuple):
    """To where it was sent, from where the answers come, and what names it."""

    target: bytes
    port: int
    source: bytes
    source_port: int
    named: bytes

    def goes_to(self, way: Way, own: Collection[bytes]) -> bool:
        """Ports of the same number are other machines' as well."""
        host = ip_address(way.host_address)
        if host.is_unspecified:
            return self.target in own or ip_address(self.target).is_loopback
        return host.packed == self.target

    def leads(self, way: Way) -> bool:
        return (self.source, self.source_port) == (ip_address(way.address).packed, way.port)


def _nested(kind: int, data: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, data)


def _flows(kernel: socket.socket, family: int, protocol: int, port: int) -> Iterator[_Flow]:
    """Those of a protocol, and to a port unless that is 0. A kernel before 5.8 tells of all, and so do we."""
    proto = attribute(CTA_PROTO_NUM, bytes([protocol]))
    flags = _BY_PROTOCOL
    if port:
        proto += attribute(CTA_PROTO_DST_PORT, struct.pack(">H", port))
        flags |= _BY_PORT
    body = _FAMILY.pack(family, 0, 0) + _nested(CTA_TUPLE_ORIG, _nested(CTA_TUPLE_PROTO, proto))
    chosen = attribute(CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags))
    body += _nested(CTA_FILTER, chosen + attribute(CTA_FILTER_REPLY_FLAGS, struct.pack("=I", 0)))
    kernel.send(_HEADER.pack(16 + len(body), _GET, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
    for kind, data in _answers(kernel):
        if kind == NLMSG_DONE:
            return
        if kind == NLMSG_ERROR:
            _raise(data)
        elif (flow := _flow(data, protocol, port)) is not None:
            yield flow


def _answers(kernel: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        data = kernel.recv(1 << 17)
        position = 0
        while position + 16 <= len(data):
            length, kind, _flags, _sequence, _pid = _HEADER.unpack_from(data, position)
            yield kind, data[position + 16 : position + length]
            position += (length + 3) & ~3


def _flow(data: bytes, protocol: int, port: int) -> _Flow | None:
    found = attributes(data[_FAMILY.size :])
    orig, reply = _tuple(found.get(CTA_TUPLE_ORIG, b"")), _tuple(found.get(CTA_TUPLE_REPLY, b""))
    if orig is None or reply is None or orig[0] != protocol or port and orig[3] != port:
        return None
    named = b"".join(
        attribute(kind | (NLA_F_NESTED if kind == CTA_TUPLE_ORIG else 0), found[kind])
        for kind in (CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID)
        if kind in found
    )
    return _Flow(orig[2], orig[3], reply[1], reply[4], named)


def _tuple(data: bytes) -> tuple[int, bytes, bytes, int, int] | None:
    """Protocol, source, destination, destination port, source port."""
    found = attributes(data)
    addresses = list(attributes(found.get(CTA_TUPLE_IP, b"")).values())  # source and destination, of either family
    proto = attributes(found.get(CTA_TUPLE_PROTO, b""))
    if len(addresses) != 2 or not {CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT} <= proto.keys():
        return None
    source_port, port = (struct.unpack(">H", proto[kind])[0] for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT))
    return proto[CTA_PROTO_NUM][0], addresses[0], addresses[1], port, source_port


def _delete(kernel: socket.socket, family: int, flow: _Flow) -> bool:
    """False where it has ended meanwhile."""
    body = _FAMILY.pack(family, 0, 0) + flow.named
    kernel.send(_HEADER.pack(16 + len(body), _DELETE, NLM_F_REQUEST | NLM_F_ACK, 2, 0) + body)
    for kind, data in _answers(kernel):
        if kind == NLMSG_ERROR:
            if struct.unpack_from("=i", data)[0] == -errno.ENOENT:
                return False
            _raise(data)
            return True
    return False


def _raise(data: bytes) -> None:
    code = -struct.unpack_from("=i", data)[0]
    if code:
        raise OSError(code, f"conntrack: {errno.errorcode.get(code, code)}")
