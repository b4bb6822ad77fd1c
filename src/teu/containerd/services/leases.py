# SPDX-License-Identifier: Apache-2.0
"""Leases: roots that clients hold while they work."""

from __future__ import annotations

import os
import time

from google.protobuf import empty_pb2

from teu.api.services.leases.v1 import leases_pb2
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context


class Leases:
    """containerd.services.leases.v1.Leases over `stores.leases`, whose errors it answers."""

    def __init__(self, context: Context) -> None:
        self._store = context.leases
        self._collector = context.collector

    def Create(self, request: leases_pb2.CreateRequest, call: Call) -> leases_pb2.CreateResponse:
        """Make a lease, with a name of ours where none is given. ALREADY_EXISTS, INVALID_ARGUMENT."""
        id = request.id or f"{time.time_ns()}-{os.urandom(3).hex()}"
        return leases_pb2.CreateResponse(lease=self._store.create(call.namespace, id, dict(request.labels)))

    def Delete(self, request: leases_pb2.DeleteRequest, call: Call) -> empty_pb2.Empty:
        """End a lease: what it alone kept is garbage; with `sync` it is collected before this answers. NOT_FOUND."""
        self._store.delete(call.namespace, request.id)
        if request.sync:
            self._collector.collect()
        return empty_pb2.Empty()

    @quick
    def List(self, request: leases_pb2.ListRequest, call: Call) -> leases_pb2.ListResponse:
        """The leases that one of the filters fits."""
        return leases_pb2.ListResponse(leases=self._store.find(call.namespace, request.filters))

    def AddResource(self, request: leases_pb2.AddResourceRequest, call: Call) -> empty_pb2.Empty:
        """Let the lease keep something, which need not be there. NOT_FOUND without the lease; INVALID_ARGUMENT for an
        unknown type."""
        self._store.add(call.namespace, request.id, request.resource)
        return empty_pb2.Empty()

    def DeleteResource(self, request: leases_pb2.DeleteResourceRequest, call: Call) -> empty_pb2.Empty:
        """Let the lease keep it no longer; of what it does not keep nothing is said. NOT_FOUND without the lease."""
        self._store.remove(call.namespace, request.id, request.resource)
        return empty_pb2.Empty()

    @quick
    def ListResources(self, request: leases_pb2.ListResourcesRequest, call: Call) -> leases_pb2.ListResourcesResponse:
        """What the lease keeps. NOT_FOUND."""
        return leases_pb2.ListResourcesResponse(resources=self._store.resources(call.namespace, request.id))


def register(server: Server, context: Context) -> None:
    server.add(leases_pb2.DESCRIPTOR.services_by_name["Leases"], Leases(context))
