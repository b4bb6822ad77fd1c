# SPDX-License-Identifier: Apache-2.0
"""Images that the containers of a pod have as volumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crihouse
import peers
import pytest
from crihouse import Client

pytestmark = [pytest.mark.needs("containerd", "ctr", "systemd"), pytest.mark.timeout(300)]

VOLUME: dict[str, Any] = {"container_path": "/volume", "readonly": True, "image": {"image": peers.IMAGE}}


@pytest.fixture(scope="module")
def one() -> Iterator[Client]:
    with crihouse.ours() as client:
        yield client


def mounted(one: Client, pod: Any) -> list[str]:
    """What is mounted of images for a pod on the host."""
    needle = f"/cri/{pod[0]}/images/"
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if needle in line]


def test_an_image_is_a_volume(one: Client) -> None:
    pod = one.run_pod("whole")
    look = (
        "ls /volume; cmp /bin/busybox /volume/bin/busybox && echo same; touch /volume/x; /volume/bin/busybox echo ran"
    )
    told = one.output(pod, "c", ["sh", "-c", look], mounts=[VOLUME])
    assert {"bin", "etc", "same", "ran"} <= set(told.split())
    assert len(mounted(one, pod)) == 1
    one.remove_pod(pod)
    assert not mounted(one, pod)
    assert "cri-images-" not in one.daemon("-n", "k8s.io", "leases", "ls", "-q")
    assert "cri-images-" not in one.daemon("-n", "k8s.io", "snapshots", "ls")


def test_a_folder_of_an_image(one: Client) -> None:
    pod = one.run_pod("part")
    part = {**VOLUME, "image_sub_path": "bin"}
    assert "busybox" in one.output(pod, "c", ["ls", "/volume"], mounts=[part]).split()
    for bad in ("bin/busybox", "nosuch"):
        wanted = one.container_config("bad", ["true"], peers.IMAGE, mounts=[{**VOLUME, "image_sub_path": bad}])
        told = one.refused("CreateContainer", pod_sandbox_id=pod[0], config=wanted, sandbox_config=pod[1])[1]
        assert "ImageVolumeMountFailed" in told and bad in told
    one.remove_pod(pod)


def test_containers_share_an_image(one: Client) -> None:
    pod = one.run_pod("shared")
    ids = [one.run_container(pod, f"c{number}", ["sleep", "1000"], mounts=[VOLUME]) for number in range(3)]
    assert len(mounted(one, pod)) == 1
    assert len({one.exec(id, "stat", "-c", "%d:%i", "/volume/bin").stdout for id in ids}) == 1
    one.call("RemoveContainer", container_id=ids[0])
    assert b"busybox" in one.exec(ids[1], "ls", "/volume/bin").stdout
    [mount] = one.status(ids[1]).mounts
    image = one.call("ImageStatus", image={"image": peers.IMAGE}).image
    assert mount.image.image == peers.IMAGE
    assert mount.image.image_ref == image.id  # as PullImage has told it
    one.remove_pod(pod)


def test_volumes_are_there_after_a_restart_of_the_daemon() -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("lasting")
        id = one.run_container(pod, "c", ["sleep", "1000"], mounts=[VOLUME])
        one.daemon.kill()
        assert isinstance(one.daemon, crihouse.TeuContainerd)
        crihouse.launch(one.daemon, one.folder)
        one.connect()
        assert b"busybox" in one.exec(id, "ls", "/volume/bin").stdout
        assert one.output(pod, "after", ["ls", "/volume/bin"], mounts=[VOLUME])
        assert len(mounted(one, pod)) == 1
        one.call("RemoveImage", image={"image": peers.IMAGE})  # who has it mounted keeps it
        assert b"busybox" in one.exec(id, "ls", "/volume/bin").stdout
        one.remove_pod(pod)
        assert not mounted(one, pod)
