# SPDX-License-Identifier: Apache-2.0
"""info, version, inspect, events, logs and completion: what is shown of one answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared import Raw

from teu import __version__
from teu.cli import info

FOUND: dict[str, Any] = {
    "Containers": 4,
    "ContainersRunning": 1,
    "Images": 7,
    "ServerVersion": "1.0",
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "x"]],
    "Plugins": {"Volume": ["local"], "Network": ["bridge", "host"], "Log": ["journald"]},
    "Runtimes": {"runc": {}, "crun": {}},
    "DefaultRuntime": "runc",
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    "MemTotal": 4 << 30,
    "NCPU": 2,
    "Debug": True,
    "NFd": 20,
    "Labels": ["a=b"],
    "RegistryConfig": {"IndexConfigs": {"l": {"Name": "localhost:5000", "Secure": False}}, "Mirrors": ["https://m/"]},
    "DefaultAddressPools": [{"Base": "172.16.0.0/12", "Size": 24}],
    "LiveRestoreEnabled": False,
}


def test_info_in_lines() -> None:
    lines = info.server_lines(FOUND)
    for line in (
        "  Running: 1",
        "  driver-type: x",
        "  Network: bridge host",
        " Runtimes: runc crun",
        "  seccomp",
        "   Profile: builtin",
        " CPUs: 2",
        " Total Memory: 4GiB",
        "  File Descriptors: 20",
        "  a=b",
        " Insecure Registries:",
        "  localhost:5000",
        " Registry Mirrors:",
        "   Base: 172.16.0.0/12, Size: 24",
        " Live Restore Enabled: false",
    ):
        assert line in lines
    assert lines.index(" Security Options:") < lines.index(" Total Memory: 4GiB") < lines.index(" Labels:")
    bare = info.server_lines({})
    assert " Init Binary: " in bare and " Debug Mode: false" in bare and not any("Registr" in line for line in bare)


def test_info(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("GET", "/info", {**FOUND, "Warnings": ["WARNING: no swap"]})
    done = teu("info")
    assert (done.code, done.err) == (0, "WARNING: no swap\n")
    assert done.out.startswith(f"Client:\n Version:    {__version__}\n")
    assert teu("info", "-f", "{{.ServerVersion}} {{.ClientInfo.Context}}").out == "1.0 default\n"
    assert json.loads(teu("info", "-f", "json").out)["NCPU"] == 2
    assert "template parsing error" in teu("info", "-f", "{{").err
    daemon.on("GET", "/info", (500, "broken"))
    done = teu("info")
    assert done.code == 1 and done.err.startswith("ERROR: Error response from daemon: broken")


def test_version(daemon: Any, teu: Callable[..., Any]) -> None:
    server = {"Version": "9.8", "ApiVersion": "1.45", "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64"}
    component = {"Name": "Engine", "Version": "9.8", "Details": {"ApiVersion": "1.45", "Os": "linux"}}
    daemon.on("GET", "/version", {**server, "Components": [component]})
    done = teu("version")
    assert done.code == 0 and "9.8" in done.out
    assert teu("version", "-f", "{{.Server.Version}} {{.Client.Version}}").out == f"9.8 {__version__}\n"


def test_inspect_looks_for_every_kind(daemon: Any, teu: Callable[..., Any]) -> None:
    daemon.on("GET", "/networks/n", {"Name": "n", "Id": "1"})
    daemon.on("GET", "/containers/c/json", {"Id": "2", "Name": "/c", "State": {"Status": "running"}})
    done = teu("inspect", "n", "c", "gone")
    assert [found["Id"] for found in json.loads(done.out)] == ["1", "2"]
    assert (done.code, done.err) == (1, "Error: No such object: gone\n")
    assert teu("inspect", "-f", "{{.State.Status}}", "c").out == "running\n"
    assert teu("inspect", "-f", "json", "c").out == '{"Id":"2","Name":"/c","State":{"Status":"running"}}\n'
    assert "template parsing error" in teu("inspect", "-f", "{{.Nope.X}}", "c").err
    assert teu("inspect", "-f", "{{", "c").code == 64
    assert teu("inspect", "--type", "x", "c").err.startswith('unknown type: "x": must be one of "container", ')
    teu("container", "inspect", "-s", "c")
    assert daemon.last.query == {"size": "1"}


def test_events(daemon: Any, teu: Callable[..., Any]) -> None:
    actor = {"ID": "c1", "Attributes": {"name": "web", "image": "x"}}
    event = {"Type": "container", "Action": "start", "Actor": actor, "time": 0, "timeNano": 1_500_000_000}
    daemon.on("GET", "/events", Raw(json.dumps(event).encode() + b"\n", "application/json"))
    done = teu("events", "--since", "0", "--until", "5", "-f", "type=container")
    assert done.out == "1970-01-01T00:00:01.500000000Z container start c1 (image=x, name=web)\n"
    assert (daemon.last.query["since"], daemon.last.query["until"]) == ("0", "5.000000000")
    assert daemon.last.filters() == {"type": {"container": True}}
    assert teu("events", "--format", "{{.Action}}:{{.Actor.ID}}").out == "start:c1\n"
    assert json.loads(teu("events", "--format", "json").out) == event
    assert teu("events", "--since", "nonsense").code == 1


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("tty", [False, True])
def test_logs(daemon: Any, teu: Callable[..., Any], tty: bool) -> None:
    daemon.on("GET", "/containers/web/json", {"Id": "c1", "Config": {"Tty": tty}})
    body = b"out err" if tty else frame(1, b"out ") + frame(2, b"err")
    daemon.on("GET", "/containers/c1/logs", Raw(body))
    done = teu("logs", "-t", "-n", "5", "web")
    assert (done.out, done.err) == (("out err", "") if tty else ("out ", "err"))
    assert daemon.last.query == {"stdout": "1", "stderr": "1", "timestamps": "1", "tail": "5"}
    assert teu("logs", "--since", "x", "web").err.startswith('invalid value for "since"')


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["start", ""], ["old"]),
        (["rm", "w"], ["web"]),
        (["exec", ""], ["old", "web"]),
        (["exec", "web", ""], []),
        (["run", ""], ["busybox", "x:1"]),
        (["run", "--network", ""], ["n1"]),
        (["network", "connect", ""], ["n1"]),
        (["network", "connect", "n1", ""], ["old", "web"]),
        (["volume", "rm", ""], ["v1"]),
        (["rmi", "b"], ["busybox"]),
        (["run", "--pull=a"], ["--pull=always"]),
        (["kill", "--signal", "U"], ["USR1", "USR2"]),
        (["container", "pru"], ["prune"]),
        (["ps", "--no-t"], ["--no-trunc"]),
        (["--tlsv"], ["--tlsverify"]),
        (["nope", ""], []),
    ],
)
def test_completion(
    daemon: Any,
    teu: Callable[..., Any],
    words: list[str],
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/teud.sock")  # the shell's words have no -H

    def containers(request: Any) -> Any:
        found = [{"Names": ["/web"]}, {"Names": ["/old", "/old/alias"]}]
        return found[1:] if "exited" in request.query.get("filters", "") else found

    daemon.on("GET", "/containers/json", containers)
    daemon.on("GET", "/images/json", [{"RepoTags": ["busybox:latest", "x:1"]}, {"RepoTags": ["<none>:<none>"]}])
    daemon.on("GET", "/networks", [{"Name": "n1"}])
    daemon.on("GET", "/volumes", {"Volumes": [{"Name": "v1"}]})
    assert teu("__complete", *words).out.split() == offered


def test_help_wraps_and_names_defaults(teu: Callable[..., Any]) -> None:
    done = teu("run", "--help")
    assert done.code == 0 and done.out.startswith("\nUsage:  teu run [OPTIONS] IMAGE") or "Usage:  teu run" in done.out
    assert max(map(len, done.out.splitlines())) <= 140
    assert "-i, --interactive" in done.out and "--secret" not in done.out
    assert "Commands:" in teu("volume").out
