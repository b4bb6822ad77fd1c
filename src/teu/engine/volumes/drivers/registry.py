# SPDX-License-Identifier: Apache-2.0
"""The volume drivers by name. A new driver is one line here; it is made of the folder that has all volumes. A driver of
any other name is a plugin of docker's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from teu.engine.core.managed import KNOWN, VOLUMES
from teu.engine.volumes.drivers.driver import Driver
from teu.engine.volumes.drivers.local import Local

if TYPE_CHECKING:
    from teu.engine.volumes.drivers.plugin import Remote

DRIVERS: dict[str, Callable[[str], Driver]] = {"local": Local}
DEFAULT = "local"
FOLDERS = ("/run/docker/plugins", "/etc/docker/plugins", "/usr/lib/docker/plugins")
"""Where plugins are, as core/plugins.py has it, which hosts without one do not load."""


class Drivers:
    """Each driver once; a plugin's when it is asked for first, whether there is such a plugin or not."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._made: dict[str, Driver] = {name: make(root) for name, make in DRIVERS.items()}
        self._plugins: dict[str, Remote] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Driver:
        return self._made[name] if name in self._made else self.plugin(name)

    def plugin(self, name: str) -> Remote:
        """The driver of a plugin."""
        name = KNOWN.named(name)
        with self._lock:
            if name not in self._plugins:
                from teu.engine.volumes.drivers.plugin import Remote  # 13 ms: HTTP and TLS, for hosts with a plugin

                self._plugins[name] = Remote(self._root, name)
            return self._plugins[name]

    def plugins(self) -> list[Remote]:
        """Those that are there now, and may have volumes."""
        found = KNOWN.enabled(VOLUMES)
        if any(os.path.isdir(folder) and os.listdir(folder) for folder in FOLDERS):
            from teu.engine.core.plugins import names  # 13 ms, as above

            found += [name for name in names() if KNOWN.find(name) is None]
        return [self.plugin(name) for name in found if name not in DRIVERS]
