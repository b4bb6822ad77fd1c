# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of the Engine API: a thread per connection, h11 for the protocol.

Started by main with listening sockets (systemd's or its own). What it owes a client: the API
version negotiation, error bodies, bounded headers and bodies, and the two ways in which docker
takes a connection over ("upgrade: tcp" with 101, and the older bare 200). A connection that begins with HTTP/2 is in
`http2`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

import h11

from teu import __version__
from teu.engine.api import router
from teu.engine.api.messages import Request, Response
from teu.engine.builds import relay
from teu.engine.core import fields, versions
from teu.engine.core.departure import Departure
from teu.engine.core.errors import BadRequest, EngineError, TimedOut, Unavailable
from teu.engine.core.kinds import whole_characters
from teu.engine.core.managed import KNOWN
from teu.linux import memory

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from teu.engine.api.tls import Guard  # 15 ms, for sockets that are reached from elsewhere
    from teu.engine.engine import Engine

log = logging.getLogger("teu.engine")

API_VERSION = (1, 55)
API_MINIMUM = (1, 24)
HEADER_LIMIT = 64 << 10
CONNECTIONS_MAX = 4096
READ_SIZE = 64 << 10
IDLE_SECONDS = 600
PART_SECONDS, PART_QUIET_SECONDS = 30, 2  # for who sends on after a refusal
PART_SIZE = 1 << 20
STARTUP_SECONDS = 120

# How long a request's body may be silent (an archive comes from a pipe, whose other end may be at work), and how long
# the answer waits for what is left of one that nobody wanted.
BODY_SECONDS = 120
UPLOAD_SECONDS = 1800
REST_SECONDS = 0.2
# How long after the last client, and from how much more on, memory is given back.
TRIM_SECONDS = 1
TRIM_BYTES = 8 << 20

_VERSION = re.compile(r"/v([0-9]+)\.([0-9]+)(/.*)")
NO_LENGTH = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"message": "bad HTTP: the Content-Length is too long"}\n'
)
HTTP2 = b"PRI * HTTP/2.0\r\n\r\n"  # RFC 9113 section 3.4
# What of the API is told to Prometheus, by dockerd's names.
ACTIONS = {
    ("POST", "/containers/create"): "create",
    ("POST", "/containers/{name}/start"): "start",
    ("DELETE", "/containers/{name:path}"): "delete",
    ("GET", "/containers/{name}/changes"): "changes",
    ("POST", "/commit"): "commit",
}
# Answered before the stores are up.
_EARLY = ("/_ping",)


def version_text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def oldest(engine: Engine) -> tuple[int, int]:
    """The oldest version of the API that a client may speak."""
    major, _, minor = str(engine.config.get("min-api-version", "")).partition(".")
    return max(API_MINIMUM, (int(major), int(minor))) if major else API_MINIMUM


class _Body(io.RawIOBase):
    """The request's body as a file; Expect: 100-continue is answered at the first read."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._rest = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0:
            parts = []
            while part := self.read(1 << 20):
                parts.append(part)
            return b"".join(parts)
        if not self._rest and not self._ended:
            self._rest = self._connection.receive_data()
            self._ended = not self._rest
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        part = self.read(len(view))
        view[: len(part)] = part
        return len(part)


class _Http2(Exception):
    """A connection began with these bytes of HTTP/2."""

    def __init__(self, data: bytes) -> None:
        super().__init__("HTTP/2 by prior knowledge")
        self.data = data


class _Connection:
    def __init__(self, server: Server, sock: socket.socket, user: str = "") -> None:
        self.server = server
        self.socket = sock
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        self.user = user  # the name in the client's certificate; empty for who has none
        self.uploads = False  # whether the body is one of files
        self.fresh = True  # nothing was read of it
        self.switched = False  # to a protocol of others, who may have it still when this is done with it

    def next_event(self) -> h11.Event:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.http.they_are_waiting_for_100_continue:
                self.socket.sendall(self.http.send(h11.InformationalResponse(status_code=100, headers=[])))
            data = self.socket.recv(READ_SIZE)
            if data.startswith(HTTP2) and self.fresh:
                raise _Http2(data)
            self.fresh = False
            self.http.receive_data(data)

    def receive_data(self) -> bytes:
        """The next part of the body; b"" at its end. A client that says nothing for long is not waited for."""
        patience = UPLOAD_SECONDS if self.uploads else BODY_SECONDS
        self.socket.settimeout(patience)
        try:
            return self._next_data()
        except TimeoutError:
            raise TimedOut(f"the rest of the request's body did not come within {patience} seconds") from None
        finally:
            self.socket.settimeout(None)

    def _next_data(self) -> bytes:
        while True:
            event = self.next_event()
            if isinstance(event, h11.Data):
                if event.data:
                    return bytes(event.data)
                continue
            if isinstance(event, h11.EndOfMessage):
                return b""
            if event is h11.PAUSED:
                return b""
            raise ConnectionError("the client went away in the middle of a request body")

    def run(self) -> None:
        self.socket.settimeout(IDLE_SECONDS)
        try:
            while self._one():
                if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
                    break
                self.http.start_next_cycle()
        except (ConnectionError, TimeoutError):
            pass
        except _Http2 as error:
            self._speak_http2(error.data)
        except OSError as error:
            log.debug("connection ended: %s", error)
        except Exception:
            log.exception("connection failed")
        finally:
            self._part()

    def _speak_http2(self, data: bytes) -> None:
        """A client that speaks HTTP/2 from the first byte: one of gRPC calls the builder, which alone has that here."""
        from teu.engine.api import http2  # 3 ms, for those who speak it

        self.socket.settimeout(None)
        read = bytearray(data)
        if http2.asks_at_once(self.socket, read):
            http2.serve(self.socket, bytes(read), lambda sock: _Connection(self.server, sock, self.user).run())
            return
        data = bytes(read)
        if self.server.engine.config.get("authorization-plugins"):
            log.warning("a connection of gRPC is closed: authorization plugins cannot be asked of its requests")
            return
        try:
            builder = self.server.engine.builder.dial()
        except EngineError as error:
            log.debug("a connection of HTTP/2: %s", error)
            return  # without an answer: whoever has no builder has no HTTP/2 to give one in
        relay.carry(self.socket, data, builder)

    def _part(self) -> None:
        """Close the connection; the kernel resets it where bytes are unread, so a refusal's body is taken first,
        whatever its size: a client that is still sending would find a broken pipe in place of the answer."""
        try:
            body = self.http.their_state is h11.SEND_BODY and not self.switched
            if body and not self.http.they_are_waiting_for_100_continue:
                self.socket.shutdown(socket.SHUT_WR)
                self.socket.settimeout(PART_QUIET_SECONDS)
                until = time.monotonic() + PART_SECONDS
                while time.monotonic() < until and self.socket.recv(PART_SIZE):
                    pass
        except OSError:
            pass
        finally:
            self.socket.close()

    def _one(self) -> bool:
        """One request. False: the connection is used up."""
        try:
            event = self.next_event()
        except h11.RemoteProtocolError as error:
            if self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._send(_error_response(error.error_status_hint or 400, f"bad HTTP: {error}"), False)
            return False
        except ValueError:  # h11 makes a number of any digits, and Python has a limit
            self.socket.sendall(NO_LENGTH)
            return False
        if not isinstance(event, h11.Request):
            return False
        self.socket.settimeout(None)
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
        headers = dict(pairs)
        method = event.method.decode("ascii", "replace")
        target = event.target.decode("latin-1")
        body = _Body(self)
        self.uploads = not headers.get("content-type", "application/json").startswith("application/json")
        upgrade = "upgrade" in headers
        response: Response
        began = time.monotonic()
        verb = method in ("POST", "DELETE", "PUT")
        self.server.count(verb)
        try:
            response = self._dispatch(method, target, pairs, headers, body)
            if response.hijack is not None:  # what is announced as a body is none of the stream's (dockerode has one)
                while body.read(PART_SIZE):
                    pass
        except EngineError as error:
            response = _error_response(error.status, str(error))
        except h11.RemoteProtocolError as error:
            response = _error_response(400, f"bad HTTP: {error}")
        except ConnectionError:
            return False
        except Exception as error:
            log.exception("%s %s failed", method, target)
            response = _error_response(500, f"internal error: {type(error).__name__}: {error}")
        finally:
            self.server.count(-verb)
        log.debug("%s %s %d in %.1f ms", method, target, response.status, (time.monotonic() - began) * 1000)
        try:
            if response.hijack is not None:
                self._hijack(response, upgrade)
                return False
            self._drain()
            self._send(response, method == "HEAD")
        finally:
            if response.done is not None:
                response.done()
        self.socket.settimeout(IDLE_SECONDS)
        return True

    def _dispatch(
        self, method: str, target: str, pairs: list[tuple[str, str]], headers: dict[str, str], body: _Body
    ) -> Response:
        path, _, query = target.partition("?")
        version = API_VERSION
        if match := _VERSION.fullmatch(path):
            version = (int(match[1][:9]), int(match[2][:9]))
            path = match[3]
            if version < (minimum := oldest(self.server.engine)):
                raise BadRequest(
                    f"client version {version_text(version)} is too old. Minimum supported API version is "
                    f"{version_text(minimum)}, please upgrade your client to a newer version"
                )
            if version > API_VERSION:
                raise BadRequest(
                    f"client version {version_text(version)} is too new. Maximum supported API version is "
                    f"{version_text(API_VERSION)}"
                )
        handler, pattern, arguments = router.find(method, path)
        engine = self.server.engine
        if path not in _EARLY and not engine.ready.is_set():
            deadline = time.monotonic() + STARTUP_SECONDS
            while not (engine.failure or engine.waiting) and time.monotonic() < deadline:
                if engine.ready.wait(0.5):
                    break
            if not engine.ready.is_set():
                if engine.waiting and not engine.failure:
                    raise Unavailable(
                        f"the engine is not up: containerd at {engine.containerd.address} cannot be reached "
                        f"({engine.waiting}); its journal says why"
                    )
                raise Unavailable(f"the engine is not up: {engine.failure or 'it is still starting'}")
        request = Request(
            method, unquote(path), query, headers, body, version, Departure(self.gone), self._hangup, pairs
        )
        if names := self._authorities():
            return self._authorized(names, target, request, lambda: self._handle(pattern, request, handler, arguments))
        return self._handle(pattern, request, handler, arguments)

    def _handle(
        self, pattern: str, request: Request, handler: Callable[..., Response], arguments: dict[str, str]
    ) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        versions.check_route(method, pattern, request.version)
        fields.check_parameters(request.method, pattern, request.query.values)
        began = time.monotonic()
        response = handler(self.server.engine, request, **arguments)
        if action := ACTIONS.get((request.method, pattern)):
            self.server.engine.figures.took(action, time.monotonic() - began)
        return response

    def _authorities(self) -> list[str]:
        """The plugins that are asked; of those that the engine manages itself none that was disabled by a request,
        which they have allowed."""
        engine = self.server.engine
        names: list[str] = engine.config.get("authorization-plugins") or []
        if names and engine.plugins.withdrawn:
            return [name for name in names if KNOWN.named(name) not in engine.plugins.withdrawn]
        return names

    def _authorized(self, names: list[str], target: str, request: Request, handle: Callable[[], Response]) -> Response:
        """The handler's answer, where the plugins of these names allow the request and the answer."""
        from teu.engine.api.authorization import Authorization  # 17 ms, where plugins are configured

        asked = Authorization(names, self.user, target, request)
        body = asked.body()
        asked.ask(body)
        if body:
            request.body = io.BytesIO(body)
        response = handle()
        asked.names = self._authorities()  # it may have disabled one of them
        asked.answer(response)
        return response

    def _drain(self) -> None:
        """Read what is left of a small body, so that the connection can be used again. Nobody waits for what has not
        come yet: the answer goes out first then, and the connection is not used again."""
        end = time.monotonic() + REST_SECONDS
        try:
            for _ in range(16):
                if self.http.their_state is not h11.SEND_BODY or self.http.they_are_waiting_for_100_continue:
                    return
                self.socket.settimeout(max(0.001, end - time.monotonic()))
                self._next_data()
        except (h11.RemoteProtocolError, ConnectionError, TimeoutError):
            return
        finally:
            self.socket.settimeout(None)

    @contextlib.contextmanager
    def _hangup(self, notice: Callable[[], None]) -> Iterator[threading.Event]:
        """An event that is set when the client goes away; `notice` is called then, in the pump's thread."""
        gone = threading.Event()

        def leaves(mask: int) -> None:
            pump.unregister(descriptor)
            gone.set()
            notice()

        pump, descriptor = self.server.engine.pump, self.socket.fileno()
        pump.register(descriptor, select.EPOLLRDHUP, leaves)
        try:
            yield gone
        finally:
            pump.call(lambda: pump.unregister(descriptor))

    def _send(self, response: Response, head: bool) -> None:
        headers = [
            ("Api-Version", version_text(API_VERSION)),
            ("Docker-Experimental", "false"),
            ("Ostype", "linux"),
            ("Server", f"Teu/{__version__} (linux)"),
            *response.headers.items(),
        ]
        if response.chunks is None:
            if response.status not in (204, 304):
                headers.append(("Content-Length", str(len(response.body))))
            if self.http.their_state is h11.SEND_BODY:
                headers.append(("Connection", "close"))
            data = self.http.send(h11.Response(status_code=response.status, headers=headers))
            if response.body and not head:
                data += self.http.send(h11.Data(data=response.body)) or b""
            data += self.http.send(h11.EndOfMessage()) or b""
            self.socket.sendall(data)
            return
        chunks = iter(response.chunks)
        try:
            self.socket.sendall(self.http.send(h11.Response(status_code=response.status, headers=headers)))
            for chunk in chunks:
                if not chunk:
                    self._still_there()
                elif not head:
                    for part in self.http.send_with_data_passthrough(h11.Data(data=chunk)) or ():
                        self.socket.sendall(part)
            self.socket.sendall(self.http.send(h11.EndOfMessage()) or b"")
        except (ConnectionError, TimeoutError):
            self.http.send_failed()
            raise
        except Exception:
            # The status is out already: cut the connection, so that no one takes this for the end.
            log.exception("a streamed answer failed")
            self.http.send_failed()
        finally:
            close = getattr(chunks, "close", None)
            if close:
                close()

    def gone(self) -> bool:
        """Whether the client has left, or has said that nothing more comes; also while it has sent what is unread."""
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLRDHUP)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # closed here
            return True

    def _still_there(self) -> None:
        """An empty chunk: nothing to say yet, so look whether anybody still listens. What was sent and not read, a
        second request or a body that nobody wanted, says nothing of that."""
        if self.gone():
            raise ConnectionError("the client has gone")

    def _hijack(self, response: Response, upgrade: bool) -> None:
        assert response.hijack is not None
        protocol = response.headers.get("Upgrade")
        content_type = response.headers.get("Content-Type")
        if protocol:
            self.switched = True
            head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        elif upgrade:
            head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {content_type}\r\n"
            head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n"
        head += f"Api-Version: {version_text(API_VERSION)}\r\nOstype: linux\r\n\r\n"
        self.socket.sendall(head.encode())
        data = self.http.trailing_data[0]
        response.hijack(self.socket, bytes(data))


def _error_response(status: int, message: str) -> Response:
    if status == 304:
        return Response(304)
    message = whole_characters(message)  # a file's name may be no UTF-8
    return Response(status, json.dumps({"message": message}).encode() + b"\n", "application/json")


def peer(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid, gid of the other end of a unix socket."""
    return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


class Server:
    def __init__(self, engine: Engine, listeners: list[socket.socket], guard: Guard | None = None) -> None:
        """`guard`: who admits those that come by another socket than a unix one; None: they come in as they are."""
        self.engine = engine
        self.listeners = listeners
        self._guard = guard
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._active = 0  # verbs under way
        self._acceptors: list[threading.Thread] = []
        self._trimming = False
        self._trimmed = 0  # bytes resident after the last time
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self.last_activity = time.monotonic()

    def start(self) -> None:
        for listener in self.listeners:
            listener.setblocking(False)
            acceptor = threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True)
            self._acceptors.append(acceptor)
            acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._closing, select.POLLIN)
        while not self._closed:
            try:
                poll.poll()
                if self._closed:
                    return
                sock, _ = listener.accept()
            except BlockingIOError:
                continue  # another teud, or the client has left
            except OSError as error:
                if self._closed:
                    return
                log.error("accept: %s", error)
                self.engine.stopping.wait(0.1)
                continue
            with self._lock:
                too_many = len(self._connections) >= CONNECTIONS_MAX
                if not too_many:
                    self._connections.add(sock)
            if too_many:
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            served: socket.socket | None = sock
            user = ""
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._guard is not None:
                    admitted = self._guard.admit(sock)
                    served, user = (admitted.socket, admitted.name) if admitted is not None else (None, "")
            if served is not None:
                _Connection(self, served, user).run()
        except OSError as error:
            log.debug("connection ended: %s", error)
            sock.close()
        finally:
            with self._lock:
                self._connections.discard(sock)
                self.last_activity = time.monotonic()
                trim = not self._connections and not self._trimming
                trim = trim and memory.resident() >= self._trimmed + TRIM_BYTES
                self._trimming = self._trimming or trim
            if trim:
                timer = threading.Timer(TRIM_SECONDS, self._trim)
                timer.daemon = True
                timer.start()

    def _trim(self) -> None:
        """Soon after the last of many clients: what they needed goes back to the system, and what of it others had
        still to let go of."""
        before = memory.resident()
        memory.trim()
        while before - memory.resident() > TRIM_BYTES and not self._connections and not self._closed:
            time.sleep(TRIM_SECONDS)
            before = memory.resident()
            memory.trim()
        with self._lock:
            self._trimming = False
            self._trimmed = memory.resident()

    def idle_seconds(self) -> float:
        """How long nobody has been connected."""
        with self._lock:
            return 0.0 if self._connections else time.monotonic() - self.last_activity

    def count(self, change: int) -> None:
        with self._lock:
            self._active += change

    def finish(self, seconds: float, *, idle: bool = False) -> None:
        """Let requests that are being answered come to their end. Streams that never end are not waited for.

        `idle`: also those who have connected at the last moment, and not asked yet."""
        deadline = time.monotonic() + seconds
        while (self._active or (idle and self._connections)) and time.monotonic() < deadline:
            time.sleep(0.02)

    def busy(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        """Accept nobody any more: who connects from now on waits at systemd's socket for the next teud."""
        self._closed = True
        os.eventfd_write(self._closing, 1)
        for acceptor in self._acceptors:
            acceptor.join()
        for listener in self.listeners:
            # shutdown(2) would end the socket that systemd keeps
            listener.close()
