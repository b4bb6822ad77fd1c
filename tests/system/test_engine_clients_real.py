# SPDX-License-Identifier: Apache-2.0
"""Clients that Debian does not have, each with a scenario of its own (realclients/), on Debian's dockerd and on teud in
turns: what the client reports is the same, values, exit codes and errors."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docker_words
import engine
import peers
import pytest
import whole
from lab_kind import PATIENCE

pytestmark = [
    pytest.mark.needs("docker", "dockerd", "trixie", "namespace", "compose", "buildx", "clients"),
    pytest.mark.timeout(300),
]

CLIENTS = Path("/opt/clients")
SCENARIOS = Path(__file__).parent / "realclients"


class Hosts(NamedTuple):
    """DOCKER_HOST of each."""

    ours: str
    theirs: str


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    engine.need_busybox()
    whole.remove_everything()
    with peers.dockerd(network=True) as daemon:
        daemon.load_busybox()
        yield Hosts(f"unix://{engine.SOCKET}", daemon.host)
    whole.eventually("the host is clean at the end", lambda: not whole.leftovers(), timeout=30)


def reported(host: str, *argv: str) -> dict[str, Any]:
    """The report of a scenario on a daemon: the last line that it prints, JSON."""
    environment = {
        **os.environ,
        "DOCKER_HOST": host,
        "TESTCONTAINERS_RYUK_DISABLED": "true",
        "PYTHONPATH": f"{CLIENTS}/python:{SCENARIOS}",
        "PYTHONPYCACHEPREFIX": "/tmp/clients-bytecode",  # the clients lie where nothing can be written
        "NODE_PATH": str(CLIENTS / "node_modules"),
    }
    done = subprocess.run(
        argv,
        env=environment,
        capture_output=True,
        text=True,
        timeout=140 * PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{host}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


PYTHON = "/usr/bin/python3"
# What docker 26 reports there, and what docker 28 does.
OF_28: dict[str, tuple[Any, Any]] = {"exec of nothing": (126, 127), "exec fails": ([126, True], [127, True])}
NODE = str(CLIENTS / "bin/node")


@pytest.mark.parametrize(
    ("program", "file"),
    [
        (PYTHON, "ansible_playbook.py"),
        (PYTHON, "docker_py.py"),
        (PYTHON, "python_testcontainers.py"),
        (NODE, "node_dockerode.js"),
        (NODE, "node_testcontainers.js"),
    ],
)
def test_reports_are_the_same(hosts: Hosts, program: str, file: str) -> None:
    theirs, ours = (reported(host, program, str(SCENARIOS / file)) for host in (hosts.theirs, hosts.ours))
    if docker_words.older():
        for step in OF_28.keys() & theirs.keys():
            assert theirs[step] == OF_28[step][0]
            theirs[step] = OF_28[step][1]
    assert ours == theirs
