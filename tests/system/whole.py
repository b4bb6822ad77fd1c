# SPDX-License-Identifier: Apache-2.0
"""What the tests of the whole house share: run `teu`, look at units, cgroups and processes.

Nothing here asks Teu about itself: the views come from /proc, systemd, the cgroup tree and the journal.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lab_kind import PATIENCE

CGROUPS = Path("/sys/fs/cgroup")
IMAGE = "busybox"
SHIM = "containerd-shim-teu-v2"


def call(*argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout * PATIENCE, check=False, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done


def teu(*argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return call("teu", *argv, check=check, timeout=timeout)


def out(*argv: str, timeout: float = 120) -> str:
    return call(*argv, timeout=timeout).stdout.strip()


def eventually(what: str, probe: Callable[[], object], timeout: float = 30) -> object:
    """Poll `probe` until it is true; the kernel and systemd have no event for most of what is asked here."""
    deadline = time.monotonic() + timeout * PATIENCE
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what} (last: {value!r})")
        time.sleep(0.02)


def show(unit: str, prop: str) -> str:
    return out("systemctl", "show", "--value", "-p", prop, unit)


def main_pid(service: str) -> int:
    return int(show(service, "MainPID") or 0)


def cgroup_of(pid: int) -> str:
    """Path of the process in the unified hierarchy."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    raise AssertionError(f"process {pid} is in no unified cgroup")


def argv_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def program_of(pid: int) -> tuple[str, list[str]]:
    """(program name, its arguments); an interpreter and its options in front are left out."""
    argv = argv_of(pid)
    for index, word in enumerate(argv[:3]):
        name = os.path.basename(word)
        if not name.startswith("python3") and not word.startswith("-"):
            return name, argv[index + 1 :]
    return "", []


def processes(program: str) -> dict[int, list[str]]:
    """{pid: arguments} of all processes that run this program."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            name, args = program_of(int(entry.name))
            if name == program:
                found[int(entry.name)] = args
    return found


def shims(container: str = "") -> dict[int, list[str]]:
    """The shims that hold a container (the warm one that they are forked from has no -id), or this container's."""
    found = processes(SHIM).items()
    return {pid: args for pid, args in found if "-id" in args and (not container or container in args)}


def scope_of(container: str) -> Path:
    return CGROUPS / "teu.slice" / f"teu-{container}.scope"


def procs(cgroup: Path) -> list[int]:
    try:
        return [int(word) for word in (cgroup / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def inspect(container: str) -> dict[str, object]:
    found = json.loads(out("teu", "inspect", container))
    assert isinstance(found, list) and len(found) == 1
    return dict(found[0])


def run_detached(name: str, *argv: str, flags: tuple[str, ...] = ()) -> str:
    return out("teu", "run", "-d", "--name", name, *flags, IMAGE, *argv)


SERVE = ("sh", "-c", "mkdir -p /www; echo served > /www/index.html; exec httpd -f -h /www")


def serve(name: str, flags: tuple[str, ...] = ()) -> str:
    """A container that says "served" at its port 80; it listens when this returns."""
    ident = run_detached(name, *SERVE, flags=flags)
    first = procs(scope_of(ident) / "container")[0]
    sockets = [Path(f"/proc/{first}/net/{kind}") for kind in ("tcp", "tcp6")]
    eventually(
        "it listens",
        lambda: any(re.search(r":0050 [0-9A-F:]+ 0A ", path.read_text()) for path in sockets if path.exists()),
    )
    return ident


def remove_everything() -> None:
    names = out("teu", "ps", "-aq").split()
    if names:
        teu("rm", "-f", "-v", *names, check=False)


class Death(NamedTuple):
    """One way for these services to die. The moment is the caller's."""

    units: tuple[str, ...]
    restart: bool = False
    limited: bool = True  # False: begin to count anew how often systemd has started them of late

    def aim(self) -> list[int]:
        """The victims' PIDs, looked up before the moment comes; all of them are there."""
        return eventually("the daemons run", self._pids)  # type: ignore[return-value]

    def _pids(self) -> list[int]:
        pids = [int(pid) for pid in out("systemctl", "show", "--value", "-p", "MainPID", *self.units).split()]
        return pids if all(pids) else []

    def strike(self, pids: list[int]) -> None:
        if self.restart:
            if not self.limited:
                out("systemctl", "reset-failed", *self.units)
            out("systemctl", "restart", *self.units)
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        # Until it is gone it could still take a request with it.
        eventually("the killed are dead", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


DEATHS = {
    "kill -9 teud": Death(("teud.service",)),
    "kill -9 teu-containerd": Death(("teu-containerd.service",)),
    "kill -9 both": Death(("teu-containerd.service", "teud.service")),
    "restart teud": Death(("teud.service",), restart=True),
    "restart teu-containerd": Death(("teu-containerd.service",), restart=True),
}


def deaths(count: int, dice: random.Random, kinds: dict[str, Death] = DEATHS) -> list[str]:
    """So many names of deaths, every kind as often as the others, in any order."""
    names = (list(kinds) * count)[:count]
    dice.shuffle(names)
    return names


def leftovers() -> list[str]:
    """What a host should be free of when no container exists: scopes, mounts, shims, interfaces, rules."""
    found = [f"scope {p.name}" for p in (CGROUPS / "teu.slice").glob("teu-*.scope")]
    found += [f"shim {pid}" for pid in shims()]
    found += [f"teu-runc {pid}" for pid in processes("teu-runc")]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split()[4]
        if where.startswith(("/run/teu/", "/var/lib/teu/")):
            found.append(f"mount {where}")
    for state in ("/run/teu/containerd/io.containerd.runtime.v2.task/teu", "/run/teu-runc/teu"):
        if os.path.isdir(state):
            found += [f"bundle {name}" for name in os.listdir(state)]
    links = json.loads(call("ip", "-j", "link").stdout)
    found += [f"interface {link['ifname']}" for link in links if link.get("master") == "teu0"]
    return found
