# SPDX-License-Identifier: Apache-2.0
"""Ping, as tests of networks need it: over as soon as there is an answer, and asked again while there is none."""

from __future__ import annotations

import os
import socket
import struct
import time
from ipaddress import IPv4Address, IPv6Address, ip_address

from teu.linux import netns

AGAIN = 0.1  # seconds from one request to the next
REQUEST = {4: 8, 6: 128}
REPLY = {4: 0, 6: 129}


def pings(namespace: int, address: str | IPv4Address | IPv6Address, patience: float = 3.0) -> bool:
    """Whether the address answers within `patience` seconds one who asks in the namespace that the descriptor is of.

    Several are asked, for the first may go out before both ends are up. Needs root.
    """
    return netns.run_in(namespace, lambda: _pings(ip_address(address), time.monotonic() + patience))


def silent(namespace: int, address: str | IPv4Address | IPv6Address) -> bool:
    """Whether nobody answers there, soon. Shows something only where both ends are known to be up."""
    return not pings(namespace, address, 0.35)


def _pings(address: IPv4Address | IPv6Address, deadline: float) -> bool:
    version = address.version
    family, protocol = {
        4: (socket.AF_INET, socket.IPPROTO_ICMP),
        6: (socket.AF_INET6, socket.IPPROTO_ICMPV6),
    }[version]
    identity, number, asked = os.urandom(2), 0, 0.0
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        while (now := time.monotonic()) < deadline:
            if now >= asked + AGAIN:
                number, asked = number + 1, now
                try:
                    raw.sendto(_request(version, identity, number), (str(address), 0))
                except OSError:  # no route, or the neighbour does not answer: neither has to stay so
                    pass
            raw.settimeout(max(0.001, min(asked + AGAIN, deadline) - now))
            try:
                answer = raw.recv(1500)
            except OSError:  # the time is over, or a router says that it is in vain
                continue
            if version == 4:
                answer = answer[(answer[0] & 15) * 4 :]  # behind its header, which IPv6 leaves out
            if answer[0] == REPLY[version] and answer[4:6] == identity:
                return True
    return False


def _request(version: int, identity: bytes, number: int) -> bytes:
    message = struct.pack(">BBH2sH", REQUEST[version], 0, 0, identity, number)
    if version == 6:
        return message  # the kernel knows the sum, for the addresses are part of it
    total = sum(struct.unpack(">4H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack(">H", ~total & 0xFFFF) + message[4:]
