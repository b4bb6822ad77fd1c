# SPDX-License-Identifier: Apache-2.0
"""docker-py and docker compose on teud, and requests that no client of good will makes."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import ENVIRONMENT, HOST, IMAGE, SOCKET, detached, docker, eventually, need_busybox, out, remove

pytestmark = pytest.mark.needs("docker")


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    need_busybox()


@pytest.fixture
def client() -> Iterator[Any]:
    library = pytest.importorskip("docker")
    client = library.DockerClient(base_url=f"unix://{SOCKET}", timeout=60)
    yield client
    client.close()


def test_docker_py(client: Any, tmp_path: Path) -> None:
    import docker as library

    remove("py")
    assert client.ping()
    assert client.version()["ApiVersion"] == "1.55"
    assert client.containers.run(IMAGE, ["echo", "hello"], remove=True, network_mode="host") == b"hello\n"
    with pytest.raises(library.errors.ContainerError) as failed:
        client.containers.run(IMAGE, ["sh", "-c", "echo bad >&2; exit 3"], remove=True, network_mode="host")
    assert failed.value.exit_status == 3 and failed.value.stderr == b"bad\n"
    with pytest.raises(library.errors.NotFound):
        client.containers.get("nobody")
    with pytest.raises(library.errors.ImageNotFound):
        client.containers.create("nosuchimage:1")
    container = client.containers.run(
        IMAGE,
        ["sh", "-c", "echo out; echo err >&2; sleep 600"],
        name="py",
        detach=True,
        network_mode="host",
        environment={"A": "b"},
        labels={"from": "py"},
        mem_limit=None,
        log_config={"Type": "json-file", "Config": {}},
    )
    try:
        assert container in client.containers.list(filters={"label": "from=py"})
        eventually("both lines are logged", lambda: b"err" in container.logs() and b"out" in container.logs())
        assert container.logs(stdout=False) == b"err\n"
        stream = container.logs(stream=True, follow=True)
        assert {next(stream), next(stream)} == {b"out\n", b"err\n"}
        stream.close()
        code, output = container.exec_run(["sh", "-c", "echo $A; echo e >&2; exit 4"], demux=True)
        assert (code, output) == (4, (b"b\n", b"e\n"))
        code, output = container.exec_run("tty", tty=True)
        assert code == 0 and b"/dev/" in output
        sent = container.attach_socket(params={"stdin": 1, "stream": 1, "stdout": 1})
        sent.close()
        import io
        import tarfile

        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            info = tarfile.TarInfo("put")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"yes"))
        assert container.put_archive("/tmp", data.getvalue())
        chunks, described = container.get_archive("/tmp/put")
        assert described["name"] == "put" and described["size"] == 3
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            member = archive.extractfile("put")
            assert member is not None and member.read() == b"yes"
        assert {"Path": "/tmp/put", "Kind": 1} in container.diff()
        assert container.top()["Processes"]
        assert container.stats(stream=False)["name"] == "/py"
        container.pause()
        container.reload()
        assert container.status == "paused"
        container.unpause()
        container.rename("py2")
        container.stop(timeout=0)
        assert container.wait()["StatusCode"] == 137
        assert client.df()["Containers"]
        assert client.info()["Name"]
    finally:
        container.remove(force=True)


def test_an_older_api_version() -> None:
    library = pytest.importorskip("docker")
    client = library.DockerClient(base_url=f"unix://{SOCKET}", version="1.30", timeout=60)
    assert client.containers.run(IMAGE, "echo old", remove=True, network_mode="host") == b"old\n"
    client.close()


def test_compose(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(
        f"""
name: teu-test
services:
  web:
    image: {IMAGE}
    command: sh -c "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www"
    init: false
    stop_grace_period: 0s
    volumes: [data:/data]
    healthcheck: {{test: ["CMD", "wget", "-q", "-O", "-", "http://localhost/"], interval: 200ms}}
  asks:
    image: {IMAGE}
    command: wget -q -O - http://web/
    depends_on: {{web: {{condition: service_healthy}}}}
volumes:
  data: {{}}
"""
    )

    def compose(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "compose", "--progress", "plain", *argv],
            cwd=tmp_path,
            env=ENVIRONMENT,
            timeout=100,
            capture_output=True,
            text=True,
            check=False,
        )

    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    try:
        up = compose("up", "--pull", "never", "--exit-code-from", "asks")
        assert up.returncode == 0, up.stdout + up.stderr
        assert "served" in up.stdout
        assert "web" in compose("ps", "-a").stdout
        assert "served" in compose("logs", "asks").stdout
    finally:
        down = compose("down", "-v")
    assert down.returncode == 0, down.stderr
    assert "teu-test" not in out("ps", "-a") + out("network", "ls") + out("volume", "ls")


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(SOCKET)


def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = _Connection("teu")
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'{"Image": 5}',
        b'{"Image": "busybox", "HostConfig": []}',
        b'{"Image": "busybox", "HostConfig": {"Binds": {"a": 1}}}',
        b'{"Image": "busybox", "Cmd": [1]}',
        b'{"Image": "busybox", "HostConfig": {"Memory": 99999999999999999999999999}}',
        b'{"Image": "busybox", "HostConfig": {"Mounts": [5]}}',
        b'{"Image": "busybox", "HostConfig": {"Mounts": [{"Type": "volume", "Target": "/x", "VolumeOptions": 5}]}}',
        b'{"Image": "busybox", "HostConfig": {"Tmpfs": {"/x": 5}}}',
        b'{"Image": "busybox", "NetworkingConfig": 5}',
        b'{"Image": "busybox", "HostConfig": {"PortBindings": {"x/tcp": []}}}',
        b'{"Image": "busybox", "HostConfig": {"Devices": [{"PathOnHost": 5}]}}',
        b'{"Image": "busybox", "Healthcheck": {"Test": "x"}}',
        b'{"Image": "../../etc/passwd"}',
        b'{"Image": ""}',
    ],
)
def test_bad_bodies_leave_nothing(body: bytes) -> None:
    before = out("ps", "-aq"), out("volume", "ls", "-q")
    status, answer = ask("POST", "/v1.45/containers/create", body)
    assert status in (400, 404), (status, answer)
    assert answer["message"]
    assert (out("ps", "-aq"), out("volume", "ls", "-q")) == before


def test_a_failed_start_leaves_nothing() -> None:
    remove("failing")
    done = docker("run", "--name", "failing", "-v", "/anonymous", *HOST, IMAGE, "nosuch", check=False)
    assert done.returncode == 127
    state = json.loads(out("inspect", "failing"))[0]["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("created", 127, False)
    assert "executable file not found" in state["Error"]
    identity = json.loads(out("inspect", "failing"))[0]["Id"]
    assert not Path(f"/run/teu/engine/{identity}").exists()
    scopes = subprocess.run(
        ["systemctl", "list-units", f"teu-{identity}*", "-q"], capture_output=True, text=True, check=True
    )
    assert not scopes.stdout.strip()
    remove("failing")


def test_clients_that_vanish() -> None:
    """Connections cut in the middle of everything; the daemon serves on, its threads and descriptors end."""
    detached("vanish", "sleep", "600")
    pid = int(
        subprocess.run(
            ["systemctl", "show", "-P", "MainPID", "teud"], capture_output=True, text=True, check=True
        ).stdout
    )
    path = Path(f"/proc/{pid}/fd")
    before = len(list(path.iterdir()))
    for request in (
        b"POST /v1.45/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"GET /v1.45/events HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1.45/containers/vanish/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1.45/containers/vanish/stats HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1.45/containers/vanish/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1.45/containers/vanish/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\n"
        b"Connection: Upgrade\r\nContent-Length: 0\r\n\r\n",
        b"GET /v1.45/containers/vanish/exp",
        b"",
    ):
        for _ in range(5):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(SOCKET)
            sock.sendall(request)
            sock.close()
    assert out("ps", "-q", "--filter", "name=vanish")
    eventually("descriptors are closed again", lambda: len(list(path.iterdir())) <= before + 3, timeout=60)
    remove("vanish")
