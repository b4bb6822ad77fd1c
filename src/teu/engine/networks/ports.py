# SPDX-License-Identifier: Apache-2.0
"""Published ports: what was asked for, and the reservation of ports on the host. Called by outward and wishes.

A reserved port is a socket that the engine keeps: bound, and for TCP also listening, so that nothing else can
take the port and whoever asks the kernel sees it in use. Packets never reach it: they are redirected before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.errors import BadRequest, EngineError, Unsupported
from teu.engine.core.fields import PortBinding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from teu.engine.core.fields import HostConfig

PROTOCOLS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_SEQPACKET}


class Binding(NamedTuple):
    """One wanted binding; host ports from first to last may be taken, 0 lets the kernel choose."""

    port: int
    protocol: str
    address: str
    first: int
    last: int


def parse_port(text: str) -> tuple[int, str]:
    """ "80/tcp" or "80"."""
    number, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise BadRequest(f"invalid port specification: {text!r}: the protocol is none of tcp, udp, sctp")
    if not number.isascii() or not number.isdigit() or not 0 < int(number) < 65536:
        raise BadRequest(f"invalid port specification: {text!r}")
    return int(number), protocol


def canonical(text: str) -> str:
    """A port as it is shown, "80/tcp", of whatever a request or an image has: "80", "80/TCP"."""
    return "{}/{}".format(*parse_port(text))


def bindings(host_config: HostConfig, exposed: Iterable[str], default_address: str) -> list[Binding]:
    """All bindings of a container's HostConfig. Raises BadRequest, Unsupported."""
    result = []
    asked = host_config.port_bindings
    for key, entries in asked.items():
        port, protocol = parse_port(key)
        if protocol == "sctp" and entries:
            raise Unsupported("publishing SCTP ports is not supported")
        for entry in entries or [PortBinding()]:
            result.append(_binding(port, protocol, entry, default_address))
    if host_config.publish_all_ports:
        known = {parse_port(key) for key in asked}
        for key in exposed:
            if parse_port(key) not in known:
                result.append(Binding(*parse_port(key), default_address, 0, 0))
    return result


def _binding(port: int, protocol: str, entry: PortBinding, default_address: str) -> Binding:
    address = entry.host_ip or default_address
    try:
        IPv4Address(address)
    except AddressValueError:
        try:
            wanted = IPv6Address(address.strip("[]"))
        except AddressValueError:
            raise BadRequest(f"invalid IP address: {address}") from None
        raise Unsupported(
            f"publishing at the IPv6 address {wanted} is not supported; name an IPv4 address, or none for all of them"
        ) from None
    text = entry.host_port or ""
    first, dash, last = text.partition("-")
    if not text:
        return Binding(port, protocol, address, 0, 0)
    if not text.isascii() or not first.isdigit() or (dash and not last.isdigit()):
        raise BadRequest(f"invalid port specification: {text!r}")
    low, high = int(first), int(last) if dash else int(first)
    if high > 65535 or low > high:
        raise BadRequest(f"invalid port specification: {text!r}")
    return Binding(port, protocol, address, low, high)


class Reservation(NamedTuple):
    socket: socket.socket
    port: int


def _try(protocol: str, address: str, port: int) -> Reservation:
    sock = socket.socket(socket.AF_INET, PROTOCOLS[protocol])
    try:
        if protocol == "tcp":
            # Connections of an earlier user that still linger do not stand in the way.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if protocol == "tcp":
            sock.listen(0)
        return Reservation(sock, int(sock.getsockname()[1]))
    except BaseException:
        sock.close()
        raise


class Ports:
    """Which host ports the engine's containers hold. Not thread-safe: networks' lock guards it."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, int], socket.socket] = {}

    def _taken(self, protocol: str, address: str, port: int) -> bool:
        every = IPv4Address(address).is_unspecified
        return any(
            p == protocol and n == port and (every or a == address or IPv4Address(a).is_unspecified)
            for p, a, n in self._held
        )

    def reserve(self, wanted: Binding, owner: str) -> int:
        """Take a host port; `owner` is for the message. Raises EngineError with docker's words."""
        prefix = f"driver failed programming external connectivity on endpoint {owner}: "
        refusal = ""
        for port in range(wanted.first, wanted.last + 1):
            if port and self._taken(wanted.protocol, wanted.address, port):
                refusal = f"Bind for {wanted.address}:{port} failed: port is already allocated"
                continue
            try:
                reservation = _try(wanted.protocol, wanted.address, port)
            except OSError as error:
                reason = "bind: " + os.strerror(error.errno or errno.EIO).lower()
                refusal = f"failed to bind port {wanted.address}:{port}/{wanted.protocol}: {reason}"
                if error.errno == errno.EADDRNOTAVAIL:
                    break
                continue
            self._held[wanted.protocol, wanted.address, reservation.port] = reservation.socket
            return reservation.port
        raise EngineError(prefix + refusal)

    def hold_again(self, protocol: str, address: str, port: int) -> bool:
        """After a restart of the daemon; False where somebody has taken the port meanwhile."""
        if (protocol, address, port) in self._held:
            return True
        try:
            self._held[protocol, address, port] = _try(protocol, address, port).socket
        except OSError:
            return False
        return True

    def release(self, protocol: str, address: str, port: int) -> None:
        sock = self._held.pop((protocol, address, port), None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def close(self) -> None:
        for sock in self._held.values():
            sock.close()
        self._held.clear()
