# SPDX-License-Identifier: Apache-2.0
"""What a client may say in Config and HostConfig: types, defaults, checks. Called by create and update.

`clean_*` return a new object with every key of the table (fields.py), so that later code need not ask
whether a key is there. Unknown keys are dropped, as dockerd does.
"""

from __future__ import annotations

import os
import posixpath
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from teu.engine.core import fields
from teu.engine.core.errors import BadRequest, Conflict
from teu.engine.logs import registry
from teu.linux import signals
from teu.oci.runtime_spec import ULIMITS

BLOCK_LIMITS = (
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
)
# Of a container, in characters: they are in each of its events.
LABELS_LIMIT = 1 << 20
MINIMUM_MEMORY = 6 << 20
MINIMUM_HEALTH = 1_000_000  # 1 ms in nanoseconds

_IPC_MODES = ("none", "private", "shareable", "host")
_PID_MODES = ("", "private", "host")


def clean_config(value: dict[str, Any]) -> dict[str, Any]:
    config = fields.CONFIG.filled(fields.CONFIG.read(value))
    for entry in config["Env"] or ():
        check_variable(entry)
    if config["StopSignal"]:
        signal_number(config["StopSignal"])
    check_health(config["Healthcheck"])
    if config["WorkingDir"]:
        if not config["WorkingDir"].startswith("/"):
            raise BadRequest(
                f"the working directory '{config['WorkingDir']}' is invalid, it needs to be an absolute path"
            )
        config["WorkingDir"] = clean_path(config["WorkingDir"])
    if len(config["Hostname"]) > 63:
        raise BadRequest(f"invalid hostname format: {config['Hostname']}: more than 63 characters")
    size_of_labels = sum(len(key) + len(label) for key, label in config["Labels"].items())
    if size_of_labels > LABELS_LIMIT:
        raise BadRequest(
            f"Labels: {size_of_labels} characters are more than a container can be described with ({LABELS_LIMIT});"
            " put what is that large into a file or a volume"
        )
    return config


def check_variable(entry: str) -> None:
    if not entry or entry.startswith("="):
        raise BadRequest(f"invalid environment variable: {entry}")


def clean_path(path: str) -> str:
    """An absolute path without what says nothing: /tmp for /tmp/, //tmp and /var/../tmp."""
    return "/" + posixpath.normpath(path).lstrip("/")


def check_health(health: dict[str, Any] | None) -> None:
    if not health:
        return
    test = health.get("Test")
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL", ""):
        raise BadRequest(f"Unknown healthcheck type '{test[0]}' (expected 'CMD')")
    for key in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        value = health.get(key) or 0
        if value and value < MINIMUM_HEALTH:
            raise BadRequest(f"{key} in Healthcheck cannot be less than 1ms")
    if (health.get("Retries") or 0) < 0:
        raise BadRequest("Retries in Healthcheck cannot be negative")


def clean_host_config(
    value: dict[str, Any] | None, log_driver: str, log_options: dict[str, str], warnings: list[str] | None = None
) -> dict[str, Any]:
    """`warnings` gets a sentence for each thing that a client asked for in vain."""
    warnings = [] if warnings is None else warnings
    host = fields.HOST_CONFIG.filled(fields.HOST_CONFIG.read(value, "HostConfig"))
    if host["NetworkMode"] in ("", "default"):
        host["NetworkMode"] = "bridge"
    if host["ShmSize"] < 0:
        raise BadRequest("SHM size can not be less than 0")
    host["ShmSize"] = host["ShmSize"] or 64 << 20
    logs = host["LogConfig"]
    kind = logs.get("Type") or log_driver
    options = logs.get("Config") or {}
    if kind == log_driver and not logs.get("Type"):
        options = {**log_options, **registry.for_the_default(kind, options, warnings)}
    registry.check(kind, options)
    host["LogConfig"] = {"Type": kind, "Config": dict(sorted(options.items()))}
    host["RestartPolicy"] = check_restart_policy(host["RestartPolicy"], host["AutoRemove"])
    check_resources(host)
    host["IpcMode"] = host["IpcMode"] or "private"
    host["CgroupnsMode"] = host["CgroupnsMode"] or "private"
    if host["CgroupnsMode"] not in ("private", "host"):
        raise BadRequest(f"invalid cgroup namespace mode: {host['CgroupnsMode']}; there are private and host")
    for key, what, modes in (("IpcMode", "IPC", _IPC_MODES), ("PidMode", "PID", _PID_MODES)):
        kind, _, joined = host[key].partition(":")
        if not (joined if kind == "container" else host[key] in modes):
            raise BadRequest(f"invalid {what} mode: {host[key]}")
    if host["UTSMode"] not in ("", "host"):
        raise BadRequest(f"invalid UTS mode: {host['UTSMode']}")
    if "" in (host["Annotations"] or {}):
        raise BadRequest("invalid Annotations: the empty string is not permitted as an annotation key")
    for path in (host["MaskedPaths"] or []) + (host["ReadonlyPaths"] or []):
        if not path.startswith("/"):
            raise BadRequest(f"HostConfig: {path!r} is to be masked, but is not an absolute path")
    check_networking(host)
    if host["DeviceRequests"]:
        wanted = host["DeviceRequests"][0]
        raise BadRequest(
            f'could not select device driver "{wanted.get("Driver") or ""}" with capabilities: '
            f"{wanted.get('Capabilities') or []}"
        )
    if host["CpuPercent"]:
        warnings.append("CpuPercent is a limit of Windows: it is discarded")
        host["CpuPercent"] = 0
    return host


def check_restart_policy(policy: dict[str, Any], auto_remove: bool, verb: str = "create") -> dict[str, Any]:
    name = policy.get("Name") or "no"
    count = policy.get("MaximumRetryCount") or 0
    if name not in ("no", "always", "on-failure", "unless-stopped"):
        raise BadRequest(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or"
            " 'unless-stopped'"
        )
    if count < 0:
        raise BadRequest("invalid restart policy: maximum retry count cannot be negative")
    if count and name != "on-failure":
        raise BadRequest("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if auto_remove and name != "no":
        if verb == "update":
            raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
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
    if 0 < host["MemoryReservation"] < MINIMUM_MEMORY:
        raise BadRequest("Minimum memory reservation allowed is 6MB")
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
    if host["CpuShares"] < 0:
        raise BadRequest("the CPU shares cannot be negative")
    if host["NanoCpus"] and (host["CpuPeriod"] or host["CpuQuota"]):
        raise BadRequest("Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set")
    if host["CpuPeriod"] and not 1000 <= host["CpuPeriod"] <= 1_000_000:
        raise BadRequest("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < host["CpuQuota"] < 1000:
        raise BadRequest("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host["BlkioWeight"] and not 10 <= host["BlkioWeight"] <= 1000:
        raise BadRequest("Range of blkio weight is from 10 to 1000")
    for key in BLOCK_LIMITS:
        for number, entry in enumerate(host[key] or ()):
            if not entry.get("Path"):
                raise BadRequest(f"HostConfig.{key}[{number}].Path must name a block device")
    for number, entry in enumerate(host["Ulimits"] or ()):
        name = entry.get("Name", "")
        if name.lower() not in ULIMITS:
            raise BadRequest(f"HostConfig.Ulimits[{number}].Name must be one of {', '.join(ULIMITS)}, not '{name}'")
        soft, hard = entry.get("Soft", 0), entry.get("Hard", 0)
        if hard != -1 and (soft > hard or soft == -1):
            raise BadRequest(f"ulimit {name}: the soft limit {soft} is above the hard limit {hard}")
    if not -1000 <= host.get("OomScoreAdj", 0) <= 1000:
        raise BadRequest(f"Invalid value {host['OomScoreAdj']}, range for oom score adj is [-1000, 1000]")


def controllers() -> set[str]:
    """The cgroup controllers that this machine has."""
    try:
        return set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())
    except OSError:
        return set()


def _swap_is_limited() -> bool:
    """The kernel counts swap for cgroups (swapaccount=0 and small machines' kernels do not)."""
    groups = [file.parent for file in Path("/sys/fs/cgroup").glob("*/memory.max")]
    return not groups or any((group / "memory.swap.max").exists() for group in groups)


# Fields of a limit, the controller that it needs, and what it is called in warnings.
LIMITS = (
    (("Memory", "MemorySwap"), "memory", "the memory limit"),
    (("MemoryReservation",), "memory", "the memory reservation"),
    (("PidsLimit",), "pids", "the limit of processes"),
    (("CpuShares",), "cpu", "the CPU shares"),
    (("CpuPeriod", "CpuQuota"), "cpu", "the CPU period and quota"),
    (("CpusetCpus", "CpusetMems"), "cpuset", "the set of CPUs or memory nodes"),
    (("BlkioWeight",), "io", "the block I/O weight"),
    (("BlkioWeightDevice",), "io", "the block I/O weight of devices"),
    (("BlkioDeviceReadBps",), "io", "the limit of bytes read from devices"),
    (("BlkioDeviceWriteBps",), "io", "the limit of bytes written to devices"),
    (("BlkioDeviceReadIOps",), "io", "the limit of reads from devices"),
    (("BlkioDeviceWriteIOps",), "io", "the limit of writes to devices"),
)


def discard(host: dict[str, Any], present: set[str], warnings: list[str]) -> None:
    """Limits that this machine cannot hold are taken out of `host` with a warning each, as a container without them is
    better than none. Raises BadRequest for a number of CPUs, which is refused then, as by docker, and for CPUs that
    are not there."""
    if host["NanoCpus"] and "cpu" not in present:
        raise BadRequest("NanoCpus: this machine has no cgroup controller for cpu; leave the number of CPUs out")
    if host["NanoCpus"] > (os.cpu_count() or 1) * 10**9:
        raise BadRequest(
            f"NanoCpus: {host['NanoCpus'] / 10**9:g} CPUs are asked for, and this machine has {os.cpu_count()}"
        )
    for keys, controller, what in LIMITS:
        given = [key for key in keys if host[key] and (not isinstance(host[key], int) or host[key] > 0)]
        if controller in present or not given:
            continue
        warnings.append(f"{what} is discarded: this machine has no cgroup controller for {controller}")
        for key in keys:
            host[key] = fields.RESOURCES.fields[key].fresh()
        if "Memory" in keys:
            host["MemorySwap"] = -1
    if host["Memory"] and host["MemorySwap"] != -1 and not _swap_is_limited():
        warnings.append("the limit of swap is discarded: this machine's kernel does not count swap for cgroups")
        host["MemorySwap"] = -1
    if host["MemorySwappiness"] is not None:
        warnings.append("MemorySwappiness is discarded: there is none with cgroup v2")
        host["MemorySwappiness"] = None
    if host["OomKillDisable"]:
        warnings.append("OomKillDisable is discarded: the OOM killer cannot be turned off with cgroup v2")
        host["OomKillDisable"] = False
    for key, file in (("CpusetCpus", "cpuset.cpus.effective"), ("CpusetMems", "cpuset.mems.effective")):
        if host[key]:
            _check_set(key, host[key], file)


def _check_set(key: str, text: str, file: str) -> None:
    wanted = _numbers(text)
    if wanted is None:
        raise BadRequest(f"Invalid value {text} for {key}: it is like 0-2,7")
    try:
        there = Path("/sys/fs/cgroup", file).read_text().strip()
    except OSError:
        return
    if not wanted <= (_numbers(there) or set()):
        raise BadRequest(f"{key}: {text} is asked for, and this machine has {there}")


def _numbers(text: str) -> set[int] | None:
    """ "0-2,7" as a set; None for what is no such list."""
    result: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip(), re.ASCII)
        if not match or int(match[2] or match[1]) < int(match[1]):
            return None
        result.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return result


def signal_number(text: str) -> int:
    """ "TERM", "SIGTERM", "15", "RTMIN+3" as a number."""
    try:
        return signals.number(text.strip())
    except ValueError:
        raise BadRequest(f"invalid signal: {text[:100]}") from None


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


# -- networks --------------------------------------------------------------------------------------------


def link(text: str) -> tuple[str, str]:
    """NAME[:ALIAS] as (container, name by which it is to be known)."""
    name, colon, alias = text.partition(":")
    if not name or colon and not alias or ":" in alias:
        raise BadRequest(f"bad format for links: {text!r}: a link is CONTAINER or CONTAINER:ALIAS")
    return name.lstrip("/"), alias or name.lstrip("/").rpartition("/")[2]


def check_extra_host(entry: str) -> None:
    """One of HostConfig.ExtraHosts: NAME:ADDRESS."""
    name, colon, address = entry.partition(":")
    if not colon or not name or not entry.isprintable():
        raise BadRequest(f"bad format for add-host: {entry!r}: it is not NAME:ADDRESS")
    if address != "host-gateway":
        try:
            ip_address(address)
        except ValueError:
            raise BadRequest(f"invalid IP address in add-host: {address!r}") from None


def check_networking(host: dict[str, Any]) -> None:
    """The parts of a cleaned HostConfig that are about networks."""
    for entry in host["ExtraHosts"] or ():
        check_extra_host(entry)
    for server in host["Dns"] or ():
        try:
            ip_address(server.partition("%")[0])
        except ValueError:
            raise BadRequest(f"bad nameserver address {server!r} in Dns: it is no IP address") from None
    for key in ("DnsSearch", "DnsOptions"):
        for text in host[key] or ():
            if not text.isprintable():
                raise BadRequest(f"HostConfig.{key}: {text!r} has control characters")
    for text in host["Links"] or ():
        link(text)
    mode = host["NetworkMode"]
    if host["Links"] and (mode.startswith("container:") or mode in ("host", "none", "bridge", "default", "")):
        raise BadRequest(
            "links are not supported on this network: use a network of your own, whose members know each other by name"
        )


def check_joined(config: dict[str, Any], host: dict[str, Any]) -> None:
    """What cannot be chosen with another container's network (`config` as the client gave it, without the image)."""
    mode = host["NetworkMode"]
    if not mode.startswith("container:"):
        return
    if not mode.partition(":")[2]:
        raise BadRequest("invalid network mode: invalid container format container:<name|id>")
    for given, what in (
        (config["Hostname"], "hostname and the network mode"),
        (host["Dns"], "dns and the network mode"),
        (host["ExtraHosts"], "custom host-to-IP mapping and the network mode"),
        (config["MacAddress"], "mac-address and the network mode"),
        (host["PortBindings"] or host["PublishAllPorts"], "port publishing and the container type network mode"),
        (config["ExposedPorts"], "port exposing and the container type network mode"),
    ):
        if given:
            raise BadRequest(f"conflicting options: {what}")
