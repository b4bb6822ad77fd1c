# SPDX-License-Identifier: Apache-2.0
"""The builder's side of containerd's gRPC API (teu.grpcclient): of teu-containerd's and of Debian's containerd alike,
with errors of core.errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu import grpcclient
from teu.api.services.namespaces.v1 import namespace_pb2
from teu.buildkit.core import errors

if TYPE_CHECKING:
    import grpc

NAMESPACE = "teu"  # the engine's: what is built is an image of it without a copy
LONG = 3600.0  # seconds, for what moves a layer

STOPPING = "the builder is stopping, and has ended this"


class Client(grpcclient.Client):
    """Calls that run when the builder stops end with Unavailable, those that `on_cancel` ends with Cancelled."""

    def __init__(self, address: str, namespace: str = NAMESPACE) -> None:
        super().__init__(address, namespace)

    def convert(self, error: grpc.RpcError) -> errors.Error:
        """A grpc.RpcError as an error of ours."""
        code = error.code()
        number = code.value[0] if code is not None else errors.Error.code
        name = code.name if code is not None else "UNKNOWN"
        text = error.details() or f"containerd answered {name} without a message"
        return errors.BY_CODE.get(number, errors.Error)(text)

    def cancelled(self) -> errors.Error:
        """As BuildKit says it."""
        return errors.Cancelled("context canceled")

    def stopping(self) -> errors.Error:
        """The next builder can be asked."""
        return errors.Unavailable(STOPPING)

    def ensure_namespace(self, timeout: float = grpcclient.DEADLINE) -> None:
        request = namespace_pb2.CreateNamespaceRequest()
        request.namespace.name = self.namespace
        try:
            self.namespaces.Create(request, timeout=timeout)
        except errors.AlreadyExists:
            pass
