# SPDX-License-Identifier: Apache-2.0
"""Other resources for pods and containers that run, events of what happens to them, and lists as streams."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import crihouse
import grpc
import peers
import pytest
from crihouse import Client

from teu.api.cri.v1 import cri_pb2 as cri

pytestmark = [pytest.mark.needs("containerd", "ctr", "systemd"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def one() -> Iterator[Client]:
    with crihouse.ours() as client:
        yield client


def spec_of(one: Client, id: str) -> Any:
    return json.loads(one.call("ContainerStatus", container_id=id, verbose=True).info["info"])["runtimeSpec"]


# Resources


def test_a_container_that_waits_gets_other_resources(one: Client) -> None:
    pod = one.run_pod("waits")
    limited = one.create(pod, "limited", ["true"], linux={"resources": {"cpu_shares": 100}})
    one.call("UpdateContainerResources", container_id=limited, linux={"cpu_quota": 50_000, "cpu_period": 100_000})
    told = one.status(limited).resources.linux
    assert (told.cpu_shares, told.cpu_quota) == (100, 50_000)
    cpu = spec_of(one, limited)["linux"]["resources"]["cpu"]
    assert cpu == {"shares": 100, "quota": 50_000, "period": 100_000}
    id = one.create(pod, "c", ["cat", "/proc/self/oom_score_adj"])
    one.call("UpdateContainerResources", container_id=id, linux={"oom_score_adj": 500})
    assert one.status(id).resources.linux.oom_score_adj == 500
    one.call("StartContainer", container_id=id)  # kubelet's order: made, resized, started
    one.ended(id)
    assert one.log(pod, "c") == [("stdout", "F", "500")]
    one.remove_pod(pod)


@pytest.mark.needs("memory", "cpu")
def test_a_container_that_runs_gets_other_resources() -> None:
    with crihouse.both() as clients:
        found = []
        for one in clients:
            pod = one.run_pod("runs")
            given = {"resources": {"memory_limit_in_bytes": 64 << 20, "cpu_shares": 512}}
            id = one.run_container(pod, "c", ["sleep", "1000"], linux=given)
            asked = {"memory_limit_in_bytes": 128 << 20, "cpu_quota": 20_000, "cpu_period": 100_000}
            one.call("UpdateContainerResources", container_id=id, linux=asked)
            shown = ("cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu.weight")
            found.append(one.exec(id, *shown).stdout)
            told = one.status(id).resources.linux
            assert (told.memory_limit_in_bytes, told.cpu_shares, told.cpu_quota) == (128 << 20, 512, 20_000)
            one.remove_pod(pod)
        assert [one.splitlines()[:2] for one in found] == [[b"134217728", b"20000 100000"]] * 2
        assert found[0].splitlines()[2] == b"59"  # of the shares of before, by the curve of runc 1.3; Debian's is older


def test_resources_survive_the_daemon() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("kept")
        id = one.create(pod, "c", ["true"])
        one.call("UpdateContainerResources", container_id=id, linux={"cpu_shares": 77}, annotations={"why": "resize"})
        one.call("UpdatePodSandboxResources", pod_sandbox_id=pod[0], resources={"cpu_shares": 99})
        one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        assert one.status(id).resources.linux.cpu_shares == 77
        assert spec_of(one, id)["annotations"]["why"] == "resize"
        info = json.loads(one.call("PodSandboxStatus", pod_sandbox_id=pod[0], verbose=True).info["info"])
        assert info["config"]["linux"]["resources"]["cpu_shares"] == 99
        assert info["resources"] == {"linux": {"cpu_shares": 99}}


def test_resources_of_what_is_not_there(one: Client) -> None:
    assert one.refused("UpdateContainerResources", container_id="nosuch")[0] == "NOT_FOUND"
    assert one.refused("UpdatePodSandboxResources", pod_sandbox_id="nosuch")[0] == "NOT_FOUND"


# Events


class Listener:
    """Someone who is told of what happens."""

    def __init__(self, one: Client) -> None:
        self.told: list[Any] = []
        self._stream = one.runtime.GetContainerEvents(cri.GetEventsRequest())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self._stream:
                self.told.append(event)
        except grpc.RpcError as error:
            self.end = error.code().name

    def stop(self) -> None:
        self._stream.cancel()
        self._thread.join()


KINDS = [
    cri.CONTAINER_CREATED_EVENT,
    cri.CONTAINER_STARTED_EVENT,
    cri.CONTAINER_STOPPED_EVENT,
    cri.CONTAINER_DELETED_EVENT,
]


def test_what_happens_is_told() -> None:
    with crihouse.both() as clients:
        for one in clients:
            listener = Listener(one)
            pod = one.run_pod("told")
            id = one.run_container(pod, "c", ["sh", "-c", "exit 3"])
            one.ended(id)
            one.call("RemoveContainer", container_id=id)
            one.remove_pod(pod)

            def kinds(which: str, told: list[Any] = listener.told) -> list[int]:
                return [event.container_event_type for event in told if event.container_id == which]

            for which in (id, pod[0]):
                peers.wait_until(lambda which=which, kinds=kinds: kinds(which) == KINDS, "all is told")
            stopped = next(event for event in listener.told if event.container_id == id and event.created_at)
            assert stopped.pod_sandbox_status.metadata.name == "told"
            listener.stop()


def test_what_happens_while_nobody_listens_is_kept(one: Client) -> None:
    pod = one.run_pod("unheard")
    listener = Listener(one)
    peers.wait_until(lambda: [event for event in listener.told if event.container_id == pod[0]], "it is told")
    id = one.run_container(pod, "c", ["sleep", "1000"])
    started = peers.wait_until(
        lambda: next(
            (
                event
                for event in listener.told
                if event.container_id == id and event.container_event_type == cri.CONTAINER_STARTED_EVENT
            ),
            None,
        ),
        "it has started",
    )
    assert [status.id for status in started.containers_statuses] == [id]
    assert started.containers_statuses[0].state == cri.CONTAINER_RUNNING
    listener.stop()
    one.remove_pod(pod)


def test_a_listener_does_not_hold_the_daemons_end_up() -> None:
    with crihouse.ours() as one:
        listener = Listener(one)
        peers.wait_until(lambda: one.call("Version"), "it serves")
        one.daemon.stop()
        listener.stop()
        assert listener.end in ("UNAVAILABLE", "CANCELLED")


# Streams of lists


def test_lists_as_streams(one: Client) -> None:
    pod = one.run_pod("listed")
    ids = {one.create(pod, f"c{number}", ["true"]) for number in range(3)}
    other = one.run_pod("other")
    running = one.run_container(pod, "runs", ["sleep", "1000"])

    def stream(method: str, **fields: Any) -> Any:
        service = one.images if method == "StreamImages" else one.runtime
        return list(getattr(service, method)(getattr(cri, f"{method}Request")(**fields), timeout=60))

    pods = [item for answer in stream("StreamPodSandboxes") for item in answer.pod_sandboxes]
    assert pods == list(one.call("ListPodSandbox").items) and {pod[0], other[0]} <= {item.id for item in pods}
    asked = {"filter": {"pod_sandbox_id": pod[0]}}
    found = [item for answer in stream("StreamContainers", **asked) for item in answer.containers]
    assert found == list(one.call("ListContainers", **asked).containers)
    assert {item.id for item in found} == {*ids, running}
    stats = [
        item.attributes.id for answer in stream("StreamContainerStats", **asked) for item in answer.container_stats
    ]
    assert stats == [running]
    images = [item for answer in stream("StreamImages") for item in answer.images]
    assert images == list(one.call("ListImages").images) and images
    assert stream("StreamPodSandboxes", filter={"id": "nosuch"}) == []
    for each in (pod, other):
        one.remove_pod(each)
