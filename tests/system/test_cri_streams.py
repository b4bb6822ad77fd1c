# SPDX-License-Identifier: Apache-2.0
"""Exec, attach and port-forward as kubelet asks for them, over SPDY and WebSocket, beside Debian's containerd."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client
from streamclient import Refused, Spdy, WebSocket, exit_code

from teu.api.cri.v1 import cri_pb2 as cri

pytestmark = [pytest.mark.needs("containerd", "ctr", "systemd"), pytest.mark.timeout(300)]

V4 = "v4.channel.k8s.io"
NAMES = ("stdin", "stdout", "stderr")


@pytest.fixture(scope="module")
def pods() -> Iterator[list[tuple[Client, Any]]]:
    """A pod with a network of its own in each."""
    with crihouse.both() as clients:
        yield [(client, client.run_pod("streams")) for client in clients]


@pytest.fixture(scope="module")
def sleepers(pods: list[tuple[Client, Any]]) -> list[tuple[Client, str]]:
    return [(one, one.run_container(pod, "sleeper", ["sleep", "100000"])) for one, pod in pods]


class Session:
    """A command's or container's streams over SPDY."""

    def __init__(self, url: str, names: tuple[str, ...] = NAMES, protocol: str = V4) -> None:
        self.spdy = Spdy(url, protocol)
        self.streams = {name: self.spdy.open(streamType=name) for name in ("error", *names)}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: Any) -> None:
        self.spdy.__exit__()

    def write(self, data: bytes, last: bool = False, name: str = "stdin") -> None:
        self.spdy.write(self.streams[name], data, last)

    def until(self, text: bytes, name: str = "stdout") -> bytes:
        return self.spdy.until(self.streams[name], text)

    def read(self, name: str = "stdout") -> bytes:
        return self.spdy.read(self.streams[name])


def ask(
    one: Client, method: str, id: str, names: tuple[str, ...], command: tuple[str, ...] = (), tty: bool = False
) -> str:
    more = {"cmd": command} if command else {}
    asked = {name: name in names for name in NAMES}
    return str(one.call(method, container_id=id, tty=tty, **asked, **more).url)


def execute(one: Client, id: str, *command: str, names: tuple[str, ...] = NAMES, tty: bool = False) -> Session:
    wanted = (*names, "resize") if tty else names
    return Session(ask(one, "Exec", id, names, command, tty), wanted)


# Exec


@pytest.mark.parametrize(
    ("script", "sent"),
    [
        ("cat; echo end >&2; exit 3", b"text"),
        ("echo out; echo err >&2", b""),
        ("wc -c", b"x" * 300_000),
        ("head -c 500000 /dev/zero", b""),
        ("id; pwd; echo $HOME; hostname", b""),
        ("kill -9 $$", b""),
    ],
)
def test_commands(sleepers: list[tuple[Client, str]], script: str, sent: bytes) -> None:
    found = []
    for one, id in sleepers:
        with execute(one, id, "sh", "-c", script) as session:
            session.write(sent, last=True)
            told = (session.read(), session.read("stderr"), exit_code(session.read("error")))
            found.append(told)
    assert found[0] == found[1]


@pytest.mark.parametrize("protocol", ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"])
def test_older_protocols(sleepers: list[tuple[Client, str]], protocol: str) -> None:
    found = []
    for one, id in sleepers:
        url = ask(one, "Exec", id, ("stdout",), ("sh", "-c", "echo x; exit 4"))
        with Session(url, ("stdout",), protocol) as session:
            found.append((session.read(), bool(session.read("error"))))
    # Of the first version containerd resets the stream of errors before the command begins, as kubelet 1.0 did.
    assert found == [(b"x\n", True), (b"x\n", protocol != "channel.k8s.io")]


def test_a_terminal(sleepers: list[tuple[Client, str]]) -> None:
    for one, id in sleepers:
        with execute(one, id, "sh", names=("stdin", "stdout"), tty=True) as session:
            session.write(b'{"Width":99,"Height":33}\n', name="resize")
            session.write(b"tty && until stty size | grep '33 99'; do sleep 0.1; done; echo term-$TERM\n")
            assert b"33 99" in session.until(b"\n33 99") and b"/dev/pts" in session.until(b"/dev/pts")
            assert b"term-xterm" in session.until(b"term-xterm")
            session.write(b"exit 5\n")
            session.read()
            assert exit_code(session.read("error")) == 5


def test_a_command_that_is_not_there(sleepers: list[tuple[Client, str]]) -> None:
    for one, id in sleepers:
        with execute(one, id, "/no/such/thing") as session:
            told = json.loads(session.read("error"))
            assert told["status"] == "Failure" and "no such file or directory" in told["message"]
            assert told["reason"] == "InternalError"


def test_requests_that_are_none(sleepers: list[tuple[Client, str]]) -> None:
    for fields in (
        {"cmd": ["true"]},
        {"cmd": ["true"], "tty": True, "stdout": True, "stderr": True},
        {"cmd": ["true"], "stdout": True, "container_id": "nosuch"},
    ):
        codes = [one.refused("Exec", **{"container_id": id, **fields})[0] for one, id in sleepers]
        assert codes[0] == codes[1], fields
    # containerd looks for the container first, and says UNKNOWN of the id that none has.
    assert sleepers[0][0].refused("Exec", cmd=["true"], stdout=True)[0] == "INVALID_ARGUMENT"


def test_a_client_that_leaves_has_its_command_killed(pods: list[tuple[Client, Any]]) -> None:
    one, pod = pods[0]
    id = one.run_container(pod, "left", ["sleep", "100000"])
    with execute(one, id, "sh", "-c", "echo here; exec sleep 4711") as session:
        session.until(b"here")
    peers.wait_until(lambda: b"sleep 4711" not in one.exec(id, "ps", "-o", "args").stdout, "it is killed")
    assert one.status(id).state == cri.CONTAINER_RUNNING
    folder = one.daemon.run / "state/cri" / id
    peers.wait_until(lambda: not list(folder.glob("exec-*")), "nothing is left of it")
    one.call("RemoveContainer", container_id=id)


def test_a_command_that_a_killed_daemon_has_left_is_taken_away() -> None:
    with crihouse.ours() as one:
        id = one.run_container(one.run_pod("killed"), "c", ["sleep", "100000"])
        with execute(one, id, "sh", "-c", "echo here; exec sleep 4711") as session:
            session.until(b"here")
            one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        peers.wait_until(lambda: b"sleep 4711" not in one.exec(id, "ps", "-o", "args").stdout, "it is killed")
        folder = one.daemon.run / "state/cri" / id
        peers.wait_until(lambda: not list(folder.glob("exec-*")), "nothing is left of it")
        assert one.status(id).state == cri.CONTAINER_RUNNING


def test_a_client_that_leaves_though_its_command_reads_nothing(pods: list[tuple[Client, Any]]) -> None:
    one, pod = pods[0]
    id = one.run_container(pod, "deaf", ["sleep", "100000"])
    with execute(one, id, "sleep", "4711") as session:
        session.write(b"x" * 700_000)  # more than is kept for it, and less than the connection takes
        peers.wait_until(lambda: b"sleep 4711" in one.exec(id, "ps", "-o", "args").stdout, "it runs")
    peers.wait_until(lambda: b"sleep 4711" not in one.exec(id, "ps", "-o", "args").stdout, "it is killed")
    one.call("RemoveContainer", container_id=id)


def test_addresses_are_good_once(sleepers: list[tuple[Client, str]]) -> None:
    for one, id in sleepers:
        url = ask(one, "Exec", id, ("stdout",), ("true",))
        with Session(url, ("stdout",)) as session:
            session.read("error")
        with pytest.raises(Refused) as caught:
            Spdy(url, V4)
        assert caught.value.args[0] == 404


@pytest.mark.parametrize("protocol", ["", "channel.k8s.io", V4, "base64.channel.k8s.io", "v4.base64.channel.k8s.io"])
def test_commands_by_websocket(sleepers: list[tuple[Client, str]], protocol: str) -> None:
    found = []
    for one, id in sleepers:
        url = ask(one, "Exec", id, NAMES, ("sh", "-c", "echo out; echo err >&2; head -n 1; exit 3"))
        with WebSocket(url, *([protocol] if protocol else [])) as client:
            client.channel(0, b"in\n")
            data = client.finish()
            found.append((data.get(1), data.get(2), bool(data.get(3))))
    assert found[0] == found[1] == (b"out\nin\n", b"err\n", True)


def test_version_5_ends_the_input(sleepers: list[tuple[Client, str]]) -> None:
    one, id = sleepers[0]
    with WebSocket(ask(one, "Exec", id, NAMES, ("cat",)), "v5.channel.k8s.io", V4) as client:
        client.channel(0, b"text")
        client.channel(255, b"\0")
        data = client.finish()
        assert data[1] == b"text" and exit_code(data[3]) == 0


# Attach


def test_what_a_container_writes_and_reads(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        script = 'while read line; do echo "got $line"; echo "err $line" >&2; done'
        id = one.run_container(pod, "reads", ["sh", "-c", script], stdin=True)
        for word in (b"a", b"b"):
            with Session(ask(one, "Attach", id, NAMES)) as session:
                session.write(word + b"\n")
                assert session.until(b"got " + word + b"\n") == b"got " + word + b"\n"
                assert session.until(b"err " + word + b"\n", "stderr") == b"err " + word + b"\n"
        assert one.status(id).state == cri.CONTAINER_RUNNING
        peers.wait_until(lambda one=one, pod=pod: len(one.log(pod, "reads")) == 4, "it is in the log, too")
        one.call("RemoveContainer", container_id=id)
        Path(pod[1].log_directory, "reads.log").unlink()


def test_the_input_of_a_container_ends_once(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        id = one.run_container(pod, "once", ["sh", "-c", "wc -c; exit 6"], stdin=True, stdin_once=True)
        with Session(ask(one, "Attach", id, NAMES)) as session:
            session.write(b"12345", last=True)
            assert session.read().strip() == b"5"
        assert one.ended(id).exit_code == 6
        one.call("RemoveContainer", container_id=id)


def test_a_client_that_leaves_ends_the_input_once(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        id = one.run_container(pod, "left", ["cat"], stdin=True, stdin_once=True)
        with Session(ask(one, "Attach", id, NAMES)) as session:
            session.write(b"x\n")
            session.until(b"x\n")
        assert one.ended(id).exit_code == 0
        one.call("RemoveContainer", container_id=id)


def test_a_terminal_of_a_container(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        id = one.run_container(pod, "terminal", ["sh"], stdin=True, tty=True)
        names = ("stdin", "stdout")
        with Session(ask(one, "Attach", id, names, tty=True), (*names, "resize")) as session:
            session.write(b'{"Width":77,"Height":22}\n', name="resize")
            session.write(b"until stty size | grep '22 77'; do sleep 0.1; done\n")
            session.until(b"\n22 77")
            session.write(b"exit 2\n")
            session.read()
        assert one.ended(id).exit_code == 2
        one.call("RemoveContainer", container_id=id)


def test_everything_is_seen_to_the_end(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        script = "read start; head -c 5000000 /dev/zero; echo; echo last"
        id = one.run_container(pod, "much", ["sh", "-c", script], stdin=True)
        with Session(ask(one, "Attach", id, NAMES)) as session:
            session.write(b"go\n")
            data = session.read()
            assert len(data) == 5_000_006 and data.endswith(b"last\n")
        one.ended(id)  # containerd does not remove one whose end it is about to see
        one.call("RemoveContainer", container_id=id)
        Path(pod[1].log_directory, "much.log").unlink()


def test_many_look_on_and_one_that_reads_nothing_stops_nobody() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("watched")
        id = one.run_container(pod, "c", ["sh", "-c", "while true; do head -c 100000 /dev/zero; echo; done"])
        with Session(ask(one, "Attach", id, ("stdout",)), ("stdout",)):
            began = time.monotonic()
            path = Path(one.status(id).log_path)
            peers.wait_until(lambda: path.stat().st_size > 30_000_000, "it writes on", 60)
            assert time.monotonic() - began < 45
        one.call("StopContainer", container_id=id, timeout=0)


def test_attached_after_a_start_of_the_daemon() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("survives")
        id = one.run_container(pod, "c", ["sh", "-c", "while read x; do echo got $x; done"], stdin=True)
        quiet = one.run_container(pod, "quiet", ["cat"], stdin=True, log_path="")
        one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        for which, told in ((id, b"got a\n"), (quiet, b"a\n")):
            with Session(ask(one, "Attach", which, NAMES)) as session:
                session.write(b"a\n")
                assert session.until(told) == told


# Ports


@pytest.fixture(scope="module")
def webs(pods: list[tuple[Client, Any]]) -> list[tuple[Client, Any]]:
    for one, pod in pods:
        one.run_container(pod, "web", ["nc", "-ll", "-p", "8000", "-e", "cat"])
        peers.wait_until(lambda one=one, pod=pod: answers(one, pod), "it listens")
    return pods


def forwarded(one: Client, pod: Any, *ports: int) -> str:
    return str(one.call("PortForward", pod_sandbox_id=pod[0], port=ports).url)


def answers(one: Client, pod: Any) -> bool:
    with Spdy(forwarded(one, pod), "portforward.k8s.io") as client:
        return through(client, 8000, "0", b"x") == (b"x", b"")


def through(client: Spdy, port: int, name: str, sent: bytes) -> tuple[bytes, bytes]:
    error = client.open(streamType="error", port=str(port), requestID=name)
    client.write(error, b"", last=True)
    data = client.open(streamType="data", port=str(port), requestID=name)
    client.write(data, sent, last=True)
    return client.read(data), client.read(error)


def test_ports(webs: list[tuple[Client, Any]]) -> None:
    for one, pod in webs:
        with Spdy(forwarded(one, pod, 8000), "portforward.k8s.io") as client:
            for number in range(3):
                sent = b"%d" % number * 10_000
                assert peers.wait_until(
                    lambda client=client, number=number, sent=sent: (
                        through(client, 8000, f"{number}-{time.monotonic()}", sent) == (sent, b"")
                    ),
                    "it answers",
                )
            data, error = through(client, 9, "refused", b"")
            assert data == b"" and b"error forwarding port 9 to pod" in error and b"efused" in error


def test_ports_by_websocket(webs: list[tuple[Client, Any]]) -> None:
    for one, pod in webs:

        def once(one: Client = one, pod: Any = pod) -> bool:
            with WebSocket(forwarded(one, pod, 8000), "v4.channel.k8s.io") as client:
                client.channel(0, b"hello")
                return client.until(0, b"hello") == b"\x40\x1fhello"

        peers.wait_until(once, "it answers")


def test_ports_by_a_tunnel(webs: list[tuple[Client, Any]]) -> None:
    one, pod = webs[0]

    def once() -> bool:
        with Spdy(forwarded(one, pod), "SPDY/3.1+portforward.k8s.io", tunnel=True) as client:
            return through(client, 8000, "0", b"hello") == (b"hello", b"")

    peers.wait_until(once, "it answers")


def test_ports_of_a_pod_that_has_none(webs: list[tuple[Client, Any]]) -> None:
    for one, _ in webs:
        pod = one.run_pod("stopped")
        one.call("StopPodSandbox", pod_sandbox_id=pod[0])
        assert "is not running" in one.refused("PortForward", pod_sandbox_id=pod[0], port=[80])[1]
        one.remove_pod(pod)
        assert one.refused("PortForward", pod_sandbox_id=pod[0])[0] == "NOT_FOUND"


def test_a_pod_in_the_hosts_network() -> None:
    with crihouse.ours() as one:
        options = {"network": cri.NODE, "pid": cri.CONTAINER}
        pod = one.run_pod("host", linux={"security_context": {"namespace_options": options}})
        with subprocess.Popen(["/usr/bin/python3", "-c", SERVER], stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            with Spdy(forwarded(one, pod), "portforward.k8s.io") as client:
                assert through(client, port, "0", b"hello")[0] == b"hello"


SERVER = (
    "import socket; l = socket.create_server(('127.0.0.1', 0)); print(l.getsockname()[1], flush=True); "
    "c, _ = l.accept(); c.sendall(c.recv(100)); c.close()"
)


# How it is served


def test_tls_and_an_address_of_choice(tmp_path: Path) -> None:
    certificate, key = tmp_path / "crt", tmp_path / "key"
    make = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    peers.run(*make, "-subj", "/CN=x", "-keyout", str(key), "-out", str(certificate))
    port = peers.free_port()
    more = f"  streaming-address: 127.0.0.1:{port}\n  streaming-certificate: {certificate}\n  streaming-key: {key}\n"
    with crihouse.ours(more) as one:
        id = one.run_container(one.run_pod("safe"), "c", ["sleep", "1000"])
        url = ask(one, "Exec", id, ("stdout",), ("echo", "safe"))
        assert url.startswith(f"https://127.0.0.1:{port}/exec/")
        with Session(url, ("stdout",)) as session:
            assert session.read() == b"safe\n"


def test_many_at_the_same_time() -> None:
    with crihouse.ours() as one:
        id = one.run_container(one.run_pod("busy"), "c", ["sleep", "1000"])
        found: list[bytes] = []

        def run(number: int) -> None:
            with execute(one, id, "sh", "-c", f"cat; echo {number}") as session:
                session.write(b"x" * 100_000, last=True)
                found.append(session.read())

        threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted(b"x" * 100_000 + b"%d\n" % number for number in range(20))
        peers.wait_until(
            lambda: not [name for name in os.listdir(one.daemon.run / "state/cri" / id) if name.startswith("exec-")],
            "no FIFOs are left",
        )
