# SPDX-License-Identifier: Apache-2.0
"""A session that teud itself serves: the context and the credentials of a client that has only POST /build.

To the builder it is a client's session like any other (teu.engine.builds.relay carries it there): HTTP/2 with this end
as the server of gRPC. It offers Upload (the context, under the address `context`) and Auth (the passwords of
X-Registry-Config)."""

from __future__ import annotations

import base64
import binascii
import logging
import socket
import threading
import uuid
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, Self

from teu.engine.builds.builder import Builder
from teu.engine.builds.relay import PREFIX, Session
from teu.engine.core import errors
from teu.engine.core.kinds import loads
from teu.http2.calls import UNIMPLEMENTED, Asked
from teu.http2.connection import INTERNAL, Connection

if TYPE_CHECKING:
    from teu.http2.connection import Stream

log = logging.getLogger("teu.engine")

PULL = "/moby.upload.v1.Upload/Pull"
CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
HEALTH = "/grpc.health.v1.Health/Check"
CHUNK = 256 << 10
NOT_FOUND = 5
DOCKER_HUB = "https://index.docker.io/v1/"
HUB_HOSTS = ("registry-1.docker.io", "docker.io", "index.docker.io")


class Broken(Exception):
    """The connection, or a call on it, ended: gRPC's code and why."""

    def __init__(self, code: int, message: str, details: bytes = b"", /) -> None:
        super().__init__(message)
        self.code = code


def credentials(header: str) -> dict[str, tuple[str, str]]:
    """X-Registry-Config: user and secret by host. Raises BadRequest, which shows nothing of them."""
    if not header:
        return {}
    try:
        table = loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (ValueError, binascii.Error):
        table = None
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise errors.BadRequest("X-Registry-Config is not the base64 of a JSON object of registries")
    found = {}
    for host, entry in table.items():
        user, secret = str(entry.get("username") or ""), str(entry.get("password") or "")
        if entry.get("identitytoken"):
            user, secret = "", str(entry["identitytoken"])
        elif entry.get("auth") and not secret:
            try:
                user, _, secret = base64.b64decode(str(entry["auth"])).decode().partition(":")
            except ValueError:
                raise errors.BadRequest(f"X-Registry-Config: the auth of {host} is not base64") from None
        found[host] = (user, secret)
    return found


class OwnSession:
    """As a context manager: it is open in the block."""

    def __init__(self, builder: Builder, context: IO[bytes] | None, known: Mapping[str, tuple[str, str]]) -> None:
        """context: what `address` has, read once from its begin. known: as from `credentials`."""
        self.id = uuid.uuid4().hex
        self._context = context
        self._known = known
        offered = (PULL, CREDENTIALS, HEALTH)
        headers = [(f"{PREFIX}uuid", self.id), (f"{PREFIX}name", "teud")]
        headers += [(f"{PREFIX}grpc-method", method) for method in offered]
        self._session = Session(builder, headers)
        self._connection = Connection(Broken, serve=self._accept, peer="the builder")
        self._ours, self._theirs = socket.socketpair()

    @property
    def address(self) -> str:
        """What a build names the context by."""
        return f"http://buildkit-session/{self.id}"

    def __enter__(self) -> Self:
        for call in (self._hand_over, self._read, self._write):
            threading.Thread(target=call, name="build session", daemon=True).start()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._connection.close(Broken(0, "the build has ended"))
        try:
            self._ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _hand_over(self) -> None:
        with self._theirs:
            try:
                self._session.serve(self._theirs, b"")
            except errors.EngineError as error:
                log.debug("a build's session: %s", error)
                self._connection.close(Broken(INTERNAL, str(error)))

    def _read(self) -> None:
        try:
            while self._connection.error is None:
                self._connection.feed(self._ours.recv(CHUNK))
        except OSError as error:
            self._connection.close(Broken(INTERNAL, str(error)))

    def _write(self) -> None:
        with self._ours:
            try:
                while data := self._connection.take():
                    self._ours.sendall(data)
                self._ours.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                self._connection.close(Broken(INTERNAL, str(error)))

    def _accept(self, stream: Stream) -> None:
        threading.Thread(target=self._answer, args=(stream,), name="build session call", daemon=True).start()

    def _answer(self, stream: Stream) -> None:
        asked = Asked(stream, Broken, "the builder")
        try:
            if asked.method == PULL:
                self._pull(asked)
            elif asked.method == CREDENTIALS:
                self._credentials(asked)
            elif asked.method == HEALTH:
                asked.send(b"\x08\x01")  # HealthCheckResponse{status: SERVING}
                asked.finish()
            else:
                asked.finish(UNIMPLEMENTED, f"unknown method {asked.method}")
        except Broken as error:
            log.debug("%s: %s", asked.method, error)
        except Exception as error:
            log.exception("%s failed", asked.method)
            asked.finish(INTERNAL, f"internal error: {type(error).__name__}")

    def _pull(self, asked: Asked) -> None:
        from teu.api.buildkit.session import upload_pb2  # with protobuf, which a start does without

        context, self._context = self._context, None
        if context is None or asked.metadata.get("urlpath", [""])[0].strip("/") != self.id:
            asked.finish(NOT_FOUND, "no such upload: a context is read once")
            return
        while data := context.read(CHUNK):
            asked.send(upload_pb2.BytesMessage(data=data).SerializeToString())
        asked.finish()

    def _credentials(self, asked: Asked) -> None:
        from teu.api.buildkit.session import auth_pb2  # as above

        request = auth_pb2.CredentialsRequest.FromString(asked.receive() or b"")
        hosts = (DOCKER_HUB, *HUB_HOSTS) if request.Host in HUB_HOSTS else (request.Host, f"https://{request.Host}")
        user, secret = next((self._known[host] for host in hosts if host in self._known), ("", ""))
        asked.send(auth_pb2.CredentialsResponse(Username=user, Secret=secret).SerializeToString())
        asked.finish()
