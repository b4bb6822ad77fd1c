#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Teu as it is against Teu as it was, in turns: `./dev bench --against COMMIT`.

Both trees are built, and each is installed in a namespace lab of its own; the labs stand side by side, and one waits
while the other works. Who begins changes from round to round. Every figure is a median; a ratio above 1 + LIMIT is
told, and fails. The machine has to have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lab import namespace
from measure import Row, table

SOURCE = Path(__file__).resolve().parents[1]
LIMIT = 0.03
BUSY = 2.0  # a load over which nothing is worth measuring
WARMUP = 1


def built(commit: str) -> tuple[str, list[str]]:
    """The name of a commit, and its packages."""
    name = _git("rev-parse", "--short", "--verify", f"{commit}^{{commit}}")
    tree = SOURCE / "build/bench" / name
    if not list(tree.glob("dist/*.deb")):
        shutil.rmtree(tree, ignore_errors=True)
        _git("clone", "--quiet", "--shared", "--no-checkout", str(SOURCE), str(tree))
        _git("-C", str(tree), "checkout", "--quiet", "--detach", name)
        # Its own way to build: what this one does may not fit.
        subprocess.run([str(tree / "dev"), "deb"], check=True)
    return name, sorted(map(str, tree.glob("dist/*.deb")))


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(SOURCE), *words], capture_output=True, text=True, check=True).stdout.strip()


class Side:
    """A lab with one of the two, and jobs.py at work in it."""

    def __init__(self, name: str) -> None:
        command = namespace.enter_command(name, ["/usr/bin/python3", "-B", "/src/benchmarks/jobs.py"])
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.jobs: dict[str, str] = self._answer()["jobs"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"what measures has ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, job: str, number: int) -> float:
        """The value of a job."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"job": job, "round": number}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(f"{job}: {answer['error']}")
        return float(answer["value"])

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def side(name: str, packages: list[str]) -> Iterator[Side]:
    namespace.stop(name)
    namespace.start(name, source=SOURCE)
    try:
        namespace.install_packages(name, packages)
        made = Side(name)
        try:
            yield made
        finally:
            made.close()
    finally:
        namespace.stop(name)


def measured(sides: dict[str, Side], rounds: int) -> list[Row]:
    """A line for each job; the first of `sides` is ours."""
    jobs = next(iter(sides.values())).jobs
    rows = {job: Row(job, unit, {who: [] for who in sides}) for job, unit in jobs.items()}
    for number in range(WARMUP + rounds):
        order = list(sides) if number % 2 else list(sides)[::-1]
        for job, row in rows.items():
            for who in order:
                value = sides[who].ask(job, number)
                if number >= WARMUP:
                    row.samples[who].append(value)
        print(f"round {number + 1} of {WARMUP + rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return list(rows.values())


def worse(rows: list[Row]) -> list[str]:
    """The jobs whose ratio is over the limit."""
    return [f"{row.name}: {ratio:.3f}" for row in rows for ratio in row.ratios().values() if ratio > 1 + LIMIT]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./dev bench --against", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", metavar="COMMIT", help="the tree to compare with")
    parser.add_argument("--rounds", type=int, default=25, help="default: 25")
    parser.add_argument("--output", type=Path, default=SOURCE / "build/bench/AGAINST.md", help="default: %(default)s")
    parser.add_argument("--busy", action="store_true", help=f"also on a machine with a load over {BUSY:.0f}")
    options = parser.parse_args()
    if os.getloadavg()[0] > BUSY and not options.busy:
        parser.error(f"this machine is busy (a load of {os.getloadavg()[0]:.1f}): wait, or give --busy")
    name, before = built(options.commit)
    now = sorted(map(str, (SOURCE / "dist").glob("*.deb")))
    with ExitStack() as stack:
        sides = {
            "now": stack.enter_context(side("bench-now", now)),
            "before": stack.enter_context(side("bench-before", before)),
        }
        rows = measured(sides, options.rounds)
    text = f"# {_git('describe', '--always', '--dirty')} against {name}\n\n"
    text += f"Measured {time.strftime('%Y-%m-%d')} on {os.cpu_count()} cores, in turns, each in a lab of its own; "
    text += "medians.\n\n" + table(rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    print(text)
    for line in (slower := worse(rows)):
        print(f"over {1 + LIMIT:.2f}: {line}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
