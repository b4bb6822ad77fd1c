# SPDX-License-Identifier: Apache-2.0
"""What containers use. Called by `service`; kubelet asks for all of them each ten seconds.

Processor and memory are the cgroup's, told by the shims. The rate of the processor is the difference between two
questions, so nothing is sampled in the background. What a container has written is counted by a walk through its
layer, which no call waits for: one walk goes on at a time, and the more a layer costs the seldomer it is walked
through.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

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
FIRST_SECONDS = 1.0  # for the first walk, by those who do not come again soon
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


class Layer(NamedTuple):
    """What a container has written."""

    at: int  # when it was counted: nanoseconds since 1970
    usage: Usage


class Layers:
    """What containers have written, as it was counted last."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # By container: what was counted, None where that has failed, and when to count again.
        self._known: dict[str, tuple[Layer | None, float]] = {}
        self._walking = threading.Lock()

    def of(self, container: Container) -> Any:
        """FilesystemUsage; None where it is not counted yet."""
        layer = self.counted(container)
        if layer is None:
            return None
        place = os.path.join(self._context.root, "snapshots")
        return cri.FilesystemUsage(
            timestamp=layer.at,
            fs_id=cri.FilesystemIdentifier(mountpoint=os.path.realpath(place)),
            used_bytes=_value(layer.usage.size),
            inodes_used=_value(layer.usage.inodes),
        )

    def counted(self, container: Container) -> Layer | None:
        """None where it is not counted yet."""
        return self._known.get(container.id, (None, 0.0))[0]

    async def first(self, containers: Sequence[Container]) -> None:
        """Wait for the first figures of those that `count` was told of, but not for long."""
        deadline = time.monotonic() + FIRST_SECONDS
        while time.monotonic() < deadline and any(one.id not in self._known for one in containers):
            await asyncio.sleep(0.01)

    def count(self, containers: Sequence[Container], known: set[str]) -> None:
        """Have the layers counted whose figures are old, aside; `known` are the ids of all containers."""
        for id in self._known.keys() - known:
            self._known.pop(id, None)
        now = time.monotonic()
        due = [one for one in containers if self._known.get(one.id, (None, now))[1] <= now]
        if due and self._walking.acquire(blocking=False):
            threading.Thread(target=self._count, args=(due,), name="cri-layers", daemon=True).start()

    def _count(self, due: list[Container]) -> None:
        try:
            for one in due:
                began = time.monotonic()
                layer = None
                try:
                    usage = self._context.snapshots.usage(NAMESPACE, one.snapshotter, one.id)
                    layer = Layer(time.time_ns(), usage)
                except (Error, OSError) as error:
                    log.debug("the layer of container %s is not counted: %s", one.id, error)
                ended = time.monotonic()
                self._known[one.id] = layer, ended + max(WALK_SECONDS, WALK_SHARE * (ended - began))
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
        self.layers = Layers(context)
        self._rates = Rates()

    async def of(self, containers: Sequence[Container], known: set[str]) -> list[Any]:
        """ContainerStats of each, as far as its shim answers; `known` are the ids of all containers."""
        measured = await self.measured(containers, known)
        self._rates.keep(known)
        return [self._message(one, measured.get(one.id)) for one in containers]

    async def measured(self, containers: Sequence[Container], known: set[str]) -> dict[str, tuple[int, Any]]:
        """By their ids: (nanoseconds since 1970, io.containerd.cgroups.v2.Metrics) of those that run and whose shims
        answer. Their layers are counted where it is time."""
        running = {one.id for one in containers if one.state == RUNNING}

        def accept(adapt: Adaptor) -> bool:
            return adapt(["id"]) in running

        found = await self._context.tasks.stats(NAMESPACE, accept) if running else []
        self.layers.count(containers, known)
        return {
            one.id: (one.at, metrics_pb2.Metrics.FromString(one.value))
            for one in found
            if one.type_url.endswith(_METRICS)
        }

    def _message(self, container: Container, measured: tuple[int, Any] | None) -> Any:
        config = container.config
        stats = cri.ContainerStats(
            attributes=cri.ContainerAttributes(
                id=container.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
            ),
            writable_layer=self.layers.of(container),
        )
        if measured is not None:
            fill(stats, self._rates, container.id, *measured)
        return stats
