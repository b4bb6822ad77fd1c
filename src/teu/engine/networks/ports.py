# SPDX-License-Identifier: Apache-2.0
"""Published ports: what was asked for, and the reservation of ports on the host. Called by outward and wishes.

A reserved port is a socket that the engine keeps: bound, and for TCP also listening, so that nothing else can
take the port and whoever asks the kernel sees it in use. Packets never reach it: they are redirected before.
Where one port is published in both families it has one number, and two sockets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from collections.abc import Sequence
from ipaddress import IPv4Network, collapse_addresses, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.core.errors import BadRequest, EngineError
from teu.engine.core.fields import PortBinding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from teu.engine.core.fields import HostConfig

PROTOCOLS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
EVERY = {4: "0.0.0.0", 6: "::"}
_NO_SCTP = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_ATTEMPTS = 20  # to find a port that is free in both families

SOURCES = "io.teu.port-sources/"  # an annotation of a container, with the port behind it: 80/tcp


class Binding(NamedTuple):
    """One wanted binding. `address`: of the host, "" where none was named; host ports from first to last may be taken,
    0 lets the kernel choose."""

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


def sources(host_config: HostConfig, port: int, protocol: str) -> tuple[str, ...]:
    """Networks of those who may use a container's published port, by its annotation; none for everybody. Raises
    BadRequest."""
    key = f"{SOURCES}{port}/{protocol}"
    text = (host_config.annotations or {}).get(key)
    if text is None:
        return ()
    four, six = [], []
    for word in text.replace(",", " ").split():
        try:
            network = ip_network(word)
        except ValueError as error:
            raise BadRequest(f"{key}: {error}; a source is an address or a network such as 10.0.0.0/8") from None
        if isinstance(network, IPv4Network):
            four.append(network)
        else:
            six.append(network)
    if not four and not six:
        raise BadRequest(f"{key}: no network is named; leave the annotation out to let everybody in")
    return tuple(str(network) for network in (*collapse_addresses(four), *collapse_addresses(six)))


def check_sources(host_config: HostConfig) -> None:
    """All annotations of published ports' sources. Raises BadRequest."""
    for key in host_config.annotations or {}:
        if key.startswith(SOURCES):
            port = key.removeprefix(SOURCES)
            if port != canonical(port):
                raise BadRequest(f"{key}: a port is written as {canonical(port)} here")
            sources(host_config, *parse_port(port))


def bindings(host_config: HostConfig, exposed: Iterable[str]) -> list[Binding]:
    """All bindings of a container's HostConfig. Raises BadRequest."""
    result = []
    asked = host_config.published
    for key, entries in asked.items():
        port, protocol = parse_port(key)
        for entry in entries or [PortBinding()]:
            result.append(_binding(port, protocol, entry))
    if host_config.publish_all_ports:
        known = {parse_port(key) for key in asked}
        for key in exposed:
            if parse_port(key) not in known:
                result.append(Binding(*parse_port(key), "", 0, 0))
    return result


def _binding(port: int, protocol: str, entry: PortBinding) -> Binding:
    address = entry.host_ip or ""
    if address:
        try:
            found = ip_address(address.strip("[]"))
            if "%" in address:  # an interface's own address is the same on each
                raise ValueError
        except ValueError:
            raise BadRequest(f"invalid IP address: {address}") from None
        address = str((found.ipv4_mapped if found.version == 6 else None) or found)
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


def host_addresses(named: str, usual: str) -> dict[int, str]:
    """By family, the host's address for a binding that names one, or none. `usual`: the network's for those that name
    none; "" and 0.0.0.0 are every one of both families, :: is every IPv6 one, as with docker."""
    chosen = ip_address(named or usual or EVERY[4])
    return dict(EVERY) if not named and str(chosen) == EVERY[4] else {chosen.version: str(chosen)}


def together(wanted: Iterable[Binding]) -> list[list[Binding]]:
    """Those that get one number, whatever it will be: they differ in nothing but the address of the host."""
    result: list[list[Binding]] = []
    open_: dict[Binding, list[list[Binding]]] = {}
    for one in wanted:
        known = open_.setdefault(one._replace(address=""), [])
        group = next((group for group in known if all(_apart(one.address, other.address) for other in group)), None)
        if group is None:
            known.append(group := [])
            result.append(group)
        group.append(one)
    return result


def _apart(one: str, other: str) -> bool:
    """Whether a port can be taken at both addresses; one that is not named may be any."""
    return bool(one and other) and _beside(one, other)


def _beside(one: str, other: str) -> bool:
    """The same of two addresses."""
    first, second = ip_address(one), ip_address(other)
    return first.version != second.version or not (first == second or first.is_unspecified or second.is_unspecified)


class Reservation(NamedTuple):
    """`socket`: None where the kernel knows no such protocol, and so no port of it that could be taken."""

    socket: socket.socket | None
    port: int


def _try(protocol: str, address: str, port: int) -> Reservation:
    kind, number = PROTOCOLS[protocol]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    except OSError as error:
        if protocol == "sctp" and error.errno in _NO_SCTP:
            return Reservation(None, port or random.randint(32768, 60999))
        raise
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            # Connections of an earlier user that still linger do not stand in the way.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if protocol != "udp":
            sock.listen(0)
        return Reservation(sock, int(sock.getsockname()[1]))
    except BaseException:
        sock.close()
        raise


def host_has_ipv6() -> bool:
    """Whether ports can be taken in that family at all."""
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError:
        return False
    with sock:
        return os.path.exists("/proc/sys/net/ipv6")


class Ports:
    """Which host ports the engine's containers hold. Not thread-safe: networks' lock guards it."""

    def __init__(self) -> None:
        # By protocol and number, since there are many, those at each address of the host.
        self._held: dict[tuple[str, int], dict[str, socket.socket | None]] = {}

    def _taken(self, protocol: str, address: str, port: int) -> bool:
        return any(not _beside(address, text) for text in self._held.get((protocol, port), ()))

    def _hold(self, protocol: str, address: str, port: int, sock: socket.socket | None) -> None:
        self._held.setdefault((protocol, port), {})[address] = sock

    def reserve(self, wanted: Binding, addresses: Sequence[str], owner: str) -> int:
        """Take a host port, the same at each of the addresses; `owner` is for the message. Raises EngineError with
        docker's words."""
        prefix = f"driver failed programming external connectivity on endpoint {owner}: "
        refusal, ours = "", False
        candidates = range(wanted.first, wanted.last + 1) if wanted.first else [0] * _ATTEMPTS
        for port in candidates:
            try:
                return self._reserve_all(wanted.protocol, addresses, port)
            except _Refused as error:
                refusal, ours = str(error), ours or error.ours
                if error.final:
                    break
        raise EngineError(prefix + ("all ports are allocated" if ours and wanted.first < wanted.last else refusal))

    def _reserve_all(self, protocol: str, addresses: Sequence[str], port: int) -> int:
        """Raises _Refused, and holds nothing then."""
        taken: list[tuple[str, str, int]] = []
        try:
            for address in addresses:
                if port and self._taken(protocol, address, port):
                    raise _Refused(f"Bind for {_shown(address)}:{port} failed: port is already allocated", ours=True)
                try:
                    reservation = _try(protocol, address, port)
                except OSError as error:
                    reason = "bind: " + os.strerror(error.errno or errno.EIO).lower()
                    raise _Refused(
                        f"failed to bind port {_shown(address)}:{port}/{protocol}: {reason}",
                        final=error.errno in _NO_IPV6,
                    ) from None
                port = reservation.port
                taken.append((protocol, address, port))
                self._hold(*taken[-1], reservation.socket)
        except BaseException:
            for one in taken:
                self.release(*one)
            raise
        return port

    def hold_again(self, protocol: str, address: str, port: int) -> bool:
        """After a restart of the daemon; False where somebody has taken the port meanwhile. Raises EngineError where
        that is a container of ours."""
        if self._taken(protocol, address, port):
            raise EngineError(f"port {_shown(address)}:{port} is another container's")
        try:
            self._hold(protocol, address, port, _try(protocol, address, port).socket)
        except OSError:
            return False
        return True

    def release(self, protocol: str, address: str, port: int) -> None:
        held = self._held.get((protocol, port), {})
        sock = held.pop(address, None)
        if not held:
            self._held.pop((protocol, port), None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    @property
    def held(self) -> set[tuple[str, str, int]]:
        """Protocol, address of the host, and number of each."""
        return {(protocol, address, port) for (protocol, port), held in self._held.items() for address in held}

    def close(self) -> None:
        for sock in (sock for held in self._held.values() for sock in held.values()):
            if sock is not None:
                sock.close()
        self._held.clear()


class _Refused(Exception):
    """A port is not to be had. `final`: nor is any other at that address. `ours`: another container has it."""

    def __init__(self, text: str, final: bool = False, ours: bool = False) -> None:
        super().__init__(text)
        self.final = final
        self.ours = ours


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address
