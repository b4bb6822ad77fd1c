# SPDX-License-Identifier: Apache-2.0
"""Between gRPC and the services: decode, call, map the error, count what is going on. Called by the daemon, and by
whoever serves a frontend in a container.

A service is a plain class whose methods carry the names of the descriptor's methods:

    def Info(self, request, call)          an answer
    def Status(self, request, call)        a server's stream: an iterator of answers
    def Session(self, requests, call)      a client's stream: an iterator of requests

Each call has a thread of its own. Errors are those of core.errors.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError

from teu.api.grpc.health.v1 import health_pb2
from teu.buildkit.core import errors

log = logging.getLogger("teu.buildkit")

MESSAGE_MAX = 16 << 20  # bytes; BuildKit's own limit
CALLS_MAX = 1000  # at a time: each has a thread while it lasts

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX),
    ("grpc.max_send_message_length", MESSAGE_MAX),
    ("grpc.so_reuseport", 0),
    # Clients hold connections open for as long as a build takes, and ping them.
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
)


class Activity:
    """Whether anybody is being served, and since when nobody is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._last = time.monotonic()

    def begin(self) -> None:
        with self._lock:
            self._calls += 1

    def end(self) -> None:
        with self._lock:
            self._calls -= 1
            self._last = time.monotonic()

    def idle_seconds(self) -> float:
        """0 while there are calls."""
        with self._lock:
            return 0.0 if self._calls else time.monotonic() - self._last


class Call:
    """What a method may ask about the call it serves."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.metadata: tuple[tuple[str, str | bytes], ...] = tuple(
            (str(key), value) for key, value in context.invocation_metadata() or ()
        )
        self._gone = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        if not context.add_callback(self._end):
            self._end()

    def header(self, name: str) -> str:
        """The first value, "" without one."""
        for key, value in self.metadata:
            if key == name:
                return value if isinstance(value, str) else value.decode("latin-1")
        return ""

    @property
    def gone(self) -> bool:
        """The client has cancelled the call, or left."""
        return self._gone.is_set()

    def on_gone(self, call: Callable[[], None]) -> None:
        """Called once, by some thread, when the client leaves or the call has ended; at once where it has."""
        with self._lock:
            if not self._gone.is_set():
                self._callbacks.append(call)
                return
        call()

    def send_header(self, name: str, value: str) -> None:
        self._context.send_initial_metadata(((name, value),))

    def _end(self) -> None:
        with self._lock:
            self._gone.set()
            calls, self._callbacks = self._callbacks, []
        for call in calls:
            try:
                call()
            except Exception:
                log.exception("a client has left")


def server(threads: int = CALLS_MAX, name: str = "call") -> Any:
    """A server without services and addresses. Its threads come with the calls."""
    return grpc.server(ThreadPoolExecutor(threads, f"{name}-"), options=OPTIONS, maximum_concurrent_rpcs=threads)


def register(
    server: Any,
    service: ServiceDescriptor,
    instance: object,
    activity: Activity | None = None,
    gate: Callable[[str], None] | None = None,
) -> None:
    """Serve what `instance` has of a service; the rest is UNIMPLEMENTED. Each call goes through `gate` first, which
    gets the method's name, and raises where the call may not be."""
    handlers = {}
    for method in service.methods:
        function = getattr(instance, method.name, None)
        if function is not None:
            handlers[method.name] = _handler(method, function, activity or Activity(), gate or _open)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def _open(method: str) -> None:
    pass


def answers(address: str) -> bool:
    """Whether a call to that address comes back."""
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
    return True


def _handler(
    method: MethodDescriptor, function: Callable[..., Any], activity: Activity, gate: Callable[[str], None]
) -> Any:
    request, answer = method.input_type._concrete_class, method.output_type._concrete_class

    def unary(asked: Any, context: Any) -> Any:
        activity.begin()
        try:
            gate(method.name)
            return function(asked, Call(context))
        except Exception as error:
            _abort(context, method.full_name, error)
        finally:
            activity.end()

    def stream(asked: Any, context: Any) -> Iterator[Any]:
        activity.begin()
        try:
            gate(method.name)
            yield from function(asked, Call(context))
        except Exception as error:
            _abort(context, method.full_name, error)
        finally:
            activity.end()

    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    kind = kinds[bool(method.client_streaming), bool(method.server_streaming)]
    behaviour = stream if method.server_streaming else unary
    return kind(behaviour, request_deserializer=request.FromString, response_serializer=answer.SerializeToString)


def _abort(context: Any, method: str, error: Exception) -> None:
    if not isinstance(error, errors.Error | DecodeError | grpc.RpcError):
        log.error("%s: %s", method, error, exc_info=error)
    _forget_frames(error)
    if isinstance(error, grpc.RpcError):
        error = errors.Cancelled("context canceled")  # the client's stream has ended
    context.abort_with_status(_Status(errors.rpc_status(error)))


def _forget_frames(error: BaseException) -> None:
    """What keeps the error, which may be a build's result, does not keep the call and its connection by its frames:
    they would last until Python looks for circles."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        left += (one.__cause__, one.__context__)


class _Status(grpc.Status):  # type: ignore[misc]
    def __init__(self, status: errors.RpcStatus) -> None:
        self.code = status.code
        self.details = status.details
        self.trailing_metadata = status.trailing_metadata
