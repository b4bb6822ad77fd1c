# SPDX-License-Identifier: Apache-2.0
"""What was acknowledged, and so has to be true.

Every thing has one owner, the client that works with it, and a set of states that it may be in. Before a command the
states of before and after it are possible; an acknowledgement leaves the one of after; a refusal, or a client that was
killed, leaves all of them until what is still under way has come to its end. A strike adds what it may have done.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

# A command that was refused or whose client died may be at work somewhere for so long.
UNSETTLED = 20.0
# What is bound to happen by itself has to have happened by then; the machine may be slow, and daemons die meanwhile.
DUE = 90.0
ABSENT = "absent"
ENOUGH = 25  # contradictions; more of them would say the same


@dataclass
class Thing:
    """A container, image, network or volume. Its fields are changed with the ledger's lock held."""

    kind: str
    name: str
    states: set[str] = field(default_factory=lambda: {ABSENT})
    busy: bool = False  # its owner's command is under way
    unsettled: float = 0  # until then
    due: tuple[str, float] | None = None  # what it has to be from then on
    version: int = 0  # of all of this
    doubted: bool = False  # it has contradicted once: nothing more is asked of it

    def possible(self) -> set[str]:
        if self.due and time.monotonic() > self.due[1]:
            return {self.due[0]}
        return self.states | ({self.due[0]} if self.due else set())

    def settled(self) -> bool:
        return not self.busy and time.monotonic() > self.unsettled

    def certain(self, state: str) -> bool:
        """That it is so, until something strikes it."""
        return self.settled() and not self.doubted and not self.due and self.states == {state}


@dataclass
class Container(Thing):
    role: str = ""
    driver: str = ""  # of its log
    pid: int = 0  # of its first process while nothing has ended that
    ident: str = ""
    codes: set[int] = field(default_factory=set)  # that it may have ended with
    keeps: bool = False  # it has a restart policy
    torn: bool = False  # a shim of it was killed: the end of its output may be lost
    files: dict[str, bytes] = field(default_factory=dict)
    networks: dict[str, bool | None] = field(default_factory=dict)  # None: not known


class Ledger:
    def __init__(self, seed: int, stop: bool) -> None:
        self.seed = seed
        self.lock = threading.RLock()
        self.over = threading.Event()
        self.things: dict[tuple[str, str], Thing] = {}
        self.operations: Counter[tuple[str, str]] = Counter()
        self.refusals: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.contradictions: list[str] = []
        self.began = time.time()
        self._stop = stop

    def wait(self, end: float) -> None:
        """Until the end, or an earlier one."""
        said = time.monotonic()
        while time.monotonic() < end and not self.over.wait(1):
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"soak: {self._summary()}", flush=True)

    def add(self, thing: Thing) -> None:
        with self.lock:
            self.things[thing.kind, thing.name] = thing

    def containers(self) -> list[Container]:
        with self.lock:
            return [thing for thing in self.things.values() if isinstance(thing, Container)]

    # -- a command -----------------------------------------------------------------------------

    def begin(self, thing: Thing, *after: str) -> None:
        with self.lock:
            thing.busy, thing.version = True, thing.version + 1
            thing.states = thing.states | set(after)

    def end(self, thing: Thing, acknowledged: bool, *after: str) -> None:
        """With an acknowledgement one of the states of after is what there is."""
        with self.lock:
            thing.busy, thing.version = False, thing.version + 1
            if acknowledged:
                thing.states = set(after)
            else:
                thing.unsettled = time.monotonic() + UNSETTLED

    def observed(self, thing: Thing, state: str, version: int) -> None:
        """It was this when its version was that one."""
        with self.lock:
            if thing.version == version and thing.settled():
                passing = isinstance(thing, Container) and thing.role == "foreground" and state != ABSENT
                # What ends by itself may be gone at any moment after it was seen.
                thing.states = thing.states | {state, ABSENT} if passing else {state}
                if thing.due and thing.due[0] == state:
                    thing.due = None

    def strike(self, container: Container, codes: set[int], shim: bool, surely: bool = True) -> None:
        """Its processes are about to be killed; or (not surely) what works on it, with which it may end."""
        with self.lock:
            container.version += 1
            container.pid = 0
            container.codes |= codes
            container.torn = container.torn or shim
            if container.states & {"running", "paused"}:
                container.states = container.states | {"exited", "running"}
                if surely and not container.busy:
                    container.due = ("running" if container.keeps else "exited", time.monotonic() + DUE)

    # -- what happened -------------------------------------------------------------------------

    def count(self, verb: str, how: str) -> None:
        with self.lock:
            self.operations[verb, how] += 1

    def refused(self, verb: str, why: str) -> None:
        """Count it by its first line, in which names and numbers do not matter."""
        line = next((line for line in why.strip().splitlines() if line.strip()), "")
        text = re.sub(r"[0-9a-f]{12,}|\bs\d+-[\w:-]+|\d+", "N", line)
        with self.lock:
            self.refusals[f"{verb}: {text[:240]}"] += 1

    def killed(self, what: str) -> None:
        with self.lock:
            self.kills[what] += 1

    def checked(self, what: str) -> None:
        with self.lock:
            self.checks[what] += 1

    def contradict(self, what: str, thing: Thing | None = None) -> None:
        moment = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        with self.lock:
            if thing:
                if thing.doubted:
                    return
                thing.doubted = True
            text = f"{moment} {f'{thing.kind} {thing.name}: ' if thing else ''}{what}"
            self.contradictions.append(text)
            print(f"soak: CONTRADICTION {text}", flush=True)
            if self._stop or len(self.contradictions) >= ENOUGH:
                self.over.set()

    def _summary(self) -> str:
        with self.lock:
            acknowledged = sum(number for (_, how), number in self.operations.items() if how == "acknowledged")
            return (
                f"{(time.time() - self.began) / 60:.0f} min, {sum(self.operations.values())} operations "
                f"({acknowledged} acknowledged), {sum(self.kills.values())} kills, {sum(self.checks.values())} checks, "
                f"{len(self.contradictions)} contradictions"
            )

    def report(self) -> str:
        hows = ("acknowledged", "refused", "client killed")
        lines = ["", f"{'operation':<18}" + "".join(f"{how:>15}" for how in hows)]
        for verb in sorted({verb for verb, _ in self.operations}):
            lines.append(f"{verb:<18}" + "".join(f"{self.operations[verb, how]:>15}" for how in hows))
        lines += ["", "refusals, the most frequent"]
        lines += [f"    {number:>6}  {text}" for text, number in self.refusals.most_common(30)]
        lines += ["", "kills"]
        lines += [f"    {what:<36}{number:>6}" for what, number in sorted(self.kills.items())]
        lines += ["", "checks"]
        lines += [f"    {what:<36}{number:>6}" for what, number in sorted(self.checks.items())]
        lines += ["", f"soak: {self._summary()}; seed {self.seed}"]
        if self.contradictions:
            lines += ["", f"{len(self.contradictions)} contradictions (UTC; the journal is in build/soak/journal.log):"]
            lines += [f"    {text}" for text in self.contradictions]
        else:
            lines.append("soak: nothing acknowledged was lost, nothing is left")
        return "\n".join(lines)
