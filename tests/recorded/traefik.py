# SPDX-License-Identifier: Apache-2.0
"""Traefik's docker provider (pkg/provider/docker): it asks for the version, lists and inspects all containers, and does
so again at each start and end that the events tell of. Its client speaks one version, and says who it is."""

from __future__ import annotations

from recorded import JSON, Call, Hear, Story, filters

WHO = {"User-Agent": "Traefik 3.5.4"}
API = "/v1.24"
BODY = {
    "Image": "busybox",
    "Cmd": ["sleep", "1000"],
    "Labels": {"traefik.enable": "true", "traefik.http.routers.web.rule": "Host(`web.example`)"},
    "ExposedPorts": {"80/tcp": {}},
    "HostConfig": {"NetworkMode": "recnet"},
}


def inspected(which: str, when: str) -> Call:
    """shared.go: what becomes a service. Stopped ones are read as well."""
    return Call(
        f"inspectContainers, {when}",
        "GET",
        f"{API}/containers/<{which}>/json",
        headers=WHO,
        same=("Name", "State/Status", "HostConfig/NetworkMode", "Config/Labels", "NetworkSettings/Ports"),
    )


STORY = Story(
    api=(1, 24),
    steps=[
        Call("somebody makes a network", "POST", "/v1.43/networks/create", {"Name": "recnet"}, 201, JSON),
        Call("somebody makes one", "POST", "/v1.43/containers/create?name=web", BODY, 201, JSON, keep={"web": "Id"}),
        Call("somebody starts it", "POST", "/v1.43/containers/<web>/start", status=204),
        Call("ServerVersion", "GET", f"{API}/version", headers=WHO, shape=False, types=("Version", "ApiVersion", "Os")),
        Call("ContainerList", "GET", f"{API}/containers/json?all=1", headers=WHO, same=("*/Names", "*/State")),
        inspected("web", "at first"),
        Call("Events", "GET", f"{API}/events?filters={filters(type=['container'])}", headers=WHO, beside=True),
        Call("somebody makes another", "POST", "/v1.43/containers/create?name=api", BODY, 201, JSON, {"api": "Id"}),
        Call("somebody starts that", "POST", "/v1.43/containers/<api>/start", status=204),
        Hear("it starts", "Events", until=b'"start"', lines=True, same=("*/Type", "*/Action", "*/status", "*/from")),
        Call("ContainerList again", "GET", f"{API}/containers/json?all=1", headers=WHO, same=("*/Names", "*/State")),
        inspected("api", "while it runs"),
        Call("somebody kills it", "POST", "/v1.43/containers/<api>/kill", status=204),
        Hear("it dies", "Events", until=b'"die"', lines=True, leaves=True, same=("*/Action",)),
        Call(
            "ContainerList at last",
            "GET",
            f"{API}/containers/json?all=1",
            headers=WHO,
            until=lambda rows: [row["State"] for row in rows] == ["exited", "running"],
            same=("*/Names", "*/State"),
        ),
        inspected("api", "when it has died"),
    ],
)
