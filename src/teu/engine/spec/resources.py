# SPDX-License-Identifier: Apache-2.0
"""linux.resources of a specification."""

from __future__ import annotations

import os
from typing import Any

from teu.engine.core.errors import BadRequest


def resources(host: dict[str, Any]) -> dict[str, Any]:
    """linux.resources of a specification, of create and of update. Only what was asked for."""
    result: dict[str, Any] = {}
    cpu: dict[str, Any] = {}
    if host["NanoCpus"]:
        cpu["period"] = 100_000
        cpu["quota"] = host["NanoCpus"] * 100_000 // 1_000_000_000
    for key, name in (
        ("CpuShares", "shares"),
        ("CpuPeriod", "period"),
        ("CpuQuota", "quota"),
        ("CpusetCpus", "cpus"),
        ("CpusetMems", "mems"),
        ("CpuRealtimePeriod", "realtimePeriod"),
        ("CpuRealtimeRuntime", "realtimeRuntime"),
    ):
        if host[key]:
            cpu[name] = host[key]
    if cpu:
        result["cpu"] = cpu
    memory: dict[str, Any] = {}
    for key, name in (("Memory", "limit"), ("MemoryReservation", "reservation"), ("MemorySwap", "swap")):
        if host[key] and (host["Memory"] or key != "MemorySwap"):  # swap without a limit of memory has none either
            memory[name] = host[key]
    if host["MemorySwappiness"] is not None and host["MemorySwappiness"] >= 0:
        memory["swappiness"] = host["MemorySwappiness"]
    if memory:
        result["memory"] = memory
    if host["PidsLimit"]:
        result["pids"] = {"limit": host["PidsLimit"] if host["PidsLimit"] > 0 else -1}
    block: dict[str, Any] = {}
    if host["BlkioWeight"]:
        block["weight"] = host["BlkioWeight"]
    for key, name, field in (
        ("BlkioWeightDevice", "weightDevice", "Weight"),
        ("BlkioDeviceReadBps", "throttleReadBpsDevice", "Rate"),
        ("BlkioDeviceWriteBps", "throttleWriteBpsDevice", "Rate"),
        ("BlkioDeviceReadIOps", "throttleReadIOPSDevice", "Rate"),
        ("BlkioDeviceWriteIOps", "throttleWriteIOPSDevice", "Rate"),
    ):
        if host[key]:
            block[name] = [_block_device(entry, field) for entry in host[key]]
    if block:
        result["blockIO"] = block
    return result


def _block_device(entry: dict[str, Any], field: str) -> dict[str, Any]:
    try:
        number = os.stat(entry["Path"]).st_rdev
    except (OSError, KeyError) as error:
        raise BadRequest(f"the device of a block I/O limit cannot be found: {error}") from None
    return {"major": os.major(number), "minor": os.minor(number), field.lower(): entry.get(field, 0)}
