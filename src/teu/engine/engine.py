# SPDX-License-Identifier: Apache-2.0
"""The engine: what every handler gets. It holds the stores and starts them in order."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from teu.config import Settings
from teu.engine.backend.containerd import Client, Unavailable
from teu.engine.core.database import Database
from teu.engine.core.events import Events
from teu.engine.streams.pump import Pump

log = logging.getLogger("teu.engine")

# How long the exits of containers that were stopped with the host may take to come here; less than the unit gives us.
LAST_EXITS_SECONDS = 10.0
PATIENCE_SECONDS = 60.0


class Engine:
    def __init__(self, config: Settings) -> None:
        from teu.engine.containers.boot import Boot
        from teu.engine.containers.store import Containers
        from teu.engine.images.store import Images
        from teu.engine.networks.manager import Networks
        from teu.engine.volumes.store import Volumes

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
        self.waiting: Exception | None = None  # containerd is away, and this is what was said of it
        self.images = Images(self.containerd, self.events, config)
        self.networks = Networks(self)
        self.containers = Containers(self)
        self.volumes = Volumes(f"{self.data_root}/volumes", self.containers, self.database, self.events)

    @property
    def id(self) -> str:
        known = self.database.fact("engine-id")
        if known is None:
            known = str(uuid.uuid4())
            self.database.set_fact("engine-id", known)
        return known

    def start(self) -> None:
        """Bring every store up; requests that need them wait for `ready`."""
        from teu.engine.lifecycle import sweep

        self.pump.start()
        self.containers.load()
        self.volumes.start()
        threading.Thread(target=sweep.run, args=(self,), name="sweep", daemon=True).start()
        self.networks.start()
        self._as_soon_as_containerd_is_there(self.containers.start)
        self.ready.set()

    def _as_soon_as_containerd_is_there(self, step: Callable[[], None]) -> None:
        """It may be away for long: state of its own that cannot be read is for a person to mend. To end and be started
        again would help nobody; clients are told."""
        pause, began = 0.5, time.monotonic()
        while not self.stopping.is_set():
            try:
                step()
                return
            except Unavailable as error:
                # Who is just starting may take its time to answer.
                if not self.containerd.listens() or time.monotonic() - began > PATIENCE_SECONDS:
                    if self.waiting is None:
                        log.error("containerd at %s cannot be reached, trying on: %s", self.containerd.address, error)
                    self.waiting = error
            self.stopping.wait(pause)
            pause = min(pause * 2, 10.0)

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
        for store in (self.containers, self.networks):
            store.stop()
        self.containerd.untidy.set()
        self.pump.stop()
        self.containerd.close()
        self.database.close()
