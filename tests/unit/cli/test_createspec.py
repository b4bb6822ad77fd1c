# SPDX-License-Identifier: Apache-2.0
"""The options of `run` as the body of a create request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from teu.cli import createspec, runflags
from teu.cli.options import parse, parse_table

FLAGS = parse_table(runflags.FLAGS)


def body(*argv: str) -> dict[str, Any]:
    options, operands = parse(FLAGS, [*argv, "image", "cmd", "-x"], interspersed=False)
    return createspec.build(options, operands[0], operands[1:])


def host(*argv: str) -> dict[str, Any]:
    found: dict[str, Any] = body(*argv)["HostConfig"]
    return found


def test_plain() -> None:
    found = body()
    assert (found["Image"], found["Cmd"]) == ("image", ["cmd", "-x"])
    assert (found["AttachStdin"], found["AttachStdout"], found["AttachStderr"]) == (False, True, True)
    assert found["HostConfig"]["NetworkMode"] == "default"
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert "Entrypoint" not in found


def test_streams() -> None:
    found = body("-it")
    assert found["OpenStdin"] and found["StdinOnce"] and found["Tty"]
    found = body("-a", "STDOUT", "-i")
    assert (found["AttachStdin"], found["AttachStdout"], found["AttachStderr"]) == (True, True, False)


@pytest.mark.parametrize(
    ("specs", "bindings"),
    [
        (["80"], {"80/tcp": [("", "")]}),
        (["8080:80"], {"80/tcp": [("", "8080")]}),
        (["127.0.0.1:8080:80/udp"], {"80/udp": [("127.0.0.1", "8080")]}),
        (["127.0.0.1::80"], {"80/tcp": [("127.0.0.1", "")]}),
        (["[::1]:8080:80"], {"80/tcp": [("::1", "8080")]}),
        (["8080-8081:80-81"], {"80/tcp": [("", "8080")], "81/tcp": [("", "8081")]}),
        (["8000-9000:80"], {"80/tcp": [("", "8000-9000")]}),
        (["1:80", "2:80"], {"80/tcp": [("", "1"), ("", "2")]}),
        (["published=81,target=80,protocol=udp"], {"80/udp": [("", "81")]}),
    ],
)
def test_publish(specs: list[str], bindings: dict[str, list[tuple[str, str]]]) -> None:
    argv = [word for spec in specs for word in ("-p", spec)]
    found = body(*argv)
    shown = {
        port: [(entry["HostIp"], entry["HostPort"]) for entry in entries]
        for port, entries in found["HostConfig"]["PortBindings"].items()
    }
    assert shown == bindings
    assert set(found["ExposedPorts"]) == set(bindings)


def test_who_may_use_a_port() -> None:
    """In an option of the long form, which docker's programs give as an annotation."""
    found = host("-p", "published=8080,target=80,source=10.0.0.0/8,source=fd00::/8", "--annotation", "a=b")
    assert found["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    assert found["Annotations"] == {"io.teu.port-sources/80/tcp": "10.0.0.0/8,fd00::/8", "a": "b"}
    found = host("-p", "target=53-54,published=53-54,protocol=udp,source=192.0.2.7", "-p", "80:80")
    assert found["Annotations"] == {f"io.teu.port-sources/{port}/udp": "192.0.2.7" for port in (53, 54)}
    assert "Annotations" not in host("-p", "80:80")


def test_what_is_done_about_health() -> None:
    found = host("--health-on-failure", "kill", "--health-startup-cmd", "test -e /x", "--health-startup-retries", "0")
    assert found["Annotations"] == {
        "io.teu.health-on-failure": "kill",
        "io.teu.health-startup-cmd": "test -e /x",
        "io.teu.health-startup-retries": "0",
    }
    assert "Annotations" not in host()


def test_expose() -> None:
    assert set(body("--expose", "7000-7001/udp", "--expose", "5")["ExposedPorts"]) == {"7000/udp", "7001/udp", "5/tcp"}


def test_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = body("-v", "/anon", "-v", "vol:/v:ro", "-v", "./rel:/r", "--tmpfs", "/t:size=1m", "--tmpfs", "/u")
    assert found["Volumes"] == {"/anon": {}}
    assert found["HostConfig"]["Binds"] == ["vol:/v:ro", f"{tmp_path}/rel:/r"]
    assert found["HostConfig"]["Tmpfs"] == {"/t": "size=1m", "/u": ""}
    mounts = host(
        "--mount",
        "type=bind,src=/a,dst=/b,ro,bind-propagation=rslave",
        "--mount",
        "source=v,target=/w,volume-nocopy",
        "--mount",
        "type=tmpfs,target=/x,tmpfs-size=1m,tmpfs-mode=1770",
        "--mount",
        "type=image,src=app:1,target=/i,image-subpath=etc",
    )["Mounts"]
    assert mounts == [
        {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True, "BindOptions": {"Propagation": "rslave"}},
        {"Type": "volume", "Source": "v", "Target": "/w", "VolumeOptions": {"NoCopy": True}},
        {"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1770}},
        {"Type": "image", "Source": "app:1", "Target": "/i", "ImageOptions": {"Subpath": "etc"}},
    ]


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    file = tmp_path / "env"
    file.write_text("# no\nA=b c\n\nOURS\nNOT_SET\n")
    found = body("-e", "X=2", "-e", "OURS", "-e", "GONE", "--env-file", str(file))
    assert found["Env"] == ["A=b c", "OURS=1", "X=2", "OURS=1", "GONE"]


def test_limits() -> None:
    found = host(
        "-m",
        "64m",
        "--memory-swap",
        "-1",
        "--cpus",
        "1.5",
        "--pids-limit",
        "9",
        "--ulimit",
        "nofile=5:9",
        "--ulimit",
        "core=0",
        "--device",
        "/dev/null:/dev/x:r",
        "--device-read-bps",
        "/dev/sda:1mb",
        "--blkio-weight-device",
        "/dev/sda:100",
        "--oom-score-adj",
        "-5",
        "--shm-size",
        "1g",
    )
    assert (found["Memory"], found["MemorySwap"], found["NanoCpus"], found["PidsLimit"]) == (
        64 << 20,
        -1,
        15 * 10**8,
        9,
    )
    assert found["Ulimits"] == [
        {"Name": "core", "Hard": 0, "Soft": 0},
        {"Name": "nofile", "Hard": 9, "Soft": 5},
    ]
    assert found["Devices"] == [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}]
    assert found["BlkioDeviceReadBps"] == [{"Path": "/dev/sda", "Rate": 1 << 20}]
    assert found["BlkioWeightDevice"] == [{"Path": "/dev/sda", "Weight": 100}]
    assert (found["OomScoreAdj"], found["ShmSize"]) == (-5, 1 << 30)


def test_networks() -> None:
    found = body("--network", "n1", "--network-alias", "a", "--ip", "10.0.0.2", "--link", "x")
    assert found["HostConfig"]["NetworkMode"] == "n1"
    assert found["NetworkingConfig"]["EndpointsConfig"] == {
        "n1": {"Aliases": ["a"], "Links": ["x"], "IPAMConfig": {"IPv4Address": "10.0.0.2"}}
    }
    found = body("--network", "name=n1,alias=b,driver-opt=k=v", "--network", "n2")
    assert found["NetworkingConfig"]["EndpointsConfig"] == {
        "n1": {"Aliases": ["b"], "DriverOpts": {"k": "v"}},
        "n2": {},
    }
    assert body("--network", "host")["NetworkingConfig"]["EndpointsConfig"] == {}


def test_the_rest() -> None:
    found = body(
        "--entrypoint",
        "",
        "--hostname",
        "h",
        "-u",
        "1:2",
        "-w",
        "/w",
        "-l",
        "a=b",
        "-l",
        "c",
        "--stop-timeout",
        "0",
        "--health-cmd",
        "true",
        "--health-interval",
        "5s",
        "--init",
        "--restart",
        "on-failure:3",
        "--log-opt",
        "tag=x",
        "--security-opt",
        "no-new-privileges",
        "--security-opt",
        "systempaths=unconfined",
        "--add-host",
        "x:host-gateway",
        "--sysctl",
        "net.core.somaxconn=5",
        "--cap-add",
        "ALL",
        "--annotation",
        "k=v",
    )
    assert found["Entrypoint"] == [""]
    assert (found["Hostname"], found["User"], found["WorkingDir"]) == ("h", "1:2", "/w")
    assert found["Labels"] == {"a": "b", "c": ""}
    assert found["StopTimeout"] == 0
    assert found["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 5 * 10**9}
    config = found["HostConfig"]
    assert config["Init"] is True
    assert config["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert config["LogConfig"] == {"Type": "", "Config": {"tag": "x"}}
    assert (config["SecurityOpt"], config["MaskedPaths"]) == (["no-new-privileges"], [])
    assert config["ExtraHosts"] == ["x:host-gateway"]
    assert (config["Sysctls"], config["CapAdd"], config["Annotations"]) == (
        {"net.core.somaxconn": "5"},
        ["ALL"],
        {"k": "v"},
    )


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["-p", "x"], "Invalid containerPort: x"),
        (["-p", "1-3:1-2"], "Invalid ranges specified for container and host Ports: 1-2 and 1-3"),
        (["-p", "8_0:80"], "Invalid hostPort: 8_0"),
        (["-p", "+80:80"], "Invalid hostPort: +80"),
        (["-p", "80-:80"], "Invalid hostPort: 80-"),
        (["-p", "127.0.0.1:1:2:3"], "Invalid ip address 127.0.0.1:1: address 127.0.0.1:1:: too many colons in address"),
        (["-p", "localhost:1:2"], "Invalid ip address: localhost"),
        (
            ["--expose", "3-2"],
            "invalid range format for --expose: 3-2, error: Invalid range specified for the Port: 3-2",
        ),
        (
            ["--network", "name=n,gw-priority=x"],
            'invalid argument "name=n,gw-priority=x" for "--network" flag: invalid gw-priority (x): invalid syntax',
        ),
        (["--mount", "type=bind"], 'invalid argument "type=bind" for "--mount" flag: target is required'),
        (["-e", "=x"], 'invalid argument "=x" for "-e, --env" flag: invalid environment variable: =x'),
        (["--rm", "--restart", "always"], "conflicting options: cannot specify both --restart and --rm"),
        (["--pid", "x"], "--pid: invalid PID mode"),
        (["--ulimit", "x=1"], 'invalid argument "x=1" for "--ulimit" flag: invalid ulimit type: x'),
        (
            ["--network", "host", "--network", "n"],
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
        ),
        (["--network-alias", "a"], "network-scoped aliases are only supported for user-defined networks"),
        (["--no-healthcheck", "--health-cmd", "x"], "--no-healthcheck conflicts with --health-* options"),
        (["--env-file", "/nosuch"], "open /nosuch: no such file or directory"),
        (["--device", "x"], "x is not an absolute path"),
    ],
)
def test_refused(argv: list[str], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        body(*argv)
    assert str(caught.value) == text


def test_options_of_a_driver_with_commas() -> None:
    """Settings of an interface have commas between them, and are one field in quotes."""
    sysctls = "com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.a=1,net.ipv4.conf.IFNAME.b=2"
    value = f'name=n,"driver-opt={sysctls}",gw-priority=-3'
    endpoint = body("--network", value)["NetworkingConfig"]["EndpointsConfig"]["n"]
    key, _, text = sysctls.partition("=")
    assert endpoint == {"DriverOpts": {key: text}, "GwPriority": -3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"A=1\n =2\n", "no variable name on line '=2'"),
        (b"# a comment\nA B=1\n", "variable 'A B' contains whitespaces"),
        (b"A=1\nB=\xff\n", "invalid utf8 bytes at line 2"),
    ],
)
def test_a_file_of_variables_that_is_none(tmp_path: Path, text: bytes, says: str) -> None:
    file = tmp_path / "variables"
    file.write_bytes(text)
    with pytest.raises(ValueError) as caught:
        createspec.read_lines([str(file)], True)
    assert str(caught.value) == f"invalid env file ({file}): {says}"
