# SPDX-License-Identifier: Apache-2.0
"""Images at a registry against a policy: what is looked for, what is enough, and what a refusal says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import signatures as made
from system.scripted_registry import ScriptedRegistry, tar

from teu.oci import distribution, reference
from teu.oci.distribution import Registry
from teu.trust import attached, verify
from teu.trust.errors import Refused, TrustError

WHO = "x509.subject: C=DE, ST=Hamburg, O=acme.example"
PROVENANCE = "https://slsa.dev/provenance/v1"


class Shop:
    """A registry with an image, a key, and a policy for it."""

    def __init__(self, server: ScriptedRegistry, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.key = made.new_key()
        self.file = folder / "policy.yaml"
        self.pub = folder / "k.pub"
        self.pub.write_bytes(made.public_pem(self.key))
        self.image = server.image("app", "1", tar(("file", b"x")))
        self.name = f"{server.address}/app"
        self.policy(f"cosign: {{keys: [{self.pub}]}}")

    def policy(self, *lines: str) -> None:
        text = "default: {require: reject}\nscopes:\n  " + self.server.address + ":\n"
        self.file.write_text(text + "".join(f"    {line}\n" for line in lines))

    def attach(self, layers: Any, target: Any = None, tag: str = "", kind: str = "") -> dict[str, Any]:
        """By cosign's tag, or as a referrer."""
        target = target or self.image
        manifest, blobs = made.artifact(layers, kind, None if tag else target)
        for data in blobs:
            self.server.put(data)
        place = f"{target['digest'].replace(':', '-')}.{tag}" if tag else "any"
        return self.server.manifest("app", place, made.OCI_MANIFEST, manifest)

    def sign(self, target: Any = None, key: Any = None, name: str = "") -> None:
        target = target or self.image
        data = made.payload(target["digest"], name or self.name)
        self.attach([made.simple_layer(key or self.key, data)], target, "sig")

    def allow(self, *ways: Any, image: str = "app:1") -> list[str]:
        wanted = reference.parse(f"{self.server.address}/{image}")
        with Registry(self.server.address) as registry:
            return verify.allow(registry, wanted, ways or [[self.image]], str(self.file))

    def refused(self, *ways: Any) -> str:
        with pytest.raises(Refused) as caught:
            self.allow(*ways)
        return str(caught.value)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(distribution, "BACKOFF_SECONDS", 0.01)
    with ScriptedRegistry() as server:
        yield Shop(server, tmp_path)


def test_a_signature_by_its_tag(shop: Shop) -> None:
    said = shop.refused()
    assert said == (
        f"{shop.name}:1 ({shop.image['digest']}) is refused by {shop.file}:4: scopes.{shop.server.address}.cosign: "
        "there is nothing of that kind at the registry"
    )
    shop.sign()
    assert shop.allow() == []


@pytest.mark.parametrize("api", [True, False])
def test_signatures_that_refer(shop: Shop, api: bool) -> None:
    """By the registry's list of referrers; and by the tag of that list, where the registry has no such call."""
    shop.server.referrers = api
    data = made.payload(shop.image["digest"], shop.name)
    stranger = shop.attach([made.simple_layer(made.new_key(), data)], kind=attached.COSIGN_ARTIFACT)
    good = shop.attach([made.simple_layer(shop.key, data)], kind=attached.COSIGN_ARTIFACT)
    # One that is listed, and whose subject is another manifest.
    other = shop.attach([made.simple_layer(shop.key, data)], {**shop.image, "digest": stranger["digest"]})

    def listed(*entries: Any) -> None:
        index = {"schemaVersion": 2, "mediaType": made.OCI_INDEX, "manifests": list(entries)}
        shop.server.manifest("app", shop.image["digest"].replace(":", "-"), made.OCI_INDEX, index)

    listed(stranger, other)
    if not api:
        assert f"{stranger['digest']}: it is by none of the keys" in shop.refused()
        assert other["digest"] not in shop.refused()
    listed(stranger, other, good)
    assert shop.allow() == []


def test_a_page_for_people_is_no_list(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.server.referrers = True
    monkeypatch.setattr(shop.server, "_referrers", lambda *_: {"a": "page"})
    with Registry(shop.server.address) as registry, pytest.raises(ValueError, match="manifests is not a list"):
        registry.referrers("app", shop.image["digest"])


def test_bundles_that_refer(shop: Shop) -> None:
    shop.server.referrers = True
    shop.policy(
        f"cosign: {{keys: [{shop.pub}], identity: any}}", "attestations:", f"  {PROVENANCE}: {{keys: [{shop.pub}]}}"
    )
    digest = shop.image["digest"]
    shop.attach(
        [made.layer(made.BUNDLE, made.bundle(shop.key, made.statement(digest, verify.cosign.SIGNS)))], kind=made.BUNDLE
    )
    assert f"{shop.file}:6: scopes.{shop.server.address}.attestations.{PROVENANCE}: " in shop.refused()
    shop.attach([made.layer(made.BUNDLE, made.bundle(shop.key, made.statement(digest, PROVENANCE)))], kind=made.BUNDLE)
    assert shop.allow() == []


def test_a_list_that_does_not_tell_the_types(shop: Shop) -> None:
    """As cosign 3.1 writes it for a registry without the call: each is of the type of its configuration."""
    shop.policy(f"cosign: {{keys: [{shop.pub}], identity: any}}")
    data = made.statement(shop.image["digest"], verify.cosign.SIGNS)
    one = shop.attach([made.layer(made.BUNDLE, made.bundle(shop.key, data))], kind=made.BUNDLE)
    entry = {**one, "artifactType": "application/vnd.oci.empty.v1+json"}
    index = {"schemaVersion": 2, "mediaType": made.OCI_INDEX, "manifests": [{**one, "artifactType": "a/b"}]}
    tag = shop.image["digest"].replace(":", "-")
    shop.server.manifest("app", tag, made.OCI_INDEX, index)
    assert "there is nothing of that kind" in shop.refused()
    shop.server.manifest("app", tag, made.OCI_INDEX, {**index, "manifests": [entry]})
    assert shop.allow() == []


def test_attestations_by_their_tag(shop: Shop) -> None:
    shop.policy("attestations:", f"  {PROVENANCE}: {{keys: [{shop.pub}]}}")

    def envelope(predicate: str, key: Any) -> Any:
        data = made.envelope(key, made.statement(shop.image["digest"], predicate))
        return made.layer(made.DSSE, made.encode(data))

    shop.attach([envelope("https://spdx.dev/Document", shop.key), envelope(PROVENANCE, made.new_key())], tag="att")
    said = shop.refused()
    assert "it is an attestation of the type https://spdx.dev/Document" in said and "none of the keys" in said
    shop.attach([envelope(PROVENANCE, made.new_key()), envelope(PROVENANCE, shop.key)], tag="att")
    assert shop.allow() == []


def test_notation(shop: Shop) -> None:
    shop.server.referrers = True
    root = made.Certified(authority=True, begin=made.NOW - 9 * made.YEAR, end=made.NOW + 90 * made.YEAR)
    signer = made.Certified(root, begin=made.NOW - 9 * made.YEAR, end=made.NOW + 90 * made.YEAR)
    store = shop.folder / "truststore/x509/ca/acme"
    store.mkdir(parents=True)
    (store / "root.pem").write_bytes(root.pem)

    def policy(level: str) -> None:
        shop.policy(f'notation: {{trust-stores: ["ca:acme"], identities: ["{WHO}"], level: {level}}}')
        shop.file.write_text(f"trust-store: {shop.folder}/truststore\n" + shop.file.read_text())

    policy("strict")
    assert "nothing of that kind" in shop.refused()
    policy("audit")
    assert shop.allow() == ["there is no signature of the Notary Project's"]
    stranger = made.Certified(made.Certified(authority=True), end=made.NOW + 90 * made.YEAR)
    shop.attach([made.layer(made.JWS, made.jws(stranger, shop.image))], kind=made.NOTATION)
    (note,) = shop.allow()
    assert "authenticity: it is by CN=builder" in note
    policy("strict")
    assert "no certificate of its chain is in the trust stores" in shop.refused()
    shop.attach([made.layer(made.JWS, made.jws(signer, shop.image))], kind=made.NOTATION)
    assert shop.allow() == []


def test_all_that_is_asked_for_has_to_be_there(shop: Shop) -> None:
    shop.policy(f"cosign: {{keys: [{shop.pub}]}}", "attestations:", f"  {PROVENANCE}: {{keys: [{shop.pub}]}}")
    shop.sign()
    assert f"attestations.{PROVENANCE}: there is nothing of that kind" in shop.refused()


def test_an_index_vouches_for_what_is_below_it(shop: Shop) -> None:
    other = shop.server.image("app", "other", tar(("file", b"y")), architecture="arm64")
    index = shop.server.index("app", "2", amd64=shop.image, arm64=other)
    one, two = [index, shop.image], [index, other]
    assert index["digest"] in shop.refused(one, two)
    shop.sign(shop.image)
    assert shop.allow(one) == []
    assert "there is nothing of that kind" in shop.refused(one, two)
    shop.sign(index)
    assert shop.allow(one, two) == []
    # What is wrong below is told, where above there is nothing.
    again = shop.server.index("app", "3", amd64=other)
    shop.sign(other, made.new_key())
    assert f"{other['digest']}: sha256-" in shop.refused([again, other])


def test_what_needs_no_registry(shop: Shop, tmp_path: Path) -> None:
    shop.server.requests.clear()
    shop.file.write_text("default: {require: reject}\n")
    assert shop.refused() == f"{shop.name}:1 is refused by {shop.file}:1: default: it lets no image in"
    shop.file.write_text("default: {require: insecure-accept-anything}\n")
    assert shop.allow() == []
    shop.file.write_text("default: reject\n")
    assert f"the policy for images has a mistake: {shop.file}:1: default: is not a mapping" in shop.refused()
    shop.policy("cosign: {keys: [/nowhere/k.pub]}")
    assert "/nowhere/k.pub cannot be read: No such file or directory" in shop.refused()
    assert not shop.server.requests


def test_a_registry_that_lies_is_not_believed(shop: Shop) -> None:
    data = made.payload(shop.image["digest"], shop.name)
    descriptor, _ = made.simple_layer(shop.key, data)
    shop.attach([(descriptor, data)], tag="sig")
    shop.server.corrupt.add(descriptor["digest"])
    assert f"what came for {descriptor['digest']} has the digest" in shop.refused()
    shop.server.corrupt.clear()
    huge = {**descriptor, "size": attached.SIGNATURE_LIMIT + 1}
    shop.attach([(huge, data)], tag="sig")
    assert "bytes; 1048576 are the most" in shop.refused()
    shop.attach([({**descriptor, "digest": "sha256:" + "0" * 64}, data)], tag="sig")
    assert "blob unknown to registry" in shop.refused()
    shop.server.manifest("app", shop.image["digest"].replace(":", "-") + ".sig", made.OCI_MANIFEST, {"layers": 1})
    assert "there is nothing of that kind" in shop.refused()


def test_a_broken_signature_does_not_hide_a_good_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made.payload(shop.image["digest"], shop.name)
    shop.attach([made.simple_layer(made.new_key(), data), made.simple_layer(shop.key, data)], tag="sig")
    check = verify.cosign.check
    monkeypatch.setattr(verify.keys, "signed", lambda key, *rest: 1 // 0)
    assert "it cannot be read: ZeroDivisionError" in shop.refused()
    monkeypatch.undo()
    assert check and shop.allow() == []


def test_a_flood_of_signatures_is_an_end(shop: Shop) -> None:
    data = made.payload(shop.image["digest"], shop.name)
    shop.attach([made.simple_layer(made.new_key("ed25519"), data)] * (attached.SIGNATURES_MAX + 1), tag="sig")
    assert f"more than {attached.SIGNATURES_MAX} signatures" in shop.refused()


def test_a_registry_that_does_not_answer_is_no_verdict(shop: Shop) -> None:
    shop.server.hook = lambda _method, path: 1 // 0 if "referrers" in path else None
    with pytest.raises(distribution.RegistryError):
        shop.allow()


def test_long_lists_of_reasons_are_cut(shop: Shop) -> None:
    data = made.payload(shop.image["digest"], shop.name)
    shop.attach([made.simple_layer(made.new_key("ed25519"), data)] * 5, tag="sig")
    assert shop.refused().endswith("; and 2 more")


def test_all_that_is_there(shop: Shop) -> None:
    """In the order of the tags, then the referrers; whatever it is."""
    shop.server.referrers = True
    shop.sign()
    shop.attach([made.layer("text/spdx+json", b"{}")], tag="sbom")
    shop.attach([made.layer("text/plain", b"x")], kind="application/x.own")
    with Registry(shop.server.address) as registry:
        found = list(attached.find(registry, "app", shop.image["digest"]))
    assert [one.kind for one in found] == [attached.COSIGN, attached.SBOM, attached.OTHER]
    assert found[2].artifact == "application/x.own"
    with Registry(shop.server.address) as registry, pytest.raises(TrustError):
        attached.payload(registry, "app", found[0]._replace(layer={**found[0].layer, "size": 1 << 40}))
