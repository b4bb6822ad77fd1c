# SPDX-License-Identifier: Apache-2.0
"""EXPOSE's ports: [ip:][host:]port[-port][/protocol]."""

from __future__ import annotations

import ipaddress

from teu.buildkit.frontends.dockerfile import lint
from teu.buildkit.frontends.dockerfile.errors import DockerfileError, Location
from teu.buildkit.frontends.dockerfile.lint import Linter
from teu.buildkit.frontends.dockerfile.shell import quoted


def parse(text: str, location: Location, linter: Linter) -> list[str]:
    """Every port of the range as port/protocol; raises DockerfileError."""
    parts = text.split(":")
    address, host, container = ":".join(parts[:-2]), parts[-2] if len(parts) > 1 else "", parts[-1]
    port, _, protocol = container.partition("/")
    if not port:
        raise DockerfileError(f"invalid port: {quoted(text)}: no port specified")
    if protocol.lower() not in ("", "tcp", "udp", "sctp"):
        raise DockerfileError(f"invalid port: {quoted(text)}: invalid proto: {protocol}")
    protocol = protocol or "tcp"
    if protocol != protocol.lower():
        found = f"Defined protocol '{text}' in EXPOSE instruction should be lowercase"
        linter.run(lint.EXPOSE_PROTO_CASING, location, found)
    if address or host:
        found = f"EXPOSE instruction should not define an IP address or host-port mapping, found '{text}'"
        linter.run(lint.EXPOSE_INVALID_FORMAT, location, found)
    if address:
        bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        try:
            ipaddress.ip_address(bare.partition("%")[0])
        except ValueError:
            raise DockerfileError(f"invalid IP address: {bare}") from None
    ports = _range(port)
    if ports is None:
        raise DockerfileError(f"invalid containerPort: {port}")
    if host:
        hosts = _range(host)
        if hosts is None:
            raise DockerfileError(f"invalid hostPort: {host}")
        if len(ports) != len(hosts) and len(ports) != 1:
            raise DockerfileError(f"invalid ranges specified for container and host Ports: {port} and {host}")
    return [f"{number}/{protocol.lower()}" for number in ports]


def _range(text: str) -> range | None:
    first, separator, last = text.partition("-")
    start = _number(first)
    end = _number(last) if separator and last != first else start
    if start is None or end is None or end < start:
        return None
    return range(start, end + 1)


def _number(text: str) -> int | None:
    digits = text.removeprefix("+")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 12 or int(digits) > 65535:
        return None
    return int(digits)
