# SPDX-License-Identifier: Apache-2.0
"""dockerd above: on Debian's containerd with our shim, and on teu-containerd with either shim."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
import taskhouse

pytestmark = pytest.mark.needs("systemd", "dockerd")

# (containerd, the runtime's name in dockerd)
HOUSES = [("containerd", "teu"), ("teu-containerd", "teu"), ("teu-containerd", "runc")]


class Docker:
    def __init__(self, daemon: peers.Dockerd, runtime: str, house: taskhouse.House | None) -> None:
        self.daemon = daemon
        self.runtime = f"--runtime={runtime}"
        self.house = house

    def __call__(self, *argv: str, code: int | None = 0, stdin: str | None = None) -> str:
        return self.daemon(*argv, code=code, stdin=stdin)

    def run(self, *argv: str, code: int | None = 0, stdin: str | None = None) -> str:
        return self.daemon("run", self.runtime, *argv, code=code, stdin=stdin)


@pytest.fixture(scope="module", params=HOUSES, ids=["-".join(house) for house in HOUSES])
def docker(request: pytest.FixtureRequest) -> Iterator[Docker]:
    below, runtime = request.param
    config = {
        "runtimes": {"teu": {"runtimeType": taskhouse.OWN_SHIM, "options": {"BinaryName": "teu-runc"}}},
        "live-restore": True,
    }
    with contextlib.ExitStack() as stack:
        house = None
        if below == "teu-containerd":
            house = stack.enter_context(taskhouse.house("teu-containerd"))
        daemon = stack.enter_context(
            peers.dockerd(
                containerd_address=str(house.daemon.address) if house else "",
                config=config,
                options=["--exec-opt", "native.cgroupdriver=cgroupfs"],
            )
        )
        daemon.load_busybox()
        yield Docker(daemon, runtime, house)


def test_run(docker: Docker) -> None:
    assert docker.run("--rm", "busybox", "echo", "hello") == "hello\n"
    assert docker.run("--rm", "-i", "busybox", "cat", stdin="fed\n") == "fed\n"
    assert docker.run("--rm", "busybox", "sh", "-c", "exit 9", code=9) == ""
    failed = docker.daemon.result("run", docker.runtime, "--rm", "busybox", "nonsense", code=127)
    lines = failed.stderr.strip().splitlines()
    # docker's own sentence and nothing before it: what the runtime wrote is in it already
    assert "nonsense" in lines[0] and lines[0].startswith("docker: Error response from daemon")
    docker.daemon.result("run", docker.runtime, "--rm", "busybox", "/etc/passwd", code=126)


def test_life(docker: Docker) -> None:
    script = "trap 'exit 4' TERM; echo one; while :; do sleep 0.05; done"
    docker.run("-d", "--name", "life", "busybox", "sh", "-c", script)
    peers.wait_until(lambda: docker("logs", "life") == "one\n", "the traps are set")
    assert docker("exec", "life", "echo", "inside") == "inside\n"
    docker.daemon.result("exec", "life", "sh", "-c", "exit 6", code=6)
    assert docker("logs", "life") == "one\n"
    assert "sleep" in docker("top", "life")
    docker("pause", "life")
    assert docker("inspect", "-f", "{{.State.Status}}", "life") == "paused\n"
    docker("unpause", "life")
    stats = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", "life"))
    assert stats["Name"] == "life"
    docker("stop", "life")
    assert docker("inspect", "-f", "{{.State.ExitCode}}", "life") == "4\n"
    docker("start", "life")
    docker("restart", "-t", "1", "life")
    assert docker("exec", "life", "echo", "again") == "again\n"
    docker("rm", "-f", "life")
    assert docker("ps", "-aq") == ""


def test_live_restore(docker: Docker, tmp_path: Path) -> None:
    """dockerd is killed and comes back: the container runs on, and its exit is known."""
    script = "trap 'exit 5' TERM; echo set; while :; do sleep 0.05; done"
    docker.run("-d", "--name", "kept", "busybox", "sh", "-c", script)
    peers.wait_until(lambda: docker("logs", "kept") == "set\n", "the trap is set")
    pid = int(docker("inspect", "-f", "{{.State.Pid}}", "kept"))
    argv = taskhouse.argv_of(docker.daemon.process.pid) if docker.daemon.process else []
    if docker.house is None:
        pytest.skip("dockerd's own containerd goes with it here")
    docker.daemon.kill()
    assert taskhouse.alive(pid)
    docker.daemon.start(argv, lambda: docker("version"))
    assert int(docker("inspect", "-f", "{{.State.Pid}}", "kept")) == pid
    docker.house.restart()
    peers.wait_until(lambda: docker("exec", "kept", "echo", "here") == "here\n", "dockerd has found containerd again")
    docker("stop", "kept")
    assert docker("inspect", "-f", "{{.State.ExitCode}}", "kept") == "5\n"
    docker("rm", "kept")
