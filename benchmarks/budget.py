#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a command costs, process by process: `./dev bench --budget` runs this inside the namespace lab.

CPU time, page faults, context switches and system calls are the kernel's (counters.py), D-Bus calls those that PID 1
tells of. They are sums of work, not times on a clock, so that other work on the machine hardly shows. The table is the
last part of RESULTS.md. With --against it is compared with an earlier one: what has grown by over 10 % is told. The CPU
time is put into proportion first, by that of a yardstick that both have, a start of Python: machines differ.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from counters import Cost, Meter, Replay
from measure import load_image, run

IMAGE = "busybox:latest"
HEADING = "## Budget"
YARDSTICK = "python3 -IS -c pass"
OURSELVES = "(the measuring)"
ALL = "all"
WARMUP = 2
SETTLE = 0.15  # seconds: what a command leaves to the daemons is its cost, too
GROWTH = 0.10
SHOWN = 0.1  # milliseconds: what costs less has no line
COLUMNS = ("CPU ms", "user", "system", "page faults", "switches", "system calls", "D-Bus calls", "instructions (M)")
# What is compared, and by how much it has to grow at least before anybody is told: less than that is noise. Switches
# grow with what else the machine does. The 77 system calls between the fork and the exec of a command are its own,
# too, unless a switch comes between.
COMPARED: dict[str, float] = {"CPU ms": 2.0, "page faults": 100, "system calls": 100, "D-Bus calls": 0.5}
PROCESSES = {
    "containerd-shim": "shim",
    "teu-runc": "teu-runc",
    "teu-runc:[INIT]": "teu-runc",
    "teu": "teu",
    "teud": "teud",
    "teu-containerd": "teu-containerd",
    "zygote": "zygote",
    "systemd": "PID 1",
    "true": "the container",
    "sleep": "the container",
    "python3": YARDSTICK,
    OURSELVES: "",
}
OTHERS = "others (D-Bus, journal, logind)"

Figures = dict[str, float]


@dataclass
class Line:
    """Of a job and a process, the figures by the names of their columns."""

    job: str
    process: str
    figures: Figures = field(default_factory=dict)


def process_of(comm: str) -> str:
    """Whose a cost is; "" for nobody's."""
    return PROCESSES.get(comm, OTHERS)


def names() -> dict[int, str]:
    """What the processes are called that are there now."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry)] = Path(f"/proc/{entry}/comm").read_text().strip()
                if b"\0zygote\0" in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found[int(entry)] = "zygote"
    found[os.getpid()] = OURSELVES
    return found


class Household(Replay):
    """What is forked from the zygote is a shim."""

    def called(self, parent: int) -> str:
        name = super().called(parent)
        return "containerd-shim" if name == "zygote" else name


def lines_of(job: str, rounds: list[dict[str, Cost]], calls: int, with_instructions: bool) -> list[Line]:
    """The lines of a job: medians over its rounds. The share of user's code is of all rounds together, as the looks in
    one are few."""
    merged: list[dict[str, Cost]] = []
    for one in rounds:
        costs: dict[str, Cost] = {}
        for comm, cost in one.items():
            if who := process_of(comm):
                costs.setdefault(who, Cost()).add(cost)
                costs.setdefault(ALL, Cost()).add(cost)
        merged.append(costs)
    found = []
    for who in sorted({who for costs in merged for who in costs}):
        each = [costs.get(who, Cost()) for costs in merged]
        whole = Cost()
        for cost in each:
            whole.add(cost)

        def median(name: str, each: list[Cost] = each) -> float:
            return statistics.median(getattr(cost, name) for cost in each)

        spent = median("nanoseconds") / 1e6
        user = spent * whole.user / whole.nanoseconds if whole.nanoseconds else 0.0
        figures = {
            "CPU ms": spent,
            "user": user,
            "system": spent - user,
            "page faults": median("faults"),
            "switches": median("switches"),
            "system calls": median("calls"),
        }
        if who == ALL:
            figures["D-Bus calls"] = calls
        if with_instructions:
            figures["instructions (M)"] = median("instructions") / 1e6
        if who == ALL or spent >= SHOWN:
            found.append(Line(job, who, figures))
    return sorted(found, key=lambda line: (line.process != ALL, -line.figures["CPU ms"]))


def table(lines: list[Line]) -> str:
    """As Markdown."""
    columns = [column for column in COLUMNS if any(column in line.figures for line in lines)]
    text = [f"| job | process | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
    for line in lines:
        cells = []
        for column in columns:
            value = line.figures.get(column)
            digits = 1 if column in ("CPU ms", "user", "system", "instructions (M)") else 0
            cells.append("" if value is None else f"{value:.{digits}f}")
        strong = "**" if line.process == ALL else ""
        text.append(f"| {line.job} | {strong}{line.process}{strong} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def read(text: str) -> list[Line]:
    """The lines of the table in a text with our heading; [] where it has none."""
    _, heading, rest = text.partition(HEADING)
    if not heading:
        return []
    lines: list[Line] = []
    columns: list[str] = []
    for row in re.findall(r"^\| (.*) \|$", rest, re.MULTILINE):
        job, process, *cells = (cell.strip() for cell in row.split("|"))
        if job == "job":
            columns = cells
        else:
            figures = {column: float(cell) for column, cell in zip(columns, cells, strict=True) if cell}
            lines.append(Line(job, process.strip("*"), figures))
    return lines


def grown(now: list[Line], before: list[Line]) -> list[str]:
    """What has grown by more than GROWTH, in words."""

    def yardstick(lines: list[Line]) -> float:
        return next((line.figures["CPU ms"] for line in lines if line.job == YARDSTICK), 0.0)

    ours, theirs = yardstick(now), yardstick(before)
    scale = ours / theirs if ours and theirs else 1.0
    known = {(line.job, line.process): line.figures for line in before if line.job != YARDSTICK}
    found = []
    for line in now:
        old = known.get((line.job, line.process), {}) if line.process != OTHERS else {}
        for column, least in COMPARED.items():
            if column not in old or column not in line.figures:
                continue
            was = old[column] * (scale if column == "CPU ms" else 1)
            value = line.figures[column]
            if value > was * (1 + GROWTH) and value - was > least:
                more = f"{value / was - 1:+.0%}" if was else "from none"
                found.append(f"{line.job}, {line.process}: {column} {was:.1f} -> {value:.1f} ({more})")
    return found


def put(results: str, part: str) -> str:
    """RESULTS.md with that part as its last; one that it has already goes."""
    return results.partition(HEADING)[0].rstrip() + "\n\n" + part


# --- measuring ----------------------------------------

Job = Callable[[int], list[str]]


def _detached(number: int) -> list[str]:
    name = f"budget{number}"
    return ["teu", "run", "-d", "--network", "host", "--stop-signal", "KILL", "--name", name, IMAGE, "sleep", "3600"]


# By name: what has to be there before, for a round of that number, and the command.
JOBS: dict[str, tuple[list[Job], Job]] = {
    YARDSTICK: ([], lambda _: ["/usr/bin/python3", "-IS", "-c", "pass"]),
    "run --rm --network host": ([], lambda _: ["teu", "run", "--rm", "--network", "host", IMAGE, "true"]),
    "run --rm": ([], lambda _: ["teu", "run", "--rm", IMAGE, "true"]),
    "exec": ([_detached], lambda number: ["teu", "exec", f"budget{number}", "true"]),
    "ps": ([_detached], lambda _: ["teu", "ps"]),
    "stop": ([_detached], lambda number: ["teu", "stop", f"budget{number}"]),
    "rm": ([_detached, lambda number: ["teu", "stop", f"budget{number}"]], lambda n: ["teu", "rm", f"budget{n}"]),
}


def measured(meter: Meter, job: str, rounds: int) -> list[dict[str, Cost]]:
    """By the name of a process, what each round has cost."""
    before, command = JOBS[job]
    found = []
    for number in range(WARMUP + rounds):
        for each in before:
            run(each(number))
        time.sleep(SETTLE)
        replay = Household(names())
        meter.records()
        run(command(number))
        time.sleep(SETTLE)
        replay.take(meter.records())
        if before:
            subprocess.run(["teu", "rm", "-f", f"budget{number}"], capture_output=True, check=False)
        if number >= WARMUP:
            found.append(replay.costs)
    return found


def bus_calls(job: str) -> Counter[str]:
    """By their names, the calls that PID 1 gets on D-Bus while the job runs once: it tells them when it is asked to
    say all."""
    before, command = JOBS[job]
    for each in before:
        run(each(0))
    time.sleep(SETTLE)
    run(["systemctl", "log-level", "debug"])
    mark = time.time()
    try:
        run(command(0))
        time.sleep(SETTLE)
    finally:
        run(["systemctl", "log-level", "info"])
    run(["journalctl", "--sync"])
    said = run(["journalctl", "-q", "-o", "cat", "_PID=1", "--since", f"@{mark:.6f}"])
    if before:
        subprocess.run(["teu", "rm", "-f", "budget0"], capture_output=True, check=False)
    return calls_in(said)


def calls_in(said: str) -> Counter[str]:
    """The calls in what PID 1 has told, but the one that asks it to say less again."""
    calls = re.findall(r"Got message type=method_call .* member=(\w+)", said)
    return Counter(call for call in calls if call != "Set")


def head(rounds: int, calls: dict[str, Counter[str]], instructions: bool) -> str:
    told = "; ".join(f"{job}: {', '.join(sorted(names))}" for job, names in calls.items() if names) or "none"
    return (
        f"{HEADING}\n\n"
        f"What one command costs, by process: `./dev bench --budget`, measured {time.strftime('%Y-%m-%d')} on "
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}; medians of {rounds} "
        "rounds. The kernel counts the work of each process at every context switch, so that other work of the machine "
        "hardly shows. User and system are shares of the CPU time by a look at every millisecond."
        f"{'' if instructions else ' This machine does not count instructions.'} Calls of PID 1 on D-Bus: {told}.\n\n"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./dev bench --budget", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--only", default="", help=f"jobs, comma-separated, of: {', '.join(JOBS)}; default: all")
    parser.add_argument("--output", type=Path, help="a file that gets the table")
    parser.add_argument("--against", type=Path, help="a RESULTS.md: tell what has grown by over 10 %%")
    parser.add_argument("--put", type=Path, help="measure nothing: put the table in --output into this RESULTS.md")
    options = parser.parse_args(arguments)
    if options.put:
        options.put.write_text(put(options.put.read_text(), options.output.read_text()))
        return 0
    chosen = [job for job in options.only.split(",") if job] or list(JOBS)
    if unknown := [job for job in chosen if job not in JOBS]:
        parser.error(f"unknown job {', '.join(unknown)}; choose from {', '.join(JOBS)}")
    load_image(IMAGE)
    lines: list[Line] = []
    calls: dict[str, Counter[str]] = {}
    with contextlib.closing(Meter()) as meter:
        for job in chosen:
            costs = measured(meter, job, options.rounds)
            calls[job] = bus_calls(job)
            lines += lines_of(job, costs, calls[job].total(), meter.has_instructions)
        if meter.lost:
            print(f"budget: {meter.lost} records were lost, the figures are too small", file=sys.stderr)
        text = head(options.rounds, calls, meter.has_instructions) + table(lines)
    print(text, flush=True)
    if options.output:
        options.output.write_text(text)
    if options.against:
        for each in grown(lines, read(options.against.read_text())):
            print(f"GROWN: {each}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
