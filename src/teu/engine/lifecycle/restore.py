# SPDX-License-Identifier: Apache-2.0
"""The start of those containers that run again with the engine, once the host is ready for them. Called by recovery.

They wait for teu-boot.target (the network, remote file systems), and each for the mounts that it is given; which those
containers are stands in containers/boot.py.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from teu.engine.containers.boot import starts_again
from teu.systemd import host

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

# How long until mounts that could not be had are tried again.
AGAIN_FIRST, AGAIN_LONGEST = 1.0, 60.0
PLUGIN_SECONDS = 60.0  # that containers wait for the managed plugins, which they may need


class Restore:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._starting = 0  # those who are about to start containers

    def start(self, containers: list[Container], begin: Callable[[Container], None]) -> None:
        """Begin those containers, which do not run, once the host is ready; one whose mounts are not waits for them."""
        if not containers:
            return
        with self._busy():
            self._ready()
            self._engine.plugins.started.wait(PLUGIN_SECONDS)
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
    host = container.host_config
    return any(mode.startswith("container:") for mode in (host.network_mode, host.ipc_mode, host.pid_mode))


def _sources(engine: Engine, container: Container) -> list[str]:
    """Paths of the host that the container is given."""
    found = []
    for point in container.mounts:
        if point.type == "bind":
            found.append(point.source)
        elif point.type == "volume":
            found += engine.volumes.host_paths(point.name or "")
    return found
