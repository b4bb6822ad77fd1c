# SPDX-License-Identifier: Apache-2.0
"""Debian's podman as an ordinary user runs teu-runc: run, exec, pods, and the user manager's cgroups.

podman makes the user namespace itself, with subordinate ids by newuidmap, and starts the runtime as its root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import peers
import pytest
from runc_bundle import full_proc

RUNC = "/usr/sbin/teu-runc"
USER, UID, FIRST = "teupodman", 4715, 700000
HOME = Path("/var/lib") / USER
RUNTIME = Path(f"/run/user/{UID}")
pytestmark = pytest.mark.needs("podman", "teu-runc", "newuidmap", "systemd", "setpriv", "loginctl", "dbus-daemon")

# What Debian's dbus-user-session brings: podman finds the user's manager by this bus alone.
BUS = {
    "dbus.socket": "[Socket]\nListenStream=%t/bus\n",
    "dbus.service": (
        "[Unit]\nRequires=dbus.socket\n[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon --session "
        "--address=systemd: --nofork --nopidfile --systemd-activation --syslog-only\n"
    ),
}


class UserPodman:
    """podman of the user; calling it runs it and gives its output."""

    def __init__(self, cgroup_manager: str) -> None:
        environment = [f"HOME={HOME}", f"PATH={os.environ['PATH']}", f"XDG_RUNTIME_DIR={RUNTIME}"]
        environment += [f"CONTAINERS_CONF={HOME}/containers.conf"]
        self.user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups", "--inh-caps=-all"]
        self.user += ["env", "-i", "-C", str(HOME), *environment]
        self.client = [*self.user, "podman", "--runtime", RUNC, f"--cgroup-manager={cgroup_manager}"]

    def __call__(self, *argv: str, code: int | None = 0) -> str:
        return peers.run(*self.client, *argv, code=code).stdout


def subordinate_ids(line: str) -> None:
    """This, and not what useradd took from its range."""
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(one for one in lines if not one.startswith(f"{USER}:")) + line)


@pytest.fixture(scope="module")
def user() -> Iterator[None]:
    """A user with subordinate ids, a manager of its own and a message bus."""
    full_proc()
    peers.run("useradd", "-u", str(UID), "-m", "-d", str(HOME), USER)
    subordinate_ids(f"{USER}:{FIRST}:65536\n")
    units = HOME / ".config/systemd/user"
    units.mkdir(parents=True)
    for name, text in BUS.items():
        (units / name).write_text(text)
    shutil.copy(peers.archive(), HOME / "busybox.tar")
    pids = "pids" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    (HOME / "containers.conf").write_text("[containers]\n" + ("" if pids else "pids_limit = 0\n"))
    peers.run("chown", "-R", f"{UID}:{UID}", str(HOME))
    peers.run("loginctl", "enable-linger", USER)
    podman = UserPodman("systemd")
    try:
        peers.wait_until((RUNTIME / "systemd/private").exists, "the user's manager is there")
        peers.run(*podman.user, "systemctl", "--user", "start", "dbus.socket")
        podman("load", "-i", str(HOME / "busybox.tar"))
        yield
    finally:
        peers.run(*podman.user, "podman", "system", "migrate", code=None)
        peers.run("loginctl", "disable-linger", USER, code=None)
        peers.run("systemctl", "stop", f"user@{UID}", code=None)
        peers.run("userdel", USER, code=None)
        subordinate_ids("")
        peers.clear(HOME)


@pytest.fixture(params=["systemd", "cgroupfs"])
def podman(user: None, request: pytest.FixtureRequest) -> Iterator[UserPodman]:
    client = UserPodman(request.param)
    yield client
    client("pod", "rm", "-fa", "-t", "0", code=None)
    client("rm", "-fa", "-t", "0", code=None)


def test_run_and_exec(podman: UserPodman) -> None:
    said = podman("run", "--rm", "--network=none", "busybox", "sh", "-c", "id -u; cat /proc/self/uid_map")
    assert said.split() == ["0", "0", str(UID), "1", "1", str(FIRST), "65536"]
    podman("run", "--rm", "--network=none", "busybox", "sh", "-c", "exit 7", code=7)
    podman("run", "-d", "--name", "one", "--network=none", "busybox", "sleep", "1000")
    assert podman("exec", "one", "cat", "/proc/1/comm") == "sleep\n"
    assert podman("exec", "-u", "7", "-e", "A=b", "one", "sh", "-c", "id -u; echo $A") == "7\nb\n"
    podman("exec", "one", "sh", "-c", "exit 9", code=9)
    pid = int(podman("inspect", "-f", "{{.State.Pid}}", "one"))
    assert f"Uid:\t{UID}\t" in Path(f"/proc/{pid}/status").read_text(), "root inside is the user outside"
    podman("stop", "-t", "0", "one")
    assert podman("inspect", "-f", "{{.State.ExitCode}}", "one").strip() == "137"


def test_pods(podman: UserPodman) -> None:
    pod = f"p{uuid.uuid4().hex[:8]}"
    podman("pod", "create", "--name", pod, "--infra=false", "--share=")
    podman("run", "-d", "--pod", pod, "--name", f"{pod}a", "--network=none", "busybox", "sleep", "1000")
    assert podman("run", "--rm", "--pod", pod, "--network=none", "busybox", "echo", "in the pod") == "in the pod\n"
    assert podman("pod", "inspect", "-f", "{{.State}}", pod).strip() == "Running"


@pytest.mark.parametrize("podman", ["systemd"], indirect=True)
def test_the_users_manager_has_the_scope(podman: UserPodman) -> None:
    podman("run", "-d", "--name", "one", "--network=none", "busybox", "sleep", "1000")
    pid = int(podman("inspect", "-f", "{{.State.Pid}}", "one"))
    (cgroup,) = (line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    where = Path("/sys/fs/cgroup") / cgroup[4:]
    assert where.parent == Path(f"/sys/fs/cgroup/user.slice/user-{UID}.slice/user@{UID}.service/user.slice")
    assert where.name.startswith("libpod-") and where.name.endswith(".scope")
    units = subprocess.run(
        [*podman.user, "systemctl", "--user", "list-units", "--plain", where.name], capture_output=True, text=True
    )
    assert f"{where.name} loaded active" in " ".join(units.stdout.split())
    podman("pause", "one")
    assert (where / "cgroup.freeze").read_text().strip() == "1"
    podman("unpause", "one")
    podman("rm", "-f", "-t", "0", "one")
    peers.wait_until(lambda: not where.exists(), "the scope has gone")
