# SPDX-License-Identifier: Apache-2.0
"""The registry client against a registry on loopback that breaks transfers, redirects and asks for tokens."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from teu.oci import distribution
from teu.oci.distribution import Aborted, Credentials, Registry
from teu.oci.registries import Registries
from teu.oci.registry_hosts import Place

sys.path.insert(0, str(Path(__file__).parents[2] / "system"))
from scripted_registry import OCI_INDEX, OCI_MANIFEST, ScriptedRegistry, tar


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRegistry]:
    monkeypatch.setattr(distribution, "BACKOFF_SECONDS", 0.01)
    with ScriptedRegistry() as registry:
        yield registry


@pytest.fixture
def client(server: ScriptedRegistry) -> Iterator[Registry]:
    with Registry(server.address) as registry:
        yield registry


def layer_of(client: Registry, reference: str = "1") -> dict[str, object]:
    _, data = client.manifest("app", reference)
    found = json.loads(data)["layers"][0]
    assert isinstance(found, dict)
    return found


def test_resolve_and_fetch(server: ScriptedRegistry, client: Registry) -> None:
    wanted = server.image("app", "1", tar(("file", b"x" * 100_000)))
    assert client.resolve("app", "1") == wanted
    descriptor, _ = client.manifest("app", wanted["digest"])
    assert descriptor == wanted
    layer = layer_of(client)
    assert b"".join(client.blob("app", layer)) == server.blobs[str(layer["digest"])]


@pytest.mark.parametrize("no_ranges", [False, True])
def test_broken_transfer_goes_on(server: ScriptedRegistry, client: Registry, no_ranges: bool) -> None:
    server.image("app", "1", tar(("file", bytes(range(256)) * 4000)), compression="")
    layer = layer_of(client)
    server.broken[str(layer["digest"])] = 3
    server.no_ranges = no_ranges
    assert b"".join(client.blob("app", layer)) == server.blobs[str(layer["digest"])]
    ranges = [headers["range"] for _, path, headers in server.requests if "range" in headers and "blobs" in path]
    assert ranges


def test_transfer_that_always_breaks_ends(server: ScriptedRegistry, client: Registry) -> None:
    server.image("app", "1", tar(("file", b"x" * 1000)), compression="")
    layer = layer_of(client)
    server.broken[str(layer["digest"])] = 1000
    with pytest.raises(distribution.RegistryError, match="ends after .* of .* bytes"):
        b"".join(client.blob("app", layer))


def test_blob_of_another_size(server: ScriptedRegistry, client: Registry) -> None:
    server.image("app", "1", tar(("file", b"x" * 1000)))
    layer = layer_of(client)
    for size in (5, 10_000_000):
        with pytest.raises(distribution.Truncated):
            b"".join(client.blob("app", {**layer, "size": size}))


def test_manifest_is_verified(server: ScriptedRegistry, client: Registry) -> None:
    wanted = server.image("app", "1", tar(("file", b"x")))
    kind, data = server.manifests["app", wanted["digest"]]
    server.manifests["app", wanted["digest"]] = (kind, data + b" ")
    with pytest.raises(distribution.RegistryError, match="manifest verification failed"):
        client.manifest("app", wanted["digest"])


def test_unknown(server: ScriptedRegistry, client: Registry) -> None:
    with pytest.raises(distribution.NotFound, match="manifest unknown: manifest unknown"):
        client.manifest("app", "nope")


def test_bearer_token(server: ScriptedRegistry) -> None:
    server.token, server.credentials = "secret-token", "user:pass"
    server.image("app", "1", tar(("file", b"x")))
    with Registry(server.address, Credentials("user", "pass")) as client:
        client.manifest("app", "1")
    with Registry(server.address) as client, pytest.raises(distribution.Unauthorized):
        client.manifest("app", "1")


def test_basic(server: ScriptedRegistry) -> None:
    server.basic = "user:pass"
    server.image("app", "1", tar(("file", b"x")))
    with Registry(server.address, Credentials("user", "pass")) as client:
        client.manifest("app", "1")
    with Registry(server.address, Credentials("user", "wrong")) as client:
        with pytest.raises(distribution.Unauthorized):
            client.manifest("app", "1")


def test_redirect_gets_no_credentials(server: ScriptedRegistry) -> None:
    server.token = "secret-token"
    server.image("app", "1", tar(("file", b"x" * 5000)))
    with ScriptedRegistry() as store, Registry(server.address) as client:
        store.blobs, server.redirect = server.blobs, store
        layer = layer_of(client)
        assert b"".join(client.blob("app", layer)) == store.blobs[str(layer["digest"])]
        assert store.requests
        assert all("authorization" not in headers for _, _, headers in store.requests)


def test_giving_up_ends_what_is_under_way(server: ScriptedRegistry, client: Registry) -> None:
    """The registry is silent for longer than anybody waits; `abort` ends a blob, a request and a pause between two."""
    server.image("app", "1", tar(("file", b"x" * 1000)))
    layer = layer_of(client)
    asked, go = threading.Event(), threading.Event()

    def hook(_method: str, _path: str) -> None:
        asked.set()
        go.wait(60)

    server.hook = hook
    failures: list[BaseException] = []

    def fetch() -> None:
        try:
            b"".join(client.blob("app", layer))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    try:
        assert asked.wait(20)
        client.abort()
        thread.join(20)
    finally:
        go.set()
    assert [type(error) for error in failures] == [Aborted]
    with pytest.raises(Aborted):
        client.manifest("app", "1")


def test_head_is_not_all(server: ScriptedRegistry, client: Registry) -> None:
    server.image("app", "1", tar(("file", b"x")))
    server.head = 405
    assert client.resolve("app", "1") is None
    server.head = 403
    with pytest.raises(distribution.Unauthorized):
        client.resolve("app", "1")


def test_a_blob_goes_on_at_the_next_place(server: ScriptedRegistry) -> None:
    """The first has the documents, and of the layer always the same half."""
    with ScriptedRegistry() as second:
        for one in (server, second):
            one.image("app", "1", tar(("file", bytes(range(256)) * 4000)), compression="")
        places = Registries([(Place(), Registry(one.address)) for one in (server, second)])
        with places:
            layer = json.loads(places.manifest("app", "1")[1])["layers"][0]
            digest = str(layer["digest"])
            server.broken[digest] = 1000
            server.no_ranges = True
            assert b"".join(places.blob("app", layer)) == second.blobs[digest]
        asked = [headers.get("range") for method, path, headers in second.requests if digest in path]
        assert len(asked) == 1 and asked[0] and asked[0] != "bytes=0-"


def test_unreachable() -> None:
    with Registry("127.0.0.1:9") as client, pytest.raises(distribution.Unreachable, match="connection refused"):
        client.manifest("app", "1")
    with Registry("registry.invalid") as client, pytest.raises(distribution.Unreachable, match="no such host"):
        client.manifest("app", "1")


@pytest.fixture
def answers() -> Iterator[tuple[str, list[bytes]]]:
    """A registry that gives one answer to whatever is asked: its address, and the lines of the answer's head."""
    lines: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(65536)
                    peer.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]))

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", lines
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "given",
    [
        b"https://" + b"\xe4" * 5000,
        b"http://[::1",
        b"http://a:99999/",
        b"//[x]/",
        b"http://" + b"a" * 70 + b".example/",
    ],
)
@pytest.mark.parametrize("head", [b"307 R\r\nLocation: %s", b'401 U\r\nWWW-Authenticate: Bearer realm="%s"'])
def test_an_address_of_an_answer_that_is_none(answers: tuple[str, list[bytes]], head: bytes, given: bytes) -> None:
    address, lines = answers
    lines.append(b"HTTP/1.1 " + head % given)
    with Registry(address) as client, pytest.raises(distribution.RegistryError, match="which is no address") as told:
        client.manifest("app", "1")
    assert len(str(told.value)) < 500


def test_a_redirect_with_letters_of_no_url(server: ScriptedRegistry, answers: tuple[str, list[bytes]]) -> None:
    address, lines = answers
    lines.append(b"HTTP/1.1 307 R\r\nLocation: http://" + server.address.encode() + b"/v2/\xc3\xa4 b/manifests/1?x=%41")
    with Registry(address) as client, pytest.raises(distribution.NotFound):
        client.manifest("app", "1")
    assert [path for _, path, _ in server.requests] == ["/v2/%C3%A4%20b/manifests/1?x=%41"]


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"9" * 5000, b"x"])
def test_a_length_that_is_no_number(answers: tuple[str, list[bytes]], length: bytes) -> None:
    address, lines = answers
    lines += [b"HTTP/1.1 200 OK", b"Content-Type: x/y", b"Docker-Content-Digest: sha256:" + b"a" * 64]
    lines += [b"Content-Length: " + length, b"Retry-After: " + length]
    with Registry(address) as client:
        assert client.resolve("app", "1") is None


@pytest.mark.parametrize("status", [b"404 N", b"403 F", b"400 B"])
def test_an_error_that_is_nested_too_deeply(answers: tuple[str, list[bytes]], status: bytes) -> None:
    address, lines = answers
    lines += [b"HTTP/1.1 " + status, b"Content-Length: 60000", b"", b"[" * 60_000]
    with Registry(address) as client, pytest.raises(distribution.RegistryError):
        client.manifest("app", "1")


class Asked(BaseHTTPRequestHandler):
    """A proxy that answers everything itself, and lets nobody through."""

    seen: list[tuple[str, str, str, str]]

    def do_GET(self) -> None:
        given = self.headers
        self.seen.append((self.command, self.path, given["Host"] or "", given["Proxy-Authorization"] or ""))
        self.send_response(403 if self.command == "CONNECT" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET

    def log_message(self, *_: Any) -> None: ...


def test_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Asked.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv(name, f"http://me:pass%20word@127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "direct.invalid")
    basic = "Basic " + base64.b64encode(b"me:pass word").decode()
    try:
        with Registry("reg.invalid:5000", options=distribution.Options(insecure=("reg.invalid:5000",))) as client:
            with pytest.raises(distribution.RegistryError):
                client.ping()  # https first, through a tunnel that the proxy refuses
            client.request("GET", "http://reg.invalid:5000/v2/x?y=z")
        assert Asked.seen[0] == ("CONNECT", "reg.invalid:5000", "reg.invalid:5000", basic)
        assert Asked.seen[-1] == ("GET", "http://reg.invalid:5000/v2/x?y=z", "reg.invalid:5000", basic)
        before = len(Asked.seen)
        with Registry("direct.invalid") as client, pytest.raises(distribution.Unreachable, match="no such host"):
            client.ping()
        with Registry("127.0.0.1:1") as client, pytest.raises(distribution.Unreachable):
            client.ping()
        assert len(Asked.seen) == before
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy:port")
        with Registry("reg.invalid") as client, pytest.raises(distribution.RegistryError, match="HTTPS_PROXY"):
            client.ping()
    finally:
        server.shutdown()
        server.server_close()


def test_no_registry_can_have_such_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    for host in ("80", "10.1", "0x7f.1", "a" * 64 + ".example"):
        with Registry(host) as client, pytest.raises(distribution.Unreachable, match=f"lookup {host}: no such host"):
            client.ping()
    for host in ("reg.example:65536", "[:::]"):
        with pytest.raises(distribution.RegistryError, match="no address of a registry"):
            Registry(host)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(101, "Network is unreachable"), "dial tcp 10.0.0.1:443: connect: network is unreachable"),
        (OSError(113, "No route to host"), "dial tcp 10.0.0.1:443: connect: no route to host"),
        (ConnectionResetError(104, "Connection reset by peer"), "connection reset by peer"),
        (http.client.RemoteDisconnected("Remote end closed connection without response"), "EOF"),
    ],
)
def test_the_words_of_the_system(error: Exception, told: str) -> None:
    assert distribution._reason(error, "10.0.0.1") == told


def test_plain_http_is_for_loopback_and_the_insecure() -> None:
    options = distribution.Options(insecure=("reg.example:5000", "10.0.0.0/8"))
    for host in ("localhost:5000", "127.0.0.1", "[::1]:80", "reg.example:5000", "10.2.3.4:1"):
        assert distribution.is_insecure(host, options)
    for host in ("reg.example", "11.0.0.1", "docker.io"):
        assert not distribution.is_insecure(host, options)


def test_credentials_header() -> None:
    header = base64.urlsafe_b64encode(json.dumps({"username": "u", "password": "p"}).encode()).decode()
    assert distribution.credentials_from_header(header) == Credentials("u", "p")
    assert distribution.credentials_from_header("") == Credentials()
    deep, bytes_of_no_text = b"[" * 100_000, b"\xd3"
    for bad in ("%%%", *(base64.urlsafe_b64encode(each).decode() for each in (b"[1]", deep, bytes_of_no_text))):
        with pytest.raises(ValueError, match="X-Registry-Auth") as told:
            distribution.credentials_from_header(bad)
        assert "codec" not in str(told.value)
    half = base64.urlsafe_b64encode(b'{"username": "\\ud800"}').decode()
    assert distribution.credentials_from_header(half).username == "\ufffd"


KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*argv: str) -> None:
    subprocess.run(["openssl", *argv], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_certificates(server: ScriptedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not loopback's: only TLS, and only what an authority in certs.d vouches for."""
    ca, key, request, cert = (str(tmp_path / name) for name in ("ca.crt", "key", "request", "cert"))
    openssl(
        "req",
        "-x509",
        *KEY,
        "-days",
        "2",
        "-subj",
        "/CN=ca",
        "-keyout",
        f"{ca}.key",
        "-out",
        ca,
        "-addext",
        "keyUsage=critical,keyCertSign",
    )
    openssl("req", *KEY, "-subj", "/CN=reg.test", "-keyout", key, "-out", request)
    (tmp_path / "extensions").write_text("subjectAltName=DNS:reg.test")
    openssl(
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        ca,
        "-CAkey",
        f"{ca}.key",
        "-days",
        "2",
        "-extfile",
        str(tmp_path / "extensions"),
        "-out",
        cert,
    )
    original = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: original("127.0.0.1" if host == "reg.test" else host, *a, **k)
    )
    port = server.address.partition(":")[2]
    server.image("app", "1", tar(("file", b"x")))
    options = distribution.Options(certs=str(tmp_path / "certs.d"))
    with Registry(f"reg.test:{port}", options=options) as client, pytest.raises(distribution.Unreachable):
        client.manifest("app", "1")  # plain HTTP is not spoken with it
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    with Registry(f"reg.test:{port}", options=options) as client:
        with pytest.raises(distribution.Unreachable, match="failed to verify certificate"):
            client.manifest("app", "1")
    folder = tmp_path / "certs.d" / f"reg.test:{port}"
    folder.mkdir(parents=True)
    shutil.copy(ca, folder / "ca.crt")
    with Registry(f"reg.test:{port}", options=options) as client:
        client.manifest("app", "1")


def test_the_systems_authorities_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts without any of their own share them, until the system's have changed."""
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    options = distribution.Options(certs=str(tmp_path / "certs.d"))
    (tmp_path / "certs.d/own.test").mkdir(parents=True)

    def context(netloc: str, insecure: bool = False) -> ssl.SSLContext:
        return distribution._Host("https", netloc, options, insecure)._tls()

    first = context("a.test")
    assert first.verify_mode is ssl.CERT_REQUIRED and first.check_hostname
    assert context("b.test") is first
    own, believed = context("own.test"), context("127.0.0.1:5000", insecure=True)
    assert own is not first and own.verify_mode is ssl.CERT_REQUIRED and own.check_hostname
    assert believed is not first and believed.verify_mode is ssl.CERT_NONE and not believed.cert_store_stats()["x509"]
    bundle.write_text("# changed\n")
    assert context("a.test") is not first


# -- referrers -----------------------------------------------------------------------------------------------


def signature(server: ScriptedRegistry, target: dict[str, Any], kind: str) -> dict[str, Any]:
    """A manifest that refers to another one, under a tag of its own."""
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": server.put(b"{}"), "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "config": config, "layers": []}
    return server.manifest("app", kind, OCI_MANIFEST, {**document, "subject": target})


def test_referrers(server: ScriptedRegistry, client: Registry) -> None:
    image = server.image("app", "1", tar(("file", b"x")))
    one, two = signature(server, image, "a/b"), signature(server, image, "c/d")
    digest = str(image["digest"])
    assert client.referrers("app", digest) == []  # a registry without that call, and without the tag in its place
    listed = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one]}
    server.manifest("app", digest.replace(":", "-"), OCI_INDEX, listed)
    assert client.referrers("app", digest) == [one]
    server.referrers = True
    assert client.referrers("app", digest) == [{**one, "artifactType": "a/b"}, {**two, "artifactType": "c/d"}]
    assert client.referrers("app", "sha256:" + "0" * 64) == []
    # The tag is of an image: nobody has put a list there.
    server.referrers = False
    server.image("app", digest.replace(":", "-"), tar(("file", b"y")))
    assert client.referrers("app", digest) == []


def test_referrers_of_several_pages(
    server: ScriptedRegistry, client: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = server.image("app", "1", tar(("file", b"x")))
    one, two = signature(server, image, "a/b"), signature(server, image, "c/d")
    server.referrers = True
    path = f"/v2/app/referrers/{image['digest']}"

    def answer(handler: Any) -> None:
        last = handler.path.endswith("?last=1")
        data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [two if last else one]}).encode()
        link = {} if last else {"Link": f'<{path}?last=1>; rel="next"'}
        server._send(handler, 200, data, OCI_INDEX, link)

    monkeypatch.setattr(server, "_serve", answer)
    assert client.referrers("app", str(image["digest"])) == [one, two]


@pytest.mark.parametrize("status", [400, 404, 405, 406, 501])
def test_referrers_where_that_call_is_none(server: ScriptedRegistry, client: Registry, status: int) -> None:
    image = server.image("app", "1", tar(("file", b"x")))
    listed = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [image]}
    server.manifest("app", str(image["digest"]).replace(":", "-"), OCI_INDEX, listed)
    serve = server._serve

    def answer(handler: Any) -> None:
        if "/referrers/" in handler.path:
            server._error(handler, status, "UNSUPPORTED", "no such call")
        else:
            serve(handler)

    server._serve = answer  # type: ignore[method-assign]
    assert client.referrers("app", str(image["digest"])) == [image]


def test_referrers_that_are_refused_are_no_empty_list(server: ScriptedRegistry, client: Registry) -> None:
    for status, kind in ((401, distribution.Unauthorized), (500, distribution.RegistryError)):
        server._serve = lambda handler, status=status: server._error(handler, status, "X", "x")  # type: ignore[method-assign,misc]
        with pytest.raises(kind):
            client.referrers("app", "sha256:" + "0" * 64)


def test_referrers_of_a_page_for_people(server: ScriptedRegistry, client: Registry) -> None:
    def answer(handler: Any) -> None:
        if "/referrers/" in handler.path:
            server._send(handler, 200, b"<html>", "text/html")
        else:
            server._error(handler, 404, "MANIFEST_UNKNOWN", "manifest unknown")

    server._serve = answer  # type: ignore[method-assign]
    assert client.referrers("app", "sha256:" + "0" * 64) == []


def test_referrers_are_of_all_members(server: ScriptedRegistry, client: Registry) -> None:
    """A mirror that has none hides none of the registry's own."""
    image = server.image("app", "1", tar(("file", b"x")))
    one = signature(server, image, "a/b")
    server.referrers = True
    with ScriptedRegistry() as mirror, Registry(mirror.address) as first:
        mirror.referrers = True
        both = Registries([(Place(), first), (Place(), client)])
        assert [each["digest"] for each in both.referrers("app", str(image["digest"]))] == [one["digest"]]
        mirror._serve = lambda handler: mirror._error(handler, 403, "X", "x")  # type: ignore[method-assign]
        assert both.referrers("app", str(image["digest"]))
        with pytest.raises(distribution.Unauthorized):
            Registries([(Place(), first)]).referrers("app", str(image["digest"]))
