# SPDX-License-Identifier: Apache-2.0
"""rtnetlink, as much as a container's network needs: links, veth pairs, bridges, addresses, routes.

Called by teud's networks. Own code because the importing of a general library costs more than a whole
`docker run`'s network. A `Socket` belongs to the network namespace in which it was opened, for ever; it may be
used from any thread, one at a time. Errors are OSError with the kernel's number and what was asked.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, NamedTuple

from teu.linux.rtnetlink import (
    IFA_ADDRESS,
    IFA_BROADCAST,
    IFA_F_NODAD,
    IFA_FLAGS,
    IFA_LOCAL,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_BRPORT_ISOLATED,
    IFLA_BRPORT_MODE,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_IPVLAN_FLAGS,
    IFLA_IPVLAN_MODE,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_MACVLAN_MODE,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    IFLA_VLAN_ID,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTN_ANYCAST,
    RTN_BROADCAST,
    RTN_LOCAL,
    RTN_MULTICAST,
    RTN_UNICAST,
    RTPROT_BOOT,
    VETH_INFO_PEER,
)

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")

NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
LATE = 4096  # a route's metric that no other is behind
DUMP_ATTEMPTS = 10


class Link(NamedTuple):
    """An interface. `number` is its index, `flags` are IFF_*, `kind` is "" for hardware, `master` the index of its
    bridge or 0."""

    number: int
    name: str
    flags: int
    kind: str
    master: int
    mac: str
    mtu: int
    peer: int  # of a veth its other end, of a macvlan, an ipvlan and a VLAN what it is on: an index in that namespace
    far: bool  # whether that namespace is another one


class Message(NamedTuple):
    """A request: its type, extra flags and body."""

    kind: int
    flags: int
    body: bytes
    what: str


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute of a message (rtnetlink(7)), padded to four bytes."""
    return _ATTRIBUTE.pack(len(data) + 4, kind) + data + b"\0" * (-len(data) % 4)


def text(value: str) -> bytes:
    """A name as attributes hold it: with a zero byte at its end."""
    return os.fsencode(value) + b"\0"


def number(value: int) -> bytes:
    """A number of 32 bits as attributes hold it."""
    return struct.pack("=I", value)


def attributes(data: bytes) -> dict[int, bytes]:
    """What a message holds after its header, by number. The last of a number counts; what is cut off is left out."""
    result = {}
    position = 0
    while position + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < 4:
            break
        result[kind & 0x3FFF] = data[position + 4 : position + length]
        position += (length + 3) & ~3
    return result


def _first(data: bytes, position: int, kind: int) -> bytes | None:
    """One attribute of those that begin there, without a look at those behind it."""
    while position + 4 <= len(data):
        length, found = _ATTRIBUTE.unpack_from(data, position)
        if length < 4:
            break
        if found & 0x3FFF == kind:
            return data[position + 4 : position + length]
        position += (length + 3) & ~3
    return None


def mac_bytes(mac: str) -> bytes:
    """The six bytes of "02:42:ac:11:00:02". Raises ValueError."""
    return bytes.fromhex(mac.replace(":", ""))


class Socket:
    """A conversation with the kernel about the network namespace that the thread was in when it was opened."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        """`protocol`: with which part of the kernel; all but `dump` is for rtnetlink alone. Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Nothing is sent or received any more."""
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, messages: Sequence[Message]) -> None:
        """Ask for changes, all in one system call; the first that fails is raised, later ones are tried too."""
        waiting: dict[int, str] = {}
        packed = self._pack(messages, waiting)
        self._socket.send(packed)
        self._answered(waiting)

    def transact(self, subsystem: int, messages: Sequence[Message]) -> None:
        """Ask a subsystem of netfilter for changes, all of which are made, or none. Raises OSError, of the first that
        is refused."""
        waiting: dict[int, str] = {}
        frame = struct.pack("=BBH", 0, 0, socket.htons(subsystem))
        begin = self._packed(Message(NFNL_MSG_BATCH_BEGIN, 0, frame, ""), NLM_F_REQUEST)
        whole = self._sequence  # by its number the kernel answers where it has refused all of them together
        changes = self._pack(messages, waiting)
        self._socket.send(begin + changes + self._packed(Message(NFNL_MSG_BATCH_END, 0, frame, ""), NLM_F_REQUEST))
        self._answered(waiting, whole)

    def _pack(self, messages: Sequence[Message], waiting: dict[int, str]) -> bytes:
        """`waiting` gets the numbers that the kernel is to answer, and what was asked."""
        packed = b""
        for message in messages:
            packed += self._packed(message, NLM_F_REQUEST | NLM_F_ACK | message.flags)
            waiting[self._sequence] = message.what
        return packed

    def _packed(self, message: Message, flags: int) -> bytes:
        self._sequence += 1
        return _HEADER.pack(16 + len(message.body), message.kind, flags, self._sequence, 0) + message.body

    def _answered(self, waiting: dict[int, str], whole: int = 0) -> None:
        """Until all are. Raises OSError of the first that was refused; of `whole`, if it is, at once."""
        failure: OSError | None = None
        while waiting:
            for kind, _, sequence, body in self._receive():
                if kind == NLMSG_ERROR and (sequence in waiting or sequence == whole):
                    code = -struct.unpack_from("=i", body)[0]
                    if code and failure is None:
                        failure = OSError(code, os.strerror(code), waiting.get(sequence, ""))
                    if sequence == whole:
                        waiting.clear()
                    else:
                        del waiting[sequence]
        if failure:
            raise failure

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All that the kernel has of a kind (RTM_GET*, NFT_MSG_GET*), a body for each. What changes meanwhile may be
        there twice or not at all: it is asked again then, a few times. Raises OSError."""
        for _ in range(DUMP_ATTEMPTS):
            result, whole = self._dump(kind, body)
            if whole:
                break
        return result

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        """Once; and whether nothing has changed while the kernel listed it."""
        self._sequence += 1
        sequence = self._sequence
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(_HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body)
        result: list[bytes] = []
        whole = True
        while True:
            for answer, marks, of, data in self._receive():
                if of != sequence:
                    continue
                whole = whole and not marks & NLM_F_DUMP_INTR
                if answer == NLMSG_DONE:
                    return result, whole
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data)[0]
                    raise OSError(code, os.strerror(code), "netlink dump")
                result.append(data)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, sequence number and body of each message of one read."""
        data = self._socket.recv(1 << 17)
        position = 0
        while position + 16 <= len(data):
            length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, position)
            yield kind, flags, sequence, data[position + 16 : position + length]
            position += (length + 3) & ~3

    # -- what there is -------------------------------------------------------------------------

    def links(self) -> list[Link]:
        """All interfaces of the socket's network namespace. Raises OSError."""
        return [_parse_link(data) for data in self.dump(RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """The interface of that name, None where there is none. Raises OSError."""
        self._sequence += 1
        body = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, text(name))
        self._socket.send(_HEADER.pack(16 + len(body), RTM_GETLINK, NLM_F_REQUEST, self._sequence, 0) + body)
        while True:
            for kind, _, sequence, data in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == RTM_NEWLINK:
                    return _parse_link(data)
                code = -struct.unpack_from("=i", data)[0]
                if code == errno.ENODEV:
                    return None
                raise OSError(code, os.strerror(code), f"interface {name}")

    def routes(self, version: int = 0) -> list[IPv4Network | IPv6Network]:
        """Destinations of all routes, of one family or (0) of both; default routes are left out, and what the kernel
        makes of an address beside its own route: broadcast, anycast, multicast. Raises OSError."""
        family = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[version]
        found: dict[tuple[int, bytes, int], None] = {}  # there are several for each address, and many addresses
        for data in self.dump(RTM_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            of, length, kind = data[0], data[1], data[7]
            destination = _first(data, _ROUTE.size, RTA_DST)
            if length and destination is not None and kind not in (RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST):
                found[of, destination, length] = None
        result: list[IPv4Network | IPv6Network] = []
        for of, destination, length in found:
            if of == socket.AF_INET:
                result.append(IPv4Network((destination, length), strict=False))
            elif of == socket.AF_INET6:
                result.append(IPv6Network((destination, length), strict=False))
        return result

    def addresses(self) -> list[tuple[int, IPv4Address | IPv6Address, int]]:
        """(interface index, address, prefix length) of every address."""
        result: list[tuple[int, IPv4Address | IPv6Address, int]] = []
        for data in self.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
            family, length, _flags, _scope, index = _ADDRESS.unpack_from(data)
            found = attributes(data[_ADDRESS.size :])
            packed = found.get(IFA_LOCAL, found.get(IFA_ADDRESS))
            if packed is None:
                continue
            if family == socket.AF_INET:
                result.append((index, IPv4Address(packed), length))
            elif family == socket.AF_INET6:
                result.append((index, IPv6Address(packed), length))
        return result


def _parse_link(data: bytes) -> Link:
    _family, _type, index, flags, _change = _LINK.unpack_from(data)
    found = attributes(data[_LINK.size :])
    info = attributes(found.get(IFLA_LINKINFO, b""))
    return Link(
        index,
        found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        flags,
        info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
        struct.unpack("=I", found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0,
        found.get(IFLA_ADDRESS, b"").hex(":"),
        struct.unpack("=I", found[IFLA_MTU])[0] if IFLA_MTU in found else 0,
        struct.unpack("=I", found[IFLA_LINK])[0] if IFLA_LINK in found else 0,
        IFLA_LINK_NETNSID in found,
    )


# -- requests ------------------------------------------------------------------------------------


def _kind(kind: str, data: bytes = b"") -> bytes:
    info = attribute(IFLA_INFO_KIND, text(kind))
    if data:
        info += attribute(IFLA_INFO_DATA, data)
    return attribute(IFLA_LINKINFO, info)


def new_bridge(name: str, mtu: int = 0, mac: str = "") -> Message:
    """Make a bridge that is up. MTU in bytes, and MAC address, where they are given: else the kernel chooses. One of
    that name is an error."""
    body = _LINK.pack(0, 0, 0, IFF_UP, IFF_UP) + attribute(IFLA_IFNAME, text(name))
    if mac:
        body += attribute(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += attribute(IFLA_MTU, number(mtu))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + _kind("bridge"), f"bridge {name}")


def new_veth(name: str, master: int, peer: str, peer_namespace: int, peer_mac: str, mtu: int = 0) -> Message:
    """A veth pair: `name` here, up and on the bridge; `peer`, down, in the other namespace (a descriptor)."""
    size = attribute(IFLA_MTU, number(mtu)) if mtu else b""
    # The peer cannot be made up at once: the kernel opens it before the pair is joined (ENOTCONN).
    other = (
        _LINK.pack(0, 0, 0, 0, 0)
        + attribute(IFLA_IFNAME, text(peer))
        + attribute(IFLA_NET_NS_FD, number(peer_namespace))
        + attribute(IFLA_ADDRESS, mac_bytes(peer_mac))
        + size
    )
    body = (
        _LINK.pack(0, 0, 0, IFF_UP, IFF_UP)
        + attribute(IFLA_IFNAME, text(name))
        + attribute(IFLA_MASTER, number(master))
        + size
        + _kind("veth", attribute(VETH_INFO_PEER, other))
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"veth {name}")


def _short(value: int) -> bytes:
    return struct.pack("=H", value)


def _new_on_parent(name: str, parent: int, namespace: int, mac: str, mtu: int, info: bytes, what: str) -> Message:
    """An interface on another one of the host (its index), down, in a namespace (a descriptor)."""
    body = (
        _LINK.pack(0, 0, 0, 0, 0)
        + attribute(IFLA_IFNAME, text(name))
        + attribute(IFLA_LINK, number(parent))
        + attribute(IFLA_NET_NS_FD, number(namespace))
    )
    if mac:
        body += attribute(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += attribute(IFLA_MTU, number(mtu))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + info, what)


def new_macvlan(name: str, parent: int, namespace: int, mode: int, mac: str = "", mtu: int = 0) -> Message:
    """A macvlan in the namespace, on an interface of the host. `mode`: the kernel's MACVLAN_MODE_*."""
    info = _kind("macvlan", attribute(IFLA_MACVLAN_MODE, number(mode)))
    return _new_on_parent(name, parent, namespace, mac, mtu, info, f"macvlan {name}")


def new_ipvlan(name: str, parent: int, namespace: int, mode: int, flags: int, mtu: int = 0) -> Message:
    """An ipvlan in the namespace, on an interface of the host, whose MAC address it has. `mode` and `flags`: the
    kernel's IPVLAN_MODE_* and IPVLAN_F_*."""
    data = attribute(IFLA_IPVLAN_MODE, _short(mode)) + attribute(IFLA_IPVLAN_FLAGS, _short(flags))
    return _new_on_parent(name, parent, namespace, "", mtu, _kind("ipvlan", data), f"ipvlan {name}")


def new_vlan(name: str, parent: int, tag: int) -> Message:
    """What an interface of the host (its index) has of the VLAN with this number, up. One of that name is an error."""
    body = _LINK.pack(0, 0, 0, IFF_UP, IFF_UP) + attribute(IFLA_IFNAME, text(name))
    body += attribute(IFLA_LINK, number(parent)) + _kind("vlan", attribute(IFLA_VLAN_ID, _short(tag)))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"VLAN {name}")


def new_dummy(name: str) -> Message:
    """An interface that leads nowhere, up. One of that name is an error."""
    body = _LINK.pack(0, 0, 0, IFF_UP, IFF_UP) + attribute(IFLA_IFNAME, text(name)) + _kind("dummy")
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"dummy {name}")


def _bridge_port(name: str, kind: int, value: bytes, what: str) -> Message:
    info = attribute(IFLA_INFO_SLAVE_KIND, text("bridge"))
    info += attribute(IFLA_INFO_SLAVE_DATA, attribute(kind, value))
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, text(name)) + attribute(IFLA_LINKINFO, info)
    return Message(RTM_NEWLINK, 0, body, f"{what} of {name}")


def hairpin(name: str) -> Message:
    """A bridge's port may send back out what came in by it."""
    return _bridge_port(name, IFLA_BRPORT_MODE, b"\1", "hairpin mode")


def isolated(name: str, so: bool = True) -> Message:
    """A bridge's port reaches the bridge itself, and no other port of it that is isolated; or all of them again."""
    return _bridge_port(name, IFLA_BRPORT_ISOLATED, b"\1" if so else b"\0", "isolation")


def set_master(index: int, master: int) -> Message:
    """Make an interface a port of a bridge (its index); its settings as a port are those of a new one then."""
    body = _LINK.pack(0, 0, index, 0, 0) + attribute(IFLA_MASTER, number(master))
    return Message(RTM_NEWLINK, 0, body, f"interface {index} on bridge {master}")


def set_mac(index: int, mac: str) -> Message:
    """Give an interface a MAC address. A bridge keeps it then, whichever ports it has."""
    body = _LINK.pack(0, 0, index, 0, 0) + attribute(IFLA_ADDRESS, mac_bytes(mac))
    return Message(RTM_NEWLINK, 0, body, f"address {mac} of interface {index}")


def move(index: int, namespace: int, name: str) -> Message:
    """Put an interface into another namespace (a descriptor), under a name there, down."""
    body = _LINK.pack(0, 0, index, 0, 0) + attribute(IFLA_IFNAME, text(name))
    return Message(RTM_NEWLINK, 0, body + attribute(IFLA_NET_NS_FD, number(namespace)), f"interface {name}")


def set_up(index: int) -> Message:
    """Bring an interface up, by its index."""
    return Message(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, IFF_UP, IFF_UP), f"interface {index} up")


def delete_index(index: int) -> Message:
    """Delete an interface by its number, which no other one of the namespace ever had; of a pair both ends."""
    return Message(RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0), f"interface {index}")


def add_address(index: int, address: IPv4Address | IPv6Address, prefix: int) -> Message:
    """Give an interface an address of a network with that length of prefix. For IPv4 with the broadcast address, for
    IPv6 without the wait for a duplicate. An address that it has is an error."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _ADDRESS.pack(family, prefix, 0, 0, index)
    body += attribute(IFA_LOCAL, address.packed) + attribute(IFA_ADDRESS, address.packed)
    if address.version == 4:
        broadcast = IPv4Network((address, prefix), strict=False).broadcast_address
        body += attribute(IFA_BROADCAST, broadcast.packed)
    else:
        body += attribute(IFA_FLAGS, number(IFA_F_NODAD))
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"address {address}/{prefix}")


def delete_address(index: int, address: IPv4Address | IPv6Address, prefix: int) -> Message:
    """Take one of its addresses from an interface."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _ADDRESS.pack(family, prefix, 0, 0, index) + attribute(IFA_LOCAL, address.packed)
    return Message(RTM_DELADDR, 0, body, f"address {address}/{prefix}")


def default_route(gateway: IPv4Address | IPv6Address, index: int = 0) -> Message:
    """The default route, whether there is one or not. The unspecified address as a gateway: by the interface itself."""
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _default(gateway, index), f"default route by {gateway}")


def delete_default_route(gateway: IPv4Address | IPv6Address) -> Message:
    """Delete the default route that leads by this gateway."""
    return Message(RTM_DELROUTE, 0, _default(gateway, 0), f"default route by {gateway}")


def _default(gateway: IPv4Address | IPv6Address, index: int) -> bytes:
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    scope = RT_SCOPE_LINK if gateway.is_unspecified else RT_SCOPE_UNIVERSE
    body = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    if not gateway.is_unspecified:
        body += attribute(RTA_GATEWAY, gateway.packed)
    if index:
        body += attribute(RTA_OIF, number(index))
    return body


def add_route(
    destination: IPv4Network | IPv6Network, router: IPv4Address | IPv6Address | None, index: int = 0
) -> Message:
    """A route by a router, or where there is none by the interface itself. One that is there is replaced."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    scope = RT_SCOPE_UNIVERSE if router is not None or destination.version == 6 else RT_SCOPE_LINK
    body = _ROUTE.pack(family, destination.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    body += attribute(RTA_DST, destination.network_address.packed)
    if router is not None:
        body += attribute(RTA_GATEWAY, router.packed)
    if index:
        body += attribute(RTA_OIF, number(index))
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"route to {destination}")


def local_route(address: IPv6Address, index: int) -> Message:
    """Packets to an address that come by this interface are the host's own, also where the address is another
    interface's; that one is still the first choice for what goes out."""
    body = _ROUTE.pack(socket.AF_INET6, 128, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_LOCAL, 0)
    body += attribute(RTA_DST, address.packed) + attribute(RTA_OIF, number(index))
    body += attribute(RTA_PRIORITY, number(LATE))
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"route to {address}")


def link_index(found: Any) -> int:
    """The index number of a Link that must be there."""
    if found is None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return int(found.number)
