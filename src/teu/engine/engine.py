# SPDX-License-Identifier: Apache-2.0
"""The engine: what every handler gets. It holds the stores and starts them in order."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path

from teu.config import Settings
from teu.engine.containerd import Client
from teu.engine.database import Database
from teu.engine.events import Events
from teu.engine.pump import Pump

# How long the exits of containers that were stopped with the host may take to come here; less than the unit gives us.
LAST_EXITS_SECONDS = 10.0


class Engine:
    def __init__(self, config: Settings) -> None:
        from teu.engine.boot import Boot
        from teu.engine.containers import Containers
        from teu.engine.images import Images
        from teu.engine.networks import Networks
        from teu.engine.volumes import Volumes

        self.config = config
        self.data_root: str = self.config["data-root"]
        self.exec_root: str = self.config["exec-root"]
        Path(self.data_root).mkdir(parents=True, exist_ok=True, mode=0o711)
        Path(self.exec_root).mkdir(parents=True, exist_ok=True, mode=0o711)
        self.database = Database(f"{self.data_root}/engine.db")
        self.boot = Boot(self)
        self.containerd = Client(self.config["containerd"])
        self.events = Events()
        self.pump = Pump()
        self.stopping = threading.Event()
        self.ready = threading.Event()
        self.failure: Exception | None = None
        self.images = Images(self)
        self.networks = Networks(self)
        self.volumes = Volumes(self)
        self.containers = Containers(self)

    @property
    def id(self) -> str:
        known = self.database.fact("engine-id")
        if known is None:
            known = str(uuid.uuid4())
            self.database.set_fact("engine-id", known)
        return known

    def start(self) -> None:
        """Bring every store up; requests that need them wait for `ready`."""
        self.pump.start()
        self.volumes.start()
        self.images.start()
        self.networks.start()
        self.containers.start()
        self.ready.set()

    def idle(self) -> bool:
        """Whether nothing needs this process: no container runs whose output, health, names or restarts it minds."""
        if not self.ready.is_set() or self.boot.busy:
            return False
        return not any(container.running for container in self.containers.all())

    def last_exits(self) -> None:
        """The host goes down, and systemd has stopped the containers: what of their ends is not known yet is now."""
        deadline = time.monotonic() + LAST_EXITS_SECONDS
        while self.ready.is_set() and not self.failure and time.monotonic() < deadline:
            if not any(container.running and container.pid for container in self.containers.all()):
                return
            time.sleep(0.02)

    def stop(self) -> None:
        """The daemon goes, the containers stay."""
        self.stopping.set()
        self.events.close()
        for store in (self.containers, self.networks, self.volumes, self.images):
            store.stop()
        self.pump.stop()
        self.containerd.close()
        self.database.close()
