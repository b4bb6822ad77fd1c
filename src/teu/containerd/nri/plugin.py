# SPDX-License-Identifier: Apache-2.0
"""One plugin: its connection, its registration, and what it is asked. Made by `plugins`.

A plugin that does not answer in time, or does not speak the protocol, is disconnected, and what it was asked goes on
without it. One that answers with an error has refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from teu.api.nri.v1alpha1 import nri_pb2 as nri
from teu.containerd.core.errors import Error, FailedPrecondition, Unknown
from teu.containerd.nri import names
from teu.ttrpc import frames, messages, status
from teu.ttrpc.client import Client
from teu.ttrpc.mux import Mux

log = logging.getLogger("teu.containerd.nri")

VERSION = "v0.12.2"  # of the interface
PLUGIN_STREAM, RUNTIME_STREAM = 1, 2
_PACKAGE = "nri.pkg.api.v1alpha1"
PLUGIN_SERVICE, RUNTIME_SERVICE = f"{_PACKAGE}.Plugin", f"{_PACKAGE}.Runtime"
SOCKET = 3  # the descriptor that a plugin is started with
# Leaves room for what is around the lists of a message.
SYNCHRONIZE_MAX = frames.DATA_LENGTH_MAX - (64 << 10)

EVENTS = {value.number: value.name for value in nri.Event.DESCRIPTOR.values if 0 < value.number < nri.LAST}
METHODS = {number: "".join(word.capitalize() for word in name.split("_")) for number, name in EVENTS.items()}
ALL_EVENTS = (1 << nri.LAST - 1) - 1
# Plugins of before 0.12 know these by StateChange alone.
_STATE_CHANGES = frozenset(
    [
        nri.RUN_POD_SANDBOX,
        nri.POST_UPDATE_POD_SANDBOX,
        nri.STOP_POD_SANDBOX,
        nri.REMOVE_POD_SANDBOX,
        nri.POST_CREATE_CONTAINER,
        nri.START_CONTAINER,
        nri.POST_START_CONTAINER,
        nri.POST_UPDATE_CONTAINER,
        nri.REMOVE_CONTAINER,
    ]
)
_ANSWERS = {
    method.name: getattr(nri, method.output_type.name) for method in nri.DESCRIPTOR.services_by_name["Plugin"].methods
}


class Refused(Unknown):
    """A plugin has answered with an error."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a plugin is told of who asks, and how long it has: seconds."""

    name: str
    version: str
    registration_timeout: float
    request_timeout: float


Update = Callable[["Plugin", Any], Awaitable[Any]]  # UpdateContainersRequest -> UpdateContainersResponse


class _RuntimeEnd(asyncio.Protocol):
    """The runtime's service, which the plugin asks."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._reader = frames.Reader()
        self._lane: asyncio.Transport | None = None
        self._calls: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._lane = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._lane = None

    def data_received(self, data: bytes) -> None:
        try:
            for stream, kind, _flags, payload in self._reader.feed(data):
                if kind == frames.REQUEST:
                    task = asyncio.create_task(self._serve(stream, messages.decode("ttrpc.Request", payload)))
                    self._calls.add(task)
                    task.add_done_callback(self._calls.discard)
        except ValueError as error:
            self._plugin.disconnect(f"it does not speak ttrpc: {error}")

    async def _serve(self, stream: int, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {}
        try:
            message = await self._plugin.serve(request["service"], request["method"], request["payload"])
            answer["payload"] = message.SerializeToString()
        except DecodeError as error:
            answer["status"] = {"code": status.INVALID_ARGUMENT, "message": f"malformed request: {error}"}
        except Error as error:
            answer["status"] = {"code": error.code, "message": error.wire_message()}
        except Exception as error:
            log.exception("plugin %s: %s", self._plugin.name, request["method"])
            answer["status"] = {"code": status.INTERNAL, "message": f"internal error: {error}"}
        if self._lane is not None:
            self._lane.write(frames.pack(stream, frames.RESPONSE, messages.encode("ttrpc.Response", answer)))
        self._plugin.served(request["method"])


class Plugin:
    """A connection, from its begin on. `index` and `base` are its name, once it has registered."""

    def __init__(self, runtime: Runtime, update: Update) -> None:
        """`update` does what the plugin asks for by itself."""
        self._runtime = runtime
        self._update = update
        self.index = self.base = ""
        self.events = 0
        self.pid = 0  # of a program that was started here
        self.closed = asyncio.Event()
        self._configuration = ""
        self._registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._old: set[int] = set()  # events that it knows by StateChange
        self._everything = False  # whether it has not said what it wants
        self._client = Client()
        self._client.on_close = self._gone
        self.mux = Mux()
        self.mux.on_open = self._open

    @property
    def name(self) -> str:
        """How it is called in logs, and as an owner of what it has changed."""
        return f"{self.index or '??'}-{self.base or 'plugin'}"

    def _open(self) -> None:
        self.mux.open(PLUGIN_STREAM, self._client)
        self.mux.open(RUNTIME_STREAM, _RuntimeEnd(self))

    def _gone(self) -> None:
        self.closed.set()
        if not self._registered.done():
            self._registered.cancel()
        if self.pid:
            asyncio.get_running_loop().run_in_executor(None, _end, self.pid)
            self.pid = 0

    def disconnect(self, why: str) -> None:
        """End the connection, and the program where it was started here."""
        if not self.closed.is_set():
            log.error("plugin %s is disconnected: %s", self.name, why)
            self.close()

    def close(self) -> None:
        """The same, without a word."""
        if self.mux.closed:
            self._gone()
        self.mux.close()

    async def start(self, index: str, base: str, path: str, configuration: str) -> None:
        """Start a program as a plugin, with its end of the connection. OSError."""
        self.index, self.base, self._configuration = index, base, configuration
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with theirs:
                environment = {
                    "NRI_PLUGIN_NAME": base,
                    "NRI_PLUGIN_IDX": index,
                    "NRI_PLUGIN_SOCKET": str(SOCKET),
                }
                actions = [
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), SOCKET),
                ]
                self.pid = os.posix_spawn(
                    path,
                    [path],
                    environment,
                    file_actions=actions,
                    setsigmask=(),
                    setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM),
                )
            ours.setblocking(False)
            await asyncio.get_running_loop().create_connection(lambda: self.mux, sock=ours)
        except BaseException:
            ours.close()
            self._gone()
            raise

    # what it asks

    async def serve(self, service: str, method: str, payload: bytes) -> Any:
        """The answer to a request of its own. Raises Error."""
        if service != RUNTIME_SERVICE or method not in ("RegisterPlugin", "UpdateContainers"):
            error = Error(f"/{service}/{method} is not served here")
            error.code = status.UNIMPLEMENTED
            raise error
        if method == "UpdateContainers":
            return await self._update(self, nri.UpdateContainersRequest.FromString(payload))
        request = nri.RegisterPluginRequest.FromString(payload)
        if not self.pid:
            try:
                names.check(request.plugin_idx, request.plugin_name)
            except ValueError as error:
                if not self._registered.done():
                    self._registered.set_exception(FailedPrecondition(str(error)))
                raise FailedPrecondition(str(error)) from None
            if not self._registered.done():
                self.index, self.base = request.plugin_idx, request.plugin_name
        log.info("plugin %s has registered (NRI %s)", self.name, request.NRI_version or "unknown")
        return nri.Empty()

    def served(self, method: str) -> None:
        """A request of its own has been answered."""
        if method == "RegisterPlugin" and not self._registered.done():
            self._registered.set_result(None)

    # what it is asked

    async def ready(self) -> None:
        """Wait until it has registered, and configure it. FailedPrecondition where that does not come to be."""
        try:
            await asyncio.wait_for(self._registered, self._runtime.registration_timeout)
        except TimeoutError:
            raise FailedPrecondition("plugin registration timed out") from None
        except asyncio.CancelledError:
            if self.closed.is_set():
                raise FailedPrecondition("failed to register plugin, connection closed") from None
            raise
        request = nri.ConfigureRequest(
            config=self._configuration,
            runtime_name=self._runtime.name,
            runtime_version=self._runtime.version,
            registration_timeout=int(self._runtime.registration_timeout * 1000),
            request_timeout=int(self._runtime.request_timeout * 1000),
            NRI_version=VERSION,
        )
        try:
            events = (await self._call("Configure", request)).events
        except status.StatusError as error:
            raise FailedPrecondition(f"failed to configure plugin: {error.message}") from None
        if events & ~ALL_EVENTS:
            raise FailedPrecondition(f"invalid plugin events: 0x{events & ~ALL_EVENTS & 0xFFFFFFFF:x}")
        self._everything = not events
        self.events = events or ALL_EVENTS

    def wants(self, event: int) -> bool:
        """Whether it is to be asked of an event."""
        return not self.closed.is_set() and bool(self.events & 1 << event - 1)

    async def _call(self, method: str, request: Any) -> Any:
        payload = request.SerializeToString()
        answer = await self._client.call_raw(PLUGIN_SERVICE, method, payload, self._runtime.request_timeout)
        try:
            return _ANSWERS[method].FromString(answer)
        except DecodeError as error:
            raise status.StatusError(status.UNAVAILABLE, f"its answer to {method} is none: {error}") from None

    async def ask(self, event: int, request: Any) -> Any:
        """Its answer; None where it does not want the event, or had to be disconnected. Raises Refused."""
        if not self.wants(event):
            return None
        method = METHODS[event]
        try:
            if event not in self._old:
                try:
                    return await self._call(method, request)
                except status.StatusError as error:
                    if error.code != status.UNIMPLEMENTED:
                        raise
                    if event not in _STATE_CHANGES:
                        if not self._everything:
                            raise
                        self.events &= ~(1 << event - 1)  # it has never heard of it
                        return None
                    self._old.add(event)
            change = nri.StateChangeEvent(event=event, pod=request.pod)
            if "container" in request.DESCRIPTOR.fields_by_name:
                change.container.CopyFrom(request.container)
            await self._call("StateChange", change)
            return None
        except status.StatusError as error:
            if error.code == status.DEADLINE_EXCEEDED:
                self.disconnect(f"it has not answered {method} within {self._runtime.request_timeout:g} s")
                return None
            if error.code == status.UNAVAILABLE and (self.closed.is_set() or self.mux.closed):
                log.error("plugin %s has gone during %s", self.name, method)
                return None
            if error.code == status.UNAVAILABLE and error.message.startswith("its answer"):
                self.disconnect(error.message)
                return None
            raise Refused(error.message) from None

    async def synchronize(self, pods: list[Any], containers: list[Any]) -> list[Any]:
        """Tell it of all that there is, in as many messages as that takes; the ContainerUpdates that it asks for.
        FailedPrecondition."""
        updates: list[Any] = []
        try:
            for request in requests(pods, containers):
                answer = await self._call("Synchronize", request)
                if request.more and (answer.update or not answer.more):
                    raise FailedPrecondition("plugin does not handle split sync requests")
                updates += answer.update
        except status.StatusError as error:
            raise FailedPrecondition(f"failed to synchronize plugin: {error.message}") from None
        return updates


def requests(pods: Iterable[Any], containers: Iterable[Any], limit: int = SYNCHRONIZE_MAX) -> list[Any]:
    """SynchronizeRequests with all of them, none larger than `limit` bytes unless one object alone is."""
    found = [nri.SynchronizeRequest()]
    left = limit
    for name, objects in (("pods", pods), ("containers", containers)):
        for one in objects:
            size = one.ByteSize() + 8
            if size > left and left < limit:
                found[-1].more = True
                found.append(nri.SynchronizeRequest())
                left = limit
            getattr(found[-1], name).append(one)
            left -= size
    return found


def _end(pid: int) -> None:
    """Kill a program that was started, and forget it. Blocks until it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except OSError:
        pass  # it has been waited for
