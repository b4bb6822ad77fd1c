# SPDX-License-Identifier: Apache-2.0
"""Namespaces: the one service that needs no namespace header."""

from __future__ import annotations

from google.protobuf import empty_pb2

from teu.api.services.namespaces.v1 import namespace_pb2
from teu.containerd.server.rpc import Call, Server, quick
from teu.containerd.state import Context


class Namespaces:
    """containerd.services.namespaces.v1.Namespaces over `stores.namespaces`, whose errors it answers."""

    def __init__(self, context: Context) -> None:
        self._store = context.namespaces

    @quick
    def Get(self, request: namespace_pb2.GetNamespaceRequest, call: Call) -> namespace_pb2.GetNamespaceResponse:
        found = namespace_pb2.Namespace(name=request.name, labels=self._store.labels(request.name))
        return namespace_pb2.GetNamespaceResponse(namespace=found)

    @quick
    def List(self, request: namespace_pb2.ListNamespacesRequest, call: Call) -> namespace_pb2.ListNamespacesResponse:
        return namespace_pb2.ListNamespacesResponse(
            namespaces=[namespace_pb2.Namespace(name=name, labels=labels) for name, labels in self._store.all().items()]
        )

    def Create(
        self, request: namespace_pb2.CreateNamespaceRequest, call: Call
    ) -> namespace_pb2.CreateNamespaceResponse:
        self._store.create(request.namespace.name, dict(request.namespace.labels))
        return namespace_pb2.CreateNamespaceResponse(namespace=request.namespace)

    def Update(
        self, request: namespace_pb2.UpdateNamespaceRequest, call: Call
    ) -> namespace_pb2.UpdateNamespaceResponse:
        wanted = request.namespace
        self._store.update(wanted.name, dict(wanted.labels), list(request.update_mask.paths))
        return namespace_pb2.UpdateNamespaceResponse()  # containerd's is empty, too

    def Delete(self, request: namespace_pb2.DeleteNamespaceRequest, call: Call) -> empty_pb2.Empty:
        self._store.delete(request.name)
        return empty_pb2.Empty()


def register(server: Server, context: Context) -> None:
    server.add(namespace_pb2.DESCRIPTOR.services_by_name["Namespaces"], Namespaces(context))
