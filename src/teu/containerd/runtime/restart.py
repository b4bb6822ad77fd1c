# SPDX-License-Identifier: Apache-2.0
"""Keeps tasks as the labels of their containers ask, like containerd's restart monitor. Run by `daemon`.

    containerd.io/restart.status               running or stopped: what the task is to be
    containerd.io/restart.policy               always (also when empty), unless-stopped, on-failure[:TIMES], no
    containerd.io/restart.explicitly-stopped   true: unless-stopped leaves it
    containerd.io/restart.loguri               where the output of a task that is started here goes
    containerd.io/restart.count                how often that was; written here, before each try

Tasks are compared at the start and then once in an interval, but only while a container has the first of these labels:
without one, nothing runs here.

While a task is to run, the daemon is started at boot (teu-containerd-restore.service; see teu.systemd.host), and starts
it once the host is ready. A reboot takes the tasks and how they ended, so those of on-failure that ran are remembered:

    ROOT/running-on-failure    "NAMESPACE ID" of each, at the last look; the end of the machine is their failure
    STATE/restarts             there after the first look of a boot
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from teu.api.events import task_pb2 as task_events
from teu.api.services.containers.v1 import containers_pb2
from teu.api.types import event_pb2
from teu.api.types.task import task_pb2
from teu.containerd.core import errors
from teu.containerd.core.events import Exchange
from teu.containerd.core.messages import Mount
from teu.containerd.runtime.tasks import Process, Stdio, Tasks
from teu.containerd.stores.containers import Containers
from teu.containerd.stores.snapshots import Snapshots
from teu.oci import jsontext
from teu.systemd import host

log = logging.getLogger("teu.containerd.restart")

PREFIX = "containerd.io/restart."
STATUS = PREFIX + "status"
POLICIES = ("no", "always", "on-failure", "unless-stopped")
# What a task that ended with the machine is taken to have ended with.
LOST = 255
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


def starts_at_boot(labels: Mapping[str, str]) -> bool:
    """Whether the machine's end would have the task started again."""
    try:
        return labels.get(STATUS) == "running" and wants_restart(labels, LOST)
    except ValueError:
        return False


def _fails(labels: Mapping[str, str]) -> bool:
    """Whether it matters how the task ended."""
    return labels.get(PREFIX + "policy", "").startswith("on-failure")


def _started(labels: Mapping[str, str]) -> int:
    """How often it was started again; a count that is no number is none."""
    try:
        return int(labels.get(PREFIX + "count") or 0)
    except ValueError:
        return 0


class Restarts:
    """The restart monitor; made on the event loop.

    `interval` tells how many seconds lie between two looks, 0 for never; it is asked each time. `pool` has the
    threads for what blocks. `root` and `state` are the daemon's folders."""

    def __init__(
        self,
        containers: Containers,
        snapshots: Snapshots,
        tasks: Tasks,
        events: Exchange,
        pool: Executor,
        *,
        root: str,
        state: str,
        interval: Callable[[], float],
    ) -> None:
        self._containers = containers
        self._snapshots = snapshots
        self._tasks = tasks
        self._pool = pool
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._watched: set[tuple[str, str]] = set()
        self._due = True
        self._marker = host.Marker(root)
        self._marking = threading.Lock()
        self._mounting: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._record = os.path.join(root, "running-on-failure")
        self._ran = self._remembered()
        self._looked = os.path.join(state, "restarts")
        # Whose tasks the machine's end took.
        self._lost: set[tuple[str, str]] = set() if os.path.exists(self._looked) else set(self._ran)
        containers.listen(self._on_container)
        events.listen(self._on_event)

    def settled(self) -> bool:
        """Whether nothing is to be done before the next event: the daemon may leave, which wakes it again."""
        return not self._due or not self._interval()

    def _on_container(self, container: containers_pb2.Container) -> None:
        """Made, changed or deleted; on the thread of the call."""
        if STATUS in container.labels or self._marker.there:
            self._mark()
        if STATUS in container.labels:
            self._loop.call_soon_threadsafe(self._look_again)

    def _mark(self) -> list[tuple[str, containers_pb2.Container]]:
        """Say whether the next boot is to start us; all containers with a wish for their task."""
        with self._marking:
            found = self._containers.labelled(STATUS)
            wanted = bool(self._interval())
            self._marker.put(wanted and any(starts_at_boot(container.labels) for _, container in found))
        return found

    def _remembered(self) -> set[tuple[str, str]]:
        try:
            with open(self._record) as file:
                return {(line.split()[0], line.split()[1]) for line in file if len(line.split()) == 2}
        except FileNotFoundError:
            return set()

    def _remember(self, running: set[tuple[str, str]]) -> None:
        """Durable when it returns."""
        with open(self._record + ".new", "w") as file:
            file.writelines(f"{namespace} {id}\n" for namespace, id in sorted(running))
            file.flush()
            os.fsync(file.fileno())
        os.rename(self._record + ".new", self._record)
        self._ran = running

    def _on_event(self, envelope: event_pb2.Envelope) -> None:
        """On the publishing thread."""
        if self._watched and envelope.topic in ("/tasks/exit", "/tasks/delete"):
            self._loop.call_soon_threadsafe(self._look_again)
        elif envelope.topic == "/tasks/start" and self._marker.there:
            begun = task_events.TaskStart.FromString(envelope.event.value).container_id
            self._pool.submit(self._begun, envelope.namespace, begun)

    def _begun(self, namespace: str, id: str) -> None:
        """A task runs: remembered at once where that matters, for the next look may be too late."""
        try:
            labels = self._containers.get(namespace, id).labels
            if _fails(labels) and starts_at_boot(labels):
                with self._marking:
                    self._remember(self._ran | {(namespace, id)})
        except errors.NotFound:
            pass
        except OSError as error:
            log.error("%s/%s: that it runs could not be remembered: %s", namespace, id, error)

    def _look_again(self) -> None:
        self._due = True
        self._changed.set()

    async def _apart(self, work: Callable[[], None]) -> None:
        """Run what may wait for long; a stop of the daemon does not wait for it."""
        done: asyncio.Future[None] = self._loop.create_future()

        def end(failure: Exception | None) -> None:
            if not done.done():
                done.set_exception(failure) if failure else done.set_result(None)

        def run() -> None:
            failure = None
            try:
                work()
            except Exception as error:
                failure = error
            self._loop.call_soon_threadsafe(end, failure)

        threading.Thread(target=run, name="host", daemon=True).start()
        await done

    async def _first_of_a_boot(self) -> None:
        """Wait for what tasks need of a host, if some are to be started."""
        if os.path.exists(self._looked):
            return
        found = await self._loop.run_in_executor(self._pool, self._mark)
        if any(starts_at_boot(container.labels) for _, container in found):
            try:
                await self._apart(lambda: host.reach(host.BOOT_TARGET))
            except OSError as error:
                log.warning("%s was not reached: %s; tasks are started nevertheless", host.BOOT_TARGET, error)
        with open(self._looked, "wb"):
            pass

    async def run(self) -> None:
        """Follow the labels until it is cancelled."""
        await self._first_of_a_boot()
        while True:
            interval = self._interval()
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
        found = await self._loop.run_in_executor(self._pool, self._mark)
        self._watched = {(namespace, container.id) for namespace, container in found}
        running = await asyncio.gather(*(self._one(namespace, container) for namespace, container in found))
        ran = {
            (namespace, container.id)
            for (namespace, container), goes in zip(found, running)
            if goes and _fails(container.labels)
        }
        if ran != self._ran and not await self._loop.run_in_executor(self._pool, host.is_going_down):
            await self._loop.run_in_executor(self._pool, self._remember, ran)

    async def _one(self, namespace: str, container: containers_pb2.Container) -> bool:
        """Whether its task runs, or is about to."""
        wanted = container.labels[STATUS]
        try:
            process = await self._process(namespace, container.id)
            if process is not None:
                self._lost.discard((namespace, container.id))
            if wanted == "running" and process is not None and process.status in _GOING:
                return True
            if wanted == "running":
                lost = LOST if (namespace, container.id) in self._lost else 0
                if wants_restart(container.labels, process.exit_status if process is not None else lost):
                    return await self._again(namespace, container, process is not None)
            elif wanted == "stopped" and process is not None and process.status != task_pb2.STOPPED:
                log.info("%s/%s: stopping its task", namespace, container.id)
                await self._stop(namespace, container.id)
        except (errors.Error, ValueError, OSError) as error:
            log.error("%s/%s: %s", namespace, container.id, error)
        return False

    async def _again(self, namespace: str, container: containers_pb2.Container, old: bool) -> bool:
        key = namespace, container.id
        sources = host.bound(jsontext.loads(container.spec.value or b"{}"))
        lacking = await self._loop.run_in_executor(self._pool, host.unmounted, sources)
        if await self._loop.run_in_executor(self._pool, host.is_going_down):
            return False
        if lacking:
            if key not in self._mounting:
                self._mounting[key] = self._loop.create_task(self._mount(key, lacking))
            return True
        log.info("%s/%s: starting its task again", *key)
        self._lost.discard(key)
        await self._start(namespace, container, old)
        return True

    async def _mount(self, key: tuple[str, str], units: list[str]) -> None:
        """Have what a container uses mounted; the next look starts its task, or tries once more."""
        try:
            await self._apart(lambda: host.reach(*units))
        except OSError as error:
            log.warning("%s/%s is not started yet, for it uses %s: %s", *key, ", ".join(units), error)
        del self._mounting[key]
        self._look_again()

    async def _process(self, namespace: str, id: str) -> Process | None:
        """The state of a task, None if there is none."""
        try:
            return await self._tasks.get(namespace, id)
        except errors.NotFound:
            return None

    async def _start(self, namespace: str, container: containers_pb2.Container, old: bool) -> None:
        if old:
            await self._tasks.delete(namespace, container.id)
        key = PREFIX + "count"
        counted = containers_pb2.Container(id=container.id, labels={key: str(_started(container.labels) + 1)})
        await self._loop.run_in_executor(self._pool, self._containers.update, namespace, counted, [f"labels.{key}"])
        specification = jsontext.loads(container.spec.value)
        target = container.labels.get(PREFIX + "loguri", "")
        terminal = bool(target and specification.get("process", {}).get("terminal"))
        mounts: list[Mount] = []
        if container.snapshot_key:
            mounts = await self._loop.run_in_executor(
                self._pool, self._snapshots.mounts, namespace, container.snapshotter, container.snapshot_key
            )
        if label := specification.get("linux", {}).get("mountLabel"):
            for mount in mounts:
                mount.options.append(f'context="{label}"')
        output = Stdio(stdout=target, stderr="" if terminal else target, terminal=terminal)
        await self._tasks.create(namespace, container.id, output, mounts=mounts)
        await self._tasks.start(namespace, container.id)

    async def _stop(self, namespace: str, id: str) -> None:
        await self._tasks.kill(namespace, id, signal.SIGKILL, everyone=True)
        await self._tasks.wait(namespace, id)
        await self._tasks.delete(namespace, id)
