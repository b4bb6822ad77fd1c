# SPDX-License-Identifier: Apache-2.0
"""Which containers run again when the engine starts, above all after a boot, and what they wait for.

The rules are dockerd's: `always`; `unless-stopped` but for those that a user stopped; `on-failure` for those that ended
with another code than 0 (the machine's end is 255), as often as the policy allows. None that never ran.

While there is such a container, systemd starts the engine at boot (teud-restore.service; see teu.systemd.host). The
file that says so is kept in step by Container.save: there before a record that needs it, gone after the last of those.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING

from teu.systemd import host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

# How long until mounts that could not be had are tried again.
AGAIN_FIRST, AGAIN_LONGEST = 1.0, 60.0


def starts_again(container: Container) -> bool:
    """Whether a start of the engine starts this container, which does not run."""
    policy = container.host_config["RestartPolicy"]
    name = policy["Name"]
    if not container.started_once or container.removing or container.damage:
        return False
    if name == "unless-stopped":
        return not container.manually_stopped
    return name == "always" or name == "on-failure" and container.state["ExitCode"] != 0 and _may_retry(container)


def _may_retry(container: Container) -> bool:
    most = container.host_config["RestartPolicy"]["MaximumRetryCount"]
    return not most or container.restart_count < most


def _at_boot(container: Container) -> bool:
    """The same of one that may be running then."""
    if container.damage:
        return False
    if container.state["Restarting"]:
        return True
    running = container.running and container.host_config["RestartPolicy"]["Name"] == "on-failure"
    return starts_again(container) or running and _may_retry(container)


class Boot:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._marker = host.Marker(engine.data_root)
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._starting = 0  # those who are about to start containers
        # Left by an engine that went because nothing was to do: this one goes on where it was.
        self._idle = f"{engine.exec_root}/idle"
        self.resumed = False

    def load(self, containers: list[Container]) -> None:
        """All that there are, at the start of the engine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._idle)
            self.resumed = True
        with self._lock:
            self._waiting = {container.id for container in containers if _at_boot(container)}
            self._marker.put(bool(self._waiting))

    def before(self, container: Container) -> None:
        """A record is about to be written."""
        if _at_boot(container):
            with self._lock:
                self._waiting.add(container.id)
                self._marker.put(True)

    def after(self, container: Container) -> None:
        """It has been written."""
        if not _at_boot(container):
            self.forget(container)

    def forget(self, container: Container) -> None:
        with self._lock:
            self._waiting.discard(container.id)
            self._marker.put(bool(self._waiting))

    def leave_idle(self) -> None:
        """The next engine is not to start what a user has stopped: it is this one, woken."""
        with open(self._idle, "wb"):
            pass

    # -- the start of the engine

    def start(self, containers: list[Container], begin: Callable[[Container], None]) -> None:
        """Begin those containers, which do not run, once the host is ready; one whose mounts are not waits for them."""
        if not containers:
            return
        with self._busy():
            self._ready()
            for container in sorted(containers, key=_joins_others):
                if self._engine.stopping.is_set() or host.is_going_down():
                    return
                if not self._lacking(container):
                    begin(container)
                    continue
                arguments = (container, begin)
                threading.Thread(target=self._mount_and_begin, args=arguments, name="mounts", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether containers are about to be started: the engine is not idle."""
        return self._starting > 0

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        with self._lock:
            self._starting += 1
        try:
            yield
        finally:
            with self._lock:
                self._starting -= 1

    def _ready(self) -> None:
        try:
            host.reach(host.BOOT_TARGET)
        except OSError as error:
            log.warning("%s was not reached: %s; containers are started nevertheless", host.BOOT_TARGET, error)

    def _lacking(self, container: Container) -> list[str]:
        try:
            return host.unmounted(_sources(self._engine, container))
        except OSError as error:
            log.warning("container %s: its mounts are not known: %s", container.id[:12], error, extra=container.fields)
            return []

    def _mount_and_begin(self, container: Container, begin: Callable[[Container], None]) -> None:
        with self._busy():
            self._begin_when_mounted(container, begin)

    def _begin_when_mounted(self, container: Container, begin: Callable[[Container], None]) -> None:
        pause = AGAIN_FIRST
        while not self._engine.stopping.is_set() and not container.removed and not container.running:
            lacking = self._lacking(container)
            try:
                host.reach(*lacking)
            except OSError as error:
                log.warning(
                    "container %s is not started yet, for it uses %s: %s",
                    container.id[:12],
                    ", ".join(lacking),
                    error,
                    extra=container.fields,
                )
                self._engine.stopping.wait(pause)
                pause = min(pause * 2, AGAIN_LONGEST)
                continue
            if starts_again(container):
                begin(container)
            return


def _joins_others(container: Container) -> bool:
    """Those that share namespaces of another container come after it."""
    modes = (container.host_config[key] for key in ("NetworkMode", "IpcMode", "PidMode"))
    return any(str(mode or "").startswith("container:") for mode in modes)


def _sources(engine: Engine, container: Container) -> list[str]:
    """Paths of the host that the container is given."""
    found = []
    for point in container.mounts:
        if point["Type"] == "bind":
            found.append(point["Source"])
        elif point["Type"] == "volume":
            found += engine.volumes.host_paths(point["Name"])
    return found
