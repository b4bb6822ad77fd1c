# SPDX-License-Identifier: Apache-2.0
"""What several plugins want of one container: put together, or a conflict."""

from __future__ import annotations

from typing import Any

import pytest

from teu.api.nri.v1alpha1 import nri_pb2 as nri
from teu.containerd.nri import merge, validator
from teu.containerd.nri.merge import Conflict, Creation, Owners, Updates

ID = "container"


def creation() -> Creation:
    container = nri.Container(
        id=ID,
        name="c",
        env=["PATH=/bin", "KEEP=1"],
        args=["sleep"],
        annotations={"own": "1"},
        mounts=[{"destination": "/proc", "type": "proc"}, {"destination": "/data", "source": "/a"}],
    )
    container.linux.namespaces.add(type="uts", path="/u")
    container.linux.resources.cpu.shares.value = 2
    return Creation(nri.CreateContainerRequest(container=container))


def adjusted(**fields: Any) -> Any:
    return nri.CreateContainerResponse(adjust=nri.ContainerAdjustment(**fields))


# Each is wanted by two plugins.
TWICE: dict[str, tuple[dict[str, Any], str]] = {
    "annotations": ({"annotations": {"a": "1"}}, "Annotations a"),
    "mounts": ({"mounts": [{"destination": "/m"}]}, "Mounts /m"),
    "env": ({"env": [{"key": "A", "value": "1"}]}, "Env A"),
    "args": ({"args": ["x"]}, "Args"),
    "rlimits": ({"rlimits": [{"type": "RLIMIT_CORE"}]}, "Rlimits RLIMIT_CORE"),
    "CDI devices": ({"CDI_devices": [{"name": "v/c=1"}]}, "CdiDevices v/c=1"),
    "devices": ({"linux": {"devices": [{"path": "/dev/x"}]}}, "Devices /dev/x"),
    "memory": ({"linux": {"resources": {"memory": {"limit": {"value": 1}}}}}, "MemLimit"),
    "a memory that is nothing": ({"linux": {"resources": {"memory": {"swap": {}}}}}, "MemSwapLimit"),
    "cpu": ({"linux": {"resources": {"cpu": {"shares": {"value": 1}}}}}, "CPUShares"),
    "cpus": ({"linux": {"resources": {"cpu": {"cpus": "0"}}}}, "CPUSetCPUs"),
    "pages": ({"linux": {"resources": {"hugepage_limits": [{"page_size": "2MB"}]}}}, "HugepageLimits 2MB"),
    "unified": ({"linux": {"resources": {"unified": {"memory.high": "1"}}}}, "CgroupsUnified memory.high"),
    "pids": ({"linux": {"resources": {"pids": {"limit": 1}}}}, "PidsLimit"),
    "block devices": ({"linux": {"resources": {"blockio_class": {"value": "x"}}}}, "BlockioClass"),
    "rdt class": ({"linux": {"resources": {"rdt_class": {"value": "x"}}}}, "RdtClass"),
    "cgroup": ({"linux": {"cgroups_path": "/x"}}, "CgroupsPath"),
    "oom score": ({"linux": {"oom_score_adj": {"value": 1}}}, "OomScoreAdj"),
    "io priority": ({"linux": {"io_priority": {"class": 1}}}, "IoPriority"),
    "seccomp": ({"linux": {"seccomp_policy": {"default_action": "x"}}}, "SeccompPolicy"),
    "namespaces": ({"linux": {"namespaces": [{"type": "uts"}]}}, "Namespace uts"),
    "no namespace": ({"linux": {"namespaces": [{"type": "-uts"}]}}, "Namespace uts"),
    "sysctl": ({"linux": {"sysctl": {"a.b": "1"}}}, "Sysctl a.b"),
    "network devices": ({"linux": {"net_devices": {"eth1": nri.LinuxNetDevice(name="x")}}}, "LinuxNetDevices eth1"),
    "scheduler": ({"linux": {"scheduler": {"policy": 1}}}, "LinuxSched"),
    "rdt": ({"linux": {"rdt": {"clos_id": {"value": "x"}}}}, "RdtClosID"),
    "memory policy": ({"linux": {"memory_policy": {"mode": 1}}}, "MemoryPolicy"),
}


@pytest.mark.parametrize("name", TWICE)
def test_what_two_want_is_a_conflict(name: str) -> None:
    wanted, what = TWICE[name]
    found = creation()
    found.apply(adjusted(**wanted), "10-one")
    with pytest.raises(Conflict) as caught:
        found.apply(adjusted(**wanted), "20-two")
    assert str(caught.value) == f'plugins "20-two" and "10-one" both tried to set {what}'


def test_every_field_of_an_adjustment_is_looked_at() -> None:
    """A field that a newer interface has is wanted by TWICE, or by a test of its own."""
    wanted = {name for fields, _ in TWICE.values() for name in fields}
    linux = {name for fields, _ in TWICE.values() for name in fields.get("linux", {})}
    assert {one.name for one in nri.ContainerAdjustment.DESCRIPTOR.fields} == wanted | {"hooks"}
    assert {one.name for one in nri.LinuxContainerAdjustment.DESCRIPTOR.fields} == linux
    for message, table in (("LinuxMemory", merge.MEMORY), ("LinuxCPU", merge.CPU)):
        assert {one.name for one in getattr(nri, message).DESCRIPTOR.fields} == set(table)
    assert {one.name for one in nri.Hooks.DESCRIPTOR.fields} == set(merge.HOOKS)


def test_the_next_one_sees_what_was_changed() -> None:
    found = creation()
    found.apply(
        adjusted(
            annotations={"new": "2", "-own": ""},
            env=[{"key": "-KEEP"}, {"key": "PATH", "value": "/sbin"}],
            mounts=[{"destination": "-/proc"}, {"destination": "/data", "source": "/b"}],
            args=["echo"],
            rlimits=[{"type": "RLIMIT_CORE", "hard": 1}],
            linux={
                "namespaces": [{"type": "-uts"}, {"type": "ipc", "path": "/i"}],
                "resources": {"cpu": {"shares": {"value": 9}}, "pids": {"limit": 3}},
                "oom_score_adj": {"value": 7},
                "cgroups_path": "/x",
            },
        ),
        "10-one",
    )
    shown = found.request.container
    assert (
        dict(shown.annotations) == {"new": "2"} and list(shown.env) == ["PATH=/sbin"] and list(shown.args) == ["echo"]
    )
    assert [(one.destination, one.source) for one in shown.mounts] == [("/data", "/b")]
    assert [one.type for one in shown.linux.namespaces] == ["ipc"]
    assert shown.linux.resources.cpu.shares.value == 9 and shown.linux.resources.pids.limit == 3
    assert shown.linux.oom_score_adj.value == 7 and shown.linux.cgroups_path == "/x"
    assert dict(found.adjust.annotations) == {"new": "2", "-own": ""}
    assert [one.destination for one in found.adjust.mounts] == ["-/proc", "/data"]
    assert [one.key for one in found.adjust.env] == ["-KEEP", "PATH"]


TAKEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "env": ({"env": [{"key": "A", "value": "1"}]}, {"env": [{"key": "-A"}, {"key": "A", "value": "2"}]}),
    "annotations": ({"annotations": {"a": "1"}}, {"annotations": {"-a": "", "a": "2"}}),
    "mounts": (
        {"mounts": [{"destination": "/m", "source": "1"}]},
        {"mounts": [{"destination": "-/m"}, {"destination": "/m", "source": "2"}]},
    ),
    "args": ({"args": ["1"]}, {"args": ["", "2"]}),
    "devices": (
        {"linux": {"devices": [{"path": "/dev/x", "major": 1}]}},
        {"linux": {"devices": [{"path": "-/dev/x"}, {"path": "/dev/x", "major": 2}]}},
    ),
    "sysctl": ({"linux": {"sysctl": {"a": "1"}}}, {"linux": {"sysctl": {"-a": "", "a": "2"}}}),
    "rdt": (
        {"linux": {"rdt": {"clos_id": {"value": "1"}}}},
        {"linux": {"rdt": {"remove": True, "clos_id": {"value": "2"}}}},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_who_takes_it_away_may_set_it(name: str) -> None:
    first, second = TAKEN[name]
    found = creation()
    found.apply(adjusted(**first), "10-one")
    found.apply(adjusted(**second), "20-two")
    assert "2" in str(found.adjust)
    with pytest.raises(Conflict) as caught:
        found.apply(adjusted(**first), "30-three")
    assert '"20-two"' in str(caught.value)


def test_what_was_only_taken_away_is_free() -> None:
    found = creation()
    found.apply(adjusted(env=[{"key": "-KEEP"}]), "10-one")
    found.apply(adjusted(env=[{"key": "KEEP", "value": "2"}]), "20-two")
    assert [(one.key, one.value) for one in found.adjust.env] == [("KEEP", "2")]


def test_what_one_has_set_another_takes_away() -> None:
    found = creation()
    found.apply(
        adjusted(env=[{"key": "A", "value": "1"}], linux={"net_devices": {"eth1": nri.LinuxNetDevice(name="x")}}),
        "10-one",
    )
    found.apply(adjusted(env=[{"key": "-A"}], linux={"net_devices": {"-eth1": nri.LinuxNetDevice()}}), "20-two")
    assert [one.key for one in found.adjust.env] == ["-A"] and list(found.adjust.linux.net_devices) == ["-eth1"]
    assert list(found.request.container.env) == ["PATH=/bin", "KEEP=1"]


def test_hooks_add_up() -> None:
    found = creation()
    for plugin in ("10-one", "20-two"):
        found.apply(adjusted(hooks={"poststop": [{"path": f"/{plugin}"}]}), plugin)
    assert [one.path for one in found.adjust.hooks.poststop] == ["/10-one", "/20-two"]
    assert found.owners.message.owners[ID].simple[nri.OciHooks] == "10-one,20-two"


def update(id: str, shares: int, *, ignore: bool = False) -> Any:
    return nri.ContainerUpdate(
        container_id=id, linux={"resources": {"cpu": {"shares": {"value": shares}}}}, ignore_failure=ignore
    )


def test_updates_of_others() -> None:
    found = Updates(Owners(), creating=ID)
    found.apply([update("a", 1), update("b", 2, ignore=True)], "10-one")
    memory = nri.ContainerUpdate(container_id="a", linux={"resources": {"memory": {"limit": {"value": 5}}}})
    found.apply([memory, update("b", 3, ignore=True)], "20-two")  # the second is dropped
    changes = {one.container_id: one for one in found.others()}
    assert changes["a"].linux.resources.cpu.shares.value == 1 and changes["a"].linux.resources.memory.limit.value == 5
    assert changes["b"].linux.resources.cpu.shares.value == 2 and changes["b"].ignore_failure
    with pytest.raises(Conflict, match="both tried to set CPUShares"):
        found.apply([update("a", 4)], "30-three")
    with pytest.raises(Conflict, match="during creation"):
        found.apply([update(ID, 4)], "30-three")
    with pytest.raises(Conflict, match="other devices"):
        more = nri.ContainerUpdate(container_id="a", linux={"resources": {"devices": [{"allow": True}]}})
        found.apply([more], "30-three")


def test_an_update_of_the_one_that_is_asked_for() -> None:
    asked = nri.UpdateContainerRequest(container=nri.Container(id=ID))
    asked.linux_resources.cpu.shares.value = 1
    found = Updates(Owners(), asked=asked)
    assert found.own() is None
    found.apply([update(ID, 7), update("b", 2)], "10-one")
    assert asked.linux_resources.cpu.shares.value == 7 and found.own().linux.resources.cpu.shares.value == 7
    assert [one.container_id for one in found.others()] == ["b"]


# The built-in validator

CHECKS: dict[str, Any] = {
    "enable": True,
    "reject-oci-hook-adjustment": False,
    "reject-runtime-default-seccomp-adjustment": False,
    "reject-unconfined-seccomp-adjustment": False,
    "reject-custom-seccomp-adjustment": False,
    "reject-namespace-adjustment": False,
    "reject-sysctl-adjustment": False,
    "required-plugins": [],
    "tolerate-missing-plugins-annotation": "",
}
SECCOMP = {"linux": {"seccomp_policy": {"default_action": "SCMP_ACT_ALLOW"}}}
REJECTED: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "hooks": ("reject-oci-hook-adjustment", {"hooks": {"poststop": [{"path": "/x"}]}}, None),
    "seccomp": ("reject-unconfined-seccomp-adjustment", SECCOMP, None),
    "seccomp, unconfined": ("reject-unconfined-seccomp-adjustment", SECCOMP, 1),
    "seccomp, default": ("reject-runtime-default-seccomp-adjustment", SECCOMP, 0),
    "seccomp, own": ("reject-custom-seccomp-adjustment", SECCOMP, 2),
    "namespaces": ("reject-namespace-adjustment", {"linux": {"namespaces": [{"type": "uts"}]}}, None),
    "sysctl": ("reject-sysctl-adjustment", {"linux": {"sysctl": {"a": "1"}}}, None),
}


def validation(wanted: dict[str, Any], profile: int | None = None, **annotations: str) -> Any:
    found = creation()
    request = nri.ValidateContainerAdjustmentRequest(container=found.request.container)
    if profile is not None:
        request.container.linux.seccomp_profile.profile_type = profile
    found.apply(adjusted(**wanted), "10-one")
    request.adjust.CopyFrom(found.adjust)
    request.owners.CopyFrom(found.owners.message)
    request.plugins.add(name="one", index="10")
    for key, value in annotations.items():
        request.pod.annotations[key.replace("__", ".")] = value
    return request


@pytest.mark.parametrize("name", REJECTED)
def test_what_the_validator_refuses(name: str) -> None:
    key, wanted, profile = REJECTED[name]
    others = {each: True for each in CHECKS if each.startswith("reject-") and each != key}
    validator.validate(validation(wanted, profile), {**CHECKS, **others})
    with pytest.raises(validator.Rejected, match="10-one"):
        validator.validate(validation(wanted, profile), {**CHECKS, key: True})
    validator.validate(validation({"args": ["x"]}, profile), {**CHECKS, key: True})


def test_plugins_that_must_be_there() -> None:
    for known in (["one"], ["10-one"], []):
        validator.validate(validation({}), {**CHECKS, "required-plugins": known})
    wanted = {**CHECKS, "required-plugins": ["other"], "tolerate-missing-plugins-annotation": "do.without"}
    with pytest.raises(validator.Rejected, match='"other" not present'):
        validator.validate(validation({}), wanted)
    validator.validate(validation({}, do__without="true"), wanted)
    with pytest.raises(validator.Rejected, match="not present"):
        validator.validate(validation({}, do__without="false"), wanted)
    with pytest.raises(validator.Rejected, match="give true or false"):
        validator.validate(validation({}, do__without="perhaps"), wanted)


def test_a_pod_says_which_plugins_must_be_there() -> None:
    request = validation({})
    for key in (validator.REQUIRED, f"{validator.REQUIRED}/pod", f"{validator.REQUIRED}/container.c"):
        request.pod.annotations[key] = "[other]"
        with pytest.raises(validator.Rejected, match='"other" not present'):
            validator.validate(request, CHECKS)
        request.pod.annotations[key] = "- one\n"
        validator.validate(request, CHECKS)
    for bad in ("{", "one", "[1]"):
        request.pod.annotations[f"{validator.REQUIRED}/container.c"] = bad
        with pytest.raises(validator.Rejected, match="invalid"):
            validator.validate(request, CHECKS)
