# SPDX-License-Identifier: Apache-2.0
"""docker's CLI plugins under `teu`: Debian's own docker-compose and docker-buildx on teud, as under `docker`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import images
import peers
import pytest
import whole

TEU = "/usr/bin/teu"
SOCKET = "unix:///run/teu/teud.sock"
PLUGINS = ("compose", "buildx")


pytestmark = pytest.mark.needs("docker", "trixie")


@pytest.fixture(scope="module")
def busybox() -> None:
    images.need_busybox()


FILE = """
services:
  web:
    image: busybox
    command: [sh, -c, "echo served; exec sleep 100000"]
    init: false
    network_mode: none
    stop_grace_period: 0s
"""


@pytest.fixture
def project(tmp_path: Path, busybox: None) -> Iterator[Path]:
    (tmp_path / "compose.yaml").write_text(FILE)
    yield tmp_path
    teu("compose", "-p", "teutest", "-f", str(tmp_path / "compose.yaml"), "down", "-t", "0", config=tmp_path, code=None)


def teu(*words: str, config: Path, **more: object) -> subprocess.CompletedProcess[str]:
    environment = {"DOCKER_HOST": "", "DOCKER_CONTEXT": "", "TEU_HOST": "", "DOCKER_CONFIG": str(config / "config")}
    return peers.run(TEU, *words, env=environment, **more)  # type: ignore[arg-type]


def test_compose_and_buildx_are_debians_own(tmp_path: Path) -> None:
    environment = {"DOCKER_CONFIG": str(tmp_path)}
    for words in (
        ("compose", "version"),
        ("buildx", "version"),
        ("compose", "--help"),
        ("buildx", "build", "--help"),
        ("help", "compose"),
        ("compose", "up", "--nosuch"),
    ):
        theirs = peers.run("docker", *words, env=environment, code=None)
        ours = teu(*words, config=tmp_path, code=None)
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr), words


def test_a_project_lives_on_teud(project: Path) -> None:
    words = ("compose", "-p", "teutest", "-f", str(project / "compose.yaml"))
    teu(*words, "up", "-d", "--quiet-pull", config=project)
    assert "teutest-web-1" in teu("ps", config=project).stdout
    assert "served" in teu(*words, "logs", config=project).stdout
    assert teu(*words, "exec", "-T", "web", "echo", "inside", config=project).stdout == "inside\n"
    assert json.loads(teu("compose", "ls", "--format", "json", config=project).stdout)[0]["Name"] == "teutest"
    teu(*words, "exec", "-T", "web", "sh", "-c", "exit 9", config=project, code=9)
    # -H and a context lead it elsewhere, as they lead us.
    assert "nosuch" in teu("-H", "unix:///nosuch", *words, "ps", config=project, code=None).stderr
    teu("context", "create", "far", "--docker", f"host={SOCKET}", config=project)
    assert "teutest-web-1" in teu("-c", "far", *words, "ps", config=project).stdout
    teu("context", "use", "far", config=project)
    assert "teutest-web-1" in teu(*words, "ps", config=project).stdout


def test_signals_go_to_the_plugin_itself(project: Path) -> None:
    """teu has become the plugin: no process is between it and the shell."""
    words = [TEU, "compose", "-p", "teutest", "-f", str(project / "compose.yaml"), "up"]
    environment = {**os.environ, "DOCKER_HOST": SOCKET, "DOCKER_CONFIG": str(project / "config")}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "served" in line:
            break
    assert "docker-compose" in whole.argv_of(process.pid)[0]
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    # Where the container ends while it is told of the signal, compose 2.26 closes a channel twice.
    assert process.wait(60) in (0, 130) or "panic: close of closed channel" in rest, rest


def test_help_info_and_completion_know_them(tmp_path: Path) -> None:
    page = teu("--help", config=tmp_path).stdout
    for name in PLUGINS:
        assert re.search(rf"^  {name}\* +\S", page, re.M)
    theirs = peers.run("docker", "info", "-f", "{{json .ClientInfo.Plugins}}", env={"DOCKER_HOST": SOCKET}).stdout
    ours = teu("info", "-f", "{{json .ClientInfo.Plugins}}", config=tmp_path).stdout
    assert json.loads(ours) == json.loads(theirs) and {found["Name"] for found in json.loads(ours)} >= set(PLUGINS)
    assert "  compose: Docker Compose" in teu("info", config=tmp_path).stdout
    offered = teu("__complete", "compose", "up", "--pu", config=tmp_path).stdout
    assert offered == "--pull\n"
    assert set(PLUGINS) <= set(teu("__complete", "", config=tmp_path).stdout.split())


def test_hooks_speak_at_a_terminal(tmp_path: Path) -> None:
    """The same plugin, configuration and command, with docker and with teu, each on a terminal."""
    folder = tmp_path / "config/cli-plugins"
    folder.mkdir(parents=True)
    meta = '{"SchemaVersion": "0.1.0", "Vendor": "v", "ShortDescription": "d"}'
    (folder / "docker-hint").write_text(
        f"#!/bin/sh\ncase \"$1\" in docker-cli-plugin-metadata) echo '{meta}'; exit;; esac\n"
        '[ "$2" = docker-cli-plugin-hooks ] && echo "$3" >> ' + f"{tmp_path}/asked\n"
        'echo \'{"Type": 0, "Template": "try {{flag . \\"quiet\\"}}"}\'\n'
    )
    (folder / "docker-hint").chmod(0o755)
    file = {"plugins": {"hint": {"hooks": "version,ps"}}, "features": {"hooks": "true"}}
    (tmp_path / "config/config.json").write_text(json.dumps(file))
    said = []
    for program in ("docker", TEU):
        environment = {
            **os.environ,
            "DOCKER_HOST": SOCKET,
            "DOCKER_CONFIG": str(tmp_path / "config"),
            "DOCKER_CLI_HINTS": "true",
        }
        done = subprocess.run(
            ["script", "-qec", f"{program} ps -q", "/dev/null"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(done.stdout.replace("\r", "").partition("What's next:")[2])
    assert said[0] == said[1] and "try true" in said[1]
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked[0]["RootCmd"] == asked[1]["RootCmd"] == "ps" and asked[0]["Flags"] == asked[1]["Flags"]
