# SPDX-License-Identifier: Apache-2.0
"""The tables of recorded requests: that they hang together, that teud serves what they ask, and how answers are
compared. They are played in tests/system/test_engine_recorded.py."""

from __future__ import annotations

import importlib
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recorded
from recorded import Answer, Call, Hear, Player, Story

from teu.engine.api import router
from teu.engine.api.messages import Query, Request
from teu.engine.core import fields

MODULES = sorted(path.stem for path in Path(recorded.__file__).parent.glob("[a-z]*.py") if path.stem != "go")
BODIES = {
    "/containers/create": fields.CONTAINER,
    "/containers/{name}/update": fields.UPDATE,
    "/containers/{name}/exec": fields.EXEC,
    "/exec/{identity}/start": fields.EXEC_START,
    "/networks/create": fields.NETWORK,
    "/networks/{name}/connect": fields.CONNECT,
    "/networks/{name}/disconnect": fields.DISCONNECT,
    "/volumes/create": fields.VOLUME,
}


def stories() -> Iterator[Any]:
    for name in MODULES:
        module = importlib.import_module(f"recorded.{name}")
        yield pytest.param(module.STORY, id=name)
        for story in getattr(module, "NEWEST", ()):
            yield pytest.param(story, id=f"{name}-{story.api[1]}")


@pytest.mark.parametrize("story", stories())
def test_a_story_hangs_together(story: Story) -> None:
    """Each step has a name of its own, hears what has begun, and uses what was kept before it."""
    known, streams, names = {"socket", "registry"}, set(), set()
    for step in story.steps:
        assert step.name not in names, step.name
        names.add(step.name)
        if isinstance(step, Hear):
            assert step.of in streams, step.name
            if step.leaves:
                streams.discard(step.of)
        else:
            said = step.target if callable(step.body) else f"{step.target} {step.body!r}"
            assert set(recorded.NAME.findall(said)) <= known, step.name
            if step.beside:
                streams.add(step.name)
            if version := re.match(r"/v1\.(\d+)/", step.target):
                assert (1, int(version[1])) <= story.api or step.target.startswith("/v1.43/"), step.name
        known |= set(step.keep)


@pytest.mark.parametrize("story", stories())
def test_teud_has_what_it_asks_for(story: Story) -> None:
    router.load()
    for step in story.steps:
        if isinstance(step, Hear):
            continue
        path, _, text = re.sub(r"<\w+>", "x" * 12, step.target).partition("?")
        _, pattern, _ = router.find(step.method, re.sub(r"^/v1\.\d+", "", path))
        method = "GET" if step.method == "HEAD" else step.method
        query = Query(text)
        taken = fields.PARAMETERS.get((method, pattern), {})
        assert set(query.values) <= set(taken), f"{step.name}: parameters that teud does not know"
        query.filters()
        kind: Any = BODIES.get(pattern)
        if kind is not None and not callable(step.body):
            body = io.BytesIO(b"null" if step.body is None else json.dumps(step.body).encode())
            headers = {"content-type": "application/json"}
            Request("POST", path, headers=headers, body=body).decode(kind)  # type: ignore[arg-type]


def test_paths() -> None:
    value = {"a": [{"b": 1}, {"b": 2}], "c/d": None, "m": {"x": {"n": 1}}}
    assert recorded.at(value, "a/*/b") == [1, 2] and recorded.at(value, "a/1/b") == 2
    assert recorded.at(value, "m/*/n") == [1] and recorded.at(value, "a/7/b") == recorded.at(value, "no") == "(absent)"
    assert recorded.at("x", "") == "x"


def test_what_is_known_takes_its_places() -> None:
    known = {"id": "a/b", "whole": {"k": [1]}}
    assert recorded.filled("/x/<id>?n=<id>", known, quoted=True) == "/x/a%2Fb?n=a%2Fb"
    assert recorded.filled({"<id>": ["<whole>", "is <id>"]}, known) == {"a/b": [{"k": [1]}, "is a/b"]}
    assert recorded.filters(label=["a=b"]) == "%7B%22label%22%3A%7B%22a%3Db%22%3Atrue%7D%7D"


def answers(call: Call | Hear, ours: object, theirs: object, kind: str = "application/json") -> list[str]:
    return recorded.differences([Answer(call, 200, kind, ours)], [Answer(call, 200, "application/json", theirs)], {})


def test_what_is_told_apart() -> None:
    call = Call("x", "GET", "/x", same=("Id",))
    one = {"Id": "1", "L": [{"n": 1}], "N": None, "C": {"a" * 64: {"k": "v"}}}
    assert not answers(call, {**one, "C": {"b" * 64: {"k": "w"}}, "More": 1}, one)
    assert answers(call, {**one, "Id": "2"}, one) == ["x: Id is '2', not '1'"]
    assert answers(call, {**one, "L": []}, one) == ["x: L/* is not there, with dockerd object"] + [
        "x: L/*/n is not there, with dockerd number"
    ]
    assert answers(call, {**one, "N": []}, one) == ["x: N is list, with dockerd null"]
    assert answers(call, one, one, "text/plain") == ["x: it is text/plain, not application/json"]
    loose = Call("x", "GET", "/x", shape=False, types=("N",))
    assert not answers(loose, {"N": None}, one)
    assert answers(loose, {"N": "text"}, one) == ["x: N is text, with dockerd null"]
    assert answers(loose, {}, one) == ["x: N is text, with dockerd null"]


def test_what_is_heard_is_compared() -> None:
    heard = Hear("x", "y")
    assert answers(heard, {"1": "a"}, {"1": "b"}) == ["x: heard {'1': 'a'}, not {'1': 'b'}"]
    assert not answers(Hear("x", "y", exact=False), {"1": "a"}, {"1": "b"})
    wanted = Call("x", "GET", "/x", told={"State/Running": True})
    assert recorded.unexpected([Answer(wanted, 200, "", {"State": {}})]) == ["x: State/Running is '(absent)', not True"]


SAID = b"\1\0\0\0\0\0\0\4out\n\2\0\0\0\0\0\0\4err\n"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """The path of one that answers what it is told to, and what it was asked."""
    asked: list[bytes] = []
    path = str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(4096)
                asked.append(head)
                if b"Upgrade: tcp" in head:
                    kind = b"application/vnd.docker.multiplexed-stream"
                    sock.sendall(b"HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\n\r\n" % kind + SAID)
                    asked.append(sock.makefile("rb").read())
                elif b"GET /ready" in head:
                    body = b'{"Ready": %s}\n' % (b"true" if len(asked) > 2 else b"false")
                    sock.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                        + body
                    )
                else:
                    sock.sendall(
                        b"HTTP/1.1 201 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                    )
                    sock.sendall(b'c\r\n{"Id": "7a"}\r\n0\r\n\r\n')

    threading.Thread(target=serve, daemon=True).start()
    yield path, asked
    listener.close()


def test_a_story_is_played(daemon: tuple[str, list[bytes]]) -> None:
    path, asked = daemon
    steps = [
        Call("made", "POST", "/made", {"Name": "x"}, 201, recorded.JSON, {"id": "Id"}),
        Call("ready", "GET", "/ready/<id>", until=lambda told: told["Ready"]),
        Call("streams", "POST", "/streams/<id>", status=101, headers=recorded.UPGRADE, beside=True),
        Hear("heard", "streams", sends=b"in\n", shuts=True, leaves=True, until=b"err\n"),
    ]
    found = Player(path, 10).play(Story((1, 45), steps))
    assert [answer.value for answer in found] == [{"Id": "7a"}, {"Ready": True}, None, {"1": "out\n", "2": "err\n"}]
    assert b'Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{"Name": "x"}\n' in asked[0]
    assert b"GET /ready/7a HTTP/1.1\r\nHost: docker\r\n" in asked[1]
    for _ in range(500):
        if len(asked) > 4:
            break
        time.sleep(0.01)  # the story does not wait until the daemon has read it all
    assert asked[4] == b"in\n"


def test_what_a_story_does_not_say_ends_it(daemon: tuple[str, list[bytes]]) -> None:
    path, asked = daemon
    chunked = Call("made", "POST", "/made", b"null", headers={"Transfer-Encoding": "chunked"})
    with pytest.raises(AssertionError, match="made: 201"):
        Player(path, 10).play(Story((1, 45), [chunked]))
    assert asked[0].endswith(b"\r\n\r\n4\r\nnull\r\n0\r\n\r\n")
    with pytest.raises(AssertionError, match="nothing at No"):
        Player(path, 10).play(Story((1, 45), [Call("made", "POST", "/made", status=201, keep={"x": "No"})]))
