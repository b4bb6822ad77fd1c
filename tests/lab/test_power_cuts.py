# SPDX-License-Identifier: Apache-2.0
"""Power cuts, each a QEMU killed at some moment of pulls, commits, builds and runs: nothing acknowledged is lost.

Runs on the host, as root; the packages must have been built (./dev deb). A machine with systemd, the packages and a
registry is booted once and frozen (frozen.py says why that is honest). Copies of it, two at a time, are thawed, look at
their disk, remove what a client would, work (power_cut_guest.py), and die. What they acknowledged is kept here,
outside. TEU_POWER_CUTS is another number of cuts than a run of all tests has: `./dev soak --power-cuts 50`.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab import frozen, vm

SOURCE = Path(__file__).resolve().parents[2]
RELEASE = "trixie"
CUTS = int(os.environ.get("TEU_POWER_CUTS", "10"))
LANES = 2
WORKERS = ("clients", "pulls", "runs", "builds")
LIMIT = 600.0  # seconds, for anything that a machine is asked

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the labs need root"),
    pytest.mark.skipif(not list((SOURCE / "dist").glob("*.deb")), reason="no packages: ./dev deb"),
]


class Account:
    """What a disk's machines have acknowledged."""

    def __init__(self) -> None:
        self.there: dict[str, Any] = {}
        self.gone: set[str] = set()
        self.counts: Counter[str] = Counter()

    def note(self, message: dict[str, Any]) -> None:
        """A line of the guest's, at work."""
        assert "failed" not in message, message["failed"]
        keys = message["keys"]
        if "begin" in message:
            self.counts["begun"] += 1
            for key in keys:  # until it is done, both is right
                self.there.pop(key, None)
                self.gone.discard(key)
            return
        self.counts["done"] += 1
        if message["done"] == "make":
            self.there[keys[0]] = message["value"]
            self.counts[keys[0].partition(" ")[0]] += 1
        else:
            self.gone.update(keys)
            self.counts["removed"] += len(keys)

    def compare(self, seen: dict[str, Any]) -> None:
        """After a cut. Then the guest removes what a client had begun and not given a name."""
        lost = {key: (value, seen.get(key)) for key, value in self.there.items() if seen.get(key) != value}
        assert not lost, f"acknowledged, and lost (was, is): {lost}"
        assert not self.gone & seen.keys(), f"removed, and there again: {self.gone & seen.keys()}"
        for key in list(self.there):
            kind, _, number = key.partition(" ")
            if kind in ("blob", "layer") and f"image {number}" not in seen:
                del self.there[key]
        self.counts["verified"] += len(self.there)


class Guest:
    """A copy of the machine, and the line to what works in it."""

    def __init__(self, name: str, base: str, way: str, disk: frozen.Disk) -> None:
        self.name = name
        self._disk = disk
        frozen.thaw(name, base, RELEASE, way, disk)
        self._link = frozen.connect(name)
        self._link.settimeout(LIMIT)
        self._file = self._link.makefile("r")

    def ask(self, what: str, **more: Any) -> None:
        self._link.sendall(json.dumps({"do": what, **more}).encode() + b"\n")

    def read(self) -> dict[str, Any] | None:
        """A line of it, None once the power is off."""
        try:
            line = self._file.readline()
        except ConnectionResetError:
            return None
        return json.loads(line) if line.endswith("\n") else None

    def look(self, account: Account, what: str, **more: Any) -> None:
        self.ask(what, **more)
        answer = self.read()
        assert answer and "seen" in answer, answer
        account.compare(answer["seen"]) if what == "open" else None
        assert answer["garbage"] == []

    def open(self, account: Account) -> None:
        """Mount the disk, start the daemons, look; all that was acknowledged must be there, and nothing else."""
        self.look(account, "open", time=time.time(), entropy=secrets.token_hex(32))

    def cut(self) -> list[dict[str, Any]]:
        """The lines that had come out before."""
        vm.power_cut(self.name)
        rest = []
        while line := self.read():
            rest.append(line)
        self.close()
        return rest

    def close(self) -> None:
        vm.power_cut(self.name)
        self._file.close()
        self._link.close()
        self._disk.settle()


def lane(number: int, base: str, way: str, disk: frozen.Disk, rounds: int, account: Account) -> None:
    """The rounds of one disk, one after another."""
    name = f"{base}-{number}"
    for turn in range(rounds):
        guest = Guest(name, base, way, disk)
        guest.open(account)
        # In the first round each worker comes to the end of what it does; then one of them is caught somewhere.
        missing = dict.fromkeys(WORKERS, 6) if turn == 0 else {random.choice(WORKERS): random.randint(1, 4)}
        guest.ask("work", first=turn * 1000 + 1)
        while any(count > 0 for count in missing.values()):
            line = guest.read()
            assert line, "the machine went off by itself"
            account.note(line)
            if line["by"] in missing:
                missing[line["by"]] -= 1
        time.sleep(random.uniform(0, 0.5))
        for line in guest.cut():
            account.note(line)
        account.counts["cuts"] += 1
    guest = Guest(name, base, way, disk)
    guest.open(account)
    guest.look(account, "empty")
    guest.close()


@pytest.fixture
def base() -> Iterator[str]:
    name = f"cuts-{os.getpid()}"
    yield name
    frozen.remove(name, *(f"{name}-{number}" for number in range(LANES)))


def test_power_cuts(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disks = [frozen.Disk(tmp_path / f"disk-{number}", 1024) for number in range(LANES)]
    way = frozen.start(base, RELEASE, SOURCE, disks[0])
    vm.install_packages(base)
    guest = ["python3", "/src/tests/lab/power_cut_guest.py"]
    unit = ["systemd-run", "--quiet", "--unit=guest", "--service-type=notify", "--property=TimeoutStartSec=infinity"]
    with open(os.devnull) as nothing:
        started = vm.run(base, [*unit, *guest], stdin=nothing.fileno())
        if started:
            vm.run(base, ["journalctl", "-u", "guest"], stdin=nothing.fileno())
    assert started == 0, "the guest's part could not be prepared"
    frozen.freeze(base)
    accounts = [Account() for _ in disks]
    rounds = [CUTS // LANES + (number < CUTS % LANES) for number in range(LANES)]
    with ThreadPoolExecutor(LANES) as pool:
        running = [
            pool.submit(lane, number, base, way, disks[number], rounds[number], accounts[number])
            for number in range(LANES)
        ]
    for each in running:
        each.result()
    total: Counter[str] = sum((account.counts for account in accounts), Counter())
    kinds = {
        "pulled": "images pulled",
        "made": "committed",
        "built": "built",
        "container": "containers",
        "exit": "exit codes",
        "blob": "blobs",
        "layer": "snapshots",
        "image": "images made of them",
        "removed": "removed",
        "verified": "found after the cuts",
    }
    counts = ", ".join(f"{total[kind]} {words}" for kind, words in kinds.items())
    with capsys.disabled():
        print(f"{total['cuts']} power cuts: {counts}; {total['begun'] - total['done']} operations cut off, 0 lost")
    assert total["cuts"] == CUTS and total["begun"] > total["done"]
    assert all(total[kind] for kind in kinds)
