# SPDX-License-Identifier: Apache-2.0
"""./dev bench --budget: each count is its process's, the table is read as it was written, and what grew is told."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from lab import runner

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

import budget
import counters
from counters import GONE, Cost, Record


def switch(time: int, pid: int, *values: int, cpu: int = 0) -> Record:
    return Record("switch", time, cpu, pid, pid, values=values)


def test_what_was_counted_since_the_last_switch_is_of_who_leaves() -> None:
    replay = counters.Replay({7: "teud", 8: "teu"})
    replay.take(
        [
            switch(30, 8, 1600, 14, 25, 0),  # not in the order of their time: each processor has its own ring
            switch(10, 7, 1000, 10, 20, 0),  # from the beginning on: nobody knows whose
            switch(20, 7, 1500, 11, 25, 0),
            switch(40, 0, 9000, 50, 90, 0),  # idle, or somebody outside
            switch(50, 7, 9001, 50, 92, 0),
            Record("user", 45, 0, 7, 7),
            Record("user", 46, 0, 7, 7),
            Record("system", 47, 0, 7, 7),
        ]
    )
    assert {
        name: (cost.nanoseconds, cost.faults, cost.calls, cost.switches) for name, cost in replay.costs.items()
    } == {
        "teud": (501, 1, 7, 2),
        "teu": (100, 3, 0, 1),
    }
    assert replay.costs["teud"].user == pytest.approx(501 * 2 / 3)


def test_names_come_by_fork_and_by_exec_and_those_of_threads_do_not_count() -> None:
    replay = budget.Household({5: "zygote"})
    replay.take(
        [
            switch(1, 0, 0, 0, 0, 0),
            Record("fork", 2, 0, 6, 6, parent=5),
            switch(3, 6, 10, 0, 0, 0),
            Record("fork", 4, 0, 9, 9, parent=6),
            Record("name", 5, 0, 9, 9, name="teu-runc"),
            Record("name", 6, 0, 9, 10, name="a thread"),
            switch(7, 9, 30, 0, 0, 0),
            Record("end", 8, 0, 9, 9),
            switch(9, GONE, 35, 0, 0, 0),  # its last steps
            Record("end", 10, 0, 0, 0),
            switch(11, GONE, 99, 0, 0, 0),  # and those of somebody outside
        ]
    )
    assert {name: cost.nanoseconds for name, cost in replay.costs.items()} == {"containerd-shim": 10, "teu-runc": 25}


def test_a_ring_is_read_as_the_kernel_writes_it() -> None:
    """struct perf_event_header and its records, perf_event_open(2)."""

    def record(kind: int, body: bytes, misc: int = 0) -> bytes:
        return struct.pack("=IHH", kind, misc, 8 + len(body)) + body

    ring = object.__new__(counters.Ring)
    ring.cpu, ring.lost, ring._values = 1, 0, 4
    ids = struct.pack("=IIQ", 4, 4, 99)
    data = (
        record(counters.COMM, struct.pack("=II8s", 4, 4, b"teud") + ids)
        + record(counters.FORK, struct.pack("=IIIIQ", 5, 4, 5, 4, 98) + ids)
        + record(counters.SAMPLE, struct.pack("=IIQ5Q", 4, 6, 97, 4, 3, 100, 2, 1))
        + record(counters.LOST, struct.pack("=QQ", 1, 12) + ids)
    )
    assert list(ring.parse(data)) == [
        Record("name", 99, 1, 4, 4, name="teud"),
        Record("fork", 99, 1, 5, 5, parent=4),
        Record("switch", 97, 1, 4, 6, values=(100, 2, 1, 0)),
    ]
    assert ring.lost == 12
    ring._values = 0
    assert list(ring.parse(record(counters.SAMPLE, ids, misc=2))) == [Record("user", 99, 1, 4, 4)]


def a_round(teud: int, shim: int = 1_000_000) -> dict[str, Cost]:
    ours = Cost(50_000_000)
    return {"teud": Cost(teud, 3, 40, 0, 5), "containerd-shim": Cost(shim), budget.OURSELVES: ours}


def test_the_table_is_read_as_it_was_written() -> None:
    rounds = [a_round(2_000_000), a_round(4_000_000), a_round(90_000_000)]
    rounds[0]["teud"].modes.update({"user": 3, "system": 1})
    lines = budget.lines_of("run", rounds, 1, False)
    assert [(line.process, line.figures["CPU ms"]) for line in lines] == [("all", 5), ("teud", 4), ("shim", 1)]
    text = "# Benchmarks\n\n| a | b |\n\n## Budget\n\nwords | words\n\n" + budget.table(lines)
    assert "| run | **all** | 5.0 | " in text
    again = budget.read(text)
    assert [(line.job, line.process) for line in again] == [("run", "all"), ("run", "teud"), ("run", "shim")]
    assert again[0].figures["D-Bus calls"] == 1
    assert again[1].figures["system calls"] == 40
    assert budget.read("# Benchmarks\n") == []


def test_the_part_is_put_at_the_end_in_the_place_of_the_last_one() -> None:
    once = budget.put("# Benchmarks\n\ntable\n", "## Budget\n\none\n")
    assert once == "# Benchmarks\n\ntable\n\n## Budget\n\none\n"
    assert budget.put(once, "## Budget\n\ntwo\n") == "# Benchmarks\n\ntable\n\n## Budget\n\ntwo\n"


def line(job: str = "run", process: str = "all", **figures: float) -> budget.Line:
    return budget.Line(job, process, {name.replace("_", " "): value for name, value in figures.items()})


def test_what_has_grown_is_told_by_the_measure_of_the_machine() -> None:
    yardsticks = line(budget.YARDSTICK, CPU_ms=20.0), line(budget.YARDSTICK, CPU_ms=10.0)
    before = [yardsticks[1], line(CPU_ms=50.0, system_calls=1000, switches=20), line(process="teud", CPU_ms=1.0)]
    slower = [yardsticks[0], line(CPU_ms=100.0, system_calls=1100, switches=29), line(process="teud", CPU_ms=2.9)]
    assert budget.grown(slower, before) == []
    worse = [yardsticks[0], line(CPU_ms=111.0, system_calls=1101), line(process="shim", CPU_ms=9.0)]
    assert budget.grown(worse, before) == [
        "run, all: CPU ms 100.0 -> 111.0 (+11%)",
        "run, all: system calls 1000.0 -> 1101.0 (+10%)",
    ]
    assert budget.grown(worse, []) == []
    journal = [line(process=budget.OTHERS, system_calls=calls) for calls in (1000, 100)]
    assert budget.grown(journal[:1], journal[1:]) == []
    assert budget.grown([line(**{"D-Bus_calls": 1})], [line(**{"D-Bus_calls": 0})]) == [
        "run, all: D-Bus calls 0.0 -> 1.0 (from none)"
    ]


def test_calls_on_the_bus_are_those_that_pid_1_tells_of() -> None:
    said = (
        "Got message type=method_call sender=n/a path=/org/freedesktop/systemd1 member=StartTransientUnit cookie=1\n"
        "Got message type=signal sender=:1.1 path=/ member=NameLost\n"
        "Got message type=method_call sender=n/a path=/org/freedesktop/systemd1 member=Set cookie=2\n"
    )
    assert budget.calls_in(said) == {"StartTransientUnit": 1}


def test_the_runner_tells_and_fails_nothing() -> None:
    assert runner.budget_note(0, "a table\n") == ""
    told = runner.budget_note(0, "a table\nGROWN: run, all: CPU ms 1.0 -> 2.0 (+100%)\n")
    assert told.startswith("WARNING")
    assert told.endswith("run, all: CPU ms 1.0 -> 2.0 (+100%)")
    assert runner.budget_note(1, "") == "no budget: it ended with 1"
