# SPDX-License-Identifier: Apache-2.0
"""Debian's real dockerd with --containerd=our socket: with its graph driver, and with the containerd image store."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peers
import pytest
from taskhouse import TeuContainerd

pytestmark = [pytest.mark.needs("docker", "docker-registry", "fast"), pytest.mark.timeout(240)]


class House(NamedTuple):
    containerd: TeuContainerd
    docker: peers.Dockerd
    store: str


@pytest.fixture(scope="module", params=["graphdriver", "snapshotter"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    containerd = TeuContainerd()
    config: dict[str, Any] = {
        "features": {"containerd-snapshotter": request.param == "snapshotter"},
        "live-restore": True,
    }
    try:
        containerd.launch()
        with peers.dockerd(
            runtimes={"teu": "io.containerd.teu.v2"}, containerd_address=str(containerd.address), config=config
        ) as docker:
            docker.load_busybox()
            yield House(containerd, docker, request.param)
    finally:
        containerd.stop()
        containerd.remove()


def test_info(house: House) -> None:
    info = json.loads(house.docker("info", "--format", "{{json .}}"))
    assert house.store == "graphdriver" or info["Driver"] == "overlayfs"
    assert "teu" in info["Runtimes"]


@pytest.mark.parametrize("runtime", ["runc", "teu"])
def test_run(house: House, runtime: str) -> None:
    flags = ("--rm", "--network=none", f"--runtime={runtime}")
    assert house.docker("run", *flags, peers.NAME, "echo", "hello") == "hello\n"
    house.docker("run", *flags, peers.NAME, "sh", "-c", "exit 5", code=5)
    house.docker("run", *flags, peers.NAME, "no-such-program", code=127)
    assert house.docker("run", "-i", *flags, peers.NAME, "cat", stdin="in and out") == "in and out"


def test_life(house: House) -> None:
    docker = house.docker
    docker(
        "run",
        "-d",
        "--name",
        "life",
        "--network=none",
        peers.NAME,
        "sh",
        "-c",
        "echo out; echo err >&2; exec sleep 600",
    )
    assert docker("exec", "life", "echo", "inside") == "inside\n"
    docker("exec", "life", "sh", "-c", "exit 9", code=9)
    peers.wait_until(lambda: "out" in docker("logs", "life"), "output in the log")
    assert docker("ps", "--format", "{{.Names}}").split() == ["life"]
    assert "sleep 600" in docker("top", "life")
    docker("pause", "life")
    assert docker("inspect", "-f", "{{.State.Status}}", "life") == "paused\n"
    docker("unpause", "life")
    stats = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", "life"))
    assert stats["Name"] == "life"
    docker("cp", str(Path(__file__)), "life:/tmp/copied")
    assert docker("exec", "life", "head", "-1", "/tmp/copied").startswith("# SPDX")
    assert "A /tmp/copied" in docker("diff", "life")
    docker("restart", "-t", "0", "life")
    assert docker("exec", "life", "ls", "/tmp/copied")
    docker("stop", "-t", "0", "life")
    assert docker("inspect", "-f", "{{.State.ExitCode}}", "life") == "137\n"
    docker("rm", "life")
    assert docker("ps", "-aq") == ""


def test_images(house: House, tmp_path: Path) -> None:
    docker = house.docker
    with peers.registry() as registry:
        name = f"{registry.address}/made:1"
        (tmp_path / "Dockerfile").write_text(
            f"FROM {peers.NAME}\nRUN echo built > /built && rm -r /home\nCOPY Dockerfile /d\n"
        )
        built = docker.result("build", "--network=none", "-t", name, str(tmp_path), code=None, timeout=100)
        if built.returncode != 0 and "buildx" in built.stderr:
            docker(
                "run", "--network=none", "--name", "b", peers.NAME, "sh", "-c", "echo built > /built && rm -r /home"
            )
            docker("commit", "b", name)
            docker("rm", "b")
        else:
            assert built.returncode == 0, built.stderr
        docker("push", name)
        docker("rmi", name)
        docker("pull", name)
        assert docker(
            "run", "--rm", "--network=none", name, "sh", "-c", "cat /built; ls -d /home || true"
        ).startswith("built")
        docker("save", "-o", str(tmp_path / "saved.tar"), name)
        docker("rmi", name)
        docker("load", "-i", str(tmp_path / "saved.tar"))
        docker("tag", name, "other:2")
        assert "other:2" in docker("images", "--format", "{{.Repository}}:{{.Tag}}")
        docker("rmi", name, "other:2")
        docker("run", "--rm", "--pull=never", "--network=none", name, "true", code=125)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_containers_outlive_our_daemon(house: House, how: int) -> None:
    """Also dockerd finds them again, and the exit that happened meanwhile."""
    docker, containerd = house.docker, house.containerd
    for name, seconds in (("stays", "600"), ("ends", "1")):
        docker(
            "run",
            "-d",
            "--name",
            name,
            "--network=none",
            "--runtime=teu",
            peers.NAME,
            "sh",
            "-c",
            f"sleep {seconds}; exit 4",
        )
    pid = docker("inspect", "-f", "{{.State.Pid}}", "stays")
    try:
        containerd.kill(how)
        containerd.launch()
        peers.wait_until(
            lambda: (
                docker.result("inspect", "-f", "{{.State.ExitCode}} {{.State.Running}}", "ends", code=None).stdout
                == "4 false\n"
            ),
            "the exit to be known",
        )
        assert docker("inspect", "-f", "{{.State.Pid}}", "stays") == pid
        peers.wait_until(
            lambda: docker.result("exec", "stays", "true", code=None).returncode == 0, "exec to work again"
        )
    finally:
        docker("rm", "-f", "stays", "ends", code=None)
    assert docker("ps", "-aq") == ""
