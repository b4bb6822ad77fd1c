# SPDX-License-Identifier: Apache-2.0
"""The event exchange: services and shims publish, subscribers get what their filters let through.

Publishing never waits for a subscriber. Each subscriber has a queue of its own; who reads so slowly that the queue
reaches its bound is cut off with RESOURCE_EXHAUSTED and subscribes again, so memory stays bounded and nobody else
notices. Order is the order of publishing, the same for all.

Right after a start there may be exits to tell and nobody there yet: the shims deliver at once what they had to keep,
while subscribers find their way back with a second or more of delay. Exits of that first time are therefore told to
each who subscribes in it, also if it is after the event.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from google.protobuf import symbol_database

from teu.api.events import (  # noqa: F401  (known by name to filters)
    container_pb2,
    content_pb2,
    image_pb2,
    namespace_pb2,
    sandbox_pb2,
    snapshot_pb2,
    task_pb2,
)
from teu.api.types import event_pb2
from teu.containerd.core.errors import InvalidArgument, ResourceExhausted
from teu.containerd.core.filters import Filter, in_map, parse_all
from teu.containerd.core.identifiers import validate_identifier

log = logging.getLogger("teu.containerd.events")

QUEUE_LIMIT = 65536
EARLY_SECONDS = 30.0  # clients' longest pause between two attempts to connect is 20 s or less
EARLY_TOPICS = ("/tasks/exit", "/tasks/oom", "/sandboxes/exit")
_TOPIC_PART = re.compile(r"[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*")


def validate_topic(topic: str) -> None:
    if not topic:
        raise InvalidArgument("envelope topic must not be empty")
    if not topic.startswith("/"):
        raise InvalidArgument('topic must start with "/"')
    if topic == "/":
        raise InvalidArgument("topic must have at least one component")
    for part in topic[1:].split("/"):
        if len(part) > 76 or not _TOPIC_PART.fullmatch(part):
            raise InvalidArgument(f'invalid topic component "{part}" in "{topic}"')


def decode(any_message: Any) -> Any:
    """The message in an Any, or None when its type is not known here. Type URLs come with or without a prefix."""
    name = any_message.type_url.rpartition("/")[2]
    try:
        kind = symbol_database.Default().GetSymbol(name)
    except KeyError:
        return None
    return kind.FromString(any_message.value)


def pack(any_message: Any, message: Any) -> None:
    """Fill an Any the way containerd does: the bare type name as URL."""
    any_message.type_url = message.DESCRIPTOR.full_name
    any_message.value = message.SerializeToString(deterministic=True)


def _event_field(message: Any, path: Sequence[str]) -> str | None:
    """A field of an event as filters see it: only strings and string maps; sub-messages by further path."""
    descriptor = message.DESCRIPTOR.fields_by_name.get(path[0])
    if descriptor is None:
        return None
    value = getattr(message, path[0])
    if descriptor.message_type is not None:
        if descriptor.message_type.GetOptions().map_entry:
            return in_map(path[1:], value)
        if descriptor.message_type.full_name == "google.protobuf.Any":
            inner = decode(value)
            return _event_field(inner, path[1:]) if inner is not None and len(path) > 1 else None
        return _event_field(value, path[1:]) if len(path) > 1 and descriptor.label != 3 else None
    if descriptor.type == descriptor.TYPE_STRING and descriptor.label != 3:
        return value or None
    return None


def envelope_adaptor(envelope: event_pb2.Envelope) -> Callable[[Sequence[str]], str | None]:
    """What filters see of an envelope: namespace, topic, event.FIELD."""
    decoded: list[Any] = []

    def adapt(path: Sequence[str]) -> str | None:
        if path[0] == "namespace":
            return envelope.namespace or None
        if path[0] == "topic":
            return envelope.topic or None
        if path[0] == "event" and len(path) > 1:
            if not decoded:
                decoded.append(decode(envelope.event))
            return _event_field(decoded[0], path[1:]) if decoded[0] is not None else None
        return None

    return adapt


class Subscription:
    """An async iterator over envelopes; `close()` when done. Made by `Exchange.subscribe` on the event loop."""

    def __init__(self, exchange: Exchange, accept: Filter, limit: int) -> None:
        self._exchange = exchange
        self._accept = accept
        self._limit = limit
        self._queue: deque[event_pb2.Envelope] = deque()
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._overrun = False

    def offer(self, envelope: event_pb2.Envelope, adapt: Callable[[Sequence[str]], str | None]) -> None:
        """Called on the publishing thread, under the exchange's lock."""
        if self._overrun or not self._accept(adapt):
            return
        if len(self._queue) >= self._limit:
            self._overrun = True
        else:
            self._queue.append(envelope)
        if not self._ready.is_set():
            try:
                self._loop.call_soon_threadsafe(self._ready.set)
            except RuntimeError:
                pass  # the loop is closed: the daemon is leaving

    async def __aiter__(self) -> AsyncIterator[event_pb2.Envelope]:
        try:
            while True:
                self._ready.clear()
                while self._queue:
                    yield self._queue.popleft()
                if self._overrun:
                    raise ResourceExhausted(f"subscriber fell more than {self._limit} events behind")
                if not self._queue:
                    await self._ready.wait()
        finally:
            self.close()

    def close(self) -> None:
        self._exchange.drop(self)


class Exchange:
    """Where events are told, and who hears them. Any thread may publish."""

    def __init__(self, queue_limit: int = QUEUE_LIMIT) -> None:
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._listeners: list[Callable[[event_pb2.Envelope], None]] = []
        self._queue_limit = queue_limit
        self._early: deque[event_pb2.Envelope] = deque(maxlen=queue_limit)
        self._early_until = time.monotonic() + EARLY_SECONDS
        self.published = 0

    def publish(self, namespace: str, topic: str, message: Any) -> None:
        """Tell `message`, an event of this daemon's own or an Any received from a client; stamped now."""
        validate_topic(topic)
        envelope = event_pb2.Envelope(namespace=validate_identifier(namespace), topic=topic)
        now = time.time_ns()
        envelope.timestamp.seconds, envelope.timestamp.nanos = divmod(now, 1_000_000_000)
        if message.DESCRIPTOR.full_name == "google.protobuf.Any":
            envelope.event.CopyFrom(message)
        else:
            pack(envelope.event, message)
        self._distribute(envelope)

    def forward(self, envelope: event_pb2.Envelope) -> None:
        """Tell an event that happened elsewhere, under its own namespace, topic and time."""
        validate_identifier(envelope.namespace)
        validate_topic(envelope.topic)
        if not envelope.HasField("event"):
            raise InvalidArgument("event must be set on forwarded event")
        self._distribute(envelope)

    def _distribute(self, envelope: event_pb2.Envelope) -> None:
        adapt = envelope_adaptor(envelope)
        with self._lock:
            self.published += 1
            if self._is_early() and envelope.topic in EARLY_TOPICS:
                self._early.append(envelope)
            for subscription in self._subscriptions:
                subscription.offer(envelope, adapt)
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener(envelope)
            except Exception as error:
                log.error("a listener failed on %s: %s", envelope.topic, error, exc_info=error)

    def subscribe(self, filters: Iterable[str] = ()) -> Subscription:
        """From the event loop only. What is published from now on arrives, and early exits."""
        subscription = Subscription(self, parse_all(filters), self._queue_limit)
        with self._lock:
            if self._is_early():
                for envelope in self._early:
                    subscription.offer(envelope, envelope_adaptor(envelope))
            self._subscriptions.append(subscription)
        return subscription

    def _is_early(self) -> bool:
        if time.monotonic() < self._early_until:
            return True
        self._early.clear()
        return False

    def drop(self, subscription: Subscription) -> None:
        """End a subscription; again does nothing."""
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def listen(self, callback: Callable[[event_pb2.Envelope], None]) -> None:
        """For parts of this daemon: `callback(envelope)` runs on the publishing thread and must be quick."""
        self._listeners.append(callback)

    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)
