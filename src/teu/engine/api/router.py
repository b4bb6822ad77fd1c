# SPDX-License-Identifier: Apache-2.0
"""The table of routes: modules in teu.engine.api.routes fill it, the server asks it.

A pattern's `{name}` is one path segment, `{name:path}` may contain slashes.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from teu.engine.core.errors import EngineError, NotFound

if TYPE_CHECKING:
    from teu.engine.api.messages import Response

    Handler = Callable[..., Response]

MODULES = (
    "absent",
    "system",
    "containers",
    "exec",
    "streams",
    "archive",
    "images",
    "networks",
    "volumes",
    "plugins",
    "builds",
    "debug",
)

_table: dict[str, list[tuple[re.Pattern[str], Handler, str]]] = {}


class MethodNotAllowed(EngineError):
    status = 405


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Decorator: serve METHOD and pattern (without the version prefix) with the function.

    The function is called with the engine, the request, and the pattern's names as keywords.
    """
    expression = re.sub(r"\{(\w+)(:path)?\}", lambda m: f"(?P<{m[1]}>.+)" if m[2] else f"(?P<{m[1]}>[^/]+)", pattern)

    def register(handler: Handler) -> Handler:
        _table.setdefault(method, []).append((re.compile(expression), handler, pattern))
        return handler

    return register


def load() -> None:
    for name in MODULES:
        importlib.import_module(f"teu.engine.api.routes.{name}")


def find(method: str, path: str) -> tuple[Handler, str, dict[str, str]]:
    """The handler for a path, its pattern and its arguments. Raises NotFound or MethodNotAllowed."""
    if path == "/networks/":  # the one path that Docker serves with a slash at its end, too
        path = "/networks"
    for expression, handler, pattern in _table.get("GET" if method == "HEAD" else method, ()):
        match = expression.fullmatch(path)
        if match:
            return handler, pattern, {key: unquote(value) for key, value in match.groupdict().items()}
    for other, entries in _table.items():
        if other not in (method, "OPTIONS") and any(expression.fullmatch(path) for expression, _, _ in entries):
            raise MethodNotAllowed(f"method {method} is not served for {path}; {other} is")
    raise NotFound("page not found")


def served() -> list[tuple[str, str]]:
    """Methods and patterns of all routes."""
    return [(method, pattern) for method, entries in _table.items() for _, _, pattern in entries]
