# SPDX-License-Identifier: Apache-2.0
"""teu-runc exec: run another process in a container.

No Python ever enters the container here: teu-runc-init, from its sealed memfd, is spawned outside,
joins all namespaces at once, and is the process. This side stays outside, moves it into the cgroup
before it joins, and sets from outside what can be.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair

from teu.linux import namespaces
from teu.linux.namespaces import CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER, TYPES
from teu.linux.syscalls import PROC_SUPER_MAGIC, fstatfs_type
from teu.oci import jsontext
from teu.runc import process, state, validator
from teu.runc.descriptors import (
    close_strangers,
    connect,
    fetch_descriptor,
    listen_fds,
    receive,
    send_descriptor,
    set_oom_score,
    write_pid_file,
)
from teu.runc.errors import RuncError, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.runc.arguments import Arguments
    from teu.runc.commands import Settings

SUMMARY = "execute a new process inside the container"
USAGE = "<container-id> <command> [command options]  || -p process.json <container-id>"
FLAGS = {
    "console-socket": ("", "string", "", "unix socket that receives the terminal's master"),
    "pidfd-socket": ("", "string", "", "unix socket that receives a pidfd of the process"),
    "cwd": ("", "string", "", "working directory in the container"),
    "env": ("e", "strings", None, "set an environment variable"),
    "tty": ("t", "bool", False, "allocate a terminal"),
    "user": ("u", "string", "", "<uid>[:<gid>]"),
    "additional-gids": ("g", "strings", None, "additional group ids"),
    "process": ("p", "string", "", "path of a process.json"),
    "detach": ("d", "bool", False, "leave the process to itself"),
    "pid-file": ("", "string", "", "file to write the process id to"),
    "process-label": ("", "string", "", "SELinux label of the process"),
    "apparmor": ("", "string", "", "AppArmor profile of the process"),
    "no-new-privs": ("", "bool", False, "set no_new_privs"),
    "cap": ("c", "strings", None, "add a capability"),
    "preserve-fds": ("", "int", 0, "pass N more descriptors to the process (stdio + $LISTEN_FDS + N)"),
    "cgroup": ("", "strings", None, "run the process in a cgroup below the container's"),
    "ignore-paused": ("", "bool", False, "allow exec in a paused container"),
    "no-subreaper": ("", "bool", False, "accepted for runc's sake"),
}
ARGUMENTS = (1, None)
STOP_AT = 1


def main(arguments: Arguments, settings: Settings) -> int:
    try:
        container = state.load(settings.root, arguments.positional[0])
        status = container.status()
        if status == state.STOPPED:
            raise RuncError("cannot exec in a stopped container")
        if status == state.CREATING:
            raise RuncError("cannot exec in a container that is still being created")
        if status == state.PAUSED and not arguments["ignore-paused"]:
            raise RuncError("cannot exec in a paused container (use --ignore-paused to override)")
        spec = container.spec()
        described = _process(arguments, container, spec)
        return _run(arguments, container, spec, described)
    except (RuncError, OSError, ValueError) as error:
        raise RuncError(f"exec failed: {text_of(error)}", 255) from error


def _process(arguments: Arguments, container: state.Container, spec: dict[str, Any]) -> dict[str, Any]:
    """The process to run: process.json, or the container's own with the command line's changes."""
    if arguments["process"]:
        described = jsontext.load_file(arguments["process"])
        validator.check_process(described)
        return inherit(spec, described)
    described = dict(spec["process"])
    words = arguments.positional[1:]
    if not words:
        raise RuncError("exec args cannot be empty")
    described["args"] = words
    for flag, key in (("cwd", "cwd"), ("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")):
        if arguments[flag]:
            described[key] = arguments[flag]
    if arguments["cap"]:
        given = {key: list(names or []) for key, names in (described.get("capabilities") or {}).items()}
        for key in ("bounding", "effective", "permitted"):
            given[key] = given.get(key, []) + arguments["cap"]
        if given.get("inheritable"):
            given["ambient"] = given.get("ambient", []) + arguments["cap"]
        described["capabilities"] = given
    described["env"] = [*(described.get("env") or ()), *arguments["env"]]
    described["terminal"] = arguments["tty"]
    if not arguments["tty"]:
        described.pop("consoleSize", None)
    if "no-new-privs" in arguments.given:
        described["noNewPrivileges"] = arguments["no-new-privs"]
    user = dict(described.get("user") or {})
    if arguments["user"]:
        uid, colon, gid = arguments["user"].partition(":")
        user["uid"] = _number(uid, "uid")
        if colon:
            user["gid"] = _number(gid, "gid")
        # As runc does it: HOME of another user comes from the container's passwd.
        home = [entry for entry in described["env"] if not entry.startswith("HOME=")]
        if not any(entry.startswith("HOME=") for entry in arguments["env"]):
            described["env"] = home
    gids = [_number(word, "additional gid") for text in arguments["additional-gids"] for word in text.split(",")]
    if gids:
        user["additionalGids"] = [*(user.get("additionalGids") or ()), *gids]
    described["user"] = user
    validator.check_process(described)
    return described


def inherit(spec: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """What a process.json leaves open is as for the container's first process: as runc, so that who forgets a label
    or a profile is not let out of the container's.
    """
    first = spec.get("process") or {}
    result = dict(described)
    for key in ("apparmorProfile", "selinuxLabel", "rlimits", "ioPriority", "scheduler", "execCPUAffinity"):
        if not result.get(key) and first.get(key):
            result[key] = first[key]
    if result.get("capabilities") is None and first.get("capabilities") is not None:
        result["capabilities"] = first["capabilities"]  # given but empty: the process gets none
    return result


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise RuncError(f"bad {what}: {text!r} is not a number")
    return int(text)


def _namespaces_of(pid: int) -> int:
    """CLONE_* flags of those namespaces of pid that are not ours."""
    flags = 0
    for flag, name in TYPES.values():
        path = f"/proc/{pid}/ns/{name}"
        if not os.path.exists(path):
            continue
        if not namespaces.same_namespace(path, name):
            flags |= flag
    return flags


class Execution:
    """One process on its way into a container."""

    def __init__(self, container: state.Container, spec: dict[str, Any], described: dict[str, Any]) -> None:
        self.container = container
        self.spec = spec
        self.described = described
        self.pid = 0
        self.console = -1
        self.listen = 0
        self.preserved = 0
        self.sub_cgroup = ""
        self.cgroup_given = False  # by --cgroup: then no other cgroup is tried
        self.program_path: str | None = None
        self.born_in_cgroup = False

    def spawn(self, stdin: int = -1) -> None:
        """Start teu-runc-init, take it into the cgroup and the namespaces. self.pid is the process then."""
        container, described = self.container, self.described
        self.sync, child = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        target = os.pidfd_open(container.pid)
        opened = [target]
        try:
            if not container.init_alive():
                raise RuncError("cannot exec in a stopped container")
            procfs = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.append(procfs)
            if fstatfs_type(procfs) != PROC_SUPER_MAGIC:
                raise RuncError("/proc of the host is not a procfs")
            flags = _namespaces_of(container.pid)
            data = self._last_step(flags).records(
                process.environment(described, self._home()), (child.fileno(), -1, -1, procfs, target)
            )
            records = process.sealed(b"teu-runc-records", data)
            program = process.program()
            opened += [records, program]
            self.helper = self._clone_helper([child.fileno(), procfs, target, records], program, records, stdin)
        finally:
            child.close()
            for fd in opened:
                os.close(fd)
        affinity = described.get("execCPUAffinity") or {}
        if affinity.get("initial"):
            from teu.runc import process_limits  # 0.05 ms

            process_limits.set_affinity(self.helper, affinity["initial"])
        if not self.born_in_cgroup:
            self._join_cgroup()
        self.pid = self.helper
        if not flags:
            return
        self.sync.send(b"g")
        if self._fork_flag(flags):
            message, _ = receive(self.sync)
            self._expect(message, b"P")
            os.waitpid(self.helper, 0)
            self.pid = int.from_bytes(message[1:5], "little")
            self.sync.send(b"g")

    def _clone_helper(self, passed: list[int], program: int, records: int, stdin: int) -> int:
        """Clone a child, into the container's cgroup where that is possible, that executes teu-runc-init."""
        cgroup = -1
        if self.sub_cgroup and ".." not in self.sub_cgroup:
            place = f"{(self.container.record.get('cgroup') or {}).get('path') or ''}/{self.sub_cgroup}"
            if not os.path.isdir(place):
                raise RuncError(f"cannot join cgroup {place}: no such file or directory")
        path = (self.container.record.get("cgroup") or {}).get("path") or ""
        affinity = (self.described.get("execCPUAffinity") or {}).get("initial")
        if path and not affinity:
            try:
                cgroup = os.open(
                    f"{path}/{self.sub_cgroup}" if self.sub_cgroup and ".." not in self.sub_cgroup else path,
                    os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
                )
            except OSError:
                cgroup = -1
        self.born_in_cgroup = cgroup >= 0 and (not self.sub_cgroup or ".." not in self.sub_cgroup)
        try:
            pid = namespaces.clone(0, cgroup if self.born_in_cgroup else -1)
        except OSError:
            # The cgroup has cgroups below it, or we may not enter it: _join_cgroup has other ways, and better errors.
            self.born_in_cgroup = False
            pid = namespaces.clone(0)
        finally:
            if cgroup >= 0:
                os.close(cgroup)
        if pid:
            return pid
        try:
            if stdin >= 0:
                os.dup2(stdin, 0)
            for fd in passed:
                os.set_inheritable(fd, True)
            os.execve(program, ["teu-runc-init", str(records)], {})
        finally:
            os._exit(255)

    @staticmethod
    def _fork_flag(flags: int) -> int:
        return process.FLAG_FORK if flags & (CLONE_NEWPID | CLONE_NEWTIME) else 0

    def _join_cgroup(self) -> None:
        from teu.runc import cgroups  # 0.3 ms

        record = self.container.record.get("cgroup")
        if not record:
            return
        cgroup = cgroups.load(record)
        try:
            cgroup.add(self.helper, self.sub_cgroup)
        except OSError:
            # The container's init may have made cgroups below its own, so that only the leaves take processes. Or it
            # has moved itself to another cgroup, and removed its old one.
            if self.cgroup_given:
                raise
            from teu.linux import cgroup_files  # loaded with runc.cgroups above
            from teu.linux import cgroups as files

            path = cgroup_files.mountpoint() + cgroup_files.own(self.container.pid)
            if not path.startswith(cgroup.path) and os.path.exists(cgroup.path):
                raise
            files.attach(path, self.helper)

    def _home(self) -> str | None:
        if any(entry.startswith("HOME=") and entry != "HOME=" for entry in self.described.get("env") or ()):
            return None
        try:
            root = os.open(f"/proc/{self.container.pid}/root", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return "/"
        try:
            return process.home_of(root, (self.described.get("user") or {}).get("uid", 0))
        finally:
            os.close(root)

    def _can_setgroups(self) -> bool:
        try:
            with open(f"/proc/{self.container.pid}/setgroups", "rb", 0) as file:
                return file.read().strip() != b"deny"
        except OSError:
            return True

    def _last_step(self, namespaces: int) -> process.LastStep:
        all_there = bool(namespaces & CLONE_NEWUSER)
        last = process.LastStep(self.described, process.capability_sets(self.described, all_there=all_there))
        last.namespaces = namespaces
        last.preserved = self.preserved
        last.flags = (process.FLAG_SETGROUPS if self._can_setgroups() else 0) | self._fork_flag(namespaces)
        last.read_linux(self.spec.get("linux") or {})
        if not self.container.record.get("no_new_keyring"):
            last.keyring = (f"_ses.{self.container.id}", 0)
        last.program_path = self.program_path
        return last

    def _expect(self, message: bytes, kind: bytes) -> None:
        if message[:1] == kind:
            return
        if message[:1] == b"E":
            raise RuncError("unable to start container process: " + process.failure_text(message))
        raise RuncError("unable to start container process: it died on the way into the container")

    def make_ready(self, console_socket: str = "") -> None:
        """Answer the process until it is ready to execute."""
        while True:
            message, fd = receive(self.sync)
            kind = message[:1]
            if kind == b"C":
                self._take_console(fd, console_socket)
                self.sync.send(b"g")
            elif kind == b"L":
                from teu.runc import process_limits  # 0.05 ms

                process_limits.apply(self.pid, self.described)
                self.sync.send(b"g")
            elif kind == b"S":
                listener = fetch_descriptor(self.pid, int.from_bytes(message[1:5], "little"))
                from teu.runc import seccomp_notify  # 0.2 ms

                seccomp_notify.send(listener, self.spec["linux"]["seccomp"], self.container.state(), self.pid)
                os.close(listener)
                self.sync.send(b"g")
            else:
                self._expect(message, b"R")
                break
        adjustment = self.described.get("oomScoreAdj")
        if adjustment is not None:
            set_oom_score(self.pid, adjustment, bool(self.container.record.get("rootless")))
        affinity = self.described.get("execCPUAffinity") or {}
        if affinity.get("final"):
            from teu.runc import process_limits  # 0.05 ms

            process_limits.set_affinity(self.pid, affinity["final"])

    def _take_console(self, fd: int, console_socket: str) -> None:
        size = self.described.get("consoleSize")
        if size:
            from teu.linux import terminals  # 0.04 ms

            terminals.set_size(fd, size["height"], size["width"])
        if console_socket:
            connection = connect(console_socket)
            send_descriptor(connection, b"/dev/ptmx", fd)
            connection.close()
            os.close(fd)
        else:
            from teu.linux import terminals  # 0.04 ms

            terminals.mirror(fd)
            self.console = fd

    def go(self) -> None:
        """Let it execute. If the kernel refuses, the process says so on its stderr and ends with 255."""
        self.sync.send(b"f")
        receive(self.sync)  # execve closes its end: from then on no process finds teu-runc-init there
        self.sync.close()

    def abort(self) -> None:
        for pid in {self.pid, getattr(self, "helper", 0)} - {0}:
            try:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def _run(arguments: Arguments, container: state.Container, spec: dict[str, Any], described: dict[str, Any]) -> int:
    detached, terminal = arguments["detach"], bool(described.get("terminal"))
    console_socket = arguments["console-socket"]
    if detached and terminal and not console_socket:
        raise RuncError("cannot allocate tty if runc will detach without setting console socket")
    if console_socket and not (detached and terminal):
        raise RuncError("cannot use console socket if runc will not detach or allocate tty")
    execution = Execution(container, spec, described)
    execution.listen = listen_fds()
    execution.preserved = execution.listen + max(0, arguments["preserve-fds"])
    close_strangers(execution.preserved)
    if execution.listen:
        described["env"] = [*(described.get("env") or ()), f"LISTEN_FDS={execution.listen}", "LISTEN_PID=1"]
    execution.sub_cgroup = _sub_cgroup(arguments["cgroup"])
    execution.cgroup_given = bool(arguments["cgroup"])
    signals = None
    if not detached:
        from teu.runc import foreground  # 0.1 ms
    try:
        execution.spawn()
        execution.make_ready(console_socket)
        if arguments["pidfd-socket"]:
            pidfd = os.pidfd_open(execution.pid)
            connection = connect(arguments["pidfd-socket"])
            send_descriptor(connection, b"pidfd", pidfd)
            connection.close()
            os.close(pidfd)
        if arguments["pid-file"]:
            write_pid_file(os.path.abspath(arguments["pid-file"]), execution.pid)
        if not detached:
            signals = foreground.Signals()
        execution.go()
    except BaseException:
        execution.abort()
        raise
    if detached:
        return 0
    assert signals is not None
    return foreground.wait(execution.pid, signals, execution.console)


def _sub_cgroup(values: list[str]) -> str:
    """cgroup v2 has one hierarchy: "[controllers:]path"; the controllers' names have nothing to choose."""
    paths = set()
    for value in values:
        controllers, colon, path = value.partition(":")
        if not colon:
            if len(values) != 1:
                raise RuncError(f"invalid --cgroup argument: {value} (missing <controller>: prefix)")
            path = value
        elif not controllers or "" in controllers.split(","):
            raise RuncError(f"invalid --cgroup argument: {value} (empty <controller> prefix)")
        paths.add(path)
    if len(paths) > 1:
        raise RuncError("invalid --cgroup arguments: on cgroup v2 there is one path for all controllers")
    return paths.pop().strip("/") if paths else ""


def run_hook(container: state.Container, spec: dict[str, Any], hook: dict[str, Any], number: int) -> None:
    """A startContainer hook: resolved and run in the container, as its process would be."""
    name = f"startContainer hook #{number}"
    stdin = process.sealed(b"state", jsontext.to_bytes(container.state(state.CREATED)))
    os.lseek(stdin, 0, os.SEEK_SET)
    described: dict[str, Any] = {
        "args": hook.get("args") or [hook["path"]],
        # As runc does it: a hook without an env of its own has that of the process.
        "env": (spec.get("process") or {}).get("env") or [] if hook.get("env") is None else hook["env"],
        "cwd": "/",
        "user": {},
        "capabilities": (spec.get("process") or {}).get("capabilities"),
        "noNewPrivileges": (spec.get("process") or {}).get("noNewPrivileges"),
    }
    execution = Execution(container, spec, described)
    execution.program_path = hook["path"]
    try:
        execution.spawn(stdin)
        execution.make_ready()
        execution.go()
    except BaseException as error:
        execution.abort()
        if isinstance(error, RuncError | OSError):
            raise RuncError(f"error running {name}: {text_of(error)}") from None
        raise
    finally:
        os.close(stdin)
    from teu.runc.hooks import _wait, how_it_ended  # 0.1 ms

    try:
        status = _wait(execution.pid, hook.get("timeout"))
    except RuncError as error:
        raise RuncError(f"error running {name}: {error}") from None
    if status:
        raise RuncError(f"error running {name}: {how_it_ended(status)}")
