# SPDX-License-Identifier: Apache-2.0
"""The HTTP server over real sockets: versions, errors, bodies, streams, take-over of the connection."""

from __future__ import annotations

import json
import re
import socket
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.engine.api import router, websocket
from teu.engine.api import server as server_module
from teu.engine.api.messages import Response, empty, hijack, json_response, progress, stream, switch
from teu.engine.api.server import Server
from teu.engine.core.errors import Conflict
from teu.engine.core.figures import Figures

SEEN: dict[str, Any] = {}  # what handlers noticed


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(router, "_table", {})
    SEEN.clear()

    @router.route("POST", "/echo/{name:path}/end")
    def echo(engine: Any, request: Any, name: str) -> Response:
        return json_response({"name": name, "body": request.json(), "version": request.version})

    @router.route("GET", "/conflict")
    def conflict(engine: Any, request: Any) -> Response:
        raise Conflict("in the way")

    @router.route("GET", "/names")
    def names(engine: Any, request: Any) -> Response:
        if request.query.flag("wrong"):
            raise Conflict("in the way: \udcff\U0001f600\ud800")
        return json_response({"Path": "\udcff\U0001f600\ud800"})

    @router.route("GET", "/broken")
    def broken(engine: Any, request: Any) -> Response:
        raise KeyError("x")

    @router.route("GET", "/empty")
    def nothing(engine: Any, request: Any) -> Response:
        return empty()

    @router.route("GET", "/stream")
    def chunks(engine: Any, request: Any) -> Response:
        def produce() -> Iterator[bytes]:
            try:
                yield b"one"
                while True:
                    yield b""
                    threading.Event().wait(0.01)
            finally:
                SEEN["closed"] = True

        return stream(produce())

    @router.route("GET", "/late")
    def late(engine: Any, request: Any) -> Response:
        def produce() -> Iterator[bytes]:
            SEEN["begun"] = True
            yield b""

        SEEN["asked"].set()
        SEEN["left"].wait(10)
        return stream(produce(), done=SEEN["done"].set)

    SEEN.update({name: threading.Event() for name in ("asked", "left", "done")})

    @router.route("GET", "/progress")
    def lines(engine: Any, request: Any) -> Response:
        def produce() -> Iterator[dict[str, Any]]:
            if request.query.flag("early"):
                raise Conflict("early")
            yield {"status": "going"}
            raise Conflict("late")

        return progress(produce())

    @router.route("POST", "/raw")
    def raw(engine: Any, request: Any) -> Response:
        def talk(sock: socket.socket, early: bytes) -> None:
            data = early
            while not data.endswith(b"\n"):
                data += sock.recv(100)
            sock.sendall(data.upper())

        return hijack(talk, "application/vnd.docker.raw-stream")

    @router.route("GET", "/socket")
    def upgraded(engine: Any, request: Any) -> Response:
        headers = websocket.handshake(request.headers)
        return switch(lambda sock, early: websocket.Bridge(sock, early).serve(_hello), "websocket", headers)

    engine: Any = types.SimpleNamespace(
        ready=threading.Event(), stopping=threading.Event(), failure=None, config={}, figures=Figures()
    )
    engine.ready.set()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    address = str(tmp_path / "s")
    listener.bind(address)
    listener.listen(16)
    server = Server(engine, [listener])
    server.start()
    yield address
    server.close()


def _hello(sock: socket.socket, early: bytes) -> None:
    sock.sendall(b"hello")


def test_a_websocket(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.2)  # this client never says that it has understood
    head = b"GET /v1.55/socket HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    assert ask(path, head + b"\r\n")[0] == 400
    with connect(path) as sock:
        sock.sendall(head + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        data = b""
        while part := sock.recv(65536):
            data += part
    lines, _, frames = data.partition(b"\r\n\r\n")
    assert lines.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    wanted = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    assert set(wanted) < set(lines.split(b"\r\n"))
    assert frames == b"\x82\x05hello\x88\x02\x03\xe8"


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(path)
    return sock


def ask(path: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request whose connection ends with it."""
    with connect(path) as sock:
        try:
            sock.sendall(request)
        except BrokenPipeError:
            pass  # it has answered before it has read all
        data = b""
        try:
            while part := sock.recv(65536):
                data += part
                head, found, body = data.partition(b"\r\n\r\n")
                match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                if found and (match and len(body) >= int(match[1]) or b" 204 " in head[:20]):
                    break
                if found and data.endswith(b"0\r\n\r\n"):
                    break
        except ConnectionResetError:
            pass
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body


def get(path: str, target: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    return ask(path, f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def post(path: str, target: str, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, str], bytes]:
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return ask(path, head.encode() + body)


def test_versions(path: str) -> None:
    assert post(path, "/v1.30/echo/a/b/end", b'{"k":1}')[2] == b'{"name":"a/b","body":{"k":1},"version":[1,30]}\n'
    assert json.loads(post(path, "/echo/a%2Fb/end", b"{}")[2])["version"] == [1, 55]
    status, headers, body = get(path, "/v1.10/empty")
    assert status == 400 and b"too old" in body and headers["api-version"] == "1.55"
    status, _, body = get(path, "/v1.99/empty")
    assert status == 400 and b"too new" in body


def test_errors(path: str) -> None:
    assert get(path, "/conflict")[::2] == (409, b'{"message": "in the way"}\n')
    status, _, body = get(path, "/broken")
    assert status == 500 and b"KeyError" in body
    assert get(path, "/nowhere")[0] == 404
    assert get(path, "/empty", "DELETE")[0] == 405
    assert get(path, "/empty")[0] == 204


def test_names_that_are_no_text(path: str) -> None:
    """Halves of surrogate pairs are refused by many who read JSON."""
    assert json.loads(get(path, "/names")[2]) == {"Path": "\ufffd\U0001f600\ufffd"}
    assert json.loads(get(path, "/names?wrong=1")[2]) == {"message": "in the way: \ufffd\U0001f600\ufffd"}


def test_a_body_without_a_type_is_refused(path: str) -> None:
    status, _, body = ask(path, b"POST /echo/a/end HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    assert status == 400 and b"Content-Type" in body


def test_errors_do_not_wait_for_the_body(path: str) -> None:
    """Nothing of the body ever comes here."""
    for head in (
        b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
        b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n",
    ):
        assert ask(path, head)[0] == 404
    large = b"POST /echo/a/end HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1%s\r\n"
    for digits, status in ((20, 413), (4000, 413), (5000, 400)):
        assert ask(path, large % (b"0" * digits) + b"\r\n")[0] == status, digits
        assert ask(path, large % (b"0" * digits) + b"Expect: 100-continue\r\n\r\n")[0] == status, digits


def test_a_body_that_does_not_come_is_not_waited_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.2)
    head = b"POST /echo/a/end HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
    assert ask(path, head)[0] == 408


def test_who_is_refused_in_the_middle_of_an_upload_reads_why(path: str) -> None:
    size = 32 << 20
    with connect(path) as sock:
        sock.sendall(b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(32):
            sock.sendall(bytes(1 << 20))
        assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")


def test_versions_of_many_digits(path: str) -> None:
    status, _, body = get(path, f"/v{'1' * 5000}.24/empty")
    assert status == 400 and b"too new" in body


def test_an_answer_that_could_not_begin_has_an_end(path: str) -> None:
    """Whoever left before the head of a stream leaves nothing open behind."""
    with connect(path) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
        sock.sendall(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
        assert SEEN["asked"].wait(10)
    SEEN["left"].set()
    assert SEEN["done"].wait(10)
    assert "begun" not in SEEN


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"x"', b"", b"\xff\xfe", b"[" * 100_000, b"nul"])
def test_malformed_json(path: str, body: bytes) -> None:
    status, _, answer = post(path, "/echo/a/end", body)
    assert status == 400 and json.loads(answer)["message"]


def test_bodies_that_are_too_large_or_of_another_kind(path: str) -> None:
    assert post(path, "/echo/a/end", b'{"a":"' + b"x" * (17 << 20) + b'"}')[0] == 413
    assert post(path, "/echo/a/end", b"{}", "text/plain")[0] == 400


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /echo/a/end HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
        b"POST /echo/a/end HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_bad_http_is_answered_and_harms_nobody(path: str, request_bytes: bytes) -> None:
    status, _, _ = ask(path, request_bytes)
    assert 400 <= status < 500
    assert get(path, "/empty")[0] == 204


def test_a_connection_serves_many_requests(path: str) -> None:
    with connect(path) as sock:
        for _ in range(3):
            sock.sendall(b"GET /conflict HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 409")


def test_progress(path: str) -> None:
    status, _, body = get(path, "/progress")
    assert status == 200
    items = [json.loads(line) for line in re.findall(rb"\{.*\}", body)]
    assert items == [{"status": "going"}, {"errorDetail": {"message": "late"}, "error": "late"}]
    assert get(path, "/progress?early=1")[0] == 409


@pytest.mark.parametrize("more", [b"", b"GET /empty HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_client_that_leaves_a_stream_is_noticed(path: str, more: bytes) -> None:
    """Also one that has sent what nobody has read: its thread stayed for good."""
    with connect(path) as sock:
        sock.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while b"one" not in data:
            data += sock.recv(1000)
        sock.sendall(more)
    for _ in range(500):
        if SEEN.get("closed"):
            break
        threading.Event().wait(0.01)
    assert SEEN.get("closed")


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_body_is_not_of_the_stream(path: str, parts: int) -> None:
    """dockerode sends its parameters once more as the body of attach: the container read them as its input."""
    head = b"POST /raw HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 13\r\n"
    sent = head + b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n", b'{"stdin": 1}\n', b"hello\n"
    with connect(path) as sock:
        for each in sent[: parts - 1]:
            sock.sendall(each)
        sock.sendall(b"".join(sent[parts - 1 :]))
        answer = b""
        while data := sock.recv(1000):
            answer += data
    assert answer.startswith(b"HTTP/1.1 101 ") and answer.partition(b"\r\n\r\n")[2] == b"HELLO\n"


@pytest.mark.parametrize("upgrade", [True, False])
def test_the_connection_is_taken_over(path: str, upgrade: bool) -> None:
    extra = b"Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else b""
    with connect(path) as sock:
        sock.sendall(b"POST /raw HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + extra + b"\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1000)
        assert head.startswith(b"HTTP/1.1 101 " if upgrade else b"HTTP/1.1 200 ")
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"HELLO\n"
        assert sock.recv(100) == b""
