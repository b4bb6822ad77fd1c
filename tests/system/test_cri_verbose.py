# SPDX-License-Identifier: Apache-2.0
"""What people and their scripts read in crictl inspect, inspectp, inspecti and info, beside Debian's containerd."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client

pytestmark = [pytest.mark.needs("containerd", "ctr", "systemd"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Client, Client]]:
    with crihouse.both() as clients:
        yield clients


def info(client: Client, method: str, **fields: Any) -> Any:
    return json.loads(client.call(method, verbose=True, **fields).info["info"])


def network_of(pid: int) -> tuple[int, int]:
    found = os.stat(f"/proc/{pid}/ns/net")
    return found.st_dev, found.st_ino


def test_of_a_pod(pair: tuple[Client, Client]) -> None:
    told = []
    for client in pair:
        pod = client.run_pod("told", port_mappings=[{"container_port": 80, "protocol": 1}])
        id = client.run_container(pod, "c", ["sleep", "1000"])
        found = info(client, "PodSandboxStatus", pod_sandbox_id=pod[0])
        # The way into its network that scripts take, by a process and by a path.
        pid = info(client, "ContainerStatus", container_id=id)["pid"]
        assert network_of(found["pid"]) == network_of(pid)
        [path] = [one["path"] for one in found["runtimeSpec"]["linux"]["namespaces"] if one["type"] == "network"]
        at = os.stat(path)
        assert (at.st_dev, at.st_ino) == network_of(pid)
        assert found["processStatus"] == "running" and not found["netNamespaceClosed"]
        [address] = found["cniResult"]["Interfaces"]["eth0"]["IPConfigs"]
        assert address["IP"] == client.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status.network.ip
        found["config"]["log_directory"] = ""
        told.append(found)
        client.call("StopPodSandbox", pod_sandbox_id=pod[0])
        after = info(client, "PodSandboxStatus", pod_sandbox_id=pod[0])
        assert after["processStatus"] == "deleted" and after["netNamespaceClosed"]
        client.remove_pod(pod)
    ours, theirs = told
    assert ours.keys() >= theirs.keys()
    assert ours["config"] == theirs["config"]
    assert ours["cniResult"].keys() == theirs["cniResult"].keys()
    assert ours["cniResult"]["Routes"] == theirs["cniResult"]["Routes"]
    one, other = (found["cniResult"]["Interfaces"]["eth0"] for found in told)
    assert one.keys() >= other.keys() and one["IPConfigs"][0].keys() == other["IPConfigs"][0].keys()
    assert ours["sandboxMetadata"]["Metadata"]["CNIResult"] == ours["cniResult"]  # which 1.7 does not have


def test_of_a_container(pair: tuple[Client, Client]) -> None:
    told = []
    for client in pair:
        pod = client.run_pod("told-too")
        mounts = [{"container_path": "/m", "host_path": "/etc", "readonly": True}]
        resources = {"oom_score_adj": 900}
        more = {"mounts": mounts, "linux": {"resources": resources}, "envs": [{"key": "A", "value": b"b"}], "tty": True}
        id = client.run_container(pod, "c", ["sleep", "1000"], **more)
        told.append(info(client, "ContainerStatus", container_id=id))
        process = Path(f"/proc/{told[-1]['pid']}/cmdline")
        peers.wait_until(lambda at=process: at.read_bytes() == b"sleep\x001000\x00", "it is the container's")
        assert told[-1]["runtimeSpec"]["process"]["args"] == ["sleep", "1000"]
        client.call("StopContainer", container_id=id, timeout=0)
        client.ended(id)
        assert info(client, "ContainerStatus", container_id=id)["pid"] == 0
        client.remove_pod(pod)
    ours, theirs = told
    assert ours.keys() >= theirs.keys() and ours["config"] == theirs["config"]
    assert ours["runtimeSpec"].keys() == theirs["runtimeSpec"].keys()


def test_of_an_image(pair: tuple[Client, Client]) -> None:
    ours, theirs = (info(client, "ImageStatus", image={"image": peers.IMAGE}) for client in pair)
    assert ours["chainID"] == theirs["chainID"]
    assert ours["imageSpec"]["config"] == theirs["imageSpec"]["config"]
    for name in ("architecture", "os", "rootfs"):
        assert ours["imageSpec"][name] == theirs["imageSpec"][name]


def test_of_the_runtime(pair: tuple[Client, Client]) -> None:
    def of_network(client: Client) -> Any:
        return json.loads(client.call("Status", verbose=True).info["cniconfig"])

    ours, theirs = (client.call("Status", verbose=True).info for client in pair)
    assert ours["lastCNILoadStatus"] == theirs["lastCNILoadStatus"] == "OK"
    assert {"rootDir", "stateDir"} <= json.loads(ours["config"]).keys() & json.loads(theirs["config"]).keys()
    mine, other = (of_network(client) for client in pair)
    assert mine.keys() == other.keys() and mine["Prefix"] == other["Prefix"]
    one, two = mine["Networks"][-1]["Config"], other["Networks"][-1]["Config"]
    assert one.keys() == two.keys() and one["CNIVersion"] == two["CNIVersion"]
    assert [plugin["Network"]["type"] for plugin in one["Plugins"]] == ["bridge", "portmap"]
    file = pair[0].folder / "net.d/10-test.conflist"
    text = file.read_text()
    file.unlink()
    try:
        told = pair[0].call("Status", verbose=True).info
        assert "cni plugin not initialized" in told["lastCNILoadStatus"] and of_network(pair[0])["Networks"] == []
    finally:
        file.write_text(text)
