# SPDX-License-Identifier: Apache-2.0
"""What one signature or attestation of cosign's proves, by public keys. Called by `verify`, and by `teu image
signatures`.

    a layer of simple signing    the payload names digest and repository; its signature is an annotation of the layer
    a bundle of sigstore's       an envelope of DSSE around a statement of in-toto, whose subject is the digest
    a layer of DSSE              the same, an attestation

Certificates of Fulcio are not believed: their identities hold only with an authority's and a log's keys, which are
online. What is by a certificate alone is told so. An entry of a transparency log is looked at where the policy names
logs' keys, offline, by the promise that the log signed (the SET).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.oci import jsontext
from teu.trust import keys
from teu.trust.attached import BUNDLE, BUNDLE_ARTIFACT, DSSE, SIMPLE_SIGNING
from teu.trust.errors import TrustError
from teu.trust.policy import signed_reference, within

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from teu.oci.reference import Reference
    from teu.trust.attached import Attached
    from teu.trust.keys import Key
    from teu.trust.policy import Cosign

SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
LOG_ENTRY = "dev.sigstore.cosign/bundle"
PAYLOAD_TYPE = "cosign container image signature"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
SIGNS = "https://sigstore.dev/cosign/sign/v1"  # the predicate's type of a bundle that is a signature and says no more


class Statement(NamedTuple):
    """What an attestation says: of which digests, and what kind of thing. `names`: of its subjects, where they have
    some; `key` has signed it."""

    predicate_type: str
    subjects: tuple[str, ...]
    names: tuple[str, ...]
    annotations: Mapping[str, Any]
    key: Key


class _Proof(NamedTuple):
    """What a log must have entered: `digest`, hex of sha256, of what was signed, and the signature itself."""

    digest: str
    signature: bytes


def _object(data: bytes | str, what: str) -> dict[str, Any]:
    try:
        found = jsontext.loads(data)
    except ValueError as error:
        raise TrustError(f"{what} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise TrustError(f"{what} is not a JSON object")
    return found


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


def _signer(trusted: Sequence[Key], message: bytes, signature: bytes, certificate: bool) -> Key:
    for key in trusted:
        if keys.signed(key, message, signature):
            return key
    if certificate:
        raise TrustError(
            "it is by no key of the policy; it comes with a certificate (keyless signing), which is not believed here"
        )
    raise TrustError(f"it is by none of the keys {', '.join(key.file for key in trusted)}")


def check(
    one: Attached,
    data: bytes,
    digest: str,
    wanted: Reference,
    rule: Cosign,
    trusted: Sequence[Key],
    logs: Sequence[Key],
) -> Key:
    """The key that has signed a manifest, the image `wanted`, as the rule asks. `data`: what is in the layer.

    Raises TrustError: it is no signature, is by another key, of another manifest, for another name."""
    if one.kind == BUNDLE:
        return _check_bundle(one, data, digest, wanted, rule, trusted, logs)
    if one.layer["mediaType"] != SIMPLE_SIGNING:
        raise TrustError(f"it is a {one.layer['mediaType']}, and no payload of simple signing")
    signature = _decoded(_member(one.annotations, SIGNATURE, str, "its layer"), "the signature")
    key = _signer(trusted, data, signature, CERTIFICATE in one.annotations)
    payload = _object(data, "the payload")
    critical = _member(payload, "critical", dict, "the payload")
    if critical.get("type") != PAYLOAD_TYPE:
        raise TrustError(f"its payload is of the type {critical.get('type')!r}, not {PAYLOAD_TYPE!r}")
    said = _member(critical.get("image"), "docker-manifest-digest", str, "the payload")
    if said != digest:
        raise TrustError(f"it is a signature of {said}")
    named = _member(critical.get("identity"), "docker-reference", str, "the payload")
    check_identity(named, wanted, digest, rule.identity)
    _check_annotations(payload.get("optional") or {}, rule.annotations)
    if logs:
        entry = one.annotations.get(LOG_ENTRY)
        if not entry:
            raise TrustError("it comes without an entry of a transparency log, which rekor-keys ask for")
        _check_log(_object(entry, "the log's entry"), logs, _Proof(hashlib.sha256(data).hexdigest(), signature))
    return key


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
    if signed.name != wanted.name:
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


def _opened(envelope: Any, trusted: Sequence[Key], certificate: bool) -> tuple[Key, bytes, bytes]:
    """(key, payload, signature) of an envelope."""
    payload_type = _member(envelope, "payloadType", str, "the envelope")
    if payload_type != IN_TOTO:
        raise TrustError(f"its envelope has a {payload_type}, and no statement of in-toto")
    payload = _decoded(_member(envelope, "payload", str, "the envelope"), "the envelope's payload")
    message = authenticated(payload_type, payload)
    failure = TrustError("its envelope has no signature")
    for each in _member(envelope, "signatures", list, "the envelope")[:SIGNATURES_MAX]:
        signature = _decoded(_member(each, "sig", str, "the envelope"), "the envelope's signature")
        try:
            return _signer(trusted, message, signature, certificate), payload, signature
        except TrustError as error:
            failure = error
    raise failure


SIGNATURES_MAX = 16  # of one envelope


def _statement(payload: bytes, key: Key) -> Statement:
    document = _object(payload, "the statement")
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
    return Statement(kind, tuple(subjects), tuple(names), annotations, key)


def unverified_type(data: bytes) -> str:
    """The predicate's type in an envelope, or in a bundle with one, for lists; nobody has checked the signature. ""
    where there is none."""
    try:
        document = _object(data, "it")
        envelope = document.get("dsseEnvelope") or document
        payload = _decoded(_member(envelope, "payload", str, "it"), "it")
        return str(_object(payload, "it").get("predicateType") or "")
    except TrustError:
        return ""


def attestation(one: Attached, data: bytes, digest: str, trusted: Sequence[Key]) -> Statement:
    """The statement about a manifest in a layer or a bundle, signed by one of the keys. Raises TrustError."""
    if one.kind == BUNDLE:
        envelope, certificate, _ = _bundle(data)
    elif one.layer["mediaType"] == DSSE:
        envelope, certificate = _object(data, "the envelope"), bool(one.annotations.get(CERTIFICATE))
    else:
        raise TrustError(f"it is a {one.layer['mediaType']}, and no envelope of DSSE")
    key, payload, _ = _opened(envelope, trusted, certificate)
    statement = _statement(payload, key)
    if digest not in statement.subjects:
        raise TrustError(f"it is about {', '.join(statement.subjects) or 'nothing'}")
    return statement


# -- bundles -----------------------------------------------------------------------------------------------


def _bundle(data: bytes) -> tuple[Any, bool, list[Any]]:
    """(envelope, whether it is by a certificate, entries of logs)."""
    document = _object(data, "the bundle")
    if not str(document.get("mediaType")).startswith(BUNDLE_ARTIFACT):
        raise TrustError(f"it is a {document.get('mediaType')}, and no bundle of sigstore's")
    if "dsseEnvelope" not in document:
        raise TrustError("its bundle has no envelope of DSSE: a signature of another kind than cosign's of images")
    material = _member(document, "verificationMaterial", dict, "the bundle")
    certificate = bool(material.get("certificate") or material.get("x509CertificateChain"))
    entries = material.get("tlogEntries") or []
    return document["dsseEnvelope"], certificate, entries if isinstance(entries, list) else []


def _check_bundle(
    one: Attached,
    data: bytes,
    digest: str,
    wanted: Reference,
    rule: Cosign,
    trusted: Sequence[Key],
    logs: Sequence[Key],
) -> Key:
    envelope, certificate, entries = _bundle(data)
    key, payload, signature = _opened(envelope, trusted, certificate)
    statement = _statement(payload, key)
    if statement.predicate_type != SIGNS:
        raise TrustError(f"it is an attestation ({statement.predicate_type}), and no signature")
    if digest not in statement.subjects:
        raise TrustError(f"it is a signature of {', '.join(statement.subjects) or 'nothing'}")
    check_identity(statement.names[0] if statement.names else "", wanted, digest, rule.identity)
    _check_annotations(statement.annotations, rule.annotations)
    if logs:
        failure = TrustError("it comes without an entry of a transparency log, which rekor-keys ask for")
        for entry in entries[:SIGNATURES_MAX]:
            try:
                _check_log(_as_promised(entry), logs, _Proof(hashlib.sha256(payload).hexdigest(), signature))
                break
            except TrustError as error:
                failure = error
        else:
            raise failure
    return key


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


def _check_log(entry: dict[str, Any], logs: Sequence[Key], proof: _Proof) -> None:
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
    body = _object(_decoded(signed["body"], "the log's entry"), "the log's entry")
    spec = _member(body, "spec", dict, "the log's entry")
    if proof not in _entered(body.get("kind"), spec):
        raise TrustError("its log entry is of another signature")


def _entered(kind: Any, spec: dict[str, Any]) -> list[_Proof]:
    """What an entry of a log is of, by its kind."""
    try:
        if kind == "hashedrekord" and spec["data"]["hash"]["algorithm"] == "sha256":
            return [_Proof(spec["data"]["hash"]["value"], _decoded(spec["signature"]["content"], "it"))]
        if kind == "dsse" and spec["payloadHash"]["algorithm"] == "sha256":
            digest = spec["payloadHash"]["value"]
            return [_Proof(digest, _decoded(each["signature"], "it")) for each in spec["signatures"]]
    except (KeyError, TypeError, AttributeError):
        raise TrustError("its log entry is not complete") from None
    raise TrustError(f"its log entry is a {kind!r}, which cannot be compared with a signature of an image")
