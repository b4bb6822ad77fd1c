# SPDX-License-Identifier: Apache-2.0
"""One signature of the Notary Project's: integrity, and what the levels ask for beside it; with authorities,
certificates and envelopes that are made here."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import signatures as made
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from teu.trust import keys, notation, policy
from teu.trust.attached import NOTATION, Attached
from teu.trust.errors import TrustError

DIGEST = "sha256:" + "a" * 64
TARGET = {"mediaType": made.OCI_MANIFEST, "digest": DIGEST, "size": 1234}
NOW = made.NOW.timestamp()
WHO = "x509.subject: C=DE, ST=Hamburg, O=acme.example"


@pytest.fixture(scope="module")
def root() -> made.Certified:
    return made.Certified(authority=True)


@pytest.fixture(scope="module")
def signer(root: made.Certified) -> made.Certified:
    return made.Certified(root)


class Place:
    """A trust store, and rules for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, data: bytes, kind: str = "ca") -> None:
        place = self.folder / "x509" / kind / "acme"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)

    def rule(self, *identities: str, level: str = "strict", kinds: tuple[str, ...] = ("ca",), **override: str) -> Any:
        names = ("authenticity", "authentic-timestamp", "expiry", "revocation")
        changes = {name: override.get(name.replace("-", "_"), "") for name in names}
        stores = tuple((kind, self.folder / "x509" / kind / "acme") for kind in kinds)
        return policy.Notation("here", stores, identities or ("*",), policy._actions(level, changes))

    def check(self, data: bytes, rule: Any = None, now: float = NOW, media_type: str = made.JWS) -> notation.Proven:
        rule = rule or self.rule()
        layer, data = made.layer(media_type, data)
        one = Attached(NOTATION, DIGEST, made.NOTATION, TARGET, layer)  # type: ignore[arg-type]
        return notation.check(one, data, TARGET, rule, notation.Stores(rule), now)  # type: ignore[arg-type]

    def refused(self, data: bytes, rule: Any = None, now: float = NOW, media_type: str = made.JWS) -> str:
        with pytest.raises(TrustError) as caught:
            self.check(data, rule, now, media_type)
        return str(caught.value)


@pytest.fixture
def place(tmp_path: Path, root: made.Certified) -> Place:
    made_place = Place(tmp_path)
    made_place.put("root.pem", root.pem)
    return made_place


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "rsa3072", "rsa4096"])
def test_all_algorithms(place: Place, root: made.Certified, kind: str) -> None:
    signer = made.Certified(root, kind)
    envelope = made.jws(signer, TARGET)
    found = place.check(envelope, place.rule(WHO))
    assert found.notes == () and "CN=builder" in found.signer
    document = json.loads(envelope)
    for member in ("payload", "protected"):
        changed = {
            **document,
            member: made.b64url(json.dumps(json.loads(notation._unpadded(document[member])), indent=1).encode()),
        }
        assert "it was changed" in place.refused(made.encode(changed))


def test_chains(place: Place, root: made.Certified) -> None:
    middle = made.Certified(root, "rsa2048", authority=True, subject={"O": "acme.example", "CN": "middle"})
    assert place.check(made.jws(made.Certified(middle), TARGET))
    # What is trusted may be any of the chain; files in DER and several in one file are read.
    place.put("root.pem", made.Certified(authority=True).pem + middle.pem)
    assert place.check(made.jws(made.Certified(middle), TARGET))
    place.put("root.pem", made.Certified(authority=True).pem)
    assert "no certificate of its chain" in place.refused(made.jws(made.Certified(middle), TARGET))
    alone = made.Certified()
    place.put("own.crt", alone.certificate.public_bytes(made.Encoding.DER))
    assert place.check(made.jws(alone, TARGET))


def test_chains_that_are_none(place: Place, root: made.Certified, signer: made.Certified) -> None:
    stranger = made.Certified(authority=True)

    def with_chain(*chain: made.Certified) -> bytes:
        document = json.loads(made.jws(signer, TARGET))
        document["header"]["x5c"] = [made.b64(one.certificate.public_bytes(made.Encoding.DER)) for one in chain]
        return made.encode(document)

    assert "is not issued by the next" in place.refused(with_chain(signer, stranger))
    assert "is not issued by the next" in place.refused(with_chain(signer))
    assert "is not issued by the next" in place.refused(with_chain(signer, root, stranger))
    assert "no chain of certificates" in place.refused(with_chain())
    # The name of an authority is not its signature.
    twin = made.Certified(authority=True, kind="rsa2048")
    assert "is not issued by the next" in place.refused(with_chain(signer, twin))
    for leaf, says in (
        (made.Certified(root, authority=True), "is an authority's, and not for signing"),
        (made.Certified(root, uses=[ExtendedKeyUsageOID.SERVER_AUTH]), "for more than signing"),
        (made.Certified(root, "k256"), "a key of a kind or a size"),
        (made.Certified(made.Certified(root)), "is no authority's"),
    ):
        if says.startswith("a key"):
            continue
        assert says in place.refused(made.jws(leaf, TARGET))
    low = made.Certified(root, authority=True, path_length=0)
    lower = made.Certified(low, authority=True, subject={"CN": "lower"})
    assert "is longer than its certificate allows" in place.refused(made.jws(made.Certified(lower), TARGET))


# An authority, and a certificate of it with ECDSA and SHA-1, which newer libraries do not make any more.
WEAK = b"""\
-----BEGIN CERTIFICATE-----
MIIBsjCCAVegAwIBAgIUUDiqtvBSypyUL2cxgxTyuiVIMD0wCgYIKoZIzj0EAwIw
RTELMAkGA1UEBhMCREUxEDAOBgNVBAgMB0hhbWJ1cmcxFTATBgNVBAoMDGFjbWUu
ZXhhbXBsZTENMAsGA1UEAwwEcm9vdDAgFw0yNTA2MDEwMDAwMDBaGA8yMDc2MDUx
OTAwMDAwMFowRTELMAkGA1UEBhMCREUxEDAOBgNVBAgMB0hhbWJ1cmcxFTATBgNV
BAoMDGFjbWUuZXhhbXBsZTENMAsGA1UEAwwEcm9vdDBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABIBG/OwORjD/g8RbKtN2ZSLJLWuG0D10VpU56od/hUKI06jje0Pc
984+EgLg358qJrgGDHKcNnh57wO2c3wc+SujIzAhMA8GA1UdEwEB/wQFMAMBAf8w
DgYDVR0PAQH/BAQDAgEGMAoGCCqGSM49BAMCA0kAMEYCIQDtHSCXRQ5CW1WMG+xu
B4ZoNpTiAvd36qrrAi8SE6YBLwIhAM1/5Zbs2b5k7HfX9HNYRJv1vx3z4c40NO/I
hcWeGzRR
-----END CERTIFICATE-----
-----BEGIN CERTIFICATE-----
MIIBtjCCAV2gAwIBAgIUMsYDRgkK8jQ4n/wnd1fOjcTq4OcwCQYHKoZIzj0EATBF
MQswCQYDVQQGEwJERTEQMA4GA1UECAwHSGFtYnVyZzEVMBMGA1UECgwMYWNtZS5l
eGFtcGxlMQ0wCwYDVQQDDARyb290MCAXDTI1MDYwMTAwMDAwMFoYDzIwNzYwNTE5
MDAwMDAwWjBIMQswCQYDVQQGEwJERTEQMA4GA1UECAwHSGFtYnVyZzEVMBMGA1UE
CgwMYWNtZS5leGFtcGxlMRAwDgYDVQQDDAdidWlsZGVyMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEA4zqOTlLxCBSNqmHEHpXKf+tozTbJKCrJyGOslZbBkY5ckT8
xHOKtrY7TNLyYyRqllVTKHk3fzKgbLdidZxZ9qMnMCUwDgYDVR0PAQH/BAQDAgeA
MBMGA1UdJQQMMAoGCCsGAQUFBwMDMAkGByqGSM49BAEDSAAwRQIgegUwL2EyfmUr
OJJupXyxrrMUqqLEDY8A8zaRQGxbRv8CIQD5mwKQnojy6+jA3el6N4HgvdGLo1+M
l1+iSp2ValOqQw==
-----END CERTIFICATE-----
"""


def test_weak_hashes_count_for_none() -> None:
    root, leaf = keys.certificates(WEAK, "these")
    assert leaf.signature_hash_algorithm.name == "sha1"
    assert leaf.issuer == root.subject and keys.issued(root, root)
    assert not keys.issued(root, leaf)
    # It is the hash, and not the signature, that is nothing.
    root.public_key().verify(leaf.signature, leaf.tbs_certificate_bytes, ec.ECDSA(hashes.SHA1()))


@pytest.mark.parametrize(
    ("identities", "good"),
    [
        (("*",), True),
        ((WHO,), True),
        ((f"{WHO}, CN=builder",), True),
        ((f"{WHO}, CN=other",), False),
        ((f"{WHO}, L=Hamburg",), False),
        ((f"{WHO}, CN=other", f"{WHO}, CN=builder"), True),
    ],
)
def test_identities(place: Place, signer: made.Certified, identities: tuple[str, ...], good: bool) -> None:
    rule = place.rule(*identities)
    if good:
        assert place.check(made.jws(signer, TARGET), rule)
    else:
        assert "none of the identities" in place.refused(made.jws(signer, TARGET), rule)


def test_an_attribute_that_is_there_twice_is_not_the_one(place: Place, root: made.Certified) -> None:
    twice = x509.Name([*made.name(**made.SUBJECT), *made.name(O="evil.example")])
    builder = x509.CertificateBuilder(
        root.certificate.subject,
        twice,
        (key := made.new_key()).public_key(),
        7,
        made.NOW - made.YEAR,
        made.NOW + made.YEAR,
    )
    for each in made.Certified(root).certificate.extensions:
        builder = builder.add_extension(each.value, each.critical)
    leaf = made.Certified(root)
    leaf.key, leaf.certificate = key, builder.sign(root.key, hashes.SHA256())
    assert "none of the identities" in place.refused(made.jws(leaf, TARGET), place.rule(WHO))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({**TARGET, "digest": "sha256:" + "b" * 64}, "as digest"),
        ({**TARGET, "size": 1}, "as size"),
        ({**TARGET, "mediaType": made.OCI_INDEX}, "as mediaType"),
        ({}, "as digest"),
        ([], "no targetArtifact"),
    ],
)
def test_it_has_to_be_of_this_manifest(place: Place, signer: made.Certified, target: Any, says: str) -> None:
    assert says in place.refused(made.jws(signer, target))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"alg": "none"}, "its algorithm is 'none', and that of its certificate ES256"),
        ({"alg": "HS256"}, "its algorithm is 'HS256'"),
        ({"alg": "ES384"}, "its algorithm is 'ES384'"),
        ({"cty": "text/plain"}, "its payload is a 'text/plain'"),
        ({made.PREFIX + "signingScheme": "other"}, "its signing scheme 'other' is not known"),
        ({made.PREFIX + "signingScheme": ["notary.x509"]}, "is not known"),
        ({"crit": [made.PREFIX + "signingScheme", ["x"]]}, "it needs a plugin"),
        ({"crit": None}, "does not say that the signing scheme is critical"),
        ({"crit": []}, "does not say that the signing scheme is critical"),
        (
            {"crit": [made.PREFIX + "signingScheme", made.PREFIX + "verificationPlugin"]},
            "it needs a plugin of notation's",
        ),
        ({"crit": [made.PREFIX + "signingScheme", made.PREFIX + "expiry"]}, "expiry to be understood"),
        ({made.PREFIX + "expiry": "2030-01-01T00:00:00Z"}, "its expiry is not marked as critical"),
        (
            {made.PREFIX + "expiry": "soon", "crit": [made.PREFIX + "signingScheme", made.PREFIX + "expiry"]},
            "its expiry 'soon' is no time",
        ),
    ],
)
def test_headers(place: Place, signer: made.Certified, header: Any, says: str) -> None:
    assert says in place.refused(made.jws(signer, TARGET, header))


def test_envelopes_that_are_none(place: Place, signer: made.Certified) -> None:
    assert "an envelope of COSE" in place.refused(b"", media_type="application/cose")
    assert "no envelope of JWS" in place.refused(b"", media_type="text/plain")
    assert "is not JSON" in place.refused(b"{")
    assert "has no payload" in place.refused(b"{}")
    assert "not base64url" in place.refused(made.jws(signer, TARGET, signature="*"))
    assert "it was changed" in place.refused(made.jws(signer, TARGET, signature="AAAA"))
    assert "no chain" in place.refused(made.jws(signer, TARGET, header={}))


EXPIRY = made.PREFIX + "expiry"


def test_levels(place: Place, root: made.Certified) -> None:
    """The table of the levels, line by line, with what each of them enforces."""
    until = {EXPIRY: "2026-05-02T00:00:00+00:00", "crit": [made.PREFIX + "signingScheme", EXPIRY]}
    expired = made.jws(made.Certified(root), TARGET, until)
    assert "it was good until 2026-05-02" in place.refused(expired)
    assert "expiry: it was good" in place.check(expired, place.rule(level="permissive")).notes[0]
    assert place.check(expired, place.rule(expiry="log")).notes
    assert "good until" in place.refused(expired, place.rule(level="audit", expiry="enforce"))

    old = made.jws(made.Certified(root, end=made.NOW - timedelta(days=1)), TARGET)
    assert "has expired" in place.refused(old)
    assert "authentic-timestamp: " in place.check(old, place.rule(level="permissive")).notes[0]
    young = made.jws(made.Certified(root, begin=made.NOW + timedelta(days=1)), TARGET)
    assert "is not valid yet" in place.refused(young)

    strange = made.jws(made.Certified(made.Certified(authority=True)), TARGET)
    for level in ("strict", "permissive"):
        assert "in the trust stores" in place.refused(strange, place.rule(level=level))
    assert "authenticity: " in place.check(strange, place.rule(level="audit")).notes[0]
    # Integrity is enforced by all of them.
    assert "as digest" in place.refused(made.jws(made.Certified(root), {}), place.rule(level="audit"))


def test_revocation(place: Place, root: made.Certified) -> None:
    point = x509.CRLDistributionPoints(
        [x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.example/")], None, None, None)]
    )
    ocsp = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier("http://o.example/")
            )
        ]
    )
    for extension in (point, ocsp):
        signer = made.Certified(root, extensions=[extension])
        envelope = made.jws(signer, TARGET)
        assert "was revoked is not known" in place.refused(envelope)
        assert place.check(envelope, place.rule(revocation="skip")).notes == ()
        assert "revocation: " in place.check(envelope, place.rule(level="permissive")).notes[0]
        place.put("x.crl", root.revocations())
        assert place.check(envelope).notes == ()
        place.put("x.crl", root.revocations(signer.certificate.serial_number))
        assert "builder" in (why := place.refused(envelope)) and "was revoked" in why
        place.put("x.crl", root.revocations(until=made.NOW - timedelta(days=1)))
        assert "is too old" in place.refused(envelope)
        place.put("x.crl", made.Certified(authority=True).revocations())  # the same name, another key
        assert "was revoked is not known" in place.refused(envelope)
        (place.folder / "x509/ca/acme/x.crl").unlink()
    # Whose authority tells of none is revoked by a list that is in the store all the same.
    signer = made.Certified(root)
    assert place.check(made.jws(signer, TARGET)).notes == ()
    place.put("x.crl", root.revocations(signer.certificate.serial_number))
    assert "was revoked" in place.refused(made.jws(signer, TARGET))


def test_an_authority_that_says_when_it_signed(place: Place, root: made.Certified) -> None:
    time = made.PREFIX + "authenticSigningTime"
    header = {
        made.PREFIX + "signingScheme": "notary.x509.signingAuthority",
        made.PREFIX + "signingTime": None,
        time: "2026-05-01T00:00:00Z",
        "crit": [made.PREFIX + "signingScheme", time],
    }
    expired = made.Certified(root, end=made.NOW - timedelta(days=1))
    both = place.rule(kinds=("ca", "signingAuthority"))
    place.put("other.pem", made.Certified(authority=True).pem, "signingAuthority")
    # A certificate that is trusted as another kind's is none of this one's.
    assert "in the trust stores" in place.refused(made.jws(expired, TARGET, header), both)
    place.put("root.pem", root.pem, "signingAuthority")
    assert place.check(made.jws(expired, TARGET, header), both).notes == ()
    assert "has none" in place.refused(
        made.jws(expired, TARGET, {**header, time: None, "crit": header["crit"][:1]}), both
    )
    early = {**header, time: "2020-05-01T00:00:00Z"}
    assert "is not valid yet" in place.refused(made.jws(expired, TARGET, early), both)


def test_stores_that_are_none(place: Place, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="cannot be read: No such file"):
        notation.Stores(place.rule(kinds=("signingAuthority",)))
    place.put("x.crl", b"no list")
    with pytest.raises(TrustError, match="x.crl is no certificate revocation list"):
        notation.Stores(place.rule())
    place.put("y.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(TrustError, match="y.pem has no certificate that can be read"):
        notation.Stores(place.rule())
    folder = tmp_path / "x509/ca/acme"
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(TrustError, match="has no certificate"):
        notation.Stores(place.rule())
