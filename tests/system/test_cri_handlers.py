# SPDX-License-Identifier: Apache-2.0
"""Pods of a RuntimeClass: the real runc and crun, by runtime handlers, under the shims of our own pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client

from teu.api.cri.v1 import cri_pb2 as cri

pytestmark = [pytest.mark.needs("containerd", "ctr", "systemd", "runc", "crun"), pytest.mark.timeout(300)]

RUNTIMES = (
    "  runtimes:\n    runc: {binary: runc}\n    crun: {binary: crun}\n    teu: {}\n    gone: {binary: /no/such}\n"
)
HANDLERS = ["runc", "crun", "teu"]


@pytest.fixture(scope="module")
def one() -> Iterator[Client]:
    with crihouse.ours(RUNTIMES) as client:
        yield client


def run_pod(one: Client, name: str, handler: str, **more: Any) -> Any:
    config = one.pod_config(name, **more)
    Path(config.log_directory).mkdir(parents=True, exist_ok=True)
    return one.call("RunPodSandbox", config=config, runtime_handler=handler).pod_sandbox_id, config


def test_handlers_are_told(one: Client) -> None:
    told = {handler.name: handler.features for handler in one.call("Status").runtime_handlers}
    assert set(told) == {"", *HANDLERS}
    for name in ("runc", "crun"):
        says = json.loads(peers.run(name, "features").stdout)
        assert told[name].recursive_read_only_mounts == ("rro" in says["mountOptions"])
    assert told["teu"] == told[""]
    assert one.refused("RunPodSandbox", config=one.pod_config("x"), runtime_handler="gone")[0] == "FAILED_PRECONDITION"


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_whole_life(one: Client, handler: str) -> None:
    pod = run_pod(one, f"life-{handler}", handler)
    status = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status
    assert status.runtime_handler == handler and status.network.ip
    id = one.run_container(pod, "c", ["sh", "-c", "echo out; sleep 1000"])
    root = Path("/run/teu/runc/k8s.io")
    if handler == "crun":
        assert id in peers.run("crun", "--root", str(root), "list", "-q").stdout
    peers.wait_until(lambda: one.log(pod, "c") == [("stdout", "F", "out")], "the line")
    done = one.exec(id, "sh", "-c", "hostname; exit 3")
    assert (done.stdout, done.exit_code) == (f"host-life-{handler}\n".encode(), 3)
    assert one.exec(id, "cat", "/proc/1/cmdline").stdout.startswith(b"sh")
    unit = f"cri-containerd-{id}.scope"
    assert peers.run("systemctl", "is-active", unit).stdout.strip() == "active"
    assert one.call("ContainerStats", container_id=id).stats.attributes.id == id
    one.call("StopContainer", container_id=id, timeout=0)
    assert one.status(id).exit_code == 137
    assert one.output(pod, "ends", ["id", "-u"]) == "0\n"
    one.remove_pod(pod)


@pytest.mark.needs("catatonit")
@pytest.mark.parametrize("handler", HANDLERS)
def test_processes_are_shared(one: Client, handler: str) -> None:
    config = one.pod_config(f"shared-{handler}")
    config.linux.security_context.namespace_options.pid = cri.POD
    Path(config.log_directory).mkdir(parents=True, exist_ok=True)
    pod = (one.call("RunPodSandbox", config=config, runtime_handler=handler).pod_sandbox_id, config)
    ids = []
    for name in ("a", "b"):
        made = one.container_config(name, ["sleep", "1001"], peers.IMAGE)
        made.linux.security_context.namespace_options.pid = cri.POD
        ids.append(one.call("CreateContainer", pod_sandbox_id=pod[0], config=made).container_id)
        one.call("StartContainer", container_id=ids[-1])
    assert one.exec(ids[0], "ps", "-o", "args").stdout.count(b"sleep 1001") == 2
    one.remove_pod(pod)


@pytest.mark.parametrize("handler", HANDLERS)
def test_pods_outlive_the_daemon(handler: str) -> None:
    with crihouse.ours(RUNTIMES) as one:
        pod = run_pod(one, "lasting", handler)
        id = one.run_container(pod, "c", ["sleep", "1000"])
        one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder, RUNTIMES)
        one.connect()
        assert one.exec(id, "echo", "there").stdout == b"there\n"
        assert one.output(pod, "after", ["echo", "ran"]) == "ran\n"
        # also where its handler is not configured any more
        one.daemon.kill()
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        assert one.exec(id, "echo", "there").stdout == b"there\n"
        one.remove_pod(pod)
