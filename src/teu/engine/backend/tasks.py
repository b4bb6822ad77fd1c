# SPDX-License-Identifier: Apache-2.0
"""containerd's containers and tasks, as the engine uses them: one function per call, plain values in and
out. Called by lifecycle, exec and recovery.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.backend import containerd
from teu.oci.labels import BUILDER

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from teu.api.types import mount_pb2
    from teu.api.types.task import task_pb2
    from teu.engine.backend.containerd import Client

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
START_SECONDS = 120.0
FIGURES_SECONDS = 5.0  # of all tasks: one whose shim hangs may hold the answer up


class Exit(NamedTuple):
    status: int
    moment: int  # nanoseconds; 0: not known


class Task(NamedTuple):
    id: str
    pid: int
    status: str  # CREATED, RUNNING, STOPPED, PAUSED, PAUSING, UNKNOWN
    exit: Exit

    @property
    def unknown(self) -> bool:
        """Its shim does not answer in time: nothing is known, and least of all that it has ended."""
        return self.status == "UNKNOWN"


def moment(stamp: Timestamp) -> int:
    return int(stamp.seconds) * 1_000_000_000 + int(stamp.nanos)


def create_container(
    client: Client,
    identity: str,
    name: str,
    image: str,
    runtime: str,
    snapshotter: str,
    snapshot: str,
    spec: Mapping[str, object],
    options: tuple[str, bytes],
) -> None:
    """`options`: for the shim, the type of a message and itself encoded."""
    from teu.api.services.containers.v1 import containers_pb2

    message = containers_pb2.Container(
        id=identity,
        image=image,
        snapshotter=snapshotter,
        snapshot_key=snapshot,
        labels={"teu.name": name},
    )
    message.runtime.name = runtime
    if options[0]:
        message.runtime.options.type_url, message.runtime.options.value = options
    message.spec.type_url = SPEC_TYPE
    message.spec.value = json.dumps(spec, separators=(",", ":")).encode()
    request = containers_pb2.CreateContainerRequest(container=message)
    try:
        client.containers.Create(request)
    except containerd.AlreadyExists:
        # Left by an engine that died half-way.
        discard(client, identity)
        client.containers.Create(request)


def stand_for(client: Client, identity: str, runtime: str) -> None:
    """A record for a task that has none, since containerd takes no call for a task without."""
    from teu.api.services.containers.v1 import containers_pb2

    message = containers_pb2.Container(id=identity)
    message.runtime.name = runtime
    client.containers.Create(containers_pb2.CreateContainerRequest(container=message))


def delete_container(client: Client, identity: str) -> None:
    from teu.api.services.containers.v1 import containers_pb2

    try:
        client.containers.Delete(containers_pb2.DeleteContainerRequest(id=identity))
    except containerd.NotFound:
        pass


def list_containers(client: Client) -> tuple[list[str], list[str]]:
    """(those of the engine, those that are a builder's steps) by their ids."""
    from teu.api.services.containers.v1 import containers_pb2

    response = client.containers.List(containers_pb2.ListContainersRequest())
    found: tuple[list[str], list[str]] = ([], [])
    for message in response.containers:
        found[BUILDER in message.labels].append(message.id)
    return found


def create(
    client: Client,
    identity: str,
    mounts: list[mount_pb2.Mount],
    paths: tuple[str, str, str],
    terminal: bool,
    options: tuple[str, bytes],
) -> int:
    from teu.api.services.tasks.v1 import tasks_pb2

    request = tasks_pb2.CreateTaskRequest(
        container_id=identity,
        rootfs=mounts,
        stdin=paths[0],
        stdout=paths[1],
        stderr=paths[2],
        terminal=terminal,
    )
    if options[0]:
        request.options.type_url, request.options.value = options
    return int(client.tasks.Create(request, timeout=START_SECONDS).pid)


def start(client: Client, identity: str, exec_id: str = "") -> int:
    from teu.api.services.tasks.v1 import tasks_pb2

    request = tasks_pb2.StartRequest(container_id=identity, exec_id=exec_id)
    return int(client.tasks.Start(request, timeout=START_SECONDS).pid)


def execute(
    client: Client,
    identity: str,
    exec_id: str,
    process: Mapping[str, object],
    paths: tuple[str, str, str],
    terminal: bool,
) -> None:
    from teu.api.services.tasks.v1 import tasks_pb2

    request = tasks_pb2.ExecProcessRequest(
        container_id=identity,
        exec_id=exec_id,
        stdin=paths[0],
        stdout=paths[1],
        stderr=paths[2],
        terminal=terminal,
    )
    request.spec.type_url = PROCESS_TYPE
    request.spec.value = json.dumps(process, separators=(",", ":")).encode()
    client.tasks.Exec(request)


def code_of_refusal(message: str) -> int:
    """The exit code that docker gives to a process that did not start, told from the runtime's words: 126 for what may
    not be run, 127 for what is not there, 128 for all else."""
    text = message.lower()
    if "permission denied" in text or "is a directory" in text:
        return 126
    missing = ("not a directory", "executable file not found", "no such file or directory")
    return 127 if any(words in text for words in missing) else 128


def kill(client: Client, identity: str, signal: int, exec_id: str = "", everything: bool = False) -> None:
    from teu.api.services.tasks.v1 import tasks_pb2

    client.tasks.Kill(tasks_pb2.KillRequest(container_id=identity, exec_id=exec_id, signal=signal, all=everything))


def delete(client: Client, identity: str) -> Exit | None:
    """Remove a stopped task. None: there was none."""
    from teu.api.services.tasks.v1 import tasks_pb2

    try:
        response = client.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=identity))
    except containerd.NotFound:
        return None
    return Exit(int(response.exit_status), moment(response.exited_at))


def delete_exec(client: Client, identity: str, exec_id: str) -> Exit | None:
    from teu.api.services.tasks.v1 import tasks_pb2

    try:
        response = client.tasks.DeleteProcess(tasks_pb2.DeleteProcessRequest(container_id=identity, exec_id=exec_id))
    except containerd.Error:
        return None
    return Exit(int(response.exit_status), moment(response.exited_at))


def _task(process: task_pb2.Process) -> Task:
    from teu.api.types.task import task_pb2

    return Task(
        process.container_id or process.id,
        int(process.pid),
        task_pb2.Status.Name(process.status),
        Exit(int(process.exit_status), moment(process.exited_at)),
    )


def get(client: Client, identity: str, exec_id: str = "") -> Task | None:
    from teu.api.services.tasks.v1 import tasks_pb2

    try:
        response = client.tasks.Get(tasks_pb2.GetRequest(container_id=identity, exec_id=exec_id))
    except containerd.NotFound:
        return None
    return _task(response.process)


def list_tasks(client: Client) -> dict[str, Task]:
    from teu.api.services.tasks.v1 import tasks_pb2

    response = client.tasks.List(tasks_pb2.ListTasksRequest())
    return {(process.container_id or process.id): _task(process) for process in response.tasks}


def short_of_memory(client: Client, identities: Iterable[str]) -> set[str]:
    """Those of these tasks of which the kernel has killed a process for want of memory, as long as their cgroups tell:
    until they are deleted. Who cannot be asked is not among them."""
    from teu.api.cgroups.v2 import metrics_pb2
    from teu.api.services.tasks.v1 import tasks_pb2

    filters = [f"id=={identity}" for identity in identities]
    if not filters:
        return set()
    found = set()
    for metric in client.tasks.Metrics(tasks_pb2.MetricsRequest(filters=filters), timeout=FIGURES_SECONDS).metrics:
        if metric.data.type_url.endswith("io.containerd.cgroups.v2.Metrics"):
            figures = metrics_pb2.Metrics.FromString(metric.data.value)
            if figures.memory_events.oom_kill:
                found.add(metric.id)
    return found


def pause(client: Client, identity: str) -> None:
    from teu.api.services.tasks.v1 import tasks_pb2

    client.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id=identity))


def resume(client: Client, identity: str) -> None:
    from teu.api.services.tasks.v1 import tasks_pb2

    client.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id=identity))


def resize(client: Client, identity: str, width: int, height: int, exec_id: str = "") -> None:
    from teu.api.services.tasks.v1 import tasks_pb2

    client.tasks.ResizePty(
        tasks_pb2.ResizePtyRequest(container_id=identity, exec_id=exec_id, width=width, height=height)
    )


def close_stdin(client: Client, identity: str, exec_id: str = "") -> None:
    from teu.api.services.tasks.v1 import tasks_pb2

    try:
        client.tasks.CloseIO(tasks_pb2.CloseIORequest(container_id=identity, exec_id=exec_id, stdin=True))
    except containerd.Error:
        pass  # it has exited meanwhile


def pids(client: Client, identity: str) -> list[int]:
    from teu.api.services.tasks.v1 import tasks_pb2

    response = client.tasks.ListPids(tasks_pb2.ListPidsRequest(container_id=identity))
    return [int(process.pid) for process in response.processes]


def update(client: Client, identity: str, resources: Mapping[str, object]) -> None:
    from teu.api.services.tasks.v1 import tasks_pb2

    request = tasks_pb2.UpdateTaskRequest(container_id=identity)
    request.resources.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    request.resources.value = json.dumps(resources, separators=(",", ":")).encode()
    client.tasks.Update(request)


def discard(client: Client, identity: str) -> None:
    """Kill and remove a task and its container that nothing in engine.db stands for."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if delete(client, identity) is None:
                break
            continue
        except containerd.Error:
            pass
        try:
            kill(client, identity, 9, everything=True)
        except containerd.Error:
            pass
        time.sleep(0.02)
    delete_container(client, identity)
