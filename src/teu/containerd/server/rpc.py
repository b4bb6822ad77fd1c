# SPDX-License-Identifier: Apache-2.0
"""Between gRPC and the service classes: decode, call, map the error. Every service module registers here.

A service is a plain class whose methods carry the names of the descriptor's methods:

    def Get(self, request, call)             blocking: runs on a thread of the pool
    async def Wait(self, request, call)      long waits: runs on the event loop
    def List(...) -> iterator of responses   server streams; async generators where the stream waits
    async def Write(self, requests, call)    client streams: `requests` is an async iterator

An answer is a message, or the bytes of one, where these are at hand.
`@held` marks calls that wait for what may never come: a stop of the daemon does not wait for them.
`@quick` runs a plain method on the event loop itself: for lookups that never block and end within a millisecond, where
a thread switch would cost more than the work. A method the class does not have answers UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from teu.containerd.core.errors import Error, FailedPrecondition, Internal, InvalidArgument, Unavailable, cut
from teu.containerd.core.identifiers import validate_identifier
from teu.containerd.core.statistics import Statistics

log = logging.getLogger("teu.containerd.rpc")

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_METHOD = TypeVar("_METHOD", bound=Callable[..., Any])
_END = object()


def quick(method: _METHOD) -> _METHOD:
    """Mark a plain method that runs on the event loop itself, see above."""
    method.teu_quick = True  # type: ignore[attr-defined]
    return method


def held(method: _METHOD) -> _METHOD:
    """Mark a method that waits for what may never come, see above."""
    method.teu_held = True  # type: ignore[attr-defined]
    return method


class Call:
    """What a method may ask about the call it serves."""

    __slots__ = ("_context", "gone", "metadata")

    def __init__(self, context: Any) -> None:
        self._context = context
        self.gone = False  # the client has cancelled or left; work on a thread looks here now and then
        self.metadata: dict[str, Any] = {}
        for key, value in context.invocation_metadata() or ():
            self.metadata.setdefault(key, value)

    @property
    def namespace(self) -> str:
        """The namespace of the call. FailedPrecondition without one, InvalidArgument for a bad one."""
        name = self.metadata.get(NAMESPACE_HEADER, "")
        if not name:
            raise FailedPrecondition("namespace is required")
        return validate_identifier(name)

    @property
    def lease(self) -> str:
        """The lease that holds what the call makes, "" for none."""
        return str(self.metadata.get(LEASE_HEADER, ""))

    def cancelled(self) -> bool:
        """Whether the client has left."""
        return self.gone or bool(self._context.cancelled())

    def remaining(self) -> float | None:
        """Seconds until the client's deadline, None without one."""
        value = self._context.time_remaining()
        return None if value is None else float(value)


class Server:
    """A grpc.aio server that service modules add themselves to."""

    def __init__(self, server: Any, pool: ThreadPoolExecutor) -> None:
        """`server` is a grpc.aio server; `pool` has the threads for methods that block."""
        self.grpc = server
        self.pool = pool
        self.statistics = Statistics()
        self._held: set[asyncio.Task[Any]] = set()
        self._writing: set[asyncio.Task[Any]] = set()  # of these: in the middle of a message
        self._stopping = False
        self.services: dict[str, Any] = {}  # full name -> ServiceDescriptor, for reflection and health

    def let_go(self) -> None:
        """Tell those who are held on to (see `held`) that the daemon stops: they come back when it does."""
        self._stopping = True
        # grpc sends no status beside a message that is on its way: `_write` looks at `_stopping` when it is sent.
        for task in self._held - self._writing:
            task.cancel()

    @contextlib.contextmanager
    def _holding(self, target: Callable[..., Any]) -> Iterator[None]:
        if not getattr(target, "teu_held", False):
            yield
            return
        if self._stopping:
            raise Unavailable("the daemon is stopping")
        task = asyncio.current_task()
        assert task is not None
        self._held.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._stopping:
                raise Unavailable("the daemon is stopping") from None
            raise
        finally:
            self._held.discard(task)

    def add(self, descriptor: Any, implementation: object) -> None:
        """Serve a service: `descriptor` is its ServiceDescriptor, `implementation` has methods of the same names."""
        handlers = {}
        for method in descriptor.methods:
            target = getattr(implementation, method.name, None)
            if target is not None:
                handlers[method.name] = self._handler(descriptor.full_name, method, target)
        self.services[descriptor.full_name] = descriptor
        self.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))

    def _handler(self, service: str, method: Any, target: Callable[..., Any]) -> Any:
        request_class = method.input_type._concrete_class
        response_class = method.output_type._concrete_class
        # python3-protobuf 3.21 descriptors do not tell streaming methods: their proto does
        streams = _streams(method)
        key = (service, method.name)
        self.statistics.add(key, *streams)
        if streams[1]:
            make = grpc.stream_stream_rpc_method_handler if streams[0] else grpc.unary_stream_rpc_method_handler
            behaviour: Callable[..., Any] = self._streaming(key, target)
        else:
            make = grpc.stream_unary_rpc_method_handler if streams[0] else grpc.unary_unary_rpc_method_handler
            behaviour = self._unary(key, target)
        return make(
            behaviour,
            request_deserializer=_decoder(request_class),
            response_serializer=_encoder(response_class),
        )

    def _unary(self, key: tuple[str, str], target: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        statistics = self.statistics
        is_async = inspect.iscoroutinefunction(target)
        is_quick = getattr(target, "teu_quick", False)

        async def behaviour(request: Any, context: Any) -> Any:
            began = time.monotonic()
            statistics.begin(key)
            statistics.received[key] += 1
            code = "OK"
            call = Call(context)
            try:
                _check_decoded(request)
                if is_async:
                    with self._holding(target):
                        answer = await target(request, call)
                elif is_quick:
                    answer = target(request, call)
                else:
                    answer = await asyncio.get_running_loop().run_in_executor(self.pool, target, request, call)
                statistics.sent[key] += 1
                return answer
            except BaseException as error:
                call.gone = isinstance(error, asyncio.CancelledError)
                code, message = _status(error, key)
                if message is None:
                    raise
            finally:
                statistics.end(key, code, began)
            aborted = [context]
            del request, context, call
            await _abort(aborted, code, message)
            return None  # not reached: an abort is an exception

        return behaviour

    def _streaming(self, key: tuple[str, str], target: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        statistics = self.statistics

        async def behaviour(request: Any, context: Any) -> None:
            began = time.monotonic()
            statistics.begin(key)
            code = "OK"
            answers: Any = None
            try:
                if hasattr(request, "__aiter__"):
                    request = self._counted(key, request)
                else:
                    statistics.received[key] += 1
                    _check_decoded(request)
                answers = target(request, Call(context))
                if not hasattr(answers, "__aiter__"):
                    answers = self._in_thread(iter(answers))
                with self._holding(target):
                    async for answer in answers:
                        await self._write(context, answer)
                        statistics.sent[key] += 1
                return
            except BaseException as error:
                code, message = _status(error, key)
                if message is None:
                    raise
            finally:
                if answers is not None:
                    await answers.aclose()
                statistics.end(key, code, began)
            aborted = [context]
            del request, context, answers
            await _abort(aborted, code, message)

        return behaviour

    async def _write(self, context: Any, answer: Any) -> None:
        """Send one message of a stream. Raises Unavailable after it to one that is held, when the daemon stops."""
        task = asyncio.current_task()
        held_on = task in self._held
        if task is not None and held_on:
            self._writing.add(task)
        try:
            await context.write(answer)
        finally:
            if task is not None:
                self._writing.discard(task)
        if held_on and self._stopping:
            raise Unavailable("the daemon is stopping")

    async def _counted(self, key: tuple[str, str], requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self.statistics.received[key] += 1
            _check_decoded(request)
            yield request

    async def _in_thread(self, answers: Iterator[Any]) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        while (answer := await loop.run_in_executor(self.pool, next, answers, _END)) is not _END:
            yield answer


class _Undecodable:
    """In the place of a request that is no message: gRPC itself would tell its client Python's error, as UNKNOWN."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _encoder(response_class: Any) -> Callable[[Any], bytes]:
    def encode(answer: Any) -> bytes:
        return answer if isinstance(answer, bytes) else bytes(response_class.SerializeToString(answer))

    return encode


def _decoder(request_class: Any) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        try:
            return request_class.FromString(data)
        except DecodeError as error:
            return _Undecodable(str(error))

    return decode


def _check_decoded(request: Any) -> None:
    if isinstance(request, _Undecodable):
        raise Internal(f"grpc: error unmarshalling request: {request.reason}")  # grpc-go's status


async def _abort(aborted: list[Any], code: str, message: str) -> None:
    """End the call in the list with a status.

    gRPC keeps the exception of that with the call, and with the exception go the frames that it came through. A frame
    that knew the call would keep it, and its connection, until Python collects circles: so it is taken out of the
    list, and the callers have let go of it."""
    await aborted.pop().abort(_STATUS[code], message)


_STATUS = {code.name: code for code in grpc.StatusCode}


def _status(error: BaseException, key: tuple[str, str]) -> tuple[str, str | None]:
    """Name of the status and message; message None for what gRPC itself must see."""
    if isinstance(error, Error):
        return _CODES[error.code].name, error.wire_message()
    if isinstance(error, (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit)):
        return "CANCELLED", None
    if not isinstance(error, Exception):
        return "INTERNAL", None
    if isinstance(error, OSError) and error.errno == 28:
        return "RESOURCE_EXHAUSTED", cut(f"no space left on device: {error}")
    if isinstance(error, grpc.RpcError) and hasattr(error, "code") and error.code() is not None:
        return str(error.code().name), cut(str(error.details()))  # a proxy plugin's own answer
    if isinstance(error, sqlite3.OperationalError):
        full = "full" in str(error)
        return ("RESOURCE_EXHAUSTED" if full else "UNAVAILABLE"), f"metadata.db: {error}"
    if isinstance(error, DecodeError):  # of what is packed into a request
        return "INVALID_ARGUMENT", cut(f"malformed message: {error}: {InvalidArgument.words}")
    if isinstance(error, TimeoutError):
        return "DEADLINE_EXCEEDED", cut(str(error)) or "context deadline exceeded"
    log.error("%s: %s: %s", "/".join(key), type(error).__name__, error, exc_info=error)
    return "UNKNOWN", cut(f"{type(error).__name__}: {error}")


def _streams(method: Any) -> tuple[bool, bool]:
    service = method.containing_service
    proto = descriptor_pb2.ServiceDescriptorProto()
    service.CopyToProto(proto)
    found = next(item for item in proto.method if item.name == method.name)
    return bool(found.client_streaming), bool(found.server_streaming)
