# SPDX-License-Identifier: Apache-2.0
"""Conversions from version 1's words, and what is written where: into a folder of plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from teu.linux import cgroup_stats, cgroups
from teu.linux.cgroup_files import CgroupError


@pytest.mark.parametrize(
    ("shares", "weight"),
    [
        (0, 0),
        (1, 1),
        (2, 1),
        (3, 2),
        (10, 4),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (262143, 10000),
        (262144, 10000),
        (999999, 10000),
    ],
)
def test_cpu_weight(shares: int, weight: int) -> None:
    assert cgroups.cpu_weight(shares) == weight


@pytest.mark.parametrize(("weight", "converted"), [(0, 0), (10, 1), (500, 4950), (1000, 10000)])
def test_io_weight(weight: int, converted: int) -> None:
    assert cgroups.io_weight(weight) == converted


@pytest.mark.parametrize(
    ("swap", "memory", "result"),
    [(None, None, None), (0, 100, None), (0, -1, -1), (-1, 100, -1), (300, 100, 200), (100, 100, 0), (300, -1, 300)],
)
def test_swap_limit(swap: int | None, memory: int | None, result: int | None) -> None:
    assert cgroups.swap_limit(swap, memory) == result


@pytest.mark.parametrize(("swap", "memory"), [(100, 0), (100, None), (100, 200), (100, -5)])
def test_swap_without_sense(swap: int, memory: int | None) -> None:
    with pytest.raises(CgroupError, match="linux.resources.memory"):
        cgroups.swap_limit(swap, memory)


@pytest.mark.parametrize(("limit", "text"), [(-1, "max"), (0, "1"), (1, "1"), (77, "77")])
def test_pids_limit(limit: int, text: str) -> None:
    assert cgroups.pids_limit(limit) == text


FILES = (
    "cgroup.controllers",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "io.max",
    "io.weight",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "rdma.max",
)


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text("")
    return tmp_path


def written(cgroup: Path) -> dict[str, str]:
    return {name: text for name in FILES if (text := (cgroup / name).read_text())}


def test_every_limit(cgroup: Path) -> None:
    cgroups.set_resources(
        str(cgroup),
        {
            "memory": {"limit": 4096, "swap": 8192, "reservation": 1024, "kernel": 5},
            "cpu": {"shares": 1024, "quota": 50000, "period": 200000, "burst": 1000, "cpus": "0-1", "mems": "0"},
            "pids": {"limit": 10},
            "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
            "unified": {"memory.high": "2048"},
        },
    )
    assert written(cgroup) == {
        "memory.max": "4096",
        "memory.swap.max": "4096",
        "memory.low": "1024",
        "memory.high": "2048",
        "cpu.weight": "100",
        "cpu.max": "50000 200000",
        "cpu.max.burst": "1000",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "pids.max": "10",
        "io.weight": "4950",
        "io.max": "8:0 rbps=1024",
        "hugetlb.2MB.max": "4194304",
        "hugetlb.2MB.rsvd.max": "4194304",
        "rdma.max": "mlx5_1 hca_handle=3 hca_object=10000",
    }


def test_nothing_asked_nothing_written(cgroup: Path) -> None:
    cgroups.set_resources(str(cgroup), {"memory": {}, "cpu": {"shares": 0, "quota": 0}, "blockIO": {"weight": 0}})
    assert written(cgroup) == {}


def test_no_limit(cgroup: Path) -> None:
    cgroups.set_resources(str(cgroup), {"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}})
    assert written(cgroup) == {
        "memory.max": "max",
        "memory.swap.max": "max",
        "cpu.max": "max 100000",
        "pids.max": "max",
    }


def test_idle_has_no_weight(cgroup: Path) -> None:
    cgroups.set_resources(str(cgroup), {"cpu": {"idle": 1, "shares": 1024}})
    assert written(cgroup) == {"cpu.idle": "1"}


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"memory": {"limit": 4096}}, "memory.limit: the requested cgroup controller `memory` is not available"),
        ({"pids": {"limit": 3}}, "pids.limit: the requested cgroup controller `pids` is not available"),
        ({"cpu": {"quota": 1000}}, "cpu.quota: the requested cgroup controller `cpu` is not available"),
        ({"cpu": {"cpus": "0"}}, "cpu.cpus: the requested cgroup controller `cpuset` is not available"),
        ({"unified": {"memory.high": "1"}}, r"unified\[memory.high\]: the requested cgroup controller `memory` is"),
    ],
)
def test_a_missing_controller_is_named(tmp_path: Path, resources: dict[str, object], words: str) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb rdma")
    with pytest.raises(CgroupError, match=f"linux.resources.{words}.*it has: hugetlb, rdma"):
        cgroups.set_resources(str(tmp_path), resources)


def test_a_missing_controller_is_not_needed_for_no_limit(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("")
    cgroups.set_resources(
        str(tmp_path),
        {
            "memory": {"limit": -1, "swap": -1},
            "cpu": {"shares": 1024, "quota": -1, "idle": 0},
            "pids": {"limit": -1},
        },
    )


@pytest.mark.parametrize("name", ["../x.y", "memory", ".max"])
def test_unified_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(CgroupError, match="linux.resources.unified"):
        cgroups.set_unified(str(tmp_path), {name: "1"})


def test_check_before_update(cgroup: Path) -> None:
    (cgroup / "memory.current").write_text("5000")
    with pytest.raises(CgroupError, match="rejecting memory limit 4096 <= usage 5000"):
        cgroups.set_memory(str(cgroup), {"limit": 4096, "checkBeforeUpdate": True})
    cgroups.set_memory(str(cgroup), {"limit": 8192, "checkBeforeUpdate": True})


def test_stats_layout(cgroup: Path) -> None:
    for name, text in {
        "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
        "memory.stat": "anon 100\nfile 50\n",
        "memory.current": "4096",
        "memory.max": "max",
        "memory.peak": "8192",
        "memory.swap.current": "1",
        "memory.swap.max": "10",
        "pids.current": "2",
        "pids.max": "max",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
        "cpu.pressure": "some avg10=0.50 avg60=0.00 avg300=0.00 total=7\n",
    }.items():
        (cgroup / name).write_text(text)
    stats = cgroup_stats.stats(str(cgroup))
    assert stats["cpu"]["usage"] == {"total": 5000, "kernel": 2000, "user": 3000}
    assert stats["cpu"]["psi"]["some"] == {"avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 7}
    assert stats["memory"]["usage"] == {"limit": 2**64 - 1, "usage": 4096, "max": 8192, "failcnt": 0}
    assert stats["memory"]["swap"] == {"limit": 2**64 - 1, "usage": 4097, "failcnt": 0}
    assert stats["memory"]["cache"] == 50
    assert stats["pids"] == {"current": 2}
    assert {"major": 8, "op": "Read", "value": 10} in stats["blkio"]["ioServiceBytesRecursive"]
    assert {"major": 8, "op": "Write", "value": 2} in stats["blkio"]["ioServicedRecursive"]


def test_removal_waits_for_what_is_busy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that may not be written, as /proc here, will not change by waiting."""

    def slept(*_: object) -> bool:
        raise AssertionError("waited")

    monkeypatch.setattr(cgroups, "wait_for_event", slept)
    with pytest.raises(CgroupError, match="cannot remove the cgroup /proc/self/task"):
        cgroups.remove("/proc/self/task")
    cgroups.remove("/proc/self/task/nosuch")
