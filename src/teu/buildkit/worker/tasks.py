# SPDX-License-Identifier: Apache-2.0
"""containerd's containers and tasks, as the executor uses them: one function per call. Errors are those of core.errors.

Both daemons are asked alike; they differ in the runtime (`Runtime.of`), and in who makes the scope.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from teu.api.services.containers.v1 import containers_pb2
from teu.api.services.introspection.v1 import introspection_pb2
from teu.api.services.tasks.v1 import tasks_pb2
from teu.api.types import mount_pb2
from teu.api.types.runc.options import oci_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.snapshots import Mount
from teu.buildkit.worker.client import STOPPING, Client
from teu.oci.labels import BUILDER

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
OPTIONS_TYPE = "containerd.runc.v1.Options"
SYSTEMD_CGROUP = b"\x48\x01"  # containerd.runc.v1.Options{systemd_cgroup: true}
START_SECONDS = 120.0
POLL_SECONDS = 0.2
LOST = 255  # the exit status of a process of which nobody knows more

RUNTIME_PLUGIN = "io.containerd.runtime.v2"
DEFAULT_RUNTIME = "default-runtime"  # what teu-containerd says of its plugin for tasks
RUNC = "io.containerd.runc.v2"
TEU = "io.containerd.teu.v2"


class Runtime(NamedTuple):
    """`options`: of containerd.runc.v1.Options, encoded."""

    name: str
    options: bytes

    @property
    def takes_environment(self) -> bool:
        """Whether its shim is told variables beside the container's record: only ours is."""
        return self.name == TEU

    @classmethod
    def of(cls, client: Client, name: str = "") -> Runtime:
        """The runtime of this name; "" for what the daemon itself prefers, or runc where it says nothing."""
        systemd = os.path.isdir("/run/systemd/system")
        name = name or _preferred(client)
        # Our shim makes the scope; others leave it to their runtime.
        return cls(name, SYSTEMD_CGROUP if systemd and name != TEU else b"")


def _preferred(client: Client) -> str:
    request = introspection_pb2.PluginsRequest(filters=[f"type=={RUNTIME_PLUGIN}"])
    for plugin in client.introspection.Plugins(request).plugins:
        if DEFAULT_RUNTIME in plugin.exports:
            return str(plugin.exports[DEFAULT_RUNTIME])
    return RUNC


def create_container(
    client: Client, identity: str, owner: str, runtime: Runtime, spec: Mapping[str, Any], labels: Mapping[str, str]
) -> None:
    message = containers_pb2.Container(id=identity, labels={**labels, BUILDER: owner})
    message.runtime.name = runtime.name
    if runtime.options:
        message.runtime.options.type_url = OPTIONS_TYPE
        message.runtime.options.value = runtime.options
    message.spec.type_url = SPEC_TYPE
    message.spec.value = json.dumps(spec, separators=(",", ":")).encode()
    client.containers.Create(containers_pb2.CreateContainerRequest(container=message))


def change_spec(client: Client, identity: str, spec: Mapping[str, Any]) -> None:
    """What the record of a container says of it; its task has been made of what was there before."""
    message = containers_pb2.Container(id=identity)
    message.spec.type_url = SPEC_TYPE
    message.spec.value = json.dumps(spec, separators=(",", ":")).encode()
    request = containers_pb2.UpdateContainerRequest(container=message)
    request.update_mask.paths.append("spec")
    client.containers.Update(request)


def delete_container(client: Client, identity: str) -> None:
    """One that is not there is fine."""
    try:
        client.containers.Delete(containers_pb2.DeleteContainerRequest(id=identity))
    except errors.NotFound:
        pass


def list_containers(client: Client, owner: str) -> list[str]:
    """The steps of this builder's worker."""
    request = containers_pb2.ListContainersRequest(filters=[f'labels."{BUILDER}"=="{owner}"'])
    return [message.id for message in client.containers.List(request).containers]


def create(
    client: Client,
    identity: str,
    rootfs: Sequence[Mount],
    paths: tuple[str, str, str],
    terminal: bool,
    runtime: Runtime,
    environment: Sequence[str] = (),
) -> int:
    """The process's number. `environment`: more of it, NAME=VALUE, where the runtime takes some."""
    request = tasks_pb2.CreateTaskRequest(
        container_id=identity,
        rootfs=[mount_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in rootfs],
        stdin=paths[0],
        stdout=paths[1],
        stderr=paths[2],
        terminal=terminal,
    )
    if runtime.options or environment:
        more = oci_pb2.Options(environment=[os.fsencode(one) for one in environment])
        request.options.type_url = OPTIONS_TYPE
        request.options.value = runtime.options + more.SerializeToString()
    return int(client.tasks.Create(request, timeout=START_SECONDS).pid)


def execute(
    client: Client,
    identity: str,
    exec_id: str,
    process: Mapping[str, Any],
    paths: tuple[str, str, str],
    terminal: bool,
) -> None:
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
    client.tasks.Exec(request, timeout=START_SECONDS)


def start(client: Client, identity: str, exec_id: str = "") -> int:
    request = tasks_pb2.StartRequest(container_id=identity, exec_id=exec_id)
    return int(client.tasks.Start(request, timeout=START_SECONDS).pid)


def wait(client: Client, identity: str, exec_id: str = "") -> int:
    """The exit status, when there is one. A daemon that starts anew meanwhile is asked again."""
    request = tasks_pb2.WaitRequest(container_id=identity, exec_id=exec_id)
    while True:
        try:
            return int(client.tasks.Wait(request, timeout=None).exit_status)
        except errors.NotFound:
            return LOST
        except (errors.Unavailable, errors.Cancelled, errors.DeadlineExceeded) as error:
            if error.message == STOPPING:
                raise
            time.sleep(POLL_SECONDS)


def kill(client: Client, identity: str, signal: int, exec_id: str = "", everything: bool = False) -> None:
    client.tasks.Kill(tasks_pb2.KillRequest(container_id=identity, exec_id=exec_id, signal=signal, all=everything))


def resize(client: Client, identity: str, width: int, height: int, exec_id: str = "") -> None:
    client.tasks.ResizePty(
        tasks_pb2.ResizePtyRequest(container_id=identity, exec_id=exec_id, width=width, height=height)
    )


def close_stdin(client: Client, identity: str, exec_id: str = "") -> None:
    """One that has exited meanwhile is fine."""
    try:
        client.tasks.CloseIO(tasks_pb2.CloseIORequest(container_id=identity, exec_id=exec_id, stdin=True))
    except errors.Error:
        pass


def delete(client: Client, identity: str) -> None:
    """Of a stopped task; none is fine."""
    try:
        client.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=identity))
    except errors.NotFound:
        pass


def delete_exec(client: Client, identity: str, exec_id: str) -> None:
    try:
        client.tasks.DeleteProcess(tasks_pb2.DeleteProcessRequest(container_id=identity, exec_id=exec_id))
    except errors.Error:
        pass  # it went with its container


def discard(client: Client, identity: str, seconds: float = 20.0) -> None:
    """Kill and remove a task and its container, whatever state they are in. Raises errors.Error where that cannot be
    done in this time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            delete(client, identity)
            break
        except errors.Error:
            if time.monotonic() > deadline:
                raise
        try:
            kill(client, identity, 9, everything=True)
        except errors.Error:
            pass
        time.sleep(0.02)
    delete_container(client, identity)
