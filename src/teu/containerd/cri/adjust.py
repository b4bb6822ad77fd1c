# SPDX-License-Identifier: Apache-2.0
"""What plugins of the Node Resource Interface want of a container, in its OCI runtime specification and in its limits.
Called by `nri`.

Whatever they can say is done, or is InvalidArgument: nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from teu.api.cri.v1 import cri_pb2 as cri
from teu.api.nri.v1alpha1 import nri_pb2 as nri
from teu.containerd.core.errors import FailedPrecondition, InvalidArgument
from teu.containerd.cri.spec import Json, must_be, place
from teu.oci import cdi, runtime_spec

Edits = Callable[[list[str]], cdi.Edits]  # of CDI devices, by their names

# By the interface's names, the specification's.
HOOKS = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}
MEMORY = {"limit": "limit", "reservation": "reservation", "swap": "swap"}
CPU = {"shares": "shares", "quota": "quota", "period": "period", "cpus": "cpus", "mems": "mems"}
# What cgroups of version 2 do not have, so that nobody gets it. What is said of them otherwise asks for nothing.
LACKING = {
    "memory": ("kernel", "kernel_tcp", "swappiness", "disable_oom_killer"),
    "cpu": ("realtime_runtime", "realtime_period"),
}
UNLIMITED = -1


def adjust(spec: Json, wanted: Any, edits: Edits) -> None:
    """Change a specification as a ContainerAdjustment says. Raises InvalidArgument, and FailedPrecondition where a CDI
    device is unknown."""
    process, linux = spec["process"], spec["linux"]
    _names(wanted.annotations, spec.setdefault("annotations", {}))
    process["env"] = environment(process.get("env", []), wanted.env)
    if wanted.args:
        process["args"] = list(wanted.args)
    for name, key in HOOKS.items():
        if hooks := getattr(wanted.hooks, name):
            spec.setdefault("hooks", {}).setdefault(key, []).extend(map(_hook, hooks))
    _inject(spec, [one.name for one in wanted.CDI_devices], edits)
    _devices(linux, wanted.linux.devices)
    if wanted.linux.cgroups_path:
        linux["cgroupsPath"] = wanted.linux.cgroups_path
    _process(process, wanted.linux)
    if wanted.linux.HasField("seccomp_policy"):
        linux["seccomp"] = seccomp(wanted.linux.seccomp_policy)
    _namespaces(linux, wanted.linux.namespaces)
    if wanted.linux.sysctl:
        _names(wanted.linux.sysctl, linux.setdefault("sysctl", {}))
    _network_devices(linux, wanted.linux.net_devices)
    if wanted.linux.HasField("memory_policy"):
        linux["memoryPolicy"] = memory_policy(wanted.linux.memory_policy)
    if wanted.linux.HasField("resources"):
        _resources(linux, wanted.linux.resources)
    if wanted.linux.HasField("rdt"):
        _rdt(linux, wanted.linux.rdt)
    _mounts(spec, wanted.mounts)
    for limit in wanted.rlimits:
        kept = [one for one in process.get("rlimits", ()) if one["type"] != limit.type]
        process["rlimits"] = [*kept, {"type": limit.type, "soft": limit.soft, "hard": limit.hard}]
    try:
        runtime_spec.check(spec)
    except runtime_spec.SpecError as error:
        raise InvalidArgument(f"what plugins want of the container cannot be: {error}") from None


def _names(wanted: Mapping[str, str], known: dict[str, str]) -> None:
    for key in sorted(wanted):
        if key.startswith("-"):
            known.pop(key[1:], None)
        else:
            known[key] = wanted[key]


def environment(known: list[str], wanted: Iterable[Any]) -> list[str]:
    """What is changed stays in its place, and what is new comes behind."""
    changes = {one.key.removeprefix("-"): one for one in wanted}
    if bad := [name for name in changes if not name or "=" in name]:
        raise InvalidArgument(f"env: {bad[0]!r} cannot be the name of a variable")
    found = []
    for text in known:
        change = changes.pop(text.partition("=")[0], None)
        if change is None:
            found.append(text)
        elif not change.key.startswith("-"):
            found.append(f"{change.key}={change.value}")
    return found + [f"{one.key}={one.value}" for one in changes.values() if not one.key.startswith("-")]


def _hook(given: Any) -> Json:
    hook: Json = {"path": given.path}
    for name in ("args", "env"):
        if values := list(getattr(given, name)):
            hook[name] = values
    if given.HasField("timeout"):
        hook["timeout"] = given.timeout.value
    return hook


def _inject(spec: Json, names: list[str], edits: Edits) -> None:
    if not names:
        return
    found = edits(names)
    try:
        cdi.edit(spec, found)
    except (cdi.Broken, OSError) as error:
        raise FailedPrecondition(f"CDI device injection failed: {error}") from None
    for given in found.mounts:
        _mount(spec, {**given, "destination": place(given["destination"])})


def _devices(linux: Json, wanted: Iterable[Any]) -> None:
    for one in wanted:
        path = one.path.removeprefix("-")
        linux["devices"] = [known for known in linux.get("devices", ()) if known["path"] != path]
        if one.path.startswith("-"):
            continue
        node: Json = {"path": path, "type": one.type, "major": one.major, "minor": one.minor}
        for name, key in (("file_mode", "fileMode"), ("uid", "uid"), ("gid", "gid")):
            if one.HasField(name):
                node[key] = getattr(one, name).value
        linux["devices"].append(node)
        if one.type in ("b", "c", "u"):
            kind = "c" if one.type == "u" else one.type
            access = "rwm" if kind == "b" else "rw"  # as by containerd
            rule = {"allow": True, "type": kind, "major": one.major, "minor": one.minor, "access": access}
            linux.setdefault("resources", {}).setdefault("devices", []).append(rule)


def _process(process: Json, wanted: Any) -> None:
    if wanted.HasField("oom_score_adj"):
        process["oomScoreAdj"] = wanted.oom_score_adj.value
    if wanted.HasField("io_priority"):
        priority = wanted.io_priority
        process.pop("ioPriority", None)
        if name := _enum(nri.IOPrioClass, getattr(priority, "class"), nri.IOPRIO_CLASS_NONE):
            process["ioPriority"] = {"class": name, "priority": priority.priority}
    if wanted.HasField("scheduler"):
        given = wanted.scheduler
        process.pop("scheduler", None)
        if name := _enum(nri.LinuxSchedulerPolicy, given.policy, nri.SCHED_NONE):
            made: Json = {"policy": name}
            for key in ("nice", "priority", "runtime", "deadline", "period"):
                if value := getattr(given, key):
                    made[key] = value
            if given.flags:
                made["flags"] = [_enum(nri.LinuxSchedulerFlag, flag) for flag in given.flags]
            process["scheduler"] = made


def _enum(kind: Any, value: int, nothing: int | None = None) -> str:
    """The name of a value; "" for the one that stands for none."""
    if value == nothing:
        return ""
    try:
        return str(kind.Name(value))
    except ValueError:
        raise InvalidArgument(f"{kind.DESCRIPTOR.name} {value} is unknown") from None


def seccomp(given: Any) -> Json:
    """linux.seccomp of a LinuxSeccomp."""
    found: Json = {"defaultAction": given.default_action}
    if given.HasField("default_errno"):
        found["defaultErrnoRet"] = given.default_errno.value
    for name, key in (("architectures", "architectures"), ("flags", "flags")):
        if values := list(getattr(given, name)):
            found[key] = values
    for name, key in (("listener_path", "listenerPath"), ("listener_metadata", "listenerMetadata")):
        if value := getattr(given, name):
            found[key] = value
    calls = []
    for one in given.syscalls:
        call: Json = {"names": list(one.names), "action": one.action}
        if one.HasField("errno_ret"):
            call["errnoRet"] = one.errno_ret.value
        if one.args:
            call["args"] = [
                {"index": each.index, "value": each.value, "valueTwo": each.value_two, "op": each.op}
                for each in one.args
            ]
        calls.append(call)
    if calls:
        found["syscalls"] = calls
    return found


def _namespaces(linux: Json, wanted: Iterable[Any]) -> None:
    for one in wanted:
        kind = one.type.removeprefix("-")
        if kind not in runtime_spec.NAMESPACES:
            raise InvalidArgument(f'linux.namespaces: "{kind}" is no type of a namespace')
        known = linux.get("namespaces", [])
        entry = {"type": kind, "path": one.path} if one.path else {"type": kind}
        if one.type.startswith("-"):
            linux["namespaces"] = [each for each in known if each["type"] != kind]
        elif any(each["type"] == kind for each in known):
            linux["namespaces"] = [entry if each["type"] == kind else each for each in known]
        else:
            linux["namespaces"] = [*known, entry]


def _network_devices(linux: Json, wanted: Any) -> None:
    for name in sorted(wanted):
        known = linux.setdefault("netDevices", {})
        if name.startswith("-"):
            known.pop(name[1:], None)
        else:
            known[name] = {"name": wanted[name].name} if wanted[name].name else {}
    if not linux.get("netDevices", True):
        del linux["netDevices"]


def memory_policy(given: Any) -> Json:
    """linux.memoryPolicy of a LinuxMemoryPolicy."""
    found: Json = {"mode": _enum(nri.MpolMode, given.mode)}
    if given.nodes:
        found["nodes"] = given.nodes
    if given.flags:
        found["flags"] = [_enum(nri.MpolFlag, flag) for flag in given.flags]
    return found


def _check(given: Any) -> None:
    """Raises InvalidArgument where LinuxResources ask for what this host's cgroups do not have."""
    for part, names in LACKING.items():
        for name in names:
            if getattr(given, part).HasField(name) and getattr(getattr(given, part), name).value not in (0, UNLIMITED):
                raise InvalidArgument(f"resources.{part}.{name}: cgroups of version 2 have no such limit")
    if given.blockio_class.value:
        name = given.blockio_class.value
        raise InvalidArgument(f'resources.blockio_class: "{name}": classes for block devices are not implemented')


def limits(given: Any) -> Json:
    """The members of linux.resources that LinuxResources ask for. Raises InvalidArgument."""
    _check(given)
    found: Json = {}
    for part, table in (("memory", MEMORY), ("cpu", CPU)):
        members: Json = {}
        for descriptor, value in getattr(given, part).ListFields():
            if descriptor.name in table:
                members[table[descriptor.name]] = value if isinstance(value, str) else value.value
        if members:
            found[part] = members
    memory = found.get("memory", {})
    if not memory.get("limit", 1):
        del memory["limit"]  # 0 asks for nothing
        if not memory:
            del found["memory"]
    elif "limit" in memory and "swap" not in memory:
        memory["swap"] = memory["limit"]  # what it may have with swap: as by containerd, it gets none
    if given.hugepage_limits:
        found["hugepageLimits"] = [{"pageSize": one.page_size, "limit": one.limit} for one in given.hugepage_limits]
    if given.unified:
        found["unified"] = dict(given.unified)
    if given.HasField("pids"):
        found["pids"] = {"limit": given.pids.limit if given.pids.limit > UNLIMITED else UNLIMITED}
    return found


def _resources(linux: Json, given: Any) -> None:
    known = linux.setdefault("resources", {})
    overlay(known, limits(given))
    for rule in given.devices:
        made: Json = {"allow": rule.allow, "access": rule.access}
        if rule.type:
            made["type"] = rule.type
        for name in ("major", "minor"):
            if rule.HasField(name):
                made[name] = getattr(rule, name).value
        known.setdefault("devices", []).append(made)
    if given.HasField("blockio_class"):
        known.pop("blockIO", None)
    if given.HasField("rdt_class"):
        linux.pop("intelRdt", None)
        if given.rdt_class.value:
            linux["intelRdt"] = {"closID": given.rdt_class.value}


def overlay(known: Json, changes: Json) -> None:
    """Change linux.resources: each size of pages, and each name, counts for itself."""
    for name, value in changes.items():
        if name == "hugepageLimits":
            sizes = {one["pageSize"] for one in value}
            known[name] = [one for one in known.get(name, ()) if one["pageSize"] not in sizes] + value
        else:
            known[name] = {**known.get(name, {}), **value}


def _rdt(linux: Json, given: Any) -> None:
    if given.remove:
        linux.pop("intelRdt", None)
    found: Json = dict(linux.get("intelRdt", {}))
    if given.HasField("clos_id"):
        found["closID"] = given.clos_id.value
    if given.HasField("schemata"):
        found["schemata"] = list(given.schemata.value)
    if given.HasField("enable_monitoring"):
        found["enableMonitoring"] = given.enable_monitoring.value
    if found:
        linux["intelRdt"] = found


def _mounts(spec: Json, wanted: Iterable[Any]) -> None:
    for one in wanted:
        if one.destination.startswith("-"):
            where = place(one.destination[1:])
            spec["mounts"] = [known for known in spec["mounts"] if known["destination"] != where]
            continue
        if not one.destination.startswith("/"):
            raise InvalidArgument(f"the mount on {one.destination!r}: give an absolute path")
        if "relabel" in one.options:
            raise InvalidArgument(f"the mount on {one.destination}: relabel is not implemented")
        entry: Json = {"destination": place(one.destination)}
        if one.type:
            entry["type"] = one.type
        if one.source:
            entry["source"] = one.source
        entry["options"] = list(one.options)
        _propagate(spec["linux"], one)
        _mount(spec, entry)
    spec["mounts"].sort(key=lambda entry: entry["destination"].rstrip("/").count("/"))


def _propagate(linux: Json, one: Any) -> None:
    """What a mount needs of its source, and of the root."""
    if "rshared" in one.options:
        must_be(one.source, one.source, "shared")
        linux["rootfsPropagation"] = "rshared"
    elif "rslave" in one.options:
        must_be(one.source, one.source, "shared or slave")
        if linux.get("rootfsPropagation") != "rshared":
            linux["rootfsPropagation"] = "rslave"


def _mount(spec: Json, entry: Json) -> None:
    kept = [known for known in spec["mounts"] if known["destination"] != entry["destination"]]
    spec["mounts"] = [*kept, entry]


# Limits of containers that are there


def asked(given: Any) -> Any:
    """The LinuxContainerResources that LinuxResources ask for, as far as these have words for it."""
    found = limits(given)
    memory, cpu = found.get("memory", {}), found.get("cpu", {})
    made = cri.LinuxContainerResources(
        memory_limit_in_bytes=memory.get("limit", 0),
        memory_swap_limit_in_bytes=memory.get("swap", 0),
        cpu_shares=cpu.get("shares", 0),
        cpu_quota=cpu.get("quota", 0),
        cpu_period=cpu.get("period", 0),
        cpuset_cpus=cpu.get("cpus", ""),
        cpuset_mems=cpu.get("mems", ""),
        unified=found.get("unified", {}),
    )
    for one in found.get("hugepageLimits", ()):
        made.hugepage_limits.add(page_size=one["pageSize"], limit=one["limit"])
    return made


def more(given: Any) -> Json:
    """What LinuxResources ask for besides: members of linux.resources. Raises InvalidArgument."""
    if given.HasField("rdt_class"):
        raise InvalidArgument("resources.rdt_class: a container that is there keeps its class")
    found = limits(given)
    rest: Json = {}
    if "reservation" in found.get("memory", {}):
        rest["memory"] = {"reservation": found["memory"]["reservation"]}
    if "pids" in found:
        rest["pids"] = found["pids"]
    return rest
