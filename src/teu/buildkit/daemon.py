# SPDX-License-Identifier: Apache-2.0
"""The builder: all rooms, put together, started and stopped. Called by main, which has the signals and the sockets.

    ROOT/     /var/lib/teu/buildkit     cache.db, history.db: what survives
    STATE/    /run/teu/buildkit         what a reboot ends: mounts, FIFOs, sockets of frontends

Calls that come before the worker is ready wait for it, or are told why it is not.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from teu.api.buildkit import control_pb2, gateway_pb2
from teu.api.grpc.health.v1 import health_pb2
from teu.api.services.content.v1 import content_pb2
from teu.buildkit import rooms
from teu.buildkit.cache.policies import Policy
from teu.buildkit.cache.store import Store
from teu.buildkit.config import KEYS, policies
from teu.buildkit.control import rpc, workers
from teu.buildkit.control.bridge import Bridge, Forwarder
from teu.buildkit.control.builds import Builds
from teu.buildkit.control.cleaning import Cleaning
from teu.buildkit.control.control import Content, Control, Health, Traces
from teu.buildkit.control.history import History
from teu.buildkit.core import errors
from teu.buildkit.llb import platforms
from teu.buildkit.session import handover
from teu.buildkit.session.manager import Manager
from teu.config import Settings, changed
from teu.systemd import grpc_activation, journal

log = logging.getLogger("teu.buildkit")

WITHOUT_WORKER = ("Info", "ListenBuildHistory", "Session", "Status", "UpdateBuildHistory")
READY_SECONDS = 30.0  # how long a call waits for the worker
RETRY_SECONDS = 1.0
GRACE_SECONDS = 1.0  # for answers that are under way when the builder stops
END_SECONDS = 6.0  # for builds to end; with what comes after, less than the unit gives us


class Daemon:
    def __init__(self, settings: Settings) -> None:
        """Raises cache.database.Unusable where what is kept cannot be used."""
        self.settings = settings
        root, state = settings["root"], settings["state"]
        os.makedirs(root, 0o700, exist_ok=True)
        os.makedirs(state, 0o711, exist_ok=True)
        self.store = Store(f"{root}/cache.db")
        bounds = settings["history"]
        self.history = History(f"{root}/history.db", max_age=bounds["max-age"], max_entries=bounds["max-entries"])
        self.sessions = Manager()
        self.activity = rpc.Activity()
        self.work = rooms.Work(settings, self.store, self.sessions)
        self.cleaning = Cleaning(self.work.keeper, self.policies, after=settings["gc"]["delay"])
        self.builds = Builds(
            rooms.together(self.work, self.worker_record, self.worker_info),
            self.history,
            lambda view: rooms.containers(self.work, view),
            self.worker_record,
        )
        self.failure: Exception | None = None  # that ends it
        self.waiting: errors.Unavailable | None = None  # for containerd, and why
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._server: Any = None
        self._release: Callable[[], None] = lambda: None
        self._handover: socket.socket | None = None

    # What it says of itself

    def policies(self) -> Sequence[Policy]:
        """Of the garbage collection, as the configuration has them now."""
        return policies(self.settings, self.work.keeper.total_space())

    def platforms(self) -> list[platforms.Platform]:
        return [platforms.parse(text) for text in self.work.worker.platforms]

    def worker_record(self) -> Any:
        worker = self.work.worker
        return workers.record(worker.id, worker.labels, self.platforms(), self.policies(), self.work.devices)

    def worker_info(self) -> list[dict[str, Any]]:
        """As frontends in containers are told."""
        worker = self.work.worker
        listed = [
            {"architecture": one.architecture, "os": one.os, **({"variant": one.variant} if one.variant else {})}
            for one in self.platforms()
        ]
        return [{"id": worker.id, "labels": dict(worker.labels), "platforms": listed}]

    # Its life

    def start(self) -> None:
        """Bring the worker up; trying on while containerd is not to be reached. Ends when that is done."""
        threading.Thread(target=self.cleaning.run, name="cleaning", daemon=True).start()
        while not self._stopping.is_set():
            try:
                self.work.start()
            except errors.Unavailable as error:
                if self.waiting is None:
                    log.error("containerd at %s cannot be reached, trying on: %s", self.settings["containerd"], error)
                self.waiting = error
                self._stopping.wait(RETRY_SECONDS)
                continue
            self.waiting = None
            self._ready.set()
            return

    def _gate(self, method: str) -> None:
        """Raise Unavailable where the worker does not come, for a call that needs it."""
        if method in WITHOUT_WORKER:
            return
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready.wait(0.5):
            reason = self.failure or self.waiting
            if reason is not None or self._stopping.is_set() or time.monotonic() > deadline:
                raise errors.Unavailable(f"the builder is not ready: {reason or 'it is starting'}")

    def build(self) -> Any:
        """A server of all services."""
        server = rpc.server()
        for descriptor, service, gate in (
            (
                control_pb2.DESCRIPTOR.services_by_name["Control"],
                Control(self.builds, self.sessions, self.history, self.cleaning, self.worker_record),
                self._gate,
            ),
            (gateway_pb2.DESCRIPTOR.services_by_name["LLBBridge"], Bridge(self._forwarder), self._gate),
            (content_pb2.DESCRIPTOR.services_by_name["Content"], Content(self.history), None),
            (health_pb2.DESCRIPTOR.services_by_name["Health"], Health(), None),
        ):
            rpc.register(server, descriptor, service, self.activity, gate)
        Traces.register(server)
        return server

    def _forwarder(self, ref: str, gone: Callable[[], bool]) -> Forwarder:
        return self.builds.get(ref, gone)[1]

    def serve(self, api: socket.socket | None, sessions: socket.socket | None) -> None:
        """Answer. Without a socket of systemd's the configured address is one of our own, for root alone."""
        address = self.settings["address"]
        if api is not None:
            private = f"{self.settings['state']}/grpc-{os.getpid()}.sock"
            self._server, self._release = grpc_activation.serve_in_threads(self.build, api, private, rpc.answers)
        else:
            self._server = self.build()
            _clear(address)
            mask = os.umask(0o177)
            try:
                self._server.add_insecure_port(f"unix:{address}")
            finally:
                os.umask(mask)
            self._server.start()
        self._handover = sessions if sessions is not None else _listen(address.removesuffix(".sock") + "-sessions.sock")
        threading.Thread(
            target=handover.serve, args=(self._handover, self.sessions), name="handover", daemon=True
        ).start()

    def idle_seconds(self) -> float:
        """Since when nobody needs this process; 0 while somebody does."""
        busy = self.builds.count or self.sessions.all() or not self.work.solver.idle or self.cleaning.due
        return 0.0 if busy else self.activity.idle_seconds()

    def alive(self) -> bool:
        """Whether the locks that everything needs are to be had."""
        return self.work.solver.idle in (True, False)

    def reload(self, fresh: Settings) -> tuple[list[str], list[str]]:
        """Take over what a reload may change: (those keys, those that need a restart)."""
        applied, ignored = _changes(self.settings, fresh)
        bounds = self.settings["history"]
        self.history.set_bounds(bounds["max-age"], bounds["max-entries"])
        journal.set_level(self.settings["log-level"])
        return applied, ignored

    def stop(self) -> None:
        """Builds end, their steps are killed; what is done is kept."""
        self._stopping.set()
        self._release()
        self.builds.stop()
        self.cleaning.stop()
        if not self.builds.wait(END_SECONDS):
            log.warning("builds have not ended within %.0f s", END_SECONDS)
        if self._server is not None:
            self._server.stop(GRACE_SECONDS).wait(2 * GRACE_SECONDS)
        self.sessions.close()
        if self._ready.is_set():
            self.work.stop()
        self.history.close()
        self.store.close()


def _changes(old: Settings, fresh: Settings) -> tuple[list[str], list[str]]:
    """Sections whose keys may all be reloaded are taken over key by key."""
    applied, ignored = changed(old, fresh, [key for key in KEYS if not isinstance(old.get(key.name), dict)])
    for name in applied:
        old[name] = fresh[name]
    for key in KEYS:
        inner = getattr(key.kind, "keys", None)
        if inner is None:
            if isinstance(old.get(key.name), dict) and old[key.name] != fresh[key.name]:
                ignored.append(key.name)
            continue
        for one in inner:
            if old[key.name].get(one.name) != fresh[key.name].get(one.name):
                (applied if one.reload else ignored).append(f"{key.name}.{one.name}")
                if one.reload:
                    old[key.name][one.name] = fresh[key.name][one.name]
    return applied, ignored


def _clear(path: str) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    try:
        os.unlink(path)  # a leftover: the lock on the root says that nobody serves it
    except FileNotFoundError:
        pass


def _listen(path: str) -> socket.socket:
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(4096)
    return listener
