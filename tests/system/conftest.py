# SPDX-License-Identifier: Apache-2.0
"""What every system test has: needs, rounds, time limits, the journal of a failure.

System tests run as root inside a lab (`./dev system PATH` for one, `./dev test` for all), the same
files in the namespace lab and in the VM lab.

    @pytest.mark.needs("memory", "docker")   skipped where the lab has no memory controller or no docker
    @pytest.mark.timeout(300)                seconds for this test, in place of 120 (scaled in a slow VM)
    def test_x(rounds): for _ in range(rounds(50)): ...    few in a VM without hardware acceleration
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import peers
import pytest
from lab_kind import PATIENCE, which_lab

CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma")
RELEASES = ("bookworm", "trixie", "forky")
DEFAULT_LIMIT = 120.0
JOURNAL_LINES = 60

# In a VM without hardware acceleration, about ten times slower, run what only a VM can show, and of the rest
# the whole way of a container; everything else runs in the namespace lab, or with TEU_VM=all here as well.
VM_ONLY = {"apparmor", "cpu", "cpuset", "hugetlb", "io", "memory", "pids", "rdma", "vm"}
VM_FILES = (
    "test_engine_apparmor.py",
    "test_engine_containers.py",
    "test_runc_rootless_cgroups.py",
    "test_whole_deaths.py",
    "test_whole_picture.py",
)
# Of these files only what meets the machine's controllers, its AppArmor or its kernel. What is about records, texts,
# files and wires is the same there, ten times as slow.
VM_TESTS = {
    "test_engine_containers.py": (
        "test_run_takes_its_flags",
        "test_confinement_is_dockers",
        "test_life_cycle",
        "test_a_signal_at_once_waits_for_the_start",
        "test_removal_while_the_shim_dies",
        "test_exec",
        "test_health",
        "test_namespaces_of_others",
        "test_limits",
    ),
    "test_whole_deaths.py": (
        "test_running_containers_keep_running",
        "test_exits_meanwhile_are_known",
        "test_deaths_during_work",
    ),
}
# Where a test is minutes there, and runs for two cgroup drivers: this one is left out.
VM_LEFT_OUT = {"test_runc_peers_podman.py": "cgroupfs"}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@functools.cache
def missing(need: str) -> str:
    """Why this lab does not have what a test needs; empty where it does."""
    if need in CONTROLLERS:
        has = need in _read("/sys/fs/cgroup/cgroup.controllers").split()
        return "" if has else f"no {need} controller in this lab's cgroup v2 tree"
    if need == "apparmor":
        enabled = _read("/sys/module/apparmor/parameters/enabled").strip() == "Y"
        return "" if enabled and Path("/sys/kernel/security/apparmor").is_dir() else "no AppArmor in this kernel"
    if need == "systemd":
        return "" if Path("/run/systemd/system").is_dir() else "systemd is not PID 1"
    if need == "vm":
        return "" if which_lab().startswith("vm") else "not in the VM lab"
    if need == "namespace":
        return "" if which_lab() == "namespace" else "not in the namespace lab"
    if need == "fast":
        return "" if which_lab() != "vm-emulated" else "this VM is emulated, too slow for this test"
    if need == "kvm":
        return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "no /dev/kvm"
    if need == "loop":
        return "" if Path("/dev/loop0").exists() else "no loop devices"
    if need == "nfsd":
        has = subprocess.run(["modprobe", "-q", "nfsd"], capture_output=True, check=False).returncode == 0
        return "" if has else "this kernel has no NFS server"
    if need == "packages":  # the Debian packages, not the working tree in their place
        found = subprocess.run(["dpkg", "-s", "teu"], capture_output=True, check=False)
        return "" if found.returncode == 0 else "Teu's packages are not installed"
    if need in RELEASES:  # that Debian or a later one
        here = re.search(r"^VERSION_CODENAME=(\w+)$", _read("/etc/os-release"), re.MULTILINE)
        has = here and here[1] in RELEASES[RELEASES.index(need) :]
        return "" if has else f"before {need}"
    if need == "oci-validation":  # built and shown by the runner of the namespace stage
        return "" if Path("/opt/oci-validation/runtimetest").exists() else "no OCI validation programs in this lab"
    if need == "newer-docker":  # unpacked and shown by the runner of the namespace stage, or with --newer
        has = Path(f"{peers.NEWER}/usr/sbin/dockerd").exists() and (peers.NEWER or not missing("forky"))
        return "" if has else "no newer docker in this lab"
    if need in ("nri-plugin", "kube-client"):  # built and shown by the runner of the namespace stage, or with --newer
        return "" if Path("/opt", need, need).exists() else f"no {need} in this lab"
    if need == "clients":  # fetched and shown by the runner of the namespace stage, or with --clients
        return "" if Path("/opt/clients/bin/node").exists() else "no clients of Python and Node in this lab"
    if need == "compose":
        plugin = Path("/usr/libexec/docker/cli-plugins/docker-compose").exists()
        return "" if plugin or shutil.which("docker-compose") else "docker compose is not installed"
    if need == "buildx":
        plugin = Path("/usr/libexec/docker/cli-plugins/docker-buildx").exists()
        return "" if plugin else "docker buildx is not installed"
    return "" if shutil.which(need) else f"no program {need} here"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks."""
    # Interrupts may have been ignored by who started us (a shell's background job): the tests' programs need them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(*names): controllers, programs or features the test needs")
    config.addinivalue_line("markers", "timeout(seconds): the test's own limit")


def _selective() -> bool:
    return which_lab() == "vm-emulated" and os.environ.get("TEU_VM") != "all"


def _shown_in_vm(item: pytest.Item) -> bool:
    """Whether a test is one of those that the emulated VM runs though it needs nothing of a VM's."""
    file, name = item.path.name, item.name.partition("[")[0]
    return file in VM_FILES and name in VM_TESTS.get(file, (name,))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Do not even read (compile, import) a file of which this lab runs nothing."""
    name = collection_path.name
    if not _selective() or not name.startswith("test_") or name in VM_FILES:
        return None
    marks = re.findall(r"needs\(([^)]*)\)", collection_path.read_text())
    return None if any(f'"{need}"' in mark for mark in marks for need in VM_ONLY) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this lab does not have, with the reason."""
    outside = which_lab() == "none"
    for item in items:
        if outside:
            item.add_marker(pytest.mark.skip(reason="system tests run inside a lab: ./dev system PATH"))
            continue
        needs = [need for mark in item.iter_markers("needs") for need in mark.args]
        for need in needs:
            if reason := missing(need):
                item.add_marker(pytest.mark.skip(reason=reason))
        if _selective() and not (VM_ONLY & set(needs) or _shown_in_vm(item)):
            item.add_marker(pytest.mark.skip(reason="this VM is emulated: the namespace lab runs it"))
        elif _selective() and f"[{VM_LEFT_OUT.get(item.path.name)}]" in item.name:
            item.add_marker(pytest.mark.skip(reason="this VM is emulated: it runs with the other cgroup driver alone"))


@pytest.fixture(scope="session")
def lab() -> str:
    """namespace, vm or vm-emulated."""
    return which_lab()


@pytest.fixture(scope="session")
def rounds() -> Callable[[int], int]:
    """How many rounds of a loop to do here: all, or of 50 only 3 in an emulated VM; TEU_ROUNDS=5 scales both.

    The numbers in the tests are for every run of the suite; hours of the same are for `./dev soak`."""
    scale = float(os.environ.get("TEU_ROUNDS", "1")) * (0.06 if which_lab() == "vm-emulated" else 1.0)

    def count(wanted: int) -> int:
        return max(1, round(wanted * scale))

    return count


def _limited(item: pytest.Item, phase: str) -> Iterator[None]:
    mark = item.get_closest_marker("timeout")
    seconds = (float(mark.args[0]) if mark else DEFAULT_LIMIT) * PATIENCE

    def overdue(number: int, frame: FrameType | None) -> None:
        # No Exception but a BaseException: no test's own handler swallows it.
        raise pytest.fail.Exception(f"{phase} took longer than {seconds:.0f} s")

    old = signal.signal(signal.SIGALRM, overdue)
    # Again and again: what runs on the way out of the first may block as well.
    signal.setitimer(signal.ITIMER_REAL, seconds, 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Limit the set-up."""
    item.stash[_began] = time.time()
    yield from _limited(item, "set-up")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Limit the test."""
    item.stash[_children] = children()
    yield from _limited(item, "the test")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Limit the clean-up."""
    yield from _limited(item, "clean-up")


_began: pytest.StashKey[float] = pytest.StashKey()
_children: pytest.StashKey[set[int]] = pytest.StashKey()


def children() -> set[int]:
    """The processes that this one has started and not yet reaped."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in _read(f"{task}/children").split()}


def end_left_behind(before: set[int]) -> None:
    """Kill what a failed test has started and left running: it would make others fail that look for such things.
    Daemons of fixtures go on; they are stopped with these."""
    for pid in children() - before - peers.RUNNING:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add to a failure's report what the daemons, shims and systemd logged meanwhile."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and call.when == "call":
        end_left_behind(item.stash.get(_children, children()))
    if not report.failed or not Path("/run/systemd/system").is_dir():
        return
    since = f"@{item.stash.get(_began, time.time()):.3f}"
    command = ["journalctl", "--no-pager", "-q", "-o", "short-precise", "--since", since, "-n", str(JOURNAL_LINES)]
    try:
        done = subprocess.run(
            [*command, "-p", "info", "--no-hostname"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
        )
        report.sections.append((f"journal, last {JOURNAL_LINES} lines", done.stdout))
    except subprocess.TimeoutExpired:
        report.sections.append(("journal", "journalctl did not answer"))
