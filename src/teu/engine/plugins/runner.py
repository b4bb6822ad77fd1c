# SPDX-License-Identifier: Apache-2.0
"""A managed plugin as something that runs: its mounts on the host, its task, what it says, and whether it listens.

Its root file system is mounted by the engine, where the host finds what the plugin has, and given to the shim as a
bind. What it writes to its standard streams is in the engine's log. All of it is left behind by an engine that dies,
and taken over by the next one (`adopt`); only a reboot ends it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from teu.engine.backend import containerd, tasks
from teu.engine.core.errors import EngineError
from teu.engine.core.managed import LOGS
from teu.engine.core.plugins import connect
from teu.engine.plugins import spec
from teu.linux import mountflags, trees
from teu.linux.mounts import MS_BIND, MS_REC, MS_SHARED, mount

if TYPE_CHECKING:
    from teu.engine.backend.containerd import Client
    from teu.engine.plugins.collectors import Collectors
    from teu.engine.plugins.record import Plugin

log = logging.getLogger("teu.engine")

LISTEN_SECONDS = 10.0
"""How long one that was started may take until it listens."""
STOP_SECONDS = 10.0
"""Between SIGTERM and SIGKILL."""
LOOK_SECONDS = 0.02
LINE_MAX = 16 << 10
STREAMS = ("stdout", "stderr")


class Runner:
    """What starts and stops plugins. None of its methods takes a plugin's lock: their callers hold it."""

    def __init__(
        self, client: Client, snapshotter: str, shim: str, stopping: threading.Event, collectors: Collectors
    ) -> None:
        self._client = client
        self._snapshotter = snapshotter
        self._shim = shim
        self._stopping = stopping
        self._collectors = collectors

    # -- start -----------------------------------------------------------------------------

    def start(self, plugin: Plugin) -> None:
        """Until it listens. Raises EngineError; nothing of it is left then."""
        self.clear(plugin, everything=False)
        try:
            specification = spec.build(plugin)
            self._mount(plugin)
            self._fifos(plugin)
            for path in plugin.run_folder, plugin.logging if plugin.implements(LOGS) else plugin.run_folder:
                os.makedirs(path, mode=0o700, exist_ok=True)
            self._collectors.open(plugin)
            with contextlib.ExitStack() as writers:
                for name in STREAMS:  # until the shim has them open, nobody would write
                    writer = os.open(f"{plugin.streams}/{name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                    writers.callback(os.close, writer)
                self._read(plugin)
                self._run(plugin, specification)
            self._wait(plugin)
        except BaseException as error:
            self.stop(plugin, at_once=True)
            if isinstance(error, OSError):
                raise EngineError(f"plugin {plugin.name} cannot be started: {error}") from error
            raise
        plugin.starts += 1

    def _run(self, plugin: Plugin, specification: dict[str, object]) -> None:
        from teu.api.types import mount_pb2

        rootfs = mount_pb2.Mount(type="bind", source=plugin.rootfs, options=["rbind", "rw"])
        paths = ("", *(f"{plugin.streams}/{name}" for name in STREAMS))
        tasks.create_container(
            self._client,
            plugin.id,
            plugin.name,
            "",
            self._shim,
            self._snapshotter,
            plugin.record.base,
            specification,
            ("", b""),
        )
        tasks.create(self._client, plugin.id, [rootfs], (paths[0], paths[1], paths[2]), False, ("", b""))
        plugin.pid = tasks.start(self._client, plugin.id)

    def _mount(self, plugin: Plugin) -> None:
        from teu.api.services.snapshots.v1 import snapshots_pb2

        if plugin.record.config.propagated:
            os.makedirs(plugin.mounts, mode=0o755, exist_ok=True)
            if not trees.is_mount_root(plugin.mounts):
                mount(plugin.mounts, plugin.mounts, None, MS_BIND)
            mount(None, plugin.mounts, None, MS_SHARED | MS_REC)
        os.makedirs(plugin.rootfs, mode=0o700, exist_ok=True)
        request = snapshots_pb2.MountsRequest(snapshotter=self._snapshotter, key=plugin.record.base)
        for entry in self._client.snapshots.Mounts(request).mounts:
            flags, _, data = mountflags.parse(entry.options)
            mount(entry.source, plugin.rootfs, entry.type, flags, ",".join(data))

    # -- what it says ------------------------------------------------------------------------

    def _fifos(self, plugin: Plugin) -> None:
        os.makedirs(plugin.streams, mode=0o700, exist_ok=True)
        for name in STREAMS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{plugin.streams}/{name}")
            os.mkfifo(f"{plugin.streams}/{name}", 0o600)

    def _read(self, plugin: Plugin) -> None:
        for name, level in zip(STREAMS, (logging.INFO, logging.ERROR), strict=True):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(f"{plugin.streams}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.set_blocking(descriptor, True)
                arguments = (plugin.name, descriptor, level, self._stopping)
                threading.Thread(target=_log, args=arguments, name="plugin-output", daemon=True).start()

    # -- whether it listens --------------------------------------------------------------------

    def _wait(self, plugin: Plugin) -> None:
        until = time.monotonic() + LISTEN_SECONDS
        while (refusal := _refusal(plugin.socket)) is not None:
            task = tasks.get(self._client, plugin.id)
            if task is None or task.status == "STOPPED":
                code = f" with code {task.exit.status}" if task is not None else ""
                raise EngineError(f"{refusal}: the plugin has ended{code}")
            if time.monotonic() > until:
                raise EngineError(refusal)
            if self._stopping.wait(LOOK_SECONDS):
                raise containerd.Unavailable(containerd.STOPPING)

    # -- the rest ----------------------------------------------------------------------------

    def adopt(self, plugin: Plugin, task: tasks.Task) -> None:
        """One that an engine before this one has started: it goes on. Raises OSError."""
        plugin.pid = task.pid
        plugin.starts += 1
        self._read(plugin)
        self._collectors.open(plugin)

    def stop(self, plugin: Plugin, at_once: bool = False) -> None:
        """End it, and take away what `start` made. Raises containerd's errors; nothing of them with `at_once`."""
        if not at_once:
            self._end(plugin)
        try:
            self.clear(plugin)
        except containerd.Error as error:
            if not at_once:
                raise
            log.warning("plugin %s: %s", plugin.name, error)

    def _end(self, plugin: Plugin) -> None:
        """SIGTERM, and its time."""
        with contextlib.suppress(containerd.NotFound, containerd.FailedPrecondition):
            tasks.kill(self._client, plugin.id, 15)
            until = time.monotonic() + STOP_SECONDS
            while time.monotonic() < until:
                task = tasks.get(self._client, plugin.id)
                if task is None or task.status == "STOPPED":
                    return
                time.sleep(LOOK_SECONDS)

    def clear(self, plugin: Plugin, everything: bool = True) -> None:
        """Take away its task, its mounts, and its socket; what it wrote stays. Not `everything`: it is started again,
        and finds what it had mounted for others, and the FIFOs that it reads."""
        plugin.pid = 0
        self._collectors.close(plugin)
        tasks.discard(self._client, plugin.id)
        for place in reversed(trees.mounts_below(plugin.folder if everything else plugin.rootfs)):
            with contextlib.suppress(OSError):
                trees.unmount(place)
        trees.discard_tree(plugin.run_folder)
        if everything:
            trees.discard_tree(plugin.streams)


def _refusal(path: str) -> str | None:
    """Why nobody can be spoken to at a socket, in docker's words; None where somebody can."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            connect(probe, path)
        except OSError as error:
            return f"dial unix {path}: connect: {(error.strerror or str(error)).lower()}"
    return None


def _log(name: str, descriptor: int, level: int, stopping: threading.Event) -> None:
    """Line by line, until the plugin has ended."""
    with open(descriptor, "rb", buffering=0) as file:
        kept = b""
        while not stopping.is_set():
            part = file.read(LINE_MAX)
            if not part:
                break
            *lines, kept = (kept + part).split(b"\n")
            if len(kept) >= LINE_MAX:
                lines, kept = [*lines, kept], b""
            for line in lines:
                log.log(level, "plugin %s: %s", name, line.decode("utf-8", "replace"))
        if kept:
            log.log(level, "plugin %s: %s", name, kept.decode("utf-8", "replace"))
