# SPDX-License-Identifier: Apache-2.0
"""A plugin of the Node Resource Interface inside of a test: it speaks the wire by itself, and does what the test says.

    with Plugin(client.nri, "10", "one", CreateContainer=adjust) as plugin:
        ...
        assert plugin.told() == ["CreateContainer c", ...]

`main` is that of a program that the runtime starts.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from teu.api.nri.v1alpha1 import nri_pb2 as nri
from teu.ttrpc import messages

MUX, TTRPC = struct.Struct(">II"), struct.Struct(">IIBB")
PLUGIN, RUNTIME = 1, 2
REQUEST, RESPONSE = 1, 2
# Of the events that all releases have: those before UPDATE_POD_SANDBOX.
EVENTS = (1 << nri.REMOVE_CONTAINER) - 1
ALL = (1 << nri.LAST - 1) - 1
ANSWERS = {one.name: one.output_type.name for one in nri.DESCRIPTOR.services_by_name["Plugin"].methods}
REQUESTS = {one.name: one.input_type.name for one in nri.DESCRIPTOR.services_by_name["Plugin"].methods}
STATES = {number: "".join(map(str.capitalize, name.split("_"))) for name, number in nri.Event.items()}


class Refusal(Exception):
    """Raised by a handler: the plugin's answer is this error."""


class Plugin:
    """A handler gets the request, and gives the answer, or nothing for an empty one."""

    def __init__(
        self, where: str | socket.socket, index: str, name: str, events: int = EVENTS, **handlers: Callable[[Any], Any]
    ) -> None:
        self._handlers = handlers
        self._events = events
        self.calls: list[tuple[str, Any]] = []
        self._known = threading.Condition()
        self._writing = threading.Lock()
        self._answers: dict[int, tuple[int, bytes]] = {}
        self._stream = -1
        self.gone = threading.Event()
        self.configuration: Any = None
        if isinstance(where, socket.socket):
            self._socket = where
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(where)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ask("RegisterPlugin", nri.RegisterPluginRequest(plugin_name=name, plugin_idx=index, NRI_version="v0.12.2"))

    def __enter__(self) -> Plugin:
        self.wait(lambda: "Synchronize" in self.methods())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the runtime was first
        self._reader.join()
        self._socket.close()

    # what it has been told

    def methods(self) -> list[str]:
        with self._known:
            return [method for method, _ in self.calls]

    def told(self) -> list[str]:
        """ "METHOD NAME" of each call about a pod or a container, with the container's name where it is about one."""
        with self._known:
            return [f"{method} {_name(request)}" for method, request in self.calls if _name(request)]

    def last(self, method: str) -> Any:
        """The request of the last call of it."""
        with self._known:
            return [request for one, request in self.calls if one == method][-1]

    def forget(self) -> None:
        with self._known:
            self.calls.clear()

    def wait(self, true: Callable[[], bool], seconds: float = 20.0) -> None:
        with self._known:
            assert self._known.wait_for(true, seconds), self.calls

    # the wire

    def ask(self, method: str, request: Any, seconds: float = 20.0) -> bytes:
        """The payload of the runtime's answer; Refusal for its error."""
        asked = {
            "service": "nri.pkg.api.v1alpha1.Runtime",
            "method": method,
            "payload": request.SerializeToString(),
            "timeout_nano": int(seconds * 1e9),
        }
        with self._known:
            self._stream += 2
            stream = self._stream
        self._write(RUNTIME, stream, REQUEST, messages.encode("ttrpc.Request", asked))
        with self._known:
            assert self._known.wait_for(lambda: stream in self._answers or self.gone.is_set(), seconds)
            answer = messages.decode("ttrpc.Response", self._answers.pop(stream)[1])
        if answer["status"] and answer["status"]["code"]:
            raise Refusal(answer["status"]["message"])
        return bytes(answer["payload"])

    def _write(self, lane: int, stream: int, kind: int, data: bytes) -> None:
        frame = TTRPC.pack(len(data), stream, kind, 0) + data
        with self._writing:
            self._socket.sendall(MUX.pack(lane, len(frame)) + frame)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _read(self) -> None:
        lanes = {PLUGIN: b"", RUNTIME: b""}
        try:
            while True:
                lane, length = MUX.unpack(self._exactly(MUX.size))
                lanes[lane] += self._exactly(length)
                while len(data := lanes[lane]) >= TTRPC.size:
                    size, stream, kind, _ = TTRPC.unpack_from(data)
                    if len(data) < TTRPC.size + size:
                        break
                    lanes[lane] = data[TTRPC.size + size :]
                    self._frame(lane, stream, kind, data[TTRPC.size : TTRPC.size + size])
        except (EOFError, OSError):
            pass
        with self._known:
            self.gone.set()
            self._known.notify_all()

    def _frame(self, lane: int, stream: int, kind: int, payload: bytes) -> None:
        if lane == RUNTIME:
            with self._known:
                self._answers[stream] = kind, payload
                self._known.notify_all()
        else:
            asked = messages.decode("ttrpc.Request", payload)
            threading.Thread(target=self._serve, args=(stream, asked), daemon=True).start()

    def _serve(self, stream: int, asked: dict[str, Any]) -> None:
        method = asked["method"]
        request = getattr(nri, REQUESTS[method]).FromString(asked["payload"])
        answer: Any = getattr(nri, ANSWERS[method])()
        if method == "StateChange":
            method = STATES[request.event]
        with self._known:
            self.calls.append((method, request))
            self._known.notify_all()
        if method == "Configure":
            self.configuration = request
            answer.events = self._events
        elif method == "Synchronize":
            answer.more = request.more
        response: dict[str, Any] = {}
        try:
            if method in self._handlers:
                answer = self._handlers[method](request) or answer
            response["payload"] = answer.SerializeToString()
        except Refusal as error:
            response["status"] = {"code": 2, "message": str(error)}
        try:
            self._write(PLUGIN, stream, RESPONSE, messages.encode("ttrpc.Response", response))
        except OSError:
            pass  # the runtime has gone


def _name(request: Any) -> str:
    fields = request.DESCRIPTOR.fields_by_name
    if "container" in fields and request.HasField("container"):
        return str(request.container.name)
    return str(request.pod.name) if "pod" in fields else ""


def main() -> None:
    """What it is told is in the file that its configuration names: who it is, and then a line for each call."""
    plugin = Plugin(socket.socket(fileno=int(os.environ["NRI_PLUGIN_SOCKET"])), "", "", ALL)
    plugin.wait(lambda: plugin.configuration is not None)
    names = " ".join(os.environ[f"NRI_PLUGIN_{key}"] for key in ("IDX", "NAME", "SOCKET"))
    log = Path(plugin.configuration.config.strip())
    while not plugin.gone.is_set():
        with plugin._known:
            lines = [f"{method} {_name(request)}".strip() for method, request in plugin.calls]
            log.write_text("\n".join([f"{names} {os.getpid()}", *lines]) + "\n")
            plugin._known.wait()
