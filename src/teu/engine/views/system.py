# SPDX-License-Identifier: Apache-2.0
"""What is told of the daemon and its machine: info, and df."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from teu import __version__
from teu.config import Settings
from teu.engine.backend import containerd
from teu.engine.builds.builder import CacheRecord
from teu.engine.containers import hostconfig
from teu.engine.core import times, versions
from teu.engine.core.managed import NETWORKS
from teu.engine.files import snapshots
from teu.engine.logs import registry as log_drivers
from teu.engine.networks.drivers import registry as network_drivers
from teu.engine.spec import device_requests
from teu.engine.views import containers, images
from teu.linux import apparmor, quota, syscalls
from teu.oci import cdi, labels

if TYPE_CHECKING:
    from teu.engine.engine import Engine

BRIEF = (1, 52)  # since when `df` tells of kinds, and of each one where it is asked to be verbose
ACTIVE = ("running", "paused", "restarting")
KINDS = ("container", "image", "volume", "build-cache")
# As docker calls them, by statfs(2)'s f_type.
FILE_SYSTEMS = {
    0xEF53: "extfs",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x65735546: "fuse",
}


def machine() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}.get(platform.machine(), platform.machine())


def memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def operating_system() -> tuple[str, str]:
    values = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            for line in Path(path).read_text().splitlines():
                name, _, value = line.partition("=")
                values[name] = value.strip("\"'")
            break
        except OSError:
            continue
    return values.get("PRETTY_NAME", "Linux"), values.get("VERSION_ID", "")


def _flag(path: str) -> bool:
    try:
        return Path(path).read_text().strip() == "1"
    except OSError:
        return False


def _registries(settings: Settings) -> dict[str, object]:
    """RegistryConfig of GET /info."""
    networks, hosts = ["::1/128", "127.0.0.0/8"], []
    for entry in settings["insecure-registries"]:
        try:
            networks.append(str(ipaddress.ip_network(entry)))
        except ValueError:
            hosts.append(entry)
    mirrors = [mirror if "//" in mirror else f"https://{mirror}" for mirror in settings["registry-mirrors"]]
    mirrors = [mirror.rstrip("/") + "/" for mirror in mirrors]
    indexes = {host: {"Name": host, "Mirrors": [], "Secure": False, "Official": False} for host in hosts}
    indexes["docker.io"] = {"Name": "docker.io", "Mirrors": mirrors, "Secure": True, "Official": True}
    return {
        "AllowNondistributableArtifactsCIDRs": [],
        "AllowNondistributableArtifactsHostnames": [],
        "InsecureRegistryCIDRs": networks,
        "IndexConfigs": indexes,
        "Mirrors": mirrors,
    }


def _proxy(name: str) -> str:
    """What the environment says, which has what teud.yaml does; without a password."""
    found = os.environ.get(name) or os.environ.get(name.lower()) or ""
    before, at, rest = found.rpartition("@")
    scheme, slashes, _ = before.partition("//") if "//" in before else ("", "", "")
    return f"{scheme}{slashes}xxxxx:xxxxx@{rest}" if at else found


def _storage(engine: Engine) -> list[list[str]]:
    """DriverStatus of GET /info: what kind of thing it is, what its files are on, and whether --storage-opt size can
    be had there."""
    result = [["driver-type", "io.containerd.snapshotter.v1"]]
    with contextlib.suppress(OSError, containerd.Error):
        found = snapshots.snapshotter(engine)
        if found is None or not found.exports.get("root"):
            return result
        root = os.open(found.exports["root"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kind = syscalls.fstatfs_type(root)
        finally:
            os.close(root)
        result.append(["Backing Filesystem", FILE_SYSTEMS.get(kind, "<unknown>")])
        limits = labels.SIZES in found.capabilities
        try:
            quota.check(found.exports["root"])
        except quota.NoQuota:
            limits = False
        result.append(["Supports size", str(limits).lower()])
    return result


def _address_pools(settings: Settings) -> dict[str, object]:
    """DefaultAddressPools of GET /info: those of teud.yaml, if there are any."""
    pools = [{"Base": str(source.base), "Size": source.size} for source in settings["default-address-pools"]]
    return {"DefaultAddressPools": pools} if pools else {}


def info(engine: Engine, version: versions.Version) -> dict[str, object]:
    """GET /info. `version`: of the API, which the client speaks."""
    everyone = engine.containers.all()
    states = [container.status() for container in everyone]
    name, number = operating_system()
    controllers = hostconfig.controllers()
    security = [f"name=seccomp,profile={engine.config['seccomp-profile'] or 'builtin'}"]
    if apparmor.supported():
        security.insert(0, "name=apparmor")
    security.append("name=cgroupns")
    if engine.config["no-new-privileges"]:
        security.append("name=no-new-privileges")
    runtimes: dict[str, dict[str, object]] = {
        "io.containerd.teu.v2": {"path": "/usr/bin/containerd-shim-teu-v2"},
        "runc": {"path": "runc"},
    }
    for key, value in engine.config["runtimes"].items():
        runtimes[key] = {"runtimeType": value} if isinstance(value, str) else value
    folders = list(engine.config.get("cdi-spec-dirs", cdi.FOLDERS))
    warnings = []
    for controller, what in (("memory", "memory limit"), ("cpu", "cpu cfs quota"), ("pids", "pids limit")):
        if controller not in controllers:
            warnings.append(f"WARNING: No {what} support")
    if version < (1, 25):  # names alone
        security = [entry.removeprefix("name=").partition(",")[0] for entry in security]
    result: dict[str, object] = {
        "ID": engine.id,
        "Containers": len(everyone),
        "ContainersRunning": states.count("running") + states.count("restarting"),
        "ContainersPaused": states.count("paused"),
        "ContainersStopped": len([state for state in states if state not in ("running", "paused", "restarting")]),
        "Images": engine.images.count(),
        "Driver": engine.config["storage-driver"],
        "DriverStatus": _storage(engine),
        "Plugins": {
            "Volume": engine.volumes.drivers(),
            "Network": sorted(
                {
                    *network_drivers.NAMES,
                    *(one.driver for one in engine.networks.all() if not one.damage),
                    *engine.plugins.names(NETWORKS),
                }
            ),
            "Authorization": list(engine.config["authorization-plugins"]) or None,
            "Log": list(log_drivers.DRIVERS),
        },
        "MemoryLimit": "memory" in controllers,
        "SwapLimit": "memory" in controllers,
        "CpuCfsPeriod": "cpu" in controllers,
        "CpuCfsQuota": "cpu" in controllers,
        "CPUShares": "cpu" in controllers,
        "CPUSet": "cpuset" in controllers,
        "PidsLimit": "pids" in controllers,
        **_address_pools(engine.config),
        "IPv4Forwarding": _flag("/proc/sys/net/ipv4/ip_forward"),
        "BridgeNfIptables": False,
        "BridgeNfIp6tables": False,
        "Debug": engine.config["log-level"] == "debug",
        "NFd": len(os.listdir("/proc/self/fd")),
        "OomKillDisable": False,
        "NGoroutines": len(os.listdir("/proc/self/task")),
        "SystemTime": times.timestamp(),
        "LoggingDriver": engine.config["log-driver"],
        "CgroupDriver": "systemd" if os.path.isdir("/run/systemd/system") else "cgroupfs",
        "CgroupVersion": "2",
        "NEventsListener": engine.events.subscribers(),
        "KernelVersion": platform.release(),
        "OperatingSystem": name,
        "OSVersion": number,
        "OSType": "linux",
        "Architecture": platform.machine(),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": _registries(engine.config),
        "NCPU": os.cpu_count() or 1,
        "MemTotal": memory(),
        "GenericResources": None,
        "DockerRootDir": engine.data_root,
        "HttpProxy": _proxy("HTTP_PROXY"),
        "HttpsProxy": _proxy("HTTPS_PROXY"),
        "NoProxy": _proxy("NO_PROXY"),
        "Name": os.uname().nodename,
        "Labels": list(engine.config["labels"]),
        "ExperimentalBuild": False,
        "ServerVersion": __version__,
        "Runtimes": runtimes,
        "DefaultRuntime": engine.config["default-runtime"],
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": "docker-init",
        "ContainerdCommit": {"ID": "", "Expected": ""},
        "RuncCommit": {"ID": "", "Expected": ""},
        "InitCommit": {"ID": "", "Expected": ""},
        "SecurityOptions": security,
        "CDISpecDirs": folders,
        **({"DiscoveredDevices": devices} if (devices := device_requests.discovered(folders)) else {}),
        "FirewallBackend": {"Driver": "nftables", "Info": engine.endpoints.host.describe()},
        "Containerd": {
            "Address": engine.containerd.address,
            "Namespaces": {"Containers": engine.containerd.namespace, "Plugins": engine.plugins.client.namespace},
        },
        "Warnings": warnings or None,
    }
    versions.fit("info", result, version)
    return result


def _cache_record(one: CacheRecord, version: versions.Version) -> dict[str, object]:
    shown: dict[str, object] = {"ID": one.id}
    if version < (1, 42):
        shown["Parent"] = one.parents[0] if one.parents else ""
    elif one.parents:
        shown["Parents"] = list(one.parents)
    return {
        **shown,
        "Type": one.kind,
        "Description": one.description,
        "InUse": one.in_use,
        "Shared": one.shared,
        "Size": one.size,
        "CreatedAt": times.timestamp(int(one.created * 1e9)),
        "LastUsedAt": times.timestamp(int(one.used * 1e9)) if one.used else None,
        "UsageCount": one.uses,
    }


def usage(engine: Engine, kinds: set[str], version: versions.Version, verbose: bool = False) -> dict[str, object]:
    """GET /system/df: of these kinds of KINDS, as this version of the API has it. `verbose`: what is in use one by one
    also where the version tells that of the kinds alone (BRIEF)."""
    answer: dict[str, object] = {}
    older: dict[str, object] = {}
    if "image" in kinds:
        rows = images.listing(engine, {}, every=True, shared=True, version=version, counted=True)
        older["Images"], older["LayersSize"] = rows, images.disk_usage(engine)
        unused = sum(row["Size"] - row["SharedSize"] for row in rows if not row["Containers"])
        active = sum(1 for row in rows if row["Containers"])
        answer["ImageUsage"] = _used(rows, active, int(str(older["LayersSize"])), unused, verbose)
    if "container" in kinds:
        found = containers.summaries(engine, True, 0, True, {}, version)
        older["Containers"] = found
        for row in found:
            row.pop("ImageManifestDescriptor", None)  # as docker has it
        sizes = [(int(str(row["SizeRw"])), row["State"] in ACTIVE) for row in found]
        unused = sum(size for size, busy in sizes if not busy)
        answer["ContainerUsage"] = _used(
            found, sum(busy for _, busy in sizes), sum(size for size, _ in sizes), unused, verbose
        )
    if "volume" in kinds:
        kept = engine.volumes.usage()
        older["Volumes"] = kept
        known = [cast("dict[str, int]", one["UsageData"]) for one in kept]
        unused = sum(max(one["Size"], 0) for one in known if not one["RefCount"])
        total, active = sum(max(one["Size"], 0) for one in known), sum(1 for one in known if one["RefCount"])
        answer["VolumeUsage"] = _used(kept, active, total, unused, verbose)
    if "build-cache" in kinds:
        cache = engine.builder.usage()
        records = [_cache_record(one, version) for one in cache]
        older["BuildCache"] = records
        if size := sum(one.size for one in cache if not one.shared):
            older["BuilderSize"] = size
        unused = sum(one.size for one in cache if not one.in_use and not one.shared)
        answer["BuildCacheUsage"] = _used(
            records, sum(one.in_use for one in cache), sum(one.size for one in cache), unused, verbose
        )
    if version < BRIEF or not verbose:
        answer = {**older, **answer}
    versions.fit("df", answer, version)
    return answer


def _used(rows: Sequence[object], active: int, total: int, unused: int, verbose: bool) -> dict[str, object]:
    """The API's DiskUsage of one kind, in bytes. What is nothing is left out."""
    shown = {"ActiveCount": active, "Reclaimable": unused, "TotalCount": len(rows), "TotalSize": total}
    result: dict[str, object] = {key: value for key, value in shown.items() if value}
    if verbose and rows:
        result["Items"] = list(rows)
    return result
