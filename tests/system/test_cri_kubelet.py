# SPDX-License-Identifier: Apache-2.0
"""Kubelet's own client of the CRI and client-go's executors, in a small Go program (tests/lab/go/kube-client), on ours
and on the containerd of Debian's next release."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client
from runc_bundle import full_proc

pytestmark = [pytest.mark.needs("newer-docker", "kube-client", "ctr", "systemd"), pytest.mark.timeout(300)]

PROGRAM = "/opt/kube-client/kube-client"
WAYS = ["spdy", "websocket", "fallback"]
# The cgroup of the pod, as each runtime's driver wants it.
PARENTS = {"teu": "teutest-kubelet.slice", "containerd": "/teutest-kubelet"}
Pair = tuple[Client, Client]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    full_proc()
    with crihouse.both(newer=True) as clients:
        yield clients


@pytest.fixture(scope="module")
def pods(pair: Pair) -> list[tuple[Client, Any, str]]:
    """A client, a pod, and a container with a page and a shell in it."""
    script = "mkdir -p /www; echo page >/www/index.html; exec httpd -f -p 8080 -h /www"
    found = []
    for client in pair:
        pod = client.run_pod("streams")
        found.append((client, pod, client.run_container(pod, "page", ["sh", "-c", script])))
    return found


def program(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [PROGRAM, *words], input=stdin, capture_output=True, timeout=100 * peers.PATIENCE, check=False
    )


@pytest.mark.parametrize("lists", [(), ("-lists",)], ids=["", "lists-in-pieces"])
def test_the_life_of_a_pod(pair: Pair, lists: tuple[str, ...]) -> None:
    found = []
    for client in pair:
        folder = client.folder / "kubelet"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        # The containerd that is compared with has no lists in pieces yet: the library asks it whole.
        done = program(
            "-socket", str(client.daemon.address), *lists, "life", peers.IMAGE, str(folder), PARENTS[client.name]
        )
        assert done.returncode == 0, (client.name, done.stdout, done.stderr)
        found.append(done.stdout.decode().splitlines())
    ours, theirs = (_without_versions(lines) for lines in found)
    assert ours == theirs
    assert ours[-1] == "event CONTAINER_DELETED_EVENT of the pod" and "ended CONTAINER_EXITED 5 Error" in ours


def _without_versions(lines: list[str]) -> list[str]:
    return [re.sub(r"^version (\S+) of .*", r"version \1", line) for line in lines]


def test_lists_in_pieces_are_the_lists(pair: Pair) -> None:
    """Of a runtime that has none the library takes the whole ones: that ours has them test_cri_changes.py shows."""
    client = pair[0]
    pods = [client.run_pod(f"of-many-{number}", hostname="many") for number in range(3)]
    for pod in pods:
        client.run_container(pod, "c", ["sleep", "1000"])
    whole = program("-socket", str(client.daemon.address), "list")
    pieces = program("-socket", str(client.daemon.address), "-lists", "list")
    assert whole.returncode == pieces.returncode == 0, (whole.stderr, pieces.stderr)
    assert pieces.stdout == whole.stdout and b"pods 0" not in whole.stdout
    for pod in pods:
        client.remove_pod(pod)


# Streams


def able(pods: list[tuple[Client, Any, str]], way: str) -> list[tuple[Client, Any, str]]:
    """Those that know the newest protocols of WebSockets: of containerd an API server asks SPDY. What its addresses are
    good for once they have refused is nothing."""
    return [one for one in pods if one[0].name == "teu" or way == "spdy"]


def _url(one: Client, id: str, command: list[str], tty: bool = False) -> str:
    fields: dict[str, Any] = {"stdin": True, "stdout": True, "stderr": not tty, "tty": tty}
    return str(one.call("Exec", container_id=id, cmd=command, **fields).url)


@pytest.mark.parametrize("way", WAYS)
def test_commands(pods: list[tuple[Client, Any, str]], way: str) -> None:
    data = b"0123456789abcde\n" * 100_000
    for script, sent in (("cat; echo err >&2; exit 3", b"in\n"), ("wc -c", data), ("cat", data), ("kill -9 $$", b"")):
        found = []
        for client, _, id in able(pods, way):
            done = program("-way", way, "stream", _url(client, id, ["sh", "-c", script]), stdin=sent)
            found.append((done.returncode, done.stdout, done.stderr))
        assert found[0] == found[-1], script
        assert found[0][0] == {"cat; echo err >&2; exit 3": 3, "kill -9 $$": 137}.get(script, 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_terminal_has_its_size(pods: list[tuple[Client, Any, str]], way: str) -> None:
    script = "while [ \"$(stty size 2>/dev/null)\" != '33 111' ]; do sleep 0.1; done; echo sized; exit 4"
    found = []
    for client, _, id in able(pods, way):
        url = _url(client, id, ["sh", "-c", script], tty=True)
        command = [PROGRAM, "-way", way, "-tty", "33x111", "stream", url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout
            found.append((process.wait(60 * peers.PATIENCE), process.stdout.read()))
    assert found[0] == found[-1] == (4, b"sized\r\n")


@pytest.mark.parametrize("way", WAYS)
def test_ports(pods: list[tuple[Client, Any, str]], way: str) -> None:
    for client, pod, _ in able(pods, way):
        url = str(client.call("PortForward", pod_sandbox_id=pod[0], port=[8080]).url)
        command = [PROGRAM, "-way", way, "forward", url, "8080"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin and process.stdout
            port = int(process.stdout.readline())
            for _ in range(3):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=20) as answer:
                    assert answer.read() == b"page\n"
            process.stdin.close()
        assert process.returncode == 0
