# SPDX-License-Identifier: Apache-2.0
"""sd_listen_fds(3): the sockets that systemd listens on for us. Called by teud and teu-containerd."""

from __future__ import annotations

import os
import socket

SD_LISTEN_FDS_START = 3


def listen_sockets() -> list[tuple[str, socket.socket]]:
    """(name, socket) of every passed socket, in the unit's order; the name is FileDescriptorName=.

    Empty where this process was not socket-activated. The variables are taken out of the environment,
    so that no child believes they are for it; a second call returns nothing.
    """
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for index in range(int(count)):
        descriptor = SD_LISTEN_FDS_START + index
        os.set_inheritable(descriptor, False)
        name = names[index] if index < len(names) else "unknown"
        found.append((name, socket.socket(fileno=descriptor)))
    return found
