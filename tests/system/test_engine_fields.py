# SPDX-License-Identifier: Apache-2.0
"""The table of what clients may say (teu/engine/core/fields.py) against what happens: every field and parameter is sent
to teud, most to Debian's dockerd beside it as well. None is taken in silence and does nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import docker_words
import engine
import peers
import pytest
import whole

from teu.engine.core import fields, kinds
from teu.engine.core.kinds import MEANINGLESS, REFUSED, USED

pytestmark = [pytest.mark.needs("docker", "dockerd", "trixie", "namespace"), pytest.mark.timeout(300)]

Path = tuple[str | int, ...]


def ask(path: str, method: str, target: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(100)
    connection.sock.connect(path)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    version = "1.48" if path == engine.SOCKET else "1.45"  # the first that has all fields of create, and docker 26's
    connection.request(method, f"/v{version}{target}", data, {"Content-Type": "application/json"} if data else {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.getheader("Content-Type", "").startswith("application/json") and content.count(b"\n") < 2:
        return answer.status, json.loads(content or b"null")
    return answer.status, content


class Peers(NamedTuple):
    ours: str
    theirs: str


@pytest.fixture(scope="module")
def both() -> Iterator[Peers]:
    engine.need_busybox()
    whole.remove_everything()
    with peers.dockerd(network=True) as daemon:
        daemon.load_busybox()
        pair = Peers(engine.SOCKET, str(daemon.socket))
        for path in pair:
            body = {"Image": "busybox", "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "none"}}
            assert ask(path, "POST", "/containers/create?name=taken", body)[0] == 201
            assert ask(path, "POST", "/containers/taken/start")[0] == 204
        yield pair
        for path in pair:
            ask(path, "DELETE", "/containers/taken?force=1")
    whole.eventually("the host is clean at the end", lambda: not whole.leftovers(), timeout=30)


# ---- types, as deep as they go -----------------------------------------------------------------------------

NO_NETWORK = {"HostConfig": {"NetworkMode": "none"}}
BODIES: dict[str, tuple[str, kinds.Shape[Any], dict[str, Any]]] = {
    "create": ("/containers/create", fields.CONTAINER, {"Image": "busybox", **NO_NETWORK}),
    "update": ("/containers/taken/update", fields.UPDATE, {}),
    "exec": ("/containers/taken/exec", fields.EXEC, {"Cmd": ["true"]}),
    "start of an exec": ("/exec/none/start", fields.EXEC_START, {}),
    "commit": ("/commit?container=none", fields.CONFIG, {}),
    "network": ("/networks/create", fields.NETWORK, {"Name": "typed"}),
    "connect": ("/networks/none/connect", fields.CONNECT, {"Container": "none"}),
    "disconnect": ("/networks/none/disconnect", fields.DISCONNECT, {"Container": "none"}),
    "volume": ("/volumes/create", fields.VOLUME, {"Name": "typed"}),
}
# What docker 26 has no field for, or has with another type, or does not look into.
NOT_THEIRS = (
    "Runtime",
    "GwPriority",
    "EnableIPv4",
    "TmpfsOptions.Options",
    "ImageOptions",
    "ClusterVolumeSpec",
    "NetworkingConfig.EndpointsConfig.key.DNSNames",
)


def places(kind: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every place of a value in a body, and its type."""
    if isinstance(kind, kinds.Shape):
        for name, field in kind.fields.items():
            yield (*path, name), field.kind
            yield from places(field.kind, (*path, name))
    elif isinstance(kind, kinds.ListOf):
        yield (*path, 0), kind.kind
        yield from places(kind.kind, (*path, 0))
    elif isinstance(kind, kinds.MapOf):
        yield (*path, "key"), kind.kind
        yield from places(kind.kind, (*path, "key"))


def body_with(base: dict[str, Any], path: Path, value: object) -> dict[str, Any]:
    """The body with this value at this place."""
    for step in reversed(path):
        if step == "Mounts" and isinstance(value, list) and value and isinstance(value[0], dict):
            value = [{"Type": "tmpfs", "Target": "/there", **value[0]}]
        value = [value] if isinstance(step, int) else {step: value}
    assert isinstance(value, dict)
    result = {**base, **value}
    if isinstance(value.get("HostConfig"), dict):
        result["HostConfig"] = {**base["HostConfig"], **value["HostConfig"]}
    return result


def name_of(path: Path) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text[1:]


def wrong_for(kind: object) -> list[object]:
    """Values that are of no such type."""
    if isinstance(kind, kinds.Whole):
        return ["5", 1.5, True, kind.high + 1, kind.low - 1]
    if isinstance(kind, kinds.Flag):
        return ["true", 0]
    return [5] if not isinstance(kind, kinds.Shape) else ["text", []]


@pytest.mark.parametrize("name", BODIES)
def test_a_wrong_type_is_told_by_its_place(both: Peers, name: str) -> None:
    target, kind, base = BODIES[name]
    found = []
    for path, inner in places(kind):
        for value in wrong_for(inner):
            body = body_with(base, path, value)
            status, answer = ask(both.ours, "POST", target, body)
            if status != 400 or name_of(path) not in answer["message"]:
                found.append((body, status, answer))
            if not any(known in name_of(path) for known in NOT_THEIRS):
                theirs, said = ask(both.theirs, "POST", target, body)
                if theirs != 400:
                    found.append((body, "dockerd", theirs, said))
    assert not found


def test_credentials_of_a_wrong_type(both: Peers) -> None:
    for path, _ in places(fields.LOGIN):
        status, answer = ask(both.ours, "POST", "/auth", body_with({}, path, 5))
        assert status == 400 and name_of(path) in answer["message"]
    for address in ("..", "a b", "x" * 70, "[", "host:port"):
        assert ask(both.ours, "POST", "/auth", {"serveraddress": address})[0] == 400, address


# ---- one after the other -----------------------------------------------------------------------------------


def standing(kind: kinds.Shape[Any], path: Path = ()) -> Iterator[tuple[Path, kinds.Field]]:
    """The fields at the ends: those without fields of their own."""
    for name, field in kind.fields.items():
        inner = field.kind
        here: Path = (*path, name)
        while isinstance(inner, (kinds.ListOf, kinds.MapOf)):
            here = (*here, 0 if isinstance(inner, kinds.ListOf) else "key")
            inner = inner.kind
        if isinstance(inner, kinds.Shape) and field.standing == USED:
            yield from standing(inner, here)
        else:
            yield (*path, name), field


def some(kind: object) -> object:
    """A value of this type that says something."""
    if isinstance(kind, kinds.Shape):
        return {name: some(field.kind) for name, field in kind.fields.items()}
    if isinstance(kind, kinds.ListOf):
        return [some(kind.kind)]
    if isinstance(kind, kinds.MapOf):
        return {"key": some(kind.kind)}
    if isinstance(kind, (kinds.Nothing, kinds.Presence)):
        return {}
    return True if isinstance(kind, kinds.Flag) else 7 if isinstance(kind, kinds.Whole) else "something"


# (ours, docker's): docker takes these in silence, and nothing comes of them.
MORE_HONEST = {
    "HostConfig.Cgroup": (400, 201),
    "HostConfig.UsernsMode": (400, 201),
    "CgroupParent": (400, 400),
    "Devices": (400, 200),
    "DeviceCgroupRules": (400, 200),
    "DeviceRequests": (400, 200),
    "Ulimits": (400, 200),
    "CpuRealtimePeriod": (400, 200),
    "CpuRealtimeRuntime": (400, 200),
}
# Mistakes of a client that docker 26 takes for its own; docker 28 does not.
MISTAKES_OF_26 = {
    f"HostConfig.{name}": (400, 500)
    for name in ("CpuRealtimePeriod", "CpuRealtimeRuntime", "IOMaximumIOps", "IOMaximumBandwidth", "Isolation")
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_refused_is_refused_as_the_table_says(both: Peers, name: str) -> None:
    target, kind, base = BODIES[name]
    for path, field in standing(kind):
        if field.standing != REFUSED:
            continue
        body = body_with(base, path, some(field.kind))
        status, answer = ask(both.ours, "POST", target, body)
        assert answer["message"] == f"{name_of(path)}: {field.says}"
        theirs, said = ask(both.theirs, "POST", target, body)
        otherwise = {**MORE_HONEST, **(MISTAKES_OF_26 if docker_words.older() else {})}
        assert (status, theirs) == otherwise.get(name_of(path), (field.status, field.status)), (body, said)


@pytest.mark.parametrize("name", ["create", "update", "exec"])
def test_what_is_meaningless_is_taken(both: Peers, name: str) -> None:
    target, kind, base = BODIES[name]
    for path, field in standing(kind):
        if field.standing != MEANINGLESS or "NetworkingConfig" in path:
            continue
        for daemon in both:
            status, answer = ask(daemon, "POST", target, body_with(base, path, some(field.kind)))
            assert status in (200, 201), (daemon, path, answer)
            if "CpuPercent" in path and name == "create":
                assert answer["Warnings"]


CREATED: dict[str, object] = {
    "Hostname": "there",
    "Domainname": "example.org",
    "User": "1000",
    "AttachStdin": True,
    "AttachStdout": True,
    "AttachStderr": True,
    "ExposedPorts": {"80/tcp": {}},
    "Tty": True,
    "OpenStdin": True,
    "StdinOnce": True,
    "Env": ["A=1"],
    "Cmd": "word",
    "Healthcheck.Test": ["CMD", "true"],
    "Healthcheck.Interval": 10**9,
    "Healthcheck.Timeout": 10**9,
    "Healthcheck.StartPeriod": 10**9,
    "Healthcheck.StartInterval": 10**9,
    "Healthcheck.Retries": 3,
    "Image": "busybox",
    "Volumes": {"/vol": {}},
    "WorkingDir": "/tmp//../tmp/",
    "Entrypoint": "word",
    "NetworkDisabled": True,
    "MacAddress": None,
    "OnBuild": ["RUN true"],
    "Labels": {"a": "b"},
    "StopSignal": "SIGINT",
    "StopTimeout": 7,
    "Shell": ["/bin/ash", "-c"],
    "HostConfig.Binds": ["/tmp:/there:ro"],
    "HostConfig.LogConfig.Type": "json-file",
    "HostConfig.LogConfig.Config": None,
    "HostConfig.NetworkMode": "host",
    "HostConfig.PortBindings.key.0.HostIp": None,
    "HostConfig.PortBindings.key.0.HostPort": None,
    "HostConfig.RestartPolicy.Name": "unless-stopped",
    "HostConfig.RestartPolicy.MaximumRetryCount": None,
    "HostConfig.AutoRemove": True,
    "HostConfig.VolumeDriver": "local",
    "HostConfig.VolumesFrom": ["taken"],
    "HostConfig.ConsoleSize": [24, 80],
    "HostConfig.Annotations": {"a": "b"},
    "HostConfig.CapAdd": "CAP_SYS_NICE",
    "HostConfig.CapDrop": ["CAP_MKNOD"],
    "HostConfig.CgroupnsMode": "host",
    "HostConfig.Dns": ["192.0.2.1"],
    "HostConfig.DnsOptions": ["ndots:2"],
    "HostConfig.DnsSearch": ["example.org"],
    "HostConfig.ExtraHosts": ["there:192.0.2.1"],
    "HostConfig.GroupAdd": ["7"],
    "HostConfig.IpcMode": "none",
    "HostConfig.Links": None,
    "HostConfig.OomScoreAdj": 7,
    "HostConfig.PidMode": "host",
    "HostConfig.Privileged": True,
    "HostConfig.PublishAllPorts": True,
    "HostConfig.ReadonlyRootfs": True,
    "HostConfig.SecurityOpt": ["no-new-privileges"],
    "HostConfig.StorageOpt": None,
    "HostConfig.Tmpfs": {"/there": "size=1m"},
    "HostConfig.UTSMode": "host",
    "HostConfig.ShmSize": 1 << 20,
    "HostConfig.Sysctls": {"kernel.msgmax": "70000"},
    "HostConfig.Runtime": None,
    "HostConfig.MaskedPaths": ["/proc/kcore"],
    "HostConfig.ReadonlyPaths": ["/proc/bus"],
    "HostConfig.Init": False,
    "HostConfig.CgroupParent": "some.slice",
    "HostConfig.Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}],
    "HostConfig.DeviceCgroupRules": ["c 1:3 rwm"],
    "HostConfig.DeviceRequests": None,
    "HostConfig.Ulimits": [{"Name": "nofile", "Soft": 64, "Hard": 64}],
    "Runtime": None,
    "HostConfig.OomKillDisable": False,
    "HostConfig.Mounts": [
        {
            "Type": "bind",
            "Source": "/tmp",
            "Target": "/bound",
            "ReadOnly": True,
            "BindOptions": {
                "Propagation": "rprivate",
                "NonRecursive": True,
                "CreateMountpoint": True,
                "ReadOnlyNonRecursive": True,
            },
        },
        {
            "Type": "volume",
            "Source": "field-volume",
            "Target": "/vol",
            "VolumeOptions": {
                "NoCopy": True,
                "Labels": {"a": "b"},
                "DriverConfig": {"Name": "local"},
                "Subpath": "sub",
            },
        },
        {"Type": "tmpfs", "Target": "/tmpfs", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o700}},
    ],
}
# Limits are compared by test_engine_limits below; None above: has a test of its own, or belongs to networks.
LIMITS = {
    "CpuShares": 512,
    "Memory": 64 << 20,
    "MemoryReservation": 32 << 20,
    "PidsLimit": 64,
    "BlkioWeight": 300,
    "CpuPeriod": 50_000,
    "CpuQuota": 50_000,
    "CpusetCpus": "0",
    "CpusetMems": "0",
    "MemorySwappiness": 10,
    "BlkioWeightDevice": [{"Path": "/dev/null", "Weight": 300}],
    "BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 1 << 20}],
    "BlkioDeviceWriteBps": [{"Path": "/dev/null", "Rate": 1 << 20}],
    "BlkioDeviceReadIOps": [{"Path": "/dev/null", "Rate": 1 << 20}],
    "BlkioDeviceWriteIOps": [{"Path": "/dev/null", "Rate": 1 << 20}],
    "OomKillDisable": True,
}
LIMITS_MORE = {"NanoCpus", "MemorySwap"}


def test_every_field_of_a_container_is_in_these_lists() -> None:
    """Whoever adds a field says what it does, and adds a request that shows it."""
    shown = {*CREATED, *(f"HostConfig.{name}" for name in (*LIMITS, *LIMITS_MORE))}
    for path, field in standing(fields.CONTAINER):
        name = name_of(path).replace("[0]", ".0")
        if field.standing == USED and "NetworkingConfig" not in name:
            assert any(name == known or name.startswith(f"{known}.") for known in shown), name


def at(found: Any, name: str) -> Any:
    for step in name.split("."):
        found = found.get(step) if isinstance(found, dict) else found
    return found


@contextlib.contextmanager
def container(daemon: str, body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """What is shown of a new container, and the warnings."""
    status, answer = ask(daemon, "POST", "/containers/create", body)
    assert status == 201, (daemon, body, answer)
    try:
        yield ask(daemon, "GET", f"/containers/{answer['Id']}/json")[1], answer["Warnings"]
    finally:
        ask(daemon, "DELETE", f"/containers/{answer['Id']}?force=1&v=1")


def test_every_field_of_a_container_is_shown_as_by_dockerd(both: Peers) -> None:
    for name, value in CREATED.items():
        if value is None:
            continue
        path = tuple(0 if step == "0" else step for step in name.split("."))
        shown = []
        for daemon in both:
            body = body_with({"Image": "busybox", "Cmd": ["true"], **NO_NETWORK}, path, value)
            with container(daemon, body) as (found, warnings):
                place = name if name.startswith("HostConfig.") else f"Config.{name}"
                shown.append((at(found, place), warnings))
        assert shown[0] == shown[1], name
    for daemon in both:
        ask(daemon, "DELETE", "/volumes/field-volume")


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_cannot_be_held_is_discarded_with_a_warning(both: Peers, name: str) -> None:
    """This lab has no cgroup controllers."""
    shown = []
    for daemon in both:
        body = body_with({"Image": "busybox", "Cmd": ["true"], **NO_NETWORK}, ("HostConfig", name), LIMITS[name])
        with container(daemon, body) as (found, warnings):
            shown.append((len(warnings), found["HostConfig"][name], found["HostConfig"]["MemorySwap"]))
            if daemon == both.ours:
                assert ask(daemon, "POST", f"/containers/{found['Id']}/start")[0] == 204
    assert shown[0] == shown[1]
    assert shown[0][0] == 1


def test_a_number_of_cpus_that_cannot_be_held_is_refused(both: Peers) -> None:
    body = {"Image": "busybox", "HostConfig": {"NetworkMode": "none", "NanoCpus": 10**9}}
    assert [ask(daemon, "POST", "/containers/create", body)[0] for daemon in both] == [400, 400]


# ---- keys, texts and numbers as Go reads them --------------------------------------------------------------


def test_keys_in_any_case(both: Peers) -> None:
    for daemon in both:
        body = {
            "IMAGE": "busybox",
            "cmd": ["true"],
            "hostConfig": {
                "networkmode": "none",
                "MOUNTS": [{"type": "tmpfs", "TARGET": "/x", "tmpfsoptions": {"sizebytes": 4096}}],
            },
        }
        with container(daemon, body) as (found, _):
            assert found["HostConfig"]["NetworkMode"] == "none"
            assert found["HostConfig"]["Mounts"][0]["TmpfsOptions"]["SizeBytes"] == 4096
        assert ask(daemon, "POST", "/containers/create", {"Image": "busybox", "image": "no-such"})[0] == 404
        status, answer = ask(daemon, "POST", "/containers/taken/exec", {"cmd": ["true"], "detachKeys": "a,b"})
        assert status == 201
        assert ask(daemon, "GET", f"/exec/{answer['Id']}/json")[1]["DetachKeys"] == "YWI="
        assert ask(daemon, "POST", "/volumes/create", {"name": "any-case"})[1]["Name"] == "any-case"
        assert ask(daemon, "DELETE", "/volumes/any-case")[0] == 204
        status, answer = ask(daemon, "POST", "/networks/create", {"name": "any-case"})
        assert status == 201, answer
        assert ask(daemon, "DELETE", "/networks/any-case")[0] == 204


BUSYBOX = b'{"Image":"busybox","HostConfig":{"NetworkMode":"none"},'
TEXTS = {
    "no number": BUSYBOX + b'"StopTimeout":NaN}',
    "an infinite number": BUSYBOX + b'"StopTimeout":-Infinity}',
    "a number too large": BUSYBOX + b'"StopTimeout":1e400}',
    "a number of 5,000 digits": BUSYBOX + b'"StopTimeout":' + b"9" * 5000 + b"}",
    "a mark of byte order": b"\xef\xbb\xbf" + BUSYBOX + b'"Tty":false}',
    "nested for ever": b"[" * 20000,
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_go_does_not_take(both: Peers, case: str) -> None:
    assert [ask(daemon, "POST", "/containers/create", TEXTS[case])[0] for daemon in both] == [400, 400]


def test_halves_of_surrogates_are_replaced(both: Peers) -> None:
    for daemon in both:
        status, answer = ask(daemon, "POST", "/containers/create", BUSYBOX + b'"Labels":{"a":"\\ud800","\xff":"b"}}')
        assert status == 201, answer
        found = ask(daemon, "GET", f"/containers/{answer['Id']}/json")[1]
        assert found["Config"]["Labels"] == {"a": "�", "�": "b"}
        assert ask(daemon, "DELETE", f"/containers/{answer['Id']}")[0] == 204


@pytest.mark.parametrize(
    "body",
    [
        {"Cmd": ["a\0b"]},
        {"Env": ["A=\0"]},
        {"Hostname": "a\0b"},
        {"WorkingDir": "/a\0b"},
        {"HostConfig": {"Binds": ["/tmp:/a\0b"]}},
        {"HostConfig": {"Devices": [{"PathOnHost": "/dev/a\0b"}]}},
        {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/a\0b", "Target": "/x"}]}},
    ],
)
def test_what_the_kernel_could_not_take_is_refused_at_once(both: Peers, body: dict[str, Any]) -> None:
    status, answer = ask(both.ours, "POST", "/containers/create", {"Image": "busybox", **body})
    assert status == 400 and "NUL" in answer["message"]
    assert ask(both.ours, "GET", "/containers/taken/archive?path=/a%00b")[0] == 400


# ---- parameters --------------------------------------------------------------------------------------------

PLACES = {"{name}": "taken", "{identity}": "none", "{name:path}": "busybox"}
# Wrong ones of these kinds are refused; a flag is true unless it is one of a few words, and a text may be anything.
WRONG = {"number": "x", "filters": "nope", "moment": "yesterday"}
NEWER = {"reserved-space", "max-used-space", "min-free-space"}  # of API 1.48: a peer that is older takes no notice


def test_parameters(both: Peers) -> None:
    for (method, pattern), known in fields.PARAMETERS.items():
        target = pattern
        for place, filling in PLACES.items():
            target = target.replace(place, filling)
        for name, parameter in known.items():
            if parameter.standing == REFUSED:
                status, answer = ask(both.ours, method, f"{target}?{name}=1")
                assert (status, answer["message"]) == (parameter.status, f"{name}: {parameter.says}")
            elif parameter.standing == MEANINGLESS and method == "GET":
                assert ask(both.ours, method, f"{target}?{name}=1")[0] == ask(both.ours, method, target)[0]
            elif parameter.kind in WRONG:
                others = "stdout=1&h=1&w=1&" if name not in ("h", "w") else ""
                status, answer = ask(both.ours, method, f"{target}?{others}{name}={quote(WRONG[parameter.kind])}")
                assert status == 400 and answer["message"], (method, target, name, status, answer)
                theirs, said = ask(both.theirs, method, f"{target}?{others}{name}={quote(WRONG[parameter.kind])}")
                assert theirs in (400, 500) or name in NEWER, (method, target, name, theirs, said)


def test_filters_and_columns(both: Peers) -> None:
    for text, status in (('{"label":{"a":5}}', 400), ('{"label":null}', 200), ('{"label":{"a":true}}', 200)):
        for daemon in both:
            assert ask(daemon, "GET", f"/containers/json?filters={quote(text)}")[0] == status
    for daemon in both:
        status, said = ask(daemon, "GET", "/containers/taken/top?ps_args=" + quote("-eo pid,user=PID"))
        assert status == 500 and "not allowed" in said["message"]


def test_networks_of_another_scope(both: Peers) -> None:
    for scope, status in (("local", 200), ("swarm", 404)):
        for daemon in both:
            assert ask(daemon, "GET", f"/networks/bridge?scope={scope}")[0] == status


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/events?since=" + "9" * 5000),
        ("GET", "/events?until=" + "9" * 5000),
        ("POST", "/containers/taken/restart?signal=" + "9" * 5000),
        ("GET", "/containers/json?limit=" + "9" * 5000),
        ("POST", "/containers/taken/resize?h=1&w=" + "9" * 5000),
        ("GET", "/containers/json?filters=" + quote(json.dumps({"exited": ["9" * 5000]}))),
        ("GET", "/containers/json?filters=" + quote(json.dumps({"exited": ["--1"]}))),
        ("GET", "/containers/json?all=1&filters=" + quote(json.dumps({"publish": ["²"]}))),
        ("GET", "/images/json?filters=" + quote(json.dumps({"until": ["9" * 5000]}))),
        ("POST", "/commit?container=taken&changes=EXPOSE+" + "9" * 5000),
    ],
    ids=range(10),
)
def test_numbers_of_many_digits(both: Peers, method: str, target: str) -> None:
    status, answer = ask(both.ours, method, target)
    assert status == 400 and "internal" not in answer["message"]


def test_users_and_log_sizes_of_many_digits(both: Peers) -> None:
    body: dict[str, Any] = {"Image": "busybox", "Cmd": ["true"], "User": "9" * 5000, **NO_NETWORK}
    status, answer = ask(both.ours, "POST", "/containers/create", body)
    assert status == 201
    status, said = ask(both.ours, "POST", f"/containers/{answer['Id']}/start")
    assert status == 400 and "range" in said["message"]
    ask(both.ours, "DELETE", f"/containers/{answer['Id']}")
    for option in ({"max-size": "9" * 400 + "t"}, {"max-file": "9" * 5000}, {"max-file": "²"}):
        host = {"NetworkMode": "none", "LogConfig": {"Type": "json-file", "Config": option}}
        assert ask(both.ours, "POST", "/containers/create", {"Image": "busybox", "HostConfig": host})[0] == 400
    assert ask(both.ours, "GET", "/containers/taken/logs?stdout=1&tail=" + "9" * 5000)[0] == 200
