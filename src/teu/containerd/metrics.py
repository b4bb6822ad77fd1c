# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus over HTTP, at /v1/metrics as containerd's."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from teu import __version__

if TYPE_CHECKING:
    from teu.containerd.context import Context
    from teu.containerd.rpc import Server

_STARTED = time.time()


def _family(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{{{labels}}} {value:g}" if labels else f"{name} {value:g}"


def render(context: Context, server: Server) -> str:
    statistics = server.statistics
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * resource.getpagesize()
    collector = context.collector
    lines = [
        *_family("teu_containerd_build_info", "gauge", "Version of the daemon.", [(f'version="{__version__}"', 1)]),
        *_family(
            "grpc_server_started_total", "counter", "Calls begun.",
            [(f'grpc_service="{service}",grpc_method="{method}"', count)
             for (service, method), count in sorted(statistics.started.items())],
        ),
        *_family(
            "grpc_server_handled_total", "counter", "Calls ended, by status.",
            [(f'grpc_service="{service}",grpc_method="{method}",grpc_code="{code}"', count)
             for (service, method, code), count in sorted(statistics.handled.items())],
        ),
        *_family(
            "grpc_server_handling_seconds_sum", "counter", "Time spent in calls.",
            [(f'grpc_service="{service}",grpc_method="{method}"', seconds)
             for (service, method), seconds in sorted(statistics.seconds.items())],
        ),
        *_family("teu_containerd_events_total", "counter", "Events told.", [("", context.events.published)]),
        *_family("teu_containerd_subscribers", "gauge", "Event subscribers.", [("", context.events.subscribers())]),
        *_family("teu_containerd_gc_runs_total", "counter", "Garbage collections.", [("", collector.runs)]),
        *_family("teu_containerd_gc_removed_total", "counter", "Objects collected.", [("", collector.removed)]),
        *_family("teu_containerd_gc_seconds_total", "counter", "Time in collections.", [("", collector.seconds)]),
        *_family("process_start_time_seconds", "gauge", "Start of the process.", [("", _STARTED)]),
        *_family("process_cpu_seconds_total", "counter", "CPU time.", [("", usage.ru_utime + usage.ru_stime)]),
        *_family("process_resident_memory_bytes", "gauge", "Resident memory.", [("", resident)]),
    ]  # fmt: skip
    if context.tasks is not None and hasattr(context.tasks, "metrics_lines"):
        lines += context.tasks.metrics_lines()
    return "\n".join(lines) + "\n"


async def serve_metrics(context: Context, server: Callable[[], Server]) -> asyncio.AbstractServer | None:
    """Nothing without an address in the configuration. Serves every path that ends in /metrics, closes after each."""
    address = context.config["metrics"]["address"]
    if not address:
        return None

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            method, path, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ", 2)
            if method == "GET" and path.split("?")[0].endswith("/metrics"):
                body = (await asyncio.to_thread(render, context, server())).encode()
                status, kind = "200 OK", "text/plain; version=0.0.4; charset=utf-8"
            else:
                body, status, kind = b"not found: /v1/metrics is here\n", "404 Not Found", "text/plain"
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode() + body
            )
            await writer.drain()
        writer.close()

    if address.startswith("/"):
        return await asyncio.start_unix_server(connected, address)
    host, _, port = address.rpartition(":")
    return await asyncio.start_server(connected, host.strip("[]") or None, int(port))
