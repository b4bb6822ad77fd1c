# SPDX-License-Identifier: Apache-2.0
"""The files that a pod's containers find in /etc: who they are and whom they may ask. Called by `pods`, on threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from teu.containerd.core.errors import InvalidArgument
from teu.containerd.cri.users import Maps
from teu.linux.resolver import RESOLV_CONF

SEARCHES_MAX = 32  # domains, as of containerd


def resolv_conf(dns: Any) -> str:
    """resolv.conf(5) of a DNSConfig, its lines in containerd's order. Raises InvalidArgument."""
    if len(dns.searches) > SEARCHES_MAX:
        raise InvalidArgument(f"DNSConfig.Searches has more than {SEARCHES_MAX} domains")
    for text in (*dns.servers, *dns.searches, *dns.options):
        if not text or any(sign.isspace() for sign in text):
            raise InvalidArgument(f"dns_config: {text!r} is no word, so it cannot stand in resolv.conf")
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(line + "\n" for line in lines)


def _hosts_own(path: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""


def write(folder: str, config: Any, hostname: str, maps: Maps | None = None) -> None:
    """The files of a pod's folder, by its PodSandboxConfig, whose root owns them: without a dns_config resolv.conf is
    the host's. OSError, InvalidArgument."""
    resolved = resolv_conf(config.dns_config) if config.HasField("dns_config") else ""
    os.makedirs(folder, 0o711, exist_ok=True)
    for name, text in (
        ("hostname", hostname + "\n"),
        ("hosts", _hosts_own("/etc/hosts")),
        ("resolv.conf", resolved or _hosts_own(RESOLV_CONF)),
    ):
        path = Path(folder, name)
        path.write_text(text, errors="surrogateescape")
        if maps is not None:
            maps.own(str(path))
