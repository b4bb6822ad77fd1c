# SPDX-License-Identifier: Apache-2.0
"""Parameters that several routes have in common."""

from __future__ import annotations

from teu.engine.api.messages import Request
from teu.engine.core.errors import BadRequest


def size(request: Request) -> tuple[int, int]:
    height, width = request.query.integer("h"), request.query.integer("w")
    if height is None or width is None or not 0 <= height < 65536 or not 0 <= width < 65536:
        raise BadRequest("h and w (the terminal's height and width) are needed, 0 to 65535")
    return height, width
