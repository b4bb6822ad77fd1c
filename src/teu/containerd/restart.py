# SPDX-License-Identifier: Apache-2.0
"""Keeps tasks as the labels of their containers ask, like containerd's restart monitor. Run by `daemon`.

    containerd.io/restart.status               running or stopped: what the task is to be
    containerd.io/restart.policy               always (also when empty), unless-stopped, on-failure[:TIMES], no
    containerd.io/restart.explicitly-stopped   true: unless-stopped leaves it
    containerd.io/restart.loguri               where the output of a task that is started here goes
    containerd.io/restart.count                how often that was; written here, before each try

Tasks are compared at the start and then once in an interval, but only while a container has the first of these labels:
without one, nothing runs here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teu.api.services.containers.v1 import containers_pb2
from teu.api.services.tasks.v1 import tasks_pb2 as pb
from teu.api.types.task import task_pb2
from teu.containerd import errors

if TYPE_CHECKING:
    from teu.containerd.context import Context

log = logging.getLogger("teu.containerd.restart")

PREFIX = "containerd.io/restart."
STATUS = PREFIX + "status"
POLICIES = ("no", "always", "on-failure", "unless-stopped")
SIGKILL = 9
# Go's words for a true value (strconv.ParseBool): clients write it with Go.
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_GOING = (task_pb2.CREATED, task_pb2.RUNNING, task_pb2.PAUSED, task_pb2.PAUSING)


def wants_restart(labels: Mapping[str, str], exit_status: int) -> bool:
    """Whether the policy has a task started again that ended so. Raises ValueError for a policy that is none."""
    name, colon, times = labels.get(PREFIX + "policy", "").partition(":")
    if name not in ("", *POLICIES) or (colon and name != "on-failure"):
        raise ValueError(
            f'restart policy "{name}{colon}{times}" not supported: choose from {", ".join(POLICIES)}; '
            "on-failure may have :TIMES"
        )
    if name == "on-failure":
        limit = int(times) if colon else 0
        count = int(labels.get(PREFIX + "count") or 0)
        return exit_status != 0 and (limit == 0 or count < limit)
    if name == "unless-stopped":
        return labels.get(PREFIX + "explicitly-stopped") not in _TRUE
    return name != "no"


def _started(labels: Mapping[str, str]) -> int:
    """How often it was started again; a count that is no number is none."""
    try:
        return int(labels.get(PREFIX + "count") or 0)
    except ValueError:
        return 0


class _Call:
    """What the tasks service asks of a call; this one is the daemon's own."""

    lease = ""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace


class Restarts:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._watched: set[tuple[str, str]] = set()
        self._due = True
        context.containers.listen(self._on_container)
        context.events.listen(self._on_event)

    def settled(self) -> bool:
        """Whether nothing is to be done before the next event: the daemon may leave, which wakes it again."""
        return not self._due or not self._context.config["restart-interval"]

    def _on_container(self, container: Any) -> None:
        """Made or changed; on the thread of the call."""
        if STATUS in container.labels:
            self._loop.call_soon_threadsafe(self._look_again)

    def _on_event(self, envelope: Any) -> None:
        """On the publishing thread."""
        if self._watched and envelope.topic in ("/tasks/exit", "/tasks/delete"):
            self._loop.call_soon_threadsafe(self._look_again)

    def _look_again(self) -> None:
        self._due = True
        self._changed.set()

    async def run(self) -> None:
        while True:
            interval = self._context.config["restart-interval"]
            if interval:
                self._changed.clear()
                self._due = False
                try:
                    await self.reconcile()
                except Exception:
                    log.exception("the restart labels could not be followed")
                if not self._watched:
                    await self._changed.wait()
            # Also after a change: who has just made a container is about to make its task.
            await asyncio.sleep(interval or 5)

    async def reconcile(self) -> None:
        """Compare each task with its container's labels, and change it where they differ."""
        context = self._context
        found = await self._loop.run_in_executor(context.pool, context.containers.labelled, STATUS)
        self._watched = {(namespace, container.id) for namespace, container in found}
        await asyncio.gather(*(self._one(namespace, container) for namespace, container in found))

    async def _one(self, namespace: str, container: Any) -> None:
        wanted = container.labels[STATUS]
        try:
            process = await self._process(namespace, container.id)
            if wanted == "running" and (process is None or process.status not in _GOING):
                if wants_restart(container.labels, process.exit_status if process is not None else 0):
                    log.info("%s/%s: starting its task again", namespace, container.id)
                    await self._start(namespace, container, process is not None)
            elif wanted == "stopped" and process is not None and process.status != task_pb2.STOPPED:
                log.info("%s/%s: stopping its task", namespace, container.id)
                await self._stop(namespace, container.id)
        except (errors.Error, ValueError) as error:
            log.error("%s/%s: %s", namespace, container.id, error)

    async def _process(self, namespace: str, id: str) -> Any:
        """The state of a task, None if there is none."""
        try:
            return (await self._context.tasks.Get(pb.GetRequest(container_id=id), _Call(namespace))).process
        except errors.NotFound:
            return None

    async def _start(self, namespace: str, container: Any, old: bool) -> None:
        context, tasks, call = self._context, self._context.tasks, _Call(namespace)
        if old:
            await tasks.Delete(pb.DeleteTaskRequest(container_id=container.id), call)
        key = PREFIX + "count"
        counted = containers_pb2.Container(id=container.id, labels={key: str(_started(container.labels) + 1)})
        await self._loop.run_in_executor(
            context.pool, context.containers.update, namespace, counted, [f"labels.{key}"]
        )
        specification = json.loads(container.spec.value)
        target = container.labels.get(PREFIX + "loguri", "")
        terminal = bool(target and specification.get("process", {}).get("terminal"))
        request = pb.CreateTaskRequest(
            container_id=container.id, stdout=target, stderr="" if terminal else target, terminal=terminal
        )
        if container.snapshot_key:
            mounts = await self._loop.run_in_executor(
                context.pool, context.snapshots.mounts, namespace, container.snapshotter, container.snapshot_key
            )
            request.rootfs.extend(mounts)
        if label := specification.get("linux", {}).get("mountLabel"):
            for mount in request.rootfs:
                mount.options.append(f'context="{label}"')
        await tasks.Create(request, call)
        await tasks.Start(pb.StartRequest(container_id=container.id), call)

    async def _stop(self, namespace: str, id: str) -> None:
        tasks, call = self._context.tasks, _Call(namespace)
        await tasks.Kill(pb.KillRequest(container_id=id, signal=SIGKILL, all=True), call)
        await tasks.Wait(pb.WaitRequest(container_id=id), call)
        await tasks.Delete(pb.DeleteTaskRequest(container_id=id), call)
