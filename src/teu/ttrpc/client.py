# SPDX-License-Identifier: Apache-2.0
"""The client's end of ttrpc, on asyncio: used by teu-containerd for its shims.

One connection carries any number of calls at once; an idle one costs a descriptor and no thread.
"""

from __future__ import annotations

import asyncio
import socket

from teu.ttrpc import frames, status
from teu.ttrpc.messages import TASK_METHODS, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Client(asyncio.Protocol):
    """Made by connect().  All methods are for the event loop's thread."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = frames.Reader()
        self._stream = -1
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        # called once when the connection is gone, also after close()
        self.on_close: Callable[[], None] = lambda: None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """By asyncio: calls can be made now."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """By asyncio: the answers in the data end their calls. What is no ttrpc closes the connection."""
        try:
            complete = self._reader.feed(data)
        except frames.FrameError:
            self.close()
            return
        for stream, kind, _flags, payload in complete:
            call = self._calls.pop(stream, None)
            if call is None or call.done() or kind != frames.RESPONSE:
                continue
            try:
                response = decode("ttrpc.Response", payload)
            except ValueError as error:
                call.set_exception(status.StatusError(status.INTERNAL, f"malformed response: {error}"))
                continue
            answer = response["status"]
            if answer and answer["code"]:
                call.set_exception(status.StatusError(answer["code"], answer["message"]))
            else:
                call.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        """By asyncio: calls without an answer fail with UNAVAILABLE; `on_close` is called."""
        self._transport = None
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done():
                call.set_exception(status.StatusError(status.UNAVAILABLE, "ttrpc: closed"))
        self.closed.set()
        self.on_close()

    def close(self) -> None:
        """Close the connection. Calls without an answer fail."""
        if self._transport:
            self._transport.close()

    async def call_raw(self, service: str, method: str, payload: bytes, timeout: float | None = None) -> bytes:
        """One unary call: bytes to bytes.  StatusError as the peer says, or UNAVAILABLE when the
        connection is or gets lost, or DEADLINE_EXCEEDED after `timeout` seconds."""
        if self._transport is None:
            raise status.StatusError(status.UNAVAILABLE, "ttrpc: closed")
        self._stream += 2
        stream = self._stream
        request: dict[str, Any] = {"service": service, "method": method, "payload": payload}
        if timeout:
            request["timeout_nano"] = int(timeout * 1e9)
        try:
            frame = frames.pack(stream, frames.REQUEST, encode("ttrpc.Request", request))
        except frames.FrameError as error:
            raise status.StatusError(status.OUT_OF_RANGE, str(error)) from error
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[stream] = answer
        self._transport.write(frame)
        try:
            response = await (asyncio.wait_for(answer, timeout) if timeout else answer)
        except TimeoutError:
            raise status.StatusError(status.DEADLINE_EXCEEDED, "the shim did not answer in time") from None
        finally:
            self._calls.pop(stream, None)
        payload = response["payload"]
        return bytes(payload)

    async def task(
        self, service: str, method: str, request: dict[str, Any], timeout: float | None = None
    ) -> dict[str, Any]:
        """A method of the task API, with messages as dicts (see teu.ttrpc.messages)."""
        request_type, response_type = TASK_METHODS[method]
        return decode(response_type, await self.call_raw(service, method, encode(request_type, request), timeout))


# Seconds between two attempts to connect to a server whose queue is full.
FULL_PAUSE = 0.05


async def connect(address: str, timeout: float = 10.0) -> Client:
    """A connection to unix:///path (or, without the scheme, to a name in the abstract namespace).

    FileNotFoundError or ConnectionRefusedError if there is no server; TimeoutError if it is too busy to take us."""
    path = address.removeprefix("unix://")
    if path == address:
        path = "\0" + path
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    peer.connect(path)
                    break
                except BlockingIOError:
                    # The server's queue is full.  Such a connect is not under way, as asyncio would have it: it failed.
                    await asyncio.sleep(FULL_PAUSE)
            _, client = await asyncio.get_running_loop().create_unix_connection(Client, sock=peer)
    except BaseException:
        peer.close()
        raise
    return client
