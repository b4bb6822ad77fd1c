# SPDX-License-Identifier: Apache-2.0
"""Names that the builder gives: of builds, references, records; digests; addresses as others may see them. Called by
all rooms."""

from __future__ import annotations

import hashlib
import re
import secrets

_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
LENGTH = 25  # what 128 random bits need in base 36, and what BuildKit's own names have

DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")

# Before the host of an address; in the name of an image a digest follows.
_CREDENTIALS = re.compile(r"(?!(?:docker-image|oci-layout)\b)([A-Za-z][A-Za-z0-9+.-]*://)([^/?#]*)@")


def new_id() -> str:
    """A name that nobody guesses and nothing else has: 25 signs of 0-9a-z."""
    return "".join(secrets.choice(_LETTERS) for _ in range(LENGTH))


def digest_of(data: bytes) -> str:
    """`sha256:…` of data, as LLB names its vertexes and registries their blobs."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether it is a digest, of SHA-2, as OCI's image specification has it (section "Digests")."""
    return DIGEST.fullmatch(text) is not None


def without_credentials(url: str) -> str:
    """The address without the name and the password in it, of which only that they were there is left; any other text
    is as it was."""
    found = _CREDENTIALS.match(url)
    if found is None:
        return url
    hidden = "xxxxx:xxxxx" if ":" in found[2] else "xxxxx"
    return f"{found[1]}{hidden}@{url[found.end() :]}"
