# SPDX-License-Identifier: Apache-2.0
"""teud on more than its socket: TCP with TLS by systemd's socket and by -H, docker's and our client on it, certificates
that change under it, refusals; authorization plugins."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import peers
import pytest
import whole

TREE = Path(__file__).resolve().parents[2]
TEU = "/usr/bin/teu"
PORT = 12376
PLACE = Path("/run/systemd/system/teud.socket.d/test.conf")
SETTINGS = Path("/etc/teu/teud.yaml.d/test-listening.yaml")


pytestmark = pytest.mark.needs("docker", "trixie")


@pytest.fixture(scope="module")
def busybox() -> None:
    images.need_busybox()


def openssl(*argv: str) -> None:
    peers.run("openssl", *argv)


def sign(top: Path, name: str, authority: str, target: str = "") -> None:
    """target-cert.pem and target-key.pem for a name."""
    target = target or name
    (top / "extension").write_text(f"subjectAltName=IP:127.0.0.1,DNS:{name}.test\n")
    openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", f"{top}/{target}-key.pem", "-out", f"{top}/request"),
    )
    openssl(
        *("x509", "-req", "-in", f"{top}/request", "-CA", f"{top}/{authority}.pem", "-days", "2"),
        *("-CAkey", f"{top}/{authority}.key", "-CAcreateserial", "-out", f"{top}/{target}-cert.pem"),
        *("-extfile", f"{top}/extension"),
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tls")
    for authority in ("ca", "strangers"):
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}"),
            *("-keyout", f"{top}/{authority}.key", "-out", f"{top}/{authority}.pem"),
        )
    for name, authority in (("server", "ca"), ("admin", "ca"), ("other", "ca"), ("stranger", "strangers")):
        sign(top, name, authority)
    for name in ("admin", "other", "stranger"):
        folder = top / name
        folder.mkdir()
        for kind in ("cert", "key"):
            (folder / f"{kind}.pem").write_bytes((top / f"{name}-{kind}.pem").read_bytes())
        (folder / "ca.pem").write_bytes((top / "ca.pem").read_bytes())
    return top


def restart() -> None:
    peers.run("systemctl", "daemon-reload")
    peers.run("systemctl", "stop", "teud.service", "teud.socket")
    peers.run("systemctl", "reset-failed", "teud.service", "teud.socket", code=None)
    peers.run("systemctl", "start", "teud.socket")


@contextlib.contextmanager
def settings(text: str) -> Iterator[None]:
    SETTINGS.parent.mkdir(exist_ok=True)
    SETTINGS.write_text(text)
    try:
        yield
    finally:
        SETTINGS.unlink()


@contextlib.contextmanager
def listening(text: str) -> Iterator[None]:
    """teud.socket on TCP as well, and these lines in teud.yaml."""
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    PLACE.write_text(f"[Socket]\nListenStream=127.0.0.1:{PORT}\n")
    try:
        with settings(text):
            restart()
            yield
    finally:
        PLACE.unlink()
        restart()


def keys(top: Path, more: str = "") -> str:
    files = f"tlscacert: {top}/ca.pem\ntlscert: {top}/server-cert.pem\ntlskey: {top}/server-key.pem\n"
    return f"tlsverify: true\n{files}{more}"


def client(program: str, top: Path, who: str, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {
        "DOCKER_HOST": f"tcp://127.0.0.1:{PORT}",
        "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": str(top / who),
    }
    return peers.run(program, *words, env=environment, **more)


@pytest.mark.parametrize("program", ["docker", TEU], ids=["docker", "teu"])
def test_by_tls_everything_works(certificates: Path, program: str, busybox: None) -> None:
    with listening(keys(certificates, "tls-names: [admin]\n")):
        run = ("run", "--rm", "--network", "none")

        def call(*words: str, **more: Any) -> str:
            return client(program, certificates, "admin", *words, **more).stdout

        assert "busybox" in call("images")
        assert call(*run, "busybox", "echo", "hello") == "hello\n"
        for size in (0, 10, 3_000_000):
            assert call(*run, "-i", "busybox", "wc", "-c", stdin="x" * size).strip() == str(size)
        assert len(call(*run, "busybox", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x")) == 3_000_000
        call(*run, "busybox", "sh", "-c", "exit 7", code=7)
        assert call("run", "-d", "--name", "tls", "--network", "none", "busybox", "sleep", "1000")
        assert call("exec", "tls", "echo", "inside") == "inside\n"
        call("cp", "/etc/hostname", "tls:/tmp/copied")
        assert call("exec", "tls", "cat", "/tmp/copied") == Path("/etc/hostname").read_text()
        call("rm", "-f", "tls")
        for who, told in (("other", "tls-names"), ("stranger", "")):
            assert told in client(program, certificates, who, "ps", code=1).stderr
        assert b"hello" not in _plain()
        # The socket of this host goes on as before, and systemd starts the daemon by either.
        assert "busybox" in peers.run(TEU, "images").stdout
        peers.run("systemctl", "stop", "teud.service")
        assert "busybox" in call("images")


def _plain() -> bytes:
    with socket.create_connection(("127.0.0.1", PORT), 10) as sock:
        sock.sendall(b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            return sock.recv(65536)
    return b""


def test_a_new_certificate_is_in_force_without_a_restart(certificates: Path, busybox: None) -> None:
    def shown() -> str:
        connect = ("s_client", "-connect", f"127.0.0.1:{PORT}", "-cert", f"{certificates}/admin-cert.pem")
        done = peers.run("openssl", *connect, "-key", f"{certificates}/admin-key.pem", code=None)
        return next(line for line in done.stdout.splitlines() if line.startswith("subject="))

    with listening(keys(certificates)):
        client(TEU, certificates, "admin", "ps")
        before = whole.main_pid("teud.service")
        assert shown() == "subject=CN=server"
        sign(certificates, "renewed", "ca", "server")
        assert shown() == "subject=CN=renewed"
        client("docker", certificates, "admin", "ps")
        assert whole.main_pid("teud.service") == before


def test_contexts_carry_certificates(certificates: Path, tmp_path: Path, busybox: None) -> None:
    """Made by one program, used by the other."""
    with listening(keys(certificates)):
        for maker, user in (("docker", TEU), (TEU, "docker")):
            config = tmp_path / os.path.basename(maker)
            environment = {"DOCKER_CONFIG": str(config), "DOCKER_HOST": "", "TEU_HOST": ""}
            admin = certificates / "admin"
            words = f"host=tcp://127.0.0.1:{PORT},ca={admin}/ca.pem,cert={admin}/cert.pem,key={admin}/key.pem"
            peers.run(maker, "context", "create", "far", "--docker", words, env=environment)
            for program in (maker, user):
                assert "busybox" in peers.run(program, "-c", "far", "images", env=environment).stdout
            peers.run(user, "context", "export", "far", str(config / "far.tar"), env=environment)
            peers.run(maker, "context", "import", "again", str(config / "far.tar"), env=environment)
            assert "busybox" in peers.run(user, "-c", "again", "images", env=environment).stdout


def test_tcp_without_certificates_is_refused_unless_it_is_asked_for() -> None:
    with listening("log-level: info\n"):
        done = peers.run(TEU, "version", code=1)
        assert "tlsverify" in done.stderr + done.stdout
        whole.eventually("teud gives up", lambda: whole.show("teud.service", "ExecMainStatus") == "78")
    with settings("hosts: ['tcp://127.0.0.1:1']\n"):
        done = peers.run(
            "/usr/sbin/teud" if not (TREE / "bin/teud").exists() else str(TREE / "bin/teud"), "--validate", code=1
        )
        assert "whoever reaches it is root" in done.stderr
    with listening("insecure-tcp: true\n"):
        found = peers.run("docker", "version", "-f", "{{.Server.Os}}", env={"DOCKER_HOST": f"tcp://127.0.0.1:{PORT}"})
        assert found.stdout == "linux\n"


def test_http2_with_prior_knowledge(busybox: None) -> None:
    """curl, whose HTTP/2 is nghttp2's: the answers are those of HTTP/1.1."""
    socket_of = ("--unix-socket", "/run/teu/teud.sock")

    def ask(*words: str) -> list[str]:
        return [
            peers.run("curl", "-sS", *version, *socket_of, *words).stdout
            for version in ((), ("--http2-prior-knowledge",))
        ]

    plain, newer = ask("http://h/v1.45/images/json")
    assert plain == newer and "busybox" in plain
    plain, newer = ask("-w", "%{http_code} %{http_version}", "http://h/v1.45/containers/nosuch/json")
    assert plain.removesuffix("404 1.1") == newer.removesuffix("404 2")
    body = ("-X", "POST", "-H", "Content-Type: application/json", "-d", '{"Name": "byh2"}')
    created = [json.loads(text) for text in ask(*body, "http://h/v1.45/volumes/create")]
    assert {each["Name"] for each in created} == {"byh2"}
    ask("-X", "DELETE", "http://h/v1.45/volumes/byh2")
    plain, newer = ask("-o", "/dev/null", "-w", "%{size_download}", "http://h/v1.45/images/busybox/get")
    assert plain == newer and int(plain) > 100_000


class Plugin(http.server.BaseHTTPRequestHandler):
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/Plugin.Activate":
            answer: dict[str, Any] = {"Implements": ["authz"]}
        else:
            asked = json.loads(data)
            self.asked.append(asked)
            answer = {"Allow": "/containers/create" not in asked["RequestUri"], "Msg": "no new ones"}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...

    def address_string(self) -> str:
        return ""


def test_an_authorization_plugin_decides(certificates: Path, busybox: None) -> None:
    folder = Path("/run/docker/plugins")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gate.sock"
    path.unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(str(path), Plugin) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with listening(keys(certificates, "authorization-plugins: [gate]\n")):
                for program in ("docker", TEU):
                    Plugin.asked.clear()
                    assert "busybox" in client(program, certificates, "admin", "images").stdout
                    assert {asked["User"] for asked in Plugin.asked} == {"admin"}
                    assert {asked["UserAuthNMethod"] for asked in Plugin.asked} == {"TLS"}
                    done = client(program, certificates, "admin", "create", "busybox", code=1)
                    assert "authorization denied by plugin gate: no new ones" in done.stderr
                assert '"gate"' in peers.run(TEU, "info", "-f", "{{json .Plugins.Authorization}}").stdout
        finally:
            server.shutdown()
            thread.join()
            path.unlink(missing_ok=True)
