# SPDX-License-Identifier: Apache-2.0
"""The events service on containerd.sock.ttrpc: where shims deliver what happened to their tasks.

Only one method, so this is a server of its own on the event loop. An event is answered when it is in the exchange.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any

from teu.api.services.ttrpc.events.v1 import events_pb2
from teu.containerd.core.errors import Error
from teu.containerd.core.events import Exchange
from teu.systemd.grpc_activation import KEEP_PATH
from teu.ttrpc import frames, messages

log = logging.getLogger("teu.containerd.events")

SERVICE = "containerd.services.events.ttrpc.v1.Events"
_UNKNOWN, _INVALID_ARGUMENT, _UNIMPLEMENTED = 2, 3, 12

_last = time.monotonic()


def last_activity() -> float:
    """When a shim was last heard, by time.monotonic()."""
    return _last


def _forward(events: Exchange, payload: bytes) -> bytes:
    """The ttrpc response to one request."""
    code, text = 0, ""
    request = messages.decode("ttrpc.Request", payload)
    if (request.get("service"), request.get("method")) != (SERVICE, "Forward"):
        code, text = _UNIMPLEMENTED, f"/{request.get('service')}/{request.get('method')} is not served here"
    else:
        try:
            forward = events_pb2.ForwardRequest.FromString(bytes(request.get("payload", b"")))
            events.forward(forward.envelope)
        except Error as error:
            code, text = error.code, error.wire_message()
        except Exception as error:
            code, text = _INVALID_ARGUMENT, f"undecodable event: {error}"
    answer: dict[str, Any] = {"status": {"code": code, "message": text}} if code else {}
    return messages.encode("ttrpc.Response", answer)


async def serve(events: Exchange, listener: socket.socket) -> asyncio.AbstractServer:
    """Serve on a socket that listens; what arrives goes into the exchange."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        global _last
        incoming = frames.Reader()
        try:
            while data := await reader.read(65536):
                _last = time.monotonic()
                for stream, kind, _flags, payload in incoming.feed(data):
                    if kind == frames.REQUEST:
                        writer.write(frames.pack(stream, frames.RESPONSE, _forward(events, payload)))
                await writer.drain()
        except (OSError, ValueError) as error:
            log.debug("an event connection ended: %s", error)
        finally:
            writer.close()

    listener.setblocking(False)
    return await asyncio.start_unix_server(connected, sock=listener, backlog=4096, **KEEP_PATH)
