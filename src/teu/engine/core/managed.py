# SPDX-License-Identifier: Apache-2.0
"""The plugins that the engine manages itself, as those see them that have something of a plugin's: drivers of volumes,
networks and logs, and the authorization. The room plugins tells of them here, which none of those knows.

A name is that of a plugin in docker's short form, with or without its tag: NAME, NAME:latest. A managed plugin has
precedence over a program of the host (core/plugins.py), also where it is disabled.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import NamedTuple

VOLUMES, NETWORKS, LOGS, AUTHORIZATION = "volumedriver", "networkdriver", "logdriver", "authz"
"""What it may implement, by its configuration (docker.volumedriver/1.0)."""


class Managed(NamedTuple):
    """A plugin of ours. `start` is another one each time that it was started; `seconds`: for its answers, 0 as for any.

    `rootfs`: where the host has its files; `propagated`: a folder of it, whose mounts the host sees at `mounts`.
    `logging`: where the host has what it sees as /run/docker/logging."""

    name: str
    socket: str
    kinds: frozenset[str]
    enabled: bool
    start: int
    seconds: float
    rootfs: str
    propagated: str
    mounts: str
    logging: str

    def on_host(self, path: str) -> str:
        """Where the host finds what the plugin has at a path; nothing for none. No ".." leads out of it."""
        if not path:
            return ""
        path = "/" + posixpath.normpath(f"/{path}").lstrip("/")
        inside = self.propagated.rstrip("/")
        if inside and (path == inside or path.startswith(f"{inside}/")):
            return self.mounts + path[len(inside) :]
        return f"{self.rootfs}/{path.lstrip('/')}"


class Known:
    """What there is, in the room's own words; nobody until that has plugins."""

    def __init__(self) -> None:
        self._find: Callable[[str], Managed | None] | None = None
        self._all: Callable[[], list[Managed]] | None = None

    def tell(self, find: Callable[[str], Managed | None], every: Callable[[], list[Managed]]) -> None:
        """From the room, once there are some."""
        self._find, self._all = find, every

    def forget(self) -> None:
        """The engine that told of them goes."""
        self._find = self._all = None

    def find(self, name: str) -> Managed | None:
        """The plugin of that name, enabled or not."""
        return self._find(name) if self._find is not None else None

    def named(self, name: str) -> str:
        """The whole name of a plugin of ours; any other name as it is."""
        found = self.find(name)
        return found.name if found is not None else name

    def enabled(self, kind: str) -> list[str]:
        """The names of those that implement something."""
        every = self._all() if self._all is not None else []
        return sorted(one.name for one in every if one.enabled and kind in one.kinds)


KNOWN = Known()
