# SPDX-License-Identifier: Apache-2.0
"""The engine: the record of its stores, which all above them get. It is built from the ground up and starts nothing."""

from __future__ import annotations

import threading
from pathlib import Path

from teu.config import Settings
from teu.engine.backend.containerd import Client
from teu.engine.builds.builder import Builder
from teu.engine.builds.classic import Builds
from teu.engine.containers.boot import Boot
from teu.engine.containers.model import Surroundings
from teu.engine.containers.store import Containers
from teu.engine.core.database import Database
from teu.engine.core.events import Events
from teu.engine.core.figures import Figures
from teu.engine.images.store import Images
from teu.engine.networks.endpoints import Endpoints
from teu.engine.networks.hostfirewall import HostFirewall
from teu.engine.networks.manager import Networks
from teu.engine.networks.options import Defaults
from teu.engine.networks.store import Store
from teu.engine.plugins.store import Plugins
from teu.engine.streams.pump import Pump
from teu.engine.volumes.store import Volumes


class Engine:
    """The stores, and the state of the daemon: `ready` once requests may be served, `stopping` when it goes, `failure`
    when it cannot start, `waiting` while containerd is away: what was said of it."""

    def __init__(self, config: Settings) -> None:
        """Raises Unreadable where engine.db cannot be read."""
        self.config = config
        self.data_root: str = self.config["data-root"]
        self.exec_root: str = self.config["exec-root"]
        Path(self.data_root).mkdir(parents=True, exist_ok=True, mode=0o711)
        Path(self.exec_root).mkdir(parents=True, exist_ok=True, mode=0o711)
        self.stopping = threading.Event()
        self.ready = threading.Event()
        self.failure: Exception | None = None
        self.waiting: Exception | None = None
        self.database = Database(f"{self.data_root}/engine.db")
        self.boot = Boot(self.data_root, self.exec_root)
        self.containerd = Client(self.config["containerd"])
        self.builder = Builder(self.config["builder"])
        self.builds = Builds(self.builder, self.data_root, self.config["image-ids"] == "target")
        self.events = Events()
        self.figures = Figures()
        self.pump = Pump()
        around = Surroundings(self.database, self.events, self.pump, self.boot, self.data_root, self.exec_root)
        self.containers = Containers(around, self.boot, self.containerd.untidy)
        self.images = Images(self.containerd, self.events, config)
        store = Store(self.database, Defaults(self.config))
        host = HostFirewall(self.config["firewall"])
        self.endpoints = Endpoints(store, self.containers, self.events, self.exec_root, self.stopping, host)
        self.networks = Networks(store, self.endpoints, self.containers, self.events)
        self.volumes = Volumes(f"{self.data_root}/volumes", self.containers, self.database, self.events)
        users = (self.containers, self.volumes, self.networks)
        folders = (self.data_root, self.exec_root)
        self.plugins = Plugins(config, folders, users, self.events, self.boot, self.stopping)
        self.plugins.client.untidy = self.containerd.untidy

    def close(self) -> None:
        """Nothing of it works any more, and what it has open is closed; what containers have stays theirs. Twice is
        fine."""
        self.stopping.set()
        self.pump.stop()
        self.containerd.close()
        self.plugins.close()
        self.builder.close()
        self.endpoints.close()
        self.database.close()

    @property
    def id(self) -> str:
        return self.database.identity("engine-id")
