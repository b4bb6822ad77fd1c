# SPDX-License-Identifier: Apache-2.0
"""What one signature or attestation of cosign's proves, by public keys, signatures also by certificates. Called by
`verify`, and by `teu image signatures`.

    a layer of simple signing    the payload names digest and repository; its signature is an annotation of the layer
    a bundle of sigstore's       an envelope of DSSE around a statement of in-toto, whose subject is the digest
    a layer of DSSE              the same, an attestation

An entry of a transparency log is looked at where the policy names logs' keys, offline, by the promise that the log
signed (the SET). Certificates of Fulcio are believed where the policy names its roots and whom they may be of, with
such an entry; see `keyless`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.oci import jsontext
from teu.trust import keys
from teu.trust.attached import BUNDLE, BUNDLE_ARTIFACT, DSSE, SIMPLE_SIGNING, json_object
from teu.trust.errors import TrustError
from teu.trust.policy import known_as, signed_reference, within

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from teu.oci.reference import Reference
    from teu.trust.attached import Attached
    from teu.trust.keyless import Authorities
    from teu.trust.keys import Key
    from teu.trust.policy import Cosign

SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
CHAIN = "dev.sigstore.cosign/chain"
CHAIN_MAX = 8
LOG_ENTRY = "dev.sigstore.cosign/bundle"
PAYLOAD_TYPE = "cosign container image signature"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
SIGNS = "https://sigstore.dev/cosign/sign/v1"  # the predicate's type of a bundle that is a signature and says no more


class Statement(NamedTuple):
    """What an attestation says: of which digests, and what kind of thing. `names`: of its subjects, where they have
    some; `signer`: the file of the key."""

    predicate_type: str
    subjects: tuple[str, ...]
    names: tuple[str, ...]
    annotations: Mapping[str, Any]
    signer: str


class _Proof(NamedTuple):
    """What a log must have entered: `digest`, hex of sha256, of what was signed, and the signature itself."""

    digest: str
    signature: bytes


class _Logged(NamedTuple):
    """When a log entered a signature, in seconds since 1970, and the certificates, in DER, that it says it is by."""

    time: float
    verifiers: list[bytes]


class Trusted(NamedTuple):
    """Whose signatures a rule takes: by these keys; with `logs` only what one of them has entered; with `authorities`
    also by certificates of theirs, of the identities that they are told."""

    keys: Sequence[Key]
    logs: Sequence[Key] = ()
    authorities: Authorities | None = None


def _member(document: Any, name: str, kind: type, what: str) -> Any:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise TrustError(f"{what} has no {name}")
    return found


def _decoded(text: str, what: str) -> bytes:
    """Of base64, in either alphabet: DSSE leaves that open."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/").strip(), validate=True)
    except (binascii.Error, ValueError):
        raise TrustError(f"{what} is not base64") from None


def _by_key(trusted: Sequence[Key], message: bytes, signature: bytes) -> Key | None:
    return next((key for key in trusted if keys.signed(key, message, signature)), None)


def _not_by(trusted: Trusted, certificate: bool) -> TrustError:
    if certificate:
        return TrustError(
            "it is by no key of the policy; it comes with a certificate (keyless signing), for which the policy has no"
            " fulcio section"
        )
    if not trusted.keys:
        return TrustError("it comes without a certificate, and the policy names no keys")
    return TrustError(f"it is by none of the keys {', '.join(key.file for key in trusted.keys)}")


def _signer(
    trusted: Trusted,
    message: bytes,
    signature: bytes,
    certificates: Sequence[Any],
    logged: Callable[[], _Logged],
) -> str:
    """The file of the key, or the identity in the certificate, that a signature is of. `certificates`: the signer's,
    and those above it; `logged` has the log's entry of the signature verified. Raises TrustError."""
    key = _by_key(trusted.keys, message, signature)
    if key is not None:
        if trusted.logs:
            logged()
        return key.file
    if not certificates or trusted.authorities is None:
        raise _not_by(trusted, bool(certificates))
    leaf = certificates[0]
    if not keys.signed(keys.of(leaf.public_key(), "its certificate's key"), message, signature):
        raise TrustError("it is not by the key of its certificate")
    entry = logged()
    if keys.der(leaf) not in entry.verifiers:
        raise TrustError("its log entry is of another certificate")
    return trusted.authorities.signer(leaf, certificates[1:], entry.time)


def check(one: Attached, data: bytes, digest: str, wanted: Reference, rule: Cosign, trusted: Trusted) -> str:
    """Who has signed a manifest, the image `wanted`, as the rule asks: a key's file, or an identity. `data`: what is in
    the layer.

    Raises TrustError: it is no signature, is by another key, of another manifest, for another name."""
    if one.kind == BUNDLE:
        return _check_bundle(data, digest, wanted, rule, trusted)
    if one.layer["mediaType"] != SIMPLE_SIGNING:
        raise TrustError(f"it is a {one.layer['mediaType']}, and no payload of simple signing")
    signature = _decoded(_member(one.annotations, SIGNATURE, str, "its layer"), "the signature")

    def logged() -> _Logged:
        entry = one.annotations.get(LOG_ENTRY)
        if not entry:
            raise TrustError("it comes without an entry of a transparency log, which rekor-keys ask for")
        proof = _Proof(hashlib.sha256(data).hexdigest(), signature)
        return _check_log(json_object(entry, "the log's entry"), trusted.logs, proof)

    given: list[Any] = []
    if trusted.authorities is not None and CERTIFICATE in one.annotations:
        given = keys.certificates(one.annotations[CERTIFICATE].encode(), "its certificate")[:1]
        if one.annotations.get(CHAIN):
            given += keys.certificates(one.annotations[CHAIN].encode(), "its chain")[:CHAIN_MAX]
    elif CERTIFICATE in one.annotations:
        given = [None]
    signer = _signer(trusted, data, signature, given, logged)
    payload = json_object(data, "the payload")
    critical = _member(payload, "critical", dict, "the payload")
    if critical.get("type") != PAYLOAD_TYPE:
        raise TrustError(f"its payload is of the type {critical.get('type')!r}, not {PAYLOAD_TYPE!r}")
    said = _member(critical.get("image"), "docker-manifest-digest", str, "the payload")
    if said != digest:
        raise TrustError(f"it is a signature of {said}")
    named = _member(critical.get("identity"), "docker-reference", str, "the payload")
    check_identity(named, wanted, digest, rule.identity)
    _check_annotations(payload.get("optional") or {}, rule.annotations)
    return signer


def check_identity(named: str, wanted: Reference, digest: str, identity: str) -> None:
    """That the name in a signature is what `identity` asks for (teu-policy(5)). Raises TrustError."""
    if identity == "any":
        return
    if not named:
        raise TrustError("it gives no name of a repository; with `identity: any` the digest alone is enough")
    try:
        signed = signed_reference(named)
    except ValueError:
        raise TrustError(f"it is for {named!r}, which is no name of an image") from None
    if identity not in ("repository", "exact"):
        if not within(signed, identity):
            raise TrustError(f"it is for {signed}, which is not within {identity}")
        return
    if signed.name != wanted._replace(domain=known_as(wanted.domain)).name:
        raise TrustError(f"it is for {signed.name}")
    # A signature for one tag is none for another; cosign's name none.
    if wanted.tag and not wanted.digest and signed.tag and signed.tag != wanted.tag:
        raise TrustError(f"it is for the tag {signed.tag}")
    if signed.digest and signed.digest != digest:
        raise TrustError(f"it is for {signed.digest}")
    if identity == "exact" and not (signed.tag and signed.tag == wanted.tag) and not signed.digest:
        raise TrustError(f"it is for {signed}, and not for {wanted} exactly")


def _check_annotations(said: Any, asked: Mapping[str, str]) -> None:
    for name, value in asked.items():
        found = said.get(name) if isinstance(said, dict) else None
        if found != value:
            raise TrustError(f"its annotation {name} is {found!r}, not {value!r}")


# -- envelopes of DSSE -------------------------------------------------------------------------------------


def authenticated(payload_type: str, payload: bytes) -> bytes:
    """What of an envelope is signed (DSSE's protocol, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _opened(envelope: Any) -> tuple[bytes, bytes, list[bytes]]:
    """(what is signed, payload, signatures) of an envelope."""
    payload_type = _member(envelope, "payloadType", str, "the envelope")
    if payload_type != IN_TOTO:
        raise TrustError(f"its envelope has a {payload_type}, and no statement of in-toto")
    payload = _decoded(_member(envelope, "payload", str, "the envelope"), "the envelope's payload")
    signatures = [
        _decoded(_member(each, "sig", str, "the envelope"), "the envelope's signature")
        for each in _member(envelope, "signatures", list, "the envelope")[:SIGNATURES_MAX]
    ]
    if not signatures:
        raise TrustError("its envelope has no signature")
    return authenticated(payload_type, payload), payload, signatures


SIGNATURES_MAX = 16  # of one envelope


def _statement(payload: bytes, signer: str) -> Statement:
    document = json_object(payload, "the statement")
    if document.get("_type") not in STATEMENTS:
        raise TrustError(f"it has a {document.get('_type')!r}, and no statement of in-toto")
    subjects: list[str] = []
    names: list[str] = []
    annotations: Mapping[str, Any] = {}
    for each in _member(document, "subject", list, "the statement"):
        digest = _member(each, "digest", dict, "the statement's subject")
        subjects += [f"{algorithm}:{value}" for algorithm, value in digest.items()]
        if isinstance(each.get("name"), str) and each["name"]:
            names.append(each["name"])
        annotations = each.get("annotations") or annotations
    kind = _member(document, "predicateType", str, "the statement")
    return Statement(kind, tuple(subjects), tuple(names), annotations, signer)


def unverified_type(data: bytes) -> str:
    """The predicate's type in an envelope, or in a bundle with one, for lists; nobody has checked the signature. ""
    where there is none."""
    try:
        document = json_object(data, "it")
        envelope = document.get("dsseEnvelope") or document
        payload = _decoded(_member(envelope, "payload", str, "it"), "it")
        return str(json_object(payload, "it").get("predicateType") or "")
    except TrustError:
        return ""


def attestation(one: Attached, data: bytes, digest: str, trusted: Sequence[Key]) -> Statement:
    """The statement about a manifest in a layer or a bundle, signed by one of the keys. Raises TrustError."""
    if one.kind == BUNDLE:
        bundle = _bundle(data)
        envelope, certificate = bundle.envelope, bundle.by_certificate
    elif one.layer["mediaType"] == DSSE:
        envelope, certificate = json_object(data, "the envelope"), bool(one.annotations.get(CERTIFICATE))
    else:
        raise TrustError(f"it is a {one.layer['mediaType']}, and no envelope of DSSE")
    message, payload, signatures = _opened(envelope)
    key = next((found for each in signatures if (found := _by_key(trusted, message, each))), None)
    if key is None:
        raise _not_by(Trusted(trusted), certificate)
    statement = _statement(payload, key.file)
    if digest not in statement.subjects:
        raise TrustError(f"it is about {', '.join(statement.subjects) or 'nothing'}")
    return statement


# -- bundles -----------------------------------------------------------------------------------------------


class _Bundle(NamedTuple):
    """`certificates`: of the signer and of those above it, in DER; `entries`: of transparency logs."""

    envelope: Any
    certificates: list[bytes]
    entries: list[Any]

    @property
    def by_certificate(self) -> bool:
        return bool(self.certificates)


def _bundle(data: bytes) -> _Bundle:
    document = json_object(data, "the bundle")
    if not str(document.get("mediaType")).startswith(BUNDLE_ARTIFACT):
        raise TrustError(f"it is a {document.get('mediaType')}, and no bundle of sigstore's")
    if "dsseEnvelope" not in document:
        raise TrustError("its bundle has no envelope of DSSE: a signature of another kind than cosign's of images")
    material = _member(document, "verificationMaterial", dict, "the bundle")
    chain = material.get("x509CertificateChain")
    given = chain.get("certificates") if isinstance(chain, dict) else [material.get("certificate")]
    certificates = [
        _decoded(_member(each, "rawBytes", str, "its certificate"), "its certificate")
        for each in (given if isinstance(given, list) else [])[:CHAIN_MAX]
        if each
    ]
    entries = material.get("tlogEntries") or []
    return _Bundle(document["dsseEnvelope"], certificates, entries if isinstance(entries, list) else [])


def _check_bundle(data: bytes, digest: str, wanted: Reference, rule: Cosign, trusted: Trusted) -> str:
    bundle = _bundle(data)
    message, payload, signatures = _opened(bundle.envelope)
    certificates: list[Any] = [None] if bundle.certificates else []
    if trusted.authorities is not None:
        certificates = [one for each in bundle.certificates for one in keys.certificates(each, "its certificate")]
    failure = TrustError("its envelope has no signature")
    signer = ""
    for signature in signatures:
        proof = _Proof(hashlib.sha256(payload).hexdigest(), signature)
        try:
            signer = _signer(trusted, message, signature, certificates, partial(_one_logged, bundle, trusted, proof))
            break
        except TrustError as error:
            failure = error
    if not signer:
        raise failure
    statement = _statement(payload, signer)
    if statement.predicate_type != SIGNS:
        raise TrustError(f"it is an attestation ({statement.predicate_type}), and no signature")
    if digest not in statement.subjects:
        raise TrustError(f"it is a signature of {', '.join(statement.subjects) or 'nothing'}")
    check_identity(statement.names[0] if statement.names else "", wanted, digest, rule.identity)
    _check_annotations(statement.annotations, rule.annotations)
    return signer


def _one_logged(bundle: _Bundle, trusted: Trusted, proof: _Proof) -> _Logged:
    """The first entry of the bundle that is good."""
    failure = TrustError("it comes without an entry of a transparency log, which rekor-keys ask for")
    for entry in bundle.entries[:SIGNATURES_MAX]:
        try:
            return _check_log(_as_promised(entry), trusted.logs, proof)
        except TrustError as error:
            failure = error
    raise failure


# -- transparency logs -------------------------------------------------------------------------------------


def _as_promised(entry: Any) -> dict[str, Any]:
    """An entry of a bundle (protobuf-specs, TransparencyLogEntry) in the form that cosign's annotation has."""
    promise = entry.get("inclusionPromise") if isinstance(entry, dict) else None
    if not promise:
        raise TrustError(
            "its log entry has no signed promise (SET): entries of Rekor's second version cannot be checked"
        )
    try:
        payload = {
            "body": entry["canonicalizedBody"],
            "integratedTime": int(entry["integratedTime"]),
            "logIndex": int(entry["logIndex"]),
            "logID": base64.b64decode(entry["logId"]["keyId"]).hex(),
        }
    except (KeyError, TypeError, ValueError):
        raise TrustError("its log entry is not complete") from None
    return {"SignedEntryTimestamp": promise.get("signedEntryTimestamp"), "Payload": payload}


def _check_log(entry: dict[str, Any], logs: Sequence[Key], proof: _Proof) -> _Logged:
    """That a log has promised the entry, and that it is of this signature. Raises TrustError."""
    promise = _decoded(_member(entry, "SignedEntryTimestamp", str, "the log's entry"), "the log's promise")
    payload = _member(entry, "Payload", dict, "the log's entry")
    signed = {
        "body": _member(payload, "body", str, "the log's entry"),
        "integratedTime": _member(payload, "integratedTime", int, "the log's entry"),
        "logID": _member(payload, "logID", str, "the log's entry"),
        "logIndex": _member(payload, "logIndex", int, "the log's entry"),
    }
    # Members in order, and no blanks: the canonical JSON of RFC 8785, which these values have in any encoder.
    message = jsontext.dumps(signed, sort_keys=True).encode()
    if not any(key.fingerprint == signed["logID"] and keys.signed(key, message, promise) for key in logs):
        raise TrustError(f"its log entry is promised by none of the logs {', '.join(key.file for key in logs)}")
    body = json_object(_decoded(signed["body"], "the log's entry"), "the log's entry")
    spec = _member(body, "spec", dict, "the log's entry")
    verifiers = [verifier for entered, verifier in _entered(body.get("kind"), spec) if entered == proof]
    if not verifiers:
        raise TrustError("its log entry is of another signature")
    found = [keys.der(one) for each in verifiers if b"CERTIFICATE" in each for one in keys.certificates(each, "it")]
    return _Logged(float(signed["integratedTime"]), found)


def _entered(kind: Any, spec: dict[str, Any]) -> list[tuple[_Proof, bytes]]:
    """What an entry of a log is of, by its kind: each with the key or the certificate, in PEM, that it names."""
    try:
        if kind == "hashedrekord" and spec["data"]["hash"]["algorithm"] == "sha256":
            signature = spec["signature"]
            proof = _Proof(spec["data"]["hash"]["value"], _decoded(signature["content"], "it"))
            return [(proof, _decoded(signature["publicKey"]["content"], "it"))]
        if kind == "dsse" and spec["payloadHash"]["algorithm"] == "sha256":
            digest = spec["payloadHash"]["value"]
            return [
                (_Proof(digest, _decoded(each["signature"], "it")), _decoded(str(each.get("verifier") or ""), "it"))
                for each in spec["signatures"]
            ]
    except (KeyError, TypeError, AttributeError):
        raise TrustError("its log entry is not complete") from None
    raise TrustError(f"its log entry is a {kind!r}, which cannot be compared with a signature of an image")
