# SPDX-License-Identifier: Apache-2.0
"""containerd.services.tasks.v1.Tasks: `runtime.tasks` on the wire."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from teu.api.services.tasks.v1 import tasks_pb2 as pb
from teu.api.types import metrics_pb2
from teu.api.types.task import task_pb2
from teu.containerd.core.errors import InvalidArgument
from teu.containerd.core.filters import parse_all
from teu.containerd.runtime.tasks import Process, Stdio
from teu.containerd.server.rpc import Call, Server, held
from teu.containerd.state import Context

NEVER = -62135596800  # 0001-01-01, as Go says that a time is none: what containerd tells of a running process


def _time(moment: int | None) -> Timestamp:
    """Of nanoseconds since 1970."""
    if moment is None:
        return Timestamp(seconds=NEVER)
    seconds, nanos = divmod(moment, 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)


def _stdio(request: pb.CreateTaskRequest | pb.ExecProcessRequest) -> Stdio:
    return Stdio(request.stdin, request.stdout, request.stderr, request.terminal)


def _process(process: Process) -> task_pb2.Process:
    return task_pb2.Process(
        id=process.id,
        pid=process.pid,
        status=process.status,
        stdin=process.stdio.stdin,
        stdout=process.stdio.stdout,
        stderr=process.stdio.stderr,
        terminal=process.stdio.terminal,
        exit_status=process.exit_status,
        exited_at=_time(process.exited_at),
    )


class Tasks:
    """containerd.services.tasks.v1.Tasks over `runtime.tasks`, whose errors it answers."""

    def __init__(self, context: Context) -> None:
        self._tasks = context.tasks

    async def Create(self, request: pb.CreateTaskRequest, call: Call) -> pb.CreateTaskResponse:
        """Start a shim for a container, and create its task; the process id of what will be the container's first
        process. NOT_FOUND without the container, ALREADY_EXISTS where it has a task, FAILED_PRECONDITION for a damaged
        record."""
        pid = await self._tasks.create(
            call.namespace,
            request.container_id,
            _stdio(request),
            mounts=request.rootfs,
            runtime=request.runtime_path,
            options=request.options if request.options.value or request.options.type_url else None,
            checkpoint=request.checkpoint if request.HasField("checkpoint") else None,
        )
        return pb.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def Start(self, request: pb.StartRequest, call: Call) -> pb.StartResponse:
        """Let the first process, or an exec's, run its program; the process id. NOT_FOUND."""
        return pb.StartResponse(pid=await self._tasks.start(call.namespace, request.container_id, request.exec_id))

    async def Delete(self, request: pb.DeleteTaskRequest, call: Call) -> pb.DeleteResponse:
        """Forget a task that has ended, and its shim; how it ended. NOT_FOUND, FAILED_PRECONDITION while it runs."""
        ended = await self._tasks.delete(call.namespace, request.container_id)
        # Without an id, as containerd's: that is for processes.
        return pb.DeleteResponse(pid=ended.pid, exit_status=ended.status, exited_at=_time(ended.at))

    async def DeleteProcess(self, request: pb.DeleteProcessRequest, call: Call) -> pb.DeleteResponse:
        """Forget an exec that has ended; how it ended. NOT_FOUND."""
        ended = await self._tasks.delete_process(call.namespace, request.container_id, request.exec_id)
        return pb.DeleteResponse(id=request.exec_id, pid=ended.pid, exit_status=ended.status, exited_at=_time(ended.at))

    async def Get(self, request: pb.GetRequest, call: Call) -> pb.GetResponse:
        """How a task, or an exec of it, is. NOT_FOUND."""
        process = await self._tasks.told(call.namespace, request.container_id, request.exec_id)
        return pb.GetResponse(process=_process(process))

    async def List(self, request: pb.ListTasksRequest, call: Call) -> pb.ListTasksResponse:
        """How the tasks of the namespace are. One whose shim does not answer in time is UNKNOWN, and logged."""
        return pb.ListTasksResponse(tasks=[_process(one) for one in await self._tasks.all(call.namespace)])

    async def Kill(self, request: pb.KillRequest, call: Call) -> Empty:
        """Send a signal to the first process, to an exec, or to all that is in the container. NOT_FOUND."""
        await self._tasks.kill(
            call.namespace, request.container_id, request.signal, request.exec_id, everyone=request.all
        )
        return Empty()

    async def Exec(self, request: pb.ExecProcessRequest, call: Call) -> Empty:
        """Prepare one more process; Start runs it. NOT_FOUND, INVALID_ARGUMENT for an id that is none."""
        if not request.exec_id:
            raise InvalidArgument("exec id cannot be empty")
        await self._tasks.exec(call.namespace, request.container_id, request.exec_id, _stdio(request), request.spec)
        return Empty()

    async def ResizePty(self, request: pb.ResizePtyRequest, call: Call) -> Empty:
        """Set the size of a process's terminal, in characters. NOT_FOUND."""
        await self._tasks.resize(call.namespace, request.container_id, request.exec_id, request.width, request.height)
        return Empty()

    async def CloseIO(self, request: pb.CloseIORequest, call: Call) -> Empty:
        """End a process's input. NOT_FOUND."""
        await self._tasks.close_io(call.namespace, request.container_id, request.exec_id, stdin=request.stdin)
        return Empty()

    async def Pause(self, request: pb.PauseTaskRequest, call: Call) -> Empty:
        """Freeze the container's processes; they are frozen when this answers. NOT_FOUND."""
        await self._tasks.pause(call.namespace, request.container_id)
        return Empty()

    async def Resume(self, request: pb.ResumeTaskRequest, call: Call) -> Empty:
        """Let the container's processes go on. NOT_FOUND."""
        await self._tasks.resume(call.namespace, request.container_id)
        return Empty()

    async def ListPids(self, request: pb.ListPidsRequest, call: Call) -> pb.ListPidsResponse:
        """The process ids, on the host, of all that is in the container, with what the shim tells of each.
        NOT_FOUND."""
        response = pb.ListPidsResponse()
        for process in await self._tasks.pids(call.namespace, request.container_id):
            added = response.processes.add(pid=process.pid)
            if process.type_url or process.info:
                added.info.type_url, added.info.value = process.type_url, process.info
        return response

    async def Checkpoint(self, request: pb.CheckpointTaskRequest, call: Call) -> pb.CheckpointTaskResponse:
        """Save the task by criu, as blobs or in the folder that the options name; descriptors of the blobs.
        NOT_FOUND."""
        stored = await self._tasks.checkpoint(call.namespace, request.container_id, request.options, call.lease)
        return pb.CheckpointTaskResponse(descriptors=stored)

    async def Update(self, request: pb.UpdateTaskRequest, call: Call) -> Empty:
        """Give the container other limits (LinuxResources of the runtime specification). NOT_FOUND."""
        await self._tasks.update(call.namespace, request.container_id, request.resources, dict(request.annotations))
        return Empty()

    async def Metrics(self, request: pb.MetricsRequest, call: Call) -> pb.MetricsResponse:
        """What the cgroups of the tasks that one of the filters fits count. A task that cannot be asked is left out."""
        accept, response = parse_all(request.filters), pb.MetricsResponse()
        for found in await self._tasks.stats(call.namespace, accept):
            metric = metrics_pb2.Metric(timestamp=_time(found.at), id=found.id)
            if found.type_url or found.value:
                metric.data.type_url, metric.data.value = found.type_url, found.value
            response.metrics.append(metric)
        return response

    @held
    async def Wait(self, request: pb.WaitRequest, call: Call) -> pb.WaitResponse:
        """The end of a process, when it comes, or at once if it has come. NOT_FOUND; a stop of the daemon ends the
        call."""
        ended = await self._tasks.wait(call.namespace, request.container_id, request.exec_id)
        return pb.WaitResponse(exit_status=ended.status, exited_at=_time(ended.at))


def register(server: Server, context: Context) -> None:
    server.add(pb.DESCRIPTOR.services_by_name["Tasks"], Tasks(context))
