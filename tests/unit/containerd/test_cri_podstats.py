# SPDX-License-Identifier: Apache-2.0
"""Figures of pods: from cgroups, from network namespaces, and as sums."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import make_context

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.cri import podstats
from teu.containerd.cri.podstats import PodStats
from teu.containerd.cri.records import Pod, Records
from teu.containerd.cri.stats import Stats
from teu.linux import cgroup_files

DEV = """Inter-| Receive | Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
  eth0:1000 2 3 4 5 6 7 8 900 10 11 12 13 14 15 16
  net1: 5 2 0 4 5 6 7 8 9 10 1 12 13 14 15 16
 short: 1 2
"""


@pytest.mark.parametrize(
    ("parent", "told"),
    [
        ("", ""),
        ("/kubepods/pod1", "/kubepods/pod1"),
        ("a.slice", "/a.slice"),
        ("kubepods-burstable-podx_1.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx_1.slice"),
        ("/kubepods.slice/kubepods-podx.slice", "/kubepods.slice/kubepods-podx.slice"),
    ],
)
def test_where_a_pods_cgroup_is(parent: str, told: str) -> None:
    assert podstats.cgroup_of(parent) == told


def test_counters_of_interfaces() -> None:
    found = podstats.interfaces(DEV)
    assert list(found) == ["eth0", "net1"] and found["eth0"][0] == 1000


def test_counters_of_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podstats.netns, "run_in", lambda _descriptor, _read: DEV)
    usage = podstats.network("/proc/self/ns/net")
    eth0, [net1] = usage.default_interface, usage.interfaces
    assert (eth0.name, eth0.rx_bytes.value, eth0.rx_errors.value) == ("eth0", 1000, 3)
    assert (eth0.tx_bytes.value, eth0.tx_errors.value) == (900, 11)
    assert (net1.name, net1.tx_errors.value, net1.rx_errors.value) == ("net1", 1, 0) and net1.HasField("rx_errors")
    assert usage.timestamp


def cgroup(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")


def test_figures_of_a_cgroup_with_controllers(tmp_path: Path) -> None:
    cgroup(
        tmp_path / "a",
        cpu_stat="usage_usec 7\nuser_usec 5",
        cpu_pressure="some avg10=1.50 avg60=0.00 avg300=0.00 total=9",
        memory_stat="anon 20\ninactive_file 30\npgfault 9\nother 1",
        memory_current="100",
        memory_max="max",
        pids_current="3",
    )
    found = podstats.measure(str(tmp_path / "a"))
    assert found.cpu.usage_usec == 7 and found.cpu.psi.some.total == 9 and found.cpu.psi.some.avg10 == 1.5
    assert (found.memory.usage, found.memory.anon, found.memory.usage_limit) == (100, 20, 2**64 - 1)
    assert found.pids.current == 3 and not found.HasField("io")


def test_figures_of_a_cgroup_without(tmp_path: Path) -> None:
    cgroup(tmp_path / "a", cpu_stat="usage_usec 7", memory_pressure="some avg10=0 avg60=0 avg300=0 total=9")
    found = podstats.measure(str(tmp_path / "a"))
    assert found.cpu.usage_usec == 7 and not found.HasField("memory") and not found.HasField("pids")
    with pytest.raises(FileNotFoundError):
        podstats.measure(str(tmp_path / "none"))


def test_sums() -> None:
    one = cri.ContainerStats(cpu={"timestamp": 3, "usage_core_nano_seconds": {"value": 5}})
    two = cri.ContainerStats(
        cpu={"timestamp": 2, "usage_core_nano_seconds": {"value": 6}, "usage_nano_cores": {"value": 1}},
        memory={"timestamp": 4, "usage_bytes": {"value": 7}},
    )
    found = podstats.total([one, two, cri.ContainerStats()])
    assert found.cpu.timestamp == 3 and found.cpu.usage_core_nano_seconds.value == 11
    assert found.cpu.usage_nano_cores.value == 1 and found.memory.usage_bytes.value == 7
    assert not found.memory.HasField("rss_bytes")


def test_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path)
    monkeypatch.setattr(cgroup_files, "place", lambda: str(tmp_path))
    cgroup(tmp_path / "kube.slice/kube-pod1.slice", cpu_stat="usage_usec 7", pids_current="2")
    try:
        records = Records(context.sandboxes, context.containers)
        metadata: Any = {"name": "p", "uid": "u", "namespace": "n"}
        labels = {"app": "x"}
        config = cri.PodSandboxConfig(metadata=metadata, labels=labels, linux={"cgroup_parent": "kube-pod1.slice"})
        pods = [
            Pod("a", config, network=str(tmp_path / "gone")),
            Pod("b", cri.PodSandboxConfig(metadata=metadata)),
        ]
        first, second = asyncio.run(PodStats(context, records, Stats(context)).of(pods))
        assert first.attributes.id == "a" and first.attributes.labels["app"] == "x"
        assert first.linux.cpu.usage_core_nano_seconds.value == 7000 and first.linux.process.process_count.value == 2
        assert not first.linux.HasField("network") and not first.linux.HasField("memory")
        assert second.attributes.metadata.name == "p" and not second.linux.HasField("cpu")
    finally:
        context.close()
