# SPDX-License-Identifier: Apache-2.0
"""The host's name resolution for those who have a network of their own: /etc/resolv.conf and /etc/hosts of a container.

Called by the engine's networks and by the builder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path

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
    """A resolv.conf(5) in parts: addresses of servers, domains to search, options, each in the order of the file."""

    def __init__(self) -> None:
        self.servers: list[str] = []
        self.search: list[str] = []
        self.options: list[str] = []

    def text(self) -> str:
        """As a file, with a line for each server; lines that would be empty are left out."""
        lines = [f"nameserver {server}" for server in self.servers]
        if self.search:
            lines.append("search " + " ".join(self.search))
        if self.options:
            lines.append("options " + " ".join(self.options))
        return "".join(line + "\n" for line in lines)


def parse(text: str) -> Resolver:
    """Read a resolv.conf(5): of several lists of domains the last one counts, and what is not understood is left out.
    Never fails."""
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
    """Whether a server's address, with a scope (%eth0) or without, is of the loopback; False for what is no address."""
    try:
        return ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_reached(server: str, versions: Collection[int]) -> bool:
    """From a network namespace that has these families. What is no address is for the container to make sense of."""
    try:
        address = ip_address(server)
    except ValueError:
        return True
    return not address.is_loopback and address.version in versions and not getattr(address, "scope_id", None)


_SETTLED_NS = 100_000_000  # before that, a second write may leave the same stamp
_kept: dict[str, tuple[tuple[int, ...], str]] = {}


def _read(path: str) -> str:
    """As it is now; what was read before is kept until the file is another or was written to."""
    try:
        found = os.stat(path)
        stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        before = _kept.get(path)
        if before is not None and before[0] == stamp:
            return before[1]
        text = Path(path).read_text(errors="replace")
    except OSError:
        return ""
    if time.time_ns() - found.st_ctime_ns > _SETTLED_NS:
        _kept[path] = (stamp, text)
    return text


def is_split() -> bool:
    """Whether the host's server is the stub of systemd-resolved, which knows by a name's domain which link's servers to
    ask: those behind it, asked alike, would not do."""
    return parse(_read(RESOLV_CONF)).servers in (["127.0.0.53"], ["127.0.0.54"])


def host_resolver(own_namespace: bool, versions: Collection[int] = (4, 6)) -> Resolver:
    """The host's resolver as a container can use it: one with its own network cannot ask a server on the host's
    loopback, and gets the servers behind that; nor one on a link of the host's (fe80::1%eth0), nor one of a family that
    is none of `versions`, which its networks have."""
    resolver = parse(_read(RESOLV_CONF))
    if own_namespace and resolver.servers and all(is_loopback(server) for server in resolver.servers):
        upstream = parse(_read(RESOLVED_UPSTREAM))
        resolver.servers = upstream.servers
        resolver.search = resolver.search or upstream.search
        resolver.options = [o for o in resolver.options if o not in ("edns0", "trust-ad")]
    if own_namespace:
        resolver.servers = [server for server in resolver.servers if _is_reached(server, versions)]
    return resolver


def hosts(entries: list[tuple[str, str]], base: str = HOSTS) -> str:
    """The text of a hosts(5) file: `base`, and a line for each (address, names)."""
    return base + "".join(f"{address}\t{name}\n" for address, name in entries)


def host_hosts() -> str:
    """The host's own /etc/hosts, for who shares its network; HOSTS where that is empty or cannot be read."""
    return _read("/etc/hosts") or HOSTS
