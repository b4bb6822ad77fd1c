# SPDX-License-Identifier: Apache-2.0
"""Portainer: its snapshots of the engine (pkg/snapshot/docker.go, Docker's Go client with the version negotiated), what
its pages ask through its proxy, in the browser's form and without a version, its console (api/http/handler/websocket),
and "recreate" (api/docker/container.go), which puts a new container in an old one's place."""

from __future__ import annotations

from typing import Any

from recorded import JSON, UPGRADE, Call, Hear, Known, Story, listed

API = "/v1.45"
PAGE = {"User-Agent": "Mozilla/5.0", "Accept": "application/json, text/plain, */*", "X-Forwarded-For": "127.0.0.1"}
FORM = {**PAGE, **JSON}
BODY: dict[str, Any] = {
    # The form for a new container, as its page fills it.
    "Image": "busybox:latest",
    "Env": ["A=b"],
    "MacAddress": "",
    "ExposedPorts": {"80/tcp": {}},
    "Entrypoint": None,
    "Cmd": ["sh", "-c", "echo begun; trap 'exit 0' TERM; while :; do sleep 0.1; done"],
    "WorkingDir": "",
    "OpenStdin": True,
    "Tty": True,
    "Volumes": {"/data": {}},
    "Labels": {"from": "portainer"},
    "HostConfig": {
        "RestartPolicy": {"Name": "unless-stopped"},
        "PortBindings": {"80/tcp": [{"HostPort": "48392", "HostIp": "127.0.0.1"}]},
        "PublishAllPorts": False,
        "Binds": ["recdata:/data"],
        "AutoRemove": False,
        "NetworkMode": "recnet",
        "Privileged": False,
        "Init": False,
        "Runtime": "",
        "ExtraHosts": ["other:192.0.2.7"],
        "Devices": [],
        "DeviceRequests": [],
        "CapAdd": ["AUDIT_WRITE", "CHOWN"],
        "CapDrop": ["MKNOD"],
        "Sysctls": {},
        "ShmSize": 67108864,
        "Memory": 0,
        "MemoryReservation": 0,
        "NanoCpus": 0,
    },
    "NetworkingConfig": {"EndpointsConfig": {"recnet": {"IPAMConfig": {"IPv4Address": "", "IPv6Address": ""}}}},
}


def recreated(known: Known) -> dict[str, Any]:
    """The old one's whole configuration, and the first of its networks."""
    old = known["old"]
    return {**old["Config"], "HostConfig": old["HostConfig"], "NetworkingConfig": {"EndpointsConfig": first(known)}}


def first(known: Known) -> dict[str, Any]:
    return {"recnet": known["old"]["NetworkSettings"]["Networks"]["recnet"]}


SNAPSHOT = [
    Call("Ping", "HEAD", "/_ping"),
    Call(
        "Info",
        "GET",
        f"{API}/info",
        shape=False,
        types=("ServerVersion", "NCPU", "MemTotal", "Plugins/Volume", "Plugins/Network", "Plugins/Log", "Runtimes"),
        told={"Swarm/ControlAvailable": False, "OSType": "linux"},
        same=("Containers", "ContainersRunning", "Swarm/LocalNodeState", "Swarm/NodeID", "OSType", "Architecture"),
    ),
    Call("ContainerList", "GET", f"{API}/containers/json?all=1", same=("*/Names", "*/State", "*/Labels")),
    Call("ContainerInspect", "GET", f"{API}/containers/<id>/json", same=("Config/Env", "HostConfig/DeviceRequests")),
    Call("ImageList", "GET", f"{API}/images/json"),
    Call("VolumeList", "GET", f"{API}/volumes", same=("Volumes/*/Name", "Warnings")),
    Call("NetworkList", "GET", f"{API}/networks"),
    Call("ServerVersion", "GET", f"{API}/version", shape=False, types=("Version", "ApiVersion", "Components/0/Name")),
]

PAGES = [
    Call("the list of images", "GET", "/images/json?all=0", headers=PAGE, shape=False, types=("0/RepoTags", "0/Size")),
    Call(
        "a network that is made",
        "POST",
        "/networks/create",
        {
            "Name": "recnet",
            "Driver": "bridge",
            "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.97.5.0/24", "IPRange": "10.97.5.0/25"}]},
            "Internal": False,
            "Attachable": False,
            "CheckDuplicate": True,
            "Options": {},
            "Labels": {},
        },
        201,
        FORM,
        {"network": "Id"},
    ),
    Call(
        "a volume that is made",
        "POST",
        "/volumes/create",
        {"Name": "recdata", "Driver": "local", "DriverOpts": {}, "Labels": {}},
        201,
        FORM,
        same=("Name", "Driver", "Scope", "Labels", "Options"),
    ),
    Call("a container is made", "POST", "/containers/create?name=site", BODY, 201, FORM, {"id": "Id"}),
    Call("and started", "POST", "/containers/<id>/start", status=204, headers=FORM),
    Call(
        "the list of containers",
        "GET",
        f"/containers/json?all=true&filters={listed({'label': ['from=portainer']})}",
        headers=PAGE,
        shape=False,
        types=("0/Created", "0/Ports", "0/NetworkSettings/Networks/recnet/IPAddress", "0/Mounts"),
        same=("*/Names", "*/State", "0/Ports", "0/HostConfig/NetworkMode"),
    ),
    Call(
        "its log",
        "GET",
        "/containers/<id>/logs?stdout=1&stderr=1&timestamps=0&since=0&tail=100",
        headers=PAGE,
        until=lambda text: "begun" in text,
        same=("",),
    ),
    Call(
        "its figures",
        "GET",
        "/containers/<id>/stats?stream=false",
        headers=PAGE,
        shape=False,
        types=("read", "cpu_stats/cpu_usage/total_usage", "memory_stats", "networks", "num_procs"),
        same=("name",),
    ),
    Call("its processes", "GET", "/containers/<id>/top", headers=PAGE, same=("Titles",)),
    Call(
        "volumes that nobody uses",
        "GET",
        f"/volumes?filters={listed({'dangling': ['true']})}",
        headers=PAGE,
        same=("Volumes",),
    ),
]

CONSOLE = [
    Call(
        "a console is asked for",
        "POST",
        "/containers/<id>/exec",
        {
            "id": "<id>",
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": True,
            "User": "root",
            "Cmd": ["sh"],
        },
        201,
        FORM,
        {"exec": "Id"},
    ),
    Call(
        "hijackExecStartOperation",
        "POST",
        "/exec/<exec>/start",
        {"Tty": True, "Detach": False},
        101,
        {**JSON, **UPGRADE},
        beside=True,
    ),
    Call("its size", "POST", "/exec/<exec>/resize?h=40&w=120", {"id": "<exec>", "height": 40, "width": 120}, 200, FORM),
    Hear(
        "what is typed, and told",
        "hijackExecStartOperation",
        sends=b"stty -echo; PS1=; sleep 0.3; clear\nstty size\nexit 3\n",
        until=b"40 120",
        exact=False,
    ),
    Hear("its end", "hijackExecStartOperation", leaves=True, exact=False),
    Call(
        "its code",
        "GET",
        "/exec/<exec>/json",
        headers=PAGE,
        until=lambda told: not told["Running"],
        told={"ExitCode": 3},
        same=("ProcessConfig/tty", "ProcessConfig/entrypoint", "OpenStdin"),
    ),
]

RECREATE = [
    Call("ContainerInspectWithRaw", "GET", f"{API}/containers/<id>/json?size=1", keep={"old": ""}, types=("SizeRw",)),
    Call("ContainerStop", "POST", f"{API}/containers/<id>/stop", status=204),
    Call("ContainerRename", "POST", f"{API}/containers/<id>/rename?name=%2Fsite-old", status=204),
    Call(
        "NetworkDisconnect",
        "POST",
        f"{API}/networks/<network>/disconnect",
        {"Container": "<id>", "Force": True},
        200,
        JSON,
    ),
    Call("ContainerCreate", "POST", f"{API}/containers/create?name=%2Fsite", recreated, 201, JSON, {"new": "Id"}),
    Call("ContainerStart", "POST", f"{API}/containers/<new>/start", status=204),
    Call("ContainerRemove", "DELETE", f"{API}/containers/<id>", status=204),
    Call(
        "ContainerInspectWithRaw of the new one",
        "GET",
        f"{API}/containers/<new>/json?size=1",
        told={"Name": "/site", "State/Running": True},
        same=(
            "Config/Cmd",
            "Config/Env",
            "Config/Labels",
            "Config/Tty",
            "HostConfig/Binds",
            "HostConfig/CapAdd",
            "HostConfig/CapDrop",
            "HostConfig/RestartPolicy",
            "NetworkSettings/Ports",
            "NetworkSettings/Networks/recnet/Aliases",
        ),
    ),
]

ENDS = [
    Call("it is removed", "DELETE", "/containers/<new>?force=true&v=1", status=204, headers=PAGE),
    Call("and its network", "DELETE", "/networks/<network>", status=204, headers=PAGE),
    Call("and its volume", "DELETE", "/volumes/recdata?force=false", status=204, headers=PAGE),
]

STORY = Story(
    api=(1, 45),
    steps=[*PAGES, *SNAPSHOT, *CONSOLE, *RECREATE, *ENDS],
    otherwise={
        r"\*/Options/com\.docker\..*": "the settings of the network bridge are in teud.yaml, and are none of its own"
    },
)
