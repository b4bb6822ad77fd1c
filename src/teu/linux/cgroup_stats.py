# SPDX-License-Identifier: Apache-2.0
"""What a cgroup has used, in the layout that `runc events --stats` prints and its readers parse.

The layout's words are those of cgroup v1: nanoseconds where version 2 counts microseconds, memory
plus swap where version 2 has swap alone. A controller that is not there leaves its part at zero.
"""

from __future__ import annotations

import errno
import os

from teu.linux import cgroup_files
from teu.linux.cgroup_files import UINT64_MAX, devices, read, read_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Stats = dict[str, Any]

HUGE_PAGES = "/sys/kernel/mm/hugepages"


def _number(path: str, name: str) -> int:
    """One number; "max" is the largest there is. OSError where there is no such file."""
    text = read(path, name)
    return UINT64_MAX if text == "max" else int(text)


def _number_or_zero(path: str, name: str) -> int:
    try:
        return _number(path, name)
    except OSError:
        return 0


def _without_zeros(stats: Stats, keep: tuple[str, ...] = ()) -> Stats:
    return {key: value for key, value in stats.items() if value or key in keep}


def stats(path: str) -> Stats:
    """The `data` of a stats event."""
    return {
        "cpu": cpu(path),
        # Version 1's cpuset files; readers expect the keys.
        "cpuset": {
            "cpu_exclusive": 0,
            "mem_hardwall": 0,
            "mem_exclusive": 0,
            "memory_migrate": 0,
            "memory_spread_page": 0,
            "memory_spread_slab": 0,
            "memory_pressure": 0,
            "sched_load_balance": 0,
            "sched_relax_domain_level": 0,
        },
        "memory": memory(path),
        "pids": pids(path),
        "blkio": block_io(path),
        "hugetlb": hugetlb(path),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def pressure(path: str, name: str) -> Stats | None:
    """Pressure stall information; None where the kernel has it not, or not for this cgroup."""
    try:
        text = read(path, name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
            return None
        raise
    return cgroup_files.pressure(text)


def _with_pressure(stats: Stats, path: str, name: str) -> Stats:
    found = pressure(path, name)
    if found:
        stats["psi"] = found
    return stats


def cpu(path: str) -> Stats:
    """CPU time in nanoseconds, throttling in periods and nanoseconds, pressure. Without the controller usage alone,
    which cgroup version 2 always counts."""
    try:
        counts = read_pairs(path, "cpu.stat")
    except OSError:
        counts = {}
    usage = _without_zeros(
        {
            "total": counts.get("usage_usec", 0) * 1000,
            "kernel": counts.get("system_usec", 0) * 1000,
            "user": counts.get("user_usec", 0) * 1000,
        },
        ("kernel", "user"),
    )
    throttling = _without_zeros(
        {
            "periods": counts.get("nr_periods", 0),
            "throttledPeriods": counts.get("nr_throttled", 0),
            "throttledTime": counts.get("throttled_usec", 0) * 1000,
        }
    )
    return _with_pressure({"usage": usage, "throttling": throttling}, path, "cpu.pressure")


def memory(path: str) -> Stats:
    """Memory and swap in bytes: usage, limit, what was refused, and memory.stat as it is. Zeros without the
    controller."""
    empty = {"limit": 0, "failcnt": 0}
    try:
        raw = read_pairs(path, "memory.stat")
        usage = _memory_entry(path, "memory")
    except OSError:
        return {"usage": empty, "swap": empty, "kernel": empty, "kernelTCP": empty}
    swap = {"limit": 0, "usage": 0}
    try:
        swap = _memory_entry(path, "memory.swap")
    except OSError:
        pass
    # Version 1 counts memory in; the peak of the sum cannot be known.
    limit = swap["limit"] if swap["limit"] == UINT64_MAX else swap["limit"] + usage["limit"]
    both = {"limit": min(limit, UINT64_MAX), "usage": swap.get("usage", 0) + usage.get("usage", 0), "failcnt": 0}
    found = _without_zeros(
        {
            "cache": raw.get("file", 0),
            "usage": usage,
            "swap": _without_zeros(both, ("limit", "failcnt")),
            "kernel": empty,
            "kernelTCP": empty,
            "raw": raw,
        }
    )
    return _with_pressure(found, path, "memory.pressure")


def _memory_entry(path: str, prefix: str) -> Stats:
    entry = {
        "limit": _number(path, f"{prefix}.max"),
        "usage": _number(path, f"{prefix}.current"),
        "max": _number_or_zero(path, f"{prefix}.peak"),
        "failcnt": 0,
    }
    return _without_zeros(entry, ("limit", "failcnt"))


def pids(path: str) -> Stats:
    """How many processes there are and may be; a limit of 0 is none. Without the controller they are counted."""
    try:
        current = _number(path, "pids.current")
        limit = _number(path, "pids.max")
    except OSError:
        # Without the controller the processes are counted.
        try:
            return _without_zeros({"current": len(read(path, "cgroup.procs").split())})
        except OSError:
            return {}
    return _without_zeros({"current": current, "limit": 0 if limit == UINT64_MAX else limit})


# io.stat's keys: the list of the layout, and the operation as version 1 named it.
IO_KEYS = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}


def block_io(path: str) -> Stats:
    """Bytes and operations of each device since the start, and pressure. Without the controller pressure alone."""
    found: Stats = {}
    try:
        text = read(path, "io.stat")
    except OSError:
        text = ""
    for major, minor, values in devices(text):
        for key, value in values.items():
            if key in IO_KEYS:
                table, operation = IO_KEYS[key]
                entry = {"major": major, "minor": minor, "op": operation, "value": value}
                found.setdefault(table, []).append(_without_zeros(entry))
    return _with_pressure(found, path, "io.pressure")


def huge_page_sizes() -> list[str]:
    """As the files of the hugetlb controller name them: 2MB, 1GB."""
    sizes = []
    try:
        names = os.listdir(HUGE_PAGES)
    except OSError:
        return []
    for name in sorted(names):
        kilobytes = int(name.removeprefix("hugepages-").removesuffix("kB"))
        if kilobytes >= 1 << 20:
            sizes.append(f"{kilobytes >> 20}GB")
        elif kilobytes >= 1 << 10:
            sizes.append(f"{kilobytes >> 10}MB")
        else:
            sizes.append(f"{kilobytes}KB")
    return sizes


def hugetlb(path: str) -> Stats:
    """By page size, as "2MB": bytes in use, or reserved where the kernel counts that, and how often the limit refused
    some."""
    found: Stats = {}
    for size in huge_page_sizes():
        try:
            try:
                usage = _number(path, f"hugetlb.{size}.rsvd.current")
            except FileNotFoundError:
                usage = _number(path, f"hugetlb.{size}.current")
            failed = read_pairs(path, f"hugetlb.{size}.events").get("max", 0)
        except OSError:
            continue
        found[size] = _without_zeros({"usage": usage, "failcnt": failed}, ("failcnt",))
    return found
