# SPDX-License-Identifier: Apache-2.0
"""The engine's event bus: publish for every verb, subscribe for `GET /events` and internal waiters.

The last EVENTS_KEPT events are remembered for `since`. A slow subscriber is cut off, never waited for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import Any

Event = dict[str, Any]

EVENTS_KEPT = 1024
QUEUE_LIMIT = 4096


class Events:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._subscribers: list[queue.Queue[Event | None]] = []

    def publish(self, kind: str, action: str, actor: str, attributes: dict[str, str] | None = None) -> None:
        now = time.time_ns()
        event: Event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": attributes or {}},
            "scope": "local",
            "time": now // 1_000_000_000,
            "timeNano": now,
        }
        if kind in ("container", "image"):
            event = {"status": action, "id": actor, **event}
            if kind == "container" and attributes and "image" in attributes:
                event["from"] = attributes["image"]
        with self._lock:
            self._kept.append(event)
            for subscriber in tuple(self._subscribers):
                try:
                    subscriber.put_nowait(event)
                except queue.Full:
                    self._subscribers.remove(subscriber)

    def subscribe(self) -> tuple[list[Event], queue.Queue[Event | None]]:
        """What is remembered, and a queue of what follows. None in the queue: the daemon stops."""
        mine: queue.Queue[Event | None] = queue.Queue(QUEUE_LIMIT)
        with self._lock:
            self._subscribers.append(mine)
            return list(self._kept), mine

    def unsubscribe(self, mine: queue.Queue[Event | None]) -> None:
        with self._lock:
            if mine in self._subscribers:
                self._subscribers.remove(mine)

    def subscribers(self) -> int:
        return len(self._subscribers)

    def is_subscribed(self, mine: queue.Queue[Event | None]) -> bool:
        return mine in self._subscribers

    def close(self) -> None:
        with self._lock:
            for subscriber in self._subscribers:
                try:
                    subscriber.put_nowait(None)
                except queue.Full:
                    pass
