# SPDX-License-Identifier: Apache-2.0
"""Streaming: clients open named streams, the transfer service takes them up by name.

The first message of a call is a StreamInit with the name; it is answered with an Empty when the stream is registered.
What is sent afterwards belongs to whoever took the stream. The call lasts until that one closes it or the client goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf import any_pb2, empty_pb2

from teu.api.services.streaming.v1 import streaming_pb2
from teu.containerd.core.errors import InvalidArgument
from teu.containerd.core.events import pack
from teu.containerd.core.streams import CLOSED
from teu.containerd.server.rpc import Call, Server
from teu.containerd.state import Context


class Streaming:
    """containerd.services.streaming.v1.Streaming over `core.streams`."""

    def __init__(self, context: Context) -> None:
        self._streams = context.streams

    async def Stream(self, requests: AsyncIterator[any_pb2.Any], call: Call) -> AsyncIterator[any_pb2.Any]:
        """A stream that other calls of the same namespace find by the id in its first message, which is answered when
        it is known. What the client sends goes to them, what they send to the client, until either ends it.
        INVALID_ARGUMENT for another first message, ALREADY_EXISTS for an id that is in use."""
        namespace = call.namespace
        first = await anext(aiter(requests), None)
        if first is None:
            return
        if first.type_url.rpartition("/")[2] != streaming_pb2.StreamInit.DESCRIPTOR.full_name:
            raise InvalidArgument(f"a stream begins with StreamInit, not with {first.type_url}")
        name = streaming_pb2.StreamInit.FromString(first.value).id
        stream = self._streams.register(namespace, name)

        async def read() -> None:
            try:
                async for message in requests:
                    await stream.incoming.put(message)
            finally:
                await stream.incoming.put(CLOSED)

        reader = asyncio.create_task(read())
        try:
            accepted = any_pb2.Any()
            pack(accepted, empty_pb2.Empty())
            yield accepted
            while (message := await stream.outgoing.get()) is not CLOSED:
                yield message
        finally:
            self._streams.forget(namespace, name)
            reader.cancel()


def register(server: Server, context: Context) -> None:
    server.add(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"], Streaming(context))
