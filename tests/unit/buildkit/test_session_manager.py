# SPDX-License-Identifier: Apache-2.0
"""Sessions: a real gRPC server is asked through the tunnel; who comes, who waits, what ends with whom."""

from __future__ import annotations

import queue
import socket
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from unit.buildkit.tunnel import Methods, client, connected, headers, server

from teu.api.buildkit import control_pb2, errdefs_pb2
from teu.api.buildkit.session import secrets_pb2, upload_pb2
from teu.buildkit.core import errors
from teu.buildkit.session import handover
from teu.buildkit.session.manager import Manager, Session

GET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
PULL = "/moby.upload.v1.Upload/Pull"
Bytes = upload_pb2.BytesMessage


def secret(request: Any, context: Any) -> Any:
    if request.ID == "missing":
        context.abort(grpc.StatusCode.NOT_FOUND, "secret missing: nicht da, ö 100%")
    if request.ID == "typed":
        error = errors.Internal("typed").at_vertex("sha256:1")
        context.abort_with_status(errors.rpc_status(error))
    if request.ID == "slow":
        time.sleep(0.5)
    return secrets_pb2.GetSecretResponse(data=request.ID.encode())


def echo(requests: Any, context: Any) -> Any:
    yield from requests


METHODS: Methods = {
    GET: (False, False, secrets_pb2.GetSecretRequest, secrets_pb2.GetSecretResponse, secret),
    PULL: (True, True, Bytes, Bytes, echo),
}


def get(session: Session, name: str, timeout: float | None = 10) -> bytes:
    request = secrets_pb2.GetSecretRequest(ID=name)
    return bytes(session.call(GET, request, secrets_pb2.GetSecretResponse, timeout=timeout).data)


def test_a_client_is_asked() -> None:
    with client(METHODS) as session:
        assert (session.id, session.name) == ("one", "test")
        assert session.supports(GET.lower()) and not session.supports("/a.B/C")
        assert get(session, "a" * 100_000) == b"a" * 100_000
        with pytest.raises(errors.NotFound, match="nicht da, ö 100%"):
            get(session, "missing")
        with pytest.raises(errors.Unimplemented):
            session.call("/a.B/C", secrets_pb2.GetSecretRequest(), secrets_pb2.GetSecretResponse)
        with pytest.raises(errors.Internal) as raised:
            get(session, "typed")
        assert raised.value.details == [errdefs_pb2.Vertex(digest="sha256:1")]
        with pytest.raises(errors.DeadlineExceeded):
            get(session, "slow", 0.05)
        assert get(session, "after") == b"after"


def test_many_calls_at_a_time() -> None:
    results: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with client(METHODS) as session:
        threads = [threading.Thread(target=lambda n=n: results.put(get(session, str(n) * 999))) for n in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {results.get() for _ in threads} == {(str(n) * 999).encode() for n in range(30)}


def test_streams_move_more_than_the_windows_in_both_directions() -> None:
    with client(METHODS) as session, session.stream(PULL, Bytes) as call:
        sent = 40

        def send() -> None:
            for number in range(sent):
                call.send(Bytes(data=bytes([number]) * 300_000))
            call.end()

        thread = threading.Thread(target=send)
        thread.start()
        got = [(len(answer.data), answer.data[0]) for answer in call]
        thread.join()
        assert got == [(300_000, number) for number in range(sent)]


def test_a_cancelled_call_wakes_who_waits() -> None:
    with client(METHODS) as session, session.stream(PULL, Bytes) as call:
        threading.Timer(0.1, call.cancel).start()
        with pytest.raises(errors.Cancelled):
            call.receive()
        assert get(session, "others go on") == b"others go on"


def test_the_end_of_a_session_ends_what_hangs_on_it() -> None:
    told = threading.Event()
    with client(METHODS) as session, session.stream(PULL, Bytes) as call:
        session.on_end(told.set)
        taken_back = session.on_end(lambda: pytest.fail("was taken back"))
        taken_back()
        threading.Timer(0.1, session.close).start()
        with pytest.raises(errors.Unavailable):
            call.receive()
        assert told.wait(5) and session.ended
        with pytest.raises(errors.Unavailable):
            get(session, "x")
        late = threading.Event()
        session.on_end(late.set)
        assert late.is_set()


def test_a_client_that_vanishes() -> None:
    manager = Manager()
    with server(METHODS) as path:
        ours, theirs = connected(path), threading.Event()
        thread = threading.Thread(target=manager.serve_socket, args=(headers("gone", METHODS), ours))
        thread.start()
        session = manager.get("gone", 5)
        session.on_end(theirs.set)
        assert get(session, "x") == b"x"
    assert theirs.wait(5)
    thread.join(5)
    assert not thread.is_alive()
    with pytest.raises(errors.NotFound, match="no active session for gone"):
        manager.get("gone")


def test_waiting_for_a_session_that_is_to_come() -> None:
    manager = Manager()
    got: queue.SimpleQueue[Session] = queue.SimpleQueue()
    threading.Thread(target=lambda: got.put(manager.get("prefix:late", 5)), daemon=True).start()
    time.sleep(0.05)
    begun = manager.begin(headers("late", METHODS))
    assert got.get(timeout=5) is begun
    with pytest.raises(errors.AlreadyExists):
        manager.begin(headers("late", {}))
    begun.close()
    with pytest.raises(errors.Cancelled):
        manager.get("late", None, gone=lambda: True)
    with pytest.raises(errors.NotFound):
        manager.get("late", 0.05)


def test_any_of_several_sessions() -> None:
    manager = Manager()
    with client(METHODS, manager, "a"), client({}, manager, "b"):
        assert manager.any_of(["nobody", "b", "a"], lambda session: get(session, "x"), 0.05) == b"x"
        with pytest.raises(errors.Unimplemented):
            manager.any_of(["b"], lambda session: get(session, "x"))
        with pytest.raises(errors.NotFound, match="no active sessions"):
            manager.any_of([], lambda session: get(session, "x"))


def test_a_session_inside_a_stream_of_messages() -> None:
    """Control.Session: what its handler gets and gives, with the client's own connection behind it."""
    manager = Manager()
    incoming: queue.SimpleQueue[control_pb2.BytesMessage | None] = queue.SimpleQueue()
    with server(METHODS) as path:
        behind = connected(path)

        def read() -> None:
            while data := behind.recv(1000):
                incoming.put(control_pb2.BytesMessage(data=data))
            incoming.put(None)

        def write() -> None:
            for message in manager.serve_stream(headers("s", METHODS), iter(incoming.get, None)):
                behind.sendall(message.data)

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        session = manager.get("s", 5)
        assert get(session, "b" * 50_000) == b"b" * 50_000
        incoming.put(None)
        for thread in threads[1:]:
            thread.join(5)
            assert not thread.is_alive()
        assert session.ended
        behind.shutdown(socket.SHUT_RDWR)
        threads[0].join(5)
        behind.close()


def test_headers_that_are_no_session() -> None:
    manager = Manager()
    with pytest.raises(errors.InvalidArgument, match="no id"):
        manager.begin([])
    with pytest.raises(errors.InvalidArgument):
        manager.begin([("x-docker-expose-session-uuid", "a" * 5000)])
    with pytest.raises(errors.InvalidArgument):
        manager.begin(headers("x", {f"/a/{number}": METHODS[GET] for number in range(1001)}))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The header of a client that wants to be asked after 100 ms, and a manager that lets it be so short."""
    monkeypatch.setattr("teu.buildkit.session.manager.HEALTH_LEAST", 0.1)
    return [("X-Buildkit-Session-Health-Custom-Timeout", "100")]


def test_a_silent_client_is_given_up(impatient: list[tuple[str, str]]) -> None:
    manager = Manager()
    ours, theirs = socket.socketpair()
    given = [*headers("silent", {}), *impatient]
    thread = threading.Thread(target=manager.serve_socket, args=(given, ours))
    thread.start()
    session = manager.get("silent", 5)
    ended = threading.Event()
    session.on_end(ended.set)
    assert ended.wait(10)
    thread.join(5)
    theirs.close()
    assert session.error is not None and "silent" in session.error.message


def test_a_client_that_reads_nothing_holds_nobody(impatient: list[tuple[str, str]]) -> None:
    manager = Manager()
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    given = [*headers("deaf", {PULL: METHODS[PULL]}), *impatient]
    thread = threading.Thread(target=manager.serve_socket, args=(given, ours))
    thread.start()
    session = manager.get("deaf", 5)
    theirs.sendall(bytes.fromhex("000000040000000000"))  # SETTINGS, and then nothing is read
    with pytest.raises(errors.Unavailable), session.stream(PULL, Bytes) as call:
        for _ in range(100):
            call.send(Bytes(data=bytes(60_000)))
        call.receive()
    thread.join(10)
    assert not thread.is_alive()
    theirs.close()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"no json",
        b"[]",
        b'{"headers": [["a"]], "early": ""}',
        b'{"headers": [], "early": "?"}',
        b'{"headers": [], "early": ""}',
        b"[" * 100_000,
    ],
)
def test_what_is_handed_over_and_is_no_session(tmp_path: Path, message: bytes) -> None:
    """Its connection is closed, nothing is held, and the next one is served."""
    manager = Manager()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        server = threading.Thread(target=handover.serve, args=(listener, manager))
        server.start()
        for descriptors in (1, 0):
            ours, theirs = socket.socketpair()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as giver, ours:
                giver.connect(str(tmp_path / "s"))
                socket.send_fds(giver, [message], [theirs.fileno()] * descriptors)
                theirs.close()
                ours.settimeout(10)
                assert ours.recv(1) == b""
        listener.shutdown(socket.SHUT_RDWR)
        server.join(10)
    assert manager.all() == []
