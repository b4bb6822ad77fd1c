# SPDX-License-Identifier: Apache-2.0
"""Keys, certificates and signatures that are made in tests, as cosign's and the Notary Project's specifications have
them; and what a registry has to be given so that it has them. Used by unit and by system tests."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
DSSE = "application/vnd.dsse.envelope.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
NOTATION = "application/vnd.cncf.notary.signature"
JWS = "application/jose+json"
PREFIX = "io.cncf.notary."

Json = dict[str, Any]


def encode(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# -- keys --------------------------------------------------------------------------------------------------


def new_key(kind: str = "p256") -> Any:
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:] or 2048))
    curve = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1(), "k256": ec.SECP256K1()}[kind]
    return ec.generate_private_key(curve)


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def log_id(key: Any) -> str:
    return hashlib.sha256(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def sign(key: Any, message: bytes, algorithm: Any = None) -> bytes:
    """As sigstore's keys sign."""
    algorithm = algorithm or hashes.SHA256()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), algorithm)
    signature: bytes = key.sign(message, ec.ECDSA(algorithm))
    return signature


# -- cosign's ----------------------------------------------------------------------------------------------


def payload(digest: str, name: str, optional: Json | None = None, **changes: Any) -> bytes:
    critical = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
        **changes,
    }
    return encode({"critical": critical, "optional": optional})


def statement(digest: str, predicate: str, name: str = "", **more: Any) -> bytes:
    subject: Json = {"name": name, "digest": {"sha256": digest.partition(":")[2]}}
    return encode(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [subject],
            "predicateType": predicate,
            "predicate": {},
            **more,
        }
    )


def envelope(key: Any, data: bytes, kind: str = "application/vnd.in-toto+json") -> Json:
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(data), data)
    return {"payloadType": kind, "payload": b64(data), "signatures": [{"sig": b64(sign(key, message))}]}


def bundle(key: Any, data: bytes, entries: list[Json] | None = None) -> bytes:
    material = {"publicKey": {"hint": "x"}, "tlogEntries": entries or []}
    return encode({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope(key, data)})


def log_entry(log: Any, body: Json, time: int = 1700000000) -> Json:
    """Of a transparency log, as cosign's annotation has it."""
    promised = {"body": b64(encode(body)), "integratedTime": time, "logID": log_id(log), "logIndex": 7}
    message = json.dumps(promised, sort_keys=True, separators=(",", ":")).encode()
    return {"SignedEntryTimestamp": b64(sign(log, message)), "Payload": promised}


def hashed_rekord(data: bytes, signature: bytes, pem: bytes = b"") -> Json:
    return {
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}},
            "signature": {"content": b64(signature), "publicKey": {"content": b64(pem)}},
        },
    }


# -- the Notary Project's ----------------------------------------------------------------------------------

SUBJECT = {"C": "DE", "ST": "Hamburg", "O": "acme.example", "CN": "builder"}
_OIDS = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "CN": NameOID.COMMON_NAME,
}
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
YEAR = datetime.timedelta(days=365)


def name(**attributes: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(_OIDS[key], value) for key, value in attributes.items()])


class Certified:
    """A key with its certificate, and those above it. `issuer` None: its own."""

    def __init__(
        self,
        issuer: Certified | None = None,
        kind: str = "p256",
        authority: bool = False,
        subject: Json | None = None,
        begin: datetime.datetime = NOW - YEAR,
        end: datetime.datetime = NOW + YEAR,
        uses: list[Any] | None = None,
        algorithm: Any = None,
        extensions: list[Any] | None = None,
        path_length: int | None = None,
    ) -> None:
        self.key = new_key(kind)
        self.issuer = issuer
        own = name(
            **(subject or ({"C": "DE", "ST": "Hamburg", "O": "acme.example", "CN": "root"} if authority else SUBJECT))
        )
        above = issuer.certificate.subject if issuer else own
        builder = x509.CertificateBuilder(above, own, self.key.public_key(), x509.random_serial_number(), begin, end)
        if authority:
            builder = builder.add_extension(x509.BasicConstraints(True, path_length), True)
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage),
            True,
        )
        if not authority:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING] if uses is None else uses), False
            )
        for each in extensions or []:
            builder = builder.add_extension(each, False)
        signer = issuer.key if issuer else self.key
        self.certificate = builder.sign(signer, algorithm or hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def chain(self) -> list[Certified]:
        return [self, *(self.issuer.chain if self.issuer else [])]

    def revocations(self, *serials: int, until: datetime.datetime = NOW + YEAR) -> bytes:
        """A list of what this authority has taken back, in PEM."""
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject, NOW - YEAR, until)
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder(serial, NOW - YEAR).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def jws(signer: Certified, target: Any, members: Json | None = None, **changes: Any) -> bytes:
    """An envelope; `members` of the protected header are beside those that have to be there, a None takes one away."""
    key = signer.key
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm, chosen = {2048: "PS256", 3072: "PS384", 4096: "PS512"}[key.key_size], None
    else:
        algorithm, chosen = {256: "ES256", 384: "ES384", 521: "ES512"}[key.key_size], None
    chosen = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[algorithm[2:]]
    protected: Json = {
        "alg": algorithm,
        "cty": "application/vnd.cncf.notary.payload.v1+json",
        "crit": [PREFIX + "signingScheme"],
        PREFIX + "signingScheme": "notary.x509",
        PREFIX + "signingTime": "2026-05-01T00:00:00Z",
        **(members or {}),
    }
    protected = {key: value for key, value in protected.items() if value is not None}
    parts = b64url(encode(protected)), b64url(encode({"targetArtifact": target}))
    message = ".".join(parts).encode()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(message, padding.PSS(padding.MGF1(chosen), chosen.digest_size), chosen)
    else:
        half = (key.key_size + 7) // 8
        r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(chosen)))
        signature = r.to_bytes(half, "big") + s.to_bytes(half, "big")
    x5c = [b64(each.certificate.public_bytes(Encoding.DER)) for each in signer.chain]
    document = {
        "payload": parts[1],
        "protected": parts[0],
        "header": {"x5c": x5c, PREFIX + "signingAgent": "tests"},
        "signature": b64url(signature),
    }
    return encode({**document, **changes})


# -- how they lie at a registry ----------------------------------------------------------------------------


def layer(media_type: str, data: bytes, annotations: dict[str, str] | None = None) -> tuple[Json, bytes]:
    descriptor: Json = {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
    if annotations:
        descriptor["annotations"] = annotations
    return descriptor, data


def simple_layer(key: Any, data: bytes, **more: str) -> tuple[Json, bytes]:
    """A signature of cosign's. `more`: annotations, by the ends of their names."""
    return layer(
        SIMPLE, data, {SIGNATURE: b64(sign(key, data)), **{f"dev.sigstore.cosign/{k}": v for k, v in more.items()}}
    )


def artifact(layers: list[tuple[Json, bytes]], kind: str = "", subject: Json | None = None) -> tuple[Json, list[bytes]]:
    """(manifest, blobs) of what is attached to an image: by its tag, or as a referrer of `subject`."""
    config = b"{}"
    manifest: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_EMPTY, "digest": digest_of(config), "size": len(config)},
        "layers": [descriptor for descriptor, _ in layers],
    }
    if kind:
        manifest["artifactType"] = kind
    if subject:
        manifest["subject"] = {key: subject[key] for key in ("mediaType", "digest", "size")}
    return manifest, [config, *(data for _, data in layers)]
