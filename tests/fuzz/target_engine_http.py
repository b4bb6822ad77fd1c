# SPDX-License-Identifier: Apache-2.0
"""The Engine API below its messages: raw HTTP. Framing, chunk sizes, lengths of headers, upgrades with early data,
pipelining, slow and half-closed connections, Expect; whatever comes, teud answers or closes, and serves the next."""

from __future__ import annotations

import random
import socket
import threading
import time
from dataclasses import dataclass, field

from fuzz import answers, mutate
from fuzz.frame import Run, target

CLOSE_SECONDS = 12.0  # in which a connection whose sending half is closed must have come to its end

PATHS = (
    b"/_ping",
    b"/version",
    b"/v1.45/info",
    b"/containers/json",
    b"/v1.45/containers/fuzz-run/json",
    b"/images/json",
    b"/nothing",
    b"/v1.45/containers/create",
    b"/v1.45/containers/fuzz-run/attach?stream=1&stdin=1&stdout=1",
    b"/v1.45/containers/fuzz-tty/attach?stream=1&stdin=1&stdout=1&logs=1",
    b"/v1.45/containers/fuzz-run/wait",
    b"/v1.45/containers/fuzz-run/logs?stdout=1&follow=1",
    b"/events",
    b"/v1.45/exec/EXEC/start",
    b"/images/load",
    b"/v1.45/containers/fuzz-run/archive?path=/tmp",
    b"/volumes/create",
    b"/auth",
    b"/session",
    b"/grpc",
    b"*",
    b"//",
    b"http://other/_ping",
    b"/%00",
    b"/containers/%2e%2e%2f/json",
    b"/v1.45/containers/fuzz-run/stats",
)
METHODS = (
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"CONNECT",
    b"PATCH",
    b"get",
    b"PRI",
    b"G\0T",
    b"X" * 300,
)
VERSIONS = (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"", b"HTTP/1.1 ")
HEADERS = (
    b"Host: teu",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Upgrade",
    b"Upgrade: tcp",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: nothing",
    b"Content-Type: application/json",
    b"Content-Type: application/x-tar",
    b"Content-Type: \xff",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: identity",
    b"Content-Length: 2",
    b"Content-Length: 0",
    b"Content-Length: -1",
    b"Content-Length: +2",
    b"Content-Length: 2, 2",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 0x2",
    b"Content-Length: " + b"9" * 5000,
    b"Content-Length: 1_0",
    b"Content-Length: ",
    b"X: \0",
    b" folded",
    b"X : y",
    b": y",
    b"X",
    b"X:" + b"y" * 70000,
    b"TE: trailers",
    b"Trailer: X",
    b"HTTP2-Settings: AAMAAABk",
    b"X-Registry-Auth: !!!",
    b"X-Registry-Auth: e30=",
    b"Host: two",
    b"Range: bytes=0-",
    b"Accept-Encoding: gzip",
)
CHUNKED = (
    b"2\r\n{}\r\n0\r\n\r\n",
    b"2;a=b\r\n{}\r\n0\r\n\r\n",
    b"2 \r\n{}\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"-1\r\n{}\r\n",
    b"ffffffffffffffff\r\n{}",
    b"FFFFFFFFFFFFFFFFF\r\n{}",
    b"0x2\r\n{}\r\n0\r\n\r\n",
    b"2\n{}\n0\n\n",
    b"2\r\n{}x\r\n0\r\n\r\n",
    b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    b"z\r\n",
    b"2\r\n{",
    b"0" * 30 + b"2\r\n{}\r\n0\r\n\r\n",
    b"2;" + b"a" * 70000 + b"\r\n{}\r\n0\r\n\r\n",
    b"0\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    b"\r\n",
    b"",
)


@dataclass
class Case:
    """Parts of bytes with pauses between, and how the connection ends: half (shutdown), gone (closed at once), reset,
    or wait (until teud has answered)."""

    parts: list[bytes]
    pauses: list[float] = field(default_factory=list)
    end: str = "half"

    def __str__(self) -> str:
        lines = [f"{pause:.2f} s, then {part[:3000]!r}" for pause, part in zip([0.0, *self.pauses], self.parts)]
        return "\n".join([*lines, f"end: {self.end}"])


def request(dice: random.Random, identity: bytes) -> bytes:
    """One request, mostly well-formed but for one thing."""
    method = dice.choice((b"GET", b"POST")) if dice.random() < 0.8 else dice.choice(METHODS)
    path = dice.choice(PATHS).replace(b"EXEC", identity)
    version = b"HTTP/1.1" if dice.random() < 0.9 else dice.choice(VERSIONS)
    headers = [b"Host: teu"] if dice.random() < 0.93 else []
    headers += [dice.choice(HEADERS) for _ in range(dice.choice((0, 0, 1, 1, 2, 3)))]
    body = b""
    kind = dice.randrange(6)
    if kind == 0:
        body = b"{}"
        headers += [b"Content-Type: application/json", b"Content-Length: %d" % dice.choice((2, 2, 2, 0, 1, 3, 4000))]
    elif kind == 1:
        body = dice.choice(CHUNKED)
        headers += [b"Content-Type: application/json", b"Transfer-Encoding: chunked"]
    elif kind == 2:
        body = dice.choice((b"hello\n", b"\x10\x11", b"\0" * 5000, b"GET /_ping HTTP/1.1\r\nHost: a\r\n\r\n"))
        headers += [b"Connection: Upgrade", b"Upgrade: tcp"]
    elif kind == 3 and dice.random() < 0.3:
        headers += [b"X%d: y" % number for number in range(dice.choice((90, 101, 1000, 5000)))]
    dice.shuffle(headers)
    end = b"\r\n" if dice.random() < 0.95 else b"\n"
    return end.join([b" ".join(filter(None, (method, path, version))), *headers, b"", b""]) + body


def draw(dice: random.Random, identity: bytes) -> Case:
    data = b"".join(request(dice, identity) for _ in range(dice.choice((1, 1, 1, 2, 3, 20))))
    choice = dice.random()
    if choice < 0.4:
        data = mutate.data(dice, data)
    elif choice < 0.45:
        data = dice.randbytes(dice.choice((1, 10, 1000, 100000)))
    end = dice.choice(("half", "half", "half", "gone", "reset", "wait"))
    if dice.random() < 0.6:
        return Case([data], end=end)
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((1, 2, 5))))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]
    return Case(parts, [dice.choice((0.0, 0.001, 0.02, 0.2)) for _ in cuts], end)


def send(case: Case, bound: float = CLOSE_SECONDS) -> tuple[bytes, bool]:
    """(what came back, whether the connection came to its end)."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(bound)
    sock.connect(answers.SOCKET)
    received: list[bytes] = []
    ended = threading.Event()

    def read() -> None:
        try:
            while part := sock.recv(1 << 16):
                if sum(map(len, received)) < 1 << 20:
                    received.append(part)
        except TimeoutError:
            return
        except OSError:
            pass
        ended.set()

    reader = threading.Thread(target=read, daemon=True)
    try:
        reader.start()
        try:
            for pause, part in zip([0.0, *case.pauses], case.parts):
                if pause:
                    time.sleep(pause)
                sock.sendall(part)
            if case.end == "half":
                sock.shutdown(socket.SHUT_WR)
                reader.join(bound)
            elif case.end == "wait":
                reader.join(0.2)
                sock.shutdown(socket.SHUT_WR)
                reader.join(bound)
        except OSError:
            reader.join(0.5)
        return b"".join(received), ended.is_set()
    finally:
        sock.close()
        reader.join(bound)


def judge(run: Run, case: Case, received: bytes, ended: bool) -> None:
    """Whatever came in, what goes out is HTTP, and none of it an error of the program."""
    if received and not received.startswith(b"HTTP/1.1 "):
        run.finding("what came back is no HTTP", f"{case}\n{received[:300]!r}")
    if (found := answers.PYTHON.search(received.decode("latin-1"))) and b'"message"' in received:
        run.finding(f"an answer in the words of the program itself: {found[0]}", f"{case}\n{received[:2000]!r}")
    # Streams that have begun, and whose client has only said that it sends no more, go on by right.
    streams = (b"attach", b"/wait", b"logs?", b"/events", b"/stats", b"/start")
    if not ended and case.end in ("half", "wait") and not any(word in b"".join(case.parts) for word in streams):
        run.finding(f"not closed within {CLOSE_SECONDS:.0f} s after the client's end", f"{case}\n{received[:300]!r}")


@target("engine-http", "raw HTTP to teud: framing, chunks, headers, upgrades, pipelining, slow and half-closed clients")
def fuzz(run: Run) -> None:
    answers.warm()
    slow: list[threading.Thread] = []
    with run.watched(clean=answers.clean):
        identity = answers.ensure().encode()
        count = 0
        while run.going():
            case = draw(run.random, identity)
            run.trying(str(case))
            # Who is slow, or stays until its stream ends, is beside the others.
            thread = threading.Thread(target=lambda case=case: judge(run, case, *send(case)), daemon=True)
            thread.start()
            thread.join(0.05)
            slow = [each for each in [*slow, thread] if each.is_alive()]
            while len(slow) > 40:
                slow[0].join()
                slow = [each for each in slow if each.is_alive()]
            count += 1
            if count % 50 == 0:
                alive(run, case)
                identity = answers.ensure().encode()
        for each in slow:
            each.join(CLOSE_SECONDS * 3)
        alive(run, None)


def alive(run: Run, case: Case | None) -> None:
    """A well-behaved client is served beside all of them."""
    try:
        answer = answers.ask("GET", "/_ping")
    except (TimeoutError, OSError) as error:
        run.finding(f"teud answers nobody: {type(error).__name__}: {error}", str(case))
        return
    if answer.status != 200 or answer.body != b"OK":
        run.finding(f"GET /_ping: {answer.status} {answer.body[:100]!r} {answer.trouble}", str(case))
