# SPDX-License-Identifier: Apache-2.0
"""Mounts of images on teud and on a docker that has them, asked by that docker's own command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import images
import peers
import pytest
import whole

pytestmark = [pytest.mark.needs("docker", "dockerd", "trixie", "namespace", "newer-docker"), pytest.mark.timeout(300)]

ROOT = peers.NEWER
DOCKER = [f"{ROOT}/usr/bin/docker", "--config", "/run/no-such-configuration", "-H"]
SHOW = "type=image,source=shown,target=/shown"
MAKE = "mkdir -p /deep/er; echo inside >/deep/er/file; ln -s /etc /deep/out"


def run(client: list[str], *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DOCKER_CLI_HINTS": "false"}
    return subprocess.run(
        [*client, *argv],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment,
    )


@pytest.fixture(scope="module")
def clients() -> Iterator[list[list[str]]]:
    """Of both, which have an image to be mounted."""
    images.need_busybox()
    whole.remove_everything()
    with peers.dockerd(path=f"{ROOT}/usr/sbin:{ROOT}/usr/bin") as daemon:
        daemon.load_busybox()
        both = [[*DOCKER, "unix:///run/teu/teud.sock"], [*DOCKER, daemon.host]]
        for client in both:
            made = run(client, "run", "--name", "maker", "--network", "none", "busybox", "sh", "-c", MAKE)
            assert made.returncode == 0, made.stderr
            assert run(client, "commit", "maker", "shown").returncode == 0
            run(client, "rm", "maker")
        yield both
        whole.remove_everything()
        whole.teu("rmi", "-f", "shown")


@pytest.mark.parametrize(
    ("mount", "command"),
    [
        (SHOW, "cat /shown/deep/er/file; ls /shown/deep"),
        (SHOW, "touch /shown/new"),
        (f"{SHOW},readonly", "touch /shown/new"),
        (f"{SHOW},image-subpath=deep/er", "ls /shown"),
        (f"{SHOW},image-subpath=deep/er/file", "cat /shown"),
        (f"{SHOW},image-subpath=nowhere", "true"),
        (f"{SHOW},image-subpath=deep/out", "true"),
        (f"{SHOW},image-subpath=/deep", "true"),
        (f"{SHOW},image-subpath=../deep", "true"),
        ("type=image,source=nobody,target=/shown", "true"),
        ("type=image,target=/shown", "true"),
    ],
)
def test_it_is_as_docker_has_it(clients: list[list[str]], mount: str, command: str) -> None:
    flags = ("--rm", "--network", "none", "--pull", "never", "--mount", mount)
    ours, theirs = (run(client, "run", *flags, "busybox", "sh", "-c", command) for client in clients)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout), (ours.stderr, theirs.stderr)


def test_inspect_shows_the_same(clients: list[list[str]]) -> None:
    shown = []
    for client in clients:
        made = run(client, "create", "--name", "seen", "--network", "none", "--mount", SHOW, "busybox", "true")
        assert made.returncode == 0, made.stderr
        (point,) = json.loads(run(client, "inspect", "-f", "{{json .Mounts}}", "seen").stdout)
        (asked,) = json.loads(run(client, "inspect", "-f", "{{json .HostConfig.Mounts}}", "seen").stdout)
        assert run(client, "rm", "seen").returncode == 0
        point.pop("Source")  # a path of docker's, which ours has while it starts alone
        shown.append((point, asked))
    assert shown[0] == shown[1]
