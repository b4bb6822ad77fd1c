# SPDX-License-Identifier: Apache-2.0
"""Debian's real dockerd with --containerd=our socket: with its graph driver, and with the containerd image store."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peers
import pytest
from taskhouse import TeuContainerd, alive, argv_of

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
        docker("run", "--network=none", "--name", "changed", peers.NAME, "sh", "-c", "echo made > /made && rm -r /home")
        docker("commit", "changed", name)
        docker("rm", "changed")
        docker("push", name)
        docker("rmi", name)
        docker("pull", name)
        assert docker("run", "--rm", "--network=none", name, "sh", "-c", "cat /made; ls -d /home || true") == "made\n"
        docker("save", "-o", str(tmp_path / "saved.tar"), name)
        docker("rmi", name)
        docker("load", "-i", str(tmp_path / "saved.tar"))
        docker("tag", name, "other:2")
        assert "other:2" in docker("images", "--format", "{{.Repository}}:{{.Tag}}")
        docker("rmi", name, "other:2")
        docker("run", "--rm", "--pull=never", "--network=none", name, "true", code=125)


DOCKERFILE = f"""FROM {peers.NAME} AS first
ARG WHAT=nothing
RUN echo $WHAT > /built && rm -r /home
FROM {peers.NAME}
COPY --from=first /built /
COPY given/ /given/
RUN cat /built /given/file > /both && chmod 600 /both
ENV A=b
CMD ["cat", "/both"]
"""


@pytest.mark.parametrize("builder", ["classic", pytest.param("buildkit", marks=pytest.mark.needs("buildx"))])
def test_build(house: House, builder: str, tmp_path: Path) -> None:
    """By dockerd's own steps, and by the BuildKit in it, which works on containerd where the images are there."""
    docker = house.docker
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("given\n")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    docker.env["BUILDX_NO_DEFAULT_ATTESTATIONS"] = "1"  # they name the time, so that no two images are the same
    docker.env["DOCKER_BUILDKIT"] = "1" if builder == "buildkit" else "0"
    try:
        build = ("build", "--network=none", "-t", "built", "--build-arg", "WHAT=made", str(tmp_path))
        docker(*build)
        assert docker("run", "--rm", "--network=none", "built") == "made\ngiven\n"
        assert docker("run", "--rm", "--network=none", "built", "sh", "-c", "ls -l /both; echo $A; ls -d /home") == (
            docker("run", "--rm", "--network=none", "built", "ls", "-l", "/both") + "b\n/home\n"
        )
        built = docker("inspect", "-f", "{{.Id}}", "built")
        again = docker.result(*build)
        assert docker("inspect", "-f", "{{.Id}}", "built") == built, "not built again"
        assert "cache" in (again.stdout + again.stderr).lower()
        (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("cat /built", "no-such-program"))
        failed = docker.result(*build, code=None)
        assert failed.returncode and "not found" in failed.stdout + failed.stderr
        docker("container", "prune", "-f")  # the one whose step has failed
        docker("rmi", "built")
        docker("builder", "prune", "-af")
    finally:
        docker.env.clear()
    docker("image", "prune", "-f")
    assert docker("images", "-q", "--filter", "dangling=true") == ""


SAYS = """
echo before
until [ -e /meanwhile ]; do sleep 0.02; done
echo meanwhile
until [ -e /after ]; do sleep 0.02; done
trap 'exit 6' TERM
echo after
while :; do sleep 0.02; done
"""
ENDS = "until [ -e /go ]; do sleep 0.02; done; exit 4"


def touch(pid: int, name: str) -> None:
    """Make a file in the root of a container's process: no daemon is needed for that."""
    (Path(f"/proc/{pid}/root") / name).touch()


@pytest.mark.parametrize("deaths", ["dockerd ends", "dockerd is killed", "both are killed"])
def test_live_restore(house: House, deaths: str) -> None:
    """Containers of either shim run on without dockerd, and it knows all of them when it comes back."""
    docker, containerd = house.docker, house.containerd
    assert docker.process
    argv = argv_of(docker.process.pid)
    pids = {}
    for runtime in ("teu", "runc"):
        for name, script in (("says", SAYS), ("ends", ENDS)):
            flags = ("-d", "--network=none", f"--runtime={runtime}", "--name", f"{name}-{runtime}")
            docker("run", *flags, peers.NAME, "sh", "-c", script)
            pids[f"{name}-{runtime}"] = int(docker("inspect", "-f", "{{.State.Pid}}", f"{name}-{runtime}"))
    try:
        for runtime in ("teu", "runc"):
            logged(docker, f"says-{runtime}", "before\n")
        docker.kill(signal.SIGTERM if deaths == "dockerd ends" else signal.SIGKILL)
        if deaths == "both are killed":
            containerd.kill(signal.SIGKILL)
        for runtime in ("teu", "runc"):
            touch(pids[f"says-{runtime}"], "meanwhile")
            touch(pids[f"ends-{runtime}"], "go")
        for runtime in ("teu", "runc"):
            peers.wait_until(lambda pid=pids[f"ends-{runtime}"]: not alive(pid), "the container to end")
        if deaths == "both are killed":
            containerd.launch()
        docker.start(argv, lambda: docker("version"))
        for runtime in ("teu", "runc"):
            says, ends = f"says-{runtime}", f"ends-{runtime}"
            assert docker("inspect", "-f", "{{.State.Running}} {{.State.Pid}}", says) == f"true {pids[says]}\n"
            exited(docker, ends, 4)
            logged(docker, says, "before\nmeanwhile\n")
            assert docker("exec", says, "sh", "-c", "touch /after; echo inside") == "inside\n"
            logged(docker, says, "before\nmeanwhile\nafter\n")
            assert json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", says))["Name"] == says
            docker("stop", says)
            exited(docker, says, 6)
            docker("start", ends)
            exited(docker, ends, 4)
    finally:
        docker("rm", "-f", *pids, code=None)
    assert docker("ps", "-aq") == ""


def logged(docker: peers.Dockerd, name: str, text: str) -> None:
    """Exactly this, once it has come through."""
    with contextlib.suppress(AssertionError):
        peers.wait_until(lambda: docker("logs", name) == text, "the log")
    assert docker("logs", name) == text


def exited(docker: peers.Dockerd, name: str, code: int) -> None:
    wanted = f"exited {code}\n"
    with contextlib.suppress(AssertionError):
        peers.wait_until(lambda: docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name) == wanted, name)
    assert docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name) == wanted


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
