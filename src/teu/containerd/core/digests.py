# SPDX-License-Identifier: Apache-2.0
"""Digests as the API carries them: ALGORITHM:HEX."""

from __future__ import annotations

import re

from teu.containerd.core.errors import InvalidArgument

_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


def parse_digest(text: str) -> str:
    """The digest as it is, if it is one."""
    algorithm, _, encoded = text.partition(":")
    if not _DIGEST.fullmatch(text):
        raise InvalidArgument(f"{text}: invalid checksum digest format")
    if algorithm not in _LENGTHS:
        raise InvalidArgument(f"{text}: unsupported digest algorithm")
    if not re.fullmatch(rf"[0-9a-f]{{{_LENGTHS[algorithm]}}}", encoded):
        raise InvalidArgument(f"{text}: invalid checksum digest length")
    return text


def is_digest(text: str) -> bool:
    try:
        return bool(parse_digest(text))
    except InvalidArgument:
        return False
