# SPDX-License-Identifier: Apache-2.0
"""The plugins that the engine manages itself, as those see them that have something of a plugin's: drivers of volumes,
networks and logs, and the authorization. The room plugins tells of them here, which none of those knows.

A name is that of a plugin in docker's short form, with or without its tag: NAME, NAME:latest. A managed plugin has
precedence over a program of the host (core/plugins.py), also where it is disabled.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import NamedTuple

from teu.linux import inside

VOLUMES, NETWORKS, LOGS, AUTHORIZATION = "volumedriver", "networkdriver", "logdriver", "authz"
METRICS = "metricscollector"
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
        """Where the host finds what the plugin has at a path; nothing for none. No ".." leads out of it, and no link
        that is there now: it is to be told, and to be opened by KNOWN.open_folder, which minds later ones."""
        if not path:
            return ""
        path = "/" + posixpath.normpath(f"/{path}").lstrip("/")
        folder = self.propagated.rstrip("/")
        for looked_up in (False, True):
            if looked_up:
                path = _without_links(self.rootfs, path)
            if folder and (path == folder or path.startswith(f"{folder}/")):
                return self.mounts + _without_links(self.mounts, path[len(folder) :])
        return f"{self.rootfs}/{path.lstrip('/')}"


def _without_links(tree: str, path: str) -> str:
    """Where a path leads in a tree, which is all that there is for its links; as it is where there is no tree."""
    try:
        root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return path
    try:
        return inside.real_path(root, path).rstrip("/")
    finally:
        os.close(root)


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

    def tree_of(self, path: str) -> tuple[str, str]:
        """(tree, path in it) of a path of the host that is among a plugin's files; an empty tree for any other."""
        for one in self._all() if self._all is not None else []:
            for tree in (one.mounts, one.rootfs):
                if path == tree or path.startswith(f"{tree}/"):
                    return tree, path[len(tree) :]
        return "", path

    def open_folder(self, path: str, flags: int = 0) -> int:
        """A folder of the host (O_PATH, and `flags`), by a path that a plugin may have said: among a plugin's files no
        link leads out of them, whenever it was made. Raises OSError."""
        tree, inner = self.tree_of(path)
        flags |= os.O_PATH | os.O_DIRECTORY
        if not tree:
            return os.open(path, flags | os.O_CLOEXEC)
        top = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return inside.open_in_root(top, inner, flags)
        finally:
            os.close(top)

    def enabled(self, kind: str) -> list[str]:
        """The names of those that implement something."""
        every = self._all() if self._all is not None else []
        return sorted(one.name for one in every if one.enabled and kind in one.kinds)


KNOWN = Known()
