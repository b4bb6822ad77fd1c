# SPDX-License-Identifier: Apache-2.0
"""The verbs of a container: start, exit, stop, kill, pause, restart, remove. Called by routes, by the
monitor (exits) and by recovery.

    created ──start──▶ running ──exit──▶ exited ──remove──▶ gone
                          ▲                │
                          └─restart policy─┘

A container's lock is held while it changes; waiting for an exit is done without it.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from teu.engine.backend import containerd, tasks
from teu.engine.containers import defaults, health_rules, hostconfig, native_log, proc
from teu.engine.containers.model import Container
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound, NotModified
from teu.engine.core.times import nanoseconds, timestamp
from teu.engine.files import snapshots
from teu.engine.lifecycle import health, shimoptions
from teu.engine.spec import build, mounts
from teu.engine.streams.hub import FINISH_SECONDS
from teu.linux import trees
from teu.systemd import host

if TYPE_CHECKING:
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

Given = ParamSpec("Given")

KILL_SECONDS = 10
RESTART_FIRST = 0.1
RESTART_LONGEST = 60.0
RESTART_SETTLED = 10.0  # who ran this long starts again without delay


def stdio_paths(container: Container) -> tuple[str, str, str]:
    folder = container.runtime_directory
    stdin = f"{folder}/stdin" if container.config.open_stdin else ""
    return stdin, f"{folder}/stdout", "" if container.tty else f"{folder}/stderr"


def marker_path(container: Container) -> str:
    return f"{container.runtime_directory}/position"


# -- start ---------------------------------------------------------------------------------------------


def start(engine: Engine, container: Container, automatic: bool = False) -> None:
    with container.lock:
        if container.removing or container.removed:
            raise Conflict("container is marked for removal and cannot be started")
        container.must_be_alive()
        if container.state.paused:
            raise Conflict("cannot start a paused container, try unpause instead")
        if container.running and not container.state.restarting:
            raise NotModified("")
        cancel_restart(container)
        if not automatic:
            container.manually_stopped = False
            container.restart_delay = 0.0
            container.restart_count = 0
        try:
            pid = _run(engine, container)
        except Exception as error:
            _start_failed(engine, container, error)
            if isinstance(error, containerd.Error):
                raise _start_error(error) from None
            raise
        container.started_once = True
        container.ended = None
        container.out_of_memory = 0
        container.state.runs(pid, timestamp())
        container.save(durable=container.kept_running and not automatic)
        container.event("start")
        container.notify()
        look_after(engine, container)


def look_after(engine: Engine, container: Container) -> None:
    """Begin with the health checks of a container that runs."""
    health.start(engine, container, _unhealthy)


def _unhealthy(engine: Engine, container: Container, action: str) -> None:
    """What is to be done with a container that is not well. `kill` is no stop by a user: the restart policy holds."""
    try:
        if action == health_rules.RESTART:
            restart(engine, container, None)
        elif action == health_rules.STOP:
            stop(engine, container)
        elif action == health_rules.KILL:
            _send(engine, container, signal.SIGKILL)
    except NotModified:
        pass  # it ended by itself
    except Exception as error:
        log.warning("container %s: %s: %s", container.id[:12], action, error, extra=container.fields)


def _run(engine: Engine, container: Container) -> int:
    """All that a running container needs, in order; undone in reverse if a step fails. Its PID."""
    with contextlib.ExitStack() as sources, contextlib.ExitStack() as undo:
        Path(container.runtime_directory).mkdir(parents=True, exist_ok=True, mode=0o700)
        undo.callback(_release, engine, container)
        attachment = engine.endpoints.attach(container)
        specification = build.build(engine, container, attachment, sources)
        runtime = build.runtime(engine, container)
        options = shimoptions.told(runtime, build.systemd_cgroup(engine, container), engine.data_root)
        layers = snapshots.mounts(engine, container)
        paths = stdio_paths(container)
        undo.callback(container.hub.discard)
        container.hub.open(paths, marker_path(container))
        container.hub.prepare()
        container.visits.give_way(container.name)
        tasks.create_container(
            engine.containerd,
            container.id,
            container.name,
            container.config.image,
            runtime.shim,
            engine.config["storage-driver"],
            container.snapshot_key,
            specification,
            options,
        )
        undo.callback(_quietly, tasks.discard, engine.containerd, container.id)
        pid = tasks.create(engine.containerd, container.id, layers, paths, container.tty, options)
        container.pid_started = proc.started(pid)
        _quietly(native_log.begin, container, pid)
        pid = tasks.start(engine.containerd, container.id)
        undo.pop_all()
    container.hub.begin()
    return pid


def _quietly(function: Callable[Given, object], *arguments: Given.args, **named: Given.kwargs) -> None:
    try:
        function(*arguments, **named)
    except Exception as error:
        log.warning("%s failed, and what follows goes on: %s", getattr(function, "__qualname__", function), error)


def _release(engine: Engine, container: Container) -> None:
    """Give back what only a running container needs. Idempotent; never fails."""
    _quietly(engine.endpoints.detach, container)
    native_log.end(container)
    _quietly(mounts.drop_parts, container.runtime_directory)
    for point in container.mounts:
        if point.type == "volume" and point.name:
            _quietly(engine.volumes.unmount, point.name, container.id)
    _quietly(trees.unmount, f"{container.runtime_directory}/shm")
    trees.discard_tree(container.runtime_directory)


def _start_error(error: containerd.Error) -> EngineError:
    """With a status and words from which docker's clients tell 126 and 127."""
    message = f"failed to create task for container: {error}"
    return BadRequest(message) if tasks.code_of_refusal(message) != 128 else EngineError(message)


def _start_failed(engine: Engine, container: Container, error: Exception) -> None:
    message = str(error)
    with container.changed:
        status = "exited" if container.started_once else "created"
        container.state.fails(status, tasks.code_of_refusal(message), message, timestamp())
        container.save(durable=False)
        container.exits += 1
        container.notify()
    container.hub.end_clients()
    if container.auto_remove:
        _quietly(remove, engine, container)


# -- exit ----------------------------------------------------------------------------------------------


def exited(engine: Engine, container: Container, pid: int, found: tasks.Exit, restart: bool = True) -> None:
    """The container's first process is gone. pid 0: whichever it was. restart: now, if the policy has it so."""
    with container.lock:
        if container.state.dead and pid == container.pid:
            container.state.pid = 0  # what nobody looked after has ended; the task stays until the removal
        if container.removed or not container.running or not container.pid or pid not in (0, container.pid):
            return
        if engine.stopping.is_set():
            return  # the next engine finds the stopped task
        health.stop(container)
        # With the task goes what its FIFOs hold, and we may die between its deletion and the log's last line.
        logged = container.hub.drain()
        told = _delete_task(engine, container, found)
        if told is None:
            return
        container.hub.finish(FINISH_SECONDS if logged else 0.0)
        _end_execs(container)
        _quietly(_release, engine, container)
        # What ends with the host runs again with it (containers/boot.py). systemd is asked before anything is changed:
        # who looks meanwhile is to see a container that runs or one that restarts, and not one that has exited.
        restart = restart and container.host_config.restart_policy.name not in ("", "no")
        restart = restart and not engine.stopping.is_set() and not host.is_going_down()
        if _note_end(engine, container, told, restart):
            # Who waits for the removal gets the exit code, and need not wait for the disk.
            _quietly(remove, engine, container)
            return
        _quietly(tasks.delete_container, engine.containerd, container.id)


def out_of_memory(container: Container, pid: int) -> None:
    """Of a container's process it was said that it was killed; it may go on, since the kernel kills one of all."""
    with container.lock:
        if pid and container.pid == pid:  # else its exit has taken it over
            container.state.oom_killed = True
            container.save(durable=False)
    container.event("oom")


def _delete_task(engine: Engine, container: Container, found: tasks.Exit) -> tasks.Exit | None:
    """The end as containerd knows it; `found`, where that knows none. None: ask again later."""
    if container.ended:
        found = tasks.Exit(*container.ended)
    elif found.moment:
        # With the task goes containerd's knowledge, and we may die between its deletion and our record.
        container.ended = (found.status, found.moment)
        container.save(durable=False)
    try:
        told = tasks.delete(engine.containerd, container.id)
    except containerd.Unavailable:
        return None  # the next reconciliation will find it
    except containerd.Error as error:
        if engine.stopping.is_set():
            return None
        log.warning("container %s: the task cannot be deleted: %s", container.id[:12], error, extra=container.fields)
        return found
    return told if told is not None and (told.moment or not found.moment) else found


def _end_execs(container: Container) -> None:
    for identity, execution in list(container.execs.items()):
        if execution.ended.is_set():
            container.execs.pop(identity, None)
        else:
            # One that is just being started is held by its starter, and need not hold us.
            threading.Thread(target=execution.container_exited, daemon=True).start()


def _note_end(engine: Engine, container: Container, found: tasks.Exit, restart: bool) -> bool:
    """Set and save the state of a container that has ended, or is to be started again. Whether it is to be removed:
    then nobody has been told yet."""
    started = container.state.started_at
    # Whoever waits for the exit is told when all of it is done, and not in the middle.
    with container.changed:
        going = container.auto_remove
        durable = container.kept_running
        killed = container.state.oom_killed or container.out_of_memory == container.pid
        container.exits += 1
        container.ended = None
        container.state.ends(found.status, timestamp(found.moment or None), killed)
        if restart and _wants_restart(container):
            going = durable = False
            _schedule_restart(engine, container, _duration(started))
        container.event("die", exitCode=str(found.status), execDuration=str(_duration(started)))
        if not going:
            container.save(durable)
            container.notify()
    return going


def _duration(started: str) -> int:
    return max(0, (time.time_ns() - nanoseconds(started)) // 1_000_000_000)


def _wants_restart(container: Container) -> bool:
    policy = container.host_config.restart_policy
    if container.manually_stopped or container.removing:
        return False
    name = policy.name
    if name in ("always", "unless-stopped"):
        return True
    if name == "on-failure" and container.state.exit_code != 0:
        most = policy.maximum_retry_count
        return not most or container.restart_count < most
    return False


def _schedule_restart(engine: Engine, container: Container, ran: float) -> None:
    if ran >= RESTART_SETTLED or not container.restart_delay:
        container.restart_delay = RESTART_FIRST
    else:
        container.restart_delay = min(container.restart_delay * 2, RESTART_LONGEST)
    container.restart_count += 1
    container.state.waits()
    timer = threading.Timer(container.restart_delay, _restart_now, (engine, container))
    timer.daemon = True
    container.restart_timer = timer
    timer.start()


def _restart_now(engine: Engine, container: Container) -> None:
    with container.lock:
        if container.restart_timer is None or container.removed or engine.stopping.is_set():
            return
        if host.is_going_down():
            return  # it is still recorded as one that is to run
        container.restart_timer = None
        try:
            start(engine, container, automatic=True)
        except NotModified:
            pass
        except Exception as error:
            log.warning("container %s cannot be restarted: %s", container.id[:12], error, extra=container.fields)
            if _wants_restart(container) and not container.removed:
                _schedule_restart(engine, container, 0)
                container.save(durable=False)


def cancel_restart(container: Container) -> None:
    if container.restart_timer is not None:
        container.restart_timer.cancel()
        container.restart_timer = None


# -- stop, kill, pause -----------------------------------------------------------------------------------


def wait_exit(container: Container, timeout: float | None) -> bool:
    """False: it still runs after that many seconds; any number of them that a client may name."""
    before = container.exits
    if timeout is not None and timeout > threading.TIMEOUT_MAX:
        timeout = None  # 292 years and more
    with container.changed:
        return container.changed.wait_for(
            lambda: not container.running or container.removed or container.exits != before, timeout
        )


def stop(engine: Engine, container: Container, timeout: int | None = None, signal_name: str = "") -> None:
    if not container.running:
        raise NotModified("")
    with container.lock:
        container.manually_stopped = True
        if container.state.restarting:
            cancel_restart(container)
            container.state.rests()
            container.save()
            container.notify()
            container.event("stop")
            return
        if container.kept_running:
            container.save()
    number = hostconfig.signal_number(signal_name or container.config.stop_signal or "TERM")
    if timeout is None:
        timeout = defaults.stop_seconds(container.config, engine.config)
    try:
        _send(engine, container, number)
        if container.state.paused:
            _quietly(tasks.resume, engine.containerd, container.id)
        gone = wait_exit(container, None if timeout < 0 else timeout)
    except NotModified:
        gone = True
    if not gone:
        with contextlib.suppress(NotModified):
            _send(engine, container, signal.SIGKILL)
            if not wait_exit(container, KILL_SECONDS):
                raise EngineError(f"cannot stop container: {container.name}: it did not exit after SIGKILL")
    container.event("stop")


def _signal_task(engine: Engine, container: Container, number: int) -> None:
    """The signal, also while containerd has not yet noticed that the shim is dead: it ends the task then."""
    deadline = time.monotonic() + KILL_SECONDS
    while True:
        try:
            tasks.kill(engine.containerd, container.id, number)
            return
        except containerd.Error as error:
            if "ttrpc: closed" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _send(engine: Engine, container: Container, number: int) -> None:
    try:
        _signal_task(engine, container, number)
    except (containerd.NotFound, containerd.FailedPrecondition):
        # It has exited; the monitor is about to say so.
        if not wait_exit(container, KILL_SECONDS):
            reconcile(engine, container)
        raise NotModified("") from None
    container.event("kill", signal=str(int(number)))


def kill(engine: Engine, container: Container, signal_name: str = "") -> None:
    try:
        number = hostconfig.signal_number(signal_name or "KILL")
    except BadRequest as error:
        reason = str(error)
        if signal_name.strip("0").isdigit():
            reason = f"the linux daemon does not support signal {signal_name}"
        raise BadRequest(f"cannot kill container: {container.name}: {reason}") from None
    if not container.running or not container.pid:
        # A start that is under way comes first: somebody may have seen what the container did since.
        with container.lock:
            if container.state.restarting:
                container.manually_stopped = True
                cancel_restart(container)
                container.state.rests()
                container.save()
                container.notify()
                return
            if not container.running or not container.pid:
                raise Conflict(f"cannot kill container: {container.name}: container {container.id} is not running")
    if number in (signal.SIGKILL, hostconfig.signal_number(container.config.stop_signal or "TERM")):
        with container.lock:
            container.manually_stopped = True
            if container.kept_running:
                container.save()
    try:
        _send(engine, container, number)
    except NotModified:
        raise Conflict(f"cannot kill container: {container.name}: container {container.id} is not running") from None
    if number == signal.SIGKILL and not wait_exit(container, KILL_SECONDS):
        reconcile(engine, container)


def restart(engine: Engine, container: Container, timeout: int | None, signal_name: str = "") -> None:
    with container.changed:
        container.comes_back += 1
    try:
        if container.running:
            # As long as any restart is stopping it, its exit is not its end.
            with container.changed:
                container.being_restarted += 1
            try:
                with contextlib.suppress(NotModified):
                    stop(engine, container, timeout, signal_name)
            finally:
                with container.changed:
                    container.being_restarted -= 1
        with contextlib.suppress(NotModified):
            start(engine, container)
    finally:
        with container.changed:
            container.comes_back -= 1
            container.changed.notify_all()
    container.event("restart")


def pause(engine: Engine, container: Container) -> None:
    with container.lock:
        if not container.running or not container.pid:
            raise Conflict(f"container {container.id} is not running")
        if container.state.paused:
            raise Conflict(f"Container {container.id} is already paused")
        try:
            tasks.pause(engine.containerd, container.id)
        except containerd.Error as error:
            raise EngineError(f"Cannot pause container {container.id}: {error}") from None
        container.state.pauses(True)
        container.save(durable=False)
    container.event("pause")


def unpause(engine: Engine, container: Container) -> None:
    with container.lock:
        if not container.state.paused:
            raise Conflict(f"Container {container.id} is not paused")
        try:
            tasks.resume(engine.containerd, container.id)
        except containerd.Error as error:
            raise EngineError(f"Cannot unpause container {container.id}: {error}") from None
        container.state.pauses(False)
        container.save(durable=False)
    container.event("unpause")


def reconcile(engine: Engine, container: Container) -> None:
    """Ask containerd whether a container that should run does."""
    if not container.running or not container.pid:
        return
    with container.lock:
        if not container.running or not container.pid:
            return
        task = tasks.get(engine.containerd, container.id)
        if task is None:
            exited(engine, container, 0, tasks.Exit(*(container.ended or (255, time.time_ns()))))
        elif task.status == "STOPPED":
            exited(engine, container, 0, task.exit)


# -- remove --------------------------------------------------------------------------------------------


def remove(engine: Engine, container: Container, force: bool = False, volumes: bool = False, asked: str = "") -> None:
    """volumes: the anonymous ones, too. --rm implies it. asked: what the client calls the container."""
    asked = asked or container.name
    if not force:
        _must_not_run(container, asked)
    if container.removing and not container.auto_remove:
        raise Conflict(f"removal of container {asked} is already in progress")
    container.removing = True
    try:
        while not container.removed:
            if container.running:
                _kill_for_removal(engine, container, asked)
            with container.lock:
                if container.removed:
                    return
                if container.running:
                    # It was being started: the lock is free again now that it runs.
                    if not force:
                        _must_not_run(container, asked)
                    continue
                cancel_restart(container)
                _quietly(engine.endpoints.detach, container)
                _quietly(engine.volumes.release, container.id, volumes or container.auto_remove)
                engine.containers.remove(container)
                container.removed = True
                container.event("destroy")
                container.notify()
                container.hub.end_clients()
                if container.hub.driver is not None:
                    _quietly(container.hub.driver.remove)
    except BaseException:
        container.removing = False
        raise
    container.visits.end(container.name)
    # What is left is swept at the next start if the daemon dies here, and when containerd is back if that dies.
    _quietly(_remove_from_containerd, engine, container)
    trees.discard_tree(container.directory)
    trees.discard_tree(container.runtime_directory)


def prune(engine: Engine, chosen: Callable[[Container], bool]) -> tuple[list[str], int]:
    """Remove those of the chosen that do not run: their ids, and how many bytes that freed."""
    deleted, freed = [], 0
    for container in engine.containers.all():
        if container.running or container.removing or not chosen(container):
            continue
        size = snapshots.size(engine, container)
        try:
            remove(engine, container)
        except (Conflict, NotFound):
            continue
        deleted.append(container.id)
        freed += size
    engine.events.publish("container", "prune", "", {"reclaimed": str(freed)})
    return deleted, freed


def _remove_from_containerd(engine: Engine, container: Container) -> None:
    with engine.containerd.making(container.id):
        if container.state.dead:
            tasks.discard(engine.containerd, container.id)  # its processes may be there still
        else:
            tasks.delete_container(engine.containerd, container.id)
        snapshots.remove(engine, container)


def _must_not_run(container: Container, asked: str) -> None:
    if container.state.dead and container.pid:
        raise Conflict(
            f'cannot remove container "{asked}": it is dead, but its processes run: force remove, which ends them'
        )
    if container.running:
        hint = ": stop the container before removing or force remove"
        state = "paused and must be unpaused first" if container.state.paused else container.status() + hint
        raise Conflict(f'cannot remove container "{asked}": container is {state}')


def _kill_for_removal(engine: Engine, container: Container, asked: str) -> None:
    container.manually_stopped = True
    with container.lock:
        if container.state.restarting:
            cancel_restart(container)
            container.state.rests()
            return
    with contextlib.suppress(NotModified, Conflict):
        _send(engine, container, signal.SIGKILL)
    if not wait_exit(container, KILL_SECONDS):
        reconcile(engine, container)
        if container.running:
            raise EngineError(
                f'cannot remove container "{asked}": could not kill container: it did not exit after SIGKILL'
            )
