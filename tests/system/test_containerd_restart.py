# SPDX-License-Identifier: Apache-2.0
"""The restart monitor: tasks are kept as labels of their containers ask (nerdctl's --restart), by Debian's containerd
and by ours."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
import taskhouse
from taskhouse import House

pytestmark = pytest.mark.needs("systemd", "ctr", "containerd")

PREFIX = "containerd.io/restart."
QUICK = {
    "containerd": '[plugins."io.containerd.internal.v1.restart"]\n  interval = "300ms"',
    "teu-containerd": "restart-interval: 300ms\n",
}
SEEN = 1.5  # seconds in which a monitor of that interval has looked several times


@pytest.fixture(scope="module", params=sorted(QUICK))
def h(request: pytest.FixtureRequest) -> Iterator[House]:
    """Either daemon with its own shim and runtime."""
    ours = request.param == "teu-containerd"
    shim, runtime = (taskhouse.OWN_SHIM, "teu-runc") if ours else (taskhouse.REAL_SHIM, "runc")
    with taskhouse.house(request.param, shim=shim, runtime=runtime) as made:
        made.daemon.kill()
        made.daemon.launch(QUICK[request.param])
        yield made
        made.check_left()


def begin(h: House, name: str, *command: str, **wanted: str) -> int:
    """A container with a task, and then its labels: a look between the two would make the task."""
    pid = h.start(name, *command)
    mark(h, name, **wanted)
    return pid


def mark(h: House, name: str, **wanted: str) -> None:
    h.daemon("containers", "label", name, *(f"{PREFIX}{key.replace('_', '-')}={text}" for key, text in wanted.items()))


def label(h: House, name: str, key: str) -> str:
    for line in h.daemon("containers", "info", name).splitlines():
        found, _, value = line.strip().rstrip(",").partition(": ")
        if found == f'"{PREFIX}{key}"':
            return value.strip('"')
    return ""


def another(h: House, name: str, pid: int) -> int:
    """The process of the next life."""

    def find() -> int:
        task = h.task(name)
        return task[0] if task and task[1] == "RUNNING" and task[0] != pid else 0

    return int(peers.wait_until(find, f"{name} to run again"))


def end(h: House, name: str) -> None:
    """Without its labels nobody brings it back."""
    mark(h, name, status="")
    time.sleep(0.5)  # a look that had begun
    if h.task(name):
        h.daemon("tasks", "delete", "--force", name)
    h.daemon("containers", "delete", name)


def stays(h: House, name: str, status: str) -> None:
    time.sleep(SEEN)
    assert (h.task(name) or (0, ""))[1] == status


def test_always(h: House) -> None:
    """Killed, deleted, and killed while the daemon is away."""
    pid = begin(h, "r-always", "sleep", "600", status="running")
    h.kill("r-always")
    pid = another(h, "r-always", pid)
    assert label(h, "r-always", "count") == "1"
    h.daemon("tasks", "delete", "--force", "r-always")
    pid = another(h, "r-always", pid)
    assert label(h, "r-always", "count") == "2"
    h.daemon.kill()
    os.kill(pid, signal.SIGKILL)
    h.daemon.launch(QUICK[h.daemon.name])
    pid = another(h, "r-always", pid)
    assert label(h, "r-always", "count") == "3"
    end(h, "r-always")


def lives(h: House) -> str:
    return h.exec("r-image", f"e{time.monotonic_ns()}", "sh", "-c", "cat /lives; sleep 0.3")


def test_a_snapshot_is_its_root_again(h: House) -> None:
    h.daemon.load_busybox()
    flags = h.flags[: h.flags.index("--rootfs")]
    script = "echo life >>/lives; exec sleep 600"
    h.daemon("run", "--detach", *flags, peers.IMAGE, "r-image", "sh", "-c", script)
    pid = h.pid("r-image")
    mark(h, "r-image", status="running", policy="always")
    peers.wait_until(lambda: lives(h) == "life\n", "the first life")
    h.kill("r-image")
    another(h, "r-image", pid)
    peers.wait_until(lambda: lives(h) == "life\nlife\n", "the second life")
    end(h, "r-image")


def test_on_failure_so_many_times(h: House) -> None:
    begin(h, "r-fails", "sh", "-c", "sleep 0.2; exit 3", status="running", policy="on-failure:2")
    peers.wait_until(lambda: label(h, "r-fails", "count") == "2", "two more lives")
    stays(h, "r-fails", "STOPPED")
    assert label(h, "r-fails", "count") == "2"
    end(h, "r-fails")


@pytest.mark.parametrize(
    "more",
    [
        {"policy": "on-failure"},
        {"policy": "no"},
        {"policy": "unless-stopped", "explicitly_stopped": "true"},
        {"policy": "always:3"},
        {"policy": "sometimes"},
    ],
    ids=lambda more: " ".join(more.values()),
)
def test_what_is_left_alone(h: House, more: dict[str, str]) -> None:
    """Done well, not asked for, stopped by its user, no policy."""
    begin(h, "r-alone", "sh", "-c", "sleep 0.2", status="running", **more)
    h.stopped("r-alone")
    stays(h, "r-alone", "STOPPED")
    assert label(h, "r-alone", "count") == ""
    end(h, "r-alone")


def test_stopped_by_a_label(h: House) -> None:
    begin(h, "r-stop", "sleep", "600", status="running", policy="unless-stopped")
    mark(h, "r-stop", status="stopped")
    peers.wait_until(lambda: h.task("r-stop") is None, "the task to go")
    mark(h, "r-stop", status="running")
    another(h, "r-stop", 0)
    end(h, "r-stop")


def test_output_goes_to_the_log(h: House, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "echo hello; exec sleep 600"
    pid = begin(h, "r-log", "sh", "-c", script, status="running", loguri=f"file://{log}")
    h.kill("r-log")
    another(h, "r-log", pid)
    peers.wait_until(lambda: log.read_text() == "hello\n", "the output")
    end(h, "r-log")


def test_paused_is_no_end(h: House) -> None:
    """As since containerd 2; Debian's 1.7 starts it anew."""
    pid = begin(h, "r-paused", "sleep", "600", status="running")
    h.daemon("tasks", "pause", "r-paused")
    if h.daemon.name == "containerd":
        another(h, "r-paused", pid)
    else:
        stays(h, "r-paused", "PAUSED")
        assert h.pid("r-paused") == pid
        h.daemon("tasks", "resume", "r-paused")
    end(h, "r-paused")


def test_plugin(h: House) -> None:
    """nerdctl asks for the policies here."""
    shown = h.daemon("plugins", "ls", "-d", "id==restart")
    capabilities = next(line for line in shown.splitlines() if line.startswith("Capabilities:"))
    assert capabilities.split()[1] == "no,always,on-failure,unless-stopped", shown
