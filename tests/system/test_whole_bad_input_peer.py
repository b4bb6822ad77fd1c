# SPDX-License-Identifier: Apache-2.0
"""Bad input to teud and to Debian's dockerd at once: the same exit code of `docker`, the same HTTP status, and nothing
left behind. What the messages must say is in test_whole_bad_input.py.
"""

from __future__ import annotations

import http.client
import io
import json
import shlex
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker_words
import engine
import peers
import pytest
import whole
from scripted_registry import entry, tar

# Debian 12 has docker 20.10, whose words and codes differ from those of 26.
pytestmark = [pytest.mark.needs("docker", "dockerd", "trixie", "namespace"), pytest.mark.timeout(240)]

PORT = 18090
JSON = "application/json"
TAR = "application/x-tar"


@pytest.fixture(scope="module")
def dockerd() -> Iterator[peers.Dockerd]:
    engine.need_busybox()
    whole.remove_everything()
    with peers.dockerd(network=True) as daemon:
        daemon.load_busybox()
        for docker in (daemon, engine.docker):
            docker("run", "-d", "--name", "taken", "--network", "none", "busybox", "sleep", "1000")  # type: ignore[operator]
        yield daemon
        daemon("rm", "-f", "taken")
        engine.docker("rm", "-f", "taken")
    whole.eventually("the host is clean at the end", lambda: not whole.leftovers(), timeout=30)


COMMANDS = """
run --rm 127.0.0.1:9/none true
run --rm --pull never no-such-image true
pull 127.0.0.1:9/none
pull UPPER
pull busybox@sha256:beef
run --rm UPPER true
run --rm busybox:x:y true
create --name taken busybox true
create --name -bad busybox true
rename taken taken
rename no-such other
run --rm --network no-such busybox true
run --rm --network none --ip 10.9.9.9 busybox true
run --rm -p PORT:80 busybox true
run --rm -p 99999:80 busybox true
run --rm -p a:b busybox true
run --no-such-flag busybox
ps --no-such-flag
frobnicate
run --rm --mount type=bind,source=/no/such/folder,target=/x busybox true
run --rm --mount type=bind,source=relative,target=/x busybox true
run --rm --mount type=odd,target=/x busybox true
run --rm -v /tmp:relative busybox true
run --rm -v /tmp:/x:odd busybox true
run --rm -v /tmp:/x -v /etc:/x busybox true
run --rm -v bad/name:/x busybox true
run --rm --network none busybox no-such-command
run --rm --network none busybox /no/such/file
run --rm --network none busybox /etc
run --rm --network none -w relative busybox true
run --rm --network none -u nobody-there busybox true
run --rm --network none -u 1:nogroup-there busybox true
run --rm --network none --entrypoint /bin/none busybox
run --rm --network none -e =x busybox true
run --rm --network none --cap-add NOPE busybox true
run --rm --network none --device /dev/nope busybox true
run --rm --network none --memory 1k busybox true
run --rm --network none --memory lots busybox true
run --rm --network none --cpus -1 busybox true
run --rm --network none --ulimit nope=1 busybox true
run --rm --network none --sysctl nope busybox true
run --rm --network none --restart sometimes busybox true
run --rm --restart always busybox true
run --rm --network none --runtime nope busybox true
run --rm --network none --security-opt nope busybox true
run --rm --network none --stop-signal NOPE busybox true
run --rm --network none --pid container:no-such busybox true
run --rm --network none --volumes-from no-such busybox true
exec no-such true
exec taken /etc
exec taken no-such-command
exec -u nobody-there taken true
kill -s NOPE taken
kill no-such
stop no-such
start no-such
rm taken
rm no-such
rmi no-such
rmi busybox
tag no-such other
tag busybox UPPER
logs no-such
logs --since nope taken
inspect no-such
top no-such
wait no-such
attach no-such
cp taken:/no/such /tmp/x
cp /no/such/file taken:/tmp
cp taken:/etc/passwd /no/such/folder/
network rm no-such
network create bridge
network create --subnet nope other
network connect no-such taken
volume rm no-such
volume create bad/name
load -i /dev/null
load -i /no/such/file
import /no/such/file
save no-such
update --memory 1k taken
events --since nope --until 1
""".strip().splitlines()


# Exit codes of docker 26 where 28 has others, which are ours.
CODES_OF_26 = {
    "exec taken no-such-command": 126,  # whatever did not start; 28: 127, as with `run`
    "exec -u nobody-there taken true": 126,  # its start fails; 28 refuses it when it is made
}


def ask(path: str, method: str, target: str, body: bytes | None, kind: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(60)
    connection.sock.connect(path)
    headers = {"Content-Type": kind} if body is not None else {}
    connection.request(method, f"/v1.45{target}", body, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def made() -> list[object]:
    """Everything that a refused command could have left behind in teud."""
    return [
        json.loads(ask(engine.SOCKET, "GET", target, None, JSON)[1])
        for target in ("/containers/json?all=1", "/images/json?all=1", "/volumes", "/networks")
    ]


def names(found: object) -> object:
    """Without what changes by itself: how long ago, how much."""
    if isinstance(found, dict):
        return {key: names(value) for key, value in found.items() if key in ("Id", "Name", "Names", "Volumes")}
    return [names(each) for each in found] if isinstance(found, list) else found


@pytest.mark.parametrize("line", COMMANDS)
def test_a_bad_command_ends_as_on_dockerd(dockerd: peers.Dockerd, line: str) -> None:
    before = names(made())
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("0.0.0.0", PORT))
        holder.listen()
        argv = shlex.split(line.replace("PORT", str(PORT)))
        theirs = subprocess.run([*dockerd.client, *argv], capture_output=True, stdin=subprocess.DEVNULL, check=False)
        ours = engine.docker(*argv, check=False)
    if docker_words.older() and line in CODES_OF_26:
        assert theirs.returncode == CODES_OF_26[line] != ours.returncode
    else:
        assert ours.returncode == theirs.returncode, (ours.stderr, theirs.stderr.decode())
    assert ours.returncode == 0 or (ours.stderr + ours.stdout).strip(), "it says why"
    assert "Traceback" not in ours.stderr and "internal error" not in ours.stderr
    assert names(made()) == before


BUSYBOX = {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}


REQUESTS: dict[str, tuple[str, str, object]] = {
    "no JSON": ("POST", "/containers/create", b"{not json"),
    "a list": ("POST", "/containers/create", b"[1]"),
    "a number for a name": ("POST", "/containers/create", {"Image": 7}),
    "text for a number": ("POST", "/containers/create", {**BUSYBOX, "HostConfig": {"Memory": "much"}}),
    "nothing at all": ("POST", "/containers/create", b""),
    "no image": ("POST", "/containers/create", {"Cmd": ["true"]}),
    "unknown image": ("POST", "/containers/create", {"Image": "no-such-image"}),
    "name in use": ("POST", "/containers/create?name=taken", BUSYBOX),
    "bad name": ("POST", "/containers/create?name=-bad", BUSYBOX),
    "bad bind": ("POST", "/containers/create", {**BUSYBOX, "HostConfig": {"Binds": ["/tmp:relative"]}}),
    "bind source that is not there": (
        "POST",
        "/containers/create",
        {**BUSYBOX, "HostConfig": {"Mounts": [{"Type": "bind", "Source": "/no/such", "Target": "/x"}]}},
    ),
    "bad restart policy": ("POST", "/containers/create", {**BUSYBOX, "HostConfig": {"RestartPolicy": {"Name": "x"}}}),
    "too little memory": ("POST", "/containers/create", {**BUSYBOX, "HostConfig": {"Memory": 1024}}),
    "bad network mode": ("POST", "/containers/no-such/start", None),
    "a body of another kind": ("POST", "/containers/create text/plain", b"{}"),
    "unknown route": ("GET", "/no-such-route", None),
    "wrong method": ("DELETE", "/containers/json", None),
    "bad filters": ("GET", "/containers/json?filters=nope", None),
    "unknown filter": ("GET", "/containers/json?filters=%7B%22nope%22%3A%5B%221%22%5D%7D", None),
    "bad limit": ("GET", "/containers/json?limit=x", None),
    "inspect of nothing": ("GET", "/containers/no-such/json", None),
    "start of what runs": ("POST", "/containers/taken/start", None),
    "removal of what runs": ("DELETE", "/containers/taken", None),
    "unknown signal": ("POST", "/containers/taken/kill?signal=NOPE", None),
    "logs of no stream": ("GET", "/containers/taken/logs", None),
    "resize to nothing": ("POST", "/containers/taken/resize?h=x&w=y", None),
    "wait for nonsense": ("POST", "/containers/taken/wait?condition=x", None),
    "exec of nothing": ("POST", "/containers/taken/exec", {"Cmd": []}),
    "exec that is not there": ("POST", "/exec/no-such/start", {}),
    "archive of nothing": ("GET", "/containers/taken/archive?path=/no/such", None),
    "archive without a path": ("GET", "/containers/taken/archive", None),
    "archive into nothing": ("PUT", "/containers/taken/archive?path=/no/such", TAR),
    "archive that is none": ("PUT", "/containers/taken/archive?path=/tmp", b"not a tar at all" * 100),
    "image of a bad name": ("GET", "/images/UPPER/json", None),
    "pull of a bad name": ("POST", "/images/create?fromImage=UPPER", None),
    "import of nonsense": ("POST", "/images/create?fromSrc=-&repo=UPPER", b""),
    "load of nonsense": ("POST", "/images/load", b"not a tar at all" * 100),
    "tag of a bad name": ("POST", "/images/busybox/tag?repo=UPPER", None),
    "network that is there": ("POST", "/networks/create", {"Name": "bridge", "CheckDuplicate": True}),
    "network without a name": ("POST", "/networks/create", {}),
    "removal of the bridge": ("DELETE", "/networks/bridge", None),
    "volume that is not there": ("GET", "/volumes/no-such", None),
    "credentials that are none": ("POST", "/auth", b"{nope"),
}


# (ours, docker's), where docker's is not a client's mistake, or none at all.
OTHERWISE = {
    "no image": (400, 201),
    "bad bind": (400, 500),
    "bad limit": (400, 500),
    "load of nonsense": (400, 200),
    "credentials that are none": (400, 500),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_bad_request_is_answered_as_by_dockerd(dockerd: peers.Dockerd, case: str) -> None:
    method, target, content = REQUESTS[case]
    target, _, kind = target.partition(" ")
    body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    if content == TAR:
        body, kind = tar(("file", b"x")), TAR
    before = names(made())
    theirs, said = ask(str(dockerd.socket), method, target, body, kind or JSON)
    ours, answer = ask(engine.SOCKET, method, target, body, kind or JSON)
    assert (ours, theirs) == OTHERWISE.get(case, (ours, ours)), (answer, said)
    if ours >= 400:
        assert json.loads(answer)["message"]
    assert names(made()) == before


CLIMBING = {
    "parent": [entry("../../../../tmp/climbed", size=4)],
    "absolute": [entry("/tmp/climbed", size=4)],
    "through a link": [entry("way", tarfile.SYMTYPE, "/tmp"), entry("way/climbed", size=4)],
    "through a link upwards": [entry("up", tarfile.SYMTYPE, "../../../../../tmp"), entry("up/climbed", size=4)],
    "hard link": [entry("linked", tarfile.LNKTYPE, "../../../../../tmp/canary")],
    "hard link to an absolute name": [entry("linked", tarfile.LNKTYPE, "/tmp/canary")],
    "hard link to a link": [entry("s", tarfile.SYMTYPE, "/tmp/canary"), entry("linked", tarfile.LNKTYPE, "s")],
    "device": [entry("disk", tarfile.BLKTYPE)],
    "whiteout outside": [entry("../../../../tmp/.wh.canary")],
}


@pytest.mark.parametrize("way", ["load", "import", "copy"])
@pytest.mark.parametrize("kind", CLIMBING)
def test_a_climbing_archive_reaches_nothing_outside(dockerd: peers.Dockerd, way: str, kind: str) -> None:
    """By the ways of an archive into the engine that no registry is in: the host's files stay as they are."""
    canary, climbed = Path("/tmp/canary"), Path("/tmp/climbed")
    canary.write_text("host\n")
    climbed.unlink(missing_ok=True)
    layer = tar(*CLIMBING[kind])
    try:
        if way == "copy":
            status, answer = ask(engine.SOCKET, "PUT", "/containers/taken/archive?path=/var", layer, TAR)
        elif way == "import":
            status, answer = ask(engine.SOCKET, "POST", "/images/create?fromSrc=-&repo=climbing&tag=1", layer, TAR)
        else:
            status, answer = ask(engine.SOCKET, "POST", "/images/load", image(layer), TAR)
        assert status < 500 or json.loads(answer)["message"], (status, answer)
        assert canary.read_text() == "host\n" and canary.stat().st_nlink == 1
        assert not climbed.exists()
    finally:
        canary.unlink()
        engine.docker("rmi", "-f", "climbing:1", check=False)


def image(layer: bytes) -> bytes:
    """What `docker save` writes, with one layer."""
    import hashlib

    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": ["climbing:1"], "Layers": ["layer.tar"]}]).encode()
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, data in (("manifest.json", manifest), ("config.json", config), ("layer.tar", layer)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return output.getvalue()
