# SPDX-License-Identifier: Apache-2.0
"""`teu run --sdnotify`: what is asked of the engine, and what systemd is told when."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prepared import Daemon, Later

from teu.cli import readiness
from teu.cli.command import GLOBAL_FLAGS, Cli
from teu.cli.errors import CommandError
from teu.cli.http import Client
from teu.cli.options import parse, parse_table

ID = "4" * 64


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "systemd"))
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "systemd"))
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
        yield end


def client(host: str) -> Client:
    options, _ = parse(parse_table(GLOBAL_FLAGS), ["--host", host, "--config", "/nonexistent"])
    return Cli(options).client


def made(tmp_path: Path, kind: str) -> readiness.Teller:
    found = readiness.teller(client(f"unix://{tmp_path}/teud.sock"), kind, detached=False)
    assert found is not None
    return found


def told(daemon: Daemon) -> bool:
    """Whether the engine hears that the container is ready; nobody waits for its answer."""
    deadline = time.monotonic() + 10
    while f"POST /containers/{ID}/ready" not in daemon.calls():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    far = client("tcp://127.0.0.1:1")
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert readiness.teller(far, "conmon", detached=False) is None, "nobody listens"
    assert readiness.teller(far, "ignore", detached=True) is None
    with pytest.raises(ValueError, match="leave out --detach"):
        readiness.teller(far, "healthy", detached=True)
    with pytest.raises(ValueError, match="'ready': must be one of container, healthy, conmon, ignore"):
        readiness.teller(far, "ready", detached=False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    found = readiness.teller(far, "container", detached=False)
    assert found is not None
    with pytest.raises(CommandError, match="a daemon on this host"):
        found.prepare({"HostConfig": {}})


def test_conmon_is_ready_with_the_start(daemon: Daemon, tmp_path: Path, manager: socket.socket) -> None:
    found = made(tmp_path, "conmon")
    body: dict[str, Any] = {"HostConfig": {}}
    found.prepare(body)
    assert body["HostConfig"] == {} and "Env" not in body
    found.listen(ID)
    assert not found.files and not daemon.requests
    found.started()
    assert manager.recv(4096) == b"READY=1\nSTATUS=Running" and told(daemon)
    found.close()


def test_a_container_says_it_itself(
    daemon: Daemon, tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "5000000")
    found = made(tmp_path, "container")
    body: dict[str, Any] = {"HostConfig": {"Binds": ["/a:/b"]}, "Env": ["A=1"]}
    found.prepare(body)
    place = tmp_path / f"teu-notify-{os.getpid()}"
    assert body["HostConfig"]["Binds"] == ["/a:/b", f"{place}/notify:/run/teu-notify:rw"]
    assert body["Env"] == ["A=1", "NOTIFY_SOCKET=/run/teu-notify", "WATCHDOG_USEC=5000000"]
    found.listen(ID)
    found.started()
    assert manager.recv(4096) == b"STATUS=Waiting until the container is ready"
    ((file, act),) = found.files.items()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as container:
        container.connect(str(place / "notify"))
        container.send(b"MAINPID=1\nSTATUS=warm")
        assert select.select([file], [], [], 5)[0]
        act()
        assert manager.recv(4096) == b"STATUS=warm" and not daemon.requests
        container.send(b"READY=1")
        act()
    assert manager.recv(4096) == b"READY=1" and told(daemon)
    found.close()
    assert not place.exists()


def test_a_healthy_one_is_ready(daemon: Daemon, tmp_path: Path, manager: socket.socket) -> None:
    well = threading.Event()
    daemon.on("GET", "/events", Later(lambda: well.wait(10) and {"Action": "health_status: healthy"}))
    state: dict[str, Any] = {"Running": True, "Health": {"Status": "starting"}}
    daemon.on("GET", f"/containers/{ID}/json", {"State": state})
    found = made(tmp_path, "healthy")
    found.prepare({"HostConfig": {}})
    found.listen(ID)
    asked = daemon.last.filters()
    assert asked == {"container": {ID: True}, "event": {"health_status": True}}
    found.started()
    assert manager.recv(4096) == b"STATUS=Waiting until the container is healthy"
    ((file, act),) = found.files.items()
    well.set()
    assert select.select([file], [], [], 5)[0]
    act()
    assert manager.recv(4096) == b"READY=1\nSTATUS=Healthy" and told(daemon)
    found._heard("unhealthy")
    assert manager.recv(4096) == b"STATUS=Unhealthy"
    found.close()
    del state["Health"]
    found = made(tmp_path, "healthy")
    found.listen(ID)
    with pytest.raises(CommandError, match="give --health-cmd"):
        found.started()
    found.close()
