# SPDX-License-Identifier: Apache-2.0
"""The figures of pods and containers under cAdvisor's names: which there are, and from what they come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from containerd_parts import make_context

from teu.api.cgroups.v2 import metrics_pb2
from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import NotFound, Unavailable
from teu.containerd.cri import metrics, stats
from teu.containerd.cri.metrics import Figure, Metrics
from teu.containerd.cri.records import RUNNING, Container, Pod, Records
from teu.containerd.cri.stats import Stats
from teu.containerd.snapshotters.interface import Usage

KEYS = {one.name: list(one.label_keys) for one in metrics.descriptors()}


def made(**more: Any) -> Container:
    pod = Pod("p" * 64, cri.PodSandboxConfig(metadata={"name": "pod", "namespace": "space", "uid": "u"}))
    pod.config.linux.cgroup_parent = more.pop("parent", "")
    config = cri.ContainerConfig(metadata={"name": "c"}, image={"image": "sha256:1", "user_specified_image": "busybox"})
    config.linux.resources.MergeFrom(cri.LinuxContainerResources(**more))
    return Container("c" * 64, pod, config, state=RUNNING, started=7 * 10**9)


def by_name(figures: Iterable[Figure]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in figures:
        assert len(KEYS[f"container_{one.name}"]) == len(metrics.LABELS) + len(one.labels)
        found.setdefault(one.name, {})[one.labels] = one.value
    return found


def test_names_are_once_and_have_words() -> None:
    assert len(KEYS) == len(metrics.descriptors()) == 58
    assert all(one.help and one.label_keys[:6] == list(metrics.LABELS) for one in metrics.descriptors())


def test_a_cgroup() -> None:
    psi: Any = {"some": {"total": 5_100_000}, "full": {"total": 900_000}}
    found = by_name(
        metrics.of_cgroup(
            metrics_pb2.Metrics(
                cpu={"usage_usec": 9_900_000, "user_usec": 2_000_000, "throttled_usec": 1_000_001, "psi": psi},
                memory={"usage": 100, "inactive_file": 30, "kernel_stack": 1, "slab": 2, "pgmajfault": 4},
                memory_events={"oom_kill": 3, "max": 8},
                pids={"limit": 2**64 - 1},
                hugetlb=[{"pagesize": "2MB", "current": 5, "max": 2**64 - 1}],
                io={"usage": [{"major": 999, "minor": 1, "rbytes": 7, "wios": 2}]},
            )
        )
    )
    assert found["cpu_usage_seconds_total"] == {("total",): 9} and found["cpu_user_seconds_total"] == {(): 2}
    assert found["cpu_cfs_throttled_seconds_total"] == {(): 1}
    assert found["memory_working_set_bytes"] == {(): 70} and found["memory_kernel_usage"] == {(): 3}
    assert found["memory_failures_total"][("pgmajfault", "hierarchy")] == 4 and found["memory_failcnt"] == {(): 8}
    assert found["oom_events_total"] == {(): 3} and found["threads_max"] == {(): 0}
    assert found["hugetlb_usage_bytes"] == {("2MB",): 5} and found["hugetlb_max_usage_bytes"] == {("2MB",): 0}
    assert found["pressure_cpu_waiting_seconds_total"] == {(): 5} and "pressure_io_waiting_seconds_total" not in found
    assert found["fs_reads_bytes_total"] == {("999:1",): 7} and found["fs_writes_total"] == {("999:1",): 2}
    assert found["blkio_device_usage_total"][("999:1", "999", "1", "read")] == 7


def test_a_controller_that_is_not_there_has_no_figures() -> None:
    found = by_name(metrics.of_cgroup(metrics_pb2.Metrics(cpu={"usage_usec": 1})))
    assert not [name for name in found if name.startswith(("memory", "oom", "pressure", "hugetlb", "fs"))]


def test_what_a_container_was_given() -> None:
    found = by_name(
        metrics.of_specification(made(cpu_quota=-1, memory_limit_in_bytes=-1, unified={"memory.min": "77"}))
    )
    assert found["spec_memory_limit_bytes"] == {(): 0} and found["spec_memory_reservation_limit_bytes"] == {(): 77}
    assert "spec_cpu_quota" not in found and found["start_time_seconds"] == {(): 7}
    found = by_name(metrics.of_specification(made(cpu_quota=5, unified={"memory.min": "max"})))
    assert found["spec_cpu_quota"] == {(): 5} and found["spec_memory_reservation_limit_bytes"] == {(): 0}


def test_processes() -> None:
    before = by_name(metrics.of_processes([os.getpid()]))
    with socket.socket(), socket.socket():
        now = by_name(metrics.of_processes([os.getpid(), 2**22 + 1]))
    assert now["processes"] == {(): 1} and now["threads"][()] >= 1
    assert now["sockets"][()] == before["sockets"][()] + 2
    assert now["file_descriptors"][()] == before["file_descriptors"][()] + 2
    assert now["ulimits_soft"] == {("max_open_files",): resource.getrlimit(resource.RLIMIT_NOFILE)[0]}
    assert "ulimits_soft" not in by_name(metrics.of_processes([2**22 + 1]))


def test_files_are_not_looked_at_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container opens as many as it likes, and each is a question to the kernel."""
    asked: list[str] = []
    look = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: asked.append(path) or look(path))
    monkeypatch.setattr(metrics, "FILES_MAX", 20)
    with contextlib.ExitStack() as opened:
        for _ in range(50):
            opened.enter_context(socket.socket())
        found = by_name(metrics.of_processes([os.getpid()] * 3))
    assert len(asked) == 21 and "sockets" not in found and "file_descriptors" not in found
    assert found["processes"] == {(): 3}


def test_a_network() -> None:
    found = by_name(metrics.of_network({"eth0": [1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 8, 0, 0, 0, 0]}))
    told = {name.removeprefix("network_"): value[("eth0",)] for name, value in found.items()}
    assert told == {
        "receive_bytes_total": 1,
        "receive_packets_total": 2,
        "receive_errors_total": 3,
        "receive_packets_dropped_total": 4,
        "transmit_bytes_total": 5,
        "transmit_packets_total": 6,
        "transmit_errors_total": 7,
        "transmit_packets_dropped_total": 8,
    }


@pytest.mark.parametrize(
    ("parent", "told"),
    [
        ("", "/teu.slice/cri-containerd-{}.scope"),
        ("kube-podx.slice", "/kube.slice/kube-podx.slice/cri-containerd-{}.scope"),
        ("/kubepods/podx", "/kubepods/podx/{}"),
    ],
)
def test_labels(parent: str, told: str) -> None:
    container = made(parent=parent)
    assert metrics.labels_of(container.pod, container) == [
        told.format(container.id),
        container.id,
        "busybox",
        "space",
        "pod",
        "c",
    ]
    assert metrics.labels_of(container.pod)[1:] == [container.pod.id, "", "space", "pod", ""]


@pytest.mark.parametrize("answers", [True, False])
def test_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    context = make_context(tmp_path)
    monkeypatch.setattr(metrics, "PATIENCE_SECONDS", 0.1)
    measured = SimpleNamespace(
        id="c" * 64,
        at=5,
        type_url="io.containerd.cgroups.v2.Metrics",
        value=metrics_pb2.Metrics(cpu={"usage_usec": 3_000_000}).SerializeToString(),
    )

    async def ask(*_: Any) -> list[Any]:
        return [measured] if answers else []

    async def pids(*_: Any) -> list[Any]:
        if not answers:
            await asyncio.Event().wait()
        return [SimpleNamespace(pid=2**22 + 1), SimpleNamespace(pid=os.getpid())]

    async def get(*_: Any) -> Any:
        return SimpleNamespace(pid=os.getpid())

    def usage(*_: Any) -> Usage:
        if not answers:
            raise NotFound("it goes")
        time.sleep(0.1)
        return Usage(123, 4)

    monkeypatch.setattr(context.tasks, "stats", ask)
    monkeypatch.setattr(context.tasks, "pids", pids)
    monkeypatch.setattr(context.tasks, "get", get)
    monkeypatch.setattr(context.snapshots, "usage", usage)
    monkeypatch.setattr(stats, "FIRST_SECONDS", 5.0)
    try:
        os.makedirs(os.path.join(context.root, "snapshots"), exist_ok=True)
        records = Records(context.sandboxes, context.containers)
        container = made()
        container.pod.network = str(tmp_path / "gone")
        records.containers[container.id] = container
        [told] = asyncio.run(Metrics(context, records, Stats(context)).of([container.pod]))
        assert told.pod_sandbox_id == container.pod.id and not told.metrics
        [one] = told.container_metrics
        found = {each.name: each for each in one.metrics}
        assert one.container_id == container.id and found["container_last_seen"].metric_type == cri.GAUGE
        for each in one.metrics:
            assert len(each.label_values) == len(KEYS[each.name])
        if answers:
            assert found["container_fs_usage_bytes"].value.value == 123
            assert found["container_cpu_usage_seconds_total"].value.value == 3
            assert found["container_cpu_usage_seconds_total"].metric_type == cri.COUNTER
            assert found["container_processes"].value.value == 1 and "container_ulimits_soft" in found
        else:
            left = found.keys() & {
                "container_fs_usage_bytes",
                "container_processes",
                "container_cpu_usage_seconds_total",
            }
            assert not left
    finally:
        context.close()


def test_a_shim_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path)

    async def get(*_: Any) -> Any:
        raise Unavailable("gone")

    monkeypatch.setattr(context.tasks, "get", get)
    try:
        records = Records(context.sandboxes, context.containers)
        assert asyncio.run(Metrics(context, records, Stats(context))._pids(made())) == []
    finally:
        context.close()
