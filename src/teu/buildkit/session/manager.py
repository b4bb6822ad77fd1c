# SPDX-License-Identifier: Apache-2.0
"""Which sessions there are. Called by control, where connections come in, and by all rooms that need a client.

A session is an HTTP/2 connection turned round: the client of the builder serves, the builder asks. It comes as the
stream of Control.Session (`serve_stream`), or as a connection of its own after POST /session (`serve_socket`). Who it
is stands in its headers or metadata:

    x-docker-expose-session-uuid          its id, which Solve requests name
    x-docker-expose-session-name          for people; not all clients say it
    x-docker-expose-session-sharedkey     the same for all builds of one folder: a context that was sent is found again
    x-docker-expose-session-grpc-method   /package.Service/Method, once for each

A Solve may arrive before its session: `get` waits. When a session ends, what hangs on it is told (`on_end`).
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

from teu.api.buildkit import control_pb2
from teu.buildkit.core import errors
from teu.buildkit.session import rpc
from teu.http2 import connection as http2

log = logging.getLogger("teu.buildkit.session")

PREFIX = "x-docker-expose-session-"
HEALTH_HEADER = "x-buildkit-session-health-custom-timeout"  # milliseconds
PING_SECONDS = 5.0  # of silence, before the client is asked for a sign of life
SILENT_SECONDS = 30.0  # after which it is given up
HEALTH_LEAST = 1.0
SESSIONS_MAX = 1000
METHODS_MAX = 1000
TEXT_MAX = 4096  # signs of an id, a name, a key, a method
FIND_SECONDS = 5.0  # how long `any_of` waits for each session
POLL_SECONDS = 0.25

ANSWER = TypeVar("ANSWER", bound=Message)
RESULT = TypeVar("RESULT")
Headers = Iterable[tuple[str, str | bytes]]


class Session:
    """One client. Calls raise core.errors; Unavailable where the session has ended or ends meanwhile."""

    def __init__(self, headers: Headers) -> None:
        fields: dict[str, list[str]] = {}
        for name, value in headers:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if len(text) > TEXT_MAX:
                raise errors.InvalidArgument(f"{name}: {len(text)} signs; {TEXT_MAX} are the most")
            fields.setdefault(name.lower(), []).append(text)
        self.id = fields.get(f"{PREFIX}uuid", [""])[0]
        self.name = fields.get(f"{PREFIX}name", [""])[0]
        self.shared_key = fields.get(f"{PREFIX}sharedkey", [""])[0]
        self.methods = frozenset(method.lower() for method in fields.get(f"{PREFIX}grpc-method", ()))
        if not self.id:
            raise errors.InvalidArgument(f"a session has no id: {PREFIX}uuid is missing")
        if len(self.methods) > METHODS_MAX:
            raise errors.InvalidArgument(f"a session of {len(self.methods)} methods; {METHODS_MAX} are the most")
        self.ping_seconds, self.silent_seconds = _patience(fields.get(HEALTH_HEADER, [""])[0])
        self.connection = http2.Connection(errors.of_code, self._connection_ended)
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._count = 0

    def supports(self, method: str) -> bool:
        """Does the client say that it serves `/package.Service/Method`? Letter case does not count."""
        return method.lower() in self.methods

    def require(self, method: str, what: str) -> None:
        """Unimplemented, in words for a person, where the client does not serve a method."""
        if not self.supports(method):
            raise errors.Unimplemented(f"{what}: method {method} not supported by the client")

    def call(
        self,
        method: str,
        request: Message,
        answer: type[ANSWER],
        metadata: rpc.Metadata = (),
        timeout: float | None = None,
    ) -> ANSWER:
        """Ask, and wait for the answer; timeout in seconds."""
        return rpc.unary(self.connection, method, request, answer, metadata, timeout)

    def stream(
        self, method: str, answer: type[ANSWER], metadata: rpc.Metadata = (), timeout: float | None = None
    ) -> rpc.Call[ANSWER]:
        """Begin a call whose requests or answers are streams."""
        return rpc.Call(self.connection, method, answer, metadata, timeout)

    @property
    def ended(self) -> bool:
        return self.error is not None

    def on_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back once, when the session ends (at once where it has), from some thread; it must not block. What is
        returned takes it back."""
        with self._lock:
            if self.error is None:
                self._count += 1
                number = self._count
                self._callbacks[number] = callback
                return lambda: self._forget(number)
        callback()
        return lambda: None

    def _forget(self, number: int) -> None:
        with self._lock:
            self._callbacks.pop(number, None)

    def _connection_ended(self, error: Exception) -> None:
        with self._lock:
            self.error = error
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("session %s: what was to be told of its end failed", self.id)

    def close(self, why: str = "the session was closed") -> None:
        """End it, from the builder's side."""
        self.connection.close(errors.Unavailable(why))


def _patience(text: str) -> tuple[float, float]:
    """(seconds until asked, seconds until given up): a client may want it shorter, with milliseconds."""
    if text.isdecimal() and 0 < len(text) < 10 and int(text):
        seconds = max(HEALTH_LEAST, int(text) / 1000)
        return seconds, 2 * seconds
    return PING_SECONDS, SILENT_SECONDS


def plain_id(identifier: str) -> str:
    """A session's id without the prefix that tells two contexts of one session apart: `PREFIX:ID`."""
    return identifier.partition(":")[2] or identifier


class Manager:
    """All sessions of the builder."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sessions: dict[str, Session] = {}
        self._watching = False

    def begin(self, headers: Headers) -> Session:
        """Let a session begin: its connection's `feed` and `take` are to be served from now on.

        InvalidArgument without an id, AlreadyExists where one of this id lives: nobody takes over another's session."""
        session = Session(headers)
        with self._changed:
            if session.id in self._sessions:
                raise errors.AlreadyExists(f"session {session.id} already exists")
            if len(self._sessions) >= SESSIONS_MAX:
                raise errors.ResourceExhausted(f"{SESSIONS_MAX} sessions are open")
            self._sessions[session.id] = session
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="sessions", daemon=True).start()
            self._changed.notify_all()
        session.on_end(lambda: self._remove(session))
        return session

    def _remove(self, session: Session) -> None:
        with self._changed:
            if self._sessions.get(session.id) is session:
                del self._sessions[session.id]
            self._changed.notify_all()

    def serve_socket(self, headers: Headers, connection: socket.socket, early: bytes = b"") -> None:
        """Serve a session that has a connection of its own (POST /session, after its 101); returns when it has ended.
        The connection is closed then. `early` was read of it already. Errors of `begin` are raised before anything is
        written."""
        session = self.begin(headers)
        # A client that reads nothing any more must not hold the thread that writes to it.
        patience = struct.pack("@ll", *divmod(int(session.silent_seconds * 1_000_000), 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        writer = threading.Thread(
            target=_write, args=(session.connection, connection), name=f"session {session.id[:8]}", daemon=True
        )
        writer.start()
        try:
            if early:
                session.connection.feed(early)
            while session.error is None:
                session.connection.feed(connection.recv(256 << 10))
        except OSError as error:
            session.close(f"the client's connection broke: {error.strerror}")
        finally:
            session.close()
            writer.join()
            connection.close()

    def serve_stream(
        self, headers: Headers, requests: Iterable[control_pb2.BytesMessage]
    ) -> Iterator[control_pb2.BytesMessage]:
        """Control.Session: the connection as a stream of messages in each direction. Ends with the session.

        Errors of `begin` come with the first step of the iteration. Each message costs grpcio's price, and Go's server
        writes each of its answers apart: a connection of its own is the faster way for a large context."""
        session = self.begin(headers)

        def read() -> None:
            try:
                for message in requests:
                    if message.data:
                        session.connection.feed(message.data)
            except Exception as error:  # grpcio's own, of a client that has left
                log.debug("session %s: %s", session.id, error)
            session.connection.feed(b"")

        threading.Thread(target=read, name=f"session {session.id[:8]}", daemon=True).start()
        try:
            while data := session.connection.take():
                yield control_pb2.BytesMessage(data=data)
        finally:
            session.close()

    def get(self, identifier: str, timeout: float | None = 0.0, gone: Callable[[], bool] = lambda: False) -> Session:
        """The session of this id (a prefix before a colon does not count). Waits `timeout` seconds for one that is to
        come, None as long as it takes, until `gone` says that nobody waits any more.

        NotFound where it does not come, Cancelled where nobody waits."""
        wanted = plain_id(identifier)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                session = self._sessions.get(wanted)
                if session is not None and session.error is None:
                    return session
                if gone():
                    raise errors.Cancelled(f"no active session for {wanted}: context canceled")
                left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - time.monotonic())
                if left <= 0:
                    raise errors.NotFound(f"no active session for {wanted}: context deadline exceeded")
                self._changed.wait(left)

    def any_of(
        self, identifiers: Iterable[str], function: Callable[[Session], RESULT], timeout: float = FIND_SECONDS
    ) -> RESULT:
        """What `function` returns for the first of these sessions with which it works; else the last error. Builds that
        share a step share its sessions: each may know the credentials."""
        last: errors.Error = errors.NotFound("no active sessions")
        for identifier in identifiers:
            try:
                return function(self.get(identifier, timeout))
            except errors.Error as error:
                last = error
        raise last

    def all(self) -> list[Session]:
        with self._changed:
            return list(self._sessions.values())

    def close(self) -> None:
        """End all sessions: the builder stops."""
        for session in self.all():
            session.close("the builder is stopping")

    def _watch(self) -> None:
        """Ask who is silent for a sign of life, and give up who gives none; one thread, while there are sessions."""
        while True:
            with self._changed:
                if not self._sessions:
                    self._watching = False
                    return
                self._changed.wait(HEALTH_LEAST)
            for session in self.all():
                silent = session.connection.silent()
                if silent > session.silent_seconds:
                    session.close(f"the client of session {session.id} has been silent for {silent:.0f} s")
                elif silent > session.ping_seconds:
                    session.connection.ping()


def _write(connection: http2.Connection, out: socket.socket) -> None:
    try:
        while data := connection.take():
            out.sendall(data)
    except OSError as error:
        connection.close(errors.Unavailable(f"the client's connection broke: {error.strerror}"))
    try:
        out.shutdown(socket.SHUT_RDWR)  # wakes who reads
    except OSError:
        pass
