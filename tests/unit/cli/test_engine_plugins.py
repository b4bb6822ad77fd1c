# SPDX-License-Identifier: Apache-2.0
"""`plugin` and `checkpoint`: what is asked of the engine, and in which order; options of swarm's volumes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared import Daemon

PULLED = {"status": "Download complete"}
ASKED = [{"Name": "network", "Description": "", "Value": ["host"]}]


def test_checkpoints(daemon: Daemon, teu: Callable[..., Any]) -> None:
    daemon.on("POST", "/containers/c/checkpoints", 201)
    daemon.on("GET", "/containers/c/checkpoints", [{"Name": "one"}])
    daemon.on("DELETE", "/containers/c/checkpoints/one")
    assert teu("checkpoint", "create", "--leave-running", "c", "one").out == "one\n"
    assert daemon.last.body == {"CheckpointID": "one", "CheckpointDir": "", "Exit": False}
    assert teu("checkpoint", "ls", "--checkpoint-dir", "/d", "c").out == "CHECKPOINT NAME\none\n"
    assert daemon.last.query == {"dir": "/d"}
    assert teu("checkpoint", "rm", "c", "one").code == 0
    daemon.on("POST", "/containers/c/start")
    teu("start", "--checkpoint", "one", "c")
    assert daemon.last.query == {"checkpoint": "one"}
    assert "cannot restore multiple containers" in teu("start", "--checkpoint", "one", "c", "d").err


@pytest.mark.parametrize(
    ("words", "stdin", "calls"),
    [
        (
            ("install", "p"),
            b"y\n",
            ["GET /plugins/privileges", "POST /plugins/pull", "POST /plugins/p:latest/enable"],
        ),
        (("install", "p"), b"n\n", ["GET /plugins/privileges"]),
        (
            ("install", "--grant-all-permissions", "--disable", "--alias", "q", "p:1", "A=b"),
            b"",
            ["GET /plugins/privileges", "POST /plugins/pull", "POST /plugins/q:latest/set"],
        ),
    ],
)
def test_install(
    daemon: Daemon, teu: Callable[..., Any], words: tuple[str, ...], stdin: bytes, calls: list[str]
) -> None:
    daemon.on("GET", "/plugins/privileges", ASKED)
    daemon.on("POST", "/plugins/pull", PULLED)
    for path in ("/plugins/p:latest/enable", "/plugins/q:latest/set"):
        daemon.on("POST", path)
    found = teu("plugin", *words, stdin=stdin)
    assert daemon.calls() == calls
    if len(calls) == 1:  # as docker's own client tells it
        assert (found.code, found.err) == (1, "permission denied while installing plugin docker.io/library/p:latest\n")
    else:
        assert found.code == 0
    assert ("Installed plugin" in found.out) == (len(calls) > 1)
    assert ("- network: [host]" in found.out) == bool(stdin)
    if len(calls) > 1:
        pull = next(request for request in daemon.requests if request.path == "/plugins/pull")
        assert pull.body == ASKED and pull.query["remote"].startswith("docker.io/library/p:")


def test_an_install_that_fails_leaves_nothing(daemon: Daemon, teu: Callable[..., Any]) -> None:
    daemon.on("GET", "/plugins/privileges", [])
    daemon.on("POST", "/plugins/pull", PULLED)
    daemon.on("POST", "/plugins/p:latest/enable", (500, "it does not start"))
    daemon.on("DELETE", "/plugins/p:latest")
    found = teu("plugin", "install", "p")
    assert found.code == 1 and "it does not start" in found.err and daemon.calls()[-1] == "DELETE /plugins/p:latest"


def test_upgrade(daemon: Daemon, teu: Callable[..., Any]) -> None:
    daemon.on("GET", "/plugins/p/json", {"Name": "p:latest", "Enabled": True, "PluginReference": "r/p:1"})
    assert "must be disabled" in teu("plugin", "upgrade", "p").err
    daemon.on("GET", "/plugins/p/json", {"Name": "p:latest", "Enabled": False, "PluginReference": "r/p:1"})
    daemon.on("GET", "/plugins/privileges", [])
    daemon.on("POST", "/plugins/p:latest/upgrade", PULLED)
    assert "are you sure?" in teu("plugin", "upgrade", "p", "r/p:2", stdin=b"n\n").out
    assert "POST /plugins/p:latest/upgrade" not in daemon.calls()
    assert "Upgraded plugin p:latest to r/p:2" in teu("plugin", "upgrade", "--skip-remote-check", "p", "r/p:2").out


def test_the_rest(daemon: Daemon, teu: Callable[..., Any], tmp_path: Path) -> None:
    config = {"Description": "does\nit"}
    one = {"Id": "a" * 64, "Name": "p:latest", "Enabled": True, "PluginReference": "r/p:1", "Config": config}
    daemon.on("GET", "/plugins", [{**one, "Name": "p10"}, one | {"Name": "p9"}])
    lines = teu("plugin", "ls").out.splitlines()
    assert lines[0].split() == ["ID", "NAME", "DESCRIPTION", "ENABLED"]
    assert [line.split() for line in lines[1:]] == [["a" * 12, name, "doesit", "true"] for name in ("p9", "p10")]
    assert teu("plugin", "ls", "-q").out == f"{'a' * 12}\n" * 2
    daemon.on("GET", "/plugins/p/json", one)
    assert teu("plugin", "inspect", "-f", "{{.Name}}", "p").out == "p:latest\n"
    for verb in ("enable", "disable", "set"):
        daemon.on("POST", f"/plugins/p/{verb}")
    daemon.on("DELETE", "/plugins/p")
    assert teu("plugin", "enable", "p").out == teu("plugin", "disable", "-f", "p").out == "p\n"
    assert daemon.last.query == {"force": "1"}
    assert teu("plugin", "set", "p", "A=1", "B=2").code == 0 and daemon.last.body == ["A=1", "B=2"]
    assert teu("plugin", "rm", "p", "gone").out == "p\n"
    assert teu("plugin", "enable", "--timeout", "-1", "p").code == 1
    daemon.on("POST", "/plugins/p:latest/push", PULLED)
    assert teu("plugin", "push", "p").code == 0


def test_a_plugin_of_a_folder(daemon: Daemon, teu: Callable[..., Any], tmp_path: Path) -> None:
    daemon.on("POST", "/plugins/create")
    folder = tmp_path / "made"
    folder.mkdir()
    assert "no such file" in teu("plugin", "create", "p", str(folder)).err
    (folder / "config.json").write_text("[]")
    assert "no JSON object" in teu("plugin", "create", "p", str(folder)).err
    (folder / "config.json").write_text(json.dumps({"Description": "d"}))
    (folder / "rootfs").mkdir()
    (folder / "rootfs/file").write_text("x")
    assert daemon.requests == []
    for words in ((), ("--compress",)):
        assert teu("plugin", "create", *words, "p", str(folder)).out == "p\n"
        with tarfile.open(fileobj=io.BytesIO(daemon.last.body)) as tar:
            assert tar.getnames() == ["config.json", "rootfs", "rootfs/file"]
    assert "must be a directory" in teu("plugin", "create", "p", str(folder / "config.json")).err


def test_options_of_swarms_volumes_and_times_to_stop(daemon: Daemon, teu: Callable[..., Any]) -> None:
    assert "--scope is for volumes of swarm" in teu("volume", "create", "--scope", "single", "v").err
    assert "Instead" in teu("volume", "ls", "--cluster").err
    daemon.on("POST", "/containers/c/stop")
    for words in (("-t", "3"), ("--time", "3"), ("--timeout", "3")):
        teu("stop", *words, "c")
        assert daemon.last.query == {"t": "3"}
    assert teu("stop", "--time", "1", "--timeout", "2", "c").code == 1
