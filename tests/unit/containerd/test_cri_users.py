# SPDX-License-Identifier: Apache-2.0
"""Pods with user namespaces: what is refused, what is made, and what a specification has of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.types import mount_pb2
from teu.containerd.core.errors import Error, FailedPrecondition, InvalidArgument, Unimplemented
from teu.containerd.cri import checks, files, namespaces, spec
from teu.containerd.cri.pods import own_namespaces
from teu.containerd.cri.records import Pod
from teu.containerd.cri.users import Maps, Range, maps_of, remapped
from teu.linux import mounts, netns
from teu.linux.namespaces import CLONE_NEWNS, unshare
from teu.oci import runtime_spec

MAPS = Maps(Range(65536, 65536), Range(131072, 65536))
MAPPED: dict[str, Any] = {
    "mode": cri.POD,
    "uids": [{"host_id": 65536, "length": 65536}],
    "gids": [{"host_id": 131072, "length": 65536}],
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def options(**fields: Any) -> Any:
    return cri.NamespaceOption(userns_options={**MAPPED, **fields})


def test_ids_of_a_pod() -> None:
    assert maps_of(options()) == MAPS and maps_of(cri.NamespaceOption()) is None
    assert maps_of(cri.NamespaceOption(userns_options={"mode": cri.NODE})) is None
    assert MAPS.labels == {
        "containerd.io/snapshot/uidmapping": "0:65536:65536",
        "containerd.io/snapshot/gidmapping": "0:131072:65536",
    }


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mode": cri.NODE}, "can't use user namespace mode NODE with mappings. Got 1 UID mappings"),
        ({"mode": cri.CONTAINER}, "unsupported user namespace mode: CONTAINER"),
        ({"mode": cri.TARGET}, "unsupported user namespace mode: TARGET"),
        ({"uids": []}, "uids: only one mapping line supported, got 0"),
        ({"gids": [{"length": 1}, {"length": 1}]}, "gids: only one mapping line supported, got 2"),
        ({"uids": [{"host_id": 1}]}, "invalid mapping length: 0"),
        ({"uids": [{"host_id": 1, "container_id": 5, "length": 1}]}, "must begin with the pod's 0, not with 5"),
    ],
)
def test_ids_that_cannot_be(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        maps_of(options(**fields))


@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_not_with_the_hosts_namespaces(kind: str) -> None:
    config = cri.PodSandboxConfig(metadata={"name": "p"})
    config.linux.security_context.namespace_options.CopyFrom(options())
    checks.pod(config)
    assert own_namespaces(config) == {"network", "uts", "ipc", "user"}
    setattr(config.linux.security_context.namespace_options, kind, cri.NODE)
    with pytest.raises(Unimplemented, match=f"with the host's {kind}"):
        checks.pod(config)


@pytest.mark.parametrize(
    ("mount", "told"),
    [
        ({"uidMappings": [{"length": 1}]}, r"mounts\[0\]: uidMappings and gidMappings go together"),
        ({"uidMappings": [{"length": 0}], "gidMappings": [{"length": 1}]}, "invalid mapping length: 0"),
    ],
)
def test_mappings_of_mounts_that_cannot_be(mount: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        checks.container(cri.ContainerConfig(metadata={"name": "c"}, mounts=[mount]))


def build(maps: Maps | None, without: Sequence[str] = (), **fields: Any) -> Any:
    config = cri.ContainerConfig(metadata={"name": "c"}, command=["run"], **fields)
    joined = {"network": "/run/netns/x", "ipc": "/s/ipc", "uts": "/s/uts", "pid": "", "user": "/s/user"}
    joined = {kind: path for kind, path in joined.items() if kind not in without}
    inside = spec.Inside({"/etc/hosts": "/s/hosts"}, "/s/shm", joined, "h")
    pod = Pod("p", cri.PodSandboxConfig(metadata={"name": "p"}))
    pod.config.linux.security_context.privileged = True
    wanted = spec.Wanted("c", pod, config, {}, "image", inside, volumes={"/data": "/v/0"}, maps=maps)
    wanted.images = {1: "/usr"}
    return spec.build(wanted)


def test_a_specification() -> None:
    one = {"host_id": 65536, "length": 65536}
    both = {"uidMappings": [one], "gidMappings": [one]}
    given = [
        {"container_path": "/a", "host_path": "/usr", **both},
        {"container_path": "/b", "image": {"image": "x"}, "readonly": True, **both},
        {"container_path": "/c", "host_path": "/usr"},
    ]
    made = build(MAPS, mounts=given)
    assert {"type": "user", "path": "/s/user"} in made["linux"]["namespaces"]
    assert made["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 65536, "size": 65536}]
    assert made["linux"]["gidMappings"] == [{"containerID": 0, "hostID": 131072, "size": 65536}]
    of = {entry["destination"]: entry for entry in made["mounts"]}
    assert of["/a"]["uidMappings"] == of["/a"]["gidMappings"] == made["linux"]["uidMappings"]
    assert "uidMappings" not in of["/b"] and "uidMappings" not in of["/c"] and "uidMappings" not in of["/etc/hosts"]
    assert of["/data"]["gidMappings"] == made["linux"]["gidMappings"]
    assert "gid=5" in of["/dev/pts"]["options"]
    runtime_spec.check(made)


def test_the_hosts_network_with_users_of_its_own() -> None:
    config = cri.PodSandboxConfig(metadata={"name": "p"})
    config.linux.security_context.namespace_options.CopyFrom(options())
    config.linux.security_context.namespace_options.network = cri.NODE
    checks.pod(config)
    assert own_namespaces(config) == {"ipc", "user"}
    made = build(MAPS, without=("network", "uts"))
    [system] = [entry for entry in made["mounts"] if entry["destination"] == "/sys"]
    assert (system["type"], system["options"]) == ("bind", ["rbind", "rprivate", *spec.STRICT, "rro"])
    [system] = [entry for entry in build(None, without=("network", "user"))["mounts"] if entry["destination"] == "/sys"]
    assert system["type"] == "sysfs"  # whose root is the host's


def test_a_pod_of_few_ids_has_no_group_of_terminals() -> None:
    made = build(Maps(Range(1000, 1), Range(1000, 1)))
    assert not [one for entry in made["mounts"] for one in entry["options"] if one.startswith("gid=")]


def test_a_privileged_container_has_its_own_cgroups() -> None:
    # of the host's it could mount none
    made = build(MAPS, linux={"security_context": {"privileged": True}})
    assert {"type": "cgroup"} in made["linux"]["namespaces"]


def test_a_pods_init() -> None:
    made = spec.of_init("/usr/bin/catatonit", {"user": "/s/user", "ipc": "/s/ipc"}, MAPS)
    assert made["linux"]["uidMappings"][0]["hostID"] == 65536
    runtime_spec.check({**made, "root": {"path": "/x"}})
    assert "uidMappings" not in spec.of_init("/usr/bin/catatonit", {})["linux"]


def test_mounts_of_a_snapshot() -> None:
    overlay = mount_pb2.Mount(type="overlay", source="overlay", options=["lowerdir=/a:/b"])
    [made] = remapped([overlay], MAPS, True)
    assert list(made.options) == ["lowerdir=/a:/b", "uidmap=0:65536:65536", "gidmap=0:131072:65536"]
    assert list(overlay.options) == ["lowerdir=/a:/b"]
    assert remapped([made], MAPS, True) == [made]  # by the snapshotter itself
    assert remapped([overlay], MAPS, False) == [overlay]
    with pytest.raises(FailedPrecondition, match="not of zfs"):
        remapped([mount_pb2.Mount(type="zfs", source="pool/x")], MAPS, True)


@needs_root
def test_files_are_the_pods(tmp_path: Path) -> None:
    files.write(str(tmp_path), cri.PodSandboxConfig(), "name", MAPS)
    for name in ("hosts", "hostname", "resolv.conf"):
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid) == (65536, 131072)


# The kernel's part


def apart(body: Callable[[], None]) -> None:
    """In a mount namespace that ends with the test."""

    def run() -> None:
        unshare(CLONE_NEWNS)
        mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        body()

    netns.in_thread(run)


def inside(paths: dict[str, str], *command: str) -> str:
    names = {"user": "user", "network": "net", "ipc": "ipc", "uts": "uts"}
    entered = [f"--{names[kind]}={path}" for kind, path in paths.items()]
    return subprocess.run(["nsenter", *entered, *command], capture_output=True, text=True, check=True).stdout


def possible() -> bool:
    """Whether this machine lets root have user namespaces at all."""
    done = subprocess.run(["unshare", "--user", "true"], capture_output=True)
    return os.geteuid() == 0 and done.returncode == 0 and shutil.which("nsenter") is not None


@pytest.mark.skipif("not possible()", reason="needs root and user namespaces")
def test_namespaces_that_a_user_namespace_owns(tmp_path: Path) -> None:
    paths = {kind: str(tmp_path / "pod" / kind) for kind in ("network", "ipc", "uts", "user")}

    def body() -> None:
        namespaces.make(paths, "inner", {"kernel.shm_rmid_forced": "1", "net.core.somaxconn": "77"}, MAPS)
        assert inside(paths, "cat", "/proc/self/uid_map").split() == ["0", "65536", "65536"]
        assert inside(paths, "cat", "/proc/self/gid_map").split() == ["0", "131072", "65536"]
        assert inside(paths, "hostname") == "inner\n"
        assert inside(paths, "cat", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/core/somaxconn") == "1\n77\n"
        # its root may do there what a pod's root may do
        inside(paths, "hostname", "changed")
        assert inside(paths, "hostname") == "changed\n"
        for path in paths.values():
            assert namespaces.held(path)
            namespaces.drop(path)
            assert not os.path.exists(path)

    apart(body)


@pytest.mark.skipif("not possible()", reason="needs root and user namespaces")
@pytest.mark.parametrize(
    ("maps", "sysctls", "told"),
    [
        (Maps(Range(65536, 1 << 32), MAPS.gids), {}, "cannot be mapped"),
        (MAPS, {"kernel.shm_rmid_forced": "nonsense"}, "sysctl kernel.shm_rmid_forced"),
    ],
)
def test_nothing_is_left_of_what_cannot_be(tmp_path: Path, maps: Maps, sysctls: dict[str, str], told: str) -> None:
    paths = {kind: str(tmp_path / kind) for kind in ("network", "ipc", "user")}

    def body() -> None:
        with pytest.raises(Error, match=told):
            namespaces.make(paths, "h", sysctls, maps)
        assert os.listdir(tmp_path) == []

    apart(body)


@pytest.mark.skipif("not possible()", reason="needs root and user namespaces")
def test_what_the_host_lets_pods_have(tmp_path: Path) -> None:
    assert "cannot be mapped" in namespaces.user_obstacle("/proc")
    told = namespaces.user_obstacle(str(tmp_path))
    assert told == "" or str(tmp_path) in told  # by the file system of this folder
