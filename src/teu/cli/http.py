# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 client for the Engine API over a unix or TCP socket, or through ssh.

Why not http.client: it brings email, socket, re and enum, more time than a whole `teu ps` may take. Called by
the commands through `Client`, which keeps one connection open for calls one after another and opens further
ones for streams (attach, wait, events).
"""

from __future__ import annotations

import _socket
import gc
import os
import sys

from teu.cli.errors import APIError, CommandError, ConnectError
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# The last in which `inspect` tells a container's address beside its networks, where so many scripts look for it.
API_VERSION = "1.51"
DEFAULT_HOST = "unix:///run/teu/teud.sock"
CHUNK = 1 << 16
# Written without escaping in a path or a query: RFC 3986's unreserved, and what is harmless besides.
SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~:/@")


def quote(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    if SAFE.issuperset(raw):
        return text
    return "".join(chr(byte) if byte in SAFE else f"%{byte:02X}" for byte in raw)


def query_string(values: dict[str, Any]) -> str:
    """`?a=1&b=x`, leaving out what is None, empty or False; lists repeat the key."""
    parts = []
    for key, value in values.items():
        for item in value if isinstance(value, list) else (value,):
            if item is None or item is False or item == "":
                continue
            text = "1" if item is True else jsontext.dumps(item) if isinstance(item, dict) else str(item)
            parts.append(f"{key}={quote(text).replace('/', '%2F')}")
    return "?" + "&".join(parts) if parts else ""


class Connection:
    """One socket with a read buffer."""

    def __init__(self, sock: Any, flags: int = _socket.MSG_NOSIGNAL) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.flags = flags
        self.through = ""  # http://HOST:PORT of the daemon, where a proxy stands between

    def fill(self) -> bool:
        """Read more into the buffer; False at the end of the stream."""
        data = self.sock.recv(CHUNK)
        self.buffer += data
        return bool(data)

    def line(self) -> bytes:
        while True:
            end = self.buffer.find(b"\n")
            if end >= 0:
                line = bytes(self.buffer[:end]).rstrip(b"\r")
                del self.buffer[: end + 1]
                return line
            if not self.fill():
                raise ConnectError("the daemon closed the connection")

    def request(self, data: bytes) -> None:
        """Send a request from its first line on; a proxy wants the whole address there."""
        self.send(data.replace(b" /", b" " + self.through.encode() + b"/", 1) if self.through else data)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data, self.flags)

    def close(self) -> None:
        self.sock.close()


class Response:
    """Status, headers (lower-case names) and the body, read as it is asked for."""

    def __init__(self, connection: Connection, head: bool = False) -> None:
        self.connection = connection
        self.replay: bytes | None = None  # a body that was read already and may be wanted again
        while True:
            words = connection.line().split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
                raise ConnectError("what answers is not an HTTP server")
            self.status = int(words[1])
            self.headers: dict[str, str] = {}
            while line := connection.line():
                name, _, value = line.partition(b":")
                self.headers[name.decode("latin-1").lower()] = value.strip().decode("utf-8", "replace")
            if self.status >= 200 or self.status == 101:
                break
        self.chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length")
        if head or self.status in (101, 204, 304):
            self.left: int | None = 0
            self.chunked = False
        elif self.chunked:
            self.left = 0
        else:
            self.left = int(length) if length is not None else None
        self.finished = self.left == 0 and not self.chunked
        self.keep = self.left is not None and self.headers.get("connection", "").lower() != "close"

    def chunk(self) -> bytes:
        """The next piece of the body; empty at its end."""
        connection = self.connection
        buffer = connection.buffer
        if self.finished:
            return b""
        if self.chunked and self.left == 0:
            size = int(connection.line().partition(b";")[0] or b"0", 16)
            if size == 0:
                while connection.line():
                    pass
                self.finished = True
                return b""
            self.left = size
        if not buffer and not connection.fill():
            if self.left is None:
                self.finished = True
                return b""
            raise ConnectError("the daemon closed the connection in the middle of an answer")
        if self.left is None:
            piece = bytes(buffer)
            buffer.clear()
            return piece
        piece = bytes(buffer[: self.left])
        del buffer[: len(piece)]
        self.left -= len(piece)
        if self.left == 0:
            if self.chunked:
                connection.line()
            else:
                self.finished = True
        return piece

    def chunks(self) -> Iterator[bytes]:
        while piece := self.chunk():
            yield piece

    def read(self) -> bytes:
        if self.replay is not None:
            return self.replay
        return b"".join(self.chunks())

    def messages(self) -> Iterator[Any]:
        """The JSON values of a stream, one per line."""
        gc.enable()  # which a quick start has not done: this may go on for days
        rest = b""
        for piece in self.chunks():
            rest += piece
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if line.strip():
                    yield jsontext.loads(line, exact=True)
        if rest.strip():
            yield jsontext.loads(rest, exact=True)


def proxy_for(scheme: str, target: tuple[str, int]) -> tuple[str, int] | None:
    """The proxy that the environment names for a host, by Go's rules: never for this machine's own addresses."""
    environment = os.environ
    text = environment.get(f"{scheme}_proxy") or environment.get(f"{scheme.upper()}_PROXY") or ""
    host = target[0].lower()
    if not text or host == "localhost" or host.startswith("127.") or host == "::1":
        return None
    for word in (environment.get("no_proxy") or environment.get("NO_PROXY") or "").lower().split(","):
        name, _, port = word.strip().partition(":")
        name = name.removeprefix("*").lstrip(".")
        known = bool(name) and (host == name or host.endswith("." + name))
        if word.strip() == "*" or (known and port in ("", str(target[1]))):
            return None
    _, _, rest = text.rpartition("://")
    name, _, port = rest.rpartition("@")[2].partition("/")[0].rpartition(":")
    return (name, int(port)) if name and port.isascii() and port.isdigit() else (name or port, 80)


def tunnel(sock: Any, target: str) -> None:
    """Have a proxy hand on all that follows (CONNECT). OSError where it does not."""
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = sock.recv(1)  # what follows is the tunnel's
        if not piece or len(answer) > 65536:
            raise OSError(0, f"the proxy closed the connection to {target}")
        answer += piece
    status = answer.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise OSError(0, f"the proxy refused the connection to {target}: {answer.splitlines()[0].decode('latin-1')}")


class Client:
    """The daemon at `host`. `headers` go with every request."""

    def __init__(self, host: str, tls: dict[str, str] | None = None, headers: dict[str, str] | None = None):
        self.host = host
        self.tls = tls
        self.headers = headers or {}
        version = os.environ.get("TEU_API_VERSION") or os.environ.get("DOCKER_API_VERSION")
        # The newest version that we know is tried at once; a daemon that has only an older one says so, and which.
        # `settled` is set once a daemon has taken the version, or the user has fixed it.
        self.prefix = "/v" + (version.lstrip("v") if version else API_VERSION)
        self.settled = bool(version)
        self.idle: Connection | None = None
        scheme, _, rest = host.rpartition("://")
        self.address = "localhost" if scheme in ("unix", "ssh") else rest.partition("/")[0]

    def connect(self, direct: bool = False) -> Connection:
        """A new connection. For tcp:// by the proxy that the environment names, unless it has to be `direct`, as for
        what becomes a raw stream."""
        scheme, separator, rest = self.host.partition("://")
        if not separator:
            scheme, rest = "tcp", self.host
        if scheme == "unix":
            return self._connect_unix(rest)
        if scheme == "ssh":
            from teu.cli import ssh  # 0.4 ms, and most clients speak to a unix socket

            return Connection(ssh.connect(self.host))
        if scheme not in ("tcp", "http", "https"):
            text = "use unix://PATH, tcp://HOST:PORT or ssh://HOST"
            raise CommandError(f'unable to parse daemon host "{self.host}": {text}')
        import socket  # 6 ms, and most clients speak to a unix socket

        rest = rest.partition("/")[0]
        target = self._target(rest)
        encrypted = self.tls is not None or scheme == "https"
        proxy = None if direct else proxy_for("https" if encrypted else "http", target)
        try:
            sock = socket.create_connection(proxy or target)
            if proxy and encrypted:
                tunnel(sock, rest)
        except OSError as error:
            raise ConnectError(self.explain(error)) from None
        except UnicodeError:  # such a label can be in no name of a host: too long, empty, or of such characters
            raise CommandError(f'unable to parse daemon host "{self.host[:200]}": it has no name of a host') from None
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        if encrypted:
            return self._encrypt(sock, target[0])
        connection = Connection(sock)
        connection.through = f"http://{rest}" if proxy else ""
        return connection

    def _connect_unix(self, path: str) -> Connection:
        sock: Any = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            raise ConnectError(self.explain(error)) from None
        return Connection(sock)

    def _target(self, text: str) -> tuple[str, int]:
        """HOST[:PORT] as an address to connect to."""
        name, _, port = text.rpartition(":")
        if not name or not port.isascii() or not port.isdigit():
            name, port = text.rstrip(":"), "2376" if self.tls is not None else "2375"
        if len(port) > 5 or int(port) > 65535:
            raise CommandError(f'unable to parse daemon host "{self.host[:200]}": a port is at most 65535')
        return name.strip("[]") or "127.0.0.1", int(port)

    def _encrypt(self, sock: Any, name: str) -> Connection:
        """TLS on a connection to the host of this name."""
        import ssl  # 15 ms

        tls = self.tls or {}
        try:
            context = ssl.create_default_context(cafile=tls.get("ca"))
            if tls.get("cert"):
                context.load_cert_chain(tls["cert"], tls.get("key"))
        except OSError as error:  # not there, or no certificate
            files = ", ".join(tls[key] for key in ("ca", "cert", "key") if tls.get(key))
            raise CommandError(f"cannot use the certificates in {files}: {error.strerror or error}") from None
        # Python 3.13 refuses authorities without a key usage, which is what docker's own instructions make
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not tls.get("verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            sock = context.wrap_socket(sock, server_hostname=name)
        except OSError as error:
            raise ConnectError(self.explain(error)) from None
        return Connection(sock, 0)

    def explain(self, error: OSError) -> str:
        """What was asked, what was in the way, what to do."""
        if isinstance(error, PermissionError):
            text = (
                f"permission denied while trying to connect to the Teu daemon socket at {self.host}: "
                f"connect: permission denied"
            )
            if self.host.startswith("unix://"):
                text += (
                    "\nMembers of the socket's group may use it: `usermod -aG teu USER`, then log in again; "
                    "or run the command as root."
                )
            return text
        text = f"Cannot connect to the Teu daemon at {self.host}. Is the teu daemon running?"
        if self.host == DEFAULT_HOST:
            text += "\nTo start it: `systemctl start teud.socket`."
        elif not isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            text += f" ({error.strerror or error})"
        return text

    def _head(self, method: str, path: str, query: dict[str, Any] | None, headers: dict[str, str]) -> bytes:
        target = self.prefix + path + (query_string(query) if query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.address}", "User-Agent: Teu-Client/0.1"]
        lines += [f"{name}: {value}" for name, value in {**self.headers, **headers}.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")

    def open(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        own: bool = False,
        check: bool = True,
    ) -> Response:
        """Send a request and read the head of its answer. `body` is JSON-able, or an iterable of bytes when
        the headers name its Content-Type. With `own` the answer gets a connection of its own, for streams
        that stay open beside other calls."""
        given, headers = headers, dict(headers or {})
        data: bytes | None = None
        stream = None
        if "Content-Type" in headers:
            self._settle()
            stream = body
            headers["Transfer-Encoding"] = "chunked"
        elif body is not None:
            data = jsontext.dumps(body).encode("utf-8", "surrogateescape")
            headers["Content-Type"] = "application/json"
            headers["Content-Length"] = str(len(data))
        elif method not in ("GET", "HEAD"):
            headers["Content-Length"] = "0"
        request = self._head(method, path, query, headers) + (data or b"")
        try:
            sys.stdout.flush()  # whoever is interrupted while we wait has seen what was done
        except OSError:
            pass  # it is told at the end
        fresh = True
        connection: Connection | None = None
        if not own and self.idle is not None and stream is None:
            connection, self.idle, fresh = self.idle, None, False
        if connection is None:
            connection = self.connect("Upgrade" in headers)
        try:
            response = self._exchange(connection, request, stream, method)
        except (OSError, ConnectError) as error:
            connection.close()
            if fresh:
                if isinstance(error, ConnectError):
                    raise
                raise ConnectError(f"error during connect: {method} {path}: {error.strerror or error}") from None
            # The daemon closed the kept connection between two calls: try once more on a new one.
            connection = self.connect()
            response = self._exchange(connection, request, stream, method)
        if not self.settled:
            if response.status == 400 and self._is_older(response, method):
                return self.open(method, path, query, body, headers=given, own=own, check=check)
            self.settled = True
        if check and response.status >= 400:
            raise self.failure(response)
        return response

    def _is_older(self, response: Response, method: str) -> bool:
        """Whether the refusal is of our version, or may be; then the daemon's is settled."""
        if method == "HEAD":  # nothing was said
            self.done(response)
            self._settle()
            return True
        older = self._older(response)
        self.prefix, self.settled = older or self.prefix, True
        return bool(older)

    def _older(self, response: Response) -> str:
        """The prefix of the version that the daemon wants instead of ours, or "" where that is not its trouble."""
        response.replay = response.read()
        text = response.replay.decode("utf-8", "replace")
        if "is too new" not in text:
            return ""
        version = text.partition("Maximum supported API version is ")[2][:5].strip(' ."}\n')
        if not version.replace(".", "").isdigit():
            return ""
        self.done(response)
        return "/v" + version

    def _settle(self) -> None:
        """Settle the version before a request that cannot be sent twice."""
        if not self.settled:
            self.call("GET", "/_ping")

    def _exchange(self, connection: Connection, request: bytes, stream: Any, method: str) -> Response:
        connection.request(request)
        if stream is not None:
            try:
                for piece in stream:
                    if piece:
                        connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                connection.send(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused half-way: the answer says why
        return Response(connection, method == "HEAD")

    def begin(self, method: str, path: str, query: dict[str, Any] | None = None) -> Connection:
        """Send a request without a body on a connection of its own; `answer` reads what comes back."""
        self._settle()
        headers = {} if method in ("GET", "HEAD") else {"Content-Length": "0"}
        connection = self.connect()
        connection.request(self._head(method, path, query, headers))
        return connection

    def answer(self, connection: Connection) -> Response:
        return Response(connection)

    def done(self, response: Response) -> None:
        """The answer was read to its end: keep its connection for the next call, or close it."""
        if response.finished and response.keep and self.idle is None:
            self.idle = response.connection
        else:
            response.connection.close()

    def failure(self, response: Response) -> APIError:
        body = response.read()
        self.done(response)
        try:
            message = str(jsontext.loads(body, exact=True)["message"])
        except (ValueError, KeyError, TypeError):
            message = body.decode("utf-8", "replace").strip() or f"HTTP status {response.status}"
        return APIError(response.status, message.rstrip())

    def call(self, method: str, path: str, query: dict[str, Any] | None = None, body: Any = None, **more: Any) -> Any:
        """A whole call: the decoded JSON of the answer, or None where it has no JSON."""
        response = self.open(method, path, query, body, **more)
        data = response.read()
        kind = response.headers.get("content-type", "")
        self.done(response)
        return jsontext.loads(data, exact=True) if data and kind.startswith("application/json") else None

    def get(self, path: str, query: dict[str, Any] | None = None) -> Any:
        return self.call("GET", path, query)

    def hijack(self, path: str, query: dict[str, Any] | None = None, body: Any = None) -> Response:
        """POST and upgrade the connection to a raw stream in both directions."""
        headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
        return self.open("POST", path, query, body, headers=headers, own=True)
