# SPDX-License-Identifier: Apache-2.0
"""What else a client serves in its session, by a real gRPC server: credentials, secrets, agents, uploads, content."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from unit.buildkit.tunnel import client

from teu.api.buildkit.session import auth_pb2, exporter_pb2, secrets_pb2, ssh_pb2, upload_pb2
from teu.api.services.content.v1 import content_pb2
from teu.buildkit.core import errors
from teu.buildkit.session import auth, content, exporter, secrets, ssh, upload
from teu.oci import ed25519

# RFC 8032, 7.1: key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize("key, message, signature", VECTORS)
def test_ed25519(key: str, message: str, signature: str) -> None:
    parts = [bytes.fromhex(part) for part in (key, message, signature)]
    assert ed25519.verify(*parts)
    for part in range(3):
        broken = list(parts)
        broken[part] = bytes([(broken[part] or b"\0")[0] ^ 1]) + broken[part][1:]
        assert not ed25519.verify(*broken)
    late = int.from_bytes(parts[2][32:], "little") + ed25519.ORDER
    assert not ed25519.verify(parts[0], parts[1], parts[2][:32] + late.to_bytes(32, "little"))
    assert not ed25519.verify(b"\xff" * 32, parts[1], parts[2])


def unary(name: str, request: Any, answer: Any, function: Any) -> Any:
    return {name: (False, False, request, answer, function)}


def test_credentials_and_tokens() -> None:
    def give(request: Any, context: Any) -> Any:
        return auth_pb2.CredentialsResponse(Username="me", Secret=f"for {request.Host}")

    def fetch(request: Any, context: Any) -> Any:
        return auth_pb2.FetchTokenResponse(Token=" ".join([request.Realm, *request.Scopes]))

    methods = unary(f"{auth.PREFIX}Credentials", auth_pb2.CredentialsRequest, auth_pb2.CredentialsResponse, give)
    methods |= unary(f"{auth.PREFIX}FetchToken", auth_pb2.FetchTokenRequest, auth_pb2.FetchTokenResponse, fetch)
    with client(methods) as session:
        assert auth.credentials(session, "r.io") == ("me", "for r.io")
        assert auth.fetch_token(session, "r.io", "https://t", "s", ["a", "b"]) == ("https://t a b", 60, 0)
        assert auth.token_authority(session, "r.io") is None
        assert not auth.verify_authority(session, "r.io", bytes(32))
    with client({}) as session:
        assert auth.credentials(session, "r.io") is None
        with pytest.raises(errors.Unimplemented):
            auth.fetch_token(session, "r.io", "https://t", "s", [])


def test_an_authority_is_proven_by_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    key, message, signature = (bytes.fromhex(part) for part in VECTORS[2])
    monkeypatch.setattr(auth.secrets, "token_bytes", lambda size: message)
    signed = {"good": signature + message, "other": signature + b"xx", "bad": bytes(64) + message, "none": b""}
    salts = set()

    def authority(request: Any, context: Any) -> Any:
        salts.add(request.Salt)
        if request.Host == "off":
            context.abort(grpc.StatusCode.UNAVAILABLE, "client side tokens disabled")
        return auth_pb2.GetTokenAuthorityResponse(PublicKey=key if request.Host != "short" else b"x")

    def verify(request: Any, context: Any) -> Any:
        salts.add(request.Salt)
        return auth_pb2.VerifyTokenAuthorityResponse(Signed=signed[request.Host])

    asked = (auth_pb2.GetTokenAuthorityRequest, auth_pb2.GetTokenAuthorityResponse)
    proven = (auth_pb2.VerifyTokenAuthorityRequest, auth_pb2.VerifyTokenAuthorityResponse)
    methods = unary(f"{auth.PREFIX}GetTokenAuthority", *asked, authority)
    methods |= unary(f"{auth.PREFIX}VerifyTokenAuthority", *proven, verify)
    with client(methods) as session:
        assert auth.token_authority(session, "r.io") == key
        assert auth.token_authority(session, "off") is None
        with pytest.raises(errors.InvalidArgument):
            auth.token_authority(session, "short")
        assert {host: auth.verify_authority(session, host, key) for host in signed} == {
            "good": True,
            "other": False,
            "bad": False,
            "none": False,
        }
    assert len(salts) == 1 and len(salts.pop()) == 32


def test_secrets() -> None:
    def give(request: Any, context: Any) -> Any:
        if request.ID == "none":
            context.abort(grpc.StatusCode.NOT_FOUND, "it would be wrong to tell what")
        return secrets_pb2.GetSecretResponse(data=b"x" * (600_000 if request.ID == "big" else 3))

    with client(unary(secrets.METHOD, secrets_pb2.GetSecretRequest, secrets_pb2.GetSecretResponse, give)) as session:
        assert secrets.get(session, "s") == b"xxx"
        with pytest.raises(errors.NotFound, match="^secret none: not found$"):
            secrets.get(session, "none")
        with pytest.raises(errors.InvalidArgument, match="600000 bytes"):
            secrets.get(session, "big")
    with client({}) as session, pytest.raises(errors.NotFound):
        secrets.get(session, "s")


def test_uploads() -> None:
    def pull(requests: Any, context: Any) -> Iterator[Any]:
        metadata = dict(context.invocation_metadata())
        yield upload_pb2.BytesMessage(data=f"{metadata['urlhost']} {metadata['urlpath']}".encode())
        for _ in range(5):
            yield upload_pb2.BytesMessage(data=bytes(100_000))

    message = upload_pb2.BytesMessage
    with client({upload.METHOD: (True, True, message, message, pull)}) as session:
        url = "http://buildkit-session/abc"
        data = b"".join(upload.pull(session, url))
        assert data.startswith(b"buildkit-session /abc\0") and len(data) == 500_000 + 21
        with pytest.raises(errors.ResourceExhausted):
            list(upload.pull(session, url, 200_000))
        first = upload.pull(session, url)
        next(first)
        first.close()


def agent(requests: Any, context: Any) -> Iterator[Any]:
    who = dict(context.invocation_metadata())[ssh.AGENT_KEY]
    for request in requests:
        if request.data == b"die":
            context.abort(grpc.StatusCode.INTERNAL, "died")
        yield ssh_pb2.BytesMessage(data=f"{who}: ".encode() + request.data)
    yield ssh_pb2.BytesMessage(data=b"bye")


def check_agent(request: Any, context: Any) -> Any:
    if request.ID != "default":
        context.abort(grpc.StatusCode.NOT_FOUND, f"unset ssh forward key {request.ID}")
    return ssh_pb2.CheckAgentResponse()


AGENT = {
    f"{ssh.PREFIX}CheckAgent": (False, False, ssh_pb2.CheckAgentRequest, ssh_pb2.CheckAgentResponse, check_agent),
    f"{ssh.PREFIX}ForwardAgent": (True, True, ssh_pb2.BytesMessage, ssh_pb2.BytesMessage, agent),
}


def connect(path: str) -> socket.socket:
    step = socket.socket(socket.AF_UNIX)
    step.settimeout(10)
    step.connect(path)
    return step


def rest(step: socket.socket) -> bytes:
    data = b""
    while more := step.recv(1000):
        data += more
    return data


def test_an_ssh_agent_is_forwarded(tmp_path: Path) -> None:
    owner = {"uid": os.getuid(), "gid": os.getgid(), "mode": 0o640}
    with client(AGENT) as session:
        ssh.check(session)
        with pytest.raises(errors.NotFound, match="unset ssh forward key x"):
            ssh.check(session, "x")
        with ssh.Forwarding(session, str(tmp_path), "key", **owner) as forwarding:
            assert os.stat(forwarding.path).st_mode & 0o777 == 0o640
            with connect(forwarding.path) as one, connect(forwarding.path) as other:
                one.sendall(b"1")
                assert one.recv(100) == b"key: 1"
                other.sendall(b"2")
                assert other.recv(100) == b"key: 2"
                one.shutdown(socket.SHUT_WR)
                assert rest(one) == b"bye"
                other.sendall(b"die")
                assert rest(other) == b""
            with connect(forwarding.path) as again:
                again.sendall(b"3")
                assert again.recv(100) == b"key: 3"
                forwarding.close()
                assert rest(again) == b""
        assert list(tmp_path.iterdir()) == []


def test_an_ssh_agent_goes_with_its_session(tmp_path: Path) -> None:
    with client(AGENT) as session:
        with ssh.Forwarding(session, str(tmp_path), uid=os.getuid(), gid=os.getgid()) as forwarding:
            with connect(forwarding.path) as step:
                step.sendall(b"1")
                assert step.recv(100) == b"default: 1"
                session.close()
                assert rest(step) == b""
            with pytest.raises(OSError), connect(forwarding.path) as late:
                assert late.recv(1) != b""


class Blobs:
    """A content store of a client."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.stores: set[str] = set()
        self.partial = b""

    def methods(self) -> Any:
        c = content_pb2
        name = content.PREFIX
        return {
            f"{name}Info": (False, False, c.InfoRequest, c.InfoResponse, self.info),
            f"{name}Read": (False, True, c.ReadContentRequest, c.ReadContentResponse, self.read),
            f"{name}Write": (True, True, c.WriteContentRequest, c.WriteContentResponse, self.write),
        }

    def info(self, request: Any, context: Any) -> Any:
        self.stores.add(dict(context.invocation_metadata())[content.STORE_KEY])
        if request.digest not in self.blobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"content {request.digest}: not found")
        size = len(self.blobs[request.digest])
        return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=size, labels={"a": "b"}))

    def read(self, request: Any, context: Any) -> Iterator[Any]:
        data = self.blobs[request.digest]
        end = request.offset + request.size if request.size else len(data)
        for at in range(request.offset, end, 1000):
            yield content_pb2.ReadContentResponse(offset=at, data=data[at : min(end, at + 1000)])
        if request.digest == "gap":
            yield content_pb2.ReadContentResponse(offset=1, data=b"x")

    def write(self, requests: Any, context: Any) -> Iterator[Any]:
        data, action = self.partial, content_pb2.WriteAction
        for request in requests:
            if request.action == action.STAT and request.expected in self.blobs:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, "already exists")
            assert request.action == action.STAT or request.offset == len(data)
            data += request.data
            if request.action == action.COMMIT:
                self.blobs[request.expected] = data
            yield content_pb2.WriteContentResponse(action=request.action, offset=len(data))


def test_content() -> None:
    blobs = Blobs()
    data = os.urandom(3_500_000)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs.blobs["gap"] = b"abc"
    with client(blobs.methods()) as session:
        store = content.Store(session, "cache")
        with pytest.raises(errors.NotFound):
            store.info(digest)
        assert store.write("ref", [data[:10], data[10:]], len(data), digest)
        assert blobs.blobs[digest] == data
        assert not store.write("ref", [], len(data), digest)
        del blobs.blobs[digest]
        blobs.partial = data[:1_500_000]
        assert store.write("ref", [data[:10], data[10:2_000_000], data[2_000_000:]], len(data), digest)
        assert blobs.blobs[digest] == data
        assert store.info(digest) == (digest, len(data), {"a": "b"})
        assert b"".join(store.read(digest)) == data == store.read_whole(digest)
        assert b"".join(store.read(digest, 5, 2000)) == data[5:2005]
        with pytest.raises(errors.DataLoss, match="byte 1 where 3"):
            list(store.read("gap"))
        blobs.blobs[digest] = b"other"
        with pytest.raises(errors.DataLoss, match="another one"):
            store.read_whole(digest)
        with pytest.raises(errors.ResourceExhausted):
            store.read_whole(digest, 3)
    assert blobs.stores == {"cache"}
    with client({}) as session, pytest.raises(errors.Unimplemented):
        content.Store(session, "cache")


def test_exporters_that_the_client_adds() -> None:
    told: list[dict[str, str]] = []

    def find(request: Any, context: Any) -> Any:
        kind = request.metadata["kind"].decode()
        wanted = exporter_pb2.ExporterRequest(Type=kind, Attrs={"refs": ",".join(request.refs)})
        return exporter_pb2.FindExportersResponse(exporters=[wanted] * (101 if kind == "many" else 1))

    def finalize(request: Any, context: Any) -> Any:
        told.append(dict(request.exporter_response))
        return exporter_pb2.FinalizeExportResponse()

    found = (exporter_pb2.FindExportersRequest, exporter_pb2.FindExportersResponse)
    final = (exporter_pb2.FinalizeExportRequest, exporter_pb2.FinalizeExportResponse)
    methods = unary(f"{exporter.PREFIX}FindExporters", *found, find)
    methods |= unary(f"{exporter.PREFIX}FinalizeExport", *final, finalize)
    with client(methods) as session:
        assert exporter.find(session, {"kind": b"oci"}, ["a", "b"]) == [("oci", {"refs": "a,b"})]
        with pytest.raises(errors.InvalidArgument, match="101 exporters"):
            exporter.find(session, {"kind": b"many"}, [])
        exporter.finalize(session, {"containerimage.digest": "sha256:1"})
    assert told == [{"containerimage.digest": "sha256:1"}]
    with client({}) as session:
        assert exporter.find(session, {}, []) == []
        exporter.finalize(session, {})
