# SPDX-License-Identifier: Apache-2.0
"""Who starts an exec, and what those hear who come later."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from teu.engine.api.messages import Request
from teu.engine.api.routes import exec as route
from teu.engine.core.errors import Conflict
from teu.engine.core.fields import ExecConfig
from teu.engine.lifecycle import execs, health


@pytest.fixture
def execution(monkeypatch: pytest.MonkeyPatch) -> execs.Exec:
    """Of a container that runs."""
    monkeypatch.setattr(execs, "Hub", lambda pump, tty: None)
    config: Any = SimpleNamespace(user="", working_dir="")
    container: Any = SimpleNamespace(config=config, id="c", must_run=lambda: None)
    engine: Any = SimpleNamespace(pump=None, containerd=None)
    one = execs.Exec(engine, container, ExecConfig(cmd=["sh"], tty=True))
    monkeypatch.setattr(execs, "get", lambda engine, identity: one)
    return one


def asked(upgrade: bool = False, version: tuple[int, int] = (1, 45), **body: object) -> Request:
    headers = {"content-type": "application/json"} | ({"upgrade": "tcp"} if upgrade else {})
    text = io.BytesIO(json.dumps(body).encode())
    return Request("POST", "/exec/x/start", headers=headers, body=text, version=version)  # type: ignore[arg-type]


def heard(response: Any) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        response.hijack(ours, b"")
        ours.close()
        return theirs.recv(4096)


def test_one_start_alone(execution: execs.Exec) -> None:
    done: list[str] = []

    def claim() -> None:
        try:
            execution.claim()
            done.append("mine")
        except Conflict as error:
            done.append(str(error))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count("mine") == 1 and set(done) == {"mine", f"exec command {execution.id} is already running"}


def test_a_container_that_does_not_run_can_be_asked_again(execution: execs.Exec) -> None:
    def must_run() -> None:
        raise Conflict("it does not run")

    execution.container.must_run = must_run  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="it does not run"):
        execution.claim()
    assert not execution.started


def test_who_is_late_reads_it_from_the_stream(execution: execs.Exec) -> None:
    """As of dockerd: the status is 200 already. Only a start that is detached has an answer of its own."""
    execution.claim()
    words = f"exec command {execution.id} is already running\r\n".encode()
    assert heard(route.start(execution.engine, asked(Tty=True), "x")) == words
    assert heard(route.start(execution.engine, asked(), "x")) == struct.pack(">BxxxI", 1, len(words)) + words
    execution.ended.set()
    with pytest.raises(Conflict, match="has already run"):
        route.start(execution.engine, asked(Detach=True), "x")


def test_it_runs_from_its_start_on(execution: execs.Exec) -> None:
    """Who looks while the process is in the making waits on, as with dockerd."""
    assert execution.inspect()["Running"] is False
    execution.claim()
    assert execution.inspect()["Running"] is True
    execution.begun.set()  # there is none
    assert execution.inspect()["Running"] is False


def test_what_is_told_of_it(execution: execs.Exec) -> None:
    """The keys as bytes in base64, and no user where nobody has named one, as Go writes them."""
    told = execution.inspect()
    assert told["DetachKeys"] == "" and "user" not in told["ProcessConfig"]  # type: ignore[operator]
    assert execution.label == "sh ", "as docker's events have it"
    options = ExecConfig(cmd=["sh", "-c", "x"], user="1", detach_keys="ctrl-x,a")
    other = execs.Exec(execution.engine, execution.container, options)
    told = other.inspect()
    assert other.label == "sh -c x"
    assert told["DetachKeys"] == "GGE=" and told["ProcessConfig"]["user"] == "1"  # type: ignore[index]
    assert told["ProcessConfig"]["arguments"] == ["-c", "x"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("upgrade", "version", "tty", "multiplexed"),
    [
        (True, (1, 42), False, True),
        (True, (1, 41), False, False),
        (True, (1, 45), True, False),
        (False, (1, 45), False, False),  # no framing is named to whoever asked for no upgrade
    ],
)
def test_what_the_stream_is_called(
    execution: execs.Exec, upgrade: bool, version: tuple[int, int], tty: bool, multiplexed: bool
) -> None:
    response = route.start(execution.engine, asked(upgrade, version, Tty=tty), "x")
    assert ("multiplexed" in response.headers["Content-Type"]) == multiplexed


@pytest.mark.parametrize("by_keys", [False, True])
def test_who_leaves_by_the_keys_is_told_of(
    execution: execs.Exec, monkeypatch: pytest.MonkeyPatch, by_keys: bool
) -> None:
    told: list[tuple[str, dict[str, str]]] = []
    execution.container.event = lambda action, **more: told.append((action, more))  # type: ignore[method-assign]
    execution.hub = SimpleNamespace(attach=lambda *_, **__: None)  # type: ignore[assignment]
    monkeypatch.setattr(execution, "start", lambda: None)
    monkeypatch.setattr(route, "serve", lambda *_: by_keys)
    assert heard(route.start(execution.engine, asked(True, Tty=True), "x")) == b""
    assert told == ([("exec_detach", {"execID": execution.id})] if by_keys else [])


def test_a_health_check_is_an_exec_as_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of when it is created, too."""
    told: list[str] = []
    container: Any = SimpleNamespace(
        id="c",
        config=SimpleNamespace(user="", working_dir=""),
        must_run=lambda: None,
        execs={},
        event=lambda action, **more: told.append(action),
    )
    monkeypatch.setattr(execs, "Hub", lambda pump, tty: SimpleNamespace(followers=[]))
    monkeypatch.setattr(execs.Exec, "start", lambda self: (setattr(self, "exit_code", 3), self.ended.set()))
    checks: Any = object.__new__(health._Checks)
    checks.engine = SimpleNamespace(pump=None, figures=SimpleNamespace(check_started=lambda seconds: None))
    checks.container = container
    assert checks._probe(["true"], 10**9) == (3, "")
    assert told == ["exec_create: true "] and not container.execs
