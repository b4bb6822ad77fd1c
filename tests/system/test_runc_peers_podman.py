# SPDX-License-Identifier: Apache-2.0
"""Debian's podman and buildah run teu-runc."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from runc_bundle import full_proc

RUNC = "/usr/sbin/teu-runc"
pytestmark = pytest.mark.needs("podman", "teu-runc")


@pytest.fixture(scope="module", params=["cgroupfs", "systemd"])
def podman(request: pytest.FixtureRequest) -> Iterator[peers.Podman]:
    with peers.podman(RUNC, cgroup_manager=request.param) as client:
        client.load_busybox()
        yield client


@pytest.fixture
def running(podman: peers.Podman) -> Iterator[str]:
    name = f"t{uuid.uuid4().hex[:8]}"
    podman("run", "-d", "--name", name, "--network=none", "busybox", "sleep", "1000")
    yield name
    podman("rm", "-f", "-t", "0", name)


def run(podman: peers.Podman, *argv: str, options: tuple[str, ...] = (), code: int | None = 0) -> str:
    return podman("run", "--rm", "--network=none", *options, "busybox", *argv, code=code)


def test_run(podman: peers.Podman) -> None:
    assert run(podman, "echo", "hello") == "hello\n"
    assert run(podman, "tty", options=("-t",)).strip() == "/dev/pts/0"
    assert run(podman, "cat", options=("-i",), code=0) == ""
    run(podman, "sh", "-c", "exit 7", code=7)


def test_errors(podman: peers.Podman) -> None:
    missing = podman.result("run", "--rm", "--network=none", "busybox", "no-such-command", code=127)
    assert "executable file" in missing.stderr
    denied = podman.result("run", "--rm", "--network=none", "busybox", "/etc/passwd", code=126)
    assert "permission denied" in denied.stderr.lower()


def test_it_is_our_runtime(podman: peers.Podman, running: str) -> None:
    assert podman("inspect", "-f", "{{.OCIRuntime}}", running).strip() == RUNC
    assert podman("inspect", "-f", "{{.State.Status}}", running).strip() == "running"


def test_exec(podman: peers.Podman, running: str) -> None:
    assert podman("exec", running, "cat", "/proc/1/comm") == "sleep\n"
    assert podman("exec", "-u", "1000", "-w", "/etc", "-e", "A=B", running, "sh", "-c", "id -u; pwd; echo $A") == (
        "1000\n/etc\nB\n"
    )
    assert podman("exec", "-t", running, "tty").strip().startswith("/dev/pts/")
    podman("exec", running, "sh", "-c", "exit 9", code=9)
    podman("exec", running, "no-such-command", code=127)


def test_pause(podman: peers.Podman, running: str) -> None:
    podman("pause", running)
    assert podman("inspect", "-f", "{{.State.Status}}", running).strip() == "paused"
    podman("unpause", running)
    assert podman("inspect", "-f", "{{.State.Status}}", running).strip() == "running"


def test_stats_and_top(podman: peers.Podman, running: str) -> None:
    assert running in podman("stats", "--no-stream", running)
    assert "sleep 1000" in podman("top", running)


def test_stop_and_start(podman: peers.Podman, running: str) -> None:
    podman("stop", "-t", "0", running)
    assert podman("inspect", "-f", "{{.State.ExitCode}}", running).strip() == "137"
    podman("start", running)
    assert podman("exec", running, "echo", "again") == "again\n"


def test_pods(podman: peers.Podman) -> None:
    pod = f"p{uuid.uuid4().hex[:8]}"
    # Without the infra container, whose image would have to be built.
    podman("pod", "create", "--name", pod, "--infra=false", "--share=")
    try:
        podman("run", "-d", "--pod", pod, "--name", f"{pod}a", "--network=none", "busybox", "sleep", "1000")
        output = podman("run", "--rm", "--pod", pod, "--network=none", "busybox", "echo", "in the pod")
        assert output == "in the pod\n"
        podman("pod", "pause", pod)
        assert "Paused" in podman("ps", "-a", "--filter", f"name={pod}a", "--format", "{{.State}} {{.Status}}")
        podman("pod", "unpause", pod)
    finally:
        podman("pod", "rm", "-f", "-t", "0", pod)


def test_isolation(podman: peers.Podman) -> None:
    assert int(run(podman, "grep", "CapEff", "/proc/self/status", options=("--cap-drop=all",)).split()[1], 16) == 0
    assert run(podman, "grep", "Seccomp:", "/proc/self/status").split()[1] == "2"
    result = podman.result(
        "run", "--rm", "--network=none", "--read-only", "--read-only-tmpfs=false", "busybox", "touch", "/x", code=1
    )
    assert "Read-only file system" in result.stderr


def test_sd_notify(podman: peers.Podman) -> None:
    """NOTIFY_SOCKET reaches the container; without one there is nothing to pass."""
    assert run(podman, "sh", "-c", "echo ${NOTIFY_SOCKET:-none}") == "none\n"


@pytest.mark.needs("memory", "pids", "cpu")
def test_limits_and_update(podman: peers.Podman) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    podman(
        "run",
        "-d",
        "--name",
        name,
        "--network=none",
        "-m",
        "64m",
        "--pids-limit=50",
        "--cpus=0.5",
        "busybox",
        "sleep",
        "1000",
    )
    try:
        assert podman("exec", name, "cat", "/sys/fs/cgroup/memory.max").strip() == str(64 << 20)
        assert podman("exec", name, "cat", "/sys/fs/cgroup/pids.max").strip() == "50"
        assert podman("exec", name, "cat", "/sys/fs/cgroup/cpu.max").strip() == "50000 100000"
        podman("update", "-m", "96m", "--pids-limit=60", name)
        assert podman("exec", name, "cat", "/sys/fs/cgroup/memory.max").strip() == str(96 << 20)
        assert podman("exec", name, "cat", "/sys/fs/cgroup/pids.max").strip() == "60"
    finally:
        podman("rm", "-f", "-t", "0", name)


def test_user_namespace(podman: peers.Podman) -> None:
    full_proc()
    output = run(podman, "cat", "/proc/self/uid_map", options=("--uidmap", "0:100000:1000"))
    assert output.split() == ["0", "100000", "1000"]


@pytest.mark.needs("vm", "criu")
def test_checkpoint(podman: peers.Podman, tmp_path: Path) -> None:
    """Not in the namespace lab: its kernel is newer than what criu of Debian 13 can restore on."""
    name = f"t{uuid.uuid4().hex[:8]}"
    script = "n=0; while true; do n=$((n+1)); ln -sfn $n /tmp/new; mv /tmp/new /tmp/count; sleep 0.05; done"
    podman("run", "-d", "--name", name, "--network=none", "busybox", "sh", "-c", script)
    try:
        peers.wait_until(lambda: int(podman("exec", name, "readlink", "/tmp/count")) > 5, "it counts")
        podman("container", "checkpoint", name)
        assert "exited" in podman("inspect", "-f", "{{.State.Status}} {{.State.Checkpointed}}", name)
        podman("container", "restore", name)
        before = int(podman("exec", name, "readlink", "/tmp/count"))
        peers.wait_until(lambda: int(podman("exec", name, "readlink", "/tmp/count")) > before, "it counts on")
    finally:
        podman("rm", "-f", "-t", "0", name)


def test_nothing_is_left(podman: peers.Podman) -> None:
    before = set(Path("/sys/fs/cgroup").glob("**/libpod-*"))
    run(podman, "true")
    after = {path for path in Path("/sys/fs/cgroup").glob("**/libpod-*") if not re.search("conmon", path.name)}
    assert after <= before


# ---- buildah -----------------------------------------------------------------------------------

# What buildah asks for by default is more than a lab may give itself.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


@pytest.mark.needs("buildah")
def test_buildah(tmp_path: Path) -> None:
    with peers.buildah(RUNC) as buildah:
        buildah("from", *LIMITS, "--name", "work", f"docker-archive:{peers.archive()}")
        inside = ("run", "--isolation=oci", "--runtime", RUNC, "--network=none", "work")
        assert buildah(*inside, "sh", "-c", "echo x > /y; id -u") == "0\n"
        assert buildah(*inside, "cat", "/y") == "x\n"
        buildah(*inside, "sh", "-c", "exit 3", code=3)
        buildah("commit", "-q", "work", "base")
        file = tmp_path / "Containerfile"
        file.write_text("FROM localhost/base\nRUN echo built > /result\nUSER 1000\nRUN id -u && cat /result /y\n")
        built = buildah(
            "build",
            "--isolation=oci",
            "--runtime",
            RUNC,
            *LIMITS,
            "--network=none",
            "-t",
            "image",
            "-f",
            str(file),
            str(tmp_path),
        )
        assert "1000\nbuilt\nx\n" in built
