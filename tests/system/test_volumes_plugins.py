# SPDX-License-Identifier: Apache-2.0
"""Containers with volumes of a plugin, on teud and on Debian's dockerd, one after the other with the same plugin."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import images
import peers
import pytest
import whole
from whole import eventually

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

SOCKET = Path("/run/docker/plugins/teu-shelf.sock")
PROGRAM = Path(__file__).resolve().parents[1] / "drivers/volumeplugin.py"
TEUD = ["docker", "--config", "/run/no-such-configuration", "-H", "unix:///run/teu/teud.sock"]


@contextlib.contextmanager
def shelf(folder: Path) -> Iterator[None]:
    """The plugin, as a program of its own."""
    SOCKET.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, str(PROGRAM), str(SOCKET), str(folder)])
    try:
        eventually("the plugin listens", SOCKET.exists)
        yield
    finally:
        process.terminate()
        process.wait()
        SOCKET.unlink(missing_ok=True)


@pytest.fixture(params=["teud", "dockerd"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    images.need_busybox()
    with shelf(tmp_path / "shelf"), contextlib.ExitStack() as stack:
        if request.param == "teud":
            whole.remove_everything()
            yield TEUD
            whole.remove_everything()
            return
        daemon = stack.enter_context(peers.dockerd())
        daemon.load_busybox()
        yield daemon.client


def call(client: list[str], *argv: str, code: int = 0) -> str:
    environment = {**os.environ, "DOCKER_CLI_HINTS": "false"}
    done = subprocess.run(
        [*client, *argv],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    assert done.returncode == code, (argv, done.stdout, done.stderr)
    return (done.stdout + done.stderr).strip()


def test_a_volume_of_a_plugin(client: list[str], tmp_path: Path) -> None:
    call(client, "volume", "create", "-d", "teu-shelf", "-o", "colour=blue", "books")
    shown = json.loads(call(client, "volume", "inspect", "books"))[0]
    assert (shown["Driver"], shown["Scope"], shown["Options"]) == ("teu-shelf", "global", {"colour": "blue"})
    assert shown["Mountpoint"] == str(tmp_path / "shelf/mounted/books")
    run = ("run", "--rm", "--network", "none", "-v", "books:/books", "busybox", "sh", "-c")
    call(client, *run, "echo read >/books/file")
    assert not (tmp_path / "shelf/mounted/books").exists(), "nobody has it mounted"
    assert (tmp_path / "shelf/kept/books/file").read_text() == "read\n"
    assert call(client, *run, "cat /books/file") == "read"
    call(client, "run", "-d", "--name", "reader", "--network", "none", "-v", "books:/books", "busybox", "sleep", "600")
    assert call(client, *run, "cat /books/file") == "read"
    assert (tmp_path / "shelf/mounted/books/file").exists(), "the reader has it still"
    assert "volume is in use" in call(client, "volume", "rm", "books", code=1)
    call(client, "rm", "-f", "reader")
    assert "teu-shelf" in call(client, "info", "-f", "{{.Plugins.Volume}}")
    call(client, "volume", "prune", "-a", "-f")
    assert (tmp_path / "shelf/kept/books").exists(), "a plugin's volume may be others' as well"
    call(client, "volume", "rm", "books")
    assert not (tmp_path / "shelf/kept/books").exists()


def test_a_volume_that_another_engine_has_made(client: list[str], tmp_path: Path) -> None:
    call(client, "volume", "create", "-d", "teu-shelf", "ours")
    asked = ["curl", "-sf", "--unix-socket", str(SOCKET), "http://x/VolumeDriver.Create", "-d", '{"Name": "theirs"}']
    subprocess.run(asked, check=True, capture_output=True, timeout=60)
    assert call(client, "volume", "ls", "-f", "driver=teu-shelf", "--format", "{{.Name}}").split() == ["ours", "theirs"]
    shown = json.loads(call(client, "volume", "inspect", "theirs"))[0]
    assert (shown["Driver"], shown["Scope"], shown["Status"]) == ("teu-shelf", "global", {"colour": "blue"})
    run = ("run", "--rm", "--network", "none", "-v", "theirs:/x", "busybox", "touch", "/x/file")
    call(client, *run)
    assert (tmp_path / "shelf/kept/theirs/file").exists()
    for name in ("ours", "theirs"):
        call(client, "volume", "rm", name)
    assert not (tmp_path / "shelf/kept/theirs").exists()


def test_by_the_flag_of_run(client: list[str], tmp_path: Path) -> None:
    flags = ("--network", "none", "--volume-driver", "teu-shelf", "-v", "flagged:/x")
    call(client, "run", "--rm", *flags, "busybox", "touch", "/x/file")
    assert (tmp_path / "shelf/kept/flagged/file").exists()
    call(client, "volume", "rm", "flagged")


def test_a_driver_that_is_none(client: list[str]) -> None:
    said = call(client, "volume", "create", "-d", "nobody", "books", code=1)
    assert 'error looking up volume plugin nobody: plugin "nobody" not found' in said


def test_a_container_outlives_the_engine(client: list[str], tmp_path: Path) -> None:
    if client is not TEUD:
        return  # dockerd stops its containers
    call(client, "volume", "create", "-d", "teu-shelf", "books")
    call(client, "run", "-d", "--name", "reader", "--network", "none", "-v", "books:/books", "busybox", "sleep", "600")
    whole.call("systemctl", "kill", "-s", "KILL", "teud")
    call(client, "exec", "reader", "touch", "/books/after")
    call(client, "rm", "-f", "reader")
    assert (tmp_path / "shelf/kept/books/after").exists(), "it was let go of"
    call(client, "volume", "rm", "books")
