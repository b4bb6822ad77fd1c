# SPDX-License-Identifier: Apache-2.0
"""Runs an OCI runtime by runc's command line: teu-runc, runc, crun and their like.

Global options as runc's: --root, --log, --log-format json, --systemd-cgroup.  What a failed run says
is read from its log, where the reason stands, and else from its standard error.
"""
from __future__ import annotations

import json
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.shim.loop import Coroutine, Loop

DEFAULT_BINARY = "teu-runc"
DEFAULT_ROOT = "/run/teu/runc"

# Ignored here, or by Python itself; the runtime, and so the container, must start with the defaults.
_RESET_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]

STDERR_MAX = 64 << 10


class RuntimeFailed(Exception):
    """The runtime ended with a failure; the text is its reason."""


def find_binary(name: str, path: str | None = None) -> str:
    """The absolute path of a runtime's binary, by the shim's PATH, then the usual folders."""
    if "/" in name:
        return name
    for folder in [*(path or os.environ.get("PATH", "")).split(":"), "/usr/sbin", "/usr/bin", "/usr/local/sbin",
                   "/usr/local/bin"]:
        candidate = os.path.join(folder, name)
        if folder and os.access(candidate, os.X_OK):
            return candidate
    raise RuntimeFailed(f"OCI runtime {name!r}: executable file not found in $PATH")


class Runtime:
    """One container's runtime: its binary, state folder and log.

    Options as in containerd.runc.v1.Options."""

    def __init__(self, loop: Loop, namespace: str, bundle: str, options: dict[str, Any]) -> None:
        self._loop = loop
        self.name = options["binary_name"] or DEFAULT_BINARY
        self.log = os.path.join(bundle, "log.json")
        self.root = os.path.join(options["root"] or DEFAULT_ROOT, namespace)
        self.systemd_cgroup = bool(options["systemd_cgroup"])

    def command(self, *args: str) -> list[str]:
        """The whole command line for a subcommand."""
        command = [find_binary(self.name), "--root", self.root, "--log", self.log, "--log-format", "json"]
        if self.systemd_cgroup:
            command.append("--systemd-cgroup")
        return command + list(args)

    def run(self, *args: str, stdio: tuple[int, int, int] | None = None) -> Coroutine:
        """Run a subcommand to its end; RuntimeFailed unless it succeeds.

        `stdio` is for create, restore and exec: the descriptors that the container's process gets.  Else
        standard input is empty and the result is what was written to standard output."""
        command = self.command(*args)
        log_size = _size(self.log)
        output = errors = null = -1
        try:
            if stdio is None:
                output = os.memfd_create("output")
                errors = os.memfd_create("errors")
                null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
                stdio = (null, output, errors)
            actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(stdio)]
            try:
                pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions,
                                     setsigdef=_RESET_SIGNALS)
            except OSError as e:
                raise RuntimeFailed(f"cannot run {command[0]}: {e.strerror}") from e
            status = yield self._loop.wait_exit(pid)
            code = os.waitstatus_to_exitcode(status)
            if code:
                raise RuntimeFailed(self._reason(log_size, errors, code))
            if output < 0:
                return b""
            return os.pread(output, os.fstat(output).st_size, 0)
        finally:
            for fd in (output, errors, null):
                if fd >= 0:
                    os.close(fd)

    def _reason(self, log_size: int, errors: int, code: int) -> str:
        reason = last_error(self.log, log_size)
        if not reason and errors >= 0:
            reason = os.pread(errors, STDERR_MAX, 0).decode(errors="replace").strip()
        return reason or f"{self.name}: " + (f"exit status {code}" if code > 0 else f"signal {-code}")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def last_error(path: str, start: int = 0) -> str:
    """The message of the last error in a runtime's JSON log, from that offset on; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal") and entry.get("msg"):
            return str(entry["msg"]).strip()
    return ""
