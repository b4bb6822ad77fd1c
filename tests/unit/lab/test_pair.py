# SPDX-License-Identifier: Apache-2.0
"""./dev bench --against: the two take turns, the first rounds do not count, and what got worse is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

import measure
import pair


class Side:
    def __init__(self, name: str, asked: list[str], value: float) -> None:
        self.name, self.asked, self.value = name, asked, value
        self.jobs = {"run": "ms", "memory": "MiB"}

    def ask(self, job: str, number: int) -> float:
        self.asked.append(f"{number} {job} {self.name}")
        return self.value + 1000 * (number == 0)


def test_they_take_turns_and_the_first_round_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    sides: dict[str, Any] = {"now": Side("now", asked, 10), "before": Side("before", asked, 8)}
    rows = pair.measured(sides, 2)
    assert [line for line in asked if "run" in line] == [
        *("0 run before", "0 run now", "1 run now", "1 run before", "2 run before", "2 run now"),
    ]
    assert [(row.name, row.unit, row.samples) for row in rows] == [
        ("run", "ms", {"now": [10, 10], "before": [8, 8]}),
        ("memory", "MiB", {"now": [10, 10], "before": [8, 8]}),
    ]
    assert "round 3 of 3" in capsys.readouterr().err
    assert "| run | ms | now 10.0 | before 8.0 | **1.25** | 2 |" in measure.table(rows)


def test_what_got_worse_is_told() -> None:
    rows = [
        measure.Row("slower", "ms", {"now": [1.04], "before": [1.0]}),
        measure.Row("within", "ms", {"now": [1.03], "before": [1.0]}),
        measure.Row("quicker", "ms", {"now": [0.5], "before": [1.0]}),
    ]
    assert pair.worse(rows) == ["slower: 1.040"]
