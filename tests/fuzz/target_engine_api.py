# SPDX-License-Identifier: Apache-2.0
"""The Engine API by its own table: every route with its parameters and its body, on objects that are there, and one
or several members of it changed. Each answer must be one, in docker's form, in time, in words for a person."""

from __future__ import annotations

import io
import json
import random
import tarfile
import threading
import time
from typing import Any
from urllib.parse import quote, quote_from_bytes

from fuzz import answers, mutate
from fuzz.frame import Run, target

# Answers that may go on for ever.
STREAMS = {
    "/events",
    "/containers/{name}/logs",
    "/containers/{name}/stats",
    "/containers/{name}/attach",
    "/containers/{name}/wait",
    "/exec/{identity}/start",
}
# How often a route is asked, where it is not once.
WEIGHTS = {
    ("POST", "/containers/create"): 14,
    ("POST", "/containers/{name}/update"): 3,
    ("POST", "/containers/{name}/exec"): 4,
    ("POST", "/networks/create"): 6,
    ("POST", "/networks/{name}/connect"): 4,
    ("POST", "/volumes/create"): 3,
    ("POST", "/commit"): 2,
    ("PUT", "/containers/{name}/archive"): 2,
    ("POST", "/images/create"): 2,
    ("GET", "/containers/json"): 2,
    ("GET", "/events"): 2,
}

CREATE: dict[str, Any] = {
    "Hostname": "h",
    "Domainname": "d.example",
    "User": "0:0",
    "AttachStdout": True,
    "ExposedPorts": {"80/tcp": {}},
    "Env": ["A=b", "C"],
    "Cmd": ["true"],
    "Image": "busybox",
    "Volumes": {"/data": {}},
    "WorkingDir": "/tmp",
    "Labels": {"k": "v"},
    "StopSignal": "SIGTERM",
    "StopTimeout": 1,
    "MacAddress": "02:42:0a:00:00:05",
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**9, "Timeout": 10**9, "Retries": 1},
    "HostConfig": {
        "Binds": ["fuzz-vol:/v:ro"],
        "NetworkMode": "none",
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1"}]},
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1},
        "CapAdd": ["NET_ADMIN"],
        "CapDrop": ["ALL"],
        "Dns": ["1.1.1.1"],
        "DnsOptions": ["ndots:1"],
        "DnsSearch": ["x"],
        "ExtraHosts": ["a:1.2.3.4"],
        "GroupAdd": ["1"],
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "CgroupnsMode": "private",
        "OomScoreAdj": 5,
        "Privileged": False,
        "ReadonlyRootfs": False,
        "SecurityOpt": ["no-new-privileges"],
        "Tmpfs": {"/t": "size=1m"},
        "ShmSize": 1 << 20,
        "Sysctls": {"net.ipv4.ip_forward": "1"},
        "Init": True,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
        "Mounts": [
            {"Type": "tmpfs", "Target": "/m", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 0o700}},
            {"Type": "volume", "Source": "fuzz-vol", "Target": "/n", "VolumeOptions": {"NoCopy": True}},
        ],
        "MaskedPaths": ["/proc/kcore"],
        "ReadonlyPaths": ["/proc/sys"],
        "Annotations": {"a": "b"},
        "Ulimits": [{"Name": "nofile", "Soft": 64, "Hard": 128}],
        "ConsoleSize": [24, 80],
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm"}],
        "DeviceCgroupRules": ["c 1:3 rwm"],
        "CgroupParent": "",
        "VolumesFrom": ["fuzz-idle:ro"],
    },
    "NetworkingConfig": {"EndpointsConfig": {"fuzz-net": {"Aliases": ["x"], "IPAMConfig": {}}}},
}
NETWORK = {
    "Name": "fuzz-made",
    "Driver": "bridge",
    "Internal": False,
    "EnableIPv6": False,
    "Labels": {"a": "b"},
    "Options": {"com.docker.network.bridge.name": "fz0", "com.docker.network.driver.mtu": "1400"},
    "IPAM": {
        "Driver": "default",
        "Config": [
            {
                "Subnet": "10.77.0.0/24",
                "IPRange": "10.77.0.128/25",
                "Gateway": "10.77.0.1",
                "AuxiliaryAddresses": {"a": "10.77.0.2"},
            }
        ],
    },
}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/containers/create"): CREATE,
    ("POST", "/containers/{name}/update"): {
        "CpuShares": 2,
        "Memory": 0,
        "PidsLimit": 10,
        "RestartPolicy": {"Name": "no"},
        "CpusetCpus": "0",
    },
    ("POST", "/containers/{name}/exec"): {
        "Cmd": ["true"],
        "User": "0",
        "Env": ["A=b"],
        "WorkingDir": "/",
        "AttachStdout": True,
        "DetachKeys": "ctrl-p",
        "Tty": False,
        "ConsoleSize": [24, 80],
        "Privileged": False,
    },
    ("POST", "/exec/{identity}/start"): {"Detach": False, "Tty": False, "ConsoleSize": [10, 10]},
    ("POST", "/networks/create"): NETWORK,
    ("POST", "/networks/{name}/connect"): {
        "Container": "fuzz-run",
        "EndpointConfig": {
            "IPAMConfig": {"IPv4Address": "172.18.0.9"},
            "Aliases": ["a"],
            "GwPriority": 1,
            "MacAddress": "02:42:00:00:00:01",
            "DriverOpts": {"a": "b"},
        },
    },
    ("POST", "/networks/{name}/disconnect"): {"Container": "fuzz-run", "Force": True},
    ("POST", "/volumes/create"): {
        "Name": "fuzz-made",
        "Driver": "local",
        "Labels": {"a": "b"},
        "DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"},
    },
    ("POST", "/commit"): {"Cmd": ["x"], "Env": ["A=b"], "Labels": {"a": "b"}, "ExposedPorts": {"1/udp": {}}},
    ("POST", "/auth"): {"username": "a", "password": "b", "serveraddress": "127.0.0.1:1"},
}
FILTERS = (
    "label",
    "label!",
    "id",
    "name",
    "status",
    "exited",
    "ancestor",
    "before",
    "since",
    "volume",
    "network",
    "health",
    "publish",
    "expose",
    "is-task",
    "dangling",
    "reference",
    "until",
    "driver",
    "type",
    "scope",
    "event",
    "container",
    "image",
    "daemon",
    "all",
    "none",
)
MOMENTS = (
    "0",
    "1",
    "1600000000.123456789",
    "2020-01-01",
    "2020-01-01T00:00:00Z",
    "5m",
    "now",
    "9" * 12,
    "-1",
    "1e400",
    "2020-13-45T99:99:99Z",
    "0001-01-01T00:00:00+99:99",
)
WORDS: dict[str, tuple[str, ...]] = {
    "ps_args": ("-ef", "aux", "-o pid", "-eo pid,comm"),
    "tail": ("1", "all", "0"),
    "condition": ("next-exit", "removed"),
    "path": ("/etc", "/etc/passwd", "/tmp", "/bin/sh", "/../../etc"),
    "signal": ("TERM", "9", "SIGKILL", "HUP"),
    "detachKeys": ("ctrl-p,ctrl-q", "a"),
    "platform": ("linux/amd64", "linux", "linux/arm64/v8"),
    "name": ("fuzz-new",),
    "container": ("fuzz-run", "fuzz-idle"),
    "repo": ("fuzz/made", "127.0.0.1:1/x"),
    "tag": ("latest", "t1"),
    "fromImage": ("127.0.0.1:1/x", "busybox"),
    "fromSrc": ("-", "http://127.0.0.1:1/x"),
    "changes": ("CMD a", "ENV A=b", 'CMD ["a"]', "EXPOSE 80", "LABEL a=b", "USER x"),
    "names": ("busybox",),
    "type": ("image", "container"),
    "scope": ("local",),
    "comment": ("c",),
    "author": ("a",),
    "message": ("m",),
}


def archive() -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/f", tarfile.REGTYPE), ("l", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, "d" if kind == tarfile.SYMTYPE else "", 0o755
            info.size = 5 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"hello"))
    return output.getvalue()


class Requests:
    """Draws requests."""

    def __init__(self, dice: random.Random) -> None:
        from teu.engine.api import router
        from teu.engine.core import fields, kinds

        router.load()
        self.dice = dice
        self.fields, self.types = fields, kinds
        self.routes = [pair for pair in router.served() for _ in range(WEIGHTS.get(pair, 1))]
        self.kinds = {
            ("POST", "/containers/create"): fields.CONTAINER,
            ("POST", "/containers/{name}/update"): fields.UPDATE,
            ("POST", "/containers/{name}/exec"): fields.EXEC,
            ("POST", "/exec/{identity}/start"): fields.EXEC_START,
            ("POST", "/networks/create"): fields.NETWORK,
            ("POST", "/networks/{name}/connect"): fields.CONNECT,
            ("POST", "/networks/{name}/disconnect"): fields.DISCONNECT,
            ("POST", "/volumes/create"): fields.VOLUME,
            ("POST", "/commit"): fields.CONFIG,
            ("POST", "/auth"): fields.LOGIN,
        }
        self.archive = archive()
        self.exec = "none"

    def sample(self, kind: Any, deep: int = 4) -> Any:
        """A value of a type of the table, hostile within it."""
        dice, kinds = self.dice, self.types
        if isinstance(kind, kinds.Shape):
            names = dice.sample(list(kind.fields), min(len(kind.fields), dice.choice((1, 1, 2, 3))))
            return {name: self.sample(kind.fields[name].kind, deep - 1) for name in names}
        if isinstance(kind, kinds.ListOf):
            return [self.sample(kind.kind, deep - 1) for _ in range(dice.choice((0, 1, 1, 2, 3)))]
        if isinstance(kind, kinds.MapOf):
            return {mutate.text(dice)[:60]: self.sample(kind.kind, deep - 1) for _ in range(dice.choice((0, 1, 1, 2)))}
        if isinstance(kind, kinds.Whole):
            return dice.choice((*mutate.NUMBERS, kind.low, kind.high))
        if isinstance(kind, kinds.Flag):
            return dice.random() < 0.5
        if isinstance(kind, kinds.Words):
            return [mutate.text(dice) for _ in range(dice.choice((0, 1, 2)))]
        if isinstance(kind, kinds.Size):
            return [dice.choice(mutate.NUMBERS) for _ in range(dice.choice((0, 1, 2, 3)))]
        if isinstance(kind, (kinds.Nothing, kinds.Presence)):
            return {}
        return mutate.text(dice)

    def body(self, pair: tuple[str, str]) -> bytes | None:
        dice = self.dice
        if pair == ("PUT", "/containers/{name}/archive"):
            return mutate.data(dice, self.archive) if dice.random() < 0.7 else self.archive
        if pair == ("POST", "/images/load"):
            return mutate.data(dice, self.archive)
        base = BODIES.get(pair)
        if base is None:
            return None if dice.random() < 0.9 else mutate.text(dice).encode("utf-8", "replace")
        value = dict(base)
        if pair[1] == "/containers/create":
            # All of it at once is refused for one thing or another: some of it.
            host = value.pop("HostConfig")
            names = dice.sample(list(value), dice.randrange(6))
            value = {"Image": "busybox", "Cmd": ["true"], **{name: value[name] for name in names}}
            names = dice.sample(list(host), dice.randrange(7))
            value["HostConfig"] = {"NetworkMode": "none", **{name: host[name] for name in names}}
        choice = dice.random()
        if choice < 0.35 and pair in self.kinds:
            for name, item in self.sample(self.kinds[pair]).items():
                if isinstance(item, dict) and isinstance(value.get(name), dict):
                    value[name] = {**value[name], **item}
                else:
                    value[name] = item
        elif choice < 0.92:
            value = mutate.json_value(dice, value)
        data = json.dumps(value).encode()
        return mutate.data(dice, data) if dice.random() < 0.06 else data

    def parameter(self, name: str, kind: str) -> str:
        dice = self.dice
        if dice.random() < 0.3:
            return mutate.text(dice)[:3000]
        if kind == "flag":
            return dice.choice(("0", "1", "true", "false", "", "None"))
        if kind == "number":
            return str(dice.choice((0, 1, 2, 24, *mutate.NUMBERS)))
        if kind == "moment":
            return dice.choice(MOMENTS)
        if kind == "filters":
            value = {dice.choice(FILTERS): [self.filter_value() for _ in range(dice.choice((0, 1, 1, 2)))]}
            return json.dumps(mutate.json_value(dice, value) if dice.random() < 0.4 else value)
        known = WORDS.get(name, ("x",))
        return dice.choice(known) if dice.random() < 0.6 else mutate.changed_text(dice, dice.choice(known))

    def filter_value(self) -> str:
        dice = self.dice
        return dice.choice(
            (
                "a=b",
                "fuzz-run",
                "running",
                "true",
                "1h",
                "2020-01-01",
                "80/tcp",
                "busybox",
                "local",
                "0",
                mutate.text(dice)[:300],
            )
        )

    def subject(self, pattern: str) -> str:
        dice = self.dice
        if dice.random() < 0.12:
            return mutate.text(dice)[:300]
        if pattern.startswith("/containers"):
            return dice.choice(("fuzz-run", "fuzz-run", "fuzz-tty", "fuzz-idle"))
        if pattern.startswith("/exec"):
            return self.exec
        if pattern.startswith("/networks"):
            return dice.choice(("fuzz-net", "fuzz-net", "bridge", "host", "none"))
        if pattern.startswith("/volumes"):
            return dice.choice(("fuzz-vol", "fuzz-no"))
        return dice.choice(("busybox", "busybox:latest", "127.0.0.1:1/a/b", "fuzz/made", "busybox@sha256:" + "0" * 64))

    def draw(self) -> tuple[tuple[str, str], str, bytes | None, dict[str, str]]:
        dice = self.dice
        method, pattern = pair = dice.choice(self.routes)
        path = pattern
        for name in ("{name:path}", "{name}", "{identity}"):
            if name in path:
                safe = "/:" if "path" in name else ":"
                path = path.replace(name, quote(self.subject(pattern).encode("utf-8", "surrogatepass"), safe=safe))
        given = []
        for name, parameter in self.fields.PARAMETERS.get(pair, {}).items():
            if dice.random() < 0.45 or name in ("name", "path", "fromImage", "container") and dice.random() < 0.8:
                value = self.parameter(name, parameter.kind).encode("utf-8", "surrogatepass")
                given.append(f"{name}={quote_from_bytes(value)}")
        version = dice.choice(("/v1.45",) * 8 + ("", "/v1.24", "/v1.41", "/v1.44", "/v1.99"))
        target = f"{version}{path}" + (f"?{'&'.join(given)}" if given else "")
        body = self.body(pair)
        headers = {"Content-Type": "application/json"} if body is not None or dice.random() < 0.1 else {}
        if pair[0] == "PUT" or pair[1] == "/images/load":
            headers["Content-Type"] = "application/x-tar"
        if pattern in ("/containers/{name}/attach", "/exec/{identity}/start") and dice.random() < 0.6:
            headers |= {"Connection": "Upgrade", "Upgrade": "tcp"}
        if dice.random() < 0.05:
            headers["X-Registry-Auth"] = mutate.text(dice)[:100].encode("ascii", "ignore").decode().translate(_NO_ENDS)
        return pair, target, body, headers


_NO_ENDS = {10: None, 13: None, 0: None}


@target("engine-api", "bodies and parameters of every route of the Engine API, mutated")
def fuzz(run: Run) -> None:
    requests = Requests(run.random)
    answers.warm()
    with run.watched(clean=answers.clean):
        requests.exec = answers.ensure()
        count = 0
        while run.going():
            pair, target_, body, headers = requests.draw()
            case = f"{pair[0]} {target_}\n{headers}\n{body!r}"
            run.trying(case)
            one(run, requests, pair, target_, body, headers, case)
            count += 1
            if pair[0] != "GET" and (count % 20 == 0 or pair[0] == "DELETE" or "prune" in pair[1]):
                requests.exec = answers.ensure()


def one(
    run: Run,
    requests: Requests,
    pair: tuple[str, str],
    target_: str,
    body: bytes | None,
    headers: dict[str, str],
    case: str,
) -> None:
    # A container that a signal does not end is stopped as slowly as it was asked for: another ends it then.
    rescue = threading.Timer(4, answers.end_all)
    rescue.start()
    try:
        answer = answers.ask(
            *(pair[0], target_, body, headers), stream=0.15 if pair[1] in STREAMS else 0.0, early=b"input\n"
        )
    except TimeoutError:
        run.finding(f"{pair[0]} {pair[1]}: no answer within {answers.BOUND:.0f} s", case)
        return
    finally:
        rescue.cancel()
    if fault := answers.wrong(answer):
        run.finding(f"{pair[0]} {pair[1]}: {fault}", case)
    if answer.status >= 300 or pair[0] != "POST":
        return
    try:
        made = json.loads(answer.body) if answer.body.startswith(b"{") else {}
    except ValueError:
        return
    follow(run, requests, pair[1], made, case)


def _something_died(since: float) -> bool:
    """Whether the process of a container has ended since then."""
    filters = quote(json.dumps({"event": ["die"]}))
    return bool(answers.ask("GET", f"/v1.45/events?since={since:.3f}&until={time.time():.3f}&filters={filters}").body)


def follow(run: Run, requests: Requests, pattern: str, made: dict[str, Any], case: str) -> None:
    """What was made is looked at and used, and goes away again."""
    steps: list[tuple[str, str]] = []
    if pattern == "/containers/create":
        name = made["Id"]
        steps = [("GET", f"/containers/{name}/json")]
        if run.random.random() < 0.5:
            steps += [("POST", f"/containers/{name}/start"), ("GET", f"/containers/{name}/json")]
        steps += [("GET", "/containers/json?all=1"), ("DELETE", f"/containers/{name}?force=1&v=1")]
    elif pattern == "/networks/create":
        steps = [("GET", f"/networks/{made['Id']}"), ("GET", "/networks"), ("DELETE", f"/networks/{made['Id']}")]
    elif pattern == "/volumes/create":
        name = quote(made["Name"], safe="")
        steps = [("GET", f"/volumes/{name}"), ("DELETE", f"/volumes/{name}")]
    elif pattern == "/containers/{name}/exec":
        steps = [
            ("GET", f"/exec/{made['Id']}/json"),
            ("POST", f"/exec/{made['Id']}/start"),
            ("GET", f"/exec/{made['Id']}/json"),
        ]
    elif pattern == "/commit":
        steps = [("GET", f"/images/{made['Id']}/json"), ("DELETE", f"/images/{made['Id']}?force=1")]
    began = time.time() - answers.BOUND
    for method, target_ in steps:
        try:
            answer = answers.ask(
                *(method, f"/v1.45{target_}", b"{}" if target_.startswith("/exec") and method == "POST" else None),
                *((answers.JSON,) if target_.startswith("/exec") and method == "POST" else ({},)),
                stream=0.15 if "/start" in target_ and target_.startswith("/exec") else 0.0,
            )
        except TimeoutError:
            run.finding(f"{method} after {pattern}: no answer within {answers.BOUND:.0f} s: {target_}", case)
            continue
        if fault := answers.wrong(answer):
            run.finding(f"{method} {target_} after {pattern}: {fault}", case)
        elif answer.status >= 400 and method in ("GET", "DELETE") and pattern != "/commit":
            if "/exec/" in target_ and _something_died(began):
                continue  # an exec goes with its container, and a rescue may have ended that
            run.finding(f"{method} {target_} after {pattern}: {answer.status} {answer.body[:200]!r}", case)
