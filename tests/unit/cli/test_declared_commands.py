# SPDX-License-Identifier: Apache-2.0
"""`teu system validate` and `teu generate unit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared import Daemon

from teu.cli.declared import files, translate, unit
from teu.cli.declared.validate import wrong_options
from teu.cli.declared.written import written
from teu.cli.options import parse_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "containers"
    found.mkdir()
    return found


def test_good_files_are_told_with_their_units(teu: Callable[..., Any], folder: Path) -> None:
    (folder / "web.container").write_text("[Container]\nImage=busybox\nPublishPort=80:80\n")
    done = teu("system", "validate", str(folder))
    assert (done.code, done.out, done.err) == (0, f"{folder}/web.container: web.service\n", "")
    assert "ExecStart=" in teu("system", "validate", "--show", str(folder)).out
    assert teu("system", "validate", "-q", str(folder)).out == ""


def test_mistakes_are_told_by_line(teu: Callable[..., Any], folder: Path) -> None:
    (folder / "bad.container").write_text("[Container]\nImage=busybox\nPublishPort=http:80\nLabel=x\n")
    (folder / "other.container").write_text("[Container]\nImage=busybox\nColour=red\n")
    (folder / "odd.container").write_text("[Container]\nImage=busybox\nPodmanArgs=--colour=red\n")
    done = teu("system", "validate", str(folder))
    assert done.code == 1 and done.out == ""
    told = done.err.splitlines()
    assert any(line.startswith(f"{folder}/bad.container:3: PublishPort=") and "http" in line for line in told), told
    assert f"{folder}/other.container:3: [Container] has no key Colour" in told
    assert any(line.startswith(f"{folder}/odd.container:3: ") and "unknown flag: --colour" in line for line in told), (
        told
    )
    one = teu("system", "validate", str(folder / "other.container"))
    assert one.err.splitlines() == [f"{folder}/other.container:3: [Container] has no key Colour"]


def test_names_that_no_unit_can_have(teu: Callable[..., Any], folder: Path) -> None:
    for name, given in (("folder", "no/folder"), ("long", "long" * 62), ("word", "ü"), ("none", "a b")):
        (folder / f"{name}.container").write_text(f"[Container]\nImage=busybox\nServiceName={given}\n")
        done = teu("system", "validate", "-q", str(folder / f"{name}.container"))
        assert done.code == 1 and done.err.startswith(f"{folder}/{name}.container:3: ServiceName={given}: "), done
    (folder / "good.container").write_text("[Container]\nImage=busybox\nServiceName=a:b-c_d.e@f\\x2d\n")
    assert teu("system", "validate", str(folder / "good.container")).out.endswith(": a:b-c_d.e@f\\x2d.service\n")


def test_two_files_with_one_unit_and_a_path_that_is_none(teu: Callable[..., Any], folder: Path) -> None:
    (folder / "a.container").write_text("[Container]\nImage=busybox\nServiceName=x\n")
    (folder / "b.container").write_text("[Container]\nImage=busybox\nServiceName=x\n")
    assert "already that of" in teu("system", "validate", str(folder)).err
    assert "no such file" in teu("system", "validate", str(folder / "none")).err


def test_what_systemd_completes_is_not_judged() -> None:
    assert wrong_options(["/x/teu-unit", "container", "--publish=%i:80", "--cpus=$N", "--", "x"]) == ("", "")
    assert "unknown flag" in wrong_options(["/x/teu-unit", "network", "--colour=%i", "--", "x"])[0]
    assert wrong_options(["/usr/bin/teu", "build", "--progress=plain", "--tag=x", "--", "/x"]) == ("", "")


IMAGE = {"Cmd": ["sh"], "Env": ["PATH=/bin"], "Labels": {"of": "image"}, "WorkingDir": "/"}
FOUND: dict[str, Any] = {
    "Id": "4" * 64,
    "Name": "/web",
    "Image": "sha256:1",
    "Config": {
        "Image": "busybox:1",
        "Hostname": "4" * 12,
        "Cmd": ["sh", "-c", "echo $HOME 100%; sleep 1"],
        "Entrypoint": None,
        "Env": ["PATH=/bin", "A=b c"],
        "Labels": {"of": "image", "mine": "1"},
        "WorkingDir": "/",
        "User": "1000",
        "StopSignal": "SIGINT",
        "StopTimeout": 3,
        "Healthcheck": {"Test": ["CMD", "/x", "y"], "Interval": 5_000_000_000, "Retries": 2},
        "ExposedPorts": {"80/tcp": {}},
    },
    "HostConfig": {
        "Binds": ["/srv:/srv:ro"],
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostIp": "::1", "HostPort": ""}]},
        "RestartPolicy": {"Name": "always"},
        "NetworkMode": "mine",
        "CapAdd": ["NET_ADMIN"],
        "Memory": 1 << 20,
        "NanoCpus": 1_500_000_000,
        "ReadonlyRootfs": True,
        "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "rw"}],
        "Mounts": [
            {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True},
            {"Type": "image", "Source": "app:1", "Target": "/i", "ImageOptions": {"Subpath": "etc"}},
        ],
        "Tmpfs": {"/t": "size=1m"},
        "Sysctls": {"net.a": "1"},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
        "SecurityOpt": ["no-new-privileges"],
        "IpcMode": "private",
        "Init": True,
    },
    "NetworkSettings": {"Networks": {"mine": {"IPAMConfig": {"IPv4Address": "10.0.0.2"}, "Aliases": ["db", "4" * 12]}}},
}
EXPECTED = """[Container]
ContainerName=web
Image=busybox:1
Exec=sh -c "echo $$HOME 100%%; sleep 1"
Environment="A=b c"
Label=mine=1
User=1000
StopSignal=SIGINT
StopTimeout=3
ExposeHostPort=80/tcp
HealthCmd=["/x","y"]
HealthInterval=5s
HealthRetries=2
PublishPort=127.0.0.1:8080:80/tcp
PublishPort=[::1]::80/tcp
Network=mine:ip=10.0.0.2,alias=db
Mount=type=bind,source=/a,target=/b,readonly
Mount=type=image,source=app:1,target=/i,image-subpath=etc
Tmpfs=/t:size=1m
AddCapability=NET_ADMIN
Memory=1048576
Volume=/srv:/srv:ro
PodmanArgs=--security-opt=no-new-privileges
PodmanArgs=--cpus=1.5
ReadOnly=yes
ReadOnlyTmpfs=no
RunInit=yes
AddDevice=/dev/null:/dev/x:rw
Sysctl=net.a=1
Ulimit=nofile=1:2
LogDriver=json-file
LogOpt=max-size=1m

[Service]
Restart=always

[Install]
WantedBy=multi-user.target
"""


def test_the_file_of_a_container(daemon: Daemon, teu: Callable[..., Any], tmp_path: Path) -> None:
    daemon.on("GET", "/containers/web/json", FOUND)
    daemon.on("GET", "/images/sha256:1/json", {"Config": IMAGE})
    done = teu("generate", "unit", "web")
    assert done.code == 0
    assert done.out[done.out.index("[Container]") :] == EXPECTED
    (tmp_path / "web.container").write_text(done.out)
    found, problems = files.load((str(tmp_path),))
    unit = translate.translate(translate.House(found), found["web.container"])
    assert not problems and not found["web.container"].problems
    assert wrong_options(unit.command) == ("", "")
    assert unit.command[-3:] == ["sh", "-c", "echo $$HOME 100%%; sleep 1"]


def test_a_container_whose_image_is_gone_tells_all() -> None:
    text = written({**FOUND, "HostConfig": {"NetworkMode": "host"}, "NetworkSettings": {}}, {})
    assert "Environment=PATH=/bin" in text and "Network=host" in text and "[Install]" not in text


@pytest.mark.parametrize("verb", sorted(unit.TABLES))
def test_a_table_of_the_helper_names_each_option_once(verb: str) -> None:
    """They are put together of `teu`'s own and of further ones: the later of two would be the only one."""
    names = [flag.name for flag in parse_table(unit.TABLES[verb])]
    assert sorted(set(names)) == sorted(names)
