# SPDX-License-Identifier: Apache-2.0
"""One container as the engine knows it: the record, its state, who waits for it.

The record is saved as JSON in engine.db. Whatever changes it holds `lock`; readers of single values
need not. Waiters use `changed`, which is notified at every change of the state.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from teu.engine.containers.visits import Visits
from teu.engine.core.errors import Conflict
from teu.engine.core.times import NEVER
from teu.engine.logs import registry
from teu.engine.logs.driver import Driver, LogSource
from teu.engine.streams.hub import Hub

if TYPE_CHECKING:
    from teu.engine.core.database import Database
    from teu.engine.core.events import Events
    from teu.engine.streams.pump import Pump


def fresh_state() -> dict[str, Any]:
    return {
        "Status": "created",
        "Running": False,
        "Paused": False,
        "Restarting": False,
        "OOMKilled": False,
        "Dead": False,
        "Pid": 0,
        "ExitCode": 0,
        "Error": "",
        "StartedAt": NEVER,
        "FinishedAt": NEVER,
    }


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


class Container:
    """Fields in SAVED make up the record.

    `damage` says why a record cannot be trusted (records.py). The container is "dead" then: it can be listed,
    inspected, copied from and removed, and nothing else. Its record stays as it was found."""

    SAVED = (
        "id",
        "name",
        "created",
        "path",
        "args",
        "image_id",
        "chain_id",
        "config",
        "host_config",
        "state",
        "network_settings",
        "mounts",
        "restart_count",
        "manually_stopped",
        "started_once",
        "ports_exposed",
        "apparmor_profile",
        "ended",
        "pid_started",
    )

    def __init__(self, around: Surroundings, record: dict[str, Any], damage: str = "", row: int = 0) -> None:
        self._around = around
        self.damage = damage
        self.row = row  # where a damaged record is in engine.db: its id may not be there
        self.id: str = record["id"]
        self.name: str = record["name"]
        self.created: str = record["created"]
        self.path: str = record.get("path", "")
        self.args: list[str] = record.get("args") or []
        self.image_id: str = record.get("image_id", "")
        self.chain_id: str = record.get("chain_id", "")
        self.config: dict[str, Any] = record["config"]
        self.host_config: dict[str, Any] = record["host_config"]
        self.state: dict[str, Any] = record.get("state") or fresh_state()
        self.network_settings: dict[str, Any] = record.get("network_settings") or {
            "Networks": {},
            "Ports": {},
        }
        self.mounts: list[dict[str, Any]] = record.get("mounts") or []
        self.restart_count: int = record.get("restart_count", 0)
        self.manually_stopped: bool = record.get("manually_stopped", False)
        self.started_once: bool = record.get("started_once", False)
        self.ports_exposed: dict[str, Any] = record.get("ports_exposed") or {}
        self.apparmor_profile: str = record.get("apparmor_profile", "")
        # Exit code and moment (nanoseconds) while the exit is being handled: the engine may die before that is done.
        self.ended: tuple[int, int] | None = tuple(record["ended"]) if record.get("ended") else None
        self.pid_started: int = record.get("pid_started", 0)  # see proc.py

        self.lock = threading.RLock()
        self.changed = threading.Condition()
        self.exits = 0  # how often it exited since this daemon started
        self.removed = False
        self.removing = False
        self.being_restarted = 0  # by so many users: an exit is not its end, even with --rm
        self.out_of_memory = 0  # the process of which the kernel has said so; the exit that follows tells it
        self.touched = False  # somebody wrote into its root before its first start
        self.visits = Visits()
        self.execs: dict[str, Any] = {}
        self.rootfs_mounts: list[Any] | None = None
        self.restart_timer: threading.Timer | None = None
        self.restart_delay = 0.0
        self.health: Any = None
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
        return bool(self.state["Running"])

    @property
    def pid(self) -> int:
        return int(self.state["Pid"])

    @property
    def labels(self) -> dict[str, str]:
        return self.config.get("Labels") or {}

    @property
    def hostname(self) -> str:
        return str(self.config.get("Hostname") or "")

    @property
    def tty(self) -> bool:
        return bool(self.config.get("Tty"))

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
            str(self.config.get("Image") or ""),
            self.image_id,
            self.labels,
            self.config.get("Env") or [],
            self.log_type,
            self.host_config["LogConfig"]["Config"] or {},
            self.directory,
            lambda: self.running or self.state["Restarting"],
            lambda: self.hub,
        )

    @property
    def kept_running(self) -> bool:
        """Whether it has a restart policy: what is said of such a one must outlive the machine's end."""
        return bool(self.host_config["RestartPolicy"]["Name"] != "no")

    @property
    def log_type(self) -> str:
        return str(self.host_config["LogConfig"]["Type"])

    @property
    def auto_remove(self) -> bool:
        return bool(self.host_config.get("AutoRemove")) and not self.being_restarted

    def record(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.SAVED}

    def save(self, durable: bool = True) -> None:
        """Write the record. Nothing happens once the container is removed, nor to a damaged record: it is evidence."""
        if self.damage:
            return
        data = json.dumps(self.record(), allow_nan=False, separators=(",", ":"))
        self._around.boot.before(self)
        with self._around.database.transaction(durable) as cursor:
            cursor.execute("UPDATE containers SET name=?, data=? WHERE id=?", (self.name, data, self.id))
        self._around.boot.after(self)

    def die(self, reason: str) -> None:
        """It cannot be looked after any more, for this reason: it can be inspected and removed. Not saved."""
        self.state.update(Status="dead", Dead=True, Running=False, Paused=False, Restarting=False, Error=reason)

    def must_be_alive(self) -> None:
        """Raise Conflict if it is dead."""
        if self.damage or self.state["Dead"]:
            raise Conflict(
                f"container {self.name} is dead and can only be inspected, copied from and removed: "
                f"{self.state['Error']}"
            )

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def status(self) -> str:
        state = self.state
        if state["Running"]:
            return "paused" if state["Paused"] else "restarting" if state["Restarting"] else "running"
        if state["Restarting"]:
            return "restarting"
        if self.removing:
            return "removing"
        if state["Dead"]:
            return "dead"
        return "exited" if self.started_once else "created"

    @property
    def fields(self) -> dict[str, str]:
        """What a message about this container has in the journal besides its text (log.…, extra=).

        Not CONTAINER_ID and CONTAINER_NAME: those are the fields of what the container itself writes."""
        return {"TEU_CONTAINER": self.id, "TEU_CONTAINER_NAME": self.name}

    def event(self, action: str, **more: str) -> None:
        attributes = {"image": str(self.config.get("Image") or ""), "name": self.name}
        for key, value in self.labels.items():
            attributes.setdefault(key, value)
        attributes.update(more)
        self._around.events.publish("container", action, self.id, attributes)

    def must_run(self) -> None:
        """Raise Conflict unless it runs and is not paused or restarting."""
        self.must_be_alive()
        if not self.running or self.state["Restarting"] and not self.pid:
            if self.state["Restarting"]:
                raise Conflict(f"Container {self.id} is restarting, wait until the container is running")
            raise Conflict(f"container {self.id} is not running")
        if self.state["Paused"]:
            raise Conflict(f"Container {self.name} is paused, unpause the container before exec")
