# SPDX-License-Identifier: Apache-2.0
"""What containers use. Called by `service`; kubelet asks for all of them each ten seconds.

Processor and memory are the cgroup's, told by the shims. The rate of the processor is the difference between two
questions, so nothing is sampled in the background. What a container has written is counted by a walk through its
layer, which no call waits for: one walk goes on at a time, and the more a layer costs the seldomer it is walked
through.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence, Set
from typing import Any

from teu.api.cgroups.v2 import metrics_pb2
from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import Error
from teu.containerd.core.filters import Adaptor
from teu.containerd.cri.records import NAMESPACE, RUNNING, Container
from teu.containerd.snapshotters.interface import Usage
from teu.containerd.state import Context

log = logging.getLogger("teu.containerd.cri")

_METRICS = "io.containerd.cgroups.v2.Metrics"
RATE_SECONDS = 1.0  # at least, between the two figures that make a rate
WALK_SECONDS, WALK_SHARE = 10.0, 50  # a layer is walked through so seldom, and so many times its cost
_UNLIMITED = 1 << 63


def _value(number: int) -> Any:
    return cri.UInt64Value(value=number)


def _pressure(stats: Any) -> Any:
    """PsiStats of the cgroup's, which are in microseconds both."""

    def data(one: Any) -> Any:
        return cri.PsiData(Total=one.total, Avg10=one.avg10, Avg60=one.avg60, Avg300=one.avg300)

    return cri.PsiStats(Full=data(stats.full), Some=data(stats.some))


def rate(before: tuple[int, int], now: tuple[int, int]) -> int:
    """Billionths of a processor between two (nanoseconds since 1970, nanoseconds of processor time)."""
    passed = now[0] - before[0]
    return max(0, (now[1] - before[1]) * 10**9 // passed) if passed > 0 else 0


class Layers:
    """What containers have written, as it was counted last."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # By container: nanoseconds since 1970, what was counted, and when to count again.
        self._known: dict[str, tuple[int, Usage, float]] = {}
        self._walking = threading.Lock()

    def of(self, container: Container) -> Any:
        """FilesystemUsage; None where it is not counted yet."""
        if container.id not in self._known:
            return None
        at, usage, _ = self._known[container.id]
        place = os.path.join(self._context.root, "snapshots")
        return cri.FilesystemUsage(
            timestamp=at,
            fs_id=cri.FilesystemIdentifier(mountpoint=os.path.realpath(place)),
            used_bytes=_value(usage.size),
            inodes_used=_value(usage.inodes),
        )

    def count(self, containers: Sequence[Container], known: set[str]) -> None:
        """Have the layers counted whose figures are old, aside; `known` are the ids of all containers."""
        for id in self._known.keys() - known:
            self._known.pop(id, None)
        now = time.monotonic()
        due = [one for one in containers if one.id not in self._known or self._known[one.id][2] <= now]
        if due and self._walking.acquire(blocking=False):
            threading.Thread(target=self._count, args=(due,), name="cri-layers", daemon=True).start()

    def _count(self, due: list[Container]) -> None:
        try:
            for one in due:
                began = time.monotonic()
                try:
                    usage = self._context.snapshots.usage(NAMESPACE, one.snapshotter, one.id)
                except (Error, OSError) as error:
                    log.debug("the layer of container %s is not counted: %s", one.id, error)
                    continue
                ended = time.monotonic()
                again = ended + max(WALK_SECONDS, WALK_SHARE * (ended - began))
                self._known[one.id] = time.time_ns(), usage, again
        finally:
            self._walking.release()


class Rates:
    """How fast processor time goes, between two questions."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], int]] = {}  # id -> the figures of before, and the rate until then

    def keep(self, ids: Set[str]) -> None:
        """Forget all but these."""
        for id in self._known.keys() - ids:
            self._known.pop(id, None)

    def of(self, id: str, at: int, used: int) -> int | None:
        """Billionths of a processor, when so many nanoseconds of its time were used by then; None until there are two
        figures."""
        known = self._known.get(id)
        if known is None:
            self._known[id] = (at, used), -1
            return None
        before, last = known
        if at - before[0] >= RATE_SECONDS * 10**9:
            last = rate(before, (at, used))
            self._known[id] = (at, used), last
        return last if last >= 0 else None


def fill(stats: Any, rates: Rates, id: str, at: int, metrics: Any) -> None:
    """What a cgroup has used, as io.containerd.cgroups.v2.Metrics has it, into a ContainerStats."""
    if metrics.HasField("cpu"):
        used = metrics.cpu.usage_usec * 1000
        stats.cpu.timestamp = at
        stats.cpu.usage_core_nano_seconds.value = used
        if (known := rates.of(id, at, used)) is not None:
            stats.cpu.usage_nano_cores.value = known
        if metrics.cpu.HasField("psi"):
            stats.cpu.psi.CopyFrom(_pressure(metrics.cpu.psi))
    if metrics.HasField("memory"):
        _fill_memory(stats, at, metrics.memory)
    if metrics.HasField("io") and metrics.io.HasField("psi"):
        stats.io.timestamp = at
        stats.io.psi.CopyFrom(_pressure(metrics.io.psi))


def _fill_memory(stats: Any, at: int, memory: Any) -> None:
    working = max(0, memory.usage - memory.inactive_file)
    stats.memory.timestamp = at
    stats.memory.working_set_bytes.value = working
    stats.memory.usage_bytes.value = memory.usage
    stats.memory.rss_bytes.value = memory.anon
    stats.memory.page_faults.value = memory.pgfault
    stats.memory.major_page_faults.value = memory.pgmajfault
    if 0 < memory.usage_limit < _UNLIMITED:
        stats.memory.available_bytes.value = max(0, memory.usage_limit - working)
    if memory.HasField("psi"):
        stats.memory.psi.CopyFrom(_pressure(memory.psi))
    stats.swap.timestamp = at
    stats.swap.swap_usage_bytes.value = memory.swap_usage
    if 0 < memory.swap_limit < _UNLIMITED:
        stats.swap.swap_available_bytes.value = max(0, memory.swap_limit - memory.swap_usage)


class Stats:
    """The figures of containers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._layers = Layers(context)
        self._rates = Rates()

    async def of(self, containers: Sequence[Container], known: set[str]) -> list[Any]:
        """ContainerStats of each, as far as its shim answers; `known` are the ids of all containers."""
        running = {one.id for one in containers if one.state == RUNNING}

        def accept(adapt: Adaptor) -> bool:
            return adapt(["id"]) in running

        measured = {one.id: one for one in await self._context.tasks.stats(NAMESPACE, accept)} if running else {}
        self._layers.count(containers, known)
        self._rates.keep(known)
        return [self._message(one, measured.get(one.id)) for one in containers]

    def _message(self, container: Container, measured: Any) -> Any:
        config = container.config
        stats = cri.ContainerStats(
            attributes=cri.ContainerAttributes(
                id=container.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
            ),
            writable_layer=self._layers.of(container),
        )
        if measured is not None and measured.type_url.endswith(_METRICS):
            metrics = metrics_pb2.Metrics.FromString(measured.value)
            fill(stats, self._rates, container.id, measured.at, metrics)
        return stats
