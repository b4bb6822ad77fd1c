# SPDX-License-Identifier: Apache-2.0
"""What teud.yaml says of containers that say nothing themselves. Called by create, start, stop and inspect with the
settings in force, which a reload changes.

    when a container is made, and kept in its record    the size of /dev/shm, the modes of IPC and cgroup namespaces
    at each start, so also of those that are there      ulimits, privileges, the seccomp profile, the time to stop;
                                                        and names (networks/options.py)

docker divides them in the same way.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.engine.core.errors import EngineError
from teu.engine.core.fields import HostConfig, Ulimit
from teu.oci import jsontext
from teu.oci.runtime_spec import ULIMITS

if TYPE_CHECKING:
    from teu.engine.core.fields import Config
    from teu.oci.runtime_spec import Object

STOP_SECONDS = 10
SHM_SIZE = 64 << 20
IPC_MODES = ("private", "shareable")
CGROUPNS_MODES = ("private", "host")


class Limit(NamedTuple):
    """One of default-ulimits; -1 is no limit. `name`: as docker's own form repeats it, or empty."""

    soft: int
    hard: int
    name: str = ""


def fill(host: HostConfig, settings: Mapping[str, Any]) -> HostConfig:
    """A copy of what a client has sent, with what it leaves open."""
    result = host.copy()
    result.shm_size = result.shm_size or settings["default-shm-size"]
    result.ipc_mode = result.ipc_mode or settings["default-ipc-mode"]
    result.cgroupns_mode = result.cgroupns_mode or settings["default-cgroupns-mode"]
    return result


def ulimits(host: HostConfig, settings: Mapping[str, Any]) -> list[Ulimit]:
    """Those of a container, and of the default ones those that it does not name."""
    own = {(limit.name or "").lower() for limit in host.ulimits or ()}
    return [
        *(host.ulimits or ()),
        *(
            Ulimit(name=name, soft=limit.soft, hard=limit.hard)
            for name, limit in settings["default-ulimits"].items()
            if name not in own
        ),
    ]


def stop_seconds(config: Config, settings: Mapping[str, Any]) -> int:
    """From the stop signal to SIGKILL; below 0 there is no end."""
    own = config.stop_timeout
    return int(settings["default-stop-timeout"]) if own is None else own


def seccomp_profile(path: str) -> Object:
    """The profile in a file, in docker's format; read again when the file is another. Raises EngineError."""
    try:
        found = os.stat(path)
        return _profile(path, found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise EngineError(f"the seccomp profile {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise EngineError(f"{path} is no seccomp profile: {error}") from None


@functools.lru_cache(maxsize=2)
def _profile(path: str, _inode: int, _changed: int, _size: int) -> Object:
    with open(path, "rb") as file:
        found = jsontext.loads(file.read())
    if not isinstance(found, dict) or not isinstance(found.get("defaultAction"), str):
        raise ValueError("it is no object with a defaultAction")
    rules = found.get("syscalls") or []
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule.get("action") for rule in rules):
        raise ValueError("syscalls is no list of rules with an action each")
    return found


def check(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of these keys of teud.yaml, beyond what each takes alone."""
    for name, limit in settings["default-ulimits"].items():
        if name not in ULIMITS:
            yield "default-ulimits", f"{name} is none; there are {', '.join(ULIMITS)}"
        elif limit.name not in ("", name):
            yield "default-ulimits", f"{name} is named {limit.name} below; leave Name out"
        elif limit.hard != -1 and (limit.soft > limit.hard or limit.soft == -1):
            yield "default-ulimits", f"{name}: the soft limit {limit.soft} is above the hard limit {limit.hard}"
    path = settings["seccomp-profile"]
    if path.startswith("/"):
        try:
            seccomp_profile(path)
        except EngineError as error:
            yield "seccomp-profile", str(error)
