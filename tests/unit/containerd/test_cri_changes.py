# SPDX-License-Identifier: Apache-2.0
"""What changes in pods and containers that are there: their resources, and who is told of what happens to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import make_context

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.services.containers.v1 import containers_pb2
from teu.containerd.core.errors import DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from teu.containerd.cri import containers, events, pods, resize, service
from teu.containerd.cri.events import Events
from teu.containerd.cri.handlers import Handlers
from teu.containerd.cri.nri import Nri
from teu.containerd.cri.records import CONTAINER_EXTENSION, EXITED, RUNNING, Container, Pod, Records
from teu.containerd.cri.resize import Resizes, merged
from teu.containerd.server import rpc
from teu.containerd.state import Context
from teu.linux import cgroup_files


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    made = make_context(tmp_path)
    yield made
    made.close()


def pod_of(context: Context) -> tuple[Records, Pod]:
    records = Records(context.sandboxes, context.containers)
    config = cri.PodSandboxConfig(metadata={"name": "p", "uid": "u", "namespace": "n"})
    pod = Pod("a" * 64, config, complete=True)
    records.create_pod(pod, {})
    records.pods[pod.id] = pod
    return records, pod


def container_of(context: Context, records: Records, pod: Pod) -> Container:
    config = cri.ContainerConfig(metadata={"name": "c"}, linux={"resources": {"cpu_shares": 10, "cpu_quota": 5}})
    container = Container("b" * 64, pod, config)
    record = containers_pb2.Container(id=container.id)
    record.runtime.name = "io.containerd.teu.v2"
    made = {"process": {}, "linux": {"resources": {"devices": ["kept"], "cpu": {"shares": 10}}}}
    record.spec.type_url, record.spec.value = "spec", json.dumps(made).encode()
    record.extensions[CONTAINER_EXTENSION].CopyFrom(container.packed())
    context.containers.create("k8s.io", record)
    records.containers[container.id] = container
    return container


@pytest.mark.parametrize(
    ("known", "asked", "told"),
    [
        ({"cpu_shares": 10, "cpuset_cpus": "0"}, {"cpu_shares": 20}, {"cpu_shares": 20, "cpuset_cpus": "0"}),
        ({"memory_limit_in_bytes": 10}, {}, {"memory_limit_in_bytes": 10}),
        ({"unified": {"a": "1", "b": "2"}}, {"unified": {"b": "3"}}, {"unified": {"a": "1", "b": "3"}}),
        (
            {"hugepage_limits": [{"page_size": "2MB", "limit": 1}, {"page_size": "1GB", "limit": 2}]},
            {"hugepage_limits": [{"page_size": "2MB", "limit": 0}]},
            {"hugepage_limits": [{"page_size": "2MB"}, {"page_size": "1GB", "limit": 2}]},
        ),
    ],
)
def test_resources_are_merged(known: Any, asked: Any, told: Any) -> None:
    first = cri.LinuxContainerResources(**known)
    found = merged(first, cri.LinuxContainerResources(**asked))
    assert found == cri.LinuxContainerResources(**told) and first == cri.LinuxContainerResources(**known)


def test_a_container_that_does_not_run_has_them_for_later(context: Context) -> None:
    records, pod = pod_of(context)
    container = container_of(context, records, pod)
    asked = cri.LinuxContainerResources(cpu_shares=20, memory_limit_in_bytes=1 << 20, oom_score_adj=7)
    asyncio.run(Resizes(context, records, Nri(context.config["nri"])).container(container, asked, {"note": "x"}))
    made = json.loads(context.containers.get("k8s.io", container.id).spec.value)
    assert made["linux"]["resources"] == {
        "devices": ["kept"],
        "cpu": {"shares": 20, "quota": 5},
        "memory": {"limit": 1 << 20},
    }
    assert made["process"]["oomScoreAdj"] == 7 and made["annotations"] == {"note": "x"}
    again = Records(context.sandboxes, context.containers)
    again.load()
    assert again.container(container.id).config.linux.resources == container.config.linux.resources
    assert container.config.linux.resources.cpu_quota == 5 and container.config.linux.resources.oom_score_adj == 7


def test_what_the_runtime_does_not_take_changes_nothing(context: Context) -> None:
    records, pod = pod_of(context)
    container = container_of(context, records, pod)
    container.state = RUNNING  # but there is no task
    before = context.containers.get("k8s.io", container.id).spec.value
    with pytest.raises(NotFound):
        asyncio.run(
            Resizes(context, records, Nri(context.config["nri"])).container(
                container, cri.LinuxContainerResources(cpu_shares=20), {}
            )
        )
    assert container.config.linux.resources.cpu_shares == 10
    assert context.containers.get("k8s.io", container.id).spec.value == before


def test_resources_of_a_pod_are_kept(context: Context) -> None:
    records, pod = pod_of(context)
    request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources={"cpu_shares": 3})
    asyncio.run(Resizes(context, records, Nri(context.config["nri"])).pod(pod.id, request))
    again = Records(context.sandboxes, context.containers)
    again.load()
    linux = again.pod(pod.id).config.linux
    assert linux.resources.cpu_shares == 3 and not linux.HasField("overhead")
    with pytest.raises(NotFound):
        asyncio.run(Resizes(context, records, Nri(context.config["nri"])).pod("none", request))


# What does not answer


def test_the_shim_of_a_pod_is_killed_by_its_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_files, "place", lambda: str(tmp_path))
    pod = Pod("0123456789abcdef", cri.PodSandboxConfig())
    assert pods.kill_scope(pod) is False and not list(tmp_path.iterdir())
    scope = tmp_path / "teu.slice/teu-pod-0123456789ab.scope"
    scope.mkdir(parents=True)
    (scope / "cgroup.kill").write_text("")
    assert pods.kill_scope(pod) is True and (scope / "cgroup.kill").read_text() == "1"


def test_a_shim_has_so_long_to_answer() -> None:
    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await containers.answered(asyncio.Event().wait(), 0.01)
        assert await containers.answered(asyncio.sleep(0, "answer"), 1) == "answer"

    asyncio.run(main())


def test_a_stop_waits_so_long_for_what_is_under_way(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "BUSY_SECONDS", 0.05)
    records, pod = pod_of(context)
    container = container_of(context, records, pod)
    made = containers.Containers(context, records, None, Handlers({}), Nri(context.config["nri"]))  # type: ignore[arg-type]

    async def main() -> None:
        async with container.lock:
            with pytest.raises(DeadlineExceeded):
                await made.stop_one(container, 1)
        await made.stop_one(container, 1)  # it does not run
        await asyncio.wait_for(container.lock.acquire(), 1)

    asyncio.run(main())


def test_a_container_that_ends_before_its_shim_has_answered_is_stopped(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, pod = pod_of(context)
    container = container_of(context, records, pod)
    container.state = RUNNING
    made = containers.Containers(context, records, None, Handlers({}), Nri(context.config["nri"]))  # type: ignore[arg-type]

    async def deleted(*_: Any, **more: Any) -> None:
        container.state = EXITED
        container.ended.set()
        raise Unavailable("ttrpc: closed")

    monkeypatch.setattr(context.tasks, "kill", deleted)
    for timeout in (0, 1):
        container.state = RUNNING
        asyncio.run(made.stop_one(container, timeout))
        assert container.state == EXITED


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_nothing_is_left_of_a_container_whose_pod_is_stopped_meanwhile(
    context: Context, monkeypatch: pytest.MonkeyPatch, removed: bool, fails: bool
) -> None:
    records, pod = pod_of(context)
    pod.namespaces.pid = cri.CONTAINER
    made = containers.Containers(context, records, None, Handlers({}), Nri(context.config["nri"]))  # type: ignore[arg-type]
    volumes = Path(made.state_of(pod.id), "images", "x")

    def stopped(container: Container, pid: str | None) -> None:
        pod.stopped = True
        container.snapshotter = "overlayfs"
        volumes.mkdir(parents=True)
        if removed:
            records.drop_pod(pod)
        if fails:  # as its namespaces are gone
            raise FailedPrecondition("gone")
        Path(made.state_of(container.id)).mkdir()
        record = containers_pb2.Container(id=container.id)
        record.runtime.name = "io.containerd.teu.v2"
        record.extensions[CONTAINER_EXTENSION].CopyFrom(container.packed())
        context.containers.create("k8s.io", record)

    monkeypatch.setattr(made, "_make_alone", stopped)
    config = cri.ContainerConfig(metadata={"name": "late"})
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    with pytest.raises(FailedPrecondition):
        asyncio.run(made.create(pod, config))
    assert not records.containers and not records.names
    assert not list(context.containers.find("k8s.io"))
    assert [one.name for one in Path(made.state_of("x")).parent.iterdir()] == ([] if removed else [pod.id])


def test_a_change_waits_so_long_for_its_shim(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "ANSWER_SECONDS", 0.05)
    records, pod = pod_of(context)
    container = container_of(context, records, pod)
    container.state = RUNNING

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(context.tasks, "update", hang)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(
            Resizes(context, records, Nri(context.config["nri"])).container(
                container, cri.LinuxContainerResources(cpu_shares=20), {}
            )
        )
    assert container.config.linux.resources.cpu_shares == 10 and not container.lock.locked()


# Events


async def some(listening: AsyncIterator[events.Event], count: int) -> list[tuple[int, str]]:
    found = []
    for _ in range(count):
        event = await asyncio.wait_for(anext(listening), 5)
        found.append((event.kind, event.id))
    return found


def test_what_happens_is_told_to_all_and_kept_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod("a", cri.PodSandboxConfig())
    container = Container("b", pod, cri.ContainerConfig())

    async def main() -> None:
        known = Events()
        known.tell(0, pod, None)
        known.tell(1, pod, container)
        first = known.listen()
        assert await some(first, 2) == [(0, "a"), (1, "b")]
        second = known.listen()
        waiting = asyncio.create_task(some(second, 1))
        await asyncio.sleep(0.05)
        known.tell(2, pod, None)
        assert await some(first, 1) == await waiting == [(2, "a")]
        await first.aclose()  # type: ignore[attr-defined]
        await second.aclose()  # type: ignore[attr-defined]
        monkeypatch.setattr(events, "KEPT_SECONDS", -1.0)
        known.tell(3, pod, None)
        monkeypatch.setattr(events, "KEPT_SECONDS", 300.0)
        known.tell(0, pod, container)
        assert await some(known.listen(), 1) == [(0, "b")]

    asyncio.run(main())


def test_who_falls_behind_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BEHIND_MAX", 3)
    pod = Pod("a", cri.PodSandboxConfig())

    async def main() -> None:
        known = Events()
        known.tell(0, pod, None)
        listening = known.listen()
        await some(listening, 1)
        for _ in range(5):
            known.tell(1, pod, None)
        with pytest.raises(ResourceExhausted):
            await some(listening, 9)

    asyncio.run(main())


def test_lists_come_in_pieces() -> None:
    assert [len(one) for one in service._pieces(list(range(250)))] == [100, 100, 50]
    assert list(service._pieces([])) == []


def test_lists_are_ready_bytes() -> None:
    metadata: Any = {"name": "n" * 200, "uid": "u"}
    listed = []
    for number in range(3):
        pod = Pod(f"pod{number}", cri.PodSandboxConfig(metadata=metadata, labels={"a": "b"}), created=5)
        container = Container(f"c{number}", pod, cri.ContainerConfig(image={"image": "i"}), image="sha256:x", created=6)
        listed.append((pod, container))
    for ready in (True, False, False):
        data = b"".join(service._listed_pod(pod, ready) for pod, _ in listed)
        wanted = [service._pod_message(pod, ready) for pod, _ in listed]
        assert list(cri.ListPodSandboxResponse.FromString(data).items) == wanted
        assert list(cri.StreamPodSandboxesResponse.FromString(data).pod_sandboxes) == wanted
    for state in (0, RUNNING, RUNNING):
        for _, container in listed:
            container.state = state
        data = b"".join(service._listed_container(container) for _, container in listed)
        wanted = [service._container_message(container) for _, container in listed]
        assert list(cri.ListContainersResponse.FromString(data).containers) == wanted
        assert list(cri.StreamContainersResponse.FromString(data).containers) == wanted


def test_a_status_is_the_same_until_something_changes(context: Context) -> None:
    served = service.Cri(context)
    runtime, records = served._runtime, served._asked[0]
    _, pod = pod_of(context)
    records.pods[pod.id] = pod
    container = container_of(context, records, pod)
    container.image = f"sha256:{'c' * 64}"
    call: Any = None
    resizes = Resizes(context, records, Nri(context.config["nri"]))

    async def status() -> tuple[bytes, Any]:
        answer = await runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id), call)
        return answer, cri.ContainerStatusResponse.FromString(answer).status

    async def pod_status() -> tuple[bytes, Any]:
        answer = await runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id), call)
        return answer, cri.PodSandboxStatusResponse.FromString(answer).status

    async def ask() -> None:
        before, told = await status()
        assert told.resources.linux.cpu_shares == 10 and (await status())[0] is before
        await resizes.change(container, cri.LinuxContainerResources(cpu_shares=20), {}, {})
        before, told = await status()
        assert told.resources.linux.cpu_shares == 20 and (await status())[0] is before
        container.message = "evicted"
        assert (await status())[1].message == "evicted"
        container.exit_code, container.state = 3, EXITED
        assert (await status())[1].exit_code == 3
        before, ended = await pod_status()
        assert ended.state == cri.SANDBOX_NOTREADY and (await pod_status())[0] is before
        pod.addresses = ["10.0.0.1"]
        pod.stopped = True
        assert (await pod_status())[1].network.ip == ""

    asyncio.run(ask())


def test_an_answer_may_be_bytes() -> None:
    encode = rpc._encoder(cri.VersionResponse)
    assert encode(cri.VersionResponse(version="1")) == encode(b"\n\x011") == b"\n\x011"
