# SPDX-License-Identifier: Apache-2.0
"""docker's command line 28 and 29 (docker/cli, cli/command): run, ps, inspect, images, events, stats, system df, cp,
update, commit, network inspect, stop and rm. 29 speaks up to 1.55; what 1.52 has anew is told by the API's definition
(moby's api/docs) where no dockerd is there to tell it."""

from __future__ import annotations

from recorded import JSON, UPGRADE, Call, Hear, Story, filters
from recorded.go import created

SCRIPT = "echo begun; trap 'exit 6' TERM; while :; do sleep 0.1; done"
EVENTS = "application/jsonl, application/x-ndjson;q=0.9, application/json-seq;q=0.5"
CONTAINER = created(
    {
        "AttachStdout": True,
        "AttachStderr": True,
        "Image": "busybox",
        "Cmd": ["sh", "-c", SCRIPT],
        "Env": ["A=b"],
        "Labels": {"from": "cli"},
        "ExposedPorts": {"80/tcp": {}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 200000000},
    },
    {
        "NetworkMode": "recnet",
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "48396"}]},
        "Annotations": {"note": "x"},
        "Mounts": [{"Type": "volume", "Source": "recdata", "Target": "/data"}],
    },
    {"recnet": {"Aliases": ["web"], "GwPriority": 5, "IPAMConfig": {}}},
)


def story(minor: int) -> Story:
    """The commands at this version of the API; 1.46 at least, for annotations and priorities."""
    api = f"/v1.{minor}"
    newest = minor >= 52
    who = {"User-Agent": f"Docker-Client/{'29.1.3' if newest else '28.5.2'} (linux)"}
    sends = {**who, **JSON}
    row = {"*/Names": [["/site"]], "*/State": ["running"], "0/HostConfig/Annotations": {"note": "x"}}
    one: dict[str, object] = {"State/Health/Status": "healthy", "Config/Labels": {"from": "cli"}}
    usage = ("LayersSize", "Images", "Containers", "Volumes", "BuildCache")
    if newest:
        row["*/Health/Status"] = ["healthy"]
        one |= {"GraphDriver": "(absent)", "Storage/RootFS/Snapshot/Name": "overlayfs"}
        one |= {f"NetworkSettings/{name}": "(absent)" for name in ("IPAddress", "Gateway", "MacAddress", "Bridge")}
        usage = ("ImageUsage/TotalCount", "ContainerUsage/Items/0/Id", "VolumeUsage/TotalCount")
    return Story(
        api=(1, minor),
        steps=[
            Call("ping", "HEAD", "/_ping", headers=who),
            Call(
                "docker version",
                "GET",
                f"{api}/version",
                headers=who,
                shape=False,
                types=("Platform/Name", "Components/0/Details/ApiVersion", "MinAPIVersion", "GoVersion", "BuildTime"),
            ),
            Call(
                "docker network create",
                "POST",
                f"{api}/networks/create",
                {"Name": "recnet", "Driver": "bridge", "EnableIPv4": True, "Options": {}, "Labels": {}},
                201,
                sends,
                {"network": "Id"},
            ),
            Call(
                "docker events",
                "GET",
                f"{api}/events?filters={filters(label=['from=cli'], event=['start', 'die'])}",
                headers={**who, "Accept": EVENTS},
                beside=True,
            ),
            # docker run
            Call(
                "docker run: create", "POST", f"{api}/containers/create?name=site", CONTAINER, 201, sends, {"id": "Id"}
            ),
            Call(
                "docker run: attach",
                "POST",
                f"{api}/containers/<id>/attach?stderr=1&stdout=1&stream=1",
                status=101,
                headers={**who, "Content-Type": "text/plain", **UPGRADE},
                beside=True,
            ),
            Call(
                "docker run: wait", "POST", f"{api}/containers/<id>/wait?condition=next-exit", headers=who, beside=True
            ),
            Call("docker run: start", "POST", f"{api}/containers/<id>/start", status=204, headers=who),
            Hear("docker run: what it says", "docker run: attach", until=b"begun\n", told={"1": "begun\n"}),
            Hear(
                "docker events: start",
                "docker events",
                until=b'"start"',
                lines=True,
                told={"0/Type": "container", "0/Action": "start", "0/status": "(absent)" if newest else "start"},
                same=("*/Action", "*/scope"),
            ),
            Call(
                "docker inspect",
                "GET",
                f"{api}/containers/<id>/json",
                headers=who,
                until=lambda told: told["State"]["Health"]["Status"] == "healthy",
                told=one,
                same=("HostConfig/Annotations", "NetworkSettings/Networks/recnet/GwPriority", "Mounts/*/Type"),
            ),
            Call(
                "docker ps",
                "GET",
                f"{api}/containers/json?filters={filters(name=['site'])}",
                headers=who,
                told=row,
                same=("*/Ports", "*/Image", "*/Command", "*/Labels"),
            ),
            Call(
                "docker images",
                "GET",
                f"{api}/images/json?filters={filters(reference=['busybox'])}{'&manifests=1' if newest else ''}",
                headers=who,
                types=("0/Size", "0/Created", "0/Containers"),
                shape=False,
            ),
            Call(
                "docker image inspect",
                "GET",
                f"{api}/images/busybox/json",
                headers=who,
                same=("Config/Cmd", "RepoTags"),
            ),
            Call(
                "docker stats --no-stream",
                "GET",
                f"{api}/containers/<id>/stats?stream=0",
                headers=who,
                shape=False,
                types=("read", "cpu_stats", "memory_stats", "networks/eth0/rx_bytes"),
                same=("name",),
                told={"os_type": "linux"} if newest else {},
            ),
            Call(
                "docker system df",
                "GET",
                f"{api}/system/df{'?verbose=1' if newest else ''}",
                headers=who,
                shape=False,
                types=usage,
                keep={path.replace("/", "_"): path for path in usage if newest},
                told={"Images": "(absent)", "ContainerUsage/ActiveCount": 1} if newest else {},
            ),
            Call(
                "docker network inspect",
                "GET",
                f"{api}/networks/recnet",
                headers=who,
                told={"EnableIPv4": True, "Containers/*/Name": ["site"]},
                keep={"subnets": "Status/IPAM/Subnets"} if newest else {},
            ),
            Call(
                "docker update",
                "POST",
                f"{api}/containers/<id>/update",
                {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}, "PidsLimit": None},
                200,
                sends,
                same=("Warnings",),
            ),
            Call("docker cp: stat", "HEAD", f"{api}/containers/<id>/archive?path=%2Fetc%2Fpasswd", headers=who),
            Call(
                "docker commit",
                "POST",
                f"{api}/commit?author=&changes=LABEL+made%3Dby-cli&comment=&container=site&repo=recmade&tag=1",
                {},
                201,
                sends,
                {"made": "Id"},
            ),
            Call(
                "docker image inspect of it",
                "GET",
                f"{api}/images/recmade:1/json",
                headers=who,
                told={"Config/Labels/made": "by-cli", "RepoTags": ["recmade:1"]},
            ),
            Call(
                "docker image rm", "DELETE", f"{api}/images/recmade:1", headers=who, same=("0/Untagged",), shape=False
            ),
            Call(
                "docker update again",
                "POST",
                f"{api}/containers/<id>/update",
                {"RestartPolicy": {"Name": "no"}},
                200,
                sends,
            ),
            Call("docker stop", "POST", f"{api}/containers/<id>/stop", status=204, headers=who),
            Hear("docker run: its code", "docker run: wait", lines=True, leaves=True, told={"0/StatusCode": 6}),
            Hear("docker run: its end", "docker run: attach", leaves=True),
            Hear(
                "docker events: die",
                "docker events",
                until=b'"die"',
                lines=True,
                leaves=True,
                told={"0/Action": "die", "0/Actor/Attributes/exitCode": "6"},
            ),
            Call("docker rm -v", "DELETE", f"{api}/containers/<id>?v=1", status=204, headers=who),
            Call("docker network rm", "DELETE", f"{api}/networks/recnet", status=204, headers=who),
            Call("docker volume rm", "DELETE", f"{api}/volumes/recdata", status=204, headers=who),
        ],
    )


STORY = story(51)
NEWEST = tuple(story(minor) for minor in (52, 55))
