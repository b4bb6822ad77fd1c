# SPDX-License-Identifier: Apache-2.0
"""ExecSync: a command in a container, and what it wrote. Called by `service`, mostly for probes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal

from google.protobuf import any_pb2

from teu.containerd.core.errors import DeadlineExceeded, Error, FailedPrecondition, InvalidArgument
from teu.containerd.cri.containers import Containers
from teu.containerd.cri.records import NAMESPACE, RUNNING, Container
from teu.containerd.runtime.tasks import Stdio
from teu.containerd.state import Context
from teu.linux.trees import discard_tree
from teu.oci import jsontext

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
LIMIT = 16 << 20  # bytes of each stream; what comes behind is dropped, as of containerd
_READ = 256 << 10
_DRAIN_SECONDS = 10.0  # for the last output, which other processes may hold open


class Output:
    """A FIFO that is read on the event loop until its end."""

    def __init__(self, path: str) -> None:
        os.mkfifo(path, 0o600)
        self.path = path
        self.data = bytearray()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.create_future()
        self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        try:
            found = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return
        if not found:
            self.close()
        elif len(self.data) < LIMIT:
            self.data += found[: LIMIT - len(self.data)]

    async def ended(self) -> None:
        """Wait for the end of the stream."""
        await asyncio.shield(self._end)

    def close(self) -> None:
        """Read no more."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        if not self._end.done():
            self._end.set_result(None)


class Execs:
    """Commands in containers."""

    def __init__(self, context: Context, containers: Containers) -> None:
        self._context = context
        self._containers = containers

    def _process(self, container: Container, command: list[str]) -> any_pb2.Any:
        record = self._context.containers.get(NAMESPACE, container.id)
        process = dict(jsontext.loads(record.spec.value)["process"])
        process["args"], process["terminal"] = command, False
        return any_pb2.Any(type_url=PROCESS_TYPE, value=json.dumps(process).encode())

    async def run(self, container: Container, command: list[str], timeout: int) -> tuple[bytes, bytes, int]:
        """(standard output, standard error, exit code). DeadlineExceeded when it has not ended within `timeout`
        seconds, 0 for any time: then it is killed. It is killed, too, when its client leaves."""
        if not command:
            raise InvalidArgument("cmd is empty: name the command to run")
        if container.state != RUNNING:
            raise FailedPrecondition(f"container {container.id} is not running")
        loop, pool, tasks = asyncio.get_running_loop(), self._context.pool, self._context.tasks
        packed = await loop.run_in_executor(pool, self._process, container, command)
        name = f"exec-{secrets.token_hex(8)}"
        folder = os.path.join(self._containers.state_of(container.id), name)
        os.makedirs(folder, 0o700)
        outputs = []
        try:
            outputs += [Output(os.path.join(folder, stream)) for stream in ("stdout", "stderr")]
            stdio = Stdio("", outputs[0].path, outputs[1].path)
            await tasks.exec(NAMESPACE, container.id, name, stdio, packed)
            try:
                code = await self._ended(container, name, timeout)
                await self._drained(outputs)
            finally:
                await asyncio.shield(asyncio.create_task(self._clean(container, name)))
        finally:
            for output in outputs:
                output.close()
            await loop.run_in_executor(pool, discard_tree, folder)
        return bytes(outputs[0].data), bytes(outputs[1].data), code

    async def _ended(self, container: Container, name: str, timeout: int) -> int:
        tasks = self._context.tasks
        await tasks.start(NAMESPACE, container.id, name)
        try:
            ended = await asyncio.wait_for(tasks.wait(NAMESPACE, container.id, name), timeout if timeout > 0 else None)
        except TimeoutError:
            raise DeadlineExceeded(f"timeout {timeout}s exceeded") from None
        return ended.status

    async def _drained(self, outputs: list[Output]) -> None:
        try:
            await asyncio.wait_for(asyncio.gather(*(one.ended() for one in outputs)), _DRAIN_SECONDS)
        except TimeoutError:
            pass  # a process that the command has left behind holds them

    async def _clean(self, container: Container, name: str) -> None:
        tasks = self._context.tasks
        try:
            await tasks.delete_process(NAMESPACE, container.id, name)
            return
        except Error:
            pass  # it runs, or the container has ended
        try:
            await tasks.kill(NAMESPACE, container.id, signal.SIGKILL, name)
            await asyncio.wait_for(tasks.wait(NAMESPACE, container.id, name), 10)
            await tasks.delete_process(NAMESPACE, container.id, name)
        except (Error, TimeoutError):
            pass  # with the container it goes, too
