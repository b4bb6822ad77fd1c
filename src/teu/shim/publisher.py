# SPDX-License-Identifier: Apache-2.0
"""Publishes the shim's events to containerd: in order, each once, kept while containerd is away.

One event is under way at a time.  When the connection breaks before its answer, it is sent again on
the next one: containerd may then see it twice, but never misses it.
"""

from __future__ import annotations

import time

from teu.linux import sockets
from teu.ttrpc import frames
from teu.ttrpc.messages import EVENTS_SERVICE, decode, encode, encode_any, timestamp
from teu.ttrpc.server import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from teu.shim.loop import Loop
    from teu.ttrpc.codec import Message
else:
    from _collections import deque

TOPICS = {
    "TaskCreate": "/tasks/create",
    "TaskStart": "/tasks/start",
    "TaskExit": "/tasks/exit",
    "TaskDelete": "/tasks/delete",
    "TaskOOM": "/tasks/oom",
    "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started",
    "TaskPaused": "/tasks/paused",
    "TaskResumed": "/tasks/resumed",
    "TaskCheckpointed": "/tasks/checkpointed",
}

RETRY_FIRST, RETRY_MAX = 0.05, 2.0
# An event that containerd itself refuses is tried this often, then dropped.
ATTEMPTS_MAX = 5


class _Link(Connection):
    def __init__(self, loop: Loop, peer: sockets.Socket, publisher: Publisher) -> None:
        self._publisher = publisher
        self.stream = -1
        super().__init__(loop, peer)

    def on_close(self) -> None:
        self._publisher.on_disconnect()

    def on_frame(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        if kind == frames.RESPONSE and stream == self.stream:
            answer = decode("ttrpc.Response", data)
            self._publisher.on_answer(not answer["status"] or not answer["status"]["code"])


class Publisher:
    def __init__(self, loop: Loop, address: str, namespace: str, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._path = address.removeprefix("unix://")
        self._namespace = namespace
        self._log = log
        self._queue: deque[bytes] = deque()
        self._link: _Link | None = None
        self._busy = False
        self._attempts = 0
        self._delay = RETRY_FIRST
        self._retrying = False

    @property
    def pending(self) -> int:
        """Events not yet acknowledged by containerd."""
        return len(self._queue)

    def publish(self, name: str, event: Message) -> None:
        """Queue an event of that name (TaskExit and so on), stamped with the time of now."""
        if not self._path:
            return
        envelope = {
            "timestamp": timestamp(time.time_ns()),
            "namespace": self._namespace,
            "topic": TOPICS[name],
            "event": encode_any("containerd.events." + name, event),
        }
        payload = encode("containerd.services.events.ttrpc.v1.ForwardRequest", {"envelope": envelope})
        self._queue.append(
            encode(
                "ttrpc.Request",
                {
                    "service": EVENTS_SERVICE,
                    "method": "Forward",
                    "payload": payload,
                    "metadata": [{"key": "containerd-namespace-ttrpc", "value": self._namespace}],
                },
            )
        )
        self._send()

    def _send(self) -> None:
        if self._busy or self._retrying or not self._queue:
            return
        if self._link is None:
            peer = sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC | sockets.SOCK_NONBLOCK)
            try:
                peer.connect(self._path)
            except OSError:
                peer.close()
                self._retry()
                return
            self._link = _Link(self._loop, peer, self)
        self._busy = True
        self._link.stream += 2
        self._link.send(frames.pack(self._link.stream, frames.REQUEST, self._queue[0]))

    def _retry(self) -> None:
        if not self._retrying:
            self._retrying = True
            self._loop.after(self._delay, self._again)
            self._delay = min(self._delay * 2, RETRY_MAX)

    def _again(self) -> None:
        self._retrying = False
        self._send()

    def on_answer(self, accepted: bool) -> None:
        self._busy = False
        self._attempts += 1
        if accepted or self._attempts >= ATTEMPTS_MAX:
            if not accepted:
                self._log("containerd refused an event: dropped")
            self._queue.popleft()
            self._attempts = 0
            self._delay = RETRY_FIRST
            self._send()
        else:
            self._retry()

    def on_disconnect(self) -> None:
        self._link = None
        if self._busy:
            self._busy = False
            self._retry()

    def close(self) -> None:
        self._queue.clear()
        if self._link:
            self._link.close()
