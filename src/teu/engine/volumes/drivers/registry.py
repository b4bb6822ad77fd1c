# SPDX-License-Identifier: Apache-2.0
"""The volume drivers by name. A new driver is one line here; it is made of the folder that has all volumes. A driver of
any other name is a plugin of docker's."""

from __future__ import annotations

import threading
from collections.abc import Callable

from teu.engine.volumes.drivers.driver import Driver
from teu.engine.volumes.drivers.local import Local

DRIVERS: dict[str, Callable[[str], Driver]] = {"local": Local}
DEFAULT = "local"


class Drivers:
    """Each driver once; a plugin's when it is asked for first, whether there is such a plugin or not."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._made: dict[str, Driver] = {name: make(root) for name, make in DRIVERS.items()}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Driver:
        with self._lock:
            if name not in self._made:
                from teu.engine.volumes.drivers.plugin import Remote  # 13 ms: HTTP and TLS, for hosts with a plugin

                self._made[name] = Remote(self._root, name)
            return self._made[name]
