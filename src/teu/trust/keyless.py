# SPDX-License-Identifier: Apache-2.0
"""Who has signed by a certificate that was good for some minutes (sigstore's keyless signing), offline: by the roots of
Fulcio's authorities and the identities that the policy names. Called by `cosign`, with the time at which a transparency
log has entered the signature: the certificate had to be valid then.

Fulcio says in the certificate who the signer is (its subject alternative name: a mail address, a URI, a user's name)
and who knows so (extensions of the arc 1.3.6.1.4.1.57264.1, Fulcio's oid-info). Logs of certificates (SCTs) are not
looked at: they are there for the owners of identities, not for those who verify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teu.trust import keys
from teu.trust.errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from teu.trust.policy import Fulcio

ISSUER, ISSUER_OLD = "1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.57264.1.1"  # in DER; as it is
OTHER_NAME = "1.3.6.1.4.1.57264.1.7"
CODE_SIGNING = "1.3.6.1.5.5.7.3.3"
CHAIN_MAX = 8
UTF8_STRING = 0x0C


class Authorities:
    """The roots that a rule trusts, and whom it lets sign."""

    def __init__(self, rule: Fulcio) -> None:
        """Raises TrustError for a file without certificates."""
        self._identities = rule.identities
        self._roots = [one for file in rule.roots for one in keys.certificates(keys.contents(file), file)]

    def signer(self, leaf: Any, others: Sequence[Any], time: float) -> str:
        """Who the certificate is of, as `SUBJECT (ISSUER)`. `others` came with it and are trusted by nobody; `time`, in
        seconds since 1970, is when it had to be valid. Raises TrustError where a root does not vouch for it, or the
        rule does not let that one sign."""
        self._check(leaf, others, time)
        subject, issuer = subject_of(leaf), issuer_of(leaf)
        if subject not in self._identities.get(issuer, ()):
            raise TrustError(
                f"it is by {subject}, whom {issuer} knows, and who is none of the identities of the policy"
            )
        return f"{subject} ({issuer})"

    def _check(self, leaf: Any, others: Sequence[Any], time: float) -> None:
        """That a root, by what came along, vouches for the certificate at that time."""
        uses = keys.extension(leaf, "ExtendedKeyUsage")
        usage = keys.extension(leaf, "KeyUsage")
        basic = keys.extension(leaf, "BasicConstraints")
        if uses is None or CODE_SIGNING not in {each.dotted_string for each in uses[0]}:
            raise TrustError("its certificate is not for signing code")
        if usage is None or not usage[0].digital_signature or basic is not None and basic[0].ca:
            raise TrustError("its certificate is not for signing")
        chain = [leaf]
        while not any(keys.der(chain[-1]) == keys.der(root) for root in self._roots) or len(chain) == 1:
            above = self._above(chain[-1], others)
            if above is None or len(chain) == CHAIN_MAX:
                raise TrustError("no root of the policy vouches for its certificate")
            keys.check_authority(above, len(chain))
            chain.append(above)
        for one in chain:
            begin, end = keys.times(one)
            if not begin <= time <= end:
                name = one.subject.rfc4514_string() or "the signer"
                raise TrustError(f"the certificate of {name} was not valid when the log entered the signature")

    def _above(self, certificate: Any, others: Sequence[Any]) -> Any:
        """Who has issued it; a root before what came along."""
        for one in [*self._roots, *others]:
            if keys.der(one) != keys.der(certificate) and keys.issued(one, certificate):
                return one
        return None


def subject_of(certificate: Any) -> str:
    """The one subject alternative name. Raises TrustError."""
    from cryptography import x509  # loaded by then

    found = keys.extension(certificate, "SubjectAlternativeName")
    names = list(found[0]) if found is not None else []
    if len(names) == 1:
        (name,) = names
        if isinstance(name, x509.RFC822Name | x509.UniformResourceIdentifier):
            return str(name.value)
        if isinstance(name, x509.OtherName) and name.type_id.dotted_string == OTHER_NAME:
            return _utf8(name.value)
    raise TrustError("its certificate names no signer, or several")


def issuer_of(certificate: Any) -> str:
    """Who knows the signer: the address of a provider of OpenID. Raises TrustError."""
    raw = {one.oid.dotted_string: one.value for one in keys.extensions(certificate)}
    new, old = raw.get(ISSUER), raw.get(ISSUER_OLD)
    found = [_utf8(new.value)] if new is not None else []
    if old is not None:
        try:
            found.append(old.value.decode())
        except UnicodeDecodeError:
            raise TrustError("its certificate's issuer is no text") from None
    if not found or len(set(found)) > 1:
        raise TrustError("its certificate does not say who knows the signer, or says it in two ways")
    return str(found[0])


def _utf8(data: bytes) -> str:
    """A string of UTF-8 in DER (X.690, 8.23), of up to 255 bytes. Raises TrustError."""
    start = 3 if data[1:2] == b"\x81" else 2
    length = data[start - 1] if len(data) >= start else 0x80
    if data[:1] != bytes([UTF8_STRING]) or start == 2 and length >= 0x80 or len(data) != start + length:
        raise TrustError("its certificate has a name that cannot be read")
    try:
        return data[start:].decode()
    except UnicodeDecodeError:
        raise TrustError("its certificate has a name that is no text") from None
