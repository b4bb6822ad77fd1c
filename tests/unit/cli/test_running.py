# SPDX-License-Identifier: Apache-2.0
"""run, create, start, attach and exec, with the daemon's half of the conversation played by the test."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prepared import Hijack, Later, Raw

from teu.cli import execute


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


class Container:
    """One container of the daemon: what it writes when it is started, and how it ends."""

    def __init__(self, daemon: Any, output: bytes = b"", status: int = 0, tty: bool = False) -> None:
        self.daemon = daemon
        self.output = output
        self.status = status
        self.started = threading.Event()
        self.ended = threading.Event()
        self.typed = b""
        daemon.on("POST", "/containers/create", {"Id": "c1", "Warnings": []})
        daemon.on("POST", "/containers/c1/attach", Hijack(self.talk))
        daemon.on("POST", "/containers/c1/wait", lambda request: Later(self.wait))
        daemon.on("POST", "/containers/c1/start", self.start)
        state = {"Running": True}
        self.found = {"Id": "c1", "State": state, "Config": {"Tty": tty, "OpenStdin": True}, "HostConfig": {}}
        daemon.on("GET", "/containers/web/json", self.found)

    def start(self, request: Any) -> int:
        self.started.set()
        return 204

    def talk(self, connection: Any) -> None:
        self.started.wait(10)
        connection.sendall(self.output)
        if self.daemon.requests[0].body and self.daemon.requests[0].body.get("OpenStdin"):
            while piece := connection.recv(100):
                self.typed += piece
            connection.sendall(frame(1, b"heard " + self.typed))
        self.ended.set()

    def wait(self) -> Any:
        self.ended.wait(10)
        return {"StatusCode": self.status}


def test_a_container_in_the_foreground(daemon: Any, teu: Callable[..., Any]) -> None:
    Container(daemon, frame(1, b"out\n") + frame(2, b"err\n"), 3)
    assert teu("run", "--rm", "--name", "web", "busybox", "sh", "-c", "exit 3") == (3, "out\n", "err\n")
    create, attach, *rest = daemon.requests
    assert create.query == {"name": "web"}
    assert (create.body["Image"], create.body["Cmd"]) == ("busybox", ["sh", "-c", "exit 3"])
    assert (attach.path, attach.query) == ("/containers/c1/attach", {"stream": "1", "stdout": "1", "stderr": "1"})
    # Output and status are asked for before the start, so that nothing of them is missed.
    assert [(request.path, request.query) for request in rest] == [
        ("/containers/c1/wait", {"condition": "removed"}),
        ("/containers/c1/start", {}),
    ]


def test_input_reaches_the_container_and_ends(daemon: Any, teu: Callable[..., Any]) -> None:
    made = Container(daemon)
    assert teu("run", "-i", "busybox", "cat", stdin=b"typed") == (0, "heard typed", "")
    assert made.typed == b"typed"


def test_a_container_in_the_background(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    Container(daemon)
    assert teu("run", "-d", "--cidfile", str(tmp_path / "id"), "busybox") == (0, "c1\n", "")
    assert daemon.calls() == ["POST /containers/create", "POST /containers/c1/start"]
    assert daemon.requests[0].body["AttachStdout"] is False
    assert (tmp_path / "id").read_text() == "c1"
    assert "container ID file found" in teu("run", "-d", "--cidfile", str(tmp_path / "id"), "busybox").err


def test_an_image_that_is_missing_is_pulled_once(daemon: Any, teu: Callable[..., Any]) -> None:
    def create(request: Any) -> Any:
        pulled = "POST /images/create" in daemon.calls()
        return {"Id": "c1", "Warnings": ["no swap"]} if pulled else (404, "No such image: x:latest")

    daemon.on("POST", "/containers/create", create)
    daemon.on("POST", "/images/create", Raw(b'{"status":"Pulled"}\n', "application/json"))
    done = teu("create", "x")
    assert (done.code, done.out) == (0, "c1\n")
    assert done.err == "Unable to find image 'x:latest' locally\nPulled\nWARNING: no swap\n"
    assert daemon.calls().count("POST /containers/create") == 2
    daemon.requests.clear()
    assert teu("create", "--pull", "never", "x").err.startswith("Error response from daemon: No such image")
    assert "POST /images/create" not in daemon.calls()


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, 'exec: "nope": executable file not found in $PATH', 127),
        (400, "permission denied", 126),
        (409, "port is already allocated", 125),
    ],
)
def test_why_a_container_did_not_start(
    daemon: Any, teu: Callable[..., Any], status: int, message: str, code: int
) -> None:
    made = Container(daemon)
    made.started.set()
    daemon.on("POST", "/containers/c1/start", (status, message))
    done = teu("run", "busybox", "nope")
    assert (done.code, done.err) == (
        code,
        f"teu: Error response from daemon: {message}\n\nRun 'teu run --help' for more information\n",
    )
    assert teu("run", "-d", "busybox", "nope").code == code


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["-d", "-a", "stdout"], "conflicting options: cannot specify both --attach and --detach"),
        (["--pull", "x"], "invalid pull option: 'x': must be one of"),
        (["--detach-keys", "ctrl-1"], "invalid detach keys"),
        (["-p", "x"], "Invalid containerPort: x\n\nRun 'teu run --help' for more information"),
        (
            ["--mount", "type=bind"],
            "target is required\n\nUsage:  teu run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'teu run --help' for",
        ),
        (["-it"], "the input device is not a TTY"),
    ],
)
def test_refused_before_anything_is_asked(daemon: Any, teu: Callable[..., Any], argv: list[str], told: str) -> None:
    done = teu("run", *argv, "busybox")
    assert done.code in (1, 125) and told in done.err
    assert daemon.requests == []


def test_proxies_of_the_users_file(daemon: Any, teu: Callable[..., Any], tmp_path: Path) -> None:
    Container(daemon)
    (tmp_path / "config").mkdir()
    proxies = {"default": {"httpProxy": "http://p", "noProxy": "localhost"}}
    (tmp_path / "config/config.json").write_text(json.dumps({"proxies": proxies}))
    teu("run", "-d", "-e", "HTTP_PROXY=own", "busybox")
    assert sorted(daemon.requests[0].body["Env"]) == [
        "HTTP_PROXY=own",
        "NO_PROXY=localhost",
        "http_proxy=http://p",
        "no_proxy=localhost",
    ]


def test_start_and_attach(daemon: Any, teu: Callable[..., Any]) -> None:
    made = Container(daemon, frame(1, b"more\n"), 4)
    assert teu("start", "-a", "web") == (4, "more\n", "")
    made.started.set()
    assert teu("attach", "--no-stdin", "web") == (4, "more\n", "")
    made.found["State"]["Running"] = False
    assert teu("attach", "web").err == "You cannot attach to a stopped container, start it first\n"
    assert teu("start", "-a", "web", "x").err == "you cannot start and attach multiple containers at once\n"
    daemon.on("POST", "/containers/a/start")
    done = teu("start", "a", "b")
    assert done.out == "a\n" and done.err.endswith("Error: failed to start containers: b\n")


def test_a_further_process(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/containers/web/exec", {"Id": "e1"})
    daemon.on("POST", "/exec/e1/start", Hijack(lambda connection: connection.sendall(frame(2, b"oh\n"))))
    daemon.on("GET", "/exec/e1/json", {"Running": False, "ExitCode": 9})
    assert teu("exec", "-u", "me", "-w", "/x", "-e", "A=1", "web", "ls", "-l") == (9, "", "oh\n")
    body = daemon.requests[0].body
    assert (body["Cmd"], body["User"], body["WorkingDir"], body["Env"]) == (["ls", "-l"], "me", "/x", ["A=1"])
    assert daemon.requests[1].body == {"Detach": False, "Tty": False}
    daemon.on("POST", "/exec/e1/start", 200)
    assert teu("exec", "-d", "web", "ls") == (0, "", "")
    assert daemon.last.body == {"Detach": True, "Tty": False}


def test_a_process_that_outlives_the_connection(
    daemon: Any, teu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "time", SimpleNamespace(sleep=lambda seconds: None))
    daemon.on("POST", "/containers/web/exec", {"Id": "e1"})
    daemon.on("GET", "/exec/e1/json", {"Running": True})
    daemon.on("POST", "/exec/e1/start", Hijack(lambda connection: None))
    done = teu("exec", "web", "ls")
    assert done.code == 125 and "its exit code is not known" in done.err


def test_the_daemons_socket_and_log_ins_go_into_a_container(
    daemon: Any, teu: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-ins only where the container is not told of a configuration of its own; a helper's as the file's own."""
    monkeypatch.delenv("DOCKER_AUTH_CONFIG", raising=False)
    Container(daemon)
    daemon.on("PUT", "/containers/c1/archive")
    assert teu("create", "--use-api-socket", "busybox") == (0, "c1\n", "")
    (create,) = daemon.requests
    (socket,) = create.body["HostConfig"]["Mounts"]
    assert socket == {
        "Type": "bind",
        "Source": f"{tmp_path}/teud.sock",
        "Target": "/var/run/docker.sock",
        "BindOptions": {},
    }
    assert "Env" not in create.body
    helper = tmp_path / "docker-credential-kept"
    helper.write_text('#!/bin/sh\nread server\necho "{\\"Username\\": \\"$server\\", \\"Secret\\": \\"word\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "config").mkdir(exist_ok=True)
    auths = {"one.example": {"auth": "bWU6d29yZA=="}, "gone.example": {}}
    (tmp_path / "config/config.json").write_text(json.dumps({"auths": auths, "credHelpers": {"two.example": "kept"}}))
    daemon.requests.clear()
    assert teu("create", "--use-api-socket", "busybox").code == 0
    create, put = daemon.requests
    assert create.body["Env"] == ["DOCKER_CONFIG=/run/secrets/docker"]
    assert (put.path, put.query) == ("/containers/c1/archive", {"path": "/"})
    with tarfile.open(fileobj=io.BytesIO(put.body)) as tar:
        (entry,) = tar
        assert (entry.name, entry.mode) == ("run/secrets/docker/config.json", 0o600)
        file = tar.extractfile(entry)
        assert file is not None
        assert json.load(file)["auths"] == {
            "one.example": {"auth": "bWU6d29yZA=="},
            "two.example": {"auth": "dHdvLmV4YW1wbGU6d29yZA=="},
        }
    daemon.requests.clear()
    assert teu("create", "--use-api-socket", "-e", "DOCKER_CONFIG=/own", "busybox").code == 0
    assert daemon.calls() == ["POST /containers/create"]
