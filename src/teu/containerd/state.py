# SPDX-License-Identifier: Apache-2.0
"""What the services share: the stores, and the runtime over them. Made once by `daemon`, in order: each part is given
what it needs, and knows nothing of this record."""

from __future__ import annotations

import fcntl
import logging
import os
from concurrent.futures import ThreadPoolExecutor

from teu.config import Settings
from teu.containerd.core.database import Database
from teu.containerd.core.errors import FailedPrecondition
from teu.containerd.core.events import Exchange
from teu.containerd.core.streams import Streams
from teu.containerd.layers.run import Layers
from teu.containerd.runtime.checkpoints import Checkpoints
from teu.containerd.runtime.sandboxes import Manager
from teu.containerd.runtime.shims import Shims
from teu.containerd.runtime.tasks import Tasks
from teu.containerd.runtime.zygote import Zygote
from teu.containerd.snapshotters import registry
from teu.containerd.snapshotters.interface import Place, Snapshotter
from teu.containerd.stores.containers import Containers
from teu.containerd.stores.content import Content
from teu.containerd.stores.garbage import Collector
from teu.containerd.stores.images import Images
from teu.containerd.stores.lean import Lean
from teu.containerd.stores.leases import Leases
from teu.containerd.stores.namespaces import Namespaces
from teu.containerd.stores.sandboxes import Sandboxes
from teu.containerd.stores.snapshots import Snapshots

log = logging.getLogger("teu.containerd")


def lock_folder(path: str) -> int:
    """Hold `path` for this process alone, or say who else does. The lock ends with the process."""
    fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise FailedPrecondition(
            f"{path} is in use by another teu-containerd, process {holder}: stop it, or give --root"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


class Context:
    """All parts of a daemon below its services.

    Raises FailedPrecondition where another daemon has the root, and what the database raises for a file that it cannot
    read. Blocks."""

    def __init__(self, config: Settings, *, address: str = "", zygote: Zygote | None = None) -> None:
        """`address` is the gRPC socket where it is not the configuration's; the events' is beside it."""
        self.config = config
        self.root: str = config["root"]
        self.state: str = config["state"]
        self.address: str = address or config["address"]
        self.ttrpc_address = self.address + ".ttrpc"
        os.makedirs(self.root, mode=0o711, exist_ok=True)
        os.makedirs(self.state, mode=0o711, exist_ok=True)
        self._lock = lock_folder(self.root)
        self.pool = ThreadPoolExecutor(config["threads"], thread_name_prefix="call")
        self.events = Exchange(config["events"]["queue"])
        self.database = Database(os.path.join(self.root, "metadata.db"))
        self.leases = Leases(self.database)
        self.namespaces = Namespaces(self.database, self.events)
        self.containers = Containers(self.database, self.events)
        self.images = Images(self.database, self.events, self.leases)
        lean = Lean(self.root)
        self.content = Content(self.root, self.database, self.events, self.leases, lean)
        self.sandboxes = Sandboxes(self.database)
        self.snapshots = Snapshots(self.database, self.events, self.leases, self._snapshotters(), lean)
        self.streams = Streams()
        self.layers = Layers(self.state, config["unpack"]["parallel"])
        self.checkpoints = Checkpoints(self.root, self.content, self.layers)
        self.collector = Collector(self.database, self.content, self.snapshots, self.events, **config["gc"])
        self.shims = Shims(
            state=self.state,
            root=self.root,
            address=self.address,
            ttrpc_address=self.ttrpc_address,
            events=self.events,
            zygote=zygote,
            debug=config["log-level"] == "debug",
            is_sandbox=self.sandboxes.exists,
        )
        self.tasks = Tasks(self.containers, self.checkpoints, self.shims, self.pool)
        self.sandbox_manager = Manager(self.sandboxes, self.shims, config["default-runtime"])

    def _snapshotters(self) -> dict[str, Snapshotter]:
        settings = self.config["snapshots"]
        place = Place(self.root, self.database, sync=settings["sync"], remap=settings["remap"])
        return registry.opened(place, settings["proxies"])

    def close(self) -> None:
        """After the last call has ended."""
        self.collector.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)
        for snapshotter in self.snapshots.snapshotters.values():
            snapshotter.close()
        self.database.close()
        os.close(self._lock)
