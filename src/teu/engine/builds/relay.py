# SPDX-License-Identifier: Apache-2.0
"""A client's connection to the builder and back, unread: HTTP/2 with gRPC inside.

    carry      POST /grpc after its 101, or a connection that began with HTTP/2: both ways, until either has ended
    Session    POST /session: a connection in which the client is the server.  teu-buildkitd takes the connection itself
               (a message of one descriptor on a socket beside its API's), so that a context's bytes do not pass through
               this process; any other builder gets it as BuildKit's Control.Session has it, in messages.

The message on the socket of sessions (SOCK_SEQPACKET, one per connection) is JSON: {"headers": [[name, value], …],
"early": base64 of what was read of the connection already}.  There is no answer: whoever does not want the connection
closes it.
"""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
from collections.abc import Iterator, Sequence

from teu.engine.builds.builder import Builder
from teu.engine.core import errors

log = logging.getLogger("teu.engine")

CHUNK = 256 << 10
MESSAGE_MAX = 128 << 10  # bytes of the message with a connection; what is larger goes the other way
TAKE_SECONDS = 10.0
PREFIX = "x-docker-expose-session-"

Headers = Sequence[tuple[str, str]]


def protocol(upgrade: str) -> None:
    """Raises BadRequest unless a client asks for the one protocol there is, in the words of dockerd."""
    if not upgrade:
        raise errors.BadRequest("no upgrade proto in request")
    if upgrade != "h2c":
        raise errors.BadRequest(f"protocol {upgrade} not supported")


def carry(client: socket.socket, early: bytes, builder: socket.socket) -> None:
    """Bytes both ways until both have said their last, or one is gone. Closes the builder's connection."""

    def back() -> None:
        _pass(builder, client)

    with builder:
        thread = threading.Thread(target=back, name="builder", daemon=True)
        thread.start()
        try:
            builder.sendall(early)
            _pass(client, builder)
            thread.join()
        except OSError as error:
            log.debug("a connection to the builder ended: %s", error)
            _end(builder)
            _end(client)
            thread.join()


def _pass(source: socket.socket, target: socket.socket) -> None:
    """All that one says to the other.  A half that is closed is closed on the other side; a connection that breaks
    breaks the other."""
    buffer = memoryview(bytearray(CHUNK))
    try:
        while size := source.recv_into(buffer):
            target.sendall(buffer[:size])
        target.shutdown(socket.SHUT_WR)
    except OSError:
        _end(source)
        _end(target)


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class Session:
    """One client's session on its way to the builder."""

    def __init__(self, builder: Builder, headers: Headers) -> None:
        """headers: those of the request.  Raises BadRequest where they name no session, NoBuilder, Unavailable."""
        self._builder = builder
        self._headers = [(name, value) for name, value in headers if name.startswith(PREFIX)]
        if not any(name == f"{PREFIX}uuid" and value for name, value in self._headers):
            raise errors.BadRequest("the request names no session: X-Docker-Expose-Session-Uuid is missing")
        self._taker = self._dial()
        self._channel = None if self._taker else builder.channel()

    def _dial(self) -> socket.socket | None:
        """Who takes connections as they are; None where nobody does."""
        taker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            taker.settimeout(TAKE_SECONDS)
            taker.connect(self._builder.sessions_address)
        except OSError:
            taker.close()
            return None
        return taker

    def serve(self, client: socket.socket, early: bytes) -> None:
        """The client got its 101.  Returns at once where its connection has another owner now, else at its end."""
        message = json.dumps({"headers": self._headers, "early": base64.b64encode(early).decode()}).encode()
        if self._taker is not None:
            with self._taker:
                if len(message) <= MESSAGE_MAX:
                    try:
                        socket.send_fds(self._taker, [message], [client.fileno()])
                        return
                    except OSError as error:
                        log.warning("the builder does not take a session: %s", error)
            self._channel = self._builder.channel()
        self._tunnel(client, early)

    def _tunnel(self, client: socket.socket, early: bytes) -> None:
        """Control.Session: messages of bytes both ways."""
        import grpc  # 60 ms of the daemon's start, which only a builder that is not ours needs

        from teu.api.buildkit import control_pb2, control_pb2_grpc

        def requests() -> Iterator[control_pb2.BytesMessage]:
            try:
                data = early or client.recv(CHUNK)
                while data:
                    yield control_pb2.BytesMessage(data=data)
                    data = client.recv(CHUNK)
            except OSError:
                return

        # grpcio takes lower-case names only, and a list of methods as as many pairs.
        call = control_pb2_grpc.ControlStub(self._channel).Session(requests(), metadata=tuple(self._headers))
        try:
            for answer in call:
                client.sendall(answer.data)
        except (grpc.RpcError, OSError) as error:
            log.debug("a session ended: %s", error)
            call.cancel()
        finally:
            _end(client)
