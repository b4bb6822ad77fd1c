# SPDX-License-Identifier: Apache-2.0
"""/etc/hosts and /etc/resolv.conf of a container, made from the host's and from its options. Called by endpoints."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teu.engine.core.fields import HostConfig
    from teu.engine.networks.options import Naming

from teu.linux.resolver import host_resolver


def resolv_conf(naming: Naming, own_namespace: bool, server: str = "", versions: Collection[int] = (4, 6)) -> str:
    """The file's text; `server` is the engine's own resolver where the network has one, `versions` are the families
    that the container has."""
    resolver = host_resolver(own_namespace, versions)
    if naming.servers:
        resolver.servers = list(naming.servers)
    if naming.search:
        resolver.search = [] if naming.search == ["."] else list(naming.search)
    if naming.options:
        resolver.options = list(naming.options)
    if server:
        resolver.servers = [server]
        if not any(option.startswith("ndots:") for option in resolver.options):
            resolver.options.append("ndots:0")
    return resolver.text()


def extra_hosts(host_config: HostConfig, gateways: Iterable[str]) -> list[tuple[str, str]]:
    """(address, name) of HostConfig.ExtraHosts; host-gateway are the `gateways`, the host as seen from the
    container."""
    result = []
    for entry in host_config.extra_hosts or []:
        name, _, address = entry.partition(":")
        meant = gateways if address == "host-gateway" else (address,)
        result += [(one.strip("[]"), name) for one in meant if name and one]
    return result


LONGEST = 1 << 20  # of a file that a container may write


def write(path: str, text: str) -> None:
    """Replace the contents and keep the file: it is mounted into a container. At no moment it is empty."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.ftruncate(descriptor, os.write(descriptor, text.encode(errors="surrogateescape")))
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


def change_hosts(path: str, add: Iterable[tuple[str, str]] = (), drop: Iterable[tuple[str, str]] = ()) -> None:
    """Add or take away some (address, names) in a running container's hosts; what somebody wrote there stays."""
    text = read(path)
    if text is None:
        return
    gone = {"\t".join(one) + "\n" for one in drop}
    lines = [line for line in text.splitlines(keepends=True) if line not in gone]
    more = ["\t".join(one) + "\n" for one in add]
    if more and lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    changed = "".join([*lines, *more])
    if changed != text:
        write(path, changed)


def addresses(path: str, names: str) -> list[str]:
    """Those that these names have in a running container's hosts, in our form."""
    lines = [line.partition("\t") for line in (read(path) or "").splitlines()]
    return [address for address, _, rest in lines if rest == names]


def replace_hosts(path: str, entries: Iterable[tuple[str, str]]) -> None:
    """In a running container's hosts: these (address, names), and no other addresses of the same names."""
    text = read(path)
    wanted = list(entries)
    names = {one[1] for one in wanted}
    if text is not None:
        lines = [line for line in text.splitlines() if line.partition("\t")[2] not in names]
        write(path, "".join(f"{line}\n" for line in (*lines, *("\t".join(one) for one in wanted))))


def drop_hosts(path: str, names: Iterable[str]) -> None:
    """From a running container's hosts: the lines that have exactly these names."""
    text = read(path)
    if text is not None:
        gone = set(names)
        lines = text.splitlines(keepends=True)
        write(path, "".join(line for line in lines if line.partition("\t")[2].rstrip("\n") not in gone))


def digest(text: str) -> str:
    return sha256(text.encode(errors="surrogateescape")).hexdigest()


def host_names(hostname: str, domain: str) -> str:
    """A container's names for its line in hosts: the full one and the short one."""
    full = f"{hostname}.{domain}" if hostname and domain else hostname
    short = hostname.partition(".")[0]
    return full if full == short else f"{full} {short}"
