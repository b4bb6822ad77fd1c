# SPDX-License-Identifier: Apache-2.0
"""Daemons with nothing to do exit, when they are told to; their sockets wake them, and nothing is missed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import images
import peers
import pytest
import whole
from whole import out, teu

UNITS = ("teud.service", "teu-containerd.service")
DROP_INS = (Path("/etc/teu/teud.yaml.d/idle.yaml"), Path("/etc/teu/containerd.yaml.d/idle.yaml"))


@pytest.fixture(autouse=True)
def idle_exit() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    for path in DROP_INS:
        path.parent.mkdir(exist_ok=True)
        path.write_text("idle-exit: 1s\n")
    try:
        out("systemctl", "restart", *UNITS)
        yield
    finally:
        for path in DROP_INS:
            path.unlink()
        out("systemctl", "restart", *UNITS)


def gone() -> bool:
    return all(whole.show(unit, "ActiveState") == "inactive" for unit in UNITS)


def test_idle_daemons_leave_and_are_woken() -> None:
    for _ in range(3):
        whole.eventually("both daemons have left", gone)
        assert all(whole.show(unit, "Result") == "success" for unit in UNITS)
        assert "Server:" in out("teu", "version")
    whole.eventually("both daemons have left", gone)
    # a whole run, from no daemon to no daemon
    assert out("teu", "run", "--rm", whole.IMAGE, "echo", "woken") == "woken"
    whole.eventually("both daemons have left", gone)
    assert not whole.shims()


def test_a_running_container_keeps_them() -> None:
    """Its output goes through teud. When it has ended, they may go, and its exit code is known afterwards."""
    name = "keeper"
    try:
        whole.run_detached(name, "sh", "-c", "sleep 4; echo kept; exit 6")
        pids = [whole.main_pid(unit) for unit in UNITS]
        assert all(pids)
        assert out("teu", "wait", name) == "6"
        assert pids == [whole.main_pid(unit) for unit in UNITS]
        whole.eventually("both daemons have left", gone)
        assert teu("logs", name).stdout == "kept\n"
        assert out("teu", "inspect", "-f", "{{.State.ExitCode}}", name) == "6"
    finally:
        teu("rm", "-f", name, check=False)


def test_a_restart_label_outlives_the_daemon(tmp_path: Path) -> None:
    """A container that is to run is looked after before the daemon leaves, and when its end wakes it again."""
    name, label = "kept-running", "containerd.io/restart.status"
    rootfs = peers.busybox_rootfs(tmp_path / "rootfs")

    def pid() -> int:
        lines = out("teu-ctr", "tasks", "ls").splitlines()
        return next(
            (
                int(number)
                for line in lines[1:]
                for id, number, state in [line.split()]
                if (id, state) == (name, "RUNNING")
            ),
            0,
        )

    out("teu-ctr", "run", "-d", "--rootfs", str(rootfs), name, "sleep", "600")
    try:
        out("teu-ctr", "containers", "label", name, f"{label}=running")
        first = pid()
        # The default interval is longer than the idle time here.
        os.kill(first, signal.SIGKILL)
        second = whole.eventually("the task runs again", lambda: (found := pid()) != first and found)
        whole.eventually("both daemons have left", gone)
        os.kill(int(str(second)), signal.SIGKILL)
        whole.eventually("its end has woken the daemon", lambda: not gone())
        third = whole.eventually("the task runs once more", lambda: (found := pid()) != second and found)
        assert third not in (first, second)
    finally:
        out("teu-ctr", "containers", "label", name, f"{label}=")
        out("teu-ctr", "tasks", "delete", "--force", name)
        out("teu-ctr", "containers", "delete", name)


def test_what_a_user_stopped_is_not_started_by_the_wake() -> None:
    """A restart of the daemon starts it, as dockerd's does; a wake is none."""
    name = "stopped-always"
    try:
        whole.run_detached(name, "sleep", "600", flags=("--restart", "always", "--stop-timeout", "0"))
        out("teu", "stop", name)
        for _ in range(2):
            whole.eventually("both daemons have left", gone)
            assert out("teu", "inspect", "-f", "{{.State.Status}}", name) == "exited"
        out("systemctl", "restart", "teud.service")
        state = ("teu", "inspect", "-f", "{{.State.Status}} {{.RestartCount}}", name)
        whole.eventually("it runs again", lambda: out(*state) == "running 0")
        # And is kept running, for nobody has stopped it since.
        os.kill(int(out("teu", "inspect", "-f", "{{.State.Pid}}", name)), signal.SIGKILL)
        whole.eventually("it runs once more", lambda: out(*state) == "running 1")
    finally:
        teu("rm", "-f", name, check=False)


def test_a_connection_keeps_teud() -> None:
    import socket
    import time

    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/teu/teud.sock")
        pid = whole.eventually("teud runs", lambda: whole.main_pid("teud.service"))
        time.sleep(3)
        assert whole.main_pid("teud.service") == pid
        client.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    whole.eventually("both daemons have left", gone)
