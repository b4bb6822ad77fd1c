# SPDX-License-Identifier: Apache-2.0
"""Parameters that several routes have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from teu.engine.api.messages import Request
from teu.engine.core.errors import BadRequest


def size(request: Request) -> tuple[int, int]:
    height, width = request.query.integer("h"), request.query.integer("w")
    if height is None or width is None or not 0 <= height < 65536 or not 0 <= width < 65536:
        raise BadRequest("h and w (the terminal's height and width) are needed, 0 to 65535")
    return height, width


def accepted(request: Request, offers: Sequence[str]) -> str:
    """The media type among the offers that the client wants most (RFC 9110 section 12.5.1), the first of those that it
    wants as much; "" where it names none of them: one that takes anything has asked for nothing."""
    wanted: dict[str, float] = {}
    for entry in ",".join(value for name, value in request.pairs if name.lower() == "accept").split(","):
        kind, *parameters = (part.strip() for part in entry.lower().split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        with contextlib.suppress(ValueError):
            wanted[kind] = max(float(quality), wanted.get(kind, 0.0))
    best = max(offers, key=lambda kind: wanted.get(kind, 0.0))
    return best if wanted.get(best) else ""
