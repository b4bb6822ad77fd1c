# SPDX-License-Identifier: Apache-2.0
"""A client of containerd's gRPC API, of teu-containerd's and of Debian's containerd alike: the ground of the engine's
(teu.engine.backend.containerd) and of the builder's (teu.buildkit.worker.client).

Stubs are attributes (`client.snapshots.Prepare(request, lease=id)`); every call carries the namespace, has a deadline,
and raises errors of the program in place of gRPC's. Nothing is imported or connected before the first use: a daemon
that was just started by its socket answers before that.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import grpc
    from google.protobuf.descriptor import ServiceDescriptor

log = logging.getLogger("teu.grpcclient")

DEADLINE = 60.0  # seconds, for what the daemon answers at once
UNSENT_SECONDS = 10.0

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

OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

# What a caller gives to end a call early: within the context that it returns, what it was given may be called, once,
# by any thread.
OnCancel = Callable[[Callable[[], object]], AbstractContextManager[None]]


class Message(Protocol):
    """A message of protobuf, whose types nobody tells."""

    def SerializeToString(self) -> bytes: ...


class Method:
    """One method of a stub: metadata, deadline, errors."""

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
        on_cancel: OnCancel | None = None,
    ) -> Any:
        """The answer, or the Stream of them, whose errors come where it is iterated. `timeout` in seconds; None: none.

        With `on_cancel` a call that has one answer ends when it is told so: the client's error for CANCELLED."""
        import grpc  # 60 ms of a start, of which a first answer has no need

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
                        if on_cancel is None:
                            return self._method(request, metadata=metadata, timeout=timeout, wait_for_ready=True)
                        call = self._method.future(request, metadata=metadata, timeout=timeout, wait_for_ready=True)
                        with on_cancel(call.cancel):
                            return self._result(call)
                except grpc.RpcError as error:
                    if not _unsent(error, began):
                        raise self._client.convert(error) from None
                    time.sleep(0.01)
        finally:
            log.debug("containerd: %s %.1f ms", self._name, (time.monotonic() - began) * 1000)

    def _result(self, call: grpc.Future) -> Any:
        import grpc  # as above

        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise self._client.cancelled() from None


def _unsent(error: grpc.RpcError, began: float) -> bool:
    """Refused by the kernel, so never received: containerd has died, and the connection is not yet known to be dead.
    Its successor can be asked."""
    return "Broken pipe" in (error.details() or "") and time.monotonic() - began < UNSENT_SECONDS


class Stream:
    """The answers of a call that has many. Iterate it once; `cancel` by any thread ends it with the client's error."""

    def __init__(self, client: Client, make: Callable[[], grpc.Call], again: bool) -> None:
        self._client = client
        self._make = make
        self._again = again
        self._call = make()

    def __iter__(self) -> Iterator[Any]:
        import grpc  # as above

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
                    raise self._client.convert(error) from None
                time.sleep(0.01)
                self._call = self._make()

    def cancel(self) -> None:
        """End it; harmless after its end."""
        self._call.cancel()

    def alive(self) -> bool:
        """Whether more may come."""
        return bool(self._call.is_active())


class Service:
    """One of containerd's services; its methods are the attributes."""

    def __init__(self, client: Client, stub: object, descriptor: ServiceDescriptor) -> None:
        for method in descriptor.methods:
            # One answer or many: the stub's own kind of callable says so.
            kind = type(getattr(stub, method.name)).__name__
            streaming = "MultiCallable" in kind and not kind.startswith("_UnaryUnary")
            name = f"{descriptor.name}.{method.name}"
            setattr(self, method.name, Method(client, getattr(stub, method.name), streaming, name))

    def __getattr__(self, name: str) -> Method:
        raise AttributeError(f"containerd has no method {name} in this service")


class Client(ABC):
    """Methods may be called by any thread. A program says what its errors are."""

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

    def __init__(self, address: str, namespace: str) -> None:
        """`address`: the path of containerd's socket, with or without unix://."""
        self.address = address.removeprefix("unix://")
        self.namespace = namespace
        self._lock = threading.RLock()
        self._channel: grpc.Channel | None = None
        self._closed = False

    @abstractmethod
    def convert(self, error: grpc.RpcError) -> Exception:
        """The program's error for one of gRPC's."""

    @abstractmethod
    def cancelled(self) -> Exception:
        """The program's error for a call that its caller has ended."""

    @abstractmethod
    def stopping(self) -> Exception:
        """The program's error for a call that ends because the program does."""

    def channel(self) -> grpc.Channel:
        """The connection, which is made at its first use."""
        with self._lock:
            if self._closed:
                raise self.stopping()
            if self._channel is None:
                import grpc  # as above

                self._channel = grpc.insecure_channel(f"unix:{self.address}", options=OPTIONS)
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

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """What fails in it after the close fails because of that. A closed channel raises ValueError."""
        import grpc  # as above

        try:
            yield
        except (grpc.RpcError, ValueError):
            if self._closed:
                raise self.stopping() from None
            raise

    def close(self) -> None:
        """The program stops: calls that run end with its error for that."""
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()
                self._channel = None
