# SPDX-License-Identifier: Apache-2.0
"""One signature of cosign's: by whom, of what, for which name; with keys and signatures that are made here."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import signatures as made
from cryptography.hazmat.primitives import hashes

from teu.oci import reference
from teu.trust import cosign, keys
from teu.trust.attached import ATTESTATION, BUNDLE, COSIGN, Attached
from teu.trust.errors import TrustError
from teu.trust.policy import Cosign

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
IMAGE = reference.parse("registry.example/team/app:1")
NAME = "registry.example/team/app"


def trusted(*private: Any) -> list[keys.Key]:
    return [keys.from_pem(made.public_pem(key), f"/k/{number}.pub") for number, key in enumerate(private)]


def rule(**changes: Any) -> Cosign:
    return Cosign("here", ("/k/0.pub",), "repository", {}, ())._replace(**changes)


def attached(layer: Any, kind: str = COSIGN) -> Attached:
    return Attached(kind, "sha256-x.sig", "", {"mediaType": "", "digest": OTHER, "size": 1}, layer)


def check(layer: tuple[Any, bytes], private: Any, changes: Any = None, logs: Any = (), image: Any = IMAGE) -> str:
    descriptor, data = layer
    kind = BUNDLE if descriptor["mediaType"] == made.BUNDLE else COSIGN
    signers = cosign.Trusted(trusted(private), logs)
    return cosign.check(attached(descriptor, kind), data, DIGEST, image, rule(**(changes or {})), signers)


def refused(layer: tuple[Any, bytes], private: Any, **more: Any) -> str:
    with pytest.raises(TrustError) as caught:
        check(layer, private, **more)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "rsa3072", "ed25519"])
def test_keys_of_every_kind(kind: str) -> None:
    key, other = made.new_key(kind), made.new_key(kind)
    data = made.payload(DIGEST, NAME)
    assert check(made.simple_layer(key, data), key) == "/k/0.pub"
    assert refused(made.simple_layer(other, data), key) == "it is by none of the keys /k/0.pub"
    assert check(made.layer(made.BUNDLE, made.bundle(key, made.statement(DIGEST, cosign.SIGNS, NAME))), key)


@pytest.mark.parametrize(("kind", "algorithm"), [("p384", hashes.SHA384()), ("p521", hashes.SHA512())])
def test_the_hash_may_be_the_curves(kind: str, algorithm: Any) -> None:
    key, data = made.new_key(kind), made.payload(DIGEST, NAME)
    signature = made.b64(made.sign(key, data, algorithm))
    assert check(made.layer(made.SIMPLE, data, {made.SIGNATURE: signature}), key)


def test_a_changed_payload_is_nobodys() -> None:
    key = made.new_key()
    descriptor, data = made.simple_layer(key, made.payload(DIGEST, NAME))
    assert "none of the keys" in refused((descriptor, data.replace(b"team", b"meat")), key)


def test_the_second_key_will_do() -> None:
    one, two = made.new_key(), made.new_key("ed25519")
    descriptor, data = made.simple_layer(two, made.payload(DIGEST, NAME))
    signers = cosign.Trusted(trusted(one, two))
    assert cosign.check(attached(descriptor), data, DIGEST, IMAGE, rule(), signers) == "/k/1.pub"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (made.payload(OTHER, NAME), f"it is a signature of {OTHER}"),
        (made.payload(DIGEST, NAME, type="atomic container signature"), "its payload is of the type"),
        (made.payload(DIGEST, NAME, image={}), "the payload has no docker-manifest-digest"),
        (made.payload(DIGEST, NAME, identity=None), "the payload has no docker-reference"),
        (made.payload(DIGEST, "registry.example/team/other"), "it is for registry.example/team/other"),
        (made.payload(DIGEST, "team/app"), "it is for docker.io/team/app"),
        (made.payload(DIGEST, f"{NAME}:2"), "it is for the tag 2"),
        (made.payload(DIGEST, f"{NAME}@{OTHER}"), f"it is for {OTHER}"),
        (made.payload(DIGEST, "No Name"), "it is for 'No Name', which is no name"),
        (made.payload(DIGEST, ""), "it gives no name of a repository"),
        (b"[]", "the payload is not a JSON object"),
        (b"{", "the payload is not JSON"),
        (b'{"critical":1}', "the payload has no critical"),
        (b"[" * 100_000, "the payload"),
    ],
)
def test_what_is_signed_has_to_be_this(data: bytes, says: str) -> None:
    key = made.new_key()
    assert says in refused(made.simple_layer(key, data), key)


@pytest.mark.parametrize("good", [NAME, f"{NAME}:1", f"{NAME}@{DIGEST}", "Registry.example:443/team/app"])
def test_names_that_fit(good: str) -> None:
    key = made.new_key()
    assert check(made.simple_layer(key, made.payload(DIGEST, good)), key)


def test_a_pull_by_digest_takes_a_signature_of_any_tag() -> None:
    key = made.new_key()
    image = reference.parse(f"{NAME}@{DIGEST}")
    assert check(made.simple_layer(key, made.payload(DIGEST, f"{NAME}:7")), key, image=image)


@pytest.mark.parametrize(
    ("identity", "signed", "good"),
    [
        ("any", "elsewhere.example/x", True),
        ("any", "", True),
        ("exact", NAME, False),
        ("exact", f"{NAME}:1", True),
        ("exact", f"{NAME}@{DIGEST}", True),
        ("upstream.example", "upstream.example/a/b:9", True),
        ("upstream.example/a", "upstream.example/ab", False),
        ("docker.io/library", "index.docker.io/library/app", True),
        ("docker.io/library", NAME, False),
    ],
)
def test_identities(identity: str, signed: str, good: bool) -> None:
    key = made.new_key()
    layer = made.simple_layer(key, made.payload(DIGEST, signed))
    if good:
        assert check(layer, key, {"identity": identity})
    else:
        assert "it is for" in refused(layer, key, changes={"identity": identity})


def test_annotations() -> None:
    key, asked = made.new_key(), {"annotations": {"env": "prod"}}
    assert check(made.simple_layer(key, made.payload(DIGEST, NAME, {"env": "prod", "x": 1})), key, asked)
    for optional in (None, {"env": "test"}, {"x": "prod"}):
        layer = made.simple_layer(key, made.payload(DIGEST, NAME, optional))
        assert "its annotation env is" in refused(layer, key, changes=asked)


def test_layers_that_are_no_signature() -> None:
    key, data = made.new_key(), made.payload(DIGEST, NAME)
    assert "no payload of simple signing" in refused(made.layer("text/plain", data), key)
    assert "its layer has no dev.cosignproject.cosign/signature" in refused(made.layer(made.SIMPLE, data), key)
    assert "not base64" in refused(made.layer(made.SIMPLE, data, {made.SIGNATURE: "&"}), key)


def test_keyless_is_told_so() -> None:
    key = made.new_key()
    layer = made.simple_layer(made.new_key(), made.payload(DIGEST, NAME), certificate="-----BEGIN")
    assert "keyless signing" in refused(layer, key)


# -- transparency logs ---------------------------------------------------------------------------------------


def logged(key: Any, log: Any, **changes: Any) -> tuple[Any, bytes]:
    data = made.payload(DIGEST, NAME)
    descriptor, data = made.simple_layer(key, data)
    signature = descriptor["annotations"][made.SIGNATURE]
    body = made.hashed_rekord(data, base64.b64decode(signature))
    entry = {**made.log_entry(log, changes.pop("body", body)), **changes}
    descriptor["annotations"]["dev.sigstore.cosign/bundle"] = json.dumps(entry)
    return descriptor, data


def test_an_entry_of_a_log() -> None:
    key, log, other = made.new_key(), made.new_key(), made.new_key()
    logs = trusted(log)
    assert check(logged(key, log), key, logs=logs)
    assert "promised by none of the logs" in refused(logged(key, other), key, logs=logs)
    assert "without an entry" in refused(made.simple_layer(key, made.payload(DIGEST, NAME)), key, logs=logs)
    body = made.hashed_rekord(b"other", b"other")
    assert "is of another signature" in refused(logged(key, log, body=body), key, logs=logs)
    assert "cannot be compared" in refused(logged(key, log, body={"kind": "rpm", "spec": {}}), key, logs=logs)
    assert "is not complete" in refused(logged(key, log, body={"kind": "dsse", "spec": {}}), key, logs=logs)
    # A promise of other members than those that were signed.
    entry = made.log_entry(log, made.hashed_rekord(b"", b""))
    entry["Payload"]["integratedTime"] += 1
    assert "promised by none" in refused(logged(key, log, **entry), key, logs=logs)


def test_an_entry_in_a_bundle() -> None:
    key, log = made.new_key(), made.new_key()
    data = made.statement(DIGEST, cosign.SIGNS, NAME)
    envelope = made.envelope(key, data)
    body = {
        "kind": "dsse",
        "spec": {
            "payloadHash": {"algorithm": "sha256", "value": made.digest_of(data).partition(":")[2]},
            "signatures": [{"signature": envelope["signatures"][0]["sig"]}],
        },
    }
    entry = made.log_entry(log, body)
    told = entry["Payload"]
    promised = {
        "logIndex": str(told["logIndex"]),
        "logId": {"keyId": made.b64(bytes.fromhex(told["logID"]))},
        "integratedTime": str(told["integratedTime"]),
        "inclusionPromise": {"signedEntryTimestamp": entry["SignedEntryTimestamp"]},
        "canonicalizedBody": told["body"],
    }

    def bundle(*entries: Any) -> tuple[Any, bytes]:
        material = {"publicKey": {"hint": ""}, "tlogEntries": list(entries)}
        document = {"mediaType": made.BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}
        return made.layer(made.BUNDLE, made.encode(document))

    logs = trusted(log)
    assert check(bundle(promised), key, logs=logs)
    assert "without an entry" in refused(bundle(), key, logs=logs)
    newer = {name: value for name, value in promised.items() if name != "inclusionPromise"}
    assert "Rekor's second version" in refused(bundle(newer), key, logs=logs)
    assert "is not complete" in refused(bundle({**promised, "logId": {}}), key, logs=logs)
    assert check(bundle(newer, promised), key, logs=logs)


# -- bundles and attestations --------------------------------------------------------------------------------


def test_bundles() -> None:
    key = made.new_key()

    def layer(data: bytes) -> tuple[Any, bytes]:
        return made.layer(made.BUNDLE, made.bundle(key, data))

    unnamed = made.statement(DIGEST, cosign.SIGNS)
    assert check(layer(unnamed), key, {"identity": "any"})
    assert "with `identity: any` the digest alone is enough" in refused(layer(unnamed), key)
    assert "it is an attestation (https://x)" in refused(layer(made.statement(DIGEST, "https://x", NAME)), key)
    assert "it is a signature of sha256:bb" in refused(layer(made.statement(OTHER, cosign.SIGNS, NAME)), key)
    assert "no statement of in-toto" in refused(layer(b'{"_type":"x"}'), key)
    assert "none of the keys" in refused(layer(unnamed), made.new_key())
    for text, says in (
        (b"{}", "no bundle of sigstore's"),
        (made.encode({"mediaType": made.BUNDLE, "messageSignature": {}}), "no envelope of DSSE"),
        (made.encode({"mediaType": made.BUNDLE, "dsseEnvelope": {}}), "the bundle has no verificationMaterial"),
    ):
        assert says in refused(made.layer(made.BUNDLE, text), key)


def attestation(layer: tuple[Any, bytes], *private: Any) -> cosign.Statement:
    descriptor, data = layer
    kind = BUNDLE if descriptor["mediaType"] == made.BUNDLE else ATTESTATION
    return cosign.attestation(attached(descriptor, kind), data, DIGEST, trusted(*private))


def test_attestations() -> None:
    key, type_ = made.new_key("ed25519"), "https://slsa.dev/provenance/v1"
    data = made.statement(DIGEST, type_, NAME)
    for layer in (
        made.layer(made.DSSE, made.encode(made.envelope(key, data))),
        made.layer(made.BUNDLE, made.bundle(key, data)),
    ):
        found = attestation(layer, made.new_key(), key)
        assert (found.predicate_type, found.signer) == (type_, "/k/1.pub")
        assert cosign.unverified_type(layer[1]) == type_
        with pytest.raises(TrustError, match="none of the keys"):
            attestation(layer, made.new_key())
    old = made.statement(DIGEST, type_, NAME, _type="https://in-toto.io/Statement/v0.1")
    assert attestation(made.layer(made.DSSE, made.encode(made.envelope(key, old))), key)
    for broken, says in (
        (made.envelope(key, made.statement(OTHER, type_)), "it is about sha256:bb"),
        (made.envelope(key, data, "text/plain"), "no statement of in-toto"),
        ({**made.envelope(key, data), "signatures": []}, "has no signature"),
        ({**made.envelope(key, data), "payload": made.b64(data + b" ")}, "none of the keys"),
        ({}, "the envelope has no payloadType"),
    ):
        with pytest.raises(TrustError, match=says):
            attestation(made.layer(made.DSSE, made.encode(broken)), key)
    with pytest.raises(TrustError, match="no envelope of DSSE"):
        attestation(made.layer("text/plain", b""), key)
    assert cosign.unverified_type(b"nothing") == ""


def test_what_is_signed_of_an_envelope_is_the_protocols() -> None:
    """The example of DSSE's protocol.md, "Test Vectors"."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert cosign.authenticated("http://example.com/HelloWorld", b"hello world") == expected


# -- keys ----------------------------------------------------------------------------------------------------


def test_keys_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "k.pub"
    for text, says in (
        (b"nothing", "is no public key in PEM"),
        (made.public_pem(made.new_key("rsa1024")), "is an RSA key of 1024 bits; 2048 are the least"),
        (made.public_pem(made.new_key("k256")), "is a key of the curve secp256k1"),
        (b"x" * (keys.PEM_LIMIT + 1), "is larger than"),
    ):
        file.write_bytes(text)
        with pytest.raises(TrustError, match=says):
            keys.load(str(file))
    with pytest.raises(TrustError, match="cannot be read: No such file"):
        keys.load(str(tmp_path / "none.pub"))


def test_a_host_without_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(TrustError, match="install python3-cryptography"):
        keys.from_pem(b"", "x")
