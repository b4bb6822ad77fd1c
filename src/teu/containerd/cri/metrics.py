# SPDX-License-Identifier: Apache-2.0
"""The figures of pods and containers under the names that cAdvisor gave them, for kubelet's /metrics/cadvisor. Called
by `service`.

A figure is a whole number: what is named seconds has no parts of them, by the interface. What a kernel without the
controller does not count is left out, rather than told as 0.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import Error
from teu.containerd.cri import spec
from teu.containerd.cri.podstats import cgroup_of, counters
from teu.containerd.cri.records import NAMESPACE, RUNNING, Container, Pod, Records
from teu.containerd.cri.stats import Layer, Stats
from teu.containerd.state import Context

log = logging.getLogger("teu.containerd.cri")

LABELS = ("id", "name", "image", "namespace", "pod", "container")  # of each figure: `id` is the path of the cgroup
FILES_MAX = 50_000  # open ones of a container, that are looked at: some tenths of a second
PATIENCE_SECONDS = 2.0  # for a shim that is asked for the processes of a container
_DEVICE = ("device",)
_INTERFACE = ("interface",)
_UNLIMITED = 1 << 62
_MICROSECONDS, _NANOSECONDS = 10**6, 10**9

# The name without `container_`, what it is, and the labels besides LABELS.
_FIGURES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("last_seen", "When the container was looked at, in seconds since 1970", ()),
    ("start_time_seconds", "When the container was started, in seconds since 1970", ()),
    ("cpu_user_seconds_total", "Processor time in user mode", ()),
    ("cpu_system_seconds_total", "Processor time in the kernel", ()),
    ("cpu_usage_seconds_total", "Processor time", ("cpu",)),
    ("cpu_cfs_periods_total", "Periods in which the quota was counted", ()),
    ("cpu_cfs_throttled_periods_total", "Periods in which the quota was used up", ()),
    ("cpu_cfs_throttled_seconds_total", "Time for which the quota was used up", ()),
    ("memory_cache", "Bytes of the page cache", ()),
    ("memory_rss", "Bytes of anonymous memory", ()),
    ("memory_kernel_usage", "Bytes of the kernel's own memory: stacks and slabs", ()),
    ("memory_mapped_file", "Bytes of mapped files", ()),
    ("memory_swap", "Bytes in swap", ()),
    ("memory_failcnt", "How often the limit of memory was reached", ()),
    ("memory_usage_bytes", "Bytes of all memory", ()),
    ("memory_max_usage_bytes", "The most bytes of memory that there were", ()),
    ("memory_working_set_bytes", "Bytes of all memory but the page cache that is not in use", ()),
    ("memory_total_active_file_bytes", "Bytes of the page cache in use", ()),
    ("memory_total_inactive_file_bytes", "Bytes of the page cache not in use", ()),
    ("memory_failures_total", "Page faults", ("failure_type", "scope")),
    ("oom_events_total", "Processes that were killed for want of memory", ()),
    ("hugetlb_usage_bytes", "Bytes of huge pages", ("pagesize",)),
    ("hugetlb_max_usage_bytes", "The limit of the bytes of huge pages", ("pagesize",)),
    ("pressure_cpu_stalled_seconds_total", "Time in which all processes waited for a processor", ()),
    ("pressure_cpu_waiting_seconds_total", "Time in which some process waited for a processor", ()),
    ("pressure_memory_stalled_seconds_total", "Time in which all processes waited for memory", ()),
    ("pressure_memory_waiting_seconds_total", "Time in which some process waited for memory", ()),
    ("pressure_io_stalled_seconds_total", "Time in which all processes waited for disks", ()),
    ("pressure_io_waiting_seconds_total", "Time in which some process waited for disks", ()),
    ("processes", "Processes", ()),
    ("threads", "Threads", ()),
    ("threads_max", "The limit of threads, 0 for none", ()),
    ("file_descriptors", "Open files of all processes", ()),
    ("sockets", "Open sockets of all processes", ()),
    ("ulimits_soft", "Soft limits of the first process", ("ulimit",)),
    ("spec_cpu_period", "The period of its processor time, in microseconds", ()),
    ("spec_cpu_quota", "The quota of its processor time in each period, in microseconds", ()),
    ("spec_cpu_shares", "The weight of its processor time", ()),
    ("spec_memory_limit_bytes", "The limit of memory, 0 for none", ()),
    ("spec_memory_reservation_limit_bytes", "The memory that is kept for it", ()),
    ("spec_memory_swap_limit_bytes", "The limit of memory and swap, 0 for none", ()),
    ("fs_inodes_free", "Inodes that are free where its layer is", _DEVICE),
    ("fs_inodes_total", "Inodes where its layer is", _DEVICE),
    ("fs_limit_bytes", "Size of the filesystem where its layer is", _DEVICE),
    ("fs_usage_bytes", "Bytes of its layer, as they were counted last", _DEVICE),
    ("fs_reads_bytes_total", "Bytes read from a disk", _DEVICE),
    ("fs_reads_total", "Reads from a disk", _DEVICE),
    ("fs_writes_bytes_total", "Bytes written to a disk", _DEVICE),
    ("fs_writes_total", "Writes to a disk", _DEVICE),
    ("blkio_device_usage_total", "Bytes read from a disk and written to it", ("device", "major", "minor", "operation")),
    ("network_receive_bytes_total", "Bytes received", _INTERFACE),
    ("network_receive_packets_total", "Packets received", _INTERFACE),
    ("network_receive_errors_total", "Errors while receiving", _INTERFACE),
    ("network_receive_packets_dropped_total", "Packets dropped while receiving", _INTERFACE),
    ("network_transmit_bytes_total", "Bytes sent", _INTERFACE),
    ("network_transmit_packets_total", "Packets sent", _INTERFACE),
    ("network_transmit_errors_total", "Errors while sending", _INTERFACE),
    ("network_transmit_packets_dropped_total", "Packets dropped while sending", _INTERFACE),
)


class Figure(NamedTuple):
    """One of them, under its name without `container_`."""

    name: str
    value: int
    labels: tuple[str, ...] = ()


def descriptors() -> list[Any]:
    """MetricDescriptor of each name."""
    return [
        cri.MetricDescriptor(name=f"container_{name}", help=text, label_keys=[*LABELS, *more])
        for name, text, more in _FIGURES
    ]


def of_processor(cpu: Any) -> Iterator[Figure]:
    """Of a cgroup's CPUStat."""
    yield Figure("cpu_usage_seconds_total", cpu.usage_usec // _MICROSECONDS, ("total",))
    yield Figure("cpu_user_seconds_total", cpu.user_usec // _MICROSECONDS)
    yield Figure("cpu_system_seconds_total", cpu.system_usec // _MICROSECONDS)
    yield Figure("cpu_cfs_periods_total", cpu.nr_periods)
    yield Figure("cpu_cfs_throttled_periods_total", cpu.nr_throttled)
    yield Figure("cpu_cfs_throttled_seconds_total", cpu.throttled_usec // _MICROSECONDS)


def of_memory(memory: Any, events: Any) -> Iterator[Figure]:
    """Of a cgroup's MemoryStat and MemoryEvents."""
    yield Figure("memory_cache", memory.file)
    yield Figure("memory_rss", memory.anon)
    yield Figure("memory_kernel_usage", memory.kernel_stack + memory.slab)
    yield Figure("memory_mapped_file", memory.file_mapped)
    yield Figure("memory_swap", memory.swap_usage)
    yield Figure("memory_failcnt", events.max)
    yield Figure("memory_usage_bytes", memory.usage)
    yield Figure("memory_max_usage_bytes", memory.max_usage)
    yield Figure("memory_working_set_bytes", max(0, memory.usage - memory.inactive_file))
    yield Figure("memory_total_active_file_bytes", memory.active_file)
    yield Figure("memory_total_inactive_file_bytes", memory.inactive_file)
    for kind, count in (("pgfault", memory.pgfault), ("pgmajfault", memory.pgmajfault)):
        for scope in ("container", "hierarchy"):  # the same: a container has no containers below it
            yield Figure("memory_failures_total", count, (kind, scope))
    yield Figure("oom_events_total", events.oom_kill)


def of_cgroup(metrics: Any) -> Iterator[Figure]:
    """Of an io.containerd.cgroups.v2.Metrics."""
    yield from of_processor(metrics.cpu)
    if metrics.HasField("memory_events"):  # the controller is there
        yield from of_memory(metrics.memory, metrics.memory_events)
    for page in metrics.hugetlb:
        yield Figure("hugetlb_usage_bytes", page.current, (page.pagesize,))
        yield Figure("hugetlb_max_usage_bytes", _limit(page.max), (page.pagesize,))
    for name, part in (("cpu", metrics.cpu), ("memory", metrics.memory), ("io", metrics.io)):
        if part.HasField("psi"):
            yield Figure(f"pressure_{name}_waiting_seconds_total", part.psi.some.total // _MICROSECONDS)
            yield Figure(f"pressure_{name}_stalled_seconds_total", part.psi.full.total // _MICROSECONDS)
    for one in metrics.io.usage:
        device = device_name(one.major, one.minor)
        yield Figure("fs_reads_bytes_total", one.rbytes, (device,))
        yield Figure("fs_reads_total", one.rios, (device,))
        yield Figure("fs_writes_bytes_total", one.wbytes, (device,))
        yield Figure("fs_writes_total", one.wios, (device,))
        for way, count in (("read", one.rbytes), ("write", one.wbytes)):
            yield Figure("blkio_device_usage_total", count, (device, str(one.major), str(one.minor), way))
    yield Figure("threads_max", _limit(metrics.pids.limit))


def _limit(number: int) -> int:
    """0 for what is none."""
    return number if 0 < number < _UNLIMITED else 0


def device_name(major: int, minor: int) -> str:
    """/dev/NAME of a disk; its numbers, where it has no name."""
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{major}:{minor}"))
    except OSError:
        return f"{major}:{minor}"


def of_specification(container: Container) -> Iterator[Figure]:
    """What it was given."""
    limits = container.config.linux.resources
    yield Figure("start_time_seconds", container.started // _NANOSECONDS)
    yield Figure("spec_cpu_period", max(0, limits.cpu_period))
    if limits.cpu_quota > 0:
        yield Figure("spec_cpu_quota", limits.cpu_quota)
    yield Figure("spec_cpu_shares", max(0, limits.cpu_shares))
    yield Figure("spec_memory_limit_bytes", _limit(limits.memory_limit_in_bytes))
    kept = limits.unified.get("memory.min", "0")
    yield Figure("spec_memory_reservation_limit_bytes", _limit(int(kept)) if kept.isdecimal() else 0)
    yield Figure("spec_memory_swap_limit_bytes", _limit(limits.memory_swap_limit_in_bytes))


def of_processes(pids: Sequence[int]) -> Iterator[Figure]:
    """Of the processes of a container, as far as they have not ended meanwhile; the first one's limits. Files and
    sockets are left out where there are more than FILES_MAX: a container may have as many as it likes."""
    processes = threads = files = sockets = 0
    for pid in pids:
        try:
            threads += len(os.listdir(f"/proc/{pid}/task"))
            if files <= FILES_MAX:
                for link in itertools.islice(_links(pid), FILES_MAX + 1 - files):
                    files += 1
                    sockets += link.startswith("socket:")
        except OSError:
            continue
        processes += 1
    yield Figure("processes", processes)
    yield Figure("threads", threads)
    if files <= FILES_MAX:
        yield Figure("file_descriptors", files)
        yield Figure("sockets", sockets)
    if pids and (limit := _open_files_limit(pids[0])) is not None:
        yield Figure("ulimits_soft", limit, ("max_open_files",))


def _links(pid: int) -> Iterator[str]:
    """What a process has open."""
    with os.scandir(f"/proc/{pid}/fd") as found:
        for one in found:
            try:
                yield os.readlink(one.path)
            except OSError:
                yield ""  # it was closed


def _open_files_limit(pid: int) -> int | None:
    """None where there is none."""
    try:
        with open(f"/proc/{pid}/limits") as file:
            found = [line.split() for line in file if line.startswith("Max open files ")]
    except OSError:
        return None
    return int(found[0][3]) if found and found[0][3].isdecimal() else None


def of_network(found: Mapping[str, Sequence[int]]) -> Iterator[Figure]:
    """Of /proc/net/dev's counters, by the interfaces' names."""
    for name, counts in found.items():
        for way, at in (("receive", 0), ("transmit", 8)):
            for what, column in (("bytes", 0), ("packets", 1), ("errors", 2), ("packets_dropped", 3)):
                yield Figure(f"network_{way}_{what}_total", counts[at + column], (name,))


@dataclass(frozen=True, slots=True)
class _Filesystem:
    """That of the containers' layers."""

    device: str
    inodes: int
    inodes_free: int
    size: int

    @classmethod
    def of(cls, path: str) -> _Filesystem:
        at, found = os.stat(path).st_dev, os.statvfs(path)
        return cls(
            device_name(os.major(at), os.minor(at)), found.f_files, found.f_ffree, found.f_blocks * found.f_frsize
        )

    def figures(self, layer: Layer | None) -> Iterator[Figure]:
        labels = (self.device,)
        yield Figure("fs_inodes_total", self.inodes, labels)
        yield Figure("fs_inodes_free", self.inodes_free, labels)
        yield Figure("fs_limit_bytes", self.size, labels)
        if layer is not None:
            yield Figure("fs_usage_bytes", layer.usage.size, labels)


def cgroup_of_container(container: Container) -> str:
    """Its path in the hierarchy."""
    path = spec.cgroups_path(container.pod.config.linux.cgroup_parent, container.id)
    parent, colon, name = path.partition(":")
    return f"{cgroup_of(parent)}/{name.replace(':', '-')}.scope" if colon else path


def labels_of(pod: Pod, container: Container | None = None) -> list[str]:
    """The values of LABELS."""
    of = pod.config.metadata
    if container is None:
        return [cgroup_of(pod.config.linux.cgroup_parent), pod.id, "", of.namespace, of.name, ""]
    image = container.config.image.user_specified_image or container.config.image.image
    name = container.config.metadata.name
    return [cgroup_of_container(container), container.id, image, of.namespace, of.name, name]


def _messages(figures: Iterator[Figure], labels: Sequence[str], at: int) -> list[Any]:
    """Metric of each."""
    return [
        cri.Metric(
            name=f"container_{one.name}",
            timestamp=at,
            metric_type=cri.COUNTER if one.name.endswith(("_total", "_failcnt")) else cri.GAUGE,
            label_values=[*labels, *one.labels],
            value=cri.UInt64Value(value=one.value),
        )
        for one in figures
    ]


class Metrics:
    """The figures of pods."""

    def __init__(self, context: Context, records: Records, stats: Stats) -> None:
        self._context = context
        self._records = records
        self._stats = stats

    async def of(self, pods: Sequence[Pod]) -> list[Any]:
        """PodSandboxMetrics of each; of a container whose shim does not answer what is known without it."""
        running = [one for pod in pods for one in self._records.of_pod(pod) if one.state == RUNNING]
        measured = await self._stats.measured(running, set(self._records.containers))
        await self._stats.layers.first(running)
        listed = await asyncio.gather(*(self._pids(one) for one in running))
        pids = dict(zip((one.id for one in running), listed, strict=True))
        by_pod: dict[str, list[Container]] = {pod.id: [] for pod in pods}
        for one in running:
            by_pod[one.pod.id].append(one)
        return await asyncio.get_running_loop().run_in_executor(
            self._context.pool, self._collect, list(pods), by_pod, measured, pids
        )

    async def _pids(self, container: Container) -> list[int]:
        """The first process first; [] where the shim does not tell."""
        tasks = self._context.tasks
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                first = (await tasks.get(NAMESPACE, container.id)).pid
                pids = [one.pid for one in await tasks.pids(NAMESPACE, container.id)]
                return sorted(pids, key=lambda pid: pid != first)
        except (Error, TimeoutError) as error:
            log.debug("the processes of container %s: %s", container.id, error)
            return []

    def _collect(
        self,
        pods: list[Pod],
        containers: Mapping[str, list[Container]],
        measured: Mapping[str, tuple[int, Any]],
        pids: Mapping[str, list[int]],
    ) -> list[Any]:
        # who runs has a layer, so there is a place for it
        place = _Filesystem.of(os.path.join(self._context.root, "snapshots")) if pids else None
        return [
            cri.PodSandboxMetrics(
                pod_sandbox_id=pod.id,
                metrics=_messages(self._pod_figures(pod), labels_of(pod), time.time_ns()),
                container_metrics=[
                    self._container(one, place, measured.get(one.id), pids[one.id]) for one in containers[pod.id]
                ],
            )
            for pod in pods
        ]

    def _pod_figures(self, pod: Pod) -> Iterator[Figure]:
        if not pod.network:
            return  # it is the host's
        try:
            found = counters(pod.network)
        except OSError as error:
            log.debug("the network of pod %s: %s", pod.id, error)
            return
        yield from of_network(found)

    def _container(
        self, container: Container, place: _Filesystem | None, measured: tuple[int, Any] | None, pids: list[int]
    ) -> Any:
        now = time.time_ns()
        labels = labels_of(container.pod, container)
        found = _messages(self._plain_figures(container, place, pids, now), labels, now)
        if measured is not None:
            found += _messages(of_cgroup(measured[1]), labels, measured[0])
        return cri.ContainerMetrics(container_id=container.id, metrics=found)

    def _plain_figures(
        self, container: Container, place: _Filesystem | None, pids: list[int], now: int
    ) -> Iterator[Figure]:
        yield Figure("last_seen", now // _NANOSECONDS)
        yield from of_specification(container)
        if place is not None:
            yield from place.figures(self._stats.layers.counted(container))
        if pids:
            yield from of_processes(pids)
