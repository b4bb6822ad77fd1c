# SPDX-License-Identifier: Apache-2.0
"""The task API's seam, both ways: Debian's containerd starts our shim, ours starts either, with any OCI
runtime.  Every client is Debian's ctr."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
import taskhouse
import whole
from shimwire import stopped
from taskhouse import OWN_SHIM, REAL_SHIM, House, says

pytestmark = pytest.mark.needs("systemd", "ctr")

# Of everything with everything, each seam once and our own stack.
HOUSES = [
    ("containerd", OWN_SHIM, "runc"),
    ("containerd", OWN_SHIM, "crun"),
    ("containerd", OWN_SHIM, "teu-runc"),
    ("teu-containerd", OWN_SHIM, "runc"),
    ("teu-containerd", OWN_SHIM, "crun"),
    ("teu-containerd", OWN_SHIM, "teu-runc"),
    ("teu-containerd", REAL_SHIM, "runc"),
    ("teu-containerd", REAL_SHIM, "crun"),
]


@pytest.fixture(scope="module", params=HOUSES, ids=["+".join(part.split(".")[-2:][0] for part in h) for h in HOUSES])
def h(request: pytest.FixtureRequest) -> Iterator[House]:
    daemon, shim, runtime = request.param
    with taskhouse.house(daemon, shim, runtime) as made:
        yield made
        made.check_left()


def test_run(h: House) -> None:
    assert h.run("r1", *says("hello")) == "hello\n"
    assert h.run("r2", "sh", "-c", "echo out; echo err >&2; sleep 0.2; exit 7", code=7) == "out\n"


def test_not_found_and_not_executable(h: House) -> None:
    for command, words in (("/nonsense", "no such file"), ("nonsense", "not found"), ("/etc/passwd", "permi")):
        result = h.daemon.result("run", "--rm", *h.flags, str(h.rootfs), "n1", command, code=1)
        assert words in result.stderr.lower()
    h.daemon.result("containers", "delete", "n1", code=None)
    assert h.daemon("containers", "ls", "-q") == ""


def test_terminal(h: House) -> None:
    command = [*h.daemon.client, "run", "--rm", "-t", *h.flags, str(h.rootfs), "t1", "sh", "-c", "tty; echo done"]
    shown = subprocess.run(
        ["script", "-qec", shlex.join(command), "/dev/null"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert "/dev/pts/0" in shown.stdout and "done" in shown.stdout, shown


def test_life(h: House) -> None:
    events = taskhouse.Events(h.daemon)
    try:
        pid = h.start("l1", "sleep", "600")
        assert h.task("l1") == (pid, "RUNNING")
        whole.eventually("the runtime has become the process", lambda: taskhouse.argv_of(pid)[:1] == ["sleep"])
        assert h.exec("l1", "e1", *says("inside")) == "inside\n"
        assert h.exec("l1", "e2", "sh", "-c", "cat; sleep 0.2; exit 3", stdin="fed", code=3) == "fed"
        pids = [int(line.split()[0]) for line in h.daemon("tasks", "ps", "l1").splitlines()[1:]]
        assert pids == [pid]
        assert "pids" in h.daemon("tasks", "metrics", "l1")
        h.daemon("tasks", "pause", "l1")
        assert h.task("l1") == (pid, "PAUSED")
        h.daemon("tasks", "resume", "l1")
        assert h.task("l1") == (pid, "RUNNING")
        h.kill("l1")
        h.stopped("l1")
        assert h.remove("l1") == 137
        topics = [
            "create",
            "start",
            "exec-added",
            "exec-started",
            "exit",
            "exec-added",
            "exec-started",
            "exit",
            "paused",
            "resumed",
            "exit",
            "delete",
        ]
        peers.wait_until(lambda: "/tasks/delete" in events.topics("l1"), "the task's end is told")
        assert events.topics("l1") == [f"/tasks/{topic}" for topic in topics]
        exits = [
            (event["id"], event.get("exit_status", 0)) for topic, event in events.tasks("l1") if topic == "/tasks/exit"
        ]
        assert exits == [("e1", 0), ("e2", 3), ("l1", 137)]
    finally:
        events.close()


def test_mounted_rootfs(h: House) -> None:
    """The shim mounts what CreateTaskRequest lists, and unmounts it."""
    h.daemon("images", "import", "--digests=false", str(peers.archive()))
    flags = [flag for flag in h.flags if flag != "--rootfs"]
    assert h.daemon("run", "--rm", *flags, peers.IMAGE, "m1", "cat", "/etc/group").startswith("root:")
    command = ["sh", "-c", "touch /x || echo read only"]
    assert h.daemon("run", "--rm", "--read-only", *flags, peers.IMAGE, "m2", *command) == "read only\n"


def test_log_uris(h: House, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    # The real shim closes the pipes at the end of the process, also before it has copied the last of the output: there
    # the process stays until the log has it. Ours is not given that time.
    stays = h.shim == taskhouse.REAL_SHIM
    then = "; exec sleep 600" if stays else ""
    h.start("u1", "sh", "-c", f"echo out; echo err >&2{then}", flags=("--log-uri", f"file://{log}"))
    if stays:
        peers.wait_until(lambda: log.exists() and len(log.read_text().split()) == 2, "the log has what was written")
    else:
        h.stopped("u1")
    h.remove("u1")
    assert sorted(log.read_text().split()) == ["err", "out"]
    collected = tmp_path / "collected"
    logger = tmp_path / "logger"
    logger.write_text(f'#!/bin/sh\necho "$CONTAINER_ID $*" >{collected}\nexec 5>&-\nexec cat <&3 >>{collected}\n')
    logger.chmod(0o755)
    command = ("sh", "-c", f"echo to the logger{then}")
    h.start("u2", *command, flags=("--log-uri", f"binary://{logger}?key=value"))
    peers.wait_until(lambda: collected.exists() and "logger" in collected.read_text(), "the logger has written")
    if not stays:
        h.stopped("u2")
    h.remove("u2")
    assert collected.read_text() == "u2 key value\nto the logger\n"


def test_survives_the_daemon(h: House) -> None:
    """kill -9 of the daemon: containers go on, and an exit meanwhile is known and told afterwards."""
    kept = h.start("s1", "sleep", "600")
    mortal = h.start("s3", "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9")
    # runc's start returns a moment before the program is there
    peers.wait_until(lambda: "/tmp/go" in " ".join(taskhouse.argv_of(mortal)), "s3 has begun")
    h.daemon.kill()
    (h.rootfs / "tmp" / "go").touch()
    shim = taskhouse.parent_of(kept)
    assert taskhouse.alive(kept) and taskhouse.alive(shim)
    peers.wait_until(lambda: not taskhouse.alive(mortal), "s3 has ended")
    (h.rootfs / "tmp" / "go").unlink()
    h.daemon.launch()
    assert h.task("s1") == (kept, "RUNNING")
    assert h.exec("s1", "after", *says("still here")) == "still here\n"
    if h.daemon.name == "containerd":
        # Debian's own drops a task that has no process when it starts.
        h.daemon("containers", "delete", "s3")
    else:
        assert (h.task("s3") or (0, ""))[1] == "STOPPED"
        assert h.remove("s3") == 9
    assert h.remove("s1") == 137


def test_killed_shim(h: House) -> None:
    """kill -9 of a shim: its container goes too, and nothing of it stays."""
    pid = h.start("k1", "sleep", "600")
    os.kill(h.shim_pid("k1"), 9)
    peers.wait_until(lambda: not taskhouse.alive(pid), "the container is gone")
    peers.wait_until(lambda: h.task("k1") is None, "the task is gone")
    peers.wait_until(lambda: not h.bundle("k1").exists(), "the bundle is gone")
    h.daemon("containers", "delete", "k1")
    assert h.run("k1", *says("again")) == "again\n"


@pytest.mark.parametrize("daemon", ["containerd", "teu-containerd"])
def test_a_shim_that_does_not_answer(daemon: str) -> None:
    """Nobody knows how its task is, but there is one: who lists tasks must not take it for an end."""
    with taskhouse.house(daemon) as h:
        pid = h.start("u1", "sleep", "600")
        with stopped(taskhouse.parent_of(pid)):
            assert h.task("u1") == (0, "UNKNOWN")
        assert h.task("u1") == (pid, "RUNNING")
        h.remove("u1")
        h.check_left()
