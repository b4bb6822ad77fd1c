# SPDX-License-Identifier: Apache-2.0
"""The event bus: what is remembered and what waits for a slow subscriber is bounded, in number and in bytes."""

from __future__ import annotations

from pathlib import Path

from teu.engine.core import events


def fill(bus: events.Events, count: int, size: int) -> None:
    for number in range(count):
        bus.publish("container", "create", str(number), {"label": "x" * size})


def test_small_events_are_bounded_by_number() -> None:
    bus = events.Events()
    fill(bus, events.EVENTS_KEPT + 10, 10)
    kept, _ = bus.subscribe()
    assert len(kept) == events.EVENTS_KEPT and kept[-1]["Actor"]["ID"] == str(events.EVENTS_KEPT + 9)


def test_large_events_are_bounded_by_bytes() -> None:
    bus = events.Events()
    fill(bus, 50, 1 << 20)
    kept, _ = bus.subscribe()
    assert 1 <= len(kept) <= events.BYTES_KEPT >> 20
    assert sum(map(events.weight, kept)) <= events.BYTES_KEPT
    fill(bus, 1, events.BYTES_KEPT * 2)  # one that is larger than all is still the last one
    assert len(bus.subscribe()[0]) == 1


def test_a_slow_subscriber_is_cut_off() -> None:
    bus = events.Events()
    _, slow = bus.subscribe()
    fill(bus, 2, events.QUEUE_BYTES * 2 // 3)
    assert not bus.is_subscribed(slow)
    assert slow.get_nowait() is not None and slow.bytes == 0
    _, quick = bus.subscribe()
    for _ in range(5):
        fill(bus, 1, events.QUEUE_BYTES // 2)
        assert quick.get_nowait() is not None
    assert bus.is_subscribed(quick)


def test_what_was_remembered_is_before_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "events"
    first, second = events.Events(), events.Events()
    fill(first, 3, 10)
    first.save(str(path))
    assert path.stat().st_mode & 0o777 == 0o600, "labels may be secrets"
    second.publish("daemon", "reload", "x")
    second.load(str(path))
    kept, _ = second.subscribe()
    assert kept[:3] == first.subscribe()[0] and kept[3]["Action"] == "reload"
    assert second._bytes == sum(map(events.weight, kept))
    assert not path.exists()
    second.load(str(path))
    assert second.subscribe()[0] == kept, "it is said once"


def test_half_a_memory_is_none(tmp_path: Path) -> None:
    path = tmp_path / "events"
    bus = events.Events()
    fill(bus, 3, 10)
    bus.save(str(path))
    path.write_text(path.read_text()[:-5])
    fresh = events.Events()
    fresh.load(str(path))
    assert not fresh.subscribe()[0]
