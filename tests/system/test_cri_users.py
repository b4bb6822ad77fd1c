# SPDX-License-Identifier: Apache-2.0
"""Pods with user namespaces, beside Debian's containerd where that has them."""

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
from runc_bundle import full_proc

from teu.api.cri.v1 import cri_pb2 as cri

pytestmark = [pytest.mark.needs("containerd", "ctr", "systemd"), pytest.mark.timeout(300)]

HOST, COUNT = 200_000, 65_536
IDS = [{"host_id": HOST, "length": COUNT}]
USERS = {"userns_options": {"mode": cri.POD, "uids": IDS, "gids": IDS}}
MAPPINGS = {"uidMappings": IDS, "gidMappings": IDS}


@pytest.fixture(scope="module", autouse=True)
def whole() -> None:
    full_proc()


@pytest.fixture(scope="module")
def one(whole: None) -> Iterator[Client]:
    with crihouse.ours() as client:
        [handler] = client.call("Status").runtime_handlers
        if not handler.features.user_namespaces:
            pytest.skip("ids of mounts cannot be mapped on this machine's file system")
        yield client


def options(**more: Any) -> dict[str, Any]:
    return {"linux": {"security_context": {"namespace_options": {**USERS, "pid": cri.CONTAINER, **more}}}}


def pid_of(one: Client, id: str) -> int:
    return int(json.loads(one.call("ContainerStatus", container_id=id, verbose=True).info["info"])["pid"])


LOOK = "cat /proc/self/uid_map /proc/self/gid_map; id; stat -c '%u %g' / /bin/busybox /etc/hosts /dev/shm /tmp/own"


def test_users_inside(one: Client) -> None:
    pod = one.run_pod("inside", **options())
    script = f"mkdir -p /tmp; echo x > /tmp/own; {LOOK}; echo more >> /etc/hosts && echo wrote"
    lines = one.output(pod, "c", ["sh", "-c", script], **options()).splitlines()
    assert [line.split() for line in lines[:2]] == [["0", str(HOST), str(COUNT)]] * 2
    assert lines[2].startswith("uid=0(root) gid=0(root)")
    assert lines[3:8] == ["0 0"] * 5
    assert lines[8:] == ["wrote"]
    one.remove_pod(pod)


def test_beside_containerd() -> None:
    with crihouse.both() as clients:
        if not clients[0].call("Status").runtime_handlers[0].features.user_namespaces:
            pytest.skip("ids of mounts cannot be mapped on this machine's file system")
        told = []
        for client in clients:
            pod = client.run_pod("beside", **options())
            look = "cat /proc/self/uid_map /proc/self/gid_map; id; stat -c '%u %g' / /bin/busybox"
            told.append(client.output(pod, "c", ["sh", "-c", look], **options()))
            client.remove_pod(pod)
        assert told[0] == told[1]


def test_users_on_the_host(one: Client) -> None:
    pod = one.run_pod("outside", **options())
    id = one.run_container(pod, "c", ["sleep", "1000"], **options())
    other = {**options(), "linux": {**options()["linux"]}}
    other["linux"]["security_context"] = {**other["linux"]["security_context"], "run_as_user": {"value": 1234}}
    user = one.run_container(pod, "user", ["sleep", "1000"], **other)
    assert os.stat(f"/proc/{pid_of(one, id)}").st_uid == HOST
    assert os.stat(f"/proc/{pid_of(one, user)}").st_uid == HOST + 1234
    assert os.readlink(f"/proc/{pid_of(one, id)}/ns/user") == os.readlink(f"/proc/{pid_of(one, user)}/ns/user")
    assert os.readlink(f"/proc/{pid_of(one, id)}/ns/user") != os.readlink("/proc/self/ns/user")
    assert one.exec(id, "id", "-u").stdout == b"0\n"
    status = one.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status
    assert status.network.ip and status.linux.namespaces.options.userns_options.uids[0].host_id == HOST
    peers.run("ping", "-c", "1", status.network.ip)
    shared = one.container_config("hosts", ["true"], peers.IMAGE, **options(pid=cri.NODE))
    told = one.refused("CreateContainer", pod_sandbox_id=pod[0], config=shared, sandbox_config=pod[1])
    assert told[0] == "UNIMPLEMENTED" and "host's pid" in told[1]
    one.remove_pod(pod)


def test_volumes_of_the_host_are_mapped(one: Client) -> None:
    source = one.folder / "volume"
    source.mkdir()
    (source / "file").write_text("text\n")
    (source / "users").write_text("x")
    os.chown(source / "users", 1234, 1235)
    pod = one.run_pod("volumes", **options())
    mount = {"container_path": "/data", "host_path": str(source), **MAPPINGS}
    look = "stat -c '%u %g' /data /data/file /data/users; echo new > /data/new && echo wrote"
    told = one.output(pod, "c", ["sh", "-c", look], mounts=[mount], **options())
    assert told == "0 0\n0 0\n1234 1235\nwrote\n"
    assert (source / "new").stat().st_uid == 0
    image = {"container_path": "/image", "readonly": True, "image": {"image": peers.IMAGE}, **MAPPINGS}
    assert one.output(pod, "i", ["stat", "-c", "%u", "/image/bin/busybox"], mounts=[image], **options()) == "0\n"
    one.remove_pod(pod)


def test_users_with_the_hosts_network(one: Client) -> None:
    more = options(network=cri.NODE)
    config = one.pod_config("hosts-network", **more)
    config.hostname = ""
    Path(config.log_directory).mkdir(parents=True, exist_ok=True)
    pod = (one.call("RunPodSandbox", config=config).pod_sandbox_id, config)
    look = "readlink /proc/self/ns/net; id -u; ls /sys/class/net | grep -x lo; touch /sys/x; ls -d /sys/fs/cgroup"
    told = one.output(pod, "c", ["sh", "-c", look], **more)
    assert told.split() == [os.readlink("/proc/self/ns/net"), "0", "lo", "/sys/fs/cgroup"]
    one.remove_pod(pod)


def test_sysctls_of_such_a_pod(one: Client) -> None:
    wanted = {"kernel.shm_rmid_forced": "1", "net.core.somaxconn": "77"}
    more = options()
    pod = one.run_pod("sysctls", linux={**more["linux"], "sysctls": wanted})
    names = [f"/proc/sys/{name.replace('.', '/')}" for name in wanted]
    assert one.output(pod, "c", ["cat", *names], **more).split() == ["1", "77"]
    one.remove_pod(pod)


@pytest.mark.needs("catatonit")
def test_processes_are_shared_in_such_a_pod(one: Client) -> None:
    shared = options(pid=cri.POD)
    config = one.pod_config("together")
    config.linux.CopyFrom(cri.PodSandboxConfig(**shared).linux)
    Path(config.log_directory).mkdir(parents=True, exist_ok=True)
    pod = (one.call("RunPodSandbox", config=config).pod_sandbox_id, config)
    ids = []
    for name in ("a", "b"):
        made = one.container_config(name, ["sleep", "1001"], peers.IMAGE)
        made.linux.CopyFrom(cri.ContainerConfig(**shared).linux)
        ids.append(one.call("CreateContainer", pod_sandbox_id=pod[0], config=made).container_id)
        one.call("StartContainer", container_id=ids[-1])
    assert one.exec(ids[0], "ps", "-o", "args").stdout.count(b"sleep 1001") == 2
    one.remove_pod(pod)


def test_a_privileged_container_of_such_a_pod(one: Client) -> None:
    security = {**options()["linux"]["security_context"], "privileged": True}
    privileged = {"linux": {"security_context": security}}
    pod = one.run_pod("privileged", **privileged)
    look = "test -c /dev/null && ls /sys/fs/cgroup/cgroup.procs && hostname changed && hostname"
    assert one.output(pod, "c", ["sh", "-c", look], **privileged).split() == ["/sys/fs/cgroup/cgroup.procs", "changed"]
    one.remove_pod(pod)


def test_such_a_pod_outlives_the_daemon() -> None:
    with crihouse.ours() as one:
        if not one.call("Status").runtime_handlers[0].features.user_namespaces:
            pytest.skip("ids of mounts cannot be mapped on this machine's file system")
        pod = one.run_pod("lasting", **options())
        id = one.run_container(pod, "c", ["sleep", "1000"], **options())
        one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        assert one.exec(id, "id", "-u").stdout == b"0\n"
        assert one.output(pod, "after", ["id", "-u"], **options()) == "0\n"
        folder = one.daemon.run / "state/cri" / pod[0]
        assert str(folder / "user") in Path("/proc/self/mountinfo").read_text()
        one.remove_pod(pod)
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()


def test_such_a_pod_that_was_being_made_is_taken_away() -> None:
    with crihouse.ours() as one:
        folder = one.daemon.run / "state/cri"

        def begun() -> bool:
            return str(folder) in Path("/proc/self/mountinfo").read_text()

        for number in range(6):
            request = cri.RunPodSandboxRequest(config=one.pod_config("cut", **options()))
            future = one.runtime.RunPodSandbox.future(request)
            peers.wait_until(one.network.addresses if number % 2 else begun, "it is being made")
            one.daemon.kill()
            future.cancel()
            assert isinstance(one.daemon, crihouse.TeuContainerd)
            crihouse.launch(one.daemon, one.folder)
            one.connect()
            for item in one.call("ListPodSandbox").items:  # it had come to its end
                one.remove_pod((item.id,))
            peers.wait_until(
                lambda: not one.network.addresses() and str(folder) not in Path("/proc/self/mountinfo").read_text(),
                "nothing is left",
            )


BAD: dict[str, Any] = {
    "two mappings": {"uids": IDS * 2},
    "none": {"uids": []},
    "no length": {"gids": [{"host_id": HOST}]},
    "a container's": {"mode": cri.CONTAINER},
    "another's": {"mode": cri.TARGET},
    "mappings without": {"mode": cri.NODE},
}


@pytest.mark.parametrize("name", BAD)
def test_users_that_cannot_be(one: Client, name: str) -> None:
    wanted = {"userns_options": {**USERS["userns_options"], **BAD[name]}}
    config = one.pod_config("bad", linux={"security_context": {"namespace_options": wanted}})
    assert one.refused("RunPodSandbox", config=config)[0] == "INVALID_ARGUMENT"
    assert not [item for item in one.call("ListPodSandbox").items if item.metadata.name == "bad"]


def test_a_container_has_its_pods_users(one: Client) -> None:
    pod = one.run_pod("same", **options())
    other = {"mode": cri.POD, "uids": [{"host_id": 5, "length": 9}], "gids": IDS}
    for wanted in (other, {"mode": cri.NODE}):
        config = one.container_config("bad", ["true"], peers.IMAGE)
        config.linux.security_context.namespace_options.userns_options.CopyFrom(cri.UserNamespace(**wanted))
        told = one.refused("CreateContainer", pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])
        assert told[0] == "INVALID_ARGUMENT" and "is different from container" in told[1]
    one.remove_pod(pod)
