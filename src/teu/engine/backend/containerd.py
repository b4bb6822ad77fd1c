# SPDX-License-Identifier: Apache-2.0
"""The engine's side of containerd's gRPC API. Called by all stores and verbs of the engine.

Stubs appear as attributes (`client.snapshots.Prepare(request)`); every call carries the namespace,
has a deadline, and raises the errors below instead of gRPC's. grpc is imported at the first use:
a daemon that was just started by its socket answers `_ping` before that.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from teu.engine.core import errors
from teu.engine.core.departure import NOBODY, Departure
from teu.oci.labels import expiring

if TYPE_CHECKING:
    import grpc
    from google.protobuf.descriptor import ServiceDescriptor

log = logging.getLogger("teu.engine")

NAMESPACE = "teu"
DEADLINE = 60.0
UNSENT_SECONDS = 10.0
COLLECT_SECONDS = 600.0  # for a garbage collection that is waited for

# attribute: (module below teu.api.services, message module, service)
SERVICES = {
    "containers": ("containers.v1", "containers", "Containers"),
    "content": ("content.v1", "content", "Content"),
    "diff": ("diff.v1", "diff", "Diff"),
    "events": ("events.v1", "events", "Events"),
    "images": ("images.v1", "images", "Images"),
    "introspection": ("introspection.v1", "introspection", "Introspection"),
    "leases": ("leases.v1", "leases", "Leases"),
    "namespaces": ("namespaces.v1", "namespace", "Namespaces"),
    "snapshots": ("snapshots.v1", "snapshots", "Snapshots"),
    "tasks": ("tasks.v1", "tasks", "Tasks"),
    "version": ("version.v1", "version", "Version"),
}

GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


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


def convert(error: grpc.RpcError) -> Error:
    """A grpc.RpcError as an error of ours."""
    code = error.code()
    name = code.name if code is not None else "UNKNOWN"
    return _BY_CODE.get(name, Error)(error.details() or f"containerd answered {name} without a message")


# gRPC would speak of its channel. The client of the engine may ask its successor.
STOPPING = "the engine is stopping, and has ended this; it can be asked again"


class Message(Protocol):
    """A message of protobuf, whose types nobody tells."""

    def SerializeToString(self) -> bytes: ...


class Method:
    """One method of a stub: metadata, deadline, errors. Streams keep their errors until iterated."""

    def __init__(self, client: Client, method: grpc.UnaryUnaryMultiCallable, streaming: bool, name: str) -> None:
        self._client = client
        self._name = name
        self._method = method
        self._streaming = streaming

    def __call__(
        self,
        request: Message | Iterator[Message],
        timeout: float | None = DEADLINE,
        lease: str | None = None,
        departure: Departure = NOBODY,
    ) -> Any:
        """The answer, or the Stream of them. With `departure`, a call that has one answer ends when the client has
        left: Left."""
        import grpc

        metadata = [("containerd-namespace", self._client.namespace)]
        if lease:
            metadata.append(("containerd-lease", lease))
        if self._streaming:

            def make() -> grpc.Call:
                with self._client.open():
                    return self._method(request, metadata=metadata, timeout=timeout, wait_for_ready=True)

            # A stream of requests cannot be sent twice.
            return Stream(self._client, make, again=hasattr(request, "SerializeToString"))
        began = time.monotonic()
        try:
            while True:
                try:
                    # Without wait_for_ready a daemon that its socket is just starting would look unavailable.
                    with self._client.open():
                        if departure is NOBODY:
                            return self._method(request, metadata=metadata, timeout=timeout, wait_for_ready=True)
                        call = self._method.future(request, metadata=metadata, timeout=timeout, wait_for_ready=True)
                        with departure.during(call.cancel):
                            return call.result()
                except grpc.RpcError as error:
                    if not _unsent(error, began):
                        raise convert(error) from None
                    time.sleep(0.01)
        finally:
            log.debug("containerd: %s %.1f ms", self._name, (time.monotonic() - began) * 1000)


def _unsent(error: grpc.RpcError, began: float) -> bool:
    """Refused by the kernel, so never received: containerd has died, and the connection is not yet known to be dead.
    Its successor can be asked."""
    return "Broken pipe" in (error.details() or "") and time.monotonic() - began < UNSENT_SECONDS


class Stream:
    """The answers of a call, one after the other."""

    def __init__(self, client: Client, make: Callable[[], grpc.Call], again: bool) -> None:
        self._client = client
        self._make = make
        self._again = again
        self._call = make()

    def __iter__(self) -> Iterator[Any]:
        import grpc

        began = time.monotonic()
        again = self._again
        while True:
            try:
                messages = iter(self._call)
                while True:
                    with self._client.open():
                        try:
                            message = next(messages)
                        except StopIteration:
                            return
                    again = False
                    yield message
            except grpc.RpcError as error:
                if not again or not _unsent(error, began):
                    raise convert(error) from None
                time.sleep(0.01)
                self._call = self._make()

    def cancel(self) -> None:
        self._call.cancel()

    def alive(self) -> bool:
        return bool(self._call.is_active())


class Service:
    """One of containerd's services; its methods are the attributes."""

    def __init__(self, client: Client, stub: object, descriptor: ServiceDescriptor) -> None:
        for method in descriptor.methods:
            streaming = "MultiCallable" in (kind := type(getattr(stub, method.name)).__name__) and not (
                kind.startswith("_UnaryUnary")
            )
            name = f"{descriptor.name}.{method.name}"
            setattr(self, method.name, Method(client, getattr(stub, method.name), streaming, name))

    def __getattr__(self, name: str) -> Method:
        raise AttributeError(f"containerd has no method {name} in this service")


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


class Client:
    """Lazy: nothing is imported or connected before the first attribute is used."""

    containers: Service
    content: Service
    diff: Service
    events: Service
    images: Service
    introspection: Service
    leases: Service
    namespaces: Service
    snapshots: Service
    tasks: Service
    version: Service

    def __init__(self, address: str, namespace: str = NAMESPACE) -> None:
        self.address = address.removeprefix("unix://")
        self.namespace = namespace
        self._lock = threading.RLock()
        self._channel: grpc.Channel | None = None
        self._closed = False
        # What the sweep must leave alone, and that it is called for (teu.engine.lifecycle.sweep).
        self.working = Working()
        self.untidy = threading.Event()

    def channel(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                import grpc

                self._channel = grpc.insecure_channel(f"unix:{self.address}", options=GRPC_OPTIONS)
            return self._channel

    def __getattr__(self, name: str) -> Service:
        if name not in SERVICES:
            raise AttributeError(name)
        package, module, service = SERVICES[name]
        with self._lock:
            messages = importlib.import_module(f"teu.api.services.{package}.{module}_pb2")
            stubs = importlib.import_module(f"teu.api.services.{package}.{module}_pb2_grpc")
            stub = getattr(stubs, f"{service}Stub")(self.channel())
            wrapped = Service(self, stub, messages.DESCRIPTOR.services_by_name[service])
            setattr(self, name, wrapped)
            return wrapped

    def listens(self) -> bool:
        """Whether anybody does, or systemd for it. A call waits for one who may be about to."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def ensure_namespace(self, timeout: float = DEADLINE) -> None:
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

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """What fails in it after the close fails because of that: Unavailable. A closed channel raises ValueError."""
        import grpc

        try:
            yield
        except (grpc.RpcError, ValueError):
            if self._closed:
                raise Unavailable(STOPPING) from None
            raise

    def close(self) -> None:
        """The engine stops."""
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()
                self._channel = None
