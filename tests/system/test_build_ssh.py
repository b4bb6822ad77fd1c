# SPDX-License-Identifier: Apache-2.0
"""ssh in builds, by OpenSSH's own programs: agents and keys of clients in steps, and repositories that a key opens."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from test_build_results import Clients, create_remote, way
from whole import eventually

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "buildkit"))
from githttp import Served, run

pytestmark = [pytest.mark.needs("buildx", "docker", "git", "ssh-agent", "sshd", "systemd"), pytest.mark.timeout(300)]

CLIENTS = ("docker", "teu", "remote", "teu-remote")


def key(path: Path) -> str:
    """A new key of that name; its fingerprint."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path], check=True)
    told = subprocess.run(["ssh-keygen", "-l", "-f", path], check=True, capture_output=True, text=True).stdout
    return told.split()[1]


@contextlib.contextmanager
def agent(path: Path, *keys: Path) -> Iterator[None]:
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        eventually("the agent's socket", path.exists)
        for one in keys:
            subprocess.run(["ssh-add", "-q", one], check=True, env={**os.environ, "SSH_AUTH_SOCK": str(path)})
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    images.need_busybox()


@pytest.fixture
def both(tmp_path: Path) -> Clients:
    made = Clients(tmp_path)
    create_remote(made)
    return made


def with_ssh_add(context: Path) -> None:
    """Puts ssh-add and what it needs into tools/, at their places."""
    program = shutil.which("ssh-add") or ""
    told = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in (program, *re.findall(r"(/\S+) \(0x", told)):
        place = context / "tools" / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (context / "tools/etc").mkdir()
    (context / "tools/etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")


@pytest.mark.parametrize("client", CLIENTS)
def test_agents_and_keys(both: Clients, client: str) -> None:
    """Two keys in files, an agent by its socket, and the user's own: each step has the one that it names, a step may
    have several, and no step has one that it does not name."""
    names = ("first", "second", "third", "own")
    marks = {name: key(both.top / name) for name in names}
    with_ssh_add(both.context)
    both.dockerfile(
        "FROM busybox AS work\nCOPY tools /\n"
        "RUN --mount=type=ssh,id=files ssh-add -l >/files # {mark}\n"
        "RUN --mount=type=ssh,id=other,required ssh-add -l >/other\n"
        "RUN --mount=type=ssh ssh-add -l >/default\n"
        "RUN --mount=type=ssh,id=other,target=/a --mount=type=ssh,id=files,target=/b"
        " SSH_AUTH_SOCK=/a ssh-add -l >/several && SSH_AUTH_SOCK=/b ssh-add -l >>/several\n"
        "RUN --mount=type=ssh,id=nobody ssh-add -l >/nobody 2>&1; ls -d /run/buildkit >>/nobody 2>&1;"
        " true\n"
        "FROM scratch\nCOPY --from=work /files /other /default /several /nobody /\n"
    )
    out = both.top / "out"
    with agent(both.top / "agent", both.top / "third"), agent(both.top / "user", both.top / "own"):
        words = (f"--ssh=files={both.top}/first,{both.top}/second", f"--ssh=other={both.top}/agent", "--ssh=default")
        both.run(*way(client, *words, "-o", str(out)), env={"SSH_AUTH_SOCK": str(both.top / "user")})
    found = {path.name: re.findall(r"SHA256:\S+", path.read_text()) for path in out.iterdir()}
    assert found == {
        "files": [marks["first"], marks["second"]],
        "other": [marks["third"]],
        "default": [marks["own"]],
        "several": [marks["third"], marks["first"], marks["second"]],
        "nobody": [],
    }
    assert "Error connecting to agent" in (out / "nobody").read_text()
    # Agents that teu started for the keys have ended, and their folder is gone.
    assert not list(Path("/tmp").glob("teu-ssh-*"))


class Server:
    """sshd on this host, for root by one key."""

    def __init__(self, top: Path) -> None:
        top.mkdir()
        self.mark = key(top / "client")
        key(top / "host")
        shutil.copy(top / "client.pub", top / "authorized")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (top / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {top}/host\nAuthorizedKeysFile {top}/authorized\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
            "LogLevel VERBOSE\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        self.key = top / "client"
        self._log = top / "log"
        with self._log.open("w") as log:
            command = [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(top / "config")]
            self._process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        eventually("sshd", lambda: "Server listening" in self.log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "sshd")
    yield made
    made.stop()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_repository_that_a_key_opens(both: Clients, server: Server, client: str) -> None:
    """ADD of a repository by the client's key; without it the build fails, and says why. The key stays with the
    client: the builder's git asks the agent to sign."""
    repositories = Served(both.top / "repositories")
    folder = repositories.repository("private.git", {"one": "1", "sub/two": f"2 {both.mark}"})
    run(folder, "tag", "v1")
    repositories.commit(folder, {"sub/two": "later"})
    repositories.server.shutdown()
    repositories.server.server_close()
    address = f"ssh://root@127.0.0.1:{server.port}{folder}"
    both.dockerfile(f"FROM scratch\nADD {address}#v1:sub /added\nADD {address} /later\n")
    out = both.top / "out"
    words = ("-o", str(out))
    said = both.run(*way(client, *words), code=1).text
    assert re.search("ssh|Permission denied", said), said
    both.run(*way(client, f"--ssh=default={server.key}", *words))
    assert (out / "added/two").read_text() == f"2 {both.mark}"
    assert (out / "later/sub/two").read_text() == "later"
    assert server.mark in server.log and "Accepted publickey for root" in server.log
    assert not list(Path("/tmp").glob("teu-git-*"))
