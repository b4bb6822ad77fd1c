# SPDX-License-Identifier: Apache-2.0
"""teu-runc run: create and start in one; without --detach also wait and delete."""

from __future__ import annotations

import os

from teu.linux.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from teu.runc import hooks, state
from teu.runc.descriptors import receive
from teu.runc.errors import RuncError, text_of
from teu.runc.launch import LAUNCH_FLAGS, Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "create and run a container"
USAGE = "<container-id>"
FLAGS = {
    **LAUNCH_FLAGS,
    "detach": ("d", "bool", False, "leave the container's process to itself"),
    "keep": ("", "bool", False, "do not delete the container after it exits"),
    "no-subreaper": ("", "bool", False, "do not become the parent of orphaned processes"),
}
ARGUMENTS = (1, 1)


def main(arguments: Arguments, settings: Settings) -> int:
    detached = arguments["detach"]
    launch = Launch(arguments, settings, arguments.positional[0], with_fifo=False)
    try:
        launch.read(detached)
        signals = None
        launch.in_foreground = not detached
        if not detached and not arguments["no-subreaper"]:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
        launch.claim()
        assert launch.container is not None
        try:
            launch.build()
            if not detached:
                from teu.runc import foreground  # 0.1 ms

                signals = foreground.Signals()
            server = None
            if os.environ.get("NOTIFY_SOCKET"):
                from teu.runc import notify  # 0.05 ms

                server = notify.listen(launch.container.folder)
            _start(launch)
            if launch.spec.get("hooks"):
                hooks.run_all(launch.spec, "poststart", launch.container.state(state.RUNNING))
        except BaseException:
            launch.abort()
            raise
    except (RuncError, OSError, ValueError) as error:
        raise RuncError(f"runc run failed: {text_of(error)}") from error
    if server is not None:
        (notify.relay if detached else notify.relay_aside)(server, launch.pid)
    if detached:
        return 0
    assert signals is not None
    code = foreground.wait(launch.pid, signals, launch.console)
    if not arguments["keep"]:
        from teu.runc import delete  # 0.1 ms

        try:
            lock = state.Lock(launch.container.folder)
        except FileNotFoundError:
            return code  # a delete --force came first
        with lock:
            if os.path.exists(launch.container.folder):
                delete.destroy(launch.container, state.STOPPED)
    return code


def _start(launch: Launch) -> None:
    """startContainer hooks, then go."""
    for number, hook in enumerate((launch.spec.get("hooks") or {}).get("startContainer") or ()):
        from teu.runc import exec as exec_command  # 0.2 ms

        assert launch.container is not None
        exec_command.run_hook(launch.container, launch.spec, hook, number)
    launch.release()
    assert launch.sync is not None
    receive(launch.sync)  # until execve closes the other end
    launch.sync.close()
