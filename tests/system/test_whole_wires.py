# SPDX-License-Identifier: Apache-2.0
"""A decoded capture of each wire, from the command line down to the shim; the runtime's is in test_whole_picture."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import whole
import wires
from whole import out, teu


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    yield
    whole.remove_everything()


def test_the_command_line_speaks_the_engine_api(tmp_path: Path) -> None:
    relay = wires.Relay(tmp_path / "engine.sock", "/run/teu/teud.sock")
    try:
        done = teu("-H", f"unix://{relay.path}", "run", "--rm", whole.IMAGE, "echo", "hello")
        assert done.stdout == "hello\n"
    finally:
        relay.close()
    requests = [r for c in relay.connections for r in wires.http_requests(c)]
    lines = [f"{method} {re.sub(r'^/v1[.][0-9]+', '', target)}" for method, target, _ in requests]
    assert all(re.match(r"/v1\.\d+/|/_ping", target) for _, target, _ in requests), requests
    create = [body for (method, target, body) in requests if "/containers/create" in target]
    assert len(create) == 1
    asked = json.loads(create[0])
    assert asked["Image"] == whole.IMAGE and asked["Cmd"] == ["echo", "hello"]
    assert asked["HostConfig"]["AutoRemove"] is True
    for wanted in (
        r"POST /containers/[0-9a-f]{64}/attach\?",
        r"POST /containers/[0-9a-f]{64}/start",
        r"POST /containers/[0-9a-f]{64}/wait\?",
    ):
        assert any(re.match(wanted, line) for line in lines), (wanted, lines)


@pytest.fixture
def containerd_relay() -> Iterator[wires.Relay]:
    """teud, restarted by systemd with its containerd address set to a relay."""
    relay = wires.Relay(Path("/run/teu/relay.sock"), "/run/teu/containerd.sock")
    folder = Path("/run/systemd/system/teud.service.d")
    folder.mkdir(parents=True, exist_ok=True)
    command = re.search(r"argv\[\]=(.*?) ;", whole.show("teud.service", "ExecStart"))
    assert command
    line = re.sub(r"--containerd=\S+", "--containerd=/run/teu/relay.sock", command[1])
    assert "relay.sock" in line, command[1]
    drop_in = folder / "relay.conf"
    drop_in.write_text(f"[Service]\nExecStart=\nExecStart={line}\n")
    try:
        out("systemctl", "daemon-reload")
        out("systemctl", "restart", "teud.service")
        yield relay
    finally:
        drop_in.unlink()
        out("systemctl", "daemon-reload")
        out("systemctl", "restart", "teud.service")
        relay.close()


def test_the_engine_speaks_containerds_grpc(containerd_relay: wires.Relay) -> None:
    pool = wires.load_protocols()
    ident = whole.run_detached("seen", "sleep", "600")
    teu("rm", "-f", "seen")
    # A connection that says nothing only wakes the daemon.
    spoken = [connection for connection in containerd_relay.connections if connection.sent]
    calls = [c for connection in spoken for c in wires.grpc_calls(connection, pool)]
    by_name = {f"{c.service}/{c.method}": c for c in calls}
    for wanted in (
        "containerd.services.snapshots.v1.Snapshots/Prepare",
        "containerd.services.containers.v1.Containers/Create",
        "containerd.services.tasks.v1.Tasks/Create",
        "containerd.services.tasks.v1.Tasks/Start",
        "containerd.services.tasks.v1.Tasks/Kill",
        "containerd.services.tasks.v1.Tasks/Delete",
        "containerd.services.containers.v1.Containers/Delete",
        "containerd.services.snapshots.v1.Snapshots/Remove",
        "containerd.services.events.v1.Events/Subscribe",
    ):
        assert wanted in by_name, (wanted, sorted(by_name))
        assert by_name[wanted].headers["containerd-namespace"] == "teu"
        assert by_name[wanted].headers["content-type"].startswith("application/grpc")
    made = by_name["containerd.services.containers.v1.Containers/Create"].requests[0].container
    assert made.id == ident and made.runtime.name == "io.containerd.teu.v2"
    assert made.spec.type_url == "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    spec = json.loads(made.spec.value)
    assert spec["process"]["args"] == ["sleep", "600"] and spec["linux"]["cgroupsPath"] == f"teu.slice:teu:{ident}"
    task = by_name["containerd.services.tasks.v1.Tasks/Create"]
    assert task.requests[0].container_id == ident and task.requests[0].rootfs
    assert task.responses[0].pid > 1


def test_containerd_speaks_the_shims_ttrpc(tmp_path: Path) -> None:
    pool = wires.load_protocols()
    out("teu", "version")
    pids = whole.procs(whole.CGROUPS / whole.show("teu-containerd.service", "ControlGroup").lstrip("/"))
    trace = tmp_path / "shim.strace"
    tracer = subprocess.Popen(
        [
            "strace",
            "-f",
            "-qq",
            "-xx",
            "-s",
            "1000000",
            "-e",
            "trace=%network,read,write,writev",
            "-o",
            str(trace),
            *(f"-p{p}" for p in pids),
        ]
    )
    try:
        whole.eventually(
            "strace has attached",
            lambda: all("TracerPid:\t0\n" not in Path(f"/proc/{p}/status").read_text() for p in pids),
        )
        ident = whole.run_detached("seen", "sleep", "600")
        shim = next(iter(whole.shims(ident)))
        teu("exec", "seen", "true")
        teu("rm", "-f", "seen")
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
    streams = wires.strace_streams(trace)
    calls = []
    for (pid, _), served in streams.items():
        if pid == shim and b"containerd.task.v" in served["read"]:
            calls += wires.ttrpc_calls(served, pool)
    methods = [c.method for c in calls]
    for wanted in ("Create", "Start", "Exec", "Kill", "Delete", "Shutdown"):
        assert wanted in methods, methods
    assert {c.service for c in calls} <= {"containerd.task.v2.Task", "containerd.task.v3.Task"}
    create = next(c for c in calls if c.method == "Create")
    assert create.requests[0].id == ident and create.requests[0].bundle.endswith(ident)
    assert create.responses[0].pid > 1
    # the other way: the shim's events go to containerd over ttrpc
    events = [
        wires.ttrpc_calls({"read": s["write"], "write": s["read"]}, pool)
        for (pid, _), s in streams.items()
        if pid == shim and b"containerd.services.events.ttrpc.v1.Events" in s["write"]
    ]
    topics = [c.requests[0].envelope.topic for some in events for c in some]
    for topic in (
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/delete",
    ):
        assert topic in topics, topics
