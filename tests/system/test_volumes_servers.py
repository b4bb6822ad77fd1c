# SPDX-License-Identifier: Apache-2.0
"""Volumes of servers: what is said where a server is not there, beside Debian's dockerd; and an NFS server of this
host's, where the kernel has one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import images
import peers
import pytest
import whole
from whole import out, teu

pytestmark = pytest.mark.needs("docker", "dockerd", "trixie", "fast")

TEUD = ["docker", "--config", "/run/no-such-configuration", "-H", "unix:///run/teu/teud.sock"]
EXPORT = Path("/srv/teu-test-export")


@pytest.fixture(scope="module")
def dockerd() -> Iterator[list[str]]:
    images.need_busybox()
    with peers.dockerd() as daemon:
        daemon.load_busybox()
        yield daemon.client


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    whole.remove_everything()
    yield
    whole.remove_everything()
    teu("volume", "rm", "-f", "far", check=False)


def refused(client: list[str], *options: str) -> str:
    """What a container is told whose volume cannot be mounted."""
    flags = [word for option in options for word in ("--opt", option)]
    subprocess.run([*client, "volume", "create", *flags, "far"], check=True, capture_output=True, timeout=60)
    done = subprocess.run(
        [*client, "run", "--rm", "--network", "none", "-v", "far:/far", "busybox", "true"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    subprocess.run([*client, "volume", "rm", "far"], check=True, capture_output=True, timeout=60)
    assert done.returncode == 125, done
    return done.stderr


def test_a_server_without_an_address(dockerd: list[str]) -> None:
    for client in (TEUD, dockerd):
        said = refused(client, "type=nfs", "device=:/x", "o=addr=nobody.invalid")
        assert "error resolving passed in" in said, client
        assert "nobody.invalid" in said, client


def test_a_password_is_not_told(dockerd: list[str]) -> None:
    for client in (TEUD, dockerd):
        said = refused(client, "type=cifs", "device=//127.0.0.1/share", "o=username=u,password=hunter2,addr=127.0.0.1")
        assert "hunter2" not in said, client
        assert "failed to mount local volume" in said, client
    journal = out("journalctl", "-u", "teud", "-n", "50", "-o", "cat")
    assert "hunter2" not in journal


def test_what_others_have_is_not_counted_and_not_pruned(dockerd: list[str]) -> None:
    """Volumes with options, of which the engine has but the name."""
    flags = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m")
    shown = []
    for client in (TEUD, dockerd):
        for more in (("own",), (*flags, "far")):
            subprocess.run([*client, "volume", "create", *more], check=True, capture_output=True, timeout=60)
        listed = ["system", "df", "-v", "--format", "{{range .Volumes}}{{.Name}} {{end}}"]
        counted = subprocess.run([*client, *listed], check=True, capture_output=True, text=True, timeout=60).stdout
        subprocess.run([*client, "volume", "prune", "-a", "-f"], check=True, capture_output=True, timeout=60)
        left = subprocess.run([*client, "volume", "ls", "-q"], check=True, capture_output=True, text=True, timeout=60)
        subprocess.run([*client, "volume", "rm", "far"], check=True, capture_output=True, timeout=60)
        shown.append((counted.split(), left.stdout.split()))
    assert shown == [(["own"], ["far"])] * 2


@pytest.fixture
def export() -> Iterator[Path]:
    """A folder that this host's NFS server gives to itself."""
    EXPORT.mkdir(parents=True, exist_ok=True)
    (EXPORT / "file").write_text("from afar\n")
    whole.call("systemctl", "start", "nfs-server")
    whole.call("exportfs", "-o", "rw,no_root_squash,insecure,fsid=77", f"localhost:{EXPORT}")
    yield EXPORT
    whole.call("exportfs", "-u", f"localhost:{EXPORT}")
    shutil.rmtree(EXPORT)


@pytest.mark.needs("exportfs", "nfsd")
def test_nfs_by_name(export: Path) -> None:
    options = ("--opt", "type=nfs", "--opt", f"device=localhost:{export}", "--opt", "o=nfsvers=4.2,proto=tcp,noatime")
    teu("volume", "create", *options, "far")
    said = out(
        "teu", "run", "--rm", "--network", "none", "-v", "far:/far", "busybox", "sh", "-c", "cat /far/file; mount"
    )
    assert said.startswith("from afar\n")
    assert re.search(r"on /far type nfs4 .*addr=127.0.0.1", said)
    assert not os.path.ismount("/var/lib/teu/engine/volumes/far/_data"), "it is let go of"
