# SPDX-License-Identifier: Apache-2.0
"""A container's processes: its first one (Init) and those exec'd into it (Exec).

    created -> running -> stopped          running <-> paused (the whole container)

Operations that run the OCI runtime are coroutines of the shim's loop.
"""

from __future__ import annotations

import errno
import os
import time

from teu.oci import jsontext
from teu.shim.loop import Future
from teu.shim.placement import SOCKET_FOLDER
from teu.shim.runtime import RuntimeFailed
from teu.shim.stdio import Console, ConsoleSocket, Streams, wait_drained
from teu.ttrpc import messages as m
from teu.ttrpc.status import ALREADY_EXISTS, FAILED_PRECONDITION, NOT_FOUND, UNKNOWN, StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any

    from teu.shim.loop import Coroutine, Loop
    from teu.shim.runtime import Before, Runtime
else:
    import _signal as signal  # signal is 0.9 MiB more (see teu.linux.sockets)

# How long a deletion waits for a terminal's reader.
DRAIN_SECONDS = 10.0
# How long a deletion waits for a logging binary that has read everything, before it is terminated.
LOGGER_SECONDS = 2.0

_STATUS_NAMES = {m.CREATED: "created", m.RUNNING: "running", m.STOPPED: "stopped", m.PAUSED: "paused"}

_socket_count = 0


def exit_code(status: int) -> int:
    """A wait status as a shell tells it: the code, or 128 and the signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _told(_status: int) -> None:
    """Tells no one: what `on_exited` is until a caller sets it."""


class StreamOwner:
    """Whose the streams of a process are: the container and its namespace, which a logging binary is told, and the user
    and group that shall own the FIFOs (the runtime options io_uid and io_gid)."""

    __slots__ = ("container", "gid", "namespace", "uid")

    def __init__(self, container: str, namespace: str, uid: int, gid: int) -> None:
        self.container = container
        self.namespace = namespace
        self.uid = uid
        self.gid = gid


class Process:
    """What Init and Exec have in common."""

    def __init__(self, loop: Loop, bundle: str, request: dict[str, Any], log: Callable[[str], None]) -> None:
        self.loop = loop
        self.bundle = bundle
        self.stdin: str = request["stdin"]
        self.stdout: str = request["stdout"]
        self.stderr: str = request["stderr"]
        self.terminal: bool = request["terminal"]
        self.pid = 0
        self.status = m.CREATED
        self.exit_status = 0
        self.exited_at = 0
        self.streams = Streams(log)
        self.log = log
        self.starting = False
        self._early_exit: int | None = None
        self._waiters: dict[Future, None] = {}
        # whether the process has been collected: from then on its pid may be another process's
        self._collected = False
        # whether a start has failed, so that there is no end to wait for
        self._failed = False
        # called once, with the wait status of the process
        self.on_exited: Callable[[int], None] = _told

    def run_with_stdio(
        self,
        runtime: Runtime,
        owner: StreamOwner,
        pid_file: str,
        *args: str,
        before: Before | None = None,
        then: tuple[str, ...] = (),
    ) -> Coroutine:
        """Run a subcommand that starts this process (its last word is the container): give it its streams, and learn
        its pid. `before` and `then` as of Runtime.run."""
        self.loop.expect()
        console_socket = None
        logger = -1
        container, namespace = owner.container, owner.namespace
        try:
            if self.terminal:
                logger = self.streams.open_terminal_logger(
                    self.stdout, self.stderr, container=container, namespace=namespace
                )
                yield from self._logger_started()
                global _socket_count
                _socket_count += 1
                console_socket = ConsoleSocket(SOCKET_FOLDER, f"pty-{os.getpid()}-{_socket_count}")
                places = ("--console-socket", console_socket.path, "--pid-file", pid_file)
                yield from runtime.run(*args, *places, container, before=before, then=then)
                master = console_socket.receive()
                self.streams.console = Console(self.loop, master, self.stdin, self.stdout, logger)
                self.streams.started(self.loop)
            else:
                self.streams.own_null = runtime.gives_streams_away
                self.streams.open(
                    self.stdin,
                    self.stdout,
                    self.stderr,
                    container=container,
                    namespace=namespace,
                    uid=owner.uid,
                    gid=owner.gid,
                )
                yield from self._logger_started()
                stdio = self.streams.child_fds()
                yield from runtime.run(*args, "--pid-file", pid_file, container, stdio=stdio, before=before, then=then)
                self.streams.started(self.loop)
            with open(pid_file) as file:
                self.pid = int(file.read())
            self._collected = not self.loop.on_exit(self.pid, self._exited)
        except BaseException:
            self.streams.close()
            self.streams = Streams(self.log)
            raise
        finally:
            if logger >= 0:
                os.close(logger)
            if console_socket:
                console_socket.close()
            self.loop.unexpect()

    def _logger_started(self) -> Coroutine:
        streams = self.streams
        if streams.logger_pid:
            self.loop.wait_exit(streams.logger_pid).then(lambda _: streams.logger_gone.set())
            yield from streams.logger_ready(self.loop)

    def _exited(self, status: int) -> None:
        self._collected = True
        if self.starting:
            self._early_exit = status
        else:
            self.on_exited(status)

    def started(self) -> None:
        """To be called when the start was announced: an exit meanwhile is told now."""
        self.starting = False
        if self._early_exit is not None:
            status, self._early_exit = self._early_exit, None
            self.on_exited(status)

    def set_exited(self, status: int) -> None:
        """Note the end of the process, and answer who waits for it."""
        self.exit_status = exit_code(status)
        self.exited_at = time.time_ns()
        self.status = m.STOPPED
        self.on_exited = _told  # it refers to this process: no garbage in cycles
        self.streams.exited()
        self.release_waiters()

    def start_failed(self) -> None:
        """There will be no end to wait for, unless it is started again."""
        self.starting = False
        self._failed = True
        self.release_waiters()

    def release_waiters(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter.set()

    def wait(self) -> Future:
        """A Future for the end of the process, or of the attempt to start it."""
        future = Future()
        if self.status == m.STOPPED or self._failed:
            future.set()
        else:
            self._waiters[future] = None
        return future

    def waits_no_more(self, future: Future) -> None:
        """Forget a Future of wait()."""
        self._waiters.pop(future, None)

    def exited_timestamp(self) -> dict[str, Any] | None:
        return m.timestamp(self.exited_at) if self.exited_at else None

    def send_signal(self, number: int) -> None:
        """Signal the process, a child of ours.  NOT_FOUND once it has been collected: an end may be told much later,
        when those of the execs have been, and the pid may be another process's by then."""
        if self._collected:
            raise StatusError(NOT_FOUND, "process already finished")
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            raise StatusError(NOT_FOUND, "process already finished") from None
        except OSError as error:
            raise StatusError(UNKNOWN, f"signal {number}: {error.strerror}") from error

    def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal, if there is one."""
        if self.streams.console:
            self.streams.console.resize(width, height)

    def release(self) -> Coroutine:
        """Give up the streams, when a terminal's last output has been taken."""
        if self.status == m.STOPPED:
            streams = self.streams
            for relay in (streams.relay, streams.console and streams.console.output, streams.log):
                if relay:
                    yield from wait_drained(self.loop, relay, DRAIN_SECONDS, self.log)
        gone = self.streams.logger_gone
        if self.streams.logger_pid and not gone.done:
            # Its pipes have ended: it gets time to write its last lines.
            self.streams.close_child()
            late = Future()
            self.loop.after(LOGGER_SECONDS, late.set)
            gone.then(lambda _: late.set())
            yield late
            if not gone.done:
                os.kill(self.streams.logger_pid, signal.SIGTERM)
        self.streams.close()


def unlink_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class Exec(Process):
    """A process exec'd into a container."""

    def __init__(self, loop: Loop, bundle: str, request: dict[str, Any], log: Callable[[str], None]) -> None:
        super().__init__(loop, bundle, request, log)
        self.id: str = request["exec_id"]
        try:
            spec = jsontext.loads(request["spec"]["value"], own=True) if request["spec"] else None
        except ValueError as error:
            raise StatusError(UNKNOWN, f"exec {self.id}: malformed process spec: {error}") from error
        if not isinstance(spec, dict):
            raise StatusError(UNKNOWN, f"exec {self.id}: malformed process spec: it must be a JSON object")
        spec["terminal"] = self.terminal
        self._spec: dict[str, Any] = spec

    def start(self, runtime: Runtime, owner: StreamOwner) -> Coroutine:
        if self.pid:
            raise StatusError(UNKNOWN, f"cannot start a {_STATUS_NAMES[self.status]} process")
        self.starting, self._failed = True, False
        spec_file = os.path.join(self.bundle, f"{self.id}.process.json")
        pid_file = os.path.join(self.bundle, f"{self.id}.pid")
        try:
            with open(os.open(spec_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(jsontext.to_ascii(self._spec))
            yield from self.run_with_stdio(runtime, owner, pid_file, "exec", "--process", spec_file, "--detach")
            self.status = m.RUNNING
        except RuntimeFailed as error:
            self.start_failed()
            raise StatusError(UNKNOWN, f"OCI runtime exec failed: {error}") from error
        except (OSError, ValueError) as error:
            self.start_failed()
            raise StatusError(UNKNOWN, f"failed to start exec {self.id}: {error}") from error
        finally:
            unlink_if_there(spec_file)
            unlink_if_there(pid_file)

    def resize(self, width: int, height: int) -> None:
        if self.status == m.STOPPED:
            raise StatusError(UNKNOWN, "cannot resize the terminal of a stopped process")
        super().resize(width, height)

    def kill(self, number: int) -> None:
        if self.status == m.STOPPED:
            raise StatusError(NOT_FOUND, "process already finished")
        if not self.pid:
            raise StatusError(FAILED_PRECONDITION, "process not created")
        self.send_signal(number)

    def delete(self) -> Coroutine:
        if self.status == m.RUNNING or self.starting:
            raise StatusError(UNKNOWN, "cannot delete a running process")
        yield from self.release()
        self.release_waiters()  # of one that was never started


class Init(Process):
    """A container's first process."""

    def __init__(
        self,
        loop: Loop,
        request: dict[str, Any],
        options: dict[str, Any],
        runtime: Runtime,
        namespace: str,
        log: Callable[[str], None],
    ) -> None:
        super().__init__(loop, request["bundle"], request, log)
        self.id: str = request["id"]
        self._options = options
        self._namespace = namespace
        self.runtime = runtime
        self._checkpoint: str = request["checkpoint"]
        self._parent_checkpoint: str = request["parent_checkpoint"]
        self.pausing = False

    def _run_first(self, *args: str, before: Before | None = None) -> Coroutine:
        pid_file = os.path.join(self.bundle, "init.pid")
        then = ("start", self.id) if before else ()
        yield from self.run_with_stdio(self.runtime, self.owner(), pid_file, *args, before=before, then=then)

    def owner(self) -> StreamOwner:
        """Whose the streams of this container's processes are."""
        return StreamOwner(self.id, self._namespace, self._options["io_uid"], self._options["io_gid"])

    def create(self, before: Before) -> Coroutine:
        """Create the container, `before` done first; from a checkpoint this waits for start()."""
        if self._checkpoint:
            yield from before.apart(self.loop, [])
            return
        args = ["create", "--bundle", self.bundle]
        if self._options["no_pivot_root"]:
            args.append("--no-pivot")
        if self._options["no_new_keyring"]:
            args.append("--no-new-keyring")
        try:
            yield from self._run_first(*args, before=before)
        except RuntimeFailed as error:
            self.runtime.cancel_ahead()
            if error.killed:
                yield from self._undo_creation()
            raise StatusError(UNKNOWN, f"OCI runtime create failed: {error}") from error
        except (OSError, ValueError) as error:
            self.runtime.cancel_ahead()
            yield from self._undo_creation()
            raise StatusError(UNKNOWN, f"failed to create container {self.id}: {error}") from error

    def _undo_creation(self) -> Coroutine:
        try:
            yield from self.runtime.delete("--force", self.id)
        except RuntimeFailed:
            pass  # it was not created

    def start(self) -> Coroutine:
        if self.status != m.CREATED:
            raise StatusError(UNKNOWN, f"cannot start a {_STATUS_NAMES[self.status]} process")
        self.starting = True
        try:
            if self._checkpoint and not self.pid:
                args = [
                    "restore",
                    "--image-path",
                    self._checkpoint,
                    "--bundle",
                    self.bundle,
                    "--detach",
                    "--no-subreaper",
                    "--work-path",
                    self._work_path(),
                ]
                if self._parent_checkpoint:
                    args += ["--parent-path", self._parent_checkpoint]
                if self._options["no_pivot_root"]:
                    args.append("--no-pivot")
                yield from self._run_first(*args)
            else:
                yield from self.runtime.run("start", self.id)
            self.status = m.RUNNING
        except RuntimeFailed as error:
            self.started()
            raise StatusError(UNKNOWN, f"OCI runtime start failed: {error}") from error

    def _work_path(self) -> str:
        path = self._options["criu_work_path"] or os.path.join(self.bundle, "work", "criu-work")
        os.makedirs(path, exist_ok=True)
        return str(path)

    def kill(self, number: int, everything: bool) -> Coroutine:
        if self.status == m.STOPPED and not everything:
            raise StatusError(NOT_FOUND, "process already finished")
        if not everything and self.pid and self.runtime.is_plain:
            self.send_signal(number)
            return
        args = ["--all"] if everything else []
        try:
            yield from self.runtime.run("kill", *args, self.id, str(number))
        except RuntimeFailed as error:
            text = str(error)
            if any(part in text for part in ("already finished", "not running", "no such process", "ESRCH")):
                raise StatusError(NOT_FOUND, "process already finished") from error
            if "does not exist" in text:
                raise StatusError(NOT_FOUND, f"no such container {self.id}") from error
            raise StatusError(UNKNOWN, f"unknown error after kill: {error}") from error

    def delete(self) -> Coroutine:
        """Delete the container from the runtime; already gone is fine."""
        if self.status in (m.RUNNING, m.PAUSED):
            raise StatusError(UNKNOWN, f"cannot delete a {_STATUS_NAMES[self.status]} process")
        created = self.status == m.CREATED
        yield from self.release()
        try:
            yield from self.runtime.delete(*(["--force"] if created and self.pid else []), self.id)
        except RuntimeFailed as error:
            if "does not exist" not in str(error):
                raise StatusError(UNKNOWN, f"failed to delete task: {error}") from error
        finally:
            self.runtime.cancel_ahead()

    def pause(self) -> Coroutine:
        if self.status != m.RUNNING:
            raise StatusError(UNKNOWN, f"cannot pause a {_STATUS_NAMES[self.status]} container")
        self.pausing = True
        try:
            yield from self.runtime.run("pause", self.id)
            if self.status == m.RUNNING:
                self.status = m.PAUSED
        except RuntimeFailed as error:
            raise StatusError(UNKNOWN, f"OCI runtime pause failed: {error}") from error
        finally:
            self.pausing = False

    def resume(self) -> Coroutine:
        if self.status != m.PAUSED:
            raise StatusError(UNKNOWN, f"cannot resume a {_STATUS_NAMES[self.status]} container")
        try:
            yield from self.runtime.run("resume", self.id)
            if self.status == m.PAUSED:
                self.status = m.RUNNING
        except RuntimeFailed as error:
            raise StatusError(UNKNOWN, f"OCI runtime resume failed: {error}") from error

    def update(self, resources: bytes) -> Coroutine:
        if self.status == m.STOPPED:
            raise StatusError(UNKNOWN, "cannot update a stopped container")
        path = os.path.join(self.bundle, "resources.json")
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(resources)
            yield from self.runtime.run("update", "--resources", path, self.id)
        except RuntimeFailed as error:
            raise StatusError(UNKNOWN, f"OCI runtime update failed: {error}") from error
        finally:
            unlink_if_there(path)

    def checkpoint(self, path: str, options: dict[str, Any]) -> Coroutine:
        if self.status not in (m.RUNNING, m.PAUSED):
            raise StatusError(UNKNOWN, f"cannot checkpoint a {_STATUS_NAMES[self.status]} container")
        args = [
            "checkpoint",
            "--image-path",
            path or options["image_path"],
            "--work-path",
            options["work_path"] or self._work_path(),
        ]
        if options["parent_path"]:
            args += ["--parent-path", options["parent_path"]]
        for name, flag in (
            ("open_tcp", "--tcp-established"),
            ("external_unix_sockets", "--ext-unix-sk"),
            ("terminal", "--shell-job"),
            ("file_locks", "--file-locks"),
        ):
            if options[name]:
                args.append(flag)
        for namespace in options["empty_namespaces"]:
            args += ["--empty-ns", namespace]
        if options["cgroups_mode"]:
            args += ["--manage-cgroups-mode", options["cgroups_mode"]]
        if not options["exit"]:
            args.append("--leave-running")
        try:
            yield from self.runtime.run(*args, self.id)
        except RuntimeFailed as error:
            raise StatusError(UNKNOWN, f"OCI runtime checkpoint failed: {error}") from error


def check_exec_id(name: str, taken: dict[str, Exec]) -> None:
    """The id becomes a file's name in the bundle, so it must be one."""
    if name in taken:
        raise StatusError(ALREADY_EXISTS, f"id {name}")
    if not name or "/" in name or name.startswith("."):
        raise StatusError(UNKNOWN, f"exec id {name!r}: {os.strerror(errno.EINVAL)}")
