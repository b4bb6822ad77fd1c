# SPDX-License-Identifier: Apache-2.0
"""A plugin of the Node Resource Interface in Go, of the stub that real ones are made with, on ours and on the
containerd of Debian's next release: it is told the same in the same order, and what it changes has the same effect."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client
from runc_bundle import full_proc

pytestmark = [pytest.mark.needs("newer-docker", "nri-plugin", "ctr", "systemd"), pytest.mark.timeout(300)]

PROGRAM = "/opt/nri-plugin/nri-plugin"
FOREVER = ["sleep", "1000000"]
Pair = tuple[Client, Client]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    full_proc()
    with crihouse.both(newer=True) as clients:
        yield clients


@contextlib.contextmanager
def plugged(client: Client, index: str = "10", name: str = "test") -> Iterator[Path]:
    """The file with the plugin's calls, from its synchronization on."""
    log = client.folder / f"{index}-{name}.log"
    log.unlink(missing_ok=True)
    command = [PROGRAM, "-socket", client.nri, "-index", index, "-name", name, "-log", str(log)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            peers.wait_until(lambda: log.exists() and "Synchronize" in log.read_text(), "it is synchronized")
            yield log
        finally:
            process.kill()


def compared(clients: Pair, ask: Callable[[Client], Any]) -> Any:
    """The answer that both give."""
    ours, theirs = (ask(client) for client in clients)
    assert ours == theirs
    return ours


def test_calls_in_their_order(pair: Pair) -> None:
    def ask(client: Client) -> list[str]:
        with plugged(client) as log:
            pod = client.run_pod("nri")
            id = client.run_container(pod, "c", FOREVER)
            client.call("StopContainer", container_id=id, timeout=0)
            client.call("RemoveContainer", container_id=id)
            # It ends when its start has been told to its end: else containerd tells the two in any order.
            ends = client.run_container(pod, "ends", ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"])
            client.exec(ends, "kill", "1")
            client.ended(ends)
            peers.wait_until(lambda: "StopContainer ends" in log.read_text(), "its end is told")
            client.remove_pod(pod)
            return log.read_text().splitlines()

    calls = compared(pair, ask)
    assert calls[:3] == ['Configure ""', "Synchronize 0 0 0", "RunPodSandbox nri default uid-nri"]
    assert "PostCreateContainer c CONTAINER_CREATED was here" in calls and calls[-1] == "RemovePodSandbox nri"


# A variable or a device that a plugin takes away is gone with ours (test_cri_nri.py), and stays with containerd, whose
# library for plugins forgets it.
LOOKS = {
    "variables": "echo [$NRI]",
    "mounts": "stat -c %a /nri; stat -f -c %T /nri; ls -d /goes 2>/dev/null || echo gone",
    "limits": "ulimit -n; ulimit -Hn",
    "devices": "head -c 3 /dev/nri | wc -c",
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_it_changes(pair: Pair, name: str) -> None:
    def ask(client: Client) -> str:
        with plugged(client):
            pod = client.run_pod("nri")
            try:
                more = [{"container_path": "/goes", "host_path": "/etc"}]
                return client.output(pod, "c", ["sh", "-c", LOOKS[name]], mounts=more)
            finally:
                client.remove_pod(pod)

    compared(pair, ask)


def test_what_it_refuses(pair: Pair) -> None:
    def ask(client: Client) -> Any:
        with plugged(client) as log:
            pod = client.run_pod("nri")
            try:
                config = client.container_config("c", FOREVER, peers.IMAGE, annotations={"refuse": "not this one"})
                wanted = {"pod_sandbox_id": pod[0], "config": config, "sandbox_config": pod[1]}
                code, text = client.refused("CreateContainer", **wanted)
                left = client.call("ListContainers", filter={"pod_sandbox_id": pod[0]}).containers
                return code, "refused: not this one" in text, len(left), log.read_text().splitlines()[2:]
            finally:
                client.remove_pod(pod)

    code, told, left, _ = compared(pair, ask)
    assert (code, told, left) == ("UNKNOWN", True, 0)


def test_two_that_want_the_same(pair: Pair) -> None:
    def ask(client: Client) -> Any:
        with plugged(client, "10", "one"), plugged(client, "20", "two"):
            pod = client.run_pod("nri")
            try:
                config = client.container_config("c", FOREVER, peers.IMAGE)
                wanted = {"pod_sandbox_id": pod[0], "config": config, "sandbox_config": pod[1]}
                code, text = client.refused("CreateContainer", **wanted)
                return code, '"10-one"' in text, '"20-two"' in text, "both tried to set" in text
            finally:
                client.remove_pod(pod)

    assert compared(pair, ask) == ("UNKNOWN", True, True, True)


def test_an_update_of_one_that_is_not_started(pair: Pair) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("nri")
        try:
            with plugged(client) as log:
                id = client.create(pod, "c", FOREVER)
                client.call("UpdateContainerResources", container_id=id, linux={"cpu_shares": 20})
                return client.status(id).resources.linux.cpu_shares, log.read_text().splitlines()[-2:]
        finally:
            client.remove_pod(pod)

    assert compared(pair, ask) == (25, ["UpdateContainer c 20", "PostUpdateContainer c 25"])


def test_one_that_comes_later(pair: Pair) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("nri")
        try:
            client.run_container(pod, "running", FOREVER)
            client.create(pod, "created", FOREVER)
            client.ended(client.run_container(pod, "ended", ["true"]))
            with plugged(client) as log:
                return log.read_text().splitlines()
        finally:
            client.remove_pod(pod)

    assert compared(pair, ask) == ['Configure ""', f"Synchronize 1 2 {len('runningcreated')}"]


def test_messages_that_are_long(pair: Pair) -> None:
    """Frames of the mux that are larger than what a plugin reads at once."""

    def ask(client: Client) -> Any:
        with plugged(client):
            pod = client.run_pod("nri")
            try:
                long = [{"key": f"LONG{number}", "value": b"x" * 1000} for number in range(200)]
                return client.output(pod, "c", ["sh", "-c", "echo $NRI ${#LONG199}"], envs=long)
            finally:
                client.remove_pod(pod)

    assert compared(pair, ask) == "was here 1000\n"


def test_it_is_started_by_the_runtime() -> None:
    with crihouse.ours() as client:
        log = client.folder / "log"
        folder = client.folder / "nri"
        folder.mkdir()
        program = folder / "30-started"
        program.write_text(f"#!/bin/sh\nexec {PROGRAM} -log {log}\n")
        program.chmod(0o755)
        (folder / "started.conf").write_text("from the file")
        client.daemon.stop()
        crihouse.launch(client.daemon, client.folder)
        client.connect()
        assert log.read_text().splitlines() == ['Configure "from the file"', "Synchronize 0 0 0"]
        pod = client.run_pod("nri")
        assert "RunPodSandbox nri" in log.read_text()
        client.remove_pod(pod)
