# SPDX-License-Identifier: Apache-2.0
"""What the client asks for when it lists things, and how it shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from prepared import Raw

from teu.cli import networks, stats

HOUR_AGO = int(time.time()) - 3700
DIGEST = "sha256:" + "ab" * 32
WEB = {
    "Id": "0123456789abcdef" * 4,
    "Names": ["/web", "/other/alias"],
    "Image": "busybox:1",
    "ImageID": DIGEST,
    "Command": "sh -c 'while true; do date; done'",
    "Created": HOUR_AGO,
    "Ports": [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 90, "PublicPort": 90, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 91, "PublicPort": 91, "Type": "tcp"},
        {"PrivatePort": 53, "Type": "udp"},
    ],
    "State": "running",
    "Status": "Up About an hour",
    "Labels": {"b": "2", "a": "1"},
    "Mounts": [{"Name": "data", "Driver": "local"}, {"Source": "/srv/a/long/path/to/it"}],
    "SizeRw": 1500,
    "SizeRootFs": 2_000_000,
    "NetworkSettings": {"Networks": {"bridge": {}, "n1": {}}},
}
IMAGE = {
    "Id": DIGEST,
    "RepoTags": ["busybox:1", "localhost:5000/x:2"],
    "RepoDigests": [f"busybox@{DIGEST}"],
    "Created": HOUR_AGO,
    "Size": 4_261_550,
    "SharedSize": 1_000_000,
    "Containers": 2,
}


def test_containers_in_a_table(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("GET", "/containers/json", [WEB])
    done = teu("ps")
    assert (done.code, done.err) == (0, "")
    headings, row, *rest = done.out.splitlines()
    assert headings.split("   ")[0] == "CONTAINER ID"
    assert not rest
    for text in (
        "0123456789ab ",
        "busybox:1",
        '"sh -c \'while true; …"',
        "About an hour ago",
        "Up About an hour",
        " web",
    ):
        assert text in row
    assert "53/udp, [::]:90-91->90-91/tcp, 0.0.0.0:8080->80/tcp" in row
    assert daemon.last.query == {}


def test_filters_of_containers(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("GET", "/containers/json", [WEB])
    done = teu("ps", "-aq", "--no-trunc", "-n", "3", "-f", "status=exited", "-f", "label=a=b")
    assert done.out == WEB["Id"] + "\n"  # type: ignore[operator]
    assert (daemon.last.query["all"], daemon.last.query["limit"]) == ("1", "3")
    assert daemon.last.filters() == {"status": {"exited": True}, "label": {"a=b": True}}
    teu("ps", "-l")
    assert daemon.last.query["limit"] == "1"
    assert teu("ps", "-f", "nonsense").code == 125


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("{{.Names}} {{.Labels}} {{.Mounts}}", "web a=1,b=2 data,/srv/a/long/pa…"),
        ("{{.Networks}} {{.LocalVolumes}} {{.State}}", "bridge,n1 1 running"),
        ("{{.Size}}", "1.5kB (virtual 2MB)"),
        ('{{.Label "a"}}', "1"),
        ("{{.Platform}} {{json .Platform}}", "<nil> null"),
        ("table {{.ID}}\\t{{.Image}}", "CONTAINER ID   IMAGE\n0123456789ab   busybox:1"),
    ],
)
def test_templates_of_containers(daemon: Any, teu: Callable[..., Any], form: str, shown: str) -> None:
    daemon.on("GET", "/containers/json", [WEB])
    assert teu("ps", "--format", form).out == shown + "\n"
    assert ("size" in daemon.last.query) == (".Size" in form)


def test_the_users_file_gives_a_format(daemon: Any, teu: Callable[..., Any], tmp_path: Any) -> None:
    daemon.on("GET", "/containers/json", [WEB])
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.json").write_text('{"psFormat": "{{.Names}}"}')
    assert teu("ps").out == "web\n"
    assert teu("ps", "-q").out == "0123456789ab\n"


def test_json_of_containers_is_a_line_each(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("GET", "/containers/json", [WEB, WEB])
    lines = teu("ps", "--format", "json").out.splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["Names"] == "web"
    assert json.loads(lines[0])["Platform"] is None


def test_the_platform_of_a_container(daemon: Any, teu: Callable[..., Any]) -> None:
    known = {"os": "linux", "architecture": "arm", "variant": "v7"}
    daemon.on("GET", "/containers/json", [{**WEB, "ImageManifestDescriptor": {"platform": known}}])
    assert teu("ps", "--format", "{{.Platform}}").out == "linux/arm/v7\n"
    assert teu("ps", "--format", "table {{.Platform}}").out == "PLATFORM\nlinux/arm/v7\n"
    assert json.loads(teu("ps", "--format", "json").out)["Platform"] == known


def test_ports_processes_and_changes(daemon: Any, teu: Callable[..., Any]) -> None:
    ports = {
        "8080/tcp": [{"HostIp": "::", "HostPort": "1"}],
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "2"}],
        "1/udp": None,
    }
    daemon.on("GET", "/containers/web/json", {"NetworkSettings": {"Ports": ports}})
    assert teu("port", "web").out == "80/tcp -> 0.0.0.0:2\n8080/tcp -> [::]:1\n"
    assert teu("port", "web", "80").out == "0.0.0.0:2\n"
    assert teu("port", "web", "1/udp").err == "Error: No public port '1/udp' published for web\n"
    assert teu("port", "web", "x").err == "Error: Invalid port: x\n"
    daemon.on("GET", "/containers/web/top", {"Titles": ["PID", "CMD"], "Processes": [["1", "sh"], ["12345", "date"]]})
    done = teu("top", "web", "-o", "pid,cmd")
    assert [line.split() for line in done.out.splitlines()] == [["PID", "CMD"], ["1", "sh"], ["12345", "date"]]
    assert daemon.last.query == {"ps_args": "-o pid,cmd"}
    daemon.on(
        "GET",
        "/containers/web/changes",
        [{"Kind": 0, "Path": "/a"}, {"Kind": 1, "Path": "/b"}, {"Kind": 2, "Path": "/c"}],
    )
    assert teu("diff", "web").out == "C /a\nA /b\nD /c\n"


def test_images_have_a_line_for_each_name(daemon: Any, teu: Callable[..., Any]) -> None:
    nameless = {**IMAGE, "Id": "sha256:" + "cd" * 32, "RepoTags": [], "RepoDigests": []}
    daemon.on("GET", "/images/json", [IMAGE, nameless])
    lines = [line.split() for line in teu("images").out.splitlines()]
    assert lines[0] == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [line[:3] for line in lines[1:]] == [
        ["busybox", "1", "abababababab"],
        ["localhost:5000/x", "2", "abababababab"],
        ["<none>", "<none>", "cdcdcdcdcdcd"],
    ]
    assert lines[1][-1] == "4.26MB"
    assert teu("images", "--digests", "busy*").out.splitlines()[1].split()[2] == DIGEST
    assert daemon.last.filters() == {"reference": {"busy*": True}}


def test_the_history_of_an_image(daemon: Any, teu: Callable[..., Any]) -> None:
    layer = {"Id": "<missing>", "Created": 0, "CreatedBy": "COPY\t" + "x" * 60, "Size": 1234, "Comment": "c"}
    daemon.on("GET", "/images/x/history", [{**layer, "Id": DIGEST, "Created": HOUR_AGO}, layer])
    first, second = teu("history", "x").out.splitlines()[1:]
    assert first.startswith("abababababab   About an hour ago   COPY xxx")
    assert "…" in first and "1.23kB" in first
    assert second.startswith("<missing>      N/A")
    assert (
        teu("history", "--human=false", "--format", "{{.CreatedSince}} {{.Size}}", "x").out.splitlines()[1]
        == "1970-01-01T00:00:00Z 1234"
    )


def test_volumes_and_networks_are_sorted_as_people_count(daemon: Any, teu: Callable[..., Any]) -> None:
    volume = {"Driver": "local", "Scope": "local", "Mountpoint": "/m", "Labels": {"k": "v"}}
    daemon.on("GET", "/volumes", {"Volumes": [{**volume, "Name": name} for name in ("v10", "v2")]})
    assert [line.split() for line in teu("volume", "ls").out.splitlines()] == [
        ["DRIVER", "VOLUME", "NAME"],
        ["local", "v2"],
        ["local", "v10"],
    ]
    assert teu("volume", "ls", "-q", "-f", "dangling=true").out == "v2\nv10\n"
    assert daemon.last.filters() == {"dangling": {"true": True}}
    assert teu("volume", "ls", "--format", "{{.Labels}} {{.Links}}").out == "k=v N/A\nk=v N/A\n"
    network = {
        "Id": "f" * 64,
        "Driver": "bridge",
        "Scope": "local",
        "Created": "2024-05-06T07:08:09.5Z",
        "EnableIPv6": True,
    }
    daemon.on("GET", "/networks", [{**network, "Name": name} for name in ("net10", "net2", "bridge")])
    assert teu("network", "ls", "--format", "{{.Name}} {{.IPv6}} {{.ID}}").out == (
        "bridge true ffffffffffff\nnet2 true ffffffffffff\nnet10 true ffffffffffff\n"
    )
    assert teu("network", "ls", "--format", "{{.CreatedAt}}").out.startswith("2024-05-06 07:08:09.5 +0000 UTC\n")


def test_disk_usage(daemon: Any, teu: Callable[..., Any]) -> None:
    volume = {
        "Name": "v",
        "Driver": "local",
        "Scope": "local",
        "Mountpoint": "/m",
        "UsageData": {"RefCount": 0, "Size": 500},
    }
    cache = {
        "ID": "c" * 25,
        "Type": "regular",
        "Size": 300,
        "Shared": False,
        "InUse": False,
        "UsageCount": 1,
        "CreatedAt": "2024-05-06T07:08:09Z",
    }
    found = {
        "LayersSize": 5_000_000,
        "Images": [IMAGE],
        "Containers": [WEB],
        "Volumes": [volume],
        "BuildCache": [cache],
    }
    daemon.on("GET", "/system/df", found)
    rows = [" ".join(line.split()) for line in teu("system", "df").out.splitlines()]
    assert rows == [
        "TYPE TOTAL ACTIVE SIZE RECLAIMABLE",
        "Images 1 1 5MB 1.738MB (34%)",
        "Containers 1 1 1.5kB 0B (0%)",
        "Local Volumes 1 0 500B 500B (100%)",
        "Build Cache 1 0 300B 300B",
    ]
    assert teu("system", "df", "--format", "{{.Type}}={{.Size}}").out.splitlines()[0] == "Images=5MB"
    whole = teu("system", "df", "-v").out
    assert "Containers space usage:" in whole and "Build cache usage: 300B" in whole and "3.262MB" in whole
    assert json.loads(teu("system", "df", "-v", "--format", "json").out)["Volumes"] == [volume]
    assert teu("system", "df", "-v", "--format", "{{len .Images}}").out == "1\n"


def test_a_search(daemon: Any, teu: Callable[..., Any]) -> None:
    found = {"name": "busybox", "description": "Base\n\x1bimage", "star_count": 7, "is_official": True}
    daemon.on("GET", "/images/search", [found])
    assert [line.split() for line in teu("search", "--limit", "5", "busy").out.splitlines()] == [
        ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"],
        ["busybox", "Base", "image", "7", "[OK]"],
    ]
    assert daemon.last.query == {"term": "busy", "limit": "5"}


SAMPLE: dict[str, Any] = {
    "id": "0" * 64,
    "name": "/web",
    "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
    "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
    "memory_stats": {"usage": 3 << 20, "limit": 1 << 30, "stats": {"inactive_file": 1 << 20}},
    "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 2000}, "eth1": {"rx_bytes": 500, "tx_bytes": 0}},
    "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 4096}, {"op": "write", "value": 1}]},
    "pids_stats": {"current": 3},
}


def test_one_sample_of_each_container(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("GET", "/containers/json", [WEB])
    daemon.on("GET", f"/containers/{WEB['Id']}/stats", Raw(json.dumps(SAMPLE).encode() + b"\n"))
    headings, row = teu("stats", "--no-stream").out.splitlines()
    assert row.split("   ")[0] == "000000000000"
    assert " ".join(row.split()) == "000000000000 web 40.00% 2MiB / 1GiB 0.20% 1.5kB / 2kB 4.1kB / 1B 3"
    done = teu("stats", "--no-stream", "--format", "{{.Container}} {{.PIDs}}", "gone")
    assert (done.code, done.err) == (1, "Error response from daemon: no such thing: /containers/gone/stats\n")


def test_figures_of_a_container_that_does_not_run() -> None:
    still = {**SAMPLE, "precpu_stats": SAMPLE["cpu_stats"], "memory_stats": {}, "blkio_stats": {}}
    assert stats.cpu_percent(still) == 0.0
    assert stats.memory(still) == (0.0, 0.0)
    assert stats.blocks(still) == (0, 0)


def test_names_are_sorted_as_people_do() -> None:
    names = ["net10", "net2", "net", "net\u00b2", "10"]
    assert sorted(names, key=networks.natural_key) == ["10", "net", "net2", "net10", "net\u00b2"]
