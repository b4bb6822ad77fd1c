# SPDX-License-Identifier: Apache-2.0
"""Versions of the Engine API: the members of answers at each version that docker 26 and later have, as Debian's dockerd
has them at the same one."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import docker_words
import engine
import peers
import pytest
import whole

pytestmark = [pytest.mark.needs("docker", "dockerd", "trixie", "namespace"), pytest.mark.timeout(300)]

DOCKER = 45  # minor version of the API of Debian 13's docker, which that of Debian testing has, too


class Answer(NamedTuple):
    status: int
    kind: str
    body: Any


def ask(path: str, minor: int, method: str, target: str, body: object = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(100)
    connection.sock.connect(path)
    data = None if body is None else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"} if data else {}
    connection.request(method, f"/v1.{minor}{target}", data, {**kind, **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    told = answer.getheader("Content-Type", "")
    return Answer(answer.status, told, json.loads(content or b"null") if told == "application/json" else content)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[str, str]]:
    engine.need_busybox()
    whole.remove_everything()
    with peers.dockerd(network=True) as daemon:
        daemon.load_busybox()
        pair = (engine.SOCKET, str(daemon.socket))
        for path in pair:
            body = {
                "Image": "busybox",
                "Cmd": ["sleep", "1000"],
                "HostConfig": {"NetworkMode": "bridge", "Annotations": {"a": "b"}},
            }
            assert ask(path, 43, "POST", "/containers/create?name=shaped", body).status == 201
            assert ask(path, 43, "POST", "/containers/shaped/start").status == 204
        yield pair
        for path in pair:
            ask(path, 43, "DELETE", "/containers/shaped?force=1")


# What an answer of docker's says of its own kind of storage, and what Teu says more, whichever the version.
OURS = {
    "/containers/shaped/json": {"Annotations"},
    "/info": {"Containerd", "CDISpecDirs"},
    "/images/busybox/json": {"Container", "Created"},  # docker's image has no date; 25 to 28 tell of no container
    "/networks/bridge": set(),
}
THEIRS = {"/info": {"ProductLicense", "HttpProxy", "HttpsProxy", "NoProxy"}}
THEIRS_OF_26 = {"/info": {*THEIRS["/info"], "ExecutionDriver"}}  # at 1.24; docker 28 tells it no more
THEIRS_OF_28 = {**THEIRS, "/networks/bridge": {"EnableIPv4"}}  # which it tells at versions that do not have it


@pytest.mark.parametrize("minor", [24, 41, 43, 44, 45])
@pytest.mark.parametrize("target", sorted(OURS))
def test_members_are_those_of_the_version(both: tuple[str, str], target: str, minor: int) -> None:
    ours, theirs = (ask(path, minor, "GET", target).body for path in both)
    known = THEIRS_OF_26 if docker_words.older() else THEIRS_OF_28
    more, less = set(ours) - set(theirs) - OURS[target], set(theirs) - set(ours) - known.get(target, set())
    assert not more and not less, (target, minor)
    for part in ("Config", "NetworkSettings", "ContainerConfig"):
        if isinstance(theirs.get(part), dict):
            assert set(theirs[part]) <= set(ours[part]), (part, minor)


def test_versions_that_only_later_docker_has(both: tuple[str, str]) -> None:
    """As moby's own history of the API has it."""
    path = both[0]
    for minor in range(45, 56):
        one = ask(path, minor, "GET", "/containers/shaped/json").body
        assert ("ImageManifestDescriptor" in one) == (minor >= 48)
        assert ("IPAddress" in one["NetworkSettings"]) == ("GraphDriver" in one) == (minor < 52)
        (row,) = ask(path, minor, "GET", "/containers/json?filters=" + '{"name":["shaped"]}').body
        assert row["HostConfig"].get("Annotations") == ({"a": "b"} if minor >= 46 else None)
        assert ("Health" in row) == (minor >= 52)
        told = ask(path, minor, "GET", "/info").body
        for name, since in (("Containerd", 46), ("FirewallBackend", 49)):
            assert (name in told) == (minor >= since), (name, minor)
        assert ("Expected" in told["RuncCommit"]) == (minor < 49) and ("BridgeNfIptables" in told) == (minor < 50)
        image = ask(path, minor, "GET", "/images/busybox/json").body
        assert ("Hostname" in image["Config"]) == (minor < 50) and ("GraphDriver" in image) == (minor < 52)
        network = ask(path, minor, "GET", "/networks/bridge").body
        assert ("EnableIPv4" in network) == (minor >= 48) and ("Status" in network) == (minor >= 52)
        if minor >= 52:
            (subnet,) = network["Status"]["IPAM"]["Subnets"].values()
            assert subnet["IPsInUse"] == 4 and subnet["DynamicIPsAvailable"] > 1000  # this container's is the fourth
        used = ask(path, minor, "GET", "/system/df").body
        assert ("ImageUsage" in used) == (minor >= 52) and "Images" in used
        brief = ask(path, minor, "GET", "/system/df?verbose=1").body
        assert ("Images" in brief) == (minor < 52)
        if minor >= 52:
            assert len(brief["ContainerUsage"]["Items"]) == brief["ContainerUsage"]["TotalCount"] == 1
    assert ask(path, 56, "GET", "/info").status == 400


def test_events_come_as_they_are_asked_for(both: tuple[str, str]) -> None:
    target = "/events?since=1&until=2&filters={}"
    for minor, accept, kind in (
        (45, "*/*", "application/json"),
        (52, "*/*", "application/jsonl"),
        (52, "application/x-ndjson", "application/x-ndjson"),
        (52, "application/json-seq", "application/json-seq"),
    ):
        assert ask(both[0], minor, "GET", target, Accept=accept).kind == kind
    assert ask(both[1], DOCKER, "GET", target).kind == "application/json"


def test_routes_outside_a_swarm(both: tuple[str, str]) -> None:
    """Status by status, as dockerd that is in no swarm; but init and join, which it would do."""
    for method, target in (
        *(("GET", f"/{kind}") for kind in ("swarm", "nodes", "services", "tasks", "secrets", "configs")),
        *(("GET", f"/{kind}/x") for kind in ("nodes", "services", "tasks", "secrets", "configs")),
        *(("DELETE", f"/{kind}/x") for kind in ("nodes", "services", "secrets", "configs")),
        *(("POST", f"/{kind}/x/update?version=1") for kind in ("nodes", "services", "secrets", "configs")),
        *(("POST", f"/{kind}/create") for kind in ("services", "secrets", "configs")),
        *(("POST", f"/swarm/{verb}") for verb in ("leave", "unlock")),
        ("POST", "/swarm/update?version=1"),
        ("GET", "/swarm/unlockkey"),
        ("GET", "/services/x/logs?stdout=1"),
        ("GET", "/tasks/x/logs?stdout=1"),
        ("GET", "/plugins"),
        ("GET", "/plugins/x/json"),
        ("DELETE", "/plugins/x"),
        ("POST", "/plugins/x/enable?timeout=0"),
        ("POST", "/plugins/x/disable"),
        ("GET", "/containers/shaped/checkpoints"),
        ("POST", "/containers/shaped/checkpoints"),
        ("DELETE", "/containers/shaped/checkpoints/x"),
        ("OPTIONS", "/containers/json"),
        ("OPTIONS", "/any/thing"),
    ):
        body = {} if method == "POST" else None
        ours, theirs = (ask(path, DOCKER, method, target, body).status for path in both)
        assert ours == theirs, (method, target)
    for method, target in (("GET", "/configs"), ("GET", "/secrets"), ("POST", "/networks/prune")):
        ours, theirs = (ask(path, 24, method, target).status for path in both)
        assert ours == theirs, target
    assert ask(both[0], 54, "GET", "/images/busybox/attestations").status == 400
    assert ask(both[0], 55, "GET", "/images/busybox/attestations") == Answer(200, "application/json", [])


def test_debug_is_behind_the_level(both: tuple[str, str]) -> None:
    """docker 26, too, has it in its debug mode alone. docker 28 shows it to whoever is let in; for ours that is a
    thing of the configuration."""
    ours, theirs = (ask(path, DOCKER, "GET", "/debug/vars").status for path in both)
    assert (ours, theirs) == (404, 404 if docker_words.older() else 200)


def test_searches(both: tuple[str, str]) -> None:
    """Of a registry on loopback; what is refused, as by dockerd."""
    results = [{"name": "box", "description": "d", "star_count": 7, "is_official": True, "is_automated": False}]
    with searched({"results": results}) as host:
        for query in ("", "&limit=3", '&filters={"is-official":["true"],"stars":["7"]}', '&filters={"stars":["8"]}'):
            ours, theirs = (ask(path, DOCKER, "GET", f"/images/search?term={host}/box{query}") for path in both)
            assert ours == theirs and ours.status == 200, query
        for query in ("&limit=101", "&limit=x", '&filters={"colour":["blue"]}', '&filters={"stars":["x"]}'):
            ours, theirs = (ask(path, DOCKER, "GET", f"/images/search?term={host}/box{query}") for path in both)
            assert ours.status == theirs.status == 400, query


@contextlib.contextmanager
def searched(answer: object) -> Iterator[str]:
    """The address of a registry that answers any search so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer if self.path.startswith("/v1/search") else True).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _frame(opcode: int, data: bytes) -> bytes:
    return bytes([0x80 | opcode, 0x80 | len(data)]) + b"\0\0\0\0" + data  # masked with a mask of nothing


def attach(path: str, minor: int, query: str, words: bytes) -> bytes:
    """All bytes of frames that come back while `cat` answers these words, and the container ends with its input."""
    body = {"Image": "busybox", "Cmd": ["sh", "-c", "echo err >&2; read a; echo got $a"], "OpenStdin": True}
    identity = ask(path, 43, "POST", "/containers/create", {**body, "HostConfig": {"NetworkMode": "none"}}).body["Id"]
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(path)
            head = (
                f"GET /v1.{minor}/containers/{identity}/attach/ws?{query} HTTP/1.1\r\nHost: d\r\nUpgrade: websocket\r\n"
            )
            head += "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nOrigin: http://d\r\n"
            head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            sock.sendall(head.encode())
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(1)
            assert data.startswith(b"HTTP/1.1 101 "), data
            assert b"s3pplmbitxaq9kygzzhzrbk+xoo=" in data.lower()
            assert ask(path, 43, "POST", f"/containers/{identity}/start").status == 204
            sock.sendall(_frame(2, words))
            told = b""
            while part := sock.recv(65536):
                told += part
        return told
    finally:
        ask(path, 43, "DELETE", f"/containers/{identity}?force=1")


@pytest.mark.parametrize(
    ("minor", "query", "heard"),
    [
        (45, "stream=1&stdin=1&stdout=1&stderr=1", (b"err", b"got word")),
        (45, "stream=1&stdin=1&stdout=1", (b"got word",)),
        (41, "stream=1", (b"err", b"got word")),
    ],
)
def test_attaching_by_websocket(both: tuple[str, str], minor: int, query: str, heard: tuple[bytes, ...]) -> None:
    for path in both:
        told = attach(path, minor, query, b"word\n")
        for words in (b"err", b"got word"):
            assert (words in told) == (words in heard), (path, told)


def test_bodies_of_versions(both: tuple[str, str]) -> None:
    def create(path: str, minor: int, **host: Any) -> Answer:
        answer = ask(path, minor, "POST", "/containers/create?name=of-a-version", {"Image": "busybox", **host})
        ask(path, minor, "DELETE", "/containers/of-a-version?force=1")
        return answer

    subpath = {"Mounts": [{"Type": "volume", "Target": "/x", "Source": "v", "VolumeOptions": {"Subpath": "a"}}]}
    force = {"Mounts": [{"Type": "bind", "Source": "/tmp", "Target": "/x", "ReadOnly": True}]}
    force["Mounts"][0]["BindOptions"] = {"ReadOnlyForceRecursive": True, "Propagation": "rprivate"}
    for minor, host in ((44, subpath), (43, force)):
        ours, theirs = (create(path, minor, HostConfig=host) for path in both)
        assert ours[::2] == theirs[::2] and ours.status == 400
    for path in both:
        assert create(path, DOCKER, MacAddress="02:00:00:00:00:09").status == 201
    assert create(both[0], 52, MacAddress="02:00:00:00:00:09").status == 400


def test_addresses_of_endpoints_before_they_had_any(both: tuple[str, str]) -> None:
    """A hardware address was the container's alone, until 1.44."""
    mac = "02:00:00:00:00:09"
    asked = {"NetworkingConfig": {"EndpointsConfig": {"bridge": {"MacAddress": mac}}}}
    for minor, body in ((43, asked), (45, asked), (43, {**asked, "MacAddress": "02:00:00:00:00:0a"})):
        found = []
        for path in both:
            create = {"Image": "busybox", "Cmd": ["sleep", "100"], "HostConfig": {"NetworkMode": "bridge"}, **body}
            identity = ask(path, minor, "POST", "/containers/create", create).body["Id"]
            ask(path, minor, "POST", f"/containers/{identity}/start")
            one = ask(path, minor, "GET", f"/containers/{identity}/json").body
            ask(path, minor, "DELETE", f"/containers/{identity}?force=1")
            found.append((one["NetworkSettings"]["MacAddress"], one["Config"].get("MacAddress", "")))
        ours, theirs = ((shown if shown.endswith(("09", "0a")) else "any", wide) for shown, wide in found)
        assert ours == theirs, minor
    for minor in (43, 44):
        body = {"Image": "busybox", "MacAddress": mac, "HostConfig": {"NetworkMode": "host"}}
        answers = [ask(path, minor, "POST", "/containers/create?name=of-the-host", body) for path in both]
        for path in both:
            ask(path, minor, "DELETE", "/containers/of-the-host?force=1")
        assert answers[0].status == answers[1].status, (minor, answers)


def test_what_older_versions_alone_have(both: tuple[str, str]) -> None:
    for minor, whole_ in ((27, True), (28, False)):
        for path in both:
            (network,) = ask(path, minor, "GET", '/networks?filters={"name":["bridge"]}').body
            assert bool(network["Containers"]) == whole_, (path, minor)
    for minor, names in ((40, []), (41, ["busybox:latest"])):
        for path in both:
            rows = ask(path, minor, "GET", "/images/json?filter=nosuchimage").body
            assert [name for row in rows for name in row["RepoTags"] if name == "busybox:latest"] == names
    for path in both:
        body = {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"AutoRemove": True}}
        identity = ask(path, 24, "POST", "/containers/create", body).body["Id"]
        assert ask(path, 43, "GET", f"/containers/{identity}/json").body["HostConfig"]["AutoRemove"] is False
        ask(path, 43, "DELETE", f"/containers/{identity}")
    odd = {"Mounts": [{"Type": "bind", "Source": "/tmp", "Target": "/x", "VolumeOptions": {"NoCopy": True}}]}
    for minor in (41, 42):
        for path in both:
            body = {"Image": "busybox", "Cmd": ["true"], "HostConfig": odd}
            assert ask(path, minor, "POST", "/containers/create?name=odd", body).status == 400, (path, minor)
