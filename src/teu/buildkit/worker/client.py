# SPDX-License-Identifier: Apache-2.0
"""The builder's side of containerd's gRPC API: of teu-containerd's and of Debian's containerd alike.

Stubs are attributes (`client.snapshots.Prepare(request, lease=id)`); every call carries the namespace, has a deadline,
and raises errors of core.errors in place of gRPC's. The connection is made at the first use.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc

from teu.api.services.namespaces.v1 import namespace_pb2
from teu.buildkit.core import errors

NAMESPACE = "teu"  # the engine's: what is built is an image of it without a copy
DEADLINE = 60.0  # seconds, for what the daemon answers at once
LONG = 3600.0  # for what moves a layer
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

STOPPING = "the builder is stopping, and has ended this"

# What a caller gives to end a call early: `on_cancel` of core.op.Context.
OnCancel = Callable[[Callable[[], None]], AbstractContextManager[None]]


def convert(error: Any) -> errors.Error:
    """A grpc.RpcError as an error of ours."""
    code = error.code()
    number = code.value[0] if code is not None else errors.Error.code
    text = error.details() or f"containerd answered {code.name if code is not None else 'UNKNOWN'} without a message"
    return errors.BY_CODE.get(number, errors.Error)(text)


class _Method:
    """One method of a stub."""

    def __init__(self, client: Client, method: Any, streaming: bool) -> None:
        self._client = client
        self._method = method
        self._streaming = streaming

    def __call__(
        self,
        request: Any,
        timeout: float | None = DEADLINE,
        lease: str | None = None,
        on_cancel: OnCancel | None = None,
    ) -> Any:
        """With `on_cancel` a call that has one answer ends when it is told so: Cancelled. A call of many answers is a
        Stream, whose errors come where it is iterated."""
        metadata = [("containerd-namespace", self._client.namespace)]
        if lease:
            metadata.append(("containerd-lease", lease))
        if self._streaming:

            def make() -> Any:
                with self._client.open():
                    return self._method(request, metadata=metadata, timeout=timeout, wait_for_ready=True)

            # A stream of requests cannot be sent twice.
            return Stream(self._client, make, again=hasattr(request, "SerializeToString"))
        began = time.monotonic()
        while True:
            try:
                # Without wait_for_ready a daemon that its socket is just starting would look unavailable.
                with self._client.open():
                    if on_cancel is None:
                        return self._method(request, metadata=metadata, timeout=timeout, wait_for_ready=True)
                    call = self._method.future(request, metadata=metadata, timeout=timeout, wait_for_ready=True)
                    with on_cancel(call.cancel):
                        return _result(call)
            except grpc.RpcError as error:
                if not _unsent(error, began):
                    raise convert(error) from None
                time.sleep(0.01)


def _result(call: Any) -> Any:
    try:
        return call.result()
    except grpc.FutureCancelledError:
        raise errors.Cancelled("context canceled") from None


def _unsent(error: Any, began: float) -> bool:
    """Refused by the kernel, so never received: containerd has died, and the connection is not yet known to be dead.
    Its successor can be asked."""
    return "Broken pipe" in (error.details() or "") and time.monotonic() - began < UNSENT_SECONDS


class Stream:
    """The answers of a call that has many. Iterate it once; `cancel` by any thread ends it with Cancelled."""

    def __init__(self, client: Client, make: Callable[[], Any], again: bool) -> None:
        self._client = client
        self._make = make
        self._again = again
        self._call = make()

    def __iter__(self) -> Iterator[Any]:
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


class _Service:
    def __init__(self, client: Client, stub: Any, descriptor: Any) -> None:
        for method in descriptor.methods:
            # One answer or many: the stub's own kind of callable says so.
            kind = type(getattr(stub, method.name)).__name__
            streaming = "MultiCallable" in kind and not kind.startswith("_UnaryUnary")
            setattr(self, method.name, _Method(client, getattr(stub, method.name), streaming))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"containerd has no method {name} in this service")


class Client:
    """`address`: the path of containerd's socket. Methods may be called by any thread."""

    containers: Any
    content: Any
    diff: Any
    events: Any
    images: Any
    introspection: Any
    leases: Any
    namespaces: Any
    snapshots: Any
    tasks: Any
    version: Any

    def __init__(self, address: str, namespace: str = NAMESPACE) -> None:
        self.address = address.removeprefix("unix://")
        self.namespace = namespace
        self._lock = threading.RLock()
        self._channel: Any = None
        self._closed = False

    def channel(self) -> Any:
        with self._lock:
            if self._closed:
                raise errors.Unavailable(STOPPING)
            if self._channel is None:
                self._channel = grpc.insecure_channel(f"unix:{self.address}", options=OPTIONS)
            return self._channel

    def __getattr__(self, name: str) -> Any:
        if name not in SERVICES:
            raise AttributeError(name)
        package, module, service = SERVICES[name]
        with self._lock:
            messages = importlib.import_module(f"teu.api.services.{package}.{module}_pb2")
            stubs = importlib.import_module(f"teu.api.services.{package}.{module}_pb2_grpc")
            stub = getattr(stubs, f"{service}Stub")(self.channel())
            wrapped = _Service(self, stub, messages.DESCRIPTOR.services_by_name[service])
            setattr(self, name, wrapped)
            return wrapped

    def ensure_namespace(self, timeout: float = DEADLINE) -> None:
        request = namespace_pb2.CreateNamespaceRequest()
        request.namespace.name = self.namespace
        try:
            self.namespaces.Create(request, timeout=timeout)
        except errors.AlreadyExists:
            pass

    @contextmanager
    def open(self) -> Iterator[None]:
        """What fails in it after the close fails because of that: Unavailable. A closed channel raises ValueError."""
        try:
            yield
        except (grpc.RpcError, ValueError):
            if self._closed:
                raise errors.Unavailable(STOPPING) from None
            raise

    def close(self) -> None:
        """The builder stops: calls that run end with Unavailable."""
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()
                self._channel = None
