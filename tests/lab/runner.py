# SPDX-License-Identifier: Apache-2.0
"""`./dev test`: every stage that must pass, each closed by its own summary, and one line for all of them.

    lint       ruff on the whole tree, its rules and its format, and mypy --strict on src/teu
    unit       tests/unit on this machine
    deb        the packages, with lintian
    lab        tests/lab: the labs themselves, 50 power cuts in VMs, and SELinux in a machine that is booted for it
    ns         tests/system with the packages in the namespace lab (Debian 13)
    bookworm   a smaller set in the namespace lab with Debian 12
    forky      packages, quick start, peers, and what docker 28 says, in the namespace lab with Debian testing
    vm         tests/system with the packages in the VM lab
    fuzz       every target of `./dev fuzz` for 10 seconds, always with the same seed
    budget     what a command costs, process by process (benchmarks/budget.py); it only tells, and fails nothing

Results are in build/test/: STAGE.xml (junit), STAGE.log. Every stage that fails makes the end fail, and so
does one that did not come to its summary.

More than one stage: two run at a time (--jobs), each in a process of its own, and their lines begin with their names.
Stages ns and lab are dealt out in shares of their files, each in a lab of its own. The longest begin first (seconds.py
says which those are), forky before them, and beside one that fills the processors, as an emulated machine does, one
that mostly waits. Where none is left that fills them, three go on. On a new machine what the labs stand on (root file
systems, the VM's disk, the validation programs) is made from the start on, beside the packages and the unit tests.

The tests kill daemons and cut power at random moments. When no more than three tests of a whole run failed, those are
run twice more, each time in a fresh lab, after all else has ended. If one fails again it has failed; if not it is
called flaky, named in the last lines, and its first failure, which is in the output above and in STAGE.first.log, is
there to be looked into: it is a defect of the test or of what it tests, but one that must not hold up everything else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fuzz.__main__ import library as fuzz_library

from lab import build, clients, goprograms, namespace, newer, quick, rootfs, seconds, validation, vm

SOURCE = quick.SOURCE
RESULTS = SOURCE / "build/test"
PYTHON = quick.PYTHON
STAGES = ("lint", "unit", "deb", "lab", "ns", "bookworm", "forky", "vm", "fuzz", "budget")
LABS = frozenset({"lab", "ns", "bookworm", "forky", "vm", "fuzz", "budget"})  # they need the packages
SHARES = {"ns": 4, "lab": 3}
FILES = {"ns": "tests/system/test_*.py", "lab": "tests/lab/test_*.py"}
# What keeps a processor and more: of a stage that is dealt out, the share with such a file.
BUSY = frozenset({"deb", "lint", "unit", "vm", "fuzz", "tests/lab/test_power_cuts.py"})
# Of those of a kind, busy or waiting, these begin before longer ones: it is the whole that is to end together, and one
# that is not dealt out would be alone at the end.
EARLY = frozenset({"forky"})
FUZZ_SECONDS, FUZZ_SEED = 10, 1
BUDGET_ROUNDS = 3
# Loops over deaths and races go round half as often as a test by itself does; TEU_ROUNDS=1 is all of it.
ROUNDS = "0.5"

# The smaller set for Debian 12: the packages, and the whole way of a container.
BOOKWORM = (
    "tests/system/test_cli_coldstart.py",
    "tests/system/test_declared_coldstart.py",
    "tests/system/test_packages.py",
    "tests/system/test_whole_picture.py",
)
# For the next Debian: another Python, another systemd, and the newest peers on both sides of each seam.
FORKY = (
    "tests/system/test_cli_coldstart.py",
    "tests/system/test_cli_docker.py",
    "tests/system/test_containerd_conformance.py",
    "tests/system/test_containerd_ctr.py",
    "tests/system/test_containerd_sandbox.py",
    "tests/system/test_declared_coldstart.py",
    "tests/system/test_packages.py",
    "tests/system/test_runc_coldstart.py",
    "tests/system/test_runc_peers_containerd.py",
    "tests/system/test_runc_peers_docker.py",
    "tests/system/test_runc_peers_podman.py",
    "tests/system/test_shim_dockerd.py",
    "tests/system/test_shim_swaps.py",
    "tests/system/test_swap_teud.py",
    "tests/system/test_whole_picture.py",
)
RERUN = ("unit", "lab", "ns", "bookworm", "forky", "vm", "fuzz")
RERUN_TIMES = 2
RERUN_AT_MOST = 3  # in a whole run; more than these are not bad luck
REASON = 300  # so much of what a failure said stands in the last lines
LIMIT = {  # seconds, for what hangs: each is twice and more of what it takes beside others
    "unit": 900,
    "lab": 2400,
    "ns": 3000,
    "bookworm": 900,
    "forky": 1800,
    "vm": 4200,
    "fuzz": 1500,
    "budget": 180,
}


@dataclass
class Result:
    """How a stage ended."""

    stage: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    error: str = ""
    note: str = ""
    failures: list[str] = field(default_factory=list)
    flaky: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # of each of those, what its first failure said


def say(text: str) -> None:
    """A line of the runner's own."""
    print(f"\n=== {text} ===", flush=True)


def call(command: list[str], log: Path, limit: float, environment: dict[str, str] | None = None) -> int:
    """Run command, its output into log and here; its exit status, 124 when overdue."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=SOURCE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        overdue = threading.Event()

        def kill() -> None:
            overdue.set()
            process.kill()

        timer = threading.Timer(limit, kill)
        timer.start()
        assert process.stdout
        try:
            while data := os.read(process.stdout.fileno(), 65536):
                file.write(data)
                os.write(1, data)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        status = process.wait()
        if overdue.is_set():
            file.write(f"\nstopped after {limit:.0f} s\n".encode())
            return 124
        return status


def count(result: Result, junit: Path, status: int) -> Result:
    """Fill in the counts of a pytest run from its junit file."""
    try:
        suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        result.failed += 1
        result.error = f"no results (exit status {status})"
        return result
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for said in (*case.iter("failure"), *case.iter("error")):
            test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
            result.reasons.setdefault(test, " ".join(said.get("message", "").split())[:REASON])
    result.failures = list(result.reasons)
    for suite in suites:
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        result.failed += failed
        result.skipped += skipped
        result.passed += max(0, int(suite.get("tests", 0)) - failed - skipped)
    if status not in (0, 1) or (status and not result.failed):
        result.failed += 1
        result.error = f"pytest ended with {status}"
    return result


# --- stages ----------------------------------------


def lint(tag: str, extra: list[str]) -> Result:
    result = Result("lint")
    for name, command in quick.lint_commands().items():
        status = call(command, RESULTS / f"{name}.log", 600, quick.environment())
        result.passed += status == 0
        result.failed += status != 0
    print(f"=== lint: {result.passed} passed, {result.failed} failed ===")
    return result


def unit(tag: str, extra: list[str]) -> Result:
    junit = RESULTS / "unit.xml"
    command = quick.unit_command([f"--junitxml={junit}", *extra])
    return count(Result("unit"), junit, call(command, RESULTS / "unit.log", LIMIT["unit"], quick.environment()))


def deb(tag: str, extra: list[str]) -> Result:
    result = Result("deb")
    try:
        build.build(SOURCE, SOURCE / "dist", lintian=True)
        result.passed = 1
    except (SystemExit, subprocess.CalledProcessError) as error:
        result.failed, result.error = 1, str(error)
    print(f"=== deb, lintian: {result.passed} passed, {result.failed} failed ===", flush=True)
    return result


def lab(tag: str, extra: list[str]) -> Result:
    junit = RESULTS / f"{tag}.xml"
    command = [
        PYTHON,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={junit}",
        "--durations=5",
        *(extra or ["tests/lab"]),
    ]
    return count(Result("lab"), junit, call(command, RESULTS / f"{tag}.log", LIMIT["lab"]))


def packages() -> list[str]:
    """The built packages."""
    return [str(path) for path in sorted((SOURCE / "dist").glob("*.deb"))]


def pytest_inside(junit: str, extra: list[str]) -> list[str]:
    """The command line inside a lab, where the tree is at /src; without a path in it, for all system tests."""
    return quick.system_command([f"--junitxml={junit}", "--durations=15", *extra])


def in_namespace(stage: str, tag: str, release: str, extra: list[str]) -> Result:
    """System tests in a namespace lab of their own."""
    result = Result(stage)
    name = quick.instance(f"test-{tag}")
    results = RESULTS / tag
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    namespace.stop(name)
    binds = [f"{results}:/results"]
    if stage == "ns" and (not extra or any("validation" in each for each in extra)):
        binds.append(f"{validation.ensure()}:{validation.INSIDE}:ro")
    if stage == "ns" and (not extra or any("newer" in each or "cri_k" in each for each in extra)):
        binds.append(f"{newer.ensure()}:{newer.INSIDE}:ro")
    for program, user in ((goprograms.NRI_PLUGIN, "nri_newer"), (goprograms.KUBE_CLIENT, "cri_kubelet")):
        if stage == "ns" and (not extra or any(user in each for each in extra)):
            binds.append(f"{program.ensure()}:{program.inside}:ro")
    if stage == "ns" and (not extra or any("clients_real" in each for each in extra)):
        binds.append(f"{clients.ensure()}:{clients.INSIDE}:ro")
    try:
        namespace.start(name, release, SOURCE, binds=binds)
        namespace.install_packages(name, packages())
        variables = ["TEU_LAB=namespace", f"TEU_ROUNDS={os.environ.get('TEU_ROUNDS', ROUNDS)}"]
        command = namespace.enter_command(name, pytest_inside("/results/junit.xml", extra), variables)
        status = call(command, RESULTS / f"{tag}.log", LIMIT[stage])
        return count(result, results / "junit.xml", status)
    except namespace.LabError as error:
        result.failed, result.error = 1, str(error)
        print(f"{tag}: {error}", flush=True)
        return result
    finally:
        namespace.stop(name)


def ns(tag: str, extra: list[str]) -> Result:
    return in_namespace("ns", tag, "trixie", extra)


def bookworm(tag: str, extra: list[str]) -> Result:
    smaller = [f"/src/{path}" for path in BOOKWORM if (SOURCE / path).exists()]
    return in_namespace("bookworm", tag, "bookworm", extra or smaller)


def forky(tag: str, extra: list[str]) -> Result:
    try:
        rootfs.ensure("forky")
    except SystemExit as error:
        # On a new machine, on a day on which Debian testing cannot be installed: told in the last lines, and no fault
        # of ours.
        return Result("forky", skipped=1, note=f"NOT RUN: {error}")
    return in_namespace("forky", tag, "forky", extra or [f"/src/{path}" for path in FORKY])


def in_vm(tag: str, extra: list[str]) -> Result:
    """System tests in the VM lab; from the start once more if the machine itself did not live to their end."""
    name = quick.instance("test-vm")
    vm.stop(name)
    try:
        return _in_vm(name, extra)
    except MachineOff as error:
        print(f"vm: {error}", flush=True)
    finally:
        vm.stop(name)
    say("vm: once more from the start")
    try:
        result = _in_vm(name, extra)
        result.note = "the machine had gone off once before its tests had ended: its console is above"
        return result
    finally:
        vm.stop(name)


class MachineOff(Exception):
    """The emulator or the kernel in it ended by itself; with what they said."""


def _in_vm(name: str, extra: list[str]) -> Result:
    result = Result("vm")
    try:
        way = vm.start(name, "trixie", SOURCE, durable=False)
        print(f"lab: the VM runs with {way}", flush=True)
        vm.install_packages(name)
        command = [PYTHON, "-m", "lab", "--vm", "exec", "--name", name, "--"]
        command += pytest_inside("/tmp/junit.xml", extra)
        environment = dict(os.environ, PYTHONPATH=str(SOURCE / "tests"))
        status = call(command, RESULTS / "vm.log", LIMIT["vm"], environment)
        with (RESULTS / "vm.xml").open("wb") as file:
            subprocess.run(
                [PYTHON, "-m", "lab", "--vm", "exec", "--name", name, "--", "cat", "/tmp/junit.xml"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                env=environment,
                timeout=120,
                check=False,
            )
        if not vm.pid_of(name):
            raise namespace.LabError(f"machine {name} went off")
        return count(result, RESULTS / "vm.xml", status)
    except (namespace.LabError, subprocess.TimeoutExpired) as error:
        if not vm.pid_of(name):
            raise MachineOff(f"{error}\n{vm.last_words(name)}") from None
        result.failed, result.error = 1, str(error)
        print(f"vm: {error}", flush=True)
        return result


def fuzz(tag: str, extra: list[str]) -> Result:
    """Each target once. A target counts as a test; it fails where it has a finding, or does not come to its end."""
    result = Result("fuzz")
    name = quick.instance("test-fuzz")
    namespace.stop(name)
    log = RESULTS / "fuzz.log"
    try:
        namespace.start(name, "trixie", SOURCE)
        namespace.install_packages(name, packages())
        words = ["--name", name, "--seconds", str(FUZZ_SECONDS), "--seed", str(FUZZ_SEED), *extra]
        environment = dict(os.environ, PYTHONPATH=str(SOURCE / "tests"))
        status = call([sys.executable, "-m", "fuzz", *words], log, LIMIT["fuzz"], environment)
    except namespace.LabError as error:
        result.failed, result.error = 1, str(error)
        print(f"fuzz: {error}", flush=True)
        return result
    finally:
        namespace.stop(name)
    ends = re.findall(
        r"^=== fuzz ([\w-]+): (\d+) inputs, (\d+) findings", log.read_text(errors="replace"), re.MULTILINE
    )
    result.failures = [target for target, inputs, findings in ends if findings != "0" or inputs == "0"]
    result.failed = len(result.failures)
    result.passed = len(ends) - result.failed
    if status not in (0, 1) or bool(status) != bool(result.failed) or not ends:
        result.failed += 1
        result.error = f"fuzz ended with {status} after {len(ends)} targets"
    print(f"=== fuzz: {result.passed} passed, {result.failed} failed ===", flush=True)
    return result


def budget(tag: str, extra: list[str]) -> Result:
    """What a command costs beside what benchmarks/RESULTS.md has. A machine fails nothing here: what has grown is told,
    and so is a budget that could not be taken."""
    result = Result("budget", passed=1)
    name = quick.instance("test-budget")
    namespace.stop(name)
    log = RESULTS / "budget.log"
    program = ["/usr/bin/python3", "-B", "/src/benchmarks/budget.py", "--against", "/src/benchmarks/RESULTS.md"]
    try:
        namespace.start(name, "trixie", SOURCE)
        namespace.install_packages(name, packages())
        command = namespace.enter_command(name, [*program, *(extra or ["--rounds", str(BUDGET_ROUNDS)])])
        status = call(command, log, LIMIT["budget"])
        result.note = budget_note(status, log.read_text(errors="replace"))
    except (namespace.LabError, OSError, subprocess.CalledProcessError) as error:
        result.note = f"no budget: {error}"
    finally:
        namespace.stop(name)
    return result


def budget_note(status: int, said: str) -> str:
    """What the summary says of a budget, by its program's status and its output."""
    if status:
        return f"no budget: it ended with {status}"
    grown = re.findall(r"^GROWN: (.*)$", said, re.MULTILINE)
    return f"WARNING, over 10 % more than in benchmarks/RESULTS.md: {'; '.join(grown)}" if grown else ""


# What labs stand on, in the order in which a run needs it, and the stages that do; the deb stage makes its own.
IMAGES: tuple[tuple[str, frozenset[str], Callable[[], object]], ...] = (
    ("trixie's lab", LABS - {"bookworm", "forky"}, lambda: rootfs.ensure("trixie")),
    ("trixie's fresh", frozenset({"lab"}), lambda: rootfs.ensure("trixie", "fresh")),
    ("QEMU", frozenset({"lab", "vm"}), lambda: rootfs.ensure("trixie", "qemu")),
    ("the VM", frozenset({"lab", "vm"}), lambda: vm.ensure("trixie")),
    ("forky's lab", frozenset({"forky"}), lambda: rootfs.ensure("forky")),
    ("bookworm's fresh", frozenset({"lab"}), lambda: rootfs.ensure("bookworm", "fresh")),
    ("trixie's host", frozenset({"lab"}), lambda: rootfs.ensure("trixie", "host")),
    ("validation", frozenset({"ns"}), validation.ensure),
    ("a newer docker", frozenset({"ns"}), newer.ensure),
    *((program.name, frozenset({"ns"}), program.ensure) for program in goprograms.ALL),
    ("clients", frozenset({"ns"}), clients.ensure),
    ("bookworm's lab", frozenset({"bookworm"}), lambda: rootfs.ensure("bookworm")),
    ("fuzz", frozenset({"fuzz"}), fuzz_library),
)


def images(tag: str, stages: list[str]) -> Result:
    """Make what the labs of those stages stand on. Nothing of it is a test: what cannot be made here is tried again,
    and told, by the stage that needs it."""
    for name, needed, make in IMAGES:
        if needed & set(stages):
            try:
                make()
            except (Exception, SystemExit) as error:
                print(f"{name}: {error}", flush=True)
    return Result("images")


RUN: dict[str, Callable[[str, list[str]], Result]] = {
    "lint": lint,
    "unit": unit,
    "deb": deb,
    "lab": lab,
    "ns": ns,
    "bookworm": bookworm,
    "forky": forky,
    "vm": in_vm,
    "fuzz": fuzz,
    "budget": budget,
    "images": images,
}


def run(stage: str, tag: str, extra: list[str]) -> Result:
    """One stage, or its share `tag`, with its times; nothing gets out of it but a result."""
    say(tag)
    began = time.monotonic()
    try:
        result = RUN[stage](tag, extra)
    except Exception as error:
        result = Result(stage, failed=1, error=repr(error))
    result.seconds = time.monotonic() - began
    return result


def forgivable(results: list[Result], extra: list[str]) -> list[Result]:
    """The stages whose failures may be run again: all that failed, or none where too many tests of a run did."""
    few = [result for result in results if result.stage in RERUN and result.failures and not result.error]
    tests = sum(len(result.failures) for result in few)
    return few if not extra and tests <= RERUN_AT_MOST else []


def again(result: Result) -> None:
    """Run the failures of a stage again; if all of them pass each time, they are flaky, no longer failed."""
    for log in RESULTS.glob(f"{result.stage}*.log"):
        if ".first" not in log.name:
            log.replace(log.with_suffix(".first.log"))
    began = time.monotonic()
    for _ in range(RERUN_TIMES):
        say(f"{result.stage}: once more {' '.join(result.failures)}")
        more = run(result.stage, result.stage, result.failures)
        if more.failed or more.error or more.passed != len(result.failures):
            break
    else:
        result.flaky, result.failures = result.failures, []
        result.passed += len(result.flaky)
        result.failed = 0
    result.seconds += time.monotonic() - began


# --- two at a time ----------------------------------------


@dataclass
class Part:
    """A stage or a share of one, run by another process of this program."""

    stage: str
    tag: str
    files: list[str]
    seconds: float = 0  # it will take about so long
    process: subprocess.Popen[bytes] | None = None
    result: Result | None = None

    @property
    def told(self) -> Path:
        """Where that process writes its result."""
        return RESULTS / f"{self.tag}.json"

    @property
    def busy(self) -> bool:
        """Whether it fills the processors."""
        return not BUSY.isdisjoint([self.stage, *self.files])

    def start(self, lock: threading.Lock) -> threading.Thread:
        """Start it; the thread shows its lines, and has ended when it has."""
        self.told.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lab.runner", "--only", self.stage, "--part", self.tag, *self.files],
            cwd=SOURCE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        thread = threading.Thread(target=self._show, args=(lock,), daemon=True)
        thread.start()
        return thread

    def _show(self, lock: threading.Lock) -> None:
        assert self.process and self.process.stdout
        for line in self.process.stdout:
            with lock:
                sys.stdout.buffer.write(b"%-9s| " % self.tag.encode() + line)
                sys.stdout.buffer.flush()
        status = self.process.wait()
        try:
            self.result = Result(**json.loads(self.told.read_text()))
        except (OSError, ValueError, TypeError) as error:
            why = f"the stage ended with status {status} and without a result: {error}"
            self.result = Result(self.stage, failed=1, error=why)


def shares(stage: str, table: dict[str, float]) -> list[tuple[list[str], float]]:
    """The files of a stage's tests, dealt out so that each share takes as long, and how long that is; a stage that is
    not dealt out is one share without files."""
    count = SHARES.get(stage, 1)
    if count == 1:
        return [([], table.get(stage, 0))]
    dealt: list[list[str]] = [[] for _ in range(count)]
    weight = [0.0] * count
    cost = seconds.of_files([str(path.relative_to(SOURCE)) for path in SOURCE.glob(FILES[stage])], table)
    for path in sorted(cost, key=lambda path: (-cost[path], path)):
        lightest = weight.index(min(weight))
        dealt[lightest].append(path)
        weight[lightest] += cost[path]
    # In the order of their names, as undivided: what purges the packages comes last.
    return [(sorted(share), weight[number]) for number, share in enumerate(dealt)]


def parts(stages: list[str]) -> list[Part]:
    """What there is to run."""
    table = seconds.load()
    found = []
    for stage in stages:
        dealt = shares(stage, table)
        for number, (files, long) in enumerate(dealt, 1):
            found.append(Part(stage, stage if len(dealt) == 1 else f"{stage}-{number}", files, long))
    return found


def next_of(ready: list[Part], going: list[Part], jobs: int) -> Part | None:
    """Which is to start beside those that are going on, or None where there is room for none: the packages before all
    else, then what needs none of them; then of those that are of the other kind, busy or waiting, an early one, or the
    longest.

    Labs that wait for their daemons keep three quarters of a processor each: where there are only such, there is room
    for one more.
    """
    busy = any(part.busy for part in going)

    def rank(part: Part) -> tuple[bool, bool, bool, bool, float]:
        return part.stage == "deb", part.stage not in LABS, part.busy != busy, part.stage in EARLY, part.seconds

    chosen = max(ready, key=rank)
    room = jobs if jobs == 1 or busy or chosen.busy else jobs + 1
    return chosen if len(going) < room else None


def ticks() -> tuple[int, int]:
    """Of all processors since the boot: (what they were idle or waited for a disk, all)."""
    counts = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return counts[3] + counts[4], sum(counts)


def idle(since: tuple[int, int], now: tuple[int, int]) -> str:
    """How much of the time between the processors had nothing to do."""
    share = (now[0] - since[0]) / max(1, now[1] - since[1])
    return f"processors idle for {share:.0%}"


def together(waiting: list[Part], jobs: int) -> list[Part]:
    """Run the parts, so many at a time; those that have run. Without packages there is nothing to test in labs."""
    lock = threading.Lock()
    going: list[tuple[Part, threading.Thread]] = []
    ended: list[Part] = []
    beside: list[tuple[Part, threading.Thread]] = []
    if labs := sorted({part.stage for part in waiting if part.stage in LABS}):
        maker = Part("images", "images", labs)
        beside.append((maker, maker.start(lock)))
    first = last = ticks()
    try:
        while waiting or going:
            built = not any(part.stage == "deb" for part in [*waiting, *(part for part, _ in going)])
            ready = [part for part in waiting if built or part.stage not in LABS]
            if ready and (chosen := next_of(ready, [part for part, _ in going], jobs)):
                waiting.remove(chosen)
                going.append((chosen, chosen.start(lock)))
                continue
            time.sleep(0.2)
            for part, thread in list(going):
                if not thread.is_alive():
                    going.remove((part, thread))
                    ended.append(part)
                    assert part.result
                    now = ticks()
                    say(f"{summary(part.tag, part.result)}; since the last {idle(last, now)}")
                    last = now
                    if part.stage == "deb" and part.result.failed:
                        waiting = [each for each in waiting if each.stage not in LABS]
    except BaseException:
        for part, _ in [*going, *beside]:
            assert part.process
            part.process.send_signal(signal.SIGINT)  # it stops its lab
        for _, thread in [*going, *beside]:
            thread.join(60)
        raise
    for _, thread in beside:
        thread.join()
    say(f"all parts: {idle(first, ticks())}")
    return ended


def joined(stages: list[str], ended: list[Part]) -> list[Result]:
    """The results of whole stages, in their order."""
    results = []
    for stage in stages:
        of_it = [part.result for part in ended if part.stage == stage and part.result]
        if not of_it:
            continue
        whole = Result(stage)
        for each in of_it:
            whole.passed += each.passed
            whole.failed += each.failed
            whole.skipped += each.skipped
            whole.seconds += each.seconds
            whole.error = " ".join(filter(None, [whole.error, each.error]))
            whole.note = " ".join(filter(None, [whole.note, each.note]))
            whole.failures += each.failures
            whole.reasons |= each.reasons
        results.append(whole)
    return results


def summary(name: str, result: Result) -> str:
    """One line about a stage."""
    line = f"{name:9} {result.passed} passed, {result.failed} failed, {result.skipped} skipped"
    return "  ".join(filter(None, [f"{line} in {result.seconds:.0f} s", result.error, result.note]))


def main() -> int:
    """Parse the command line, run the stages, print the sum."""
    parser = argparse.ArgumentParser(
        prog="./dev test",
        description="Run all tests. Arguments after the options go to pytest (with --only).",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help=f"one of {', '.join(STAGES)}")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="stages at a time (default: 2)")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    options, extra = parser.parse_known_args()
    only = [stage for each in options.only for stage in each.split(",")]
    if unknown := set(only) - set(RUN if options.part else STAGES):
        parser.error(f"unknown stage {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    # A shell's background job starts with interrupts ignored, and so would everything that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.part:
        if only == ["images"]:
            os.nice(5)  # tests that go on have limits of time; a lane that waits for an image leaves a processor idle
        result = run(only[0], options.part, extra)
        (RESULTS / f"{options.part}.json").write_text(json.dumps(asdict(result)))
        return 0
    began = time.monotonic()
    wanted = [stage for stage in STAGES if not only or stage in only]
    if LABS & set(wanted) and "deb" not in wanted:
        build.build(SOURCE, SOURCE / "dist", lintian=False)
    if len(wanted) == 1 or extra:
        results = [run(stage, stage, extra) for stage in wanted]
    else:
        results = joined(wanted, together(parts(wanted), max(1, options.jobs)))
    for result in forgivable(results, extra):
        again(result)
    say("all stages")
    for result in results:
        print(summary(result.stage, result))
    for result in results:
        for test in result.flaky:
            where = f"build/test/{result.stage}*.first.log"
            print(f"FLAKY in {result.stage}: {test} failed, then passed {RERUN_TIMES} times ({where})")
            print(f"    {result.reasons.get(test, '')}")
        for test in result.failures:  # here as well: who reads only the end of a run learns what to look for
            print(f"FAILED in {result.stage}: {test}")
            print(f"    {result.reasons.get(test, '')}")
        if result.error:
            print(f"FAILED in {result.stage}: {result.error}")
    print(f"total time {time.monotonic() - began:.0f} s")
    passed, failed, skipped = (sum(getattr(each, kind) for each in results) for kind in ("passed", "failed", "skipped"))
    flaky = sum(len(each.flaky) for each in results)
    print(f"{passed} passed, {failed} failed, {skipped} skipped{f', {flaky} of the passed flaky' if flaky else ''}")
    return 1 if failed or not passed or len(results) < len(wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
