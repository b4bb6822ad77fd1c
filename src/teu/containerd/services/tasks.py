# SPDX-License-Identifier: Apache-2.0
"""containerd.services.tasks.v1.Tasks: tasks are containers at work, each behind its shim.

Thin: look the container and its shim up, ask the shim, translate.  Everything runs on the event loop; what
takes long waits for the shim without a thread.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from teu.api.services.tasks.v1 import tasks_pb2 as pb
from teu.api.types import introspection_pb2, metrics_pb2
from teu.api.types.task import task_pb2
from teu.containerd.core import errors
from teu.containerd.core.filters import parse_all
from teu.containerd.core.identifiers import validate_identifier
from teu.containerd.core.rows import must_be_whole
from teu.containerd.runtime.bootstrap import OWN_RUNTIME, find_binary
from teu.containerd.runtime.shim import STATE_TIMEOUT, Shim
from teu.containerd.server.rpc import held

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.empty_pb2 import Empty

    from teu.containerd.server.rpc import Call, Server
    from teu.containerd.state import Context

log = logging.getLogger("teu.containerd.tasks")

INFO_TIMEOUT = 30.0
NEVER = -62135596800  # 0001-01-01, as Go says that a time is none: what containerd tells of a running process


def _any(message: Any) -> dict[str, Any] | None:
    return {"type_url": message.type_url, "value": message.value} if message.ByteSize() else None


def _time(value: dict[str, Any] | None) -> Timestamp:
    return Timestamp(seconds=value["seconds"], nanos=value["nanos"]) if value else Timestamp(seconds=NEVER)


def _empty() -> Empty:
    from google.protobuf.empty_pb2 import Empty

    return Empty()


def _process(id: str, state: dict[str, Any]) -> Any:
    return task_pb2.Process(
        id=id,
        pid=state["pid"],
        status=state["status"],
        stdin=state["stdin"],
        stdout=state["stdout"],
        stderr=state["stderr"],
        terminal=state["terminal"],
        exit_status=state["exit_status"],
        exited_at=_time(state["exited_at"]),
    )


async def _of_process(shim: Shim, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A call about one process; NotFound if there is none, whatever the shim says (runc's: something unknown)."""
    try:
        return await (shim.wait(fields["exec_id"]) if method == "Wait" else shim.call(method, fields))
    except (errors.Unknown, errors.FailedPrecondition):
        if fields["exec_id"]:
            await shim.call("State", {"exec_id": fields["exec_id"]}, STATE_TIMEOUT)
        raise


def _adaptor(shim: Shim) -> Callable[[Sequence[str]], str | None]:
    return lambda path: {"id": shim.id, "namespace": shim.namespace}.get(path[0])


class Tasks:
    def __init__(self, context: Context) -> None:
        self._containers = context.containers
        self._checkpoints = context.checkpoints
        self._pool = context.pool
        self._shims = context.shims

    def _shim(self, namespace: str, id: str) -> Shim:
        self._containers.get(namespace, id)
        shim: Shim = self._shims.get(namespace, id)
        return shim

    @staticmethod
    def _restore_path(options: Any) -> str:
        """A folder with criu's images, where the runtime's options name one."""
        from teu.ttrpc import messages as m

        try:
            found = m.decode_options("containerd.runc.v1.Options", _any(options) if options is not None else None)
        except ValueError:
            return ""  # another runtime's own
        return str(found["criu_image_path"])

    async def Create(self, request: Any, call: Call) -> Any:
        namespace, id = call.namespace, request.container_id
        container = self._containers.get(namespace, id)
        must_be_whole(container.labels, f'container "{id}"')
        if self._shims.exists(namespace, id):
            raise errors.AlreadyExists(f"task {id}")
        options = None
        if request.options.value or request.options.type_url:
            options = request.options
        elif container.runtime.options.ByteSize():
            options = container.runtime.options
        checkpoint, restorer = self._restore_path(options), None
        if not checkpoint and request.HasField("checkpoint"):
            restorer = self._checkpoints.restorer(namespace, request.checkpoint)
        pid = await self._shims.create(
            namespace,
            id,
            runtime=request.runtime_path or container.runtime.name,
            spec=container.spec.value,
            options=options,
            sandbox=container.sandbox,
            restorer=restorer,
            request={
                "rootfs": [
                    {"type": mount.type, "source": mount.source, "target": mount.target, "options": list(mount.options)}
                    for mount in request.rootfs
                ],
                "terminal": request.terminal,
                "stdin": request.stdin,
                "stdout": request.stdout,
                "stderr": request.stderr,
                "checkpoint": checkpoint,
            },
        )
        return pb.CreateTaskResponse(container_id=id, pid=pid)

    async def Start(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        answer = await _of_process(shim, "Start", {"exec_id": request.exec_id})
        return pb.StartResponse(pid=answer["pid"])

    async def Delete(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        try:
            answer = await self._shims.delete(shim)
        except (errors.Unknown, errors.FailedPrecondition) as e:
            raise type(e)(f"failed to delete task: {e.message}") from e
        # Without an id, as containerd's: that is for processes.
        return pb.DeleteResponse(
            pid=answer["pid"], exit_status=answer["exit_status"], exited_at=_time(answer["exited_at"])
        )

    async def DeleteProcess(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        answer = await _of_process(shim, "Delete", {"exec_id": request.exec_id})
        return pb.DeleteResponse(
            id=request.exec_id,
            pid=answer["pid"],
            exit_status=answer["exit_status"],
            exited_at=_time(answer["exited_at"]),
        )

    async def Get(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        state = await shim.call("State", {"exec_id": request.exec_id}, STATE_TIMEOUT)
        return pb.GetResponse(process=_process(request.exec_id or shim.id, state))

    async def List(self, request: Any, call: Call) -> Any:
        async def state(shim: Shim) -> Any:
            try:
                return _process(shim.id, await shim.call("State", {}, STATE_TIMEOUT))
            except errors.Error as e:
                if not isinstance(e, errors.NotFound):
                    log.error("state of %s/%s: %s", shim.namespace, shim.id, e.message)
                return None

        states = await asyncio.gather(*(state(shim) for shim in self._shims.all(call.namespace)))
        return pb.ListTasksResponse(tasks=[process for process in states if process is not None])

    async def Kill(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        await _of_process(shim, "Kill", {"exec_id": request.exec_id, "signal": request.signal, "all": request.all})
        return _empty()

    async def Exec(self, request: Any, call: Call) -> Any:
        if not request.exec_id:
            raise errors.InvalidArgument("exec id cannot be empty")
        shim = self._shim(call.namespace, request.container_id)
        try:
            validate_identifier(request.exec_id)
        except errors.InvalidArgument as e:
            raise errors.InvalidArgument(f"invalid exec id {request.exec_id}: {e.message}") from e
        await shim.call(
            "Exec",
            {
                "exec_id": request.exec_id,
                "terminal": request.terminal,
                "stdin": request.stdin,
                "stdout": request.stdout,
                "stderr": request.stderr,
                "spec": _any(request.spec),
            },
        )
        return _empty()

    async def ResizePty(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        size = {"width": request.width, "height": request.height}
        await _of_process(shim, "ResizePty", {"exec_id": request.exec_id, **size})
        return _empty()

    async def CloseIO(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        if request.stdin:
            await _of_process(shim, "CloseIO", {"exec_id": request.exec_id, "stdin": True})
        return _empty()

    async def Pause(self, request: Any, call: Call) -> Any:
        await self._shim(call.namespace, request.container_id).call("Pause", {})
        return _empty()

    async def Resume(self, request: Any, call: Call) -> Any:
        await self._shim(call.namespace, request.container_id).call("Resume", {})
        return _empty()

    async def ListPids(self, request: Any, call: Call) -> Any:
        answer = await self._shim(call.namespace, request.container_id).call("Pids", {})
        response = pb.ListPidsResponse()
        for process in answer["processes"]:
            added = response.processes.add(pid=process["pid"])
            if process["info"]:
                added.info.type_url, added.info.value = process["info"]["type_url"], process["info"]["value"]
        return response

    async def Checkpoint(self, request: Any, call: Call) -> Any:
        from teu.ttrpc import messages as m

        shim = self._shim(call.namespace, request.container_id)
        try:
            options = m.decode_options("containerd.runc.v1.CheckpointOptions", _any(request.options))
        except ValueError as e:
            runtime = self._containers.get(call.namespace, shim.id).runtime.name
            raise errors.InvalidArgument(f"invalid task checkpoint option for {runtime}") from e
        wanted = {"options": _any(request.options)}
        if options["image_path"]:
            await shim.call("Checkpoint", {"path": options["image_path"], **wanted})
            return pb.CheckpointTaskResponse()
        loop, specification = asyncio.get_running_loop(), self._containers.get(call.namespace, shim.id).spec
        folder = self._checkpoints.folder()
        try:
            await shim.call("Checkpoint", {"path": folder, **wanted})
            stored = await loop.run_in_executor(
                self._pool, self._checkpoints.store, call.namespace, folder, specification, call.lease
            )
        finally:
            await loop.run_in_executor(self._pool, self._checkpoints.drop, folder)
        return pb.CheckpointTaskResponse(descriptors=stored)

    async def Update(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        await shim.call("Update", {"resources": _any(request.resources), "annotations": dict(request.annotations)})
        return _empty()

    async def Metrics(self, request: Any, call: Call) -> Any:
        accept = parse_all(request.filters)

        async def stats(shim: Shim) -> Any:
            now = time.time_ns()
            try:
                answer = await shim.call("Stats", {}, STATE_TIMEOUT)
            except errors.Error as e:
                if not isinstance(e, errors.NotFound):
                    log.error("metrics of %s/%s: %s", shim.namespace, shim.id, e.message)
                return None
            metric = metrics_pb2.Metric(timestamp=Timestamp(seconds=now // 10**9, nanos=now % 10**9), id=shim.id)
            if answer["stats"]:
                metric.data.type_url = answer["stats"]["type_url"]
                metric.data.value = answer["stats"]["value"]
            return metric

        wanted = [shim for shim in self._shims.all(call.namespace) if accept(_adaptor(shim))]
        found = await asyncio.gather(*(stats(shim) for shim in wanted))
        return pb.MetricsResponse(metrics=[metric for metric in found if metric is not None])

    @held
    async def Wait(self, request: Any, call: Call) -> Any:
        shim = self._shim(call.namespace, request.container_id)
        answer = await shim.outlast(lambda: _of_process(shim, "Wait", {"exec_id": request.exec_id}))
        if answer is None:
            # The shim died: its container with it, and what is known of the exit comes from the clean-up.
            answer = shim.gone.result()
        return pb.WaitResponse(exit_status=answer["exit_status"], exited_at=_time(answer["exited_at"]))

    # for other services of this daemon

    def runtime_info(self, request: Any) -> Any:
        """What a shim tells of itself (its `-info`), for containerd.types.RuntimeRequest (blocking)."""
        binary = find_binary(request.runtime_path or OWN_RUNTIME)
        try:
            done = subprocess.run(
                [binary, "-info"],
                input=request.options.SerializeToString(),
                capture_output=True,
                timeout=INFO_TIMEOUT,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as e:
            detail = (getattr(e, "stderr", b"") or b"").decode(errors="replace").strip()
            raise errors.Unknown(f"{binary} -info: {detail or e}") from e
        return introspection_pb2.RuntimeInfo.FromString(done.stdout)

    async def cgroup_stats(self) -> list[tuple[str, str, str, Any]]:
        """(namespace, id, runtime, io.containerd.cgroups.v2.Metrics) of each task whose shim answers in time."""
        from teu.api.cgroups.v2 import metrics_pb2 as cgroup

        async def stats(shim: Shim) -> Any:
            try:
                answer = (await shim.call("Stats", {}, STATE_TIMEOUT))["stats"]
                runtime = self._containers.get(shim.namespace, shim.id).runtime.name
            except errors.Error as e:
                log.debug("metrics of %s/%s: %s", shim.namespace, shim.id, e.message)
                return None
            if not answer or not answer["type_url"].endswith("io.containerd.cgroups.v2.Metrics"):
                return None
            return shim.namespace, shim.id, runtime, cgroup.Metrics.FromString(answer["value"])

        found = await asyncio.gather(*(stats(shim) for shim in self._shims.all()))
        return [one for one in found if one is not None]

    def metrics_lines(self) -> list[str]:
        return [
            "# HELP teu_containerd_tasks Tasks with a shim.",
            "# TYPE teu_containerd_tasks gauge",
            f"teu_containerd_tasks {len(self._shims.all())}",
        ]


def register(server: Server, context: Context) -> None:
    context.tasks = Tasks(context)
    server.add(pb.DESCRIPTOR.services_by_name["Tasks"], context.tasks)
