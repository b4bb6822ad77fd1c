# SPDX-License-Identifier: Apache-2.0
"""Routes of the daemon itself: _ping, version, info, events, system/df."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teu.engine.http import Request, Response, text
from teu.engine.router import route

if TYPE_CHECKING:
    from teu.engine.engine import Engine


@route("GET", "/_ping")
def ping(engine: Engine, request: Request) -> Response:
    answer = text("OK")
    answer.headers["Cache-Control"] = "no-cache, no-store, must-revalidate"
    answer.headers["Pragma"] = "no-cache"
    return answer
