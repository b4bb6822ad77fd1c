# SPDX-License-Identifier: Apache-2.0
"""What a step is run with, as the runtime specification says it. Called by the executor.

The defaults (capabilities, seccomp, masked paths, devices) are those of the engine's containers, which are docker's.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from teu.buildkit.core import errors
from teu.linux import capabilities
from teu.oci import cdi, defaults
from teu.oci.seccomp import default_profile
from teu.oci.users import User

OCI_VERSION = "1.1.0"
NAME_ANNOTATION = "io.teu.name"  # for the shim: how the scope is described
STOP_TIMEOUT_ANNOTATION = "io.teu.stop-timeout"
UNLIMITED = (1 << 64) - 1
LOOPS_MAX = 256

# Devices of a step with all rights beside the usual ones: (path, type, major, minor), as BuildKit gives them.
INSECURE_DEVICES = (
    ("/dev/kmsg", "c", 1, 11),
    ("/dev/cuse", "c", 10, 203),
    ("/dev/fuse", "c", 10, 229),
    ("/dev/kvm", "c", 10, 232),
    ("/dev/net/tun", "c", 10, 200),
    ("/dev/loop-control", "c", 10, 237),
)

_RLIMITS = "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"


def check_texts(what: str, texts: Iterable[str]) -> None:
    """No system call takes a text with a zero byte in it. Raises errors.InvalidArgument."""
    for text in texts:
        if "\0" in text:
            shown = text.replace("\0", "\\x00")
            raise errors.InvalidArgument(f"{what} has a zero byte: {shown}")


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a step or of a frontend's container. `cwd` is absolute; `user` is a name or number of the root's,
    with a group behind a colon; `size` is of the terminal, (width, height). `secrets` are variables, too, in the place
    of those of `env` that have their names; they are nowhere at rest. Raises errors.InvalidArgument where a text has a
    zero byte."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    terminal: bool = False
    size: tuple[int, int] = (0, 0)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_texts("an argument", self.args)
        check_texts("the name of a variable", [one.partition("=")[0] for one in self.env])
        if any("\0" in one for one in self.env):
            raise errors.InvalidArgument("a variable's value has a zero byte")  # not shown: it may be a password
        check_texts("a working directory", (self.cwd,))
        check_texts("a user", (self.user,))


@dataclass(frozen=True, slots=True)
class Limits:
    """`ulimits`: (name, soft, hard), negative without a limit. `memory` and `swap` are bytes, `quota` and `period`
    microseconds; zero is none."""

    ulimits: tuple[tuple[str, int, int], ...] = ()
    memory: int = 0
    swap: int = 0
    shares: int = 0
    period: int = 0
    quota: int = 0
    cpus: str = ""
    mems: str = ""
    pids: int = 0


def rlimits(limits: Limits) -> list[dict[str, Any]]:
    found = []
    for name, soft, hard in limits.ulimits:
        if name.lower() not in _RLIMITS.split():
            raise errors.InvalidArgument(f"invalid ulimit {name!r}: there is no such limit")
        soft, hard = (value if value >= 0 else UNLIMITED for value in (soft, hard))
        if soft > hard:
            raise errors.InvalidArgument(f"invalid ulimit {name}: soft limit {soft} is higher than hard limit {hard}")
        found.append({"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard})
    return found


def resources(limits: Limits) -> dict[str, Any]:
    cpu = {
        "shares": limits.shares,
        "period": limits.period,
        "quota": limits.quota,
        "cpus": limits.cpus,
        "mems": limits.mems,
    }
    memory = {"limit": limits.memory, "swap": limits.swap}
    result: dict[str, Any] = {}
    for key, values in (("cpu", cpu), ("memory", memory), ("pids", {"limit": limits.pids})):
        if given := {name: value for name, value in values.items() if value}:
            result[key] = given
    return result


def granted(insecure: bool) -> list[str]:
    """The capabilities of a step; all that this machine has for one that is insecure."""
    known = capabilities.available()
    return known if insecure else [name for name in defaults.CAPABILITIES if name in known]


def process(
    wanted: Process,
    user: User,
    *,
    insecure: bool = False,
    limits: Limits = Limits(),
    apparmor: str = "",
    secrets: bool = True,
) -> dict[str, Any]:
    """`process` of a specification, and what an exec gets; `secrets`: whether with those."""
    if not wanted.args:
        raise errors.InvalidArgument("no arguments: there is nothing to run")
    caps = granted(insecure)
    used = caps if user.uid == 0 or insecure else []
    hidden = {entry.partition("=")[0] for entry in wanted.secrets}
    env = [entry for entry in wanted.env if entry.partition("=")[0] not in hidden]
    if user.home and "HOME" not in hidden and not any(entry.startswith("HOME=") for entry in env):
        env.append(f"HOME={user.home}")
    if secrets:
        env += wanted.secrets
    result: dict[str, Any] = {
        "terminal": wanted.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "umask": 0o22, "additionalGids": user.groups},
        "args": list(wanted.args),
        "env": env,
        "cwd": posixpath.normpath("/" + wanted.cwd.lstrip("/")),
        "capabilities": {"bounding": caps, "effective": used, "permitted": used},
    }
    if insecure:
        result["capabilities"] |= {"inheritable": caps, "ambient": caps}
    if wanted.terminal and any(wanted.size):
        result["consoleSize"] = {"width": wanted.size[0], "height": wanted.size[1]}
    if limits.ulimits:
        result["rlimits"] = rlimits(limits)
    if apparmor and not insecure:
        result["apparmorProfile"] = apparmor
    return result


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all processes of a step share. `namespace`: path of its network namespace, "" for an empty one of its own,
    None for the host's. `mounts`: entries of the specification, `name`: for people."""

    hostname: str
    namespace: str | None
    cgroup: str
    mounts: Sequence[Mapping[str, Any]] = ()
    readonly: bool = False
    insecure: bool = False
    limits: Limits = Limits()
    name: str = ""


def build(first: Mapping[str, Any], around: Surroundings) -> dict[str, Any]:
    """The specification of a container; `first` is its first process."""
    caps = granted(around.insecure)
    network: list[dict[str, str]] = []
    if around.namespace is not None:
        network.append({"type": "network", **({"path": around.namespace} if around.namespace else {})})
    linux: dict[str, Any] = {
        "namespaces": [
            {"type": "mount"},
            *network,
            {"type": "uts"},
            {"type": "pid"},
            {"type": "ipc"},
            {"type": "cgroup"},
        ],
        "resources": {**resources(around.limits), "devices": _allowed(around.insecure)},
        "cgroupsPath": around.cgroup,
        "maskedPaths": [] if around.insecure else list(defaults.DOCKER_MASKED_PATHS),
        "readonlyPaths": [] if around.insecure else list(defaults.READONLY_PATHS),
    }
    if around.insecure:
        linux["devices"] = _devices()
    else:
        linux["seccomp"] = default_profile(caps)
    annotations = {STOP_TIMEOUT_ANNOTATION: "0"}  # at the host's shutdown nobody waits for a step
    if around.name:
        annotations[NAME_ANNOTATION] = around.name
    return {
        "ociVersion": OCI_VERSION,
        "process": dict(first),
        "root": {"path": "rootfs", "readonly": around.readonly},
        "hostname": around.hostname,
        "mounts": _mounts(around),
        "linux": linux,
        "annotations": annotations,
    }


def give(told: dict[str, Any], devices: cdi.Edits) -> None:
    """Change a specification by what devices give; their mounts are there already. Raises errors.NotFound."""
    try:
        cdi.edit(told, devices)
    except (OSError, cdi.Broken) as error:
        raise errors.NotFound(f"CDI device injection failed: {error}") from None


def _mounts(around: Surroundings) -> list[dict[str, Any]]:
    """What every step has, under what it asked for: the deeper come later, and a volume over a folder hides nothing
    that belongs into it."""
    own = [dict(entry) for entry in around.mounts]
    taken = {entry["destination"] for entry in own}
    access = "rw" if around.insecure else "ro"
    strict = ("nosuid", "noexec", "nodev")
    usual = [
        defaults.mount("/proc", "proc", "proc", *strict),
        *(entry for entry in defaults.mounts() if entry["destination"] != "/sys"),
        defaults.mount("/sys", "sysfs", "sysfs", *strict, access),
        defaults.mount("/sys/fs/cgroup", "cgroup", "cgroup", *strict, access),
    ]
    usual = [
        entry
        for entry in usual
        if entry["destination"] not in taken and not ("/dev" in taken and entry["destination"].startswith("/dev/"))
    ]
    return usual + sorted(own, key=lambda entry: (entry["destination"].count("/"), entry["destination"]))


def _allowed(insecure: bool) -> list[dict[str, Any]]:
    """linux.resources.devices: what may be opened; the runtime adds what every container may."""
    if insecure:
        return [{"allow": True, "type": kind, "access": "rwm"} for kind in ("c", "b")]
    return defaults.device_rules()


def _devices() -> list[dict[str, Any]]:
    loops = sum(name.startswith("loop") and name[4:].isdigit() for name in os.listdir("/dev"))
    nodes = [
        *INSECURE_DEVICES,
        *((f"/dev/loop{number}", "b", 7, number) for number in range(min(loops + 8, LOOPS_MAX))),
    ]
    return [
        {"path": path, "type": kind, "major": major, "minor": minor, "fileMode": 0o660, "uid": 0, "gid": 0}
        for path, kind, major, minor in nodes
    ]


def cgroups_path(parent: str, identity: str, *, own_slice: str, systemd: bool) -> str:
    """Where the step's cgroup is: slice:prefix:name, of which the shim or the runtime makes a scope, or a path where
    there is no systemd. `parent`: what the step asks for: a slice, a slice with a prefix and a colon at its end, or,
    without systemd, a path. Where there is systemd it owns the tree: a path of a frontend's own would be a cgroup
    beside its slices, under nobody's limits, and stay. Raises InvalidArgument."""
    parts = parent.split("/")
    if ".." in parts or any(not character.isprintable() for character in parent):
        raise errors.InvalidArgument(f"invalid cgroup parent {parent!r}")
    if not parent:
        return f"{own_slice}:teu:{identity}" if systemd else f"/{own_slice.removesuffix('.slice')}/{identity}"
    name = parent.partition(":")[0]
    if systemd and ("/" in parent or not name.removesuffix(".slice") or not name.endswith(".slice")):
        raise errors.InvalidArgument(
            f'cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice", not {parent!r}'
        )
    if parent.endswith(":") and ".slice" in parent:
        if parent.count(":") == 1:
            return f"{parent}teu:{identity}"
        return parent + identity
    if parent.endswith(".slice") and "/" not in parent:
        return f"{parent}:teu:{identity}" if systemd else f"/{parent}/{identity}"
    return posixpath.join("/", parent.strip("/"), "buildkit", identity)
