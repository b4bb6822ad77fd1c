# SPDX-License-Identifier: Apache-2.0
"""Where teud listens: systemd's sockets by their names, TCP, and TLS on it: whose certificates are let in, half-closes,
the take-over of a connection, certificates that change."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from teu.config import ConfigError, Settings, Wrong
from teu.engine import main
from teu.engine.api import router, tls
from teu.engine.api.messages import Response, hijack, json_response
from teu.engine.api.server import Server
from teu.engine.config import address, check_tcp, tcp_target
from teu.engine.core.errors import EngineError

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")


def settings(**values: Any) -> Settings:
    result = Settings()
    result.update({"hosts": [], "group": "root", "tls": False, "tlsverify": False, "insecure-tcp": False, **values})
    return result


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("tcp://127.0.0.1:1", ("127.0.0.1", 1)),
        ("tcp://h", ("h", 2376)),
        ("tcp://:2000", ("", 2000)),
        ("tcp://[::1]:5", ("::1", 5)),
        ("tcp://", None),
        ("tcp://h:99999", None),
        ("tcp://h:x", None),
        ("tcp://u@h:1", None),
        ("tcp://h:1/path", None),
    ],
)
def test_addresses_of_tcp(text: str, target: tuple[str, int] | None) -> None:
    assert tcp_target(text, 2376) == target
    if target:
        assert address(text) == text
    else:
        with pytest.raises(Wrong, match="tcp://HOST:PORT"):
            address(text)


def test_tcp_is_refused_without_certificates_of_clients() -> None:
    for values in ({}, {"tls": True}):
        with pytest.raises(EngineError, match="whoever reaches it is root"):
            check_tcp(settings(**values))
    check_tcp(settings(tlsverify=True))
    check_tcp(settings(**{"insecure-tcp": True}))


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, socket.socket]]]:
    made = [(name, socket.socket(socket.AF_UNIX)) for name in ("teud.socket", "second", "second")]
    monkeypatch.setattr(main, "listen_sockets", lambda: made)
    yield made
    for _, sock in made:
        sock.close()


def test_sockets_of_systemd_by_their_names(
    passed: list[tuple[str, socket.socket]], caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (sock for _, sock in passed)
    for host in ("fd://", "fd://*"):
        assert main.listeners(settings(hosts=[host])) == [first, second, third]
    with caplog.at_level(logging.WARNING):
        assert main.listeners(settings(hosts=["fd://second"])) == [second, third]
    assert "nobody serves the socket teud.socket" in caplog.text
    assert main.listeners(settings(hosts=[f"fd://{third.fileno()}", "fd://teud.socket"])) == [third, first]
    with pytest.raises(EngineError, match=r"systemd passes no such socket; there are teud.socket \(\d+\)"):
        main.listeners(settings(hosts=["fd://nosuch"]))


def test_a_tcp_socket_of_systemd_needs_certificates_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(main, "listen_sockets", lambda: [("teud.socket", listener)])
        with pytest.raises(ConfigError, match="tlsverify"):
            main.listeners(settings(hosts=["fd://"]))
        assert main.listeners(settings(hosts=["fd://"], tlsverify=True)) == [listener]


def test_several_sockets(tmp_path: Path) -> None:
    hosts = [f"unix://{tmp_path}/a", f"unix://{tmp_path}/b", "tcp://localhost:0"]
    found = main.listeners(settings(hosts=hosts, tlsverify=True))
    try:
        assert [sock.family for sock in found[:2]] == [socket.AF_UNIX] * 2
        assert {sock.getsockname()[0] for sock in found[2:]} <= {"127.0.0.1", "::1"} and len(found) > 2
        with pytest.raises(EngineError, match="-H tcp://127.0.0.1:"):
            main.listeners(settings(hosts=[f"tcp://127.0.0.1:{found[2].getsockname()[1]}"], tlsverify=True))
    finally:
        for sock in found:
            sock.close()


# TLS --------------------------------------------------------------------------------------------------------


KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")  # of RSA it takes a hundred times as long


def openssl(*argv: str) -> None:
    subprocess.run(["openssl", *argv], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and NAME.pem with NAME.key for server, second, client and other; stranger is of another authority."""
    top = tmp_path_factory.mktemp("certificates")
    for authority in ("ca", "strangers"):
        openssl(
            *("req", "-x509", *KEY, "-days", "2", "-subj", f"/CN={authority}"),
            *("-keyout", f"{top}/{authority}.key", "-out", f"{top}/{authority}.pem"),
        )
    for name in ("server", "second", "client", "other", "stranger"):
        authority = "strangers" if name == "stranger" else "ca"
        (top / "extension").write_text(f"subjectAltName=IP:127.0.0.1,DNS:{name}.test\n")
        openssl(
            *("req", *KEY, "-subj", f"/CN={name}"),
            *("-keyout", f"{top}/{name}.key", "-out", f"{top}/request"),
        )
        openssl(
            *("x509", "-req", "-in", f"{top}/request", "-CA", f"{top}/{authority}.pem", "-days", "2"),
            *("-CAkey", f"{top}/{authority}.key", "-CAcreateserial", "-out", f"{top}/{name}.pem"),
            *("-extfile", f"{top}/extension"),
        )
    return top


Serve = Callable[..., tuple[int, Settings]]


@pytest.fixture
def serve(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(**settings)`: the port of a server with TLS, and its settings."""
    monkeypatch.setattr(router, "_table", {})
    servers = []

    @router.route("GET", "/hello")
    def hello(engine: Any, request: Any) -> Response:
        return json_response({"hello": "x" * request.query.integer("size", 1)})

    @router.route("POST", "/raw")
    def raw(engine: Any, request: Any) -> Response:
        def talk(sock: socket.socket, early: bytes) -> None:
            data = early
            while part := sock.recv(65536):
                data += part
            sock.sendall(data.upper())

        return hijack(talk, "application/vnd.docker.raw-stream")

    def start(**values: Any) -> tuple[int, Settings]:
        for name in ("cert", "key"):
            (tmp_path / name).write_bytes((certificates / f"server.{'pem' if name == 'cert' else 'key'}").read_bytes())
        files = {"tlscert": f"{tmp_path}/cert", "tlskey": f"{tmp_path}/key", "tlscacert": f"{certificates}/ca.pem"}
        given = settings(**{"tlsverify": True, "tls-names": [], **files, **values})
        engine: Any = types.SimpleNamespace(
            ready=threading.Event(), stopping=threading.Event(), failure=None, config={}
        )
        engine.ready.set()
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(engine, [listener], tls.Guard(given))
        server.start()
        servers.append(server)
        return listener.getsockname()[1], given

    yield start
    for server in servers:
        server.close()


def connect(port: int, certificates: Path, name: str = "client", **more: Any) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=f"{certificates}/ca.pem")
    if name:
        context.load_cert_chain(f"{certificates}/{name}.pem", f"{certificates}/{name}.key")
    for key, value in more.items():
        setattr(context, key, value)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1")


def ask(sock: ssl.SSLSocket, path: str = "/v1.45/hello") -> tuple[int, Any]:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    data = b""
    while part := sock.recv(65536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@needs_openssl
def test_a_client_with_a_certificate_is_served(serve: Serve, certificates: Path) -> None:
    port, _ = serve()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with connect(port, certificates, minimum_version=version, maximum_version=version) as sock:
            assert sock.version() == version.name.replace("_", ".") and sock.cipher()[2] >= 128  # type: ignore[index]
            assert ask(sock) == (200, {"hello": "x"})
    with connect(port, certificates) as sock:
        assert ask(sock, "/v1.45/hello?size=5000000") == (200, {"hello": "x" * 5_000_000})


@needs_openssl
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("name", ["", "stranger"])
def test_others_are_not(serve: Serve, certificates: Path, name: str) -> None:
    port, _ = serve()
    with pytest.raises((ssl.SSLError, ConnectionError)), connect(port, certificates, name) as sock:
        ask(sock)  # with TLS 1.3 the client learns of it when it reads
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        plain.sendall(b"GET /v1.45/hello HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"hello" not in plain.recv(65536)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        old = {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1}
        connect(port, certificates, **old)
    assert ask(connect(port, certificates))[0] == 200


@needs_openssl
def test_only_the_names_that_are_let_in(serve: Serve, certificates: Path) -> None:
    port, given = serve(**{"tls-names": ["client", "second.test"]})
    for name, status in (("client", 200), ("second", 200), ("other", 403)):
        with connect(port, certificates, name) as sock:
            found = ask(sock)
            assert found[0] == status
            assert status == 200 or "tls-names" in found[1]["message"]
    given["tls-names"] = []
    assert ask(connect(port, certificates, "other"))[0] == 200


@needs_openssl
def test_without_verification_all_come_in(serve: Serve, certificates: Path) -> None:
    port, _ = serve(tlsverify=False, tls=True)
    assert ask(connect(port, certificates, ""))[0] == 200


@needs_openssl
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_connection_is_taken_over_and_half_closed(serve: Serve, certificates: Path, version: ssl.TLSVersion) -> None:
    """The client says that it has said all, as Go's CloseWrite does, and gets its answer after that."""
    port, _ = serve()
    context = ssl.create_default_context(cafile=f"{certificates}/ca.pem")
    context.load_cert_chain(f"{certificates}/client.pem", f"{certificates}/client.key")
    context.maximum_version = version
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(received, to_send, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), 10) as raw:

        def until(action: Callable[[], Any]) -> Any:
            while True:
                try:
                    result = action()
                except ssl.SSLWantReadError:
                    raw.sendall(to_send.read())
                    received.write(raw.recv(65536))
                else:
                    raw.sendall(to_send.read())
                    return result

        until(client.do_handshake)
        client.write(b"POST /v1.45/raw HTTP/1.1\r\nHost: h\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += until(lambda: client.read(1))
        assert head.startswith(b"HTTP/1.1 101")
        sent = b"some words " * 100_000
        client.write(sent)
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()
        raw.sendall(to_send.read())
        data = b""
        while not data.endswith(sent.upper()):
            part = until(lambda: client.read(65536))
            assert part
            data += part


@needs_openssl
def test_certificates_are_read_again_when_they_change(
    serve: Serve, certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port, _ = serve()

    def shown() -> Any:
        with connect(port, certificates) as sock:
            return dict(pair for part in sock.getpeercert()["subject"] for pair in part)["commonName"]  # type: ignore[index,misc,union-attr]

    assert shown() == "server"
    (tmp_path / "key").write_bytes((certificates / "second.key").read_bytes())
    with caplog.at_level(logging.ERROR):
        assert shown() == "server", "half of the pair is not in force"
    assert "the certificates from before stay in force" in caplog.text
    (tmp_path / "cert").write_bytes((certificates / "second.pem").read_bytes())
    assert shown() == "second"
    (tmp_path / "cert").unlink()
    assert shown() == "second"


def test_certificates_that_never_were(tmp_path: Path) -> None:
    files = {name: f"{tmp_path}/{name}" for name in ("tlscert", "tlskey", "tlscacert")}
    with pytest.raises(EngineError, match=r"TLS cannot be served with tlscert .*: No such file"):
        tls.Guard(settings(tlsverify=True, **files))


@needs_openssl
def test_a_client_that_says_nothing_is_given_up(
    serve: Serve, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.05)
    port, _ = serve()
    with socket.create_connection(("127.0.0.1", port), 10) as silent:
        assert silent.recv(1) == b""
