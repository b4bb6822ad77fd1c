# SPDX-License-Identifier: Apache-2.0
"""What Debian's containerd has no CRI for yet, and that of its next release has: images as volumes, users of pods,
checkpoints. The same requests to both, and their answers side by side."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client
from runc_bundle import full_proc
from test_cri_checkpoint import COUNT, read
from test_cri_users import BAD as BAD_USERS
from test_cri_users import IDS, MAPPINGS, USERS, options

from teu.api.cri.v1 import cri_pb2 as cri

pytestmark = [pytest.mark.needs("newer-docker", "ctr", "systemd"), pytest.mark.timeout(300)]

VOLUME: dict[str, Any] = {"container_path": "/volume", "readonly": True, "image": {"image": peers.IMAGE}}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Client, Client]]:
    full_proc()
    with crihouse.both(newer=True) as clients:
        yield clients


def compared(clients: tuple[Client, Client], ask: Callable[[Client], Any]) -> Any:
    """The answer that both give."""
    ours, theirs = (ask(client) for client in clients)
    assert ours == theirs
    return ours


def test_what_runtimes_can(pair: tuple[Client, Client]) -> None:
    def ask(client: Client) -> Any:
        status = client.call("Status")
        [handler] = [one.features for one in status.runtime_handlers if not one.name]
        return handler.recursive_read_only_mounts, handler.user_namespaces, status.features.supplemental_groups_policy

    compared(pair, ask)


# Images as volumes

LOOKS = {
    "its files": "ls /volume; stat -c '%u %g %a' /volume /volume/bin/busybox",
    "read only": "touch /volume/x 2>&1; echo $?",
    "programs": "/volume/bin/busybox echo ran",
    "options": "grep ' /volume ' /proc/self/mountinfo | tr ' ' '\\n' | grep -cx 'ro,.*\\|ro'",
}


@pytest.mark.parametrize("name", LOOKS)
def test_an_image_as_a_volume(pair: tuple[Client, Client], name: str) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("volume")
        try:
            return client.output(pod, "c", ["sh", "-c", LOOKS[name]], mounts=[VOLUME])
        finally:
            client.remove_pod(pod)

    assert compared(pair, ask)


BAD_VOLUMES: dict[str, Any] = {
    "unknown": {"image": {"image": "nosuch:image"}},
    "with a path": {"host_path": "/tmp"},
    "writable": {"readonly": False},
}


@pytest.mark.parametrize("name", BAD_VOLUMES)
def test_images_that_cannot_be_volumes(pair: tuple[Client, Client], name: str) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("volume")
        try:
            wanted = client.container_config("bad", ["true"], peers.IMAGE, mounts=[{**VOLUME, **BAD_VOLUMES[name]}])
            client.refused("CreateContainer", pod_sandbox_id=pod[0], config=wanted, sandbox_config=pod[1])
            return len(client.call("ListContainers", filter={"pod_sandbox_id": pod[0]}).containers)
        finally:
            client.remove_pod(pod)

    assert compared(pair, ask) == 0


def test_volumes_in_a_status(pair: tuple[Client, Client]) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("volume")
        try:
            id = client.create(pod, "c", ["true"], mounts=[VOLUME])
            [mount] = client.status(id).mounts
            return mount.container_path, mount.readonly, mount.image.image
        finally:
            client.remove_pod(pod)

    compared(pair, ask)


# Users

INSIDE = {
    "ids": "cat /proc/self/uid_map /proc/self/gid_map; id",
    "owners": "stat -c '%n %u %g' / /bin/busybox /etc/hosts /etc/resolv.conf /dev/null /proc /sys /tmp 2>&1",
    "files": "stat -c '%a' /etc/hosts /dev/shm; echo x > /own && stat -c '%u' /own",
    "groups": "cat /proc/self/setgroups; grep -c . /proc/self/mountinfo > /dev/null && echo mounts",
    "capabilities": "grep Cap /proc/self/status",
    "network": "ip link show lo | grep -c UP; ping -c 1 -W 1 127.0.0.1 > /dev/null && echo pings",
    "cgroup": "cat /proc/self/cgroup | wc -l; mkdir /sys/fs/cgroup/x 2>/dev/null; echo $?",
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_pod_with_users(pair: tuple[Client, Client], name: str) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("users", **options())
        try:
            return client.output(pod, "c", ["sh", "-c", INSIDE[name]], **options())
        finally:
            client.remove_pod(pod)

    assert compared(pair, ask)


def test_a_volume_of_the_host(pair: tuple[Client, Client]) -> None:
    def ask(client: Client) -> Any:
        source = client.folder / "mapped"
        source.mkdir()
        pod = client.run_pod("users", **options())
        try:
            mount = {"container_path": "/data", "host_path": str(source), **MAPPINGS}
            look = "stat -c '%u %g' /data; echo new > /data/new; stat -c %u /data/new"
            return client.output(pod, "c", ["sh", "-c", look], mounts=[mount], **options()), (
                source / "new"
            ).stat().st_uid
        finally:
            client.remove_pod(pod)

    assert compared(pair, ask) == ("0 0\n0\n", 0)


def test_users_in_a_status(pair: tuple[Client, Client]) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("users", **options())
        try:
            told = client.call("PodSandboxStatus", pod_sandbox_id=pod[0]).status.linux.namespaces.options
            return told.userns_options.SerializeToString(deterministic=True), told.pid
        finally:
            client.remove_pod(pod)

    compared(pair, ask)


@pytest.mark.parametrize("name", BAD_USERS)
def test_users_that_cannot_be(pair: tuple[Client, Client], name: str) -> None:
    def ask(client: Client) -> Any:
        wanted = {"userns_options": {**USERS["userns_options"], **BAD_USERS[name]}}
        config = client.pod_config("bad", linux={"security_context": {"namespace_options": wanted}})
        client.refused("RunPodSandbox", config=config)
        return [one.metadata.name for one in client.call("ListPodSandbox").items]

    assert compared(pair, ask) == []


def test_a_container_with_other_users_than_its_pod(pair: tuple[Client, Client]) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("users", **options())
        try:
            config = client.container_config("bad", ["true"], peers.IMAGE)
            other = {"mode": cri.POD, "uids": [{"host_id": 5, "length": 9}], "gids": IDS}
            config.linux.security_context.namespace_options.userns_options.CopyFrom(cri.UserNamespace(**other))
            told = client.refused("CreateContainer", pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])[1]
            return "user namespace config for sandbox is different from container" in told
        finally:
            client.remove_pod(pod)

    assert compared(pair, ask)


# Checkpoints


def kinds(found: dict[str, bytes], name: str) -> dict[str, str]:
    """The members of a JSON file, with the kinds of their values."""
    return {key: type(value).__name__ for key, value in json.loads(found[name]).items()}


@pytest.mark.needs("criu")
def test_an_archive_is_as_containerds(pair: tuple[Client, Client], tmp_path: Path) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("saved")
        try:
            id = client.run_container(pod, "c", COUNT)
            peers.wait_until(lambda: len(client.log(pod, "c")) > 5, "it counts")
            place = tmp_path / f"{client.name}.tar"
            client.call("CheckpointContainer", container_id=id, location=str(place), timeout=60)
            found = read(place)
            with tarfile.open(fileobj=io.BytesIO(found["rootfs-diff.tar"])) as changes:
                changed = [name.strip("/") for name in changes.getnames() if "made" in name]
            status = json.loads(found["status.dump"])
            images = {name for name in found if name.startswith("checkpoint/") and "-" not in name}
            return {
                "files": sorted(name for name in found if "/" not in name),
                "images": sorted(images),
                "config.dump": kinds(found, "config.dump"),
                "status": kinds(found, "status"),
                "status.dump": {key: type(status.get(key)).__name__ for key in ("id", "state", "created_at", "image")},
                "changed": changed,
                "mode": oct(place.stat().st_mode),
                "state": client.status(id).state,
            }
        finally:
            client.remove_pod(pod)

    compared(pair, ask)


@pytest.mark.parametrize("what", ["unknown", "not started"])
def test_what_cannot_be_saved(pair: tuple[Client, Client], tmp_path: Path, what: str) -> None:
    def ask(client: Client) -> Any:
        pod = client.run_pod("not-saved")
        try:
            id = "nosuch" if what == "unknown" else client.create(pod, "c", ["true"])
            place = tmp_path / f"{client.name}.tar"
            client.refused("CheckpointContainer", container_id=id, location=str(place))
            return place.exists()
        finally:
            client.remove_pod(pod)

    assert compared(pair, ask) is False
