# SPDX-License-Identifier: Apache-2.0
"""The validator: one change to a good specification, and the field that the error must name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from teu.oci import runtime_spec
from teu.oci.runtime_spec import SpecError
from teu.runc import spec as spec_command


def good() -> dict[str, Any]:
    """A specification in which every field is used."""
    spec = copy.deepcopy(spec_command.default())
    spec["domainname"] = "example"
    spec["annotations"] = {"a": "b"}
    spec["process"].update(
        {
            "consoleSize": {"height": 24, "width": 80},
            "oomScoreAdj": 10,
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
            "scheduler": {"policy": "SCHED_OTHER", "nice": 5},
            "execCPUAffinity": {"initial": "0", "final": "0-1,3"},
            "apparmorProfile": "docker-default",
        }
    )
    spec["process"]["user"].update({"umask": 18, "additionalGids": [5, 6]})
    spec["hooks"] = {"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["a=b"], "timeout": 5}]}
    spec["mounts"].append({"destination": "/data", "source": "/tmp", "type": "bind", "options": ["rbind", "rro"]})
    linux = spec["linux"]
    linux["namespaces"] += [{"type": "user"}, {"type": "time"}]
    linux.update(
        {
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            "timeOffsets": {"boottime": {"secs": -5, "nanosecs": 1}, "monotonic": {"secs": 5}},
            "devices": [{"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 438, "uid": 0}],
            "netDevices": {"eth0": {"name": "c0"}},
            "cgroupsPath": "/a/b",
            "rootfsPropagation": "rslave",
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "5", "user.max_user_namespaces": "3"},
            "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
            "personality": {"domain": "LINUX32"},
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 38,
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "architectures": ["SCMP_ARCH_X86_64"],
                "listenerPath": "/run/agent.sock",
                "listenerMetadata": "x",
                "syscalls": [
                    {
                        "names": ["mount"],
                        "action": "SCMP_ACT_NOTIFY",
                        "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
                    },
                ],
            },
        }
    )
    linux["resources"].update(
        {
            "memory": {"limit": 100, "swap": 200, "reservation": 50, "checkBeforeUpdate": True},
            "cpu": {"shares": 10, "quota": -1, "period": 1000, "burst": 1, "cpus": "0-1", "mems": "0", "idle": 0},
            "pids": {"limit": -1},
            "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "rdma": {"mlx5_1": {"hcaHandles": 3}},
            "unified": {"memory.high": "5"},
        }
    )
    return spec


def test_good() -> None:
    runtime_spec.check(good())


def test_default_and_rootless() -> None:
    spec = spec_command.default()
    runtime_spec.check(spec)
    spec_command.to_rootless(spec)
    runtime_spec.check(spec, rootless=True)


def test_null_is_absent() -> None:
    spec = good()
    spec["hooks"] = spec["linux"]["seccomp"] = spec["linux"]["resources"]["memory"] = None
    spec["process"]["env"] = spec["mounts"][0]["options"] = None
    runtime_spec.check(spec)


def test_null_is_absent_to_all_that_read_it_after_the_check() -> None:
    spec = good()
    spec["process"]["user"].update({"uid": None, "gid": None})
    argument = {"index": None, "value": None, "valueTwo": None, "op": "SCMP_CMP_EQ"}
    spec["linux"]["seccomp"]["syscalls"] = [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [argument]}]
    runtime_spec.check(spec)
    assert argument == {"op": "SCMP_CMP_EQ"}
    assert not {"uid", "gid"} & spec["process"]["user"].keys()


def test_unknown_fields_are_left_alone() -> None:
    spec = good()
    spec["vm"] = {"kernel": 5}
    spec["linux"]["somethingNew"] = True
    runtime_spec.check(spec)


class Gone:
    """In the place of a value: the field is not there."""

    def __repr__(self) -> str:
        return "gone"


GONE = Gone()
DENY = {"allow": False, "access": "rwm"}

# Where, what is put there, and the field that the error names.
BAD: list[tuple[str, Any, str]] = [
    ("ociVersion", GONE, "ociVersion"),
    ("ociVersion", 1, "ociVersion"),
    ("ociVersion", "one", "ociVersion"),
    ("ociVersion", "2.0.0", "ociVersion"),
    ("root", GONE, "root"),
    ("root.path", "", "root.path"),
    ("root.readonly", "yes", "root.readonly"),
    ("process", GONE, "process"),
    ("process.cwd", GONE, "process.cwd"),
    ("process.cwd", "tmp", "process.cwd"),
    ("process.cwd", "", "process.cwd"),
    ("process.args", [], "process.args"),
    ("process.args", ["a", 5], "process.args[1]"),
    ("process.args", ["a\0b"], "process.args[0]"),
    ("process.env", "A=B", "process.env"),
    ("process.terminal", 1, "process.terminal"),
    ("process.user.uid", -1, "process.user.uid"),
    ("process.user.uid", True, "process.user.uid"),
    ("process.user.gid", 2**32, "process.user.gid"),
    ("process.user.additionalGids", ["x"], "process.user.additionalGids[0]"),
    ("process.capabilities.bounding", "CAP_KILL", "process.capabilities.bounding"),
    ("process.rlimits", [{"type": "RLIMIT_FOO", "soft": 1, "hard": 1}], "process.rlimits[0].type"),
    ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2, "process.rlimits[1]"),
    ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}], "process.rlimits[0].soft"),
    ("process.oomScoreAdj", 1001, "process.oomScoreAdj"),
    ("process.ioPriority", {"class": "X"}, "process.ioPriority.class"),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_RT", "priority": 8}, "process.ioPriority.priority"),
    ("process.scheduler", {}, "process.scheduler.policy"),
    ("process.scheduler", {"policy": "SCHED_X"}, "process.scheduler.policy"),
    ("process.scheduler", {"policy": "SCHED_OTHER", "nice": 20}, "process.scheduler.nice"),
    ("process.scheduler", {"policy": "SCHED_OTHER", "priority": 1}, "process.scheduler.priority"),
    ("process.scheduler", {"policy": "SCHED_FIFO", "runtime": 1}, "process.scheduler.runtime"),
    ("process.scheduler", {"policy": "SCHED_OTHER", "flags": ["X"]}, "process.scheduler.flags[0]"),
    ("process.rlimits", [{"type": "RLIMIT_CPU", "hard": 1}], "process.rlimits[0].soft"),
    (
        "process",
        {"cwd": "/", "args": ["x"], "terminal": True, "consoleSize": {"height": 5}},
        "process.consoleSize.width",
    ),
    ("process.execCPUAffinity.initial", "x", "process.execCPUAffinity.initial"),
    ("process.selinuxLabel", "system_u:object_r:x_t:s0", "process.selinuxLabel"),
    ("annotations", {"a": 5}, "annotations[a]"),
    ("annotations", {"": "x"}, "annotations"),
    ("mounts", {}, "mounts"),
    ("mounts", [{"source": "/x"}], "mounts[0].destination"),
    ("mounts", [{"destination": ""}], "mounts[0].destination"),
    ("mounts", [{"destination": "/x", "source": "/y\0"}], "mounts[0].source"),
    ("mounts", [{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}], "mounts[0].options"),
    (
        "mounts",
        [{"destination": "/x", "options": ["bind"], "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}],
        "mounts[0].gidMappings",
    ),
    ("hooks", {"poststop": [{"path": "bin/true"}]}, "hooks.poststop[0].path"),
    ("hooks", {"startContainer": [{"path": "/bin/true", "timeout": 0}]}, "hooks.startContainer[0].timeout"),
    ("hooks", {"prestart": [{"args": ["x"]}]}, "hooks.prestart[0].path"),
    ("linux.namespaces", [{"type": "foo"}], "linux.namespaces[0].type"),
    ("linux.namespaces", [{"type": "pid"}, {"type": "pid"}], "linux.namespaces[1]"),
    ("linux.namespaces", [{"type": "pid", "path": "proc/1/ns/pid"}], "linux.namespaces[0].path"),
    ("linux.namespaces", [{"type": "mount"}, {"type": "user"}, {"type": "time"}], "hostname"),
    ("linux.namespaces", [{"type": "uts"}, {"type": "user"}, {"type": "time"}], "linux.maskedPaths"),
    ("linux.namespaces", [{"type": "uts"}, {"type": "mount"}], "linux.uidMappings"),
    ("linux.uidMappings", [], "linux.uidMappings"),
    ("linux.gidMappings", GONE, "linux.gidMappings"),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 1}], "linux.uidMappings[0].size"),
    ("linux.devices", [{"path": "/dev/x", "type": "c", "major": 2**32, "minor": 1}], "linux.devices[0].major"),
    ("linux.resources.devices", [{"allow": True, "major": 1, "minor": 2**63 - 1}], "linux.resources.devices[0].minor"),
    ("linux.timeOffsets", {"boottime": {}, "x": []}, "linux.timeOffsets[x]"),
    ("linux.resources.cpu.cpus", "0-\u0663", "linux.resources.cpu.cpus"),
    ("linux.resources.cpu.cpus", "\u00b2", "linux.resources.cpu.cpus"),
    ("linux.resources.cpu.cpus", "0-99999999999999999999", "linux.resources.cpu.cpus"),
    ("linux.resources.cpu.mems", "9" * 5000, "linux.resources.cpu.mems"),
    ("process.execCPUAffinity.initial", "0-9999999999", "process.execCPUAffinity.initial"),
    ("linux.timeOffsets", {"boottime": {"secs": "x"}}, "linux.timeOffsets.boottime.secs"),
    ("linux.devices", [{"type": "x", "path": "/dev/x"}], "linux.devices[0].type"),
    ("linux.devices", [{"type": "c", "path": "dev/x"}], "linux.devices[0].path"),
    ("linux.devices", [{"type": "c", "path": "/dev/x", "major": -1}], "linux.devices[0].major"),
    ("linux.netDevices", {"a/b": {}}, "linux.netDevices[a/b]"),
    ("linux.netDevices", {"eth0": {"name": "0123456789abcdef"}}, "linux.netDevices[eth0]"),
    ("linux.cgroupsPath", 5, "linux.cgroupsPath"),
    ("linux.rootfsPropagation", "both", "linux.rootfsPropagation"),
    ("linux.sysctl", {"kernel.hostname": "x"}, "linux.sysctl[kernel.hostname]"),
    ("linux.sysctl", {"vm.swappiness": "0"}, "linux.sysctl[vm.swappiness]"),
    ("linux.sysctl", {"kernel/sysrq": "0"}, "linux.sysctl[kernel/sysrq]"),
    ("linux.sysctl", {"kernel.domainname": "x"}, "linux.sysctl[kernel.domainname]"),
    ("linux.memoryPolicy", {"mode": "MPOL_X"}, "linux.memoryPolicy.mode"),
    ("linux.memoryPolicy", {"mode": "MPOL_BIND"}, "linux.memoryPolicy.nodes"),
    ("linux.memoryPolicy", {"mode": "MPOL_LOCAL", "nodes": "0"}, "linux.memoryPolicy.nodes"),
    ("linux.personality", {"domain": "BSD"}, "linux.personality.domain"),
    ("linux.personality", {"domain": "LINUX", "flags": ["X"]}, "linux.personality.flags"),
    ("linux.maskedPaths", ["/proc/kcore", "proc/acpi"], "linux.maskedPaths[1]"),
    ("linux.readonlyPaths", [""], "linux.readonlyPaths[0]"),
    ("linux.intelRdt", {"closID": ".."}, "linux.intelRdt.closID"),
    ("linux.intelRdt", {"closID": "a/b"}, "linux.intelRdt.closID"),
    ("linux.intelRdt", {"schemata": ["L3:0=f\nMB:0=20"]}, "linux.intelRdt.schemata"),
    ("linux.intelRdt", {"memBwSchema": "0=20"}, "linux.intelRdt.memBwSchema"),
    ("linux.intelRdt", {"closID": "/"}, "linux.intelRdt"),
    ("linux.resources.devices", [{"access": "rwm"}], "linux.resources.devices[0].allow"),
    ("linux.resources.devices", [DENY, {"allow": True, "type": "c"}], "linux.resources.devices[1].access"),
    ("linux.resources.devices", [{"allow": True, "access": "rx"}], "linux.resources.devices[0].access"),
    ("linux.resources.devices", [{**DENY, "type": "p"}], "linux.resources.devices[0].type"),
    ("linux.resources.memory.limit", "1g", "linux.resources.memory.limit"),
    ("linux.resources.memory.limit", -2, "linux.resources.memory.limit"),
    ("linux.resources.memory.limit", 0, "linux.resources.memory.swap"),
    ("linux.resources.memory.swap", 99, "linux.resources.memory.swap"),
    ("linux.resources.memory.swappiness", 101, "linux.resources.memory.swappiness"),
    ("linux.resources.blockIO.weightDevice", [{"major": 8, "minor": 0}], "linux.resources.blockIO.weightDevice[0]"),
    (
        "linux.resources.blockIO.throttleReadBpsDevice",
        [{"major": 8, "minor": 0}],
        "linux.resources.blockIO.throttleReadBpsDevice[0].rate",
    ),
    ("linux.resources.rdma", {"mlx5_1": {}}, "linux.resources.rdma[mlx5_1]"),
    ("linux.resources.cpu.cpus", "0-", "linux.resources.cpu.cpus"),
    ("linux.resources.cpu.shares", -1, "linux.resources.cpu.shares"),
    ("linux.resources.cpu.idle", 2, "linux.resources.cpu.idle"),
    ("linux.resources.blockIO.weight", 5, "linux.resources.blockIO.weight"),
    ("linux.resources.hugepageLimits", [{"pageSize": "2", "limit": 1}], "linux.resources.hugepageLimits[0].pageSize"),
    ("linux.resources.unified", {"../x.y": "1"}, "linux.resources.unified[../x.y]"),
    ("linux.resources.unified", {"memory": "1"}, "linux.resources.unified[memory]"),
    ("linux.resources.unified", {"memory.max": 1}, "linux.resources.unified[memory.max]"),
    ("linux.seccomp.defaultAction", GONE, "linux.seccomp.defaultAction"),
    ("linux.seccomp.defaultAction", "SCMP_ACT_X", "linux.seccomp.defaultAction"),
    ("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY", "linux.seccomp.defaultAction"),
    ("linux.seccomp.architectures", ["X"], "linux.seccomp.architectures[0]"),
    ("linux.seccomp.flags", ["X"], "linux.seccomp.flags[0]"),
    ("linux.seccomp.listenerPath", "", "linux.seccomp.listenerPath"),
    ("linux.seccomp.syscalls", [{"names": [], "action": "SCMP_ACT_LOG"}], "linux.seccomp.syscalls[0].names"),
    ("linux.seccomp.syscalls", [{"names": ["x"]}], "linux.seccomp.syscalls[0].action"),
    ("linux.seccomp.syscalls", [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}], "linux.seccomp.syscalls[0]"),
    (
        "linux.seccomp.syscalls",
        [{"names": ["x"], "action": "SCMP_ACT_LOG", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}],
        "linux.seccomp.syscalls[0].args[0].index",
    ),
]


@pytest.mark.parametrize(("place", "value", "field"), BAD, ids=[f"{place}={value!s:.40}" for place, value, _ in BAD])
def test_bad(place: str, value: Any, field: str) -> None:
    spec = good()
    *path, last = place.split(".")
    target = spec
    for name in path:
        target = target.setdefault(name, {})
    if value is GONE:
        del target[last]
    else:
        target[last] = value
    with pytest.raises(SpecError) as caught:
        runtime_spec.check(spec)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize("document", [None, [], "x", 5])
def test_not_an_object(document: Any) -> None:
    with pytest.raises(SpecError):
        runtime_spec.check(document)


def test_what_needs_root() -> None:
    spec = good()
    with pytest.raises(SpecError, match="linux.netDevices: .*root"):
        runtime_spec.check(spec, rootless=True)


def test_process_alone() -> None:
    runtime_spec.check_process(good()["process"])
    with pytest.raises(SpecError, match="process.args"):
        runtime_spec.check_process({"cwd": "/"})
    with pytest.raises(SpecError, match="process: is required"):
        runtime_spec.check_process(None)


@pytest.mark.parametrize(
    ("name", "dotted"),
    [
        ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/conf/eno2.100/rp_filter", "net.ipv4.conf.eno2/100.rp_filter"),
        ("kernel", "kernel"),
    ],
)
def test_sysctl_names(name: str, dotted: str) -> None:
    assert runtime_spec.sysctl_name(name) == dotted
