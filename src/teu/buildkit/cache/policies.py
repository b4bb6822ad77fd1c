# SPDX-License-Identifier: Apache-2.0
"""What of the cache is given up, and in which order: BuildKit's policies of garbage collection, and Prune.

A policy looks at records that nobody uses. Without a number of bytes it gives up all of them. With one it gives up one
after the other, what was used longest ago and least often first, until what is left is less. A record goes only after
those made of it. Policies are gone through in their order.

Nothing here removes anything: `prune` is given what does.
"""

from __future__ import annotations

import heapq
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from teu.buildkit.cache.store import FRONTEND, INTERNAL, UNKNOWN, Record
from teu.oci.filters import Filter, parse_all

HOUR = 3600.0
DAY = 24 * HOUR
FILESYSTEM_UNKNOWN = 2_000_000_000  # bytes that a percentage is of a file system that tells no size


@dataclass(frozen=True, slots=True)
class Usage:
    """A record with what only the running builder knows of it: whether somebody uses it, and whether something beside
    the cache has the same (an image: then it costs nothing, and removing it frees nothing)."""

    record: Record
    in_use: bool = False
    shared: bool = False

    @property
    def size(self) -> int:
        return max(self.record.size, 0)

    def field(self, path: Sequence[str]) -> str | None:
        """What a filter asks for."""
        record = self.record
        name = path[0] if path else ""
        if name in ("inuse", "mutable", "immutable", "shared", "private"):
            yes = {
                "inuse": self.in_use,
                "mutable": record.mutable,
                "immutable": not record.mutable,
                "shared": self.shared,
                "private": not self.shared,
            }[name]
            return "" if yes else None
        return {
            "id": record.id,
            "parents": ";".join(record.parents),
            "description": record.description,
            "type": record.kind,
        }.get(name) or None


@dataclass(frozen=True, slots=True)
class Policy:
    """One rule, and one request to prune. Bytes and seconds; 0 is "no such limit".

    `all`: records of the builder itself and of frontends, and shared ones, too. `keep_duration`: what was used since
    then stays. `reserved`: the cache is never made smaller than that; `max_used`: nor left bigger; `min_free`: what
    has to be free on the disk, as far as `reserved` allows."""

    filters: tuple[str, ...] = ()
    all: bool = False
    keep_duration: float = 0.0
    reserved: int = 0
    max_used: int = 0
    min_free: int = 0

    @property
    def keep_bytes(self) -> int:
        """What older clients call it: they have one number for what is kept."""
        return self.reserved


class Keeper(Protocol):
    """Who holds the records."""

    def usages(self) -> list[Usage]:
        """All records of now that are not dying."""

    def free_space(self) -> int:
        """Bytes that are free where the snapshots are."""

    def measure(self, name: str) -> int:
        """The size of a record that was not measured yet: bytes."""

    def remove(self, name: str) -> bool:
        """Give a record up and remove it. False: somebody uses it meanwhile."""

    def collect(self) -> None:
        """Free what only the removed ones held."""

    def forget(self) -> None:
        """Forget what stands for no bytes: where no record is left, nothing more is remembered."""


def disk_usage(usages: Iterable[Usage], filters: Sequence[str] = (), age: float = 0.0, now: float = 0.0) -> list[Usage]:
    """What `du` tells: those that match any of the filters, and were not used in the last `age` seconds.

    What a used record is made of is in use; what a shared one is made of is shared. Raises filters.FilterError."""
    chosen = parse_all(filters)
    all_ = {one.record.id: one for one in usages}
    in_use = _with_parents(all_, [name for name, one in all_.items() if one.in_use])
    shared = _with_parents(all_, [name for name, one in all_.items() if one.shared])
    told = []
    for name, one in all_.items():
        one = replace(one, in_use=name in in_use, shared=name in shared)
        if one.record.mutable and one.in_use:
            one = replace(one, record=replace(one.record, size=0))  # it changes while it is counted
        if not chosen(one.field):
            continue
        if age and one.record.used is not None and one.record.used > now - age:
            continue
        told.append(one)
    return told


def _with_parents(all_: dict[str, Usage], names: list[str]) -> set[str]:
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name not in seen and name in all_:
            seen.add(name)
            names += all_[name].record.parents
    return seen


def keep_bytes(policy: Policy, total: int, free: int) -> int:
    """How big the cache may stay, when it is `total` now and `free` bytes of the disk are; 0 is "no limit was set"."""
    if not (policy.max_used or policy.reserved or policy.min_free):
        return 0
    keep = policy.max_used
    missing = policy.min_free - free
    if missing > 0:
        keep = min(keep or total, total - missing)
    elif policy.min_free and not keep:
        keep = total  # there is room enough, and no other limit
    return max(keep, policy.reserved, 1)


def order(usages: Iterable[Usage]) -> list[Usage]:
    """Which is given up first: used longest ago and least often, both counted the same."""
    all_ = list(usages)
    times = sorted({one.record.used or 0.0 for one in all_})
    counts = sorted({one.record.uses for one in all_})
    by_time = {value: (number + 1) / len(times) for number, value in enumerate(times)}
    by_count = {value: (number + 1) / len(counts) for number, value in enumerate(counts)}

    def rank(one: Usage) -> tuple[float, float, str]:
        record = one.record
        return by_time[record.used or 0.0] + by_count[record.uses], record.used or record.created, record.id

    return sorted(all_, key=rank)


def prune(
    keeper: Keeper,
    policies: Iterable[Policy],
    *,
    told: Callable[[Usage], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.time,
) -> list[Usage]:
    """Go through the policies; what was removed. `told` hears of each as it goes; `stop` is asked between two.

    Raises filters.FilterError before anything is removed."""
    rules = [(policy, parse_all(policy.filters)) for policy in policies]
    gone: list[Usage] = []
    for policy, chosen in rules:
        _prune(keeper, policy, chosen, gone, told, stop, clock())
    if gone:
        keeper.collect()
    keeper.forget()
    return gone


def _prune(
    keeper: Keeper,
    policy: Policy,
    chosen: Filter,
    gone: list[Usage],
    told: Callable[[Usage], None] | None,
    stop: Callable[[], bool],
    now: float,
) -> None:
    limited = bool(policy.max_used or policy.reserved or policy.min_free)
    # What an image has stays on the disk with it, and with it what that is made of: neither counts.
    usages = disk_usage(keeper.usages())
    total = 0
    if limited:
        usages = [measured(keeper, one) for one in usages]
        total = sum(one.size for one in usages if not one.shared)
    keep = keep_bytes(policy, total, keeper.free_space() if policy.min_free else 0)
    # What may go by this policy, ranked once; a record is up for it when those made of it are gone.
    ranked = order(one for one in usages if not one.in_use and _may_go(policy, chosen, one, now))
    rank = {one.record.id: number for number, one in enumerate(ranked)}
    children = Counter(parent for one in usages for parent in set(one.record.parents))
    todo = [number for number, one in enumerate(ranked) if not children[one.record.id]]
    while todo and not stop() and not (keep and total < keep):
        one = measured(keeper, ranked[heapq.heappop(todo)])
        if not keeper.remove(one.record.id):
            continue
        total -= 0 if one.shared else one.size
        for parent in set(one.record.parents):
            children[parent] -= 1
            if not children[parent] and parent in rank:
                heapq.heappush(todo, rank[parent])
        gone.append(one)
        if told is not None:
            told(one)


def measured(keeper: Keeper, one: Usage) -> Usage:
    """With its size."""
    if one.record.size != UNKNOWN:
        return one
    return replace(one, record=replace(one.record, size=keeper.measure(one.record.id)))


def _may_go(policy: Policy, chosen: Filter, one: Usage, now: float) -> bool:
    record = one.record
    if not policy.all and (record.kind in (INTERNAL, FRONTEND) or one.shared):
        return False
    if policy.keep_duration and record.used is not None and record.used > now - policy.keep_duration:
        return False
    return chosen(one.field)


# What a configuration says

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\Z", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS = {"h": HOUR, "m": 60.0, "s": 1.0, "ms": 0.001}


def size(text: str, total: int) -> int:
    """Bytes: "10GB" (of 1024, as docker has it), "512", or "20%" of a file system of `total` bytes. ValueError."""
    text = text.strip().strip('"')
    if text.endswith("%"):
        if not text[:-1].isascii() or not text[:-1].isdigit() or int(text[:-1]) > 100:
            raise ValueError(f"invalid disk space {text}")
        return percentage(int(text[:-1]), total)
    found = _SIZE.match(text)
    if not found:
        raise ValueError(f"invalid disk space {text}")
    return int(float(found[1]) * 1024 ** " kmgtp".index(found[2].lower() or " "))


def percentage(part: int, total: int) -> int:
    """A part of a file system in bytes, rounded up to the next 10^9, as BuildKit does."""
    if not part:
        return 0
    if not total:
        return FILESYSTEM_UNKNOWN
    return (total * part // 100 // (1 << 30) + 1) * 1_000_000_000


def duration(text: str) -> float:
    """Seconds: "48h", "1h30m", or a number of them. ValueError."""
    text = text.strip().strip('"')
    if text.isascii() and text.isdigit():
        return float(text)
    pieces = _DURATION.findall(text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        raise ValueError(f"invalid duration {text}")
    return sum(float(number) * _UNITS[unit] for number, unit in pieces)


def defaults(total: int, *, reserved: int = 0, max_used: int = 0, min_free: int = 0) -> tuple[Policy, ...]:
    """The policies where nobody configured any, on a file system of `total` bytes; with limits, where those are."""
    if not (reserved or max_used or min_free):
        reserved = min(percentage(10, total), 10_000_000_000)
        max_used = min(percentage(80, total), 100_000_000_000)
        min_free = percentage(20, total)
    limits = Policy(reserved=reserved, max_used=max_used, min_free=min_free)
    return (
        # What is made again most easily goes after two days, if there is more than a little of it.
        Policy(
            filters=("type==source.local", "type==exec.cachemount", "type==source.git.checkout"),
            keep_duration=48 * HOUR,
            max_used=512_000_000,
        ),
        replace(limits, keep_duration=60 * DAY),
        limits,
        replace(limits, all=True),
    )
