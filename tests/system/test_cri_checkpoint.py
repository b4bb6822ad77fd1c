# SPDX-License-Identifier: Apache-2.0
"""Containers of pods that are saved while they run, into archives as containerd's and CRI-O's."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crihouse
import grpc
import peers
import pytest
from crihouse import Client

from teu.api.cri.v1 import cri_pb2 as cri

pytestmark = [pytest.mark.needs("criu", "containerd", "ctr", "systemd"), pytest.mark.timeout(300)]

COUNT = ["sh", "-c", "mkdir /made; n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"]


@pytest.fixture(scope="module")
def one() -> Iterator[Client]:
    with crihouse.ours() as client:
        yield client


def read(place: Path) -> dict[str, bytes]:
    """The files of an archive."""
    with tarfile.open(place) as archive:
        found = {}
        for member in archive:
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
        return found


def test_a_container_is_saved_and_runs_on(one: Client, tmp_path: Path) -> None:
    pod = one.run_pod("saved")
    id = one.run_container(pod, "c", COUNT)
    peers.wait_until(lambda: len(one.log(pod, "c")) > 5, "it counts")
    place = tmp_path / "saved.tar"
    one.call("CheckpointContainer", container_id=id, location=str(place), timeout=60)
    before = len(one.log(pod, "c"))
    peers.wait_until(lambda: len(one.log(pod, "c")) > before + 5, "it counts on")
    found = read(place)
    assert place.stat().st_mode & 0o777 == 0o600
    assert {"config.dump", "spec.dump", "status.dump", "status", "rootfs-diff.tar", "container.log"} <= set(found)
    assert any(name.startswith("checkpoint/pages-") for name in found) and "checkpoint/inventory.img" in found
    config, status = json.loads(found["config.dump"]), json.loads(found["status.dump"])
    assert config["id"] == status["id"] == id and status["metadata"]["name"] == "c"
    assert status["state"] == cri.CONTAINER_RUNNING and isinstance(status["created_at"], int)
    assert json.loads(found["spec.dump"])["process"]["args"] == COUNT
    assert json.loads(found["status"])["Pid"] > 1
    with tarfile.open(fileobj=io.BytesIO(found["rootfs-diff.tar"])) as changes:
        assert "made" in changes.getnames() and "bin/busybox" not in changes.getnames()
    assert found["container.log"].splitlines()[0].endswith(b"stdout F 1")
    assert list(tmp_path.iterdir()) == [place]
    one.call("CheckpointContainer", container_id=id, location=str(place))  # again, over the first
    assert {name for name in read(place) if "/" not in name} == {name for name in found if "/" not in name}
    assert "cri-checkpoint-" not in one.daemon("-n", "k8s.io", "leases", "ls", "-q")
    one.remove_pod(pod)


def test_what_cannot_be_saved(one: Client, tmp_path: Path) -> None:
    pod = one.run_pod("not-saved")
    made, runs = one.create(pod, "made", ["true"]), one.run_container(pod, "runs", COUNT)

    def refused(**fields: Any) -> str:
        return one.refused("CheckpointContainer", **fields)[0]

    place = str(tmp_path / "x.tar")
    assert refused(container_id="nosuch", location=place) == "NOT_FOUND"
    assert refused(container_id=made, location=place) == "FAILED_PRECONDITION"
    assert refused(container_id=runs, location="relative.tar") == "INVALID_ARGUMENT"
    assert refused(container_id=runs, location="/no/such/folder/x.tar") == "FAILED_PRECONDITION"
    assert one.exec(runs, "echo", "there").stdout == b"there\n"
    one.remove_pod(pod)


def test_a_daemon_that_ends_meanwhile_lets_the_container_go_on(tmp_path: Path) -> None:
    with crihouse.ours() as one:
        pod = one.run_pod("frozen")
        id = one.run_container(pod, "c", COUNT)
        for wait in (0.05, 0.2, 0.5):
            request = cri.CheckpointContainerRequest(container_id=id, location=str(tmp_path / "x.tar"))
            asked = one.runtime.CheckpointContainer.future(request)
            time.sleep(wait)  # in whatever it is then
            one.daemon.kill()
            asked.cancel()
            assert isinstance(one.daemon, crihouse.TeuContainerd)
            crihouse.launch(one.daemon, one.folder)
            one.connect()
            before = len(one.log(pod, "c"))
            peers.wait_until(lambda before=before: len(one.log(pod, "c")) > before + 5, "it counts on")
        assert one.status(id).state == cri.CONTAINER_RUNNING
        one.remove_pod(pod)


def test_a_request_that_takes_too_long(one: Client, tmp_path: Path) -> None:
    pod = one.run_pod("slow")
    id = one.run_container(pod, "c", COUNT)
    request = cri.CheckpointContainerRequest(container_id=id, location=str(tmp_path / "x.tar"))
    with pytest.raises(grpc.RpcError):
        one.runtime.CheckpointContainer(request, timeout=0.02)
    before = len(one.log(pod, "c"))
    peers.wait_until(lambda: len(one.log(pod, "c")) > before + 5, "it counts on")
    peers.wait_until(lambda: not list((one.daemon.state / "root/checkpoints").glob("*")), "nothing is left")
    assert not list(tmp_path.iterdir())
    one.remove_pod(pod)
