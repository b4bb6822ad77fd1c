# SPDX-License-Identifier: Apache-2.0
"""Limits of a container's unit beside its own: what holds, and what an update makes of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from teu.engine.containers import unit_limits
from teu.engine.core.fields import HostConfig
from teu.linux import cgroup_files

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup_files, "place", lambda: str(tmp_path))
    for part, memory in (
        ("teu.slice", "1048576"),
        ("teu.slice/teu-a.scope", "max"),
        ("teu.slice/teu-a.scope/c", "max"),
    ):
        limited(tmp_path / part, memory=memory)
    return tmp_path


def limited(place: Path, *, memory: str = "max", pids: str = "max", cpu: str = "max 100000") -> Path:
    place.mkdir(exist_ok=True)
    for name, value in (("memory.max", memory), ("pids.max", pids), ("cpu.max", cpu)):
        (place / name).write_text(value + "\n")
    return place


def test_slices_are_not_the_containers(tree: Path) -> None:
    scope = tree / "teu.slice/teu-a.scope"
    assert list(unit_limits.levels(str(scope / "c"))) == [str(scope / "c"), str(scope)]
    assert unit_limits.lowest(str(scope / "c"), "memory.max") is None
    host = HostConfig()
    unit_limits.in_force(host, str(scope / "c"))
    assert host == HostConfig()
    unit_limits.in_force(host, "")
    assert list(unit_limits.levels("/elsewhere")) == []


def test_the_lower_one_holds(tree: Path) -> None:
    scope = limited(tree / "teu.slice/teu-a.scope", memory=str(32 * MIB), pids="50", cpu="25000 100000")
    host = HostConfig(memory=64 * MIB, pids_limit=100)
    unit_limits.in_force(host, str(scope / "c"))
    assert (host.memory, host.pids_limit, host.nano_cpus) == (32 * MIB, 50, 250_000_000)
    host = HostConfig(memory=16 * MIB, cpu_quota=50_000, cpu_period=50_000)
    unit_limits.in_force(host, str(scope / "c"))
    assert (host.memory, host.pids_limit, host.cpu_quota, host.nano_cpus) == (16 * MIB, None, 12_500, 0)
    host = HostConfig(nano_cpus=100_000_000)
    unit_limits.in_force(host, str(scope / "c"))
    assert host.nano_cpus == 100_000_000


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(unit_limits, "Bus", contextlib.nullcontext)
    monkeypatch.setattr(unit_limits, "set_unit_properties", lambda _bus, name, props: found.append((name, props)))
    return found


def test_a_scope_follows_an_update(tree: Path, asked: list[Any]) -> None:
    scope = tree / "teu.slice/teu-a.scope"
    new = HostConfig(memory=96 * MIB, pids_limit=-1, nano_cpus=1_500_000_000)
    given = {"memory": 96 * MIB, "pids_limit": -1, "nano_cpus": 1_500_000_000}
    assert unit_limits.follow(new, given, str(scope / "c")) == [] and asked == [], "it has none of its own"
    limited(scope, memory=str(32 * MIB), pids="50", cpu="25000 100000")
    assert unit_limits.follow(new, {"memory": 1}, str(scope / "c")) == []
    assert unit_limits.follow(new, given, str(scope / "c")) == []
    memory = ("MemoryMax", "t", 96 * MIB)
    rest = [("TasksMax", "t", (1 << 64) - 1), ("CPUQuotaPerSecUSec", "t", 1_500_000)]
    assert asked == [("teu-a.scope", [memory]), ("teu-a.scope", [memory, *rest])]


def test_a_service_keeps_its_own(tree: Path, asked: list[Any]) -> None:
    (tree / "system.slice").mkdir()
    service = limited(tree / "system.slice/web.service", memory=str(32 * MIB))
    inner = limited(limited(service / "teu-a") / "c")
    (told,) = unit_limits.follow(HostConfig(memory=96 * MIB), {"memory": 1}, str(inner))
    assert told.startswith(f"web.service has a limit of its own, MemoryMax={32 * MIB}, which holds as well")
    assert unit_limits.follow(HostConfig(memory=16 * MIB), {"memory": 1}, str(inner)) == [] and asked == []


def test_a_bus_that_refuses_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise OSError("no bus")

    monkeypatch.setattr(unit_limits, "Bus", refuse)
    scope = limited(tree / "teu.slice/teu-a.scope", memory=str(32 * MIB))
    (told,) = unit_limits.follow(HostConfig(memory=96 * MIB), {"memory": 1}, str(scope / "c"))
    assert told == "the limits of teu-a.scope (MemoryMax), which hold as well, could not be changed: no bus"
