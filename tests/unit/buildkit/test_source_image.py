# SPDX-License-Identifier: Apache-2.0
"""Images and OCI layouts as sources, with a registry and a client on loopback; the operation above all sources."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import signatures as made
from fakeworker import Asker, Worker
from tunnel import client

from teu.api.buildkit import gateway_pb2, ops_pb2
from teu.api.buildkit.session import auth_pb2
from teu.api.services.content.v1 import content_pb2
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import digest_of
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.ops.source import SourceOp
from teu.buildkit.session import auth
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources import base, registries
from teu.buildkit.sources.image import Images
from teu.buildkit.sources.ocilayout import Layouts
from teu.buildkit.sources.registries import Access, Configuration, Host
from teu.oci import distribution, ed25519

sys.path.insert(0, str(Path(__file__).parents[2] / "system"))
from scripted_registry import ScriptedRegistry, tar
from scripted_registry import digest_of as sha

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRegistry]:
    monkeypatch.setattr(distribution, "BACKOFF_SECONDS", 0.01)
    with ScriptedRegistry() as made:
        yield made


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    (tmp_path / "worker").mkdir()
    return Worker(tmp_path / "worker")


def images(worker: Worker, manager: Manager | None = None, configuration: Configuration | None = None) -> Images:
    return Images(worker, Access(manager or Manager(), configuration))  # type: ignore[arg-type]


def layers(*names: str) -> list[bytes]:
    return [tar((name, name.encode() * 1000)) for name in names]


def test_an_image(registry: ScriptedRegistry, worker: Worker) -> None:
    amd = registry.image("app", "amd", *layers("a", "b"))
    arm = registry.image("app", "arm", *layers("a", "c"), architecture="arm64")
    index = registry.index("app", "1", amd64=amd, arm64=arm)
    asker = Asker()
    one = images(worker).open(f"{registry.address}/app:1", {}, AMD64)
    key = one.key(asker)
    assert key.pin == index["digest"]
    kept = worker.content.labels
    prefix = "containerd.io/gc.ref.content"
    assert kept[index["digest"]] == {f"{prefix}.m.0": amd["digest"], f"{prefix}.m.1": arm["digest"]}
    manifest = json.loads(registry.manifests["app", "amd"][1])
    assert kept[amd["digest"]] == {
        f"{prefix}.config": manifest["config"]["digest"],
        **{f"{prefix}.l.{number}": one["digest"] for number, one in enumerate(manifest["layers"])},
    }
    # BuildKit's own keys of this image.
    assert key.key == sha(f'{{"Digest":"{index["digest"]}","OS":"linux","Arch":"amd64"}}'.encode())
    first, second = (sha(layer) for layer in layers("a", "b"))
    assert key.also == (sha(f"{first} {second}".encode()),)
    assert [path for _, path, _ in registry.requests if "/blobs/" in path] == [
        f"/v2/app/blobs/{json.loads(registry.manifests['app', 'amd'][1])['config']['digest']}"
    ]
    assert asker.told == [
        (f"resolve {registry.address}/app:1", 0, 0, "", False),
        (f"resolve {registry.address}/app:1", 0, 0, "", True),
    ]
    # Nothing is pulled before a step needs files; then progress is told.
    snapshot = one.snapshot(asker)
    # What leads to it stays with its record: the next builder need not ask for it.
    assert worker.documents == (index["digest"], amd["digest"], manifest["config"]["digest"])
    before = len(registry.requests)
    chosen = snapshot.chosen  # type: ignore[attr-defined]
    assert [layer.diff_id for layer in chosen] == [first, second]
    assert [layer.history for layer in chosen] == ["layer 0", "layer 1"]
    assert all(layer.descriptor["annotations"]["containerd.io/uncompressed"] == layer.diff_id for layer in chosen)
    assert len(registry.requests) == before
    data = b"".join(chosen[0].fetch(chosen[0].descriptor, 0))
    assert sha(data) == chosen[0].descriptor["digest"]
    assert asker.told[-1] == (chosen[0].descriptor["digest"], len(data), len(data), "done", True)
    assert b"".join(chosen[0].fetch(chosen[0].descriptor, 10)) == data[10:]
    assert worker.kinds[snapshot.id].description == f"pulled from {registry.address}/app:1@{index['digest']}"
    other = images(worker).open(f"{registry.address}/app:1", {}, ARM64)
    assert other.key(Asker()).key != key.key
    assert one.material() == base.Material("image", f"{registry.address}/app:1", index["digest"], AMD64)


def test_what_is_here_is_not_asked_for(registry: ScriptedRegistry, worker: Worker) -> None:
    found = registry.image("app", "1", *layers("a"))
    source = images(worker)
    source.open(f"{registry.address}/app:1", {}, AMD64).key(Asker())
    before = len(registry.requests)
    again = images(worker).open(f"{registry.address}/app:1@{found['digest']}", {}, AMD64)
    assert again.key(Asker()).pin == found["digest"]
    assert len(registry.requests) == before  # by its digest nobody needs to be asked
    source.open(f"{registry.address}/app:1", {}, AMD64).key(Asker())
    asked = registry.requests[before:]
    assert [method for method, _, _ in asked] == ["HEAD"]  # what the tag stands for, and nothing else


def test_images_of_the_engine(registry: ScriptedRegistry, worker: Worker) -> None:
    theirs = registry.image("app", "1", *layers("a"))
    local = registry.image("app", "x", *layers("b"))
    name = f"{registry.address}/app:1"
    kind, data = registry.manifests["app", "x"]
    worker.content.write([data])
    config = json.loads(data)["config"]["digest"]
    worker.content.write([registry.blobs[config]])
    worker.images.put(name, local)
    before = len(registry.requests)
    for mode in ("default", "local", ""):
        one = images(worker).open(name, {"image.resolvemode": mode}, AMD64)
        assert one.key(Asker()).pin == local["digest"]
        one.snapshot(Asker()).release()
        assert worker.documents == ()  # the engine's image keeps them
    assert len(registry.requests) == before
    assert images(worker).open(name, {"image.resolvemode": "pull"}, AMD64).key(Asker()).pin == theirs["digest"]
    # One that does not run on the platform, or is not whole, is not taken.
    arm = registry.image("app", "arm", *layers("c"), architecture="arm64")
    registry.index("app", "1", arm64=arm)
    assert images(worker).open(name, {}, ARM64).key(Asker()).pin != local["digest"]
    del worker.content.blobs[config]
    registry.image("app", "1", *layers("a"))
    assert images(worker).open(name, {}, AMD64).key(Asker()).pin == theirs["digest"]
    del kind


def test_no_such_image(registry: ScriptedRegistry, worker: Worker) -> None:
    with pytest.raises(errors.NotFound, match=rf"^{registry.address}/nothing:latest: not found"):
        images(worker).open(f"{registry.address}/nothing", {}, AMD64).key(Asker())
    registry.index("app", "1", arm64=registry.image("app", "arm", *layers("a"), architecture="arm64"))
    with pytest.raises(errors.NotFound, match="no match for platform in manifest sha256:"):
        images(worker).open(f"{registry.address}/app:1", {}, AMD64).key(Asker())
    with pytest.raises(errors.Unavailable):
        images(worker).open("127.0.0.1:1/app:1", {}, AMD64).key(Asker())


def test_attributes(registry: ScriptedRegistry, worker: Worker) -> None:
    found = registry.image("app", "1", *layers("a", "b", "c"))
    name = f"{registry.address}/app:1"
    source = images(worker)
    limited = source.open(name, {"image.layerlimit": "2", "image.recordtype": "internal"}, AMD64)
    written = f'{{"Digest":"{found["digest"]}","OS":"linux","Arch":"amd64","Limit":2}}'
    assert limited.key(Asker()).key == sha(written.encode())
    snapshot = limited.snapshot(Asker())
    assert len(snapshot.chosen) == 2  # type: ignore[attr-defined]
    assert worker.kinds[snapshot.id].kind == "internal"
    with pytest.raises(errors.InvalidArgument, match="layer limit 4 is greater"):
        source.open(name, {"image.layerlimit": "4"}, AMD64).key(Asker())
    assert source.open(name, {"image.checksum": found["digest"]}, AMD64).key(Asker()).pin == found["digest"]
    other = sha(b"other")
    with pytest.raises(errors.FailedPrecondition, match=f"does not match expected checksum {other}"):
        source.open(name, {"image.checksum": other}, AMD64).key(Asker())
    for key, value in (
        ("image.layerlimit", "0"),
        ("image.layerlimit", "x"),
        ("image.checksum", "abc"),
        ("image.resolvemode", "never"),
        ("image.recordtype", "cachemount"),
    ):
        with pytest.raises(errors.InvalidArgument):
            source.open(name, {key: value}, AMD64)
    for text in ("", "UPPER", "a b", "x@sha256:abc", "-x"):
        with pytest.raises(errors.InvalidArgument):
            source.open(text, {}, AMD64)


def test_an_image_without_layers_is_an_empty_tree(registry: ScriptedRegistry, worker: Worker) -> None:
    registry.image("empty", "1")
    one = images(worker).open(f"{registry.address}/empty:1", {}, AMD64)
    assert one.key(Asker()).also == ()
    assert one.snapshot(Asker()).id == "scratch"
    op = SourceOp(
        vertex(f"docker-image://{registry.address}/empty:1"),
        worker,  # type: ignore[arg-type]
        base.Sources({"docker-image": images(worker)}),
    )
    assert op.load(Context(), Record("scratch", 0.0), 0).id == "scratch"  # type: ignore[arg-type]


def test_a_cached_image_is_fetched_as_this_client_may(registry: ScriptedRegistry, worker: Worker) -> None:
    registry.image("app", "1", *layers("a"))
    first = images(worker).open(f"{registry.address}/app:1", {}, AMD64)
    snapshot = first.snapshot(Asker())
    second = images(worker).open(f"{registry.address}/app:1", {}, AMD64)
    loaded = second.load(Asker(), Record(snapshot.id, 0.0))
    assert loaded.id == snapshot.id and loaded.chosen[0].fetch is not snapshot.chosen[0].fetch  # type: ignore[attr-defined]
    with pytest.raises(Gone):
        second.load(Asker(), Record("another", 0.0))


def test_broken_documents(registry: ScriptedRegistry, worker: Worker) -> None:
    registry.image("app", "1", *layers("a"), diff_ids=[sha(b"1"), sha(b"2")])
    with pytest.raises(errors.InvalidArgument, match="names 2 layers, its manifest 1"):
        images(worker).open(f"{registry.address}/app:1", {}, AMD64).key(Asker())
    kind, data = registry.manifests["app", "1"]
    registry.manifests["app", "1"] = (kind, data + b" ")
    registry.manifests["app", sha(data)] = (kind, data + b" ")
    with pytest.raises(errors.Error):
        images(worker).open(f"{registry.address}/app@{sha(data)}", {}, AMD64).key(Asker())
    registry.manifest("app", "2", kind, {"schemaVersion": 2, "manifests": [], "config": {}})
    with pytest.raises(errors.InvalidArgument):
        images(worker).open(f"{registry.address}/app:2", {}, AMD64).key(Asker())
    found = registry.image("app", "3", *layers("a"))
    config = json.loads(registry.manifests["app", "3"][1])["config"]["digest"]
    registry.corrupt.add(config)
    with pytest.raises(errors.DataLoss):
        images(worker).open(f"{registry.address}/app@{found['digest']}", {}, AMD64).key(Asker())
    registry.manifest("app", "4", "application/vnd.docker.distribution.manifest.v1+prettyjws", {"schemaVersion": 1})
    with pytest.raises(errors.FailedPrecondition, match="schema 1 has been removed"):
        images(worker).open(f"{registry.address}/app:4", {}, AMD64).key(Asker())


# Who asks


def credentials(name: str, secret: str, asked: list[str]) -> Any:
    def answer(request: Any, context: Any) -> Any:
        asked.append(request.Host)
        return auth_pb2.CredentialsResponse(Username=name, Secret=secret)

    return {
        "/moby.filesync.v1.Auth/Credentials": (
            False,
            False,
            auth_pb2.CredentialsRequest,
            auth_pb2.CredentialsResponse,
            answer,
        )
    }


def test_nobody_is_asked_before_the_registry_asks(registry: ScriptedRegistry, worker: Worker) -> None:
    registry.image("app", "1", *layers("a"))
    asked: list[str] = []
    manager = Manager()
    with client(credentials("me", "hunter2", asked), manager):
        source = images(worker, manager)
        source.open(f"{registry.address}/app:1", {}, AMD64).key(Asker("one"))
        assert not asked
        registry.basic = "me:hunter2"
        source.open(f"{registry.address}/app:1", {}, AMD64).key(Asker("one"))
        assert set(asked) == {registry.address}
        registry.basic = "me:other"
        with pytest.raises(errors.PermissionDenied):
            source.open(f"{registry.address}/app:1", {}, AMD64).key(Asker("one"))


def test_tokens_by_credentials(registry: ScriptedRegistry, worker: Worker) -> None:
    registry.image("app", "1", *layers("a"))
    registry.token, registry.credentials = "t0ken", "me:hunter2"
    asked: list[str] = []
    manager = Manager()
    with client(credentials("me", "hunter2", asked), manager):
        source = images(worker, manager)
        one = source.open(f"{registry.address}/app:1", {}, AMD64)
        chosen = one.snapshot(Asker("one")).chosen  # type: ignore[attr-defined]
        assert b"".join(chosen[0].fetch(chosen[0].descriptor, 0))
        assert sum("/token" in path for _, path, _ in registry.requests) == 1  # and it is used again
        registry.token = "another"  # the one that was kept is refused: it is not given again
        source.open(f"{registry.address}/app:1", {}, AMD64).key(Asker("one"))
        registry.credentials = "me:other"
        registry.token = "third"
        with pytest.raises(errors.PermissionDenied, match="failed to authorize"):
            source.open(f"{registry.address}/app:1", {}, AMD64).key(Asker("one"))
    registry.credentials = ""
    images(worker).open(f"{registry.address}/app:1", {}, AMD64).key(Asker())  # anonymous, for a token of nobody


class Owner:
    """A client that fetches tokens itself."""

    def __init__(self, seed: bytes, token: str) -> None:
        self.seed = seed
        self.token = token
        self.fetched: list[Any] = []
        self.verified = 0

    def methods(self, sign: Any, public: Any) -> Any:
        def authority(request: Any, context: Any) -> Any:
            return auth_pb2.GetTokenAuthorityResponse(PublicKey=public(self.seed))

        def fetch(request: Any, context: Any) -> Any:
            self.fetched.append(request)
            return auth_pb2.FetchTokenResponse(Token=self.token, ExpiresIn=300, IssuedAt=int(time.time()))

        def verify(request: Any, context: Any) -> Any:
            self.verified += 1
            return auth_pb2.VerifyTokenAuthorityResponse(Signed=sign(self.seed, request.Payload) + request.Payload)

        prefix = "/moby.filesync.v1.Auth/"
        return {
            f"{prefix}GetTokenAuthority": (
                False,
                False,
                auth_pb2.GetTokenAuthorityRequest,
                auth_pb2.GetTokenAuthorityResponse,
                authority,
            ),
            f"{prefix}FetchToken": (False, False, auth_pb2.FetchTokenRequest, auth_pb2.FetchTokenResponse, fetch),
            f"{prefix}VerifyTokenAuthority": (
                False,
                False,
                auth_pb2.VerifyTokenAuthorityRequest,
                auth_pb2.VerifyTokenAuthorityResponse,
                verify,
            ),
        }


def test_tokens_by_the_client(registry: ScriptedRegistry, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.image("app", "1", *layers("a"))
    registry.token = "t0ken"
    # A key and its signatures, as short as a test needs them.
    monkeypatch.setattr(ed25519, "verify", lambda key, message, signature: signature == key[:1] * 64)

    def public(seed: bytes) -> bytes:
        return seed * 32

    manager = Manager()
    owner, same, thief = Owner(b"a", "t0ken"), Owner(b"a", "t0ken"), Owner(b"a", "stolen")

    def sign(seed: bytes, payload: bytes) -> bytes:
        return seed * 64

    source = images(worker, manager)

    def key(identifier: str) -> str:
        return source.open(f"{registry.address}/app:1", {}, AMD64).key(Asker(identifier)).pin

    with client(owner.methods(sign, public), manager, "owner"):
        assert key("owner")
        (request,) = owner.fetched
        assert request.Host == registry.address and request.Service == "test"
        assert request.Realm == f"http://{registry.address}/token"
        assert list(request.Scopes) == ["repository:x:pull"]
        assert key("owner") and len(owner.fetched) == 1
    with client(same.methods(sign, public), manager, "same"):
        assert key("same")
        assert (same.verified, len(same.fetched)) == (1, 0)  # the token of whoever has the same credentials
    with client(thief.methods(lambda seed, payload: b"x" * 64, public), manager, "thief"):
        with pytest.raises(errors.PermissionDenied):
            key("thief")  # who only says so gets its own, which is none
        assert len(thief.fetched) >= 1
    assert auth.PREFIX == "/moby.filesync.v1.Auth/"


def test_mirrors(registry: ScriptedRegistry, worker: Worker) -> None:
    with ScriptedRegistry() as mirror:
        found = mirror.image("library/app", "1", *layers("a"))
        registry.image("library/app", "1", *layers("b"))
        hosts = {registry.address: Host(mirrors=(f"http://{mirror.address}",))}
        source = images(worker, configuration=Configuration(hosts))
        assert source.open(f"{registry.address}/library/app:1", {}, AMD64).key(Asker()).pin == found["digest"]
        assert not registry.requests
        assert mirror.requests[0][1].endswith(f"?ns={registry.address.replace(':', '%3A')}")
        # What the mirror has not the registry has.
        other = registry.image("other", "1", *layers("c"))
        assert source.open(f"{registry.address}/other:1", {}, AMD64).key(Asker()).pin == other["digest"]


def test_a_folder_of_hosts(registry: ScriptedRegistry, worker: Worker, tmp_path: Path) -> None:
    found = registry.image("app", "1", *layers("a"))
    folder = tmp_path / "certs.d" / "example.test"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'[host."http://{registry.address}"]\ncapabilities = ["pull", "resolve"]\n')
    source = images(worker, configuration=Configuration(folder=str(tmp_path / "certs.d")))
    assert source.open("example.test/app:1", {}, AMD64).key(Asker()).pin == found["digest"]
    (folder / "hosts.toml").write_text("= no\n")
    with pytest.raises(errors.InvalidArgument, match=r"hosts\.toml"):
        source.open("example.test/app:2", {}, AMD64).key(Asker())


def test_it_ends_with_the_build(registry: ScriptedRegistry, worker: Worker) -> None:
    registry.image("app", "1", *layers("a"))
    asker = Asker()
    registry.hook = lambda method, path: (asker.cancel(), time.sleep(1))[0]  # type: ignore[func-returns-value]
    begin = time.monotonic()
    with pytest.raises(errors.Cancelled):
        images(worker).open(f"{registry.address}/app:1", {}, AMD64).key(asker)
    assert time.monotonic() - begin < 3


def test_meta(registry: ScriptedRegistry, worker: Worker) -> None:
    amd = registry.image("app", "amd", *layers("a"), config={"User": "me"})
    statement = registry.put(b"{}")
    attestation = registry.manifest(
        "app",
        "attestation",
        "application/vnd.oci.image.manifest.v1+json",
        {
            "schemaVersion": 2,
            "config": json.loads(registry.manifests["app", "amd"][1])["config"],
            "layers": [
                {
                    "mediaType": "application/vnd.in-toto+json",
                    "digest": statement,
                    "size": 2,
                    "annotations": {"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"},
                }
            ],
        },
    )
    entries = [
        {**amd, "platform": {"os": "linux", "architecture": "amd64"}},
        {
            **attestation,
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": amd["digest"],
            },
        },
    ]
    kind = "application/vnd.oci.image.index.v1+json"
    index = registry.manifest("app", "1", kind, {"schemaVersion": 2, "mediaType": kind, "manifests": entries})
    sources = base.Sources({"docker-image": images(worker)})
    request = gateway_pb2.ResolveSourceMetaRequest()
    request.Source.identifier = f"docker-image://{registry.address}/app:1"
    answer = sources.meta(request, AMD64, Asker())
    assert answer.Source.identifier == request.Source.identifier
    assert answer.Image.Digest == index["digest"]
    assert json.loads(answer.Image.Config)["config"]["User"] == "me"
    assert not answer.Image.HasField("AttestationChain")
    request.Image.AttestationChain = True
    request.Image.NoConfig = True
    request.Image.ResolveAttestations.append("https://slsa.dev/provenance/v1")
    answer = sources.meta(request, AMD64, Asker())
    chain = answer.Image.AttestationChain
    assert not answer.Image.Config
    assert (chain.Root, chain.ImageManifest, chain.AttestationManifest) == (
        index["digest"],
        amd["digest"],
        attestation["digest"],
    )
    assert chain.Blobs[statement].data == b"{}" and set(chain.Blobs) == {
        index["digest"],
        attestation["digest"],
        statement,
    }
    name, digest, config = images(worker).config(f"{registry.address}/app:1", AMD64, "default", Asker())
    assert (name, digest) == (f"{registry.address}/app:1", index["digest"]) and b'"me"' in config


# OCI layouts


def store(blobs: dict[str, bytes], asked: list[str]) -> Any:
    import grpc

    def known(digest: str, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        asked.append(metadata["buildkit-attachable-store-id"])
        if digest not in blobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"content {digest}: not found")
        return blobs[digest]

    def info(request: Any, context: Any) -> Any:
        answer = content_pb2.InfoResponse()
        answer.info.digest = request.digest
        answer.info.size = len(known(request.digest, context))
        return answer

    def read(request: Any, context: Any) -> Iterator[Any]:
        data = known(request.digest, context)
        for at in range(request.offset, len(data), 1000):
            yield content_pb2.ReadContentResponse(offset=at, data=data[at : at + 1000])

    prefix = "/containerd.services.content.v1.Content/"
    return {
        f"{prefix}Info": (False, False, content_pb2.InfoRequest, content_pb2.InfoResponse, info),
        f"{prefix}Read": (False, True, content_pb2.ReadContentRequest, content_pb2.ReadContentResponse, read),
    }


def test_an_oci_layout(registry: ScriptedRegistry, worker: Worker) -> None:
    amd = registry.image("app", "amd", *layers("a", "b"))
    index = registry.index("app", "1", amd64=amd)
    blobs = {**registry.blobs, **{digest: data for (_, digest), (_, data) in registry.manifests.items()}}
    asked: list[str] = []
    manager = Manager()
    with client(store(blobs, asked), manager, "mine"), client({}, manager, "other"):
        layouts = Layouts(worker, manager)  # type: ignore[arg-type]
        attributes = {"oci.store": "theirs", "oci.session": "mine"}
        one = layouts.open(f"name:tag@{index['digest']}", attributes, AMD64)
        assert one.key(Asker("other")).pin == index["digest"]
        snapshot = one.snapshot(Asker("other"))
        assert set(asked) == {"oci:theirs"}
        layer = snapshot.chosen[1]  # type: ignore[attr-defined]
        data = b"".join(layer.fetch(layer.descriptor, 0))
        assert sha(data) == layer.descriptor["digest"]
        assert b"".join(layer.fetch(layer.descriptor, 7)) == data[7:]
        # Any session of the build that has it, by the name in the reference.
        asked.clear()
        worker.content.blobs.clear()
        layouts = Layouts(worker, manager)  # type: ignore[arg-type]
        layouts.open(f"name:tag@{index['digest']}", {}, AMD64).key(Asker("other", "mine"))
        assert set(asked) == {"oci:name"}
        short = {**layer.descriptor, "size": layer.descriptor["size"] + 1}
        with pytest.raises(errors.DataLoss, match="ends after"):
            b"".join(layer.fetch(short, 0))
        blobs[index["digest"]] = b"{}"
        worker.content.blobs.clear()
        with pytest.raises(errors.DataLoss):
            Layouts(worker, manager).open(f"n@{index['digest']}", attributes, AMD64).key(Asker())  # type: ignore[arg-type]
    for text in ("name", "name:tag", "name@sha256:abc", "@" + index["digest"]):
        with pytest.raises(errors.InvalidArgument):
            layouts.open(text, {}, AMD64)


# The operation


class Context(Asker):
    vertex: Any = None


def vertex(identifier: str, platform: Platform | None = None, **attributes: str) -> Any:
    op = ops_pb2.Op()
    op.source.identifier = identifier
    op.source.attrs.update(attributes)
    if platform is not None:
        op.platform.OS, op.platform.Architecture = platform.os, platform.architecture
    return SimpleNamespace(op=op)


def test_the_operation(registry: ScriptedRegistry, worker: Worker) -> None:
    arm = registry.image("app", "arm", *layers("a"), architecture="arm64")
    registry.index("app", "1", arm64=arm)
    sources = base.Sources({"docker-image": images(worker)})
    identifier = f"docker-image://{registry.address}/app:1"
    op = SourceOp(vertex(identifier, ARM64), worker, sources)  # type: ignore[arg-type]
    context: Any = Context()
    found = op.cache_key(context)
    key = images(worker).open(identifier.removeprefix("docker-image://"), {}, ARM64).key(Asker())
    assert found.digest == digest_of(f"buildkit.source.v0:{key.key}".encode())
    assert found.also == (digest_of(f"buildkit.source.v0:{key.also[0]}".encode()),)
    assert found.inputs == ()
    (result,) = op.execute(context, [])
    assert op.load(context, Record(result.id, 0.0), 0).id == result.id
    assert op.material().pin == key.pin and op.material().platform == ARM64
    with pytest.raises(errors.NotFound) as refused:
        SourceOp(vertex(identifier.replace("app", "none")), worker, sources).cache_key(context)  # type: ignore[arg-type]
    assert errors.to_status(refused.value).code == errors.Error.code  # clients show no code in front of it
    for bad in ("nothing", "ftp://x", "docker-image://a\nb"):
        with pytest.raises(errors.Error):
            SourceOp(vertex(bad), worker, sources)  # type: ignore[arg-type]


def test_numbers_and_lists_of_attributes() -> None:
    for text, value in (("0644", 0o644), ("0o644", 0o644), ("420", 420), ("0x10", 16), ("0", 0), ("0b11", 3)):
        assert base.number({"a": text}, "a", 0, 1000) == value
    for text in ("", "x", "1.0", "08", "-1", "1001", " 1", "1_0"):
        with pytest.raises(errors.InvalidArgument):
            base.number({"a": text}, "a", 0, 1000)
    assert base.strings({"a": '["b","c"]'}, "a") == ("b", "c")
    assert base.strings({"a": "null"}, "a") == () == base.strings({}, "a")
    for text in ("{}", "[1]", "x", "[" * 100_000):
        with pytest.raises(errors.InvalidArgument):
            base.strings({"a": text}, "a")
    assert base.go_json({"a": "<&>é"}) == '{"a":"\\u003c\\u0026\\u003eé"}'.encode()


def test_what_was_used_last_is_kept() -> None:
    recent: base.Recent[int] = base.Recent(2, 10)
    for number in range(3):
        recent.put(number, number, 1)
    assert [recent.get(number) for number in range(3)] == [None, 1, 2]
    recent.put("large", 4, 11)
    assert recent.get("large") is None and recent.get(2) is None
    assert registries.TOKENS_MAX > 0


def test_what_is_heavy_is_loaded_when_it_is_needed() -> None:
    """A build that finds everything in the cache speaks with no registry and downloads nothing."""
    names = ("image", "ocilayout", "local", "http", "git", "caches")
    modules = ", ".join(f"teu.buildkit.sources.{name}" for name in names)
    script = f"import sys; sys.path[:0] = {sys.path!r}; import teu.buildkit.ops.source, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    # What gRPC brings along, ssl, subprocess and pools of threads, the daemon has anyway.
    heavy = {"http.client", "urllib.request", "tomllib", "grpc"}
    assert not heavy & set(done.stdout.split())


def test_the_policy_is_asked_before_layers_are_fetched(
    registry: ScriptedRegistry, worker: Worker, tmp_path: Path
) -> None:
    amd, arm = registry.image("app", "amd", *layers("a")), registry.image("app", "arm", *layers("b"))
    index = registry.index("app", "1", amd64=amd, arm64=arm)
    policy = tmp_path / "policy.yaml"
    policy.write_text("default: {require: reject}\n")
    name = f"{registry.address}/app:1"
    source = images(worker, configuration=Configuration(policy=str(policy)))
    with pytest.raises(errors.PermissionDenied, match=r"policy.yaml:1: default: it lets no image in"):
        source.open(name, {}, AMD64).snapshot(Asker())
    with pytest.raises(errors.PermissionDenied):
        source.config(name, AMD64, "", Asker())
    assert not worker.kinds
    # A signature of the manifest for the platform is enough, where the index has none; it is not asked for each time.
    key = made.new_key()
    (tmp_path / "k.pub").write_bytes(made.public_pem(key))
    policy.write_text(f"default: {{cosign: {{keys: [{tmp_path}/k.pub]}}}}\n")
    signature = made.simple_layer(key, made.payload(amd["digest"], f"{registry.address}/app"))
    manifest, blobs = made.artifact([signature])
    for data in blobs:
        registry.put(data)
    registry.manifest("app", amd["digest"].replace(":", "-") + ".sig", made.OCI_MANIFEST, manifest)
    assert source.config(name, AMD64, "", Asker())[1] == index["digest"]
    before = len([path for _, path, _ in registry.requests if path.endswith(".sig")])
    assert source.open(name, {}, AMD64).snapshot(Asker())
    assert len([path for _, path, _ in registry.requests if path.endswith(".sig")]) == before == 2
    with pytest.raises(errors.PermissionDenied, match="there is nothing of that kind"):
        source.config(name, ARM64, "", Asker())
