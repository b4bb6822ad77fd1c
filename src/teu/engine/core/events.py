# SPDX-License-Identifier: Apache-2.0
"""The engine's event bus: publish for every verb, subscribe for `GET /events` and internal waiters.

The last EVENTS_KEPT events are remembered for `since`, or fewer of large ones (a container's labels are in each of its
events): no more than BYTES_KEPT. A slow subscriber is cut off, never waited for.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from teu.engine.core.filters import labels_match

if TYPE_CHECKING:
    from typing import NotRequired, TypedDict

    class Actor(TypedDict):
        ID: str
        Attributes: dict[str, str]

    # The API's EventMessage. `status`, `id` and `from` are what it was before actors.
    Event = TypedDict(
        "Event",
        {
            "Type": str,
            "Action": str,
            "Actor": Actor,
            "scope": str,
            "time": int,
            "timeNano": int,
            "status": NotRequired[str],
            "id": NotRequired[str],
            "from": NotRequired[str],
        },
    )

EVENTS_KEPT = 1024
BYTES_KEPT = 8 << 20
QUEUE_LIMIT = 4096
QUEUE_BYTES = 32 << 20
_OVERHEAD = 512  # of an event without attributes, about


def weight(event: Event | None) -> int:
    """About how many bytes an event takes."""
    if event is None:
        return 0
    return _OVERHEAD + sum(len(key) + len(value) for key, value in event["Actor"]["Attributes"].items())


class Backlog(queue.Queue["Event | None"]):
    """What a subscriber has not taken yet: bounded in number and in bytes."""

    def __init__(self) -> None:
        super().__init__(QUEUE_LIMIT)
        self.bytes = 0

    def add(self, event: Event | None) -> None:
        """Raises queue.Full. An empty one takes any event."""
        if self.bytes and self.bytes + weight(event) > QUEUE_BYTES:
            raise queue.Full
        self.put_nowait(event)

    def _put(self, item: Event | None) -> None:
        self.bytes += weight(item)
        super()._put(item)

    def _get(self) -> Event | None:
        item = super()._get()
        self.bytes -= weight(item)
        return item


class Events:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque()
        self._bytes = 0
        self.published = 0
        self._subscribers: list[Backlog] = []

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
            self.published += 1
            self._kept.append(event)
            self._bytes += weight(event)
            while len(self._kept) > EVENTS_KEPT or self._bytes > BYTES_KEPT and len(self._kept) > 1:
                self._bytes -= weight(self._kept.popleft())
            for subscriber in tuple(self._subscribers):
                try:
                    subscriber.add(event)
                except queue.Full:
                    self._subscribers.remove(subscriber)

    def subscribe(self) -> tuple[list[Event], Backlog]:
        """What is remembered, and a queue of what follows. None in the queue: the daemon stops."""
        mine = Backlog()
        with self._lock:
            self._subscribers.append(mine)
            return list(self._kept), mine

    def unsubscribe(self, mine: Backlog) -> None:
        with self._lock:
            if mine in self._subscribers:
                self._subscribers.remove(mine)

    def save(self, path: str) -> None:
        """Write what is remembered, for an engine that goes on where this one was (`load`). Raises OSError."""
        with self._lock:
            lines = [json.dumps(event) for event in self._kept]
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write("\n".join(lines))

    def load(self, path: str) -> None:
        """Remember what was saved, before all that there is now; the file goes. Nothing where there is none."""
        try:
            with open(path, encoding="utf-8") as file:
                found: list[Event] = [json.loads(line) for line in file]
            os.unlink(path)
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            found = []  # half of a file: it is memory, and no more
        with self._lock:
            self._kept.extendleft(reversed(found))
            self._bytes += sum(map(weight, found))

    def subscribers(self) -> int:
        return len(self._subscribers)

    def is_subscribed(self, mine: Backlog) -> bool:
        return mine in self._subscribers

    def close(self) -> None:
        with self._lock:
            for subscriber in self._subscribers:
                try:
                    subscriber.add(None)
                except queue.Full:
                    pass


def _untagged(name: str) -> str:
    """An image's name without its tag or digest; a registry may have a port."""
    name = name.partition("@")[0]
    rest, colon, tag = name.rpartition(":")
    return rest if colon and "/" not in tag else name


def matches(event: Event, filters: dict[str, list[str]]) -> bool:
    """Whether `GET /events` with these filters tells of it."""
    actor = event["Actor"]
    attributes = actor["Attributes"]
    for key, values in filters.items():
        if not values:
            continue
        if key == "event":
            action = event["Action"]
            if action not in values and action.split(":")[0] not in values:
                return False
        elif key == "type":
            if event["Type"] not in values:
                return False
        elif key == "label":
            if not labels_match(attributes, values):
                return False
        elif key == "scope":
            if event["scope"] not in values:
                return False
        else:
            names = {actor["ID"], attributes.get("name", "")}
            if key == "image":
                if event["Type"] == "container":
                    names = {attributes.get("image", "")}
                names |= {_untagged(name) for name in names}
                if event["Type"] not in ("image", "container") or names.isdisjoint(values):
                    return False
            elif event["Type"] != key or not any(name.startswith(value) for value in values for name in names):
                return False
    return True
