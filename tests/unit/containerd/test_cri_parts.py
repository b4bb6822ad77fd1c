# SPDX-License-Identifier: Apache-2.0
"""What the CRI makes of its messages: specifications, names, credentials, files, and what it refuses."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import make_context

from teu.api.cgroups.v2 import metrics_pb2
from teu.api.cri.v1 import cri_pb2 as cri
from teu.cni.network import RESULTS
from teu.containerd.core.errors import Error, FailedPrecondition, InvalidArgument, NotFound, Unimplemented, Unknown
from teu.containerd.cri import checks, files, images, namespaces, network, rootfs, spec, stats
from teu.containerd.cri.containers import hostname_of, signal_name
from teu.containerd.cri.pods import own_namespaces
from teu.containerd.cri.records import EXITED, Container, Pod, Records
from teu.oci import cdi, distribution


def pod_config(**more: Any) -> Any:
    config = cri.PodSandboxConfig(metadata={"name": "p", "uid": "u", "namespace": "n", "attempt": 2}, hostname="h")
    config.MergeFrom(cri.PodSandboxConfig(**more))
    return config


def wanted(config: Any = None, image: dict[str, Any] | None = None, **pod: Any) -> spec.Wanted:
    given = cri.ContainerConfig(metadata={"name": "c"}, command=["run"])
    given.MergeFrom(cri.ContainerConfig(**(config or {})))
    inside = spec.Inside(
        {"/etc/hosts": "/state/hosts"},
        "/state/shm",
        {"network": "/run/netns/x", "ipc": "/state/ipc", "uts": "/state/uts", "pid": ""},
        "h",
    )
    return spec.Wanted("c" * 64, Pod("p" * 64, pod_config(**pod)), given, image or {}, "busybox", inside)


def security(**fields: Any) -> dict[str, Any]:
    return {"linux": {"security_context": fields}}


# Specifications


def test_a_plain_container() -> None:
    made = spec.build(wanted({"envs": [{"key": "A", "value": b"1"}]}, {"Env": ["A=0", "B=2"], "WorkingDir": "/w"}))
    process, linux = made["process"], made["linux"]
    assert process["args"] == ["run"] and process["cwd"] == "/w" and process["noNewPrivileges"] is False
    assert {"A=1", "B=2", "HOSTNAME=h"} <= set(process["env"]) and "rlimits" not in process
    assert {"type": "network", "path": "/run/netns/x"} in linux["namespaces"]
    assert {"type": "pid"} in linux["namespaces"] and {"type": "cgroup"} in linux["namespaces"]
    assert linux["cgroupsPath"] == f"teu.slice:cri-containerd:{'c' * 64}" and spec.in_slice(made)
    assert "seccomp" not in linux
    mounts = {entry["destination"]: entry for entry in made["mounts"]}
    assert mounts["/dev/shm"]["source"] == "/state/shm" and mounts["/etc/hosts"]["options"][-1] == "rw"
    assert made["annotations"]["io.kubernetes.cri.sandbox-id"] == "p" * 64
    places = [entry["destination"] for entry in made["mounts"]]
    assert places.index("/dev") < places.index("/dev/shm")


CDI = {
    "cdiVersion": "0.6.0",
    "kind": "teu.example/thing",
    "containerEdits": {"env": ["THING=yes"]},
    "devices": [
        {
            "name": "one",
            "containerEdits": {
                "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/null"}],
                "mounts": [{"hostPath": "/usr/share", "containerPath": "/usr/thing/", "options": ["ro"]}],
                "hooks": [{"hookName": "poststop", "path": "/bin/true"}],
            },
        }
    ],
}


def test_options_of_a_mount() -> None:
    given = {"container_path": "/d", "host_path": "/usr", "mount_options": ["noexec", "nosuid"], "readonly": True}
    [entry] = [one for one in spec.build(wanted({"mounts": [given]}))["mounts"] if one["destination"] == "/d"]
    assert entry["options"] == ["rbind", "rprivate", "ro", "noexec", "nosuid"]
    for option in ("rw", "rshared", "idmap", "size=5m", ""):
        with pytest.raises(InvalidArgument, match=r"mounts\[0\].mount_options"):
            spec.build(wanted({"mounts": [{**given, "mount_options": [option]}]}))


def test_devices_of_cdi() -> None:
    config = {
        "CDI_devices": [{"name": "teu.example/thing=one"}],
        "annotations": {"cdi.k8s.io/plugin": "teu.example/thing=one,teu.example/thing=two", "other": "x=y"},
        "mounts": [{"container_path": "/usr/thing", "host_path": "/usr"}],
        "envs": [{"key": "THING", "value": b"no"}],
    }
    given = wanted(config)
    assert spec.device_names(given.config) == ["teu.example/thing=one", "teu.example/thing=two"]
    [device] = cdi.parse("/file", CDI)
    given.edits = device.common.and_then(device.own)
    made = spec.build(given)
    assert "THING=yes" in made["process"]["env"] and "THING=no" not in made["process"]["env"]
    assert [one["path"] for one in made["linux"]["devices"]] == ["/dev/thing"]
    assert {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"} in made["linux"]["resources"][
        "devices"
    ]
    assert [one["source"] for one in made["mounts"] if one["destination"] == "/usr/thing"] == ["/usr/share"]
    assert made["hooks"]["poststop"] == [{"path": "/bin/true"}]
    given.edits = cdi.parse("/f", json.loads(json.dumps(CDI).replace("/dev/null", "/etc/passwd")))[0].own
    with pytest.raises(FailedPrecondition, match="CDI device injection failed"):
        spec.build(given)


@pytest.mark.parametrize(
    ("command", "args", "image", "told"),
    [
        (["a"], ["b"], {"Entrypoint": ["e"], "Cmd": ["c"]}, ["a", "b"]),
        ([], ["b"], {"Entrypoint": ["e"], "Cmd": ["c"]}, ["e", "b"]),
        ([], [], {"Entrypoint": ["e"], "Cmd": ["c"]}, ["e", "c"]),
        (["a"], [], {"Entrypoint": ["e"], "Cmd": ["c"]}, ["a"]),
        ([], [], {"Cmd": ["c"]}, ["c"]),
    ],
)
def test_commands(command: list[str], args: list[str], image: dict[str, Any], told: list[str]) -> None:
    assert spec.command(cri.ContainerConfig(command=command, args=args), image) == told


def test_no_command() -> None:
    with pytest.raises(InvalidArgument, match="no command specified"):
        spec.command(cri.ContainerConfig(), {})


@pytest.mark.parametrize(
    ("parent", "told"),
    [
        ("kubepods-podx.slice", "kubepods-podx.slice:cri-containerd:c"),
        ("/kubepods.slice/kubepods-podx.slice", "kubepods-podx.slice:cri-containerd:c"),
        ("", "teu.slice:cri-containerd:c"),
        ("/pods/x", "/pods/x/c"),
    ],
)
def test_cgroups(parent: str, told: str) -> None:
    assert spec.cgroups_path(parent, "c") == told


def test_capabilities() -> None:
    def of(**fields: Any) -> list[str]:
        return spec.capability_set(cri.LinuxContainerSecurityContext(capabilities=fields))

    assert "CAP_CHOWN" in of() and "CAP_NET_ADMIN" not in of()
    assert "CAP_NET_ADMIN" in of(add_capabilities=["net_admin"]) and "CAP_CHOWN" not in of(drop_capabilities=["CHOWN"])
    assert of(drop_capabilities=["ALL"]) == []
    assert of(drop_capabilities=["ALL"], add_capabilities=["CAP_KILL"]) == ["CAP_KILL"]
    assert set(of(add_capabilities=["ALL"])) > set(of())
    with pytest.raises(InvalidArgument, match="unknown capability 'X'"):
        of(add_capabilities=["X"])


def test_ambient_capabilities() -> None:
    made = spec.build(wanted(security(capabilities={"add_ambient_capabilities": ["NET_ADMIN"]})))
    sets = made["process"]["capabilities"]
    assert sets["ambient"] == sets["inheritable"] == ["CAP_NET_ADMIN"] and "CAP_NET_ADMIN" in sets["bounding"]


def test_privileged() -> None:
    with pytest.raises(InvalidArgument, match="no privileged container allowed"):
        spec.build(wanted(security(privileged=True)))
    made = spec.build(
        wanted(
            security(privileged=True, seccomp={"profile_type": 0}, masked_paths=["/proc/kcore"]),
            **security(privileged=True),
        )
    )
    assert made["linux"]["maskedPaths"] == [] and "seccomp" not in made["linux"]
    assert made["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert {"type": "cgroup"} not in made["linux"]["namespaces"]


def test_seccomp(tmp_path: Path) -> None:
    def of(**fields: Any) -> Any:
        return spec.seccomp(cri.LinuxContainerSecurityContext(**fields), [])

    own = tmp_path / "own.json"
    own.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    local = cri.SecurityProfile.Localhost
    assert of() is None and of(seccomp={"profile_type": cri.SecurityProfile.Unconfined}) is None
    assert of(seccomp={"profile_type": cri.SecurityProfile.RuntimeDefault})["defaultAction"] == "SCMP_ACT_ERRNO"
    assert of(seccomp={"profile_type": local, "localhost_ref": str(own)}) == {"defaultAction": "SCMP_ACT_ALLOW"}
    assert of(seccomp_profile_path=f"localhost/{own}") == {"defaultAction": "SCMP_ACT_ALLOW"}
    assert of(seccomp_profile_path="runtime/default")["defaultAction"] == "SCMP_ACT_ERRNO"
    own.write_text("{")
    for bad in ({"profile_type": local, "localhost_ref": str(own)}, {"profile_type": local, "localhost_ref": "/none"}):
        with pytest.raises(InvalidArgument, match="failed to load local seccomp profile"):
            of(seccomp=bad)
    with pytest.raises(InvalidArgument, match="must only be set if"):
        of(seccomp={"profile_type": cri.SecurityProfile.RuntimeDefault, "localhost_ref": "x"})
    with pytest.raises(InvalidArgument, match="is no profile"):
        of(seccomp_profile_path="something")


def test_resources() -> None:
    given = cri.LinuxContainerResources(
        cpu_shares=512,
        cpu_quota=1000,
        memory_limit_in_bytes=1 << 20,
        memory_swap_limit_in_bytes=1 << 20,
        cpuset_cpus="0",
        unified={"memory.high": "1"},
        hugepage_limits=[{"page_size": "2MB", "limit": 4 << 20}],
    )
    assert spec.resources(given) == {
        "cpu": {"shares": 512, "quota": 1000, "cpus": "0"},
        "memory": {"limit": 1 << 20, "swap": 1 << 20},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {"memory.high": "1"},
    }
    assert spec.resources(cri.LinuxContainerResources()) == {}


def test_devices() -> None:
    nodes, rules = spec.devices(
        [cri.Device(host_path="/dev/null", container_path="/dev/x", permissions="rw")], privileged=False
    )
    assert [(node["path"], node["major"], node["minor"]) for node in nodes] == [("/dev/x", 1, 3)]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[-1] == {"allow": True, "access": "rw", "type": "c", "major": 1, "minor": 3}
    with pytest.raises(InvalidArgument, match="must be of r, w and m"):
        spec.devices([cri.Device(host_path="/dev/null", permissions="x")], privileged=False)
    with pytest.raises(InvalidArgument, match="no such file"):
        spec.devices([cri.Device(host_path="/dev/no/such", permissions="r")], privileged=False)


@pytest.mark.parametrize(
    ("fields", "owns", "told"),
    [
        ({"run_as_user": {"value": 5}, "run_as_group": {"value": 6}}, True, (5, 6)),
        ({"run_as_user": {"value": 5}}, True, (5, 0)),
        ({}, True, (0, 0)),
        ({"run_as_user": {"value": 5}}, False, (0, 0)),
    ],
)
def test_whose_devices_are(fields: dict[str, Any], owns: bool, told: tuple[int, int]) -> None:
    given = wanted({"devices": [{"host_path": "/dev/null", "permissions": "r"}], **security(**fields)})
    given.owns_devices = owns
    [device] = spec.build(given)["linux"]["devices"]
    assert (device["uid"], device["gid"]) == told


def test_mounts(tmp_path: Path) -> None:
    def of(**fields: Any) -> Any:
        made = spec.build(wanted({"mounts": [{"container_path": "/etc/hosts", "host_path": str(tmp_path), **fields}]}))
        return next(entry for entry in made["mounts"] if entry["destination"] == "/etc/hosts")

    assert of() == {
        "destination": "/etc/hosts",
        "type": "bind",
        "source": os.path.realpath(tmp_path),
        "options": ["rbind", "rprivate", "rw"],
    }
    assert of(readonly=True)["options"][-1] == "ro"
    assert of(readonly=True, recursive_read_only=True)["options"][-1] == "rro"
    with pytest.raises(InvalidArgument, match="requires readonly"):
        of(recursive_read_only=True)
    with pytest.raises(InvalidArgument, match="PROPAGATION_PRIVATE|is not a shared or slave"):
        of(readonly=True, recursive_read_only=True, propagation=cri.PROPAGATION_HOST_TO_CONTAINER)
    missing = tmp_path / "made"
    spec.build(wanted({"mounts": [{"container_path": "/x", "host_path": str(missing)}]}))
    assert missing.is_dir()
    with pytest.raises(InvalidArgument, match="must be absolute"):
        spec.build(wanted({"mounts": [{"container_path": "x", "host_path": "/"}]}))
    with pytest.raises(InvalidArgument, match="must name what is mounted"):
        spec.build(wanted({"mounts": [{"container_path": "/x"}]}))


def test_a_pods_init() -> None:
    made = spec.of_init("/usr/bin/catatonit", {"ipc": "/x"})
    assert made["process"]["args"] == ["/init", "-P"] and {"type": "pid"} in made["linux"]["namespaces"]
    assert made["process"]["capabilities"]["bounding"] == []


@pytest.mark.parametrize(
    ("asked", "image", "told"),
    [
        (cri.SIGNAL_RUNTIME_DEFAULT, "", "TERM"),
        (cri.SIGNAL_RUNTIME_DEFAULT, "SIGQUIT", "QUIT"),
        (cri.SIGNAL_SIGUSR1, "SIGQUIT", "USR1"),
        (cri.SIGNAL_SIGRTMINPLUS3, "", "RTMIN+3"),
        (cri.SIGNAL_SIGRTMAXMINUS2, "", "RTMAX-2"),
    ],
)
def test_stop_signals(asked: int, image: str, told: str) -> None:
    assert signal_name(cri.ContainerConfig(stop_signal=asked), {"StopSignal": image}) == told


def test_a_stop_signal_that_is_none() -> None:
    with pytest.raises(InvalidArgument, match="StopSignal"):
        signal_name(cri.ContainerConfig(), {"StopSignal": "NONE"})


# What is refused


@pytest.mark.parametrize(
    ("config", "error", "told"),
    [
        (cri.PodSandboxConfig(), InvalidArgument, "must include metadata"),
        (pod_config(windows={"security_context": {"host_process": True}}), Unimplemented, "config.windows"),
        (
            pod_config(**security(namespace_options={"userns_options": {"mode": cri.CONTAINER}})),
            InvalidArgument,
            "unsupported user namespace mode",
        ),
        (pod_config(**security(namespace_options={"network": cri.CONTAINER})), InvalidArgument, "POD or NODE"),
        (pod_config(**security(namespace_options={"pid": cri.TARGET})), InvalidArgument, "not TARGET"),
        (pod_config(port_mappings=[{"host_port": 70000}]), InvalidArgument, "port mapping"),
    ],
)
def test_pods_that_cannot_be(config: Any, error: type[Error], told: str) -> None:
    with pytest.raises(error, match=told):
        checks.pod(config)


@pytest.mark.parametrize(
    ("config", "error", "told"),
    [
        ({"windows": {"security_context": {"host_process": True}}}, Unimplemented, "windows"),
        (security(run_as_group={"value": 1}), InvalidArgument, "specified without user"),
    ],
)
def test_containers_that_cannot_be(config: dict[str, Any], error: type[Error], told: str) -> None:
    with pytest.raises(error, match=told):
        checks.container(cri.ContainerConfig(metadata={"name": "c"}, **config))


@pytest.mark.parametrize(
    ("name", "own", "told"),
    [
        ("kernel.hostname", {"network", "ipc"}, "is of no namespace"),
        ("vm.swappiness", {"network", "ipc"}, "is of no namespace"),
        ("net.core.somaxconn", {"ipc"}, "no network namespace"),
        ("kernel.shmmax", {"network"}, "no ipc namespace"),
    ],
)
def test_sysctls_of_the_host(name: str, own: set[str], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        namespaces.check_sysctls({name: "1"}, own)


def test_sysctls_of_a_pod() -> None:
    names = ("net.core.somaxconn", "net/ipv4/ip_forward", "kernel.shm_rmid_forced", "kernel.sem", "fs.mqueue.msg_max")
    namespaces.check_sysctls(dict.fromkeys(names, "1"), {"network", "ipc", "uts"})


# Pods


def test_what_a_pod_has_for_itself() -> None:
    assert own_namespaces(pod_config()) == {"network", "uts", "ipc"}
    host = pod_config(**security(namespace_options={"network": cri.NODE, "ipc": cri.NODE}))
    assert own_namespaces(host) == set() and hostname_of(host) == "h"
    host.hostname = ""
    assert hostname_of(host) == os.uname().nodename


def test_files(tmp_path: Path) -> None:
    dns = {"servers": ["10.0.0.1"], "searches": ["a.b", "c"], "options": ["ndots:5"]}
    files.write(str(tmp_path / "f"), pod_config(dns_config=dns), "name")
    assert (tmp_path / "f/hostname").read_text() == "name\n"
    assert (tmp_path / "f/resolv.conf").read_text() == "search a.b c\nnameserver 10.0.0.1\noptions ndots:5\n"
    assert "localhost" in (tmp_path / "f/hosts").read_text()
    with pytest.raises(InvalidArgument, match="more than 32"):
        files.resolv_conf(cri.DNSConfig(searches=["a"] * 33))
    with pytest.raises(InvalidArgument, match="is no word"):
        files.resolv_conf(cri.DNSConfig(servers=["10.0.0.1\nnameserver 6.6.6.6"]))


def test_what_plugins_are_told() -> None:
    config = pod_config(
        port_mappings=[{"host_port": 80, "container_port": 8080, "protocol": cri.UDP}, {"container_port": 9}],
        annotations={"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Gi"},
    )
    found = network.capabilities(config)
    assert found["portMappings"] == [{"hostPort": 80, "containerPort": 8080, "protocol": "udp", "hostIP": ""}]
    assert found["bandwidth"]["ingressRate"] == 10_000_000 and found["bandwidth"]["egressRate"] == 1 << 30
    with pytest.raises(InvalidArgument, match="is no quantity"):
        network.bits("x", "much")
    args = dict(network.attachment(Pod("i", config), "/n").args)
    assert args["K8S_POD_NAME"] == "p" and args["K8S_POD_INFRA_CONTAINER_ID"] == "i"


STATUS_PLUGIN = """#!/bin/sh
cat >/dev/null
while [ "$CNI_COMMAND" = STATUS ] && [ -e FOLDER/slow ]; do sleep 0.01; done
[ "$CNI_COMMAND" = STATUS ] && [ -e FOLDER/ill ] && { echo '{"code": 50, "msg": "ill"}'; exit 1; }
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion": "1.1.0", "ips": ADDRESSES}'
exit 0
"""


def networks(folder: Path, addresses: str = '[{"address": "10.0.0.5/24"}]') -> network.Networks:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "net.d").mkdir(exist_ok=True)
    plugin = folder / "bin/p"
    plugin.write_text(STATUS_PLUGIN.replace("FOLDER", str(folder)).replace("ADDRESSES", addresses))
    plugin.chmod(0o755)
    (folder / "net.d/n.conflist").write_text('{"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "p"}]}')
    found = network.Networks(str(folder / "net.d"), [str(folder / "bin")], 20.0, str(folder / "results"))
    found.collected.set()
    return found


def test_status_of_the_network_waits_for_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_STATUS_SECONDS", 0.0)
    found = networks(tmp_path)
    (tmp_path / "slow").touch()
    assert "have not told their status" in found.obstacle()
    (tmp_path / "slow").unlink()

    def until(text: str) -> None:
        deadline = time.monotonic() + 20
        while text != (told := found.obstacle()) and (not text or text not in told):
            assert time.monotonic() < deadline, told
            time.sleep(0.01)

    until("")
    (tmp_path / "ill").touch()
    until("ill")
    (tmp_path / "net.d/n.conflist").unlink()
    assert "no network config found" in found.obstacle()


def test_networks_of_pods(tmp_path: Path) -> None:
    found = networks(tmp_path)
    pod = Pod("id", pod_config(), network="/n")
    assert found.add(pod) == ["10.0.0.5"] and found.check(pod) == ""
    found.collect()
    (tmp_path / "net.d/n.conflist").unlink()
    assert list((tmp_path / "results").iterdir())
    found.remove(pod, "")
    found.remove(pod, "")  # nothing is known of it any more
    assert not list((tmp_path / "results").iterdir())
    with pytest.raises(Unknown, match="no network config found"):
        found.add(pod)
    with pytest.raises(Unknown, match="gave no address"):
        networks(tmp_path, "[]").add(pod)
    assert RESULTS == "/var/lib/cni/results"


# Figures


def test_a_rate_is_between_two_figures() -> None:
    assert stats.rate((0, 0), (2 * 10**9, 10**9)) == 500_000_000
    assert stats.rate((5, 9), (5, 10)) == stats.rate((0, 10), (10, 5)) == 0
    found = stats.Rates()
    assert found.of("c", 0, 0) is None and found.of("c", 10**8, 10**8) is None
    assert found.of("c", 10**9, 10**9) == 10**9 and found.of("c", 10**9 + 5, 10**9) == 10**9
    found.keep({"d"})
    assert found.of("c", 2 * 10**9, 10**9) is None


def test_figures_of_a_cgroup() -> None:
    metrics = metrics_pb2.Metrics(
        cpu={"usage_usec": 7, "psi": {"some": {"total": 3, "avg10": 1.5}}},
        memory={"usage": 100, "inactive_file": 30, "anon": 20, "usage_limit": 170, "swap_usage": 5, "pgfault": 9},
    )
    told = cri.ContainerStats()
    stats.fill(told, stats.Rates(), "c", 5, metrics)
    assert told.cpu.usage_core_nano_seconds.value == 7000 and told.cpu.psi.Some.Avg10 == 1.5
    assert told.memory.working_set_bytes.value == 70 and told.memory.available_bytes.value == 100
    assert told.memory.rss_bytes.value == 20 and told.swap.swap_usage_bytes.value == 5
    assert not told.swap.HasField("swap_available_bytes") and not told.HasField("io")


# Records


def test_records_are_found_again(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    try:
        records = Records(context.sandboxes, context.containers)
        pod = Pod("a" * 64, pod_config(), created=5, network="/run/netns/x", attached=True)
        records.create_pod(pod, {})
        assert [one.id for one in Records(context.sandboxes, context.containers).load()] == [pod.id]
        pod.complete, pod.addresses = True, ["10.0.0.1"]
        records.save_pod(pod)
        again = Records(context.sandboxes, context.containers)
        assert again.load() == []
        found = again.pod("aaa")
        assert found.config == pod.config and found.addresses == ["10.0.0.1"] and found.attached and found.created == 5
        assert again.names == {"p_n_u_2": pod.id}
        with pytest.raises(NotFound):
            again.pod("b")
        with pytest.raises(NotFound):
            again.pod("")
        again.drop_pod(found)
        again.drop_pod(found)
        assert again.pods == again.names == {} and context.sandboxes.find("k8s.io") == []
    finally:
        context.close()


def test_containers_of_records(tmp_path: Path) -> None:
    from teu.api.services.containers.v1 import containers_pb2

    context = make_context(tmp_path)
    try:
        records = Records(context.sandboxes, context.containers)
        pod = Pod("a" * 64, pod_config(), complete=True)
        records.create_pod(pod, {})
        container = Container("b" * 64, pod, cri.ContainerConfig(metadata={"name": "c", "attempt": 1}), user=[1, 2, 3])
        record = containers_pb2.Container(id=container.id)
        record.runtime.name = "io.containerd.teu.v2"
        record.extensions["io.teu.cri.container"].CopyFrom(container.packed())
        context.containers.create("k8s.io", record)
        container.state, container.exit_code = EXITED, 3
        records.save_container(container)
        broken = containers_pb2.Container(id="broken")
        broken.runtime.name = "x"
        broken.extensions["io.teu.cri.container"].value = b"{"
        context.containers.create("k8s.io", broken)
        again = Records(context.sandboxes, context.containers)
        again.load()
        [found] = again.containers.values()
        assert (found.state, found.exit_code, found.user, found.name) == (EXITED, 3, [1, 2, 3], "c_p_n_u_1")
        assert again.of_pod(again.pod(pod.id)) == [found]
        again.drop_container(found)
        assert again.containers == {}
    finally:
        context.close()


def test_what_is_forced_to_disk_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from teu.api.services.containers.v1 import containers_pb2

    context = make_context(tmp_path)
    forced, force = [], os.fdatasync

    def counted(descriptor: int) -> None:
        forced.append(descriptor)
        force(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    try:
        records = Records(context.sandboxes, context.containers)
        pod, bridged = Pod("a" * 64, pod_config()), Pod("d" * 64, pod_config(), network="/run/netns/x")
        records.create_pod(pod, {})
        assert not forced  # a power cut takes all of it
        records.create_pod(bridged, {})
        assert len(forced) == 1  # a plugin of the network has files of it
        container = Container("b" * 64, pod, cri.ContainerConfig())
        record = containers_pb2.Container(id=container.id)
        record.runtime.name = "io.containerd.teu.v2"
        context.containers.create("k8s.io", record)
        context.snapshots.prepare("k8s.io", "native", container.id, "", {})
        forced.clear()
        records.drop_container(container)
        context.snapshots.remove("k8s.io", "native", container.id)
        assert len(forced) == 1  # both at once
    finally:
        context.close()


# Images


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("localhost:5000/a:1", "localhost:5000/a:1"),
        (f"a/b:1@sha256:{'a' * 64}", f"docker.io/a/b@sha256:{'a' * 64}"),
    ],
)
def test_names_are_whole(text: str, told: str) -> None:
    assert images.normalized(text) == told


def test_a_name_that_is_none() -> None:
    with pytest.raises(InvalidArgument, match="failed to parse image reference"):
        images.normalized("UPPER CASE")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, distribution.Credentials()),
        ({"username": "u", "password": "p"}, distribution.Credentials("u", "p")),
        ({"auth": base64.b64encode(b"u:p:q").decode()}, distribution.Credentials("u", "p:q")),
        ({"identity_token": "t"}, distribution.Credentials(identity_token="t")),
        ({"registry_token": "t"}, distribution.Credentials(registry_token="t")),
        ({"username": "u", "server_address": "https://reg.io/v2"}, distribution.Credentials("u", "")),
        ({"username": "u", "server_address": "other.io"}, distribution.Credentials()),
    ],
)
def test_credentials(fields: dict[str, str], told: distribution.Credentials) -> None:
    assert images.credentials(cri.AuthConfig(**fields), "reg.io") == told


@pytest.mark.parametrize("auth", ["!", base64.b64encode(b"nocolon").decode()])
def test_credentials_that_are_none(auth: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid auth config"):
        images.credentials(cri.AuthConfig(auth=auth), "reg.io")


@pytest.mark.parametrize(
    ("user", "told"),
    [("", (None, "")), ("0", (0, "")), ("5:6", (5, "")), ("www:g", (None, "www")), ("9" * 30, (None, "9" * 30))],
)
def test_users_of_images(user: str, told: tuple[int | None, str]) -> None:
    assert images.user_of({"User": user}) == told


# Root file systems


def test_users_by_the_images_files(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:\nwww:x:33:33::/:\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nwww:x:33:\nmore:x:50:www\n")
    root = os.open(tmp_path, os.O_PATH)
    try:
        assert rootfs.user(root, "www", [7], merge=True).groups == [33, 50, 7]
        assert rootfs.user(root, "www", [7], merge=False).groups == [33, 7]
        found = rootfs.user(root, "www:5", [], merge=True)
        assert (found.uid, found.gid, found.groups) == (33, 5, [5, 50])
        assert rootfs.user(root, "77", [], merge=True)[:3] == (77, 0, [0])
        with pytest.raises(ValueError, match="stranger"):
            rootfs.user(root, "stranger", [], merge=True)
        assert rootfs.user(-1, "5", [], merge=True).uid == 5
    finally:
        os.close(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_volumes_begin_with_what_the_image_has(tmp_path: Path) -> None:
    (tmp_path / "image/data").mkdir(parents=True)
    (tmp_path / "image/data/file").write_text("x")
    root = os.open(tmp_path / "image", os.O_PATH)
    try:
        config = {"Volumes": {"/data": {}, "/none": {}, "/taken": {}, "../out": {}}}
        made = rootfs.fill_volumes(root, str(tmp_path / "c"), config, {"/taken"})
    finally:
        os.close(root)
    assert set(made) == {"/data", "/none", "/out"}
    assert Path(made["/data"], "file").read_text() == "x" and os.listdir(made["/none"]) == []


def test_json_of_a_record_is_plain() -> None:
    packed = Pod("a", pod_config()).packed()
    assert json.loads(packed.value)["complete"] is False and packed.type_url == "io.teu.cri.pod"


def test_a_daemon_without_it_loads_none_of_it() -> None:
    script = (
        "import importlib, sys; from teu.containerd import daemon; "
        "[importlib.import_module(f'teu.containerd.services.{name}') for name in daemon.SERVICES]; "
        "print([name for name in sys.modules if name.startswith(('teu.containerd.cri', 'teu.cni', 'teu.api.cri'))])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
