# SPDX-License-Identifier: Apache-2.0
"""Which containers run again when the engine starts, above all after a boot (lifecycle/restore.py starts them).

The rules are dockerd's: `always`; `unless-stopped` but for those that a user stopped; `on-failure` for those that ended
with another code than 0 (the machine's end is 255), as often as the policy allows. None that never ran.

While there is such a container, systemd starts the engine at boot (teud-restore.service; see teu.systemd.host). The
file that says so is kept in step by Container.save: there before a record that needs it, gone after the last of those.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from teu.systemd import host

if TYPE_CHECKING:
    from teu.engine.containers.model import Container


def starts_again(container: Container) -> bool:
    """Whether a start of the engine starts this container, which does not run."""
    name = container.host_config.restart_policy.name
    if not container.started_once or container.removing or container.damage:
        return False
    if name == "unless-stopped":
        return not container.manually_stopped
    return name == "always" or name == "on-failure" and container.state.exit_code != 0 and _may_retry(container)


def _may_retry(container: Container) -> bool:
    most = container.host_config.restart_policy.maximum_retry_count
    return not most or container.restart_count < most


def _at_boot(container: Container) -> bool:
    """The same of one that may be running then."""
    if container.damage:
        return False
    if container.state.restarting:
        return True
    running = container.running and container.host_config.restart_policy.name == "on-failure"
    return starts_again(container) or running and _may_retry(container)


class Boot:
    """The folders are those of the engine: persistent state, and that which a reboot ends."""

    def __init__(self, data_root: str, exec_root: str) -> None:
        self._marker = host.Marker(data_root)
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._others: set[str] = set()
        # Left by an engine that went because nothing was to do: this one goes on where it was.
        self._idle = f"{exec_root}/idle"
        self.resumed = False

    def load(self, containers: list[Container]) -> None:
        """All that there are, at the start of the engine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._idle)
            self.resumed = True
        with self._lock:
            self._waiting = {container.id for container in containers if _at_boot(container)} | self._others
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

    def keep(self, identity: str, wanted: bool) -> None:
        """Something else than a container that runs again with the engine, or does not. Before `load`, too."""
        with self._lock:
            for some in (self._waiting, self._others):
                (some.add if wanted else some.discard)(identity)
            self._marker.put(bool(self._waiting))

    def leave_idle(self) -> None:
        """The next engine is not to start what a user has stopped: it is this one, woken."""
        with open(self._idle, "wb"):
            pass
