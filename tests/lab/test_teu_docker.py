# SPDX-License-Identifier: Apache-2.0
"""The package teu-docker takes docker's place: its command, its socket, its group. Runs on the host, as root, in an
instance of its own, for docker goes from it; the packages must have been built (./dev deb)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import namespace

SOURCE = Path(__file__).resolve().parents[2]
DIST = SOURCE / "dist"
OURS = sorted((DIST / "in-place-of-docker").glob("teu-docker_*.deb"))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the labs need root"),
    pytest.mark.skipif(not OURS, reason="no packages: ./dev deb"),
]

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    """Runs a line of shell in there; it must succeed, unless check=False."""
    name = f"teu-docker-{os.getpid()}"
    namespace.start(name, source=SOURCE)
    try:
        namespace.install_packages(name, [str(path) for path in DIST.glob("*.deb")])

        def run(line: str, check: bool = True) -> subprocess.CompletedProcess[str]:
            command = namespace.enter_command(name, ["bash", "-ec", line])
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert not check or done.returncode == 0, (line, done.stdout, done.stderr)
            return done

        yield run
    finally:
        namespace.stop(name)


def test_docker_is_teu(shell: Shell) -> None:
    package = f"/src/dist/in-place-of-docker/{OURS[0].name}"
    refused = shell(f"dpkg -i {package}", check=False)
    assert refused.returncode
    assert "docker" in refused.stderr and "conflict" in refused.stderr.lower()
    shell("systemctl stop docker.socket docker.service; dpkg --purge docker-buildx docker-compose docker.io docker-cli")
    shell("teu load -q -i /usr/share/teu/images/busybox.oci.tar; teu run -d --name stays busybox sleep 1000")
    before = shell("systemctl show -P MainPID teud; teu inspect -f '{{.State.Pid}}' stays").stdout.split()
    shell(f"dpkg -i {package}")
    # teud was asked to leave and to come back, with both sockets; the container has not noticed.
    after = shell("systemctl show -P MainPID teud; docker inspect -f '{{.State.Pid}}' stays").stdout.split()
    assert before[0] != after[0] and before[1] == after[1]
    assert shell("stat -c '%U:%G %a' /run/docker.sock").stdout.split() == ["root:docker", "660"]
    assert shell("readlink -f /usr/bin/docker").stdout.strip() == "/usr/bin/teu"
    for address in ("/run/docker.sock", "/var/run/docker.sock", "/run/teu/teud.sock"):
        listed = shell(f"curl -sS --unix-socket {address} http://x/containers/json").stdout
        assert '"/stays"' in listed
    assert shell("systemctl is-enabled teu-docker.socket").stdout.strip() == "enabled"
    installed = shell("dpkg -L teu-docker").stdout.splitlines()
    assert "/usr/share/man/man1/docker.1.gz" in installed
    assert "/usr/share/bash-completion/completions/docker" in installed
    completed = shell(". /usr/share/bash-completion/completions/teu; complete -p docker").stdout
    assert completed.strip() == "complete -o default -F _teu docker"


def test_the_socket_starts_teud(shell: Shell) -> None:
    shell("systemctl stop teud.service")
    assert "stays" in shell("docker -H unix:///run/docker.sock ps").stdout
    assert shell("systemctl is-active teud").stdout.strip() == "active"


def test_it_goes_and_teud_stays(shell: Shell) -> None:
    shell("dpkg --purge teu-docker")
    assert "stays" in shell("test ! -e /run/docker.sock; test ! -e /usr/bin/docker; teu ps").stdout
    assert "docker.sock" not in shell("ss -xlpn").stdout
