# SPDX-License-Identifier: Apache-2.0
"""Signatures by certificates of some minutes: an authority, a log and identities that are made here, as Fulcio's and
Rekor's specifications have them."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import signatures as made
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from teu.oci import reference
from teu.trust import cosign, keyless, keys, policy
from teu.trust.attached import BUNDLE, COSIGN, Attached
from teu.trust.errors import TrustError

DIGEST = "sha256:" + "a" * 64
IMAGE = reference.parse("registry.example/team/app:1")
NAME = "registry.example/team/app"
PROVIDER = "https://accounts.example"
WHO = "me@acme.example"
NOW = int(made.NOW.timestamp())
MINUTES = timedelta(minutes=10)


def text(value: str) -> bytes:
    return b"\x0c" + (bytes([len(value)]) if len(value) < 128 else bytes([0x81, len(value)])) + value.encode()


def extension(oid: str, data: bytes) -> Any:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), data)


def knows(new: str | None = PROVIDER, old: str | None = PROVIDER) -> list[Any]:
    found = [extension(keyless.ISSUER, text(new))] if new is not None else []
    return found + ([extension(keyless.ISSUER_OLD, old.encode())] if old is not None else [])


def named(*names: Any) -> Any:
    return x509.SubjectAlternativeName(list(names) or [x509.RFC822Name(WHO)])


@pytest.fixture(scope="module")
def root() -> made.Certified:
    return made.Certified(authority=True, kind="p384")


@pytest.fixture(scope="module")
def middle(root: made.Certified) -> made.Certified:
    return made.Certified(root, "p384", authority=True, subject={"O": "acme.example", "CN": "middle"}, path_length=0)


@pytest.fixture(scope="module")
def log() -> Any:
    return made.new_key()


class World:
    """Of one authority and one log, and whom the policy lets sign."""

    def __init__(self, root: made.Certified, middle: made.Certified, log: Any, folder: Path) -> None:
        self.middle, self.log = middle, log
        (folder / "root.pem").write_bytes(root.pem)
        self.fulcio = policy.Fulcio((f"{folder}/root.pem",), {PROVIDER: (WHO, "https://ci.example/build")})

    def signer(self, *extensions: Any, **more: Any) -> made.Certified:
        extensions = extensions or (named(), *knows())
        times = {"begin": made.NOW, "end": made.NOW + MINUTES, **more}
        return made.Certified(self.middle, extensions=list(extensions), **times)

    def layer(self, signer: made.Certified, time: int = NOW + 60, **changes: Any) -> tuple[Any, bytes]:
        data = made.payload(DIGEST, NAME)
        descriptor, data = made.simple_layer(signer.key, data)
        signature = base64.b64decode(descriptor["annotations"][made.SIGNATURE])
        body = changes.pop("body", made.hashed_rekord(data, signature, changes.pop("logged", signer.pem)))
        above = b"".join(one.pem for one in changes.pop("chain", signer.chain[1:]))
        descriptor["annotations"] |= {
            cosign.CERTIFICATE: signer.pem.decode(),
            cosign.CHAIN: above.decode(),
            cosign.LOG_ENTRY: json.dumps(made.log_entry(self.log, body, time)),
            **changes,
        }
        return descriptor, data

    def check(self, layer: tuple[Any, bytes], **changes: Any) -> str:
        descriptor, data = layer
        rule = policy.Cosign("here", (), "repository", {}, ("/k/log.pub",), self.fulcio)._replace(**changes)
        logs = [keys.from_pem(made.public_pem(self.log), "/k/log.pub")]
        authorities = keyless.Authorities(rule.fulcio) if rule.fulcio else None
        kind = BUNDLE if descriptor["mediaType"] == made.BUNDLE else COSIGN
        one = Attached(kind, "", "", {"mediaType": "", "digest": DIGEST, "size": 1}, descriptor)
        return cosign.check(one, data, DIGEST, IMAGE, rule, cosign.Trusted([], logs, authorities))

    def refused(self, layer: tuple[Any, bytes], **changes: Any) -> str:
        with pytest.raises(TrustError) as caught:
            self.check(layer, **changes)
        return str(caught.value)


@pytest.fixture
def world(root: made.Certified, middle: made.Certified, log: Any, tmp_path: Path) -> World:
    return World(root, middle, log, tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (x509.RFC822Name(WHO), WHO),
        (x509.UniformResourceIdentifier("https://ci.example/build"), "https://ci.example/build"),
        (x509.OtherName(x509.ObjectIdentifier(keyless.OTHER_NAME), text(WHO)), WHO),
    ],
)
def test_whom_the_policy_names(world: World, name: Any, shown: str) -> None:
    signer = world.signer(named(name), *knows())
    assert world.check(world.layer(signer)) == f"{shown} ({PROVIDER})"


@pytest.mark.parametrize(("new", "old"), [(PROVIDER, None), (None, PROVIDER)])
def test_issuers_of_both_forms(world: World, new: str | None, old: str | None) -> None:
    assert world.check(world.layer(world.signer(named(), *knows(new, old))))


@pytest.mark.parametrize(
    ("extensions", "says"),
    [
        ([named(x509.RFC822Name("you@acme.example")), *knows()], "it is by you@acme.example, whom"),
        ([named(), *knows("https://other.example", "https://other.example")], "whom https://other.example knows"),
        ([named(), *knows("https://other.example")], "says it in two ways"),
        ([named(), *knows(None, None)], "does not say who knows the signer"),
        ([named(x509.RFC822Name(WHO), x509.RFC822Name("x@y.example")), *knows()], "names no signer, or several"),
        ([named(x509.DNSName("acme.example")), *knows()], "names no signer, or several"),
        ([*knows()], "names no signer, or several"),
        ([named(), extension(keyless.ISSUER, PROVIDER.encode())], "has a name that cannot be read"),
        ([named(), extension(keyless.ISSUER, text(PROVIDER) + b"x")], "has a name that cannot be read"),
        ([named(), extension(keyless.ISSUER, b"\x0c")], "has a name that cannot be read"),
        ([named(), extension(keyless.ISSUER, b"\x0c\x01\xff")], "has a name that is no text"),
        ([named(), extension(keyless.ISSUER_OLD, b"\xff")], "issuer is no text"),
    ],
)
def test_who_is_somebody_else(world: World, extensions: Any, says: str) -> None:
    assert says in world.refused(world.layer(world.signer(*extensions)))


def test_long_names_are_read(world: World) -> None:
    long = "https://" + "a" * 150 + ".example"
    fulcio = world.fulcio._replace(identities={long: (WHO,)})
    signer = world.signer(named(), *knows(long, long))
    assert world.check(world.layer(signer), fulcio=fulcio) == f"{WHO} ({long})"


def test_the_time_is_the_logs(world: World) -> None:
    signer = world.signer()
    for time in (NOW - 1, NOW + 601):
        assert "was not valid when the log entered the signature" in world.refused(world.layer(signer, time))
    for time in (NOW, NOW + 600):
        assert world.check(world.layer(signer, time))


def test_the_entry_is_of_this_signature_and_certificate(world: World) -> None:
    signer, other = world.signer(), world.signer()
    assert "of another certificate" in world.refused(world.layer(signer, logged=other.pem))
    assert "of another certificate" in world.refused(world.layer(signer, logged=made.public_pem(signer.key)))
    body = made.hashed_rekord(b"other", b"other", signer.pem)
    assert "of another signature" in world.refused(world.layer(signer, body=body))
    assert "comes without an entry" in world.refused(world.layer(signer, **{cosign.LOG_ENTRY: ""}))
    layer = world.layer(signer)
    world.log = made.new_key()
    assert "promised by none of the logs" in world.refused(layer)


def test_certificates_of_others(world: World, root: made.Certified, middle: made.Certified) -> None:
    """Whoever can make an authority of the same name, or leaves somebody out."""
    assert "no root of the policy vouches" in world.refused(world.layer(world.signer(), chain=[]))
    stranger = made.Certified(authority=True, kind="p384")
    false = made.Certified(stranger, "p384", authority=True, subject={"O": "acme.example", "CN": "middle"})
    signer = made.Certified(false, extensions=[named(), *knows()])
    for chain in ([false, stranger], [false, root], [middle, root], [stranger]):
        assert "no root of the policy vouches" in world.refused(world.layer(signer, chain=chain))
    # A certificate of the signer's own is no root, whoever has signed it.
    alone = made.Certified(extensions=[named(), *knows()])
    assert "no root of the policy vouches" in world.refused(world.layer(alone, chain=[alone]))
    # One who may sign code may not issue certificates.
    below = made.Certified(world.signer(), extensions=[named(), *knows()])
    assert "is no authority's" in world.refused(world.layer(below))
    deeper = made.Certified(middle, "p384", authority=True, subject={"CN": "deeper"})
    signer = made.Certified(deeper, extensions=[named(), *knows()], begin=made.NOW, end=made.NOW + MINUTES)
    assert "is longer than its certificate allows" in world.refused(world.layer(signer))
    assert "is not by the key of its certificate" in world.refused(
        world.layer(world.signer(), **{cosign.CERTIFICATE: world.signer().pem.decode()})
    )


def test_what_a_certificate_has_to_be_for(world: World, middle: made.Certified) -> None:
    signer = world.signer(uses=[ExtendedKeyUsageOID.SERVER_AUTH])
    assert "is not for signing code" in world.refused(world.layer(signer))
    authority = made.Certified(middle, authority=True, extensions=[named(), *knows()])
    assert "is not for signing" in world.refused(world.layer(authority))


def test_a_middle_authority_may_be_the_root(world: World, middle: made.Certified, tmp_path: Path) -> None:
    (tmp_path / "middle.pem").write_bytes(middle.pem)
    fulcio = world.fulcio._replace(roots=(f"{tmp_path}/middle.pem",))
    assert world.check(world.layer(world.signer(), chain=[]), fulcio=fulcio)


def test_without_a_section_it_is_refused(world: World) -> None:
    assert "the policy has no fulcio section" in world.refused(world.layer(world.signer()), fulcio=None)
    layer = made.simple_layer(made.new_key(), made.payload(DIGEST, NAME))
    assert "comes without a certificate, and the policy names no keys" in world.refused(layer)
    with pytest.raises(TrustError, match="cannot be read"):
        keyless.Authorities(policy.Fulcio(("/nowhere/root.pem",), {}))


@pytest.mark.parametrize("form", ["certificate", "x509CertificateChain"])
def test_bundles(world: World, form: str) -> None:
    signer = world.signer()
    data = made.statement(DIGEST, cosign.SIGNS, NAME)
    envelope = made.envelope(signer.key, data)
    body = {
        "kind": "dsse",
        "spec": {
            "payloadHash": {"algorithm": "sha256", "value": made.digest_of(data).partition(":")[2]},
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": made.b64(signer.pem)}],
        },
    }
    entry = made.log_entry(world.log, body, NOW + 60)
    told = entry["Payload"]
    promised = {
        "logIndex": str(told["logIndex"]),
        "logId": {"keyId": made.b64(bytes.fromhex(told["logID"]))},
        "integratedTime": str(told["integratedTime"]),
        "inclusionPromise": {"signedEntryTimestamp": entry["SignedEntryTimestamp"]},
        "canonicalizedBody": told["body"],
    }
    raw = [{"rawBytes": made.b64(one.certificate.public_bytes(made.Encoding.DER))} for one in signer.chain]
    material: Any = {"tlogEntries": [promised]}
    # The newer form leaves out those above: the policy's roots have to have them.
    material |= {"certificate": raw[0]} if form == "certificate" else {form: {"certificates": raw}}
    document = {"mediaType": made.BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}
    layer = made.layer(made.BUNDLE, made.encode(document))
    if form == "certificate":
        assert "no root of the policy vouches" in world.refused(layer)
        with open(world.fulcio.roots[0], "ab") as file:
            file.write(world.middle.pem)
    assert world.check(layer) == f"{WHO} ({PROVIDER})"
    assert "the policy has no fulcio section" in world.refused(layer, fulcio=None)
    material["tlogEntries"] = []
    assert "comes without an entry" in world.refused(made.layer(made.BUNDLE, made.encode(document)))
