# SPDX-License-Identifier: Apache-2.0
"""linux.resources of a specification."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from teu.engine.core.errors import BadRequest

if TYPE_CHECKING:
    from teu.engine.core.fields import Resources
    from teu.oci.runtime_spec import Object


def resources(host: Resources) -> Object:
    """linux.resources of a specification, of create and of update. Only what was asked for."""
    parts = {"cpu": _cpu(host), "memory": _memory(host), "pids": _pids(host), "blockIO": _block(host)}
    return {name: part for name, part in parts.items() if part}


def _cpu(host: Resources) -> Object:
    found: Object = {}
    if host.nano_cpus:
        found["period"] = 100_000
        found["quota"] = host.nano_cpus * 100_000 // 1_000_000_000
    asked = {
        "shares": host.cpu_shares,
        "period": host.cpu_period,
        "quota": host.cpu_quota,
        "cpus": host.cpuset_cpus,
        "mems": host.cpuset_mems,
        "realtimePeriod": host.cpu_realtime_period,
        "realtimeRuntime": host.cpu_realtime_runtime,
    }
    return {**found, **{name: value for name, value in asked.items() if value}}


def _memory(host: Resources) -> Object:
    swap = host.memory_swap if host.memory else 0  # without a limit of memory there is none of swap either
    asked = {"limit": host.memory, "reservation": host.memory_reservation, "swap": swap}
    found: Object = {name: value for name, value in asked.items() if value}
    if host.memory_swappiness is not None and host.memory_swappiness >= 0:
        found["swappiness"] = host.memory_swappiness
    return found


def _pids(host: Resources) -> Object:
    return {"limit": max(host.pids_limit, -1)} if host.pids_limit else {}


def _block(host: Resources) -> Object:
    found: Object = {"weight": host.blkio_weight} if host.blkio_weight else {}
    if host.blkio_weight_device:
        weights = host.blkio_weight_device
        found["weightDevice"] = [{**_numbers(one.path), "weight": one.weight or 0} for one in weights]
    for name, rates in (
        ("throttleReadBpsDevice", host.blkio_device_read_bps),
        ("throttleWriteBpsDevice", host.blkio_device_write_bps),
        ("throttleReadIOPSDevice", host.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", host.blkio_device_write_iops),
    ):
        if rates:
            found[name] = [{**_numbers(one.path), "rate": one.rate or 0} for one in rates]
    return found


def _numbers(path: str | None) -> dict[str, int]:
    """Of a device. Raises BadRequest where there is none."""
    try:
        number = os.stat(path or "").st_rdev
    except OSError as error:
        raise BadRequest(f"the device of a block I/O limit cannot be found: {error}") from None
    return {"major": os.major(number), "minor": os.minor(number)}
