# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus over HTTP, at /v1/metrics as containerd's.

It tells of what containerd tells of: calls, collections, and the cgroups of the tasks, under containerd's names and
labels. The text is written by a few lines here: prometheus-client costs 35 ms and 3.8 MB (Debian 12; 41 ms and 4.2 MB
in 13).
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import grpc

from teu import __version__
from teu.containerd.core.events import Exchange
from teu.containerd.core.statistics import SECONDS, Histogram, Statistics
from teu.containerd.runtime.tasks import CgroupStats, Tasks
from teu.containerd.stores.garbage import Collector

_STARTED = time.time()


_GO_NAMES = {"OK": "OK", "CANCELLED": "Canceled"}  # where they are not the name in camel case
# Fields of io.containerd.cgroups.v2.Metrics that containerd tells, and their unit.
_CPU = {
    **dict.fromkeys(("usage_usec", "user_usec", "system_usec", "throttled_usec"), "microseconds"),
    **dict.fromkeys(("nr_periods", "nr_throttled"), "total"),
}
_MEMORY = (
    "usage usage_limit swap_usage swap_limit file_mapped file_dirty file_writeback pgactivate pgdeactivate pgfault "
    "pgmajfault pglazyfree pgrefill pglazyfreed pgscan pgsteal inactive_anon active_anon inactive_file active_file "
    "unevictable anon file kernel_stack slab sock shmem anon_thp slab_reclaimable slab_unreclaimable "
    "workingset_refault workingset_activate workingset_nodereclaim thp_fault_alloc thp_collapse_alloc"
)
_IO = {"rbytes": "bytes", "wbytes": "bytes", "rios": "total", "wios": "total"}


def _go_name(code: str) -> str:
    return _GO_NAMES.get(code) or "".join(part.capitalize() for part in code.split("_"))


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{{{labels}}} {value:.15g}" if labels else f"{name} {value:.15g}"


def _histograms(name: str, text: str, samples: Iterable[tuple[str, Histogram]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    for labels, histogram in samples:
        comma, count = f"{labels}," if labels else "", 0
        for limit, number in zip((*SECONDS, float("inf")), histogram.counts, strict=True):
            count += number
            yield f'{name}_bucket{{{comma}le="{"+Inf" if limit == float("inf") else f"{limit:g}"}"}} {count}'
        ended = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{ended} {histogram.sum:.9g}"
        yield f"{name}_count{ended} {count}"


def _calls(statistics: Statistics) -> Iterator[str]:
    """What grpc_prometheus tells of a server: a row for each method, whether it was called or not."""

    def labels(key: tuple[str, str]) -> str:
        return f'grpc_method="{key[1]}",grpc_service="{key[0]}",grpc_type="{statistics.kinds[key]}"'

    methods = sorted(statistics.kinds)
    for name, text, counts in (
        ("started", "Total number of RPCs started on the server.", statistics.started),
        ("msg_received", "Total number of RPC stream messages received on the server.", statistics.received),
        ("msg_sent", "Total number of gRPC stream messages sent by the server.", statistics.sent),
    ):
        rows = [(labels(key), counts[key]) for key in methods]
        yield from _family(f"grpc_server_{name}_total", "counter", text, rows)
    codes = [code.name for code in grpc.StatusCode]
    yield from _family(
        "grpc_server_handled_total",
        "counter",
        "Total number of RPCs completed on the server, regardless of success or failure.",
        (
            (f'grpc_code="{_go_name(code)}",{labels(key)}', statistics.handled.get((*key, code), 0))
            for key in methods
            for code in codes
        ),
    )
    yield from _histograms(
        "grpc_server_handling_seconds",
        "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.",
        ((labels(key), statistics.seconds[key]) for key in methods),
    )


def _containers(stats: list[CgroupStats]) -> Iterator[str]:
    """What containerd tells of the cgroup of each task that runs."""
    families: dict[str, list[tuple[str, float]]] = {}
    for task in stats:
        found = task.metrics
        labels = f'container_id="{task.id}",namespace="{task.namespace}"'
        ending = f',runtime="{task.runtime}"'

        def row(name: str, value: float, more: str = "", labels: str = labels, ending: str = ending) -> None:
            families.setdefault(f"container_{name}", []).append((labels + more + ending, value))

        for field, unit in _CPU.items():
            row(f"cpu_{field}_{unit}", getattr(found.cpu, field))
        for field in _MEMORY.split():
            row(f"memory_{field}_bytes", getattr(found.memory, field))
        if found.HasField("memory_events"):
            row("memory_oom_total", found.memory_events.oom)
        if found.HasField("pids"):
            row("pids_limit", found.pids.limit)
            row("pids_current", found.pids.current)
        for entry in found.io.usage:
            place = f',major="{entry.major}",minor="{entry.minor}"'
            for field, unit in _IO.items():
                row(f"io_{field}_{unit}", getattr(entry, field), place)
    for name in sorted(families):
        yield from _family(name, "gauge", f"{name.removeprefix('container_')} of a container", families[name])


def render(
    statistics: Statistics,
    tasks: Tasks,
    events: Exchange,
    collector: Collector,
    collections: Histogram,
    stats: list[CgroupStats],
) -> str:
    """The page; rows that containerd has as well have its names and labels.

    `collections` tells how many seconds each garbage collection took, `stats` is of the tasks that answered."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * resource.getpagesize()
    lines = [
        *_family("teu_containerd_build_info", "gauge", "Version of the daemon.", [(f'version="{__version__}"', 1)]),
        *_family(
            "containerd_build_info_total",
            "counter",
            "containerd build information",
            [(f'revision="",version="{__version__}"', 1)],
        ),
        *_calls(statistics),
        *_containers(stats),
        *_family("teu_containerd_events_total", "counter", "Events told.", [("", events.published)]),
        *_family("teu_containerd_subscribers", "gauge", "Event subscribers.", [("", events.subscribers())]),
        *_family(
            "containerd_gc_collections_total",
            "counter",
            "counter of gc scheduler collections",
            [('status="fail"', collector.failures), ('status="success"', collector.runs)],
        ),
        *_histograms("containerd_gc_gc_seconds", "duration of gc scheduler collections", [("", collections)]),
        *_family("teu_containerd_gc_removed_total", "counter", "Objects collected.", [("", collector.removed)]),
        *_family("process_start_time_seconds", "gauge", "Start of the process.", [("", _STARTED)]),
        *_family("process_cpu_seconds_total", "counter", "CPU time.", [("", usage.ru_utime + usage.ru_stime)]),
        *_family("process_resident_memory_bytes", "gauge", "Resident memory.", [("", resident)]),
        *_family("teu_containerd_tasks", "gauge", "Tasks with a shim.", [("", tasks.count())]),
    ]
    return "\n".join(lines) + "\n"


async def serve_metrics(
    address: str, statistics: Callable[[], Statistics], tasks: Tasks, events: Exchange, collector: Collector
) -> asyncio.AbstractServer | None:
    """Serve every path that ends in /metrics at HOST:PORT or /SOCKET, and close after each; nothing without an
    address. `statistics` gives those of the gRPC server, which is made more than once."""
    if not address:
        return None
    collections = Histogram()
    collector.told = collections.add

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            method, path, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ", 2)
            if method == "GET" and path.split("?")[0].endswith("/metrics"):
                stats = await tasks.cgroup_stats()
                page = await asyncio.to_thread(render, statistics(), tasks, events, collector, collections, stats)
                body = page.encode()
                status, kind = "200 OK", "text/plain; version=0.0.4; charset=utf-8"
            else:
                body, status, kind = b"not found: /v1/metrics is here\n", "404 Not Found", "text/plain"
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        writer.close()

    if address.startswith("/"):
        return await asyncio.start_unix_server(connected, address)
    host, _, port = address.rpartition(":")
    return await asyncio.start_server(connected, host.strip("[]") or None, int(port))
