# SPDX-License-Identifier: Apache-2.0
"""What plugins want of a container, in its specification and its limits; and who waits for whom when one comes."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.nri.v1alpha1 import nri_pb2 as nri
from teu.containerd.core.errors import FailedPrecondition, InvalidArgument
from teu.containerd.cri import adjust, plugged
from teu.containerd.cri.nri import Gate
from teu.containerd.cri.records import Container, Pod
from teu.containerd.nri import merge
from teu.oci import cdi

SRC = str(Path(__file__).resolve().parents[3] / "src")
SPEC: dict[str, Any] = {
    "ociVersion": "1.1.0",
    "process": {"args": ["sleep"], "cwd": "/", "env": ["PATH=/bin", "KEEP=1", "GO=1"], "user": {"uid": 0, "gid": 0}},
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {"destination": "/a/b", "type": "tmpfs", "source": "tmpfs", "options": []},
    ],
    "annotations": {"own": "1", "go": "1"},
    "linux": {
        "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "ipc"}],
        "resources": {"cpu": {"shares": 2}, "devices": [{"allow": False, "access": "rwm"}]},
        "cgroupsPath": "teu.slice:cri-containerd:x",
        "sysctl": {"net.core.somaxconn": "5"},
        "devices": [{"path": "/dev/old", "type": "c", "major": 1, "minor": 3}],
    },
}


def changed(**fields: Any) -> dict[str, Any]:
    made = copy.deepcopy(SPEC)
    adjust.adjust(made, nri.ContainerAdjustment(**fields), edits)
    return made


def edits(names: list[str]) -> cdi.Edits:
    if names != ["v/c=1"]:
        raise FailedPrecondition("CDI device injection failed")
    return cdi.Edits(env=("CDI=1",), mounts=({"destination": "/cdi/", "source": "/x", "options": ["bind"]},))


def test_nothing_is_changed_by_nothing() -> None:
    assert changed() == SPEC
    assert changed(linux={"resources": {}}) == SPEC


def test_the_process() -> None:
    made = changed(
        env=[{"key": "PATH", "value": "/sbin"}, {"key": "-GO"}, {"key": "NEW", "value": "a=b"}, {"key": "-NONE"}],
        args=["echo", "x"],
        annotations={"-go": "", "own": "2", "new": "3"},
        rlimits=[{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}],
        linux={
            "oom_score_adj": {"value": 100},
            "io_priority": {"class": nri.IOPRIO_CLASS_BE, "priority": 5},
            "scheduler": {"policy": nri.SCHED_BATCH, "nice": 3, "flags": [nri.SCHED_FLAG_RESET_ON_FORK]},
        },
    )
    process = made["process"]
    assert process["env"] == ["PATH=/sbin", "KEEP=1", "NEW=a=b"] and process["args"] == ["echo", "x"]
    assert made["annotations"] == {"own": "2", "new": "3"}
    assert process["rlimits"] == [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}] and process["oomScoreAdj"] == 100
    assert process["ioPriority"] == {"class": "IOPRIO_CLASS_BE", "priority": 5}
    assert process["scheduler"] == {"policy": "SCHED_BATCH", "nice": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}


def test_hooks_come_behind() -> None:
    hook = {"path": "/bin/x", "args": ["x", "1"], "env": ["A=1"], "timeout": {"value": 4}}
    made = changed(hooks={"create_runtime": [hook], "poststop": [{"path": "/bin/y"}]})
    assert made["hooks"] == {
        "createRuntime": [{"path": "/bin/x", "args": ["x", "1"], "env": ["A=1"], "timeout": 4}],
        "poststop": [{"path": "/bin/y"}],
    }


def test_mounts_by_their_depth() -> None:
    made = changed(
        mounts=[
            {"destination": "-/a/b"},
            {"destination": "/x", "type": "bind", "source": "/tmp", "options": ["bind", "ro"]},
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ]
    )
    assert [one["destination"] for one in made["mounts"]] == ["/x", "/proc"]
    assert made["mounts"][0] == {"destination": "/x", "type": "bind", "source": "/tmp", "options": ["bind", "ro"]}


def test_devices_with_their_rules() -> None:
    new = {"path": "/dev/new", "type": "c", "major": 1, "minor": 5, "file_mode": {"value": 0o600}, "gid": {"value": 6}}
    made = changed(linux={"devices": [new, {"path": "-/dev/old"}]}, CDI_devices=[{"name": "v/c=1"}])
    node = {"path": "/dev/new", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600, "gid": 6}
    assert made["linux"]["devices"] == [node] and "CDI=1" in made["process"]["env"]
    rule = {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"}
    assert made["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}, rule]
    assert "/cdi" in [one["destination"] for one in made["mounts"]]


def test_namespaces_and_what_is_in_them() -> None:
    made = changed(
        linux={
            "namespaces": [{"type": "uts"}, {"type": "-ipc"}],
            "sysctl": {"-net.core.somaxconn": "", "net.ipv4.ip_forward": "1"},
            "net_devices": {"eth9": nri.LinuxNetDevice(name="inside")},
            "cgroups_path": "other.slice:a:b",
        }
    )["linux"]
    assert made["namespaces"] == [{"type": "mount"}, {"type": "network"}, {"type": "uts"}]
    assert made["sysctl"] == {"net.ipv4.ip_forward": "1"} and made["cgroupsPath"] == "other.slice:a:b"
    assert made["netDevices"] == {"eth9": {"name": "inside"}}
    joined = [{"type": "-uts"}, {"type": "ipc", "path": "/proc/self/ns/ipc"}]
    found = changed(linux={"namespaces": joined})["linux"]["namespaces"]
    assert found == [{"type": "mount"}, {"type": "network"}, {"type": "ipc", "path": "/proc/self/ns/ipc"}]


def test_seccomp() -> None:
    policy = {
        "default_action": "SCMP_ACT_ERRNO",
        "default_errno": {"value": 2},
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {
                "names": ["read"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 1, "value": 7, "op": "SCMP_CMP_EQ"}],
            },
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errno_ret": {"value": 1}},
        ],
    }
    made = changed(linux={"seccomp_policy": policy})["linux"]["seccomp"]
    assert made["defaultErrnoRet"] == 2 and made["syscalls"][1]["errnoRet"] == 1
    assert made["syscalls"][0]["args"] == [{"index": 1, "value": 7, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]
    assert plugged._seccomp(made) == nri.LinuxSeccomp(**policy)


def test_resources() -> None:
    made = changed(
        linux={
            "resources": {
                "memory": {"limit": {"value": 1 << 20}, "reservation": {"value": 1 << 19}},
                "cpu": {"quota": {"value": 5000}, "cpus": "0"},
                "hugepage_limits": [{"page_size": "2MB", "limit": 4}],
                "unified": {"memory.high": "9"},
                "pids": {"limit": 7},
                "devices": [{"allow": True, "type": "c", "major": {"value": 1}, "access": "r"}],
            },
            "memory_policy": {"mode": nri.MPOL_BIND, "nodes": "0", "flags": [nri.MPOL_F_STATIC_NODES]},
        }
    )["linux"]
    found = made["resources"]
    assert found["memory"] == {"limit": 1 << 20, "reservation": 1 << 19, "swap": 1 << 20}
    assert found["cpu"] == {"shares": 2, "quota": 5000, "cpus": "0"} and found["pids"] == {"limit": 7}
    assert found["hugepageLimits"] == [{"pageSize": "2MB", "limit": 4}] and found["unified"] == {"memory.high": "9"}
    assert found["devices"][-1] == {"allow": True, "access": "r", "type": "c", "major": 1}
    assert made["memoryPolicy"] == {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kernel memory": ({"linux": {"resources": {"memory": {"kernel": {"value": 5}}}}}, "memory.kernel"),
    "swappiness": ({"linux": {"resources": {"memory": {"swappiness": {"value": 5}}}}}, "swappiness"),
    "no killer": ({"linux": {"resources": {"memory": {"disable_oom_killer": {"value": True}}}}}, "oom_killer"),
    "realtime": ({"linux": {"resources": {"cpu": {"realtime_period": {"value": 5}}}}}, "realtime_period"),
    "block class": ({"linux": {"resources": {"blockio_class": {"value": "gold"}}}}, "gold"),
    "labels": ({"mounts": [{"destination": "/x", "source": "/tmp", "options": ["bind", "relabel"]}]}, "relabel"),
    "a namespace": ({"linux": {"namespaces": [{"type": "uhm"}]}}, "uhm"),
    "a limit": ({"rlimits": [{"type": "RLIMIT_X"}]}, "RLIMIT_X"),
    "a class": ({"linux": {"io_priority": {"class": 77}}}, "IOPrioClass 77"),
    "a policy": ({"linux": {"scheduler": {"policy": 77}}}, "LinuxSchedulerPolicy 77"),
    "a hook": ({"hooks": {"poststop": [{"path": "relative"}]}}, "hooks.poststop"),
    "rdt": ({"linux": {"rdt": {"clos_id": {"value": "x"}}}}, "intelRdt"),
    "rdt class": ({"linux": {"resources": {"rdt_class": {"value": "x"}}}}, "intelRdt"),
    "an action": ({"linux": {"seccomp_policy": {"default_action": "?"}}}, "seccomp"),
    "a score": ({"linux": {"oom_score_adj": {"value": 5000}}}, "oomScoreAdj"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    wanted, told = REFUSED[name]
    with pytest.raises(InvalidArgument) as caught:
        changed(**wanted)
    assert told in caught.value.message


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(FailedPrecondition):
        changed(CDI_devices=[{"name": "v/c=2"}])


def test_nothing_is_no_limit() -> None:
    nothing = nri.LinuxResources(
        memory={"limit": {}, "swappiness": {}, "disable_oom_killer": {}}, cpu={"realtime_period": {}}
    )
    assert adjust.limits(nothing) == {}
    assert adjust.limits(nri.LinuxResources(pids={"limit": -7})) == {"pids": {"limit": -1}}


def test_limits_of_what_is_there() -> None:
    wanted = nri.LinuxResources(
        memory={"limit": {"value": 5}, "reservation": {"value": 4}},
        cpu={"shares": {"value": 3}, "mems": "0"},
        unified={"memory.high": "9"},
        hugepage_limits=[{"page_size": "2MB", "limit": 4}],
        pids={"limit": 2},
    )
    assert adjust.asked(wanted) == cri.LinuxContainerResources(
        memory_limit_in_bytes=5,
        memory_swap_limit_in_bytes=5,
        cpu_shares=3,
        cpuset_mems="0",
        unified={"memory.high": "9"},
        hugepage_limits=[{"page_size": "2MB", "limit": 4}],
    )
    assert adjust.more(wanted) == {"memory": {"reservation": 4}, "pids": {"limit": 2}}
    with pytest.raises(InvalidArgument):
        adjust.more(nri.LinuxResources(rdt_class={"value": "x"}))


def test_a_container_as_a_plugin_sees_it() -> None:
    """What an adjustment says is there when it is told of the container."""
    config = cri.ContainerConfig(metadata={"name": "c"}, labels={"a": "b"}, annotations={"note": "x"})
    config.linux.security_context.seccomp.profile_type = cri.SecurityProfile.Localhost
    container = Container("id", Pod("pod", cri.PodSandboxConfig()), config)
    made = changed(
        hooks={"poststart": [{"path": "/bin/x", "timeout": {"value": 4}}]},
        rlimits=[{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}],
        linux={
            "scheduler": {"policy": nri.SCHED_BATCH, "nice": 3},
            "io_priority": {"class": nri.IOPRIO_CLASS_BE, "priority": 5},
            "resources": {"pids": {"limit": 9}, "memory": {"limit": {"value": 4096}}},
            "net_devices": {"eth9": nri.LinuxNetDevice(name="inside")},
        },
    )
    found = plugged._container(container, made, pid=7)
    assert (found.id, found.pod_sandbox_id, found.name, found.pid) == ("id", "pod", "c", 7)
    assert found.state == nri.CONTAINER_CREATED and found.annotations["note"] == "x" and found.annotations["own"] == "1"
    assert found.labels == {"a": "b", "io.cri-containerd.kind": "container"}
    assert found.hooks.poststart[0].timeout.value == 4 and found.rlimits[0].hard == 2
    linux = found.linux
    assert linux.scheduler == nri.LinuxScheduler(policy=nri.SCHED_BATCH, nice=3)
    assert linux.io_priority.priority == 5 and linux.net_devices["eth9"].name == "inside"
    assert linux.resources.pids.limit == 9 and linux.resources.memory.limit.value == 4096
    assert linux.resources.cpu.shares.value == 2 and not linux.resources.cpu.HasField("quota")
    assert linux.devices[0].path == "/dev/old" and linux.seccomp_profile.profile_type == nri.SecurityProfile.LOCALHOST
    assert [(one.type, one.path) for one in linux.namespaces][1] == ("network", "")


TEXTS = (
    "",
    "-",
    "/",
    "/dev/x",
    "-/dev/null",
    "x",
    "a=b",
    "\0",
    "ä",
    "uts",
    "-network",
    "rshared",
    "net.core.somaxconn",
)


def anything(dice: random.Random, message: Any, depth: int = 0) -> Any:
    """A message with some of its fields set to something."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < (0.7 if depth < 2 else 0.4):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            known = getattr(message, field.name)
            for _ in range(dice.randrange(3)):
                if field.message_type.fields_by_name["value"].message_type is not None:
                    anything(dice, known[dice.choice(TEXTS)], depth + 1)
                else:
                    known[dice.choice(TEXTS)] = dice.choice(TEXTS)
        elif field.message_type is not None and field.label == field.LABEL_REPEATED:
            for _ in range(dice.randrange(3)):
                anything(dice, getattr(message, field.name).add(), depth + 1)
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            anything(dice, getattr(message, field.name), depth + 1)
        else:
            numbers = (0, 1, 2, 7, 2**31 - 1) if "32" in str(field.type) else (0, 1, 3, 5, 2**31 - 1)
            value = dice.choice(TEXTS) if field.type == field.TYPE_STRING else dice.choice(numbers)
            if field.label == field.LABEL_REPEATED:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, bool(value) if field.type == field.TYPE_BOOL else value)
    return message


def test_whatever_they_want_is_done_or_refused() -> None:
    done = 0
    for seed in range(1500):
        wanted = anything(random.Random(seed), nri.ContainerAdjustment())
        try:
            adjust.adjust(copy.deepcopy(SPEC), wanted, edits)
            done += 1
        except (InvalidArgument, FailedPrecondition):
            pass
        for function in (adjust.asked, adjust.more):
            with contextlib.suppress(InvalidArgument):
                function(wanted.linux.resources)
    assert done > 20


def test_whatever_several_want_is_put_together_or_a_conflict() -> None:
    for seed in range(500):
        dice = random.Random(seed)
        creation = merge.Creation(nri.CreateContainerRequest(container=nri.Container(id="c")))
        with contextlib.suppress(merge.Conflict):
            for plugin in ("10-one", "20-two", "30-three"):
                creation.apply(anything(dice, nri.CreateContainerResponse()), plugin)
        asked = nri.UpdateContainerRequest(container=nri.Container(id="x"))
        with contextlib.suppress(merge.Conflict):
            for plugin in ("10-one", "20-two"):
                answer = anything(dice, nri.UpdateContainerResponse())
                merge.Updates(merge.Owners(), asked=asked).apply(answer.update, plugin)


def test_without_a_plugin_nothing_of_it_is_loaded() -> None:
    script = "import sys, teu.containerd.cri.service\nprint(*(name for name in sys.modules if 'nri' in name))"
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": SRC}, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["teu.containerd.cri.nri"]), done.stderr


def test_nobody_is_inside_with_one_alone() -> None:
    async def scenario() -> None:
        gate, order = Gate(), []
        leave = asyncio.Event()

        async def inside(name: str) -> None:
            async with gate.held():
                order.append(name)
                await leave.wait()

        async def alone() -> None:
            async with gate.alone(5) as quiet:
                order.append(f"alone {quiet}")

        first = asyncio.create_task(inside("first"))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(alone())
        await asyncio.sleep(0)
        second = asyncio.create_task(inside("second"))
        await asyncio.sleep(0.01)
        assert order == ["first"]
        leave.set()
        await asyncio.gather(first, waiting, second)
        assert order == ["first", "alone True", "second"]

    asyncio.run(scenario())


def test_one_that_is_slow_holds_nobody_for_ever() -> None:
    async def scenario() -> None:
        gate = Gate()
        async with gate.held():
            async with gate.alone(0.01) as quiet:
                assert not quiet
        async with gate.held(), asyncio.timeout(1):
            pass

    asyncio.run(scenario())
