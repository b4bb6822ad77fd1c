# SPDX-License-Identifier: Apache-2.0
"""What teud carries to a builder: /grpc and HTTP/2 byte by byte, sessions, the cache's records; with a builder that
answers on real sockets."""

from __future__ import annotations

import base64
import json
import socket
import threading
import types
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc
import pytest

from teu.api.buildkit import control_pb2, control_pb2_grpc
from teu.buildkit.frontends.dockerfile.client import parse_options
from teu.buildkit.session import auth, handover, upload
from teu.buildkit.session.manager import Manager
from teu.engine.api import router
from teu.engine.api.server import Server
from teu.engine.builds.builder import Builder
from teu.engine.builds.classic import Builds
from teu.engine.builds.session import credentials
from teu.engine.core.errors import BadRequest
from teu.engine.core.events import Events
from teu.engine.streams.pump import Pump

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Control(control_pb2_grpc.ControlServicer):
    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def DiskUsage(self, request: Any, context: Any) -> Any:
        record = control_pb2.UsageRecord(
            ID="one", Parents=["a", "b"], RecordType="regular", Description="[1/2] RUN x", Size=77, UsageCount=3
        )
        record.CreatedAt.FromSeconds(1_700_000_000)
        shared = control_pb2.UsageRecord(ID="two", Shared=True, InUse=True, Size=5)
        shared.CreatedAt.FromSeconds(1_700_000_001)
        shared.LastUsedAt.FromSeconds(1_700_000_002)
        return control_pb2.DiskUsageResponse(record=[record, shared])

    def Prune(self, request: Any, context: Any) -> Iterator[Any]:
        self.seen["prune"] = request
        if "bad" in request.filter[0]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "filters: parse error")
        yield control_pb2.UsageRecord(ID="one", Size=77)
        yield control_pb2.UsageRecord(ID="two", Size=5)

    def Session(self, requests: Any, context: Any) -> Iterator[Any]:
        self.seen["metadata"] = [(k, v) for k, v in context.invocation_metadata() if k.startswith("x-docker")]
        for request in requests:
            yield control_pb2.BytesMessage(data=b"<" + request.data + b">")


def client(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(path))
    return sock


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path, Events]]:
    """teud's socket, the one of its builder, and its events. The builder's socket is not there yet. A parameter says
    whether ids are of targets."""
    router.load()
    ready = threading.Event()
    ready.set()
    pump, events = Pump(), Events()
    pump.start()
    place = tmp_path / "builder.sock"
    engine = types.SimpleNamespace(
        ready=ready, stopping=threading.Event(), failure=None, waiting=None, pump=pump, events=events, config={}
    )
    engine.builder = Builder(str(place))
    engine.builds = Builds(engine.builder, str(tmp_path), getattr(request, "param", False))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "teud.sock"))
    listener.listen()
    server = Server(engine, [listener])  # type: ignore[arg-type]
    server.start()
    yield tmp_path / "teud.sock", place, events
    engine.builder.close()
    server.close()
    pump.stop()


@pytest.fixture
def control(served: tuple[Path, Path, Events]) -> Iterator[Control]:
    servicer = Control()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    control_pb2_grpc.add_ControlServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{served[1]}")
    server.start()
    yield servicer
    server.stop(None).wait()


def ask(path: Path, method: str, target: str, *headers: str) -> tuple[int, Any]:
    with client(path) as sock:
        lines = [f"{method} {target} HTTP/1.1", "Host: docker", "Connection: close", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode())
        data = b""
        while part := sock.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def upgraded(path: Path, target: str, *headers: str, early: bytes = b"") -> socket.socket:
    sock = client(path)
    lines = [f"POST {target} HTTP/1.1", "Host: docker", "Connection: Upgrade", "Upgrade: h2c", *headers, "", ""]
    sock.sendall("\r\n".join(lines).encode() + early)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"\r\nUpgrade: h2c\r\n" in head
    assert b"\r\nConnection: Upgrade\r\n" in head
    return sock


def listening(path: Path, kind: int, answer: Callable[[socket.socket], None]) -> threading.Thread:
    """A builder that serves one connection."""
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(10)

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.sendall(b"end")


@pytest.mark.parametrize("way", ["upgrade", "early", "prior knowledge"])
def test_http2_reaches_the_builder_unread(served: tuple[Path, Path, Events], way: str) -> None:
    thread = listening(served[1], socket.SOCK_STREAM, echo)
    early = {"upgrade": b"", "early": PREFACE, "prior knowledge": PREFACE}[way]
    sock = client(served[0]) if way == "prior knowledge" else upgraded(served[0], "/v1.45/grpc", early=early)
    large = bytes(range(256)) * 8192
    with sock:
        if way == "prior knowledge":
            sock.sendall(early)
        got = bytearray()

        def read() -> None:
            while part := sock.recv(1 << 20):
                got.extend(part)

        reader = threading.Thread(target=read)
        reader.start()
        sock.sendall(large)
        sock.shutdown(socket.SHUT_WR)
        reader.join(10)
    assert bytes(got) == early + large + b"end"
    thread.join(10)


def test_a_client_that_vanishes_ends_its_connection_to_the_builder(served: tuple[Path, Path, Events]) -> None:
    ended = threading.Event()

    def wait(connection: socket.socket) -> None:
        while connection.recv(100):
            pass
        ended.set()

    thread = listening(served[1], socket.SOCK_STREAM, wait)
    upgraded(served[0], "/grpc", early=b"x").close()
    assert ended.wait(10)
    thread.join(10)


def test_a_builder_that_vanishes_ends_the_clients_connection(served: tuple[Path, Path, Events]) -> None:
    thread = listening(served[1], socket.SOCK_STREAM, lambda connection: None)
    with upgraded(served[0], "/grpc") as sock:
        assert sock.recv(1) == b""
    thread.join(10)


@pytest.mark.parametrize("target", ["/grpc", "/session"])
def test_only_h2c_is_spoken(served: tuple[Path, Path, Events], target: str) -> None:
    assert ask(served[0], "POST", target) == (400, {"message": "no upgrade proto in request"})
    assert ask(served[0], "POST", target, "Upgrade: websocket")[1] == {"message": "protocol websocket not supported"}


def test_without_a_builder_it_is_said_what_to_install(served: tuple[Path, Path, Events]) -> None:
    for target in ("/grpc", "/session", "/build/prune"):
        headers = ("Upgrade: h2c", "X-Docker-Expose-Session-Uuid: a")
        status, answer = ask(served[0], "POST", target, *headers)
        assert status == 404
        assert "install the package teu-buildkitd" in answer["message"]
    with client(served[0]) as sock:
        sock.sendall(PREFACE)
        assert sock.recv(100) == b""
    with client(served[0]) as sock:
        sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
        assert b"Builder-Version: 1\r\n" in sock.recv(4096)


def test_a_session_changes_hands(served: tuple[Path, Path, Events]) -> None:
    """The builder gets the connection itself, what was said of it, and what was read of it already."""
    told: dict[str, Any] = {}

    def take(connection: socket.socket) -> None:
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 4)
        told.update(json.loads(data))
        (descriptor,) = descriptors
        with socket.socket(fileno=descriptor) as taken:
            taken.settimeout(10)
            taken.sendall(b"hello")
            told["late"] = taken.recv(100)

    served[1].touch()
    thread = listening(served[1].with_name("builder-sessions.sock"), socket.SOCK_SEQPACKET, take)
    headers = (
        "X-Docker-Expose-Session-Uuid: abc",
        "X-Docker-Expose-Session-Grpc-Method: /a.B/C",
        "X-Docker-Expose-Session-Grpc-Method: /a.B/D",
        "X-Other: no",
    )
    with upgraded(served[0], "/v1.45/session", *headers, early=b"early") as sock:
        assert sock.recv(100) == b"hello"
        sock.sendall(b"late")
        assert sock.recv(100) == b""
    thread.join(10)
    assert told == {
        "headers": [
            ["x-docker-expose-session-uuid", "abc"],
            ["x-docker-expose-session-grpc-method", "/a.B/C"],
            ["x-docker-expose-session-grpc-method", "/a.B/D"],
        ],
        "early": "ZWFybHk=",
        "late": b"late",
    }


def test_a_session_goes_through_control_session_elsewhere(served: tuple[Path, Path, Events], control: Control) -> None:
    headers = ("X-Docker-Expose-Session-Uuid: abc", "X-Docker-Expose-Session-Grpc-Method: /a.B/C")
    with upgraded(served[0], "/session", *headers, early=b"early") as sock:
        assert sock.recv(100) == b"<early>"
        sock.sendall(b"late")
        assert sock.recv(100) == b"<late>"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
    assert control.seen["metadata"] == [
        ("x-docker-expose-session-uuid", "abc"),
        ("x-docker-expose-session-grpc-method", "/a.B/C"),
    ]


def test_a_session_has_an_id(served: tuple[Path, Path, Events], control: Control) -> None:
    status, answer = ask(served[0], "POST", "/session", "Upgrade: h2c")
    assert status == 400
    assert "X-Docker-Expose-Session-Uuid" in answer["message"]


def test_the_cache_is_pruned(served: tuple[Path, Path, Events], control: Control) -> None:
    filters = '{"until":["24h"],"type":["regular"],"inuse":[],"id":["a\\"b"]}'.replace('"', "%22").replace("\\", "%5C")
    target = f"/build/prune?all=1&keep-storage=5&max-used-space=6&min-free-space=7&filters={filters}"
    _, events = served[2].subscribe()
    assert ask(served[0], "POST", target) == (200, {"CachesDeleted": ["one", "two"], "SpaceReclaimed": 82})
    asked = control.seen["prune"]
    assert list(asked.filter) == ['id~="a\\"b",inuse,type=="regular"']
    assert (asked.all, asked.keepDuration) == (True, 24 * 3600 * 10**9)
    assert (asked.reservedSpace, asked.maxUsedSpace, asked.minFreeSpace) == (5, 6, 7)
    event = events.get(timeout=10)
    assert (event["Type"], event["Action"], event["Actor"]["Attributes"]) == ("builder", "prune", {"reclaimed": "82"})


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ('filters={"no":["x"]}', "invalid filter 'no'"),
        ('filters={"until":["1h","2h"]}', "filters expect only one value"),
        ('filters={"type":["a","b"]}', "filters expect only one value"),
        ('filters={"until":["1h"],"unused-for":["2h"]}', 'conflicting filters: "until" and "unused-for"'),
        ('filters={"until":["soon"]}', '"until" filter expects a duration'),
        ("reserved-space=x", "reserved-space is in bytes and expects an integer, got x"),
        ("keep-storage=-1", "keep-storage is in bytes and expects an integer, got -1"),
        ('filters={"type":["bad"]}', "filters: parse error"),
    ],
)
def test_what_cannot_be_pruned(served: tuple[Path, Path, Events], control: Control, query: str, said: str) -> None:
    status, answer = ask(served[0], "POST", f"/build/prune?{query.replace(chr(34), '%22')}")
    assert status == 400
    assert said in answer["message"]


def test_df_shows_the_cache(served: tuple[Path, Path, Events], control: Control) -> None:
    status, answer = ask(served[0], "GET", "/v1.44/system/df?type=build-cache")
    assert status == 200
    assert "BuilderSize" not in answer
    one, two = answer["BuildCache"]
    assert one == {
        "ID": "one",
        "Parents": ["a", "b"],
        "Type": "regular",
        "Description": "[1/2] RUN x",
        "InUse": False,
        "Shared": False,
        "Size": 77,
        "CreatedAt": "2023-11-14T22:13:20.000000000Z",
        "LastUsedAt": None,
        "UsageCount": 3,
    }
    assert "Parents" not in two
    assert two["LastUsedAt"] == "2023-11-14T22:13:22.000000000Z"
    older = ask(served[0], "GET", "/v1.41/system/df?type=build-cache")[1]
    assert older["BuildCache"][0]["Parent"] == "a" and older["BuilderSize"] == 77


# POST /build


class Solver(Control):
    """Reads the context from the session as a builder does, and tells of two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = Manager()
        self.solved = threading.Event()
        self.error = ""
        self.begun, self.gone = threading.Event(), threading.Event()
        self.block = False

    def Session(self, requests: Any, context: Any) -> Iterator[Any]:
        self.seen["tunnelled"] = True
        yield from self.manager.serve_stream(list(context.invocation_metadata()), requests)

    def Solve(self, request: Any, context: Any) -> Any:
        self.seen["solve"] = request
        context.add_callback(self.gone.set)
        self.begun.set()
        try:
            if request.FrontendAttrs.get("context", "").startswith("http://buildkit-session/"):
                session = self.manager.get(request.Session, 10)
                self.seen["context"] = b"".join(upload.pull(session, request.FrontendAttrs["context"]))
                self.seen["credentials"] = auth.credentials(session, "registry-1.docker.io")
            if self.block:
                self.gone.wait(20)
            if self.error:
                context.abort(grpc.StatusCode.UNKNOWN, self.error)
            return control_pb2.SolveResponse(
                ExporterResponse={"containerimage.config.digest": f"sha256:{'12' * 32}", "containerimage.digest": "x"}
            )
        finally:
            self.solved.set()

    def Status(self, request: Any, context: Any) -> Iterator[Any]:
        vertex = control_pb2.Vertex(digest="sha256:a", name="[2/3] RUN make")
        vertex.started.FromSeconds(1)
        internal = control_pb2.Vertex(digest="sha256:b", name="[internal] load build context")
        cached = control_pb2.Vertex(digest="sha256:c", name="[stage-1 3/3] COPY a b", cached=True)
        log = control_pb2.VertexLog(vertex="sha256:a", msg=b"making\n", stream=1)
        if "parse error" not in self.error:
            yield control_pb2.StatusResponse(vertexes=[internal, vertex], logs=[log])
            yield control_pb2.StatusResponse(vertexes=[vertex, cached])
        self.solved.wait(20)


@pytest.fixture
def solver(served: tuple[Path, Path, Events]) -> Iterator[Solver]:
    servicer = Solver()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    control_pb2_grpc.add_ControlServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{served[1]}")
    server.start()
    yield servicer
    server.stop(None).wait()


def post(path: Path, target: str, body: bytes, *headers: str) -> tuple[int, list[Any]]:
    with client(path) as sock:
        lines = [f"POST {target} HTTP/1.1", "Host: docker", "Connection: close", f"Content-Length: {len(body)}"]
        sock.sendall("\r\n".join([*lines, "Content-Type: application/x-tar", *headers, "", ""]).encode() + body)
        data = b""
        while part := sock.recv(65536):
            data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    answers = [json.loads(line) for line in rest.split(b"\r\n") if line.startswith(b"{")]
    return int(head.split()[1]), answers


@pytest.fixture(params=["handed over", "in messages"])
def way_of_sessions(request: pytest.FixtureRequest, served: tuple[Path, Path, Events], solver: Solver) -> Iterator[str]:
    if request.param == "handed over":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(served[1].with_name("builder-sessions.sock")))
        listener.listen()
        thread = threading.Thread(target=handover.serve, args=(listener, solver.manager))
        thread.start()
    yield request.param
    if request.param == "handed over":
        assert "tunnelled" not in solver.seen
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()


def test_a_classic_build(served: tuple[Path, Path, Events], solver: Solver, way_of_sessions: str) -> None:
    """The context goes through a session of teud's own; what is told has the form of old."""
    known = base64.urlsafe_b64encode(
        json.dumps({"https://index.docker.io/v1/": {"username": "me", "password": "secret"}}).encode()
    ).decode()
    query = "t=app:1&dockerfile=D&buildargs=%7B%22A%22%3A%22b%22%2C%22N%22%3Anull%7D&nocache=1&extrahosts=x:1.2.3.4"
    body = bytes(range(256)) * 5000
    status, told = post(served[0], f"/v1.45/build?{query}", body, f"X-Registry-Config: {known}")
    assert (status, told) == (
        200,
        [
            {"stream": "Step 2/3 : RUN make\n"},
            {"stream": "making\n"},
            {"stream": "Step 3/3 : COPY a b\n"},
            {"stream": " ---> Using cache\n"},
            {"aux": {"ID": f"sha256:{'12' * 32}"}},
            {"stream": "Successfully built 121212121212\n"},
            {"stream": "Successfully tagged app:1\n"},
        ],
    )
    assert solver.seen["context"] == body
    assert solver.seen["credentials"] == ("me", "secret")
    asked = solver.seen["solve"]
    attributes = dict(asked.FrontendAttrs)
    assert attributes.pop("context") == f"http://buildkit-session/{asked.Session}"
    assert attributes == {
        "filename": "D",
        "build-arg:A": "b",
        "no-cache": "",
        "add-hosts": "x=1.2.3.4",
        "image-resolve-mode": "default",
        "classic-context": "",
    }
    (exporter,) = asked.Exporters
    assert (exporter.Type, exporter.Attrs["name"]) == ("image", "docker.io/library/app:1")
    solver.solved.clear()
    assert post(served[0], "/build?q=1", b"")[1] == [{"stream": f"sha256:{'12' * 32}\n"}]
    assert solver.seen["solve"].Exporters[0].Attrs["dangling-name-prefix"] == "dangling@"


def test_limits_have_the_names_that_the_frontend_knows(served: tuple[Path, Path, Events], solver: Solver) -> None:
    asked = {"memory": "64000000", "memswap": "-1", "cpushares": "512", "cpuperiod": "100000", "cpuquota": "50000"}
    asked |= {"cpusetcpus": "0-1", "cpusetmems": "0", "shmsize": "1000"}
    post(served[0], f"/build?{urlencode(asked)}", b"")
    given = dict(solver.seen["solve"].FrontendAttrs)
    assert given.pop("shm-size") == asked.pop("shmsize")
    assert {name: given[name] for name in asked} == asked
    limits = parse_options(given).resources
    assert (limits.memory, limits.memorySwap, limits.cpuShares) == (64_000_000, -1, 512)
    assert (limits.cpuPeriod, limits.cpuQuota, limits.cpusetCpus, limits.cpusetMems) == (100_000, 50_000, "0-1", "0")


def test_a_build_of_version_2(served: tuple[Path, Path, Events], solver: Solver) -> None:
    target = "/build?version=2&remote=client-session&session=abc&networkmode=host&buildid=one"
    status, told = post(served[0], target, b"")
    assert (solver.seen["solve"].Session, list(solver.seen["solve"].Entitlements)) == ("abc", ["network.host"])
    assert "classic-context" not in solver.seen["solve"].FrontendAttrs
    assert status == 200
    assert [answer["id"] for answer in told] == ["moby.buildkit.trace", "moby.buildkit.trace", "moby.image.id"]
    trace = control_pb2.StatusResponse.FromString(base64.b64decode(told[0]["aux"]))
    assert trace.vertexes[1].name == "[2/3] RUN make"
    assert told[2]["aux"] == {"ID": f"sha256:{'12' * 32}"}


@pytest.mark.parametrize("served", [True], indirect=True)
def test_the_id_of_a_build_is_its_targets(served: tuple[Path, Path, Events], solver: Solver) -> None:
    solver.solved.clear()
    assert post(served[0], "/build?q=1", b"")[1] == [{"stream": "x\n"}]


def test_a_build_whose_context_is_uploaded_apart(served: tuple[Path, Path, Events], solver: Solver) -> None:
    answers: list[Any] = []
    target = "/build?version=2&remote=upload-request&buildid=one"
    thread = threading.Thread(target=lambda: answers.append(post(served[0], target, b"")))
    thread.start()
    assert post(served[0], "/build?buildid=upload-request:one", b"the context")[0] == 200
    thread.join(20)
    assert answers[0][0] == 200
    assert solver.seen["context"] == b"the context"


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        ("dockerfile parse error on line 1: unknown instruction: X", 400, "dockerfile parse error on line 1: unknown"),
        (
            'process "/bin/sh -c false" did not complete successfully: exit code: 7',
            200,
            "The command '/bin/sh -c false' returned a non-zero code: 7",
        ),
    ],
)
def test_a_build_that_fails(
    served: tuple[Path, Path, Events], solver: Solver, error: str, status: int, told: str
) -> None:
    solver.error = error
    code, answers = post(served[0], "/build", b"")
    assert code == status
    if status == 400:
        assert answers[0]["message"].startswith(told)
    else:
        assert answers[-1] == {"errorDetail": {"code": 7, "message": told}, "error": told}


@pytest.mark.parametrize("way", ["cancel", "leave"])
def test_a_build_that_nobody_wants_ends(served: tuple[Path, Path, Events], solver: Solver, way: str) -> None:
    solver.block = True
    with client(served[0]) as sock:
        sock.sendall(b"POST /build?buildid=x HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n")
        told = b""
        while b"Step 2/3" not in told:
            told += sock.recv(65536)
        assert solver.begun.wait(20)  # one that is given up before that, its server never sees
        if way == "cancel":
            assert post(served[0], "/build/cancel?id=x", b"")[0] == 200
        else:
            sock.close()
        assert solver.gone.wait(20)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("t=A", "repository name (library/A) must be lowercase"),
        ("t=a@sha256:" + "ab" * 32, "build tag cannot contain a digest"),
        ("buildargs=[]", "error reading build args"),
        ("labels=x", "error reading labels"),
        ("squash=1", "squash is only supported with experimental mode"),
        ("securityopt=[%22a%22]", "does not support setting security options on build"),
        ("isolation=hyperv", 'Unsupported isolation: "hyperv"'),
        ("networkmode=mine", 'network mode "mine" not supported by buildkit'),
        ("extrahosts=x", "invalid host x"),
        ("memory=much", "memory expects a number, got much"),
        ("ulimits=[1]", "error reading ulimits"),
        ("version=3", "invalid version 3"),
        ("version=2&outputs=[%7B%7D,%7B%7D]", "multiple outputs not supported"),
    ],
)
def test_what_cannot_be_built(served: tuple[Path, Path, Events], solver: Solver, query: str, said: str) -> None:
    code, answers = post(served[0], f"/build?{query}", b"")
    assert code == 400
    assert said in answers[0]["message"]


def test_credentials_that_are_none_show_nothing_of_themselves() -> None:
    for text in (b'["secret"]', b'{"a": "secret"}', b'{"secret"', b'{"a": {"auth": "secret!"}}'):
        header = base64.b64encode(text).decode()
        with pytest.raises(BadRequest) as refused:
            credentials(header)
        assert "secret" not in str(refused.value)
    given = {"a": {"auth": base64.b64encode(b"u:p:q").decode()}, "b": {"identitytoken": "t", "username": "u"}}
    assert credentials(base64.urlsafe_b64encode(json.dumps(given).encode()).decode().rstrip("=")) == {
        "a": ("u", "p:q"),
        "b": ("", "t"),
    }
