# SPDX-License-Identifier: Apache-2.0
"""Containers: the records, by name of the namespace in the header."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import empty_pb2

from teu.api.services.containers.v1 import containers_pb2
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context


class Containers:
    """containerd.services.containers.v1.Containers over `stores.containers`, whose errors it answers."""

    def __init__(self, context: Context) -> None:
        self._store = context.containers

    @quick
    def Get(self, request: containers_pb2.GetContainerRequest, call: Call) -> containers_pb2.GetContainerResponse:
        """A container's record. NOT_FOUND."""
        return containers_pb2.GetContainerResponse(container=self._store.get(call.namespace, request.id))

    def List(self, request: containers_pb2.ListContainersRequest, call: Call) -> containers_pb2.ListContainersResponse:
        """The records that one of the filters fits, all of them without filters. INVALID_ARGUMENT for a filter that is
        none."""
        found = self._store.find(call.namespace, request.filters)
        return containers_pb2.ListContainersResponse(containers=found)

    def ListStream(
        self, request: containers_pb2.ListContainersRequest, call: Call
    ) -> Iterator[containers_pb2.ListContainerMessage]:
        """As List, a message for each record: for more of them than one message holds."""
        for container in self._store.find(call.namespace, request.filters):
            yield containers_pb2.ListContainerMessage(container=container)

    def Create(
        self, request: containers_pb2.CreateContainerRequest, call: Call
    ) -> containers_pb2.CreateContainerResponse:
        """Keep a record: durable when this answers. ALREADY_EXISTS, INVALID_ARGUMENT. Nothing is started, and no
        snapshot is looked at."""
        return containers_pb2.CreateContainerResponse(container=self._store.create(call.namespace, request.container))

    def Update(
        self, request: containers_pb2.UpdateContainerRequest, call: Call
    ) -> containers_pb2.UpdateContainerResponse:
        """Take over the fields that the mask names, or all that may change without a mask; the record as it is then.
        NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION for a damaged record."""
        updated = self._store.update(call.namespace, request.container, list(request.update_mask.paths))
        return containers_pb2.UpdateContainerResponse(container=updated)

    def Delete(self, request: containers_pb2.DeleteContainerRequest, call: Call) -> empty_pb2.Empty:
        """Remove a record; its task and its snapshot are not touched, but the snapshot may be garbage now.
        NOT_FOUND."""
        self._store.delete(call.namespace, request.id)
        return empty_pb2.Empty()


def register(server: Server, context: Context) -> None:
    server.add(containers_pb2.DESCRIPTOR.services_by_name["Containers"], Containers(context))
