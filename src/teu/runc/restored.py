# SPDX-License-Identifier: Apache-2.0
"""What criu has restored, looked at before it goes on. Called by restore.

criu gives a process back as its images say, whatever the specification says; and images may have been made to hurt.
Where the specification has the annotation, no process may have more than it gives: capabilities, system calls,
namespaces, cgroup, AppArmor profile. Not looked at is what the processes have open or mounted.
"""

from __future__ import annotations

import os

from teu.linux import capabilities
from teu.runc.errors import RuncError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONFINED = "io.teu.restore.confined"  # annotation: "true"
_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_NAMESPACES = {"mount": "mnt", "network": "net"}


def mask(names: list[str]) -> int:
    """Capabilities as the kernel shows them."""
    return sum(1 << bit for bit, name in enumerate(capabilities.NAMES) if name in names)


def excess(status: str, process: dict[str, Any], linux: dict[str, Any]) -> str:
    """What a process has more than `process` and `linux` of a specification give, by its /proc/PID/status; "" for
    nothing."""
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    allowed = mask((process.get("capabilities") or {}).get("bounding") or [])
    for name in _SETS:
        if more := int(found.get(name, "0"), 16) & ~allowed:
            return f"capabilities ({name}) {more:#x}"
    if process.get("noNewPrivileges") and found.get("NoNewPrivs", "0").strip() != "1":
        return "no no_new_privs"
    if linux.get("seccomp") and found.get("Seccomp", "0").strip() != "2":
        return "no seccomp profile"
    return ""


def family(pid: int) -> list[int]:
    """A process, its children, theirs, and so on. OSError where it has ended."""
    found, at = [pid], 0
    while at < len(found):
        for task in os.listdir(f"/proc/{found[at]}/task"):
            found += map(int, _read(f"/proc/{found[at]}/task/{task}/children").split())
        at += 1
    return found


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def _foreign(pid: int, first: int, spec: dict[str, Any], cgroup: str) -> str:
    """What of a process' surroundings is not the container's; "" for nothing."""
    if not (_read(f"/proc/{pid}/cgroup").rpartition("::")[2].strip() + "/").startswith(cgroup + "/"):
        return "another cgroup"
    for one in (spec.get("linux") or {}).get("namespaces") or []:
        kind = _NAMESPACES.get(one["type"], one["type"])
        wanted = one.get("path") or f"/proc/{first}/ns/{kind}"
        if os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(wanted).st_ino:
            return f"another {one['type']} namespace"
        if not one.get("path") and os.stat(wanted).st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino:
            return f"the host's {one['type']} namespace"
    if os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
        return "another user namespace"
    return ""


def check(spec: dict[str, Any], pids: list[int], cgroup: str) -> None:
    """That no restored process has more than the specification gives; the first of them is the container's, and so is
    `cgroup`, in the hierarchy. RuncError, OSError."""
    process, linux = spec.get("process") or {}, spec.get("linux") or {}
    for one in pids:
        more = _foreign(one, pids[0], spec, cgroup) or excess(_read(f"/proc/{one}/status"), process, linux)
        if not more and (profile := process.get("apparmorProfile")):
            has = _read(f"/proc/{one}/attr/current").strip("\0\n").partition(" (")[0]
            more = "" if has == profile else f"the AppArmor profile {has!r}"
        if more:
            raise RuncError(f"the checkpoint has a process with {more}, which the container is not to have")
