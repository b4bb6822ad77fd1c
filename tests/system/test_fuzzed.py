# SPDX-License-Identifier: Apache-2.0
"""What the fuzz targets (tests/fuzz) have found, a small case of each; what needs no daemon is among the unit tests."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import images
import pytest
import whole
from scripted_registry import ScriptedRegistry, tar

SOCKET = "/run/teu/teud.sock"


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[None]:
    images.need_busybox()
    whole.remove_everything()
    body = {"Image": "busybox", "Cmd": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]}
    assert ask("POST", "/containers/create?name=fuzzed", body)[0] == 201
    assert ask("POST", "/containers/fuzzed/start")[0] == 204
    yield
    whole.remove_everything()


def ask(method: str, target: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """(status, the message of an error or the whole body)"""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(60)
    connection.sock.connect(SOCKET)
    data = None if body is None else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(
        method, f"/v1.45{target}", data, {"Content-Type": "application/json", **given} if data else given
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= 400:
        return answer.status, str(json.loads(content)["message"])
    return answer.status, content.decode(errors="replace")


@pytest.mark.parametrize("verb", ["restart", "stop"])
def test_a_patience_beyond_the_clock(verb: str) -> None:
    assert ask("POST", f"/containers/fuzzed/{verb}?t={2**53}")[0] == 204
    assert ask("POST", "/containers/fuzzed/start")[0] in (204, 304)


def test_a_stop_timeout_beyond_the_clock() -> None:
    """It did not fit into systemd's property either."""
    body = {"Image": "busybox", "Cmd": ["true"], "StopTimeout": 2**62, "HostConfig": {"NetworkMode": "none"}}
    assert ask("POST", "/containers/create?name=patient", body)[0] == 201
    assert ask("POST", "/containers/patient/start") == (204, "")


def test_what_no_program_can_be_told() -> None:
    assert ask("GET", "/containers/fuzzed/top?ps_args=-e%00f") == (
        400,
        "ps_args must not contain a NUL character: '-e\\x00f'",
    )


def test_a_moment_of_two_lines() -> None:
    status, message = ask("GET", "/events?until=1&since=" + quote("a\nb"))
    assert (status, message) == (400, "invalid value for \"since\": 'a\\nb' is neither a time nor a duration")


@pytest.mark.parametrize("address", ["::", "127.0.0.1", "224.0.0.1", "10.1.2.3", "fe80::1%lo", "x"])
def test_a_link_local_address_that_is_none(address: str) -> None:
    networks = {"EndpointsConfig": {"bridge": {"IPAMConfig": {"LinkLocalIPs": [address]}}}}
    status, message = ask("POST", "/containers/create", {"Image": "busybox", "NetworkingConfig": networks})
    assert status == 400 and f"invalid link-local IP address: {address}" in message


def test_what_the_kernel_refuses_of_an_endpoint() -> None:
    body = {"Image": "busybox", "Cmd": ["true"], "MacAddress": "01:00:00:00:00:01"}
    assert ask("POST", "/containers/create?name=loud", body)[0] == 201
    status, message = ask("POST", "/containers/loud/start")
    assert status == 500 and "failed to create endpoint loud on network bridge: " in message
    assert "Errno" not in message and "internal error" not in message


def test_a_registry_that_cannot_be_reached() -> None:
    given = {"username": "a", "password": "b", "serveraddress": "192.0.2.1"}
    status, message = ask("POST", "/auth", given)
    assert status == 500 and message == (
        'Get "https://192.0.2.1/v2/": dial tcp 192.0.2.1:443: connect: network is unreachable'
    )
    status, message = ask("POST", "/auth", {**given, "serveraddress": "80/tcp"})
    assert (status, message) == (500, 'Get "https://80/v2/": dial tcp: lookup 80: no such host')
    for name in ("reg.example:99999", "[:::]"):
        status, message = ask("POST", f"/images/create?fromImage={quote(name)}/x&tag=1")
        assert status >= 400 and "internal error" not in message, message


def test_credentials_that_are_no_text() -> None:
    """They are none, as with docker."""
    status, message = ask("GET", "/distribution/127.0.0.1:1/box/json", X_Registry_Auth="0-65536")
    assert status == 500 and "refused" in message, message


def test_content_that_is_here_with_another_size() -> None:
    """The second manifest tells a lie of a layer that nobody fetches any more: no export came to its end."""
    with ScriptedRegistry() as registry:
        registry.image("app", "1", tar(("file", b"x" * 5000)))
        assert ask("POST", f"/images/create?fromImage={registry.address}/app&tag=1")[0] == 200
        manifest = json.loads(registry.manifests["app", "1"][1])
        manifest["layers"][0]["size"] += 1
        registry.manifest("app", "2", str(manifest["mediaType"]), manifest)
        status, text = ask("POST", f"/images/create?fromImage={registry.address}/app&tag=2")
        assert "its descriptor says" in text and "is damaged where it comes from" in text, (status, text)
        assert ask("GET", f"/images/{registry.address}/app:2/json")[0] == 404
        status, _ = ask("GET", f"/images/{registry.address}/app:1/get")
        assert status == 200
        assert ask("DELETE", f"/images/{registry.address}/app:1")[0] == 200


def test_a_history_of_more_layers_than_there_are() -> None:
    with ScriptedRegistry() as registry:
        registry.image("app", "1", tar(("file", b"x")))
        manifest = json.loads(registry.manifests["app", "1"][1])
        document = json.loads(registry.blobs[manifest["config"]["digest"]])
        document["history"] *= 3
        data = json.dumps(document).encode()
        manifest["config"] |= {"digest": registry.put(data), "size": len(data)}
        registry.manifest("app", "2", str(manifest["mediaType"]), manifest)
        assert ask("POST", f"/images/create?fromImage={registry.address}/app&tag=2")[0] == 200
        status, message = ask("GET", f"/images/{registry.address}/app:2/history")
        assert status == 500 and "too many non-empty layers in History section" in message
        assert ask("DELETE", f"/images/{registry.address}/app:2")[0] == 200


def test_who_leaves_something_unread_is_gone() -> None:
    """Each of them kept a thread and a descriptor of teud for good."""
    pid = subprocess.check_output(["systemctl", "show", "-p", "MainPID", "--value", "teud"], text=True).strip()

    def threads() -> int:
        return len(os.listdir(f"/proc/{pid}/task"))

    before = threads()
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(SOCKET)
            sock.sendall(b"GET /v1.45/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
    end = time.monotonic() + 30
    while threads() > before + 5 and time.monotonic() < end:
        time.sleep(0.2)
    assert threads() <= before + 5


def test_headers_of_the_configuration_are_sent(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"HttpHeaders": {"X-Meta-A": "b c", "User-Agent": "me"}}')
    heard = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        program = ["teu", "--config", str(tmp_path), "-H", f"unix://{tmp_path}/sock", "version"]
        with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            peer, _ = listener.accept()
            with peer:
                heard.append(peer.recv(65536))
            client.kill()
    assert b"\r\nX-Meta-A: b c\r\n" in heard[0] and b"User-Agent: me" not in heard[0]


@pytest.mark.parametrize("name", ["a/../..", ".", "x" * 300, "a:b"])
def test_a_sandbox_of_such_a_name(name: str) -> None:
    """Its name becomes a folder's, where the request brings the record."""
    import grpc

    from teu.api.services.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc

    with grpc.insecure_channel("unix:///run/teu/containerd.sock") as channel:
        stub = sandbox_pb2_grpc.ControllerStub(channel)
        request = sandbox_pb2.ControllerCreateRequest(sandbox_id=name)
        request.sandbox.sandbox_id = name
        request.sandbox.runtime.name = "io.containerd.teu.v2"
        with pytest.raises(grpc.RpcError) as told:
            stub.Create(request, metadata=(("containerd-namespace", "fuzzed"),))
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
