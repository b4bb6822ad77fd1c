# SPDX-License-Identifier: Apache-2.0
"""What one signature of the Notary Project's proves: an envelope of JWS, by certificates of a trust store. Called by
`verify`, and by `teu image signatures`.

    TRUST-STORE/x509/ca/NAME/*.{pem,crt,cer}                  certificates that are trusted (trust-store-trust-policy)
    TRUST-STORE/x509/signingAuthority/NAME/*.{pem,crt,cer}    the same, of authorities that also say when was signed
    either of them /*.crl                                     what their authorities have taken back

Validations that the policy only wants logged are returned as notes. Nobody on the network is asked: revocation is what
the lists in the store say, and one that a certificate's authority would tell elsewhere counts as not told. Timestamps
by RFC 3161 are not looked at: without one, certificates have to be valid now. Envelopes of COSE are refused: Debian has
no library of it in all releases that Teu is for.
"""

from __future__ import annotations

import base64
import binascii
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.trust import keys
from teu.trust.attached import json_object
from teu.trust.errors import TrustError
from teu.trust.policy import AUTHENTICITY, ENFORCE, EXPIRY, REVOCATION, SKIP, TIMESTAMP, subject

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from teu.oci.image_spec import Descriptor
    from teu.trust.attached import Attached
    from teu.trust.policy import Notation

JWS = "application/jose+json"
COSE = "application/cose"
PAYLOAD = "application/vnd.cncf.notary.payload.v1+json"
PREFIX = "io.cncf.notary."
SCHEMES = {"notary.x509": "ca", "notary.x509.signingAuthority": "signingAuthority"}
UNDERSTOOD = {PREFIX + name for name in ("signingScheme", "authenticSigningTime", "expiry", "signingTime")}
ALGORITHMS = {("rsa", 2048): "PS256", ("rsa", 3072): "PS384", ("rsa", 4096): "PS512"} | {
    ("ec", 256): "ES256",
    ("ec", 384): "ES384",
    ("ec", 521): "ES512",
}
CHAIN_MAX = 16
CERTIFICATES = (".pem", ".crt", ".cer")
# Of a signer's certificate: serverAuth, clientAuth, emailProtection, timeStamping and anyExtendedKeyUsage.
FORBIDDEN_USES = {f"1.3.6.1.5.5.7.3.{number}" for number in (1, 2, 4, 8)} | {"2.5.29.37.0"}


class Proven(NamedTuple):
    """`signer`: the subject of the certificate; `notes`: validations that failed and are only logged."""

    signer: str
    notes: tuple[str, ...]


class _Envelope(NamedTuple):
    protected: dict[str, Any]
    target: dict[str, Any]
    chain: list[Any]
    scheme: str


class Stores:
    """The certificates and the lists of the trust stores that a rule names, read once for all signatures."""

    def __init__(self, rule: Notation) -> None:
        """Raises TrustError for a store that is not there, is empty, or cannot be read."""
        self._trusted: dict[str, set[bytes]] = {}
        self._lists: list[Any] = []
        for kind, folder in rule.stores:
            found = _files(folder, CERTIFICATES)
            if not found:
                raise TrustError(f"the trust store {folder} has no certificate (*.pem, *.crt, *.cer)")
            for file in found:
                for one in keys.certificates(keys.contents(file), str(file)):
                    self._trusted.setdefault(kind, set()).add(keys.der(one))
            self._lists += [keys.revocations(keys.contents(file), str(file)) for file in _files(folder, (".crl",))]

    def has(self, kind: str, certificate: Any) -> bool:
        """Whether a store of that kind trusts the certificate."""
        return keys.der(certificate) in self._trusted.get(kind, ())

    def revoked(self, certificate: Any, issuer: Any, now: float) -> str:
        """Why a certificate is not known to be good; "" where it is: a list that is in force does not have it, or its
        authority tells nowhere what it takes back."""
        name = certificate.subject.rfc4514_string()
        for one in self._lists:
            if not keys.issued(issuer, one):
                continue
            if one.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                return f"the certificate of {name} was revoked"
            if keys.next_update(one) < now:
                return f"the list of revocations of {issuer.subject.rfc4514_string()} is too old"
            return ""
        if keys.extension(certificate, "CRLDistributionPoints") or _answers_online(certificate):
            return f"whether the certificate of {name} was revoked is not known: no *.crl of its issuer is in the store"
        return ""


def _answers_online(certificate: Any) -> bool:
    """Whether its authority answers by OCSP."""
    found = keys.extension(certificate, "AuthorityInformationAccess")
    return found is not None and any(each.access_method.dotted_string == "1.3.6.1.5.5.7.48.1" for each in found[0])


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.suffix in endings and each.is_file())
    except OSError as error:
        raise TrustError(f"the trust store {folder} cannot be read: {error.strerror}") from None


def check(
    one: Attached, data: bytes, target: Descriptor, rule: Notation, stores: Stores, now: float | None = None
) -> Proven:
    """Who has signed a manifest, by the rule. `data`: the envelope; `now`: seconds since 1970.

    Raises TrustError where a validation fails that is enforced (signing-and-verification-workflow)."""
    now = time.time() if now is None else now
    notes: list[str] = []

    def failed(validation: str, says: str) -> None:
        if rule.actions[validation] == ENFORCE:
            raise TrustError(says)
        notes.append(f"{validation}: {says}")

    if one.layer["mediaType"] == COSE:
        raise TrustError("it is in an envelope of COSE, which is not read here: sign with --signature-format jws")
    if one.layer["mediaType"] != JWS:
        raise TrustError(f"it is a {one.layer['mediaType']}, and no envelope of JWS")
    envelope = _opened(data)
    for name in ("digest", "mediaType", "size"):
        said = envelope.target.get(name)
        if said != dict(target)[name]:
            raise TrustError(f"it is a signature of {said!r} as {name}")
    leaf = envelope.chain[0]
    signer = leaf.subject.rfc4514_string()
    if not any(stores.has(SCHEMES[envelope.scheme], each) for each in envelope.chain):
        failed(AUTHENTICITY, f"it is by {signer}, and no certificate of its chain is in the trust stores")
    elif not _is_one_of(leaf, rule.identities):
        failed(AUTHENTICITY, f"it is by {signer}, who is none of the identities of the policy")
    if why := _outside(envelope, now):
        failed(TIMESTAMP, why)
    if why := _expired(envelope, now):
        failed(EXPIRY, why)
    if rule.actions[REVOCATION] != SKIP:
        for certificate, issuer in zip(envelope.chain, envelope.chain[1:]):
            if why := stores.revoked(certificate, issuer, now):
                failed(REVOCATION, why)
    return Proven(signer, tuple(notes))


def _opened(data: bytes) -> _Envelope:
    """Integrity: the signature is the first certificate's, and the chain is one (signature-envelope-jws)."""
    document = json_object(data, "the envelope")
    payload, protected = _text(document, "payload"), _text(document, "protected")
    header = json_object(_unpadded(protected), "its protected header")
    algorithm, scheme = header.get("alg"), header.get(f"{PREFIX}signingScheme")
    if header.get("cty") != PAYLOAD:
        raise TrustError(f"its payload is a {header.get('cty')!r}, not {PAYLOAD}")
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise TrustError(f"its signing scheme {scheme!r} is not known")
    critical = header.get("crit")
    if not isinstance(critical, list) or f"{PREFIX}signingScheme" not in critical:
        raise TrustError("its header does not say that the signing scheme is critical")
    unknown = [name for name in map(str, critical) if name not in UNDERSTOOD or name not in header]
    if unknown:
        raise TrustError(
            f"it wants {', '.join(unknown)} to be understood, which is not: it needs a plugin of notation's"
        )
    chain = _chain(document.get("header"))
    key = chain[0].public_key()
    if algorithm != _algorithm(key):
        raise TrustError(f"its algorithm is {algorithm!r}, and that of its certificate {_algorithm(key)}")
    if not keys.signed_jws(key, f"{protected}.{payload}".encode(), _unpadded(_text(document, "signature"))):
        raise TrustError("its signature is not that of its certificate: it was changed")
    keys.check_chain(chain, _check_signer)
    target = json_object(_unpadded(payload), "its payload").get("targetArtifact")
    if not isinstance(target, dict):
        raise TrustError("its payload has no targetArtifact")
    return _Envelope(header, target, chain, scheme)


def _text(document: dict[str, Any], name: str) -> str:
    found = document.get(name)
    if not isinstance(found, str) or not found.isascii():
        raise TrustError(f"the envelope has no {name}")
    return found


def _unpadded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TrustError("the envelope has something that is not base64url") from None


def _chain(header: Any) -> list[Any]:
    given = header.get("x5c") if isinstance(header, dict) else None
    if not isinstance(given, list) or not 0 < len(given) <= CHAIN_MAX:
        raise TrustError("the envelope has no chain of certificates (x5c)")
    chain = []
    for each in given:
        try:
            chain += keys.certificates(base64.b64decode(str(each), validate=True), "its chain")
        except (binascii.Error, ValueError):
            raise TrustError("the envelope's chain is not base64") from None
    return chain


def _algorithm(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # loaded by then

    kind = "rsa" if isinstance(key, rsa.RSAPublicKey) else "ec" if isinstance(key, ec.EllipticCurvePublicKey) else ""
    if not kind or (kind, key.key_size) not in ALGORITHMS:
        raise TrustError("its certificate has a key of a kind or a size that the Notary Project does not allow")
    return ALGORITHMS[kind, key.key_size]


def _check_signer(certificate: Any) -> None:
    """Signature-specification, "Leaf Certificates"."""
    name = certificate.subject.rfc4514_string()
    basic = keys.extension(certificate, "BasicConstraints")
    if basic is not None and basic[0].ca:
        raise TrustError(f"the certificate of {name} is an authority's, and not for signing")
    usage = keys.extension(certificate, "KeyUsage")
    if usage is None or not usage[1] or not usage[0].digital_signature:
        raise TrustError(f"the certificate of {name} is not for signing (key usage)")
    others = ("key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")
    if any(getattr(usage[0], each) for each in others):
        raise TrustError(f"the certificate of {name} is for more than signing (key usage)")
    extended = keys.extension(certificate, "ExtendedKeyUsage")
    if extended is not None and any(each.dotted_string in FORBIDDEN_USES for each in extended[0]):
        raise TrustError(f"the certificate of {name} is for more than signing (extended key usage)")


def _is_one_of(certificate: Any, identities: Sequence[str]) -> bool:
    """Whether the subject has all attributes of one of the identities ("Trusted Identities Constraints")."""
    if "*" in identities:
        return True
    named: dict[str, list[str]] = {}
    for attribute in certificate.subject:
        named.setdefault(ATTRIBUTES.get(attribute.oid.dotted_string, ""), []).append(str(attribute.value))
    wanted = [subject(identity).items() for identity in identities]
    return any(all(named.get(name) == [value] for name, value in each) for each in wanted)


# RFC 4514's short names.
ATTRIBUTES = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.25": "DC",
    "0.9.2342.19200300.100.1.1": "UID",
}


def _when(envelope: _Envelope, name: str) -> float | None:
    text = envelope.protected.get(PREFIX + name)
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(str(text))
        if found.tzinfo is None:
            raise ValueError("it has no zone")
        return found.timestamp()
    except ValueError:
        raise TrustError(f"its {name} {text!r} is no time") from None


def _outside(envelope: _Envelope, now: float) -> str:
    """Which certificate is not valid at the time that counts: the authority's where the scheme has one, else now."""
    at = now
    if envelope.scheme == "notary.x509.signingAuthority":
        told = _when(envelope, "authenticSigningTime")
        if told is None or PREFIX + "authenticSigningTime" not in envelope.protected["crit"]:
            raise TrustError("its scheme has an authentic time of signing, and it has none")
        at = told
    for certificate in envelope.chain:
        begin, end = keys.times(certificate)
        if not begin <= at <= end:
            state = "is not valid yet" if at < begin else "has expired"
            return f"the certificate of {certificate.subject.rfc4514_string()} {state}"
    return ""


def _expired(envelope: _Envelope, now: float) -> str:
    expiry = _when(envelope, "expiry")
    if expiry is None:
        return ""
    if PREFIX + "expiry" not in envelope.protected["crit"]:
        raise TrustError("its expiry is not marked as critical")
    return f"it was good until {envelope.protected[PREFIX + 'expiry']}" if now >= expiry else ""
