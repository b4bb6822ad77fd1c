# SPDX-License-Identifier: Apache-2.0
"""What is given up, and what is told of the cache, by BuildKit's rules."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from teu.buildkit.cache import policies
from teu.buildkit.cache.policies import DAY, HOUR, Policy, Usage, disk_usage, prune
from teu.buildkit.cache.store import CACHE_MOUNT, INTERNAL, LOCAL_SOURCE, UNKNOWN, Record
from teu.oci.filters import FilterError

NOW = 100 * DAY


class Shelf:
    """Keeper of a list."""

    def __init__(self, *usages: Usage, free: int = 0) -> None:
        self.all = {one.record.id: one for one in usages}
        self.free = free
        self.busy: set[str] = set()
        self.gone: list[str] = []

    def usages(self) -> list[Usage]:
        return list(self.all.values())

    def collect(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def free_space(self) -> int:
        return self.free

    def measure(self, name: str) -> int:
        return 100

    def remove(self, name: str) -> bool:
        if name in self.busy:
            return False
        assert not any(name in one.record.parents for one in self.all.values()), "it has children"
        self.gone.append(name)
        del self.all[name]
        return True

    def prune(self, *rules: Policy) -> list[str]:
        prune(self, rules, clock=lambda: NOW)
        return self.gone


def usage(name: str, size: int = 100, *parents: str, age: float | None = None, uses: int = 0, **more: object) -> Usage:
    how = {key: more.pop(key) for key in ("in_use", "shared") if key in more}
    used = None if age is None else NOW - age
    record = Record(name, parents, size=size, created=1.0, used=used, uses=uses, **more)  # type: ignore[arg-type]
    return Usage(record, **how)  # type: ignore[arg-type]


def test_without_limits_everything_unused_goes() -> None:
    shelf = Shelf(
        usage("a"), usage("b", 100, "a"), usage("c", in_use=True), usage("d", kind=INTERNAL), usage("e", shared=True)
    )
    assert shelf.prune(Policy()) == ["b", "a"]
    assert Shelf(*shelf.all.values()).prune(Policy(all=True)) == ["d", "e"]


def test_what_is_made_of_it_holds_it() -> None:
    shelf = Shelf(usage("a"), usage("b", 100, "a"), usage("c", 100, "b", in_use=True))
    assert shelf.prune(Policy(all=True)) == []


def test_keep_duration_and_filters() -> None:
    shelf = Shelf(
        usage("new", age=HOUR),
        usage("old", age=50 * HOUR),
        usage("never"),
        usage("mount", age=50 * HOUR, kind=CACHE_MOUNT),
    )
    assert shelf.prune(Policy(keep_duration=48 * HOUR, filters=("type==exec.cachemount",))) == ["mount"]
    assert sorted(shelf.prune(Policy(keep_duration=48 * HOUR))) == ["mount", "never", "old"]


def test_a_limit_takes_the_oldest_and_least_used_until_it_is_kept() -> None:
    shelf = Shelf(
        usage("often", age=4 * HOUR, uses=9),
        usage("oldest", age=9 * HOUR, uses=1),
        usage("newest", age=HOUR, uses=1),
        usage("both", age=5 * HOUR, uses=0),
    )
    assert shelf.prune(Policy(max_used=250)) == ["both", "oldest"]


def test_shared_and_used_ones_count_as_they_should() -> None:
    shelf = Shelf(usage("shared", 1000, shared=True), usage("a", 100), usage("b", 100))
    assert shelf.prune(Policy(max_used=250)) == []
    shelf = Shelf(usage("used", 1000, in_use=True), usage("a", 100), usage("b", 100))
    assert sorted(shelf.prune(Policy(max_used=250))) == ["a", "b"]


@pytest.mark.parametrize(
    ("policy", "total", "free", "expected"),
    [
        (Policy(), 1000, 0, 0),
        (Policy(max_used=500), 1000, 0, 500),
        (Policy(reserved=300), 1000, 0, 300),
        (Policy(min_free=200), 1000, 500, 1000),
        (Policy(min_free=200), 1000, 50, 850),
        (Policy(min_free=200, max_used=400), 1000, 50, 400),
        (Policy(min_free=2000, max_used=400, reserved=300), 1000, 50, 300),
        (Policy(min_free=5000), 1000, 0, 1),
    ],
)
def test_how_much_is_kept(policy: Policy, total: int, free: int, expected: int) -> None:
    assert policies.keep_bytes(policy, total, free) == expected


def test_free_space_is_made() -> None:
    shelf = Shelf(*(usage(str(number), 100, age=HOUR * (10 - number)) for number in range(5)), free=50)
    assert shelf.prune(Policy(min_free=300)) == ["0", "1", "2"]


def test_a_refusal_does_not_stop_it() -> None:
    shelf = Shelf(usage("a"), usage("b", 100, "a"), usage("c"))
    shelf.busy = {"b"}
    assert shelf.prune(Policy(max_used=1)) == ["c"]


def test_sizes_that_nobody_counted_are_counted() -> None:
    shelf = Shelf(usage("a", UNKNOWN))
    told: list[Usage] = []
    prune(shelf, [Policy()], told=told.append)
    assert [one.size for one in told] == [100]


def test_a_wrong_filter_removes_nothing() -> None:
    shelf = Shelf(usage("a"))
    with pytest.raises(FilterError):
        shelf.prune(Policy(), Policy(filters=("type=",)))
    assert not shelf.gone


def test_it_can_be_stopped() -> None:
    shelf = Shelf(usage("a"), usage("b"))
    assert prune(shelf, [Policy()], stop=lambda: len(shelf.gone) > 0) and len(shelf.gone) == 1


def test_disk_usage_tells_what_docker_shows() -> None:
    usages = [
        usage("base", shared=False),
        usage("step", 50, "base", in_use=True, age=HOUR),
        usage("image", 50, "base", shared=True, age=3 * HOUR),
        usage("mount", 70, mutable=True, in_use=True, kind=CACHE_MOUNT),
        usage("context", kind=LOCAL_SOURCE),
    ]
    told = {one.record.id: one for one in disk_usage(usages)}
    assert told["base"].in_use and told["base"].shared
    assert not told["image"].in_use and told["step"].in_use and not told["step"].shared
    assert told["mount"].size == 0

    def names(*filters: str, age: float = 0) -> list[str]:
        return [one.record.id for one in disk_usage(usages, filters, age, NOW)]

    assert names("type==source.local") == ["context"]
    assert names("inuse") == ["base", "step", "mount"]
    assert names("mutable", "type==source.local") == ["mount", "context"]
    assert names("shared") == ["base", "image"]
    assert names("private,immutable") == ["step", "context"]
    assert names("parents~=base") == ["step", "image"]
    assert names("id==step") == ["step"]
    assert names(age=2 * HOUR) == ["base", "image", "mount", "context"]


def test_random_shelves_are_never_left_with_holes() -> None:
    random = Random(5)
    for _ in range(50):
        shelf = Shelf(free=random.randint(0, 500))
        for number in range(60):
            parents = random.sample(range(number), min(number, random.randint(0, 2)))
            one = usage(
                str(number),
                random.randint(1, 100),
                *map(str, parents),
                age=random.random() * DAY,
                uses=random.randint(0, 5),
            )
            shelf.all[str(number)] = replace(one, in_use=random.random() < 0.1, shared=random.random() < 0.1)
        shared = {one.record.id for one in disk_usage(shelf.usages()) if one.shared}
        limit = random.randint(1, 3000)
        shelf.prune(Policy(max_used=limit, all=random.random() < 0.5))
        left = sum(one.size for one in shelf.usages() if one.record.id not in shared)
        held = {parent for one in shelf.usages() for parent in one.record.parents}
        idle = [one.record.id for one in shelf.usages() if not one.in_use and one.record.id not in held]
        assert left < limit or not set(idle) - shared


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512", 512), ("10GB", 10 << 30), ("1.5k", 1536), ("20%", 21_000_000_000), ("0%", 0), ('"1MiB"', 1 << 20)],
)
def test_sizes_of_a_configuration(text: str, expected: int) -> None:
    assert policies.size(text, 100 << 30) == expected


@pytest.mark.parametrize("text", ["", "x", "10X", "-1", "%", "200%", "1 2"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="invalid disk space"):
        policies.size(text, 1)


def test_durations_of_a_configuration() -> None:
    assert policies.duration("48h") == 48 * HOUR
    assert policies.duration("1h30m") == 5400
    assert policies.duration("10") == 10
    for text in ("", "h", "1x", "1h x"):
        with pytest.raises(ValueError, match="invalid duration"):
            policies.duration(text)


def test_the_defaults() -> None:
    rules = policies.defaults(1000 << 30)
    assert [one.all for one in rules] == [False, False, False, True]
    assert rules[1].keep_duration == 60 * DAY
    assert (rules[3].reserved, rules[3].max_used, rules[3].min_free) == (
        10_000_000_000,
        100_000_000_000,
        201_000_000_000,
    )
    assert policies.defaults(0)[2].max_used == 2_000_000_000
    assert policies.defaults(1 << 40, max_used=5)[2] == Policy(max_used=5)
