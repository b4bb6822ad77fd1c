# SPDX-License-Identifier: Apache-2.0
"""teu-runc: where containers' cgroups are, what their limits do, who may use which device."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runc_bundle import Bundle, exec_in, new_bundle

CGROUPS = Path("/sys/fs/cgroup")
pytestmark = pytest.mark.needs("teu-runc")


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    with new_bundle() as made:
        yield made


@pytest.fixture(params=["cgroupfs", "systemd"])
def driver(request: pytest.FixtureRequest, bundle: Bundle) -> str:
    """Both drivers; with systemd every command of the bundle has --systemd-cgroup."""
    if request.param == "systemd":
        bundle.linux["cgroupsPath"] = f"teutest.slice:unit:{bundle.folder.name}"
    else:
        bundle.linux["cgroupsPath"] = f"/teutest/{bundle.folder.name}"
    return str(request.param)


def start(bundle: Bundle, driver: str, *args: str) -> str:
    """A running container."""
    bundle.process["args"] = list(args or ("sleep", "1000"))
    bundle.write()
    identifier = bundle.new_id()
    options = ("--systemd-cgroup",) if driver == "systemd" else ()
    bundle.leaving(*options, "run", "-d", identifier)
    return identifier


def refused(bundle: Bundle, driver: str) -> str:
    """The error of a container that must not come to be; nothing of it may be left."""
    bundle.process["args"] = ["true"]
    bundle.write()
    options = ("--systemd-cgroup",) if driver == "systemd" else ()
    done = bundle.runc(*options, "run", bundle.new_id())
    assert done.returncode == 1, done
    assert not place(bundle, driver).exists()
    return done.stderr


def place(bundle: Bundle, driver: str) -> Path:
    if driver == "systemd":
        return CGROUPS / "teutest.slice" / f"unit-{bundle.folder.name}.scope"
    return CGROUPS / "teutest" / bundle.folder.name


def cgroup_of(pid: int) -> Path:
    line = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    return CGROUPS / line[4:]


def show(unit: str, name: str) -> str:
    return subprocess.run(
        ["systemctl", "show", "-P", name, unit], capture_output=True, text=True, check=True
    ).stdout.strip()


# ---- places ------------------------------------------------------------------------------------


def test_made_and_removed(bundle: Bundle, driver: str) -> None:
    identifier = start(bundle, driver)
    assert cgroup_of(bundle.pid(identifier)) == place(bundle, driver)
    bundle.ok("delete", "-f", identifier)
    assert not place(bundle, driver).exists()


def test_cgroups_below_are_removed_as_well(bundle: Bundle, driver: str) -> None:
    identifier = start(bundle, driver)
    below = place(bundle, driver) / "a/b/c"
    below.mkdir(parents=True)
    bundle.ok("kill", identifier, "KILL")
    bundle.wait_status(identifier, "stopped")
    bundle.ok("delete", identifier)
    assert not place(bundle, driver).exists()


def test_no_path_is_beside_the_runtime(bundle: Bundle) -> None:
    identifier = bundle.detached()
    own = Path("/proc/self/cgroup").read_text().splitlines()[-1][3:]
    assert cgroup_of(bundle.pid(identifier)) == CGROUPS / os.path.dirname(own)[1:] / identifier


def test_a_relative_path(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = f"rel/{bundle.folder.name}"
    identifier = bundle.detached()
    own = Path("/proc/self/cgroup").read_text().splitlines()[-1][3:]
    where = CGROUPS / os.path.dirname(own)[1:] / "rel" / bundle.folder.name
    assert cgroup_of(bundle.pid(identifier)) == where


def test_a_path_cannot_climb_out(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = f"/../../../teutest/{bundle.folder.name}"
    identifier = bundle.detached()
    assert cgroup_of(bundle.pid(identifier)) == CGROUPS / "teutest" / bundle.folder.name


def test_the_container_sees_its_own_root(bundle: Bundle, driver: str) -> None:
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", "nosuid", "noexec", "nodev"])
    identifier = start(bundle, driver)
    assert exec_in(bundle, identifier, "cat /proc/self/cgroup").splitlines()[-1] == "0::/"
    assert exec_in(bundle, identifier, "cat /sys/fs/cgroup/cgroup.procs; touch /sys/fs/cgroup/x 2>&1 || true").endswith(
        "Read-only file system"
    )


def test_a_process_joins(bundle: Bundle, driver: str) -> None:
    identifier = start(bundle, driver)
    where = place(bundle, driver)
    bundle.leaving("exec", "-d", identifier, "sleep", "999")
    assert len((where / "cgroup.procs").read_text().split()) == 2
    assert len(bundle.ok("ps", "-f", "json", identifier).strip("[]\n").split(",")) == 2


def test_exec_into_a_cgroup_below(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = f"/teutest/{bundle.folder.name}"
    identifier = bundle.detached()
    (place(bundle, "cgroupfs") / "below").mkdir()
    bundle.leaving("exec", "-d", "--cgroup", "below", identifier, "sleep", "999")
    assert len((place(bundle, "cgroupfs") / "below/cgroup.procs").read_text().split()) == 1
    done = bundle.runc("exec", "--cgroup", "nowhere", identifier, "true")
    assert done.returncode != 0 and "nowhere" in done.stderr
    done = bundle.runc("exec", "--cgroup", "../../..", identifier, "true")
    assert done.returncode != 0


def test_a_cgroup_in_use(bundle: Bundle, driver: str) -> None:
    """The other container keeps its cgroup, its unit and its processes."""
    identifier = start(bundle, driver)
    (place(bundle, driver) / "below").mkdir()
    options = ("--systemd-cgroup",) if driver == "systemd" else ()
    for verb in ("create", "run"):
        second = bundle.new_id()
        done = bundle.runc(*options, verb, second)
        assert done.returncode == 1 and "container's cgroup is not empty" in done.stderr
        assert not (bundle.root / second).exists()
    assert bundle.status(identifier) == "running"
    assert (place(bundle, driver) / "below").exists()


def test_a_frozen_cgroup(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = f"/teutest/{bundle.folder.name}"
    where = place(bundle, "cgroupfs")
    where.mkdir(parents=True)
    (where / "cgroup.freeze").write_text("1")
    bundle.write()
    done = bundle.runc("run", bundle.new_id())
    assert done.returncode == 1 and "container's cgroup unexpectedly frozen" in done.stderr
    where.rmdir()


# ---- systemd -----------------------------------------------------------------------------------


def test_the_scope(bundle: Bundle) -> None:
    identifier = start(bundle, systemd(bundle))
    unit = f"unit-{bundle.folder.name}.scope"
    assert show(unit, "ActiveState") == "active"
    assert show(unit, "Slice") == "teutest.slice"
    assert show(unit, "Delegate") == "yes"
    assert identifier in show(unit, "Description")
    assert show(unit, "ControlGroup") == f"/teutest.slice/{unit}"
    bundle.ok("delete", "-f", identifier)
    assert show(unit, "LoadState") == "not-found"


def systemd(bundle: Bundle) -> str:
    bundle.linux["cgroupsPath"] = f"teutest.slice:unit:{bundle.folder.name}"
    return "systemd"


def test_the_default_scope(bundle: Bundle) -> None:
    identifier = start(bundle, "systemd")
    assert cgroup_of(bundle.pid(identifier)) == CGROUPS / "system.slice" / f"runc-{identifier}.scope"


def test_properties_by_annotation(bundle: Bundle) -> None:
    driver = systemd(bundle)
    bundle.config["annotations"] = {
        "org.systemd.property.TimeoutStopSec": "uint64 12",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
    }
    start(bundle, driver)
    unit = f"unit-{bundle.folder.name}.scope"
    assert show(unit, "TimeoutStopUSec") == "12s"
    assert show(unit, "CollectMode") == "inactive-or-failed"


def test_a_bad_property(bundle: Bundle) -> None:
    driver = systemd(bundle)
    bundle.config["annotations"] = {"org.systemd.property.NoSuchThing": "true"}
    assert "NoSuchThing" in refused(bundle, driver)


def test_a_bad_path_for_systemd(bundle: Bundle) -> None:
    bundle.linux["cgroupsPath"] = f"/teutest/{bundle.folder.name}"
    assert "with systemd it has the form" in refused(bundle, "systemd")


def test_devices_survive_a_reload(bundle: Bundle) -> None:
    identifier = start(bundle, systemd(bundle))
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert exec_in(bundle, identifier, "echo x > /dev/null && mknod /mem c 1 1 && cat /mem 2>&1 || true").endswith(
        "Operation not permitted"
    )


# ---- devices -----------------------------------------------------------------------------------

READ_NODE = "mknod /node {} && dd if=/node of=/dev/null bs=1 count=1 2>&1 | head -n 1"


def test_default_devices(bundle: Bundle, driver: str) -> None:
    identifier = start(bundle, driver)
    script = "echo x > /dev/null && head -c 1 /dev/zero | wc -c && head -c 2 /dev/urandom | wc -c"
    assert exec_in(bundle, identifier, script).split() == ["1", "2"]
    assert "Operation not permitted" in exec_in(bundle, identifier, READ_NODE.format("c 1 11"))


def test_device_rules_in_order(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "access": "r"},
            {"allow": False, "type": "c", "major": 1, "minor": 1, "access": "rwm"},
        ]
    }
    identifier = start(bundle, driver)
    script = "mknod /full c 1 7; mknod /kmsg c 1 11; mknod /mem c 1 1 2>&1; head -c 1 /full | wc -c; echo x > /kmsg"
    said = bundle.runc("exec", identifier, "sh", "-c", f"{script}; cat /mem")
    assert said.stdout.strip().endswith("1")
    assert "/kmsg: Operation not permitted" in said.stderr
    assert "/mem" in said.stderr


def test_allow_all_devices(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    identifier = start(bundle, driver)
    # Opened is enough; reading the log would need CAP_SYSLOG.
    said = exec_in(bundle, identifier, "mknod /node c 10 229 && (: < /node) 2>&1 || true")
    assert "Operation not permitted" not in said


def test_rules_of_exec_are_the_same(bundle: Bundle) -> None:
    bundle.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    identifier = bundle.detached()
    assert "Operation not permitted" in exec_in(bundle, identifier, READ_NODE.format("b 7 0"))


# ---- limits ------------------------------------------------------------------------------------


def limit(bundle: Bundle, driver: str, name: str) -> str:
    return (place(bundle, driver) / name).read_text().strip()


@pytest.mark.needs("namespace")
@pytest.mark.parametrize(
    ("resources", "field", "controller"),
    [
        ({"memory": {"limit": 64 << 20}}, "memory.limit", "memory"),
        ({"pids": {"limit": 5}}, "pids.limit", "pids"),
        ({"cpu": {"shares": 512}}, "cpu.shares", "cpu"),
        ({"unified": {"memory.high": "1000000"}}, "unified[memory.high]", "memory"),
    ],
)
def test_a_missing_controller(
    bundle: Bundle, driver: str, resources: dict[str, Any], field: str, controller: str
) -> None:
    bundle.linux["resources"] = resources
    said = refused(bundle, driver)
    assert f"linux.resources.{field}: the requested cgroup controller `{controller}` is not available" in said


@pytest.mark.needs("namespace")
def test_no_limit_needs_no_controller(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {
        "memory": {"limit": -1, "swap": -1},
        "pids": {"limit": -1},
        "cpu": {"shares": 1024, "quota": -1, "period": 0},
        "blockIO": {"weight": 0},
    }
    start(bundle, driver)


@pytest.mark.needs("hugetlb")
def test_hugetlb(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
    start(bundle, driver)
    assert limit(bundle, driver, "hugetlb.2MB.max") == str(4 << 20)
    assert limit(bundle, driver, "hugetlb.2MB.rsvd.max") == str(4 << 20)


@pytest.mark.needs("hugetlb")
def test_unified(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {"unified": {"hugetlb.2MB.max": "2097152", "cgroup.max.descendants": "7"}}
    start(bundle, driver)
    assert limit(bundle, driver, "hugetlb.2MB.max") == "2097152"
    assert limit(bundle, driver, "cgroup.max.descendants") == "7"


@pytest.mark.needs("rdma", "vm")
def test_rdma_of_a_device_that_is_not_there(bundle: Bundle, driver: str) -> None:
    """The labs have no such device: the limit reaches the kernel, whose refusal says which one."""
    bundle.linux["resources"] = {"rdma": {"mlx5_1": {"hcaHandles": 3}}}
    said = refused(bundle, driver)
    assert "rdma" in said and "mlx5_1" in said


def test_unified_that_no_kernel_knows(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {"unified": {"cgroup.nothing": "1"}}
    assert "linux.resources.unified[cgroup.nothing]: this kernel has no cgroup.nothing" in refused(bundle, driver)


@pytest.mark.needs("memory")
def test_memory(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 16 << 20}}
    start(bundle, driver)
    assert limit(bundle, driver, "memory.max") == str(64 << 20)
    assert limit(bundle, driver, "memory.low") == str(16 << 20)
    if (place(bundle, driver) / "memory.swap.max").exists():
        assert limit(bundle, driver, "memory.swap.max") == str(32 << 20)
    if driver == "systemd":
        assert show(f"unit-{bundle.folder.name}.scope", "MemoryMax") == str(64 << 20)


@pytest.mark.needs("memory")
def test_six_megabytes_are_enough(bundle: Bundle, driver: str) -> None:
    """Nothing of the runtime is charged to the container."""
    bundle.linux["resources"] = {"memory": {"limit": 6 << 20, "swap": 6 << 20}}
    identifier = start(bundle, driver)
    assert bundle.status(identifier) == "running"
    assert int(limit(bundle, driver, "memory.peak")) < 6 << 20
    assert exec_in(bundle, identifier, "echo small") == "small"


@pytest.mark.needs("cpu", "cpuset")
def test_cpu(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "burst": 10000, "cpus": "0", "mems": "0"}
    }
    start(bundle, driver)
    assert limit(bundle, driver, "cpu.weight") == "59"
    assert limit(bundle, driver, "cpu.max") == "50000 100000"
    assert limit(bundle, driver, "cpu.max.burst") == "10000"
    assert limit(bundle, driver, "cpuset.cpus") == "0"
    if driver == "systemd":
        unit = f"unit-{bundle.folder.name}.scope"
        assert show(unit, "CPUQuotaPerSecUSec") == "500ms"
        assert show(unit, "AllowedCPUs") == "0"


@pytest.mark.needs("cpu")
def test_cpu_idle(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {"cpu": {"idle": 1}}
    start(bundle, driver)
    assert limit(bundle, driver, "cpu.idle") == "1"


@pytest.mark.needs("pids")
def test_pids(bundle: Bundle, driver: str) -> None:
    bundle.linux["resources"] = {"pids": {"limit": 10}}
    identifier = start(bundle, driver)
    assert limit(bundle, driver, "pids.max") == "10"
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait"
    done = bundle.runc("exec", identifier, "sh", "-c", script)
    assert "can't fork" in done.stderr
    if driver == "systemd":
        assert show(f"unit-{bundle.folder.name}.scope", "TasksMax") == "10"


@pytest.mark.needs("io", "vm")
def test_block_io(bundle: Bundle, driver: str) -> None:
    device = os.stat("/").st_dev
    major, minor = os.major(device), os.minor(device)
    if not Path(f"/sys/dev/block/{major}:{minor}").exists():
        pytest.skip("the root file system is on no block device")
    disk = Path(f"/sys/dev/block/{major}:{minor}").resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    major, minor = (int(part) for part in (disk / "dev").read_text().split(":"))
    bundle.linux["resources"] = {
        "blockIO": {
            "throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1 << 20}],
            "throttleWriteIOPSDevice": [{"major": major, "minor": minor, "rate": 100}],
        }
    }
    start(bundle, driver)
    assert limit(bundle, driver, "io.max") == f"{major}:{minor} rbps=1048576 wbps=max riops=max wiops=100"


# ---- freezing and killing ----------------------------------------------------------------------


def test_pause_stops_everything(bundle: Bundle, driver: str) -> None:
    identifier = start(bundle, driver, "sh", "-c", "while true; do n=$((n+1)); echo $n > /count; done")
    count = bundle.rootfs / "count"
    deadline = time.monotonic() + 10
    while not count.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    bundle.ok("pause", identifier)
    assert bundle.status(identifier) == "paused"
    before = count.read_text()
    time.sleep(0.1)
    assert count.read_text() == before
    done = bundle.runc("pause", identifier)
    assert done.returncode == 1 and "container not running or created: paused" in done.stderr
    done = bundle.runc("exec", identifier, "true")
    assert done.returncode != 0 and "paused" in done.stderr
    bundle.ok("resume", identifier)
    assert bundle.status(identifier) == "running"
    done = bundle.runc("resume", identifier)
    assert done.returncode == 1 and "container not paused" in done.stderr


def test_delete_a_paused_container(bundle: Bundle, driver: str) -> None:
    identifier = start(bundle, driver)
    bundle.ok("pause", identifier)
    bundle.ok("delete", "-f", identifier)
    assert not place(bundle, driver).exists()


def test_kill_a_paused_container(bundle: Bundle) -> None:
    identifier = bundle.detached()
    bundle.ok("pause", identifier)
    bundle.ok("kill", identifier, "KILL")
    bundle.wait_status(identifier, "stopped")


def test_nobody_stays_behind(bundle: Bundle, driver: str) -> None:
    """In the host's pid namespace the end of the first process ends no other: the cgroup does."""
    bundle.without_namespace("pid")
    identifier = start(bundle, driver, "sh", "-c", "sleep 998 & sleep 997 & exec sleep 1000")
    where = place(bundle, driver)
    deadline = time.monotonic() + 10
    while len(pids := (where / "cgroup.procs").read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pids) == 3
    bundle.ok("delete", "-f", identifier)
    assert not where.exists()
    assert not any(
        Path(f"/proc/{pid}/cmdline").exists() and b"99" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids
    )
