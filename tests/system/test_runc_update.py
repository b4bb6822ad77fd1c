# SPDX-License-Identifier: Apache-2.0
"""teu-runc update, events: changing and watching the limits of a running container."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runc_bundle import RUNC, Bundle, exec_in, new_bundle

pytestmark = pytest.mark.needs("teu-runc")

Watch = Callable[[Bundle, str, str], subprocess.Popen[str]]


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        made.linux["cgroupsPath"] = f"/teutest/{made.folder.name}"
        yield made


def limit(bundle: Bundle, name: str) -> str:
    return (Path("/sys/fs/cgroup/teutest") / bundle.folder.name / name).read_text().strip()


# ---- update ------------------------------------------------------------------------------------


def test_of_nobody_and_of_a_stopped_one(bundle: Bundle) -> None:
    done = bundle.runc("update", "--memory", "5m", "nobody")
    assert done.returncode == 1 and "container does not exist" in done.stderr
    identifier = bundle.detached()
    bundle.ok("kill", identifier, "KILL")
    bundle.wait_status(identifier, "stopped")
    done = bundle.runc("update", "--pids-limit", "5", identifier)
    assert done.returncode == 1 and "not running" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--memory", "much"), "invalid value for memory"),
        (("--cpu-share", "-5"), "invalid value for cpu-share"),
        (("--cpuset-cpus", "x"), "linux.resources.cpu.cpus"),
        (("--memory-swap", "5m"), "linux.resources.memory.swap"),
        (("--blkio-weight", "5"), "linux.resources.blockIO.weight"),
        (("--l3-cache-schema", "L3:0=f"), "Intel RDT"),
        (("-r", "/no/such/file"), "/no/such/file"),
    ],
)
def test_bad_values(bundle: Bundle, words: tuple[str, ...], said: str) -> None:
    identifier = bundle.detached()
    done = bundle.runc("update", *words, identifier)
    assert done.returncode == 1 and said in done.stderr
    assert bundle.status(identifier) == "running"


def test_bad_files(bundle: Bundle) -> None:
    identifier = bundle.detached()
    for text in ("", "{", "[]", '{"memory": 5}', '{"cpu": {"shares": "x"}}'):
        done = bundle.runc("update", "-r", "-", identifier, input=text)
        assert done.returncode == 1, text
        assert "Traceback" not in done.stderr


@pytest.mark.needs("hugetlb")
def test_resources_from_standard_input(bundle: Bundle) -> None:
    identifier = bundle.detached()
    change = {"unified": {"hugetlb.2MB.max": "2097152"}}
    bundle.ok("update", "-r", "-", identifier, input=json.dumps(change))
    assert limit(bundle, "hugetlb.2MB.max") == "2097152"


def test_devices_stay(bundle: Bundle) -> None:
    bundle.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    identifier = bundle.detached()
    bundle.ok("update", "--pids-limit", "-1", identifier)
    script = "echo x > /dev/null && mknod /mem c 1 1 && cat /mem 2>&1 || true"
    assert exec_in(bundle, identifier, script).endswith("Operation not permitted")


@pytest.mark.needs("memory", "pids", "cpu", "cpuset")
def test_every_flag(bundle: Bundle) -> None:
    identifier = bundle.detached()
    bundle.ok(
        "update",
        "--memory",
        "64M",
        "--memory-reservation",
        "32m",
        "--pids-limit",
        "20",
        "--cpu-share",
        "512",
        "--cpu-period",
        "100000",
        "--cpu-quota",
        "50000",
        "--cpu-burst",
        "10000",
        "--cpuset-cpus",
        "0",
        "--cpuset-mems",
        "0",
        identifier,
    )
    assert limit(bundle, "memory.max") == str(64 << 20)
    assert limit(bundle, "memory.low") == str(32 << 20)
    assert limit(bundle, "pids.max") == "20"
    assert limit(bundle, "cpu.weight") == "59"
    assert limit(bundle, "cpu.max") == "50000 100000"
    assert limit(bundle, "cpu.max.burst") == "10000"
    assert limit(bundle, "cpuset.cpus") == "0"
    # What is not mentioned stays.
    bundle.ok("update", "--cpu-quota", "20000", identifier)
    assert limit(bundle, "cpu.max") == "20000 100000"
    assert limit(bundle, "memory.max") == str(64 << 20)
    bundle.ok("update", "--cpu-period", "50000", identifier)
    assert limit(bundle, "cpu.max") == "20000 50000"
    bundle.ok("update", "--memory", "-1", "--pids-limit", "-1", "--cpu-quota", "-1", identifier)
    assert limit(bundle, "memory.max") == "max"
    assert limit(bundle, "pids.max") == "max"
    assert limit(bundle, "cpu.max") == "max 50000"
    bundle.ok("update", "--cpu-idle", "1", identifier)
    assert limit(bundle, "cpu.idle") == "1"
    bundle.ok("update", "--cpu-idle", "0", identifier)
    assert limit(bundle, "cpu.idle") == "0"


@pytest.mark.needs("memory")
def test_memory_and_swap(bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 32 << 20, "swap": 64 << 20}}
    identifier = bundle.detached()
    # Raising memory above memory plus swap makes no sense.
    done = bundle.runc("update", "--memory", "96m", identifier)
    assert done.returncode == 1 and "linux.resources.memory.swap" in done.stderr
    bundle.ok("update", "--memory", "96m", "--memory-swap", "128m", identifier)
    assert limit(bundle, "memory.max") == str(96 << 20)
    bundle.ok("update", "--memory-swap", "-1", identifier)
    if (Path("/sys/fs/cgroup/teutest") / bundle.folder.name / "memory.swap.max").exists():
        assert limit(bundle, "memory.swap.max") == "max"


@pytest.mark.needs("memory")
def test_check_before_update(bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 64 << 20}}
    identifier = bundle.detached("sh", "-c", "head -c 20000000 /dev/zero > /dev/shm/x; exec sleep 1000")
    bundle.wait_status(identifier, "running")
    change: dict[str, Any] = {"memory": {"limit": 1 << 20, "swap": 1 << 20, "checkBeforeUpdate": True}}
    deadline = time.monotonic() + 20
    while int(limit(bundle, "memory.current")) < 20_000_000 and time.monotonic() < deadline:
        time.sleep(0.02)
    done = bundle.runc("update", "-r", "-", identifier, input=json.dumps(change))
    assert done.returncode == 1 and "rejecting memory" in done.stderr
    assert bundle.status(identifier) == "running"


@pytest.mark.needs("memory", "cpu")
def test_units_follow(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = f"teutest.slice:unit:{bundle.folder.name}"
    bundle.process["args"] = ["sleep", "1000"]
    bundle.write()
    identifier = bundle.new_id()
    bundle.leaving("--systemd-cgroup", "run", "-d", identifier)
    bundle.ok("update", "--memory", "64m", "--cpu-quota", "12345", "--cpu-period", "100000", identifier)

    def show(name: str) -> str:
        unit = f"unit-{bundle.folder.name}.scope"
        return subprocess.run(["systemctl", "show", "-P", name, unit], capture_output=True, text=True).stdout.strip()

    assert show("MemoryMax") == str(64 << 20)
    # In whole percents, rounded up, and the cgroup has the same.
    assert show("CPUQuotaPerSecUSec") == "130ms"
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    where = Path("/sys/fs/cgroup/teutest.slice") / f"unit-{bundle.folder.name}.scope"
    assert (where / "memory.max").read_text().strip() == str(64 << 20)
    assert (where / "cpu.max").read_text().strip() == "13000 100000"


# ---- events ------------------------------------------------------------------------------------


def test_stats(bundle: Bundle) -> None:
    identifier = bundle.detached()
    event = json.loads(bundle.ok("events", "--stats", identifier))
    assert event["type"] == "stats" and event["id"] == identifier
    data = event["data"]
    assert {"cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"} == set(data)
    assert data["cpu"]["usage"]["total"] > 0
    assert data["pids"]["current"] == 1


@pytest.mark.needs("memory")
def test_stats_of_memory(bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 64 << 20}}
    identifier = bundle.detached()
    memory = json.loads(bundle.ok("events", "--stats", identifier))["data"]["memory"]
    assert memory["usage"]["limit"] == 64 << 20
    assert 0 < memory["usage"]["usage"] < 64 << 20
    assert "anon" in memory["raw"]


def test_stats_of_a_stopped_one(bundle: Bundle) -> None:
    identifier = bundle.detached("true")
    bundle.wait_status(identifier, "stopped")
    done = bundle.runc("events", "--stats", identifier)
    assert done.returncode == 1 and "is not running" in done.stderr


@pytest.mark.parametrize("interval", ["0s", "x", "-1s", "5"])
def test_bad_intervals(bundle: Bundle, interval: str) -> None:
    identifier = bundle.detached()
    assert bundle.runc("events", f"--interval={interval}", identifier).returncode == 1


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Starts `teu-runc events`; what a failed test has left of them does not outlive it."""
    started = []

    def start(bundle: Bundle, identifier: str, interval: str) -> subprocess.Popen[str]:
        command = [RUNC, "--root", str(bundle.root), "events", "--interval", interval, identifier]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def ended(events: subprocess.Popen[str]) -> None:
    """It ends by itself, and well. What it still has to say is read, or it could not end."""
    events.communicate(timeout=100)
    assert events.returncode == 0


def test_a_stream_that_ends_with_the_container(bundle: Bundle, watch: Watch) -> None:
    identifier = bundle.detached()
    events = watch(bundle, identifier, "50ms")
    assert events.stdout
    for _ in range(3):
        assert json.loads(events.stdout.readline())["type"] == "stats"
    bundle.ok("kill", identifier, "KILL")
    ended(events)


def watching(events: subprocess.Popen[str]) -> None:
    """Wait until it does: before the container goes."""
    files = Path(f"/proc/{events.pid}/fd")
    deadline = time.monotonic() + 100
    while not any(os.path.realpath(file).endswith("/cgroup.events") for file in files.iterdir()):
        assert events.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_it_ends_without_waiting_for_the_interval(bundle: Bundle, watch: Watch) -> None:
    identifier = bundle.detached()
    events = watch(bundle, identifier, "1h")
    watching(events)
    bundle.ok("delete", "-f", identifier)
    ended(events)


def test_it_ends_with_the_first_process(bundle: Bundle, watch: Watch) -> None:
    """Also where the cgroup does not tell: another process is in it still."""
    identifier = bundle.detached()
    events = watch(bundle, identifier, "1h")
    watching(events)
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            Path(f"/sys/fs/cgroup/teutest/{bundle.folder.name}/cgroup.procs").write_text(str(stranger.pid))
            bundle.ok("kill", identifier, "KILL")
            ended(events)
        finally:
            stranger.kill()


@pytest.mark.needs("memory")
def test_out_of_memory(bundle: Bundle, watch: Watch) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 24 << 20, "swap": 24 << 20}}
    # Not its parent's: what has -1000 is never killed, it only fails.
    bundle.process["oomScoreAdj"] = 0
    script = "read x < /go; head -c 100000000 /dev/zero | tail > /dev/null; exec sleep 1000"
    (bundle.rootfs / "go").unlink(missing_ok=True)
    subprocess.run(["mkfifo", str(bundle.rootfs / "go")], check=True)
    identifier = bundle.detached("sh", "-c", script)
    events = watch(bundle, identifier, "50ms")
    assert events.stdout
    # It watches from the first event on.
    assert json.loads(events.stdout.readline())["type"] == "stats"
    (bundle.rootfs / "go").write_text("go\n")
    while (event := json.loads(events.stdout.readline()))["type"] == "stats":
        pass
    assert event == {"type": "oom", "id": identifier}
    bundle.ok("delete", "-f", identifier)
    ended(events)
