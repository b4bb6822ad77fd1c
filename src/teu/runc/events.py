# SPDX-License-Identifier: Apache-2.0
"""teu-runc events: usage every few seconds and out-of-memory kills, a JSON object per line.

    {"type": "stats", "id": "...", "data": {"cpu": ..., "memory": ..., "pids": ..., ...}}
    {"type": "oom", "id": "..."}

It ends when the container does. With --stats it prints one stats event and ends.
"""

from __future__ import annotations

import os
import select
import time

from teu.linux import cgroup_stats, cgroups
from teu.oci import jsontext
from teu.oci.units import parse_duration
from teu.runc import state
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "display container events such as OOM notifications, cpu, memory, and IO usage statistics"
USAGE = "<container-id>"
FLAGS: dict[str, tuple[str, str, object, str]] = {
    "interval": ("", "string", "5s", "set the stats collection interval"),
    "stats": ("", "bool", False, "display the container's stats then exit"),
}
ARGUMENTS = (1, 1)


def duration(text: str) -> float:
    """Seconds of a duration as Go writes it: 500ms, 1m30s."""
    try:
        total = parse_duration(text)
    except ValueError:
        raise RuncError(f'invalid value "{text}" for flag -interval: not a duration as 5s or 500ms') from None
    if total <= 0:
        raise RuncError("duration interval must be greater than 0")
    return total / 1e9


def emit(kind: str, container_id: str, data: Any = None) -> None:
    event = {"type": kind, "id": container_id}
    if data is not None:
        event["data"] = data
    os.write(1, jsontext.to_bytes(event) + b"\n")


def main(arguments: Arguments, settings: Settings) -> int:
    interval = duration(arguments["interval"])
    container = state.load(settings.root, arguments.positional[0])
    if container.status() == state.STOPPED:
        raise RuncError(f"container with id {container.id} is not running")
    path = container.record["cgroup"]["path"]
    if not path:
        raise RuncError(f"container {container.id} runs without a cgroup of its own (rootless): nothing is counted")
    if arguments["stats"]:
        emit("stats", container.id, cgroup_stats.stats(path))
        return 0
    follow(container, path, interval)
    return 0


def follow(container: state.Container, path: str, interval: float) -> None:
    """Emit until the first process has ended or the cgroup is empty.

    The kernel reports changes of the events files by POLLPRI, but drops one that is less than 10 ms old
    when the cgroup is removed: the end of the first process is what can be relied on.
    """
    poller = select.poll()
    try:
        init = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return
    poller.register(init, select.POLLIN)
    files = {}
    for name in ("cgroup.events", "memory.events"):
        try:
            files[name] = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Without the memory controller nothing is killed for its memory.
            continue
        poller.register(files[name], select.POLLPRI)
    kills = cgroups.oom_kills(path)
    due = time.monotonic() + interval
    alive = True
    try:
        while alive:
            poller.poll(max(0.0, due - time.monotonic()) * 1000)
            # Asked before the files are read: what has killed it is in them.
            alive = container.init_alive()
            try:
                # Reading is what makes the next change known.
                populated = b"populated 1" in os.pread(files["cgroup.events"], 4096, 0)
                if "memory.events" in files:
                    os.pread(files["memory.events"], 4096, 0)
                    count = cgroups.oom_kills(path)
                    for _ in range(count - kills):
                        emit("oom", container.id)
                    kills = max(kills, count)
            except (OSError, KeyError):
                return
            if not populated:
                return
            if alive and time.monotonic() >= due:
                emit("stats", container.id, cgroup_stats.stats(path))
                # What took longer than the interval is not made up for.
                due = time.monotonic() + interval
    finally:
        os.close(init)
        for descriptor in files.values():
            os.close(descriptor)
