# SPDX-License-Identifier: Apache-2.0
"""HTTP/2's server end against clients that break its rules, and gRPC's calls between both ends in one process."""

from __future__ import annotations

import struct
import threading

import pytest

from teu.http2 import connection as http2
from teu.http2 import hpack
from teu.http2.calls import Asked, Call, status_error, unary, unescaped
from teu.http2.connection import Connection, Stream, frame

SETTINGS = frame(http2.SETTINGS, 0, 0)
REQUEST = hpack.encode([(":method", "POST"), (":path", "/x.Y/Z")])
BEGIN = http2.PREFACE + SETTINGS
HEAD = http2.END_HEADERS


class Problem(Exception):
    def __init__(self, code: int, message: str, details: bytes = b"") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def server() -> tuple[Connection, list[Stream]]:
    begun: list[Stream] = []
    return Connection(Problem, serve=begun.append, peer="the client"), begun


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of each."""
    found, at = [], 0
    while at < len(data):
        word, flags, number = struct.unpack_from(">IBI", data, at)
        found.append((word & 0xFF, flags, number, data[at + 9 : at + 9 + (word >> 8)]))
        at += 9 + (word >> 8)
    return found


def test_a_server_greets_with_settings_alone() -> None:
    connection, _ = server()
    assert [kind for kind, *_ in frames(connection.take())] == [http2.SETTINGS, http2.WINDOW_UPDATE]


def test_a_request_in_pieces() -> None:
    connection, begun = server()
    for byte in BEGIN + frame(http2.HEADERS, HEAD, 1, REQUEST) + frame(http2.DATA, http2.END_STREAM, 1, b"body"):
        connection.feed(bytes((byte,)))
    (stream,) = begun
    assert stream.headers == [(":method", "POST"), (":path", "/x.Y/Z")]
    assert stream.receive() == b"body" and stream.receive() == b"" and connection.error is None
    connection.take()
    stream.answer([(":status", "200")])
    stream.send(b"answer")
    stream.finish([("grpc-status", "0")])
    stream.finish([("grpc-status", "2")])
    kinds = [(kind, flags) for kind, flags, *_ in frames(connection.take())]
    assert kinds == [(http2.HEADERS, HEAD), (http2.DATA, 0), (http2.HEADERS, HEAD | http2.END_STREAM)]
    assert not connection.streams


def test_an_answer_before_the_request_is_whole() -> None:
    """The client is told that the rest is not wanted; what still comes is dropped."""
    connection, begun = server()
    connection.feed(BEGIN + frame(http2.HEADERS, HEAD, 1, REQUEST))
    connection.take()
    begun[0].finish([("grpc-status", "0")])
    assert [kind for kind, *_ in frames(connection.take())] == [http2.HEADERS, http2.RST_STREAM]
    connection.feed(frame(http2.DATA, 0, 1, b"late") + frame(http2.RST_STREAM, 0, 1, bytes(4)))
    connection.feed(frame(http2.HEADERS, HEAD, 3, REQUEST))
    assert connection.error is None and len(begun) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        BEGIN + frame(http2.HEADERS, HEAD, 2, REQUEST),
        BEGIN + frame(http2.DATA, 0, 1, b"x"),
        BEGIN + frame(http2.WINDOW_UPDATE, 0, 1, struct.pack(">I", 5)),
        BEGIN + frame(http2.HEADERS, 0, 1, REQUEST) + frame(http2.HEADERS, HEAD, 3, REQUEST),
        BEGIN + frame(http2.HEADERS, HEAD, 1, b"\xff\xff\xff\xff"),
        BEGIN + frame(http2.PUSH_PROMISE, HEAD, 1, bytes(4)),
        http2.PREFACE + frame(http2.PING, 0, 0, bytes(8)),
    ],
)
def test_broken_rules_end_the_connection(data: bytes) -> None:
    connection, begun = server()
    connection.feed(data)
    assert "broke HTTP/2" in str(connection.error) and not begun


def test_too_many_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "STREAMS_MAX", 2)
    connection, begun = server()
    connection.feed(BEGIN + b"".join(frame(http2.HEADERS, HEAD, number, REQUEST) for number in (1, 3, 5)))
    refused = [one for one in frames(connection.take()) if one[0] == http2.RST_STREAM]
    assert len(begun) == 2 and refused == [(http2.RST_STREAM, 0, 5, struct.pack(">I", http2.REFUSED_STREAM))]


def test_a_client_that_goes_may_still_be_answered() -> None:
    connection, begun = server()
    connection.feed(BEGIN + frame(http2.HEADERS, HEAD, 1, REQUEST) + frame(http2.GOAWAY, 0, 0, bytes(8)))
    assert connection.error is None and begun[0].error is None
    begun[0].finish([("grpc-status", "0")])
    connection.feed(frame(http2.HEADERS, HEAD, 3, REQUEST))
    assert len(begun) == 1


def test_a_cancelled_request_is_an_error_of_its_server() -> None:
    connection, begun = server()
    connection.feed(BEGIN + frame(http2.HEADERS, HEAD, 1, REQUEST))
    connection.feed(frame(http2.RST_STREAM, 0, 1, struct.pack(">I", http2.CANCEL)))
    with pytest.raises(Problem, match="1: the client ended the call"):
        begun[0].receive()
    with pytest.raises(Problem):
        begun[0].send(b"x")


# Both ends.


@pytest.fixture
def pair() -> tuple[Connection, list[Stream]]:
    """A client whose server collects requests; threads carry the bytes."""
    far, begun = server()
    near = Connection(Problem, peer="the server")

    def carry(source: Connection, target: Connection) -> None:
        while data := source.take():
            target.feed(data)
        target.feed(b"")

    for ends in ((near, far), (far, near)):
        threading.Thread(target=carry, args=ends, daemon=True).start()
    return near, begun


def asked(begun: list[Stream]) -> Asked:
    for _ in range(500):
        if begun:
            return Asked(begun.pop(0), Problem, "the client")
        threading.Event().wait(0.01)
    raise AssertionError("no request came")


def test_messages_both_ways(pair: tuple[Connection, list[Stream]]) -> None:
    near, begun = pair
    big = bytes(range(256)) * 20_000  # beyond all windows
    with Call(near, "/x.Y/Z", [("key", "value"), ("key", "other")]) as call:
        sender = threading.Thread(target=lambda: (call.send(b"", b"one", big), call.end()))
        sender.start()
        there = asked(begun)
        assert there.method == "/x.Y/Z" and there.metadata["key"] == ["value", "other"]
        assert list(there) == [b"", b"one", big]
        sender.join()
        answers = threading.Thread(target=lambda: (there.send(b"two"), there.send(big), there.finish()))
        answers.start()
        assert list(call) == [b"two", big]
        answers.join()


def test_a_status_with_any_text(pair: tuple[Connection, list[Stream]]) -> None:
    near, begun = pair
    text = "100% schlecht: ü\n\0 and a lot of it" * 3
    threading.Thread(target=lambda: asked(begun).finish(5, text), daemon=True).start()
    with pytest.raises(Problem) as raised:
        unary(near, "/x.Y/Z", b"question")
    assert str(raised.value) == f"5: {text}"


def test_the_end_of_a_connection_ends_its_calls(pair: tuple[Connection, list[Stream]]) -> None:
    near, begun = pair
    threading.Thread(target=lambda: (asked(begun), near.close(Problem(14, "gone"))), daemon=True).start()
    with pytest.raises(Problem, match="gone"):
        unary(near, "/x.Y/Z", b"question")


def test_what_is_no_answer_of_grpc() -> None:
    error = status_error([(":status", "404")], Problem, "the server")
    assert str(error) == "12: the server answered no status of gRPC, but 404"
    assert status_error([("grpc-status", "0")], Problem) is None
    assert str(status_error([("grpc-status", "x"), ("grpc-message", "%zz%41")], Problem)) == "2: %zzA"


def test_percent_signs() -> None:
    for text, plain in (("a%20b", "a b"), ("%", "%"), ("%4", "%4"), ("%c3%BC", "ü"), ("%ff", "\ufffd"), ("ü", "ü")):
        assert unescaped(text) == plain
    assert unescaped("%ff", "surrogateescape") == "\udcff"
