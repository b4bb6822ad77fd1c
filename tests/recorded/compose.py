# SPDX-License-Identifier: Apache-2.0
"""docker compose (pkg/compose), as Dockge runs it for each of its stacks: `up -d`, `ls`, `ps`, `stats`, `logs`,
`restart` and `down`. A project's objects are found by labels, whose filters are maps of maps."""

from __future__ import annotations

from typing import Any

from recorded import JSON, Call, Hear, Story, filters
from recorded.go import created

API = "/v1.45"
WHO = {"User-Agent": "compose/v2.26.1"}
SENDS = {**WHO, **JSON}
PROJECT = "com.docker.compose.project=recstack"
OWN = {"com.docker.compose.project": "recstack", "com.docker.compose.version": "2.26.1"}
HASH = "2b4b8f6f4e0c1d3a5978695a4b3c2d1e0f2b4b8f6f4e0c1d3a5978695a4b3c2d"
ALL = filters(label=[PROJECT, "com.docker.compose.config-hash", "com.docker.compose.oneoff=False"])


def service(name: str, number: int, script: str, **host: Any) -> Call:
    """convergence.go: createMobyContainer."""
    body = created(
        {
            "Image": "busybox",
            "Cmd": ["sh", "-c", script],
            "AttachStdout": True,
            "AttachStderr": True,
            "Env": ["WHO=" + name],
            "ExposedPorts": {port: {} for port in host.get("PortBindings", ())},
            "Labels": {
                **OWN,
                "com.docker.compose.service": name,
                "com.docker.compose.container-number": str(number),
                "com.docker.compose.oneoff": "False",
                "com.docker.compose.config-hash": HASH,
                "com.docker.compose.depends_on": "",
                "com.docker.compose.image": "<image>",
                "com.docker.compose.project.working_dir": "/opt/stacks/recstack",
                "com.docker.compose.project.config_files": "/opt/stacks/recstack/compose.yaml",
            },
        },
        {"NetworkMode": "recstack_default", "PortBindings": {}, "ExtraHosts": [], "Dns": [], "Links": None, **host},
        {"recstack_default": {"Aliases": [f"recstack-{name}-{number}", name]}},
    )
    target = f"{API}/containers/create?name=recstack-{name}-{number}"
    return Call(f"ContainerCreate, {name}", "POST", target, body, 201, SENDS, {name: "Id"}, ("Warnings",))


STOPS = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
UP = [
    Call("Ping", "HEAD", "/_ping", headers=WHO),
    Call("ImageInspect", "GET", f"{API}/images/busybox/json", headers=WHO, keep={"image": "Id"}),
    # resolveOrCreateNetwork: by name, of which several may be told; then by its id or name
    Call(
        "NetworkList", "GET", f"{API}/networks?filters={filters(name=['recstack_default'])}", headers=WHO, told={"": []}
    ),
    Call("NetworkInspect of none", "GET", f"{API}/networks/recstack_default", headers=WHO, status=404),
    Call(
        "NetworkCreate",
        "POST",
        f"{API}/networks/create",
        {
            "Name": "recstack_default",
            "Driver": "",
            "Scope": "",
            "IPAM": None,
            "Internal": False,
            "Attachable": False,
            "Ingress": False,
            "ConfigOnly": False,
            "ConfigFrom": None,
            "Options": None,
            "Labels": {**OWN, "com.docker.compose.network": "default"},
        },
        201,
        SENDS,
        {"network": "Id"},
        ("Warning",),
    ),
    Call("VolumeInspect of none", "GET", f"{API}/volumes/recstack_data", headers=WHO, status=404),
    Call(
        "VolumeCreate",
        "POST",
        f"{API}/volumes/create",
        {"Name": "recstack_data", "Labels": {**OWN, "com.docker.compose.volume": "data"}},
        201,
        SENDS,
        same=("Name", "Labels", "Options"),
    ),
    Call("ContainerList", "GET", f"{API}/containers/json?all=1&filters={ALL}", headers=WHO, told={"": []}),
    service(
        "db",
        1,
        f"echo begun; {STOPS}",
        Mounts=[{"Type": "volume", "Source": "recstack_data", "Target": "/data", "VolumeOptions": {}}],
    ),
    service(
        "web",
        1,
        STOPS,
        PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "48395"}]},
        RestartPolicy={"Name": "unless-stopped", "MaximumRetryCount": 0},
    ),
    Call("ContainerInspect", "GET", f"{API}/containers/<web>/json", headers=WHO, same=("Name", "State/Status")),
    Call("ContainerStart, db", "POST", f"{API}/containers/<db>/start", headers=WHO, status=204),
    Call("ContainerStart, web", "POST", f"{API}/containers/<web>/start", headers=WHO, status=204),
]
PROJECTS = filters(label=["com.docker.compose.project", "com.docker.compose.config-hash"])
DOCKGE = [
    Call(
        "docker compose ls",
        "GET",
        f"{API}/containers/json?all=1&filters={PROJECTS}",
        headers=WHO,
        same=("*/State", "*/Names"),
    ),
    Call(
        "docker compose ps",
        "GET",
        f"{API}/containers/json?filters={ALL}",
        headers=WHO,
        until=lambda told: any(row["Ports"] for row in told),  # dockerd's list may be behind the answer of its start
        same=("*/Names", "*/Image", "*/Ports", "*/State", "*/Command", "*/Labels/com.docker.compose.service"),
    ),
    Call(
        "docker compose exec",
        "GET",
        f"{API}/containers/json?filters={filters(label=[PROJECT, 'com.docker.compose.service=db'])}",
        headers=WHO,
        told={"0/Names": ["/recstack-db-1"]},
    ),
    Call(
        "docker stats --no-stream",
        "GET",
        f"{API}/containers/<web>/stats?stream=0",
        headers=WHO,
        shape=False,
        types=("read", "cpu_stats/system_cpu_usage", "precpu_stats", "memory_stats", "networks/eth0/rx_bytes"),
        same=("name",),
    ),
    Call(
        "docker network ls",
        "GET",
        f"{API}/networks",
        headers=WHO,
        shape=False,
        types=("0/Name", "0/Driver", "0/Scope"),
    ),
    Call(
        "docker compose logs",
        "GET",
        f"{API}/containers/<db>/logs?follow=1&stderr=1&stdout=1&tail=100",
        headers=WHO,
        beside=True,
    ),
    Hear("what it has said", "docker compose logs", until=b"begun\n", leaves=True, told={"1": "begun\n"}),
]
RESTART = [
    Call(
        "Events",
        "GET",
        f"{API}/events?filters={filters(type=['container'], label=[PROJECT])}",
        headers=WHO,
        beside=True,
    ),
    Call("ContainerRestart", "POST", f"{API}/containers/<web>/restart", headers=WHO, status=204),
    Hear("it is told of", "Events", until=b'"restart"', lines=True, leaves=True, same=("0/Action", "*/from")),
    Call(
        "it runs again",
        "GET",
        f"{API}/containers/<web>/json",
        headers=WHO,
        told={"State/Running": True, "RestartCount": 0},
    ),
]
DOWN = [
    Call("ContainerList of all", "GET", f"{API}/containers/json?all=1&filters={ALL}", headers=WHO, same=("*/Names",)),
    Call("ContainerStop, web", "POST", f"{API}/containers/<web>/stop", headers=WHO, status=204),
    Call("ContainerRemove, web", "DELETE", f"{API}/containers/<web>?force=1", headers=WHO, status=204),
    Call("ContainerStop, db", "POST", f"{API}/containers/<db>/stop?t=3", headers=WHO, status=204),
    Call("ContainerRemove, db", "DELETE", f"{API}/containers/<db>?force=1", headers=WHO, status=204),
    Call(
        "NetworkList of the project",
        "GET",
        f"{API}/networks?filters={filters(label=[PROJECT, 'com.docker.compose.network=default'])}",
        headers=WHO,
        same=("*/Name", "*/Labels"),
    ),
    Call("NetworkInspect", "GET", f"{API}/networks/<network>", headers=WHO, told={"Containers": {}}),
    Call("NetworkRemove", "DELETE", f"{API}/networks/<network>", headers=WHO, status=204),
    Call("VolumeInspect", "GET", f"{API}/volumes/recstack_data", headers=WHO, same=("Labels",)),
    Call("VolumeRemove", "DELETE", f"{API}/volumes/recstack_data?force=1", headers=WHO, status=204),
    Call(
        "VolumeList",
        "GET",
        f"{API}/volumes?filters={filters(label=[PROJECT])}",
        headers=WHO,
        same=("Volumes", "Warnings"),
    ),
]

STORY = Story(api=(1, 45), steps=[*UP, *DOCKGE, *RESTART, *DOWN])
