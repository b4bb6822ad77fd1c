# SPDX-License-Identifier: Apache-2.0
"""The sockets that shims listen at, and those that killed shims have left there."""

from __future__ import annotations

import os
import socket
import stat
import time

from teu.containerd.runtime.bundle import remove_file

# where our shims listen, those of other daemons on this host as well
SOCKETS = "/run/teu/s"
# how old a socket must be to be removed: one that is just being made looks the same
DEAD_SECONDS = 2.0


def prune_sockets(folder: str = SOCKETS) -> None:
    """Remove the sockets of shims that were killed; also of those whose bundles nobody knows any more (blocking)."""
    try:
        paths = [os.path.join(folder, name) for name in os.listdir(folder)]
        with open("/proc/net/unix", errors="surrogateescape") as table:
            bound = {line.rsplit(" ", 1)[-1].rstrip("\n") for line in table}
    except OSError:
        return
    for path in paths:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if not stat.S_ISSOCK(status.st_mode) or path in bound or time.time() - status.st_mtime < DEAD_SECONDS:
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(path)  # the table is that of our network namespace alone
            except ConnectionRefusedError:
                remove_file(path)
            except OSError:
                pass
