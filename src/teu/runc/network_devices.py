# SPDX-License-Identifier: Apache-2.0
"""linux.netDevices: move interfaces of the host into the container, with their addresses, and up.

Called by teu.runc.launch while the first process waits. The addresses that an administrator gave
an interface (global scope, permanent) are lost by the kernel on the way and given anew.
"""

from __future__ import annotations

import os
from _socket import AF_NETLINK, AF_UNSPEC, SOCK_CLOEXEC, SOCK_RAW, if_nametoindex, socket
from struct import pack, unpack

from teu.linux import namespaces
from teu.linux.namespaces import CLONE_NEWNET
from teu.linux.rtnetlink import (
    IFA_F_PERMANENT,
    IFA_FLAGS,
    IFF_UP,
    IFLA_IFNAME,
    IFLA_NET_NS_FD,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
)
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _attribute(kind: int, data: bytes) -> bytes:
    return pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        size, kind = unpack("HH", data[:4])
        if size < 4:
            break
        found[kind & 0x3FFF] = data[4:size]
        data = data[(size + 3) & ~3 :]
    return found


class _Route:
    """A route netlink socket; it stays in the namespace in which it was made."""

    def __init__(self) -> None:
        self.socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)
        self.socket.bind((0, 0))
        self.number = 0

    def call(self, what: str, kind: int, flags: int, body: bytes) -> list[bytes]:
        self.number += 1
        request = pack("IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, self.number, 0) + body
        self.socket.send(request)
        answers: list[bytes] = []
        while True:
            data = self.socket.recv(1 << 17)
            while len(data) >= 16:
                size, answer, _flags, _number, _port = unpack("IHHII", data[:16])
                payload, data = data[16:size], data[(size + 3) & ~3 :]
                if answer == NLMSG_DONE:
                    return answers
                if answer == NLMSG_ERROR:
                    error = -unpack("i", payload[:4])[0]
                    if error:
                        raise OSError(error, f"{what}: {os.strerror(error)}")
                    return answers
                answers.append(payload)


def _index(name: str) -> int:
    try:
        return if_nametoindex(name)
    except OSError:
        raise RuncError(f"linux.netDevices: there is no interface {name!r}") from None


def move(devices: dict[str, Any], namespace: str) -> None:
    """devices: host name -> {"name": name inside}; namespace: the container's. RuncError, OSError say which failed."""
    host = _Route()
    target = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.setns(target, CLONE_NEWNET)
        try:
            inside = _Route()
        finally:
            namespaces.setns(here, CLONE_NEWNET)
        for name, device in devices.items():
            _move_one(host, inside, name, (device or {}).get("name") or name, target)
    finally:
        os.close(target)
        os.close(here)
        host.socket.close()


def _links(route: _Route, what: str) -> dict[bytes, int]:
    """The interfaces of a namespace: name -> index."""
    links = route.call(what, RTM_GETLINK, NLM_F_DUMP, pack("BBHiII", AF_UNSPEC, 0, 0, 0, 0, 0))
    return {_attributes(link[16:]).get(IFLA_IFNAME, b"").rstrip(b"\0"): unpack("i", link[4:8])[0] for link in links}


def _arrived(before: dict[bytes, int], after: dict[bytes, int], name: bytes) -> int:
    """The index of what is new (0: nothing). Of a name with %d the kernel makes one that is free."""
    start, template, end = name.partition(b"%d")
    for found, index in after.items():
        fits = found.startswith(start) and found.endswith(end) if template else found == name
        if fits and found not in before:
            return index
    return 0


def _move_one(host: _Route, inside: _Route, name: str, new_name: str, target: int) -> None:
    index = _index(name)
    what = f"linux.netDevices: {name}"
    addresses = []
    for message in host.call(what, RTM_GETADDR, NLM_F_DUMP, pack("BBBBI", AF_UNSPEC, 0, 0, 0, 0)):
        family, prefix, flags, scope, at = unpack("BBBBI", message[:8])
        found = _attributes(message[8:])
        flags = unpack("I", found[IFA_FLAGS])[0] if IFA_FLAGS in found else flags
        if at == index and scope == 0 and flags & IFA_F_PERMANENT:
            kept = {kind: data for kind, data in found.items() if kind in (1, 2, 4)}  # ADDRESS, LOCAL, BROADCAST
            addresses.append((family, prefix, kept))
    before = _links(inside, what)
    if os.fsencode(new_name) in before:
        # the kernel would say so too, but only once it has moved it there under its old name
        raise RuncError(f"{what}: the container has an interface {new_name!r} already")
    body = pack("BBHiII", AF_UNSPEC, 0, 0, index, 0, 0)
    body += _attribute(IFLA_NET_NS_FD, pack("I", target)) + _attribute(IFLA_IFNAME, os.fsencode(new_name) + b"\0")
    host.call(what, RTM_NEWLINK, NLM_F_ACK, body)
    new_index = _arrived(before, _links(inside, what), os.fsencode(new_name))
    if not new_index:
        raise RuncError(f"{what}: it did not arrive in the container")
    for family, prefix, kept in addresses:
        body = pack("BBBBI", family, prefix, 0, 0, new_index)
        for kind, data in kept.items():
            body += _attribute(kind, data)
        inside.call(what, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body)
    inside.call(what, RTM_NEWLINK, NLM_F_ACK, pack("BBHiII", AF_UNSPEC, 0, 0, new_index, IFF_UP, IFF_UP))
