# SPDX-License-Identifier: Apache-2.0
"""The Engine API by HTTP/2: requests at the same time, bodies, streams, those who leave, what would smuggle."""

from __future__ import annotations

import json
import socket
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.engine.api import http2, router
from teu.engine.api.messages import Response, json_response, stream
from teu.engine.api.server import Server
from teu.engine.core.errors import Conflict, EngineError
from teu.http2.connection import Connection, Stream

Answer = tuple[str, dict[str, str], bytes]


class Client:
    """A connection of HTTP/2 that asks at once."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.connection = Connection(lambda code, message, details=b"": EngineError(message))
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]

    def begin(self, *headers: tuple[str, str], body: bytes = b"", end: bool = True) -> Stream:
        path = [(":scheme", "http"), (":authority", "h")]
        with self.connection.lock:  # so that settings and request go out together
            made = self.connection.request([*headers[:1], *path, *headers[1:]])
        made.send(body, end=end) if body or end else None
        if not self.threads[0].is_alive():
            for thread in self.threads:
                thread.start()
        return made

    def _write(self) -> None:
        while data := self.connection.take():
            try:
                self.socket.sendall(data)
            except OSError:
                return

    def _read(self) -> None:
        try:
            while data := self.socket.recv(65536):
                self.connection.feed(data)
        except OSError:
            pass
        self.connection.feed(b"")

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def whole(asked: Stream) -> Answer:
    body = b""
    try:
        while data := asked.receive():
            body += data
    except EngineError as error:
        if "without a status" not in str(error):  # of gRPC, which this end of the connection expects
            raise
    headers = dict(asked.headers or ())
    return headers.pop(":status"), headers, body


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    monkeypatch.setattr(router, "_table", {})
    made = types.SimpleNamespace(
        gone=threading.Event(), both=threading.Barrier(2, timeout=10), path=str(tmp_path / "s")
    )

    @router.route("POST", "/echo")
    def echo(engine: Any, request: Any) -> Response:
        return json_response({"body": request.json(), "other": request.headers.get("x-other", "")})

    @router.route("POST", "/count")
    def count(engine: Any, request: Any) -> Response:
        size = 0
        while part := request.body.read(65536):
            size += len(part)
        return json_response(size)

    @router.route("GET", "/conflict")
    def conflict(engine: Any, request: Any) -> Response:
        raise Conflict("in the way")

    @router.route("GET", "/meet")
    def meet(engine: Any, request: Any) -> Response:
        made.both.wait()
        return json_response("met")

    @router.route("GET", "/large")
    def large(engine: Any, request: Any) -> Response:
        return Response(200, b"x" * 3_000_000, "text/plain")

    @router.route("GET", "/stream")
    def lines(engine: Any, request: Any) -> Response:
        def produce() -> Iterator[bytes]:
            try:
                yield b"one"
                while True:
                    yield b""
                    threading.Event().wait(0.01)
            finally:
                made.gone.set()

        return stream(produce())

    engine: Any = types.SimpleNamespace(ready=threading.Event(), stopping=threading.Event(), failure=None, config={})
    engine.ready.set()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(made.path)
    listener.listen(16)
    server = Server(engine, [listener])
    server.start()
    yield made
    server.close()


@pytest.fixture
def client(house: types.SimpleNamespace) -> Iterator[Client]:
    made = Client(house.path)
    yield made
    made.close()


GET, POST = (":method", "GET"), (":method", "POST")


def test_requests_and_answers(client: Client) -> None:
    words = ((":path", "/v1.45/echo"), ("content-type", "application/json"), ("x-other", "1"))
    asked = client.begin(POST, *words, body=b'{"k": 1}')
    status, headers, body = whole(asked)
    assert (status, json.loads(body)) == ("200", {"body": {"k": 1}, "other": "1"})
    assert headers["api-version"] == "1.55" and not {"connection", "transfer-encoding"} & set(headers)
    status, _, body = whole(client.begin(GET, (":path", "/v1.45/conflict")))
    assert (status, json.loads(body)["message"]) == ("409", "in the way")
    assert whole(client.begin(GET, (":path", "/v9.99/conflict")))[0] == "400"
    assert whole(client.begin(GET, (":path", "/nosuch")))[0] == "404"
    assert len(whole(client.begin(GET, (":path", "/large")))[2]) == 3_000_000


def test_two_at_the_same_time(client: Client) -> None:
    both = [client.begin(GET, (":path", "/meet")) for _ in range(2)]
    assert [whole(asked)[0] for asked in both] == ["200", "200"]


@pytest.mark.parametrize("length", [(), (("content-length", "1000000"),)])
def test_a_body_in_pieces(client: Client, length: tuple[tuple[str, str], ...]) -> None:
    asked = client.begin(POST, (":path", "/count"), *length, ("content-type", "application/x-tar"), end=False)
    for number in range(10):
        asked.send(b"x" * 100_000, end=number == 9)
    assert whole(asked)[2].strip() == b"1000000"


def test_who_gives_up_a_stream_is_noticed(client: Client, house: types.SimpleNamespace) -> None:
    asked = client.begin(GET, (":path", "/stream"))
    assert asked.receive() == b"one" and not house.gone.is_set()
    asked.cancel()
    assert house.gone.wait(10)
    assert whole(client.begin(GET, (":path", "/conflict")))[0] == "409", "the connection goes on"


def test_who_leaves_is_noticed(house: types.SimpleNamespace) -> None:
    client = Client(house.path)
    assert client.begin(GET, (":path", "/stream")).receive() == b"one"
    client.close()
    assert house.gone.wait(10)


@pytest.mark.parametrize(
    "words",
    [
        (GET, (":path", "/conflict HTTP/1.1\r\nHost: h\r\n\r\nGET /large")),
        (GET, (":path", "/conflict"), ("x", "1\r\ny: 2")),
        ((":method", "GET /large HTTP/1.1\r\n\r\nGET"), (":path", "/conflict")),
        (GET, (":path", "")),
        (GET, (":path", "/conflict"), ("x y", "1")),
    ],
)
def test_nothing_is_smuggled_into_another_request(client: Client, words: tuple[tuple[str, str], ...]) -> None:
    try:
        status, _, body = whole(client.begin(*words))
    except EngineError:
        return  # the connection refuses it by itself
    assert status == "400" and body == b""


def test_grpc_is_told_apart(house: types.SimpleNamespace) -> None:
    for kind, at_once in (("application/grpc", False), ("application/grpc+proto", False), ("application/json", True)):
        ours, theirs = socket.socketpair()
        connection = Connection(lambda code, message, details=b"": EngineError(message))
        connection.request([POST, (":path", "/x"), ("content-type", kind)])
        data = connection.take()
        ours.sendall(data[30:])
        assert http2.asks_at_once(theirs, bytearray(data[:30])) is at_once
        ours.close()
        theirs.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:  # who waits for settings is of gRPC
        assert not http2.asks_at_once(theirs, bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
