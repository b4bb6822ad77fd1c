# SPDX-License-Identifier: Apache-2.0
"""Containers that a frontend makes for its own purposes: to try something in a result, to look into a step that failed.

NewContainer prepares the mounts, ExecProcess runs processes in them and carries their streams, signals and sizes. All
of it ends with the frontend. Called by bridge.
"""

from __future__ import annotations

import logging
import queue
import signal as signals
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from teu.api.buildkit import gateway_pb2
from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.control.rpc import Call
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Snapshot
from teu.buildkit.llb.load import NotAllowed
from teu.buildkit.ops.exec import check_entitlements

log = logging.getLogger("teu.buildkit")

CONTAINERS_MAX = 100  # of one frontend
PROCESSES_MAX = 100  # of one call
CHUNK = 32 << 10  # bytes of output in one message
PENDING_MAX = 256  # messages that the client has not read yet: then the processes wait
UNKNOWN_EXIT = 0xFFFFFFFF


Output = Callable[[bytes], None]


class Process(Protocol):
    def wait(self) -> int:
        """Its exit status, when all of its output has been handed on. Raises errors.Error where it never ran."""

    def signal(self, number: int) -> None: ...

    def resize(self, width: int, height: int) -> None: ...

    def write(self, data: bytes) -> None:
        """To its standard input. BrokenPipeError where nobody reads it any more."""

    def close_input(self) -> None: ...


class Place(Protocol):
    """Mounts in which processes may run: the first is the first one's container, the others join it."""

    def start(self, init: Any, out: Output, err: Output) -> Process:
        """Run what an InitMessage says. Output is handed on by one thread, which may be kept waiting."""

    def root(self, index: int) -> AbstractContextManager[int]:
        """One of the mounts as an open folder. Raises NotFound."""

    def release(self) -> None:
        """End what runs there, and give the mounts up."""


class Executor(Protocol):
    def place(self, request: Any, snapshots: Sequence[Snapshot | None], sessions: Sequence[str]) -> Place:
        """For a NewContainerRequest, with the results that its mounts name, in their order."""


class Containers:
    """Those of one frontend. `allowed` are the entitlements of its build."""

    def __init__(self, executor: Executor, sessions: Sequence[str], allowed: frozenset[str]) -> None:
        self._executor = executor
        self._sessions = sessions
        self._allowed = allowed
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}

    def close(self) -> None:
        with self._lock:
            places, self._places = list(self._places.values()), {}
        for place in places:
            self._release(place)

    @staticmethod
    def _release(place: Place) -> None:
        try:
            place.release()
        except Exception:
            log.exception("a frontend's container")

    def make(self, request: Any, mounted: Callable[[pb.Mount], Snapshot | None]) -> None:
        """AlreadyExists for a name that is taken, PermissionDenied without the entitlement."""
        name = request.ContainerID
        if not name or len(name) > 200:
            raise errors.InvalidArgument("a container has no id that could be used")
        _check(request.Network, pb.SANDBOX, self._allowed)
        with self._lock:
            if name in self._places:
                raise errors.AlreadyExists(f"Container {name} already exists")
            if len(self._places) >= CONTAINERS_MAX:
                raise errors.ResourceExhausted(f"{CONTAINERS_MAX} containers of one frontend")
        place = self._executor.place(request, [mounted(mount) for mount in request.Mounts], self._sessions)
        with self._lock:
            taken = name in self._places
            if not taken:
                self._places[name] = place
        if taken:
            self._release(place)
            raise errors.AlreadyExists(f"Container {name} already exists")

    def release(self, name: str) -> None:
        with self._lock:
            place = self._places.pop(name, None)
        if place is None:
            raise errors.NotFound(f"container details for {errors.cut(name, 200)} not found")
        self._release(place)

    def get(self, name: str) -> Place:
        with self._lock:
            if name not in self._places:
                raise errors.NotFound(f'container "{errors.cut(name, 200)}" previously released or not created')
            return self._places[name]

    def root(self, name: str, index: int) -> AbstractContextManager[int]:
        return self.get(name).root(index)

    def processes(self, requests: Iterator[Any], call: Call) -> Iterator[Any]:
        """ExecProcess: any number of processes, each by its id."""
        return _Stream(self, requests, call, self._allowed).run()


class _Stream:
    def __init__(self, containers: Containers, requests: Iterator[Any], call: Call, allowed: frozenset[str]) -> None:
        self._containers = containers
        self._requests = requests
        self._call = call
        self._allowed = allowed
        self._out: queue.Queue[Any] = queue.Queue(PENDING_MAX)
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._inbound_ended = False

    def run(self) -> Iterator[Any]:
        threading.Thread(target=self._read, name="exec", daemon=True).start()
        try:
            while (message := self._next()) is not None:
                if isinstance(message, Exception):
                    raise message
                yield message
        finally:
            with self._lock:
                running = list(self._running.values())
            for one in running:
                one.kill()

    def _next(self) -> Any:
        while True:
            try:
                return self._out.get(timeout=0.5)
            except queue.Empty:
                with self._lock:
                    done = self._inbound_ended and not self._running
                if self._call.gone or (done and self._out.empty()):
                    return None

    def put(self, message: Any) -> None:
        """Waits where the client does not read, and drops what nobody will read."""
        while not self._call.gone:
            with suppress(queue.Full):
                self._out.put(message, timeout=0.5)
                return

    def ended(self, identifier: str) -> None:
        with self._lock:
            self._running.pop(identifier, None)
            last = self._inbound_ended and not self._running
        if last:
            self.put(None)

    def _read(self) -> None:
        try:
            for message in self._requests:
                self._take(message)
        except errors.Error as error:
            self.put(error)
        except Exception as error:  # grpcio's own, of a client that has left
            log.debug("exec: %s", error)
        with self._lock:
            self._inbound_ended = True
            last = not self._running
        if last:
            self.put(None)

    def _take(self, message: Any) -> None:
        identifier = message.ProcessID
        if not identifier:
            raise errors.InvalidArgument("ProcessID required")
        with self._lock:
            running = self._running.get(identifier)
        kind = message.WhichOneof("Input")
        if kind == "Init":
            if running is not None:
                raise errors.AlreadyExists(f"Process {errors.cut(identifier, 100)} already exists")
            self._start(identifier, message.Init)
            return
        if running is None:
            if kind in ("Signal", "Resize", "File"):
                return  # of a process that has just ended
            raise errors.InvalidArgument(f"unexpected message {kind}")
        if kind == "File":
            running.write(message.File)
        elif kind == "Resize":
            running.process.resize(message.Resize.Cols, message.Resize.Rows)
        elif kind == "Signal":
            running.process.signal(_signal(message.Signal.Name))

    def _start(self, identifier: str, init: Any) -> None:
        _check(pb.UNSET, init.Security, self._allowed)
        with self._lock:
            if len(self._running) >= PROCESSES_MAX:
                raise errors.ResourceExhausted(f"{PROCESSES_MAX} processes in one call")
        place = self._containers.get(init.ContainerID)
        running = _Running(self, identifier, place, init)
        with self._lock:
            self._running[identifier] = running
        running.begin()


class _Running:
    """A process of a stream."""

    def __init__(self, stream: _Stream, identifier: str, place: Place, init: Any) -> None:
        self._stream = stream
        self._identifier = identifier
        self._stdin = 0 in init.Fds
        self._told = threading.Event()
        self.process = place.start(init, self._output(1, init), self._output(2, init))
        self._fds = sorted({1, 2} & set(init.Fds))

    def _output(self, number: int, init: Any) -> Output:
        wanted = number in init.Fds

        def hand_on(data: bytes) -> None:
            self._told.wait()
            for at in range(0, len(data) if wanted else 0, CHUNK):
                self._tell(File=gateway_pb2.FdMessage(Fd=number, Data=data[at : at + CHUNK]))

        return hand_on

    def _tell(self, **fields: Any) -> None:
        self._stream.put(gateway_pb2.ExecMessage(ProcessID=self._identifier, **fields))

    def begin(self) -> None:
        self._tell(Started=gateway_pb2.StartedMessage())
        self._told.set()
        threading.Thread(target=self._wait, name="exec wait", daemon=True).start()

    def _wait(self) -> None:
        ended = gateway_pb2.ExitMessage()
        try:
            ended.Code = self.process.wait()
        except errors.Error as error:
            ended.Code = UNKNOWN_EXIT
            ended.Error.CopyFrom(errors.to_status(error))
        if ended.Code and not ended.HasField("Error"):
            ended.Error.code = errors.Error.code
            ended.Error.message = f"exit code: {ended.Code}"
        for number in self._fds:
            self._tell(File=gateway_pb2.FdMessage(Fd=number, EOF=True))
        self._tell(Exit=ended)
        self._tell(Done=gateway_pb2.DoneMessage())
        self._stream.ended(self._identifier)

    def write(self, message: Any) -> None:
        if message.Fd != 0 or not self._stdin:
            raise errors.OutOfRange(f"fd {message.Fd} unavailable to write")
        try:
            if message.Data:
                self.process.write(message.Data)
        except OSError:
            self._stdin = False  # the process reads no more
        if message.EOF:
            self.process.close_input()

    def kill(self) -> None:
        self._told.set()
        with suppress(errors.Error):
            self.process.signal(signals.SIGKILL)


def _check(network: int, security: int, allowed: frozenset[str]) -> None:
    """What a process may not have without the build's consent."""
    try:
        check_entitlements(network, security, allowed)
    except NotAllowed as error:
        raise errors.PermissionDenied(str(error)) from None


def _signal(name: str) -> int:
    """ "TERM", "SIGTERM" or "15"."""
    text = name.upper().removeprefix("SIG")
    try:
        return int(text) if text.isdigit() else int(signals.Signals[f"SIG{text}"])
    except (KeyError, ValueError):
        raise errors.InvalidArgument(f"Unknown signal {errors.cut(name, 100)}") from None
