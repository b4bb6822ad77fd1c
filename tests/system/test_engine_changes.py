# SPDX-License-Identifier: Apache-2.0
"""What `teu update` changes of a container that runs, without a new start of it."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import peers
import pytest
import whole
from whole import call, eventually, out, teu

pytestmark = pytest.mark.needs("systemd")

NAME = "changing"
SERVER = "echo served >/tmp/index.html; httpd -p 80 -h /tmp; httpd -p 81 -h /tmp; sleep 1000"


@pytest.fixture
def web() -> Iterator[str]:
    images.need_busybox()
    teu("rm", "-f", NAME, check=False)
    teu("run", "-d", "--name", NAME, "-e", "KEPT=1", "-e", "OLD=1", whole.IMAGE, "sh", "-c", SERVER)
    yield NAME
    teu("rm", "-f", NAME)


def seen(name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out("teu", "inspect", name))[0]
    return found


def served(port: int) -> bool:
    done = call("curl", "-s", "-m", "5", f"http://127.0.0.1:{port}/", check=False)
    return done.stdout == "served\n"


def test_published_ports(web: str) -> None:
    before = seen()["State"]["Pid"]
    first, second = peers.free_port(), peers.free_port()
    assert out("teu", "update", "--publish", f"127.0.0.1:{first}:80", web) == web
    eventually("the first port", lambda: served(first))
    # A connection that stands does not notice that another port comes.
    with socket.create_connection(("127.0.0.1", first), 5) as standing:
        standing.sendall(b"GET / HTTP/1.1\r\n")
        teu("update", "-p", f"127.0.0.1:{second}:81", web)
        standing.settimeout(5)
        standing.sendall(b"Host: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := standing.recv(4096):
            answer += piece
        assert answer.endswith(b"served\n")
    assert served(first) and served(second)
    assert seen()["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(first)}],
        "81/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(second)}],
    }
    assert f"127.0.0.1:{second}->81/tcp" in out("teu", "ps", "--format", "{{.Ports}}")
    teu("update", "--unpublish", "80", web)
    assert served(second) and not served(first)
    # The host's port is free again, and stays so over a restart of the daemon.
    with contextlib.closing(socket.create_server(("127.0.0.1", first))):
        call("systemctl", "restart", "teud")
        assert served(second)
        assert list(seen()["NetworkSettings"]["Ports"]["81/tcp"]) == [{"HostIp": "127.0.0.1", "HostPort": str(second)}]
        refused = teu("update", "-p", f"127.0.0.1:{first}:80", web, check=False)
        assert refused.returncode and str(first) in refused.stderr
        assert served(second)
        assert "80/tcp" not in seen()["HostConfig"]["PortBindings"]
    assert seen()["State"]["Pid"] == before
    teu("restart", "-t", "0", web)
    eventually("it is served after a new start", lambda: served(second))


def test_what_cannot_be_published(web: str) -> None:
    for arguments, says in (
        (("--unpublish", "80"), "is not published"),
        (("-p", "8080:80,source=10.0.0.0/8"), "publish"),
        (("-p", "no:port"), "Invalid"),
    ):
        done = teu("update", *arguments, web, check=False)
        assert done.returncode and says.lower() in done.stderr.lower(), done.stderr
    teu("run", "-d", "--name", "changing-host", "--network", "host", whole.IMAGE, "sleep", "100")
    try:
        done = teu("update", "-p", "80:80", "changing-host", check=False)
        assert done.returncode and "no network of its own" in done.stderr
    finally:
        teu("rm", "-f", "changing-host")


def test_health_check(web: str) -> None:
    before = seen()["State"]["Pid"]
    assert "Health" not in seen()["State"]
    assert "Test is missing" in teu("update", "--health-interval", "1s", web, check=False).stderr
    teu("update", "--health-cmd", "test -e /fine", "--health-interval", "100ms", "--health-retries", "2", web)
    eventually("it is unhealthy", lambda: seen()["State"]["Health"]["Status"] == "unhealthy")
    teu("update", "--health-cmd", "true", web)
    eventually("it is healthy", lambda: seen()["State"]["Health"]["Status"] == "healthy")
    assert seen()["Config"]["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 100000000, "Retries": 2}
    teu("update", "--no-healthcheck", web)
    assert "Health" not in seen()["State"]
    assert seen()["State"]["Pid"] == before


def test_environment_of_the_next_start(web: str) -> None:
    done = teu("update", "--env", "NEW=2", "--unsetenv", "OLD", web)
    assert "from its next start on" in done.stdout
    before = out("teu", "exec", web, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ")
    assert "OLD=1" in before and "NEW=2" not in before
    teu("restart", "-t", "0", web)
    after = out("teu", "exec", web, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ").split()
    assert {"KEPT=1", "NEW=2"} <= set(after) and "OLD=1" not in after


@pytest.mark.needs("dockerd")
def test_dockerd_says_that_it_cannot() -> None:
    with peers.dockerd() as docker:
        docker.load_busybox()
        docker("create", "--name", "fixed", "busybox")
        done = teu("-H", docker.host, "update", "--env", "A=1", "fixed", check=False)
        assert done.returncode
        assert "--env: the daemon is not teud" in done.stderr


def test_mounts(web: str, tmp_path: Path) -> None:
    """They come and go in a container that runs, and are there at its next start as well."""
    (tmp_path / "file").write_text("of the host")
    before = seen()["State"]["Pid"]
    volume = "changing-data"
    try:
        teu("update", "--mount", f"type=bind,source={tmp_path},target=/new/deep,readonly", web)
        teu("update", "--mount", f"type=volume,source={volume},target=/data", web)
        assert out("teu", "exec", web, "cat", "/new/deep/file") == "of the host"
        assert teu("exec", web, "touch", "/new/deep/x", check=False).returncode
        assert teu("exec", web, "touch", "/data/kept").returncode == 0
        assert call("findmnt", "/new/deep", check=False).returncode, "the host does not see it"
        assert {mount["Destination"] for mount in seen()["Mounts"]} == {"/new/deep", "/data"}
        teu("restart", "-t", "0", web)
        assert out("teu", "exec", web, "ls", "/data") == "kept"
        teu("update", "--unmount", "/new/deep", web)
        assert out("teu", "exec", web, "ls", "/new/deep") == ""
        assert seen()["State"]["Pid"] != before and [one["Destination"] for one in seen()["Mounts"]] == ["/data"]
        # A volume is in use as long as it is mounted, and no longer.
        assert teu("volume", "rm", volume, check=False).returncode
        teu("update", "--unmount", "/data", web)
        teu("volume", "rm", volume)
    finally:
        teu("volume", "rm", "-f", volume, check=False)


def test_a_link_in_the_container_leads_nowhere_else(web: str, tmp_path: Path) -> None:
    """The place of a mount is looked up in the container's own root."""
    teu("exec", web, "ln", "-s", str(tmp_path), "/way")
    (tmp_path / "file").write_text("x")
    teu("update", "--mount", f"type=bind,source={tmp_path},target=/way/there", web)
    assert not (tmp_path / "there").exists()
    assert out("teu", "exec", web, "cat", f"{tmp_path}/there/file") == "x"


def test_a_mount_that_cannot_be_leaves_nothing(web: str, tmp_path: Path) -> None:
    done = teu("update", "--mount", f"type=bind,source={tmp_path},target=/bin/busybox", web, check=False)
    assert done.returncode == 1 and "of another kind" in done.stderr
    done = teu("update", "--mount", "type=tmpfs,target=/t", web, check=False)
    assert done.returncode == 1 and "stop it first" in done.stderr
    assert seen()["Mounts"] == [] and not seen()["HostConfig"].get("Mounts")
