# SPDX-License-Identifier: Apache-2.0
"""Hooks of config.json (runtime-spec, "POSIX-platform Hooks"): programs that get the state on stdin.

Called by create (prestart, createRuntime), by the first process (createContainer), by start
(startContainer through teu.runc.exec, poststart) and by delete (poststop).
"""

from __future__ import annotations

import os
import select

from teu.oci import jsontext
from teu.runc import log
from teu.runc.errors import RuncError
from teu.runc.process import sealed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIGPIPE, _SIGXFSZ = 13, 25
_OUTPUT_SHOWN = 4096


def run_all(spec: dict[str, Any], kind: str, state: dict[str, Any]) -> None:
    """Run the hooks of this kind in order. The first that fails ends it with RuncError."""
    for number, hook in enumerate((spec.get("hooks") or {}).get(kind) or ()):
        try:
            run(hook, state)
        except (RuncError, OSError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            raise RuncError(f"error running {kind} hook #{number}: {text}") from None


def run_all_and_warn(spec: dict[str, Any], kind: str, state: dict[str, Any]) -> None:
    """poststop: a failure is a warning, and the next one runs all the same."""
    for number, hook in enumerate((spec.get("hooks") or {}).get(kind) or ()):
        try:
            run(hook, state)
        except (RuncError, OSError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            log.warning(f"error running {kind} hook #{number}: {text}")


def run(hook: dict[str, Any], state: dict[str, Any]) -> None:
    """Run one hook to its end, or kill it at its timeout."""
    stdin = sealed(b"state", jsontext.to_bytes(state))
    output = os.memfd_create("hook-output", os.MFD_CLOEXEC)
    try:
        os.lseek(stdin, 0, os.SEEK_SET)
        environment = {}
        for entry in hook.get("env") or ():
            name, _, value = entry.partition("=")
            environment[name] = value
        actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
        try:
            pid = os.posix_spawn(
                hook["path"],
                hook.get("args") or [hook["path"]],
                environment,
                file_actions=actions,
                setsigdef=(_SIGPIPE, _SIGXFSZ),
            )
        except OSError as error:
            raise RuncError(f"fork/exec {hook['path']}: {os.strerror(error.errno or 0).lower()}") from None
        status = _wait(pid, hook.get("timeout"))
        if status:
            size = os.lseek(output, 0, os.SEEK_END)
            text = os.pread(output, _OUTPUT_SHOWN, max(0, size - _OUTPUT_SHOWN)).decode("utf-8", "replace")
            raise RuncError(f"{how_it_ended(status)}, output: {text}")
    finally:
        os.close(stdin)
        os.close(output)


_POLL_MAX = 2**31 - 1  # milliseconds, 24 days: poll(2) takes an int


def how_it_ended(status: int) -> str:
    """In Go's words, which runc's callers may look for: "exit status 3", "signal: killed"."""
    if status > 0:
        return f"exit status {status}"
    from _signal import strsignal  # type: ignore[import-not-found]  # signal imports enum: 4 ms

    name = strsignal(-status) or str(-status)
    return f"signal: {name[:1].lower()}{name[1:]}"


def _wait(pid: int, timeout: int | None) -> int:
    """The exit status (negative: the signal)."""
    if timeout:
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = poll.poll(min(timeout * 1000, _POLL_MAX))
        os.close(pidfd)
        if not ended:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise RuncError(f"hook ran past specified timeout of {float(timeout):.1f}s")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
