# SPDX-License-Identifier: Apache-2.0
"""What a running container needs the engine for, and how the engine leaves when none does.

    its output        systemd watches the FIFOs of those that are quiet (teu.systemd.output), and starts the engine when
                      one says something; the shim keeps what it says until then
    its end           the shim tells teu-containerd, which wakes the engine: exit code, restart policy, --rm; before a
                      shutdown of the host ends it, and where its scope ends without a word of a shim, systemd starts
                      both. With another containerd the engine stays
    its names, ports  the resolver, and the ports of the host, are the engine's: it stays
    its way out       rules that somebody takes away with all others are made anew, and the copy of the host's
                      resolv.conf follows: systemd watches both, and starts the engine
    its health        the checks are run here: it stays; so it does for further processes, and while it restarts
    its log           a driver that sends to others has a connection, or memory, here: it stays

A managed plugin that is enabled is started again from here, and its output is read here: the engine stays.

Called by the daemon, when nobody has been connected for a while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from teu.engine.backend import containerd, tasks
from teu.engine.lifecycle import run
from teu.engine.networks import hostnames
from teu.linux import cgroup_files
from teu.systemd import host, output

if TYPE_CHECKING:
    from teu.engine.containers.model import Container
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

# Log drivers that write to this host, and have nothing in memory.
LOCAL_LOGS = ("journald", "json-file", "local", "none")

# The unit of the containerd that has this address; of another nobody knows a unit.
CONTAINERD = ("teu-containerd.service", "/run/teu/containerd.sock")


def needs(engine: Engine, container: Container, seconds: float) -> str:
    """Why a container needs the engine now, as the end of a sentence; "" where it does not. `seconds`: how long its
    output has to have been quiet."""
    if container.comes_back:
        return "it is started anew"  # between its end and its start, too
    if not container.running:
        return ""
    if container.state.restarting or not container.pid:
        return "it is about to start"
    if container.health is not None:
        return "its health is checked"
    if any(not execution.ended.is_set() for execution in container.execs.values()):
        return "another process runs in it"
    if container.log_type not in LOCAL_LOGS or container.host_config.log_config.config.get("mode") == "non-blocking":
        return f"its log goes to {container.log_type} from here"
    if engine.endpoints.serves(container):
        return "its ports or its names are served"
    if not container.hub.quiet(time.monotonic() - seconds):
        return "its output is not quiet, or ends in the middle of a line"
    return ""


def idle(engine: Engine, seconds: float) -> bool:
    """Whether no container needs the engine, and no managed plugin."""
    return not engine.plugins.needs_engine() and not any(
        needs(engine, container, seconds) for container in engine.containers.all()
    )


def all_run(engine: Engine) -> bool:
    """Whether all that the engine takes to run does, by containerd: no end is on its way. False where it cannot say."""
    running = [container.id for container in engine.containers.all() if container.running]
    if not running:
        return True
    try:
        known = tasks.list_tasks(engine.containerd)
    except containerd.Error as error:
        log.warning("tasks cannot be listed: %s", error)
        return False
    return all(id in known and known[id].status in ("RUNNING", "PAUSED", "PAUSING") for id in running)


class Pipe(NamedTuple):
    """A FIFO: a container that is started anew has others at the same paths."""

    path: str
    inode: int


def _pipes(container: Container) -> list[Pipe]:
    found = []
    for path in run.stdio_paths(container)[1:]:
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            found += [Pipe(path, os.stat(path).st_ino)] if path else []
    return found


def hand_over(engine: Engine, watched: set[Pipe]) -> bool:
    """The engine is about to leave: systemd watches what it has read until now, but for what is watched already. False:
    it cannot.

    What is said from here on is in a FIFO, and starts the next engine as soon as this one has gone."""
    fresh = {
        container: pipes
        for container in engine.containers.all()
        if container.running and (pipes := [pipe for pipe in _pipes(container) if pipe not in watched])
    }
    if not fresh:
        return True
    try:
        if not engine.containerd.wakes():
            log.debug("the containerd at %s would tell nobody of a container's end", engine.containerd.address)
            return False
    except containerd.Error as error:
        log.warning("containerd does not say whether it would tell of a container's end: %s", error)
        return False
    pipes = [pipe for some in fresh.values() for pipe in some]
    daemons = [output.DAEMON] if engine.containerd.address != CONTAINERD[1] else [CONTAINERD[0], output.DAEMON]
    units = filter(None, (unit_of(container.pid) for container in fresh))
    try:
        paths = [pipe.path for pipe in pipes]
        output.watch(paths, units, daemons, hostnames.files(), rules=engine.endpoints.has_rules())
    except (OSError, ValueError) as error:
        log.warning("systemd cannot watch the output of containers: %s", error)
        return False
    watched.update(pipes)
    return True


def unit_of(pid: int) -> str:
    """The unit of the host's systemd that a container's process is in; "" where it is in none. Below that the names are
    the container's own: of a systemd in it, or whatever it likes."""
    try:
        parts = cgroup_files.own(pid).split("/")
    except OSError:
        return ""
    return next((part.removeprefix("_") for part in parts if part.endswith((".scope", ".service"))), "")


def shutdown_woke_us() -> bool:
    """Whether systemd has started the engine because the host goes down, and stops no container before it is ready."""
    return output.is_watched() and host.is_going_down()


def take_back(*, going_down: bool) -> None:
    """The engine is here again, and reads the output itself. Never fails: watching on wakes who is awake."""
    try:
        output.unwatch(going_down=going_down)
    except OSError as error:
        log.warning("systemd still watches the output of containers: %s", error)
