# SPDX-License-Identifier: Apache-2.0
"""What a client may say in Config and HostConfig: types, defaults, checks. Called by create and update.

`clean_*` return a new object with every key that the API documents, so that later code need not ask
whether a key is there. Unknown keys are dropped, as dockerd does.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
from collections.abc import Iterator
from typing import Any

from teu.engine import netrequests
from teu.engine.errors import BadRequest

log = logging.getLogger("teu.engine")

# key: (accepted types, default). A callable default is made anew; None stays None.
_Table = dict[str, tuple[tuple[type, ...], Any]]
_STRINGS = (list, str)

CONFIG: _Table = {
    "Hostname": ((str,), ""),
    "Domainname": ((str,), ""),
    "User": ((str,), ""),
    "AttachStdin": ((bool,), False),
    "AttachStdout": ((bool,), False),
    "AttachStderr": ((bool,), False),
    "ExposedPorts": ((dict,), None),
    "Tty": ((bool,), False),
    "OpenStdin": ((bool,), False),
    "StdinOnce": ((bool,), False),
    "Env": ((list,), None),
    "Cmd": (_STRINGS, None),
    "Healthcheck": ((dict,), None),
    "ArgsEscaped": ((bool,), None),
    "Image": ((str,), ""),
    "Volumes": ((dict,), None),
    "WorkingDir": ((str,), ""),
    "Entrypoint": (_STRINGS, None),
    "NetworkDisabled": ((bool,), None),
    "MacAddress": ((str,), None),
    "OnBuild": ((list,), None),
    "Labels": ((dict,), dict),
    "StopSignal": ((str,), None),
    "StopTimeout": ((int,), None),
    "Shell": (_STRINGS, None),
}

RESOURCES: _Table = {
    "CpuShares": ((int,), 0),
    "Memory": ((int,), 0),
    "NanoCpus": ((int,), 0),
    "CgroupParent": ((str,), ""),
    "BlkioWeight": ((int,), 0),
    "BlkioWeightDevice": ((list,), list),
    "BlkioDeviceReadBps": ((list,), list),
    "BlkioDeviceWriteBps": ((list,), list),
    "BlkioDeviceReadIOps": ((list,), list),
    "BlkioDeviceWriteIOps": ((list,), list),
    "CpuPeriod": ((int,), 0),
    "CpuQuota": ((int,), 0),
    "CpuRealtimePeriod": ((int,), 0),
    "CpuRealtimeRuntime": ((int,), 0),
    "CpusetCpus": ((str,), ""),
    "CpusetMems": ((str,), ""),
    "Devices": ((list,), list),
    "DeviceCgroupRules": ((list,), None),
    "DeviceRequests": ((list,), None),
    "MemoryReservation": ((int,), 0),
    "MemorySwap": ((int,), 0),
    "MemorySwappiness": ((int,), None),
    "OomKillDisable": ((bool,), None),
    "PidsLimit": ((int,), None),
    "Ulimits": ((list,), list),
}

HOST_CONFIG: _Table = {
    "Binds": ((list,), None),
    "ContainerIDFile": ((str,), ""),
    "LogConfig": ((dict,), dict),
    "NetworkMode": ((str,), "default"),
    "PortBindings": ((dict,), dict),
    "RestartPolicy": ((dict,), dict),
    "AutoRemove": ((bool,), False),
    "VolumeDriver": ((str,), ""),
    "VolumesFrom": ((list,), None),
    "ConsoleSize": ((list,), lambda: [0, 0]),
    "Annotations": ((dict,), None),
    "CapAdd": ((list,), None),
    "CapDrop": ((list,), None),
    "CgroupnsMode": ((str,), ""),
    "Dns": ((list,), list),
    "DnsOptions": ((list,), list),
    "DnsSearch": ((list,), list),
    "ExtraHosts": ((list,), None),
    "GroupAdd": ((list,), None),
    "IpcMode": ((str,), ""),
    "Cgroup": ((str,), ""),
    "Links": ((list,), None),
    "OomScoreAdj": ((int,), 0),
    "PidMode": ((str,), ""),
    "Privileged": ((bool,), False),
    "PublishAllPorts": ((bool,), False),
    "ReadonlyRootfs": ((bool,), False),
    "SecurityOpt": ((list,), None),
    "StorageOpt": ((dict,), None),
    "Tmpfs": ((dict,), None),
    "UTSMode": ((str,), ""),
    "UsernsMode": ((str,), ""),
    "ShmSize": ((int,), 64 << 20),
    "Sysctls": ((dict,), None),
    "Runtime": ((str,), ""),
    "Isolation": ((str,), ""),
    "Mounts": ((list,), None),
    "MaskedPaths": ((list,), None),
    "ReadonlyPaths": ((list,), None),
    "Init": ((bool,), None),
    **RESOURCES,
}

LOG_DRIVERS = ("journald", "json-file", "local", "none")
LOG_OPTIONS = {
    "journald": {"tag", "labels", "labels-regex", "env", "env-regex"},
    "json-file": {"max-size", "max-file", "compress", "tag", "labels", "labels-regex", "env", "env-regex"},
    "local": {"max-size", "max-file", "compress"},
    "none": set(),
}
COMMON_LOG_OPTIONS = {"mode", "max-buffer-size"}
MINIMUM_MEMORY = 6 << 20
MINIMUM_HEALTH = 1_000_000  # 1 ms in nanoseconds

_IPC_MODES = ("none", "private", "shareable", "host")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?", re.IGNORECASE)


def _clean(value: dict[str, Any], table: _Table, what: str) -> dict[str, Any]:
    # Go's decoder matches keys without regard to case.
    lower = {key.lower(): key for key in value} if any(key not in table for key in value) else {}
    result: dict[str, Any] = {}
    for key, (types, default) in table.items():
        given = value.get(key)
        if given is None and lower:
            given = value.get(lower.get(key.lower(), key))
        if given is None:
            result[key] = default() if callable(default) else default
            continue
        if not isinstance(given, types) or (isinstance(given, bool) and bool not in types):
            raise BadRequest(
                f"{what}.{key}: {_kind(given)} was given, {' or '.join(_NAMES[t] for t in types)} is expected"
            )
        if isinstance(given, int) and not -(1 << 63) <= given < 1 << 63:
            raise BadRequest(f"{what}.{key}: {given} does not fit a 64-bit number")
        if types is _STRINGS and isinstance(given, str):
            given = [given]
        if isinstance(given, list) and key not in _OBJECTS:
            for item in given:
                if not isinstance(item, int if key == "ConsoleSize" else str):
                    raise BadRequest(f"{what}.{key}: {_kind(item)} is not a valid element")
        result[key] = dict(sorted(given.items())) if isinstance(given, dict) and key in _MAPS else given
    return result


# Shown in the order of their keys, whatever the order they came in.
_MAPS = {"Annotations", "ExposedPorts", "Labels", "PortBindings", "StorageOpt", "Sysctls", "Tmpfs", "Volumes"}
_OBJECTS = {
    "Mounts", "Devices", "DeviceRequests", "Ulimits", "BlkioWeightDevice", "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps",
}  # fmt: skip
_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


@contextlib.contextmanager
def well_formed(what: str) -> Iterator[None]:
    """Around the reading of nested parts of a request: a wrong type deep inside is the client's mistake."""
    try:
        yield
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        log.debug("a malformed request", exc_info=True)
        raise BadRequest(f"{what} is malformed: {type(error).__name__}: {error}") from None


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def clean_config(value: dict[str, Any]) -> dict[str, Any]:
    config = _clean(value, CONFIG, "Config")
    for entry in config["Env"] or ():
        if not entry or entry.startswith("="):
            raise BadRequest(f"invalid environment variable: {entry}")
    if config["StopSignal"]:
        signal_number(config["StopSignal"])
    for key, label in config["Labels"].items():
        if not isinstance(label, str):
            raise BadRequest(f"Config.Labels.{key}: {_kind(label)} was given, a string is expected")
    check_health(config["Healthcheck"])
    if config["WorkingDir"] and not config["WorkingDir"].startswith("/"):
        raise BadRequest(f"the working directory '{config['WorkingDir']}' is invalid, it needs to be an absolute path")
    if len(config["Hostname"]) > 63:
        raise BadRequest(f"invalid hostname format: {config['Hostname']}: more than 63 characters")
    return config


def check_health(health: dict[str, Any] | None) -> None:
    if not health:
        return
    test = health.get("Test")
    if test is not None and (not isinstance(test, list) or not all(isinstance(word, str) for word in test)):
        raise BadRequest("Config.Healthcheck.Test: a list of strings is expected")
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL", ""):
        raise BadRequest(f"Unknown healthcheck type '{test[0]}' (expected 'CMD')")
    for key in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        value = health.get(key) or 0
        if not isinstance(value, int) or value and value < MINIMUM_HEALTH:
            raise BadRequest(f"{key} in Healthcheck cannot be less than 1ms")
    if (health.get("Retries") or 0) < 0:
        raise BadRequest("Retries in Healthcheck cannot be negative")


def clean_host_config(value: dict[str, Any] | None, log_driver: str, log_options: dict[str, str]) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise BadRequest(f"HostConfig: {_kind(value)} was given, an object is expected")
    host = _clean(value or {}, HOST_CONFIG, "HostConfig")
    if host["NetworkMode"] in ("", "default"):
        host["NetworkMode"] = "bridge"
    if host["ShmSize"] < 0:
        raise BadRequest("SHM size can not be less than 0")
    host["ShmSize"] = host["ShmSize"] or 64 << 20
    logs = host["LogConfig"]
    kind = logs.get("Type") or log_driver
    options = logs.get("Config") or {}
    if kind == log_driver and not logs.get("Type"):
        options = {**log_options, **options}
    check_logs(kind, options)
    host["LogConfig"] = {"Type": kind, "Config": dict(sorted(options.items()))}
    host["RestartPolicy"] = check_restart_policy(host["RestartPolicy"], host["AutoRemove"])
    check_resources(host)
    host["IpcMode"] = host["IpcMode"] or "private"
    host["CgroupnsMode"] = host["CgroupnsMode"] or "private"
    _choice(host, "CgroupnsMode", ("private", "host"))
    if not host["IpcMode"].startswith("container:") and host["IpcMode"] not in _IPC_MODES:
        raise BadRequest(f"invalid IPC mode: {host['IpcMode']}")
    if not host["PidMode"].startswith("container:") and host["PidMode"] not in ("", "host", "private"):
        raise BadRequest(f"invalid PID mode: {host['PidMode']}")
    if host["UTSMode"] not in ("", "host"):
        raise BadRequest(f"invalid UTS mode: {host['UTSMode']}")
    if "" in (host["Annotations"] or {}):
        raise BadRequest("invalid Annotations: the empty string is not permitted as an annotation key")
    _choice(host, "UsernsMode", ("", "host"))
    _choice(host, "Isolation", ("", "default"))
    for path in (host["MaskedPaths"] or []) + (host["ReadonlyPaths"] or []):
        if not path.startswith("/"):
            raise BadRequest(f"HostConfig: {path!r} is to be masked, but is not an absolute path")
    netrequests.check_host_config(host)
    if host["DeviceRequests"]:
        wanted = host["DeviceRequests"][0]
        raise BadRequest(
            f'could not select device driver "{wanted.get("Driver") or ""}" with capabilities: '
            f"{wanted.get('Capabilities') or []}"
        )
    if host["StorageOpt"]:
        raise BadRequest("--storage-opt is not supported by the overlayfs snapshotter")
    return host


def _choice(host: dict[str, Any], key: str, values: tuple[str, ...]) -> None:
    if host[key] not in values:
        names = ", ".join(repr(value) for value in values if value)
        raise BadRequest(f"HostConfig.{key}: {host[key]!r} is not one of {names}")


def check_logs(kind: str, options: dict[str, str]) -> None:
    if kind not in LOG_DRIVERS:
        raise BadRequest(f"logger: no log driver named '{kind}' is registered")
    for key, value in options.items():
        if key not in LOG_OPTIONS[kind] | COMMON_LOG_OPTIONS:
            raise BadRequest(f"unknown log opt '{key}' for {kind} log driver")
        if not isinstance(value, str):
            raise BadRequest(f"log opt '{key}': a string is expected")
    if "max-size" in options and options["max-size"] != "-1":
        size(options["max-size"], "max-size")
    if "max-file" in options and (not options["max-file"].isdigit() or int(options["max-file"]) < 1):
        raise BadRequest("max-file cannot be less than 1")


def check_restart_policy(policy: dict[str, Any], auto_remove: bool) -> dict[str, Any]:
    name = policy.get("Name") or "no"
    count = policy.get("MaximumRetryCount") or 0
    if name not in ("no", "always", "on-failure", "unless-stopped"):
        raise BadRequest(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or"
            " 'unless-stopped'"
        )
    if not isinstance(count, int) or count < 0:
        raise BadRequest("invalid restart policy: maximum retry count cannot be negative")
    if count and name != "on-failure":
        raise BadRequest("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if auto_remove and name != "no":
        raise BadRequest("can't create 'AutoRemove' container with restart policy")
    return {"Name": name, "MaximumRetryCount": count}


def check_resources(host: dict[str, Any]) -> None:
    memory, swap = host["Memory"], host["MemorySwap"]
    if 0 < memory < MINIMUM_MEMORY:
        raise BadRequest("Minimum memory limit allowed is 6MB")
    if memory < 0:
        raise BadRequest("the memory limit cannot be negative")
    if swap > 0 and memory == 0:
        raise BadRequest("You should always set the Memory limit when using Memoryswap limit, see usage")
    if 0 < swap < memory:
        raise BadRequest("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory and swap == 0:
        host["MemorySwap"] = memory * 2
    if 0 < memory < host["MemoryReservation"]:
        raise BadRequest("Minimum memory limit can not be less than memory reservation limit, see usage")
    swappiness = host["MemorySwappiness"]
    if swappiness == -1:
        swappiness = host["MemorySwappiness"] = None
    host["PidsLimit"] = host["PidsLimit"] or None
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise BadRequest(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if host["NanoCpus"] < 0:
        raise BadRequest("the number of CPUs cannot be negative")
    if host["NanoCpus"] and (host["CpuPeriod"] or host["CpuQuota"]):
        raise BadRequest("Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set")
    if host["CpuPeriod"] and not 1000 <= host["CpuPeriod"] <= 1_000_000:
        raise BadRequest("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < host["CpuQuota"] < 1000:
        raise BadRequest("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host["BlkioWeight"] and not 10 <= host["BlkioWeight"] <= 1000:
        raise BadRequest("Range of blkio weight is from 10 to 1000")
    for entry in host["Ulimits"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("Name"), str):
            raise BadRequest("HostConfig.Ulimits: objects with Name, Soft and Hard are expected")
        if not isinstance(entry.get("Soft", 0), int) or not isinstance(entry.get("Hard", 0), int):
            raise BadRequest(f"ulimit {entry['Name']}: Soft and Hard are whole numbers")
    if not -1000 <= host.get("OomScoreAdj", 0) <= 1000:
        raise BadRequest(f"Invalid value {host['OomScoreAdj']}, range for oom score adj is [-1000, 1000]")


def size(text: str, what: str) -> int:
    """ "10m" in bytes."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise BadRequest(f"{what}: invalid size: '{text}'")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))


def signal_number(text: str) -> int:
    """ "TERM", "SIGTERM", "15", "RTMIN+3" as a number."""
    name = text.strip().upper()
    if name.isdigit():
        if 0 < int(name) < signal.NSIG:
            return int(name)
    else:
        name = name.removeprefix("SIG")
        match = re.fullmatch(r"RTM(IN|AX)(?:([+-])(\d+))?", name)
        if match:
            base = int(signal.SIGRTMIN if match[1] == "IN" else signal.SIGRTMAX)
            number = base + int(f"{match[2] or '+'}{match[3] or 0}")
            if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                return number
        elif hasattr(signal, f"SIG{name}"):
            return int(getattr(signal, f"SIG{name}"))
    raise BadRequest(f"invalid signal: {text}")


def runtime_name(name: str, default: str, configured: dict[str, Any]) -> str:
    """containerd's name of an OCI runtime that a user names."""
    if not name:
        return default
    if name in configured:
        return str(configured[name])
    if name == "runc":
        return "io.containerd.runc.v2"
    if name == "teu":
        return "io.containerd.teu.v2"
    if re.fullmatch(r"io\.containerd\.[\w.-]+\.v\d", name):
        return name
    raise BadRequest(f"unknown or invalid runtime name: {name}")
