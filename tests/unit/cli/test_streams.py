# SPDX-License-Identifier: Apache-2.0
"""A conversation with a container's process, with the test as the daemon at the other end of a socket pair."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from teu.cli.streams import CONTROL, DetachKeys, caught, half_close, receive

SRC = Path(__file__).resolve().parents[3] / "src"
# The client's side: the stream is descriptor argv[1], the answer of `wait` argv[2] (or -1), the rest are options.
CHILD = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from teu.cli import streams
from teu.cli.http import Client, Connection, Response
stream, waiter, options = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
def told(word):
    return lambda *values: os.write(2, f"{word}{values} ".encode())
def answer(file):
    return Response(Connection(socket.socket(fileno=file))) if file >= 0 else None
shows = "silent" not in options
attached = streams.Attachment(tty="tty" in options, stdin="stdin" in options, stdout=shows, stderr=shows)
session = streams.Session(Client("unix:///none"), answer(stream), attached, waiter=answer(waiter),
    resize=told("resize"), forward=told("signal"))
with streams.Signals([15, 28]) as signals:
    os.write(2, b"ready ")
    status = session.run(signals)
os.write(2, f"status={status} detached={session.detached}".encode())
"""
HIJACKED = b"HTTP/1.1 101 UPGRADED\r\n\r\n"
WAITING = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n"
WAITED = b'{"StatusCode":7}'


class Talk:
    def __init__(self, child: subprocess.Popen[bytes], stream: socket.socket, waiter: socket.socket | None) -> None:
        self.child = child
        self.stream = stream
        self.waiter = waiter

    def heard(self, text: str) -> None:
        """Wait until the client has written `text` to standard error."""
        assert self.child.stderr is not None
        seen = b""
        while text.encode() not in seen:
            piece = os.read(self.child.stderr.fileno(), 4096)
            assert piece, seen
            seen += piece

    def end(self) -> tuple[bytes, bytes]:
        """What the client wrote to both outputs by its end."""
        return self.child.communicate(timeout=20)


@contextmanager
def talk(*options: str, stdin: int = subprocess.PIPE, waits: bool = True, early: bytes = b"") -> Iterator[Talk]:
    """`early` is output that comes in one packet with the answer's head."""
    ours, theirs = socket.socketpair()
    ours.sendall(HIJACKED + early)
    waiter, awaited = socket.socketpair() if waits else (None, None)
    if waiter:
        waiter.sendall(WAITING)
    files = [theirs.fileno(), *([awaited.fileno()] if awaited else [])]
    child = subprocess.Popen(
        [sys.executable, "-IS", "-c", CHILD, str(SRC), *map(str, [*files, -1][:2]), *options],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=files,
    )
    theirs.close()
    if awaited:
        awaited.close()
    talking = Talk(child, ours, waiter)
    try:
        talking.heard("ready")
        yield talking
    finally:
        if child.returncode is None:
            child.kill()
            child.communicate()
        ours.close()
        if waiter:
            waiter.close()


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def test_output_is_split_and_the_status_comes_from_the_waiter() -> None:
    with talk(early=frame(1, b"a ")) as it:
        assert it.waiter is not None
        it.stream.sendall(frame(1, b"out") + frame(2, b"err "))
        it.stream.close()
        it.waiter.sendall(WAITED)
        out, err = it.end()
    assert out == b"a out"
    assert err.endswith(b"err status=7 detached=False")


def test_a_status_before_the_streams_end_waits_for_the_output() -> None:
    with talk() as it:
        assert it.waiter is not None
        it.waiter.sendall(WAITED)
        assert not select.select([it.child.stdout], [], [], 0.1)[0] and it.child.poll() is None
        it.stream.sendall(frame(1, b"late"))
        it.stream.close()
        out, err = it.end()
    assert (out, err[-23:]) == (b"late", b"status=7 detached=False")


def test_without_output_only_the_status_counts() -> None:
    with talk("silent") as it:
        assert it.waiter is not None
        it.waiter.sendall(WAITED)
        assert b"status=7" in it.end()[1]


def test_without_a_waiter_the_streams_end_is_the_end() -> None:
    with talk("tty", waits=False) as it:
        it.stream.sendall(b"raw bytes")
        it.stream.close()
        out, err = it.end()
    assert (out, err[-26:]) == (b"raw bytes", b"status=None detached=False")


def test_more_input_than_the_daemon_takes_at_once() -> None:
    """The rest waits for the socket, arrives whole, and then the end of the input is told."""
    data = os.urandom(1 << 20)
    with talk("stdin", waits=False) as it:
        assert it.child.stdin is not None
        os.set_blocking(it.child.stdin.fileno(), False)
        sent, got = 0, b""
        while len(got) < len(data):
            if sent < len(data) and select.select([], [it.child.stdin], [], 0)[1]:
                sent += os.write(it.child.stdin.fileno(), data[sent : sent + 65536])
                if sent == len(data):
                    it.child.stdin.close()
            elif select.select([it.stream], [], [], 0.05)[0]:
                got += it.stream.recv(1 << 16)
        assert got == data
        assert it.stream.recv(1) == b""  # half closed
        it.stream.sendall(frame(1, b"bye"))
        it.stream.close()
        it.child.stdin = None
        assert it.end()[0] == b"bye"


def test_signals_are_told_and_a_new_size_too() -> None:
    with talk() as it:
        assert it.waiter is not None
        it.child.send_signal(signal.SIGTERM)
        it.heard("signal(15,)")
        it.stream.close()
        it.waiter.sendall(WAITED)
        assert b"status=7" in it.end()[1]


def test_a_terminal_is_raw_until_the_user_detaches() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with talk("tty", "stdin", stdin=theirs) as it:
        while termios.tcgetattr(theirs)[3] & termios.ICANON:
            pass
        os.write(ours, b"ab\x03\x10")
        assert it.stream.recv(10) == b"ab\x03"  # ctrl-c is the process's; ctrl-p is held back
        os.write(ours, b"c\x10\x11never")
        got = b""
        while piece := it.stream.recv(10):
            got += piece
        assert got == b"\x10c"
        assert it.end()[1].endswith(b"status=None detached=True")
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_an_unknown_stream_is_told() -> None:
    with talk() as it:
        it.stream.sendall(frame(9, b"?"))
        assert b"unknown stream: 9" in it.end()[1]


@pytest.mark.parametrize(
    ("pieces", "sent", "found"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x10", b"\x11b"], b"a", True),
        ([b"\x10", b"\x10", b"\x10x"], b"\x10\x10\x10x", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_detach_keys_in_any_pieces(pieces: list[bytes], sent: bytes, found: bool) -> None:
    keys = DetachKeys(b"\x10\x11")
    got, seen = b"", False
    for piece in pieces:
        data, seen = keys.feed(piece)
        got += data
    assert (got, seen) == (sent, found)


def test_without_detach_keys_everything_passes() -> None:
    keys = DetachKeys(b"")
    assert keys.feed(b"\x10\x11") == (b"\x10\x11", False) and keys.held == b""


def test_a_window_change_is_only_passed_on_to_a_terminal() -> None:
    assert signal.SIGWINCH in caught(True, True) and signal.SIGWINCH not in caught(False, True)
    assert signal.SIGTERM in caught(False, True) and signal.SIGKILL not in caught(True, True)
    assert caught(True, False) == [signal.SIGWINCH] and caught(False, False) == []
    assert CONTROL["ctrl-a"] == 1 and CONTROL["ctrl-z"] == 26 and CONTROL["ctrl-@"] == 0


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl here, which makes the certificate")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("patience", [None, 10.0])
def test_what_comes_while_the_input_ends_is_read(
    tmp_path: Path, version: ssl.TLSVersion, patience: float | None
) -> None:
    """By TLS: data of the other side's are there already when the client says its last word, and more follow."""
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*made, "-subj", "/CN=x", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    server.maximum_version = version
    client = ssl.create_default_context(cafile=str(certificate))
    client.check_hostname = False
    ours, theirs = socket.socketpair()
    heard: list[bytes] = []

    def serve() -> None:
        with server.wrap_socket(theirs, server_side=True) as sock:
            heard.append(receive(sock, 100))
            sock.sendall(b"at ")
            sock.sendall(b"once, ")
            heard.append(receive(sock, 100))
            sock.sendall(b"and after it")

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(ours) as sock:
        sock.settimeout(patience)
        sock.sendall(b"asked")
        found = receive(sock, 100)
        assert found == b"at " and select.select([sock], [], [], 10)[0], "the rest is in the connection"
        half_close(sock)
        assert sock.gettimeout() == patience and os.get_blocking(sock.fileno()) == (patience is None)
        while data := receive(sock, 100):
            found += data
    thread.join()
    assert found == b"at once, and after it" and heard == [b"asked", b""]
