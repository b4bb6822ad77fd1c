# SPDX-License-Identifier: Apache-2.0
"""What programs ask of the Engine API (tests/recorded), played on Debian's dockerd and on teud in turns: statuses,
members and their types, and the values that count are the same. What no dockerd here speaks is played on teud alone."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import engine
import peers
import pytest
import whole
from lab_kind import PATIENCE
from recorded import (
    Player,
    Story,
    compose,
    devcontainers,
    differences,
    docker_cli,
    docker_java,
    gitlab_runner,
    portainer,
    terraform,
    traefik,
    unexpected,
    watchtower,
)

pytestmark = [pytest.mark.needs("docker", "dockerd", "trixie", "namespace"), pytest.mark.timeout(300)]

STORIES = (compose, devcontainers, docker_java, gitlab_runner, portainer, terraform, traefik, watchtower)
# Where shapes differ in every story, and why.
OTHERWISE = {
    r"(.*/)?GraphDriver/Data(/.*)?": "snapshots are containerd's here: there are no folders to name",
    r"HostConfig/OomKillDisable": "dockerd says false until the first start, and null from then on",
}


class Places(NamedTuple):
    ours: str
    theirs: str
    registry: str


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    """The sockets of both, with busybox there, and a registry on loopback."""
    engine.need_busybox()
    whole.remove_everything()
    with peers.registry() as registry, peers.dockerd(network=True) as daemon:
        daemon.load_busybox()
        yield Places(engine.SOCKET, str(daemon.socket), registry.address)
    whole.eventually("the host is clean at the end", lambda: not whole.leftovers(), timeout=30)


def clear(path: str) -> None:
    """What a story that broke off has left."""

    def ask(method: str, target: str) -> Any:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60 * PATIENCE)
        connection.sock.connect(path)
        connection.request(method, f"/v1.43{target}")
        text = connection.getresponse().read()
        connection.close()
        return json.loads(text) if text.strip() else None

    for row in ask("GET", "/containers/json?all=1"):
        ask("DELETE", f"/containers/{row['Id']}?force=1&v=1")
    for row in ask("GET", "/networks?filters=%7B%22type%22%3A%5B%22custom%22%5D%7D"):
        ask("DELETE", f"/networks/{row['Id']}")
    for row in ask("GET", "/volumes")["Volumes"] or ():
        ask("DELETE", f"/volumes/{row['Name']}?force=1")


def compared(story: Story, ours: str, theirs: str, **known: str) -> None:
    found = []
    for path in (theirs, ours):
        try:
            found.append(Player(path, 60 * PATIENCE).play(story, **known))
        finally:
            clear(path)
    faults = differences(found[1], found[0], {**OTHERWISE, **story.otherwise})
    faults += [f"dockerd: {fault}" for fault in unexpected(found[0])] + unexpected(found[1])
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("program", STORIES, ids=lambda program: program.__name__.rpartition(".")[2])
def test_both_answer_alike(places: Places, program: Any) -> None:
    compared(program.STORY, places.ours, places.theirs, registry=places.registry)


@pytest.mark.parametrize("story", docker_cli.NEWEST, ids=lambda story: f"1.{story.api[1]}")
def test_the_newest_command_line(places: Places, story: Story) -> None:
    """Of docker 29 and later, whose dockerd Debian does not have."""
    try:
        answers = Player(places.ours, 60 * PATIENCE).play(story)
    finally:
        clear(places.ours)
    assert not unexpected(answers)
    kinds = {answer.step.name: answer.kind for answer in answers}
    assert kinds["docker events"] == "application/jsonl"
