# SPDX-License-Identifier: Apache-2.0
"""Limits as unit properties; annotations; where a unit's cgroup is."""

from __future__ import annotations

from typing import Any

import pytest

from teu.linux.cgroup_files import CgroupError
from teu.runc import cgroups
from teu.runc import systemd_properties as properties

INFINITY = 2**64 - 1


def convert(resources: dict[str, Any], version: int = 257) -> dict[str, Any]:
    found, _ = properties.from_resources(resources, lambda: version)
    return {name: value for name, _, value in found}


def test_memory() -> None:
    assert convert({"memory": {"limit": 100, "swap": 300, "reservation": 50}}) == {
        "MemoryMax": 100,
        "MemorySwapMax": 200,
        "MemoryLow": 50,
    }
    assert convert({"memory": {"limit": -1}}) == {"MemoryMax": INFINITY, "MemorySwapMax": INFINITY}


def test_cpu() -> None:
    assert convert({"cpu": {"shares": 1024}}) == {"CPUWeight": 100}
    assert convert({"cpu": {"shares": 1024, "idle": 1}}) == {"CPUWeight": 0}
    assert convert({"cpu": {"shares": 1024, "idle": 1}}, version=251) == {"CPUWeight": 100}
    assert convert({"cpu": {"quota": -1}}) == {"CPUQuotaPerSecUSec": INFINITY}
    assert convert({"cpu": {"quota": 50000, "period": 100000}}) == {
        "CPUQuotaPeriodUSec": 100000,
        "CPUQuotaPerSecUSec": 500000,
    }


def test_a_quota_is_rounded_up_and_written_so() -> None:
    found, resources = properties.from_resources({"cpu": {"quota": 12345, "period": 100000}}, lambda: 257)
    assert ("CPUQuotaPerSecUSec", "t", 130000) in found
    assert resources["cpu"]["quota"] == 13000


@pytest.mark.parametrize(("limit", "value"), [(0, 1), (-1, INFINITY), (7, 7)])
def test_pids(limit: int, value: int) -> None:
    assert convert({"pids": {"limit": limit}}) == {"TasksMax": value}


@pytest.mark.parametrize(
    ("text", "mask"), [("0", b"\x01"), ("0-3", b"\x0f"), ("1,9", b"\x02\x02"), ("8-10", b"\x00\x07")]
)
def test_cpu_mask(text: str, mask: bytes) -> None:
    assert properties.cpu_mask(text, "cpus") == mask


@pytest.mark.parametrize("text", ["", "x", "3-1", "1-", "-"])
def test_bad_cpu_mask(text: str) -> None:
    with pytest.raises(CgroupError):
        properties.cpu_mask(text, "cpus")


def test_unified() -> None:
    assert convert(
        {
            "unified": {
                "memory.max": "max",
                "memory.high": "4096",
                "pids.max": "0",
                "cpu.weight": "42",
                "cpu.max": "50000 100000",
                "cpuset.cpus": "0-1",
                "io.weight": "7",
                "hugetlb.2MB.max": "0",
            }
        }
    ) == {
        "MemoryMax": INFINITY,
        "MemoryHigh": 4096,
        "TasksMax": 1,
        "CPUWeight": 42,
        "CPUQuotaPeriodUSec": 100000,
        "CPUQuotaPerSecUSec": 500000,
        "AllowedCPUs": b"\x03",
    }


def test_devices() -> None:
    deny = {"allow": False, "access": "rwm"}
    null = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}
    every = {"allow": True, "type": "b", "access": "m"}
    pts = {"allow": True, "type": "c", "major": 136, "access": "rwm"}
    assert properties.from_devices([deny, null, every, pts]) == [
        ("DeviceAllow", "a(ss)", []),
        ("DevicePolicy", "s", "strict"),
        ("DeviceAllow", "a(ss)", [("/dev/char/1:3", "rw"), ("block-*", "m"), ("char-136", "rwm")]),
    ]
    assert properties.from_devices([{"allow": True, "access": "rwm"}])[1] == ("DevicePolicy", "s", "auto")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'inactive-or-failed'", ("s", "inactive-or-failed")),
        ('"x"', ("s", "x")),
        ("true", ("b", True)),
        ("uint64 5", ("t", 5)),
        ("int32 -1", ("i", -1)),
        ("7", ("i", 7)),
        ("1.5", ("d", 1.5)),
        ("@au [1, 2]", ("au", [1, 2])),
        ("['a', 'b,c']", ("as", ["a", "b,c"])),
        ("@as []", ("as", [])),
    ],
)
def test_variants(text: str, value: tuple[str, Any]) -> None:
    assert properties.parse_variant(text, "x") == value


def test_annotations() -> None:
    assert properties.from_annotations(
        {
            "org.systemd.property.TimeoutStopSec": "uint64 3",
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
            "other": "x",
        }
    ) == [("TimeoutStopUSec", "t", 3000000), ("CollectMode", "s", "inactive-or-failed")]
    for bad in ({"org.systemd.property.A b": "1"}, {"org.systemd.property.Foo": "'x"}):
        with pytest.raises(CgroupError, match="annotations: org.systemd.property"):
            properties.from_annotations(bad)


@pytest.mark.parametrize(
    ("name", "path"), [("a.slice", "/a.slice"), ("a-b.slice", "/a.slice/a-b.slice"), ("-.slice", "/")]
)
def test_slices(name: str, path: str) -> None:
    assert cgroups.expand_slice(name) == path


@pytest.mark.parametrize("name", [".slice", "a", "a--b.slice", "-a.slice", "a/b.slice"])
def test_bad_slices(name: str) -> None:
    with pytest.raises(CgroupError):
        cgroups.expand_slice(name)


def test_plans() -> None:
    plan = cgroups.plan("machine.slice:libpod:abc", "abc", True, False)
    assert plan["scope"] == "libpod-abc.scope"
    assert plan["path"].endswith("/machine.slice/libpod-abc.scope")
    assert cgroups.plan("", "abc", True, False)["path"].endswith("/system.slice/runc-abc.scope")
    assert cgroups.plan("a.slice::b.slice", "abc", True, False)["path"].endswith("/a.slice/b.slice")
    assert cgroups.plan("/x/../y", "abc", False, False)["path"].endswith("/y")
    with pytest.raises(CgroupError, match='the form "slice:prefix:name"'):
        cgroups.plan("/docker/abc", "abc", True, False)
