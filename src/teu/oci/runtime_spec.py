# SPDX-License-Identifier: Apache-2.0
"""Checks config.json of the OCI runtime-spec 1.3 (Linux) before anything is touched.

teu-runc calls `check` on create and run, `check_process` on exec. An error names the field as a
path (`linux.resources.memory.limit`) and says what it must be. Fields that the specification does
not know are left alone, null is as good as absent, as in every runtime.

The grammar of the document is a table. On top of it stand the rules that span fields, each a
function. Both are on the path of a container's start: no imports, no regular expressions.
"""

from __future__ import annotations

import os

from teu.linux import selinux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Object = dict[str, Any]

VERSION = "1.3.0"


class SpecError(ValueError):
    """A refused specification. `field` is the path of what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


# ---- the grammar -------------------------------------------------------------------------------
#
# A type is a tuple whose first member says how to check: see `_walk`. In objects a name that ends
# in "!" is required.

STRING = ("string",)
BOOLEAN = ("boolean",)
UINT16 = ("integer", 0, 2**16 - 1)
UINT32 = ("integer", 0, 2**32 - 1)
UINT64 = ("integer", 0, 2**64 - 1)
INT32 = ("integer", -(2**31), 2**31 - 1)
INT64 = ("integer", -(2**63), 2**63 - 1)
DEVICE_NUMBER = (
    "integer",
    -(2**31),
    2**32 - 1,
)  # major or minor; the kernel takes fewer, and the C library no larger ones
STRINGS = ("list", STRING)
STRING_MAP = ("map", STRING)
HIGHEST_CPU = 0xFFFF  # also of memory nodes, of which there are fewer

NAMESPACES = ("mount", "pid", "network", "uts", "ipc", "user", "cgroup", "time")
PROPAGATIONS = (
    "private",
    "shared",
    "slave",
    "unbindable",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
)
SCHEDULERS = (
    "SCHED_OTHER",
    "SCHED_FIFO",
    "SCHED_RR",
    "SCHED_BATCH",
    "SCHED_ISO",
    "SCHED_IDLE",
    "SCHED_DEADLINE",
)
SCHEDULER_FLAGS = (
    "SCHED_FLAG_RESET_ON_FORK",
    "SCHED_FLAG_RECLAIM",
    "SCHED_FLAG_DL_OVERRUN",
    "SCHED_FLAG_KEEP_POLICY",
    "SCHED_FLAG_KEEP_PARAMS",
    "SCHED_FLAG_UTIL_CLAMP_MIN",
    "SCHED_FLAG_UTIL_CLAMP_MAX",
)
IO_CLASSES = ("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")
MEMORY_POLICIES = (
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
)
MEMORY_POLICY_FLAGS = ("MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES")
PERSONALITIES = ("LINUX", "LINUX32")
# By the kernel's numbers.
RLIMITS = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}
# What docker's --ulimit calls them.
ULIMITS = tuple(sorted([name[7:].lower() for name in RLIMITS]))
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

ID_MAPPINGS = ("list", ("object", {"containerID!": UINT32, "hostID!": UINT32, "size!": UINT32}))
HOOK = ("object", {"path!": STRING, "args": STRINGS, "env": STRINGS, "timeout": INT64})
THROTTLE = ("list", ("object", {"major!": DEVICE_NUMBER, "minor!": DEVICE_NUMBER, "rate!": UINT64}))
OFFSET = ("object", {"secs": INT64, "nanosecs": UINT32})

CONSOLE_SIZE = ("object", {"height!": UINT16, "width!": UINT16})

PROCESS = (
    "object",
    {
        "args": STRINGS,
        "cwd!": STRING,
        "env": STRINGS,
        "terminal": BOOLEAN,
        "user": (
            "object",
            {
                "uid": UINT32,
                "gid": UINT32,
                "umask": UINT32,
                "additionalGids": ("list", UINT32),
                "username": STRING,
            },
        ),
        "capabilities": (
            "object",
            {
                "bounding": STRINGS,
                "permitted": STRINGS,
                "effective": STRINGS,
                "inheritable": STRINGS,
                "ambient": STRINGS,
            },
        ),
        "rlimits": ("list", ("object", {"type!": ("enum", tuple(sorted(RLIMITS))), "soft!": UINT64, "hard!": UINT64})),
        "apparmorProfile": STRING,
        "selinuxLabel": STRING,
        "oomScoreAdj": ("integer", -1000, 1000),
        "noNewPrivileges": BOOLEAN,
        "ioPriority": ("object", {"class!": ("enum", IO_CLASSES), "priority": ("integer", 0, 7)}),
        "scheduler": (
            "object",
            {
                "policy!": ("enum", SCHEDULERS),
                "nice": INT32,
                "priority": INT32,
                "flags": ("list", ("enum", SCHEDULER_FLAGS)),
                "runtime": UINT64,
                "deadline": UINT64,
                "period": UINT64,
            },
        ),
        "execCPUAffinity": ("object", {"initial": STRING, "final": STRING}),
    },
)

RESOURCES = (
    "object",
    {
        "unified": STRING_MAP,
        "devices": (
            "list",
            (
                "object",
                {
                    "allow!": BOOLEAN,
                    "type": STRING,
                    "major": DEVICE_NUMBER,
                    "minor": DEVICE_NUMBER,
                    "access": STRING,
                },
            ),
        ),
        "pids": ("object", {"limit": INT64}),
        "memory": (
            "object",
            {
                "limit": INT64,
                "reservation": INT64,
                "swap": INT64,
                "kernel": INT64,
                "kernelTCP": INT64,
                "swappiness": UINT64,
                "disableOOMKiller": BOOLEAN,
                "useHierarchy": BOOLEAN,
                "checkBeforeUpdate": BOOLEAN,
            },
        ),
        "cpu": (
            "object",
            {
                "shares": UINT64,
                "quota": INT64,
                "burst": UINT64,
                "period": UINT64,
                "realtimeRuntime": INT64,
                "realtimePeriod": UINT64,
                "cpus": STRING,
                "mems": STRING,
                "idle": INT64,
            },
        ),
        "blockIO": (
            "object",
            {
                "weight": UINT16,
                "leafWeight": UINT16,
                "weightDevice": (
                    "list",
                    (
                        "object",
                        {
                            "major!": DEVICE_NUMBER,
                            "minor!": DEVICE_NUMBER,
                            "weight": UINT16,
                            "leafWeight": UINT16,
                        },
                    ),
                ),
                "throttleReadBpsDevice": THROTTLE,
                "throttleWriteBpsDevice": THROTTLE,
                "throttleReadIOPSDevice": THROTTLE,
                "throttleWriteIOPSDevice": THROTTLE,
            },
        ),
        "hugepageLimits": ("list", ("object", {"pageSize!": STRING, "limit!": UINT64})),
        "network": (
            "object",
            {
                "classID": UINT32,
                "priorities": ("list", ("object", {"name!": STRING, "priority!": UINT32})),
            },
        ),
        "rdma": ("map", ("object", {"hcaHandles": UINT32, "hcaObjects": UINT32})),
    },
)

SECCOMP = (
    "object",
    {
        "defaultAction!": STRING,
        "defaultErrnoRet": UINT32,
        "flags": STRINGS,
        "listenerPath": STRING,
        "listenerMetadata": STRING,
        "architectures": STRINGS,
        "syscalls": (
            "list",
            (
                "object",
                {
                    "names!": STRINGS,
                    "action!": STRING,
                    "errnoRet": UINT32,
                    "args": (
                        "list",
                        (
                            "object",
                            {
                                "index": ("integer", 0, 5),
                                "value": UINT64,
                                "valueTwo": UINT64,
                                "op!": STRING,
                            },
                        ),
                    ),
                },
            ),
        ),
    },
)

SPEC = (
    "object",
    {
        "ociVersion!": STRING,
        "root!": ("object", {"path!": STRING, "readonly": BOOLEAN}),
        "process!": PROCESS,
        "hostname": STRING,
        "domainname": STRING,
        "annotations": STRING_MAP,
        "mounts": (
            "list",
            (
                "object",
                {
                    "destination!": STRING,
                    "source": STRING,
                    "type": STRING,
                    "options": STRINGS,
                    "uidMappings": ID_MAPPINGS,
                    "gidMappings": ID_MAPPINGS,
                },
            ),
        ),
        "hooks": ("object", dict.fromkeys(HOOKS, ("list", HOOK))),
        "linux": (
            "object",
            {
                "namespaces": ("list", ("object", {"type!": ("enum", NAMESPACES), "path": STRING})),
                "uidMappings": ID_MAPPINGS,
                "gidMappings": ID_MAPPINGS,
                "timeOffsets": ("object", {"boottime": OFFSET, "monotonic": OFFSET}),
                "devices": (
                    "list",
                    (
                        "object",
                        {
                            "type!": STRING,
                            "path!": STRING,
                            "fileMode": UINT32,
                            "major": DEVICE_NUMBER,
                            "minor": DEVICE_NUMBER,
                            "uid": UINT32,
                            "gid": UINT32,
                        },
                    ),
                ),
                "netDevices": ("map", ("object", {"name": STRING})),
                "cgroupsPath": STRING,
                "resources": RESOURCES,
                "rootfsPropagation": STRING,
                "seccomp": SECCOMP,
                "sysctl": STRING_MAP,
                "maskedPaths": STRINGS,
                "readonlyPaths": STRINGS,
                "mountLabel": STRING,
                "intelRdt": (
                    "object",
                    {
                        "closID": STRING,
                        "schemata": STRINGS,
                        "l3CacheSchema": STRING,
                        "memBwSchema": STRING,
                        "enableMonitoring": BOOLEAN,
                    },
                ),
                "memoryPolicy": (
                    "object",
                    {
                        "mode!": ("enum", MEMORY_POLICIES),
                        "nodes": STRING,
                        "flags": ("list", ("enum", MEMORY_POLICY_FLAGS)),
                    },
                ),
                "personality": ("object", {"domain!": ("enum", PERSONALITIES), "flags": STRINGS}),
            },
        ),
    },
)


def _walk(value: Any, kind: Any, field: str) -> None:
    """Check a value against a type of the grammar."""
    _CHECKS[kind[0]](value, kind, field)


def _object(value: Any, kind: Any, field: str) -> None:
    if type(value) is not dict:
        raise SpecError(field, f"must be an object, is {_name(value)}")
    for name, member in kind[1].items():
        required = name[-1] == "!"
        if required:
            name = name[:-1]
        item = value.get(name)
        if item is not None:
            _CHECKS[member[0]](item, member, f"{field}.{name}" if field else name)
        elif required:
            raise SpecError(f"{field}.{name}" if field else name, "is required")
        elif name in value:
            del value[name]  # null means absent: later readers need not tell them apart


def _string(value: Any, kind: Any, field: str) -> None:
    if type(value) is not str:
        raise SpecError(field, f"must be a string, is {_name(value)}")
    if "\0" in value:
        raise SpecError(field, "must not contain a null byte")


def _list(value: Any, kind: Any, field: str) -> None:
    if type(value) is not list:
        raise SpecError(field, f"must be an array, is {_name(value)}")
    member = kind[1]
    if member is STRING and all(type(item) is str and "\0" not in item for item in value):
        return
    for index, item in enumerate(value):
        _CHECKS[member[0]](item, member, f"{field}[{index}]")


def _integer(value: Any, kind: Any, field: str) -> None:
    if type(value) is not int:
        raise SpecError(field, f"must be a whole number, is {_name(value)}")
    if not kind[1] <= value <= kind[2]:
        raise SpecError(field, f"must be from {kind[1]} to {kind[2]}, is {value}")


def _boolean(value: Any, kind: Any, field: str) -> None:
    if type(value) is not bool:
        raise SpecError(field, f"must be true or false, is {_name(value)}")


def _enum(value: Any, kind: Any, field: str) -> None:
    if value not in kind[1]:
        raise SpecError(field, f"must be one of {', '.join(kind[1])}, is {_name(value)}")


def _map(value: Any, kind: Any, field: str) -> None:
    if type(value) is not dict:
        raise SpecError(field, f"must be an object, is {_name(value)}")
    member = kind[1]
    for name, item in value.items():
        _CHECKS[member[0]](item, member, f"{field}[{name}]")


# What checks a value, by the first word of its type.
_CHECKS = {
    "object": _object,
    "string": _string,
    "list": _list,
    "integer": _integer,
    "boolean": _boolean,
    "enum": _enum,
    "map": _map,
}


def _name(value: Any) -> str:
    """A value as an error shows it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"{value!r}" if len(value) < 64 else "a string"
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else str(value)


# ---- the rules ---------------------------------------------------------------------------------


def check(spec: Any, rootless: bool = False) -> None:
    """Check a whole config.json. SpecError names the first field that is wrong."""
    _walk(spec, SPEC, "")
    check_version(spec["ociVersion"])
    if not spec["root"]["path"]:
        raise SpecError("root.path", "must not be empty")
    _check_process_rules(spec["process"], "process")
    if "" in (spec.get("annotations") or ()):
        raise SpecError("annotations", "a key must not be empty")
    linux = spec.get("linux") or {}
    _check_namespaces(spec, linux)
    _check_mounts(spec.get("mounts") or [], rootless)
    _check_hooks(spec.get("hooks") or {})
    _check_devices(linux)
    if linux.get("resources"):
        check_resources(linux["resources"])
    if linux.get("seccomp") is not None:
        check_seccomp(linux["seccomp"])
    if linux.get("sysctl"):
        _check_sysctl(linux, spec.get("domainname") or "")
    propagation = linux.get("rootfsPropagation")
    if propagation and propagation not in PROPAGATIONS:
        raise SpecError("linux.rootfsPropagation", f"must be one of {', '.join(PROPAGATIONS)}, is {propagation!r}")
    if (linux.get("personality") or {}).get("flags"):
        raise SpecError("linux.personality.flags", "none is known to the specification")
    _check_net_devices(linux, rootless)
    _check_memory_policy(linux.get("memoryPolicy"))
    _check_intel_rdt(linux.get("intelRdt"))


def check_process(process: Any) -> None:
    """Check a process.json (exec --process), or the `process` of a config.json."""
    if process is None:
        raise SpecError("process", "is required")
    _walk(process, PROCESS, "process")
    _check_process_rules(process, "process")


def check_version(version: str) -> None:
    """Any 1.x is understood (runtime-spec, "Specification version": unknown properties are ignored)."""
    numbers = version.split("-")[0].split("+")[0].split(".")
    if len(numbers) != 3 or not all(map(is_number, numbers)):
        raise SpecError("ociVersion", f"must be a version as 1.2.0, is {version!r}")
    if numbers[0] != "1":
        raise SpecError("ociVersion", f"is {version}; this runtime knows 1.0.0 to {VERSION}")


def _check_process_rules(process: Object, field: str) -> None:
    if not process["cwd"]:
        raise SpecError(f"{field}.cwd", "must not be empty")
    if process["cwd"][0] != "/":
        raise SpecError(f"{field}.cwd", f"must be an absolute path, is {process['cwd']!r}")
    if not process.get("args"):
        raise SpecError(f"{field}.args", "must not be empty")
    if process.get("terminal") and process.get("consoleSize") is not None:
        # without a terminal it is to be ignored
        _walk(process["consoleSize"], CONSOLE_SIZE, f"{field}.consoleSize")
    seen = set()
    for index, limit in enumerate(process.get("rlimits") or []):
        here = f"{field}.rlimits[{index}]"
        if limit["type"] in seen:
            raise SpecError(here, f"{limit['type']} is given twice")
        seen.add(limit["type"])
        if limit["soft"] > limit["hard"]:
            raise SpecError(f"{here}.soft", f"{limit['soft']} is above the hard limit {limit['hard']}")
    if process.get("selinuxLabel") and not selinux.enabled():
        raise SpecError(f"{field}.selinuxLabel", "a label is given, but this host has no SELinux")
    if process.get("scheduler") is not None:
        _check_scheduler(process["scheduler"], f"{field}.scheduler")
    affinity = process.get("execCPUAffinity") or {}
    for name in ("initial", "final"):
        if affinity.get(name):
            check_ranges(affinity[name], f"{field}.execCPUAffinity.{name}")


def _check_scheduler(scheduler: Object, field: str) -> None:
    """sched_setattr(2): which parameter goes with which policy."""
    policy = scheduler["policy"]
    nice = scheduler.get("nice") or 0
    if policy in ("SCHED_OTHER", "SCHED_BATCH") and not -20 <= nice <= 19:
        raise SpecError(f"{field}.nice", f"must be from -20 to 19 with {policy}, is {nice}")
    if scheduler.get("priority") and policy not in ("SCHED_FIFO", "SCHED_RR"):
        raise SpecError(f"{field}.priority", f"is only for SCHED_FIFO and SCHED_RR, not for {policy}")
    if policy != "SCHED_DEADLINE":
        for name in ("runtime", "deadline", "period"):
            if scheduler.get(name):
                raise SpecError(f"{field}.{name}", f"is only for SCHED_DEADLINE, not for {policy}")


def _check_namespaces(spec: Object, linux: Object) -> None:
    paths: dict[str, str] = {}
    for index, namespace in enumerate(linux.get("namespaces") or []):
        kind, path = namespace["type"], namespace.get("path") or ""
        field = f"linux.namespaces[{index}]"
        if kind in paths:
            raise SpecError(field, f"the {kind} namespace is given twice")
        if path and path[0] != "/":
            raise SpecError(f"{field}.path", f"must be an absolute path, is {path!r}")
        paths[kind] = path
    for name in ("hostname", "domainname"):
        if spec.get(name) and "uts" not in paths:
            raise SpecError(name, "cannot be set without a uts namespace of the container's own")
    for name in ("maskedPaths", "readonlyPaths"):
        if linux.get(name) and "mount" not in paths:
            raise SpecError(f"linux.{name}", "cannot be applied without a mount namespace of the container's own")
        for index, path in enumerate(linux.get(name) or ()):
            if path[:1] != "/":
                raise SpecError(f"linux.{name}[{index}]", f"must be an absolute path, is {path!r}")
    _check_mappings(linux, paths)
    _check_time(linux, paths)


def _check_mappings(linux: Object, paths: dict[str, str]) -> None:
    """uidMappings and gidMappings. paths: the path to join, or "", of each kind of namespace."""
    mappings = [name for name in ("uidMappings", "gidMappings") if linux.get(name)]
    if "user" in paths:
        if not paths["user"] and len(mappings) < 2:
            missing = "uidMappings" if "uidMappings" not in mappings else "gidMappings"
            raise SpecError(f"linux.{missing}", "is required for a new user namespace")
    elif mappings:
        raise SpecError(f"linux.{mappings[0]}", "is given, but no user namespace")


def _check_time(linux: Object, paths: dict[str, str]) -> None:
    if linux.get("timeOffsets"):
        if "time" not in paths:
            raise SpecError("linux.timeOffsets", "is given, but no time namespace")
        if paths["time"]:
            raise SpecError("linux.timeOffsets", "cannot be set in a time namespace that is joined by its path")
        for clock in linux["timeOffsets"]:
            if clock not in ("boottime", "monotonic"):
                raise SpecError(f"linux.timeOffsets[{clock}]", "is not known; known are boottime and monotonic")
    if "time" in paths and not os.path.exists("/proc/self/ns/time"):
        raise SpecError("linux.namespaces", "this kernel has no time namespaces")


# Options that a bind mount takes; any other would be data for a file system, and silently lost.
MOUNT_OPTIONS = frozenset(
    (
        "acl",
        "async",
        "atime",
        "bind",
        "copy-symlink",
        "defaults",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "idmap",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noacl",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "noiversion",
        "nolazytime",
        "nomand",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "nosymfollow",
        "private",
        "ratime",
        "rbind",
        "rdev",
        "rdiratime",
        "relatime",
        "remount",
        "rexec",
        "ridmap",
        "rnoatime",
        "rnodev",
        "rnodiratime",
        "rnoexec",
        "rnorelatime",
        "rnostrictatime",
        "rnosuid",
        "rnosymfollow",
        "ro",
        "rprivate",
        "rrelatime",
        "rro",
        "rrw",
        "rshared",
        "rslave",
        "rstrictatime",
        "rsuid",
        "rsymfollow",
        "runbindable",
        "rw",
        "shared",
        "silent",
        "slave",
        "strictatime",
        "suid",
        "symfollow",
        "sync",
        "tmpcopyup",
        "unbindable",
    )
)


def _check_mounts(mounts: list[Object], rootless: bool) -> None:
    for index, mount in enumerate(mounts):
        field = f"mounts[{index}]"
        if not mount["destination"]:
            raise SpecError(f"{field}.destination", "must not be empty")
        options = mount.get("options") or ()
        uid_map, gid_map = mount.get("uidMappings"), mount.get("gidMappings")
        mapped = uid_map or gid_map or "idmap" in options or "ridmap" in options
        bind = "bind" in options or "rbind" in options
        if mapped:
            if not bind:
                raise SpecError(f"{field}.options", "only bind mounts can have their ids mapped")
            if bool(uid_map) != bool(gid_map):
                name = "gidMappings" if uid_map else "uidMappings"
                raise SpecError(f"{field}.{name}", "is required: users and groups are mapped together")
            if rootless:
                raise SpecError(f"{field}.options", "mapping ids of a mount needs root")


def _check_hooks(hooks: Object) -> None:
    for kind in HOOKS:
        for index, hook in enumerate(hooks.get(kind) or []):
            field = f"hooks.{kind}[{index}]"
            if not hook["path"].startswith("/"):
                raise SpecError(f"{field}.path", f"must be an absolute path, is {hook['path']!r}")
            if hook.get("timeout") is not None and hook["timeout"] <= 0:
                raise SpecError(f"{field}.timeout", f"must be greater than zero, is {hook['timeout']}")


def _check_devices(linux: Object) -> None:
    for index, device in enumerate(linux.get("devices") or []):
        field = f"linux.devices[{index}]"
        if device["type"] not in ("b", "c", "u", "p"):
            raise SpecError(f"{field}.type", f"must be one of b, c, u, p, is {device['type']!r}")
        if not device["path"].startswith("/"):
            raise SpecError(f"{field}.path", f"must be an absolute path, is {device['path']!r}")
        if device["type"] != "p":
            for name in ("major", "minor"):
                if device.get(name) is None:
                    device[name] = 0
                elif device[name] < 0:
                    raise SpecError(f"{field}.{name}", f"must not be negative, is {device[name]}")


def check_resources(resources: Object, field: str = "linux.resources") -> None:
    """The rules of `linux.resources`, which `update` takes alone."""
    _walk(resources, RESOURCES, field)
    for index, rule in enumerate(resources.get("devices") or []):
        _check_device_rule(rule, f"{field}.devices[{index}]")
    _check_memory(resources.get("memory") or {}, f"{field}.memory")
    _check_cpu(resources.get("cpu") or {}, f"{field}.cpu")
    _check_block_io(resources.get("blockIO") or {}, f"{field}.blockIO")
    for name, limits in (resources.get("rdma") or {}).items():
        if limits.get("hcaHandles") is None and limits.get("hcaObjects") is None:
            raise SpecError(f"{field}.rdma[{name}]", "needs hcaHandles or hcaObjects")
    for index, huge in enumerate(resources.get("hugepageLimits") or []):
        size = huge["pageSize"]
        if len(size) < 3 or size[-2:] not in ("KB", "MB", "GB") or not is_number(size[:-2]) or size[0] == "0":
            raise SpecError(f"{field}.hugepageLimits[{index}].pageSize", f"must be a size as 2MB, is {size!r}")
    for name in resources.get("unified") or {}:
        if "/" in name:
            raise SpecError(f"{field}.unified[{name}]", "must be a file's name, without slashes")
        if not name.partition(".")[0] or "." not in name:
            raise SpecError(f"{field}.unified[{name}]", f"the specified key has not the form CONTROLLER.VALUE `{name}`")


def is_number(text: str) -> bool:
    """Decimal digits as the kernel and Go read them, and no more of them than Python does: '\u0663' and '\u00b2' are
    digits to str.isdigit()."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _check_device_rule(rule: Object, field: str) -> None:
    if rule.get("type") and rule["type"] not in ("a", "b", "c"):
        raise SpecError(f"{field}.type", f"must be one of a, b, c, is {rule['type']!r}")
    access = rule.get("access")
    if not access:
        raise SpecError(f"{field}.access", "must not be empty")
    if set(access) - set("rwm"):
        raise SpecError(f"{field}.access", f"must be made of r, w and m, is {access!r}")


def _check_memory(memory: Object, field: str) -> None:
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit < -1:
        raise SpecError(f"{field}.limit", f"must be -1 (no limit) or more, is {limit}")
    if swap not in (0, -1) and limit != -1:
        if limit == 0:
            raise SpecError(f"{field}.swap", "cannot be limited without memory.limit, which it includes")
        if swap < limit:
            raise SpecError(f"{field}.swap", f"{swap} is less than memory.limit {limit}, which it includes")
    if (memory.get("swappiness") or 0) > 100:
        raise SpecError(f"{field}.swappiness", f"must be from 0 to 100, is {memory['swappiness']}")


def _check_cpu(cpu: Object, field: str) -> None:
    for name in ("cpus", "mems"):
        if cpu.get(name):
            check_ranges(cpu[name], f"{field}.{name}")
    if cpu.get("idle") not in (None, 0, 1):
        raise SpecError(f"{field}.idle", f"must be 0 or 1, is {cpu['idle']}")


def _check_block_io(block_io: Object, field: str) -> None:
    weight = block_io.get("weight")
    if weight and not 10 <= weight <= 1000:
        raise SpecError(f"{field}.weight", f"must be from 10 to 1000, is {weight}")
    for index, device in enumerate(block_io.get("weightDevice") or []):
        if device.get("weight") is None and device.get("leafWeight") is None:
            raise SpecError(f"{field}.weightDevice[{index}]", "needs a weight or a leafWeight")


def check_ranges(text: str, field: str) -> None:
    """A list as `0-3,7` of the kernel's cpuset format. Numbers that no kernel has are refused: lists are unfolded."""
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first and not dash:
            continue
        if not is_number(first) or (dash and not (is_number(last) and int(first) <= int(last))):
            raise SpecError(field, f"must be a list of numbers and ranges as 0-3,7, is {text!r}")
        if int(last or first) > HIGHEST_CPU:
            raise SpecError(field, f"names {last or first}, no kernel has more than {HIGHEST_CPU}")


def check_seccomp(seccomp: Object, field: str = "linux.seccomp") -> None:
    """Look at a seccomp profile, before anything is made (runtime-spec, config-linux.md, "Seccomp"). Raises SpecError
    with the path of the field."""

    from teu.linux.seccomp import ACTIONS, ARCHITECTURES, FLAGS, OPERATORS  # 0.2 ms, which exec and start do without

    def known(name: str, table: Any, here: str) -> None:
        if name not in table:
            raise SpecError(here, f"{name!r} is not known; known are {', '.join(table)}")

    known(seccomp["defaultAction"], ACTIONS, f"{field}.defaultAction")
    if seccomp["defaultAction"] == "SCMP_ACT_NOTIFY":
        raise SpecError(f"{field}.defaultAction", "SCMP_ACT_NOTIFY cannot be the default")
    for index, name in enumerate(seccomp.get("architectures") or []):
        known(name, ARCHITECTURES, f"{field}.architectures[{index}]")
    for index, name in enumerate(seccomp.get("flags") or []):
        known(name, FLAGS, f"{field}.flags[{index}]")
    notify = False
    for index, rule in enumerate(seccomp.get("syscalls") or []):
        here = f"{field}.syscalls[{index}]"
        known(rule["action"], ACTIONS, f"{here}.action")
        if not rule["names"]:
            raise SpecError(f"{here}.names", "must not be empty")
        for number, argument in enumerate(rule.get("args") or []):
            known(argument["op"], OPERATORS, f"{here}.args[{number}].op")
        if rule["action"] == "SCMP_ACT_NOTIFY":
            notify = True
            if "write" in rule["names"]:
                raise SpecError(here, "SCMP_ACT_NOTIFY cannot be used for the write syscall, our own way to tell")
    if notify and not seccomp.get("listenerPath"):
        raise SpecError(f"{field}.listenerPath", "is required for SCMP_ACT_NOTIFY")
    if seccomp.get("listenerMetadata") and not seccomp.get("listenerPath"):
        raise SpecError(f"{field}.listenerMetadata", "is given without a listenerPath")


IPC_SYSCTLS = frozenset(
    (
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    )
)


def sysctl_name(name: str) -> str:
    """With dots: sysctl.d(5) also takes slashes, if the first separator is one (net/ipv4/conf/eno2.100/...)."""
    for letter in name:
        if letter == ".":
            return name
        if letter == "/":
            return name.translate({ord("."): "/", ord("/"): "."})
    return name


def _check_sysctl(linux: Object, domainname: str) -> None:
    """Only what belongs to a namespace of the container may be set: the rest is the host's."""
    paths = {namespace["type"]: namespace.get("path") or "" for namespace in linux.get("namespaces") or []}
    for given in linux["sysctl"]:
        name = sysctl_name(given)
        field = f"linux.sysctl[{given}]"
        if name in IPC_SYSCTLS or name.startswith("fs.mqueue."):
            if "ipc" not in paths:
                raise SpecError(field, "cannot be set in the host's ipc namespace")
        elif name.startswith("net."):
            if "network" not in paths or (paths["network"] and _is_own_network(paths["network"])):
                raise SpecError(field, "cannot be set in the host's network namespace")
        elif name.startswith("user."):
            if "user" not in paths:
                raise SpecError(field, "cannot be set in the host's user namespace")
        elif name == "kernel.hostname" and "uts" in paths:
            raise SpecError(field, "conflicts with the field hostname: use that")
        elif name == "kernel.domainname" and domainname not in ("", linux["sysctl"][name]):
            raise SpecError(field, "conflicts with the field domainname: use one of them")
        elif name != "kernel.domainname" or "uts" not in paths:
            raise SpecError(field, "does not belong to a namespace of the container")


def _is_own_network(path: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.stat("/proc/self/ns/net"))
    except OSError as error:
        raise SpecError("linux.namespaces", f"the network namespace {path}: {error.strerror}") from None


def _check_net_devices(linux: Object, rootless: bool) -> None:
    devices = linux.get("netDevices")
    if not devices:
        return
    if not any(namespace["type"] == "network" for namespace in linux.get("namespaces") or []):
        raise SpecError("linux.netDevices", "devices cannot be moved without a network namespace")
    if rootless:
        raise SpecError("linux.netDevices", "moving network devices needs root")
    for name, device in devices.items():
        for word in (name, device.get("name")):
            if word is None or (word == "" and word is not name):
                continue
            # dev_valid_name() of the kernel.
            if not 0 < len(word) < 16 or word in (".", "..") or any(c in "/:" or c.isspace() for c in word):
                raise SpecError(f"linux.netDevices[{name}]", f"{word!r} cannot be a network device's name")


def _check_memory_policy(policy: Object | None) -> None:
    if policy is None:
        return
    mode, nodes = policy["mode"], policy.get("nodes")
    if nodes:
        check_ranges(nodes, "linux.memoryPolicy.nodes")
    if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") and nodes:
        raise SpecError("linux.memoryPolicy.nodes", f"must be empty with {mode}")
    if mode not in ("MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED") and not nodes:
        raise SpecError("linux.memoryPolicy.nodes", f"is required with {mode}")


def _check_intel_rdt(rdt: Object | None) -> None:
    if rdt is None:
        return
    name = rdt.get("closID") or ""
    if name in (".", "..") or (len(name) > 1 and "/" in name):
        raise SpecError("linux.intelRdt.closID", f"{name!r} cannot be a directory's name")
    if any("\n" in line for line in rdt.get("schemata") or ()):
        raise SpecError("linux.intelRdt.schemata", "an entry is one line")
    bandwidth = rdt.get("memBwSchema") or "MB:"
    if "\n" in bandwidth or not bandwidth.startswith("MB:"):
        raise SpecError("linux.intelRdt.memBwSchema", f"must be a line that starts with MB:, is {bandwidth!r}")
    if not os.path.exists("/sys/fs/resctrl/schemata"):
        raise SpecError("linux.intelRdt", "is given, but /sys/fs/resctrl is not mounted: Intel RDT is not enabled")
