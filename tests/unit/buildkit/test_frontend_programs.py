# SPDX-License-Identifier: Apache-2.0
"""Frontends in containers: LLBBridge over the streams of a process, its last word, its end; and their containers."""

from __future__ import annotations

import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from unit.buildkit.rig import Rig, until
from unit.buildkit.test_control import IMAGE, asked, failed

from teu.api.buildkit import gateway_pb2, gateway_pb2_grpc
from teu.buildkit.control.containers import Containers
from teu.buildkit.control.programs import Runner
from teu.buildkit.core import errors
from teu.buildkit.frontends import gateway
from teu.buildkit.llb import build

BUSYBOX = "docker.io/library/busybox:latest"
OPTIONS = {"source": "example.com/frontend:1"}


class Box:
    """A container whose process is a function with a channel: its standard streams are carried to a socket."""

    def __init__(self, top: Path, main: Callable[[Any], int]) -> None:
        self._main = main
        self._path = f"{top}/stdio"
        self._connected = threading.Event()
        self._ended: queue.Queue[int] = queue.Queue()
        self._connection: socket.socket | None = None
        self._over = threading.Event()
        self.killed = self.released = False

    def run(self, out: Callable[[bytes], None], err: Callable[[bytes], None]) -> Box:
        listener = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):
            Path(self._path).unlink()
        listener.bind(self._path)
        listener.listen()

        def read() -> None:
            self._connection, _ = listener.accept()
            self._connected.set()
            with suppress(OSError):
                while data := self._connection.recv(65536):
                    out(data)

        def work() -> None:
            err(b"the frontend begins\n")
            code = 1
            with suppress(Exception), grpc.insecure_channel(f"unix:{self._path}") as channel:
                code = self._main(gateway_pb2_grpc.LLBBridgeStub(channel))
            self._end(code)

        threading.Thread(target=read, daemon=True).start()
        threading.Thread(target=work, daemon=True).start()
        return self

    def wait(self) -> int:
        return self._ended.get()

    def _end(self, code: int) -> None:
        self._over.set()
        self._ended.put(code)

    def write(self, data: bytes) -> None:
        while not self._connected.wait(0.01):
            if self._over.is_set():  # nobody reads any more
                raise BrokenPipeError
        assert self._connection is not None
        self._connection.sendall(data)

    def close_input(self) -> None:
        pass

    def kill(self) -> None:
        self.killed = True
        self._end(137)

    def release(self) -> None:
        self.released = True


class Boxes:
    def __init__(self, top: Path) -> None:
        self._top = top
        self.main: Callable[[Any], int] = lambda bridge: 0
        self.boxes: list[Box] = []

    def box(self, program: Any, root: Any) -> Box:
        assert root is not None
        self.boxes.append(Box(self._top, self.main))
        return self.boxes[-1]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder of a short name: that of a socket has 107 characters at the most."""
    with tempfile.TemporaryDirectory(prefix="teu-unit-") as folder:
        yield Path(folder) / "frontends"


@pytest.fixture
def boxes(rig: Rig, tmp_path: Path, sockets: Path) -> Boxes:
    made = Boxes(tmp_path)
    runner = Runner(made, str(sockets), rig.worker, rig._containers)
    object.__setattr__(rig.rooms, "gateway", gateway.Images(runner, list))
    return made


def solved(bridge: Any) -> Any:
    request = gateway_pb2.SolveRequest(
        Definition=build.image(BUSYBOX).run(("make",)).root.definition(),
        allowResultReturn=True,
        allowResultArrayRef=True,
    )
    return bridge.Solve(request, timeout=20).result


def test_a_frontend_speaks_over_its_streams(rig: Rig, boxes: Boxes, sockets: Path) -> None:
    def main(bridge: Any) -> int:
        assert bridge.Ping(gateway_pb2.PingRequest(), timeout=20).Workers[0].ID == "w1"
        assert "x" in bridge.Inputs(gateway_pb2.InputsRequest(), timeout=20).Definitions
        result = solved(bridge)
        read = gateway_pb2.ReadFileRequest(Ref=result.ref.id, FilePath="etc/hello")
        assert bridge.ReadFile(read, timeout=20).Data == b"made"
        result.metadata["frontend.word"] = b"hello"
        bridge.Return(gateway_pb2.ReturnRequest(result=result), timeout=20)
        return 0

    boxes.main = main
    inputs = {"x": build.image(BUSYBOX).definition()}
    object.__setattr__(gateway, "INPUTS_CAP", "")  # the image of the rig has no label
    try:
        answer = rig.solve(
            "one", Frontend="gateway.v0", FrontendAttrs=OPTIONS, FrontendInputs=inputs, Exporters=[IMAGE]
        ).result()
    finally:
        object.__setattr__(gateway, "INPUTS_CAP", "moby.buildkit.frontend.inputs")
    assert answer.ExporterResponse["frontend.word"] == "hello"
    assert boxes.boxes[0].released and not list(sockets.iterdir())
    logs = b"".join(one.msg for response in rig.status("one") for one in response.logs)
    assert b"the frontend begins" in logs


@pytest.mark.parametrize("word", ["error", "nothing", "dies", "twice"])
def test_the_last_word_of_a_frontend(rig: Rig, boxes: Boxes, word: str) -> None:
    def main(bridge: Any) -> int:
        if word == "error":
            bridge.Return(gateway_pb2.ReturnRequest(error=errors.to_status(errors.NotFound("not mine"))), timeout=20)
            return 1
        if word == "twice":
            result = solved(bridge)
            bridge.Return(gateway_pb2.ReturnRequest(result=result), timeout=20)
            with pytest.raises(grpc.RpcError):
                bridge.Return(gateway_pb2.ReturnRequest(result=result), timeout=20)
            return 3
        return 2 if word == "dies" else 0

    boxes.main = main
    error = failed(rig.solve("one", Frontend="gateway.v0", FrontendAttrs=OPTIONS).result)
    text = {"error": "not mine", "nothing": "no result", "dies": "exited with code 2", "twice": "exited with code 3"}
    assert text[word] in error.message
    assert boxes.boxes[0].released


def test_a_frontend_that_never_ends_goes_with_its_client(rig: Rig, boxes: Boxes) -> None:
    stop = threading.Event()
    boxes.main = lambda bridge: int(stop.wait(60))
    running = rig.solve("one", Frontend="gateway.v0", FrontendAttrs=OPTIONS)
    until(lambda: boxes.boxes)
    running.cancel()
    until(lambda: not rig.builds.count)
    assert boxes.boxes[0].killed and boxes.boxes[0].released
    stop.set()


# Containers of frontends


class Process:
    def __init__(self, place: Place, init: Any, out: Any, err: Any) -> None:
        self.place, self.init, self.out, self.err = place, init, out, err
        self.ended = threading.Event()
        self.code = 0
        self.size = (0, 0)

    def wait(self) -> int:
        self.ended.wait(20)
        return self.code

    def signal(self, number: int) -> None:
        self.code = 128 + number
        self.ended.set()

    def resize(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.out(f"{width}x{height}".encode())

    def write(self, data: bytes) -> None:
        self.out(data.upper())

    def close_input(self) -> None:
        self.err(b"bye")
        self.ended.set()


class Place:
    def __init__(self, top: Path) -> None:
        self.top = top
        self.processes: list[Process] = []
        self.released = False

    def start(self, init: Any, out: Any, err: Any) -> Process:
        self.processes.append(Process(self, init, out, err))
        return self.processes[-1]

    @contextmanager
    def root(self, index: int) -> Iterator[int]:
        import os

        descriptor = os.open(self.top, os.O_PATH)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def release(self) -> None:
        self.released = True


class Executor:
    def __init__(self, top: Path) -> None:
        self.top = top
        self.places: list[Place] = []

    def place(self, request: Any, snapshots: Sequence[Any], sessions: Sequence[str]) -> Place:
        assert len(snapshots) == len(request.Mounts)
        self.places.append(Place(self.top))
        return self.places[-1]


def test_processes_in_a_container_of_a_frontend(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    executor = Executor(tmp_path)
    rig.builds._containers = lambda view: Containers(executor, [], view.build.entitlements.given)
    try:
        solving = rig.solve("one")
        rig.bridge.NewContainer(gateway_pb2.NewContainerRequest(ContainerID="c"), **asked("one"))
        again = failed(
            lambda: rig.bridge.NewContainer(gateway_pb2.NewContainerRequest(ContainerID="c"), **asked("one"))
        )
        assert isinstance(again, errors.AlreadyExists)
        host = gateway_pb2.NewContainerRequest(ContainerID="h", Network=1)
        assert isinstance(failed(lambda: rig.bridge.NewContainer(host, **asked("one"))), errors.PermissionDenied)
        (tmp_path / "inside").write_text("seen")
        read = gateway_pb2.ReadFileRequest(Ref="c", FilePath="inside")
        assert rig.bridge.ReadFileContainer(read, **asked("one")).Data == b"seen"
        sent: queue.Queue[Any] = queue.Queue()
        answers = rig.bridge.ExecProcess(iter(sent.get, None), **asked("one"))
        init = gateway_pb2.InitMessage(ContainerID="c", Fds=[0, 1, 2])
        init.Meta.args.append("cat")
        sent.put(gateway_pb2.ExecMessage(ProcessID="p", Init=init))
        assert next(answers).WhichOneof("Input") == "Started"
        sent.put(gateway_pb2.ExecMessage(ProcessID="p", File=gateway_pb2.FdMessage(Fd=0, Data=b"hello")))
        assert next(answers).File.Data == b"HELLO"
        sent.put(gateway_pb2.ExecMessage(ProcessID="p", Resize=gateway_pb2.ResizeMessage(Rows=2, Cols=3)))
        assert next(answers).File.Data == b"3x2"
        sent.put(gateway_pb2.ExecMessage(ProcessID="p", File=gateway_pb2.FdMessage(Fd=0, EOF=True)))
        rest = [next(answers) for _ in range(5)]
        assert rest[0].File.Data == b"bye" and rest[0].File.Fd == 2
        assert [one.WhichOneof("Input") for one in rest[1:]] == ["File", "File", "Exit", "Done"]
        init.Security = 1
        sent.put(gateway_pb2.ExecMessage(ProcessID="q", Init=init))
        assert "security.insecure is not allowed" in failed(lambda: next(answers)).message
        sent.put(None)
        solving.cancel()
        until(lambda: executor.places[0].released)
    finally:
        rig.close()


def test_a_signal_and_the_end_of_the_client(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    executor = Executor(tmp_path)
    rig.builds._containers = lambda view: Containers(executor, [], view.build.entitlements.given)
    try:
        solving = rig.solve("one")  # to let go of it would cancel it
        rig.bridge.NewContainer(gateway_pb2.NewContainerRequest(ContainerID="c"), **asked("one"))
        sent: queue.Queue[Any] = queue.Queue()
        answers = rig.bridge.ExecProcess(iter(sent.get, None), **asked("one"))
        init = gateway_pb2.InitMessage(ContainerID="c", Fds=[1])
        for name in ("p", "q"):
            sent.put(gateway_pb2.ExecMessage(ProcessID=name, Init=init))
            assert next(answers).ProcessID == name
        sent.put(gateway_pb2.ExecMessage(ProcessID="p", Signal=gateway_pb2.SignalMessage(Name="SIGTERM")))
        told = [next(answers) for _ in range(3)]
        assert told[1].Exit.Code == 143 and told[1].Exit.Error.message == "exit code: 143"
        answers.cancel()
        until(lambda: executor.places[0].processes[1].code == 137)
        solving.cancel()
    finally:
        rig.close()
