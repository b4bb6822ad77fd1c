# SPDX-License-Identifier: Apache-2.0
"""The namespace lab itself: quick, several at once, and gone without a trace. Runs on the host, as root."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import namespace, rootfs

SOURCE = Path(__file__).resolve().parents[2]
SYSCTLS = ("kernel/hostname", "kernel/printk", "kernel/core_pattern", "fs/file-max", "vm/overcommit_memory")
SYSCTLS += ("net/ipv4/ip_forward", "net/core/somaxconn", "kernel/pid_max")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the labs need root")


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"self-{os.getpid()}"
    yield chosen
    for each in namespace.running():
        if each.startswith(chosen):
            namespace.stop(each)


def inside(name: str, *command: str) -> str:
    done = subprocess.run(
        namespace.enter_command(name, command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def traces(name: str) -> list[str]:
    """Everything on the host that belongs to the instance."""
    found = [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{name}/" in line]
    found += [str(path) for path in namespace.INSTANCES.glob(f"{name}*")]
    # Others come and go meanwhile: os.walk goes on where one has gone.
    found += [folder for folder, _, _ in os.walk(namespace._cgroup2()) if name in os.path.basename(folder)]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mounts = (process / "mounts").read_text()
        except OSError:
            continue
        if f"/{name}/" in mounts:
            found.append(f"process {process.name}")
    return found


def host() -> dict[str, object]:
    """What no lab may change."""
    state: dict[str, object] = {each: Path("/proc/sys", each).read_text() for each in SYSCTLS}
    state["links"] = sorted(os.listdir("/sys/class/net"))
    state["rules"] = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=False).stdout
    state["mounts"] = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return state


def test_boots_in_under_three_seconds_from_cache(name: str) -> None:
    rootfs.ensure()
    times: list[float] = []
    while len(times) < 12 and min(times, default=3.0) >= 3:  # another stage may have the processors
        began = time.monotonic()
        namespace.start(name)
        times.append(time.monotonic() - began)
        namespace.stop(name)
    print(f"boots: {', '.join(f'{each:.2f} s' for each in times)}")
    assert min(times) < 3


def test_it_is_a_debian_under_systemd(name: str) -> None:
    namespace.start(name, source=SOURCE)
    assert inside(name, "cat", "/proc/1/comm") == "systemd"
    assert inside(name, "systemctl", "is-system-running") == "running"
    assert inside(name, "ip", "-br", "-o", "address", "show", "lo").split()[2] == "127.0.0.1/8"
    assert inside(name, "cat", "/proc/self/cgroup").splitlines()[-1] == "0::/lab-exec"
    assert inside(name, "ls", "/src/dev") == "/src/dev"
    assert inside(name, "sh", "-c", "touch /src/x 2>/dev/null || echo no") == "no"
    assert inside(name, "stat", "-f", "-c", "%T", "/var/lib") == "ext2/ext3"
    for service in ("docker", "containerd", "podman"):
        assert inside(name, "sh", "-c", f"systemctl is-active {service} || true") == "inactive"


def test_exit_status_and_input(name: str) -> None:
    namespace.start(name)
    assert subprocess.run(namespace.enter_command(name, ["sh", "-c", "exit 7"]), check=False).returncode == 7
    done = subprocess.run(namespace.enter_command(name, ["cat"]), input=b"through", capture_output=True, check=True)
    assert done.stdout == b"through"


@pytest.mark.parametrize("end", ["stop", "kill", "poweroff"])
def test_the_host_is_as_it_was(name: str, end: str) -> None:
    before = host()
    pid = namespace.start(name)
    inside(name, "sh", "-c", "ip link add made type bridge; nft add table inet made; mount -t tmpfs made /mnt")
    inside(name, "sh", "-c", "sysctl -qw net.ipv4.ip_forward=1; sysctl -qw kernel.printk=1 2>/dev/null || true")
    inside(name, "systemd-run", "--quiet", "sleep", "600")
    assert traces(name)
    if end == "stop":
        namespace.stop(name)
    elif end == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        subprocess.run(namespace.enter_command(name, ["systemctl", "poweroff"]), check=False)
    deadline = time.monotonic() + 30
    while traces(name) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert traces(name) == []
    after = host()
    assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == {}


def test_several_at_once_are_apart(name: str) -> None:
    names = [f"{name}-{number}" for number in range(3)]
    for each in names:
        namespace.start(each)
    for each in names:
        inside(each, "sh", "-c", f"echo {each} >/etc/which; ip link add only-{each[-1]} type bridge")
    for each in names:
        assert inside(each, "cat", "/etc/which") == each
        links = inside(each, "ls", "/sys/class/net").split()
        assert f"only-{each[-1]}" in links and len([link for link in links if link.startswith("only-")]) == 1
    namespace.stop(names[0])
    assert namespace.pid_of(names[0]) is None
    assert inside(names[1], "systemctl", "is-system-running") == "running"


def test_a_kept_disk_is_found_again(name: str) -> None:
    namespace.start(name, keep_disk=True)
    inside(name, "sh", "-c", "echo kept >/etc/kept; echo kept >/var/lib/kept; sync")
    namespace.stop(name)
    namespace.start(name)
    assert inside(name, "cat", "/etc/kept", "/var/lib/kept") == "kept\nkept"


def test_a_name_in_use_and_one_that_is_not(name: str) -> None:
    namespace.start(name)
    with pytest.raises(namespace.LabError, match="already running"):
        namespace.start(name)
    with pytest.raises(namespace.LabError, match="is not running"):
        namespace.enter_command(f"{name}-no", ["true"])
