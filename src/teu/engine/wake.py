# SPDX-License-Identifier: Apache-2.0
"""Wakes the container daemon before anything else. Called by bin/teud as its first act.

Both daemons are started by connections, and each needs a few hundred milliseconds of imports before it serves. teud's
first connection to the other would come after its own; one at the very beginning has systemd start the other at the
same time. That connection says nothing and is closed at once: it only has to have been there.
"""

from __future__ import annotations

import _socket


def wake(words: list[str]) -> None:
    """Connect to the socket that --containerd names among the words of the command line, if it does."""
    if "--validate" in words or "-v" in words or "--version" in words or "-h" in words or "--help" in words:
        return
    address = ""
    for word, after in zip(words, [*words[1:], ""]):
        if word == "--containerd":
            address = after
        elif word.startswith("--containerd="):
            address = word.partition("=")[2]
    if not address:
        return
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    try:
        sock.connect(address.removeprefix("unix://"))
    except OSError:
        pass  # who needs it will say what is wrong
    finally:
        sock.close()
