# SPDX-License-Identifier: Apache-2.0
"""Managed plugins that collect the engine's figures (docker.metricscollector/1.0): each finds a socket at
/run/docker/metrics.sock, at which the figures are by HTTP, and is told when it begins to be served, and when it ends.

    EXEC_ROOT/plugin-streams/ID/docker/     its /run/docker: metrics.sock, and places for the mounts there

The folder is mounted, and not the socket: an engine that comes after has another one, which is there by the same name.
What is served is api/metrics, by what main gives; called by the runner and the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING

from teu.engine.core import plugins
from teu.engine.core.errors import EngineError
from teu.engine.core.managed import LOGS, METRICS
from teu.engine.plugins.spec import DOCKER, LOGGING, SOCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from teu.engine.plugins.record import Plugin

    Serve = Callable[[socket.socket], Callable[[], None]]

log = logging.getLogger("teu.engine")

KIND = "MetricsCollector"
SOCKET = "metrics.sock"
QUEUE = 16
GOODBYE_SECONDS = 2.0
"""How long an engine that goes waits for those that it tells."""


class Collectors:
    """The sockets of those that collect. None of its methods takes a plugin's lock."""

    def __init__(self, serve: Serve) -> None:
        """`serve`: answer at a socket that listens, until what is returned is called."""
        self._serve = serve
        self._ends: dict[str, Callable[[], None]] = {}

    def open(self, plugin: Plugin) -> None:
        """Before it is started, or where it runs on: its socket is there, and served. Nothing for those that do not
        collect. Raises OSError."""
        if not plugin.implements(METRICS):
            return
        self.close(plugin)
        for place in (SOCKETS, LOGGING) if plugin.implements(LOGS) else (SOCKETS,):
            os.makedirs(f"{plugin.docker}/{place.removeprefix(f'{DOCKER}/')}", mode=0o700, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _bind(listener, plugin.docker)
            listener.listen(QUEUE)
        except BaseException:
            listener.close()
            raise
        self._ends[plugin.id] = self._serve(listener)

    def close(self, plugin: Plugin) -> None:
        """It has ended, or is about to: nobody answers there any more."""
        end = self._ends.pop(plugin.id, None)
        if end is not None:
            end()

    def begin(self, plugin: Plugin) -> None:
        """Tell one that runs that its socket is served; what goes wrong is logged, as with docker."""
        if plugin.implements(METRICS):
            _tell(plugin.name, "StartMetrics")

    def end(self, names: Sequence[str]) -> None:
        """The engine goes: tell these, all at once."""
        threads = [threading.Thread(target=_tell, args=(name, "StopMetrics", GOODBYE_SECONDS)) for name in names]
        for thread in threads:
            thread.daemon = True
            thread.start()
        for thread in threads:
            thread.join(GOODBYE_SECONDS)


def _tell(name: str, what: str, seconds: float = 0.0) -> None:
    try:
        plugins.get(name, KIND, patient=False, seconds=seconds).call(f"{KIND}.{what}", patient=False, seconds=seconds)
    except EngineError as error:
        log.warning("plugin %s, %s: %s", name, what, error)


def _bind(listener: socket.socket, folder: str) -> None:
    """bind(2), also where the path is longer than an address may be."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=descriptor)
        listener.bind(f"/proc/self/fd/{descriptor}/{SOCKET}")
    finally:
        os.close(descriptor)
