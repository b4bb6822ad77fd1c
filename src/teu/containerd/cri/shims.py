# SPDX-License-Identifier: Apache-2.0
"""Containers whose runtime handler names another shim, as containerd's own for runc. Called by `containers`, on
threads.

The pod's shim is ours as ever, and holds nothing of such a container. The other shim stands in the pod's scope, gets
the container's streams as FIFOs, and knows no logs of Kubernetes: a process of ours reads what it writes (teu.shim's
criwriter), which no end of this daemon ends.

    STATE/cri/CONTAINER/log.json            what that process is told
    STATE/cri/CONTAINER/stdout, stderr      the FIFOs, which that process removes when all is written
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress

from teu.containerd.core.errors import Unavailable
from teu.containerd.cri.records import RUNTIME, Pod
from teu.containerd.runtime.bootstrap import find_binary
from teu.containerd.runtime.tasks import Stdio
from teu.linux import cgroup_files

# A pod's shim is in SLICE/SCOPE-ID.scope.
SLICE, SCOPE = "teu.slice", "teu-pod"
READY_SECONDS = 20.0  # for the process that writes a log to be there
GONE_SECONDS = 5.0  # for one that nobody writes to any more to end
_OUTPUTS = ("stdout", "stderr")


def scope_of(pod: Pod) -> str:
    """The path of the cgroup of a pod's scope, in the hierarchy."""
    return f"/{SLICE}/{SCOPE}-{pod.id[:12]}.scope"


def shim_cgroup(pod: Pod) -> str:
    """Where another shim is to stand, in the hierarchy; "" where the pod has no scope."""
    place = f"{scope_of(pod)}/shim"
    return place if os.path.isdir(cgroup_files.place() + place) else ""


def streams(folder: str, pod: Pod, log: str, stdin: str, *, terminal: bool) -> Stdio:
    """The streams of a container, with the process that writes its log to the file, "" for none; `folder` is the
    container's. Raises Unavailable where there is no such process."""
    _clear(folder)
    paths = [os.path.join(folder, name) for name in (_OUTPUTS[:1] if terminal else _OUTPUTS)]
    for path in paths:
        os.mkfifo(path, 0o600)
    place = shim_cgroup(pod)
    with open(os.path.join(folder, "log.json"), "w") as file:
        json.dump({"log": log, "cgroup": cgroup_files.place() + place if place else ""}, file)
    try:
        subprocess.run(
            [find_binary(RUNTIME), "-bundle", folder, "cri-log"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=READY_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip()
        raise Unavailable(f"nobody can write the container's log: {told or error}") from None
    return Stdio(stdin, paths[0], paths[1] if len(paths) > 1 else "", terminal)


def still_writes(folder: str) -> bool:
    """Whether there is a process that writes a container's log, and has not written all of it."""
    return os.path.exists(os.path.join(folder, _OUTPUTS[0]))


def let_go(folder: str) -> bool:
    """End the process that writes a log where no shim has come to write to it; else it ends by itself. Whether there
    was one."""
    found = False
    for name in _OUTPUTS:
        with suppress(OSError):
            os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            found = True
    return found


def _clear(folder: str) -> None:
    """Remove what a daemon has left that ended while it started the container."""
    if let_go(folder):
        until = time.monotonic() + GONE_SECONDS
        while still_writes(folder) and time.monotonic() < until:
            time.sleep(0.01)
    for name in _OUTPUTS:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
