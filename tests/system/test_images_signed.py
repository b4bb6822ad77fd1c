# SPDX-License-Identifier: Apache-2.0
"""The policy for images, with Debian's registry: what is let in and what is left behind. Signatures are made here, and
by the real cosign and notation where Debian has them; skopeo says what it makes of the same."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crihouse
import grpc
import images
import peers
import pytest
import signatures as made
import whole
from scripted_registry import ScriptedRegistry
from whole import out, teu

from teu.api.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from teu.api.types.transfer import imagestore_pb2, registry_pb2
from teu.oci.distribution import Registry

POLICY = Path("/etc/teu/policy.yaml")
PROVENANCE = "https://slsa.dev/provenance/v1"
# Of cosign 3: nothing is told to a log, and nobody is asked for the time.
NO_SERVICES = {
    "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
    "rekorTlogConfig": {},
    "tsaConfig": {},
}
pytestmark = [pytest.mark.needs("docker-registry", "fast"), pytest.mark.timeout(300)]


class Shop:
    """Debian's registry with images app:1 (of two platforms) and app:only, a key, and the policy's file."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.repository = f"{address}/app"
        self.registry = Registry(address)
        self.key = made.new_key()
        self.pub = folder / "k.pub"
        self.pub.write_bytes(made.public_pem(self.key))
        machine = {"x86_64": "amd64", "aarch64": "arm64"}[out("uname", "-m")]
        script = ScriptedRegistry()
        self.own = script.image("app", "only", images.busybox_layer(**{"etc/signed": b"1\n"}), architecture=machine)
        other = script.image("app", "other", images.busybox_layer(), architecture="s390x")
        self.index = script.index("app", "1", **{machine: self.own, "s390x": other})
        for data in script.blobs.values():
            self.upload(data)
        for (_, reference), (kind, data) in sorted(script.manifests.items(), key=lambda one: b"manifests" in one[1][1]):
            self.registry.put_manifest("app", reference, kind, data)

    def upload(self, data: bytes) -> None:
        descriptor: Any = {"mediaType": "", "digest": made.digest_of(data), "size": len(data)}
        self.registry.upload("app", descriptor, lambda: [data])

    def attach(self, layers: Any, target: Any, suffix: str = "", kind: str = "") -> None:
        """By cosign's tag; or as a referrer, with the tag that says so."""
        manifest, blobs = made.artifact(layers, kind, None if suffix else target)
        for data in blobs:
            self.upload(data)
        data, tag = made.encode(manifest), target["digest"].replace(":", "-")
        if suffix:
            self.registry.put_manifest("app", f"{tag}.{suffix}", made.OCI_MANIFEST, data)
            return
        self.registry.put_manifest("app", made.digest_of(data), made.OCI_MANIFEST, data)
        entry = {
            "mediaType": made.OCI_MANIFEST,
            "digest": made.digest_of(data),
            "size": len(data),
            "artifactType": kind,
        }
        index = {"schemaVersion": 2, "mediaType": made.OCI_INDEX, "manifests": [entry]}
        self.registry.put_manifest("app", tag, made.OCI_INDEX, made.encode(index))

    def sign(self, target: Any, key: Any = None) -> None:
        data = made.payload(target["digest"], self.repository)
        self.attach([made.simple_layer(key or self.key, data)], target, "sig")

    def policy(self, *lines: str, store: str = "") -> None:
        text = f"trust-store: {store}\n" if store else ""
        text += "default: {require: insecure-accept-anything}\nscopes:\n  " + self.address + ":\n"
        POLICY.write_text(text + "".join(f"    {line}\n" for line in lines))

    def by_key(self, key: Path | None = None, more: str = "") -> None:
        self.policy(f"cosign: {{keys: [{key or self.pub}]{more}}}")

    def pulled(self, tag: str = "1") -> str:
        """The digest that came; the image goes again."""
        name = f"{self.repository}:{tag}"
        teu("pull", name)
        digest = out("teu", "image", "inspect", "-f", "{{index .RepoDigests 0}}", name).partition("@")[2]
        teu("rmi", "-f", name)
        return digest

    def refused(self, *command: str) -> str:
        done = teu(*(command or ("pull", f"{self.repository}:1")), check=False)
        assert done.returncode, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture(scope="module", autouse=True)
def busybox() -> None:
    images.need_busybox()


@contextlib.contextmanager
def opened(tmp_path: Path) -> Iterator[Shop]:
    """Afterwards there is no policy, and none of its images."""
    assert not POLICY.exists()
    with peers.registry() as daemon:
        made_shop = Shop(daemon.address, tmp_path)
        try:
            yield made_shop
        finally:
            POLICY.unlink(missing_ok=True)
            made_shop.registry.close()
        whole.remove_everything()
        for name in out("teu", "images", "--format", "{{.Repository}}:{{.Tag}}").splitlines():
            if name.startswith(daemon.address):
                teu("rmi", "-f", name, check=False)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Afterwards containerd holds what it held before."""
    before = images.baseline()
    with opened(tmp_path) as made_shop:
        yield made_shop
    images.settle(before)


def test_a_refused_image_leaves_nothing(shop: Shop) -> None:
    before, begun = images.held(), images.ingests()
    shop.by_key()
    where = f"is refused by {POLICY}:4: scopes.{shop.address}.cosign: "
    said = shop.refused()
    assert f"{shop.repository}:1 ({shop.index['digest']}) {where}there is nothing of that kind at the registry" in said
    shop.sign(shop.index, made.new_key())
    assert f"it is by none of the keys {shop.pub}" in shop.refused()
    assert where in shop.refused("run", "--rm", f"{shop.repository}:1", "true")
    assert where in shop.refused("create", f"{shop.repository}:1")
    status, answer = images.api("POST", f"/images/create?fromImage={shop.repository}&tag=1")
    assert status == 403 and where in answer["message"]
    assert images.held() == before and set(images.ingests()) <= set(begun)
    shop.sign(shop.index)
    assert out("teu", "run", "--rm", f"{shop.repository}:1", "busybox", "cat", "/etc/signed") == "1"


def test_a_signed_manifest_below_an_index(shop: Shop) -> None:
    shop.by_key()
    shop.sign(shop.own)
    assert shop.pulled() == shop.index["digest"]
    assert "there is nothing of that kind" in shop.refused("pull", "--platform", "all", f"{shop.repository}:1")
    assert shop.pulled("only") == shop.own["digest"]


def test_what_is_here_is_looked_at_again_by_a_pull(shop: Shop) -> None:
    teu("pull", f"{shop.repository}:1")
    shop.by_key()
    assert "is refused by" in shop.refused()
    # It stays, and runs: a policy is for what comes.
    assert out("teu", "run", "--rm", f"{shop.repository}:1", "busybox", "cat", "/etc/signed") == "1"


def test_attestations_and_referrers(shop: Shop) -> None:
    shop.policy(
        f"cosign: {{keys: [{shop.pub}], identity: any}}", "attestations:", f"  {PROVENANCE}: {{keys: [{shop.pub}]}}"
    )
    digest = shop.index["digest"]
    signs = made.bundle(shop.key, made.statement(digest, "https://sigstore.dev/cosign/sign/v1"))
    shop.attach([made.layer(made.BUNDLE, signs)], shop.index, kind=made.BUNDLE)
    assert f"{POLICY}:6: scopes.{shop.address}.attestations.{PROVENANCE}: " in shop.refused()
    statement = made.encode(made.envelope(shop.key, made.statement(digest, PROVENANCE)))
    shop.attach([made.layer(made.DSSE, statement, {made.SIGNATURE: ""})], shop.index, "att")
    assert shop.pulled() == digest
    lines = out("teu", "image", "signatures", "--format", "{{.Kind}} {{.Verified}}", f"{shop.repository}:1")
    assert lines.splitlines() == ["attestation yes", "signature yes"]


def test_the_notary_projects(shop: Shop, tmp_path: Path) -> None:
    root = made.Certified(authority=True, end=made.NOW + 90 * made.YEAR)
    signer = made.Certified(root, end=made.NOW + 90 * made.YEAR)
    store = tmp_path / "x509/ca/acme"
    store.mkdir(parents=True)
    (store / "root.pem").write_bytes(root.pem)
    identity = "x509.subject: C=DE, ST=Hamburg, O=acme.example"
    shop.policy(f'notation: {{trust-stores: ["ca:acme"], identities: ["{identity}"]}}', store=str(tmp_path))
    assert "there is nothing of that kind" in shop.refused()
    shop.attach([made.layer(made.JWS, made.jws(signer, shop.index))], shop.index, kind=made.NOTATION)
    assert shop.pulled() == shop.index["digest"]


def test_signatures_travel(shop: Shop) -> None:
    """To another repository, with the image: there they are for the name of the first one."""
    digest, copy = shop.index["digest"], f"{shop.address}/copy:1"
    shop.sign(shop.index)
    signs = made.bundle(shop.key, made.statement(digest, "https://sigstore.dev/cosign/sign/v1"))
    shop.attach([made.layer(made.BUNDLE, signs)], shop.index, kind=made.BUNDLE)
    teu("pull", "--platform", "all", f"{shop.repository}:1")
    teu("tag", f"{shop.repository}:1", copy)
    teu("push", copy)
    teu("rmi", "-f", copy, f"{shop.repository}:1")
    assert len(out("teu", "image", "signatures", "--copy-to", copy, f"{shop.repository}:1").splitlines()) == 2
    command = ("--key", str(shop.pub), "--format", "{{.Kind}} {{.Verified}}", copy)
    assert out("teu", "image", "signatures", *command).splitlines() == ["signature yes", "signature yes"]
    shop.by_key()
    assert f"it is for {shop.repository}" in shop.refused("pull", copy)
    shop.by_key(more=f", identity: {shop.repository}")
    teu("pull", copy)


def test_a_policy_with_a_mistake_lets_nothing_in(shop: Shop) -> None:
    POLICY.write_text("default: nothing\n")
    assert f"the policy for images has a mistake: {POLICY}:1: default: is not a mapping" in shop.refused()


@pytest.mark.needs("docker")
def test_dockers_own_client_is_told_the_same(shop: Shop) -> None:
    shop.by_key()
    environment = {**os.environ, "DOCKER_HOST": "unix:///run/teu/teud.sock"}
    command = ["docker", "pull", f"{shop.repository}:1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert f"is refused by {POLICY}:4: scopes.{shop.address}.cosign: " in done.stderr
    shop.sign(shop.index)
    subprocess.run(command, check=True, env=environment, capture_output=True)


def test_a_build_begins_with_nothing_that_is_refused(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {shop.repository}:1\nRUN busybox cat /etc/signed\n")
    shop.by_key()
    assert f"is refused by {POLICY}:4: scopes.{shop.address}.cosign: " in shop.refused("build", "-q", str(folder))
    shop.sign(shop.index)
    teu("build", "-q", str(folder), timeout=240)
    teu("image", "prune", "-f")
    teu("builder", "prune", "-af")
    # As long as it is there it holds the documents it has read. What it let go containerd may keep for its `interval`,
    # which is as long as `settle` waits.
    whole.call("systemctl", "stop", "teu-buildkitd.service")
    images.collect()


def test_clients_of_containerds_transfers(shop: Shop) -> None:
    """As the ctr of containerd 2 pulls. Those that fetch blobs themselves, as teu-ctr does, ask no policy."""
    shop.by_key()
    name = f"{shop.repository}:1"
    source = registry_pb2.OCIRegistry(reference=name)
    source.resolver.default_scheme = "http"
    request = transfer_pb2.TransferRequest()
    for member, value in ((request.source, source), (request.destination, imagestore_pb2.ImageStore(name=name))):
        member.type_url, member.value = value.DESCRIPTOR.full_name, value.SerializeToString()
    metadata = [("containerd-namespace", "signed")]
    with grpc.insecure_channel("unix:/run/teu/containerd.sock") as channel:
        transfer = transfer_pb2_grpc.TransferStub(channel).Transfer
        with pytest.raises(grpc.RpcError) as caught:
            transfer(request, metadata=metadata, timeout=100)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert f"is refused by {POLICY}:4: scopes.{shop.address}.cosign: " in caught.value.details()
        assert not out("teu-ctr", "-n", "signed", "images", "ls", "-q")
        shop.sign(shop.index)
        transfer(request, metadata=metadata, timeout=100)
    out("teu-ctr", "-n", "signed", "images", "rm", "--sync", name)


def test_kubelet_is_told_why_a_pod_waits(shop: Shop, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"default: {{cosign: {{keys: [{shop.pub}]}}}}\n")
    with crihouse.ours(f"image-policy: {policy}\n") as client:
        name = f"{shop.repository}:1"
        code, text = client.refused("PullImage", image={"image": name})
        assert code == "UNKNOWN" and text.startswith(
            f"SignatureValidationFailed: {name} ({shop.index['digest']}) is refused by"
        )
        assert not client.call("ImageStatus", image={"image": name}).image.id
        shop.sign(shop.index)
        assert client.pull(name)


# -- the real ones -------------------------------------------------------------------------------------------


def cosign(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COSIGN_PASSWORD": "", "HOME": str(folder)}
    return subprocess.run(
        ["cosign", *argv], capture_output=True, text=True, env=environment, cwd=folder, check=False, timeout=100
    )


def cosign_signs(*argv: str, folder: Path) -> None:
    """Without a log, in the way of the version that is here."""
    (folder / "services.json").write_text(json.dumps(NO_SERVICES))
    newer = "--signing-config" in cosign("sign", "--help", folder=folder).stdout
    without = ["--signing-config", "services.json"] if newer else ["--tlog-upload=false"]
    done = cosign(argv[0], "-y", *without, "--allow-http-registry", *argv[1:], folder=folder)
    assert not done.returncode, done.stderr


@pytest.mark.needs("cosign")
def test_signatures_of_the_real_cosign(shop: Shop, tmp_path: Path) -> None:
    assert not cosign("generate-key-pair", folder=tmp_path).returncode
    name, public = f"{shop.repository}@{shop.index['digest']}", tmp_path / "cosign.pub"
    shop.by_key(public, ", identity: any")
    assert "there is nothing of that kind" in shop.refused()
    cosign_signs("sign", "--key", "cosign.key", name, folder=tmp_path)
    assert shop.pulled() == shop.index["digest"]
    shop.by_key(more=", identity: any")
    assert "none of the keys" in shop.refused()
    (tmp_path / "predicate.json").write_text("{}")
    cosign_signs(
        "attest", "--key", "cosign.key", "--type", PROVENANCE, "--predicate", "predicate.json", name, folder=tmp_path
    )
    shop.policy(f"attestations: {{'{PROVENANCE}': {{keys: [{public}]}}}}")
    assert shop.pulled() == shop.index["digest"]


@pytest.mark.needs("cosign")
def test_the_real_cosign_takes_what_these_tests_make(shop: Shop, tmp_path: Path) -> None:
    """And refuses what the policy refuses."""
    name = f"{shop.repository}@{shop.index['digest']}"
    command = ("verify", "--key", str(shop.pub), "--insecure-ignore-tlog=true", "--allow-http-registry", name)
    shop.by_key()
    for key, good in ((made.new_key(), False), (shop.key, True)):
        shop.sign(shop.index, key)
        done = cosign(*command, folder=tmp_path)
        assert (done.returncode == 0) is good, done.stderr
        assert (teu("pull", f"{shop.repository}:1", check=False).returncode == 0) is good


@pytest.mark.needs("notation")
@pytest.mark.parametrize(("form", "good"), [("jws", True), ("cose", False)])
def test_signatures_of_the_real_notation(shop: Shop, tmp_path: Path, form: str, good: bool) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}

    def notation(*argv: str) -> None:
        done = subprocess.run(["notation", *argv], capture_output=True, text=True, env=environment, check=False)
        assert not done.returncode, done.stderr

    notation("cert", "generate-test", "--default", "acme.example")
    name = f"{shop.repository}@{shop.index['digest']}"
    notation("sign", "--insecure-registry", "--signature-format", form, name)
    store = str(tmp_path / "config/notation/truststore")
    shop.policy('notation: {trust-stores: ["ca:acme.example"], identities: ["*"]}', store=store)
    if good:
        assert shop.pulled() == shop.index["digest"]
    else:
        assert "an envelope of COSE" in shop.refused()


@pytest.mark.needs("skopeo", "trixie")  # Debian 12 has taken these signatures out of its skopeo
def test_skopeo_comes_to_the_same_verdict(shop: Shop, tmp_path: Path) -> None:
    """By containers-policy.json(5), whose requirement sigstoreSigned is the same: key, digest, repository."""
    (tmp_path / "registries.d").mkdir()
    (tmp_path / "registries.d/x.yaml").write_text(f"docker:\n  {shop.address}:\n    use-sigstore-attachments: true\n")
    signed = {"type": "sigstoreSigned", "keyPath": str(shop.pub), "signedIdentity": {"type": "matchRepository"}}
    theirs = {"default": [{"type": "reject"}], "transports": {"docker": {shop.address: [signed]}}}
    (tmp_path / "policy.json").write_text(json.dumps(theirs))
    shop.by_key()
    digest, name = shop.own["digest"], f"{shop.repository}:only"
    cases = [
        (None, False),
        (made.simple_layer(shop.key, made.payload(digest, shop.repository)), True),
        (made.simple_layer(made.new_key(), made.payload(digest, shop.repository)), False),
        (made.simple_layer(shop.key, made.payload(shop.index["digest"], shop.repository)), False),
        (made.simple_layer(shop.key, made.payload(digest, "registry.example/other")), False),
        (made.simple_layer(shop.key, made.payload(digest, shop.repository, type="other")), False),
    ]
    for number, (layer, good) in enumerate(cases):
        if layer is not None:
            shop.attach([layer], shop.own, "sig")
        command = [
            "skopeo",
            "--policy",
            "policy.json",
            "--registries.d",
            "registries.d",
            "copy",
            "--src-tls-verify=false",
        ]
        command += [f"docker://{name}", f"dir:{tmp_path}/copy{number}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode == 0) is good, (number, done.stderr)
        assert (teu("pull", name, check=False).returncode == 0) is good, number
