# SPDX-License-Identifier: Apache-2.0
"""The builder's daemon where containerd is not: what it says meanwhile, that it is idle, and that it goes."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from unit.buildkit.rig import until

from teu.api.buildkit import control_pb2, control_pb2_grpc
from teu.api.grpc.health.v1 import health_pb2, health_pb2_grpc
from teu.buildkit import daemon, main
from teu.buildkit.daemon import Daemon
from teu.config import EX_CONFIG, EX_DATAERR

PROGRAM = Path(__file__).resolve().parents[3] / "bin/teu-buildkitd"


def words(top: Path) -> list[str]:
    return [
        *("--config", str(top / "b.yaml"), "--address", f"{top}/s.sock", "--containerd", f"{top}/none.sock"),
        *("--root", f"{top}/root", "--state", f"{top}/state"),
    ]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Daemon, Any]]:
    monkeypatch.setattr(daemon, "READY_SECONDS", 0.1)
    (tmp_path / "b.yaml").write_text("")
    made = Daemon(main.settings(main.parser().parse_args(words(tmp_path))))
    made.serve(None, None)
    with grpc.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        yield made, channel
    made.stop()


def test_it_answers_while_containerd_is_away(running: tuple[Daemon, Any], tmp_path: Path) -> None:
    made, channel = running
    stub = health_pb2_grpc.HealthStub(channel)
    health = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert dict(stub.List(health_pb2.HealthListRequest(), timeout=10).statuses) == {"": health}
    control = control_pb2_grpc.ControlStub(channel)
    assert control.Info(control_pb2.InfoRequest(), timeout=10).buildkitVersion.version
    asked = control_pb2.BuildHistoryRequest(EarlyExit=True)
    assert not list(control.ListenBuildHistory(asked, timeout=10))
    for call in (
        lambda: control.Solve(control_pb2.SolveRequest(Ref="a", Frontend="dockerfile.v0"), timeout=10),
        lambda: control.ListWorkers(control_pb2.ListWorkersRequest(), timeout=10),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE and "not ready" in caught.value.details()
    for name in ("s.sock", "s-sessions.sock"):
        status = os.stat(tmp_path / name)
        assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "root/cache.db").st_mode) == 0o600
    made.cleaning._builds_seen = False
    until(lambda: made.idle_seconds() > 0)
    assert made.alive()


def test_a_second_builder_of_one_root_does_not_start(running: tuple[Daemon, Any], tmp_path: Path) -> None:
    first = main._locked(f"{tmp_path}/root")
    assert first is not None
    done = subprocess.run([PROGRAM, *words(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "another builder uses" in done.stderr
    os.close(first)


def test_it_starts_and_ends_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("")
    process = subprocess.Popen([PROGRAM, *words(tmp_path)], stderr=subprocess.PIPE, text=True)

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(f"{tmp_path}/s.sock") == 0

    until(answers, 60)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - begun < 20


def test_statuses_that_systemd_does_not_try_again(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("no-such-key: 1\n")
    done = subprocess.run([PROGRAM, *words(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EX_CONFIG and "no-such-key: unknown key" in done.stderr
    (tmp_path / "b.yaml").write_text("")
    (tmp_path / "root").mkdir()
    with sqlite3.connect(tmp_path / "root/cache.db") as database:
        database.execute("PRAGMA user_version = 999")
    done = subprocess.run([PROGRAM, *words(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EX_DATAERR and "newer teu-buildkitd" in done.stderr
