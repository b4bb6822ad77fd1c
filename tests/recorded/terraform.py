# SPDX-License-Identifier: Apache-2.0
"""Terraform's kreuzwerker/docker provider (internal/provider): a network, a volume, an image that is here, and a
container on that network with a file put into it, read back, updated, and destroyed, in Docker's Go client's form."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from recorded import JSON, Call, Story, filters
from recorded.go import ENDPOINT, created

API = "/v1.45"


def upload() -> bytes:
    """resource_docker_container_funcs.go: the whole path is the entry's name, and it goes to the root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("/etc/app/config")
        entry.size, entry.mode = 5, 0o644
        archive.addfile(entry, io.BytesIO(b"told\n"))
    return buffer.getvalue()


CONTAINER = created(
    {
        "Image": "<image>",
        "Cmd": ["sh", "-c", "cat /etc/app/config; trap 'exit 0' TERM; while :; do sleep 0.1; done"],
        "Env": ["A=b"],
        "Labels": {"made": "by-terraform"},
        "ExposedPorts": {"80/tcp": {}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1000000000, "Timeout": 5000000000, "Retries": 3},
    },
    {
        "NetworkMode": "bridge",
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "48393"}]},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
        "ExtraHosts": ["other:192.0.2.7"],
        "Ulimits": [{"Name": "nofile", "Hard": 600, "Soft": 500}],
        "CapAdd": ["CAP_NET_ADMIN"],
        "CapDrop": ["CAP_MKNOD"],
        "Mounts": [
            {"Type": "volume", "Source": "recdata", "Target": "/data", "VolumeOptions": {"NoCopy": True}},
            {"Type": "tmpfs", "Target": "/scratch", "TmpfsOptions": {"SizeBytes": 1048576, "Mode": 1000}},
        ],
        "Init": False,
    },
)
UPDATE: dict[str, Any] = {
    # ContainerUpdate sends all resources, most of them as nothing.
    **{
        key: value
        for key, value in CONTAINER["HostConfig"].items()
        if key.startswith(("Blkio", "Cpu", "Memory", "Nano"))
    },
    "OomKillDisable": None,
    "PidsLimit": None,
    "Devices": None,
    "DeviceCgroupRules": None,
    "DeviceRequests": None,
    "Ulimits": None,
    "CgroupParent": "",
    "IOMaximumIOps": 0,
    "IOMaximumBandwidth": 0,
    "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
}
READ = (
    "Name",
    "Config/Cmd",
    "Config/Env",
    "Config/Healthcheck",
    "HostConfig/CapAdd",
    "HostConfig/CapDrop",
    "HostConfig/ExtraHosts",
    "HostConfig/Init",
    "HostConfig/IpcMode",
    "HostConfig/LogConfig",
    "HostConfig/Memory",
    "HostConfig/Mounts",
    "HostConfig/NetworkMode",
    "HostConfig/PidMode",
    "HostConfig/RestartPolicy",
    "HostConfig/ShmSize",
    "HostConfig/Ulimits",
    "NetworkSettings/Ports",
    "NetworkSettings/Networks/recnet/IPAddress",
    "NetworkSettings/Networks/recnet/IPAMConfig",
    "NetworkSettings/Networks/recnet/IPPrefixLen",
    "NetworkSettings/Networks/recnet/Gateway",
)

STORY = Story(
    api=(1, 45),
    steps=[
        Call("Ping", "GET", "/_ping"),
        Call(
            "resourceDockerNetworkCreate",
            "POST",
            f"{API}/networks/create",
            {
                "Name": "recnet",
                "Driver": "bridge",
                "Scope": "",
                "IPAM": {
                    "Driver": "default",
                    "Options": None,
                    "Config": [{"Subnet": "10.97.6.0/24", "Gateway": "10.97.6.1"}],
                },
                "Internal": False,
                "Attachable": False,
                "Ingress": False,
                "ConfigOnly": False,
                "ConfigFrom": None,
                "Options": None,
                "Labels": {"made": "by-terraform"},
            },
            201,
            JSON,
            {"network": "Id"},
        ),
        Call(
            "resourceDockerNetworkRead",
            "GET",
            f"{API}/networks/<network>",
            same=(
                "Name",
                "Driver",
                "Scope",
                "IPAM",
                "Internal",
                "Attachable",
                "Ingress",
                "EnableIPv6",
                "Options",
                "Labels",
            ),
        ),
        Call(
            "resourceDockerVolumeCreate",
            "POST",
            f"{API}/volumes/create",
            {"Name": "recdata", "Labels": {"made": "by-terraform"}},
            201,
            JSON,
            same=("Name", "Driver", "Labels", "Options"),
        ),
        Call("resourceDockerVolumeRead", "GET", f"{API}/volumes/recdata", same=("Name", "Driver", "Labels", "Scope")),
        # findImage: all images, of which it takes the one with this name
        Call("fetchLocalImages", "GET", f"{API}/images/json"),
        Call("ImageInspectWithRaw", "GET", f"{API}/images/busybox:latest/json", keep={"image": "Id"}),
        Call("ContainerCreate", "POST", f"{API}/containers/create?name=site", CONTAINER, 201, JSON, {"id": "Id"}),
        Call(
            "NetworkDisconnect from the bridge",
            "POST",
            f"{API}/networks/bridge/disconnect",
            {"Container": "<id>", "Force": False},
            200,
            JSON,
        ),
        Call(
            "NetworkConnect",
            "POST",
            f"{API}/networks/recnet/connect",
            {
                "Container": "<id>",
                "EndpointConfig": {**ENDPOINT, "IPAMConfig": {"IPv4Address": "10.97.6.40"}, "Aliases": ["web"]},
            },
            200,
            JSON,
        ),
        Call(
            "CopyToContainer",
            "PUT",
            f"{API}/containers/<id>/archive?noOverwriteDirNonDir=true&path=%2F",
            upload(),
            headers={"Content-Type": "text/plain"},
        ),
        Call("ContainerStart", "POST", f"{API}/containers/<id>/start", status=204),
        Call("fetchDockerContainer", "GET", f"{API}/containers/json?all=1", same=("*/Names", "*/State")),
        Call(
            "resourceDockerContainerReadRefreshFunc",
            "GET",
            f"{API}/containers/<id>/json",
            until=lambda told: told["State"]["Health"]["Status"] == "healthy",
            same=READ,
        ),
        Call(
            "data.docker_logs",
            "GET",
            f"{API}/containers/<id>/logs?follow=0&stderr=1&stdout=1&tail=all",
            told={"1": "told\n"},
            same=("",),
        ),
        Call("ContainerUpdate", "POST", f"{API}/containers/<id>/update", UPDATE, 200, JSON, same=("Warnings",)),
        Call(
            "resourceDockerContainerRead",
            "GET",
            f"{API}/containers/<id>/json",
            told={"HostConfig/RestartPolicy/Name": "on-failure", "HostConfig/RestartPolicy/MaximumRetryCount": 3},
        ),
        Call(
            "resourceDockerNetworkRead while it is used",
            "GET",
            f"{API}/networks/recnet",
            same=("Containers/*/Name", "Containers/*/IPv4Address"),
        ),
        Call(
            "resourceDockerNetworkDelete, too early",
            "DELETE",
            f"{API}/networks/<network>",
            status=403,
            types=("message",),
        ),
        Call("ContainerStop", "POST", f"{API}/containers/<id>/stop?t=5", status=204),
        Call("ContainerRemove", "DELETE", f"{API}/containers/<id>?force=1&v=1", status=204),
        Call("ContainerWait", "POST", f"{API}/containers/<id>/wait?condition=removed", status=404),
        Call("resourceDockerNetworkDelete", "DELETE", f"{API}/networks/<network>", status=204),
        Call("resourceDockerNetworkRead of nothing", "GET", f"{API}/networks/<network>", status=404),
        Call("resourceDockerVolumeDelete", "DELETE", f"{API}/volumes/recdata?force=1", status=204),
        Call("resourceDockerVolumeRead of nothing", "GET", f"{API}/volumes/recdata", status=404),
        Call("nothing is left", "GET", f"{API}/networks?filters={filters(name=['recnet'])}", told={"": []}),
    ],
)
