# SPDX-License-Identifier: Apache-2.0
"""Contexts and ssh://, `teu` beside Debian's `docker` on one store, in both directions; ssh by a real sshd, whose far
end is teu's dial-stdio for docker's client, and docker's for teu's."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import images
import peers
import pytest

TEU = "/usr/bin/teu"
SOCKET = "unix:///run/teu/teud.sock"


pytestmark = pytest.mark.needs("docker", "trixie")


@pytest.fixture(scope="module")
def busybox() -> None:
    images.need_busybox()


def clean(config: Path, **more: str) -> dict[str, str]:
    dropped = ("DOCKER_HOST", "DOCKER_CONTEXT", "TEU_HOST", "TEU_CONFIG")
    return dict.fromkeys(dropped, "") | {"DOCKER_CONFIG": str(config), **more}


BOTH_WAYS = (("docker", TEU), (TEU, "docker"))


# Run one after another with each program on a store of its own; what differs is the name of the program, and where the
# default context leads.
SAME = """
context ls
context show
context create one --description desc --docker host=tcp://one:2375
context create two --docker host=unix:///two,skip-tls-verify=true
context create three --docker from=one
context create four --from two --description other
context create one
context create x
context create a/b
context create five --docker host=tcp://h:1,ca=/nosuch/ca.pem
context create five --from one --docker host=x
context create five --from nosuch
context ls -q
context ls --format '{{.Name}}|{{.Current}}|{{.Description}}|{{.Error}}'
context inspect one two four
context inspect -f '{{.Name}} {{.Endpoints.docker.Host}}' one
context inspect nosuch
context update one --description new
context update one --docker host=tcp://one:2376
context update nosuch --description x
context update default --description x
context inspect one
context use nosuch
context use two
context show
context inspect
context rm two
context rm nosuch
context rm one three
context export four FOLDER/four.tar
context export four FOLDER/four.tar
context import again FOLDER/four.tar
context import again FOLDER/four.tar
context import other FOLDER/nosuch.tar
context inspect again
context use default
context rm -f again four
-c nosuch ps
context rm two
context ls -q
"""


def test_what_docker_says(tmp_path: Path) -> None:
    said = []
    for program in ("docker", TEU):
        folder = tmp_path / os.path.basename(program)
        folder.mkdir()
        lines = []
        for line in SAME.strip().splitlines():
            words = [word.replace("FOLDER", str(folder)) for word in shlex.split(line)]
            done = peers.run(program, *words, code=None, env=clean(folder))
            text = f"{done.stdout}|{done.stderr}".replace(str(folder), "FOLDER")
            text = re.sub(r"\b(docker|teu)(?=[: ]|$)", "PROGRAM", text)
            text = text.replace("unix:///run/teu/teud.sock", "HOST").replace("unix:///var/run/docker.sock", "HOST")
            text = re.sub(r"HOST +", "HOST ", text).replace("\\u003c", "<").replace("\\u003e", ">")
            text = re.sub(r"DOCKER ENDPOINT +", "DOCKER ENDPOINT ", text)
            lines.append(f"{line}: {done.returncode}: {text}")
        said.append(lines)
    different = [f"{mine}\n{theirs}" for theirs, mine in zip(*said, strict=True) if mine != theirs]
    assert not different, "\n".join(different)


def test_a_context_of_one_is_the_others(tmp_path: Path, busybox: None) -> None:
    for maker, user in BOTH_WAYS:
        config = tmp_path / f"of-{os.path.basename(maker)}"
        environment = clean(config)
        peers.run(maker, "context", "create", "far", "--docker", f"host={SOCKET}", env=environment)
        for program in (maker, user):
            assert "busybox" in peers.run(program, "-c", "far", "images", env=environment).stdout
            assert "busybox" in peers.run(program, "images", env={**environment, "DOCKER_CONTEXT": "far"}).stdout
        peers.run(maker, "context", "use", "far", env=environment)
        assert peers.run(user, "context", "show", env=environment).stdout == "far\n"
        assert "busybox" in peers.run(user, "images", env=environment).stdout
        other = {**environment, "DOCKER_HOST": "unix:///nosuch"}
        assert "/nosuch" in peers.run(user, "images", env=other, code=None).stderr
        found = [
            json.loads(peers.run(each, "context", "inspect", "far", env=environment).stdout) for each in (maker, user)
        ]
        assert found[0] == found[1]
        peers.run(user, "context", "update", "far", "--description", "changed", env=environment)
        assert "changed" in peers.run(maker, "context", "ls", env=environment).stdout
        archive = tmp_path / f"{os.path.basename(maker)}.tar"
        peers.run(maker, "context", "export", "far", str(archive), env=environment)
        peers.run(user, "context", "import", "again", str(archive), env=environment)
        assert "busybox" in peers.run(maker, "-c", "again", "images", env=environment).stdout
        peers.run(user, "context", "rm", "-f", "far", "again", env=environment)
        assert peers.run(maker, "context", "ls", "-q", env=environment).stdout == "default\n"


# ssh --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, Path]]:
    """An sshd that root may log in to: its port, the folder that is the PATH of those who come in, and the one for the
    PATH of those who go out."""
    top = tmp_path_factory.mktemp("ssh")
    programs, home = top / "bin", top / "home"
    programs.mkdir()
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for key in ("host", "client"):
        peers.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(top / key))
    (top / "authorized").write_text((top / "client.pub").read_text())
    for path in (top, *top.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (top / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {top}/host\nAuthorizedKeysFile {top}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nSetEnv PATH={programs}\nMaxStartups 100\n"
        "MaxSessions 100\n"
    )
    # ssh reads no HOME: what it shall use is in a program that is found before it.
    (top / "outgoing").mkdir()
    (top / "outgoing/ssh").write_text(
        f"#!/bin/sh\nexec /usr/bin/ssh -F none -i {top}/client -o StrictHostKeyChecking=no "
        f'-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"\n'
    )
    (top / "outgoing/ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    daemon = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(top / "config")], stderr=(top / "log").open("wb")
    )
    try:
        peers.wait_until(lambda: socket.create_connection(("127.0.0.1", port), 1).close() or True, "sshd listens")
        yield port, programs, top / "outgoing"
    finally:
        daemon.terminate()
        daemon.wait()
        print((top / "log").read_text()[-3000:])


def offer(programs: Path, **links: str) -> None:
    """What is on the far side: programs by their names, and a shell."""
    for old in programs.iterdir():
        old.unlink()
    for name, target in {"sh": "/bin/sh", **links}.items():
        (programs / name).symlink_to(target)


@pytest.mark.parametrize("client", ["docker", TEU], ids=["docker", "teu"])
@pytest.mark.parametrize("far", ["teu", "link"])
def test_by_ssh_to_teud(sshd: tuple[int, Path, Path], client: str, far: str, tmp_path: Path, busybox: None) -> None:
    port, programs, outgoing = sshd
    if client == "docker" and far == "teu":
        far = "both"  # docker's client calls `docker`, which is a link to teu on a host without docker
    links = {"teu": {"teu": TEU}, "link": {"docker": TEU}, "both": {"teu": TEU, "docker": TEU}}[far]
    offer(programs, **links)
    environment = clean(tmp_path, PATH=f"{outgoing}:{os.environ['PATH']}")
    address = f"ssh://root@127.0.0.1:{port}"

    def call(*words: str, **more: object) -> str:
        return peers.run(client, "-H", address, *words, env=environment, **more).stdout  # type: ignore[arg-type]

    assert "busybox" in call("images")
    run = ("run", "--rm", "--network", "none")
    assert call(*run, "busybox", "echo", "over there") == "over there\n"
    assert call(*run, "-i", "busybox", "wc", "-c", stdin="x" * 1_000_000).strip() == "1000000"
    call(*run, "busybox", "sh", "-c", "exit 7", code=7)
    peers.run(client, "context", "create", "far", "--docker", f"host={address}", env=environment)
    assert "busybox" in peers.run(client, "-c", "far", "images", env=environment).stdout
    named = peers.run(client, "-H", f"{address}/run/teu/teud.sock", "images", "-q", env=environment)
    assert named.stdout == call("images", "-q")


@pytest.mark.needs("dockerd")
def test_by_ssh_to_a_host_with_docker_alone(sshd: tuple[int, Path, Path], tmp_path: Path) -> None:
    port, programs, outgoing = sshd
    offer(programs, docker="/usr/bin/docker")
    environment = clean(tmp_path, PATH=f"{outgoing}:{os.environ['PATH']}")
    with peers.dockerd() as daemon:
        daemon.load_busybox()
        path = daemon.client[daemon.client.index("-H") + 1].removeprefix("unix://")
        host = f"ssh://root@127.0.0.1:{port}{path}"
        assert "busybox" in peers.run(TEU, "-H", host, "images", env=environment).stdout
        words = ("run", "--rm", "--network", "none", "busybox", "echo", "x")
        assert peers.run(TEU, "-H", host, *words, env=environment).stdout == "x\n"


def test_when_the_far_side_is_not_there(sshd: tuple[int, Path, Path], tmp_path: Path) -> None:
    port, programs, outgoing = sshd
    offer(programs)
    environment = clean(tmp_path, PATH=f"{outgoing}:{os.environ['PATH']}")
    for host in (f"ssh://root@127.0.0.1:{port}", "ssh://root@127.0.0.1:1"):
        done = peers.run(TEU, "-H", host, "ps", env=environment, code=1)
        assert "the daemon closed the connection" in done.stderr or "error during connect" in done.stderr
    done = peers.run(TEU, "-H", "ssh://root@h", "ps", env={**environment, "PATH": "/nosuch"}, code=None)
    assert done.returncode
