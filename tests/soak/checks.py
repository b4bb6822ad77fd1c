# SPDX-License-Identifier: Apache-2.0
"""What there was on the host before, and has to be again at the end; what is looked at all the time; the journal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import images
import whole

from soak.clients import WORK, ask
from soak.ledger import ABSENT, Ledger

DATABASES = (
    "/var/lib/teu/engine/engine.db",
    "/var/lib/teu/containerd/metadata.db",
    "/var/lib/teu/buildkit/cache.db",
)
STATES = ("/run/teu", "/run/teu-runc", "/var/lib/teu", "/tmp", "/var/tmp", "/etc/teu")
# What comes and goes with a daemon's run, or is a cache with bounds of its own.
FLEETING = re.compile(r"(-wal|-shm|-journal)$|^/run/teu/seccomp|starts-at-boot$")
# Not looked into: their files are what images and containers hold.
DEEP = re.compile(r"^/var/lib/teu/containerd/snapshots/[^/]+/(snapshots/)?[^/]+/|^/tmp/[^/]+/|^/var/tmp/[^/]+/")
PROGRAMS = ("teud", "teu-containerd", "containerd-shim-teu-v2", "teu-runc", "teu-runc-init", "teu")
SERVICES = ("teud.service", "teu-containerd.service")
# What a daemon may hold more of at the end than after its first work.
MORE_MEMORY, MORE_DESCRIPTORS = 24 << 20, 6
SETTLE = 90
TROUBLE = re.compile(
    r"Traceback \(most recent|segfault|core dumped|dumped core|internal error|exception was never"
    r"|Failed with result '(?!signal)",
    re.IGNORECASE,
)
SANDBOX = "teub-"  # ends of the networks that wait for the builder's next steps
SOURCES = ("teud", "teu-buildkitd", "teu-containerd", "containerd-shim", "teu-runc", "teu-shim", "systemd")


def listing(root: str) -> set[str]:
    """Paths below it, with what sockets and FIFOs are."""
    found: set[str] = set()
    stack = [root]
    while stack:
        folder = stack.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            if FLEETING.search(entry.path):
                continue
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except OSError:
                continue
            kind = "socket " if stat.S_ISSOCK(mode) else "FIFO " if stat.S_ISFIFO(mode) else ""
            found.add(kind + entry.path)
            if stat.S_ISDIR(mode) and not DEEP.match(entry.path + "/x"):
                stack.append(entry.path)
    return found


def rows() -> list[str]:
    """How many each table has."""
    found = []
    for path in DATABASES:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            for name in names:
                if not name.startswith("sqlite_"):
                    (number,) = database.execute(f'SELECT count(*) FROM "{name}"').fetchone()
                    found.append(f"{path}: {number} in {name}")
    return found


class Memory(NamedTuple):
    bytes: int
    descriptors: int
    threads: int


def memory(unit: str) -> Memory:
    """What a daemon holds. PSS is not to be had for all: what it has for itself is what can grow."""
    whole.out("teu", "version")  # one that nobody needed has left: it is there again
    pid = whole.main_pid(unit)
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(number) << 10 for number in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))
    threads = re.search(r"^Threads:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return Memory(private, len(os.listdir(f"/proc/{pid}/fd")), int(threads[1]) if threads else 0)


class Host(NamedTuple):
    things: dict[str, set[str]]
    memory: dict[str, Memory]

    @classmethod
    def now(cls) -> Host:
        """After the daemons have been started anew, and each has done a little of everything."""
        whole.out("systemctl", "restart", *SERVICES)
        for number in range(6):
            name = f"warm{number}"
            whole.run_detached(name, "sleep", "100", flags=("-p", "127.0.0.1::80"))
            whole.teu("exec", name, "true")
            whole.teu("logs", name)
            whole.teu("rm", "-f", "-v", name)
        whole.teu("network", "create", "warm")
        whole.teu("network", "rm", "warm")
        whole.teu("volume", "create", "warm")
        whole.teu("volume", "rm", "warm")
        whole.teu("info")
        builder()
        images.baseline()
        whole.eventually("nothing is left of the first work", lambda: not whole.leftovers(), timeout=60)
        time.sleep(2)
        return cls(things(), {unit: memory(unit) for unit in SERVICES})


def builder() -> None:
    """A step of the builder; nothing of it is kept, but what the next one needs: the bridge, its rules, a slice."""
    context = WORK / "first"
    context.mkdir(parents=True, exist_ok=True)
    (context / "Dockerfile").write_text(f"FROM busybox\nRUN echo {time.time_ns()} >/made\n")
    whole.teu("build", "--progress=plain", "-o", "type=cacheonly", str(context))
    whole.teu("builder", "prune", "-af")


def things() -> dict[str, set[str]]:
    found = {root: listing(root) for root in STATES}
    found["mounts"] = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    links = [link["ifname"] for link in json.loads(whole.out("ip", "-j", "link"))]
    found["links"] = {name for name in links if not name.startswith(SANDBOX)}
    lines = whole.out("sh", "-c", "ip -o addr; ip route").splitlines()
    found["addresses, routes"] = {line for line in lines if SANDBOX not in line}
    found["rules"] = set(whole.out("nft", "list", "tables").splitlines())
    found["cgroups"] = {
        str(path) for path in whole.CGROUPS.glob("**/") if "teu" in path.name or "teu.slice" in str(path)
    }
    found["cgroups"] = {path for path in found["cgroups"] if "teu-buildkitd" not in path}  # it leaves when idle
    units = whole.out("systemctl", "list-units", "--all", "--plain", "--no-legend", "teu*", "docker-*", "libpod*")
    found["units"] = {" ".join(line.split()[:2]) for line in units.splitlines()}
    found["units"].discard("teu-boot.target loaded")  # it comes with the first restart of what ends with it
    # dbus is killed more often than systemd starts it anew.
    whole.out("systemctl", "reset-failed", "dbus.service")
    found["failed units"] = {
        line.split()[0] for line in whole.out("systemctl", "--failed", "--plain", "--no-legend").splitlines()
    }
    count = Counter(whole.program_of(int(name))[0] for name in os.listdir("/proc") if name.isdigit())
    found["processes"] = {f"{count[program]} of {program}" for program in PROGRAMS}
    found["rows"] = set(rows())
    found["containerd"] = {f"{kind} {entry}" for kind, entries in images.held().items() for entry in entries}
    # The soak's own, and what the daemons' start makes anew.
    found["/tmp"] = {path for path in found["/tmp"] if "systemd-private" not in path}
    found["/var/tmp"] = {path for path in found["/var/tmp"] if "systemd-private" not in path}
    return found


def differences(before: dict[str, set[str]], after: dict[str, set[str]]) -> list[str]:
    found = []
    for kind, was in before.items():
        found += [f"{kind}: {entry} is left" for entry in sorted(after[kind] - was)]
        found += [f"{kind}: {entry} is gone" for entry in sorted(was - after[kind])]
    return found


def at_the_end(ledger: Ledger, before: Host) -> None:
    """All has been removed: the host is as it was, and the daemons hold what they held."""
    listed = whole.out("teu", "ps", "-a", "--format", "{{.ID}} {{.Names}} {{.Status}}").splitlines()
    for ident, what in (line.split(" ", 1) for line in listed):
        # What a client that was killed left created, with --rm; anything else has been removed above.
        if "-rm-" not in what and "-use-" not in what and "-vol-" not in what:
            ledger.contradict(f"a container is left that was removed: {what}")
        whole.teu("rm", "-f", "-v", ident, check=False)
    # With it comes what daemons that were killed make again when it is needed.
    whole.teu("run", "--rm", whole.IMAGE, "true")
    builder()
    deadline = time.monotonic() + SETTLE
    while True:
        images.baseline()
        left = differences(before.things, things())
        if not left or time.monotonic() > deadline:
            break
        time.sleep(1)
    for text in left:
        ledger.contradict(f"at the end, {text}")
    ledger.checked("things of the host compared")
    for unit, was in before.memory.items():
        now = memory(unit)
        print(f"soak: {unit}: {was} before, {now} at the end", flush=True)
        if now.bytes > was.bytes + MORE_MEMORY:
            ledger.contradict(f"{unit} holds {now.bytes >> 10} KiB of memory, and had {was.bytes >> 10} KiB")
        if now.descriptors > was.descriptors + MORE_DESCRIPTORS:
            folder = f"/proc/{whole.main_pid(unit)}/fd"
            held = Counter(re.sub(r"\d+", "N", os.readlink(f"{folder}/{number}")) for number in os.listdir(folder))
            ledger.contradict(f"{unit} has {now.descriptors} descriptors, and had {was.descriptors}: {held}")


class Watcher(threading.Thread):
    """Looks at all containers at once: none is there that was removed, none lacks that has to be there."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(name="watcher")
        self._ledger = ledger

    def run(self) -> None:
        while not self._ledger.over.wait(3):
            with self._ledger.lock:
                before = {one.name: one.version for one in self._ledger.containers() if one.settled()}
            status, body = ask("/containers/json?all=1")
            if status != 200:
                self._ledger.contradict(f"no list of the containers: {body}")
                continue
            listed = {name.removeprefix("/") for entry in body for name in entry["Names"]}
            with self._ledger.lock:
                for one in self._ledger.containers():
                    if before.get(one.name) != one.version or one.due or one.doubted:
                        continue
                    if one.name in listed and one.states == {ABSENT}:
                        self._ledger.contradict("it is listed, and was removed", one)
                    elif one.name not in listed and ABSENT not in one.states:
                        self._ledger.contradict(f"it is not listed, and has to be {one.states}", one)
                unknown = listed - {one.name for one in self._ledger.containers()}
                if unknown:
                    self._ledger.contradict(f"containers of nobody: {sorted(unknown)}")
            self._ledger.checked("lists of all containers")


def journal(ledger: Ledger, results: Path) -> None:
    """Keep it, and look for what no daemon of ours may say."""
    folder = results if results.is_dir() else WORK.parent
    path = folder / "journal.log"
    with path.open("wb") as file:
        since = f"@{ledger.began:.0f}"
        command = ["journalctl", "--no-pager", "-q", "-o", "short-precise", "--no-hostname", "--utc", "--since", since]
        subprocess.run(command, stdout=file, check=False)
    (folder / "ledger.json").write_text(
        json.dumps(
            {
                "seed": ledger.seed,
                "contradictions": ledger.contradictions,
                "kills": ledger.kills,
                "operations": {f"{verb}, {how}": number for (verb, how), number in sorted(ledger.operations.items())},
                "things": [
                    vars(thing) | {"files": len(getattr(thing, "files", ()))}
                    for thing in ledger.things.values()
                    if thing.doubted
                ],
            },
            indent=2,
            default=list,
        )
    )
    troubles: Counter[str] = Counter()
    first: dict[str, str] = {}
    with path.open(errors="replace") as file:
        for line in file:
            source = line[27:].split("[")[0].split(":")[0].strip()
            if TROUBLE.search(line) and source.startswith(SOURCES):
                what = re.sub(r"[0-9a-f]{12,}|\d+", "N", line[27:].strip())
                troubles[what] += 1
                first.setdefault(what, line.strip())
    for what, number in troubles.most_common(10):
        ledger.contradict(f"the journal has it {number} times: {first[what][:300]}")
