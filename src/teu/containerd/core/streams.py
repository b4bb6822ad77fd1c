# SPDX-License-Identifier: Apache-2.0
"""Named streams between clients and the transfer service: opened by services.streaming, taken by name."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf import any_pb2

from teu.containerd.core.errors import AlreadyExists, InvalidArgument, NotFound
from teu.containerd.core.events import pack

CLOSED = object()
_DEPTH = 64  # messages waiting in either direction: the windows of the users are smaller


class Stream:
    """One named stream, on the event loop."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue(_DEPTH)
        self.outgoing: asyncio.Queue[Any] = asyncio.Queue(_DEPTH)
        self.closed = False

    async def receive(self) -> Any | None:
        """The client's next message (an Any), or None at its end."""
        message = await self.incoming.get()
        return None if message is CLOSED else message

    async def send(self, message: Any) -> None:
        """Queue a message for the client; waits while it is far behind."""
        packed = any_pb2.Any()
        pack(packed, message)
        await self.outgoing.put(packed)

    async def close(self) -> None:
        """Tell the client that this was all; again does nothing."""
        if not self.closed:
            self.closed = True
            await self.outgoing.put(CLOSED)


class Streams:
    """All open streams of this daemon, by namespace and name."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], Stream] = {}

    def register(self, namespace: str, name: str) -> Stream:
        """Open a stream. Raises InvalidArgument without a name, AlreadyExists for a name in use."""
        if not name:
            raise InvalidArgument("stream id must not be empty")
        if (namespace, name) in self._streams:
            raise AlreadyExists(f'stream "{name}"')
        stream = self._streams[(namespace, name)] = Stream()
        return stream

    def forget(self, namespace: str, name: str) -> None:
        """Close a stream for those who look it up; again does nothing."""
        self._streams.pop((namespace, name), None)

    def get(self, namespace: str, name: str) -> Stream:
        """The open stream of that name; NotFound where there is none."""
        try:
            return self._streams[(namespace, name)]
        except KeyError:
            raise NotFound(f'stream "{name}"') from None
