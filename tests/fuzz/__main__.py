# SPDX-License-Identifier: Apache-2.0
"""`./dev fuzz`: throw mutated input at every wire of Teu, in a namespace lab, and watch the whole host meanwhile."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
HYPOTHESIS = "hypothesis==6.150.0"
INSIDE = "/opt/fuzz"  # where the lab sees it
FOUND = Path("/run/fuzz")  # findings, in the lab
RESULTS = SOURCE / "build/fuzz"
MARK = Path("/run/host/lab")

EPILOG = """
Each target runs for so many seconds, in turn, and prints how many inputs it tried; those that need no daemon run
beside the others. A finding is a crash, a hang, a
traceback or an internal error told to a client, growth of memory, descriptors or threads, something left behind (mount,
link, cgroup, scope, rule, row, blob), or a file of the host changed. Findings are in build/fuzz/TARGET/NNN, each with
its title, its seed and its input; the exit status is 1 when there is one. The same seed tries the same inputs.

Examples:
  ./dev fuzz --list                              the targets
  ./dev fuzz                                     all of them, 20 seconds each, in a lab with the packages
  ./dev fuzz engine-api --seconds 1800 --seed 7
  ./dev lab start --name me --dev                a lab that stays, with this tree's programs
  ./dev fuzz --name me cli
"""


def load() -> None:
    """All targets there are: each file registers its own."""
    for path in sorted(Path(__file__).parent.glob("target_*.py")):
        importlib.import_module(f"fuzz.{path.stem}")


def main() -> int:
    """Parse the command line; outside of a lab, start one and go on there."""
    parser = argparse.ArgumentParser(
        prog="./dev fuzz",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all; see --list")
    parser.add_argument("--seconds", type=float, default=20, help="for each target (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the dice (default: 1)")
    parser.add_argument("--list", action="store_true", help="say what targets there are")
    parser.add_argument("--name", default="fuzz", help="the lab; one that runs already stays (default: fuzz)")
    parser.add_argument("--dev", action="store_true", help="start the lab with this tree in place of packages")
    options = parser.parse_args()
    load()
    from fuzz import frame

    if options.list:
        width = max(map(len, frame.TARGETS), default=0)
        for name, each in sorted(frame.TARGETS.items()):
            print(f"{name:{width}}  {each.says}")
        return 0
    if unknown := [name for name in options.targets if name not in frame.TARGETS]:
        parser.error(f"unknown target {', '.join(unknown)}; choose from {', '.join(sorted(frame.TARGETS))}")
    if not MARK.exists():
        return outside(options)
    wanted = options.targets or sorted(frame.TARGETS)
    alone = [name for name in wanted if frame.TARGETS[name].alone]
    if 0 < len(alone) < len(wanted):
        with beside(options, alone) as process:
            failed = in_turn(options, [name for name in wanted if name not in alone])
        return 1 if failed or process.returncode else 0
    return 1 if in_turn(options, wanted) else 0


def in_turn(options: argparse.Namespace, names: list[str]) -> int:
    """Run those targets, here and one after another; how many have a finding."""
    from fuzz import frame

    failed = 0
    for name in names:
        print(f"=== fuzz {name}: {options.seconds:g} s, seed {options.seed} ===", flush=True)
        shutil.rmtree(FOUND / name, ignore_errors=True)
        began = time.monotonic()
        run = frame.execute(frame.TARGETS[name], options.seconds, options.seed, FOUND / name)
        for found in run.findings.values():
            print(f"{name}: {found.times} times: {found.title}")
        took = time.monotonic() - began
        print(f"=== fuzz {name}: {run.inputs} inputs, {len(run.findings)} findings in {took:.0f} s ===", flush=True)
        failed += bool(run.findings)
    return failed


@contextlib.contextmanager
def beside(options: argparse.Namespace, names: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this program, which runs those targets meanwhile; it has ended when the context has.

    What it makes is in a folder that the other targets do not look at."""
    place = Path("/tmp/fuzz-beside")
    place.mkdir(exist_ok=True)
    words = [*names, "--seconds", f"{options.seconds:g}", "--seed", str(options.seed)]
    environment = dict(os.environ, TMPDIR=str(place))
    process = subprocess.Popen([sys.executable, "-B", "-m", "fuzz", *words], stdin=subprocess.DEVNULL, env=environment)
    try:
        yield process
        process.wait()
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(place, ignore_errors=True)


def library() -> Path:
    """A folder with hypothesis in it, which Debian's Python in the lab can read whatever its version is."""
    from lab import rootfs

    place = rootfs.CACHE / "fuzz"
    stamp = place / "pin"
    with rootfs.cache_lock("lock-fuzz"):
        if not stamp.exists() or stamp.read_text() != HYPOTHESIS:
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
            install = ["install", "--quiet", "--target", place / "lib", HYPOTHESIS]
            subprocess.run([place / "venv/bin/pip", *install], check=True)
            stamp.write_text(HYPOTHESIS)
    return place / "lib"


def outside(options: argparse.Namespace) -> int:
    """On the machine that the labs are on: the same command line again, in a lab."""
    from lab import namespace

    words = [*options.targets, "--seconds", f"{options.seconds:g}", "--seed", str(options.seed)]
    started = not namespace.pid_of(options.name)
    if started:
        namespace.start(options.name, "trixie", SOURCE, options.dev)
    try:
        if started and not options.dev:
            namespace.install_packages(options.name, [str(path) for path in sorted((SOURCE / "dist").glob("*.deb"))])
        # By pipes, as a lab that runs already shows no more folders.
        unpack = f"mkdir -p {INSIDE} && tar -C {INSIDE} -x"
        carry(["tar", "-C", str(library()), "-c", "."], inside(options.name, unpack))
        status = namespace.execute(
            options.name,
            ["/usr/bin/python3", "-B", "-m", "fuzz", *words],
            [f"PYTHONPATH=/src/tests:/src/tests/system:{INSIDE}"],
        )
        RESULTS.mkdir(parents=True, exist_ok=True)
        carry(inside(options.name, f"mkdir -p {FOUND} && tar -C {FOUND} -c ."), ["tar", "-C", str(RESULTS), "-x"])
        return status
    finally:
        if started:
            namespace.stop(options.name)


def inside(name: str, script: str) -> list[str]:
    """A command of this machine that runs a script in the lab."""
    from lab import namespace

    return namespace.enter_command(name, ["sh", "-c", script])


def carry(source: list[str], sink: list[str]) -> None:
    """source | sink"""
    with subprocess.Popen(source, stdout=subprocess.PIPE) as process:
        subprocess.run(sink, stdin=process.stdout, check=True)


if __name__ == "__main__":
    sys.exit(main())
