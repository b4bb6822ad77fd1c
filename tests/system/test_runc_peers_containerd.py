# SPDX-License-Identifier: Apache-2.0
"""Debian's containerd, with its own shim, runs teu-runc in runc's place."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest

RUNC = "/usr/sbin/teu-runc"
pytestmark = pytest.mark.needs("containerd", "teu-runc")


@pytest.fixture(scope="module")
def ctr() -> Iterator[peers.Containerd]:
    with peers.containerd() as daemon:
        daemon.load_busybox()
        yield daemon


@pytest.fixture
def name() -> str:
    return f"c{uuid.uuid4().hex[:8]}"


@pytest.fixture
def running(ctr: peers.Containerd, name: str) -> Iterator[str]:
    """A container that sleeps."""
    ctr("run", "-d", "--runc-binary", RUNC, peers.IMAGE, name, "sleep", "1000")
    yield name
    ctr("tasks", "kill", "-s", "KILL", name, code=None)
    peers.wait_until(lambda: "RUNNING" not in task(ctr, name), "the task has stopped")
    ctr("tasks", "rm", name, code=None)
    ctr("containers", "rm", name, code=None)


def run(ctr: peers.Containerd, name: str, *argv: str, options: tuple[str, ...] = (), code: int | None = 0) -> str:
    return ctr("run", "--rm", "--runc-binary", RUNC, *options, peers.IMAGE, name, *argv, code=code)


def task(ctr: peers.Containerd, name: str) -> str:
    """The line of `ctr tasks ls` for a container."""
    return next((line for line in ctr("tasks", "ls").splitlines() if line.split()[0] == name), "")


def pid_of(ctr: peers.Containerd, name: str) -> int:
    return int(task(ctr, name).split()[1])


def test_run(ctr: peers.Containerd, name: str) -> None:
    assert run(ctr, name, "echo", "hello") == "hello\n"
    assert task(ctr, name) == ""


def test_exit_codes(ctr: peers.Containerd, name: str) -> None:
    run(ctr, name, "sh", "-c", "exit 7", code=7)
    run(ctr, f"{name}k", "sh", "-c", "sh -c 'kill -9 $$'; exit $?", code=137)


def test_a_command_that_is_not_there(ctr: peers.Containerd, name: str) -> None:
    result = ctr.result("run", "--rm", "--runc-binary", RUNC, peers.IMAGE, name, "no-such-command", code=1)
    assert "executable file not found in $PATH" in result.stderr
    assert name not in ctr("containers", "ls", "-q")


def test_it_is_our_runtime(ctr: peers.Containerd, running: str) -> None:
    """Its state is in containerd's own root for runc, in our format."""
    assert Path(f"/run/containerd/runc/default/{running}/state.json").exists()
    listed = peers.run(RUNC, "--root", "/run/containerd/runc/default", "list", "-q").stdout.split()
    assert running in listed


def test_exec(ctr: peers.Containerd, running: str) -> None:
    assert ctr("tasks", "exec", "--exec-id", "e1", running, "cat", "/proc/1/comm") == "sleep\n"
    ctr("tasks", "exec", "--exec-id", "e2", running, "sh", "-c", "exit 9", code=9)
    assert ctr("tasks", "exec", "--exec-id", "e3", "--user", "65534", running, "id", "-u") == "65534\n"
    assert ctr("tasks", "exec", "--exec-id", "e4", "--cwd", "/etc", running, "pwd") == "/etc\n"


def test_pause_and_resume(ctr: peers.Containerd, running: str) -> None:
    ctr("tasks", "pause", running)
    assert "PAUSED" in task(ctr, running)
    ctr("tasks", "resume", running)
    assert "RUNNING" in task(ctr, running)


def test_processes(ctr: peers.Containerd, running: str) -> None:
    pid = pid_of(ctr, running)
    assert re.search(rf"^{pid}\b", ctr("tasks", "ps", running), re.MULTILINE)


def test_metrics(ctr: peers.Containerd, running: str) -> None:
    assert "cpu.usage_usec" in ctr("tasks", "metrics", running)


def test_kill(ctr: peers.Containerd, running: str) -> None:
    ctr("tasks", "kill", "-s", "KILL", running)
    peers.wait_until(lambda: "STOPPED" in task(ctr, running), "the task has stopped")


def test_systemd_cgroup(ctr: peers.Containerd, name: str) -> None:
    options = ("--runc-systemd-cgroup", "--cgroup", f"teutest.slice:ctr:{name}")
    output = run(ctr, name, "cat", "/proc/self/cgroup", options=options)
    assert output.splitlines()[-1] == f"0::/teutest.slice/ctr-{name}.scope"
    run_options = ("-d", "--runc-binary", RUNC, *options, peers.IMAGE, f"{name}d", "sleep", "1000")
    ctr("run", *run_options)
    try:
        unit = f"ctr-{name}.scope"
        assert peers.run("systemctl", "show", "-P", "ActiveState", unit).stdout == "active\n"
        group = Path(f"/proc/{pid_of(ctr, f'{name}d')}/cgroup").read_text()
        assert f"0::/teutest.slice/{unit}" in group
    finally:
        ctr("tasks", "rm", "-f", f"{name}d")
        ctr("containers", "rm", f"{name}d")
    assert peers.run("systemctl", "show", "-P", "ActiveState", unit).stdout == "inactive\n"


def test_devices_are_denied(ctr: peers.Containerd, name: str) -> None:
    script = "mknod /dev/mem0 c 1 1 && cat /dev/mem0"
    result = ctr.result(
        "run",
        "--rm",
        "--runc-binary",
        RUNC,
        "--cap-add",
        "CAP_SYS_RAWIO",
        peers.IMAGE,
        name,
        "sh",
        "-c",
        script,
        code=1,
    )
    assert "Operation not permitted" in result.stderr


def test_seccomp(ctr: peers.Containerd, name: str) -> None:
    status = run(ctr, name, "grep", "Seccomp:", "/proc/self/status", options=("--seccomp",))
    assert status.split() == ["Seccomp:", "2"]


@pytest.mark.needs("memory", "pids", "cpu")
def test_limits(ctr: peers.Containerd, name: str) -> None:
    options = ("--memory-limit", "33554432", "--cpu-quota", "50000", "--cpu-period", "100000")
    # Without a cgroup namespace the whole tree is there, as with runc; /proc names the place in it.
    script = "cd /sys/fs/cgroup$(cut -d : -f 3 /proc/self/cgroup) && cat memory.max cpu.max"
    mount = ("--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro")
    assert run(ctr, name, "sh", "-c", script, options=(*options, *mount)).split() == ["33554432", "50000", "100000"]


def test_nothing_is_left(ctr: peers.Containerd, name: str) -> None:
    run(ctr, name, "true")
    assert not os.path.exists(f"/sys/fs/cgroup/default/{name}")
    assert not os.path.exists(f"/run/containerd/runc/default/{name}")
