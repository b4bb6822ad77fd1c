# SPDX-License-Identifier: Apache-2.0
"""Commands in a container: ExecSync, and what it wrote, mostly for probes; Exec, with a client's streams. Called by
`service`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf import any_pb2

from teu.containerd.core.errors import DeadlineExceeded, Error, FailedPrecondition, InvalidArgument
from teu.containerd.cri.containers import Containers
from teu.containerd.cri.pipes import LIMIT as CHUNK
from teu.containerd.cri.pipes import Sink, Source, Streams, fill, sizes
from teu.containerd.cri.records import NAMESPACE, RUNNING, Container
from teu.containerd.runtime.tasks import Stdio
from teu.containerd.state import Context
from teu.linux.trees import discard_tree
from teu.oci import jsontext

log = logging.getLogger("teu.containerd.cri")

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
LIMIT = 16 << 20  # bytes of each stream; what comes behind is dropped, as of containerd
_READ = 256 << 10
_DRAIN_SECONDS = 10.0  # for the last output, which other processes may hold open
_SETTLE_SECONDS = 10.0  # for an answer of a shim that nobody waits for any more
_CLEAN_SECONDS = 40.0  # for a shim to kill and delete a command, of which others may still take the output
_PREFIX = "exec-"  # of commands' names, and of the folders of their FIFOs

T = TypeVar("T")


async def _settled(call: Coroutine[Any, Any, T]) -> T:
    """The answer to a call of a shim. The shim goes on with what it has begun though its client has left: who is
    cancelled waits for the answer, too, so that there is something to clean up, or nothing."""
    task = asyncio.create_task(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_SETTLE_SECONDS)
        if task.done() and not task.cancelled():
            task.exception()  # it is nobody's
        raise


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


class Relay:
    """A FIFO whose bytes go to a client, as fast as it takes them; without a client they are thrown away."""

    def __init__(self, path: str, sink: Sink | None) -> None:
        os.mkfifo(path, 0o600)
        self.path = path
        self._sink = sink
        self._file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0)
        self._moved = 0  # bytes
        self._sending = False

    async def run(self) -> None:
        """To its end."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(CHUNK)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._file)
        try:
            while data := await reader.read(CHUNK):
                self._moved += len(data)
                if self._sink is not None:
                    self._sending = True
                    await self._sink.write(data)
                    self._sending = False
        finally:
            transport.close()

    def progress(self) -> tuple[int, bool]:
        """What changes while bytes move: how many have, and whether the client is waited for."""
        return self._moved, self._sending

    def close(self) -> None:
        """For one that was never run, too."""
        self._file.close()


class Execs:
    """Commands in containers."""

    def __init__(self, context: Context, containers: Containers) -> None:
        self._context = context
        self._containers = containers

    def left(self, containers: Iterable[Container]) -> list[tuple[Container, str]]:
        """The commands that an earlier daemon has left, whose clients are gone with it. To be asked before there are
        new ones."""
        found = []
        for container in containers:
            with contextlib.suppress(FileNotFoundError):
                names = os.listdir(self._containers.state_of(container.id))
                found += [(container, name) for name in names if name.startswith(_PREFIX)]
        return found

    async def take_away(self, commands: Sequence[tuple[Container, str]]) -> None:
        """End them."""
        loop, pool = asyncio.get_running_loop(), self._context.pool
        for container, name in commands:
            log.info("container %s: %s is of an earlier daemon: it is taken away", container.id, name)
            await self._clean(container, name)
            folder = os.path.join(self._containers.state_of(container.id), name)
            await loop.run_in_executor(pool, discard_tree, folder)

    def _process(self, container: Container, command: list[str], terminal: bool) -> any_pb2.Any:
        record = self._context.containers.get(NAMESPACE, container.id)
        process = dict(jsontext.loads(record.spec.value)["process"])
        process["args"], process["terminal"] = command, terminal
        if terminal:
            # as of a container with a terminal, whatever this one has
            kept = [one for one in process.get("env", ()) if not one.startswith("TERM=")]
            process["env"] = [*kept, "TERM=xterm"]
        return any_pb2.Any(type_url=PROCESS_TYPE, value=json.dumps(process).encode())

    async def run(self, container: Container, command: list[str], timeout: int) -> tuple[bytes, bytes, int]:
        """(standard output, standard error, exit code). DeadlineExceeded when it has not ended within `timeout`
        seconds, 0 for any time: then it is killed. It is killed, too, when its client leaves."""
        async with self._made(container, command, terminal=False) as (name, folder, packed):
            outputs: list[Output] = []
            try:
                outputs += [Output(os.path.join(folder, stream)) for stream in ("stdout", "stderr")]
                stdio = Stdio("", outputs[0].path, outputs[1].path)
                try:
                    await _settled(self._context.tasks.exec(NAMESPACE, container.id, name, stdio, packed))
                    code = await self._ended(container, name, timeout)
                    await self._drained(outputs)
                finally:
                    await asyncio.shield(asyncio.create_task(self._clean(container, name)))
            finally:
                for output in outputs:
                    output.close()
        return bytes(outputs[0].data), bytes(outputs[1].data), code

    @contextlib.asynccontextmanager
    async def _made(
        self, container: Container, command: list[str], *, terminal: bool
    ) -> AsyncIterator[tuple[str, str, any_pb2.Any]]:
        """(name, folder for its FIFOs, process) of a command to be, in a container that runs."""
        if not command:
            raise InvalidArgument("cmd is empty: name the command to run")
        if container.state != RUNNING:
            raise FailedPrecondition(f"container {container.id} is not running")
        loop, pool = asyncio.get_running_loop(), self._context.pool
        packed = await loop.run_in_executor(pool, self._process, container, command, terminal)
        name = f"{_PREFIX}{secrets.token_hex(8)}"
        folder = os.path.join(self._containers.state_of(container.id), name)
        os.makedirs(folder, 0o700)
        try:
            yield name, folder, packed
        finally:
            await loop.run_in_executor(pool, discard_tree, folder)

    async def stream(self, container: Container, command: list[str], streams: Streams, *, terminal: bool) -> int:
        """Run a command with a client's streams, in a terminal of its own or without one; its exit code. It is killed
        when its client leaves, which is a cancellation."""
        async with self._made(container, command, terminal=terminal) as (name, folder, packed):
            relays: list[Relay] = []
            stdin = os.path.join(folder, "stdin") if streams.stdin is not None else ""
            try:
                if stdin:
                    os.mkfifo(stdin, 0o600)
                # of a terminal somebody must read, whether a client wants it or not
                for which, sink in (("stdout", streams.stdout), ("stderr", streams.stderr)):
                    if (sink is not None and not (terminal and which == "stderr")) or (terminal and which == "stdout"):
                        relays.append(Relay(os.path.join(folder, which), sink))
                paths = {os.path.basename(relay.path): relay.path for relay in relays}
                stdio = Stdio(stdin, paths.get("stdout", ""), paths.get("stderr", ""), terminal)
                try:
                    await _settled(self._context.tasks.exec(NAMESPACE, container.id, name, stdio, packed))
                    return await self._streamed(container, name, streams, stdin, relays)
                finally:
                    await asyncio.shield(asyncio.create_task(self._clean(container, name)))
            finally:
                for relay in relays:
                    relay.close()

    async def _streamed(
        self, container: Container, name: str, streams: Streams, stdin: str, relays: list[Relay]
    ) -> int:
        outputs = [asyncio.create_task(relay.run()) for relay in relays]
        inputs: list[asyncio.Task[None]] = []
        try:
            await _settled(self._context.tasks.start(NAMESPACE, container.id, name))
            if streams.stdin is not None:
                inputs.append(asyncio.create_task(self._feed(container, name, stdin, streams.stdin)))
            if streams.resize is not None:
                inputs.append(asyncio.create_task(follow_sizes(self._context, container, name, streams.resize)))
            ended = await self._context.tasks.wait(NAMESPACE, container.id, name)
            await _relayed(relays, outputs)
            return ended.status
        finally:
            for task in (*inputs, *outputs):
                task.cancel()
            if inputs or outputs:
                await asyncio.wait([*inputs, *outputs])

    async def _feed(self, container: Container, name: str, path: str, source: Source) -> None:
        await fill(path, source)
        try:
            await self._context.tasks.close_io(NAMESPACE, container.id, name)
        except Error:
            pass  # it has ended

    async def _ended(self, container: Container, name: str, timeout: int) -> int:
        tasks = self._context.tasks
        await _settled(tasks.start(NAMESPACE, container.id, name))
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
            async with asyncio.timeout(_CLEAN_SECONDS):
                try:
                    await tasks.delete_process(NAMESPACE, container.id, name)
                    return
                except Error:
                    pass  # it runs, or the container has ended
                await tasks.kill(NAMESPACE, container.id, signal.SIGKILL, name)
                await tasks.wait(NAMESPACE, container.id, name)
                await tasks.delete_process(NAMESPACE, container.id, name)
        except (Error, TimeoutError):
            pass  # with the container it goes, too


async def _relayed(relays: list[Relay], outputs: list[asyncio.Task[None]]) -> None:
    """Wait for what a command that has ended has written; not for what processes that it has left behind may write."""
    left = set(outputs)
    while left:
        before = [relay.progress() for relay in relays]
        _, left = await asyncio.wait(left, timeout=_DRAIN_SECONDS)
        now = [relay.progress() for relay in relays]
        if before == now and not any(sending for _, sending in now):
            return


async def follow_sizes(context: Context, container: Container, name: str, source: Source) -> None:
    """Give the terminal of a command, or with "" of the container, the sizes that a client tells."""
    async for width, height in sizes(source):
        try:
            await context.tasks.resize(NAMESPACE, container.id, name, width, height)
        except Error:
            return  # it has ended
