# SPDX-License-Identifier: Apache-2.0
"""Content digests as of image-spec ("algorithm:hex"), used wherever content is named by its hash."""

from __future__ import annotations

import hashlib
import re

HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


class DigestError(ValueError):
    """The text is no digest, or content does not have the digest it is asked for by."""


def check(text: str) -> str:
    """Return `text` if it is a digest of a supported algorithm, else raise DigestError."""
    algorithm, colon, encoded = text.partition(":")
    if not colon or not encoded:
        raise DigestError(f"invalid checksum digest format: {text!r}")
    length = HEX_LENGTH.get(algorithm)
    if length is None:
        raise DigestError(f"unsupported digest algorithm: {text!r}")
    if len(encoded) != length:
        raise DigestError(f"invalid checksum digest length: {text!r}")
    if not _HEX.match(encoded):
        raise DigestError(f"invalid checksum digest format: {text!r}")
    return text


def is_digest(text: str) -> bool:
    """Whether the text is a digest of a known algorithm (OCI image-spec, descriptor, "Digests")."""
    try:
        check(text)
    except DigestError:
        return False
    return True


def of(data: bytes) -> str:
    """The sha256 digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Digester:
    """Hashes a stream piece by piece."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take in the next bytes; `size` counts them."""
        self._hash.update(data)
        self.size += len(data)

    def digest(self) -> str:
        """The digest, ALGORITHM:HEX, of what came so far."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def for_digest(text: str) -> Digester:
    """A Digester of the algorithm that `text` names."""
    return Digester(check(text).partition(":")[0])
