# SPDX-License-Identifier: Apache-2.0
"""The budget's counters, beside what a process knows of itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import counters

WORK = """
import json, os, resource
for _ in range(5000):
    os.getppid()
end = 0
while end < 2_000_000:
    end += 1
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_minflt]))
"""


def test_a_process_costs_what_it_says_itself() -> None:
    try:
        meter = counters.Meter()
    except OSError as error:
        pytest.skip(f"this kernel does not count for us: {error}")
    with contextlib.closing(meter):
        replay = counters.Replay({})
        python = [sys.executable, "-I", "-S", "-c", WORK]
        done = subprocess.run(python, capture_output=True, text=True, check=True)
        replay.take(meter.records())
        assert not meter.lost
    seconds, faults = json.loads(done.stdout)
    cost = replay.costs[Path(sys.executable).name[:15]]
    assert cost.nanoseconds / 1e9 == pytest.approx(seconds, rel=0.25, abs=0.02)
    assert cost.faults == pytest.approx(faults, rel=0.2)
    assert 5000 < cost.calls < 7000
    assert cost.user > cost.nanoseconds / 2
