# SPDX-License-Identifier: Apache-2.0
"""Answering for a neighbour (RFC 4861, 7.2.8): an interface of the host tells who asks for an IPv6 address that it is
there, and forwards what comes. Called by the engine's driver bridge. `proxy_ndp` of the interface has to be on.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address

from teu.linux.netlink import Message, Socket, attribute, attributes
from teu.linux.rtnetlink import (
    NDA_DST,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NTF_PROXY,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)

_NEIGHBOUR = struct.Struct("=BxxxiHBB")


def answer_for(address: IPv6Address, index: int) -> Message:
    """From now on the interface answers; twice is fine."""
    body = _NEIGHBOUR.pack(socket.AF_INET6, index, 0, NTF_PROXY, 0) + attribute(NDA_DST, address.packed)
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"neighbour {address}")


def answer_no_more(address: IPv6Address, index: int) -> Message:
    """The reverse. ENOENT where it does not."""
    body = _NEIGHBOUR.pack(socket.AF_INET6, index, 0, NTF_PROXY, 0) + attribute(NDA_DST, address.packed)
    return Message(RTM_DELNEIGH, 0, body, f"neighbour {address}")


def answered_for(kernel: Socket, index: int) -> list[IPv6Address]:
    """The addresses for which an interface answers. Raises OSError."""
    result = []
    for data in kernel.dump(RTM_GETNEIGH, _NEIGHBOUR.pack(socket.AF_INET6, 0, 0, NTF_PROXY, 0)):
        family, on, _state, flags, _kind = _NEIGHBOUR.unpack_from(data)
        address = attributes(data[_NEIGHBOUR.size :]).get(NDA_DST)
        if family == socket.AF_INET6 and on == index and flags & NTF_PROXY and address is not None:
            result.append(IPv6Address(address))
    return result
