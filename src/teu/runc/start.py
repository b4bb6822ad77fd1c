# SPDX-License-Identifier: Apache-2.0
"""teu-runc start: let the process of a created container go.

A hook that fails destroys the container (runtime-spec, "Lifecycle", steps 7 and 9).
"""

from __future__ import annotations

import errno
import os
import select

from teu.oci import jsontext
from teu.runc import log, state
from teu.runc.errors import RuncError, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "execute the user defined process in a created container"
USAGE = "<container-id>"
FLAGS: dict[str, tuple[str, str, object, str]] = {}
ARGUMENTS = (1, 1)

_EXECVE_WAIT = 10_000  # milliseconds; a seccomp agent may hold execve up


def main(arguments: Arguments, settings: Settings) -> int:
    container = state.load(settings.root, arguments.positional[0])
    with state.Lock(container.folder):
        status = container.status()
        if status == state.STOPPED:
            raise RuncError("cannot start a container that has stopped")
        if status == state.RUNNING:
            raise RuncError("cannot start an already running container")
        if status != state.CREATED:
            raise RuncError(f"cannot start a container in the {status} state")
        server = None
        if os.environ.get("NOTIFY_SOCKET"):
            from teu.runc import notify  # 0.2 ms

            server = notify.listen(container.folder)
        release(container)
    if server is not None:
        notify.relay(server, container.pid)
    return 0


def release(container: state.Container) -> None:
    """Run startContainer hooks, let the process go, run poststart hooks."""
    if container.record.get("without_process"):
        # runtime-spec, "Start": generate an error; "Errors": it need not be returned. The validation program of
        # the specification wants 0 here and a container that has stopped, and crun answers so too.
        from teu.runc import kill  # 0.6 ms

        log.error("cannot start a container whose config.json has no process")
        kill.send(container, 9)
        return
    if not _has_hooks(container):
        _let_go(container)
        return
    from teu.runc import exec as exec_command  # 2 ms
    from teu.runc import hooks

    spec = container.spec()
    kinds = spec.get("hooks") or {}
    try:
        for number, hook in enumerate(kinds.get("startContainer") or ()):
            exec_command.run_hook(container, spec, hook, number)
    except RuncError:
        _end(container)
        raise
    _let_go(container)
    try:
        if kinds.get("poststart"):
            hooks.run_all(spec, "poststart", container.state(state.RUNNING))
    except RuncError:
        _end(container)
        raise


def _end(container: state.Container) -> None:
    """A hook failed (runtime-spec, "Lifecycle", 7 and 9): stop the container and destroy it, with poststop hooks."""
    from teu.runc import delete  # 1.8 ms

    try:
        delete.destroy(container, container.status())
    except (RuncError, OSError) as error:
        log.warning(f"cannot delete container {container.id}: {text_of(error)}")


def _let_go(container: state.Container) -> None:
    """The word at the fifo; returns when the process has become the user's program."""
    try:
        fd = os.open(container.fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            raise RuncError("cannot start a container that has stopped") from None
        raise
    try:
        # the start that removes the fifo is the one that counts: a second start finds no fifo
        os.unlink(container.fifo)
        os.write(fd, b"s")
        # The process holds the other end until its execve: after that no caller finds teu-runc-init in it.
        poll = select.poll()
        poll.register(fd, 0)
        poll.poll(_EXECVE_WAIT)
    finally:
        os.close(fd)


def _has_hooks(container: state.Container) -> bool:
    return b'"hooks"' in jsontext.read_file(container.folder + "/config.json")
