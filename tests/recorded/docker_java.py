# SPDX-License-Identifier: Apache-2.0
"""docker-java, as Testcontainers for Java has it: one version of the API, `accept` and `content-type` in small letters,
bodies in chunks whose length nobody says, with null for all that was not said, and the body `null` where there is
nothing to say (docker-java-core, DefaultInvocationBuilder and the exec package; its transport over HttpClient 5)."""

from __future__ import annotations

from typing import Any

from recorded import UPGRADE, Call, Hear, Story

API = "/v1.32"
WHO = {"User-Agent": "tc-java/1.21.3", "x-tc-sid": "5f2f5a4e-0001"}
ASKS = {**WHO, "accept": "application/json"}
SENDS = {**ASKS, "content-type": "application/json", "Transfer-Encoding": "chunked"}
# A start says what it is of, and has no body: that is no length of 0, but none in chunks either.
NOTHING = {**ASKS, "content-type": "application/json"}
# Fields of CreateContainerCmdImpl and HostConfig that nobody has set.
NULLS: dict[str, Any] = dict.fromkeys(
    (
        "Hostname",
        "Domainname",
        "User",
        "AttachStdout",
        "AttachStderr",
        "StopSignal",
        "StopTimeout",
        "Shell",
        "MacAddress",
    )
    + ("NetworkDisabled", "WorkingDir", "Entrypoint", "StdinOnce", "Healthcheck", "NetworkingConfig", "OnBuild")
)
HOST_NULLS: dict[str, Any] = dict.fromkeys(
    ("BlkioWeight", "BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps")
    + ("BlkioDeviceWriteIOps", "MemorySwappiness", "NanoCpus", "CapDrop", "ContainerIDFile", "CpuPeriod", "Annotations")
    + ("CpuRealtimePeriod", "CpuRealtimeRuntime", "CpuShares", "CpuQuota", "CpusetCpus", "CpusetMems", "Devices")
    + ("DeviceCgroupRules", "DeviceRequests", "DiskQuota", "Dns", "DnsOptions", "DnsSearch", "GroupAdd", "IpcMode")
    + ("Cgroup", "Links", "LogConfig", "LxcConf", "Memory", "MemorySwap", "MemoryReservation", "KernelMemory", "Init")
    + ("OomKillDisable", "OomScoreAdj", "PidMode", "PidsLimit", "Isolation", "ReadonlyRootfs", "RestartPolicy")
    + ("CpuCount", "CpuPercent", "IOMaximumIOps", "IOMaximumBandwidth", "SecurityOpt", "ShmSize", "Sysctls", "Tmpfs")
    + ("Ulimits", "UTSMode", "UsernsMode", "VolumeDriver", "CgroupParent", "CgroupnsMode", "Runtime", "StorageOpt")
)
SCRIPT = "echo begun; echo aside >&2; trap 'exit 0' TERM; while :; do sleep 0.1; done"
BODY = {
    **NULLS,
    "AttachStdin": False,
    "OpenStdin": None,
    "Tty": None,
    "Image": "busybox:latest",
    "Cmd": ["sh", "-c", SCRIPT],
    "Env": ["A=b"],
    "ExposedPorts": {"80/tcp": {}},
    "Labels": {"org.testcontainers": "true", "org.testcontainers.sessionId": "5f2f5a4e-0001"},
    "Volumes": {},
    "HostConfig": {
        **HOST_NULLS,
        "Binds": ["/etc:/host:ro"],
        "ExtraHosts": [],
        "NetworkMode": None,
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": ""}]},
        "Privileged": False,
        "PublishAllPorts": None,
        "AutoRemove": False,
        "CapAdd": None,
        "VolumesFrom": [],
        "Mounts": None,
    },
}

STORY = Story(
    api=(1, 32),
    steps=[
        # DockerClientProviderStrategy: is there an engine, and which
        Call("PingCmd", "GET", f"{API}/_ping", headers=WHO, told={"": "OK"}),
        Call(
            "InfoCmd",
            "GET",
            f"{API}/info",
            headers=ASKS,
            shape=False,
            types=("ServerVersion", "OperatingSystem", "MemTotal", "Labels", "NCPU", "DriverStatus", "Plugins/Volume"),
            same=("OSType", "IndexServerAddress", "Swarm/LocalNodeState"),
        ),
        Call("VersionCmd", "GET", f"{API}/version", headers=ASKS, shape=False, types=("ApiVersion", "KernelVersion")),
        Call("ListImagesCmd", "GET", f"{API}/images/json", headers=ASKS),
        Call("InspectImageCmd", "GET", f"{API}/images/busybox:latest/json", headers=ASKS, keep={"image": "Id"}),
        Call(
            "PullImageCmd of what nobody has",
            "POST",
            f"{API}/images/create?fromImage=127.0.0.1:1%2Fnosuch&tag=1",
            b"null",
            500,
            SENDS,
            types=("message",),
        ),
        # GenericContainer
        Call("CreateContainerCmd", "POST", f"{API}/containers/create", BODY, 201, SENDS, {"id": "Id"}),
        Call("StartContainerCmd", "POST", f"{API}/containers/<id>/start", status=204, headers=NOTHING),
        Call("StartContainerCmd again", "POST", f"{API}/containers/<id>/start", status=304, headers=NOTHING),
        Call(
            "InspectContainerCmd",
            "GET",
            f"{API}/containers/<id>/json",
            headers=ASKS,
            same=("State/Running", "Config/Labels", "Config/Cmd", "HostConfig/Binds", "HostConfig/NetworkMode"),
        ),
        Call(
            "LogContainerCmd",
            "GET",
            f"{API}/containers/<id>/logs?since=0&stdout=true&stderr=true&follow=true",
            headers=WHO,
            beside=True,
        ),
        Hear("LogMessageWaitStrategy", "LogContainerCmd", until=b"begun\n", framed=True, exact=False),
        Call(
            "ExecCreateCmd",
            "POST",
            f"{API}/containers/<id>/exec",
            {
                "containerId": "<id>",
                "AttachStdin": None,
                "AttachStdout": True,
                "AttachStderr": True,
                "Tty": None,
                "Privileged": None,
                "User": None,
                "Cmd": ["sh", "-c", "echo out; echo err >&2; exit 4"],
                "Env": None,
                "WorkingDir": None,
            },
            201,
            SENDS,
            {"exec": "Id"},
        ),
        Call(
            "ExecStartCmd",
            "POST",
            f"{API}/exec/<exec>/start",
            {"Detach": None, "Tty": None},
            200,
            SENDS,
            beside=True,
        ),
        Hear("its frames", "ExecStartCmd", leaves=True, framed=True, told={"1": "out\n", "2": "err\n"}),
        Call(
            "InspectExecCmd",
            "GET",
            f"{API}/exec/<exec>/json",
            headers=ASKS,
            until=lambda told: not told["Running"],
            told={"ExitCode": 4},
            same=("OpenStdin", "OpenStdout", "ProcessConfig"),
        ),
        Call(
            "AttachContainerCmd, with an input",
            "POST",
            f"{API}/containers/<id>/attach?stdin=1&stream=1",
            b"null",
            101,
            {**SENDS, **UPGRADE},
            beside=True,
        ),
        Call("WaitContainerCmd", "POST", f"{API}/containers/<id>/wait", b"null", 200, SENDS, beside=True),
        Call("StopContainerCmd", "POST", f"{API}/containers/<id>/stop?t=5", status=204, headers=NOTHING),
        Hear("WaitResponse", "WaitContainerCmd", lines=True, told={"0/StatusCode": 0}),
        Hear("the end of the log", "LogContainerCmd", leaves=True, framed=True, exact=False),
        Call("StopContainerCmd again", "POST", f"{API}/containers/<id>/stop", status=304, headers=NOTHING),
        # ResourceReaper
        Call("KillContainerCmd", "POST", f"{API}/containers/<id>/kill", status=409, headers=NOTHING),
        Call("RemoveContainerCmd", "DELETE", f"{API}/containers/<id>?v=true&force=true", status=204, headers=ASKS),
        Call("InspectContainerCmd of nobody", "GET", f"{API}/containers/<id>/json", status=404, headers=ASKS),
    ],
    otherwise={
        r"\*/RepoDigests": "none of a list's image is an empty list here, as where docker's images are containerd's"
    },
)
