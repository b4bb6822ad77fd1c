# SPDX-License-Identifier: Apache-2.0
"""Pods and containers by the CRI, answer by answer beside Debian's containerd; and what must hold of Teu's alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crihouse
import grpc
import peers
import pytest
from crihouse import Client
from google.protobuf import json_format
from taskhouse import TeuContainerd

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.cri.v1 import cri_pb2_grpc
from teu.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc

pytestmark = [pytest.mark.needs("containerd", "ctr", "systemd"), pytest.mark.timeout(300)]

HOST_NETWORK = {"linux": {"security_context": {"namespace_options": {"network": cri.NODE}}}}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Client, Client]]:
    with crihouse.both() as clients:
        yield clients


@pytest.fixture(scope="module")
def pods(pair: tuple[Client, Client]) -> Iterator[list[tuple[Client, Any]]]:
    """A pod with a network of its own in each."""
    made = [(client, client.run_pod("shared")) for client in pair]
    yield made
    for client, pod in made:
        client.remove_pod(pod)


def alike(message: Any, *without: str) -> Any:
    """A message as JSON, in which times and random names are only there or not."""
    found = json_format.MessageToDict(message, preserving_proto_field_name=True)

    def same(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: same(one, name) for name, one in sorted(value.items()) if name not in without}
        if isinstance(value, list):
            return [same(one, key) for one in value]
        if key in ("created_at", "started_at", "finished_at", "timestamp", "id", "pod_sandbox_id", "ip", "log_path"):
            return bool(value) and value != "0"
        return value

    return same(found)


def compared(clients: tuple[Client, Client], ask: Callable[[Client], Any]) -> Any:
    """The answer that both give."""
    ours, theirs = (ask(client) for client in clients)
    assert ours == theirs
    return ours


# The runtime


def test_version_and_configuration(pair: tuple[Client, Client]) -> None:
    for client in pair:
        version = client.call("Version")
        assert version.runtime_name == "containerd" and version.runtime_version and version.runtime_api_version == "v1"
        assert version.version == "0.1.0"
    ours = pair[0]
    assert ours.call("RuntimeConfig").linux.cgroup_driver == cri.SYSTEMD
    ours.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": "10.0.0.0/16"}})
    compared(pair, lambda one: [alike(condition, "message") for condition in one.call("Status").status.conditions[:2]])


def test_a_network_that_comes_and_goes_is_noticed() -> None:
    with crihouse.ours() as one:

        def ready() -> Any:
            conditions = one.call("Status").status.conditions
            return next(condition for condition in conditions if condition.type == "NetworkReady")

        assert ready().status
        file = one.folder / "net.d/10-test.conflist"
        text = file.read_text()
        pod = one.run_pod("p")
        file.unlink()
        assert not ready().status and ready().reason == "NetworkPluginNotReady"
        assert "cni plugin not initialized" in one.refused("RunPodSandbox", config=one.pod_config("q"))[1]
        one.remove_pod(pod)  # with the configuration that had attached it
        assert one.network.addresses() == []
        file.write_text("{")
        assert not ready().status
        file.write_text(text)
        assert ready().status


TEMPLATE = """{
  "name": "teu-made", "cniVersion": "1.0.0",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni-made", "isGateway": true,
      "ipam": {
        "type": "host-local", "dataDir": "/run/cni-made",
        "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
        "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
      }
    }
  ]
}
"""


def test_a_network_is_made_of_a_template(tmp_path: Path) -> None:
    tmp_path.joinpath("template").write_text(TEMPLATE)
    with crihouse.both(template=str(tmp_path / "template")) as (one, theirs):
        own = {one: one.folder / "net.d", theirs: theirs.folder.parent / "made.d"}
        made = {client: folder / "10-containerd-net.conflist" for client, folder in own.items()}

        def told(ranges: str) -> None:
            for client in own:
                client.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": ranges}})

        told("10.87.1.0/24")
        assert not made[one].exists()  # it has a network
        made[theirs].unlink()
        (one.folder / "net.d/10-test.conflist").unlink()
        told("")
        assert not made[one].exists() and not made[theirs].exists()
        told("10.87.0.0/24,fd00:87::/64")
        assert made[one].read_text() == made[theirs].read_text()
        pod = one.run_pod("made")
        status = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status
        assert status.network.ip.startswith("10.87.0.") and status.network.additional_ips[0].ip.startswith("fd00:87:")
        one.remove_pod(pod)
        told("10.86.0.0/24")  # it has one now
        assert "10.87.0.0" in made[one].read_text()
    peers.run("ip", "link", "delete", "cni-made", code=None)
    shutil.rmtree("/run/cni-made")  # the addresses of host-local


def test_off_by_default() -> None:
    daemon = TeuContainerd()
    try:
        daemon.launch("wake: []\n")
        with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                cri_pb2_grpc.RuntimeServiceStub(channel).Version(cri.VersionRequest(), timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    finally:
        daemon.stop()
        daemon.remove()


# Pods


def test_life_of_a_pod(pair: tuple[Client, Client]) -> None:
    def life(one: Client) -> Any:
        told = []
        pod = one.run_pod("life", dns_config={"servers": ["10.9.9.9"], "searches": ["a.b"], "options": ["ndots:5"]})
        first = one.call("PodSandboxStatus", pod_sandbox_id=pod[0])
        assert first.status.network.ip.startswith("10.88.")
        told.append(alike(first.status))
        for filtered in (
            {},
            {"id": pod[0]},
            {"id": pod[0][:13]},
            {"id": "nosuch"},
            {"state": {"state": cri.SANDBOX_READY}},
            {"state": {"state": cri.SANDBOX_NOTREADY}},
            {"label_selector": {"app": "life"}},
            {"label_selector": {"app": "other"}},
        ):
            found = one.call("ListPodSandbox", filter=filtered).items
            told.append([alike(item) for item in found if item.metadata.name == "life"])
        one.call("StopPodSandbox", pod_sandbox_id=pod[0])
        one.call("StopPodSandbox", pod_sandbox_id=pod[0])
        told.append(alike(one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status, "network"))
        one.call("RemovePodSandbox", pod_sandbox_id=pod[0])
        one.call("RemovePodSandbox", pod_sandbox_id=pod[0])
        one.call("StopPodSandbox", pod_sandbox_id=pod[0])
        told.append(one.refused("PodSandboxStatus", pod_sandbox_id=pod[0])[0])
        return told

    assert compared(pair, life)[-1] == "NOT_FOUND"
    assert [one.network.addresses() for one in pair] == [[], []]


def test_equal_requests_are_one() -> None:
    with crihouse.ours() as one:
        config = one.pod_config("joined")
        Path(config.log_directory).mkdir()
        found: list[str] = []

        def run() -> None:
            found.append(one.call("RunPodSandbox", config=config).pod_sandbox_id)

        threads = [threading.Thread(target=run) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run()  # whose answer was lost
        assert len(found) == 6 and len(set(found)) == 1
        assert len(one.network.addresses()) == 1
        other = one.pod_config("joined", labels={"app": "another"})
        assert one.refused("RunPodSandbox", config=other)[0] == "ALREADY_EXISTS"
        made = one.container_config("c", ["sleep", "1000"], peers.IMAGE)
        ids = {one.call("CreateContainer", pod_sandbox_id=found[0], config=made).container_id for _ in range(2)}
        assert len(ids) == 1


def test_a_client_that_leaves_finds_its_pod_again() -> None:
    with crihouse.ours() as one:
        config = one.pod_config("patient")
        with pytest.raises(grpc.RpcError) as caught:
            one.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=0.01)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        pod = one.call("RunPodSandbox", config=config).pod_sandbox_id
        assert [item.id for item in one.call("ListPodSandbox").items] == [pod]


def test_a_pod_that_fails_leaves_nothing() -> None:
    with crihouse.ours() as one:
        before = set(os.listdir("/run/netns")) if Path("/run/netns").is_dir() else set()
        config = one.pod_config("bad", linux={"sysctls": {"net.ipv4.ip_forward": "nonsense"}})
        assert one.refused("RunPodSandbox", config=config)[0] == "INVALID_ARGUMENT"
        assert not one.call("ListPodSandbox").items
        assert set(os.listdir("/run/netns")) == before
        assert one.network.addresses() == []
        assert one.daemon("-n", "k8s.io", "containers", "ls", "-q") == ""
        peers.wait_until(lambda: not list((one.daemon.run / "state/cri").glob("*")), "nothing is left")


# Containers


def test_life_of_a_container(pods: list[tuple[Client, Any]]) -> None:
    def life(one: Client, pod: Any) -> Any:
        told = []
        id = one.create(pod, "life", ["sh", "-c", "echo out; echo err >&2; sleep 1000"], stop_signal=0)
        told.append(alike(one.status(id), "user", "stop_signal", "resources", "image_id", "image_ref"))
        one.call("StartContainer", container_id=id)
        status = one.status(id)
        assert Path(status.log_path).exists()
        told.append(alike(status, "user", "stop_signal", "resources", "image_id", "image_ref"))
        told.append(one.refused("StartContainer", container_id=id)[0] != "OK")
        for filtered in (
            {"id": id[:11]},
            {"state": {"state": cri.CONTAINER_RUNNING}},
            {"state": {"state": cri.CONTAINER_EXITED}},
            {"pod_sandbox_id": pod[0][:10]},
            {"pod_sandbox_id": pod[0]},
            {"label_selector": {"part": "life"}},
            {"label_selector": {"part": "x"}},
        ):
            found = one.call("ListContainers", filter=filtered).containers
            told.append([alike(item, "image_id", "image_ref") for item in found])
        done = one.exec(id, "sh", "-c", "echo a; echo b >&2; exit 3")
        told.append((done.stdout, done.stderr, done.exit_code))
        peers.wait_until(lambda: len(one.log(pod, "life")) == 2, "both lines")
        told.append(sorted(one.log(pod, "life")))
        one.call("StopContainer", container_id=id, timeout=1)
        one.call("StopContainer", container_id=id, timeout=1)
        told.append(alike(one.status(id), "user", "stop_signal", "resources", "image_id", "image_ref"))
        told.append(one.refused("ExecSync", container_id=id, cmd=["true"])[0] != "OK")
        one.call("RemoveContainer", container_id=id)
        one.call("RemoveContainer", container_id=id)
        told.append(one.refused("ContainerStatus", container_id=id)[0])
        return told

    ours, theirs = (life(one, pod) for one, pod in pods)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        (["true"], 0, "Completed"),
        (["sh", "-c", "exit 7"], 7, "Error"),
        (["sh", "-c", "exit 137"], 137, "Error"),
    ],
)
def test_how_a_container_ends(pods: list[tuple[Client, Any]], command: list[str], code: int, reason: str) -> None:
    for one, pod in pods:
        id = one.run_container(pod, "ends", command)
        status = one.ended(id)
        assert (status.exit_code, status.reason) == (code, reason)
        assert status.created_at <= status.finished_at
        if one is pods[0][0]:  # containerd looks at the clock behind the start: what ends at once ends before it there
            assert status.created_at <= status.started_at <= status.finished_at
        one.call("RemoveContainer", container_id=id)


def test_a_program_that_is_not_there(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        id = one.create(pod, "nosuch", ["/no/such/program"])
        assert "no such file or directory" in one.refused("StartContainer", container_id=id)[1]
        status = one.status(id)
        assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 128, "StartError")
        assert "no such file or directory" in status.message
        one.call("RemoveContainer", container_id=id)


LOOK = (
    "id; cat /proc/self/status | grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)'; hostname; echo $HOSTNAME; pwd; "
    "test -w / && echo writable"
)
SECURITY: dict[str, Any] = {
    "default": {},
    "user": {"run_as_user": {"value": 1234}},
    "user and group": {"run_as_user": {"value": 1234}, "run_as_group": {"value": 77}},
    "user by name": {"run_as_username": "nobody"},
    "groups": {"run_as_user": {"value": 65534}, "supplemental_groups": [5, 1000]},
    "privileges": {"no_new_privs": True},
    "read-only": {"readonly_rootfs": True},
    "capabilities": {"capabilities": {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["KILL", "CHOWN"]}},
    "no capabilities": {"capabilities": {"drop_capabilities": ["ALL"]}},
    "one capability": {"capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]}},
    "seccomp": {"seccomp": {"profile_type": cri.SecurityProfile.RuntimeDefault}},
    "unconfined": {"seccomp": {"profile_type": cri.SecurityProfile.Unconfined}},
    "masked": {"masked_paths": ["/proc/uptime"], "readonly_paths": ["/proc/sys"]},
}


@pytest.mark.parametrize("name", SECURITY)
def test_what_a_process_is_inside(pods: list[tuple[Client, Any]], name: str) -> None:
    def inside(one: Client, pod: Any) -> str:
        more = {"linux": {"security_context": SECURITY[name]}, "working_dir": "/usr"}
        return one.output(pod, "look", ["sh", "-c", LOOK], **more)

    ours, theirs = (inside(one, pod) for one, pod in pods)
    assert ours == theirs


def test_mounts_and_devices(pods: list[tuple[Client, Any]]) -> None:
    def inside(one: Client, pod: Any) -> str:
        source = one.folder / "source"
        source.mkdir(exist_ok=True)
        (source / "file").write_text("text\n")
        mounts = [
            {"container_path": "/data", "host_path": str(source)},
            {"container_path": "/read", "host_path": str(source), "readonly": True},
            {"container_path": "/etc/hosts", "host_path": str(source / "file")},
        ]
        devices = [{"container_path": "/dev/mine", "host_path": "/dev/null", "permissions": "rw"}]
        look = (
            "cat /data/file /read/file /etc/hosts; touch /data/x && echo wrote; touch /read/y; "
            "echo x > /dev/mine && echo taken; cat /etc/hostname; df -P /dev/shm | tail -n 1 | cut -d' ' -f1; "
            "cut -d' ' -f5 /proc/self/mountinfo | sort"
        )
        return one.output(pod, "mounts", ["sh", "-c", look], mounts=mounts, devices=devices)

    ours, theirs = (inside(one, pod) for one, pod in pods)
    assert ours == theirs


def test_options_of_a_mount() -> None:
    with crihouse.ours() as one:
        source = one.folder / "source"
        source.mkdir()
        (source / "run").write_text("#!/bin/sh\necho ran\n")
        (source / "run").chmod(0o755)
        look = ["sh", "-c", "/data/run; grep -o ' /data [^ ]*' /proc/self/mountinfo"]
        pod = one.run_pod("options")
        plain = {"container_path": "/data", "host_path": str(source)}
        assert one.output(pod, "plain", look, mounts=[plain]).startswith("ran\n")
        told = one.output(pod, "noexec", look, mounts=[{**plain, "mount_options": ["noexec", "nosuid", "nodev"]}])
        assert "ran" not in told and "nosuid,nodev,noexec" in told


def test_devices_of_cdi() -> None:
    with tempfile.TemporaryDirectory() as place:
        with crihouse.ours(f"  cdi-spec-dirs: [{place}]\n") as one:
            edits = {"env": ["THING=yes"], "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/null"}]}
            devices = [{"name": "one", "containerEdits": edits}]
            document = {"cdiVersion": "0.6.0", "kind": "teu.example/thing", "devices": devices}
            Path(place, "thing.json").write_text(json.dumps(document))
            pod = one.run_pod("things")
            look = ["sh", "-c", "echo $THING; echo x > /dev/thing && test -c /dev/thing && echo taken"]
            for more in (
                {"CDI_devices": [{"name": "teu.example/thing=one"}]},
                {"annotations": {"cdi.k8s.io/plugin": "teu.example/thing=one"}},
            ):
                assert one.output(pod, "c", look, **more) == "yes\ntaken\n"


def test_devices_of_whom_a_container_runs_as() -> None:
    with crihouse.ours("  device-ownership: true\n") as one:
        pod = one.run_pod("owned")
        device = {"host_path": "/dev/null", "container_path": "/dev/mine", "permissions": "rw"}
        more = {"linux": {"security_context": {"run_as_user": {"value": 1234}, "run_as_group": {"value": 77}}}}
        look = ["stat", "-c", "%u %g", "/dev/mine"]
        assert one.output(pod, "c", look, devices=[device], **more) == "1234 77\n"


@pytest.mark.parametrize(
    "script",
    [
        "printf 'a\\nb\\n'; printf c",
        "printf 'no end'",
        "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short",
        "head -c 16384 /dev/zero | tr '\\0' x; echo",
        "echo; echo; printf ' spaces  \\n'",
    ],
)
def test_logs_are_containerds(pods: list[tuple[Client, Any]], script: str) -> None:
    def lines(one: Client, pod: Any) -> Any:
        id = one.run_container(pod, "logs", ["sh", "-c", script])
        one.ended(id)
        found = peers.wait_until(lambda: one.log(pod, "logs") or None, "a log")
        one.call("RemoveContainer", container_id=id)
        (Path(pod[1].log_directory) / "logs.log").unlink()
        return [(stream, tag, len(text), text[:20]) for stream, tag, text in found]

    ours, theirs = (lines(one, pod) for one, pod in pods)
    assert ours == theirs


def test_a_terminal_is_logged(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        id = one.run_container(pod, "tty", ["sh", "-c", "test -t 1 && echo terminal"], tty=True, stdin=True)
        one.ended(id)
        assert [(stream, text.strip()) for stream, _, text in one.log(pod, "tty")] == [("stdout", "terminal")]
        one.call("RemoveContainer", container_id=id)


def test_commands_that_are_waited_for(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        id = one.run_container(pod, "execs", ["sleep", "1000"])
        assert one.refused("ExecSync", container_id=id, cmd=["sleep", "100"], timeout=1)[0] == "DEADLINE_EXCEEDED"
        assert b"sleep 100\n" not in one.exec(id, "ps", "-o", "args").stdout
        big = one.exec(id, "sh", "-c", "head -c 3000000 /dev/zero")
        assert len(big.stdout) == 3000000 and big.exit_code == 0
        assert one.exec(id, "sh", "-c", "kill -9 $$").exit_code == 137
        assert one.refused("ExecSync", container_id=id, cmd=["/no/such"])[0] != "OK"
        assert one.refused("ExecSync", container_id="nosuch", cmd=["true"])[0] == "NOT_FOUND"
        one.call("RemoveContainer", container_id=id)


BAD: dict[str, Any] = {
    "no metadata": ("RunPodSandbox", {"config": {}}),
    "unknown handler": ("RunPodSandbox", {"config": {"metadata": {"name": "x"}}, "runtime_handler": "nosuch"}),
    "unknown pod": ("CreateContainer", {"pod_sandbox_id": "nosuch", "config": {"metadata": {"name": "x"}}}),
    "unknown container": ("StartContainer", {"container_id": "nosuch"}),
    "unknown status": ("ContainerStatus", {"container_id": "nosuch"}),
    "unknown pod's status": ("PodSandboxStatus", {"pod_sandbox_id": "nosuch"}),
    "bad image": ("PullImage", {"image": {"image": "UPPER CASE"}}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused(pair: tuple[Client, Client], name: str) -> None:
    method, fields = BAD[name]
    codes = [client.refused(method, **fields)[0] for client in pair]
    # containerd answers UNKNOWN where nobody has thought of a code
    assert codes[0] == codes[1] or codes[1] == "UNKNOWN", codes


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"CDI_devices": [{"name": "a/b=c"}]}, "unresolvable CDI devices"),
        ({"mounts": [{"container_path": "/x", "image": {"image": "y"}, "readonly": True}]}, "ImageVolumeMountFailed"),
        ({"mounts": [{"container_path": "x", "host_path": "/tmp"}]}, "must be absolute"),
        ({"linux": {"security_context": {"run_as_group": {"value": 1}}}}, "without user"),
        ({"linux": {"security_context": {"run_as_username": "stranger"}}}, "stranger"),
        ({"linux": {"security_context": {"privileged": True}}}, "no privileged container allowed"),
        ({"linux": {"security_context": {"capabilities": {"add_capabilities": ["NONE_SUCH"]}}}}, "unknown capability"),
        ({"image": {"image": "nosuch:image"}}, "failed to resolve image"),
        ({"devices": [{"host_path": "/etc/passwd", "permissions": "r"}]}, "not a device"),
    ],
)
def test_containers_that_cannot_be(pods: list[tuple[Client, Any]], config: Any, told: str) -> None:
    one, pod = pods[0]
    wanted = one.container_config("bad", ["true"], peers.IMAGE)
    wanted.MergeFrom(cri.ContainerConfig(**config))
    assert told in one.refused("CreateContainer", pod_sandbox_id=pod[0], config=wanted)[1]
    assert not [item for item in one.call("ListContainers").containers if item.metadata.name == "bad"]
    # its name is free again
    one.call("RemoveContainer", container_id=one.create(pod, "bad", ["true"]))


# Namespaces


def test_host_namespaces(pair: tuple[Client, Client]) -> None:
    def inside(one: Client) -> list[bool]:
        options = {"network": cri.NODE, "pid": cri.NODE, "ipc": cri.NODE}
        config = one.pod_config("host")
        config.hostname = ""
        config.linux.security_context.namespace_options.CopyFrom(cri.NamespaceOption(**options))
        Path(config.log_directory).mkdir(parents=True, exist_ok=True)
        pod = (one.call("RunPodSandbox", config=config).pod_sandbox_id, config)
        look = ["sh", "-c", "for n in net pid ipc uts; do readlink /proc/self/ns/$n; done"]
        more = {"linux": {"security_context": {"namespace_options": options}}}
        found = one.output(pod, "look", look, **more).split()
        one.remove_pod(pod)
        return [found[number] == os.readlink(f"/proc/self/ns/{n}") for number, n in enumerate(("net", "pid", "ipc"))]

    assert compared(pair, inside) == [True, True, True]


@pytest.mark.needs("catatonit")
def test_sysctls_of_a_pod(pair: tuple[Client, Client]) -> None:
    # The namespace lab has /proc/sys read only, as hosts that are containers themselves.
    wanted = {"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.core.somaxconn": "77"}
    names = [f"/proc/sys/{name.replace('.', '/')}" for name in wanted]

    def told(client: Client) -> list[str]:
        pod = client.run_pod("sysctls", linux={"sysctls": wanted})
        found = client.output(pod, "c", ["cat", *names]).split()
        client.remove_pod(pod)
        return found

    assert compared(pair, told) == ["1", "100", "77"]


def test_containers_that_see_each_other(pair: tuple[Client, Client]) -> None:
    for one in pair:
        options = {"pid": cri.POD}
        config = one.pod_config("together")
        config.linux.security_context.namespace_options.CopyFrom(cri.NamespaceOption(**options))
        Path(config.log_directory).mkdir(parents=True, exist_ok=True)
        pod = (one.call("RunPodSandbox", config=config).pod_sandbox_id, config)
        ids = []
        for name in ("a", "b"):
            made = one.container_config(name, ["sleep", "1001"], peers.IMAGE)
            made.linux.security_context.namespace_options.CopyFrom(cri.NamespaceOption(**options))
            # containerd 1.7 falls over without the pod's configuration
            answer = one.call("CreateContainer", pod_sandbox_id=pod[0], config=made, sandbox_config=config)
            ids.append(answer.container_id)
            one.call("StartContainer", container_id=ids[-1])
        seen = one.exec(ids[0], "ps", "-o", "pid,args").stdout.decode()
        assert seen.count("sleep 1001") == 2
        assert (
            one.exec(ids[0], "readlink", "/proc/1/ns/ipc").stdout
            == one.exec(ids[1], "readlink", "/proc/self/ns/ipc").stdout
        )
        one.call("StopContainer", container_id=ids[0], timeout=0)
        assert one.exec(ids[1], "echo", "lives").stdout == b"lives\n"
        one.remove_pod(pod)


def test_a_container_joins_anothers_processes(pods: list[tuple[Client, Any]]) -> None:
    for one, pod in pods:
        id = one.run_container(pod, "target", ["sleep", "1001"])
        made = one.container_config("debug", ["ps", "-o", "args"], peers.IMAGE)
        made.linux.security_context.namespace_options.CopyFrom(cri.NamespaceOption(pid=cri.TARGET, target_id=id))
        debug = one.call("CreateContainer", pod_sandbox_id=pod[0], config=made, sandbox_config=pod[1]).container_id
        one.call("StartContainer", container_id=debug)
        one.ended(debug)
        assert any("sleep 1001" in text for _, _, text in one.log(pod, "debug"))
        assert one.status(id).state == cri.CONTAINER_RUNNING
        for each in (debug, id):
            one.call("RemoveContainer", container_id=each)


def test_ports_reach_the_pod() -> None:
    with crihouse.ours() as one:
        port = peers.free_port()
        pod = one.run_pod("web", port_mappings=[{"container_port": 80, "host_port": port, "host_ip": "127.0.0.1"}])
        kept = json.loads(next(Path("/var/lib/cni/results").glob(f"*{pod[0]}*")).read_text())
        assert kept["capabilityArgs"]["portMappings"][0]["hostPort"] == port
        one.run_container(pod, "web", ["sh", "-c", "while true; do echo hello | nc -l -p 80; done"])
        address = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status.network.ip
        peers.wait_until(
            lambda: (
                "hello"
                in subprocess.run(["nc", "-w", "2", address, "80"], capture_output=True, text=True, input="").stdout
            ),
            "the pod answers",
        )
        one.remove_pod(pod)
        assert not list(Path("/var/lib/cni/results").glob(f"*{pod[0]}*"))


# Images


def test_images_from_a_registry(pair: tuple[Client, Client], tmp_path: Path) -> None:
    with peers.registry() as registry:
        name = f"{registry.address}/group/busybox:1"
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false"]
        archive = peers.busybox_archive(tmp_path / "a.tar", "other", {"User": "nobody", "Labels": {"other": "yes"}})
        peers.run(*copy, f"oci-archive:{archive}", f"docker://{name}")

        def life(one: Client) -> Any:
            told: list[Any] = []
            id = one.pull(name)
            told.append((id, one.pull(name)))
            for ask in (name, id, id.removeprefix("sha256:")[:14], f"{registry.address}/group/busybox"):
                found = one.call("ImageStatus", image={"image": ask})
                told.append(alike(found.image) if found.HasField("image") else None)
            listed = [image for image in one.call("ListImages").images if "group" in "".join(image.repo_tags)]
            told.append([alike(image) for image in listed])
            assert listed[0].id == id
            digest = listed[0].repo_digests[0]
            told.append(one.pull(digest) == id)
            pod = one.run_pod("user")
            told.append(one.output(pod, "by-id", ["echo", "ran"], id))
            one.remove_pod(pod)
            told.append(one.refused("PullImage", image={"image": f"{registry.address}/no/such:1"})[0])
            one.call("RemoveImage", image={"image": id})
            one.call("RemoveImage", image={"image": name})
            told.append(one.call("ImageStatus", image={"image": name}).HasField("image"))
            usage = one.call("ImageFsInfo").image_filesystems[0]
            assert usage.fs_id.mountpoint.startswith("/") and usage.timestamp
            return told

        ours, theirs = (life(one) for one in pair)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == other


def test_figures_of_containers() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("busy")
        write = "head -c 3000000 /dev/zero > /file; touch /other; while true; do :; done"
        id = one.run_container(pod, "busy", ["sh", "-c", write])
        quiet = one.create(pod, "quiet", ["true"])

        def counted() -> Any:
            stats = one.call("ContainerStats", container_id=id).stats
            ready = stats.writable_layer.used_bytes.value > 2900000 and stats.cpu.usage_nano_cores.value
            return stats if ready else None

        stats = peers.wait_until(counted, "layer and rate are known")
        assert stats.attributes.id == id and stats.attributes.metadata.name == "busy"
        assert stats.attributes.labels["part"] == "busy" and stats.writable_layer.inodes_used.value >= 2
        assert stats.cpu.usage_core_nano_seconds.value > 0 and stats.cpu.usage_nano_cores.value < 2 * 10**9
        assert stats.writable_layer.fs_id.mountpoint == one.call("ImageFsInfo").image_filesystems[0].fs_id.mountpoint
        assert [item.attributes.id for item in one.call("ListContainerStats").stats] == [id]
        assert not one.call("ListContainerStats", filter={"label_selector": {"part": "none"}}).stats
        assert one.call("ContainerStats", container_id=quiet).stats.attributes.id == quiet
        assert one.refused("ContainerStats", container_id="nosuch")[0] == "NOT_FOUND"


def test_figures_of_pods() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("busy", linux={"cgroup_parent": "teutest-podbusy.slice"})
        plain = one.run_pod("plain")
        host = one.run_pod("host", **HOST_NETWORK)
        ids = [one.run_container(each, "c", ["sh", "-c", "while true; do :; done"]) for each in (pod, plain)]

        def figures(which: Any) -> Any:
            return one.call("PodSandboxStats", pod_sandbox_id=which[0]).stats

        stats = peers.wait_until(
            lambda: (found := figures(pod)).linux.cpu.usage_nano_cores.value and found, "a rate is known"
        )
        assert (
            stats.attributes.metadata.name == "busy"
            and [one.attributes.id for one in stats.linux.containers] == ids[:1]
        )
        assert stats.linux.cpu.usage_core_nano_seconds.value > 0
        before = stats.linux.network.default_interface
        assert before.name == "eth0" and before.HasField("rx_bytes")
        address = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status.network.ip
        peers.run("ping", "-c", "3", "-i", "0.2", address)
        after = figures(pod).linux.network.default_interface
        assert after.rx_bytes.value > before.rx_bytes.value and after.tx_bytes.value > before.tx_bytes.value
        # without a cgroup of its own a pod uses what its containers use
        assert figures(plain).linux.cpu.usage_core_nano_seconds.value > 0
        assert not figures(host).linux.HasField("network")
        listed = one.call("ListPodSandboxStats").stats
        assert {item.attributes.metadata.name for item in listed} == {"busy", "plain", "host"}
        wanted = {"label_selector": {"app": "plain"}}
        assert [item.attributes.id for item in one.call("ListPodSandboxStats", filter=wanted).stats] == [plain[0]]
        one.call("StopPodSandbox", pod_sandbox_id=plain[0])
        assert one.refused("PodSandboxStats", pod_sandbox_id=plain[0])[0] == "FAILED_PRECONDITION"
        assert not one.call("ListPodSandboxStats", filter=wanted).stats
        assert one.refused("PodSandboxStats", pod_sandbox_id="nosuch")[0] == "NOT_FOUND"


def metrics_of(one: Client, pod: Any) -> Any:
    return next(item for item in one.call("ListPodSandboxMetrics").pod_metrics if item.pod_sandbox_id == pod[0])


def test_metrics() -> None:
    with crihouse.ours() as one:
        keys = {each.name: list(each.label_keys) for each in one.call("ListMetricDescriptors").descriptors}
        pod = one.run_pod("busy")
        host = one.run_pod("host", **HOST_NETWORK)
        serve = "head -c 3000000 /dev/zero > /file; nc -l -p 80 & while true; do :; done"
        id = one.run_container(pod, "busy", ["sh", "-c", serve], linux={"resources": {"oom_score_adj": 5}})

        def counted() -> Any:
            [container] = metrics_of(one, pod).container_metrics
            by_name = {each.name: each for each in container.metrics}
            used = by_name["container_cpu_usage_seconds_total"].value.value
            sockets = by_name["container_sockets"].value.value
            written = by_name["container_fs_usage_bytes"].value.value > 2_900_000
            return (container, by_name) if used and sockets and written else None

        container, by_name = peers.wait_until(counted, "it has done what it does, and its layer is counted again", 60)
        assert container.container_id == id
        told = metrics_of(one, pod)
        for each in (*told.metrics, *container.metrics):
            labels = dict(zip(keys[each.name], each.label_values, strict=True))
            assert (labels["namespace"], labels["pod"]) == ("default", "busy") and each.timestamp
        labels = dict(zip(keys["container_processes"], by_name["container_processes"].label_values, strict=True))
        assert (labels["name"], labels["container"], labels["image"]) == (id, "busy", peers.IMAGE)
        assert labels["id"] == f"/teu.slice/cri-containerd-{id}.scope"
        assert by_name["container_processes"].value.value == by_name["container_threads"].value.value == 2
        assert by_name["container_sockets"].value.value == 1
        limit = one.exec(id, "sh", "-c", "ulimit -n").stdout
        assert by_name["container_ulimits_soft"].value.value == int(limit)
        received = [each for each in told.metrics if each.name == "container_network_receive_bytes_total"]
        assert [each.label_values[-1] for each in received] == ["eth0"]
        assert not metrics_of(one, host).metrics and not metrics_of(one, host).container_metrics
        streamed = one.runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest(), timeout=60)
        assert {each.pod_sandbox_id for some in streamed for each in some.pod_sandbox_metrics} == {pod[0], host[0]}
        one.call("StopPodSandbox", pod_sandbox_id=pod[0])
        assert [each.pod_sandbox_id for each in one.call("ListPodSandboxMetrics").pod_metrics] == [host[0]]


@pytest.mark.needs("memory", "cpu", "pids")
def test_metrics_of_controllers() -> None:
    with crihouse.ours() as one:
        names = {each.name for each in one.call("ListMetricDescriptors").descriptors}
        pod = one.run_pod("limited")
        limits = {"cpu_period": 100_000, "cpu_quota": 20_000, "cpu_shares": 1024, "memory_limit_in_bytes": 64 << 20}
        one.run_container(pod, "c", ["sleep", "1000"], linux={"resources": limits})
        told = metrics_of(one, pod)
        found = {each.name: each.value.value for each in (*told.metrics, *told.container_metrics[0].metrics)}
        # Nothing has been read from a disk, maybe; hugetlb and PSI are the kernel's choice.
        optional = ("container_fs_reads", "container_fs_writes", "container_blkio", "container_hugetlb")
        missing = {name for name in names - found.keys() if not name.startswith((*optional, "container_pressure"))}
        assert not missing
        assert found["container_spec_memory_limit_bytes"] == 64 << 20 and found["container_spec_cpu_quota"] == 20_000
        assert 0 < found["container_memory_usage_bytes"] <= found["container_memory_max_usage_bytes"] < 64 << 20


# What no daemon's end may touch


def test_nothing_is_lost_when_the_daemon_dies() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("tough")
        script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.01; done"
        id = one.run_container(pod, "talks", ["sh", "-c", script])
        short = one.run_container(pod, "short", ["sh", "-c", "sleep 1; echo bye; exit 4"])
        address = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status.network.ip
        pid = json.loads(one.call("ContainerStatus", container_id=id, verbose=True).info["info"])["pid"]
        one.daemon.kill()
        before = len(one.log(pod, "talks"))
        peers.wait_until(lambda: len(one.log(pod, "talks")) > before + 20, "it talks on")
        peers.wait_until(lambda: len(one.log(pod, "short")) == 1, "the other has ended")
        os.kill(pid, 0)
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        status = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status
        assert status.state == cri.SANDBOX_READY and status.network.ip == address
        assert one.status(id).state == cri.CONTAINER_RUNNING
        ended = one.ended(short)
        assert (ended.exit_code, ended.reason) == (4, "Error")
        assert one.exec(id, "echo", "there").stdout == b"there\n"
        one.call("StopContainer", container_id=id, timeout=0)
        numbers = [int(text.split()[1]) for _, _, text in one.log(pod, "talks")]
        assert numbers == list(range(1, len(numbers) + 1))
        one.remove_pod(pod)
        assert one.network.addresses() == []


@pytest.mark.parametrize("what", ["runs", "starts", "nothing"])
def test_a_pod_ends_though_its_shim_does_not_answer(what: str) -> None:
    with crihouse.ours() as one:
        pod, other = one.run_pod("stuck"), one.run_pod("other")
        if what == "starts":
            id = one.create(pod, "c", ["sleep", "1001"])
        elif what == "runs":
            id = one.run_container(pod, "c", ["sleep", "1001"])
            pid = json.loads(one.call("ContainerStatus", container_id=id, verbose=True).info["info"])["pid"]
        shim = f"teu-pod-{pod[0][:12]}.scope"
        peers.run("systemctl", "kill", "--signal=STOP", shim)
        one.call("Status")
        if what == "starts":
            start = one.runtime.StartContainer.future(cri.StartContainerRequest(container_id=id), timeout=200)
        assert one.exec(one.run_container(other, "c", ["sleep", "1000"]), "echo", "there").stdout == b"there\n"
        one.call("StopPodSandbox", _deadline=110, pod_sandbox_id=pod[0])
        if what == "starts":
            assert start.exception() is not None and one.ended(id).reason == "StartError"
        if what == "runs":
            assert one.status(id).state == cri.CONTAINER_EXITED
            peers.wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its process is gone")
        one.call("RemovePodSandbox", pod_sandbox_id=pod[0])
        peers.wait_until(lambda: "inactive" in peers.run("systemctl", "is-active", shim, code=None).stdout, "it goes")
        assert len(one.network.addresses()) == 1


def test_a_network_that_was_damaged_is_told_of() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("damaged")
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        namespace = json.loads(one.call("PodSandboxStatus", pod_sandbox_id=pod[0], verbose=True).info["info"])["netns"]
        told = f"the network of pod {pod[0]} is not as it was made"
        for damage in (False, True):
            if damage:
                peers.run("nsenter", f"--net={namespace}", "ip", "link", "delete", "eth0")
            one.daemon.kill()
            crihouse.launch(one.daemon, one.folder)
            one.connect()
            other = one.run_pod(f"after-{damage}")  # which waits for the look at the others
            assert (told in one.daemon.tail(200)) == damage
            one.remove_pod(other)
        one.remove_pod(pod)
        assert one.network.addresses() == []


def test_a_pod_that_was_being_made_is_taken_away() -> None:
    with crihouse.ours() as one:
        before = set(os.listdir("/run/netns")) if Path("/run/netns").is_dir() else set()
        for _ in range(5):
            future = one.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=one.pod_config("cut")))
            peers.wait_until(lambda: one.network.addresses(), "the network is being made")
            one.daemon.kill()
            future.cancel()
            assert isinstance(one.daemon, crihouse.TeuContainerd)
            crihouse.launch(one.daemon, one.folder)
            one.connect()
            for item in one.call("ListPodSandbox").items:  # it had come to its end
                one.remove_pod((item.id,))
            peers.wait_until(lambda: not one.network.addresses(), "the address is given back")
        peers.wait_until(lambda: set(os.listdir("/run/netns")) <= before, "so is the namespace")


def test_a_renamed_log_is_followed() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("rotated")
        id = one.run_container(pod, "talks", ["sh", "-c", "while true; do echo x; sleep 0.01; done"])
        path = Path(one.status(id).log_path)
        peers.wait_until(lambda: path.stat().st_size > 0, "a line")
        path.rename(path.with_suffix(".old"))
        one.call("ReopenContainerLog", container_id=id)
        assert path.exists()
        peers.wait_until(lambda: path.stat().st_size > 0, "a line in the new file")
        size = path.with_suffix(".old").stat().st_size
        peers.wait_until(lambda: path.stat().st_size > 500, "more lines")
        assert path.with_suffix(".old").stat().st_size == size


def test_a_container_is_a_scope_of_the_pods_slice() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("placed", linux={"cgroup_parent": "teutest-pod1.slice"})
        id = one.run_container(pod, "c", ["sleep", "1000"])
        unit = f"cri-containerd-{id}.scope"
        assert peers.run("systemctl", "show", "-P", "Slice", unit).stdout.strip() == "teutest-pod1.slice"
        shim = f"teu-pod-{pod[0][:12]}.scope"
        assert peers.run("systemctl", "show", "-P", "Slice", shim).stdout.strip() == "teu.slice"
        assert "default/placed" in peers.run("systemctl", "show", "-P", "Description", shim).stdout
        one.remove_pod(pod)
        peers.wait_until(lambda: "inactive" in peers.run("systemctl", "is-active", shim, code=None).stdout, "it goes")


def test_containerds_clients_see_the_same() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("seen")
        id = one.run_container(pod, "c", ["sleep", "1000"])
        assert id in one.daemon("-n", "k8s.io", "tasks", "ls", "-q")
        info = json.loads(one.daemon("-n", "k8s.io", "containers", "info", id))
        assert info["Labels"]["io.cri-containerd.kind"] == "container"
        assert info["Spec"]["annotations"]["io.kubernetes.cri.sandbox-id"] == pod[0]


def test_cadvisor_finds_the_network_of_a_pod() -> None:
    with crihouse.ours() as one:
        parent = "teutest-podseen.slice"
        place = Path(f"/sys/fs/cgroup/teutest.slice/{parent}")

        def stands_for(pod: Any) -> int:
            """The process that cAdvisor reads the counters of, or 0."""
            with grpc.insecure_channel(f"unix:{one.daemon.address}") as channel:
                stub = tasks_pb2_grpc.TasksStub(channel)
                asked = tasks_pb2.GetRequest(container_id=pod[0])
                try:
                    return int(stub.Get(asked, metadata=[("containerd-namespace", "k8s.io")], timeout=30).process.pid)
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.NOT_FOUND
                    return 0

        def network_of(pid: int) -> tuple[int, int]:
            found = os.stat(f"/proc/{pid}/ns/net")
            return found.st_dev, found.st_ino

        pod = one.run_pod("seen", linux={"cgroup_parent": parent})
        info = json.loads(one.daemon("-n", "k8s.io", "containers", "info", pod[0]))
        assert info["Labels"]["io.cri-containerd.kind"] == "sandbox" and info["Labels"]["app"] == "seen"
        assert info["Spec"]["annotations"]["io.kubernetes.cri.container-type"] == "sandbox"
        told = json.loads(one.call("PodSandboxStatus", pod_sandbox_id=pod[0], verbose=True).info["info"])
        own = os.stat(told["netns"])
        scope = place / f"cri-containerd-{pod[0]}.scope"
        assert stands_for(pod) == 0 and not scope.exists()
        first = one.run_container(pod, "first", ["sleep", "1000"])
        peers.wait_until(lambda: stands_for(pod), "it stands for the pod")
        assert network_of(stands_for(pod)) == (own.st_dev, own.st_ino) and scope.is_dir()
        one.run_container(pod, "second", ["sleep", "1000"])
        before = stands_for(pod)
        one.call("StopContainer", container_id=first, timeout=0)
        peers.wait_until(lambda: stands_for(pod) not in (0, before), "another takes its place")
        assert network_of(stands_for(pod)) == (own.st_dev, own.st_ino) and scope.is_dir()
        one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        peers.wait_until(lambda: stands_for(pod), "it stands for the pod again")
        assert network_of(stands_for(pod)) == (own.st_dev, own.st_ino) and scope.is_dir()
        assert "eth0" in Path(f"/proc/{stands_for(pod)}/net/dev").read_text()
        one.call("StopPodSandbox", pod_sandbox_id=pod[0])
        assert stands_for(pod) == 0 and not scope.exists()
        one.call("RemovePodSandbox", pod_sandbox_id=pod[0])
        assert pod[0] not in one.daemon("-n", "k8s.io", "containers", "ls", "-q")


def test_what_a_daemon_has_left_is_removed() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("stays")
        id = one.run_container(pod, "c", ["sleep", "1000"])
        state, root = one.daemon.run / "state/cri", one.daemon.state / "root/cri"
        left = [state / ("e" * 64), root / ("f" * 64)]
        for folder in left:
            (folder / "sub").mkdir(parents=True)
        peers.run("mount", "-t", "tmpfs", "x", str(left[0] / "sub"))
        one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        peers.wait_until(lambda: not any(folder.exists() for folder in left), "they are gone")
        assert (state / pod[0]).is_dir() and one.exec(id, "echo", "there").stdout == b"there\n"
        one.remove_pod(pod)
