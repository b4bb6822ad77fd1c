# SPDX-License-Identifier: Apache-2.0
"""TLS for the sockets that are reached from other machines. Made by main where it listens on one, and asked by the
server for each of their connections.

The server, and whom it hands connections to, work on descriptors: they splice, they poll, they pass them on. So a
connection of TLS ends here: a thread of its own carries what it says to a socket pair and back, with its half-closes,
and the server has the other end of the pair as if that were the client.

The certificates are read again when their files change: the next client gets the new ones. Files that are broken, or
half written, leave the old ones in force, and the journal says so."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
from typing import Any, NamedTuple

from teu.config import Settings
from teu.engine.core.errors import EngineError

log = logging.getLogger("teu.engine")

HANDSHAKE_SECONDS = 10.0
CHUNK = 64 << 10
QUEUE_MAX = 256 << 10
"""Bytes that wait for one side before the other one is not read any more."""
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: keys of each connection alone, and authenticated encryption. TLS 1.3 has no others."""
FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
)


class Admitted(NamedTuple):
    """A client whose handshake went well: the socket to serve it on, and the common name of its certificate."""

    socket: socket.socket
    name: str


class Guard:
    """What teud.yaml says of TLS, put into force. Its keys may change while it is used."""

    def __init__(self, settings: Settings) -> None:
        """Raises EngineError where the certificates cannot be used."""
        self._settings = settings
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._context: ssl.SSLContext | None = None
        self.context()

    def _files(self) -> dict[str, str]:
        names = ["tlscert", "tlskey", *(["tlscacert"] if self._settings["tlsverify"] else [])]
        return {name: self._settings[name] for name in names}

    def context(self) -> ssl.SSLContext:
        """That of the certificates as they are now; the last ones that could be used, where they cannot. Raises
        EngineError where there never were any."""
        with self._lock:
            seen = tuple((path, _state(path)) for path in self._files().values())
            if seen != self._seen or self._context is None:
                try:
                    fresh = self._load()
                except (OSError, ValueError) as error:
                    files = ", ".join(f"{name} {path}" for name, path in self._files().items())
                    text = f"TLS cannot be served with {files}: {getattr(error, 'strerror', None) or error}"
                    if self._context is None:
                        raise EngineError(text) from None
                    if seen != self._seen:
                        log.error("%s; the certificates from before stay in force", text)
                else:
                    if self._context is not None:
                        log.info("the certificates of TLS have changed: new connections get them")
                    self._context = fresh
                self._seen = seen
            return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._settings["tlscert"], self._settings["tlskey"])
        if self._settings["tlsverify"]:
            context.load_verify_locations(self._settings["tlscacert"])
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def admit(self, client: socket.socket) -> Admitted | None:
        """Shake hands with a client, whose socket is a thread's from then on. None: it was closed; the journal says
        why."""
        try:
            link = _Link(client, self.context())
            link.shake_hands()
        except (OSError, EngineError) as error:
            log.info("a client of TLS was not admitted: %s", getattr(error, "reason", None) or error)
            client.close()
            return None
        names = link.names()
        allowed = self._settings["tls-names"]
        if allowed and not set(names) & set(allowed):
            log.warning(
                "a client of TLS was refused: none of its names %s is in tls-names", ", ".join(names) or "(none)"
            )
            body = b'{"message": "the name of your certificate is not in tls-names of teud.yaml"}\n'
            link.refuse(FORBIDDEN % (len(body), body))
            return None
        ours, theirs = socket.socketpair()
        threading.Thread(target=link.carry, args=(theirs,), name="tls", daemon=True).start()
        return Admitted(ours, names[0] if names else "")


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class _Link:
    """One connection: what comes as TLS, and what goes out as such."""

    def __init__(self, client: socket.socket, context: ssl.SSLContext) -> None:
        self._client = client
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_side=True)

    def shake_hands(self) -> None:
        """Raises OSError where the client is none that may come in, goes away, or takes too long."""
        self._client.settimeout(HANDSHAKE_SECONDS)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._client.recv(CHUNK)
                if not data:
                    raise ConnectionError("it went away in the handshake") from None
                self._received.write(data)
                continue
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that says why
                raise
            self._flush()
            return

    def _flush(self) -> None:
        if data := self._to_send.read():
            self._client.sendall(data)

    def names(self) -> list[str]:
        """Of the client's certificate: its common name, then its other names. Empty where it was not asked for one."""
        found = self._tls.getpeercert() or {}
        subject: Any = [pair for part in found.get("subject", ()) for pair in part]
        names = [str(value) for key, value in subject if key == "commonName"]
        others: Any = found.get("subjectAltName", ())
        return names + [str(name) for _, name in others]

    def refuse(self, answer: bytes) -> None:
        """Answer whatever is asked, and close the connection."""
        with contextlib.suppress(OSError):
            if not self._received.pending:
                self._received.write(self._client.recv(CHUNK))  # unread, it would reset the connection
            self._tls.write(answer)
            with contextlib.suppress(ssl.SSLError):  # that the client has more to say
                self._tls.unwrap()
            self._flush()
            self._client.shutdown(socket.SHUT_WR)
            self._client.recv(CHUNK)
        self._client.close()

    def carry(self, inner: socket.socket) -> None:
        """Between the client and `inner`, until both have said their last or one is gone. Closes both."""
        with self._client, inner:
            self._client.setblocking(False)
            inner.setblocking(False)
            try:
                _Carriage(self._client, inner, self._tls, self._received, self._to_send).run()
            except OSError as error:
                log.debug("a connection of TLS ended: %s", error)


class _Carriage:
    """The two directions of a connection, each with what waits in it."""

    def __init__(
        self,
        client: socket.socket,
        inner: socket.socket,
        tls: ssl.SSLObject,
        received: ssl.MemoryBIO,
        to_send: ssl.MemoryBIO,
    ) -> None:
        self._client, self._inner, self._tls = client, inner, tls
        self._received, self._to_send = received, to_send
        self._inward, self._outward = bytearray(), bytearray()
        self._client_speaks = self._inner_speaks = True
        self._told_inner = self._told_client = False

    def run(self) -> None:
        self._decrypt()  # what came with the end of the handshake
        while not (self._told_inner and self._told_client):
            poll = select.poll()
            poll.register(self._client, self._interest(self._client_speaks, self._inward, self._outward))
            poll.register(self._inner, self._interest(self._inner_speaks, self._outward, self._inward))
            ready = dict(poll.poll())
            happened = ready.get(self._inner.fileno(), 0)
            if happened & (select.POLLIN | select.POLLHUP | select.POLLERR) and self._inner_speaks:
                self._from_inner()
            elif happened & (select.POLLHUP | select.POLLERR) and not self._outward:
                return  # the server has closed it
            happened = ready.get(self._client.fileno(), 0)
            if happened & (select.POLLIN | select.POLLHUP | select.POLLERR) and self._client_speaks:
                self._from_client()
            elif happened & select.POLLERR:
                return
            self._deliver()

    @staticmethod
    def _interest(speaks: bool, incoming: bytearray, outgoing: bytearray) -> int:
        """What to wait for on a socket: its words, unless too many wait already, and room for ours."""
        return (select.POLLIN if speaks and len(incoming) < QUEUE_MAX else 0) | (select.POLLOUT if outgoing else 0)

    def _from_client(self) -> None:
        try:
            data = self._client.recv(CHUNK)
        except BlockingIOError:
            return
        if data:
            self._received.write(data)
        else:
            self._received.write_eof()
        self._decrypt()

    def _decrypt(self) -> None:
        try:
            while piece := self._tls.read(CHUNK):
                self._inward += piece
            self._client_speaks = False
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._client_speaks = False
        self._outward += self._to_send.read()

    def _from_inner(self) -> None:
        try:
            data = self._inner.recv(CHUNK)
        except BlockingIOError:
            return
        if data:
            self._tls.write(data)
        else:
            self._inner_speaks = False
            with contextlib.suppress(ssl.SSLError):  # that it wants the client's last word first
                self._tls.unwrap()
        self._outward += self._to_send.read()

    def _deliver(self) -> None:
        """Send what waits, and tell each side that the other one has said its last."""
        with contextlib.suppress(BlockingIOError):
            while self._outward:
                del self._outward[: self._client.send(self._outward)]
        with contextlib.suppress(BlockingIOError):
            while self._inward:
                del self._inward[: self._inner.send(self._inward)]
        if not (self._inner_speaks or self._outward or self._told_client):
            self._told_client = True
            self._client.shutdown(socket.SHUT_WR)
        if not (self._client_speaks or self._inward or self._told_inner):
            self._told_inner = True
            self._inner.shutdown(socket.SHUT_WR)
