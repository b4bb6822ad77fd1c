# SPDX-License-Identifier: Apache-2.0
"""Wakes those who want to know of a task's end but may not be running: a connection makes systemd start them.

An engine that is stopped is not subscribed; its socket is held by systemd. Connecting and leaving is enough.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

from teu.api.types import event_pb2

log = logging.getLogger("teu.containerd.wake")

TOPICS = ("/tasks/exit", "/tasks/oom")
_PAUSE = 0.2  # seconds between two knocks: a crowd of exits needs one


class Waker:
    """Knocks on a thread of its own; `sockets` may be changed at any time."""

    def __init__(self, sockets: list[str]) -> None:
        self.sockets = sockets
        self._wanted = threading.Event()
        threading.Thread(target=self._work, name="wake", daemon=True).start()

    def on_event(self, envelope: event_pb2.Envelope) -> None:
        """A listener of the exchange."""
        if self.sockets and envelope.topic in TOPICS:
            self._wanted.set()

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            for address in self.sockets:
                knock(address.removeprefix("unix://"))
            time.sleep(_PAUSE)


def knock(path: str) -> bool:
    """Connect to a socket and leave; whether that went."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as knocking:
            knocking.settimeout(2)
            knocking.connect(path)
        return True
    except OSError as error:
        log.debug("nobody listens on %s: %s", path, error)
        return False
