# SPDX-License-Identifier: Apache-2.0
"""Sizes as clients write them."""

from __future__ import annotations

import re

from teu.engine.core.errors import BadRequest

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgtp]?)i?b?", re.IGNORECASE)


def size(text: str, what: str) -> int:
    """ "10m" in bytes. Raises BadRequest, which says what the size is of."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise BadRequest(f"{what}: invalid size: '{text}'")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))
