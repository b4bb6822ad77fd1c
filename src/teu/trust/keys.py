# SPDX-License-Identifier: Apache-2.0
"""Public keys and certificates, and whether a signature is theirs. Called by `cosign` and `notation`.

The mathematics are python3-cryptography's, 38 or newer, loaded with the first key: 16 ms and 4.4 MB, for certificates
20 to 30 ms and 1.5 MB more. Chains are followed here, as the library has no verifier before version 42, and none that
knows these certificates.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from teu.trust.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

RSA_BITS = 2048
PACKAGE = "python3-cryptography"
PEM_LIMIT = 1 << 20
PSS = "1.2.840.113549.1.1.10"  # RSASSA-PSS as a signature's algorithm (RFC 4055)


class Key(NamedTuple):
    """A public key, and the file that it is from."""

    file: str
    key: Any
    spki: bytes  # SubjectPublicKeyInfo, in DER

    @property
    def fingerprint(self) -> str:
        """The sha256 of its SubjectPublicKeyInfo, in hex: what logs call a key by."""
        return hashlib.sha256(self.spki).hexdigest()


def _missing(error: ImportError) -> TrustError:
    return TrustError(f"signatures cannot be checked here ({error}): install {PACKAGE}")


def contents(file: str | Path) -> bytes:
    """Of a file with keys or certificates. Raises TrustError."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(PEM_LIMIT + 1)
    except OSError as error:
        raise TrustError(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > PEM_LIMIT:
        raise TrustError(f"{file} is larger than {PEM_LIMIT} bytes")
    return data


def load(file: str) -> Key:
    """The public key in a file: PEM, of ECDSA (P-256, P-384, P-521), RSA or Ed25519. Raises TrustError."""
    return from_pem(contents(file), file)


def from_pem(data: bytes, name: str) -> Key:
    """As `load`, of a text; `name` is what it is called in errors."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # 16 ms and 4.4 MB, these two
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise _missing(error) from None
    try:
        return of(load_pem_public_key(data), name)
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError(f"{name} is no public key in PEM") from None


def of(key: Any, name: str) -> Key:
    """A key of the library's, where it is of a kind that is taken. Raises TrustError."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # loaded by then
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS:
            raise TrustError(f"{name} is an RSA key of {key.key_size} bits; {RSA_BITS} are the least")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
            raise TrustError(f"{name} is a key of the curve {key.curve.name}; P-256, P-384 and P-521 are taken")
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise TrustError(f"{name} is no key of ECDSA, RSA or Ed25519")
    return Key(name, key, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def signed(key: Key, message: bytes, signature: bytes) -> bool:
    """Whether a signature is of that key, in sigstore's ways: ECDSA in DER with SHA-256 or the curve's own hash,
    PKCS #1 v1.5 with SHA-256, Ed25519 of the message itself."""
    from cryptography.exceptions import InvalidSignature  # loaded by then
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256

    ways: list[Callable[[], None]]
    if isinstance(key.key, rsa.RSAPublicKey):
        ways = [lambda: key.key.verify(signature, message, padding.PKCS1v15(), SHA256())]
    elif isinstance(key.key, ec.EllipticCurvePublicKey):
        ways = [lambda: key.key.verify(signature, message, ec.ECDSA(SHA256()))]
        if key.key.curve.key_size > 256:
            ways.append(lambda: key.key.verify(signature, message, ec.ECDSA(_hash_of(key.key.curve.key_size))))
    else:
        ways = [lambda: key.key.verify(signature, message)]
    for way in ways:
        try:
            way()
            return True
        except InvalidSignature:
            pass
    return False


def signed_jws(key: Any, message: bytes, signature: bytes) -> bool:
    """Whether a signature is of that key, in JWS's ways (RFC 7518, section 3): PSS, with salt as long as the hash, or
    the two numbers of ECDSA; the hash by the key's size, as the Notary Project has it."""
    from cryptography.exceptions import InvalidSignature  # loaded by then
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

    try:
        if isinstance(key, rsa.RSAPublicKey):
            algorithm = _hash_of(key.key_size // 8)
            pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
            key.verify(signature, message, pss, algorithm)
        else:
            half = (key.key_size + 7) // 8
            if len(signature) != 2 * half:
                return False
            pair = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            key.verify(utils.encode_dss_signature(*pair), message, ec.ECDSA(_hash_of(key.key_size)))
    except InvalidSignature:
        return False
    return True


def _hash_of(bits: int) -> Any:
    from cryptography.hazmat.primitives import hashes  # loaded by then

    return hashes.SHA256() if bits <= 256 else hashes.SHA384() if bits <= 384 else hashes.SHA512()


# -- certificates ------------------------------------------------------------------------------------------


def certificates(data: bytes, name: str) -> list[Any]:
    """Those of a file, in PEM, one after the other, or a single one in DER. Raises TrustError."""
    try:
        from cryptography import x509  # 20 to 30 ms and 1.5 MB
    except ImportError as error:
        raise _missing(error) from None
    try:
        if b"-----BEGIN" not in data:
            return [x509.load_der_x509_certificate(data)]
        begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
        parts = [begin + part.partition(end)[0] + end + b"\n" for part in data.split(begin)[1:]]
        if not parts:
            raise ValueError("there is none in it")
        return [x509.load_pem_x509_certificate(part) for part in parts]
    except (ValueError, KeyError, x509.InvalidVersion) as error:
        raise TrustError(f"{name} has no certificate that can be read: {error}") from None


def revocations(data: bytes, name: str) -> Any:
    """A certificate revocation list, in PEM or DER. Raises TrustError."""
    from cryptography import x509  # loaded by then

    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_crl(data)
        return x509.load_der_x509_crl(data)
    except (ValueError, KeyError, x509.InvalidVersion) as error:
        raise TrustError(f"{name} is no certificate revocation list: {error}") from None


def der(certificate: Any) -> bytes:
    """The bytes of a certificate, by which two are the same."""
    from cryptography.hazmat.primitives.serialization import Encoding  # loaded by then

    data: bytes = certificate.public_bytes(Encoding.DER)
    return data


def issued(issuer: Any, certificate: Any) -> bool:
    """Whether a certificate, or a list of revocations, bears the signature and the name of that issuer. SHA-1 counts
    for none."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # loaded by then

    try:
        return certificate.issuer == issuer.subject and _issued(issuer, certificate)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False


def _issued(issuer: Any, certificate: Any) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa  # loaded by then

    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.name in ("sha1", "md5"):
        return False
    body = (
        certificate.tbs_certlist_bytes
        if hasattr(certificate, "tbs_certlist_bytes")
        else certificate.tbs_certificate_bytes
    )
    key, signature = issuer.public_key(), certificate.signature
    if isinstance(key, rsa.RSAPublicKey) and certificate.signature_algorithm_oid.dotted_string == PSS:
        # What such a signature's parameters are, the library tells from version 41 on.
        told = getattr(certificate, "signature_algorithm_parameters", None)
        if told is None:
            return False
        key.verify(signature, body, told, algorithm)
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, body, padding.PKCS1v15(), algorithm)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, body, ec.ECDSA(algorithm))
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, body)
    else:
        return False
    return True


def extension(certificate: Any, kind: str) -> tuple[Any, bool] | None:
    """(value, critical) of an extension by the library's name of it; None where it is not there."""
    from cryptography import x509  # loaded by then

    try:
        found = certificate.extensions.get_extension_for_class(getattr(x509, kind))
    except x509.ExtensionNotFound:
        return None
    except ValueError as error:
        raise TrustError(f"a certificate's extensions cannot be read: {error}") from None
    return found.value, found.critical


def extensions(certificate: Any) -> list[Any]:
    """All extensions of a certificate, those that the library has no name for as bytes. Raises TrustError."""
    try:
        return list(certificate.extensions)
    except ValueError as error:
        raise TrustError(f"a certificate's extensions cannot be read: {error}") from None


def check_chain(chain: Sequence[Any], leaf_check: Callable[[Any], None]) -> None:
    """That each certificate is issued by the next, and the last by itself (signature-specification, "Certificate
    Requirements"). Raises TrustError."""
    if not chain:
        raise TrustError("there is no certificate in it")
    leaf_check(chain[0])
    for number, certificate in enumerate(chain[1:], 1):
        check_authority(certificate, number)
    for certificate, issuer in zip(chain, [*chain[1:], chain[-1]]):
        if not issued(issuer, certificate):
            raise TrustError(
                f"the certificate of {certificate.subject.rfc4514_string()} is not issued by the next of its chain,"
                f" {issuer.subject.rfc4514_string()}"
            )


def check_authority(certificate: Any, below: int) -> None:
    """That a certificate may issue others, with so many of them below it in the chain. Raises TrustError."""
    name = certificate.subject.rfc4514_string()
    basic = extension(certificate, "BasicConstraints")
    if basic is None or not basic[1] or not basic[0].ca:
        raise TrustError(f"the certificate of {name} is no authority's (basic constraints)")
    if basic[0].path_length is not None and below - 1 > basic[0].path_length:
        raise TrustError(f"the chain below {name} is longer than its certificate allows")
    usage = extension(certificate, "KeyUsage")
    if usage is None or not usage[1] or not usage[0].key_cert_sign:
        raise TrustError(f"the certificate of {name} may not sign certificates (key usage)")


def times(certificate: Any) -> tuple[float, float]:
    """(not before, not after), in seconds since 1970."""
    from datetime import UTC  # loaded by then

    result = []
    for name in ("not_valid_before", "not_valid_after"):
        # Version 42 has names for times that know their zone, and warns of the older ones.
        time = getattr(certificate, f"{name}_utc", None)
        time = time if time is not None else getattr(certificate, name).replace(tzinfo=UTC)
        result.append(time.timestamp())
    return result[0], result[1]


def next_update(revocations: Any) -> float:
    """Until when a list of revocations is in force, in seconds since 1970; for ever where it does not say."""
    from datetime import UTC  # loaded by then

    time = getattr(revocations, "next_update_utc", None)
    if time is None and hasattr(type(revocations), "next_update_utc"):
        return float("inf")
    time = time if time is not None else revocations.next_update
    return time.replace(tzinfo=UTC).timestamp() if time is not None else float("inf")
