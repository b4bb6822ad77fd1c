# SPDX-License-Identifier: Apache-2.0
"""Debian's dockerd runs teu-runc: as a runtime by name, and as the default one."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from runc_bundle import full_proc

RUNC = "/usr/sbin/teu-runc"
pytestmark = pytest.mark.needs("dockerd", "teu-runc")


@pytest.fixture(scope="module")
def docker() -> Iterator[peers.Dockerd]:
    """teu-runc is the default runtime; the name `other` is it too."""
    with peers.dockerd(runtimes={"teu": RUNC, "other": RUNC}, default_runtime="teu") as daemon:
        daemon.load_busybox()
        yield daemon


@pytest.fixture
def running(docker: peers.Dockerd) -> Iterator[str]:
    name = f"t{uuid.uuid4().hex[:8]}"
    docker("run", "-d", "--name", name, "--network=none", "busybox", "sleep", "1000")
    yield name
    docker("rm", "-f", name)


def run(docker: peers.Dockerd, *argv: str, options: tuple[str, ...] = (), code: int | None = 0) -> str:
    network = () if any(option.startswith("--network=") for option in options) else ("--network=none",)
    return docker("run", "--rm", *network, *options, "busybox", *argv, code=code)


def test_run(docker: peers.Dockerd) -> None:
    assert run(docker, "echo", "hello") == "hello\n"
    assert run(docker, "echo", "hello", options=("--network=host",)) == "hello\n"


def test_by_name(docker: peers.Dockerd) -> None:
    assert run(docker, "echo", "hello", options=("--runtime=other",)) == "hello\n"
    assert "teu" in json.loads(docker("info", "-f", "{{json .Runtimes}}"))


def test_it_is_our_runtime(docker: peers.Dockerd, running: str) -> None:
    identifier = docker("inspect", "-f", "{{.Id}}", running).strip()
    assert docker("inspect", "-f", "{{.HostConfig.Runtime}}", running) == "teu\n"
    roots = list(docker.run.glob(f"exec/runtime-*/moby/{identifier}/state.json"))
    assert roots or list(Path("/run").glob(f"**/moby/{identifier}/state.json"))


def test_exit_codes(docker: peers.Dockerd) -> None:
    run(docker, "sh", "-c", "exit 7", code=7)
    missing = docker.result("run", "--rm", "--network=none", "busybox", "no-such-command", code=127)
    assert 'exec: "no-such-command": executable file not found in $PATH' in missing.stderr
    denied = docker.result("run", "--rm", "--network=none", "busybox", "/etc/passwd", code=126)
    assert "permission denied" in denied.stderr


def test_terminal(docker: peers.Dockerd, running: str) -> None:
    assert run(docker, "tty", options=("-t",)).strip() == "/dev/pts/0"
    assert docker("exec", "-t", running, "tty").strip().startswith("/dev/pts/")


def test_stdin(docker: peers.Dockerd) -> None:
    assert docker("run", "--rm", "-i", "--network=none", "busybox", "wc", "-c", stdin="12345").strip() == "5"


def test_exec(docker: peers.Dockerd, running: str) -> None:
    assert docker("exec", "-e", "A=B", "-w", "/etc", running, "sh", "-c", "echo $A; pwd") == "B\n/etc\n"
    assert docker("exec", "-u", "65534", running, "id", "-u") == "65534\n"
    docker("exec", running, "sh", "-c", "exit 9", code=9)
    # dockerd 26 says 126 here, with runc as well.
    missing = docker.result("exec", running, "no-such-command", code=126 if peers.docker_api() < (1, 51) else 127)
    assert "executable file not found in $PATH" in missing.stderr + missing.stdout
    privileged = docker("exec", "--privileged", running, "grep", "CapEff", "/proc/self/status").split()[1]
    assert int(privileged, 16) >> 32 != 0


def test_pause(docker: peers.Dockerd, running: str) -> None:
    docker("pause", running)
    assert docker("inspect", "-f", "{{.State.Status}}", running) == "paused\n"
    docker("unpause", running)
    assert docker("inspect", "-f", "{{.State.Status}}", running) == "running\n"


def test_stats_and_top(docker: peers.Dockerd, running: str) -> None:
    assert running in docker("stats", "--no-stream", running)
    assert re.search(r"sleep 1000", docker("top", running))
    assert "sleep" in docker("top", running, "-o", "pid,comm")


def test_stop_and_start(docker: peers.Dockerd, running: str) -> None:
    docker("stop", "-t", "0", running)
    assert docker("inspect", "-f", "{{.State.ExitCode}}", running) == "137\n"
    docker("start", running)
    docker("restart", "-t", "0", running)
    docker("kill", "-s", "KILL", running)
    assert docker("wait", running) == "137\n"


def test_capabilities(docker: peers.Dockerd) -> None:
    def effective(*options: str) -> int:
        return int(run(docker, "grep", "CapEff", "/proc/self/status", options=options).split()[1], 16)

    assert effective("--cap-drop=all") == 0
    assert effective("--cap-drop=all", "--cap-add=KILL") == 1 << 5
    assert effective() == 0xA80425FB


def test_seccomp(docker: peers.Dockerd, tmp_path: Path) -> None:
    def mode(*options: str) -> str:
        return run(docker, "grep", "Seccomp:", "/proc/self/status", options=options).split()[1]

    assert mode() == "2"
    assert mode("--security-opt=seccomp=unconfined") == "0"
    profile = tmp_path / "profile.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
            }
        )
    )
    result = docker.result(
        "run", "--rm", "--network=none", f"--security-opt=seccomp={profile}", "busybox", "mkdir", "/x", code=1
    )
    assert "No space left on device" in result.stderr


def test_devices(docker: peers.Dockerd) -> None:
    script = "mknod /tmp/null c 1 3 && mknod /tmp/mem c 1 1 && echo x > /tmp/null && cat /tmp/mem"
    result = docker.result("run", "--rm", "--network=none", "busybox", "sh", "-c", script, code=1)
    assert "/tmp/mem" in result.stderr
    assert "Operation not permitted" in result.stderr
    rule = ("--device-cgroup-rule", "c 1:11 r")
    assert (
        run(
            docker,
            "sh",
            "-c",
            "mknod /tmp/kmsg c 1 11 && dd if=/tmp/kmsg of=/dev/null bs=4096 count=1 && echo ok",
            options=(*rule, "--cap-add=SYSLOG"),
        )
        == "ok\n"
    )


def test_read_only_and_mounts(docker: peers.Dockerd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    options = ("--read-only", "-v", f"{tmp_path}:/data:ro", "--tmpfs", "/scratch:size=1m")
    script = "cat /data/file; touch /x; touch /data/x; touch /scratch/x && echo scratch"
    result = docker.result("run", "--rm", "--network=none", *options, "busybox", "sh", "-c", script)
    assert result.stdout == "content\nscratch\n"
    assert result.stderr.count("Read-only file system") == 2


def test_names_users_and_limits(docker: peers.Dockerd) -> None:
    options = ("--hostname=box", "-u", "1000:1001", "--group-add=5", "--ulimit=nofile=64:128", "-w", "/tmp/new")
    output = run(docker, "sh", "-c", "hostname; id; ulimit -n; pwd", options=options)
    assert output.splitlines() == ["box", "uid=1000 gid=1001 groups=5(tty),1001", "64", "/tmp/new"]


def test_init(docker: peers.Dockerd) -> None:
    assert run(docker, "cat", "/proc/1/comm", options=("--init",)) in ("docker-init\n", "tini\n")


def test_namespaces_of_others(docker: peers.Dockerd, running: str) -> None:
    assert "sleep 1000" in run(docker, "ps", options=(f"--pid=container:{running}",))
    host = Path("/proc/self/ns/ipc").readlink()
    assert run(docker, "readlink", "/proc/self/ns/ipc", options=("--ipc=host",)).strip() == str(host)


def test_systemd_cgroup_driver(docker: peers.Dockerd, running: str) -> None:
    """dockerd chooses it on a systemd host; the scope is ours."""
    if docker("info", "-f", "{{.CgroupDriver}}").strip() != "systemd":
        pytest.skip("this dockerd chose cgroupfs")
    identifier = docker("inspect", "-f", "{{.Id}}", running).strip()
    unit = f"docker-{identifier}.scope"
    assert peers.run("systemctl", "show", "-P", "ActiveState", unit).stdout == "active\n"
    assert peers.run("systemctl", "show", "-P", "Description", unit).stdout.startswith("teu-runc container")
    docker("rm", "-f", running)
    assert peers.run("systemctl", "show", "-P", "ActiveState", unit).stdout == "inactive\n"


@pytest.mark.needs("memory", "pids", "cpu", "cpuset")
def test_limits_and_update(docker: peers.Dockerd) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    options = (
        "-m",
        "64m",
        "--memory-swap=128m",
        "--pids-limit=50",
        "--cpus=0.5",
        "--cpu-shares=512",
        "--cpuset-cpus=0",
    )
    docker("run", "-d", "--name", name, "--network=none", *options, "busybox", "sleep", "1000")
    try:

        def limit(file: str) -> str:
            return docker("exec", name, "cat", f"/sys/fs/cgroup/{file}").strip()

        assert limit("memory.max") == str(64 << 20)
        assert limit("memory.swap.max") == str(64 << 20)
        assert limit("pids.max") == "50"
        assert limit("cpu.max") == "50000 100000"
        assert limit("cpu.weight") == "59"
        assert limit("cpuset.cpus") == "0"
        docker("update", "-m", "96m", "--memory-swap=-1", "--pids-limit=60", "--cpus=0.25", name)
        assert limit("memory.max") == str(96 << 20)
        # dockerd does not pass -1 on, so the 128 MiB of both together stay.
        assert limit("memory.swap.max") == str(32 << 20)
        assert limit("pids.max") == "60"
        assert limit("cpu.max") == "25000 100000"
        assert "96MiB" in docker("stats", "--no-stream", name)
    finally:
        docker("rm", "-f", name)


@pytest.mark.needs("memory")
def test_out_of_memory(docker: peers.Dockerd) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    script = "head -c 100m /dev/zero | tail | wc -c"
    docker(
        "run",
        "--name",
        name,
        "--network=none",
        "-m",
        "16m",
        "--memory-swap=16m",
        "busybox",
        "sh",
        "-c",
        f"{script}; exit 3",
        code=3,
    )
    assert docker("inspect", "-f", "{{.State.OOMKilled}}", name) == "true\n"
    docker("rm", name)


@pytest.mark.needs("memory")
def test_the_smallest_memory(docker: peers.Dockerd) -> None:
    """6 MB is dockerd's minimum: nothing of ours may be charged to it."""
    assert run(docker, "echo", "small", options=("-m", "6m")) == "small\n"


def test_user_namespaces() -> None:
    full_proc()
    with peers.dockerd(runtimes={"teu": RUNC}, default_runtime="teu", options=["--userns-remap=default"]) as docker:
        docker.load_busybox()
        uid_map = run(docker, "cat", "/proc/self/uid_map").split()
        assert uid_map[0] == "0" and uid_map[1] != "0"
        assert run(docker, "id", "-u") == "0\n"
        assert run(docker, "sh", "-c", "touch /tmp/x && stat -c %u /tmp/x") == "0\n"
        docker("run", "-d", "--name=user", "--network=none", "busybox", "sleep", "1000")
        assert docker("exec", "user", "id", "-u") == "0\n"
        docker("rm", "-f", "user")


def test_nothing_is_left(docker: peers.Dockerd) -> None:
    before = set(Path("/sys/fs/cgroup").glob("**/docker-*"))
    run(docker, "true")
    assert set(Path("/sys/fs/cgroup").glob("**/docker-*")) <= before
