# SPDX-License-Identifier: Apache-2.0
"""What the fuzz targets share: the table of them, a run with its dice and its clock, and the oracle.

A target is a function in a file tests/fuzz/target_NAME.py:

    @target("engine-api", "bodies and parameters of every route, mutated")
    def fuzz(run: Run) -> None:
        with run.watched(clean=reset):
            while run.going():
                case = ...                  # drawn with run.random: the same seed draws the same cases
                run.trying(case)            # what the oracle shows beside what it finds
                if wrong:
                    run.finding("one line that says what is wrong", case)

or, with a strategy of hypothesis:

            run.each(strategies.binary(), check)

A finding is a crash, a hang, a traceback or an internal error told to a client, growth of memory, descriptors or
threads that stays after the end, something left behind on the host, or a file of the host changed. The target sees the
answers; `watched` sees the rest. Findings of one title are one finding, of which the first case is kept.

A target's file is imported to list it, on any machine: what only a lab has (hypothesis, grpc, teu) it imports in its
functions.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

UNITS = ("teud.service", "teu-containerd.service")
OVERDUE_SECONDS = 120  # after its deadline, a target that has not come back hangs
CLEANING_SECONDS = 600  # for what it has made, and to settle
SETTLE_SECONDS = 45  # how long what was begun may take to go away
REMEMBERED = 12  # cases that are shown beside what the journal says


# ---- targets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """`says`: one line for the list. One that is `alone` calls functions in its own process: it needs no daemon and
    looks at no host, so that it can run beside another target."""

    name: str
    says: str
    function: Callable[[Run], None]
    alone: bool = False


TARGETS: dict[str, Target] = {}


def target(name: str, says: str, alone: bool = False) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Decorator: the function fuzzes under that name until `run.going()` is false."""

    def register(function: Callable[[Run], None]) -> Callable[[Run], None]:
        TARGETS[name] = Target(name, says, function, alone)
        return function

    return register


class Overdue(BaseException):
    """The target did not come back; no handler of errors in it is to catch this."""


@dataclass
class Finding:
    title: str
    case: str
    times: int = 1


class Run:
    """One target's run: its dice, its clock, what it has tried and found."""

    def __init__(self, name: str, seconds: float, seed: int, results: Path) -> None:
        """Findings are written to results/NNN as text: the title, then the case."""
        self.name, self.seed, self.results = name, seed, results
        self.random = random.Random(f"{seed}/{name}")
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.inputs = 0
        self.findings: dict[str, Finding] = {}
        self.recent: deque[str] = deque(maxlen=REMEMBERED)
        self._lock = threading.Lock()

    def going(self) -> bool:
        """Whether there is time for another input."""
        return time.monotonic() < self.deadline

    def tried(self, count: int = 1) -> None:
        self.inputs += count

    def trying(self, case: Any) -> None:
        """One input is about to be sent: counted, and remembered for what the oracle sees meanwhile."""
        self.inputs += 1
        self.recent.append(shown(case))

    def finding(self, title: str, case: Any) -> None:
        """Something is wrong. Numbers and identities are left out where titles are compared."""
        key = re.sub(r"[0-9a-f]{8,}|\d+|0x[0-9a-f]+", "#", title)
        with self._lock:
            if key in self.findings:
                self.findings[key].times += 1
                return
            found = self.findings[key] = Finding(title, shown(case))
            number = len(self.findings)
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / f"{number:03}"
        path.write_text(f"{found.title}\n\nseed {self.seed}, input {self.inputs}\n\n{found.case}\n")
        print(f"FINDING {self.name} {path.name}: {title}\n    {found.case[:2000]}", flush=True)

    def each(self, strategy: Any, check: Callable[[Any], None], round_size: int = 200) -> None:
        """Give `check` examples of a hypothesis strategy until the time is over. Its errors are its finding."""
        import hypothesis

        number = 0
        while self.going():
            number += 1

            @hypothesis.seed(self.seed * 1_000_003 + number)
            @hypothesis.settings(
                max_examples=round_size,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(strategy)
            def one(example: Any) -> None:
                if self.going():
                    self.trying(example)
                    try:
                        check(example)
                    except Exception as error:
                        self.finding(f"the check failed: {type(error).__name__}: {error}"[:300], example)

            one()

    @contextlib.contextmanager
    def watched(
        self,
        clean: Callable[[], None] | None = None,
        units: tuple[str, ...] = UNITS,
        ignore: Callable[[str], bool] | None = None,
    ) -> Iterator[None]:
        """The oracle: what the journal says meanwhile, and what is different after `clean` from before.

        `ignore`: whether a line of the journal, or a difference, is as it should be."""
        if clean:
            clean()
        if BUILDER_UNIT not in units:
            quiet_builder()
        before = settled(units)
        with Journal(self, ignore):
            yield
            signal.alarm(CLEANING_SECONDS)  # it has come back; what it has made may be much
            if clean:
                try:
                    clean()
                except Exception as error:
                    self.finding(f"cleaning up failed: {type(error).__name__}: {error}"[:400], list(self.recent))
            if BUILDER_UNIT not in units:
                quiet_builder()
            end = time.monotonic() + SETTLE_SECONDS
            while True:
                differences = [each for each in compare(before, State.now(units)) if not (ignore and ignore(each))]
                if not differences or time.monotonic() > end:
                    break
                time.sleep(0.5)
            time.sleep(0.5)  # what the journal has still to write down
        for difference in differences:
            self.finding(difference, "after the run; see the seed")


def shown(case: Any) -> str:
    """A case as a person can read it, and copy it."""
    if isinstance(case, str):
        return case
    if isinstance(case, (bytes, bytearray)):
        return repr(bytes(case))
    try:
        return json.dumps(case, ensure_ascii=True, default=repr)
    except (TypeError, ValueError):
        return repr(case)


def execute(each: Target, seconds: float, seed: int, results: Path) -> Run:
    """Run one target; one that does not come back is a finding too."""
    run = Run(each.name, seconds, seed, results)

    def overdue(*_: Any) -> None:
        raise Overdue

    previous = signal.signal(signal.SIGALRM, overdue)
    signal.alarm(int(seconds) + OVERDUE_SECONDS + SETTLE_SECONDS)
    try:
        each.function(run)
    except Overdue:
        import traceback

        where = traceback.format_exc()
        run.finding("the target did not come to its end: something hangs", f"{where}\n{shown(list(run.recent))}")
    except Exception as error:
        import traceback

        run.finding(f"the target failed: {type(error).__name__}: {error}"[:300], traceback.format_exc())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return run


# ---- the journal -------------------------------------------------------------------------------------------

BAD = re.compile(
    r"Traceback \(most recent call last\)|internal error|unexpected error|Fatal Python|core[- ]dump|segfault"
    r"|Main process exited, code=(?!exited, status=0)|Failed with result|Scheduled restart job|Exception in thread"
    r"|Exception ignored|out of memory|Too many open files",
    re.IGNORECASE,
)


class Journal:
    """While the context lasts: what the programs and systemd write down, looked through for what is bad."""

    def __init__(self, run: Run, ignore: Callable[[str], bool] | None) -> None:
        self._run, self._ignore = run, ignore
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            ["journalctl", "-f", "-n", "0", "-o", "json", "--all"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process and self._process.stdout
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    self._look(entry)

    def _look(self, entry: dict[str, Any]) -> None:
        message = entry.get("MESSAGE")
        if isinstance(message, list):
            message = bytes(message).decode(errors="replace")
        unit = str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or entry.get("SYSLOG_IDENTIFIER") or "")
        if not isinstance(message, str) or entry.get("CONTAINER_ID"):
            return
        program = f"{unit} {entry.get('SYSLOG_IDENTIFIER', '')} {entry.get('_COMM', '')}"
        if "teu" not in program and entry.get("_TRANSPORT") != "kernel":
            return
        if not BAD.search(message) or (self._ignore and self._ignore(message)):
            return
        lines = [text for text in message.splitlines() if text.strip()]
        what = lines[-1] if "Traceback" in message else message
        where = re.findall(r'File "[^"]*/teu/([^"]+)", line (\d+), in (\w+)', message)
        place = f" at {where[-1][0]}:{where[-1][1]} {where[-1][2]}" if where else ""
        before = "\n".join(f"    {case[:3000]}" for case in self._run.recent)
        self._run.finding(f"journal of {unit}: {what[:300]}{place}", f"{message}\n\nthe last inputs:\n{before}")

    def __exit__(self, *_: object) -> None:
        assert self._process and self._thread
        self._process.terminate()
        self._process.wait()
        self._thread.join()


# ---- what there is on the host -----------------------------------------------------------------------------

ENGINE, CONTAINERD = Path("/var/lib/teu/engine"), Path("/var/lib/teu/containerd")
BUILDER, BUILDER_UNIT = Path("/var/lib/teu/buildkit"), "teu-buildkitd.service"
BUILT = Path("/run/teu/buildkit/git")
SANDBOX, SANDBOXES_MAX = "teub-", 16  # ends of the networks that wait for the builder's next steps
# Where daemons of the host write by themselves, or what a target does itself.
RESTLESS = (
    "/var/lib/teu",
    "/var/log",
    "/var/cache",
    "/var/lib/systemd",
    "/var/lib/private",
    "/var/tmp/systemd-private",
    "/tmp/systemd-private",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/root/.cache",
    "/tmp/fuzz-",
    "/var/lib/dbus",
)
GROWTH = {"MiB": 96, "descriptors": 8, "threads": 12}  # of a daemon, after it has become quiet


@dataclass
class State:
    """A picture of the host. `things`: kind -> what there is of it; `daemons`: unit -> pid, restarts, and sizes."""

    things: dict[str, set[str]] = field(default_factory=dict)
    daemons: dict[str, tuple[int, int, dict[str, int]]] = field(default_factory=dict)

    @classmethod
    def now(cls, units: tuple[str, ...] = UNITS, files: bool = True) -> State:
        """`files`: those of the host outside of Teu's own folders, too."""
        state = cls(daemons={unit: _daemon(unit) for unit in units})
        add = state.things
        add["mount"] = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
        slices = Path("/sys/fs/cgroup/teu.slice")
        add["cgroup"] = {str(path.relative_to(slices)) for path in slices.rglob("*") if path.is_dir()}
        add["cgroup"].discard("teu-build.slice")  # there since the first step of a build
        add["scope"] = {
            line.split()[0]
            for line in _lines("systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=scope", "teu-*")
        }
        links = {link["ifname"] for link in json.loads(_text("ip", "-j", "link") or "[]")}
        add["link"] = {name for name in links if not name.startswith(SANDBOX)}
        if len(links) - len(add["link"]) > SANDBOXES_MAX:
            add["link"] = links
        add["network namespace"] = {path.name for path in Path("/run/netns").glob("*")}
        add["rule"] = set(_lines("nft", "-s", "list", "ruleset"))
        add["row"] = set(_rows(ENGINE / "engine.db")) | set(_rows(CONTAINERD / "metadata.db"))
        add["row"] |= set(_rows(BUILDER / "cache.db"))
        add["row"].discard("metadata.db namespaces plugins.teu")  # there since the first plugin that somebody asked for
        for kind, folder in (
            ("blob", CONTAINERD / "content/blobs/sha256"),
            ("ingest", CONTAINERD / "content/ingest"),
            ("snapshot", CONTAINERD / "snapshots"),
            ("volume", ENGINE / "volumes"),
            ("container folder", ENGINE / "containers"),
        ):
            add[kind] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        add["runtime folder"] = {
            str(path) for top in ("/run/teu", "/run/teu-runc") for path in _below(Path(top), 4) if path.is_dir()
        }
        add["builder's file"] = {str(path) for path in _below(BUILDER, 2) if ".db" not in path.name}
        add["file"] = set(_files()) if files else set()
        add["process"] = set(_programs())
        return state


def _text(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False).stdout


def _lines(*argv: str) -> list[str]:
    return [line.strip() for line in _text(*argv).splitlines() if line.strip()]


FELLED = -1  # the process of a unit that has failed; one that nobody needs leaves, and there is 0


def _daemon(unit: str) -> tuple[int, int, dict[str, int]]:
    lines = _lines("systemctl", "show", "-p", "MainPID", "-p", "NRestarts", "-p", "Result", unit)
    facts = dict(line.split("=", 1) for line in lines)
    pid = int(facts.get("MainPID", 0))
    if not pid and facts.get("Result") != "success":
        pid = FELLED
    sizes: dict[str, int] = {}
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_text()
        sizes["MiB"] = int(re.search(r"RssAnon:\s+(\d+)", text)[1]) >> 10  # type: ignore[index]
        sizes["threads"] = int(re.search(r"Threads:\s+(\d+)", text)[1])  # type: ignore[index]
        sizes["descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
    return pid, int(facts.get("NRestarts", 0)), sizes


def _rows(path: Path) -> list[str]:
    """Table and primary key of each row."""
    if not path.exists():
        return []
    found = []
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            keys = [row[1] for row in connection.execute(f"PRAGMA table_info({name})") if row[5]] or ["rowid"]
            if name in ("meta", "facts"):
                continue
            for row in connection.execute(f"SELECT {', '.join(keys)} FROM {name}"):
                found.append(f"{path.name} {name} {' '.join(str(each) for each in row)}")
    finally:
        connection.close()
    return found


def _below(top: Path, depth: int) -> Iterator[Path]:
    """What is below a folder; a container's root file system is not looked into."""
    with contextlib.suppress(OSError):
        for path in top.iterdir():
            yield path
            if depth > 1 and path.is_dir() and not path.is_symlink() and path.name != "rootfs":
                yield from _below(path, depth - 1)


def _files() -> Iterator[str]:
    """Files of the host outside of Teu's own folders: name, size, time."""
    for top in ("/etc", "/root", "/tmp", "/var", "/usr/local", "/opt"):
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if not f"{folder}/{name}".startswith(RESTLESS)]
            for name in files:
                path = f"{folder}/{name}"
                if path.startswith(RESTLESS):
                    continue
                with contextlib.suppress(OSError):
                    status = os.lstat(path)
                    yield f"{path} {status.st_size} {status.st_mtime_ns} {status.st_mode:o}"


def _programs() -> Iterator[str]:
    """Shims and runtimes that run."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
                for word in words[:3]:
                    name = os.path.basename(word)
                    if name == "teu-runc" or (name == "containerd-shim-teu-v2" and "-id" in words):
                        yield " ".join(words)[:200]


def quiet_builder() -> None:
    """Once it has run, the builder gives up what it keeps and leaves, as it would by itself in the middle of a target
    that does not ask for it."""
    if not BUILT.exists():  # it answers when it has made its folders, which is after its start
        subprocess.run(["teu", "builder", "du"], check=False, timeout=60, stdout=subprocess.DEVNULL)
    if any(" records " in row for row in _rows(BUILDER / "cache.db")):
        subprocess.run(
            ["teu", "builder", "prune", "--all", "--force"], check=False, timeout=300, stdout=subprocess.DEVNULL
        )
    subprocess.run(["systemctl", "stop", "--quiet", BUILDER_UNIT], check=False, timeout=60, stderr=subprocess.DEVNULL)


def settled(units: tuple[str, ...]) -> State:
    """The picture once two in a row are the same, or after a while."""
    end = time.monotonic() + SETTLE_SECONDS
    state = State.now(units)
    while time.monotonic() < end:
        time.sleep(0.5)
        last, state = state, State.now(units)
        if not compare(last, state):
            break
    return state


def compare(before: State, after: State) -> list[str]:
    """What is there after that was not before, and what has gone; and how the daemons have grown."""
    found = []
    for kind, things in after.things.items():
        were = before.things.get(kind, set())
        found += [f"left behind: {kind} {thing}" for thing in sorted(things - were)]
        found += [f"gone: {kind} {thing}" for thing in sorted(were - things)]
    for unit, (pid, restarts, sizes) in after.daemons.items():
        old_pid, old_restarts, old_sizes = before.daemons[unit]
        if restarts != old_restarts:
            found.append(f"{unit} was restarted {restarts - old_restarts} times")
        elif pid == FELLED != old_pid:
            found.append(f"{unit} does not run any more")
        elif old_pid == pid:
            found += [
                f"{unit} has grown: {old_sizes[name]} -> {size} {name}"
                for name, size in sizes.items()
                if name in old_sizes and size > old_sizes[name] + GROWTH[name]
            ]
    return found
