# SPDX-License-Identifier: Apache-2.0
"""/etc/hosts and /etc/resolv.conf of a container, made from the host's and from its options. Called by endpoints."""

from __future__ import annotations

import os
import stat
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.engine.core.fields import HostConfig

RESOLV_CONF = "/etc/resolv.conf"
# systemd-resolved's list of the real servers, for those who cannot reach its stub on 127.0.0.53.
RESOLVED_UPSTREAM = "/run/systemd/resolve/resolv.conf"

HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


class Resolver:
    """A resolv.conf in parts."""

    def __init__(self) -> None:
        self.servers: list[str] = []
        self.search: list[str] = []
        self.options: list[str] = []

    def text(self) -> str:
        lines = [f"nameserver {server}" for server in self.servers]
        if self.search:
            lines.append("search " + " ".join(self.search))
        if self.options:
            lines.append("options " + " ".join(self.options))
        return "".join(line + "\n" for line in lines)


def parse(text: str) -> Resolver:
    result = Resolver()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            result.servers.append(words[1])
        elif words[0] in ("search", "domain"):
            result.search = words[1:]
        elif words[0] == "options":
            result.options += words[1:]
    return result


def is_loopback(server: str) -> bool:
    try:
        return ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def host_resolver(own_namespace: bool) -> Resolver:
    """The host's resolver as a container can use it: one with its own network cannot ask a server on the host's
    loopback, and gets the servers behind that."""
    resolver = parse(_read(RESOLV_CONF))
    if own_namespace and resolver.servers and all(is_loopback(server) for server in resolver.servers):
        upstream = parse(_read(RESOLVED_UPSTREAM))
        resolver.servers = upstream.servers
        resolver.search = resolver.search or upstream.search
        resolver.options = [o for o in resolver.options if o not in ("edns0", "trust-ad")]
    if own_namespace:
        resolver.servers = [server for server in resolver.servers if not is_loopback(server)]
    return resolver


def resolv_conf(host_config: HostConfig, own_namespace: bool, server: str = "") -> str:
    """The file's text; `server` is the engine's own resolver where the network has one."""
    resolver = host_resolver(own_namespace)
    if host_config.dns:
        resolver.servers = list(host_config.dns)
    if host_config.dns_search:
        resolver.search = [] if host_config.dns_search == ["."] else list(host_config.dns_search)
    if host_config.dns_options:
        resolver.options = list(host_config.dns_options)
    if server:
        resolver.servers = [server]
        if not any(option.startswith("ndots:") for option in resolver.options):
            resolver.options.append("ndots:0")
    return resolver.text()


def extra_hosts(host_config: HostConfig, gateway: str) -> list[tuple[str, str]]:
    """(address, name) of HostConfig.ExtraHosts; host-gateway is the host as seen from the container."""
    result = []
    for entry in host_config.extra_hosts or []:
        name, _, address = entry.partition(":")
        if address == "host-gateway":
            address = gateway
        if name and address:
            result.append((address.strip("[]"), name))
    return result


def hosts(entries: list[tuple[str, str]], base: str = HOSTS) -> str:
    return base + "".join(f"{address}\t{name}\n" for address, name in entries)


def host_hosts() -> str:
    return _read("/etc/hosts") or HOSTS


LONGEST = 1 << 20  # of a file that a container may write


def write(path: str, text: str) -> None:
    """Replace the contents and keep the file: it is mounted into a container."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.write(descriptor, text.encode(errors="surrogateescape"))
    finally:
        os.close(descriptor)


def read(path: str) -> str | None:
    """The contents of a file that a running container may write; None where it is none of ours any more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, errors="surrogateescape", newline="") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.fstat(descriptor).st_size > LONGEST:
            return None
        return file.read(LONGEST)


def change_hosts(path: str, add: tuple[str, str] | None = None, drop: tuple[str, str] | None = None) -> None:
    """Add or take away one (address, names) in a running container's hosts; what somebody wrote there stays."""
    text = read(path)
    if text is None:
        return
    lines = text.splitlines(keepends=True)
    if drop is not None:
        gone = "\t".join(drop) + "\n"
        lines = [line for line in lines if line != gone]
    if add is not None:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        lines.append("\t".join(add) + "\n")
    changed = "".join(lines)
    if changed != text:
        write(path, changed)


def digest(text: str) -> str:
    return sha256(text.encode(errors="surrogateescape")).hexdigest()


def host_names(hostname: str, domain: str) -> str:
    """A container's names for its line in hosts: the full one and the short one."""
    full = f"{hostname}.{domain}" if hostname and domain else hostname
    short = hostname.partition(".")[0]
    return full if full == short else f"{full} {short}"
