# SPDX-License-Identifier: Apache-2.0
"""The running daemon: stores, services, sockets, signals. Started by `main` after everything that must come first."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc.aio

from teu.api.grpc.health.v1 import health_pb2
from teu.config import EX_DATAERR, ConfigError, Settings, changed
from teu.containerd.config import KEYS
from teu.containerd.core.database import Unreadable
from teu.containerd.core.errors import Error
from teu.containerd.core.limits import MAX_MESSAGE
from teu.containerd.runtime.restart import Restarts
from teu.containerd.runtime.zygote import Zygote
from teu.containerd.server import ttrpc_events
from teu.containerd.server.metrics import serve_metrics
from teu.containerd.server.rpc import Server
from teu.containerd.server.wake import Waker
from teu.containerd.state import Context
from teu.linux import memory
from teu.systemd import grpc_activation, host, journal, notify, stacks

log = logging.getLogger("teu.containerd")

# In the order of registration.
SERVICES = (
    "version",
    "health",
    "reflection",
    "namespaces",
    "introspection",
    "content",
    "images",
    "containers",
    "leases",
    "snapshots",
    "diff",
    "events",
    "tasks",
    "sandbox",
    "streaming",
    "transfer",
)

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.so_reuseport", 0),
    # clients such as dockerd keep idle connections open and ping them
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    # calls at once on one connection: an engine waits for each of its containers, and a call takes some 12 KB
    ("grpc.max_concurrent_streams", 10_000),
)

# How often memory is looked at, in seconds, at most where nothing was to be given back; and how many bytes more than
# at the start are nothing to look for.
_TRIM_INTERVAL, _TRIM_INTERVAL_MAX, _TRIM_SLACK = 5.0, 320.0, 16 << 20


def _build(context: Context) -> tuple[Any, Server]:
    server = grpc.aio.server(options=_OPTIONS)
    wrapped = Server(server, context.pool)
    for name in SERVICES:
        importlib.import_module(f"teu.containerd.services.{name}").register(wrapped, context)
    return server, wrapped


async def _answers(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            await check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError:
            return False
    return True


def _listen(path: str) -> socket.socket:
    """A listening socket of our own, for root alone."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(path)  # a leftover: the lock on the root says that nobody serves it
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(4096)
    return listener


class Daemon:
    def __init__(
        self, config: Settings, read_again: Callable[[], Settings], sockets: list[socket.socket], zygote: Zygote | None
    ) -> None:
        self.config = config
        self.read_again = read_again
        self.activated = bool(sockets)
        self.sockets = sockets
        self.zygote = zygote
        self.stop = asyncio.Event()
        self.rpc: Server | None = None
        self.cri: Any = None  # the Container Runtime Interface, where it is enabled

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        loop.add_signal_handler(signal.SIGUSR1, lambda: stacks.show(log, asyncio.all_tasks()))
        notify.status("Opening the stores")
        grpc_socket, events_socket = self._sort_sockets()
        address = "" if grpc_socket is None else str(grpc_socket.getsockname())
        context = self.context = await asyncio.to_thread(Context, self.config, address=address, zygote=self.zygote)
        if events_socket is None:
            events_socket = _listen(context.ttrpc_address)
        self.waker = Waker(self.config["wake"])
        context.events.listen(self.waker.on_event)

        def build() -> Any:
            server, self.rpc = _build(context)
            if cri is not None:
                cri.register(self.rpc)
            return server

        # shims that died while we were away are told of before anybody can ask
        await context.shims.restore()
        context.sandbox_manager.take_over()
        cri = self.cri = await self._cri()
        server, release = await self._start(build, grpc_socket)
        events_server = await ttrpc_events.serve(context.events, events_socket)
        metrics_server = await serve_metrics(
            self.config["metrics"]["address"],
            lambda: self._rpc().statistics,
            context.tasks,
            context.events,
            context.collector,
        )
        context.collector.start()
        restarts = self.restarts = Restarts(
            context.containers,
            context.snapshots,
            context.tasks,
            context.events,
            context.pool,
            root=context.root,
            state=context.state,
            interval=lambda: float(self.config["restart-interval"]),
        )
        background = [
            asyncio.create_task(work)
            for work in (self._watchdog(), self._watch_idle(), self._watch_memory(), restarts.run())
        ]
        notify.ready(f"Serving {context.address}")
        log.info("serving %s", context.address)
        try:
            await self.stop.wait()
        finally:
            notify.stopping()
            log.info("stopping")
            for task in background:
                task.cancel()
            events_server.close()
            if metrics_server is not None:
                metrics_server.close()
            release()
            self._rpc().let_go()
            await server.stop(1.0)
            if cri is not None:
                await cri.close()
            await context.shims.close()
            await asyncio.to_thread(context.close)

    async def _cri(self) -> Any:
        """The Container Runtime Interface, ready to be served; None where nobody has asked for it."""
        if not self.config["cri"]["enabled"]:
            return None
        # 60 ms and 3.6 MB, for nodes of Kubernetes alone
        from teu.containerd.cri.service import Cri

        cri = Cri(self.context)
        await cri.restore()
        return cri

    def _rpc(self) -> Server:
        assert self.rpc is not None
        return self.rpc

    def _sort_sockets(self) -> tuple[socket.socket | None, socket.socket | None]:
        """(gRPC, ttrpc) of those inherited, None for what is missing."""
        grpc_socket = events_socket = None
        for one in self.sockets:
            if str(one.getsockname()).endswith(".ttrpc"):
                events_socket = one
            else:
                grpc_socket = one
        return grpc_socket, events_socket

    async def _start(self, build: Any, listener: socket.socket | None) -> tuple[Any, Callable[[], None]]:
        if listener is not None:
            private = os.path.join(self.context.state, f"grpc-{os.getpid()}.sock")
            return await grpc_activation.serve(build, listener, private, _answers)
        server = build()
        os.makedirs(os.path.dirname(self.context.address), mode=0o755, exist_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(self.context.address)
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{self.context.address}")
        finally:
            os.umask(mask)
        await server.start()
        return server, lambda: None

    def reload(self) -> None:
        notify.reloading()
        try:
            fresh = self.read_again()
        except ConfigError as error:
            log.error("the configuration is kept as it was: %s", error)
        else:
            applied, ignored = changed(self.config, fresh, KEYS)
            for key in applied:
                self.config[key] = fresh[key]
            journal.set_level(self.config["log-level"])
            self.waker.sockets = self.config["wake"]
            log.info("configuration read again: changed %s", ", ".join(applied) or "nothing")
            if ignored:
                log.warning("these keys need a restart of teu-containerd to take effect: %s", ", ".join(ignored))
        notify.ready(f"Serving {self.context.address}")

    async def _watchdog(self) -> None:
        interval = notify.watchdog_interval()
        while interval:
            notify.watchdog()
            await asyncio.sleep(interval)

    async def _watch_memory(self) -> None:
        """Give back what bursts have left, as it becomes free; seldom, where what there is is in use."""
        first = last = memory.resident()
        pause, due = _TRIM_INTERVAL, 0.0
        while True:
            await asyncio.sleep(_TRIM_INTERVAL)
            now, before = time.monotonic(), memory.resident()
            if before <= first + _TRIM_SLACK or (now < due and before <= last + _TRIM_SLACK):
                continue
            await asyncio.to_thread(memory.trim)
            last = memory.resident()
            pause = _TRIM_INTERVAL if before - last > _TRIM_SLACK // 4 else min(2 * pause, _TRIM_INTERVAL_MAX)
            due = now + pause

    def _nothing_due(self) -> bool:
        streaming = self.cri is not None and self.cri.busy
        return self.context.collector.idle() and self.restarts.settled() and not streaming

    async def _watch_idle(self) -> None:
        """Leave when nobody has called for long; only where systemd holds the sockets, which wake us."""
        while True:
            limit = self.config["idle-exit"]
            if not limit or not self.activated or self.config["metrics"]["address"]:  # where nobody would answer
                await asyncio.sleep(5)
                continue
            statistics = self._rpc().statistics
            idle = time.monotonic() - max(statistics.last_activity, ttrpc_events.last_activity())
            if idle >= limit and not statistics.in_flight and self._nothing_due():
                # In a shutdown no connection would wake us: the sockets are about to be stopped.
                if await asyncio.to_thread(host.is_going_down):
                    await asyncio.sleep(1)
                    continue
                if statistics.in_flight:
                    continue
                log.info("idle for %.0f s: leaving, the socket wakes us", idle)
                self.stop.set()
                return
            await asyncio.sleep(max(0.05, min(limit - idle, 5)))


def turn_away(sockets: list[socket.socket]) -> None:
    """Close the connections of those who wait. Where they stayed in the queue of systemd's sockets, systemd would start
    us for them again and again."""
    for listener in sockets:
        listener.setblocking(False)
        with suppress(OSError):
            while True:
                listener.accept()[0].close()


def run(
    config: Settings, read_again: Callable[[], Settings], sockets: list[socket.socket], zygote: Zygote | None
) -> int:
    try:
        asyncio.run(Daemon(config, read_again, sockets, zygote).run())
    except Error as error:
        log.critical("cannot start: %s", error.message)
        if isinstance(error, Unreadable):
            turn_away(sockets)
            return EX_DATAERR
        return 1
    except OSError as error:
        log.critical("cannot go on: %s", error, exc_info=log.isEnabledFor(logging.DEBUG))
        return 1
    return 0
