# SPDX-License-Identifier: Apache-2.0
"""teu-runc: seccomp profiles, asked of the kernel by the container itself; the notify listener."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runc_bundle import Bundle, exec_in, new_bundle

CACHE = Path("/run/teu/seccomp")
pytestmark = pytest.mark.needs("teu-runc")


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


def rule(*names: str, action: str = "SCMP_ACT_ERRNO", **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **fields}


def profile(bundle: Bundle, *rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **fields: Any) -> None:
    bundle.linux["seccomp"] = {"defaultAction": default, "syscalls": list(rules), **fields}


MKDIR = ("mkdir", "mkdirat")
# What a shell that echoes needs.
ALLOWED = (
    "access alarm arch_prctl brk capget capset chdir chmod clone clone3 close close_range dup dup2 dup3 execve "
    "execveat exit exit_group faccessat faccessat2 fchdir fchmod fchmodat fchown fcntl fstat fstatfs futex getcwd "
    "getdents64 getegid geteuid getgid getgroups getpgrp getpid getppid getrandom getrlimit gettid gettimeofday "
    "getuid ioctl lseek lstat madvise mmap mprotect mremap munmap nanosleep newfstatat open openat openat2 pipe "
    "pipe2 poll ppoll prctl pread64 prlimit64 pselect6 read readlink readlinkat readv rseq rt_sigaction "
    "rt_sigprocmask rt_sigreturn rt_sigsuspend sched_getaffinity select sendfile sendto sendmsg recvfrom recvmsg "
    "set_robust_list set_tid_address setgid setgroups setresgid setresuid setsid setuid sigaltstack stat statfs "
    "statx sysinfo umask uname vfork wait4 waitid write writev fadvise64 setpgid getpgid time"
)


def test_errno(bundle: Bundle) -> None:
    profile(bundle, rule(*MKDIR))
    done = bundle.run("mkdir", "/x")
    assert "Operation not permitted" in done.stderr
    profile(bundle, rule(*MKDIR, errnoRet=28))
    done = bundle.run("mkdir", "/x")
    assert "No space left on device" in done.stderr


def test_modes_and_flags(bundle: Bundle) -> None:
    script = "grep -E '^(Seccomp|Seccomp_filters|Speculation_Store_Bypass):' /proc/self/status"
    profile(bundle, rule(*MKDIR))
    assert bundle.says(script).split()[:4] == ["Seccomp:", "2", "Seccomp_filters:", "1"]
    profile(bundle, rule(*MKDIR), flags=["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"])
    assert bundle.says("mkdir /x 2>&1 || true").endswith("Operation not permitted")
    profile(bundle, rule(*MKDIR), flags=["SECCOMP_FILTER_FLAG_SPEC_ALLOW"])
    assert bundle.says("mkdir /x 2>&1 || true").endswith("Operation not permitted")


def test_without_no_new_privileges(bundle: Bundle) -> None:
    """Then the filter is installed while the process may still, before its capabilities go."""
    bundle.process["noNewPrivileges"] = False
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    profile(bundle, rule(*MKDIR))
    assert bundle.says("grep Seccomp: /proc/self/status; mkdir /tmp/x 2>&1 || true").split()[:2] == ["Seccomp:", "2"]


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"])
def test_killing_actions(bundle: Bundle, action: str) -> None:
    profile(bundle, rule(*MKDIR, action=action))
    # 128 + SIGSYS
    assert bundle.says("sh -c 'mkdir /x' 2>/dev/null; echo $?") == "159"


def test_log_and_trace(bundle: Bundle) -> None:
    profile(bundle, rule(*MKDIR, action="SCMP_ACT_LOG"))
    assert bundle.says("mkdir /x && echo made") == "made"
    # Nobody traces: the kernel answers ENOSYS.
    profile(bundle, rule(*MKDIR, action="SCMP_ACT_TRACE"))
    assert "Function not implemented" in bundle.run("mkdir", "/y").stderr


def test_arguments(bundle: Bundle) -> None:
    """kill(2) is refused for signal 10 alone."""
    profile(bundle, rule("kill", args=[{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]))
    script = "sleep 9 & kill -10 $! 2>&1 || echo refused; kill -12 $! && echo sent"
    assert bundle.says(script).splitlines()[-2:] == ["refused", "sent"]


def test_the_default_action(bundle: Bundle) -> None:
    """An allow list; what is newer than it is ENOSYS, as programs expect."""
    profile(bundle, rule(*ALLOWED.split(), action="SCMP_ACT_ALLOW"), default="SCMP_ACT_ERRNO", defaultErrnoRet=13)
    assert bundle.says("echo ok") == "ok"
    assert "Permission denied" in bundle.run("mkdir", "/x").stderr


def test_exec_gets_the_filter_too(bundle: Bundle) -> None:
    profile(bundle, rule(*MKDIR))
    identifier = bundle.detached()
    said = exec_in(bundle, identifier, "grep Seccomp: /proc/self/status; mkdir /x 2>&1 || true")
    assert said.split()[:2] == ["Seccomp:", "2"] and said.endswith("Operation not permitted")


def test_compiled_once(bundle: Bundle) -> None:
    """The program of a profile is kept where only root can write, and found there again."""
    profile(bundle, rule(*MKDIR, errnoRet=os.getpid() % 1000 + 200))
    before = set(os.listdir(CACHE)) if CACHE.exists() else set()
    bundle.says("true")
    made = set(os.listdir(CACHE)) - before
    assert len(made) == 1
    status = CACHE.stat()
    assert status.st_uid == 0 and status.st_mode & 0o777 == 0o700
    file = CACHE / made.pop()
    written = file.stat().st_mtime_ns
    bundle.says("true")
    assert set(os.listdir(CACHE)) - before == {file.name} and file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("seccomp", "field"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "linux.seccomp.defaultAction"),
        ({"defaultAction": "SCMP_ACT_X"}, "linux.seccomp.defaultAction"),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [rule("write", action="SCMP_ACT_NOTIFY")],
                "listenerPath": "/run/x",
            },
            "linux.seccomp.syscalls[0]",
        ),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]}, "linux.seccomp.architectures[0]"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_X"]}, "linux.seccomp.flags[0]"),
    ],
)
def test_bad_profiles(bundle: Bundle, seccomp: dict[str, Any], field: str) -> None:
    bundle.linux["seccomp"] = seccomp
    assert field in bundle.refuses()


# ---- the listener ------------------------------------------------------------------------------

# struct seccomp_notif: id, pid, flags, struct seccomp_data (nr, arch, instruction_pointer, args[6])
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
# struct seccomp_notif_resp: id, val, error, flags
RESPONSE = struct.Struct("=QqiI")
SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101


class Agent:
    """A seccomp agent: takes listeners, and answers every notification with one error number."""

    def __init__(self, folder: Path, error: int) -> None:
        self.path = str(folder / "agent.sock")
        self.error = error
        self.states: list[dict[str, Any]] = []
        self.calls: list[int] = []
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(self.path)
        self.server.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(16))
            descriptors = array.array("i")
            for _, kind, rights in ancillary:
                assert kind == socket.SCM_RIGHTS
                descriptors.frombytes(rights)
            while more := connection.recv(65536):
                data += more
            self.states.append(json.loads(data))
            assert len(descriptors) == len(self.states[-1]["fds"]) == 1
            threading.Thread(target=self.answer, args=(descriptors[0],), daemon=True).start()

    def answer(self, listener: int) -> None:
        while True:
            notification = bytearray(NOTIFICATION.size)
            try:
                fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, notification)
                identifier, _, _, number, *_ = NOTIFICATION.unpack(notification)
                self.calls.append(number)
                fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, RESPONSE.pack(identifier, 0, -self.error, 0))
            except OSError:
                # The last process with the filter has gone.
                os.close(listener)
                return


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path, 95)
    yield made
    with contextlib.suppress(OSError):
        made.server.shutdown(socket.SHUT_RDWR)
    made.server.close()


def notify(bundle: Bundle, agent: Agent) -> None:
    profile(bundle, rule(*MKDIR, action="SCMP_ACT_NOTIFY"), listenerPath=agent.path, listenerMetadata="some words")


@pytest.mark.parametrize("privileges", [True, False], ids=["no-new-privileges", "new-privileges"])
def test_the_agent_decides(bundle: Bundle, agent: Agent, privileges: bool) -> None:
    bundle.process["noNewPrivileges"] = privileges
    notify(bundle, agent)
    done = bundle.run("mkdir", "/x")
    assert "Operation not supported" in done.stderr
    assert len(agent.calls) == 1


def test_the_state_that_the_agent_gets(bundle: Bundle, agent: Agent) -> None:
    notify(bundle, agent)
    bundle.config["annotations"] = {"key": "value"}
    identifier = bundle.detached()
    pid = bundle.pid(identifier)
    (state,) = agent.states
    assert state["ociVersion"] == bundle.config["ociVersion"]
    assert state["fds"] == ["seccompFd"]
    assert state["pid"] == pid
    assert state["metadata"] == "some words"
    assert state["state"]["id"] == identifier
    assert state["state"]["pid"] == pid
    assert state["state"]["status"] == "creating"
    assert state["state"]["bundle"] == str(bundle.folder)
    assert state["state"]["annotations"] == {"key": "value"}


def test_exec_has_a_listener_of_its_own(bundle: Bundle, agent: Agent) -> None:
    notify(bundle, agent)
    identifier = bundle.detached()
    assert exec_in(bundle, identifier, "mkdir /x 2>&1 || true").endswith("Operation not supported")
    assert len(agent.states) == 2
    first, second = agent.states
    assert second["pid"] != first["pid"]
    assert second["state"]["status"] == "running"


def test_no_agent(bundle: Bundle, tmp_path: Path) -> None:
    profile(bundle, rule(*MKDIR, action="SCMP_ACT_NOTIFY"), listenerPath=str(tmp_path / "nobody"))
    assert "linux.seccomp.listenerPath" in bundle.refuses()


def test_wait_killable(bundle: Bundle, agent: Agent) -> None:
    notify(bundle, agent)
    bundle.linux["seccomp"]["flags"] = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    assert "Operation not supported" in bundle.run("mkdir", "/x").stderr
