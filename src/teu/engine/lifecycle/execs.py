# SPDX-License-Identifier: Apache-2.0
"""Exec: one more process in a running container. Called by the exec routes and by health checks.

created ──start──▶ running ──exit──▶ exited        (forgotten some time after, or with the container)
"""

from __future__ import annotations

import base64
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from teu.engine.backend import containerd, tasks
from teu.engine.containers import hostconfig
from teu.engine.core.errors import BadRequest, Conflict, EngineError, NotFound
from teu.engine.core.fields import ExecConfig
from teu.engine.spec import users
from teu.engine.spec.process import Command, process, security_options
from teu.engine.streams import detach
from teu.engine.streams.hub import Hub
from teu.linux import trees

if TYPE_CHECKING:
    from teu.engine.containers.model import Container, Process
    from teu.engine.engine import Engine
    from teu.oci.runtime_spec import Object

log = logging.getLogger("teu.engine")

KEPT_SECONDS = 300
BEGIN_SECONDS = 10


class Exec:
    def __init__(self, engine: Engine, container: Container, options: ExecConfig) -> None:
        self.engine = engine
        self.container = container
        self.id = secrets.token_hex(32)
        self.command = options.cmd or []
        if not self.command:
            raise BadRequest("No exec command specified")
        self.tty = bool(options.tty)
        self.stdin = bool(options.attach_stdin)
        self.stdout = bool(options.attach_stdout)
        self.stderr = bool(options.attach_stderr)
        self.privileged = bool(options.privileged)
        self.user = options.user or container.config.user
        self.environment = options.env or []
        self.directory = options.working_dir or container.config.working_dir or "/"
        self.detach_keys = options.detach_keys or ""
        try:
            self._keys = detach.parse(self.detach_keys) if self.detach_keys else b""
        except BadRequest:
            raise BadRequest(f"Invalid escape keys ({self.detach_keys}) provided") from None
        self.console_size = options.console_size
        self.running = False
        self.started = False
        self.pid = 0
        self.exit_code: int | None = None
        self.asked = False  # its start, whose answer may have begun already
        self.begun = threading.Event()  # there is a process now, or there will be none
        self.ended = threading.Event()
        self.hub = Hub(engine.pump, self.tty)
        self._lock = threading.Lock()
        self._claiming = threading.Lock()

    @property
    def folder(self) -> str:
        return f"{self.container.runtime_directory}/{self.id}"

    def paths(self) -> tuple[str, str, str]:
        folder = self.folder
        return f"{folder}/stdin" if self.stdin else "", f"{folder}/stdout", "" if self.tty else f"{folder}/stderr"

    @property
    def label(self) -> str:
        """As events have it: behind a program without arguments there is a space, with docker."""
        return f"{self.command[0]} {' '.join(self.command[1:])}"

    def process(self) -> Object:
        """The process of the runtime specification."""
        wanted = Command(self.command, self.user, self.directory, self.tty, self.environment, self.privileged)
        security = security_options(self.container.host_config, self.engine.config)
        return process(self.engine, self.container, wanted, security, self.console_size)

    def claim(self) -> None:
        """Be the one who starts it. Raises Conflict for all who come later, however soon, and where the container does
        not run."""
        with self._claiming:
            if self.started:
                word = "has already run" if self.ended.is_set() else "is already running"
                raise Conflict(f"exec command {self.id} {word}")
            self.container.must_run()
            self.started = True

    def start(self) -> None:
        """After `claim`. The clients are attached to the hub already."""
        with self._lock:
            self.container.event(f"exec_start: {self.label}", execID=self.id)
            try:
                Path(self.folder).mkdir(mode=0o700)
                paths = self.paths()
                self.hub.open(paths)
                tasks.execute(self.engine.containerd, self.container.id, self.id, self.process(), paths, self.tty)
                self.running = True
                try:
                    self.pid = tasks.start(self.engine.containerd, self.container.id, self.id)
                except BaseException:
                    tasks.delete_exec(self.engine.containerd, self.container.id, self.id)
                    raise
                self.hub.begin()
            except Exception as error:
                self.running = False
                self.exit_code = tasks.code_of_refusal(str(error)) if isinstance(error, containerd.Error) else 126
                if isinstance(error, containerd.NotFound):
                    raise Conflict(f"container {self.container.id} is not running") from None
                if isinstance(error, containerd.Error):
                    raise BadRequest(str(error)) from None
                raise
            finally:
                self.begun.set()

    def resize(self, width: int, height: int) -> None:
        """Of its terminal. A client may ask as soon as the answer to its start begins, when the process may still be
        in the making: wait for it, as docker does. Conflict where there is none."""
        if self.asked:
            self.begun.wait(BEGIN_SECONDS)
        if not self.running or not self.pid:
            raise Conflict(f"exec {self.id} is not running")
        tasks.resize(self.engine.containerd, self.container.id, width, height, self.id)

    def exited(self, found: tasks.Exit) -> None:
        """Told by the monitor, in a thread of its own."""
        with self._lock:
            if not self.running:
                return
            tasks.delete_exec(self.engine.containerd, self.container.id, self.id)
            self.running = False
            self.exit_code = found.status
            self._close(2.0)
        self.container.event("exec_die", execID=self.id, exitCode=str(found.status))
        if self.container.execs.get(self.id) is self:
            # Of it all only the id is kept that long: the container may be gone before.
            self.engine.pump.later(_forgetting(self.container.execs, self.id), KEPT_SECONDS)

    def reconcile(self) -> None:
        """The event may have been missed: ask."""
        if not self.running or not self._lock.acquire(blocking=False):
            return
        self._lock.release()
        try:
            task = tasks.get(self.engine.containerd, self.container.id, self.id)
        except containerd.Error:
            return
        if task is None:
            self.exited(tasks.Exit(255, time.time_ns()))
        elif task.status == "STOPPED":
            self.exited(task.exit)

    def container_exited(self) -> None:
        """The container took its processes with it."""
        with self._lock:
            if self.running:
                self.running = False
                self.exit_code = 137
                self._close(1.0)
        self.container.execs.pop(self.id, None)

    def give_up(self) -> None:
        """After a failed start, when the client has been told."""
        self.hub.discard()
        self._close(0.2)

    def _close(self, timeout: float) -> None:
        self.begun.set()
        self.hub.finish(timeout)
        trees.discard_tree(self.folder)
        self.ended.set()

    def kill(self) -> None:
        if self.running:
            try:
                tasks.kill(self.engine.containerd, self.container.id, 9, self.id)
            except containerd.Error:
                pass

    def inspect(self) -> dict[str, object]:
        return {
            "ID": self.id,
            "Running": self.running or self.started and not self.begun.is_set(),
            "ExitCode": self.exit_code,
            "ProcessConfig": {
                "tty": self.tty,
                "entrypoint": self.command[0],
                "arguments": self.command[1:],
                "privileged": self.privileged,
                **({"user": self.user} if self.user else {}),
            },
            "OpenStdin": self.stdin,
            "OpenStderr": self.stderr,
            "OpenStdout": self.stdout,
            "CanRemove": self.ended.is_set(),
            "ContainerID": self.container.id,
            "DetachKeys": base64.b64encode(self._keys).decode(),
            "Pid": self.pid,
        }


def _forgetting(known: dict[str, Process], identity: str) -> Callable[[], None]:
    def forget() -> None:
        known.pop(identity, None)

    return forget


def adopt(engine: Engine, container: Container) -> None:
    """After a restart of the engine: processes that an earlier one started go on. Nobody is attached to
    them any more, but their output has to flow, and what is left of those that ended has to go. Requests are served
    meanwhile: what they have made is known, and theirs."""
    with os.scandir(container.runtime_directory) as entries:
        found = [entry for entry in entries if len(entry.name) == 64 and entry.is_dir(follow_symlinks=False)]
    for entry in found:
        if entry.name in container.execs:
            continue
        try:
            _adopt(engine, container, entry)
        except (EngineError, OSError, ValueError) as error:
            container.execs.pop(entry.name, None)
            if not engine.stopping.is_set():
                log.warning(
                    "exec %s of container %s cannot be looked after: %s",
                    entry.name[:12],
                    container.id[:12],
                    error,
                    extra=container.fields,
                )


def _adopt(engine: Engine, container: Container, entry: os.DirEntry[str]) -> None:
    task = tasks.get(engine.containerd, container.id, entry.name)
    if task is None or not (task.unknown or task.status == "RUNNING"):
        tasks.delete_exec(engine.containerd, container.id, entry.name)
        trees.discard_tree(entry.path)
        return
    execution = Exec(engine, container, ExecConfig(cmd=["?"], tty=not os.path.exists(f"{entry.path}/stderr")))
    execution.id = entry.name
    execution.stdin = os.path.exists(f"{entry.path}/stdin")
    execution.started = execution.running = True
    execution.pid = task.pid
    execution.begun.set()
    container.execs[execution.id] = execution
    execution.hub.open(execution.paths())
    execution.hub.begin()


def create(engine: Engine, container: Container, options: ExecConfig) -> Exec:
    container.must_run()
    for entry in options.env or ():
        hostconfig.check_variable(entry)
    if options.user:
        users.find(engine, container, options.user)  # what is wrong with it is told before anybody attaches
    execution = Exec(engine, container, options)
    container.execs[execution.id] = execution
    container.event(f"exec_create: {execution.label}", execID=execution.id)
    return execution


def get(engine: Engine, identity: str) -> Exec:
    for container in engine.containers.all():
        execution = container.execs.get(identity)
        if isinstance(execution, Exec):
            return execution
    raise NotFound(f"No such exec instance: {identity}")
