# SPDX-License-Identifier: Apache-2.0
"""The real kubectl on pods of ours and of Debian's containerd, through a relay that is the API server and the kubelet:
the same output, the same exit codes, by WebSocket and by SPDY."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from kuberelay import Relay

pytestmark = [pytest.mark.needs("newer-docker", "containerd", "ctr", "systemd"), pytest.mark.timeout(300)]

SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
PAGE = "mkdir -p /www; echo page of $(hostname) >/www/index.html; exec httpd -f -p 8080 -h /www"
HEARD = 'echo ready; while read line; do echo "heard $line"; done; echo end'


@pytest.fixture(scope="module")
def relays() -> Iterator[list[Relay]]:
    """Of ours and of theirs, each with a pod `web`, in which there is a page and a shell that repeats."""
    with crihouse.both() as clients:
        opened = []
        for client in clients:
            pod = client.run_pod("web")
            client.run_container(pod, "page", ["sh", "-c", PAGE])
            client.run_container(pod, "heard", ["sh", "-c", HEARD], stdin=True, stdin_once=True)
            client.run_container(pod, "tty", ["sh"], stdin=True, tty=True)
            opened.append(Relay(client, {"web": pod}).__enter__())
        try:
            yield opened
        finally:
            for relay in opened:
                relay.__exit__()


@pytest.fixture(params=["websocket", "spdy"])
def ways(request: pytest.FixtureRequest, relays: list[Relay]) -> Iterator[list[Relay]]:
    for relay in relays:
        relay.asked.clear()
        relay.more = SPDY if request.param == "spdy" else {}
    yield relays
    upgrades = {line.split()[2].lower() for line in relays[0].asked}
    wanted = "spdy/3.1" if request.param == "spdy" else "websocket"
    assert upgrades <= {wanted}, f"kubectl has fallen back: {relays[0].asked}"


def same(relays: list[Relay], ask: Callable[[Relay], Any]) -> Any:
    """What ours gives, which is what theirs gives."""
    ours, theirs = (ask(relay) for relay in relays)
    assert ours == theirs
    return ours


def ended(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def test_exec(ways: list[Relay]) -> None:
    script = "cat; echo out; echo err >&2; exit 7"
    found = same(
        ways, lambda one: ended(one.kubectl("exec", "-i", "web", "-c", "page", "--", "sh", "-c", script, stdin="in\n"))
    )
    assert found == (7, "in\nout\n", "err\ncommand terminated with exit code 7\n")
    assert same(ways, lambda one: one.kubectl("exec", "web", "-c", "page", "--", "hostname").stdout) == "host-web\n"


def test_exec_of_much(ways: list[Relay]) -> None:
    """Three megabytes to it, and back."""
    data = "0123456789abcde\n" * 200_000
    assert (
        same(ways, lambda one: one.kubectl("exec", "-i", "web", "-c", "page", "--", "cat", stdin=data).stdout) == data
    )


def test_exec_of_a_command_that_is_not_there(ways: list[Relay]) -> None:
    def ask(one: Relay) -> tuple[int, bool]:
        done = one.kubectl("exec", "web", "-c", "page", "--", "/bin/none")
        return done.returncode, "/bin/none" in done.stderr

    assert same(ways, ask)[0] != 0


def test_a_terminal(ways: list[Relay]) -> None:
    """Its size reaches the shell, a signal of its keys the command, and the exit code comes back."""

    def ask(one: Relay) -> tuple[int, list[str]]:
        leader, follower = pty.openpty()
        os.set_inheritable(follower, True)
        subprocess.run(["stty", "rows", "33", "cols", "111"], stdin=follower, check=True)
        command = one.command("exec", "-it", "web", "-c", "page", "--", "sh")
        process = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=follower, env=one.environment, start_new_session=True
        )
        os.close(follower)
        seen = _until(leader, "# ")
        os.write(leader, b"stty size\n")
        seen += _until(leader, "33 111")
        os.write(leader, b"sleep 1000\n")
        time.sleep(0.5)
        os.write(leader, b"\x03exit 9\n")
        try:
            return process.wait(30), re.findall(r"33 111", seen)
        finally:
            process.kill()
            os.close(leader)

    assert same(ways, ask) == (9, ["33 111"])


def _until(descriptor: int, text: str) -> str:
    seen = ""
    end = time.monotonic() + 30 * peers.PATIENCE
    while text not in seen:
        assert select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0], f"{text!r} not in {seen!r}"
        seen += os.read(descriptor, 4096).decode()
    return seen


def test_copies(ways: list[Relay], tmp_path: Path) -> None:
    """cp, which is a tar at each end."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("text\n")
    (source / "b").write_bytes(os.urandom(1 << 20))

    def ask(one: Relay) -> list[tuple[str, bytes]]:
        there, back = f"/tmp/{tmp_path.name}", tmp_path / f"back-{one.client.name}"
        for words in ((str(source), f"web:{there}"), (f"web:{there}", str(back))):
            done = one.kubectl("cp", "-c", "page", *words)
            assert done.returncode == 0, done.stderr
        return [(path.name, path.read_bytes()) for path in sorted(back.iterdir())]

    assert same(ways, ask) == [(path.name, path.read_bytes()) for path in sorted(source.iterdir())]


def test_ports(ways: list[Relay]) -> None:
    """Several requests, at once and one after another, and a port at which nobody listens."""

    def ask(one: Relay) -> tuple[list[str], bool]:
        command = one.command("port-forward", "web", ":8080", ":9")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one.environment) as process:
            assert process.stdout
            try:
                ports: dict[str, str] = {}
                while len(ports) < 2:
                    line = process.stdout.readline()
                    assert line, "kubectl has ended"
                    for here, there in re.findall(r"127\.0\.0\.1:(\d+) -> (\d+)", line):
                        ports[there] = here
                pages = [_page(ports["8080"]) for _ in range(5)]
                try:
                    _page(ports["9"])
                    refused = False
                except OSError:
                    refused = True
                return pages, refused
            finally:
                process.send_signal(signal.SIGINT)

    pages, refused = same(ways, ask)
    assert pages == ["page of host-web\n"] * 5 and refused


def _page(port: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=20) as answer:
        return str(answer.read().decode())


def test_logs(relays: list[Relay]) -> None:
    assert same(relays, lambda one: ended(one.kubectl("logs", "web", "-c", "heard", "--tail=1")))[:2] == (0, "ready\n")


def test_attach(relays: list[Relay]) -> None:
    """The input of a container that takes one once: its end is the container's."""

    def ask(one: Relay) -> tuple[int, list[str], str]:
        done = one.kubectl("attach", "-i", "web", "-c", "heard", stdin="one\ntwo\n")
        peers.wait_until(lambda: "end" in one.kubectl("logs", "web", "-c", "heard").stdout, "the container has ended")
        return done.returncode, sorted(done.stdout.split("\n")), one.kubectl("logs", "web", "-c", "heard").stdout

    code, _, log = same(relays, ask)
    assert code == 0 and log == "ready\nheard one\nheard two\nend\n"


def test_a_pod_that_is_not_there(relays: list[Relay]) -> None:
    found = same(relays, lambda one: ended(one.kubectl("exec", "none", "--", "true")))
    assert found == (1, "", 'Error from server (NotFound): pods "none" not found\n')
