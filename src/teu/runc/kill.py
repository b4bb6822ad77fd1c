# SPDX-License-Identifier: Apache-2.0
"""teu-runc kill: send a signal to a container's first process."""

from __future__ import annotations

import os
import select
import time

from teu.linux.syscalls import NR_pidfd_send_signal, syscall
from teu.runc import state
from teu.runc.errors import NotRunning, RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "send a signal (default: SIGTERM) to the container's first process"
USAGE = "<container-id> [signal]"
FLAGS = {"all": ("a", "bool", False, "obsolete: all processes get SIGKILL with the first one anyway")}
ARGUMENTS = (1, 2)

_SIGKILL = 9


def number_of(text: str) -> int:
    """ "9", "KILL", "SIGKILL", "rtmin+3" as a number."""
    if text.isascii() and text.removeprefix("-").isdigit():
        return int(text)
    from teu.linux import signals  # the shim gives numbers: 0.1 ms that its kills do not pay

    try:
        return signals.named(text)
    except ValueError:
        raise RuncError(f'unknown signal "{text}"') from None


def send(container: state.Container, signal: int) -> None:
    """Signal the first process. SIGKILL reaches all of the container, also without a pid namespace of its own."""
    if not container.pid:
        raise NotRunning
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        pidfd = -1
    try:
        alive = pidfd >= 0 and container.init_alive()
        if signal == _SIGKILL and not container.record.get("own_pid_namespace", True):
            # The first process may be gone while others live: the cgroup has all of them.
            if not _kill_cgroup(container) and not alive:
                raise NotRunning
            return
        if not alive:
            raise NotRunning
        try:
            syscall("kill", NR_pidfd_send_signal, pidfd, signal, None, 0)
        except ProcessLookupError:
            raise NotRunning from None
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    if signal == _SIGKILL and container.frozen():
        from teu.runc import cgroups  # 1 ms with all that it needs

        cgroups.load(container.record["cgroup"]).thaw()


def _kill_cgroup(container: state.Container) -> bool:
    """Kill what is in the cgroup; whether anything was."""
    from teu.runc import cgroups  # 1 ms with all that it needs

    if not container.record.get("cgroup"):
        return False
    cgroup = cgroups.load(container.record["cgroup"])
    had_processes = bool(cgroup.pids())
    cgroup.kill()
    return had_processes


def wait_gone(container: state.Container, seconds: float) -> bool:
    """Wait until the first process has ended (a zombie has)."""
    if not container.init_alive():
        return True
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + seconds
        while container.init_alive():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(int(left * 1000) + 1)
            if container.init_alive():
                time.sleep(0.001)
    finally:
        os.close(pidfd)
    return True


def main(arguments: Arguments, settings: Settings) -> int:
    container = state.load(settings.root, arguments.positional[0])
    signal = number_of(arguments.positional[1] if len(arguments.positional) > 1 else "TERM")
    try:
        send(container, signal)
    except NotRunning:
        if not arguments["all"]:
            raise
    return 0
