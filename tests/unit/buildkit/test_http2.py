# SPDX-License-Identifier: Apache-2.0
"""HTTP/2's client end against ends that break its rules, and HPACK by the examples of its specification."""

from __future__ import annotations

import random
import struct
import time

import pytest

from teu.buildkit.core import errors
from teu.http2 import connection as http2
from teu.http2 import hpack
from teu.http2.connection import Connection, frame

SETTINGS = frame(http2.SETTINGS, 0, 0)

OK = hpack.encode([(":status", "200"), ("content-type", "application/grpc")])


def begun() -> tuple[Connection, http2.Stream]:
    connection = Connection(errors.of_code)
    connection.feed(SETTINGS)
    stream = connection.request([(":method", "POST")])
    connection.take()
    return connection, stream


def words(data: bytes) -> list[tuple[int, int, int]]:
    """(kind, stream, length) of every frame."""
    found, at = [], 0
    while at < len(data):
        word, _, number = struct.unpack_from(">IBI", data, at)
        found.append((word & 0xFF, number, word >> 8))
        at += 9 + (word >> 8)
    return found


def test_hpack_examples() -> None:
    decoder = hpack.Decoder(10_000)  # RFC 7541, C.6.1 and C.6.2
    first = (
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3"
    )
    headers = decoder.decode(bytes.fromhex(first))
    assert headers[:2] == [(":status", "302"), ("cache-control", "private")]
    assert headers[2:] == [("date", "Mon, 21 Oct 2013 20:13:21 GMT"), ("location", "https://www.example.com")]
    assert decoder.decode(bytes.fromhex("4883640effc1c0bf")) == [(":status", "307"), *headers[1:]]
    assert hpack.Decoder(10_000).decode(hpack.encode([("a", "b" * 500), (":path", "/x")])) == [
        ("a", "b" * 500),
        (":path", "/x"),
    ]


@pytest.mark.parametrize(
    "block", ["80", "ff", "ffffffffffff", "40", "4082", "be", "418aff", "3fe27f", "00810000", "8220"]
)
def test_hpack_of_others(block: str) -> None:
    with pytest.raises((hpack.HpackError, IndexError)):
        hpack.Decoder(10_000).decode(bytes.fromhex(block))


def test_headers_are_limited() -> None:
    with pytest.raises(hpack.HpackError, match="more headers"):
        hpack.Decoder(100).decode(hpack.encode([("a", "b" * 100)]))


def test_the_first_words() -> None:
    connection = Connection(errors.of_code)
    data = connection.take()
    assert data.startswith(http2.PREFACE)
    assert [kind for kind, _, _ in words(data[24:])] == [http2.SETTINGS, http2.WINDOW_UPDATE]


def test_long_headers_are_continued() -> None:
    connection, _ = begun()
    connection.request([("x", "y" * 40_000)])
    kinds = words(connection.take())
    assert [kind for kind, _, _ in kinds] == [http2.HEADERS, http2.CONTINUATION, http2.CONTINUATION]
    assert max(length for _, _, length in kinds) == 16384


@pytest.mark.parametrize(
    "data",
    [
        frame(http2.PING, 0, 0, b"12345678"),  # before SETTINGS: SETTINGS is left out below
        SETTINGS + frame(http2.HEADERS, 4, 2, OK),
        SETTINGS + frame(http2.HEADERS, 4, 99, OK),
        SETTINGS + frame(http2.HEADERS, 4, 0, OK),
        SETTINGS + frame(http2.DATA, 0, 1, b"x"),
        SETTINGS + frame(http2.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff"),
        SETTINGS + frame(http2.HEADERS, 0, 1, OK) + frame(http2.PING, 0, 0, b"12345678"),
        SETTINGS + frame(http2.CONTINUATION, 4, 1, OK),
        SETTINGS + frame(http2.HEADERS, 0, 1, OK) + frame(http2.CONTINUATION, 0, 1),
        SETTINGS + frame(http2.HEADERS, 0, 1) + 70 * frame(http2.CONTINUATION, 0, 1, bytes(16384)),
        SETTINGS + frame(http2.HEADERS, 4 | 8, 1, b"\x09" + OK[:3]),
        SETTINGS + frame(http2.PUSH_PROMISE, 4, 1, bytes(4) + OK),
        SETTINGS + frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)),
        SETTINGS + frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
        SETTINGS + frame(http2.WINDOW_UPDATE, 0, 0, b"\x01"),
        SETTINGS + frame(http2.RST_STREAM, 0, 1, b"\x01"),
        SETTINGS + frame(http2.GOAWAY, 0, 0, b"\x01"),
        SETTINGS + frame(http2.PING, 0, 0, b"1"),
        frame(http2.SETTINGS, 0, 0, b"1"),
        frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.MAX_FRAME_SIZE, 5)),
        frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 1 << 31)),
        SETTINGS + struct.pack(">IBI", (http2.FRAME_SIZE + 1) << 8, 0, 0),
        SETTINGS + b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_broken_rules_end_the_connection(data: bytes) -> None:
    ends: list[errors.Error] = []
    connection = Connection(errors.of_code, ends.append)
    stream = connection.request([(":method", "POST")])
    step = 1 + len(data) // 10_000  # byte by byte, unless there are many
    for at in range(0, len(data), step):
        connection.feed(data[at : at + step])
    assert len(ends) == 1 and isinstance(ends[0], errors.Unavailable)
    with pytest.raises(errors.Unavailable):
        stream.receive()
    while connection.take():
        pass


def test_who_asks_without_reading_is_left() -> None:
    connection, _ = begun()
    for _ in range(1000):
        connection.feed(frame(http2.PING, 0, 0, b"12345678") * 1000)
    assert connection.error is not None and "without reading" in connection.error.message
    assert connection.backlog < 5 << 20


def test_a_stream_takes_no_more_than_its_window() -> None:
    connection, stream = begun()
    connection.feed(frame(http2.HEADERS, 4, 1, OK))
    for _ in range(200):
        connection.feed(frame(http2.DATA, 0, 1, bytes(16384)))
    assert connection.error is None
    assert len(stream.receive()) <= http2.STREAM_WINDOW
    with pytest.raises(errors.Internal, match="more than it was allowed"):
        stream.receive()


def test_resets_and_going_away() -> None:
    connection, stream = begun()
    other = connection.request([(":method", "POST")])
    connection.feed(frame(http2.RST_STREAM, 0, 1, struct.pack(">I", http2.REFUSED_STREAM)))
    with pytest.raises(errors.Unavailable):
        stream.receive()
    connection.feed(frame(http2.GOAWAY, 0, 0, struct.pack(">II", 1, 0)))
    with pytest.raises(errors.Unavailable):
        other.receive()
    assert connection.error is not None


def test_nothing_begins_at_an_end_that_is_going_away() -> None:
    connection, stream = begun()
    connection.feed(frame(http2.GOAWAY, 0, 0, struct.pack(">II", 1, 0)))
    with pytest.raises(errors.Unavailable, match="going away"):
        connection.request([(":method", "POST")])
    connection.feed(frame(http2.HEADERS, 4, 1, OK) + frame(http2.DATA, 0, 1, b"still answered"))
    assert stream.receive() == b"still answered" and connection.error is None


def test_anything_may_come() -> None:
    """Mutated conversations: the connection ends or goes on, and `feed` raises nothing."""
    chance = random.Random(1)
    trailers = hpack.encode([("grpc-status", "0"), ("grpc-message", "x")])
    good = SETTINGS + frame(http2.HEADERS, 4, 1, OK) + frame(http2.DATA, 0, 1, b"\0\0\0\0\2ab")
    good += frame(http2.PING, 0, 0, bytes(8)) + frame(http2.WINDOW_UPDATE, 0, 1, b"\0\0\0\5")
    good += frame(http2.RST_STREAM, 0, 3, bytes(4)) + frame(http2.HEADERS, 5, 1, trailers) + frame(9, 4, 1, trailers)
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(SETTINGS), len(data))
            if chance.random() < 0.3:
                del data[at : at + chance.randrange(12)]
            else:
                data[at] = chance.randrange(256)
        connection = Connection(errors.of_code)
        stream = connection.request([(":method", "POST")])
        connection.request([(":method", "POST")])
        connection.feed(bytes(data))
        connection.feed(b"")
        try:
            while stream.receive():
                pass
        except errors.Error:
            pass
        assert connection.error is not None and not connection.streams


def test_sending_waits_for_the_windows() -> None:
    connection, stream = begun()
    with pytest.raises(errors.DeadlineExceeded):
        stream.send(bytes(100_000), deadline=time.monotonic() + 0.05)
    sent = sum(length for kind, _, length in words(connection.take()) if kind == http2.DATA)
    assert sent == http2.FIRST_WINDOW
