# SPDX-License-Identifier: Apache-2.0
"""GitLab runner's docker executor (executors/docker): a network for the build, a volume for its cache, a service, a
helper's container and the build's, each of which reads its script from an attached input, is started, waited for and
stopped, and started once more for the next stage; then all is killed and removed."""

from __future__ import annotations

from typing import Any

from recorded import JSON, UPGRADE, Call, Hear, Story
from recorded.go import created

API = "/v1.45"
LABELS = {"com.gitlab.gitlab-runner.managed": "true", "com.gitlab.gitlab-runner.job.id": "7"}
HOST: dict[str, Any] = {
    "NetworkMode": "recbuild",
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "LogConfig": {"Type": "json-file", "Config": None},
    "Binds": ["runner-cache:/cache"],
}


def container(kind: str, command: list[str]) -> Call:
    """createContainer, with the input that the script comes by."""
    config = {
        "Image": "<image>",
        "Hostname": "runner-7" if kind == "build" else "",
        "Cmd": command,
        "Labels": {**LABELS, "com.gitlab.gitlab-runner.type": kind},
        "Env": ["CI=true"],
        **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr", "OpenStdin", "StdinOnce"), True),
    }
    name = f"runner-7-{kind}"
    endpoints = {"recbuild": {"Aliases": ["build", name]}}
    body = created(config, HOST, endpoints)
    return Call(
        f"createContainer, {kind}", "POST", f"{API}/containers/create?name={name}", body, 201, JSON, {kind: "Id"}
    )


def stage(kind: str, name: str, script: bytes, code: int, told: dict[str, object]) -> list[Call | Hear]:
    """exec.go and wait.go: attach, start, the script as input, all output, then wait and stop."""
    attach, wait = f"ContainerAttach, {name}", f"ContainerWait, {name}"
    return [
        Call(
            attach,
            "POST",
            f"{API}/containers/<{kind}>/attach?stderr=1&stdin=1&stdout=1&stream=1",
            status=101,
            headers={"Content-Type": "text/plain", **UPGRADE},
            beside=True,
        ),
        Call(f"ContainerStart, {name}", "POST", f"{API}/containers/<{kind}>/start", status=204),
        Hear(f"the trace, {name}", attach, sends=script, shuts=True, leaves=True, told=told),
        Call(wait, "POST", f"{API}/containers/<{kind}>/wait?condition=not-running", beside=True),
        Hear(f"its code, {name}", wait, lines=True, leaves=True, told={"0/StatusCode": code}),
        Call(f"ContainerStop, {name}", "POST", f"{API}/containers/<{kind}>/stop", status=304),
    ]


def gone(kind: str) -> list[Call]:
    """removeContainer: disconnected from all networks by force, killed, removed."""
    return [
        Call(f"ContainerKill, {kind}", "POST", f"{API}/containers/<{kind}>/kill?signal=SIGKILL", status=409),
        Call(f"ContainerRemove, {kind}", "DELETE", f"{API}/containers/<{kind}>?force=1&v=1", status=204),
    ]


STORY = Story(
    api=(1, 45),
    steps=[
        Call("Ping", "HEAD", "/_ping"),
        Call("Info", "GET", f"{API}/info", shape=False, types=("ServerVersion", "Architecture"), same=("OSType",)),
        Call("ServerVersion", "GET", f"{API}/version", shape=False, types=("ApiVersion",)),
        # networks/manager.go
        Call(
            "NetworkCreate",
            "POST",
            f"{API}/networks/create",
            {
                "Name": "recbuild",
                "Driver": "",
                "Scope": "",
                "EnableIPv6": False,
                "IPAM": None,
                "Internal": False,
                "Attachable": False,
                "Ingress": False,
                "ConfigOnly": False,
                "ConfigFrom": None,
                "Options": {},
                "Labels": LABELS,
            },
            201,
            JSON,
            {"network": "Id"},
            same=("Warning",),
        ),
        Call("NetworkInspect", "GET", f"{API}/networks/<network>", same=("Name", "Driver", "Labels", "EnableIPv6")),
        # pull/manager.go, if-not-present
        Call("ImageInspectWithRaw", "GET", f"{API}/images/busybox:latest/json", keep={"image": "Id"}),
        Call(
            "VolumeCreate",
            "POST",
            f"{API}/volumes/create",
            {"Name": "runner-cache", "Driver": "", "DriverOpts": None, "Labels": {**LABELS, "type": "cache"}},
            201,
            JSON,
            same=("Name", "Driver", "Labels"),
        ),
        # services.go: a service, and what is told of how it can be reached
        Call(
            "createService",
            "POST",
            f"{API}/containers/create?name=runner-7-db-0",
            created(
                {
                    "Image": "<image>",
                    "Cmd": ["sh", "-c", "mkdir /www; echo up >/www/index.html; exec httpd -f -p 80 -h /www"],
                    "Labels": {**LABELS, "com.gitlab.gitlab-runner.type": "service"},
                    "ExposedPorts": {"80/tcp": {}},
                },
                HOST,
                {"recbuild": {"Aliases": ["db"]}},
            ),
            201,
            JSON,
            {"service": "Id"},
        ),
        Call("ContainerStart of the service", "POST", f"{API}/containers/<service>/start", status=204),
        Call(
            "getContainerIPAndExposedPorts",
            "GET",
            f"{API}/containers/<service>/json",
            told={"State/Running": True},
            same=("Config/ExposedPorts", "NetworkSettings/Ports"),
        ),
        container("helper", ["sh"]),
        container("build", ["sh", "-c", "if [ -x /bin/sh ]; then exec /bin/sh; fi"]),
        Call("ContainerInspect", "GET", f"{API}/containers/<build>/json", same=("State/Status", "Config/Hostname")),
        *stage("helper", "get_sources", b"echo fetched >/cache/sources; echo done\n", 0, {"1": "done\n"}),
        *stage(
            "build", "step_script", b"cat /cache/sources; hostname; echo aside >&2\n", 0, {"1": "fetched\nrunner-7\n"}
        ),
        *stage("helper", "archive_cache", b"cat /cache/sources; exit 3\n", 3, {"1": "fetched\n"}),
        *stage("build", "the service", b"wget -q -O - http://db/\n", 0, {"1": "up\n"}),
        Call(
            "ContainerLogs of the service",
            "GET",
            f"{API}/containers/<service>/logs?stderr=1&stdout=1&timestamps=1",
            shape=False,
        ),
        *gone("build"),
        *gone("helper"),
        Call(
            "NetworkDisconnect of the service",
            "POST",
            f"{API}/networks/<network>/disconnect",
            {"Container": "<service>", "Force": True},
            200,
            JSON,
        ),
        Call("ContainerKill of the service", "POST", f"{API}/containers/<service>/kill?signal=SIGKILL", status=204),
        Call("ContainerRemove of the service", "DELETE", f"{API}/containers/<service>?force=1&v=1", status=204),
        Call("ContainerRemove again", "DELETE", f"{API}/containers/<service>?force=1&v=1", status=404),
        Call("NetworkRemove", "DELETE", f"{API}/networks/<network>", status=204),
        Call("VolumeRemove", "DELETE", f"{API}/volumes/runner-cache?force=1", status=204),
    ],
)
