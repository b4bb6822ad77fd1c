# SPDX-License-Identifier: Apache-2.0
"""teud's ways to the builder: POST /build with its parameters and its body, /session and /grpc as HTTP/2 below gRPC.

Whatever comes, teud and the builder answer or close, and serve the next."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from typing import Any
from urllib.parse import quote_from_bytes

from fuzz import answers, mutate, tars
from fuzz.frame import UNITS, Run, target

BUILDER = "teu-buildkitd.service"
PATIENCE = 90.0
CLOSE_SECONDS = 15.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)

DOCKERFILES = (
    b"FROM scratch\nCOPY a /a\n",
    b"FROM busybox\nRUN true\n",
    b"FROM busybox\nCOPY . /x\nRUN cat /x/a\n",
    b"FROM busybox\nADD a.tar /x\nUSER nobody\n",
    b"FROM busybox AS one\nRUN false\n",
)
# What a parameter usually is; a text is changed, as its name may be.
PARAMETERS: dict[str, str] = {
    "dockerfile": "Dockerfile",
    "t": "fuzz-built:1",
    "extrahosts": "a:1.2.3.4",
    "q": "1",
    "nocache": "1",
    "cachefrom": '["fuzz-built:1"]',
    "pull": "0",
    "rm": "1",
    "forcerm": "1",
    "memory": "1048576",
    "memswap": "-1",
    "cpushares": "2",
    "cpusetcpus": "0",
    "cpuperiod": "100000",
    "cpuquota": "50000",
    "cgroupparent": "teu-x.slice",
    "buildargs": '{"A": "b", "N": null}',
    "shmsize": "1048576",
    "squash": "0",
    "labels": '{"a": "b"}',
    "networkmode": "none",
    "platform": "linux/amd64",
    "target": "one",
    "outputs": '[{"Type": "image", "Attrs": {"name": "fuzz-built:2"}}]',
    "ulimits": '[{"Name": "nofile", "Soft": 10, "Hard": 20}]',
    "session": "fuzz",
    "buildid": "fuzz",
    "version": "1",
    "securityopt": "[]",
    "filters": '{"until": ["1h"], "id": ["x"]}',
    "all": "1",
    "keep-storage": "1",
    "max-used-space": "1",
    "id": "fuzz",
}
REMOTES = ("client-session", "upload-request", "http://127.0.0.1:1/x.tar", "git://127.0.0.1:1/x", "../x", "")
CONFIGS = ("", "e30=", "!!!", "eyJ4Ijp7InVzZXJuYW1lIjoiYSJ9fQ==", "W10=", "bnVsbA==")
METHODS = (
    "/moby.buildkit.v1.Control/Solve",
    "/moby.buildkit.v1.Control/Status",
    "/moby.buildkit.v1.Control/Session",
    "/moby.buildkit.v1.Control/Info",
    "/moby.buildkit.v1.Control/DiskUsage",
    "/moby.buildkit.v1.Control/ListenBuildHistory",
    "/moby.buildkit.v1.Control/UpdateBuildHistory",
    "/moby.buildkit.v1.frontend.LLBBridge/Ping",
    "/moby.buildkit.v1.frontend.LLBBridge/Solve",
    "/moby.buildkit.v1.frontend.LLBBridge/Return",
    "/moby.buildkit.v1.frontend.LLBBridge/ExecProcess",
    "/containerd.services.content.v1.Content/Read",
    "/grpc.health.v1.Health/Check",
    "/x",
)
SERVED = ("/moby.filesync.v1.FileSync/DiffCopy", "/moby.filesync.v1.Auth/Credentials", "/x.Y/z", "")


# ---- /build ------------------------------------------------------------------------------------------------


def _body(dice: random.Random) -> bytes:
    import io
    import tarfile

    if dice.random() < 0.15:
        return tars.archive(dice)
    text = dice.choice(DOCKERFILES)
    files = {"Dockerfile": text if dice.random() < 0.8 else mutate.data(dice, text), "a": b"a"}
    if dice.random() < 0.2:
        files[".dockerignore"] = mutate.data(dice, b"*\n!a\n")
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode=dice.choice(("w", "w", "w:gz"))) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        if dice.random() < 0.3:
            entry = tarfile.TarInfo(dice.choice(("../x", "/x", "link", "a", "a.tar", "d/../../x")))
            entry.type = dice.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
            entry.linkname = dice.choice(("/etc/passwd", "../../x", "a", ""))
            archive.addfile(entry)
    data = output.getvalue()
    return mutate.data(dice, data) if dice.random() < 0.1 else data


def _query(dice: random.Random) -> bytes:
    chosen = [name for name in PARAMETERS if dice.random() < 0.08]
    parts = []
    for name in chosen:
        value: Any = PARAMETERS[name]
        if dice.random() < 0.5:
            if value[:1] in "[{":
                value = json.dumps(mutate.json_value(dice, json.loads(value)))
            else:
                value = mutate.changed_text(dice, value)
        parts.append(f"{name}=".encode() + quote_from_bytes(value.encode("utf-8", "surrogatepass")).encode())
    if dice.random() < 0.15:
        parts.append(b"remote=" + quote_from_bytes(dice.choice(REMOTES).encode()).encode())
    return b"&".join(parts)[:60_000]


def _build(run: Run) -> None:
    dice = run.random
    path = dice.choice((b"/build",) * 12 + (b"/build/prune", b"/build/cancel", b"/v1.24/build", b"/v1.45/build"))
    query, body = _query(dice), _body(dice)
    if b"remote=" in query and b"upload-request" in query:
        return  # it waits a minute for what does not come
    headers = {"Content-Type": "application/x-tar", "X-Registry-Config": dice.choice(CONFIGS)}
    case = f"POST {path.decode()}?{query.decode('latin-1')}\n{headers}\n{body[:5000]!r}"
    run.trying(case)
    begun = time.monotonic()
    try:
        answer = answers.ask("POST", (path + b"?" + query).decode("latin-1"), body, headers, patience=PATIENCE)
    except TimeoutError:
        run.finding(f"no answer within {PATIENCE:.0f} s", case)
        return
    if wrong := answers.wrong(answer):
        run.finding(f"/build: {wrong}"[:300], f"{case}\n{answer.body[:3000]!r}")
    if time.monotonic() - begun > PATIENCE / 2:
        run.finding("a build took longer than it should", case)


# ---- HTTP/2 ------------------------------------------------------------------------------------------------


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _fields(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """HPACK: literals that nobody remembers."""
    return b"".join(b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in pairs)


def _message(dice: random.Random) -> bytes:
    data = dice.choice((b"", b"\x0a\x04fuzz", b"\x0a\x04fuzz\x12\x01x", dice.randbytes(20), b"\x0a\xff\xff\xff\x7f"))
    size = len(data) if dice.random() < 0.9 else dice.choice((0, 1, 1 << 31, (1 << 32) - 1))
    return bytes((dice.choice((0, 0, 0, 1, 9)),)) + size.to_bytes(4, "big") + data


def _client(dice: random.Random) -> list[bytes]:
    """What a client of /grpc says."""
    parts = [PREFACE, _frame(SETTINGS, 0, 0, b"")]
    for number in range(dice.choice((1, 1, 2, 5, 30))):
        stream = 2 * number + 1
        pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", dice.choice(METHODS).encode())]
        pairs += [(b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers")]
        if dice.random() < 0.3:
            pairs.append((b"buildkit-controlapi-buildid", dice.choice((b"fuzz", b"", b"../x"))))
        if dice.random() < 0.2:
            pairs.append((b"grpc-timeout", dice.choice((b"1S", b"99999999999S", b"x", b"-1S"))))
        parts.append(_frame(HEADERS, 4, stream, _fields(pairs)))
        parts.append(_frame(DATA, dice.choice((0, 1, 1, 1)), stream, _message(dice)))
        if dice.random() < 0.3:
            parts.append(_odd(dice, stream))
    return parts


def _server(dice: random.Random) -> list[bytes]:
    """What a client says that serves its session: it is the server there."""
    parts = [_frame(SETTINGS, 0, 0, b""), _frame(SETTINGS, 1, 0, b"")]
    for number in range(dice.choice((1, 2, 5, 30))):
        stream = 2 * number + 1
        pairs = [(b":status", dice.choice((b"200", b"200", b"500", b"x"))), (b"content-type", b"application/grpc")]
        parts.append(_frame(HEADERS, dice.choice((4, 4, 5)), stream, _fields(pairs)))
        parts.append(_frame(DATA, 0, stream, _message(dice)))
        status = (b"grpc-status", dice.choice((b"0", b"5", b"99", b"x", b"")))
        parts.append(_frame(HEADERS, 5, stream, _fields([status, (b"grpc-message", b"%zz\xff")])))
        if dice.random() < 0.3:
            parts.append(_odd(dice, stream))
    return parts


def _odd(dice: random.Random, stream: int) -> bytes:
    where = dice.choice((0, stream, stream, stream + 2, (1 << 31) - 1, 1 << 31))
    size = dice.choice((0, 1, 4, 5, 8, 100, 16_384, 16_385, 70_000))
    return _frame(dice.randrange(12), dice.choice((0, 1, 4, 5, 8, 0x20, 0xFF)), where, dice.randbytes(size))


def _said(dice: random.Random, parts: list[bytes]) -> bytes:
    if dice.random() < 0.3:
        dice.shuffle(parts)
    data = b"".join(parts)
    return mutate.data(dice, data) if dice.random() < 0.5 else data


def _wire(run: Run) -> None:
    dice = run.random
    kind = dice.choice(("session", "session", "grpc", "grpc", "prior knowledge"))
    headers = [b"Host: teu", b"Connection: Upgrade", b"Upgrade: h2c"]
    if kind == "session":
        named = dice.choice((b"fuzz", b"fuzz", b"", b"x" * 5000, b"../x"))
        headers += [b"X-Docker-Expose-Session-Uuid: " + named, b"X-Docker-Expose-Session-Name: x"]
        headers += [b"X-Docker-Expose-Session-Grpc-Method: " + name.encode() for name in SERVED if dice.random() < 0.8]
    elif dice.random() < 0.1:
        headers += [b"HTTP2-Settings: AAMAAABk", b"Upgrade: x"]
    early = _said(dice, _server(dice) if kind == "session" else _client(dice))
    data = early
    if kind != "prior knowledge":
        dice.shuffle(headers)
        data = b"\r\n".join([b"POST /%s HTTP/1.1" % kind.encode(), *headers, b"", b""])
    case = f"{kind}\n{data[:3000]!r}\n{early[:6000]!r}"
    run.trying(case)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CLOSE_SECONDS)
        client.connect(answers.SOCKET)
        try:
            client.sendall(data)
            if kind != "prior knowledge":
                if dice.random() < 0.7:
                    client.recv(4096)
                client.sendall(early)
            if dice.random() < 0.5:
                time.sleep(dice.choice((0.0, 0.01, 0.1)))
            asking = None
            if kind == "session" and dice.random() < 0.5:
                asking = threading.Thread(target=_asked, args=(run, case), daemon=True)
                asking.start()
                asking.join(0.5)
            client.shutdown(socket.SHUT_WR)
            end = time.monotonic() + CLOSE_SECONDS
            while client.recv(1 << 16) and time.monotonic() < end:
                pass
            if asking is not None:
                asking.join(PATIENCE)
        except TimeoutError:
            run.finding(f"{kind}: not closed within {CLOSE_SECONDS:.0f} s after the client's end", case)
        except OSError:
            pass


def _asked(run: Run, case: str) -> None:
    """A build that needs the session's files."""
    query = "remote=client-session&session=fuzz&version=2"
    try:
        answer = answers.ask("POST", f"/build?{query}", b"", {"Content-Type": "application/x-tar"}, patience=PATIENCE)
    except TimeoutError:
        run.finding(f"a build of a hostile session did not end within {PATIENCE:.0f} s", case)
        return
    if wrong := answers.wrong(answer):
        run.finding(f"a build of a hostile session: {wrong}"[:300], case)


# ---- the target --------------------------------------------------------------------------------------------


def _clean() -> None:
    answers.clean()
    answers.ask("POST", "/build/prune?all=1", b"", patience=300)


def _alive(run: Run) -> None:
    ping = answers.ask("GET", "/_ping")
    if ping.status != 200:
        run.finding(f"GET /_ping: {ping.status} {ping.trouble}", list(run.recent))
    usage = answers.ask("GET", "/system/df?type=build-cache", patience=PATIENCE)
    if usage.status != 200:
        run.finding(f"the builder does not answer: {usage.status} {usage.body[:300]!r}", list(run.recent))


@target("engine-builds", "/build, /session and /grpc of teud: parameters, contexts, frames of HTTP/2")
def fuzz(run: Run) -> None:
    import images

    images.need_busybox()
    text = b"FROM busybox\nRUN echo %s\n" % os.urandom(8).hex().encode()
    answers.ask("POST", "/build?q=1", _archive(text), {"Content-Type": "application/x-tar"}, patience=PATIENCE)
    with run.watched(clean=_clean, units=(*UNITS, BUILDER)):
        count = 0
        while run.going():
            if run.random.random() < 0.4:
                _build(run)
            else:
                _wire(run)
            count += 1
            if count % 25 == 0:
                _alive(run)
        _alive(run)


def _archive(dockerfile: bytes) -> bytes:
    from scripted_registry import tar

    return tar(("Dockerfile", dockerfile))
