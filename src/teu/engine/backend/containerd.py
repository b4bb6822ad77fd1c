# SPDX-License-Identifier: Apache-2.0
"""The engine's side of containerd's gRPC API (teu.grpcclient), with the errors below. Called by all stores and verbs of
the engine."""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from teu import grpcclient
from teu.engine.core import errors
from teu.oci.labels import expiring

if TYPE_CHECKING:
    import grpc

NAMESPACE = "teu"
ASKED_SECONDS = 5.0  # for what is asked by the way
COLLECT_SECONDS = 600.0  # for a garbage collection that is waited for


class Error(errors.EngineError):
    """containerd's answer was an error that has no narrower class here."""


class NotFound(Error):
    status = 404


class AlreadyExists(Error):
    status = 409


class InvalidArgument(Error):
    status = 400


class FailedPrecondition(Error):
    status = 409


class Unavailable(Error):
    status = 503


_BY_CODE = {
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "INVALID_ARGUMENT": InvalidArgument,
    "OUT_OF_RANGE": InvalidArgument,
    "FAILED_PRECONDITION": FailedPrecondition,
    "UNAVAILABLE": Unavailable,
    # Nothing here cancels a call that has one answer: a daemon that is stopping does.
    "CANCELLED": Unavailable,
    "DEADLINE_EXCEEDED": Unavailable,
}

# gRPC would speak of its channel. The client of the engine may ask its successor.
STOPPING = "the engine is stopping, and has ended this; it can be asked again"


class Working:
    """Names that threads of this daemon work on; two may work on the same one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: collections.Counter[str] = collections.Counter()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        with self._lock:
            self._names[name] += 1

    def remove(self, name: str) -> None:
        """As often as it was added."""
        with self._lock:
            self._names[name] -= 1
            if not self._names[name]:
                del self._names[name]


class Client(grpcclient.Client):
    """Of the engine: it has one."""

    def __init__(self, address: str, namespace: str = NAMESPACE) -> None:
        super().__init__(address, namespace)
        # What the sweep must leave alone, and that it is called for (teu.engine.lifecycle.sweep).
        self.working = Working()
        self.untidy = threading.Event()

    def convert(self, error: grpc.RpcError) -> Error:
        """A grpc.RpcError as an error of ours."""
        code = error.code()
        name = code.name if code is not None else "UNKNOWN"
        return _BY_CODE.get(name, Error)(error.details() or f"containerd answered {name} without a message")

    def cancelled(self) -> Error:
        """Nobody sees it: whose client left raises Left (engine.core.departure)."""
        return Unavailable("the client has left")

    def stopping(self) -> Error:
        """The client of the engine may ask its successor."""
        return Unavailable(STOPPING)

    def listens(self) -> bool:
        """Whether anybody does, or systemd for it. A call waits for one who may be about to."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def wakes(self) -> bool:
        """Whether it wakes an engine that is away when a task ends: teu-containerd does (`wake` of its configuration),
        and says who it is behind containerd's version; containerd knows nobody who is not connected. Raises Error."""
        from google.protobuf import empty_pb2

        return "+teu" in self.version.Version(empty_pb2.Empty(), timeout=ASKED_SECONDS).version

    def ensure_namespace(self, timeout: float = grpcclient.DEADLINE) -> None:
        from teu.api.services.namespaces.v1 import namespace_pb2

        request = namespace_pb2.CreateNamespaceRequest()
        request.namespace.name = self.namespace
        try:
            self.namespaces.Create(request, timeout=timeout)
        except AlreadyExists:
            pass

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[None]:
        """This daemon is making `name` in containerd (a lease, an ingest, a snapshot). What breaks is swept afterwards:
        its own clean-up may have failed with it, because containerd had died."""
        self.working.add(name)
        tidy = False
        try:
            yield
            tidy = True
        finally:
            self.working.remove(name)
            if not tidy:
                self.untidy.set()

    @contextlib.contextmanager
    def lease(self, expire: int = 3600) -> Iterator[str]:
        """What is made under the lease is kept from garbage collection until the block ends."""
        from teu.api.services.leases.v1 import leases_pb2

        identity = f"teud-{uuid.uuid4().hex}"
        request = leases_pb2.CreateRequest(id=identity, labels=expiring(expire))
        deleted = broken = True
        with self.making(identity):
            self.leases.Create(request)
            try:
                yield identity
                broken = False
            finally:
                try:
                    # What failed has left garbage, maybe on a full disk: that is collected before anyone is told.
                    self.leases.Delete(leases_pb2.DeleteRequest(id=identity, sync=broken), timeout=COLLECT_SECONDS)
                except Error:
                    deleted = False
        if not deleted:
            self.untidy.set()
