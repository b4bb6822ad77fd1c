# SPDX-License-Identifier: Apache-2.0
"""Routes of the daemon itself: _ping, version, info, events, system/df, auth."""

from __future__ import annotations

import json
import os
import platform
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teu import __version__
from teu.engine.api.messages import Request, Response, json_response, stream, text
from teu.engine.api.router import route
from teu.engine.api.server import API_MINIMUM, API_VERSION, version_text
from teu.engine.containers import hostconfig
from teu.engine.core import events as bus
from teu.engine.core import fields, times
from teu.engine.core.errors import BadRequest, EngineError, Unavailable
from teu.engine.images import registries
from teu.engine.logs import registry as log_drivers
from teu.engine.spec import apparmor
from teu.engine.views import containers as containers_view
from teu.engine.views import images as images_view
from teu.engine.volumes.drivers import registry as volume_drivers

if TYPE_CHECKING:
    from teu.engine.engine import Engine

EVENT_FILTERS = {
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
}


def machine() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}.get(platform.machine(), platform.machine())


@route("GET", "/_ping")
def ping(engine: Engine, request: Request) -> Response:
    answer = text("" if request.method == "HEAD" else "OK")
    answer.headers.update(
        {
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
            "Builder-Version": "1",
            "Swarm": "inactive",
        }
    )
    return answer


@route("GET", "/version")
def version(engine: Engine, request: Request) -> Response:
    details = {
        "ApiVersion": version_text(API_VERSION),
        "Arch": machine(),
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "KernelVersion": platform.release(),
        "MinAPIVersion": version_text(API_MINIMUM),
        "Os": "linux",
    }
    components = [{"Name": "Engine", "Version": __version__, "Details": details}]
    try:
        from google.protobuf.empty_pb2 import Empty

        below = engine.containerd.version.Version(Empty(), timeout=5)
        components.append({"Name": "containerd", "Version": below.version, "Details": {"GitCommit": below.revision}})
    except EngineError:
        pass
    return json_response(
        {
            "Platform": {"Name": "Teu"},
            "Components": components,
            "Version": __version__,
            "ApiVersion": version_text(API_VERSION),
            "MinAPIVersion": version_text(API_MINIMUM),
            "GitCommit": "",
            "GoVersion": "",
            "PythonVersion": platform.python_version(),
            "Os": "linux",
            "Arch": machine(),
            "KernelVersion": platform.release(),
            "BuildTime": "",
        }
    )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _operating_system() -> tuple[str, str]:
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


@route("GET", "/info")
def info(engine: Engine, request: Request) -> Response:
    everyone = engine.containers.all()
    states = [container.status() for container in everyone]
    name, number = _operating_system()
    controllers = hostconfig.controllers()
    security = ["name=seccomp,profile=builtin"]
    if apparmor.supported():
        security.insert(0, "name=apparmor")
    security.append("name=cgroupns")
    runtimes = {"io.containerd.teu.v2": {"path": "/usr/bin/containerd-shim-teu-v2"}, "runc": {"path": "runc"}}
    runtimes.update({key: {"path": str(value)} for key, value in (engine.config.get("runtimes") or {}).items()})
    warnings = []
    for controller, what in (("memory", "memory limit"), ("cpu", "cpu cfs quota"), ("pids", "pids limit")):
        if controller not in controllers:
            warnings.append(f"WARNING: No {what} support")
    more: dict[str, Any] = {}
    if request.version < (1, 25):  # names alone, and a field of the time before runtimes
        security = [entry.removeprefix("name=").partition(",")[0] for entry in security]
        more["ExecutionDriver"] = "<not supported>"
    return json_response(
        {
            **more,
            "ID": engine.id,
            "Containers": len(everyone),
            "ContainersRunning": states.count("running") + states.count("restarting"),
            "ContainersPaused": states.count("paused"),
            "ContainersStopped": len([state for state in states if state not in ("running", "paused", "restarting")]),
            "Images": engine.images.count(),
            "Driver": engine.config["storage-driver"],
            "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
            "Plugins": {
                "Volume": list(volume_drivers.DRIVERS),
                "Network": ["bridge", "host", "null"],
                "Authorization": None,
                "Log": list(log_drivers.DRIVERS),
            },
            "MemoryLimit": "memory" in controllers,
            "SwapLimit": "memory" in controllers,
            "CpuCfsPeriod": "cpu" in controllers,
            "CpuCfsQuota": "cpu" in controllers,
            "CPUShares": "cpu" in controllers,
            "CPUSet": "cpuset" in controllers,
            "PidsLimit": "pids" in controllers,
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
            "RegistryConfig": registries.described(engine.config),
            "NCPU": os.cpu_count() or 1,
            "MemTotal": _memory(),
            "GenericResources": None,
            "DockerRootDir": engine.data_root,
            "HttpProxy": "",
            "HttpsProxy": "",
            "NoProxy": "",
            "Name": os.uname().nodename,
            "Labels": [],
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
            "CDISpecDirs": [],
            "Warnings": warnings or None,
        }
    )


def _flag(path: str) -> bool:
    try:
        return Path(path).read_text().strip() == "1"
    except OSError:
        return False


@route("GET", "/events")
def events(engine: Engine, request: Request) -> Response:
    filters = request.query.filters()
    for key in filters:
        if key not in EVENT_FILTERS:
            raise BadRequest(f"invalid filter '{key}'")
    since = times.parse(request.query.get("since"), "since")
    until = times.parse(request.query.get("until"), "until")
    if until and since > until:
        raise BadRequest(f"since ({request.query.get('since')}) is later than until ({request.query.get('until')})")
    kept, mine = engine.events.subscribe()
    chunks = _events(engine, kept, mine, filters, since, until)
    return stream(chunks, "application/json", lambda: engine.events.unsubscribe(mine))


def _events(
    engine: Engine,
    kept: list[bus.Event],
    mine: bus.Backlog,
    filters: dict[str, list[str]],
    since: int,
    until: int,
) -> Iterator[bytes]:
    yield b""
    if since or until:
        for event in kept:
            inside = event["timeNano"] >= since and (not until or event["timeNano"] <= until)
            if inside and bus.matches(event, filters):
                yield json.dumps(event).encode() + b"\n"
    kept.clear()
    while not until or time.time_ns() < until:
        wait = 5.0 if not until else min(5.0, max(0.001, (until - time.time_ns()) / 1e9))
        try:
            following = mine.get(timeout=wait)
        except queue.Empty:
            if not engine.events.is_subscribed(mine):
                return
            yield b""
            continue
        if following is None:
            return
        if until and following["timeNano"] > until:
            return
        if bus.matches(following, filters):
            yield json.dumps(following).encode() + b"\n"


@route("GET", "/system/df")
def disk_usage(engine: Engine, request: Request) -> Response:
    kinds = set(request.query.every("type")) or {"container", "image", "volume", "build-cache"}
    for kind in kinds:
        if kind not in ("container", "image", "volume", "build-cache"):
            raise BadRequest(f"unknown object type: {kind}")
    answer: dict[str, Any] = {}
    if "image" in kinds:
        answer["Images"] = images_view.listing(engine, {}, every=True, shared=True)
        answer["LayersSize"] = sum(max(0, int(image.get("Size", 0))) for image in answer["Images"])
    if "container" in kinds:
        answer["Containers"] = containers_view.summaries(engine, True, 0, True, {})
    if "volume" in kinds:
        answer["Volumes"] = engine.volumes.usage()
    if "build-cache" in kinds:
        answer["BuildCache"] = []
        answer["BuilderSize"] = 0
    return json_response(answer)


@route("POST", "/auth")
def auth(engine: Engine, request: Request) -> Response:
    """`docker login`: whether a registry takes these credentials. They are the client's to keep."""
    registries.login(engine.config, request.decode(fields.LOGIN))
    return json_response({"Status": "Login Succeeded", "IdentityToken": ""})


@route("GET", "/plugins")
def plugins(engine: Engine, request: Request) -> Response:
    return json_response([])


def _no_swarm(engine: Engine, request: Request) -> Response:
    raise Unavailable("This node is not a swarm manager: teud serves this machine alone")


for _path in ("swarm", "nodes", "services", "tasks", "secrets", "configs"):
    route("GET", f"/{_path}")(_no_swarm)
    route("POST", f"/{_path}/create")(_no_swarm)
for _path in ("init", "join", "leave", "update"):
    route("POST", f"/swarm/{_path}")(_no_swarm)
