# SPDX-License-Identifier: Apache-2.0
"""What pods use: the cgroup that kubelet has made for all of a pod's containers, the counters of its network, and each
container's own figures. Called by `service`."""

from __future__ import annotations

import asyncio
import logging
import os
import posixpath
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teu.api.cgroups.v2 import metrics_pb2
from teu.api.cri.v1 import cri_pb2 as cri
from teu.cni.network import INTERFACE
from teu.containerd.cri.records import RUNNING, Pod, Records
from teu.containerd.cri.stats import Rates, Stats, fill
from teu.containerd.state import Context
from teu.linux import cgroup_files, cgroup_stats, netns
from teu.linux.cgroup_files import MAX, UINT64_MAX

log = logging.getLogger("teu.containerd.cri")

_RECEIVED, _SENT, _ERRORS = 0, 8, 2  # columns of /proc/net/dev (proc_net(5))
_COLUMNS = 16


def cgroup_of(parent: str) -> str:
    """The path of a pod's cgroup in the hierarchy: a slice is below those that its name begins with (systemd.slice(5)).
    "" without a parent."""
    name = posixpath.basename(parent.rstrip("/"))
    if not name.endswith(".slice"):
        return parent.rstrip("/")
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def _number(folder: str, name: str) -> int:
    text = cgroup_files.read(folder, name)
    return UINT64_MAX if text == MAX else int(text)


def measure(folder: str) -> Any:
    """The figures of a cgroup, as far as it has controllers; an io.containerd.cgroups.v2.Metrics. OSError where there
    is none."""
    found = metrics_pb2.Metrics()
    found.cpu.usage_usec = cgroup_files.read_pairs(folder, "cpu.stat").get("usage_usec", 0)
    _press(folder, "cpu", found.cpu)
    _press(folder, "io", found.io)
    try:
        counts = cgroup_files.read_pairs(folder, "memory.stat")
        for key in ("anon", "inactive_file", "pgfault", "pgmajfault"):
            setattr(found.memory, key, counts.get(key, 0))
        _press(folder, "memory", found.memory)
        found.memory.usage = _number(folder, "memory.current")
        found.memory.usage_limit = _number(folder, "memory.max")
        found.memory.swap_usage = _number(folder, "memory.swap.current")
        found.memory.swap_limit = _number(folder, "memory.swap.max")
    except FileNotFoundError:
        pass  # without the controller, or without swap in the kernel
    try:
        found.pids.current = _number(folder, "pids.current")
    except FileNotFoundError:
        pass
    return found


def _press(folder: str, name: str, part: Any) -> None:
    for kind, values in (cgroup_stats.pressure(folder, f"{name}.pressure") or {}).items():
        stall = getattr(part.psi, kind)
        stall.avg10, stall.avg60, stall.avg300 = values["avg10"], values["avg60"], values["avg300"]
        stall.total = int(values["total"])


def interfaces(text: str) -> dict[str, list[int]]:
    """The columns of /proc/net/dev by the interfaces' names, without the loopback's."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        counts = [int(word) for word in rest.split()]
        if name.strip() != "lo" and len(counts) >= _COLUMNS:
            found[name.strip()] = counts
    return found


def counters(path: str) -> dict[str, list[int]]:
    """The same of a network namespace. OSError."""

    def read() -> str:
        with open("/proc/thread-self/net/dev") as file:
            return file.read()

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return interfaces(netns.run_in(descriptor, read))
    finally:
        os.close(descriptor)


def network(path: str) -> Any:
    """NetworkUsage of a network namespace. OSError."""
    usage = cri.NetworkUsage(timestamp=time.time_ns())
    for name, counts in counters(path).items():
        one = usage.default_interface if name == INTERFACE else usage.interfaces.add()
        one.name = name
        one.rx_bytes.value, one.rx_errors.value = counts[_RECEIVED], counts[_RECEIVED + _ERRORS]
        one.tx_bytes.value, one.tx_errors.value = counts[_SENT], counts[_SENT + _ERRORS]
    return usage


def total(stats: Sequence[Any]) -> Any:
    """The sum of ContainerStats, for a pod without a cgroup of its own."""
    found = cri.ContainerStats()
    for one in stats:
        for part, names in (
            ("cpu", ("usage_core_nano_seconds", "usage_nano_cores")),
            ("memory", ("working_set_bytes", "usage_bytes", "rss_bytes", "page_faults", "major_page_faults")),
        ):
            if not one.HasField(part):
                continue
            theirs, ours = getattr(one, part), getattr(found, part)
            ours.timestamp = max(ours.timestamp, theirs.timestamp)
            for name in names:
                if theirs.HasField(name):
                    getattr(ours, name).value += getattr(theirs, name).value
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read of a pod on a thread."""

    at: int
    metrics: Any  # None for a pod without a cgroup of its own
    network: Any  # None for one in the host's


class PodStats:
    """The figures of pods."""

    def __init__(self, context: Context, records: Records, stats: Stats) -> None:
        self._context = context
        self._records = records
        self._stats = stats
        self._rates = Rates()

    async def of(self, pods: Sequence[Pod]) -> list[Any]:
        """PodSandboxStats of each."""
        containers = [one for pod in pods for one in self._records.of_pod(pod) if one.state == RUNNING]
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._context.pool, self._look, list(pods))
        measured = await self._stats.of(containers, set(self._records.containers))
        by_pod: dict[str, list[Any]] = {}
        for container, told in zip(containers, measured, strict=True):
            by_pod.setdefault(container.pod.id, []).append(told)
        seen = await reading
        self._rates.keep(self._records.pods.keys())
        return [self._message(pod, seen[pod.id], by_pod.get(pod.id, [])) for pod in pods]

    def _look(self, pods: list[Pod]) -> Mapping[str, _Seen]:
        return {pod.id: self._look_at(pod) for pod in pods}

    def _look_at(self, pod: Pod) -> _Seen:
        metrics = counters = None
        at = time.time_ns()
        if folder := cgroup_of(pod.config.linux.cgroup_parent):
            try:
                metrics = measure(cgroup_files.place() + folder)
            except OSError as error:
                log.debug("the cgroup of pod %s: %s", pod.id, error)
        if pod.network:
            try:
                counters = network(pod.network)
            except OSError as error:
                log.debug("the network of pod %s: %s", pod.id, error)
        return _Seen(at, metrics, counters)

    def _message(self, pod: Pod, seen: _Seen, containers: list[Any]) -> Any:
        config = pod.config
        told = cri.PodSandboxStats(
            attributes=cri.PodSandboxAttributes(
                id=pod.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
            )
        )
        linux = told.linux
        linux.containers.extend(containers)
        if seen.metrics is None:
            own = total(containers)
        else:
            own = cri.ContainerStats()
            fill(own, self._rates, pod.id, seen.at, seen.metrics)
            if seen.metrics.HasField("pids"):
                linux.process.timestamp, linux.process.process_count.value = seen.at, seen.metrics.pids.current
        for part in ("cpu", "memory", "io"):
            if own.HasField(part):
                getattr(linux, part).CopyFrom(getattr(own, part))
        if seen.network is not None:
            linux.network.CopyFrom(seen.network)
        return told
