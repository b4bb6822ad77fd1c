# SPDX-License-Identifier: Apache-2.0
"""Sizes as clients write them."""

from __future__ import annotations

from teu.engine.core.errors import BadRequest
from teu.oci.units import parse_bytes


def size(text: str, what: str) -> int:
    """ "10m" in bytes. Raises BadRequest, which says what the size is of."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise BadRequest(f"{what}: {error}") from None
