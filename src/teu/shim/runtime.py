# SPDX-License-Identifier: Apache-2.0
"""Runs an OCI runtime by runc's command line: teu-runc, runc, crun and their like.

Global options as runc's: --root, --log, --log-format json, --systemd-cgroup.  What a failed run says
is read from its log, where the reason stands, and else from its standard error.

A runtime that is a Python program and says so in a line `# loadable: COMMAND ...` is loaded once by the zygote (see
bin/teu-runc).  Those commands are then run by a fork of the shim that takes the runtime's name and command line: it
spares the start of an interpreter, which is most of what a short command costs.  Everything else is executed.

In a shim that was itself started cold our own runtime's `create` and the short commands after it are executed ahead of
their turn, while the scope is made: with TEU_RUNC_HOLD they load, and wait for a byte on that descriptor. A program
that has changed on disk, and any other runtime, is executed when it is needed.
"""

from __future__ import annotations

import gc
import os
import sys

from teu.linux import commandline
from teu.oci import jsontext
from teu.shim.loop import outcome, tell_outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any

    from teu.shim.loop import Coroutine, Loop
else:
    import _signal as signal  # signal is 0.9 MiB more (see teu.linux.sockets)

DEFAULT_BINARY = "teu-runc"
DEFAULT_ROOT = "/run/teu/runc"
PACKAGED = "/usr/sbin/teu-runc"
PACKAGED_SCRIPT = "/usr/lib/teu/teu-runc"
PLAIN_BINARIES = (DEFAULT_BINARY, "runc", "crun")

# Signals that the shim, or Python, ignores: the runtime, and so the container, must start with the defaults.
_RESET_SIGNALS = [
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGUSR1,
    signal.SIGURG,
]

STDERR_MAX = 64 << 10

_LOADABLE = b"\n# loadable: "

# The variable by which our own runtime, started ahead of time, is held back (see teu-runc's main).
HOLD_VARIABLE = "TEU_RUNC_HOLD"
AHEAD_SECONDS = 3.0
DELETE_ATTEMPTS = 5


class RuntimeFailed(Exception):
    """The runtime ended with a failure; the text is its reason, `killed` the signal that ended it, if one did."""

    def __init__(self, reason: str, killed: int = 0) -> None:
        super().__init__(reason)
        self.killed = killed


def find_binary(name: str, path: str | None = None) -> str:
    """The absolute path of a runtime's binary, by the shim's PATH, then the usual folders."""
    if "/" in name:
        return name
    for folder in [
        *(path or os.environ.get("PATH", "")).split(":"),
        "/usr/sbin",
        "/usr/bin",
        "/usr/local/sbin",
        "/usr/local/bin",
    ]:
        candidate = os.path.join(folder, name)
        if folder and os.access(candidate, os.X_OK):
            return candidate
    raise RuntimeFailed(f"OCI runtime {name!r}: executable file not found in $PATH")


class Before:
    """What comes before a run of the runtime: `work`, in a process of its own, which is given the processes that have
    been started already, then `done` in the shim, with what came of it. `failed` has the words for an OSError of it."""

    __slots__ = ("done", "failed", "work")

    def __init__(
        self,
        work: Callable[[list[int]], Any],
        done: Callable[[Any], None],
        failed: Callable[[OSError], Exception],
    ) -> None:
        self.work = work
        self.done = done
        self.failed = failed

    def apart(self, loop: Loop, started: list[int]) -> Coroutine:
        """In a process that does nothing else."""
        try:
            found = yield from loop.in_fork(lambda: self.work(started))
        except OSError as error:
            raise self.failed(error) from error
        self.done(found)

    def take(self, pipe: int) -> None:
        """Of a process that has told and ended."""
        try:
            found = outcome(pipe)
        except OSError as error:
            raise self.failed(error) from error
        self.done(found)


class Loaded:
    """A runtime's program in this process's memory, to be run by forks."""

    def __init__(self, path: str) -> None:
        self._stamp = _stamp(path)
        self._script = script_of(path)
        self._script_stamp = _stamp(self._script)
        with open(self._script, "rb") as file:
            text = file.read()
        if not text.startswith(b"#!/usr/bin/python3") or _LOADABLE not in text:
            raise ValueError(f"{path} cannot be loaded")
        self.path = path
        self.commands = text.partition(_LOADABLE)[2].partition(b"\n")[0].decode().split()
        names: dict[str, Any] = {"__name__": "loaded", "__file__": self._script}
        exec(compile(text, self._script, "exec"), names)
        self._main: Callable[[], None] = names["main"]

    def serves(self, path: str, command: str) -> bool:
        """Whether that program, as it is on the disk now, is the one in memory."""
        try:
            if path != self.path or command not in self.commands or _stamp(path) != self._stamp:
                return False
            return self._script == path or _stamp(self._script) == self._script_stamp
        except OSError:
            return False

    def fork(self, command: list[str], stdio: tuple[int, int, int], before: Before | None, pipe: int) -> int:
        """A process that runs it; its pid. What comes before is done there as well, and told by the pipe."""
        child = os.fork()
        if child:
            return child
        try:
            gc.disable()
            signal.set_wakeup_fd(-1)
            if before is not None and not tell_outcome(pipe, lambda: before.work([])):
                return 0  # nobody's: it ends below
            for number in _RESET_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            for n, fd in enumerate(stdio):
                os.dup2(fd, n)
            os.closerange(3, 1 << 20)
            commandline.show(command)
            sys.argv = command
            self._main()
        except BaseException as error:
            os.write(2, f"{command[0]}: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)


def script_of(path: str) -> str:
    """The script that a runtime's program stands for: the package's own program starts it faster (teu.coldstart)."""
    return PACKAGED_SCRIPT if os.path.realpath(path) == PACKAGED and os.path.exists(PACKAGED_SCRIPT) else path


def _stamp(file: str) -> tuple[int, int, int]:
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_mtime_ns


_loaded: Loaded | None = None


def load() -> None:
    """Have our own runtime's program in memory, if it is there.  Called once, by the zygote."""
    global _loaded
    try:
        _loaded = Loaded(find_binary(DEFAULT_BINARY))
    except (RuntimeFailed, OSError, ValueError, ImportError):
        pass  # then it is executed as any other program


class _Inside:
    """The working directory for what is started: there is one thread, and posix_spawn(3) of Python has no other way."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        try:
            os.chdir(self._folder)
        except OSError:
            pass  # the bundle is gone: the runtime tells that, or needs none

    def __exit__(self, *_: object) -> None:
        os.chdir("/")


class Run:
    """One run of a runtime's subcommand in a folder, perhaps held back until go()."""

    def __init__(
        self,
        loop: Loop,
        command: list[str],
        folder: str,
        log: str,
        stdio: tuple[int, int, int] | None,
        held: bool = False,
        loaded: Loaded | None = None,
        before: Before | None = None,
    ) -> None:
        self._before = before
        self._told = -1
        self._log = log
        self._log_size = _size(log)
        self._name = os.path.basename(command[0])
        self._fds: list[int] = []
        self._output = self._errors = self._go = -1
        environment: dict[str, str] | os._Environ[str] = os.environ
        actions: list[tuple[int, int, int]] = []
        try:
            if stdio is None:
                null = self._own(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
                self._output = self._own(os.memfd_create("output"))
                self._errors = self._own(os.memfd_create("errors"))
                stdio = (null, self._output, self._errors)
            actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(stdio)]
            if held:
                wait, self._go = os.pipe2(os.O_CLOEXEC)
                self._own(wait)
                actions.append((os.POSIX_SPAWN_DUP2, wait, wait))  # the same number, but inherited
                environment = {**os.environ, HOLD_VARIABLE: str(wait)}
            if before is not None:
                self._told, pipe = os.pipe2(os.O_CLOEXEC)
                self._own(self._told)
            else:
                pipe = -1
            try:
                with _Inside(folder):
                    self.pid = (
                        loaded.fork(command, stdio, before, pipe)
                        if loaded
                        else os.posix_spawn(
                            command[0], command, environment, file_actions=actions, setsigdef=_RESET_SIGNALS
                        )
                    )
            except OSError as error:
                raise RuntimeFailed(f"cannot run {command[0]}: {error.strerror}") from error
            finally:
                if pipe >= 0:
                    os.close(pipe)
        except BaseException:
            self._close()
            raise
        self._exit = loop.wait_exit(self.pid)

    def _own(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._end_hold(b"")

    def _end_hold(self, word: bytes) -> None:
        if self._go >= 0:
            if word:
                try:
                    os.write(self._go, word)
                except BrokenPipeError:
                    pass  # the runtime has ended: wait() tells how
            os.close(self._go)
            self._go = -1

    def go(self) -> None:
        self._end_hold(b"g")

    def cancel(self) -> None:
        """A held run that is not needed: it ends without having done anything."""
        self._end_hold(b"")
        self._exit.then(lambda _: self._close())

    def wait(self) -> Coroutine:
        """To the end; RuntimeFailed unless it succeeded, else what it wrote to standard output."""
        status = yield self._exit
        try:
            if self._before is not None:
                self._before.take(self._told)
            code = os.waitstatus_to_exitcode(status)
            if code:
                raise RuntimeFailed(self._reason(code), max(0, -code))
            return os.pread(self._output, os.fstat(self._output).st_size, 0) if self._output >= 0 else b""
        finally:
            self._close()

    def _reason(self, code: int) -> str:
        reason = last_error(self._log, self._log_size)
        if not reason and self._errors >= 0:
            reason = os.pread(self._errors, STDERR_MAX, 0).decode(errors="replace").strip()
        return reason or f"{self._name}: " + (f"exit status {code}" if code > 0 else f"signal {-code}")


class Runtime:
    """One container's runtime: its binary, state folder and log.

    Options as in containerd.runc.v1.Options.  Our own runtime can be started ahead of time: its process
    loads while the shim or the client is still busy with what comes before, and waits for its turn."""

    def __init__(self, loop: Loop, namespace: str, bundle: str, options: dict[str, Any]) -> None:
        self._loop = loop
        self.name = options["binary_name"] or DEFAULT_BINARY
        # Runtimes find themselves in the bundle, as under containerd's shim, whose own working directory it is.
        self._bundle = bundle
        self.log = os.path.join(bundle, "log.json")
        self.root = os.path.join(options["root"] or DEFAULT_ROOT, namespace)
        self.systemd_cgroup = bool(options["systemd_cgroup"])
        # whether a container's processes are plain processes of this kernel, and not in a machine of its own
        self.is_plain = os.path.basename(self.name) in PLAIN_BINARIES
        self._ahead: dict[tuple[str, ...], Run] = {}

    def command(self, *args: str) -> list[str]:
        """The whole command line for a subcommand."""
        command = [find_binary(self.name), "--root", self.root, "--log", self.log, "--log-format", "json"]
        if self.systemd_cgroup:
            command.append("--systemd-cgroup")
        return command + list(args)

    def _can_be_held(self) -> bool:
        return os.path.basename(self.name) == DEFAULT_BINARY

    @property
    def gives_streams_away(self) -> bool:
        """Whether it may make the process's user the owner of its streams, as crun does even of a null device: that
        user could then change the host's. Ours and runc know what it is."""
        return os.path.basename(self.name) not in (DEFAULT_BINARY, "runc")

    def _loaded(self, command: str) -> Loaded | None:
        return _loaded if _loaded and _loaded.serves(find_binary(self.name), command) else None

    def _start(self, args: tuple[str, ...], stdio: tuple[int, int, int] | None, held: bool = False) -> Run:
        loaded = None if held else self._loaded(args[0])
        return Run(self._loop, self.command(*args), self._bundle, self.log, stdio, held, loaded)

    def _start_after(self, before: Before, args: tuple[str, ...], stdio: tuple[int, int, int] | None) -> Run | None:
        """Both in one process, where the runtime is in memory: a fork less, 430 of 3060 page faults. Else None."""
        loaded = self._loaded(args[0])
        if loaded is None:
            return None
        return Run(self._loop, self.command(*args), self._bundle, self.log, stdio, loaded=loaded, before=before)

    def run(
        self,
        *args: str,
        stdio: tuple[int, int, int] | None = None,
        before: Before | None = None,
        then: tuple[str, ...] = (),
    ) -> Coroutine:
        """Run a subcommand to its end; RuntimeFailed unless it succeeds.

        `stdio` is for create, restore and exec: the descriptors that the container's process gets.  Else
        standard input is empty and the result is what was written to standard output.  `before` is to be
        done first.  `then` is the subcommand that will follow."""
        run = self._ahead.pop(args, None)
        if run is None and before is not None:
            run = self._start_after(before, args, stdio)
            if run is not None:
                return (yield from run.wait())
            if self._can_be_held():
                run = self._start(args, stdio, held=True)
                if then:
                    self.start_ahead(*then)
        if before is not None:
            try:
                yield from before.apart(self._loop, [each.pid for each in (run, *self._ahead.values()) if each])
            except BaseException:
                if run:
                    run.cancel()
                self.cancel_ahead()
                raise
        if run is None:
            run = self._start(args, stdio)
        run.go()
        return (yield from run.wait())

    def delete(self, *args: str) -> Coroutine:
        """Run "delete" with these arguments, once more where it is killed, by the OOM killer for instance: whatever
        it has removed already, the next one removes the rest.  RuntimeFailed unless one succeeds."""
        for attempt in range(1, DELETE_ATTEMPTS + 1):
            try:
                yield from self.run("delete", *args)
                return
            except RuntimeFailed as error:
                if not error.killed or attempt == DELETE_ATTEMPTS:
                    raise

    def start_ahead(self, *args: str) -> None:
        """Start a subcommand that will probably be run() soon; it is given up after a while."""
        if not self._can_be_held() or args in self._ahead or self._loaded(args[0]):
            return
        try:
            run = self._ahead[args] = self._start(args, None, held=True)
        except (RuntimeFailed, OSError):
            return  # run() will say why

        def give_up() -> None:
            if self._ahead.get(args) is run:
                del self._ahead[args]
                run.cancel()

        self._loop.after(AHEAD_SECONDS, give_up)

    def cancel_ahead(self) -> None:
        """Nothing more will be run."""
        ahead, self._ahead = self._ahead, {}
        for run in ahead.values():
            run.cancel()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def last_error(path: str, start: int = 0) -> str:
    """The message of the last error in a runtime's JSON log, from that offset on; "" if there is none.

    An entry is an object of JSON: of one line, or of several, as crun writes it from 1.28 on."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    at, found = 0, ""
    while (at := text.find("{", at)) >= 0:
        try:
            entry, at = jsontext.first(text, at)
        except ValueError:
            if (at := text.find("\n", at)) < 0:
                break
            continue
        if entry.get("level") in ("error", "fatal") and entry.get("msg"):
            found = str(entry["msg"]).strip()
    return found
