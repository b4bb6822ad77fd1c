# SPDX-License-Identifier: Apache-2.0
"""What programs that use the Engine API ask, in their order and with their headers, as tables: a file for each program.

A story is played on one daemon (`Player`), which gives what was answered; `differences` compares that of two daemons:
statuses, content types, which members there are and of which JSON types, and the values that decide what the program
does next. The tables are written from what the programs' sources say they send, without any of their text.

    tests/system/test_engine_recorded.py         on Debian's dockerd and on teud, up to API 1.45
    tests/system/test_engine_recorded_newer.py   on a newer dockerd and on teud, up to 1.51
    tests/unit/engine/test_recorded_stories.py   that teud has every route, parameter and field of them
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

JSON = {"Content-Type": "application/json"}
TAR = {"Content-Type": "application/x-tar"}
UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}
Known = dict[str, Any]
ABSENT = "(absent)"


class Call(NamedTuple):
    """A request, and what is expected of its answer.

    In `target`, `body` and `headers`, `<name>` is what was kept by that name; a text of a body that is nothing else
    becomes the value, whatever its type. Paths are names and numbers with slashes between them, `*` is each of a list's
    items or of an object's values."""

    name: str  # which of the program's calls it is
    method: str
    target: str
    body: Any = None  # bytes, JSON, or a function of what is known, that makes it
    status: int = 200
    headers: Mapping[str, str] = {}
    keep: Mapping[str, str] = {}  # names, and the paths of what is kept of the answer
    same: Sequence[str] = ()  # paths of values that are the same, whoever answers
    told: Mapping[str, object] = {}  # paths, and the values there
    beside: bool = False  # its answer is a stream: later steps read on (Hear)
    until: Callable[[Any], bool] | None = None  # the program asks again until this is true of the answer
    types: Sequence[str] = ()  # paths of values that are of the same JSON type, where the whole shape is not compared
    shape: bool = True  # all members of the answer and their types are compared


class Hear(NamedTuple):
    """What comes by the stream that the call `of` began, up to `until`, or to the stream's end."""

    name: str
    of: str
    sends: bytes = b""  # before that, the client sends this,
    shuts: bool = False  # and says that nothing more comes
    until: bytes | None = None
    leaves: bool = False  # and goes
    lines: bool = False  # it is JSON, a value a line; else bytes,
    framed: bool = False  # in frames, whatever the answer calls itself,
    exact: bool = True  # and all of them are compared; how far a stream has come is chance
    told: Mapping[
        str, object
    ] = {}  # of lines: paths in the list of them; of bytes: by the number of the stream, 0: raw
    same: Sequence[str] = ()
    keep: Mapping[str, str] = {}


class Story(NamedTuple):
    api: tuple[int, int]  # the newest version of the API that it speaks
    steps: Sequence[Call | Hear]
    otherwise: Mapping[str, str] = {}  # paths at which shapes differ, in any answer; and why


class Answer(NamedTuple):
    step: Call | Hear
    status: int
    kind: str
    value: Any


def filters(**wanted: Sequence[str]) -> str:
    """Filters in the form that Go's client has had since API 1.22, for a query."""
    return listed({key: dict.fromkeys(values, True) for key, values in wanted.items()})


def listed(wanted: object) -> str:
    """JSON in a query, as Go and browsers write it."""
    return quote(json.dumps(wanted, separators=(",", ":")), safe="<>")


def at(value: Any, path: str) -> Any:
    """What is at a path; ABSENT where there is nothing of the kind."""
    if not path:
        return value
    name, _, rest = path.partition("/")
    if name == "*":
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        return [at(one, rest) for one in inner]
    if isinstance(value, list) and name.isdigit() and int(name) < len(value):
        return at(value[int(name)], rest)
    if isinstance(value, dict) and name in value:
        return at(value[name], rest)
    return ABSENT


NAME = re.compile(r"<(\w+)>")


def filled(value: Any, known: Known, quoted: bool = False) -> Any:
    """With what is known in its places."""
    if isinstance(value, str):
        whole = NAME.fullmatch(value)
        if whole and not quoted:
            return known[whole[1]]
        return NAME.sub(lambda match: quote(str(known[match[1]]), safe=":") if quoted else str(known[match[1]]), value)
    if isinstance(value, dict):
        return {filled(key, known): filled(one, known) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, known) for one in value]
    return value


def frames(data: bytes) -> dict[str, str]:
    """A multiplexed stream, by the numbers of its streams."""
    found: dict[str, bytes] = {}
    while len(data) >= 8:
        kind, size = struct.unpack(">BxxxI", data[:8])
        found[str(kind)] = found.get(str(kind), b"") + data[8 : 8 + size]
        data = data[8 + size :]
    return {kind: text.decode(errors="replace") for kind, text in sorted(found.items())}


# ---- playing -----------------------------------------------------------------------------------------------


class Stream:
    """A connection whose answer has begun."""

    def __init__(self, path: str, seconds: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(path)
        self.kind = ""

    def ask(self, call: Call, known: Known) -> http.client.HTTPResponse:
        target = filled(call.target, known, quoted=True)
        body = call.body(known) if callable(call.body) else filled(call.body, known)
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode() + b"\n"
        headers = {"Host": "docker", "User-Agent": "Go-http-client/1.1", **filled(dict(call.headers), known)}
        if headers.get("Transfer-Encoding") == "chunked":
            data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        elif data or call.method in ("POST", "PUT"):
            headers["Content-Length"] = str(len(data))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.socket.sendall(f"{call.method} {target} HTTP/1.1\r\n{head}\r\n".encode() + data)
        self.response = http.client.HTTPResponse(self.socket, method=call.method)
        self.response.begin()
        self.kind = self.response.getheader("Content-Type", "") or ""
        return self.response

    def more(self) -> bytes:
        """The next bytes of it, b"" at its end."""
        if self.response.status == 101:
            return self.response.fp.read1(1 << 16)  # behind the head there is no HTTP any more
        return self.response.read1(1 << 16)

    def close(self) -> None:
        self.response.close()
        self.socket.close()


class Player:
    """Plays stories on the daemon at a socket. `seconds`: how long an answer, or the next bytes of it, may take."""

    def __init__(self, path: str, seconds: float = 60) -> None:
        self.path, self.seconds = path, seconds
        self._streams: dict[str, Stream] = {}

    def play(self, story: Story, **known: Any) -> list[Answer]:
        """All answers; OSError, and AssertionError where nothing more can come of it: a status that is none of the
        story's, or something to keep that is not there."""
        known["socket"] = self.path
        answers: list[Answer] = []
        try:
            for step in story.steps:
                answer = self._call(step, known) if isinstance(step, Call) else self._hear(step, known)
                answers.append(answer)
                if isinstance(step, Call):
                    assert answer.status == step.status, f"{self.path}: {step.name}: {answer.status} {answer.value!r}"
                for name, path in step.keep.items():
                    known[name] = at(answer.value, path)
                    assert known[name] != ABSENT, f"{self.path}: {step.name}: nothing at {path} in {answer.value!r}"
            return answers
        finally:
            for stream in self._streams.values():
                stream.close()
            self._streams.clear()

    def _call(self, call: Call, known: Known) -> Answer:
        deadline = time.monotonic() + self.seconds
        while True:
            stream = Stream(self.path, self.seconds)
            response = stream.ask(call, known)
            if call.beside:
                self._streams[call.name] = stream
                return Answer(call, response.status, stream.kind, None)
            data = response.read()
            stream.close()
            answer = Answer(call, response.status, stream.kind, decoded(data, stream.kind))
            if call.until is None or answer.status != call.status or call.until(answer.value):
                return answer
            assert time.monotonic() < deadline, f"{self.path}: {call.name}: still {answer.value!r}"
            time.sleep(0.05)

    def _hear(self, step: Hear, known: Known) -> Answer:
        stream = self._streams[step.of]
        if step.sends:
            stream.socket.sendall(filled(step.sends.decode(), known).encode() if b"<" in step.sends else step.sends)
        if step.shuts:
            stream.socket.shutdown(socket.SHUT_WR)
        data = b""
        wanted = None if step.until is None else str(filled(step.until.decode(), known)).encode()
        while wanted is None or wanted not in data:
            more = stream.more()
            if not more:
                break
            data += more
        if wanted is not None:
            assert wanted in data, f"{self.path}: {step.name}: the stream ended with {data!r}"
        while step.lines and wanted is not None and not data.endswith(b"\n"):
            data += stream.more()
        if step.leaves:
            self._streams.pop(step.of).close()
        if step.lines:
            return Answer(step, 0, stream.kind, [json.loads(line) for line in data.splitlines() if line.strip()])
        framed = step.framed or "multiplexed" in stream.kind
        return Answer(step, 0, stream.kind, frames(data) if framed else {"0": data.decode(errors="replace")})


def decoded(data: bytes, kind: str) -> Any:
    """An answer's body: JSON, a list of JSON values a line each (of what tells of progress), frames, or a text."""
    if "multiplexed" in kind:
        return frames(data)
    if not kind.startswith("application/json"):
        return data.decode(errors="replace")
    text = data.decode().strip()
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]


# ---- comparing ---------------------------------------------------------------------------------------------

IDENTITY = re.compile(r"(sha256:)?[0-9a-f]{64}")
NAMES: dict[type, str] = {str: "text", bool: "flag", int: "number", float: "number", type(None): "null"}


def shapes(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each path in a value, and the type there. Items of a list have one path, and so have members named by an id."""
    if isinstance(value, dict):
        yield path, "object"
        for key, one in value.items():
            key = "*" if IDENTITY.fullmatch(key) else key.replace("/", "|")
            yield from shapes(one, f"{path}/{key}".lstrip("/"))
    elif isinstance(value, list):
        yield path, "list"
        for one in value:
            yield from shapes(one, f"{path}/*".lstrip("/"))
    else:
        yield path, NAMES[type(value)]


def differences(ours: Sequence[Answer], theirs: Sequence[Answer], otherwise: Mapping[str, str]) -> list[str]:
    """What teud answers in another way than dockerd does, a line each. More members than dockerd's are none."""
    found = []
    for mine, other in zip(ours, theirs, strict=True):
        step = mine.step
        if mine.kind != other.kind:
            found.append(f"{step.name}: it is {mine.kind or 'of no kind'}, not {other.kind or 'of no kind'}")
        if step.shape if isinstance(step, Call) else step.lines:
            has: dict[str, set[str]] = {}
            for path, kind in shapes(mine.value):
                has.setdefault(path, set()).add(kind)
            for path, kind in dict.fromkeys(shapes(other.value)):
                if not any(re.fullmatch(known, path) for known in otherwise) and kind not in has.get(path, ()):
                    known = " or ".join(sorted(has.get(path, {"not there"})))
                    found.append(f"{step.name}: {path or 'the answer'} is {known}, with dockerd {kind}")
        if isinstance(step, Hear) and step.exact and not step.lines and mine.value != other.value:
            found.append(f"{step.name}: heard {mine.value!r}, not {other.value!r}")
        if isinstance(step, Call) and not step.shape:
            for path in step.types:
                kinds = [dict(shapes(at(answer.value, path)))[""] for answer in (mine, other)]
                if kinds[0] != kinds[1] or at(mine.value, path) == ABSENT != at(other.value, path):
                    found.append(f"{step.name}: {path} is {kinds[0]}, with dockerd {kinds[1]}")
        for path in step.same:
            if at(mine.value, path) != at(other.value, path):
                found.append(f"{step.name}: {path} is {at(mine.value, path)!r}, not {at(other.value, path)!r}")
    return found


def unexpected(answers: Sequence[Answer]) -> list[str]:
    """Where an answer is not what the story says, whoever gave it."""
    return [
        f"{answer.step.name}: {path} is {at(answer.value, path)!r}, not {wanted!r}"
        for answer in answers
        for path, wanted in answer.step.told.items()
        if at(answer.value, path) != wanted
    ]
