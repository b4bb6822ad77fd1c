#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Teu's core figures one at a time, inside a lab: pair.py asks for them, in turns with another lab.

Each line of standard input is {"job": NAME, "round": N}; each answer a line {"value": NUMBER} or {"error": TEXT}. The
first line of output is {"jobs": {NAME: UNIT}}. In order: some jobs stand on what the one before left.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench import IMAGE, pids_named, ping, settle
from measure import load_image, rollup, run
from runtimes import bundle

MEGABYTES = 50
CROWD = 20  # containers whose memory is looked at


def timed(*argv: str) -> float:
    """Milliseconds of a command whose output nobody keeps."""
    begin = time.perf_counter()
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    return (time.perf_counter() - begin) * 1000


def wake() -> float:
    """From the first connection to the answer of a daemon that systemd has to start."""
    run(["systemctl", "stop", "teud.service", "teu-containerd.service"])
    run(["systemctl", "reset-failed"])
    begin = time.perf_counter()
    ping("/run/teu/teud.sock")
    spent = (time.perf_counter() - begin) * 1000
    settle()
    return spent


def shims() -> float:
    """MiB of a shim, its share of what several have in common, with CROWD of them. They stay for what follows."""
    for number in range(CROWD):
        run(["teu", "run", "-d", "--network", "host", "--name", f"m{number}", IMAGE, "sleep", "3600"])
    settle()
    pids = [p for p in pids_named("containerd-shim-teu-v2") if b"-id" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return sum(rollup(pid, "Pss") for pid in pids) / len(pids) / 1024


def resident(program: str) -> float:
    return rollup(pids_named(program)[0], "Rss") / 1024


def last_resident(program: str) -> float:
    """The last one with a crowd: it goes."""
    value = resident(program)
    run(["teu", "rm", "-f", *(f"m{number}" for number in range(CROWD))])
    return value


def table(folder: Path) -> dict[str, tuple[str, Callable[[int], float]]]:
    """By its name, the unit of a job and what gives its value. `folder`: an OCI bundle."""
    once = ("teu", "run", "--rm")
    noise = f"yes {'x' * 70} | head -n {MEGABYTES * 1_000_000 // 71}"
    written = ("teu", "run", "--log-driver", "json-file", "--network", "none", "--name")
    return {
        "run --rm, network bridge": ("ms", lambda _: timed(*once, "--network", "bridge", IMAGE, "true")),
        "run --rm, network none": ("ms", lambda _: timed(*once, "--network", "none", IMAGE, "true")),
        "run -d": ("ms", lambda number: timed("teu", "run", "-d", "--name", f"d{number}", IMAGE, "sleep", "3600")),
        "exec true": ("ms", lambda number: timed("teu", "exec", f"d{number}", "true")),
        "inspect": ("ms", lambda number: timed("teu", "inspect", f"d{number}")),
        "ps": ("ms", lambda _: timed("teu", "ps")),
        "rm -f of one that runs": ("ms", lambda number: timed("teu", "rm", "-f", f"d{number}")),
        f"{MEGABYTES} MB of log lines, json-file": (
            "ms",
            lambda number: timed(*written, f"l{number}", IMAGE, "sh", "-c", noise),
        ),
        f"logs of those {MEGABYTES} MB": ("ms", lambda number: timed("teu", "logs", f"l{number}")),
        "rm of one with such a log": ("ms", lambda number: timed("teu", "rm", f"l{number}")),
        "teu-runc run": ("ms", lambda number: timed("teu-runc", "run", "-b", str(folder), f"b{number}")),
        "stopped daemons: first connection to answer": ("ms", lambda _: wake()),
        f"shim, proportional memory, {CROWD} running": ("MiB", lambda _: shims()),
        f"teu-containerd, resident, {CROWD} running": ("MiB", lambda _: resident("teu-containerd")),
        f"teud, resident, {CROWD} running": ("MiB", lambda _: last_resident("teud")),
    }


def main() -> None:
    load_image(IMAGE)
    with contextlib.ExitStack() as stack:
        jobs = table(stack.enter_context(bundle()))
        print(json.dumps({"jobs": {name: unit for name, (unit, _) in jobs.items()}}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                answer: dict[str, object] = {"value": jobs[asked["job"]][1](asked["round"])}
            except subprocess.CalledProcessError as error:
                answer = {"error": f"{error}: {(error.stderr or b'').decode(errors='replace')[-500:]}"}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
