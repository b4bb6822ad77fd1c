# SPDX-License-Identifier: Apache-2.0
"""Watchtower (pkg/container/client.go): it pulls the image of what runs, has a command run in the old container, stops
and removes it, and makes it again from what it has inspected, less what the image has said. It speaks 1.25 unless told
otherwise; what it inspects it sends back whole."""

from __future__ import annotations

from typing import Any

from recorded import JSON, UPGRADE, Call, Hear, Known, Story, filters
from recorded.go import exec_started, executed

API = "/v1.25"
AUTH = {"X-Registry-Auth": "e30="}


def again(known: Known) -> dict[str, Any]:
    """container.go, GetCreateConfig and GetCreateHostConfig: what the old image has said is taken away."""
    old, image = known["old"], known["image"]["Config"]
    config = dict(old["Config"])
    for name in ("WorkingDir", "User"):
        if config[name] == (image.get(name) or ""):
            config[name] = ""
    if config["Entrypoint"] == image.get("Entrypoint"):
        config["Entrypoint"] = None
        if config["Cmd"] == image.get("Cmd"):
            config["Cmd"] = None
    config["Env"] = [one for one in config["Env"] or () if one not in (image.get("Env") or ())]
    inherited = (image.get("Labels") or {}).items()
    config["Labels"] = dict(one for one in config["Labels"].items() if one not in inherited)
    config["ExposedPorts"] = {
        **(config.get("ExposedPorts") or {}),
        **dict.fromkeys(old["HostConfig"]["PortBindings"], {}),
    }
    config["Image"] = f"{known['registry']}/app:latest"
    return {**config, "HostConfig": old["HostConfig"], "NetworkingConfig": {"EndpointsConfig": endpoints(known)}}


def endpoints(known: Known) -> dict[str, Any]:
    """GetNetworkConfig: without the short id among the aliases."""
    old = known["old"]
    return {
        name: {**one, "Aliases": [alias for alias in one["Aliases"] or () if alias != old["Id"][:12]]}
        for name, one in old["NetworkSettings"]["Networks"].items()
    }


def connects(known: Known) -> dict[str, Any]:
    return {"Container": known["new"], "EndpointConfig": endpoints(known)["recnet"]}


def committed(number: int) -> list[Call]:
    """A version of the image, as the registry's latest."""
    target = f"/v1.43/commit?container=<base>&repo=<registry>/app&tag=latest&changes=LABEL%20version%3D{number}"
    return [
        Call(f"somebody builds version {number}", "POST", target, {}, 201, JSON, keep={f"id{number}": "Id"}),
        Call(
            f"somebody pushes version {number}",
            "POST",
            "/v1.43/images/<registry>/app/push?tag=latest",
            headers=AUTH,
            shape=False,
        ),
    ]


WATCHED = {
    "Image": "<registry>/app:latest",
    "Cmd": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"],
    "Env": ["MINE=1"],
    "Labels": {"com.centurylinklabs.watchtower.lifecycle.pre-update": "sleep 0.3", "mine": "yes"},
    "HostConfig": {
        "NetworkMode": "recnet",
        "Binds": ["recdata:/data"],
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "48391"}]},
        "RestartPolicy": {"Name": "unless-stopped"},
    },
    "NetworkingConfig": {"EndpointsConfig": {"recnet": {"Aliases": ["site"]}}},
}
STARTED = exec_started(tty=True)

STORY = Story(
    api=(1, 25),
    steps=[
        Call("somebody makes a network", "POST", "/v1.43/networks/create", {"Name": "recnet"}, 201, JSON),
        Call(
            "a base",
            "POST",
            "/v1.43/containers/create",
            {"Image": "busybox", "Cmd": ["true"]},
            201,
            JSON,
            {"base": "Id"},
        ),
        *committed(1),
        Call("it is run", "POST", "/v1.43/containers/create?name=site", WATCHED, 201, JSON, keep={"id": "Id"}),
        Call("it starts", "POST", "/v1.43/containers/<id>/start", status=204),
        *committed(2),
        Call("but not here", "POST", "/v1.43/images/<id1>/tag?repo=<registry>/app&tag=latest", status=201),
        # ListContainers, GetContainer
        Call("ContainerList", "GET", f"{API}/containers/json?filters={filters(status=['running'])}", same=("*/Names",)),
        Call("ContainerInspect", "GET", f"{API}/containers/<id>/json", keep={"old": "", "image_id": "Image"}),
        Call(
            "ImageInspectWithRaw", "GET", f"{API}/images/<image_id>/json", keep={"image": ""}, same=("Config/Labels",)
        ),
        # PullImage, HasNewImage
        Call(
            "ImagePull", "POST", f"{API}/images/create?fromImage=<registry>%2Fapp&tag=latest", headers=AUTH, shape=False
        ),
        Call(
            "ImageInspectWithRaw of what came",
            "GET",
            f"{API}/images/<registry>/app:latest/json",
            told={"Config/Labels/version": "2"},
            keep={"new_image": "Id"},
        ),
        # ExecuteCommand: it attaches to the exec, which starts it, and starts it once more
        Call(
            "ContainerExecCreate",
            "POST",
            f"{API}/containers/<id>/exec",
            executed(["sh", "-c", "sleep 0.3"], Tty=True),
            201,
            JSON,
            keep={"exec": "Id"},
        ),
        Call(
            "ContainerExecAttach",
            "POST",
            f"{API}/exec/<exec>/start",
            STARTED,
            101,
            {**JSON, **UPGRADE},
            beside=True,
        ),
        Call("ContainerExecStart", "POST", f"{API}/exec/<exec>/start", STARTED, 200, JSON),
        # nothing was attached; but which of the two has started it is chance
        Hear("its output", "ContainerExecAttach", exact=False),
        Call(
            "ContainerExecInspect",
            "GET",
            f"{API}/exec/<exec>/json",
            until=lambda told: not told["Running"],
            told={"ExitCode": 0},
            same=("Running", "ProcessConfig/tty"),
        ),
        # StopContainer
        Call("ContainerKill", "POST", f"{API}/containers/<id>/kill?signal=SIGTERM", status=204),
        Call(
            "waitForStopOrTimeout",
            "GET",
            f"{API}/containers/<id>/json",
            until=lambda told: not told["State"]["Running"],
            told={"State/ExitCode": 0},
        ),
        Call("ContainerRemove", "DELETE", f"{API}/containers/<id>?force=1", status=204),
        Call("waitForStopOrTimeout again", "GET", f"{API}/containers/<id>/json", status=404),
        # StartContainer: the name has the slash that inspect tells
        Call("ContainerCreate", "POST", f"{API}/containers/create?name=%2Fsite", again, 201, JSON, keep={"new": "Id"}),
        Call(
            "NetworkDisconnect",
            "POST",
            f"{API}/networks/recnet/disconnect",
            {"Container": "<new>", "Force": True},
            200,
            JSON,
        ),
        Call("NetworkConnect", "POST", f"{API}/networks/recnet/connect", connects, 200, JSON),
        Call("ContainerStart", "POST", f"{API}/containers/<new>/start", status=204),
        Call(
            "it is as it was, of the new image",
            "GET",
            f"{API}/containers/<new>/json",
            told={"Name": "/site", "State/Running": True, "Config/Labels/version": "2", "Config/Labels/mine": "yes"},
            same=(
                "Config/Cmd",
                "Config/Env",
                "Config/ExposedPorts",
                "HostConfig/Binds",
                "HostConfig/PortBindings",
                "HostConfig/RestartPolicy",
                "NetworkSettings/Ports",
            ),
        ),
        # RemoveImageByID
        Call("ImageRemove", "DELETE", f"{API}/images/<image_id>?force=1", shape=False),
        Call("it has gone", "GET", f"{API}/images/<image_id>/json", status=404),
        Call("somebody ends it", "DELETE", "/v1.43/containers/<new>?force=1&v=1", status=204),
        Call("and its base", "DELETE", "/v1.43/containers/<base>", status=204),
        Call("and its image", "DELETE", "/v1.43/images/<new_image>?force=1", shape=False),
    ],
    otherwise={
        "ContainerConfig/.*": "of an image by commit, docker 26 tells the container's twice; no more since"
        " API 1.45, and not where its images are containerd's"
    },
)
