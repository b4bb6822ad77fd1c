# SPDX-License-Identifier: Apache-2.0
"""What kills: one thread that picks a victim at random, again and again, until the calm at the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import whole

from soak.clients import Workshop, ask
from soak.ledger import Container, Ledger

JOURNALD, DBUS = "systemd-journald.service", "dbus.service"
TEUD, CONTAINERD, BUILDER = "teud.service", "teu-containerd.service", "teu-buildkitd.service"


class Killer(threading.Thread):
    """Strikes `rate` times a minute until the moment `end`; sometimes fast, sometimes not for a while."""

    def __init__(self, ledger: Ledger, workshop: Workshop, dice: random.Random, rate: float, end: float) -> None:
        super().__init__(name="killer")
        self._ledger, self._workshop, self._dice = ledger, workshop, dice
        self._pause, self._end = 60 / rate, end
        # How often each comes, beside the others. A way is true if there was a victim.
        self._ways: dict[str, tuple[int, Callable[[], bool]]] = {
            **{name: (4, lambda death=death: self._daemon(death)) for name, death in whole.DEATHS.items()},  # type: ignore[misc]
            "terminate teud": (2, lambda: self._terminate(TEUD)),
            "terminate teu-containerd": (2, lambda: self._terminate(CONTAINERD)),
            "kill -9 teu-buildkitd": (4, lambda: kill_if(whole.main_pid(BUILDER))),
            "terminate teu-buildkitd": (1, lambda: self._terminate(BUILDER)),
            "kill -9 a shim": (4, self._shim),
            "kill -9 the shims' zygote": (2, self._zygote),
            "kill -9 a teu-runc": (5, self._runc),
            "kill -9 a daemon's helper": (3, self._helper),
            "kill -9 a client": (5, lambda: self._workshop.strike(self._dice)),
            "kill -9 a container's process": (3, self._process),
            "daemon-reload": (2, lambda: self._systemctl("daemon-reload")),
            "daemon-reexec": (1, lambda: self._systemctl("daemon-reexec")),
            "restart journald": (1, lambda: self._service(JOURNALD, "restart")),
            "kill -9 journald": (1, lambda: self._service(JOURNALD, "kill", "-s", "KILL")),
            "restart dbus": (1, lambda: self._service(DBUS, "restart")),
            "kill -9 dbus": (1, lambda: self._service(DBUS, "kill", "-s", "KILL")),
        }

    def run(self) -> None:
        due = time.monotonic()
        names, weights = list(self._ways), [weight for weight, _ in self._ways.values()]
        while time.monotonic() < self._end and not self._ledger.over.is_set():
            name = self._dice.choices(names, weights)[0]
            try:
                if self._ways[name][1]():
                    self._ledger.killed(name)
                    due += self._pause * self._dice.choice((0.1, 0.5, 1, 1, 2.4))
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                status, why = ask("/version")
                if status != 200:
                    self._ledger.contradict(f"no answer after {name}: {error}; {why}")
            self._ledger.over.wait(min(max(0.02, due - time.monotonic()), max(0, self._end - time.monotonic())))
        self._ledger.over.wait(max(0, self._end - time.monotonic()))

    # -- the ways ------------------------------------------------------------------------------

    def _daemon(self, death: whole.Death) -> bool:
        death.strike(death.aim())
        return True

    def _terminate(self, unit: str) -> bool:
        pid = whole.main_pid(unit)
        if pid:
            os.kill(pid, signal.SIGTERM)
        return bool(pid)

    def _running(self) -> Container | None:
        found = [one for one in self._ledger.containers() if one.ident and one.states & {"running", "paused"}]
        return self._dice.choice(found) if found else None

    def _shim(self) -> bool:
        container = self._running()
        shims = whole.shims(container.ident) if container else {}
        if not container or not shims:
            return False
        # 255 where teu-containerd dies before it has seen that: then nobody is left who could know (as with docker).
        self._ledger.strike(container, {137, 255}, shim=True)
        return kill(next(iter(shims)))

    def _process(self) -> bool:
        container = self._running()
        inside = whole.procs(whole.scope_of(container.ident) / "container") if container else []
        first = [pid for pid in inside if is_first(pid)]
        if not container or not first:
            return False
        self._ledger.strike(container, {137}, shim=False)
        return kill(first[0])

    def _zygote(self) -> bool:
        found = [pid for pid, words in whole.processes(whole.SHIM).items() if "-id" not in words]
        return bool(found) and kill(self._dice.choice(found))

    def _runc(self) -> bool:
        """One that works, or waits to."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and not self._ledger.over.is_set():
            found = whole.processes("teu-runc")
            if found:
                pid, words = self._dice.choice(sorted(found.items()))
                for container in self._ledger.containers():
                    if container.ident and container.ident in words:
                        self._ledger.strike(container, {137}, shim=False, surely=False)
                return kill(pid)
            time.sleep(0.01)
        return False

    def _helper(self) -> bool:
        """A child of a daemon: a worker that unpacks, mounts or copies."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and not self._ledger.over.is_set():
            for unit in (TEUD, CONTAINERD, BUILDER):
                found = [pid for pid in children(whole.main_pid(unit)) if whole.program_of(pid)[0] != whole.SHIM]
                if found:
                    return kill(self._dice.choice(found))
            time.sleep(0.02)
        return False

    def _systemctl(self, *words: str) -> bool:
        whole.out("systemctl", *words)
        return True

    def _service(self, unit: str, *words: str) -> bool:
        whole.call("systemctl", "reset-failed", unit, check=False)
        whole.out("systemctl", *words, unit)
        return True


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_if(pid: int) -> bool:
    return bool(pid) and kill(pid)


def is_first(pid: int) -> bool:
    """Whether it is process 1 of its own namespace."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in lines)


def children(pid: int) -> list[int]:
    found: list[int] = []
    if pid:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(word) for word in task.read_text().split()]
            except OSError:
                continue
    return found
