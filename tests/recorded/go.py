# SPDX-License-Identifier: Apache-2.0
"""Bodies as programs in Go send them with Docker's own client: every member that the type has, with Go's nothing where
nothing was said (moby's api/types/container, network and mount)."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}
HOST: dict[str, Any] = {
    **dict.fromkeys(("Binds", "PortBindings", "VolumesFrom", "CapAdd", "CapDrop", "Dns", "DnsOptions", "DnsSearch")),
    **dict.fromkeys(("ExtraHosts", "GroupAdd", "Links", "SecurityOpt", "Devices", "DeviceCgroupRules")),
    **dict.fromkeys(("DeviceRequests", "MemorySwappiness", "OomKillDisable", "PidsLimit", "Ulimits")),
    **dict.fromkeys(("BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps")),
    **dict.fromkeys(("BlkioDeviceWriteIOps", "MaskedPaths", "ReadonlyPaths")),
    **dict.fromkeys(("ContainerIDFile", "NetworkMode", "VolumeDriver", "CgroupnsMode", "IpcMode", "Cgroup"), ""),
    **dict.fromkeys(("PidMode", "UTSMode", "UsernsMode", "Isolation", "CgroupParent", "CpusetCpus", "CpusetMems"), ""),
    **dict.fromkeys(("AutoRemove", "Privileged", "PublishAllPorts", "ReadonlyRootfs"), False),
    **dict.fromkeys(("OomScoreAdj", "ShmSize", "CpuShares", "Memory", "NanoCpus", "BlkioWeight", "CpuPeriod"), 0),
    **dict.fromkeys(("CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "MemoryReservation", "MemorySwap"), 0),
    **dict.fromkeys(("CpuCount", "CpuPercent", "IOMaximumIOps", "IOMaximumBandwidth"), 0),
    "LogConfig": {"Type": "", "Config": None},
    "RestartPolicy": {"Name": "", "MaximumRetryCount": 0},
    "ConsoleSize": [0, 0],
}
ENDPOINT: dict[str, Any] = {
    "IPAMConfig": None,
    "Links": None,
    "Aliases": None,
    "MacAddress": "",
    "DriverOpts": None,
    "NetworkID": "",
    "EndpointID": "",
    "Gateway": "",
    "IPAddress": "",
    "IPPrefixLen": 0,
    "IPv6Gateway": "",
    "GlobalIPv6Address": "",
    "GlobalIPv6PrefixLen": 0,
    "DNSNames": None,
}


def created(
    config: dict[str, Any], host: dict[str, Any] | None = None, endpoints: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The body of a creation."""
    return {
        **CONFIG,
        **config,
        "HostConfig": {**HOST, **(host or {})},
        "NetworkingConfig": {"EndpointsConfig": endpoints},
    }


def executed(command: list[str], **members: Any) -> dict[str, Any]:
    """The body of an exec's creation."""
    return {
        "User": "",
        "Privileged": False,
        "Tty": False,
        "AttachStdin": False,
        "AttachStderr": False,
        "AttachStdout": False,
        "Detach": False,
        "DetachKeys": "",
        "Env": None,
        "WorkingDir": "",
        "Cmd": command,
        **members,
    }


def exec_started(tty: bool = False) -> dict[str, Any]:
    return {"Detach": False, "Tty": tty}
