# SPDX-License-Identifier: Apache-2.0
"""A shim without a container: its program, and the task and sandbox services that it listens with, on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from teu.api.services.containers.v1 import containers_pb2
from teu.containerd.runtime.shims import Shims
from teu.containerd.runtime.tasks import Stdio
from teu.containerd.state import Context
from teu.ttrpc import frames, status
from teu.ttrpc import messages as m

NS = "default"
ENDED = {"seconds": 1_700_000_000, "nanos": 5}
ENDED_NS = 1_700_000_000 * 10**9 + 5
# `delete` prints task.DeleteResponse{pid: 42, exit_status: 9}, unless it is to be killed once; both may take a while
PROGRAM = """#!/bin/sh
for word; do :; done
echo "$word" >>"$0.words"
case "$word" in
start) [ ! -e "$0.slow" ] || sleep 0.5; cat "$0.start"; exit "$(cat "$0.status")" ;;
delete)
    if [ -e "$0.lazy" ]; then rm "$0.lazy"; sleep 0.5; fi
    if [ -e "$0.killed" ]; then rm "$0.killed"; kill -9 $$; fi
    printf '\\010\\052\\020\\011' ;;
-info) printf '\\012\\004fake' ;;
esac
"""


class FakeProcess:
    """The first process of a task (exec id ""), or one more."""

    def __init__(self, pid: int, request: dict[str, Any]) -> None:
        self.pid, self.request, self.state, self.code = pid, request, m.CREATED, 0
        self.ended = asyncio.Event()

    def exit(self, code: int) -> None:
        self.state, self.code = m.STOPPED, code
        self.ended.set()


class FakeShim:
    """Serves any number of tasks. `calls` has every request, `refuse` the status that a method is to answer."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.program = str(folder / "containerd-shim-fake-v1")
        self.socket = str(folder / "shim.sock")
        Path(self.program).write_text(PROGRAM)
        Path(self.program).chmod(0o755)
        self.print(f"unix://{self.socket}")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        self.hold: dict[str, asyncio.Event] = {}  # methods that answer when it is set
        self.processes: dict[tuple[str, str], FakeProcess] = {}
        self.sandbox_ended: asyncio.Event = asyncio.Event()
        self.ends_when_told = True
        self._pids = iter(range(100, 10_000))
        self._server: asyncio.AbstractServer | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def is_named(self, name: str) -> None:
        """Before its first start: the program's name."""
        program = Path(self.program).with_name(name)
        Path(self.program).rename(program)
        self.program = str(program)
        self.print(f"unix://{self.socket}")

    def print(self, text: str, code: int = 0) -> None:
        """What the program's `start` prints, and its exit status."""
        Path(self.program + ".start").write_text(text)
        Path(self.program + ".status").write_text(str(code))

    def mark(self, name: str) -> None:
        """`slow` or `killed`, see PROGRAM."""
        Path(f"{self.program}.{name}").touch()

    def words(self) -> list[str]:
        """The last word of each run of the program."""
        path = Path(self.program + ".words")
        return path.read_text().split() if path.exists() else []

    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]

    def request(self, method: str) -> dict[str, Any]:
        """The last one of a method."""
        return next(request for name, request in reversed(self.calls) if name == method)

    async def __aenter__(self) -> FakeShim:
        self._server = await asyncio.start_unix_server(self._connected, self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        Path(self.socket).unlink(missing_ok=True)
        self._hang_up()

    def _hang_up(self) -> None:
        """As when the process ends; who starts the program again finds another one at the same address."""
        for writer in list(self._writers):
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        incoming, running = frames.Reader(), set()
        try:
            while data := await reader.read(65536):
                for stream, _kind, _flags, payload in incoming.feed(data):
                    task = asyncio.create_task(self._answer(stream, payload, writer))
                    running.add(task)
                    task.add_done_callback(running.discard)
        except ConnectionError:
            pass
        finally:
            for task in running:
                task.cancel()
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, stream: int, payload: bytes, writer: asyncio.StreamWriter) -> None:
        request = m.decode("ttrpc.Request", payload)
        method = request["method"]
        table = m.SANDBOX_METHODS if request["service"] == m.SANDBOX_SERVICE else m.TASK_METHODS
        asked = m.decode(table[method][0], request["payload"])
        self.calls.append((method, asked))
        try:
            if method in self.hold:
                await self.hold[method].wait()
            if method in self.refuse:
                raise status.StatusError(*self.refuse[method])
            serve: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] = getattr(self, f"do_{method}", self._nothing)
            answer = {"payload": m.encode(table[method][1], await serve(asked))}
        except status.StatusError as error:
            answer = {"status": {"code": error.code, "message": error.message}}
        writer.write(frames.pack(stream, frames.RESPONSE, m.encode("ttrpc.Response", answer)))
        if method == "Shutdown" and self.ends_when_told:
            await writer.drain()
            self._hang_up()

    async def _nothing(self, request: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _process(self, request: dict[str, Any]) -> FakeProcess:
        try:
            return self.processes[request["id"], request.get("exec_id", "")]
        except KeyError:
            raise status.StatusError(status.NOT_FOUND, f"process {request.get('exec_id')} not found") from None

    async def do_Create(self, request: dict[str, Any]) -> dict[str, Any]:
        process = FakeProcess(next(self._pids), request)
        self.processes[request["id"], ""] = process
        return {"pid": process.pid}

    async def do_Exec(self, request: dict[str, Any]) -> dict[str, Any]:
        self.processes[request["id"], request["exec_id"]] = FakeProcess(next(self._pids), request)
        return {}

    async def do_Start(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process(request)
        process.state = m.RUNNING
        return {"pid": process.pid}

    async def do_State(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process(request)
        return {
            **{key: process.request[key] for key in ("stdin", "stdout", "stderr", "terminal")},
            "id": request["id"],
            "pid": process.pid,
            "status": process.state,
            "exit_status": process.code,
            "exited_at": ENDED if process.state == m.STOPPED else None,
        }

    async def do_Wait(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process(request)
        await process.ended.wait()
        return {"exit_status": process.code, "exited_at": ENDED}

    async def do_Kill(self, request: dict[str, Any]) -> dict[str, Any]:
        self._process(request).exit(128 + request["signal"])
        return {}

    async def do_Delete(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process(request)
        if process.state != m.STOPPED:
            raise status.StatusError(status.FAILED_PRECONDITION, "process is running")
        del self.processes[request["id"], request.get("exec_id", "")]
        return {"pid": process.pid, "exit_status": process.code, "exited_at": ENDED}

    async def do_Pids(self, request: dict[str, Any]) -> dict[str, Any]:
        extra = m.encode_any("task.StartResponse", {"pid": 7})
        return {"processes": [{"pid": 1, "info": None}, {"pid": 2, "info": extra}]}

    async def do_Stats(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"stats": m.encode_any("io.containerd.cgroups.v2.Metrics", {"pids": {"current": 3, "limit": 9}})}

    async def do_StartSandbox(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"pid": 77, "created_at": ENDED}

    async def do_WaitSandbox(self, request: dict[str, Any]) -> dict[str, Any]:
        await self.sandbox_ended.wait()
        return {"exit_status": 4, "exited_at": ENDED}

    async def do_SandboxStatus(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"pid": 77, "state": "SANDBOX_READY", "created_at": ENDED}


class House:
    """A context, and what its events were."""

    def __init__(self, context: Context, shim: FakeShim) -> None:
        self.context, self.shim, self.tasks = context, shim, context.tasks
        self.events: list[tuple[str, Any]] = []
        context.events.listen(lambda envelope: self.events.append((envelope.topic, envelope.event)))

    def container(self, id: str = "c", *, sandbox: str = "", **labels: str) -> Any:
        made = containers_pb2.Container(id=id, image="i", labels=labels, sandbox=sandbox)
        made.runtime.name = self.shim.program
        made.spec.type_url, made.spec.value = "spec", b'{"process":{}}'
        return self.context.containers.create(NS, made)

    async def running(self, id: str = "c") -> int:
        self.container(id)
        pid = await self.tasks.create(NS, id, Stdio())
        await self.tasks.start(NS, id)
        return pid

    def bundle(self, id: str = "c") -> Path:
        return Path(self.context.state, "io.containerd.runtime.v2.task", NS, id)

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.events if topic.startswith(("/tasks", "/sandboxes"))]

    def again(self) -> Shims:
        """The shim manager of the daemon's next life."""
        context = self.context
        return Shims(
            state=context.state,
            root=context.root,
            address=context.address,
            ttrpc_address=context.ttrpc_address,
            events=context.events,
            is_sandbox=context.sandboxes.exists,
        )


Test = Callable[[House], Coroutine[Any, Any, None]]
