# SPDX-License-Identifier: Apache-2.0
"""NOTIFY_SOCKET: let a container say READY to systemd (sd_notify(3)), as runc does.

A folder of the container's state is bound to /run/notify in the container. The socket in it is
made by the command that lets the process go (run or start), which passes READY=1 on to our own
NOTIFY_SOCKET, followed by the MAINPID. Called by teu.runc.launch, run and start.
"""

from __future__ import annotations

import os
import select
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_DGRAM, SOL_SOCKET, socket
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INSIDE = "/run/notify"
_BARRIER_WAIT = 5_000  # milliseconds, as systemd-notify(1)


def wanted() -> str:
    return os.environ.get("NOTIFY_SOCKET", "")


def prepare(spec: dict[str, Any], folder: str) -> None:
    """Add the mount and the variable to the configuration; make the folder."""
    os.mkdir(folder + "/notify", 0o755)
    mount = {
        "destination": INSIDE,
        "type": "bind",
        "source": folder + "/notify",
        "options": ["bind", "nosuid", "noexec", "nodev", "ro"],
    }
    spec["mounts"] = [*(spec.get("mounts") or ()), mount]
    process = spec["process"]
    process["env"] = [*(process.get("env") or ()), f"NOTIFY_SOCKET={INSIDE}/notify.sock"]


def listen(folder: str) -> socket | None:
    """The container's socket; None where create was not asked to prepare for it."""
    if not os.path.isdir(folder + "/notify"):
        return None
    path = folder + "/notify/notify.sock"
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    server = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    server.bind(path)
    os.chmod(path, 0o777)  # the folder decides who gets here, and any user of the container may
    return server


def relay(server: socket, pid: int) -> None:
    """Wait for READY=1 or the end of pid; pass READY and MAINPID on."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(server.fileno(), select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    try:
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if server.fileno() in ready:
                for line in server.recv(4096).split(b"\n"):
                    if line.startswith(b"READY="):
                        _tell_host(line, pid)
                        return
            elif pidfd in ready:
                return
    finally:
        os.close(pidfd)
        server.close()


def _tell_host(ready: bytes, pid: int) -> None:
    path = wanted()
    host = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        host.connect("\0" + path[1:] if path.startswith("@") else path)
        host.send(ready + b"\n")
        host.send(b"MAINPID=%d\n" % pid)
        _barrier(host)
    finally:
        host.close()


def _barrier(host: socket) -> None:
    """Stay until systemd has read all that (sd_notify_barrier(3)): it asks who we are, and we are about to leave."""
    ours, theirs = os.pipe()
    try:
        host.sendmsg([b"BARRIER=1"], [(SOL_SOCKET, SCM_RIGHTS, theirs.to_bytes(4, byteorder))])
        os.close(theirs)
        theirs = -1
        poll = select.poll()
        poll.register(ours, 0)  # the hang-up when its last copy is closed
        poll.poll(_BARRIER_WAIT)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def relay_aside(server: socket, pid: int) -> None:
    """relay() in a process of its own, for a run in the foreground."""
    if os.fork() == 0:
        try:
            relay(server, pid)
        finally:
            os._exit(0)
    server.close()
