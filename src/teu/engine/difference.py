# SPDX-License-Identifier: Apache-2.0
"""`diff`: what a container has changed (0), added (1) and deleted (2) against its image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teu.engine.container import Container
    from teu.engine.engine import Engine


def changes(engine: Engine, container: Container) -> list[dict[str, Any]]:
    return []
