# SPDX-License-Identifier: Apache-2.0
"""From a container's record to config.json: it is one by the runtime's own grammar, and says what was asked."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import engine_parts as parts
import pytest

from teu.engine.core.errors import BadRequest, EngineError, NotFound
from teu.engine.core.fields import HOST_CONFIG
from teu.engine.engine import Engine
from teu.engine.networks.model import Attachment
from teu.engine.spec import build, devices, users
from teu.oci import runtime_spec
from teu.oci.defaults import PATH

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
GROUP = b"root:x:0:\nuser:x:1000:\naudio:x:29:user\n"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(users, "files", lambda *_: (PASSWD, GROUP))
    monkeypatch.setattr(runtime_spec, "_is_own_network", lambda _: False)  # the namespace of the test is none
    return parts.engine(tmp_path)


def made(engine: Engine, body: dict[str, Any] | None = None, name: str = "web", **host: Any) -> dict[str, Any]:
    """config.json of a container with these."""
    container = parts.container(engine, name, {"Hostname": "box", **(body or {})}, **host)
    build.check(engine, container)
    Path(container.directory).mkdir(parents=True)
    attachment = Attachment("/proc/1/ns/net", {"/etc/hosts": "/etc/hosts"})
    with contextlib.ExitStack() as sources:
        specification = build.build(engine, container, attachment, sources)
    runtime_spec.check(specification)
    return specification


def namespaces(specification: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: each.get("path", "") for each in specification["linux"]["namespaces"]}


def mounts(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["destination"]: each for each in specification["mounts"]}


def test_the_defaults_are_dockers(engine: Engine) -> None:
    found = made(engine)
    process = found["process"]
    assert process["args"] == ["sleep", "60"]
    assert process["env"] == [f"PATH={PATH}", "HOSTNAME=box", "HOME=/root"]
    assert (found["hostname"], process["cwd"], found["root"]["readonly"]) == ("box", "/", False)
    assert found["linux"]["maskedPaths"] == build.MASKED_PATHS
    assert "CAP_CHOWN" in process["capabilities"]["bounding"]
    assert "CAP_NET_ADMIN" not in process["capabilities"]["bounding"]
    assert found["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert found["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert {"/proc", "/dev", "/dev/pts", "/dev/shm", "/sys", "/etc/hosts"} <= set(mounts(found))
    assert namespaces(found)["network"] == "/proc/1/ns/net"
    assert {"pid", "mount", "uts", "ipc", "cgroup"} <= set(namespaces(found))


def test_a_user_of_the_image(engine: Engine) -> None:
    process = made(engine, {"User": "user"}, GroupAdd=["audio", "5"])["process"]
    assert process["user"] == {"uid": 1000, "gid": 1000, "umask": 0o22, "additionalGids": [1000, 29, 5]}
    assert process["capabilities"]["effective"] == []
    assert "HOME=/home/user" in process["env"]


def test_privileged(engine: Engine) -> None:
    found = made(engine, Privileged=True)
    assert found["linux"]["maskedPaths"] == found["linux"]["readonlyPaths"] == []
    assert "seccomp" not in found["linux"]
    assert found["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "CAP_SYS_ADMIN" in found["process"]["capabilities"]["bounding"]


def test_what_the_host_shares(engine: Engine) -> None:
    found = made(engine, PidMode="host", IpcMode="host", UTSMode="host", CgroupnsMode="host")
    assert not {"pid", "ipc", "uts", "cgroup"} & set(namespaces(found))
    assert "hostname" not in found


def test_limits_and_what_is_told_the_shim(engine: Engine) -> None:
    body = {"StopSignal": "SIGUSR1", "StopTimeout": 7}
    found = made(engine, body, PidsLimit=9, Ulimits=[{"Name": "nofile", "Soft": 5, "Hard": 6}], OomScoreAdj=3)
    assert found["linux"]["resources"]["pids"] == {"limit": 9}
    assert found["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]
    assert found["annotations"][build.STOP_SIGNAL_ANNOTATION] == "10"
    assert found["annotations"][build.STOP_TIMEOUT_ANNOTATION] == "7"
    assert found["annotations"][build.NAME_ANNOTATION] == "web"


def test_devices_are_nodes_and_rules(engine: Engine) -> None:
    device = {"PathOnHost": "/dev/null", "PathInContainer": "/dev/nothing", "CgroupPermissions": "r"}
    found = made(engine, Devices=[device], DeviceCgroupRules=["c 10:* rw"])
    (node,) = found["linux"]["devices"]
    assert (node["path"], node["major"], node["minor"]) == ("/dev/nothing", 1, 3)
    rules = found["linux"]["resources"]["devices"]
    assert {"allow": True, "access": "r", "type": "c", "major": 1, "minor": 3} in rules
    assert {"allow": True, "access": "rw", "type": "c", "major": 10} in rules
    for bad in ({"PathOnHost": ""}, {"PathOnHost": "dev/null"}, {**device, "CgroupPermissions": "x"}):
        with pytest.raises(BadRequest, match=r"HostConfig.Devices\[0\]"):
            devices.check(HOST_CONFIG.read({"Devices": [bad]}))
    with pytest.raises(BadRequest, match="not a device node"):
        made(engine, name="other", Devices=[{"PathOnHost": "/etc/passwd"}])


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ({"Sysctls": {"vm.overcommit_memory": "1"}}, BadRequest),
        ({"Sysctls": {"net.ipv4.ip_forward": "1"}, "NetworkMode": "host"}, BadRequest),
        ({"PidMode": "container:nobody"}, NotFound),
        ({"CapAdd": ["FLY"]}, BadRequest),
        ({"SecurityOpt": ["what=ever"]}, BadRequest),
        ({"DeviceCgroupRules": ["everything"]}, BadRequest),
    ],
)
def test_what_is_refused_at_create(engine: Engine, host: dict[str, Any], error: type[EngineError]) -> None:
    with pytest.raises(error):
        build.check(engine, parts.container(engine, **host))
