# SPDX-License-Identifier: Apache-2.0
"""What Docker's own suites of tests ask of a daemon, in our words: teud and Debian's dockerd get the same requests,
and give the same answers."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker_words
import engine
import peers
import pytest
import whole

# Debian 12 has docker 20.10, whose words and codes differ from those of 26.
pytestmark = [pytest.mark.needs("docker", "dockerd", "trixie", "namespace"), pytest.mark.timeout(240)]

JSON = "application/json"
TAR = "application/x-tar"


class Daemon:
    """One of the two: its API by hand, and `docker` on it."""

    def __init__(self, path: str, docker: Callable[..., Any]) -> None:
        self.path = path
        self.docker = docker

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(100)
        connection.sock.connect(self.path)
        return connection

    def ask(
        self, method: str, target: str, body: object = None, kind: str = JSON, version: str = "1.45"
    ) -> tuple[int, bytes]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        connection.request(method, f"/v{version}{target}", data, {"Content-Type": kind} if data is not None else {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def json(self, method: str, target: str, body: object = None, **options: Any) -> Any:
        status, content = self.ask(method, target, body, **options)
        assert status < 300, (method, target, status, content)
        return json.loads(content) if content else None

    @contextlib.contextmanager
    def container(self, *command: str, start: bool = True, version: str = "1.45", **options: Any) -> Iterator[str]:
        host = {"NetworkMode": "none", **options.pop("HostConfig", {})}
        body = {"Image": "busybox", "Cmd": list(command), "HostConfig": host, **options}
        identity = self.json("POST", "/containers/create", body, version=version)["Id"]
        try:
            if start:
                self.json("POST", f"/containers/{identity}/start")
            yield identity
        finally:
            self.json("DELETE", f"/containers/{identity}?force=1&v=1")

    def output(self, *command: str, code: int = 0, version: str = "1.45", **options: Any) -> str:
        """What a container of its own says, with a terminal's bare stream."""
        host = {"LogConfig": {"Type": "json-file"}, **options.pop("HostConfig", {})}
        with self.container(*command, version=version, HostConfig=host, Tty=True, **options) as identity:
            assert self.json("POST", f"/containers/{identity}/wait")["StatusCode"] == code
            return self.ask("GET", f"/containers/{identity}/logs?stdout=1&stderr=1")[1].decode()


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Daemon, Daemon]]:
    engine.need_busybox()
    whole.remove_everything()
    with peers.dockerd(network=True) as daemon:
        daemon.load_busybox()
        pair = Daemon(engine.SOCKET, engine.docker), Daemon(str(daemon.socket), daemon)
        for each in pair:
            each.docker("run", "-d", "--name", "taken", "--network", "none", "busybox", "sleep", "1000")
        yield pair
        for each in pair:
            each.docker("rm", "-f", "taken")
    whole.eventually("the host is clean at the end", lambda: not whole.leftovers(), timeout=30)


def same(both: tuple[Daemon, Daemon], work: Callable[[Daemon], Any]) -> Any:
    """The answer that both give."""
    theirs = work(both[1])
    assert work(both[0]) == theirs
    return theirs


def made(**host: object) -> tuple[str, str, object]:
    return "POST", "/containers/create", {"Image": "busybox", "HostConfig": {"NetworkMode": "none", **host}}


BODIES = {"another kind": (b"{}", "text/plain"), "no JSON": (b"{invalid json", JSON), "more behind": (b"{} x", JSON)}
TARGETS = (
    "/containers/create",
    "/containers/nosuch/update",
    "/containers/nosuch/exec",
    "/exec/nosuch/start",
    "/commit",
    "/networks/create",
    "/networks/bridge/connect",
    "/networks/bridge/disconnect",
    "/volumes/create",
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("body", BODIES)
def test_a_body_is_read_first_and_complained_of_in_the_same_words(
    both: tuple[Daemon, Daemon], target: str, body: str
) -> None:
    status, _ = same(both, lambda daemon: _message(daemon.ask("POST", target, *BODIES[body])))
    assert status == 400


def _message(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1]).get("message", "")


REQUESTS: dict[str, tuple[str, str, object]] = {
    "unknown PID mode": made(PidMode="invalid"),
    "PID mode of no container": made(PidMode="container"),
    "unknown UTS mode": made(UTSMode="invalid"),
    "annotation without a name": made(Annotations={"": "a"}),
    "unknown log driver": made(LogConfig={"Type": "asdf"}),
    "file of a folder that is not there": ("HEAD", "/containers/taken/archive?path=/no/such/", None),
    "files of what is not there": ("GET", "/containers/taken/archive?path=/dne", None),
    "files into what is not there": ("PUT", "/containers/taken/archive?path=/dne", b""),
    "resize of no exec to no size": ("POST", "/exec/nosuch/resize?h=foo&w=bar", None),
    "update of nothing": ("POST", "/containers/nosuch/update", {}),
    "import of an unknown platform": ("POST", "/images/create?fromSrc=-&repo=odd&platform=nintendo64", bytes(1024)),
}
# Where the words are other ones, or the program's own.
SAME_STATUS = {"resize of no exec to no size", "unknown log driver", "import of an unknown platform"}


@pytest.mark.parametrize("case", REQUESTS)
def test_the_same_message(both: tuple[Daemon, Daemon], case: str) -> None:
    def work(daemon: Daemon) -> object:
        status, content = daemon.ask(*REQUESTS[case])
        said = json.loads(content)["message"] if content and case not in SAME_STATUS else ""
        return status, said

    status, _ = same(both, work)
    assert status >= 400


def test_a_list_of_networks_with_a_slash_at_its_end(both: tuple[Daemon, Daemon]) -> None:
    assert same(both, lambda daemon: daemon.ask("GET", "/networks/")[0]) == 200


def test_networks_do_not_overlap(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> int:
        pool = {"Config": [{"Subnet": "10.213.0.0/24"}]}
        one = daemon.json("POST", "/networks/create", {"Name": "pool1", "IPAM": pool})["Id"]
        try:
            return daemon.ask("POST", "/networks/create", {"Name": "pool2", "IPAM": pool})[0]
        finally:
            daemon.json("DELETE", f"/networks/{one}")

    assert [work(daemon) for daemon in both] == [403, 403]


# ---- exec, wait, logs, health ------------------------------------------------------------------------------


def exec_stream(daemon: Daemon, container: str, create: dict[str, Any], start: dict[str, Any]) -> tuple[str, bytes]:
    """What kind of stream the answer to a start of an exec calls itself, and the stream."""
    create = {"AttachStdout": True, "AttachStderr": True, **create}
    identity = daemon.json("POST", f"/containers/{container}/exec", create)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(100)
        sock.connect(daemon.path)
        body = json.dumps(start).encode()
        sock.sendall(
            f"POST /v1.45/exec/{identity['Id']}/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    head, _, rest = data.partition(b"\r\n\r\n")
    fields = dict(line.decode().lower().split(": ", 1) for line in head.splitlines()[1:])
    return fields["content-type"], rest


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("client", [False, True])
def test_an_exec_is_framed_as_its_client_asked(both: tuple[Daemon, Daemon], process: bool, client: bool) -> None:
    """The process may have a terminal that the client knows nothing of (docker-py starts all execs so)."""
    create = {"Cmd": ["echo", "said"], "Tty": process}
    kind, data = same(both, lambda daemon: exec_stream(daemon, "taken", create, {"Tty": client}))
    assert ("multiplexed" in kind) == (not client)
    line = b"said\r\n" if process else b"said\n"
    assert data == (line if client else struct.pack(">BxxxI", 1, len(line)) + line)


def test_only_an_exec_with_a_terminal_has_a_kind_of_it(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> list[bytes]:
        with daemon.container("sleep", "1000", Tty=True) as identity:
            command = ["sh", "-c", "echo TERM=$TERM"]
            return [
                exec_stream(daemon, identity, {"Cmd": command, "Tty": tty}, {"Tty": True})[1].strip()
                for tty in (False, True)
            ]

    assert same(both, work) == [b"TERM=", b"TERM=xterm"]


def test_wait_ends_with_the_process_though_a_policy_starts_it_again(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> int:
        policy = {"RestartPolicy": {"Name": "always"}}
        with daemon.container("sh", "-c", "sleep 1; exit 3", HostConfig=policy) as identity:
            return int(daemon.json("POST", f"/containers/{identity}/wait")["StatusCode"])

    assert same(both, work) == 3


def test_who_follows_a_log_gets_a_frame_for_each_line(both: tuple[Daemon, Daemon]) -> None:
    """docker-py hands on frames where its users expect lines."""

    def work(daemon: Daemon) -> list[bytes]:
        logs = {"LogConfig": {"Type": "json-file"}}
        with daemon.container("sh", "-c", "echo one; echo two; echo three", HostConfig=logs) as identity:
            daemon.json("POST", f"/containers/{identity}/wait")
            data = daemon.ask("GET", f"/containers/{identity}/logs?stdout=1&follow=1")[1]
        frames = []
        while data:
            size = struct.unpack(">I", data[4:8])[0]
            frames.append(data[8 : 8 + size])
            data = data[8 + size :]
        return frames

    assert same(both, work) == [b"one\n", b"two\n", b"three\n"]


def test_a_health_check_that_takes_too_long(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> str:
        health = {
            "Test": ["CMD", "sh", "-c", "echo begun; sleep 60"],
            "Interval": 10**8,
            "Timeout": 15 * 10**8,
            "Retries": 1,
        }
        with daemon.container("sleep", "1000", Healthcheck=health) as identity:

            def last() -> str:
                state = daemon.json("GET", f"/containers/{identity}/json")["State"]["Health"]
                return str(state["Log"][-1]["Output"]) if state["Log"] else ""

            whole.eventually("a check has run", last, timeout=60)
            return last()

    assert same(both, work) == "Health check exceeded timeout (1.5s): begun\n"


def test_log_files_without_a_size(both: tuple[Daemon, Daemon]) -> None:
    logs = {"LogConfig": {"Type": "json-file", "Config": {"max-file": "42"}}}
    assert same(both, lambda daemon: daemon.output("echo", "said", HostConfig=logs)) == "said\r\n"


# ---- files -------------------------------------------------------------------------------------------------


def test_a_file_is_no_folder(both: tuple[Daemon, Daemon]) -> None:
    for daemon in both:
        status, content = daemon.ask("GET", "/containers/taken/archive?path=/etc/passwd/")
        assert status >= 400 and b"not a directory" in content


def test_nothing_at_all_is_an_empty_archive(both: tuple[Daemon, Daemon]) -> None:
    assert same(both, lambda daemon: daemon.ask("PUT", "/containers/taken/archive?path=/tmp", b"", TAR)[0]) == 200


def _entry(name: str = "f", kind: bytes = tarfile.REGTYPE, link: str = "", **headers: str) -> bytes:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    made.pax_headers = {key.replace("__", "."): value for key, value in headers.items()}
    return made.tobuf(tarfile.PAX_FORMAT)


LONG_NAME = tarfile.TarInfo("y" * 101).tobuf(tarfile.GNU_FORMAT)[:1024]
ARCHIVES = {
    "plain": _entry(),
    "a time that is no number": _entry(mtime="nan"),
    "a time without end": _entry(mtime="inf"),
    "a time with an exponent": _entry(mtime="1e300"),
    "a late time": _entry(mtime="9000000000000000000"),
    "an early time": _entry(mtime="-5.5"),
    "an owner of many digits": _entry(uid="1" + "0" * 30),
    "an owner that is no number": _entry(gid="x"),
    "a zero byte in a path": _entry(path="a\0b"),
    "a zero byte in a link": _entry(kind=tarfile.SYMTYPE, linkpath="a\0b"),
    "an odd map of holes": _entry(GNU__sparse__size="10", GNU__sparse__map="0,1,2"),
    "a map of holes in words": _entry(GNU__sparse__size="10", GNU__sparse__map="a,b"),
    "data behind the end": _entry(GNU__sparse__size="10", GNU__sparse__map="100,1"),
    "a negative size": _entry(GNU__sparse__size="-10", GNU__sparse__map="0,1"),
    "a damaged header": b"x" * 512,
    "a short header": _entry()[:300],
    "a path that climbs": _entry("../x"),
    "a hard link that climbs": _entry("x", tarfile.LNKTYPE, "../../etc/passwd"),
    "an unknown kind": _entry(kind=b"Z"),
    "a file as a folder": _entry("f") + _entry("f/g"),
    "a long name of a file": _entry("n" * 300),
    "many long names": LONG_NAME * 500 + _entry(),
    "many headers": _entry(comment="a")[:1024] * 5000 + _entry(),
    "a folder that is there": _entry("."),
    "an attribute": _entry(SCHILY__xattr__user__a="v"),
    "a bad capability": _entry(SCHILY__xattr__security__capability="v"),
    "a bad stream of gzip": b"\x1f\x8b\x08\x00",
    "no archive": b"hello world",
}


@pytest.mark.parametrize("archive", ARCHIVES)
def test_archives_that_are_not_as_they_should_be(both: tuple[Daemon, Daemon], archive: str) -> None:
    """One status, and one sentence where it is not taken."""
    data = ARCHIVES[archive] + (bytes(1024) if len(ARCHIVES[archive]) > 511 else b"")

    def work(daemon: Daemon) -> int:
        status, content = daemon.ask("PUT", "/containers/taken/archive?path=/tmp", data, TAR)
        said = json.loads(content)["message"] if content else ""
        assert "Traceback" not in said and "\n" not in said.strip() and bool(said) == (status != 200)
        return status

    same(both, work)


@pytest.mark.parametrize("readonly", [True, False], ids=["read-only", "writable"])
def test_where_files_may_go(both: tuple[Daemon, Daemon], readonly: bool) -> None:
    """It is the place that counts, not the way there; and it counts before there is anything to write. For docker 26 a
    place that takes no files is a fault of its own, 500."""
    paths = (
        "/tmp",
        "/vol",
        "/vol/",
        "/vol/.",
        "vol",
        "//vol",
        "/bin/../vol",
        "/vol/../etc",
        "/link",
        "/rov",
        "/rov/",
        "/rov/../tmp",
        "/nope",
        "/etc/passwd",
        "/bin/sh",
    )
    link = _entry("vol/link", tarfile.SYMTYPE, "/etc") + bytes(1024)

    def work(daemon: Daemon) -> list[tuple[str, int, str]]:
        binds = ["/srv:/vol", "/opt:/rov:ro"]
        answers = []
        with daemon.container("sleep", "100", HostConfig={"ReadonlyRootfs": readonly, "Binds": binds}) as identity:
            daemon.ask("PUT", f"/containers/{identity}/archive?path=/", link, TAR)
            for path in (*paths, "/vol/link"):
                for data in (b"", _entry("teu-test-file") + bytes(1024)):
                    status, said = daemon.ask("PUT", f"/containers/{identity}/archive?path={path}", data, TAR)
                    words = json.loads(said)["message"] if said and b"read-only" in said else ""
                    answers.append((path, status, words))
        for left in ("teu-test-file", "link"):
            Path("/srv", left).unlink(missing_ok=True)
        return answers

    ours, theirs = map(work, both)
    if docker_words.older():
        theirs = [(path, 400 if status == 500 else status, words) for path, status, words in theirs]
    assert ours == theirs


def test_an_archive_keeps_its_owners(both: tuple[Daemon, Daemon]) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        entry = tarfile.TarInfo("owned")
        entry.uid, entry.gid = 12, 34
        archive.addfile(entry)

    def work(daemon: Daemon) -> str:
        with daemon.container("true", start=False) as identity:
            target = f"/containers/{identity}/archive?path=/&copyUIDGID=true"
            assert daemon.ask("PUT", target, output.getvalue(), TAR)[0] == 200
            data = daemon.ask("GET", f"/containers/{identity}/archive?path=/owned")[1]
        with tarfile.open(fileobj=io.BytesIO(data)) as answer:
            member = answer.getmember("owned")
        return f"{member.uid}:{member.gid}"

    assert same(both, work) == "12:34"


def test_no_files_into_a_read_only_volume(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> str:
        with daemon.container("true", start=False, HostConfig={"Binds": ["/tmp:/x:ro"]}) as identity:
            return _message(daemon.ask("PUT", f"/containers/{identity}/archive?path=/x", b"", TAR))[1]

    assert "read-only" in same(both, work)


# ---- mounts ------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a shared mount, with a file system mounted in it."""
    for argv in (
        ("mount", "--bind", tmp_path, tmp_path),
        ("mount", "--make-private", tmp_path),
        ("mount", "--make-shared", tmp_path),
    ):
        subprocess.run(argv, check=True)
    (tmp_path / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "below"], check=True)
    yield tmp_path
    subprocess.run(["umount", "-R", "-l", tmp_path], check=True)


@pytest.mark.parametrize(
    ("version", "options", "shallow"),
    [("1.45", {}, False), ("1.43", {}, True), ("1.45", {"ReadOnlyNonRecursive": True}, True)],
)
def test_read_only_means_what_is_mounted_below_too(
    both: tuple[Daemon, Daemon], tree: Path, version: str, options: dict[str, Any], shallow: bool
) -> None:
    mount = {"Type": "bind", "Source": str(tree), "Target": "/x", "ReadOnly": True, "BindOptions": options}
    command, host = ("touch", "/x/a", "/x/below/b"), {"Mounts": [mount]}
    answer = same(both, lambda daemon: daemon.output(*command, code=1, version=version, HostConfig=host))
    assert ("/x/a:" in answer, "/x/below/b:" in answer) == (True, not shallow)


def test_a_bind_is_read_only_below_too(both: tuple[Daemon, Daemon], tree: Path) -> None:
    host = {"Binds": [f"{tree}:/x:ro"]}
    assert "/x/below/b:" in same(both, lambda daemon: daemon.output("touch", "/x/below/b", code=1, HostConfig=host))


def test_a_mount_below_a_shared_one_reaches_the_host(both: tuple[Daemon, Daemon], tree: Path) -> None:
    (tree / "below" / "inside").mkdir()

    def work(daemon: Daemon) -> bool:
        host = {"Privileged": True, "Binds": [f"{tree}:/x:shared"]}
        daemon.output("mount", "-t", "tmpfs", "t", "/x/below/inside", HostConfig=host)
        seen = os.path.ismount(tree / "below" / "inside")
        if seen:
            subprocess.run(["umount", tree / "below" / "inside"], check=True)
        return seen

    assert same(both, work)


@pytest.mark.parametrize("mode", ["shared", "rslave"])
def test_what_is_private_on_the_host_cannot_be_shared(both: tuple[Daemon, Daemon], tree: Path, mode: str) -> None:
    def work(daemon: Daemon) -> tuple[int, str]:
        with daemon.container("true", start=False, HostConfig={"Binds": [f"{tree}:/x:{mode}"]}) as identity:
            return _message(daemon.ask("POST", f"/containers/{identity}/start"))

    subprocess.run(["mount", "--make-private", tree], check=True)
    status, message = same(both, work)
    assert status == 500 and f"{tree} is mounted on {tree} but it is not a shared" in message


def test_a_mount_of_all_the_host_is_a_slave(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> tuple[str, int]:
        with daemon.container("true", HostConfig={"Binds": ["/:/host"]}) as identity:
            propagation = daemon.json("GET", f"/containers/{identity}/json")["Mounts"][0]["Propagation"]
        return propagation, daemon.ask(*made(Binds=["/:/host:private"]))[0]

    assert same(both, work) == ("rslave", 400)


def test_a_part_of_a_volume(both: tuple[Daemon, Daemon]) -> None:
    def mount(subpath: str, target: str) -> dict[str, Any]:
        return {
            "Type": "volume",
            "Source": "parts",
            "Target": target,
            "VolumeOptions": {"Subpath": subpath},
        }

    def work(daemon: Daemon) -> list[object]:
        script = "mkdir /x/bin /x/sub /x/out; echo a > /x/sub/f; ln -s / /x/out/root; ln -s ../sub /x/out/good"
        try:
            daemon.output("sh", "-c", script, HostConfig={"Binds": ["parts:/x"]})
            result: list[object] = [
                daemon.output("cat", "/y/f", HostConfig={"Mounts": [mount("out/good", "/y")]}),
                daemon.output("ls", "/bin/busybox", HostConfig={"Mounts": [mount("bin", "/bin")]}),
                _message(daemon.ask(*made(Mounts=[mount("../../etc", "/y")]))),
            ]
            for subpath, words in (("nosuch", b"cannot access path"), ("out/root", b"escapes the base directory")):
                with daemon.container("true", start=False, HostConfig={"Mounts": [mount(subpath, "/y")]}) as identity:
                    status, content = daemon.ask("POST", f"/containers/{identity}/start")
                    result.append((status >= 400, words in content))
            return result
        finally:
            daemon.ask("DELETE", "/volumes/parts")

    said = same(both, work)
    assert said[0] == "a\r\n" and said[3:] == [(True, True), (True, True)]


# ---- ports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["80", "80/TCP", "80/tcp", "53/udp"])
def test_exposed_ports_have_one_form(both: tuple[Daemon, Daemon], word: str) -> None:
    """Compose writes "80" beside the image's "80/tcp": that is one port."""

    def work(daemon: Daemon) -> list[Any]:
        exposed = {word: {}, "80/tcp": {}}
        host = {"NetworkMode": "bridge", "PublishAllPorts": False}
        with daemon.container("sleep", "1000", HostConfig=host, ExposedPorts=exposed) as one:
            filters = quote(json.dumps({"id": [one]}))
            (listed,) = daemon.json("GET", f"/containers/json?filters={filters}")
            inspected = daemon.json("GET", f"/containers/{one}/json")
            ports = sorted((port["PrivatePort"], port["Type"]) for port in listed["Ports"])
            return [ports, inspected["NetworkSettings"]["Ports"], sorted(inspected["Config"]["ExposedPorts"])]

    assert len(same(both, work)[0]) == (2 if "udp" in word else 1)


# ---- lists -----------------------------------------------------------------------------------------------


def test_filters_of_containers(both: tuple[Daemon, Daemon]) -> None:
    """`publish` speaks of the host's ports, `volume` of sources, too, and `since` leaves out what does not run."""

    def work(daemon: Daemon) -> list[list[str]]:
        ports = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": port}]}
        host = {"NetworkMode": "bridge", "PortBindings": ports, "Binds": ["/usr/share:/shared"]}
        exposed = {"80/tcp": {}}
        with (
            daemon.container("sleep", "1000", HostConfig=host, ExposedPorts=exposed) as one,
            daemon.container("true") as two,
        ):
            daemon.json("POST", f"/containers/{two}/wait")
            ended = quote(json.dumps({"id": [two], "status": ["exited"]}))
            # dockerd's list may lag behind its answer to the wait
            whole.eventually("the list has it", lambda: daemon.json("GET", f"/containers/json?filters={ended}"))
            names = {one: "one", two: "two"}
            result = []
            for filters in (
                {"publish": ["80"]},
                {"publish": [port]},
                {"expose": ["80"]},
                {"volume": ["/usr/share"]},
                {"volume": ["/shared"]},
                {"since": ["taken"]},
            ):
                found = daemon.json("GET", f"/containers/json?filters={quote(json.dumps(filters))}")
                result.append([names[entry["Id"]] for entry in found])
            return result

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    assert same(both, work) == [[], ["one"], ["one"], ["one"], ["one"], ["one"]]


# ---- images ------------------------------------------------------------------------------------------------


CHANGES = [
    ["ENV PATH=/usr/bin:$PATH", "ENV A=1 B=${A:-two} C='$PATH'", "ENV A=3"],
    ['ENV SPACES="a b"', "ENV COPY=$SPACES", "LABEL l=$COPY", "WORKDIR /w/$A", "USER $SPACES"],
    ["ENV OLD form with $PATH", "EXPOSE $PORT", "ENV PORT=80", "EXPOSE $PORT/udp", "VOLUME /v$PORT"],
    [r"ENV E=\$PATH F=${PATH:+set} G=x${NONE}y"],
]


@pytest.mark.parametrize("changes", CHANGES)
def test_variables_in_changes(both: tuple[Daemon, Daemon], changes: list[str]) -> None:
    def work(daemon: Daemon) -> dict[str, object]:
        asked = "".join(f"&changes={quote(change)}" for change in changes)
        image = daemon.json("POST", f"/commit?container=taken&pause=0&repo=changed{asked}", {})["Id"]
        try:
            config = daemon.json("GET", f"/images/{image}/json")["Config"]
            return {
                key: config.get(key) or None
                for key in ("Env", "Labels", "WorkingDir", "User", "ExposedPorts", "Volumes")
            }
        finally:
            daemon.json("DELETE", "/images/changed?force=1")

    same(both, work)


def test_images_of_one_second_have_an_order(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> list[str]:
        try:
            for number in range(4):
                daemon.json("POST", f"/commit?container=taken&pause=0&repo=quick&tag={number}", {})
                time.sleep(0.002)
            filters = quote(json.dumps({"since": ["quick:0"], "before": ["quick:3"]}))
            found = daemon.json("GET", f"/images/json?filters={filters}")
            return sorted(tag for image in found for tag in image["RepoTags"])
        finally:
            for number in range(4):
                daemon.ask("DELETE", f"/images/quick:{number}")

    assert same(both, work) == ["quick:1", "quick:2"]


def test_save_of_a_repository_without_latest(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> list[str]:
        try:
            for tag in ("one", "two"):
                daemon.json("POST", f"/commit?container=taken&pause=0&repo=several&tag={tag}", {})
            data = daemon.ask("GET", "/images/get?names=several")[1]
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                member = archive.extractfile("manifest.json")
                assert member is not None
                return sorted(tag for image in json.load(member) for tag in image["RepoTags"])
        finally:
            for tag in ("one", "two"):
                daemon.ask("DELETE", f"/images/several:{tag}")

    assert same(both, work) == ["several:one", "several:two"]


def test_commit_of_what_ends_meanwhile(both: tuple[Daemon, Daemon]) -> None:
    """Nothing is paused that does not run."""

    def work(daemon: Daemon) -> int:
        with daemon.container("true") as identity:
            status = daemon.ask("POST", f"/commit?container={identity}&repo=ended", {})[0]
            daemon.ask("DELETE", "/images/ended")
            return status

    for _ in range(5):
        assert same(both, work) == 201


def test_import_of_nothing(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> int:
        target = "/images/create?fromSrc=-&repo=hollow&tag=1&platform=linux/sparc64"
        status = daemon.ask("POST", target, b"", TAR)[0]
        daemon.ask("DELETE", "/images/hollow:1")
        return status

    assert same(both, work) == 200


# ---- what is asked for is done, or refused -----------------------------------------------------------------


def inspected(daemon: Daemon, identity: str) -> dict[str, Any]:
    found: dict[str, Any] = daemon.json("GET", f"/containers/{identity}/json?size=1")
    return found


def test_joined_namespaces_are_those_of_a_container_and_not_of_a_name(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> list[bool]:
        with daemon.container("sleep", "1000", HostConfig={"IpcMode": "shareable"}) as first:
            daemon.json("POST", f"/containers/{first}/rename?name=before")
            modes = {"IpcMode": "container:before", "PidMode": "container:before"}
            with daemon.container("true", start=False, HostConfig=modes) as second:
                daemon.json("POST", f"/containers/{first}/rename?name=after")
                daemon.json("POST", f"/containers/{second}/start")
                shown = inspected(daemon, second)["HostConfig"]
                return [shown[key] == f"container:{first}" for key in modes]

    assert same(both, work) == [True, True]


@pytest.mark.parametrize("given", ["MaskedPaths", "ReadonlyPaths"])
def test_masked_and_read_only_paths_are_each_their_own(both: tuple[Daemon, Daemon], given: str) -> None:
    def work(daemon: Daemon) -> list[int]:
        with daemon.container("true", start=False, HostConfig={given: ["/proc/kcore"]}) as identity:
            host = inspected(daemon, identity)["HostConfig"]
            return [min(2, len(host["MaskedPaths"])), min(2, len(host["ReadonlyPaths"]))]

    assert same(both, work) == ([1, 2] if given == "MaskedPaths" else [2, 1])


def test_events_of_a_container_are_its_own(both: tuple[Daemon, Daemon]) -> None:
    def events(daemon: Daemon, since: float, **filters: list[str]) -> list[str]:
        target = f"/events?since={since:.9f}&until={time.time():.9f}&filters={quote(json.dumps(filters))}"
        lines = [json.loads(line) for line in daemon.ask("GET", target)[1].splitlines()]
        return [f"{line['Type']} {line['Action']}" for line in lines]

    def work(daemon: Daemon) -> object:
        since = time.time()
        with daemon.container("sleep", "1000", HostConfig={"NetworkMode": "bridge"}) as identity:
            daemon.json("GET", f"/containers/{identity}/top")
            daemon.json("POST", "/networks/prune")
            one = events(daemon, since, container=[identity])
            every = events(daemon, since, container=[""])
            return one, set(one) <= set(every), "network prune" in events(daemon, since, type=["network"])

    ours, theirs = (work(daemon) for daemon in both)
    assert ours == theirs == (["container create", "container start", "container top"], True, True)


def test_events_since_a_moment_after_the_last(both: tuple[Daemon, Daemon]) -> None:
    assert same(both, lambda daemon: daemon.ask("GET", "/events?since=2000000000&until=1000000000")[0]) == 400


def test_a_folder_without_devices_is_no_device(both: tuple[Daemon, Daemon]) -> None:
    """/etc has links to /dev/null, of units that are masked."""
    os.makedirs("/etc/no-devices", exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink("/dev/null", "/etc/no-devices/masked")

    def work(daemon: Daemon) -> bool:
        with daemon.container("true", start=False, HostConfig={"Devices": [{"PathOnHost": "/etc"}]}) as identity:
            status, content = daemon.ask("POST", f"/containers/{identity}/start")
            return status >= 400 and b"not a device node" in content

    assert same(both, work)


@pytest.mark.parametrize("mode", ["host", "container:taken"])
def test_no_init_where_it_would_not_be_the_first_process(both: tuple[Daemon, Daemon], mode: str) -> None:
    def work(daemon: Daemon) -> str:
        return daemon.output("cat", "/proc/self/cmdline", HostConfig={"Init": True, "PidMode": mode})

    assert same(both, work) == "cat\0/proc/self/cmdline\0"


def test_an_untouched_container_has_no_size(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> list[int]:
        command = "mkdir -p /a/b && printf 12345 >/a/b/c && ln /a/b/c /a/d && ln -s c /a/b/e"
        with daemon.container("sh", "-c", command, start=False) as identity:
            before = inspected(daemon, identity)["SizeRw"]
            daemon.json("POST", f"/containers/{identity}/start")
            daemon.json("POST", f"/containers/{identity}/wait")
            return [before, inspected(daemon, identity)["SizeRw"]]

    assert same(both, work) == [0, 6]


@pytest.mark.parametrize(("command", "code"), [("nosuch", 127), ("/etc", 126), ("/no/such/file", 127)])
def test_an_exec_that_cannot_start(both: tuple[Daemon, Daemon], command: str, code: int) -> None:
    def work(daemon: Daemon) -> tuple[int, int]:
        identity = daemon.json("POST", "/containers/taken/exec", {"Cmd": [command]})["Id"]
        status = daemon.ask("POST", f"/exec/{identity}/start", {"Detach": True})[0]
        return status, daemon.json("GET", f"/exec/{identity}/json")["ExitCode"]

    ours, theirs = map(work, both)
    assert ours == (400, code)
    # Docker 26 has 126 for whatever did not start.
    assert theirs == (400, 126 if docker_words.older() else code)


def test_an_exec_of_an_unknown_user(both: tuple[Daemon, Daemon]) -> None:
    """Refused when it is made, before anybody attaches. Docker 26 makes it, and its start fails."""

    def work(daemon: Daemon) -> tuple[int, str]:
        body = {"Cmd": ["true"], "User": "nobody-there"}
        status, content = daemon.ask("POST", "/containers/taken/exec", body)
        return status, json.loads(content).get("message", "")

    ours, theirs = map(work, both)
    assert ours == (400, "unable to find user nobody-there: no matching entries in passwd file")
    assert theirs == ((201, "") if docker_words.older() else ours)


def test_a_committed_image_has_a_parent(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> bool:
        daemon.json("POST", "/commit?container=taken&pause=0&repo=child", {})
        try:
            parent = daemon.json("GET", "/images/child/json")["Parent"]
            return bool(parent == daemon.json("GET", "/images/busybox/json")["Id"])
        finally:
            daemon.json("DELETE", "/images/child")

    assert same(both, work)


def test_clients_of_old_versions(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> object:
        info = daemon.json("GET", "/info", version="1.24")
        with daemon.container("true", start=False, version="1.39") as identity:
            mode = inspected(daemon, identity)["HostConfig"]["IpcMode"]
        return "seccomp" in info["SecurityOptions"], mode

    assert same(both, work) == (True, "shareable")


def test_a_policy_of_what_removes_itself(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> tuple[int, bool]:
        with daemon.container("sleep", "1000", HostConfig={"AutoRemove": True}) as identity:
            policy = {"RestartPolicy": {"Name": "always"}}
            status, said = _message(daemon.ask("POST", f"/containers/{identity}/update", policy))
            return status, "AutoRemove is enabled" in said

    assert same(both, work) == (409, True)


def test_a_start_takes_no_settings(both: tuple[Daemon, Daemon]) -> None:
    def work(daemon: Daemon) -> list[int]:
        with daemon.container("true", start=False) as identity:
            target = f"/containers/{identity}/start"
            return [daemon.ask("POST", target, body)[0] for body in ({"HostConfig": {}}, {})]

    assert same(both, work) == [400, 204]


WRONG_MOUNTS: dict[str, dict[str, Any]] = {
    "tmpfs options of a bind": {"Mounts": [{"Type": "bind", "Source": "/tmp", "Target": "/x", "TmpfsOptions": {}}]},
    "volume options of a bind": {"Mounts": [{"Type": "bind", "Source": "/tmp", "Target": "/x", "VolumeOptions": {}}]},
    "bind options of a volume": {"Mounts": [{"Type": "volume", "Target": "/x", "BindOptions": {}}]},
    "tmpfs options of a volume": {"Mounts": [{"Type": "volume", "Target": "/x", "TmpfsOptions": {}}]},
    "bind options of a tmpfs": {"Mounts": [{"Type": "tmpfs", "Target": "/x", "BindOptions": {}}]},
    "volume options of a tmpfs": {"Mounts": [{"Type": "tmpfs", "Target": "/x", "VolumeOptions": {}}]},
    "a shared volume": {"Binds": ["named:/x:shared"]},
    "a bind that is not copied": {"Binds": ["/tmp:/x:nocopy"]},
    "read-only and not": {"Binds": ["/tmp:/x:ro,rw"]},
    "two labels": {"Binds": ["/tmp:/x:z,Z"]},
    "two propagations": {"Binds": ["/tmp:/x:shared,slave"]},
}


@pytest.mark.parametrize("case", WRONG_MOUNTS)
def test_options_of_another_kind_of_mount(both: tuple[Daemon, Daemon], case: str) -> None:
    ours, theirs = (daemon.ask(*made(**WRONG_MOUNTS[case]))[0] for daemon in both)
    assert ours == 400 and theirs in (400, 500)


def test_who_waits_and_leaves_is_noticed_at_once(both: tuple[Daemon, Daemon]) -> None:
    """Their threads and connections do not stay until something happens."""
    assert both[0].ask("GET", "/_ping")[0] == 200  # it may have left
    engine_pid = whole.main_pid("teud.service")

    def sockets() -> int:
        count = 0
        for entry in os.scandir(f"/proc/{engine_pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += os.readlink(entry.path).startswith("socket:")
        return count

    before = sockets()
    waiting = [both[0].connect() for _ in range(30)]
    for connection in waiting:
        connection.request("POST", "/v1.45/containers/taken/wait")
        assert connection.getresponse().status == 200
    assert sockets() >= before + 30
    for connection in waiting:
        connection.sock.close()
        connection.close()
    whole.eventually("they are gone", lambda: sockets() <= before + 2, timeout=10)


# ---- ours alone: docker has it later than 26, or another default -------------------------------------------


@pytest.fixture
def teud(both: tuple[Daemon, Daemon]) -> Daemon:
    return both[0]


def test_cgroups_that_a_container_may_write(teud: Daemon) -> None:
    command = ("sh", "-c", "mkdir /sys/fs/cgroup/mine && echo made")
    assert "Read-only" in teud.output(*command, code=1)
    assert "made" in teud.output(*command, HostConfig={"SecurityOpt": ["writable-cgroups=true"]})
    status, said = _message(teud.ask(*made(SecurityOpt=["writable-cgroups=true"], CgroupnsMode="host")))
    assert status == 400 and "private" in said


def test_options_of_a_tmpfs_mount(teud: Daemon) -> None:
    mount = {"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"Options": [["exec"], ["uid", "7"]], "SizeBytes": 8192}}
    line = teud.output("grep", " /x ", "/proc/mounts", HostConfig={"Mounts": [mount]})
    assert "uid=7" in line and "size=8k" in line and "noexec" not in line
    bad = {**mount, "TmpfsOptions": {"Options": [["nonsense"]]}}
    assert teud.ask(*made(Mounts=[bad]))[0] == 400


def test_options_of_another_log_driver_are_left_out_with_a_word(teud: Daemon) -> None:
    """Files that were written for docker's own default."""
    config = {"max-size": "1m", "max-file": "3", "tag": "mine"}
    answer = teud.json(*made(LogConfig={"Config": config}))
    try:
        assert len(answer["Warnings"]) == 2 and "json-file" in answer["Warnings"][0]
        shown = inspected(teud, answer["Id"])["HostConfig"]["LogConfig"]
        assert shown == {"Type": "journald", "Config": {"tag": "mine"}}
    finally:
        teud.json("DELETE", f"/containers/{answer['Id']}")
    for bad in ({"Type": "journald", "Config": config}, {"Config": {"no-such": "1"}}, {"Config": {"mode": "x"}}):
        assert teud.ask(*made(LogConfig=bad))[0] == 400
    status, said = _message(teud.ask(*made(LogConfig={"Config": {"max-buffer-size": "1m"}})))
    assert status == 400 and "mode=non-blocking" in said


def test_labels_have_a_size(teud: Daemon) -> None:
    body = {"Image": "busybox", "Labels": {"a": "x" * (2 << 20)}, "HostConfig": {"NetworkMode": "none"}}
    status, said = _message(teud.ask("POST", "/containers/create", body))
    assert status == 400 and "Labels" in said


def test_a_runtime_beside_the_host_config(teud: Daemon) -> None:
    """Where docker-py's low-level client puts it."""
    with teud.container("true", start=False, Runtime="io.containerd.runc.v2") as identity:
        assert inspected(teud, identity)["HostConfig"]["Runtime"] == "io.containerd.runc.v2"


def test_a_container_without_a_network(teud: Daemon) -> None:
    host = {"NetworkMode": "bridge"}
    said = teud.output("ip", "-o", "link", HostConfig=host, NetworkDisabled=True)
    assert said.count("\n") == 1 and " lo: " in said


def test_limits_of_an_update(teud: Daemon) -> None:
    with teud.container("sleep", "1000") as identity:
        answer = teud.json("POST", f"/containers/{identity}/update", {"Memory": 64 << 20, "PidsLimit": 5})
        assert len(answer["Warnings"]) == 2
        assert teud.json("POST", f"/containers/{identity}/update", {"PidsLimit": 0})["Warnings"] is None
        assert teud.ask("POST", f"/containers/{identity}/update", {"Devices": [{"PathOnHost": "/dev/null"}]})[0] == 400


def test_what_many_clients_took_is_given_back(both: tuple[Daemon, Daemon]) -> None:
    """Sixty who save an image and read none of it, twice."""
    assert both[0].ask("GET", "/_ping")[0] == 200  # it may have left
    statm = f"/proc/{whole.main_pid('teud.service')}/statm"

    def resident() -> int:
        with open(statm) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

    before = resident()
    for _ in range(2):
        clients = [both[0].connect() for _ in range(60)]
        for client in clients:
            client.request("GET", "/v1.45/images/busybox/get")
        whole.eventually("they are served", lambda: resident() > before + 40)
        for client in clients:
            client.close()
        whole.eventually("it is given back", lambda: resident() < before + 30)
