# SPDX-License-Identifier: Apache-2.0
"""One container as the engine knows it: the record, its state, who waits for it.

The record is saved as JSON in engine.db. Whatever changes it holds `lock`; readers of single values
need not. Waiters use `changed`, which is notified at every change of the state.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol

from teu.engine.containers.network_settings import NetworkSettings
from teu.engine.containers.state import SAVED, Saved
from teu.engine.containers.visits import Visits
from teu.engine.core.errors import Conflict
from teu.engine.logs import registry
from teu.engine.logs.driver import Driver, LogSource
from teu.engine.streams.hub import Hub

if TYPE_CHECKING:
    from teu.api.types import mount_pb2
    from teu.engine.backend.tasks import Exit
    from teu.engine.core.database import Database
    from teu.engine.core.events import Events
    from teu.engine.streams.pump import Pump


class Watch(Protocol):
    """Is told of records that are saved (boot.py)."""

    def before(self, container: Container) -> None:
        """Its record is about to be written."""

    def after(self, container: Container) -> None:
        """It has been written."""


class Surroundings(NamedTuple):
    """What all containers have in common."""

    database: Database
    events: Events
    pump: Pump
    boot: Watch
    data_root: str
    """Persistent state."""
    exec_root: str
    """State that a reboot ends."""


class Process(Protocol):
    """A further process in a container, as far as the container knows it (lifecycle/execs.py)."""

    running: bool
    ended: threading.Event

    def exited(self, found: Exit) -> None: ...

    def container_exited(self) -> None: ...

    def reconcile(self) -> None: ...


class Checks(Protocol):
    """The health checks of a container (lifecycle/health.py)."""

    def stop(self) -> None: ...


class Container:
    """What is in `Saved` makes up the record; the rest is known while the daemon runs.

    `damage` says why a record cannot be trusted (records.py). The container is "dead" then: it can be listed,
    inspected, copied from and removed, and nothing else. Its record stays as it was found."""

    def __init__(self, around: Surroundings, record: Saved, damage: str = "", row: int = 0) -> None:
        self._around = around
        self.damage = damage
        self.row = row  # where a damaged record is in engine.db: its id may not be there
        self.id = record.id
        self.name = record.name
        self.created = record.created
        self.path = record.path
        self.args = record.args
        self.image_id = record.image_id
        self.chain_id = record.chain_id
        self.image_manifest = record.image_manifest
        self.config = record.config
        self.host_config = record.host_config
        self.state = record.state
        self.network_settings = record.network_settings or NetworkSettings()
        self.mounts = record.mounts
        self.restart_count = record.restart_count
        self.manually_stopped = record.manually_stopped
        self.started_once = record.started_once
        self.apparmor_profile = record.apparmor_profile
        ended = record.ended or ()
        self.ended = (ended[0], ended[1]) if len(ended) == 2 else None
        self.pid_started = record.pid_started

        self.lock = threading.RLock()
        self.changed = threading.Condition()
        self.exits = 0  # how often it exited since this daemon started
        self.removed = False
        self.removing = False
        self.being_restarted = 0  # by so many users: an exit is not its end, even with --rm
        self.comes_back = 0  # so many restarts are under way, from before its end until it has been started again
        self.out_of_memory = 0  # the process of which the kernel has said so; the exit that follows tells it
        self.touched = False  # somebody wrote into its root before its first start
        self.visits = Visits()
        self.execs: dict[str, Process] = {}
        self.rootfs_mounts: list[mount_pb2.Mount] | None = None
        self.restart_timer: threading.Timer | None = None
        self.restart_delay = 0.0
        self.health: Checks | None = None
        self._hub: Hub | None = None
        if damage:
            self.die(damage)

    @property
    def directory(self) -> str:
        return f"{self._around.data_root}/containers/{self.id}"

    @property
    def runtime_directory(self) -> str:
        return f"{self._around.exec_root}/{self.id}"

    @property
    def running(self) -> bool:
        return self.state.running

    @property
    def pid(self) -> int:
        return self.state.pid

    @property
    def labels(self) -> dict[str, str]:
        return self.config.labels

    @property
    def hostname(self) -> str:
        return self.config.hostname

    @property
    def tty(self) -> bool:
        return self.config.tty

    @property
    def snapshot_key(self) -> str:
        return self.id

    @property
    def hub(self) -> Hub:
        """Where the output goes: log driver and attached clients."""
        if self._hub is None:
            with self.changed:
                if self._hub is None:
                    self._hub = Hub(self._around.pump, self.tty, self.open_log)
        return self._hub

    def open_log(self) -> Driver | None:
        """A driver for its log; None where nothing is kept. The hub's is the one that is written to."""
        return registry.create(self.log_source())

    def log_source(self) -> LogSource:
        """What its log has to know of it."""
        return LogSource(
            self.id,
            self.name,
            self.config.image,
            self.image_id,
            self.labels,
            self.config.env or [],
            [self.path, *self.args],
            self.created,
            self.log_type,
            self.host_config.log_config.config,
            self.directory,
            lambda: self.running or self.state.restarting,
            lambda: self.hub,
        )

    @property
    def kept_running(self) -> bool:
        """Whether it has a restart policy: what is said of such a one must outlive the machine's end."""
        return self.host_config.restart_policy.name != "no"

    @property
    def log_type(self) -> str:
        return self.host_config.log_config.type

    @property
    def auto_remove(self) -> bool:
        return self.host_config.auto_remove and not self.being_restarted

    def record(self) -> str:
        """The record as JSON."""
        written = SAVED.written(vars(self))
        written["network_settings"] = self.network_settings.encode()
        return json.dumps(written, allow_nan=False, separators=(",", ":"))

    def save(self, durable: bool = True) -> None:
        """Write the record. Nothing happens once the container is removed, nor to a damaged record: it is evidence."""
        if self.damage:
            return
        data = self.record()
        self._around.boot.before(self)
        with self._around.database.transaction(durable) as cursor:
            cursor.execute("UPDATE containers SET name=?, data=? WHERE id=?", (self.name, data, self.id))
        self._around.boot.after(self)

    def die(self, reason: str) -> None:
        """It cannot be looked after any more, for this reason: it can be inspected and removed. Not saved."""
        self.state.dies(reason)

    def must_be_alive(self) -> None:
        """Raise Conflict if it is dead."""
        if self.damage or self.state.dead:
            raise Conflict(
                f"container {self.name} is dead and can only be inspected, copied from and removed: {self.state.error}"
            )

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def status(self) -> str:
        state = self.state
        if state.running:
            return "paused" if state.paused else "restarting" if state.restarting else "running"
        if state.restarting:
            return "restarting"
        if self.removing:
            return "removing"
        if state.dead:
            return "dead"
        return "exited" if self.started_once else "created"

    @property
    def fields(self) -> dict[str, str]:
        """What a message about this container has in the journal besides its text (log.…, extra=).

        Not CONTAINER_ID and CONTAINER_NAME: those are the fields of what the container itself writes."""
        return {"TEU_CONTAINER": self.id, "TEU_CONTAINER_NAME": self.name}

    def event(self, action: str, **more: str) -> None:
        attributes = {"image": self.config.image, "name": self.name}
        for key, value in self.labels.items():
            attributes.setdefault(key, value)
        attributes.update(more)
        self._around.events.publish("container", action, self.id, attributes)

    def must_run(self) -> None:
        """Raise Conflict unless it runs and is not paused or restarting."""
        self.must_be_alive()
        if not self.running or self.state.restarting and not self.pid:
            if self.state.restarting:
                raise Conflict(f"Container {self.id} is restarting, wait until the container is running")
            raise Conflict(f"container {self.id} is not running")
        if self.state.paused:
            raise Conflict(f"Container {self.name} is paused, unpause the container before exec")
