# SPDX-License-Identifier: Apache-2.0
"""A daemon of prepared answers on a unix socket."""

from __future__ import annotations

import json
import socketserver
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any  # JSON decoded, else bytes

    def filters(self) -> Any:
        return json.loads(self.query["filters"])


class Raw(NamedTuple):
    """An answer that is no JSON document."""

    body: bytes
    kind: str = "application/octet-stream"
    headers: dict[str, str] = {}


class Hijack(NamedTuple):
    """The connection becomes a stream: `talk` gets it."""

    talk: Callable[[Any], None]


class Later(NamedTuple):
    """The head of the answer comes at once, its JSON when `value` returns."""

    value: Callable[[], Any]


class Daemon:
    """`on` prepares an answer: JSON, Raw, Hijack, Later, an int (a status) or (status, message); or a function of the
    request that gives one. What is not prepared is a 404, as with the real one."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {
            ("GET", "/_ping"): Raw(b"OK", "text/plain", {"Api-Version": "1.45"})
        }
        self.requests: list[Request] = []

    def on(self, method: str, path: str, answer: Any = 204) -> None:
        self.answers[method, path] = answer

    @property
    def last(self) -> Request:
        return self.requests[-1]

    def calls(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    daemon: Daemon

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote("/" + url.path.split("/", 2)[2])  # without the version
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body: Any = self.body()
        if self.headers.get("Content-Type") == "application/json" and body:
            body = json.loads(body)
        request = Request(self.command, path, query, body)
        self.daemon.requests.append(request)
        answer = self.daemon.answers.get((self.command, path), (404, f"no such thing: {path}"))
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Hijack):
            self.send_response(101)
            self.end_headers()
            answer.talk(self.connection)
            self.close_connection = True
            return
        if isinstance(answer, Later):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            data = json.dumps(answer.value()).encode()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
            return
        status, headers = 200, {"Content-Type": "application/json"}
        if isinstance(answer, int):
            status, data = answer, b""
        elif isinstance(answer, tuple) and not isinstance(answer, Raw):
            status, data = answer[0], json.dumps({"message": answer[1]}).encode()
        elif isinstance(answer, Raw):
            data, headers = answer.body, {"Content-Type": answer.kind, **answer.headers}
        else:
            data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = serve


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client may leave before it has read its answer."""
