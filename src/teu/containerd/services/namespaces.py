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
        """The labels of a namespace; none for one that does not exist, as dockerd asks before there is one."""
        found = namespace_pb2.Namespace(name=request.name, labels=self._store.labels(request.name))
        return namespace_pb2.GetNamespaceResponse(namespace=found)

    @quick
    def List(self, request: namespace_pb2.ListNamespacesRequest, call: Call) -> namespace_pb2.ListNamespacesResponse:
        """All namespaces."""
        return namespace_pb2.ListNamespacesResponse(
            namespaces=[namespace_pb2.Namespace(name=name, labels=labels) for name, labels in self._store.all().items()]
        )

    def Create(
        self, request: namespace_pb2.CreateNamespaceRequest, call: Call
    ) -> namespace_pb2.CreateNamespaceResponse:
        """Make a namespace. Those that are used without it make themselves. ALREADY_EXISTS, INVALID_ARGUMENT."""
        self._store.create(request.namespace.name, dict(request.namespace.labels))
        return namespace_pb2.CreateNamespaceResponse(namespace=request.namespace)

    def Update(
        self, request: namespace_pb2.UpdateNamespaceRequest, call: Call
    ) -> namespace_pb2.UpdateNamespaceResponse:
        """Change the labels that the mask names, or all; a namespace that is not there is made. INVALID_ARGUMENT for
        another field, FAILED_PRECONDITION for a damaged record."""
        wanted = request.namespace
        self._store.update(wanted.name, dict(wanted.labels), list(request.update_mask.paths))
        return namespace_pb2.UpdateNamespaceResponse()  # containerd's is empty, too

    def Delete(self, request: namespace_pb2.DeleteNamespaceRequest, call: Call) -> empty_pb2.Empty:
        """Remove an empty namespace. NOT_FOUND; FAILED_PRECONDITION where something is in it, with what."""
        self._store.delete(request.name)
        return empty_pb2.Empty()


def register(server: Server, context: Context) -> None:
    server.add(namespace_pb2.DESCRIPTOR.services_by_name["Namespaces"], Namespaces(context))
