# SPDX-License-Identifier: Apache-2.0
"""`stats`: what the container's cgroup (v2) and network count, in the API's form."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu.engine.containers import proc, unit_limits
from teu.engine.containers.model import Container
from teu.engine.core import versions
from teu.engine.core.times import NEVER, timestamp
from teu.linux.cgroup_files import UINT64_MAX, devices, flat, number, text

if TYPE_CHECKING:
    from teu.engine.engine import Engine

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
NETWORK_FIELDS = (
    "rx_bytes",
    "rx_packets",
    "rx_errors",
    "rx_dropped",
    "",
    "",
    "",
    "",
    "tx_bytes",
    "tx_packets",
    "tx_errors",
    "tx_dropped",
)
BLOCK_FIELDS = (
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queue_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)
Sample = dict[str, object]


def stream(
    engine: Engine, container: Container, follow: bool, once: bool, version: versions.Version = versions.LAST
) -> Iterator[bytes]:
    """A line each second while it follows. Without: two samples a second apart, or one (one-shot). As this version of
    the API has them."""
    before: Sample | None = None
    if not follow and not once and container.running:
        before = sample(container)
        _pause(engine, container)
    while not container.removed:
        if container.running or not follow:
            now = sample(container)
            shown = _with(now, before)
            versions.fit("statistics", shown, version)
            yield json.dumps(shown).encode() + b"\n"
            before = now
        else:
            yield b""
        if not follow:
            return
        _pause(engine, container)


def _pause(engine: Engine, container: Container) -> None:
    with container.changed:
        container.changed.wait_for(lambda: container.removed or engine.stopping.is_set(), 1.0)


def _with(now: Sample, before: Sample | None) -> Sample:
    result = dict(now)
    result["precpu_stats"] = before["cpu_stats"] if before else _no_cpu()
    result["preread"] = before["read"] if before else NEVER
    return result


def _no_cpu() -> Sample:
    return {
        "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    }


def _number(folder: str, name: str) -> int | None:
    value = number(text(folder, name))
    return None if value == UINT64_MAX else value


def _system_cpu() -> int:
    with open("/proc/stat") as file:
        fields = file.readline().split()[1:8]
    return sum(map(int, fields)) * TICK


def sample(container: Container) -> Sample:
    """What is counted now; without a process there is little."""
    result: Sample = {
        "read": timestamp(),
        "name": f"/{container.name}",
        "id": container.id,
        "os_type": "linux",
        "num_procs": 0,
        "pids_stats": {},
        "cpu_stats": _no_cpu(),
        "memory_stats": {},
        "blkio_stats": dict.fromkeys(BLOCK_FIELDS),
        "storage_stats": {},
    }
    folder, networks = "", {}
    with contextlib.suppress(ProcessLookupError), proc.held(container) as held:
        folder = proc.cgroup(held)
        if container.host_config.network_mode != "host":
            networks = _networks(held)
    if not folder:
        return result
    cpu = flat(text(folder, "cpu.stat"))
    result["cpu_stats"] = {
        "cpu_usage": {
            "total_usage": cpu.get("usage_usec", 0) * 1000,
            "usage_in_kernelmode": cpu.get("system_usec", 0) * 1000,
            "usage_in_usermode": cpu.get("user_usec", 0) * 1000,
        },
        "system_cpu_usage": _system_cpu(),
        "online_cpus": os.cpu_count() or 1,
        "throttling_data": {
            "periods": cpu.get("nr_periods", 0),
            "throttled_periods": cpu.get("nr_throttled", 0),
            "throttled_time": cpu.get("throttled_usec", 0) * 1000,
        },
    }
    pids = {"current": _number(folder, "pids.current"), "limit": unit_limits.lowest(folder, "pids.max")}
    result["pids_stats"] = {key: value for key, value in pids.items() if value is not None}
    usage = _number(folder, "memory.current")
    if usage is not None:
        limit = unit_limits.lowest(folder, "memory.max")
        result["memory_stats"] = {
            "usage": usage,
            "stats": flat(text(folder, "memory.stat")),
            "limit": limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }
    result["blkio_stats"] = {**dict.fromkeys(BLOCK_FIELDS), "io_service_bytes_recursive": _block(folder)}
    if networks:
        result["networks"] = networks
    return result


def _block(folder: str) -> list[Sample]:
    return [
        {"major": major, "minor": minor, "op": op, "value": values[key]}
        for major, minor, values in devices(text(folder, "io.stat"))
        for key, op in (("rbytes", "read"), ("wbytes", "write"))
        if key in values
    ]


def _networks(folder: int) -> dict[str, dict[str, int]]:
    result = {}
    try:
        lines = proc.read(folder, "net/dev").splitlines()[2:]
    except OSError:
        return {}
    for line in lines:
        name, _, numbers = line.partition(":")
        if name.strip() != "lo":
            values = numbers.split()
            result[name.strip()] = {field: int(values[at]) for at, field in enumerate(NETWORK_FIELDS) if field}
    return result
