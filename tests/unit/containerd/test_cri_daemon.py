# SPDX-License-Identifier: Apache-2.0
"""The daemon with the CRI switched on, as its clients meet it before there is any pod."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from containerd_parts import Daemon

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.cri.v1 import cri_pb2_grpc

CONFIG = "cri:\n  enabled: true\n  networks: {folder}/net.d\n"


class Node:
    """A daemon, and a client of its RuntimeService."""

    def __init__(self, folder: Path) -> None:
        self.daemon = Daemon(folder, CONFIG.format(folder=folder)).start()
        self._channel = self.daemon.channel()
        self.runtime = cri_pb2_grpc.RuntimeServiceStub(self._channel)
        self.images = cri_pb2_grpc.ImageServiceStub(self._channel)

    def call(self, method: str, **fields: Any) -> Any:
        service = self.images if "Image" in method else self.runtime
        return getattr(service, method)(getattr(cri, f"{method}Request")(**fields), timeout=30)

    def code(self, method: str, **fields: Any) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            answer = self.call(method, **fields)
            list(answer)
        return str(caught.value.code().name)

    def close(self) -> None:
        self._channel.close()
        assert self.daemon.stop() == 0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("node"))
    yield made
    made.close()


def test_who_answers(node: Node) -> None:
    assert node.call("Version").runtime_name == "containerd"
    conditions = {one.type: one for one in node.call("Status", verbose=True).status.conditions}
    assert conditions["RuntimeReady"].status and not conditions["NetworkReady"].status
    assert node.call("RuntimeConfig").HasField("linux")


def test_what_it_can(node: Node) -> None:
    status = node.call("Status")
    [handler] = status.runtime_handlers
    assert handler.name == "" and handler.features.recursive_read_only_mounts
    assert status.features.supplemental_groups_policy and status.features.mount_options
    assert status.features.user_namespaces_host_network


def test_lists_are_empty(node: Node) -> None:
    assert not node.call("ListPodSandbox").items and not node.call("ListContainers").containers
    assert not node.call("ListContainerStats").stats and not node.call("ListPodSandboxStats").stats
    assert not node.call("ListImages").images and not node.call("ListPodSandboxMetrics").pod_metrics
    assert node.call("ListMetricDescriptors").descriptors
    for method in (
        "StreamPodSandboxes",
        "StreamContainers",
        "StreamContainerStats",
        "StreamPodSandboxStats",
        "StreamPodSandboxMetrics",
        "StreamImages",
    ):
        assert list(node.call(method)) == []


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("PodSandboxStatus", {"pod_sandbox_id": "x"}),
        ("PodSandboxStats", {"pod_sandbox_id": "x"}),
        ("UpdatePodSandboxResources", {"pod_sandbox_id": "x"}),
        ("PortForward", {"pod_sandbox_id": "x"}),
        ("ContainerStatus", {"container_id": "x"}),
        ("ContainerStats", {"container_id": "x"}),
        ("UpdateContainerResources", {"container_id": "x"}),
        ("Exec", {"container_id": "x", "cmd": ["true"], "stdout": True}),
        ("Attach", {"container_id": "x", "stdout": True}),
        ("ExecSync", {"container_id": "x", "cmd": ["true"]}),
        ("CheckpointContainer", {"container_id": "x", "location": "/x.tar"}),
        ("CheckpointPod", {"pod_sandbox_id": "x", "output_path": "/x", "container_ids": ["x"]}),
    ],
)
def test_what_is_not_there(node: Node, method: str, fields: dict[str, Any]) -> None:
    assert node.code(method, **fields) == "NOT_FOUND"


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("Exec", {"cmd": ["true"], "stdout": True}),
        ("Exec", {"container_id": "x", "cmd": ["true"]}),
        ("Exec", {"container_id": "x", "cmd": ["true"], "stdout": True, "stderr": True, "tty": True}),
        ("Attach", {"container_id": "x"}),
        ("PortForward", {}),
        ("CheckpointPod", {"options": {"a": "b"}}),
        ("RestorePod", {"options": {"a": "b"}}),
        ("RestorePod", {"checkpoint_path": "/no/such"}),
    ],
)
def test_what_is_no_request(node: Node, method: str, fields: dict[str, Any]) -> None:
    assert node.code(method, **fields) == "INVALID_ARGUMENT"


def test_a_registry_that_does_not_answer(node: Node) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        node.call("PullImage", image={"image": "127.0.0.1:9/x:1"})  # where nobody listens
    assert caught.value.code() == grpc.StatusCode.UNKNOWN
    assert caught.value.details().startswith("RegistryUnavailable: ")


def test_a_listener_leaves_with_the_daemon(tmp_path: Path) -> None:
    node = Node(tmp_path)
    stream = node.runtime.GetContainerEvents(cri.GetEventsRequest())
    ended: list[str] = []

    def listen() -> None:
        try:
            list(stream)
        except grpc.RpcError as error:
            ended.append(error.code().name)

    thread = threading.Thread(target=listen)
    thread.start()
    node.call("Version")
    assert node.daemon.stop() == 0
    thread.join(20)
    assert ended in (["UNAVAILABLE"], ["CANCELLED"])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("  streaming-address: 127.0.0.1\n", "cri.streaming-address"),
        ("  streaming-address: 192.0.2.1:0\n", "cannot be served"),
        ("  streaming-certificate: /no/such/file\n", "cannot be served"),
    ],
)
def test_a_streaming_server_that_cannot_be(tmp_path: Path, more: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        Daemon(tmp_path, CONFIG.format(folder=tmp_path) + more).start()
