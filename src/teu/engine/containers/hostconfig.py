# SPDX-License-Identifier: Apache-2.0
"""What a client may say in Config and HostConfig: defaults and checks. Called by create and update.

The records come from the API's decoder (core/fields.py), which has seen to their types; `clean_*` return new ones.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

from teu.engine.containers.defaults import SHM_SIZE
from teu.engine.core.errors import BadRequest, Conflict
from teu.engine.core.fields import Config, HealthCheck, HostConfig, LogConfig, Resources, RestartPolicy, Ulimit
from teu.engine.logs import registry
from teu.linux import signals
from teu.oci.runtime_spec import ULIMITS

# Attributes of Resources, and what the API calls them.
BLOCK_LIMITS = {
    name: member.name
    for name, member in Resources.members.items()
    if name.startswith("blkio_device_") or name == "blkio_weight_device"
}
# Of a container, in characters: they are in each of its events.
LABELS_LIMIT = 1 << 20
MINIMUM_MEMORY = 6 << 20
MINIMUM_HEALTH = 1_000_000  # 1 ms in nanoseconds

_IPC_MODES = ("none", "private", "shareable", "host")
_PID_MODES = ("", "private", "host")


def clean_config(given: Config) -> Config:
    """What is given, checked, without what else a body may have. Raises BadRequest."""
    config = Config(**{name: value for name, value in vars(given).items() if name in Config.members})
    for entry in config.env or ():
        check_variable(entry)
    if config.stop_signal:
        signal_number(config.stop_signal)
    check_health(config.healthcheck)
    if config.working_dir:
        if not config.working_dir.startswith("/"):
            raise BadRequest(
                f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
            )
        config.working_dir = clean_path(config.working_dir)
    if len(config.hostname) > 63:
        raise BadRequest(f"invalid hostname format: {config.hostname}: more than 63 characters")
    size_of_labels = sum(len(key) + len(label) for key, label in config.labels.items())
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


def check_health(health: HealthCheck | None) -> None:
    if health is None:
        return
    if health.test and health.test[0] not in ("NONE", "CMD", "CMD-SHELL", ""):
        raise BadRequest(f"Unknown healthcheck type '{health.test[0]}' (expected 'CMD')")
    for key, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value and value < MINIMUM_HEALTH:
            raise BadRequest(f"{key} in Healthcheck cannot be less than 1ms")
    if (health.retries or 0) < 0:
        raise BadRequest("Retries in Healthcheck cannot be negative")


def clean_host_config(
    given: HostConfig | None,
    log_driver: str,
    log_options: Mapping[str, str],
    warnings: list[str] | None = None,
) -> HostConfig:
    """`warnings` gets a sentence for each thing that a client asked for in vain. Raises BadRequest, Conflict."""
    warnings = [] if warnings is None else warnings
    host = given.copy() if given else HostConfig()
    if host.network_mode in ("", "default"):
        host.network_mode = "bridge"
    if host.shm_size < 0:
        raise BadRequest("SHM size can not be less than 0")
    host.shm_size = host.shm_size or SHM_SIZE
    host.log_config = _log_config(host.log_config, log_driver, log_options, warnings)
    host.restart_policy = check_restart_policy(host.restart_policy, host.auto_remove)
    check_resources(host)
    _check_modes(host)
    if "" in (host.annotations or {}):
        raise BadRequest("invalid Annotations: the empty string is not permitted as an annotation key")
    for path in (host.masked_paths or []) + (host.readonly_paths or []):
        if not path.startswith("/"):
            raise BadRequest(f"HostConfig: {path!r} is to be masked, but is not an absolute path")
    check_networking(host)
    if host.cpu_percent:
        warnings.append("CpuPercent is a limit of Windows: it is discarded")
        host.cpu_percent = 0
    return host


def _log_config(given: LogConfig, driver: str, driver_options: Mapping[str, str], warnings: list[str]) -> LogConfig:
    """The driver and all its options. Raises BadRequest."""
    kind, options = given.type or driver, given.config
    if not given.type:
        options = {**driver_options, **registry.for_the_default(kind, options, warnings)}
    registry.check(kind, options)
    return LogConfig(type=kind, config=dict(sorted(options.items())))


def _check_modes(host: HostConfig) -> None:
    host.ipc_mode = host.ipc_mode or "private"
    host.cgroupns_mode = host.cgroupns_mode or "private"
    if host.cgroupns_mode not in ("private", "host"):
        raise BadRequest(f"invalid cgroup namespace mode: {host.cgroupns_mode}; there are private and host")
    for mode, what, known in ((host.ipc_mode, "IPC", _IPC_MODES), (host.pid_mode, "PID", _PID_MODES)):
        kind, _, joined = mode.partition(":")
        if not (joined if kind == "container" else mode in known):
            raise BadRequest(f"invalid {what} mode: {mode}")
    if host.uts_mode not in ("", "host"):
        raise BadRequest(f"invalid UTS mode: {host.uts_mode}")


def check_restart_policy(policy: RestartPolicy, auto_remove: bool, verb: str = "create") -> RestartPolicy:
    name, count = policy.name or "no", policy.maximum_retry_count
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
    return RestartPolicy(name=name, maximum_retry_count=count)


def check_resources(host: HostConfig) -> None:
    """Limits that make no sense are refused, and what follows from others is filled in. Raises BadRequest."""
    _check_memory(host)
    _check_cpu(host)
    if host.blkio_weight and not 10 <= host.blkio_weight <= 1000:
        raise BadRequest("Range of blkio weight is from 10 to 1000")
    for attribute, name in BLOCK_LIMITS.items():
        for number, entry in enumerate(getattr(host, attribute) or ()):
            if not entry.path:
                raise BadRequest(f"HostConfig.{name}[{number}].Path must name a block device")
    _check_ulimits(host.ulimits or ())
    if not -1000 <= host.oom_score_adj <= 1000:
        raise BadRequest(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")


def _check_memory(host: HostConfig) -> None:
    memory, swap, reservation = host.memory, host.memory_swap, host.memory_reservation
    for wrong, says in (
        (0 < memory < MINIMUM_MEMORY, "Minimum memory limit allowed is 6MB"),
        (memory < 0, "the memory limit cannot be negative"),
        (
            swap > 0 and memory == 0,
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        (0 < swap < memory, "Minimum memoryswap limit should be larger than memory limit, see usage"),
        (0 < reservation < MINIMUM_MEMORY, "Minimum memory reservation allowed is 6MB"),
        (
            0 < memory < reservation,
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
    ):
        if wrong:
            raise BadRequest(says)
    if memory and swap == 0:
        host.memory_swap = memory * 2
    if host.memory_swappiness == -1:
        host.memory_swappiness = None
    host.pids_limit = host.pids_limit or None
    if host.memory_swappiness is not None and not 0 <= host.memory_swappiness <= 100:
        raise BadRequest(f"Invalid value: {host.memory_swappiness}, valid memory swappiness range is 0-100")


def _check_cpu(host: HostConfig) -> None:
    for wrong, says in (
        (host.nano_cpus < 0, "the number of CPUs cannot be negative"),
        (host.cpu_shares < 0, "the CPU shares cannot be negative"),
        (
            host.nano_cpus and (host.cpu_period or host.cpu_quota),
            "Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set",
        ),
        (
            host.cpu_period and not 1000 <= host.cpu_period <= 1_000_000,
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ),
        (0 < host.cpu_quota < 1000, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
    ):
        if wrong:
            raise BadRequest(says)


def _check_ulimits(ulimits: Iterable[Ulimit]) -> None:
    for number, entry in enumerate(ulimits):
        name, soft, hard = entry.name or "", entry.soft or 0, entry.hard or 0
        if name.lower() not in ULIMITS:
            raise BadRequest(f"HostConfig.Ulimits[{number}].Name must be one of {', '.join(ULIMITS)}, not '{name}'")
        if hard != -1 and (soft > hard or soft == -1):
            raise BadRequest(f"ulimit {name}: the soft limit {soft} is above the hard limit {hard}")


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


# Attributes of a limit, the controller that it needs, and what it is called in warnings.
LIMITS = (
    (("memory", "memory_swap"), "memory", "the memory limit"),
    (("memory_reservation",), "memory", "the memory reservation"),
    (("pids_limit",), "pids", "the limit of processes"),
    (("cpu_shares",), "cpu", "the CPU shares"),
    (("cpu_period", "cpu_quota"), "cpu", "the CPU period and quota"),
    (("cpuset_cpus", "cpuset_mems"), "cpuset", "the set of CPUs or memory nodes"),
    (("blkio_weight",), "io", "the block I/O weight"),
    (("blkio_weight_device",), "io", "the block I/O weight of devices"),
    (("blkio_device_read_bps",), "io", "the limit of bytes read from devices"),
    (("blkio_device_write_bps",), "io", "the limit of bytes written to devices"),
    (("blkio_device_read_iops",), "io", "the limit of reads from devices"),
    (("blkio_device_write_iops",), "io", "the limit of writes to devices"),
)


def discard(host: HostConfig, present: set[str], warnings: list[str]) -> None:
    """Limits that this machine cannot hold are taken out of `host` with a warning each, as a container without them is
    better than none. Raises BadRequest for a number of CPUs, which is refused then, as by docker, and for CPUs that
    are not there."""
    if host.nano_cpus and "cpu" not in present:
        raise BadRequest("NanoCpus: this machine has no cgroup controller for cpu; leave the number of CPUs out")
    if host.nano_cpus > (os.cpu_count() or 1) * 10**9:
        raise BadRequest(
            f"NanoCpus: {host.nano_cpus / 10**9:g} CPUs are asked for, and this machine has {os.cpu_count()}"
        )
    for names, controller, what in LIMITS:
        if controller in present or not any(_is_limit(getattr(host, name)) for name in names):
            continue
        warnings.append(f"{what} is discarded: this machine has no cgroup controller for {controller}")
        for name in names:
            setattr(host, name, [] if name in BLOCK_LIMITS else HostConfig.members[name].field.fresh())
        if "memory" in names:
            host.memory_swap = -1
    if host.memory and host.memory_swap != -1 and not _swap_is_limited():
        warnings.append("the limit of swap is discarded: this machine's kernel does not count swap for cgroups")
        host.memory_swap = -1
    if host.memory_swappiness is not None:
        warnings.append("MemorySwappiness is discarded: there is none with cgroup v2")
        host.memory_swappiness = None
    if host.oom_kill_disable:
        warnings.append("OomKillDisable is discarded: the OOM killer cannot be turned off with cgroup v2")
        host.oom_kill_disable = False
    for key, text, file in (
        ("CpusetCpus", host.cpuset_cpus, "cpuset.cpus.effective"),
        ("CpusetMems", host.cpuset_mems, "cpuset.mems.effective"),
    ):
        if text:
            _check_set(key, text, file)


def _is_limit(value: object) -> bool:
    """Numbers below 0 say that there is none."""
    return value > 0 if isinstance(value, int) else bool(value)


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


# -- networks --------------------------------------------------------------------------------------------


_AND_LINKS = "conflicting options: %s can't be used with links. This would result in undefined behavior"
HOST_AND_LINKS = _AND_LINKS % "host type networking"


def link(text: str) -> tuple[str, str]:
    """NAME[:ALIAS], also as answers have it, /NAME:/OWN/ALIAS, as (container, name by which it is to be known)."""
    name, colon, alias = text.partition(":")
    if not name:
        raise BadRequest('could not get container for : invalid name or ID supplied: ""')
    if colon and not alias or ":" in alias:
        raise BadRequest(f"bad format for links: {text!r}: a link is CONTAINER or CONTAINER:ALIAS")
    return name.lstrip("/"), (alias or name).rpartition("/")[2]


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


def check_networking(host: HostConfig) -> None:
    """The parts of a cleaned HostConfig that are about networks."""
    for entry in host.extra_hosts or ():
        check_extra_host(entry)
    for server in host.dns or ():
        try:
            ip_address(server.partition("%")[0])
        except ValueError:
            raise BadRequest(f"bad nameserver address {server!r} in Dns: it is no IP address") from None
    for key, texts in (("DnsSearch", host.dns_search), ("DnsOptions", host.dns_options)):
        for text in texts or ():
            if not text.isprintable():
                raise BadRequest(f"HostConfig.{key}: {text!r} has control characters")
    for text in host.links or ():
        link(text)
    mode = host.network_mode
    if host.links and (mode.startswith("container:") or mode in ("host", "none")):
        kind = mode.partition(":")[0]
        raise BadRequest(_AND_LINKS % f"{kind} type network{'' if kind == 'container' else 'ing'}")


def check_joined(config: Config, host: HostConfig) -> None:
    """What cannot be chosen with another container's network (`config` as the client gave it, without the image)."""
    mode = host.network_mode
    if not mode.startswith("container:"):
        return
    if not mode.partition(":")[2]:
        raise BadRequest("invalid network mode: invalid container format container:<name|id>")
    for given, what in (
        (config.hostname, "hostname and the network mode"),
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (config.mac_address, "mac-address and the network mode"),
        (host.published or host.publish_all_ports, "port publishing and the container type network mode"),
        (config.exposed, "port exposing and the container type network mode"),
    ):
        if given:
            raise BadRequest(f"conflicting options: {what}")
