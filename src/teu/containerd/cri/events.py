# SPDX-License-Identifier: Apache-2.0
"""What happens to pods and containers, for those who would rather be told than ask (kubelet's evented PLEG). Called by
`service`; told by `records`, on the event loop.

While nobody listens, the last minutes are kept for the next who does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from teu.containerd.core.errors import ResourceExhausted
from teu.containerd.cri.records import Container, Pod

KEPT_SECONDS = 300.0
KEPT_MAX = 1000
BEHIND_MAX = 10_000  # events that a listener may be behind


class Event(NamedTuple):
    """One thing that has happened to a pod, or to a container of it."""

    kind: int  # ContainerEventType
    at: int  # nanoseconds since 1970
    pod: Pod
    container: Container | None

    @property
    def id(self) -> str:
        """Of what it has happened to."""
        return self.pod.id if self.container is None else self.container.id


class Events:
    """All of them, in their order."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)
        self._listeners: set[asyncio.Queue[Event | None]] = set()

    def tell(self, kind: int, pod: Pod, container: Container | None) -> None:
        """It has happened just now."""
        event = Event(kind, time.time_ns(), pod, container)
        if not self._listeners:
            self._kept.append(event)
            self._drop_old()
        for queue in tuple(self._listeners):
            if queue.qsize() >= BEHIND_MAX:
                self._listeners.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def _drop_old(self) -> None:
        oldest = time.time_ns() - int(KEPT_SECONDS * 1e9)
        while self._kept and self._kept[0].at < oldest:
            self._kept.popleft()

    async def listen(self) -> AsyncIterator[Event]:
        """From now on, and what is kept. ResourceExhausted for a listener that falls too far behind."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._drop_old()
        for event in self._kept:
            queue.put_nowait(event)
        self._kept.clear()
        self._listeners.add(queue)
        try:
            while (found := await queue.get()) is not None:
                yield found
            raise ResourceExhausted(f"this listener is {BEHIND_MAX} events behind")
        finally:
            self._listeners.discard(queue)
