# SPDX-License-Identifier: Apache-2.0
"""What stands for pause containers, so that kubelet's cAdvisor finds the networks of pods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containerd_parts import make_context

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import NotFound
from teu.containerd.cri.cadvisor import StandIns
from teu.containerd.cri.records import NAMESPACE, Container, Pod

ID = "a" * 64
PARENT = "kubepods-burstable-podx.slice"
SLICE = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice"


class Rig:
    """A hierarchy of cgroups that are plain folders, and a pod in it."""

    def __init__(self, folder: Path) -> None:
        self.context = make_context(folder / "daemon")
        self.slice = folder / "cgroup" / SLICE
        self.slice.mkdir(parents=True)
        self.stand_ins = StandIns(self.context, str(folder / "cgroup"))
        config = cri.PodSandboxConfig(metadata={"name": "p", "namespace": "n", "uid": "u"}, labels={"app": "x"})
        config.linux.cgroup_parent = PARENT
        self.pod = Pod(ID, config, network="/run/netns/x")

    def container(self, name: str) -> Container:
        return Container(name, self.pod, cri.ContainerConfig(metadata={"name": name}))

    def told(self) -> int:
        """The process that clients are told: by the CRI, and over the wire."""
        tasks, found = self.context.tasks, set()
        for ask in (tasks.get, tasks.told):
            try:
                found.add(asyncio.run(ask(NAMESPACE, ID)).pid)
            except NotFound:
                found.add(0)
        (pid,) = found
        return pid

    def cgroups(self) -> list[str]:
        return [one.name for one in self.slice.iterdir()]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "daemon").mkdir()
    made = Rig(tmp_path)
    yield made
    made.context.close()


SCOPE = f"cri-containerd-{ID}.scope"


def test_a_record_as_of_a_sandbox(rig: Rig) -> None:
    rig.stand_ins.create(rig.pod)
    rig.stand_ins.create(rig.pod)
    record: Any = rig.context.containers.get(NAMESPACE, ID)
    assert dict(record.labels) == {"app": "x", "io.cri-containerd.kind": "sandbox"}
    made = json.loads(record.spec.value)
    assert made["annotations"]["io.kubernetes.cri.container-type"] == "sandbox" and made["process"]["env"] == []
    assert made["linux"]["cgroupsPath"] == f"{PARENT}:cri-containerd:{ID}"
    rig.stand_ins.delete(rig.pod)
    rig.stand_ins.delete(rig.pod)
    with pytest.raises(NotFound):
        rig.context.containers.get(NAMESPACE, ID)


def test_a_process_of_the_pod_while_there_is_one(rig: Rig) -> None:
    rig.stand_ins.create(rig.pod)
    one, other = rig.container("one"), rig.container("other")
    assert rig.told() == 0 and rig.cgroups() == []
    rig.stand_ins.started(one, 11)
    assert rig.told() == 11 and rig.cgroups() == [SCOPE]
    made = (rig.slice / SCOPE).stat().st_ino, (rig.slice / SCOPE).stat().st_ctime_ns
    rig.stand_ins.started(other, 22)
    assert rig.told() == 11 and ((rig.slice / SCOPE).stat().st_ino, (rig.slice / SCOPE).stat().st_ctime_ns) == made
    rig.stand_ins.ended(one)  # another takes its place, in a new cgroup
    assert rig.told() == 22 and rig.cgroups() == [SCOPE]
    assert (rig.slice / SCOPE).stat().st_ctime_ns > made[1]
    rig.stand_ins.started(one, 33)
    rig.stand_ins.ended(one)
    assert rig.told() == 22
    rig.stand_ins.ended(one)  # a start that failed was never told
    rig.stand_ins.ended(other)
    assert rig.told() == 0 and rig.cgroups() == []
    rig.stand_ins.started(one, 44)
    rig.stand_ins.delete(rig.pod)
    assert rig.told() == 0 and rig.cgroups() == []


def test_what_an_earlier_daemon_has_left(rig: Rig) -> None:
    (rig.slice / SCOPE).mkdir()
    rig.stand_ins.clear([rig.pod])
    assert rig.cgroups() == []


def test_pods_of_the_hosts_network_have_none(rig: Rig) -> None:
    rig.pod.network = ""
    rig.stand_ins.create(rig.pod)
    rig.stand_ins.started(rig.container("c"), 11)
    assert rig.told() == 0 and rig.cgroups() == []
    rig.stand_ins.ended(rig.container("c"))
    rig.stand_ins.delete(rig.pod)


def test_without_a_slice_there_is_no_cgroup(rig: Rig) -> None:
    rig.slice.rmdir()
    rig.stand_ins.started(rig.container("c"), 11)  # it is not there
    assert rig.told() == 11
    rig.stand_ins.delete(rig.pod)
    rig.pod.config.linux.cgroup_parent = ""
    rig.stand_ins.started(rig.container("c"), 11)
    assert rig.told() == 11
    rig.stand_ins.delete(rig.pod)
