# SPDX-License-Identifier: Apache-2.0
"""The way to a builder: gRPC over a connection that the engine hands over, or over a socket of the builder itself.

    docker's engine, teud     POST /grpc for our calls, POST /session for the builder's, upgraded to HTTP/2
    unix:// of a buildkitd    HTTP/2 at once; the session goes through Control.Session, as bytes inside a call

Called by every command of this package. Bytes are moved by two threads for each connection, since http2 does no I/O.
"""

from __future__ import annotations

import _socket
import os
import threading

from teu.cli.builds.messages import CONTROL, decode, encode
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.http2 import calls
from teu.http2.connection import CANCELLED, UNAVAILABLE, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any

    from teu.cli.command import Cli
    from teu.http2.connection import Headers, Stream
else:
    import _signal

PEER = "the builder"
CHUNK = 256 << 10
# What gRPC calls its codes, as Go's programs print them; UNKNOWN is not named.
NAMES = {
    1: "Canceled",
    3: "InvalidArgument",
    4: "DeadlineExceeded",
    5: "NotFound",
    6: "AlreadyExists",
    7: "PermissionDenied",
    8: "ResourceExhausted",
    9: "FailedPrecondition",
    10: "Aborted",
    11: "OutOfRange",
    12: "Unimplemented",
    13: "Internal",
    14: "Unavailable",
    15: "DataLoss",
    16: "Unauthenticated",
}
UNKNOWN, NOT_FOUND, ALREADY_EXISTS, INVALID_ARGUMENT, UNIMPLEMENTED = 2, 5, 6, 3, 12


class BuildError(Exception):
    """What the builder, or the way to it, refused: a code of gRPC, a text for a person, details (google.rpc.Status)."""

    def __init__(self, code: int, message: str, details: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class NoBuilder(Exception):
    """The engine has no BuildKit: it may have the classic builder, or none."""


class Link:
    """An HTTP/2 connection over a socket."""

    def __init__(self, sock: Any, begin: bytes = b"", serve: Callable[[Stream], None] | None = None) -> None:
        """begin: what the socket has given already. serve: for the other end's calls, else they are ours."""
        self._sock = _plain(sock)
        self.connection = Connection(BuildError, serve=serve, peer=PEER)
        if begin:
            self.connection.feed(begin)
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = self._sock.recv(CHUNK)
            except OSError as error:
                self.connection.close(BuildError(UNAVAILABLE, f"{PEER}'s connection broke: {error.strerror or error}"))
                return
            self.connection.feed(data)
            if not data:
                return

    def _write(self) -> None:
        try:
            while data := self.connection.take():
                self._sock.sendall(data, _socket.MSG_NOSIGNAL)
        except OSError as error:
            self.connection.close(BuildError(UNAVAILABLE, f"{PEER}'s connection broke: {error.strerror or error}"))
        try:
            self._sock.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        self.connection.close(BuildError(CANCELLED, "context canceled"))


def _plain(sock: Any) -> Any:
    """A socket that two threads may use at once: of TLS, one end of a pair whose other end a third thread serves."""
    if not hasattr(sock, "unwrap"):
        return sock
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    threading.Thread(target=_encrypted, args=(sock, theirs), daemon=True).start()
    return ours


def _encrypted(sock: Any, plain: Any) -> None:
    import select  # 0.3 ms, for connections by TLS alone
    import ssl  # loaded with the connection

    # OpenSSL writes without MSG_NOSIGNAL; a SIGPIPE that this thread does not take is an error of its write.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGPIPE,))
    sock.setblocking(False)
    waits = select.poll()
    waits.register(sock, select.POLLIN)
    waits.register(plain, select.POLLIN)
    try:
        while True:
            if not sock.pending():
                ready = [number for number, _ in waits.poll()]
            else:
                ready = [sock.fileno()]
            if sock.fileno() in ready:
                try:
                    data = sock.recv(CHUNK)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
                else:
                    if not data:
                        break
                    plain.sendall(data, _socket.MSG_NOSIGNAL)
            if plain.fileno() in ready:
                left = memoryview(plain.recv(CHUNK))
                if not left:
                    break
                while left:
                    try:
                        left = left[sock.send(left) :]
                    except ssl.SSLWantWriteError:
                        select.select([], [sock], [])
                    except ssl.SSLWantReadError:
                        select.select([sock], [], [])
    except OSError:
        pass
    finally:
        plain.close()
        sock.close()


def address_of(cli: Cli, given: str) -> str:
    """The path of the builder's own socket; "" for the engine's builder. given: what --builder says."""
    text = given or os.environ.get("TEU_BUILDKIT_HOST") or os.environ.get("BUILDKIT_HOST") or ""
    if not given and not text:
        text = os.environ.get("BUILDX_BUILDER") or ""
    if text in ("", "default"):
        return ""
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise CommandError(
            f'no builder "{text}" found: `--builder` takes "default", which is the engine\'s own, or the socket of a '
            "buildkitd as unix://PATH"
        )
    if scheme != "unix":
        raise CommandError(f'unable to parse builder address "{text}": use unix://PATH')
    return rest


class Builder:
    """A builder that listens; `call` it, and give it a session."""

    def __init__(self, cli: Cli, address: str = "") -> None:
        """NoBuilder where the engine has none. address: of a buildkitd's own socket, or "" for the engine's."""
        self._cli = cli
        self.address = address
        self._sessions: list[Link] = []
        if address:
            self._link = Link(_connected(address))
        else:
            sock, begin = _upgraded(cli, "/grpc", {})
            self._link = Link(sock, begin)
        self.connection = self._link.connection

    def call(self, method: str, answer: str, name: str, timeout: float | None = None, **fields: Any) -> Any:
        """One question (a message of that full name), one answer."""
        service = calls.unary(self.connection, method, encode(name, **fields), (), timeout)
        return decode(answer, service)

    def control(self, method: str, answer: str = "", **fields: Any) -> Any:
        """A call of Control without streams, whose messages are named as it is, unless the answer is said."""
        return self.call(
            f"/{CONTROL}Control/{method}",
            CONTROL + (answer or f"{method}Response"),
            f"{CONTROL}{method}Request",
            **fields,
        )

    def stream(self, method: str, name: str, **fields: Any) -> calls.Call:
        """A call of Control with one question and a stream of answers, as bytes."""
        call = calls.Call(self.connection, f"/{CONTROL}Control/{method}")
        call.send(encode(CONTROL + name, **fields))
        call.end()
        return call

    def session(self, identity: list[tuple[str, str]], serve: Callable[[Stream], None]) -> None:
        """Open the session in which the builder asks us. identity: the headers that say who we are."""
        if not self.address:
            headers: dict[str, str] = {}
            for name, value in identity:
                # A header that comes more than once stands in one value with its next lines.
                headers[name] = f"{headers[name]}\r\n{name}: {value}" if name in headers else value
            sock, begin = _upgraded(self._cli, "/session", headers)
            self._sessions.append(Link(sock, begin, serve))
            return
        inner = Connection(BuildError, serve=serve, peer=PEER)
        call = calls.Call(
            self.connection, f"/{CONTROL}Control/Session", [(key.lower(), value) for key, value in identity]
        )
        for work in (_into, _out_of):
            threading.Thread(target=work, args=(inner, call), daemon=True).start()

    def close(self) -> None:
        """End everything; what is queued may be lost."""
        for link in (*self._sessions, self._link):
            link.close()


def _into(inner: Connection, call: calls.Call) -> None:
    """What the builder says in a session that goes through a call."""
    try:
        for message in call:
            inner.feed(decode(f"{CONTROL}BytesMessage", message)["data"])
    except BuildError as error:
        inner.close(error)
    inner.feed(b"")


def _out_of(inner: Connection, call: calls.Call) -> None:
    try:
        while data := inner.take():
            call.send(encode(f"{CONTROL}BytesMessage", data=data))
        call.end()
    except BuildError as error:
        inner.close(error)


def _connected(path: str) -> Any:
    sock: Any = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise ConnectError(
            f"cannot connect to the builder at unix://{path}: {error.strerror}. Is teu-buildkitd running?"
        ) from None
    return sock


def _upgraded(cli: Cli, path: str, headers: Headers | dict[str, str]) -> tuple[Any, bytes]:
    """The engine's connection, and what it gave with the answer, after it agreed to speak HTTP/2 on it."""
    wanted = {"Connection": "Upgrade", "Upgrade": "h2c", **dict(headers)}
    try:
        response = cli.client.open("POST", path, headers=wanted, own=True)
    except APIError as error:
        if error.status in (400, 404, 405, 501) and path == "/grpc":
            raise NoBuilder(error.message) from None
        raise
    if response.status != 101:
        raise NoBuilder(f"the engine answered {response.status} to {path}")
    begin = bytes(response.connection.buffer)
    response.connection.buffer.clear()
    return response.connection.sock, begin


def described(error: BuildError) -> str:
    """The error as Go's programs print a status."""
    if error.code in NAMES:
        return f"{NAMES[error.code]}: {error.message}"
    return error.message
