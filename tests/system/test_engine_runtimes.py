# SPDX-License-Identifier: Apache-2.0
"""Runtimes by path, with arguments and options, on teud and on Debian's dockerd, which are told the same of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import peers
import pytest
import whole

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

DROP_IN = Path("/etc/teu/teud.yaml.d/engine-runtimes.yaml")
TEUD = ["docker", "--config", "/run/no-such-configuration", "-H", "unix:///run/teu/teud.sock"]
WITNESS = Path("/run/teu-test-runtime")
# dockerd puts arguments into a script as they are, and the shell there reads them; teud's are the program's as given.
ARGUMENTS = {"teud": ["--it's", "a b"], "dockerd": ["--first", "second"]}
# dockerd wants a cgroup of crun that crun makes only where there are controllers; runc is content without.
PROGRAMS = {"teud": "crun", "dockerd": "runc"}


@contextlib.contextmanager
def runtimes(daemon: str) -> Iterator[dict[str, Any]]:
    """In daemon.json's three forms; one of them writes down with what it was called."""
    path = shutil.which(PROGRAMS[daemon]) or ""
    images.need_busybox()
    WITNESS.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" "$2" >>{WITNESS}.said\nshift 2\nexec {path} "$@"\n')
    WITNESS.chmod(0o755)
    yield {
        "other": {"path": path},
        "told": {"path": str(WITNESS), "runtimeArgs": ARGUMENTS[daemon]},
        "shimmed": {"runtimeType": "io.containerd.runc.v2", "options": {"BinaryName": path}},
    }
    for each in (WITNESS, Path(f"{WITNESS}.said")):
        each.unlink(missing_ok=True)


@pytest.fixture(scope="module", params=list(PROGRAMS))
def client(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        named = stack.enter_context(runtimes(request.param))
        if request.param == "dockerd":
            daemon = stack.enter_context(peers.dockerd(config={"runtimes": named}))
            daemon.load_busybox()
            yield daemon.client
            return
        DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        whole.remove_everything()
        DROP_IN.write_text(f"runtimes: {json.dumps(named)}\n")
        whole.call("systemctl", "restart", "teud")
        yield TEUD
        whole.remove_everything()
        DROP_IN.unlink()
        whole.call("systemctl", "restart", "teud")


def name_of(client: list[str]) -> str:
    return "teud" if client is TEUD else "dockerd"


def call(client: list[str], *argv: str, code: int = 0) -> str:
    environment = {**os.environ, "DOCKER_CLI_HINTS": "false"}
    done = subprocess.run(
        [*client, *argv],
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
    assert done.returncode == code, (argv, done.stdout, done.stderr)
    return (done.stdout + done.stderr).strip()


@pytest.mark.parametrize("name", ["other", "told", "shimmed", "runc"])
def test_a_life_under_it(client: list[str], name: str) -> None:
    assert call(client, "run", "--rm", "--network", "none", "--runtime", name, "busybox", "echo", "here") == "here"
    call(client, "run", "-d", "--name", "life", "--network", "none", "--runtime", name, "busybox", "sleep", "600")
    try:
        assert call(client, "exec", "life", "cat", "/proc/1/comm") == "sleep"
        assert call(client, "inspect", "-f", "{{.HostConfig.Runtime}}", "life") == name
        call(client, "stop", "-t", "0", "life")
        assert call(client, "inspect", "-f", "{{.State.ExitCode}}", "life") == "137"
    finally:
        call(client, "rm", "-f", "life")


def test_it_gets_its_arguments_first(client: list[str]) -> None:
    said = Path(f"{WITNESS}.said")
    said.unlink(missing_ok=True)
    call(client, "run", "--rm", "--network", "none", "--runtime", "told", "busybox", "true")
    lines = said.read_text().splitlines()
    assert lines and lines == ARGUMENTS[name_of(client)] * (len(lines) // 2)


def test_info_names_them_and_nobody_else_is_taken(client: list[str]) -> None:
    found = json.loads(call(client, "info", "-f", "{{json .Runtimes}}"))
    assert found["other"]["path"] == shutil.which(PROGRAMS[name_of(client)])
    assert found["told"]["runtimeArgs"] == ARGUMENTS[name_of(client)]
    said = call(client, "create", "--runtime", "nobody", "busybox", code=1)
    assert "unknown or invalid runtime name: nobody" in said


def test_a_container_outlives_a_restart_of_the_daemon(client: list[str]) -> None:
    if client is not TEUD:
        return  # dockerd's containers do so with live-restore alone
    call(client, "run", "-d", "--name", "stays", "--network", "none", "--runtime", "told", "busybox", "sleep", "600")
    whole.call("systemctl", "restart", "teud", "teu-containerd")
    assert call(client, "exec", "stays", "cat", "/proc/1/comm") == "sleep"
    call(client, "rm", "-f", "stays")
