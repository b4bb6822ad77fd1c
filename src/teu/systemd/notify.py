# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): tell the service manager how we are. Called by teud and teu-containerd.

Everything is a no-op outside of a Type=notify service, so that daemons run in the foreground as well.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence


def notify(*lines: str, descriptors: Sequence[int] = ()) -> bool:
    """Send assignments such as "READY=1", with descriptors for FDSTORE=1; whether anyone was told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            rights = struct.pack(f"{len(descriptors)}i", *descriptors)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
            sock.sendmsg([os.fsencode("\n".join(lines))], ancillary, 0, address)
        except OSError:
            return False  # the manager is being restarted; it asks again where it needs to
    return True


def ready(status: str) -> None:
    """Start-up is done (also the end of a reload)."""
    notify("READY=1", f"STATUS={status}")


def status(text: str) -> None:
    """One line for `systemctl status`."""
    notify(f"STATUS={text}")


def reloading() -> None:
    """A reload begins; ready() ends it. The clock is how Type=notify-reload matches it to its signal."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping(text: str = "Stopping") -> None:
    """The service ends on its own account."""
    notify("STOPPING=1", f"STATUS={text}")


def watchdog() -> None:
    """We are alive."""
    notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds between calls of watchdog(): half of what the unit allows; None where it asks for none."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID")
    if not microseconds.isdigit() or int(microseconds) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 2_000_000
