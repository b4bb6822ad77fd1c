# SPDX-License-Identifier: Apache-2.0
"""The messages of the shim's wire: names, numbers and types are facts of containerd's API.

A unit test compares every table with the descriptor compiled from protos/.  The task API's versions
2 and 3 have the same messages under two package names; here they stand under `task.`.
"""

from __future__ import annotations

from teu.ttrpc.codec import decode_table, encode_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from teu.ttrpc.codec import Message, Tables

_TIMESTAMP = "google.protobuf.Timestamp"
_ANY = "google.protobuf.Any"
_MOUNT = "containerd.types.Mount"
_PSI = "io.containerd.cgroups.v2.PSIStats"

TABLES: Tables = {
    "google.protobuf.Empty": {},
    _ANY: {1: ("type_url", "string"), 2: ("value", "bytes")},
    _TIMESTAMP: {1: ("seconds", "int64"), 2: ("nanos", "int32")},
    "google.rpc.Status": {1: ("code", "int32"), 2: ("message", "string"), 3: ("details", "*" + _ANY)},
    "ttrpc.Request": {
        1: ("service", "string"),
        2: ("method", "string"),
        3: ("payload", "bytes"),
        4: ("timeout_nano", "int64"),
        5: ("metadata", "*ttrpc.KeyValue"),
    },
    "ttrpc.Response": {1: ("status", "google.rpc.Status"), 2: ("payload", "bytes")},
    "ttrpc.KeyValue": {1: ("key", "string"), 2: ("value", "string")},
    _MOUNT: {1: ("type", "string"), 2: ("source", "string"), 3: ("target", "string"), 4: ("options", "*string")},
    "containerd.types.Envelope": {
        1: ("timestamp", _TIMESTAMP),
        2: ("namespace", "string"),
        3: ("topic", "string"),
        4: ("event", _ANY),
    },
    "containerd.v1.types.ProcessInfo": {1: ("pid", "uint32"), 2: ("info", _ANY)},
    "containerd.types.RuntimeVersion": {1: ("version", "string"), 2: ("revision", "string")},
    "containerd.types.RuntimeInfo": {
        1: ("name", "string"),
        2: ("version", "containerd.types.RuntimeVersion"),
        3: ("options", _ANY),
        4: ("features", _ANY),
        5: ("annotations", "map"),
    },
    "containerd.services.events.ttrpc.v1.ForwardRequest": {1: ("envelope", "containerd.types.Envelope")},
    "containerd.runc.v1.Options": {
        1: ("no_pivot_root", "bool"),
        2: ("no_new_keyring", "bool"),
        3: ("shim_cgroup", "string"),
        4: ("io_uid", "uint32"),
        5: ("io_gid", "uint32"),
        6: ("binary_name", "string"),
        7: ("root", "string"),
        8: ("criu_path", "string"),
        9: ("systemd_cgroup", "bool"),
        10: ("criu_image_path", "string"),
        11: ("criu_work_path", "string"),
        1000: ("environment", "*bytes"),
    },
    "runtimeoptions.v1.Options": {1: ("type_url", "string"), 2: ("config_path", "string"), 3: ("config_body", "bytes")},
    "containerd.runc.v1.CheckpointOptions": {
        1: ("exit", "bool"),
        2: ("open_tcp", "bool"),
        3: ("external_unix_sockets", "bool"),
        4: ("terminal", "bool"),
        5: ("file_locks", "bool"),
        6: ("empty_namespaces", "*string"),
        7: ("cgroups_mode", "string"),
        8: ("image_path", "string"),
        9: ("work_path", "string"),
        10: ("parent_path", "string"),
    },
    "containerd.linux.runc.CreateOptions": {
        1: ("no_pivot_root", "bool"),
        2: ("open_tcp", "bool"),
        3: ("external_unix_sockets", "bool"),
        4: ("terminal", "bool"),
        5: ("file_locks", "bool"),
        6: ("empty_namespaces", "*string"),
        7: ("cgroups_mode", "string"),
        8: ("no_new_keyring", "bool"),
        9: ("shim_cgroup", "string"),
        10: ("io_uid", "uint32"),
        11: ("io_gid", "uint32"),
        12: ("criu_work_path", "string"),
        13: ("criu_image_path", "string"),
    },
    "containerd.linux.runc.CheckpointOptions": {
        1: ("exit", "bool"),
        2: ("open_tcp", "bool"),
        3: ("external_unix_sockets", "bool"),
        4: ("terminal", "bool"),
        5: ("file_locks", "bool"),
        6: ("empty_namespaces", "*string"),
        7: ("cgroups_mode", "string"),
        8: ("work_path", "string"),
        9: ("image_path", "string"),
    },
    "containerd.runc.v1.ProcessDetails": {1: ("exec_id", "string")},
    "containerd.runtime.bootstrap.v1.BootstrapResult": {
        1: ("version", "int32"),
        2: ("address", "string"),
        3: ("protocol", "string"),
    },
    "task.CreateTaskRequest": {
        1: ("id", "string"),
        2: ("bundle", "string"),
        3: ("rootfs", "*" + _MOUNT),
        4: ("terminal", "bool"),
        5: ("stdin", "string"),
        6: ("stdout", "string"),
        7: ("stderr", "string"),
        8: ("checkpoint", "string"),
        9: ("parent_checkpoint", "string"),
        10: ("options", _ANY),
    },
    "task.CreateTaskResponse": {1: ("pid", "uint32")},
    "task.DeleteRequest": {1: ("id", "string"), 2: ("exec_id", "string")},
    "task.DeleteResponse": {1: ("pid", "uint32"), 2: ("exit_status", "uint32"), 3: ("exited_at", _TIMESTAMP)},
    "task.ExecProcessRequest": {
        1: ("id", "string"),
        2: ("exec_id", "string"),
        3: ("terminal", "bool"),
        4: ("stdin", "string"),
        5: ("stdout", "string"),
        6: ("stderr", "string"),
        7: ("spec", _ANY),
    },
    "task.ResizePtyRequest": {
        1: ("id", "string"),
        2: ("exec_id", "string"),
        3: ("width", "uint32"),
        4: ("height", "uint32"),
    },
    "task.StateRequest": {1: ("id", "string"), 2: ("exec_id", "string")},
    "task.StateResponse": {
        1: ("id", "string"),
        2: ("bundle", "string"),
        3: ("pid", "uint32"),
        4: ("status", "enum"),
        5: ("stdin", "string"),
        6: ("stdout", "string"),
        7: ("stderr", "string"),
        8: ("terminal", "bool"),
        9: ("exit_status", "uint32"),
        10: ("exited_at", _TIMESTAMP),
        11: ("exec_id", "string"),
    },
    "task.KillRequest": {1: ("id", "string"), 2: ("exec_id", "string"), 3: ("signal", "uint32"), 4: ("all", "bool")},
    "task.CloseIORequest": {1: ("id", "string"), 2: ("exec_id", "string"), 3: ("stdin", "bool")},
    "task.PidsRequest": {1: ("id", "string")},
    "task.PidsResponse": {1: ("processes", "*containerd.v1.types.ProcessInfo")},
    "task.CheckpointTaskRequest": {1: ("id", "string"), 2: ("path", "string"), 3: ("options", _ANY)},
    "task.UpdateTaskRequest": {1: ("id", "string"), 2: ("resources", _ANY), 3: ("annotations", "map")},
    "task.StartRequest": {1: ("id", "string"), 2: ("exec_id", "string")},
    "task.StartResponse": {1: ("pid", "uint32")},
    "task.WaitRequest": {1: ("id", "string"), 2: ("exec_id", "string")},
    "task.WaitResponse": {1: ("exit_status", "uint32"), 2: ("exited_at", _TIMESTAMP)},
    "task.StatsRequest": {1: ("id", "string")},
    "task.StatsResponse": {1: ("stats", _ANY)},
    "task.ConnectRequest": {1: ("id", "string")},
    "task.ConnectResponse": {1: ("shim_pid", "uint32"), 2: ("task_pid", "uint32"), 3: ("version", "string")},
    "task.ShutdownRequest": {1: ("id", "string"), 2: ("now", "bool")},
    "task.PauseRequest": {1: ("id", "string")},
    "task.ResumeRequest": {1: ("id", "string")},
    "containerd.types.Platform": {
        1: ("os", "string"),
        2: ("architecture", "string"),
        3: ("variant", "string"),
        4: ("os_version", "string"),
        5: ("os_features", "*string"),
    },
    "containerd.types.Metric": {1: ("timestamp", _TIMESTAMP), 2: ("id", "string"), 3: ("data", _ANY)},
    "containerd.runtime.sandbox.v1.CreateSandboxRequest": {
        1: ("sandbox_id", "string"),
        2: ("bundle_path", "string"),
        3: ("rootfs", "*" + _MOUNT),
        4: ("options", _ANY),
        5: ("netns_path", "string"),
        6: ("annotations", "map"),
    },
    "containerd.runtime.sandbox.v1.CreateSandboxResponse": {},
    "containerd.runtime.sandbox.v1.StartSandboxRequest": {1: ("sandbox_id", "string")},
    "containerd.runtime.sandbox.v1.StartSandboxResponse": {
        1: ("pid", "uint32"),
        2: ("created_at", _TIMESTAMP),
        3: ("spec", _ANY),
    },
    "containerd.runtime.sandbox.v1.PlatformRequest": {1: ("sandbox_id", "string")},
    "containerd.runtime.sandbox.v1.PlatformResponse": {1: ("platform", "containerd.types.Platform")},
    "containerd.runtime.sandbox.v1.StopSandboxRequest": {1: ("sandbox_id", "string"), 2: ("timeout_secs", "uint32")},
    "containerd.runtime.sandbox.v1.StopSandboxResponse": {},
    "containerd.runtime.sandbox.v1.WaitSandboxRequest": {1: ("sandbox_id", "string")},
    "containerd.runtime.sandbox.v1.WaitSandboxResponse": {1: ("exit_status", "uint32"), 2: ("exited_at", _TIMESTAMP)},
    "containerd.runtime.sandbox.v1.SandboxStatusRequest": {1: ("sandbox_id", "string"), 2: ("verbose", "bool")},
    "containerd.runtime.sandbox.v1.SandboxStatusResponse": {
        1: ("sandbox_id", "string"),
        2: ("pid", "uint32"),
        3: ("state", "string"),
        4: ("info", "map"),
        5: ("created_at", _TIMESTAMP),
        6: ("exited_at", _TIMESTAMP),
        7: ("extra", _ANY),
    },
    "containerd.runtime.sandbox.v1.PingRequest": {1: ("sandbox_id", "string")},
    "containerd.runtime.sandbox.v1.PingResponse": {},
    "containerd.runtime.sandbox.v1.ShutdownSandboxRequest": {1: ("sandbox_id", "string")},
    "containerd.runtime.sandbox.v1.ShutdownSandboxResponse": {},
    "containerd.runtime.sandbox.v1.SandboxMetricsRequest": {1: ("sandbox_id", "string")},
    "containerd.runtime.sandbox.v1.SandboxMetricsResponse": {1: ("metrics", "containerd.types.Metric")},
    "containerd.events.TaskIO": {
        1: ("stdin", "string"),
        2: ("stdout", "string"),
        3: ("stderr", "string"),
        4: ("terminal", "bool"),
    },
    "containerd.events.TaskCreate": {
        1: ("container_id", "string"),
        2: ("bundle", "string"),
        3: ("rootfs", "*" + _MOUNT),
        4: ("io", "containerd.events.TaskIO"),
        5: ("checkpoint", "string"),
        6: ("pid", "uint32"),
    },
    "containerd.events.TaskStart": {1: ("container_id", "string"), 2: ("pid", "uint32")},
    "containerd.events.TaskDelete": {
        1: ("container_id", "string"),
        2: ("pid", "uint32"),
        3: ("exit_status", "uint32"),
        4: ("exited_at", _TIMESTAMP),
        5: ("id", "string"),
    },
    "containerd.events.TaskExit": {
        1: ("container_id", "string"),
        2: ("id", "string"),
        3: ("pid", "uint32"),
        4: ("exit_status", "uint32"),
        5: ("exited_at", _TIMESTAMP),
    },
    "containerd.events.TaskOOM": {1: ("container_id", "string")},
    "containerd.events.TaskExecAdded": {1: ("container_id", "string"), 2: ("exec_id", "string")},
    "containerd.events.TaskExecStarted": {
        1: ("container_id", "string"),
        2: ("exec_id", "string"),
        3: ("pid", "uint32"),
    },
    "containerd.events.TaskPaused": {1: ("container_id", "string")},
    "containerd.events.TaskResumed": {1: ("container_id", "string")},
    "containerd.events.TaskCheckpointed": {1: ("container_id", "string"), 2: ("checkpoint", "string")},
    "io.containerd.cgroups.v2.Metrics": {
        1: ("pids", "io.containerd.cgroups.v2.PidsStat"),
        2: ("cpu", "io.containerd.cgroups.v2.CPUStat"),
        4: ("memory", "io.containerd.cgroups.v2.MemoryStat"),
        5: ("rdma", "io.containerd.cgroups.v2.RdmaStat"),
        6: ("io", "io.containerd.cgroups.v2.IOStat"),
        7: ("hugetlb", "*io.containerd.cgroups.v2.HugeTlbStat"),
        8: ("memory_events", "io.containerd.cgroups.v2.MemoryEvents"),
    },
    "io.containerd.cgroups.v2.PSIData": {
        1: ("avg10", "double"),
        2: ("avg60", "double"),
        3: ("avg300", "double"),
        4: ("total", "uint64"),
    },
    _PSI: {1: ("some", "io.containerd.cgroups.v2.PSIData"), 2: ("full", "io.containerd.cgroups.v2.PSIData")},
    "io.containerd.cgroups.v2.PidsStat": {1: ("current", "uint64"), 2: ("limit", "uint64")},
    "io.containerd.cgroups.v2.CPUStat": {
        1: ("usage_usec", "uint64"),
        2: ("user_usec", "uint64"),
        3: ("system_usec", "uint64"),
        4: ("nr_periods", "uint64"),
        5: ("nr_throttled", "uint64"),
        6: ("throttled_usec", "uint64"),
        7: ("psi", _PSI),
        8: ("nr_bursts", "uint64"),
        9: ("burst_usec", "uint64"),
    },
    "io.containerd.cgroups.v2.MemoryStat": {
        number: (name, "uint64")
        for number, name in enumerate(
            (
                "anon",
                "file",
                "kernel_stack",
                "slab",
                "sock",
                "shmem",
                "file_mapped",
                "file_dirty",
                "file_writeback",
                "anon_thp",
                "inactive_anon",
                "active_anon",
                "inactive_file",
                "active_file",
                "unevictable",
                "slab_reclaimable",
                "slab_unreclaimable",
                "pgfault",
                "pgmajfault",
                "workingset_refault",
                "workingset_activate",
                "workingset_nodereclaim",
                "pgrefill",
                "pgscan",
                "pgsteal",
                "pgactivate",
                "pgdeactivate",
                "pglazyfree",
                "pglazyfreed",
                "thp_fault_alloc",
                "thp_collapse_alloc",
                "usage",
                "usage_limit",
                "swap_usage",
                "swap_limit",
                "max_usage",
                "swap_max_usage",
            ),
            start=1,
        )
    }
    | {
        38: ("psi", _PSI),
        39: ("workingset_refault_anon", "uint64"),
        40: ("workingset_refault_file", "uint64"),
        41: ("workingset_activate_anon", "uint64"),
        42: ("workingset_activate_file", "uint64"),
    },
    "io.containerd.cgroups.v2.MemoryEvents": {
        1: ("low", "uint64"),
        2: ("high", "uint64"),
        3: ("max", "uint64"),
        4: ("oom", "uint64"),
        5: ("oom_kill", "uint64"),
        6: ("oom_group_kill", "uint64"),
    },
    "io.containerd.cgroups.v2.RdmaStat": {
        1: ("current", "*io.containerd.cgroups.v2.RdmaEntry"),
        2: ("limit", "*io.containerd.cgroups.v2.RdmaEntry"),
    },
    "io.containerd.cgroups.v2.RdmaEntry": {
        1: ("device", "string"),
        2: ("hca_handles", "uint32"),
        3: ("hca_objects", "uint32"),
    },
    "io.containerd.cgroups.v2.IOStat": {1: ("usage", "*io.containerd.cgroups.v2.IOEntry"), 2: ("psi", _PSI)},
    "io.containerd.cgroups.v2.IOEntry": {
        1: ("major", "uint64"),
        2: ("minor", "uint64"),
        3: ("rbytes", "uint64"),
        4: ("wbytes", "uint64"),
        5: ("rios", "uint64"),
        6: ("wios", "uint64"),
    },
    "io.containerd.cgroups.v2.HugeTlbStat": {
        1: ("current", "uint64"),
        2: ("max", "uint64"),
        3: ("pagesize", "string"),
        4: ("failcnt", "uint64"),
    },
}

TASK_SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
EVENTS_SERVICE = "containerd.services.events.ttrpc.v1.Events"

_EMPTY = "google.protobuf.Empty"
TASK_METHODS = {
    "State": ("task.StateRequest", "task.StateResponse"),
    "Create": ("task.CreateTaskRequest", "task.CreateTaskResponse"),
    "Start": ("task.StartRequest", "task.StartResponse"),
    "Delete": ("task.DeleteRequest", "task.DeleteResponse"),
    "Pids": ("task.PidsRequest", "task.PidsResponse"),
    "Pause": ("task.PauseRequest", _EMPTY),
    "Resume": ("task.ResumeRequest", _EMPTY),
    "Checkpoint": ("task.CheckpointTaskRequest", _EMPTY),
    "Kill": ("task.KillRequest", _EMPTY),
    "Exec": ("task.ExecProcessRequest", _EMPTY),
    "ResizePty": ("task.ResizePtyRequest", _EMPTY),
    "CloseIO": ("task.CloseIORequest", _EMPTY),
    "Update": ("task.UpdateTaskRequest", _EMPTY),
    "Wait": ("task.WaitRequest", "task.WaitResponse"),
    "Stats": ("task.StatsRequest", "task.StatsResponse"),
    "Connect": ("task.ConnectRequest", "task.ConnectResponse"),
    "Shutdown": ("task.ShutdownRequest", _EMPTY),
}

SANDBOX_SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
SANDBOX_METHODS = {
    name: (f"containerd.runtime.sandbox.v1.{kind}Request", f"containerd.runtime.sandbox.v1.{kind}Response")
    for name, kind in [
        (kind, kind)
        for kind in (
            "CreateSandbox",
            "StartSandbox",
            "Platform",
            "StopSandbox",
            "WaitSandbox",
            "SandboxStatus",
            "ShutdownSandbox",
            "SandboxMetrics",
        )
    ]
    + [("PingSandbox", "Ping")]
}

# containerd.v1.types.Status
UNKNOWN, CREATED, RUNNING, STOPPED, PAUSED, PAUSING = 0, 1, 2, 3, 4, 5


def encode(name: str, message: Message) -> bytes:
    """`message` in the wire format of the table of that name."""
    return encode_table(TABLES, TABLES[name], message)


def decode(name: str, data: bytes) -> Message:
    """The message of that name in `data`; ValueError for malformed bytes."""
    return decode_table(TABLES, TABLES[name], data)


def encode_any(name: str, message: Message) -> Message:
    """An Any with `message` inside.  Its URL is the bare name, as containerd's typeurl writes it."""
    return {"type_url": name, "value": encode(name, message)}


def decode_any(name: str, packed: Message | None) -> Message:
    """What is inside an Any that must hold `name`; its defaults when there is nothing.

    ValueError if it is something else."""
    if not packed or not (packed["type_url"] or packed["value"]):
        return decode(name, b"")
    if packed["type_url"].rpartition("/")[2] != name:
        raise ValueError(f"expected {name} but got {packed['type_url']!r}")
    return decode(name, packed["value"])


def timestamp(nanoseconds: int) -> Message:
    """A google.protobuf.Timestamp from nanoseconds since the epoch."""
    return {"seconds": nanoseconds // 10**9, "nanos": nanoseconds % 10**9}


# What a client sends in the place of ours when it does not know the runtime's name.
_OLDER = {
    "containerd.runc.v1.Options": "containerd.linux.runc.CreateOptions",
    "containerd.runc.v1.CheckpointOptions": "containerd.linux.runc.CheckpointOptions",
}


def decode_options(name: str, packed: Message | None) -> Message:
    """As decode_any, for options: the older message of the kind is taken, too, as far as it says the same."""
    older = _OLDER[name]
    if not packed or packed["type_url"].rpartition("/")[2] != older:
        return decode_any(name, packed)
    options = decode(name, b"")
    options.update({key: value for key, value in decode(older, packed["value"]).items() if key in options})
    return options
