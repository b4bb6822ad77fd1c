# SPDX-License-Identifier: Apache-2.0
"""A daemon of prepared answers on a unix socket, and the client run against it in this process."""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from teu.cli import main


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


class Daemon:
    """`on` prepares an answer: JSON, Raw, Hijack, an int (a status) or (status, message); or a function of the
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


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon()
    handler = type("Bound", (Handler,), {"daemon": found})
    with Server(str(tmp_path / "teud.sock"), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture
def teu(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Result]]:
    """`teu(*argv, stdin=b"")`: (exit code, output, errors)."""
    for name in [name for name in os.environ if name.startswith(("DOCKER_", "TEU_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TZ", "UTC")

    def leave(code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        raise SystemExit(code)

    monkeypatch.setattr(main, "leave", leave)
    # Our server writes from this process too: a client that goes away must not end it.
    monkeypatch.setattr(main, "_signal", SimpleNamespace(signal=lambda *_: None, SIGPIPE=13, SIG_DFL=0))
    kept = os.dup(0)

    def run(*argv: str, stdin: bytes = b"") -> Result:
        given = tmp_path / "stdin"
        given.write_bytes(stdin)
        file = os.open(given, os.O_RDONLY)
        os.dup2(file, 0)
        os.close(file)
        options = ("-H", f"unix://{tmp_path}/teud.sock", "--config", str(tmp_path / "config"))
        monkeypatch.setattr(sys, "argv", ["teu", *options, *argv])
        capfd.readouterr()
        with given.open() as text, monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", text)
            with pytest.raises(SystemExit) as left:
                main.main()
        return Result(int(left.value.code or 0), *capfd.readouterr())

    yield run
    os.dup2(kept, 0)
    os.close(kept)
