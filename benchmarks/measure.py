# SPDX-License-Identifier: Apache-2.0
"""Paired timing: two or more commands take turns in one run, so that drift of the machine hits all alike.

Used by the benchmarks in this folder.  A result is a list of seconds per contestant; what is reported is the
median of each and the ratio of the medians, ours first.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Job = Callable[[int], object]


@dataclass
class Row:
    """One line of the table: a name, the unit, and a list of samples per contestant (ours first)."""

    name: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def median(self, who: str) -> float:
        return statistics.median(self.samples[who])

    def ratios(self) -> dict[str, float]:
        """Median of ours divided by the median of each other contestant."""
        ours, *others = self.samples
        return {other: self.median(ours) / self.median(other) for other in others if self.median(other)}


def run(argv: Sequence[str], **kwargs: object) -> str:
    """Run a command to its end and return its standard output; a failure shows what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
    return str(done.stdout)


def load_image(name: str) -> None:
    """Have the engine load the image that the packages bring, by that name."""
    archive = next(Path("/usr/share/teu/images").glob("*.tar*"))
    loaded = run(["teu", "load", "-i", str(archive)]).strip().rsplit(" ", 1)[-1]
    if loaded != name:
        run(["teu", "tag", loaded, name])


def turns(name: str, jobs: Mapping[str, Job], rounds: int, warmup: int = 1, per: int = 1, note: str = "") -> Row:
    """Time each job once per round, in turns; the first `warmup` rounds are not counted.

    `per` divides the time, for a job that does the same thing several times.
    """
    row = Row(name, "ms", {who: [] for who in jobs}, note)
    for index in range(warmup + rounds):
        for who, job in jobs.items():
            begin = time.perf_counter()
            job(index)
            spent = time.perf_counter() - begin
            if index >= warmup:
                row.samples[who].append(spent * 1000 / per)
    return row


def rollup(pid: int, key: str) -> float:
    """One field of smaps_rollup, in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(key + ":"):
            return float(line.split()[1])
    raise RuntimeError(f"no {key} for process {pid}")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: medians and the ratio of ours to each peer."""
    lines = ["| job | unit | ours | peer | ratio | runs | note |", "|---|---|---:|---:|---:|---:|---|"]
    for row in rows:
        ours, *others = row.samples
        mine = row.median(ours)
        if not others:
            runs = len(row.samples[ours])
            lines.append(f"| {row.name} | {row.unit} | {ours} {mine:.1f} | - | - | {runs} | {row.note} |")
        for other in others:
            ratio = mine / row.median(other) if row.median(other) else float("nan")
            lines.append(
                f"| {row.name} | {row.unit} | {ours} {mine:.1f} | {other} {row.median(other):.1f} "
                f"| **{ratio:.2f}** | {len(row.samples[ours])} | {row.note} |"
            )
    return "\n".join(lines) + "\n"
