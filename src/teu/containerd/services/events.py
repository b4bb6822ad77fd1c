# SPDX-License-Identifier: Apache-2.0
"""Events: the exchange on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf import empty_pb2

from teu.api.services.events.v1 import events_pb2
from teu.api.types import event_pb2
from teu.containerd.server.rpc import Call, Server, held, quick
from teu.containerd.state import Context


class Events:
    """containerd.services.events.v1.Events over the exchange."""

    def __init__(self, context: Context) -> None:
        self._exchange = context.events

    @quick
    def Publish(self, request: events_pb2.PublishRequest, call: Call) -> empty_pb2.Empty:
        """Tell subscribers of an event of this namespace. INVALID_ARGUMENT for a topic that is none."""
        self._exchange.publish(call.namespace, request.topic, request.event)
        return empty_pb2.Empty()

    @quick
    def Forward(self, request: events_pb2.ForwardRequest, call: Call) -> empty_pb2.Empty:
        """Tell subscribers of an event that has its namespace, topic and time already: from a shim, or another
        daemon."""
        self._exchange.forward(request.envelope)
        return empty_pb2.Empty()

    @held
    async def Subscribe(self, request: events_pb2.SubscribeRequest, call: Call) -> AsyncIterator[event_pb2.Envelope]:
        """Events of all namespaces from now on that one of the filters fits, until the client leaves.
        RESOURCE_EXHAUSTED ends it for a client that reads too slowly: none is left out in the middle."""
        async for envelope in self._exchange.subscribe(request.filters):
            yield envelope


def register(server: Server, context: Context) -> None:
    server.add(events_pb2.DESCRIPTOR.services_by_name["Events"], Events(context))
