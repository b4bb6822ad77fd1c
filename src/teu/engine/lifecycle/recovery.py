# SPDX-License-Identifier: Apache-2.0
"""What the engine does at its start: make engine.db and containerd agree, whatever died when.

in engine.db        in containerd        then
running             task runs            it goes on: streams are opened again, health checks resume
running             task stopped         its exit is handled now, with its code and its time
running             nothing              the engine died while it handled the exit, whose code it had noted; or it ended
                                         with the machine (or its shim): exit code 255; it starts again as below
restarting          -                    it is started again
not running         task runs            the engine died between start and its record: it runs
not running         task stopped         the same, and it has exited since
not running         task created         half-made: removed
running             nobody can say yet   it goes on as it was: the monitor asks again
not running         nobody can say yet   left alone
(no record)         anything             removed: container, task, snapshot, folders
damaged             anything             left alone: it is dead, and its removal takes all of it

Then, once the host is ready for them (restore.py), those start that a restart policy has running.

Each step is taken for each container on its own: where one fails, that is logged, the container is dead with the
reason in its State.Error, and everything else goes on. What fails because containerd is away is tried again by the
monitor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from teu.engine.backend import containerd, tasks
from teu.engine.containers import boot, proc, runtimes
from teu.engine.containers.model import Container
from teu.engine.core.errors import Conflict
from teu.engine.core.times import timestamp
from teu.engine.lifecycle import execs, run
from teu.engine.lifecycle.create import OWNER_LABEL
from teu.engine.spec import mounts
from teu.linux import trees

if TYPE_CHECKING:
    from teu.engine.engine import Engine
    from teu.engine.lifecycle.monitor import Monitor
    from teu.engine.lifecycle.restore import Restore

log = logging.getLogger("teu.engine")


# How long the first request waits at the most for what is to be known by then.
SETTLE_SECONDS = 5.0
# After so long without an answer it is looked whether containerd is there at all.
FIRST_SECONDS = 5.0


def recover(engine: Engine, monitor: Monitor, restore: Restore) -> None:
    """Before the first request: what runs is known to run, and what has ended to have ended. The rest follows in the
    background, as would the endings of very many."""
    engine.plugins.recover()
    if not engine.containers.all() and not os.path.isdir(f"{engine.data_root}/containers"):
        # A first start: no need to wake containerd for it.
        Path(f"{engine.data_root}/containers").mkdir(mode=0o710)
        engine.endpoints.recover([])
        threading.Thread(target=_first, args=(engine, monitor), name="first", daemon=True).start()
        return
    engine.containerd.ensure_namespace(FIRST_SECONDS)
    known = tasks.list_tasks(engine.containerd)
    running: list[Container] = []
    ended: list[tuple[Container, tasks.Exit]] = []
    fresh: list[Container] = []
    lost: set[str] = set()
    dead: list[Container] = []  # whose processes run: nobody else may have their addresses
    before = engine.containers.all()
    for container in before:
        task = known.get(container.id)
        going = task is not None and task.status in ("RUNNING", "PAUSED", "PAUSING")
        if container.damage:
            if task is not None and going:
                container.state.pid = task.pid
                dead.append(container)
            continue
        with _boundary(engine, container):
            if task is not None and going:
                _adopt(container, task)
                running.append(container)
            elif task is not None and task.status == "STOPPED":
                _adopt(container, task)
                ended.append((container, task.exit))
            elif task is not None and task.unknown:
                log.warning("container %s: its shim does not answer yet", container.id[:12], extra=container.fields)
                if container.running and container.pid:
                    _adopt(container, task._replace(pid=container.pid))
                    running.append(container)
            elif container.running and container.pid:
                lost.add(container.id)
                ended.append((container, tasks.Exit(*(container.ended or (255, 0)))))
            elif container.running:  # it was waiting to be restarted
                container.state.rests()
                fresh.append(container)
            elif task is not None:
                tasks.discard(engine.containerd, container.id)
        if task is not None and going and container.state.dead:
            container.state.pid = task.pid
            dead.append(container)
    engine.endpoints.recover(running + dead + [container for container, _ in ended])
    monitor.start()
    settled = threading.Event()
    arguments = (engine, restore, before, running, ended, fresh, lost, settled)
    threading.Thread(target=_rest, args=arguments, name="recovery", daemon=True).start()
    settled.wait(SETTLE_SECONDS)


@contextlib.contextmanager
def _boundary(engine: Engine, container: Container) -> Iterator[None]:
    """Around one step for one container: what goes wrong ends here."""
    try:
        yield
    except containerd.Error as error:
        if not engine.stopping.is_set():
            log.warning("container %s is not recovered yet: %s", container.id[:12], error, extra=container.fields)
    except Exception as error:
        if engine.stopping.is_set() or container.removed:
            return
        log.exception(
            "container %s (%s) cannot be recovered", container.id[:12], container.name, extra=container.fields
        )
        container.die(f"it could not be recovered: {type(error).__name__}: {error}")
        container.notify()


def _first(engine: Engine, monitor: Monitor) -> None:
    try:
        engine.containerd.ensure_namespace()
        monitor.start()
        sweep(engine)
    except Exception as error:
        log.error("containerd cannot be reached: %s", error)


def _adopt(container: Container, task: tasks.Task) -> None:
    """A task of this container is there: open its streams again."""
    if not container.running or container.pid != task.pid:
        container.started_once = True
        container.ended = None
        container.state.at_once(started_at=timestamp(), error="", exit_code=0)
        container.pid_started = 0
    container.pid_started = container.pid_started or proc.started(task.pid)
    paused = container.state.paused if task.unknown else task.status in ("PAUSED", "PAUSING")
    container.state.goes_on(task.pid, paused)
    Path(container.runtime_directory).mkdir(parents=True, exist_ok=True, mode=0o700)
    container.hub.open(run.stdio_paths(container), run.marker_path(container))
    container.hub.begin()
    container.save(durable=False)


def _rest(
    engine: Engine,
    restore: Restore,
    before: list[Container],
    running: list[Container],
    ended: list[tuple[Container, tasks.Exit]],
    fresh: list[Container],
    lost: set[str],
    settled: threading.Event,
) -> None:
    """`before`: all that there were. What clients make meanwhile is theirs: one with --rm is not started yet."""
    try:
        _remember_memory(engine, [container for container, _ in ended if container.id not in lost])
        for container, found in ended:
            with _boundary(engine, container):
                moment = found.moment or time.time_ns()
                end = tasks.Exit(found.status, moment)
                run.exited(engine, container, 0, end, restart=container.id not in lost)
        settled.set()
        for container in running:
            _looked_after(engine, container)
        _remember_memory(engine, running)
        chosen = []
        for container in before:
            if container.running or container.removed or container.state.dead:
                continue
            if container.auto_remove:
                _remove(engine, container)
            elif container in fresh:
                chosen.append(container)
            elif boot.starts_again(container) and (container.id in lost or not engine.boot.resumed):
                container.manually_stopped = False
                container.restart_count = 0
                chosen.append(container)
        restore.start(chosen, lambda container: _start(engine, container))
        engine.volumes.settle()
        sweep(engine)
    except Exception:
        if not engine.stopping.is_set():
            log.exception("recovery was not completed")
    finally:
        settled.set()


def _remember_memory(engine: Engine, containers: list[Container]) -> None:
    """Of which of them the kernel has killed a process for want of memory, while nobody heard of it."""
    try:
        short = tasks.short_of_memory(engine.containerd, [container.id for container in containers])
    except containerd.Error as error:
        log.warning("it cannot be learnt who was short of memory meanwhile: %s", error)
        return
    for container in containers:
        if container.id in short and not container.state.oom_killed:
            with _boundary(engine, container):
                run.out_of_memory(container, container.pid)


def _looked_after(engine: Engine, container: Container) -> None:
    """A running container gets its execs and its health checks back. It runs on where that fails."""
    for step in (execs.adopt, run.look_after):
        try:
            step(engine, container)
        except Exception:
            if not engine.stopping.is_set():
                log.exception(
                    "container %s runs, but %s failed", container.id[:12], step.__qualname__, extra=container.fields
                )


def _remove(engine: Engine, container: Container) -> None:
    """--rm, which an earlier engine did not come to."""
    try:
        run.remove(engine, container)
    except Conflict:
        pass  # somebody has just started it, or removes it already
    except Exception as error:
        if not engine.stopping.is_set():
            log.warning("container %s cannot be removed: %s", container.id[:12], error, extra=container.fields)


def _start(engine: Engine, container: Container) -> None:
    try:
        run.start(engine, container, automatic=True)
    except Exception as error:
        log.warning("container %s cannot be started: %s", container.id[:12], error, extra=container.fields)


def sweep(engine: Engine) -> None:
    """Remove what no record stands for and nobody is making. Called once at the start, and by the sweep of images
    whenever something broke."""
    from teu.api.services.snapshots.v1 import snapshots_pb2

    if engine.containers.lost:
        log.warning(
            "what no record stands for is not removed while a damaged record has lost its id: it may be that"
            " container's; remove the dead container"
        )
        return
    working = engine.containerd.working
    # The tasks first: each has its container from before it until after it, so a builder's step is known as that.
    running = tasks.list_tasks(engine.containerd)
    made, steps = tasks.list_containers(engine.containerd)
    for identity in {*made, *running}.difference(steps):
        if engine.containers.find(identity) is None:
            if identity not in made:
                tasks.stand_for(engine.containerd, identity, runtimes.find("", engine.config).shim)
            log.info("removing container %s, which no record stands for", identity[:12])
            tasks.discard(engine.containerd, identity)
    request = snapshots_pb2.ListSnapshotsRequest(
        snapshotter=engine.config["storage-driver"], filters=[f'labels."{OWNER_LABEL}"']
    )
    for response in engine.containerd.snapshots.List(request):
        for info in response.info:
            owner = dict(info.labels).get(OWNER_LABEL)
            # In this order: a create ends with the record, and is under way until then.
            if owner is not None and owner not in working and engine.containers.find(owner) is None:
                log.info("removing snapshot %s, which no record stands for", info.name[:12])
                with contextlib.suppress(containerd.NotFound, containerd.FailedPrecondition):
                    engine.containerd.snapshots.Remove(
                        snapshots_pb2.RemoveSnapshotRequest(snapshotter=engine.config["storage-driver"], key=info.name)
                    )
    for top in (f"{engine.data_root}/containers", engine.exec_root):
        for entry in os.scandir(top):
            owner = entry.name.removesuffix(mounts.PARTS)
            if owner != entry.name and owner not in working and engine.containers.find(owner) is None:
                mounts.drop_parts(f"{top}/{owner}")
            if len(entry.name) == 64 and entry.name not in working and engine.containers.find(entry.name) is None:
                with contextlib.suppress(OSError):
                    trees.unmount(f"{entry.path}/shm")
                trees.discard_tree(entry.path)
