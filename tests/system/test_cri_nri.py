# SPDX-License-Identifier: Apache-2.0
"""Plugins of the Node Resource Interface: what they are told of pods and containers, in which order, and what they
change; and what happens when they refuse, hang or die. What critest's specifications of it look at is here, too."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import crihouse
import grpc
import peers
import pytest
from crihouse import Client
from nriplugin import ALL, Plugin, Refusal

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.nri.v1alpha1 import nri_pb2 as nri

pytestmark = pytest.mark.timeout(300)

FOREVER = ["sleep", "1000000"]


@pytest.fixture(scope="module")
def teu() -> Iterator[Client]:
    with crihouse.ours() as client:
        yield client


@pytest.fixture
def client(teu: Client) -> Iterator[Client]:
    yield teu
    teu.clear()


def adjusted(**fields: Any) -> Callable[[Any], Any]:
    """A handler of CreateContainer."""
    return lambda request: nri.CreateContainerResponse(adjust=nri.ContainerAdjustment(**fields))


@contextlib.contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[Any]:
    """A future of something that is under way."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit(work)


class Hold:
    """A handler that is reached, and waits to be let go."""

    def __init__(self) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        self.request: Any = None

    def __call__(self, request: Any) -> None:
        if self.request is None:
            self.request = request
            self.reached.set()
            assert self.release.wait(20)


def fail_once() -> Callable[[Any], None]:
    left = ["induced failure"]

    def handler(request: Any) -> None:
        if left:
            raise Refusal(left.pop())

    return handler


# What they are told


def test_lives_in_their_order(client: Client) -> None:
    with Plugin(client.nri, "00", "log", ALL) as plugin:
        pod = client.run_pod("lives")
        id = client.run_container(pod, "c", FOREVER)
        client.call("UpdateContainerResources", container_id=id, linux={"oom_score_adj": 500})
        client.call("UpdatePodSandboxResources", pod_sandbox_id=pod[0], resources={"cpu_shares": 7})
        client.call("StopContainer", container_id=id, timeout=0)
        client.call("RemoveContainer", container_id=id)
        client.remove_pod(pod)
        assert plugin.told() == [
            "RunPodSandbox lives",
            "CreateContainer c",
            "ValidateContainerAdjustment c",
            "PostCreateContainer c",
            "StartContainer c",
            "PostStartContainer c",
            "UpdateContainer c",
            "PostUpdateContainer c",
            "UpdatePodSandbox lives",
            "PostUpdatePodSandbox lives",
            "StopContainer c",
            "RemoveContainer c",
            "StopPodSandbox lives",
            "RemovePodSandbox lives",
        ]
        ran = plugin.last("RunPodSandbox").pod
        assert (ran.id, ran.namespace, ran.uid) == (pod[0], "default", "uid-lives")
        assert ran.labels["app"] == "lives" and ran.annotations["note"] == "lives"
        assert ran.ips[0].startswith("10.88.") and "network" in [one.type for one in ran.linux.namespaces]
        made, started = plugin.last("CreateContainer").container, plugin.last("PostStartContainer").container
        assert made.id == id and list(made.args) == FOREVER and made.labels["part"] == "c"
        assert made.image.config_digest.startswith("sha256:") and "busybox" in made.image.name
        assert "/etc/hosts" in [one.destination for one in made.mounts] and made.linux.cgroups_path
        assert started.state == nri.CONTAINER_RUNNING and started.pid and started.started_at
        assert plugin.last("StartContainer").container.pid == started.pid
        assert plugin.last("UpdatePodSandbox").linux_resources.cpu.shares.value == 7
        assert plugin.last("StopContainer").container.exit_code == 137


def test_an_end_by_itself_is_told_before_the_removal(client: Client) -> None:
    with Plugin(client.nri, "00", "log") as plugin:
        pod = client.run_pod("fails")
        id = client.run_container(pod, "c", ["sh", "-c", "exit 3"])
        client.ended(id)
        plugin.wait(lambda: "StopContainer" in plugin.methods())
        assert plugin.last("StopContainer").container.exit_code == 3
        client.call("RemoveContainer", container_id=id)
        assert plugin.told()[-2:] == ["StopContainer c", "RemoveContainer c"]


def test_one_that_was_never_started_ends_too(client: Client) -> None:
    with Plugin(client.nri, "00", "log") as plugin:
        pod = client.run_pod("never")
        id = client.create(pod, "c", FOREVER)
        client.call("RemoveContainer", container_id=id)
        assert plugin.told()[1:] == [
            "CreateContainer c",
            "PostCreateContainer c",
            "StopContainer c",
            "RemoveContainer c",
        ]


def test_a_start_that_fails_is_an_end(client: Client) -> None:
    with Plugin(client.nri, "00", "log") as plugin:
        pod = client.run_pod("fails")
        id = client.create(pod, "c", ["/no/such/program"])
        client.refused("StartContainer", container_id=id)
        assert "StopContainer c" in plugin.told()


# Pods while they are asked of


def test_a_pod_is_not_there_while_plugins_are_asked(client: Client) -> None:
    hold = Hold()
    with Plugin(client.nri, "00", "hold", RunPodSandbox=hold), meanwhile(lambda: client.run_pod("held")) as running:
        assert hold.reached.wait(20)
        id = hold.request.pod.id
        assert id not in [one.id for one in client.call("ListPodSandbox").items]
        assert client.refused("PodSandboxStatus", pod_sandbox_id=id)[0] == "NOT_FOUND"
        config = client.container_config("early", FOREVER, peers.IMAGE)
        client.refused("CreateContainer", pod_sandbox_id=id, config=config, sandbox_config=client.pod_config("held"))
        hold.release.set()
        pod = running.result()
        assert pod[0] == id
        assert client.call("PodSandboxStatus", pod_sandbox_id=id).status.state == cri.SANDBOX_READY
        client.run_container(pod, "c", FOREVER)


def test_a_pod_that_is_refused_leaves_nothing(client: Client) -> None:
    with Plugin(client.nri, "00", "no", RunPodSandbox=fail_once()) as plugin:
        config = client.pod_config("refused")
        code, text = client.refused("RunPodSandbox", config=config)
        assert code == "UNKNOWN" and "NRI RunPodSandbox failed" in text and "induced failure" in text
        assert plugin.told() == ["RunPodSandbox refused", "StopPodSandbox refused", "RemovePodSandbox refused"]
        assert not client.call("ListPodSandbox").items and not client.network.addresses()
        pod = client.run_pod("refused")
        assert client.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status.state == cri.SANDBOX_READY


def test_containers_have_ended_when_the_end_of_a_pod_is_told(client: Client) -> None:
    hold = Hold()
    with Plugin(client.nri, "00", "hold", StopPodSandbox=hold) as plugin:
        pod = client.run_pod("ends")
        client.run_container(pod, "c", FOREVER)

        def stop() -> None:
            client.call("StopPodSandbox", pod_sandbox_id=pod[0])

        with meanwhile(stop) as stopping:
            assert hold.reached.wait(20)
            [known] = client.call("ListContainers", filter={"pod_sandbox_id": pod[0]}).containers
            assert known.state == cri.CONTAINER_EXITED
            assert client.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status.id == pod[0]
            assert client.network.addresses()  # its network is still there
            hold.release.set()
            stopping.result()
        client.call("StopPodSandbox", pod_sandbox_id=pod[0])
        assert plugin.methods().count("StopPodSandbox") == 1
        config = client.container_config("late", FOREVER, peers.IMAGE)
        client.refused("CreateContainer", pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])
        assert plugin.methods().count("CreateContainer") == 1


# Containers while they are asked of


def test_a_container_is_not_there_while_plugins_are_asked(client: Client) -> None:
    hold = Hold()
    pod = client.run_pod("held")
    with (
        Plugin(client.nri, "00", "hold", CreateContainer=hold),
        meanwhile(lambda: client.create(pod, "c", FOREVER)) as creating,
    ):
        assert hold.reached.wait(20)
        assert not client.call("ListContainers").containers
        assert client.refused("ContainerStatus", container_id=hold.request.container.id)[0] == "NOT_FOUND"
        hold.release.set()
        assert client.status(creating.result()).state == cri.CONTAINER_CREATED


@pytest.mark.parametrize("method", ["CreateContainer", "StartContainer"])
def test_a_container_that_is_refused(client: Client, method: str) -> None:
    pod = client.run_pod("refused")
    with Plugin(client.nri, "00", "no", **{method: fail_once()}) as plugin:
        with pytest.raises(grpc.RpcError, match="induced failure"):
            client.run_container(pod, "c", FOREVER)
        assert "StopContainer c" in plugin.told() and "PostStartContainer c" not in plugin.told()
        if method == "CreateContainer":
            assert not client.call("ListContainers").containers
            assert "StartContainer c" not in plugin.told()
        id = client.run_container(pod, "again", FOREVER)
        client.call("StopContainer", container_id=id, timeout=0)
        client.call("RemoveContainer", container_id=id)


# Who comes later


def test_a_plugin_that_comes_is_told_of_what_there_is(client: Client) -> None:
    pod = client.run_pod("before")
    running, created = client.run_container(pod, "r", FOREVER), client.create(pod, "c", FOREVER)
    ended = client.run_container(pod, "e", ["true"])
    client.ended(ended)
    with Plugin(client.nri, "10", "late") as plugin:
        known = plugin.last("Synchronize")
        assert [one.id for one in known.pods] == [pod[0]]
        states = {one.id: one.state for one in known.containers}
        assert states == {running: nri.CONTAINER_RUNNING, created: nri.CONTAINER_CREATED}
        assert [one.pid > 0 for one in known.containers if one.id == running] == [True]
        client.run_container(pod, "new", FOREVER)
        assert "CreateContainer new" in plugin.told()


def test_nothing_is_lost_around_the_synchronization(client: Client) -> None:
    pod = client.run_pod("race")
    before = client.run_container(pod, "before", FOREVER)
    hold = Hold()

    def churn(name: str) -> list[str]:
        return [client.run_container(pod, f"{name}-{number}", FOREVER) for number in range(3)]

    with ThreadPoolExecutor() as pool:
        plugin = Plugin(client.nri, "10", "late", Synchronize=hold)
        try:
            assert hold.reached.wait(20)
            during = pool.submit(churn, "during")
            time.sleep(0.5)  # so that they are under way; nothing is asserted of it
            hold.release.set()
            made = {before, *during.result(), *churn("after")}
            synchronized = {one.id for one in hold.request.containers}
            told = {request.container.id for method, request in plugin.calls if method == "CreateContainer"}
            assert synchronized | told == made and not synchronized & told
            started = {request.container.id for method, request in plugin.calls if method == "StartContainer"}
            assert started == told
        finally:
            plugin.close()


# What they change

CHANGES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a variable": ({"env": [{"key": "NEW", "value": "a b"}]}, "echo $NEW", "a b"),
    "a variable less": ({"env": [{"key": "-ASKED"}]}, "echo [$ASKED]", "[]"),
    "another value": ({"env": [{"key": "ASKED", "value": "other"}]}, "echo $ASKED", "other"),
    "arguments": ({"args": ["echo", "instead"]}, "echo asked", "instead"),
    "a mount": (
        {"mounts": [{"destination": "/new", "type": "bind", "source": "/etc", "options": ["bind", "ro"]}]},
        "test -f /new/hostname && touch /new/x 2>/dev/null || echo read only",
        "read only",
    ),
    "a file system": (
        {"mounts": [{"destination": "/new", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}]},
        "stat -f -c %T /new",
        "tmpfs",
    ),
    "a mount less": ({"mounts": [{"destination": "-/asked"}]}, "ls -d /asked 2>/dev/null || echo none", "none"),
    "a device": (
        {
            "linux": {
                "devices": [{"path": "/dev/nri", "type": "c", "major": 1, "minor": 5, "file_mode": {"value": 438}}]
            }
        },
        "head -c 3 /dev/nri | wc -c; stat -c %a /dev/nri",
        "3\n666",
    ),
    "a device less": (
        {"linux": {"devices": [{"path": "-/dev/asked"}]}},
        "ls /dev/asked 2>/dev/null || echo none",
        "none",
    ),
    "a limit": ({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]}, "ulimit -n; ulimit -Hn", "77\n99"),
    "a score": ({"linux": {"oom_score_adj": {"value": 321}}}, "cat /proc/self/oom_score_adj", "321"),
    "a namespace": (
        {"linux": {"namespaces": [{"type": "uts"}]}},
        "hostname nri && hostname || echo not mine",
        "not mine",  # it has no right to; but the namespace is its own, see below
    ),
    "a sysctl": (
        {"linux": {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "99"}}},
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "99",
    ),
    "a system call less": (
        {
            "linux": {
                "seccomp_policy": {
                    "default_action": "SCMP_ACT_ALLOW",
                    "syscalls": [
                        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errno_ret": {"value": 28}}
                    ],
                }
            }
        },
        "mkdir /x 2>&1",
        "mkdir: can't create directory '/x': No space left on device",
    ),
    "a priority": (
        {"linux": {"io_priority": {"class": nri.IOPRIO_CLASS_BE, "priority": 6}}},
        "ionice -p $$",
        "best-effort: prio 6",
    ),
    "a scheduler": (
        {"linux": {"scheduler": {"policy": nri.SCHED_BATCH, "nice": 5}}},
        "cut -d ' ' -f 19,41 /proc/self/stat",
        "5 3",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_they_change(client: Client, name: str) -> None:
    wanted, script, found = CHANGES[name]
    pod = client.run_pod("changed")
    more = {
        "envs": [{"key": "ASKED", "value": b"yes"}],
        "mounts": [{"container_path": "/asked", "host_path": "/etc"}],
        "devices": [{"container_path": "/dev/asked", "host_path": "/dev/null", "permissions": "rw"}],
    }
    with Plugin(client.nri, "10", "change", CreateContainer=adjusted(**wanted)):
        assert client.output(pod, "c", ["sh", "-c", script], **more).strip() == found


def test_annotations_hooks_and_cgroups(client: Client) -> None:
    """What only the specification shows."""
    pod = client.run_pod("changed")
    mark = client.folder / "hook-has-run"
    wanted = {
        "annotations": {"nri": "was here"},
        "hooks": {"create_runtime": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {mark}"]}]},
    }
    with Plugin(client.nri, "10", "change", CreateContainer=adjusted(**wanted)) as plugin:
        id = client.run_container(pod, "c", FOREVER)
        assert plugin.last("PostCreateContainer").container.annotations["nri"] == "was here"
        assert plugin.last("StartContainer").container.hooks.create_runtime[0].path == "/bin/sh"
    assert id in mark.read_text()
    assert '"nri":"was here"' in client.call("ContainerStatus", container_id=id, verbose=True).info["info"].replace(
        ": ", ":"
    )


def test_devices_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(
        '{"cdiVersion": "0.6.0", "kind": "test.example/null", "devices": [{"name": "one", "containerEdits":'
        ' {"env": ["CDI=given"], "deviceNodes": [{"path": "/dev/cdi", "hostPath": "/dev/null"}]}}]}'
    )
    with crihouse.ours(f"  cdi-spec-dirs: [{tmp_path}]\n") as client:
        pod = client.run_pod("cdi")
        devices = [{"name": "test.example/null=one"}]
        with Plugin(client.nri, "10", "cdi", CreateContainer=adjusted(CDI_devices=devices)):
            assert client.output(pod, "c", ["sh", "-c", "echo $CDI; ls /dev/cdi"]) == "given\n/dev/cdi\n"
        with (
            Plugin(client.nri, "10", "cdi", CreateContainer=adjusted(CDI_devices=[{"name": "test.example/null=two"}])),
            pytest.raises(grpc.RpcError, match="test.example/null=two"),
        ):
            client.create(pod, "c", FOREVER)


def test_what_cannot_be_is_refused(client: Client) -> None:
    pod = client.run_pod("bad")
    for wanted, told in (
        ({"linux": {"resources": {"blockio_class": {"value": "gold"}}}}, "gold"),
        ({"linux": {"namespaces": [{"type": "uhm"}]}}, "uhm"),
        ({"rlimits": [{"type": "RLIMIT_X"}]}, "RLIMIT_X"),
    ):
        with Plugin(client.nri, "10", "bad", CreateContainer=adjusted(**wanted)):
            with pytest.raises(grpc.RpcError, match=told):
                client.create(pod, "c", FOREVER)
            assert not client.call("ListContainers").containers
    assert client.output(pod, "c", ["echo", "well"]) == "well\n"


def test_several_change_different_things_in_their_order(client: Client) -> None:
    pod = client.run_pod("several")
    seen: list[list[str]] = []

    def second(request: Any) -> Any:
        seen.append(list(request.container.env))
        return nri.CreateContainerResponse(
            adjust={"env": [{"key": "-FIRST"}, {"key": "FIRST", "value": "second's"}, {"key": "SECOND", "value": "2"}]}
        )

    first = adjusted(env=[{"key": "FIRST", "value": "first's"}])
    with (
        Plugin(client.nri, "20", "second", CreateContainer=second),
        Plugin(client.nri, "10", "first", CreateContainer=first),
    ):
        assert client.output(pod, "c", ["sh", "-c", "echo $FIRST $SECOND"]) == "second's 2\n"
    assert "FIRST=first's" in seen[0]


def test_two_that_want_the_same_are_a_conflict(client: Client) -> None:
    pod = client.run_pod("conflict")
    with (
        Plugin(client.nri, "10", "one", CreateContainer=adjusted(env=[{"key": "X", "value": "1"}])),
        Plugin(client.nri, "20", "two", CreateContainer=adjusted(env=[{"key": "X", "value": "2"}])),
    ):
        with pytest.raises(grpc.RpcError, match='plugins "20-two" and "10-one" both tried to set Env X'):
            client.create(pod, "c", FOREVER)
    assert client.output(pod, "c", ["echo", "well"]) == "well\n"


def test_validators(client: Client) -> None:
    def validate(request: Any) -> Any:
        reject = "BAD" in [one.key for one in request.adjust.env]
        return nri.ValidateContainerAdjustmentResponse(reject=reject, reason="no BAD")

    pod = client.run_pod("valid")
    only = 1 << nri.VALIDATE_CONTAINER_ADJUSTMENT - 1
    with Plugin(client.nri, "90", "check", only, ValidateContainerAdjustment=validate):
        with Plugin(client.nri, "10", "one", CreateContainer=adjusted(env=[{"key": "GOOD", "value": "1"}])):
            assert client.output(pod, "c", ["sh", "-c", "echo $GOOD"]) == "1\n"
        with (
            Plugin(client.nri, "10", "one", CreateContainer=adjusted(env=[{"key": "BAD", "value": "1"}])),
            pytest.raises(grpc.RpcError, match='validator "90-check" rejected container adjustment, reason: no BAD'),
        ):
            client.create(pod, "c", FOREVER)


def test_the_built_in_validator() -> None:
    keys = "  default-validator:\n    enable: true\n    reject-oci-hook-adjustment: true\n    required-plugins: [one]\n"
    with crihouse.ours(nri=keys) as client:
        pod = client.run_pod("valid")
        with pytest.raises(grpc.RpcError, match='"one" not present'):
            client.create(pod, "c", FOREVER)
        with Plugin(client.nri, "10", "one"):
            client.create(pod, "c", FOREVER)
        hooks = {"poststop": [{"path": "/bin/true"}]}
        with (
            Plugin(client.nri, "10", "one", CreateContainer=adjusted(hooks=hooks)),
            pytest.raises(grpc.RpcError, match="10-one.*attempted restricted OCI hook injection"),
        ):
            client.create(pod, "d", FOREVER)


# Changes of what runs


def shares(id: str, value: int) -> Any:
    return nri.ContainerUpdate(container_id=id, linux={"resources": {"cpu": {"shares": {"value": value}}}})


def shares_of(client: Client, id: str) -> int:
    return int(client.status(id).resources.linux.cpu_shares)


def test_an_update_is_changed(client: Client) -> None:
    """Of one that is not started: the lab need not have the controller."""
    pod = client.run_pod("update")
    id, other = client.create(pod, "c", FOREVER), client.create(pod, "d", FOREVER)

    def update(request: Any) -> Any:
        assert request.linux_resources.cpu.shares.value == 20
        return nri.UpdateContainerResponse(update=[shares(id, 40), shares(other, 50)])

    with Plugin(client.nri, "10", "update", UpdateContainer=update) as plugin:
        client.call("UpdateContainerResources", container_id=id, linux={"cpu_shares": 20, "cpu_quota": 9000})
        assert shares_of(client, id) == 40 and client.status(id).resources.linux.cpu_quota == 9000
        assert shares_of(client, other) == 50
        assert plugin.last("PostUpdateContainer").container.linux.resources.cpu.shares.value == 40


def test_what_was_changed_at_the_begin_stays(client: Client) -> None:
    """A resize by kubelet says nothing of what a plugin has set."""
    pod = client.run_pod("update")
    wanted = {"linux": {"resources": {"cpu": {"shares": {"value": 30}}, "memory": {"reservation": {"value": 1 << 20}}}}}
    with Plugin(client.nri, "10", "create", CreateContainer=adjusted(**wanted)) as plugin:
        id = client.create(pod, "c", FOREVER)
        assert shares_of(client, id) == 30
        client.call(
            "UpdateContainerResources", container_id=id, linux={"cpu_quota": 9000, "memory_limit_in_bytes": 1 << 22}
        )
        known = plugin.last("PostUpdateContainer").container.linux.resources
        assert (known.cpu.shares.value, known.cpu.quota.value) == (30, 9000)
        assert (known.memory.reservation.value, known.memory.limit.value) == (1 << 20, 1 << 22)
        again = client.container_config("c", FOREVER, peers.IMAGE)
        answer = client.call("CreateContainer", pod_sandbox_id=pod[0], config=again, sandbox_config=pod[1])
        assert answer.container_id == id


def test_a_plugin_updates_by_itself(client: Client) -> None:
    pod = client.run_pod("update")
    id = client.create(pod, "c", FOREVER)
    with Plugin(client.nri, "10", "self") as plugin:
        bad = nri.ContainerUpdate(container_id=id, linux={"resources": {"blockio_class": {"value": "gold"}}})
        ignored = nri.ContainerUpdate(container_id=id, ignore_failure=True, linux=bad.linux)
        gone = shares("gone", 5)
        request = nri.UpdateContainersRequest(update=[shares(id, 60), bad, ignored, gone])
        answer = nri.UpdateContainersResponse.FromString(plugin.ask("UpdateContainers", request))
        assert answer.failed[:] == [bad] and shares_of(client, id) == 60
        assert "UpdateContainer" not in plugin.methods()


@pytest.mark.parametrize("way", ["by itself", "for another", "at an update"])
def test_evictions(client: Client, way: str) -> None:
    pod = client.run_pod("evict")
    victim = client.run_container(pod, "victim", FOREVER)
    other = client.create(pod, "other", FOREVER)
    evictions = [nri.ContainerEviction(container_id=victim, reason="makes room")]

    def evict(kind: Any) -> Callable[[Any], Any]:
        return lambda request: kind(evict=evictions)

    handlers = {
        "CreateContainer": evict(nri.CreateContainerResponse),
        "UpdateContainer": evict(nri.UpdateContainerResponse),
    }
    with Plugin(client.nri, "10", "evict", **handlers) as plugin:
        if way == "by itself":
            plugin.ask("UpdateContainers", nri.UpdateContainersRequest(evict=evictions))
        elif way == "for another":
            client.create(pod, "new", FOREVER)
        else:
            client.call("UpdateContainerResources", container_id=other, linux={"oom_score_adj": 5})
        status = client.status(victim)
        assert status.state == cri.CONTAINER_EXITED and "makes room" in status.message
        assert "StopContainer victim" in plugin.told()


def test_an_end_changes_others(client: Client) -> None:
    pod = client.run_pod("ends")
    ends, other = client.run_container(pod, "c", FOREVER), client.create(pod, "d", FOREVER)

    def stopped(request: Any) -> Any:
        return nri.StopContainerResponse(update=[shares(other, 70)])

    with Plugin(client.nri, "10", "stop", StopContainer=stopped):
        client.call("StopContainer", container_id=ends, timeout=0)
        peers.wait_until(lambda: shares_of(client, other) == 70, "the other has its shares")


def test_a_plugin_that_comes_changes_what_there_is(client: Client) -> None:
    pod = client.run_pod("sync")
    id = client.create(pod, "c", FOREVER)
    with Plugin(client.nri, "10", "sync", Synchronize=lambda request: nri.SynchronizeResponse(update=[shares(id, 80)])):
        peers.wait_until(lambda: shares_of(client, id) == 80, "it has its shares")


# Plugins that are unwell


@pytest.mark.parametrize("method", ["RunPodSandbox", "CreateContainer", "StopContainer", "RemovePodSandbox"])
def test_one_that_hangs_is_disconnected(client: Client, method: str) -> None:
    release = threading.Event()

    def hang(request: Any) -> None:
        release.wait(60)

    try:
        with Plugin(client.nri, "10", "hangs", **{method: hang}) as bad, Plugin(client.nri, "20", "good") as good:
            begin = time.monotonic()
            pod = client.run_pod("hangs")
            id = client.run_container(pod, "c", FOREVER)
            client.call("StopContainer", container_id=id, timeout=0)
            client.remove_pod(pod)
            assert 1.5 < time.monotonic() - begin < 60
            assert bad.gone.wait(20) and method in bad.methods()
            assert {"RunPodSandbox hangs", "CreateContainer c", "StopContainer c"} <= set(good.told())
            assert "RemovePodSandbox hangs" in good.told() and not good.gone.is_set()
    finally:
        release.set()


def test_one_that_dies_is_forgotten(client: Client) -> None:
    with Plugin(client.nri, "20", "good") as good:
        dies: list[Plugin] = []
        dies.append(Plugin(client.nri, "10", "dies", CreateContainer=lambda request: dies[0]._socket.shutdown(2)))
        dies[0].wait(lambda: "Synchronize" in dies[0].methods())
        pod = client.run_pod("dies")
        client.run_container(pod, "c", FOREVER)
        assert dies[0].gone.wait(20) and "CreateContainer c" in good.told()
        dies[0].close()


def test_bad_registrations(client: Client) -> None:
    for index, name in (("1", "one"), ("xx", "one"), ("10", "")):
        with pytest.raises(Refusal, match="invalid plugin"):
            Plugin(client.nri, index, name)


# The daemon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_plugins_connect_again_after_a_restart(number: signal.Signals) -> None:
    with crihouse.ours() as client:
        pod = client.run_pod("stays")
        id = client.run_container(pod, "c", FOREVER)
        with Plugin(client.nri, "10", "before") as plugin:
            client.daemon.kill(number)
            assert plugin.gone.wait(20) and os.path.exists(client.nri) == (number == signal.SIGKILL)
        crihouse.launch(client.daemon, client.folder)
        client.connect()
        with Plugin(client.nri, "10", "after") as plugin:
            known = plugin.last("Synchronize")
            assert [one.id for one in known.pods] == [pod[0]]
            assert [(one.id, one.state) for one in known.containers] == [(id, nri.CONTAINER_RUNNING)]
            client.remove_pod(pod)
            assert plugin.told() == [
                "StopContainer c",
                "StopPodSandbox stays",
                "RemoveContainer c",
                "RemovePodSandbox stays",
            ]


def install(folder: Path, name: str, configuration: str) -> None:
    """A plugin that the runtime starts."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(
        f"#!/usr/bin/python3\nimport sys\nsys.path[:0] = {sys.path!r}\nimport nriplugin\nnriplugin.main()\n"
    )
    program.chmod(0o755)
    (folder / f"{name}.conf").write_text(configuration)


def test_plugins_that_are_started_here() -> None:
    with crihouse.ours() as client:
        log = client.folder / "log"
        install(client.folder / "nri", "15-started", str(log))
        pod = client.run_pod("before")
        for _ in range(2):  # and again with the next daemon
            log.write_text("")
            client.daemon.kill(signal.SIGTERM)
            crihouse.launch(client.daemon, client.folder)
            client.connect()
            peers.wait_until(lambda: "Synchronize" in log.read_text(), "it is synchronized")
            again = client.run_pod("again")
            client.remove_pod(again)
            peers.wait_until(lambda: "RemovePodSandbox" in log.read_text(), "it has written it down")
            who, *calls = log.read_text().splitlines()
            assert who.startswith("15 started 3 ")
            assert calls == [
                "Configure",
                "Synchronize",
                "RunPodSandbox again",
                "StopPodSandbox again",
                "RemovePodSandbox again",
            ]
        client.daemon.kill(signal.SIGTERM)
        pid = who.split()[-1]
        peers.wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "it has ended with the daemon")
        crihouse.launch(client.daemon, client.folder)
        client.connect()
        client.remove_pod(pod)


def test_the_socket_of_another_runtime_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "nri.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with crihouse.ours(socket=path) as client:
            client.run_container(client.run_pod("plain"), "c", FOREVER)
        with socket.socket(socket.AF_UNIX) as plugin:
            plugin.connect(path)


@pytest.mark.parametrize("key", ["disable", "disable-connections"])
def test_without_a_socket(key: str) -> None:
    with crihouse.ours(nri=f"  {key}: true\n") as client:
        assert not os.path.exists(client.nri)
        client.run_container(client.run_pod("plain"), "c", FOREVER)
