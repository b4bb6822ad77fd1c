# SPDX-License-Identifier: Apache-2.0
"""Authorization plugins: what they are shown, what they may stop, and that nothing goes past them."""

from __future__ import annotations

import base64
import json
import socket
import socketserver
import threading
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from teu.engine.api import router
from teu.engine.api.authorization import BODY_MAX, shown
from teu.engine.api.messages import Response, json_response, stream
from teu.engine.api.server import Server
from teu.engine.core import plugins

Verdict = Callable[[str, dict[str, Any]], Any]


class House:
    """A server with its route, and the plugins it asks; `verdict` decides for all of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.done: list[Any] = []
        self.verdict: Verdict = lambda method, asked: {"Allow": True}
        self.config: dict[str, Any] = {"authorization-plugins": ["first", "second"]}
        self.address = ""

    def plugin(self, folder: Path, name: str) -> socketserver.ThreadingUnixStreamServer:
        house = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                method = self.path.lstrip("/")
                if method == "Plugin.Activate":
                    answer: Any = {"Implements": ["authz"]}
                else:
                    asked = json.loads(data)
                    house.asked.append((name, method.rpartition(".")[2], asked))
                    answer = house.verdict(f"{name} {method.rpartition('.')[2]}", asked)
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None: ...

            def address_string(self) -> str:
                return ""

        return socketserver.ThreadingUnixStreamServer(str(folder / f"{name}.sock"), Handler)

    def ask(self, request: str, body: bytes = b"", headers: str = "") -> tuple[int, Any]:
        """One request on a connection of its own: (status, JSON)."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(self.address)
            head = f"{request} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
            sock.sendall(head.encode() + body)
            data = b""
            while part := sock.recv(65536):
                data += part
        head, _, rest = data.decode().partition("\r\n\r\n")
        return int(head.split()[1]), json.loads(rest) if rest.startswith("{") else rest


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    made = House()
    monkeypatch.setattr(router, "_table", {})
    monkeypatch.setattr(plugins, "SOCKETS", str(tmp_path))
    monkeypatch.setattr(plugins, "SPECIFICATIONS", ())
    monkeypatch.setattr(plugins, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(plugins, "_known", {})

    @router.route("POST", "/do")
    def do(engine: Any, request: Any) -> Response:
        made.done.append(request.json(optional=True))
        return json_response({"secret": "answer"})

    @router.route("POST", "/auth")
    def auth(engine: Any, request: Any) -> Response:
        made.done.append(request.json())
        return json_response({})

    @router.route("GET", "/stream")
    def lines(engine: Any, request: Any) -> Response:
        def produce() -> Iterator[bytes]:
            yield b"never"

        return stream(produce(), done=lambda: made.done.append("closed"))

    engine: Any = types.SimpleNamespace(
        ready=threading.Event(),
        stopping=threading.Event(),
        failure=None,
        config=made.config,
        plugins=types.SimpleNamespace(withdrawn=set()),
    )
    engine.ready.set()
    listener = socket.socket(socket.AF_UNIX)
    made.address = str(tmp_path / "engine")
    listener.bind(made.address)
    listener.listen(16)
    server = Server(engine, [listener])
    server.start()
    programs = [made.plugin(tmp_path, name) for name in ("first", "second")]
    threads = [threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.01}) for each in programs]
    for thread in threads:
        thread.start()
    yield made
    for each in programs:
        each.shutdown()
        each.server_close()
    for thread in threads:
        thread.join()
    server.close()


JSON = "Content-Type: application/json\r\n"


def test_what_plugins_see(house: House) -> None:
    secret = "X-Registry-Auth: cGFzcw==\r\nx-other: 1\r\n"
    assert house.ask("POST /v1.45/do?a=b", b'{"k": 1}', JSON + secret) == (200, {"secret": "answer"})
    assert house.done == [{"k": 1}], "the body is there for the handler, too"
    assert [(name, method) for name, method, _ in house.asked] == [
        ("first", "AuthZReq"),
        ("second", "AuthZReq"),
        ("first", "AuthZRes"),
        ("second", "AuthZRes"),
    ]
    request, answer = house.asked[0][2], house.asked[2][2]
    assert request == {
        "User": "",
        "UserAuthNMethod": "",
        "RequestMethod": "POST",
        "RequestUri": "/v1.45/do?a=b",
        "RequestBody": base64.b64encode(b'{"k": 1}').decode(),
        "RequestHeaders": {
            "Host": "h",
            "Connection": "close",
            "Content-Length": "8",
            "Content-Type": "application/json",
            "X-Other": "1",
        },
    }
    assert answer["ResponseStatusCode"] == 200 and b"answer" in base64.b64decode(answer["ResponseBody"])


def test_passwords_and_archives_are_not_shown(house: House) -> None:
    house.ask("POST /v1.45/auth", b'{"password": "p"}', JSON)
    assert house.done == [{"password": "p"}]
    house.ask("POST /v1.45/do", b"", "Content-Type: application/x-tar\r\n")
    assert not [asked for _, method, asked in house.asked if method == "AuthZReq" and "RequestBody" in asked]
    assert shown([("AUTHORIZATION", "x"), ("a", "1")]) == {"A": "1"}


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_a_body_that_is_too_long_to_be_shown_goes_nowhere(house: House, kind: str) -> None:
    body = b'{"k": "' + b"x" * BODY_MAX + b'"}'
    assert house.ask("POST /v1.45/do", body, f"Content-Type: {kind}\r\n")[0] == 413
    assert house.done == [] and house.asked == []
    chunked = "Transfer-Encoding: chunked\r\n" + JSON
    with socket.socket(socket.AF_UNIX) as sock:  # a length that says nothing hides nothing
        sock.connect(house.address)
        sock.sendall(f"POST /do HTTP/1.1\r\nHost: h\r\n{chunked}\r\n8\r\n".encode() + b'{"k": 1}\r\n0\r\n\r\n')
        assert b"200 OK" in sock.recv(65536) or house.done
    assert base64.b64decode(house.asked[0][2]["RequestBody"]) == b'{"k": 1}'


@pytest.mark.parametrize("name", ["first", "second"])
def test_each_may_deny(house: House, name: str) -> None:
    house.verdict = lambda method, asked: {"Allow": method != f"{name} AuthZReq", "Msg": "not today"}
    status, answer = house.ask("POST /v1.45/do", b"{}", JSON)
    assert (status, answer["message"]) == (403, f"authorization denied by plugin {name}: not today")
    assert house.done == []


def test_an_answer_may_be_denied(house: House) -> None:
    house.verdict = lambda method, asked: {"Allow": not method.endswith("AuthZRes"), "Msg": "secret"}
    assert house.ask("POST /v1.45/do")[0] == 403
    status, answer = house.ask("GET /v1.45/stream")
    assert status == 403 and "never" not in json.dumps(answer) and house.done[-1] == "closed"


@pytest.mark.parametrize("answer", [{"Allow": True, "Err": "it broke"}, {"Allow": "yes"}, {}, []])
def test_who_fails_allows_nothing(house: House, answer: Any) -> None:
    house.verdict = lambda method, asked: answer
    assert house.ask("POST /v1.45/do")[0] in (403, 500) and house.done == []


def test_who_is_not_there_allows_nothing(house: House) -> None:
    house.config["authorization-plugins"] = ["first", "gone"]
    status, answer = house.ask("POST /v1.45/do")
    assert status == 500 and 'plugin gone failed with error: plugin "gone" not found' in answer["message"]
    assert house.done == []
    house.config["authorization-plugins"] = []  # as after a reload
    assert house.ask("POST /v1.45/do")[0] == 200


def test_http2_does_not_go_past_them(house: House) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(house.address)
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert sock.recv(100) == b""
