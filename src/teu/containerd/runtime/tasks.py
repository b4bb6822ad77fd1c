# SPDX-License-Identifier: Apache-2.0
"""Tasks are containers at work, each behind its shim: this is containerd's tasks service without its wire.

Thin: look the container and its shim up, ask the shim, say it in records. Called by services.tasks, the restart
monitor and the metrics. Everything runs on the event loop; what takes long waits for the shim without a thread.

Each call about a task raises NotFound where there is no such container or task, and else the shim's own error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from teu.containerd.core import errors
from teu.containerd.core.filters import Filter
from teu.containerd.core.identifiers import validate_identifier
from teu.containerd.core.messages import Descriptor, Mount, Packed
from teu.containerd.core.rows import must_be_whole
from teu.containerd.runtime.checkpoints import Checkpoints
from teu.containerd.runtime.shim import STATE_TIMEOUT, Answer, Exit, Shim, moment
from teu.containerd.runtime.shims import Shims
from teu.containerd.stores.containers import Containers
from teu.ttrpc import messages as m

log = logging.getLogger("teu.containerd.tasks")

_CGROUP_METRICS = "io.containerd.cgroups.v2.Metrics"

UNKNOWN = 0  # containerd.v1.types.Status


@dataclass(frozen=True, slots=True)
class Stdio:
    """Where the streams of a process go: paths of FIFOs, or URIs that its shim understands; "" for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False

    def fields(self) -> Answer:
        """As fields of a request to a shim."""
        return {"terminal": self.terminal, "stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr}


@dataclass(frozen=True, slots=True)
class Process:
    """The state of a process: task.StateResponse."""

    id: str  # of the task, or of the exec
    pid: int
    status: int  # containerd.v1.types.Status
    stdio: Stdio
    exit_status: int
    exited_at: int | None  # nanoseconds since 1970; None while it runs


@dataclass(frozen=True, slots=True)
class Listed:
    """A process in a task's cgroup."""

    pid: int
    type_url: str = ""  # of what else the shim tells of it
    info: bytes = b""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a shim tells of its task's resources."""

    id: str
    at: int  # nanoseconds since 1970
    type_url: str = ""
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """The figures of a task's cgroup; `metrics` is an io.containerd.cgroups.v2.Metrics message."""

    namespace: str
    id: str
    runtime: str
    metrics: Any


def _packed(message: Packed | None) -> Answer | None:
    """An Any as a field of a request to a shim."""
    if message is None or not (message.type_url or message.value):
        return None
    return {"type_url": message.type_url, "value": message.value}


def _process(id: str, state: Answer) -> Process:
    return Process(
        id=id,
        pid=state["pid"],
        status=state["status"],
        stdio=Stdio(state["stdin"], state["stdout"], state["stderr"], state["terminal"]),
        exit_status=state["exit_status"],
        exited_at=moment(state["exited_at"]),
    )


async def _told(shim: Shim, exec_id: str) -> Process:
    id = exec_id or shim.id
    try:
        return _process(id, await shim.call("State", {"exec_id": exec_id}, STATE_TIMEOUT))
    except (errors.NotFound, errors.Unavailable):
        raise
    except errors.Error as error:
        log.error("state of %s/%s: %s", shim.namespace, id, error.message, extra=shim.fields)
        return Process(id, 0, UNKNOWN, Stdio(), 0, None)


async def _of_process(shim: Shim, method: str, exec_id: str, **fields: object) -> Answer:
    """A call about one process; NotFound if there is none, whatever the shim says (runc's: something unknown)."""
    try:
        return await (shim.wait(exec_id) if method == "Wait" else shim.call(method, {"exec_id": exec_id, **fields}))
    except (errors.Unknown, errors.FailedPrecondition):
        if exec_id:
            await shim.call("State", {"exec_id": exec_id}, STATE_TIMEOUT)
        raise


def _adaptor(shim: Shim) -> Callable[[Sequence[str]], str | None]:
    return lambda path: {"id": shim.id, "namespace": shim.namespace}.get(path[0])


def _restore_path(options: Packed | None) -> str:
    """A folder with criu's images, where the runtime's options name one."""
    try:
        found = m.decode_options("containerd.runc.v1.Options", _packed(options))
    except ValueError:
        return ""  # another runtime's own
    return str(found["criu_image_path"])


class Tasks:
    """The tasks of all namespaces."""

    def __init__(self, containers: Containers, checkpoints: Checkpoints, shims: Shims, pool: Executor) -> None:
        """`pool` has the threads for what blocks: a checkpoint's way into the content store."""
        self._containers = containers
        self._checkpoints = checkpoints
        self._shims = shims
        self._pool = pool
        # Processes that are told for tasks that there are not, by (namespace, id): a pod's own has none.
        self.stand_ins: dict[tuple[str, str], int] = {}

    def _shim(self, namespace: str, id: str) -> Shim:
        self._containers.require(namespace, id)
        return self._shims.get(namespace, id)

    def count(self) -> int:
        """How many tasks there are, of all namespaces."""
        return len(self._shims.all())

    async def create(
        self,
        namespace: str,
        id: str,
        stdio: Stdio,
        *,
        mounts: Sequence[Mount] = (),
        runtime: str = "",
        options: Packed | None = None,
        checkpoint: Descriptor | None = None,
    ) -> int:
        """Make the container of the record `id`, without starting it; the pid of its first process.

        `mounts` make its root file system. `runtime` and `options` are in place of the record's. `checkpoint` is what
        `checkpoint` has stored, to start from. Raises AlreadyExists for a task that is there, FailedPrecondition for
        a damaged record, InvalidArgument or NotFound for a runtime or checkpoint that is none."""
        container = self._containers.get(namespace, id)
        must_be_whole(container.labels, f'container "{id}"')
        if self._shims.exists(namespace, id):
            raise errors.AlreadyExists(f"task {id}")
        if options is None and container.runtime.options.ByteSize():
            options = container.runtime.options
        images, restorer = _restore_path(options), None
        if not images and checkpoint is not None:
            restorer = self._checkpoints.restorer(namespace, checkpoint)
        return await self._shims.create(
            namespace,
            id,
            runtime=runtime or container.runtime.name,
            spec=container.spec.value,
            options=options,
            sandbox=container.sandbox,
            restorer=restorer,
            request={
                "rootfs": [
                    {"type": mount.type, "source": mount.source, "target": mount.target, "options": list(mount.options)}
                    for mount in mounts
                ],
                **stdio.fields(),
                "checkpoint": images,
            },
        )

    async def start(self, namespace: str, id: str, exec_id: str = "") -> int:
        """Start the first process, or the one that `exec` has made; its pid."""
        return int((await _of_process(self._shim(namespace, id), "Start", exec_id))["pid"])

    async def delete(self, namespace: str, id: str) -> Exit:
        """Remove a task that has ended, its bundle and its shim; how it ended. FailedPrecondition while it runs."""
        shim = self._shim(namespace, id)
        try:
            return await self._shims.delete(shim)
        except (errors.Unknown, errors.FailedPrecondition) as error:
            raise type(error)(f"failed to delete task: {error.message}") from error

    async def delete_process(self, namespace: str, id: str, exec_id: str) -> Exit:
        """Remove a process of `exec` that has ended; how it ended."""
        return Exit.told(await _of_process(self._shim(namespace, id), "Delete", exec_id))

    async def get(self, namespace: str, id: str, exec_id: str = "") -> Process:
        """The state of the first process, or of one of `exec`."""
        if (stand_in := self._stand_in(namespace, id, exec_id)) is not None:
            return stand_in
        shim = self._shim(namespace, id)
        return _process(exec_id or shim.id, await shim.call("State", {"exec_id": exec_id}, STATE_TIMEOUT))

    def _stand_in(self, namespace: str, id: str, exec_id: str) -> Process | None:
        pid = None if exec_id else self.stand_ins.get((namespace, id))
        return Process(id, pid, m.RUNNING, Stdio(), 0, None) if pid else None

    async def told(self, namespace: str, id: str, exec_id: str = "") -> Process:
        """As `get`, but what a shim does not tell is UNKNOWN, with no pid, and no error: who asks must not take it for
        an end. NotFound, or Unavailable, where there is none."""
        if (stand_in := self._stand_in(namespace, id, exec_id)) is not None:
            return stand_in
        return await _told(self._shim(namespace, id), exec_id)

    async def all(self, namespace: str) -> list[Process]:
        """The first process of each task, as `told` has it."""

        async def state(shim: Shim) -> Process | None:
            try:
                return await _told(shim, "")
            except (errors.NotFound, errors.Unavailable):
                return None

        states = await asyncio.gather(*(state(shim) for shim in self._shims.all(namespace)))
        return [process for process in states if process is not None]

    async def kill(self, namespace: str, id: str, signal: int, exec_id: str = "", *, everyone: bool = False) -> None:
        """Send a signal, to `everyone` in the container or to one process."""
        await _of_process(self._shim(namespace, id), "Kill", exec_id, signal=signal, all=everyone)

    async def exec(self, namespace: str, id: str, exec_id: str, stdio: Stdio, spec: Packed | None) -> None:
        """Make one more process, without starting it; `spec` is its OCI process. InvalidArgument for a bad name."""
        shim = self._shim(namespace, id)
        try:
            validate_identifier(exec_id)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"invalid exec id {exec_id}: {error.message}") from error
        await shim.call("Exec", {"exec_id": exec_id, **stdio.fields(), "spec": _packed(spec)})

    async def resize(self, namespace: str, id: str, exec_id: str, width: int, height: int) -> None:
        """Give a process' terminal a new size, in characters."""
        await _of_process(self._shim(namespace, id), "ResizePty", exec_id, width=width, height=height)

    async def close_io(self, namespace: str, id: str, exec_id: str = "", *, stdin: bool = True) -> None:
        """End a process' input, if that is what is asked for: there is nothing else to close."""
        shim = self._shim(namespace, id)
        if stdin:
            await _of_process(shim, "CloseIO", exec_id, stdin=True)

    async def pause(self, namespace: str, id: str) -> None:
        """Freeze all processes of a task."""
        await self._shim(namespace, id).call("Pause", {})

    async def resume(self, namespace: str, id: str) -> None:
        """Let the processes of a paused task go on."""
        await self._shim(namespace, id).call("Resume", {})

    async def pids(self, namespace: str, id: str) -> list[Listed]:
        """All processes of a task."""
        answer = await self._shim(namespace, id).call("Pids", {})
        return [
            Listed(one["pid"], one["info"]["type_url"], one["info"]["value"]) if one["info"] else Listed(one["pid"])
            for one in answer["processes"]
        ]

    async def checkpoint(self, namespace: str, id: str, options: Packed, lease: str = "") -> list[Descriptor]:
        """Save a task with criu: into the folder that the options name, else as blobs under the lease, which are
        returned. `options` is containerd.runc.v1.CheckpointOptions; InvalidArgument where it is not."""
        shim = self._shim(namespace, id)
        wanted = {"options": _packed(options)}
        try:
            found = m.decode_options("containerd.runc.v1.CheckpointOptions", wanted["options"])
        except ValueError as error:
            runtime = self._containers.get(namespace, shim.id).runtime.name
            raise errors.InvalidArgument(f"invalid task checkpoint option for {runtime}") from error
        if found["image_path"]:
            await shim.call("Checkpoint", {"path": found["image_path"], **wanted})
            return []
        loop, specification = asyncio.get_running_loop(), self._containers.get(namespace, shim.id).spec
        folder = self._checkpoints.folder()
        try:
            await shim.call("Checkpoint", {"path": folder, **wanted})
            return await loop.run_in_executor(
                self._pool, self._checkpoints.store, namespace, folder, specification, lease
            )
        finally:
            await loop.run_in_executor(self._pool, self._checkpoints.drop, folder)

    async def update(self, namespace: str, id: str, resources: Packed, annotations: dict[str, str]) -> None:
        """Change the limits of a task; `resources` are OCI's, in the runtime's own spelling."""
        await self._shim(namespace, id).call(
            "Update", {"resources": _packed(resources), "annotations": dict(annotations)}
        )

    async def stats(self, namespace: str, accept: Filter) -> list[Measured]:
        """The resources of the tasks that the filter lets through (`id`, `namespace`), where their shims answer in
        time."""

        async def measure(shim: Shim) -> Measured | None:
            now = time.time_ns()
            try:
                answer = (await shim.call("Stats", {}, STATE_TIMEOUT))["stats"]
            except errors.Error as error:
                if not isinstance(error, errors.NotFound):
                    log.error("metrics of %s/%s: %s", shim.namespace, shim.id, error.message)
                return None
            return Measured(shim.id, now, answer["type_url"], answer["value"]) if answer else Measured(shim.id, now)

        wanted = [shim for shim in self._shims.all(namespace) if accept(_adaptor(shim))]
        found = await asyncio.gather(*(measure(shim) for shim in wanted))
        return [one for one in found if one is not None]

    async def cgroup_stats(self) -> list[CgroupStats]:
        """The figures of each task's cgroup, of all namespaces, where their shims answer in time."""
        # 0.6 ms and 0.2 MB, for daemons whose metrics are looked at
        from teu.api.cgroups.v2 import metrics_pb2 as cgroup

        async def measure(shim: Shim) -> CgroupStats | None:
            try:
                answer = (await shim.call("Stats", {}, STATE_TIMEOUT))["stats"]
                runtime = self._containers.get(shim.namespace, shim.id).runtime.name
            except errors.Error as error:
                log.debug("metrics of %s/%s: %s", shim.namespace, shim.id, error.message)
                return None
            if not answer or not answer["type_url"].endswith(_CGROUP_METRICS):
                return None
            return CgroupStats(shim.namespace, shim.id, runtime, cgroup.Metrics.FromString(answer["value"]))

        found = await asyncio.gather(*(measure(shim) for shim in self._shims.all()))
        return [one for one in found if one is not None]

    async def wait(self, namespace: str, id: str, exec_id: str = "") -> Exit:
        """Wait for the end of a process, for as long as it takes, also past the death of its shim."""
        shim = self._shim(namespace, id)
        answer = await shim.outlast(lambda: _of_process(shim, "Wait", exec_id))
        if answer is None:
            # The shim died: its container with it, and what is known of the exit comes from the clean-up.
            return shim.gone.result()
        return Exit.told(answer)
